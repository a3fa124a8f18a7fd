//! `evomerge status`: reads the ledger beside a search that may be running.

use std::time::Duration;

use super::arguments::Status;
use super::duration::human;
use super::error::CliError;
use super::output::Output;
use crate::exit::ExitCode;
use crate::ledger::Ledger;
use crate::search::{RunFolder, Standings, best_record, repeats_alarm};

pub(super) fn run(arguments: &Status, output: Output) -> Result<ExitCode, CliError> {
    let ledger = Ledger::open_for_reading(&arguments.results.join("ledger.sqlite"))?;
    let fact = |key: &str| ledger.fact(key).map(Option::unwrap_or_default);
    // In this order: a search that is running asks before it is told.
    let told = ledger.all_told_in_short()?;
    let asked = ledger.all_asked()?;
    let count = |status: &str| told.values().filter(|record| record.status == status).count();
    let running = RunFolder::is_locked(&arguments.results);
    let last = |kind: &str| ledger.events(kind).map(|events| events.last().cloned());
    let begun = last("started")?;
    // A start that came after it was killed.
    let stopped = last("stopped")?.filter(|event| begun.as_ref().is_none_or(|begun| event.sequence > begun.sequence));
    let state = match &stopped {
        _ if running => "running".to_string(),
        Some(event) => event
            .payload
            .get("reason")
            .map(|reason| format!("finished: {}", reason.as_str().unwrap_or_default()))
            .unwrap_or_else(|| {
                let error = event.payload.get("error").and_then(|error| error.as_str()).unwrap_or_default();
                format!("stopped: {error}")
            }),
        None => "killed; the same command continues it".to_string(),
    };
    let best = best_record(&ledger)?;
    let standings = Standings::of(&ledger)?.in_short()?;
    let baseline = asked
        .iter()
        .filter(|record| record.is_baseline())
        .filter_map(|record| Some((record, standings.get(&record.index)?.objective?)))
        .reduce(|best, next| if next.1 > best.1 { next } else { best });
    let attempts = ledger.events("attempted")?;
    let faults = attempts.iter().filter(|event| !event.payload["attempt"]["fault"].is_null()).count();
    let active = fact("active_seconds")?.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let active = active.unwrap_or_default();
    let verdict = std::fs::read_to_string(arguments.results.join("verdict.json"))
        .ok()
        .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());

    let mut text = format!("{}: {state}\n", fact("run_name")?);
    text.push_str(&format!(
        "evaluations  {} finished ({} infeasible, {} failed), {} asked for and open\n",
        told.len(),
        count("infeasible"),
        count("failed"),
        asked.len().saturating_sub(told.len())
    ));
    let limits = begun.as_ref().map(|event| event.payload["budget"].clone()).unwrap_or_default();
    let left = left(&limits, told.len(), active);
    if let Some(budget) = describe_budget(&limits, left.filter(|_| running)) {
        text.push_str(&format!("budget       {budget}\n"));
    }
    text.push_str(&format!("active       {}\n", human(active)));
    if let Some((record, outcome)) = &best {
        let objective = outcome.objective.unwrap_or(f64::NAN);
        text.push_str(&format!(
            "best         {objective:.4}  {} ({}, evaluation {})\n",
            record.candidate_id, record.origin, record.index
        ));
    }
    if let Some((record, objective)) = &baseline {
        text.push_str(&format!("baseline     {objective:.4}  {} ({})\n", record.candidate_id, record.origin));
    }
    text.push_str(&format!("attempts     {} ({faults} failed)\n", attempts.len()));
    // In a running search the alarms of the verdict are still to come.
    let alarms: Vec<serde_json::Value> = match verdict.as_ref().and_then(|verdict| verdict["alarms"].as_array()) {
        Some(alarms) if !running => alarms.clone(),
        _ => repeats_alarm(&ledger)?.iter().filter_map(|alarm| serde_json::to_value(alarm).ok()).collect(),
    };
    if let Some(sentence) = verdict.as_ref().and_then(|verdict| verdict["sentence"].as_str()) {
        let age = if stopped.is_none() || running { "(from before the search went on) " } else { "" };
        text.push_str(&format!("verdict      {age}{sentence}\n"));
    }
    let repeats = ledger.all_repeats()?.len();
    if repeats > 0 {
        text.push_str(&format!("again        {repeats} scored again\n"));
    }
    for message in alarms.iter().filter_map(|alarm| alarm["message"].as_str()) {
        text.push_str(&format!("warning      {message}\n"));
    }
    let json = serde_json::json!({
        "name": fact("run_name")?,
        "running": running,
        "state": state,
        "asked": asked.len(),
        "finished": told.len(),
        "scored": count("scored"),
        "infeasible": count("infeasible"),
        "failed": count("failed"),
        "active_s": active.as_secs_f64(),
        "budget": limits,
        "left_s": left.map(|left| left.as_secs_f64()),
        "best": best.as_ref().map(|(record, outcome)| serde_json::json!({
            "candidate_id": record.candidate_id, "index": record.index, "origin": record.origin,
            "objective": outcome.objective })),
        "best_baseline": baseline.map(|(record, objective)| serde_json::json!({
            "candidate_id": record.candidate_id, "index": record.index, "origin": record.origin,
            "objective": objective })),
        "attempts": attempts.len(),
        "failed_attempts": faults,
        "scored_again": repeats,
        "alarms": alarms,
        "verdict": verdict,
    });
    output.result(&text, &json)?;
    Ok(ExitCode::Done)
}

