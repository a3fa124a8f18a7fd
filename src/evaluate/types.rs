//! What goes to an evaluator and what comes back, independent of the way it travels.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use crate::config::Patience;

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

/// Which samples of a task an evaluation uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Samples {
    /// All that the task has.
    All,
    /// The first `n` of a fixed permutation, so that subsets are nested.
    Limit(u64),
    /// These, in this order.
    Ids(Vec<SampleId>),
}

impl Samples {
    /// How many these are of a task that has `n_samples`, 0 standing for unknown; `None` where that does not tell. A
    /// task of unknown size may have fewer than a limit.
    pub fn count(&self, n_samples: u64) -> Option<u64> {
        let known = (n_samples > 0).then_some(n_samples);
        match self {
            Self::All => known,
            Self::Limit(limit) => Some(known.map_or(*limit, |known| known.min(*limit))),
            Self::Ids(ids) => Some(ids.len() as u64),
        }
    }
}

/// One task of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRequest {
    /// The evaluator's name of the task.
    pub name: String,
    /// The metric that counts.
    pub metric: String,
    /// The samples to be scored.
    pub samples: Samples,
    /// Seeds the permutation behind [`Samples::Limit`] (and sampling, where an evaluator samples).
    pub seed: u64,
}

/// The candidate of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidateRequest {
    /// First 16 hex digits of `recipe_sha256`.
    pub id: String,
    /// The recipe's canonical hash, in hex; the content id of a checkpoint that is scored by itself.
    pub recipe_sha256: String,
    /// The materialized checkpoint; `None` where [`super::Evaluator::needs_checkpoint`] is false.
    pub path: Option<PathBuf>,
    /// The recipe as canonical JSON, for evaluators that materialize themselves.
    pub recipe: serde_json::Value,
    /// The genome: one number from 0 to 1 a gene, which the gene gives a meaning (for closed-form landscapes;
    /// empty for baselines without a genome).
    pub genome: Vec<f64>,
}

/// One evaluation to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluationRequest {
    /// sha256 over everything that determines the answer: idempotency key, cache key and log key.
    pub evaluation_id: String,
    /// Tells runs apart.
    pub run_id: String,
    /// For people.
    pub run_name: String,
    /// What is scored.
    pub candidate: CandidateRequest,
    /// What it is scored on.
    pub tasks: Vec<TaskRequest>,
    /// Share of the samples used, in `(0, 1]`; a label.
    pub fidelity: f64,
    /// 0 for a candidate's first scoring on these samples, then counted up: an evaluator answers anew.
    pub replicate: u32,
}

/// A metric's value over the samples of an evaluation. Finite by construction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricValue {
    /// In the metric's own unit and direction.
    pub value: f64,
    /// Standard error of `value`, where the evaluator gives one.
    pub stderr: Option<f64>,
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

/// A checked answer: every task and metric asked for is present, ids and n agree, all numbers are finite.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Scores of every task asked for, by the name in the request.
    pub tasks: Scores,
    /// Which endpoint answered, for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Seconds by phase (`load_s`, `evaluate_s`, ...), as far as known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub timing: BTreeMap<String, f64>,
    /// The evaluator's remarks, for people; at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Who is to blame for a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultClass {
    /// The candidate itself: worst fitness, final.
    Candidate,
    /// Memory, time: retried, elsewhere if possible.
    Resource,
    /// Network, server, worker: retried, never a score.
    Infrastructure,
    /// The run file or the evaluator's set-up: stop.
    Configuration,
    /// Nobody: the evaluation was called off.
    Cancelled,
}

/// A failed attempt, or the last one of a failed evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {detail}{}", endpoint.as_deref().map(|e| format!(" (endpoint {e})")).unwrap_or_default())]
pub struct Fault {
    /// Who is to blame.
    pub class: FaultClass,
    /// The protocol's code (`out_of_memory`, `unknown_task`, ...).
    pub code: String,
    /// What happened, for people.
    pub detail: String,
    /// The endpoint that it came from, as the run file names it; `None` for evaluators without endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// How an evaluation ends other than by scores.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The candidate's own fault: worst fitness, final.
    #[error("the candidate cannot be scored: {0}")]
    Candidate(Fault),
    /// All attempts used up although the evaluator is otherwise healthy: no fitness.
    #[error("given up after all attempts: {0}")]
    GivenUp(Fault),
    /// The run cannot go on with this configuration.
    #[error("evaluator configuration: {0}")]
    Configuration(Fault),
    /// Nothing answered for longer than allowed; the run can be continued later.
    #[error("the evaluator is out of reach: {0}")]
    Outage(Fault),
    /// What runs on this machine (a program, the native evaluator's threads) gives no scores; the run can be continued
    /// once it does.
    #[error("the evaluator cannot be used: {0}")]
    Unusable(Fault),
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// Task data that cannot be read or parsed.
    #[error("task data {path}: {reason}")]
    TaskData {
        /// The JSON-lines file of a task.
        path: PathBuf,
        /// What is wrong, with the line where one is to blame.
        reason: String,
    },
}

