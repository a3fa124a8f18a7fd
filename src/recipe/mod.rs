//! Recipes: one fully specified merge. The type, its canonical hash, and TOML and mergekit YAML in and out.

mod anchors;
mod canonical;
mod error;
mod parameters;
mod read;
mod validate;
mod write;

#[cfg(test)]
pub(crate) mod properties;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::checkpoint::Dtype;

pub use error::RecipeError;
pub use read::RecipeFile;

/// A model as a recipe names it: a path (absolute, or relative to the recipe's folder or `--models-dir`) or a Hugging
/// Face id, and the same of a LoRA adapter that is laid over it. As text: `model`, or `model+adapter`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelReference {
    /// Of the model.
    pub location: String,
    /// Of the adapter.
    pub adapter: Option<String>,
}

/// A scalar parameter value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Whole or not.
    Number(f64),
    /// A truth value.
    Bool(bool),
}

/// A value, or a gradient over the layers of a slice (mergekit semantics: piecewise linear, at least one value).
#[derive(Clone, Debug, PartialEq)]
pub enum Gradient {
    /// The same for all layers.
    Scalar(Value),
    /// Spread evenly from the first layer to the last, and in the `models` form over the blocks of each other tower;
    /// tensors outside of these take the first.
    Points(Vec<Value>),
}

/// One entry of a parameter: the values for the tensors whose name contains `filter` (`None` or `*`: all tensors).
#[derive(Clone, Debug, PartialEq)]
pub struct FilteredValue {
    /// A part of the tensor's name, upper and lower case told apart.
    pub filter: Option<String>,
    /// What these tensors get.
    pub value: Gradient,
}

/// A parameter as written: entries in order, the first that matches a tensor's name wins; none: the next scope decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting(pub Vec<FilteredValue>);

/// Parameters of one scope (source, slice or recipe) by name.
pub type Parameters = BTreeMap<String, Setting>;

/// One input of a merge.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Which model.
    pub model: ModelReference,
    /// `[first, last)` layers of the model; `None` in the `models` form: all of them.
    pub layer_range: Option<(usize, usize)>,
    /// What holds for this input alone; it comes before what the slice and the recipe say.
    pub parameters: Parameters,
}

/// A run of consecutive output layers made from equally long layer ranges of its sources.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// What its layers are made of; a base that the method uses must be among them.
    pub sources: Vec<Input>,
    /// In place of the recipe's base.
    pub base_model: Option<ModelReference>,
    /// What holds for this slice; it comes before what the recipe says.
    pub parameters: Parameters,
}

/// What is merged: whole models, or slices stacked on each other.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Whole models, all with as many layers.
    Models(Vec<Input>),
    /// Runs of layers in the output's order. Embeddings come from the first, final norm and head from the last.
    Slices(Vec<Slice>),
}

/// Where the sampled masks of DARE and DELLA come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskKind {
    /// Philox4x32-10 keyed by (seed, source content, tensor, element): nested in the density.
    Native,
    /// The MT19937 stream that mergekit 0.1.5 draws on a CPU with one thread.
    Mergekit,
}

/// Kind and seed of sampled masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masks {
    /// Which generator draws.
    pub kind: MaskKind,
    /// One for the whole merge; two sources have other native masks because their contents differ.
    pub seed: u64,
}

/// One fully specified merge, with mergekit's names and semantics.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The method: `linear`, `ties`, ...
    pub merge_method: String,
    /// What task vectors start from; it gives configuration, tokenizer and dtype too. `None`: the first source does.
    pub base_model: Option<ModelReference>,
    /// What is merged.
    pub body: Body,
    /// What holds where neither a slice nor an input says otherwise.
    pub parameters: Parameters,
    /// Output dtype after float32 arithmetic; `None`: the stored dtype of the base, else of the first source.
    pub dtype: Option<Dtype>,
    /// Overrides `dtype` for the file written.
    pub out_dtype: Option<Dtype>,
    /// `base`, [`UNION`] or a model whose tokenizer files are copied; `None`: as `base`.
    pub tokenizer_source: Option<String>,
    /// Copied as it is.
    pub chat_template: Option<String>,
    /// Without effect, and no part of the hash, where no masks are drawn.
    pub masks: Masks,
}

/// The `tokenizer_source` of all models: as `base`, but refused where they do not have the same tokens with the same ids.
pub const UNION: &str = "union";

impl Body {
    /// All inputs in order; a model may come more than once in the `slices` form.
    pub fn inputs(&self) -> impl Iterator<Item = &Input> {
        let (models, slices): (&[Input], &[Slice]) = match self {
            Self::Models(inputs) => (inputs, &[]),
            Self::Slices(slices) => (&[], slices),
        };
        models.iter().chain(slices.iter().flat_map(|slice| &slice.sources))
    }
}

impl Recipe {
    /// All models, each once: the inputs in order, then the bases that are not among them.
    pub fn models(&self) -> Vec<&ModelReference> {
        let mut models: Vec<&ModelReference> = Vec::new();
        let slices: &[Slice] = match &self.body {
            Body::Models(_) => &[],
            Body::Slices(slices) => slices,
        };
        let bases = slices.iter().filter_map(|slice| slice.base_model.as_ref()).chain(self.base_model.as_ref());
        for model in self.body.inputs().map(|input| &input.model).chain(bases) {
            if !models.contains(&model) {
                models.push(model);
            }
        }
        models
    }

    /// The model that `tokenizer_source` names; `None`: it is the base's, or that of all.
    pub fn named_tokenizer(&self) -> Option<&str> {
        self.tokenizer_source.as_deref().filter(|source| !["base", UNION].contains(source))
    }
}

impl ModelReference {
    /// A model without an adapter. The location is taken as it stands.
    pub fn new(location: impl Into<String>) -> Self {
        Self { location: location.into(), adapter: None }
    }

    /// A model with an adapter.
    pub fn with_adapter(location: impl Into<String>, adapter: impl Into<String>) -> Self {
        Self { location: location.into(), adapter: Some(adapter.into()) }
    }

    /// Reads `model` or `model+adapter`.
    ///
    /// # Errors
    /// More than one `+`, or nothing on one side of it: then only mergekit's mapping says what is meant.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('+') {
            None => Ok(Self::new(text)),
            Some((location, adapter))
                if !adapter.contains('+') && !location.trim().is_empty() && !adapter.trim().is_empty() =>
            {
                Ok(Self::with_adapter(location, adapter))
            }
            Some(_) => {
                Err("one `+` stands between a model and its LoRA adapter; where it is part of a path, write a table: \
                            `model = { path = ... }`, `lora = { path = ... }`"
                    .to_owned())
            }
        }
    }
}

impl std::fmt::Display for ModelReference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.location)?;
        match &self.adapter {
            Some(adapter) => write!(formatter, "+{adapter}"),
            None => Ok(()),
        }
    }
}

impl Default for Masks {
    /// Native masks with seed 0: what a recipe without a `masks` table draws.
    fn default() -> Self {
        Self { kind: MaskKind::Native, seed: 0 }
    }
}

impl MaskKind {
    /// The name used in recipes and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Mergekit => "mergekit",
        }
    }
}

impl std::str::FromStr for MaskKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "native" => Ok(Self::Native),
            "mergekit" => Ok(Self::Mergekit),
            other => Err(format!("unknown kind of masks `{other}`; expected native or mergekit")),
        }
    }
}
