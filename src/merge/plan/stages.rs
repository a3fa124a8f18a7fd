//! Which models and layers each part of the output is made of.

use super::{PlannedSlice, Planner};
use crate::document::FieldError;
use crate::merge::MergeError;
use crate::merge::model::Model;
use crate::merge::specification::BaseUse;
use crate::recipe::{Body, Input, ModelReference, Parameters, RecipeError};

/// A model that takes part in a stage, with its layers.
pub(super) struct Source<'a> {
    /// Index of the model in [`super::MergePlan::models`].
    pub(super) index: usize,
    pub(super) model: &'a Model,
    /// The first of its layers that is used.
    pub(super) first_layer: usize,
    /// `None` for a base that the recipe does not list.
    pub(super) parameters: Option<&'a Parameters>,
}

/// Inputs that are merged with each other: the whole recipe in the `models` form, or one slice.
pub(super) struct Stage<'a> {
    /// The base is among them.
    pub(super) sources: Vec<Source<'a>>,
    /// Index of a model.
    pub(super) base: Option<usize>,
    /// How many layers each source gives.
    pub(super) layers: usize,
    /// The slice's parameters.
    pub(super) parameters: Option<&'a Parameters>,
}

impl Stage<'_> {
    /// Whether the base is among the models that take part.
    pub(super) fn lists_base(&self) -> bool {
        self.sources.iter().any(|source| self.base == Some(source.index))
    }

    pub(super) fn planned(&self) -> PlannedSlice {
        let sources = self.sources.iter().map(|source| (source.index, source.first_layer)).collect();
        PlannedSlice { sources, layers: self.layers }
    }
}

impl<'a> Planner<'a> {
    /// The index of a model.
    pub(super) fn find(&self, name: &ModelReference) -> Result<usize, MergeError> {
        self.models
            .iter()
            .position(|model| model.name == *name)
            .ok_or_else(|| MergeError::Internal(format!("model `{name}` of the recipe has not been opened")))
    }

    pub(super) fn stages(&self) -> Result<Vec<Stage<'a>>, MergeError> {
        let slices = match &self.recipe.body {
            Body::Models(inputs) => vec![(inputs.as_slice(), None, None)],
            Body::Slices(slices) => slices
                .iter()
                .map(|slice| (slice.sources.as_slice(), slice.base_model.as_ref(), Some(&slice.parameters)))
                .collect(),
        };
        let numbered = slices.into_iter().enumerate();
        numbered.map(|(index, (inputs, base, parameters))| self.stage(index, inputs, base, parameters)).collect()
    }

    /// `index` is the slice's, for messages.
    fn stage(
        &self,
        index: usize,
        inputs: &'a [Input],
        base: Option<&'a ModelReference>,
        parameters: Option<&'a Parameters>,
    ) -> Result<Stage<'a>, MergeError> {
        let base = base.or(self.recipe.base_model.as_ref()).map(|base| self.find(base)).transpose()?;
        let mut sources = Vec::new();
        let mut length = None;
        for (place, input) in inputs.iter().enumerate() {
            let (source, layers) = self.listed(input, index, place)?;
            let expected = *length.get_or_insert(layers);
            if layers != expected {
                return Err(MergeError::Incompatible(format!(
                    "`{}` has {layers} layers, `{}` has {expected}; use slices to merge parts of them",
                    input.model, inputs[0].model
                )));
            }
            sources.push(source);
        }
        let layers = length.unwrap_or(0);
        let is_listed = |index| sources.iter().any(|source: &Source<'_>| source.index == index);
        if let Some(index) = base.filter(|index| !is_listed(*index))
            && self.method.base != BaseUse::None
        {
            // In the `models` form only: slices list their base.
            let model = &self.models[index];
            if model.layout.count != layers {
                return Err(MergeError::Incompatible(format!(
                    "the base model `{}` has {} layers, `{}` has {layers}",
                    model.name, model.layout.count, inputs[0].model
                )));
            }
            sources.push(Source { index, model, first_layer: 0, parameters: None });
        }
        Ok(Stage { sources, base, layers, parameters })
    }

    /// A model that the recipe lists, and how many of its layers. For messages: where it stands in which slice.
    fn listed(&self, input: &'a Input, slice: usize, place: usize) -> Result<(Source<'a>, usize), MergeError> {
        let index = self.find(&input.model)?;
        let model = &self.models[index];
        let count = model.layout.count;
        let (first_layer, end) = input.layer_range.unwrap_or((0, count));
        if end > count {
            let has = match count {
                0 => "has no numbered layers; merge it whole, in the `models` form".to_owned(),
                count => format!("has {count} layers"),
            };
            let reason = format!("layers {first_layer} to {end} of `{}` are asked for, but it {has}", input.model);
            let key = format!("slices[{slice}].sources[{place}].layer_range");
            return Err(RecipeError::from(FieldError::new(key, reason)).into());
        }
        Ok((Source { index, model, first_layer, parameters: Some(&input.parameters) }, end - first_layer))
    }
}
