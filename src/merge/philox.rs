//! The counter-based generator Philox4x32-10 (Salmon et al., SC 2011): any element's draw without the ones before it.

/// Counters that are encrypted side by side.
const BATCH: usize = 8;
/// Draws of a group: eight a counter, the halves of its four words.
pub(crate) const DRAWS: usize = 8 * BATCH;
/// One more than the highest draw.
pub(crate) const DRAW_RANGE: u32 = 1 << 16;

/// A stream of draws: a key, and the upper half of all counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Philox {
    pub(crate) key: [u32; 2],
    pub(crate) stream: [u32; 2],
}

impl Philox {
    /// The draws of elements `64 group ..`.
    ///
    /// Element `64 g + 32 h + 8 w + i` has half `h` (0: the lower one) of word `w` of the counter `8 g + i`: neighbouring
    /// elements have neighbouring counters, so that a vector of words becomes a vector of draws without a permutation.
    #[inline(always)]
    pub(crate) fn group(&self, group: u64) -> [u16; DRAWS] {
        let counters: [u64; BATCH] = std::array::from_fn(|index| group * BATCH as u64 + index as u64);
        let stream = self.stream.map(|word| [u64::from(word); BATCH]);
        let words = [counters, counters.map(|counter| counter >> 32), stream[0], stream[1]];
        let words = rounds(words, self.key);
        let mut draws = [0; DRAWS];
        for (word, values) in words.iter().enumerate() {
            for (index, value) in values.iter().enumerate() {
                draws[BATCH * word + index] = *value as u16;
                draws[DRAWS / 2 + BATCH * word + index] = (*value >> 16) as u16;
            }
        }
        draws
    }
}

const WORD: u64 = 0xFFFF_FFFF;

/// The ten rounds, on counters that are given word by word. A word is the lower half of its lane; what is above it does not
/// matter, before or after, and saves vector code the packing of words.
#[inline(always)]
fn rounds<const N: usize>(mut words: [[u64; N]; 4], mut key: [u32; 2]) -> [[u64; N]; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let mut next = [[0; N]; 4];
        for index in 0..N {
            let first = (words[0][index] & WORD) * 0xD251_1F53;
            let second = (words[2][index] & WORD) * 0xCD9E_8D57;
            next[0][index] = (second >> 32) ^ words[1][index] ^ u64::from(key[0]);
            next[1][index] = second;
            next[2][index] = (first >> 32) ^ words[3][index] ^ u64::from(key[1]);
            next[3][index] = first;
        }
        words = next;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::{Philox, rounds};

    fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
        rounds(counter.map(|word| [u64::from(word)]), key).map(|word| word[0] as u32)
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
    fn groups_hold_the_halves_of_the_words_of_their_counters() {
        let generator = Philox { key: [3, 4], stream: [5, 6] };
        for group in [0, 7, (1 << 29) - 1, 1 << 29, 1 << 40] {
            for (element, draw) in generator.group(group).iter().enumerate() {
                let (half, word, index) = (element / 32, element / 8 % 4, element as u64 % 8);
                let counter = 8 * group + index;
                let block = philox([counter as u32, (counter >> 32) as u32, 5, 6], [3, 4]);
                assert_eq!(u32::from(*draw), block[word] >> (16 * half) & 0xFFFF);
            }
        }
    }
}
