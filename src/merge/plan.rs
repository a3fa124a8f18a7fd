//! From a recipe and opened checkpoints to what has to be computed: one entry for each output tensor.

mod shapes;
mod stages;
mod tensors;

use std::collections::{BTreeMap, BTreeSet};

pub(super) use shapes::is_vocabulary;
use shapes::{Vocabulary, check_vocabulary};
use stages::Stage;
pub(super) use tensors::may_be_missing;

use super::MergeError;
use super::model::Model;
use super::output::tokenizer_model;
use super::parameters::ResolvedParameters;
use super::specification::MethodSpecification;
use super::vocabulary::rows_of_tokens;
use crate::checkpoint::is_batch_counter;
use crate::recipe::{Body, ModelReference, Recipe};

/// A tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedInput {
    /// Index into [`MergePlan::models`].
    pub model: usize,
    /// The tensor's name in that model; it differs from the output's where layers are stacked or a head is tied.
    pub tensor: String,
}

/// What is done for an output tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The method's arithmetic.
    Merge {
        /// In recipe order. The base is among them only for methods that take it as an input.
        inputs: Vec<PlannedInput>,
        /// The base's tensor, for methods that use a base; `None` where there is none.
        base: Option<PlannedInput>,
        /// What filters and gradients give for it.
        parameters: ResolvedParameters,
    },
    /// The only input that is left, converted to the output dtype.
    PassThrough(PlannedInput),
    /// The first input as it is stored: integers and truth values, refused where models that have them differ; counters
    /// of batches, which may differ; what no loader reads, of one model.
    Copy(Vec<PlannedInput>),
}

impl Action {
    /// The tensors that are read, the base's last.
    pub fn inputs(&self) -> impl Iterator<Item = &PlannedInput> {
        let (inputs, base) = match self {
            Self::Merge { inputs, base, .. } => (inputs.as_slice(), base.as_ref()),
            Self::PassThrough(input) => (std::slice::from_ref(input), None),
            Self::Copy(inputs) => (inputs.as_slice(), None),
        };
        inputs.iter().chain(base)
    }
}

/// One output tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTensor {
    /// Its name in the output.
    pub name: String,
    /// Its shape in the output: that of every input, less the rows that truncated embeddings lose.
    pub shape: Vec<usize>,
    /// The type of its elements in the output; that of the first input where this is copied.
    pub dtype: safetensors::Dtype,
    /// What is done for it, and with what.
    pub action: Action,
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
        let inputs = self.tensors.iter().flat_map(|tensor| tensor.action.inputs());
        inputs.map(|input| input.model).chain([self.donor]).collect()
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

/// Says which models' tensors the output calls otherwise than their files do.
pub(super) fn note_of_names(plan: &MergePlan, models: &[Model]) -> Option<String> {
    let renamed: Vec<(&Model, (&str, &str))> = plan
        .used_models()
        .into_iter()
        .filter_map(|index| Some((&models[index], models[index].checkpoint.renamed().next()?)))
        .collect();
    let (_, (name, stored)) = renamed.first()?;
    let names: Vec<String> = renamed.iter().map(|(model, _)| format!("`{}`", model.name)).collect();
    Some(format!(
        "the output has the tensor names of the other models, which loaders take for the same: those of {} differ (`{name}` is \
         `{stored}` there)",
        names.join(", ")
    ))
}

/// Says whose counters of batches are written where they differ.
pub(super) fn note_of_counters(plan: &MergePlan, models: &[Model]) -> Option<String> {
    let bytes = |input: &PlannedInput| models[input.model].checkpoint.bytes(&input.tensor);
    let written = |tensor: &PlannedTensor| {
        let mut inputs = tensor.action.inputs();
        let first = inputs.next()?;
        inputs.any(|other| bytes(other) != bytes(first)).then(|| format!("`{}`", models[first.model].name))
    };
    let counters = plan.tensors.iter().filter(|tensor| is_batch_counter(&tensor.name));
    let names: BTreeSet<String> = counters.filter_map(written).collect();
    (!names.is_empty()).then(|| {
        format!(
            "the models saw different numbers of batches in training (`num_batches_tracked`): the counters of {} are \
             written",
            Vec::from_iter(names).join(", ")
        )
    })
}

struct Planner<'a> {
    recipe: &'a Recipe,
    method: &'static MethodSpecification,
    models: &'a [Model],
    vocabulary: Vocabulary<'a>,
}

impl<'a> Planner<'a> {
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
                return Err(MergeError::Incompatible(other_prefix(source.model, expected)));
            }
        }
        Ok(found.map_or("", |model| &model.layout.prefix))
    }
}

/// What is said where the layers of models are called by different prefixes, and what to do where only these differ.
fn other_prefix(model: &Model, expected: &Model) -> String {
    let (own, other) = (&model.layout.prefix, &expected.layout.prefix);
    let are_alike = !model.layer_kind(0).is_empty() && model.layer_kind(0) == expected.layer_kind(0);
    let reason = match are_alike {
        true => {
            let (short, long) = if own.len() < other.len() { (model, expected) } else { (expected, model) };
            let outer = long.layout.prefix.strip_suffix(short.layout.prefix.as_str()).filter(|outer| !outer.is_empty());
            let wrapped = outer.map_or_else(String::new, |outer| {
                format!("if training wrapped `{}` in `{outer}`, take that off the names in its files; else ", long.name)
            });
            format!(
                "their weights have the same names behind that; {wrapped}load `{}` with transformers as the class that \
                 config.json of `{}` names (architectures), and save it again with save_pretrained",
                short.name, long.name
            )
        }
        false => "the models have different architectures".to_owned(),
    };
    format!("the layers of `{}` are called `{own}N`, those of `{}` `{other}N`: {reason}", model.name, expected.name)
}
