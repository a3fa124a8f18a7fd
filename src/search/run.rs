//! One search from start (or wherever it was) to verdict.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::driver::Search;
use super::frozen::freeze;
use super::prepare::Prepared;
use super::progress::Progress;
use super::run_folder::RunFolder;
use super::{SearchError, Stop, export};
use crate::ledger::Ledger;
use crate::score::Verdict;
use crate::score::alarms::Alarm;
use crate::scores::Status;
use crate::strategy::SoupTrace;

/// How a run is started.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Another run's ledger whose recorded scores are taken instead of asking again.
    pub reuse: Option<PathBuf>,
}

/// One evaluation as tables show it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Row {
    /// Of the evaluation.
    pub index: u64,
    /// First 16 hex digits of the recipe's hash.
    pub candidate_id: String,
    /// Who proposed it.
    pub origin: String,
    /// How it ended.
    pub status: Status,
    /// Higher is better; `None` unless scored.
    pub objective: Option<f64>,
    /// Scores by task, of the task's metric.
    pub tasks: BTreeMap<String, f64>,
}

/// What a finished run came to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RunReport {
    /// Of the run.
    pub name: String,
    /// Where its results are.
    #[serde(serialize_with = "crate::files::serialize_path")]
    pub folder: PathBuf,
    /// Whether candidates were models on disk; landscapes have none.
    pub has_models: bool,
    /// Search evaluations that have ended.
    pub evaluations: u64,
    /// Of these, those with scores.
    pub scored: u64,
    /// Of these, those whose candidate was at fault.
    pub infeasible: u64,
    /// Of these, those that were given up.
    pub failed: u64,
    /// Why the search ended.
    pub reason: String,
    /// Seconds that the search has run, over all starts.
    pub active_s: f64,
    /// The winner, or the best by search score.
    pub best: Option<Row>,
    /// Base, sources and soups, in order of index.
    pub baselines: Vec<Row>,
    /// How the greedy soup went; `None`: there was none to make.
    pub soup: Option<SoupTrace>,
    /// The evaluation of that soup: a source's or the uniform soup's where it is the same.
    pub soup_index: Option<u64>,
    /// What makes the scores doubtful.
    pub alarms: Vec<Alarm>,
    /// `None`: no candidate was scored, and its fields are null. They stand at the top level of the document.
    #[serde(flatten, serialize_with = "crate::score::verdict::serialize_or_null")]
    pub verdict: Option<Verdict>,
}

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
