//! Stopping: no new work at first, then no waiting for what is under way.

use tokio_util::sync::CancellationToken;

use super::SearchError;

/// What people are told when a stop is first asked for.
pub(super) const STOPPING: &str = "stopping: what is being evaluated may finish; once more stops at once";

/// The two wishes a caller can have. Cancelling `now` without `soon` works as well.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Nothing new starts; what is being evaluated may finish.
    pub soon: CancellationToken,
    /// What is being evaluated is cancelled too.
    pub now: CancellationToken,
}

impl Stop {
    /// Whether the search should end, soon or at once.
    pub fn wanted(&self) -> bool {
        self.soon.is_cancelled() || self.now.is_cancelled()
    }

    /// Waits until either is wanted.
    pub async fn requested(&self) {
        tokio::select! {
            () = self.soon.cancelled() => {}
            () = self.now.cancelled() => {}
        }
    }

    /// Work that reads whole models, on a thread of its own. Who wants to stop does not wait for it.
    ///
    /// # Errors
    /// [`SearchError::Stopped`], or [`SearchError::Worker`] where the thread ended by itself.
    pub async fn unless_wanted<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SearchError> {
        tokio::select! {
            done = tokio::task::spawn_blocking(work) => done.map_err(|error| SearchError::Worker(error.to_string())),
            () = self.requested() => Err(SearchError::Stopped),
        }
    }
}
