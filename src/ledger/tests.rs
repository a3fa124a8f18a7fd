//! What is written is read again, by whoever may, and damage is told.

use super::*;
use crate::exit::ExitCode;

fn record(index: u64) -> AskedRecord {
    AskedRecord {
        index,
        candidate_id: format!("{index:016x}"),
        recipe_sha256: format!("{index:064x}"),
        evaluation_id: format!("ev_{index}"),
        recipe: "merge_method = \"linear\"".into(),
        content: serde_json::json!({"soup": [0]}),
        genes: vec![("weight.a".into(), "0.1".into())],
        origin: "source".into(),
        parents: vec![],
        generation: 0,
        fidelity: 1.0,
        replicate: 0,
        samples: 10,
        asked_at: now(),
    }
}

#[test]
fn a_ledger_without_a_run_is_blank() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    assert!(Ledger::is_blank(&path));
    let ledger = Ledger::open(&path).unwrap();
    assert!(Ledger::is_blank(&path));
    ledger.set_fact(fact::IDENTITY, "{}").unwrap();
    assert!(!Ledger::is_blank(&path));
    let foreign = folder.path().join("other");
    std::fs::write(&foreign, "no database").unwrap();
    assert!(!Ledger::is_blank(&foreign));
}

/// In a folder that may be written, a reader of a database with a log leaves files of its own there.
#[test]
fn a_ledger_at_rest_is_read_without_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    Ledger::open(&path).unwrap().set_fact(fact::RUN_NAME, "night").unwrap();
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files(), 1);
    let ledger = Ledger::open_at_rest(&path).unwrap();
    assert_eq!(ledger.fact(fact::RUN_NAME).unwrap().as_deref(), Some("night"));
    drop(ledger);
    assert_eq!(files(), 1);
    // What is still in the log of a run that is searched is read, too.
    let searched = Ledger::open(&path).unwrap();
    searched.set_fact(fact::RUN_NAME, "day").unwrap();
    let ledger = Ledger::open_at_rest(&path).unwrap();
    assert_eq!(ledger.fact(fact::RUN_NAME).unwrap().as_deref(), Some("day"));
}

/// SQLite takes names that begin so for addresses.
#[test]
fn a_path_is_no_address() {
    assert_eq!(plain(Path::new("file:x/ledger.sqlite")), std::env::current_dir().unwrap().join("file:x/ledger.sqlite"));
}

/// A copy or a backup that does not end is not this program's fault.
#[test]
fn a_ledger_that_another_program_holds_is_said_to_be_locked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    let ledger = Ledger::open(&path).unwrap();
    ledger.lock().busy_timeout(std::time::Duration::ZERO).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = ledger.set_fact(fact::RUN_NAME, "x").unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Stopped, "{error}");
}

#[test]
fn what_is_written_is_read_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    {
        let ledger = Ledger::open(&path).unwrap();
        ledger.set_facts(&[("seed", "7"), ("look_ahead", "8")]).unwrap();
        ledger.asked(&record(0)).unwrap();
        ledger.asked(&record(1)).unwrap();
        ledger.event(event::ATTEMPTED, Some(1), &serde_json::json!({"number": 1})).unwrap();
    }
    let ledger = Ledger::open_for_reading(&path).unwrap();
    assert_eq!(ledger.fact("seed").unwrap().as_deref(), Some("7"));
    let asked = ledger.all_asked().unwrap();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].genes, vec![("weight.a".to_string(), "0.1".to_string())]);
    assert_eq!(ledger.events(event::ATTEMPTED).unwrap()[0].index, Some(1));
    assert_eq!(ledger.outcome(0).unwrap(), None);
}

#[test]
fn damaged_rows_are_bad_data() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&folder.path().join("ledger.sqlite")).unwrap();
    ledger.event(event::STARTED, None, &serde_json::json!({})).unwrap();
    ledger.lock().execute("UPDATE events SET payload = '{'", []).unwrap();
    let error = ledger.events(event::STARTED).unwrap_err();
    assert!(matches!(error, LedgerError::Corrupt { .. }), "{error}");
    let insert = "INSERT INTO repeats VALUES ('e', 0, 'c', 'pleasure', 1, 0, 'scored', 0.5, '{}', 'null', NULL, 'now')";
    ledger.lock().execute(insert, []).unwrap();
    let error = ledger.all_repeats().unwrap_err();
    assert!(matches!(error, LedgerError::Corrupt { .. }) && error.to_string().contains("pleasure"), "{error}");
    assert!(ledger.repeats_for(RepeatPurpose::Sentinel).unwrap().is_empty());
}

/// Times are compared as texts.
#[test]
fn a_later_time_is_a_greater_text() {
    let at = |milliseconds: u64| time_text(SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(milliseconds));
    assert_eq!(at(1_700_000_000_050), "2023-11-14T22:13:20.050Z");
    assert!(at(1_700_000_000_000) < at(1_700_000_000_050) && at(1_700_000_000_999) < at(1_700_000_001_000));
    assert!(at(1_700_000_000_000) < now());
}

#[test]
fn an_index_is_asked_once() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&folder.path().join("ledger.sqlite")).unwrap();
    ledger.asked(&record(0)).unwrap();
    assert!(ledger.asked(&record(0)).is_err());
}

/// A search makes the file before it makes the tables in it, and may be killed in between.
#[test]
fn a_ledger_without_tables_is_one_that_was_not_started() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    std::fs::write(&path, "").unwrap();
    let refusal = || Ledger::open_for_reading(&path).err().unwrap();
    assert!(matches!(refusal(), LedgerError::Unstarted { .. }), "{}", refusal());
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() > 0);
    for _ in 0..2 {
        assert!(matches!(refusal(), LedgerError::Unstarted { .. }), "{}", refusal());
        assert_eq!(refusal().exit_code(), ExitCode::BadData);
    }
    connection.execute_batch("CREATE TABLE other (x INTEGER)").unwrap();
    assert!(matches!(refusal(), LedgerError::Corrupt { .. }), "{}", refusal());
    connection.execute_batch("DROP TABLE other").unwrap();
    Ledger::open(&path).unwrap();
    Ledger::open_for_reading(&path).unwrap();
}

#[test]
fn a_missing_ledger_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Ledger::open_for_reading(&folder.path().join("ledger.sqlite")).err().unwrap();
    assert_eq!(error.exit_code(), ExitCode::BadData);
}
