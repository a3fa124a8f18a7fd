//! Racing: candidates start on few samples, and only the promising get more. A wrapper around any strategy.
//!
//! Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning"): a
//! candidate's result on a rung is ranked among the latest results of that rung, and of the best share those that may
//! well beat the best go on to the next rung, at once and without a barrier. All candidates of a rung are scored on the
//! same samples, and a rung's samples are among those of the next, so every comparison is paired.
//!
//! A few candidates, by lot, do not race but are scored in full: references. Results are compared, and told, as
//! estimates of the score on all samples that rest on these (see [`super::extrapolate`]). The wrapped strategy hears of
//! a candidate once, when its race is over, in the order in which it proposed; one that stopped early at its estimate,
//! with the standard errors of its tasks, but never above the best full score: it lost its race.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::Rng as _;

use super::contract::objective;
use super::extrapolate::{Reference, RungSamples, extrapolate};
use super::origin::PROMOTION;
use super::{Ask, Content, Outcome, Placement, Proposal, SoupTrace, Strategy, StrategyError};
use crate::random;
use crate::score::Objective;
use crate::scores::{Scores, Status};
use crate::space::Genome;

/// Latest results of a rung that a result is ranked among.
const WINDOW: usize = 32;
/// Latest references that estimates rest on, beside the baselines.
const REFERENCES: usize = 32;
/// One candidate in this many, by lot, is scored in full at once, as a reference. Those that won their way up cannot be
/// references: they did better on the part than on the whole, which is why they won, and would make all others look
/// worse than they are.
pub const ONE_REFERENCE_IN: u64 = 16;
/// Standard errors that a candidate may be better than its estimate: one that is no better than the best one even then
/// has less than one chance in ten to be the best, and is not worth more samples.
const HOPE: f64 = 1.3;

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
    /// Its latest score, as an estimate of that on all samples.
    scored: Option<Outcome>,
    /// What the wrapped strategy will hear.
    over: Option<Outcome>,
}

/// A candidate scored on all samples, and what it is on the samples of each rung.
struct FullResult {
    tasks: Scores,
    objective: f64,
    by_rung: Vec<Option<Reference>>,
}

/// A result of a rung that others are ranked among.
struct Rival {
    outcome: Outcome,
    /// Its score as an estimate of that on all samples, by the references of now.
    value: f64,
    /// Breaks ties.
    tie: u64,
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
    /// Candidates so far.
    begun: u64,
    /// Candidates that race, by the index of their first evaluation, by which the wrapped strategy knows them.
    entries: BTreeMap<u64, Entry>,
    /// Entry and rung of every evaluation that is not told yet.
    evaluations: BTreeMap<u64, (u64, usize)>,
    /// Entries to be promoted, by rung.
    promotions: BTreeSet<(usize, u64)>,
    /// Latest results by rung.
    results: Vec<VecDeque<Rival>>,
    /// The samples of each rung, once they are known.
    samples: Vec<Option<RungSamples>>,
    /// Baselines in full; they do not compete in rungs.
    baselines: Vec<FullResult>,
    /// Latest candidates that were scored in full without having won.
    references: VecDeque<FullResult>,
    best: Option<f64>,
}

impl Racing {
    pub(super) fn new(inner: Box<dyn Strategy>, race: Race) -> Self {
        let rungs = race.fidelities.len();
        Self {
            inner,
            race,
            open: None,
            begun: 0,
            entries: BTreeMap::new(),
            evaluations: BTreeMap::new(),
            promotions: BTreeSet::new(),
            results: (0..rungs).map(|_| VecDeque::new()).collect(),
            samples: vec![None; rungs],
            baselines: Vec::new(),
            references: VecDeque::new(),
            best: None,
        }
    }

    fn last_rung(&self) -> usize {
        self.race.fidelities.len() - 1
    }

