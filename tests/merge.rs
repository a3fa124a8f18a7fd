//! Whole merges of small checkpoints: what is written, and what is refused.

#[path = "support/models.rs"]
#[allow(dead_code, reason = "shared with the tests of other merges")]
mod models;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use evomerge::checkpoint::Checkpoint;
use evomerge::exit::ExitCode;
use evomerge::merge::{Action, Isa, MergeError, MergeOptions, MergerOptions, WriteMode};
use evomerge::recipe::{MaskKind, Recipe};
use models::{AVERAGE, Family, Model, average, values};
use safetensors::Dtype;
use serde_json::{Value, json};

#[test]
fn an_average_has_the_tensors_configuration_and_side_files_of_the_first_source() {
    let (mut a, b) = (Model::new(2, 1), Model::new(2, 2));
    a.files.insert("tokenizer.json".into(), "{\"a\": 1}".into());
    a.files.insert("generation_config.json".into(), "{}".into());
    a.config(json!({"model_type": "anything"}));
    let family = Family::new([("a", a), ("b", b)]);
    let merged = family.merge(AVERAGE);
    let (a, b) = (family.model("a"), family.model("b"));
    assert!(merged.tensors().keys().eq(a.tensors().keys()));
    for tensor in merged.tensors().keys() {
        assert_eq!(values(&merged, tensor), average(&values(&a, tensor), &values(&b, tensor)), "{tensor}");
    }
    assert_eq!(merged.config(), a.config());
    assert_eq!(std::fs::read_to_string(family.output().join("tokenizer.json")).unwrap(), "{\"a\": 1}");
    assert!(family.output().join("generation_config.json").exists());
}

#[test]
fn the_tokenizer_may_come_from_another_model_and_the_template_from_the_recipe() {
    let (mut a, mut b) = (Model::new(1, 1), Model::new(1, 2));
    a.files.insert("generation_config.json".into(), "\"a\"".into());
    b.files.insert("generation_config.json".into(), "\"b\"".into());
    b.files.insert("tokenizer.json".into(), "\"b\"".into());
    b.files.insert("tokenizer_config.json".into(), "{\"x\":1,\"chat_template\":\"old\"}".into());
    b.files.insert("chat_template.jinja".into(), "old".into());
    let family = Family::new([("a", a), ("b", b)]);
    family.merge(&format!("{AVERAGE}tokenizer_source: b\nchat_template: '{{{{ messages }}}}'\n"));
    let read = |name: &str| std::fs::read_to_string(family.output().join(name)).unwrap();
    assert_eq!(read("generation_config.json"), "\"a\"");
    assert_eq!(read("tokenizer.json"), "\"b\"");
    assert_eq!(read("chat_template.jinja"), "{{ messages }}");
    let config: Value = serde_json::from_str(&read("tokenizer_config.json")).unwrap();
    assert_eq!(config, json!({"x": 1, "chat_template": "{{ messages }}"}));
}

#[test]
fn slices_stack_layers_and_patch_the_configuration() {
    let (mut a, b) = (Model::new(3, 1), Model::new(3, 2));
    a.config(json!({"layer_types": ["x", "y", "z"], "num_kv_heads": [1, 2, 4]}));
    let family = Family::new([("a", a), ("b", b)]);
    let merged = family.merge(
        "merge_method: linear\nparameters: {weight: 1.0}\nslices:\n\
         - sources: [{model: a, layer_range: [0, 2]}]\n\
         - sources: [{model: a, layer_range: [1, 3]}, {model: b, layer_range: [0, 2]}]\n",
    );
    let (a, b) = (family.model("a"), family.model("b"));
    let layer = |model: &Checkpoint, layer: usize| values(model, &format!("model.layers.{layer}.mlp.weight"));
    assert_eq!(merged.layers().count, 4);
    assert_eq!(layer(&merged, 0), layer(&a, 0));
    assert_eq!(layer(&merged, 1), layer(&a, 1));
    assert_eq!(layer(&merged, 2), average(&layer(&a, 1), &layer(&b, 0)));
    assert_eq!(layer(&merged, 3), average(&layer(&a, 2), &layer(&b, 1)));
    // Embeddings come from the first slice, norm and head from the last.
    let name = "model.embed_tokens.weight";
    assert_eq!(values(&merged, name), values(&a, name));
    for name in ["model.norm.weight", "lm_head.weight"] {
        assert_eq!(values(&merged, name), average(&values(&a, name), &values(&b, name)));
    }
    assert_eq!(merged.config()["num_hidden_layers"], 4);
    assert_eq!(merged.config()["layer_types"], json!(["x", "y", "y", "z"]));
    assert_eq!(merged.config()["num_kv_heads"], json!([1, 2, 2, 4]));
}

