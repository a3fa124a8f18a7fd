//! Whether models have the weights that loaders expect of them: what a merge lacks, they fill with random numbers.
//!
//! Which weights a layer needs is known of the architectures that mergekit has a table of, and these are refused as
//! mergekit refuses them. Of others only the number of layers is looked at, and a person told.

use std::collections::HashSet;

use super::MergeError;
use super::mergekit_order::{leaves_out, weights_of_every_layer};
use super::model::Model;
use super::plan::{MergePlan, is_rotary_table};
use super::stacked_config::declared_layers;
use crate::checkpoint::is_head;
use crate::recipe::{Body, Recipe};

/// Tensors that a note lists.
const LISTED: usize = 5;

/// Refuses layers of known architectures that lack what the model's other layers have, and models with fewer layers
/// than their configuration says.
///
/// # Errors
/// [`MergeError::Incompatible`] with the model and the first weight that it lacks.
pub(super) fn check_complete(plan: &MergePlan, models: &[Model], recipe: &Recipe) -> Result<(), MergeError> {
    for slice in &plan.slices {
        for (index, first_layer) in &slice.sources {
            let model = &models[*index];
            let Some(weights) = weights_of_every_layer(model) else { continue };
            if let Some((declared, stored)) = missing_layers(model, recipe) {
                return Err(MergeError::Incompatible(format!(
                    "{} is incomplete: config.json says that it has {declared} layers, and there is no tensor of \
                     `{}{stored}`; is the download complete? If the layers were cut off on purpose, correct the number in \
                     config.json",
                    named(model),
                    model.layout.prefix
                )));
            }
            if let Some((layer, weight)) = missing_weight(model, *first_layer, slice.layers, weights) {
                return Err(MergeError::Incompatible(format!(
                    "{} is incomplete: it lacks `{}{layer}.{weight}`, which its other layers have; is the download \
                     complete?",
                    named(model),
                    model.layout.prefix
                )));
            }
        }
    }
    Ok(())
}

/// Says which models of other architectures have fewer layers than their configuration says.
pub(super) fn notes_of_missing_layers(plan: &MergePlan, models: &[Model], recipe: &Recipe) -> Vec<String> {
    let used = plan.used_models().into_iter().map(|index| &models[index]);
    let note = |model: &Model| {
        // Layers that share one block of weights are stored once.
        let (declared, stored) = missing_layers(model, recipe).filter(|(_, stored)| *stored > 1)?;
        Some(format!(
            "config.json of {} says that it has {declared} layers, and there are tensors of {stored}: loaders may fill \
             the others with random numbers",
            named(model)
        ))
    };
    used.filter_map(note).collect()
}

/// Says which tensors outside the layers are left out because only some of the models have them, and mergekit's list of
/// their architecture does not.
pub(super) fn note_of_strays(plan: &MergePlan, models: &[Model]) -> Option<String> {
    let written: HashSet<&str> = plan.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let strays: Vec<String> = plan
        .used_models()
        .into_iter()
        .flat_map(|index| models[index].checkpoint.tensors().keys().map(move |name| (&models[index], name)))
        .filter(|(model, name)| !written.contains(name.as_str()) && leaves_out(model, name))
        .filter(|(_, name)| !is_head(name) && !is_rotary_table(name))
        .map(|(model, name)| format!("`{name}` of `{}`", model.name))
        .collect();
    let more = if strays.len() > LISTED { format!(" and {} more", strays.len() - LISTED) } else { String::new() };
    (!strays.is_empty()).then(|| {
        let listed = strays.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
        format!("left out, here as in mergekit, because other models lack them: {listed}{more}")
    })
}

fn named(model: &Model) -> String {
    format!("`{}` ({})", model.name, model.checkpoint.path().display())
}

/// How many layers the configuration says, and the smaller number that there are, of a model that is merged whole.
fn missing_layers(model: &Model, recipe: &Recipe) -> Option<(usize, usize)> {
    let (declared, stored) = (declared_layers(model.checkpoint.config())?, model.layout.count);
    (matches!(recipe.body, Body::Models(_)) && stored > 0 && declared > stored).then_some((declared, stored))
}

/// The first layer of a range that lacks a weight which another layer of the model has, and the weight.
fn missing_weight(
    model: &Model,
    first_layer: usize,
    layers: usize,
    weights: impl Iterator<Item = &'static str>,
) -> Option<(usize, &'static str)> {
    let stored: HashSet<&str> =
        (0..model.layout.count).flat_map(|layer| model.layer_suffixes(layer)).map(String::as_str).collect();
    let expected: Vec<&'static str> = weights.filter(|weight| stored.contains(weight)).collect();
    (first_layer..first_layer + layers).find_map(|layer| {
        let own: HashSet<&str> = model.layer_suffixes(layer).iter().map(String::as_str).collect();
        expected.iter().find(|weight| !own.contains(**weight)).map(|weight| (layer, *weight))
    })
}
