//! Candidates scored again on the samples that the search scored them on: finalists and best baseline before the
//! verdict, because the luckiest answers win a search; baselines that were given up, because the best of them might be;
//! and a sentinel now and then, because an evaluator that changes under way makes scores from before and after two
//! different things. None of it counts against the budget, and no strategy hears of it.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::candidate::{Candidate, EvaluationContext};
use super::outcomes::LatestOutcomes;
use super::pipeline::{Equipment, Finished, Pipeline, Work, WorkKind};
use super::prepare::Prepared;
use super::progress::Progress;
use super::{SearchError, Stop};
use crate::config::RepeatsConfig;
use crate::evaluate::EvaluateError;
use crate::ledger::{AskedRecord, Ledger, RepeatPurpose, RepeatRecord, now};
use crate::score::alarms::{Alarm, AlarmKind};
use crate::score::digits;
use crate::score::repeats::drift;
use crate::scores::{Scores, Status};
use crate::strategy::Outcome;

/// Evaluations in full between two scorings of the sentinel, for evaluators whose answers may vary.
const SENTINEL_EVERY: NonZeroU64 = NonZeroU64::new(50).unwrap();
/// The replicate of the first witness, far behind those of the sentinel: how many witnesses there are depends on timing.
const FIRST_WITNESS: u32 = 1 << 20;
/// Finalists of a run without a hold-out.
const FINALISTS: usize = 5;

/// What a run scores again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeats {
    /// Finalists and best baseline, before the verdict.
    pub finalists: bool,
    /// Evaluations in full between two scorings of the sentinel.
    pub sentinel: Option<NonZeroU64>,
}

impl Repeats {
    /// Takes what the run file says. By default, nothing is scored again with a deterministic evaluator: it would give
    /// the same scores.
    pub fn of(config: &RepeatsConfig, deterministic: bool) -> Self {
        let varies = !deterministic;
        Self {
            finalists: config.finalists.unwrap_or(varies),
            sentinel: match config.sentinel {
                Some(every) => NonZeroU64::new(every),
                None => varies.then_some(SENTINEL_EVERY),
            },
        }
    }

    /// Number of the best candidates that the winner is chosen from in the end.
    pub fn finalists_of(&self, prepared: &Prepared) -> usize {
        let alone = if self.finalists { FINALISTS } else { 1 };
        prepared.holdout.as_ref().map_or(alone, |holdout| holdout.finalists)
    }
}

/// What scoring again takes and where it is recorded.
pub struct Rescoring<'a> {
    pub prepared: &'a Prepared,
    pub ledger: &'a Arc<Ledger>,
    pub context: &'a EvaluationContext,
    /// The search's own outcomes.
    pub outcomes: &'a BTreeMap<u64, Outcome>,
    /// What the search has spent, in evaluations in full.
    pub spent: u64,
    /// The evaluator's scores may not change at all.
    pub deterministic: bool,
    pub progress: &'a Arc<dyn Progress>,
}