#[test]
fn gradients_and_filters_reach_the_tensors_that_they_mean() {
    let family = Family::new([("a", Model::new(3, 1)), ("b", Model::new(3, 2))]);
    let recipe = Recipe::from_mergekit_yaml(
        "merge_method: linear\nmodels:\n\
         - {model: a, parameters: {weight: [{filter: mlp, value: [0, 1]}, {value: 3}]}}\n\
         - {model: b, parameters: {weight: 0.5}}\n",
    )
    .unwrap();
    let plan = family.merger.plan(&recipe).unwrap();
    let weight = |tensor: &str| {
        let tensor = plan.tensors.iter().find(|planned| planned.name == tensor).unwrap();
        let Action::Merge { parameters, .. } = &tensor.action else { panic!("{:?}", tensor.action) };
        format!("{:?}", parameters.sources[0]["weight"])
    };
    assert_eq!(weight("model.layers.0.mlp.weight"), "Number(0.0)");
    assert_eq!(weight("model.layers.1.mlp.weight"), "Number(0.5)");
    assert_eq!(weight("model.layers.2.mlp.weight"), "Number(1.0)");
    assert_eq!(weight("model.layers.2.norm.weight"), "Number(3.0)");
    assert_eq!(weight("lm_head.weight"), "Number(3.0)");
}

#[test]
fn a_filter_that_leaves_a_tensor_without_a_required_value_is_refused() {
    let family = Family::new([("a", Model::new(1, 1)), ("b", Model::new(1, 2))]);
    let error = family.refusal(
        "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: [{filter: mlp, value: 1}]}}\n\
         - {model: b, parameters: {weight: 1}}\n",
    );
    assert!(error.to_string().contains("`model.embed_tokens.weight` of model `a`"), "{error}");
    assert_eq!(error.exit_code(), ExitCode::BadData);
}

#[test]
fn models_without_numbered_layers_merge_whole() {
    let flat = |seed| {
        let mut model = Model { tensors: Vec::new(), files: BTreeMap::new(), shards: 1 };
        model.files.insert("config.json".into(), "{}".into());
        model.add("conv.weight", &[3, 3], seed);
        model.add("embed.weight", &[3], seed + 1);
        model.add("scale", &[], seed + 2);
        model
    };
    let family = Family::new([("a", flat(1)), ("b", flat(2))]);
    let merged = family.merge(AVERAGE);
    let expected = average(&values(&family.model("a"), "scale"), &values(&family.model("b"), "scale"));
    assert_eq!(values(&merged, "scale"), expected);
    assert_eq!(merged.tensors().len(), 3);
    let error = family.refusal(
        "merge_method: linear\nparameters: {weight: 1}\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]\n",
    );
    assert!(error.to_string().contains("no numbered layers"), "{error}");
}

#[test]
fn layers_that_a_model_does_not_have_are_refused_with_their_key() {
    let error = Family::new([("a", Model::new(1, 1))]).refusal(
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n\
         - sources: [{model: a, layer_range: [0, 9]}]\n",
    );
    let expected = "`slices[1].sources[0].layer_range`: layers 0 to 9 of `a` are asked for, but it has 1 layers";
    assert!(error.to_string().ends_with(expected), "{error}");
    assert_eq!(error.exit_code(), ExitCode::BadData);
}

#[test]
fn a_tied_head_is_its_embedding_where_another_model_has_a_head_of_its_own() {
    let (mut a, b) = (Model::new(1, 1), Model::new(1, 2));
    a.remove("lm_head.weight");
    a.config(json!({"tie_word_embeddings": true}));
    let both_tied = Family::new([
        ("a", a.clone()),
        ("b", {
            let mut b = b.clone();
            b.remove("lm_head.weight");
            b.config(json!({"tie_word_embeddings": true}));
            b
        }),
    ]);
    let merged = both_tied.merge(AVERAGE);
    assert!(!merged.tensors().contains_key("lm_head.weight"));
    assert_eq!(merged.config()["tie_word_embeddings"], true);
    let family = Family::new([("a", a), ("b", b)]);
    let merged = family.merge(AVERAGE);
    let (a, b) = (family.model("a"), family.model("b"));
    let expected = average(&values(&a, "model.embed_tokens.weight"), &values(&b, "lm_head.weight"));
    assert_eq!(values(&merged, "lm_head.weight"), expected);
    // Else a loader would drop the merged head.
    assert_eq!(merged.config()["tie_word_embeddings"], false);
}

