//! LoRA adapters (arXiv 2106.09685) as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! An adapter is laid over a base checkpoint when that is opened. Whole tensors of it (`modules_to_save`, trained
//! biases, saved embeddings) take the place of the base's where they differ; pairs of factors are handed out as
//! [`LowRank`] changes, which whoever reads the weights adds to them. Everything is checked when the adapter is opened,
//! so that nothing of it is left out silently: PEFT skips what it does not know.

mod configuration;
mod heads;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sha2::{Digest, Sha256};

use self::configuration::Configuration;
use self::names::{LayerKind, Named, Role, Side, Unfit};
use super::directory::{INDEX_FILE, SINGLE_FILE};
use super::dtype::Dtype;
use super::error::{CheckpointError, quote};
use super::header::{TensorInfo, read_header};
use super::mapping::{MappedFile, open_regular};
use super::nonfinite::scan;
use super::tensor_names::{is_head, is_input_embedding};

/// The adapter's configuration.
const CONFIG_FILE: &str = "adapter_config.json";
/// The adapter's weights.
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The adapter's weights as PyTorch pickles them.
const PICKLE_FILE: &str = "adapter_model.bin";

/// A change of low rank to a stored tensor, seen as a matrix of `rows` times `columns` (dimensions behind the first are
/// one): `scale` times the product of a left factor (`rows` times `rank`) and a right factor (`rank` times `columns`).
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// First dimension of the stored tensor.
    pub rows: usize,
    /// Product of its other dimensions.
    pub columns: usize,
    /// Rank of the product, at least 1.
    pub rank: usize,
    /// `alpha / rank`, with rank stabilization `alpha / sqrt(rank)`; rounded to float32 once.
    pub scale: f32,
    /// The left factor, `rows` times `rank`.
    pub left: Factor<'a>,
    /// The right factor, `rank` times `columns`.
    pub right: Factor<'a>,
}

/// A matrix as it is stored: little-endian, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a> {
    /// Type of the stored numbers.
    pub dtype: Dtype,
    /// The stored numbers, as they lie in the adapter's file.
    pub bytes: &'a [u8],
    /// Whether its columns are stored as rows.
    pub transposed: bool,
}

/// An output head that is tied to the input embedding.
#[derive(Debug)]
pub(super) struct Tie {
    /// The embedding as the base stores it.
    pub(super) embedding: TensorInfo,
    /// The name of the head's weight, whether the base stores a copy under it or not.
    pub(super) head: String,
}

/// An adapter that fits its base checkpoint.
#[derive(Debug)]
pub(super) struct Adapter {
    file: MappedFile,
    /// By name of the base's tensor.
    changes: BTreeMap<String, Change>,
    keeps_ties: bool,
    unties: bool,
}

#[derive(Debug)]
struct Change {
    rows: usize,
    columns: usize,
    rank: usize,
    scale: f32,
    left: StoredFactor,
    right: StoredFactor,
}

#[derive(Debug)]
struct StoredFactor {
    dtype: Dtype,
    start: usize,
    length: usize,
    transposed: bool,
}

/// The two factors of a module while they are collected.
#[derive(Default)]
struct Pair {
    down: Option<TensorInfo>,
    up: Option<TensorInfo>,
}

/// By name of the base's tensor and kind of layer: the module's name and its factors.
type Pairs = BTreeMap<(String, LayerKind), (String, Pair)>;

/// How a module keeps its weight.
#[derive(Clone, Copy)]
enum Layout {
    /// As (tokens, dimensions), which is the product transposed.
    Embedding,
    /// As (out, in), or with `squares_turned` as (in, out) where the shape does not tell.
    Linear { squares_turned: bool },
}

/// Whether a directory holds an adapter and no whole model.
pub fn is_adapter_folder(directory: &Path) -> bool {
    let has = |name: &str| directory.join(name).symlink_metadata().is_ok();
    (has(CONFIG_FILE) || has(WEIGHTS_FILE) || has(PICKLE_FILE)) && !has(SINGLE_FILE) && !has(INDEX_FILE)
}

