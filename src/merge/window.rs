//! Thresholds of bfloat16 task vectors without a histogram: a sample says between which magnitudes a threshold must
//! lie, and one pass over all elements counts what is above and collects what is inside.
//!
//! A histogram serves every density, so it is the better choice when more than one is asked for; a window is the better
//! one for a single merge, as nothing is counted one by one but the few elements inside. The result is the same: where
//! the window misses, the caller takes the histogram.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};

use super::MergeError;
use super::fused::{ALARM, CHUNK, PAIRS, alarm, chunks_of, widen, words};
use super::simd::{Isa, Kernel, dispatch};
use super::tensor::{TaskVector, block_count, block_range};
use super::threshold::{Threshold, nth_equal};

/// Fewest elements of a tensor that is sampled: a smaller one is not worth it.
const LEAST: u64 = 1 << 20;
/// Most elements of a tensor that is sampled: a window of a larger one would hold too much, and a histogram, whose size
/// does not depend on the tensor's, serves instead.
const HUGE: u64 = 1 << 28;
/// Keys that the windows of all tensors under way may hold together, 4 bytes each: fifteen windows of 2^25 elements,
/// eight sources of two tensors of 2^24. More sources are looked at a few at a time, and the base is read again for each few.
const HELD: u64 = 3 << 21;
/// Least distance between sampled chunks: one chunk of at least this many is in the sample. Odd, so that no power of
/// two of a tensor's shape keeps the sample in one part of the rows.
const SPACING: u64 = 17;
/// Distance between sampled words of a chunk: of one word in this many, the lower element is in the sample.
const STRIDE: usize = 4;
/// Most elements of a sample, about.
const SAMPLE: u64 = 1 << 19;
/// How many of a sample's standard deviations the window reaches to each side. Neighbours are alike, so a sample is
/// worth less than its size; a window that is too narrow costs time only.
const REACH: f64 = 6.0;

/// What is left of the memory for windows, in keys, in all merges of a run that are under way.
pub(crate) struct WindowMemory(AtomicU64);

impl WindowMemory {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(HELD))
    }

    /// Reserves memory for as many windows, in order, as fit; `held` gives each one's keys. The first always gets its
    /// memory: waiting for other tensors could deadlock on work this thread itself has suspended.
    fn reserve(&self, held: impl Iterator<Item = u64> + Clone) -> Room<'_> {
        let mut taken = (0, 0);
        let take = |left: u64| {
            let sums = held.clone().scan(0, |sum, held| {
                *sum += held;
                Some(*sum)
            });
            taken = (1..).zip(sums).take_while(|(_, sum)| *sum <= left).last().unwrap_or_default();
            Some(left - taken.1)
        };
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let (windows, keys) = taken;
        Room { windows: windows.max(1), keys, memory: self }
    }
}

/// Room for the next windows; free again when it is dropped.
struct Room<'a> {
    windows: usize,
    keys: u64,
    memory: &'a WindowMemory,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.memory.0.fetch_add(self.keys, Ordering::Relaxed);
    }
}