/// The active time that the budget leaves, at the pace so far; `None` where nothing says.
fn left(limits: &serde_json::Value, finished: usize, active: Duration) -> Option<Duration> {
    let by_clock = limits["wall_clock_s"].as_f64().map(|limit| (limit - active.as_secs_f64()).max(0.0));
    let by_count = limits["evaluations"].as_u64().filter(|_| finished > 0).map(|limit| {
        let open = limit.saturating_sub(finished as u64);
        active.as_secs_f64() * open as f64 / finished as f64
    });
    let seconds = match (by_clock, by_count) {
        (Some(clock), Some(count)) => Some(clock.min(count)),
        (clock, count) => clock.or(count),
    };
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}

fn describe_budget(limits: &serde_json::Value, left: Option<Duration>) -> Option<String> {
    let mut parts = Vec::new();
    parts.extend(limits["evaluations"].as_u64().map(|limit| format!("{limit} evaluations")));
    parts.extend(limits["samples"].as_u64().map(|limit| format!("{limit} samples")));
    let clock = limits["wall_clock_s"].as_f64().and_then(|limit| Duration::try_from_secs_f64(limit).ok());
    parts.extend(clock.map(|limit| format!("{} of active time", human(limit))));
    if parts.is_empty() {
        return None;
    }
    let left = left.map(|left| format!("; about {} left", human(left))).unwrap_or_default();
    Some(parts.join(", ") + &left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_limit_that_the_pace_reaches_says_what_is_left() {
        let after = |limits: serde_json::Value| left(&limits, 20, Duration::from_secs(100)).map(|left| left.as_secs());
        assert_eq!(after(json!({ "evaluations": 50 })), Some(150));
        assert_eq!(after(json!({ "evaluations": 50, "wall_clock_s": 160.0 })), Some(60));
        assert_eq!(after(json!({ "evaluations": 10, "wall_clock_s": 60.0 })), Some(0));
        assert_eq!(after(json!({ "samples": 900 })), None);
        assert_eq!(left(&json!({ "evaluations": 50 }), 0, Duration::ZERO), None);
    }

    #[test]
    fn a_budget_is_told_limit_by_limit() {
        let limits = json!({ "evaluations": 50, "samples": null, "wall_clock_s": 7200.0 });
        let text = describe_budget(&limits, Some(Duration::from_secs(60)));
        assert_eq!(text.as_deref(), Some("50 evaluations, 2 h 00 min of active time; about 1 min 00 s left"));
        assert_eq!(describe_budget(&json!({}), None), None);
    }
}
