//! Task vectors added to the base: task arithmetic (arXiv 2212.04089), TIES (2306.01708), DARE (2311.03099), DELLA
//! (2406.11617), Model Breadcrumbs (2312.06795).

mod declarations;

use std::sync::Arc;

use super::linear::check_weights;
use super::task_vector_sum::{SourceTerm, TaskVectorSum};
use super::{Context, MergeMethod, fused_sums};
use crate::merge::MergeError;
use crate::merge::block::{BlockMerge, Tiled};
use crate::merge::element::Element;
use crate::merge::l1::l1_factors;
use crate::merge::ranked::RankedMask;
use crate::merge::remembered::RememberedMask;
use crate::merge::sparsify::Sparsifier;
use crate::merge::specification::{DENSITY, MethodSpecification, Untrimmed};
use crate::merge::statistics::PairKey;
use crate::merge::tensor::{TaskVector, TensorGroup};
use crate::merge::threshold::{Threshold, coarse_histogram, kept_count, select};
use crate::merge::window;

/// How a member of the family thins task vectors out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sparsification {
    None,
    /// Keeps the largest magnitudes.
    Magnitude,
    /// Keeps a random sample.
    Random,
    /// Keeps a random sample, larger magnitudes more often.
    Ranked,
    /// Keeps what is neither among the largest magnitudes nor among the smallest.
    Middle,
}

/// A member of the family: `base + lambda merge(weight sparsify(source - base))`, where `merge` is a sum, or a sum of
/// what agrees with the sign of the sum; divided by the weights that take part where `normalize` says so.
pub(super) struct Generalized {
    specification: &'static MethodSpecification,
    sparsification: Sparsification,
}

impl Generalized {
    pub(super) const TASK_ARITHMETIC: Self =
        Self { specification: &declarations::TASK_ARITHMETIC, sparsification: Sparsification::None };
    pub(super) const TIES: Self =
        Self { specification: &declarations::TIES, sparsification: Sparsification::Magnitude };
    pub(super) const DARE_LINEAR: Self =
        Self { specification: &declarations::DARE_LINEAR, sparsification: Sparsification::Random };
    pub(super) const DARE_TIES: Self =
        Self { specification: &declarations::DARE_TIES, sparsification: Sparsification::Random };

    pub(super) const DELLA: Self = Self { specification: &declarations::DELLA, sparsification: Sparsification::Ranked };
    pub(super) const DELLA_LINEAR: Self =
        Self { specification: &declarations::DELLA_LINEAR, sparsification: Sparsification::Ranked };
    pub(super) const BREADCRUMBS: Self =
        Self { specification: &declarations::BREADCRUMBS, sparsification: Sparsification::Middle };
    pub(super) const BREADCRUMBS_TIES: Self =
        Self { specification: &declarations::BREADCRUMBS_TIES, sparsification: Sparsification::Middle };

    fn sum<'a, W: Element>(
        &self,
        group: &TensorGroup<'a>,
        context: &mut Context<'_>,
    ) -> Result<TaskVectorSum<'a, W>, MergeError> {
        let sources = self.sources::<W>(group, context)?;
        let weights: Vec<W> = sources.iter().map(|source| source.weight).collect();
        check_weights(group, &weights, W::sum_as_pytorch(&weights))?;
        let lambda = group.parameters.number("lambda")?;
        let lambda = (lambda != 1.0).then(|| W::from_f64(lambda));
        let elects_sign = self.specification.untrimmed == Some(Untrimmed::Elected);
        Ok(TaskVectorSum::new(sources, elects_sign, group.parameters.truth("normalize")?, lambda))
    }

    fn sources<'a, W: Element>(
        &self,
        group: &TensorGroup<'a>,
        context: &mut Context<'_>,
    ) -> Result<Vec<SourceTerm<'a, W>>, MergeError> {
        let weights = group.parameters.source_numbers("weight")?;
        if self.sparsification == Sparsification::None {
            let term = |weight| SourceTerm {
                weight: W::from_f64(weight),
                sparsifier: Sparsifier::KeepAll,
                factor: None,
                mask: None,
            };
            return Ok(weights.into_iter().map(term).collect());
        }
        let densities = group.parameters.source_numbers(DENSITY)?;
        let rescale = group.parameters.truth("rescale")?;
        if self.sparsification == Sparsification::Magnitude {
            first_thresholds::<W>(group, &densities, context)?;
        }
        let sparsifiers = densities.into_iter().enumerate();
        let sparsifiers = sparsifiers.map(|(index, density)| self.sparsifier::<W>(group, index, density, context));
        let sparsifiers = sparsifiers.collect::<Result<Vec<_>, _>>()?;
        let mut factors = vec![(None, None); weights.len()];
        if rescale {
            factors = rescale_factors::<W>(group, &sparsifiers, context)?;
        }
        let terms = weights.into_iter().zip(sparsifiers).zip(factors);
        Ok(terms
            .map(|((weight, sparsifier), (factor, mask))| SourceTerm {
                weight: W::from_f64(weight),
                sparsifier,
                factor: factor.map(W::from_f64),
                mask,
            })
            .collect())
    }

    fn sparsifier<'a, W: Element>(
        &self,
        group: &TensorGroup<'a>,
        index: usize,
        density: f64,
        context: &mut Context<'_>,
    ) -> Result<Sparsifier<'a>, MergeError> {
        match self.sparsification {
            Sparsification::None => Ok(Sparsifier::KeepAll),
            Sparsification::Magnitude => magnitude::<W>(group, index, density, context),
            Sparsification::Random if density < 0.0 => Err(group.infeasible(format!(
                "the density of model `{}` is {density}; a share that is kept cannot be negative",
                group.inputs[index].model
            ))),
            Sparsification::Random => context.masks.draw(group.inputs[index], group.elements, density),
            Sparsification::Ranked => ranked::<W>(group, index, density, context),
            Sparsification::Middle => middle::<W>(group, index, density, context),
        }
    }
}

