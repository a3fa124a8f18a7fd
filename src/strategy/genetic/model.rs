//! The model of the history that ranks children before any of them is paid for.

use std::collections::HashSet;

use super::super::archive::{Archive, Fitness};
use super::super::composite::{self, AllScales, Composite, Contributions, MAX_IMAGINED, Targets};
use super::population;
use super::tied_genes::TiedGenes;
use crate::space::Gene;

/// Points that the model is made of at most.
const POINTS: usize = 220;
/// Points that stay when the model would have more.
const KEPT: usize = 160;
/// Share of the points that are not the best ones, but evenly spread over all others: a model that knows good places
/// only takes every place for a good one, and asks for the same bad ones again and again.
const OTHERS: f64 = 0.4;
/// Points that the model's length scales are fitted on at most.
const FIT_POINTS: usize = 128;
/// Scored points below which there is no model.
const FEWEST: usize = 5;
/// Growth of the history between two fits of the length scales.
const GROWTH: f64 = 1.1;

/// The model, kept up to date between proposals.
pub(super) struct Model {
    /// The genes, and where genes are tied, the means of the ties.
    features: Vec<Gene>,
    scales: AllScales,
    parts: usize,
    /// Points known at the last fit of the scales.
    fitted_on: usize,
    /// Points of the archive that the model has seen.
    seen: HashSet<usize>,
    /// Places in the archive of the points that the surrogate is made of, in its order.
    members: Vec<usize>,
    surrogate: Composite,
}

/// What the model sees of a point.
fn features(tied_genes: &TiedGenes, point: &[f64]) -> Vec<f64> {
    let mut seen = tied_genes.seen(point);
    if tied_genes.bind() {
        seen.extend(tied_genes.means(&seen));
    }
    seen
}

impl Model {
    pub(super) fn new(genes: &[Gene], tied_genes: &TiedGenes, parts: usize) -> Self {
        let mut features = genes.to_vec();
        if tied_genes.bind() {
            let first = |tie: usize| tied_genes.of().iter().position(|other| *other == tie);
            features.extend((0..tied_genes.count()).filter_map(first).map(|gene| genes[gene].clone()));
        }
        let scales = composite::prior(features.len(), parts);
        let surrogate = Composite::new(&features, &scales);
        Self { features, scales, parts, fitted_on: 0, seen: HashSet::new(), members: Vec::new(), surrogate }
    }

    /// The model of everything known, with what is pending imagined; `None` while too little is known.
    pub(super) fn surrogate(&mut self, tied_genes: &TiedGenes, archive: &Archive) -> Option<Composite> {
        let points = archive.points();
        let known = |place: &usize| points[*place].fitness.rank().is_some();
        let news: Vec<usize> = (0..points.len()).filter(known).filter(|place| !self.seen.contains(place)).collect();
        self.seen.extend(&news);
        self.extend(news, tied_genes, archive);
        let scored = self.members.iter().filter(|place| matches!(points[**place].fitness, Fitness::Scored(_))).count();
        if scored < FEWEST {
            return None;
        }
        let too_many = self.members.len() > POINTS;
        let due = self.seen.len() as f64 >= self.fitted_on as f64 * GROWTH + 1.0;
        if too_many || due {
            self.rebuild(due, tied_genes, archive);
        }
        self.surrogate.set_targets(&self.targets(&self.members, archive));
        let mut surrogate = self.surrogate.clone();
        let mut imagined = HashSet::new();
        for point in points.iter().rev().filter(|point| point.fitness == Fitness::Pending) {
            // Candidates that are the same share their index; one of them will do.
            if imagined.len() < MAX_IMAGINED && point.index.is_some_and(|index| imagined.insert(index)) {
                surrogate.imagine(&features(tied_genes, &point.effective));
            }
        }
        Some(surrogate)
    }

    /// Takes points in, whose errors are judged by all that are members then.
    fn extend(&mut self, places: Vec<usize>, tied_genes: &TiedGenes, archive: &Archive) {
        if places.is_empty() {
            return;
        }
        let known = self.members.len();
        self.members.extend(places);
        let targets = self.targets(&self.members, archive);
        for (row, place) in self.members.iter().enumerate().skip(known) {
            self.surrogate.add(&features(tied_genes, &archive.points()[*place].effective), &targets, row);
        }
    }

