//! Adapters that PEFT itself wrote, against what PEFT itself merges from them (`scripts/make_peft_fixtures.py`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use evomerge::checkpoint::{Checkpoint, ContentIds, Dtype};
use evomerge::merge::{MergeOptions, Merger, MergerOptions};
use evomerge::recipe::{ModelReference, Recipe};

/// Adapters by the model that they belong to.
const ADAPTERS: [(&str, &[&str]); 4] = [
    ("llama", &["plain", "all-linear", "patterns", "rank-stabilized", "some-layers", "whole-modules", "embedding"]),
    ("llama-bfloat16", &["bfloat16"]),
    ("gpt2", &["fan-in-fan-out", "square-fan-in-fan-out", "biases", "biases-of-targets"]),
    ("network", &["convolutions"]),
];
/// What is refused, and what its refusal names.
const REFUSED: [(&str, &str, &str); 4] = [
    ("llama", "dora", "use_dora"),
    ("gpt2", "lora-bias", "lora_bias"),
    ("llama", "tokens", "trainable_token_indices"),
    ("llama", "pissa", "init_lora_weights"),
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft")
}

fn open(model: &str, adapter: &str) -> Result<Checkpoint, evomerge::checkpoint::CheckpointError> {
    Checkpoint::open_with_adapter(&fixtures().join("models").join(model), &fixtures().join("adapters").join(adapter))
}

/// A model's tensors as numbers, by name.
type Tensors = std::collections::BTreeMap<String, Vec<f64>>;

fn numbers(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let decode = |view: safetensors::tensor::TensorView<'_>| -> Vec<f64> {
        match view.dtype() {
            safetensors::Dtype::F32 => {
                view.data().as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
            }
            safetensors::Dtype::BF16 => {
                let widen = |bytes: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                view.data().as_chunks::<2>().0.iter().map(|bytes| f64::from(widen(bytes))).collect()
            }
            other => panic!("{other:?}"),
        }
    };
    tensors.tensors().into_iter().map(|(name, view)| (name, decode(view))).collect()
}

/// What PEFT makes of the model.
fn by_peft(model: &str, adapter: &str) -> Tensors {
    let mut tensors = numbers(&fixtures().join("models").join(model).join("model.safetensors"));
    let changed = numbers(&fixtures().join("merged").join(format!("{adapter}.safetensors")));
    assert!(!changed.is_empty() && changed.keys().all(|name| tensors.contains_key(name)), "{adapter}");
    tensors.extend(changed);
    tensors
}

fn merge(models: Vec<(ModelReference, Checkpoint)>, recipe: &Recipe) -> Tensors {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let models = models.into_iter().map(|(name, checkpoint)| (name, Arc::new(checkpoint)));
    let merger = Merger::new(models, ContentIds::in_memory(), MergerOptions::default()).unwrap();
    merger.materialize(recipe, &out, &MergeOptions::default()).unwrap();
    numbers(&out.join("model.safetensors"))
}

fn reference(model: &str, adapter: &str) -> ModelReference {
    ModelReference { location: model.into(), adapter: Some(adapter.into()) }
}

/// The model with its adapter, written as float32.
fn by_us(model: &str, adapter: &str) -> Tensors {
    let text = format!("merge_method: passthrough\nmodels: [{{model: {model}+{adapter}}}]\n");
    let mut recipe = Recipe::from_mergekit_yaml(&text).unwrap();
    recipe.dtype = Some(Dtype::Float32);
    merge(vec![(reference(model, adapter), open(model, adapter).unwrap())], &recipe)
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

#[test]
fn an_adapter_makes_of_its_model_what_peft_makes_of_it() {
    for (model, adapters) in ADAPTERS {
        // PEFT stores the sum as the model is stored: half a step of bfloat16 away from ours at most.
        let tolerance = if model == "llama-bfloat16" { 2.0_f64.powi(-8) } else { 2.0_f64.powi(-22) };
        let base = numbers(&fixtures().join("models").join(model).join("model.safetensors"));
        for adapter in adapters {
            let (ours, theirs) = (by_us(model, adapter), by_peft(model, adapter));
            assert!(ours.keys().eq(theirs.keys()), "{adapter}");
            let mut changed = 0;
            for (name, theirs) in &theirs {
                let ours = &ours[name];
                let bound = tolerance * largest(theirs).max(largest(&base[name]));
                for (element, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                    assert!((ours - theirs).abs() <= bound, "{adapter}, {name}, {element}: {ours} {theirs}");
                }
                let moved = ours.iter().zip(&base[name]).map(|(ours, base)| (ours - base).abs()).fold(0.0, f64::max);
                changed += u32::from(moved > 100.0 * bound);
            }
            assert!(changed > 0, "{adapter} changes nothing that could be told from roundings");
        }
    }
}

#[test]
fn merges_of_adapters_are_merges_of_what_peft_makes() {
    let (first, second) = ("patterns", "embedding");
    let text = format!(
        "merge_method: linear\nmodels:\n  - {{model: llama+{first}, parameters: {{weight: 0.25}}}}\n  \
         - {{model: llama+{second}, parameters: {{weight: 0.75}}}}\n"
    );
    let models = [first, second].map(|adapter| (reference("llama", adapter), open("llama", adapter).unwrap()));
    let ours = merge(models.into(), &Recipe::from_mergekit_yaml(&text).unwrap());
    let theirs = [first, second].map(|adapter| by_peft("llama", adapter));
    for (name, ours) in &ours {
        let [first, second] = theirs.each_ref().map(|tensors| &tensors[name]);
        for (ours, (first, second)) in ours.iter().zip(first.iter().zip(second)) {
            assert!((ours - (0.25 * first + 0.75 * second)).abs() <= 1e-6, "{name}");
        }
    }
}

#[test]
fn what_is_more_than_two_factors_is_refused_by_its_name() {
    for (model, adapter, setting) in REFUSED {
        let error = open(model, adapter).unwrap_err().to_string();
        assert!(error.contains(setting) && error.contains("merge_and_unload"), "{adapter}: {error}");
    }
}
