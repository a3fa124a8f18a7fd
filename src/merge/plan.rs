//! From a recipe and opened checkpoints to what has to be computed: one entry for each output tensor.

mod shapes;

use std::collections::{BTreeMap, BTreeSet};

pub(super) use shapes::is_vocabulary;
use shapes::{Vocabulary, check_vocabulary, common_shape};

use super::MergeError;
use super::model::Model;
use super::output::tokenizer_model;
use super::parameters::{ParameterValue, ResolvedParameters, depth, of_scope, resolve};
use super::specification::{BaseUse, InputCount, MethodSpecification, ParameterScope, Survivor};
use super::vocabulary::rows_of_tokens;
use crate::checkpoint::{Dtype, TensorInfo, is_head, is_input_embedding};
use crate::recipe::{Body, ModelReference, Parameters, Recipe};

/// A tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedInput {
    /// Index into [`MergePlan::models`].
    pub model: usize,
    /// The tensor's name in that model; it differs from the output's where layers are stacked or a head is tied.
    pub tensor: String,
}

/// What is done for an output tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The method's arithmetic.
    Merge,
    /// The only input that is left, converted to the output dtype.
    PassThrough,
    /// Integers or truth values: copied, and refused where the inputs differ.
    Copy,
}

/// One output tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTensor {
    /// As it is written.
    pub name: String,
    /// As it is written: that of every input, less the rows that truncated embeddings lose.
    pub shape: Vec<usize>,
    /// As it is written.
    pub dtype: safetensors::Dtype,
    /// What is done for it.
    pub action: Action,
    /// In recipe order. The base is among them only for methods that take it as an input.
    pub inputs: Vec<PlannedInput>,
    /// The base's tensor, for methods that use a base; `None` where there is none, or nothing is merged.
    pub base: Option<PlannedInput>,
    /// What filters and gradients give for it; empty where nothing is merged.
    pub parameters: ResolvedParameters,
}

impl PlannedTensor {
    /// How many elements it has.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|length| *length as u64).product()
    }

    /// Bytes of its elements as they are written.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.bitsize() as u64 / 8
    }
}

/// A merge that fits its checkpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct MergePlan {
    /// The recipe's method.
    pub method: &'static MethodSpecification,
    /// Names of all opened models, by index.
    pub models: Vec<ModelReference>,
    /// In order of names.
    pub tensors: Vec<PlannedTensor>,
    /// The model whose configuration, side files and shard layout the output takes.
    pub donor: usize,
    /// The model and layer that each output layer takes its place in the configuration from.
    pub layers: Vec<(usize, usize)>,
    /// Rows that embeddings and heads are cut to because the models have different numbers of them: those of the tokens of
    /// the tokenizer that the recipe names.
    pub tokenizer_rows: Option<usize>,
    /// What the output is stacked of; one slice in the `models` form.
    pub slices: Vec<PlannedSlice>,
}

/// A run of output layers, and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSlice {
    /// Index of each model, and its first layer that is used; the base is among them, in recipe order.
    pub sources: Vec<(usize, usize)>,
    /// How many layers.
    pub layers: usize,
}

impl MergePlan {
    /// Bytes of all output tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::bytes).sum()
    }

    /// Indices of the models that are read, ascending.
    pub fn used_models(&self) -> BTreeSet<usize> {
        let inputs = self.tensors.iter().flat_map(|tensor| tensor.inputs.iter().chain(&tensor.base));
        inputs.map(|input| input.model).chain([self.donor]).collect()
    }
}

/// A model that takes part in a stage, with its layers.
struct Source<'a> {
    index: usize,
    model: &'a Model,
    first_layer: usize,
    parameters: Option<&'a Parameters>,
}

/// Inputs that are merged with each other: the whole recipe in the `models` form, or one slice.
struct Stage<'a> {
    sources: Vec<Source<'a>>,
    /// Index of a model.
    base: Option<usize>,
    layers: usize,
    parameters: Option<&'a Parameters>,
}

impl Stage<'_> {
    fn planned(&self) -> PlannedSlice {
        let sources = self.sources.iter().map(|source| (source.index, source.first_layer)).collect();
        PlannedSlice { sources, layers: self.layers }
    }
}

