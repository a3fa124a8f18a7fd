//! Which evaluation of a run is the best, and which of its baselines.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::SearchError;
use super::candidate::is_baseline;
use super::outcomes::LatestOutcomes;
use crate::ledger::{AskedRecord, Ledger, ToldRecord, fact};

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
        let by_objective = other.objective.partial_cmp(&self.objective).unwrap_or(Ordering::Equal);
        by_objective.then(self.index.cmp(&other.index))
    }
}

/// Notes which of the finalists was the best when `evaluations` had been made.
pub(super) fn note_winner(ledger: &Ledger, index: u64, evaluations: usize) -> Result<(), SearchError> {
    Ok(ledger.set_fact(fact::WINNER, &serde_json::json!({ "index": index, "evaluations": evaluations }).to_string())?)
}

/// The winner, unless the search has gone on since.
fn noted_winner(ledger: &Ledger, evaluations: usize) -> Result<Option<u64>, SearchError> {
    let Some(fact) = ledger.fact(fact::WINNER)? else { return Ok(None) };
    let fact: serde_json::Value = serde_json::from_str(&fact).unwrap_or_default();
    Ok(fact["index"].as_u64().filter(|_| fact["evaluations"].as_u64() == Some(evaluations as u64)))
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

/// The baseline (base, source or soup) with the highest score so far, the earliest among equals. Soups that the greedy
/// soup tried and left are among them: none of them scored higher than the soup that it came to. The outcome is without
/// its scores by task.
///
/// # Errors
/// Those of reading the ledger; [`SearchError::BadData`] where a record cannot be told from one of a baseline.
pub fn best_baseline(ledger: &Ledger) -> Result<Option<(AskedRecord, ToldRecord)>, SearchError> {
    // In this order: a search that is running asks before it is told.
    let mut told = LatestOutcomes::of(ledger)?.in_short()?;
    let mut baselines = Vec::new();
    for asked in ledger.all_asked()? {
        if is_baseline(&asked)? {
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
