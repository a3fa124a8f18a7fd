//! Spaces over small made-up models: what genomes mean, tensor by tensor.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::RunConfig;
use crate::recipe::{Body, Gradient, Input, MaskKind, Parameters, Recipe, Value};

const LAYERS: usize = 5;

/// A model whose final norm's name is part of every layer's norm's name.
pub(super) fn tensors() -> Vec<String> {
    let layer = |layer: usize| {
        ["self_attn.q.weight", "mlp.up.weight", "model.norm.weight"].map(|name| format!("model.layers.{layer}.{name}"))
    };
    let outside = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"].map(str::to_owned);
    (0..LAYERS).flat_map(layer).chain(outside).collect()
}

pub(super) fn facts(sources: &[&str], base: Option<&str>) -> ModelFacts {
    let reference = |name: &str| ModelReference::new(format!("/models/{name}"));
    ModelFacts {
        base: base.map(reference),
        sources: sources.iter().map(|name| ((*name).to_owned(), reference(name))).collect(),
        layers: LayerLayout {
            prefix: "model.layers.".to_owned(),
            count: LAYERS,
            first: vec!["model.embed_tokens.weight".to_owned()],
            last: vec!["lm_head.weight".to_owned(), "model.norm.weight".to_owned()],
        },
        tensors: tensors(),
        dtype: Some(Dtype::Float32),
        masks: Masks { kind: MaskKind::Native, seed: 7 },
        profiles: Vec::new(),
    }
}

/// `[space]` as the run file would give it.
pub(super) fn config(sources: &[&str], base: Option<&str>, space: &str) -> SpaceConfig {
    let base = base.map(|base| format!("base = '{base}', ")).unwrap_or_default();
    let text = format!(
        "name = 'x'\nmodels = {{ {base}sources = {sources:?} }}\nbudget = {{ evaluations = 9 }}\ntasks = [{{ name = 'y' }}]\n\
         evaluator = {{ kind = 'function', name = 'sphere' }}\n[space]\n{space}\n"
    );
    RunConfig::parse(&text, Path::new("/nowhere")).unwrap_or_else(|error| panic!("{error}\n{text}")).space.unwrap()
}

pub(super) fn space(sources: &[&str], base: Option<&str>, text: &str) -> SearchSpace {
    SearchSpace::new(&config(sources, base, text), &facts(sources, base)).unwrap()
}

pub(super) fn names(space: &SearchSpace) -> Vec<&str> {
    space.genes().iter().map(|gene| gene.name.as_str()).collect()
}

pub(super) fn ids(recipe: &Recipe) -> BTreeMap<ModelReference, String> {
    recipe.models().into_iter().map(|model| (model.clone(), model.to_string())).collect()
}

pub(super) fn hash(recipe: &Recipe) -> String {
    recipe.sha256(&ids(recipe)).unwrap()
}