impl Rescoring<'_> {
    /// A finalist's second scoring.
    fn finalist(&self, asked: &AskedRecord) -> Result<Work, SearchError> {
        self.work(asked, 1)
    }

    /// The next witness, which no cache of answers knows.
    pub fn next_witness(&self, asked: &AskedRecord) -> Result<Work, SearchError> {
        let asked_before = self.ledger.repeats_for(RepeatPurpose::Witness)?.len() as u32;
        let work = self.work(asked, FIRST_WITNESS.saturating_add(asked_before))?;
        Ok(Work { kind: WorkKind::Witness, ..work })
    }

    /// Records what came of a witness.
    pub fn witness(&self, mut finished: Finished) -> Result<(), SearchError> {
        let objective = finished.settle(&self.prepared.objective);
        self.record(&finished, objective, RepeatPurpose::Witness, None)
    }

    /// The next scoring of the sentinel; after a kill it is the same again, so that an evaluator knows it.
    pub fn next_sentinel(&self, asked: &AskedRecord) -> Result<Work, SearchError> {
        let repeats = self.ledger.repeats_for(RepeatPurpose::Sentinel)?;
        let of_it = repeats.iter().filter(|repeat| repeat.index == asked.index);
        // The first replicate is kept for a sentinel that becomes a finalist.
        self.work(asked, 2 + of_it.count() as u32)
    }

    fn work(&self, asked: &AskedRecord, replicate: u32) -> Result<Work, SearchError> {
        let replicate = asked.replicate + replicate;
        let candidate = Candidate::from_record(asked, &self.prepared.models, self.context, replicate)?;
        Ok(Work { index: asked.index, candidate: Arc::new(candidate), kind: WorkKind::Repeat })
    }

    /// Takes a sentinel's scores in and says so if they are not what they were.
    pub fn sentinel(&self, mut finished: Finished) -> Result<(), SearchError> {
        let objective = finished.settle(&self.prepared.objective);
        let alarm = self.sentinel_alarm(&finished)?;
        if let Some(alarm) = &alarm {
            self.progress.line(&format!("warning: {}", alarm.message));
        }
        self.record(&finished, objective, RepeatPurpose::Sentinel, alarm)
    }

    fn sentinel_alarm(&self, finished: &Finished) -> Result<Option<Alarm>, SearchError> {
        let Some(first) = self.outcomes.get(&finished.index) else { return Ok(None) };
        let repeats = self.ledger.repeats_for(RepeatPurpose::Sentinel)?;
        let of_it = repeats.iter().filter(|repeat| repeat.index == finished.index);
        let known = of_it.filter(|repeat| repeat.status == Status::Scored).map(|repeat| &repeat.tasks);
        let earlier: Vec<&Scores> = std::iter::once(&first.tasks).chain(known).collect();
        let what = match finished.status {
            Status::Failed => return Ok(None),
            Status::Infeasible => {
                format!("could be scored at first, and not any more: {}", finished.error.clone().unwrap_or_default())
            }
            Status::Scored => {
                let objective = &self.prepared.objective;
                let Some(drift) = drift(objective, &earlier, &finished.tasks, self.deterministic) else {
                    return Ok(None);
                };
                let value = |scores: &Scores| objective.value(scores).unwrap_or(f64::NAN);
                let why = match drift.errors {
                    Some(errors) if errors.is_finite() => format!("{:.1} times what chance explains", errors.abs()),
                    Some(_) => "its earlier scores were all the same".to_owned(),
                    None => "and the evaluator says that it is deterministic".to_owned(),
                };
                let (before, now) = (value(&first.tasks), value(&finished.tasks));
                let digits = digits(&[before, now]);
                format!(
                    "had {before:.digits$} at first and has {now:.digits$} now ({:+.digits$}, {why})",
                    drift.difference
                )
            }
        };
        Ok(Some(Alarm {
            kind: AlarmKind::SentinelDrift,
            task: None,
            message: format!(
                "after {} evaluations in full, the sentinel ({}, evaluation {}) was scored again: it {what}. The evaluator has \
                 changed since the search began, so its scores from before and after are not comparable: find out what \
                 changed, and start anew with --fresh",
                self.spent, finished.candidate.id, finished.index
            ),
        }))
    }

    /// Records a settled scoring with its objective.
    fn record(
        &self,
        finished: &Finished,
        objective: Option<f64>,
        purpose: RepeatPurpose,
        alarm: Option<Alarm>,
    ) -> Result<(), SearchError> {
        let record = RepeatRecord {
            evaluation_id: finished.candidate.evaluation_id.clone(),
            index: finished.index,
            candidate_id: finished.candidate.id.clone(),
            purpose,
            replicate: finished.candidate.replicate,
            after: self.spent,
            status: finished.status,
            objective,
            tasks: finished.tasks.clone(),
            alarm: serde_json::to_value(alarm).unwrap_or_default(),
            error: finished.error.clone(),
            finished_at: now(),
        };
        Ok(self.ledger.repeat(&record)?)
    }
}

/// The end of a search: finalists, best baseline and, if it is due, the sentinel.
pub struct FinalRescoring<'a> {
    pub rescoring: Rescoring<'a>,
    /// What the search itself worked with.
    pub equipment: &'a Equipment,
    pub stop: &'a Stop,
}

