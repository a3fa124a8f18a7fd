//! The model of the history that ranks children before any of them is paid for.

use std::cmp::Ordering;
use std::collections::HashSet;

use super::super::archive::{Fitness, Point};
use super::super::surrogate::{Scales, Surrogate, fit};
use super::population;
use super::ties::Ties;
use crate::space::Gene;

/// Points that the model is made of at most.
const POINTS: usize = 320;
/// Pending points that are imagined at most, the latest.
const PENDING: usize = 64;
/// Points that stay, the best ones, when the model would have more.
const KEPT: usize = 224;
/// Points that its length scales are fitted on at most.
const FIT_POINTS: usize = 128;
/// Scored points below which there is no model.
const FEWEST: usize = 5;
/// How far below the median scores count in full, in distances from the median to the best.
const DEPTH: f64 = 3.0;
/// Growth of the history between two fits of the length scales.
const GROWTH: f64 = 1.1;

/// The model, kept up to date between proposals.
pub(super) struct Model {
    /// The genes, and where genes are tied, the means of the ties.
    features: Vec<Gene>,
    scales: Scales,
    /// Points known at the last fit of the scales.
    fitted_on: usize,
    /// Points of the archive that the model has seen.
    seen: HashSet<usize>,
    /// Places in the archive of the points that the surrogate is made of, in its order.
    members: Vec<usize>,
    surrogate: Surrogate,
}

/// What the model sees of a point.
fn features(ties: &Ties, point: &[f64]) -> Vec<f64> {
    if !ties.bind() {
        return point.to_vec();
    }
    point.iter().copied().chain(ties.means(point)).collect()
}

impl Model {
    pub(super) fn new(genes: &[Gene], ties: &Ties) -> Self {
        let mut features = genes.to_vec();
        if ties.bind() {
            let first = |tie: usize| ties.of().iter().position(|other| *other == tie);
            features.extend((0..ties.count()).filter_map(first).map(|gene| genes[gene].clone()));
        }
        let scales = Scales::prior(features.len());
        let surrogate = Surrogate::new(&features, &scales);
        Self { features, scales, fitted_on: 0, seen: HashSet::new(), members: Vec::new(), surrogate }
    }

    /// The model of everything known, with what is pending imagined; `None` while too little is known.
    pub(super) fn surrogate(&mut self, ties: &Ties, points: &[Point]) -> Option<Surrogate> {
        let known = |place: &usize| points[*place].fitness.rank().is_some();
        let news: Vec<usize> = (0..points.len()).filter(known).filter(|place| !self.seen.contains(place)).collect();
        self.seen.extend(&news);
        for place in news {
            self.add(place, ties, points);
        }
        let scored = self.members.iter().filter(|place| matches!(points[**place].fitness, Fitness::Scored(_))).count();
        if scored < FEWEST {
            return None;
        }
        let too_many = self.members.len() > POINTS;
        let due = self.seen.len() as f64 >= self.fitted_on as f64 * GROWTH + 1.0;
        if too_many || due {
            self.rebuild(due, ties, points);
        }
        self.surrogate.set_values(&self.values(points));
        let mut surrogate = self.surrogate.clone();
        let mut imagined = HashSet::new();
        for point in points.iter().rev().filter(|point| point.fitness == Fitness::Pending) {
            // Candidates that are the same share their index; one of them will do.
            if imagined.len() < PENDING && point.index.is_some_and(|index| imagined.insert(index)) {
                surrogate.imagine(&features(ties, &point.effective));
            }
        }
        Some(surrogate)
    }

    fn add(&mut self, place: usize, ties: &Ties, points: &[Point]) {
        if self.surrogate.add(&features(ties, &points[place].effective)) {
            self.members.push(place);
        }
    }

    /// Keeps the best points, fits the scales if that is due, and makes the surrogate anew.
    fn rebuild(&mut self, fit_scales: bool, ties: &Ties, points: &[Point]) {
        let limit = if self.members.len() > POINTS { KEPT } else { POINTS };
        let members = population::best(points, self.members.iter().copied(), limit);
        if fit_scales {
            let chosen: Vec<usize> = spread(members.len(), FIT_POINTS).into_iter().map(|at| members[at]).collect();
            let ranks: Vec<f64> = chosen.iter().filter_map(|place| points[*place].fitness.rank()).collect();
            let seen: Vec<Vec<f64>> = chosen.iter().map(|place| features(ties, &points[*place].effective)).collect();
            let seen: Vec<&[f64]> = seen.iter().map(Vec::as_slice).collect();
            self.scales = fit(&self.features, &self.scales, &seen, &standardise(&ranks));
            self.fitted_on = self.seen.len();
        }
        self.surrogate = Surrogate::new(&self.features, &self.scales);
        self.members.clear();
        for place in members {
            self.add(place, ties, points);
        }
    }

