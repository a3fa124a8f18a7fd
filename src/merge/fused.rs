//! Merges of bfloat16 models into a bfloat16 model, with nothing between memory and registers.
//!
//! Two neighbouring elements lie in one 32-bit word. Its upper half, with zeros below, is one of them as float32, and
//! the word moved up by 16 bits is the other: neither leaves its lane of a vector, neither on the way in nor on the way
//! out. All elements take the same steps as in the tiled block pass, which does whatever is left over, and finds the
//! words for what is wrong: the bytes are the same.

use std::ops::Range;

use super::MergeError;
use super::block::BlockMerge;
use super::element::Element;
use super::philox::{DRAWS, FEW, MANY};
use super::simd::{Isa, Kernel, dispatch, prefetch};
use super::tensor::Stored;
use crate::checkpoint::Dtype;

/// Elements a chunk: those that share what [`PairMerge::prepare`] computes.
pub(crate) const CHUNK: usize = DRAWS;
pub(crate) const PAIRS: usize = CHUNK / 2;
pub(crate) const BYTES: usize = 2 * CHUNK;

/// The arithmetic of a method on a base and `S` sources, element by element.
pub(crate) trait PairMerge<const S: usize>: Send + Sync {
    /// What the elements of a chunk need besides their inputs.
    type Chunk;

    /// Whether an input that is not finite always makes a result that is not finite.
    const PROPAGATES: bool;

    /// Whether asking for the next chunk's bytes pays: not where the processor waits for memory anyway, nor where
    /// [`Self::prepare`] does so.
    const FETCHES_AHEAD: bool = false;

    /// A chunk's place.
    fn begin(&self) -> Self::Chunk;

    /// Prepares the chunk that starts at element `first` and has the bytes `sources`; false: its elements do not share
    /// one preparation. `COUNTERS` is the batch of [`super::philox::Philox::group`].
    #[inline(always)]
    fn prepare<const COUNTERS: usize>(&self, _first: u64, _sources: [&[u8]; S], _chunk: &mut Self::Chunk) -> bool {
        true
    }

    /// Merges element `2 pair + HIGH` of the chunk.
    fn element<const HIGH: bool>(&self, chunk: &Self::Chunk, pair: usize, base: f32, sources: [f32; S]) -> f32;
}

/// A merge whose inputs are all bfloat16.
pub(crate) struct Fused<'a, M, const S: usize> {
    base: &'a [u8],
    sources: [&'a [u8]; S],
    arithmetic: M,
    /// The merge in tiles, for the elements and dtypes that the fused pass does not take.
    tiled: Box<dyn BlockMerge + 'a>,
}

/// Puts a fused pass before a tiled one where all inputs are bfloat16. A method without a base gives its first source
/// as such.
pub(crate) fn fuse<'a, M: PairMerge<S> + 'a, const S: usize>(
    base: Stored<'a>,
    sources: &[Stored<'a>],
    arithmetic: M,
    tiled: Box<dyn BlockMerge + 'a>,
) -> Box<dyn BlockMerge + 'a> {
    let all = |stored: &Stored<'_>| stored.dtype == Dtype::Bfloat16;
    match <[Stored<'a>; S]>::try_from(sources) {
        Ok(sources) if all(&base) && sources.iter().all(all) => {
            Box::new(Fused { base: base.bytes, sources: sources.map(|stored| stored.bytes), arithmetic, tiled })
        }
        _ => tiled,
    }
}

impl<M: PairMerge<S>, const S: usize> BlockMerge for Fused<'_, M, S> {
    fn merge_block(&self, isa: Isa, range: Range<u64>, dtype: Dtype, output: &mut [u8]) -> Result<(), MergeError> {
        if dtype != Dtype::Bfloat16 {
            return self.tiled.merge_block(isa, range, dtype, output);
        }
        let bytes = |range: &Range<u64>, from: u64| 2 * (range.start - from) as usize..2 * (range.end - from) as usize;
        let whole = range.end - (range.end - range.start) % CHUNK as u64;
        let mut next = range.start;
        while next < whole {
            let fused = next..whole;
            let at = bytes(&fused, range.start);
            match dispatch(isa, Pass { fused: self, range: fused, output: &mut output[at] }) {
                Pace::Reached(end) => next = end,
                // Either an error or a false alarm.
                Pace::Suspicious => return self.tiled.merge_block(isa, range, dtype, output),
            }
            if next < whole {
                let one = next..next + CHUNK as u64;
                let at = bytes(&one, range.start);
                self.tiled.merge_block(isa, one.clone(), dtype, &mut output[at])?;
                next = one.end;
            }
        }
        if whole < range.end {
            let rest = whole..range.end;
            let at = bytes(&rest, range.start);
            self.tiled.merge_block(isa, rest, dtype, &mut output[at])?;
        }
        Ok(())
    }
}

