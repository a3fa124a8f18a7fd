//! The `command` evaluator: any program. It gets the request as a JSON file and leaves the answer in another; its exit
//! code says who is to blame.
//!
//! | exit | meaning |
//! | --- | --- |
//! | 0 with a valid result file | scored (or `failed`, as the file says) |
//! | 65 | the candidate is bad: worst fitness, final |
//! | 75 | not now: tried again |
//! | 78 | configuration: the run stops |
//! | killed by SIGKILL | out of memory, most likely: tried again |
//! | anything else, or exit 0 without a valid file | infrastructure: tried again |

mod result;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::judgement::{Judgement, Reaction};
use super::process::{End, Program, find_program, find_setpriv, run};
use super::retry::{AttemptLog, Jitter, RetryPolicy, rest};
use super::text::shortened;
use super::{
    AttemptObserver, Capabilities, ConnectContext, EvaluateError, Evaluation, EvaluationRequest, Evaluator,
    EvaluatorTask, Fault, FaultClass, MetricCapability, TaskCapability, protocol,
};
use crate::config::{self, CommandConfig, Patience};
use crate::lock::lock;

/// What a program gets between SIGTERM and SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(10);
/// Evaluations in a row that are given up without any success after which the program itself is taken to be ill.
const GIVEN_UP_IN_A_ROW: u32 = 3;

/// How the names of the folders begin in which programs get their requests.
const DESK: &str = "attempt-";

/// What an argument may name in braces; each attempt puts its own value there.
#[derive(Clone, Copy)]
enum Placeholder {
    CandidateDir,
    RequestFile,
    ResultFile,
    ResultDir,
    RecipeFile,
    Slot,
    Seed,
    Replicate,
}

impl Placeholder {
    const ALL: [Self; 8] = [
        Self::CandidateDir,
        Self::RequestFile,
        Self::ResultFile,
        Self::ResultDir,
        Self::RecipeFile,
        Self::Slot,
        Self::Seed,
        Self::Replicate,
    ];

    /// As it is written between the braces.
    const fn name(self) -> &'static str {
        match self {
            Self::CandidateDir => "candidate_dir",
            Self::RequestFile => "request_file",
            Self::ResultFile => "result_file",
            Self::ResultDir => "result_dir",
            Self::RecipeFile => "recipe_file",
            Self::Slot => "slot",
            Self::Seed => "seed",
            Self::Replicate => "replicate",
        }
    }

    /// The placeholder of that name.
    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|placeholder| placeholder.name() == name)
    }
}

/// Scores candidates with a program.
pub struct CommandEvaluator {
    argv: Vec<String>,
    program: PathBuf,
    setpriv: Option<PathBuf>,
    directory: PathBuf,
    scratch: PathBuf,
    capabilities: Capabilities,
    fingerprint: String,
    in_flight: NonZeroUsize,
    places: Semaphore,
    free_slots: Mutex<Vec<usize>>,
    patience: Patience,
    policy: RetryPolicy,
    term_grace: Duration,
    seed: u64,
    stopping: CancellationToken,
    health: Mutex<Health>,
}

/// What the evaluations so far say of the program itself. It is well after each candidate that it scores or finds
/// invalid.
enum Health {
    /// It has done neither in this session.
    Unproven,
    /// Evaluations given up since it last did.
    GivenUpInARow(u32),
}

impl CommandEvaluator {
    /// Checks the program and its placeholders.
    ///
    /// # Errors
    /// [`EvaluateError::Setting`]: no program, unknown placeholder, or neither `{result_file}` nor `{result_dir}`.
    pub fn connect(
        config: &CommandConfig,
        patience: &Patience,
        tasks: &[EvaluatorTask],
        context: &ConnectContext,
    ) -> Result<Self, EvaluateError> {
        Self::connect_with(config, patience, tasks, context, RetryPolicy::default(), TERM_GRACE)
    }

