//! The durable record of a run, in SQLite: every asked, materialized, attempted and told event is committed and synced
//! before anything depends on it. The ledger does not know what its records mean; replaying them is the driver's work.

mod error;
mod names;
mod records;
mod schema;
#[cfg(test)]
mod tests;
mod trials;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Params, Row, params};

use crate::lock::lock;
use crate::scores::TaskScores;
use error::classify;

pub use error::LedgerError;
pub use names::{event, fact};
pub use records::{
    AskedRecord, EventRecord, HoldoutRecord, OutageRecord, PhaseRecord, RepeatPurpose, RepeatRecord, ToldRecord,
    VerdictPhase, WaitingRecord,
};
pub use trials::write_trials;

/// An open ledger. Cheap to share; calls are serialized.
pub struct Ledger {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl Ledger {
    /// Opens the ledger of a run for writing, creating it when there is none.
    ///
    /// # Errors
    /// [`LedgerError::Format`] or [`LedgerError::Corrupt`] for a file that this version does not read,
    /// [`LedgerError::NotWritable`], [`LedgerError::Locked`].
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        if path.is_dir() {
            let reason = "it is a folder".to_owned();
            return Err(LedgerError::Corrupt { path: path.to_owned(), what: "the file".into(), reason });
        }
        let connection = Connection::open(plain(path)).map_err(|source| classify(path, source))?;
        let ledger = Self { connection: Mutex::new(connection), path: path.to_path_buf() };
        schema::prepare(&ledger.lock(), path)?;
        Ok(ledger)
    }

    /// Whether nothing is recorded at `path`: there is no file, or one without a run. What lay in its log alone
    /// (`ledger.sqlite-wal`) is gone when that is.
    pub fn is_blank(path: &Path) -> bool {
        if std::fs::metadata(path).map_or(0, |metadata| metadata.len()) == 0 {
            return true;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        // Whoever opens it for writing says what is wrong with it.
        let connection = Connection::open_with_flags(plain(path), flags);
        connection.and_then(|connection| schema::has_no_run(&connection)).unwrap_or(false)
    }

    /// Opens the ledger for reading, beside a search that may be writing it.
    ///
    /// # Errors
    /// [`LedgerError::Missing`], [`LedgerError::Unstarted`], [`LedgerError::Format`], [`LedgerError::Corrupt`],
    /// [`LedgerError::Locked`].
    pub fn open_for_reading(path: &Path) -> Result<Self, LedgerError> {
        if !path.is_file() {
            return Err(LedgerError::Missing { path: path.to_path_buf() });
        }
        match open_read_only(path, &plain(path), OpenFlags::empty()) {
            // Readers of a log in memory write to the folder. Where they may not and nobody has the file open, it can
            // be read as it is.
            Err(LedgerError::NotWritable { .. }) if !log_of(path).exists() => {
                open_read_only(path, &immutable_uri(path), OpenFlags::SQLITE_OPEN_URI)
            }
            opened => opened,
        }
    }

    /// Opens for reading the ledger of a run that nobody searches, and leaves nothing beside it. Where it has a log,
    /// this is [`Self::open_for_reading`].
    ///
    /// # Errors
    /// As [`Self::open_for_reading`].
    pub fn open_at_rest(path: &Path) -> Result<Self, LedgerError> {
        if !path.is_file() || log_of(path).exists() {
            return Self::open_for_reading(path);
        }
        open_read_only(path, &immutable_uri(path), OpenFlags::SQLITE_OPEN_URI)
    }

    /// The database's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A fact of the run, by key.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] where a record cannot be read, [`LedgerError::Locked`].
    pub fn fact(&self, key: &str) -> Result<Option<String>, LedgerError> {
        self.lock()
            .query_row("SELECT value FROM facts WHERE key = ?1", [key], |row| row.get(0))
            .optional()
            .map_err(|source| self.fault(source))
    }

    /// The time that the run has been active, over all its starts; `None`: nothing tells.
    ///
    /// # Errors
    /// As [`Self::fact`].
    pub fn active_time(&self) -> Result<Option<Duration>, LedgerError> {
        let seconds = self.fact(fact::ACTIVE_SECONDS)?.and_then(|text| text.parse().ok());
        Ok(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))
    }

