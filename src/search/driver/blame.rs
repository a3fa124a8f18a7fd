//! Candidates that the evaluator calls broken, one after the other. A candidate's own fault is final, so an evaluator
//! that blames candidates for what is wrong with itself (a mount that went away) would spend the whole budget on the
//! worst fitness. So after several in a row a baseline that it has scored is asked again: a witness.

use crate::scores::Status;
use crate::search::pipeline::{Finished, WorkKind};

/// Blamed candidates in a row after which a witness is asked for the first time.
const IN_A_ROW: u32 = 8;

/// How many candidates have been blamed since one was scored.
#[derive(Debug)]
pub(super) struct Blame {
    in_a_row: u32,
    /// From how many on a witness is asked.
    limit: u32,
}

impl Blame {
    pub(super) fn new() -> Self {
        Self { in_a_row: 0, limit: IN_A_ROW }
    }

    /// Takes in how an evaluation of the search ended. What could not be merged says nothing of the evaluator.
    pub(super) fn take(&mut self, finished: &Finished) {
        match finished.status {
            _ if finished.kind != WorkKind::Search => {}
            Status::Scored => self.in_a_row = 0,
            Status::Infeasible if finished.evaluate_s.is_some() => self.in_a_row = self.in_a_row.saturating_add(1),
            Status::Infeasible | Status::Failed => {}
        }
    }

    /// Whether it is time for a witness.
    pub(super) fn is_suspicious(&self) -> bool {
        self.in_a_row >= self.limit
    }

    /// How many there are in a row.
    pub(super) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// The witness was scored: the candidates are to blame. The next witness is asked after twice as many, so that a space
    /// that is mostly broken costs few of them.
    pub(super) fn allay(&mut self) {
        *self = Self { in_a_row: 0, limit: self.limit.saturating_mul(2) };
    }
}
