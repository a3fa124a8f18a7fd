//! The `http` evaluator: eval protocol v1 against a pool of endpoints.
//!
//! One evaluation is a course of attempts. Every attempt takes a place at an endpoint, sends the same document under
//! the same idempotency key, and ends with checked scores or with a judgement that says who is to blame. The course
//! turns judgements into what happens next; nothing but checked scores and the candidate's own faults ever leave it as
//! outcomes.

mod attempt;
mod client;
mod course;
mod error_answer;
mod pool;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, join_all};
use tokio_util::sync::CancellationToken;

use super::retry::RetryPolicy;
use super::{
    AttemptObserver, Capabilities, ConnectContext, EvaluateError, Evaluation, EvaluationRequest, Evaluator,
    EvaluatorTask, Fault, Waiting, protocol,
};
use crate::config::{HttpConfig, OnTimeout, Patience};
use crate::document::FieldError;
use client::{HttpClient, Limits, bearer_token, endpoint_url};
use pool::{Demand, Endpoint, Facts, Pool, Refusal};

pub(crate) use client::is_same_server;

/// How long a cancelled evaluation may take to say so to its endpoint; twice that, and nobody waits for it any more.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

/// How patiently endpoints are asked, and within which bounds. Runs keep to the defaults; tests are in a hurry.
#[derive(Clone, Debug, Default)]
struct Manner {
    policy: RetryPolicy,
    limits: Limits,
}

/// Scores candidates at HTTP endpoints that speak eval protocol v1.
pub struct HttpEvaluator {
    pool: Arc<Pool>,
    facts: Arc<Facts>,
    fingerprint: String,
    concurrency: NonZeroUsize,
    patience: Patience,
    on_timeout: OnTimeout,
    allow_different_fingerprints: bool,
    seed: u64,
    stopping: CancellationToken,
}

impl HttpEvaluator {
    /// Connects to every endpoint, waiting up to `startup_timeout` for those that are down; one has to be up.
    ///
    /// # Errors
    /// Setting for bad addresses or tokens; Configuration for endpoints that disagree, unknown tasks or metrics; Outage
    /// when no endpoint answered in time; Cancelled.
    pub async fn connect(
        config: &HttpConfig,
        patience: &Patience,
        tasks: &[EvaluatorTask],
        context: &ConnectContext,
        cancel: &CancellationToken,
    ) -> Result<Self, EvaluateError> {
        Self::connect_with(config, patience, tasks, context, Manner::default(), cancel).await
    }

    async fn connect_with(
        config: &HttpConfig,
        patience: &Patience,
        tasks: &[EvaluatorTask],
        context: &ConnectContext,
        manner: Manner,
        cancel: &CancellationToken,
    ) -> Result<Self, EvaluateError> {
        let endpoints = endpoints_of(config, &manner.limits)?;
        let demand =
            Demand { tasks: tasks.to_vec(), allow_different_fingerprints: config.allow_different_fingerprints };
        let notify = Arc::clone(&context.notify);
        let pool = Arc::new(Pool::new(endpoints, demand, manner, patience, notify));
        tokio::select! {
            () = cancel.cancelled() => return Err(EvaluateError::Cancelled),
            met = meet_all(&pool, patience.startup_timeout) => met?,
        }
        let known = pool.endpoints.iter().find_map(|endpoint| endpoint.facts());
        let facts = known.ok_or_else(no_endpoints)?;
        pool.settle_tasks(&facts).map_err(EvaluateError::Configuration)?;
        let mut facts = Facts::clone(&facts);
        facts.capabilities.deterministic = pool.settle_determinism();
        let places = pool.endpoints.iter().map(|endpoint| {
            let most = endpoint.facts().map_or(usize::MAX, |facts| facts.max_inflight);
            config.in_flight.get().min(most)
        });
        Ok(Self {
            fingerprint: fingerprint_of(&facts, tasks, config.allow_different_fingerprints),
            concurrency: NonZeroUsize::new(places.sum()).unwrap_or(NonZeroUsize::MIN),
            facts: Arc::new(facts),
            patience: patience.clone(),
            on_timeout: config.on_timeout,
            allow_different_fingerprints: config.allow_different_fingerprints,
            seed: context.seed,
            stopping: context.stopping.clone(),
            pool,
        })
    }
}

fn no_endpoints() -> EvaluateError {
    wrong_endpoints("at least one URL is needed, such as \"http://127.0.0.1:8431\"".to_owned())
}

/// The endpoints may be those of a hold-out, so the key goes without its table.
fn wrong_endpoints(reason: String) -> EvaluateError {
    EvaluateError::Setting(FieldError::new("endpoints", reason))
}

fn endpoints_of(config: &HttpConfig, limits: &Limits) -> Result<Vec<Endpoint>, EvaluateError> {
    let urls = config
        .endpoints
        .iter()
        .map(|text| endpoint_url(text))
        .collect::<Result<Vec<_>, _>>()
        .map_err(wrong_endpoints)?;
    if urls.is_empty() {
        return Err(no_endpoints());
    }
    for (place, label) in config.endpoints.iter().enumerate() {
        let is_same = |other: &usize| urls[*other] == urls[place] || is_same_server(&config.endpoints[*other], label);
        if let Some(other) = (0..place).find(is_same) {
            let known = &config.endpoints[other];
            let reason = if known == label {
                format!("{label} is listed twice; use `in_flight` for more evaluations at once")
            } else {
                format!("{known} and {label} are one server; use `in_flight` for more evaluations at once")
            };
            return Err(wrong_endpoints(reason));
        }
    }
    let token = bearer_token(config, &urls)?;
    urls.into_iter()
        .zip(&config.endpoints)
        .map(|(url, label)| {
            let client = HttpClient::new(&url, token.as_ref(), limits).map_err(EvaluateError::Configuration)?;
            Ok(Endpoint::new(url, label.clone(), client, config.in_flight.get()))
        })
        .collect()
}

