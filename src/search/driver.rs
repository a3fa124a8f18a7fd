//! The search's own loop: asks, starts, waits, records.

mod assembly;
mod blame;
mod clock;
mod conclusion;
mod replay;
mod reuse;
mod sentinel;
mod standing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use assembly::{materialize_stage, outcome_of, parts, setup};
use blame::Blame;
use clock::Clock;

use super::best::Ranked;
use super::budget::limits_document;
use super::candidate::{Candidate, EvaluationContext, is_baseline};
use super::fidelity::Parts;
use super::frozen::Frozen;
use super::pipeline::{Equipment, Finished, MaterializeStage, Pipeline, WorkKind};
use super::prepare::{Prepared, count_samples};
use super::progress::Progress;
use super::repeats::Repeats;
use super::report::Row;
use super::run_folder::RunFolder;
use super::schedule::{Schedule, Step};
use super::stop::STOPPING;
use super::{Budget, SearchError, Stop, alarms, export};
use crate::evaluate::TaskRequest;
use crate::ledger::{AskedRecord, Ledger, OutageRecord, ToldRecord, event, fact, now};
use crate::score::{samples, shown};
use crate::scores::Status;
use crate::strategy::{self, Outcome, PROMOTION, Proposal, Race, origin};

/// How often the screen, and what the ledger says of endpoints that are waited for, is brought up to date.
const TICK: Duration = Duration::from_millis(500);
/// Most evaluations that are asked for before what has ended, the time and signals are looked at again.
const ASKED_AT_ONCE: usize = 64;

/// One run between its start and its verdict.
pub(super) struct Search {
    prepared: Arc<Prepared>,
    folder: RunFolder,
    ledger: Arc<Ledger>,
    frozen: Frozen,
    progress: Arc<dyn Progress>,
    stop: Stop,
    schedule: Schedule,
    pipeline: Pipeline,
    stage: Option<MaterializeStage>,
    budget: Budget,
    /// How candidates are scored in parts; `None`: no race.
    parts: Option<Parts>,
    /// Why the budget has no room for what the strategy wants next.
    refused: Option<String>,
    /// What was asked, for tables.
    asked: BTreeMap<u64, Asked>,
    /// Evaluations as told.
    rows: BTreeMap<u64, Row>,
    /// The best evaluation at full fidelity.
    best: Option<Ranked>,
    /// `best/` holds the winner of an earlier verdict.
    has_winner: bool,
    /// What is scored again.
    repeats: Repeats,
    sentinel: sentinel::Sentinel,
    /// Candidates that the evaluator called broken in a row, since this start.
    blame: Blame,
    /// Evaluations that were given up, and all that ended, since this start.
    given_up: u64,
    ended: u64,
    /// What another run paid for.
    reusable: Option<reuse::Reusable>,
    clock: Clock,
}

impl Search {
    pub(super) fn new(
        prepared: Arc<Prepared>,
        folder: RunFolder,
        ledger: Arc<Ledger>,
        frozen: Frozen,
        progress: Arc<dyn Progress>,
        stop: Stop,
    ) -> Result<Self, SearchError> {
        let parts = parts(&prepared, &frozen, progress.as_ref());
        let race = parts.as_ref().map(|parts| Race {
            fidelities: parts.fidelities.clone(),
            keep: parts.keep,
            objective: prepared.objective.clone(),
            seed: prepared.config.seed,
        });
        let strategy = strategy::build_raced(&prepared.config.strategy, setup(&prepared, &frozen), race)?;
        let stage = materialize_stage(&prepared, &folder, &ledger, &frozen, &progress)?;
        let equipment = Equipment {
            evaluator: prepared.evaluator.clone(),
            context: EvaluationContext {
                run_id: frozen.run_id.clone(),
                run_name: prepared.config.name.clone(),
                tasks: prepared.tasks.clone(),
                fingerprint: prepared.evaluator.fingerprint().to_string(),
                settings: prepared.models.settings_ids.clone(),
            },
            ledger: ledger.clone(),
            stage: stage.clone(),
            progress: progress.clone(),
        };
        let repeats = Repeats::of(&prepared.config.repeats, frozen.deterministic);
        let has_winner = ledger.fact(fact::WINNER)?.is_some();
        Ok(Self {
            schedule: Schedule::new(strategy, frozen.look_ahead),
            pipeline: Pipeline::new(equipment, stop.now.child_token()),
            budget: Budget::new(prepared.config.budget.clone()),
            parts,
            refused: None,
            stage,
            repeats,
            sentinel: sentinel::Sentinel::of(&ledger, repeats.sentinel)?,
            blame: Blame::new(),
            given_up: 0,
            ended: 0,
            clock: Clock::start(&ledger)?,
            prepared,
            folder,
            ledger,
            frozen,
            progress,
            stop,
            asked: BTreeMap::new(),
            rows: BTreeMap::new(),
            best: None,
            has_winner,
            reusable: None,
        })
    }

