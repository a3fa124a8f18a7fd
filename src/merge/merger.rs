//! The merge core of a run: its opened checkpoints, its threads and its cached statistics.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use safetensors::Dtype as StoredDtype;

use super::MergeError;
use super::completeness::{check_complete, check_models, note_of_strays, notes_of_missing_layers};
use super::execute::Run;
use super::mergekit_order::{DrawingOrder, UNCERTAIN_ORDER, VocabularyStep, drawing_order, leaves_out};
use super::methods::{MergeMethod, implementation};
use super::model::Model;
use super::output::{
    check_side_files, merged_config, missing_tokenizer, notes_of_side_files, pretty, write_side_files,
};
use super::plan::{
    Action, MergePlan, PlannedInput, PlannedTensor, may_be_missing, note_of_counters, note_of_names, note_of_towers,
    plan,
};
use super::simd::Isa;
use super::stacked_config::{note_of_kinds, note_of_parts, note_of_windows};
use super::statistics::{StatisticsCache, StatisticsUse};
use super::statistics_file::StatisticsFile;
use super::vocabulary::{check_tokenizers, note_of_padding, note_of_rows};
use crate::checkpoint::{
    CONFIG_FILE, Checkpoint, CheckpointWriter, ContentIds, OutputFile, OutputTensor, TensorInfo, WriteMode,
    base_layout, shard_layout,
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
pub struct MergeProgress {
    /// Bytes of output tensors that are done.
    pub bytes_written: u64,
    /// Bytes of all output tensors.
    pub bytes_total: u64,
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
    pub progress: Option<&'a (dyn Fn(MergeProgress) + Sync)>,
}

impl MergeOptions<'_> {
    pub(super) fn check_cancelled(&self) -> Result<(), MergeError> {
        let is_cancelled = self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed));
        if is_cancelled { Err(MergeError::Cancelled) } else { Ok(()) }
    }
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
    pub(super) models: Vec<Model>,
    content_ids: ContentIds,
    /// Content ids of the models, by index, once they have been needed.
    contents: Vec<OnceLock<String>>,
    pool: rayon::ThreadPool,
    pub(super) isa: Isa,
    pub(super) cache: StatisticsCache,
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
        let plan = plan(recipe, &self.models, self.truncate_embeddings).or_else(|error| {
            if matches!(error, MergeError::Incompatible(_)) {
                check_models(&self.models, recipe)?;
            }
            Err(error)
        })?;
        check_complete(&plan, &self.models, recipe)?;
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
            let dtypes = tensor.action.inputs().filter_map(stored);
            matches!(tensor.action, Action::Merge { .. })
                && dtypes.reduce(promoted).is_some_and(|dtype| dtype != tensor.dtype)
        };
        recipe.dtype.is_none() && recipe.out_dtype.is_none() && plan.tensors.iter().any(is_other)
    }

    /// Whether merges go without a tensor that only some of the models have, or take it from these.
    pub fn may_be_missing(&self, tensor: &str) -> bool {
        let has = |model: &&Model| model.checkpoint.tensors().contains_key(tensor);
        let stored = self.models.iter().filter_map(|model| model.checkpoint.tensors().get(tensor));
        may_be_missing(tensor, stored)
            || self.models.iter().all(|model| leaves_out(model, tensor))
            || self.models.iter().filter(has).all(|model| model.is_tied_copy(tensor))
    }

    /// What whoever uses the recipe's output should know of it, a sentence each, as far as weights do not tell.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn notes(&self, recipe: &Recipe) -> Result<Vec<String>, MergeError> {
        self.notes_of_plan(&self.plan(recipe)?, recipe)
    }

    fn notes_of_plan(&self, plan: &MergePlan, recipe: &Recipe) -> Result<Vec<String>, MergeError> {
        let mut notes = notes_of_side_files(plan, &self.models, recipe)?;
        notes.extend(notes_of_missing_layers(plan, &self.models, recipe));
        notes.extend(note_of_strays(plan, &self.models));
        notes.extend(note_of_kinds(plan, &self.models));
        notes.extend(note_of_parts(plan, &self.models));
        notes.extend(note_of_windows(plan, &self.models));
        notes.extend(note_of_counters(plan, &self.models));
        notes.extend(note_of_names(plan, &self.models));
        notes.extend(note_of_towers(plan, &self.models, recipe));
        notes.extend(note_of_rows(plan, recipe)?);
        Ok(notes)
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
        let left_out = order.as_ref().and_then(DrawingOrder::note_of_left_out);
        let files = self.layout(&plan, options.shard_size);
        let writer = CheckpointWriter::create(destination, &files, options.mode)?;
        let run = Run::new(self, recipe, method, &writer, plan.bytes(), options);
        self.pool.install(|| run.all(&plan, order))?;
        for index in plan.used_models() {
            self.models[index].checkpoint.verify_unchanged()?;
        }
        writer.put_file(CONFIG_FILE, &pretty(&merged_config(&plan, &self.models, recipe)))?;
        write_side_files(&writer, &plan, &self.models, recipe)?;
        for (name, bytes) in options.files {
            writer.put_file(name, bytes)?;
        }
        options.check_cancelled()?;
        writer.finish()?;
        let padding = if as_mergekit { note_of_padding(&plan, &self.models, recipe)? } else { None };
        let uncertain_masks: Vec<String> = uncertain_order.into_iter().chain(padding).collect();
        let mut notes = self.notes_of_plan(&plan, recipe)?;
        let is_uncertain = !uncertain_masks.is_empty();
        notes.extend(uncertain_masks);
        notes.extend(left_out);
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
        let inputs = plan.tensors.iter().flat_map(|tensor| tensor.action.inputs());
        let bytes = |model: usize, tensor: &str| {
            self.models[model].checkpoint.tensors().get(tensor).map(|info| info.byte_len())
        };
        inputs.filter_map(|input| bytes(input.model, &input.tensor)).map(|bytes| bytes as u64).sum()
    }

    /// Content ids of the models that have task vectors in the plan, by index; others are not computed.
    pub(super) fn contents(&self, plan: &MergePlan) -> Result<&[OnceLock<String>], MergeError> {
        let merged = plan.tensors.iter().filter_map(|tensor| match &tensor.action {
            Action::Merge { inputs, .. } => Some(inputs),
            Action::PassThrough(_) | Action::Copy(_) => None,
        });
        let sources: BTreeSet<usize> = merged.flatten().map(|input| input.model).collect();
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

/// The type that PyTorch computes in with numbers of both.
fn promoted(one: StoredDtype, other: StoredDtype) -> StoredDtype {
    match (one, other) {
        (one, other) if one == other => one,
        (StoredDtype::F64, _) | (_, StoredDtype::F64) => StoredDtype::F64,
        _ => StoredDtype::F32,
    }
}
