//! Origins that mean something beyond the strategy that proposes: every one is [`super::Proposal::origin`] of such a
//! proposal.

/// The base model.
pub const BASE: &str = "base";
/// One source alone; records name it, as `source:NAME`.
pub const SOURCE: &str = "source";
/// The average of all sources.
pub const UNIFORM_SOUP: &str = "uniform_soup";
/// A step of the greedy soup.
pub const GREEDY_SOUP: &str = "greedy_soup";
/// More samples for a candidate of a race. Its one parent is the evaluation on fewer.
pub const PROMOTION: &str = "promotion";
