//! The factor that gives a sparsified task vector the L1 norm it had before.

use std::ops::Range;

use super::MergeError;
use super::element::Element;
use super::fused::{CHUNK, PAIRS, chunks_of, widen, words};
use super::philox::{DRAWS, FEW, MANY, each, pairs};
use super::reduce::{LANES, Lanes, sum_block_rows};
use super::remembered::{Dropped, MaskMemory, RememberedMask, note, pack};
use super::simd::{Isa, Kernel, dispatch, prefetch};
use super::sparsify::{MaskCursor, PhiloxMask, Sparsifier};
use super::tensor::{TILE, TaskVector, tiles};

/// What a sparsified task vector's norms told.
pub(crate) struct Rescale {
    /// Restores the norm; 1 where a norm is below 1e-7.
    pub(crate) factor: f64,
    /// The mask, where it was drawn for this and there was memory for it.
    pub(crate) mask: Option<RememberedMask>,
}

/// Factors of several task vectors of one base, in one pass over it.
pub(crate) fn l1_factors<W: Element>(
    isa: Isa,
    vectors: &[(TaskVector<'_>, &Sparsifier<'_>)],
    elements: u64,
    memory: &MaskMemory,
) -> Result<Vec<Rescale>, MergeError> {
    let reserve = |(_, sparsifier): &(TaskVector<'_>, &Sparsifier<'_>)| match sparsifier {
        Sparsifier::Philox(_) | Sparsifier::Ranked(_) => memory.reserve(elements),
        _ => None,
    };
    let masks: Vec<Option<RememberedMask>> = vectors.iter().map(reserve).collect();
    let sums = sum_block_rows(elements, 2 * vectors.len(), |range, sums| {
        // A block of the base is in the cache for all but the first.
        for (((vector, sparsifier), mask), sums) in vectors.iter().zip(&masks).zip(sums.as_chunks_mut::<2>().0) {
            *sums = norms::<W>(isa, *vector, sparsifier, mask.as_ref(), range.clone())?;
        }
        Ok(())
    })?;
    let factor = |[all, kept]: &[f64; 2]| if *all < 1e-7 || *kept < 1e-7 { 1.0 } else { all / kept };
    let factors = sums.as_chunks::<2>().0.iter().map(factor);
    Ok(factors.zip(masks).map(|(factor, mask)| Rescale { factor, mask }).collect())
}

/// The L1 norms of a block of a task vector, and of what is kept of it.
fn norms<W: Element>(
    isa: Isa,
    vector: TaskVector<'_>,
    sparsifier: &Sparsifier<'_>,
    remembered: Option<&RememberedMask>,
    range: Range<u64>,
) -> Result<[f64; 2], MergeError> {
    let narrow = vector.is_bfloat16();
    if let (true, Sparsifier::Philox(mask)) = (narrow && W::KEY_BITS == f32::KEY_BITS, sparsifier)
        && mask.limit > 0
    {
        let (base, source) = (vector.base.bytes, vector.source.bytes);
        let mut dropped = Vec::new();
        let kept = remembered.map(|_| &mut dropped);
        if let Some(norms) =
            dispatch(isa, FusedNorms { base, source, mask: *mask, range: range.clone(), dropped: kept })
        {
            if let Some(remembered) = remembered {
                remembered.keep(range.start, dropped);
            }
            return Ok(norms);
        }
        // Something is not finite: the other way says what.
    }
    let (mut delta, mut scratch) = (vec![W::ZERO; TILE], vec![W::ZERO; TILE]);
    let cursor = sparsifier.begin::<W>(range.start);
    if let (Some(remembered), MaskCursor::Drawn { kept, .. }) = (remembered, &cursor) {
        remembered.keep(range.start, pack(kept));
    }
    dispatch(isa, Norms { vector, sparsifier, cursor, range, delta: &mut delta, scratch: &mut scratch })
}

struct Norms<'a, W: Element> {
    vector: TaskVector<'a>,
    sparsifier: &'a Sparsifier<'a>,
    cursor: MaskCursor,
    range: Range<u64>,
    delta: &'a mut [W],
    scratch: &'a mut [W],
}

impl<W: Element> Kernel for Norms<'_, W> {
    type Output = Result<[f64; 2], MergeError>;

    #[inline(always)]
    fn run(mut self) -> Self::Output {
        let (mut all, mut kept) = (Lanes::ZERO, Lanes::ZERO);
        for (first, length) in tiles(self.range) {
            let delta = &mut self.delta[..length];
            let base = &mut self.scratch[..length];
            self.vector.source.decode(first, delta)?;
            self.vector.base.decode(first, base)?;
            all.add_distances(delta, base);
            self.sparsifier.subtract(&mut self.cursor, first, delta, base, |delta| delta);
            kept.add_magnitudes(delta);
        }
        Ok([all.total(), kept.total()])
    }
}

