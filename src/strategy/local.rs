//! Local search: a model of the surroundings of the best point, inside a box that grows with success and shrinks
//! without it (trust-region Bayesian optimisation, Eriksson et al. 2019); when it has shrunk to nothing, the search
//! moves on to the best point elsewhere. A member of the portfolio.

use std::sync::Arc;

use rand::{Rng, RngExt};

use super::archive::{Fitness, Point};
use super::composite::{self, AllScales, Composite, Contributions, MAX_IMAGINED};
use super::genetic::tied_genes::TiedGenes;
use super::history::History;
use super::{Ask, Content, Landscape, MAX_DRAWS, Outcome, Placement, Setup, Strategy, StrategyError, space_filling};
use crate::random;
use crate::space::Genome;

/// Points that the model is made of at most: the nearest to the centre, and [`FAR_POINTS`] others.
const POINTS: usize = 120;
/// Points of the model that are evenly spread over all others, by their distance, so that it knows where the good
/// surroundings end.
const FAR_POINTS: usize = 48;
/// Scored points below which there is no model.
const FEWEST: usize = 5;
/// Points drawn in the box for one that is proposed.
const DRAWS: usize = 400;
/// Most promising of the drawn points, by a first guess, whose uncertainty is worked out.
const SHORT_LIST: usize = 60;
/// Own proposals between two fits of the length scales: the fewest and the most.
const REFIT: (u64, u64) = (3, 8);
/// Number of known points that adds one proposal between two fits.
const REFIT_GROWTH: u64 = 20;
/// Half side of the box at the start.
const FIRST_SIDE: f64 = 0.2;
/// Half side of the box below which the search moves on.
const LEAST_SIDE: f64 = 0.02;
/// Largest half side of the box.
const MOST_SIDE: f64 = 0.4;
/// Root of the mean squared difference of genes within which points belong to one centre.
const APART: f64 = 0.12;
/// Centres that are left alone at most, before all are open again.
const RETIRED: usize = 4;
/// Outcomes in a row that beat the centre before the box grows.
const SUCCESSES: usize = 2;

/// The strategy.
pub(super) struct Local {
    seed: u64,
    history: History,
    tied_genes: TiedGenes,
    half_side: f64,
    successes: usize,
    failures: usize,
    /// The best score outside of what was searched to the end.
    best: f64,
    /// Centres whose surroundings were searched to the end.
    retired: Vec<Vec<f64>>,
    scales: AllScales,
    /// Own proposals whose outcome is not known.
    open: Vec<usize>,
    asked: u64,
    /// Own proposals at which the length scales are to be fitted again.
    fit_at: u64,
}

impl Local {
    pub(super) fn new(landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        let genes = landscape.genes().len();
        let tied_genes = TiedGenes::new(landscape.genes());
        let history = History::new(landscape, setup);
        let scales = composite::prior(genes, history.parts());
        Self {
            seed: setup.seed,
            history,
            tied_genes,
            half_side: FIRST_SIDE,
            successes: 0,
            failures: 0,
            best: f64::NEG_INFINITY,
            retired: Vec::new(),
            scales,
            open: Vec::new(),
            asked: 0,
            fit_at: 0,
        }
    }

    /// The model of the points around the centre and a few others, and the box's half side in every gene.
    fn model(&mut self, centre: &[f64]) -> Option<(Composite, Vec<f64>)> {
        let points = self.history.points();
        let mut near: Vec<(usize, f64)> = (0..points.len())
            .filter(|place| points[*place].fitness.rank().is_some())
            .map(|place| (place, square(&points[place].effective, centre)))
            .collect();
        near.sort_by(|a, b| a.1.total_cmp(&b.1));
        let near = nearest_and_others(near);
        if near.iter().filter(|(place, _)| matches!(points[*place].fitness, Fitness::Scored(_))).count() < FEWEST {
            return None;
        }
        let rank = |place: usize| points[place].fitness.rank().unwrap_or(f64::NEG_INFINITY);
        let members: Vec<usize> = near.into_iter().map(|(place, _)| place).collect();
        let ranks: Vec<f64> = members.iter().map(|place| rank(*place)).collect();
        let contributions: Vec<Option<&Contributions>> =
            members.iter().map(|place| self.history.contributions(*place)).collect();
        let targets = composite::targets(&ranks, &contributions, self.history.parts());
        let genes = self.history.landscape().genes();
        if self.asked >= self.fit_at {
            self.fit_at = self.asked + (REFIT.0 + points.len() as u64 / REFIT_GROWTH).min(REFIT.1);
            let seen: Vec<Vec<f64>> =
                members.iter().map(|place| self.tied_genes.seen(&points[*place].effective)).collect();
            let seen: Vec<&[f64]> = seen.iter().map(Vec::as_slice).collect();
            self.scales = composite::fit_all(genes, &self.scales, &seen, &targets);
        }
        let mut surrogate = Composite::new(genes, &self.scales);
        for (row, place) in members.iter().enumerate() {
            surrogate.add(&self.tied_genes.seen(&points[*place].effective), &targets, row);
        }
        surrogate.set_targets(&targets);
        let is_placed = |point: &&Point| point.fitness == Fitness::Pending && point.index.is_some();
        for point in points.iter().rev().filter(is_placed).take(MAX_IMAGINED) {
            surrogate.imagine(&self.tied_genes.seen(&point.effective));
        }
        Some((surrogate, self.sides(genes.len())))
    }

