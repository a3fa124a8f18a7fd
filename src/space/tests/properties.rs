//! What holds of every genome in spaces of every shape.

use proptest::prelude::*;

use super::*;

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
