//! Adapters that hold a head, or an embedding, of models that tie the two.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use evomerge::checkpoint::{Checkpoint, ContentIds};
use evomerge::merge::{MergeOptions, Merger, MergerOptions};
use evomerge::recipe::{ModelReference, Recipe};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::models::{QUERY, Tensor, bake, factors, model, write_adapter, write_model};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const TIED: &str = r#"{"tie_word_embeddings": true, "vocab_size": 10}"#;

/// A model that stores no head.
fn tied(dtype: Dtype) -> Vec<Tensor> {
    model(dtype, 1).into_iter().filter(|tensor| tensor.name != HEAD).collect()
}

/// A matrix of the embedding's shape, called as in an adapter.
fn whole(module: &str, seed: u32) -> Tensor {
    Tensor::new(&format!("base_model.model.{module}.weight"), Dtype::F32, &[10, 6], 1.0, seed)
}

fn values(tensors: &[Tensor], name: &str) -> Vec<f32> {
    tensors.iter().find(|tensor| tensor.name == name).unwrap().values.clone()
}

/// Factors of the embedding.
fn embedding_factors() -> [Tensor; 2] {
    [
        Tensor::new("base_model.model.model.embed_tokens.lora_embedding_A", Dtype::F32, &[3, 10], 0.5, 42),
        Tensor::new("base_model.model.model.embed_tokens.lora_embedding_B", Dtype::F32, &[6, 3], 0.5, 43),
    ]
}

fn transposed(tensor: &Tensor, name: &str) -> Tensor {
    let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
    let values = (0..columns * rows).map(|index| tensor.values[index % rows * columns + index / rows]).collect();
    Tensor { name: name.to_owned(), dtype: tensor.dtype, shape: vec![columns, rows], values }
}

/// The same factors as PEFT stores them for a head that is tied to the embedding.
fn head_factors([down, up]: &[Tensor; 2]) -> [Tensor; 2] {
    [
        transposed(up, "base_model.model.lm_head.lora_A.weight"),
        transposed(down, "base_model.model.lm_head.lora_B.weight"),
    ]
}

fn write(folder: &Path, (base, base_config): (&[Tensor], &str), (adapter, change): (&[Tensor], Value)) {
    write_model(&folder.join("base"), base);
    std::fs::write(folder.join("base/config.json"), base_config).unwrap();
    write_adapter(&folder.join("adapter"), adapter, change);
}

/// The tensors of the model with the adapter in float32, and whether its configuration ties the head.
fn outcome(base: (&[Tensor], &str), adapter: (&[Tensor], Value)) -> (BTreeMap<String, Vec<f32>>, bool) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), base, adapter);
    let model = Checkpoint::open_with_adapter(&folder.path().join("base"), &folder.path().join("adapter")).unwrap();
    let merger =
        Merger::new([(ModelReference::new("m"), Arc::new(model))], ContentIds::in_memory(), MergerOptions::default())
            .unwrap();
    let recipe = "merge_method: linear\nmodels: [{model: m, parameters: {weight: 1}}]\ndtype: float32\n";
    let out = folder.path().join("out");
    merger.materialize(&Recipe::from_mergekit_yaml(recipe).unwrap(), &out, &MergeOptions::default()).unwrap();
    let merged = Checkpoint::open(&out).unwrap();
    let numbers = |name: &String| -> Vec<f32> {
        let bytes = merged.bytes(name).unwrap();
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    let tensors = merged.tensors().keys().map(|name| (name.clone(), numbers(name))).collect();
    let ties = merged.config()["tie_word_embeddings"].as_bool().unwrap();
    (tensors, ties)
}

fn refusal(base: (&[Tensor], &str), adapter: (&[Tensor], Value)) -> String {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), base, adapter);
    let opened = Checkpoint::open_with_adapter(&folder.path().join("base"), &folder.path().join("adapter"));
    opened.unwrap_err().to_string()
}

#[test]
fn a_head_of_its_own_unties_the_model() {
    let base = tied(Dtype::F32);
    let (embedding, head) = (whole("model.embed_tokens", 50), whole("lm_head", 51));
    let old = values(&base, EMBEDDING);
    for (adapter, expected_embedding, expected_head) in [
        (vec![embedding.clone(), head.clone()], &embedding.values, &head.values),
        (vec![head.clone(), embedding.clone()], &embedding.values, &head.values),
        (vec![head.clone()], &old, &head.values),
        (vec![embedding.clone()], &embedding.values, &old),
        (vec![embedding.clone(), Tensor { values: old.clone(), ..head.clone() }], &embedding.values, &old),
    ] {
        let adapter = [factors(QUERY, [6, 6], 3, Dtype::F32, 44).to_vec(), adapter].concat();
        let (tensors, ties) = outcome((&base, TIED), (&adapter, json!({})));
        assert!(!ties);
        assert_eq!((&tensors[EMBEDDING], &tensors[HEAD]), (expected_embedding, expected_head));
        assert_eq!(tensors.len(), base.len() + 1);
    }
}

