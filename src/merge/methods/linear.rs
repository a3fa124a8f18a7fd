//! Weighted average of whole models (Model Soups, arXiv 2203.05482).

use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification,
};

pub(super) static LINEAR: MethodSpecification = MethodSpecification {
    name: "linear",
    parameters: &[
        ParameterSpecification {
            name: "weight",
            scope: ParameterScope::Source,
            kind: ParameterKind::Number { default: None, low: 0.0, high: 1.0 },
            help: "share of the model",
        },
        ParameterSpecification {
            name: "normalize",
            scope: ParameterScope::Tensor,
            kind: ParameterKind::Bool { default: true },
            help: "divide by the sum of the weights",
        },
    ],
    base: BaseUse::None,
    inputs: InputCount::AtLeast(1),
    samples_masks: false,
    help: "weighted average of the models (Model Soups, arXiv 2203.05482)",
};