    /// Whether the next candidate is to be a reference: where references are of use at all.
    fn is_reference(&self) -> bool {
        let lot = || random::stream(self.race.seed, "racing references", self.begun).next_u64();
        self.samples[0].is_some() && lot() < u64::MAX / ONE_REFERENCE_IN
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
        })
    }

    /// Takes in a score on all samples: it may be the best one so far. What it is on the samples of each rung; `None`
    /// where the outcome has no score.
    fn record_full(&mut self, outcome: &Outcome) -> Option<FullResult> {
        let objective = outcome.objective?;
        self.best = Some(self.best.map_or(objective, |best| best.max(objective)));
        let by_rung =
            self.samples.iter().map(|samples| Reference::new(&self.race.objective, samples.as_ref()?, &outcome.tasks));
        Some(FullResult { tasks: outcome.tasks.clone(), objective, by_rung: by_rung.collect() })
    }

    /// Takes the first result of a rung for what the rung's samples are.
    fn learn_samples(&mut self, rung: usize, scores: &Scores) {
        if rung == self.last_rung() || self.samples[rung].is_some() {
            return;
        }
        let Some(samples) = RungSamples::of(&self.race.objective, scores) else { return };
        for full in self.baselines.iter_mut().chain(&mut self.references) {
            full.by_rung[rung] = Reference::new(&self.race.objective, &samples, &full.tasks);
        }
        self.samples[rung] = Some(samples);
    }

    /// What an outcome on a rung says about all samples; `None` where nothing is known to judge it by.
    fn estimate(&self, rung: usize, outcome: &Outcome) -> Option<Outcome> {
        let references = self.baselines.iter().chain(&self.references);
        let references: Vec<&Reference> = references.filter_map(|full| full.by_rung[rung].as_ref()).collect();
        let tasks = extrapolate(&self.race.objective, self.samples[rung].as_ref()?, &outcome.tasks, &references)?;
        let objective = self.race.objective.value(&tasks)?;
        Some(Outcome { objective: Some(objective), tasks, ..outcome.clone() })
    }

    /// Whether a candidate with this estimate may well be the best one.
    fn is_hopeful(&self, estimate: &Outcome) -> bool {
        let highest = estimate.objective.zip(self.race.objective.stderr(&estimate.tasks));
        let highest = highest.map(|(value, stderr)| value + HOPE * stderr);
        highest.zip(self.best).is_none_or(|(highest, best)| highest >= best)
    }

    /// Enters a result among the latest ones of its rung. Whether it is in the best share of them, so that it goes on.
    fn enter_and_rank(&mut self, rung: usize, value: f64, outcome: &Outcome) -> bool {
        let tie = random::stream(self.race.seed, "racing ties", outcome.index).next_u64();
        let mut rivals: Vec<(f64, u64)> = self.results[rung].iter().map(|rival| (rival.value, rival.tie)).collect();
        if rivals.len() < WINDOW {
            let known = self.baselines.iter().filter(|full| full.by_rung[rung].is_some());
            rivals.extend(known.map(|full| (full.objective, u64::MAX / 2)));
        }
        let better = rivals.iter().filter(|rival| rival.0 > value || (rival.0 == value && rival.1 > tie)).count();
        self.results[rung].push_back(Rival { outcome: outcome.clone(), value, tie });
        if self.results[rung].len() > WINDOW {
            self.results[rung].pop_front();
        }
        (better as f64) < self.race.keep * (rivals.len() + 1) as f64
    }

    /// Takes a candidate that was scored in full without having won, and estimates the latest results anew: what is
    /// compared with them later rests on it too.
    fn add_reference(&mut self, full: FullResult) {
        self.references.push_back(full);
        if self.references.len() > REFERENCES {
            self.references.pop_front();
        }
        for rung in 0..self.last_rung() {
            let anew: Vec<Option<f64>> =
                self.results[rung].iter().map(|rival| self.estimate(rung, &rival.outcome)?.objective).collect();
            for (rival, value) in self.results[rung].iter_mut().zip(anew) {
                rival.value = value.unwrap_or(rival.value);
            }
        }
    }

    /// Ends the race of an entry with its latest score.
    fn stop(&mut self, first: u64) {
        let Some(outcome) = self.entries.get(&first).and_then(|entry| entry.scored.clone()) else { return };
        let objective = outcome.objective.map(|value| self.best.map_or(value, |best| value.min(best)));
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
                let races = proposal.fidelity >= 1.0 && !self.is_reference();
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
                self.begun += 1;
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
            (Some(Open::Promotion { first, .. }), Placement::Duplicate { .. }) => self.stop(first),
            (None, _) => {}
        }
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        let value = objective(outcome)?;
        let Some((first, rung)) = self.evaluations.remove(&outcome.index) else {
            return Err(StrategyError::Unknown { index: outcome.index });
        };
        match (outcome.status, value) {
            (Status::Scored, Some(_)) if rung == self.last_rung() => {
                let full = self.record_full(outcome);
                if let Some(full) = full.filter(|_| first == outcome.index) {
                    self.add_reference(full);
                }
                self.end(first, outcome.clone());
            }
            (Status::Scored, Some(value)) => {
                self.learn_samples(rung, &outcome.tasks);
                let estimate = self.estimate(rung, outcome);
                let hopeful = estimate.as_ref().is_none_or(|estimate| self.is_hopeful(estimate));
                let value = estimate.as_ref().and_then(|estimate| estimate.objective).unwrap_or(value);
                if let Some(entry) = self.entries.get_mut(&first) {
                    entry.scored = Some(estimate.unwrap_or_else(|| outcome.clone()));
                }
                let wins = self.enter_and_rank(rung, value, outcome);
                if wins && hopeful {
                    self.promotions.insert((rung + 1, first));
                } else {
                    self.stop(first);
                }
            }
            // Nothing is known of the rung: what was known before stands, if anything was.
            (Status::Failed, _) if self.entries.get(&first).is_some_and(|entry| entry.scored.is_some()) => {
                self.stop(first)
            }
            _ => self.end(first, outcome.clone()),
        }
        self.report()
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        if objective(outcome)?.is_some() {
            let full = self.record_full(outcome);
            self.baselines.extend(full);
        }
        self.inner.learn(content, outcome)
    }

    fn watch(&mut self, genome: &Genome, placement: Placement) {
        self.inner.watch(genome, placement);
    }

    /// Tells all finished races, passing over unfinished ones: [`Self::report`] stops at the first of those.
    fn settle(&mut self) -> Result<(), StrategyError> {
        for outcome in std::mem::take(&mut self.entries).into_values().filter_map(|entry| entry.over) {
            self.inner.tell(&outcome)?;
        }
        self.inner.settle()
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
