//! The counter-based generator Philox4x32-10 (Salmon et al., SC 2011), and masks' draws made of it: any element's draw
//! without the ones before it.
//!
//! A draw has sixteen bits but costs one byte: a counter's sixteen bytes are the upper bytes of sixteen draws, and a
//! draw's lower byte, which decides nothing in 255 of 256 cases, is the exclusive or of the upper bytes of two others.
//! Which two is chosen so that any two draws of a tensor are independent and uniform, as are any number of which at
//! most two belong to the same four: what is linear in a mask has the mean and the variance that it would have with
//! sixteen bits for each.

/// Counters of a group.
const COUNTERS: usize = 32;
/// Draws of a group: sixteen a counter.
pub(crate) const DRAWS: usize = 16 * COUNTERS;
/// How many counters code without 512-bit vectors encrypts side by side; more do not fit its registers.
pub(crate) const FEW: usize = 4;
/// How many counters code with 512-bit vectors encrypts side by side: enough that the units of a core find work while a
/// round waits for the last one.
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

/// The lower and the upper bytes of four draws.
const LOWER: u64 = 0x00FF_00FF_00FF_00FF;
const UPPER: u64 = !LOWER;

impl Philox {
    /// The draws of elements `512 group ..`, computed `BATCH` counters at a time, which divides 32 and changes nothing
    /// else.
    ///
    /// Let `b` be the sixteen bytes of the counter `32 g + i`, and `u = (b[2 t + 1], b[2 t], b[2 t + 9], b[2 t + 8])`.
    /// Element `512 g + 128 q + 4 i + t` has the draw `256 u[q] + (u[q + 1] ^ u[q + 2])`, with indices modulo 4: four
    /// elements share four bytes, and none leaves its lane of a vector.
    #[inline(always)]
    pub(crate) fn group<const BATCH: usize>(&self, group: u64, draws: &mut GroupDraws) {
        let stream = self.stream.map(|word| [u64::from(word); BATCH]);
        let [first, second, third, fourth] =
            quarters(draws).map(|quarter| quarter.as_chunks_mut::<BATCH>().0.iter_mut());
        let batches = first.zip(second).zip(third.zip(fourth));
        for (batch, ((first, second), (third, fourth))) in (group * (COUNTERS / BATCH) as u64..).zip(batches) {
            let counters: [u64; BATCH] = std::array::from_fn(|index| batch * BATCH as u64 + index as u64);
            let words = rounds([counters, counters.map(|counter| counter >> 32), stream[0], stream[1]], self.key);
            for index in 0..BATCH {
                let lower = words[0][index] & WORD | words[1][index] << 32;
                let upper = words[2][index] & WORD | words[3][index] << 32;
                first[index] = (lower ^ upper >> 8 & LOWER).to_le_bytes();
                second[index] = (lower << 8 & UPPER | (upper ^ upper >> 8) & LOWER).to_le_bytes();
                third[index] = (upper ^ lower >> 8 & LOWER).to_le_bytes();
                fourth[index] = (upper << 8 & UPPER | (lower ^ lower >> 8) & LOWER).to_le_bytes();
            }
        }
    }
}

#[inline(always)]
fn quarters(draws: &mut GroupDraws) -> [&mut [[u8; 8]]; 4] {
    let (lower, upper) = draws.split_at_mut(2 * COUNTERS);
    let (first, second) = lower.split_at_mut(COUNTERS);
    let (third, fourth) = upper.split_at_mut(COUNTERS);
    [first, second, third, fourth]
}

/// A group's draws by pairs of elements: the first one's in the lower half of a word.
#[inline(always)]
pub(crate) fn pairs(draws: &GroupDraws) -> &[[u8; 4]] {
    draws.as_flattened().as_chunks::<4>().0
}

/// The draws of a group, element by element.
#[inline(always)]
pub(crate) fn each(draws: &GroupDraws) -> impl Iterator<Item = u16> {
    draws.as_flattened().as_chunks::<2>().0.iter().map(|draw| u16::from_le_bytes(*draw))
}

const WORD: u64 = 0xFFFF_FFFF;

