//! Invariants of recipes over random recipes.

use proptest::prelude::*;

use super::*;

fn value(low: f64, high: f64) -> impl Strategy<Value = f64> + Clone {
    prop_oneof![low..high, Just(low), Just(high), Just(1e-7), Just(0.1)].prop_map(move |value| value.clamp(low, high))
}

fn gradient(low: f64, high: f64) -> impl Strategy<Value = Gradient> + Clone {
    prop_oneof![
        value(low, high).prop_map(|number| Gradient::Scalar(Value::Number(number))),
        proptest::collection::vec(value(low, high).prop_map(Value::Number), 1..4).prop_map(Gradient::Points),
    ]
}

fn filter() -> impl Strategy<Value = Option<String>> + Clone {
    prop_oneof![
        Just(None),
        Just(Some("*".to_owned())),
        Just(Some("mlp".to_owned())),
        Just(Some("mlp.up".to_owned())),
        "\\PC{1,6}".prop_map(Some),
    ]
}

fn setting(low: f64, high: f64) -> impl Strategy<Value = Setting> + Clone {
    let entry = (filter(), gradient(low, high)).prop_map(|(filter, value)| FilteredValue { filter, value });
    proptest::collection::vec(entry, 1..4).prop_map(Setting)
}

fn truth() -> impl Strategy<Value = Setting> {
    any::<bool>()
        .prop_map(|truth| Setting(vec![FilteredValue { filter: None, value: Gradient::Scalar(Value::Bool(truth)) }]))
}

fn source_parameters() -> impl Strategy<Value = Parameters> + Clone {
    (setting(-2.0, 2.0), proptest::option::of(setting(0.0, 1.0))).prop_map(|(weight, density)| {
        let mut parameters = Parameters::from([("weight".to_owned(), weight)]);
        parameters.extend(density.map(|density| ("density".to_owned(), density)));
        parameters
    })
}

fn shared_parameters() -> impl Strategy<Value = Parameters> {
    (proptest::option::of(setting(0.1, 2.0)), proptest::option::of(truth())).prop_map(|(lambda, normalize)| {
        let mut parameters = Parameters::new();
        parameters.extend(lambda.map(|lambda| ("lambda".to_owned(), lambda)));
        parameters.extend(normalize.map(|normalize| ("normalize".to_owned(), normalize)));
        parameters
    })
}

/// Distinct model names, some of which YAML or mergekit could misread.
fn names() -> impl Strategy<Value = Vec<ModelReference>> {
    let name = prop_oneof![
        "[a-z]{1,5}",
        "/[a-z]{1,4}/[a-z0-9.-]{1,4}",
        "[a-z]{1,3}[@+][a-z]{1,3}",
        "\\PC{1,8}",
        Just("no".to_owned())
    ]
    .prop_filter("blank", |name| !name.trim().is_empty() && name != "union" && name != "base");
    let adapter = proptest::option::of(prop_oneof!["[a-z/]{1,5}", "[a-z]{1,3}[@+][a-z]{1,3}"]);
    let model = (name, adapter).prop_map(|(location, adapter)| ModelReference { location, adapter });
    // By their text, so that no two look alike.
    proptest::collection::vec(model, 2..5)
        .prop_map(|models| {
            let named: BTreeMap<String, ModelReference> =
                models.into_iter().map(|model| (model.to_string(), model)).collect();
            named.into_values().collect::<Vec<_>>()
        })
        .prop_filter("too few", |models| models.len() > 1)
}

fn body(models: &[ModelReference]) -> impl Strategy<Value = Body> + use<> {
    let sources = models[1..].to_vec();
    let base = models[0].clone();
    let inputs = proptest::collection::vec(source_parameters(), sources.len());
    let whole = {
        let sources = sources.clone();
        inputs.clone().prop_map(move |parameters| {
            let pairs = sources.iter().cloned().zip(parameters);
            Body::Models(pairs.map(|(model, parameters)| Input { model, layer_range: None, parameters }).collect())
        })
    };
    let slice = (inputs, shared_parameters(), 0..4_usize, 1..4_usize, any::<bool>()).prop_map(
        move |(parameters, shared, first, length, own_base)| {
            let range = Some((first, first + length));
            let mut inputs = vec![Input { model: base.clone(), layer_range: range, parameters: Parameters::new() }];
            let pairs = sources.iter().cloned().zip(parameters);
            inputs.extend(pairs.map(|(model, parameters)| Input { model, layer_range: range, parameters }));
            Slice { sources: inputs, base_model: own_base.then(|| base.clone()), parameters: shared }
        },
    );
    prop_oneof![whole, proptest::collection::vec(slice, 1..3).prop_map(Body::Slices)]
}

