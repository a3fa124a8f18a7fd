//! Small checkpoints, written, opened and merged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use evomerge::checkpoint::{
    Checkpoint, CheckpointWriter, ContentIds, OutputFile, OutputTensor, WriteMode, align_names,
};
use evomerge::merge::{MergeError, MergeOptions, MergeReport, Merger, MergerOptions};
use evomerge::recipe::{ModelReference, Recipe};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const EMBEDDING: &str = "model.embed_tokens.weight";
pub const HEAD: &str = "lm_head.weight";
pub const TIE: &str = "tie_word_embeddings";

/// A model to be written: tensors with dtype, shape and bytes, and files beside them.
#[derive(Clone)]
pub struct Model {
    pub tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    pub files: BTreeMap<String, String>,
    pub shards: usize,
}

pub fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

impl Model {
    pub fn empty(config: Value) -> Self {
        let files = BTreeMap::from([("config.json".to_owned(), config.to_string())]);
        Self { tensors: Vec::new(), files, shards: 1 }
    }

    /// Embedding, `layers` layers of two tensors, norm and head; element `i` of the n-th tensor is a hash of both.
    pub fn new(layers: usize, seed: u32) -> Self {
        let config = json!({"num_hidden_layers": layers, "torch_dtype": "float32", "tie_word_embeddings": false});
        let mut model = Self::empty(config);
        model.add("model.embed_tokens.weight", &[10, 4], seed);
        for layer in 0..layers {
            model.add(&format!("model.layers.{layer}.mlp.weight"), &[4, 6], seed + 10 * layer as u32);
            model.add(&format!("model.layers.{layer}.norm.weight"), &[4], seed + 10 * layer as u32 + 1);
        }
        model.add("model.norm.weight", &[4], seed + 2);
        model.add("lm_head.weight", &[10, 4], seed + 3);
        model
    }

    pub fn add(&mut self, name: &str, shape: &[usize], seed: u32) {
        let length: usize = shape.iter().product();
        let value = |index: usize| {
            let mixed = (index as u32 ^ seed.wrapping_mul(0x9E37_79B9)).wrapping_mul(0x85EB_CA6B);
            ((mixed ^ mixed >> 13).wrapping_mul(0xC2B2_AE35) >> 8) as f32 / 16_777_216.0 - 0.5
        };
        self.tensors.push((name.into(), Dtype::F32, shape.to_vec(), floats((0..length).map(value))));
    }

