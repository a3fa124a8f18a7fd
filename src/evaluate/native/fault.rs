//! Faults of the native evaluator, by who is to blame.

use crate::evaluate::{Fault, FaultClass};

/// The candidate's own fault: a header, a tensor or a shape that is wrong.
pub(super) fn invalid(detail: impl Into<String>) -> Fault {
    Fault::new(FaultClass::Candidate, "candidate_invalid", detail)
}

/// Weights or logits that are not finite.
pub(super) fn nonfinite(detail: impl Into<String>) -> Fault {
    Fault::new(FaultClass::Candidate, "candidate_nonfinite", detail)
}

/// A file that is there (or should be) and could not be read.
pub(super) fn unreadable(detail: impl Into<String>) -> Fault {
    Fault::new(FaultClass::Infrastructure, "candidate_unreadable", detail)
}

/// A bug, ours or a library's.
pub(super) fn internal(detail: impl Into<String>) -> Fault {
    Fault::new(FaultClass::Infrastructure, "internal", detail)
}

/// The system gives no thread to score with.
pub(super) fn no_thread(error: impl std::fmt::Display) -> Fault {
    let detail = format!(
        "no thread to score with: {error}; lower `evaluator.threads`, or raise this machine's limit on threads (ulimit -u)"
    );
    Fault::new(FaultClass::Infrastructure, "no_thread", detail)
}

/// The evaluation outlasted its time.
pub(super) fn timeout(detail: impl Into<String>) -> Fault {
    Fault::new(FaultClass::Resource, "timeout", detail)
}

/// The caller asked to stop.
pub(super) fn cancelled() -> Fault {
    Fault::new(FaultClass::Cancelled, "cancelled", "the evaluation was cancelled")
}

/// A tensor operation that the library refused. Shapes are checked at loading, so this is a bug.
pub(super) fn tensor(error: candle_core::Error) -> Fault {
    internal(format!("a tensor operation failed: {error}"))
}