    pub(super) fn connect_with(
        config: &CommandConfig,
        patience: &Patience,
        tasks: &[EvaluatorTask],
        context: &ConnectContext,
        policy: RetryPolicy,
        term_grace: Duration,
    ) -> Result<Self, EvaluateError> {
        let program = check_argv(config).map_err(|reason| EvaluateError::setting("argv", reason))?;
        let scratch = context.directory.join("command");
        remove_desks(&scratch);
        Ok(Self {
            argv: config.argv.clone(),
            program,
            setpriv: find_setpriv(),
            directory: config.directory.clone(),
            scratch,
            capabilities: Capabilities { deterministic: config.deterministic, ..capabilities_of(tasks) },
            fingerprint: fingerprint_of(config, tasks),
            in_flight: config.in_flight,
            places: Semaphore::new(config.in_flight.get()),
            free_slots: Mutex::new((0..config.in_flight.get()).rev().collect()),
            patience: patience.clone(),
            policy,
            term_grace,
            seed: context.seed,
            stopping: context.stopping.clone(),
            health: Mutex::new(Health::Unproven),
        })
    }

    async fn course(
        &self,
        request: &EvaluationRequest,
        attempts: &dyn AttemptObserver,
        cancel: &CancellationToken,
    ) -> Result<Evaluation, EvaluateError> {
        let folder = request.candidate.path.as_deref().ok_or_else(|| {
            let detail = "the candidate has no folder; programs take candidates by path".to_owned();
            EvaluateError::Configuration(Fault::configuration("candidate_folder", detail))
        })?;
        let mut log = AttemptLog::new(attempts);
        let mut jitter = Jitter::new(self.seed, &request.evaluation_id, &self.policy);
        let (mut counted, mut timeouts, mut timeout) = (0, 0, self.patience.timeout);
        loop {
            let slot = self.slot(cancel).await?;
            let started = Instant::now();
            let outcome = self.attempt(request, folder, slot.number, timeout, cancel).await;
            drop(slot);
            let judgement = match outcome {
                Ok(evaluation) => {
                    log.report(None, started, true, None);
                    *self.health() = Health::GivenUpInARow(0);
                    return Ok(evaluation);
                }
                Err(judgement) => judgement,
            };
            if cancel.is_cancelled() {
                log.report(None, started, false, Some(&judgement.fault));
                return Err(EvaluateError::Cancelled);
            }
            log.report(None, started, true, Some(&judgement.fault));
            counted += 1;
            match judgement.reaction {
                Reaction::Blame => {
                    *self.health() = Health::GivenUpInARow(0);
                    return Err(EvaluateError::Candidate(judgement.fault));
                }
                Reaction::Stop | Reaction::Pause => return Err(EvaluateError::Configuration(judgement.fault)),
                Reaction::Timeout => {
                    timeouts += 1;
                    timeout *= 2;
                }
                Reaction::Retry | Reaction::Wait | Reaction::Unreachable => {}
            }
            if timeouts >= 2 || judgement.hopeless || counted >= self.patience.max_attempts {
                return Err(self.give_up(judgement.fault));
            }
            let drawn = jitter.next_wait(&self.policy);
            rest(self.policy.wait(judgement.retry_after, drawn), cancel, &self.stopping).await?;
        }
    }

    /// Attempts are used up. Another success is the only sign of health that a program can give: without one, now or
    /// for several evaluations, the run stops instead of giving up one candidate after another.
    fn give_up(&self, fault: Fault) -> EvaluateError {
        let ill = match &mut *self.health() {
            Health::Unproven => "the program has not scored anything in this session yet".to_owned(),
            Health::GivenUpInARow(count) => {
                *count = count.saturating_add(1);
                if *count < GIVEN_UP_IN_A_ROW {
                    return EvaluateError::GivenUp(fault);
                }
                format!("that makes {count} evaluations in a row without a score")
            }
        };
        EvaluateError::Unusable(Fault { detail: format!("{}; {ill}", fault.detail), ..fault })
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        // Plain data, whole after every statement.
        lock(&self.health)
    }

