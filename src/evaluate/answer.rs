//! What comes back from an evaluator, and what is told on the way.

use serde::{Deserialize, Serialize};

use super::Fault;
use super::text::shortened;
use crate::scores::Scores;

/// Warnings kept of an answer.
const MOST_WARNINGS: usize = 20;

/// A checked answer: every task and metric asked for is present, ids and n agree, all numbers are finite.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Scores of every task asked for, by the name in the request.
    pub tasks: Scores,
    /// The evaluator's remarks about an answer that counts all the same, to be shown to people: the first 20, each on
    /// one line of at most 400 characters (and dots where it was longer), without control characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Evaluation {
    /// These scores, with as much of the evaluator's remarks as can be shown.
    pub(super) fn new(tasks: Scores, warnings: impl IntoIterator<Item = String>) -> Self {
        let warnings = warnings.into_iter().take(MOST_WARNINGS).map(|warning| shortened(&warning)).collect();
        Self { tasks, warnings }
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
