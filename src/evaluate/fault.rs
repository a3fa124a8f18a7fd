//! What can go wrong with an evaluation.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::document::FieldError;
use crate::exit::ExitCode;

/// Codes of configuration faults that the files of a model are to blame for, whatever the run file says.
const CODES_OF_MODELS: [&str; 2] = [TOKENIZER_MISSING, TOKENIZER_INVALID];
/// A model has no tokenizer.
pub(super) const TOKENIZER_MISSING: &str = "tokenizer_missing";
/// A model's tokenizer cannot be used, or names no token that ends an answer.
pub(super) const TOKENIZER_INVALID: &str = "tokenizer_invalid";

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
#[error("{code}: {}", self.told())]
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

    /// What happened and where, without the protocol's code.
    fn told(&self) -> String {
        let endpoint = self.endpoint.as_deref().map(|endpoint| format!(" (endpoint {endpoint})"));
        format!("{}{}", self.detail, endpoint.unwrap_or_default())
    }

    /// A model as it lies on disk is to blame, not the run file.
    fn is_of_model(&self) -> bool {
        CODES_OF_MODELS.contains(&self.code.as_str())
    }

    /// A fault of class configuration, for people.
    fn told_as_configuration(&self) -> String {
        if self.is_of_model() { self.told() } else { format!("evaluator configuration: {self}") }
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
    /// The run cannot go on with this configuration, or with these models.
    #[error("{}", .0.told_as_configuration())]
    Configuration(Fault),
    /// A key of the run file has a value that this evaluator cannot work with. The file and the line are for the caller
    /// to name.
    #[error("{0}")]
    Setting(FieldError),
    /// Nothing answered for longer than allowed; the run can be continued later.
    #[error("the evaluator is out of reach: {}", .0.told())]
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
    /// A key of `[evaluator]` with a value that this evaluator cannot work with.
    pub(super) fn setting(key: &str, reason: impl Into<String>) -> Self {
        Self::Setting(FieldError::new(format!("evaluator.{key}"), reason))
    }

    /// The exit code of a command that ends with this error. `Candidate` and `GivenUp` are outcomes that a search
    /// records; only a single evaluation ends with them.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Candidate(_) => ExitCode::BadData,
            Self::GivenUp(_) => ExitCode::Stopped,
            Self::Configuration(fault) if fault.is_of_model() => ExitCode::BadData,
            Self::Configuration(_) | Self::Setting(_) => ExitCode::BadConfiguration,
            Self::Outage(_) | Self::Unusable(_) | Self::Cancelled => ExitCode::Stopped,
            Self::TaskData { .. } => ExitCode::BadData,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_blamed_as_data_and_settings_as_configuration() {
        let missing = Fault::configuration(TOKENIZER_MISSING, "/models/a has no tokenizer.json");
        let error = EvaluateError::Configuration(missing);
        assert_eq!(
            (error.exit_code(), error.to_string().as_str()),
            (ExitCode::BadData, "/models/a has no tokenizer.json")
        );
        let error = EvaluateError::setting("argv", "must start with a program");
        assert_eq!(error.exit_code(), ExitCode::BadConfiguration);
        assert_eq!(error.to_string(), "`evaluator.argv`: must start with a program");
        let unknown = Fault::configuration("unknown_task", "unknown task x").at("http://h:1");
        let error = EvaluateError::Configuration(unknown);
        assert_eq!(error.exit_code(), ExitCode::BadConfiguration);
        assert_eq!(error.to_string(), "evaluator configuration: unknown_task: unknown task x (endpoint http://h:1)");
    }
}