    /// Sets a fact of the run, durably.
    ///
    /// # Errors
    /// [`LedgerError::NotWritable`] or [`LedgerError::Locked`]; nothing of it is recorded then.
    pub fn set_fact(&self, key: &str, value: &str) -> Result<(), LedgerError> {
        self.set_facts(&[(key, value)])
    }

    /// Sets facts of the run, all or none.
    ///
    /// # Errors
    /// [`LedgerError::NotWritable`] or [`LedgerError::Locked`]; nothing of it is recorded then.
    pub fn set_facts(&self, facts: &[(&str, &str)]) -> Result<(), LedgerError> {
        let mut connection = self.lock();
        let mut write = || -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            for (key, value) in facts {
                upsert_fact(&transaction, key, value)?;
            }
            transaction.commit()
        };
        write().map_err(|source| self.fault(source))
    }

    /// Records that an evaluation was asked for.
    ///
    /// # Errors
    /// [`LedgerError::NotWritable`] or [`LedgerError::Locked`]; nothing of it is recorded then.
    pub fn asked(&self, record: &AskedRecord) -> Result<(), LedgerError> {
        self.lock()
            .execute(
                "INSERT INTO asked (\"index\", candidate_id, recipe_sha256, evaluation_id, recipe, content, genes, origin, \
                 parents, generation, fidelity, replicate, samples, asked_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
                params![
                    to_sql(record.index),
                    record.candidate_id,
                    record.recipe_sha256,
                    record.evaluation_id,
                    record.recipe,
                    record.content.to_string(),
                    serde_json::to_string(&record.genes).unwrap_or_default(),
                    record.origin,
                    serde_json::to_string(&record.parents).unwrap_or_default(),
                    record.generation,
                    record.fidelity,
                    record.replicate,
                    to_sql(record.samples),
                    record.asked_at,
                ],
            )
            .map(|_| ())
            .map_err(|source| self.fault(source))
    }

    /// Records how an evaluation ended, together with facts of the run that change with it: all or nothing.
    ///
    /// # Errors
    /// [`LedgerError::NotWritable`] or [`LedgerError::Locked`]; nothing of it is recorded then.
    pub fn told(&self, record: &ToldRecord, facts: &[(&str, &str)]) -> Result<(), LedgerError> {
        let mut connection = self.lock();
        let mut write = || -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            insert_told(&transaction, record)?;
            for (key, value) in facts {
                upsert_fact(&transaction, key, value)?;
            }
            transaction.commit()
        };
        write().map_err(|source| self.fault(source))
    }

    /// Records an event: `materialized`, `attempted`, `started`, `stopped`, ...
    ///
    /// # Errors
    /// [`LedgerError::NotWritable`] or [`LedgerError::Locked`]; nothing of it is recorded then.
    pub fn event(&self, kind: &str, index: Option<u64>, payload: &serde_json::Value) -> Result<(), LedgerError> {
        self.lock()
            .execute(
                "INSERT INTO events (at, kind, \"index\", payload) VALUES (?1, ?2, ?3, ?4)",
                params![now(), kind, index.map(to_sql), payload.to_string()],
            )
            .map(|_| ())
            .map_err(|source| self.fault(source))
    }

    /// Records a hold-out evaluation; one that is there already stays as it is.
    ///
    /// # Errors
    /// [`LedgerError::NotWritable`] or [`LedgerError::Locked`]; nothing of it is recorded then.
    pub fn holdout(&self, record: &HoldoutRecord) -> Result<(), LedgerError> {
        self.lock()
            .execute(
                "INSERT INTO holdout (evaluation_id, candidate_id, status, tasks, error, finished_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (evaluation_id) DO NOTHING",
                params![
                    record.evaluation_id,
                    record.candidate_id,
                    record.status,
                    scores_json(&record.tasks),
                    record.error,
                    record.finished_at,
                ],
            )
            .map(|_| ())
            .map_err(|source| self.fault(source))
    }

    /// Records that a candidate was scored again; what is there already stays as it is.
    ///
    /// # Errors
    /// [`LedgerError::NotWritable`] or [`LedgerError::Locked`]; nothing of it is recorded then.
    pub fn repeat(&self, record: &RepeatRecord) -> Result<(), LedgerError> {
        self.lock()
            .execute(
                "INSERT INTO repeats (evaluation_id, \"index\", candidate_id, purpose, replicate, after, status, objective, \
                 tasks, alarm, error, finished_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) \
                 ON CONFLICT (evaluation_id) DO NOTHING",
                params![
                    record.evaluation_id,
                    to_sql(record.index),
                    record.candidate_id,
                    record.purpose.name(),
                    record.replicate,
                    to_sql(record.after),
                    record.status,
                    record.objective,
                    scores_json(&record.tasks),
                    record.alarm.to_string(),
                    record.error,
                    record.finished_at,
                ],
            )
            .map(|_| ())
            .map_err(|source| self.fault(source))
    }

    /// All candidates scored again, oldest first. None in the ledger of a version that did not do this.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] where a record cannot be read, [`LedgerError::Locked`].
    pub fn all_repeats(&self) -> Result<Vec<RepeatRecord>, LedgerError> {
        self.repeats("SELECT * FROM repeats ORDER BY rowid", [])
    }

    /// The candidates scored again for one purpose, oldest first. None in the ledger of a version that did not do this.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] where a record cannot be read, [`LedgerError::Locked`].
    pub fn repeats_for(&self, purpose: RepeatPurpose) -> Result<Vec<RepeatRecord>, LedgerError> {
        self.repeats("SELECT * FROM repeats WHERE purpose = ?1 ORDER BY rowid", [purpose.name()])
    }

    fn repeats(&self, query: &str, parameters: impl Params) -> Result<Vec<RepeatRecord>, LedgerError> {
        let known = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'repeats'";
        let tables: i64 = self.lock().query_row(known, [], |row| row.get(0)).map_err(|source| self.fault(source))?;
        if tables == 0 {
            return Ok(Vec::new());
        }
        self.rows(query, parameters, "a repeated evaluation", records::repeat_from_row)
    }

    /// All evaluations asked for, by index.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] where a record cannot be read, [`LedgerError::Locked`].
    pub fn all_asked(&self) -> Result<Vec<AskedRecord>, LedgerError> {
        self.rows("SELECT * FROM asked ORDER BY \"index\"", [], "an asked evaluation", records::asked_from_row)
    }

    /// What was asked for as the evaluation of that index.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] where there is none or its record cannot be read, [`LedgerError::Locked`].
    pub fn asked_at(&self, index: u64) -> Result<AskedRecord, LedgerError> {
        let query = "SELECT * FROM asked WHERE \"index\" = ?1";
        let found = self.rows(query, [to_sql(index)], "an asked evaluation", records::asked_from_row)?.pop();
        found.ok_or_else(|| LedgerError::Corrupt {
            path: self.path.clone(),
            what: format!("evaluation {index}"),
            reason: "it is gone".to_owned(),
        })
    }

    /// All outcomes without their scores by sample, which are most of a ledger.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] where a record cannot be read, [`LedgerError::Locked`].
    pub fn all_told_without_samples(&self) -> Result<BTreeMap<u64, ToldRecord>, LedgerError> {
        let rows =
            self.rows("SELECT * FROM told ORDER BY \"index\"", [], "an outcome", records::told_without_samples)?;
        Ok(rows.into_iter().map(|record| (record.index, record)).collect())
    }

    /// All outcomes without their scores by task.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] where a record cannot be read, [`LedgerError::Locked`].
    pub fn all_told_in_short(&self) -> Result<BTreeMap<u64, ToldRecord>, LedgerError> {
        let query = "SELECT \"index\", status, objective, n_samples, materialize_s, evaluate_s, started_at, finished_at, \
                     attempts, error FROM told ORDER BY \"index\"";
        let rows = self.rows(query, [], "an outcome", records::told_in_short)?;
        Ok(rows.into_iter().map(|record| (record.index, record)).collect())
    }

    /// The outcome of one evaluation, if it has ended.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] where a record cannot be read, [`LedgerError::Locked`].
    pub fn outcome(&self, index: u64) -> Result<Option<ToldRecord>, LedgerError> {
        let query = "SELECT * FROM told WHERE \"index\" = ?1";
        Ok(self.rows(query, [to_sql(index)], "an outcome", records::told_from_row)?.pop())
    }

    /// Forgets all evaluations, for a run in which all were given up: the next start asks for everything. Events stay.
    ///
    /// # Errors
    /// [`LedgerError::NotWritable`] or [`LedgerError::Locked`]; nothing of it is recorded then.
    pub fn start_over(&self) -> Result<(), LedgerError> {
        let mut connection = self.lock();
        let mut write = || -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            transaction.execute_batch("DELETE FROM told; DELETE FROM asked;")?;
            transaction.commit()
        };
        write().map_err(|source| self.fault(source))
    }

    /// All hold-out evaluations, by evaluation id.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] where a record cannot be read, [`LedgerError::Locked`].
    pub fn all_holdout(&self) -> Result<BTreeMap<String, HoldoutRecord>, LedgerError> {
        let rows = self.rows("SELECT * FROM holdout", [], "a hold-out evaluation", records::holdout_from_row)?;
        Ok(rows.into_iter().map(|record| (record.evaluation_id.clone(), record)).collect())
    }

    /// Events of one kind, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] where a record cannot be read, [`LedgerError::Locked`].
    pub fn events(&self, kind: &str) -> Result<Vec<EventRecord>, LedgerError> {
        self.rows("SELECT * FROM events WHERE kind = ?1 ORDER BY seq", [kind], "an event", records::event_from_row)
    }

    fn rows<T>(
        &self,
        query: &str,
        parameters: impl Params,
        what: &str,
        parse: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, LedgerError> {
        let connection = self.lock();
        let read = || -> rusqlite::Result<Vec<T>> {
            let mut statement = connection.prepare(query)?;
            let rows = statement.query_map(parameters, parse)?;
            rows.collect()
        };
        read().map_err(|source| match source {
            rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..) => {
                LedgerError::Corrupt { path: self.path.clone(), what: what.to_string(), reason: source.to_string() }
            }
            other => self.fault(other),
        })
    }

    /// A panic while the lock was held leaves no half-done work behind: every write is one transaction.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        lock(&self.connection)
    }

    fn fault(&self, source: rusqlite::Error) -> LedgerError {
        classify(&self.path, source)
    }
}

