//! One evaluation from its first attempt to its outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::super::judgement::{Judgement, Loss, Reaction};
use super::super::protocol::WireRequest;
use super::super::retry::{AttemptLog, Jitter, rest};
use super::super::{AttemptObserver, EvaluateError, Evaluation, EvaluationRequest, Fault, FaultClass};
use super::HttpEvaluator;
use super::attempt::attempt;
use super::pool::{Lease, OutageClock, Refusal};
use crate::config::OnTimeout;

/// Cancellations of an evaluation that do not count as attempts.
const FREE_CANCELLATIONS: u32 = 3;

pub(super) struct Course<'a> {
    evaluator: &'a HttpEvaluator,
    request: &'a EvaluationRequest,
    document: WireRequest,
    cancel: &'a CancellationToken,
    log: AttemptLog<'a>,
    jitter: Jitter,
    clock: OutageClock,
    /// Attempts of this round that count.
    counted: u32,
    /// Rounds of attempts used up while no endpoint was healthy.
    rounds: u32,
    timeouts: u32,
    /// Times that an endpoint said that the evaluation was cancelled, which we did not ask for.
    cancellations: u32,
    timeout: Duration,
    /// Endpoints that failed this evaluation last: others are preferred.
    avoid: BTreeSet<usize>,
    /// Endpoints that died under this evaluation.
    deaths: BTreeSet<usize>,
    /// Endpoints that called the candidate broken and are not believed before one that has scored others says so too.
    blamed: BTreeMap<usize, Fault>,
}

/// What follows from an attempt.
enum Next {
    Again,
    End(EvaluateError),
}

impl<'a> Course<'a> {
    pub fn new(
        evaluator: &'a HttpEvaluator,
        request: &'a EvaluationRequest,
        document: WireRequest,
        attempts: &'a dyn AttemptObserver,
        cancel: &'a CancellationToken,
    ) -> Self {
        Self {
            evaluator,
            request,
            document,
            cancel,
            log: AttemptLog::new(attempts),
            jitter: Jitter::new(evaluator.seed, &request.evaluation_id, &evaluator.pool.policy),
            clock: OutageClock::default(),
            counted: 0,
            rounds: 0,
            timeouts: 0,
            cancellations: 0,
            timeout: evaluator.patience.timeout,
            avoid: BTreeSet::new(),
            deaths: BTreeSet::new(),
            blamed: BTreeMap::new(),
        }
    }

    pub async fn run(mut self) -> Result<Evaluation, EvaluateError> {
        loop {
            if self.request.candidate.path.as_deref().is_some_and(|folder| !folder.is_dir()) {
                let detail = "the candidate's folder is gone".to_owned();
                return Err(EvaluateError::GivenUp(Fault::new(FaultClass::Infrastructure, "candidate_folder", detail)));
            }
            let barred: BTreeSet<usize> = self.blamed.keys().copied().collect();
            let lease = self.acquire(&barred).await?;
            let started = Instant::now();
            let any_fingerprint = self.evaluator.allow_different_fingerprints;
            let expected = (!any_fingerprint).then_some(lease.facts.fingerprint.as_str());
            let outcome = attempt(&lease, self.request, &mut self.document, self.timeout, expected, self.cancel).await;
            let mut judgement = match outcome {
                Ok(answer) => match self.confirm_instance(&lease, answer.instance_id.as_deref()).await {
                    Ok(()) => {
                        let endpoint = lease.endpoint.label.clone();
                        self.log.report(Some(&endpoint), started, true, None);
                        self.evaluator.pool.answered(&lease.endpoint);
                        self.evaluator.pool.scored(&lease.endpoint);
                        for (index, fault) in self.blamed.iter().filter(|(index, _)| **index != lease.index) {
                            self.evaluator.pool.contradicted(*index, fault, &endpoint);
                        }
                        return Ok(answer.evaluation);
                    }
                    Err(judgement) => judgement,
                },
                Err(judgement) => judgement,
            };
            judgement.fault = judgement.fault.at(&lease.endpoint.label);
            let counts = matches!(judgement.reaction, Reaction::Retry | Reaction::Timeout | Reaction::Blame);
            self.log.report(Some(&lease.endpoint.label), started, counts, Some(&judgement.fault));
            if self.cancel.is_cancelled() {
                return Err(EvaluateError::Cancelled);
            }
            match self.react(lease, judgement).await? {
                Next::Again => {}
                Next::End(error) => return Err(error),
            }
        }
    }

