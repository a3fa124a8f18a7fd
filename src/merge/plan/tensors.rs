//! What each output tensor is made of, and by which parameters.

use std::collections::{BTreeMap, BTreeSet};

use super::shapes::common_shape;
use super::stages::{Source, Stage};
use super::{Action, PlannedInput, PlannedTensor, Planner};
use crate::checkpoint::{Dtype, TensorInfo, is_batch_counter, is_head, is_rotary_table, is_unread, rename_hint};
use crate::merge::MergeError;
use crate::merge::mergekit_order::leaves_out;
use crate::merge::model::Model;
use crate::merge::parameters::{ParameterValue, ResolvedParameters, depth, of_scope, resolve};
use crate::merge::specification::{BaseUse, InputCount, ParameterScope, Survivor};
use crate::recipe::{Body, ModelReference, Parameters};

impl<'a> Planner<'a> {
    /// All output tensors, in order of names. `prefix` is what stands before a layer's number.
    pub(super) fn tensors(
        &self,
        stages: &[Stage<'a>],
        prefix: &str,
        donor: &'a Model,
    ) -> Result<Vec<PlannedTensor>, MergeError> {
        let mut planned = BTreeMap::new();
        let outside = |stage: &Stage<'a>, first: bool| -> BTreeSet<&'a str> {
            let names = stage
                .sources
                .iter()
                .flat_map(|source| if first { &source.model.layout.first } else { &source.model.layout.last });
            names.map(String::as_str).collect()
        };
        if let (Some(start), Some(end)) = (stages.first(), stages.last()) {
            let mut at_end = outside(end, false);
            if !donor.checkpoint.ties_head() {
                // The last slice's models may tie the head that the output has to have.
                at_end.extend(donor.layout.last.iter().map(String::as_str).filter(|name| is_head(name)));
            }
            for (stage, names) in [(start, outside(start, true)), (end, at_end)] {
                for name in names {
                    let inputs = |source: &Source<'a>| (source.model.layer_of(name).is_none()).then(|| name.to_owned());
                    if let Some(tensor) = self.tensor(stage, name, self.place_in_tower(stage, name), inputs)? {
                        planned.insert(name.to_owned(), tensor);
                    }
                }
            }
        }
        let mut output_layer = 0;
        for stage in stages {
            for layer in 0..stage.layers {
                let suffixes: BTreeSet<&'a str> = stage
                    .sources
                    .iter()
                    .flat_map(|source| source.model.layer_suffixes(source.first_layer + layer))
                    .map(String::as_str)
                    .collect();
                for suffix in suffixes {
                    let name = format!("{prefix}{output_layer}.{suffix}");
                    let input = |source: &Source<'a>| Some(format!("{prefix}{}.{suffix}", source.first_layer + layer));
                    if let Some(tensor) = self.tensor(stage, &name, Some((layer, stage.layers)), input)? {
                        planned.insert(name, tensor);
                    }
                }
                output_layer += 1;
            }
        }
        Ok(planned.into_values().collect())
    }

    /// Where a tensor outside the layers stands in a tower of its own. Slices know layers only.
    fn place_in_tower(&self, stage: &Stage<'a>, name: &str) -> Option<(usize, usize)> {
        match &self.recipe.body {
            Body::Models(_) => stage.sources.iter().find_map(|source| source.model.place_in_tower(name)),
            Body::Slices(_) => None,
        }
    }

    /// Plans one output tensor; `None`: no input has it. `layer` is its place among the layers of the stage, or in a tower.
    fn tensor(
        &self,
        stage: &Stage<'a>,
        name: &str,
        layer: Option<(usize, usize)>,
        input_name: impl Fn(&Source<'a>) -> Option<String>,
    ) -> Result<Option<PlannedTensor>, MergeError> {
        let found = self.find_inputs(stage, name, input_name)?;
        let Some(first) = found.first() else { return Ok(None) };
        let listed_base = found.iter().find(|input| stage.base == Some(input.source.index));
        let is_counter = is_batch_counter(name);
        if is_counter || found.iter().all(|input| is_unread(input.info)) {
            if is_rotary_table(name) && listed_base.is_none() && stage.lists_base() {
                return Ok(None);
            }
            let given = listed_base.unwrap_or(first);
            let others = found.iter().filter(|other| is_counter && !std::ptr::eq(*other, given));
            let action = Action::Copy(std::iter::once(given).chain(others).map(Found::planned).collect());
            let (shape, dtype) = (given.info.shape.clone(), given.info.dtype);
            return Ok(Some(PlannedTensor { name: name.to_owned(), shape, dtype, action }));
        }
        let shape = common_shape(name, &found, &self.vocabulary)?;
        let stored = listed_base.unwrap_or(first).info.model_dtype();
        if found.iter().any(|input| input.info.float().is_none()) {
            let action = Action::Copy(found.iter().map(Found::planned).collect());
            return Ok(Some(PlannedTensor { name: name.to_owned(), shape, dtype: stored, action }));
        }
        let dtype = self.recipe.out_dtype.or(self.recipe.dtype).map_or(stored, Dtype::stored);
        let action = self.action(stage, name, depth(layer), &found)?;
        Ok(action.map(|action| PlannedTensor { name: name.to_owned(), shape, dtype, action }))
    }

    /// What is done for a tensor of floats that these models have; `None`: it is left out.
    fn action(
        &self,
        stage: &Stage<'a>,
        name: &str,
        depth: f64,
        found: &[Found<'a, '_>],
    ) -> Result<Option<Action>, MergeError> {
        let is_base = |input: &&Found<'_, '_>| stage.base == Some(input.source.index);
        let base = found.iter().find(is_base).filter(|_| self.method.base != BaseUse::None);
        let is_apart = matches!(self.method.base, BaseUse::Required | BaseUse::Optional);
        let merged: Vec<&Found<'a, '_>> = found.iter().filter(|input| !is_apart || !is_base(input)).collect();
        let takes_base = match self.method.base {
            BaseUse::Required => true,
            // Vectors of the models themselves would be another merge than that of their task vectors.
            BaseUse::Optional => stage.base.is_some(),
            BaseUse::None | BaseUse::Input => false,
        };
        let lacks_base = takes_base && base.is_none();
        let too_few = match self.method.inputs {
            InputCount::Exactly(count) | InputCount::AtLeast(count) => merged.len() < count,
        };
        if lacks_base || too_few {
            let gone = base.is_none() && self.method.survivor == Survivor::BaseOrNothing;
            return match self.survivor(base, &merged) {
                Some(survivor) => Ok(Some(Action::PassThrough(survivor.planned()))),
                None if gone => Ok(None),
                None => Err(self.cannot_merge(name, &merged, lacks_base)),
            };
        }
        Ok(Some(Action::Merge {
            inputs: merged.iter().map(|input| input.planned()).collect(),
            base: base.map(Found::planned),
            parameters: self.parameters(stage, name, depth, &merged)?,
        }))
    }

    /// What passes through where there is too little to merge, by the method's rule; `None`: nothing.
    fn survivor<'f>(&self, base: Option<&'f Found<'a, 'f>>, merged: &[&'f Found<'a, 'f>]) -> Option<&'f Found<'a, 'f>> {
        match self.method.survivor {
            // Without another model the base stays as it is.
            Survivor::None => base.filter(|_| merged.is_empty()),
            Survivor::Any => match (base, merged) {
                (Some(base), []) => Some(base),
                (Some(_), [input]) if self.method.base == BaseUse::Input => Some(*input),
                (None, [input]) => Some(*input),
                _ => None,
            },
            Survivor::Base | Survivor::BaseOrNothing => base,
        }
    }

    fn cannot_merge(&self, name: &str, merged: &[&Found<'a, '_>], lacks_base: bool) -> MergeError {
        let names: Vec<_> = merged.iter().map(|input| format!("`{}`", input.source.model.name)).collect();
        let reason = match lacks_base {
            true => "the base model lacks it; there is no task vector without it".to_owned(),
            false => format!("too few models have it for {}", self.method.name),
        };
        MergeError::Incompatible(format!("tensor `{name}` (of {}) cannot be merged: {reason}", names.join(", ")))
    }

    /// The sources that have the tensor, in order. A head that a model ties is its input embedding.
    fn find_inputs<'b>(
        &self,
        stage: &'b Stage<'a>,
        name: &str,
        input_name: impl Fn(&Source<'a>) -> Option<String>,
    ) -> Result<Vec<Found<'a, 'b>>, MergeError> {
        let (mut found, mut lacking) = (Vec::new(), Vec::new());
        for source in &stage.sources {
            let tensors = source.model.checkpoint.tensors();
            let own = input_name(source).and_then(|name| tensors.get(&name));
            match own.or_else(|| tied_embedding(source.model, name)) {
                Some(info) => found.push(Found { source, tensor: info.name.clone(), info }),
                None => lacking.push(source),
            }
        }
        let stored = found.iter().map(|input: &Found<'_, '_>| input.info);
        let optional = is_head(name) || may_be_missing(name, stored);
        let is_of_no_use = || {
            // The head of another task, say, or layers that predict further tokens; and what loaders tie to its equal.
            stage.sources.iter().all(|source| leaves_out(source.model, name))
                || found.iter().all(|input: &Found<'_, '_>| input.source.model.is_tied_copy(name))
        };
        match (found.first(), lacking.first()) {
            (Some(_), Some(_)) if !optional && is_of_no_use() => Ok(Vec::new()),
            (Some(has), Some(lacks)) if !optional => {
                let advice = match has.source.model.layer_of(name) {
                    None => "; if it is of no use to the merge, take it out of the one model's files",
                    Some(_) => "",
                };
                let renamed = [has.source.model, lacks.model].into_iter().find(|model| model.checkpoint.is_renamed());
                let hint = renamed.map(|model| rename_hint(&format!("`{}`", model.name), &model.checkpoint));
                let advice = hint.map_or_else(|| advice.to_owned(), |hint| format!("; {hint}"));
                Err(MergeError::Incompatible(format!(
                    "model `{}` ({}) has tensor `{name}`, model `{}` ({}) lacks it: they have different architectures{advice}",
                    has.source.model.name,
                    has.source.model.checkpoint.path().display(),
                    lacks.model.name,
                    lacks.model.checkpoint.path().display()
                )))
            }
            _ => Ok(found),
        }
    }

    fn parameters(
        &self,
        stage: &Stage<'a>,
        name: &str,
        depth: f64,
        inputs: &[&Found<'a, '_>],
    ) -> Result<ResolvedParameters, MergeError> {
        let shared: Vec<&Parameters> = stage.parameters.into_iter().chain([&self.recipe.parameters]).collect();
        let resolve_all = |scope, scopes: &[&Parameters], tensor: &str, model: Option<&ModelReference>| {
            let mut values: BTreeMap<&'static str, ParameterValue> = BTreeMap::new();
            for specification in of_scope(self.method, scope) {
                let of_model = || model.map(|model| format!(" of model `{model}`")).unwrap_or_default();
                let value = resolve(specification, scopes, tensor, depth)
                    .map_err(|reason| MergeError::Plan(format!("{reason} (tensor `{tensor}`{})", of_model())))?
                    .ok_or_else(|| {
                        MergeError::Plan(format!(
                            "{} needs a `{}` for tensor `{tensor}`{}; no scope gives one, and no filter matches: add an \
                             entry without a filter",
                            self.method.name,
                            specification.name,
                            of_model()
                        ))
                    })?;
                values.insert(specification.name, value);
            }
            Ok::<_, MergeError>(values)
        };
        let tensor = resolve_all(ParameterScope::Tensor, &shared, name, None)?;
        let mut sources = Vec::with_capacity(inputs.len());
        for Found { source, tensor, .. } in inputs.iter().copied() {
            // Filters see a tied head under its own name, not under that of the embedding that it is.
            let tensor = if is_head(name) { name } else { tensor };
            let scopes: Vec<&Parameters> = source.parameters.into_iter().chain(shared.iter().copied()).collect();
            sources.push(resolve_all(ParameterScope::Source, &scopes, tensor, Some(&source.model.name))?);
        }
        Ok(ResolvedParameters { tensor, sources })
    }
}

/// Whether models that are merged need not all have a tensor outside their heads: counters, and what no loader reads or
/// holds no floats where it is `stored`, are taken from those that have it.
pub(in crate::merge) fn may_be_missing<'a>(name: &str, mut stored: impl Iterator<Item = &'a TensorInfo>) -> bool {
    is_batch_counter(name) || stored.all(|info| info.float().is_none() || is_unread(info))
}

fn tied_embedding<'a>(model: &'a Model, name: &str) -> Option<&'a TensorInfo> {
    if !(is_head(name) && name.ends_with(".weight") && model.checkpoint.ties_head()) {
        return None;
    }
    model.checkpoint.input_embedding()
}

/// A tensor of a source that an output tensor is made of.
pub(super) struct Found<'a, 'b> {
    pub(super) source: &'b Source<'a>,
    /// Its name in the source.
    tensor: String,
    pub(super) info: &'a TensorInfo,
}

impl Found<'_, '_> {
    fn planned(&self) -> PlannedInput {
        PlannedInput { model: self.source.index, tensor: self.tensor.clone() }
    }
}