fn dtype() -> impl Strategy<Value = Option<Dtype>> {
    proptest::sample::select(vec![None, Some(Dtype::Float16), Some(Dtype::Bfloat16), Some(Dtype::Float64)])
}

/// Valid recipes of the task arithmetic family.
pub(crate) fn recipe() -> impl Strategy<Value = Recipe> {
    let method = proptest::sample::select(vec!["ties", "dare_ties", "dare_linear"]);
    let masks = (any::<bool>(), any::<u64>())
        .prop_map(|(native, seed)| Masks { kind: if native { MaskKind::Native } else { MaskKind::Mergekit }, seed });
    names().prop_flat_map(move |models| {
        let body = body(&models);
        let fixed = (method.clone(), shared_parameters(), dtype(), dtype(), masks.clone());
        let text = (proptest::option::of(0..models.len() + 1), proptest::option::of("\\PC*[{\n\u{85}]?\\{\\PC*"));
        (body, fixed, text).prop_map(
            move |(body, (method, parameters, dtype, out_dtype, masks), (tokenizer, template))| {
                let tokenizer = tokenizer
                    .map(|index| models.get(index).map_or_else(|| "base".to_owned(), ModelReference::to_string));
                Recipe {
                    merge_method: method.to_owned(),
                    base_model: Some(models[0].clone()),
                    body,
                    parameters,
                    dtype,
                    out_dtype,
                    tokenizer_source: tokenizer,
                    chat_template: template.filter(|template| !template.trim().is_empty()),
                    masks,
                }
            },
        )
    })
}

fn content_ids(recipe: &Recipe) -> BTreeMap<ModelReference, String> {
    recipe.models().into_iter().enumerate().map(|(index, model)| (model.clone(), format!("{index:064x}"))).collect()
}

proptest! {
    #[test]
    fn toml_says_everything(recipe in recipe()) {
        let ids = content_ids(&recipe);
        let text = recipe.to_toml(&ids);
        let file = RecipeFile::from_toml(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(&file.recipe, &recipe, "{}", text);
        prop_assert_eq!(file.content_ids, ids);
    }

    #[test]
    fn yaml_says_everything_but_the_masks(recipe in recipe()) {
        let text = recipe.to_mergekit_yaml();
        let mut read = Recipe::from_mergekit_yaml(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        read.masks = recipe.masks;
        prop_assert_eq!(&read, &recipe, "{}", text);
        prop_assert_eq!(text.starts_with('#'), recipe.draws_masks());
    }

    #[test]
    fn the_hash_knows_contents_not_paths(recipe in recipe()) {
        let ids = content_ids(&recipe);
        let hash = recipe.sha256(&ids).unwrap();
        prop_assert_eq!(hash.len(), 64);
        let mut moved = recipe.clone();
        let rename = |model: &mut ModelReference| model.location = format!("/elsewhere/{}", model.location);
        moved.base_model.as_mut().into_iter().for_each(rename);
        if let Some(source) = moved.tokenizer_source.as_mut().filter(|source| *source != "base") {
            *source = format!("/elsewhere/{source}");
        }
        match &mut moved.body {
            Body::Models(inputs) => inputs.iter_mut().for_each(|input| rename(&mut input.model)),
            Body::Slices(slices) => for slice in slices {
                slice.base_model.as_mut().into_iter().for_each(rename);
                slice.sources.iter_mut().for_each(|input| rename(&mut input.model));
            },
        }
        let moved_ids = ids.iter().map(|(model, id)| (ModelReference { location: format!("/elsewhere/{}", model.location), ..model.clone() }, id.clone())).collect();
        prop_assert_eq!(moved.sha256(&moved_ids).unwrap(), hash.clone());
        let other = ids.iter().map(|(model, id)| (model.clone(), format!("{id}0"))).collect();
        prop_assert_ne!(recipe.sha256(&other).unwrap(), hash);
    }

    #[test]
    fn reading_never_panics(text in "\\PC{0,80}", bytes in "(merge_method|models|slices|base_model|\\[|\\]|\\{|\\}|: |- |\n|ties|linear|=|'|,){0,30}") {
        for text in [text, bytes] {
            let _ = Recipe::from_toml(&text);
            let _ = Recipe::from_mergekit_yaml(&text);
        }
    }
}
