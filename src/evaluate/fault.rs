//! What can go wrong with an evaluation.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::exit::ExitCode;

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
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Candidate(_) => ExitCode::BadData,
            Self::GivenUp(_) => ExitCode::Stopped,
            Self::Configuration(_) => ExitCode::BadConfiguration,
            Self::Outage(_) | Self::Unusable(_) | Self::Cancelled => ExitCode::Stopped,
            Self::TaskData { .. } => ExitCode::BadData,
        }
    }
}
