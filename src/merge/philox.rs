//! The counter-based generator Philox4x32-10 (Salmon et al., SC 2011): any element's draw without the ones before it.

/// Counters of a group.
const COUNTERS: usize = 32;
/// Draws of a group: eight a counter, the halves of its four words.
pub(crate) const DRAWS: usize = 8 * COUNTERS;
/// How many counters code without 512-bit vectors encrypts side by side; more do not fit its registers.
pub(crate) const FEW: usize = 8;
/// The same with 512-bit vectors: enough that the units of a core find work while a round waits for the last one.
pub(crate) const MANY: usize = 16;
/// One more than the highest draw.
pub(crate) const DRAW_RANGE: u32 = 1 << 16;

/// The draws of a group's elements, in order, as they lie in memory: little-endian, two bytes each.
pub(crate) type GroupDraws = [[u8; 8]; DRAWS / 4];

/// A stream of draws: a key, and the upper half of all counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Philox {
    pub(crate) key: [u32; 2],
    pub(crate) stream: [u32; 2],
}

impl Philox {
    /// The draws of elements `256 group ..`, computed `BATCH` counters at a time, which divides 32 and changes nothing else.
    ///
    /// Element `256 g + 128 h + 4 i + 2 k + s` has half `s` (0: the lower one) of word `2 h + k` of the counter `32 g + i`: two
    /// words that belong to one lane of a vector make four draws without leaving it.
    #[inline(always)]
    pub(crate) fn group<const BATCH: usize>(&self, group: u64, draws: &mut GroupDraws) {
        let stream = self.stream.map(|word| [u64::from(word); BATCH]);
        let (lower, upper) = draws.split_at_mut(COUNTERS);
        let batches = lower.as_chunks_mut::<BATCH>().0.iter_mut().zip(upper.as_chunks_mut::<BATCH>().0);
        for (batch, (lower, upper)) in (group * (COUNTERS / BATCH) as u64..).zip(batches) {
            let counters: [u64; BATCH] = std::array::from_fn(|index| batch * BATCH as u64 + index as u64);
            let words = rounds([counters, counters.map(|counter| counter >> 32), stream[0], stream[1]], self.key);
            for index in 0..BATCH {
                lower[index] = (words[0][index] & WORD | words[1][index] << 32).to_le_bytes();
                upper[index] = (words[2][index] & WORD | words[3][index] << 32).to_le_bytes();
            }
        }
    }
}

/// The draws of a group, element by element.
#[inline(always)]
pub(crate) fn each(draws: &GroupDraws) -> impl Iterator<Item = u16> {
    draws.as_flattened().as_chunks::<2>().0.iter().map(|draw| u16::from_le_bytes(*draw))
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
    use super::{DRAWS, FEW, MANY, Philox, each, rounds};

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
        let mut draws = [[0; 8]; DRAWS / 4];
        for group in [0, 7, (1 << 27) - 1, 1 << 27, 1 << 40] {
            generator.group::<MANY>(group, &mut draws);
            let mut few = [[0; 8]; DRAWS / 4];
            generator.group::<FEW>(group, &mut few);
            assert_eq!(draws, few);
            for (element, draw) in each(&draws).enumerate() {
                let (word, counter) = (element / 128 * 2 + element / 2 % 2, element as u64 % 128 / 4);
                let counter = 32 * group + counter;
                let block = philox([counter as u32, (counter >> 32) as u32, 5, 6], [3, 4]);
                assert_eq!(u32::from(draw), block[word] >> (16 * (element % 2)) & 0xFFFF);
            }
        }
    }
}
