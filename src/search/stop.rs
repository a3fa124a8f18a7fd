//! Stopping in three steps: no new work, no more waiting, at once.

use tokio_util::sync::CancellationToken;

/// The two wishes a caller can have. Cancelling `now` without `soon` works as well.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Nothing new starts; what is being evaluated may finish.
    pub soon: CancellationToken,
    /// What is being evaluated is cancelled too.
    pub now: CancellationToken,
}

impl Stop {
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
}
