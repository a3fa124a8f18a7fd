//! The driver: moves data along the line from strategy to ledger, and is the only room that knows all the others.
//!
//! [`prepare`] opens everything a run needs and checks that it fits together; [`run`] continues or starts the search;
//! [`schedule`] decides who is asked and told when; `pipeline` materializes ahead and evaluates; `holdout` opens the
//! sealed samples once, at the end.

mod alarms;
mod budget;
mod candidate;
mod check;
mod driver;
mod error;
mod export;
mod fidelity;
mod frozen;
mod holdout;
mod landscape;
mod model_changes;
mod models;
mod pipeline;
mod prepare;
mod progress;
mod recorded;
mod repeats;
mod run;
mod run_folder;
pub mod schedule;
mod scorer;
mod sealed;
mod shared_samples;
pub mod slots;
mod stop;

pub use budget::{Budget, Pace, recorded_limits};
pub use candidate::{Candidate, is_baseline};
pub use check::{Conflict, Findings, check};
pub use error::SearchError;
pub use export::{best_record, export_record};
pub use landscape::seed_genomes;
pub use models::Models;
pub use prepare::{Prepared, prepare};
pub use progress::{Progress, Snapshot};
pub use recorded::{ScoreTable, recorded_scores};
pub use repeats::{Standings, alarm as repeats_alarm};
pub use run::{Row, RunOptions, RunReport, run};
pub use run_folder::{RunFolder, SetAside};
pub use scorer::{Scorer, connect_evaluator, evaluation_id};
pub use sealed::HoldoutPlan;
pub use stop::Stop;
