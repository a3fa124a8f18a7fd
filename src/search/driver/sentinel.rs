//! The sentinel: a baseline that is scored again now and then, to see whether the evaluator is still the one that it
//! was. Each multiple of the distance between two scorings has one, one after the other: how many there are depends
//! neither on how fast answers come nor on kills.

use std::num::NonZeroU64;

use super::Search;
use crate::ledger::{Ledger, RepeatPurpose};
use crate::scores::Status;
use crate::search::SearchError;
use crate::search::pipeline::Finished;
use crate::search::repeats::{Rescoring, last_sentinel};
use crate::strategy::origin;

/// Where the sentinel stands.
pub(super) struct Sentinel {
    /// Index of the sentinel's evaluation; `None`: it was not scored again yet.
    index: Option<u64>,
    /// The multiple that the latest scoring was started for; 0: there was none. More may have been spent by then.
    due_at: u64,
    /// Evaluations (in full) after which the last scoring with a result was due.
    made_at: u64,
    /// Evaluations (in full) after which the scoring now in flight was due, not when it was started: that depends on
    /// restarts. `None`: none is in flight.
    open: Option<u64>,
}

impl Sentinel {
    pub(super) fn of(ledger: &Ledger, every: Option<NonZeroU64>) -> Result<Self, SearchError> {
        let last = last_sentinel(ledger)?;
        let made_at = last.as_ref().map_or(0, |last| last.after);
        // One that was given up has had its turn. The last one of a search that ended stands for the multiples before it.
        let turn = ledger.repeats_for(RepeatPurpose::Sentinel)?.last().map_or(0, |latest| latest.after);
        let due_at = every.map_or(0, |every| turn / every * every.get());
        Ok(Self { index: last.map(|last| last.index), due_at, made_at, open: None })
    }

    /// The multiple whose turn it is when `spent` evaluations in full have been spent; `None`: there is none now.
    fn turn(&self, spent: u64, every: NonZeroU64) -> Option<u64> {
        let next = self.due_at.saturating_add(every.get());
        (self.open.is_none() && next <= spent).then_some(next)
    }
}

impl Search {
    /// What has been spent, in evaluations in full.
    pub(super) fn spent(&self) -> u64 {
        match self.prepared.samples {
            0 => self.budget.evaluations(),
            samples => self.budget.samples() / samples,
        }
    }

    pub(super) fn rescoring(&self) -> Rescoring<'_> {
        Rescoring {
            prepared: &self.prepared,
            ledger: &self.ledger,
            context: self.pipeline.context(),
            outcomes: self.schedule.outcomes(),
            spent: self.spent(),
            deterministic: self.frozen.deterministic,
            progress: &self.progress,
        }
    }

    /// At the end of a search, the evaluation to be made again: where half of the usual distance has passed.
    pub(super) fn last_sentinel_due(&self) -> Option<u64> {
        let every = self.repeats.sentinel?.get();
        let due = self.spent() >= self.sentinel.made_at + every.div_ceil(2);
        self.sentinel.index.or_else(|| self.choose_sentinel()).filter(|_| due)
    }

    /// The uniform soup, whose score is neither at the bottom nor at the top; else the first baseline that has a score.
    fn choose_sentinel(&self) -> Option<u64> {
        let baselines = self.prepared.baselines;
        let told = || self.rows.range(..baselines).map(|(_, row)| row);
        // Drift is measured from the score that the search itself has taken.
        let searched = |index: &u64| self.schedule.outcomes().get(index).is_some_and(|first| first.objective.is_some());
        let scored = || told().filter(|row| searched(&row.index));
        let chosen = scored().find(|row| row.origin == origin::UNIFORM_SOUP).or_else(|| scored().next());
        chosen.filter(|_| told().count() as u64 == baselines).map(|row| row.index)
    }

    /// Has the sentinel scored again if it is time.
    pub(super) fn start_sentinel(&mut self) -> Result<(), SearchError> {
        let Some(every) = self.repeats.sentinel else { return Ok(()) };
        let Some(due_at) = self.sentinel.turn(self.spent(), every) else { return Ok(()) };
        let Some(index) = self.known_baseline() else { return Ok(()) };
        let work = self.rescoring().next_sentinel(&self.ledger.asked_at(index)?)?;
        self.pipeline.add(work);
        self.sentinel = Sentinel { index: Some(index), due_at, made_at: self.sentinel.made_at, open: Some(due_at) };
        Ok(())
    }

    /// The evaluation that sentinel and witness repeat; `None`: no baseline has a score yet.
    pub(super) fn known_baseline(&self) -> Option<u64> {
        self.sentinel.index.or_else(|| self.choose_sentinel())
    }

    pub(super) fn finish_sentinel(&mut self, finished: Finished) -> Result<(), SearchError> {
        let spent = self.sentinel.open.take().unwrap_or_else(|| self.spent());
        // Given up, it has told nothing: at the end of the search it is asked once more.
        if finished.status != Status::Failed {
            self.sentinel.made_at = spent;
        }
        Rescoring { spent, ..self.rescoring() }.sentinel(finished)
    }
}

#[cfg(test)]
#[path = "sentinel_tests.rs"]
mod tests;
