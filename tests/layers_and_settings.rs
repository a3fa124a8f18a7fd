//! Layers of several towers and of several kinds in merges, and the configuration that is written beside them: what it
//! says of layers that were stacked, what it has of a base, and which numbers it keeps.

#[path = "support/models.rs"]
#[allow(dead_code, reason = "shared with the tests of other merges")]
mod models;

use evomerge::checkpoint::Checkpoint;
use evomerge::merge::MergeOptions;
use evomerge::recipe::Recipe;
use models::{AVERAGE, EMBEDDING, Family, Model, TIE, add_tower, average, bfloat16, merge_into, stack, values};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

/// The configuration of a model of which these runs of layers are stacked.
fn stacked_config(model: Model, ranges: &[[usize; 2]]) -> Map<String, Value> {
    let slices: Vec<(&str, [usize; 2])> = ranges.iter().map(|range| ("a", *range)).collect();
    Family::new([("a", model)]).merge(&stack(&slices)).config().clone()
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
fn a_model_that_stores_a_layer_beyond_those_it_counts_is_counted_anew() {
    let mut model = Model::new(3, 1);
    model.config(json!({"num_hidden_layers": 2, "num_nextn_predict_layers": 1}));
    assert_eq!(stacked_config(model.clone(), &[[0, 2], [1, 2], [0, 2]])["num_hidden_layers"], 5);
    assert_eq!(stacked_config(model.clone(), &[[0, 1]])["num_hidden_layers"], 1);
    let mut nested = model;
    nested.files.insert("config.json".into(), json!({"text_config": {"num_hidden_layers": 2}}).to_string());
    assert_eq!(stacked_config(nested, &[[0, 2], [0, 2]])["text_config"]["num_hidden_layers"], 4);
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
