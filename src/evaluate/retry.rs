//! When to try again: waits, attempts and limits as data, with every random number from a seeded stream.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use tokio_util::sync::CancellationToken;

use super::{Attempt, AttemptObserver, EvaluateError, Fault};

/// Patience with endpoints, as plain numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Shortest wait before an attempt is repeated.
    pub first_wait: Duration,
    /// Longest wait that is drawn.
    pub longest_wait: Duration,
    /// How long an endpoint may say that it is busy before a person is told.
    pub long_wait: Duration,
    /// Longest wait that an endpoint may ask for by `Retry-After`.
    pub longest_retry_after: Duration,
    /// Counted faults in a row after which an endpoint gets nothing until it passes a health check.
    pub breaker_threshold: u32,
    /// Distinct endpoints that may die under one candidate before it is blamed.
    pub deaths_to_blame: usize,
    /// Candidates that an endpoint calls broken in a row before another one is asked about the next.
    pub blames_to_doubt: u32,
    /// Candidates that one endpoint calls broken and another one scores, before the first endpoint is left out.
    pub contradictions_to_leave_out: u32,
    /// Times that a full set of attempts is granted because the endpoints were sick when the last one ran out.
    pub rounds: u32,
    /// Multiplies every wait; 0 retries at once (tests, dry runs).
    pub wait_scale: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(60),
            long_wait: Duration::from_secs(30),
            longest_retry_after: Duration::from_secs(15 * 60),
            breaker_threshold: 3,
            deaths_to_blame: 2,
            blames_to_doubt: 3,
            contradictions_to_leave_out: 2,
            rounds: 3,
            wait_scale: 1.0,
        }
    }
}

impl RetryPolicy {
    /// The default policy with all waits multiplied by `wait_scale`.
    pub fn scaled(wait_scale: f64) -> Self {
        Self { wait_scale, ..Self::default() }
    }

    /// A wait that an endpoint asked for, clamped and scaled. Never none at all: who is asked at once says no at once,
    /// thousands of times.
    pub fn asked(&self, wait: Duration) -> Duration {
        wait.clamp(self.first_wait, self.longest_retry_after).mul_f64(self.wait_scale)
    }

    /// The wait before something is tried again: what the endpoint asked for; where it asked for less than the first
    /// wait (zero, a date that has passed), or for nothing, `drawn`, which grows.
    pub fn wait(&self, asked: Option<Duration>, drawn: Duration) -> Duration {
        asked.filter(|asked| *asked >= self.first_wait).map_or(drawn, |asked| self.asked(asked))
    }

    /// The wait before the next try where `failures` tries in a row have failed before the last one: the first wait,
    /// doubled for each of them, up to the longest. No random number is drawn.
    pub fn doubled_wait(&self, failures: u32) -> Duration {
        let doubled = self.first_wait.saturating_mul(1 << failures.min(16));
        doubled.min(self.longest_wait).mul_f64(self.wait_scale)
    }
}

/// Decorrelated jitter: each wait is drawn between the first wait and three times the last one.
pub struct Jitter {
    stream: ChaCha8Rng,
    last: Duration,
}

impl Jitter {
    /// The waits of one evaluation: the same for the same run seed and `evaluation_id`.
    pub fn new(seed: u64, evaluation_id: &str, policy: &RetryPolicy) -> Self {
        let stream = crate::random::stream(seed, &format!("retry {evaluation_id}"), 0);
        Self { stream, last: policy.first_wait }
    }

    /// The next wait, scaled.
    pub fn next_wait(&mut self, policy: &RetryPolicy) -> Duration {
        let first = policy.first_wait.as_secs_f64();
        let top = (self.last.as_secs_f64() * 3.0).min(policy.longest_wait.as_secs_f64());
        let drawn = if top > first { self.stream.random_range(first..=top) } else { first };
        self.last = Duration::from_secs_f64(drawn);
        self.last.mul_f64(policy.wait_scale)
    }
}

/// Numbers the attempts of one evaluation and reports each.
pub struct AttemptLog<'a> {
    observer: &'a dyn AttemptObserver,
    number: u32,
}

impl<'a> AttemptLog<'a> {
    /// The log of an evaluation that nobody has attempted yet.
    pub fn new(observer: &'a dyn AttemptObserver) -> Self {
        Self { observer, number: 0 }
    }

    /// Reports an attempt that began at `started` and ended now.
    pub fn report(&mut self, endpoint: Option<&str>, started: Instant, counts: bool, fault: Option<&Fault>) {
        self.number += 1;
        self.observer.attempted(&Attempt {
            number: self.number,
            endpoint: endpoint.map(str::to_owned),
            seconds: started.elapsed().as_secs_f64(),
            counts,
            fault: fault.cloned(),
        });
    }
}