    /// Starts, and settings that may change between starts, are on record.
    pub(super) fn record_start(&self, fresh: bool) -> Result<(), SearchError> {
        let payload = serde_json::json!({
            "fresh": fresh,
            "evomerge": env!("CARGO_PKG_VERSION"),
            "budget": limits_document(&self.prepared.config.budget),
            "concurrency": self.prepared.evaluator.concurrency(),
            "process": std::process::id(),
        });
        // What an earlier start that was killed waited for is not what this one does.
        self.ledger.set_fact(fact::WAITING, &serde_json::json!(OutageRecord::default()).to_string())?;
        self.ledger.event(event::STARTED, None, &payload)?;
        let concurrency = self.prepared.evaluator.concurrency().get();
        if concurrency as u64 > self.frozen.look_ahead {
            self.progress.line(&format!(
                "warning: the evaluator takes {concurrency} evaluations at a time, but this run has at most {} open (its \
                 look_ahead, which stays as it was at the first start); set strategy.look_ahead and start with --fresh to use all",
                self.frozen.look_ahead
            ));
        }
        for alarm in alarms::before(&self.prepared) {
            self.progress.line(&format!("warning: {}", alarm.message));
        }
        Ok(())
    }

    /// A race that an earlier version began, and that replays with what the evaluator can do now, keeps to that.
    pub(super) fn note_race_basis(&self) -> Result<(), SearchError> {
        if self.ledger.fact(fact::RACE_BASIS)?.is_none() {
            self.ledger.set_fact(fact::RACE_BASIS, &serde_json::json!(self.frozen.race_basis).to_string())?;
        }
        Ok(())
    }

    /// The next new proposal, if there may be one now.
    fn ask(&mut self) -> Result<Option<(u64, Proposal, Candidate)>, SearchError> {
        let (prepared, context) = (&self.prepared, self.pipeline.context());
        let (parts, asked) = (&self.parts, &self.asked);
        let step = self.schedule.next(|proposal| {
            let tasks = match parts {
                Some(parts) => {
                    let before = completed(parts, &proposal.origin, &proposal.parents);
                    let after = before.and_then(|index| asked.get(&index)).map(|asked| asked.fidelity);
                    parts.requests(&context.tasks, proposal.fidelity, after)
                }
                None => context.tasks.clone(),
            };
            Candidate::from_proposal(proposal, &prepared.models, prepared.space.as_deref(), context, tasks)
        })?;
        match step {
            Step::New { index, proposal, candidate } => Ok(Some((index, proposal, candidate))),
            Step::Blocked | Step::Done(_) => Ok(None),
        }
    }