/// The layer of a tensor; nothing for those without.
fn layer_of(tensor: &str) -> Option<usize> {
    tensor.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

fn is_first(tensor: &str) -> bool {
    tensor.contains("embed")
}

/// A parameter of one tensor by mergekit's rules: slice, scopes, filters, gradients.
fn resolve(recipe: &Recipe, tensor: &str, parameter: &str, model: Option<&ModelReference>) -> Option<f64> {
    let layer = layer_of(tensor);
    let (inputs, slice, first, length): (&[Input], Option<&Parameters>, usize, usize) = match &recipe.body {
        Body::Models(inputs) => (inputs, None, 0, LAYERS),
        Body::Slices(slices) => {
            let holds = |slice: &&crate::recipe::Slice| {
                let (first, end) = slice.sources[0].layer_range.unwrap();
                layer.is_some_and(|layer| (first..end).contains(&layer))
            };
            let slice = match layer {
                Some(_) => slices.iter().find(holds).unwrap(),
                None if is_first(tensor) => slices.first().unwrap(),
                None => slices.last().unwrap(),
            };
            let (first, end) = slice.sources[0].layer_range.unwrap();
            (&slice.sources, Some(&slice.parameters), first, end - first)
        }
    };
    let own = model.map(|model| &inputs.iter().find(|input| input.model == *model).unwrap().parameters);
    let scopes = [own, slice, Some(&recipe.parameters)];
    let entries = scopes.into_iter().flatten().filter_map(|scope| scope.get(parameter)).flat_map(|setting| &setting.0);
    let mut matching =
        entries.filter(|entry| entry.filter.as_ref().is_none_or(|filter| tensor.contains(filter.as_str())));
    let number = |value: &Value| match value {
        Value::Number(number) => *number,
        Value::Bool(truth) => f64::from(u8::from(*truth)),
    };
    match &matching.next()?.value {
        Gradient::Scalar(value) => Some(number(value)),
        Gradient::Points(points) => {
            let t = match (layer, length) {
                (None, _) => 0.0,
                (Some(_), 1) => 1.0,
                (Some(layer), length) => (layer - first) as f64 / (length - 1) as f64,
            };
            let position = t * (points.len() - 1) as f64;
            let (left, share) = ((position.floor() as usize).min(points.len() - 1), position.fract());
            let right = (left + 1).min(points.len() - 1);
            Some(number(&points[left]) * (1.0 - share) + number(&points[right]) * share)
        }
    }
}

#[test]
fn genes_have_the_documented_names() {
    let text = "method = 'dare_ties'\nlayer_groups = 2\nmodules = ['self_attn', 'mlp']\n[space.genes]\n\
        weight = { low = 0.0, high = 1.5, per = ['model', 'layer_group', 'module'], models = { b = 0.5 } }\n\
        drop_rate = { low = 0.0, high = 0.95, per = ['model'] }\nlambda = { per = [] }\nnormalize = true\n";
    let space = space(&["a", "b"], Some("base"), text);
    let expected = [
        "weight.a.g0.self_attn",
        "weight.a.g0.mlp",
        "weight.a.g0.rest",
        "weight.a.g1.self_attn",
        "weight.a.g1.mlp",
        "weight.a.g1.rest",
        "drop_rate.a",
        "drop_rate.b",
        "lambda",
    ];
    assert_eq!(names(&space), expected);
    assert_eq!(space.groups(), 2);
    let gene = &space.genes()[4];
    assert_eq!((gene.model, gene.layer_group, gene.module), (Some(0), Some(1), Some(1)));
    assert_eq!(space.genes()[0].value(space.init().0[0]), GeneValue::Real(0.5));
    assert_eq!(space.genes()[8].format(space.init().0[8]), "1");

    let recipe = space.decode(&space.init());
    let model = |name: &str| ModelReference::new(format!("/models/{name}"));
    let mlp = "model.layers.3.mlp.up.weight";
    assert_eq!(resolve(&recipe, mlp, "weight", Some(&model("b"))), Some(0.5));
    assert_eq!(resolve(&recipe, mlp, "density", Some(&model("b"))), Some(1.0));
    assert_eq!(resolve(&recipe, mlp, "normalize", None), Some(1.0));
    let Body::Slices(slices) = &recipe.body else { panic!("{recipe:?}") };
    assert_eq!(slices[0].sources[0].model, model("base"));
    assert_eq!(slices[0].sources[0].layer_range, Some((0, 3)));
}

#[test]
fn method_and_pair_are_genes() {
    let space = space(
        &["a", "b", "c"],
        Some("base"),
        "method = ['linear', 'slerp', 'ties']\ngenes = { density = { low = 0.1 } }\n",
    );
    assert_eq!(
        names(&space),
        ["method", "pair", "density.a", "density.b", "density.c", "weight.a", "weight.b", "weight.c", "t"]
    );
    let GeneKind::Categorical { choices } = &space.genes()[1].kind else { panic!() };
    assert_eq!(choices, &["a+b", "a+c", "b+c"]);
    let mut genome = space.init();
    (genome.0[0], genome.0[1], genome.0[8]) = (0.5, 0.9, 0.25);
    let recipe = space.decode(&genome);
    assert_eq!(recipe.merge_method, "slerp");
    assert_eq!(recipe.base_model, Some(ModelReference::new("/models/b")));
    assert_eq!(resolve(&recipe, "lm_head.weight", "t", None), Some(0.25));
    assert_eq!(space.active(&genome), [true, true, false, false, false, false, false, false, true]);
    genome.0[0] = 0.0;
    assert_eq!(space.active(&genome), [true, false, false, false, false, true, true, true, false]);
    assert_eq!(space.decode(&genome).base_model, None);
}

#[test]
fn tied_and_frozen_genes_follow() {
    let text = "method = 'ties'\n[space.genes]\nweight = { low = 0.2, high = 0.8 }\ndensity = { same_as = 'weight' }\nlambda = 0.7\n";
    let space = space(&["a", "b"], Some("base"), text);
    assert_eq!(names(&space), ["weight.a", "weight.b"]);
    let recipe = space.decode(&Genome(vec![0.5, 1.0]));
    let b = ModelReference::new("/models/b");
    assert_eq!(resolve(&recipe, "x", "density", Some(&b)), Some(0.8));
    assert_eq!(resolve(&recipe, "x", "weight", Some(&b)), Some(0.8));
    assert_eq!(resolve(&recipe, "x", "lambda", None), Some(0.7));
}

#[test]
fn weights_that_cannot_be_normalized_become_equal() {
    let space = space(&["a", "b"], None, "method = 'linear'\ngenes = { weight = { low = -1, high = 1 } }\n");
    let weights = |units: [f64; 2]| {
        let recipe = space.decode(&Genome(units.to_vec()));
        let weight = |name: &str| {
            resolve(&recipe, "x", "weight", Some(&ModelReference::new(format!("/models/{name}")))).unwrap()
        };
        [weight("a"), weight("b")]
    };
    assert_eq!(weights([0.5, 0.5]), [1.0, 1.0]);
    assert_eq!(weights([0.0, 1.0]), [1.0, 1.0]);
    assert_eq!(weights([0.5, 1.0]), [0.0, 1.0]);
}

#[test]
fn a_single_source_is_interpolated_with_the_base() {
    let space = space(&["a"], Some("base"), "method = 'slerp'\n");
    let recipe = space.decode(&space.init());
    assert_eq!(recipe.base_model, Some(ModelReference::new("/models/base")));
    recipe.validate().unwrap();
}

/// The merge reads gradients in each tower; a search has its groups of layers alone.
#[test]
fn tensors_of_another_tower_take_the_values_of_their_group() {
    let config = config(
        &["a", "b"],
        None,
        "method = 'linear'\nlayer_groups = 2\ninterpolate = true\n[space.genes]\nweight = { low = 0.0, high = 1.0, per = ['model', 'layer_group'] }\n",
    );
    let mut facts = facts(&["a", "b"], None);
    let of_tower =
        |tensor: &str| (0..2).map(|block| format!("vision.blocks.{block}.{tensor}.weight")).collect::<Vec<_>>();
    let (first, last) = (of_tower("embed"), of_tower("mlp"));
    facts.tensors.extend(first.iter().chain(&last).cloned());
    facts.layers.first.extend(first.clone());
    facts.layers.last.extend(last.clone());
    let space = SearchSpace::new(&config, &facts).unwrap();
    let genome = Genome((0..space.genes().len()).map(|gene| 0.25 + 0.5 * (gene % 2) as f64).collect());
    let recipe = space.decode(&genome);
    for input in recipe.body.inputs() {
        let entries = &input.parameters["weight"].0;
        let points = entries.iter().find(|entry| entry.filter.is_none()).map(|entry| &entry.value);
        let Some(Gradient::Points(points)) = points else { panic!("{recipe:?}") };
        assert_ne!(points[0], points[1]);
        for (names, group) in [(&first, 0), (&last, 1)] {
            for name in names {
                let own = entries.iter().find(|entry| entry.filter.as_ref() == Some(name)).map(|entry| &entry.value);
                assert_eq!(own, Some(&Gradient::Scalar(points[group].clone())), "{name}");
            }
        }
    }
}

#[test]
fn models_without_layers_are_one_group_with_a_notice() {
    let config = config(&["a", "b"], None, "method = 'linear'\nlayer_groups = 3\n");
    let mut flat = facts(&["a", "b"], None);
    flat.layers = LayerLayout { last: vec!["w".to_owned()], ..LayerLayout::default() };
    flat.tensors = vec!["w".to_owned()];
    let space = SearchSpace::new(&config, &flat).unwrap();
    assert_eq!((space.groups(), space.genes().len()), (1, 2));
    assert!(space.notices()[0].contains("no numbered layers"), "{:?}", space.notices());
    // Nothing known of the models: the groups stay as declared.
    flat.layers = LayerLayout::default();
    flat.tensors.clear();
    let space = SearchSpace::new(&config, &flat).unwrap();
    assert_eq!((space.groups(), space.genes().len()), (3, 6));
    space.decode(&space.init()).validate().unwrap();
}

#[test]
fn too_many_groups_and_idle_groups_are_told() {
    let many = config(&["a", "b"], None, "method = 'linear'\nlayer_groups = 6\n");
    let error = SearchSpace::new(&many, &facts(&["a", "b"], None)).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::BadConfiguration);
    assert!(error.to_string().contains("6 layer groups for 5 layers"), "{error}");
    let idle =
        "method = 'linear'\ngranularity = 2\nmodules = ['mlp', 'nothing']\ngenes = { weight = { per = ['model'] } }\n";
    let space = space(&["a", "b"], None, idle);
    assert_eq!(space.groups(), 3);
    assert_eq!(space.notices().len(), 3, "{:?}", space.notices());
}

