//! Covariance matrix adaptation (Hansen 2016, The CMA evolution strategy: a tutorial), asynchronous.
//!
//! Samples come from the latest distribution; the distribution is updated whenever a population of outcomes has come in, so
//! nothing waits for a generation to end. The square root of the covariance is its Cholesky factor (Krause, Arbones and Igel
//! 2016); bad samples count against their directions (active CMA-ES). Restarts double the population (Auger and Hansen 2005).

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

use rand::{Rng, RngExt};
use rand_distr::StandardNormal;

use super::history::History;
use super::linear_algebra::{Cholesky, dot};
use super::settings::Settings;
use super::{Ask, Content, Landscape, Outcome, Placement, Setup, Strategy, StrategyError, space_filling};
use crate::random;
use crate::space::Genome;

/// Draws for one proposal before a space counts as exhausted; the last ones are uniform.
const TRIES: usize = 1_000;
const GAUSSIAN_TRIES: usize = 100;
/// Largest standard deviation of a gene below which a search has converged.
const TINY: f64 = 2e-3;
/// Bounds of the first step of a search that starts around the best points of others.
const FOLLOWING_STEP: (f64, f64) = (0.02, 0.06);
/// Bounds of the step size.
const STEP_BOUNDS: (f64, f64) = (1e-6, 1.0);

/// `[strategy]` of kind `cma-es`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parameters {
    population: Option<usize>,
    step: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { population: None, step: 1.0 / 6.0 }
    }
}

impl Parameters {
    pub(super) fn read(settings: &mut Settings<'_>) -> Result<Self, StrategyError> {
        let population = settings.whole("population", 0, 0..=10_000)?;
        let population = (population > 0).then_some(population.max(4));
        Ok(Self { population, step: settings.number("step", 1.0 / 6.0, 0.001..=1.0)? })
    }
}

/// What is sampled from: mean, step size and covariance, with the paths that adapt them.
struct Distribution {
    mean: Vec<f64>,
    step: f64,
    /// Lower triangle.
    covariance: Vec<Vec<f64>>,
    factor: Cholesky,
    covariance_path: Vec<f64>,
    step_path: Vec<f64>,
    population: usize,
    updates: u32,
}

impl Distribution {
    fn new(mean: Vec<f64>, step: f64, population: usize) -> Self {
        let genes = mean.len();
        let (covariance, factor) = identity(genes);
        let (covariance_path, step_path) = (vec![0.0; genes], vec![0.0; genes]);
        Self { mean, step, covariance, factor, covariance_path, step_path, population, updates: 0 }
    }

    fn sample(&self, rng: &mut impl Rng) -> Vec<f64> {
        let normal: Vec<f64> = self.mean.iter().map(|_| rng.sample(StandardNormal)).collect();
        let direction = self.factor.multiply(&normal);
        self.mean.iter().zip(direction).map(|(mean, direction)| reflect(mean + self.step * direction)).collect()
    }

    /// Largest standard deviation of a gene.
    fn spread(&self) -> f64 {
        let widest = self.covariance.iter().filter_map(|row| row.last()).fold(0.0, |a: f64, b| a.max(*b));
        self.step * widest.sqrt()
    }

