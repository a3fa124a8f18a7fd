//! Merges of checkpoints as they are found: any alignment, any mixture of dtypes, many sources, many files; and what
//! slices, gradients and filters make of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use evomerge::checkpoint::{Checkpoint, ContentIds};
use evomerge::merge::{MergeOptions, Merger, MergerOptions, WriteMode};
use evomerge::recipe::{MaskKind, ModelReference, Recipe};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A tensor to be stored.
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl Tensor {
    fn new(name: impl Into<String>, dtype: Dtype, values: Vec<f64>) -> Self {
        Self { name: name.into(), dtype, shape: vec![values.len()], values }
    }

    fn bytes(&self) -> Vec<u8> {
        let values = self.values.iter();
        match self.dtype {
            Dtype::F64 => values.flat_map(|value| value.to_le_bytes()).collect(),
            Dtype::F32 => values.flat_map(|value| (*value as f32).to_le_bytes()).collect(),
            Dtype::BF16 => values.flat_map(|value| bf16::from_f64(*value).to_le_bytes()).collect(),
            Dtype::F16 => values.flat_map(|value| f16::from_f64(*value).to_le_bytes()).collect(),
            other => panic!("{other}"),
        }
    }
}

/// A file as the format describes it, whose data starts `skew` bytes behind a multiple of eight.
fn write_file(path: &Path, tensors: &[Tensor], skew: usize) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for tensor in tensors {
        let start = data.len();
        data.extend(tensor.bytes());
        let entry =
            json!({"dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [start, data.len()]});
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    while header.len() % 8 != skew {
        header.push(b' ');
    }
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], &header, &data].concat()).unwrap();
}

/// Models in a folder, opened.
struct Family {
    folder: TempDir,
    merger: Merger,
}

impl Family {
    fn new(models: impl IntoIterator<Item = (String, Vec<Tensor>)>, layers: usize, skew: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let open = |(name, tensors): (String, Vec<Tensor>)| {
            let path = folder.path().join(&name);
            std::fs::create_dir(&path).unwrap();
            write_file(&path.join("model.safetensors"), &tensors, skew);
            std::fs::write(path.join("config.json"), json!({"num_hidden_layers": layers}).to_string()).unwrap();
            (ModelReference::new(name), Arc::new(Checkpoint::open(&path).unwrap()))
        };
        let models: Vec<_> = models.into_iter().map(open).collect();
        Self { merger: Merger::new(models, ContentIds::in_memory(), MergerOptions::default()).unwrap(), folder }
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("merged")
    }

    fn merge_with(&self, recipe: &str, options: &MergeOptions<'_>) -> Checkpoint {
        let mut recipe = Recipe::from_mergekit_yaml(recipe).unwrap();
        // Native masks hang on the files' content, so on where their data lies, too.
        recipe.masks.kind = MaskKind::Mergekit;
        self.merger.materialize(&recipe, &self.output(), options).unwrap();
        Checkpoint::open(&self.output()).unwrap()
    }

    fn merge(&self, recipe: &str) -> Checkpoint {
        self.merge_with(
            recipe,
            &MergeOptions { mode: WriteMode::Replace { durable: false }, ..MergeOptions::default() },
        )
    }

    /// Whether the merged tensor is the stored one of a model.
    fn is(&self, merged: &Checkpoint, tensor: &str, model: &str) -> bool {
        let model = Checkpoint::open(&self.folder.path().join(model)).unwrap();
        merged.bytes(tensor).unwrap() == model.bytes(tensor).unwrap()
    }
}

/// Numbers of few digits, which every dtype stores exactly.
fn noise(seed: usize, length: usize) -> Vec<f64> {
    let value = |index: usize| {
        let mixed = (index + 1_000_003 * seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 57) as f64 / 64.0 - 1.0
    };
    (0..length).map(value).collect()
}

