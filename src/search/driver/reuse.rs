//! Scores that another run paid for.

use std::collections::HashMap;
use std::sync::Arc;

use super::Search;
use super::assembly::outcome_of;
use crate::ledger::{Ledger, ToldRecord};
use crate::scores::Status;
use crate::search::SearchError;
use crate::search::candidate::Candidate;
use crate::search::pipeline::{Finished, Work, WorkKind};
use crate::search::report::RunOptions;
use crate::strategy::Outcome;

/// The evaluations of another run that were not given up. Their scores stay on disk until they are wanted.
pub(super) struct Reusable {
    ledger: Ledger,
    /// Index by evaluation id.
    evaluations: HashMap<String, u64>,
}

impl Reusable {
    fn new(ledger: Ledger) -> Result<Self, SearchError> {
        let told = ledger.all_told_in_short()?;
        let usable = |index: &u64| told.get(index).is_some_and(|record| record.status != Status::Failed);
        let asked = ledger.all_asked()?.into_iter().filter(|asked| usable(&asked.index));
        let evaluations = asked.map(|asked| (asked.evaluation_id, asked.index)).collect();
        Ok(Self { ledger, evaluations })
    }

    fn take(&mut self, evaluation_id: &str) -> Result<Option<ToldRecord>, SearchError> {
        match self.evaluations.remove(evaluation_id) {
            Some(index) => Ok(self.ledger.outcome(index)?),
            None => Ok(None),
        }
    }
}

impl Search {
    pub(in crate::search) fn load_reusable(&mut self, options: &RunOptions) -> Result<(), SearchError> {
        let Some(path) = options.reuse.as_ref().filter(|path| path.is_file()) else { return Ok(()) };
        self.reusable = Some(Reusable::new(Ledger::open_for_reading(path)?)?);
        Ok(())
    }

    /// Takes a score that is there already, or puts the evaluation on its way.
    pub(super) fn begin(&mut self, index: u64, candidate: Candidate) -> Result<(), SearchError> {
        let known = self.reusable.as_mut().map(|known| known.take(&candidate.evaluation_id)).transpose()?.flatten();
        match known {
            Some(record) => self.take_over(index, candidate, record),
            None => {
                self.pipeline.add(Work { index, candidate: Arc::new(candidate), kind: WorkKind::Search });
                Ok(())
            }
        }
    }

    fn take_over(&mut self, index: u64, candidate: Candidate, record: ToldRecord) -> Result<(), SearchError> {
        let (error, started_at) = (record.error.clone(), record.started_at.clone());
        let (materialize_s, evaluate_s) = (record.materialize_s, record.evaluate_s);
        let Outcome { status, tasks, .. } = outcome_of(record, self.fidelity(index));
        self.finish(Finished {
            index,
            kind: WorkKind::Search,
            candidate: Arc::new(candidate),
            status,
            tasks,
            error,
            materialize_s,
            evaluate_s,
            started_at,
            attempts: 0,
        })
    }
}
