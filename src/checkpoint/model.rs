//! An open checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::content::{ContentIds, content_id};
use super::directory::{INDEX_FILE, SINGLE_FILE, WeightMap, Weights, find_sidecars, find_weights, read_config};
use super::dtype::Dtype;
use super::error::{CheckpointError, quote};
use super::header::{TensorInfo, read_header};
use super::layers::LayerLayout;
use super::mapping::{MappedFile, open_regular};
use super::nonfinite::{NonFinite, first_nonfinite};

/// A weight file of a checkpoint and the tensors in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// File name inside the checkpoint's directory.
    pub file: String,
    /// Names of its tensors, in the order of their bytes.
    pub tensors: Vec<String>,
}

/// A Hugging Face model directory, validated and mapped into memory.
///
/// All headers are checked when it is opened; weights are read only when [`Self::bytes`] is looked at. The files must
/// not be written to while the checkpoint is open ([`Self::verify_unchanged`] tells).
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Map<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
    shards: Vec<Shard>,
    files: Vec<MappedFile>,
}

impl Checkpoint {
    /// Opens the model directory `path`: `config.json`, and `model.safetensors` or the shards that
    /// `model.safetensors.index.json` names (the single file wins, as in transformers).
    ///
    /// # Errors
    /// Whatever keeps the directory from being a complete, well-formed checkpoint whose tensors are floats (F16, BF16,
    /// F32, F64), integers or truth values.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let weights = find_weights(path)?;
        let config = read_config(path)?;
        let mut checkpoint =
            Self { path: path.to_owned(), config, tensors: BTreeMap::new(), shards: Vec::new(), files: Vec::new() };
        match weights {
            Weights::Single => checkpoint.add_shard(SINGLE_FILE)?,
            Weights::Sharded(map) => {
                for file in map.keys() {
                    checkpoint.add_shard(file)?;
                }
                checkpoint.check_index(&map)?;
            }
        }
        if checkpoint.tensors.is_empty() {
            return Err(CheckpointError::NotACheckpoint {
                path: path.to_owned(),
                reason: "its weight files hold no tensor".to_owned(),
            });
        }
        Ok(checkpoint)
    }

    fn add_shard(&mut self, name: &str) -> Result<(), CheckpointError> {
        let path = self.path.join(name);
        if path.symlink_metadata().is_err() {
            return Err(CheckpointError::Index {
                path: self.path.join(INDEX_FILE),
                reason: format!("it names {}, which is not there; is the download complete?", quote(name)),
            });
        }
        let (file, identity) = open_regular(&path)?;
        let infos = read_header(&path, &file, identity.size, self.files.len())?;
        self.files.push(MappedFile::new(&path, &file, identity)?);
        self.shards
            .push(Shard { file: name.to_owned(), tensors: infos.iter().map(|info| info.name.clone()).collect() });
        for info in infos {
            if let Some(other) = self.tensors.get(&info.name) {
                return Err(CheckpointError::Tensor {
                    path,
                    tensor: quote(&info.name),
                    reason: format!("it is also in {}", quote(&self.shards[other.shard].file)),
                });
            }
            self.tensors.insert(info.name.clone(), info);
        }
        Ok(())
    }

    /// Every tensor must be where the index says, and the index must say it of every tensor.
    fn check_index(&self, map: &WeightMap) -> Result<(), CheckpointError> {
        let wrong = |reason| Err(CheckpointError::Index { path: self.path.join(INDEX_FILE), reason });
        for (shard, listed) in self.shards.iter().zip(map.values()) {
            let stored: BTreeSet<&str> = shard.tensors.iter().map(String::as_str).collect();
            let listed: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
            let file = quote(&shard.file);
            if let Some(name) = listed.difference(&stored).next() {
                return wrong(format!("it lists tensor {} in {file}, which does not hold it", quote(name)));
            }
            if let Some(name) = stored.difference(&listed).next() {
                return wrong(format!("it does not list tensor {}, which {file} holds", quote(name)));
            }
        }
        Ok(())
    }

    /// The directory, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`, keys in file order.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// A tensor's bytes: little-endian, row-major, mapped from the file; not necessarily aligned to its element type.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let info = self.tensors.get(name)?;
        self.files.get(info.shard)?.bytes().get(info.start..info.start + info.length)
    }

    /// The floating-point type that holds most elements (on a tie the wider one); `None` without any float.
    pub fn dtype(&self) -> Option<Dtype> {
        let mut elements: BTreeMap<Dtype, u128> = BTreeMap::new();
        for info in self.tensors.values() {
            if let Some(dtype) = info.float() {
                *elements.entry(dtype).or_default() += info.elements() as u128;
            }
        }
        elements.into_iter().max_by_key(|&(dtype, count)| (count, dtype)).map(|(dtype, _)| dtype)
    }

    /// Which tensors belong to which layer.
    pub fn layers(&self) -> LayerLayout {
        LayerLayout::from_names(self.tensors.keys().map(String::as_str))
    }

    /// Whether the output head shares the input embedding's weights.
    ///
    /// `tie_word_embeddings` of the configuration (or of its `text_config`) decides; without it a model that has an
    /// input embedding but no head ties them, since a configuration omits its class's default.
    pub fn ties_head(&self) -> bool {
        let said = |config: &Map<String, Value>| config.get("tie_word_embeddings").and_then(Value::as_bool);
        said(&self.config)
            .or_else(|| self.config.get("text_config").and_then(Value::as_object).and_then(said))
            .unwrap_or_else(|| {
                let names = || self.tensors.keys();
                names().any(|name| is_input_embedding(name)) && !names().any(|name| is_head(name))
            })
    }

    /// The weight files in name order, with the tensors in each.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Identifies the weights: sha256 in hex over the weight files' names and content ids (the blob name in a Hugging
    /// Face cache, else the file's sha256). Equal for byte-equal copies, wherever they are.
    ///
    /// # Errors
    /// A file cannot be read, or changed since the checkpoint was opened.
    pub fn content_id(&self, cache: &ContentIds) -> Result<String, CheckpointError> {
        let files: Vec<(&str, &MappedFile)> =
            self.shards.iter().map(|shard| shard.file.as_str()).zip(&self.files).collect();
        content_id(&files, cache)
    }

    /// Checks that every weight file still has the device, inode, size and modification time that it had when it was
    /// mapped. To be asked after a merge, before its result is trusted.
    ///
    /// # Errors
    /// [`CheckpointError::Changed`] names the first file that was replaced, rewritten or removed.
    pub fn verify_unchanged(&self) -> Result<(), CheckpointError> {
        self.files.iter().try_for_each(MappedFile::verify_unchanged)
    }

    /// The tokenizer, template and settings files that the directory has, sorted by name. Code is never among them.
    pub fn sidecars(&self) -> Vec<PathBuf> {
        find_sidecars(&self.path)
    }

    /// The first element, in order of tensor names, that is NaN or infinite. Reads all weights, on all threads.
    pub fn first_nonfinite(&self) -> Option<NonFinite> {
        first_nonfinite(self)
    }
}

/// Whether a tensor is an output head, by the names in use: `lm_head.weight`, `embed_out.weight` and their biases.
pub fn is_head(name: &str) -> bool {
    let mut components = name.rsplit('.');
    matches!(components.next(), Some("weight" | "bias")) && matches!(components.next(), Some("lm_head" | "embed_out"))
}

/// Whether a tensor is an input embedding that a head may share, by the names in use.
pub fn is_input_embedding(name: &str) -> bool {
    let mut components = name.rsplit('.');
    components.next() == Some("weight")
        && matches!(
            components.next(),
            Some("embed_tokens" | "wte" | "embed_in" | "word_embeddings" | "tok_embeddings" | "embeddings" | "shared")
        )
}