#[test]
fn a_gene_per_layer_group_of_one_group_is_told() {
    let text = "method = 'linear'\ngenes = { weight = { per = ['model', 'layer_group'] } }\n";
    let one = space(&["a", "b"], None, text);
    assert_eq!(one.genes().len(), 2);
    let [notice] = one.notices() else { panic!("{:?}", one.notices()) };
    assert!(notice.starts_with("weight: per \"layer_group\" has no effect with one layer group"), "{notice}");
    assert!(space(&["a", "b"], None, &format!("layer_groups = 2\n{text}")).notices().is_empty());
}

#[test]
fn a_source_that_is_in_a_soup_twice_has_twice_the_weight() {
    let facts = facts(&["a", "b", "c"], None);
    let weights = |members: &[usize]| {
        let recipe = soup_recipe(&facts, members);
        let weight = |input: &Input| (input.model.to_string(), format!("{:?}", input.parameters["weight"]));
        recipe.body.inputs().map(weight).collect::<Vec<_>>()
    };
    let twice = weights(&[0, 0, 2]);
    assert_eq!(twice.len(), 2);
    assert!(twice[0].1.contains("2.0") && twice[1].1.contains("1.0"), "{twice:?}");
    // In lowest terms, so that the same soup is the same recipe.
    assert_eq!(weights(&[1, 1]), weights(&[1]));
    assert_eq!(weights(&[0, 0, 1, 1]), weights(&[0, 1]));
    let space = space(&["a", "b", "c"], None, "method = 'linear'\n");
    assert!(space.encode_soup(&[0, 0, 2]).is_none() && space.encode_soup(&[0, 2]).is_some());
    // A third each is what the search starts with, and ones are what the soup is encoded as.
    assert!(space.starts_at_uniform_soup() && space.encode_soup(&[0, 1, 2]).unwrap().genome != space.init());
}

