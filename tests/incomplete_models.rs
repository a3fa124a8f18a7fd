//! Models that lack weights which loaders expect of them, and models that have more than mergekit knows.

#[path = "support/models.rs"]
#[allow(dead_code, reason = "shared with the tests of other merges")]
mod models;

use evomerge::merge::{MergeError, MergeOptions, MergeReport};
use evomerge::recipe::{MaskKind, Recipe};
use models::{AVERAGE, Family, Model, values};
use serde_json::{Value, json};

const LAYER: [&str; 9] = [
    "input_layernorm.weight",
    "mlp.down_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "post_attention_layernorm.weight",
    "self_attn.k_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.q_proj.weight",
    "self_attn.v_proj.weight",
];
const MISSING: &str = "model.layers.1.mlp.up_proj.weight";

/// A model with the weights of a Llama, all of one size, which says what it is.
fn llama(architecture: &str, layers: usize, seed: u32) -> Model {
    let mut model =
        Model::empty(json!({"architectures": [architecture], "model_type": "llama", "num_hidden_layers": layers}));
    model.add("model.embed_tokens.weight", &[10, 4], seed);
    for (number, suffix) in (0..layers).flat_map(|layer| LAYER.map(|suffix| (layer, suffix))) {
        model.add(&format!("model.layers.{number}.{suffix}"), &[4, 4], seed + number as u32 + suffix.len() as u32);
    }
    model.add("model.norm.weight", &[4], seed + 2);
    model.add("lm_head.weight", &[10, 4], seed + 3);
    model
}

fn changed(mut model: Model, change: impl FnOnce(&mut Model)) -> Model {
    change(&mut model);
    model
}

fn slices(range: [usize; 2]) -> String {
    let source = |name: &str| json!({"model": name, "layer_range": range});
    json!({"merge_method": "linear", "slices": [{"sources": [source("a"), source("b")]}], "parameters": {"weight": 0.5}})
        .to_string()
}

#[test]
fn a_model_with_fewer_layers_than_it_says_is_refused() {
    let more = |model: Model| changed(model, |model| model.config(json!({"num_hidden_layers": 6})));
    let family = Family::new([("a", llama("LlamaForCausalLM", 4, 1)), ("b", more(llama("LlamaForCausalLM", 4, 20)))]);
    let error = family.refusal(AVERAGE).to_string();
    for words in ["`b`", "6 layers", "`model.layers.4`", "is the download complete?"] {
        assert!(error.contains(words), "{error}");
    }
    // Whoever names the layers has those, and the output counts its own.
    let merged = family.merge(&slices([0, 4]));
    assert_eq!(merged.config()["num_hidden_layers"], 4);
}

#[test]
fn a_layer_that_lacks_what_the_others_have_is_refused() {
    let lacking = |seed| changed(llama("LlamaForCausalLM", 3, seed), |model| model.remove(MISSING));
    let family = Family::new([("a", lacking(1)), ("b", lacking(20))]);
    let error = family.refusal(AVERAGE).to_string();
    assert!(error.contains("`a`") && error.contains(MISSING) && error.contains("incomplete"), "{error}");
    let alone = |range: [usize; 2]| {
        json!({"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": range}]}]})
            .to_string()
    };
    assert!(family.refusal(&alone([0, 3])).to_string().contains(MISSING));
    family.merge(&alone([2, 3]));
}

/// The one that is incomplete is named, and not the other one for what it has more.
#[test]
fn of_two_models_the_incomplete_one_is_named() {
    let of = |seed| llama("LlamaForCausalLM", 3, seed);
    for (missing, words) in [
        (MISSING, "which its other layers have"),
        ("model.norm.weight", "it lacks `model.norm.weight`"),
        ("model.embed_tokens.weight", "it lacks `model.embed_tokens.weight`"),
    ] {
        let family = Family::new([("a", of(1)), ("b", changed(of(20), |model| model.remove(missing)))]);
        let error = family.refusal(AVERAGE).to_string();
        assert!(error.contains("`b`") && error.contains(words) && error.contains(missing), "{error}");
    }
    let shorter = changed(llama("LlamaForCausalLM", 2, 20), |model| model.config(json!({"num_hidden_layers": 3})));
    let error = Family::new([("a", of(1)), ("b", shorter)]).refusal(AVERAGE).to_string();
    assert!(error.contains("`b`") && error.contains("3 layers") && error.contains("`model.layers.2`"), "{error}");
    // Both lack it.
    let lacking = |seed| changed(of(seed), |model| model.remove("model.norm.weight"));
    let error = Family::new([("a", lacking(1)), ("b", lacking(20))]).refusal(AVERAGE).to_string();
    assert!(error.contains("it lacks `model.norm.weight`"), "{error}");
}

