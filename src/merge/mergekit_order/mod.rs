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

use std::collections::{BTreeSet, HashMap};

use super::MergeError;
use super::model::Model;
use super::plan::{Action, MergePlan, PlannedTensor};
use crate::checkpoint::is_head;
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
}

/// The last of a tensor's inputs' names, which are not the output's where layers move or a head is tied.
fn last_input(tensor: &PlannedTensor) -> Option<&str> {
    tensor.action.inputs().map(|input| input.tensor.as_str()).max()
}

/// Puts the tensors of a plan in the order in which mergekit draws their masks.
///
/// # Errors
/// A layer is an input of several output layers, and mergekit's schedule is not known for the models.
pub(super) fn drawing_order<'a>(
    plan: &'a MergePlan,
    models: &[Model],
    vocabulary: VocabularyStep,
) -> Result<DrawingOrder<'a>, MergeError> {
    let mut tensors: Vec<(u64, &PlannedTensor)> = (0..).zip(&plan.tensors).collect();
    tensors.sort_by_cached_key(|(_, tensor)| (last_input(tensor).map(str::to_owned), is_head(&tensor.name)));
    let is_shared = |pair: &&[(u64, &PlannedTensor)]| last_input(pair[0].1) == last_input(pair[1].1);
    if !tensors.windows(2).any(|pair| is_shared(&pair)) {
        return Ok(DrawingOrder { tensors, is_certain: true });
    }
    if let Some(places) = scheduled_places(plan, models, vocabulary) {
        tensors.sort_by_key(|(_, tensor)| places.get(&tensor.name));
        return Ok(DrawingOrder { tensors, is_certain: true });
    }
    let is_layer = |pair: &&[(u64, &PlannedTensor)]| is_head(&pair[0].1.name) == is_head(&pair[1].1.name);
    match tensors.windows(2).filter(is_shared).find(is_layer) {
        Some(pair) => Err(MergeError::Plan(format!(
            "`{}` and `{}` are made of the same layer of a model, for which mergekit's masks cannot be drawn: its order of tensors \
             is not known for these models; use --dare-masks native",
            pair[0].1.name, pair[1].1.name
        ))),
        None => Ok(DrawingOrder { tensors, is_certain: false }),
    }
}

/// The place of each tensor in mergekit's schedule, by name; `None` where the models' architecture is not known here, or
/// mergekit would merge other tensors than the plan does.
fn scheduled_places(plan: &MergePlan, models: &[Model], vocabulary: VocabularyStep) -> Option<HashMap<String, usize>> {
    let architecture = common_architecture(plan, models)?;
    let stores = |model: usize, name: &str| models[model].checkpoint.tensors().contains_key(name);
    let scheduled = scheduled_tensors(architecture, &plan.slices, stores);
    let by_name: HashMap<&str, &ScheduledTensor> =
        scheduled.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let agrees = |tensor: &PlannedTensor| {
        let scheduled = by_name.get(tensor.name.as_str())?;
        (!matches!(tensor.action, Action::Merge { .. }) || has_same_inputs(tensor, scheduled)).then_some(())
    };
    plan.tensors.iter().try_for_each(agrees)?;
    let places = order(&scheduled, vocabulary).into_iter().enumerate();
    Some(places.map(|(place, index)| (scheduled[index].name.clone(), place)).collect())
}

/// The architecture of all models that a plan uses.
fn common_architecture(plan: &MergePlan, models: &[Model]) -> Option<&'static Architecture> {
    let expected = architecture(&models[plan.donor])?;
    let mut sources = plan.slices.iter().flat_map(|slice| &slice.sources);
    let is_expected = |model: usize| architecture(&models[model]).is_some_and(|found| std::ptr::eq(found, expected));
    sources.all(|(model, _)| is_expected(*model)).then_some(expected)
}

fn architecture(model: &Model) -> Option<&'static Architecture> {
    match model.checkpoint.config().get("architectures")?.as_array()?.as_slice() {
        [name] => Architecture::named(name.as_str()?),
        _ => None,
    }
}

fn has_same_inputs(planned: &PlannedTensor, scheduled: &ScheduledTensor) -> bool {
    let inputs = planned.action.inputs().map(|input| (input.model, input.tensor.as_str()));
    let loads = scheduled.loads.iter().filter_map(|load| Some((load.model, load.stored.as_deref()?)));
    inputs.collect::<BTreeSet<_>>() == loads.collect()
}
