//! Ranks of the magnitudes in a row.

/// Keys of at most this many bits are ranked by counting their digits.
const NARROW: u32 = 32;
/// Bits of the widest digit: its counters stay in the nearest cache.
const MAX_DIGIT: u32 = 11;

/// What ranking a row needs, kept from row to row.
#[derive(Default)]
pub(crate) struct Ranking {
    entries: Vec<u64>,
    sorted: Vec<u64>,
    counts: Vec<u32>,
}

impl Ranking {
    /// Calls `ranked` with the index and the rank, from 0 for the smallest, of each key. Of equal keys, the one with the lowest
    /// index ranks highest. `bits`: those of a key that can be set.
    pub(crate) fn rank(
        &mut self,
        keys: impl ExactSizeIterator<Item = u64>,
        bits: u32,
        ranked: impl FnMut(usize, usize),
    ) {
        if bits <= NARROW {
            self.count_digits(keys, ranked);
        } else {
            compare(keys, ranked);
        }
    }

    /// Sorts by the digits that differ, the lowest first, and starts in the order of falling indices: equal keys stay in it.
    fn count_digits(&mut self, keys: impl ExactSizeIterator<Item = u64>, mut ranked: impl FnMut(usize, usize)) {
        let (mut some, mut all) = (0, u64::MAX);
        self.entries.clear();
        self.entries.extend(keys.zip(0_u64..).map(|(key, index)| {
            some |= key;
            all &= key;
            key << 32 | index
        }));
        self.entries.reverse();
        let count = self.entries.len();
        let varied = if count == 0 { 0 } else { some & !all };
        if varied == 0 {
            self.entries.iter().enumerate().for_each(|(rank, entry)| ranked(*entry as u32 as usize, rank));
            return;
        }
        let (lowest, bits) = (varied.trailing_zeros(), u64::BITS - varied.leading_zeros() - varied.trailing_zeros());
        let widest = (usize::BITS - count.leading_zeros()).clamp(4, MAX_DIGIT);
        let passes = bits.div_ceil(widest);
        let digit = bits.div_ceil(passes);
        self.sorted.resize(count, 0);
        for pass in 0..passes {
            let shift = 32 + lowest + pass * digit;
            let value = |entry: u64| (entry >> shift) as usize & ((1 << digit) - 1);
            self.counts.clear();
            self.counts.resize(1 << digit, 0);
            for entry in &self.entries {
                self.counts[value(*entry)] += 1;
            }
            let mut before = 0;
            for count in &mut self.counts {
                before += std::mem::replace(count, before);
            }
            let counts = &mut self.counts[..];
            let mut place = |entry: u64| {
                let next = &mut counts[value(entry)];
                *next += 1;
                *next as usize - 1
            };
            if pass + 1 == passes {
                self.entries.iter().for_each(|entry| ranked(*entry as u32 as usize, place(*entry)));
            } else {
                for entry in &self.entries {
                    self.sorted[place(*entry)] = *entry;
                }
                std::mem::swap(&mut self.entries, &mut self.sorted);
            }
        }
    }
}

fn compare(keys: impl Iterator<Item = u64>, mut ranked: impl FnMut(usize, usize)) {
    let mut order: Vec<(u64, usize)> = keys.zip(0..).collect();
    order.sort_unstable_by(|left, right| left.0.cmp(&right.0).then(right.1.cmp(&left.1)));
    order.into_iter().enumerate().for_each(|(rank, (_, index))| ranked(index, rank));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranks(keys: &[u64], bits: u32) -> Vec<usize> {
        let mut ranks = vec![usize::MAX; keys.len()];
        Ranking::default().rank(keys.iter().copied(), bits, |index, rank| ranks[index] = rank);
        ranks
    }

    #[test]
    fn of_equal_keys_the_first_ranks_highest() {
        for bits in [32, 63] {
            assert_eq!(ranks(&[5, 3, 5, 0, 3, 5], bits), [5, 2, 4, 0, 1, 3]);
            assert_eq!(ranks(&[7, 7, 7], bits), [2, 1, 0]);
            assert_eq!(ranks(&[9], bits), [0]);
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