impl EvaluateError {
    /// The exit code of a command that ends with this error. `Candidate` and `GivenUp` are outcomes that a search
    /// records; only a single evaluation ends with them.
    pub fn exit_code(&self) -> crate::exit::ExitCode {
        use crate::exit::ExitCode;
        match self {
            Self::Candidate(_) => ExitCode::BadData,
            Self::GivenUp(_) => ExitCode::Stopped,
            Self::Configuration(_) => ExitCode::BadConfiguration,
            Self::Outage(_) | Self::Unusable(_) | Self::Cancelled => ExitCode::Stopped,
            Self::TaskData { .. } => ExitCode::BadData,
        }
    }
}

impl Fault {
    /// A fault that no endpoint is to blame for by name.
    pub fn new(class: FaultClass, code: &str, detail: impl Into<String>) -> Self {
        Self { class, code: code.to_owned(), detail: detail.into(), endpoint: None }
    }

    /// A fault of the run file or of the evaluator's set-up: only the user can put it right.
    pub fn configuration(code: &str, detail: impl Into<String>) -> Self {
        Self::new(FaultClass::Configuration, code, detail)
    }

    /// The same fault with the endpoint that it came from.
    pub fn at(self, endpoint: &str) -> Self {
        Self { endpoint: Some(endpoint.to_owned()), ..self }
    }
}

/// One try at an evaluation, for the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// The endpoint that was tried; `None` for evaluators without endpoints.
    pub endpoint: Option<String>,
    /// How long it took, to scores or to the fault.
    pub seconds: f64,
    /// Whether it counts against the attempts allowed (back-pressure does not).
    pub counts: bool,
    /// `None`: it was answered with scores.
    pub fault: Option<Fault>,
}

/// Is told of every attempt, before the next one starts.
pub trait AttemptObserver: Send + Sync {
    /// Records the attempt durably.
    fn attempted(&self, attempt: &Attempt);
}

/// What an evaluator knows of a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricCapability {
    /// Whether higher is better. Of a `command` it is a guess, which the run file's `goal` overrules.
    pub higher_is_better: bool,
    /// Least value, where it is known: lower ones are refused.
    pub min: Option<f64>,
    /// Greatest value, where it is known: higher ones are refused.
    pub max: Option<f64>,
    /// Whether the value is the mean of the per-sample scores.
    pub is_mean: bool,
}

/// What an evaluator knows of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskCapability {
    /// Samples the task has; 0 where the evaluator cannot say (`command`).
    pub n_samples: u64,
    /// All sample ids, where known (for `0..n` numbering they are generated).
    pub sample_ids: Option<Vec<SampleId>>,
    /// By the metric's name.
    pub metrics: BTreeMap<String, MetricCapability>,
    /// Whether it takes [`Samples::Ids`]: needed by a hold-out by fraction.
    pub supports_sample_ids: bool,
    /// Whether it takes [`Samples::Limit`].
    pub supports_limit: bool,
    /// Whether it gives scores by sample: needed for paired comparisons.
    pub supports_per_sample: bool,
    /// sha256 by sample, where the evaluator sees the data: shows an overlap of search and hold-out.
    pub sample_hashes: Option<Vec<String>>,
    /// A hash over all samples, where an endpoint gives one.
    pub sample_set: Option<String>,
}

/// What an evaluator can do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    /// By the evaluator's name of the task.
    pub tasks: BTreeMap<String, TaskCapability>,
    /// A candidate that is scored again (another replicate) gets the same scores.
    pub deterministic: bool,
}

/// One task as a run gives it to an evaluator.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluatorTask {
    /// The evaluator's name of the task.
    pub name: String,
    /// JSON-lines file; required by `native`, unused by the others.
    pub data: Option<PathBuf>,
    /// `None`: the task's first metric as the evaluator lists it.
    pub metric: Option<String>,
    /// Longest answer generated, in tokens.
    pub max_new_tokens: Option<usize>,
}
