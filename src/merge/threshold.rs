//! The exact k-th largest magnitude of a task vector, or of other values that are computed where they are needed,
//! without sorting and without a copy of them.
//!
//! A magnitude's bits order as the magnitude does, so the threshold is found digit by digit: count how often each value
//! of the highest 16 bits occurs, walk from the top to the bin that holds the k-th element, and count the next bits
//! inside that bin. Magnitudes whose other bits are all zero are counted apart: nearly all differences of bfloat16
//! numbers are such, and then the first count already gives the threshold. Tensors that are smaller than the counters
//! are selected from a copy instead. Equal magnitudes at the threshold are kept in ascending element order up to the
//! k-th.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::MergeError;
use super::element::Element;
use super::reduce::in_order;
use super::simd::{Isa, Kernel, dispatch};
use super::tensor::{BLOCK, TILE, Values, block_count, block_range, tiles, with_buffer};

const DIGIT_BITS: u32 = 16;
/// Blocks that are worth counters of their own.
const PART: u64 = 16;
/// Most elements of a tensor that is copied: for so small a one, clearing and walking the counters would take longer.
const SMALL: u64 = 1 << 15;

/// Which elements of a task vector are kept: those whose key is above `key`, and those equal to it up to element
/// `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Threshold {
    pub(crate) key: u64,
    pub(crate) last: u64,
}

/// How often each value of a digit occurs: bins that are not empty, in ascending order. A bin that holds more elements
/// than its counter can say is there several times.
pub(crate) struct Histogram {
    bins: Box<[(u32, u32)]>,
}

/// The bin of a histogram that holds an element of a given rank.
struct Found {
    bin: u64,
    /// Elements in bins above.
    above: u64,
    /// Elements in the bin.
    count: u64,
}

impl Histogram {
    fn new(counts: impl Iterator<Item = (u32, u64)>) -> Self {
        let mut bins = Vec::new();
        for (bin, mut count) in counts {
            while count > 0 {
                let part = u32::try_from(count).unwrap_or(u32::MAX);
                bins.push((bin, part));
                count -= u64::from(part);
            }
        }
        Self { bins: bins.into() }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.bins)
    }

    /// How many elements are zero, in a [`coarse_histogram`].
    pub(crate) fn zeros(&self) -> u64 {
        self.bins.iter().take_while(|(bin, _)| *bin == 0).map(|(_, count)| u64::from(*count)).sum()
    }

    /// The bin with the `rank`-th largest element (from 1).
    fn find(&self, rank: u64) -> Result<Found, MergeError> {
        let mut above = 0;
        for bins in self.bins.chunk_by(|left, right| left.0 == right.0).rev() {
            let count: u64 = bins.iter().map(|(_, count)| u64::from(*count)).sum();
            if above + count >= rank {
                return Ok(Found { bin: bins.first().map_or(0, |(bin, _)| u64::from(*bin)), above, count });
            }
            above += count;
        }
        Err(MergeError::Internal(format!("rank {rank} of a histogram of {above} elements")))
    }
}

/// `max(1, floor(density * elements))`, the product in float64, for a density in (0, 1).
pub(crate) fn kept_count(density: f64, elements: u64) -> u64 {
    ((density * elements as f64) as u64).max(1)
}

/// One digit: bits `shift..shift + width` of the keys whose higher bits are `prefix`.
#[derive(Clone, Copy)]
struct Digit {
    shift: u32,
    width: u32,
    prefix: u64,
}

struct CountDigit<'a, W: Element, V> {
    vector: V,
    range: Range<u64>,
    digit: Digit,
    counts: &'a mut [u32],
    delta: &'a mut [W],
    scratch: &'a mut [W],
}

impl<W: Element, V: Values<W>> Kernel for CountDigit<'_, W, V> {
    type Output = Result<(), MergeError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mask = (1_u64 << self.digit.width) - 1;
        for (first, length) in tiles(self.range) {
            let delta = &mut self.delta[..length];
            self.vector.tile(first, delta, self.scratch)?;
            for value in delta {
                let key = W::key_to_u64(value.key()) >> self.digit.shift;
                if key >> self.digit.width == self.digit.prefix {
                    self.counts[(key & mask) as usize] += 1;
                }
            }
        }
        Ok(())
    }
}

