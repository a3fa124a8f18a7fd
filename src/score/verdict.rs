//! The verdict: what the sealed hold-out says of the winner against the best baseline.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::objective::Objective;
use super::paired::compare;
use super::{Comparison, ScoreError};
use crate::evaluate::Scores;

/// What the hold-out says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The lower end of the 95 % interval is above zero.
    Improvement,
    /// Everything else: the interval reaches to zero or below, there is none, or the best baseline is not known.
    NoEvidence,
    /// There is no hold-out: the search's own scores prove nothing.
    NoHoldout,
}

/// A candidate with its numbers, as the verdict shows it. Scores are objective values: higher is better.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerdictCandidate {
    /// First 16 hex digits of the recipe's hash; `export --candidate` takes it.
    pub candidate_id: String,
    /// Row of `trials.csv`.
    pub index: u64,
    /// `source`, `uniform_soup`, `sbx`, ... with the model's name where there is one.
    pub origin: String,
    /// Full-fidelity objective of the search.
    pub search_score: f64,
    /// The same samples answered anew before the verdict; `None`: not scored again.
    #[serde(default)]
    pub rescored: Option<f64>,
    /// `None`: no hold-out, or the candidate could not be scored on it.
    pub holdout_score: Option<f64>,
}

/// `verdict.json`. All numbers in objective direction: higher is better, a difference above zero is a gain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What the hold-out says.
    pub verdict: Decision,
    /// The finalist that carries the verdict.
    pub winner: VerdictCandidate,
    /// The best baseline by search score, by the mean of both scores where they were scored again; `None` if none was.
    pub baseline: Option<VerdictCandidate>,
    /// Winner minus baseline on the hold-out.
    pub difference: Option<f64>,
    /// 95 % interval of the difference.
    pub interval: Option<[f64; 2]>,
    /// Whether the interval is from per-sample differences; `false`: from standard errors, unpaired.
    pub paired: bool,
    /// Hold-out samples compared, by task.
    pub n: BTreeMap<String, u64>,
    /// The winner's search score less its hold-out score: the winner's curse, and any real shift between the two sets.
    pub over_statement: Option<f64>,
    /// The winner's search score less its score by new answers to the same samples: what chance in the evaluator's
    /// answers added to it. `None`: not scored again.
    #[serde(default)]
    pub rescoring_over_statement: Option<f64>,
    /// The hold-out had been opened before the search was continued.
    pub reused: bool,
    /// The best candidates of the search in order, the winner first; the others are only shown.
    pub finalists: Vec<VerdictCandidate>,
    /// For people.
    pub sentence: String,
}

/// A candidate that a verdict is asked about.
#[derive(Clone, Debug)]
pub struct Contender<'a> {
    /// First 16 hex digits of the recipe's hash.
    pub candidate_id: String,
    /// Of its evaluation in the search.
    pub index: u64,
    /// Who proposed it.
    pub origin: String,
    /// Full-fidelity objective of the search.
    pub search_score: f64,
    /// Objective by new answers to the same samples; `None`: not scored again.
    pub rescored: Option<f64>,
    /// Scores on the hold-out; `None` if it was not, or could not be, scored on it.
    pub holdout: Option<&'a Scores>,
}

/// Everything that a verdict is decided from.
#[derive(Clone, Debug)]
pub struct VerdictQuestion<'a> {
    /// How the hold-out's scores become one number.
    pub objective: &'a Objective,
    /// Best first by search score, or by the mean of it and the second score; the first carries the verdict.
    pub finalists: Vec<Contender<'a>>,
    /// The best baseline by search score; where finalists were scored again, the best of those that were by both scores.
    pub baseline: Option<Contender<'a>>,
    /// Baselines that have no score through no fault of theirs: one of them may be the best.
    pub unscored_baselines: Vec<String>,
    /// Whether the run has a hold-out.
    pub has_holdout: bool,
    /// Whether the hold-out had been opened before the search was continued.
    pub reused: bool,
    /// The run's seed, for the bootstrap.
    pub seed: u64,
}