#[test]
fn a_head_that_is_the_embedding_stays_tied() {
    let ensured = || json!({ "ensure_weight_tying": true });
    for dtype in [Dtype::F32, Dtype::BF16] {
        let base = tied(dtype);
        let old = values(&base, EMBEDDING);
        let copy = |module: &str| Tensor { values: old.clone(), ..whole(module, 0) };
        let (embedding, head) = (whole("model.embed_tokens", 50), whole("lm_head", 50));
        let query = || factors(QUERY, [6, 6], 3, Dtype::F32, 44).to_vec();
        for (adapter, change, expected) in [
            (vec![copy("model.embed_tokens"), copy("lm_head")], json!({}), &old),
            (vec![copy("lm_head")], json!({}), &old),
            (vec![embedding.clone(), head.clone()], json!({}), &embedding.values),
            (vec![head.clone(), embedding.clone()], ensured(), &embedding.values),
            (vec![embedding.clone()], ensured(), &embedding.values),
            (vec![head.clone()], ensured(), &head.values),
            (vec![embedding.clone(), copy("lm_head")], ensured(), &embedding.values),
        ] {
            let (tensors, ties) = outcome((&base, TIED), (&[query(), adapter].concat(), change));
            assert!(ties && !tensors.contains_key(HEAD));
            assert_eq!(&tensors[EMBEDDING], expected);
        }
    }
}

#[test]
fn factors_of_a_tied_embedding_change_the_head_unless_it_has_numbers_of_its_own() {
    let base = tied(Dtype::F32);
    let pair = embedding_factors();
    let mut baked = base.clone();
    bake(&mut baked, EMBEDDING, &pair, 2.0, true, true);
    let changed = values(&baked, EMBEDDING);
    let copies = ["model.embed_tokens.base_layer", "lm_head.base_layer"]
        .map(|module| Tensor { values: values(&base, EMBEDDING), ..whole(module, 0) });
    let head = whole("lm_head", 51);
    let repeated = [pair.to_vec(), head_factors(&pair).to_vec(), copies.to_vec()].concat();
    for (adapter, change, expected_head) in [
        (pair.to_vec(), json!({}), None),
        (repeated, json!({ "ensure_weight_tying": true }), None),
        ([pair.to_vec(), vec![copies[0].clone(), head.clone()]].concat(), json!({}), Some(&head.values)),
    ] {
        let (tensors, ties) = outcome((&base, TIED), (&adapter, change));
        assert_eq!((ties, tensors.get(HEAD)), (expected_head.is_none(), expected_head));
        for (found, expected) in tensors[EMBEDDING].iter().zip(&changed) {
            assert!((found - expected).abs() <= 2e-6, "{found} {expected}");
        }
    }
}

#[test]
fn a_copy_that_a_tied_model_stores_is_no_other_head() {
    let mut base = tied(Dtype::F32);
    let old = values(&base, EMBEDDING);
    base.push(Tensor { values: old.clone(), ..whole("lm_head", 0) }.named(HEAD));
    let (embedding, head) = (whole("model.embed_tokens", 50), whole("lm_head", 51));
    let (tensors, ties) = outcome((&base, TIED), (std::slice::from_ref(&head), json!({})));
    assert_eq!((ties, &tensors[EMBEDDING], &tensors[HEAD]), (false, &old, &head.values));
    let (tensors, ties) = outcome((&base, TIED), (std::slice::from_ref(&embedding), json!({})));
    assert_eq!((ties, &tensors[EMBEDDING], &tensors[HEAD]), (false, &embedding.values, &old));
    let ensured = json!({ "ensure_weight_tying": true });
    let (tensors, ties) = outcome((&base, TIED), (std::slice::from_ref(&embedding), ensured));
    assert_eq!((ties, &tensors[EMBEDDING], tensors.get(HEAD)), (true, &embedding.values, None));
}

/// Loaders tie `proj_out` (Whisper) and the decoder's predictions (BERT) to the embedding, too.
#[test]
fn copies_under_other_names_go_with_the_embedding_that_they_are_of() {
    let mut base: Vec<Tensor> = tied(Dtype::F32);
    let embedding = values(&base, EMBEDDING);
    let named = |name: &str, values: &[f32]| Tensor {
        name: name.to_owned(),
        dtype: Dtype::F32,
        shape: vec![10, 6],
        values: values.to_vec(),
    };
    base.iter_mut().filter(|tensor| tensor.name == EMBEDDING).for_each(|tensor| {
        tensor.name = "model.decoder.embed_tokens.weight".to_owned();
    });
    base.push(named("proj_out.weight", &embedding));
    base.push(named("other.proj_out.weight", &embedding.iter().map(|value| value + 1.0).collect::<Vec<_>>()));
    let factors = embedding_factors().map(|factor| Tensor {
        name: factor.name.replace("model.embed_tokens", "model.decoder.embed_tokens"),
        ..factor
    });
    let (merged, is_tied) = outcome((&base, TIED), (&factors, json!({"target_modules": ["embed_tokens"]})));
    assert!(is_tied && !merged.contains_key("proj_out.weight"), "{:?}", merged.keys());
    assert!(merged.contains_key("other.proj_out.weight"), "it was another one before");
    assert_ne!(merged["model.decoder.embed_tokens.weight"], embedding);
}

