//! The pool of endpoints: which of them may get an evaluation now, which need a health check first, and when waiting
//! has lasted too long.

mod endpoint;
mod handshake;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::Manner;
use super::client::Limits;
use crate::config::Patience;
use crate::evaluate::retry::RetryPolicy;
use crate::evaluate::text::in_words;
use crate::evaluate::{EvaluateError, EvaluatorTask, Fault, FaultClass, Notify, Waiting};
use crate::lock::lock;

pub(super) use endpoint::{Endpoint, Facts};
pub(super) use handshake::Refusal;

/// What the run needs of every endpoint.
pub(super) struct Demand {
    pub tasks: Vec<EvaluatorTask>,
    /// Endpoints whose fingerprints differ are taken as equivalent.
    pub allow_different_fingerprints: bool,
}

/// What all endpoints of a pool must have in common of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AgreedTask {
    /// As announced, if at all; `None` also where endpoints may have different ones.
    version: Option<String>,
    n_samples: u64,
    metric: String,
    higher_is_better: bool,
    /// Requests are the same for all endpoints, and so is what their answers must hold.
    abilities: Abilities,
}

/// What requests for a task and checks of its answers are built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Abilities {
    sample_ids: bool,
    limit: bool,
    per_sample: bool,
    is_mean: bool,
}

/// Since when an evaluation has got nowhere; cleared by progress.
#[derive(Default)]
pub(super) struct OutageClock {
    since: Option<Instant>,
}

impl OutageClock {
    pub fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    pub fn clear(&mut self) {
        self.since = None;
    }
}

/// A place at an endpoint, given back when dropped.
pub(super) struct Lease {
    pub index: usize,
    pub endpoint: Arc<Endpoint>,
    pub facts: Arc<Facts>,
    begun: Instant,
    pool: Arc<Pool>,
}

impl Lease {
    pub fn policy(&self) -> &RetryPolicy {
        &self.pool.policy
    }

    pub fn limits(&self) -> &Limits {
        &self.pool.limits
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.endpoint.state();
        state.in_use -= 1;
        if let Some(place) = state.begun.iter().position(|begun| *begun == self.begun) {
            state.begun.swap_remove(place);
        }
        drop(state);
        self.pool.changed.notify_waiters();
    }
}

/// All endpoints of an evaluator.
pub(super) struct Pool {
    pub endpoints: Vec<Arc<Endpoint>>,
    pub policy: RetryPolicy,
    pub limits: Limits,
    demand: Demand,
    startup_timeout: Duration,
    max_outage: Duration,
    /// The fingerprint that all endpoints must have; fixed by the first that answers.
    expected: Mutex<Option<String>>,
    /// Tasks of the run as all endpoints have to have them, once the first ones were met.
    agreed: Mutex<Option<BTreeMap<String, AgreedTask>>>,
    /// Whether all endpoints that were met first give the same scores again.
    deterministic: OnceLock<bool>,
    last_answer: Mutex<Instant>,
    changed: tokio::sync::Notify,
    notify: Notify,
}

/// What a look at all endpoints found.
enum Look {
    Lease(Lease),
    AllPaused(Fault),
    /// Healthy, but every place is taken.
    Busy,
    /// Nothing can be used now.
    Down(Fault),
}

