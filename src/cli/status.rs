//! `evomerge status`: reads the ledger beside a search that may be running.

mod holder;
mod phase;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use holder::Holder;
use phase::Phase;
use serde_json::{Value, json};

use super::arguments;
use super::error::CliError;
use super::output::Output;
use super::quantities::human;
use crate::config::BudgetConfig;
use crate::evaluate::{Fault, FaultClass};
use crate::exit::ExitCode;
use crate::ledger::{
    AskedRecord, Ledger, OutageRecord, RepeatPurpose, RepeatRecord, ToldRecord, WaitingRecord, event, fact,
};
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
    /// What it is at; `None`: it is not running.
    phase: Option<Phase>,
    /// Which endpoints it waits for, and whether it can ask nobody else.
    outage: OutageRecord,
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
    /// Samples that all evaluations were asked for: what counts against the budget.
    samples_used: u64,
    scored: usize,
    infeasible: usize,
    failed: usize,
}

/// A candidate and its scores.
struct Scored {
    candidate_id: String,
    index: u64,
    origin: String,
    objective: Option<f64>,
    /// The second one, where it was scored again as a finalist.
    rescored: Option<f64>,
}

impl Scored {
    fn new(record: &AskedRecord, objective: Option<f64>, rescored: &BTreeMap<String, f64>) -> Self {
        let (candidate_id, origin) = (record.candidate_id.clone(), record.origin.clone());
        let rescored = rescored.get(&candidate_id).copied();
        Self { candidate_id, index: record.index, origin, objective, rescored }
    }

    /// Its scores for people: the winner is the best by both, and not always by the first.
    fn scores(&self) -> String {
        let again = self.rescored.map(|again| format!(", {} when scored again", shown(again)));
        shown(self.objective.unwrap_or(f64::NAN)) + &again.unwrap_or_default()
    }

    fn json(&self) -> Value {
        json!({
            "candidate_id": self.candidate_id, "index": self.index, "origin": self.origin, "objective": self.objective,
            "rescored": self.rescored,
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
        let holder = Holder::of(results);
        let begun = ledger.events(event::STARTED)?.pop();
        // A start that came after it was killed.
        let stopped = ledger.events(event::STOPPED)?.pop();
        let stopped = stopped.filter(|event| begun.as_ref().is_none_or(|begun| event.sequence > begun.sequence));
        // A start that has not recorded itself yet says nothing of itself; what is there is of an earlier one.
        let own = begun.as_ref().filter(|begun| holder.as_ref().is_some_and(|holder| holder.has_recorded(begun)));
        // Who has recorded its end is only about to leave.
        let running = holder.is_some() && (own.is_none() || stopped.is_none());
        let start = own.filter(|_| running).map(|event| event.sequence);
        let phase = match start {
            Some(start) => Some(Phase::of(&ledger, start)?),
            None => running.then_some(Phase::Search),
        };
        let outage: OutageRecord = match start {
            // Ledgers of earlier versions do not tell.
            Some(_) => serde_json::from_str(&fact(fact::WAITING)?).unwrap_or_default(),
            None => OutageRecord::default(),
        };
        let attempts = ledger.events(event::ATTEMPTED)?;
        let repeats = ledger.all_repeats()?;
        let rescored = second_scores(&repeats);
        let active = ledger.active_time()?;
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
                record.zip(outcome).map(|(record, outcome)| Scored::new(record, outcome.objective, &rescored))
            }
            None => best_baseline(&ledger)?.map(|(record, outcome)| Scored::new(&record, outcome.objective, &rescored)),
        };
        Ok(Self {
            name: fact(fact::RUN_NAME)?,
            running,
            state: describe_state(phase, stopped.as_ref().map(|event| &event.payload)),
            phase,
            outage,
            counts: Counts::of(&asked, &told),
            active: active.unwrap_or_default(),
            limits: begun.map(|event| event.payload["budget"].clone()).unwrap_or_default(),
            best: best_record(&ledger)?.map(|(record, outcome)| Scored::new(&record, outcome.objective, &rescored)),
            baseline,
            failed_attempts: attempts.iter().filter(|event| is_failure(&event.payload["attempt"])).count(),
            attempts: attempts.len(),
            scored_again: repeats.len(),
            alarms,
            verdict,
            verdict_is_old,
        })
    }

    /// The time that the search takes yet; `None`: it is over, waits for who knows how long, or nothing says.
    fn left(&self) -> Option<Duration> {
        if self.outage.all || matches!(self.phase, Some(Phase::Verdict { .. })) {
            return None;
        }
        let Counts { finished, samples, .. } = self.counts;
        let pace = Pace { evaluations: finished as u64, samples, active: self.active };
        pace.time_left(&recorded_limits(&self.limits))
    }

