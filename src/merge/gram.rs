//! Dot products among the vectors that a method merges, and the weighted sums of vectors that follow from them.
//!
//! Methods that reason about lengths and angles need nothing but these products: every mean, projection and arc that
//! they take is a weighted sum of the vectors, whose weights follow from the products. So a tensor is read once for its
//! products and once for the sum, and nothing as large as a tensor is kept. All of it is computed in float64.

use std::ops::Range;

use super::MergeError;
use super::block::{TileMerge, Tiled};
use super::reduce::{Lanes, in_order};
use super::simd::{Isa, Kernel, dispatch};
use super::statistics::{GramKey, StatisticsCache};
use super::tensor::{BLOCK, Stored, TILE, TensorGroup, block_count, block_range, decode_tiles, tiles};

/// Products give the norm of a sum this short beside its terms to nine digits.
const NEARLY: f64 = 1e-3;
/// Sums of unit vectors shorter than this have no direction: float64 elements do not resolve them.
pub(crate) const NO_DIRECTION: f64 = 1e-12;

/// The vectors of a tensor group: its inputs, or their differences from the base.
#[derive(Clone)]
pub(crate) struct Vectors<'a> {
    pub(crate) inputs: Vec<Stored<'a>>,
    pub(crate) base: Option<Stored<'a>>,
}

impl<'a> Vectors<'a> {
    /// Task vectors where there is a base.
    pub(crate) fn of(group: &TensorGroup<'a>) -> Self {
        Self { inputs: group.inputs.clone(), base: group.base }
    }

    fn count(&self) -> usize {
        self.inputs.len()
    }

    /// Room for [`Self::decode`], by [`TILE`]s.
    fn buffer(&self) -> Vec<f64> {
        vec![0.0; (self.count() + 1) * TILE]
    }

    /// Elements from `first` on; vector `i` at `buffer[i * TILE..][..length]`.
    #[inline(always)]
    fn decode(&self, first: u64, length: usize, buffer: &mut [f64]) -> Result<(), MergeError> {
        let (vectors, base) = buffer.split_at_mut(self.count() * TILE);
        let base = &mut base[..length];
        decode_tiles(&self.inputs, first, length, vectors)?;
        if let Some(stored) = &self.base {
            stored.decode(first, base)?;
            for vector in vectors.chunks_exact_mut(TILE) {
                for (value, base) in vector.iter_mut().zip(base.iter()) {
                    *value -= *base;
                }
            }
        }
        Ok(())
    }

    /// Dot products of all pairs over whole tensors: of weights and other parameters they know nothing.
    pub(crate) fn gram(&self, isa: Isa, elements: u64, cache: &StatisticsCache) -> Result<Gram, MergeError> {
        let inputs = self.inputs.iter().map(|input| input.key).collect();
        let key = GramKey { inputs, base: self.base.map(|base| base.key) };
        cache.gram(key, || self.products(isa, elements))
    }

    fn products(&self, isa: Isa, elements: u64) -> Result<Gram, MergeError> {
        let mut sum = Gram::new(self.count());
        for block in in_order(block_count(elements), |block| self.part(isa, block_range(elements, block)))? {
            sum.add(&block);
        }
        Ok(sum)
    }

    /// The norm of a weighted sum of the vectors: from their products, or from its elements where they nearly cancel
    /// out. Products resolve a length of 1e-8 of the terms and no less, elements one of 1e-16.
    pub(crate) fn norm_of(&self, gram: &Gram, isa: Isa, elements: u64, weights: &[f64]) -> Result<f64, MergeError> {
        let norm = gram.norm_of(weights);
        let terms: f64 = weights.iter().enumerate().map(|(index, weight)| weight.abs() * gram.norm(index)).sum();
        if norm >= NEARLY * terms {
            return Ok(norm);
        }
        let part = |block: u64| -> Result<f64, MergeError> {
            let (mut buffer, mut lanes) = (self.buffer(), Lanes::ZERO);
            let range = block_range(elements, block);
            dispatch(isa, Squares { vectors: self, weights, range, buffer: &mut buffer, lanes: &mut lanes })?;
            Ok(lanes.total())
        };
        Ok(in_order(block_count(elements), part)?.into_iter().sum::<f64>().sqrt())
    }

