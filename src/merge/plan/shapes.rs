//! The shapes that models have in common, and what is done about vocabularies of different sizes.

use super::PlannedTensor;
use super::tensors::Found;
use crate::checkpoint::{TensorInfo, is_head, is_input_embedding};
use crate::merge::MergeError;
use crate::merge::model::Model;
use crate::recipe::ModelReference;

/// Whether a tensor has a row for each token.
pub(in crate::merge) fn is_vocabulary(name: &str) -> bool {
    is_head(name) || is_input_embedding(name)
}

/// What is done where models have different numbers of rows in their embeddings and heads.
pub(super) struct Vocabulary<'a> {
    /// Where they have, the model whose tokenizer is asked for, and how many rows its tokens need.
    pub(super) tokenizer: Option<(&'a ModelReference, usize)>,
    /// Cuts them to the rows that all have.
    pub(super) truncate: bool,
}

impl Vocabulary<'_> {
    /// How many rows are merged of a tensor with these; `None`: they must be equally many.
    fn rows(&self, own: impl Iterator<Item = usize>) -> Option<usize> {
        let fewest = own.min()?;
        let of_tokens = self.tokenizer.map(|(_, rows)| rows).filter(|rows| *rows <= fewest);
        of_tokens.or(self.truncate.then_some(fewest))
    }

    /// What to do about other numbers of rows.
    fn hint(&self) -> String {
        match self.tokenizer {
            Some((model, rows)) => format!(
                "; the tokenizer of `{model}` (tokenizer_source) has tokens for {rows} rows: bring the models to it first \
                 (resize_token_embeddings), or name one whose tokens all models have"
            ),
            None => "; the vocabularies differ: `tokenizer_source: base` (or a model) cuts padding where the tokens are the \
                     same; else bring the models to one tokenizer first (resize_token_embeddings), or merge the rows that \
                     all have with --truncate-embeddings"
                .to_owned(),
        }
    }
}

/// Embedding and head may come from different slices; they must be of one vocabulary.
pub(super) fn check_vocabulary(tensors: &[PlannedTensor], models: &[Model]) -> Result<(), MergeError> {
    let rows = |wanted: fn(&str) -> bool| tensors.iter().find(|tensor| wanted(&tensor.name) && tensor.shape.len() == 2);
    // Some models have rows in their embedding that their head has not (for images).
    let is_pair = |model: &Model, embedding: &PlannedTensor, head: &PlannedTensor| {
        let own = |tensor: &PlannedTensor| {
            model.checkpoint.tensors().get(&tensor.name).is_some_and(|info| info.shape == tensor.shape)
        };
        own(embedding) && own(head)
    };
    match (rows(is_input_embedding), rows(is_head)) {
        (Some(embedding), Some(head))
            if embedding.shape[0] != head.shape[0] && !models.iter().any(|model| is_pair(model, embedding, head)) =>
        {
            Err(MergeError::Incompatible(format!(
                "`{}` of the first slice has {} rows, `{}` of the last {}; the vocabularies differ: bring the models to one \
             tokenizer first (resize_token_embeddings)",
                embedding.name, embedding.shape[0], head.name, head.shape[0]
            )))
        }
        _ => Ok(()),
    }
}

/// The shape of a tensor that these models have in common.
pub(super) fn common_shape(
    name: &str,
    found: &[Found<'_, '_>],
    vocabulary: &Vocabulary<'_>,
) -> Result<Vec<usize>, MergeError> {
    let Some(Found { source: reference, info: expected, .. }) = found.first() else { return Ok(Vec::new()) };
    let is_other_type =
        |info: &TensorInfo| info.dtype != expected.dtype && (info.float().is_none() || expected.float().is_none());
    if let Some(Found { source, info, .. }) = found.iter().find(|other| is_other_type(other.info)) {
        return Err(MergeError::Incompatible(format!(
            "tensor `{name}` is of type {} in `{}`, {} in `{}`; only floats can be merged",
            expected.dtype, reference.model.name, info.dtype, source.model.name
        )));
    }
    let is_row_of_floats = |info: &TensorInfo| info.float().is_some() && info.shape.get(1..) == expected.shape.get(1..);
    if is_vocabulary(name) && found.iter().all(|input| is_row_of_floats(input.info)) {
        let own = found.iter().filter_map(|input| input.info.shape.first().copied());
        if let (Some(rows), [_, rest @ ..]) = (vocabulary.rows(own), expected.shape.as_slice()) {
            // Rows are stored one after another, so the first ones are a prefix of each.
            return Ok([&[rows], rest].concat());
        }
    }
    match found.iter().find(|other| other.info.shape != expected.shape) {
        None => Ok(expected.shape.clone()),
        Some(Found { source, info, .. }) => {
            let hint = match is_vocabulary(name) {
                true => vocabulary.hint(),
                false => ": the models have different architectures".to_owned(),
            };
            Err(MergeError::Incompatible(format!(
                "tensor `{name}` has shape {:?} in `{}`, {:?} in `{}`{hint}",
                expected.shape, reference.model.name, info.shape, source.model.name
            )))
        }
    }
}
