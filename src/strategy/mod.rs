//! Strategies: propose candidates, learn from outcomes. Pure: no clock, no network, no files.
//!
//! [`build`] makes a strategy from the run file: the baselines first (`baselines`), then the kind that was asked for,
//! all behind the checks of the contract (`contract`). docs/strategies.md describes the kinds and their settings.

mod archive;
mod baselines;
mod build;
mod cma_es;
mod composite;
pub mod conformance;
mod contract;
mod extrapolate;
mod genetic;
mod history;
mod linear_algebra;
mod local;
mod normal;
mod nsga2;
pub mod origin;
mod pareto;
mod portfolio;
mod racing;
mod random;
mod settings;
mod soup;
mod space_filling;
mod surrogate;
mod tpe;

use serde::{Deserialize, Serialize};

pub use baselines::baseline_contents;
pub use build::{
    SOUP_SETTINGS, SeedGenome, Setup, are_same_settings, build, build_raced, check_settings, greedy_soup_evaluations,
    tries_model_stock,
};
pub use origin::PROMOTION;
pub use racing::{ONE_REFERENCE_IN, Race};
pub use soup::{SoupRemoval, SoupStep, SoupTrace};

use crate::config::StrategyKind;
use crate::exit::ExitCode;
use crate::scores::{Scores, Status};
use crate::space::{Gene, Genome};

/// Draws for one proposal after which a space counts as exhausted, if all of them were known points.
const MAX_DRAWS: usize = 1_000;

/// What a proposal stands for. Ledgers have it as JSON: `"base"`, `{"soup": [0, 2]}`, `{"genome": [0.5, ...]}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// The base model as it is.
    Base,
    /// The uniform average of these sources (indices into the run's sources, ascending; one that stands there
    /// twice weighs twice); one source alone: the source.
    Soup(Vec<usize>),
    /// A point of the search space.
    Genome(Genome),
}

/// A candidate that a strategy wants evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// What is to be merged.
    pub content: Content,
    /// What it comes from: one of [`origin`], or the operator (`random`, `sbx`, `group_exchange`, ...). docs/results.md
    /// has all.
    pub origin: String,
    /// Indices of the evaluations that it was bred from.
    pub parents: Vec<u64>,
    /// Of children of the genetic algorithm and NSGA-II, one more than their parents'; of CMA-ES, updates of its
    /// distribution; of others 0.
    pub generation: u32,
    /// Share of the samples, in `(0, 1]`.
    pub fidelity: f64,
}

impl Proposal {
    /// A candidate without parents, to be scored on all samples.
    pub fn new(content: Content, origin: &str) -> Self {
        Self { content, origin: origin.to_owned(), parents: Vec::new(), generation: 0, fidelity: 1.0 }
    }
}

/// A strategy's answer to [`Strategy::ask`].
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// A candidate to be evaluated.
    Proposal(Box<Proposal>),
    /// Nothing to propose before every outcome up to and including this index has been told.
    Wait {
        /// An evaluation that was asked for and not told yet.
        until: u64,
    },
    /// Nothing more to propose, with the reason for people.
    Done(String),
}

impl Ask {
    /// The end of a search that found no new point of its space in [`MAX_DRAWS`] draws.
    fn exhausted() -> Self {
        Self::Done("search space exhausted".to_owned())
    }
}

/// What became of a proposal, told at once after [`Strategy::ask`] returned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It will be evaluated under this index; its outcome follows.
    Asked {
        /// Its number in the run, from 0.
        index: u64,
    },
    /// The evaluation of this earlier index stands for it, and no outcome of its own follows. That is the first
    /// evaluation of the same candidate, at whatever fidelity; for a promotion, one of the candidate on the same
    /// samples.
    Duplicate {
        /// An index that was given before.
        of: u64,
    },
}

/// A finished evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The index that [`Placement::Asked`] gave the proposal.
    pub index: u64,
    /// How it ended.
    pub status: Status,
    /// Higher is better; `None` unless scored. Computed from `tasks` by the objective of the run.
    pub objective: Option<f64>,
    /// Scores by task; empty unless scored.
    pub tasks: Scores,
    /// Share of the samples that the scores rest on, in `(0, 1]`.
    pub fidelity: f64,
}

/// What a strategy may know of the search space.
pub trait Landscape: Send + Sync {
    /// The genes, in genome order.
    fn genes(&self) -> &[Gene];