#[test]
fn data_may_start_at_any_byte() {
    // Three elements of 16 bits before the wider ones, and enough elements for whole blocks of vectors.
    let models = || {
        (0..3).map(|seed| {
            let tensors = vec![
                Tensor::new("layers.0.odd.weight", Dtype::BF16, noise(seed, 3)),
                Tensor::new("layers.0.narrow.weight", Dtype::BF16, noise(seed + 10, 5_003)),
                Tensor::new("layers.0.half.weight", Dtype::F16, noise(seed + 20, 1_501)),
                Tensor::new("layers.0.single.weight", Dtype::F32, noise(seed + 30, 1_501)),
                Tensor::new("layers.0.wide.weight", Dtype::F64, noise(seed + 40, 1_501)),
            ];
            (["base", "a", "b"][seed].to_owned(), tensors)
        })
    };
    let recipes = ["linear", "slerp", "nuslerp", "model_stock", "task_arithmetic", "ties", "dare_ties", "della", "sce"]
        .map(|method| {
            let inputs = match method {
                "linear" => "models: [{model: a}, {model: b}]\nparameters: {weight: 0.3}\n",
                "slerp" => "base_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.3}\n",
                "nuslerp" => "models: [{model: a}, {model: b}]\nparameters: {weight: 0.3}\n",
                "model_stock" => "base_model: base\nmodels: [{model: a}, {model: b}]\n",
                "sce" => "base_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {select_topk: 0.4}\n",
                "task_arithmetic" => "base_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.3}\n",
                _ => "base_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.3, density: 0.4}\n",
            };
            format!("merge_method: {method}\n{inputs}")
        });
    let merge_all = |skew| {
        let family = Family::new(models(), 1, skew);
        recipes.each_ref().map(|recipe| {
            family.merge(recipe);
            std::fs::read(family.output().join("model.safetensors")).unwrap()
        })
    };
    let aligned = merge_all(0);
    for skew in [1, 2, 3, 4, 7] {
        for (recipe, (merged, expected)) in recipes.iter().zip(merge_all(skew).iter().zip(&aligned)) {
            assert!(merged == expected, "data {skew} bytes behind a multiple of eight: {recipe}");
        }
    }
}

#[test]
fn a_hundred_models_are_merged_at_once() {
    let names: Vec<String> = (0..100).map(|index| format!("m{index}")).collect();
    let models = names.iter().enumerate().map(|(index, name)| {
        (name.clone(), vec![Tensor::new("layers.0.w.weight", Dtype::F32, vec![index as f64; 700])])
    });
    let family = Family::new(models, 1, 0);
    let inputs = |from: usize| {
        let inputs: Vec<String> = names[from..].iter().map(|name| format!("{{model: {name}}}")).collect();
        format!("models: [{}]\nparameters: {{weight: 1}}\n", inputs.join(", "))
    };
    // The base is zero, the others 1 to 99.
    for (recipe, expected) in [
        (format!("merge_method: linear\n{}", inputs(0)), 49.5_f32),
        (format!("merge_method: task_arithmetic\nbase_model: m0\n{}", inputs(1)), 4_950.0),
        (format!("merge_method: ties\nbase_model: m0\n{}", inputs(1)), 50.0),
    ] {
        let merged = family.merge(&recipe);
        assert_eq!(merged.bytes("layers.0.w.weight").unwrap(), expected.to_le_bytes().repeat(700), "{recipe}");
    }
}

#[test]
fn sources_of_different_dtypes_are_merged_in_the_widest() {
    let dtypes = [("single", Dtype::F32), ("brain", Dtype::BF16), ("half", Dtype::F16), ("wide", Dtype::F64)];
    // What only float64 can store is not lost beside narrower sources.
    let fine = 2.0_f64.powi(-40);
    let value = |dtype| if dtype == Dtype::F64 { 1.0 + fine } else { 1.0 };
    let models = dtypes
        .map(|(name, dtype)| (name.to_owned(), vec![Tensor::new("layers.0.w.weight", dtype, vec![value(dtype); 700])]));
    let family = Family::new(models, 1, 0);
    for first in 0..4 {
        let mut order = dtypes;
        order.rotate_left(first);
        let inputs: Vec<String> = order.iter().map(|(name, _)| format!("{{model: {name}}}")).collect();
        let recipe = format!("merge_method: linear\nmodels: [{}]\nparameters: {{weight: 0.25}}\n", inputs.join(", "));
        // The first source decides what is written, unless the recipe does.
        let merged = family.merge(&recipe);
        let (_, dtype) = order[0];
        let expected = Tensor::new("", dtype, vec![1.0 + fine / 4.0; 700]);
        assert_eq!(merged.tensors()["layers.0.w.weight"].dtype, dtype);
        assert_eq!(merged.bytes("layers.0.w.weight").unwrap(), expected.bytes());
        let merged = family.merge(&format!("{recipe}out_dtype: float64\n"));
        let expected = Tensor::new("", Dtype::F64, vec![1.0 + fine / 4.0; 700]);
        assert_eq!(merged.bytes("layers.0.w.weight").unwrap(), expected.bytes());
    }
}

