//! One search from start (or wherever it was) to verdict.

use std::sync::Arc;

use super::driver::Search;
use super::frozen::freeze;
use super::prepare::Prepared;
use super::progress::Progress;
use super::report::{RunOptions, RunReport};
use super::run_folder::RunFolder;
use super::{SearchError, Stop, export};
use crate::ledger::Ledger;

/// Runs or continues the search in `folder` until the budget is spent, the strategy is done, or someone wants it to
/// stop.
///
/// # Errors
/// What ended the run before its budget did; all that was finished until then is recorded.
pub async fn run(
    prepared: Arc<Prepared>,
    folder: RunFolder,
    options: RunOptions,
    progress: Arc<dyn Progress>,
    stop: Stop,
) -> Result<RunReport, SearchError> {
    folder.refuse_without_ledger()?;
    let ledger = Arc::new(Ledger::open(&folder.ledger())?);
    let (frozen, fresh) = freeze(&ledger, &prepared)?;
    // A first start may have been killed before it wrote the file.
    if fresh || !folder.run_file().exists() {
        export::write_run_file(&folder, &prepared.config, &prepared.models)?;
    }
    let mut search = Search::new(prepared, folder, ledger, frozen, progress, stop)?;
    search.load_reusable(&options)?;
    search.record_start(fresh)?;
    search.replay()?;
    search.note_race_basis()?;
    let outcome = search.drive().await;
    search.leave(outcome).await
}
