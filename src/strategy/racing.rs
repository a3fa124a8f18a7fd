//! Racing: candidates start on few samples, and only the promising get more. A wrapper around any strategy.
//!
//! Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning"): a candidate's
//! result on a rung is ranked among the latest results of that rung, and the best share goes on to the next rung, at once
//! and without a barrier. All candidates of a rung are scored on the same samples, and a rung's samples are among those of
//! the next, so every comparison is paired.
//!
//! The wrapped strategy hears of a candidate once, when its race is over, in the order in which it proposed. A candidate that
//! stopped early is told at an estimate of its full score: its score on the rung, corrected by how much easier or harder
//! the rung's samples were for those scored in full, and never above the best full score: it lost its race.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::Rng as _;

use super::contract::objective;
use super::{Ask, Content, Outcome, Placement, Proposal, SoupTrace, Status, Strategy, StrategyError};
use crate::evaluate::TaskScores;
use crate::random;
use crate::score::Objective;
use crate::score::samples::{Subset, subset_of};
use crate::space::Genome;

/// Origin of the proposals that take a candidate to more samples. Its one parent is the evaluation on fewer.
pub const PROMOTION: &str = "promotion";
/// Latest results of a rung that a result is ranked among.
const WINDOW: usize = 32;
/// Latest candidates scored in full that correct for the difficulty of a rung's samples.
const REFERENCES: usize = 32;

/// The course of a race.
#[derive(Clone, Debug, PartialEq)]
pub struct Race {
    /// Shares of the samples, ascending, the last one 1.
    pub fidelities: Vec<f64>,
    /// Share of a rung's candidates that go on, in `(0, 1)`.
    pub keep: f64,
    /// What scores on a part of the samples are compared by.
    pub objective: Objective,
    /// The run's seed: breaks ties.
    pub seed: u64,
}

/// One candidate of the wrapped strategy, until its race is over.
struct Entry {
    content: Content,
    generation: u32,
    /// Its latest evaluation.
    latest: u64,
    /// Its latest score.
    scored: Option<Outcome>,
    /// What the wrapped strategy will hear.
    over: Option<Outcome>,
}

/// The proposal that waits for its placement.
enum Open {
    Fresh { content: Content, generation: u32, rung: usize },
    Promotion { first: u64, rung: usize },
}

/// A strategy whose candidates race.
pub(super) struct Racing {
    inner: Box<dyn Strategy>,
    race: Race,
    open: Option<Open>,
    /// By the index of their first evaluation, by which the wrapped strategy knows them.
    entries: BTreeMap<u64, Entry>,
    /// Entry and rung of every evaluation that is not told yet.
    evaluations: BTreeMap<u64, (u64, usize)>,
    /// Entries to be promoted, by rung.
    promotions: BTreeSet<(usize, u64)>,
    /// Latest results by rung, each with a number that breaks ties.
    results: Vec<VecDeque<(f64, u64)>>,
    subsets: Vec<Option<Subset>>,
    /// Baselines' scores; they are in no rung.
    baselines: Vec<BTreeMap<String, TaskScores>>,
    /// Latest scores of candidates at full fidelity.
    references: VecDeque<BTreeMap<String, TaskScores>>,
    best: Option<f64>,
}

impl Racing {
    pub(super) fn new(inner: Box<dyn Strategy>, race: Race) -> Self {
        let rungs = race.fidelities.len();
        Self {
            inner,
            race,
            open: None,
            entries: BTreeMap::new(),
            evaluations: BTreeMap::new(),
            promotions: BTreeSet::new(),
            results: vec![VecDeque::new(); rungs],
            subsets: vec![None; rungs],
            baselines: Vec::new(),
            references: VecDeque::new(),
            best: None,
        }
    }

    fn last_rung(&self) -> usize {
        self.race.fidelities.len() - 1
    }

    fn promote(&mut self, rung: usize, first: u64) -> Option<Proposal> {
        let entry = self.entries.get(&first)?;
        self.open = Some(Open::Promotion { first, rung });
        Some(Proposal {
            content: entry.content.clone(),
            origin: PROMOTION.to_owned(),
            parents: vec![entry.latest],
            generation: entry.generation,
            fidelity: self.race.fidelities[rung],
            replicate: 0,
        })
    }

    /// A full score: guides all later comparisons.
    fn full(&mut self, outcome: &Outcome) {
        if let Some(value) = outcome.objective {
            self.best = Some(self.best.map_or(value, |best| best.max(value)));
        }
        self.references.push_back(outcome.tasks.clone());
        if self.references.len() > REFERENCES {
            self.references.pop_front();
        }
    }

    /// Whether a result goes on: it is in the best share of the rung's latest results.
    fn wins(&mut self, rung: usize, value: f64, index: u64) -> bool {
        let tie = random::stream(self.race.seed, "racing ties", index).next_u64();
        let mut rivals: Vec<(f64, u64)> = self.results[rung].iter().copied().collect();
        if rivals.len() < WINDOW
            && let Some(subset) = &self.subsets[rung]
        {
            let known = self.baselines.iter().filter_map(|scores| self.race.objective.value_on(scores, subset));
            rivals.extend(known.map(|value| (value, u64::MAX / 2)));
        }
        let better = rivals.iter().filter(|rival| rival.0 > value || (rival.0 == value && rival.1 > tie)).count();
        self.results[rung].push_back((value, tie));
        if self.results[rung].len() > WINDOW {
            self.results[rung].pop_front();
        }
        (better as f64) < self.race.keep * (rivals.len() + 1) as f64
    }

