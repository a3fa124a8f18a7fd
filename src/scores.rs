//! The vocabulary of scores: how an evaluation ended, and what a candidate scored by task, metric and sample.
//!
//! Evaluators make them, the ledger keeps them, `score` and the strategies read them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A larger number of samples is a mistake; sums of numbers up to it hold for any run.
pub(crate) const MOST_SAMPLES: u64 = 1 << 40;

/// How an evaluation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It has scores.
    Scored,
    /// The candidate's own fault: worst fitness.
    Infeasible,
    /// Given up after retries: no fitness, says nothing of the candidate.
    Failed,
}

impl Status {
    const ALL: [Self; 3] = [Self::Scored, Self::Infeasible, Self::Failed];

    /// As records and tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scored => "scored",
            Self::Infeasible => "infeasible",
            Self::Failed => "failed",
        }
    }

    /// The status of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }
}

/// Identity of a sample inside its task.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SampleId {
    /// A whole number; samples without ids of their own are numbered from 0.
    Number(i64),
    /// A text of the data's own.
    Text(String),
}

impl std::fmt::Display for SampleId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(formatter),
            Self::Text(text) => text.fmt(formatter),
        }
    }
}

/// Ids of the samples of one answer, in its order. A clone shares them: a search holds as many answers as evaluations,
/// most of them on the same samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleIds(Arc<[SampleId]>);

impl Default for SampleIds {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl std::ops::Deref for SampleIds {
    type Target = [SampleId];

    fn deref(&self) -> &[SampleId] {
        &self.0
    }
}

impl From<Vec<SampleId>> for SampleIds {
    fn from(ids: Vec<SampleId>) -> Self {
        Self(ids.into())
    }
}

impl FromIterator<SampleId> for SampleIds {
    fn from_iter<I: IntoIterator<Item = SampleId>>(ids: I) -> Self {
        Self(ids.into_iter().collect())
    }
}

impl Serialize for SampleIds {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0[..].serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SampleIds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}

/// A metric's value over the samples of an evaluation. Finite by construction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricValue {
    /// In the metric's own unit and direction.
    pub value: f64,
    /// Standard error of `value`, where the evaluator gives one.
    pub stderr: Option<f64>,
}

impl MetricValue {
    /// The mean of at least one value with its standard error, which a single value has not.
    pub(crate) fn mean_of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self { value: mean, stderr: (n > 1.0).then(|| (squares / (n - 1.0) / n).sqrt()) }
    }
}

/// Name of the per-sample series that weighs the samples of a metric which is a weighted mean (bits per byte: the
/// bytes).
pub const SAMPLE_WEIGHT: &str = "weight";

/// Scores sample by sample, aligned with `ids`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PerSample {
    /// The samples scored: in the order of the request, or ascending where it names none.
    pub ids: SampleIds,
    /// By metric. Finite.
    pub scores: BTreeMap<String, Vec<f64>>,
}

/// One task's part of an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskScores {
    /// Samples scored.
    pub n: u64,
    /// Answers cut by the generation limit, where the evaluator counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_truncated: Option<u64>,
    /// By the metric's name; the one asked for is there.
    pub metrics: BTreeMap<String, MetricValue>,
    /// `None`: the evaluator gives none, so that candidates cannot be compared sample by sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_sample: Option<PerSample>,
}

/// Scores by task name.
pub type Scores = BTreeMap<String, TaskScores>;