#[test]
fn models_of_other_shapes_are_refused_by_name() {
    let changed = |change: fn(&mut Model)| {
        let mut b = Model::new(2, 2);
        change(&mut b);
        Family::new([("a", Model::new(2, 1)), ("b", b)]).refusal(AVERAGE).to_string()
    };
    let error = changed(|b| {
        b.remove("model.embed_tokens.weight");
        b.add("model.embed_tokens.weight", &[12, 4], 1);
    });
    assert!(error.contains("[10, 4]") && error.contains("[12, 4]") && error.contains("vocabularies"), "{error}");
    let error = changed(|b| b.remove("model.layers.1.mlp.weight"));
    assert!(
        error.contains("`b` (") && error.contains("lacks it") && error.contains("model.layers.1.mlp.weight"),
        "{error}"
    );
    let error = changed(|b| b.add("model.layers.2.mlp.weight", &[4, 6], 1));
    assert!(error.contains("`b` has 3 layers, `a` has 2"), "{error}");
}

#[test]
fn models_of_other_architectures_are_refused_by_these() {
    let typed = |seed, kind: &str| {
        let mut model = Model::new(2, seed);
        model.config(serde_json::json!({ "model_type": kind }));
        model
    };
    let mut other = typed(2, "qwen2");
    other.add("model.layers.0.bias", &[4], 1);
    let family = Family::new([("a", typed(1, "llama")), ("b", other)]);
    let error = family.refusal(AVERAGE).to_string();
    let [a, b] = ["a", "b"].map(|name| family.folder.path().join(name).display().to_string());
    assert!(error.starts_with(&format!("`b` ({b}) is a qwen2 model, `a` ({a}) a llama model")), "{error}");
    // The same tensors under another name are merged.
    Family::new([("a", typed(1, "llama")), ("b", typed(2, "mistral"))]).merge(AVERAGE);
}

#[test]
fn integer_buffers_are_copied_when_they_agree() {
    let with_buffer = |seed, buffer: i64| {
        let mut model = Model::new(1, seed);
        model.tensors.push(("model.table".into(), Dtype::I64, vec![1], buffer.to_le_bytes().to_vec()));
        model
    };
    let family = Family::new([("a", with_buffer(1, 7)), ("b", with_buffer(2, 7))]);
    assert_eq!(family.merge(AVERAGE).bytes("model.table").unwrap(), 7_i64.to_le_bytes());
    let error = Family::new([("a", with_buffer(1, 7)), ("b", with_buffer(2, 8))]).refusal(AVERAGE).to_string();
    assert!(error.contains("table") && error.contains("differ"), "{error}");
}

#[test]
fn a_bad_element_is_reported_by_model_tensor_and_place_on_any_number_of_threads() {
    let (a, mut b) = (Model::new(2, 1), Model::new(2, 2));
    b.set("model.norm.weight", 1, f32::NAN);
    b.set("model.layers.1.mlp.weight", 5, f32::INFINITY);
    b.set("model.layers.1.mlp.weight", 9, f32::NAN);
    for threads in [1, 4] {
        let options = MergerOptions { threads: NonZeroUsize::new(threads), ..MergerOptions::default() };
        let family = Family::with([("a", a.clone()), ("b", b.clone())], options);
        let error = family.refusal(AVERAGE);
        assert!(
            matches!(&error, MergeError::NotFinite { model, tensor, element: 5, .. }
            if model == "b" && tensor == "model.layers.1.mlp.weight"),
            "{error}"
        );
        assert!(!error.is_infeasible());
    }
}

#[test]
fn results_that_do_not_fit_the_output_dtype_are_infeasible() {
    let (mut a, b) = (Model::new(1, 1), Model::new(1, 2));
    a.set("model.norm.weight", 2, 200_000.0);
    let family = Family::new([("a", a), ("b", b)]);
    let error = family.refusal(&format!("{AVERAGE}out_dtype: float16\n"));
    assert!(error.is_infeasible(), "{error}");
    assert!(error.to_string().contains("float16"), "{error}");
    let merged = family.merge(&format!("{AVERAGE}out_dtype: bfloat16\n"));
    assert_eq!(merged.dtype(), Some(evomerge::checkpoint::Dtype::Bfloat16));
    assert_eq!(merged.config()["torch_dtype"], "bfloat16");
}

