//! Which weight files a model directory has, and which tensors its index promises in each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::{CheckpointError, quote};
use super::mapping::read_capped;
use crate::python_json::mark_nonfinite;
use crate::repeated_keys::refuse_repeated_keys;

/// The single weight file of a checkpoint that is not sharded.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The map from tensors to shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The model's configuration.
pub const CONFIG_FILE: &str = "config.json";
/// Most bytes of a configuration that are read.
const MAX_CONFIG: u64 = 16 << 20;
/// Most bytes of an index that are read.
const MAX_INDEX: u64 = 100 << 20;

/// A shard's tensors as the index names them, by file name.
pub(super) type WeightMap = BTreeMap<String, Vec<String>>;

/// The weight files of a model directory.
pub(super) enum Weights {
    Single,
    /// At least one shard.
    Sharded(WeightMap),
}

/// Finds the weights as transformers does: `model.safetensors` where there is one, else the index.
pub(super) fn find_weights(directory: &Path) -> Result<Weights, CheckpointError> {
    let refuse = |reason: String| CheckpointError::NotACheckpoint { path: directory.to_owned(), reason };
    match std::fs::metadata(directory) {
        Err(source) => return Err(CheckpointError::Read { path: directory.to_owned(), source }),
        Ok(metadata) if !metadata.is_dir() => {
            return Err(refuse(format!(
                "it is a file; expected the model's directory, with {CONFIG_FILE} and {SINGLE_FILE} (or shards and {INDEX_FILE})"
            )));
        }
        Ok(_) => {}
    }
    let present = |name: &str| directory.join(name).symlink_metadata().is_ok();
    if present(SINGLE_FILE) {
        Ok(Weights::Single)
    } else if present(INDEX_FILE) {
        read_index(&directory.join(INDEX_FILE)).map(Weights::Sharded)
    } else {
        Err(refuse(missing_weights(directory)))
    }
}

/// What a directory without safetensors weights has instead, and what to do about it.
fn missing_weights(directory: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let find = |extensions: &[&str]| {
        let matches = |name: &&String| extensions.iter().any(|extension| name.ends_with(extension));
        names.iter().find(matches).map(|name| quote(name))
    };
    if super::is_adapter_folder(directory) {
        return "it holds an adapter, not a whole model; name a LoRA adapter together with its base, as `BASE+ADAPTER`"
            .to_owned();
    }
    if let Some(name) = find(&[".gguf"]) {
        return format!("it has GGUF weights only ({name}); use the original safetensors model, GGUF cannot be merged");
    }
    if let Some(name) = find(&[".bin", ".pt", ".pth", ".ckpt"]) {
        return format!(
            "it has PyTorch pickle weights only ({name}), which can run code when loaded; convert them: load the model \
             with transformers and call `save_pretrained(..., safe_serialization=True)`"
        );
    }
    if let Some(name) = find(&[".safetensors"]) {
        return format!(
            "it has {name}, but neither {SINGLE_FILE} nor {INDEX_FILE}; expected one of the two, as transformers writes them"
        );
    }
    match std::fs::read_dir(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => format!("its files cannot be listed: {error}"),
        _ => format!("it has neither {SINGLE_FILE} nor {INDEX_FILE}; is the download complete?"),
    }
}

/// Reads `config.json`.
pub(super) fn read_config(directory: &Path) -> Result<Map<String, Value>, CheckpointError> {
    let path = directory.join(CONFIG_FILE);
    if path.symlink_metadata().is_err() {
        return Err(CheckpointError::NotACheckpoint {
            path: directory.to_owned(),
            reason: format!("it has no {CONFIG_FILE}; copy it from where the model came from"),
        });
    }
    let bytes = read_capped(&path, MAX_CONFIG)?;
    let wrong = |reason: String| CheckpointError::Config { path: path.clone(), reason };
    let text = std::str::from_utf8(&bytes).map_err(|error| wrong(format!("not valid JSON: {error}")))?;
    // transformers has written bare infinities (`time_step_limit`); they are kept for those who read them.
    match serde_json::from_str(&mark_nonfinite(text)) {
        Ok(Value::Object(config)) => Ok(config),
        Ok(_) => Err(wrong("expected a JSON object".to_owned())),
        Err(error) => Err(wrong(format!("not valid JSON: {error}"))),
    }
}

/// Reads an index: every file it names must be a plain file name that ends in `.safetensors`.
fn read_index(path: &Path) -> Result<WeightMap, CheckpointError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }

    let wrong = |reason: String| CheckpointError::Index { path: path.to_owned(), reason };
    let bytes = read_capped(path, MAX_INDEX)?;
    let invalid = |error: serde_json::Error| wrong(format!("not a valid index: {error}"));
    refuse_repeated_keys(&bytes).map_err(invalid)?;
    let Index { weight_map } = serde_json::from_slice(&bytes).map_err(invalid)?;
    let mut shards = WeightMap::new();
    for (tensor, file) in weight_map {
        if !is_shard_name(&file) {
            return Err(wrong(format!(
                "tensor {} is said to be in {}; expected the name of a .safetensors file in the same folder",
                quote(&tensor),
                quote(&file)
            )));
        }
        shards.entry(file).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(wrong("`weight_map` names no tensor".to_owned()));
    }
    Ok(shards)
}

/// Whether a name from an index or a caller stays in its folder.
pub(super) fn is_shard_name(name: &str) -> bool {
    is_plain_name(name) && name.ends_with(".safetensors") && name.len() > ".safetensors".len()
}

/// Whether a name is one path component on every system: no separator, no drive, no `..`, no control character.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(char::is_control)
}

/// Files that hold a tokenizer's vocabulary, beside those that end as [`VOCABULARY_ENDINGS`].
const VOCABULARIES: &[&str] = &[
    "bpe.codes",
    "dict.txt",
    "entity_vocab.json",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spiece.model",
    "spm.model",
    "spm_char.model",
    "target_vocab.json",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "vocab-src.json",
    "vocab-tgt.json",
    "vocab.bpe",
    "vocab.json",
    "vocab.txt",
];
/// How the names of other vocabulary files end: `source.spm`, `target.spm`, `qwen.tiktoken`.
const VOCABULARY_ENDINGS: &[&str] = &[".spm", ".tiktoken"];
/// Other files beside the weights that make a model usable: what belongs to a tokenizer, chat templates, generation and
/// pre-processing settings. Never code.
const SETTINGS: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "emoji.json",
    "generation_config.json",
    "image_processor_config.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
];

/// Whether a file beside the weights holds a tokenizer's vocabulary.
pub(crate) fn holds_vocabulary(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    VOCABULARIES.contains(&name) || VOCABULARY_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// The small files beside the weights, sorted by name.
pub(super) struct Sidecars {
    /// Files, and links to files.
    pub(super) found: Vec<PathBuf>,
    /// Links that lead nowhere: an incomplete download, or a part of a cache that was copied alone.
    pub(super) dangling: Vec<PathBuf>,
}

/// The sidecars that a directory has.
pub(super) fn find_sidecars(directory: &Path) -> Sidecars {
    let is_one = |path: &PathBuf| {
        holds_vocabulary(path) || path.file_name().is_some_and(|name| SETTINGS.iter().any(|setting| name == *setting))
    };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    // Joined anew, so that paths look as the directory was given.
    let mut all: Vec<PathBuf> = entries.map(|entry| directory.join(entry.file_name())).filter(is_one).collect();
    all.sort();
    let (found, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|path| path.is_file());
    Sidecars { found, dangling: others.into_iter().filter(|path| !path.exists()).collect() }
}
