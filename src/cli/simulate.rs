//! `evomerge simulate`: replays recorded scores to see what a budget of samples buys.

use std::collections::BTreeSet;
use std::path::Path;

use super::arguments::Simulate;
use super::error::CliError;
use super::output::{Output, table};
use crate::exit::ExitCode;
use crate::plural::counted;
use crate::score::digits;
use crate::score::simulate::{Allocation, BudgetRow, ScoreMatrix, SimulationPlan, rung_sizes, simulate};
use crate::search::{RunFolder, ScoreTable, recorded_scores};

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
        "{}, {}; best {}; {}, seed {}; halving {}\n\n",
        counted(matrix.candidates() as u64, "candidate"),
        counted(matrix.samples() as u64, "sample"),
        matrix.best().0,
        counted(u64::from(plan.repetitions), "repetition"),
        plan.seed,
        rungs.join(" -> ")
    );
    let header = ["samples", "allocation", "each of chosen", "best chosen", "regret", "over-statement"];
    // As fine as the scores themselves: a regret of nothing has no scale of its own.
    let digits = digits(&[matrix.best().1]);
    let line = |budget: u64, name: &str, found: Option<&Allocation>| {
        let mut cells = vec![budget.to_string(), name.to_string()];
        match found {
            Some(found) => cells.extend([
                format!("{:.0}", found.samples_of_chosen),
                format!("{:.1} %", 100.0 * found.best_chosen),
                format!("{:.digits$}", found.regret),
                format!("{:+.digits$}", found.over_statement),
            ]),
            None => cells.push("too few samples in the first rung".to_string()),
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
    let ledger = RunFolder::ledger_in(path);
    let path = if path.is_dir() { ledger.as_path() } else { path };
    let is_ledger = path.extension().is_some_and(|extension| extension == "sqlite");
    if is_ledger && minimize {
        return Err(CliError::Usage("--minimize is for CSV files; a ledger knows the direction of its tasks".into()));
    }
    let table = if is_ledger { recorded_scores(path)? } else { from_csv(path, minimize)? };
    ScoreMatrix::of_tasks(table.candidates, table.rows, table.task_samples)
        .map_err(|error| bad(path, error.to_string()))
}

/// One row a candidate; the first column is its name, every other one a sample.
fn from_csv(path: &Path, minimize: bool) -> Result<ScoreTable, CliError> {
    let text = std::fs::read(path).map_err(|error| bad(path, error.to_string()))?;
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter(&text)).from_reader(text.as_slice());
    let header = reader.headers().map_err(|error| bad(path, error.to_string()))?.clone();
    refuse_scores_as_header(path, &header)?;
    let samples = header.len().saturating_sub(1);
    let mut table = ScoreTable { candidates: Vec::new(), rows: Vec::new(), task_samples: vec![samples] };
    for record in reader.records() {
        let record = record.map_err(|error| bad(path, error.to_string()))?;
        let name = record.get(0).unwrap_or_default().to_string();
        let score = |(column, cell): (usize, &str)| {
            cell.trim().parse().map(|score: f64| if minimize { -score } else { score }).map_err(|_| {
                let sample = header.get(column + 1).unwrap_or_default();
                bad(path, format!("candidate `{name}`, sample `{sample}`: {cell:?} is not a number"))
            })
        };
        table.rows.push(record.iter().skip(1).enumerate().map(score).collect::<Result<_, _>>()?);
        table.candidates.push(name);
    }
    Ok(table)
}

/// What separates the cells: commas, or where the header has none, tabs or semicolons, as spreadsheets write them too.
fn delimiter(text: &[u8]) -> u8 {
    let header = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    *[b',', b'\t', b';'].iter().find(|byte| header.contains(byte)).unwrap_or(&b',')
}

/// Refuses a file whose first line is a candidate instead of a header: all cells are numbers that cannot be sample
/// numbers. Sample numbers are distinct whole numbers; scores of 0 and 1 repeat from three samples on, and `1, 0` is
/// not taken for numbering.
fn refuse_scores_as_header(path: &Path, header: &csv::StringRecord) -> Result<(), CliError> {
    let cells: Vec<&str> = header.iter().skip(1).map(str::trim).collect();
    let is_whole = |cell: &&str| cell.bytes().all(|byte| byte.is_ascii_digit());
    let numbers_samples = || {
        cells.iter().all(is_whole) && cells.iter().collect::<BTreeSet<_>>().len() == cells.len() && cells != ["1", "0"]
    };
    if cells.is_empty() || cells.iter().any(|cell| cell.parse::<f64>().is_err()) || numbers_samples() {
        return Ok(());
    }
    let first = header.get(0).unwrap_or_default();
    let reason = format!(
        "line 1: the header is missing: `{first}` is followed by scores, as a candidate is. The first line names the first \
         column and then each sample, such as `candidate,1,2,3`; samples that are numbered have each another whole number"
    );
    Err(bad(path, reason))
}
