//! The baselines, before any search: base, sources, uniform soup, greedy soup; then the strategy that they wrap.
//!
//! They are what a merge must beat, they seed the search, and they are a result by themselves.

use std::collections::BTreeMap;

use super::contract::objective;
use super::soup::{Keep, Passes};
use super::{Ask, Content, Outcome, Placement, Proposal, SoupTrace, Strategy, StrategyError, origin};

/// Beyond this many sources the greedy soup is made only where it was asked for.
pub(super) const GREEDY_SOUP_SOURCES: usize = 16;

/// What is proposed before the search.
#[derive(Clone, Copy, Debug)]
pub(super) struct BaselinePlan {
    pub(super) has_base: bool,
    pub(super) sources: usize,
    /// Whether a greedy soup is made; of several sources only.
    pub(super) greedy: bool,
    pub(super) keep: Keep,
    /// What the greedy soup tries besides adding each source once.
    pub(super) passes: Passes,
}

/// Who made a proposal.
#[derive(Clone, Debug)]
enum Owner {
    Baseline(Content),
    /// A step of the greedy soup.
    GreedySoup(Content),
    Inner,
}

/// What every search evaluates first, in this order: the base where there is one, each source, the uniform soup of
/// several.
pub fn baseline_contents(has_base: bool, sources: usize) -> Vec<Content> {
    let base = has_base.then_some(Content::Base);
    let alone = (0..sources).map(|source| Content::Soup(vec![source]));
    let uniform = (sources > 1).then(|| Content::Soup((0..sources).collect()));
    base.into_iter().chain(alone).chain(uniform).collect()
}

/// The baselines, then the inner strategy.
pub(super) struct Baselines {
    plan: BaselinePlan,
    inner: Option<Box<dyn Strategy>>,
    /// Base, sources and uniform soup, in order of proposing.
    first: Vec<Content>,
    /// How many of `first` were proposed.
    proposed: usize,
    /// The proposal that waits for its placement.
    open: Option<Owner>,
    /// Evaluation of each baseline content asked for so far.
    indices: Vec<(Content, u64)>,
    owners: BTreeMap<u64, Owner>,
    /// Objectives told; `None`: not scored.
    told: BTreeMap<u64, Option<f64>>,
    trace: Option<SoupTrace>,
    /// Evaluation of the greedy soup's current step.
    step: Option<u64>,
}

impl Baselines {
    pub(super) fn new(plan: BaselinePlan, inner: Option<Box<dyn Strategy>>) -> Self {
        let first = baseline_contents(plan.has_base, plan.sources);
        Self {
            plan,
            inner,
            first,
            proposed: 0,
            open: None,
            indices: Vec::new(),
            owners: BTreeMap::new(),
            told: BTreeMap::new(),
            trace: None,
            step: None,
        }
    }

    fn propose(&mut self, owner: Owner, content: Content, origin: &str) -> Ask {
        self.open = Some(owner);
        Ask::Proposal(Box::new(Proposal::new(content, origin)))
    }

    fn index(&self, content: &Content) -> Option<u64> {
        self.indices.iter().find(|(known, _)| known == content).map(|(_, index)| *index)
    }

    /// Evaluations of the sources that have been proposed so far.
    fn source_indices(&self) -> Vec<u64> {
        (0..self.plan.sources).filter_map(|source| self.index(&Content::Soup(vec![source]))).collect()
    }

    /// Takes the greedy soup as far as the scores that are known allow, so that a search which ends here has its trace.
    fn follow_greedy(&mut self) {
        if !self.plan.greedy {
            return;
        }
        if self.trace.is_none() {
            let sources = self.source_indices();
            let scores: Option<Vec<Option<f64>>> = sources.iter().map(|index| self.told.get(index).copied()).collect();
            self.trace = scores
                .filter(|scores| scores.len() == self.plan.sources)
                .map(|scores| SoupTrace::start(&scores, self.plan.passes));
        }
        let score = self.step.and_then(|index| self.told.get(&index));
        if let (Some(trace), Some(score)) = (&mut self.trace, score) {
            trace.scored(*score, self.plan.keep);
            self.step = None;
        }
    }

