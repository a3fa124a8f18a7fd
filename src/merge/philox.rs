//! The counter-based generator Philox4x32-10 (Salmon et al., SC 2011): any element's draw without the ones before it.

/// Counters of a group.
const COUNTERS: usize = 16;
/// Elements of a group: sixteen a counter, the bytes of its four words.
pub(crate) const DRAWS: usize = 16 * COUNTERS;
/// Words of a group.
const WORDS: usize = DRAWS / 4;
/// How many counters code without 512-bit vectors encrypts side by side; more do not fit its registers.
pub(crate) const FEW: usize = 8;
/// The same with 512-bit vectors.
pub(crate) const MANY: usize = COUNTERS;
/// One more than the highest draw.
pub(crate) const DRAW_RANGE: u32 = 1 << 16;
/// Set in the counters of the lower bytes of draws.
const LOWER: u64 = 1 << 63;

/// The upper bytes of a group's draws. Word `v` has those of the elements `2 v`, `2 v + 1`, `128 + 2 v` and `129 + 2 v`.
pub(crate) type GroupDraws = [[u8; 4]; WORDS];

/// Where the upper byte of an element's draw is in its group.
#[inline(always)]
fn place(element: usize) -> (usize, usize) {
    (element / 2 % WORDS, element / (2 * WORDS) * 2 + element % 2)
}

/// A stream of draws: a key, and the upper half of all counters.
///
/// A draw has sixteen bits. The upper byte decides nearly always whether it is below a limit, so the lower one, which comes from
/// another counter, is only computed where it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Philox {
    pub(crate) key: [u32; 2],
    pub(crate) stream: [u32; 2],
}

impl Philox {
    /// The upper bytes of the draws of elements `256 group ..`, computed `BATCH` counters at a time, which divides 16 and changes
    /// nothing else. Words `2 i` and `2 i + 1` are the first two of counter `16 group + i`, words `32 + 2 i` and `33 + 2 i` its others: two
    /// words fill a lane of a vector, and no byte leaves it.
    #[inline(always)]
    pub(crate) fn group<const BATCH: usize>(&self, group: u64, draws: &mut GroupDraws) {
        let stream = self.stream.map(|word| [u64::from(word); BATCH]);
        let (lower, upper) = draws.split_at_mut(WORDS / 2);
        let lower = lower.as_flattened_mut().as_chunks_mut::<8>().0;
        let upper = upper.as_flattened_mut().as_chunks_mut::<8>().0;
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

    /// The lower byte of the draw whose upper byte is at that place of its group.
    fn lower_byte(&self, group: u64, word: usize, byte: usize) -> u8 {
        let lane = word % (WORDS / 2) / 2;
        let counter = group * COUNTERS as u64 + lane as u64 | LOWER;
        let [first, second] = self.stream.map(|word| [u64::from(word)]);
        let words = rounds([[counter], [counter >> 32], first, second], self.key);
        words[word / (WORDS / 2) * 2 + word % 2][0].to_le_bytes()[byte]
    }

    /// All draws of a group, element by element.
    pub(crate) fn draws(&self, group: u64) -> impl Iterator<Item = u32> {
        let (mut upper, mut lower) = ([[0; 4]; WORDS], [[0; 4]; WORDS]);
        self.group::<FEW>(group, &mut upper);
        // The group's number keeps the bit of the lower bytes where a counter has it.
        self.group::<FEW>(group | LOWER / COUNTERS as u64, &mut lower);
        (0..DRAWS).map(move |element| {
            let (word, byte) = place(element);
            u32::from(upper[word][byte]) << 8 | u32::from(lower[word][byte])
        })
    }
}

/// Which draws of a group are below a limit.
///
/// An upper byte that equals the limit's says nothing; such bytes are replaced, so that one comparison with [`Self::highest`]
/// answers for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// The highest upper byte that is below the limit.
    highest: u8,
    /// The limit's upper byte, where it does not decide, and its lower one.
    undecided: Option<(u8, u8)>,
}

impl Limit {
    /// Draws below `limit`, from 1 to [`DRAW_RANGE`].
    pub(crate) fn below(limit: u32) -> Self {
        let (upper, lower) = (limit >> 8, limit as u8);
        let undecided = (lower != 0).then_some((upper as u8, lower));
        Self { highest: upper.saturating_sub(1) as u8, undecided }
    }

    /// The highest upper byte that counts as below.
    pub(crate) fn highest(self) -> u8 {
        self.highest
    }

    /// Replaces bytes that do not decide: by the highest that counts as below, or by one that does not.
    #[inline(always)]
    pub(crate) fn decide(self, generator: &Philox, group: u64, draws: &mut GroupDraws) {
        let Some((upper, lower)) = self.undecided else { return };
        let found = draws.as_flattened().iter().fold(0, |found, byte| found | u8::from(*byte == upper));
        if found != 0 {
            self.decide_each(generator, group, draws, [upper, lower]);
        }
    }

