//! Which evaluation of a run is the best, and which of its baselines.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SearchError;
use super::candidate::is_baseline;
use super::facts::json_fact;
use super::outcomes::LatestOutcomes;
use crate::config::StrategyKind;
use crate::ledger::{AskedRecord, Ledger, ToldRecord, fact};
use crate::score::best_first;
use crate::strategy::origin;

/// A scored evaluation, to be ranked among others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ranked {
    /// The evaluation's objective: higher is better.
    pub objective: f64,
    /// The evaluation's index.
    pub index: u64,
}

impl Ranked {
    /// Orders the better evaluation first: the one with the higher objective, and of equal ones the earlier.
    pub fn best_first(&self, other: &Self) -> Ordering {
        best_first(self.objective, other.objective).then(self.index.cmp(&other.index))
    }
}

/// Which of the finalists was the best when so many evaluations had been made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct NotedWinner {
    index: u64,
    evaluations: usize,
}

/// Notes which of the finalists was the best when `evaluations` had been made.
pub(super) fn note_winner(ledger: &Ledger, index: u64, evaluations: usize) -> Result<(), SearchError> {
    let noted = NotedWinner { index, evaluations };
    Ok(ledger.set_fact(fact::WINNER, &serde_json::json!(noted).to_string())?)
}

/// The winner, unless the search has gone on since.
fn noted_winner(ledger: &Ledger, evaluations: usize) -> Result<Option<u64>, SearchError> {
    let noted: Option<NotedWinner> = json_fact(ledger, fact::WINNER)?;
    Ok(noted.filter(|noted| noted.evaluations == evaluations).map(|noted| noted.index))
}

/// The winner of a finished search; else the best scored evaluation at full fidelity so far, the earliest among equals.
/// The outcome is without its scores by task.
///
/// # Errors
/// Those of reading the ledger.
pub fn best_record(ledger: &Ledger) -> Result<Option<(AskedRecord, ToldRecord)>, SearchError> {
    let mut told = LatestOutcomes::of(ledger)?.in_short()?;
    let all = ledger.all_asked()?;
    let best = match noted_winner(ledger, told.len())? {
        Some(index) => Some(ledger.asked_at(index)?),
        None => best_of(all.iter().filter(|asked| asked.fidelity >= 1.0), &told).cloned(),
    };
    let best = best.map(|asked| by_its_proposer(asked, &all));
    Ok(best.and_then(|asked| told.remove(&asked.index).map(|outcome| (asked, outcome))))
}

/// The origin of the soup that a strategy is there to make, in a run of soups alone: it is what the run finds, and no
/// baseline.
pub(super) fn soup_of(strategy: StrategyKind) -> Option<&'static str> {
    match strategy {
        StrategyKind::GreedySoup => Some(origin::GREEDY_SOUP),
        StrategyKind::UniformSoup => Some(origin::UNIFORM_SOUP),
        _ => None,
    }
}

/// The strategy of a recorded run; `None`: nothing is recorded yet.
fn recorded_strategy(ledger: &Ledger) -> Result<Option<StrategyKind>, SearchError> {
    let identity: Option<serde_json::Value> = json_fact(ledger, fact::IDENTITY)?;
    Ok(identity.and_then(|identity| StrategyKind::of_name(identity["strategy"]["kind"].as_str()?)))
}

/// The baseline (base, source or soup) with the highest score so far, the earliest among equals. Soups that the greedy
/// soup tried and left are among them: none of them scored higher than the soup that it came to. What a run of soups
/// alone is there to make is not. The outcome is without its scores by task.
///
/// # Errors
/// Those of reading the ledger; [`SearchError::BadData`] where a record cannot be told from one of a baseline.
pub fn best_baseline(ledger: &Ledger) -> Result<Option<(AskedRecord, ToldRecord)>, SearchError> {
    // In this order: a search that is running asks before it is told.
    let mut told = LatestOutcomes::of(ledger)?.in_short()?;
    let made = recorded_strategy(ledger)?.and_then(soup_of);
    let mut baselines = Vec::new();
    for asked in ledger.all_asked()? {
        if Some(asked.origin.as_str()) != made && is_baseline(&asked)? {
            baselines.push(asked);
        }
    }
    let best = best_of(baselines.iter(), &told).cloned();
    Ok(best.and_then(|asked| told.remove(&asked.index).map(|outcome| (asked, outcome))))
}

/// The best of these evaluations; those without a score are passed over.
fn best_of<'a>(
    evaluations: impl Iterator<Item = &'a AskedRecord>,
    told: &BTreeMap<u64, ToldRecord>,
) -> Option<&'a AskedRecord> {
    let ranked = |asked: &'a AskedRecord| {
        let objective = told.get(&asked.index)?.objective?;
        Some((Ranked { objective, index: asked.index }, asked))
    };
    let best = evaluations.filter_map(ranked).min_by(|(first, _), (second, _)| first.best_first(second));
    best.map(|(_, asked)| asked)
}

/// An evaluation with the origin of its candidate's first one: a promotion only gave it more samples.
pub(super) fn by_its_proposer(mut asked: AskedRecord, all: &[AskedRecord]) -> AskedRecord {
    if let Some(first) = all.iter().find(|other| other.candidate_id == asked.candidate_id) {
        asked.origin.clone_from(&first.origin);
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_higher_objective_is_better_and_of_equal_ones_the_earlier() {
        let ranked = |objective, index| Ranked { objective, index };
        let mut evaluations = [ranked(0.5, 1), ranked(0.75, 3), ranked(-1.0, 0), ranked(0.75, 2)];
        evaluations.sort_by(Ranked::best_first);
        assert_eq!(evaluations.map(|evaluation| evaluation.index), [2, 3, 1, 0]);
    }
}
