//! Where a run stands: its best, its failures, and what is shown of it.

use std::collections::BTreeSet;

use super::Search;
use crate::score::shown;
use crate::scores::Status;
use crate::search::best::{Ranked, soup_of};
use crate::search::candidate::{baselines, soup_id};
use crate::search::pipeline::Finished;
use crate::search::progress::Snapshot;
use crate::search::report::Row;
use crate::search::{Pace, SearchError};
use crate::strategy::{Content, origin};

/// Most evaluations that may be given up whatever their share of all is.
const FAILURES_ALLOWED: u64 = 5;
/// Largest share of all evaluations that may be given up: above it something systematic is wrong, and the run stops.
const FAILURE_SHARE: f64 = 0.2;

impl Search {
    /// Tells of one evaluation, in a line that is shown with `--verbose` only.
    pub(super) fn tell_of(&self, finished: &Finished, objective: Option<f64>) {
        let Some(asked) = self.asked.get(&finished.index) else { return };
        let result = match (objective, &finished.error) {
            (Some(objective), _) => shown(objective),
            (None, Some(error)) => format!("{}: {error}", finished.status.name()),
            (None, None) => finished.status.name().to_owned(),
        };
        let part = if asked.fidelity < 1.0 {
            format!(", on {:.1} % of the samples", 100.0 * asked.fidelity)
        } else {
            String::new()
        };
        let seconds =
            |what: &str, seconds: Option<f64>| seconds.map_or(String::new(), |s| format!(", {what} in {s:.2} s"));
        let effort = if finished.attempts == 0 && finished.status == Status::Scored {
            ", taken over".to_owned()
        } else {
            seconds("merged", finished.materialize_s) + &seconds("scored", finished.evaluate_s)
        };
        self.progress.detail(&format!(
            "evaluation {}: {result}  {} ({}{part}){effort}",
            finished.index, asked.candidate_id, asked.origin
        ));
    }

    /// Ends a search most of whose evaluations are given up. What was given up before this start may have been mended
    /// since.
    pub(super) fn check_failures(&mut self, finished: &Finished) -> Result<(), SearchError> {
        self.ended += 1;
        if finished.status != Status::Failed {
            return Ok(());
        }
        self.given_up += 1;
        let reason = finished.error.clone().unwrap_or_default();
        self.progress.line(&format!("evaluation {} given up: {reason}", finished.index));
        let (failed, all) = (self.given_up, self.ended);
        if failed > FAILURES_ALLOWED && failed as f64 > FAILURE_SHARE * all as f64 {
            let keeps_nothing = self.count(Status::Failed) == self.rows.len() as u64;
            return Err(SearchError::TooManyFailures { failed, finished: all, last: reason, keeps_nothing });
        }
        Ok(())
    }

    /// Base, sources and uniform soup, as far as they have an outcome. Those that are copies of others were not asked
    /// for.
    pub(super) fn first_baselines(&self) -> impl Iterator<Item = &Row> {
        let first = self.rows.range(..self.prepared.baselines).map(|(_, row)| row);
        first.filter(|row| self.asked.get(&row.index).is_some_and(|asked| asked.baseline))
    }

    /// Base, sources and uniform soup that were given up.
    pub(super) fn given_up_baselines(&self) -> impl Iterator<Item = &Row> {
        self.first_baselines().filter(|row| row.status == Status::Failed)
    }

    /// Base, sources and uniform soup that the winner is not compared with: given up, or the run ended before they were
    /// scored. By origin.
    pub(super) fn unknown_baselines(&self) -> Result<Vec<String>, SearchError> {
        let given_up = self.given_up_baselines().map(|row| row.origin.clone());
        Ok(given_up.chain(self.unreached_baselines()?).collect())
    }

    /// Base, sources and uniform soup that were not asked for, or whose answer did not come before the run ended. By
    /// origin.
    pub(super) fn unreached_baselines(&self) -> Result<Vec<String>, SearchError> {
        let ended: BTreeSet<&str> = self.first_baselines().map(|row| row.candidate_id.as_str()).collect();
        let all = baselines(&self.prepared.models)?.into_iter();
        let unreached = all.filter(|(_, id)| !ended.contains(id.as_str()));
        Ok(unreached.map(|(content, _)| self.baseline_name(&content)).collect())
    }

    /// The origin that records give a baseline.
    pub(super) fn baseline_name(&self, content: &Content) -> String {
        match content {
            Content::Base => origin::BASE.to_owned(),
            Content::Soup(members) if members.len() == 1 => {
                let name = self.prepared.models.facts.sources.get(members[0]).map_or("", |(name, _)| name.as_str());
                format!("{}:{name}", origin::SOURCE)
            }
            _ => origin::UNIFORM_SOUP.to_owned(),
        }
    }

