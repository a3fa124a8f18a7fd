//! The arithmetic of the task arithmetic family: what becomes of sparsified task vectors.

use std::sync::Arc;

use crate::merge::block::TileMerge;
use crate::merge::cascade_sum::{sum_stack, sum_tiles};
use crate::merge::element::Element;
use crate::merge::remembered::RememberedMask;
use crate::merge::sparsify::{MaskCursor, Sparsifier};
use crate::merge::tensor::TILE;

/// What becomes of one source's task vector.
pub(super) struct SourceTerm<'a, W> {
    pub(super) weight: W,
    pub(super) sparsifier: Sparsifier<'a>,
    /// Restores the L1 norm.
    pub(super) factor: Option<W>,
    /// The mask, where it has been drawn before.
    pub(super) mask: Option<Arc<RememberedMask>>,
}

/// The family's arithmetic. Input 0 is the base. Every step is rounded, sums go over the sources in order; of many, in
/// that of [`sum_stack`].
pub(super) struct TaskVectorSum<'a, W> {
    pub(super) sources: Vec<SourceTerm<'a, W>>,
    pub(super) elects_sign: bool,
    pub(super) normalize: bool,
    /// The sum of the weights, in the order that mergekit's has; 1 where they cancel out.
    pub(super) divisor: W,
    /// `None`: 1.
    pub(super) lambda: Option<W>,
}

/// Where in the streams of masks a run of tiles is.
pub(super) struct Running {
    cursors: Vec<MaskCursor>,
}

impl<W: Element> TileMerge<W> for TaskVectorSum<'_, W> {
    type State = Running;

    fn begin(&self, first: u64) -> Running {
        Running { cursors: self.sources.iter().map(|source| source.begin(first)).collect() }
    }

    #[inline(always)]
    fn merge_tile(&self, state: &mut Running, first: u64, inputs: &mut [W], output: &mut [W]) {
        let length = output.len();
        let (base, deltas) = inputs.split_at_mut(TILE);
        let base = &base[..length];
        let terms = self.sources.iter().zip(&mut state.cursors).zip(deltas.chunks_exact_mut(TILE));
        for ((source, cursor), delta) in terms {
            source.weigh(cursor, first, &mut delta[..length], base);
        }
        if self.elects_sign {
            self.sum_elected(deltas, output);
        } else {
            self.sum_all(deltas, output);
        }
        if let Some(lambda) = self.lambda {
            for value in output.iter_mut() {
                *value = *value * lambda;
            }
        }
        for (value, base) in output.iter_mut().zip(base) {
            *value = *base + *value;
        }
    }
}

impl<W: Element> SourceTerm<'_, W> {
    /// Ranks are not taken a second time where the mask is remembered.
    fn begin(&self, first: u64) -> MaskCursor {
        if let (Sparsifier::Ranked(ranked), Some(mask)) = (&self.sparsifier, &self.mask)
            && let Some(kept) = mask.block(first, ranked.block_length(first))
        {
            return MaskCursor::Drawn { first, kept };
        }
        self.sparsifier.begin::<W>(first)
    }

    /// Turns a source's values into its sparsified, rescaled and weighted task vector.
    #[inline(always)]
    fn weigh(&self, cursor: &mut MaskCursor, first: u64, values: &mut [W], base: &[W]) {
        let weight = self.weight;
        match self.factor {
            Some(factor) => self.sparsifier.subtract(cursor, first, values, base, |delta| delta * factor * weight),
            None => self.sparsifier.subtract(cursor, first, values, base, |delta| delta * weight),
        }
    }
}

/// The values of one element of all sources, in order, and what is made of them.
#[inline(always)]
fn combine<W: Element, const N: usize>(deltas: &[W], output: &mut [W], result: impl Fn([W; N]) -> W) {
    let length = output.len();
    let tiles: [&[W]; N] = std::array::from_fn(|source| &deltas[source * TILE..][..length]);
    for (index, value) in output.iter_mut().enumerate() {
        *value = result(std::array::from_fn(|source| tiles[source][index]));
    }
}

impl<'a, W: Element> TaskVectorSum<'a, W> {
    pub(super) fn new(sources: Vec<SourceTerm<'a, W>>, elects_sign: bool, normalize: bool, lambda: Option<W>) -> Self {
        let weights: Vec<W> = sources.iter().map(|source| source.weight).collect();
        let sum = W::sum_as_pytorch(&weights);
        let divisor = if sum.abs() < W::from_f64(1e-8) { W::ONE } else { sum };
        Self { sources, elects_sign, normalize, divisor, lambda }
    }

