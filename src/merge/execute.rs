//! Runs merges: a run's opened checkpoints, its threads and its cached statistics.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};
use safetensors::Dtype as StoredDtype;

use super::MergeError;
use super::block::{BlockMerge, PassThrough, Tiled};
use super::failure::Failure;
use super::mergekit_order::{DrawingOrder, UNCERTAIN_ORDER, VocabularyStep, drawing_order};
use super::methods::{Context, MaskSource, MergeMethod, implementation};
use super::model::Model;
use super::output::{
    check_side_files, merged_config, missing_tokenizer, notes_of_side_files, pretty, write_side_files,
};
use super::plan::{Action, MergePlan, PlannedInput, PlannedTensor, note_of_towers, plan};
use super::simd::Isa;
use super::sparsify::MersenneStream;
use super::stacked_config::{note_of_kinds, note_of_parts};
use super::statistics::{StatisticsCache, StatisticsUse};
use super::statistics_file::StatisticsFile;
use super::tensor::{BLOCK, TensorGroup, block_count, block_range};
use super::vocabulary::{check_tokenizers, note_of_padding, note_of_rows};
use super::write_queue::{QueuedBlock, WriteQueue};
use crate::checkpoint::{
    CONFIG_FILE, Checkpoint, CheckpointWriter, ContentIds, Dtype, OutputFile, OutputTensor, SpareCheckpoints,
    TensorInfo, base_layout, shard_layout,
};
use crate::recipe::{MaskKind, ModelReference, Recipe};

/// How a [`Merger`] uses the machine, and which models it accepts.
#[derive(Clone, Copy, Debug)]
pub struct MergerOptions {
    /// `None`: one a core.
    pub threads: Option<NonZeroUsize>,
    /// Memory that cached histograms of task vectors may take, in bytes.
    pub histogram_bytes: usize,
    /// `None`: the widest that the machine has.
    pub isa: Option<Isa>,
    /// Where vocabularies differ, merges the rows that all models have instead of refusing. Such a merger is for one
    /// recipe: its statistics are those of the rows that are left.
    pub truncate_embeddings: bool,
}

impl Default for MergerOptions {
    fn default() -> Self {
        Self { threads: None, histogram_bytes: 32 << 20, isa: None, truncate_embeddings: false }
    }
}

/// What a merge has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of output tensors that are done.
    pub bytes_written: u64,
    /// Bytes of all output tensors.
    pub bytes_total: u64,
}

/// What a merge does at its destination. Durable output survives a power cut once the merge has returned.
#[derive(Clone, Copy)]
pub enum WriteMode<'a> {
    /// There may be nothing at the destination.
    New {
        /// Whether it survives a power cut; a search's candidates need not.
        durable: bool,
    },
    /// A checkpoint at the destination is replaced.
    Replace {
        /// As for [`Self::New`].
        durable: bool,
    },
    /// As that, not durable, over the pages of checkpoints that nobody needs any more.
    Over(&'a SpareCheckpoints),
}

impl WriteMode<'_> {
    /// Durable, in the place of what is there only if `replace` says so.
    pub const fn durable(replace: bool) -> Self {
        if replace { Self::Replace { durable: true } } else { Self::New { durable: true } }
    }
}

impl Default for WriteMode<'_> {
    fn default() -> Self {
        Self::New { durable: false }
    }
}

/// How one merge is written.
#[derive(Clone, Copy, Default)]
pub struct MergeOptions<'a> {
    /// What becomes of what is at the destination; by default there may be nothing.
    pub mode: WriteMode<'a>,
    /// Most bytes of weights in a file; `None`: the shard layout of the base, else of the first source.
    pub shard_size: Option<u64>,
    /// Lets go of the pages of inputs once they have been merged: for a merger that is not used again.
    pub release_inputs: bool,
    /// Small files to be added to the output, by name.
    pub files: &'a [(String, Vec<u8>)],
    /// Ends the merge soon after it becomes true.
    pub cancel: Option<&'a AtomicBool>,
    /// Called after each block, from any thread.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

