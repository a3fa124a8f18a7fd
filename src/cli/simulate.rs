//! `evomerge simulate`: replays recorded scores to see what a budget of samples buys.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::arguments::Simulate;
use super::error::CliError;
use super::output::{Output, table};
use crate::evaluate::SampleId;
use crate::exit::ExitCode;
use crate::ledger::{Ledger, ToldRecord};
use crate::score::paired::mean_samples;
use crate::score::simulate::{Allocation, BudgetRow, ScoreMatrix, SimulationPlan, rung_sizes, simulate};
use crate::strategy::Status;

pub(super) fn run(arguments: &Simulate, output: Output) -> Result<ExitCode, CliError> {
    let matrix = read(&arguments.scores, arguments.minimize)?;
    let budgets = if arguments.budget.is_empty() { matrix.usual_budgets() } else { arguments.budget.clone() };
    let plan = SimulationPlan {
        budgets,
        eta: arguments.eta,
        rungs: arguments.rungs.map(std::num::NonZeroUsize::get),
        repetitions: arguments.repetitions.get(),
        seed: arguments.seed,
    };
    let rows = simulate(&matrix, &plan)?;
    let sizes = rung_sizes(matrix.candidates(), plan.eta, plan.rungs);
    let (best, score) = matrix.best();
    let json = serde_json::json!({
        "candidates": matrix.candidates(),
        "samples": matrix.samples(),
        "best": { "candidate": best, "score": if arguments.minimize { -score } else { score } },
        "rungs": sizes,
        "eta": plan.eta,
        "repetitions": plan.repetitions,
        "seed": plan.seed,
        "budgets": rows,
    });
    output.result(&describe(&matrix, &plan, &sizes, &rows), &json)?;
    Ok(ExitCode::Done)
}

fn describe(matrix: &ScoreMatrix, plan: &SimulationPlan, sizes: &[usize], rows: &[BudgetRow]) -> String {
    let rungs: Vec<String> = sizes.iter().map(usize::to_string).collect();
    let mut text = format!(
        "{} candidates, {} samples; best {}; {} repetitions, seed {}; halving {}\n\n",
        matrix.candidates(),
        matrix.samples(),
        matrix.best().0,
        plan.repetitions,
        plan.seed,
        rungs.join(" -> ")
    );
    let header = ["samples", "allocation", "each of chosen", "best chosen", "regret", "over-statement"];
    let line = |budget: u64, name: &str, found: Option<&Allocation>| {
        let mut cells = vec![budget.to_string(), name.to_string()];
        match found {
            Some(found) => cells.extend([
                format!("{:.0}", found.samples_of_chosen),
                format!("{:.1} %", 100.0 * found.best_chosen),
                format!("{:.4}", found.regret),
                format!("{:+.4}", found.over_statement),
            ]),
            None => cells.push("less than one sample each in the first rung".to_string()),
        }
        cells
    };
    let lines: Vec<Vec<String>> = rows
        .iter()
        .flat_map(|row| {
            [line(row.budget, "uniform", Some(&row.uniform)), line(row.budget, "halving", row.halving.as_ref())]
        })
        .collect();
    text.push_str(&table(&header, &lines));
    text
}

fn bad(path: &Path, reason: impl Into<String>) -> CliError {
    CliError::Data { path: path.to_path_buf(), reason: reason.into() }
}

fn read(path: &Path, minimize: bool) -> Result<ScoreMatrix, CliError> {
    let is_ledger = path.extension().is_some_and(|extension| extension == "sqlite");
    if is_ledger && minimize {
        return Err(CliError::Usage("--minimize is for CSV files; a ledger knows the direction of its tasks".into()));
    }
    let (names, rows) = if is_ledger { from_ledger(path)? } else { from_csv(path, minimize)? };
    ScoreMatrix::new(names, rows).map_err(|error| bad(path, error.to_string()))
}

type Table = (Vec<String>, Vec<Vec<f64>>);

/// One row a candidate; the first column is its name, every other one a sample.
fn from_csv(path: &Path, minimize: bool) -> Result<Table, CliError> {
    let mut reader = csv::Reader::from_path(path).map_err(|error| bad(path, error.to_string()))?;
    let header = reader.headers().map_err(|error| bad(path, error.to_string()))?.clone();
    let (mut names, mut rows) = (Vec::new(), Vec::new());
    for record in reader.records() {
        let record = record.map_err(|error| bad(path, error.to_string()))?;
        let name = record.get(0).unwrap_or_default().to_string();
        let score = |(column, cell): (usize, &str)| {
            cell.trim().parse().map(|score: f64| if minimize { -score } else { score }).map_err(|_| {
                let sample = header.get(column + 1).unwrap_or_default();
                bad(path, format!("candidate `{name}`, sample `{sample}`: {cell:?} is not a number"))
            })
        };
        rows.push(record.iter().skip(1).enumerate().map(score).collect::<Result<_, _>>()?);
        names.push(name);
    }
    Ok((names, rows))
}

/// A task of the recorded run's objective.
#[derive(serde::Deserialize)]
struct RecordedTask {
    name: String,
    metric: String,
    /// With the direction as its sign.
    weight: f64,
}

/// The scored candidates at full fidelity, on the samples of all tasks. Scores are scaled so that the mean over all samples
/// is the objective, whatever the tasks' sizes and weights.
fn from_ledger(path: &Path) -> Result<Table, CliError> {
    let ledger = Ledger::open_for_reading(path)?;
    let objective = ledger.fact("objective")?.ok_or_else(|| {
        bad(path, "the ledger does not tell the run's objective; it was written before evomerge recorded it")
    })?;
    let tasks: Vec<RecordedTask> = serde_json::from_str(&objective)
        .map_err(|error| bad(path, format!("the run's objective cannot be read: {error}")))?;
    let mut order: Option<Vec<Vec<SampleId>>> = None;
    let (mut names, mut rows) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for asked in ledger.all_asked()? {
        if asked.fidelity < 1.0 || seen.contains(&asked.candidate_id) {
            continue;
        }
        // One outcome at a time: those of a long run are large together.
        let record = ledger.outcome(asked.index)?.filter(|record| record.status == Status::Scored.name());
        let Some(record) = record else { continue };
        let scores = samples_of(path, &record, &tasks)?;
        let order =
            order.get_or_insert_with(|| scores.iter().map(|samples| samples.keys().cloned().collect()).collect());
        let row = row(order, &tasks, &scores).map_err(|task| {
            bad(path, format!("candidate {} was not scored on the same samples of task `{task}`", asked.candidate_id))
        })?;
        rows.push(row);
        seen.insert(asked.candidate_id.clone());
        names.push(asked.candidate_id);
    }
    if rows.is_empty() {
        return Err(bad(path, "no candidate was scored at full fidelity"));
    }
    Ok((names, rows))
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

fn samples_of(path: &Path, record: &ToldRecord, tasks: &[RecordedTask]) -> Result<Vec<TaskSamples>, CliError> {
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
        // So that the plain mean of the numbers is the weighted mean of the scores.
        let mean_weight = found.weights.map(|weights| weights.iter().sum::<f64>() / weights.len() as f64);
        let weighed = |(place, value): (usize, &f64)| match (found.weights, mean_weight) {
            (Some(weights), Some(mean)) => value * weights[place] / mean,
            _ => *value,
        };
        Ok(found.ids.iter().cloned().zip(found.values.iter().enumerate().map(weighed)).collect())
    };
    tasks.iter().map(of_task).collect()
}
