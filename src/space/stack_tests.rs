//! Spaces that stack layers of small made-up models.

use proptest::prelude::*;

use super::stack::joined;
use super::tests::{config, facts, hash, ids, names, space};
use super::*;
use crate::recipe::{Body, Gradient, Recipe, Slice, Value};

const LAYERS: usize = 5;

const STACK: &str = "method = 'passthrough'\ngranularity = 1\n[space.stack]\n";

/// Models and layers of a recipe, from the first to the last: `a0 a1 b4`, `a+b` where both are merged.
fn layers(recipe: &Recipe) -> String {
    let Body::Slices(slices) = &recipe.body else { panic!("{recipe:?}") };
    let of_slice = |slice: &Slice| {
        let (first, end) = slice.sources[0].layer_range.unwrap();
        let name = |model: &ModelReference| model.to_string().rsplit('/').next().unwrap_or_default().to_owned();
        let models: Vec<String> = slice.sources.iter().map(|input| name(&input.model)).collect();
        (first..end).map(|layer| format!("{}{layer}", models.join("+"))).collect::<Vec<_>>()
    };
    slices.iter().flat_map(of_slice).collect::<Vec<_>>().join(" ")
}

/// The genome with these choices in the slots, and all else as it starts.
fn with_slots(space: &SearchSpace, choices: &[usize]) -> Genome {
    let mut genome = space.init();
    let slots = (0..space.genes().len()).filter(|index| space.genes()[*index].parameter.starts_with("stack."));
    for (index, choice) in slots.zip(choices) {
        genome.0[index] = space.genes()[index].unit(&GeneValue::Choice(*choice));
    }
    genome
}

fn decoded(space: &SearchSpace, choices: &[usize]) -> String {
    layers(&space.decode(&with_slots(space, choices)))
}

#[test]
fn slots_are_genes_and_a_search_starts_with_the_first_source() {
    let space = space(&["a", "b"], None, "method = 'passthrough'\ngranularity = 3\n[space.stack]\n");
    assert_eq!(names(&space), ["stack.1.g0", "stack.1.g1", "stack.2.g0", "stack.2.g1"]);
    let GeneKind::Categorical { choices } = &space.genes()[0].kind else { panic!() };
    assert_eq!(choices, &["(none)", "a", "b"]);
    assert_eq!(layers(&space.decode(&space.init())), "a0 a1 a2 a3 a4");
    assert_eq!(space.layer_counts(), Some((2, 10)));
    assert!(space.notices().is_empty(), "{:?}", space.notices());
    // One gene a pass moves all of its blocks.
    let gene = &space.genes()[3];
    assert_eq!((gene.parameter.as_str(), gene.layer_group, gene.model), ("stack.2", Some(1), None));
}

#[test]
fn blocks_stand_in_the_order_of_passes_and_may_come_again() {
    let space = space(&["a", "b"], None, STACK);
    let choices = [1, 1, 1, 0, 0, 0, 2, 2, 2, 2];
    assert_eq!(decoded(&space, &choices), "a0 a1 a2 b1 b2 b3 b4");
    let Body::Slices(slices) = space.decode(&with_slots(&space, &choices)).body else { panic!() };
    let ranges: Vec<_> = slices.iter().map(|slice| slice.sources[0].layer_range.unwrap()).collect();
    assert_eq!(ranges, [(0, 3), (1, 5)]);
    assert_eq!(decoded(&space, &[0, 1, 0, 2, 0, 0, 1, 0, 1, 0]), "a1 b3 a1 a3");
}

#[test]
fn an_empty_stack_is_the_one_that_the_search_starts_with() {
    let space = space(&["a", "b"], None, STACK);
    let empty = space.decode(&with_slots(&space, &[0; 10]));
    assert_eq!(hash(&empty), hash(&space.decode(&space.init())));
}

