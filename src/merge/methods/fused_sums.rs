//! The arithmetic of the commonest methods in the form that [`crate::merge::fused`] keeps in registers.

use super::task_vector_sum::{SourceTerm, TaskVectorSum};
use crate::merge::block::BlockMerge;
use crate::merge::fused::{CHUNK, PairMerge, fuse};
use crate::merge::philox::{DRAW_RANGE, DRAWS, GroupDraws, Philox};
use crate::merge::sparsify::Sparsifier;
use crate::merge::tensor::Stored;
use crate::merge::threshold::Threshold;

/// See [`super::linear`].
struct Weighted<const S: usize, const DIVIDES: bool> {
    weights: [f32; S],
    divisor: f32,
}

impl<const S: usize, const DIVIDES: bool> PairMerge<S> for Weighted<S, DIVIDES> {
    type Chunk = ();

    const PROPAGATES: bool = true;

    #[inline(always)]
    fn chunk<const COUNTERS: usize>(&self, _first: u64) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn element<const HIGH: bool>(&self, _chunk: &(), _pair: usize, _base: f32, sources: [f32; S]) -> f32 {
        let sum = sources.iter().zip(&self.weights).fold(0.0, |sum, (source, weight)| source.mul_add(*weight, sum));
        if DIVIDES { sum / self.divisor } else { sum }
    }
}

/// The weighted sum of up to eight models, divided by `divisor` where there is one.
pub(super) fn weighted_sum<'a>(
    inputs: &[Stored<'a>],
    weights: &[f32],
    divisor: Option<f32>,
    tiled: Box<dyn BlockMerge + 'a>,
) -> Box<dyn BlockMerge + 'a> {
    fn sized<'a, const S: usize>(
        inputs: &[Stored<'a>],
        weights: &[f32],
        divisor: Option<f32>,
        tiled: Box<dyn BlockMerge + 'a>,
    ) -> Box<dyn BlockMerge + 'a> {
        let weights: [f32; S] = std::array::from_fn(|source| weights[source]);
        match divisor {
            Some(divisor) => fuse(inputs[0], inputs, Weighted::<S, true> { weights, divisor }, tiled),
            None => fuse(inputs[0], inputs, Weighted::<S, false> { weights, divisor: 1.0 }, tiled),
        }
    }
    match inputs.len() {
        2 => sized::<2>(inputs, weights, divisor, tiled),
        3 => sized::<3>(inputs, weights, divisor, tiled),
        4 => sized::<4>(inputs, weights, divisor, tiled),
        5 => sized::<5>(inputs, weights, divisor, tiled),
        6 => sized::<6>(inputs, weights, divisor, tiled),
        7 => sized::<7>(inputs, weights, divisor, tiled),
        8 => sized::<8>(inputs, weights, divisor, tiled),
        _ => tiled,
    }
}

/// `first x + second y`, every step rounded.
struct Combined {
    factors: [f32; 2],
}

impl PairMerge<2> for Combined {
    type Chunk = ();

    const PROPAGATES: bool = true;

    #[inline(always)]
    fn chunk<const COUNTERS: usize>(&self, _first: u64) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn element<const HIGH: bool>(&self, _chunk: &(), _pair: usize, _base: f32, sources: [f32; 2]) -> f32 {
        self.factors[0] * sources[0] + self.factors[1] * sources[1]
    }
}

/// The combination of two models.
pub(super) fn combination<'a>(
    inputs: &[Stored<'a>],
    factors: [f32; 2],
    tiled: Box<dyn BlockMerge + 'a>,
) -> Box<dyn BlockMerge + 'a> {
    fuse(inputs[0], inputs, Combined { factors }, tiled)
}

/// Which elements of task vectors are kept.
trait Rule<const S: usize>: Send + Sync {
    type Chunk;

    /// Whether an element is never dropped.
    const KEEPS_ALL: bool;

    fn chunk<const COUNTERS: usize>(&self, first: u64) -> Option<Self::Chunk>;
    fn keeps<const HIGH: bool>(&self, chunk: &Self::Chunk, pair: usize, source: usize, delta: f32) -> bool;
    /// Restores the L1 norm; 1 where it is not restored.
    fn factor(&self, source: usize) -> f32;
}

struct KeepAll;

impl<const S: usize> Rule<S> for KeepAll {
    type Chunk = ();

    const KEEPS_ALL: bool = true;

