//! Evaluators: everything that can score a candidate. One trait, five kinds; strategies never see this room.

#[cfg(feature = "native")]
pub mod native;
pub mod types;

use std::num::NonZeroUsize;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

pub use types::*;

/// Scores candidates. Implementations own their endpoints, their retries and their checks of an answer; what they return
/// may be recorded as it is.
pub trait Evaluator: Send + Sync {
    /// `native`, `http`, ... for messages.
    fn kind(&self) -> &'static str;

    /// Everything that can change a score, hashed: part of every `evaluation_id`.
    fn fingerprint(&self) -> &str;

    /// Tasks with their metrics, sizes and what they support.
    fn capabilities(&self) -> &Capabilities;

    /// Evaluations that may run at once.
    fn concurrency(&self) -> NonZeroUsize;

    /// Whether a candidate must be materialized before [`Self::evaluate`] (false for closed-form landscapes).
    fn needs_checkpoint(&self) -> bool {
        true
    }

    /// Scores one candidate, retrying infrastructure faults inside. Cancel-safe; the same request may be sent again.
    /// Every attempt is reported to `attempts` before the next one starts.
    fn evaluate<'a>(
        &'a self,
        request: &'a EvaluationRequest,
        attempts: &'a dyn AttemptObserver,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Evaluation, EvaluateError>>;
}
