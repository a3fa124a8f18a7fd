//! `evomerge status`: reads the ledger beside a search that may be running.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::arguments;
use super::error::CliError;
use super::output::Output;
use super::quantities::human;
use crate::config::BudgetConfig;
use crate::evaluate::{Fault, FaultClass};
use crate::exit::ExitCode;
use crate::ledger::{AskedRecord, Ledger, event, fact};
use crate::score::alarms::Alarm;
use crate::score::shown;
use crate::scores::Status;
use crate::search::{
    LatestOutcomes, Pace, RunFolder, VerdictDocument, best_baseline, best_record, read_verdict, recorded_limits,
    repeats_alarm,
};

pub(super) fn run(arguments: &arguments::Status, output: Output) -> Result<ExitCode, CliError> {
    let summary = Summary::read(&arguments.results)?;
    output.result(&summary.text(), &summary.json())?;
    Ok(ExitCode::Done)
}

/// What a run's folder says of the run.
struct Summary {
    name: String,
    running: bool,
    /// In words: running, finished, stopped or killed.
    state: String,
    counts: Counts,
    active: Duration,
    /// The run file's `[budget]` at the latest start.
    limits: Value,
    best: Option<Scored>,
    baseline: Option<Scored>,
    attempts: usize,
    /// Through no fault of the candidate.
    failed_attempts: usize,
    scored_again: usize,
    alarms: Vec<Alarm>,
    verdict: Option<VerdictDocument>,
    /// Whether the search went on after the verdict.
    verdict_is_old: bool,
}

/// Numbers of evaluations.
struct Counts {
    asked: usize,
    finished: usize,
    /// Samples that the finished evaluations were asked for.
    samples: u64,
    scored: usize,
    infeasible: usize,
    failed: usize,
}

/// A candidate and its score.
struct Scored {
    candidate_id: String,
    index: u64,
    origin: String,
    objective: Option<f64>,
}

impl Scored {
    fn new(record: &AskedRecord, objective: Option<f64>) -> Self {
        let (candidate_id, origin) = (record.candidate_id.clone(), record.origin.clone());
        Self { candidate_id, index: record.index, origin, objective }
    }

    fn json(&self) -> Value {
        json!({
            "candidate_id": self.candidate_id, "index": self.index, "origin": self.origin, "objective": self.objective,
        })
    }
}

impl Summary {
    fn read(results: &Path) -> Result<Self, CliError> {
        let ledger = Ledger::open_for_reading(&RunFolder::ledger_in(results))?;
        let fact = |key: &str| ledger.fact(key).map(Option::unwrap_or_default);
        // In this order: a search that is running asks before it is told.
        let told = ledger.all_told_in_short()?;
        let asked = ledger.all_asked()?;
        let count = |status: Status| told.values().filter(|record| record.status == status).count();
        let counts = Counts {
            asked: asked.len(),
            finished: told.len(),
            samples: asked.iter().filter(|record| told.contains_key(&record.index)).map(|record| record.samples).sum(),
            scored: count(Status::Scored),
            infeasible: count(Status::Infeasible),
            failed: count(Status::Failed),
        };
        let running = RunFolder::is_locked(results);
        let begun = ledger.events(event::STARTED)?.pop();
        // A start that came after it was killed.
        let stopped = ledger.events(event::STOPPED)?.pop();
        let stopped = stopped.filter(|event| begun.as_ref().is_none_or(|begun| event.sequence > begun.sequence));
        let attempts = ledger.events(event::ATTEMPTED)?;
        let active =
            fact(fact::ACTIVE_SECONDS)?.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let verdict = read_verdict(results);
        let verdict_is_old = verdict.as_ref().is_some_and(|document| match document.evaluations {
            Some(evaluations) => evaluations != told.len() as u64,
            // A verdict of an earlier version: what goes on, or was killed, may have gone on after it.
            None => stopped.is_none() || running,
        });
        // While a search goes on, the alarms of its verdict are still to come.
        let alarms = match verdict.as_ref().and_then(|document| document.alarms.clone()) {
            Some(alarms) if !verdict_is_old => alarms,
            _ => repeats_alarm(&ledger)?.into_iter().collect(),
        };
        let of_verdict = verdict.as_ref().filter(|_| !verdict_is_old);
        let baseline = match of_verdict.and_then(|document| document.verdict.baseline.as_ref()) {
            Some(baseline) => {
                let outcome = LatestOutcomes::of(&ledger)?.outcome(baseline.index)?;
                let record = asked.iter().find(|record| record.index == baseline.index);
                record.zip(outcome).map(|(record, outcome)| Scored::new(record, outcome.objective))
            }
            None => best_baseline(&ledger)?.map(|(record, outcome)| Scored::new(&record, outcome.objective)),
        };
        Ok(Self {
            name: fact(fact::RUN_NAME)?,
            running,
            state: describe_state(running, stopped.as_ref().map(|event| &event.payload)),
            counts,
            active: active.unwrap_or_default(),
            limits: begun.map(|event| event.payload["budget"].clone()).unwrap_or_default(),
            best: best_record(&ledger)?.map(|(record, outcome)| Scored::new(&record, outcome.objective)),
            baseline,
            failed_attempts: attempts.iter().filter(|event| is_failure(&event.payload["attempt"])).count(),
            attempts: attempts.len(),
            scored_again: ledger.all_repeats()?.len(),
            alarms,
            verdict,
            verdict_is_old,
        })
    }