impl MergeMethod for Generalized {
    fn specification(&self) -> &'static MethodSpecification {
        self.specification
    }

    fn prepare<'a>(
        &self,
        group: &TensorGroup<'a>,
        context: &mut Context<'_>,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
        let base = group.base.ok_or_else(|| MergeError::Internal("task vectors without a base".into()))?;
        let inputs = std::iter::once(base).chain(group.inputs.iter().copied()).collect();
        if group.is_wide() {
            let arithmetic = self.sum::<f64>(group, context)?;
            return Ok(Box::new(Tiled::new(group.name, inputs, arithmetic)));
        }
        let arithmetic = Arc::new(self.sum::<f32>(group, context)?);
        let sum = Arc::clone(&arithmetic);
        let tiled = Box::new(Tiled::new(group.name, inputs, arithmetic));
        Ok(fused_sums::task_vector_sum(base, &group.inputs, &sum, tiled))
    }
}

/// A source's task vector and the key of its statistics.
fn task_vector<'a, W: Element>(group: &TensorGroup<'a>, index: usize) -> Result<(TaskVector<'a>, PairKey), MergeError> {
    let base = group.base.ok_or_else(|| MergeError::Internal("task vectors without a base".into()))?;
    let source = group.inputs[index];
    let key = PairKey { first: source.key, second: base.key, key_bits: W::KEY_BITS };
    Ok((TaskVector { source, base }, key))
}

fn magnitude<'a, W: Element>(
    group: &TensorGroup<'_>,
    index: usize,
    density: f64,
    context: &Context<'_>,
) -> Result<Sparsifier<'a>, MergeError> {
    if density <= 0.0 {
        return Ok(Sparsifier::DropAll);
    }
    match trimmed_count(density, group.elements) {
        None => Ok(Sparsifier::KeepAll),
        Some(kept) => largest::<W>(group, index, kept, context).map(Sparsifier::Magnitude),
    }
}

/// How many elements a positive density keeps; `None`: all.
fn trimmed_count(density: f64, elements: u64) -> Option<u64> {
    if density >= 1.0 || elements == 0 {
        return None;
    }
    Some(kept_count(density, elements)).filter(|kept| *kept < elements)
}

/// Finds the thresholds of the task vectors that have not been asked for one yet, all at once.
fn first_thresholds<W: Element>(
    group: &TensorGroup<'_>,
    densities: &[f64],
    context: &Context<'_>,
) -> Result<(), MergeError> {
    if group.is_wide() {
        return Ok(());
    }
    let mut wanted = Vec::new();
    for (index, density) in densities.iter().enumerate().filter(|(_, density)| **density > 0.0) {
        let (vector, key) = task_vector::<W>(group, index)?;
        if let Some(kept) = trimmed_count(*density, group.elements)
            && context.cache.is_first_threshold(key, kept)
        {
            wanted.push((key, (vector, kept)));
        }
    }
    let (keys, vectors): (Vec<PairKey>, Vec<_>) = wanted.into_iter().unzip();
    let found = window::thresholds(context.isa, &context.cache.windows, &vectors, group.elements)?;
    for ((key, (_, kept)), found) in keys.into_iter().zip(vectors).zip(found) {
        if let Some(threshold) = found {
            context.cache.put_threshold(key, kept, threshold);
        }
    }
    Ok(())
}

