//! When an evaluation has to end early.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::fault;
use crate::evaluate::Fault;

/// Asked between batches and between decoding steps.
pub(super) struct Deadline {
    cancel: CancellationToken,
    begun: Instant,
    limit: Duration,
}

impl Deadline {
    pub(super) fn new(cancel: CancellationToken, limit: Duration) -> Self {
        Self { cancel, begun: Instant::now(), limit }
    }

    /// # Errors
    /// A cancellation, or a timeout once the limit has passed.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.cancel.is_cancelled() {
            return Err(fault::cancelled());
        }
        if self.begun.elapsed() > self.limit {
            return Err(fault::timeout(format!(
                "not finished after {:.1} s; allow more with `timeout` in [evaluator]",
                self.limit.as_secs_f64()
            )));
        }
        Ok(())
    }
}