    /// Waits for a place at an endpoint, unless the search is to end.
    async fn acquire(&mut self, barred: &BTreeSet<usize>) -> Result<Lease, EvaluateError> {
        let Self { evaluator, avoid, clock, cancel, .. } = self;
        tokio::select! {
            biased;
            () = evaluator.stopping.cancelled() => Err(EvaluateError::Cancelled),
            lease = evaluator.pool.acquire(avoid, barred, clock, cancel) => lease,
        }
    }

    /// A score from a server that has restarted since we met it counts only when the new server is the same evaluator.
    async fn confirm_instance(&self, lease: &Lease, instance_id: Option<&str>) -> Result<(), Judgement> {
        match instance_id {
            Some(found) if found != lease.facts.instance_id => {}
            _ => return Ok(()),
        }
        // Another evaluation may have met the new server already.
        if lease.endpoint.facts().is_some_and(|facts| Some(facts.instance_id.as_str()) == instance_id) {
            return Ok(());
        }
        match self.evaluator.pool.probe(&lease.endpoint).await {
            Ok(_) => Ok(()),
            Err(Refusal::Credentials(fault) | Refusal::Unsuitable(fault)) => {
                Err(Judgement::new(Reaction::Pause, FaultClass::Configuration, &fault.code, fault.detail))
            }
            Err(Refusal::Gone(fault) | Refusal::Down(fault)) => {
                let detail = format!("the server restarted and cannot be asked who it is: {}", fault.detail);
                Err(Judgement::new(Reaction::Unreachable, FaultClass::Infrastructure, &fault.code, detail))
            }
        }
    }

    async fn react(&mut self, lease: Lease, mut judgement: Judgement) -> Result<Next, EvaluateError> {
        if judgement.fault.class == FaultClass::Cancelled {
            self.cancellations += 1;
            // An endpoint that keeps to it will say so for ever.
            if self.cancellations > FREE_CANCELLATIONS {
                judgement.reaction = Reaction::Retry;
            }
        }
        let pool = &self.evaluator.pool;
        let endpoint = lease.endpoint.clone();
        let index = lease.index;
        let instance = lease.facts.instance_id.clone();
        match judgement.reaction {
            Reaction::Blame => {
                pool.answered(&endpoint);
                let doubtful = pool.is_doubtful_blame(&endpoint) && !self.blamed.contains_key(&index);
                self.blamed.insert(index, judgement.fault.clone());
                if doubtful && pool.has_another(&self.blamed.keys().copied().collect()) {
                    return Ok(Next::Again);
                }
                return Ok(Next::End(EvaluateError::Candidate(judgement.fault)));
            }
            Reaction::Stop => return Ok(Next::End(EvaluateError::Configuration(judgement.fault))),
            Reaction::Pause => pool.pause(&endpoint, &judgement.fault),
            Reaction::Unreachable => {
                self.clock.start();
                pool.unreachable(&endpoint, &judgement.fault);
                pool.check_outage(&self.clock, judgement.fault)?;
            }
            Reaction::Wait => {
                self.clock.start();
                let drawn = self.jitter.next_wait(&pool.policy);
                let wait = pool.policy.wait(judgement.retry_after, drawn);
                pool.busy(&endpoint, &judgement.fault, wait);
                drop(lease);
                pool.check_outage(&self.clock, judgement.fault)?;
            }
            Reaction::Timeout => {
                pool.failed(&endpoint, &judgement.fault);
                drop(lease);
                return self.after_timeout(index, judgement).await;
            }
            Reaction::Retry => {
                pool.failed(&endpoint, &judgement.fault);
                drop(lease);
                let died = match judgement.loss {
                    Some(Loss::Worker) => true,
                    Some(Loss::Connection) => self.has_died(index, &instance).await,
                    Some(Loss::Evaluation) | None => false,
                };
                if died && let Some(blame) = self.blame_for_deaths(index, &judgement.fault).await? {
                    return Ok(Next::End(blame));
                }
                return self.after_counted(index, judgement).await;
            }
        }
        Ok(Next::Again)
    }

