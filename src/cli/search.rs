//! `evomerge search`.

use std::path::Path;
use std::sync::Arc;

use super::arguments::{RESULTS, RunArguments, Search};
use super::error::CliError;
use super::output::{Output, table};
use super::runtime::run_to_end;
use crate::config::{ConfigError, RunConfig};
use crate::exit::ExitCode;
use crate::ledger::Ledger;
use crate::score::verdict::{TaskVerdict, Verdict, VerdictCandidate};
use crate::score::{Decision, digits};
use crate::search::{Progress, Row, RunFolder, RunOptions, RunReport, SetAside, prepare, run as run_search};
use crate::strategy::{StrategyError, check_settings, origin};

pub(super) fn run(arguments: &Search, output: Output) -> Result<ExitCode, CliError> {
    let config = load(&arguments.run)?;
    require_space(&config, &arguments.run.run_file)?;
    execute(config, &arguments.run, RunOptions::default(), output)
}

/// The run file, with the settings of its strategy checked.
pub(super) fn read_run_file(path: &Path) -> Result<RunConfig, CliError> {
    let config = RunConfig::load(path)?;
    check_settings(&config.strategy).map_err(|error| match error {
        StrategyError::Setting { key, reason } => {
            let field = config.complaint(&["strategy", &key], reason);
            ConfigError::Field { document: path.display().to_string(), field }.into()
        }
        other => CliError::of_run(other.into(), path),
    })?;
    Ok(config)
}

/// Refuses a run file without a search space, unless its strategy makes soups.
pub(super) fn require_space(config: &RunConfig, path: &Path) -> Result<(), CliError> {
    config.search_space().map_err(|error| error.in_document(path.display().to_string()))?;
    Ok(())
}

/// The run file with what the command line says instead.
pub(super) fn load(arguments: &RunArguments) -> Result<RunConfig, CliError> {
    let mut config = read_run_file(&arguments.run_file)?;
    arguments.instead.apply(&mut config);
    Ok(config)
}

/// Runs `config` to its verdict.
pub(super) fn execute(
    config: RunConfig,
    arguments: &RunArguments,
    options: RunOptions,
    output: Output,
) -> Result<ExitCode, CliError> {
    let report = run_to_end(output, async |screen, stop| {
        let progress: Arc<dyn Progress> = screen.clone();
        let name = config.name.clone();
        let folder = RunFolder::lock(&arguments.results, &name)?;
        let begins = arguments.fresh || Ledger::is_blank(&folder.ledger());
        // Who names a folder means it.
        let may_mean_another = begins && !arguments.results.is_chosen();
        if may_mean_another && let Some(note) = run_elsewhere(&arguments.run_file, &name, folder.path()) {
            screen.line(&note);
        }
        let of_run = |error| CliError::of_run(error, &arguments.run_file);
        let prepared = prepare(config, &folder.scratch(), &progress, &stop).await.map_err(of_run)?;
        // Only now: a start that is refused, or killed while it prepares, leaves the old run where it is.
        let folder =
            if arguments.fresh { SetAside::of(folder, &arguments.results, &name)? } else { SetAside::from(folder) };
        if let Some(old) = &folder.old {
            screen.line(&format!("the old run is now {}", old.display()));
        }
        run_search(Arc::new(prepared), folder, options, progress, stop).await.map_err(of_run)
    })?;
    output.result(&describe(&report), &report)?;
    let improved = report.verdict.as_ref().is_some_and(|verdict| verdict.verdict == Decision::Improvement);
    Ok(if arguments.require_improvement && !improved { ExitCode::NoEvidence } else { ExitCode::Done })
}

/// What to tell of a run of this name that lies beside the run file, where a search begins a new one in another folder:
/// it may have been started from another current directory. `None`: there is none.
fn run_elsewhere(run_file: &Path, name: &str, folder: &Path) -> Option<String> {
    let beside = std::fs::canonicalize(run_file.parent()?.join(RESULTS).join(name)).ok()?;
    let begun = std::fs::canonicalize(folder).ok()?;
    if beside == begun || Ledger::is_blank(&RunFolder::ledger_in(&beside)) {
        return None;
    }
    let results = beside.parent()?.to_string_lossy().into_owned();
    Some(format!(
        "note: a new run begins in {}, since the results folder starts at the current directory; beside the run file lies another \
         one of that name, {}, which is left as it is: to continue that one, stop this search and give --results {}",
        begun.display(),
        beside.display(),
        in_shell(&results)
    ))
}