    /// Asks, starts and waits until nothing is left to do; says why that is.
    pub(super) async fn drive(&mut self) -> Result<String, SearchError> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.check_baselines()?;
            let mut has_more = false;
            if self.may_start() {
                has_more = self.ask_some()?;
                self.start_witness()?;
                self.start_sentinel()?;
                self.pipeline.start();
            } else {
                self.pipeline.stop_merging();
            }
            self.show();
            if !has_more && self.pipeline.idle() {
                return self.end_reason();
            }
            let already_stopping = self.stop.wanted();
            tokio::select! {
                finished = self.pipeline.next() => {
                    if let Some(finished) = finished? {
                        self.finish(finished)?;
                    }
                }
                () = self.stop.requested(), if !already_stopping => self.progress.line(STOPPING),
                _ = ticks.tick() => {
                    self.clock.tick(&self.ledger);
                    self.pipeline.note_waiting();
                }
                () = std::future::ready(()), if has_more => {}
            }
        }
    }

    /// Whether anything new may be started now.
    fn may_start(&self) -> bool {
        !self.stop.wanted() && !self.budget.out_of_time(self.clock.active())
    }

    /// Asks for the next evaluations; whether there may be more of them.
    fn ask_some(&mut self) -> Result<bool, SearchError> {
        for _ in 0..ASKED_AT_ONCE {
            if !self.may_start() || self.waits_for_witness() || !self.ask_one()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn end_reason(&mut self) -> Result<String, SearchError> {
        if self.stop.wanted() {
            return Err(SearchError::Stopped);
        }
        if self.budget.out_of_time(self.clock.active()) {
            return Ok("wall clock used up".into());
        }
        if let Some(reason) = self.refusal() {
            return Ok(reason);
        }
        let nobody = |_: &Proposal| -> Result<Candidate, SearchError> {
            Err(SearchError::Worker("the search ended although its strategy has proposals".into()))
        };
        match self.schedule.next(nobody)? {
            Step::Done(reason) => Ok(reason),
            Step::Blocked | Step::New { .. } => Err(SearchError::Worker("the search waits for nothing".into())),
        }
    }

    /// Why nothing more may be asked for, if so.
    fn refusal(&self) -> Option<String> {
        let cheapest = match &self.parts {
            Some(parts) => self.price(&parts.requests(&self.prepared.tasks, parts.fidelities[0], None)),
            None => self.prepared.samples,
        };
        self.refused.clone().or_else(|| self.budget.refuses(cheapest))
    }

    fn price(&self, tasks: &[TaskRequest]) -> u64 {
        count_samples(tasks, self.prepared.evaluator.as_ref())
    }

    /// Asks for one more evaluation; false when there is none for now.
    fn ask_one(&mut self) -> Result<bool, SearchError> {
        if self.refusal().is_some() {
            return Ok(false);
        }
        let Some((index, proposal, candidate)) = self.ask()? else { return Ok(false) };
        // Only the proposal tells its price. One that is too dear is not asked for; it is proposed again when the run
        // continues with a larger budget.
        self.refused = self.budget.refuses(self.price(&candidate.tasks));
        if self.refused.is_some() {
            return Ok(false);
        }
        let record = self.asked_record(index, &proposal, &candidate);
        self.ledger.asked(&record)?;
        self.budget.spend(record.samples);
        self.asked.insert(index, Asked::from_record(&record, self.parts.as_ref())?);
        self.begin(index, candidate)?;
        Ok(true)
    }

    fn asked_record(&self, index: u64, proposal: &Proposal, candidate: &Candidate) -> AskedRecord {
        AskedRecord {
            index,
            candidate_id: candidate.id.clone(),
            recipe_sha256: candidate.recipe_sha256.clone(),
            evaluation_id: candidate.evaluation_id.clone(),
            recipe: candidate.recipe.to_toml(&self.prepared.models.content_ids),
            content: serde_json::to_value(&proposal.content).unwrap_or_default(),
            genes: candidate.genes.clone(),
            origin: self.origin_name(proposal),
            parents: proposal.parents.clone(),
            generation: proposal.generation,
            fidelity: proposal.fidelity,
            replicate: candidate.replicate,
            samples: self.price(&candidate.tasks),
            asked_at: now(),
        }
    }

    /// A source shows its name.
    fn origin_name(&self, proposal: &Proposal) -> String {
        if proposal.origin == origin::SOURCE {
            return self.baseline_name(&proposal.content);
        }
        proposal.origin.clone()
    }

    /// The share of the samples that an evaluation asked for.
    fn fidelity(&self, index: u64) -> f64 {
        self.asked.get(&index).map_or(1.0, |asked| asked.fidelity)
    }

    /// An evaluation ended: to the ledger first, then to everyone else.
    fn finish(&mut self, mut finished: Finished) -> Result<(), SearchError> {
        match finished.kind {
            WorkKind::Witness => return self.finish_witness(finished),
            WorkKind::Repeat => return self.finish_sentinel(finished),
            WorkKind::Search | WorkKind::Holdout => {}
        }
        self.complete(&mut finished)?;
        self.blame.take(&finished);
        let objective = finished.settle(&self.prepared.objective);
        let record = ToldRecord {
            index: finished.index,
            status: finished.status,
            objective,
            n_samples: finished.tasks.values().map(|task| task.n).sum(),
            tasks: std::mem::take(&mut finished.tasks),
            materialize_s: finished.materialize_s,
            evaluate_s: finished.evaluate_s,
            started_at: finished.started_at.clone(),
            finished_at: now(),
            attempts: finished.attempts,
            error: finished.error.clone(),
        };
        self.folder.check_place()?;
        self.ledger.told(&record, &[(fact::ACTIVE_SECONDS, &self.clock.text())])?;
        let outcome = outcome_of(record, self.fidelity(finished.index));
        let row = self.row(&outcome);
        let improved = self.note(row);
        self.tell_of(&finished, objective);
        self.schedule.finished(outcome);
        // The verdict's winner, by two scores, is best until the search goes on.
        let goes_on = std::mem::take(&mut self.has_winner);
        if improved {
            self.export_best(&finished.candidate)?;
        } else if goes_on {
            self.restore_best()?;
        }
        self.check_failures(&finished)
    }

    /// Puts a promotion's scores together with those that it builds on.
    fn complete(&self, finished: &mut Finished) -> Result<(), SearchError> {
        let earlier = self.asked.get(&finished.index).and_then(|asked| asked.completes);
        // What another run paid for (no attempts) is complete as it is.
        let Some(index) = earlier.filter(|_| finished.status == Status::Scored && finished.attempts > 0) else {
            return Ok(());
        };
        let Some(earlier) = self.schedule.outcomes().get(&index) else { return Ok(()) };
        for task in &self.prepared.objective.tasks {
            // A task that had no further samples was not asked for again.
            if let Some(scores) = earlier.tasks.get(&task.name)
                && !finished.candidate.tasks.iter().any(|request| request.name == task.name)
            {
                finished.tasks.insert(task.name.clone(), scores.clone());
                continue;
            }
            let parts = earlier.tasks.get(&task.name).zip(finished.tasks.get(&task.name));
            let whole = parts.and_then(|(first, second)| samples::union(first, second, &task.metric));
            let whole = whole.ok_or_else(|| {
                SearchError::Settings(format!(
                    "task `{}`: the evaluator says that it gives scores by sample, but the answers for parts of the samples \
                     do not add up; start anew with racing = {{ rungs = 1 }}",
                    task.name
                ))
            })?;
            finished.tasks.insert(task.name.clone(), whole);
        }
        Ok(())
    }

    /// What tables show of an outcome.
    fn row(&self, outcome: &Outcome) -> Option<Row> {
        let asked = self.asked.get(&outcome.index)?;
        let tasks = self.prepared.objective.per_task(&outcome.tasks);
        Some(Row {
            index: outcome.index,
            candidate_id: asked.candidate_id.clone(),
            origin: asked.origin.clone(),
            status: outcome.status,
            objective: outcome.objective,
            tasks: tasks.into_iter().filter_map(|task| Some((task.task, task.score?))).collect(),
        })
    }

    /// Puts an outcome into the tables; whether it is the best so far.
    fn note(&mut self, row: Option<Row>) -> bool {
        let Some(row) = row else { return false };
        let ranked = row.ranked().filter(|_| self.is_full(&row));
        self.rows.insert(row.index, row);
        let Some(ranked) = ranked else { return false };
        let is_best = self.best.is_none_or(|best| ranked.best_first(&best).is_lt());
        if is_best {
            self.best = Some(ranked);
        }
        is_best
    }

    fn export_best(&self, candidate: &Candidate) -> Result<(), SearchError> {
        let toml = candidate.recipe.to_toml(&self.prepared.models.content_ids);
        export::write_best(self.folder.path(), &candidate.recipe, &toml)?;
        export::write_table(self.folder.path(), &self.ledger, &self.prepared.config)?;
        if let Some(row) = self.best.and_then(|best| self.rows.get(&best.index)) {
            let objective = shown(row.objective.unwrap_or(f64::NAN));
            self.progress
                .line(&format!("best {objective}  {} ({}, evaluation {})", row.candidate_id, row.origin, row.index));
        }
        Ok(())
    }
}

/// What tables show of an evaluation asked for.
struct Asked {
    candidate_id: String,
    origin: String,
    fidelity: f64,
    samples: u64,
    /// Base, source or soup.
    baseline: bool,
    /// The evaluation of the same candidate on other samples whose scores this one's are added to.
    completes: Option<u64>,
}

impl Asked {
    fn from_record(record: &AskedRecord, parts: Option<&Parts>) -> Result<Self, SearchError> {
        Ok(Self {
            candidate_id: record.candidate_id.clone(),
            origin: record.origin.clone(),
            fidelity: record.fidelity,
            samples: record.samples,
            baseline: is_baseline(record)?,
            completes: parts.and_then(|parts| completed(parts, &record.origin, &record.parents)),
        })
    }
}

/// The evaluation that a promotion completes.
fn completed(parts: &Parts, origin: &str, parents: &[u64]) -> Option<u64> {
    parents.first().copied().filter(|_| parts.incremental && origin == PROMOTION)
}
