//! What comes back from an evaluator, and what is told on the way.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Fault;
use crate::scores::Scores;

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
