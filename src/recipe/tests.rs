//! Recipes as people and mergekit write them.

use super::*;

const TIES: &str = "
merge_method: ties
base_model: base
models:
- model: a
  parameters:
    weight: [0.2, 0.9]
    density:
    - filter: mlp
      value: [0.9, 3e-1]
    - value: 0.6
- model: b
  parameters: {weight: 0.5, density: 0.5}
parameters:
  normalize: 1.0
  int8_mask: 1.0
dtype: float32
";

fn number(value: f64) -> Gradient {
    Gradient::Scalar(Value::Number(value))
}

fn numbers(values: &[f64]) -> Gradient {
    Gradient::Points(values.iter().copied().map(Value::Number).collect())
}

fn refused(text: &str) -> String {
    Recipe::from_mergekit_yaml(text).expect_err(text).to_string()
}

#[test]
fn reads_filters_gradients_and_old_spellings() {
    let recipe = Recipe::from_mergekit_yaml(TIES).unwrap();
    assert_eq!(recipe.merge_method, "ties");
    assert_eq!(recipe.dtype, Some(Dtype::Float32));
    let names: Vec<_> = recipe.models().iter().map(|model| model.location.as_str()).collect();
    assert_eq!(names, ["a", "b", "base"]);
    let Body::Models(inputs) = &recipe.body else { panic!("{recipe:?}") };
    assert_eq!(inputs[0].parameters["weight"].0, [FilteredValue { filter: None, value: numbers(&[0.2, 0.9]) }]);
    let density = &inputs[0].parameters["density"].0;
    assert_eq!(density[0], FilteredValue { filter: Some("mlp".to_owned()), value: numbers(&[0.9, 0.3]) });
    assert_eq!(density[1], FilteredValue { filter: None, value: number(0.6) });
    let normalize = &recipe.parameters["normalize"].0[0].value;
    assert_eq!(*normalize, Gradient::Scalar(Value::Bool(true)));
    assert!(!recipe.parameters.contains_key("int8_mask"));
}

#[test]
fn reads_the_same_keys_from_toml() {
    let text = "
merge_method = 'dare_ties'
base_model = { model = { path = 'runs/base@home+' } }
out_dtype = 'bfloat16'
masks = { kind = 'mergekit', seed = 18446744073709551615 }
content = { 'runs/a' = '00ff' }
[[models]]
model = 'runs/a'
parameters = { weight = 1, density = [0.5, 1] }
";
    let file = RecipeFile::from_toml(text).unwrap();
    assert_eq!(file.recipe.base_model, Some(ModelReference::new("runs/base@home+")));
    assert_eq!(file.recipe.masks, Masks { kind: MaskKind::Mergekit, seed: u64::MAX });
    assert_eq!(file.content_ids[&ModelReference::new("runs/a")], "00ff");
    assert_eq!(file.recipe.out_dtype, Some(Dtype::Bfloat16));
}

/// As mergekit reads them; a folder with `@` in its name is another model.
#[test]
fn revisions_of_ids_are_read_and_written() {
    let text = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: org/name@v1.0\n\
                - model: {model: {path: org/name, revision: refs/pr/1}, lora: {path: org/lora, revision: a+b}}\n\
                - model: {model: {path: org/name@v1.0}}\n- model: {model: {path: run@2}, lora: {path: x+y}}\n";
    let recipe = Recipe::from_mergekit_yaml(text).unwrap();
    let models = [
        ModelReference::new("org/name@v1.0"),
        ModelReference::with_adapter("org/name@refs/pr/1", "org/lora@a+b"),
        ModelReference::new("./org/name@v1.0"),
        ModelReference::with_adapter("./run@2", "x+y"),
    ];
    assert!(recipe.models().into_iter().eq(&models), "{recipe:?}");
    let yaml = recipe.to_mergekit_yaml();
    assert!(yaml.contains("- model: \"org/name@v1.0\"\n"), "{yaml}");
    assert!(yaml.contains("{path: \"org/lora\", revision: \"a+b\"}"), "{yaml}");
    assert_eq!(Recipe::from_mergekit_yaml(&yaml).unwrap(), recipe);
    assert_eq!(RecipeFile::from_toml(&recipe.to_toml(&BTreeMap::new())).unwrap().recipe, recipe);
}