    async fn after_timeout(&mut self, index: usize, judgement: Judgement) -> Result<Next, EvaluateError> {
        self.timeouts += 1;
        self.counted += 1;
        self.prefer_others(index);
        if self.timeouts == 1 && !judgement.hopeless && self.counted < self.evaluator.patience.max_attempts {
            self.timeout *= 2;
            return Ok(Next::Again);
        }
        let blame = self.evaluator.on_timeout == OnTimeout::Worst && self.timeouts >= 2;
        self.conclude(judgement.fault, blame).await
    }

    async fn after_counted(&mut self, index: usize, judgement: Judgement) -> Result<Next, EvaluateError> {
        self.counted += 1;
        self.prefer_others(index);
        if judgement.hopeless || self.counted >= self.evaluator.patience.max_attempts {
            return self.conclude(judgement.fault, false).await;
        }
        let policy = &self.evaluator.pool.policy;
        let drawn = self.jitter.next_wait(policy);
        rest(policy.wait(judgement.retry_after, drawn), self.cancel, &self.evaluator.stopping).await?;
        Ok(Next::Again)
    }

    /// Attempts are used up. That says something only while an endpoint is healthy; else the course waits for one and
    /// starts a fresh round, a bounded number of times.
    async fn conclude(&mut self, fault: Fault, blame: bool) -> Result<Next, EvaluateError> {
        // Who called it broken was not believed, and nobody else has shown otherwise.
        let called_broken = self.blamed.values().next().cloned();
        let end = |fault| match called_broken {
            Some(called_broken) => EvaluateError::Candidate(called_broken),
            None if blame => EvaluateError::Candidate(fault),
            None => EvaluateError::GivenUp(fault),
        };
        if self.evaluator.pool.any_healthy().await {
            return Ok(Next::End(end(fault)));
        }
        self.rounds += 1;
        self.clock.start();
        if self.rounds >= self.evaluator.pool.policy.rounds {
            self.acquire(&BTreeSet::new()).await?;
            // Endpoints were ill each time, so even a timeout says nothing of the candidate.
            return Ok(Next::End(EvaluateError::GivenUp(fault)));
        }
        self.counted = 0;
        self.timeouts = 0;
        self.timeout = self.evaluator.patience.timeout;
        Ok(Next::Again)
    }

    fn prefer_others(&mut self, index: usize) {
        self.avoid.insert(index);
        if self.avoid.len() == self.evaluator.pool.endpoints.len() {
            self.avoid = BTreeSet::from([index]);
        }
    }

    /// After a connection was lost: whether the server behind it went away (refuses now, or is a new one).
    async fn has_died(&self, index: usize, instance: &str) -> bool {
        let pool = &self.evaluator.pool;
        match pool.probe(&pool.endpoints[index]).await {
            Ok(facts) => facts.instance_id != instance,
            Err(Refusal::Gone(_)) => true,
            Err(Refusal::Down(_) | Refusal::Credentials(_) | Refusal::Unsuitable(_)) => false,
        }
    }

    /// The poison rule: two distinct endpoints died under this candidate and are healthy without it. While they are
    /// not, they get `startup_timeout` to come back before the candidate is sent anywhere else.
    async fn blame_for_deaths(&mut self, index: usize, fault: &Fault) -> Result<Option<EvaluateError>, EvaluateError> {
        self.deaths.insert(index);
        let pool = &self.evaluator.pool;
        if self.deaths.len() < pool.policy.deaths_to_blame {
            return Ok(None);
        }
        let started = Instant::now();
        let mut failures = 0;
        loop {
            let mut healthy = 0;
            for died in &self.deaths {
                healthy += usize::from(pool.probe(&pool.endpoints[*died]).await.is_ok());
            }
            if healthy >= pool.policy.deaths_to_blame {
                let detail = format!("killed {healthy} workers; the last time: {}", fault.detail);
                let fault = Fault::new(FaultClass::Candidate, "killed_workers", detail);
                return Ok(Some(EvaluateError::Candidate(fault)));
            }
            let left = self.evaluator.patience.startup_timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            rest(pool.policy.doubled_wait(failures).min(left), self.cancel, &self.evaluator.stopping).await?;
            failures += 1;
        }
    }
}
