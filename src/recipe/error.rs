//! What can be wrong with a recipe.

use std::path::PathBuf;

use super::ModelReference;
use crate::document::{FieldError, Node};
use crate::exit::ExitCode;

/// A recipe that cannot be used, with the key to blame.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe {}: {source}", path.display())]
    Read {
        /// The recipe's file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of weights was given in place of a recipe.
    #[error("{} holds weights; expected a recipe (.toml) or a configuration of mergekit (.yml, .yaml)", path.display())]
    FileType {
        /// The file, judged by the ending of its name.
        path: PathBuf,
    },
    /// `document` is the file, or `recipe` where the text did not come from one.
    #[error("{document}: {field}")]
    Field {
        /// Who is named in front of the message.
        document: String,
        /// The key, its line, and what is wrong with it.
        field: FieldError,
    },
    /// A model without a content id: whoever asks for a hash must have identified every model.
    #[error("model `{model}` has no content id, so the recipe cannot be hashed")]
    Unidentified {
        /// The model, as the recipe names it.
        model: ModelReference,
    },
}

impl RecipeError {
    /// What the process tells its caller.
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Read { .. } | Self::FileType { .. } | Self::Field { .. } => ExitCode::BadData,
            Self::Unidentified { .. } => ExitCode::Internal,
        }
    }

    /// The same error, with the line of its key in this document.
    pub(super) fn in_lines_of(self, root: &Node) -> Self {
        match self {
            Self::Field { document, field } => {
                let line = field.line.or_else(|| root.line_at(&field.key));
                Self::Field { document, field: FieldError { line, ..field } }
            }
            other => other,
        }
    }

    /// The same error, blamed on this file.
    pub(super) fn in_document(self, name: &str) -> Self {
        match self {
            Self::Field { field, .. } => Self::Field { document: name.to_owned(), field },
            other => other,
        }
    }
}

impl From<FieldError> for RecipeError {
    fn from(field: FieldError) -> Self {
        Self::Field { document: "recipe".to_owned(), field }
    }
}
