//! One endpoint: what it said of itself, and how it stands with us.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use reqwest::Url;

use super::super::client::HttpClient;
use crate::evaluate::{Capabilities, Fault, Waiting};
use crate::lock::lock;

/// What an endpoint said of itself.
#[derive(Clone, Debug)]
pub(in super::super) struct Facts {
    pub instance_id: String,
    pub fingerprint: String,
    pub capabilities: Capabilities,
    /// Version by task, where given.
    pub versions: BTreeMap<String, String>,
    /// First metric listed, by task.
    pub first_metrics: BTreeMap<String, String>,
    pub max_inflight: usize,
    pub max_timeout: Option<Duration>,
    pub heartbeat_interval: Option<Duration>,
}

/// One endpoint.
pub(in super::super) struct Endpoint {
    pub url: Url,
    /// As written in the run file: in messages and in the ledger.
    pub label: String,
    pub client: HttpClient,
    pub(super) in_flight: usize,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) facts: Option<Arc<Facts>>,
    /// Refused us (401, 403, another fingerprint): not asked again.
    pub(super) paused: Option<Fault>,
    pub(super) in_use: usize,
    /// When each of the evaluations there was sent.
    pub(super) begun: Vec<Instant>,
    /// Counted faults since the last good answer.
    pub(super) faults_in_row: u32,
    /// It has scored a candidate.
    pub(super) scored: bool,
    /// Candidates called broken since the last score.
    pub(super) blames_in_row: u32,
    /// Candidates called broken since the last score that another endpoint has scored.
    pub(super) contradictions: u32,
    /// Whether its circuit breaker is open: it gets nothing until it passes a health check.
    pub(super) breaker_open: bool,
    /// Since when it cannot be asked: not met yet, or shut.
    pub(super) away_since: Option<SystemTime>,
    /// Whether a person has been told of that.
    pub(super) away_is_told: bool,
    /// Times that its faults have shut it since its last answer that counts.
    pub(super) shut_without_answer: u32,
    pub(super) probing: bool,
    pub(super) probe_failures: u32,
    /// Neither an evaluation nor a health check before this.
    pub(super) not_before: Option<Instant>,
    pub(super) last_fault: Option<Fault>,
    /// Since when it has asked to be left alone, without an answer that counts in between.
    pub(super) busy_since: Option<Instant>,
    /// Whether a person has been told of that.
    pub(super) busy_is_told: bool,
}

impl Endpoint {
    pub fn new(url: Url, label: String, client: HttpClient, in_flight: usize) -> Self {
        let state = State { away_since: Some(SystemTime::now()), ..State::default() };
        Self { url, label, client, in_flight, state: Mutex::new(state) }
    }

    pub fn facts(&self) -> Option<Arc<Facts>> {
        self.state().facts.clone()
    }

    /// Met, or left out for good.
    pub fn settled(&self) -> bool {
        let state = self.state();
        state.facts.is_some() || state.paused.is_some()
    }

    /// Why the endpoint is left out.
    pub fn refusal(&self) -> Option<Fault> {
        self.state().paused.clone()
    }

    /// Since when the endpoint is waited for, and why; `None`: it can be asked, or is left out for good.
    pub(super) fn waiting(&self) -> Option<Waiting> {
        let state = self.state();
        let since = state.away_since.filter(|_| state.paused.is_none())?;
        let last = state.last_fault.as_ref().map(|fault| fault.detail.clone());
        let reason = last.unwrap_or_else(|| "it has not answered yet".to_owned());
        Some(Waiting { endpoint: self.label.clone(), since, reason })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    pub(super) fn limit(&self, in_flight: usize) -> usize {
        self.facts.as_ref().map_or(in_flight, |facts| in_flight.min(facts.max_inflight))
    }

    pub(super) fn rested(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|instant| instant <= now)
    }

    pub(super) fn alive(&self, now: Instant) -> bool {
        self.facts.is_some() && !self.breaker_open && self.paused.is_none() && self.rested(now)
    }

    /// Whether it has had an evaluation of ours since then, and nothing says that it is ill.
    pub(super) fn is_at_work_since(&self, since: Instant) -> bool {
        let is_well = self.facts.is_some() && !self.breaker_open && self.paused.is_none();
        is_well && self.begun.iter().any(|begun| *begun <= since)
    }

    /// Nothing more goes there before a health check has passed, the first one after `wait`.
    pub(super) fn open_breaker(&mut self, wait: Duration) {
        self.breaker_open = true;
        self.away_since.get_or_insert_with(SystemTime::now);
        self.probe_failures = 0;
        self.rest(wait);
    }

    /// Nothing goes there for the time `wait`; a longer rest that it asked for stays.
    pub(super) fn rest(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        self.not_before = Some(self.not_before.map_or(until, |known| known.max(until)));
    }

    pub(super) fn needs_probe(&self) -> bool {
        self.paused.is_none() && (self.breaker_open || self.facts.is_none())
    }
}