/// Embedding, `layers` layers of two tensors, norm and head.
fn layered(layers: usize, seed: usize) -> Vec<Tensor> {
    let inside =
        (0..layers).flat_map(|layer| ["mlp", "norm"].map(|part| format!("model.layers.{layer}.{part}.weight")));
    let outside = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"].map(str::to_owned);
    let tensor = |(index, name)| Tensor::new(name, Dtype::F32, noise(10 * seed + index, 40 + 13 * index));
    outside.into_iter().chain(inside).enumerate().map(tensor).collect()
}

fn pair(layers: usize) -> Family {
    Family::new([("a".to_owned(), layered(layers, 1)), ("b".to_owned(), layered(layers, 2))], layers, 0)
}

#[test]
fn shards_hold_what_the_single_file_holds() {
    let family = pair(3);
    let recipe = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n";
    let content = |merged: &Checkpoint| -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
        let tensors = merged.tensors().iter();
        let whole = |name: &String| merged.bytes(name).unwrap().to_vec();
        tensors.map(|(name, info)| (name.clone(), info.dtype, info.shape.clone(), whole(name))).collect()
    };
    let single = family.merge(recipe);
    assert_eq!(single.shards().len(), 1);
    let expected = content(&single);
    let mut counts = Vec::new();
    for limit in [1, 400, 1_000, 1 << 20] {
        let options = MergeOptions {
            mode: WriteMode::Replace { durable: false },
            shard_size: Some(limit),
            ..MergeOptions::default()
        };
        let merged = family.merge_with(recipe, &options);
        assert!(content(&merged) == expected, "shards of {limit} bytes");
        let folder = std::fs::read_dir(family.output()).unwrap();
        let files: Vec<String> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let shards = files.iter().filter(|name| name.ends_with(".safetensors")).count();
        assert_eq!(shards, merged.shards().len());
        assert_eq!(files.contains(&"model.safetensors.index.json".to_owned()), shards > 1, "{files:?}");
        counts.push(shards);
    }
    // A tensor that is larger than the limit has a file of its own.
    assert_eq!((counts[0], counts[3]), (expected.len(), 1));
    assert!(counts.is_sorted_by(|more, fewer| more >= fewer) && counts[1] > counts[2], "{counts:?}");
}

#[test]
fn slices_have_bases_and_gradients_of_their_own() {
    let family = pair(3);
    let merged = family.merge(
        "merge_method: slerp\nbase_model: a\nparameters: {t: [0, 1]}\nslices:\n\
         - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]\n\
         - base_model: b\n  sources: [{model: a, layer_range: [1, 3]}, {model: b, layer_range: [1, 3]}]\n",
    );
    for (tensor, model) in [
        // All that stands before and after the layers is where a gradient starts: at the base of its slice.
        ("model.embed_tokens.weight", "a"),
        ("model.norm.weight", "b"),
        ("lm_head.weight", "b"),
        // The only layer of a slice is where a gradient ends.
        ("model.layers.0.mlp.weight", "b"),
        ("model.layers.0.norm.weight", "b"),
        ("model.layers.1.mlp.weight", "b"),
        ("model.layers.2.mlp.weight", "a"),
        ("model.layers.2.norm.weight", "a"),
    ] {
        assert!(family.is(&merged, tensor, model), "{tensor} is not that of {model}");
    }
}

#[test]
fn where_no_filter_of_a_scope_matches_the_next_scope_decides() {
    let family = pair(2);
    let merged = family.merge(
        "merge_method: slerp\nbase_model: a\n\
         parameters: {t: [{filter: norm, value: 0}, {filter: layers.1.norm, value: 1}, {filter: mlp, value: 0}, {value: 1}]}\n\
         slices:\n\
         - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n  \
           parameters: {t: [{filter: mlp, value: [0, 1]}]}\n",
    );
    for (tensor, model) in [
        ("model.layers.0.mlp.weight", "a"),
        ("model.layers.1.mlp.weight", "b"),
        // The first that matches wins, not the longest.
        ("model.layers.1.norm.weight", "a"),
        ("model.norm.weight", "a"),
        ("model.embed_tokens.weight", "b"),
        ("lm_head.weight", "b"),
    ] {
        assert!(family.is(&merged, tensor, model), "{tensor} is not that of {model}");
    }
}
