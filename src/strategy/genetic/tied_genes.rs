//! Genes that mean the same in different places of the model.
//!
//! The weight of one source tends to want about the same value in every layer group and module. Genes that differ only
//! in those form one tie: a search may move a tie as a whole long before it can afford to move its genes one by one.

use super::switches::WEIGHT;
use crate::space::{Gene, GeneKind};

/// Which genes of a space are tied. (The merge method TIES is something else.)
#[derive(Clone, Debug, PartialEq)]
pub(in crate::strategy) struct TiedGenes {
    /// The tie of each gene, numbered from 0 in order of appearance.
    of: Vec<usize>,
    count: usize,
    /// For each gene, the weight gene of the same source and place, and that gene's value at weight 0; `None`: no such
    /// gene.
    weights: Vec<Option<(usize, f64)>>,
    init: Vec<f64>,
}

impl TiedGenes {
    pub(in crate::strategy) fn new(genes: &[Gene]) -> Self {
        let mut labels: Vec<(&str, Option<usize>, &GeneKind)> = Vec::new();
        let of = genes.iter().map(|gene| {
            let label = (gene.parameter.as_str(), gene.model, &gene.kind);
            labels.iter().position(|known| *known == label).unwrap_or_else(|| {
                labels.push(label);
                labels.len() - 1
            })
        });
        let of: Vec<usize> = of.collect();
        let init = genes.iter().map(|gene| gene.init).collect();
        Self { count: labels.len(), of, weights: genes.iter().map(|gene| weight_of(genes, gene)).collect(), init }
    }

    /// A point as far as it matters: what has hardly any weight is merged the same whatever the other genes say of it,
    /// so those are drawn to their initial value.
    pub(in crate::strategy) fn seen(&self, point: &[f64]) -> Vec<f64> {
        let matter = |(place, value): (usize, &f64)| match self.weights[place] {
            Some((weight, nothing)) => {
                let share = ((point[weight] - nothing).abs() / FULL).min(1.0);
                self.init[place] + share * (value - self.init[place])
            }
            None => *value,
        };
        point.iter().enumerate().map(matter).collect()
    }

    /// Number of ties.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Whether there is a tie of more than one gene.
    pub(super) fn bind(&self) -> bool {
        self.count < self.of.len()
    }

    /// The tie of each gene.
    pub(super) fn of(&self) -> &[usize] {
        &self.of
    }

    /// The genome whose genes all have their tie's value.
    pub(super) fn spread(&self, values: &[f64]) -> Vec<f64> {
        self.of.iter().map(|tie| values[*tie]).collect()
    }

    /// The mean of each tie's genes.
    pub(super) fn means(&self, genome: &[f64]) -> Vec<f64> {
        let mut sums = vec![(0.0, 0.0); self.count];
        for (tie, value) in self.of.iter().zip(genome) {
            sums[*tie].0 += value;
            sums[*tie].1 += 1.0;
        }
        sums.into_iter().map(|(sum, count)| sum / count).collect()
    }
}

/// Distance from no weight, as a share of the weight's range, from which on everything else about a source counts in
/// full.
const FULL: f64 = 0.25;

/// The weight gene for the same source and place as another real gene, with the weight gene's value at weight 0, where
/// that is in range. The value is not computed by [`Gene::unit`], which may give a number next to it that decodes to 0
/// exactly: the proposals of recorded runs rest on this one.
fn weight_of(genes: &[Gene], gene: &Gene) -> Option<(usize, f64)> {
    if gene.parameter == WEIGHT || gene.model.is_none() || !matches!(gene.kind, GeneKind::Real { .. }) {
        return None;
    }
    let weight = genes.iter().position(|other| {
        let place = (other.model, other.layer_group, other.module);
        other.parameter == WEIGHT && place == (gene.model, gene.layer_group, gene.module)
    })?;
    match genes[weight].kind {
        GeneKind::Real { low, high, log: false } if low <= 0.0 && high > low && high >= 0.0 => {
            Some((weight, -low / (high - low)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::conformance::{category, real};
    use super::*;

    #[test]
    fn genes_that_differ_in_place_only_are_tied() {
        let gene = |model, layer_group| Gene { model: Some(model), layer_group: Some(layer_group), ..real("weight") };
        let genes = vec![gene(0, 0), gene(1, 0), gene(0, 1), gene(1, 1), category("method", 2)];
        let tied_genes = TiedGenes::new(&genes);
        assert_eq!((tied_genes.count(), tied_genes.bind(), tied_genes.of()), (3, true, &[0, 1, 0, 1, 2][..]));
        assert_eq!(tied_genes.spread(&[0.1, 0.2, 0.3]), vec![0.1, 0.2, 0.1, 0.2, 0.3]);
        assert_eq!(tied_genes.means(&[0.0, 0.2, 1.0, 0.4, 0.3]), vec![0.5, 0.30000000000000004, 0.3]);
        assert!(!TiedGenes::new(&[real("x"), real("y")]).bind());
    }

    #[test]
    fn what_has_no_weight_is_seen_the_same() {
        let gene = |name: &str, model| Gene { model: Some(model), ..real(name) };
        let genes = vec![gene("weight", 0), gene("weight", 1), gene("density", 0), gene("density", 1), real("lambda")];
        let tied_genes = TiedGenes::new(&genes);
        let seen = tied_genes.seen(&[0.0, 0.6, 0.9, 0.9, 0.2]);
        assert_eq!(seen, vec![0.0, 0.6, 0.5, 0.9, 0.2]);
        assert_eq!(tied_genes.seen(&[0.125, 0.6, 0.9, 0.9, 0.2])[2], 0.7);
        // A range that starts below zero has its zero inside.
        let mut signed = genes;
        signed[0].kind = GeneKind::Real { low: -1.0, high: 1.0, log: false };
        let tied_genes = TiedGenes::new(&signed);
        assert_eq!(tied_genes.seen(&[0.5, 0.6, 0.9, 0.9, 0.2])[2], 0.5);
        assert_eq!(tied_genes.seen(&[0.0, 0.6, 0.9, 0.9, 0.2])[2], 0.9);
    }
}
