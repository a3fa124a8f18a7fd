//! Signals: the first asks for a stop in good order, the second for one at once.

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::error::CliError;
use crate::search::Stop;

/// How long evaluations under way may take after the first signal.
const GRACE: Duration = Duration::from_secs(30);

/// Turns SIGINT and SIGTERM into wishes of `stop`; SIGHUP (a lost terminal) does not end a night's run.
pub(super) fn watch(stop: Stop) -> Result<(), CliError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Runtime)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(CliError::Runtime)?;
    tokio::spawn(async move { while hang_up.recv().await.is_some() {} });
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.soon.cancel();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = tokio::time::sleep(GRACE) => {}
        }
        stop.now.cancel();
    });
    Ok(())
}

/// Where the evaluator of a command that leaves no results may write.
pub(super) fn scratch_folder() -> PathBuf {
    std::env::temp_dir().join(format!("evomerge-scratch-{}", std::process::id()))
}

/// A runtime for commands that evaluate.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::Runtime)
}