    async fn attempt(
        &self,
        request: &EvaluationRequest,
        folder: &Path,
        slot: usize,
        timeout: Duration,
        cancel: &CancellationToken,
    ) -> Result<Evaluation, Judgement> {
        let source = protocol::path_source(folder).map_err(stop)?;
        let mut document =
            protocol::request_document(request, source, &self.capabilities, &Default::default()).map_err(stop)?;
        document.timeout_s = Some(timeout.as_secs_f64());
        // Dropped, and with it deleted, when the attempt is over.
        let desk = self.desk(request, &document).map_err(|error| {
            Judgement::retry("storage_full", format!("cannot write to {}: {error}", self.scratch.display()))
        })?;
        let argv = self.filled_argv(request, folder, desk.path(), slot);
        let program = Program { argv, directory: self.directory.clone(), setpriv: self.setpriv.clone() };
        let ended =
            run(program, timeout, self.term_grace, cancel).await.map_err(|error| not_started(&self.argv[0], &error))?;
        let said = if ended.output.is_empty() { String::new() } else { format!("; it said: {}", last(&ended.output)) };
        let because = |what: &str| format!("{} {what}{said}", self.argv[0]);
        match ended.end {
            End::Exited(0) => result::read(&desk.path().join("result.json"), request, &self.capabilities)
                .map_err(|judgement| with_detail(judgement, &said)),
            End::Exited(65) => {
                let detail = because("found the candidate invalid (exit 65)");
                Err(Judgement::new(Reaction::Blame, FaultClass::Candidate, "candidate_invalid", detail))
            }
            End::Exited(75) => Err(Judgement::retry("exit_75", because("asked to be tried again (exit 75)"))),
            End::Exited(78) => {
                Err(stop(Fault::configuration("exit_78", because("reports a configuration error (exit 78)"))))
            }
            End::Exited(code) => Err(Judgement::retry("exit_code", because(&format!("ended with exit code {code}")))),
            End::Killed(9) => {
                let detail = because("was killed by SIGKILL, most likely for lack of memory");
                Err(Judgement::new(Reaction::Retry, FaultClass::Resource, "out_of_memory", detail))
            }
            End::Killed(signal) => Err(Judgement::retry("signal", because(&format!("was killed by signal {signal}")))),
            End::TimedOut => {
                let detail = because(&format!("did not finish within {:.1} s", timeout.as_secs_f64()));
                Err(Judgement::new(Reaction::Timeout, FaultClass::Resource, "timeout", detail))
            }
            End::Cancelled => {
                Err(Judgement::new(Reaction::Wait, FaultClass::Cancelled, "cancelled", "the run is being stopped"))
            }
        }
    }

    /// A fresh folder with the request and the recipe; the result goes beside them.
    fn desk(
        &self,
        request: &EvaluationRequest,
        document: &protocol::WireRequest,
    ) -> std::io::Result<tempfile::TempDir> {
        std::fs::create_dir_all(&self.scratch)?;
        let desk = tempfile::Builder::new().prefix(DESK).tempdir_in(&self.scratch)?;
        std::fs::write(desk.path().join("request.json"), serde_json::to_vec_pretty(document)?)?;
        std::fs::write(desk.path().join("recipe.json"), serde_json::to_vec_pretty(&request.candidate.recipe)?)?;
        Ok(desk)
    }

    fn filled_argv(&self, request: &EvaluationRequest, folder: &Path, desk: &Path, slot: usize) -> Vec<OsString> {
        let value = |placeholder: Placeholder| -> OsString {
            match placeholder {
                Placeholder::CandidateDir => folder.into(),
                Placeholder::RequestFile => desk.join("request.json").into(),
                Placeholder::ResultFile => desk.join("result.json").into(),
                Placeholder::ResultDir => desk.into(),
                Placeholder::RecipeFile => desk.join("recipe.json").into(),
                Placeholder::Slot => slot.to_string().into(),
                Placeholder::Seed => request.tasks.first().map_or(0, |task| task.seed).to_string().into(),
                Placeholder::Replicate => request.replicate.to_string().into(),
            }
        };
        let arguments = self.argv.iter().skip(1).map(|argument| fill(argument, &value));
        std::iter::once(self.program.clone().into()).chain(arguments).collect()
    }

    async fn slot(&self, cancel: &CancellationToken) -> Result<Slot<'_>, EvaluateError> {
        let permit = tokio::select! {
            () = cancel.cancelled() => return Err(EvaluateError::Cancelled),
            permit = self.places.acquire() => permit.map_err(|_| EvaluateError::Cancelled)?,
        };
        let number = lock(&self.free_slots).pop().unwrap_or_default();
        Ok(Slot { number, free: &self.free_slots, _permit: permit })
    }
}

/// A numbered place, given back when dropped (before its permit).
struct Slot<'a> {
    number: usize,
    free: &'a Mutex<Vec<usize>>,
    _permit: tokio::sync::SemaphorePermit<'a>,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        lock(self.free).push(self.number);
    }
}