    fn part(&self, isa: Isa, range: Range<u64>) -> Result<Gram, MergeError> {
        let mut buffer = self.buffer();
        self.part_in(isa, range, &mut buffer)
    }

    fn part_in(&self, isa: Isa, range: Range<u64>, buffer: &mut [f64]) -> Result<Gram, MergeError> {
        let mut lanes = vec![Lanes::ZERO; Gram::pairs(self.count())];
        dispatch(isa, Products { vectors: self, range, buffer, lanes: &mut lanes })?;
        Ok(Gram { count: self.count(), products: lanes.iter().map(Lanes::total).collect() })
    }

    /// What `reduce` makes of the dot products along each line, in order of the lines.
    pub(crate) fn line_grams<T: Send>(
        &self,
        isa: Isa,
        elements: u64,
        lines: Lines,
        reduce: impl Fn(&Gram) -> T + Sync,
    ) -> Result<Vec<T>, MergeError> {
        let (count, step) = match lines {
            Lines::Rows(width) => (elements / width.max(1), (BLOCK / width.max(1)).max(1)),
            Lines::Columns(stride) => (stride, TILE as u64),
        };
        if elements == 0 {
            return Ok(Vec::new());
        }
        let parts = in_order(count.div_ceil(step), |part| {
            let range = part * step..count.min((part + 1) * step);
            match lines {
                Lines::Rows(width) => {
                    let mut buffer = self.buffer();
                    let row = |row: u64| {
                        self.part_in(isa, row * width..(row + 1) * width, &mut buffer).map(|gram| reduce(&gram))
                    };
                    range.map(row).collect::<Result<Vec<T>, _>>()
                }
                Lines::Columns(stride) => Ok(self.columns(isa, elements, stride, range)?.iter().map(&reduce).collect()),
            }
        })?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// Dot products along these columns, at most [`TILE`] of them.
    fn columns(&self, isa: Isa, elements: u64, stride: u64, columns: Range<u64>) -> Result<Vec<Gram>, MergeError> {
        let length = (columns.end - columns.start) as usize;
        let mut sums = vec![0.0; Gram::pairs(self.count()) * length];
        let mut buffer = self.buffer();
        dispatch(
            isa,
            ColumnProducts {
                vectors: self,
                first: columns.start,
                elements,
                stride,
                buffer: &mut buffer,
                sums: &mut sums,
                length,
            },
        )?;
        let gram = |column: usize| Gram {
            count: self.count(),
            products: sums.iter().skip(column).step_by(length).copied().collect(),
        };
        Ok((0..length).map(gram).collect())
    }
}

/// Dot products of all pairs of vectors.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gram {
    pub(crate) count: usize,
    /// Pairs `(i, j)` with `i <= j`, by `j`, then `i`.
    products: Vec<f64>,
}

impl Gram {
    fn new(count: usize) -> Self {
        Self { count, products: vec![0.0; Self::pairs(count)] }
    }

    pub(crate) const fn pairs(count: usize) -> usize {
        count * (count + 1) / 2
    }

    /// Pairs `(i, j)` with `i <= j`, by `j`, then `i`.
    pub(crate) fn products(&self) -> &[f64] {
        &self.products
    }

    /// The matrix with these products of pairs; `None` where no number of vectors has that many pairs.
    pub(crate) fn from_products(products: Vec<f64>) -> Option<Self> {
        let count = (0..=products.len()).find(|count| Self::pairs(*count) >= products.len())?;
        (Self::pairs(count) == products.len()).then_some(Self { count, products })
    }

    fn add(&mut self, other: &Self) {
        for (sum, product) in self.products.iter_mut().zip(&other.products) {
            *sum += product;
        }
    }

    pub(crate) fn dot(&self, first: usize, second: usize) -> f64 {
        let (low, high) = (first.min(second), first.max(second));
        self.products[high * (high + 1) / 2 + low]
    }

    pub(crate) fn norm(&self, index: usize) -> f64 {
        self.dot(index, index).sqrt()
    }

    /// The norm of a weighted sum of the vectors.
    pub(crate) fn norm_of(&self, weights: &[f64]) -> f64 {
        self.dot_with(weights, weights).max(0.0).sqrt()
    }

