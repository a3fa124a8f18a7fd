//! Who is to blame for a fault, and what the client does about it.
//!
//! A known `code` decides by the protocol's table; else the `class`.

use std::time::Duration;

use super::protocol::WireProblem;
use super::retry::wait_of_seconds;
use super::text::shortened;
use super::{Fault, FaultClass};

/// The protocol's code for a worker that died, or an evaluation that the endpoint no longer knows.
const WORKER_LOST: &str = "worker_lost";

/// What the client does about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// The candidate's own fault: worst fitness, final.
    Blame,
    /// Configuration: stop the run.
    Stop,
    /// This endpoint refuses us: do without it, stop when all do.
    Pause,
    /// Took too long: once more with twice the time.
    Timeout,
    /// Try again; counts against the attempts allowed.
    Retry,
    /// Try again later; does not count.
    Wait,
    /// Nobody listens: the endpoint needs a health check before it gets anything; does not count.
    Unreachable,
}

/// A fault with what follows from it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Judgement {
    pub fault: Fault,
    pub reaction: Reaction,
    /// How long the endpoint asks us to stay away.
    pub retry_after: Option<Duration>,
    /// The endpoint says that trying again is useless.
    pub hopeless: bool,
    /// What went away under the evaluation.
    pub loss: Option<Loss>,
}

/// What can go away under an evaluation. Workers that died may have died of the candidate; the rest says nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The worker, by the endpoint's word or for want of its heartbeat.
    Worker,
    /// The connection; whether the server behind it died is to be found out.
    Connection,
    /// The endpoint's memory of the evaluation: it restarted.
    Evaluation,
}

impl Judgement {
    pub fn new(reaction: Reaction, class: FaultClass, code: &str, detail: impl Into<String>) -> Self {
        let fault = Fault::new(class, code, detail);
        Self { fault, reaction, retry_after: None, hopeless: false, loss: None }
    }

    /// An infrastructure fault that counts.
    pub fn retry(code: &str, detail: impl Into<String>) -> Self {
        Self::new(Reaction::Retry, FaultClass::Infrastructure, code, detail)
    }

    /// An infrastructure fault that counts: something went away under the evaluation.
    pub fn lost(loss: Loss, detail: impl Into<String>) -> Self {
        let code = match loss {
            Loss::Worker | Loss::Evaluation => WORKER_LOST,
            Loss::Connection => "connection_lost",
        };
        Self { loss: Some(loss), ..Self::retry(code, detail) }
    }

    /// A fault found in a checked answer.
    pub fn of_answer(fault: Fault) -> Self {
        let reaction = if fault.class == FaultClass::Candidate { Reaction::Blame } else { Reaction::Retry };
        Self { fault, reaction, retry_after: None, hopeless: false, loss: None }
    }
}

/// The protocol's table (class and reaction of every code).
fn by_code(code: &str) -> Option<(FaultClass, Reaction)> {
    use FaultClass::{Cancelled, Candidate, Configuration, Infrastructure, Resource};
    Some(match code {
        "candidate_invalid" | "candidate_unsupported" | "candidate_nonfinite" | "candidate_degenerate" => {
            (Candidate, Reaction::Blame)
        }
        "out_of_memory" => (Resource, Reaction::Retry),
        "timeout" => (Resource, Reaction::Timeout),
        WORKER_LOST | "internal" | "materialize_failed" | "storage_full" | "weights_mismatch" => {
            (Infrastructure, Reaction::Retry)
        }
        "overloaded" | "draining" => (Infrastructure, Reaction::Wait),
        "unknown_task"
        | "task_failed"
        | "invalid_request"
        | "protocol_unsupported"
        | "fingerprint_mismatch"
        | "payload_too_large"
        | "idempotency_key_reused"
        | "not_found" => (Configuration, Reaction::Stop),
        "unauthorized" | "forbidden" => (Configuration, Reaction::Pause),
        "cancelled" => (Cancelled, Reaction::Wait),
        _ => return None,
    })
}

fn by_class(class: &str) -> Option<(FaultClass, Reaction)> {
    Some(match class {
        "candidate" => (FaultClass::Candidate, Reaction::Blame),
        "resource" => (FaultClass::Resource, Reaction::Retry),
        "infrastructure" => (FaultClass::Infrastructure, Reaction::Retry),
        "configuration" => (FaultClass::Configuration, Reaction::Stop),
        "cancelled" => (FaultClass::Cancelled, Reaction::Wait),
        _ => return None,
    })
}

/// The judgement on a problem document that an evaluation ended with.
pub(super) fn of_problem(problem: &WireProblem) -> Judgement {
    of_known_problem(problem).unwrap_or_else(|| {
        Judgement::retry("internal", format!("the evaluation failed without a known code or class: {}", text(problem)))
    })
}

/// `None`: neither its code nor its class is known.
pub(super) fn of_known_problem(problem: &WireProblem) -> Option<Judgement> {
    let code = problem.code.as_deref().unwrap_or_default();
    let class = problem.class.as_deref().unwrap_or_default();
    let (class, reaction) = by_code(code).or_else(|| by_class(class))?;
    let code = if code.is_empty() { "unnamed".to_owned() } else { shortened(code) };
    let mut judgement = Judgement::new(reaction, class, &code, text(problem));
    judgement.loss = (code == WORKER_LOST).then_some(Loss::Worker);
    if problem.attempt_counts == Some(false) && reaction == Reaction::Retry {
        judgement.reaction = Reaction::Wait;
    }
    judgement.hopeless = problem.retryable == Some(false) && matches!(reaction, Reaction::Retry | Reaction::Timeout);
    judgement.retry_after = problem.retry_after_s.and_then(wait_of_seconds);
    Some(judgement)
}

fn text(problem: &WireProblem) -> String {
    let text = problem.detail.as_deref().or(problem.title.as_deref()).unwrap_or("no detail given");
    shortened(text)
}
