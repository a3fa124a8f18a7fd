//! Merges of models that are built otherwise than most: heads that are tied or named otherwise, several towers, layers
//! that are not counted, vocabularies and types that differ.

#[path = "support/models.rs"]
mod models;

use std::sync::Arc;

use evomerge::checkpoint::{Checkpoint, ContentIds};
use evomerge::exit::ExitCode;
use evomerge::merge::{BaseUse, InputCount, MergeOptions, Merger, MergerOptions, Survivor, methods};
use evomerge::recipe::{MaskKind, ModelReference, Recipe, RecipeFile};
use models::{AVERAGE, Family, Model, average, floats, values};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const TIE: &str = "tie_word_embeddings";
const ALONE: &str = "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\n";

fn tied(layers: usize, seed: u32) -> Model {
    let mut model = Model::new(layers, seed);
    model.remove(HEAD);
    model.config(json!({ TIE: true }));
    model
}

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

fn merge_into(family: &Family, recipe: &Recipe, name: &str) -> Checkpoint {
    let output = family.folder.path().join(name);
    family.merger.materialize(recipe, &output, &MergeOptions::default()).unwrap();
    Checkpoint::open(&output).unwrap()
}

/// Stacks runs of layers, each of the model named before it.
fn stack(slices: &[(&str, [usize; 2])]) -> String {
    let slice = |(model, [first, end]): &(&str, [usize; 2])| {
        format!("- sources: [{{model: {model}, layer_range: [{first}, {end}]}}]\n")
    };
    format!("merge_method: passthrough\nslices:\n{}", slices.iter().map(slice).collect::<String>())
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

/// The configuration of a model of which these runs of layers are stacked.
fn stacked_config(model: Model, ranges: &[[usize; 2]]) -> Map<String, Value> {
    let slices: Vec<(&str, [usize; 2])> = ranges.iter().map(|range| ("a", *range)).collect();
    Family::new([("a", model)]).merge(&stack(&slices)).config().clone()
}

/// Adds `layers` layers of `tensors` tensors each.
fn add_tower(model: &mut Model, prefix: &str, layers: usize, tensors: usize) {
    for layer in 0..layers {
        for tensor in 0..tensors {
            model.add(&format!("{prefix}{layer}.{tensor}_proj.weight"), &[4, 4], (10 * layer + tensor) as u32);
        }
    }
}

#[test]
fn gradients_are_read_in_each_tower_at_its_own_depth() {
    let model = |seed: u32| {
        let mut model = Model::empty(json!({TIE: true}));
        let names = (0..4)
            .map(|block| format!("encoder.block.{block}.mlp.weight"))
            .chain((0..3).map(|block| format!("decoder.block.{block}.mlp.weight")))
            .chain(
                ["shared.weight", "decoder.norm.weight", "projector.0.weight", "projector.1.weight"].map(str::to_owned),
            );
        for (index, name) in names.enumerate() {
            model.add(&name, &[4, 4], 100 * seed + index as u32);
        }
        model
    };
    let family = Family::new([("a", model(1)), ("b", model(2))]);
    let gradients = "{weight: [1, 0]}}";
    let recipe = format!(
        "merge_method: linear\nmodels:\n- {{model: a, parameters: {gradients}\n- {{model: b, parameters: {{weight: [0, 1]}}}}\n"
    );
    let merged = family.merge(&recipe);
    let (a, b) = (family.model("a"), family.model("b"));
    for (name, from) in [
        ("encoder.block.0.mlp.weight", &a),
        ("encoder.block.3.mlp.weight", &b),
        ("decoder.block.0.mlp.weight", &a),
        ("decoder.block.2.mlp.weight", &b),
        ("shared.weight", &a),
        ("decoder.norm.weight", &a),
        ("projector.1.weight", &a),
    ] {
        assert_eq!(values(&merged, name), values(from, name), "{name}");
    }
    let middle = "decoder.block.1.mlp.weight";
    assert_eq!(values(&merged, middle), average(&values(&a, middle), &values(&b, middle)));
    // Slices are of layers; the other tower is outside of them, which is told.
    let slices = recipe.replace("models:", "slices:\n- sources:").replace("\n- {", "\n  - {");
    let slices = slices.replace("parameters", "layer_range: [0, 4], parameters");
    std::fs::remove_dir_all(family.output()).unwrap();
    let report = family.try_merge(&slices, &MergeOptions::default()).unwrap();
    assert!(
        report.notes[0].contains("`slices` are layers of `encoder.block.N`: `decoder.block.N`"),
        "{:?}",
        report.notes
    );
    let merged = Checkpoint::open(&family.output()).unwrap();
    assert_eq!(values(&merged, "decoder.block.2.mlp.weight"), values(&a, "decoder.block.2.mlp.weight"));
    assert_eq!(values(&merged, "encoder.block.3.mlp.weight"), values(&b, "encoder.block.3.mlp.weight"));
}

#[test]
fn only_the_stacked_half_of_an_encoder_and_decoder_counts_more_layers() {
    let config = |counts: [&str; 2], prefixes: [&str; 2], stacked: usize| {
        let mut model = Model::empty(json!({ counts[0]: 2, counts[1]: 2, TIE: true }));
        model.add("shared.weight", &[10, 4], 1);
        for (half, prefix) in prefixes.iter().enumerate() {
            add_tower(&mut model, prefix, 2, if half == stacked { 3 } else { 2 });
        }
        let config = stacked_config(model, &[[0, 2], [1, 2]]);
        counts.map(|count| config[count].as_u64().unwrap())
    };
    let (t5, of_t5) = (["num_layers", "num_decoder_layers"], ["encoder.block.", "decoder.block."]);
    let (bart, of_bart) = (["encoder_layers", "decoder_layers"], ["model.encoder.layers.", "model.decoder.layers."]);
    for (counts, prefixes) in [(t5, of_t5), (bart, of_bart)] {
        assert_eq!(config(counts, prefixes, 0), [3, 2], "{counts:?}");
        assert_eq!(config(counts, prefixes, 1), [2, 3], "{counts:?}");
    }
}

#[test]
fn the_layers_of_a_model_that_sees_or_hears_are_those_of_its_text() {
    let config = |text: usize, vision: usize| {
        let mut model = Model::empty(json!({
            "text_config": {"num_hidden_layers": 2, "layer_types": ["x", "y"], TIE: true},
            "vision_config": {"num_hidden_layers": 2, "layer_types": ["v", "w"]},
        }));
        model.add("language_model.model.embed_tokens.weight", &[10, 4], 1);
        add_tower(&mut model, "language_model.model.layers.", 2, text);
        add_tower(&mut model, "vision_tower.vision_model.encoder.layers.", 2, vision);
        let mut config = stacked_config(model, &[[0, 2], [1, 2]]);
        ["text_config", "vision_config"].map(|tower| {
            let tower = config.remove(tower).unwrap();
            (tower["num_hidden_layers"].as_u64().unwrap(), tower["layer_types"].clone())
        })
    };
    assert_eq!(config(3, 2), [(3, json!(["x", "y", "y"])), (2, json!(["v", "w"]))]);
    assert_eq!(config(2, 5), [(3, json!(["x", "y", "y"])), (2, json!(["v", "w"]))]);
    for (prefix, counts) in
        [("visual.blocks.", json!({"depth": 4})), ("audio_tower.layers.", json!({"encoder_layers": 4}))]
    {
        let mut model = Model::empty(json!({"num_hidden_layers": 2, "side_config": counts}));
        add_tower(&mut model, "model.layers.", 2, 2);
        add_tower(&mut model, prefix, 4, 5);
        let config = stacked_config(model, &[[0, 2], [0, 2]]);
        assert_eq!((&config["num_hidden_layers"], &config["side_config"]), (&json!(4), &counts));
    }
    let mut only_sees = Model::empty(json!({"num_hidden_layers": 2}));
    add_tower(&mut only_sees, "vision_model.encoder.layers.", 2, 2);
    assert_eq!(stacked_config(only_sees, &[[0, 2], [0, 1]])["num_hidden_layers"], 3);
}

/// A model of four layers, of which some have tensors `moe` and the others `mlp`.
fn of_two_kinds(settings: Value, with_experts: [bool; 4]) -> Model {
    let mut model = Model::empty(json!({"num_hidden_layers": 4, TIE: true}));
    model.config(settings);
    model.add(EMBEDDING, &[10, 4], 1);
    for (layer, is_moe) in with_experts.into_iter().enumerate() {
        let name = if is_moe { "moe" } else { "mlp" };
        model.add(&format!("model.layers.{layer}.{name}.weight"), &[4, 4], layer as u32);
        model.add(&format!("model.layers.{layer}.attn.weight"), &[4, 4], 9 + layer as u32);
    }
    model
}

#[test]
fn every_list_with_an_entry_a_layer_follows_the_layers_and_lists_of_layers_are_numbered_anew() {
    let settings = json!({
        "activation_sparsity_pattern": [0.9, 0.8, 0.0, 0.1],
        "some_new_setting": [{"x": 0}, {"x": 1}, {"x": 2}, {"x": 3}],
        "windows": [null, 7, null, 8],
        "moe_layers": [1, 3],
        "attn_layer_indices": [0],
        "hybrid_override_pattern": "M*-M",
        "eos_token_id": [1, 2, 3, 4],
        "conv_kernel": [5, 6, 7, 8],
        "time_step_limit": [0, 1, 2, 3],
        "pairs": [[1, 2], [3, 4], [5, 6], [7, 8]],
        "three": [1, 2, 3],
        "mlp_only_layers": [0, 9],
    });
    let config = stacked_config(of_two_kinds(settings.clone(), [false, true, false, true]), &[[2, 4], [1, 2], [0, 2]]);
    let expected = json!({
        "activation_sparsity_pattern": [0.0, 0.1, 0.8, 0.9, 0.8],
        "some_new_setting": [{"x": 2}, {"x": 3}, {"x": 1}, {"x": 0}, {"x": 1}],
        "windows": [null, 8, 7, null, 7],
        "moe_layers": [1, 2, 4],
        "attn_layer_indices": [3],
        "hybrid_override_pattern": "-M*M*",
    });
    let follows = expected.as_object().unwrap();
    for (key, value) in settings.as_object().unwrap() {
        assert_eq!(&config[key], follows.get(key).unwrap_or(value), "{key}");
    }
}

#[test]
fn entries_by_layers_numbers_follow_the_layers() {
    let settings = json!({
        "per_layer_config": {"3": {"head_dim": 512}, "1": {"head_dim": 256}},
        "id2label": {"0": "no", "1": "yes"},
        "other": {"3": 1, "4": 2},
        "named": {"03": 1},
        "none": {},
    });
    let config = stacked_config(of_two_kinds(settings.clone(), [true; 4]), &[[3, 4], [0, 4]]);
    assert_eq!(
        config["per_layer_config"],
        json!({"0": {"head_dim": 512}, "2": {"head_dim": 256}, "4": {"head_dim": 512}})
    );
    for key in ["id2label", "other", "named", "none"] {
        assert_eq!(config[key], settings[key], "{key}");
    }
    assert_eq!(stacked_config(of_two_kinds(settings, [true; 4]), &[[0, 1]])["per_layer_config"], json!({}));
}

#[test]
fn a_rule_that_holds_up_to_the_last_layer_holds_up_to_the_new_one() {
    let stacked = |settings: Value, range: [usize; 2]| {
        stacked_config(of_two_kinds(settings, [false, true, true, true]), &[[0, 4], range])
    };
    assert_eq!(stacked(json!({"moe_layer_end_index": 3}), [2, 4])["moe_layer_end_index"], 5);
    assert_eq!(stacked(json!({"moe_layer_end_index": 2}), [2, 4])["moe_layer_end_index"], 2);
    let huge = json!({"moe_layer_end_index": u64::MAX});
    assert_eq!(stacked(huge, [2, 4])["moe_layer_end_index"], u64::MAX);
    let windows = |used: bool, first: u64| json!({"use_sliding_window": used, "max_window_layers": first});
    assert_eq!(stacked(windows(true, 4), [2, 4])["max_window_layers"], 6);
    assert_eq!(stacked(windows(false, 4), [2, 4])["max_window_layers"], 4);
    assert_eq!(stacked(windows(true, 3), [2, 4])["max_window_layers"], 3);
    let notes = |settings: Value| {
        let family = Family::new([("a", of_two_kinds(settings, [true; 4]))]);
        family.try_merge(&stack(&[("a", [0, 4]), ("a", [2, 4])]), &MergeOptions::default()).unwrap().notes
    };
    assert_eq!(notes(windows(true, 4)), Vec::<String>::new());
    assert_eq!(notes(windows(false, 3)), Vec::<String>::new());
    assert!(notes(windows(true, 3))[0].contains("`max_window_layers`"));
}

#[test]
fn tensors_that_no_loader_reads_make_no_layer_another_kind() {
    let mask = (MASK, Dtype::F32, &[1, 1, 2, 2][..], floats([1.0; 4]));
    let family = Family::new([("a", gpt2(1, &[mask])), ("b", gpt2(2, &[]))]);
    let report = family.try_merge(&stack(&[("a", [0, 2]), ("b", [0, 2])]), &MergeOptions::default()).unwrap();
    assert_eq!(report.notes, Vec::<String>::new());
}

#[test]
fn layers_of_another_kind_than_their_place_has_are_told() {
    let notes = |settings: Value, with_experts, ranges: &[[usize; 2]]| {
        let slices: Vec<(&str, [usize; 2])> = ranges.iter().map(|range| ("a", *range)).collect();
        let family = Family::new([("a", of_two_kinds(settings, with_experts))]);
        family.try_merge(&stack(&slices), &MergeOptions::default()).unwrap().notes.join("; ")
    };
    let (dense_first, by_turns) = ([false, true, true, true], [false, true, false, true]);
    let first = || json!({"first_k_dense_replace": 1});
    assert_eq!(notes(first(), dense_first, &[[0, 4], [1, 4]]), "");
    let note = notes(first(), dense_first, &[[1, 2], [0, 4], [0, 1]]);
    assert!(note.contains("stacked layers, 0, 1, 5 have other tensors"), "{note}");
    assert!(note.contains("`first_k_dense_replace`"), "{note}");
    // Kinds by turns stay by turns, or they do not.
    let period = || json!({"expert_layer_period": 2});
    assert_eq!(notes(period(), by_turns, &[[0, 4], [2, 4]]), "");
    assert!(notes(period(), by_turns, &[[0, 4], [3, 4]]).contains("layers, 4 has other tensors"));
    let parts = json!({"hidden_size_per_layer_input": 8});
    assert!(
        notes(parts, [true; 4], &[[0, 4], [3, 4]])
            .starts_with("the model has tensors with a part for each of its layers")
    );
    // A list that follows says the kinds, wherever they are.
    for said in
        [json!({"moe_layers": [1, 3]}), json!({"mlp_layer_types": ["d", "s", "d", "s"], "decoder_sparse_step": 1})]
    {
        assert_eq!(notes(said, by_turns, &[[1, 4], [0, 4], [0, 1]]), "");
    }
    // Nothing says that only the first layer has a tensor.
    assert!(notes(json!({}), [true, false, false, false], &[[0, 2], [0, 2]]).contains("layers, 2 has other tensors"));
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
fn a_base_that_slices_do_not_list_gives_what_is_not_merged() {
    let mut base = Model::new(2, 3);
    base.config(json!({"model_type": "of the base"}));
    base.files.insert("tokenizer.json".into(), "\"base\"".into());
    let family = Family::new([("a", Model::new(2, 1)), ("b", Model::new(2, 2)), ("base", base)]);
    let merged = family.merge(&format!("{}base_model: base\n", stack(&[("a", [0, 2]), ("b", [1, 2])])));
    let b = family.model("b");
    assert_eq!(values(&merged, "model.layers.2.mlp.weight"), values(&b, "model.layers.1.mlp.weight"));
    assert_eq!(
        (&merged.config()["model_type"], &merged.config()["num_hidden_layers"]),
        (&json!("of the base"), &json!(3))
    );
    assert_eq!(std::fs::read_to_string(family.output().join("tokenizer.json")).unwrap(), "\"base\"");
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
fn a_model_that_stores_a_layer_beyond_those_it_counts_is_counted_anew() {
    let mut model = Model::new(3, 1);
    model.config(json!({"num_hidden_layers": 2, "num_nextn_predict_layers": 1}));
    assert_eq!(stacked_config(model.clone(), &[[0, 2], [1, 2], [0, 2]])["num_hidden_layers"], 5);
    assert_eq!(stacked_config(model.clone(), &[[0, 1]])["num_hidden_layers"], 1);
    let mut nested = model;
    nested.files.insert("config.json".into(), json!({"text_config": {"num_hidden_layers": 2}}).to_string());
    assert_eq!(stacked_config(nested, &[[0, 2], [0, 2]])["text_config"]["num_hidden_layers"], 4);
}

/// The same numbers, cut to their upper half.
fn bfloat16(mut model: Model) -> Model {
    for (_, dtype, _, bytes) in &mut model.tensors {
        *dtype = Dtype::BF16;
        *bytes = bytes.chunks_exact(4).flat_map(|word| [word[2], word[3]]).collect();
    }
    model.config(json!({"torch_dtype": "bfloat16"}));
    model
}

#[test]
fn a_listed_base_gives_its_type_where_the_method_has_no_other_use_for_it() {
    let family = Family::new([("a", Model::new(2, 1)), ("b", bfloat16(Model::new(2, 2)))]);
    let linear = "merge_method: linear\nparameters: {weight: 0.5}\n";
    let slice = |layers: &str| {
        format!(
            "- sources: [{{model: a, layer_range: {layers}}}, {{model: b, layer_range: {layers}}}]\n  base_model: b\n"
        )
    };
    let recipes = [
        format!("{AVERAGE}base_model: b\n"),
        "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nbase_model: b\n".to_owned(),
        format!("{linear}slices:\n{}{}", slice("[0, 2]"), slice("[1, 2]")),
    ];
    for (index, recipe) in recipes.iter().enumerate() {
        let merged = merge_into(&family, &Recipe::from_mergekit_yaml(recipe).unwrap(), &index.to_string());
        assert!(merged.tensors().values().all(|info| info.dtype == Dtype::BF16), "{recipe}");
        assert_eq!(merged.config()["torch_dtype"], "bfloat16", "{recipe}");
    }
    let merged = family.merge(AVERAGE);
    assert!(merged.tensors().values().all(|info| info.dtype == Dtype::F32));
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

#[test]
fn a_stored_rotary_table_that_the_base_lacks_is_left_out() {
    let table = "model.layers.0.self_attn.rotary_emb.inv_freq";
    let with_table = |seed| {
        let mut model = Model::new(1, seed);
        model.add(table, &[2], 5);
        model
    };
    let family = Family::new([("base", Model::new(1, 1)), ("a", with_table(2)), ("b", with_table(3))]);
    let several = |inputs| matches!(inputs, InputCount::AtLeast(_));
    let strict = methods().iter().filter(|method| {
        method.base == BaseUse::Required && method.survivor == Survivor::None && several(method.inputs)
    });
    let optional = methods().iter().filter(|method| method.base == BaseUse::Optional);
    let mut merged = 0;
    for method in strict.chain(optional) {
        let asked = method.parameters.iter().filter(|parameter| parameter.required() || parameter.name == "density");
        let parameters: Map<String, Value> = asked.map(|parameter| (parameter.name.to_owned(), json!(0.5))).collect();
        let recipe = json!({
            "merge_method": method.name, "base_model": "base", "models": [{"model": "a"}, {"model": "b"}],
            "parameters": parameters,
        });
        let recipe = Recipe::from_mergekit_yaml(&recipe.to_string()).unwrap();
        let names = merge_into(&family, &recipe, method.name);
        assert!(names.tensors().keys().eq(family.model("base").tensors().keys()), "{}", method.name);
        merged += 1;
    }
    assert!(merged > 8, "{merged}");
}

const MASKED: &str = "transformer.h.0.attn.masked_bias";
const MASK: &str = "transformer.h.0.attn.bias";

/// A small GPT-2, with tensors besides.
fn gpt2(seed: u32, besides: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Model {
    let mut model = Model::empty(json!({"num_hidden_layers": 2, TIE: true}));
    model.add("transformer.wte.weight", &[10, 4], seed);
    for layer in 0..2 {
        model.add(&format!("transformer.h.{layer}.attn.c_attn.weight"), &[4, 6], seed + layer);
        model.add(&format!("transformer.h.{layer}.attn.c_attn.bias"), &[6], seed + layer + 5);
    }
    for (name, dtype, shape, bytes) in besides {
        model.tensors.push(((*name).to_owned(), *dtype, shape.to_vec(), bytes.clone()));
    }
    model
}

const TASK_VECTORS: &str =
    "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n";

#[test]
fn what_no_loader_reads_is_copied_from_the_base_or_the_first_model_that_has_it() {
    let scalar = |value: f32| (MASKED, Dtype::F32, &[][..], floats([value]));
    let with = |seed, value, dtype: Dtype, length: usize| {
        let shape = [1, 1, length, length];
        let mask = vec![1; length * length * dtype.bitsize() / 8];
        gpt2(seed, &[scalar(value), (MASK, dtype, shape.as_slice(), mask)])
    };
    // In one model only; of other types, lengths and values.
    let family = Family::new([
        ("base", gpt2(1, &[])),
        ("a", with(2, -1e4, Dtype::F32, 8)),
        ("b", with(3, -1e9, Dtype::BOOL, 4)),
        ("c", with(4, -1e9, Dtype::U8, 8)),
    ]);
    let copied = |recipe: &str, output: &str, from: &str| {
        let merged = merge_into(&family, &Recipe::from_mergekit_yaml(recipe).unwrap(), output);
        for name in [MASK, MASKED] {
            let (found, expected) = (merged.bytes(name), family.model(from));
            assert_eq!((found, &merged.tensors()[name].shape), (expected.bytes(name), &expected.tensors()[name].shape));
        }
        merged
    };
    let merged = copied(AVERAGE, "average", "a");
    let weight = "transformer.h.1.attn.c_attn.weight";
    assert_eq!(
        values(&merged, weight),
        average(&values(&family.model("a"), weight), &values(&family.model("b"), weight))
    );
    copied(TASK_VECTORS, "lacking", "a");
    copied(&TASK_VECTORS.replace("base_model: base", "base_model: c"), "having", "c");
    copied(&AVERAGE.replace("model: a", "model: base"), "one", "b");
    // A vector of that name is a bias, which all models need.
    let bias = (MASK, Dtype::F32, &[2][..], floats([1.0, 2.0]));
    let family = Family::new([("a", gpt2(1, &[bias])), ("b", gpt2(2, &[]))]);
    assert!(family.refusal(AVERAGE).to_string().contains(MASK));
}

#[test]
fn what_no_loader_reads_need_not_be_finite_nor_fit_the_output() {
    let half = |bits: u16| (MASKED, Dtype::F16, &[][..], bits.to_le_bytes().to_vec());
    let single = || (MASKED, Dtype::F32, &[][..], floats([-1e9]));
    for besides in [half(0xFC00), single()] {
        let model = |seed| gpt2(seed, std::slice::from_ref(&besides));
        let family = Family::new([("base", model(1)), ("a", model(2)), ("b", model(3))]);
        assert_eq!(family.model("a").first_nonfinite(), None);
        for (index, recipe) in [AVERAGE, TASK_VECTORS].iter().enumerate() {
            for dtype in ["float16", "bfloat16", "float32"] {
                let recipe = Recipe::from_mergekit_yaml(&format!("{recipe}dtype: {dtype}\n")).unwrap();
                let merged = merge_into(&family, &recipe, &format!("{dtype}-{index}"));
                assert_eq!(merged.bytes(MASKED), Some(besides.3.as_slice()));
                assert_eq!(merged.tensors()[MASKED].dtype, besides.1);
            }
        }
    }
}

#[test]
fn counters_of_batches_are_the_bases_or_the_first_models_and_that_is_told() {
    let counter = "norm.num_batches_tracked";
    let counted = |seed, batches: i64| {
        let mut model = Model::new(1, seed);
        model.tensors.push((counter.to_owned(), Dtype::I64, vec![], batches.to_le_bytes().to_vec()));
        model
    };
    let family = Family::new([("base", counted(1, 7)), ("a", counted(2, 8)), ("b", counted(3, 9))]);
    for (recipe, output, expected, name) in [(AVERAGE, "one", 8_i64, "`a`"), (TASK_VECTORS, "two", 7, "`base`")] {
        let recipe = Recipe::from_mergekit_yaml(recipe).unwrap();
        let merged = merge_into(&family, &recipe, output);
        assert_eq!(merged.bytes(counter), Some(expected.to_le_bytes().as_slice()));
        let notes = family.merger.notes(&recipe).unwrap();
        assert!(notes.iter().any(|note| note.contains(&format!("the counters of {name} are written"))), "{notes:?}");
    }
    let alike = Family::new([("a", counted(1, 7)), ("b", counted(2, 7))]);
    let report = alike.try_merge(AVERAGE, &MergeOptions::default()).unwrap();
    assert_eq!(report.notes, Vec::<String>::new());
}

#[test]
fn copies_of_tied_tensors_that_only_some_models_store_are_left_out() {
    let bert = |seed, config: Value, copies: &[(&str, &str)]| {
        let mut model = Model::empty(config);
        model.add("roberta.embeddings.word_embeddings.weight", &[10, 4], seed);
        model.add("lm_head.bias", &[10], seed + 1);
        add_tower(&mut model, "roberta.encoder.layer.", 2, 2);
        for (copy, original) in copies {
            let (_, dtype, shape, bytes) = model.tensors.iter().find(|tensor| tensor.0 == *original).unwrap().clone();
            model.tensors.push(((*copy).to_owned(), dtype, shape, bytes));
        }
        model
    };
    let embedding = "roberta.embeddings.word_embeddings.weight";
    let copies = [("lm_head.decoder.weight", embedding), ("lm_head.decoder.bias", "lm_head.bias")];
    let family = Family::new([("a", bert(1, json!({}), &copies)), ("b", bert(2, json!({}), &[]))]);
    let merged = family.merge(AVERAGE);
    assert!(merged.tensors().keys().eq(family.model("b").tensors().keys()));
    // What differs is a weight of its own, and so is what a model does not tie.
    let mut changed = bert(1, json!({}), &copies);
    changed.set("lm_head.decoder.weight", 3, 9.0);
    for other in [changed, bert(1, json!({ TIE: false }), &copies)] {
        let family = Family::new([("a", other), ("b", bert(2, json!({}), &[]))]);
        assert!(family.refusal(AVERAGE).to_string().contains("lm_head.decoder."));
    }
}

#[test]
fn names_that_lack_the_inner_model_s_are_those_of_the_models_that_have_it() {
    let bare = |mut model: Model| {
        for tensor in &mut model.tensors {
            tensor.0 = tensor.0.trim_start_matches("transformer.").to_owned();
        }
        model
    };
    let mask = (MASK, Dtype::F32, &[1, 1, 2, 2][..], floats([1.0; 4]));
    let whole = Family::new([("base", gpt2(1, std::slice::from_ref(&mask))), ("a", gpt2(2, &[])), ("b", gpt2(3, &[]))]);
    let mixed = Family::new([("base", bare(gpt2(1, &[mask]))), ("a", gpt2(2, &[])), ("b", bare(gpt2(3, &[])))]);
    for recipe in [AVERAGE, TASK_VECTORS, &format!("{DARE}models: [{{model: a}}]\n")] {
        let (expected, merged) = (whole.merge(recipe), mixed.merge(recipe));
        assert!(merged.tensors().keys().eq(expected.tensors().keys()));
        for name in expected.tensors().keys() {
            assert_eq!(merged.bytes(name), expected.bytes(name), "{name}");
        }
        let report = mixed.merger.notes(&Recipe::from_mergekit_yaml(recipe).unwrap()).unwrap();
        assert!(report.iter().any(|note| note.contains(" is `h.0.attn.")), "{report:?}");
        for family in [&whole, &mixed] {
            std::fs::remove_dir_all(family.output()).unwrap();
        }
    }
    // Masks do not depend on which other models there are.
    let recipe = format!("{DARE}models: [{{model: b}}]\n");
    let two = Family::new([("base", bare(gpt2(1, &[]))), ("b", bare(gpt2(3, &[])))]);
    let (alone, among_others) = (two.merge(&recipe), mixed.merge(&recipe));
    let weight = "h.1.attn.c_attn.weight";
    assert_eq!(alone.bytes(weight).unwrap(), among_others.bytes(&format!("transformer.{weight}")).unwrap());
    assert_ne!(alone.bytes(weight), two.model("b").bytes(weight));
    let mut other = Model::empty(json!({}));
    add_tower(&mut other, "h.", 2, 3);
    let error = Family::new([("a", other), ("b", gpt2(2, &[]))]).refusal(AVERAGE).to_string();
    assert!(error.contains("different architectures") && !error.contains("the same names"), "{error}");
}

#[test]
fn layers_of_the_same_weights_behind_other_names_are_told_how_to_mend_that() {
    let mut other = gpt2(1, &[]);
    for tensor in &mut other.tensors {
        tensor.0 = tensor.0.replace("transformer.h", "model.layers");
    }
    let error = Family::new([("a", other), ("b", gpt2(2, &[]))]).refusal(AVERAGE).to_string();
    for part in ["`transformer.h.N`", "`model.layers.N`", "the same names", "load `a` with transformers", "of `b`"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn spherical_merges_of_task_vectors_need_every_tensor_in_the_base() {
    let mut base = Model::new(1, 1);
    base.remove(HEAD);
    let family = Family::new([("base", base), ("a", Model::new(1, 2)), ("b", Model::new(1, 3))]);
    for method in ["nuslerp", "multislerp"] {
        let recipe =
            format!("merge_method: {method}\nmodels: [{{model: a}}, {{model: b}}]\nparameters: {{weight: 0.5}}\n");
        let error = family.refusal(&format!("{recipe}base_model: base\n")).to_string();
        assert!(error.contains("`lm_head.weight`") && error.contains("the base model lacks it"), "{method}: {error}");
        let merged = merge_into(&family, &Recipe::from_mergekit_yaml(&recipe).unwrap(), method);
        assert!(merged.tensors().contains_key(HEAD));
    }
}

#[test]
fn the_karcher_mean_of_one_model_is_that_model_however_small_its_numbers_are() {
    let mut model = Model::new(2, 1);
    for element in 0..4 {
        model.set("model.layers.0.norm.weight", element, [1e-9, -3e-12, 0.0, 2e-30][element]);
        model.set("model.layers.1.norm.weight", element, [1e-39, -2e-40, 0.0, 3e-41][element]);
        model.set("model.norm.weight", element, 0.0);
    }
    for model in [model.clone(), bfloat16(model)] {
        let family = Family::new([("a", model)]);
        let merged = family.merge("merge_method: karcher\nmodels: [{model: a}]\n");
        let a = family.model("a");
        for name in a.tensors().keys() {
            assert_eq!(merged.bytes(name), a.bytes(name), "{name}");
        }
    }
}

fn with_mergekit_masks(family: &Family, recipe: &str, output: &str) -> Checkpoint {
    let mut recipe = Recipe::from_mergekit_yaml(recipe).unwrap();
    recipe.masks.kind = MaskKind::Mergekit;
    merge_into(family, &recipe, output)
}

const DARE: &str = "merge_method: dare_linear\nbase_model: base\nparameters: {weight: 1, density: 0.5}\n";

#[test]
fn layers_that_change_places_take_their_mergekit_masks_along() {
    let family = Family::new([("base", Model::new(2, 1)), ("a", Model::new(2, 2))]);
    let plain = with_mergekit_masks(&family, &format!("{DARE}models: [{{model: a}}]\n"), "plain");
    let slice = |layers: &str| {
        format!("- sources: [{{model: base, layer_range: {layers}}}, {{model: a, layer_range: {layers}}}]\n")
    };
    let swapped = format!("{DARE}slices:\n{}{}", slice("[1, 2]"), slice("[0, 1]"));
    let swapped = with_mergekit_masks(&family, &swapped, "swapped");
    for name in plain.tensors().keys() {
        let place = match name {
            name if name.contains("layers.0.") => name.replace("layers.0.", "layers.1."),
            name => name.replace("layers.1.", "layers.0."),
        };
        assert_eq!(values(&swapped, &place), values(&plain, name), "{name}");
    }
}

#[test]
fn a_head_that_a_base_ties_draws_its_mergekit_mask_when_the_embedding_does() {
    let model = |seed, tie: bool| {
        let mut model = Model::empty(json!({"n_layer": 2, TIE: tie}));
        model.add("transformer.wte.weight", &[10, 4], seed);
        add_tower(&mut model, "transformer.h.", 2, 2);
        model.add("transformer.h.1.bias", &[6], seed + 1);
        model.add("transformer.h.0.bias", &[6], seed + 2);
        if !tie {
            model.add(HEAD, &[10, 4], seed + 3);
        }
        model
    };
    let family = Family::new([("base", model(1, true)), ("a", model(11, true)), ("b", model(11, false))]);
    let without = with_mergekit_masks(&family, &format!("{DARE}models: [{{model: a}}]\n"), "without");
    let with = with_mergekit_masks(&family, &format!("{DARE}models: [{{model: b}}]\n"), "with");
    for name in ["transformer.h.0.bias", "transformer.h.1.bias"] {
        assert_eq!(values(&with, name), values(&without, name));
    }
    // The embedding is drawn before the head that it fills: seen in mergekit's merges of tied with untied models.
    assert_eq!(values(&with, "transformer.wte.weight"), values(&without, "transformer.wte.weight"));
    assert!(with.tensors().contains_key(HEAD));
}

/// A model whose weights mergekit lists.
fn llama(layers: usize, seed: u32, ties_head: bool) -> Model {
    let mut model = Model::empty(json!({
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers, TIE: ties_head,
    }));
    model.add(EMBEDDING, &[10, 4], seed);
    for layer in 0..layers {
        let attention = ["q", "k", "v", "o"].map(|name| format!("self_attn.{name}_proj.weight"));
        let network = ["up", "gate", "down"].map(|name| format!("mlp.{name}_proj.weight"));
        for name in attention.into_iter().chain(network) {
            model.add(&format!("model.layers.{layer}.{name}"), &[4, 4], seed + 10 * layer as u32);
        }
        for name in ["input", "post_attention"] {
            model.add(&format!("model.layers.{layer}.{name}_layernorm.weight"), &[4], seed);
        }
    }
    model.add("model.norm.weight", &[4], seed + 2);
    if !ties_head {
        model.add(HEAD, &[10, 4], seed + 3);
    }
    model
}

#[test]
fn masks_whose_order_is_not_known_are_told() {
    let uncertain = |models: [(&'static str, Model); 2], masks: MaskKind, method: &str| {
        let family = Family::new(models);
        let text = format!(
            "merge_method: {method}\nbase_model: base\nmodels: [{{model: a}}]\nparameters: {{weight: 1, density: 0.5}}\n"
        );
        let mut recipe = Recipe::from_mergekit_yaml(&text).unwrap();
        recipe.masks.kind = masks;
        let output = family.folder.path().join("merged");
        family.merger.materialize(&recipe, &output, &MergeOptions::default()).unwrap().uncertain_masks
    };
    let mixed = || [("base", tied(1, 1)), ("a", Model::new(1, 2))];
    assert!(uncertain(mixed(), MaskKind::Mergekit, "dare_linear"));
    assert!(!uncertain(mixed(), MaskKind::Native, "dare_linear"));
    assert!(!uncertain(mixed(), MaskKind::Mergekit, "ties"));
    assert!(!uncertain([("base", Model::new(1, 1)), ("a", Model::new(1, 2))], MaskKind::Mergekit, "dare_linear"));
    let listed = || [("base", llama(1, 1, true)), ("a", llama(1, 2, false))];
    assert!(!uncertain(listed(), MaskKind::Mergekit, "dare_linear"));
    let other_weights = listed().map(|(name, mut model)| {
        model.add("model.layers.0.self_attn.q_proj.bias", &[4], 5);
        (name, model)
    });
    assert!(!uncertain(other_weights, MaskKind::Mergekit, "dare_linear"), "mergekit leaves out what it does not list");
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
fn mergekits_masks_are_drawn_for_the_embedding_before_the_head_that_it_fills() {
    let masks = |models: [(&'static str, Model); 3]| {
        let family = Family::new(models);
        let mut recipe = Recipe::from_mergekit_yaml(
            "merge_method: dare_linear\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1, density: 0.5, rescale: false}\n",
        )
        .unwrap();
        recipe.masks.kind = MaskKind::Mergekit;
        merge_into(&family, &recipe, "merged")
    };
    // What a mask keeps of an untied model's embedding and head, and where one of the models ties them.
    let untied = masks([("base", Model::new(1, 1)), ("a", Model::new(1, 2)), ("b", Model::new(1, 3))]);
    let mixed = masks([("base", tied(1, 1)), ("a", tied(1, 2)), ("b", Model::new(1, 3))]);
    let tensor = "model.embed_tokens.weight";
    assert_ne!(
        values(&untied, tensor),
        values(&mixed, tensor),
        "lm_head is drawn first where it has a name of its own"
    );
    let only_embedding = {
        let (mut base, mut a, mut b) = (tied(1, 1), tied(1, 2), tied(1, 3));
        [&mut base, &mut a, &mut b].into_iter().for_each(|model| model.config(json!({ TIE: true })));
        masks([("base", base), ("a", a), ("b", b)])
    };
    assert_eq!(
        values(&only_embedding, tensor),
        values(&mixed, tensor),
        "the embedding comes first where it fills the head"
    );
}

#[test]
fn mergekits_masks_are_refused_where_layers_are_used_twice_in_an_order_that_is_not_known() {
    let slice = |[first, end]: [usize; 2]| {
        format!(
            "- sources: [{{model: base, layer_range: [{first}, {end}]}}, {{model: a, layer_range: [{first}, {end}]}}]\n"
        )
    };
    let text = format!("{DARE}slices:\n{}{}", slice([0, 2]), slice([1, 2]));
    let mut recipe = Recipe::from_mergekit_yaml(&text).unwrap();
    let family = Family::new([("base", Model::new(2, 1)), ("a", Model::new(2, 2))]);
    merge_into(&family, &recipe, "native");
    recipe.masks.kind = MaskKind::Mergekit;
    let error = family.merger.materialize(&recipe, &family.output(), &MergeOptions::default()).unwrap_err();
    assert!(error.to_string().contains("--dare-masks native"), "{error}");
    assert!(!family.output().exists());
    let listed = Family::new([("base", llama(2, 1, false)), ("a", llama(2, 2, false))]);
    let masks = |layer: usize| {
        let merged = merge_into(&listed, &recipe, &layer.to_string());
        values(&merged, &format!("model.layers.{layer}.mlp.up_proj.weight"))
    };
    assert_ne!(masks(1), masks(2), "a layer has masks of its own wherever it is used");
}

#[test]
fn a_karcher_mean_needs_no_tolerance() {
    for models in ["{model: a}, {model: b}", "{model: a}, {model: a2}"] {
        let family = Family::new([("a", Model::new(1, 1)), ("a2", Model::new(1, 1)), ("b", Model::new(1, 2))]);
        let merge = |tolerance: &str, name: &str| {
            let text = format!("merge_method: karcher\nmodels: [{models}]\nparameters: {{tol: {tolerance}}}\n");
            values(&merge_into(&family, &Recipe::from_mergekit_yaml(&text).unwrap(), name), EMBEDDING)
        };
        let pairs = merge("0", "zero").into_iter().zip(merge("1e-9", "usual"));
        pairs.for_each(|(zero, usual)| assert!((zero - usual).abs() < 1e-6, "{zero} {usual}"));
    }
}

#[test]
fn bare_infinities_of_a_configuration_are_kept_as_they_are() {
    let (mut a, b) = (Model::new(1, 1), Model::new(1, 2));
    let config =
        a.files["config.json"].replacen('{', "{\"time_step_limit\": [0.0, Infinity], \"lowest\": -Infinity, ", 1);
    a.files.insert("config.json".into(), config);
    let family = Family::new([("a", a), ("b", b)]);
    family.merge(AVERAGE);
    let written = std::fs::read_to_string(family.output().join("config.json")).unwrap();
    let compact: String = written.split_whitespace().collect();
    assert!(compact.contains("\"time_step_limit\":[0.0,Infinity],\"lowest\":-Infinity,"), "{written}");
}
