//! The tree-structured Parzen estimator (Bergstra et al. 2011): where good points lie densely and others do not.
//!
//! Every gene is drawn by itself from a mixture around the values of the good points; of some draws the one with the
//! largest ratio of the two densities is taken. A gene learns only from points in which it has an effect.

use std::collections::VecDeque;
use std::sync::Arc;

use rand::{Rng, RngExt};
use rand_distr::StandardNormal;

use super::history::History;
use super::settings::Settings;
use super::{
    Ask, Content, Landscape, MAX_DRAWS, Outcome, Placement, Setup, Strategy, StrategyError, normal, space_filling,
};
use crate::random;
use crate::space::{GeneKind, Genome, Levels};

/// Draws for one proposal that come from the model; further ones are uniform.
const MODEL_DRAWS: usize = 50;
/// Known points in a row after which every gene is taken from half as many draws. The best of many draws is nearly
/// always the same level of a gene that has few.
const SAME_DRAWS: usize = 5;
/// Most good points.
const GOOD_LIMIT: usize = 25;
/// Latest points that count in full; older ones fade.
const FRESH: usize = 25;
/// Most points of the density of the others, the latest.
const OTHERS: usize = 320;
/// Draws of a truncated normal before it is cut.
const TRUNCATED_TRIES: usize = 64;

/// `[strategy]` of kind `tpe`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parameters {
    /// Points before the model.
    initial: usize,
    /// Draws a gene.
    draws: usize,
    /// Share of the points that is good.
    good: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { initial: 10, draws: 24, good: 0.1 }
    }
}

impl Parameters {
    pub(super) fn read(settings: &mut Settings<'_>) -> Result<Self, StrategyError> {
        let default = Self::default();
        Ok(Self {
            initial: settings.whole("initial", default.initial, 1..=10_000)?,
            draws: settings.whole("draws", default.draws, 1..=10_000)?,
            good: settings.number("good", default.good, 0.001..=1.0)?,
        })
    }
}

/// The strategy.
pub(super) struct Tpe {
    parameters: Parameters,
    seed: u64,
    history: History,
    /// Points before the model, still to be proposed.
    design: VecDeque<Vec<f64>>,
    asked: u64,
}

impl Tpe {
    pub(super) fn new(parameters: Parameters, landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        let genes = landscape.genes();
        let init: Vec<f64> = genes.iter().map(|gene| gene.init.clamp(0.0, 1.0)).collect();
        let sobol = (0..parameters.initial as u64).map(|index| space_filling::sobol(setup.seed, index, genes.len()));
        let points = [init].into_iter().chain(sobol).take(parameters.initial);
        let design = setup.model_stock.iter().map(|genome| genome.0.clone()).chain(points).collect();
        Self { parameters, seed: setup.seed, history: History::new(landscape, setup), design, asked: 0 }
    }

    /// A search without points of its own to start with: it learns from others.
    pub(super) fn follower(landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        let mut tpe = Self::new(Parameters::default(), landscape, setup);
        tpe.design.clear();
        tpe
    }

    /// Draws a gene, after so many attempts that gave known points.
    fn draws(&self, attempt: usize) -> usize {
        let halvings = u32::try_from(attempt / SAME_DRAWS).unwrap_or(u32::MAX);
        self.parameters.draws.checked_shr(halvings).unwrap_or(0).max(1)
    }

    fn draw(&mut self, rng: &mut impl Rng) -> Option<(Vec<f64>, &'static str)> {
        while let Some(genome) = self.design.pop_front() {
            if self.history.is_new(&genome) {
                return Some((genome, "initial"));
            }
        }
        let genes = self.history.landscape().genes().len();
        let model = Model::new(&self.history, self.parameters.good);
        for attempt in 0..MAX_DRAWS {
            let drawn = match &model {
                Some(model) if attempt < MODEL_DRAWS => (model.draw(self.draws(attempt), rng), "tpe"),
                _ => (space_filling::uniform(rng, genes), "random"),
            };
            if self.history.is_new(&drawn.0) {
                return Some(drawn);
            }
        }
        None
    }
}

/// The two densities of every gene.
struct Model {
    genes: Vec<(Density, Density)>,
}