    /// Learns from a population, best first.
    fn update(&mut self, ranked: &[Sample<'_>]) {
        let genes = self.mean.len() as f64;
        let rates = Rates::new(genes, ranked.len());
        let steps: Vec<Vec<f64>> = ranked.iter().map(|sample| self.step_to(sample)).collect();
        let move_by = mean_step(&rates, steps.iter());
        self.mean.iter_mut().zip(&move_by).for_each(|(mean, by)| *mean = (*mean + self.step * by).clamp(0.0, 1.0));

        self.updates += 1;
        // Only its own samples tell whether the steps have the right size.
        let own: Vec<&Vec<f64>> =
            ranked.iter().zip(&steps).filter(|(sample, _)| !sample.foreign).map(|(_, step)| step).collect();
        let own_rates = Rates::new(genes, own.len());
        let white = self.factor.forward(&mean_step(&own_rates, own.into_iter()));
        let gain = (own_rates.step * (2.0 - own_rates.step) * own_rates.effective).sqrt();
        self.step_path.iter_mut().zip(&white).for_each(|(path, by)| *path = (1.0 - own_rates.step) * *path + gain * by);
        let length = dot(&self.step_path, &self.step_path).sqrt();
        let expected = genes.sqrt() * (1.0 - 1.0 / (4.0 * genes) + 1.0 / (21.0 * genes * genes));
        let faded = 1.0 - (1.0 - own_rates.step).powf(2.0 * f64::from(self.updates));
        let steady = length / faded.sqrt() < (1.4 + 2.0 / (genes + 1.0)) * expected;
        let gain = if steady { (rates.path * (2.0 - rates.path) * rates.effective).sqrt() } else { 0.0 };
        self.covariance_path
            .iter_mut()
            .zip(&move_by)
            .for_each(|(path, by)| *path = (1.0 - rates.path) * *path + gain * by);

        let lost = if steady { 0.0 } else { rates.path * (2.0 - rates.path) };
        self.update_covariance(&rates, lost, &steps);
        self.step = (self.step * (own_rates.step / own_rates.damping * (length / expected - 1.0)).min(1.0).exp())
            .clamp(STEP_BOUNDS.0, STEP_BOUNDS.1);
        let mut factor = Cholesky::default();
        if self.covariance.iter().all(|row| factor.push(row)) {
            self.factor = factor;
        } else {
            (self.covariance, self.factor) = identity(self.mean.len());
        }
    }

    /// The step from the mean to a sample, in step sizes. One that was not drawn from this distribution counts as no longer
    /// than those that are (Hansen 2011, Injecting external solutions into CMA-ES).
    fn step_to(&self, sample: &Sample<'_>) -> Vec<f64> {
        let step = sample.point.iter().zip(&self.mean).map(|(x, mean)| (x - mean) / self.step);
        let mut step: Vec<f64> = step.collect();
        if sample.foreign {
            let genes = step.len() as f64;
            let white = self.factor.forward(&step);
            let length = dot(&white, &white).sqrt();
            let most = genes.sqrt() + 2.0 * genes / (genes + 2.0);
            let scale = (most / length.max(1e-300)).min(1.0);
            step.iter_mut().for_each(|value| *value *= scale);
        }
        step
    }

    /// Towards the good steps and the path, away from the bad steps.
    fn update_covariance(&mut self, rates: &Rates, lost: f64, steps: &[Vec<f64>]) {
        let genes = self.mean.len() as f64;
        let weights: Vec<f64> = rates
            .weights
            .iter()
            .zip(steps)
            .map(|(weight, step)| {
                // A bad step counts by its direction only, so that a long one cannot turn the matrix indefinite.
                let white = self.factor.forward(step);
                let square = dot(&white, &white);
                if *weight < 0.0 { weight * genes / square.max(1e-300) } else { *weight }
            })
            .collect();
        let sum: f64 = rates.weights.iter().sum();
        let keep = 1.0 - rates.one - rates.many * sum + rates.one * lost;
        let path = &self.covariance_path;
        for (i, row) in self.covariance.iter_mut().enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                let many: f64 = weights.iter().zip(steps).map(|(weight, step)| weight * step[i] * step[j]).sum();
                *value = keep * *value + rates.one * path[i] * path[j] + rates.many * many;
            }
        }
    }
}

/// The weighted mean of the good steps, best first.
fn mean_step<'a>(rates: &Rates, steps: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let mut mean = Vec::new();
    for (weight, step) in rates.weights.iter().zip(steps).take_while(|(weight, _)| **weight > 0.0) {
        mean.resize(step.len(), 0.0);
        mean.iter_mut().zip(step).for_each(|(sum, value)| *sum += weight * value);
    }
    mean
}

/// One member of a population.
#[derive(Clone, Copy, Debug)]
struct Sample<'a> {
    point: &'a [f64],
    /// Not drawn from the distribution.
    foreign: bool,
}

/// Weights and learning rates of an update (Hansen 2016, table 1).
struct Rates {
    /// Best first; the worse half's are negative (active CMA-ES, Jastrebski and Arnold 2006).
    weights: Vec<f64>,
    /// Variance-effective number of good members.
    effective: f64,
    step: f64,
    damping: f64,
    path: f64,
    /// Of the path, and of the population.
    one: f64,
    many: f64,
}

