//! What commands that evaluate run in.

use super::error::CliError;

/// Where the evaluator of a command that leaves no results may write; removed when dropped.
pub(super) fn scratch_folder() -> Result<tempfile::TempDir, CliError> {
    tempfile::Builder::new()
        .prefix("evomerge-scratch-")
        .tempdir()
        .map_err(|source| CliError::Write { path: std::env::temp_dir(), source })
}

/// A runtime for commands that evaluate.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::Runtime)
}