impl Model {
    /// `None` while there are no two points to tell apart.
    fn new(history: &History, share: f64) -> Option<Self> {
        let ranked = history.ranked();
        if ranked.len() < 2 {
            return None;
        }
        let good = ((share * ranked.len() as f64).ceil() as usize).clamp(1, GOOD_LIMIT);
        let (good, others) = ranked.split_at(good.min(ranked.len() - 1));
        let (good, others) = (in_order(good), in_order(others));
        let points = history.points();
        let landscape = history.landscape();
        let active = |places: &[usize]| -> Vec<Vec<bool>> {
            places.iter().map(|place| landscape.active(&points[*place].genome)).collect()
        };
        let (good_active, others_active) = (active(&good), active(&others));
        let values = |gene: usize, places: &[usize], active: &[Vec<bool>]| -> Vec<f64> {
            let used = places.iter().zip(active).filter(|(_, active)| active.get(gene).copied().unwrap_or(true));
            used.map(|(place, _)| points[*place].effective[gene]).collect()
        };
        let density = |(gene, kind): (usize, &GeneKind)| {
            let make = |values: Vec<f64>| match (kind, kind.levels()) {
                (GeneKind::Categorical { .. }, Some(levels)) => Density::shares(&values, levels),
                _ => Density::mixture(&values),
            };
            (make(values(gene, &good, &good_active)), make(values(gene, &others, &others_active)))
        };
        Some(Self { genes: landscape.genes().iter().map(|gene| &gene.kind).enumerate().map(density).collect() })
    }

    fn draw(&self, draws: usize, rng: &mut impl Rng) -> Vec<f64> {
        let gene = |(good, others): &(Density, Density)| {
            let rated = (0..draws).map(|_| {
                let value = good.draw(rng);
                (value, good.log(value) - others.log(value))
            });
            let best = rated.fold((0.5, f64::NEG_INFINITY), |best, next| if next.1 > best.1 { next } else { best });
            best.0
        };
        self.genes.iter().map(gene).collect()
    }
}

/// Places in order of age, at most the latest few hundred.
fn in_order(places: &[usize]) -> Vec<usize> {
    let mut places = places.to_vec();
    places.sort_unstable();
    places.split_off(places.len().saturating_sub(OTHERS))
}

/// A density over the numbers that a gene can have.
#[derive(Clone, Debug)]
enum Density {
    /// Normal distributions cut to `[0, 1]`: weight, mean, deviation, and its share of the density at its mean.
    Mixture(Vec<Component>),
    /// The share of each level.
    Shares(Vec<f64>),
}

#[derive(Clone, Copy, Debug)]
struct Component {
    weight: f64,
    mean: f64,
    deviation: f64,
    height: f64,
}

impl Density {
    /// Around each value, as wide as the gap to its neighbours; and a wide one that keeps everything possible.
    fn mixture(values: &[f64]) -> Self {
        let n = values.len();
        let mut weights = fading(n);
        weights.push(1.0);
        let total: f64 = weights.iter().sum();
        let mut order: Vec<usize> = (0..=n).collect();
        let mean = |place: usize| values.get(place).copied().unwrap_or(0.5);
        order.sort_by(|a, b| mean(*a).total_cmp(&mean(*b)));
        let narrowest = 1.0 / (n as f64 + 2.0).min(100.0);
        let mut components = Vec::with_capacity(n + 1);
        for (rank, &place) in order.iter().enumerate() {
            let here = mean(place);
            let left = if rank == 0 { here } else { here - mean(order[rank - 1]) };
            let right = if rank == n { 1.0 - here } else { mean(order[rank + 1]) - here };
            // The outermost values look inwards only.
            let gap = match rank {
                0 if n > 0 => right,
                rank if rank == n && n > 0 => left,
                _ => left.max(right),
            };
            let deviation = if place == n { 1.0 } else { gap.clamp(narrowest, 1.0) };
            let weight = weights[place] / total;
            let inside = normal::mass((0.0 - here) / deviation, (1.0 - here) / deviation);
            let height = weight / (deviation * inside * std::f64::consts::TAU.sqrt());
            components.push(Component { weight, mean: here, deviation, height });
        }
        Self::Mixture(components)
    }

    fn shares(values: &[f64], levels: Levels) -> Self {
        let mut shares = vec![1.0; levels.count()];
        let weights = fading(values.len());
        for (value, weight) in values.iter().zip(weights) {
            shares[levels.of(*value)] += weight * levels.count() as f64;
        }
        let total: f64 = shares.iter().sum();
        Self::Shares(shares.into_iter().map(|share| share / total).collect())
    }

    fn draw(&self, rng: &mut impl Rng) -> f64 {
        match self {
            Self::Mixture(components) => {
                let chosen = pick(components.iter().map(|component| component.weight), rng);
                let Component { mean, deviation, .. } = components[chosen];
                for _ in 0..TRUNCATED_TRIES {
                    let value = mean + deviation * rng.sample::<f64, _>(StandardNormal);
                    if (0.0..=1.0).contains(&value) {
                        return value;
                    }
                }
                mean.clamp(0.0, 1.0)
            }
            Self::Shares(shares) => Levels::new(shares.len()).middle(pick(shares.iter().copied(), rng)),
        }
    }