/// mergekit's third scope: what a module says of a tensor comes before what the recipe says, where a filter matches.
#[test]
fn parameters_of_the_only_module_come_before_the_recipes() {
    let models = "models: [{model: a}, {model: b, parameters: {weight: 3}}]";
    let module = "{weight: [{filter: mlp, value: 1}], normalize: false}";
    let text = format!(
        "merge_method: linear\nparameters: {{weight: 2, normalize: true}}\n\
         modules: {{default: {{parameters: {module}, slices: [], {models}}}}}\n"
    );
    let flat = format!(
        "merge_method: linear\n{models}\nparameters: {{weight: [{{filter: mlp, value: 1}}, {{value: 2}}], \
         normalize: [{{value: false}}, {{value: true}}]}}\n"
    );
    let recipe = Recipe::from_mergekit_yaml(&text).unwrap();
    assert_eq!(recipe, Recipe::from_mergekit_yaml(&flat).unwrap());
    let written = Recipe::from_mergekit_yaml(&recipe.to_mergekit_yaml()).unwrap();
    assert_eq!(written, recipe);
}

/// As to mergekit; alone it is nothing to merge.
#[test]
fn an_empty_body_beside_another_is_absent() {
    let models = "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\n";
    let slices =
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\nparameters: {weight: 1}\n";
    for (text, empty) in [(models, "slices: []"), (models, "modules: {}"), (slices, "models: []")] {
        let with = Recipe::from_mergekit_yaml(&format!("{text}{empty}\n")).unwrap();
        assert_eq!(with, Recipe::from_mergekit_yaml(text).unwrap(), "{empty}");
    }
    for alone in ["slices: []", "modules: {}", "models: []"] {
        refused(&format!("merge_method: linear\n{alone}\n"));
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let linear =
        |rest: &str| format!("merge_method: linear\nmodels: [{{model: a, parameters: {{weight: 1}}}}]\n{rest}\n");
    assert!(Recipe::from_mergekit_yaml(&linear("")).is_ok());
    for (rest, words) in [
        ("modules: {decoder: {}}", vec!["`modules`", "one module `default`"]),
        (
            "modules: {default: {models: [{model: a, parameters: {weight: 1}}]}}",
            vec!["`models`", "either this or `modules`"],
        ),
        ("tokenizer: {source: base, tokens: {x: {source: a}}}", vec!["`tokenizer.tokens`"]),
        ("tokenizer_source: d", vec!["`tokenizer_source`", "`d`"]),
        ("tokenizer_source: base\ntokenizer: {source: base}", vec!["`tokenizer`", "tokenizer_source"]),
        ("chat_template: chatml", vec!["`chat_template`", "Jinja"]),
        ("chat_template: chatlm", vec!["`chat_template`", "`chatlm` is no template", "`chatml`"]),
        ("dtype: int64", vec!["`dtype`", "int64", "float32"]),
        ("mrege_method: x", vec!["`mrege_method`", "did you mean `merge_method`?"]),
        ("slices: [{sources: []}]", vec!["`slices`", "models"]),
        ("parameters: {normalise: true}", vec!["`parameters.normalise`", "did you mean `normalize`?"]),
        ("parameters: {normalize: 0.5}", vec!["`parameters.normalize`", "true or false"]),
        ("base_model: c", vec!["`models[1].parameters.weight`", "`c`"]),
    ] {
        let message = refused(&linear(rest));
        for word in words {
            assert!(message.contains(word), "{rest}: {message}");
        }
    }
    for (text, words) in [
        ("models: []", vec!["`merge_method`", "missing"]),
        ("merge_method: tise\nmodels: []", vec!["`merge_method`", "did you mean `ties`?"]),
        ("merge_method: linear", vec!["models"]),
        ("merge_method: linear\nmodels: []", vec!["`models`", "at least one"]),
        ("merge_method: linear\nmodels: [{model: a}]", vec!["weight", "`a`"]),
        (
            "merge_method: linear\nmodels: [{model: a+b+c, parameters: {weight: 1}}]",
            vec!["`models[0].model`", "one `+`"],
        ),
        ("merge_method: linear\nmodels: [{model: +b, parameters: {weight: 1}}]", vec!["`models[0].model`", "one `+`"]),
        (
            "merge_method: linear\nmodels: [{model: {model: {path: a}, lora: {path: ./b, revision: c}}, parameters: {weight: 1}}]",
            vec!["`models[0].model.lora.revision`", "Hugging Face id"],
        ),
        (
            "merge_method: linear\nmodels: [{model: ../a@b, parameters: {weight: 1}}]",
            vec!["`models[0].model`", "revision", "path"],
        ),
        ("merge_method: linear\nmodels: [{model: 7, parameters: {weight: 1}}]", vec!["`models[0].model`", "quote"]),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: []}}]", vec!["`models[0].parameters.weight`"]),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: x}}]", vec!["`models[0].parameters.weight`"]),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: .inf}}]", vec!["weight", "finite"]),
        ("merge_method: linear\nslices: [{sources: [], residual_weight: 1}]", vec!["`slices[0].residual_weight`"]),
        (
            "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [2, 2], parameters: {weight: 1}}]}]",
            vec!["`slices[0].sources[0].layer_range`"],
        ),
        ("merge_method: ties\nmodels: [{model: a, parameters: {weight: 1}}]", vec!["`base_model`", "ties"]),
        ("merge_method: model_stock\nbase_model: a\nmodels: [{model: a}]", vec!["at least 2", "besides the base"]),
        (
            "merge_method: slerp\nbase_model: c\nparameters: {t: 1}\nmodels: [{model: a}, {model: b}]",
            vec!["`models`", "2", "3"],
        ),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]", vec!["`parameters.t`"]),
        (
            "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: a, parameters: {weight: 1}}]",
            vec!["`models[1].model`", "twice"],
        ),
    ] {
        let message = refused(text);
        for word in words {
            assert!(message.contains(word), "{text}: {message}");
        }
    }
}