/// The ten rounds, on counters that are given word by word. A word is the lower half of its lane; what is above it does
/// not matter, before or after, and saves vector code the packing of words. Written out, no word is moved between
/// registers.
#[inline(always)]
fn rounds<const N: usize>(words: [[u64; N]; 4], key: [u32; 2]) -> [[u64; N]; 4] {
    // A compiler that knows the upper half of a key to be zero moves it behind a shift, where it costs an instruction
    // of its own with AVX-512, which has one for two exclusive ors. Without that, keys known to be small need fewer
    // registers.
    let known = N < MANY;
    let key = key.map(|word| u64::from(word) | if known { 0 } else { u64::from(word) << 32 });
    let (words, key) = two_rounds(words, key, known);
    let (words, key) = two_rounds(words, key, known);
    let (words, key) = two_rounds(words, key, known);
    let (words, key) = two_rounds(words, key, known);
    two_rounds(words, key, known).0
}

#[inline(always)]
fn two_rounds<const N: usize>(words: [[u64; N]; 4], key: [u64; 2], known: bool) -> ([[u64; N]; 4], [u64; 2]) {
    let bits = if known { WORD } else { u64::MAX };
    let next = |key: [u64; 2]| [key[0].wrapping_add(0x9E37_79B9) & bits, key[1].wrapping_add(0xBB67_AE85) & bits];
    let second = next(key);
    (round(round(words, key), second), next(second))
}

#[inline(always)]
fn round<const N: usize>(words: [[u64; N]; 4], key: [u64; 2]) -> [[u64; N]; 4] {
    let mut next = [[0; N]; 4];
    for index in 0..N {
        let first = (words[0][index] & WORD) * 0xD251_1F53;
        let second = (words[2][index] & WORD) * 0xCD9E_8D57;
        next[0][index] = (second >> 32) ^ words[1][index] ^ key[0];
        next[1][index] = second;
        next[2][index] = (first >> 32) ^ words[3][index] ^ key[1];
        next[3][index] = first;
    }
    next
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
    fn groups_hold_the_bytes_of_their_counters() {
        let generator = Philox { key: [3, 4], stream: [5, 6] };
        let mut draws = [[0; 8]; DRAWS / 4];
        for group in [0, 7, (1 << 27) - 1, 1 << 27, 1 << 40] {
            generator.group::<MANY>(group, &mut draws);
            let mut few = [[0; 8]; DRAWS / 4];
            generator.group::<FEW>(group, &mut few);
            assert_eq!(draws, few);
            for (element, draw) in each(&draws).enumerate() {
                let (quarter, counter, four) = (element / 128, element as u64 % 128 / 4, element % 4);
                let counter = 32 * group + counter;
                let block = philox([counter as u32, (counter >> 32) as u32, 5, 6], [3, 4]);
                let bytes: Vec<u8> = block.into_iter().flat_map(u32::to_le_bytes).collect();
                let upper = [2 * four + 1, 2 * four, 2 * four + 9, 2 * four + 8].map(|byte| u16::from(bytes[byte]));
                let lower = upper[(quarter + 1) % 4] ^ upper[(quarter + 2) % 4];
                assert_eq!(draw, upper[quarter] << 8 | lower);
            }
        }
    }

    /// The draws of four elements that share four bytes, by the definition.
    fn four(upper: [u32; 4]) -> [u32; 4] {
        [0, 1, 2, 3].map(|index| upper[index] << 8 | (upper[(index + 1) % 4] ^ upper[(index + 2) % 4]))
    }

    /// Draws are linear in the bits of the bytes, so two of them are uniform and independent exactly where no change of
    /// the bytes but none leaves both as they are, and it is enough to ask this of one bit of each byte.
    #[test]
    fn any_two_of_four_draws_are_independent() {
        for first in 0..4 {
            for second in 0..first {
                let all = (0..16_u32).map(|bits| {
                    let draws = four([0, 1, 2, 3].map(|byte| bits >> byte & 1));
                    (draws[first], draws[second])
                });
                assert_eq!(all.collect::<std::collections::HashSet<_>>().len(), 16, "{second} and {first}");
            }
        }
    }
}
