//! An open checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::adapter::{Adapter, LowRank, Tie};
use super::content::{ContentIds, content_id, settings_id, single_id};
use super::directory::{
    CONFIG_FILE, INDEX_FILE, SINGLE_FILE, WeightMap, Weights, find_sidecars, find_weights, read_config,
};
use super::dtype::Dtype;
use super::error::{CheckpointError, quote};
use super::header::{TensorInfo, read_header};
use super::layers::LayerLayout;
use super::mapping::{MappedFile, open_regular, read_capped};
use super::nonfinite::{NonFinite, first_nonfinite};
use super::tensor_names::{is_head, is_input_embedding};

/// The key of configurations that says whether the head shares the input embedding's weights.
const TIES_HEAD: &str = "tie_word_embeddings";

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
    adapter: Option<Adapter>,
    /// What the files call the tensors that have been renamed, by their names of now.
    stored_names: BTreeMap<String, String>,
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
        let mut checkpoint = Self {
            path: path.to_owned(),
            config,
            tensors: BTreeMap::new(),
            shards: Vec::new(),
            files: Vec::new(),
            adapter: None,
            stored_names: BTreeMap::new(),
        };
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

    /// Opens the model directory `base` with the LoRA adapter of the directory `adapter` laid over it (PEFT's
    /// `adapter_config.json` and `adapter_model.safetensors`). Configuration, side files and shards are the base's.
    /// Tensors that the adapter holds whole and that differ from the base's take the place of these; what it changes by
    /// two factors is told by [`Self::low_rank`]. Where the base ties its head to the input embedding and the adapter
    /// makes them differ, the model has both, and its configuration says that they are not tied.
    ///
    /// # Errors
    /// As [`Self::open`]; an adapter that is incomplete, malformed, of another kind than LoRA, or does not fit this
    /// model.
    pub fn open_with_adapter(base: &Path, adapter: &Path) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self::open(base)?;
        let tie = checkpoint.tie();
        let opened = Adapter::open(adapter, base, &mut checkpoint.tensors, &checkpoint.files, tie.as_ref())?;
        let unties = opened.unties();
        checkpoint.adapter = Some(opened);
        let Some(tie) = tie else { return Ok(checkpoint) };
        let is_replaced = checkpoint.tensors.get(&tie.embedding.name).is_some_and(|info| info.replaces.is_some());
        if (unties || is_replaced) && checkpoint.ties_more_than_a_head() {
            return Err(CheckpointError::Tensor {
                path: adapter.to_owned(),
                tensor: quote(&tie.embedding.name),
                reason: "the adapter replaces it or the head, and loaders of such models tie more to it than a head: they \
                         would fill other embeddings or heads with random numbers, or read the old ones; merge the adapter \
                         with PEFT first (merge_and_unload, save_pretrained)"
                    .to_owned(),
            });
        }
        if unties {
            checkpoint.untie(tie);
        }
        Ok(checkpoint)
    }

    /// Whether loaders tie more to the input embedding than a head called as in other language models: the embeddings of
    /// an encoder and a decoder, or the head of a masked language model.
    fn ties_more_than_a_head(&self) -> bool {
        let architecture = self.config.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
        let is_masked = |name: &str| name.ends_with("ForMaskedLM") || name.ends_with("ForPreTraining");
        self.config.get("is_encoder_decoder") == Some(&Value::Bool(true)) || architecture.is_some_and(is_masked)
    }

    /// The head that is tied to the input embedding; `None`: the model ties none.
    fn tie(&self) -> Option<Tie> {
        if !self.ties_head() {
            return None;
        }
        let embedding = self.input_embedding()?.clone();
        let stored = self.tensors.keys().find(|name| is_head(name) && name.ends_with(".weight")).cloned();
        let head = stored.unwrap_or_else(|| {
            let outer = embedding.name.find(".model.").map_or("", |end| &embedding.name[..=end]);
            let head = if embedding.name.ends_with("embed_in.weight") { "embed_out" } else { "lm_head" };
            format!("{outer}{head}.weight")
        });
        Some(Tie { embedding, head })
    }

    /// Gives the model a head of its own: what the adapter holds of it, else the embedding as it was. PEFT trains a copy
    /// of an embedding that `modules_to_save` names, and a head that was tied to it stays what it was.
    fn untie(&mut self, Tie { embedding, head }: Tie) {
        if !self.tensors.contains_key(&head) {
            self.tensors.insert(head.clone(), TensorInfo { name: head, ..embedding });
        }
        untie_head(&mut self.config);
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
        let place = |name: &str| map.iter().find(|(_, names)| names.iter().any(|other| other == name));
        for (shard, listed) in self.shards.iter().zip(map.values()) {
            let stored: BTreeSet<&str> = shard.tensors.iter().map(String::as_str).collect();
            let listed: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
            let file = quote(&shard.file);
            if let Some(name) = listed.difference(&stored).next() {
                return wrong(format!("it lists tensor {} in {file}, which does not hold it", quote(name)));
            }
            if let Some(name) = stored.difference(&listed).next() {
                return wrong(match place(name) {
                    Some((other, _)) => {
                        format!("it lists tensor {} in {}, and {file} holds it", quote(name), quote(other))
                    }
                    None => format!(
                        "it does not list tensor {}, which {file} holds; index and shards are of different versions of the \
                         model: download them anew, or add the tensor to the index",
                        quote(name)
                    ),
                });
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

    /// The architecture's name, `model_type` of the configuration.
    pub fn model_type(&self) -> Option<&str> {
        self.config.get("model_type").and_then(Value::as_str)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// A tensor's bytes: little-endian, row-major, mapped from the file; not necessarily aligned to its element type.
    /// Where [`Self::low_rank`] has a change, it is still to be added.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let info = self.tensors.get(name)?;
        let file = self.files.get(info.shard).or(self.adapter.as_ref().map(Adapter::file))?;
        file.bytes().get(info.start..info.start + info.length)
    }

    /// Lets go of the memory pages of a tensor, which are found again when it is read again. Taking them all down at
    /// the end of a process is work for one thread.
    pub fn release(&self, name: &str) {
        if let Some(info) = self.tensors.get(name)
            && let Some(file) = self.files.get(info.shard)
        {
            file.release(info.start, info.length);
        }
    }

    /// What a LoRA adapter adds to a tensor.
    pub fn low_rank(&self, name: &str) -> Option<LowRank<'_>> {
        self.adapter.as_ref()?.change(self.stored_name(name))
    }

    /// What the files call a tensor; another name than its own where other models' names were given to it
    /// ([`super::align_names`]).
    pub fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.stored_names.get(name).map_or(name, String::as_str)
    }

    /// The tensors that have been renamed: their names of now, and in the files.
    pub fn renamed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.stored_names.iter().map(|(name, stored)| (name.as_str(), stored.as_str()))
    }

    /// Whether some tensor has another name than in the files.
    pub fn is_renamed(&self) -> bool {
        !self.stored_names.is_empty()
    }

    /// Gives tensors other names; `None`: a tensor keeps its own. So does one whose new name is taken.
    pub(super) fn rename_tensors(&mut self, new_name: impl Fn(&str) -> Option<String>) {
        let free = |name: &String| !self.tensors.contains_key(name);
        let renamed: BTreeMap<String, String> =
            self.tensors.keys().filter_map(|old| Some((old.clone(), new_name(old).filter(free)?))).collect();
        for (old, new) in &renamed {
            if let Some(info) = self.tensors.remove(old) {
                self.tensors.insert(new.clone(), TensorInfo { name: new.clone(), ..info });
                let stored = self.stored_names.remove(old).unwrap_or_else(|| old.clone());
                self.stored_names.insert(new.clone(), stored);
            }
        }
        for name in self.shards.iter_mut().flat_map(|shard| &mut shard.tensors) {
            if let Some(new) = renamed.get(name) {
                name.clone_from(new);
            }
        }
    }

    /// The floating-point type that the model keeps most elements in (on a tie the wider one); `None` without any
    /// float.
    pub fn dtype(&self) -> Option<Dtype> {
        let mut elements: BTreeMap<Dtype, u128> = BTreeMap::new();
        for info in self.tensors.values() {
            if let Some(dtype) = Dtype::from_stored(info.model_dtype()) {
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
        let said = |config: &Map<String, Value>| config.get(TIES_HEAD).and_then(Value::as_bool);
        said(&self.config)
            .or_else(|| self.config.get("text_config").and_then(Value::as_object).and_then(said))
            .unwrap_or_else(|| {
                let names = || self.tensors.keys();
                names().any(|name| is_input_embedding(name)) && !names().any(|name| is_head(name))
            })
    }

    /// The input embedding: the one that an encoder and a decoder share, where they store copies of it too.
    pub fn input_embedding(&self) -> Option<&TensorInfo> {
        let mut embeddings = self.tensors.values().filter(|info| is_input_embedding(&info.name));
        let first = embeddings.clone().next()?;
        Some(embeddings.find(|info| info.name.ends_with("shared.weight")).unwrap_or(first))
    }

    /// The weight files in name order, with the tensors in each.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Identifies the weights: sha256 in hex over the weight files' names and content ids (the blob name in a Hugging
    /// Face cache, else the file's sha256). Equal for byte-equal copies, wherever they are. With an adapter it covers
    /// the base, the adapter's weights, and what its configuration says of them.
    ///
    /// # Errors
    /// A file cannot be read, or changed since the checkpoint was opened.
    pub fn content_id(&self, cache: &ContentIds) -> Result<String, CheckpointError> {
        let files: Vec<(&str, &MappedFile)> =
            self.shards.iter().map(|shard| shard.file.as_str()).zip(&self.files).collect();
        let base = content_id(&files, cache)?;
        match &self.adapter {
            None => Ok(base),
            Some(adapter) => Ok(adapter.content_id(&base, &single_id(adapter.file(), cache)?)),
        }
    }

    /// Identifies what is not weights and still reaches whoever loads the model: sha256 in hex over the names and
    /// contents of `config.json` and [`Self::sidecars`].
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn settings_id(&self) -> Result<String, CheckpointError> {
        let mut files = vec![self.path.join(CONFIG_FILE)];
        files.extend(self.sidecars());
        settings_id(&files)
    }

    /// Checks that every weight file still has the device, inode, size and modification time that it had when it was
    /// mapped. To be asked after a merge, before its result is trusted.
    ///
    /// # Errors
    /// [`CheckpointError::Changed`] names the first file that was replaced, rewritten or removed.
    pub fn verify_unchanged(&self) -> Result<(), CheckpointError> {
        self.files.iter().chain(self.adapter.as_ref().map(Adapter::file)).try_for_each(MappedFile::verify_unchanged)
    }

    /// A small file beside the weights; `None`: there is none.
    ///
    /// # Errors
    /// It cannot be read, is no regular file, or has more than `limit` bytes.
    pub fn read_sidecar(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, CheckpointError> {
        let path = self.path.join(name);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        read_capped(&path, limit).map(Some)
    }

    /// The tokenizer, template and settings files that the directory has, sorted by name. Code is never among them.
    pub fn sidecars(&self) -> Vec<PathBuf> {
        find_sidecars(&self.path).found
    }

    /// The sidecars (see [`Self::sidecars`]) that are links which lead nowhere.
    pub fn dangling_sidecars(&self) -> Vec<PathBuf> {
        find_sidecars(&self.path).dangling
    }

    /// The first element, in order of tensor names, that is NaN or infinite. Reads all weights, on all threads; the
    /// factors of an adapter were looked at when it was opened.
    pub fn first_nonfinite(&self) -> Option<NonFinite> {
        first_nonfinite(self.stored(|_| true))
    }

    /// The first NaN or infinite element (see [`Self::first_nonfinite`]) of the tensors that an adapter brought along.
    pub fn first_nonfinite_of_adapter(&self) -> Option<NonFinite> {
        first_nonfinite(self.stored(|info| info.shard >= self.files.len()))
    }

    /// The tensors that `included` accepts, with their bytes, in order of names.
    fn stored(&self, included: impl Fn(&TensorInfo) -> bool) -> impl Iterator<Item = (&TensorInfo, &[u8])> {
        let infos = self.tensors.values().filter(move |info| included(info));
        infos.filter_map(|info| Some((info, self.bytes(&info.name)?)))
    }
}

/// Says in a configuration that the head is not tied to the input embedding. Of a model that keeps its text model's
/// settings one level down, transformers reads the one or the other, by version and class; and what it reads and does
/// not find may stand for a tied head, so that a stored one would be dropped.
pub fn untie_head(config: &mut Map<String, Value>) {
    config.insert(TIES_HEAD.to_owned(), false.into());
    if let Some(Value::Object(text)) = config.get_mut("text_config") {
        text.insert(TIES_HEAD.to_owned(), false.into());
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{safetensors_bytes, write_model};
    use super::*;

    #[test]
    fn a_model_is_what_its_files_say() {
        use safetensors::Dtype::{BF16, F32, I64};

        let folder = tempfile::tempdir().unwrap();
        let tensors: [(&str, _, &[usize], &[u8]); 4] = [
            ("model.layers.0.w", BF16, &[3], &[1, 2, 3, 4, 5, 6]),
            ("model.norm.weight", F32, &[2], &[7; 8]),
            ("positions", I64, &[9], &[0; 72]),
            ("scalar", BF16, &[], &[8, 9]),
        ];
        std::fs::write(folder.path().join("model.safetensors"), safetensors_bytes(&tensors)).unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"z": 1, "a": 2}"#).unwrap();
        for name in ["tokenizer.json", "chat_template.jinja", "modeling_custom.py", "README.md", "q.tiktoken", "notspm"]
        {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("nowhere", folder.path().join("source.spm")).unwrap();
        let model = Checkpoint::open(folder.path()).unwrap();
        for (name, _, _, bytes) in tensors {
            assert_eq!(model.bytes(name), Some(bytes));
        }
        assert_eq!(model.bytes("absent"), None);
        assert_eq!(model.config().keys().collect::<Vec<_>>(), ["z", "a"]);
        assert_eq!(model.dtype(), Some(Dtype::Bfloat16));
        let info = &model.tensors()["scalar"];
        assert_eq!((info.elements(), info.byte_len(), info.float()), (1, 2, Some(Dtype::Bfloat16)));
        assert_eq!(model.tensors()["positions"].float(), None);
        assert_eq!(model.layers().count, 1);
        assert_eq!(model.shards()[0].tensors, ["positions", "model.norm.weight", "model.layers.0.w", "scalar"]);
        let sidecars = ["chat_template.jinja", "q.tiktoken", "tokenizer.json"].map(|name| folder.path().join(name));
        assert_eq!(model.sidecars(), sidecars);
        assert_eq!(model.dangling_sidecars(), [folder.path().join("source.spm")]);
    }

    #[test]
    fn tied_heads() {
        let folder = tempfile::tempdir().unwrap();
        let ties = |config: &str, names: &[&str]| {
            let tensors: Vec<(&str, &[usize], &[f32])> =
                names.iter().map(|&name| (name, &[][..], &[1.0][..])).collect();
            write_model(folder.path(), config, &tensors);
            Checkpoint::open(folder.path()).unwrap().ties_head()
        };
        let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
        assert!(ties(r#"{"tie_word_embeddings": true}"#, &[embedding, head]));
        assert!(!ties(r#"{"tie_word_embeddings": false}"#, &[embedding]));
        assert!(ties(r#"{"text_config": {"tie_word_embeddings": true}}"#, &[embedding, head]));
        assert!(ties("{}", &[embedding]));
        assert!(!ties("{}", &[embedding, head]));
        assert!(!ties("{}", &["conv.weight"]));
    }

    #[test]
    fn a_head_is_untied_where_any_loader_looks() {
        for (config, expected) in [
            (r#"{"a": 1}"#, r#"{"a":1,"tie_word_embeddings":false}"#),
            (r#"{"tie_word_embeddings": true, "a": 1}"#, r#"{"tie_word_embeddings":false,"a":1}"#),
            (
                r#"{"text_config": {"tie_word_embeddings": true}}"#,
                r#"{"text_config":{"tie_word_embeddings":false},"tie_word_embeddings":false}"#,
            ),
            (
                r#"{"tie_word_embeddings": true, "text_config": {}}"#,
                r#"{"tie_word_embeddings":false,"text_config":{"tie_word_embeddings":false}}"#,
            ),
        ] {
            let mut config: Map<String, Value> = serde_json::from_str(config).unwrap();
            untie_head(&mut config);
            assert_eq!(serde_json::to_string(&config).unwrap(), expected);
        }
    }

    #[test]
    fn the_input_embedding_is_the_shared_one_among_its_copies() {
        let folder = tempfile::tempdir().unwrap();
        for (names, expected) in [
            (
                &["decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "shared.weight"][..],
                Some("shared.weight"),
            ),
            (&["lm_head.weight", "model.embed_tokens.weight"][..], Some("model.embed_tokens.weight")),
            (&["conv.weight"][..], None),
        ] {
            let tensors: Vec<(&str, &[usize], &[f32])> =
                names.iter().map(|&name| (name, &[][..], &[1.0][..])).collect();
            write_model(folder.path(), "{}", &tensors);
            let model = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(model.input_embedding().map(|info| info.name.as_str()), expected);
        }
    }

    #[test]
    fn a_changed_file_is_found() {
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path(), "{}", &[("w", &[2], &[1.0, 2.0])]);
        let model = Checkpoint::open(folder.path()).unwrap();
        model.verify_unchanged().unwrap();
        let weights = folder.path().join("model.safetensors");
        let copy = folder.path().join("copy");
        std::fs::copy(&weights, &copy).unwrap();
        std::fs::rename(&copy, &weights).unwrap();
        let error = model.verify_unchanged().unwrap_err();
        assert!(error.to_string().contains("model.safetensors changed while it was in use"), "{error}");
    }

    #[test]
    fn the_first_bad_element_is_named_whatever_the_threads() {
        let folder = tempfile::tempdir().unwrap();
        let mut many = vec![0.5f32; 600_000];
        many[555_555] = f32::NAN;
        many[599_999] = f32::INFINITY;
        let good = [1.0, f32::MAX];
        write_model(
            folder.path(),
            "{}",
            &[("z", &[1], &[f32::NAN]), ("b", &[600, 1000], &many), ("a", &[2], &good), ("none", &[0], &[])],
        );
        let model = Checkpoint::open(folder.path()).unwrap();
        for threads in [1, 2, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found = pool.install(|| model.first_nonfinite()).unwrap();
            assert_eq!((found.tensor.as_str(), found.element), ("b", 555_555));
            assert_eq!(found.to_string(), "tensor `b`, element 555555, is NaN");
        }
        write_model(folder.path(), "{}", &[("a", &[2], &good)]);
        assert_eq!(Checkpoint::open(folder.path()).unwrap().first_nonfinite(), None);
    }
}