#[test]
fn says_what_has_no_effect_in_mergekit() {
    let text = "name: mine\nmerge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\n\
                models: [{model: b, layer_range: [0, 9], parameters: {t: 1, density: 1}}]\n";
    let file = RecipeFile::from_mergekit_yaml(text).unwrap();
    let Body::Models(inputs) = &file.recipe.body else { panic!("{file:?}") };
    let names: Vec<String> = inputs.iter().map(|input| input.model.to_string()).collect();
    assert_eq!(names, ["b", "a"]);
    assert!(inputs.iter().all(|input| input.layer_range.is_none() && input.parameters.is_empty()), "{inputs:?}");
    let expected =
        ["`models[0].parameters.t`", "`models[0].parameters.density`", "`models[0].layer_range`", "`a` is not listed"];
    for (note, part) in file.ignored.iter().zip(expected) {
        assert!(note.contains(part), "{note}");
    }
    assert_eq!(file.ignored.len(), expected.len(), "{:?}", file.ignored);
    // A recipe of ours says all that it does, and nothing else.
    for toml in [
        "merge_method = 'slerp'\nbase_model = 'a'\nparameters = { t = 0.5 }\nmodels = [{ model = 'b' }]",
        "merge_method = 'linear'\nmodels = [{ model = 'a', layer_range = [0, 1], parameters = { weight = 1 } }]",
        "merge_method = 'linear'\nmodels = [{ model = 'a', parameters = { weight = 1, normalize = true } }]",
        "name = 'mine'\nmerge_method = 'linear'\nmodels = [{ model = 'a', parameters = { weight = 1 } }]",
    ] {
        assert!(Recipe::from_toml(toml).is_err(), "{toml}");
    }
}

#[test]
fn configurations_of_other_tools_are_known() {
    for (text, words) in [
        ("base_model: a\ngate_mode: hidden\nexperts: []\n", ["line 3", "`experts`", "mergekit-moe"]),
        ("base_model: a\ngate_mode: hidden\n", ["line 2", "`gate_mode`", "mergekit-moe"]),
        ("genome: {models: [a, b]}\ntasks: []\n", ["`genome`", "mergekit-evolve", "evomerge search"]),
    ] {
        let message = refused(text);
        assert!(words.iter().all(|word| message.contains(word)), "{text}: {message}");
    }
}

