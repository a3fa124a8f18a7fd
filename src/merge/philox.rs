//! The counter-based generator Philox4x32-10 (Salmon et al., SC 2011): any element's draw without the ones before it.

/// Counters that are encrypted side by side.
const BATCH: usize = 16;
/// Draws of a batch: four a counter.
pub(crate) const DRAWS: usize = 4 * BATCH;

/// A stream of draws: a key, and the upper half of all counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Philox {
    pub(crate) key: [u32; 2],
    pub(crate) stream: [u32; 2],
}

impl Philox {
    /// Draws `4 * counter ..` of the stream, [`DRAWS`] of them: word `i % 4` of the block with counter `i / 4`.
    #[inline(always)]
    pub(crate) fn draws(&self, counter: u64) -> [u32; DRAWS] {
        let mut low = [0; BATCH];
        let mut high = [0; BATCH];
        for (index, (low, high)) in (0..).zip(low.iter_mut().zip(&mut high)) {
            let counter = counter + index;
            (*low, *high) = (counter as u32, (counter >> 32) as u32);
        }
        let words = rounds([low, high, [self.stream[0]; BATCH], [self.stream[1]; BATCH]], self.key);
        let mut draws = [0; DRAWS];
        for index in 0..BATCH {
            draws[4 * index] = words[0][index];
            draws[4 * index + 1] = words[1][index];
            draws[4 * index + 2] = words[2][index];
            draws[4 * index + 3] = words[3][index];
        }
        draws
    }
}

/// The ten rounds, on counters that are given word by word.
#[inline(always)]
fn rounds<const N: usize>(mut words: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let mut next = [[0; N]; 4];
        for index in 0..N {
            let first = u64::from(words[0][index]) * 0xD251_1F53;
            let second = u64::from(words[2][index]) * 0xCD9E_8D57;
            next[0][index] = (second >> 32) as u32 ^ words[1][index] ^ key[0];
            next[1][index] = second as u32;
            next[2][index] = (first >> 32) as u32 ^ words[3][index] ^ key[1];
            next[3][index] = first as u32;
        }
        words = next;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::{DRAWS, Philox, rounds};

    fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
        rounds(counter.map(|word| [word]), key).map(|word| word[0])
    }

    #[test]
    fn known_answers_of_random123() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn batches_hold_the_words_of_their_counters_in_order() {
        let generator = Philox { key: [3, 4], stream: [5, 6] };
        for first in [0, 7, u64::from(u32::MAX) - 2] {
            let draws = generator.draws(first);
            for (index, draw) in draws.iter().enumerate().take(DRAWS) {
                let counter = first + index as u64 / 4;
                let block = philox([counter as u32, (counter >> 32) as u32, 5, 6], [3, 4]);
                assert_eq!(*draw, block[index % 4]);
            }
        }
    }
}
