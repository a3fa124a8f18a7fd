//! Which of several failures on several threads is told: the same one on every run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::MergeError;
use crate::lock::{lock, unlocked};

/// The first failure of a merge in the order of the work, whichever thread fails first.
pub(super) struct Failure {
    /// Work from this ordinal on need not be done any more.
    first: AtomicU64,
    error: Mutex<Option<(u64, MergeError)>>,
}

impl Failure {
    pub(super) fn new() -> Self {
        Self { first: AtomicU64::new(u64::MAX), error: Mutex::new(None) }
    }

    /// Keeps the error, if its work comes before that of all others reported so far.
    pub(super) fn report(&self, ordinal: u64, error: MergeError) {
        let mut slot = lock(&self.error);
        if slot.as_ref().is_none_or(|(first, _)| ordinal < *first) {
            *slot = Some((ordinal, error));
            self.first.fetch_min(ordinal, Ordering::Relaxed);
        }
    }

    /// Whether work that comes before this one has failed.
    pub(super) fn precedes(&self, ordinal: u64) -> bool {
        self.first.load(Ordering::Relaxed) < ordinal
    }

    /// The first failure.
    pub(super) fn into_result(self) -> Result<(), MergeError> {
        match unlocked(self.error) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}
