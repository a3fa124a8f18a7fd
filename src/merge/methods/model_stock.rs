//! The point between base and average that the angle among fine-tunes suggests (Model Stock, arXiv 2403.19522).

use super::{Context, MergeMethod};
use crate::merge::MergeError;
use crate::merge::block::BlockMerge;
use crate::merge::gram::{Factors, Gram, Lines, Vectors, combine};
use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, SingleSource,
    Survivor,
};
use crate::merge::tensor::TensorGroup;

static MODEL_STOCK: MethodSpecification = MethodSpecification {
    name: "model_stock",
    parameters: &[ParameterSpecification {
        name: "filter_wise",
        scope: ParameterScope::Tensor,
        kind: ParameterKind::Bool { default: false },
        help: "an angle of its own for each row of the last dimension",
    }],
    base: BaseUse::Required,
    inputs: InputCount::AtLeast(2),
    survivor: Survivor::BaseOrNothing,
    samples_masks: false,
    untrimmed: None,
    single_source: SingleSource::Changed,
    help: "interpolates base and average by the angle among the task vectors (arXiv 2403.19522)",
};

/// Products of norms below this count as this.
const SHORTEST: f64 = 1e-6;
/// A divisor nearer to zero than this leaves the base as it is.
const SINGULAR: f64 = 1e-6;

/// `t average + (1 - t) base` with `t = N c / (1 + (N - 1) c)`, where `c` is the mean cosine of all pairs of task
/// vectors.
pub(super) struct ModelStock;

impl MergeMethod for ModelStock {
    fn specification(&self) -> &'static MethodSpecification {
        &MODEL_STOCK
    }

    fn prepare<'a>(
        &self,
        group: &TensorGroup<'a>,
        context: &mut Context<'_>,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
        let vectors = Vectors::of(group);
        // The average's share of each task vector.
        let share = |gram: &Gram| interpolation(gram) / gram.count as f64;
        let factors = if group.parameters.truth("filter_wise")? {
            let lines = Lines::last_dimension(group.shape);
            Factors::SharedLines(lines, vectors.line_grams(context.isa, group.elements, lines, share)?)
        } else {
            let gram = vectors.gram(context.isa, group.elements, context.cache)?;
            Factors::Whole(vec![share(&gram); gram.count])
        };
        Ok(Box::new(combine(group, vectors, factors)))
    }
}

fn interpolation(gram: &Gram) -> f64 {
    let count = gram.count;
    let cosine = |first: usize, second: usize| {
        (gram.dot(first, second) / (gram.norm(first) * gram.norm(second)).max(SHORTEST)).clamp(-1.0, 1.0)
    };
    let pairs = (0..count).flat_map(|first| (first + 1..count).map(move |second| (first, second)));
    let (mut sum, mut number) = (0.0, 0.0);
    for (first, second) in pairs {
        sum += cosine(first, second);
        number += 1.0;
    }
    let mean: f64 = sum / number;
    let divisor = (count as f64 - 1.0) * mean + 1.0;
    if divisor.abs() < SINGULAR { 0.0 } else { count as f64 * mean / divisor }
}
