//! Covariance matrix adaptation (Hansen 2016, The CMA evolution strategy: a tutorial), asynchronous.
//!
//! Samples come from the latest distribution; the distribution is updated whenever a population of outcomes has come in, so
//! nothing waits for a generation to end. The square root of the covariance is its Cholesky factor (Krause, Arbones and Igel
//! 2016). Restarts double the population (Auger and Hansen 2005).

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

use rand::{Rng, RngExt};
use rand_distr::StandardNormal;

use super::archive::{Archive, Fitness};
use super::contract::objective;
use super::linear_algebra::{Cholesky, dot};
use super::settings::Settings;
use super::{
    Ask, Content, Landscape, Outcome, Placement, Proposal, Setup, Status, Strategy, StrategyError, space_filling,
};
use crate::random;
use crate::space::Genome;

/// Draws for one proposal before a space counts as exhausted; the last ones are uniform.
const TRIES: usize = 1_000;
const GAUSSIAN_TRIES: usize = 100;
/// Largest standard deviation of a gene below which a search has converged.
const TINY: f64 = 2e-3;
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
    fn update(&mut self, ranked: &[&[f64]]) {
        let genes = self.mean.len() as f64;
        let parents = (ranked.len() / 2).max(1);
        let weights: Vec<f64> =
            (0..parents).map(|rank| ((ranked.len() as f64 + 1.0) / 2.0).ln() - (rank as f64 + 1.0).ln()).collect();
        let total: f64 = weights.iter().sum();
        let weights: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let effective = 1.0 / dot(&weights, &weights);
        let step_rate = (effective + 2.0) / (genes + effective + 5.0);
        let damping = 1.0 + 2.0 * (((effective - 1.0) / (genes + 1.0)).max(0.0).sqrt() - 1.0).max(0.0) + step_rate;
        let path_rate = (4.0 + effective / genes) / (genes + 4.0 + 2.0 * effective / genes);
        let one_rate = 2.0 / ((genes + 1.3).powi(2) + effective);
        let many_rate = (1.0 - one_rate)
            .min(2.0 * (effective - 2.0 + 1.0 / effective).max(0.0) / ((genes + 2.0).powi(2) + effective));

        let steps: Vec<Vec<f64>> = ranked[..parents]
            .iter()
            .map(|point| point.iter().zip(&self.mean).map(|(x, mean)| (x - mean) / self.step).collect())
            .collect();
        let mut move_by = vec![0.0; self.mean.len()];
        for (weight, step) in weights.iter().zip(&steps) {
            move_by.iter_mut().zip(step).for_each(|(sum, value)| *sum += weight * value);
        }
        self.mean.iter_mut().zip(&move_by).for_each(|(mean, by)| *mean = (*mean + self.step * by).clamp(0.0, 1.0));

        self.updates += 1;
        let white = self.factor.forward(&move_by);
        let gain = (step_rate * (2.0 - step_rate) * effective).sqrt();
        self.step_path.iter_mut().zip(&white).for_each(|(path, by)| *path = (1.0 - step_rate) * *path + gain * by);
        let length = dot(&self.step_path, &self.step_path).sqrt();
        let expected = genes.sqrt() * (1.0 - 1.0 / (4.0 * genes) + 1.0 / (21.0 * genes * genes));
        let faded = 1.0 - (1.0 - step_rate).powf(2.0 * f64::from(self.updates));
        let steady = length / faded.sqrt() < (1.4 + 2.0 / (genes + 1.0)) * expected;
        let gain = if steady { (path_rate * (2.0 - path_rate) * effective).sqrt() } else { 0.0 };
        self.covariance_path
            .iter_mut()
            .zip(&move_by)
            .for_each(|(path, by)| *path = (1.0 - path_rate) * *path + gain * by);

        let lost = if steady { 0.0 } else { path_rate * (2.0 - path_rate) };
        let keep = 1.0 - one_rate - many_rate + one_rate * lost;
        let path = &self.covariance_path;
        for (i, row) in self.covariance.iter_mut().enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                let many: f64 = weights.iter().zip(&steps).map(|(weight, step)| weight * step[i] * step[j]).sum();
                *value = keep * *value + one_rate * path[i] * path[j] + many_rate * many;
            }
        }
        self.step = (self.step * (step_rate / damping * (length / expected - 1.0)).min(1.0).exp())
            .clamp(STEP_BOUNDS.0, STEP_BOUNDS.1);
        let mut factor = Cholesky::default();
        if self.covariance.iter().all(|row| factor.push(row)) {
            self.factor = factor;
        } else {
            (self.covariance, self.factor) = identity(self.mean.len());
        }
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
    archive: Archive,
    baselines: Vec<(Content, usize)>,
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
    open: Option<usize>,
    /// Points of its own proposing.
    own: HashSet<usize>,
    /// Whether the search is still to start, around the best points that others found.
    follows: bool,
}

impl CmaEs {
    pub(super) fn new(parameters: Parameters, landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        let init: Vec<f64> = landscape.genes().iter().map(|gene| gene.init.clamp(0.0, 1.0)).collect();
        let default = 4 + (3.0 * (init.len() as f64).ln()) as usize;
        let population = parameters.population.unwrap_or(default);
        let mut archive = Archive::new(landscape);
        let exact = setup.seeds.iter().filter(|seed| seed.exact);
        let baselines = exact.map(|seed| (seed.content.clone(), archive.add(seed.genome.clone(), 0))).collect();
        Self {
            distribution: Distribution::new(init, parameters.step, population),
            parameters,
            seed: setup.seed,
            baselines,
            since: archive.points().len(),
            archive,
            fresh: Vec::new(),
            best: f64::NEG_INFINITY,
            stagnant: 0,
            restarts: 0,
            asked: 0,
            open: None,
            own: HashSet::new(),
            follows: false,
        }
    }