impl Adapter {
    /// Opens the adapter in `directory` for the model of `base`, whose tensors are `tensors`, in `files`. Tensors that
    /// the adapter holds whole and with other numbers are replaced in `tensors`, and say that they are in the file behind
    /// these. A head that has numbers of its own from now on is added where the base ties it (`tie`); a stored copy of
    /// a changed embedding that stays tied to it is taken out.
    pub(super) fn open(
        directory: &Path,
        base: &Path,
        tensors: &mut BTreeMap<String, TensorInfo>,
        files: &[MappedFile],
        tie: Option<&Tie>,
    ) -> Result<Self, CheckpointError> {
        let configuration = find(directory)?;
        let path = directory.join(WEIGHTS_FILE);
        let (file, identity) = open_regular(&path)?;
        let infos = read_header(&path, &file, identity.size, files.len())?;
        let file = MappedFile::new(&path, &file, identity)?;
        Opening { path: &path, base, configuration: &configuration, tensors, files, tie, file }.run(infos)
    }

    /// Whether the head and the input embedding, which the base ties, are no longer the same.
    pub(super) fn unties(&self) -> bool {
        self.unties
    }

    pub(super) fn file(&self) -> &MappedFile {
        &self.file
    }

    /// The change to a tensor of the base.
    pub(super) fn change(&self, tensor: &str) -> Option<LowRank<'_>> {
        let change = self.changes.get(tensor)?;
        let factor = |stored: &StoredFactor| {
            let bytes = self.file.bytes().get(stored.start..stored.start + stored.length)?;
            Some(Factor { dtype: stored.dtype, bytes, transposed: stored.transposed })
        };
        Some(LowRank {
            rows: change.rows,
            columns: change.columns,
            rank: change.rank,
            scale: change.scale,
            left: factor(&change.left)?,
            right: factor(&change.right)?,
        })
    }

    /// Identifies what the adapter makes of a base: both contents, and what the configuration says of them. Whole
    /// tensors, and with them a head that is added, are covered by the content of the adapter's file.
    pub(super) fn content_id(&self, base: &str, weights: &str) -> String {
        let mut all = Sha256::new();
        all.update(b"evomerge adapted weights v1");
        all.update(base.as_bytes());
        all.update(weights.as_bytes());
        for (tensor, change) in &self.changes {
            all.update((tensor.len() as u64).to_le_bytes());
            all.update(tensor.as_bytes());
            all.update(change.scale.to_le_bytes());
            all.update([u8::from(change.left.transposed), u8::from(change.right.transposed)]);
        }
        if self.keeps_ties {
            all.update(b"keeps ties");
        }
        crate::digest::hex(&all.finalize())
    }
}

/// Checks that the directory holds an adapter with safetensors, and reads its configuration.
fn find(directory: &Path) -> Result<Configuration, CheckpointError> {
    let refuse = |reason: String| CheckpointError::NotAnAdapter { path: directory.to_owned(), reason };
    match std::fs::metadata(directory) {
        Err(source) => return Err(CheckpointError::Read { path: directory.to_owned(), source }),
        Ok(metadata) if !metadata.is_dir() => {
            return Err(refuse(format!(
                "it is a file; expected the adapter's directory, with {CONFIG_FILE} and {WEIGHTS_FILE}"
            )));
        }
        Ok(_) => {}
    }
    let has = |name: &str| directory.join(name).symlink_metadata().is_ok();
    if !has(CONFIG_FILE) {
        let whole = has(SINGLE_FILE) || has(INDEX_FILE);
        return Err(refuse(match whole {
            true => "it holds a whole model; name it without a base in front".to_owned(),
            false => format!("it has no {CONFIG_FILE}; copy it from where the adapter came from"),
        }));
    }
    let configuration = Configuration::read(&directory.join(CONFIG_FILE))?;
    if has(WEIGHTS_FILE) {
        return Ok(configuration);
    }
    Err(refuse(match has(PICKLE_FILE) {
        true => format!(
            "it has PyTorch pickle weights only (`{PICKLE_FILE}`), which can run code when loaded; convert them: load the \
             adapter with PEFT and call `save_pretrained(..., safe_serialization=True)`"
        ),
        false => format!("it has no {WEIGHTS_FILE}; is the download complete?"),
    }))
}

/// An adapter while it is opened.
struct Opening<'a> {
    path: &'a Path,
    base: &'a Path,
    configuration: &'a Configuration,
    tensors: &'a mut BTreeMap<String, TensorInfo>,
    /// The files of the base.
    files: &'a [MappedFile],
    /// The head of the base, where it is tied to the input embedding.
    tie: Option<&'a Tie>,
    file: MappedFile,
}

