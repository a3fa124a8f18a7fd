//! The order in which mergekit goes through tensors, which its one stream of masks follows.
//!
//! It is the order of the last of a tensor's inputs' names. Where two tensors have the same last name, since a layer is
//! used twice or an embedding fills a head, mergekit's schedule decides (`schedule`), which needs to know all weights of
//! the architecture (`architectures`, `planned`) and a set of Python's (`integer_set`).

mod architectures;
mod integer_set;
mod planned;
mod schedule;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};

use super::MergeError;
use super::model::Model;
use super::plan::{Action, MergePlan, PlannedTensor};
use crate::checkpoint::is_head;
use crate::plural::counted;
use architectures::Architecture;
use planned::scheduled_tensors;
use schedule::{ScheduledTensor, order};

pub(super) use schedule::VocabularyStep;

/// What is said where the order is not certain.
pub(super) const UNCERTAIN_ORDER: &str = "some models tie the head to the embedding and others do not: mergekit may have drawn the masks of these two tensors \
     in the other order, which is not known for this architecture";

/// The tensors of a plan as mergekit draws their masks.
pub(super) struct DrawingOrder<'a> {
    /// With their places in the plan.
    pub(super) tensors: Vec<(u64, &'a PlannedTensor)>,
    /// Whether the order is known to be mergekit's; else it may draw an embedding after the head that it fills.
    pub(super) is_certain: bool,
    /// Merged tensors that mergekit leaves out.
    left_out: Vec<&'a str>,
}

impl DrawingOrder<'_> {
    /// Says which tensors mergekit leaves out.
    pub(super) fn note_of_left_out(&self) -> Option<String> {
        let first = self.left_out.first()?;
        let tensors = counted(self.left_out.len() as u64, "tensor");
        Some(format!(
            "mergekit leaves out {tensors} (`{first}` first) that its list of the architecture lacks, and draws no masks for them; \
             here they are merged, with masks that are drawn after all others"
        ))
    }
}

/// The last of a tensor's inputs' names, which are not the output's where layers move or a head is tied.
fn last_input(tensor: &PlannedTensor) -> Option<&str> {
    tensor.action.inputs().map(|input| input.tensor.as_str()).max()
}

/// Puts the tensors of a plan in the order in which mergekit draws their masks. Those that mergekit leaves out, because
/// its table of the architecture lacks them, draw theirs after all others.
///
/// # Errors
/// A layer is an input of several output layers, and mergekit's schedule is not known for the models.
pub(super) fn drawing_order<'a>(
    plan: &'a MergePlan,
    models: &[Model],
    vocabulary: VocabularyStep,
) -> Result<DrawingOrder<'a>, MergeError> {
    let scheduled = common_architecture(plan, models).map(|architecture| {
        let stores = |model: usize, name: &str| models[model].checkpoint.tensors().contains_key(name);
        scheduled_tensors(architecture, &plan.slices, stores)
    });
    let known: Option<HashSet<&str>> =
        scheduled.as_ref().map(|scheduled| scheduled.iter().map(|tensor| tensor.name.as_str()).collect());
    let is_left_out =
        |tensor: &PlannedTensor| known.as_ref().is_some_and(|known| !known.contains(tensor.name.as_str()));
    let mut tensors: Vec<(u64, &PlannedTensor)> = (0..).zip(&plan.tensors).collect();
    tensors.sort_by_cached_key(|(_, tensor)| {
        (is_left_out(tensor), last_input(tensor).map(str::to_owned), is_head(&tensor.name))
    });
    let is_shared =
        |pair: &&[(u64, &PlannedTensor)]| !is_left_out(pair[1].1) && last_input(pair[0].1) == last_input(pair[1].1);
    let is_merged = |tensor: &&PlannedTensor| matches!(tensor.action, Action::Merge { .. });
    let left_out = plan.tensors.iter().filter(|tensor| is_left_out(tensor)).filter(is_merged);
    let left_out: Vec<&str> = left_out.map(|tensor| tensor.name.as_str()).collect();
    if !tensors.windows(2).any(|pair| is_shared(&pair)) {
        return Ok(DrawingOrder { tensors, is_certain: true, left_out });
    }
    if let Some(places) = scheduled.as_ref().and_then(|scheduled| places(plan, scheduled, vocabulary)) {
        tensors.sort_by_key(|(_, tensor)| places.get(tensor.name.as_str()).copied().unwrap_or(usize::MAX));
        return Ok(DrawingOrder { tensors, is_certain: true, left_out });
    }
    let is_layer = |pair: &&[(u64, &PlannedTensor)]| is_head(&pair[0].1.name) == is_head(&pair[1].1.name);
    match tensors.windows(2).filter(is_shared).find(is_layer) {
        Some(pair) => Err(MergeError::Plan(format!(
            "`{}` and `{}` are made of the same layer of a model, for which mergekit's masks cannot be drawn: its order of tensors \
             is not known for these models; use --dare-masks native",
            pair[0].1.name, pair[1].1.name
        ))),
        None => Ok(DrawingOrder { tensors, is_certain: false, left_out }),
    }
}