impl FinalRescoring<'_> {
    /// Scores the candidates of these evaluations again (what is recorded is not asked again) and returns their new
    /// objectives by candidate.
    ///
    /// # Errors
    /// What can end a search.
    pub async fn score_finalists(&self, finalists: &[u64]) -> Result<BTreeMap<String, f64>, SearchError> {
        let mut found = BTreeMap::new();
        let mut pipeline = self.pipeline();
        let recorded = self.rescoring.ledger.repeats_for(RepeatPurpose::Finalist)?;
        let mut open = 0;
        for index in finalists {
            if let Some(repeat) = recorded.iter().find(|repeat| repeat.index == *index) {
                found.extend(repeat.objective.map(|objective| (repeat.candidate_id.clone(), objective)));
                continue;
            }
            pipeline.add(self.rescoring.finalist(&self.rescoring.ledger.asked_at(*index)?)?);
            open += 1;
        }
        if open > 0 {
            let samples = self.rescoring.prepared.samples;
            self.rescoring.progress.line(&format!(
                "scoring {open} finalists and baselines again{}",
                if samples > 0 { format!(", on {samples} samples each") } else { String::new() }
            ));
        }
        pipeline
            .finish(self.stop, |mut finished| {
                let objective = finished.settle(&self.rescoring.prepared.objective);
                if finished.status != Status::Scored {
                    let reason = finished.error.clone().unwrap_or_default();
                    self.rescoring
                        .progress
                        .line(&format!("{} could not be scored again: {reason}", finished.candidate.id));
                }
                // A failure says nothing of the candidate: the next start tries again.
                if finished.status == Status::Failed {
                    return Ok(());
                }
                self.rescoring.record(&finished, objective, RepeatPurpose::Finalist, None)?;
                found.extend(objective.map(|objective| (finished.candidate.id.clone(), objective)));
                Ok(())
            })
            .await?;
        Ok(found)
    }

    /// Scores the sentinel once more.
    ///
    /// # Errors
    /// What can end a search.
    pub async fn score_sentinel(&self, index: u64) -> Result<(), SearchError> {
        let mut pipeline = self.pipeline();
        pipeline.add(self.rescoring.next_sentinel(&self.rescoring.ledger.asked_at(index)?)?);
        pipeline.finish(self.stop, |finished| self.rescoring.sentinel(finished)).await
    }

    /// Asks for the scores of baselines that were given up once more (what is recorded is not asked again): their new
    /// outcomes. Who is given up again is asked again at the next start, and so are all where the evaluator is out of
    /// reach: a verdict does not wait for them.
    pub async fn score_given_up(&self, baselines: &[u64]) -> Result<Vec<Outcome>, SearchError> {
        let mut pipeline = self.pipeline();
        let recorded = LatestOutcomes::of(self.rescoring.ledger)?;
        let mut open = 0;
        for index in baselines.iter().filter(|index| !recorded.has_late(**index)) {
            pipeline.add(self.rescoring.work(&self.rescoring.ledger.asked_at(*index)?, 0)?);
            open += 1;
        }
        if open > 0 {
            self.rescoring
                .progress
                .line(&format!("asking once more for the scores of {open} baselines that were given up"));
        }
        let asked = pipeline
            .finish(self.stop, |mut finished| {
                let objective = finished.settle(&self.rescoring.prepared.objective);
                if finished.status == Status::Failed {
                    let reason = finished.error.clone().unwrap_or_default();
                    self.rescoring.progress.line(&format!(
                        "{} was given up again: {reason}; the same command asks for it once more",
                        finished.candidate.id
                    ));
                    return Ok(());
                }
                self.rescoring.record(&finished, objective, RepeatPurpose::Baseline, None)
            })
            .await;
        match asked {
            Err(SearchError::Evaluate(EvaluateError::Outage(fault) | EvaluateError::Unusable(fault))) => self
                .rescoring
                .progress
                .line(&format!("they were given up again: {fault}; the same command asks for them once more")),
            other => other?,
        }
        let latest = LatestOutcomes::of(self.rescoring.ledger)?;
        Ok(baselines.iter().filter_map(|index| latest.late(*index)).collect())
    }

    fn pipeline(&self) -> Pipeline {
        Pipeline::new(self.equipment.clone(), self.stop.now.child_token())
    }
}

/// The sentinel's latest scoring that told something.
///
/// # Errors
/// Those of reading the ledger.
pub fn last_sentinel(ledger: &Ledger) -> Result<Option<RepeatRecord>, SearchError> {
    let repeats = ledger.repeats_for(RepeatPurpose::Sentinel)?;
    Ok(repeats.into_iter().rfind(|repeat| repeat.status != Status::Failed))
}

/// The latest alarm that scoring again gave cause for.
///
/// # Errors
/// Those of reading the ledger.
pub fn alarm(ledger: &Ledger) -> Result<Option<Alarm>, SearchError> {
    let repeats = ledger.all_repeats()?;
    Ok(repeats.iter().rev().find_map(|repeat| serde_json::from_value(repeat.alarm.clone()).ok()))
}
