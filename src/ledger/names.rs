//! The words of a ledger: keys of facts, kinds of events. What they mean is the search's business.

/// Keys of facts.
pub mod fact {
    /// What may not change between two starts, as JSON.
    pub const IDENTITY: &str = "identity";
    /// What tells the run's candidate folders and requests from those of others.
    pub const RUN_ID: &str = "run_id";
    /// Name of the run, for people.
    pub const RUN_NAME: &str = "run_name";
    /// Evaluations open at a time.
    pub const LOOK_AHEAD: &str = "look_ahead";
    /// The first start's budget of evaluations; empty: none.
    pub const PLANNED_EVALUATIONS: &str = "planned_evaluations";
    /// Names of tasks in the order of the run file, as JSON.
    pub const TASKS: &str = "tasks";
    /// Names of genes in the order of the search space, as JSON.
    pub const GENES: &str = "genes";
    /// How candidates race, as JSON.
    pub const RACING: &str = "racing";
    /// What the race found of the evaluator at the first start, by task, as JSON; `null`: there is no race.
    pub const RACE_BASIS: &str = "race_basis";
    /// Tasks, metrics and signed weights, as JSON.
    pub const OBJECTIVE: &str = "objective";
    /// Samples of each task as the evaluator told at the first start, as JSON.
    pub const SAMPLES: &str = "samples";
    /// Whether the evaluator called itself deterministic at every start: `true` or `false`.
    pub const DETERMINISTIC: &str = "deterministic";
    /// Version of the program that began the run.
    pub const EVOMERGE_VERSION: &str = "evomerge_version";
    /// Seconds that searches have run, over all starts.
    pub const ACTIVE_SECONDS: &str = "active_seconds";
    /// Which endpoints cannot be asked at the moment, and whether these are all, as JSON.
    pub const WAITING: &str = "waiting";
    /// The folder that the latest start's folder of candidates lies in.
    pub const CANDIDATE_FOLDER: &str = "candidate_folder";
    /// The best finalist, as JSON.
    pub const WINNER: &str = "winner";
    /// How many evaluations there were when the hold-out was opened first.
    pub const HOLDOUT_OPENED_AT: &str = "holdout_opened_at";
}

/// Kinds of events.
pub mod event {
    /// A process took up the run.
    pub const STARTED: &str = "started";
    /// A process left the run in good order.
    pub const STOPPED: &str = "stopped";
    /// A search is over, and what comes before its verdict goes on.
    pub const PHASE: &str = "phase";
    /// A candidate was merged.
    pub const MATERIALIZED: &str = "materialized";
    /// An attempt at an evaluation of the search ended.
    pub const ATTEMPTED: &str = "attempted";
    /// An attempt at a scoring on the hold-out ended.
    pub const HOLDOUT_ATTEMPTED: &str = "holdout_attempted";
    /// An attempt at scoring a candidate again ended.
    pub const REPEAT_ATTEMPTED: &str = "repeat_attempted";
}
