//! What an adapter makes of a head that its base ties to the input embedding.

use std::collections::BTreeMap;

use super::names::LayerKind;
use super::{CONFIG_FILE, Change, Opening, Pair, Pairs};
use crate::checkpoint::error::{CheckpointError, quote};
use crate::checkpoint::header::TensorInfo;
use crate::checkpoint::tensor_names::is_tied;

impl Opening<'_> {
    /// Factors of a tied head would change the embedding too. With `ensure_weight_tying` PEFT stores those of the
    /// embedding once more for the head, with rows and columns exchanged: these say nothing new.
    pub(super) fn drop_tied_factors(&self, pairs: &mut Pairs) -> Result<(), CheckpointError> {
        let Some(tie) = self.tie else { return Ok(()) };
        for kind in [LayerKind::Linear, LayerKind::Embedding] {
            let Some((module, pair)) = pairs.remove(&(tie.head.clone(), kind)) else { continue };
            let embedding = pairs.get(&(tie.embedding.name.clone(), LayerKind::Embedding));
            let is_repeated = self.configuration.keeps_ties
                && kind == LayerKind::Linear
                && embedding.is_some_and(|(other_module, other)| {
                    self.scale_bits(&module) == self.scale_bits(other_module) && self.are_turned(&pair, other)
                });
            if !is_repeated && let Some(info) = pair.down.or(pair.up) {
                let reason = format!(
                    "the head is tied to the input embedding {} in {}, so that factors of the head would change both: \
                     untie the model first (save it with tie_word_embeddings = false and {} of its own), or merge the \
                     adapter with PEFT and name the result as a model",
                    quote(&tie.embedding.name),
                    self.base.display(),
                    quote(&tie.head)
                );
                return Err(self.wrong(&info, reason));
            }
        }
        Ok(())
    }

    /// The scale of a module's factors, to be compared.
    fn scale_bits(&self, module: &str) -> Option<u32> {
        self.configuration.scale(module, self.configuration.rank(module)).ok().map(f32::to_bits)
    }

    /// Whether the factors of a linear layer are those of an embedding, transposed.
    fn are_turned(&self, linear: &Pair, embedding: &Pair) -> bool {
        let (Some(down), Some(up)) = (&linear.down, &linear.up) else { return false };
        let (Some(other_down), Some(other_up)) = (&embedding.down, &embedding.up) else { return false };
        self.is_transpose(down, other_up) && self.is_transpose(up, other_down)
    }

    /// Whether two matrices of the adapter are each other's transpose, bit for bit.
    fn is_transpose(&self, one: &TensorInfo, other: &TensorInfo) -> bool {
        let (&[rows, columns], &[other_rows, other_columns]) = (one.shape.as_slice(), other.shape.as_slice()) else {
            return false;
        };
        let (Some(left), Some(right)) = (self.own_bytes(one), self.own_bytes(other)) else { return false };
        let size = one.dtype.bitsize() / 8;
        let element = |index: usize| index * size..(index + 1) * size;
        one.dtype == other.dtype
            && (rows, columns) == (other_columns, other_rows)
            && (0..rows * columns).all(|index| {
                let (row, column) = (index / columns, index % columns);
                left.get(element(index)) == right.get(element(column * rows + row))
            })
    }

    /// Decides what becomes of a head that the base ties to its input embedding, where the adapter holds `head` for it;
    /// true: the two are no longer the same.
    pub(super) fn settle_head(&mut self, head: Option<TensorInfo>) -> Result<bool, CheckpointError> {
        let Some(tie) = self.tie else { return Ok(false) };
        let keeps_ties = self.configuration.keeps_ties;
        let embedding = self.tensors.get(&tie.embedding.name).filter(|info| info.replaces.is_some());
        let Some(head) = head else { return Ok(embedding.is_some() && !keeps_ties) };
        if self.is_copy(&tie.head, &tie.embedding, &head)? {
            return Ok(embedding.is_some() && !keeps_ties);
        }
        match embedding {
            Some(new) if new.dtype == head.dtype && self.own_bytes(new) == self.own_bytes(&head) => return Ok(false),
            Some(new) if keeps_ties => {
                let reason = format!(
                    "{CONFIG_FILE} says `ensure_weight_tying`, but it differs from the embedding {} beside it: one of \
                     the two is wrong",
                    quote(&new.name)
                );
                return Err(self.wrong(&head, reason));
            }
            None if keeps_ties => {
                self.replace(&tie.embedding.name, head)?;
                return Ok(false);
            }
            _ => {}
        }
        let stored = self.tensors.get(&tie.head).unwrap_or(&tie.embedding).dtype;
        let info = TensorInfo { name: tie.head.clone(), replaces: Some(stored), ..head };
        self.tensors.insert(tie.head.clone(), info);
        Ok(true)
    }

    /// Copies of the embedding that the base stores beside it, as its head and under other names that loaders tie to it,
    /// would be out of date once the embedding is another one.
    pub(super) fn drop_stored_copies(&mut self, changes: &BTreeMap<String, Change>) {
        let Some(tie) = self.tie else { return };
        let embedding = &tie.embedding;
        let is_replaced = |name: &str| self.tensors.get(name).is_some_and(|info| info.replaces.is_some());
        let is_changed = |name: &str| changes.contains_key(name) || is_replaced(name);
        if !is_changed(&embedding.name) {
            return;
        }
        let is_copy = |info: &&TensorInfo| {
            (info.name == tie.head || is_tied(&info.name, &embedding.name, false))
                && !is_changed(&info.name)
                && info.dtype == embedding.dtype
                && info.shape == embedding.shape
                && self.base_bytes(info) == self.base_bytes(embedding)
        };
        let copies: Vec<String> = self.tensors.values().filter(is_copy).map(|info| info.name.clone()).collect();
        for copy in copies {
            self.tensors.remove(&copy);
        }
    }
}
