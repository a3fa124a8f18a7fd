//! Evaluations on their way: materialized ahead of being evaluated, in order of index, in a bounded set of slots.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::candidate::{Candidate, EvaluationContext};
use super::progress::Progress;
use super::slots::Slots;
use super::stop::STOPPING;
use super::{SearchError, Stop};
use crate::evaluate::{Attempt, AttemptObserver, EvaluateError, Evaluation, Evaluator, Fault, FaultClass, Waiting};
use crate::ledger::{Ledger, LedgerError, OutageRecord, WaitingRecord, event, fact, time_text};
use crate::lock::{lock, unlocked};
use crate::merge::{MergeError, MergeOptions, Merger, WriteMode};
use crate::score::Objective;
use crate::scores::{Status, TaskScores};

/// Most different remarks of an evaluator that are shown.
const MOST_REMARKS: usize = 50;
/// How often it is looked which endpoints cannot be asked.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What an evaluation is made for, in the order in which they are started: repeats are few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkKind {
    /// It repeats an evaluation to see whether the evaluator is ill; nothing else is asked for meanwhile.
    Witness,
    /// It repeats an evaluation of the search and is none itself.
    Repeat,
    /// An evaluation of the search.
    Search,
    /// A scoring on the hold-out.
    Holdout,
}

impl WorkKind {
    /// Kind of the attempts' events in the ledger.
    fn attempt_event(self) -> &'static str {
        match self {
            Self::Witness | Self::Repeat => event::REPEAT_ATTEMPTED,
            Self::Search => event::ATTEMPTED,
            Self::Holdout => event::HOLDOUT_ATTEMPTED,
        }
    }
}

/// An evaluation to be made.
#[derive(Clone, Debug)]
pub struct Work {
    /// The evaluation's index, or that of the evaluation that it repeats.
    pub index: u64,
    pub candidate: Arc<Candidate>,
    pub kind: WorkKind,
}

/// Open evaluations in the order in which they are started: by what they are made for, then by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    kind: WorkKind,
    index: u64,
    replicate: u32,
}

impl Work {
    fn turn(&self) -> Turn {
        Turn { kind: self.kind, index: self.index, replicate: self.candidate.replicate }
    }
}

/// An evaluation that ended.
#[derive(Clone, Debug)]
pub struct Finished {
    pub index: u64,
    pub kind: WorkKind,
    pub candidate: Arc<Candidate>,
    pub status: Status,
    pub tasks: BTreeMap<String, TaskScores>,
    pub error: Option<String>,
    pub materialize_s: Option<f64>,
    pub evaluate_s: Option<f64>,
    pub started_at: Option<String>,
    pub attempts: u32,
}

impl Finished {
    /// Computes the objective of the scores; `None`: there are none. A candidate whose scores give no finite objective
    /// becomes infeasible, with this reason as its error.
    pub fn settle(&mut self, objective: &Objective) -> Option<f64> {
        if self.status != Status::Scored {
            return None;
        }
        let value = objective.value(&self.tasks);
        if value.is_none() {
            self.status = Status::Infeasible;
            self.error = Some("the scores give no finite objective".into());
        }
        value
    }
}

/// What a pipeline works with.
#[derive(Clone)]
pub struct Equipment {
    pub evaluator: Arc<dyn Evaluator>,
    pub context: EvaluationContext,
    pub ledger: Arc<Ledger>,
    /// `None`: the evaluator needs no checkpoints.
    pub stage: Option<MaterializeStage>,
    /// Is told of attempts that failed through no fault of the candidate.
    pub progress: Arc<dyn Progress>,
}

/// Where and how candidates are materialized.
#[derive(Clone)]
pub struct MaterializeStage {
    pub merger: Arc<Merger>,
    pub slots: Arc<Slots>,
    /// Materialized candidates at a time.
    pub capacity: usize,
    /// Takes what merges found out about whole tensors to the run's folder. Blocks.
    pub save_statistics: Arc<dyn Fn() + Send + Sync>,
}

enum Stage {
    Waiting,
    Materializing,
    Ready,
    Evaluating,
}

struct Open {
    work: Work,
    stage: Stage,
    materialize_s: Option<f64>,
}

enum JobEnd {
    Materialized {
        turn: Turn,
        result: Result<f64, MergeError>,
    },
    StatisticsSaved,
    Evaluated {
        turn: Turn,
        started_at: String,
        seconds: f64,
        attempts: u32,
        result: Result<Evaluation, EvaluateError>,
        /// Why an attempt could not be recorded.
        fault: Option<LedgerError>,
    },
}

