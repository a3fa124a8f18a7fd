//! Carries out a plan: tensor by tensor, block by block.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};

use super::MergeError;
use super::block::{BlockMerge, PassThrough, Tiled};
use super::failure::Failure;
use super::mergekit_order::DrawingOrder;
use super::merger::{MergeOptions, MergeProgress, Merger};
use super::methods::{Context, MaskSource, MergeMethod};
use super::model::Model;
use super::parameters::ResolvedParameters;
use super::plan::{Action, MergePlan, PlannedInput, PlannedTensor};
use super::sparsify::MersenneStream;
use super::tensor::{BLOCK, Stored, TensorGroup, block_count, block_range};
use super::write_queue::{QueuedBlock, WriteQueue};
use crate::checkpoint::{CheckpointWriter, Dtype, is_batch_counter};
use crate::recipe::Recipe;

/// One merge under way.
pub(super) struct Run<'a> {
    merger: &'a Merger,
    recipe: &'a Recipe,
    method: &'static dyn MergeMethod,
    writer: &'a CheckpointWriter,
    options: &'a MergeOptions<'a>,
    written: AtomicU64,
    total: u64,
    queue: WriteQueue<'a>,
    failure: Failure,
}

impl<'a> Run<'a> {
    /// A merge of `recipe` by its method, from the merger's models into `writer`; the output has `total` bytes.
    pub(super) fn new(
        merger: &'a Merger,
        recipe: &'a Recipe,
        method: &'static dyn MergeMethod,
        writer: &'a CheckpointWriter,
        total: u64,
        options: &'a MergeOptions<'a>,
    ) -> Self {
        let (written, queue, failure) = (AtomicU64::new(0), WriteQueue::new(), Failure::new());
        Self { merger, recipe, method, writer, options, written, total, queue, failure }
    }

    /// Merges all tensors in parallel, and the blocks of each; where masks come from one stream, tensor after tensor.
    ///
    /// # Errors
    /// See [`Merger::materialize`].
    pub(super) fn all(self, plan: &'a MergePlan, order: Option<DrawingOrder<'a>>) -> Result<(), MergeError> {
        let masks = self.recipe.masks;
        match order {
            Some(order) => {
                let mut stream = MersenneStream::new(masks.seed);
                for (index, tensor) in order.tensors {
                    let coarse = self.is_bfloat16(tensor);
                    self.tensor(index, tensor, MaskSource::Mergekit { stream: &mut stream, coarse });
                }
            }
            None => {
                let sampled = self.method.specification().samples_masks;
                let contents = if sampled { self.merger.contents(plan)? } else { &[] };
                plan.tensors.par_iter().enumerate().for_each(|(index, tensor)| {
                    self.tensor(index as u64, tensor, MaskSource::Native { seed: masks.seed, contents });
                });
            }
        }
        self.failure.into_result()
    }

    /// Whether mergekit would compute the tensor in bfloat16.
    fn is_bfloat16(&self, tensor: &PlannedTensor) -> bool {
        let stored = |input: &PlannedInput| {
            let tensors = self.merger.models[input.model].checkpoint.tensors();
            tensors.get(&input.tensor).and_then(|info| info.float())
        };
        match self.recipe.dtype {
            Some(dtype) => dtype == Dtype::Bfloat16,
            None => tensor.action.inputs().all(|input| stored(input) == Some(Dtype::Bfloat16)),
        }
    }

    fn tensor(&self, index: u64, tensor: &'a PlannedTensor, masks: MaskSource<'_>) {
        // Preparation, then the blocks: each a step in the order of the work.
        let ordinal = index << 32;
        if self.failure.precedes(ordinal) {
            return;
        }
        let done = match &tensor.action {
            Action::Merge { inputs, base, parameters } => {
                self.merge(ordinal, tensor, inputs, base.as_ref(), parameters, masks)
            }
            Action::PassThrough(input) => self.pass_through(ordinal, tensor, input),
            Action::Copy(inputs) => self.copy(tensor, inputs),
        };
        if let Err(error) = done {
            self.failure.report(ordinal, error);
        }
        if self.options.release_inputs {
            for input in tensor.action.inputs() {
                self.merger.models[input.model].checkpoint.release(&input.tensor);
            }
        }
    }