/// The path in a form in which SQLite finds no address in it (`file:x` is a folder's name like others).
fn plain(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Maps of names, numbers and texts always have a JSON form.
fn scores_json(tasks: &BTreeMap<String, TaskScores>) -> String {
    serde_json::to_string(tasks).unwrap_or_default()
}

fn upsert_fact(connection: &Connection, key: &str, value: &str) -> rusqlite::Result<usize> {
    connection.execute(
        "INSERT INTO facts (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [key, value],
    )
}

fn insert_told(connection: &Connection, record: &ToldRecord) -> rusqlite::Result<usize> {
    connection.execute(
        "INSERT INTO told (\"index\", status, objective, tasks, n_samples, materialize_s, evaluate_s, started_at, \
         finished_at, attempts, error) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        params![
            to_sql(record.index),
            record.status,
            record.objective,
            scores_json(&record.tasks),
            to_sql(record.n_samples),
            record.materialize_s,
            record.evaluate_s,
            record.started_at,
            record.finished_at,
            record.attempts,
            record.error,
        ],
    )
}

/// The time as the ledger writes it (RFC 3339, UTC).
pub fn now() -> String {
    written(jiff::Timestamp::now())
}

/// A time of the system as the ledger writes it; one that is in no calendar is now.
pub fn time_text(time: SystemTime) -> String {
    written(jiff::Timestamp::try_from(time).unwrap_or_else(|_| jiff::Timestamp::now()))
}

fn written(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// SQLite's integers are signed; counts of a run stay far below 2^63.
fn to_sql(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// SQLite's name for a file that does not change (<https://www.sqlite.org/uri.html>).
fn immutable_uri(path: &Path) -> PathBuf {
    let encode = |byte: &u8| match byte {
        b'/' | b'.' | b'_' | b'-' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => char::from(*byte).to_string(),
        other => format!("%{other:02x}"),
    };
    let path: String = plain(path).as_os_str().as_bytes().iter().map(encode).collect();
    PathBuf::from(format!("file:{path}?immutable=1"))
}

/// The log beside a database that may be written.
fn log_of(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}-wal", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Opens the database `path` under `name`.
fn open_read_only(path: &Path, name: &Path, flags: OpenFlags) -> Result<Ledger, LedgerError> {
    let flags = flags | OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(name, flags).map_err(|source| classify(path, source))?;
    connection.busy_timeout(Duration::from_secs(10)).map_err(|source| classify(path, source))?;
    schema::check_begun(&connection, path)?;
    Ok(Ledger { connection: Mutex::new(connection), path: path.to_path_buf() })
}