/// How far a pass has come.
enum Pace {
    /// To the end, or to a chunk that has no preparation.
    Reached(u64),
    /// Something is not finite.
    Suspicious,
}

/// Whole chunks of a tensor.
struct Pass<'a, 'b, M, const S: usize> {
    fused: &'a Fused<'b, M, S>,
    range: Range<u64>,
    output: &'a mut [u8],
}

impl<M: PairMerge<S>, const S: usize> Kernel for Pass<'_, '_, M, S> {
    type Output = Pace;

    #[inline(always)]
    fn run(self) -> Pace {
        self.chunks::<FEW>()
    }

    #[inline(always)]
    fn run_wide(self) -> Pace {
        self.chunks::<MANY>()
    }
}

/// The words of a chunk of stored elements.
#[inline(always)]
pub(crate) fn words(bytes: &[u8; BYTES]) -> &[[u8; 4]; PAIRS] {
    let (words, _) = bytes.as_chunks::<4>();
    // The length is a constant, so this is nothing.
    words.try_into().unwrap_or(&[[0; 4]; PAIRS])
}

/// The whole chunks of a range of a tensor, and the bytes behind them.
#[inline(always)]
pub(crate) fn chunks_of<'a>(bytes: &'a [u8], range: &Range<u64>) -> (&'a [[u8; BYTES]], &'a [u8]) {
    bytes[2 * range.start as usize..2 * range.end as usize].as_chunks::<BYTES>()
}

/// The two elements of a word.
#[inline(always)]
pub(crate) fn widen(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xFFFF_0000)]
}

/// Sets bit 15 or 31 where one of the two elements of a word is not finite.
#[inline(always)]
pub(crate) fn alarm(word: u32) -> u32 {
    (word & 0x7FFF_7FFF).wrapping_add(0x0080_0080)
}

/// The bits of [`alarm`].
pub(crate) const ALARM: u32 = 0x8000_8000;

/// Rounds the float32 in `bits` to the upper half; the lower half is not cleared.
#[inline(always)]
fn round(bits: u32) -> u32 {
    bits.wrapping_add(0x7FFF + (bits >> 16 & 1))
}

impl<M: PairMerge<S>, const S: usize> Pass<'_, '_, M, S> {
    #[inline(always)]
    fn chunks<const COUNTERS: usize>(self) -> Pace {
        let Self { fused: Fused { base, sources, arithmetic, .. }, range, output } = self;
        let (base, _) = chunks_of(base, &range);
        let sources: [&[[u8; BYTES]]; S] = sources.map(|bytes| chunks_of(bytes, &range).0);
        let (mut largest, mut alarms) = (0, 0);
        let mut reached = range.start;
        let mut chunk = arithmetic.begin();
        for (index, output) in output.as_chunks_mut::<BYTES>().0.iter_mut().enumerate() {
            if !arithmetic.prepare::<COUNTERS>(reached, sources.map(|chunks| &chunks[index][..]), &mut chunk) {
                break;
            }
            if M::FETCHES_AHEAD {
                // Memory answers while this chunk is merged; what the processor foresees by itself ends with a page.
                [base]
                    .iter()
                    .chain(&sources)
                    .filter_map(|chunks| chunks.get(index + 1))
                    .for_each(|next| prefetch(next));
            }
            let base = words(&base[index]);
            let sources = sources.map(|chunks| words(&chunks[index]));
            for (pair, output) in output.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let base = u32::from_le_bytes(base[pair]);
                let sources = sources.map(|words| u32::from_le_bytes(words[pair]));
                if !M::PROPAGATES {
                    alarms |= sources.iter().fold(alarm(base), |alarms, word| alarms | alarm(*word));
                }
                let [low, high] = widen(base);
                let low = arithmetic.element::<false>(&chunk, pair, low, sources.map(|word| widen(word)[0])).to_bits();
                let high = arithmetic.element::<true>(&chunk, pair, high, sources.map(|word| widen(word)[1])).to_bits();
                largest = largest.max(low & 0x7FFF_FFFF).max(high & 0x7FFF_FFFF);
                *output = (round(low) >> 16 | round(high) & 0xFFFF_0000).to_le_bytes();
            }
            reached += CHUNK as u64;
        }
        if alarms & ALARM != 0 || largest >= f32::limit(Dtype::Bfloat16).key() {
            return Pace::Suspicious;
        }
        Pace::Reached(reached)
    }
}
