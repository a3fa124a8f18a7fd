//! The sealed hold-out: opened once, for the finalists, the best baseline and those that may be as good, after the search.
//! It never changes `best/`.

mod earlier;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::candidate::{Candidate, EvaluationContext};
use super::pipeline::{Equipment, Finished, Pipeline, Work, WorkKind};
use super::prepare::Prepared;
use super::progress::Progress;
use super::report::Row;
use super::sealed::HoldoutPlan;
use super::{SearchError, Stop};
use crate::ledger::{HoldoutRecord, Ledger, fact, now};
use crate::plural::counted;
use crate::score::{Contender, Decision, OpenedHoldout, Verdict, VerdictQuestion, decide};
use crate::scores::{Status, TaskScores};

/// Most baselines that are scored on the hold-out because they may be as good as the best one: those that come after
/// them are hardly the best.
const MOST_RIVALS: usize = 16;

/// Scores on the hold-out, by candidate and task.
type HoldoutScores = BTreeMap<String, BTreeMap<String, TaskScores>>;

/// Baselines that the search could not tell from the best one.
#[derive(Clone, Copy, Default)]
struct Rivals<'a> {
    /// Those that are scored on the hold-out, best first.
    scored: &'a [Row],
    /// How many further ones there are.
    left_out: usize,
}

/// What opening the hold-out takes.
pub(super) struct HoldoutOpening<'a> {
    pub prepared: &'a Arc<Prepared>,
    pub ledger: &'a Arc<Ledger>,
    /// What the search itself worked with.
    pub equipment: &'a Equipment,
    /// Search evaluations made so far.
    pub evaluations: u64,
    /// Baselines without a score that are not to blame for it.
    pub unscored_baselines: Vec<String>,
    /// Objectives of the candidates that were scored again on the search samples, by candidate.
    pub again: &'a BTreeMap<String, f64>,
    pub progress: &'a Arc<dyn Progress>,
    pub stop: &'a Stop,
}