    /// The greedy soup's next move; `None` when it is done or not made.
    fn greedy(&mut self) -> Option<Ask> {
        if !self.plan.greedy {
            return None;
        }
        let Some(trace) = &self.trace else {
            let open = self.source_indices().into_iter().filter(|index| !self.told.contains_key(index));
            return open.max().map(|until| Ask::Wait { until });
        };
        if let Some(until) = self.step {
            return Some(Ask::Wait { until });
        }
        let members = trace.next()?;
        let parents: Vec<u64> = self.greedy_parents();
        let content = Content::Soup(members);
        let Ask::Proposal(mut proposal) =
            self.propose(Owner::GreedySoup(content.clone()), content, origin::GREEDY_SOUP)
        else {
            return None;
        };
        proposal.parents = parents;
        Some(Ask::Proposal(proposal))
    }

    /// The evaluations that the next greedy step builds on: the soup so far and the source added.
    fn greedy_parents(&self) -> Vec<u64> {
        let Some(trace) = &self.trace else { return Vec::new() };
        let mut soup = trace.members.clone();
        soup.sort_unstable();
        let added = trace.addition().map(|source| vec![source]);
        [Some(soup), added].into_iter().flatten().filter_map(|members| self.index(&Content::Soup(members))).collect()
    }
}

fn origin_of(content: &Content) -> &'static str {
    match content {
        Content::Base => origin::BASE,
        Content::Soup(members) if members.len() == 1 => origin::SOURCE,
        _ => origin::UNIFORM_SOUP,
    }
}

impl Strategy for Baselines {
    fn ask(&mut self) -> Result<Ask, StrategyError> {
        if let Some(content) = self.first.get(self.proposed).cloned() {
            self.proposed += 1;
            let origin = origin_of(&content);
            return Ok(self.propose(Owner::Baseline(content.clone()), content, origin));
        }
        if let Some(ask) = self.greedy() {
            return Ok(ask);
        }
        let Some(inner) = &mut self.inner else { return Ok(Ask::Done("every baseline was proposed".to_owned())) };
        let ask = inner.ask()?;
        if matches!(ask, Ask::Proposal(_)) {
            self.open = Some(Owner::Inner);
        }
        Ok(ask)
    }

    fn place(&mut self, placement: Placement) {
        let Some(owner) = self.open.take() else { return };
        let (Placement::Asked { index } | Placement::Duplicate { of: index }) = placement;
        match &owner {
            Owner::Inner => {
                if let Some(inner) = &mut self.inner {
                    inner.place(placement);
                }
            }
            Owner::Baseline(content) | Owner::GreedySoup(content) => {
                if matches!(owner, Owner::GreedySoup(_)) {
                    self.step = Some(index);
                }
                if self.index(content).is_none() {
                    self.indices.push((content.clone(), index));
                }
            }
        }
        if matches!(placement, Placement::Asked { .. }) {
            self.owners.insert(index, owner);
        }
        self.follow_greedy();
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        self.told.insert(outcome.index, objective(outcome)?);
        self.follow_greedy();
        let Some(inner) = &mut self.inner else { return Ok(()) };
        match self.owners.get(&outcome.index) {
            Some(Owner::Baseline(content) | Owner::GreedySoup(content)) => inner.learn(content, outcome),
            _ => inner.tell(outcome),
        }
    }

    fn settle(&mut self) -> Result<(), StrategyError> {
        self.inner.as_mut().map_or(Ok(()), |inner| inner.settle())
    }

    fn hypervolume(&self) -> Option<f64> {
        self.inner.as_ref()?.hypervolume()
    }

    fn soup_trace(&self) -> Option<&SoupTrace> {
        self.trace.as_ref()
    }
}
