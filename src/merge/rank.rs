//! Ranks of the magnitudes in a row.

/// Keys of at most this many bits are ranked by counting their digits.
const NARROW: u32 = 32;
/// Bits of the widest digit: its counters stay in the nearest cache.
const MAX_DIGIT: u32 = 11;

/// What ranking a row needs, kept from row to row.
#[derive(Default)]
pub(crate) struct Ranking {
    /// The keys other than zero, with their indices.
    entries: Vec<(u32, u32)>,
    narrow: Sorting<u32>,
    wide: Sorting<u64>,
}

impl Ranking {
    /// The rank of each key, from 0 for the smallest. Of equal keys, the one with the lowest index ranks highest.
    /// `bits`: those of a key that can be set.
    pub(crate) fn rank(
        &mut self,
        keys: impl ExactSizeIterator<Item = u64> + DoubleEndedIterator,
        bits: u32,
        ranks: &mut Vec<u32>,
    ) {
        ranks.resize(keys.len(), 0);
        if bits <= NARROW {
            self.count_digits(keys, ranks);
        } else {
            compare(keys, ranks);
        }
    }

    /// Goes through the keys from the last to the first. Zeros, the most frequent key of task vectors by far, rank in
    /// that order before all others, which are then sorted.
    fn count_digits(&mut self, keys: impl ExactSizeIterator<Item = u64> + DoubleEndedIterator, ranks: &mut [u32]) {
        let count = keys.len();
        self.entries.resize(count, (0, 0));
        let (mut some, mut all) = (0, u32::MAX);
        let (mut others, mut zeros) = (0, 0);
        for (index, key) in (0..count).zip(keys).rev() {
            let (key, zero) = (key as u32, key == 0);
            // The next key is written over what should not have been; no branch has to be foretold.
            self.entries[others] = (key, index as u32);
            ranks[index] = zeros;
            others += usize::from(!zero);
            zeros += u32::from(zero);
            some |= key;
            all &= if zero { u32::MAX } else { key };
        }
        let entries = &self.entries[..others];
        let mut ranked = |index: usize, rank: u32| ranks[index] = zeros + rank;
        let varied = some & !all;
        if others == 0 || varied == 0 {
            entries.iter().zip(0..).for_each(|((_, index), rank)| ranked(*index as usize, rank));
            return;
        }
        let digits = Digits {
            lowest: varied.trailing_zeros(),
            bits: u32::BITS - varied.leading_zeros() - varied.trailing_zeros(),
            index_bits: usize::BITS - count.leading_zeros(),
        };
        if digits.bits + digits.index_bits <= u32::BITS {
            self.narrow.sort(entries, digits, ranked);
        } else {
            self.wide.sort(entries, digits, ranked);
        }
    }
}

/// What is sorted: the bits of a key that vary, above the index.
trait Packed: Copy + Default {
    fn pack(key: u32, index: u32, index_bits: u32) -> Self;
    fn shifted(self, bits: u32) -> usize;
}

impl Packed for u32 {
    #[inline(always)]
    fn pack(key: u32, index: u32, index_bits: u32) -> Self {
        key << index_bits | index
    }

    #[inline(always)]
    fn shifted(self, bits: u32) -> usize {
        (self >> bits) as usize
    }
}

impl Packed for u64 {
    #[inline(always)]
    fn pack(key: u32, index: u32, index_bits: u32) -> Self {
        u64::from(key) << index_bits | u64::from(index)
    }

    #[inline(always)]
    fn shifted(self, bits: u32) -> usize {
        (self >> bits) as usize
    }
}

/// Where the varied bits of keys lie, and how many an index takes.
#[derive(Clone, Copy)]
struct Digits {
    lowest: u32,
    bits: u32,
    index_bits: u32,
}

#[derive(Default)]
struct Sorting<T> {
    from: Vec<T>,
    to: Vec<T>,
    counts: Vec<u32>,
}

impl<T: Packed> Sorting<T> {
    /// Sorts by the digits that differ, the lowest first; equal keys stay in their order. Calls `ranked` with the index
    /// and the rank of each entry.
    fn sort(&mut self, entries: &[(u32, u32)], digits: Digits, mut ranked: impl FnMut(usize, u32)) {
        let Digits { lowest, bits, index_bits } = digits;
        let count = entries.len();
        let widest = (usize::BITS - count.leading_zeros()).clamp(4, MAX_DIGIT);
        let passes = bits.div_ceil(widest);
        let digit = bits.div_ceil(passes);
        let mask = |bits: u32| (1_usize << bits) - 1;
        let (key_mask, index_mask, digit_mask) = (mask(bits), mask(index_bits), mask(digit));
        self.from.clear();
        self.from
            .extend(entries.iter().map(|(key, index)| T::pack(key >> lowest & key_mask as u32, *index, index_bits)));
        self.to.resize(count, T::default());
        for pass in 0..passes {
            let value = |entry: T| entry.shifted(index_bits + pass * digit) & digit_mask;
            self.counts.clear();
            self.counts.resize(1 << digit, 0);
            for entry in &self.from {
                self.counts[value(*entry)] += 1;
            }
            let mut before = 0;
            for count in &mut self.counts {
                before += std::mem::replace(count, before);
            }
            let counts = &mut self.counts[..];
            let mut place = |entry: T| {
                let next = &mut counts[value(entry)];
                *next += 1;
                *next - 1
            };
            if pass + 1 == passes {
                self.from.iter().for_each(|entry| ranked(entry.shifted(0) & index_mask, place(*entry)));
            } else {
                for entry in &self.from {
                    self.to[place(*entry) as usize] = *entry;
                }
                std::mem::swap(&mut self.from, &mut self.to);
            }
        }
    }
}

fn compare(keys: impl Iterator<Item = u64>, ranks: &mut [u32]) {
    let mut order: Vec<(u64, usize)> = keys.zip(0..).collect();
    order.sort_unstable_by(|left, right| left.0.cmp(&right.0).then(right.1.cmp(&left.1)));
    order.into_iter().zip(0..).for_each(|((_, index), rank)| ranks[index] = rank);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranks(keys: &[u64], bits: u32) -> Vec<u32> {
        let mut ranks = vec![7; 3];
        Ranking::default().rank(keys.iter().copied(), bits, &mut ranks);
        ranks
    }

    #[test]
    fn of_equal_keys_the_first_ranks_highest() {
        for bits in [32, 63] {
            assert_eq!(ranks(&[5, 3, 5, 0, 3, 5], bits), [5, 2, 4, 0, 1, 3]);
            assert_eq!(ranks(&[7, 7, 7], bits), [2, 1, 0]);
            assert_eq!(ranks(&[0, 0, 9, 0], bits), [2, 1, 3, 0]);
            assert_eq!(ranks(&[9], bits), [0]);
            assert_eq!(ranks(&[0], bits), [0]);
            assert!(ranks(&[], bits).is_empty());
        }
    }

    proptest! {
        #[test]
        fn counting_digits_ranks_as_comparing_does(
            keys in prop::collection::vec(prop_oneof![0..u64::from(u32::MAX), 0..9_u64, Just(0x3F80_0000)], 0..3000),
            shift in 0..20_u32,
        ) {
            let keys: Vec<u64> = keys.into_iter().map(|key| key >> shift << shift).collect();
            prop_assert_eq!(ranks(&keys, 32), ranks(&keys, 63));
        }
    }
}