/// What a merge did.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeReport {
    /// Output tensors.
    pub tensors: usize,
    /// Bytes of input tensors, each input of each output tensor counted once.
    pub bytes_read: u64,
    /// Bytes of output tensors.
    pub bytes_written: u64,
    /// From the recipe to the finished directory.
    pub seconds: f64,
    /// mergekit's masks were wanted, and mergekit may have drawn others: a note says why.
    pub uncertain_masks: bool,
    /// The recipe names no dtype, and some output tensors have the type of one model where another model stores a wider
    /// or another one, to which mergekit promotes.
    pub is_narrowed: bool,
    /// A model with a tokenizer, where the output has none because the model that gives it has none.
    pub missing_tokenizer: Option<ModelReference>,
    /// What else whoever uses the output should know, a sentence each.
    pub notes: Vec<String>,
}

/// The merge core of one run: checkpoints are mapped once, statistics of whole tensors are computed once.
///
/// The same recipe gives the same bytes whatever the threads, the instruction set and the merges done before.
pub struct Merger {
    models: Vec<Model>,
    content_ids: ContentIds,
    /// Content ids of the models, by index, once they have been needed.
    contents: Vec<OnceLock<String>>,
    pool: rayon::ThreadPool,
    isa: Isa,
    cache: StatisticsCache,
    truncate_embeddings: bool,
}

