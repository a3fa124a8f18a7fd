//! Tables and their version.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use super::LedgerError;
use super::error::classify;

/// Raised when a reader of the old format would misread the new one.
const FORMAT: u32 = 1;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS asked (
  \"index\" INTEGER PRIMARY KEY, candidate_id TEXT NOT NULL, recipe_sha256 TEXT NOT NULL, evaluation_id TEXT NOT NULL,
  recipe TEXT NOT NULL, content TEXT NOT NULL, genes TEXT NOT NULL, origin TEXT NOT NULL, parents TEXT NOT NULL,
  generation INTEGER NOT NULL, fidelity REAL NOT NULL, replicate INTEGER NOT NULL, samples INTEGER NOT NULL,
  asked_at TEXT NOT NULL) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS asked_evaluation ON asked (evaluation_id);
CREATE TABLE IF NOT EXISTS told (
  \"index\" INTEGER PRIMARY KEY REFERENCES asked (\"index\"), status TEXT NOT NULL, objective REAL, tasks TEXT NOT NULL,
  n_samples INTEGER NOT NULL, materialize_s REAL, evaluate_s REAL, started_at TEXT, finished_at TEXT NOT NULL,
  attempts INTEGER NOT NULL, error TEXT) STRICT;
CREATE TABLE IF NOT EXISTS holdout (
  evaluation_id TEXT PRIMARY KEY, candidate_id TEXT NOT NULL, status TEXT NOT NULL, tasks TEXT NOT NULL, error TEXT,
  finished_at TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS repeats (
  evaluation_id TEXT PRIMARY KEY, \"index\" INTEGER NOT NULL, candidate_id TEXT NOT NULL, purpose TEXT NOT NULL,
  replicate INTEGER NOT NULL, after INTEGER NOT NULL, status TEXT NOT NULL, objective REAL, tasks TEXT NOT NULL,
  alarm TEXT NOT NULL, error TEXT, finished_at TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, kind TEXT NOT NULL, \"index\" INTEGER, payload TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS events_kind ON events (kind);
";

/// Durability first: a commit returns when the record is on disk, also through a power cut.
pub(super) fn prepare(connection: &Connection, path: &Path) -> Result<(), LedgerError> {
    refuse_foreign(connection, path)?;
    let set_up = || -> rusqlite::Result<()> {
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // Soon in the file itself: whoever copies that alone has most of the run.
        connection.pragma_update(None, "wal_autocheckpoint", 100)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let format = format!("INSERT OR IGNORE INTO facts (key, value) VALUES ('format', '{FORMAT}');");
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} {format} COMMIT;"))
    };
    set_up().map_err(|source| classify(path, source))?;
    check_format(connection, path)
}

/// Whether there are no tables, or no run is in them.
pub(super) fn has_no_run(connection: &Connection) -> rusqlite::Result<bool> {
    let count = |query: &str| connection.query_row(query, [], |row| row.get::<_, i64>(0));
    Ok(count(COUNT_TABLES)? == 0 || count("SELECT count(*) FROM facts WHERE key = 'identity'")? == 0)
}

const COUNT_TABLES: &str =
    "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";

fn has_no_tables(connection: &Connection, path: &Path) -> Result<bool, LedgerError> {
    let tables: i64 =
        connection.query_row(COUNT_TABLES, [], |row| row.get(0)).map_err(|source| classify(path, source))?;
    Ok(tables == 0)
}

/// Refuses the database of another program, before anything is written into it.
fn refuse_foreign(connection: &Connection, path: &Path) -> Result<(), LedgerError> {
    if has_no_tables(connection, path)? { Ok(()) } else { recorded_format(connection, path).map(|_| ()) }
}

/// Refuses what there is nothing to read in: also a ledger whose search has made the file and not yet the tables, which
/// come all at once.
pub(super) fn check_begun(connection: &Connection, path: &Path) -> Result<(), LedgerError> {
    if has_no_tables(connection, path)? {
        return Err(LedgerError::Unstarted { path: path.to_path_buf() });
    }
    check_format(connection, path)
}

fn check_format(connection: &Connection, path: &Path) -> Result<(), LedgerError> {
    match recorded_format(connection, path)? {
        Some(text) if text == FORMAT.to_string() => Ok(()),
        other => Err(LedgerError::Format {
            path: path.to_path_buf(),
            found: other.unwrap_or_else(|| "unknown".into()),
            expected: FORMAT,
        }),
    }
}

/// `None` where a start was killed before it could note it.
fn recorded_format(connection: &Connection, path: &Path) -> Result<Option<String>, LedgerError> {
    connection.query_row("SELECT value FROM facts WHERE key = 'format'", [], |row| row.get(0)).optional().map_err(
        |source| match (&source, source.sqlite_error_code()) {
            // There is no such table, or it has other columns.
            (rusqlite::Error::SqlInputError { .. }, _) | (_, Some(rusqlite::ErrorCode::Unknown)) => {
                let reason = "it is not a ledger of evomerge".to_owned();
                LedgerError::Corrupt { path: path.to_path_buf(), what: "the file".into(), reason }
            }
            _ => classify(path, source),
        },
    )
}