#[test]
fn a_stack_that_is_too_high_lacks_its_middle() {
    let space = space(&["a", "b"], None, &format!("{STACK}max_layers = 6\n"));
    assert_eq!(space.layer_counts(), Some((1, 6)));
    assert_eq!(decoded(&space, &[1, 1, 1, 1, 1, 2, 2, 2, 2, 2]), "a0 a1 a2 b2 b3 b4");
    assert_eq!(decoded(&space, &[1, 1, 1, 1, 1, 0, 0, 0, 0, 2]), "a0 a1 a2 a3 a4 b4");
}

#[test]
fn two_ways_to_one_stack_are_one_recipe() {
    let space = space(&["a", "b"], None, STACK);
    let one = space.decode(&with_slots(&space, &[1, 1, 2, 2, 2, 0, 0, 0, 0, 0]));
    let other = space.decode(&with_slots(&space, &[1, 1, 0, 0, 0, 0, 0, 2, 2, 2]));
    assert_eq!(hash(&one), hash(&other));
}

#[test]
fn factors_are_for_what_writes_to_the_residual_stream() {
    let text = format!(
        "{STACK}scale = {{ low = 0.0, high = 2.0, init = 0.5 }}\nscale_modules = ['q.weight', 'mlp.up']\npasses = 1\n"
    );
    let space = space(&["a", "b"], None, &text);
    let mut genome = with_slots(&space, &[1, 2, 0, 1, 1]);
    let factor = |name: &str| names(&space).iter().position(|known| *known == name).unwrap();
    genome.0[factor("scale.1.g1")] = 0.5;
    genome.0[factor("scale.1.g3")] = 0.75;
    genome.0[factor("scale.1.g4")] = 0.75;
    let active: Vec<&str> = space
        .active(&genome)
        .iter()
        .zip(names(&space))
        .filter_map(|(active, name)| (!active).then_some(name))
        .collect();
    assert_eq!(active, ["scale.1.g2"]);
    let recipe = space.decode(&genome);
    assert_eq!(layers(&recipe), "a0 b1 a3 a4");
    let yaml = recipe.to_mergekit_yaml();
    let block = "  - model: /models/a\n    layer_range: [3, 5]\n    parameters:\n      scale:\n      - filter: q.weight\n        \
                 value: 1.5\n      - filter: mlp.up\n        value: 1.5\n      - value: 1.0\n";
    assert!(yaml.contains(block), "{yaml}");
    // A factor of 1 leaves the block as it is.
    assert!(yaml.contains("  - model: /models/b\n    layer_range: [1, 2]\n- sources:"), "{yaml}");
}