fn stop(fault: Fault) -> Judgement {
    Judgement { reaction: Reaction::Stop, ..Judgement::of_answer(fault) }
}

/// The judgement on a program that could not be started or watched.
fn not_started(program: &str, error: &std::io::Error) -> Judgement {
    // What the system says where a process or a thread would be one too many.
    let hint = if error.kind() == std::io::ErrorKind::WouldBlock {
        "; this machine gives no more processes or threads now: lower `evaluator.in_flight`, or raise the limit (ulimit -u)"
    } else {
        ""
    };
    Judgement::retry("not_started", format!("cannot run {program}: {error}{hint}"))
}

fn with_detail(mut judgement: Judgement, said: &str) -> Judgement {
    judgement.fault.detail.push_str(said);
    judgement
}

/// The last few lines of a program's output: where its error message is.
fn last(output: &str) -> String {
    const MOST: usize = 380;
    let start = output.char_indices().rev().nth(MOST - 1).map_or(0, |(index, _)| index);
    shortened(&output[start..])
}

/// `argument` with every placeholder replaced by its value; other braces stay as they are.
fn fill(argument: &str, value: &dyn Fn(Placeholder) -> OsString) -> OsString {
    let mut filled = OsString::new();
    let mut rest = argument;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push(before);
        match after.split_once('}').and_then(|(name, after)| Some((Placeholder::named(name)?, after))) {
            Some((placeholder, after)) => {
                filled.push(value(placeholder));
                rest = after;
            }
            None => {
                filled.push("{");
                rest = after;
            }
        }
    }
    filled.push(rest);
    filled
}

/// The program's path.
///
/// # Errors
/// What is wrong with the arguments.
fn check_argv(config: &CommandConfig) -> Result<PathBuf, String> {
    let program = config::program_of(&config.argv)?;
    let path = find_program(program, &config.directory).ok_or_else(|| {
        format!("{program:?} is no program in PATH or {}; install it, or give its path", config.directory.display())
    })?;
    for argument in &config.argv {
        for (at, _) in argument.match_indices('{') {
            let Some((name, _)) = argument[at + 1..].split_once('}') else { continue };
            let word = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            if word && Placeholder::named(name).is_none() {
                let known = Placeholder::ALL.map(|placeholder| format!("{{{}}}", placeholder.name())).join(", ");
                return Err(format!("unknown placeholder {{{name}}}; known: {known}"));
            }
        }
    }
    Ok(path)
}

/// What is known of a program's tasks: their names, from the run file. How many samples they have and which way is
/// better only the program knows ([`Evaluator::knows_direction`] is false).
fn capabilities_of(tasks: &[EvaluatorTask]) -> Capabilities {
    let tasks = tasks.iter().map(|task| {
        let metric = task.metric_or_default().to_owned();
        let capability = MetricCapability { higher_is_better: true, min: None, max: None, is_mean: false };
        let task_capability = TaskCapability {
            n_samples: 0,
            sample_ids: None,
            metrics: [(metric, capability)].into(),
            supports_sample_ids: false,
            supports_limit: true,
            supports_per_sample: true,
            sample_hashes: None,
            sample_set: None,
        };
        (task.name.clone(), task_capability)
    });
    Capabilities { tasks: tasks.collect(), deterministic: false }
}

/// Removes what a process that was killed left: the folder is this run's own.
fn remove_desks(scratch: &Path) {
    let Ok(entries) = std::fs::read_dir(scratch) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(DESK)) {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

fn fingerprint_of(config: &CommandConfig, tasks: &[EvaluatorTask]) -> String {
    let mut named: Vec<(&str, &str)> =
        tasks.iter().map(|task| (task.name.as_str(), task.metric_or_default())).collect();
    named.sort_unstable();
    let version = config.version.as_deref().unwrap_or_default();
    let length = config.argv.len().to_string();
    let argv = config.argv.iter().map(String::as_str);
    let tasks = named.iter().flat_map(|(task, metric)| [*task, *metric]);
    super::hash_parts(["command", version, &length].into_iter().chain(argv).chain(tasks))
}

impl Evaluator for CommandEvaluator {
    fn kind(&self) -> &'static str {
        "command"
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn concurrency(&self) -> NonZeroUsize {
        self.in_flight
    }

    fn knows_direction(&self) -> bool {
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
mod tests;
