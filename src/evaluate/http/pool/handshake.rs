//! Health and capabilities of an endpoint, held against what the run needs.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde::de::DeserializeOwned;

use super::super::error_answer::of_error_answer;
use super::{Abilities, AgreedTask, Demand, Endpoint, Facts, Pool};
use crate::evaluate::judgement::{Loss, Reaction};
use crate::evaluate::misread;
use crate::evaluate::protocol::{WireCapabilities, WireHealth};
use crate::evaluate::text::shortened;
use crate::evaluate::{EvaluatorTask, Fault, FaultClass};
use crate::lock::lock;
use crate::repeated_keys::refuse_repeated_keys;
use crate::scores::MOST_SAMPLES;
use crate::suggestion::nearest;

/// Why an endpoint cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) enum Refusal {
    /// For now: nobody listens, or the connection broke off. The server behind it has gone away.
    Gone(Fault),
    /// For now: it is there, but slow, starting, draining or ill.
    Down(Fault),
    /// For good: it does not take our token, or wants one.
    Credentials(Fault),
    /// For good: it cannot do what the run needs, or scores differently.
    Unsuitable(Fault),
}

impl Pool {
    /// Reads health and capabilities and checks them. Changes nothing but the pool's fingerprint, which the first
    /// endpoint that passes decides.
    pub(super) async fn handshake(&self, endpoint: &Endpoint) -> Result<Arc<Facts>, Refusal> {
        let health: WireHealth = self.get(endpoint, "v1/health").await?;
        if !matches!(health.status.as_str(), "ok" | "degraded") {
            let detail = format!("its health is `{}`", shortened(&health.status));
            return Err(Refusal::Down(infrastructure("not_ready", detail, endpoint)));
        }
        let wire: WireCapabilities = self.get(endpoint, "v1/capabilities").await?;
        check_demand(&wire, &self.demand).map_err(|fault| Refusal::Unsuitable(fault.at(&endpoint.label)))?;
        self.agree(&wire.fingerprint, endpoint)?;
        let facts = facts_of(&wire);
        self.agree_on_tasks(&facts).map_err(|fault| Refusal::Unsuitable(fault.at(&endpoint.label)))?;
        Ok(Arc::new(facts))
    }

    /// From now on, all endpoints have to score the run's tasks as the first of those in the run file that was met
    /// does; says which of them does not.
    pub fn settle_tasks(&self, first: &Facts) -> Result<(), Fault> {
        let agreed = self.demand.tasks.iter().filter_map(|task| {
            let metric = task.metric.as_ref().or_else(|| first.first_metrics.get(&task.name))?;
            Some((task.name.clone(), self.task_of(first, &task.name, metric)?))
        });
        let agreed = agreed.collect();
        *lock(&self.agreed) = Some(agreed);
        for endpoint in &self.endpoints {
            if let Some(facts) = endpoint.facts() {
                self.agree_on_tasks(&facts).map_err(|fault| fault.at(&endpoint.label))?;
            }
        }
        Ok(())
    }

    /// Whether every endpoint that was met says that it gives the same scores again: any of them may score any
    /// candidate.
    pub fn settle_determinism(&self) -> bool {
        let met = self.endpoints.iter().filter_map(|endpoint| Some((endpoint, endpoint.facts()?)));
        let (same, varying): (Vec<_>, Vec<_>) = met.partition(|(_, facts)| facts.capabilities.deterministic);
        if let Some((endpoint, _)) = varying.first().filter(|_| !same.is_empty()) {
            (self.notify)(&format!(
                "endpoint {} does not call itself deterministic, as others do: scores count as ones that may vary",
                endpoint.label
            ));
        }
        *self.deterministic.get_or_init(|| varying.is_empty())
    }

    /// What an endpoint has to have in common with the others of a task; `None`: it has no such task, or not with this
    /// metric.
    fn task_of(&self, facts: &Facts, task: &str, metric: &str) -> Option<AgreedTask> {
        let own = AgreedTask::of(facts, task, metric)?;
        let version = own.version.filter(|_| !self.demand.allow_different_fingerprints);
        Some(AgreedTask { version, ..own })
    }