impl Pool {
    pub fn new(endpoints: Vec<Endpoint>, demand: Demand, manner: Manner, patience: &Patience, notify: Notify) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Arc::new).collect(),
            policy: manner.policy,
            limits: manner.limits,
            demand,
            startup_timeout: patience.startup_timeout,
            max_outage: patience.max_outage,
            expected: Mutex::new(None),
            agreed: Mutex::new(None),
            deterministic: OnceLock::new(),
            last_answer: Mutex::new(Instant::now()),
            changed: tokio::sync::Notify::new(),
            notify,
        }
    }

    /// Waits for a place at an endpoint that may be used now, rather one outside `avoid`, and never `barred` while
    /// there is another.
    ///
    /// # Errors
    /// Configuration when every endpoint refuses us, Outage after `max_outage` without any usable one, Cancelled.
    pub async fn acquire(
        self: &Arc<Self>,
        avoid: &BTreeSet<usize>,
        barred: &BTreeSet<usize>,
        clock: &mut OutageClock,
        cancel: &CancellationToken,
    ) -> Result<Lease, EvaluateError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            // Also while others are free: an endpoint that comes back is found before it is needed.
            self.start_due_probes();
            match self.look(avoid, barred) {
                Look::Lease(lease) => return Ok(lease),
                Look::AllPaused(fault) => return Err(EvaluateError::Configuration(fault)),
                Look::Busy => clock.clear(),
                Look::Down(fault) => {
                    clock.start();
                    self.check_outage(clock, fault)?;
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(EvaluateError::Cancelled),
                () = &mut changed => {}
                () = tokio::time::sleep(self.next_moment(clock)) => {}
            }
        }
    }

    /// # Errors
    /// Outage when `clock` and the last answer that anyone got both lie further back than `max_outage`, and no endpoint
    /// has been at work on an evaluation of ours since then: one with one place turns others away.
    pub fn check_outage(&self, clock: &OutageClock, fault: Fault) -> Result<(), EvaluateError> {
        match clock.since.map(|since| self.stalled_since(since)) {
            Some(since) if since.elapsed() > self.max_outage && !self.is_at_work_since(since) => {
                let waited = self.max_outage.as_secs_f64();
                let detail = format!(
                    "{}; nothing answered for {waited:.0} s (evaluator.max_outage); the same command continues the run when \
                     something does",
                    fault.detail
                );
                Err(EvaluateError::Outage(Fault { detail, ..fault }))
            }
            _ => Ok(()),
        }
    }

    fn stalled_since(&self, since: Instant) -> Instant {
        since.max(*lock(&self.last_answer))
    }

    /// Whether an endpoint other than these may be used now, if it has a place.
    pub fn has_another(&self, than: &BTreeSet<usize>) -> bool {
        let now = Instant::now();
        let mut others = self.endpoints.iter().enumerate().filter(|(index, _)| !than.contains(index));
        others.any(|(_, endpoint)| endpoint.state().alive(now))
    }

    fn look(self: &Arc<Self>, avoid: &BTreeSet<usize>, barred: &BTreeSet<usize>) -> Look {
        let keep_out = self.has_another(barred);
        let now = Instant::now();
        let (mut best, mut alive, mut fault, mut paused) = (None, false, None, None);
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let state = endpoint.state();
            if let Some(refusal) = &state.paused {
                paused = Some(refusal.clone());
                continue;
            }
            fault = state.last_fault.clone().or(fault);
            if state.alive(now) {
                alive = true;
                if !(keep_out && barred.contains(&index)) && state.in_use < state.limit(endpoint.in_flight) {
                    let rank = (avoid.contains(&index), state.in_use, index);
                    best = Some(best.map_or(rank, |found: (bool, usize, usize)| found.min(rank)));
                }
            }
        }
        if let Some((_, _, index)) = best {
            let endpoint = Arc::clone(&self.endpoints[index]);
            let mut state = endpoint.state();
            if let Some(facts) = state.facts.clone()
                && state.in_use < state.limit(endpoint.in_flight)
            {
                state.in_use += 1;
                state.begun.push(now);
                drop(state);
                return Look::Lease(Lease { index, endpoint, facts, begun: now, pool: Arc::clone(self) });
            }
            return Look::Busy;
        }
        if alive {
            return Look::Busy;
        }
        let all_paused = self.endpoints.iter().all(|endpoint| endpoint.state().paused.is_some());
        match (all_paused, paused) {
            (true, Some(fault)) => Look::AllPaused(fault),
            _ => Look::Down(fault.unwrap_or_else(|| {
                Fault::new(FaultClass::Infrastructure, "unreachable", "no endpoint has answered yet")
            })),
        }
    }

    /// Whether an endpoint that nothing says is ill has had an evaluation of ours all the time since then. (What was
    /// sent later may be turned away like everything else.)
    fn is_at_work_since(&self, since: Instant) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.state().is_at_work_since(since))
    }

    /// How long to sleep before something can have changed by time alone.
    fn next_moment(&self, clock: &OutageClock) -> Duration {
        const LONG: Duration = Duration::from_secs(3600);
        let now = Instant::now();
        let mut wait = LONG;
        for endpoint in &self.endpoints {
            let state = endpoint.state();
            // A probe under way reports by `changed`; so does a place that becomes free.
            if state.paused.is_none()
                && !state.probing
                && let Some(instant) = state.not_before.filter(|instant| *instant > now)
            {
                wait = wait.min(instant - now);
            }
        }
        // Whoever is at work reports by `changed`.
        let since = clock.since.map(|since| self.stalled_since(since));
        if let Some(since) = since.filter(|since| !self.is_at_work_since(*since)) {
            let until_outage = self.max_outage.saturating_sub(since.elapsed());
            wait = wait.min(until_outage + Duration::from_millis(1));
        }
        wait
    }

    /// Starts the health checks that are due, at most one an endpoint, each on its own so that no evaluation waits for
    /// one endpoint while another becomes free.
    fn start_due_probes(self: &Arc<Self>) {
        let now = Instant::now();
        for endpoint in &self.endpoints {
            let mut state = endpoint.state();
            if state.needs_probe() && !state.probing && state.rested(now) {
                state.probing = true;
                drop(state);
                let (pool, endpoint) = (Arc::clone(self), Arc::clone(endpoint));
                tokio::spawn(async move {
                    let _ = pool.probe(&endpoint).await;
                });
            }
        }
    }

    /// Asks an endpoint for health and capabilities and takes the result into account.
    ///
    /// # Errors
    /// The refusal: down, paused, or a configuration that no endpoint can serve.
    pub async fn probe(&self, endpoint: &Endpoint) -> Result<Arc<Facts>, Refusal> {
        let outcome = self.handshake(endpoint).await;
        let mut state = endpoint.state();
        state.probing = false;
        let line = match &outcome {
            Ok(facts) => {
                let news = match &state.facts {
                    Some(known) if known.instance_id != facts.instance_id => Some("has restarted"),
                    // Who was not told that it is shut need not hear that it is not.
                    Some(_) if state.breaker_open && state.away_is_told => Some("answers again"),
                    None if state.probe_failures > 0 => Some("answers"),
                    _ => None,
                };
                // One more fault opens the breaker again.
                state.faults_in_row =
                    if state.breaker_open { self.policy.breaker_threshold.saturating_sub(1) } else { 0 };
                let varies = |facts: &Facts| !facts.capabilities.deterministic;
                if varies(facts)
                    && self.deterministic.get() == Some(&true)
                    && !state.facts.as_deref().is_some_and(varies)
                {
                    (self.notify)(&format!(
                        "warning: endpoint {} does not call itself deterministic, as all did when the search started: \
                         scores count as ones that may vary from the next start with it on",
                        endpoint.label
                    ));
                }
                state.facts = Some(Arc::clone(facts));
                // An endpoint that is well may still have asked to be left alone.
                if state.breaker_open {
                    state.not_before = None;
                }
                state.breaker_open = false;
                (state.away_since, state.away_is_told) = (None, false);
                state.probe_failures = 0;
                news.map(|news| format!("endpoint {} {news}", endpoint.label))
            }
            Err(Refusal::Gone(fault) | Refusal::Down(fault)) => {
                let first = !std::mem::replace(&mut state.away_is_told, true);
                state.breaker_open = true;
                state.away_since.get_or_insert_with(SystemTime::now);
                let wait = self.policy.doubled_wait(state.probe_failures);
                state.rest(wait);
                state.probe_failures = state.probe_failures.saturating_add(1);
                state.last_fault = Some(fault.clone());
                first.then(|| self.waiting_line(endpoint, fault))
            }
            Err(Refusal::Credentials(fault) | Refusal::Unsuitable(fault)) => {
                let news = state.paused.is_none();
                state.paused = Some(fault.clone());
                news.then(|| format!("endpoint {} is left out: {}", endpoint.label, fault.detail))
            }
        };
        drop(state);
        self.changed.notify_waiters();
        if let Some(line) = line {
            (self.notify)(&line);
        }
        outcome
    }

    /// The endpoints that cannot be asked now.
    pub fn waiting(&self) -> Vec<Waiting> {
        self.endpoints.iter().filter_map(|endpoint| endpoint.waiting()).collect()
    }

    /// Whether every endpoint that is not left out for good cannot be asked now.
    pub fn is_out_of_reach(&self) -> bool {
        let mut in_use = self.endpoints.iter().filter(|endpoint| endpoint.refusal().is_none()).peekable();
        in_use.peek().is_some() && in_use.all(|endpoint| endpoint.waiting().is_some())
    }

    /// What people are told when an endpoint is away: what it failed with, and how long it is waited for.
    fn waiting_line(&self, endpoint: &Endpoint, fault: &Fault) -> String {
        // Settled once the endpoints were met: until then, the run does not begin.
        let is_starting = self.deterministic.get().is_none();
        let (most, key) = if is_starting {
            (self.startup_timeout, "evaluator.startup_timeout")
        } else {
            (self.max_outage, "evaluator.max_outage")
        };
        let alone = if is_starting || self.endpoints.len() == 1 { "" } else { " if no other endpoint answers" };
        format!("waiting for endpoint {} for up to {}{alone} ({key}): {}", endpoint.label, in_words(most), fault.detail)
    }

    /// Whether any endpoint passes a health check now: the canary behind "the endpoint is fine, this evaluation is
    /// not".
    pub async fn any_healthy(&self) -> bool {
        let usable = self.endpoints.iter().filter(|endpoint| endpoint.state().paused.is_none());
        join_all(usable.map(|endpoint| self.probe(endpoint))).await.iter().any(Result::is_ok)
    }

    /// An endpoint answered an evaluation with something that counts.
    pub fn answered(&self, endpoint: &Endpoint) {
        let mut state = endpoint.state();
        (state.faults_in_row, state.shut_without_answer) = (0, 0);
        (state.busy_since, state.busy_is_told) = (None, false);
        drop(state);
        *lock(&self.last_answer) = Instant::now();
    }

    /// An endpoint has scored a candidate.
    pub fn scored(&self, endpoint: &Endpoint) {
        let mut state = endpoint.state();
        state.scored = true;
        (state.blames_in_row, state.contradictions) = (0, 0);
    }

    /// An endpoint calls a candidate broken: whether that is to be doubted, because it has not scored any yet, or none
    /// of the latest.
    pub fn is_doubtful_blame(&self, endpoint: &Endpoint) -> bool {
        let mut state = endpoint.state();
        state.blames_in_row += 1;
        !state.scored || state.blames_in_row > self.policy.blames_to_doubt
    }

    /// An endpoint called a candidate broken that `other` has scored: the second time in a row, it is left out.
    pub fn contradicted(&self, index: usize, fault: &Fault, other: &str) {
        let Some(endpoint) = self.endpoints.get(index) else { return };
        let mut state = endpoint.state();
        state.contradictions += 1;
        let again = state.contradictions >= self.policy.contradictions_to_leave_out;
        drop(state);
        if again {
            let detail = format!(
                "it calls candidates broken that {other} scores ({}); mend it and start the same command again",
                fault.detail
            );
            self.pause(endpoint, &Fault::configuration("wrong_blame", detail));
        } else {
            let label = &endpoint.label;
            (self.notify)(&format!(
                "endpoint {label} called a candidate broken that {other} has scored: {}",
                fault.detail
            ));
        }
    }

    /// An endpoint failed in a way that counts; at the threshold its breaker opens until a health check passes. One that
    /// passes them all and yet never gives an answer that counts is shut again and again: that is told the first time,
    /// the second, the fourth, and so on.
    pub fn failed(&self, endpoint: &Endpoint, fault: &Fault) {
        let mut state = endpoint.state();
        state.faults_in_row += 1;
        state.last_fault = Some(fault.clone());
        let opens = !state.breaker_open && state.faults_in_row >= self.policy.breaker_threshold;
        if opens {
            state.open_breaker(self.policy.doubled_wait(0));
            state.shut_without_answer = state.shut_without_answer.saturating_add(1);
            state.away_is_told = state.shut_without_answer.is_power_of_two();
        }
        let (news, times) = (opens && state.away_is_told, state.shut_without_answer);
        drop(state);
        if news {
            let again = if times == 1 { String::new() } else { format!(" ({times} times by now)") };
            let (label, detail) = (&endpoint.label, &fault.detail);
            (self.notify)(&format!("endpoint {label} is shut until it passes a health check{again}: {detail}"));
        }
    }

    /// Nobody listens at an endpoint: its breaker opens until a health check passes.
    pub fn unreachable(&self, endpoint: &Endpoint, fault: &Fault) {
        let mut state = endpoint.state();
        state.last_fault = Some(fault.clone());
        if !state.breaker_open {
            state.open_breaker(self.policy.doubled_wait(0));
        }
        let news = !std::mem::replace(&mut state.away_is_told, true);
        drop(state);
        self.changed.notify_waiters();
        if news {
            (self.notify)(&self.waiting_line(endpoint, fault));
        }
    }

    /// An endpoint asks to be left alone for a while. Short waits are everyday; a long one is told, once until it
    /// answers again.
    pub fn busy(&self, endpoint: &Endpoint, fault: &Fault, wait: Duration) {
        let mut state = endpoint.state();
        state.last_fault = Some(fault.clone());
        state.rest(wait);
        let since = *state.busy_since.get_or_insert_with(Instant::now);
        let long_wait = self.policy.long_wait.mul_f64(self.policy.wait_scale);
        let is_long = wait >= long_wait || since.elapsed() >= long_wait;
        let news = is_long && !std::mem::replace(&mut state.busy_is_told, is_long);
        drop(state);
        if news {
            let (label, seconds) = (&endpoint.label, wait.as_secs_f64());
            (self.notify)(&format!("endpoint {label} is busy and asked again in {seconds:.0} s: {}", fault.detail));
        }
    }

    /// An endpoint refuses us.
    pub fn pause(&self, endpoint: &Endpoint, fault: &Fault) {
        endpoint.state().paused = Some(fault.clone());
        self.changed.notify_waiters();
        (self.notify)(&format!("endpoint {} is left out: {}", endpoint.label, fault.detail));
    }
}
