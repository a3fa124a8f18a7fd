//! Sums in the order that PyTorch adds in: of the elements of a row of float32 values, and of tensors.
//!
//! In a row, eight lanes in four groups are added to side by side, and at regular intervals what they hold moves on to
//! the next of four levels, so that large sums do not swallow small values (a cascade, or pairwise summation). The order
//! depends on nothing but the number of values. Tensors are added element by element, with the same cascade of levels
//! from sixteen of them on.

use std::ops::Range;

use super::element::Element;
use super::tensor::TILE;

/// Values that lie next to each other in a vector.
const LANES: usize = 8;
/// Vectors that are added side by side.
const GROUPS: usize = 4;
const LEVELS: usize = 4;

type Round = [[f32; LANES]; GROUPS];

/// A sum of a known number of values, which come in order.
pub(crate) struct CascadeSum {
    levels: [Round; LEVELS],
    /// Lanes in use: one where there are too few values for a vector.
    lanes: u64,
    /// Whole rounds of `GROUPS` vectors.
    rounds: u64,
    /// Whole vectors.
    vectors: u64,
    /// Rounds after which a level moves on to the next one, as a power of two.
    step: u32,
    added: u64,
    rest: f32,
}

impl CascadeSum {
    /// A sum of `count` values.
    pub(crate) fn new(count: u64) -> Self {
        let lanes = if count < LANES as u64 { 1 } else { LANES as u64 };
        let vectors = count / lanes;
        let rounds = vectors / GROUPS as u64;
        let bits = u64::BITS - rounds.saturating_sub(1).leading_zeros();
        let step = (bits / LEVELS as u32).max(4);
        Self { levels: [[[0.0; LANES]; GROUPS]; LEVELS], lanes, rounds, vectors, step, added: 0, rest: 0.0 }
    }

    /// Adds the next values.
    #[inline(always)]
    pub(crate) fn add(&mut self, values: &[f32]) {
        let mut left = values;
        while let Some((round, rest)) = left.split_first_chunk::<{ LANES * GROUPS }>() {
            let ended = self.added / (LANES * GROUPS) as u64 + 1;
            if self.lanes < LANES as u64 || ended > self.rounds || !self.added.is_multiple_of((LANES * GROUPS) as u64) {
                break;
            }
            for (sum, value) in self.levels[0].as_flattened_mut().iter_mut().zip(round) {
                *sum += *value;
            }
            self.added += round.len() as u64;
            self.end_round(ended);
            left = rest;
        }
        for value in left {
            self.add_one(*value);
        }
    }

    fn add_one(&mut self, value: f32) {
        let (vector, lane) = (self.added / self.lanes, (self.added % self.lanes) as usize);
        let in_rounds = self.rounds * GROUPS as u64;
        if vector < in_rounds {
            let group = (vector % GROUPS as u64) as usize;
            self.levels[0][group][lane] += value;
            if group + 1 == GROUPS && lane as u64 + 1 == self.lanes {
                self.end_round(vector / GROUPS as u64 + 1);
            }
        } else if vector < self.vectors {
            if vector == in_rounds && lane == 0 {
                self.join_levels();
            }
            self.levels[0][0][lane] += value;
        } else {
            self.rest += value;
        }
        self.added += 1;
    }

    fn end_round(&mut self, ended: u64) {
        if !ended.is_multiple_of(1 << self.step) {
            return;
        }
        for level in 1..LEVELS {
            self.move_up(level);
            let mask = ((1_u64 << self.step) - 1) << (level as u32 * self.step);
            if ended & mask != 0 {
                break;
            }
        }
    }

    /// Adds the level below to this one and empties it.
    fn move_up(&mut self, level: usize) {
        let below = std::mem::take(&mut self.levels[level - 1]);
        add_round(&mut self.levels[level], &below);
    }

    fn join_levels(&mut self) {
        for level in 1..LEVELS {
            let above = std::mem::take(&mut self.levels[level]);
            add_round(&mut self.levels[0], &above);
        }
    }

    /// The sum of what was added.
    pub(crate) fn total(mut self) -> f32 {
        // A second time, where vectors were left over, this adds zeros.
        self.join_levels();
        let [mut sums, others @ ..] = self.levels[0];
        for group in &others {
            for (sum, value) in sums.iter_mut().zip(group) {
                *sum += *value;
            }
        }
        sums.iter().take(self.lanes as usize).fold(self.rest, |sum, value| sum + value)
    }
}

fn add_round(sums: &mut Round, round: &Round) {
    for (sum, value) in sums.iter_mut().flatten().zip(round.iter().flatten()) {
        *sum += *value;
    }
}

/// Tensors after which a level of [`sum_stack`] moves on to the next one, as a power of two. PyTorch makes it larger
/// from half a million tensors on.
const STACK_STEP: u32 = 4;

/// Sums over `count` tensors, a tile of each, element by element, in the order of PyTorch's sum of them stacked. `add`
/// adds those of a range, one after the other, to what it is given: one tile or several, for several sums.
///
/// Tensors whose length is no multiple of 32 end in elements that PyTorch adds in another order from five tensors on;
/// these are not told apart.
#[inline(always)]
pub(crate) fn sum_stack<W: Element, const SUMS: usize>(
    count: usize,
    mut sums: [&mut [W]; SUMS],
    mut add: impl FnMut(Range<usize>, &mut [&mut [W]; SUMS]),
) {
    let step = 1 << STACK_STEP;
    sums.iter_mut().for_each(|sums| sums.fill(W::ZERO));
    // Few tensors need no levels, nor the time to make them.
    let mut levels = if count > step { Some([[[W::ZERO; TILE]; LEVELS - 1]; SUMS]) } else { None };
    let mut done = 0;
    while done < count {
        let next = count.min(done + step);
        add(done..next, &mut sums);
        if let Some(levels) = levels.as_mut().filter(|_| next - done == step) {
            for (sums, levels) in sums.iter_mut().zip(levels) {
                move_up(next, sums, levels);
            }
        }
        done = next;
    }
    for (sums, levels) in sums.iter_mut().zip(levels.iter().flatten()) {
        for level in levels {
            for (sum, value) in sums.iter_mut().zip(level) {
                *sum = *sum + *value;
            }
        }
    }
}