    /// Makes sure that an endpoint has the others' versions of the tasks, scores as many samples, by the same metrics
    /// in the same direction, and can be asked for them in the same ways.
    fn agree_on_tasks(&self, facts: &Facts) -> Result<(), Fault> {
        let agreed = lock(&self.agreed);
        for (task, settled) in agreed.iter().flatten() {
            let metric = &settled.metric;
            let reason = match self.task_of(facts, task, metric) {
                None => format!("has no metric `{metric}`, by which the others score it"),
                Some(own) if settled.version != own.version => format!(
                    "has version {}, that of the others (or its own, when the run began) {}; serve the same version \
                     everywhere, or set allow_different_fingerprints = true",
                    shown_version(&own),
                    shown_version(settled)
                ),
                // Zero is unknown.
                Some(own) if settled.n_samples.min(own.n_samples) > 0 && settled.n_samples != own.n_samples => format!(
                    "has {} samples, that of the others (or its own, when the run began) {}",
                    own.n_samples, settled.n_samples
                ),
                Some(own) if settled.higher_is_better != own.higher_is_better => {
                    format!(
                        "has another `higher_is_better` of `{metric}` than the others (or itself, when the run began)"
                    )
                }
                Some(own) => match own.abilities.difference(settled.abilities, metric) {
                    Some(difference) => {
                        format!("{difference}, unlike that of the others (or its own, when the run began)")
                    }
                    None => continue,
                },
            };
            return Err(Fault::configuration("tasks_differ", format!("its task `{task}` {reason}")));
        }
        Ok(())
    }

    /// Makes sure that all endpoints score alike.
    fn agree(&self, fingerprint: &str, endpoint: &Endpoint) -> Result<(), Refusal> {
        if self.demand.allow_different_fingerprints {
            return Ok(());
        }
        let mut expected = lock(&self.expected);
        match expected.as_deref() {
            None => *expected = Some(fingerprint.to_owned()),
            Some(expected) if expected == fingerprint => {}
            Some(expected) => {
                let detail = format!(
                    "its fingerprint is {fingerprint}, that of the pool is {expected}: it would score differently; serve \
                     the same tasks, data and versions everywhere, or set allow_different_fingerprints = true"
                );
                return Err(Refusal::Unsuitable(
                    Fault::configuration("fingerprint_mismatch", detail).at(&endpoint.label),
                ));
            }
        }
        Ok(())
    }

    async fn get<T: DeserializeOwned>(&self, endpoint: &Endpoint, path: &str) -> Result<T, Refusal> {
        let down = |code: &str, detail: String| Refusal::Down(infrastructure(code, detail, endpoint));
        let url = endpoint.url.join(path).map_err(|error| down("endpoint", error.to_string()))?;
        let request = endpoint.client.request(Method::GET, url);
        let answer = match endpoint.client.exchange(request, self.limits.short, &self.limits).await {
            Ok(answer) => answer,
            Err(judgement) => {
                let gone = judgement.reaction == Reaction::Unreachable || judgement.loss == Some(Loss::Connection);
                let fault = judgement.fault.at(&endpoint.label);
                return Err(if gone { Refusal::Gone(fault) } else { Refusal::Down(fault) });
            }
        };
        if answer.status != 200 {
            let judgement = of_error_answer(&answer);
            let hint = match (answer.status, endpoint.url.path().trim_end_matches('/').ends_with("/v1")) {
                (404, true) => "; `endpoints` are base URLs, without /v1",
                (404, false) => "; is this an eval endpoint?",
                _ => "",
            };
            let fault = Fault { detail: format!("GET /{path}: {}{hint}", judgement.fault.detail), ..judgement.fault };
            let fault = fault.at(&endpoint.label);
            return Err(if judgement.reaction == Reaction::Pause {
                Refusal::Credentials(fault)
            } else {
                Refusal::Down(fault)
            });
        }
        let parsed = refuse_repeated_keys(&answer.body).and_then(|()| serde_json::from_slice(&answer.body));
        parsed.map_err(|error| {
            let told = misread::told(&answer.body, &error);
            down(
                "invalid_answer",
                format!("GET /{path}: not the protocol's document ({told}); is this an eval endpoint?"),
            )
        })
    }
}

impl AgreedTask {
    /// `None`: the endpoint has no such task, or not with this metric.
    fn of(facts: &Facts, task: &str, metric: &str) -> Option<Self> {
        let known = facts.capabilities.tasks.get(task)?;
        let of_metric = known.metrics.get(metric)?;
        let abilities = Abilities {
            sample_ids: known.supports_sample_ids,
            limit: known.supports_limit,
            per_sample: known.supports_per_sample,
            is_mean: of_metric.is_mean,
        };
        let version = facts.versions.get(task).cloned();
        let (n_samples, higher_is_better) = (known.n_samples, of_metric.higher_is_better);
        Some(Self { version, n_samples, metric: metric.to_owned(), higher_is_better, abilities })
    }
}

/// A task's version in a message.
fn shown_version(task: &AgreedTask) -> String {
    task.version.as_deref().map_or_else(|| "none".to_owned(), shortened)
}

