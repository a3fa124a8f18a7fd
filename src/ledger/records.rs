//! Rows of the ledger as plain data.

use std::collections::BTreeMap;

use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Type, ValueRef};

use crate::scores::{MetricValue, Status, TaskScores};

/// An evaluation asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedRecord {
    /// Its number in the run, from 0.
    pub index: u64,
    /// The first 16 hex digits of `recipe_sha256`.
    pub candidate_id: String,
    /// The recipe's canonical hash, in hex.
    pub recipe_sha256: String,
    /// What an evaluator knows it by: candidate, samples, evaluator and replicate, hashed.
    pub evaluation_id: String,
    /// The recipe as TOML.
    pub recipe: String,
    /// What the strategy proposed.
    pub content: serde_json::Value,
    /// Gene names with decoded values, as `trials.csv` shows them.
    pub genes: Vec<(String, String)>,
    /// Who proposed it (docs/results.md).
    pub origin: String,
    /// Indices of the evaluations that it was bred from.
    pub parents: Vec<u64>,
    /// Of children of the genetic algorithm and NSGA-II, one more than their parents'; of CMA-ES, updates of its
    /// distribution; of others 0.
    pub generation: u32,
    /// Share of the samples asked for, in `(0, 1]`.
    pub fidelity: f64,
    /// Tells evaluations of one candidate on the same samples apart: 0 for the first.
    pub replicate: u32,
    /// Samples that it counts against the budget; 0 where the evaluator does not say.
    pub samples: u64,
    /// In UTC, RFC 3339.
    pub asked_at: String,
}

/// How an evaluation ended.
#[derive(Clone, Debug, PartialEq)]
pub struct ToldRecord {
    /// Its number in the run, as [`AskedRecord`] has it.
    pub index: u64,
    /// How it ended.
    pub status: Status,
    /// Higher is better; `None` unless scored.
    pub objective: Option<f64>,
    /// Scores by task.
    pub tasks: BTreeMap<String, TaskScores>,
    /// Samples that the scores rest on; 0 where the evaluator does not say.
    pub n_samples: u64,
    /// Seconds that the merge took.
    pub materialize_s: Option<f64>,
    /// Seconds that the scoring took.
    pub evaluate_s: Option<f64>,
    /// When its scoring began: in UTC, RFC 3339.
    pub started_at: Option<String>,
    /// In UTC, RFC 3339.
    pub finished_at: String,
    /// Times that an evaluator was asked; 0 where another run had the scores.
    pub attempts: u32,
    /// Why it has no score.
    pub error: Option<String>,
}

/// A hold-out evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct HoldoutRecord {
    /// What the evaluator knows it by.
    pub evaluation_id: String,
    /// The first 16 hex digits of the recipe's canonical hash.
    pub candidate_id: String,
    /// How it ended.
    pub status: Status,
    /// Scores by task.
    pub tasks: BTreeMap<String, TaskScores>,
    /// Why it has no score.
    pub error: Option<String>,
    /// In UTC, RFC 3339.
    pub finished_at: String,
}

/// What a candidate is scored again for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepeatPurpose {
    /// One of the best, before the verdict.
    Finalist,
    /// A baseline that the search gave up, through no fault of its own.
    Baseline,
    /// Whether the evaluator still gives the scores that it gave.
    Sentinel,
    /// Whether the evaluator still scores what it has scored.
    Witness,
}

impl RepeatPurpose {
    const ALL: [Self; 4] = [Self::Finalist, Self::Baseline, Self::Sentinel, Self::Witness];

    /// The word for it in the ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Finalist => "finalist",
            Self::Baseline => "baseline",
            Self::Sentinel => "sentinel",
            Self::Witness => "witness",
        }
    }
}

/// A candidate scored again on the samples that it was scored on before.
#[derive(Clone, Debug, PartialEq)]
pub struct RepeatRecord {
    /// What the evaluator knows it by.
    pub evaluation_id: String,
    /// The evaluation that it repeats.
    pub index: u64,
    /// The first 16 hex digits of the recipe's canonical hash.
    pub candidate_id: String,
    /// What it was made for.
    pub purpose: RepeatPurpose,
    /// Tells scorings of one candidate on the same samples apart. A baseline that was given up keeps the replicate of
    /// its first evaluation; others have higher ones, counted by candidate.
    pub replicate: u32,
    /// What the search had spent when it was made, in evaluations in full.
    pub after: u64,
    /// How it ended.
    pub status: Status,
    /// Higher is better; `None` unless scored.
    pub objective: Option<f64>,
    /// Scores by task.
    pub tasks: BTreeMap<String, TaskScores>,
    /// What it gave cause for; null: nothing.
    pub alarm: serde_json::Value,
    /// Why it has no score.
    pub error: Option<String>,
    /// In UTC, RFC 3339.
    pub finished_at: String,
}

/// What comes between the end of a search and its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictPhase {
    /// Baselines that the search gave up are asked for once more.
    Baselines,
    /// Finalists and best baseline are scored again.
    Finalists,
    /// The sentinel is scored for the last time.
    Sentinel,
    /// The hold-out is open.
    Holdout,
}

/// What a run went over to after its search: the payload of an event.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PhaseRecord {
    /// What it is.
    pub phase: VerdictPhase,
    /// The candidates that are scored in it, each once; those that have been before are among them.
    pub candidates: Vec<String>,
    /// Candidates that are scored after these, if it comes to that.
    #[serde(default)]
    pub rivals: Vec<String>,
}

/// What of an evaluator cannot be asked: a fact.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OutageRecord {
    /// Nobody else is left to ask.
    pub all: bool,
    /// The endpoints that cannot be asked.
    pub endpoints: Vec<WaitingRecord>,
}

