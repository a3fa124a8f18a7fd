//! Tensors that the models of a merge do not share: what no loader reads, counters, copies of tied tensors, names with
//! and without the inner model's, weights that the base lacks. Masks that mergekit draws where models or their layers
//! are not alike, and Karcher means at the edge of what numbers can be.

#[path = "support/models.rs"]
#[allow(dead_code, reason = "shared with the tests of other merges")]
mod models;

use evomerge::checkpoint::Checkpoint;
use evomerge::merge::{BaseUse, InputCount, MergeOptions, Survivor, methods};
use evomerge::recipe::{MaskKind, Recipe};
use models::{
    AVERAGE, DARE, EMBEDDING, Family, HEAD, Model, TIE, add_tower, average, bfloat16, floats, merge_into, stack, tied,
    values,
};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

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
fn tensors_that_no_loader_reads_make_no_layer_another_kind() {
    let mask = (MASK, Dtype::F32, &[1, 1, 2, 2][..], floats([1.0; 4]));
    let family = Family::new([("a", gpt2(1, &[mask])), ("b", gpt2(2, &[]))]);
    let report = family.try_merge(&stack(&[("a", [0, 2]), ("b", [0, 2])]), &MergeOptions::default()).unwrap();
    assert_eq!(report.notes, Vec::<String>::new());
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

fn with_mergekit_masks(family: &Family, recipe: &str, output: &str) -> Checkpoint {
    let mut recipe = Recipe::from_mergekit_yaml(recipe).unwrap();
    recipe.masks.kind = MaskKind::Mergekit;
    merge_into(family, &recipe, output)
}

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
