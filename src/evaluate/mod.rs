//! Evaluators: everything that can score a candidate. One trait, four kinds; strategies never see this room.
//!
//! ```text
//! connect -> http      pool of endpoints; answers follow protocol and pass check; retry decides when
//!         -> command   one process group an attempt (process); the same documents in files
//!         -> function  closed-form landscapes, faults and latency to order
//!         -> native    Llama-family models on the CPU
//! ```
//!
//! Whatever the kind, an answer is checked before it counts, a fault of the endpoint never becomes a score, and a fault
//! of the candidate is never retried. Who is to blame is decided in one place for each way of travelling: `http` for
//! error answers, `command` for exit codes, both in the words of `judgement`.

mod answer;
mod capabilities;
mod check;
mod closed_form;
pub mod command;
mod fault;
pub mod function;
pub mod http;
mod judgement;
mod misread;
#[cfg(feature = "native")]
pub mod native;
mod process;
pub mod protocol;
mod request;
pub mod retry;
mod text;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::config::{EvaluatorConfig, EvaluatorKind};

pub use answer::{Attempt, AttemptObserver, Evaluation};
pub use capabilities::{Capabilities, MetricCapability, TaskCapability};
pub use fault::{EvaluateError, Fault, FaultClass};
pub(crate) use http::is_same_server;
pub use request::{CandidateRequest, EvaluationRequest, EvaluatorTask, Samples, TaskRequest};

/// An endpoint that cannot be asked now.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// As the run file names it.
    pub endpoint: String,
    /// Since when it cannot be asked.
    pub since: SystemTime,
    /// What it last failed with, for people.
    pub reason: String,
}

/// Scores candidates. Implementations own their endpoints, their retries and their checks of an answer; what they
/// return may be recorded as it is.
pub trait Evaluator: Send + Sync {
    /// `native`, `http`, ... for messages.
    fn kind(&self) -> &'static str;

    /// Everything that can change a score, hashed: part of every `evaluation_id`.
    fn fingerprint(&self) -> &str;

    /// Tasks with their metrics, sizes and what they support.
    fn capabilities(&self) -> &Capabilities;

    /// Evaluations that may run at once.
    fn concurrency(&self) -> NonZeroUsize;

    /// Whether a candidate must be materialized before [`Self::evaluate`] (false for closed-form landscapes).
    fn needs_checkpoint(&self) -> bool {
        true
    }

    /// The metric that a task is scored by when the run file names none: the first one that the evaluator lists.
    /// Evaluators with several metrics a task say themselves which that is; what is here, the first by name, is for
    /// those with one.
    fn default_metric(&self, task: &str) -> Option<&str> {
        self.capabilities().tasks.get(task)?.metrics.keys().next().map(String::as_str)
    }

    /// Whether `higher_is_better` in the capabilities is the evaluator's own word. False for `command`, which cannot
    /// tell: there the run file's `goal` decides, and no contradiction is possible.
    fn knows_direction(&self) -> bool {
        true
    }

    /// Whether models with the configuration and the tokenizer in `folder` can be scored at all; asked before the first
    /// candidate is made of them. Evaluators that cannot tell take every model.
    ///
    /// # Errors
    /// What a candidate of that kind would fail with, naming the file.
    fn check_model(&self, _folder: &Path) -> Result<(), Fault> {
        Ok(())
    }

    /// The endpoints that cannot be asked now, because they were not reached since the start or are shut after faults or
    /// an outage, with since when and why; in the order of the run file. Empty where all can be asked, and for
    /// evaluators without endpoints. Those that are left out for good are not waited for, so they are not among them.
    fn waiting(&self) -> Vec<Waiting> {
        Vec::new()
    }

    /// Whether none of its endpoints can be asked now: all that are not left out for good are among
    /// [`Self::waiting`]. What is with an endpoint already may still be answered.
    fn is_out_of_reach(&self) -> bool {
        false
    }

    /// Scores one candidate, retrying infrastructure faults inside. Cancel-safe; the same request may be sent again.
    /// Every attempt is reported to `attempts` before the next one starts.
    fn evaluate<'a>(
        &'a self,
        request: &'a EvaluationRequest,
        attempts: &'a dyn AttemptObserver,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Evaluation, EvaluateError>>;
}

/// Takes one line for people, such as `waiting for endpoint http://127.0.0.1:8431`.
pub type Notify = Arc<dyn Fn(&str) + Send + Sync>;

/// What an evaluator gets from the run besides its own table.
#[derive(Clone)]
pub struct ConnectContext {
    /// The run's seed: jitter of waits, and the landscapes of `function`.
    pub seed: u64,
    /// A folder that the evaluator may write to (request and result files of `command`); made when needed.
    pub directory: PathBuf,
    /// Where the evaluator says what it waits for, and what becomes of its endpoints.
    pub notify: Notify,
    /// Cancelled when a signal asks the search to stop, and only then: not at the end of `wall_clock` or of the rest of
    /// the budget. Attempts under way go on, but nothing waits for an endpoint or for a next attempt any more, and
    /// evaluations that would end as cancelled.
    pub stopping: CancellationToken,
}

/// Builds the evaluator that the run file asks for and makes sure that it can do what the run needs: endpoints answer,
/// tasks and metrics are known, programs exist. Waits up to `startup_timeout` for endpoints that are down.
///
/// # Errors
/// [`EvaluateError::Setting`] and [`EvaluateError::Configuration`] for what only the user can put right,
/// [`EvaluateError::Outage`] when nothing answered in time, [`EvaluateError::TaskData`] for unreadable task files,
/// [`EvaluateError::Cancelled`].
pub async fn connect(
    config: &EvaluatorConfig,
    tasks: &[EvaluatorTask],
    context: &ConnectContext,
    cancel: &CancellationToken,
) -> Result<Arc<dyn Evaluator>, EvaluateError> {
    match &config.kind {
        EvaluatorKind::Http(http) => {
            Ok(Arc::new(http::HttpEvaluator::connect(http, &config.patience, tasks, context, cancel).await?))
        }
        EvaluatorKind::Command(command) => {
            Ok(Arc::new(command::CommandEvaluator::connect(command, &config.patience, tasks, context)?))
        }
        EvaluatorKind::Function(function) => {
            Ok(Arc::new(function::FunctionEvaluator::connect(function, &config.patience, tasks, context)?))
        }
        #[cfg(feature = "native")]
        EvaluatorKind::Native(native) => native::connect(native, &config.patience, tasks),
        #[cfg(not(feature = "native"))]
        EvaluatorKind::Native(_) => Err(EvaluateError::setting(
            "kind",
            "this build has no native evaluator (it was built without the feature `native`); use kind = \"http\" or \"command\"",
        )),
    }
}

/// sha256 over texts, each with its length before it, so that no two lists of texts are taken for one another.
fn hash_parts<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    crate::digest::hex(&hash.finalize())
}