/// The place of each tensor in mergekit's schedule, by name; `None` where mergekit would merge tensors of other inputs than
/// the plan does.
fn places<'a>(
    plan: &MergePlan,
    scheduled: &'a [ScheduledTensor],
    vocabulary: VocabularyStep,
) -> Option<HashMap<&'a str, usize>> {
    let by_name: HashMap<&str, &ScheduledTensor> =
        scheduled.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let differs = |tensor: &PlannedTensor| {
        let scheduled = by_name.get(tensor.name.as_str());
        let is_merged = matches!(tensor.action, Action::Merge { .. });
        is_merged && scheduled.is_some_and(|scheduled| !has_same_inputs(tensor, scheduled))
    };
    if plan.tensors.iter().any(differs) {
        return None;
    }
    let places = order(scheduled, vocabulary).into_iter().enumerate();
    Some(places.map(|(place, index)| (scheduled[index].name.as_str(), place)).collect())
}

/// The architecture of all models that a plan uses.
fn common_architecture(plan: &MergePlan, models: &[Model]) -> Option<&'static Architecture> {
    let expected = architecture(&models[plan.donor])?;
    let mut sources = plan.slices.iter().flat_map(|slice| &slice.sources);
    let is_expected = |model: usize| architecture(&models[model]).is_some_and(|found| std::ptr::eq(found, expected));
    sources.all(|(model, _)| is_expected(*model)).then_some(expected)
}

/// What mergekit wants of a model.
pub(super) struct Wanted {
    /// Names of weights before the layers.
    pub(super) before: Vec<&'static str>,
    /// What follows the number in the names of each layer's weights.
    pub(super) of_every_layer: Vec<&'static str>,
    /// Names of weights after the layers.
    pub(super) after: Vec<&'static str>,
}

/// The weights that mergekit wants of a model, heads left out, which may be tied; `None` where they are not known.
pub(super) fn wanted(model: &Model) -> Option<Wanted> {
    let architecture = architecture(model)?;
    let is_needed = |name: &&str| name.ends_with(".weight") && !is_head(name);
    Some(Wanted {
        before: architecture.before().filter(is_needed).collect(),
        of_every_layer: architecture.of_every_layer().collect(),
        after: architecture.after().filter(is_needed).collect(),
    })
}

/// Whether mergekit leaves out a tensor of this name, outside the layers: its list of the model's architecture, which is
/// known, lacks it.
pub(super) fn leaves_out(model: &Model, name: &str) -> bool {
    let is_listed = |architecture: &Architecture| {
        model.layer_of(name).is_some() || architecture.before().chain(architecture.after()).any(|listed| listed == name)
    };
    architecture(model).is_some_and(|architecture| !is_listed(architecture))
}

/// The architecture that a model says it is of, if its tensors are called as the list has them (those of GPT-2 may lack
/// their first part).
fn architecture(model: &Model) -> Option<&'static Architecture> {
    let [name] = model.checkpoint.config().get("architectures")?.as_array()?.as_slice() else { return None };
    let named = Architecture::named(name.as_str()?)?;
    (model.layout.prefix == named.prefix()).then_some(named)
}

fn has_same_inputs(planned: &PlannedTensor, scheduled: &ScheduledTensor) -> bool {
    let inputs = planned.action.inputs().map(|input| (input.model, input.tensor.as_str()));
    let loads = scheduled.loads.iter().filter_map(|load| Some((load.model, load.stored.as_deref()?)));
    inputs.collect::<BTreeSet<_>>() == loads.collect()
}