    /// The logarithm of a gene's length scale, over the parts.
    fn length(&self, gene: usize) -> f64 {
        self.scales.iter().map(|scales| scales.length(gene)).sum::<f64>() / self.scales.len() as f64
    }

    /// Longer where the model changes slowly, with the half side as their geometric mean.
    fn sides(&self, genes: usize) -> Vec<f64> {
        let logarithms: Vec<f64> = (0..genes).map(|gene| self.length(gene)).collect();
        let mean = logarithms.iter().sum::<f64>() / genes as f64;
        logarithms.iter().map(|length| self.half_side * (length - mean).clamp(-1.5, 1.5).exp()).collect()
    }

    fn draw(&mut self, rng: &mut impl Rng) -> Option<(Vec<f64>, &'static str, Vec<usize>)> {
        let genes = self.history.landscape().genes().len();
        let centre = self.centre();
        if let Some(place) = centre {
            let centre = self.history.points()[place].effective.clone();
            let model = self.model(&centre);
            let sides = model.as_ref().map_or_else(|| vec![self.half_side; genes], |(_, sides)| sides.clone());
            let mut drawn: Vec<(f64, Vec<f64>)> = Vec::with_capacity(DRAWS);
            for _ in 0..DRAWS {
                let genome = self.in_box(&centre, &sides, rng);
                if !self.history.is_new(&genome) {
                    continue;
                }
                let Some((surrogate, _)) = &model else { return Some((genome, "local", vec![place])) };
                drawn.push((surrogate.sketch(&self.tied_genes.seen(&genome)), genome));
            }
            if let Some((surrogate, _)) = &model {
                drawn.sort_by(|a, b| b.0.total_cmp(&a.0));
                drawn.truncate(SHORT_LIST);
                let rated =
                    drawn.into_iter().map(|(_, genome)| (surrogate.promise(&self.tied_genes.seen(&genome)), genome));
                let best = rated.reduce(|best, next| if next.0 > best.0 { next } else { best });
                if let Some((_, genome)) = best {
                    return Some((genome, "local", vec![place]));
                }
            }
        }
        for _ in 0..MAX_DRAWS {
            let genome = space_filling::uniform(rng, genes);
            if self.history.is_new(&genome) {
                return Some((genome, "random", vec![]));
            }
        }
        None
    }

    /// A point of the box that shares some genes with its centre, in the middle of its levels where a gene has any.
    fn in_box(&self, centre: &[f64], sides: &[f64], rng: &mut impl Rng) -> Vec<f64> {
        let genes = self.history.landscape().genes();
        let rate = (1.0 / genes.len() as f64).max(rng.random::<f64>().powi(2)).min(1.0);
        let always = rng.random_range(0..genes.len());
        let mut genome = centre.to_vec();
        for (place, gene) in genes.iter().enumerate() {
            if place != always && rng.random::<f64>() >= rate {
                continue;
            }
            let by = sides[place] * (2.0 * rng.random::<f64>() - 1.0);
            genome[place] = match gene.kind.levels() {
                None => (centre[place] + by).clamp(0.0, 1.0),
                Some(levels) => {
                    let level = rng.random_range(0..levels.count());
                    if place == always || rng.random::<f64>() < self.half_side {
                        levels.middle(level)
                    } else {
                        centre[place]
                    }
                }
            };
        }
        genome
    }

    /// The best point that is not part of what was searched to the end.
    fn centre(&self) -> Option<usize> {
        let points = self.history.points();
        let open = |place: &usize| !self.is_retired(&points[*place].effective);
        let ranked = self.history.ranked();
        ranked.iter().copied().find(open).or_else(|| ranked.first().copied())
    }

    fn is_retired(&self, point: &[f64]) -> bool {
        let near = APART * APART * point.len() as f64;
        self.retired.iter().any(|centre| square(centre, point) < near)
    }

    /// Waits no longer for the outcomes of these points.
    fn close(&mut self, places: &[usize]) {
        self.open.retain(|place| !places.contains(place));
    }