#[test]
fn a_cancelled_merge_leaves_nothing() {
    let family = Family::new([("a", Model::new(1, 1)), ("b", Model::new(1, 2))]);
    let cancel = AtomicBool::new(false);
    let before = family.entries();
    let stop = |_| cancel.store(true, Ordering::Relaxed);
    let options = MergeOptions { cancel: Some(&cancel), progress: Some(&stop), ..MergeOptions::default() };
    let error = family.try_merge(AVERAGE, &options).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Stopped);
    assert_eq!(family.entries(), before);
}

#[test]
fn an_output_is_replaced_only_when_asked() {
    let family = Family::new([("a", Model::new(1, 1)), ("b", Model::new(1, 2))]);
    family.merge(AVERAGE);
    assert!(family.try_merge(AVERAGE, &MergeOptions::default()).is_err());
    let other = AVERAGE.replace("0.5", "[0.25]").replace("{model: b}", "{model: b, parameters: {weight: 0}}");
    family
        .try_merge(&other, &MergeOptions { mode: WriteMode::Replace { durable: false }, ..MergeOptions::default() })
        .unwrap();
    let merged = Checkpoint::open(&family.output()).unwrap();
    assert_eq!(values(&merged, "model.norm.weight"), values(&family.model("a"), "model.norm.weight"));
}

#[test]
fn shards_follow_the_first_source_or_the_size_asked_for() {
    let mut a = Model::new(2, 1);
    a.shards = 3;
    let family = Family::new([("a", a), ("b", Model::new(2, 2))]);
    let report = family.try_merge(AVERAGE, &MergeOptions::default()).unwrap();
    let merged = Checkpoint::open(&family.output()).unwrap();
    assert_eq!(merged.shards(), family.model("a").shards());
    let recipe = Recipe::from_mergekit_yaml(AVERAGE).unwrap();
    assert_eq!(report.bytes_written, family.merger.required_bytes(&recipe).unwrap());
    assert_eq!(report.bytes_read, 2 * report.bytes_written);
    assert_eq!(report.tensors, 7);
    let options = MergeOptions {
        mode: WriteMode::Replace { durable: false },
        shard_size: Some(1 << 30),
        ..MergeOptions::default()
    };
    family.try_merge(AVERAGE, &options).unwrap();
    assert_eq!(Checkpoint::open(&family.output()).unwrap().shards().len(), 1);
}