/// Decides.
///
/// # Errors
/// [`ScoreError::NoFinalist`] without finalists; others if hold-out scores lack a task of the objective.
pub fn decide(question: &VerdictQuestion<'_>) -> Result<Verdict, ScoreError> {
    let first = question.finalists.first().ok_or(ScoreError::NoFinalist)?;
    let shown = |contender: &Contender<'_>| show(question.objective, contender);
    let winner = shown(first);
    let baseline = question.baseline.as_ref().map(shown);
    let comparison = comparison(question, first)?;
    let is_baseline = baseline.as_ref().is_some_and(|baseline| baseline.candidate_id == winner.candidate_id);
    let same = (question.has_holdout && is_baseline).then_some(0.0);
    let verdict = match &comparison {
        _ if !question.has_holdout => Decision::NoHoldout,
        _ if is_baseline => Decision::NoEvidence,
        _ if !question.unscored_baselines.is_empty() => Decision::NoEvidence,
        Some(Comparison { interval: Some([low, _]), .. }) if *low > 0.0 => Decision::Improvement,
        _ => Decision::NoEvidence,
    };
    let mut answer = Verdict {
        verdict,
        over_statement: winner.holdout_score.map(|holdout| winner.search_score - holdout),
        rescoring_over_statement: winner.rescored.map(|again| winner.search_score - again),
        winner,
        baseline,
        difference: comparison.as_ref().map(|comparison| comparison.difference).or(same),
        interval: comparison.as_ref().and_then(|comparison| comparison.interval),
        paired: comparison.as_ref().is_some_and(Comparison::is_paired),
        n: comparison.map(|comparison| comparison.n).unwrap_or_default(),
        reused: question.reused,
        finalists: question.finalists.iter().map(shown).collect(),
        sentence: String::new(),
    };
    answer.sentence = sentence(&answer);
    if question.has_holdout && !question.unscored_baselines.is_empty() {
        answer.sentence.push_str(&format!(
            " {} could not be scored through no fault of theirs, so the best baseline is not known.",
            question.unscored_baselines.join(", ")
        ));
    }
    Ok(answer)
}

fn show(objective: &Objective, contender: &Contender<'_>) -> VerdictCandidate {
    VerdictCandidate {
        candidate_id: contender.candidate_id.clone(),
        index: contender.index,
        origin: contender.origin.clone(),
        search_score: contender.search_score,
        rescored: contender.rescored,
        holdout_score: contender.holdout.and_then(|scores| objective.value(scores)),
    }
}

/// Winner against baseline on the hold-out; `None` where one of them has no scores there.
fn comparison(question: &VerdictQuestion<'_>, winner: &Contender<'_>) -> Result<Option<Comparison>, ScoreError> {
    let Some(baseline) = question.baseline.as_ref().filter(|_| question.has_holdout) else { return Ok(None) };
    let (Some(winner_scores), Some(baseline_scores)) = (winner.holdout, baseline.holdout) else { return Ok(None) };
    compare(question.objective, winner_scores, baseline_scores, question.seed).map(Some)
}

/// The verdict in one or two sentences, for people.
pub fn sentence(verdict: &Verdict) -> String {
    let mut text = main_sentence(verdict);
    if let (Decision::Improvement | Decision::NoEvidence, Some(over)) = (verdict.verdict, verdict.over_statement) {
        text.push_str(&format!(" The search score of the winner differs from its hold-out score by {over:+.4}."));
    }
    if let (Some(again), Some(over)) = (verdict.winner.rescored, verdict.rescoring_over_statement) {
        text.push_str(&format!(
            " Scored again on the search samples, the winner has {again:.4}; its search score differs from that by {over:+.4}."
        ));
    }
    if verdict.reused {
        text.push_str(" The hold-out had been opened before: it is no longer untouched evidence.");
    }
    text
}

