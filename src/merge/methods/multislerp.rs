//! Spherical interpolation of any number of models or task vectors around their mean direction.

use libm::cos;

use super::{Context, MergeMethod};
use crate::merge::MergeError;
use crate::merge::block::BlockMerge;
use crate::merge::gram::{Factors, NO_DIRECTION, Vectors, combine};
use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, SingleSource,
    Survivor,
};
use crate::merge::tensor::TensorGroup;

static MULTISLERP: MethodSpecification = MethodSpecification {
    name: "multislerp",
    parameters: &[
        ParameterSpecification {
            name: "weight",
            scope: ParameterScope::Source,
            kind: ParameterKind::Number { default: None, low: 0.0, high: 1.0 },
            help: "share of the model",
        },
        ParameterSpecification {
            name: "normalize_weights",
            scope: ParameterScope::Tensor,
            kind: ParameterKind::Bool { default: true },
            help: "divide the weights by their sum",
        },
        ParameterSpecification {
            name: "eps",
            scope: ParameterScope::Tensor,
            kind: ParameterKind::Number { default: Some(1e-8), low: 1e-10, high: 1e-6 },
            help: "added to norms before they divide",
        },
    ],
    base: BaseUse::Optional,
    inputs: InputCount::AtLeast(1),
    survivor: Survivor::Any,
    samples_masks: false,
    untrimmed: None,
    single_source: SingleSource::Changed,
    help: "spherical interpolation of any number of models, or of task vectors where there is a base",
};

/// The weighted mean of unit vectors, made a unit vector again and as long as the vectors are on average.
///
/// The published step from the mean along the weighted tangent has length zero but for rounding: the tangents at the
/// mean of the same unit vectors cancel out. Only the `cos(eps)` that comes with it is left.
pub(super) struct Multislerp;

impl MergeMethod for Multislerp {
    fn specification(&self) -> &'static MethodSpecification {
        &MULTISLERP
    }

    fn prepare<'a>(
        &self,
        group: &TensorGroup<'a>,
        context: &mut Context<'_>,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
        if group.inputs.len() == 1 {
            let alone = Vectors { inputs: group.inputs.clone(), base: None };
            return Ok(Box::new(combine(group, alone, Factors::Whole(vec![1.0]))));
        }
        let mut weights = group.parameters.source_numbers("weight")?;
        let eps = group.parameters.number("eps")?;
        if group.parameters.truth("normalize_weights")? {
            let sum: f64 = weights.iter().sum();
            if sum == 0.0 {
                return Err(group.infeasible(
                    "its weights sum to zero and cannot be normalized; change them or set `normalize_weights = false`",
                ));
            }
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        let vectors = Vectors::of(group);
        let gram = vectors.gram(context.isa, group.elements, context.cache)?;
        let norms: Vec<f64> = (0..gram.count).map(|index| gram.norm(index)).collect();
        if norms.iter().all(|norm| *norm == 0.0) {
            return Ok(Box::new(combine(group, vectors, Factors::Whole(vec![0.0; gram.count]))));
        }
        let mean: Vec<f64> = weights.iter().zip(&norms).map(|(weight, norm)| weight / (norm + eps)).collect();
        let length = vectors.norm_of(&gram, context.isa, group.elements, &mean)?;
        if length < eps.max(NO_DIRECTION) {
            if gram.count == 2 {
                return Ok(Box::new(combine(group, vectors, Factors::Whole(weights))));
            }
            return Err(group.infeasible(
                "the weighted directions of its models cancel out, so that there is no mean direction; change the weights",
            ));
        }
        let average: f64 = weights.iter().zip(&norms).map(|(weight, norm)| weight * norm).sum();
        let factors = mean.into_iter().map(|factor| factor / length * cos(eps) * average).collect();
        Ok(Box::new(combine(group, vectors, Factors::Whole(factors))))
    }
}
