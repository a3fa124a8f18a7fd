//! What can be wrong with a run file.

use std::path::PathBuf;

use crate::document::FieldError;
use crate::exit::ExitCode;

/// What a text that did not come from a file is called.
const DOCUMENT: &str = "run file";

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
    /// A file of task data that the run file names is not there: the data is at fault.
    #[error("{document}: {field}")]
    TaskData {
        /// As in [`Self::Field`].
        document: String,
        /// The key that names the file, its line, and the file.
        field: FieldError,
    },
}

impl ConfigError {
    /// The same error, blamed on this file.
    pub fn in_document(self, name: String) -> Self {
        match self {
            Self::Field { field, .. } => Self::Field { document: name, field },
            Self::TaskData { field, .. } => Self::TaskData { document: name, field },
            Self::Read { .. } => self,
        }
    }

    /// What the process tells its caller: a bad configuration, but for task data that is missing.
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Read { .. } | Self::Field { .. } => ExitCode::BadConfiguration,
            Self::TaskData { .. } => ExitCode::BadData,
        }
    }

    /// Of task data; see [`Self::TaskData`].
    pub(super) fn task_data(field: FieldError) -> Self {
        Self::TaskData { document: DOCUMENT.to_owned(), field }
    }
}

impl From<FieldError> for ConfigError {
    fn from(field: FieldError) -> Self {
        Self::Field { document: DOCUMENT.to_owned(), field }
    }
}
