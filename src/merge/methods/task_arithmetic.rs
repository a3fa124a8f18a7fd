//! Task vectors added to the base: task arithmetic (arXiv 2212.04089), TIES (2306.01708), DARE (2311.03099).

use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification,
};

const WEIGHT: ParameterSpecification = ParameterSpecification {
    name: "weight",
    scope: ParameterScope::Source,
    kind: ParameterKind::Number { default: None, low: 0.0, high: 1.5 },
    help: "factor of the model's task vector",
};
const DENSITY: ParameterSpecification = ParameterSpecification {
    name: "density",
    scope: ParameterScope::Source,
    kind: ParameterKind::Number { default: Some(1.0), low: 0.05, high: 1.0 },
    help: "share of the task vector that is kept (drop_rate = 1 - density)",
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

pub(super) static TASK_ARITHMETIC: MethodSpecification = MethodSpecification {
    name: "task_arithmetic",
    parameters: &[WEIGHT, LAMBDA, truth("normalize", false, NORMALIZE_HELP)],
    base: BaseUse::Required,
    inputs: InputCount::AtLeast(1),
    samples_masks: false,
    help: "weighted sum of task vectors (arXiv 2212.04089)",
};
pub(super) static TIES: MethodSpecification = MethodSpecification {
    name: "ties",
    parameters: &[
        WEIGHT,
        DENSITY,
        LAMBDA,
        truth("normalize", true, NORMALIZE_HELP),
        truth("rescale", false, RESCALE_HELP),
    ],
    base: BaseUse::Required,
    inputs: InputCount::AtLeast(1),
    samples_masks: false,
    help: "trim by magnitude, elect signs, merge what agrees (arXiv 2306.01708)",
};
pub(super) static DARE_LINEAR: MethodSpecification = MethodSpecification {
    name: "dare_linear",
    parameters: &[
        WEIGHT,
        DENSITY,
        LAMBDA,
        truth("normalize", false, NORMALIZE_HELP),
        truth("rescale", true, RESCALE_HELP),
    ],
    base: BaseUse::Required,
    inputs: InputCount::AtLeast(1),
    samples_masks: true,
    help: "random drop and rescale, then weighted sum (arXiv 2311.03099)",
};
pub(super) static DARE_TIES: MethodSpecification = MethodSpecification {
    name: "dare_ties",
    parameters: &[
        WEIGHT,
        DENSITY,
        LAMBDA,
        truth("normalize", false, NORMALIZE_HELP),
        truth("rescale", true, RESCALE_HELP),
    ],
    base: BaseUse::Required,
    inputs: InputCount::AtLeast(1),
    samples_masks: true,
    help: "random drop and rescale, then sign election (arXiv 2311.03099)",
};
