//! The `function` evaluator: closed-form landscapes over the genome, with noise, latency and faults to order. It needs
//! no checkpoint, so that a search can be tried, and tested, without a model.
//!
//! A task's landscape has a seeded optimum of its own. A candidate answers sample `j` of a task rightly when a number
//! `u_j`, drawn once for all candidates, lies below the landscape's value: siblings agree on most samples, as real
//! models do. Every number is drawn from the run's seed and what it belongs to, never from time.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Instant;

use futures_util::future::BoxFuture;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::retry::{AttemptLog, Jitter, RetryPolicy, rest, wait};
use super::{
    AttemptObserver, CandidateRequest, Capabilities, ConnectContext, EvaluateError, Evaluation, EvaluationRequest,
    Evaluator, EvaluatorTask, Fault, FaultClass, MetricCapability, Samples, TaskCapability, TaskRequest,
};
use crate::config::{FunctionConfig, Patience, TestFunction};
use crate::random::stream;
use crate::scores::{MetricValue, PerSample, SampleId, TaskScores};

/// Where candidates without a genome (base, sources, soups) lie.
const BASELINES: std::ops::Range<f64> = 0.05..0.35;
/// Where optima lie, in every gene.
const OPTIMA: std::ops::Range<f64> = 0.2..0.8;

/// Scores candidates by their genome.
pub struct FunctionEvaluator {
    config: FunctionConfig,
    patience: Patience,
    capabilities: Capabilities,
    fingerprint: String,
    places: Semaphore,
    policy: RetryPolicy,
    seed: u64,
    stopping: CancellationToken,
}

impl FunctionEvaluator {
    /// Builds the landscapes. Retries wait only where `latency` is set: without it, nothing here takes time.
    ///
    /// # Errors
    /// [`EvaluateError::Setting`]: samples, noise or rates that are out of range.
    pub fn connect(
        config: &FunctionConfig,
        patience: &Patience,
        tasks: &[EvaluatorTask],
        context: &ConnectContext,
    ) -> Result<Self, EvaluateError> {
        let policy = RetryPolicy::scaled(if config.latency.is_zero() { 0.0 } else { 1.0 });
        let evaluator = Self::with_policy(config, patience, tasks, context.seed, policy)?;
        Ok(Self { stopping: context.stopping.clone(), ..evaluator })
    }

