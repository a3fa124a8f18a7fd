//! Soups and the base: their recipes, and their places in a space.

use super::*;

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
