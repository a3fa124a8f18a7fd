//! What a running search is at.

use std::collections::BTreeSet;

use crate::ledger::{Ledger, LedgerError, PhaseRecord, RepeatPurpose, VerdictPhase, event};

/// Between its first evaluation and its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The search itself.
    Search,
    /// What comes between the search and its verdict, with how much of it is done.
    Verdict { phase: VerdictPhase, done: usize, total: usize },
}

impl Phase {
    /// What the start recorded as the event of that number is at. Ledgers of earlier versions do not tell what came after
    /// the search.
    pub(super) fn of(ledger: &Ledger, start: i64) -> Result<Self, LedgerError> {
        let latest = ledger.events(event::PHASE)?.pop().filter(|event| event.sequence > start);
        match latest.and_then(|event| serde_json::from_value::<PhaseRecord>(event.payload).ok()) {
            Some(record) => {
                let (done, total) = progress(&record, &scored_in(ledger, record.phase)?);
                Ok(Self::Verdict { phase: record.phase, done, total })
            }
            None => Ok(Self::Search),
        }
    }

    /// The word for programs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::Verdict { phase: VerdictPhase::Holdout, .. } => "holdout",
            Self::Verdict { .. } => "rescoring",
        }
    }

    /// How many of how many scorings are done, where that is known.
    pub(super) fn counts(self) -> Option<(usize, usize)> {
        match self {
            Self::Verdict { done, total, .. } if total > 0 => Some((done, total)),
            _ => None,
        }
    }

    /// The state of a run, for people.
    pub(super) fn state(self) -> String {
        let what = match self {
            Self::Search => return "running".to_owned(),
            Self::Verdict { phase, .. } => match phase {
                VerdictPhase::Baselines => "scoring baselines that were given up",
                VerdictPhase::Finalists => "scoring finalists again",
                VerdictPhase::Sentinel => "scoring the sentinel again",
                VerdictPhase::Holdout => "hold-out",
            },
        };
        let counts = self.counts().map(|(done, total)| format!(", {done} of {total}"));
        format!("running: {what}{}", counts.unwrap_or_default())
    }
}

/// The candidates that have their scores of a phase, from earlier starts too.
fn scored_in(ledger: &Ledger, phase: VerdictPhase) -> Result<BTreeSet<String>, LedgerError> {
    let repeated = |purpose| -> Result<BTreeSet<String>, LedgerError> {
        Ok(ledger.repeats_for(purpose)?.into_iter().map(|repeat| repeat.candidate_id).collect())
    };
    match phase {
        VerdictPhase::Baselines => repeated(RepeatPurpose::Baseline),
        VerdictPhase::Finalists => repeated(RepeatPurpose::Finalist),
        VerdictPhase::Sentinel => Ok(BTreeSet::new()),
        VerdictPhase::Holdout => Ok(ledger.all_holdout()?.into_values().map(|record| record.candidate_id).collect()),
    }
}

/// How many of how many scorings are done. Rivals count once the others are done, or some of them are.
fn progress(record: &PhaseRecord, scored: &BTreeSet<String>) -> (usize, usize) {
    let done_of = |candidates: &[String]| candidates.iter().filter(|candidate| scored.contains(*candidate)).count();
    let (first, rivals) = (done_of(&record.candidates), done_of(&record.rivals));
    let is_at_rivals = rivals > 0 || first == record.candidates.len();
    let total = record.candidates.len() + if is_at_rivals { record.rivals.len() } else { 0 };
    (first + rivals, total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{HoldoutRecord, now};
    use crate::scores::Status;

    #[test]
    fn rivals_count_once_the_others_are_done() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
        let record = PhaseRecord {
            phase: VerdictPhase::Holdout,
            candidates: names(&["a", "b", "c"]),
            rivals: names(&["d", "e"]),
        };
        let after = |scored: &[&str]| progress(&record, &names(scored).into_iter().collect());
        assert_eq!(after(&[]), (0, 3));
        assert_eq!(after(&["a", "c", "x"]), (2, 3));
        assert_eq!(after(&["a", "b", "c"]), (3, 5));
        // One of the first was given up.
        assert_eq!(after(&["a", "b", "d"]), (3, 5));
    }

    #[test]
    fn only_what_the_latest_start_went_over_to_counts() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("ledger.sqlite")).unwrap();
        let start = || {
            ledger.event(event::STARTED, None, &serde_json::json!({})).unwrap();
            ledger.events(event::STARTED).unwrap().pop().unwrap().sequence
        };
        let first = start();
        assert_eq!(Phase::of(&ledger, first).unwrap(), Phase::Search);
        let payload = serde_json::json!({ "phase": "holdout", "candidates": ["a", "b"] });
        ledger.event(event::PHASE, None, &payload).unwrap();
        let scored = HoldoutRecord {
            evaluation_id: "ev_1".into(),
            candidate_id: "b".into(),
            status: Status::Scored,
            tasks: Default::default(),
            error: None,
            finished_at: now(),
        };
        ledger.holdout(&scored).unwrap();
        let phase = Phase::of(&ledger, first).unwrap();
        assert_eq!((phase.name(), phase.counts()), ("holdout", Some((1, 2))));
        assert_eq!(phase.state(), "running: hold-out, 1 of 2");
        assert_eq!(Phase::of(&ledger, start()).unwrap(), Phase::Search);
        // A later version may know other phases.
        ledger.event(event::PHASE, None, &serde_json::json!({ "phase": "rest", "candidates": [] })).unwrap();
        assert_eq!(Phase::of(&ledger, first).unwrap(), Phase::Search);
    }
}