    pub fn set(&mut self, name: &str, element: usize, value: f32) {
        let tensor = self.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap();
        tensor.3[4 * element..4 * element + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub fn remove(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.0 != name);
    }

    pub fn config(&mut self, change: Value) {
        let mut config: Value = serde_json::from_str(&self.files["config.json"]).unwrap();
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        self.files.insert("config.json".into(), config.to_string());
    }

    pub fn write(&self, path: &Path) {
        let output = |(name, dtype, shape, _): &(String, Dtype, Vec<usize>, Vec<u8>)| OutputTensor {
            name: name.clone(),
            dtype: *dtype,
            shape: shape.clone(),
        };
        let files: Vec<OutputFile> = self
            .tensors
            .chunks(self.tensors.len().div_ceil(self.shards))
            .enumerate()
            .map(|(index, tensors)| OutputFile {
                name: match self.shards {
                    1 => "model.safetensors".into(),
                    shards => format!("model-{:05}-of-{shards:05}.safetensors", index + 1),
                },
                tensors: tensors.iter().map(output).collect(),
            })
            .collect();
        let writer = CheckpointWriter::create(path, &files, WriteMode::default()).unwrap();
        for (name, _, _, bytes) in &self.tensors {
            writer.write_at(name, 0, bytes).unwrap();
        }
        for (name, text) in &self.files {
            writer.put_file(name, text.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
    }
}

/// A folder with models, opened.
pub struct Family {
    pub folder: TempDir,
    pub merger: Merger,
}

impl Family {
    pub fn new<const N: usize>(models: [(&str, Model); N]) -> Self {
        Self::with(models, MergerOptions::default())
    }

    pub fn with<const N: usize>(models: [(&str, Model); N], options: MergerOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let open = |(name, model): (&str, Model)| {
            let path = folder.path().join(name);
            model.write(&path);
            (ModelReference::new(name), Checkpoint::open(&path).unwrap())
        };
        let mut models = models.map(open);
        align_names(models.iter_mut().map(|(_, checkpoint)| checkpoint));
        let models = models.map(|(name, checkpoint)| (name, Arc::new(checkpoint)));
        let merger = Merger::new(models, ContentIds::in_memory(), options).unwrap();
        Self { folder, merger }
    }

    pub fn output(&self) -> PathBuf {
        self.folder.path().join("merged")
    }

    pub fn try_merge(&self, recipe: &str, options: &MergeOptions<'_>) -> Result<MergeReport, MergeError> {
        let recipe = Recipe::from_mergekit_yaml(recipe).unwrap();
        self.merger.materialize(&recipe, &self.output(), options)
    }

    pub fn merge(&self, recipe: &str) -> Checkpoint {
        self.try_merge(recipe, &MergeOptions::default()).unwrap();
        Checkpoint::open(&self.output()).unwrap()
    }

    /// The reason why a recipe is refused; nothing may be left behind.
    pub fn refusal(&self, recipe: &str) -> MergeError {
        let before = self.entries();
        let error = self.try_merge(recipe, &MergeOptions::default()).unwrap_err();
        assert_eq!(self.entries(), before, "{error}");
        error
    }

    pub fn entries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn model(&self, name: &str) -> Checkpoint {
        Checkpoint::open(&self.folder.path().join(name)).unwrap()
    }
}

pub fn values(checkpoint: &Checkpoint, tensor: &str) -> Vec<f32> {
    let bytes = checkpoint.bytes(tensor).unwrap_or_else(|| panic!("no tensor {tensor}"));
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

pub fn average(left: &[f32], right: &[f32]) -> Vec<f32> {
    left.iter().zip(right).map(|(left, right)| (left + right) / 2.0).collect()
}

/// The same as [`Model::new`], with its head tied to its embedding.
pub fn tied(layers: usize, seed: u32) -> Model {
    let mut model = Model::new(layers, seed);
    model.remove(HEAD);
    model.config(json!({ TIE: true }));
    model
}

/// The same numbers, cut to their upper half.
pub fn bfloat16(mut model: Model) -> Model {
    for (_, dtype, _, bytes) in &mut model.tensors {
        *dtype = Dtype::BF16;
        *bytes = bytes.chunks_exact(4).flat_map(|word| [word[2], word[3]]).collect();
    }
    model.config(json!({"torch_dtype": "bfloat16"}));
    model
}

/// Adds `layers` layers of `tensors` tensors each.
pub fn add_tower(model: &mut Model, prefix: &str, layers: usize, tensors: usize) {
    for layer in 0..layers {
        for tensor in 0..tensors {
            model.add(&format!("{prefix}{layer}.{tensor}_proj.weight"), &[4, 4], (10 * layer + tensor) as u32);
        }
    }
}

/// Merges into the folder `name` beside the models.
pub fn merge_into(family: &Family, recipe: &Recipe, name: &str) -> Checkpoint {
    let output = family.folder.path().join(name);
    family.merger.materialize(recipe, &output, &MergeOptions::default()).unwrap();
    Checkpoint::open(&output).unwrap()
}

/// Stacks runs of layers, each of the model named before it.
pub fn stack(slices: &[(&str, [usize; 2])]) -> String {
    let slice = |(model, [first, end]): &(&str, [usize; 2])| {
        format!("- sources: [{{model: {model}, layer_range: [{first}, {end}]}}]\n")
    };
    format!("merge_method: passthrough\nslices:\n{}", slices.iter().map(slice).collect::<String>())
}

pub const AVERAGE: &str = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n";
pub const DARE: &str = "merge_method: dare_linear\nbase_model: base\nparameters: {weight: 1, density: 0.5}\n";
