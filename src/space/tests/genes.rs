//! Which genes there are, what they are called, and what a recipe has of them.

use super::*;

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
