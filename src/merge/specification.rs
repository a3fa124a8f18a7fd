//! What a merge method declares of itself. It feeds validation, `evomerge methods`, the search space and mergekit YAML.

/// Whether each source has its own value or the tensor has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterScope {
    Source,
    Tensor,
}

/// Type, default and range of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParameterKind {
    /// `low..=high` is the range a search uses by default, not a limit.
    Number {
        default: Option<f64>,
        low: f64,
        high: f64,
    },
    Bool {
        default: bool,
    },
    /// A whole number.
    Integer {
        default: Option<i64>,
        low: i64,
        high: i64,
    },
}

/// One parameter of a method, with mergekit's name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParameterSpecification {
    pub name: &'static str,
    pub scope: ParameterScope,
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
    /// Refused unless it is listed among the inputs.
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
    Exactly(usize),
    AtLeast(usize),
}

/// What becomes of an optional tensor (an output head, a buffer) that too few of the models have for the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivor {
    /// It is refused.
    None,
    /// The only one is written as it is.
    Any,
    /// As that, if it is the base's; refused otherwise.
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
    /// As that, after an election of signs that single models always win.
    Elected,
    /// Goes from one model to another.
    Interpolation,
}

/// A merge method's declaration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MethodSpecification {
    pub name: &'static str,
    pub parameters: &'static [ParameterSpecification],
    pub base: BaseUse,
    pub inputs: InputCount,
    pub survivor: Survivor,
    /// Whether masks are drawn at random (then seed and kind belong to the recipe's hash).
    pub samples_masks: bool,
    /// What it comes to at density and `lambda` 1, where it has them; `None`: something of its own.
    pub untrimmed: Option<Untrimmed>,
    /// One line for `evomerge methods`, with the paper.
    pub help: &'static str,
}

impl MethodSpecification {
    /// What the method declares of the parameter with that name.
    pub fn parameter(&self, name: &str) -> Option<&'static ParameterSpecification> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }
}
