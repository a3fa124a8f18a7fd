//! The verdict: what the sealed hold-out says of the winner against the best baseline.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::objective::{Objective, ObjectiveTask};
use super::paired::compare;
use super::{Comparison, ScoreError};
use crate::scores::Scores;

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

/// One task of the hold-out, by itself. In objective direction: higher is better.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskVerdict {
    /// The winner's score.
    pub winner: f64,
    /// The best baseline's score.
    pub baseline: f64,
    /// Winner less baseline; on the samples that both have where they are paired.
    pub difference: f64,
    /// 95 % interval of the difference, of this task alone.
    pub interval: Option<[f64; 2]>,
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
    /// Hold-out samples compared, by task; 0 where the evaluator does not say.
    pub n: BTreeMap<String, u64>,
    /// Winner and best baseline on each task of the hold-out that has a weight. A gain may hide a loss in one of them.
    #[serde(default)]
    pub tasks: BTreeMap<String, TaskVerdict>,
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
        tasks: by_task(question, first)?,
        reused: question.reused,
        finalists: question.finalists.iter().map(shown).collect(),
        sentence: String::new(),
    };
    answer.sentence = sentence(&answer);
    if question.has_holdout && !question.unscored_baselines.is_empty() {
        answer.sentence.push_str(&format!(
            " The best baseline is not known, for want of a score of {}.",
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
    let Some([winner, baseline]) = both_held_out(question, winner) else { return Ok(None) };
    compare(question.objective, winner, baseline, question.seed).map(Some)
}

/// As [`comparison`], of each task by itself; nothing where there is none, or winner and baseline are one.
fn by_task(
    question: &VerdictQuestion<'_>,
    winner: &Contender<'_>,
) -> Result<BTreeMap<String, TaskVerdict>, ScoreError> {
    let mut tasks = BTreeMap::new();
    let is_baseline = question.baseline.as_ref().is_some_and(|baseline| baseline.candidate_id == winner.candidate_id);
    let Some([winner, baseline]) = both_held_out(question, winner).filter(|_| !is_baseline) else { return Ok(tasks) };
    for task in question.objective.weighted_tasks() {
        // A weight below zero turns the direction, here as in the whole.
        let alone = Objective { tasks: vec![ObjectiveTask { weight: task.weight.signum(), ..task.clone() }] };
        let Comparison { difference, interval, .. } = compare(&alone, winner, baseline, question.seed)?;
        if let (Some(winner), Some(baseline)) = (alone.value(winner), alone.value(baseline)) {
            tasks.insert(task.name.clone(), TaskVerdict { winner, baseline, difference, interval });
        }
    }
    Ok(tasks)
}

/// Scores of winner and best baseline on the hold-out.
fn both_held_out<'a>(question: &VerdictQuestion<'a>, winner: &Contender<'a>) -> Option<[&'a Scores; 2]> {
    let baseline = question.baseline.as_ref().filter(|_| question.has_holdout)?;
    Some([winner.holdout?, baseline.holdout?])
}

/// The verdict in one or two sentences, for people.
pub fn sentence(verdict: &Verdict) -> String {
    let mut text = main_sentence(verdict);
    text.extend(verdict.tasks.iter().filter(|_| verdict.tasks.len() > 1).filter_map(|(name, task)| {
        let [low, high] = task.interval.filter(|[_, high]| *high < 0.0)?;
        Some(format!(
            " Task {name} is worse than with that baseline, by {:+.4} ({low:+.4} to {high:+.4}).",
            task.difference
        ))
    }));
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

/// Squares of larger numbers overflow.
const LARGEST_SQUARE: f64 = 1e154;

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
    let samples = |before: &str| if n > 0 { format!("{before} {n} hold-out samples") } else { String::new() };
    let Some([low, high]) = verdict.interval else {
        let scores = [winner.holdout_score, baseline.holdout_score];
        let why = match scores.iter().flatten().all(|score| score.abs() < LARGEST_SQUARE) {
            true => "the evaluator gives neither per-sample scores nor standard errors from which one would follow",
            false => "the scores are too large numbers for one",
        };
        return format!(
            "No evidence of improvement: {difference:+.4} over the best baseline ({}){}, and no interval: {why}.",
            baseline.origin,
            samples(" on")
        );
    };
    let how = if verdict.paired { "paired" } else { "unpaired, from standard errors" };
    let interval = format!("95 % interval {low:+.4} to {high:+.4}, {how}{}", samples(","));
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
    use crate::score::ObjectiveTask;
    use crate::scores::{MetricValue, PerSample, SampleId, TaskScores};

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
    fn a_gain_that_hides_a_loss_says_so() {
        let [all, half, none] = [vec![1.0; 40], [[1.0, 0.0]; 20].concat(), vec![0.0; 40]];
        let of = |a: &[f64], b: &[f64]| {
            let tasks = [("a", a), ("b", b)].map(|(name, values)| (name.to_owned(), scores(values)["a"].clone()));
            BTreeMap::from(tasks)
        };
        let (winner, baseline) = (of(&all, &none), of(&none, &half));
        let task =
            |name: &str, weight: f64| ObjectiveTask { name: name.to_owned(), weight, ..objective().tasks[0].clone() };
        let objective = Objective { tasks: vec![task("a", 3.0), task("b", 1.0)] };
        let verdict =
            ask(&objective, contender("w", 1.0, Some(&winner)), Some(contender("b", 0.6, Some(&baseline))), true);
        assert_eq!((verdict.verdict, verdict.difference), (Decision::Improvement, Some(0.625)));
        let loss = &verdict.tasks["b"];
        assert_eq!((loss.winner, loss.baseline, loss.difference), (0.0, 0.5, -0.5));
        assert!(loss.interval.unwrap()[1] < 0.0);
        assert_eq!(verdict.tasks["a"].difference, 1.0);
        assert!(verdict.sentence.contains("Task b is worse"), "{}", verdict.sentence);
        assert!(!verdict.sentence.contains("Task a"), "{}", verdict.sentence);
    }

    /// Tasks by themselves point where the objective does.
    #[test]
    fn a_task_by_itself_keeps_its_direction() {
        let (more, less) = (scores(&[1.0; 40]), scores(&[[1.0, 0.0]; 20].concat()));
        let task = |weight: f64, maximize: bool| ObjectiveTask { weight, maximize, ..objective().tasks[0].clone() };
        for (task, expected) in [(task(-1.0, true), -0.5), (task(2.0, false), -0.5), (task(-2.0, false), 0.5)] {
            let objective = Objective { tasks: vec![task] };
            let verdict =
                ask(&objective, contender("w", 1.0, Some(&more)), Some(contender("b", 0.6, Some(&less))), true);
            assert_eq!((verdict.difference, verdict.tasks["a"].difference), (Some(expected), expected));
        }
    }

    #[test]
    fn numbers_of_samples_that_nobody_knows_are_left_out() {
        let unknown = |value: f64| {
            let metrics = BTreeMap::from([("acc".to_owned(), MetricValue { value, stderr: None })]);
            BTreeMap::from([("a".to_owned(), TaskScores { metrics, ..TaskScores::default() })])
        };
        let (winner, baseline) = (unknown(0.9), unknown(0.7));
        let objective = objective();
        let verdict =
            ask(&objective, contender("w", 1.0, Some(&winner)), Some(contender("b", 0.6, Some(&baseline))), true);
        assert!(!verdict.sentence.contains("samples on") && !verdict.sentence.contains(" 0 "), "{}", verdict.sentence);
        assert!(verdict.sentence.contains("neither per-sample scores nor standard errors"), "{}", verdict.sentence);
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
        assert!(verdict.sentence.contains("for want of a score of source:a"), "{}", verdict.sentence);
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