/// The threshold that keeps the `kept` largest magnitudes of a source's task vector.
fn largest<W: Element>(
    group: &TensorGroup<'_>,
    index: usize,
    kept: u64,
    context: &Context<'_>,
) -> Result<Threshold, MergeError> {
    let elements = group.elements;
    let (vector, key) = task_vector::<W>(group, index)?;
    let (isa, cache) = (context.isa, context.cache);
    cache.threshold(key, kept, || {
        let coarse = || cache.histogram(key, || coarse_histogram::<W, _>(isa, vector, elements));
        select::<W, _>(isa, vector, elements, kept, coarse)
    })
}

/// Keeps `floor(density n)` elements below the `floor(gamma n)` largest magnitudes; fewer of these are dropped where
/// there would not be enough left.
fn middle<'a, W: Element>(
    group: &TensorGroup<'_>,
    index: usize,
    density: f64,
    context: &Context<'_>,
) -> Result<Sparsifier<'a>, MergeError> {
    let gamma = group.parameters.source_numbers("gamma")?[index];
    if gamma < 0.0 {
        return Err(group.infeasible(format!(
            "the gamma of model `{}` is {gamma}; a share that is dropped cannot be negative",
            group.inputs[index].model
        )));
    }
    let elements = group.elements;
    if density >= 1.0 || elements == 0 {
        return Ok(Sparsifier::KeepAll);
    }
    let share = |part: f64| ((part * elements as f64) as u64).min(elements);
    let kept = share(density);
    if density <= 0.0 || kept == 0 {
        return Ok(Sparsifier::DropAll);
    }
    let outliers = share(gamma).min(elements - kept);
    if outliers == 0 {
        return match kept < elements {
            true => largest::<W>(group, index, kept, context).map(Sparsifier::Magnitude),
            false => Ok(Sparsifier::KeepAll),
        };
    }
    let upper = outliers + kept;
    let kept = if upper < elements { Some(largest::<W>(group, index, upper, context)?) } else { None };
    Ok(Sparsifier::Middle { outliers: largest::<W>(group, index, outliers, context)?, kept })
}

fn ranked<'a, W: Element>(
    group: &TensorGroup<'a>,
    index: usize,
    density: f64,
    context: &mut Context<'_>,
) -> Result<Sparsifier<'a>, MergeError> {
    let epsilon = group.parameters.source_numbers("epsilon")?[index];
    if density >= 1.0 || group.elements == 0 {
        return Ok(Sparsifier::KeepAll);
    }
    if density <= 0.0 {
        return Ok(Sparsifier::DropAll);
    }
    if density - epsilon.abs() <= 0.0 || density + epsilon.abs() >= 1.0 {
        return Err(group.infeasible(format!(
            "model `{}` has density {density} with epsilon {epsilon}; the chances from density - epsilon to density + \
             epsilon must lie between 0 and 1",
            group.inputs[index].model
        )));
    }
    let (vector, _) = task_vector::<W>(group, index)?;
    let (draws, coarse) = context.masks.draws(group.inputs[index], group.elements)?;
    let mask = RankedMask::new::<W>(context.isa, vector, group.shape, [density, epsilon], coarse, draws);
    Ok(Sparsifier::Ranked(Box::new(mask)))
}

/// See [`SourceTerm`].
type Factor = (Option<f64>, Option<Arc<RememberedMask>>);

/// What restores each task vector's L1 norm; `None` where nothing is dropped, or everything. And the masks, where they
/// were drawn to find that out.
fn rescale_factors<W: Element>(
    group: &TensorGroup<'_>,
    sparsifiers: &[Sparsifier<'_>],
    context: &Context<'_>,
) -> Result<Vec<Factor>, MergeError> {
    let mut factors: Vec<Factor> = vec![(None, None); sparsifiers.len()];
    let (mut missing, mut vectors) = (Vec::new(), Vec::new());
    for (index, sparsifier) in sparsifiers.iter().enumerate() {
        if matches!(sparsifier, Sparsifier::KeepAll | Sparsifier::DropAll) {
            continue;
        }
        let (vector, key) = task_vector::<W>(group, index)?;
        factors[index].0 = context.cache.find_factor(key, sparsifier.identity());
        if factors[index].0.is_none() {
            missing.push((index, key));
            vectors.push((vector, sparsifier));
        }
    }
    let found = l1_factors::<W>(context.isa, &vectors, group.elements, &context.cache.masks)?;
    for ((index, key), rescale) in missing.into_iter().zip(found) {
        context.cache.put_factor(key, sparsifiers[index].identity(), rescale.factor);
        factors[index] = (Some(rescale.factor), rescale.mask.map(Arc::new));
    }
    Ok(factors)
}
