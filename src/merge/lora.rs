//! Adds what a LoRA adapter changes to a tensor while it is decoded, so that no merged copy of the model is ever made.
//!
//! An element becomes `w + scale * (l_1 r_1 + ... + l_k r_k)`: products and sums in float32, each rounded, in order of
//! rank, then times the scale, then added to the stored element; the sum is rounded to float32 (to float64 for tensors
//! that are stored in it). It depends on the element's position only, so a LoRA source is bit for bit what a float32
//! checkpoint of these numbers would be, in any method and at any block size.

use super::element::Element;
use super::simd::{Isa, Kernel, dispatch};
use crate::checkpoint::{Dtype, Factor, LowRank};

/// Elements of a row whose sums are kept in registers; what they need of the right factor lies together.
const CHUNK: usize = 64;

/// A change of low rank, its factors in float32.
pub(crate) struct Delta {
    isa: Isa,
    /// Type of the elements that it is added to.
    stored: Dtype,
    columns: usize,
    rank: usize,
    scale: f32,
    /// One row of `rank` numbers for each row of the tensor.
    left: Vec<f32>,
    /// For each [`CHUNK`] columns, the last ones filled up with zeros, `rank` rows of as many numbers.
    right: Vec<f32>,
}

impl Delta {
    /// `stored` is the type of the tensor's elements.
    pub(crate) fn new(change: &LowRank<'_>, stored: Dtype, isa: Isa) -> Self {
        Self {
            isa,
            stored,
            columns: change.columns,
            rank: change.rank,
            scale: change.scale,
            left: matrix(&change.left, change.rows, change.rank),
            right: chunked(&matrix(&change.right, change.rank, change.columns), change.columns, change.rank),
        }
    }

    /// The type that sums are rounded to.
    pub(crate) fn dtype(&self) -> Dtype {
        if self.stored == Dtype::Float64 { Dtype::Float64 } else { Dtype::Float32 }
    }

    /// Decodes `values.len()` elements of the tensor `bytes` from `first` on and adds the change. Returns the largest
    /// key of the sums.
    #[inline(never)]
    pub(crate) fn decode<W: Element>(&self, bytes: &[u8], first: u64, values: &mut [W]) -> W::Key {
        let size = self.stored.size();
        let first = first as usize;
        let bytes = &bytes[first * size..(first + values.len()) * size];
        dispatch(self.isa, Decode { delta: self, bytes, first, values })
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

struct Decode<'a, W> {
    delta: &'a Delta,
    bytes: &'a [u8],
    first: usize,
    values: &'a mut [W],
}

impl<W: Element> Kernel for Decode<'_, W> {
    type Output = W::Key;

    #[inline(always)]
    fn run(self) -> W::Key {
        W::decode(self.delta.stored, self.bytes, self.values);
        let wide = self.delta.dtype() == Dtype::Float64;
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
            if wide {
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
                let delta = |dtype| Delta::new(&change, dtype, isa);
                let (narrow_delta, wide_delta) = (delta(Dtype::Float32), delta(Dtype::Float64));
                let wide_bytes: Vec<u8> = stored.iter().flat_map(|value| f64::from(*value).to_le_bytes()).collect();
                let mut narrow = vec![0.0_f32; stored.len()];
                let (mut double, mut wide) = (vec![0.0_f64; stored.len()], vec![0.0_f64; stored.len()]);
                let mut largest = 0;
                for first in (0..stored.len()).step_by(cut) {
                    let part = first..stored.len().min(first + cut);
                    largest = largest.max(narrow_delta.decode(&bytes(&stored), first as u64, &mut narrow[part.clone()]));
                    narrow_delta.decode(&bytes(&stored), first as u64, &mut double[part.clone()]);
                    wide_delta.decode(&wide_bytes, first as u64, &mut wide[part]);
                }
                prop_assert_eq!(&narrow, &expected, "{}", isa.name());
                prop_assert_eq!(largest, narrow.iter().map(|value| value.key()).max().unwrap());
                prop_assert!(double.iter().zip(&expected).all(|(double, single)| *double == f64::from(*single)));
                prop_assert!(wide.iter().zip(&expected).all(|(wide, single)| *wide as f32 == *single));
            }
        }
    }
}