/// Cuts a tensor into parts of whole blocks, counts each by bin, and adds up.
fn histogram(
    elements: u64,
    count: impl Fn(Range<u64>) -> Result<Vec<(u32, u64)>, MergeError> + Sync,
) -> Result<Histogram, MergeError> {
    let blocks = block_count(elements);
    // A 32-bit counter holds the count of a part: parts have at most 2^31 elements.
    let parts = (rayon::current_num_threads() as u64).min(blocks.div_ceil(PART)).max(elements.div_ceil(1 << 31)).max(1);
    let of_part = |part| count(blocks * part / parts * BLOCK..elements.min(blocks * (part + 1) / parts * BLOCK));
    let mut all: Vec<(u32, u64)> = in_order(parts, of_part)?.into_iter().flatten().collect();
    all.sort_unstable_by_key(|(bin, _)| *bin);
    let sum = |bins: &[(u32, u64)]| (bins[0].0, bins.iter().map(|(_, count)| count).sum());
    Ok(Histogram::new(all.chunk_by(|left, right| left.0 == right.0).map(sum)))
}

/// The histogram of one digit.
fn digit_histogram<W: Element, V: Values<W>>(
    isa: Isa,
    vector: V,
    elements: u64,
    digit: Digit,
) -> Result<Histogram, MergeError> {
    histogram(elements, |range| {
        let mut counts = vec![0_u32; 1 << digit.width];
        let (mut delta, mut scratch) = (vec![W::ZERO; TILE], vec![W::ZERO; vector.scratch()]);
        dispatch(
            isa,
            CountDigit { vector, range, digit, counts: &mut counts, delta: &mut delta, scratch: &mut scratch },
        )?;
        Ok((0..).zip(counts).filter(|(_, count)| *count > 0).map(|(bin, count)| (bin, u64::from(count))).collect())
    })
}

/// Bins of the coarse histogram: for each value of the highest digit one for elements whose other bits are all zero,
/// and one, above it, for the others.
const COARSE_BINS: usize = 2 << DIGIT_BITS;
/// Counters for zeros: the most frequent value takes turns, as an increment has to wait for the last one of its
/// counter.
const ZERO_BINS: usize = 16;
/// Counters a bin, for the same reason.
const COPIES: usize = 4;

struct CountCoarse<'a, W: Element, V> {
    vector: V,
    range: Range<u64>,
    /// All zero; the counters of zeros are behind those of the bins.
    counts: &'a mut [[u32; COPIES]],
    delta: &'a mut [W],
    scratch: &'a mut [W],
}

impl<W: Element, V: Values<W>> Kernel for CountCoarse<'_, W, V> {
    /// The lowest bin that is not empty, zeros aside, and the highest one; the lower one may be above where all are
    /// zeros.
    type Output = Result<(u32, u32), MergeError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let shift = W::KEY_BITS - DIGIT_BITS;
        let rest = (1_u64 << shift) - 1;
        let mut bins = [0_u32; TILE];
        let (mut lowest, mut highest) = (u32::MAX, 0_u32);
        let Ok(counts) = <&mut [[u32; COPIES]; COARSE_BINS + ZERO_BINS]>::try_from(self.counts) else {
            return Err(MergeError::Internal("the counters of a histogram have another size".into()));
        };
        for (first, length) in tiles(self.range) {
            let delta = &mut self.delta[..length];
            self.vector.tile(first, delta, self.scratch)?;
            let bins = &mut bins[..length];
            for (index, (bin, value)) in (0_u32..).zip(bins.iter_mut().zip(&*delta)) {
                let key = W::key_to_u64(value.key());
                let inexact = u32::from(key & rest != 0);
                let found = ((key >> shift) as u32) << 1 | inexact;
                lowest = lowest.min(found.wrapping_sub(1));
                highest = highest.max(found);
                let zero = COARSE_BINS as u32 + index % ZERO_BINS as u32;
                *bin = if found == 0 { zero } else { found };
            }
            let (groups, others) = bins.as_chunks::<COPIES>();
            for group in groups {
                for (copy, bin) in group.iter().enumerate() {
                    counts[*bin as usize][copy] += 1;
                }
            }
            for bin in others {
                counts[*bin as usize][0] += 1;
            }
        }
        Ok((lowest.wrapping_add(1), highest))
    }
}

