//! What can be wrong with a run file.

use std::path::PathBuf;

use crate::document::FieldError;
use crate::exit::ExitCode;

/// A run file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file, or the folder that it lies in, cannot be read.
    #[error("cannot read the run file {}: {source}", path.display())]
    Read {
        /// The run file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// `document` is the file, or `run file` where the text did not come from one.
    #[error("{document}: {field}")]
    Field {
        /// Who is named in front of the message.
        document: String,
        /// The key, its line, and what is wrong with it.
        field: FieldError,
    },
}

impl ConfigError {
    /// The same error, blamed on this file.
    pub fn in_document(self, name: String) -> Self {
        match self {
            Self::Field { field, .. } => Self::Field { document: name, field },
            other => other,
        }
    }

    /// What the process tells its caller: always a bad configuration.
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Read { .. } | Self::Field { .. } => ExitCode::BadConfiguration,
        }
    }
}

impl From<FieldError> for ConfigError {
    fn from(field: FieldError) -> Self {
        Self::Field { document: "run file".to_owned(), field }
    }
}