impl Rates {
    fn new(genes: f64, population: usize) -> Self {
        let raw = |rank: usize| ((population as f64 + 1.0) / 2.0).ln() - (rank as f64 + 1.0).ln();
        let good = (population / 2).max(1);
        let sums = |ranks: std::ops::Range<usize>| {
            ranks.map(raw).fold((0.0, 0.0), |(sum, squares), weight| (sum + weight, squares + weight * weight))
        };
        let (sum, squares) = sums(0..good);
        let (bad_sum, bad_squares) = sums(good..population);
        let effective = sum * sum / squares;
        let step = (effective + 2.0) / (genes + effective + 5.0);
        let damping = 1.0 + 2.0 * (((effective - 1.0) / (genes + 1.0)).max(0.0).sqrt() - 1.0).max(0.0) + step;
        let path = (4.0 + effective / genes) / (genes + 4.0 + 2.0 * effective / genes);
        let one = 2.0 / ((genes + 1.3).powi(2) + effective);
        let many =
            (1.0 - one).min(2.0 * (effective - 2.0 + 1.0 / effective).max(0.0) / ((genes + 2.0).powi(2) + effective));
        // The bad half weighs as much as keeps the matrix positive definite.
        let mut bad = 0.0;
        if many > 0.0 && bad_sum < 0.0 {
            let bad_effective = bad_sum * bad_sum / bad_squares;
            let limits =
                [1.0 + one / many, 1.0 + 2.0 * bad_effective / (effective + 2.0), (1.0 - one - many) / (genes * many)];
            bad = limits.into_iter().fold(f64::INFINITY, f64::min).max(0.0) / -bad_sum;
        }
        let weight = |rank: usize| if rank < good { raw(rank) / sum } else { raw(rank) * bad };
        Self { weights: (0..population).map(weight).collect(), effective, step, damping, path, one, many }
    }
}

fn identity(genes: usize) -> (Vec<Vec<f64>>, Cholesky) {
    let row = |place: usize| (0..=place).map(|other| f64::from(u8::from(other == place))).collect();
    let covariance: Vec<Vec<f64>> = (0..genes).map(row).collect();
    let mut factor = Cholesky::default();
    for row in &covariance {
        factor.push(row);
    }
    (covariance, factor)
}

fn reflect(value: f64) -> f64 {
    // The sawtooth of period 2 that is the identity on [0, 1].
    let folded = value.rem_euclid(2.0);
    if folded > 1.0 { 2.0 - folded } else { folded }
}

/// The strategy.
pub(super) struct CmaEs {
    parameters: Parameters,
    seed: u64,
    history: History,
    distribution: Distribution,
    /// Points whose outcomes came in since the last update.
    fresh: Vec<usize>,
    /// First point of the archive since the last restart.
    since: usize,
    best: f64,
    /// Updates since the best improved.
    stagnant: u32,
    restarts: u32,
    asked: u64,
    /// Points of its own proposing.
    own: HashSet<usize>,
    /// Whether the search is one of several: it starts around the best points of all.
    follower: bool,
    /// Whether it is still to start so.
    follows: bool,
    /// Others' points whose outcomes came in since the last update.
    foreign: Vec<usize>,
}

impl CmaEs {
    pub(super) fn new(parameters: Parameters, landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        let init: Vec<f64> = landscape.genes().iter().map(|gene| gene.init.clamp(0.0, 1.0)).collect();
        let default = 4 + (3.0 * (init.len() as f64).ln()) as usize;
        let population = parameters.population.unwrap_or(default);
        let history = History::new(landscape, setup);
        Self {
            distribution: Distribution::new(init, parameters.step, population),
            parameters,
            seed: setup.seed,
            since: history.points().len(),
            history,
            fresh: Vec::new(),
            best: f64::NEG_INFINITY,
            stagnant: 0,
            restarts: 0,
            asked: 0,
            own: HashSet::new(),
            follower: false,
            follows: false,
            foreign: Vec::new(),
        }
    }

    /// The same as one of several searches: it starts around the best points that the others found.
    pub(super) fn follower(parameters: Parameters, landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        Self { follower: true, follows: true, ..Self::new(parameters, landscape, setup) }
    }

    /// A distribution as wide as the best points known lie, around them (Nomura et al. 2021).
    fn follow(&mut self) {
        let points = self.history.points();
        let mut known = self.history.ranked();
        known.truncate((known.len() / 5).clamp(1, self.distribution.population));
        if known.len() < 3 {
            return;
        }
        self.follows = false;
        let count = known.len() as f64;
        let genes = self.distribution.mean.len();
        self.foreign.clear();
        let mean: Vec<f64> = (0..genes)
            .map(|gene| known.iter().map(|place| points[*place].effective[gene]).sum::<f64>() / count)
            .collect();
        let square = |place: &usize| -> f64 {
            points[*place].effective.iter().zip(&mean).map(|(x, mean)| (x - mean) * (x - mean)).sum()
        };
        let variance = known.iter().map(square).sum::<f64>() / (count * genes as f64);
        let step = (0.5 * variance.sqrt()).clamp(FOLLOWING_STEP.0, FOLLOWING_STEP.1);
        self.distribution = Distribution::new(mean, step, self.distribution.population);
        self.since = points.len();
    }

