//! Genes that mean the same in different places of the model.
//!
//! The weight of one source tends to want about the same value in every layer group and module. Genes that differ only in
//! those form one tie: a search may move a tie as a whole long before it can afford to move its genes one by one.

use crate::space::{Gene, GeneKind};

/// The ties of a space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ties {
    /// The tie of each gene, numbered from 0 in order of appearance.
    of: Vec<usize>,
    count: usize,
}

impl Ties {
    pub(super) fn new(genes: &[Gene]) -> Self {
        let mut labels: Vec<(&str, Option<usize>, &GeneKind)> = Vec::new();
        let of = genes.iter().map(|gene| {
            let label = (gene.parameter.as_str(), gene.model, &gene.kind);
            labels.iter().position(|known| *known == label).unwrap_or_else(|| {
                labels.push(label);
                labels.len() - 1
            })
        });
        let of: Vec<usize> = of.collect();
        Self { count: labels.len(), of }
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

#[cfg(test)]
mod tests {
    use super::super::super::conformance::{category, real};
    use super::*;

    #[test]
    fn genes_that_differ_in_place_only_are_tied() {
        let gene = |model, layer_group| Gene { model: Some(model), layer_group: Some(layer_group), ..real("weight") };
        let genes = vec![gene(0, 0), gene(1, 0), gene(0, 1), gene(1, 1), category("method", 2)];
        let ties = Ties::new(&genes);
        assert_eq!((ties.count(), ties.bind(), ties.of()), (3, true, &[0, 1, 0, 1, 2][..]));
        assert_eq!(ties.spread(&[0.1, 0.2, 0.3]), vec![0.1, 0.2, 0.1, 0.2, 0.3]);
        assert_eq!(ties.means(&[0.0, 0.2, 1.0, 0.4, 0.3]), vec![0.5, 0.30000000000000004, 0.3]);
        assert!(!Ties::new(&[real("x"), real("y")]).bind());
    }
}
