//! The verdict and what it is asked about: the winner against the best baseline, on the sealed hold-out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

use super::objective::Objective;
use crate::scores::Scores;

/// What the hold-out says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The lower end of the 95 % interval is above zero, against the best baseline and all that may be as good.
    Improvement,
    /// Everything else: an interval reaches to zero or below, there is none, or the best baseline is not known.
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
    /// Objective of new answers to the search samples, given before the verdict; `None`: not scored again.
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

/// A baseline that the search could not tell from the best one, against the winner on the hold-out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RivalVerdict {
    /// Which one it is, with its numbers.
    pub baseline: VerdictCandidate,
    /// Winner less this baseline; `None`: one of them has no score on the hold-out.
    pub difference: Option<f64>,
    /// 95 % interval of the difference.
    pub interval: Option<[f64; 2]>,
}

impl RivalVerdict {
    /// Whether the interval lies above zero.
    pub(super) fn is_beaten(&self) -> bool {
        self.interval.is_some_and(|[low, _]| low > 0.0)
    }
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
    /// Baselines whose search scores are not clearly below the best one's, best first: one of them may be the best, so an
    /// improvement has to be one on each of them. Scored on the hold-out only where the winner beats
    /// `baseline` by more than chance.
    #[serde(default)]
    pub rivals: Vec<RivalVerdict>,
    /// Number of further baselines that may be as good as the best one. They were not scored on the hold-out, because
    /// only a limited number is.
    #[serde(default)]
    pub rivals_left_out: usize,
    /// Winner minus baseline on the hold-out.
    pub difference: Option<f64>,
    /// 95 % interval of the difference.
    pub interval: Option<[f64; 2]>,
    /// Whether the interval is from per-sample differences; `false`: from standard errors, unpaired.
    pub paired: bool,
    /// Why samples could not be paired; `None`: they were, or there was nothing to compare.
    #[serde(default)]
    pub unpaired_because: Option<String>,
    /// Hold-out samples compared, by task; 0 where the evaluator does not say.
    pub n: BTreeMap<String, u64>,
    /// Winner and best baseline on each task of the hold-out that has a weight. A gain may hide a loss in one of them.
    #[serde(default)]
    pub tasks: BTreeMap<String, TaskVerdict>,
    /// The winner's search score less its hold-out score: the winner's curse, and any real shift between the two sets.
    pub over_statement: Option<f64>,
    /// What chance in the evaluator's answers adds to the best score of a search: the best finalist's search score less
    /// its score by new answers to the same samples. The winner is chosen by both scores, so that its own two say less.
    /// `None`: not scored again.
    #[serde(default)]
    pub rescoring_over_statement: Option<f64>,
    /// The hold-out had been opened before the search was continued, or by another run of its name.
    pub reused: bool,
    /// The best candidates of the search in order, the winner first; the others are only shown.
    pub finalists: Vec<VerdictCandidate>,
    /// For people.
    pub sentence: String,
}

/// Names of the fields of a verdict, in order.
const FIELDS: [&str; 16] = [
    "verdict",
    "winner",
    "baseline",
    "rivals",
    "rivals_left_out",
    "difference",
    "interval",
    "paired",
    "unpaired_because",
    "n",
    "tasks",
    "over_statement",
    "rescoring_over_statement",
    "reused",
    "finalists",
    "sentence",
];

/// A verdict's fields for a document that they are part of; all null where there is none.
///
/// # Errors
/// Those of the serializer.
pub fn serialize_or_null<S: Serializer>(verdict: &Option<Verdict>, serializer: S) -> Result<S::Ok, S::Error> {
    match verdict {
        Some(verdict) => verdict.serialize(serializer),
        None => serializer.collect_map(FIELDS.map(|field| (field, ()))),
    }
}

/// A candidate that a verdict is asked about.
#[derive(Clone, Debug)]
pub struct Contender<'a> {
    /// First 16 hex digits of the recipe's hash.
    pub candidate_id: String,
    /// The index of its evaluation in the search.
    pub index: u64,
    /// Who proposed it.
    pub origin: String,
    /// Full-fidelity objective of the search.
    pub search_score: f64,
    /// Objective by new answers to the same samples; `None`: not scored again.
    pub rescored: Option<f64>,
    /// Scores on the hold-out; `None`: there is none, or the candidate was not, or could not be, scored on it.
    pub holdout: Option<&'a Scores>,
}

/// A hold-out that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedHoldout {
    /// Whether it had been opened before the search was continued, or by another run of its name.
    pub reused: bool,
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
    /// Baselines that the search could not tell from that one and that were scored on the hold-out, best first.
    pub rivals: Vec<Contender<'a>>,
    /// Number of further baselines that the search could not tell from the best one, which were not scored on the
    /// hold-out.
    pub rivals_left_out: usize,
    /// Baselines that have no score through no fault of theirs: one of them may be the best.
    pub unscored_baselines: Vec<String>,
    /// The hold-out that contenders are scored on; `None`: the run has none.
    pub holdout: Option<OpenedHoldout>,
    /// The run's seed, for the bootstrap.
    pub seed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Document {
        name: &'static str,
        #[serde(flatten, serialize_with = "serialize_or_null")]
        verdict: Option<Verdict>,
    }

    #[test]
    fn a_document_without_a_verdict_has_its_fields() {
        let winner = VerdictCandidate {
            candidate_id: "c".into(),
            index: 1,
            origin: "sbx".into(),
            search_score: 0.5,
            rescored: None,
            holdout_score: None,
        };
        let verdict = Verdict {
            verdict: Decision::NoEvidence,
            winner: winner.clone(),
            baseline: None,
            rivals: vec![],
            rivals_left_out: 0,
            difference: None,
            interval: None,
            paired: false,
            unpaired_because: None,
            n: BTreeMap::new(),
            tasks: BTreeMap::new(),
            over_statement: None,
            rescoring_over_statement: None,
            reused: false,
            finalists: vec![winner],
            sentence: "s".into(),
        };
        let keys = |verdict: Option<Verdict>| -> Vec<String> {
            let document = serde_json::to_value(Document { name: "run", verdict }).unwrap();
            document.as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(keys(None), keys(Some(verdict)));
        let document = serde_json::to_value(Document { name: "run", verdict: None }).unwrap();
        assert!(document["winner"].is_null() && document["name"] == "run");
    }
}
