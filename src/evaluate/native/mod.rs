//! The embedded evaluator: scores Llama-family checkpoints on the CPU, in float32, without a server and without Python.
//!
//! Task data is JSON lines; a line's keys say how its sample is judged. An `id` may be added to each (an integer or a
//! string; the line's number from 0 without it):
//!
//! * **exact match** (`prompt`, `answer`): greedy decoding from the prompt, as the tokenizer encodes it, to an end
//!   token or to the task's `max_new_tokens` (the end token counts). Right if the decoded tokens before the end token,
//!   special ones included, equal the answer exactly: nothing is trimmed, no case is folded. An answer without an end
//!   token is wrong and counted in `n_truncated`.
//! * **multiple choice** (`prompt`, `choices`, `gold`): the choice with the largest log-likelihood after the prompt is
//!   taken (the first of equals); for `acc_norm` the largest log-likelihood divided by the choice's length in
//!   characters, as the choice is written. Prompt and choice are joined as they are written, without a space between;
//!   they are split as the language model evaluation harness splits them, so a prompt that ends in a space gives that
//!   harness's numbers for choices without one.
//! * **perplexity** (`text`): `bits_per_byte` is minus the log-likelihood in bits over the bytes of UTF-8, lower is
//!   better. The task's value is the sum over all samples over all bytes, which is the mean of the samples' values
//!   weighted by their bytes, not their plain mean. Texts longer than the model's context go in windows, as in that
//!   harness.
//!
//! Likelihoods are computed sample by sample; answers in batches of equally long prompts. Neither depends on the number
//! of threads.

mod architecture;
mod data;
mod deadline;
mod exact_match;
mod fault;
mod kernels;
mod likelihood;
mod model;
mod samples;
mod scoring;
mod tokens;
mod weights;
mod workers;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use self::data::{TaskData, TaskKind};
use self::deadline::Deadline;
use self::scoring::{Engine, Task};
use crate::config::{NativeConfig, Patience};
use crate::document::FieldError;
use crate::evaluate::retry::{AttemptLog, RetryPolicy, wait};
use crate::evaluate::{
    AttemptObserver, Capabilities, EvaluateError, Evaluation, EvaluationRequest, Evaluator, EvaluatorTask, Fault,
    FaultClass,
};

/// Reads the tasks' data and returns the evaluator.
///
/// # Errors
/// [`EvaluateError::TaskData`] for data that cannot be read or parsed; [`EvaluateError::Setting`] for a metric that
/// does not fit its data; [`EvaluateError::Configuration`] for a task without data, or one named twice.
pub fn connect(
    config: &NativeConfig,
    patience: &Patience,
    tasks: &[EvaluatorTask],
) -> Result<Arc<dyn Evaluator>, EvaluateError> {
    Ok(Arc::new(NativeEvaluator::new(config, patience, tasks)?))
}

struct NativeEvaluator {
    engine: Arc<Engine>,
    fingerprint: String,
    capabilities: Capabilities,
    patience: Patience,
    policy: RetryPolicy,
}

impl NativeEvaluator {
    fn new(config: &NativeConfig, patience: &Patience, tasks: &[EvaluatorTask]) -> Result<Self, EvaluateError> {
        let mut known = BTreeMap::new();
        let mut capabilities = Capabilities { tasks: BTreeMap::new(), deterministic: true };
        let mut hash = Fingerprint::new();
        for task in tasks {
            let path = task.data.as_ref().ok_or_else(|| {
                refused(format!("task `{}` needs `data`, a JSON-lines file, for the native evaluator", task.name))
            })?;
            let data = TaskData::read(path)?;
            let fitting = data.kind.metrics();
            let metric = task.metric.as_deref().unwrap_or(fitting[0]);
            if !fitting.contains(&metric) {
                return Err(unfit_metric(&task.name, metric, path, data.kind));
            }
            let max_new_tokens = task.max_new_tokens.unwrap_or(config.max_new_tokens);
            if max_new_tokens == 0 {
                return Err(refused(format!("task `{}`: `max_new_tokens` is 0; allow at least 1", task.name)));
            }
            hash.task(&task.name, &data.file_sha256, metric, max_new_tokens);
            capabilities.tasks.insert(task.name.clone(), data.capability());
            if known.insert(task.name.clone(), Task { data, max_new_tokens }).is_some() {
                return Err(refused(format!("task `{}` is there twice; name each task differently", task.name)));
            }
        }
        let threads = config.threads.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
        let engine = Engine::new(known, threads, config.batch).map_err(EvaluateError::Unusable)?;
        // Nobody else is waiting for this process's own faults to pass, so waits are short and need no jitter.
        let policy = RetryPolicy {
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(10),
            ..RetryPolicy::default()
        };
        Ok(Self {
            engine: Arc::new(engine),
            fingerprint: hash.finish(),
            capabilities,
            patience: patience.clone(),
            policy,
        })
    }