#[test]
fn extra_files_are_written_and_progress_ends_at_the_total() {
    let family = Family::new([("a", Model::new(1, 1)), ("b", Model::new(1, 2))]);
    let (most, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let progress = |progress: evomerge::merge::MergeProgress| {
        most.fetch_max(progress.bytes_written, Ordering::Relaxed);
        total.store(progress.bytes_total, Ordering::Relaxed);
    };
    let files = [("recipe.toml".to_owned(), b"x = 1\n".to_vec())];
    let options = MergeOptions {
        files: &files,
        progress: Some(&progress),
        mode: WriteMode::New { durable: true },
        ..MergeOptions::default()
    };
    family.try_merge(AVERAGE, &options).unwrap();
    assert_eq!(std::fs::read_to_string(family.output().join("recipe.toml")).unwrap(), "x = 1\n");
    assert_eq!(most.into_inner(), total.into_inner());
}

/// Large enough for several blocks a tensor, and for tensors that are merged side by side.
fn large(seed: u32) -> Model {
    let mut model = Model::new(3, seed);
    for layer in 0..3 {
        model.add(&format!("model.layers.{layer}.large.weight"), &[300, 1_000], seed + 50 + layer);
    }
    model
}

#[test]
fn threads_instruction_sets_and_earlier_merges_do_not_change_a_byte() {
    let models = || [("base", large(1)), ("a", large(2)), ("b", large(3))];
    let recipes: Vec<Recipe> = ["task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp", "linear"]
        .into_iter()
        .flat_map(|method| [(method, MaskKind::Native), (method, MaskKind::Mergekit)])
        .map(|(method, kind)| {
            let inputs = match method {
                "slerp" => "models: [{model: base}, {model: a}]\nparameters: {t: 0.3}\n",
                "linear" => "models: [{model: base}, {model: a}]\nparameters: {weight: 0.3}\n",
                "task_arithmetic" => "models: [{model: a}, {model: b}]\nparameters: {weight: 0.3}\n",
                _ => "models: [{model: a}, {model: b}]\nparameters: {weight: 0.3, density: 0.4, rescale: true}\n",
            };
            let mut recipe =
                Recipe::from_mergekit_yaml(&format!("merge_method: {method}\nbase_model: base\n{inputs}")).unwrap();
            recipe.masks.kind = kind;
            recipe
        })
        .collect();
    let merge_all = |threads, isa, backwards: bool| {
        let options = MergerOptions { threads: NonZeroUsize::new(threads), isa, ..MergerOptions::default() };
        let family = Family::with(models(), options);
        let replace = MergeOptions { mode: WriteMode::Replace { durable: false }, ..MergeOptions::default() };
        let mut merged: Vec<(usize, Vec<u8>)> = Vec::new();
        let order: Vec<usize> =
            if backwards { (0..recipes.len()).rev().collect() } else { (0..recipes.len()).collect() };
        for index in order {
            family.merger.materialize(&recipes[index], &family.output(), &replace).unwrap();
            merged.push((index, std::fs::read(family.output().join("model.safetensors")).unwrap()));
        }
        merged.sort();
        merged
    };
    let expected = merge_all(1, Some(Isa::BASELINE), false);
    assert!(merge_all(4, None, true) == expected);
    for isa in Isa::available() {
        assert!(merge_all(2, Some(isa), false) == expected, "{isa:?}");
    }
}

#[test]
fn native_masks_belong_to_the_source_and_not_to_its_place() {
    let family = Family::new([("base", Model::new(2, 1)), ("a", Model::new(2, 2)), ("b", Model::new(2, 3))]);
    let recipe = |models: &str| {
        format!("merge_method: dare_linear\nbase_model: base\nparameters: {{rescale: false}}\nmodels: [{models}]\n")
    };
    let a = "{model: a, parameters: {weight: 1, density: 0.5}}";
    let b = "{model: b, parameters: {weight: 0, density: 0.5}}";
    let mut merged = Vec::new();
    for models in [a.to_owned(), format!("{a}, {b}"), format!("{b}, {a}")] {
        let replace = MergeOptions { mode: WriteMode::Replace { durable: false }, ..MergeOptions::default() };
        family.try_merge(&recipe(&models), &replace).unwrap();
        merged.push(values(&Checkpoint::open(&family.output()).unwrap(), "model.layers.1.mlp.weight"));
    }
    assert_eq!(merged[0], merged[1]);
    assert_eq!(merged[0], merged[2]);
    assert_ne!(merged[0], values(&family.model("a"), "model.layers.1.mlp.weight"));
}

#[test]
fn vocabularies_that_differ_are_refused_or_cut_to_the_common_rows() {
    let mut long = Model::new(1, 5);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        long.remove(name);
        long.add(name, &[12, 4], 9);
    }
    long.config(json!({"vocab_size": 12}));
    let recipe = "merge_method: linear\nmodels:\n- {model: long, parameters: {weight: 1}}\n- {model: short, parameters: {weight: 1}}\n";
    let family = Family::new([("long", long.clone()), ("short", Model::new(1, 1))]);
    assert!(family.refusal(recipe).to_string().contains("--truncate-embeddings"));
    let options = MergerOptions { truncate_embeddings: true, ..MergerOptions::default() };
    let family = Family::with([("long", long), ("short", Model::new(1, 1))], options);
    let merged = family.merge(recipe);
    let (long, short) = (family.model("long"), family.model("short"));
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        assert_eq!(merged.tensors()[name].shape, [10, 4]);
        let pairs = values(&long, name).into_iter().zip(values(&short, name));
        let expected: Vec<f32> = pairs.map(|(left, right)| (left + right) / 2.0).collect();
        assert_eq!(values(&merged, name), expected);
    }
    assert_eq!(merged.config()["vocab_size"], 10);
}