/// An endpoint that cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WaitingRecord {
    /// As the run file names it.
    pub endpoint: String,
    /// In UTC, RFC 3339.
    pub since: String,
    /// What it last failed with.
    pub reason: String,
}

/// Anything else that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRecord {
    /// Rises from event to event.
    pub sequence: i64,
    /// In UTC, RFC 3339.
    pub at: String,
    /// One of [`super::event`].
    pub kind: String,
    /// The evaluation that it is about.
    pub index: Option<u64>,
    /// What there is to say of it; its shape follows from `kind`.
    pub payload: serde_json::Value,
}

/// By its name.
impl ToSql for Status {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

impl FromSql for Status {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        Self::of_name(name).ok_or_else(|| FromSqlError::Other(format!("unknown status {name:?}").into()))
    }
}

pub(super) fn asked_from_row(row: &Row<'_>) -> rusqlite::Result<AskedRecord> {
    Ok(AskedRecord {
        index: count(row, "index")?,
        candidate_id: row.get("candidate_id")?,
        recipe_sha256: row.get("recipe_sha256")?,
        evaluation_id: row.get("evaluation_id")?,
        recipe: row.get("recipe")?,
        content: json(row, "content")?,
        genes: json(row, "genes")?,
        origin: row.get("origin")?,
        parents: json(row, "parents")?,
        generation: row.get("generation")?,
        fidelity: row.get("fidelity")?,
        replicate: row.get("replicate")?,
        samples: count(row, "samples")?,
        asked_at: row.get("asked_at")?,
    })
}

/// A task's scores without those by sample, which the parser passes over.
#[derive(serde::Deserialize)]
struct MetricsOnly {
    n: u64,
    n_truncated: Option<u64>,
    metrics: BTreeMap<String, MetricValue>,
}

impl From<MetricsOnly> for TaskScores {
    fn from(scores: MetricsOnly) -> Self {
        let MetricsOnly { n, n_truncated, metrics } = scores;
        Self { n, n_truncated, metrics, per_sample: None }
    }
}

pub(super) fn told_from_row(row: &Row<'_>) -> rusqlite::Result<ToldRecord> {
    told(row, json(row, "tasks")?)
}

/// An outcome whose tasks have no scores by sample.
pub(super) fn told_without_samples(row: &Row<'_>) -> rusqlite::Result<ToldRecord> {
    let tasks: BTreeMap<String, MetricsOnly> = json(row, "tasks")?;
    told(row, tasks.into_iter().map(|(task, scores)| (task, scores.into())).collect())
}

/// An outcome without its scores, which need not be among the row's columns.
pub(super) fn told_in_short(row: &Row<'_>) -> rusqlite::Result<ToldRecord> {
    told(row, BTreeMap::new())
}

fn told(row: &Row<'_>, tasks: BTreeMap<String, TaskScores>) -> rusqlite::Result<ToldRecord> {
    Ok(ToldRecord {
        index: count(row, "index")?,
        status: row.get("status")?,
        objective: row.get("objective")?,
        tasks,
        n_samples: count(row, "n_samples")?,
        materialize_s: row.get("materialize_s")?,
        evaluate_s: row.get("evaluate_s")?,
        started_at: row.get("started_at")?,
        finished_at: row.get("finished_at")?,
        attempts: row.get("attempts")?,
        error: row.get("error")?,
    })
}

pub(super) fn holdout_from_row(row: &Row<'_>) -> rusqlite::Result<HoldoutRecord> {
    Ok(HoldoutRecord {
        evaluation_id: row.get("evaluation_id")?,
        candidate_id: row.get("candidate_id")?,
        status: row.get("status")?,
        tasks: json(row, "tasks")?,
        error: row.get("error")?,
        finished_at: row.get("finished_at")?,
    })
}

pub(super) fn repeat_from_row(row: &Row<'_>) -> rusqlite::Result<RepeatRecord> {
    Ok(RepeatRecord {
        evaluation_id: row.get("evaluation_id")?,
        index: count(row, "index")?,
        candidate_id: row.get("candidate_id")?,
        purpose: purpose(row)?,
        replicate: row.get("replicate")?,
        after: count(row, "after")?,
        status: row.get("status")?,
        objective: row.get("objective")?,
        tasks: json(row, "tasks")?,
        alarm: json(row, "alarm")?,
        error: row.get("error")?,
        finished_at: row.get("finished_at")?,
    })
}

pub(super) fn event_from_row(row: &Row<'_>) -> rusqlite::Result<EventRecord> {
    Ok(EventRecord {
        sequence: row.get("seq")?,
        at: row.get("at")?,
        kind: row.get("kind")?,
        index: row.get::<_, Option<i64>>("index")?.and_then(|value| u64::try_from(value).ok()),
        payload: json(row, "payload")?,
    })
}

fn purpose(row: &Row<'_>) -> rusqlite::Result<RepeatPurpose> {
    let name: String = row.get("purpose")?;
    RepeatPurpose::ALL.into_iter().find(|purpose| purpose.name() == name).ok_or_else(|| {
        let reason = format!("unknown purpose {name:?}");
        rusqlite::Error::FromSqlConversionFailure(0, Type::Text, reason.into())
    })
}

fn count(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Integer, Box::new(error)))
}

fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_it_was_written_and_none_other() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let read = |status: &dyn ToSql| {
            connection.query_row("SELECT ?1 AS status", [status], |row| row.get::<_, Status>("status"))
        };
        for status in [Status::Scored, Status::Infeasible, Status::Failed] {
            assert_eq!(read(&status).unwrap(), status);
        }
        let error = read(&"pleased").unwrap_err();
        assert!(matches!(error, rusqlite::Error::FromSqlConversionFailure(..)), "{error}");
        assert!(error.to_string().contains("pleased"), "{error}");
    }
}
