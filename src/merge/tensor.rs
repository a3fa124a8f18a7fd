//! Stored tensors as kernels see them, and how they are cut.
//!
//! A tensor is cut into blocks of [`BLOCK`] elements, the unit of parallel work and of writing, and a block into tiles
//! of [`TILE`] elements, which stay in the nearest cache while they are decoded, merged and encoded.

use std::cell::Cell;
use std::ops::Range;

use super::MergeError;
use super::element::Element;
use super::lora::Delta;
use super::parameters::ResolvedParameters;
use super::statistics::TensorKey;
use crate::checkpoint::Dtype;

/// Elements a tile; a multiple of [`super::reduce::LANES`] and of [`super::philox::DRAWS`]. Tiles of a dozen inputs fit
/// into the nearest cache together.
pub(crate) const TILE: usize = 512;
/// Elements a block; a multiple of [`TILE`].
pub(crate) const BLOCK: u64 = 1 << 17;

/// Blocks of a tensor, as ranges of elements.
pub(crate) fn block_range(elements: u64, block: u64) -> Range<u64> {
    let first = block * BLOCK;
    first..elements.min(first + BLOCK)
}

/// How many blocks a tensor has.
pub(crate) fn block_count(elements: u64) -> u64 {
    elements.div_ceil(BLOCK)
}

/// The tiles of a range of elements: first element and length.
#[inline(always)]
pub(crate) fn tiles(range: Range<u64>) -> impl Iterator<Item = (u64, usize)> {
    let end = range.end;
    range.step_by(TILE).map(move |first| (first, (end - first).min(TILE as u64) as usize))
}

/// A stored tensor of one model.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    /// What [`Self::decode`] yields without loss: the stored type; float32 where a LoRA adapter is added (float64
    /// stays).
    pub(crate) dtype: Dtype,
    /// Elements of `dtype`; with a `delta`, those that it is added to, of their own type.
    pub(crate) bytes: &'a [u8],
    /// For messages.
    pub(crate) model: &'a str,
    pub(crate) tensor: &'a str,
    pub(crate) key: TensorKey,
    /// What a LoRA adapter adds to it.
    pub(crate) delta: Option<&'a Delta>,
}

impl Stored<'_> {
    /// Converts `output.len()` elements from `first` on and refuses NaN and infinity among them.
    #[inline(always)]
    pub(crate) fn decode<W: Element>(&self, first: u64, output: &mut [W]) -> Result<(), MergeError> {
        let largest = match self.delta {
            None => {
                let size = self.dtype.size();
                let start = first as usize * size;
                W::decode(self.dtype, &self.bytes[start..start + output.len() * size], output)
            }
            Some(delta) => delta.decode(self.bytes, first, output),
        };
        if largest < W::INFINITY.key() { Ok(()) } else { Err(self.not_finite(first, output)) }
    }

    #[cold]
    #[inline(never)]
    fn not_finite<W: Element>(&self, first: u64, values: &[W]) -> MergeError {
        let position = values.iter().position(|value| !value.to_f64().is_finite()).unwrap_or(0);
        MergeError::NotFinite {
            model: self.model.to_owned(),
            tensor: self.tensor.to_owned(),
            element: first + position as u64,
            value: values[position].to_f64(),
        }
    }
}

/// Decodes `length` elements of each input from `first` on: those of input `i` at `buffer[i * TILE..][..length]`.
#[inline(always)]
pub(crate) fn decode_tiles<W: Element>(
    inputs: &[Stored<'_>],
    first: u64,
    length: usize,
    buffer: &mut [W],
) -> Result<(), MergeError> {
    for (stored, tile) in inputs.iter().zip(buffer.chunks_exact_mut(TILE)) {
        stored.decode(first, &mut tile[..length])?;
    }
    Ok(())
}

/// A task vector: source minus base, element by element.
#[derive(Clone, Copy)]
pub(crate) struct TaskVector<'a> {
    pub(crate) source: Stored<'a>,
    pub(crate) base: Stored<'a>,
}

/// Values of one for each element of a tensor, computed where they are needed.
pub(crate) trait Values<W: Element>: Copy + Send + Sync {
    /// How many elements of scratch [`Self::tile`] needs.
    fn scratch(&self) -> usize;

    /// Computes `values.len()` of them (at most [`TILE`]) from element `first` on.
    fn tile(&self, first: u64, values: &mut [W], scratch: &mut [W]) -> Result<(), MergeError>;
}

impl<W: Element> Values<W> for TaskVector<'_> {
    fn scratch(&self) -> usize {
        TILE
    }

    /// The task vector itself.
    #[inline(always)]
    fn tile(&self, first: u64, values: &mut [W], scratch: &mut [W]) -> Result<(), MergeError> {
        TaskVector::tile(self, first, values, scratch)
    }
}

impl TaskVector<'_> {
    /// Whether both models store it in bfloat16.
    pub(crate) fn is_bfloat16(&self) -> bool {
        [self.source, self.base].iter().all(|stored| stored.dtype == Dtype::Bfloat16)
    }

    /// Computes `delta.len()` elements from `first` on; `scratch` is at least as long.
    #[inline(always)]
    pub(crate) fn tile<W: Element>(&self, first: u64, delta: &mut [W], scratch: &mut [W]) -> Result<(), MergeError> {
        let base = &mut scratch[..delta.len()];
        self.source.decode(first, delta)?;
        self.base.decode(first, base)?;
        for (value, base) in delta.iter_mut().zip(base) {
            *value = *value - *base;
        }
        Ok(())
    }
}

/// What one output tensor is merged from.
pub(crate) struct TensorGroup<'a> {
    /// Name of the output tensor.
    pub(crate) name: &'a str,
    pub(crate) elements: u64,
    /// In recipe order; the base is among them only where the method takes it as an input.
    pub(crate) inputs: Vec<Stored<'a>>,
    /// The shape of all inputs and of the output.
    pub(crate) shape: &'a [usize],
    /// The base model's tensor.
    pub(crate) base: Option<Stored<'a>>,
    /// One set of source parameters for each of `inputs`.
    pub(crate) parameters: &'a ResolvedParameters,
}

impl TensorGroup<'_> {
    /// Whether an input is stored in float64, so that the merge is computed in it.
    pub(crate) fn is_wide(&self) -> bool {
        self.inputs.iter().chain(&self.base).any(|stored| stored.dtype == Dtype::Float64)
    }

    /// The method has no finite result here.
    pub(crate) fn infeasible(&self, reason: impl Into<String>) -> MergeError {
        MergeError::Infeasible { tensor: self.name.to_owned(), reason: reason.into() }
    }
}

/// Runs `work` on this thread's buffer of that many elements, kept between calls so that blocks allocate nothing.
/// `work` must not call it again for the same purpose before it returns (it would get a fresh buffer).
pub(crate) fn with_buffer<T: Copy, R>(
    buffer: &'static std::thread::LocalKey<Cell<Vec<T>>>,
    length: usize,
    zero: T,
    work: impl FnOnce(&mut [T]) -> R,
) -> R {
    let mut values = buffer.take();
    if values.len() < length {
        values.resize(length, zero);
    }
    let result = work(&mut values[..length]);
    buffer.set(values);
    result
}
