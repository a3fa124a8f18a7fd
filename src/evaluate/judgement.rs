//! Who is to blame: every way in which an endpoint can say no, mapped to what the client does about it.
//!
//! A known `code` decides by the protocol's table; else the `class`; else the HTTP status. Bodies that are not the
//! protocol's (OpenAI's error object, SGLang's flat one, FastAPI's `detail`, plain text, HTML) only lend their text.

use std::time::Duration;

use serde_json::Value;

use super::client::Answer;
use super::protocol::WireProblem;
use super::retry::wait_of_seconds;
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

/// What a status says when the body says nothing. The candidate is never blamed by a bare status.
fn by_status(status: u16) -> (&'static str, FaultClass, Reaction) {
    use FaultClass::{Configuration, Infrastructure};
    match status {
        401 => ("unauthorized", Configuration, Reaction::Pause),
        403 => ("forbidden", Configuration, Reaction::Pause),
        412 => ("fingerprint_mismatch", Configuration, Reaction::Stop),
        413 => ("payload_too_large", Configuration, Reaction::Stop),
        // 409: the same evaluation is still running there. 425: too early.
        409 | 425 | 429 | 503 => ("overloaded", Infrastructure, Reaction::Wait),
        // A path that answered the handshake and is gone now, or a method that was fine: a proxy is in between.
        404 | 405 | 408 | 421 => ("unexpected_status", Infrastructure, Reaction::Retry),
        400..=499 => ("invalid_request", Configuration, Reaction::Stop),
        300..=399 => ("redirected", Infrastructure, Reaction::Retry),
        _ => ("internal", Infrastructure, Reaction::Retry),
    }
}

/// The judgement on an error answer.
pub(super) fn of_error_answer(answer: &Answer) -> Judgement {
    let (code, class, reaction) = by_status(answer.status);
    let guess = |text| Judgement::new(reaction, class, code, describe(answer, text));
    let (mut judgement, is_guess) = match serde_json::from_slice::<Value>(&answer.body) {
        Ok(Value::Object(body)) => {
            let problem = serde_json::from_value::<WireProblem>(Value::Object(body.clone())).ok();
            match problem.and_then(|problem| of_known_problem(&problem)) {
                Some(judgement) => (judgement, false),
                None => (guess(message_of(&Value::Object(body))), true),
            }
        }
        _ => (guess(text_of(answer)), true),
    };
    if let Some(wait) = answer.retry_after {
        judgement.retry_after = Some(wait);
    }
    match answer.should_retry {
        Some(false) if matches!(judgement.reaction, Reaction::Retry | Reaction::Timeout) => judgement.hopeless = true,
        // Only a guess from the status is overruled; a code or class of the protocol is not.
        Some(true) if is_guess && judgement.reaction == Reaction::Stop => {
            judgement = Judgement { reaction: Reaction::Retry, ..judgement };
            judgement.fault.class = FaultClass::Infrastructure;
        }
        _ => {}
    }
    judgement
}

/// The judgement on a problem document that an evaluation ended with.
pub(super) fn of_problem(problem: &WireProblem) -> Judgement {
    of_known_problem(problem).unwrap_or_else(|| {
        Judgement::retry("internal", format!("the evaluation failed without a known code or class: {}", text(problem)))
    })
}

