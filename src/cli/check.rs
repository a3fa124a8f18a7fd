//! `evomerge check`: everything a search would stumble over, before a night is spent.

use std::sync::Arc;

use super::arguments::Check;
use super::error::CliError;
use super::output::Output;
use super::quantities::human_bytes;
use super::runtime::{run_to_end, scratch_folder};
use super::search::{read_run_file, require_space};
use crate::exit::ExitCode;
use crate::files::hold_scratch;
use crate::plural::counted;
use crate::search::{Findings, Progress, check, prepare};

pub(super) fn run(arguments: &Check, output: Output) -> Result<ExitCode, CliError> {
    let mut config = read_run_file(&arguments.run_file)?;
    arguments.instead.apply(&mut config);
    require_space(&config, &arguments.run_file)?;
    let scratch = scratch_folder()?;
    let _held = hold_scratch(scratch.path());
    let (results, fresh) = (arguments.results.clone(), arguments.fresh);
    let findings = run_to_end(output, async |screen, stop| {
        let progress: Arc<dyn Progress> = screen;
        let prepared = prepare(config, scratch.path(), &progress, &stop).await;
        let prepared = prepared.map_err(|error| CliError::of_run(error, &arguments.run_file))?;
        Ok(stop.unless_wanted(move || check(&prepared, &results, fresh)).await??)
    });
    let findings = findings.map_err(CliError::without_run)?;
    output.result(&describe(&findings), &findings)?;
    Ok(ExitCode::Done)
}

/// Pairs of sources shown; the JSON document has all.
const CONFLICTS_SHOWN: usize = 5;

fn describe(findings: &Findings) -> String {
    let mut text = format!("{}: ready\n", findings.name);
    let mut line = |label: &str, value: String| text.push_str(&format!("{label:<12} {value}\n"));
    let sources = counted(findings.sources as u64, "source");
    if let Some(run) = &findings.run {
        line("run", run.clone());
    }
    line("models", format!("{sources}{}", if findings.base { " and a base" } else { "" }));
    if findings.candidate_bytes > 0 {
        line(
            "candidates",
            format!(
                "{}{} each, up to {} at a time in {}{}",
                if findings.layers.is_some() { "at most " } else { "" },
                human_bytes(findings.candidate_bytes),
                findings.slots,
                findings.candidate_folder.display(),
                findings.free_bytes.map_or_else(String::new, |free| format!(" ({} free)", human_bytes(free)))
            ),
        );
    }
    if let Some((fewest, most)) = findings.layers {
        line("layers", format!("{fewest} to {most} of a candidate"));
    }
    line("genes", format!("{}{}", findings.genes.len(), preview(&findings.genes)));
    line("evaluator", format!("{}, {} at once", findings.evaluator, findings.concurrency));
    for task in &findings.tasks {
        line("task", task.clone());
    }
    let soup = findings.greedy_soup_evaluations.map(describe_soup).unwrap_or_default();
    line("baselines", format!("{}{soup}", counted(findings.baselines, "evaluation")));
    line("budget", findings.budget.clone());
    if let Some(racing) = &findings.racing {
        line("racing", racing.clone());
    }
    for conflict in findings.conflicts.iter().take(CONFLICTS_SHOWN) {
        let [first, second] = &conflict.sources;
        line(
            "conflict",
            format!(
                "{first} and {second}: cosine {:.2}, {:.0} % of the elements moved apart, worst at layer {}",
                conflict.cosine,
                100.0 * conflict.sign_disagreement,
                conflict.worst_layer
            ),
        );
    }
    if findings.conflicts.len() > CONFLICTS_SHOWN {
        let more = counted((findings.conflicts.len() - CONFLICTS_SHOWN) as u64, "more pair");
        line("", format!("and {more}; --json has all"));
    }
    line("again", findings.repeats.clone());
    line("hold-out", findings.holdout.clone());
    if let Some(warning) = describe_unreachable(findings) {
        line("warning", warning);
    }
    for alarm in &findings.alarms {
        line("warning", alarm.message.clone());
    }
    text
}

/// What the greedy soup takes after the baselines.
fn describe_soup([fewest, most]: [u64; 2]) -> String {
    let evaluations = match (fewest, most) {
        (_, 0) => "no further one".to_owned(),
        _ if fewest == most => counted(most, "evaluation"),
        _ => format!("{fewest} to {}", counted(most, "evaluation")),
    };
    format!(", then the greedy soup ({evaluations})")
}

/// The endpoints that a search would do without.
fn describe_unreachable(findings: &Findings) -> Option<String> {
    let unreachable = &findings.unreachable;
    if unreachable.is_empty() {
        return None;
    }
    let reasons: Vec<String> = unreachable.iter().map(|one| format!("{}: {}", one.endpoint, one.reason)).collect();
    Some(format!(
        "{} of {} cannot be asked: {}",
        unreachable.len(),
        counted(findings.endpoints.max(unreachable.len()) as u64, "endpoint"),
        reasons.join("; ")
    ))
}

fn preview(genes: &[String]) -> String {
    const SHOWN: usize = 6;
    match genes.len() {
        0 => String::new(),
        count if count <= SHOWN => format!(": {}", genes.join(", ")),
        _ => format!(": {}, ...", genes[..SHOWN].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sweep of those that killed commands left goes by the name.
    #[test]
    fn scratch_folders_have_the_name_that_is_swept() {
        let scratch = scratch_folder().unwrap();
        let name = scratch.path().file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(crate::files::SCRATCH), "{name}");
    }
}