    /// Models that exist and cannot be scored: the fault is hardly theirs.
    pub(super) fn check_baselines(&self) -> Result<(), SearchError> {
        let first = self.asked.range(..self.prepared.baselines);
        let wanted = first.filter(|(_, asked)| asked.baseline).count() as u64;
        let infeasible = self.first_baselines().filter(|row| row.status == Status::Infeasible).count() as u64;
        let all_asked = self.asked.len() as u64 >= self.prepared.baselines;
        if wanted == 0 || infeasible < wanted || !all_asked {
            return Ok(());
        }
        let told = self.ledger.all_told_in_short()?;
        let reason = told.get(&0).and_then(|record| record.error.clone()).unwrap_or_default();
        Err(SearchError::BaselinesInfeasible { baselines: wanted, reason })
    }

    /// Evaluations that ended so, whatever became of their candidates since.
    pub(super) fn count(&self, status: Status) -> u64 {
        self.schedule.outcomes().values().filter(|outcome| outcome.status == status).count() as u64
    }

    pub(super) fn show(&self) {
        let limits = &self.prepared.config.budget;
        let samples = self.rows.keys().filter_map(|index| self.asked.get(index)).map(|asked| asked.samples);
        let samples = samples.fold(0, u64::saturating_add);
        let pace = Pace { evaluations: self.rows.len() as u64, samples, active: self.clock.active() };
        // What is shown is no reason to stop.
        let best_baseline = self.best_baseline().unwrap_or_default();
        self.progress.update(&Snapshot {
            finished: pace.evaluations,
            total: limits.evaluations,
            in_flight: self.pipeline.evaluating(),
            infeasible: self.count(Status::Infeasible),
            failed: self.count(Status::Failed),
            best: self.best.and_then(|best| Some((best.objective, self.rows.get(&best.index)?.candidate_id.clone()))),
            best_baseline: best_baseline.and_then(|row| Some((row.objective?, row.origin.clone()))),
            active: pace.active,
            remaining: pace.time_left(limits),
        });
    }

    /// Base, sources, uniform soup, and all that the greedy soup tried.
    pub(super) fn baselines_and_trials(&self) -> impl Iterator<Item = &Row> {
        self.rows.values().filter(|row| self.asked.get(&row.index).is_some_and(|asked| asked.baseline))
    }

    /// The evaluation of the greedy soup, of what it is made of so far: that of a source or of the uniform soup where it
    /// is the same.
    pub(super) fn greedy_soup(&self) -> Result<Option<&Row>, SearchError> {
        let Some(trace) = self.schedule.strategy().soup_trace().filter(|trace| !trace.members.is_empty()) else {
            return Ok(None);
        };
        let id = soup_id(&self.prepared.models, &trace.members)?;
        Ok(self.rows.values().find(|row| row.candidate_id == id && self.is_full(row)))
    }

    /// What the greedy soup tried and is not made of: no soup that anybody would take, and so no baseline.
    pub(super) fn soup_trials(&self) -> Result<BTreeSet<u64>, SearchError> {
        let soup = self.greedy_soup()?.map(|row| row.index);
        let of_greedy = self.baselines_and_trials().filter(|row| row.origin == origin::GREEDY_SOUP);
        Ok(of_greedy.map(|row| row.index).filter(|index| Some(*index) != soup).collect())
    }

    /// Soups that a winner is not compared with: what the greedy soup tried, and the soup that a run of soups alone is
    /// there to make, which may be the winner itself.
    pub(super) fn soups_apart(&self) -> Result<BTreeSet<u64>, SearchError> {
        let mut apart = self.soup_trials()?;
        if let Some(made) = soup_of(self.prepared.config.strategy.kind) {
            apart.extend(self.baselines_and_trials().filter(|row| row.origin == made).map(|row| row.index));
        }
        Ok(apart)
    }

    /// The best of base, sources, uniform and greedy soup by search score, less [`Self::soups_apart`]; the earliest among
    /// equals.
    pub(super) fn best_baseline(&self) -> Result<Option<&Row>, SearchError> {
        let apart = self.soups_apart()?;
        let ranked = self.baselines_and_trials().filter(|row| !apart.contains(&row.index)).filter_map(Row::ranked);
        Ok(ranked.min_by(Ranked::best_first).and_then(|best| self.rows.get(&best.index)))
    }

    /// Whether the evaluation was one of all samples.
    pub(super) fn is_full(&self, row: &Row) -> bool {
        self.asked.get(&row.index).is_some_and(|asked| asked.fidelity >= 1.0)
    }
}