impl HoldoutOpening<'_> {
    /// Scores finalists and baseline on the hold-out (what is recorded is not asked again) and decides. Only where that is
    /// an improvement, `rivals` are scored, too: baselines that the search could not tell from the best one.
    pub async fn verdict(
        &self,
        finalists: &[Row],
        baseline: Option<&Row>,
        rivals: &[Row],
    ) -> Result<Verdict, SearchError> {
        let Some(plan) = &self.prepared.holdout else {
            return self.decide(finalists, baseline, Rivals::default(), &HoldoutScores::new(), None);
        };
        // Opened is what it is as soon as someone may see a score.
        let went_on = self.open()?;
        let opened = Some(OpenedHoldout { reused: self.was_opened_by_another() || went_on });
        let mut scores = HoldoutScores::new();
        self.score(plan, finalists.iter().chain(baseline).collect(), "scoring", &mut scores).await?;
        let verdict = self.decide(finalists, baseline, Rivals::default(), &scores, opened)?;
        let (rivals, left_out) = rivals.split_at(rivals.len().min(MOST_RIVALS));
        if verdict.verdict != Decision::Improvement || rivals.is_empty() {
            return Ok(verdict);
        }
        let why = "the winner is ahead; scoring baselines that may be as good as the best one,";
        self.score(plan, rivals.iter().collect(), why, &mut scores).await?;
        let rivals = Rivals { scored: rivals, left_out: left_out.len() };
        self.decide(finalists, baseline, rivals, &scores, opened)
    }

    fn decide(
        &self,
        finalists: &[Row],
        baseline: Option<&Row>,
        rivals: Rivals<'_>,
        scores: &HoldoutScores,
        opened: Option<OpenedHoldout>,
    ) -> Result<Verdict, SearchError> {
        let contender = |row: &Row| Contender {
            candidate_id: row.candidate_id.clone(),
            index: row.index,
            origin: row.origin.clone(),
            search_score: row.objective.unwrap_or(f64::NAN),
            rescored: self.again.get(&row.candidate_id).copied(),
            holdout: scores.get(&row.candidate_id),
        };
        let question = VerdictQuestion {
            objective: self.prepared.holdout.as_ref().map_or(&self.prepared.objective, |plan| &plan.objective),
            finalists: finalists.iter().map(contender).collect(),
            baseline: baseline.map(contender),
            rivals: rivals.scored.iter().map(contender).collect(),
            rivals_left_out: rivals.left_out,
            unscored_baselines: self.unscored_baselines.clone(),
            holdout: opened,
            seed: self.prepared.config.seed,
        };
        decide(&question).map_err(|error| SearchError::BadData(error.to_string()))
    }

    /// Notes at how many evaluations the hold-out was opened first; true when the search went on since.
    fn open(&self) -> Result<bool, SearchError> {
        let now = self.evaluations.to_string();
        match self.ledger.fact(fact::HOLDOUT_OPENED_AT)? {
            Some(first) => Ok(first != now),
            None => {
                self.ledger.set_fact(fact::HOLDOUT_OPENED_AT, &now)?;
                Ok(false)
            }
        }
    }

    /// Whether another run of this one's family opened the same hold-out before it; tells of it.
    fn was_opened_by_another(&self) -> bool {
        let Some(earlier) = earlier::opening_before(self.ledger) else { return false };
        self.progress.line(&format!(
            "hold-out: {} opened it before (on {}): to whoever has seen that verdict, this one is no untouched evidence",
            earlier.folder.display(),
            earlier.at
        ));
        true
    }

    /// Adds the scores of `contenders`, as far as they have some; `why` is told where there is something to do.
    async fn score(
        &self,
        plan: &HoldoutPlan,
        mut contenders: Vec<&Row>,
        why: &str,
        scores: &mut HoldoutScores,
    ) -> Result<(), SearchError> {
        let recorded = self.ledger.all_holdout()?;
        let mut pipeline = self.pipeline(plan);
        let mut open = 0;
        contenders.sort_by_key(|row| row.index);
        // In a race, a recipe may have been scored in full twice.
        let mut seen = BTreeSet::new();
        contenders.retain(|row| seen.insert(row.candidate_id.clone()));
        for row in contenders {
            let candidate = self.candidate(row, pipeline.context())?;
            match recorded.get(&candidate.evaluation_id) {
                Some(record) => {
                    if record.status == Status::Scored {
                        scores.insert(row.candidate_id.clone(), record.tasks.clone());
                    }
                }
                None => {
                    open += 1;
                    pipeline.add(Work { index: row.index, candidate: Arc::new(candidate), kind: WorkKind::Holdout });
                }
            }
        }
        if open > 0 {
            let samples = match plan.samples {
                0 => "all samples".to_owned(),
                samples => format!("{samples} samples each"),
            };
            self.progress.line(&format!("hold-out: {why} {} on {samples}", counted(open, "candidate")));
        }
        pipeline.finish(self.stop, |finished| self.record(plan, finished, scores)).await
    }

    fn pipeline(&self, plan: &HoldoutPlan) -> Pipeline {
        let context = EvaluationContext {
            tasks: plan.tasks.clone(),
            fingerprint: plan.evaluator.fingerprint().to_string(),
            ..self.equipment.context.clone()
        };
        let equipment = Equipment { evaluator: plan.evaluator.clone(), context, ..self.equipment.clone() };
        Pipeline::new(equipment, self.stop.now.child_token())
    }

    /// The candidate as the search recorded it, under the hold-out's evaluation id.
    fn candidate(&self, row: &Row, context: &EvaluationContext) -> Result<Candidate, SearchError> {
        let asked = self.ledger.asked_at(row.index)?;
        Candidate::from_record(&asked, &self.prepared.models, context, 0)
    }

    fn record(&self, plan: &HoldoutPlan, finished: Finished, scores: &mut HoldoutScores) -> Result<(), SearchError> {
        let tasks = rename(plan, finished.tasks);
        if finished.status != Status::Scored {
            let reason = finished.error.clone().unwrap_or_default();
            self.progress.line(&format!(
                "hold-out: {} has no score: {reason}; the same command asks for it again",
                finished.candidate.id
            ));
            // Who comes here has a score of the search, so that nothing about the candidate is final.
            return Ok(());
        }
        self.ledger.holdout(&HoldoutRecord {
            evaluation_id: finished.candidate.evaluation_id.clone(),
            candidate_id: finished.candidate.id.clone(),
            status: finished.status,
            tasks: tasks.clone(),
            error: finished.error.clone(),
            finished_at: now(),
        })?;
        scores.insert(finished.candidate.id.clone(), tasks);
        Ok(())
    }
}

