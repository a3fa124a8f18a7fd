//! What a merge method declares of itself. It feeds validation, `evomerge methods`, the search space and mergekit YAML.

/// The parameter that says which share of a task vector is kept.
pub const DENSITY: &str = "density";
/// The gene that may stand for it: the share that is dropped, [`complement`] of the density.
pub const DROP_RATE: &str = "drop_rate";

/// The density of a drop rate, or the drop rate of a density.
pub fn complement(share: f64) -> f64 {
    1.0 - share
}

/// The parameter that a gene stands for.
pub fn parameter_of_gene(gene: &str) -> &str {
    if gene == DROP_RATE { DENSITY } else { gene }
}

/// Whether each source has its own value or the tensor has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterScope {
    /// Each source has its own.
    Source,
    /// One value for all models.
    Tensor,
}

/// Type, default and range of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParameterKind {
    /// `low..=high` is the range a search uses by default, not a limit.
    Number {
        /// The value where a recipe gives none. `None`: it must give one.
        default: Option<f64>,
        /// Lower end of a search's range.
        low: f64,
        /// Upper end of a search's range.
        high: f64,
    },
    /// A truth value.
    Bool {
        /// The value where a recipe gives none.
        default: bool,
    },
    /// A whole number.
    Integer {
        /// The value where a recipe gives none. `None`: it must give one.
        default: Option<i64>,
        /// Lower end of a search's range.
        low: i64,
        /// Upper end of a search's range, included.
        high: i64,
    },
}

/// One parameter of a method, with mergekit's name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParameterSpecification {
    /// As in recipes and, but for [`DROP_RATE`], in genes.
    pub name: &'static str,
    /// Whether sources may differ in it.
    pub scope: ParameterScope,
    /// What values it has.
    pub kind: ParameterKind,
    /// One line for `evomerge methods`.
    pub help: &'static str,
}

impl ParameterSpecification {
    /// A parameter without a default must be given.
    pub const fn required(&self) -> bool {
        matches!(self.kind, ParameterKind::Number { default: None, .. } | ParameterKind::Integer { default: None, .. })
    }
}

/// What a method does with `base_model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseUse {
    /// Nothing. It is refused unless it is listed among the inputs, but for `slices`, where it gives configuration,
    /// tokenizer and dtype.
    None,
    /// Merges task vectors.
    Required,
    /// Merges task vectors where it is given.
    Optional,
    /// Must be one of the two inputs (SLERP: `t = 0`).
    Input,
}

/// How many inputs a method takes, the base not counted unless [`BaseUse::Input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputCount {
    /// That many. Of more sources, a gene of the search picks them.
    Exactly(usize),
    /// That many or more.
    AtLeast(usize),
}

/// What becomes of an optional tensor (an output head, a buffer) that too few of the models have for the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivor {
    /// It is refused; one that only a base outside the inputs has is written as it is.
    None,
    /// The only one is written as it is.
    Any,
    /// The only one is written as it is if it is the base's, and refused otherwise.
    Base,
    /// The base's is written; without one, the tensor is left out.
    BaseOrNothing,
}

/// What a method comes to where nothing is trimmed or scaled: which soups and models it can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untrimmed {
    /// Averages models.
    Average,
    /// Adds weighted task vectors.
    TaskVectors,
    /// Adds weighted task vectors after an election of signs, which single models always win.
    Elected,
    /// Goes from one model to another.
    Interpolation,
}

/// What a method makes of one source, which is what blocks of a stack are that come from a source as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SingleSource {
    /// Itself, with weight, density and `lambda` 1 where the method has them, and defaults for the rest. So one recipe
    /// holds blocks of the sources beside merged ones.
    Kept,
    /// Itself, and there is nothing else to be made of more: sources are all that can be stacked.
    Only,
    /// Something else, nothing, or itself without a promise.
    Changed,
}

/// A merge method's declaration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MethodSpecification {
    /// mergekit's name, as in `merge_method` of a recipe.
    pub name: &'static str,
    /// All that it has, in the order of `evomerge methods`.
    pub parameters: &'static [ParameterSpecification],
    /// What it does with a base.
    pub base: BaseUse,
    /// How many models it merges.
    pub inputs: InputCount,
    /// What it does with a tensor that too few of the models have.
    pub survivor: Survivor,
    /// Whether masks are drawn at random (then seed and kind belong to the recipe's hash).
    pub samples_masks: bool,
    /// What it comes to at density and `lambda` 1, where it has them; `None`: something of its own.
    pub untrimmed: Option<Untrimmed>,
    /// What it makes of one source.
    pub single_source: SingleSource,
    /// One line for `evomerge methods`, with the paper.
    pub help: &'static str,
}

impl MethodSpecification {
    /// What the method declares of the parameter with that name.
    pub fn parameter(&self, name: &str) -> Option<&'static ParameterSpecification> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }
}
