//! What can go wrong with the record, and what SQLite means by its errors.

use std::path::{Path, PathBuf};

use crate::exit::ExitCode;

/// What can go wrong with the record.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// SQLite failed for none of the reasons below: a bug.
    #[error("ledger {path}: {source}")]
    Sqlite {
        /// The ledger's file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The file cannot be opened or written: no space, no permission, a failing disk. What is recorded stays.
    #[error("ledger {path}: disk full or not writable: {source}; free some space and start the same command again")]
    NotWritable {
        /// The ledger's file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// Another program writes it, and does not end: a copy, a backup, an SQLite shell.
    #[error("the ledger {path} is locked by another program; try again when that has ended")]
    Locked {
        /// The ledger's file.
        path: PathBuf,
    },
    /// Another version of evomerge wrote it, with tables that this one would misread: continue with that version.
    #[error("ledger {path}: written by format {found}; this evomerge reads format {expected}")]
    Format {
        /// The ledger's file.
        path: PathBuf,
        /// The format that it names, or `unknown`.
        found: String,
        /// The one format that this version reads.
        expected: u32,
    },
    /// It is damaged, or no ledger of evomerge.
    #[error("ledger {path}: {what} cannot be read: {reason}")]
    Corrupt {
        /// The ledger's file.
        path: PathBuf,
        /// What of it: `the file`, or a kind of record (`an outcome`).
        what: String,
        /// What is wrong with that.
        reason: String,
    },
    /// There is no file to read.
    #[error("no ledger at {path}: not a results folder of evomerge, or its search never started")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// There is a file, and no table in it yet.
    #[error("ledger {path}: nothing is recorded in it; its search is just starting, or never got that far")]
    Unstarted {
        /// The ledger's file.
        path: PathBuf,
    },
    /// `trials.csv` cannot be made from the ledger.
    #[error("cannot write {path}: {reason}")]
    Export {
        /// The table's file.
        path: PathBuf,
        /// The system's reason, or that of the CSV writer.
        reason: String,
    },
}

impl LedgerError {
    /// What the process tells its caller.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotWritable { .. } | Self::Export { .. } => ExitCode::NotWritable,
            Self::Missing { .. } | Self::Unstarted { .. } | Self::Format { .. } | Self::Corrupt { .. } => {
                ExitCode::BadData
            }
            Self::Locked { .. } => ExitCode::Stopped,
            Self::Sqlite { .. } => ExitCode::Internal,
        }
    }
}

/// What an error of SQLite says of the ledger at `path`.
pub(super) fn classify(path: &Path, source: rusqlite::Error) -> LedgerError {
    use rusqlite::ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase, ReadOnly, SystemIoFailure,
    };
    let path = path.to_path_buf();
    if let rusqlite::Error::Utf8Error(..) = source {
        return LedgerError::Corrupt { path, what: "a record".into(), reason: source.to_string() };
    }
    match source.sqlite_error_code() {
        Some(DiskFull | ReadOnly | SystemIoFailure | CannotOpen) => LedgerError::NotWritable { path, source },
        Some(DatabaseBusy | DatabaseLocked) => LedgerError::Locked { path },
        Some(DatabaseCorrupt | NotADatabase) => {
            LedgerError::Corrupt { path, what: "the file".into(), reason: source.to_string() }
        }
        _ => LedgerError::Sqlite { path, source },
    }
}