/// Scores under the run's own task names.
fn rename(plan: &HoldoutPlan, tasks: BTreeMap<String, TaskScores>) -> BTreeMap<String, TaskScores> {
    let ours = |name: String| {
        plan.names.iter().find(|(_, other)| **other == name).map_or(name.clone(), |(run_name, _)| run_name.clone())
    };
    tasks.into_iter().map(|(name, scores)| (ours(name), scores)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::config::RunConfig;
    use crate::ledger::{AskedRecord, event};
    use crate::search::{Snapshot, prepare};
    use crate::strategy::{Content, Proposal};

    const RUN: &str = r#"
name = "run"
models = { sources = ["a", "b"] }
space = { method = "linear" }
budget = { evaluations = 9 }
evaluator = { kind = "function", name = "sphere", samples = 40 }
tasks = [{ name = "one" }]
holdout = { fraction = 0.5 }
"#;

    /// Keeps what a person would have been told.
    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl Progress for Lines {
        fn line(&self, text: &str) {
            self.0.lock().unwrap().push(text.to_owned());
        }
        fn update(&self, _: &Snapshot) {}
    }

    fn context(prepared: &Prepared) -> EvaluationContext {
        EvaluationContext {
            run_id: "r".into(),
            run_name: "run".into(),
            tasks: prepared.tasks.clone(),
            fingerprint: prepared.evaluator.fingerprint().to_owned(),
            settings: prepared.models.settings_ids.clone(),
        }
    }

    /// The evaluation in full, under this index, of one of the sources.
    fn evaluation(prepared: &Prepared, index: u64, source: usize) -> (AskedRecord, Row) {
        let context = context(prepared);
        let proposal = Proposal::new(Content::Soup(vec![source]), "source");
        let candidate =
            Candidate::from_proposal(&proposal, &prepared.models, None, &context, prepared.tasks.clone()).unwrap();
        let row = Row {
            index,
            candidate_id: candidate.id.clone(),
            origin: "source".into(),
            status: Status::Scored,
            objective: Some(0.5 + index as f64 / 100.0),
            tasks: BTreeMap::new(),
        };
        let asked = AskedRecord {
            index,
            candidate_id: candidate.id,
            recipe_sha256: candidate.recipe_sha256,
            evaluation_id: format!("{} {index}", candidate.evaluation_id),
            recipe: candidate.recipe.to_toml(&prepared.models.content_ids),
            content: serde_json::json!({ "soup": [source] }),
            genes: vec![],
            origin: "source".into(),
            parents: vec![],
            generation: 0,
            fidelity: 1.0,
            replicate: 0,
            samples: prepared.samples,
            asked_at: now(),
        };
        (asked, row)
    }

    #[tokio::test]
    async fn a_candidate_with_two_evaluations_in_full_is_scored_once() {
        let folder = tempfile::tempdir().unwrap();
        let lines = Arc::new(Lines::default());
        let (progress, stop): (Arc<dyn Progress>, _) = (lines.clone(), Stop::default());
        let config = RunConfig::parse(RUN, folder.path()).unwrap();
        let prepared = Arc::new(prepare(config, folder.path(), &progress, &stop).await.unwrap());
        let ledger = Arc::new(Ledger::open(&folder.path().join("ledger.sqlite")).unwrap());
        // Another candidate's evaluation lies between the two.
        let (asked, rows): (Vec<_>, Vec<_>) =
            [(0, 0), (1, 1), (2, 0)].map(|(index, source)| evaluation(&prepared, index, source)).into_iter().unzip();
        asked.iter().for_each(|record| ledger.asked(record).unwrap());
        let equipment = Equipment {
            evaluator: prepared.evaluator.clone(),
            context: context(&prepared),
            ledger: ledger.clone(),
            stage: None,
            progress: progress.clone(),
        };
        let opening = HoldoutOpening {
            prepared: &prepared,
            ledger: &ledger,
            equipment: &equipment,
            evaluations: 3,
            unscored_baselines: vec![],
            again: &BTreeMap::new(),
            progress: &progress,
            stop: &stop,
        };
        let verdict = opening.verdict(&[rows[2].clone(), rows[1].clone()], Some(&rows[0]), &[]).await.unwrap();
        assert_eq!(ledger.events(event::HOLDOUT_ATTEMPTED).unwrap().len(), 2);
        assert_eq!(ledger.all_holdout().unwrap().len(), 2);
        let said = lines.0.lock().unwrap().join("\n");
        assert!(said.contains("scoring 2 candidates"), "{said}");
        assert!(verdict.finalists.iter().all(|finalist| finalist.holdout_score.is_some()));
    }
}
