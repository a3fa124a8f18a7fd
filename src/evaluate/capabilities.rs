//! What an evaluator can do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::scores::SampleId;

/// What an evaluator can do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    /// By the evaluator's name of the task.
    pub tasks: BTreeMap<String, TaskCapability>,
    /// A candidate that is scored again (another replicate) gets the same scores.
    pub deterministic: bool,
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
    /// Whether it takes [`super::Samples::Ids`]: needed by a hold-out by fraction.
    pub supports_sample_ids: bool,
    /// Whether it takes [`super::Samples::Limit`].
    pub supports_limit: bool,
    /// Whether it gives scores by sample: needed for paired comparisons.
    pub supports_per_sample: bool,
    /// sha256 by sample, where the evaluator sees the data: shows an overlap of search and hold-out.
    pub sample_hashes: Option<Vec<String>>,
    /// A hash over all samples, where an endpoint gives one.
    pub sample_set: Option<String>,
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
