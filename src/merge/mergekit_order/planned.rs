//! What mergekit plans to merge, weight by weight of an architecture.

use super::architectures::Architecture;
use super::schedule::{Load, ScheduledTensor};
use crate::checkpoint::{is_head, is_input_embedding};
use crate::merge::PlannedSlice;

/// A name in the output, and models with the names that a tensor has in them.
type Weight = (String, Vec<(usize, String)>);

/// The tensors of an output that is stacked of `slices`, in the order in which mergekit plans them. `stores` says
/// whether a model has a tensor of a name.
pub(super) fn scheduled_tensors(
    architecture: &Architecture,
    slices: &[PlannedSlice],
    stores: impl Fn(usize, &str) -> bool,
) -> Vec<ScheduledTensor> {
    let (Some(first), Some(last)) = (slices.first(), slices.last()) else { return Vec::new() };
    // Weights after the layers have as many sources as the first slice, though they are the last one's.
    let count = first.sources.len();
    let before = architecture.before().map(|name| outside_layers(name, first, count));
    let after = architecture.after().map(|name| outside_layers(name, last, count));
    let layers = slices.iter().flat_map(|slice| (0..slice.layers).map(move |layer| (slice, layer)));
    let inside = layers.enumerate().flat_map(|(output, (slice, layer))| of_layer(architecture, output, slice, layer));
    let weights = before.chain(inside).chain(after);
    weights.filter_map(|weight| scheduled_tensor(architecture, weight, &stores)).collect()
}

fn outside_layers(name: &str, slice: &PlannedSlice, count: usize) -> Weight {
    let sources = slice.sources.iter().take(count);
    (name.to_owned(), sources.map(|(model, _)| (*model, name.to_owned())).collect())
}

/// The weights of the layer `output`, which is made of the layer `layer` of a slice.
fn of_layer(architecture: &Architecture, output: usize, slice: &PlannedSlice, layer: usize) -> Vec<Weight> {
    let mut weights: Vec<Weight> = architecture.layer(output).map(|name| (name, Vec::new())).collect();
    for (model, first_layer) in &slice.sources {
        for ((_, inputs), name) in weights.iter_mut().zip(architecture.layer(first_layer + layer)) {
            inputs.push((*model, name));
        }
    }
    weights
}

/// A weight that is merged; `None`: no model has it under its own name, so that it is passed over.
fn scheduled_tensor(
    architecture: &Architecture,
    (name, inputs): Weight,
    stores: &impl Fn(usize, &str) -> bool,
) -> Option<ScheduledTensor> {
    if !inputs.iter().any(|(model, name)| stores(*model, name)) {
        return None;
    }
    let load = |(model, name): (usize, String)| {
        let mut names = std::iter::once(name.as_str()).chain(architecture.stand_in(&name));
        let stored = names.find(|name| stores(model, name)).map(str::to_owned);
        Load { model, name, stored }
    };
    Some(ScheduledTensor {
        is_vocabulary: is_head(&name) || is_input_embedding(&name),
        name,
        loads: inputs.into_iter().map(load).collect(),
    })
}