    fn text(&self) -> String {
        let Counts { asked, finished, infeasible, failed, samples_used, .. } = self.counts;
        let open = asked.saturating_sub(finished);
        let mut lines = vec![
            format!("{}: {}", self.name, self.state),
            format!(
                "evaluations  {finished} finished ({infeasible} infeasible, {failed} failed), {open} asked for and open"
            ),
        ];
        lines.extend(self.outage.endpoints.iter().map(|waiting| format!("outage       {}", describe_waiting(waiting))));
        let left = self.left().filter(|_| self.running);
        let budget = describe_budget(&recorded_limits(&self.limits), samples_used, left);
        lines.extend(budget.map(|budget| format!("budget       {budget}")));
        lines.push(format!("active       {}", human(self.active)));
        if let Some(best) = &self.best {
            let Scored { candidate_id, index, origin, .. } = best;
            lines.push(format!("best         {}  {candidate_id} ({origin}, evaluation {index})", best.scores()));
        }
        if let Some(baseline) = self.baseline.as_ref().filter(|baseline| baseline.objective.is_some()) {
            let Scored { candidate_id, origin, .. } = baseline;
            lines.push(format!("baseline     {}  {candidate_id} ({origin})", baseline.scores()));
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
        let (done, total) = self.phase.and_then(Phase::counts).unzip();
        json!({
            "name": self.name,
            "running": self.running,
            "state": self.state,
            "phase": self.phase.map(Phase::name),
            "phase_done": done,
            "phase_total": total,
            "waiting": self.outage.endpoints,
            "asked": self.counts.asked,
            "finished": self.counts.finished,
            "scored": self.counts.scored,
            "infeasible": self.counts.infeasible,
            "failed": self.counts.failed,
            "active_s": self.active.as_secs_f64(),
            "budget": self.limits,
            "samples_used": self.counts.samples_used,
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

impl Counts {
    fn of(asked: &[AskedRecord], told: &BTreeMap<u64, ToldRecord>) -> Self {
        let count = |status: Status| told.values().filter(|record| record.status == status).count();
        let finished = asked.iter().filter(|record| told.contains_key(&record.index));
        Self {
            asked: asked.len(),
            finished: told.len(),
            samples: finished.map(|record| record.samples).fold(0, u64::saturating_add),
            samples_used: asked.iter().map(|record| record.samples).fold(0, u64::saturating_add),
            scored: count(Status::Scored),
            infeasible: count(Status::Infeasible),
            failed: count(Status::Failed),
        }
    }
}

/// The objectives of finalists that were scored again, by candidate.
fn second_scores(repeats: &[RepeatRecord]) -> BTreeMap<String, f64> {
    let of_finalists = repeats.iter().filter(|repeat| repeat.purpose == RepeatPurpose::Finalist);
    of_finalists.filter_map(|repeat| Some((repeat.candidate_id.clone(), repeat.objective?))).collect()
}

/// `stopped` is what the latest start left behind, unless it was killed.
fn describe_state(phase: Option<Phase>, stopped: Option<&Value>) -> String {
    if let Some(phase) = phase {
        return phase.state();
    }
    match stopped {
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

fn describe_waiting(waiting: &WaitingRecord) -> String {
    let WaitingRecord { endpoint, since, reason } = waiting;
    // Hours and minutes; whatever is written otherwise is shown as it is.
    let since = since.get(11..16).map_or_else(|| since.clone(), |time| format!("{time} UTC"));
    format!("waiting for {endpoint} since {since} ({reason})")
}

fn describe_budget(limits: &BudgetConfig, samples_used: u64, left: Option<Duration>) -> Option<String> {
    let mut parts = Vec::new();
    parts.extend(limits.evaluations.map(|limit| format!("{limit} evaluations")));
    parts.extend(limits.samples.map(|limit| format!("{samples_used} of {limit} samples")));
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
        let text = describe_budget(&limits, 700, Some(Duration::from_secs(60)));
        assert_eq!(text.as_deref(), Some("50 evaluations, 2 h 00 min of active time; about 1 min 00 s left"));
        assert_eq!(describe_budget(&BudgetConfig::default(), 700, None), None);
        let limits = recorded_limits(&json!({ "samples": 20000 }));
        assert_eq!(describe_budget(&limits, 700, None).as_deref(), Some("700 of 20000 samples"));
    }

    #[test]
    fn an_endpoint_that_is_waited_for_is_told_with_the_time() {
        let waiting = |since: &str| WaitingRecord {
            endpoint: "http://h:1".into(),
            since: since.into(),
            reason: "connection refused".into(),
        };
        let text = |since| describe_waiting(&waiting(since));
        let expected = "waiting for http://h:1 since 14:05 UTC (connection refused)";
        assert_eq!(text("2026-05-01T14:05:09.250Z"), expected);
        assert_eq!(text("noon"), "waiting for http://h:1 since noon (connection refused)");
    }
}
