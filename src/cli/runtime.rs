//! What commands that evaluate run in.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::error::CliError;
use super::output::Output;
use super::progress::Screen;
use super::signals;
use crate::search::Stop;

/// Threads for what blocks. Each program of a `command` evaluator holds one as long as it runs, at most 256 at once
/// (`config::evaluator`); merges and whatever waits for disks need some beside them, or nothing would move.
const BLOCKING_THREADS: usize = 512;

/// Where the evaluator of a command that leaves no results may write; removed when dropped.
pub(super) fn scratch_folder() -> Result<tempfile::TempDir, CliError> {
    tempfile::Builder::new()
        .prefix(crate::files::SCRATCH)
        .tempdir()
        .map_err(|source| CliError::Write { path: std::env::temp_dir(), source })
}

/// Runs `work` with a screen, and with signals as wishes to stop.
pub(super) fn run_to_end<T>(
    output: Output,
    work: impl AsyncFnOnce(Arc<Screen>, Stop) -> Result<T, CliError>,
) -> Result<T, CliError> {
    // Said outright, since tokio would ask TOKIO_WORKER_THREADS and panic where that is no number of threads.
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).max_blocking_threads(BLOCKING_THREADS).enable_all();
    let runtime = builder.build().map_err(CliError::Runtime)?;
    let screen = Arc::new(Screen::new(output));
    let result = runtime.block_on(async {
        let stop = Stop::default();
        signals::watch(stop.clone())?;
        work(screen.clone(), stop).await
    });
    screen.finish();
    // Blocking work that was cancelled ends by itself; nobody waits for it.
    runtime.shutdown_background();
    result
}