/// The histogram of the highest digit: it does not depend on a density, so it serves every candidate of a run.
pub(crate) fn coarse_histogram<W: Element, V: Values<W>>(
    isa: Isa,
    vector: V,
    elements: u64,
) -> Result<Arc<Histogram>, MergeError> {
    thread_local! {
        static COUNTS: Cell<Vec<[u32; COPIES]>> = const { Cell::new(Vec::new()) };
    }
    let count = |range: Range<u64>| {
        with_buffer(&COUNTS, COARSE_BINS + ZERO_BINS, [0; COPIES], |counts| {
            let (mut delta, mut scratch) = (vec![W::ZERO; TILE], vec![W::ZERO; vector.scratch()]);
            let kernel = CountCoarse { vector, range, counts, delta: &mut delta, scratch: &mut scratch };
            let found = dispatch(isa, kernel);
            // The counters are left as they were found, whatever happened.
            let (lowest, highest) = *found.as_ref().unwrap_or(&(1, COARSE_BINS as u32 - 1));
            let mut bins = Vec::new();
            let zeros = (0, COARSE_BINS..COARSE_BINS + ZERO_BINS);
            let others = (lowest.max(1)..=highest).map(|bin| (bin, bin as usize..bin as usize + 1));
            for (bin, rows) in std::iter::once(zeros).chain(others) {
                let rows = &mut counts[rows];
                let count: u64 = rows.iter().flatten().map(|count| u64::from(*count)).sum();
                if count > 0 {
                    bins.push((bin, count));
                    rows.fill([0; COPIES]);
                }
            }
            found.map(|_| bins)
        })
    };
    histogram(elements, count).map(Arc::new)
}

/// The threshold that keeps exactly `kept` of the elements (`1 <= kept <= elements`); zeros at the threshold count as
/// kept.
///
/// `coarse` finds or computes the [`coarse_histogram`], where it is needed.
pub(crate) fn select<W: Element, V: Values<W>>(
    isa: Isa,
    vector: V,
    elements: u64,
    kept: u64,
    coarse: impl FnOnce() -> Result<Arc<Histogram>, MergeError>,
) -> Result<Threshold, MergeError> {
    if elements <= SMALL {
        select_copied::<W, V>(vector, elements, kept)
    } else {
        select_counted::<W, V>(isa, vector, elements, kept, &*coarse()?)
    }
}

/// The key of the threshold that [`select`] finds, without the pass that looks for the last of equal elements.
pub(crate) fn select_key<W: Element, V: Values<W>>(
    isa: Isa,
    vector: V,
    elements: u64,
    kept: u64,
    coarse: impl FnOnce() -> Result<Arc<Histogram>, MergeError>,
) -> Result<u64, MergeError> {
    if elements <= SMALL {
        select_copied::<W, V>(vector, elements, kept).map(|threshold| threshold.key)
    } else {
        find_key::<W, V>(isa, vector, elements, kept, &*coarse()?).map(|(key, _)| key)
    }
}

fn select_copied<W: Element, V: Values<W>>(vector: V, elements: u64, kept: u64) -> Result<Threshold, MergeError> {
    let (mut delta, mut scratch) = (vec![W::ZERO; TILE], vec![W::ZERO; vector.scratch()]);
    let mut keys = Vec::with_capacity(elements as usize);
    for (first, length) in tiles(0..elements) {
        vector.tile(first, &mut delta[..length], &mut scratch)?;
        keys.extend(delta[..length].iter().map(|value| value.key()));
    }
    let mut order = keys.clone();
    let (_, key, larger) = order.select_nth_unstable((elements - kept) as usize);
    let key = *key;
    let above = larger.iter().filter(|other| **other > key).count() as u64;
    let mut equal = (0..).zip(&keys).filter(|(_, other)| **other == key).map(|(element, _)| element);
    let last = equal.nth((kept - above - 1) as usize).unwrap_or(u64::MAX);
    Ok(Threshold { key: W::key_to_u64(key), last })
}