fn of_known_problem(problem: &WireProblem) -> Option<Judgement> {
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

/// The text of an error object in one of the shapes that servers use.
fn message_of(body: &Value) -> Option<String> {
    let inside = body.get("error").unwrap_or(body);
    for field in ["message", "detail", "title", "error"] {
        match inside.get(field) {
            Some(Value::String(text)) => return Some(shortened(text)),
            Some(other @ (Value::Array(_) | Value::Object(_))) => return Some(shortened(&other.to_string())),
            _ => {}
        }
    }
    inside.as_str().map(shortened)
}

fn text_of(answer: &Answer) -> Option<String> {
    let text = String::from_utf8_lossy(&answer.body);
    let text = text.trim();
    (!text.is_empty()).then(|| shortened(text))
}

fn describe(answer: &Answer, text: Option<String>) -> String {
    let text = text.map(|text| format!(": {text}")).unwrap_or_default();
    let location = answer.location.as_deref().filter(|_| (300..400).contains(&answer.status));
    match location {
        Some(to) => {
            format!("HTTP {} to {}; redirects are not followed, name the target itself", answer.status, shortened(to))
        }
        None => format!("HTTP {}{text}", answer.status),
    }
}

/// At most 400 characters on one line, without control characters: it goes to terminals, tables and reports.
pub(super) fn shortened(text: &str) -> String {
    const MOST: usize = 400;
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST + 1).collect();
    match clean.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &clean[..end]),
        None => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, body: body.as_bytes().to_vec(), ..Answer::default() }
    }

    fn judgement(status: u16, body: &str) -> (FaultClass, Reaction, String) {
        let judgement = of_error_answer(&answer(status, body));
        (judgement.fault.class, judgement.reaction, judgement.fault.code)
    }

    #[test]
    fn every_code_of_the_protocol_follows_the_table() {
        use FaultClass::{Cancelled, Candidate, Configuration, Infrastructure, Resource};
        let table = [
            ("candidate_invalid", Candidate, Reaction::Blame),
            ("candidate_unsupported", Candidate, Reaction::Blame),
            ("candidate_nonfinite", Candidate, Reaction::Blame),
            ("candidate_degenerate", Candidate, Reaction::Blame),
            ("out_of_memory", Resource, Reaction::Retry),
            ("timeout", Resource, Reaction::Timeout),
            ("worker_lost", Infrastructure, Reaction::Retry),
            ("internal", Infrastructure, Reaction::Retry),
            ("materialize_failed", Infrastructure, Reaction::Retry),
            ("storage_full", Infrastructure, Reaction::Retry),
            ("weights_mismatch", Infrastructure, Reaction::Retry),
            ("overloaded", Infrastructure, Reaction::Wait),
            ("draining", Infrastructure, Reaction::Wait),
            ("unknown_task", Configuration, Reaction::Stop),
            ("task_failed", Configuration, Reaction::Stop),
            ("invalid_request", Configuration, Reaction::Stop),
            ("protocol_unsupported", Configuration, Reaction::Stop),
            ("fingerprint_mismatch", Configuration, Reaction::Stop),
            ("payload_too_large", Configuration, Reaction::Stop),
            ("unauthorized", Configuration, Reaction::Pause),
            ("forbidden", Configuration, Reaction::Pause),
            ("idempotency_key_reused", Configuration, Reaction::Stop),
            ("cancelled", Cancelled, Reaction::Wait),
        ];
        for (code, class, reaction) in table {
            // The code decides, whatever status it travels under and whatever class it claims.
            let body = format!(r#"{{"code": "{code}", "class": "candidate", "status": 500, "detail": "x"}}"#);
            assert_eq!(judgement(500, &body), (class, reaction, code.to_owned()));
        }
    }

    #[test]
    fn a_class_decides_where_the_code_is_new() {
        let body = r#"{"code": "too_ugly", "class": "candidate", "detail": "x"}"#;
        assert_eq!(judgement(500, body), (FaultClass::Candidate, Reaction::Blame, "too_ugly".into()));
        let body = r#"{"code": "gpu_fell_off", "class": "infrastructure", "attempt_counts": false}"#;
        assert_eq!(judgement(400, body).1, Reaction::Wait);
    }

    #[test]
    fn foreign_bodies_are_mapped_by_status_and_keep_their_text() {
        let cases = [
            (
                500,
                r#"{"error": {"message": "CUDA error", "type": "server_error", "code": 500}}"#,
                Reaction::Retry,
                "CUDA error",
            ),
            (
                400,
                r#"{"object": "error", "message": "bad field", "type": "BadRequest", "code": 400}"#,
                Reaction::Stop,
                "bad field",
            ),
            (
                422,
                r#"{"detail": [{"loc": ["body", "tasks"], "msg": "field required"}]}"#,
                Reaction::Stop,
                "field required",
            ),
            (503, r#"{"detail": "warming up"}"#, Reaction::Wait, "warming up"),
            (500, r#"{"error": "boom"}"#, Reaction::Retry, "boom"),
            (500, "Internal Server Error", Reaction::Retry, "Internal Server Error"),
            (502, "<html><h1>Bad Gateway</h1></html>", Reaction::Retry, "Bad Gateway"),
            (504, "", Reaction::Retry, "HTTP 504"),
            (429, "", Reaction::Wait, "HTTP 429"),
            (401, "", Reaction::Pause, "HTTP 401"),
            (412, "", Reaction::Stop, "HTTP 412"),
            (413, "[]", Reaction::Stop, "HTTP 413"),
        ];
        for (status, body, reaction, text) in cases {
            let judgement = of_error_answer(&answer(status, body));
            assert_eq!(judgement.reaction, reaction, "{status} {body}");
            assert!(judgement.fault.detail.contains(text), "{} in {}", text, judgement.fault.detail);
            assert_ne!(judgement.fault.class, FaultClass::Candidate, "a bare status never blames the candidate");
        }
    }

    #[test]
    fn x_should_retry_overrules_a_guess_only() {
        let with = |status, body: &str, should_retry| {
            of_error_answer(&Answer { should_retry: Some(should_retry), ..answer(status, body) })
        };
        assert!(with(500, "", false).hopeless);
        assert_eq!(with(400, "", true).reaction, Reaction::Retry);
        let blamed = with(500, r#"{"code": "candidate_invalid", "class": "candidate"}"#, true);
        assert_eq!(blamed.reaction, Reaction::Blame);
        // The word is the one that the status would have had.
        assert_eq!(
            with(400, r#"{"code": "invalid_request", "class": "configuration"}"#, true).reaction,
            Reaction::Stop
        );
    }

    #[test]
    fn texts_are_made_harmless() {
        assert_eq!(shortened("a\u{1b}[31m\nb"), "a [31m b");
        assert_eq!(shortened(&"x".repeat(1000)).len(), 403);
    }
}
