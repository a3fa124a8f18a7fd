//! One search from start (or wherever it was) to verdict.

use std::path::Path;
use std::sync::Arc;

use super::driver::Search;
use super::frozen::freeze;
use super::prepare::Prepared;
use super::progress::Progress;
use super::report::{RunOptions, RunReport};
use super::run_folder::{RunFolder, SetAside, put_back};
use super::{SearchError, Stop, export};
use crate::ledger::Ledger;
use crate::plural::counted;
use crate::scores::Status;

/// Runs or continues the search in a folder until the budget is spent, the strategy is done, or someone wants it to
/// stop. A run that made room for this one gets its place back where this one cannot start.
///
/// # Errors
/// What ended the run before its budget did; all that was finished until then is recorded.
pub async fn run(
    prepared: Arc<Prepared>,
    folder: SetAside,
    options: RunOptions,
    progress: Arc<dyn Progress>,
    stop: Stop,
) -> Result<RunReport, SearchError> {
    let SetAside { folder, old } = folder;
    let home = folder.path().to_path_buf();
    let started = start(prepared, folder, &options, &progress, stop);
    // By now, nothing holds the folder of a run that did not start.
    let (mut search, ledger) = started.map_err(|error| match &old {
        Some(old) => after_refusal(error, old, &home, progress.as_ref()),
        None => error,
    })?;
    let source = options.reuse.as_deref().and_then(Path::parent);
    let taken_before = source.map_or(0, |_| count_taken_over(&ledger));
    let outcome = go_on(&mut search).await;
    if let Some(source) = source {
        let taken = count_taken_over(&ledger).saturating_sub(taken_before);
        if taken > 0 {
            progress.line(&format!("{} taken from {}", counted(taken, "score"), source.display()));
        }
    }
    search.leave(outcome).await
}

/// All that may refuse a start, with the start's record as its last step.
fn start(
    prepared: Arc<Prepared>,
    folder: RunFolder,
    options: &RunOptions,
    progress: &Arc<dyn Progress>,
    stop: Stop,
) -> Result<(Search, Arc<Ledger>), SearchError> {
    folder.refuse_without_ledger()?;
    let ledger = Arc::new(Ledger::open(&folder.ledger())?);
    let (frozen, fresh) = freeze(&ledger, &prepared)?;
    // A first start may have been killed before it wrote the file.
    if fresh || !folder.run_file().exists() {
        export::write_run_file(&folder, &prepared.config, &prepared.models)?;
    }
    let mut search = Search::new(prepared, folder, ledger.clone(), frozen, progress.clone(), stop)?;
    search.load_reusable(options)?;
    search.record_start(fresh)?;
    Ok((search, ledger))
}

/// Puts the run in `old` back where a start was refused; where that cannot be done, the error says where the run is.
fn after_refusal(error: SearchError, old: &Path, home: &Path, progress: &dyn Progress) -> SearchError {
    match put_back(old, home) {
        Ok(()) => {
            progress.line(&format!("the new run could not start: the old one is back in {}", home.display()));
            error
        }
        Err(why) => {
            progress.line(&format!("the old run could not be put back: {why}"));
            error.left_aside(old)
        }
    }
}

/// From the recorded history to the end of the search; says why it ended.
async fn go_on(search: &mut Search) -> Result<String, SearchError> {
    search.replay()?;
    search.note_race_basis()?;
    search.drive().await
}

/// Scores that another run paid for. They are only told of: what cannot be read is no reason to stop here.
fn count_taken_over(ledger: &Ledger) -> u64 {
    let told = ledger.all_told_in_short().unwrap_or_default();
    told.values().filter(|record| record.status == Status::Scored && record.attempts == 0).count() as u64
}