/// The wait that a `Retry-After` header asks for: seconds, or an HTTP date taken relative to the answer's own `Date`
/// (so that clocks need not agree) or, without one, to `now`. `None` when it is neither.
pub fn parse_retry_after(value: &str, date: Option<&str>, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return wait_of_seconds(seconds);
    }
    let until = http_date(value)?;
    let from = date.and_then(http_date).unwrap_or(now);
    wait_of_seconds(until.duration_since(from).as_secs_f64())
}

/// A wait from seconds as an endpoint wrote them: negative counts as none, absurd as a day (callers clamp further).
pub fn wait_of_seconds(seconds: f64) -> Option<Duration> {
    const DAY: f64 = 86_400.0;
    if seconds.is_nan() { None } else { Some(Duration::from_secs_f64(seconds.clamp(0.0, DAY))) }
}

fn http_date(text: &str) -> Option<Timestamp> {
    let zoned = jiff::fmt::rfc2822::parse(text.trim()).ok()?;
    Some(zoned.timestamp())
}

/// Waits, however short the wait is giving others their turn.
///
/// # Errors
/// [`EvaluateError::Cancelled`] as soon as that is so.
pub(super) async fn wait(time: Duration, cancel: &CancellationToken) -> Result<(), EvaluateError> {
    if time.is_zero() {
        tokio::task::yield_now().await;
        return if cancel.is_cancelled() { Err(EvaluateError::Cancelled) } else { Ok(()) };
    }
    tokio::select! {
        () = cancel.cancelled() => Err(EvaluateError::Cancelled),
        () = tokio::time::sleep(time) => Ok(()),
    }
}

/// Waits before a next attempt, which there is none of once the search is to end.
///
/// # Errors
/// [`EvaluateError::Cancelled`] as soon as one of the two is cancelled.
pub(super) async fn rest(
    time: Duration,
    cancel: &CancellationToken,
    stopping: &CancellationToken,
) -> Result<(), EvaluateError> {
    tokio::select! {
        biased;
        () = stopping.cancelled() => Err(EvaluateError::Cancelled),
        waited = wait(time, cancel) => waited,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-24T08:00:00Z".parse().unwrap()
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        assert_eq!(parse_retry_after("7", None, now()), Some(Duration::from_secs(7)));
        assert_eq!(parse_retry_after(" 0 ", None, now()), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("-5", None, now()), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("1e300", None, now()), Some(Duration::from_secs(86_400)));
        assert_eq!(parse_retry_after("Tue, 24 Nov 2026 08:01:30 GMT", None, now()), Some(Duration::from_secs(90)));
        let skewed = Some("Tue, 24 Nov 2026 09:01:00 GMT");
        assert_eq!(parse_retry_after("Tue, 24 Nov 2026 09:01:30 GMT", skewed, now()), Some(Duration::from_secs(30)));
        assert_eq!(parse_retry_after("Tue, 24 Nov 2026 07:00:00 GMT", None, now()), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("soon", None, now()), None);
        assert_eq!(parse_retry_after("NaN", None, now()), None);
    }

    #[test]
    fn what_an_endpoint_asks_for_is_clamped_to_fifteen_minutes() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.asked(Duration::from_secs(86_400)), Duration::from_secs(900));
        assert_eq!(policy.asked(Duration::from_secs(5)), Duration::from_secs(5));
        assert_eq!(policy.asked(Duration::ZERO), Duration::from_secs(1));
        let drawn = Duration::from_secs(7);
        let wait = |asked: Option<u64>| policy.wait(asked.map(Duration::from_secs), drawn).as_secs();
        assert_eq!([None, Some(0), Some(1), Some(30), Some(86_400)].map(wait), [7, 7, 1, 30, 900]);
        assert_eq!(RetryPolicy::scaled(0.0).asked(Duration::from_secs(5)), Duration::ZERO);
    }

    #[test]
    fn jitter_stays_in_range_and_repeats() {
        let policy = RetryPolicy::default();
        let draw = |id: &str| {
            let mut jitter = Jitter::new(7, id, &policy);
            (0..50).map(|_| jitter.next_wait(&policy)).collect::<Vec<_>>()
        };
        let waits = draw("a");
        assert!(waits.iter().all(|wait| (policy.first_wait..=policy.longest_wait).contains(wait)), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait > Duration::from_secs(10)), "waits grow: {waits:?}");
        assert_eq!(waits, draw("a"));
        assert_ne!(waits, draw("b"));
    }

    #[test]
    fn health_checks_back_off_up_to_a_minute() {
        let policy = RetryPolicy::default();
        let waits: Vec<u64> = (0..9).map(|failures| policy.doubled_wait(failures).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(policy.doubled_wait(u32::MAX).as_secs(), 60);
    }
}
