//! The arithmetic of the commonest methods in the form that [`crate::merge::fused`] keeps in registers.

use std::sync::Arc;

use super::task_vector_sum::{SourceTerm, TaskVectorSum};
use crate::merge::block::BlockMerge;
use crate::merge::fused::{CHUNK, PairMerge, fuse};
use crate::merge::philox::{DRAWS, GroupDraws, Philox, pairs};
use crate::merge::remembered::{RememberedMask, as_draws};
use crate::merge::simd::prefetch;
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

    fn begin(&self) {}

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

    const FETCHES_AHEAD: bool = true;

    fn begin(&self) {}

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

    /// As [`PairMerge::FETCHES_AHEAD`].
    const FETCHES_AHEAD: bool = false;

    fn begin(&self) -> Self::Chunk;

    /// As [`PairMerge::prepare`].
    #[inline(always)]
    fn prepare<const COUNTERS: usize>(&self, _first: u64, _sources: [&[u8]; S], _chunk: &mut Self::Chunk) -> bool {
        true
    }

    fn keeps<const HIGH: bool>(&self, chunk: &Self::Chunk, pair: usize, source: usize, delta: f32) -> bool;
    /// Restores the L1 norm; 1 where it is not restored.
    fn factor(&self, source: usize) -> f32;
}

struct KeepAll;

impl<const S: usize> Rule<S> for KeepAll {
    type Chunk = ();

    const KEEPS_ALL: bool = true;

    fn begin(&self) {}

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

    const FETCHES_AHEAD: bool = true;

    fn begin(&self) -> [u32; S] {
        [0; S]
    }

    /// A chunk in which equal magnitudes change from kept to dropped has more than one smallest key.
    #[inline(always)]
    fn prepare<const COUNTERS: usize>(&self, first: u64, _sources: [&[u8]; S], smallest: &mut [u32; S]) -> bool {
        let last = first + CHUNK as u64 - 1;
        *smallest = self.thresholds.map(|threshold| threshold.key as u32 + u32::from(threshold.last < first));
        self.thresholds.iter().all(|threshold| threshold.last >= last || threshold.last < first)
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
    /// Masks that need not be drawn again.
    remembered: [Option<Arc<RememberedMask>>; S],
    /// The highest draw that is kept, moved up, with ones below.
    highest: [u32; S],
    factors: [f32; S],
}

impl<const S: usize> Rule<S> for Sampled<S> {
    type Chunk = Drawn<S>;

    const KEEPS_ALL: bool = false;

    fn begin(&self) -> Drawn<S> {
        Drawn([[[0; 8]; DRAWS / 4]; S])
    }

    #[inline(always)]
    fn prepare<const COUNTERS: usize>(&self, first: u64, sources: [&[u8]; S], drawn: &mut Drawn<S>) -> bool {
        let masks = self.generators.iter().zip(&self.remembered);
        for (((generator, remembered), draws), source) in masks.zip(&mut drawn.0).zip(sources) {
            // Memory answers while the mask is drawn.
            prefetch(source);
            match (generator, remembered.as_ref().and_then(|mask| mask.chunk(first))) {
                (Some(_), Some(dropped)) => as_draws(dropped, draws),
                (Some(generator), None) => generator.group::<COUNTERS>(first / DRAWS as u64, draws),
                (None, _) => {}
            }
        }
        true
    }

