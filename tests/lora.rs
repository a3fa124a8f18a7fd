//! LoRA adapters as sources: merges with them are merges of the models that they make, adapters that do not fit are refused,
//! and a search takes them from start to export.

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use evomerge::checkpoint::{Checkpoint, ContentIds};
use evomerge::merge::{
    BaseUse, InputCount, Isa, MergeOptions, Merger, MergerOptions, MethodSpecification, ParameterScope, methods,
};
use evomerge::recipe::{MaskKind, ModelReference, Recipe};
use half::{bf16, f16};
use runs::{Scratch, cell, stderr};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// A tensor to be written: numbers are rounded to the dtype.
#[derive(Clone)]
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Tensor {
    /// Numbers of both signs below `size` that follow from the seed.
    fn new(name: &str, dtype: Dtype, shape: &[usize], size: f32, seed: u32) -> Self {
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

    fn bytes(&self) -> Vec<u8> {
        let bytes = |value: &f32| match self.dtype {
            Dtype::BF16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
            Dtype::F64 => f64::from(*value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        self.values.iter().flat_map(bytes).collect()
    }

    fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }
}

fn write_tensors(path: &Path, tensors: &[Tensor]) {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(Tensor::bytes).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|(tensor, bytes)| (&tensor.name, TensorView::new(tensor.dtype, tensor.shape.clone(), bytes).unwrap()));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Embedding, two layers with a square and an oblong matrix and a bias, a convolution, norm and head.
fn model(dtype: Dtype, seed: u32) -> Vec<Tensor> {
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

fn write_model(path: &Path, tensors: &[Tensor]) {
    write_tensors(&path.join("model.safetensors"), tensors);
    std::fs::write(path.join("config.json"), r#"{"tie_word_embeddings": false, "vocab_size": 10}"#).unwrap();
    std::fs::write(path.join("tokenizer.json"), "{}").unwrap();
}

fn write_adapter(path: &Path, tensors: &[Tensor], change: Value) {
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

const UP: &str = "model.layers.0.mlp.up_proj";
const QUERY: &str = "model.layers.1.self_attn.q_proj";

/// Both factors of a linear layer of shape (outputs, inputs).
fn factors(module: &str, [outputs, inputs]: [usize; 2], rank: usize, dtype: Dtype, seed: u32) -> [Tensor; 2] {
    let name = |factor: &str| format!("base_model.model.{module}.{factor}.weight");
    [
        Tensor::new(&name("lora_A"), dtype, &[rank, inputs], 0.7, seed),
        Tensor::new(&name("lora_B"), dtype, &[outputs, rank], 0.4, seed + 1),
    ]
}

fn adapter(dtype: Dtype, seed: u32) -> Vec<Tensor> {
    [factors(UP, [700, 6], 3, dtype, seed), factors(QUERY, [6, 6], 3, dtype, seed + 2)].concat()
}

/// `element(row, column)` is added to a matrix; `exact`: in float64, rounded once, else with the arithmetic of the merge.
fn bake(tensors: &mut [Tensor], name: &str, pair: &[Tensor; 2], scale: f32, transposed: bool, exact: bool) {
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
fn baked(base: &[Tensor], adapter: &[Tensor], scale: f32, exact: bool) -> Vec<Tensor> {
    let mut tensors: Vec<Tensor> = base.iter().cloned().map(|tensor| Tensor { dtype: Dtype::F32, ..tensor }).collect();
    for (module, pair) in [(UP, &adapter[..2]), (QUERY, &adapter[2..])] {
        bake(&mut tensors, &format!("{module}.weight"), &pair.to_vec().try_into().ok().unwrap(), scale, false, exact);
    }
    tensors
}

/// A recipe for any method from `base` and two sources (or as many as the method takes).
fn recipe(method: &MethodSpecification) -> Recipe {
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
struct Family {
    folder: tempfile::TempDir,
}

impl Family {
    fn new(base: Dtype, factors: Dtype) -> Self {
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

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A merger whose `one` and `two` are the adapters over the base, or the checkpoints called PREFIX-one and PREFIX-two.
    fn merger(&self, prefix: Option<&str>, options: MergerOptions) -> Merger {
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

    fn merge(&self, merger: &Merger, recipe: &Recipe) -> Vec<u8> {
        let out = self.path("out");
        merger.materialize(recipe, &out, &MergeOptions { replace: true, ..MergeOptions::default() }).unwrap();
        std::fs::read(out.join("model.safetensors")).unwrap()
    }
}

/// All numbers of a merged checkpoint.
fn numbers(path: &Path) -> Vec<f32> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let bytes = checkpoint.tensors().keys().flat_map(|name| checkpoint.bytes(name).unwrap().to_vec());
    bytes.collect::<Vec<u8>>().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn every_method_merges_an_adapter_as_the_checkpoint_that_it_makes() {
    for (base, factors) in [(Dtype::F32, Dtype::F32), (Dtype::BF16, Dtype::F16)] {
        let family = Family::new(base, factors);
        let mut mergers = vec![family.merger(None, MergerOptions::default())];
        let threads = NonZeroUsize::new(3);
        mergers.extend(
            Isa::available()
                .into_iter()
                .map(|isa| family.merger(None, MergerOptions { threads, isa: Some(isa), ..Default::default() })),
        );
        let whole = family.merger(Some("baked"), MergerOptions::default());
        for method in methods() {
            let recipe = recipe(method);
            let expected = family.merge(&whole, &recipe);
            for merger in &mergers {
                assert!(family.merge(merger, &recipe) == expected, "{} of {base}", method.name);
            }
        }
    }
}

#[test]
fn a_merge_is_near_that_of_exactly_merged_adapters() {
    let family = Family::new(Dtype::F32, Dtype::F32);
    let (lora, exact) =
        (family.merger(None, MergerOptions::default()), family.merger(Some("exact"), MergerOptions::default()));
    for name in ["linear", "slerp", "task_arithmetic", "nuslerp", "model_stock"] {
        let method = methods().iter().copied().find(|method| method.name == name).unwrap();
        let recipe = recipe(method);
        family.merge(&exact, &recipe);
        let expected = numbers(&family.path("out"));
        family.merge(&lora, &recipe);
        let found = numbers(&family.path("out"));
        assert!(found.len() == expected.len() && found.len() > 4000);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-5, "{name}: {found} {expected}");
        }
    }
}

#[test]
fn native_masks_know_the_adapter_and_not_the_threads() {
    let family = Family::new(Dtype::BF16, Dtype::F32);
    let method = methods().iter().copied().find(|method| method.name == "dare_ties").unwrap();
    let mut recipe = recipe(method);
    recipe.masks.kind = MaskKind::Native;
    let merge = |threads| {
        let options = MergerOptions { threads: NonZeroUsize::new(threads), ..MergerOptions::default() };
        family.merge(&family.merger(None, options), &recipe)
    };
    let first = merge(1);
    assert!(merge(3) == first);
    let id = || {
        let model = Checkpoint::open_with_adapter(&family.path("base"), &family.path("one")).unwrap();
        model.content_id(&ContentIds::in_memory()).unwrap()
    };
    let before = id();
    let adapter = adapter(Dtype::F32, 100);
    write_adapter(
        &family.path("one"),
        &adapter,
        json!({ "base_model_name_or_path": "elsewhere", "lora_dropout": 0.5 }),
    );
    assert_eq!(id(), before, "what changes no weight is no content");
    write_adapter(&family.path("one"), &adapter, json!({ "lora_alpha": 12 }));
    assert_ne!(id(), before);
    write_adapter(&family.path("one"), &self::adapter(Dtype::F32, 101), json!({}));
    assert_ne!(id(), before);
    write_adapter(&family.path("one"), &adapter, json!({}));
    write_model(&family.path("base"), &model(Dtype::BF16, 2));
    assert_ne!(id(), before);
}

/// The tensors of `base` with the adapter, in float32, from the merge of one model.
fn applied(folder: &Path, base: &Path, adapter: &Path) -> Vec<Tensor> {
    let recipe = "merge_method: linear\nmodels: [{model: m, parameters: {weight: 1}}]\ndtype: float32\n";
    let model = Arc::new(Checkpoint::open_with_adapter(base, adapter).unwrap());
    let merger =
        Merger::new([(ModelReference::new("m"), model)], ContentIds::in_memory(), MergerOptions::default()).unwrap();
    let (out, recipe) = (folder.join("applied"), Recipe::from_mergekit_yaml(recipe).unwrap());
    merger.materialize(&recipe, &out, &MergeOptions { replace: true, ..MergeOptions::default() }).unwrap();
    let merged = Checkpoint::open(&out).unwrap();
    let numbers =
        |name: &str| merged.bytes(name).unwrap().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    merged
        .tensors()
        .values()
        .map(|info| Tensor {
            name: info.name.clone(),
            dtype: Dtype::F32,
            shape: info.shape.clone(),
            values: numbers(&info.name).collect(),
        })
        .collect()
}

#[test]
fn all_layouts_of_peft_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let (base_path, adapter_path) = (folder.path().join("base"), folder.path().join("adapter"));
    let base = model(Dtype::F32, 1);
    write_model(&base_path, &base);
    let conv: [Tensor; 2] = [
        Tensor::new("base_model.model.model.conv.lora_A.weight", Dtype::F32, &[3, 3, 2, 2], 0.5, 40),
        Tensor::new("base_model.model.model.conv.lora_B.weight", Dtype::F32, &[4, 3, 1, 1], 0.5, 41),
    ];
    let embedding: [Tensor; 2] = [
        Tensor::new("base_model.model.model.embed_tokens.lora_embedding_A", Dtype::F32, &[3, 10], 0.5, 42),
        Tensor::new("base_model.model.model.embed_tokens.lora_embedding_B", Dtype::F32, &[6, 3], 0.5, 43),
    ];
    let query = factors(QUERY, [6, 6], 3, Dtype::F32, 44);
    let small = factors(QUERY, [6, 6], 2, Dtype::F32, 46);
    let up = factors(UP, [700, 6], 3, Dtype::F32, 48);
    // As a layer that keeps (inputs, outputs) would have it.
    let turned = factors(UP, [6, 700], 3, Dtype::F32, 50);
    let head = Tensor::new("base_model.model.lm_head.weight", Dtype::F32, &[10, 6], 1.0, 52);
    let bias = Tensor::new("base_model.model.model.layers.0.mlp.up_proj.base_layer.bias", Dtype::F32, &[700], 1.0, 53);
    let whole = |tensors: &mut Vec<Tensor>, replacement: &Tensor, name: &str| {
        tensors.retain(|tensor| tensor.name != name);
        tensors.push(replacement.clone().named(name));
    };
    type Expect<'a> = Box<dyn Fn(&mut Vec<Tensor>) + 'a>;
    let change = |name: &'static str, pair: [Tensor; 2], scale: f32, transposed: bool| -> Expect<'_> {
        Box::new(move |tensors: &mut Vec<Tensor>| bake(tensors, name, &pair, scale, transposed, true))
    };
    let (query_weight, up_weight) = ("model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight");
    let rename = |pair: &[Tensor; 2], from: &str, to: &str| {
        pair.clone().map(|tensor| {
            let name = tensor.name.replace(from, to);
            tensor.named(&name)
        })
    };
    let root3 = (6.0 / 3.0_f64.sqrt()) as f32;
    let cases: Vec<(&str, Vec<Tensor>, Value, Expect<'_>)> = vec![
        ("linear", query.to_vec(), json!({}), change(query_weight, query.clone(), 2.0, false)),
        (
            "float64 factors",
            query.clone().map(|tensor| Tensor { dtype: Dtype::F64, ..tensor }).to_vec(),
            json!({}),
            change(query_weight, query.clone(), 2.0, false),
        ),
        (
            "rank stabilized",
            query.to_vec(),
            json!({"use_rslora": true}),
            change(query_weight, query.clone(), root3, false),
        ),
        (
            "rank pattern",
            [small.to_vec(), up.to_vec()].concat(),
            json!({"rank_pattern": {"q_proj": 2}}),
            Box::new(|tensors| {
                bake(tensors, query_weight, &small, 3.0, false, true);
                bake(tensors, up_weight, &up, 2.0, false, true);
            }),
        ),
        (
            "alpha pattern",
            query.to_vec(),
            json!({"alpha_pattern": {"layers.1.self_attn.q_proj": 1.5}}),
            change(query_weight, query.clone(), 0.5, false),
        ),
        (
            "square, turned",
            query.to_vec(),
            json!({"fan_in_fan_out": true}),
            change(query_weight, query.clone(), 2.0, true),
        ),
        (
            "oblong, turned",
            turned.to_vec(),
            json!({"fan_in_fan_out": true}),
            change(up_weight, turned.clone(), 2.0, true),
        ),
        (
            "oblong, not turned after all",
            up.to_vec(),
            json!({"fan_in_fan_out": true}),
            change(up_weight, up.clone(), 2.0, false),
        ),
        (
            "square, beside an oblong one that is not turned",
            [query.to_vec(), up.to_vec()].concat(),
            json!({"fan_in_fan_out": true}),
            Box::new(|tensors| {
                bake(tensors, query_weight, &query, 2.0, false, true);
                bake(tensors, up_weight, &up, 2.0, false, true);
            }),
        ),
        ("convolution", conv.to_vec(), json!({}), change("model.conv.weight", conv.clone(), 2.0, false)),
        ("embedding", embedding.to_vec(), json!({}), change("model.embed_tokens.weight", embedding.clone(), 2.0, true)),
        (
            "adapter names",
            rename(&query, "lora_A.", "lora_A.default.")
                .map(|tensor| {
                    let name = tensor.name.replace("lora_B.", "lora_B.default.");
                    tensor.named(&name)
                })
                .to_vec(),
            json!({}),
            change(query_weight, query.clone(), 2.0, false),
        ),
        (
            "another wrapper",
            rename(&query, "base_model.model.model.", "base_model.model.").to_vec(),
            json!({}),
            change(query_weight, query.clone(), 2.0, false),
        ),
        (
            "whole tensors",
            [query.to_vec(), vec![head.clone(), bias.clone()]].concat(),
            json!({"modules_to_save": ["lm_head"], "bias": "lora_only"}),
            Box::new(|tensors| {
                bake(tensors, query_weight, &query, 2.0, false, true);
                whole(tensors, &head, "lm_head.weight");
                whole(tensors, &bias, "model.layers.0.mlp.up_proj.bias");
            }),
        ),
        (
            "a whole tensor and factors on top",
            [
                up.to_vec(),
                vec![Tensor::new(
                    "base_model.model.model.layers.0.mlp.up_proj.base_layer.weight",
                    Dtype::F32,
                    &[700, 6],
                    1.0,
                    54,
                )],
            ]
            .concat(),
            json!({}),
            Box::new(|tensors| {
                whole(tensors, &Tensor::new("x", Dtype::F32, &[700, 6], 1.0, 54), up_weight);
                bake(tensors, up_weight, &up, 2.0, false, true);
            }),
        ),
    ];
    for (case, tensors, config, expect) in cases {
        write_adapter(&adapter_path, &tensors, config);
        let mut expected = base.clone();
        expect(&mut expected);
        expected.sort_by(|left, right| left.name.cmp(&right.name));
        let found = applied(folder.path(), &base_path, &adapter_path);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((&found.name, &found.shape), (&expected.name, &expected.shape), "{case}");
            for (found, expected) in found.values.iter().zip(&expected.values) {
                assert!((found - expected).abs() <= 2e-6, "{case}: {found} {expected}");
            }
        }
    }
}

#[test]
fn what_is_written_keeps_the_types_of_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let (base, adapter) = (folder.path().join("base"), folder.path().join("adapter"));
    write_model(&base, &model(Dtype::BF16, 1));
    let head = Tensor::new("base_model.model.lm_head.weight", Dtype::F32, &[10, 6], 1.0, 52);
    write_adapter(&adapter, &[factors(QUERY, [6, 6], 3, Dtype::F32, 44).to_vec(), vec![head]].concat(), json!({}));
    let model = Checkpoint::open_with_adapter(&base, &adapter).unwrap();
    assert_eq!(model.dtype().map(|dtype| dtype.name()), Some("bfloat16"));
    let merger =
        Merger::new([(ModelReference::new("m"), Arc::new(model))], ContentIds::in_memory(), MergerOptions::default())
            .unwrap();
    let recipe =
        Recipe::from_mergekit_yaml("merge_method: linear\nmodels: [{model: m, parameters: {weight: 1}}]\n").unwrap();
    let out = folder.path().join("out");
    merger.materialize(&recipe, &out, &MergeOptions::default()).unwrap();
    assert!(Checkpoint::open(&out).unwrap().tensors().values().all(|info| info.dtype == Dtype::BF16));
    assert!(out.join("tokenizer.json").is_file());
}

#[test]
fn adapters_that_do_not_fit_are_refused_with_file_and_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let (base, path) = (folder.path().join("base"), folder.path().join("adapter"));
    write_model(&base, &model(Dtype::F32, 1));
    let query = factors(QUERY, [6, 6], 3, Dtype::F32, 44);
    let renamed = |from: &str, to: &str| {
        query
            .clone()
            .map(|tensor| {
                let name = tensor.name.replace(from, to);
                tensor.named(&name)
            })
            .to_vec()
    };
    let extra = |tensor: Tensor| [query.to_vec(), vec![tensor]].concat();
    let mut infinite = query.to_vec();
    infinite[1].values[4] = f32::INFINITY;
    let cases: Vec<(Vec<Tensor>, Value, Vec<&str>)> = vec![
        (
            renamed("layers.1", "layers.7"),
            json!({}),
            vec![
                "`base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight`",
                "no tensor `model.layers.7.self_attn.q_proj.weight`",
                "`org/base`",
                "base model?",
            ],
        ),
        (
            factors(QUERY, [6, 8], 3, Dtype::F32, 1).to_vec(),
            json!({}),
            vec!["[3, 8]", "[6, 3]", "[6, 6]", "do not fit"],
        ),
        (query.to_vec(), json!({"r": 8}), vec!["lora_A.weight", "expected rank 8", "found 3"]),
        (query.to_vec(), json!({"rank_pattern": {"q_proj": 4}}), vec!["expected rank 4", "rank_pattern"]),
        (query[..1].to_vec(), json!({}), vec!["lora_A.weight", "stands alone"]),
        (query.to_vec(), json!({"target_modules": ["k_proj"]}), vec!["target_modules", "`k_proj`"]),
        (
            extra(Tensor::new(
                "base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector",
                Dtype::F32,
                &[6],
                1.0,
                1,
            )),
            json!({}),
            vec!["lora_magnitude_vector", "DoRA", "merge_and_unload"],
        ),
        (
            extra(Tensor::new("base_model.model.lm_head.weight", Dtype::F32, &[12, 6], 1.0, 1)),
            json!({}),
            vec!["`base_model.model.lm_head.weight`", "[12, 6]", "vocabulary was resized"],
        ),
        (
            extra(Tensor::new("base_model.model.score.weight", Dtype::F32, &[2, 6], 1.0, 1)),
            json!({}),
            vec!["no tensor `score.weight`"],
        ),
        (
            extra(query[0].clone().named("base_model.model.model.layers.1.self_attn.q_proj.lora_A.other.weight")),
            json!({}),
            vec!["same module"],
        ),
        (infinite, json!({}), vec!["lora_B.weight", "element 4 is inf"]),
        (Vec::new(), json!({}), vec!["holds no tensor"]),
        (query.to_vec(), json!({"use_dora": true}), vec!["adapter_config.json", "`use_dora`"]),
        (query.to_vec(), json!({"peft_type": "LOKR"}), vec!["adapter_config.json", "`LOKR`"]),
    ];
    for (tensors, config, words) in cases {
        write_adapter(&path, &tensors, config);
        let error = Checkpoint::open_with_adapter(&base, &path).expect_err(&words.join(" "));
        assert_eq!(error.exit_code(), evomerge::exit::ExitCode::BadData);
        let text = error.to_string();
        assert!(text.contains("adapter") && words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    }
    let refused = |word: &str| {
        let text = Checkpoint::open_with_adapter(&base, &path).unwrap_err().to_string();
        assert!(text.contains(word), "{word}: {text}");
    };
    write_adapter(&path, &query, json!({}));
    std::fs::rename(path.join("adapter_model.safetensors"), path.join("adapter_model.bin")).unwrap();
    refused("safe_serialization=True");
    std::fs::remove_file(path.join("adapter_model.bin")).unwrap();
    refused("no adapter_model.safetensors");
    std::fs::write(path.join("adapter_config.json"), "[]").unwrap();
    refused("JSON object");
    std::fs::remove_file(path.join("adapter_config.json")).unwrap();
    refused("no adapter_config.json");
    let text = Checkpoint::open_with_adapter(&base, &base).unwrap_err().to_string();
    assert!(text.contains("a whole model"), "{text}");
    // A head of its own where the model ties it.
    let tied: Vec<Tensor> = model(Dtype::F32, 1).into_iter().filter(|tensor| tensor.name != "lm_head.weight").collect();
    write_model(&base, &tied);
    write_adapter(
        &path,
        &extra(Tensor::new("base_model.model.lm_head.weight", Dtype::F32, &[10, 6], 1.0, 1)),
        json!({}),
    );
    refused("untie it first");
}

#[test]
fn damaged_adapters_are_errors_and_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let (base, path) = (folder.path().join("base"), folder.path().join("adapter"));
    write_model(&base, &model(Dtype::F32, 1));
    write_adapter(&path, &adapter(Dtype::F16, 5), json!({ "rank_pattern": { "q_proj": 3 }, "alpha_pattern": {} }));
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let file = path.join(name);
        let whole = std::fs::read(&file).unwrap();
        let length = whole.len().min(900);
        for step in 0..length {
            let mut damaged = whole.clone();
            match step % 4 {
                0 => damaged.truncate(step),
                1 => damaged[step] = b'9',
                2 => damaged[step] ^= 0x80,
                _ => drop(damaged.splice(step..(step + 7).min(length), *b"[]")),
            }
            std::fs::write(&file, &damaged).unwrap();
            if let Err(error) = Checkpoint::open_with_adapter(&base, &path) {
                assert_eq!(error.exit_code(), evomerge::exit::ExitCode::BadData, "{error}");
            }
        }
        std::fs::write(&file, &whole).unwrap();
    }
    Checkpoint::open_with_adapter(&base, &path).unwrap();
}

#[test]
fn recipes_name_adapters_in_text_and_in_tables() {
    let family = Family::new(Dtype::BF16, Dtype::F32);
    let scratch = Scratch { folder: family.folder };
    let merge = |file: &str, recipe: &str| {
        std::fs::write(scratch.path(file), recipe).unwrap();
        let output = scratch.evomerge(&["merge", file, "--out", "out", "--force"]);
        (
            output.status.code(),
            stderr(&output),
            std::fs::read(scratch.path("out/model.safetensors")).unwrap_or_default(),
        )
    };
    let yaml = |one: &str| {
        format!(
            "merge_method: ties\nbase_model: base\ndtype: float32\nmodels:\n- model: {one}\n  parameters: {{weight: 0.7, density: 0.5}}\n"
        )
    };
    let expected = merge("baked.yml", &yaml("baked-one"));
    assert_eq!(expected.0, Some(0), "{}", expected.1);
    let toml = "merge_method = 'ties'\nbase_model = 'base'\ndtype = 'float32'\n[[models]]\nmodel = 'base+one'\n\
                parameters = { weight = 0.7, density = 0.5 }\n";
    std::fs::create_dir(scratch.path("c++")).unwrap();
    std::os::unix::fs::symlink(scratch.path("one"), scratch.path("c++/one")).unwrap();
    for (file, recipe) in [
        ("text.yml", yaml("base+one")),
        ("table.yml", yaml("{model: {path: base}, lora: {path: ./c++/one}}")),
        ("text.toml", toml.to_owned()),
        ("table.toml", toml.replace("'base+one'", "{ model = { path = 'base' }, lora = { path = 'c++/one' } }")),
    ] {
        let found = merge(file, &recipe);
        assert_eq!(found.0, Some(0), "{file}: {}", found.1);
        assert!(found.2 == expected.2, "{file}");
        let config = std::fs::read_to_string(scratch.path("out/config.json")).unwrap();
        assert!(config.contains("vocab_size") && scratch.path("out/tokenizer.json").is_file());
    }
    for (recipe, words) in [
        (yaml("base+base+one"), "one `+`"),
        (yaml("base+nowhere/at/all"), "nowhere/at/all"),
        (yaml("one"), "`BASE+ADAPTER`"),
        (yaml("c++/one"), "one `+`"),
        (yaml("c+one"), "c"),
    ] {
        let (code, text, _) = merge("bad.yml", &recipe);
        assert_eq!(code, Some(65), "{text}");
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// A small adapter over the tiny zoo's base.
#[cfg(feature = "native")]
fn zoo_adapter(path: &Path, seed: u32, config: Value) {
    let tensors: Vec<Tensor> = (0..4)
        .flat_map(|layer| {
            factors(&format!("model.layers.{layer}.self_attn.q_proj"), [128, 128], 2, Dtype::F32, seed + 10 * layer)
        })
        .map(|mut tensor| {
            tensor.values.iter_mut().for_each(|value| *value *= 0.2);
            tensor
        })
        .collect();
    let mut all = json!({ "r": 2, "lora_alpha": 2 });
    for (key, value) in config.as_object().unwrap() {
        all[key] = value.clone();
    }
    write_adapter(path, &tensors, all);
}

#[test]
#[cfg(feature = "native")]
fn a_search_over_adapters_runs_resumes_and_exports() {
    let scratch = Scratch::new();
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama");
    std::os::unix::fs::symlink(zoo.join("base"), scratch.path("base")).unwrap();
    for (name, seed) in [("fr", 1), ("de", 2), ("it", 3)] {
        zoo_adapter(&scratch.path("adapters").join(name), seed, json!({}));
    }
    let run_file = scratch.path("run.toml");
    let text = format!(
        "name = \"lora\"\nseed = 3\n[models]\nbase = \"base\"\nsources = [\"base+adapters/fr\", \"adapters/de\", \"adapters/it\"]\n\
         [space]\nmethod = [\"dare_ties\", \"task_arithmetic\"]\n[space.genes]\nweight = {{ low = 0.0, high = 1.0, per = [\"model\"] }}\n\
         [strategy]\nkind = \"genetic\"\n[budget]\nevaluations = 14\n[evaluator]\nkind = \"native\"\nmax_new_tokens = 8\n\
         [[tasks]]\nname = \"add\"\ndata = {:?}\nlimit = 12\n",
        zoo.join("data/add.val.jsonl")
    );
    std::fs::write(&run_file, &text).unwrap();
    let run = run_file.to_str().unwrap();
    let checked = scratch.evomerge(&["check", run, "--json"]);
    assert!(checked.status.success(), "{}", stderr(&checked));
    let findings: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let cosines: Vec<f64> =
        findings["conflicts"].as_array().unwrap().iter().map(|c| c["cosine"].as_f64().unwrap()).collect();
    // Were the adapters left out, there would be no task vectors at all.
    assert!(cosines.len() == 3 && cosines.iter().all(|cosine| *cosine != 0.0), "{cosines:?}");
    scratch.search(&run_file, &[]);
    let trials = scratch.trials("results", "lora");
    assert_eq!(trials.len(), 14);
    assert!(trials.iter().all(|row| cell(row, "status") == "scored"));
    assert!(cell(trials.last().unwrap(), "gene.weight.fr").parse::<f64>().is_ok());
    let frozen = std::fs::read_to_string(scratch.path("results/lora/run.toml")).unwrap();
    assert!(frozen.contains("/base+") && frozen.contains("/adapters/de"), "{frozen}");

    let again = scratch.search(&run_file, &[]);
    assert_eq!(scratch.trials("results", "lora"), trials, "{again}");

    let wanted = cell(&trials[1], "candidate_id");
    let out = scratch.evomerge(&["export", "results/lora", "--candidate", wanted, "--out", "fr"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let yaml = std::fs::read_to_string(scratch.path("fr/mergekit_config.yml")).unwrap();
    assert!(yaml.contains("/base+") && yaml.contains("/adapters/fr"), "{yaml}");
    assert!(scratch.path("fr/tokenizer.json").is_file());
    assert!(std::fs::read_to_string(scratch.path("fr/README.md")).unwrap().contains("base+fr"));
    std::fs::write(
        scratch.path("direct.toml"),
        "merge_method = 'linear'\ndtype = 'bfloat16'\n[[models]]\nmodel = 'base+adapters/fr'\nparameters = { weight = 1.0 }\n",
    )
    .unwrap();
    let merged = scratch.evomerge(&["merge", "direct.toml", "--out", "direct"]);
    assert!(merged.status.success(), "{}", stderr(&merged));
    let weights = |folder: &str| std::fs::read(scratch.path(folder).join("model.safetensors")).unwrap();
    assert!(weights("fr") == weights("direct"));
    assert!(weights("fr") != std::fs::read(zoo.join("base/model.safetensors")).unwrap());

    zoo_adapter(&scratch.path("adapters/it"), 3, json!({ "lora_alpha": 4 }));
    let changed = scratch.evomerge(&["search", run]);
    assert_eq!(changed.status.code(), Some(78), "{}", stderr(&changed));
    assert!(stderr(&changed).contains("content of models"), "{}", stderr(&changed));

    let soup = scratch.evomerge(&["soup", run, "--json"]);
    assert!(soup.status.success(), "{}", stderr(&soup));
    let origins: Vec<String> =
        scratch.trials("results", "lora-soup").iter().map(|row| cell(row, "origin").to_owned()).collect();
    assert!(origins.iter().any(|origin| origin.contains("greedy")), "{origins:?}");
}