/// The L1 norms of a block of a bfloat16 task vector, and of what a drawn mask keeps of it, computed in registers.
/// Thirty-two magnitudes a lane are added in float32 at a time.
struct FusedNorms<'a> {
    base: &'a [u8],
    source: &'a [u8],
    mask: PhiloxMask,
    range: Range<u64>,
    /// Gets the mask of whole chunks, where it is wanted.
    dropped: Option<&'a mut Vec<Dropped>>,
}

impl Kernel for FusedNorms<'_> {
    /// `None` where something is not finite: the distance of such an element is not either, nor is any sum with it.
    type Output = Option<[f64; 2]>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        match self.dropped {
            Some(_) => self.sums::<FEW, true>(),
            None => self.sums::<FEW, false>(),
        }
    }

    #[inline(always)]
    fn run_wide(self) -> Self::Output {
        match self.dropped {
            Some(_) => self.sums::<MANY, true>(),
            None => self.sums::<MANY, false>(),
        }
    }
}

impl FusedNorms<'_> {
    #[inline(always)]
    fn sums<const COUNTERS: usize, const REMEMBERS: bool>(self) -> Option<[f64; 2]> {
        let Self { base, source, mask, range, dropped: mut remembered } = self;
        let (bases, base_rest) = chunks_of(base, &range);
        let (sources, source_rest) = chunks_of(source, &range);
        let highest = (mask.limit - 1) << 16 | 0xFFFF;
        let (mut all, mut kept) = (Lanes::ZERO, Lanes::ZERO);
        if let Some(remembered) = &mut remembered {
            remembered.reserve_exact(bases.len());
        }
        // Added up at the end: sixteen float64 lanes in this loop would not stay in vectors.
        let (mut sums, mut sums_kept) = (Vec::with_capacity(bases.len()), Vec::with_capacity(bases.len()));
        let mut draws = [[0; 8]; DRAWS / 4];
        for (index, (base, source)) in bases.iter().zip(sources).enumerate() {
            // Drawing takes longer than memory needs for the next chunk, but the core does not look that far ahead by
            // itself.
            if let Some(next) = sources.get(index + 1) {
                prefetch(next);
            }
            let group = range.start / CHUNK as u64 + index as u64;
            mask.generator.group::<COUNTERS>(group, &mut draws);
            let draws = pairs(&draws);
            let (base, source) = (words(base), words(source));
            let (mut sum, mut sum_kept) = ([0.0_f32; LANES], [0.0_f32; LANES]);
            let mut dropped = [0; LANES];
            for row in 0..PAIRS / LANES {
                for lane in 0..LANES {
                    let pair = LANES * row + lane;
                    let (base, source) = (u32::from_le_bytes(base[pair]), u32::from_le_bytes(source[pair]));
                    let draws = u32::from_le_bytes(draws[pair]);
                    let ([low, high], [base_low, base_high]) = (widen(source), widen(base));
                    let (low, high) = ((low - base_low).abs(), (high - base_high).abs());
                    sum[lane] += low;
                    sum[lane] += high;
                    sum_kept[lane] += if draws << 16 <= highest { low } else { 0.0 };
                    sum_kept[lane] += if draws <= highest { high } else { 0.0 };
                    if REMEMBERS {
                        note(&mut dropped[lane], draws, highest);
                    }
                }
            }
            if let Some(remembered) = &mut remembered {
                remembered.push(dropped);
            }
            sums.push(sum);
            sums_kept.push(sum_kept);
        }
        all.add_each(sums.as_flattened(), f64::from);
        kept.add_each(sums_kept.as_flattened(), f64::from);
        if !base_rest.is_empty() {
            let group = range.start / CHUNK as u64 + bases.len() as u64;
            add_rest::<COUNTERS>(mask, group, base_rest, source_rest, &mut all, &mut kept);
        }
        let sums = [all.total(), kept.total()];
        sums[0].is_finite().then_some(sums)
    }
}

/// Adds the magnitudes of the elements behind the last whole chunk, one by one: to `all` those of every element, to
/// `kept` those of the elements that the mask keeps. `group` is the group of their draws.
#[inline(always)]
fn add_rest<const COUNTERS: usize>(
    mask: PhiloxMask,
    group: u64,
    base: &[u8],
    source: &[u8],
    all: &mut Lanes,
    kept: &mut Lanes,
) {
    let mut draws = [[0; 8]; DRAWS / 4];
    mask.generator.group::<COUNTERS>(group, &mut draws);
    let rest = base.as_chunks::<2>().0.iter().zip(source.as_chunks::<2>().0);
    for ((base, source), draw) in rest.zip(each(&draws)) {
        let (base, source) = (u32::from(u16::from_le_bytes(*base)), u32::from(u16::from_le_bytes(*source)));
        let delta = (widen(source)[0] - widen(base)[0]).abs();
        all.add_each(&[delta], f64::from);
        kept.add_each(&[if u32::from(draw) < mask.limit { delta } else { 0.0 }], f64::from);
    }
}