impl Opening<'_> {
    fn run(mut self, infos: Vec<TensorInfo>) -> Result<Adapter, CheckpointError> {
        if infos.is_empty() {
            return Err(CheckpointError::Header {
                path: self.path.to_owned(),
                reason: "it holds no tensor".to_owned(),
            });
        }
        let mut head = None;
        let mut pairs = Pairs::new();
        for (Named { target, module, role }, info) in self.named(infos)? {
            match role {
                Role::Whole if self.tie.is_some_and(|tie| tie.head == target) => {
                    if head.is_some() {
                        return Err(self.wrong(&info, "another tensor of the file is the model's head already"));
                    }
                    head = Some(info);
                }
                Role::Whole => self.replace(&target, info)?,
                Role::Factor(kind, side) => {
                    let (_, pair) = pairs.entry((target, kind)).or_insert_with(|| (module, Pair::default()));
                    self.collect(pair, side, info)?;
                }
            }
        }
        self.drop_tied_factors(&mut pairs)?;
        let unties = self.settle_head(head)?;
        let changes = self.changes(pairs)?;
        if !unties {
            self.drop_stored_copies(&changes);
        }
        Ok(Adapter { file: self.file, changes, keeps_ties: self.configuration.keeps_ties, unties })
    }

    /// Takes the names apart, and calls the targets as the base does.
    fn named(&self, infos: Vec<TensorInfo>) -> Result<Vec<(Named, TensorInfo)>, CheckpointError> {
        let mut named = Vec::with_capacity(infos.len());
        for info in infos {
            let name = names::parse(&info.name).map_err(|reason| self.wrong(&info, reason))?;
            named.push((name, info));
        }
        let head = self.tie.map(|tie| tie.head.as_str());
        let stored: BTreeSet<&str> = self.tensors.keys().map(String::as_str).chain(head).collect();
        let targets: Vec<&str> = named.iter().map(|(name, _)| name.target.as_str()).collect();
        let renames = names::fit(&targets, &stored).map_err(|Unfit { index, reason }| {
            let hint = reason.unwrap_or_else(|| self.hint(targets[index], &stored));
            self.wrong(&named[index].1, format!("{}{hint}", self.no_such_tensor(targets[index])))
        })?;
        for (name, _) in &mut named {
            if let Some(stored) = renames.get(&name.target) {
                name.target.clone_from(stored);
            }
        }
        Ok(named)
    }

    /// Puts a factor in its place beside the other one.
    fn collect(&self, pair: &mut Pair, side: Side, info: TensorInfo) -> Result<(), CheckpointError> {
        let place = match side {
            Side::Down => &mut pair.down,
            Side::Up => &mut pair.up,
        };
        if let Some(other) = place {
            let reason = format!("{} is for the same module; one adapter a file is expected", quote(&other.name));
            return Err(self.wrong(&info, reason));
        }
        *place = Some(info);
        Ok(())
    }

    /// What the pairs of factors change.
    fn changes(&self, pairs: Pairs) -> Result<BTreeMap<String, Change>, CheckpointError> {
        let linear = pairs.iter().filter(|((_, kind), _)| *kind == LayerKind::Linear);
        let squares_turned = self.squares_turned(linear.map(|((target, _), (_, pair))| (target.as_str(), pair)));
        let mut changes = BTreeMap::new();
        for ((target, kind), (module, pair)) in pairs {
            if let Some(names) = self.configuration.unnamed(&module)
                && let Some(info) = pair.down.as_ref().or(pair.up.as_ref())
            {
                let reason = format!("`target_modules` names {names}, not its module: PEFT would leave it out");
                return Err(self.wrong(info, reason));
            }
            let layout = match kind {
                LayerKind::Linear => Layout::Linear { squares_turned },
                LayerKind::Embedding => Layout::Embedding,
            };
            let (change, info) = self.change(&target, &module, layout, pair)?;
            if changes.insert(target.clone(), change).is_some() {
                let reason = format!("{} is changed twice, as an embedding and as a linear layer", quote(&target));
                return Err(self.wrong(&info, reason));
            }
        }
        Ok(changes)
    }

    /// The bytes of a tensor of the adapter.
    fn own_bytes(&self, info: &TensorInfo) -> Option<&[u8]> {
        self.file.bytes().get(info.start..info.start + info.length)
    }

    /// The bytes of a tensor as the base stores it.
    fn base_bytes(&self, info: &TensorInfo) -> Option<&[u8]> {
        self.files.get(info.shard)?.bytes().get(info.start..info.start + info.length)
    }

    fn wrong(&self, info: &TensorInfo, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::Tensor { path: self.path.to_owned(), tensor: quote(&info.name), reason: reason.into() }
    }

    fn no_such_tensor(&self, target: &str) -> String {
        let trained_on = match &self.configuration.base {
            Some(name) => format!(" (it was trained on {})", quote(name)),
            None => String::new(),
        };
        format!("the model {} has no tensor {}{trained_on}", self.base.display(), quote(target))
    }

    /// What may be the reason that a tensor is not among the stored ones.
    fn hint(&self, target: &str, stored: &BTreeSet<&str>) -> String {
        if let Some(name) = names::namesake(target, stored) {
            return format!(
                "; it has {}, which may be the same under another name: name the adapter's tensors as the model's",
                quote(name)
            );
        }
        let is_headless = is_head(target) && !stored.iter().any(|name| is_head(name));
        let hint = if is_headless {
            "; it stores no head, and its config.json does not tie one to the input embedding (tie_word_embeddings)"
        } else {
            "; is this the adapter's base model?"
        };
        hint.to_owned()
    }

    /// Whether a whole tensor of the adapter equals `base`; it has to fit in its place, which is called `target`.
    fn is_copy(&self, target: &str, base: &TensorInfo, info: &TensorInfo) -> Result<bool, CheckpointError> {
        if base.shape != info.shape {
            let hint = match is_head(target) || is_input_embedding(target) {
                true => "; the vocabulary was resized in training: resize the base model alike and save it first",
                false => "; is this the adapter's base model?",
            };
            return Err(self.wrong(
                info,
                format!(
                    "its shape {:?} does not fit {} of shape {:?} in {}{hint}",
                    info.shape,
                    quote(target),
                    base.shape,
                    self.base.display()
                ),
            ));
        }
        if base.dtype != info.dtype && (base.float().is_none() || info.float().is_none()) {
            let reason = format!("it is of type {}, {} in {}", info.dtype, base.dtype, self.base.display());
            return Err(self.wrong(info, reason));
        }
        let bytes = self.base_bytes(base).zip(self.own_bytes(info));
        Ok(bytes.is_some_and(|(stored, own)| are_equal((base.dtype, stored), (info.dtype, own))))
    }

    /// Puts a whole tensor of the adapter in the place of the base's. PEFT stores an embedding that factors change
    /// beside these, as it was: such a copy replaces nothing, and a head that is tied to it follows the change.
    fn replace(&mut self, target: &str, info: TensorInfo) -> Result<(), CheckpointError> {
        let Some(base) = self.tensors.get(target) else { return Err(self.wrong(&info, self.no_such_tensor(target))) };
        if base.replaces.is_some() {
            return Err(self.wrong(&info, format!("another tensor of the file replaces {} already", quote(target))));
        }
        if self.is_copy(target, base, &info)? {
            return Ok(());
        }
        let replaces = Some(base.dtype);
        self.tensors.insert(target.to_owned(), TensorInfo { name: target.to_owned(), replaces, ..info });
        Ok(())
    }

    /// Whether square matrices are stored as (in, out): as the oblong ones of the adapter are, where these agree, else
    /// as the configuration says. PEFT goes by the class of the layer and overrules the configuration too.
    fn squares_turned<'p>(&self, pairs: impl Iterator<Item = (&'p str, &'p Pair)>) -> bool {
        let (mut some_plain, mut some_turned) = (false, false);
        for (target, pair) in pairs {
            let (Some(down), Some(up), Some(base)) = (&pair.down, &pair.up, self.tensors.get(target)) else { continue };
            let plain = plain_fit(&down.shape, &up.shape, &base.shape);
            let turned = transposed_fit(&down.shape, &up.shape, &base.shape);
            some_plain |= plain && !turned;
            some_turned |= turned && !plain;
        }
        if some_plain == some_turned { self.configuration.fan_in_fan_out } else { some_turned }
    }

    /// Puts two factors together, and says which of them to blame for what is found later.
    fn change(
        &self,
        target: &str,
        module: &str,
        layout: Layout,
        pair: Pair,
    ) -> Result<(Change, TensorInfo), CheckpointError> {
        let (down, up) = match (pair.down, pair.up) {
            (Some(down), Some(up)) => (down, up),
            (Some(alone), None) | (None, Some(alone)) => {
                return Err(self.wrong(&alone, "it stands alone: its module has no second factor (lora_A and lora_B)"));
            }
            (None, None) => {
                let reason = "a module without factors".to_owned();
                return Err(CheckpointError::Header { path: self.path.to_owned(), reason });
            }
        };
        let Some(base) = self.tensors.get(target) else { return Err(self.wrong(&down, self.no_such_tensor(target))) };
        if base.float().is_none() {
            let reason = format!("{} holds {} values, which a LoRA cannot change", quote(target), base.dtype);
            return Err(self.wrong(&down, reason));
        }
        let rank = self.rank(module, &down, &up)?;
        let misfit = || {
            let shapes = format!("shapes {:?} and {:?} (of {})", down.shape, up.shape, quote(&up.name));
            let of = format!("{} of shape {:?} in {}", quote(target), base.shape, self.base.display());
            self.wrong(&down, format!("{shapes} do not fit {of}; is this the adapter's base model?"))
        };
        let plain = plain_fit(&down.shape, &up.shape, &base.shape);
        let turned = transposed_fit(&down.shape, &up.shape, &base.shape);
        let transposed = match (layout, plain, turned) {
            (Layout::Embedding, _, true) | (Layout::Linear { .. }, false, true) => true,
            (Layout::Linear { .. }, true, false) => false,
            (Layout::Linear { squares_turned }, true, true) => squares_turned,
            (Layout::Embedding, _, false) | (_, false, false) => return Err(misfit()),
        };
        let scale = self.configuration.scale(module, rank).map_err(|reason| self.wrong(&down, reason))?;
        let (down_factor, up_factor) = (self.factor(&down, transposed)?, self.factor(&up, transposed)?);
        let (left, right) = if transposed { (down_factor, up_factor) } else { (up_factor, down_factor) };
        let rows = base.shape.first().copied().unwrap_or(0);
        let columns = base.shape.iter().skip(1).product();
        Ok((Change { rows, columns, rank, scale, left, right }, down))
    }

    /// The rank that both factors and the configuration agree on.
    fn rank(&self, module: &str, down: &TensorInfo, up: &TensorInfo) -> Result<usize, CheckpointError> {
        let expected = self.configuration.rank(module);
        for (info, dimension) in [(down, 0), (up, 1)] {
            let found = info.shape.get(dimension).copied();
            if found != Some(expected) {
                let found = found.map_or_else(|| "none".to_owned(), |rank| rank.to_string());
                let reason = format!(
                    "expected rank {expected} (r and rank_pattern in {CONFIG_FILE}) in dimension {dimension}, found {found} \
                     in its shape {:?}",
                    info.shape
                );
                return Err(self.wrong(info, reason));
            }
        }
        if expected == 0 { Err(self.wrong(down, "a rank of 0 changes nothing")) } else { Ok(expected) }
    }

    fn factor(&self, info: &TensorInfo, transposed: bool) -> Result<StoredFactor, CheckpointError> {
        let Some(dtype) = info.float() else {
            return Err(self.wrong(info, format!("it holds {} values; expected floats", info.dtype)));
        };
        let bytes = self.own_bytes(info).unwrap_or_default();
        if let Some((element, value)) = scan(dtype, bytes) {
            let reason = format!("element {element} is {value}; the adapter must be repaired or left out");
            return Err(self.wrong(info, reason));
        }
        Ok(StoredFactor { dtype, start: info.start, length: info.length, transposed })
    }
}

