//! Strategies: propose candidates, learn from outcomes. Pure: no clock, no network, no files.

use std::collections::BTreeMap;

use crate::evaluate::TaskScores;
use crate::space::Genome;

/// What a proposal stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// The base model as it is.
    Base,
    /// The uniform average of these sources (indices into the run's sources, ascending); one source alone: the source.
    Soup(Vec<usize>),
    /// A point of the search space.
    Genome(Genome),
}

/// A candidate that a strategy wants evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    pub content: Content,
    /// `base`, `source`, `uniform_soup`, `greedy_soup`, or the operator (`random`, `sbx`, `group_exchange`, ...).
    pub origin: String,
    /// Indices of the evaluations that it was bred from.
    pub parents: Vec<u64>,
    pub generation: u32,
    /// Share of the samples, in `(0, 1]`.
    pub fidelity: f64,
    pub replicate: u32,
}

/// A strategy's answer to [`Strategy::ask`].
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    Proposal(Box<Proposal>),
    /// Nothing to propose before every outcome up to and including this index has been told.
    Wait {
        until: u64,
    },
    /// Nothing more to propose, with the reason for people.
    Done(String),
}

/// What became of a proposal, told at once after [`Strategy::ask`] returned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It will be evaluated under this index; its outcome follows.
    Asked { index: u64 },
    /// The same recipe, fidelity and replicate as an earlier index; no outcome of its own follows.
    Duplicate { of: u64 },
}

/// How an evaluation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Scored,
    /// The candidate's own fault: worst fitness.
    Infeasible,
    /// Given up after retries: no fitness, says nothing of the candidate.
    Failed,
}

/// A finished evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub index: u64,
    pub status: Status,
    /// Higher is better; `None` unless scored. Computed from `tasks` by [`crate::score::Objective`].
    pub objective: Option<f64>,
    pub tasks: BTreeMap<String, TaskScores>,
    pub fidelity: f64,
}

/// A search algorithm behind ask and tell.
///
/// Contract: the same seed and the same sequence of calls give the same proposals. After [`Ask::Proposal`] the caller calls
/// [`Self::place`] before anything else. Outcomes are told in ascending order of index, each once.
pub trait Strategy: Send {
    fn name(&self) -> &'static str;
    fn ask(&mut self) -> Result<Ask, StrategyError>;
    fn place(&mut self, placement: Placement);
    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError>;
}

/// A broken contract or unusable settings.
#[derive(Debug, thiserror::Error)]
pub enum StrategyError {
    #[error("outcome of evaluation {index} has a score that is not finite")]
    NotFinite { index: u64 },
    #[error("outcome of evaluation {index}, which was never asked")]
    Unknown { index: u64 },
    #[error("asked to wait for evaluation {until}, but {told} are told and {asked} asked")]
    Wait { until: u64, told: u64, asked: u64 },
    #[error("strategy setting `{key}`: {reason}")]
    Setting { key: String, reason: String },
}
