//! Takes over a model's most important changes only (Arcee Fusion).

use std::cell::OnceCell;
use std::sync::Arc;

use super::{Context, MergeMethod};
use crate::merge::MergeError;
use crate::merge::block::{BlockMerge, TileMerge, Tiled};
use crate::merge::divergence::{Divergence, RowPair, Rows};
use crate::merge::element::Element;
use crate::merge::gram::{Lines, Run};
use crate::merge::reduce::{in_order, sum_block_rows};
use crate::merge::simd::Isa;
use crate::merge::specification::{BaseUse, InputCount, MethodSpecification, SingleSource, Survivor};
use crate::merge::tensor::{BLOCK, Stored, TILE, TensorGroup, Values, tiles};
use crate::merge::threshold::{Histogram, coarse_histogram, select_key};

static ARCEE_FUSION: MethodSpecification = MethodSpecification {
    name: "arcee_fusion",
    parameters: &[],
    base: BaseUse::Required,
    inputs: InputCount::Exactly(1),
    survivor: Survivor::Any,
    samples_masks: false,
    untrimmed: None,
    single_source: SingleSource::Changed,
    help: "takes over a model's most important changes: size times divergence of rows above median + 1.5 IQR",
};

/// `base + delta [importance >= median + 1.5 interquartile range]`, where an element's importance is `|delta|` times
/// the divergence between the softmax of its row in the model and in the base.
pub(super) struct ArceeFusion;

impl MergeMethod for ArceeFusion {
    fn specification(&self) -> &'static MethodSpecification {
        &ARCEE_FUSION
    }

    fn prepare<'a>(
        &self,
        group: &TensorGroup<'a>,
        context: &mut Context<'_>,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
        if group.is_wide() { prepare::<f64>(group, context.isa) } else { prepare::<f32>(group, context.isa) }
    }
}

fn prepare<'a, W: Divergence>(group: &TensorGroup<'a>, isa: Isa) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
    let (Some(base), [source]) = (group.base, &group.inputs[..]) else {
        return Err(MergeError::Internal("arcee_fusion takes a base and one model".into()));
    };
    let lines = Lines::last_dimension(group.shape);
    let width = group.shape.last().map_or(1, |length| *length as u64);
    let divergences = divergences::<W>(isa, *source, base, group.elements, width)?;
    let threshold = if group.elements == 0 {
        W::ZERO
    } else {
        let magnitudes = |negative| Importances { source: *source, base, lines, divergences: &divergences, negative };
        let negative = if divergences.iter().any(|divergence| *divergence < W::ZERO) {
            count_positive(magnitudes(true), group.elements)?
        } else {
            0
        };
        // One for each sign, counted where a quantile has it.
        let histograms = [const { OnceCell::new() }; 2];
        let largest = |kept: u64, importances: Importances<'_, W>| {
            let known: &OnceCell<Arc<Histogram>> = &histograms[usize::from(importances.negative)];
            let coarse = || match known.get() {
                Some(histogram) => Ok(Arc::clone(histogram)),
                None => {
                    let histogram = coarse_histogram::<W, _>(isa, importances, group.elements)?;
                    Ok(Arc::clone(known.get_or_init(|| histogram)))
                }
            };
            let key = select_key::<W, _>(isa, importances, group.elements, kept, coarse)?;
            Ok::<W, MergeError>(W::from_key(W::key_from_u64(key)))
        };
        let quantile = |share: f64| {
            // From the smallest, at the whole part of `share (n - 1)`. The most negative has the largest magnitude.
            let rank = (share * (group.elements - 1) as f64) as u64;
            if rank < negative {
                largest(rank + 1, magnitudes(true)).map(|magnitude| W::ZERO - magnitude)
            } else {
                largest(group.elements - rank, magnitudes(false))
            }
        };
        let (lower, median, upper) = (quantile(0.25)?, quantile(0.5)?, quantile(0.75)?);
        median + W::from_f64(1.5) * (upper - lower)
    };
    let arithmetic = Fusion { lines, divergences, threshold };
    Ok(Box::new(Tiled::new(group.name, vec![base, *source], arithmetic)))
}

/// The divergence of each row from the base's.
fn divergences<W: Divergence>(
    isa: Isa,
    source: Stored<'_>,
    base: Stored<'_>,
    elements: u64,
    width: u64,
) -> Result<Vec<W>, MergeError> {
    let rows = elements.checked_div(width).unwrap_or(0);
    let step = (BLOCK / width.max(1)).max(1);
    let parts = in_order(rows.div_ceil(step), |part| {
        let mut tiles = RowPair::new();
        let row = |row: u64| {
            let elements = row * width..(row + 1) * width;
            W::divergence(isa, &Rows { model: source, base, elements }, &mut tiles)
        };
        (part * step..rows.min((part + 1) * step)).map(row).collect::<Result<Vec<W>, _>>()
    })?;
    Ok(parts.into_iter().flatten().collect())
}

/// The importances of one sign as magnitudes to select among; those of the other sign are zero.
#[derive(Clone, Copy)]
struct Importances<'a, W> {
    source: Stored<'a>,
    base: Stored<'a>,
    /// Rows.
    lines: Lines,
    divergences: &'a [W],
    negative: bool,
}

impl<W: Element> Values<W> for Importances<'_, W> {
    fn scratch(&self) -> usize {
        TILE
    }

    #[inline(always)]
    fn tile(&self, first: u64, values: &mut [W], scratch: &mut [W]) -> Result<(), MergeError> {
        let base = &mut scratch[..values.len()];
        self.source.decode(first, values)?;
        self.base.decode(first, base)?;
        for Run { line, elements, .. } in self.lines.runs(first, values.len()) {
            let divergence = self.divergences[line];
            let parts = values[elements.clone()].iter_mut().zip(&base[elements]);
            if (divergence < W::ZERO) == self.negative {
                let size = divergence.abs();
                parts.for_each(|(value, base)| *value = (*value - *base).abs() * size);
            } else {
                parts.for_each(|(value, _)| *value = W::ZERO);
            }
        }
        Ok(())
    }
}

/// How many of the values are not zero.
fn count_positive<W: Element>(values: Importances<'_, W>, elements: u64) -> Result<u64, MergeError> {
    let counts = sum_block_rows(elements, 1, |range, count| {
        let (mut tile, mut scratch) = (vec![W::ZERO; TILE], vec![W::ZERO; TILE]);
        for (first, length) in tiles(range) {
            values.tile(first, &mut tile[..length], &mut scratch)?;
            count[0] += tile[..length].iter().filter(|value| **value > W::ZERO).count() as f64;
        }
        Ok(())
    })?;
    Ok(counts[0] as u64)
}

struct Fusion<W> {
    /// Rows.
    lines: Lines,
    divergences: Vec<W>,
    threshold: W,
}

impl<W: Element> TileMerge<W> for Fusion<W> {
    type State = ();

    fn begin(&self, _first: u64) {}

    #[inline(always)]
    fn merge_tile(&self, _state: &mut (), first: u64, inputs: &mut [W], output: &mut [W]) {
        let (base, source) = inputs.split_at(TILE);
        for Run { line, elements, .. } in self.lines.runs(first, output.len()) {
            let divergence = self.divergences[line];
            let inputs = base[elements.clone()].iter().zip(&source[elements.clone()]);
            for (value, (base, source)) in output[elements].iter_mut().zip(inputs) {
                let delta = *source - *base;
                let important = delta.abs() * divergence >= self.threshold;
                *value = *base + if important { delta } else { W::ZERO };
            }
        }
    }
}