    /// Which genes have an effect, given the values of the others; one flag a gene.
    fn active(&self, genome: &Genome) -> Vec<bool>;

    /// The point of the space that stands for a baseline, where it is not among [`Setup::seeds`] (soups found on the
    /// way).
    fn encode(&self, _content: &Content) -> Option<SeedGenome> {
        None
    }
}

/// A search algorithm behind ask and tell.
///
/// Contract: the same seed and the same sequence of calls give the same proposals. After [`Ask::Proposal`] the caller
/// calls [`Self::place`] before anything else. Outcomes are told in ascending order of index, each once, and may come
/// any number of proposals late: a strategy proposes on what it knows, or answers [`Ask::Wait`].
pub trait Strategy: Send {
    /// The next proposal.
    ///
    /// # Errors
    /// [`StrategyError::NotPlaced`] where [`Self::place`] was due.
    fn ask(&mut self) -> Result<Ask, StrategyError>;

    /// What became of the proposal that [`Self::ask`] returned last.
    fn place(&mut self, placement: Placement);

    /// The outcome of one of the strategy's own proposals.
    ///
    /// # Errors
    /// [`StrategyError`] for outcomes that were never asked for, out of order, or scored without a finite number.
    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError>;

    /// The outcome of a baseline, or of a proposal that was watched: another strategy's, known for free.
    ///
    /// # Errors
    /// [`StrategyError::NotFinite`].
    fn learn(&mut self, _content: &Content, _outcome: &Outcome) -> Result<(), StrategyError> {
        Ok(())
    }

    /// Another strategy's proposal, placed; its outcome follows by [`Self::learn`].
    fn watch(&mut self, _genome: &Genome, _placement: Placement) {}

    /// Takes what has been told for all there will be: nobody asks again, and what waited for more is over.
    ///
    /// # Errors
    /// As [`Self::tell`].
    fn settle(&mut self) -> Result<(), StrategyError> {
        Ok(())
    }

    /// The share that the candidates dominate of the box between the worst and the best value seen of each objective;
    /// `None`: the search has one objective, or nothing is scored yet.
    fn hypervolume(&self) -> Option<f64> {
        None
    }

    /// How the greedy soup went so far, where there is one.
    fn soup_trace(&self) -> Option<&SoupTrace> {
        None
    }
}

/// A broken contract or unusable settings.
#[derive(Debug, thiserror::Error)]
pub enum StrategyError {
    /// An outcome is called scored, but its objective is no finite number.
    #[error("outcome of evaluation {index} has a score that is not finite")]
    NotFinite {
        /// The evaluation told.
        index: u64,
    },
    /// An outcome of an evaluation that was never asked for.
    #[error("outcome of evaluation {index}, which was never asked")]
    Unknown {
        /// The evaluation told.
        index: u64,
    },
    /// [`Ask::Wait`] for what has been told already, or for what nobody was asked for.
    #[error("asked to wait for evaluation {until}, but {told} are told and {asked} asked")]
    Wait {
        /// The evaluation waited for.
        until: u64,
        /// Evaluations told so far, in order of index.
        told: u64,
        /// Evaluations asked for so far.
        asked: u64,
    },
    /// An outcome told twice, or after a later one.
    #[error("outcome of evaluation {index} after that of {last}: outcomes come in ascending order, each once")]
    OutOfOrder {
        /// The evaluation told now.
        index: u64,
        /// The evaluation told last.
        last: u64,
    },
    /// [`Strategy::ask`] or [`Strategy::tell`] where [`Strategy::place`] was due.
    #[error("the strategy was asked again before its last proposal was placed")]
    NotPlaced,
    /// The run file needs a `[space]`, or a strategy that only makes soups.
    #[error("the strategy `{kind}` searches a space, and there is no `[space]`")]
    NoSpace {
        /// The strategy that was asked for.
        kind: StrategyKind,
    },
    /// A setting that the strategy does not have, or a value that it does not take.
    #[error("`strategy.{key}`: {reason}")]
    Setting {
        /// The key in `[strategy]`.
        key: String,
        /// What is wrong, and what is expected or may be meant.
        reason: String,
    },
}

impl StrategyError {
    /// What the process exits with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Setting { .. } | Self::NoSpace { .. } => ExitCode::BadConfiguration,
            Self::NotFinite { .. }
            | Self::Unknown { .. }
            | Self::OutOfOrder { .. }
            | Self::NotPlaced
            | Self::Wait { .. } => ExitCode::Internal,
        }
    }
}