fn main_sentence(verdict: &Verdict) -> String {
    let winner = &verdict.winner;
    if verdict.verdict == Decision::NoHoldout {
        return format!(
            "No hold-out: the winner ({}, {}) has the search score {:.4}, and nothing shows that it holds on other data.",
            winner.candidate_id, winner.origin, winner.search_score
        );
    }
    let Some(baseline) = &verdict.baseline else {
        return "No evidence of improvement: no baseline could be scored, so there is nothing to compare with."
            .to_owned();
    };
    if baseline.candidate_id == winner.candidate_id {
        return format!(
            "No evidence of improvement: the best candidate of the search is the best baseline itself ({}).",
            baseline.origin
        );
    }
    let Some(difference) = verdict.difference else {
        let missing = if winner.holdout_score.is_none() { "winner" } else { "best baseline" };
        return format!("No evidence of improvement: the {missing} could not be scored on the hold-out.");
    };
    let n: u64 = verdict.n.values().sum();
    let samples = format!("{n} hold-out samples");
    let Some([low, high]) = verdict.interval else {
        return format!(
            "No evidence of improvement: {difference:+.4} over the best baseline ({}) on {samples}, and no interval: \
             the evaluator gives neither per-sample scores nor standard errors from which one would follow, or too large numbers.",
            baseline.origin
        );
    };
    let how = if verdict.paired { "paired" } else { "unpaired, from standard errors" };
    let interval = format!("95 % interval {low:+.4} to {high:+.4}, {how}, {samples}");
    match verdict.verdict {
        Decision::Improvement => format!(
            "Improvement: the winner ({}) is better than the best baseline ({}) by {difference:+.4} ({interval}).",
            winner.origin, baseline.origin
        ),
        _ => format!(
            "No evidence of improvement: the winner ({}) differs from the best baseline ({}) by {difference:+.4} ({interval}).",
            winner.origin, baseline.origin
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::{MetricValue, PerSample, SampleId, TaskScores};
    use crate::score::ObjectiveTask;

    fn scores(values: &[f64]) -> Scores {
        let value = values.iter().sum::<f64>() / values.len() as f64;
        let task = TaskScores {
            n: values.len() as u64,
            metrics: BTreeMap::from([("acc".to_owned(), MetricValue { value, stderr: None })]),
            per_sample: Some(PerSample {
                ids: (0..values.len() as i64).map(SampleId::Number).collect(),
                scores: BTreeMap::from([("acc".to_owned(), values.to_vec())]),
            }),
            ..TaskScores::default()
        };
        BTreeMap::from([("a".to_owned(), task)])
    }

    fn objective() -> Objective {
        Objective {
            tasks: vec![ObjectiveTask { name: "a".to_owned(), metric: "acc".to_owned(), weight: 1.0, maximize: true }],
        }
    }

    fn contender<'a>(id: &str, search_score: f64, holdout: Option<&'a Scores>) -> Contender<'a> {
        Contender {
            candidate_id: id.to_owned(),
            index: 3,
            origin: "source".to_owned(),
            search_score,
            rescored: None,
            holdout,
        }
    }

    fn ask<'a>(
        objective: &'a Objective,
        winner: Contender<'a>,
        baseline: Option<Contender<'a>>,
        has_holdout: bool,
    ) -> Verdict {
        let question = VerdictQuestion {
            objective,
            finalists: vec![winner],
            baseline,
            unscored_baselines: vec![],
            has_holdout,
            reused: false,
            seed: 7,
        };
        decide(&question).unwrap()
    }

    #[test]
    fn a_clear_gain_is_an_improvement() {
        let (good, bad) = (scores(&[1.0; 40]), scores(&[[1.0, 0.0]; 20].concat()));
        let objective = objective();
        let verdict = ask(&objective, contender("w", 1.0, Some(&good)), Some(contender("b", 0.6, Some(&bad))), true);
        assert_eq!((verdict.verdict, verdict.difference, verdict.paired), (Decision::Improvement, Some(0.5), true));
        assert_eq!((verdict.over_statement, verdict.n["a"]), (Some(0.0), 40));
        assert!(verdict.interval.unwrap()[0] > 0.0);
        assert!(verdict.sentence.starts_with("Improvement"));
        let back = ask(&objective, contender("w", 1.0, Some(&bad)), Some(contender("b", 0.6, Some(&good))), true);
        assert_eq!((back.verdict, back.difference), (Decision::NoEvidence, Some(-0.5)));
        assert_eq!(back.over_statement, Some(0.5));
    }

    #[test]
    fn a_baseline_without_a_score_might_be_the_best() {
        let (good, bad) = (scores(&[1.0; 40]), scores(&[[1.0, 0.0]; 20].concat()));
        let question = VerdictQuestion {
            objective: &objective(),
            finalists: vec![contender("w", 1.0, Some(&good))],
            baseline: Some(contender("b", 0.6, Some(&bad))),
            unscored_baselines: vec!["source:a".to_owned()],
            has_holdout: true,
            reused: false,
            seed: 7,
        };
        let verdict = decide(&question).unwrap();
        assert_eq!((verdict.verdict, verdict.difference), (Decision::NoEvidence, Some(0.5)));
        assert!(verdict.sentence.contains("source:a could not be scored"), "{}", verdict.sentence);
    }

    #[test]
    fn a_baseline_that_wins_is_no_evidence() {
        let own = scores(&[1.0, 0.0, 1.0]);
        let objective = objective();
        let verdict = ask(&objective, contender("b", 0.7, Some(&own)), Some(contender("b", 0.7, Some(&own))), true);
        assert_eq!((verdict.verdict, verdict.difference), (Decision::NoEvidence, Some(0.0)));
        let unscored = ask(&objective, contender("b", 0.7, None), Some(contender("b", 0.7, None)), true);
        assert_eq!((unscored.verdict, unscored.difference), (Decision::NoEvidence, Some(0.0)));
        assert!(verdict.sentence.contains("best baseline itself"));
    }

    #[test]
    fn what_is_missing_never_becomes_an_improvement() {
        let own = scores(&[1.0, 1.0, 1.0]);
        let objective = objective();
        let sealed = ask(&objective, contender("w", 0.7, None), Some(contender("b", 0.1, None)), false);
        assert_eq!((sealed.verdict, sealed.difference), (Decision::NoHoldout, None));
        let unscored = ask(&objective, contender("w", 0.7, None), Some(contender("b", 0.1, Some(&own))), true);
        assert_eq!(unscored.verdict, Decision::NoEvidence);
        assert!(unscored.sentence.contains("winner could not be scored"));
        let alone = ask(&objective, contender("w", 0.7, Some(&own)), None, true);
        assert_eq!(alone.verdict, Decision::NoEvidence);
        let question = VerdictQuestion {
            objective: &objective,
            finalists: vec![],
            baseline: None,
            unscored_baselines: vec![],
            has_holdout: true,
            reused: false,
            seed: 7,
        };
        assert_eq!(decide(&question), Err(ScoreError::NoFinalist));
    }

    #[test]
    fn serde_names_are_the_contract() {
        let (good, bad) = (scores(&[1.0; 8]), scores(&[0.0; 8]));
        let objective = objective();
        let mut verdict =
            ask(&objective, contender("w", 1.0, Some(&good)), Some(contender("b", 0.0, Some(&bad))), true);
        verdict.reused = true;
        assert!(sentence(&verdict).contains("opened before"));
        let json = serde_json::to_value(&verdict).unwrap();
        assert_eq!(json["verdict"], "improvement");
        assert_eq!(json["winner"]["search_score"], 1.0);
        assert_eq!(json["baseline"]["holdout_score"], 0.0);
        assert_eq!(json["interval"][0], 1.0);
        assert_eq!(json["n"]["a"], 8);
        assert_eq!(serde_json::from_value::<Verdict>(json).unwrap(), verdict);
    }
}