#[test]
fn merged_layers_have_the_weights_of_their_group() {
    let text = "method = 'ties'\ngranularity = 2\n[space.genes]\nweight = { low = 0, high = 1, per = ['layer_group'] }\n\
                [space.stack]\npasses = 2\n";
    let space = space(&["a", "b"], Some("base"), text);
    let mut genome = with_slots(&space, &[1, 0, 1, 0, 0, 1]);
    for (place, weight) in [0.2, 0.4, 0.6].into_iter().enumerate() {
        genome.0[place] = weight;
    }
    let recipe = space.decode(&genome);
    assert_eq!(layers(&recipe), "base+a+b0 base+a+b1 base+a+b4 base+a+b4");
    let Body::Slices(slices) = &recipe.body else { panic!() };
    let weights: Vec<&Value> = slices
        .iter()
        .map(|slice| match &slice.sources[2].parameters["weight"].0[0].value {
            Gradient::Scalar(value) => value,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(weights, [&Value::Number(0.2), &Value::Number(0.6), &Value::Number(0.6)]);
    // The middle group is not in the stack, so its weight changes nothing.
    assert_eq!(space.active(&genome)[..3], [true, false, true]);
}

#[test]
fn sources_may_stand_beside_the_merged_model() {
    let text = "method = ['ties', 'linear']\nlayer_groups = 5\ngenes = { weight = { per = ['model'] }, lambda = { low = 0.5 } }\n\
                stack = { with_sources = true }\n";
    let space = space(&["a", "b"], Some("base"), text);
    let slot = names(&space).iter().position(|name| *name == "stack.1.g0").unwrap();
    let GeneKind::Categorical { choices } = &space.genes()[slot].kind else { panic!() };
    assert_eq!(choices, &["(none)", "(merged)", "a", "b"]);
    let genome = with_slots(&space, &[1, 2, 0, 0, 3]);
    let recipe = space.decode(&genome);
    assert_eq!(layers(&recipe), "base+a+b0 base+a1 base+b4");
    recipe.validate().unwrap();
    let Body::Slices(slices) = &recipe.body else { panic!() };
    let alone = slices[1].sources[1].parameters.iter().chain(&slices[1].parameters);
    let alone: Vec<_> = alone.map(|(name, setting)| (name.as_str(), &setting.0[0].value)).collect();
    let one = Gradient::Scalar(Value::Number(1.0));
    assert_eq!(alone, [("density", &one), ("weight", &one), ("lambda", &one)]);
    // Without a merged block, weights change nothing.
    let none = space.active(&with_slots(&space, &[2, 2, 0, 0, 3]));
    let chooses = |gene: &Gene| gene.parameter.starts_with("stack.") || gene.name == "method";
    assert!(space.genes().iter().zip(none).all(|(gene, active)| active == chooses(gene)));
}

#[test]
fn baselines_have_a_place_in_a_stack() {
    let scaled = space(&["a", "b"], None, &format!("{STACK}scale = {{}}\nscale_modules = ['mlp']\n"));
    let second = scaled.encode_soup(&[1]).unwrap();
    assert!(second.exact);
    assert_eq!(layers(&scaled.decode(&second.genome)), "b0 b1 b2 b3 b4");
    assert_eq!(scaled.encode_soup(&[0, 1]), None);
    let off = space(&["a", "b"], None, &format!("{STACK}scale = {{ low = 1.1, high = 2 }}\nscale_modules = ['mlp']\n"));
    assert_eq!(off.encode_soup(&[1]), None);
    let low = space(&["a", "b"], None, &format!("{STACK}max_layers = 4\n"));
    assert_eq!(low.encode_soup(&[1]), None);

    let linear = "method = 'linear'\ngranularity = 1\ngenes = { weight = { per = ['model'] } }\n";
    let merged = space(&["a", "b"], None, &format!("{linear}stack = {{}}\n"));
    let soup = merged.encode_soup(&[0, 1]).unwrap();
    assert!(soup.exact);
    assert_eq!(layers(&merged.decode(&soup.genome)), "a+b0 a+b1 a+b2 a+b3 a+b4");
    let pruned = space(&["a", "b"], None, &format!("{linear}stack = {{ max_layers = 3 }}\n"));
    assert_eq!(pruned.encode_soup(&[0, 1]), None);
}

#[test]
fn what_cannot_be_stacked_is_told() {
    let error = |text: &str, facts: &ModelFacts| {
        let error = SearchSpace::new(&config(&["a", "b"], None, text), facts).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::BadConfiguration);
        error.to_string()
    };
    let known = facts(&["a", "b"], None);
    let long = error("method = 'passthrough'\ngranularity = 3\nstack = { max_layers = 2 }\n", &known);
    assert!(long.contains("max_layers") && long.contains("at least 3"), "{long}");
    let nothing = error(&format!("{STACK}scale = {{}}\n"), &known);
    assert!(nothing.contains("scale_modules") && nothing.contains("\"o_proj\" or \"down_proj\""), "{nothing}");
    let flat = ModelFacts {
        layers: LayerLayout { last: vec!["w".to_owned()], ..LayerLayout::default() },
        tensors: vec!["w".to_owned()],
        ..known
    };
    assert!(error(STACK, &flat).contains("no numbered layers"));
}

#[test]
fn only_blocks_that_continue_each_other_are_joined() {
    let space = space(&["a", "b"], None, STACK);
    let Body::Slices(slices) = space.decode(&with_slots(&space, &[1, 1, 1, 2, 2])).body else { panic!() };
    assert_eq!(slices.len(), 2);
    let again = slices.clone().into_iter().chain(slices.clone());
    assert_eq!(joined(again).len(), 4);
}

/// Spaces of every shape that stack layers.
fn spaces() -> impl Strategy<Value = SearchSpace> {
    let methods = proptest::sample::select(vec![
        ("'passthrough'", "scale = { low = -1.0, high = 1.5 }\nscale_modules = ['mlp']\n"),
        ("'passthrough'", ""),
        ("'linear'", ""),
        ("'linear'", "with_sources = true\n"),
        ("['dare_ties', 'task_arithmetic']", "with_sources = true\n"),
        ("['linear', 'slerp', 'della']", ""),
    ]);
    let base = proptest::sample::select(vec!["base", "b"]);
    (methods, base, 1..4_usize, 2..=LAYERS, 0..=15_usize, 2..4_usize).prop_map(
        |((method, more), base, passes, groups, most, count)| {
            let most = if most < LAYERS { String::new() } else { format!("max_layers = {most}\n") };
            let text =
                format!("method = {method}\nlayer_groups = {groups}\n[space.stack]\npasses = {passes}\n{more}{most}");
            space(&["a", "b", "c"][..count], Some(base), &text)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn every_genome_is_a_valid_stack(space in spaces(), numbers in proptest::collection::vec(any::<f64>(), 0..80)) {
        let genome = Genome(numbers);
        let recipe = space.decode(&genome);
        prop_assert!(recipe.validate().is_ok(), "{:?}", recipe.validate());
        let (fewest, most) = space.layer_counts().unwrap();
        let count = layers(&recipe).split(' ').count();
        prop_assert!((fewest..=most).contains(&count), "{count} layers, {fewest} to {most}");
        let read = Recipe::from_toml(&recipe.to_toml(&ids(&recipe))).unwrap();
        prop_assert_eq!(hash(&read), hash(&recipe));
        let read = Recipe::from_mergekit_yaml(&recipe.to_mergekit_yaml()).unwrap();
        prop_assert_eq!(read.body, recipe.body);
    }

    #[test]
    fn idle_genes_do_not_change_a_stack(
        space in spaces(), units in proptest::collection::vec(0.0..=1.0_f64, 80), noise in proptest::collection::vec(0.0..=1.0_f64, 80)
    ) {
        let genome = Genome(units[..space.genes().len()].to_vec());
        let active = space.active(&genome);
        let changed = genome.0.iter().zip(&noise).zip(&active).map(|((unit, noise), active)| if *active { *unit } else { *noise });
        let changed = Genome(changed.collect());
        prop_assert_eq!(hash(&space.decode(&genome)), hash(&space.decode(&changed)));
    }

    #[test]
    fn a_stack_keeps_the_order_of_its_slots(space in spaces(), units in proptest::collection::vec(0.0..=1.0_f64, 80)) {
        let genome = Genome(units[..space.genes().len()].to_vec());
        let pieces = space.decoded(&genome).pieces().to_vec();
        prop_assert!(pieces.windows(2).all(|pair| pair[0].slot < pair[1].slot));
        prop_assert!(!pieces.is_empty());
        let expected: usize = pieces.iter().map(|piece| space.groups.0[piece.group].1 - space.groups.0[piece.group].0).sum();
        prop_assert_eq!(layers(&space.decode(&genome)).split(' ').count(), expected);
    }

    #[test]
    fn encoded_baselines_are_one_model_as_it_is(space in spaces(), member in 0..2_usize) {
        let Some(encoded) = space.encode_soup(&[member]) else { return Ok(()) };
        let recipe = space.decode(&encoded.genome);
        prop_assert_eq!(layers(&recipe).split(' ').count(), LAYERS);
        let (first, last) = match &recipe.body { Body::Slices(slices) => (&slices[0], &slices[slices.len() - 1]), Body::Models(_) => panic!() };
        prop_assert_eq!(first.sources[0].layer_range.unwrap().0, 0);
        prop_assert_eq!(last.sources[0].layer_range.unwrap().1, LAYERS);
    }
}
