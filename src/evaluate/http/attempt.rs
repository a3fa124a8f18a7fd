//! One attempt at one endpoint: send, follow up where the endpoint answers later, check.

use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, Url};
use tokio_util::sync::CancellationToken;

use super::super::check::{Completeness, Expected, check, violation};
use super::super::judgement::{Judgement, Loss, Reaction, of_problem};
use super::super::misread;
use super::super::protocol::{WireEvaluation, WireRequest};
use super::super::retry::RetryPolicy;
use super::super::text::shortened;
use super::super::{Evaluation, EvaluationRequest, FaultClass};
use super::SHUTDOWN_GRACE;
use super::client::Answer;
use super::error_answer::of_error_answer;
use super::pool::Lease;
use crate::repeated_keys::refuse_repeated_keys;

/// Polls in a row that may fail before the evaluation counts as lost.
const LOST_POLLS: u32 = 3;
/// The wait between polls where the endpoint names none.
const POLL_WAIT: Duration = Duration::from_secs(2);
/// The shortest wait between polls, whatever the endpoint asks for.
const LEAST_POLL_WAIT: Duration = Duration::from_millis(100);
/// How long a cancelled evaluation's DELETE may take.
const DELETE_WITHIN: Duration = SHUTDOWN_GRACE;

/// A checked answer with the server that gave it.
pub(super) struct Answered {
    pub evaluation: Evaluation,
    pub instance_id: Option<String>,
}

/// Sends `document` and brings back checked scores, or the judgement on what came instead. With
/// `expected_fingerprint`, scores of an evaluator that has another fingerprint are refused.
pub(super) async fn attempt(
    lease: &Lease,
    request: &EvaluationRequest,
    document: &mut WireRequest,
    timeout: Duration,
    expected_fingerprint: Option<&str>,
    cancel: &CancellationToken,
) -> Result<Answered, Judgement> {
    let told = lease.facts.max_timeout.map_or(timeout, |most| timeout.min(most));
    document.timeout_s = Some(told.as_secs_f64());
    document.expect_fingerprint = Some(lease.facts.fingerprint.clone());
    let deadline = Instant::now() + told + lease.limits().grace;
    let post = build(lease, Method::POST, evaluations_url(lease, None)?)
        .header("Idempotency-Key", &request.evaluation_id)
        .json(document);
    let answer = tokio::select! {
        () = cancel.cancelled() => return Err(cancelled()),
        answer = exchange(lease, post, deadline.saturating_duration_since(Instant::now())) => answer?,
    };
    let location = answer.location.clone();
    let wait = answer.retry_after;
    let mut evaluation = evaluation_of(&answer)?;
    if is_pending(&evaluation) {
        let url = poll_url(lease, request, location.as_deref())?;
        evaluation = follow(lease, url, wait, deadline, cancel).await?;
    }
    let instance_id = evaluation.instance_id.clone();
    let evaluation = finished(evaluation, lease, request, expected_fingerprint)?;
    Ok(Answered { evaluation, instance_id })
}

fn build(lease: &Lease, method: Method, url: Url) -> RequestBuilder {
    lease.endpoint.client.request(method, url)
}

async fn exchange(lease: &Lease, request: RequestBuilder, total: Duration) -> Result<Answer, Judgement> {
    lease.endpoint.client.exchange(request, total, lease.limits()).await
}

fn evaluations_url(lease: &Lease, id: Option<&str>) -> Result<Url, Judgement> {
    let path = id.map_or("v1/evaluations".to_owned(), |id| format!("v1/evaluations/{id}"));
    lease.endpoint.url.join(&path).map_err(|error| Judgement::retry("endpoint", error.to_string()))
}

/// Where to ask again: the answer's `Location` as long as it stays on the endpoint, else the protocol's own path.
fn poll_url(lease: &Lease, request: &EvaluationRequest, location: Option<&str>) -> Result<Url, Judgement> {
    let own = evaluations_url(lease, Some(&request.evaluation_id))?;
    let named = location.and_then(|location| own.join(location).ok()).filter(|url| url.origin() == own.origin());
    Ok(named.unwrap_or(own))
}

fn cancelled() -> Judgement {
    Judgement::new(Reaction::Wait, FaultClass::Cancelled, "cancelled", "the run is being stopped")
}

/// The document of a 200 or 202; anything else is an error answer.
fn evaluation_of(answer: &Answer) -> Result<WireEvaluation, Judgement> {
    if !matches!(answer.status, 200 | 202) {
        return Err(of_error_answer(answer));
    }
    let parsed = refuse_repeated_keys(&answer.body).and_then(|()| serde_json::from_slice(&answer.body));
    parsed.map_err(|error| {
        let has_nan = [b"NaN".as_slice(), b"Infinity"]
            .iter()
            .any(|word| answer.body.windows(word.len()).any(|found| found == *word));
        let hint = if has_nan { "; JSON has no NaN: write \"value\": null and \"nonfinite\": \"nan\"" } else { "" };
        let told = misread::told(&answer.body, &error);
        Judgement::of_answer(violation(format!("the answer is no evaluation document: {told}{hint}")))
    })
}

