//! Select, calculate, erase: task vectors where models differ most, weighted by their size (FuseChat, arXiv
//! 2408.07990).

use std::ops::Range;

use super::{Context, MergeMethod};
use crate::merge::MergeError;
use crate::merge::block::{BlockMerge, Buffered, TileMerge, Tiled};
use crate::merge::cascade_sum::{sum_stack, sum_tiles};
use crate::merge::element::Element;
use crate::merge::reduce::{Lanes, sum_block_rows};
use crate::merge::simd::{Isa, Kernel, dispatch};
use crate::merge::sparsify::keep_from;
use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, SingleSource,
    Survivor,
};
use crate::merge::tensor::{Stored, TILE, TensorGroup, Values, decode_tiles, tiles};
use crate::merge::threshold::{Threshold, coarse_histogram, select};

static SCE: MethodSpecification = MethodSpecification {
    name: "sce",
    parameters: &[ParameterSpecification {
        name: "select_topk",
        scope: ParameterScope::Tensor,
        kind: ParameterKind::Number { default: Some(1.0), low: 0.05, high: 1.0 },
        help: "share of the elements that is merged: those whose variance over the models is largest",
    }],
    base: BaseUse::Required,
    inputs: InputCount::AtLeast(1),
    survivor: Survivor::None,
    samples_masks: false,
    untrimmed: None,
    single_source: SingleSource::Changed,
    help: "selects by variance, weighs by size, erases minority signs (arXiv 2408.07990)",
};

/// A sum of mean squares below this leaves the weights equal.
const NO_SIZE: f64 = 1e-6;
/// A sum of weights below this counts as this.
const NO_WEIGHT: f64 = 1e-6;

/// `base + sum(c_i m_i delta_i) / sum(c_i m_i)`, where `c_i` is the share of the selected task vector's mean square and
/// `m_i` says whether it has the sign of the sum of all.
pub(super) struct Sce;

impl MergeMethod for Sce {
    fn specification(&self) -> &'static MethodSpecification {
        &SCE
    }

    fn prepare<'a>(
        &self,
        group: &TensorGroup<'a>,
        context: &mut Context<'_>,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
        if group.is_wide() { prepare::<f64>(group, context.isa) } else { prepare::<f32>(group, context.isa) }
    }
}

fn prepare<'a, W: Buffered>(group: &TensorGroup<'a>, isa: Isa) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
    let inputs: Vec<Stored<'a>> = group.base.iter().chain(&group.inputs).copied().collect();
    let selection = selection::<W>(isa, &inputs, group.elements, group.parameters.number("select_topk")?)?;
    let squares = squares::<W>(isa, &inputs, selection, group.elements)?;
    let means: Vec<f64> = squares.iter().map(|sum| sum / (group.elements as f64).max(1.0)).collect();
    let sum: f64 = means.iter().sum();
    let share = |mean: &f64| W::from_f64(if sum < NO_SIZE { 1.0 / means.len() as f64 } else { mean / sum });
    let arithmetic = Fusion { weights: means.iter().map(share).collect::<Vec<W>>(), selection };
    Ok(Box::new(Tiled::new(group.name, inputs, arithmetic)))
}

/// Which elements are merged.
#[derive(Clone, Copy)]
enum Selection {
    All,
    None,
    Variance(Threshold),
}

impl Selection {
    /// Sets the task vectors' elements that are not selected to zero.
    #[inline(always)]
    fn apply<W: Element>(self, first: u64, deltas: &mut [W], length: usize, scratch: &mut [W]) {
        match self {
            Self::All => {}
            Self::None => deltas.fill(W::ZERO),
            Self::Variance(threshold) => {
                let variance = &mut scratch[..length];
                variances(deltas, variance);
                keep_from(threshold, first, variance);
                for delta in deltas.chunks_exact_mut(TILE) {
                    for (value, variance) in delta.iter_mut().zip(variance.iter()) {
                        *value = if *variance > W::ZERO { *value } else { W::ZERO };
                    }
                }
            }
        }
    }
}

/// Task vectors of a tile of decoded inputs, in place of the models.
#[inline(always)]
fn subtract<W: Element>(inputs: &mut [W]) -> (&mut [W], &mut [W]) {
    let (base, models) = inputs.split_at_mut(TILE);
    for model in models.chunks_exact_mut(TILE) {
        for (value, base) in model.iter_mut().zip(base.iter()) {
            *value = *value - *base;
        }
    }
    (base, models)
}

/// Variance of each element over the models, by Welford's recurrence in float64: equal values have none, exactly. Model
/// by model, so that elements share vectors.
#[inline(always)]
fn variances<W: Element>(deltas: &[W], output: &mut [W]) {
    let (mut means, mut sums) = ([0.0_f64; TILE], [0.0_f64; TILE]);
    let mut count = 0.0;
    for model in deltas.chunks_exact(TILE) {
        count += 1.0;
        for ((value, mean), sum) in model.iter().zip(&mut means).zip(&mut sums) {
            let value = value.to_f64();
            let distance = value - *mean;
            *mean += distance / count;
            *sum += distance * (value - *mean);
        }
    }
    for (variance, sum) in output.iter_mut().zip(&sums) {
        *variance = W::from_f64(*sum / count);
    }
}

/// The variances as values to select among.
#[derive(Clone, Copy)]
struct Variances<'a> {
    inputs: &'a [Stored<'a>],
}

