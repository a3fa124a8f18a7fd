//! Where the model-stock point lies in spaces of several shapes.

use super::tests::{config, facts, space};
use super::*;
use crate::merge::agreement::Agreement;

/// Two sources whose task vectors have this cosine, in each layer.
fn agreements(cosines: &[f64]) -> Vec<Agreement> {
    cosines.iter().map(|cosine| Agreement::of_squares(&[1.0, 1.0], 2.0 + 2.0 * cosine)).collect()
}

fn stock(cosine: f64) -> f64 {
    2.0 * cosine / (1.0 + cosine)
}

/// The decoded values of the point, by gene.
fn values(space: &SearchSpace, agreements: &[Agreement]) -> Option<Vec<(String, f64)>> {
    let genome = space.model_stock(agreements)?;
    let number = |value| match value {
        GeneValue::Real(number) => number,
        GeneValue::Integer(number) => number as f64,
        GeneValue::Choice(choice) => choice as f64,
    };
    let names = space.genes().iter().map(|gene| gene.name.clone());
    Some(names.zip(space.values(&genome).into_iter().map(number)).collect())
}

fn assert_values(space: &SearchSpace, agreements: &[Agreement], expected: &[(&str, f64)]) {
    let found = values(space, agreements).unwrap();
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((name, value), (wanted_name, wanted)) in found.iter().zip(expected) {
        assert!(name == wanted_name && (value - wanted).abs() < 1e-9, "{found:?} {expected:?}");
    }
}

#[test]
fn weights_share_the_ratio_and_nothing_is_trimmed() {
    let text = "method = 'dare_linear'\n[space.genes]\nweight = { low = 0, high = 1, per = ['model'] }\ndrop_rate = { low = 0, high = 0.9, per = [] }\n";
    let half = stock(0.5) / 2.0;
    let expected = [("weight.a", half), ("weight.b", half), ("drop_rate", 0.0)];
    assert_values(&space(&["a", "b"], Some("base"), text), &agreements(&[0.5; 5]), &expected);
}

#[test]
fn each_layer_group_has_its_own_ratio() {
    let text = "method = 'task_arithmetic'\nlayer_groups = 2\n[space.genes]\nweight = { low = 0, high = 1, per = ['layer_group'] }\n";
    let space = space(&["a", "b"], Some("base"), text);
    // Layers 0 to 2, then 3 and 4.
    let layers = agreements(&[0.2, 0.2, 0.2, 0.6, 0.6]);
    assert_values(&space, &layers, &[("weight.g0", stock(0.2) / 2.0), ("weight.g1", stock(0.6) / 2.0)]);
    // A group that cancels out stays at the base.
    let layers = agreements(&[-0.5, -0.5, -0.5, 0.6, 0.6]);
    let found = values(&space, &layers).unwrap();
    assert_eq!(found[0].1, 0.0);
}

#[test]
fn one_weight_for_all_groups_takes_the_whole_model() {
    let text = "method = 'task_arithmetic'\n[space.genes]\nweight = { low = 0, high = 1, per = [] }\n";
    let space = space(&["a", "b"], Some("base"), text);
    assert_values(&space, &agreements(&[0.2, 0.2, 0.2, 0.6, 0.8]), &[("weight", stock(0.4) / 2.0)]);
}

#[test]
fn lambda_carries_the_ratio_where_weights_are_normalized() {
    let text = "method = 'ties'\n[space.genes]\nweight = { low = 0.1, high = 1, per = ['model'] }\nlambda = { low = 0, high = 2 }\nnormalize = true\n";
    let space = space(&["a", "b"], Some("base"), text);
    assert_values(&space, &agreements(&[0.5; 5]), &[("weight.a", 0.5), ("weight.b", 0.5), ("lambda", stock(0.5))]);
}

#[test]
fn a_method_that_adds_task_vectors_is_chosen() {
    let text = "method = ['ties', 'linear', 'task_arithmetic']\n[space.genes]\nweight = { low = 0, high = 1, per = ['model'] }\n";
    let space = space(&["a", "b"], Some("base"), text);
    let found = values(&space, &agreements(&[0.5; 5])).unwrap();
    assert_eq!(found[0], ("method".to_owned(), 2.0));
}

#[test]
fn spaces_without_the_point_say_so() {
    let weight = "[space.genes]\nweight = { low = 0.4, high = 1, per = ['model'] }\n";
    let bounded = space(&["a", "b"], Some("base"), &format!("method = 'task_arithmetic'\n{weight}"));
    assert_eq!(bounded.model_stock(&agreements(&[0.1; 5])), None);
    assert!(bounded.model_stock(&agreements(&[0.9; 5])).is_some());
    // Nothing goes the same way: the point is the base, which is a baseline.
    assert_eq!(bounded.model_stock(&agreements(&[0.0; 5])), None);
    let average = space(&["a", "b"], Some("base"), &format!("method = 'linear'\n{weight}"));
    assert_eq!(average.model_stock(&agreements(&[0.9; 5])), None);
    assert_eq!(bounded.model_stock(&[]), None);
    // One source that moved is no stock.
    let facts = facts(&["a", "b"], Some("base"));
    let lone =
        SearchSpace::new(&config(&["a", "b"], Some("base"), &format!("method = 'ties'\n{weight}")), &facts).unwrap();
    assert_eq!(lone.model_stock(&[Agreement::of_squares(&[1.0, 0.0], 1.0)]), None);
}
