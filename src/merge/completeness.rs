//! Whether models have the weights that loaders expect of them: what a merge lacks, they fill with random numbers.
//!
//! What is wanted is known of the architectures that mergekit has a table of, and models without it are refused as mergekit
//! refuses them. Of others only the number of layers is looked at, and a person told.

use std::collections::HashSet;

use super::MergeError;
use super::mergekit_order::{leaves_out, wanted};
use super::model::Model;
use super::plan::MergePlan;
use super::stacked_config::declared_layers;
use crate::checkpoint::{is_head, is_unread};
use crate::plural::counted;
use crate::recipe::{Body, Recipe};

/// Tensors that a note lists.
const LISTED: usize = 5;

/// Refuses models of known architectures that lack weights which are wanted of them: those outside the layers, what the
/// model's other layers have, and layers that the configuration counts.
///
/// # Errors
/// [`MergeError::Incompatible`] with the model and the first weight that it lacks.
pub(super) fn check_complete(plan: &MergePlan, models: &[Model], recipe: &Recipe) -> Result<(), MergeError> {
    let count = plan.slices.len();
    for (place, slice) in plan.slices.iter().enumerate() {
        for (index, first_layer) in &slice.sources {
            let part =
                Part { first_layer: *first_layer, layers: slice.layers, first: place == 0, last: place + 1 == count };
            check_part(&models[*index], recipe, part)?;
        }
    }
    Ok(())
}

/// Checks that the whole models of a recipe that could not be planned are complete: that one of them is not may be why.
///
/// # Errors
/// As [`check_complete`].
pub(super) fn check_models(models: &[Model], recipe: &Recipe) -> Result<(), MergeError> {
    let named = recipe.models();
    let mut used = models.iter().filter(|model| named.contains(&&model.name));
    used.try_for_each(|model| {
        let part = Part { first_layer: 0, layers: model.layout.count, first: true, last: true };
        check_part(model, recipe, part)
    })
}

/// What is merged of a model.
struct Part {
    first_layer: usize,
    layers: usize,
    /// Whether the weights before the layers are, too.
    first: bool,
    /// Whether those after the layers are, too.
    last: bool,
}

fn check_part(model: &Model, recipe: &Recipe, part: Part) -> Result<(), MergeError> {
    let Some(wanted) = wanted(model) else { return Ok(()) };
    let incomplete = |what: String| Err(MergeError::Incompatible(format!("{} is incomplete: {what}", named(model))));
    let prefix = &model.layout.prefix;
    if let Some((declared, stored)) = missing_layers(model, recipe) {
        return incomplete(format!(
            "config.json says that it has {}, and there is no tensor of `{prefix}{stored}`; is the download complete? If \
             the layers were cut off on purpose, correct the number in config.json",
            counted(declared as u64, "layer")
        ));
    }
    let before = wanted.before.iter().filter(|_| part.first);
    let mut outside = before.chain(wanted.after.iter().filter(|_| part.last));
    if let Some(name) = outside.find(|name| !model.checkpoint.tensors().contains_key(**name)) {
        return incomplete(format!("it lacks `{name}`; is the download complete?"));
    }
    match missing_weight(model, part.first_layer, part.layers, &wanted.of_every_layer) {
        Some((layer, weight)) => incomplete(format!(
            "it lacks `{prefix}{layer}.{weight}`, which its other layers have; is the download complete?"
        )),
        None => Ok(()),
    }
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
        .flat_map(|index| models[index].checkpoint.tensors().values().map(move |info| (&models[index], info)))
        .filter(|(model, info)| !written.contains(info.name.as_str()) && leaves_out(model, &info.name))
        .filter(|(model, info)| !is_head(&info.name) && !is_unread(info) && !model.is_tied_copy(&info.name))
        .map(|(model, info)| format!("`{}` of `{}`", info.name, model.name))
        .collect();
    let more = if strays.len() > LISTED { format!(" and {} more", strays.len() - LISTED) } else { String::new() };
    (!strays.is_empty()).then(|| {
        let listed = strays.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
        format!("left out, here as in mergekit, because only some of the models have it: {listed}{more}")
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
    weights: &[&'static str],
) -> Option<(usize, &'static str)> {
    let stored: HashSet<&str> =
        (0..model.layout.count).flat_map(|layer| model.layer_suffixes(layer)).map(String::as_str).collect();
    let expected: Vec<&'static str> = weights.iter().copied().filter(|weight| stored.contains(weight)).collect();
    (first_layer..first_layer + layers).find_map(|layer| {
        let own: HashSet<&str> = model.layer_suffixes(layer).iter().map(String::as_str).collect();
        expected.iter().find(|weight| !own.contains(**weight)).map(|weight| (layer, *weight))
    })
}
