//! Recipes: one fully specified merge. The type, its canonical hash, and TOML and mergekit YAML in and out.

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
    Number(f64),
    Bool(bool),
    Text(String),
}

/// A value, or a gradient over the layers of a slice (mergekit semantics: piecewise linear, at least one value).
#[derive(Clone, Debug, PartialEq)]
pub enum Gradient {
    Scalar(Value),
    Points(Vec<Value>),
}

/// One entry of a parameter: the values for the tensors whose name contains `filter` (`None` or `*`: all tensors).
#[derive(Clone, Debug, PartialEq)]
pub struct FilteredValue {
    pub filter: Option<String>,
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
    pub model: ModelReference,
    /// `[first, last)` layers of the model; `None` in the `models` form: all of them.
    pub layer_range: Option<(usize, usize)>,
    pub parameters: Parameters,
}

/// A run of consecutive output layers made from equally long layer ranges of its sources.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    pub sources: Vec<Input>,
    pub base_model: Option<ModelReference>,
    pub parameters: Parameters,
}

/// What is merged: whole models, or slices stacked on each other.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Models(Vec<Input>),
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
    pub kind: MaskKind,
    pub seed: u64,
}

/// One fully specified merge, with mergekit's names and semantics.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    pub merge_method: String,
    pub base_model: Option<ModelReference>,
    pub body: Body,
    pub parameters: Parameters,
    /// Output dtype after float32 arithmetic; `None`: the stored dtype of the base, else of the first source.
    pub dtype: Option<Dtype>,
    /// Overrides `dtype` for the file written.
    pub out_dtype: Option<Dtype>,
    /// `base` or a model whose tokenizer files are copied; `None`: as `base`.
    pub tokenizer_source: Option<String>,
    /// Copied as it is.
    pub chat_template: Option<String>,
    pub masks: Masks,
}

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
