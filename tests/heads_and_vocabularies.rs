//! Embeddings and heads in merges: tied, named otherwise, brought by adapters, and of different vocabularies; and the
//! tokenizers that say what their rows are.

#[path = "support/models.rs"]
#[allow(dead_code, reason = "shared with the tests of other merges")]
mod models;

use std::sync::Arc;

use evomerge::checkpoint::{Checkpoint, ContentIds};
use evomerge::exit::ExitCode;
use evomerge::merge::{MergeOptions, Merger, MergerOptions};
use evomerge::recipe::{MaskKind, ModelReference, Recipe, RecipeFile};
use models::{
    AVERAGE, DARE, EMBEDDING, Family, HEAD, Model, TIE, average, bfloat16, floats, merge_into, stack, tied, values,
};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

const ALONE: &str = "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\n";

/// A family whose `a` is this model under an adapter that holds the tensor of `trained` whole. The model itself is
/// called `bare`.
fn adapted(model: &Model, trained: &Model, settings: Value, other: Option<Model>) -> Family {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    model.write(&path("bare"));
    std::fs::create_dir(path("adapter")).unwrap();
    let mut config = json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["mlp"], "modules_to_save": ["embed_tokens"],
    });
    config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    std::fs::write(path("adapter/adapter_config.json"), config.to_string()).unwrap();
    let views = trained.tensors.iter().map(|(name, dtype, shape, bytes)| {
        (format!("base_model.model.{name}"), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path("adapter/adapter_model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let adapted = Checkpoint::open_with_adapter(&path("bare"), &path("adapter")).unwrap();
    let mut opened = vec![(ModelReference::new("a"), Arc::new(adapted))];
    if let Some(other) = other {
        other.write(&path("b"));
        opened.push((ModelReference::new("b"), Arc::new(Checkpoint::open(&path("b")).unwrap())));
    }
    let merger = Merger::new(opened, ContentIds::in_memory(), MergerOptions::default()).unwrap();
    Family { folder, merger }
}

/// A tensor as an adapter brings it, with numbers of its own.
fn trained(name: &str) -> Model {
    let mut trained = Model::empty(json!({}));
    trained.add(name, &[10, 4], 77);
    trained
}

/// The numbers of the only tensor.
fn numbers(trained: &Model) -> Vec<f32> {
    trained.tensors[0].3.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn a_tied_head_keeps_its_weights_where_an_adapter_brings_a_new_embedding() {
    let new = trained(EMBEDDING);
    let mut stores_a_copy = tied(1, 1);
    stores_a_copy.add(HEAD, &[10, 4], 1);
    for model in [tied(1, 1), stores_a_copy] {
        let family = adapted(&model, &new, json!({}), None);
        let merged = family.merge(ALONE);
        assert_eq!(values(&merged, EMBEDDING), numbers(&new));
        assert_eq!(values(&merged, HEAD), values(&family.model("bare"), EMBEDDING));
        assert_eq!(merged.config()[TIE], false);
    }
    let family = adapted(&tied(1, 1), &new, json!({}), Some(tied(1, 2)));
    let merged = family.merge(AVERAGE);
    let (bare, b) = (family.model("bare"), family.model("b"));
    assert_eq!(values(&merged, EMBEDDING), average(&numbers(&new), &values(&b, EMBEDDING)));
    assert_eq!(values(&merged, HEAD), average(&values(&bare, EMBEDDING), &values(&b, EMBEDDING)));
    assert_eq!(merged.config()[TIE], false);
}

/// PEFT stores an embedding as it was beside the factors that change it, or does not; nothing depends on that.
#[test]
fn a_copy_of_an_embedding_beside_its_factors_replaces_nothing() {
    let wide = tied(1, 1);
    let narrow = bfloat16(tied(1, 1));
    let stored = wide.tensors.iter().find(|tensor| tensor.0 == EMBEDDING).unwrap().clone();
    // The numbers of the bfloat16 model in float32.
    let mut widened = stored.clone();
    widened.3.chunks_exact_mut(4).for_each(|word| word[..2].fill(0));
    for (model, copy) in [(&wide, &stored), (&narrow, &widened)] {
        let merged = [false, true].map(|has_copy| {
            let mut adapter = Model::empty(json!({}));
            adapter.add("model.embed_tokens.lora_embedding_A", &[2, 10], 21);
            adapter.add("model.embed_tokens.lora_embedding_B", &[4, 2], 22);
            if has_copy {
                let name = "model.embed_tokens.base_layer.weight".to_owned();
                adapter.tensors.push((name, copy.1, copy.2.clone(), copy.3.clone()));
            }
            let settings = json!({"target_modules": ["embed_tokens"], "modules_to_save": null});
            let family = adapted(model, &adapter, settings, None);
            let merged = family.merge(&format!("{ALONE}dtype: float32\n"));
            assert!(!merged.tensors().contains_key(HEAD) && merged.ties_head());
            values(&merged, EMBEDDING)
        });
        assert_eq!(merged[0], merged[1]);
        assert_ne!(floats(merged[0].iter().copied()), copy.3);
    }
}

#[test]
fn the_head_that_an_adapter_leaves_behind_is_named_and_untied_as_in_its_model() {
    for (embedding, head) in [
        ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
        ("model.language_model.embed_tokens.weight", "lm_head.weight"),
        ("gpt_neox.embed_in.weight", "embed_out.weight"),
    ] {
        let mut model = Model::empty(json!({"text_config": { TIE: true, "num_hidden_layers": 1 }}));
        model.add(embedding, &[10, 4], 1);
        let module = embedding.rsplit('.').nth(1).unwrap();
        model.add(&embedding.replace(module, "layers.0.mlp"), &[4, 6], 2);
        let family = adapted(&model, &trained(embedding), json!({"modules_to_save": [module]}), None);
        let merged = family.merge(ALONE);
        assert_eq!(values(&merged, head), values(&family.model("bare"), embedding));
        assert_eq!(merged.config()["text_config"][TIE], false);
        assert!(!merged.ties_head());
    }
}

#[test]
fn a_merged_head_is_untied_in_the_text_models_settings_too() {
    for settings in [
        json!({"text_config": {TIE: true, "num_hidden_layers": 1}}),
        json!({"text_config": {"num_hidden_layers": 1}}),
        json!({TIE: true, "text_config": {"num_hidden_layers": 1}}),
    ] {
        let mut a = Model::empty(settings);
        a.tensors = tied(1, 1).tensors;
        let merged = Family::new([("a", a), ("b", Model::new(1, 2))]).merge(AVERAGE);
        assert!(merged.tensors().contains_key(HEAD) && !merged.ties_head());
        assert_eq!((&merged.config()[TIE], &merged.config()["text_config"][TIE]), (&json!(false), &json!(false)));
    }
}

#[test]
fn a_head_follows_an_adapters_embedding_where_the_adapter_ensures_that_they_stay_tied() {
    let new = trained(EMBEDDING);
    let settings = json!({"ensure_weight_tying": true});
    let merged = adapted(&tied(1, 1), &new, settings.clone(), None).merge(ALONE);
    assert_eq!(values(&merged, EMBEDDING), numbers(&new));
    assert!(!merged.tensors().contains_key(HEAD));
    assert_eq!(merged.config()[TIE], true);
    let family = adapted(&tied(1, 1), &new, settings, Some(Model::new(1, 2)));
    let merged = family.merge(AVERAGE);
    assert_eq!(values(&merged, HEAD), average(&numbers(&new), &values(&family.model("b"), HEAD)));
}

#[test]
fn an_adapter_that_ensures_ties_is_another_model_than_one_that_does_not() {
    let id = |settings: Value| {
        let family = adapted(&tied(1, 1), &trained(EMBEDDING), settings, None);
        let path = |name: &str| family.folder.path().join(name);
        let adapted = Checkpoint::open_with_adapter(&path("bare"), &path("adapter")).unwrap();
        adapted.content_id(&ContentIds::in_memory()).unwrap()
    };
    assert_eq!(id(json!({})), id(json!({"ensure_weight_tying": false})));
    assert_ne!(id(json!({})), id(json!({"ensure_weight_tying": true})));
}

#[test]
fn filters_see_a_tied_head_as_a_head_and_not_as_the_embedding_that_fills_it() {
    let family = Family::new([("a", tied(1, 1)), ("b", Model::new(1, 2))]);
    let merge = |filter: &str, output: &str| {
        let recipe = format!(
            "merge_method: linear\nmodels:\n- {{model: a, parameters: {{weight: [{{filter: {filter}, value: 0}}, {{value: 1}}]}}}}\n\
             - {{model: b, parameters: {{weight: 1}}}}\n"
        );
        merge_into(&family, &Recipe::from_mergekit_yaml(&recipe).unwrap(), output)
    };
    let (a, b) = (family.model("a"), family.model("b"));
    let embedding = average(&values(&a, EMBEDDING), &values(&b, EMBEDDING));
    let head = average(&values(&a, EMBEDDING), &values(&b, HEAD));
    let merged = merge("lm_head", "head");
    assert_eq!((values(&merged, EMBEDDING), values(&merged, HEAD)), (embedding, values(&b, HEAD)));
    let merged = merge("embed_tokens", "embedding");
    assert_eq!((values(&merged, EMBEDDING), values(&merged, HEAD)), (values(&b, EMBEDDING), head));
}

#[test]
fn the_head_of_gpt_neox_comes_from_the_last_slice() {
    let neox = |seed| {
        let mut model = Model::empty(json!({"num_hidden_layers": 2, TIE: false}));
        for (index, name) in ["gpt_neox.embed_in", "embed_out"].iter().enumerate() {
            model.add(&format!("{name}.weight"), &[10, 4], seed + index as u32);
        }
        model.add("gpt_neox.layers.0.mlp.weight", &[4, 6], seed + 2);
        model.add("gpt_neox.layers.1.mlp.weight", &[4, 6], seed + 3);
        model
    };
    let family = Family::new([("a", neox(1)), ("b", neox(11))]);
    let merged = family.merge(&stack(&[("a", [0, 2]), ("b", [1, 2])]));
    let (a, b) = (family.model("a"), family.model("b"));
    assert_eq!(values(&merged, "gpt_neox.embed_in.weight"), values(&a, "gpt_neox.embed_in.weight"));
    assert_eq!(values(&merged, "embed_out.weight"), values(&b, "embed_out.weight"));
    assert_eq!(merged.config()["num_hidden_layers"], 3);
}

#[test]
fn a_last_slice_of_tied_models_gives_the_head_that_an_untied_donor_has() {
    let family = Family::new([("a", Model::new(2, 1)), ("b", tied(2, 2)), ("c", tied(2, 3))]);
    let (b, c) = (family.model("b"), family.model("c"));
    let alone = Recipe::from_mergekit_yaml(&stack(&[("a", [0, 1]), ("b", [0, 2])])).unwrap();
    let merged = merge_into(&family, &alone, "alone");
    assert_eq!(values(&merged, HEAD), values(&b, EMBEDDING));
    assert_eq!(merged.config()[TIE], false);
    let merged = family.merge(
        "merge_method: linear\nparameters: {weight: 0.5}\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n\
         - sources: [{model: b, layer_range: [0, 2]}, {model: c, layer_range: [0, 2]}]\n",
    );
    assert_eq!(values(&merged, HEAD), average(&values(&b, EMBEDDING), &values(&c, EMBEDDING)));
    assert_eq!(merged.config()[TIE], false);
}

#[test]
fn a_model_with_rows_for_images_in_its_embedding_alone_is_stacked() {
    let mut model = Model::new(2, 1);
    model.remove(EMBEDDING);
    model.add(EMBEDDING, &[12, 4], 5);
    let family = Family::new([("a", model), ("b", Model::new(2, 2))]);
    let merged = family.merge(&stack(&[("a", [0, 2]), ("a", [1, 2])]));
    assert_eq!((values(&merged, EMBEDDING).len(), values(&merged, HEAD).len()), (48, 40));
}

#[test]
fn an_embedding_and_a_head_of_other_vocabularies_are_not_stacked() {
    let mut longer = Model::new(2, 2);
    for name in [EMBEDDING, HEAD] {
        longer.remove(name);
        longer.add(name, &[12, 4], 9);
    }
    let mut longer_tied = longer.clone();
    longer_tied.remove(HEAD);
    longer_tied.config(json!({ TIE: true }));
    for last in [longer, longer_tied] {
        let family = Family::new([("a", Model::new(2, 1)), ("b", last)]);
        let error = family.refusal(&stack(&[("a", [0, 1]), ("b", [0, 2])]));
        let text = error.to_string();
        for part in ["`model.embed_tokens.weight`", "10 rows", "`lm_head.weight` of the last 12", "one tokenizer"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(error.exit_code(), ExitCode::BadData);
        family.merge(&stack(&[("a", [0, 1]), ("b", [0, 1]), ("a", [1, 2])]));
    }
}

/// A tokenizer with these ids, and one token that was added to them.
fn tokenizer(ids: Value, added: u64) -> String {
    json!({"model": {"type": "BPE", "vocab": ids}, "added_tokens": [{"id": added, "content": "<s>"}]}).to_string()
}

fn with_tokenizers(a: String, b: Option<String>) -> Family {
    let (mut first, mut second) = (Model::new(1, 1), Model::new(1, 2));
    first.files.insert("tokenizer.json".into(), a);
    second.files.extend(b.map(|text| ("tokenizer.json".to_owned(), text)));
    Family::new([("a", first), ("b", second)])
}

#[test]
fn one_tokenizer_is_not_given_to_models_with_other_ids() {
    let own = || tokenizer(json!({"x": 0, "y": 1}), 2);
    for (other, source, found) in [
        (tokenizer(json!({"x": 1, "y": 0}), 2), "base", r#"the token "x" has the id 1 in `b`, 0 in `a`"#),
        (tokenizer(json!({"x": 1, "y": 0}), 2), "a", r#"the token "x" has the id 1 in `b`, 0 in `a`"#),
        (tokenizer(json!({"x": 1, "y": 0}), 2), "b", r#"the token "x" has the id 0 in `a`, 1 in `b`"#),
        (tokenizer(json!({"x": 0, "z": 1}), 2), "base", r#"the id 1 is the token "z" in `b`, "y" in `a`"#),
        (tokenizer(json!({"x": 0, "y": 1}), 3), "base", r#"the token "<s>" has the id 3 in `b`, 2 in `a`"#),
    ] {
        let error = with_tokenizers(own(), Some(other)).refusal(&format!("{AVERAGE}tokenizer_source: {source}\n"));
        let text = error.to_string();
        assert!(
            text.contains(&format!("tokenizer_source: {found}; bring the models to one tokenizer first")),
            "{text}"
        );
        assert_eq!(error.exit_code(), ExitCode::BadData);
    }
}

/// A row that is a token's in one model and padding in another is no token's mean.
#[test]
fn one_tokenizer_is_not_given_to_models_that_lack_its_tokens() {
    let (own, more) = (|| tokenizer(json!({"x": 0, "y": 1}), 2), || tokenizer(json!({"x": 0, "y": 1, "<z>": 3}), 2));
    for (a, b, source, part) in [
        (own(), more(), "b", r#"the token "<z>" (id 3) of `b` is none of `a`, whose row 3 is padding"#),
        (more(), own(), "base", r#"the token "<z>" (id 3) of `a` is none of `b`, whose row 3 is padding"#),
    ] {
        let error = with_tokenizers(a, Some(b)).refusal(&format!("{AVERAGE}tokenizer_source: {source}\n"));
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.exit_code(), ExitCode::BadData);
    }
    // A token beyond the embedding has no row.
    let beyond = tokenizer(json!({"x": 0, "y": 1, "<z>": 10}), 2);
    with_tokenizers(own(), Some(beyond)).merge(&format!("{AVERAGE}tokenizer_source: b\n"));
    // A token that only the settings add is one.
    let family = with_tokenizers(own(), Some(more()));
    let settings = json!({"added_tokens_decoder": {"3": {"content": "<z>"}}});
    std::fs::write(family.folder.path().join("a/tokenizer_config.json"), settings.to_string()).unwrap();
    family.merge(&format!("{AVERAGE}tokenizer_source: b\n"));
}

/// A model whose embedding and head have so many rows, and whose tokenizer has 7.
fn padded(rows: usize, seed: u32) -> Model {
    let mut model = Model::new(1, seed);
    for name in [EMBEDDING, HEAD] {
        model.remove(name);
        model.add(name, &[rows, 4], seed + 5);
    }
    model.config(json!({"vocab_size": rows}));
    model.files.insert("tokenizer.json".into(), tokenizer(json!({"x": 0, "y": 1}), 6));
    model
}

#[test]
fn embeddings_that_are_padded_differently_are_cut_to_the_tokens_of_one_tokenizer() {
    for (first, second) in [(12, 10), (7, 12)] {
        let mut tied = padded(first, 1);
        tied.remove(HEAD);
        tied.config(json!({ TIE: true }));
        for (a, source) in
            [(padded(first, 1), "base"), (padded(first, 1), "union"), (padded(first, 1), "b"), (tied, "a")]
        {
            let family = Family::new([("a", a), ("b", padded(second, 2))]);
            let report =
                family.try_merge(&format!("{AVERAGE}tokenizer_source: {source}\n"), &MergeOptions::default()).unwrap();
            assert!(report.notes.iter().any(|note| note.contains("cut to the 7 rows")), "{:?}", report.notes);
            let merged = Checkpoint::open(&family.output()).unwrap();
            let (a, b) = (family.model("a"), family.model("b"));
            for name in [EMBEDDING, HEAD] {
                let of_a = values(&a, if a.tensors().contains_key(name) { name } else { EMBEDDING });
                assert_eq!(merged.tensors()[name].shape, [7, 4], "{source}");
                assert_eq!(values(&merged, name), average(&of_a[..28], &values(&b, name)[..28]), "{source}");
            }
            assert_eq!(merged.config()["vocab_size"], 7);
        }
    }
    // With as many rows in all, the padding stays.
    let family = Family::new([("a", padded(10, 1)), ("b", padded(10, 2))]);
    let report = family.try_merge(&format!("{AVERAGE}tokenizer_source: base\n"), &MergeOptions::default()).unwrap();
    assert_eq!(report.notes, Vec::<String>::new());
    assert_eq!(Checkpoint::open(&family.output()).unwrap().tensors()[EMBEDDING].shape, [10, 4]);
}

#[test]
fn embeddings_without_rows_for_all_tokens_are_not_cut() {
    let mut longer = padded(12, 1);
    longer.files.insert("tokenizer.json".into(), tokenizer(json!({"x": 0, "y": 1}), 11));
    let family = Family::new([("a", longer), ("b", padded(10, 2))]);
    let refused = |more: &str| family.refusal(&format!("{AVERAGE}{more}")).to_string();
    assert!(
        refused("tokenizer_source: a\n").contains("the tokenizer of `a` (tokenizer_source) has tokens for 12 rows")
    );
    // Nobody asked for one tokenizer.
    assert!(refused("").contains("--truncate-embeddings"));
    let mut unknown = padded(12, 1);
    unknown.files.remove("tokenizer.json");
    let family = Family::new([("a", unknown), ("b", padded(10, 2))]);
    let error = family.refusal(&format!("{AVERAGE}tokenizer_source: a\n"));
    assert!(error.to_string().contains("--truncate-embeddings"), "{error}");
}

#[test]
fn masks_of_padding_that_mergekit_drops_are_told() {
    let merge = |rows: [usize; 2], masks: MaskKind, more: &str| {
        let family = Family::new([("base", padded(rows[0], 1)), ("a", padded(rows[1], 2))]);
        let text = format!("{DARE}models: [{{model: a}}]\n{more}");
        let mut recipe = Recipe::from_mergekit_yaml(&text).unwrap();
        recipe.masks.kind = masks;
        let output = family.folder.path().join("merged");
        let report = family.merger.materialize(&recipe, &output, &MergeOptions::default()).unwrap();
        (report.uncertain_masks, report.notes.iter().any(|note| note.contains("is merged with its padding")))
    };
    let source = "tokenizer_source: base\n";
    assert_eq!(merge([10, 10], MaskKind::Mergekit, source), (true, true));
    assert_eq!(merge([10, 10], MaskKind::Native, source), (false, false));
    assert_eq!(merge([10, 10], MaskKind::Mergekit, ""), (false, false));
    assert_eq!(merge([7, 7], MaskKind::Mergekit, source), (false, false));
    // Padding is cut where it differs.
    assert_eq!(merge([10, 12], MaskKind::Mergekit, source), (false, false));
}

#[test]
fn the_union_of_equal_vocabularies_is_any_of_them() {
    let own = || tokenizer(json!({"x": 0, "y": 1}), 2);
    for source in ["tokenizer_source: union", "tokenizer: {source: union}"] {
        let recipe = format!("{AVERAGE}{source}\n");
        let family = with_tokenizers(own(), Some(tokenizer(json!({"y": 1, "x": 0}), 2)));
        family.merge(&recipe);
        assert_eq!(std::fs::read_to_string(family.output().join("tokenizer.json")).unwrap(), own());
        for (other, found) in [
            (Some(tokenizer(json!({"x": 1, "y": 0}), 2)), r#"the id of "x" is 1 in `b`, 0 in `a`"#),
            (Some(tokenizer(json!({"x": 0, "y": 1, "z": 3}), 2)), r#"the id of "z" is 3 in `b`, none in `a`"#),
            (Some(tokenizer(json!({"x": 0}), 2)), r#"the id of "y" is none in `b`, 1 in `a`"#),
            (None, "`b` has no tokenizer.json"),
        ] {
            let error = with_tokenizers(own(), other).refusal(&recipe);
            let text = error.to_string();
            assert!(text.contains("joining vocabularies is not supported") && text.contains(found), "{text}");
            assert_eq!(error.exit_code(), ExitCode::BadData);
        }
    }
    // The recipe that comes with the model says the same.
    let yaml = format!("{AVERAGE}tokenizer_source: union\n");
    let file = RecipeFile::from_mergekit_yaml(&yaml).unwrap();
    assert!(file.ignored[0].contains("`tokenizer_source`"), "{:?}", file.ignored);
    let toml = file.recipe.to_toml(&std::collections::BTreeMap::new());
    assert_eq!(Recipe::from_toml(&toml).unwrap(), file.recipe);
}

#[test]
fn an_output_without_a_tokenizer_is_told() {
    let text = tokenizer(json!({"x": 0}), 1);
    let mut with = Model::new(1, 2);
    with.files.insert("tokenizer.json".into(), text);
    let missing = |family: &Family, more: &str| {
        family.try_merge(&format!("{AVERAGE}{more}"), &MergeOptions::default()).unwrap().missing_tokenizer
    };
    let of = |first: &Model, second: &Model| Family::new([("a", first.clone()), ("b", second.clone())]);
    let without = Model::new(1, 1);
    assert_eq!(missing(&of(&without, &with), ""), Some(ModelReference::new("b")));
    assert_eq!(missing(&of(&without, &with), "tokenizer_source: b\n"), None);
    assert_eq!(missing(&of(&with, &without), ""), None);
    assert_eq!(missing(&of(&without, &without), ""), None);
}

#[test]
fn tokenizers_of_all_kinds_are_copied_and_links_that_lead_nowhere_are_told() {
    let kinds =
        ["source.spm", "target.spm", "spm.model", "bpe.codes", "normalizer.json", "qwen.tiktoken", "tiktoken.model"];
    let mut with = Model::new(1, 1);
    with.files.extend(kinds.map(|name| (name.to_owned(), name.to_owned())));
    let family = Family::new([("a", with), ("b", Model::new(1, 2))]);
    let merge = |more: &str, output: &str| {
        let recipe = Recipe::from_mergekit_yaml(&format!("{AVERAGE}{more}")).unwrap();
        let merged = family.merger.materialize(&recipe, &family.folder.path().join(output), &MergeOptions::default());
        merged.map(|report| (report.missing_tokenizer, report.notes)).map_err(|error| error.to_string())
    };
    assert_eq!(merge("", "one"), Ok((None, vec![])));
    for name in kinds {
        assert_eq!(std::fs::read_to_string(family.folder.path().join("one").join(name)).unwrap(), name);
    }
    let own = family.folder.path().join("a");
    let break_link = |name: &str| {
        let _ = std::fs::remove_file(own.join(name));
        std::os::unix::fs::symlink("nowhere", own.join(name)).unwrap();
    };
    break_link("normalizer.json");
    let (_, notes) = merge("", "two").unwrap();
    assert!(notes[0].contains("normalizer.json is a link that leads nowhere"), "{notes:?}");
    break_link("source.spm");
    let error = merge("", "three").unwrap_err();
    assert!(error.contains("source.spm") && error.contains("is the download complete?"), "{error}");
    kinds.iter().for_each(|name| std::fs::remove_file(own.join(name)).unwrap());
    assert_eq!(merge("", "four"), Ok((None, vec![])));
    let (_, notes) = merge("tokenizer_source: base\n", "five").unwrap();
    assert!(notes[0].contains("`tokenizer_source` asks for that of `a`, which has none"), "{notes:?}");
}

#[test]
fn one_tokenizer_is_given_to_models_whose_ids_agree_as_far_as_they_go() {
    let own = || tokenizer(json!({"x": 0, "y": 1}), 2);
    for other in [Some(own()), Some(tokenizer(json!({"y": 1, "x": 0, "z": 3}), 2)), None] {
        let family = with_tokenizers(own(), other);
        family.merge(&format!("{AVERAGE}tokenizer_source: base\n"));
        assert_eq!(std::fs::read_to_string(family.output().join("tokenizer.json")).unwrap(), own());
    }
    // Nobody asked for one tokenizer.
    with_tokenizers(own(), Some(tokenizer(json!({"x": 1, "y": 0}), 2))).merge(AVERAGE);
}
