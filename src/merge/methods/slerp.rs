//! Spherical interpolation between two models (Shoemake 1985).

use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification,
};

pub(super) static SLERP: MethodSpecification = MethodSpecification {
    name: "slerp",
    parameters: &[ParameterSpecification {
        name: "t",
        scope: ParameterScope::Tensor,
        kind: ParameterKind::Number { default: None, low: 0.0, high: 1.0 },
        help: "0: the base model, 1: the other one; not clamped",
    }],
    base: BaseUse::Input,
    inputs: InputCount::Exactly(2),
    samples_masks: false,
    help: "spherical interpolation between two models (Shoemake 1985)",
};