/// Whether stored elements are bit for bit the base's, or those of a bfloat16 base in float32.
fn are_equal(base: (safetensors::Dtype, &[u8]), own: (safetensors::Dtype, &[u8])) -> bool {
    use safetensors::Dtype::{BF16, F32};

    match (base.0, own.0) {
        (BF16, F32) => {
            let (narrow, _) = base.1.as_chunks::<2>();
            let (wide, _) = own.1.as_chunks::<4>();
            narrow.len() == wide.len()
                && narrow.iter().zip(wide).all(|(narrow, wide)| *wide == [0, 0, narrow[0], narrow[1]])
        }
        (base_type, own_type) => base_type == own_type && base.1 == own.1,
    }
}

/// Whether the product of the factors has the base's shape: linear layers, and convolutions whose second factor is of
/// size 1.
fn plain_fit(down: &[usize], up: &[usize], base: &[usize]) -> bool {
    base.len() >= 2
        && down.len() == base.len()
        && up.len() == base.len()
        && up.first() == base.first()
        && down.get(1..) == base.get(1..)
        && up.iter().skip(2).all(|length| *length == 1)
}

/// Whether the transposed product has it: embeddings, and layers that keep (in, out).
fn transposed_fit(down: &[usize], up: &[usize], base: &[usize]) -> bool {
    matches!((down, up, base), ([_, inputs], [outputs, _], [rows, columns]) if inputs == rows && outputs == columns)
}
