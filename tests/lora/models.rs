//! Small models, adapters for them, and the checkpoints that these make.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use evomerge::checkpoint::{Checkpoint, ContentIds};
use evomerge::merge::{
    BaseUse, InputCount, MergeOptions, Merger, MergerOptions, MethodSpecification, ParameterScope, WriteMode,
};
use evomerge::recipe::{MaskKind, ModelReference, Recipe};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// A tensor to be written: numbers are rounded to the dtype.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Tensor {
    /// Numbers of both signs below `size` that follow from the seed.
    pub fn new(name: &str, dtype: Dtype, shape: &[usize], size: f32, seed: u32) -> Self {
        let value = |index: usize| {
            let mixed = (index as u32 ^ seed.wrapping_mul(0x9E37_79B9)).wrapping_mul(0x85EB_CA6B);
            size * (((mixed ^ mixed >> 13).wrapping_mul(0xC2B2_AE35) >> 8) as f32 / 8_388_608.0 - 1.0)
        };
        let values = (0..shape.iter().product()).map(value).map(|value| match dtype {
            Dtype::BF16 => bf16::from_f32(value).to_f32(),
            Dtype::F16 => f16::from_f32(value).to_f32(),
            _ => value,
        });
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), values: values.collect() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let bytes = |value: &f32| match self.dtype {
            Dtype::BF16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
            Dtype::F64 => f64::from(*value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        self.values.iter().flat_map(bytes).collect()
    }

    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }
}

pub fn write_tensors(path: &Path, tensors: &[Tensor]) {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(Tensor::bytes).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|(tensor, bytes)| (&tensor.name, TensorView::new(tensor.dtype, tensor.shape.clone(), bytes).unwrap()));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Embedding, two layers with a square and an oblong matrix and a bias, a convolution, norm and head.
pub fn model(dtype: Dtype, seed: u32) -> Vec<Tensor> {
    let shapes: [(&str, &[usize]); 9] = [
        ("model.embed_tokens.weight", &[10, 6]),
        ("model.layers.0.self_attn.q_proj.weight", &[6, 6]),
        ("model.layers.0.mlp.up_proj.weight", &[700, 6]),
        ("model.layers.0.mlp.up_proj.bias", &[700]),
        ("model.layers.1.self_attn.q_proj.weight", &[6, 6]),
        ("model.layers.1.mlp.up_proj.weight", &[9, 6]),
        ("model.layers.1.mlp.up_proj.bias", &[9]),
        ("model.conv.weight", &[4, 3, 2, 2]),
        ("lm_head.weight", &[10, 6]),
    ];
    (seed..).zip(shapes).map(|(seed, (name, shape))| Tensor::new(name, dtype, shape, 1.0, seed)).collect()
}

pub fn write_model(path: &Path, tensors: &[Tensor]) {
    write_tensors(&path.join("model.safetensors"), tensors);
    std::fs::write(path.join("config.json"), r#"{"tie_word_embeddings": false, "vocab_size": 10}"#).unwrap();
    std::fs::write(path.join("tokenizer.json"), "{}").unwrap();
}

pub fn write_adapter(path: &Path, tensors: &[Tensor], change: Value) {
    let mut config = json!({
        "peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj", "conv", "embed_tokens"],
        "bias": "none", "fan_in_fan_out": false, "use_rslora": false, "use_dora": false, "modules_to_save": null,
        "base_model_name_or_path": "org/base", "init_lora_weights": true, "lora_dropout": 0.05, "task_type": "CAUSAL_LM",
    });
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    write_tensors(&path.join("adapter_model.safetensors"), tensors);
    std::fs::write(path.join("adapter_config.json"), config.to_string()).unwrap();
}

pub const UP: &str = "model.layers.0.mlp.up_proj";
pub const QUERY: &str = "model.layers.1.self_attn.q_proj";

/// Both factors of a linear layer of shape (outputs, inputs).
pub fn factors(module: &str, [outputs, inputs]: [usize; 2], rank: usize, dtype: Dtype, seed: u32) -> [Tensor; 2] {
    let name = |factor: &str| format!("base_model.model.{module}.{factor}.weight");
    [
        Tensor::new(&name("lora_A"), dtype, &[rank, inputs], 0.7, seed),
        Tensor::new(&name("lora_B"), dtype, &[outputs, rank], 0.4, seed + 1),
    ]
}

pub fn adapter(dtype: Dtype, seed: u32) -> Vec<Tensor> {
    [factors(UP, [700, 6], 3, dtype, seed), factors(QUERY, [6, 6], 3, dtype, seed + 2)].concat()
}

/// `element(row, column)` is added to a matrix; `exact`: in float64, rounded once, else with the arithmetic of the
/// merge.
pub fn bake(tensors: &mut [Tensor], name: &str, pair: &[Tensor; 2], scale: f32, transposed: bool, exact: bool) {
    let tensor = tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
    let [down, up] = pair;
    let (rank, inputs) = (down.shape[0], down.values.len() / down.shape[0]);
    let columns = tensor.values.len() / tensor.shape[0];
    for (element, value) in tensor.values.iter_mut().enumerate() {
        let (mut output, mut input) = (element / columns, element % columns);
        if transposed {
            std::mem::swap(&mut output, &mut input);
        }
        let pair = |k: usize| (up.values[output * rank + k], down.values[k * inputs + input]);
        *value = if exact {
            let sum: f64 = (0..rank).map(pair).map(|(up, down)| f64::from(up) * f64::from(down)).sum();
            (f64::from(*value) + f64::from(scale) * sum) as f32
        } else {
            *value + scale * (0..rank).map(pair).fold(0.0, |sum, (up, down)| sum + up * down)
        };
    }
}