    /// The members' standardised values, in their order.
    fn values(&self, points: &[Point]) -> Vec<f64> {
        let mut order: Vec<(usize, f64)> =
            self.members.iter().filter_map(|place| points[*place].fitness.rank()).enumerate().collect();
        order.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal));
        let sorted = standardise(&order.iter().map(|(_, rank)| *rank).collect::<Vec<f64>>());
        let mut values = vec![0.0; order.len()];
        for ((at, _), value) in order.iter().zip(sorted) {
            values[*at] = value;
        }
        values
    }
}

/// A model with a taste for the unknown.
pub(super) struct Ranked<'a> {
    pub(super) surrogate: &'a Surrogate,
    pub(super) ties: &'a Ties,
    /// Standard deviations that count as worth.
    pub(super) beta: f64,
}

impl Ranked<'_> {
    /// The expected value.
    pub(super) fn mean(&self, point: &[f64]) -> f64 {
        self.surrogate.mean(&features(self.ties, point))
    }

    /// The upper confidence bound.
    pub(super) fn rate(&self, point: &[f64]) -> f64 {
        let (mean, deviation) = self.surrogate.predict(&features(self.ties, point));
        mean + self.beta * deviation
    }
}

/// The first half of `limit` places of `0..n`, and the rest evenly spread.
fn spread(n: usize, limit: usize) -> Vec<usize> {
    if n <= limit {
        return (0..n).collect();
    }
    let first = limit / 2;
    let rest = limit - first;
    (0..first).chain((0..rest).map(|step| first + step * (n - first) / rest)).collect()
}

/// Scores, best first, to mean 0 and variance 1. How bad the bad half is tells little about where the best is, so scores far
/// below the median are drawn up; infeasible points count as the worst score.
pub(in crate::strategy) fn standardise(scores: &[f64]) -> Vec<f64> {
    let (Some(best), median) = (scores.first().copied(), scores[scores.len() / 2]) else { return Vec::new() };
    let worst = scores.iter().copied().filter(|score| score.is_finite()).fold(best, f64::min);
    let median = median.max(worst);
    let floor = (median - DEPTH * (best - median)).max(worst);
    let cut: Vec<f64> = scores.iter().map(|score| score.max(floor)).collect();
    let mean = cut.iter().sum::<f64>() / cut.len() as f64;
    let variance = cut.iter().map(|score| (score - mean) * (score - mean)).sum::<f64>() / cut.len() as f64;
    if variance.is_finite() && variance > 0.0 {
        return cut.iter().map(|score| (score - mean) / variance.sqrt()).collect();
    }
    // All equal, or too large to square: ranks.
    let middle = (scores.len() as f64 - 1.0) / 2.0;
    let rank = |place: usize| if scores[place] == best { 0 } else { place };
    if cut.iter().all(|score| *score == best) {
        return vec![0.0; scores.len()];
    }
    (0..scores.len()).map(|place| (middle - rank(place) as f64) / middle.max(1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_standardised_whatever_their_size() {
        let check = |scores: &[f64]| {
            let values = standardise(scores);
            assert!(values.iter().all(|value| value.is_finite()), "{values:?}");
            assert!(values.windows(2).all(|pair| pair[0] >= pair[1]), "{values:?}");
            values
        };
        let plain = check(&[0.9, 0.8, 0.7, 0.6]);
        assert!((plain.iter().sum::<f64>()).abs() < 1e-12);
        let infeasible = check(&[0.9, 0.8, f64::NEG_INFINITY]);
        assert_eq!(infeasible[1], infeasible[2]);
        let outlier = check(&[0.9, 0.8, 0.7, -1e9]);
        assert!(outlier[0] - outlier[1] > 0.1, "one bad score leaves the good ones apart: {outlier:?}");
        assert_eq!(check(&[0.5; 4]), vec![0.0; 4]);
        let huge = check(&[1e300, 0.0, -1e300]);
        assert!(huge[0] > huge[2]);
        check(&[f64::MAX, -f64::MAX, f64::NEG_INFINITY]);
    }

    #[test]
    fn fits_look_at_the_best_and_at_all_the_rest() {
        assert_eq!(spread(3, 8), vec![0, 1, 2]);
        let chosen = spread(100, 8);
        assert_eq!(chosen, vec![0, 1, 2, 3, 4, 28, 52, 76]);
    }
}
