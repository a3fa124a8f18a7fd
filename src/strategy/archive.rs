//! What a strategy has proposed and what came of it: no point is proposed twice, and genes without effect never matter.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::composite::Contributions;
use super::{Landscape, Placement};
use crate::space::{GeneKind, Genome};

/// What is known of a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fitness {
    Pending,
    /// Higher is better.
    Scored(f64),
    /// The candidate's own fault: worse than every score.
    Infeasible,
    /// Says nothing of the candidate.
    Failed,
}

impl Fitness {
    /// Order of preference: scores, then infeasible; `None` where nothing is known.
    pub(super) fn rank(self) -> Option<f64> {
        match self {
            Self::Scored(score) => Some(score),
            Self::Infeasible => Some(f64::NEG_INFINITY),
            Self::Pending | Self::Failed => None,
        }
    }
}

/// One point of the search space.
#[derive(Clone, Debug)]
pub(super) struct Point {
    /// The genome as proposed; every number in `[0, 1]`.
    pub(super) genome: Genome,
    /// The genome with genes without effect at their initial value and discrete genes in the middle of their share:
    /// points that mean the same are equal here.
    pub(super) effective: Vec<f64>,
    /// The evaluation that it waits for or got.
    pub(super) index: Option<u64>,
    pub(super) fitness: Fitness,
    pub(super) generation: u32,
}

/// Every point proposed or known, in order.
pub(super) struct Archive {
    landscape: Arc<dyn Landscape>,
    points: Vec<Point>,
    keys: HashSet<Vec<u64>>,
    /// Every outcome told, also of proposals that are not points (a duplicate may name them later).
    told: BTreeMap<u64, Fitness>,
    by_index: BTreeMap<u64, Vec<usize>>,
    /// What the parts of the objective contributed, by evaluation.
    contributions: BTreeMap<u64, Contributions>,
}

impl Archive {
    pub(super) fn new(landscape: Arc<dyn Landscape>) -> Self {
        Self {
            landscape,
            points: Vec::new(),
            keys: HashSet::new(),
            told: BTreeMap::new(),
            by_index: BTreeMap::new(),
            contributions: BTreeMap::new(),
        }
    }

    pub(super) fn landscape(&self) -> &dyn Landscape {
        &*self.landscape
    }

    pub(super) fn points(&self) -> &[Point] {
        &self.points
    }

    /// The genome with everything that makes no difference taken out.
    pub(super) fn effective(&self, genome: &Genome) -> Vec<f64> {
        let active = self.landscape.active(genome);
        let genes = self.landscape.genes();
        genes
            .iter()
            .zip(&genome.0)
            .enumerate()
            .map(|(place, (gene, &value))| {
                let value = if active.get(place).copied().unwrap_or(true) { value } else { gene.init };
                snap(&gene.kind, value)
            })
            .collect()
    }

    /// Whether a point that means the same was proposed or is known.
    pub(super) fn contains(&self, effective: &[f64]) -> bool {
        self.keys.contains(&key(effective))
    }

    /// Adds a point; its place in [`Self::points`].
    pub(super) fn add(&mut self, genome: Genome, generation: u32) -> usize {
        let effective = self.effective(&genome);
        self.keys.insert(key(&effective));
        self.points.push(Point { genome, effective, index: None, fitness: Fitness::Pending, generation });
        self.points.len() - 1
    }

    /// Ties a point to an evaluation, which may be over already.
    pub(super) fn place(&mut self, point: usize, placement: Placement) {
        let (Placement::Asked { index } | Placement::Duplicate { of: index }) = placement;
        self.assign(point, index);
    }

    /// Ties a point to the evaluation with this index.
    pub(super) fn assign(&mut self, point: usize, index: u64) {
        self.points[point].index = Some(index);
        self.by_index.entry(index).or_default().push(point);
        if let Some(fitness) = self.told.get(&index) {
            self.points[point].fitness = *fitness;
        }
    }

    /// Notes what the parts of the objective contributed to an evaluation.
    pub(super) fn note(&mut self, index: u64, contributions: Contributions) {
        self.contributions.insert(index, contributions);
    }

    /// What the parts of the objective contributed to a point, where that is known.
    pub(super) fn contributions(&self, point: usize) -> Option<&Contributions> {
        self.contributions.get(&self.points[point].index?)
    }

    /// Takes an outcome; the places of the points that it belongs to.
    pub(super) fn tell(&mut self, index: u64, fitness: Fitness) -> Vec<usize> {
        self.told.insert(index, fitness);
        let places = self.by_index.get(&index).cloned().unwrap_or_default();
        for &place in &places {
            self.points[place].fitness = fitness;
        }
        places
    }
}

/// The value in the middle of its share of `[0, 1]`; a continuous gene's value as it is.
fn snap(kind: &GeneKind, value: f64) -> f64 {
    let value = value.clamp(0.0, 1.0);
    match kind.levels() {
        // Adding zero turns -0 into 0, so that equal numbers have equal bits.
        None => value + 0.0,
        Some(levels) => levels.middle(levels.of(value)),
    }
}

fn key(effective: &[f64]) -> Vec<u64> {
    effective.iter().map(|value| value.to_bits()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{TestSpace, category, integer, real};
    use super::*;

    #[test]
    fn points_that_mean_the_same_are_equal() {
        let space = TestSpace::new(vec![real("x"), category("method", 2), integer("n", 0, 3)]).inactive_unless(0, 1, 1);
        let mut archive = Archive::new(Arc::new(space));
        archive.add(Genome(vec![0.3, 0.2, 0.10]), 0);
        assert!(
            archive.contains(&archive.effective(&Genome(vec![0.9, 0.4, 0.2]))),
            "x has no effect with the first method"
        );
        assert!(!archive.contains(&archive.effective(&Genome(vec![0.3, 0.6, 0.2]))));
        assert!(!archive.contains(&archive.effective(&Genome(vec![0.3, 0.2, 0.3]))));
    }

    #[test]
    fn duplicates_take_the_outcome_that_is_known_or_comes() {
        let mut archive = Archive::new(Arc::new(TestSpace::new(vec![real("x")])));
        let early = archive.add(Genome(vec![0.1]), 0);
        archive.place(early, Placement::Duplicate { of: 4 });
        assert_eq!(archive.points()[early].fitness, Fitness::Pending);
        assert_eq!(archive.tell(4, Fitness::Scored(0.5)), vec![early]);
        let late = archive.add(Genome(vec![0.2]), 0);
        archive.place(late, Placement::Duplicate { of: 4 });
        assert_eq!(archive.points()[late].fitness, Fitness::Scored(0.5));
    }
}
