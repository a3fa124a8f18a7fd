//! Who holds the lock of a run, and whether the latest start on record is its own.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::ledger::{EventRecord, time_text};
use crate::search::RunFolder;

/// How far the clock of a file server may be ahead of the process that locks a run there.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// The process that holds a run's lock.
pub(super) struct Holder {
    /// Its number; empty where it cannot be read.
    process: String,
    /// When it took the lock.
    since: SystemTime,
}

impl Holder {
    /// `None`: nobody holds it.
    pub(super) fn of(results: &Path) -> Option<Self> {
        if !RunFolder::is_locked(results) {
            return None;
        }
        Some(Self {
            process: RunFolder::owner(results).unwrap_or_default(),
            since: RunFolder::held_since(results).unwrap_or(SystemTime::UNIX_EPOCH),
        })
    }

    /// Whether it is the process that recorded this start. While it prepares, the latest start on record is that of
    /// another one, which may have been killed.
    pub(super) fn has_recorded(&self, start: &EventRecord) -> bool {
        match start.payload["process"].as_u64().filter(|_| !self.process.is_empty()) {
            // The first process of every container has the same number, so that the number alone does not tell.
            Some(process) => process.to_string() == self.process && self.held_at(&start.at, CLOCK_SLACK),
            // Earlier versions did not record the number.
            None => self.held_at(&start.at, Duration::ZERO),
        }
    }

    /// Whether it held the lock then, or took it not longer than `slack` after that.
    fn held_at(&self, time: &str, slack: Duration) -> bool {
        let since = self.since.checked_sub(slack).unwrap_or(SystemTime::UNIX_EPOCH);
        // Times are written so that later ones are greater as texts.
        time_text(since).as_str() <= time
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::ledger::event;

    #[test]
    fn a_start_is_that_of_the_process_that_holds_the_lock() {
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let has_recorded = |holder: &str, seconds: u64, payload: Value| {
            let at = time_text(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            let start = EventRecord { sequence: 1, at, kind: event::STARTED.into(), index: None, payload };
            Holder { process: holder.into(), since }.has_recorded(&start)
        };
        let (earlier, just_before, later) = (1_699_999_000, 1_700_000_000, 1_700_000_001);
        let by = |process: u32| json!({ "process": process });
        assert!(has_recorded("17", later, by(17)));
        assert!(has_recorded("17", just_before, by(17)), "by the clock of a file server");
        assert!(!has_recorded("18", later, by(17)));
        assert!(!has_recorded("17", earlier, by(17)), "the same number in another container");
        for (holder, payload) in [("17", json!({})), ("", by(17))] {
            assert!(has_recorded(holder, later, payload.clone()), "{payload}");
            assert!(!has_recorded(holder, just_before, payload.clone()), "{payload}");
        }
    }

    #[test]
    fn nobody_holds_a_lock_that_is_free() {
        let results = tempfile::tempdir().unwrap();
        assert!(Holder::of(&results.path().join("run")).is_none());
        let folder = RunFolder::lock(results.path(), "run").unwrap();
        assert_eq!(Holder::of(folder.path()).unwrap().process, std::process::id().to_string());
        std::fs::write(folder.ledger(), "").unwrap();
        drop(folder);
        assert!(Holder::of(&results.path().join("run")).is_none());
    }
}
