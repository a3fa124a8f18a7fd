//! From metrics to decisions: objectives, paired statistics, the verdict. Pure: no clock, no network, no files.
//!
//! One direction everywhere: higher is better. A task that is minimised enters with its sign turned, so differences,
//! intervals and objective values of this room can be read without knowing the metrics.

pub mod alarms;
mod decide;
mod distributions;
pub(crate) mod mean_samples;
pub mod objective;
mod order;
pub mod paired;
pub mod power;
pub mod repeats;
mod resample;
pub mod samples;
mod sentence;
pub mod simulate;
pub mod verdict;

pub use decide::decide;
pub use objective::{Objective, ObjectiveTask, TaskValue};
pub use order::best_first;
pub use paired::{Comparison, Pairing, compare, may_be_as_good};
pub use sentence::{digits, sentence, shown};
pub use verdict::{Contender, Decision, OpenedHoldout, RivalVerdict, Verdict, VerdictQuestion};

use crate::exit::ExitCode;

/// Scores that cannot be compared or summed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScoreError {
    /// A task or metric of the objective is absent from a candidate's scores, or is not a finite number.
    #[error(
        "{who} has no finite value of metric `{metric}` for task `{task}`; every task of the objective must be scored"
    )]
    Missing {
        /// Which of the two compared: `the first candidate` or `the second candidate`.
        who: &'static str,
        /// The task of the objective.
        task: String,
        /// The task's metric.
        metric: String,
    },
    /// There is no task with a weight other than zero.
    #[error("the objective has no task with a weight other than zero")]
    NoWeight,
    /// Nothing to decide between.
    #[error("a verdict needs at least one finalist that was scored in the search")]
    NoFinalist,
}

impl ScoreError {
    /// What the process exits with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Missing { .. } => ExitCode::BadData,
            Self::NoWeight => ExitCode::BadConfiguration,
            Self::NoFinalist => ExitCode::Internal,
        }
    }
}