#[test]
fn keys_that_only_hold_anchors_pass_at_the_top_however_often() {
    let text = "const_tag: &MODEL a\nconst_tag: &HALF 0.5\nenv: &env\n  parameters: {weight: *HALF}\nmerge_method: linear\n\
                models:\n- model: *MODEL\n  <<: *env\n- {model: b, parameters: {weight: *HALF}}\n";
    let file = RecipeFile::from_mergekit_yaml(text).unwrap();
    let plain = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.5}}\n\
                 - {model: b, parameters: {weight: 0.5}}\n";
    assert_eq!(file.recipe, Recipe::from_mergekit_yaml(plain).unwrap());
    let [tag, env] = file.ignored.as_slice() else { panic!("{:?}", file.ignored) };
    assert!(tag.contains("`const_tag`: passed over") && env.contains("`env`: passed over"), "{tag}, {env}");
    // Lines are counted as in the file; without an anchor, such a key is a mistake.
    assert!(refused(&text.replace("linear", "linera")).contains("line 5"));
    assert!(refused(&format!("{plain}const_tag: 0.5\n")).contains("const_tag"));
    assert!(refused(&format!("merge_method: linear\n{plain}")).contains("duplicate"));
    assert!(refused(&format!("{plain}parameter: &P {{normalize: false}}\n")).contains("did you mean `parameters`"));
    // What looks like such a key inside a text is a part of the text.
    let template = format!("{plain}chat_template: \"{{{{ messages }}}}\n  foo: &bar baz\"\n");
    let file = RecipeFile::from_mergekit_yaml(&template.replace("\n  foo", "\nfoo")).unwrap();
    assert_eq!(file.recipe.chat_template.as_deref(), Some("{{ messages }} foo: &bar baz"));
}

#[test]
fn holders_of_anchors_pass_at_the_top() {
    let text = "x-weight: &half {weight: 0.5}\nmerge_method: linear\nmodels:\n- {model: a, parameters: *half}\n\
                - {model: b, parameters: *half}\n";
    let file = RecipeFile::from_mergekit_yaml(text).unwrap();
    let plain = text.replace("x-weight: &half {weight: 0.5}\n", "").replace("*half", "{weight: 0.5}");
    assert_eq!(file.recipe, Recipe::from_mergekit_yaml(&plain).unwrap());
    let [note] = file.ignored.as_slice() else { panic!("{:?}", file.ignored) };
    assert!(note.contains("`x-weight`: passed over"), "{note}");
    assert!(refused(&plain.replace("- {model: a", "- {x-b: 1, model: a")).contains("x-b"));
    assert!(
        Recipe::from_toml("x-a = 1\nmerge_method = 'linear'\nmodels = [{ model = 'a', parameters = { weight = 1 } }]")
            .is_err()
    );
}

#[test]
fn tolerates_what_mergekit_writes_without_effect() {
    let text = "merge_method: slerp\nbase_model: a\ndtype: bfloat16\ntokenizer: {source: base}\nslices:\n\
                - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n  parameters: {t: '1e-1'}\n\
                parameters: {normalize: false, int8_mask: true}\n";
    let recipe = Recipe::from_mergekit_yaml(text).unwrap();
    assert!(recipe.parameters.is_empty());
    assert_eq!(recipe.tokenizer_source.as_deref(), Some("base"));
    let Body::Slices(slices) = &recipe.body else { panic!("{recipe:?}") };
    assert_eq!(slices[0].parameters["t"].0[0].value, number(0.1));
}

#[test]
fn parameters_of_other_methods_are_named_and_dropped_from_mergekits_files_only() {
    let text = "merge_method: task_arithmetic\nbase_model: base\ndtype: torch.bfloat16\nmodels:\n- model: a\n  parameters:\n    weight: 1\n    density: 0.5\n";
    let file = RecipeFile::from_mergekit_yaml(text).unwrap();
    assert_eq!(file.recipe, Recipe::from_mergekit_yaml(&text.replace("    density: 0.5\n", "")).unwrap());
    assert_eq!(file.recipe.dtype, Some(Dtype::Bfloat16));
    let [note] = file.ignored.as_slice() else { panic!("{:?}", file.ignored) };
    for word in ["line 8", "`models[0].parameters.density`", "no effect with task_arithmetic"] {
        assert!(note.contains(word), "{note}");
    }
    let error = Recipe::from_mergekit_yaml(&text.replace("density", "densty")).unwrap_err().to_string();
    assert!(error.contains("`models[0].parameters.densty`"), "{error}");
    let toml = "merge_method = 'task_arithmetic'\nbase_model = 'base'\n[[models]]\nmodel = 'a'\nparameters = { weight = 1, density = 0.5 }\n";
    assert!(Recipe::from_toml(toml).is_err());
}