impl Merger {
    /// Takes the opened models, each under the name that recipes use for it.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn new(
        models: impl IntoIterator<Item = (ModelReference, Arc<Checkpoint>)>,
        content_ids: ContentIds,
        options: MergerOptions,
    ) -> Result<Self, MergeError> {
        let threads = options.threads.map_or(0, NonZeroUsize::get);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("merge-{index}"))
            .build()
            .map_err(|error| MergeError::Threads { threads, reason: error.to_string() })?;
        let isa = options.isa.filter(|isa| Isa::available().contains(isa)).unwrap_or_else(Isa::detect);
        let models: Vec<Model> =
            models.into_iter().map(|(name, checkpoint)| Model::new(name, checkpoint, isa)).collect();
        Ok(Self {
            contents: models.iter().map(|_| OnceLock::new()).collect(),
            models,
            content_ids,
            pool,
            isa,
            cache: StatisticsCache::new(options.histogram_bytes),
            truncate_embeddings: options.truncate_embeddings,
        })
    }

    /// Keeps small statistics of large tensors (from 2^20 elements on) in the file `path` too, beside the run, from now
    /// on: what an earlier process found out is not computed again. Results do not depend on it. To be called once,
    /// before the first merge; a merger that truncates embeddings keeps none.
    ///
    /// `Ok(Some(_))` says why a file that is there was left aside: it will be replaced.
    ///
    /// # Errors
    /// The content id of a model cannot be computed.
    pub fn keep_statistics(&self, path: &Path) -> Result<Option<String>, MergeError> {
        if self.truncate_embeddings {
            return Ok(None);
        }
        let mut models = Vec::new();
        for (index, model) in self.models.iter().enumerate() {
            models.push((self.content(index)?.to_owned(), model.checkpoint.as_ref()));
        }
        let (file, fault) = StatisticsFile::open(path, models);
        self.cache.keep_in(file);
        Ok(fault)
    }

    /// Statistics in the file that [`Self::keep_statistics`] named.
    pub fn kept_statistics(&self) -> usize {
        self.cache.file().map_or(0, StatisticsFile::len)
    }

    /// Writes statistics that are new to the file that [`Self::keep_statistics`] named; at once, or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_statistics(&self) -> std::io::Result<()> {
        self.cache.file().map_or(Ok(()), StatisticsFile::save)
    }

    /// How many small statistics were computed so far, and how many were found in the file.
    pub fn statistics_use(&self) -> StatisticsUse {
        self.cache.counts()
    }

    /// Checks a recipe against the models and says what would be computed. Reads no weights.
    ///
    /// # Errors
    /// See [`MergeError`]: an invalid recipe, or models that do not fit together.
    pub fn plan(&self, recipe: &Recipe) -> Result<MergePlan, MergeError> {
        let plan = plan(recipe, &self.models, self.truncate_embeddings)?;
        check_side_files(&plan, &self.models, recipe)?;
        Ok(plan)
    }

    /// Whether mergekit would write other types than the plan's, because it promotes.
    fn is_narrowed(&self, recipe: &Recipe, plan: &MergePlan) -> bool {
        let stored = |input: &PlannedInput| {
            let tensor = self.models[input.model].checkpoint.tensors().get(&input.tensor);
            tensor.map(TensorInfo::model_dtype)
        };
        let is_other = |tensor: &PlannedTensor| {
            let dtypes = tensor.inputs.iter().chain(&tensor.base).filter_map(stored);
            tensor.action == Action::Merge && dtypes.reduce(promoted).is_some_and(|dtype| dtype != tensor.dtype)
        };
        recipe.dtype.is_none() && recipe.out_dtype.is_none() && plan.tensors.iter().any(is_other)
    }

    /// Bytes of the weights that the recipe's merge writes.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn required_bytes(&self, recipe: &Recipe) -> Result<u64, MergeError> {
        self.plan(recipe).map(|plan| plan.bytes())
    }

    /// Merges into the new directory `destination`, which appears at once when everything is in it.
    ///
    /// # Errors
    /// As [`Self::plan`]; [`MergeError::Infeasible`] where the recipe has no finite result; a NaN or infinity in an
    /// input; an output that cannot be written; cancellation. Nothing is left at the destination then. Of several bad
    /// elements the first one, by tensor name and position, is reported.
    pub fn materialize(
        &self,
        recipe: &Recipe,
        destination: &Path,
        options: &MergeOptions<'_>,
    ) -> Result<MergeReport, MergeError> {
        let start = Instant::now();
        let plan = self.plan(recipe)?;
        check_tokenizers(&plan, &self.models, recipe)?;
        let method = implementation(plan.method.name)
            .ok_or_else(|| MergeError::Internal(format!("method `{}` has no implementation", plan.method.name)))?;
        let order = self.drawing_order(recipe, method, &plan)?;
        let as_mergekit = order.is_some();
        let uncertain_order = order.as_ref().filter(|order| !order.is_certain).map(|_| UNCERTAIN_ORDER.to_owned());
        let files = self.layout(&plan, options.shard_size);
        let writer = match options.mode {
            WriteMode::Over(spares) => CheckpointWriter::create_over(destination, &files, spares)?,
            WriteMode::New { durable } => CheckpointWriter::create(destination, &files, durable)?,
            WriteMode::Replace { durable } => CheckpointWriter::create_replacing(destination, &files, durable)?,
        };
        let run = Run {
            merger: self,
            recipe,
            method,
            writer: &writer,
            options,
            written: AtomicU64::new(0),
            total: plan.bytes(),
            queue: WriteQueue::new(),
            failure: Failure::new(),
        };
        self.pool.install(|| run.all(&plan, order))?;
        for index in plan.used_models() {
            self.models[index].checkpoint.verify_unchanged()?;
        }
        writer.put_file(CONFIG_FILE, &pretty(&merged_config(&plan, &self.models, recipe)))?;
        write_side_files(&writer, &plan, &self.models, recipe)?;
        for (name, bytes) in options.files {
            writer.put_file(name, bytes)?;
        }
        if is_cancelled(options) {
            return Err(MergeError::Cancelled);
        }
        writer.finish()?;
        let padding = if as_mergekit { note_of_padding(&plan, &self.models, recipe)? } else { None };
        let uncertain_masks: Vec<String> = uncertain_order.into_iter().chain(padding).collect();
        let mut notes = notes_of_side_files(&plan, &self.models, recipe)?;
        notes.extend(note_of_kinds(&plan, &self.models));
        notes.extend(note_of_parts(&plan, &self.models));
        notes.extend(note_of_towers(&plan, &self.models, recipe));
        notes.extend(note_of_rows(&plan, recipe)?);
        let is_uncertain = !uncertain_masks.is_empty();
        notes.extend(uncertain_masks);
        Ok(MergeReport {
            tensors: plan.tensors.len(),
            bytes_read: self.bytes_read(&plan),
            bytes_written: plan.bytes(),
            seconds: start.elapsed().as_secs_f64(),
            uncertain_masks: is_uncertain,
            is_narrowed: self.is_narrowed(recipe, &plan),
            missing_tokenizer: missing_tokenizer(&plan, &self.models, recipe)?,
            notes,
        })
    }

    /// The order in which mergekit's masks are drawn, where they are wanted.
    fn drawing_order<'a>(
        &self,
        recipe: &Recipe,
        method: &dyn MergeMethod,
        plan: &'a MergePlan,
    ) -> Result<Option<DrawingOrder<'a>>, MergeError> {
        let vocabulary = match &recipe.tokenizer_source {
            Some(_) => VocabularyStep::Permute,
            None if self.truncate_embeddings => VocabularyStep::Truncate,
            None => VocabularyStep::Keep,
        };
        let is_drawn = recipe.masks.kind == MaskKind::Mergekit && method.specification().samples_masks;
        is_drawn.then(|| drawing_order(plan, &self.models, vocabulary)).transpose()
    }

    fn layout(&self, plan: &MergePlan, shard_size: Option<u64>) -> Vec<OutputFile> {
        let output = |tensor: &PlannedTensor| OutputTensor {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
        };
        let tensors = plan.tensors.iter().map(output).collect();
        match shard_size {
            Some(size) => shard_layout(tensors, size),
            None => base_layout(self.models[plan.donor].checkpoint.shards(), tensors),
        }
    }

    fn bytes_read(&self, plan: &MergePlan) -> u64 {
        let inputs = plan.tensors.iter().flat_map(|tensor| tensor.inputs.iter().chain(&tensor.base));
        let bytes = |model: usize, tensor: &str| {
            self.models[model].checkpoint.tensors().get(tensor).map(|info| info.byte_len())
        };
        inputs.filter_map(|input| bytes(input.model, &input.tensor)).map(|bytes| bytes as u64).sum()
    }

    /// Content ids of the models that have task vectors in the plan, by index; others are not computed.
    fn contents(&self, plan: &MergePlan) -> Result<&[OnceLock<String>], MergeError> {
        let sources: BTreeSet<usize> =
            plan.tensors.iter().flat_map(|tensor| &tensor.inputs).map(|input| input.model).collect();
        sources.into_par_iter().try_for_each(|index| self.content(index).map(|_| ()))?;
        Ok(&self.contents)
    }

    /// The content id of a model, computed once.
    fn content(&self, index: usize) -> Result<&str, MergeError> {
        let content = &self.contents[index];
        if let Some(id) = content.get() {
            return Ok(id);
        }
        let id = self.models[index].checkpoint.content_id(&self.content_ids)?;
        Ok(content.get_or_init(|| id))
    }
}

