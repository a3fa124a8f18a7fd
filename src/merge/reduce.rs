//! Sums over whole tensors whose bits depend on neither threads nor instruction set.
//!
//! Every block is summed in float64 in [`LANES`] lanes, joined by a fixed tree; block sums are added in index order.

use std::ops::Range;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::MergeError;
use super::element::Element;
use super::tensor::{block_count, block_range};

/// Independent partial sums; element `i` of a tile belongs to lane `i % LANES`.
pub(crate) const LANES: usize = 16;

/// A running sum.
#[derive(Clone, Copy)]
pub(crate) struct Lanes([f64; LANES]);

impl From<[f64; LANES]> for Lanes {
    fn from(lanes: [f64; LANES]) -> Self {
        Self(lanes)
    }
}

impl Lanes {
    pub(crate) const ZERO: Self = Self([0.0; LANES]);

    /// Adds `term(left, right)` for each pair of elements.
    #[inline(always)]
    pub(crate) fn add_pairs<W: Copy>(&mut self, left: &[W], right: &[W], term: impl Fn(W, W) -> f64) {
        let (left_chunks, left_rest) = left.as_chunks::<LANES>();
        let (right_chunks, right_rest) = right.as_chunks::<LANES>();
        // A copy stays in registers, and the compiler makes vectors of it.
        let mut lanes = self.0;
        for (left, right) in left_chunks.iter().zip(right_chunks) {
            for index in 0..LANES {
                lanes[index] += term(left[index], right[index]);
            }
        }
        self.0 = lanes;
        for ((lane, left), right) in self.0.iter_mut().zip(left_rest).zip(right_rest) {
            *lane += term(*left, *right);
        }
    }

    /// Adds `term(value)` for each element.
    #[inline(always)]
    pub(crate) fn add_each<W: Copy>(&mut self, values: &[W], term: impl Fn(W) -> f64) {
        self.add_pairs(values, values, |value, _| term(value));
    }

    /// Adds the magnitude of each element. Eight at a time are added in the precision of the elements.
    #[inline(always)]
    pub(crate) fn add_magnitudes<W: Element>(&mut self, values: &[W]) {
        self.add_groups(values, values, |value, _| value.abs());
    }

    /// Adds the distance of each pair of elements, as [`Self::add_magnitudes`] adds magnitudes.
    #[inline(always)]
    pub(crate) fn add_distances<W: Element>(&mut self, left: &[W], right: &[W]) {
        self.add_groups(left, right, |left, right| (left - right).abs());
    }

    #[inline(always)]
    fn add_groups<W: Element>(&mut self, left: &[W], right: &[W], term: impl Fn(W, W) -> W) {
        let (left_groups, left_rest) = left.as_chunks::<{ 8 * LANES }>();
        let (right_groups, right_rest) = right.as_chunks::<{ 8 * LANES }>();
        for (left, right) in left_groups.iter().zip(right_groups) {
            let mut sums = [W::ZERO; LANES];
            for (left, right) in left.as_chunks::<LANES>().0.iter().zip(right.as_chunks::<LANES>().0) {
                for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
                    *sum = *sum + term(*left, *right);
                }
            }
            for (lane, sum) in self.0.iter_mut().zip(&sums) {
                *lane += sum.to_f64();
            }
        }
        self.add_pairs(left_rest, right_rest, |left, right| term(left, right).to_f64());
    }

    /// The sum of the lanes, as a balanced tree.
    pub(crate) fn total(&self) -> f64 {
        let mut lanes = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for index in 0..width {
                lanes[index] += lanes[index + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// What `part` gives for the numbers below `count`, computed in parallel, in their order. Of several errors the first one
/// in that order is reported, which collecting into a `Result` would not do.
pub(crate) fn in_order<T: Send>(
    count: u64,
    part: impl Fn(u64) -> Result<T, MergeError> + Sync,
) -> Result<Vec<T>, MergeError> {
    let parts: Vec<Result<T, MergeError>> = (0..count).into_par_iter().map(&part).collect();
    parts.into_iter().collect()
}

/// Sums over the blocks of a tensor like [`sum_blocks`], but `count` sums, which `block` adds to.
pub(crate) fn sum_block_rows(
    elements: u64,
    count: usize,
    block: impl Fn(Range<u64>, &mut [f64]) -> Result<(), MergeError> + Sync,
) -> Result<Vec<f64>, MergeError> {
    let sums = in_order(block_count(elements), |index| {
        let mut sums = vec![0.0; count];
        block(block_range(elements, index), &mut sums).map(|()| sums)
    })?;
    let mut total = vec![0.0; count];
    for sums in sums {
        for (total, part) in total.iter_mut().zip(sums) {
            *total += part;
        }
    }
    Ok(total)
}

/// Sums of `block(range)` over the blocks of a tensor, computed in parallel, added in index order.
pub(crate) fn sum_blocks<const N: usize>(
    elements: u64,
    block: impl Fn(Range<u64>) -> Result<[f64; N], MergeError> + Sync,
) -> Result<[f64; N], MergeError> {
    let sums = in_order(block_count(elements), |index| block(block_range(elements, index)))?;
    let mut total = [0.0; N];
    for sum in sums {
        for (total, part) in total.iter_mut().zip(sum) {
            *total += part;
        }
    }
    Ok(total)
}