#[test]
fn names_and_numbers_are_what_mergekit_reads() {
    let text = "merge_method: linear\nmodels: [{model: y, parameters: {weight: 1}}, {model: n, parameters: {weight: 1}}]\nparameters: {normalize: off}\n";
    let recipe = Recipe::from_mergekit_yaml(text).unwrap();
    assert_eq!(recipe.models().iter().map(|model| model.location.as_str()).collect::<Vec<_>>(), ["y", "n"]);
    assert_eq!(recipe, Recipe::from_mergekit_yaml(&text.replace("off", "False")).unwrap());
    let error = Recipe::from_mergekit_yaml(&text.replace("weight: 1}", "weight: 010}")).unwrap_err().to_string();
    assert!(error.contains("leading zeros"), "{error}");
}

#[test]
fn errors_name_the_file_and_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("soup.toml");
    std::fs::write(&path, "merge_method = 'linear'\nmodel = []\n").unwrap();
    let error = Recipe::read(&path).unwrap_err();
    assert_eq!(error.exit_code(), crate::exit::ExitCode::BadData);
    assert!(error.to_string().contains("soup.toml"), "{error}");
    // What is only seen of the whole recipe has a line too.
    let twice =
        "merge_method = 'linear'\nparameters = { weight = 1 }\n[[models]]\nmodel = 'a'\n[[models]]\nmodel = 'a'\n";
    std::fs::write(&path, twice).unwrap();
    let error = Recipe::read(&path).unwrap_err().to_string();
    assert!(error.contains("soup.toml: line 6: `models[1].model`: `a` is listed twice"), "{error}");
    let error = Recipe::read(&folder.path().join("soup.safetensors")).unwrap_err().to_string();
    assert!(error.contains("holds weights") && error.contains(".toml"), "{error}");
    let error = Recipe::read(&folder.path().join("none.yml")).unwrap_err().to_string();
    assert!(error.contains("none.yml"), "{error}");
}

/// The configurations of the golden merges.
#[test]
fn reads_what_mergekit_was_given() {
    let cases = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases");
    let folders = std::fs::read_dir(cases).unwrap().map(|folder| folder.unwrap().path());
    let recipes: Vec<Recipe> = folders.map(|folder| Recipe::read(&folder.join("recipe.yml")).unwrap()).collect();
    assert!(recipes.len() >= 37, "{}", recipes.len());
}

fn hash(text: &str) -> String {
    let recipe = Recipe::from_mergekit_yaml(text).expect(text);
    let ids = recipe.models().into_iter().map(|model| (model.clone(), format!("id-{model}"))).collect();
    recipe.sha256(&ids).unwrap()
}

#[test]
fn the_canonical_form_is_as_documented() {
    let recipe = Recipe::from_mergekit_yaml(&TIES.replace("merge_method: ties", "merge_method: dare_ties")).unwrap();
    let ids = recipe.models().into_iter().map(|model| (model.clone(), format!("id-{model}"))).collect();
    let expected = concat!(
        r#"{"version":1,"merge_method":"dare_ties","base_model":"id-base","form":"models","stages":[{"base":"id-base","#,
        r#""inputs":[{"model":"id-a","parameters":{"weight":[0.2,0.9],"density":[{"filter":"mlp","value":[0.9,0.3]},{"value":0.6}]}},"#,
        r#"{"model":"id-b","parameters":{"weight":0.5,"density":0.5}}],"#,
        r#""parameters":{"lambda":1.0,"normalize":true,"rescale":true}}],"#,
        r#""dtype":"float32","out_dtype":"float32","tokenizer":"id-base","chat_template":null,"masks":{"kind":"native","seed":0}}"#,
    );
    assert_eq!(recipe.canonical(&ids).unwrap().to_string(), expected);
    let error = recipe.sha256(&BTreeMap::new()).unwrap_err();
    assert!(matches!(error, RecipeError::Unidentified { .. }), "{error}");
}

