//! What can go wrong in a merge, told to people and mapped to exit codes.

use crate::exit::ExitCode;

/// A merge that was not done. [`MergeError::Infeasible`] says something of the candidate; the others of its
/// surroundings.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The recipe is well formed but its values have no finite result (weights that sum to zero, overflow, ...).
    #[error("tensor `{tensor}` cannot be merged: {reason}")]
    Infeasible {
        /// The output tensor.
        tensor: String,
        /// What has no finite result: values of the recipe, or an element.
        reason: String,
    },
    /// The recipe contradicts itself, or one of its keys asks for something that its model does not have.
    #[error(transparent)]
    Recipe(#[from] crate::recipe::RecipeError),
    /// The recipe asks for something that these models do not have.
    #[error("recipe: {0}")]
    Plan(String),
    /// The checkpoints do not fit together, or not to the recipe.
    #[error("{0}")]
    Incompatible(String),
    /// A stored NaN or infinity.
    #[error(
        "model `{model}`: tensor `{tensor}` has {value} at element {element}; a merge would spread it, so the checkpoint \
         must be repaired or left out"
    )]
    NotFinite {
        /// The model, as recipes name it.
        model: String,
        /// Its tensor, under the name in that model.
        tensor: String,
        /// Row-major index of the first such element of the tensor.
        element: u64,
        /// NaN or an infinity.
        value: f64,
    },
    /// A model cannot be read, or the output cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    /// The system does not give the threads that were asked for: ask for fewer.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// How many; 0 stands for one a core.
        threads: usize,
        /// The system's reason.
        reason: String,
    },
    /// [`super::MergeOptions::cancel`] was set. Nothing is left at the destination.
    #[error("merge cancelled")]
    Cancelled,
    /// A broken promise between parts of the merge core.
    #[error("internal error in the merge core: {0}")]
    Internal(String),
}

impl MergeError {
    /// Whether the candidate itself is at fault: it gets the worst fitness, and another attempt would end the same way.
    pub fn is_infeasible(&self) -> bool {
        matches!(self, Self::Infeasible { .. })
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Infeasible { .. } | Self::Plan(_) | Self::Incompatible(_) | Self::NotFinite { .. } => {
                ExitCode::BadData
            }
            Self::Recipe(error) => error.exit_code(),
            Self::Checkpoint(error) => error.exit_code(),
            Self::Threads { .. } | Self::Internal(_) => ExitCode::Internal,
            Self::Cancelled => ExitCode::Stopped,
        }
    }
}