    /// Chooses among all known points, fits the scales if that is due, and makes the surrogate anew.
    fn rebuild(&mut self, fit_scales: bool, tied_genes: &TiedGenes, archive: &Archive) {
        let points = archive.points();
        let limit = if self.members.len() > POINTS { KEPT } else { POINTS };
        let ranked = population::best(points, 0..points.len(), points.len());
        let members: Vec<usize> = spread(ranked.len(), limit, OTHERS).into_iter().map(|at| ranked[at]).collect();
        if fit_scales {
            let chosen: Vec<usize> = spread(members.len(), FIT_POINTS, 0.5).into_iter().map(|at| members[at]).collect();
            let seen: Vec<Vec<f64>> =
                chosen.iter().map(|place| features(tied_genes, &points[*place].effective)).collect();
            let seen: Vec<&[f64]> = seen.iter().map(Vec::as_slice).collect();
            let targets = self.targets(&chosen, archive);
            self.scales = composite::fit_all(&self.features, &self.scales, &seen, &targets);
            self.fitted_on = self.seen.len();
        }
        self.surrogate = Composite::new(&self.features, &self.scales);
        self.members.clear();
        self.extend(members, tied_genes, archive);
    }

    /// What the model learns of these points.
    fn targets(&self, places: &[usize], archive: &Archive) -> Targets {
        let worst = f64::NEG_INFINITY;
        let ranks: Vec<f64> =
            places.iter().map(|place| archive.points()[*place].fitness.rank().unwrap_or(worst)).collect();
        let contributions: Vec<Option<&Contributions>> =
            places.iter().map(|place| archive.contributions(*place)).collect();
        composite::targets(&ranks, &contributions, self.parts)
    }
}

/// Rates points by the model, which sees features.
pub(super) struct Rater<'a> {
    pub(super) surrogate: &'a Composite,
    pub(super) tied_genes: &'a TiedGenes,
}

impl Rater<'_> {
    /// A first guess at [`Self::rate`].
    pub(super) fn sketch(&self, point: &[f64]) -> f64 {
        self.surrogate.sketch(&features(self.tied_genes, point))
    }

    /// What a point promises.
    pub(super) fn rate(&self, point: &[f64]) -> f64 {
        self.surrogate.promise(&features(self.tied_genes, point))
    }
}

/// `limit` places of `0..n`: a share of `others` evenly spread behind the first ones.
fn spread(n: usize, limit: usize, others: f64) -> Vec<usize> {
    if n <= limit {
        return (0..n).collect();
    }
    let rest = (limit as f64 * others) as usize;
    let first = limit - rest;
    (0..first).chain((0..rest).map(|step| first + step * (n - first) / rest)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::Placement;
    use super::super::super::conformance::{TestSpace, real};
    use super::super::super::space_filling::sobol;
    use super::*;
    use crate::space::Genome;

    #[test]
    fn fits_look_at_the_best_and_at_all_the_rest() {
        assert_eq!(spread(3, 8, 0.5), vec![0, 1, 2]);
        let chosen = spread(100, 8, 0.5);
        assert_eq!(chosen, vec![0, 1, 2, 3, 4, 28, 52, 76]);
        assert_eq!(spread(100, 5, 0.4), vec![0, 1, 2, 3, 51]);
    }

    #[test]
    fn a_model_of_a_long_history_knows_bad_places_too() {
        let genes = vec![real("x"), real("y")];
        let mut archive = Archive::new(Arc::new(TestSpace::new(genes.clone())));
        let tied_genes = TiedGenes::new(&genes);
        let mut model = Model::new(&genes, &tied_genes, 1);
        let count = 2 * POINTS as u64;
        for index in 0..count {
            let point = archive.add(Genome(sobol(1, index, 2)), 0);
            archive.place(point, Placement::Asked { index });
            archive.tell(index, Fitness::Scored(index as f64));
            assert!(index < FEWEST as u64 || model.surrogate(&tied_genes, &archive).is_some());
        }
        assert!(model.members.len() <= POINTS, "{}", model.members.len());
        let above = |share: f64| model.members.iter().filter(|place| **place as f64 >= share * count as f64).count();
        let all = model.members.len();
        assert!(above(0.7) > all / 2, "the best ones first: {} of {all}", above(0.7));
        assert!(all - above(0.25) >= 10, "the worst ones too: {} of {all}", all - above(0.25));
    }
}
