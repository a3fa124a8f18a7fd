//! Masks that were drawn once and are needed again: by the merge, after the pass that measured what they leave.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::fused::CHUNK;
use super::philox::GroupDraws;
use super::reduce::LANES;
use super::tensor::{BLOCK, block_count};

/// Memory that masks may take, in bytes, in all merges of a run that are under way.
const MEMORY: usize = 32 << 20;

/// Which elements of a chunk are dropped: bit `row` of word `lane` is the first element of pair `16 row + lane`, and
/// bit `16 + row` the second one.
pub(crate) type Dropped = [u32; LANES];

/// What is left of the memory for masks.
#[derive(Clone)]
pub(crate) struct MaskMemory(Arc<AtomicUsize>);

impl MaskMemory {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(MEMORY)))
    }

    /// A place for the mask of a tensor, one bit an element; `None` where there is no memory left for it.
    pub(crate) fn reserve(&self, elements: u64) -> Option<RememberedMask> {
        let bytes = usize::try_from(elements / CHUNK as u64).ok()?.checked_mul(size_of::<Dropped>())?;
        let blocks = usize::try_from(block_count(elements)).ok()?;
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        left.ok().map(|_| RememberedMask {
            blocks: (0..blocks).map(|_| OnceLock::new()).collect(),
            bytes,
            memory: self.clone(),
        })
    }
}

/// The mask of a tensor, block by block; its memory is free again when it is dropped.
pub(crate) struct RememberedMask {
    blocks: Vec<OnceLock<Box<[Dropped]>>>,
    bytes: usize,
    memory: MaskMemory,
}

impl RememberedMask {
    /// Keeps the whole chunks of the block that starts at element `first`.
    pub(crate) fn keep(&self, first: u64, dropped: Vec<Dropped>) {
        if let Some(block) = self.blocks.get((first / BLOCK) as usize) {
            block.get_or_init(|| dropped.into_boxed_slice());
        }
    }

    /// Which of the `length` elements of the block that starts at element `first` are kept, where all of them are
    /// known.
    pub(crate) fn block(&self, first: u64, length: usize) -> Option<Vec<bool>> {
        let chunks = self.blocks.get((first / BLOCK) as usize)?.get()?;
        (first.is_multiple_of(BLOCK) && chunks.len() * CHUNK == length).then(|| unpack(chunks))
    }

    /// The chunk that starts at element `first`, where it was kept.
    #[inline(always)]
    pub(crate) fn chunk(&self, first: u64) -> Option<&Dropped> {
        self.blocks.get((first / BLOCK) as usize)?.get()?.get((first % BLOCK) as usize / CHUNK)
    }
}

