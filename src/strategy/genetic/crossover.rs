//! Two parents, one child. Genomes are numbers in `[0, 1]`.

use rand::{Rng, RngExt};

use crate::space::{Gene, GeneKind};

/// Simulated binary crossover (Deb and Agrawal 1995) for real and integer genes: children lie around the parents, near
/// them for a large `eta`. Every gene crosses with probability 1/2; categorical genes come from either parent.
pub(in crate::strategy) fn simulated_binary(
    genes: &[Gene],
    first: &[f64],
    second: &[f64],
    eta: f64,
    rng: &mut impl Rng,
) -> Vec<f64> {
    let mut child = first.to_vec();
    for (place, gene) in genes.iter().enumerate() {
        if rng.random::<bool>() {
            continue;
        }
        let (a, b) = (first[place], second[place]);
        child[place] = match gene.kind {
            GeneKind::Categorical { .. } => b,
            _ => {
                let spread = spread(rng.random(), eta);
                let side = if rng.random::<bool>() { spread } else { -spread };
                (0.5 * ((a + b) + side * (b - a))).clamp(0.0, 1.0)
            }
        };
    }
    child
}

/// The spread factor whose distribution gives the crossover its name.
fn spread(draw: f64, eta: f64) -> f64 {
    if draw <= 0.5 { (2.0 * draw).powf(1.0 / (eta + 1.0)) } else { (2.0 * (1.0 - draw)).powf(-1.0 / (eta + 1.0)) }
}

/// Exchanges whole parts of a merge: all genes of a model, a layer group, a module or a parameter go together, each
/// part from either parent, at least one from each. `None` where the genes form no two parts.
pub(super) fn exchange(genes: &[Gene], first: &[f64], second: &[f64], rng: &mut impl Rng) -> Option<Vec<f64>> {
    let cuts: Vec<Vec<usize>> = [Cut::Model, Cut::LayerGroup, Cut::Module, Cut::Parameter]
        .into_iter()
        .map(|cut| parts(genes, cut))
        .filter(|parts| parts.iter().any(|part| *part != parts[0]))
        .collect();
    if cuts.is_empty() {
        return None;
    }
    let parts = &cuts[rng.random_range(0..cuts.len())];
    let count = parts.iter().max().map_or(1, |last| last + 1);
    let mut from_second: Vec<bool> = (0..count).map(|_| rng.random()).collect();
    // One part from each parent, whatever the coins say.
    let pinned = rng.random_range(0..count);
    from_second[pinned] = true;
    from_second[(pinned + 1) % count] = false;
    let pick = |(place, part): (usize, &usize)| if from_second[*part] { second[place] } else { first[place] };
    Some(parts.iter().enumerate().map(pick).collect())
}

/// What a genome is cut by.
#[derive(Clone, Copy)]
enum Cut {
    Model,
    LayerGroup,
    Module,
    Parameter,
}

/// The part that each gene belongs to, numbered from 0 in order of appearance.
fn parts(genes: &[Gene], cut: Cut) -> Vec<usize> {
    let label = |gene: &Gene| match cut {
        Cut::Model => (gene.model, None),
        Cut::LayerGroup => (gene.layer_group, None),
        Cut::Module => (gene.module, None),
        Cut::Parameter => (None, Some(gene.parameter.clone())),
    };
    let mut labels = Vec::new();
    let mut number = |gene: &Gene| {
        let label = label(gene);
        labels.iter().position(|known| *known == label).unwrap_or_else(|| {
            labels.push(label);
            labels.len() - 1
        })
    };
    genes.iter().map(&mut number).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::conformance::{category, real};
    use super::*;
    use crate::random;

    fn grid() -> Vec<Gene> {
        let gene = |model, layer_group| Gene { model: Some(model), layer_group: Some(layer_group), ..real("weight") };
        vec![gene(0, 0), gene(0, 1), gene(1, 0), gene(1, 1)]
    }

    #[test]
    fn exchange_moves_whole_parts_from_both_parents() {
        let mut rng = random::stream(7, "test", 0);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let child = exchange(&grid(), &[0.0; 4], &[1.0; 4], &mut rng).unwrap();
            seen.insert(child.iter().map(|value| *value as u8).collect::<Vec<_>>());
        }
        let expected = [[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]];
        assert_eq!(seen, expected.iter().map(|child| child.to_vec()).collect());
        assert_eq!(exchange(&[real("x")], &[0.0], &[1.0], &mut rng), None);
    }

    #[test]
    fn simulated_binary_stays_in_bounds_and_around_its_parents() {
        let genes = vec![real("x"), category("method", 3)];
        let mut rng = random::stream(7, "test", 1);
        let mut sum = 0.0;
        for _ in 0..5_000 {
            let child = simulated_binary(&genes, &[0.4, 0.1], &[0.6, 0.9], 15.0, &mut rng);
            assert!((0.0..=1.0).contains(&child[0]));
            assert!(child[1] == 0.1 || child[1] == 0.9);
            sum += child[0];
        }
        // Half the children keep the first parent's gene, the others lie evenly around the middle.
        assert!((sum / 5_000.0 - 0.45).abs() < 0.01, "{}", sum / 5_000.0);
        let same = simulated_binary(&genes, &[0.3, 0.1], &[0.3, 0.1], 15.0, &mut rng);
        assert_eq!(same, vec![0.3, 0.1]);
    }
}
