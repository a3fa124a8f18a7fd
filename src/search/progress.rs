//! What a search tells a person while it runs.

use std::time::Duration;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Search evaluations that have ended, over all starts.
    pub finished: u64,
    /// Evaluations of the budget, where it has that limit.
    pub total: Option<u64>,
    /// Candidates that are with the evaluator now.
    pub in_flight: usize,
    /// Search evaluations that ended without scores because their candidate was at fault.
    pub infeasible: u64,
    /// Search evaluations that were given up.
    pub failed: u64,
    /// Objective of the best candidate so far, with its id.
    pub best: Option<(f64, String)>,
    /// Objective of the best baseline so far, with its origin.
    pub best_baseline: Option<(f64, String)>,
    /// Active time, summed over restarts.
    pub active: Duration,
    /// Time left by the pace so far until the budget's first limit; `None`: nobody can say.
    pub remaining: Option<Duration>,
}

/// Receives what happens, from any thread; must not block for long.
pub trait Progress: Send + Sync {
    /// A line worth a person's attention (a notice, a new best, a retry).
    fn line(&self, text: &str);
    /// A line for those who want to see everything; nobody does unless they say so.
    fn detail(&self, _text: &str) {}
    /// The state changed.
    fn update(&self, snapshot: &Snapshot);
}
