//! A start that continues a run: its recorded history goes through ask and tell again.

use super::assembly::outcome_of;
use super::{Asked, Search};
use crate::ledger::AskedRecord;
use crate::recipe::Recipe;
use crate::search::candidate::Candidate;
use crate::search::{LatestOutcomes, SearchError, best_record, export};

impl Search {
    /// Takes the recorded history through ask and tell again, comparing every proposal with the record.
    pub(in crate::search) fn replay(&mut self) -> Result<(), SearchError> {
        let asked = self.ledger.all_asked()?;
        // One at a time, so that those on the same samples share their ids at once.
        for record in &asked {
            if let Some(told) = self.ledger.outcome(record.index)? {
                self.schedule.finished(outcome_of(told, record.fidelity));
            }
        }
        let ended = self.schedule.outcomes().len();
        if !asked.is_empty() {
            self.progress.line(&format!(
                "continuing run {} ({} evaluations recorded, {} of them to be made again)",
                self.prepared.config.name,
                asked.len(),
                asked.len().saturating_sub(ended)
            ));
        }
        let ledger = self.ledger.clone();
        let latest = LatestOutcomes::of(&ledger)?;
        for record in &asked {
            let Some((index, _, candidate)) = self.ask()? else {
                return Err(self.mismatch(record, None));
            };
            if index != record.index || candidate.evaluation_id != record.evaluation_id {
                return Err(self.mismatch(record, Some((index, &candidate))));
            }
            // Earlier versions did not count what only a limit tells.
            let samples = if record.samples > 0 { record.samples } else { self.price(&candidate.tasks) };
            self.budget.spend(samples);
            self.asked.insert(index, Asked::from_record(record, self.parts.as_ref())?);
            match self.schedule.outcomes().get(&index) {
                Some(outcome) => {
                    // Strategies have heard that it was given up; tables and best know better.
                    let late = latest.late(index);
                    let row = self.row(late.as_ref().unwrap_or(outcome));
                    self.note(row);
                }
                None => self.begin(index, candidate)?,
            }
        }
        self.restore_best()
    }

    /// Whoever was stopped between the ledger and `best/` left an older candidate there.
    pub(super) fn restore_best(&self) -> Result<(), SearchError> {
        let Some((asked, _)) = best_record(&self.ledger)? else { return Ok(()) };
        export::write_best(self.folder.path(), &Recipe::from_toml(&asked.recipe)?, &asked.recipe)
    }

    /// `proposed`: what the history leads to now, with its index.
    fn mismatch(&self, record: &AskedRecord, proposed: Option<(u64, &Candidate)>) -> SearchError {
        let (what, recorded, proposed) = match proposed {
            None => ("candidate", record.candidate_id.clone(), "nothing".to_owned()),
            Some((index, _)) if index != record.index => ("index", record.index.to_string(), index.to_string()),
            Some((_, candidate)) if candidate.id != record.candidate_id => {
                ("candidate", record.candidate_id.clone(), candidate.id.clone())
            }
            Some((_, candidate)) => {
                let proposed = format!("{} for the same candidate, {}", candidate.evaluation_id, candidate.id);
                ("evaluation id", record.evaluation_id.clone(), proposed)
            }
        };
        let name = self.prepared.config.name.clone();
        SearchError::Replay { name, index: record.index, what, recorded, proposed }
    }
}
