//! Recipes: one fully specified merge. The type, its canonical hash, and TOML and mergekit YAML in and out.

use std::collections::BTreeMap;

use crate::checkpoint::Dtype;

/// A model as a recipe names it: a path (absolute, or relative to the recipe's folder or `--models-dir`) or a Hugging Face id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelReference(pub String);

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