#[test]
fn soups_have_an_exact_place_in_linear_spaces() {
    let wide = space(&["a", "b", "c"], None, "method = 'linear'\nlayer_groups = 2\n");
    for members in [vec![0], vec![0, 2], vec![0, 1, 2]] {
        let encoded = wide.encode_soup(&members).unwrap();
        assert!(encoded.exact, "{members:?}");
        let recipe = wide.decode(&encoded.genome);
        for (index, (_, model)) in facts(&["a", "b", "c"], None).sources.iter().enumerate() {
            let expected = if members.contains(&index) { 1.0 } else { 0.0 };
            for tensor in tensors() {
                assert_eq!(resolve(&recipe, &tensor, "weight", Some(model)), Some(expected));
            }
        }
    }
    assert_eq!(wide.encode_soup(&[]), None);
    assert_eq!(wide.encode_soup(&[3]), None);
    assert_eq!(wide.encode_base(), None);
    let narrow = space(&["a", "b"], None, "method = 'linear'\ngenes = { weight = { low = 0.25, high = 0.6 } }\n");
    assert!(narrow.encode_soup(&[0, 1]).unwrap().exact);
    assert_eq!(narrow.encode_soup(&[0]), None);
    let plain = space(&["a", "b"], None, "method = 'linear'\ngenes = { normalize = false }\n");
    let encoded = plain.encode_soup(&[0, 1]).unwrap();
    assert!(!encoded.exact);
    assert_eq!(plain.values(&encoded.genome), [GeneValue::Real(0.5), GeneValue::Real(0.5)]);
}