fn select_counted<W: Element, V: Values<W>>(
    isa: Isa,
    vector: V,
    elements: u64,
    kept: u64,
    coarse: &Histogram,
) -> Result<Threshold, MergeError> {
    let (key, wanted) = find_key::<W, V>(isa, vector, elements, kept, coarse)?;
    // A threshold of zero keeps only what changes nothing; all of the equal ones need no limit.
    let last = if key == 0 || wanted.nth == wanted.equal {
        u64::MAX
    } else {
        last_kept::<W, V>(isa, vector, elements, key, wanted)?
    };
    Ok(Threshold { key, last })
}

/// The key of the threshold, digit by digit, and which of the elements with that key is the last that is kept.
fn find_key<W: Element, V: Values<W>>(
    isa: Isa,
    vector: V,
    elements: u64,
    kept: u64,
    coarse: &Histogram,
) -> Result<(u64, Wanted), MergeError> {
    let Found { bin, mut above, count: mut equal } = coarse.find(kept)?;
    let mut remaining = W::KEY_BITS - DIGIT_BITS;
    let mut key = bin >> 1;
    if bin & 1 == 0 {
        key <<= remaining;
        remaining = 0;
    }
    while remaining > 0 {
        let width = remaining.min(DIGIT_BITS);
        remaining -= width;
        let digit = Digit { shift: remaining, width, prefix: key };
        let found = digit_histogram::<W, V>(isa, vector, elements, digit)?.find(kept - above)?;
        key = key << width | found.bin;
        above += found.above;
        equal = found.count;
    }
    Ok((key, Wanted { nth: kept - above, equal }))
}

/// Which of the elements at the threshold is the last that is kept: the `nth` of `equal`, from 1.
struct Wanted {
    nth: u64,
    equal: u64,
}

struct CountEqual<'a, W: Element, V> {
    vector: V,
    range: Range<u64>,
    key: W::Key,
    delta: &'a mut [W],
    scratch: &'a mut [W],
}

impl<W: Element, V: Values<W>> Kernel for CountEqual<'_, W, V> {
    type Output = Result<u64, MergeError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut count = 0;
        for (first, length) in tiles(self.range) {
            let delta = &mut self.delta[..length];
            self.vector.tile(first, delta, self.scratch)?;
            count += delta.iter().map(|value| u64::from(value.key() == self.key)).sum::<u64>();
        }
        Ok(count)
    }
}

/// The element index of the wanted element with that key, looked for from the nearer end.
fn last_kept<W: Element, V: Values<W>>(
    isa: Isa,
    vector: V,
    elements: u64,
    key: u64,
    wanted: Wanted,
) -> Result<u64, MergeError> {
    let key = W::key_from_u64(key);
    let blocks = block_count(elements);
    let backwards = wanted.nth > wanted.equal / 2;
    let mut left = if backwards { wanted.equal + 1 - wanted.nth } else { wanted.nth };
    let wave = 8 * rayon::current_num_threads() as u64;
    for start in (0..blocks).step_by(wave as usize) {
        let nearest = start..blocks.min(start + wave);
        let block = |index: u64| if backwards { blocks - 1 - index } else { index };
        let counts: Vec<Result<u64, MergeError>> = nearest
            .clone()
            .into_par_iter()
            .map(|index| {
                let (mut delta, mut scratch) = (vec![W::ZERO; TILE], vec![W::ZERO; vector.scratch()]);
                let range = block_range(elements, block(index));
                dispatch(isa, CountEqual { vector, range, key, delta: &mut delta, scratch: &mut scratch })
            })
            .collect();
        for (index, count) in nearest.zip(counts) {
            let count = count?;
            if count >= left {
                let nth = if backwards { count + 1 - left } else { left };
                return nth_equal::<W, V>(vector, block_range(elements, block(index)), key, nth);
            }
            left -= count;
        }
    }
    Err(MergeError::Internal(format!("{} elements at the threshold, {left} too few were found", wanted.equal)))
}