/// An embedding and the head that is filled from it are one stored tensor, of which each may have other rows.
#[test]
fn a_truncated_head_and_its_embedding_have_statistics_of_their_own() {
    const WIDTH: usize = 64;
    let rows = |rows: usize, seed: u32| {
        let mut tensors = Model::empty(json!({}));
        tensors.add("t", &[12, WIDTH], seed);
        // The last rows move farther than all others.
        (0..2 * WIDTH).for_each(|element| tensors.set("t", 10 * WIDTH + element, 0.5 + seed as f32 + element as f32));
        tensors.tensors[0].3[..4 * rows * WIDTH].to_vec()
    };
    let model = |seed: u32, head: Option<(usize, u32)>| {
        let mut model = Model::empty(json!({"torch_dtype": "float32", "tie_word_embeddings": head.is_none()}));
        let mut add = |name: &str, rows: usize, bytes: Vec<u8>| {
            model.tensors.push((name.to_owned(), safetensors::Dtype::F32, vec![rows, WIDTH], bytes));
        };
        add("model.embed_tokens.weight", 12, rows(12, seed));
        if let Some((count, seed)) = head {
            add("lm_head.weight", count, rows(count, seed));
        }
        model
    };
    let recipe = |method: &str| {
        format!(
            "merge_method: {method}\nbase_model: base\nmodels:\n- {{model: a, parameters: {{weight: 0.5, density: 0.4}}}}\n\
             - {{model: c, parameters: {{weight: 0.5, density: 0.4}}}}"
        )
    };
    let other = || ("c", model(3, Some((10, 4))));
    // The same as tensors that are stored apart, with the rows that all have.
    let apart = Family::new([("base", model(1, Some((10, 1)))), ("a", model(2, Some((10, 2)))), other()]);
    for threads in [1, 2, 3, 8] {
        let options = MergerOptions {
            threads: NonZeroUsize::new(threads),
            truncate_embeddings: true,
            ..MergerOptions::default()
        };
        let family = Family::with([("base", model(1, None)), ("a", model(2, None)), other()], options);
        for method in ["ties", "breadcrumbs"] {
            let (found, expected) = (family.merge(&recipe(method)), apart.merge(&recipe(method)));
            for tensor in ["model.embed_tokens.weight", "lm_head.weight"] {
                assert_eq!(values(&found, tensor), values(&expected, tensor), "{method}, {tensor}, {threads} threads");
            }
            for folder in [&family, &apart] {
                std::fs::remove_dir_all(folder.output()).unwrap();
            }
        }
    }
}

#[test]
fn weights_beyond_the_precision_of_a_merge_are_infeasible() {
    let family = Family::new([("base", Model::new(1, 0)), ("a", Model::new(1, 5)), ("b", Model::new(1, 9))]);
    for (method, base, weight) in [
        ("linear", "", "3e38"),
        ("task_arithmetic", "base_model: base\n", "3e38"),
        ("ties", "base_model: base\n", "1e39"),
    ] {
        let recipe = format!(
            "merge_method: {method}\n{base}models:\n- {{model: a, parameters: {{weight: {weight}}}}}\n\
             - {{model: b, parameters: {{weight: {weight}}}}}"
        );
        let error = family.refusal(&recipe);
        assert!(error.is_infeasible() && error.to_string().contains("too large"), "{method}: {error}");
    }
}

#[test]
fn a_centre_is_not_looked_for_without_end() {
    let family = Family::new([("a", Model::new(1, 0)), ("b", Model::new(1, 5)), ("c", Model::new(1, 9))]);
    let merge = |steps: u64| {
        let merged = family.merge(&format!(
            "merge_method: karcher\nparameters: {{max_iter: {steps}, tol: 0}}\n\
             models:\n- model: a\n- model: b\n- model: c"
        ));
        std::fs::remove_dir_all(family.output()).unwrap();
        merged
    };
    let norm = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    // The centre is found within fifty steps, so a thousand tell where it is.
    let (endless, converged) = (merge(1_000_000_000_000), merge(1000));
    for tensor in endless.tensors().keys() {
        let (found, expected) = (values(&endless, tensor), values(&converged, tensor));
        let differences = found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs());
        let largest = differences.fold(0.0, f32::max);
        assert!(largest < 1e-5, "{tensor}: {largest}");
        let norms = ["a", "b", "c"].map(|name| norm(&values(&family.model(name), tensor)));
        let average = norms.iter().sum::<f64>() / 3.0;
        assert!((norm(&found) - average).abs() < 1e-5, "{tensor}: as long as the models are on average, {average}");
    }
}

#[test]
fn code_that_is_not_copied_is_named() {
    let mut coded = Model::new(2, 1);
    let map = json!({"AutoConfig": "configuration_x.XConfig", "AutoModel": "org/other--modeling_y.YModel",
                     "AutoTokenizer": ["tokenization_x.XTokenizer", null]});
    coded.config(json!({ "auto_map": map }));
    let family = Family::new([("a", coded), ("b", Model::new(2, 5))]);
    let report = family.try_merge(AVERAGE, &MergeOptions::default()).unwrap();
    let note = report.notes.iter().find(|note| note.contains("auto_map")).unwrap();
    assert!(note.contains("configuration_x.py, tokenization_x.py of ") && !note.contains("modeling_y"), "{note}");
}