    /// What a score on a rung stands for at full fidelity.
    fn estimate(&self, rung: usize, value: f64) -> f64 {
        let correction = self.subsets[rung].as_ref().and_then(|subset| {
            let gap = |scores: &BTreeMap<String, TaskScores>| {
                Some(self.race.objective.value(scores)? - self.race.objective.value_on(scores, subset)?)
            };
            let gaps: Vec<f64> = self.references.iter().filter_map(gap).collect();
            (!gaps.is_empty()).then(|| gaps.iter().sum::<f64>() / gaps.len() as f64)
        });
        let estimate = value + correction.unwrap_or(0.0);
        self.best.map_or(estimate, |best| estimate.min(best))
    }

    /// Ends the race of an entry on this rung with its latest score.
    fn stop(&mut self, first: u64, rung: usize) {
        let Some(outcome) = self.entries.get(&first).and_then(|entry| entry.scored.clone()) else { return };
        let objective = outcome.objective.map(|value| self.estimate(rung, value));
        self.end(first, Outcome { objective, ..outcome });
    }

    fn end(&mut self, first: u64, outcome: Outcome) {
        if let Some(entry) = self.entries.get_mut(&first) {
            entry.over = Some(Outcome { index: first, ..outcome });
        }
    }

    /// Tells the wrapped strategy of the races that are over, up to the first that is not.
    fn report(&mut self) -> Result<(), StrategyError> {
        while let Some(entry) = self.entries.first_entry() {
            let Some(outcome) = entry.get().over.clone() else { break };
            entry.remove();
            self.inner.tell(&outcome)?;
        }
        Ok(())
    }

    fn wait(&self) -> Option<Ask> {
        self.evaluations.keys().next().map(|until| Ask::Wait { until: *until })
    }
}

impl Strategy for Racing {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn ask(&mut self) -> Result<Ask, StrategyError> {
        // A promotion that was a duplicate ended a race.
        self.report()?;
        while let Some((rung, first)) = self.promotions.pop_last() {
            if let Some(proposal) = self.promote(rung, first) {
                return Ok(Ask::Proposal(Box::new(proposal)));
            }
        }
        match self.inner.ask()? {
            Ask::Proposal(mut proposal) => {
                let races = proposal.fidelity >= 1.0 && proposal.replicate == 0;
                let rung = if races { 0 } else { self.last_rung() };
                if races {
                    proposal.fidelity = self.race.fidelities[rung];
                }
                let (content, generation) = (proposal.content.clone(), proposal.generation);
                self.open = Some(Open::Fresh { content, generation, rung });
                Ok(Ask::Proposal(proposal))
            }
            // What it waits for may have been told while the race goes on.
            Ask::Wait { until } => Ok(self.wait().unwrap_or(Ask::Wait { until })),
            Ask::Done(reason) => Ok(self.wait().unwrap_or(Ask::Done(reason))),
        }
    }

    fn place(&mut self, placement: Placement) {
        match (self.open.take(), placement) {
            (Some(Open::Fresh { content, generation, rung }), Placement::Asked { index }) => {
                let entry = Entry { content, generation, latest: index, scored: None, over: None };
                self.entries.insert(index, entry);
                self.evaluations.insert(index, (index, rung));
                self.inner.place(placement);
            }
            (Some(Open::Fresh { .. }), Placement::Duplicate { .. }) => self.inner.place(placement),
            (Some(Open::Promotion { first, rung }), Placement::Asked { index }) => {
                self.evaluations.insert(index, (first, rung));
                if let Some(entry) = self.entries.get_mut(&first) {
                    entry.latest = index;
                }
            }
            // Another candidate with the same recipe had this evaluation already.
            (Some(Open::Promotion { first, rung }), Placement::Duplicate { .. }) => self.stop(first, rung - 1),
            (None, _) => {}
        }
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        let value = objective(outcome)?;
        let Some((first, rung)) = self.evaluations.remove(&outcome.index) else {
            return Err(StrategyError::Unknown { index: outcome.index });
        };
        match (outcome.status, value) {
            (Status::Scored, Some(value)) => {
                if self.subsets[rung].is_none() && rung < self.last_rung() {
                    self.subsets[rung] = subset_of(&outcome.tasks);
                }
                if let Some(entry) = self.entries.get_mut(&first) {
                    entry.scored = Some(outcome.clone());
                }
                if rung == self.last_rung() {
                    self.full(outcome);
                    self.end(first, outcome.clone());
                } else if self.wins(rung, value, outcome.index) {
                    self.promotions.insert((rung + 1, first));
                } else {
                    self.stop(first, rung);
                }
            }
            // Nothing is known of the rung: what was known before stands.
            (Status::Failed, _) if rung > 0 => self.stop(first, rung - 1),
            _ => self.end(first, outcome.clone()),
        }
        self.report()
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        if objective(outcome)?.is_some() {
            self.full(outcome);
            self.baselines.push(outcome.tasks.clone());
        }
        self.inner.learn(content, outcome)
    }

    fn watch(&mut self, genome: &Genome, placement: Placement) {
        self.inner.watch(genome, placement);
    }

    fn hypervolume(&self) -> Option<f64> {
        self.inner.hypervolume()
    }

    fn soup_trace(&self) -> Option<&SoupTrace> {
        self.inner.soup_trace()
    }
}

#[cfg(test)]
#[path = "racing_tests.rs"]
mod tests;