    #[inline(never)]
    fn decide_each(self, generator: &Philox, group: u64, draws: &mut GroupDraws, [upper, lower]: [u8; 2]) {
        const ONES: u64 = 0x0101_0101_0101_0101;
        let pattern = u64::from(upper) * ONES;
        for (eight, bytes) in draws.as_flattened_mut().as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let difference = u64::from_le_bytes(*bytes) ^ pattern;
            // The highest bit of a byte is set where it is zero, and perhaps in those above that.
            let mut left = difference.wrapping_sub(ONES) & !difference & ONES << 7;
            while left != 0 {
                let index = left.trailing_zeros() as usize / 8;
                left &= left - 1;
                if bytes[index] == upper {
                    let is_below = generator.lower_byte(group, 2 * eight + index / 4, index % 4) < lower;
                    bytes[index] = if is_below { self.highest } else { u8::MAX };
                }
            }
        }
    }
}

/// The bytes of a group, element by element.
#[inline(always)]
pub(crate) fn each(draws: &GroupDraws) -> [u8; DRAWS] {
    let mut bytes = [0; DRAWS];
    let (first, second) = bytes.split_at_mut(2 * WORDS);
    let pairs = first.as_chunks_mut::<2>().0.iter_mut().zip(second.as_chunks_mut::<2>().0);
    for (word, (first, second)) in draws.iter().zip(pairs) {
        (*first, *second) = ([word[0], word[1]], [word[2], word[3]]);
    }
    bytes
}

/// The bytes of a group as words of pairs: word `p` has those of the elements `2 p` and `2 p + 1` below anything.
#[inline(always)]
pub(crate) fn pairs(draws: &GroupDraws, pairs: &mut [[u8; 4]; 2 * WORDS]) {
    let (first, second) = pairs.split_at_mut(WORDS);
    for (word, (first, second)) in draws.iter().zip(first.iter_mut().zip(second)) {
        (*first, *second) = (*word, (u32::from_le_bytes(*word) >> 16).to_le_bytes());
    }
}

const WORD: u64 = 0xFFFF_FFFF;

/// The ten rounds, on counters that are given word by word. A word is the lower half of its lane; what is above it does not
/// matter, before or after, and saves vector code the packing of words. Written out, no word is moved between registers.
#[inline(always)]
fn rounds<const N: usize>(words: [[u64; N]; 4], key: [u32; 2]) -> [[u64; N]; 4] {
    let (words, key) = two_rounds(words, key);
    let (words, key) = two_rounds(words, key);
    let (words, key) = two_rounds(words, key);
    let (words, key) = two_rounds(words, key);
    two_rounds(words, key).0
}

#[inline(always)]
fn two_rounds<const N: usize>(words: [[u64; N]; 4], key: [u32; 2]) -> ([[u64; N]; 4], [u32; 2]) {
    let next = |key: [u32; 2]| [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    let second = next(key);
    (round(round(words, key), second), next(second))
}

#[inline(always)]
fn round<const N: usize>(words: [[u64; N]; 4], key: [u32; 2]) -> [[u64; N]; 4] {
    let mut next = [[0; N]; 4];
    for index in 0..N {
        let first = (words[0][index] & WORD) * 0xD251_1F53;
        let second = (words[2][index] & WORD) * 0xCD9E_8D57;
        next[0][index] = (second >> 32) ^ words[1][index] ^ u64::from(key[0]);
        next[1][index] = second;
        next[2][index] = (first >> 32) ^ words[3][index] ^ u64::from(key[1]);
        next[3][index] = first;
    }
    next
}

#[cfg(test)]
mod tests {
    use super::{FEW, Limit, MANY, Philox, WORDS, each, pairs, rounds};

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
    fn draws_are_bytes_of_the_words_of_their_counters() {
        let generator = Philox { key: [3, 4], stream: [5, 6] };
        let (mut few, mut many) = ([[0; 4]; WORDS], [[0; 4]; WORDS]);
        for group in [0, 7, (1 << 28) - 1, 1 << 28, 1 << 40] {
            generator.group::<FEW>(group, &mut few);
            generator.group::<MANY>(group, &mut many);
            assert_eq!(few, many);
            for (element, draw) in generator.draws(group).enumerate() {
                let lane = element % 128 / 2 % 32 / 2;
                let word = element % 128 / 64 * 2 + element / 2 % 2;
                let byte = element / 128 * 2 + element % 2;
                let counter = 16 * group + lane as u64;
                let [upper, lower] = [counter, counter | 1 << 63].map(|counter| {
                    philox([counter as u32, (counter >> 32) as u32, 5, 6], [3, 4])[word].to_le_bytes()[byte]
                });
                assert_eq!(draw, u32::from(upper) << 8 | u32::from(lower));
                assert_eq!(each(&few)[element], upper);
                let mut words = [[0; 4]; 2 * WORDS];
                pairs(&few, &mut words);
                assert_eq!(words[element / 2][element % 2], upper);
            }
        }
    }

    #[test]
    fn one_comparison_with_a_decided_byte_is_the_comparison_of_the_draw() {
        let generator = Philox { key: [1, 2], stream: [3, 4] };
        for limit in [1, 2, 255, 256, 257, 19_661, 32_768, 65_279, 65_280, 65_281, 65_535, 65_536] {
            let below = Limit::below(limit);
            for group in 0..200 {
                let mut draws = [[0; 4]; WORDS];
                generator.group::<FEW>(group, &mut draws);
                below.decide(&generator, group, &mut draws);
                let decided = each(&draws).map(|byte| byte <= below.highest());
                assert!(decided.into_iter().eq(generator.draws(group).map(|draw| draw < limit)), "limit {limit}");
            }
        }
    }
}
