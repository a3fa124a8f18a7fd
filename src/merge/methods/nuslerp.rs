//! Spherical interpolation of two models or of two task vectors, as a whole or line by line (NuSLERP).

use libm::{acos, sin};

use super::{Context, MergeMethod};
use crate::merge::MergeError;
use crate::merge::block::BlockMerge;
use crate::merge::gram::{Factors, Gram, Lines, Vectors, combine};
use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, SingleSource,
    Survivor,
};
use crate::merge::tensor::TensorGroup;

static NUSLERP: MethodSpecification = MethodSpecification {
    name: "nuslerp",
    parameters: &[
        ParameterSpecification {
            name: "weight",
            scope: ParameterScope::Source,
            kind: ParameterKind::Number { default: None, low: 0.0, high: 1.0 },
            help: "share of the model: t is the second one's share of both",
        },
        ParameterSpecification {
            name: "nuslerp_flatten",
            scope: ParameterScope::Tensor,
            kind: ParameterKind::Bool { default: true },
            help: "take the whole tensor for one vector",
        },
        ParameterSpecification {
            name: "nuslerp_row_wise",
            scope: ParameterScope::Tensor,
            kind: ParameterKind::Bool { default: false },
            help: "without nuslerp_flatten: vectors along the first dimension instead of the last",
        },
    ],
    base: BaseUse::Optional,
    inputs: InputCount::Exactly(2),
    survivor: Survivor::Any,
    samples_masks: false,
    untrimmed: None,
    single_source: SingleSource::Changed,
    help: "spherical interpolation of two models, or of two task vectors where there is a base",
};

/// Norms below this count as this.
const SHORTEST: f64 = 1e-7;
/// Weights whose sum is nearer to zero than this count as equal.
const NO_WEIGHT: f64 = 1e-6;

/// `sin((1-t) theta) / sin(theta) a + sin(t theta) / sin(theta) b`.
pub(super) struct Nuslerp;

impl MergeMethod for Nuslerp {
    fn specification(&self) -> &'static MethodSpecification {
        &NUSLERP
    }

    fn prepare<'a>(
        &self,
        group: &TensorGroup<'a>,
        context: &mut Context<'_>,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
        let [first, second] = group.parameters.source_numbers("weight")?[..] else {
            return Err(MergeError::Internal("nuslerp takes two models".into()));
        };
        let sum = first + second;
        let t = if sum.abs() < NO_WEIGHT { 0.5 } else { second / sum };
        let vectors = Vectors::of(group);
        let wide = group.is_wide();
        if group.parameters.truth("nuslerp_flatten")? {
            let gram = vectors.gram(context.isa, group.elements, context.cache)?;
            let factors = Factors::Whole(factors(&gram, t, wide).into());
            return Ok(Box::new(combine(group, vectors, factors)));
        }
        let lines = match group.parameters.truth("nuslerp_row_wise")? {
            true => Lines::first_dimension(group.shape),
            false => Lines::last_dimension(group.shape),
        };
        let pairs = vectors.line_grams(context.isa, group.elements, lines, |gram| factors(gram, t, wide))?;
        let factors = Factors::Lines(lines, pairs.into_iter().flatten().collect());
        Ok(Box::new(combine(group, vectors, factors)))
    }
}

/// The factors of the two vectors. The cosine is rounded to the working precision before it decides between arc and
/// line.
fn factors(gram: &Gram, t: f64, wide: bool) -> [f64; 2] {
    let length = |index| gram.norm(index).max(SHORTEST);
    let cosine = (gram.dot(0, 1) / (length(0) * length(1))).clamp(-1.0, 1.0);
    let collinear = if wide { 1.0 - cosine * cosine <= 1e-15 } else { (cosine as f32).abs() >= 1.0 };
    if collinear {
        return [1.0 - t, t];
    }
    let angle = acos(cosine);
    [sin((1.0 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)]
}