fn is_cancelled(options: &MergeOptions<'_>) -> bool {
    options.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed))
}

/// The type that PyTorch computes in with numbers of both.
fn promoted(one: StoredDtype, other: StoredDtype) -> StoredDtype {
    match (one, other) {
        (one, other) if one == other => one,
        (StoredDtype::F64, _) | (_, StoredDtype::F64) => StoredDtype::F64,
        _ => StoredDtype::F32,
    }
}

/// One merge under way.
struct Run<'a> {
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
    /// All tensors in parallel, and the blocks of each; where masks come from one stream, tensor after tensor.
    fn all(self, plan: &'a MergePlan, order: Option<DrawingOrder<'a>>) -> Result<(), MergeError> {
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
        let stored = |input: &super::plan::PlannedInput| {
            let tensors = self.merger.models[input.model].checkpoint.tensors();
            tensors.get(&input.tensor).and_then(|info| info.float())
        };
        match self.recipe.dtype {
            Some(dtype) => dtype == Dtype::Bfloat16,
            None => tensor.inputs.iter().chain(&tensor.base).all(|input| stored(input) == Some(Dtype::Bfloat16)),
        }
    }

    fn tensor(&self, index: u64, tensor: &'a PlannedTensor, masks: MaskSource<'_>) {
        // Preparation, then the blocks: each a step in the order of the work.
        let ordinal = index << 32;
        if self.failure.precedes(ordinal) {
            return;
        }
        let done = match tensor.action {
            Action::Copy => self.copy(tensor),
            Action::Merge | Action::PassThrough => self.merge(ordinal, tensor, masks),
        };
        if let Err(error) = done {
            self.failure.report(ordinal, error);
        }
        if self.options.release_inputs {
            for input in tensor.inputs.iter().chain(&tensor.base) {
                self.merger.models[input.model].checkpoint.release(&input.tensor);
            }
        }
    }

    fn group<'b>(&'b self, tensor: &'b PlannedTensor) -> Result<TensorGroup<'b>, MergeError> {
        let elements = tensor.elements();
        let stored = |input: &'b super::plan::PlannedInput| {
            self.merger.models[input.model].stored(input.model, &input.tensor, elements)
        };
        Ok(TensorGroup {
            name: &tensor.name,
            elements,
            shape: &tensor.shape,
            inputs: tensor.inputs.iter().map(stored).collect::<Result<_, _>>()?,
            base: tensor.base.as_ref().map(stored).transpose()?,
            parameters: &tensor.parameters,
        })
    }

    fn merge(&self, ordinal: u64, tensor: &'a PlannedTensor, masks: MaskSource<'_>) -> Result<(), MergeError> {
        let group = self.group(tensor)?;
        let dtype = Dtype::from_stored(tensor.dtype)
            .ok_or_else(|| MergeError::Internal(format!("tensor `{}` is merged into {}", tensor.name, tensor.dtype)))?;
        let mut context = Context { isa: self.merger.isa, cache: &self.merger.cache, masks };
        let prepared: Box<dyn BlockMerge + '_> = match tensor.action {
            Action::Merge => self.method.prepare(&group, &mut context)?,
            _ if group.is_wide() => Box::new(pass_through::<f64>(&group)),
            _ => Box::new(pass_through::<f32>(&group)),
        };
        (0..block_count(group.elements)).into_par_iter().for_each(|block| {
            let ordinal = ordinal + 1 + block;
            if self.failure.precedes(ordinal) {
                return;
            }
            if let Err(error) = self.block(tensor, &*prepared, (block, ordinal), dtype) {
                self.failure.report(ordinal, error);
            }
        });
        Ok(())
    }

    fn block(
        &self,
        tensor: &'a PlannedTensor,
        prepared: &dyn BlockMerge,
        (block, ordinal): (u64, u64),
        dtype: Dtype,
    ) -> Result<(), MergeError> {
        self.check_cancelled()?;
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

    fn check_cancelled(&self) -> Result<(), MergeError> {
        if is_cancelled(self.options) { Err(MergeError::Cancelled) } else { Ok(()) }
    }

    fn write(&self, tensor: &str, offset: u64, bytes: &[u8]) -> Result<(), MergeError> {
        self.writer.write_at(tensor, offset, bytes)?;
        let length = bytes.len() as u64;
        let bytes_written = self.written.fetch_add(length, Ordering::Relaxed) + length;
        if let Some(progress) = self.options.progress {
            progress(Progress { bytes_written, bytes_total: self.total });
        }
        Ok(())
    }

    /// Copies a tensor that has no arithmetic, when all inputs agree on it.
    fn copy(&self, tensor: &PlannedTensor) -> Result<(), MergeError> {
        let mut first: Option<(&Model, &[u8])> = None;
        for input in tensor.inputs.iter().chain(&tensor.base) {
            let model = &self.merger.models[input.model];
            let missing =
                || MergeError::Internal(format!("planned tensor {} is not in `{}`", input.tensor, model.name));
            let bytes = model.checkpoint.bytes(&input.tensor).ok_or_else(missing)?;
            let (other, expected) = *first.get_or_insert((model, bytes));
            if bytes != expected {
                return Err(MergeError::Incompatible(format!(
                    "tensor `{}` holds {} values, which cannot be averaged, and they differ between `{}` and `{}`",
                    tensor.name, tensor.dtype, other.name, model.name
                )));
            }
        }
        let bytes = first.map_or(&[][..], |(_, bytes)| bytes);
        for (offset, chunk) in (0..).step_by(BLOCK as usize).zip(bytes.chunks(BLOCK as usize)) {
            self.check_cancelled()?;
            self.write(&tensor.name, offset, chunk)?;
        }
        Ok(())
    }
}

fn pass_through<'a, W>(group: &TensorGroup<'a>) -> Tiled<'a, W, PassThrough> {
    Tiled::new(group.name, group.inputs.iter().take(1).copied().collect(), PassThrough)
}
