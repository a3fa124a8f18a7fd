//! Adds what a LoRA adapter changes to a tensor while it is decoded, so that no merged copy of the model is ever made.
//!
//! An element becomes `w + scale * (l_1 r_1 + ... + l_k r_k)`: products and sums in float32, each rounded, in order of rank, then
//! times the scale, then added to the stored element; the sum is rounded to float32 (to float64 for tensors that are stored in
//! it). It depends on the element's position only, so a LoRA source is bit for bit what a float32 checkpoint of these numbers
//! would be, in any method and at any block size.

use super::element::Element;
use super::simd::{Isa, Kernel, dispatch};
use crate::checkpoint::{Dtype, Factor, LowRank};

/// Elements of a row whose sums are kept in registers; what they need of the right factor lies together.
const CHUNK: usize = 64;

/// A change of low rank, its factors in float32.
pub(crate) struct Delta {
    isa: Isa,
    columns: usize,
    rank: usize,
    scale: f32,
    /// One row of `rank` numbers for each row of the tensor.
    left: Vec<f32>,
    /// For each [`CHUNK`] columns, the last ones filled up with zeros, `rank` rows of as many numbers.
    right: Vec<f32>,
}

impl Delta {
    pub(crate) fn new(change: &LowRank<'_>, isa: Isa) -> Self {
        Self {
            isa,
            columns: change.columns,
            rank: change.rank,
            scale: change.scale,
            left: matrix(&change.left, change.rows, change.rank),
            right: chunked(&matrix(&change.right, change.rank, change.columns), change.columns, change.rank),
        }
    }

    /// Adds the change to `values`, the tensor's elements from `first` on as they were stored in `dtype`. Returns the largest
    /// key of the sums.
    #[inline(never)]
    pub(crate) fn add<W: Element>(&self, dtype: Dtype, first: u64, values: &mut [W]) -> W::Key {
        dispatch(self.isa, Add { delta: self, wide: dtype == Dtype::Float64, first: first as usize, values })
    }
}

/// A stored matrix of that shape in float32.
fn matrix(factor: &Factor<'_>, rows: usize, columns: usize) -> Vec<f32> {
    let mut stored = vec![0.0; rows * columns];
    f32::decode(factor.dtype, factor.bytes, &mut stored);
    if !factor.transposed {
        return stored;
    }
    let mut turned = Vec::with_capacity(stored.len());
    for row in 0..rows {
        turned.extend(stored.iter().skip(row).step_by(rows));
    }
    turned
}

/// A matrix of `rank` rows, cut into chunks of columns.
fn chunked(matrix: &[f32], columns: usize, rank: usize) -> Vec<f32> {
    let mut chunks = vec![0.0; columns.div_ceil(CHUNK) * rank * CHUNK];
    for (k, row) in matrix.chunks(columns.max(1)).enumerate() {
        for (chunk, values) in row.chunks(CHUNK).enumerate() {
            let start = (chunk * rank + k) * CHUNK;
            chunks[start..start + values.len()].copy_from_slice(values);
        }
    }
    chunks
}

struct Add<'a, W> {
    delta: &'a Delta,
    /// Sums are rounded to float64, not to float32.
    wide: bool,
    first: usize,
    values: &'a mut [W],
}

impl<W: Element> Kernel for Add<'_, W> {
    type Output = W::Key;

    #[inline(always)]
    fn run(self) -> W::Key {
        let Delta { columns, rank, scale, left, right, .. } = self.delta;
        let (columns, rank, scale) = (*columns, *rank, *scale);
        let mut largest = W::Key::default();
        let mut element = self.first;
        let mut rest = self.values;
        while !rest.is_empty() {
            let (row, column) = (element / columns, element % columns);
            let (chunk, offset) = (column / CHUNK, column % CHUNK);
            let length = rest.len().min(columns - column).min(CHUNK - offset);
            let (values, behind) = rest.split_at_mut(length);
            let factors = &left[row * rank..][..rank];
            let (others, _) = right[chunk * rank * CHUNK..][..rank * CHUNK].as_chunks::<CHUNK>();
            let mut sums = [0.0_f32; CHUNK];
            for (factor, others) in factors.iter().zip(others) {
                for (sum, other) in sums.iter_mut().zip(others) {
                    *sum += factor * other;
                }
            }
            let sums = &sums[offset..];
            if self.wide {
                for (value, sum) in values.iter_mut().zip(sums) {
                    *value = *value + W::from_f64(f64::from(scale * sum));
                    largest = largest.max(value.key());
                }
            } else {
                for (value, sum) in values.iter_mut().zip(sums) {
                    *value = W::from_f64(f64::from(value.to_f64() as f32 + scale * sum));
                    largest = largest.max(value.key());
                }
            }
            element += length;
            rest = behind;
        }
        largest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn number(seed: u32) -> f32 {
        let mixed = (seed ^ seed >> 15).wrapping_mul(0x85EB_CA6B);
        ((mixed ^ mixed >> 13) as f32 / u32::MAX as f32 - 0.5) * 3.0
    }

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        (0..count as u32).map(|index| number(index.wrapping_mul(0x9E37_79B9) ^ seed)).collect()
    }

    fn transpose(values: &[f32], rows: usize) -> Vec<f32> {
        let columns = values.len() / rows;
        (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
    }

    proptest! {
        #[test]
        fn any_cut_any_layout_and_any_instruction_set_give_the_plain_sums(
            rows in 1..9_usize, columns in 1..200_usize, rank in 1..7_usize, cut in 1..150_usize, turned: [bool; 2], seed: u32,
        ) {
            let (left, right) = (numbers(rows * rank, seed), numbers(rank * columns, !seed));
            let stored = numbers(rows * columns, seed ^ 77);
            let scale = 0.37_f32;
            let expected: Vec<f32> = (0..rows * columns).map(|element| {
                let (row, column) = (element / columns, element % columns);
                let sum = (0..rank).fold(0.0, |sum, k| sum + left[row * rank + k] * right[k * columns + column]);
                stored[element] + scale * sum
            }).collect();
            let layout = |values: &[f32], rows, turned| bytes(&if turned { transpose(values, rows) } else { values.to_vec() });
            let (left, right) = (layout(&left, rows, turned[0]), layout(&right, rank, turned[1]));
            let factor = |bytes, transposed| Factor { dtype: Dtype::Float32, bytes, transposed };
            let change = LowRank {
                rows, columns, rank, scale, left: factor(&left, turned[0]), right: factor(&right, turned[1]),
            };
            for isa in Isa::available() {
                let delta = Delta::new(&change, isa);
                let mut narrow = stored.clone();
                let mut double: Vec<f64> = stored.iter().copied().map(f64::from).collect();
                let mut wide = double.clone();
                let mut largest = 0;
                for first in (0..stored.len()).step_by(cut) {
                    let end = stored.len().min(first + cut);
                    largest = largest.max(delta.add(Dtype::Float32, first as u64, &mut narrow[first..end]));
                    delta.add(Dtype::Bfloat16, first as u64, &mut double[first..end]);
                    delta.add(Dtype::Float64, first as u64, &mut wide[first..end]);
                }
                prop_assert_eq!(&narrow, &expected, "{}", isa.name());
                prop_assert_eq!(largest, narrow.iter().map(|value| value.key()).max().unwrap());
                prop_assert!(double.iter().zip(&expected).all(|(double, single)| *double == f64::from(*single)));
                prop_assert!(wide.iter().zip(&expected).all(|(wide, single)| *wide as f32 == *single));
            }
        }
    }
}
