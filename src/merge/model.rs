//! A checkpoint as the merge core knows it: opened once for a run, with its layers looked up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::MergeError;
use super::lora::Delta;
use super::simd::Isa;
use super::statistics::TensorKey;
use super::tensor::Stored;
use crate::checkpoint::{Checkpoint, LayerLayout, TensorInfo, Tower, is_tied, is_unread};
use crate::recipe::ModelReference;

/// An opened model.
pub(crate) struct Model {
    pub(crate) name: ModelReference,
    /// The name in messages.
    label: String,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) layout: LayerLayout,
    /// Repeated blocks beside the layers.
    pub(crate) towers: Vec<Tower>,
    /// What follows the number in the names of each layer's tensors.
    suffixes: Vec<Vec<String>>,
    /// The same without tensors that no loader reads.
    kinds: Vec<Vec<String>>,
    /// Tensors that are stored beside those that loaders tie them to, and equal these; found when they are asked for.
    tied_copies: OnceLock<BTreeSet<String>>,
    /// Index of each tensor among the sorted names.
    indices: HashMap<String, u32>,
    /// What a LoRA adapter adds, by tensor.
    deltas: BTreeMap<String, Delta>,
}

impl Model {
    pub(crate) fn new(name: ModelReference, checkpoint: Arc<Checkpoint>, isa: Isa) -> Self {
        let layout = checkpoint.layers();
        let towers = layout.other_towers(checkpoint.tensors().keys().map(String::as_str));
        let mut suffixes: Vec<Vec<String>> = vec![Vec::new(); layout.count];
        let mut kinds = suffixes.clone();
        for (tensor, info) in checkpoint.tensors() {
            let rest = tensor.strip_prefix(layout.prefix.as_str()).and_then(|rest| rest.split_once('.'));
            if let (Some(layer), Some((_, suffix))) = (layout.layer_of(tensor), rest)
                && let (Some(suffixes), Some(kind)) = (suffixes.get_mut(layer), kinds.get_mut(layer))
            {
                suffixes.push(suffix.to_owned());
                if !is_unread(info) {
                    kind.push(suffix.to_owned());
                }
            }
        }
        let indices = checkpoint.tensors().keys().cloned().zip(0..).collect();
        let delta = |(tensor, info): (&String, &TensorInfo)| {
            Some((tensor.clone(), Delta::new(&checkpoint.low_rank(tensor)?, info.float()?, isa)))
        };
        let deltas = checkpoint.tensors().iter().filter_map(delta).collect();
        let (label, tied_copies) = (name.to_string(), OnceLock::new());
        Self { label, name, checkpoint, layout, towers, suffixes, kinds, tied_copies, indices, deltas }
    }

    pub(crate) fn layer_of(&self, tensor: &str) -> Option<usize> {
        self.layout.layer_of(tensor)
    }

    /// Where a tensor stands in a tower beside the layers: the number of its block, and of all blocks.
    pub(crate) fn place_in_tower(&self, tensor: &str) -> Option<(usize, usize)> {
        self.towers.iter().find_map(|tower| Some((tower.block_of(tensor)?, tower.count)))
    }

    pub(crate) fn layer_suffixes(&self, layer: usize) -> &[String] {
        self.suffixes.get(layer).map_or(&[], Vec::as_slice)
    }

    /// What tells the kind of a layer: the names of its tensors behind the number, without those that no loader reads.
    pub(crate) fn layer_kind(&self, layer: usize) -> &[String] {
        self.kinds.get(layer).map_or(&[], Vec::as_slice)
    }

    /// Whether a tensor is stored beside the one that loaders tie it to, and equals that. The first call reads all such
    /// tensors.
    pub(crate) fn is_tied_copy(&self, tensor: &str) -> bool {
        self.tied_copies.get_or_init(|| self.find_tied_copies()).contains(tensor)
    }

    fn find_tied_copies(&self) -> BTreeSet<String> {
        let tensors = self.checkpoint.tensors();
        let said = self.checkpoint.config().get("tie_word_embeddings").and_then(Value::as_bool);
        let unties = said == Some(false);
        let is_changed = |info: &TensorInfo| self.deltas.contains_key(&info.name);
        let is_equal = |one: &TensorInfo, other: &TensorInfo| {
            (one.dtype, &one.shape) == (other.dtype, &other.shape)
                && !is_changed(one)
                && !is_changed(other)
                && self.checkpoint.bytes(&one.name) == self.checkpoint.bytes(&other.name)
        };
        let outside = || tensors.values().filter(move |info| self.layer_of(&info.name).is_none());
        let is_copy = |info: &&TensorInfo| {
            outside().any(|other| is_tied(&info.name, &other.name, unties) && is_equal(info, other))
        };
        outside().filter(is_copy).map(|info| info.name.clone()).collect()
    }

    /// A float tensor for the kernels, of which the first `elements` are merged. `index` is this model's.
    pub(crate) fn stored<'a>(&'a self, index: usize, tensor: &'a str, elements: u64) -> Result<Stored<'a>, MergeError> {
        let lacks = || MergeError::Internal(format!("model `{}` has no float tensor `{tensor}`", self.name));
        let info = self.checkpoint.tensors().get(tensor).ok_or_else(lacks)?;
        let delta = self.deltas.get(tensor);
        Ok(Stored {
            dtype: delta.map(Delta::dtype).or(info.float()).ok_or_else(lacks)?,
            bytes: self.checkpoint.bytes(tensor).ok_or_else(lacks)?,
            model: &self.label,
            tensor: self.checkpoint.stored_name(tensor),
            key: TensorKey {
                model: index as u32,
                tensor: self.indices.get(tensor).copied().ok_or_else(lacks)?,
                elements,
            },
            delta,
        })
    }
}