impl<W: Element> Values<W> for Variances<'_> {
    fn scratch(&self) -> usize {
        self.inputs.len() * TILE
    }

    #[inline(always)]
    fn tile(&self, first: u64, values: &mut [W], scratch: &mut [W]) -> Result<(), MergeError> {
        decode_tiles(self.inputs, first, values.len(), scratch)?;
        let (_, deltas) = subtract(scratch);
        variances(deltas, values);
        Ok(())
    }
}

/// How many of the elements that vary are selected: their number times the share, rounded to float32, then down.
///
/// mergekit's count is a tensor, which makes the product a float32. It is a whole number far more often than the exact
/// product is, most of all where a gradient's share is a hair below the decimal that it stands for.
fn selected(varied: u64, share: f64) -> u64 {
    ((varied as f32 * share.max(0.0) as f32) as u64).min(varied)
}

fn selection<W: Element>(isa: Isa, inputs: &[Stored<'_>], elements: u64, share: f64) -> Result<Selection, MergeError> {
    if share >= 1.0 {
        return Ok(Selection::All);
    }
    let values = Variances { inputs };
    let coarse = coarse_histogram::<W, _>(isa, values, elements)?;
    let kept = selected(elements - coarse.zeros(), share);
    if kept == 0 {
        return Ok(Selection::None);
    }
    select::<W, _>(isa, values, elements, kept, || Ok(coarse)).map(Selection::Variance)
}

/// Sums of squares of the selected task vectors.
fn squares<W: Element>(
    isa: Isa,
    inputs: &[Stored<'_>],
    selection: Selection,
    elements: u64,
) -> Result<Vec<f64>, MergeError> {
    sum_block_rows(elements, inputs.len() - 1, |range, sums| {
        let mut buffer = vec![W::ZERO; (inputs.len() + 1) * TILE];
        dispatch(isa, SumSquares { inputs, selection, range, buffer: &mut buffer, sums })
    })
}

struct SumSquares<'a, W> {
    inputs: &'a [Stored<'a>],
    selection: Selection,
    range: Range<u64>,
    buffer: &'a mut [W],
    sums: &'a mut [f64],
}

impl<W: Element> Kernel for SumSquares<'_, W> {
    type Output = Result<(), MergeError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut lanes = vec![Lanes::ZERO; self.sums.len()];
        let (scratch, buffer) = self.buffer.split_at_mut(TILE);
        for (first, length) in tiles(self.range) {
            decode_tiles(self.inputs, first, length, buffer)?;
            let (_, deltas) = subtract(buffer);
            self.selection.apply(first, deltas, length, scratch);
            for (lanes, delta) in lanes.iter_mut().zip(deltas.chunks_exact(TILE)) {
                lanes.add_each(&delta[..length], |value| value.to_f64() * value.to_f64());
            }
        }
        for (sum, lanes) in self.sums.iter_mut().zip(&lanes) {
            *sum += lanes.total();
        }
        Ok(())
    }
}

struct Fusion<W> {
    weights: Vec<W>,
    selection: Selection,
}

impl<W: Element> TileMerge<W> for Fusion<W> {
    /// Room for the election and for the sum of weights.
    type State = Vec<W>;

    fn begin(&self, _first: u64) -> Vec<W> {
        vec![W::ZERO; 2 * TILE]
    }

    #[inline(always)]
    fn merge_tile(&self, state: &mut Vec<W>, first: u64, inputs: &mut [W], output: &mut [W]) {
        let length = output.len();
        let (base, deltas) = subtract(inputs);
        let (elected, divisor) = state.split_at_mut(TILE);
        self.selection.apply(first, deltas, length, elected);
        let (elected, divisor) = (&mut elected[..length], &mut divisor[..length]);
        let count = self.weights.len();
        let tile = |source: usize| deltas[source * TILE..][..TILE].iter();
        sum_tiles(deltas, count, elected);
        sum_stack(
            count,
            [output, divisor],
            #[inline(always)]
            |sources, [output, divisor]| {
                for source in sources {
                    let results = output.iter_mut().zip(divisor.iter_mut());
                    for (((sum, weights), value), elected) in results.zip(tile(source)).zip(&*elected) {
                        let agrees = if *elected >= W::ZERO { *value > W::ZERO } else { *value < W::ZERO };
                        let weight = if agrees { self.weights[source] } else { W::ZERO };
                        *sum = *sum + *value * weight;
                        *weights = *weights + weight;
                    }
                }
            },
        );
        let least = W::from_f64(NO_WEIGHT);
        for ((value, divisor), base) in output.iter_mut().zip(divisor).zip(base) {
            *value = *base + *value / if *divisor > least { *divisor } else { least };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::selected;

    #[test]
    fn the_count_is_that_of_a_float32_product() {
        let hair_below = 0.588 + (0.088 - 0.588) * 0.4;
        assert!(500.0 * hair_below < 194.0);
        assert_eq!(selected(500, hair_below), 194);
        assert_eq!(selected(500, 0.387), 193);
    }

    #[test]
    fn the_count_stays_between_none_and_all() {
        assert_eq!(selected(500, -0.5), 0);
        assert_eq!(selected(0, 0.5), 0);
        let odd = (1 << 25) + 3;
        assert_eq!(selected(odd, 1.0 - 1e-12), odd);
    }
}
