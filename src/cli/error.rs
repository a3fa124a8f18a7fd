//! The one error type of the edge.

use std::path::PathBuf;

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
    #[error("{path}: {reason}")]
    Data { path: PathBuf, reason: String },
    #[error("{0}")]
    Usage(String),
    #[error("{path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot start the asynchronous runtime: {0}")]
    Runtime(std::io::Error),
}

impl CliError {
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Search(error) => error.exit_code(),
            Self::Config(error) => error.exit_code(),
            Self::Recipe(error) => error.exit_code(),
            Self::Checkpoint(error) => error.exit_code(),
            Self::Merge(error) => error.exit_code(),
            Self::Evaluate(error) => error.exit_code(),
            Self::Ledger(error) => error.exit_code(),
            Self::Simulate(error) => error.exit_code(),
            Self::Data { .. } => ExitCode::BadData,
            Self::Usage(_) => ExitCode::Usage,
            Self::Write { .. } => ExitCode::NotWritable,
            Self::Runtime(_) => ExitCode::Internal,
        }
    }
}