    /// The dot product of two weighted sums of the vectors.
    pub(crate) fn dot_with(&self, left: &[f64], right: &[f64]) -> f64 {
        let mut sum = 0.0;
        for (first, left) in left.iter().enumerate() {
            for (second, right) in right.iter().enumerate() {
                sum += left * right * self.dot(first, second);
            }
        }
        sum
    }
}

struct Products<'a, 'b> {
    vectors: &'a Vectors<'b>,
    range: Range<u64>,
    buffer: &'a mut [f64],
    lanes: &'a mut [Lanes],
}

impl Kernel for Products<'_, '_> {
    type Output = Result<(), MergeError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        for (first, length) in tiles(self.range) {
            self.vectors.decode(first, length, self.buffer)?;
            let tile = |index: usize| &self.buffer[index * TILE..][..length];
            let mut lanes = self.lanes.iter_mut();
            for second in 0..self.vectors.count() {
                for first in 0..=second {
                    if let Some(lanes) = lanes.next() {
                        lanes.add_pairs(tile(first), tile(second), |left, right| left * right);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Squares of the elements of a weighted sum.
struct Squares<'a, 'b> {
    vectors: &'a Vectors<'b>,
    weights: &'a [f64],
    range: Range<u64>,
    buffer: &'a mut [f64],
    lanes: &'a mut Lanes,
}

impl Kernel for Squares<'_, '_> {
    type Output = Result<(), MergeError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        for (first, length) in tiles(self.range) {
            self.vectors.decode(first, length, self.buffer)?;
            let mut sums = [0.0; TILE];
            for (weight, vector) in self.weights.iter().zip(self.buffer.chunks_exact(TILE)) {
                for (sum, value) in sums[..length].iter_mut().zip(vector) {
                    *sum += weight * value;
                }
            }
            self.lanes.add_each(&sums[..length], |sum| sum * sum);
        }
        Ok(())
    }
}

struct ColumnProducts<'a, 'b> {
    vectors: &'a Vectors<'b>,
    first: u64,
    elements: u64,
    stride: u64,
    buffer: &'a mut [f64],
    /// For each pair, `length` sums.
    sums: &'a mut [f64],
    length: usize,
}

impl Kernel for ColumnProducts<'_, '_> {
    type Output = Result<(), MergeError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let length = self.length;
        for start in (self.first..self.elements).step_by(self.stride as usize) {
            self.vectors.decode(start, length, self.buffer)?;
            let tile = |index: usize| &self.buffer[index * TILE..][..length];
            let mut sums = self.sums.chunks_exact_mut(length);
            for second in 0..self.vectors.count() {
                for first in 0..=second {
                    let Some(sums) = sums.next() else { continue };
                    for ((sum, left), right) in sums.iter_mut().zip(tile(first)).zip(tile(second)) {
                        *sum += left * right;
                    }
                }
            }
        }
        Ok(())
    }
}

/// How a tensor is cut into vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lines {
    /// Along the last dimension, which has that length.
    Rows(u64),
    /// Along the first dimension, whose elements are that far apart.
    Columns(u64),
}

impl Lines {
    /// Lines along the last dimension.
    pub(crate) fn last_dimension(shape: &[usize]) -> Self {
        Self::Rows(shape.last().map_or(1, |length| *length as u64))
    }

    /// Lines along the first dimension.
    pub(crate) fn first_dimension(shape: &[usize]) -> Self {
        Self::Columns(shape.iter().skip(1).map(|length| *length as u64).product())
    }

    /// Cuts `length` elements from `first` on into runs.
    #[inline(always)]
    pub(crate) fn runs(self, first: u64, length: usize) -> impl Iterator<Item = Run> {
        let (width, step) = match self {
            Self::Rows(width) => (width, 0),
            Self::Columns(stride) => (stride, 1),
        };
        let width = width.max(1);
        let (mut row, mut column) = (first / width, first % width);
        let mut start = 0_usize;
        std::iter::from_fn(move || {
            let end = length.min(start.saturating_add(usize::try_from(width - column).unwrap_or(usize::MAX)));
            let run = Run { line: if step == 0 { row } else { column } as usize, step, elements: start..end };
            (row, column, start) = (row + 1, 0, end);
            (!run.elements.is_empty()).then_some(run)
        })
    }
}

/// Consecutive elements of a tile whose lines follow from the first one's.
pub(crate) struct Run {
    /// The first element's line.
    pub(crate) line: usize,
    /// From one element's line to the next one's: 0, all have the same, or 1.
    pub(crate) step: usize,
    /// Places in the tile.
    pub(crate) elements: Range<usize>,
}

/// Factors of the vectors in a weighted sum.
pub(crate) enum Factors {
    /// One for each vector.
    Whole(Vec<f64>),
    /// One for each vector in each line, line by line.
    Lines(Lines, Vec<f64>),
    /// One for the sum of all vectors in each line.
    SharedLines(Lines, Vec<f64>),
}

/// `base + sum of factor * vector`, in float64 and rounded once.
pub(crate) struct Combination {
    count: usize,
    has_base: bool,
    factors: Factors,
}

/// The weighted sum of a group's vectors.
pub(crate) fn combine<'a>(
    group: &TensorGroup<'a>,
    vectors: Vectors<'a>,
    factors: Factors,
) -> Tiled<'a, f64, Combination> {
    let arithmetic = Combination { count: vectors.count(), has_base: vectors.base.is_some(), factors };
    let inputs = vectors.inputs.into_iter().chain(vectors.base).collect();
    Tiled::new(group.name, inputs, arithmetic)
}