    /// Takes in what is new: whether a point of its own is better than the centre moves the box's sides.
    fn notice(&mut self, places: &[usize], own: bool) {
        let points = self.history.points();
        let news = places.iter().filter(|place| !self.is_retired(&points[**place].effective));
        let best = news.filter_map(|place| points[*place].fitness.rank()).fold(f64::NEG_INFINITY, f64::max);
        let better = best > self.best;
        self.best = self.best.max(best);
        let is_told = places.iter().any(|place| points[*place].fitness != Fitness::Failed);
        if !own || !is_told {
            return;
        }
        if better {
            self.successes += 1;
            self.failures = 0;
        } else {
            self.failures += 1;
            self.successes = 0;
        }
        let patience = (self.history.landscape().genes().len() / 2).clamp(4, 16);
        if self.successes >= SUCCESSES {
            self.half_side = (2.0 * self.half_side).min(MOST_SIDE);
            self.successes = 0;
        } else if self.failures >= patience {
            self.half_side *= 0.6;
            self.failures = 0;
            if self.half_side < LEAST_SIDE {
                self.move_on();
            }
        }
    }

    /// Leaves the surroundings of the centre for those of the best point elsewhere; back to the best of all when there
    /// is none.
    fn move_on(&mut self) {
        self.half_side = FIRST_SIDE;
        let points = self.history.points();
        if let Some(centre) = self.centre() {
            self.retired.push(points[centre].effective.clone());
        }
        let left = self.history.ranked().iter().any(|place| !self.is_retired(&points[*place].effective));
        if !left || self.retired.len() > RETIRED {
            self.retired.clear();
        }
        let rank = |place: usize| self.history.points()[place].fitness.rank();
        self.best = self.centre().and_then(rank).unwrap_or(f64::NEG_INFINITY);
    }
}

/// What the model is made of, of points in the order of their distance.
fn nearest_and_others<T: Copy>(mut points: Vec<T>) -> Vec<T> {
    if points.len() > POINTS {
        let others = points.split_off(POINTS - FAR_POINTS);
        points.extend((0..FAR_POINTS).map(|step| others[step * others.len() / FAR_POINTS]));
    }
    points
}

fn square(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

impl Strategy for Local {
    fn ask(&mut self) -> Result<Ask, StrategyError> {
        let mut rng = random::stream(self.seed, "local search", self.asked);
        self.asked += 1;
        Ok(match self.draw(&mut rng) {
            Some((genome, origin, parents)) => self.history.propose(genome, origin, &parents, 0),
            None => Ask::exhausted(),
        })
    }

    fn place(&mut self, placement: Placement) {
        let Some(point) = self.history.place(placement) else { return };
        // The outcome of a duplicate may be known: nobody tells it again.
        if self.history.points()[point].fitness == Fitness::Pending {
            self.open.push(point);
        }
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        let places = self.history.tell(outcome)?;
        let own = places.iter().any(|place| self.open.contains(place));
        self.close(&places);
        self.notice(&places, own);
        Ok(())
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        let places = self.history.learn(content, outcome)?;
        // Nobody tells what was learnt: a proposal that was another's too is not judged by it.
        self.close(&places);
        self.notice(&places, false);
        Ok(())
    }

    fn watch(&mut self, genome: &Genome, placement: Placement) {
        self.history.watch(genome, placement);
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{Answer, TestSpace, outcome, setup};
    use super::*;

    #[test]
    fn a_model_looks_at_the_nearest_points_and_at_others_up_to_the_far_end() {
        let few: Vec<usize> = (0..POINTS).collect();
        assert_eq!(nearest_and_others(few.clone()), few);
        let chosen = nearest_and_others((0..1_000).collect());
        let nearest = POINTS - FAR_POINTS;
        assert!(chosen.len() == POINTS && chosen.is_sorted_by(|a, b| a < b), "{chosen:?}");
        assert_eq!(chosen[..=nearest], (0..=nearest).collect::<Vec<usize>>());
        assert!(chosen[POINTS - 1] > 970, "{chosen:?}");
    }

    #[test]
    fn nothing_is_waited_for_that_nobody_will_tell() {
        let setup = Setup { seeds: vec![], ..setup(TestSpace::reals(2), 8) };
        let mut search = Local::new(setup.landscape.clone().unwrap(), &setup);
        let mut propose = |placement| {
            assert!(matches!(search.ask().unwrap(), Ask::Proposal(_)));
            search.place(placement);
            search.open.len()
        };
        assert_eq!(propose(Placement::Asked { index: 0 }), 1);
        // Another's evaluation, which is not over yet.
        assert_eq!(propose(Placement::Duplicate { of: 7 }), 2);
        search.tell(&outcome(0, Answer::Score(0.5))).unwrap();
        search.learn(&Content::Base, &outcome(7, Answer::Score(0.25))).unwrap();
        assert!(search.open.is_empty(), "{:?}", search.open);
        for index in [0, 7] {
            assert!(matches!(search.ask().unwrap(), Ask::Proposal(_)));
            search.place(Placement::Duplicate { of: index });
            assert!(search.open.is_empty(), "{:?}", search.open);
        }
    }
}