#[test]
fn what_has_no_effect_does_not_change_the_hash() {
    let plain = hash(TIES);
    for (from, to) in [
        ("  int8_mask: 1.0\n", ""),
        ("normalize: 1.0", "normalize: true"),
        ("normalize: 1.0", "normalize: [yes]"),
        ("  normalize: 1.0\n", "  lambda: 1\n"),
        ("  normalize: 1.0\n", "  density: 0.7\n"),
        (
            "    - value: 0.6",
            "    - filter: '*'\n      value: 0.6\n    - filter: attn\n      value: 0.1\n    - value: 0.2",
        ),
        (
            "    - value: 0.6",
            "    - filter: mlp.up\n      value: 0.2\n    - filter: attn\n      value: 0.6\n    - value: [0.6]",
        ),
        ("{weight: 0.5, density: 0.5}", "{weight: 0.5, density: [0.5]}"),
        ("- model: b", "- model: base\n  parameters: {weight: 3}\n- model: b"),
        ("dtype: float32", "dtype: float32\nout_dtype: float32\ntokenizer_source: base"),
    ] {
        assert!(TIES.contains(from), "{from}");
        assert_eq!(hash(&TIES.replace(from, to)), plain, "{to}");
    }
    let slerp = "merge_method: slerp\nbase_model: a\nparameters: {t: 0.3}\nmodels: [{model: a}, {model: b}]";
    assert_eq!(hash(slerp), hash(&slerp.replace("[{model: a}, {model: b}]", "[{model: b}, {model: a}]")));
}

#[test]
fn what_has_an_effect_changes_the_hash() {
    let plain = hash(TIES);
    for (from, to) in [
        ("normalize: 1.0", "normalize: 0"),
        ("  int8_mask: 1.0", "  lambda: 0.9"),
        ("[0.2, 0.9]", "[0.2, 0.8]"),
        ("- value: 0.6", "- value: 0.5"),
        ("merge_method: ties", "merge_method: dare_ties"),
        ("dtype: float32", "dtype: float16"),
        ("dtype: float32", "dtype: float32\nout_dtype: float16"),
        ("dtype: float32", "dtype: float32\ntokenizer_source: a"),
        ("dtype: float32", "dtype: float32\nchat_template: '{{ x }}'"),
        ("filter: mlp", "filter: mlp.up"),
    ] {
        assert!(TIES.contains(from), "{from}");
        assert_ne!(hash(&TIES.replace(from, to)), plain, "{to}");
    }
}

/// The output's type, configuration and tokenizer follow a slice's own base, also where the method has no use for it.
#[test]
fn a_slice_s_own_base_changes_the_hash() {
    let slices = |base: &str| {
        let source = "sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]";
        format!("merge_method: linear\nparameters: {{weight: 1}}\nslices:\n- {{{source}{base}}}")
    };
    assert_ne!(hash(&slices("")), hash(&slices(", base_model: a")));
    assert_ne!(hash(&slices(", base_model: a")), hash(&slices(", base_model: b")));
}

#[test]
fn masks_count_only_where_they_are_drawn() {
    let recipe = |density: &str| {
        let text = format!(
            "merge_method = 'dare_linear'\nbase_model = 'base'\nmodels = [{{ model = 'a', parameters = {{ weight = 1, density = {density} }} }}]\n"
        );
        Recipe::from_toml(&text).unwrap()
    };
    let hash = |mut recipe: Recipe, seed| {
        recipe.masks.seed = seed;
        let ids = recipe.models().into_iter().map(|model| (model.clone(), model.to_string())).collect();
        recipe.sha256(&ids).unwrap()
    };
    for (density, drawn) in
        [("1.0", false), ("[1.0, 1.5]", false), ("[1.0, 0.5]", true), ("[{ filter = 'x', value = 0.2 }]", true)]
    {
        assert_eq!(recipe(density).draws_masks(), drawn, "{density}");
        assert_eq!(hash(recipe(density), 1) != hash(recipe(density), 2), drawn, "{density}");
    }
}

#[test]
fn mergekit_reads_the_numbers_and_names_that_are_written() {
    let text = "merge_method = 'ties'\nbase_model = { model = { path = 'runs/a+b' } }\n[[models]]\nmodel = '12'\n[models.parameters]\nweight = [1e-7, 1e300]\n\
                [[models]]\nmodel = 'runs/a+lora/b'\nparameters = { weight = 1 }\n[[models]]\n\
                model = { model = { path = 'a' }, lora = { path = 'c++' } }\nparameters = { weight = 1 }\n";
    let yaml = Recipe::from_toml(text).unwrap().to_mergekit_yaml();
    for line in [
        "base_model: {model: {path: \"runs/a+b\"}}",
        "- model: \"12\"",
        "    weight: [1.0e-7, 1.0e+300]",
        "- model: \"runs/a+lora/b\"",
        "- model: {model: {path: \"a\"}, lora: {path: \"c++\"}}",
    ] {
        assert!(yaml.lines().any(|found| found == line), "{line}\n{yaml}");
    }
}