    /// Builds the landscapes like [`Self::connect`], with the retry policy `policy`.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn with_policy(
        config: &FunctionConfig,
        patience: &Patience,
        tasks: &[EvaluatorTask],
        seed: u64,
        policy: RetryPolicy,
    ) -> Result<Self, EvaluateError> {
        config.check().map_err(|error| EvaluateError::setting(&error.key, error.reason))?;
        Ok(Self {
            config: config.clone(),
            patience: patience.clone(),
            capabilities: capabilities_of(config, tasks),
            fingerprint: fingerprint_of(config, tasks, seed),
            places: Semaphore::new(config.in_flight.get()),
            policy,
            seed,
            stopping: CancellationToken::new(),
        })
    }

    async fn course(
        &self,
        request: &EvaluationRequest,
        attempts: &dyn AttemptObserver,
        cancel: &CancellationToken,
    ) -> Result<Evaluation, EvaluateError> {
        let mut log = AttemptLog::new(attempts);
        let mut jitter = Jitter::new(self.seed, &request.evaluation_id, &self.policy);
        let (mut number, mut counted) = (0, 0);
        loop {
            let place = tokio::select! {
                () = cancel.cancelled() => return Err(EvaluateError::Cancelled),
                place = self.places.acquire() => place.map_err(|_| EvaluateError::Cancelled)?,
            };
            let started = Instant::now();
            number += 1;
            let mut draws = stream(self.seed, &format!("function attempt {}", request.evaluation_id), number);
            let latency = self.config.latency + self.config.latency_jitter.mul_f64(draws.random::<f64>());
            wait(latency, cancel).await?;
            let is_faulty = draws.random::<f64>() < self.config.fault_rate;
            drop(place);
            if !is_faulty {
                let outcome = self.score(request);
                log.report(None, started, true, outcome.as_ref().err());
                return outcome.map_err(|fault| match fault.class {
                    FaultClass::Candidate => EvaluateError::Candidate(fault),
                    _ => EvaluateError::Configuration(fault),
                });
            }
            let counts = draws.random();
            let fault = ordered_fault(counts);
            log.report(None, started, counts, Some(&fault));
            counted += u32::from(counts);
            if counted >= self.patience.max_attempts {
                return Err(EvaluateError::GivenUp(fault));
            }
            rest(jitter.next_wait(&self.policy), cancel, &self.stopping).await?;
        }
    }

    fn score(&self, request: &EvaluationRequest) -> Result<Evaluation, Fault> {
        let candidate = &request.candidate;
        if self.is_infeasible(candidate) {
            let detail = format!("infeasible by order (infeasible_rate = {})", self.config.infeasible_rate);
            return Err(Fault::new(FaultClass::Candidate, "candidate_invalid", detail));
        }
        if candidate.genome.iter().any(|gene| !gene.is_finite()) {
            let detail = "a gene of the candidate is not finite";
            return Err(Fault::new(FaultClass::Candidate, "candidate_nonfinite", detail));
        }
        let scored = request.tasks.iter().map(|task| Ok((task.name.clone(), self.task_scores(task, request)?)));
        Ok(Evaluation::new(scored.collect::<Result<_, Fault>>()?, []))
    }

    /// A property of the candidate, the same at every attempt and fidelity. Baselines are models that exist: feasible.
    fn is_infeasible(&self, candidate: &CandidateRequest) -> bool {
        let mut draws = stream(self.seed, &format!("function infeasible {}", candidate.recipe_sha256), 0);
        !candidate.genome.is_empty() && draws.random::<f64>() < self.config.infeasible_rate
    }

    /// The chance to answer a sample of `task` rightly.
    fn ability(&self, task: &str, candidate: &CandidateRequest) -> f64 {
        // Where there is nothing to find, baselines are as good as everything else.
        if candidate.genome.is_empty() && self.config.function != TestFunction::Flat {
            let purpose = format!("function baseline {task} {}", candidate.recipe_sha256);
            return stream(self.seed, &purpose, 0).random_range(BASELINES);
        }
        self.config.function.value(&candidate.genome, &self.optimum(task, candidate.genome.len()))
    }

    fn optimum(&self, task: &str, genes: usize) -> Vec<f64> {
        let mut draws = stream(self.seed, &format!("function optimum {task}"), 0);
        (0..genes).map(|_| draws.random_range(OPTIMA)).collect()
    }

    fn task_scores(&self, task: &TaskRequest, request: &EvaluationRequest) -> Result<TaskScores, Fault> {
        let known = self.capabilities.tasks.get(&task.name).and_then(|known| known.metrics.get(&task.metric));
        if known.is_none() {
            let detail = format!("task {} with metric {} is none of this evaluator's", task.name, task.metric);
            return Err(Fault::configuration("unknown_task", detail));
        }
        let samples = self.chosen_samples(task)?;
        let ability = self.ability(&task.name, &request.candidate);
        let noise_of =
            format!("function noise {} {} {}", task.name, request.candidate.recipe_sha256, request.replicate);
        let question_of = format!("function sample {}", task.name);
        let scores: Vec<f64> = samples
            .iter()
            .map(|&sample| {
                let right = stream(self.seed, &question_of, sample).random::<f64>() < ability;
                let noise: f64 = match self.config.noise {
                    0.0 => 0.0,
                    deviation => deviation * noise_draw(self.seed, &noise_of, sample),
                };
                f64::from(u8::from(right)) + noise
            })
            .collect();
        Ok(TaskScores {
            n: scores.len() as u64,
            n_truncated: None,
            metrics: BTreeMap::from([(task.metric.clone(), MetricValue::mean_of(&scores))]),
            per_sample: Some(PerSample {
                ids: samples.iter().map(|&sample| SampleId::Number(sample as i64)).collect(),
                scores: BTreeMap::from([(task.metric.clone(), scores)]),
            }),
        })
    }

    /// Sample numbers, at least one: in the order of ids asked for, else ascending.
    fn chosen_samples(&self, task: &TaskRequest) -> Result<Vec<u64>, Fault> {
        let all = self.config.samples;
        let refuse = |detail: String| Fault::configuration("invalid_request", format!("task {}: {detail}", task.name));
        match &task.samples {
            Samples::All => Ok((0..all).collect()),
            Samples::Limit(0) => Err(refuse("a limit of 0 samples".into())),
            Samples::Limit(limit) => {
                let mut chosen: Vec<u64> = (0..all).collect();
                let keep = (*limit).min(all) as usize;
                let mut draws = stream(task.seed, &format!("function permutation {}", task.name), 0);
                // The first places of a Fisher-Yates shuffle do not depend on how far it goes: subsets are nested.
                for place in 0..keep {
                    let other = draws.random_range(place as u64..all) as usize;
                    chosen.swap(place, other);
                }
                chosen.truncate(keep);
                chosen.sort_unstable();
                Ok(chosen)
            }
            Samples::Ids(ids) if ids.is_empty() => Err(refuse("no sample ids".into())),
            Samples::Ids(ids) => ids
                .iter()
                .map(|id| match id {
                    SampleId::Number(number) if (0..all as i64).contains(number) => Ok(*number as u64),
                    other => Err(refuse(format!("sample {other} does not exist; ids run from 0 to {}", all - 1))),
                })
                .collect(),
        }
    }
}