#[test]
fn whole_embeddings_and_heads_of_models_that_tie_more_than_a_head_are_refused() {
    let base = tied(Dtype::F32);
    let (embedding, head) = (whole("model.embed_tokens", 50), whole("lm_head", 51));
    for more in [json!({"is_encoder_decoder": true}), json!({"architectures": ["BertForMaskedLM"]})] {
        let mut config: Value = serde_json::from_str(TIED).unwrap();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = config.to_string();
        for adapter in [&embedding, &head] {
            for change in [json!({}), json!({ "ensure_weight_tying": true })] {
                let error = refusal((&base, &config), (std::slice::from_ref(adapter), change));
                assert!(error.contains("merge the adapter with PEFT first"), "{error}");
            }
        }
        assert!(outcome((&base, &config), (&embedding_factors(), json!({}))).1, "factors follow the tie");
    }
}

#[test]
fn a_bias_is_no_head() {
    let mut base = tied(Dtype::F32);
    base.push(Tensor::new("lm_head.bias", Dtype::F32, &[10], 1.0, 77));
    let old = values(&base, EMBEDDING);
    let new = [whole("model.embed_tokens", 50)];
    let change = json!({"target_modules": [], "modules_to_save": ["embed_tokens"]});
    let (merged, is_tied) = outcome((&base, TIED), (&new, change));
    assert!(!is_tied && merged[HEAD] == old);
}

#[test]
fn a_head_is_called_as_in_other_models_of_the_architecture() {
    let nested = |tensor: Tensor| {
        let name = format!("language_model.{}", tensor.name);
        tensor.named(&name)
    };
    let base: Vec<Tensor> = tied(Dtype::F32).into_iter().map(nested).collect();
    let config = r#"{"tie_word_embeddings": true, "text_config": {"tie_word_embeddings": true, "vocab_size": 10}}"#;
    let embedding = whole("model.language_model.embed_tokens", 50);
    let head = whole("lm_head", 51);
    let (tensors, ties) = outcome((&base, config), (&[embedding.clone(), head.clone()], json!({})));
    assert!(!ties);
    assert_eq!(tensors["language_model.model.embed_tokens.weight"], embedding.values);
    assert_eq!(tensors["language_model.lm_head.weight"], head.values);
}

#[test]
fn heads_that_cannot_be_merged_are_refused_with_the_reason() {
    let base = tied(Dtype::F32);
    let (embedding, head) = (whole("model.embed_tokens", 50), whole("lm_head", 51));
    let pair = embedding_factors();
    let turned = head_factors(&pair);
    let ensured = || json!({ "ensure_weight_tying": true });
    let mut other = turned.to_vec();
    other[1].values[4] += 0.5;
    for (adapter, change, words) in [
        (turned.to_vec(), json!({ "target_modules": ["lm_head"] }), vec!["lm_head.lora_A", "would change both"]),
        ([pair.to_vec(), turned.to_vec()].concat(), json!({}), vec!["would change both", "untie the model first"]),
        ([pair.to_vec(), other].concat(), ensured(), vec!["would change both", "merge the adapter with PEFT"]),
        (vec![embedding, head.clone()], ensured(), vec!["`ensure_weight_tying`", "differs from the embedding"]),
        (
            vec![head.clone(), whole("lm_head.base_layer", 52)],
            json!({}),
            vec!["`base_model.model.lm_head", "the model's head already"],
        ),
        (
            vec![Tensor::new("base_model.model.lm_head.weight", Dtype::F32, &[12, 6], 1.0, 1)],
            json!({}),
            vec!["[12, 6]", "vocabulary was resized"],
        ),
    ] {
        let text = refusal((&base, TIED), (&adapter, change));
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    }
    let text = refusal((&base, r#"{"tie_word_embeddings": false}"#), (&[head], json!({})));
    assert!(text.contains("no tensor `lm_head.weight`") && text.contains("stores no head"), "{text}");
    assert!(!text.contains("base model?"), "{text}");
}

#[test]
fn a_model_with_a_head_of_its_own_has_a_content_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let base = tied(Dtype::F32);
    let (embedding, head) = (whole("model.embed_tokens", 50), whole("lm_head", 51));
    let mut ids = Vec::new();
    for (adapter, change) in [
        (vec![embedding.clone()], json!({})),
        (vec![embedding.clone()], json!({ "ensure_weight_tying": true })),
        (vec![embedding.clone(), head.clone()], json!({})),
        (vec![head.clone()], json!({})),
        (vec![head], json!({ "ensure_weight_tying": true })),
        (vec![embedding, whole("lm_head", 52)], json!({})),
    ] {
        write(folder.path(), (&base, TIED), (&adapter, change));
        let model = Checkpoint::open_with_adapter(&folder.path().join("base"), &folder.path().join("adapter")).unwrap();
        ids.push(model.content_id(&ContentIds::in_memory()).unwrap());
    }
    ids.push(Checkpoint::open(&folder.path().join("base")).unwrap().content_id(&ContentIds::in_memory()).unwrap());
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count);
}