#[test]
fn soups_and_the_base_have_a_place_in_task_vector_spaces() {
    let arithmetic =
        space(&["a", "b"], Some("base"), "method = 'task_arithmetic'\ngenes = { lambda = { low = 0.2, high = 2 } }\n");
    let soup = arithmetic.encode_soup(&[0, 1]).unwrap();
    assert!(!soup.exact);
    assert_eq!(arithmetic.values(&soup.genome), [GeneValue::Real(1.0), GeneValue::Real(0.5), GeneValue::Real(0.5)]);
    let base = arithmetic.encode_base().unwrap();
    assert!(base.exact);
    assert_eq!(arithmetic.values(&base.genome)[1..], [GeneValue::Real(0.0), GeneValue::Real(0.0)]);

    let scaled = space(&["a", "b"], Some("base"), "method = 'task_arithmetic'\ngenes = { lambda = 0.5 }\n");
    let soup = scaled.encode_soup(&[0, 1]).unwrap();
    assert_eq!(scaled.values(&soup.genome), [GeneValue::Real(1.0), GeneValue::Real(1.0)]);

    let dare =
        space(&["a", "b"], Some("base"), "method = 'dare_ties'\ngenes = { drop_rate = { low = 0.0, high = 0.9 } }\n");
    assert_eq!(dare.encode_soup(&[0, 1]), None);
    let single = dare.encode_soup(&[1]).unwrap();
    assert!(!single.exact);
    let values = dare.values(&single.genome);
    assert_eq!(values[1..], [GeneValue::Real(0.0), GeneValue::Real(0.0), GeneValue::Real(1.0)]);

    let sparse = space(&["a", "b"], Some("base"), "method = 'ties'\ngenes = { density = { low = 0.1, high = 0.5 } }\n");
    assert_eq!(sparse.encode_soup(&[0]), None);
    assert!(sparse.encode_base().unwrap().exact);
}

#[test]
fn sources_are_the_ends_of_an_interpolation() {
    let space = space(&["a", "b", "c"], None, "method = 'slerp'\nlayer_groups = 2\n");
    for member in 0..3 {
        let encoded = space.encode_soup(&[member]).unwrap();
        let recipe = space.decode(&encoded.genome);
        let t = resolve(&recipe, "lm_head.weight", "t", None).unwrap();
        let model = if t == 0.0 {
            recipe.base_model.clone().unwrap()
        } else {
            recipe.body.inputs().nth(1).unwrap().model.clone()
        };
        assert_eq!(model, facts(&["a", "b", "c"], None).sources[member].1);
    }
    assert_eq!(space.encode_soup(&[0, 1]), None);
}

