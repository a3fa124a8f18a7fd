//! The Riemannian centre of mass of the models on a sphere (Karcher mean).

use libm::{acos, cos, sin};

use super::{Context, MergeMethod};
use crate::merge::MergeError;
use crate::merge::block::BlockMerge;
use crate::merge::gram::{Factors, Gram, NO_DIRECTION, Vectors, combine};
use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, SingleSource,
    Survivor,
};
use crate::merge::tensor::TensorGroup;

static KARCHER: MethodSpecification = MethodSpecification {
    name: "karcher",
    parameters: &[
        ParameterSpecification {
            name: "max_iter",
            scope: ParameterScope::Tensor,
            kind: ParameterKind::Integer { default: Some(10), low: 1, high: 20 },
            help: "most steps towards the centre",
        },
        ParameterSpecification {
            name: "tol",
            scope: ParameterScope::Tensor,
            kind: ParameterKind::Number { default: Some(1e-5), low: 1e-8, high: 1e-3 },
            help: "a step shorter than this is the last one",
        },
    ],
    base: BaseUse::None,
    inputs: InputCount::AtLeast(1),
    survivor: Survivor::Any,
    samples_masks: false,
    untrimmed: None,
    single_source: SingleSource::Changed,
    help: "centre of mass of the models on the sphere, all with equal weight (Karcher mean)",
};

/// Steps towards the centre that are taken at most, whatever `max_iter` says: a merge of a tensor is not left waiting.
const MOST_STEPS: i64 = 100_000;
/// Cosines this near to -1 are as good as -1: rounded products resolve no direction there.
const OPPOSITE: f64 = 1e-12;

/// The centre's direction, as long as the models are on average.
pub(super) struct Karcher;

impl MergeMethod for Karcher {
    fn specification(&self) -> &'static MethodSpecification {
        &KARCHER
    }

    fn prepare<'a>(
        &self,
        group: &TensorGroup<'a>,
        context: &mut Context<'_>,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
        let vectors = Vectors { inputs: group.inputs.clone(), base: None };
        if group.inputs.len() == 1 {
            return Ok(Box::new(combine(group, vectors, Factors::Whole(vec![1.0]))));
        }
        let gram = vectors.gram(context.isa, group.elements, context.cache)?;
        let (steps, tolerance) = (group.parameters.integer("max_iter")?, group.parameters.number("tol")?);
        let norm_of = |mean: &[f64]| vectors.norm_of(&gram, context.isa, group.elements, mean);
        let factors = match first_mean(&gram, tolerance, norm_of)? {
            Some(mean) => centre(&gram, mean, steps, tolerance),
            None => vec![0.0; gram.count],
        };
        Ok(Box::new(combine(group, vectors, Factors::Whole(factors))))
    }
}

/// Where the way to the centre begins: the mean of the unit vectors, made a unit vector; the first of them where they
/// cancel out. As factors of the vectors; `None`: all are too short to have a direction. `norm_of` is that of a
/// weighted sum of the vectors.
fn first_mean(
    gram: &Gram,
    tolerance: f64,
    norm_of: impl Fn(&[f64]) -> Result<f64, MergeError>,
) -> Result<Option<Vec<f64>>, MergeError> {
    let used: Vec<usize> = (0..gram.count).filter(|index| gram.norm(*index) > tolerance).collect();
    let Some(start) = used.first().copied() else { return Ok(None) };
    let mut mean = vec![0.0; gram.count];
    for index in &used {
        mean[*index] = 1.0 / used.len() as f64 / gram.norm(*index);
    }
    let length = norm_of(&mean)?;
    if length < tolerance.max(NO_DIRECTION) {
        mean.fill(0.0);
        mean[start] = 1.0 / gram.norm(start);
    } else {
        mean.iter_mut().for_each(|factor| *factor /= length);
    }
    Ok(Some(mean))
}

/// The centre of mass as factors of the vectors, on a way from `mean`. Every point on it is a weighted sum of the unit
/// vectors, so that its angles to them follow from their dot products.
fn centre(gram: &Gram, mut mean: Vec<f64>, steps: i64, tolerance: f64) -> Vec<f64> {
    let norms: Vec<f64> = (0..gram.count).map(|index| gram.norm(index)).collect();
    let used: Vec<usize> = (0..gram.count).filter(|index| norms[*index] > tolerance).collect();
    let share = 1.0 / used.len() as f64;
    for _ in 0..steps.min(MOST_STEPS) {
        // The mean of the logarithms at the current point: the direction and length of the next step.
        let mut step = vec![0.0; gram.count];
        for index in &used {
            let mut unit = vec![0.0; gram.count];
            unit[*index] = 1.0 / norms[*index];
            let cosine = gram.dot_with(&mean, &unit).clamp(-1.0, 1.0);
            let angle = acos(cosine);
            // A vector opposite to the mean has no single shortest way to it, and from products one that is nearly
            // opposite has none either.
            if angle < tolerance || 1.0 + cosine < OPPOSITE || sin(angle) == 0.0 {
                continue;
            }
            for ((step, unit), mean) in step.iter_mut().zip(&unit).zip(&mean) {
                *step += share * (angle / sin(angle)) * (unit - cosine * mean);
            }
        }
        let length = gram.norm_of(&step);
        if length < tolerance || length == 0.0 {
            break;
        }
        for (mean, step) in mean.iter_mut().zip(&step) {
            *mean = cos(length) * *mean + sin(length) / length * step;
        }
        let norm = gram.norm_of(&mean);
        if norm > tolerance {
            mean.iter_mut().for_each(|factor| *factor /= norm);
        }
    }
    let average = norms.iter().sum::<f64>() / gram.count as f64;
    mean.into_iter().map(|factor| factor * average).collect()
}