impl Abilities {
    /// In what these are not `others`, for people.
    fn difference(self, others: Self, metric: &str) -> Option<String> {
        let supports = [
            ("sample_ids", self.sample_ids, others.sample_ids),
            ("limit", self.limit, others.limit),
            ("per_sample", self.per_sample, others.per_sample),
        ];
        let differing = |wanted: bool| {
            let found = supports.iter().filter(|(_, own, others)| own != others && *own == wanted);
            found.map(|(what, ..)| format!("`{what}`")).collect::<Vec<_>>()
        };
        let mut differences = Vec::new();
        for (verb, what) in [("lists no", differing(false)), ("lists", differing(true))] {
            if !what.is_empty() {
                differences.push(format!("{verb} {} among `supports`", what.join(", ")));
            }
        }
        if self.is_mean != others.is_mean {
            let what = if self.is_mean { "has" } else { "has not" };
            differences.push(format!("{what} the `aggregation` \"mean\" for `{metric}`"));
        }
        (!differences.is_empty()).then(|| differences.join(" and "))
    }
}

fn infrastructure(code: &str, detail: String, endpoint: &Endpoint) -> Fault {
    Fault::new(FaultClass::Infrastructure, code, detail).at(&endpoint.label)
}

fn facts_of(wire: &WireCapabilities) -> Facts {
    let versions = wire.tasks.iter().filter_map(|task| Some((task.name.clone(), task.version.clone()?)));
    let first = wire.tasks.iter().filter_map(|task| Some((task.name.clone(), task.metrics.first()?.name.clone())));
    let seconds =
        |seconds: Option<f64>| seconds.filter(|s| s.is_finite() && *s > 0.0 && *s < 1e9).map(Duration::from_secs_f64);
    Facts {
        instance_id: wire.instance_id.clone(),
        fingerprint: wire.fingerprint.clone(),
        capabilities: wire.to_capabilities(),
        versions: versions.collect(),
        first_metrics: first.collect(),
        max_inflight: wire.limits.max_inflight.map_or(usize::MAX, |most| most.max(1) as usize),
        max_timeout: seconds(wire.limits.max_timeout_s),
        heartbeat_interval: seconds(wire.limits.heartbeat_interval_s),
    }
}

/// # Errors
/// What the endpoint lacks: protocol, a way to hand over candidates, tasks, metrics.
fn check_demand(wire: &WireCapabilities, demand: &Demand) -> Result<(), Fault> {
    if !wire.speaks_our_protocol() {
        let detail = format!("it speaks protocol {:?}, expected \"1.0\"", wire.protocol);
        return Err(Fault::configuration("protocol_unsupported", shortened(&detail)));
    }
    if !wire.sources.iter().any(|source| source == "path") {
        let detail = format!(
            "it takes candidates as {:?}, not by path; evomerge hands candidates over as folders that both sides see",
            wire.sources
        );
        return Err(Fault::configuration("source_unsupported", shortened(&detail)));
    }
    demand.tasks.iter().try_for_each(|task| check_task(wire, task))
}

fn check_task(wire: &WireCapabilities, task: &EvaluatorTask) -> Result<(), Fault> {
    let names: Vec<&str> = wire.tasks.iter().map(|known| known.name.as_str()).collect();
    let mut of_that_name = wire.tasks.iter().filter(|known| known.name == task.name);
    let Some(known) = of_that_name.next() else {
        return Err(Fault::configuration("unknown_task", unknown("task", &task.name, &names)));
    };
    if of_that_name.next().is_some() {
        let detail = format!("its capabilities have task {} more than once; nobody knows which is scored", task.name);
        return Err(Fault::configuration("repeated_task", shortened(&detail)));
    }
    if known.n_samples > MOST_SAMPLES {
        let detail = format!("task {} has n_samples {}, which is no number of samples", task.name, known.n_samples);
        return Err(Fault::configuration("bad_n_samples", shortened(&detail)));
    }
    let metrics: Vec<&str> = known.metrics.iter().map(|metric| metric.name.as_str()).collect();
    match &task.metric {
        _ if metrics.is_empty() => {
            Err(Fault::configuration("unknown_task", format!("task {} has no metric", task.name)))
        }
        Some(metric) if !metrics.contains(&metric.as_str()) => {
            let detail = unknown(&format!("metric of task {}:", task.name), metric, &metrics);
            Err(Fault::configuration("unknown_metric", detail))
        }
        _ => Ok(()),
    }
}

/// `unknown task x; known: a, b; did you mean a?`
fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let best = nearest(name, known.iter().copied()).map(|known| format!("; did you mean {known}?"));
    shortened(&format!("unknown {what} {name}; known: {}{}", known.join(", "), best.unwrap_or_default()))
}
