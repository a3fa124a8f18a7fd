//! What adapters make of a model, and merges with them.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use evomerge::checkpoint::{Checkpoint, ContentIds};
use evomerge::merge::{Isa, MergeOptions, Merger, MergerOptions, WriteMode, methods};
use evomerge::recipe::{MaskKind, ModelReference, Recipe};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::models::{
    Family, QUERY, Tensor, UP, adapter, bake, factors, model, numbers, recipe, write_adapter, write_model,
};

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
            let mut recipe = recipe(method);
            for written in [evomerge::checkpoint::Dtype::Float32, evomerge::checkpoint::Dtype::Bfloat16] {
                recipe.dtype = Some(written);
                let expected = family.merge(&whole, &recipe);
                for merger in &mergers {
                    let found = family.merge(merger, &recipe);
                    assert!(found == expected, "{} of {base} into {written}", method.name);
                }
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
    write_adapter(&family.path("one"), &super::models::adapter(Dtype::F32, 101), json!({}));
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
    merger
        .materialize(
            &recipe,
            &out,
            &MergeOptions { mode: WriteMode::Replace { durable: false }, ..MergeOptions::default() },
        )
        .unwrap();
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