/// The evaluations between asked and told.
pub struct Pipeline {
    equipment: Equipment,
    open: BTreeMap<Turn, Open>,
    /// The evaluator's remarks that have been shown.
    remarks: BTreeSet<String>,
    /// What is on record of endpoints that cannot be asked; `None`: this pipeline has not recorded anything.
    outage: Option<OutageRecord>,
    /// What went wrong beside an evaluation whose outcome has been handed over.
    fault: Option<SearchError>,
    jobs: JoinSet<JobEnd>,
    /// Cancels evaluations.
    cancel: CancellationToken,
    /// Cancels a merge.
    cancel_merge: Arc<AtomicBool>,
}

impl Pipeline {
    pub fn new(equipment: Equipment, cancel: CancellationToken) -> Self {
        Self {
            equipment,
            open: BTreeMap::new(),
            remarks: BTreeSet::new(),
            outage: None,
            fault: None,
            jobs: JoinSet::new(),
            cancel,
            cancel_merge: Arc::new(AtomicBool::new(false)),
        }
    }

    pub fn equipment(&self) -> &Equipment {
        &self.equipment
    }

    pub fn context(&self) -> &EvaluationContext {
        &self.equipment.context
    }

    pub fn add(&mut self, work: Work) {
        let stage = if self.equipment.stage.is_some() { Stage::Waiting } else { Stage::Ready };
        self.open.insert(work.turn(), Open { work, stage, materialize_s: None });
    }

    /// Evaluations that are with the evaluator.
    pub fn evaluating(&self) -> usize {
        self.open.values().filter(|open| matches!(open.stage, Stage::Evaluating)).count()
    }

    /// Nothing runs, and nothing is left to be told (though something may wait to be started).
    pub fn idle(&self) -> bool {
        self.jobs.is_empty() && self.fault.is_none()
    }

    /// Starts what there is room for, lowest index first; nothing more after a fault.
    pub fn start(&mut self) {
        if self.fault.is_some() {
            return;
        }
        self.start_merge();
        let mut room = self.equipment.evaluator.concurrency().get().saturating_sub(self.evaluating());
        while room > 0 {
            let ready = self.open.iter().find(|(_, open)| matches!(open.stage, Stage::Ready)).map(|(turn, _)| *turn);
            let Some(turn) = ready else { break };
            self.start_evaluation(turn);
            room -= 1;
        }
    }

    /// Records which endpoints cannot be asked now, where these are others than the last time.
    pub fn note_waiting(&mut self) {
        let evaluator = &self.equipment.evaluator;
        let endpoints = evaluator.waiting().iter().map(waiting_record).collect();
        let outage = OutageRecord { all: evaluator.is_out_of_reach(), endpoints };
        if self.outage.as_ref() == Some(&outage) {
            return;
        }
        // For people only: a fault that lasts will show when there is an outcome to record.
        if self.equipment.ledger.set_fact(fact::WAITING, &serde_json::json!(outage).to_string()).is_ok() {
            self.outage = Some(outage);
        }
    }

    /// Stops a merge under way; what is being evaluated goes on.
    pub fn stop_merging(&self) {
        self.cancel_merge.store(true, Ordering::Relaxed);
    }