    #[inline(always)]
    fn sum_all(&self, deltas: &[W], output: &mut [W]) {
        sum_stack(
            self.sources.len(),
            [output],
            #[inline(always)]
            |sources, [output]| {
                // A few sources at a time: their sum stays in a register.
                for tiles in deltas[sources.start * TILE..sources.end * TILE].chunks(4 * TILE) {
                    if let (4, Some((one, rest))) = (tiles.len() / TILE, tiles.split_at_checked(TILE)) {
                        let ((two, rest), length) = (rest.split_at(TILE), output.len());
                        let (three, four) = rest.split_at(TILE);
                        let others = two[..length].iter().zip(&three[..length]).zip(&four[..length]);
                        for ((sum, one), ((two, three), four)) in output.iter_mut().zip(one).zip(others) {
                            *sum = *sum + *one + *two + *three + *four;
                        }
                        continue;
                    }
                    for delta in tiles.chunks_exact(TILE) {
                        for (sum, value) in output.iter_mut().zip(delta) {
                            *sum = *sum + *value;
                        }
                    }
                }
            },
        );
        if self.normalize {
            for value in output {
                *value = *value / self.divisor;
            }
        }
    }

    /// Sums the values whose sign is that of the sum of all (a sum of zero counts as positive).
    #[inline(always)]
    fn sum_elected(&self, deltas: &[W], output: &mut [W]) {
        match self.sources.len() {
            1 => self.elect::<1>(deltas, output),
            2 => self.elect::<2>(deltas, output),
            3 => self.elect::<3>(deltas, output),
            4 => self.elect::<4>(deltas, output),
            5 => self.elect::<5>(deltas, output),
            6 => self.elect::<6>(deltas, output),
            _ => self.elect_many(deltas, output),
        }
    }

    /// One loop over the elements of a fixed number of sources, so that nothing but the result is stored.
    #[inline(always)]
    fn elect<const N: usize>(&self, deltas: &[W], output: &mut [W]) {
        let weights: [W; N] = std::array::from_fn(|source| self.sources[source].weight);
        let agreeing = |values: [W; N]| {
            let elected = values.iter().fold(W::ZERO, |sum, value| sum + *value);
            let agrees = |value: W| if elected >= W::ZERO { value > W::ZERO } else { value < W::ZERO };
            values.map(agrees)
        };
        let sum = |terms: [W; N], agree: [bool; N]| {
            let terms = terms.iter().zip(agree);
            terms.fold(W::ZERO, |sum, (term, agrees)| sum + if agrees { *term } else { W::ZERO })
        };
        if self.normalize {
            combine::<W, N>(deltas, output, |values| {
                let agree = agreeing(values);
                let divisor = sum(weights, agree);
                sum(values, agree) / if divisor == W::ZERO { W::ONE } else { divisor }
            });
        } else {
            combine::<W, N>(deltas, output, |values| sum(values, agreeing(values)));
        }
    }

    /// Does what [`Self::elect`] does, for any number of sources.
    #[inline(always)]
    fn elect_many(&self, deltas: &[W], output: &mut [W]) {
        let (mut elected, mut divisor) = ([W::ZERO; TILE], [W::ZERO; TILE]);
        let (elected, divisor) = (&mut elected[..output.len()], &mut divisor[..output.len()]);
        let count = self.sources.len();
        let tile = |source: usize| deltas[source * TILE..][..TILE].iter();
        sum_tiles(deltas, count, elected);
        sum_stack(
            count,
            [output, divisor],
            #[inline(always)]
            |sources, [output, divisor]| {
                for source in sources {
                    let weight = self.sources[source].weight;
                    let sums = output.iter_mut().zip(divisor.iter_mut());
                    for (((sum, weights), value), elected) in sums.zip(tile(source)).zip(&*elected) {
                        let agrees = if *elected >= W::ZERO { *value > W::ZERO } else { *value < W::ZERO };
                        *sum = *sum + if agrees { *value } else { W::ZERO };
                        *weights = *weights + if agrees { weight } else { W::ZERO };
                    }
                }
            },
        );
        if self.normalize {
            for (value, divisor) in output.iter_mut().zip(divisor) {
                *value = *value / if *divisor == W::ZERO { W::ONE } else { *divisor };
            }
        }
    }
}