    fn stored(&self, tensor: &PlannedTensor, input: &'a PlannedInput) -> Result<Stored<'a>, MergeError> {
        self.merger.models[input.model].stored(input.model, &input.tensor, tensor.elements())
    }

    fn merge(
        &self,
        ordinal: u64,
        tensor: &'a PlannedTensor,
        inputs: &'a [PlannedInput],
        base: Option<&'a PlannedInput>,
        parameters: &ResolvedParameters,
        masks: MaskSource<'_>,
    ) -> Result<(), MergeError> {
        let group = TensorGroup {
            name: &tensor.name,
            elements: tensor.elements(),
            shape: &tensor.shape,
            inputs: inputs.iter().map(|input| self.stored(tensor, input)).collect::<Result<_, _>>()?,
            base: base.map(|base| self.stored(tensor, base)).transpose()?,
            parameters,
        };
        let mut context = Context { isa: self.merger.isa, cache: &self.merger.cache, masks };
        let prepared = self.method.prepare(&group, &mut context)?;
        self.blocks(ordinal, tensor, &*prepared)
    }

    fn pass_through(&self, ordinal: u64, tensor: &'a PlannedTensor, input: &'a PlannedInput) -> Result<(), MergeError> {
        let stored = self.stored(tensor, input)?;
        match stored.dtype {
            Dtype::Float64 => self.blocks(ordinal, tensor, &pass_through::<f64>(tensor, stored)),
            _ => self.blocks(ordinal, tensor, &pass_through::<f32>(tensor, stored)),
        }
    }

    fn blocks(&self, ordinal: u64, tensor: &'a PlannedTensor, prepared: &dyn BlockMerge) -> Result<(), MergeError> {
        let dtype = Dtype::from_stored(tensor.dtype)
            .ok_or_else(|| MergeError::Internal(format!("tensor `{}` is merged into {}", tensor.name, tensor.dtype)))?;
        (0..block_count(tensor.elements())).into_par_iter().for_each(|block| {
            let ordinal = ordinal + 1 + block;
            if self.failure.precedes(ordinal) {
                return;
            }
            if let Err(error) = self.block(tensor, prepared, block, ordinal, dtype) {
                self.failure.report(ordinal, error);
            }
        });
        Ok(())
    }

    fn block(
        &self,
        tensor: &'a PlannedTensor,
        prepared: &dyn BlockMerge,
        block: u64,
        ordinal: u64,
        dtype: Dtype,
    ) -> Result<(), MergeError> {
        self.options.check_cancelled()?;
        let range = block_range(tensor.elements(), block);
        let length = (range.end - range.start) as usize * dtype.size();
        let offset = range.start * dtype.size() as u64;
        let mut bytes = self.queue.buffer(length);
        prepared.merge_block(self.merger.isa, range, dtype, &mut bytes)?;
        if self.writer.writes_in_parallel(&tensor.name) {
            let written = self.write(&tensor.name, offset, &bytes);
            self.queue.give_back(bytes);
            return written;
        }
        self.queue.put(QueuedBlock { ordinal, tensor: &tensor.name, offset, bytes }, |block| {
            if let Err(error) = self.write(block.tensor, block.offset, &block.bytes) {
                self.failure.report(block.ordinal, error);
            }
        });
        Ok(())
    }

    fn write(&self, tensor: &str, offset: u64, bytes: &[u8]) -> Result<(), MergeError> {
        self.writer.write_at(tensor, offset, bytes)?;
        let length = bytes.len() as u64;
        let bytes_written = self.written.fetch_add(length, Ordering::Relaxed) + length;
        if let Some(progress) = self.options.progress {
            progress(MergeProgress { bytes_written, bytes_total: self.total });
        }
        Ok(())
    }

    /// Copies the first input of a tensor that has no arithmetic, when all inputs agree on it or count batches.
    fn copy(&self, tensor: &PlannedTensor, inputs: &[PlannedInput]) -> Result<(), MergeError> {
        let mut first: Option<(&Model, &[u8])> = None;
        for input in inputs {
            let model = &self.merger.models[input.model];
            let missing =
                || MergeError::Internal(format!("planned tensor {} is not in `{}`", input.tensor, model.name));
            let bytes = model.checkpoint.bytes(&input.tensor).ok_or_else(missing)?;
            let (other, expected) = *first.get_or_insert((model, bytes));
            if bytes != expected && !is_batch_counter(&tensor.name) {
                return Err(MergeError::Incompatible(format!(
                    "tensor `{}` holds {} values, which cannot be averaged, and they differ between `{}` and `{}`",
                    tensor.name, tensor.dtype, other.name, model.name
                )));
            }
        }
        let bytes = first.map_or(&[][..], |(_, bytes)| bytes);
        for (offset, chunk) in (0..).step_by(BLOCK as usize).zip(bytes.chunks(BLOCK as usize)) {
            self.options.check_cancelled()?;
            self.write(&tensor.name, offset, chunk)?;
        }
        Ok(())
    }
}

fn pass_through<'a, W>(tensor: &'a PlannedTensor, input: Stored<'a>) -> Tiled<'a, W, PassThrough> {
    Tiled::new(&tensor.name, vec![input], PassThrough)
}
