//! What goes to an evaluator, independent of the way it travels.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::scores::SampleId;

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

impl EvaluatorTask {
    /// The metric of the task, for evaluators that take any and list none.
    pub(super) fn metric_or_default(&self) -> &str {
        self.metric.as_deref().unwrap_or("score")
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