    #[inline(always)]
    fn keeps<const HIGH: bool>(&self, drawn: &Drawn<S>, pair: usize, source: usize, _delta: f32) -> bool {
        let draws = u32::from_le_bytes(pairs(&drawn.0[source])[pair]);
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

    const FETCHES_AHEAD: bool = R::FETCHES_AHEAD;

    fn begin(&self) -> R::Chunk {
        self.rule.begin()
    }

    #[inline(always)]
    fn prepare<const COUNTERS: usize>(&self, first: u64, sources: [&[u8]; S], chunk: &mut R::Chunk) -> bool {
        self.rule.prepare::<COUNTERS>(first, sources, chunk)
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
            // Seen from the elected side, what agrees is positive. Sums of numbers and of their opposites are
            // opposites, so this changes no bit, and it saves comparing every term twice.
            let side = sum(terms).to_bits() & 0x8000_0000;
            let turned = terms.map(|term| f32::from_bits(term.to_bits() ^ side));
            let agreeing = sum(turned.map(|term| if term > 0.0 { term } else { 0.0 }));
            let agreeing = f32::from_bits(agreeing.to_bits() ^ side);
            if DIVIDES {
                let agrees = |source: usize| if turned[source] > 0.0 { self.weights[source] } else { 0.0 };
                let divisor = sum(std::array::from_fn(agrees));
                agreeing / if divisor == 0.0 { 1.0 } else { divisor }
            } else {
                agreeing
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
        Sparsifier::Philox(mask) if mask.limit > 0 => Some((Some(mask.generator), (mask.limit - 1) << 16 | 0xFFFF)),
        _ => None,
    }) {
        let rule = Sampled {
            generators: masks.map(|mask| mask.0),
            remembered: std::array::from_fn(|source| sum.sources[source].mask.clone()),
            highest: masks.map(|mask| mask.1),
            factors,
        };
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
    let (lambda, divisor) = (sum.lambda.unwrap_or(1.0), sum.divisor);
    match (sum.elects_sign, sum.normalize) {
        (true, true) => fuse(base, inputs, FusedSum::<R, S, true, true> { rule, weights, divisor, lambda }, tiled),
        (true, false) => fuse(base, inputs, FusedSum::<R, S, true, false> { rule, weights, divisor, lambda }, tiled),
        (false, true) => fuse(base, inputs, FusedSum::<R, S, false, true> { rule, weights, divisor, lambda }, tiled),
        (false, false) => fuse(base, inputs, FusedSum::<R, S, false, false> { rule, weights, divisor, lambda }, tiled),
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use super::*;
    use crate::checkpoint::Dtype;
    use crate::merge::MergeError;
    use crate::merge::block::{TileMerge, Tiled};
    use crate::merge::l1::l1_factors;
    use crate::merge::remembered::MaskMemory;
    use crate::merge::simd::Isa;
    use crate::merge::sparsify::PhiloxMask;
    use crate::merge::statistics::TensorKey;
    use crate::merge::tensor::TaskVector;

    /// Whole chunks and a rest.
    const ELEMENTS: usize = 5 * CHUNK + 77;

    /// The tiled way, which a fused pass may ask for no more than a chunk.
    struct Leftovers<'a>(Box<dyn BlockMerge + 'a>);

    impl BlockMerge for Leftovers<'_> {
        fn merge_block(&self, isa: Isa, range: Range<u64>, dtype: Dtype, out: &mut [u8]) -> Result<(), MergeError> {
            assert!(range.end - range.start <= CHUNK as u64, "the fused pass has done nothing");
            self.0.merge_block(isa, range, dtype, out)
        }
    }

    /// Finite bfloat16 numbers of few exponents, zeros of both signs among them.
    fn model(seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u16
        };
        let mut value = || match draw() % 8 {
            0 => draw() & 0x8000,
            _ => (draw() & 0x80FF) | 0x3C00 | ((draw() % 4) << 8),
        };
        (0..ELEMENTS).flat_map(|_| value().to_le_bytes()).collect()
    }

    fn stored(bytes: &[u8], model: u32) -> Stored<'_> {
        Stored {
            dtype: Dtype::Bfloat16,
            bytes,
            model: "m",
            tensor: "t",
            key: TensorKey { model, tensor: 0, elements: 0 },
            delta: None,
        }
    }

    fn tiled<'a, T: TileMerge<f32> + 'a>(inputs: Vec<Stored<'a>>, arithmetic: T) -> Box<dyn BlockMerge + 'a> {
        Box::new(Tiled::new("t", inputs, arithmetic))
    }

    fn merged(merge: &dyn BlockMerge, isa: Isa) -> Vec<u8> {
        let mut output = vec![0; 2 * ELEMENTS];
        merge.merge_block(isa, 0..ELEMENTS as u64, Dtype::Bfloat16, &mut output).unwrap();
        output
    }

    fn sparsifier(kind: usize, source: usize) -> Sparsifier<'static> {
        let last = (CHUNK * source + 13) as u64;
        match kind {
            _ if source == 2 => Sparsifier::KeepAll,
            0 => Sparsifier::KeepAll,
            1 => Sparsifier::Magnitude(Threshold { key: u64::from(0.5_f32.to_bits()) + source as u64, last }),
            _ => Sparsifier::Philox(PhiloxMask::new(7, "content", "t", 0.3 + 0.1 * source as f64)),
        }
    }

    /// A mask as the pass that measures task vectors leaves it.
    fn remembered(base: Stored<'_>, source: Stored<'_>, index: usize) -> Option<Arc<RememberedMask>> {
        let (vector, sparsifier) = (TaskVector { source, base }, sparsifier(3, index));
        let isa = Isa::available()[index % Isa::available().len()];
        let found = l1_factors::<f32>(isa, &[(vector, &sparsifier)], ELEMENTS as u64, &MaskMemory::new());
        let mask = found.unwrap().remove(0).mask;
        assert!(mask.is_none() || mask.as_ref().unwrap().chunk(0).is_some());
        assert_eq!(mask.is_none(), matches!(sparsifier, Sparsifier::KeepAll));
        mask.map(Arc::new)
    }

