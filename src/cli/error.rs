//! The one error type of the edge.

use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::evaluate::EvaluateError;
use crate::exit::ExitCode;
use crate::ledger::LedgerError;
use crate::merge::MergeError;
use crate::recipe::RecipeError;
use crate::score::simulate::SimulateError;
use crate::search::SearchError;

/// What a command can fail with.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Search(#[from] SearchError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Simulate(#[from] SimulateError),
    /// What only shows when everything is put together.
    #[error("{}: {error}", path.display())]
    RunFile { path: PathBuf, error: Box<SearchError> },
    #[error("{path}: {reason}")]
    Data { path: PathBuf, reason: String },
    /// By a signal, where no run is left to be continued.
    #[error("stopped by a signal; nothing was kept")]
    Interrupted,
    #[error("{0}")]
    Usage(String),
    #[error("{path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    /// A field that JSON cannot hold: a bug.
    #[error("cannot put the result in a JSON document: {0}")]
    Document(serde_json::Error),
    #[error("cannot start the asynchronous runtime: {0}")]
    Runtime(std::io::Error),
}

impl CliError {
    /// An error of a run; names the run file where that is to blame.
    pub(super) fn of_run(error: SearchError, run_file: &Path) -> Self {
        match error {
            SearchError::Settings(_)
            | SearchError::Space(_)
            | SearchError::Strategy(_)
            | SearchError::Evaluate(EvaluateError::Setting(_)) => {
                Self::RunFile { path: run_file.to_owned(), error: Box::new(error) }
            }
            other => Self::Search(other),
        }
    }

    /// An error of a command that looks at a run file without a run.
    pub(super) fn without_run(self) -> Self {
        match self {
            Self::Search(SearchError::Stopped | SearchError::Evaluate(EvaluateError::Cancelled))
            | Self::Evaluate(EvaluateError::Cancelled) => Self::Interrupted,
            other => other,
        }
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Search(error) => error.exit_code(),
            Self::RunFile { error, .. } => error.exit_code(),
            Self::Config(error) => error.exit_code(),
            Self::Recipe(error) => error.exit_code(),
            Self::Checkpoint(error) => error.exit_code(),
            Self::Merge(error) => error.exit_code(),
            Self::Evaluate(error) => error.exit_code(),
            Self::Ledger(error) => error.exit_code(),
            Self::Simulate(error) => error.exit_code(),
            Self::Data { .. } => ExitCode::BadData,
            Self::Interrupted => ExitCode::Stopped,
            Self::Usage(_) => ExitCode::Usage,
            Self::Write { .. } => ExitCode::NotWritable,
            Self::Runtime(_) | Self::Document(_) => ExitCode::Internal,
        }
    }
}
