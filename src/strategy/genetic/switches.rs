//! Turning sources off and on: a merge without a source is one with that source's weights at 0, a point that steps of
//! single genes hardly ever reach.

use rand::{Rng, RngExt};

use crate::space::{Gene, GeneKind, GeneValue};

/// Parameter name of a source's weight.
pub(super) const WEIGHT: &str = "weight";

/// The sources of a space that can be turned off.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Switches(Vec<Switch>);

/// One source.
#[derive(Clone, Debug, PartialEq)]
struct Switch {
    /// Its weights: gene, the number in `[0, 1]` that is no weight, and where a search without better knowledge starts.
    weights: Vec<(usize, f64, f64)>,
}

impl Switches {
    /// The switches of the sources that have weights of their own, all of which may be 0.
    pub(super) fn new(genes: &[Gene]) -> Self {
        let sources = genes.iter().filter_map(|gene| gene.model).max().map_or(0, |last| last + 1);
        Self((0..sources).filter_map(|source| Switch::of(genes, source)).collect())
    }

    /// Whether there are two at least: the last one off would leave nothing.
    pub(super) fn exist(&self) -> bool {
        self.0.len() > 1
    }

    /// Turns one source off, or on again: with the weights that it has in `donor`, or with those that a search starts
    /// with where it is off there too. The last source that is on stays so. There is a switch at least.
    pub(super) fn flip(&self, genome: &mut [f64], donor: &[f64], rng: &mut impl Rng) {
        let on = self.0.iter().filter(|switch| switch.is_on(genome)).count();
        let first = rng.random_range(0..self.0.len());
        let mut order = self.0[first..].iter().chain(&self.0[..first]);
        let Some(switch) = order.find(|switch| on > 1 || !switch.is_on(genome)) else { return };
        if switch.is_on(genome) {
            switch.weights.iter().for_each(|(gene, nothing, _)| genome[*gene] = *nothing);
        } else {
            let donated = switch.is_on(donor);
            switch
                .weights
                .iter()
                .for_each(|(gene, _, init)| genome[*gene] = if donated { donor[*gene] } else { *init });
        }
    }
}

impl Switch {
    fn of(genes: &[Gene], source: usize) -> Option<Self> {
        let weights =
            genes.iter().enumerate().filter(|(_, gene)| gene.model == Some(source) && gene.parameter == WEIGHT);
        let nothing = |(place, gene): (usize, &Gene)| match gene.kind {
            GeneKind::Real { low, high, log: false } if low <= 0.0 && 0.0 <= high => {
                Some((place, gene.unit(&GeneValue::Real(0.0)), gene.init))
            }
            _ => None,
        };
        let weights: Vec<(usize, f64, f64)> = weights.map(nothing).collect::<Option<_>>()?;
        (!weights.is_empty()).then_some(Self { weights })
    }

    fn is_on(&self, genome: &[f64]) -> bool {
        self.weights.iter().any(|(gene, nothing, _)| genome[*gene] != *nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::conformance::{category, real};
    use super::*;
    use crate::random;

    /// Weights from -1 to 1 of two sources in two layer groups, and a density each.
    fn genes() -> Vec<Gene> {
        let weight = |model| Gene {
            model: Some(model),
            parameter: WEIGHT.to_owned(),
            kind: GeneKind::Real { low: -1.0, high: 1.0, log: false },
            init: 0.75,
            ..real("weight")
        };
        let density = |model| Gene { model: Some(model), ..real("density") };
        vec![category("method", 2), weight(0), weight(0), weight(1), weight(1), density(0), density(1)]
    }

    #[test]
    fn a_source_goes_off_and_comes_back_as_another_has_it() {
        let switches = Switches::new(&genes());
        assert!(switches.exist());
        let (parent, donor) = ([0.2, 0.6, 0.7, 0.8, 0.9, 0.3, 0.4], [0.3, 0.1, 0.2, 0.5, 0.5, 0.6, 0.6]);
        let mut seen = [0; 2];
        for draw in 0..100 {
            let mut rng = random::stream(7, "test", draw);
            let mut child = parent;
            switches.flip(&mut child, &donor, &mut rng);
            let off = if child[1] == 0.5 { 0 } else { 1 };
            seen[off] += 1;
            let expected = [[0.2, 0.5, 0.5, 0.8, 0.9, 0.3, 0.4], [0.2, 0.6, 0.7, 0.5, 0.5, 0.3, 0.4]];
            assert_eq!(child, expected[off]);
            // The last one stays: what changes is the one that is off.
            switches.flip(&mut child, &donor, &mut rng);
            let mut back = parent;
            // The donor has the first source; the second starts where a search does.
            match off {
                0 => back[1..3].copy_from_slice(&donor[1..3]),
                _ => back[3..5].copy_from_slice(&[0.75, 0.75]),
            }
            assert_eq!(child, back);
        }
        assert!(seen[0] > 20 && seen[1] > 20, "{seen:?}");
    }

    #[test]
    fn weights_that_cannot_be_nothing_have_no_switch() {
        let mut bounded = genes();
        bounded[3].kind = GeneKind::Real { low: 0.1, high: 1.0, log: false };
        assert!(!Switches::new(&bounded).exist());
        let shared: Vec<Gene> = genes().into_iter().map(|gene| Gene { model: None, ..gene }).collect();
        assert!(!Switches::new(&shared).exist());
        assert!(!Switches::new(&[]).exist());
    }
}