    /// The logarithm of the density.
    fn log(&self, value: f64) -> f64 {
        match self {
            Self::Mixture(components) => {
                let term = |component: &Component| {
                    let z = (value - component.mean) / component.deviation;
                    component.height * (-0.5 * z * z).exp()
                };
                components.iter().map(term).sum::<f64>().max(f64::MIN_POSITIVE).ln()
            }
            Self::Shares(shares) => shares[Levels::new(shares.len()).of(value)].ln(),
        }
    }
}

/// Weights in order of age: the latest count in full.
fn fading(n: usize) -> Vec<f64> {
    let old = n.saturating_sub(FRESH);
    let ramp = |place: usize| (1.0 + (n as f64 - 1.0) * place as f64 / (old as f64 - 1.0).max(1.0)) / n as f64;
    (0..n).map(|place| if place < old { ramp(place).min(1.0) } else { 1.0 }).collect()
}

fn pick(weights: impl Iterator<Item = f64>, rng: &mut impl Rng) -> usize {
    let mut left: f64 = rng.random();
    let mut last = 0;
    for (place, weight) in weights.enumerate() {
        last = place;
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    last
}

impl Strategy for Tpe {
    fn ask(&mut self) -> Result<Ask, StrategyError> {
        let mut rng = random::stream(self.seed, "tpe", self.asked);
        self.asked += 1;
        Ok(match self.draw(&mut rng) {
            Some((genome, origin)) => self.history.propose(genome, origin, &[], 0),
            None => Ask::exhausted(),
        })
    }

    fn place(&mut self, placement: Placement) {
        self.history.place(placement);
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        self.history.tell(outcome).map(|_| ())
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        self.history.learn(content, outcome).map(|_| ())
    }

    fn watch(&mut self, genome: &Genome, placement: Placement) {
        self.history.watch(genome, placement);
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{Answer, TestSpace, drive, integer, setup};
    use super::*;

    /// Twelve genes of five levels: the best of 24 draws is the same level each time, but there are many more points.
    #[test]
    fn genes_of_few_levels_are_no_reason_to_search_at_random() {
        let genes = (0..12).map(|gene| integer(&format!("x{gene}"), 0, 4)).collect();
        let setup = Setup { seeds: vec![], model_stock: None, ..setup(TestSpace::new(genes), 8) };
        let mut tpe = Tpe::new(Parameters::default(), setup.landscape.clone().unwrap(), &setup);
        let oracle = |_: u64, content: &Content| match content {
            Content::Genome(genome) => {
                let distance = |(gene, value): (usize, &f64)| (value - 0.1 - 0.2 * (gene % 5) as f64).abs();
                Answer::Score(-genome.0.iter().enumerate().map(distance).sum::<f64>())
            }
            _ => Answer::Infeasible,
        };
        let rows = drive(&mut tpe, &oracle, 2, 200).unwrap();
        let at_random = rows.iter().filter(|row| row.proposal.origin == "random").count();
        assert!(rows.len() == 200 && at_random < 10, "{at_random} of {}", rows.len());
    }

    #[test]
    fn densities_integrate_to_one_and_peak_where_the_points_are() {
        let density = Density::mixture(&[0.2, 0.22, 0.25, 0.9]);
        let steps = 10_000;
        let at = |step: usize| (step as f64 + 0.5) / f64::from(steps);
        let mass: f64 = (0..steps as usize).map(|step| density.log(at(step)).exp()).sum::<f64>() / f64::from(steps);
        assert!((mass - 1.0).abs() < 1e-3, "{mass}");
        assert!(density.log(0.22) > density.log(0.55));
        let mut rng = random::stream(7, "test", 0);
        let near = (0..2_000).filter(|_| density.draw(&mut rng) < 0.4).count();
        assert!(near > 1_000, "{near}");
    }

    #[test]
    fn shares_follow_the_points_and_leave_nothing_out() {
        let Density::Shares(shares) = Density::shares(&[0.1, 0.1, 0.9], Levels::new(3)) else { panic!("not shares") };
        assert!(shares[0] > shares[2] && shares[2] > shares[1] && shares[1] > 0.0);
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn old_points_fade() {
        let weights = fading(60);
        assert!(weights[0] < 0.1 && weights[59] == 1.0 && weights.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(fading(3), vec![1.0; 3]);
    }
}
