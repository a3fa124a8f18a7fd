//! What the members of the family declare: their parameters, and what tells one from another.

use crate::merge::specification::{
    self, BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification,
    SingleSource, Survivor, Untrimmed,
};

const WEIGHT: ParameterSpecification = ParameterSpecification {
    name: "weight",
    scope: ParameterScope::Source,
    kind: ParameterKind::Number { default: None, low: 0.0, high: 1.5 },
    help: "factor of the model's task vector",
};
const DENSITY: ParameterSpecification = ParameterSpecification {
    name: specification::DENSITY,
    scope: ParameterScope::Source,
    kind: ParameterKind::Number { default: Some(1.0), low: 0.05, high: 1.0 },
    help: "share of the task vector that is kept (drop_rate = 1 - density)",
};
/// A density must be further from 0 and 1 than `epsilon`, or be 0 or 1 itself.
const RANKED_DENSITY: ParameterSpecification = ParameterSpecification {
    kind: ParameterKind::Number { default: Some(1.0), low: 0.2, high: 0.8 },
    help: "mean share of the task vector that is kept; epsilon < density < 1 - epsilon, or 1",
    ..DENSITY
};
const EPSILON: ParameterSpecification = ParameterSpecification {
    name: "epsilon",
    scope: ParameterScope::Source,
    kind: ParameterKind::Number { default: Some(0.15), low: 0.01, high: 0.19 },
    help: "how far the largest and smallest magnitudes' chances lie from the density",
};
const GAMMA: ParameterSpecification = ParameterSpecification {
    name: "gamma",
    scope: ParameterScope::Source,
    kind: ParameterKind::Number { default: Some(0.01), low: 0.0, high: 0.1 },
    help: "share of the largest magnitudes that is dropped as outliers; at most 1 - density takes effect",
};
const LAMBDA: ParameterSpecification = ParameterSpecification {
    name: "lambda",
    scope: ParameterScope::Tensor,
    kind: ParameterKind::Number { default: Some(1.0), low: 0.2, high: 2.0 },
    help: "factor of the merged task vector",
};
const fn truth(name: &'static str, default: bool, help: &'static str) -> ParameterSpecification {
    ParameterSpecification { name, scope: ParameterScope::Tensor, kind: ParameterKind::Bool { default }, help }
}
const NORMALIZE_HELP: &str = "divide by the sum of the weights that take part";
const RESCALE_HELP: &str = "restore the L1 norm that each task vector had before sparsification";

/// All of them merge differences from a base, of one source and more.
const fn member(
    name: &'static str,
    parameters: &'static [ParameterSpecification],
    samples_masks: bool,
    untrimmed: Untrimmed,
    help: &'static str,
) -> MethodSpecification {
    MethodSpecification {
        name,
        parameters,
        base: BaseUse::Required,
        inputs: InputCount::AtLeast(1),
        survivor: Survivor::None,
        samples_masks,
        untrimmed: Some(untrimmed),
        single_source: SingleSource::Kept,
        help,
    }
}

pub(super) static TASK_ARITHMETIC: MethodSpecification = member(
    "task_arithmetic",
    &[WEIGHT, LAMBDA, truth("normalize", false, NORMALIZE_HELP)],
    false,
    Untrimmed::TaskVectors,
    "weighted sum of task vectors (arXiv 2212.04089)",
);
pub(super) static TIES: MethodSpecification = member(
    "ties",
    &[WEIGHT, DENSITY, LAMBDA, truth("normalize", true, NORMALIZE_HELP), truth("rescale", false, RESCALE_HELP)],
    false,
    Untrimmed::Elected,
    "trim by magnitude, elect signs, merge what agrees (arXiv 2306.01708)",
);
pub(super) static DARE_LINEAR: MethodSpecification = member(
    "dare_linear",
    &[WEIGHT, DENSITY, LAMBDA, truth("normalize", false, NORMALIZE_HELP), truth("rescale", true, RESCALE_HELP)],
    true,
    Untrimmed::TaskVectors,
    "random drop and rescale, then weighted sum (arXiv 2311.03099)",
);
pub(super) static DARE_TIES: MethodSpecification = member(
    "dare_ties",
    &[WEIGHT, DENSITY, LAMBDA, truth("normalize", false, NORMALIZE_HELP), truth("rescale", true, RESCALE_HELP)],
    true,
    Untrimmed::Elected,
    "random drop and rescale, then sign election (arXiv 2311.03099)",
);
pub(super) static DELLA: MethodSpecification = member(
    "della",
    &[
        WEIGHT,
        RANKED_DENSITY,
        EPSILON,
        LAMBDA,
        truth("normalize", true, NORMALIZE_HELP),
        truth("rescale", true, RESCALE_HELP),
    ],
    true,
    Untrimmed::Elected,
    "drop by rank of magnitude and rescale, then sign election (arXiv 2406.11617)",
);
pub(super) static DELLA_LINEAR: MethodSpecification = member(
    "della_linear",
    &[
        WEIGHT,
        RANKED_DENSITY,
        EPSILON,
        LAMBDA,
        truth("normalize", false, NORMALIZE_HELP),
        truth("rescale", true, RESCALE_HELP),
    ],
    true,
    Untrimmed::TaskVectors,
    "drop by rank of magnitude and rescale, then weighted sum (arXiv 2406.11617)",
);
pub(super) static BREADCRUMBS: MethodSpecification = member(
    "breadcrumbs",
    &[WEIGHT, DENSITY, GAMMA, LAMBDA, truth("normalize", false, NORMALIZE_HELP), truth("rescale", false, RESCALE_HELP)],
    false,
    Untrimmed::TaskVectors,
    "drop outliers and small values, then weighted sum (arXiv 2312.06795)",
);
pub(super) static BREADCRUMBS_TIES: MethodSpecification = member(
    "breadcrumbs_ties",
    &[WEIGHT, DENSITY, GAMMA, LAMBDA, truth("normalize", false, NORMALIZE_HELP), truth("rescale", false, RESCALE_HELP)],
    false,
    Untrimmed::Elected,
    "drop outliers and small values, then sign election (arXiv 2312.06795)",
);
