//! What can end a search before it is done.

use std::path::PathBuf;

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
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Space(#[from] SpaceError),
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    #[error(transparent)]
    Strategy(#[from] StrategyError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Settings that are fine by themselves but not together.
    #[error("{0}")]
    Settings(String),
    #[error("{0}")]
    BadData(String),
    #[error(
        "run {name} was started with other settings:\n{}\n\
         continue it with the old ones, or start anew with --fresh (the old run moves to {name}.1)",
        differences.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    )]
    Changed { name: String, differences: Vec<String> },
    #[error(
        "run {name} does not replay: evaluation {index} was recorded as candidate {recorded}, but the same history now \
         proposes {proposed}; this is a bug or the work of another evomerge version: please report it, and start anew with --fresh"
    )]
    Replay { name: String, index: u64, recorded: String, proposed: String },
    #[error("run {name} is in use by another process{owner}; `evomerge status` shows where it stands")]
    InUse { name: String, owner: String },
    #[error("candidate folder {path}: {source}")]
    CandidateFolder { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("stopped by a signal; the same command continues the run")]
    Stopped,
    #[error(
        "{failed} of {finished} evaluations were given up after all their attempts: something is wrong with the evaluator; \
         the last one: {last}; the same command {}",
        if failed == finished { "asks for everything again, since nothing else came of it yet" } else { "continues the run" }
    )]
    TooManyFailures { failed: u64, finished: u64, last: String },
    #[error(
        "none of the {baselines} baselines (base, sources, uniform soup) can be scored, and they are models that exist; the \
         first one: {reason}. If the evaluator does not find them, set candidates.dir to a folder that it sees under the same \
         path; else look at how it runs them (its dtype, its prompts), and at the models themselves. Then start anew with --fresh"
    )]
    BaselinesInfeasible { baselines: u64, reason: String },
    #[error("a worker of evomerge broke off: {0}")]
    Worker(String),
}

impl SearchError {
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
            Self::Settings(_) | Self::Changed { .. } | Self::BaselinesInfeasible { .. } => ExitCode::BadConfiguration,
            Self::BadData(_) => ExitCode::BadData,
            Self::CandidateFolder { .. } | Self::Write { .. } => ExitCode::NotWritable,
            Self::InUse { .. } | Self::Stopped | Self::TooManyFailures { .. } => ExitCode::Stopped,
            Self::Replay { .. } | Self::Worker(_) => ExitCode::Internal,
        }
    }
}
