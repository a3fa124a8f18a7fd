//! Takes over a model's most important changes only (Arcee Fusion).

use std::marker::PhantomData;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::{Context, MergeMethod};
use crate::merge::MergeError;
use crate::merge::block::{BlockMerge, TileMerge, Tiled};
use crate::merge::divergence::{Divergence, RowPair, Rows};
use crate::merge::element::Element;
use crate::merge::gram::Lines;
use crate::merge::reduce::sum_block_rows;
use crate::merge::simd::Isa;
use crate::merge::specification::{BaseUse, InputCount, MethodSpecification, Survivor};
use crate::merge::tensor::{BLOCK, Stored, TILE, TensorGroup, Values, tiles};
use crate::merge::threshold::{coarse_histogram, select};

static ARCEE_FUSION: MethodSpecification = MethodSpecification {
    name: "arcee_fusion",
    parameters: &[],
    base: BaseUse::Required,
    inputs: InputCount::Exactly(1),
    survivor: Survivor::Any,
    samples_masks: false,
    help: "takes over a model's most important changes: size times divergence of rows above median + 1.5 IQR",
};

/// `base + delta [importance >= median + 1.5 interquartile range]`, where an element's importance is `|delta|` times the
/// divergence between the softmax of its row in the model and in the base.
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
    let divergences = divergences::<W>(*source, base, group.elements, lines)?;
    let threshold = if group.elements == 0 {
        W::ZERO
    } else {
        let magnitudes = |negative| Importances { source: *source, base, lines, divergences: &divergences, negative };
        let negative = if divergences.iter().any(|divergence| *divergence < W::ZERO) {
            count_positive(magnitudes(true), group.elements)?
        } else {
            0
        };
        let largest = |kept: u64, importances: Importances<'_, W>| {
            let coarse = || coarse_histogram::<W, _>(isa, importances, group.elements);
            let threshold = select::<W, _>(isa, importances, group.elements, kept, coarse)?;
            Ok::<W, MergeError>(W::from_key(W::key_from_u64(threshold.key)))
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
    Ok(Box::new(Tiled { tensor: group.name, inputs: vec![base, *source], arithmetic, precision: PhantomData }))
}

/// The divergence of each row from the base's.
fn divergences<W: Divergence>(
    source: Stored<'_>,
    base: Stored<'_>,
    elements: u64,
    lines: Lines,
) -> Result<Vec<W>, MergeError> {
    let Lines::Rows(width) = lines else {
        return Err(MergeError::Internal("arcee_fusion compares rows".into()));
    };
    let rows = elements.checked_div(width).unwrap_or(0);
    let step = (BLOCK / width.max(1)).max(1);
    let parts: Vec<Result<Vec<W>, MergeError>> = (0..rows.div_ceil(step))
        .into_par_iter()
        .map(|part| {
            let mut tiles = RowPair::new();
            (part * step..rows.min((part + 1) * step))
                .map(|row| {
                    let elements = row * width..(row + 1) * width;
                    W::divergence(&Rows { model: source, base, elements }, &mut tiles)
                })
                .collect()
        })
        .collect();
    let mut all = Vec::with_capacity(rows as usize);
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}

/// The importances of one sign as magnitudes to select among; those of the other sign are zero.
#[derive(Clone, Copy)]
struct Importances<'a, W> {
    source: Stored<'a>,
    base: Stored<'a>,
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
        for ((element, value), base) in (first..).zip(values.iter_mut()).zip(base) {
            let importance = (*value - *base).abs() * self.divergences[self.lines.of(element)];
            let counts = (importance < W::ZERO) == self.negative;
            *value = if counts { importance.abs() } else { W::ZERO };
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
        for ((element, value), (base, source)) in (first..).zip(output.iter_mut()).zip(base.iter().zip(source)) {
            let delta = *source - *base;
            let important = delta.abs() * self.divergences[self.lines.of(element)] >= self.threshold;
            *value = *base + if important { delta } else { W::ZERO };
        }
    }
}