fn is_pending(evaluation: &WireEvaluation) -> bool {
    matches!(evaluation.status.as_deref(), Some("queued" | "running"))
}

/// The wait that the endpoint asks for, some of it at least.
fn poll_wait(policy: &RetryPolicy, asked: Option<Duration>) -> Duration {
    let wait = asked.unwrap_or(POLL_WAIT).clamp(LEAST_POLL_WAIT, policy.longest_retry_after);
    wait.mul_f64(policy.wait_scale)
}

/// Polls until the evaluation is finished.
async fn follow(
    lease: &Lease,
    url: Url,
    asked: Option<Duration>,
    deadline: Instant,
    cancel: &CancellationToken,
) -> Result<WireEvaluation, Judgement> {
    let policy = lease.policy();
    let mut wait = poll_wait(policy, asked);
    let mut lost = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            delete(lease, url).await;
            let detail = "the endpoint has not finished the evaluation in time";
            return Err(Judgement::new(Reaction::Timeout, FaultClass::Resource, "timeout", detail));
        }
        let poll = async {
            tokio::time::sleep(wait.min(left)).await;
            exchange(lease, build(lease, Method::GET, url.clone()), lease.limits().short).await
        };
        let answer = tokio::select! {
            () = cancel.cancelled() => {
                delete(lease, url.clone()).await;
                return Err(cancelled());
            }
            answer = poll => answer,
        };
        wait = poll_wait(policy, answer.as_ref().ok().and_then(|answer| answer.retry_after));
        match answer.and_then(|answer| if answer.status == 404 { Err(forgotten()) } else { evaluation_of(&answer) }) {
            Ok(evaluation) if !is_pending(&evaluation) => return Ok(evaluation),
            Ok(evaluation) => {
                lost = 0;
                let silent = evaluation.heartbeat_age_s.unwrap_or(0.0);
                if let Some(interval) = lease.facts.heartbeat_interval
                    && silent > 3.0 * interval.as_secs_f64()
                {
                    let detail = format!("no heartbeat of the worker for {silent:.0} s");
                    return Err(Judgement::lost(Loss::Worker, detail));
                }
            }
            Err(judgement) if matches!(judgement.loss, Some(Loss::Worker | Loss::Evaluation)) => return Err(judgement),
            Err(judgement) => match judgement.reaction {
                Reaction::Wait => lost = 0,
                Reaction::Retry | Reaction::Timeout | Reaction::Unreachable if lost + 1 < LOST_POLLS => lost += 1,
                // A slow poll is not a slow evaluation.
                Reaction::Timeout => return Err(Judgement { reaction: Reaction::Retry, ..judgement }),
                _ => return Err(judgement),
            },
        }
    }
}

/// The endpoint does not know the evaluation any more: it restarted. The same key is sent again.
fn forgotten() -> Judgement {
    Judgement::lost(Loss::Evaluation, "the endpoint no longer knows the evaluation")
}

/// Tells the endpoint that nobody waits any more; best effort.
async fn delete(lease: &Lease, url: Url) {
    let _ = exchange(lease, build(lease, Method::DELETE, url), DELETE_WITHIN).await;
}

/// The scores of a finished evaluation, or the judgement on why there are none.
fn finished(
    answer: WireEvaluation,
    lease: &Lease,
    request: &EvaluationRequest,
    expected_fingerprint: Option<&str>,
) -> Result<Evaluation, Judgement> {
    match answer.status.as_deref() {
        Some("succeeded") => {}
        Some("failed") => {
            belongs(&answer, request)?;
            return Err(match &answer.error {
                Some(problem) => of_problem(problem),
                None => Judgement::retry("internal", "the evaluation failed and the endpoint does not say why"),
            });
        }
        Some("cancelled") => {
            let detail = "the endpoint cancelled the evaluation";
            return Err(Judgement::new(Reaction::Wait, FaultClass::Cancelled, "cancelled", detail));
        }
        other => {
            let status = shortened(other.unwrap_or("missing"));
            return Err(Judgement::of_answer(violation(format!("the answer's status is {status}"))));
        }
    }
    let expected = Expected {
        request,
        capabilities: &lease.facts.capabilities,
        fingerprint: expected_fingerprint,
        completeness: Completeness::Endpoint,
    };
    check(answer, &expected).map_err(Judgement::of_answer)
}

/// A failure, too, must be about this evaluation before anybody is blamed for it.
fn belongs(answer: &WireEvaluation, request: &EvaluationRequest) -> Result<(), Judgement> {
    let ours = answer.evaluation_id.as_deref() == Some(&request.evaluation_id)
        && answer.candidate_id.as_deref() == Some(&request.candidate.id);
    if ours {
        return Ok(());
    }
    Err(Judgement::of_answer(violation("the answer is about another evaluation or candidate".into())))
}