/// For each task vector, given with the number of elements to keep, the threshold that keeps exactly that many (see
/// [`super::threshold::select`]); `None` where another way has to find it. All have the same base, which is read once
/// where there is memory for all windows.
pub(crate) fn thresholds(
    isa: Isa,
    memory: &WindowMemory,
    vectors: &[(TaskVector<'_>, u64)],
    elements: u64,
) -> Result<Vec<Option<Threshold>>, MergeError> {
    if !(LEAST..=HUGE).contains(&elements) || !vectors.iter().all(|(vector, _)| vector.is_bfloat16()) {
        return Ok(vec![None; vectors.len()]);
    }
    let mut found = Vec::with_capacity(vectors.len());
    while let rest @ [_, ..] = &vectors[found.len()..] {
        let room = memory.reserve(rest.iter().map(|(_, kept)| Sampling::of(elements).held(*kept)));
        found.extend(together(isa, &rest[..room.windows], elements)?);
    }
    Ok(found)
}

/// [`thresholds`] of task vectors whose windows all fit into memory, found in one pass.
fn together(isa: Isa, vectors: &[(TaskVector<'_>, u64)], elements: u64) -> Result<Vec<Option<Threshold>>, MergeError> {
    let windows: Vec<Window> =
        vectors.par_iter().map(|(vector, kept)| Window::sampled(isa, *vector, *kept, elements)).collect();
    // By block, then by vector.
    let found: Vec<Vec<Option<Found>>> = (0..block_count(elements))
        .into_par_iter()
        .map(|block| {
            let look = |((vector, _), window): (&(TaskVector<'_>, u64), &Window)| {
                window.look(isa, *vector, block_range(elements, block))
            };
            vectors.iter().zip(&windows).map(look).collect()
        })
        .collect();
    let threshold = |(index, ((vector, kept), window)): (usize, (&(TaskVector<'_>, u64), &Window))| {
        let found: Option<Vec<&Found>> = found.iter().map(|block| block[index].as_ref()).collect();
        found.map_or(Ok(None), |found| window.place(*vector, &found, *kept, elements))
    };
    vectors.iter().zip(&windows).enumerate().map(threshold).collect()
}

/// Which elements of a tensor are in a sample.
#[derive(Clone, Copy)]
struct Sampling {
    elements: u64,
    /// Whole chunks, of which every `spacing`th is sampled.
    chunks: u64,
    spacing: usize,
}

impl Sampling {
    fn of(elements: u64) -> Self {
        let chunks = elements / CHUNK as u64;
        let spacing = (SPACING.max(chunks * (PAIRS / STRIDE) as u64 / SAMPLE) | 1) as usize;
        Self { elements, chunks, spacing }
    }

    /// Elements in the sample.
    fn size(self) -> usize {
        (self.chunks as usize).div_ceil(self.spacing) * PAIRS / STRIDE
    }

    /// The ranks, from the largest, of the window's ends in the sample.
    fn ranks(self, kept: u64) -> (usize, usize) {
        let (size, share) = (self.size() as f64, kept as f64 / self.elements as f64);
        let reach = REACH * (size * share * (1.0 - share)).sqrt() + 8.0;
        let rank = |rank: f64| (rank.max(0.0) as usize).min(self.size() - 1);
        (rank(share * size - reach), rank(share * size + reach))
    }

    /// How many keys the window will hold, about.
    fn held(self, kept: u64) -> u64 {
        let (first, last) = self.ranks(kept);
        (last - first) as u64 * self.elements / self.size() as u64
    }
}

/// Two keys between which a threshold should lie, themselves included.
#[derive(Clone, Copy)]
struct Window {
    low: u32,
    high: u32,
}

/// What a block holds.
#[derive(Default)]
struct Found {
    /// Elements above the window, at its high end or above, above its low end, and at it or above.
    counts: [u32; 4],
    /// Keys strictly inside the window, in any order.
    inside: Vec<u32>,
}

impl Window {
    fn sampled(isa: Isa, vector: TaskVector<'_>, kept: u64, elements: u64) -> Self {
        let sampling = Sampling::of(elements);
        let Sampling { chunks, spacing, .. } = sampling;
        let mut keys = Vec::with_capacity(sampling.size());
        dispatch(isa, Sample { vector, chunks, spacing, keys: &mut keys });
        let (first, last) = sampling.ranks(kept);
        let largest_first = |left: &u32, right: &u32| right.cmp(left);
        let (above, low, _) = keys.select_nth_unstable_by(last, largest_first);
        let low = *low;
        let high = if first < last { *above.select_nth_unstable_by(first, largest_first).1 } else { low };
        Self { low, high }
    }

    /// Counts a block; `None` where something is not finite.
    fn look(self, isa: Isa, vector: TaskVector<'_>, range: Range<u64>) -> Option<Found> {
        dispatch(isa, Look { window: self, base: vector.base.bytes, source: vector.source.bytes, range })
    }

    /// The threshold, if it is in the window.
    fn place(
        self,
        vector: TaskVector<'_>,
        blocks: &[&Found],
        kept: u64,
        elements: u64,
    ) -> Result<Option<Threshold>, MergeError> {
        let total = |which: usize| blocks.iter().map(|block| u64::from(block.counts[which])).sum::<u64>();
        let [above_high, from_high, above_low, from_low] = [0, 1, 2, 3].map(total);
        if kept <= above_high || kept > from_low {
            return Ok(None);
        }
        let difference = |more: usize, less: usize| {
            let equal = move |block: &Found| u64::from(block.counts[more] - block.counts[less]);
            blocks.iter().map(|block| equal(block)).collect::<Vec<u64>>()
        };
        let (key, above, equal) = if kept <= from_high {
            (self.high, above_high, difference(1, 0))
        } else if kept > above_low {
            (self.low, above_low, difference(3, 2))
        } else {
            let mut inside: Vec<u32> = blocks.iter().flat_map(|block| &block.inside).copied().collect();
            let rank = (kept - from_high - 1) as usize;
            let (larger, key, _) = inside.select_nth_unstable_by(rank, |left, right| right.cmp(left));
            let key = *key;
            let above = from_high + larger.iter().filter(|other| **other > key).count() as u64;
            let equal = |block: &&Found| block.inside.iter().filter(|other| **other == key).count() as u64;
            (key, above, blocks.iter().map(equal).collect())
        };
        let mut wanted = kept - above;
        // A threshold of zero keeps only what changes nothing; all of the equal ones need no limit.
        if key == 0 || wanted == equal.iter().sum::<u64>() {
            return Ok(Some(Threshold { key: u64::from(key), last: u64::MAX }));
        }
        for (block, equal) in (0..).zip(equal) {
            if equal >= wanted {
                let last = nth_equal::<f32, _>(vector, block_range(elements, block), key, wanted)?;
                return Ok(Some(Threshold { key: u64::from(key), last }));
            }
            wanted -= equal;
        }
        Err(MergeError::Internal("an element at the threshold was counted but not found".into()))
    }
}

struct Sample<'a> {
    vector: TaskVector<'a>,
    chunks: u64,
    spacing: usize,
    keys: &'a mut Vec<u32>,
}

impl Kernel for Sample<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let range = 0..self.chunks * CHUNK as u64;
        let (bases, _) = chunks_of(self.vector.base.bytes, &range);
        let (sources, _) = chunks_of(self.vector.source.bytes, &range);
        let mut next = 0;
        while let (Some(base), Some(source)) = (bases.get(next), sources.get(next)) {
            let bases = words(base).as_chunks::<STRIDE>().0.iter();
            let mut keys = [0; PAIRS / STRIDE];
            for (slot, (base, source)) in keys.iter_mut().zip(bases.zip(words(source).as_chunks::<STRIDE>().0)) {
                let (base, source) = (u32::from_le_bytes(base[0]), u32::from_le_bytes(source[0]));
                *slot = key(widen(source)[0] - widen(base)[0]);
            }
            self.keys.extend_from_slice(&keys);
            next += self.spacing;
        }
    }
}

#[inline(always)]
fn key(delta: f32) -> u32 {
    delta.to_bits() & 0x7FFF_FFFF
}

struct Look<'a> {
    window: Window,
    base: &'a [u8],
    source: &'a [u8],
    range: Range<u64>,
}

impl Kernel for Look<'_> {
    type Output = Option<Found>;

    #[inline(always)]
    fn run(self) -> Option<Found> {
        let Self { window: Window { low, high }, base, source, range } = self;
        let (bases, base_rest) = chunks_of(base, &range);
        let (sources, source_rest) = chunks_of(source, &range);
        let width = high.saturating_sub(low).saturating_sub(1);
        let is_inside = |key: u32| key.wrapping_sub(low).wrapping_sub(1) < width;
        let mut found = Found::default();
        let mut alarms = 0;
        let (mut keys, mut flags) = ([0; CHUNK], [0_u8; CHUNK]);
        for (base, source) in bases.iter().zip(sources) {
            let (base, source) = (words(base), words(source));
            let mut counts = [0; 4];
            for pair in 0..PAIRS {
                let (base, source) = (u32::from_le_bytes(base[pair]), u32::from_le_bytes(source[pair]));
                alarms |= alarm(base) | alarm(source);
                let ([left, right], [base_left, base_right]) = (widen(source), widen(base));
                let (left, right) = (key(left - base_left), key(right - base_right));
                counts[0] += u32::from(left > high) + u32::from(right > high);
                counts[1] += u32::from(left >= high) + u32::from(right >= high);
                counts[2] += u32::from(left > low) + u32::from(right > low);
                counts[3] += u32::from(left >= low) + u32::from(right >= low);
                (keys[pair], keys[PAIRS + pair]) = (left, right);
                (flags[pair], flags[PAIRS + pair]) = (u8::from(is_inside(left)), u8::from(is_inside(right)));
            }
            for (count, more) in found.counts.iter_mut().zip(counts) {
                *count += more;
            }
            for (eight, keys) in flags.as_chunks::<8>().0.iter().zip(keys.as_chunks::<8>().0) {
                let mut left = u64::from_le_bytes(*eight);
                while left != 0 {
                    found.inside.push(keys[left.trailing_zeros() as usize / 8]);
                    left &= left - 1;
                }
            }
        }
        for (base, source) in base_rest.as_chunks::<2>().0.iter().zip(source_rest.as_chunks::<2>().0) {
            let (base, source) = (u32::from(u16::from_le_bytes(*base)), u32::from(u16::from_le_bytes(*source)));
            alarms |= alarm(base) | alarm(source);
            let key = key(widen(source)[0] - widen(base)[0]);
            let here = [key > high, key >= high, key > low, key >= low];
            for (count, here) in found.counts.iter_mut().zip(here) {
                *count += u32::from(here);
            }
            if is_inside(key) {
                found.inside.push(key);
            }
        }
        // What is held until all blocks are done has no room to grow.
        found.inside.shrink_to_fit();
        (alarms & ALARM == 0).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;
    use crate::merge::statistics::TensorKey;
    use crate::merge::tensor::Stored;
    use crate::merge::threshold::{coarse_histogram, select};

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

    /// bfloat16 values of that many elements, each a multiple of `grain`.
    fn values(elements: usize, seed: u64, grain: f32) -> Vec<u8> {
        let mut state = seed;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / 8_388_608.0 - 1.0) * if state >> 33 & 7 == 0 { 4.0 } else { 0.5 }
        };
        let value = |value: f32| (((value / grain).round() * grain).to_bits() >> 16) as u16;
        (0..elements).flat_map(|_| value(draw()).to_le_bytes()).collect()
    }

    #[test]
    fn a_window_finds_what_a_histogram_finds() {
        // A tail of less than a chunk, and several blocks.
        let elements = LEAST as usize + 300_001;
        let base = values(elements, 1, 0.25);
        let fine = values(elements, 2, 1.0 / 4096.0);
        let coarse = values(elements, 3, 0.25);
        let (base, fine, coarse) = (stored(&base, 0), stored(&fine, 1), stored(&coarse, 2));
        for share in [0.001, 0.05, 0.3, 0.5, 0.51, 0.9, 0.9999] {
            let kept = ((elements as f64 * share) as u64).max(1);
            for isa in Isa::available() {
                let vectors = [fine, coarse].map(|source| (TaskVector { source, base }, kept));
                let found = thresholds(isa, &WindowMemory::new(), &vectors, elements as u64).unwrap();
                for ((vector, _), found) in vectors.iter().zip(found) {
                    let histogram = || coarse_histogram::<f32, _>(isa, *vector, elements as u64);
                    let expected = select::<f32, _>(isa, *vector, elements as u64, kept, histogram).unwrap();
                    assert_eq!(found, Some(expected), "{share} of the elements");
                }
            }
        }
    }

    #[test]
    fn a_window_that_misses_says_so() {
        let elements = LEAST as usize;
        let (base, source) = (values(elements, 1, 0.25), values(elements, 2, 0.25));
        let vector = TaskVector { source: stored(&source, 1), base: stored(&base, 0) };
        for (low, high, kept) in [(0x4100_0000, 0x4200_0000, 500_000), (0, 1, 500_000)] {
            let window = Window { low, high };
            let blocks: Vec<Found> = (0..block_count(elements as u64))
                .map(|block| window.look(Isa::detect(), vector, block_range(elements as u64, block)).unwrap())
                .collect();
            let blocks: Vec<&Found> = blocks.iter().collect();
            assert_eq!(window.place(vector, &blocks, kept, elements as u64).unwrap(), None);
        }
    }

    #[test]
    fn what_is_not_finite_is_left_to_the_way_that_names_it() {
        let elements = LEAST as usize;
        let base = values(elements, 1, 0.25);
        let mut source = values(elements, 2, 0.25);
        source[2 * 7 + 1] = 0x7F;
        source[2 * 7] = 0x80;
        let vector = TaskVector { source: stored(&source, 1), base: stored(&base, 0) };
        let found = thresholds(Isa::detect(), &WindowMemory::new(), &[(vector, 1000)], elements as u64).unwrap();
        assert_eq!(found, [None]);
    }

    #[test]
    fn windows_hold_what_was_reserved_for_them() {
        let elements = LEAST as usize + 300_001;
        let (base, source) = (values(elements, 1, 1.0 / 8192.0), values(elements, 2, 1.0 / 8192.0));
        let vector = TaskVector { source: stored(&source, 1), base: stored(&base, 0) };
        for share in [0.01, 0.3, 0.5, 0.9] {
            let kept = (elements as f64 * share) as u64;
            let window = Window::sampled(Isa::detect(), vector, kept, elements as u64);
            let blocks = 0..block_count(elements as u64);
            let found = blocks.map(|block| window.look(Isa::detect(), vector, block_range(elements as u64, block)));
            let found: Vec<Found> = found.map(Option::unwrap).collect();
            let held: usize = found.iter().map(|found| found.inside.capacity()).sum();
            let reserved = Sampling::of(elements as u64).held(kept);
            assert!(held > 0 && held as u64 <= reserved + reserved / 4, "{held} keys, {reserved} reserved for {share}");
        }
    }

    #[test]
    fn any_number_of_sources_and_tensors_holds_no_more_than_there_is_memory_for() {
        for elements in [LEAST, 1 << 24, 1 << 25, 1 << 27, HUGE] {
            let held = Sampling::of(elements).held(elements / 2);
            let memory = WindowMemory::new();
            // The first tensor takes what it can; those after it share what is left, one window each at least.
            let rooms: Vec<Room<'_>> = (0..4).map(|_| memory.reserve(std::iter::repeat_n(held, 99))).collect();
            let keys: u64 = rooms.iter().map(|room| room.keys).sum();
            assert!(keys <= HELD && rooms[0].windows as u64 <= (HELD / held).max(1), "{elements} elements");
            assert!(rooms.iter().all(|room| room.windows == 1 || room.windows as u64 * held == room.keys));
            assert_eq!(rooms.last().unwrap().windows, 1);
            drop(rooms);
            assert_eq!(memory.0.into_inner(), HELD, "all of it is free again");
        }
        // Eight sources of two tensors at once are what a merge of a usual size has.
        let held = Sampling::of(1 << 24).held(1 << 23);
        let memory = WindowMemory::new();
        let rooms = [(); 2].map(|()| memory.reserve(std::iter::repeat_n(held, 8)));
        assert_eq!(rooms.map(|room| room.windows), [8, 8]);
    }

    #[test]
    fn a_few_sources_at_a_time_have_the_thresholds_of_all_at_once() {
        let elements = LEAST as usize + 7;
        let base = values(elements, 1, 1.0 / 4096.0);
        let sources: Vec<Vec<u8>> = (2..7).map(|seed| values(elements, seed, 1.0 / 4096.0)).collect();
        let vectors: Vec<_> = (1..)
            .zip(&sources)
            .map(|(model, source)| TaskVector { source: stored(source, model), base: stored(&base, 0) })
            .zip([1_000, 300_000, 500_000, 700_000, 100_000])
            .collect();
        let all = thresholds(Isa::detect(), &WindowMemory::new(), &vectors, elements as u64).unwrap();
        let little = WindowMemory(AtomicU64::new(2 * Sampling::of(elements as u64).held(500_000)));
        let few = thresholds(Isa::detect(), &little, &vectors, elements as u64).unwrap();
        assert!(all.iter().all(Option::is_some));
        assert_eq!(few, all);
    }
}