    #[inline(always)]
    fn chunk<const COUNTERS: usize>(&self, _first: u64) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn keeps<const HIGH: bool>(&self, _chunk: &(), _pair: usize, _source: usize, _delta: f32) -> bool {
        true
    }

    #[inline(always)]
    fn factor(&self, _source: usize) -> f32 {
        1.0
    }
}

struct Largest<const S: usize> {
    thresholds: [Threshold; S],
    factors: [f32; S],
}

impl<const S: usize> Rule<S> for Largest<S> {
    /// The smallest key that is kept, by source.
    type Chunk = [u32; S];

    const KEEPS_ALL: bool = false;

    /// A chunk in which equal magnitudes change from kept to dropped has more than one smallest key.
    #[inline(always)]
    fn chunk<const COUNTERS: usize>(&self, first: u64) -> Option<[u32; S]> {
        let last = first + CHUNK as u64 - 1;
        let one = |threshold: &Threshold| threshold.last >= last || threshold.last < first;
        let smallest = |threshold: Threshold| threshold.key as u32 + u32::from(threshold.last < first);
        self.thresholds.iter().all(one).then(|| self.thresholds.map(smallest))
    }

    #[inline(always)]
    fn keeps<const HIGH: bool>(&self, smallest: &[u32; S], _pair: usize, source: usize, delta: f32) -> bool {
        delta.to_bits() & 0x7FFF_FFFF >= smallest[source]
    }

    #[inline(always)]
    fn factor(&self, source: usize) -> f32 {
        self.factors[source]
    }
}

/// The masks of a chunk, aligned as vectors like them.
#[repr(align(64))]
struct Drawn<const S: usize>([GroupDraws; S]);

struct Sampled<const S: usize> {
    /// `None`: all elements are kept.
    generators: [Option<Philox>; S],
    /// The highest draw that is kept, with 16 bits of ones below.
    highest: [u32; S],
    factors: [f32; S],
}

impl<const S: usize> Rule<S> for Sampled<S> {
    type Chunk = Drawn<S>;

    const KEEPS_ALL: bool = false;

    #[inline(always)]
    fn chunk<const COUNTERS: usize>(&self, first: u64) -> Option<Drawn<S>> {
        let mut drawn = Drawn([[[0; 8]; DRAWS / 4]; S]);
        for (generator, draws) in self.generators.iter().zip(&mut drawn.0) {
            if let Some(generator) = generator {
                generator.group::<COUNTERS>(first / DRAWS as u64, draws);
            }
        }
        Some(drawn)
    }

    #[inline(always)]
    fn keeps<const HIGH: bool>(&self, drawn: &Drawn<S>, pair: usize, source: usize, _delta: f32) -> bool {
        let draws = u32::from_le_bytes(drawn.0[source].as_flattened().as_chunks::<4>().0[pair]);
        (if HIGH { draws } else { draws << 16 }) <= self.highest[source]
    }

    #[inline(always)]
    fn factor(&self, source: usize) -> f32 {
        self.factors[source]
    }
}

/// See [`TaskVectorSum`], whose steps these are.
struct FusedSum<R, const S: usize, const ELECTS: bool, const DIVIDES: bool> {
    rule: R,
    weights: [f32; S],
    /// The sum of the weights, where signs are not elected.
    divisor: f32,
    lambda: f32,
}

impl<R: Rule<S>, const S: usize, const ELECTS: bool, const DIVIDES: bool> PairMerge<S>
    for FusedSum<R, S, ELECTS, DIVIDES>
{
    type Chunk = R::Chunk;

    /// A sign that is not elected hides what has it.
    const PROPAGATES: bool = R::KEEPS_ALL && !ELECTS;

    #[inline(always)]
    fn chunk<const COUNTERS: usize>(&self, first: u64) -> Option<R::Chunk> {
        self.rule.chunk::<COUNTERS>(first)
    }

    #[inline(always)]
    fn element<const HIGH: bool>(&self, chunk: &R::Chunk, pair: usize, base: f32, sources: [f32; S]) -> f32 {
        let terms: [f32; S] = std::array::from_fn(|source| {
            let delta = sources[source] - base;
            let term = delta * self.rule.factor(source) * self.weights[source];
            if self.rule.keeps::<HIGH>(chunk, pair, source, delta) { term } else { 0.0 }
        });
        let sum = |values: [f32; S]| values.iter().fold(0.0, |sum, value| sum + value);
        let merged = if ELECTS {
            let elected = sum(terms);
            let agree = terms.map(|term| if elected >= 0.0 { term > 0.0 } else { term < 0.0 });
            let agreeing =
                |values: [f32; S]| sum(std::array::from_fn(|source| if agree[source] { values[source] } else { 0.0 }));
            if DIVIDES {
                let divisor = agreeing(self.weights);
                agreeing(terms) / if divisor == 0.0 { 1.0 } else { divisor }
            } else {
                agreeing(terms)
            }
        } else if DIVIDES {
            sum(terms) / self.divisor
        } else {
            sum(terms)
        };
        base + merged * self.lambda
    }
}