fn describe(report: &RunReport) -> String {
    let mut text = format!(
        "\n{}: {} evaluations ({} scored, {} infeasible, {} failed); {}\n\n",
        report.name, report.evaluations, report.scored, report.infeasible, report.failed, report.reason
    );
    text.push_str(&scores(report));
    if report.soup_sources.len() > 1 {
        text.push_str(&format!("\ngreedy soup: {}\n", report.soup_sources.join(" + ")));
    }
    if let Some(soup) = &report.soup
        && !soup.complete
    {
        text.push_str("\nThe greedy soup is incomplete: the budget ended before every source was tried.\n");
    }
    match &report.verdict {
        Some(verdict) => text.push_str(&format!("\n{}\n", verdict.sentence)),
        None => text.push_str("\nNo candidate could be scored: there is no result.\n"),
    }
    for alarm in &report.alarms {
        text.push_str(&format!("\nwarning: {}\n", alarm.message));
    }
    let folder = &report.folder;
    text.push('\n');
    if report.best.is_some() {
        text.push_str(&format!("recipe   {}\n", folder.join("best/recipe.toml").display()));
    }
    text.push_str(&format!("trials   {}\n", folder.join("trials.csv").display()));
    if report.has_models && report.best.is_some() {
        text.push_str(&format!("model    evomerge export {} --out DIR\n", in_shell(&folder.to_string_lossy())));
    }
    text
}

/// A word as a shell takes it for one.
fn in_shell(word: &str) -> String {
    let is_plain = |symbol: char| symbol.is_alphanumeric() || "_./-+:@%=,".contains(symbol);
    if word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Search score and hold-out score of baselines and finalists, with the difference to the best baseline.
fn scores(report: &RunReport) -> String {
    let tasks: Vec<&String> = report
        .best
        .iter()
        .chain(&report.baselines)
        .max_by_key(|row| row.tasks.len())
        .map_or(Vec::new(), |row| row.tasks.keys().collect());
    let is_again = report.verdict.as_ref().is_some_and(|verdict| verdict.winner.rescored.is_some());
    let mut header = vec!["", "search"];
    header.extend(is_again.then_some("again"));
    header.push("hold-out");
    header.extend(tasks.iter().map(|task| task.as_str()));
    let mut rows = Vec::new();
    for row in soups_last(report) {
        let is_greedy = report.soup_index == Some(row.index) && row.origin != origin::GREEDY_SOUP;
        let label = if is_greedy { format!("{} = {}", row.origin, origin::GREEDY_SOUP) } else { row.origin.clone() };
        rows.push(line(&label, row, contender(report, &row.candidate_id), is_again, &tasks));
    }
    if let Some(best) = &report.best {
        let label = format!("best: {} ({})", best.candidate_id, best.origin);
        rows.push(line(&label, best, contender(report, &best.candidate_id), is_again, &tasks));
    }
    let mut text = table(&header, &rows);
    if let Some(verdict) = &report.verdict
        && let (Some(difference), Some([low, high])) = (verdict.difference, verdict.interval)
    {
        let how = if verdict.paired { "paired" } else { "unpaired" };
        let digits = digits(&[difference, low, high]);
        text.push_str(&format!(
            "\nhold-out difference to the best baseline: {difference:+.digits$} [{low:+.digits$}, {high:+.digits$}] ({how}, 95 %)\n"
        ));
        text.push_str(&by_task(verdict));
    }
    text
}

/// The hold-out differences task by task, where there are several tasks.
fn by_task(verdict: &Verdict) -> String {
    if verdict.tasks.len() < 2 {
        return String::new();
    }
    let of_task = |(name, task): (&String, &TaskVerdict)| {
        let ends = task.interval.unwrap_or([task.difference; 2]);
        let digits = digits(&[task.difference, ends[0], ends[1]]);
        let interval =
            task.interval.map_or(String::new(), |[low, high]| format!(" [{low:+.digits$}, {high:+.digits$}]"));
        format!("{name} {:+.digits$}{interval}", task.difference)
    };
    let tasks = verdict.tasks.iter().map(of_task);
    format!("by task: {}\n", tasks.collect::<Vec<_>>().join(", "))
}

/// Base, sources and uniform soup; of the greedy soup's trials the one that it ended with.
fn soups_last(report: &RunReport) -> Vec<&Row> {
    let is_trial = |row: &&Row| row.origin == origin::GREEDY_SOUP;
    let soup = report.baselines.iter().filter(|row| is_trial(row) && report.soup_index == Some(row.index));
    report.baselines.iter().filter(|row| !is_trial(row)).chain(soup).collect()
}

fn contender<'a>(report: &'a RunReport, candidate_id: &str) -> Option<&'a VerdictCandidate> {
    let verdict = report.verdict.as_ref()?;
    let rivals = verdict.rivals.iter().map(|rival| &rival.baseline);
    let mut shown = verdict.finalists.iter().chain(&verdict.baseline).chain(rivals);
    shown.find(|candidate| candidate.candidate_id == candidate_id)
}

fn line(
    label: &str,
    row: &Row,
    contender: Option<&VerdictCandidate>,
    is_again: bool,
    tasks: &[&String],
) -> Vec<String> {
    let number = |value: Option<f64>| {
        value.map_or("-".to_string(), |value| format!("{value:.digits$}", digits = digits(&[value])))
    };
    let mut cells = vec![label.to_string(), number(row.objective)];
    cells.extend(is_again.then(|| number(contender.and_then(|contender| contender.rescored))));
    cells.push(number(contender.and_then(|contender| contender.holdout_score)));
    cells.extend(tasks.iter().map(|task| number(row.tasks.get(*task).copied())));
    cells
}
