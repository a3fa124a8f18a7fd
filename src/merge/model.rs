//! A checkpoint as the merge core knows it: opened once for a run, with its layers looked up.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::MergeError;
use super::lora::Delta;
use super::simd::Isa;
use super::statistics::TensorKey;
use super::tensor::Stored;
use crate::checkpoint::{Checkpoint, LayerLayout, TensorInfo, Tower};
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
    /// Index of each tensor among the sorted names.
    indices: HashMap<String, u32>,
    /// What a LoRA adapter adds, by tensor.
    deltas: BTreeMap<String, Delta>,
}

impl Model {
    pub(crate) fn new(name: ModelReference, checkpoint: Arc<Checkpoint>, isa: Isa) -> Self {
        let layout = checkpoint.layers();
        let towers = layout.other_towers(checkpoint.tensors().keys().map(String::as_str));
        let mut suffixes = vec![Vec::new(); layout.count];
        for tensor in checkpoint.tensors().keys() {
            let rest = tensor.strip_prefix(layout.prefix.as_str()).and_then(|rest| rest.split_once('.'));
            if let (Some(layer), Some((_, suffix))) = (layout.layer_of(tensor), rest)
                && let Some(suffixes) = suffixes.get_mut(layer)
            {
                suffixes.push(suffix.to_owned());
            }
        }
        let indices = checkpoint.tensors().keys().cloned().zip(0..).collect();
        let delta = |(tensor, info): (&String, &TensorInfo)| {
            Some((tensor.clone(), Delta::new(&checkpoint.low_rank(tensor)?, info.float()?, isa)))
        };
        let deltas = checkpoint.tensors().iter().filter_map(delta).collect();
        Self { label: name.to_string(), name, checkpoint, layout, towers, suffixes, indices, deltas }
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

    /// A float tensor for the kernels, of which the first `elements` are merged. `index` is this model's.
    pub(crate) fn stored<'a>(&'a self, index: usize, tensor: &'a str, elements: u64) -> Result<Stored<'a>, MergeError> {
        let lacks = || MergeError::Internal(format!("model `{}` has no float tensor `{tensor}`", self.name));
        let info = self.checkpoint.tensors().get(tensor).ok_or_else(lacks)?;
        let delta = self.deltas.get(tensor);
        Ok(Stored {
            dtype: delta.map(Delta::dtype).or(info.float()).ok_or_else(lacks)?,
            bytes: self.checkpoint.bytes(tensor).ok_or_else(lacks)?,
            model: &self.label,
            tensor,
            key: TensorKey {
                model: index as u32,
                tensor: self.indices.get(tensor).copied().ok_or_else(lacks)?,
                elements,
            },
            delta,
        })
    }
}
