//! Weighted average of whole models (Model Soups, arXiv 2203.05482).

use super::{Context, MergeMethod, fused_sums};
use crate::merge::MergeError;
use crate::merge::block::{BlockMerge, TileMerge, Tiled};
use crate::merge::element::Element;
use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, SingleSource,
    Survivor, Untrimmed,
};
use crate::merge::tensor::{TILE, TensorGroup};

static LINEAR: MethodSpecification = MethodSpecification {
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
    survivor: Survivor::Any,
    samples_masks: false,
    untrimmed: Some(Untrimmed::Average),
    single_source: SingleSource::Kept,
    help: "weighted average of the models (Model Soups, arXiv 2203.05482)",
};

/// `sum(w_i x_i) / sum(w_i)`.
pub(super) struct Linear;

impl MergeMethod for Linear {
    fn specification(&self) -> &'static MethodSpecification {
        &LINEAR
    }

    fn prepare<'a>(
        &self,
        group: &TensorGroup<'a>,
        _context: &mut Context<'_>,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
        let inputs = group.inputs.clone();
        if group.is_wide() {
            let arithmetic = weighted_sum::<f64>(group)?;
            return Ok(Box::new(Tiled::new(group.name, inputs, arithmetic)));
        }
        let arithmetic = weighted_sum::<f32>(group)?;
        let (weights, divisor) = (arithmetic.weights.clone(), arithmetic.effective_divisor());
        let tiled = Box::new(Tiled::new(group.name, inputs, arithmetic));
        Ok(fused_sums::weighted_sum(&group.inputs, &weights, divisor, tiled))
    }
}

/// Refuses weights that the precision of the merge cannot hold: infinite ones, and such whose sum is.
pub(super) fn check_weights<W: Element>(group: &TensorGroup<'_>, weights: &[W], sum: W) -> Result<(), MergeError> {
    if weights.iter().chain([&sum]).all(|weight| weight.to_f64().is_finite()) {
        return Ok(());
    }
    Err(group.infeasible("its weights, or their sum, are too large for the precision of the merge"))
}

fn weighted_sum<W: Element>(group: &TensorGroup<'_>) -> Result<WeightedSum<W>, MergeError> {
    let weights: Vec<W> = group.parameters.source_numbers("weight")?.into_iter().map(W::from_f64).collect();
    let sum = W::sum_as_pytorch(&weights);
    check_weights(group, &weights, sum)?;
    let normalize = group.parameters.truth("normalize")?;
    if normalize && sum == W::ZERO {
        return Err(group.infeasible(
            "its weights sum to zero, so that there is no average; change them or set `normalize = false`",
        ));
    }
    Ok(WeightedSum { weights, divisor: normalize.then_some(sum) })
}

struct WeightedSum<W> {
    weights: Vec<W>,
    divisor: Option<W>,
}

impl<W: Element> WeightedSum<W> {
    /// A quotient by one is the dividend.
    fn effective_divisor(&self) -> Option<W> {
        self.divisor.filter(|divisor| *divisor != W::ONE)
    }
}

impl<W: Element> TileMerge<W> for WeightedSum<W> {
    type State = ();

    fn begin(&self, _first: u64) {}

    /// One fused multiply-add a model, in model order: the result is the same bits on every machine.
    #[inline(always)]
    fn merge_tile(&self, _state: &mut (), _first: u64, inputs: &mut [W], output: &mut [W]) {
        output.fill(W::ZERO);
        // Several models at a time: a sum stays in its register from one to the next.
        for (weights, tiles) in self.weights.chunks(4).zip(inputs.chunks(4 * TILE)) {
            if let [first, second, third, fourth] = weights {
                let (left, right) = tiles.split_at(2 * TILE);
                let ((one, two), (three, four)) = (left.split_at(TILE), right.split_at(TILE));
                for ((((sum, one), two), three), four) in output.iter_mut().zip(one).zip(two).zip(three).zip(four) {
                    let half = two.mul_add(*second, one.mul_add(*first, *sum));
                    *sum = four.mul_add(*fourth, three.mul_add(*third, half));
                }
                continue;
            }
            for (weight, values) in weights.iter().zip(tiles.chunks_exact(TILE)) {
                for (sum, value) in output.iter_mut().zip(values) {
                    *sum = value.mul_add(*weight, *sum);
                }
            }
        }
        if let Some(divisor) = self.effective_divisor() {
            for sum in output {
                *sum = *sum / divisor;
            }
        }
    }
}
