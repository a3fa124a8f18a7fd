//! The driver: moves data along the line from strategy to ledger, and is the only room that knows all the others.
//!
//! [`prepare`] opens everything a run needs and checks that it fits together; [`run`] continues or starts the search;
//! [`schedule`] decides who is asked and told when; `pipeline` materializes ahead and evaluates; `holdout` opens the
//! sealed samples once, at the end.

mod alarms;
mod best;
mod budget;
mod candidate;
mod check;
mod driver;
mod error;
mod export;
mod facts;
mod fidelity;
mod frozen;
mod holdout;
mod landscape;
mod model_changes;
mod models;
mod outcomes;
mod pipeline;
mod prepare;
mod progress;
mod recorded;
mod repeats;
mod report;
mod run;
mod run_folder;
mod sample_order;
pub mod schedule;
mod scorer;
mod sealed;
mod shared_samples;
pub mod slots;
mod stop;
mod verdict_file;
mod written_out;

pub use best::{best_baseline, best_record};
pub use budget::{Budget, Pace, recorded_limits};
pub use candidate::Candidate;
pub use check::{Conflict, Findings, check};
pub use error::SearchError;
pub use export::export_record;
pub use landscape::seed_genomes;
pub use models::Models;
pub use outcomes::LatestOutcomes;
pub use prepare::{Prepared, prepare};
pub use progress::{Progress, Snapshot};
pub use recorded::{ScoreTable, recorded_scores};
pub use repeats::alarm as repeats_alarm;
pub use report::{Row, RunOptions, RunReport};
pub use run::run;
pub use run_folder::{RunFolder, SetAside};
pub use scorer::{Scorer, connect_evaluator, evaluation_id};
pub use sealed::HoldoutPlan;
pub use stop::Stop;
pub use verdict_file::{VerdictDocument, read_verdict};