/// The model that the adapter makes of the base, as a float32 checkpoint.
pub fn baked(base: &[Tensor], adapter: &[Tensor], scale: f32, exact: bool) -> Vec<Tensor> {
    let mut tensors: Vec<Tensor> = base.iter().cloned().map(|tensor| Tensor { dtype: Dtype::F32, ..tensor }).collect();
    for (module, pair) in [(UP, &adapter[..2]), (QUERY, &adapter[2..])] {
        bake(&mut tensors, &format!("{module}.weight"), &pair.to_vec().try_into().ok().unwrap(), scale, false, exact);
    }
    tensors
}

/// A recipe for any method from `base` and two sources (or as many as the method takes).
pub fn recipe(method: &MethodSpecification) -> Recipe {
    let count = match method.inputs {
        InputCount::Exactly(1) => 1,
        _ => 2,
    };
    let parameters = |scope: ParameterScope, source: usize| {
        let mut values = serde_json::Map::new();
        for parameter in method.parameters.iter().filter(|parameter| parameter.scope == scope) {
            match parameter.name {
                "weight" => values.insert("weight".into(), json!([0.7, 0.4][source])),
                "density" => values.insert("density".into(), json!([0.6, 0.5][source])),
                name if parameter.required() => values.insert(name.into(), json!(0.4)),
                _ => None,
            };
        }
        Value::Object(values)
    };
    let mut models: Vec<Value> = ["one", "two"]
        .iter()
        .enumerate()
        .take(count)
        .map(|(index, name)| json!({ "model": name, "parameters": parameters(ParameterScope::Source, index) }))
        .collect();
    let mut document = json!({ "merge_method": method.name, "dtype": "float32" });
    match method.base {
        BaseUse::None => {}
        BaseUse::Input => document["base_model"] = json!("one"),
        BaseUse::Required | BaseUse::Optional => document["base_model"] = json!("base"),
    }
    // One model and its base.
    if method.base == BaseUse::Input && count == 1 {
        models.push(json!({ "model": "two" }));
    }
    document["parameters"] = parameters(ParameterScope::Tensor, 0);
    document["models"] = json!(models);
    let mut recipe =
        Recipe::from_mergekit_yaml(&document.to_string()).unwrap_or_else(|error| panic!("{document}: {error}"));
    // Native masks depend on contents, which differ between an adapter and a checkpoint.
    recipe.masks.kind = MaskKind::Mergekit;
    recipe
}

/// A base with two adapters, and the checkpoints that they make.
pub struct Family {
    pub folder: tempfile::TempDir,
}

impl Family {
    pub fn new(base: Dtype, factors: Dtype) -> Self {
        let family = Self { folder: tempfile::tempdir().unwrap() };
        let tensors = model(base, 1);
        write_model(&family.path("base"), &tensors);
        for (name, seed) in [("one", 100), ("two", 200)] {
            let adapter = adapter(factors, seed);
            write_adapter(&family.path(name), &adapter, json!({}));
            write_model(&family.path(&format!("baked-{name}")), &baked(&tensors, &adapter, 2.0, false));
            write_model(&family.path(&format!("exact-{name}")), &baked(&tensors, &adapter, 2.0, true));
        }
        family
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A merger whose `one` and `two` are the adapters over the base, or the checkpoints called PREFIX-one and
    /// PREFIX-two.
    pub fn merger(&self, prefix: Option<&str>, options: MergerOptions) -> Merger {
        let open = |name: &str| {
            let checkpoint = match (name, prefix) {
                ("base", _) => Checkpoint::open(&self.path("base")),
                (name, Some(prefix)) => Checkpoint::open(&self.path(&format!("{prefix}-{name}"))),
                (name, None) => Checkpoint::open_with_adapter(&self.path("base"), &self.path(name)),
            };
            (ModelReference::new(name), Arc::new(checkpoint.unwrap()))
        };
        Merger::new(["base", "one", "two"].map(open), ContentIds::in_memory(), options).unwrap()
    }

    pub fn merge(&self, merger: &Merger, recipe: &Recipe) -> Vec<u8> {
        let out = self.path("out");
        merger
            .materialize(
                recipe,
                &out,
                &MergeOptions { mode: WriteMode::Replace { durable: false }, ..MergeOptions::default() },
            )
            .unwrap();
        std::fs::read(out.join("model.safetensors")).unwrap()
    }
}

/// All numbers of a merged checkpoint.
pub fn numbers(path: &Path) -> Vec<f32> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let bytes = checkpoint.tensors().keys().flat_map(|name| checkpoint.bytes(name).unwrap().to_vec());
    bytes.collect::<Vec<u8>>().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}