    fn left(&self) -> Option<Duration> {
        let Counts { finished, samples, .. } = self.counts;
        let pace = Pace { evaluations: finished as u64, samples, active: self.active };
        pace.time_left(&recorded_limits(&self.limits))
    }

    fn text(&self) -> String {
        let Counts { asked, finished, infeasible, failed, .. } = self.counts;
        let open = asked.saturating_sub(finished);
        let mut lines = vec![
            format!("{}: {}", self.name, self.state),
            format!(
                "evaluations  {finished} finished ({infeasible} infeasible, {failed} failed), {open} asked for and open"
            ),
        ];
        let budget = describe_budget(&recorded_limits(&self.limits), self.left().filter(|_| self.running));
        lines.extend(budget.map(|budget| format!("budget       {budget}")));
        lines.push(format!("active       {}", human(self.active)));
        if let Some(Scored { candidate_id, index, origin, objective }) = &self.best {
            let objective = shown(objective.unwrap_or(f64::NAN));
            lines.push(format!("best         {objective}  {candidate_id} ({origin}, evaluation {index})"));
        }
        if let Some(Scored { candidate_id, origin, objective: Some(objective), .. }) = &self.baseline {
            lines.push(format!("baseline     {}  {candidate_id} ({origin})", shown(*objective)));
        }
        lines.push(format!("attempts     {} ({} failed)", self.attempts, self.failed_attempts));
        if let Some(document) = &self.verdict {
            let age = if self.verdict_is_old { "(from before the search went on) " } else { "" };
            lines.push(format!("verdict      {age}{}", document.verdict.sentence));
        }
        if self.scored_again > 0 {
            lines.push(format!("again        {} scored again", self.scored_again));
        }
        lines.extend(self.alarms.iter().map(|alarm| format!("warning      {}", alarm.message)));
        lines.join("\n") + "\n"
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "running": self.running,
            "state": self.state,
            "asked": self.counts.asked,
            "finished": self.counts.finished,
            "scored": self.counts.scored,
            "infeasible": self.counts.infeasible,
            "failed": self.counts.failed,
            "active_s": self.active.as_secs_f64(),
            "budget": self.limits,
            "left_s": self.left().map(|left| left.as_secs_f64()),
            "best": self.best.as_ref().map(Scored::json),
            "best_baseline": self.baseline.as_ref().map(Scored::json),
            "attempts": self.attempts,
            "failed_attempts": self.failed_attempts,
            "scored_again": self.scored_again,
            "alarms": self.alarms,
            "verdict": self.verdict.as_ref().map(|document| &document.json),
            "verdict_is_old": self.verdict_is_old,
        })
    }
}

/// `stopped` is what the latest start left behind, unless it was killed.
fn describe_state(running: bool, stopped: Option<&Value>) -> String {
    match stopped {
        _ if running => "running".to_owned(),
        Some(stopped) => match stopped.get("reason") {
            Some(reason) => format!("finished: {}", reason.as_str().unwrap_or_default()),
            None => format!("stopped: {}", stopped["error"].as_str().unwrap_or_default()),
        },
        None => "killed; the same command continues it".to_owned(),
    }
}

/// Whether an attempt told nothing of its candidate: that the candidate is at fault is an answer.
fn is_failure(attempt: &Value) -> bool {
    let fault = serde_json::from_value::<Option<Fault>>(attempt["fault"].clone()).ok().flatten();
    fault.is_some_and(|fault| fault.class != FaultClass::Candidate)
}

fn describe_budget(limits: &BudgetConfig, left: Option<Duration>) -> Option<String> {
    let mut parts = Vec::new();
    parts.extend(limits.evaluations.map(|limit| format!("{limit} evaluations")));
    parts.extend(limits.samples.map(|limit| format!("{limit} samples")));
    parts.extend(limits.wall_clock.map(|limit| format!("{} of active time", human(limit))));
    if parts.is_empty() {
        return None;
    }
    let left = left.map(|left| format!("; about {} left", human(left))).unwrap_or_default();
    Some(parts.join(", ") + &left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_told_limit_by_limit() {
        let limits = recorded_limits(&json!({ "evaluations": 50, "samples": null, "wall_clock_s": 7200.0 }));
        let text = describe_budget(&limits, Some(Duration::from_secs(60)));
        assert_eq!(text.as_deref(), Some("50 evaluations, 2 h 00 min of active time; about 1 min 00 s left"));
        assert_eq!(describe_budget(&BudgetConfig::default(), None), None);
    }
}