pub(crate) fn nth_equal<W: Element, V: Values<W>>(
    vector: V,
    range: Range<u64>,
    key: W::Key,
    mut wanted: u64,
) -> Result<u64, MergeError> {
    let (mut delta, mut scratch) = (vec![W::ZERO; TILE], vec![W::ZERO; vector.scratch()]);
    for (first, length) in tiles(range) {
        let delta = &mut delta[..length];
        vector.tile(first, delta, &mut scratch)?;
        for (offset, value) in delta.iter().enumerate() {
            if value.key() == key {
                wanted -= 1;
                if wanted == 0 {
                    return Ok(first + offset as u64);
                }
            }
        }
    }
    Err(MergeError::Internal("an element at the threshold was counted but not found".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;
    use crate::merge::statistics::TensorKey;
    use crate::merge::tensor::{Stored, TaskVector};

    /// Sorted by magnitude, equal ones by position: the first `kept` survive.
    fn survivors(delta: &[f64], kept: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..delta.len()).collect();
        order.sort_by(|left, right| delta[*right].abs().total_cmp(&delta[*left].abs()));
        order.truncate(kept as usize);
        order.sort_unstable();
        order
    }

    fn check<W: Element>(dtype: Dtype, values: &[f64]) {
        let mut bytes = vec![0; values.len() * dtype.size()];
        f64::encode(dtype, values, &mut bytes);
        let zeros = vec![0; bytes.len()];
        let stored = |bytes| Stored {
            dtype,
            bytes,
            model: "m",
            tensor: "t",
            key: TensorKey { model: 0, tensor: 0, elements: 0 },
            delta: None,
        };
        let vector = TaskVector { source: stored(&bytes), base: stored(&zeros) };
        let elements = values.len() as u64;
        for kept in [1, 2, elements / 3, elements / 2, elements - 2, elements - 1] {
            let coarse = coarse_histogram::<W, _>(Isa::detect(), vector, elements).unwrap();
            let counted = select_counted::<W, _>(Isa::detect(), vector, elements, kept, &coarse).unwrap();
            let copied = select_copied::<W, _>(vector, elements, kept).unwrap();
            let expected = survivors(values, kept);
            for threshold in [counted, copied] {
                let survives = |(element, value): &(usize, &f64)| {
                    let key = W::key_to_u64(W::from_f64(**value).key());
                    key > threshold.key || key == threshold.key && *element as u64 <= threshold.last
                };
                let ours: Vec<usize> = values.iter().enumerate().filter(survives).map(|(element, _)| element).collect();
                if threshold.key == 0 {
                    // Zeros may all be kept: they change nothing.
                    let zero = |element: &&usize| values[**element] != 0.0;
                    assert!(ours.iter().filter(zero).eq(expected.iter().filter(zero)));
                } else {
                    assert_eq!(ours, expected, "{kept} of {elements}");
                }
            }
        }
    }

    #[test]
    fn both_ways_of_selecting_keep_what_sorting_keeps() {
        let mut state = 1_u64;
        let mut draw = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for length in [7, 1_000, 2 * BLOCK as usize + 5] {
            // Few different magnitudes, of both signs, and zeros; then many, over the whole range of exponents.
            let few: Vec<f64> = (0..length).map(|_| draw(9) as f64 - 4.0).collect();
            let many: Vec<f64> = (0..length)
                .map(|_| (draw(1 << 20) as f64 - 524_288.0) * 2.0_f64.powi(draw(200) as i32 - 140))
                .collect();
            for values in [few, many] {
                check::<f32>(Dtype::Float32, &values);
                check::<f64>(Dtype::Float64, &values);
            }
        }
    }
}
