//! What can end a search before it is done.

use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::evaluate::EvaluateError;
use crate::exit::ExitCode;
use crate::ledger::LedgerError;
use crate::merge::MergeError;
use crate::recipe::RecipeError;
use crate::space::SpaceError;
use crate::strategy::StrategyError;

/// Why a search (or a part of it) could not be done.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The run file cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A model cannot be opened, or the models do not fit together.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A recipe, of a candidate or of the ledger, cannot be read or hashed.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The space cannot be laid out over these models.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// A merge failed for another reason than the candidate itself, which would only be infeasible.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The evaluator is out of reach, gives no scores or is badly set up, or its task data cannot be read.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// Settings that the strategy does not have, or a broken contract of ask and tell.
    #[error(transparent)]
    Strategy(#[from] StrategyError),
    /// The record of the run cannot be read or written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Settings that are fine by themselves but not together.
    #[error("{0}")]
    Settings(String),
    /// A model, hold-out or ledger with something wrong in it; the text says what, and what may help.
    #[error("{0}")]
    BadData(String),
    /// What must stay as it was at the first start is different now.
    #[error(
        "run {name} was started with other settings:\n{}\n\
         continue it with the old ones, or start anew with --fresh (the old run moves to {name}.1)",
        differences.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    )]
    Changed {
        /// The run, as its run file names it.
        name: String,
        /// One line each, such as `space.genes.weight.high: 1.5 -> 2.0`.
        differences: Vec<String>,
    },
    /// The recorded history leads to another proposal now.
    #[error(
        "run {name} does not replay: evaluation {index} was recorded with the {what} {recorded}, but the same history now \
         proposes {proposed}; this is a bug or the work of another evomerge version: please report it, and start anew with --fresh"
    )]
    Replay {
        /// The run, as its run file names it.
        name: String,
        /// The first evaluation that differs.
        index: u64,
        /// What differs: `candidate`, `evaluation id` or `index`.
        what: &'static str,
        /// That of the ledger.
        recorded: String,
        /// That of the proposal now; `nothing` where there is none.
        proposed: String,
    },
    /// Another process searches in the run's folder.
    #[error("run {name} is in use by another process{owner}; `evomerge status` shows where it stands")]
    InUse {
        /// The run, as its run file names it.
        name: String,
        /// ` (process 123)`, or empty where nobody left a number.
        owner: String,
    },
    /// A run made room for a new one, which came to nothing, and could not be moved back.
    #[error("{reason}; the old run is in {}", old.display())]
    LeftAside {
        /// Why the new run came to nothing.
        reason: Box<SearchError>,
        /// Where the old one is.
        old: PathBuf,
    },
    /// A copy of the run's folder is searched by another process.
    #[error(
        "{} is in use: another process searches a copy of this run; wait until it ends, or start anew with --fresh", folder.display()
    )]
    CopyInUse {
        /// The run's folder for candidates.
        folder: PathBuf,
    },
    /// The folder for candidates cannot be made or locked: `candidates.dir` chooses another one.
    #[error("candidate folder {path}: {source}")]
    CandidateFolder {
        /// The folder, or its parent.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A candidate vanished while it was to be scored.
    #[error(
        "the candidate in {} was removed while it was to be scored: something cleans up there; the same command makes it again, and \
         `[candidates] dir` chooses another place", folder.display()
    )]
    CandidateGone {
        /// Where it was.
        folder: PathBuf,
    },
    /// Something of the run's results cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The run's folder is not where it was.
    #[error(
        "{} was moved, removed or replaced while the search ran: put it back, and the same command continues the run as far as it \
         is recorded", folder.display()
    )]
    Moved {
        /// Where it was.
        folder: PathBuf,
    },
    /// Somebody asked for the end (Ctrl-C, SIGTERM). What had ended is recorded.
    #[error("stopped by a signal; the same command continues the run")]
    Stopped,
    /// More than five evaluations since the start, and more than a fifth of those, were given up: mend the evaluator first.
    #[error(
        "{failed} of {finished} evaluations since this start were given up after all their attempts: something is wrong with the \
         evaluator; the last one: {last}; the same command {}",
        if *keeps_nothing { "asks for everything again, since nothing else came of it yet" } else { "continues the run" }
    )]
    TooManyFailures {
        /// Evaluations given up since the start.
        failed: u64,
        /// Evaluations that have ended since then, those included.
        finished: u64,
        /// Why the last one was given up.
        last: String,
        /// Whether no evaluation of the run, of earlier starts too, has ended otherwise.
        keeps_nothing: bool,
    },
    /// The evaluator calls candidates broken, and a baseline too that it has scored before.
    #[error(
        "the evaluator has called {in_a_row} candidates in a row broken, and {witness}, which it had scored, cannot be scored \
         any more either: something is wrong with the evaluator, not with them; the last reason: {reason}. Mend it, and the same command continues the run. \
         These candidates keep the worst fitness; --fresh starts anew"
    )]
    BlamesEverything {
        /// Candidates that it called broken since one was scored.
        in_a_row: u32,
        /// The baseline's origin.
        witness: String,
        /// Why the baseline could not be scored.
        reason: String,
    },
    /// Base, sources and uniform soup are all infeasible: more likely, the evaluator cannot see them.
    #[error(
        "none of the {baselines} baselines (base, sources, uniform soup) can be scored, and they are models that exist; the \
         first one: {reason}. If the evaluator does not find them, set candidates.dir to a folder that it sees under the same \
         path; else look at how it runs them (its dtype, its prompts), and at the models themselves. Then start anew with --fresh"
    )]
    BaselinesInfeasible {
        /// How many these are.
        baselines: u64,
        /// What the first one failed with.
        reason: String,
    },
    /// A thread of the program broke off, or found what cannot be: a bug.
    #[error("a worker of evomerge broke off: {0}")]
    Worker(String),
}

impl SearchError {
    /// With where the run is that had made room.
    pub(super) fn left_aside(self, old: &Path) -> Self {
        Self::LeftAside { reason: Box::new(self), old: old.to_path_buf() }
    }

    /// What the process tells its caller.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(error) => error.exit_code(),
            Self::Checkpoint(error) => error.exit_code(),
            Self::Recipe(error) => error.exit_code(),
            Self::Space(error) => error.exit_code(),
            Self::Merge(error) => error.exit_code(),
            Self::Evaluate(error) => error.exit_code(),
            Self::Strategy(error) => error.exit_code(),
            Self::Ledger(error) => error.exit_code(),
            Self::LeftAside { reason, .. } => reason.exit_code(),
            Self::Settings(_) | Self::Changed { .. } | Self::BaselinesInfeasible { .. } => ExitCode::BadConfiguration,
            Self::BadData(_) => ExitCode::BadData,
            Self::CandidateFolder { .. } | Self::Moved { .. } | Self::Write { .. } => ExitCode::NotWritable,
            Self::InUse { .. }
            | Self::CopyInUse { .. }
            | Self::Stopped
            | Self::TooManyFailures { .. }
            | Self::BlamesEverything { .. }
            | Self::CandidateGone { .. } => ExitCode::Stopped,
            Self::Replay { .. } | Self::Worker(_) => ExitCode::Internal,
        }
    }
}