impl TileMerge<f64> for Combination {
    type State = ();

    fn begin(&self, _first: u64) {}

    #[inline(always)]
    fn merge_tile(&self, _state: &mut (), first: u64, inputs: &mut [f64], output: &mut [f64]) {
        let length = output.len();
        let (vectors, base) = inputs.split_at_mut(self.count * TILE);
        if self.has_base {
            for vector in vectors.chunks_exact_mut(TILE) {
                for (value, base) in vector[..length].iter_mut().zip(base.iter()) {
                    *value -= *base;
                }
            }
        }
        output.fill(0.0);
        match &self.factors {
            Factors::Whole(factors) => {
                for (factor, vector) in factors.iter().zip(vectors.chunks_exact(TILE)) {
                    for (sum, value) in output.iter_mut().zip(vector) {
                        *sum += factor * value;
                    }
                }
            }
            Factors::Lines(lines, factors) => {
                for Run { line, step, elements } in lines.runs(first, length) {
                    for (index, vector) in vectors.chunks_exact(TILE).enumerate() {
                        let pairs = output[elements.clone()].iter_mut().zip(&vector[elements.clone()]);
                        for (place, (sum, value)) in pairs.enumerate() {
                            *sum += factors[(line + place * step) * self.count + index] * value;
                        }
                    }
                }
            }
            Factors::SharedLines(lines, factors) => {
                for vector in vectors.chunks_exact(TILE) {
                    for (sum, value) in output.iter_mut().zip(vector) {
                        *sum += value;
                    }
                }
                for Run { line, step, elements } in lines.runs(first, length) {
                    for (place, sum) in output[elements].iter_mut().enumerate() {
                        *sum *= factors[line + place * step];
                    }
                }
            }
        }
        if self.has_base {
            for (sum, base) in output.iter_mut().zip(base.iter()) {
                *sum += *base;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_say_the_line_of_every_element() {
        for width in [1, 3, 7, 512, 5000] {
            for (lines, of) in [
                (Lines::Rows(width), (|element, width| element / width) as fn(u64, u64) -> u64),
                (Lines::Columns(width), |element, width| element % width),
            ] {
                for (first, length) in [(0, 512), (512, 512), (1024, 17), (0, 0)] {
                    let mut found = Vec::new();
                    for run in lines.runs(first, length) {
                        assert_eq!(run.elements.start, found.len());
                        found.extend((0..run.elements.len()).map(|place| (run.line + place * run.step) as u64));
                    }
                    let expected: Vec<u64> = (first..first + length as u64).map(|element| of(element, width)).collect();
                    assert_eq!(found, expected, "{lines:?} from {first}");
                }
            }
        }
    }
}