/// Meets every endpoint, again and again until all are met or `startup_timeout` is over.
async fn meet_all(pool: &Pool, startup_timeout: Duration) -> Result<(), EvaluateError> {
    let started = Instant::now();
    let mut round = 0;
    loop {
        let missing: Vec<_> = pool.endpoints.iter().filter(|endpoint| !endpoint.settled()).collect();
        let mut down = Vec::new();
        for refusal in
            join_all(missing.iter().map(|endpoint| pool.probe(endpoint))).await.into_iter().filter_map(Result::err)
        {
            match refusal {
                Refusal::Gone(fault) | Refusal::Down(fault) => down.push(fault),
                // Left out, like in mid-run; the others may do.
                Refusal::Credentials(_) => {}
                Refusal::Unsuitable(fault) => return Err(EvaluateError::Configuration(fault)),
            }
        }
        let met = pool.endpoints.iter().any(|endpoint| endpoint.facts().is_some());
        let left = startup_timeout.saturating_sub(started.elapsed());
        match down.first() {
            None if met => return Ok(()),
            None => {
                let refusal = pool.endpoints.iter().find_map(|endpoint| endpoint.refusal());
                return Err(refusal.map_or_else(no_endpoints, EvaluateError::Configuration));
            }
            Some(_) if left.is_zero() && met => return Ok(()),
            Some(first) if left.is_zero() => {
                let detail = nobody_answered(&down, started.elapsed());
                return Err(EvaluateError::Outage(Fault::new(first.class, &first.code, detail)));
            }
            Some(_) => tokio::time::sleep(pool.policy.doubled_wait(round.min(2)).min(left)).await,
        }
        round += 1;
    }
}

/// What to tell of a start at which every endpoint that could be used is down.
fn nobody_answered(down: &[Fault], waited: Duration) -> String {
    let endpoints = down.iter().map(|fault| {
        let endpoint = fault.endpoint.as_deref().unwrap_or("endpoint");
        format!("{endpoint}: {}", fault.detail)
    });
    let endpoints: Vec<String> = endpoints.collect();
    let (them, it) = if down.len() == 1 { ("it", "it") } else { ("them", "one of them") };
    format!(
        "{}; waited {:.0} s for {them} (evaluator.startup_timeout): start {it}, and give the same command again",
        endpoints.join("; "),
        waited.as_secs_f64()
    )
}

/// sha256 over protocol, the endpoints' fingerprint and the versions of the run's tasks. Where the user declares
/// different endpoints equivalent, over the tasks' names alone: which of them is met first must not matter.
fn fingerprint_of(facts: &Facts, tasks: &[EvaluatorTask], allow_different: bool) -> String {
    let mut names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let endpoint = if allow_different { "equivalent" } else { facts.fingerprint.as_str() };
    let version = |name: &str| facts.versions.get(name).filter(|_| !allow_different).map_or("", String::as_str);
    let versions = names.iter().flat_map(|name| [*name, version(name)]);
    super::hash_parts(["http", protocol::VERSION, endpoint].into_iter().chain(versions))
}

impl Evaluator for HttpEvaluator {
    fn kind(&self) -> &'static str {
        "http"
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn capabilities(&self) -> &Capabilities {
        &self.facts.capabilities
    }

    fn concurrency(&self) -> NonZeroUsize {
        self.concurrency
    }

    fn default_metric(&self, task: &str) -> Option<&str> {
        self.facts.first_metrics.get(task).map(String::as_str)
    }

    fn waiting(&self) -> Vec<Waiting> {
        self.pool.waiting()
    }

    fn is_out_of_reach(&self) -> bool {
        self.pool.is_out_of_reach()
    }

    fn evaluate<'a>(
        &'a self,
        request: &'a EvaluationRequest,
        attempts: &'a dyn AttemptObserver,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Evaluation, EvaluateError>> {
        Box::pin(async move {
            let Some(folder) = request.candidate.path.as_deref() else {
                let detail = "the candidate has no folder; http endpoints take candidates by path";
                return Err(EvaluateError::Configuration(Fault::configuration("candidate_folder", detail)));
            };
            let source = protocol::path_source(folder).map_err(EvaluateError::Configuration)?;
            // Equivalent endpoints may have other versions of a task than the first one.
            let (none, facts) = (BTreeMap::new(), &self.facts);
            let versions = if self.allow_different_fingerprints { &none } else { &facts.versions };
            let document = protocol::request_document(request, source, &facts.capabilities, versions)
                .map_err(EvaluateError::Configuration)?;
            tokio::select! {
                result = course::Course::new(self, request, document, attempts, cancel).run() => result,
                // Whoever is cancelled in the middle of a health check does not wait for a server that hangs.
                () = async {
                    cancel.cancelled().await;
                    tokio::time::sleep(2 * SHUTDOWN_GRACE).await;
                } => Err(EvaluateError::Cancelled),
            }
        })
    }
}

#[cfg(test)]
mod tests;
