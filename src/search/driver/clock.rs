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
}

impl Clock {
    /// Starts it.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub(super) fn start(ledger: &Ledger) -> Result<Self, LedgerError> {
        let before = ledger.fact(fact::ACTIVE_SECONDS)?.and_then(|text| text.parse().ok()).unwrap_or(0.0);
        let now = Instant::now();
        Ok(Self { before: Duration::try_from_secs_f64(before).unwrap_or_default(), started: now, saved: now })
    }

    pub(super) fn active(&self) -> Duration {
        self.before + self.started.elapsed()
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
