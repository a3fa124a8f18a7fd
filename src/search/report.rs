//! How a run is started, and what a finished one came to.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::best::Ranked;
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
    /// The evaluation's number in the run, from 0.
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

impl Row {
    /// The evaluation as it is ranked among others; `None`: it has no score.
    pub(super) fn ranked(&self) -> Option<Ranked> {
        Some(Ranked { objective: self.objective?, index: self.index })
    }
}

/// What a finished run came to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RunReport {
    /// The run's name.
    pub name: String,
    /// Where its results are.
    #[serde(serialize_with = "crate::files::serialize_path")]
    pub folder: PathBuf,
    /// Whether candidates were models on disk; landscapes have none.
    pub has_models: bool,
    /// Search evaluations that have ended.
    pub evaluations: u64,
    /// Search evaluations that ended with scores.
    pub scored: u64,
    /// Search evaluations that ended without scores because the candidate was at fault.
    pub infeasible: u64,
    /// Search evaluations that were given up.
    pub failed: u64,
    /// Why the search ended.
    pub reason: String,
    /// Seconds that the search has run, over all starts, as the ledger keeps them. The verdict is not in it.
    pub active_s: f64,
    /// The winner, or the best by search score.
    pub best: Option<Row>,
    /// Base, sources and soups, in order of index.
    pub baselines: Vec<Row>,
    /// How the greedy soup went; `None`: there was none to make.
    pub soup: Option<SoupTrace>,
    /// The names of the sources that the greedy soup is made of, in order of joining; one may be there several times.
    pub soup_sources: Vec<String>,
    /// The evaluation of the greedy soup: that of a source or of the uniform soup where it is the same.
    pub soup_index: Option<u64>,
    /// What makes the scores doubtful.
    pub alarms: Vec<Alarm>,
    /// What the hold-out said; `None`: no candidate was scored, and the fields of the verdict are null. They stand at
    /// the top level of the document.
    #[serde(flatten, serialize_with = "crate::score::verdict::serialize_or_null")]
    pub verdict: Option<Verdict>,
}