    /// Cancels what is being evaluated.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Waits for the next evaluation to end. `None`: a step ended that was no evaluation, or nothing runs; call
    /// [`Self::start`] again. Cancel-safe.
    ///
    /// # Errors
    /// What ends a search. A fault beside an evaluation that has an outcome comes after the outcome.
    pub async fn next(&mut self) -> Result<Option<Finished>, SearchError> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let Some(end) = self.jobs.join_next().await else { return Ok(None) };
        match end.map_err(|error| SearchError::Worker(error.to_string()))? {
            JobEnd::Materialized { turn, result } => {
                self.save_statistics();
                self.materialized(turn, result)
            }
            JobEnd::StatisticsSaved => Ok(None),
            JobEnd::Evaluated { turn, started_at, seconds, attempts, result, fault } => {
                // What was scored has been paid for, whether or not its attempts are on record.
                self.fault = fault.map(SearchError::from);
                self.evaluated(turn, started_at, seconds, attempts, result)
            }
        }
    }

    /// Runs everything that was added, and hands over what ends. After an error nothing is left of the rest.
    ///
    /// # Errors
    ///
    /// [`SearchError::Stopped`] when a stop was asked for, after what was under way has ended; what `take` fails with.
    pub async fn finish(
        &mut self,
        stop: &Stop,
        take: impl FnMut(Finished) -> Result<(), SearchError>,
    ) -> Result<(), SearchError> {
        let ended = self.run_to_end(stop, take).await;
        if ended.is_err() {
            self.abandon().await;
        }
        ended
    }

    /// Gives up what has not ended: nothing runs any more, and its candidates leave their slots to whoever comes next.
    pub async fn abandon(&mut self) {
        self.stop_merging();
        self.cancel();
        while self.jobs.join_next().await.is_some() {}
        self.fault = None;
        let turns: Vec<Turn> = self.open.keys().copied().collect();
        for turn in turns {
            self.close(turn);
        }
    }

    async fn run_to_end(
        &mut self,
        stop: &Stop,
        mut take: impl FnMut(Finished) -> Result<(), SearchError>,
    ) -> Result<(), SearchError> {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if stop.wanted() {
                self.stop_merging();
            } else {
                self.start();
            }
            if self.idle() {
                break;
            }
            let already_stopping = stop.wanted();
            tokio::select! {
                finished = self.next() => {
                    if let Some(finished) = finished? {
                        take(finished)?;
                    }
                }
                () = stop.requested(), if !already_stopping => self.equipment.progress.line(STOPPING),
                _ = looks.tick() => self.note_waiting(),
            }
        }
        if stop.wanted() { Err(SearchError::Stopped) } else { Ok(()) }
    }

    /// One merge at a time: it uses all cores.
    fn start_merge(&mut self) {
        let Some(stage) = self.equipment.stage.clone() else { return };
        let occupied = self.open.values().filter(|open| !matches!(open.stage, Stage::Waiting)).count();
        let merging = self.open.values().any(|open| matches!(open.stage, Stage::Materializing));
        if merging || occupied >= stage.capacity || self.cancel_merge.load(Ordering::Relaxed) {
            return;
        }
        let waiting = self.open.values_mut().find(|open| matches!(open.stage, Stage::Waiting));
        let Some(open) = waiting else { return };
        open.stage = Stage::Materializing;
        let work = open.work.clone();
        let cancel = self.cancel_merge.clone();
        self.jobs.spawn_blocking(move || {
            let started = Instant::now();
            let destination = stage.slots.candidate(&slot_name(&work));
            let options = MergeOptions {
                mode: WriteMode::Over(stage.slots.spares()),
                cancel: Some(&cancel),
                ..MergeOptions::default()
            };
            let result = stage.merger.materialize(&work.candidate.recipe, &destination, &options);
            JobEnd::Materialized { turn: work.turn(), result: result.map(|_| started.elapsed().as_secs_f64()) }
        });
    }

    /// Beside the evaluation of what was merged.
    fn save_statistics(&mut self) {
        let Some(stage) = &self.equipment.stage else { return };
        let save = stage.save_statistics.clone();
        self.jobs.spawn_blocking(move || {
            save();
            JobEnd::StatisticsSaved
        });
    }

    fn start_evaluation(&mut self, turn: Turn) {
        let Some(open) = self.open.get_mut(&turn) else { return };
        open.stage = Stage::Evaluating;
        let work = open.work.clone();
        let path = self.equipment.stage.as_ref().map(|stage| stage.slots.candidate(&slot_name(&work)));
        let request = work.candidate.request(&self.equipment.context, path);
        let evaluator = self.equipment.evaluator.clone();
        let observer = LedgerAttempts {
            ledger: self.equipment.ledger.clone(),
            progress: self.equipment.progress.clone(),
            event: work.kind.attempt_event(),
            index: work.index,
            evaluation_id: request.evaluation_id.clone(),
            count: AtomicU32::new(0),
            counted: AtomicU32::new(0),
            fault: Mutex::new(None),
        };
        let cancel = self.cancel.child_token();
        self.jobs.spawn(async move {
            let started_at = crate::ledger::now();
            let started = Instant::now();
            let result = evaluator.evaluate(&request, &observer, &cancel).await;
            let seconds = started.elapsed().as_secs_f64();
            let attempts = observer.count.load(Ordering::Relaxed);
            JobEnd::Evaluated { turn, started_at, seconds, attempts, result, fault: observer.into_fault() }
        });
    }

    fn materialized(&mut self, turn: Turn, result: Result<f64, MergeError>) -> Result<Option<Finished>, SearchError> {
        match result {
            Ok(seconds) => {
                let payload = serde_json::json!({ "seconds": seconds });
                self.equipment.ledger.event(event::MATERIALIZED, Some(turn.index), &payload)?;
                if let Some(open) = self.open.get_mut(&turn) {
                    open.stage = Stage::Ready;
                    open.materialize_s = Some(seconds);
                }
                Ok(None)
            }
            Err(MergeError::Cancelled) => {
                if let Some(open) = self.open.get_mut(&turn) {
                    open.stage = Stage::Waiting;
                }
                Ok(None)
            }
            Err(error) if error.is_infeasible() => {
                Ok(self.close(turn).map(|open| end(open, Status::Infeasible, BTreeMap::new(), Some(error.to_string()))))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn evaluated(
        &mut self,
        turn: Turn,
        started_at: String,
        seconds: f64,
        attempts: u32,
        result: Result<Evaluation, EvaluateError>,
    ) -> Result<Option<Finished>, SearchError> {
        let gone = self.missing_folder(turn);
        let Some(open) = self.close(turn) else { return Ok(None) };
        if let (Err(error), Some(folder)) = (&result, gone)
            && !matches!(error, EvaluateError::Cancelled)
        {
            return Err(SearchError::CandidateGone { folder });
        }
        let finished = match result {
            Ok(evaluation) => {
                self.show_remarks(turn.index, evaluation.warnings);
                end(open, Status::Scored, evaluation.tasks, None)
            }
            Err(EvaluateError::Candidate(fault)) => {
                end(open, Status::Infeasible, BTreeMap::new(), Some(fault.to_string()))
            }
            Err(EvaluateError::GivenUp(fault)) => end(open, Status::Failed, BTreeMap::new(), Some(fault.to_string())),
            // Asked but not told: the next start sends it again under the same id.
            Err(EvaluateError::Cancelled) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(Some(Finished { started_at: Some(started_at), evaluate_s: Some(seconds), attempts, ..finished }))
    }

    /// The folder of a candidate that was merged, where it is not there any more.
    fn missing_folder(&self, turn: Turn) -> Option<PathBuf> {
        let (stage, open) = (self.equipment.stage.as_ref()?, self.open.get(&turn)?);
        Some(stage.slots.candidate(&slot_name(&open.work))).filter(|folder| !folder.is_dir())
    }

    /// Shows what the evaluator remarks, each remark once: those of one candidate are mostly those of all.
    fn show_remarks(&mut self, index: u64, remarks: Vec<String>) {
        for remark in remarks {
            if self.remarks.len() < MOST_REMARKS && !self.remarks.contains(&remark) {
                self.equipment.progress.line(&format!("warning of the evaluator (evaluation {index}): {remark}"));
                self.remarks.insert(remark);
            }
        }
    }

    fn close(&mut self, turn: Turn) -> Option<Open> {
        let open = self.open.remove(&turn)?;
        if let Some(stage) = &self.equipment.stage {
            stage.slots.release(&slot_name(&open.work));
        }
        Some(open)
    }
}

/// An endpoint that cannot be asked, as the ledger has it.
fn waiting_record(waiting: &Waiting) -> WaitingRecord {
    WaitingRecord {
        endpoint: waiting.endpoint.clone(),
        since: time_text(waiting.since),
        reason: waiting.reason.clone(),
    }
}

/// Replicates of one candidate may be open at once.
fn slot_name(work: &Work) -> String {
    match work.candidate.replicate {
        0 => work.candidate.id.clone(),
        replicate => format!("{}-r{replicate}", work.candidate.id),
    }
}

fn end(open: Open, status: Status, tasks: BTreeMap<String, TaskScores>, error: Option<String>) -> Finished {
    Finished {
        index: open.work.index,
        kind: open.work.kind,
        candidate: open.work.candidate,
        status,
        tasks,
        error,
        materialize_s: open.materialize_s,
        evaluate_s: None,
        started_at: None,
        attempts: 0,
    }
}

/// Writes every attempt to the ledger before the next one starts.
struct LedgerAttempts {
    ledger: Arc<Ledger>,
    progress: Arc<dyn Progress>,
    event: &'static str,
    index: u64,
    evaluation_id: String,
    /// Attempts.
    count: AtomicU32,
    /// Those that count against the attempts that an evaluation has.
    counted: AtomicU32,
    fault: Mutex<Option<LedgerError>>,
}

impl LedgerAttempts {
    fn into_fault(self) -> Option<LedgerError> {
        unlocked(self.fault)
    }
}

impl AttemptObserver for LedgerAttempts {
    fn attempted(&self, attempt: &Attempt) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let payload = serde_json::json!({ "evaluation_id": self.evaluation_id, "attempt": attempt });
        if let Err(error) = self.ledger.event(self.event, Some(self.index), &payload) {
            *lock(&self.fault) = Some(error);
        }
        // What a candidate is to blame for ends its evaluation and is counted, a wrong configuration ends the search,
        // and back-pressure is everyday.
        let passes = |fault: &&Fault| matches!(fault.class, FaultClass::Infrastructure | FaultClass::Resource);
        let counted = self.counted.fetch_add(u32::from(attempt.counts), Ordering::Relaxed) + 1;
        if let Some(fault) = attempt.fault.as_ref().filter(passes).filter(|_| attempt.counts) {
            let (index, number, seconds) = (self.index, attempt.number, attempt.seconds);
            let counted = if counted == number { String::new() } else { format!(" ({counted} of them counted)") };
            self.progress
                .line(&format!("evaluation {index}, attempt {number}{counted} failed after {seconds:.1} s: {fault}"));
        }
    }
}