fn noise_draw(seed: u64, purpose: &str, sample: u64) -> f64 {
    StandardNormal.sample(&mut stream(seed, purpose, sample))
}

/// One of the two kinds of fault that endpoints have most: one that counts as an attempt, or back-pressure.
fn ordered_fault(counts: bool) -> Fault {
    let (code, detail) =
        if counts { ("internal", "a fault to order") } else { ("overloaded", "back-pressure to order") };
    Fault::new(FaultClass::Infrastructure, code, detail)
}

fn capabilities_of(config: &FunctionConfig, tasks: &[EvaluatorTask]) -> Capabilities {
    let bounds = if config.noise == 0.0 { (Some(0.0), Some(1.0)) } else { (None, None) };
    let tasks = tasks.iter().map(|task| {
        let metric = MetricCapability { higher_is_better: true, min: bounds.0, max: bounds.1, is_mean: true };
        let name = task.metric_or_default().to_owned();
        let capability = TaskCapability {
            n_samples: config.samples,
            sample_ids: Some((0..config.samples as i64).map(SampleId::Number).collect()),
            metrics: [(name, metric)].into(),
            supports_sample_ids: true,
            supports_limit: true,
            supports_per_sample: true,
            sample_hashes: None,
            sample_set: None,
        };
        (task.name.clone(), capability)
    });
    // With noise, a replicate of an evaluation has other scores.
    Capabilities { tasks: tasks.collect(), deterministic: config.noise == 0.0 }
}

/// Latency and faults are left out: they change no score. The seed is in: it places the optima.
fn fingerprint_of(config: &FunctionConfig, tasks: &[EvaluatorTask], seed: u64) -> String {
    let mut names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    names.sort_unstable();
    let numbers = format!("{seed} {} {} {}", config.samples, config.noise, config.infeasible_rate);
    super::hash_parts(["function", "1", config.function.name(), &numbers].into_iter().chain(names))
}

impl Evaluator for FunctionEvaluator {
    fn kind(&self) -> &'static str {
        "function"
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn concurrency(&self) -> NonZeroUsize {
        self.config.in_flight
    }

    fn needs_checkpoint(&self) -> bool {
        false
    }

    fn evaluate<'a>(
        &'a self,
        request: &'a EvaluationRequest,
        attempts: &'a dyn AttemptObserver,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Evaluation, EvaluateError>> {
        Box::pin(self.course(request, attempts, cancel))
    }
}

#[cfg(test)]
#[path = "function_tests.rs"]
mod tests;
