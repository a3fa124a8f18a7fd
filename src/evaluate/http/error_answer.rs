//! Every way in which an endpoint can say no, as a judgement.
//!
//! A known code or class of the protocol decides; else the HTTP status. Bodies that are not the protocol's (OpenAI's
//! error object, SGLang's flat one, FastAPI's `detail`, plain text, HTML) only lend their text.

use serde_json::Value;

use super::client::Answer;
use crate::evaluate::FaultClass;
use crate::evaluate::judgement::{Judgement, Reaction, of_known_problem};
use crate::evaluate::protocol::WireProblem;
use crate::evaluate::text::shortened;

/// Bytes of a body that is not the protocol's in which a text for people is looked for.
const FOREIGN: usize = 64 << 10;

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
    let known = problem_of(&answer.body).and_then(|problem| of_known_problem(&problem));
    let is_guess = known.is_none();
    let mut judgement = known.unwrap_or_else(|| guess(foreign_text(&answer.body)));
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

/// The protocol's error document, as far as its members are what the protocol says they are. What else it holds is passed
/// over unread: as values, numbers by the million would take a hundred times their text in memory.
fn problem_of(body: &[u8]) -> Option<WireProblem> {
    // A list would be taken for the fields in their order.
    let is_object = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if is_object { serde_json::from_slice(body).ok() } else { None }
}

/// What a body that is not the protocol's says.
fn foreign_text(body: &[u8]) -> Option<String> {
    if body.len() <= FOREIGN
        && let Ok(object @ Value::Object(_)) = serde_json::from_slice(body)
    {
        return message_of(&object);
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(FOREIGN)]);
    let text = text.trim();
    (!text.is_empty()).then(|| shortened(text))
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

    /// Each member is read for itself: one that is not what the protocol says takes no other along.
    #[test]
    fn a_member_of_another_type_counts_as_left_out() {
        for member in [
            r#""status": "422""#,
            r#""status": -1"#,
            r#""type": 7"#,
            r#""title": ["x"]"#,
            r#""detail": {"loc": ["body"], "msg": "x"}"#,
            r#""class": 4"#,
            r#""retryable": "no""#,
            r#""retry_after_s": "5""#,
            r#""attempt_counts": 0"#,
            r#""instance": null"#,
        ] {
            let body = format!(r#"{{"code": "candidate_invalid", {member}}}"#);
            assert_eq!(
                judgement(422, &body),
                (FaultClass::Candidate, Reaction::Blame, "candidate_invalid".into()),
                "{body}"
            );
        }
        // The code is the one that is mistyped; the class decides.
        let body = r#"{"code": 400, "class": "candidate", "retry_after_s": 5, "detail": "x"}"#;
        let judged = of_error_answer(&answer(400, body));
        assert_eq!((judged.reaction, judged.fault.detail.as_str()), (Reaction::Blame, "x"));
        assert_eq!(judged.retry_after, Some(std::time::Duration::from_secs(5)));
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
}
