//! Whether checkpoints can be merged tensor by tensor.

use super::error::{CheckpointError, quote};
use super::header::TensorInfo;
use super::model::{Checkpoint, is_head};

/// Checks that all models have the tensors of the first one, with the same shapes. Floating-point types may differ, other
/// types may not. Where all models tie the output head to the input embedding, a stored copy of the head in some of them
/// is no difference.
///
/// # Errors
/// [`CheckpointError::Incompatible`] with every difference; models are called by the names given.
pub fn compare(models: &[(&str, &Checkpoint)]) -> Result<(), CheckpointError> {
    let Some((&(reference_name, reference), others)) = models.split_first() else {
        return Ok(());
    };
    let mut differences = Vec::new();
    let tied = models.iter().all(|(_, model)| model.ties_head());
    for (name, model) in others {
        let word = |model: &Checkpoint| if model.ties_head() { "ties" } else { "does not tie" };
        if reference.ties_head() != model.ties_head() {
            differences.push(format!(
                "{name} {} its head to its input embedding, {reference_name} {} (tie_word_embeddings)",
                word(model),
                word(reference)
            ));
        }
        let absent = |tensor: &str| !(tied && is_head(tensor));
        for (tensor, expected) in reference.tensors() {
            match model.tensors().get(tensor) {
                None if absent(tensor) => {
                    differences.push(format!("{name} lacks {}, which {reference_name} has", quote(tensor)));
                }
                None => {}
                Some(found) => differences.extend(difference((name, found), (reference_name, expected))),
            }
        }
        for tensor in model.tensors().keys() {
            if !reference.tensors().contains_key(tensor) && absent(tensor) {
                differences.push(format!("{name} has {}, which {reference_name} lacks", quote(tensor)));
            }
        }
    }
    if differences.is_empty() { Ok(()) } else { Err(CheckpointError::Incompatible { differences }) }
}

fn difference((name, found): (&str, &TensorInfo), (reference, expected): (&str, &TensorInfo)) -> Option<String> {
    let tensor = quote(&found.name);
    if found.shape != expected.shape {
        let (found, expected) = (&found.shape, &expected.shape);
        return Some(format!("{tensor} has shape {found:?} in {name}, {expected:?} in {reference}"));
    }
    let both_float = found.float().is_some() && expected.float().is_some();
    (found.dtype != expected.dtype && !both_float)
        .then(|| format!("{tensor} is of type {} in {name}, {} in {reference}", found.dtype, expected.dtype))
}