/// The sum of up to six task vectors.
pub(super) fn task_vector_sum<'a>(
    base: Stored<'a>,
    inputs: &[Stored<'a>],
    sum: &TaskVectorSum<'a, f32>,
    tiled: Box<dyn BlockMerge + 'a>,
) -> Box<dyn BlockMerge + 'a> {
    match inputs.len() {
        1 => sized::<1>(base, inputs, sum, tiled),
        2 => sized::<2>(base, inputs, sum, tiled),
        3 => sized::<3>(base, inputs, sum, tiled),
        4 => sized::<4>(base, inputs, sum, tiled),
        5 => sized::<5>(base, inputs, sum, tiled),
        6 => sized::<6>(base, inputs, sum, tiled),
        _ => tiled,
    }
}

fn sized<'a, const S: usize>(
    base: Stored<'a>,
    inputs: &[Stored<'a>],
    sum: &TaskVectorSum<'a, f32>,
    tiled: Box<dyn BlockMerge + 'a>,
) -> Box<dyn BlockMerge + 'a> {
    let keep_all = |source: &SourceTerm<'_, f32>| matches!(source.sparsifier, Sparsifier::KeepAll);
    if sum.sources.iter().all(keep_all) {
        return ruled::<KeepAll, S>(base, inputs, sum, KeepAll, tiled);
    }
    let factors = std::array::from_fn(|source| sum.sources[source].factor.unwrap_or(1.0));
    if let Some(thresholds) = of_each(sum, |sparsifier| match sparsifier {
        Sparsifier::KeepAll => Some(Threshold { key: 0, last: u64::MAX }),
        Sparsifier::Magnitude(threshold) => Some(*threshold),
        _ => None,
    }) {
        return ruled::<_, S>(base, inputs, sum, Largest { thresholds, factors }, tiled);
    }
    if let Some(masks) = of_each::<_, S>(sum, |sparsifier| match sparsifier {
        Sparsifier::KeepAll => Some((None, u32::MAX)),
        Sparsifier::Philox(mask) if (1..=DRAW_RANGE).contains(&mask.limit) => {
            Some((Some(mask.generator), (mask.limit - 1) << 16 | 0xFFFF))
        }
        _ => None,
    }) {
        let rule = Sampled { generators: masks.map(|mask| mask.0), highest: masks.map(|mask| mask.1), factors };
        return ruled::<_, S>(base, inputs, sum, rule, tiled);
    }
    tiled
}

/// What `find` says of every source's sparsifier; `None` where it says so of one.
fn of_each<T: Copy, const S: usize>(
    sum: &TaskVectorSum<'_, f32>,
    find: impl Fn(&Sparsifier<'_>) -> Option<T>,
) -> Option<[T; S]> {
    let found: Option<Vec<T>> = sum.sources.iter().map(|source| find(&source.sparsifier)).collect();
    found?.try_into().ok()
}

fn ruled<'a, R: Rule<S> + 'a, const S: usize>(
    base: Stored<'a>,
    inputs: &[Stored<'a>],
    sum: &TaskVectorSum<'a, f32>,
    rule: R,
    tiled: Box<dyn BlockMerge + 'a>,
) -> Box<dyn BlockMerge + 'a> {
    let weights = std::array::from_fn(|source| sum.sources[source].weight);
    let (lambda, divisor) = (sum.lambda.unwrap_or(1.0), sum.divisor());
    match (sum.elects_sign, sum.normalize) {
        (true, true) => fuse(base, inputs, FusedSum::<R, S, true, true> { rule, weights, divisor, lambda }, tiled),
        (true, false) => fuse(base, inputs, FusedSum::<R, S, true, false> { rule, weights, divisor, lambda }, tiled),
        (false, true) => fuse(base, inputs, FusedSum::<R, S, false, true> { rule, weights, divisor, lambda }, tiled),
        (false, false) => fuse(base, inputs, FusedSum::<R, S, false, false> { rule, weights, divisor, lambda }, tiled),
    }
}
