//! Candidates that the evaluator calls broken, one after the other. A candidate's own fault is final, so an evaluator
//! that blames candidates for what is wrong with itself (a mount that went away) would spend the whole budget on the
//! worst fitness. So after several in a row a baseline that it has scored is asked again: a witness.

use super::Search;
use crate::scores::Status;
use crate::search::SearchError;
use crate::search::pipeline::Finished;

/// Blamed candidates in a row after which a witness is asked for the first time.
const IN_A_ROW: u32 = 8;

/// How many candidates have been blamed since one was scored, since this start.
#[derive(Debug)]
pub(super) struct Blame {
    in_a_row: u32,
    /// From how many on a witness is asked.
    limit: u32,
    /// Whether a witness is being asked.
    is_open: bool,
}

impl Blame {
    pub(super) fn new() -> Self {
        Self { in_a_row: 0, limit: IN_A_ROW, is_open: false }
    }

    /// Takes in how an evaluation of the search ended. What could not be merged, or was taken over from another run, says
    /// nothing of the evaluator.
    pub(super) fn take(&mut self, finished: &Finished) {
        match finished.status {
            _ if finished.attempts == 0 => {}
            Status::Scored => self.in_a_row = 0,
            Status::Infeasible => self.in_a_row = self.in_a_row.saturating_add(1),
            Status::Failed => {}
        }
    }

    /// Whether it is time for a witness.
    fn is_suspicious(&self) -> bool {
        self.in_a_row >= self.limit
    }
}

impl Search {
    /// Whether nothing more is asked for until a witness has told if the evaluator is to blame.
    pub(super) fn waits_for_witness(&self) -> bool {
        self.blame.is_open || (self.blame.is_suspicious() && self.known_baseline().is_some())
    }

    /// Asks a witness where the evaluator has blamed candidates in a row.
    pub(super) fn start_witness(&mut self) -> Result<(), SearchError> {
        let Some(index) = self.known_baseline().filter(|_| self.blame.is_suspicious() && !self.blame.is_open) else {
            return Ok(());
        };
        let work = self.rescoring().next_witness(&self.ledger.asked_at(index)?)?;
        self.pipeline.add(work);
        self.blame.is_open = true;
        Ok(())
    }

    /// Goes on where the witness was scored: the candidates are to blame. The next one is asked after twice as many, so
    /// that a space that is mostly broken costs few of them.
    ///
    /// # Errors
    /// [`SearchError::BlamesEverything`] where it was not.
    pub(super) fn finish_witness(&mut self, finished: Finished) -> Result<(), SearchError> {
        let (status, index, reason) = (finished.status, finished.index, finished.error.clone());
        self.rescoring().witness(finished)?;
        let Blame { in_a_row, limit, .. } = self.blame;
        if status == Status::Scored {
            self.blame = Blame { in_a_row: 0, limit: limit.saturating_mul(2), is_open: false };
            return Ok(());
        }
        let witness = self.rows.get(&index).map_or_else(String::new, |row| row.origin.clone());
        Err(SearchError::BlamesEverything { in_a_row, witness, reason: reason.unwrap_or_default() })
    }
}