/// A list has one name for each weight, and some models of an architecture call all of them otherwise: nothing of these
/// is left out, and nothing is missed.
#[test]
fn models_that_call_their_weights_otherwise_are_not_known() {
    let renamed = |seed| {
        changed(llama("LlamaForCausalLM", 2, seed), |model| {
            for tensor in &mut model.tensors {
                tensor.0 = tensor.0.trim_start_matches("model.").to_owned();
            }
        })
    };
    let family = Family::new([("a", renamed(1)), ("b", renamed(20))]);
    assert_eq!(family.try_merge(AVERAGE, &MergeOptions::default()).unwrap().notes, Vec::<String>::new());
    assert!(family.model("merged").tensors().contains_key("embed_tokens.weight"));
    let lacking = changed(renamed(20), |model| model.remove("norm.weight"));
    let error = Family::new([("a", renamed(1)), ("b", lacking)]).refusal(AVERAGE).to_string();
    assert!(error.contains("`norm.weight`") && error.contains("lacks it"), "{error}");
}

/// Nobody knows what the layers of other architectures need: some have layers of several kinds.
#[test]
fn of_unknown_architectures_missing_layers_are_told_and_others_are_not() {
    let of = |seed, layers: Value| {
        changed(llama("NovelForCausalLM", 3, seed), |model| {
            model.remove(MISSING);
            model.config(json!({"num_hidden_layers": layers}));
        })
    };
    let notes = |layers: Value| {
        let family = Family::new([("a", of(1, layers.clone())), ("b", of(20, layers))]);
        family.try_merge(AVERAGE, &MergeOptions::default()).unwrap().notes
    };
    assert_eq!(notes(json!(3)), Vec::<String>::new());
    assert_eq!(notes(json!(2)), Vec::<String>::new(), "layers for further tokens are not counted");
    let told = notes(json!(5)).join("\n");
    assert!(told.contains("`a`") && told.contains("5 layers") && told.contains("tensors of 3"), "{told}");
}

/// mergekit merges what its list of an architecture has, and draws no masks for what it leaves out.
#[test]
fn weights_that_mergekit_leaves_out_draw_no_masks_before_others() {
    let biased = |seed| {
        changed(llama("LlamaForCausalLM", 2, seed), |model| {
            (0..2).for_each(|layer| model.add(&format!("model.layers.{layer}.mlp.up_proj.bias"), &[4], seed + layer));
        })
    };
    let merge = |of: &dyn Fn(u32) -> Model| -> (Family, MergeReport) {
        let family = Family::new([("base", of(1)), ("a", of(20)), ("b", of(40))]);
        let recipe = "merge_method: dare_linear\nbase_model: base\nmodels: [{model: a}, {model: b}]\n\
                      parameters: {weight: 0.5, density: 0.5}\n";
        let mut recipe = Recipe::from_mergekit_yaml(recipe).unwrap();
        recipe.masks.kind = MaskKind::Mergekit;
        recipe.masks.seed = 42;
        let report = family.merger.materialize(&recipe, &family.output(), &MergeOptions::default()).unwrap();
        (family, report)
    };
    let (plain, report) = merge(&|seed| llama("LlamaForCausalLM", 2, seed));
    assert_eq!(report.notes, Vec::<String>::new());
    let (with, report) = merge(&biased);
    let told = report.notes.join("\n");
    assert!(told.contains("leaves out 2 tensors (`model.layers.0.mlp.up_proj.bias` first)"), "{told}");
    assert!(!report.uncertain_masks);
    let (plain, with) = (plain.model("merged"), with.model("merged"));
    for name in plain.tensors().keys() {
        assert_eq!(values(&plain, name), values(&with, name), "{name}");
    }
    assert_eq!(with.tensors().len(), plain.tensors().len() + 2);
}

#[test]
fn a_head_for_another_task_that_one_model_has_is_left_out() {
    let scored = |model: Model| changed(model, |model| model.add("score.weight", &[1, 4], 3));
    let merge = |models: [Model; 2]| {
        let [a, b] = models;
        let family = Family::new([("a", a), ("b", b)]);
        let report = family.try_merge(AVERAGE, &MergeOptions::default())?;
        Ok::<_, MergeError>((family.model("merged").tensors().contains_key("score.weight"), report.notes.join("\n")))
    };
    let of = |seed| llama("LlamaForCausalLM", 2, seed);
    let (written, told) = merge([scored(of(1)), of(20)]).unwrap();
    assert!(!written && told.contains("left out") && told.contains("`score.weight` of `a`"), "{told}");
    let (written, told) = merge([scored(of(1)), scored(of(20))]).unwrap();
    assert!(written && told.is_empty(), "{told}");
    // What other architectures need is not known, and layers are refused in all of them.
    let novel = |seed| llama("NovelForCausalLM", 2, seed);
    assert!(merge([scored(novel(1)), novel(20)]).unwrap_err().to_string().contains("`score.weight`"));
    let biased = changed(of(1), |model| model.add("model.layers.0.mlp.up_proj.bias", &[4], 3));
    assert!(merge([biased, of(20)]).unwrap_err().to_string().contains("up_proj.bias"));
}