    /// A sample that was never proposed.
    fn draw(&self, rng: &mut impl Rng) -> Option<(Vec<f64>, &'static str)> {
        let first = self.history.points().len() == self.since;
        for attempt in 0..TRIES {
            let (genome, origin) = match attempt {
                0 if first => (self.distribution.mean.clone(), "init"),
                _ if attempt < GAUSSIAN_TRIES => (self.distribution.sample(rng), "cma_es"),
                _ => (space_filling::uniform(rng, self.distribution.mean.len()), "random"),
            };
            if self.history.is_new(&genome) {
                return Some((genome, origin));
            }
        }
        None
    }

    fn rank(&self, point: usize) -> Option<f64> {
        self.history.points()[point].fitness.rank()
    }

    /// Updates the distribution when a population of outcomes is there, and restarts a search that is over.
    fn learn_from_fresh(&mut self) {
        if self.fresh.len() < self.distribution.population {
            return;
        }
        let fresh = std::mem::take(&mut self.fresh);
        let mut ranked: Vec<(usize, f64)> =
            fresh.into_iter().filter_map(|point| self.rank(point).map(|rank| (point, rank))).collect();
        ranked.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal));
        self.stagnant += 1;
        if let Some((_, rank)) = ranked.first().filter(|(_, rank)| *rank > self.best) {
            self.best = *rank;
            self.stagnant = 0;
        }
        let own = ranked.len();
        ranked.extend(self.injected());
        let foreign: HashSet<usize> = ranked[own..].iter().map(|(point, _)| *point).collect();
        ranked.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal));
        let points = self.history.points();
        let sample =
            |(point, _): &(usize, f64)| Sample { point: &points[*point].genome.0, foreign: foreign.contains(point) };
        let samples: Vec<Sample<'_>> = ranked.iter().map(sample).collect();
        self.distribution.update(&samples);
        let patience = 10 + 30 * self.distribution.mean.len() / self.distribution.population;
        if self.distribution.spread() < TINY || self.stagnant as usize > patience {
            self.restart();
        }
    }

    /// The best of the others' points since the last update, half as many as its own at most.
    fn injected(&mut self) -> Vec<(usize, f64)> {
        let foreign = std::mem::take(&mut self.foreign);
        let mut ranked: Vec<(usize, f64)> =
            foreign.into_iter().filter_map(|point| self.rank(point).map(|rank| (point, rank))).collect();
        ranked.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal));
        ranked.truncate(self.distribution.population / 2);
        ranked
    }

    fn restart(&mut self) {
        self.restarts += 1;
        if self.follower {
            self.follows = true;
            self.best = f64::NEG_INFINITY;
            self.stagnant = 0;
            return;
        }
        let mut rng = random::stream(self.seed, "cma-es restart", u64::from(self.restarts));
        let mean = space_filling::uniform(&mut rng, self.distribution.mean.len());
        let population = (2 * self.distribution.population).min(10_000);
        self.distribution = Distribution::new(mean, self.parameters.step, population);
        self.since = self.history.points().len();
        self.best = f64::NEG_INFINITY;
        self.stagnant = 0;
    }
}

