//! The order in which mergekit goes through tensors, which its one stream of masks follows.

use super::MergeError;
use super::plan::{MergePlan, PlannedTensor};
use crate::checkpoint::is_head;

/// What is said where an input embedding stands in for a head ([`fills_head`]).
pub(super) const UNCERTAIN_ORDER: &str = "some models tie the head to the embedding and others do not: mergekit may have drawn the masks of these two tensors \
     in the other order, which follows from a hash table of Python's";

/// The last of a tensor's inputs' names, which are not the output's where layers move or a head is tied.
fn last_input(tensor: &PlannedTensor) -> Option<&str> {
    tensor.inputs.iter().chain(&tensor.base).map(|input| input.tensor.as_str()).max()
}

/// Whether an input embedding stands in for a head that another model has.
pub(super) fn fills_head(plan: &MergePlan) -> bool {
    let heads = plan.tensors.iter().filter(|tensor| is_head(&tensor.name)).filter_map(last_input);
    let mut others = plan.tensors.iter().filter(|tensor| !is_head(&tensor.name)).filter_map(last_input);
    let heads: Vec<&str> = heads.collect();
    others.any(|other| heads.contains(&other))
}

/// Tensors with their places, as mergekit goes through them: by the last of their inputs' names. An embedding comes
/// before the head that it fills; with many models it is the other way round at times, by the order of a hash table of
/// Python's.
///
/// # Errors
/// A layer is an input of several output layers: mergekit's order then is that of such a table throughout.
pub(super) fn in_order_of_inputs(plan: &MergePlan) -> Result<Vec<(u64, &PlannedTensor)>, MergeError> {
    let last = |tensor: &PlannedTensor| last_input(tensor).map(|name| (name.to_owned(), is_head(&tensor.name)));
    let mut tensors: Vec<(u64, &PlannedTensor)> = (0..).zip(&plan.tensors).collect();
    tensors.sort_by_cached_key(|(_, tensor)| last(tensor));
    match tensors.windows(2).find(|pair| last(pair[0].1) == last(pair[1].1)) {
        Some(pair) => Err(MergeError::Plan(format!(
            "`{}` and `{}` are made of the same layer of a model, for which mergekit's masks cannot be drawn: its order of tensors \
             is not defined there; use --dare-masks native",
            pair[0].1.name, pair[1].1.name
        ))),
        None => Ok(tensors),
    }
}