/// Plans the merge of `recipe` from `models`.
///
/// # Errors
/// The recipe is not valid, names a model or layer that is not there, leaves a parameter without a value, or its models
/// do not fit together.
pub(crate) fn plan(recipe: &Recipe, models: &[Model], truncate_embeddings: bool) -> Result<MergePlan, MergeError> {
    recipe.validate()?;
    plan_valid(recipe, models, truncate_embeddings).map_err(|error| match error {
        MergeError::Incompatible(reason) => match other_architecture(recipe, models) {
            Some(architectures) => MergeError::Incompatible(format!("{architectures}; {reason}")),
            None => MergeError::Incompatible(reason),
        },
        other => other,
    })
}

/// Two models of the recipe whose configurations name different architectures, where models do not fit together. Others
/// may: what counts is their tensors.
fn other_architecture(recipe: &Recipe, models: &[Model]) -> Option<String> {
    let named = recipe.models();
    let mut used = named.iter().filter_map(|name| models.iter().find(|model| model.name == **name));
    let typed = |model: &'_ Model| model.checkpoint.model_type().map(str::to_owned);
    let first = used.next()?;
    let expected = typed(first)?;
    let (other, found) = used.find_map(|model| Some((model, typed(model).filter(|found| *found != expected)?)))?;
    Some(format!(
        "`{}` ({}) is a {found} model, `{}` ({}) a {expected} model (model_type in config.json)",
        other.name,
        other.checkpoint.path().display(),
        first.name,
        first.checkpoint.path().display()
    ))
}

fn plan_valid(recipe: &Recipe, models: &[Model], truncate_embeddings: bool) -> Result<MergePlan, MergeError> {
    let method = super::find_method(&recipe.merge_method)
        .ok_or_else(|| MergeError::Plan(super::unknown_method(&recipe.merge_method)))?;
    let vocabulary = Vocabulary { tokenizer: None, truncate: truncate_embeddings };
    let mut planner = Planner { recipe, method, models, vocabulary };
    let stages = planner.stages()?;
    let prefix = planner.common_prefix(&stages)?;
    let donor = match (stages[0].base, recipe.base_model.as_ref()) {
        (_, Some(base)) => planner.find(base)?,
        (Some(base), None) => base,
        (None, None) => stages[0].sources[0].index,
    };
    planner.vocabulary.tokenizer = planner.tokenizer_rows(&stages, donor)?;
    let tensors = planner.tensors(&stages, prefix, &models[donor])?;
    if matches!(recipe.body, Body::Slices(_)) {
        check_vocabulary(&tensors, models)?;
    }
    let layers = stages.iter().flat_map(|stage| {
        let template =
            stage.sources.iter().find(|source| stage.base == Some(source.index)).unwrap_or(&stage.sources[0]);
        (0..stage.layers).map(move |layer| (template.index, template.first_layer + layer))
    });
    let layers = layers.collect();
    let is_cut =
        |rows: &usize| tensors.iter().any(|tensor| is_vocabulary(&tensor.name) && tensor.shape.first() == Some(rows));
    let tokenizer_rows = planner.vocabulary.tokenizer.map(|(_, rows)| rows).filter(is_cut);
    let slices = stages.iter().map(Stage::planned).collect();
    let models = models.iter().map(|model| model.name.clone()).collect();
    Ok(MergePlan { method, models, tensors, donor, layers, tokenizer_rows, slices })
}

/// Says that slices cut one tower of a model that has several.
pub(super) fn note_of_towers(plan: &MergePlan, models: &[Model], recipe: &Recipe) -> Option<String> {
    let Model { layout, towers, .. } = models.get(plan.donor)?;
    if matches!(recipe.body, Body::Models(_)) || towers.is_empty() {
        return None;
    }
    let others: Vec<String> = towers.iter().map(|tower| format!("`{}N`", tower.prefix)).collect();
    Some(format!(
        "`slices` are layers of `{}N`: {} are no layers there, and are merged as all tensors outside the layers are, with the \
         parameters of the first slice (embeddings) or of the last, and the first value of a gradient",
        layout.prefix,
        others.join(", ")
    ))
}

struct Planner<'a> {
    recipe: &'a Recipe,
    method: &'static MethodSpecification,
    models: &'a [Model],
    vocabulary: Vocabulary<'a>,
}

