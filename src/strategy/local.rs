//! Local search: a model of the surroundings of the best point, inside a box that grows with success and shrinks without it
//! (trust-region Bayesian optimisation, Eriksson et al. 2019). A member of the portfolio.

use std::sync::Arc;

use rand::{Rng, RngExt};

use super::archive::{Fitness, levels};
use super::genetic::standardise;
use super::history::History;
use super::surrogate::{Scales, Surrogate, fit};
use super::{Ask, Content, Landscape, Outcome, Placement, Setup, Strategy, StrategyError, space_filling};
use crate::random;
use crate::space::{GeneKind, Genome};

/// Points that the model is made of at most: the nearest to the centre.
const POINTS: usize = 120;
const FEWEST: usize = 5;
/// Points drawn in the box for one that is proposed.
const DRAWS: usize = 400;
/// Proposals between two fits of the length scales.
const REFIT: u64 = 8;
/// The box's half side at the start, its least and its most.
const START: f64 = 0.2;
const LEAST: f64 = 0.01;
const MOST: f64 = 0.4;
/// Outcomes in a row that beat the centre before the box grows.
const SUCCESSES: usize = 2;
/// Most standard deviations that count as worth.
const CURIOSITY: f64 = 1.0;
/// Draws for one proposal before a space counts as exhausted.
const TRIES: usize = 1_000;

/// The strategy.
pub(super) struct Local {
    seed: u64,
    history: History,
    half_side: f64,
    successes: usize,
    failures: usize,
    best: f64,
    scales: Scales,
    /// Own proposals whose outcome is not known.
    open: Vec<usize>,
    asked: u64,
}

impl Local {
    pub(super) fn new(landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        let scales = Scales::prior(landscape.genes().len());
        let history = History::new(landscape, setup);
        Self {
            seed: setup.seed,
            history,
            half_side: START,
            successes: 0,
            failures: 0,
            best: f64::NEG_INFINITY,
            scales,
            open: Vec::new(),
            asked: 0,
        }
    }

    /// The model of the points around the centre, and the box's half side in every gene.
    fn model(&mut self, centre: &[f64]) -> Option<(Surrogate, Vec<f64>)> {
        let points = self.history.points();
        let mut near: Vec<(usize, f64)> = (0..points.len())
            .filter(|place| points[*place].fitness.rank().is_some())
            .map(|place| (place, square(&points[place].effective, centre)))
            .collect();
        near.sort_by(|a, b| a.1.total_cmp(&b.1));
        near.truncate(POINTS);
        if near.iter().filter(|(place, _)| matches!(points[*place].fitness, Fitness::Scored(_))).count() < FEWEST {
            return None;
        }
        let rank = |place: usize| points[place].fitness.rank().unwrap_or(f64::NEG_INFINITY);
        let mut members: Vec<usize> = near.into_iter().map(|(place, _)| place).collect();
        members.sort_by(|a, b| rank(*b).partial_cmp(&rank(*a)).unwrap_or(std::cmp::Ordering::Equal));
        let values = standardise(&members.iter().map(|place| rank(*place)).collect::<Vec<f64>>());
        let genes = self.history.landscape().genes();
        if self.asked % REFIT == 1 {
            let seen: Vec<&[f64]> = members.iter().map(|place| points[*place].effective.as_slice()).collect();
            self.scales = fit(genes, &Scales::prior(genes.len()), &seen, &values);
        }
        let mut surrogate = Surrogate::new(genes, &self.scales);
        let kept: Vec<f64> = members
            .iter()
            .zip(&values)
            .filter(|(place, _)| surrogate.add(&points[**place].effective))
            .map(|(_, value)| *value)
            .collect();
        surrogate.set_values(&kept);
        for point in
            points.iter().rev().filter(|point| point.fitness == Fitness::Pending && point.index.is_some()).take(64)
        {
            surrogate.imagine(&point.effective);
        }
        Some((surrogate, self.sides(genes.len())))
    }

    /// Longer where the model changes slowly, with the half side as their geometric mean.
    fn sides(&self, genes: usize) -> Vec<f64> {
        let logarithms: Vec<f64> = (0..genes).map(|gene| self.scales.length(gene)).collect();
        let mean = logarithms.iter().sum::<f64>() / genes as f64;
        logarithms.iter().map(|length| self.half_side * (length - mean).clamp(-1.5, 1.5).exp()).collect()
    }

    fn draw(&mut self, rng: &mut impl Rng) -> Option<(Vec<f64>, &'static str, Vec<usize>)> {
        let genes = self.history.landscape().genes().len();
        let centre = self.history.ranked().first().copied();
        if let Some(place) = centre {
            let centre = self.history.points()[place].effective.clone();
            let model = self.model(&centre);
            let beta = CURIOSITY * rng.random::<f64>();
            let sides = model.as_ref().map_or_else(|| vec![self.half_side; genes], |(_, sides)| sides.clone());
            let mut best: Option<(f64, Vec<f64>)> = None;
            for _ in 0..DRAWS {
                let genome = self.in_box(&centre, &sides, rng);
                if !self.history.is_new(&genome) {
                    continue;
                }
                let Some((surrogate, _)) = &model else { return Some((genome, "local", vec![place])) };
                let (mean, deviation) = surrogate.predict(&genome);
                let value = mean + beta * deviation;
                if best.as_ref().is_none_or(|(other, _)| value > *other) {
                    best = Some((value, genome));
                }
            }
            if let Some((_, genome)) = best {
                return Some((genome, "local", vec![place]));
            }
        }
        for _ in 0..TRIES {
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
            genome[place] = match gene.kind {
                GeneKind::Real { .. } => (centre[place] + by).clamp(0.0, 1.0),
                _ => {
                    let levels = levels(&gene.kind).unwrap_or(1);
                    let level = rng.random_range(0..levels);
                    if place == always || rng.random::<f64>() < self.half_side {
                        (level as f64 + 0.5) / levels as f64
                    } else {
                        centre[place]
                    }
                }
            };
        }
        genome
    }

    fn notice(&mut self, places: &[usize], own: bool) {
        let points = self.history.points();
        let best = places.iter().filter_map(|place| points[*place].fitness.rank()).fold(f64::NEG_INFINITY, f64::max);
        let better = best > self.best;
        self.best = self.best.max(best);
        if !own {
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
            self.half_side = (2.0 * self.half_side).min(MOST);
            self.successes = 0;
        } else if self.failures >= patience {
            self.half_side *= 0.6;
            self.failures = 0;
            if self.half_side < LEAST {
                self.half_side = MOST;
            }
        }
    }
}

fn square(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

impl Strategy for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn ask(&mut self) -> Result<Ask, StrategyError> {
        let mut rng = random::stream(self.seed, "local search", self.asked);
        self.asked += 1;
        Ok(match self.draw(&mut rng) {
            Some((genome, origin, parents)) => self.history.propose(genome, origin, &parents, 0),
            None => Ask::Done("search space exhausted".to_owned()),
        })
    }

    fn place(&mut self, placement: Placement) {
        if let Some(point) = self.history.place(placement) {
            self.open.push(point);
        }
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        let places = self.history.tell(outcome)?;
        let own = places.iter().any(|place| self.open.contains(place));
        self.open.retain(|place| !places.contains(place));
        self.notice(&places, own);
        Ok(())
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        let places = self.history.learn(content, outcome)?;
        self.notice(&places, false);
        Ok(())
    }

    fn watch(&mut self, genome: &Genome, placement: Placement) {
        self.history.watch(genome, placement);
    }
}