#[test]
fn baselines_are_valid_recipes() {
    let facts = facts(&["a", "b", "c"], Some("base"));
    for recipe in [soup_recipe(&facts, &[0, 2]), soup_recipe(&facts, &[1]), base_recipe(&facts).unwrap()] {
        recipe.validate().unwrap();
        assert_eq!(recipe.dtype, Some(Dtype::Float32));
    }
    assert_ne!(hash(&soup_recipe(&facts, &[0])), hash(&soup_recipe(&facts, &[1])));
}

/// Spaces of every shape.
fn spaces() -> impl Strategy<Value = SearchSpace> {
    let methods = proptest::sample::select(vec![
        "['linear']",
        "['slerp']",
        "['ties']",
        "['dare_ties', 'task_arithmetic']",
        "['linear', 'slerp', 'dare_linear', 'ties']",
    ]);
    let per = proptest::sample::select(vec![
        "[]",
        "['model']",
        "['model', 'layer_group']",
        "['model', 'module']",
        "['layer_group', 'module']",
        "['model', 'layer_group', 'module']",
    ]);
    let shared = proptest::sample::select(vec!["[]", "['layer_group']", "['module']", "['layer_group', 'module']"]);
    (methods, per, shared, 1..=LAYERS, any::<bool>(), 2..5_usize).prop_map(|(methods, per, shared, groups, interpolate, count)| {
        let mut text = format!(
            "method = {methods}\nlayer_groups = {groups}\ninterpolate = {interpolate}\nmodules = ['self_attn', 'norm']\n[space.genes]\n"
        );
        if !methods.contains("['slerp']") {
            text += &format!("weight = {{ low = -0.5, high = 1.5, per = {per} }}\nnormalize = {{ per = [] }}\n");
        }
        if methods.contains("slerp") {
            text += &format!("t = {{ per = {shared} }}\n");
        }
        if methods.contains("ties") || methods.contains("dare") {
            text += &format!("drop_rate = {{ per = {per} }}\nlambda = {{ low = 0.1, high = 2, scale = 'log', per = {shared} }}\n");
        }
        space(&["a", "b", "c", "d"][..count], Some("base"), &text)
    })
}

fn genome(space: &SearchSpace) -> impl Strategy<Value = Genome> + use<> {
    let unit = prop_oneof![8 => 0.0..=1.0_f64, 1 => Just(0.0), 1 => Just(1.0)];
    proptest::collection::vec(unit, space.genes().len()).prop_map(Genome)
}

fn space_and_genome() -> impl Strategy<Value = (SearchSpace, Genome)> {
    spaces().prop_flat_map(|space| {
        let genome = genome(&space);
        (Just(space), genome)
    })
}

