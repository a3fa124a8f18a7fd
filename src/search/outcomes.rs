//! Outcomes as they are known now: that of a baseline which the search gave up may have come later.

use std::collections::BTreeMap;

use super::SearchError;
use crate::ledger::{Ledger, RepeatPurpose, RepeatRecord, ToldRecord};
use crate::strategy::Outcome;

/// The latest outcome of each evaluation. A baseline that the search gave up may have been scored later: that outcome
/// then takes the place of the first one.
pub struct LatestOutcomes<'a> {
    ledger: &'a Ledger,
    /// Later outcomes of baselines that the search gave up, by index of the evaluation.
    late: BTreeMap<u64, RepeatRecord>,
}

impl<'a> LatestOutcomes<'a> {
    /// Reads which baselines were given up at first and scored later.
    ///
    /// # Errors
    /// Those of reading the ledger.
    pub fn of(ledger: &'a Ledger) -> Result<Self, SearchError> {
        let late = ledger.repeats_for(RepeatPurpose::Baseline)?.into_iter();
        Ok(Self { ledger, late: late.map(|repeat| (repeat.index, repeat)).collect() })
    }

    /// All outcomes by index, without their scores by task.
    ///
    /// # Errors
    /// Those of reading the ledger.
    pub fn in_short(&self) -> Result<BTreeMap<u64, ToldRecord>, SearchError> {
        let mut told = self.ledger.all_told_in_short()?;
        for (index, late) in &self.late {
            if let Some(record) = told.get_mut(index) {
                replace(record, late);
                record.tasks.clear();
            }
        }
        Ok(told)
    }

    /// The outcome of one evaluation, with its scores.
    ///
    /// # Errors
    /// Those of reading the ledger.
    pub fn outcome(&self, index: u64) -> Result<Option<ToldRecord>, SearchError> {
        let mut record = self.ledger.outcome(index)?;
        if let (Some(record), Some(late)) = (&mut record, self.late.get(&index)) {
            replace(record, late);
        }
        Ok(record)
    }

    /// The later outcome of a baseline that the search gave up; `None`: the evaluation was not given up, or it has no
    /// later outcome. Baselines are scored in full.
    pub fn late(&self, index: u64) -> Option<Outcome> {
        let RepeatRecord { index, status, objective, tasks, .. } = self.late.get(&index)?;
        Some(Outcome { index: *index, status: *status, objective: *objective, tasks: tasks.clone(), fidelity: 1.0 })
    }

    /// Whether a baseline that the search gave up has a later outcome.
    pub fn has_late(&self, index: u64) -> bool {
        self.late.contains_key(&index)
    }
}

/// Puts a later outcome in the place of the first one.
fn replace(record: &mut ToldRecord, late: &RepeatRecord) {
    record.n_samples = late.tasks.values().map(|scores| scores.n).sum();
    record.status = late.status;
    record.objective = late.objective;
    record.tasks.clone_from(&late.tasks);
    record.error.clone_from(&late.error);
}
