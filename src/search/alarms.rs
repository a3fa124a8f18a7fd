//! Looks for alarms in what a run recorded.

use super::SearchError;
use super::candidate::is_baseline;
use super::outcomes::LatestOutcomes;
use super::prepare::Prepared;
use super::report::Row;
use crate::ledger::{Ledger, ToldRecord};
use crate::score::alarms::{
    Alarm, baselines_unreached, baselines_unscored, benchmark_test_sets, flat_fitness, nothing_scored,
    truncation_asymmetry,
};
use crate::scores::Status;

/// Alarms that are there before anything is evaluated.
pub(super) fn before(prepared: &Prepared) -> Vec<Alarm> {
    benchmark_test_sets(prepared.objective.tasks.iter().map(|task| task.name.as_str()))
}

/// What a finished search came to.
pub(super) struct Ended<'a> {
    /// Objectives at full fidelity, one for each candidate that has a score.
    pub objectives: &'a [f64],
    /// Origins of the baselines that the run ended before.
    pub unreached_baselines: Vec<String>,
    pub best: Option<&'a Row>,
    pub baseline: Option<&'a Row>,
}

/// Alarms of a finished search.
pub(super) fn after(prepared: &Prepared, ledger: &Ledger, ended: &Ended<'_>) -> Result<Vec<Alarm>, SearchError> {
    let mut alarms = before(prepared);
    alarms.extend(flat_fitness(ended.objectives));
    alarms.extend(failures(ledger)?);
    alarms.extend(baselines(ledger, prepared.baselines)?);
    alarms.extend(baselines_unreached(&ended.unreached_baselines));
    alarms.extend(super::repeats::alarm(ledger)?);
    let (Some(best), Some(baseline)) = (ended.best, ended.baseline) else { return Ok(alarms) };
    if best.candidate_id == baseline.candidate_id {
        return Ok(alarms);
    }
    let latest = LatestOutcomes::of(ledger)?;
    if let (Some(winner), Some(other)) = (latest.outcome(best.index)?, latest.outcome(baseline.index)?) {
        alarms.extend(truncation_asymmetry("search", &winner.tasks, &other.tasks));
    }
    let recorded = ledger.all_holdout()?;
    let held_out = |row: &Row| {
        let mut scored = recorded.values().filter(|record| record.status == Status::Scored);
        scored.find(|record| record.candidate_id == row.candidate_id)
    };
    if let (Some(winner), Some(other)) = (held_out(best), held_out(baseline)) {
        alarms.extend(truncation_asymmetry("hold-out", &winner.tasks, &other.tasks));
    }
    Ok(alarms)
}

fn failures(ledger: &Ledger) -> Result<Option<Alarm>, SearchError> {
    let told = ledger.all_told_in_short()?;
    let mut own: Vec<&ToldRecord> = Vec::new();
    for asked in ledger.all_asked()? {
        if !is_baseline(&asked)? {
            own.extend(told.get(&asked.index));
        }
    }
    let scored = own.iter().filter(|record| record.status == Status::Scored).count();
    let reason = own.last().and_then(|record| record.error.as_deref()).unwrap_or_default();
    Ok(nothing_scored(own.len(), scored, reason))
}

/// Base, sources and uniform soup are the first `count` evaluations.
fn baselines(ledger: &Ledger, count: u64) -> Result<Option<Alarm>, SearchError> {
    let told = LatestOutcomes::of(ledger)?.in_short()?;
    let (mut names, mut unscored) = (Vec::new(), Vec::new());
    for asked in ledger.all_asked()?.into_iter().filter(|asked| asked.index < count) {
        let Some(record) = told.get(&asked.index).filter(|record| record.objective.is_none()) else { continue };
        if is_baseline(&asked)? {
            names.push(asked.origin);
            unscored.push(record);
        }
    }
    let reason = unscored.first().and_then(|record| record.error.as_deref()).unwrap_or_default();
    Ok(baselines_unscored(&names, reason))
}
