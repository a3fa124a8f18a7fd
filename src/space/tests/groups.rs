//! Groups of layers: how many there are, which tensors are in them, and what is told of those without effect.

use std::num::NonZeroUsize;

use super::*;

#[test]
fn grouping_by_granularity_and_count_agree() {
    let by = |text: &str| space(&["a", "b"], None, &format!("method = 'linear'\n{text}\n")).groups();
    assert_eq!(by("granularity = 1"), LAYERS);
    assert_eq!(by(&format!("layer_groups = {LAYERS}")), LAYERS);
    assert_eq!(NonZeroUsize::new(by("granularity = 100")), NonZeroUsize::new(1));
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