impl Strategy for CmaEs {
    fn name(&self) -> &'static str {
        "cma-es"
    }

    fn ask(&mut self) -> Result<Ask, StrategyError> {
        let mut rng = random::stream(self.seed, "cma-es", self.asked);
        self.asked += 1;
        if self.follows {
            self.follow();
        }
        let Some((genome, origin)) = self.draw(&mut rng) else {
            return Ok(Ask::Done("search space exhausted".to_owned()));
        };
        Ok(self.history.propose(genome, origin, &[], self.distribution.updates))
    }

    fn place(&mut self, placement: Placement) {
        let Some(point) = self.history.place(placement) else { return };
        self.own.insert(point);
        // A duplicate of something known is an outcome at once.
        if self.rank(point).is_some() {
            self.fresh.push(point);
            self.learn_from_fresh();
        }
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        let places = self.history.tell(outcome)?;
        let ours = places
            .into_iter()
            .filter(|place| *place >= self.since && self.own.contains(place) && self.rank(*place).is_some());
        let ours: Vec<usize> = ours.collect();
        self.fresh.extend(ours);
        self.learn_from_fresh();
        Ok(())
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        let places = self.history.learn_foreseen(content, outcome)?;
        if matches!(content, Content::Genome(_)) {
            self.foreign.extend(places);
        }
        Ok(())
    }

    fn watch(&mut self, genome: &Genome, placement: Placement) {
        self.history.watch(genome, placement);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_bottom_of_a_narrow_valley() {
        // An ellipse a hundred times longer than wide, turned by 45 degrees, with its centre off the start.
        let score = |x: &[f64]| {
            let (u, v) = (x[0] + x[1] - 0.9, x[0] - x[1] + 0.3);
            -(u * u + 1e4 * v * v)
        };
        let mut distribution = Distribution::new(vec![0.5, 0.5], 0.2, 6);
        let mut rng = random::stream(7, "test", 0);
        for _ in 0..120 {
            let mut points: Vec<Vec<f64>> = (0..6).map(|_| distribution.sample(&mut rng)).collect();
            points.sort_by(|a, b| score(b).total_cmp(&score(a)));
            let sample = |point| Sample { point, foreign: false };
            let ranked: Vec<Sample<'_>> = points.iter().map(Vec::as_slice).map(sample).collect();
            distribution.update(&ranked);
        }
        assert!(score(&distribution.mean) > -1e-6, "{:?}", distribution.mean);
        assert!(distribution.spread() < 0.01);
    }

    #[test]
    fn good_weights_share_one_and_bad_ones_are_bounded() {
        for (genes, population) in [(2.0, 6), (8.0, 10), (24.0, 13), (100.0, 17), (24.0, 200), (5.0, 4)] {
            let rates = Rates::new(genes, population);
            let good: f64 = rates.weights.iter().filter(|weight| **weight > 0.0).sum();
            let bad: f64 = rates.weights.iter().filter(|weight| **weight < 0.0).sum();
            assert!((good - 1.0).abs() < 1e-12);
            assert!(rates.weights.windows(2).all(|pair| pair[0] >= pair[1]), "{:?}", rates.weights);
            // What is left of the matrix stays positive whatever the bad steps (Hansen 2016, equation 53).
            assert!(bad < 0.0 && 1.0 - rates.one - rates.many + genes * rates.many * bad >= -1e-12, "{bad}");
        }
    }

    #[test]
    fn bad_directions_shrink() {
        // Good samples along the first gene, bad ones along the second, as long.
        let points: Vec<Vec<f64>> = [(0.1, 0.0), (-0.1, 0.0), (0.08, 0.0), (0.0, 0.08), (0.0, 0.1), (0.0, -0.1)]
            .iter()
            .map(|(x, y)| vec![0.5 + x, 0.5 + y])
            .collect();
        let sample = |point| Sample { point, foreign: false };
        let ranked: Vec<Sample<'_>> = points.iter().map(Vec::as_slice).map(sample).collect();
        let mut active = Distribution::new(vec![0.5, 0.5], 0.1, 6);
        active.update(&ranked);
        let (good, bad) = (active.covariance[0][0], active.covariance[1][1]);
        // Without negative weights the second would only fade.
        let rates = Rates::new(2.0, 6);
        assert!(good > bad && bad < 1.0 - rates.one - rates.many, "{good} {bad}");
    }

    #[test]
    fn foreign_samples_pull_no_further_than_own_ones() {
        let distribution = Distribution::new(vec![0.5; 4], 0.01, 8);
        let far = Sample { point: &[1.0, 1.0, 0.0, 0.0], foreign: true };
        let step = distribution.step_to(&far);
        let length = dot(&step, &step).sqrt();
        assert!((length - (2.0 + 8.0 / 6.0)).abs() < 1e-9 && step[0] > 0.0 && step[2] < 0.0, "{step:?}");
        let own = distribution.step_to(&Sample { foreign: false, ..far });
        assert!((own[0] - 50.0).abs() < 1e-9);
    }

    #[test]
    fn samples_stay_in_bounds() {
        let distribution = Distribution::new(vec![0.0, 1.0, 0.5], 1.0, 6);
        let mut rng = random::stream(7, "test", 1);
        for _ in 0..500 {
            assert!(distribution.sample(&mut rng).iter().all(|value| (0.0..=1.0).contains(value)));
        }
    }
}