    /// The same as one of several searches: it starts around the best points that the others found.
    pub(super) fn follower(parameters: Parameters, landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        Self { follows: true, ..Self::new(parameters, landscape, setup) }
    }

    /// A distribution as wide as the best points known lie, around them (Nomura et al. 2021).
    fn follow(&mut self) {
        let points = self.archive.points();
        let mut known: Vec<usize> = (0..points.len()).filter(|place| self.rank(*place).is_some()).collect();
        known.sort_by(|a, b| self.rank(*b).partial_cmp(&self.rank(*a)).unwrap_or(Ordering::Equal));
        known.truncate((known.len() / 5).clamp(1, 2 * self.distribution.population));
        if known.len() < 3 {
            return;
        }
        self.follows = false;
        let count = known.len() as f64;
        let genes = self.distribution.mean.len();
        let mean: Vec<f64> = (0..genes)
            .map(|gene| known.iter().map(|place| points[*place].effective[gene]).sum::<f64>() / count)
            .collect();
        let square = |place: &usize| -> f64 {
            points[*place].effective.iter().zip(&mean).map(|(x, mean)| (x - mean) * (x - mean)).sum()
        };
        let variance = known.iter().map(square).sum::<f64>() / (count * genes as f64);
        let step = variance.sqrt().clamp(0.02, self.parameters.step);
        self.distribution = Distribution::new(mean, step, self.distribution.population);
        self.since = points.len();
    }

    /// A sample that was never proposed.
    fn draw(&self, rng: &mut impl Rng) -> Option<(Vec<f64>, &'static str)> {
        let first = self.archive.points().len() == self.since;
        for attempt in 0..TRIES {
            let (genome, origin) = match attempt {
                0 if first => (self.distribution.mean.clone(), "init"),
                _ if attempt < GAUSSIAN_TRIES => (self.distribution.sample(rng), "cma_es"),
                _ => (space_filling::uniform(rng, self.distribution.mean.len()), "random"),
            };
            if !self.archive.contains(&self.archive.effective(&Genome(genome.clone()))) {
                return Some((genome, origin));
            }
        }
        None
    }

    fn observe(&mut self, outcome: &Outcome) -> Result<Vec<usize>, StrategyError> {
        let fitness = match (outcome.status, objective(outcome)?) {
            (Status::Scored, Some(score)) => Fitness::Scored(score),
            (Status::Infeasible, _) => Fitness::Infeasible,
            _ => Fitness::Failed,
        };
        Ok(self.archive.tell(outcome.index, fitness))
    }

    fn rank(&self, point: usize) -> Option<f64> {
        self.archive.points()[point].fitness.rank()
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
        let points = self.archive.points();
        let genomes: Vec<&[f64]> = ranked.iter().map(|(point, _)| points[*point].genome.0.as_slice()).collect();
        self.distribution.update(&genomes);
        self.stagnant += 1;
        if let Some((_, rank)) = ranked.first().filter(|(_, rank)| *rank > self.best) {
            self.best = *rank;
            self.stagnant = 0;
        }
        let patience = 10 + 30 * self.distribution.mean.len() / self.distribution.population;
        if self.distribution.spread() < TINY || self.stagnant as usize > patience {
            self.restart();
        }
    }

    fn restart(&mut self) {
        self.restarts += 1;
        let mut rng = random::stream(self.seed, "cma-es restart", u64::from(self.restarts));
        let mean = space_filling::uniform(&mut rng, self.distribution.mean.len());
        let population = (2 * self.distribution.population).min(10_000);
        self.distribution = Distribution::new(mean, self.parameters.step, population);
        self.since = self.archive.points().len();
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
        let generation = self.distribution.updates;
        let genome = Genome(genome);
        self.open = Some(self.archive.add(genome.clone(), generation));
        Ok(Ask::Proposal(Box::new(Proposal {
            content: Content::Genome(genome),
            origin: origin.to_owned(),
            parents: vec![],
            generation,
            fidelity: 1.0,
            replicate: 0,
        })))
    }

    fn place(&mut self, placement: Placement) {
        let Some(point) = self.open.take() else { return };
        self.own.insert(point);
        self.archive.place(point, placement);
        // A duplicate of something known is an outcome at once.
        if self.rank(point).is_some() {
            self.fresh.push(point);
            self.learn_from_fresh();
        }
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        let places = self.observe(outcome)?;
        let ours = places
            .into_iter()
            .filter(|place| *place >= self.since && self.own.contains(place) && self.rank(*place).is_some());
        let ours: Vec<usize> = ours.collect();
        self.fresh.extend(ours);
        self.learn_from_fresh();
        Ok(())
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        if let Some((_, point)) = self.baselines.iter().find(|(known, _)| known == content) {
            self.archive.assign(*point, outcome.index);
        }
        self.observe(outcome)?;
        Ok(())
    }

    fn watch(&mut self, genome: &Genome, placement: Placement) {
        if !self.archive.contains(&self.archive.effective(genome)) {
            let point = self.archive.add(genome.clone(), 0);
            self.archive.place(point, placement);
        }
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
            let ranked: Vec<&[f64]> = points.iter().map(Vec::as_slice).collect();
            distribution.update(&ranked);
        }
        assert!(score(&distribution.mean) > -1e-6, "{:?}", distribution.mean);
        assert!(distribution.spread() < 0.01);
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
