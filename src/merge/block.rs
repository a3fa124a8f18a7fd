//! The block pass: decode, merge, check and encode one block of an output tensor.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use super::MergeError;
use super::element::{Element, all_below};
use super::simd::{Isa, Kernel, dispatch};
use super::tensor::{Stored, TILE, decode_tiles, tiles};
use crate::checkpoint::Dtype;

/// A merge of one tensor, ready to be applied to its blocks in any order on any thread.
pub(crate) trait BlockMerge: Send + Sync {
    /// Merges the elements of `range`, which starts at a multiple of [`super::philox::DRAWS`], rounds them to `dtype`
    /// and writes them to `output`, which is as long as they are.
    fn merge_block(&self, isa: Isa, range: Range<u64>, dtype: Dtype, output: &mut [u8]) -> Result<(), MergeError>;
}

/// The arithmetic of a method on one tile of decoded inputs.
pub(crate) trait TileMerge<W: Element>: Send + Sync {
    /// What a run of consecutive tiles carries along.
    type State;

    fn begin(&self, first: u64) -> Self::State;

    /// Input `i` is at `inputs[i * TILE..][..output.len()]` and may be overwritten.
    fn merge_tile(&self, state: &mut Self::State, first: u64, inputs: &mut [W], output: &mut [W]);
}

impl<W: Element, T: TileMerge<W>> TileMerge<W> for Arc<T> {
    type State = T::State;

    fn begin(&self, first: u64) -> T::State {
        (**self).begin(first)
    }

    #[inline(always)]
    fn merge_tile(&self, state: &mut T::State, first: u64, inputs: &mut [W], output: &mut [W]) {
        (**self).merge_tile(state, first, inputs, output);
    }
}

/// A method's arithmetic with its inputs.
pub(crate) struct Tiled<'a, W, T> {
    tensor: &'a str,
    inputs: Vec<Stored<'a>>,
    arithmetic: T,
    precision: PhantomData<fn() -> W>,
}

impl<'a, W, T> Tiled<'a, W, T> {
    pub(crate) fn new(tensor: &'a str, inputs: Vec<Stored<'a>>, arithmetic: T) -> Self {
        Self { tensor, inputs, arithmetic, precision: PhantomData }
    }
}

/// Element types have a buffer of their own on every thread.
pub(crate) trait Buffered: Element {
    fn with_buffer<R>(length: usize, work: impl FnOnce(&mut [Self]) -> R) -> R;
}

macro_rules! buffered {
    ($float:ty) => {
        impl Buffered for $float {
            fn with_buffer<R>(length: usize, work: impl FnOnce(&mut [Self]) -> R) -> R {
                thread_local! {
                    static BUFFER: Cell<Vec<$float>> = const { Cell::new(Vec::new()) };
                }
                super::tensor::with_buffer(&BUFFER, length, 0.0, work)
            }
        }
    };
}
buffered!(f32);
buffered!(f64);

impl<W: Buffered, T: TileMerge<W>> BlockMerge for Tiled<'_, W, T> {
    fn merge_block(&self, isa: Isa, range: Range<u64>, dtype: Dtype, output: &mut [u8]) -> Result<(), MergeError> {
        W::with_buffer((self.inputs.len() + 1) * TILE, |buffer| {
            let (result, inputs) = buffer.split_at_mut(TILE);
            let state = self.arithmetic.begin(range.start);
            let limit = W::limit(dtype);
            dispatch(isa, BlockKernel { tiled: self, state, range, dtype, limit, inputs, result, output })
        })
    }
}

struct BlockKernel<'a, 'b, W: Element, T: TileMerge<W>> {
    tiled: &'a Tiled<'b, W, T>,
    state: T::State,
    range: Range<u64>,
    dtype: Dtype,
    limit: W,
    inputs: &'a mut [W],
    result: &'a mut [W],
    output: &'a mut [u8],
}

impl<W: Element, T: TileMerge<W>> Kernel for BlockKernel<'_, '_, W, T> {
    type Output = Result<(), MergeError>;

    #[inline(always)]
    fn run(mut self) -> Self::Output {
        let start = self.range.start;
        let size = self.dtype.size();
        for (first, length) in tiles(self.range) {
            decode_tiles(&self.tiled.inputs, first, length, self.inputs)?;
            let result = &mut self.result[..length];
            self.tiled.arithmetic.merge_tile(&mut self.state, first, self.inputs, result);
            let offset = (first - start) as usize * size;
            let largest = W::encode(self.dtype, result, &mut self.output[offset..offset + length * size]);
            if largest >= self.limit.key() {
                return Err(self.tiled.overflow(first, result, self.limit, self.dtype));
            }
        }
        Ok(())
    }
}

impl<W: Element, T> Tiled<'_, W, T> {
    #[cold]
    #[inline(never)]
    fn overflow(&self, first: u64, values: &[W], limit: W, dtype: Dtype) -> MergeError {
        let position = values.iter().position(|value| !all_below(&[*value], limit)).unwrap_or(0);
        let value = values[position].to_f64();
        MergeError::Infeasible {
            tensor: self.tensor.to_owned(),
            reason: format!(
                "element {} would be {value:e}, which is not a finite {dtype}; the parameters are too extreme for these models",
                first + position as u64
            ),
        }
    }
}

/// One input as it is, converted to the output dtype.
pub(crate) struct PassThrough;

impl<W: Element> TileMerge<W> for PassThrough {
    type State = ();

    fn begin(&self, _first: u64) {}

    #[inline(always)]
    fn merge_tile(&self, _state: &mut (), _first: u64, inputs: &mut [W], output: &mut [W]) {
        output.copy_from_slice(&inputs[..output.len()]);
    }
}