impl Drop for RememberedMask {
    fn drop(&mut self) {
        self.memory.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// Draws that a limit below [`super::philox::DRAW_RANGE`] tells apart as those that were drawn: the lowest one where an
/// element was kept, the highest one where it was dropped.
#[inline(always)]
pub(crate) fn as_draws(dropped: &Dropped, draws: &mut GroupDraws) {
    let (words, _) = draws.as_flattened_mut().as_chunks_mut::<4>();
    let mut left = *dropped;
    // Shifted by one a row: shifts by the number of the row lead the compiler to turn rows and lanes around.
    for row in words.as_chunks_mut::<LANES>().0 {
        for (word, left) in row.iter_mut().zip(&mut left) {
            let pair = *left & 0x0001_0001;
            // A half of ones for each bit.
            *word = (pair << 16).wrapping_sub(pair).to_le_bytes();
            *left >>= 1;
        }
    }
}

/// Notes in a lane's word which elements of the next row's pair have draws above `highest`, the highest one that is
/// kept, moved up, with ones below. After all rows, each has its bits.
#[inline(always)]
pub(crate) fn note(dropped: &mut u32, draws: u32, highest: u32) {
    let bits = if draws << 16 > highest { 0x8000 } else { 0 } | if draws > highest { 0x8000_0000 } else { 0 };
    *dropped = *dropped >> 1 | bits;
}

/// The elements that are kept as whole chunks; what is left at the end of the last one is not among them.
pub(crate) fn pack(kept: &[bool]) -> Vec<Dropped> {
    let chunk = |kept: &[bool; CHUNK]| {
        let mut dropped = [0; LANES];
        let (pairs, _) = kept.as_chunks::<2>();
        for (row, pairs) in pairs.chunks(LANES).enumerate() {
            for (dropped, [first, second]) in dropped.iter_mut().zip(pairs) {
                *dropped |= u32::from(!first) << row | u32::from(!second) << (16 + row);
            }
        }
        dropped
    };
    kept.as_chunks::<CHUNK>().0.iter().map(chunk).collect()
}

fn unpack(chunks: &[Dropped]) -> Vec<bool> {
    let mut kept = vec![false; chunks.len() * CHUNK];
    for (kept, dropped) in kept.as_chunks_mut::<CHUNK>().0.iter_mut().zip(chunks) {
        for (row, pairs) in kept.as_chunks_mut::<2>().0.chunks_mut(LANES).enumerate() {
            for (dropped, [first, second]) in dropped.iter().zip(pairs) {
                *first = dropped >> row & 1 == 0;
                *second = dropped >> (16 + row) & 1 == 0;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::philox::{DRAWS, FEW, Philox, each, pairs};

    #[test]
    fn remembered_draws_keep_the_same_elements() {
        let generator = Philox { key: [1, 2], stream: [3, 4] };
        let mut draws = [[0; 8]; DRAWS / 4];
        for limit in [1, 2, 0x4000, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF, 0x1_0000] {
            generator.group::<FEW>(9, &mut draws);
            let (mut dropped, highest) = ([0; LANES], (limit - 1) << 16 | 0xFFFF);
            for (pair, words) in pairs(&draws).iter().enumerate() {
                note(&mut dropped[pair % LANES], u32::from_le_bytes(*words), highest);
            }
            let mut remembered = [[0; 8]; DRAWS / 4];
            as_draws(&dropped, &mut remembered);
            for (draw, remembered) in each(&draws).zip(each(&remembered)) {
                assert_eq!(u32::from(draw) < limit, u32::from(remembered) < limit);
            }
            for words in pairs(&remembered) {
                let words = u32::from_le_bytes(*words);
                assert_eq!(words << 16 <= highest, words & 0xFFFF == 0);
                assert_eq!(words <= highest, words >> 16 == 0);
            }
        }
    }

    #[test]
    fn whole_chunks_are_packed_and_unpacked() {
        let kept: Vec<bool> = (0..3 * CHUNK + 7).map(|element| element % 7 == 1 || element % 31 < 9).collect();
        let packed = pack(&kept);
        assert_eq!(unpack(&packed), kept[..3 * CHUNK]);
        let mut draws = [[0; 8]; DRAWS / 4];
        as_draws(&packed[1], &mut draws);
        assert!(each(&draws).zip(&kept[CHUNK..]).all(|(draw, kept)| (draw == 0) == *kept));
    }

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let memory = MaskMemory::new();
        let elements = 8 * MEMORY as u64;
        assert!(memory.reserve(elements + CHUNK as u64).is_none());
        let all = memory.reserve(elements);
        assert!(all.is_some() && memory.reserve(CHUNK as u64).is_none());
        drop(all);
        assert!(memory.reserve(elements).is_some());
    }

    #[test]
    fn chunks_are_found_where_they_were_kept() {
        let Some(mask) = MaskMemory::new().reserve(2 * BLOCK + 700) else { panic!("no memory") };
        mask.keep(BLOCK, vec![[1; LANES], [2; LANES]]);
        assert_eq!(mask.chunk(BLOCK + CHUNK as u64), Some(&[2; LANES]));
        assert_eq!(mask.chunk(BLOCK + 2 * CHUNK as u64), None);
        assert_eq!((mask.chunk(0), mask.chunk(9 * BLOCK)), (None, None));
    }
}