/// [`sum_stack`] of `count` tiles as they are, which lie [`TILE`] apart.
#[inline(always)]
pub(crate) fn sum_tiles<W: Element>(tiles: &[W], count: usize, sums: &mut [W]) {
    sum_stack(
        count,
        [sums],
        #[inline(always)]
        |range, [sums]| {
            for tile in range.map(|place| &tiles[place * TILE..][..TILE]) {
                for (sum, value) in sums.iter_mut().zip(tile) {
                    *sum = *sum + *value;
                }
            }
        },
    );
}

/// Moves what `done` tensors have summed up to the levels that are full.
#[inline(always)]
fn move_up<W: Element>(done: usize, sums: &mut [W], levels: &mut [[W; TILE]; LEVELS - 1]) {
    let mut below = sums;
    for (level, sums) in (1..).zip(levels) {
        for (sum, value) in sums.iter_mut().zip(below.iter_mut()) {
            *sum = *sum + *value;
            *value = W::ZERO;
        }
        if done & (((1 << STACK_STEP) - 1) << (level * STACK_STEP)) != 0 {
            break;
        }
        below = sums;
    }
}

#[cfg(test)]
mod tests {
    use super::{CascadeSum, sum_stack};

    fn sum(values: &[f32]) -> f32 {
        let total = |tile: usize| {
            let mut sum = CascadeSum::new(values.len() as u64);
            values.chunks(tile).for_each(|values| sum.add(values));
            sum.total()
        };
        // However the values come.
        assert_eq!([1, 7, 48].map(total), [total(512); 3]);
        total(512)
    }

    /// Multiples of a power of two, whose sums are exact in any order.
    #[test]
    fn whole_numbers_are_summed_exactly() {
        for count in (0..70).chain([255, 256, 511, 512, 513, 2048, 4096, 14_336, 100_003]) {
            let values: Vec<f32> = (0..count).map(|index| (index % 7) as f32 - 3.0).collect();
            let exact: i64 = (0..i64::from(count)).map(|index| index % 7 - 3).sum();
            assert_eq!(sum(&values), exact as f32, "{count} values");
        }
    }

    /// As `torch.sum` (2.15, one thread) gives it for the same values, which are `((i * 7919) mod 1009) / 1009 - 0.5`
    /// in float32.
    #[test]
    fn the_order_is_that_of_pytorch() {
        let expected: [(u64, u32); 15] = [
            (3, 0x3d38_b4a0),
            (7, 0xbf2f_30fa),
            (8, 0xbe7b_afd4),
            (24, 0x3e18_3ad8),
            (31, 0xbc2a_8000),
            (33, 0xbf10_3ce6),
            (56, 0x3ef6_9ccb),
            (100, 0x3ecf_8a46),
            (255, 0xbe55_a114),
            (512, 0xbea4_688c),
            (1000, 0x3e34_a574),
            (4096, 0xc019_3ea9),
            (14_336, 0xc0d4_5c59),
            (65_537, 0xc1fe_95b1),
            (400_009, 0xc345_8cb1),
        ];
        for (count, bits) in expected {
            let values: Vec<f32> = (0..count).map(|index: u64| ((index * 7919) % 1009) as f32 / 1009.0 - 0.5).collect();
            assert_eq!(sum(&values).to_bits(), bits, "{count} values");
        }
    }

    /// As `torch.stack(rows).sum(dim=0)` (2.15, one thread) gives it for `count` rows of 32 values: row `i` has
    /// `((i * 7919 + j * 104729) mod 1009) / 1009 - 0.5` in float32 at `j`. Expected are the elements 0 and 31.
    #[test]
    fn stacked_tensors_are_added_in_the_order_of_pytorch() {
        let expected: [(usize, [u32; 2]); 12] = [
            (1, [0xbf00_0000, 0x3e0f_9a84]),
            (4, [0x3db8_b4a0, 0xbeb2_9dd0]),
            (8, [0xbe7b_afd4, 0xbdfd_b768]),
            (16, [0xbe48_f188, 0x3d42_dab8]),
            (17, [0xbdfa_ac00, 0xbe74_1346]),
            (18, [0xbe4d_00c0, 0xbf2d_08e0]),
            (33, [0xbf10_3ce4, 0xbedf_0450]),
            (99, [0xbda9_7b90, 0x3e9a_0188]),
            (255, [0xbe55_a12c, 0xbf72_ae0a]),
            (257, [0xbf31_ba7f, 0xbe1c_cbee]),
            (1000, [0x3e34_a566, 0xbf15_f24a]),
            (5000, [0xbff8_a46d, 0xbfe0_6996]),
        ];
        for (count, bits) in expected {
            let mut sums = [0.0_f32; 32];
            sum_stack(count, [&mut sums], |rows, [sums]| {
                for row in rows {
                    for (column, sum) in sums.iter_mut().enumerate() {
                        *sum += ((row * 7919 + column * 104_729) % 1009) as f32 / 1009.0 - 0.5;
                    }
                }
            });
            assert_eq!([sums[0].to_bits(), sums[31].to_bits()], bits, "{count} rows");
        }
    }
}