    #[test]
    fn fused_task_vectors_are_the_tiled_ones_bit_by_bit() {
        let models: Vec<Vec<u8>> = (0..7).map(model).collect();
        let all: Vec<Stored<'_>> = (0..).zip(&models).map(|(index, bytes)| stored(bytes, index)).collect();
        for case in 0..6 * 4 * 2 * 2 * 2 {
            let (sources, kind) = (case % 6 + 1, case / 6 % 4);
            let [elects_sign, normalize, scaled] = [24, 48, 96].map(|step| case / step % 2 == 1);
            let term = |source: usize| SourceTerm {
                weight: [0.3, -0.7, 1.1, 0.25, 0.5, 0.9][source],
                sparsifier: sparsifier(kind, source),
                factor: (scaled && kind > 0).then_some(1.7),
                mask: if kind == 3 && source != 1 { remembered(all[0], all[source + 1], source) } else { None },
            };
            let terms = (0..sources).map(term).collect();
            let sum = TaskVectorSum::new(terms, elects_sign, normalize, scaled.then_some(0.6));
            let sum = Arc::new(sum);
            let inputs = || all[..=sources].to_vec();
            let reference = tiled(inputs(), Arc::clone(&sum));
            let rest = Box::new(Leftovers(tiled(inputs(), Arc::clone(&sum))));
            let fused = task_vector_sum(all[0], &all[1..=sources], &sum, rest);
            let expected = merged(&*reference, Isa::BASELINE);
            for isa in Isa::available() {
                assert!(merged(&*fused, isa) == expected, "case {case} on {}", isa.name());
            }
        }
    }

    /// The sum that a fused pass is compared with.
    struct Plain {
        weights: Vec<f32>,
        divisor: Option<f32>,
    }

    impl TileMerge<f32> for Plain {
        type State = ();

        fn begin(&self, _first: u64) {}

        fn merge_tile(&self, _state: &mut (), _first: u64, inputs: &mut [f32], output: &mut [f32]) {
            for (element, value) in output.iter_mut().enumerate() {
                let tile = |source: usize| inputs[source * crate::merge::tensor::TILE + element];
                let terms = self.weights.iter().enumerate();
                let sum = terms.fold(0.0, |sum, (source, weight)| tile(source).mul_add(*weight, sum));
                *value = self.divisor.map_or(sum, |divisor| sum / divisor);
            }
        }
    }

    #[test]
    fn fused_averages_are_the_tiled_ones_bit_by_bit() {
        let models: Vec<Vec<u8>> = (0..8).map(model).collect();
        let all: Vec<Stored<'_>> = (0..).zip(&models).map(|(index, bytes)| stored(bytes, index)).collect();
        for count in 2..=8 {
            for divisor in [None, Some(1.3)] {
                let weights: Vec<f32> = (0..count).map(|index| 0.1 + 0.2 * index as f32).collect();
                let plain = || Plain { weights: weights.clone(), divisor };
                let expected = merged(&*tiled(all[..count].to_vec(), plain()), Isa::BASELINE);
                let rest = Box::new(Leftovers(tiled(all[..count].to_vec(), plain())));
                let fused = weighted_sum(&all[..count], &weights, divisor, rest);
                for isa in Isa::available() {
                    assert!(merged(&*fused, isa) == expected, "{count} models on {}", isa.name());
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_named_as_the_tiled_way_names_it() {
        let mut models: Vec<Vec<u8>> = (0..3).map(model).collect();
        models[2][2 * 300..2 * 301].copy_from_slice(&0xFF80_u16.to_le_bytes());
        let all: Vec<Stored<'_>> = (0..).zip(&models).map(|(index, bytes)| stored(bytes, index)).collect();
        for kind in 0..3 {
            let term =
                |source| SourceTerm { weight: 0.0, sparsifier: sparsifier(kind, source), factor: None, mask: None };
            let sources = (0..2).map(term).collect();
            let sum = Arc::new(TaskVectorSum::new(sources, true, false, None));
            let fused = task_vector_sum(all[0], &all[1..], &sum, tiled(all.clone(), Arc::clone(&sum)));
            let mut output = vec![0; 2 * ELEMENTS];
            let result = fused.merge_block(Isa::detect(), 0..ELEMENTS as u64, Dtype::Bfloat16, &mut output);
            assert!(matches!(result, Err(MergeError::NotFinite { element: 300, .. })), "{result:?}");
        }
    }
}
