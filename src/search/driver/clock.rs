//! The time that a run has been active, over all its starts.

use std::time::{Duration, Instant};

use crate::ledger::{Ledger, LedgerError, fact};

/// How often the active time is recorded: a killed process loses at most this much of it.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// Goes on from where the last start of the run had left it.
pub(super) struct Clock {
    before: Duration,
    started: Instant,
    saved: Instant,
    /// What it showed when it was stopped.
    stopped: Option<Duration>,
}

impl Clock {
    /// Starts it.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub(super) fn start(ledger: &Ledger) -> Result<Self, LedgerError> {
        let before = ledger.active_time()?.unwrap_or_default();
        let now = Instant::now();
        Ok(Self { before, started: now, saved: now, stopped: None })
    }

    pub(super) fn active(&self) -> Duration {
        self.stopped.unwrap_or_else(|| self.before + self.started.elapsed())
    }

    /// Stops it for good, at whole milliseconds: what it shows from now on is what the ledger keeps.
    pub(super) fn stop(&mut self) {
        let milliseconds = u64::try_from(self.active().as_millis()).unwrap_or(u64::MAX);
        self.stopped = Some(Duration::from_millis(milliseconds));
    }

    /// The active time in seconds, as the ledger keeps it.
    pub(super) fn text(&self) -> String {
        format!("{:.3}", self.active().as_secs_f64())
    }

    /// Records the active time.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub(super) fn save(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        ledger.set_fact(fact::ACTIVE_SECONDS, &self.text())
    }

    /// Records the active time if the last record is older than [`SAVE_EVERY`].
    pub(super) fn tick(&mut self, ledger: &Ledger) {
        if self.saved.elapsed() >= SAVE_EVERY {
            // A fault that lasts will show when there is an outcome to record; this one costs some seconds at worst.
            let _ = self.save(ledger);
            self.saved = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_clock_shows_what_the_ledger_keeps() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("ledger.sqlite")).unwrap();
        ledger.set_fact(fact::ACTIVE_SECONDS, "12.3456").unwrap();
        let mut clock = Clock::start(&ledger).unwrap();
        clock.stop();
        let stopped = clock.active();
        assert!(stopped >= Duration::from_millis(12_345), "{stopped:?}");
        std::thread::sleep(Duration::from_millis(2));
        clock.save(&ledger).unwrap();
        assert_eq!(Clock::start(&ledger).unwrap().before, stopped);
    }
}
