//! The scores by sample that a run recorded, as one table: what `evomerge simulate` replays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::SearchError;
use super::outcomes::LatestOutcomes;
use crate::ledger::{Ledger, ToldRecord, fact};
use crate::score::mean_samples::{mean_samples, unweighted};
use crate::scores::{SampleId, Status};

/// Scores by candidate and sample.
pub struct ScoreTable {
    /// Names of the candidates.
    pub candidates: Vec<String>,
    /// A row of scores for each candidate, in the order of `candidates`: each column is a sample, task by task.
    pub rows: Vec<Vec<f64>>,
    /// How many of the columns are samples of each task.
    pub task_samples: Vec<usize>,
}

/// A task of the recorded run's objective.
#[derive(serde::Deserialize)]
struct RecordedTask {
    name: String,
    metric: String,
    /// Share in the objective; negative where lower scores are better.
    weight: f64,
}

/// The scored candidates at full fidelity, on the samples of all tasks. Scores are scaled so that the mean over all
/// samples is the objective, whatever the tasks' sizes and weights.
///
/// # Errors
/// Those of reading the ledger; [`SearchError::BadData`] where candidates have no samples in common.
pub fn recorded_scores(path: &Path) -> Result<ScoreTable, SearchError> {
    let ledger = Ledger::open_for_reading(path)?;
    let objective = ledger.fact(fact::OBJECTIVE)?.ok_or_else(|| {
        bad(path, "the ledger does not tell the run's objective; it was written before evomerge recorded it")
    })?;
    let tasks: Vec<RecordedTask> = serde_json::from_str(&objective)
        .map_err(|error| bad(path, format!("the run's objective cannot be read: {error}")))?;
    let latest = LatestOutcomes::of(&ledger)?;
    let mut order: Option<Vec<Vec<SampleId>>> = None;
    let mut table = ScoreTable { candidates: Vec::new(), rows: Vec::new(), task_samples: Vec::new() };
    let mut seen = BTreeSet::new();
    for asked in ledger.all_asked()? {
        if asked.fidelity < 1.0 || seen.contains(&asked.candidate_id) {
            continue;
        }
        // One outcome at a time: those of a long run are large together.
        let record = latest.outcome(asked.index)?.filter(|record| record.status == Status::Scored);
        let Some(record) = record else { continue };
        let scores = samples_of(path, &record, &tasks)?;
        let order =
            order.get_or_insert_with(|| scores.iter().map(|samples| samples.keys().cloned().collect()).collect());
        let row = row(order, &tasks, &scores).map_err(|task| {
            bad(path, format!("candidate {} was not scored on the same samples of task `{task}`", asked.candidate_id))
        })?;
        table.rows.push(row);
        seen.insert(asked.candidate_id.clone());
        table.candidates.push(asked.candidate_id);
    }
    let Some(order) = order else { return Err(bad(path, "no candidate was scored at full fidelity")) };
    table.task_samples = order.iter().map(Vec::len).collect();
    Ok(table)
}

/// A candidate's scores in the order of the ids, scaled; the task whose samples are others, if there is one.
fn row(order: &[Vec<SampleId>], tasks: &[RecordedTask], scores: &[TaskSamples]) -> Result<Vec<f64>, String> {
    let total: usize = order.iter().map(Vec::len).sum();
    let weights: f64 = tasks.iter().map(|task| task.weight.abs()).sum();
    let mut row = Vec::with_capacity(total);
    for ((task, ids), scores) in tasks.iter().zip(order).zip(scores) {
        let scale = task.weight / weights * total as f64 / ids.len() as f64;
        for id in ids {
            let score = scores.get(id).filter(|_| scores.len() == ids.len()).ok_or_else(|| task.name.clone())?;
            row.push(scale * score);
        }
    }
    Ok(row)
}

type TaskSamples = BTreeMap<SampleId, f64>;

fn samples_of(path: &Path, record: &ToldRecord, tasks: &[RecordedTask]) -> Result<Vec<TaskSamples>, SearchError> {
    let of_task = |task: &RecordedTask| {
        let scores = record.tasks.get(&task.name);
        let has_samples = scores.and_then(|scores| scores.per_sample.as_ref()?.scores.get(&task.metric)).is_some();
        let found = scores.and_then(|scores| mean_samples(scores, &task.metric)).ok_or_else(|| {
            let why = if has_samples {
                "is not the mean of its scores by sample: draws of samples do not say what it would be"
            } else {
                "has no scores by sample; only evaluators that answer with per-sample scores leave a ledger that can be replayed"
            };
            bad(path, format!("evaluation {}, task `{}`: metric `{}` {why}", record.index, task.name, task.metric))
        })?;
        let values = found.weights.map_or_else(|| found.values.to_vec(), |weights| unweighted(found.values, weights));
        Ok(found.ids.iter().cloned().zip(values).collect())
    };
    tasks.iter().map(of_task).collect()
}

fn bad(path: &Path, reason: impl AsRef<str>) -> SearchError {
    SearchError::BadData(format!("{}: {}", path.display(), reason.as_ref()))
}