impl<'a> Planner<'a> {
    fn find(&self, name: &ModelReference) -> Result<usize, MergeError> {
        self.models
            .iter()
            .position(|model| model.name == *name)
            .ok_or_else(|| MergeError::Internal(format!("model `{name}` of the recipe has not been opened")))
    }

    fn source(&self, name: &ModelReference, first_layer: usize) -> Result<Source<'a>, MergeError> {
        let index = self.find(name)?;
        Ok(Source { index, model: &self.models[index], first_layer, parameters: None })
    }

    fn stages(&self) -> Result<Vec<Stage<'a>>, MergeError> {
        let slices = match &self.recipe.body {
            Body::Models(inputs) => vec![(inputs.as_slice(), None, None)],
            Body::Slices(slices) => slices
                .iter()
                .map(|slice| (slice.sources.as_slice(), slice.base_model.as_ref(), Some(&slice.parameters)))
                .collect(),
        };
        slices.into_iter().map(|(inputs, base, parameters)| self.stage(inputs, base, parameters)).collect()
    }

    fn stage(
        &self,
        inputs: &'a [crate::recipe::Input],
        base: Option<&'a ModelReference>,
        parameters: Option<&'a Parameters>,
    ) -> Result<Stage<'a>, MergeError> {
        let base = base.or(self.recipe.base_model.as_ref()).map(|base| self.find(base)).transpose()?;
        let mut sources = Vec::new();
        let mut length = None;
        for input in inputs {
            let mut source = self.source(&input.model, 0)?;
            source.parameters = Some(&input.parameters);
            let count = source.model.layout.count;
            let (first, end) = input.layer_range.unwrap_or((0, count));
            if end > count {
                let has = match count {
                    0 => "has no numbered layers; merge it whole, in the `models` form".to_owned(),
                    count => format!("has {count} layers"),
                };
                return Err(MergeError::Plan(format!(
                    "layers {first} to {end} of `{}` are asked for, but it {has}",
                    input.model
                )));
            }
            source.first_layer = first;
            let layers = end - first;
            let expected = *length.get_or_insert(layers);
            if layers != expected {
                return Err(MergeError::Incompatible(format!(
                    "`{}` has {layers} layers, `{}` has {expected}; use slices to merge parts of them",
                    input.model, inputs[0].model
                )));
            }
            sources.push(source);
        }
        let listed = |index| sources.iter().any(|source: &Source<'_>| source.index == index);
        if let Some(index) = base.filter(|index| !listed(*index))
            && self.method.base != BaseUse::None
        {
            // In the `models` form only: slices list their base.
            let model = &self.models[index];
            if Some(model.layout.count) != length {
                return Err(MergeError::Incompatible(format!(
                    "the base model `{}` has {} layers, `{}` has {}",
                    model.name,
                    model.layout.count,
                    inputs[0].model,
                    length.unwrap_or(0)
                )));
            }
            sources.push(Source { index, model, first_layer: 0, parameters: None });
        }
        Ok(Stage { sources, base, layers: length.unwrap_or(0), parameters })
    }

    /// The model whose tokenizer the recipe asks for, and the rows that its tokens need, where the models have embeddings
    /// or heads with different numbers of rows; `None` too where nobody knows the tokens.
    fn tokenizer_rows(
        &self,
        stages: &[Stage<'a>],
        donor: usize,
    ) -> Result<Option<(&'a ModelReference, usize)>, MergeError> {
        if self.recipe.tokenizer_source.is_none() {
            return Ok(None);
        }
        let models: BTreeSet<usize> =
            stages.iter().flat_map(|stage| &stage.sources).map(|source| source.index).collect();
        let mut rows: BTreeMap<&str, usize> = BTreeMap::new();
        let mut are_equal = true;
        for info in models.into_iter().flat_map(|index| self.models[index].checkpoint.tensors().values()) {
            if let Some(own) = info.shape.first().filter(|_| is_vocabulary(&info.name)) {
                are_equal &= rows.entry(&info.name).or_insert(*own) == own;
            }
        }
        if are_equal {
            return Ok(None);
        }
        let index = tokenizer_model(self.recipe, donor, self.models.iter().map(|model| &model.name))?;
        let model = &self.models[index];
        Ok(rows_of_tokens(&model.checkpoint)?.map(|rows| (&model.name, rows)))
    }

    /// What stands before the layer's number in all models with layers.
    fn common_prefix(&self, stages: &[Stage<'a>]) -> Result<&'a str, MergeError> {
        let mut found: Option<&Model> = None;
        for source in stages.iter().flat_map(|stage| &stage.sources).filter(|source| source.model.layout.count > 0) {
            let expected = *found.get_or_insert(source.model);
            if source.model.layout.prefix != expected.layout.prefix {
                return Err(MergeError::Incompatible(format!(
                    "the layers of `{}` are called `{}N`, those of `{}` `{}N`: the models have different architectures",
                    source.model.name, source.model.layout.prefix, expected.name, expected.layout.prefix
                )));
            }
        }
        Ok(found.map_or("", |model| &model.layout.prefix))
    }

    fn tensors(&self, stages: &[Stage<'a>], prefix: &str, donor: &'a Model) -> Result<Vec<PlannedTensor>, MergeError> {
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
        let shape = common_shape(name, &found, &self.vocabulary)?;
        let listed_base = found.iter().find(|input| stage.base == Some(input.source.index));
        let stored = listed_base.unwrap_or(first).info.model_dtype();
        let mut tensor = PlannedTensor {
            name: name.to_owned(),
            shape,
            dtype: self.recipe.out_dtype.or(self.recipe.dtype).map_or(stored, Dtype::stored),
            action: Action::Merge,
            inputs: found.iter().map(Found::planned).collect(),
            base: None,
            parameters: ResolvedParameters::default(),
        };
        if found.iter().any(|input| input.info.float().is_none()) {
            (tensor.action, tensor.dtype) = (Action::Copy, stored);
            return Ok(Some(tensor));
        }
        let base = listed_base.filter(|_| self.method.base != BaseUse::None);
        let is_apart = matches!(self.method.base, BaseUse::Required | BaseUse::Optional);
        let merged: Vec<&Found<'a, '_>> =
            found.iter().filter(|input| !is_apart || stage.base != Some(input.source.index)).collect();
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
            let gone = is_rotary_table(name) || (base.is_none() && self.method.survivor == Survivor::BaseOrNothing);
            return match self.survivor(base, &merged) {
                Some(survivor) => {
                    tensor.inputs = vec![survivor.planned()];
                    tensor.action = Action::PassThrough;
                    Ok(Some(tensor))
                }
                None if gone => Ok(None),
                None => Err(self.cannot_merge(name, &merged, lacks_base)),
            };
        }
        tensor.base = base.map(Found::planned);
        tensor.inputs = merged.iter().map(|input| input.planned()).collect();
        tensor.parameters = self.parameters(stage, name, depth(layer), &merged)?;
        Ok(Some(tensor))
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
            let own = input_name(source).and_then(|name| tensors.get_key_value(&name));
            match own.or_else(|| tied_embedding(source.model, name)) {
                Some((tensor, info)) => found.push(Found { source, tensor: tensor.clone(), info }),
                None => lacking.push(source),
            }
        }
        let optional = is_head(name)
            || is_rotary_table(name)
            || found.iter().all(|input: &Found<'_, '_>| input.info.float().is_none());
        match (found.first(), lacking.first()) {
            (Some(has), Some(lacks)) if !optional => Err(MergeError::Incompatible(format!(
                "model `{}` has tensor `{name}`, model `{}` lacks it: they have different architectures",
                has.source.model.name, lacks.model.name
            ))),
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

/// Frequencies that old checkpoints store and loaders compute anew.
fn is_rotary_table(name: &str) -> bool {
    name.ends_with("inv_freq")
}

fn tied_embedding<'a>(model: &'a Model, name: &str) -> Option<(&'a String, &'a TensorInfo)> {
    if !(is_head(name) && name.ends_with(".weight") && model.checkpoint.ties_head()) {
        return None;
    }
    model.checkpoint.tensors().iter().find(|(name, _)| is_input_embedding(name))
}

/// A tensor of a source that an output tensor is made of.
struct Found<'a, 'b> {
    source: &'b Source<'a>,
    /// Its name in the source.
    tensor: String,
    info: &'a TensorInfo,
}

impl Found<'_, '_> {
    fn planned(&self) -> PlannedInput {
        PlannedInput { model: self.source.index, tensor: self.tensor.clone() }
    }
}