/// What the genes say of one parameter of one tensor, by the genes' own descriptions.
fn said(space: &SearchSpace, genome: &Genome, name: &str, model: usize, group: usize, module: usize) -> Option<f64> {
    let fits = |gene: &&Gene| {
        gene.parameter == name
            && gene.model.is_none_or(|own| own == model)
            && gene.layer_group.is_none_or(|own| own == group)
            && gene.module.is_none_or(|own| own == module)
    };
    let index = space.genes().iter().position(|gene| fits(&gene))?;
    match space.genes()[index].value(genome.0[index]) {
        GeneValue::Real(number) => Some(number),
        GeneValue::Integer(number) => Some(number as f64),
        GeneValue::Choice(_) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn decoding_is_total(space in spaces(), numbers in proptest::collection::vec(any::<f64>(), 0..200)) {
        let genome = Genome(numbers);
        let recipe = space.decode(&genome);
        prop_assert!(recipe.validate().is_ok(), "{:?}", recipe.validate());
        prop_assert_eq!(space.values(&genome).len(), space.genes().len());
        prop_assert_eq!(space.active(&genome).len(), space.genes().len());
        let read = Recipe::from_toml(&recipe.to_toml(&ids(&recipe))).unwrap();
        prop_assert_eq!(hash(&read), hash(&recipe));
        let read = Recipe::from_mergekit_yaml(&recipe.to_mergekit_yaml()).unwrap();
        prop_assert_eq!(read.body, recipe.body);
    }

    #[test]
    fn every_tensor_gets_what_its_genes_say((space, genome) in space_and_genome()) {
        let recipe = space.decode(&genome);
        let count = space.groups();
        let linear = recipe.merge_method == "linear";
        for tensor in tensors() {
            let group = layer_of(&tensor).map_or(if is_first(&tensor) { 0 } else { count - 1 }, |layer| layer * count / LAYERS);
            let module = ["self_attn", "norm"].iter().position(|module| tensor.contains(module)).unwrap_or(2);
            // Between the first and the last layer, gradients interpolate.
            if space.interpolate && layer_of(&tensor).is_some_and(|layer| layer != 0 && layer != LAYERS - 1) {
                continue;
            }
            let inputs: Vec<usize> = space.facts.sources.iter().enumerate()
                .filter(|(_, (_, model))| recipe.body.inputs().any(|input| input.model == *model)).map(|(index, _)| index).collect();
            let weights: f64 = inputs.iter().filter_map(|model| said(&space, &genome, "weight", *model, group, module)).sum();
            let normalizes = said(&space, &genome, "normalize", 0, group, module) != Some(0.0);
            let repaired = linear && normalizes && weights.abs() < 1e-8;
            for model in inputs {
                let reference = &space.facts.sources[model].1;
                for (parameter, gene) in [("weight", "weight"), ("density", "drop_rate")] {
                    let Some(found) = resolve(&recipe, &tensor, parameter, Some(reference)) else { continue };
                    let written = said(&space, &genome, gene, model, group, module).unwrap();
                    let expected = if gene == "drop_rate" { 1.0 - written } else if repaired { 1.0 } else { written };
                    prop_assert!((found - expected).abs() < 1e-12, "{tensor} {parameter} {found} {expected}");
                }
            }
            for parameter in ["lambda", "t", "normalize"] {
                let Some(found) = resolve(&recipe, &tensor, parameter, None) else { continue };
                let expected = said(&space, &genome, parameter, 0, group, module).unwrap();
                prop_assert!((found - expected).abs() < 1e-12, "{tensor} {parameter} {found} {expected}");
            }
        }
    }

    #[test]
    fn genes_without_effect_do_not_change_the_recipe((space, genome) in space_and_genome(), noise in any::<u64>()) {
        let active = space.active(&genome);
        let mut other = genome.clone();
        for (index, unit) in other.0.iter_mut().enumerate().filter(|(index, _)| !active[*index]) {
            *unit = (noise.rotate_left(index as u32 % 64) % 1000) as f64 / 999.0;
        }
        prop_assert_eq!(hash(&space.decode(&genome)), hash(&space.decode(&other)));
    }

    #[test]
    fn encoded_soups_decode_to_equal_weights(space in spaces(), members in proptest::collection::btree_set(0..4_usize, 1..4)) {
        let members: Vec<usize> = members.into_iter().collect();
        let Some(encoded) = space.encode_soup(&members) else { return Ok(()) };
        let recipe = space.decode(&encoded.genome);
        prop_assert_eq!(encoded.exact, recipe.merge_method == "linear");
        if recipe.merge_method == "slerp" {
            return Ok(());
        }
        for (index, (_, model)) in space.facts.sources.iter().enumerate() {
            for tensor in tensors() {
                let weight = resolve(&recipe, &tensor, "weight", Some(model)).unwrap();
                prop_assert_eq!(weight != 0.0, members.contains(&index));
                if members.contains(&index) {
                    prop_assert!(resolve(&recipe, &tensor, "density", Some(model)).is_none_or(|density| density == 1.0));
                }
            }
        }
    }
}

/// A task vector that is multiplied by zero may be trimmed as one likes.
#[test]
fn genes_of_sources_without_weight_have_no_effect() {
    for (method, gene) in [("ties", "density"), ("dare_linear", "drop_rate"), ("della", "epsilon")] {
        let text = format!(
            "method = '{method}'\nlayer_groups = 2\n\
             genes = {{ weight = {{ low = 0.0, high = 1.0, per = ['model', 'layer_group'] }}, {gene} = {{ low = 0.1, high = 0.4, per = ['model'] }} }}\n"
        );
        let space = space(&["a", "b"], Some("base"), &text);
        let place = |name: &str| space.genes().iter().position(|gene| gene.name == name).unwrap();
        let mut genome = space.init();
        for group in [0, 1] {
            assert!(space.active(&genome).iter().all(|active| *active), "{method} {group}");
            genome.0[place(&format!("weight.a.g{group}"))] = 0.0;
        }
        let idle = place(&format!("{gene}.a"));
        assert!(space.active(&genome).iter().enumerate().all(|(index, active)| *active == (index != idle)), "{method}");
        let recipe = hash(&space.decode(&genome));
        genome.0[idle] = 1.0;
        assert_eq!(hash(&space.decode(&genome)), recipe);
    }
    let shared = "method = 'ties'\ngenes = { weight = { low = 0.0, high = 1.0, per = ['model'] }, density = { low = 0.1, high = 0.4 } }\n";
    let space = space(&["a", "b"], Some("base"), shared);
    let mut genome = space.init();
    for (weights_of_zero, active) in [(1, true), (2, false)] {
        genome.0[weights_of_zero - 1] = 0.0;
        assert_eq!(space.active(&genome).last(), Some(&active));
    }
}

#[test]
fn grouping_by_granularity_and_count_agree() {
    let by = |text: &str| space(&["a", "b"], None, &format!("method = 'linear'\n{text}\n")).groups();
    assert_eq!(by("granularity = 1"), LAYERS);
    assert_eq!(by(&format!("layer_groups = {LAYERS}")), LAYERS);
    assert_eq!(NonZeroUsize::new(by("granularity = 100")), NonZeroUsize::new(1));
}

#[test]
fn densities_of_della_are_moved_inside_their_epsilon() {
    let text =
        "method = 'della'\ngenes = { density = { low = 0.0, high = 1.0 }, epsilon = { low = 0.01, high = 0.6 } }\n";
    let space = space(&["a", "b"], Some("base"), text);
    for step in 0..=20 {
        for other in 0..=20 {
            let mut genome = space.init();
            for (gene, unit) in space.genes.iter().zip(&mut genome.0) {
                *unit = f64::from(if gene.parameter == "epsilon" { other } else { step }) / 20.0;
            }
            let recipe = space.decode(&genome);
            let model = ModelReference::new("/models/a");
            let [density, epsilon] =
                ["density", "epsilon"].map(|name| resolve(&recipe, "x", name, Some(&model)).unwrap());
            assert!(density == 1.0 || density - epsilon > 0.0 && density + epsilon < 1.0, "{density} {epsilon}");
        }
    }
}

#[test]
fn methods_of_one_input_have_a_gene_for_it() {
    let space = space(&["a", "b", "c"], Some("b"), "method = ['nearswap', 'nuslerp', 'linear']\n");
    assert!(names(&space).contains(&"source"));
    for step in 0..=60 {
        let unit = f64::from(step) / 60.0;
        let recipe = space.decode(&Genome(vec![unit; space.genes().len()]));
        assert!(recipe.validate().is_ok(), "{:?}", recipe.validate());
        let mut genome = Genome(vec![unit; space.genes().len()]);
        genome.0[0] = 0.0;
        let recipe = space.decode(&genome);
        assert!(recipe.validate().is_ok(), "{:?}", recipe.validate());
    }
}