    /// One try: off the async threads, stopped when this future is dropped.
    async fn attempt(
        &self,
        request: &EvaluationRequest,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<Evaluation, Fault> {
        let cancel = cancel.child_token();
        let _stops_when_dropped = cancel.clone().drop_guard();
        let (engine, request) = (self.engine.clone(), request.clone());
        tokio::task::spawn_blocking(move || engine.evaluate(&request, &Deadline::new(cancel, limit)))
            .await
            .unwrap_or_else(|error| {
                Err(fault::internal(format!("the evaluation ended without an answer: {error}; please report this")))
            })
    }
}

impl Evaluator for NativeEvaluator {
    fn kind(&self) -> &'static str {
        "native"
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// One: an evaluation uses all threads.
    fn concurrency(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }

    fn default_metric(&self, task: &str) -> Option<&str> {
        self.engine.default_metric(task)
    }

    fn check_model(&self, folder: &Path) -> Result<(), Fault> {
        self.engine.check_model(folder)
    }

    fn evaluate<'a>(
        &'a self,
        request: &'a EvaluationRequest,
        attempts: &'a dyn AttemptObserver,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Evaluation, EvaluateError>> {
        Box::pin(async move {
            let mut log = AttemptLog::new(attempts);
            let mut limit = self.patience.timeout;
            let mut failures = 0;
            loop {
                let started = Instant::now();
                let result = self.attempt(request, limit, cancel).await;
                let fault = result.as_ref().err();
                let counts = fault.is_none_or(|fault| fault.class != FaultClass::Cancelled);
                log.report(None, started, counts, fault);
                let fault = match result {
                    Ok(evaluation) => return Ok(evaluation),
                    Err(fault) => fault,
                };
                let attempts_allowed = match fault.class {
                    FaultClass::Candidate => return Err(EvaluateError::Candidate(fault)),
                    FaultClass::Configuration => return Err(EvaluateError::Configuration(fault)),
                    FaultClass::Cancelled => return Err(EvaluateError::Cancelled),
                    // The same work takes the same time: once more, with twice the time.
                    FaultClass::Resource => self.patience.max_attempts.min(2),
                    FaultClass::Infrastructure => self.patience.max_attempts,
                };
                if failures + 1 >= attempts_allowed {
                    return Err(EvaluateError::GivenUp(fault));
                }
                if fault.class == FaultClass::Resource {
                    limit = limit.saturating_mul(2);
                }
                wait(self.policy.doubled_wait(failures), cancel).await?;
                failures += 1;
            }
        })
    }
}

/// The data may be those of a hold-out, for which the metric of the search has to do as well.
fn unfit_metric(task: &str, metric: &str, path: &Path, kind: TaskKind) -> EvaluateError {
    let reason = format!(
        "the `metric` of task `{task}` is `{metric}`, which does not fit {}: that is {}, scored by {}",
        path.display(),
        kind.describe(),
        kind.metrics().join(" or ")
    );
    EvaluateError::Setting(FieldError::new("tasks", reason))
}

fn refused(detail: String) -> EvaluateError {
    EvaluateError::Configuration(Fault::configuration("task_failed", detail))
}

/// What can change a score: this evaluator and its version, the arithmetic, and of each task its data, metric and
/// limit. Not the threads, and not the batch.
struct Fingerprint {
    tasks: BTreeMap<String, String>,
}

impl Fingerprint {
    fn new() -> Self {
        Self { tasks: BTreeMap::new() }
    }

    fn task(&mut self, name: &str, data_sha256: &str, metric: &str, max_new_tokens: usize) {
        let part = serde_json::json!([name, data_sha256, metric, max_new_tokens]).to_string();
        self.tasks.insert(name.to_owned(), part);
    }

    fn finish(self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("evomerge native {} float32\n", env!("CARGO_PKG_VERSION")));
        for part in self.tasks.values() {
            hash.update(part);
            hash.update("\n");
        }
        crate::digest::hex(&hash.finalize())
    }
}

#[cfg(test)]
mod tests;
