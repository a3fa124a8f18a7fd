//! Covariance matrix adaptation (Hansen 2016, The CMA evolution strategy: a tutorial), asynchronous.
//!
//! Samples come from the latest distribution; the distribution is updated whenever a population of outcomes has come
//! in, so nothing waits for a generation to end. Restarts double the population (Auger and Hansen 2005).

mod distribution;

use std::collections::HashSet;
use std::sync::Arc;

use rand::Rng;

use distribution::{Distribution, Sample};

use super::history::History;
use super::settings::{Settings, refuse};
use super::{Ask, Content, Landscape, MAX_DRAWS, Outcome, Placement, Setup, Strategy, StrategyError, space_filling};
use crate::random;
use crate::score::best_first;
use crate::space::Genome;

/// Draws for one proposal from the distribution; further ones are uniform.
const GAUSSIAN_DRAWS: usize = 100;
/// Largest standard deviation of a gene below which a search has converged.
const TINY: f64 = 2e-3;
/// Fewest outcomes of an update: of fewer, there is no better half to learn from.
const LEAST_POPULATION: usize = 4;
/// Bounds of the first step of a search that starts around the best points of others.
const FOLLOWING_STEP: (f64, f64) = (0.02, 0.06);

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
        if (1..LEAST_POPULATION).contains(&population) {
            let reason = format!("{population} is too few; at least {LEAST_POPULATION}, or 0: by the number of genes");
            return Err(refuse("population", reason));
        }
        let population = (population > 0).then_some(population);
        Ok(Self { population, step: settings.number("step", 1.0 / 6.0, 0.001..=1.0)? })
    }
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
    /// Whether a follower is still to start around the best points of all.
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

    /// One of several searches: it starts around the best points that the others found.
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
        // What came in until now was not drawn from the new distribution.
        self.fresh.clear();
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
        for attempt in 0..MAX_DRAWS {
            let (genome, origin) = match attempt {
                0 if first => (self.distribution.mean.clone(), self.start()),
                _ if attempt < GAUSSIAN_DRAWS => (self.distribution.sample(rng), "cma_es"),
                _ => (space_filling::uniform(rng, self.distribution.mean.len()), "random"),
            };
            if self.history.is_new(&genome) {
                return Some((genome, origin));
            }
        }
        None
    }

    /// What the mean of a new distribution is called: only the first one of all is the genes' own.
    fn start(&self) -> &'static str {
        if self.follower || self.restarts > 0 { "restart" } else { "init" }
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
        ranked.sort_by(|a, b| best_first(a.1, b.1));
        self.stagnant += 1;
        if let Some((_, rank)) = ranked.first().filter(|(_, rank)| *rank > self.best) {
            self.best = *rank;
            self.stagnant = 0;
        }
        let own = ranked.len();
        ranked.extend(self.injected());
        let foreign: HashSet<usize> = ranked[own..].iter().map(|(point, _)| *point).collect();
        ranked.sort_by(|a, b| best_first(a.1, b.1));
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
        ranked.sort_by(|a, b| best_first(a.1, b.1));
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
    fn ask(&mut self) -> Result<Ask, StrategyError> {
        let mut rng = random::stream(self.seed, "cma-es", self.asked);
        self.asked += 1;
        if self.follows {
            self.follow();
        }
        let Some((genome, origin)) = self.draw(&mut rng) else { return Ok(Ask::exhausted()) };
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
    use super::super::conformance::{Answer, TestSpace, outcome, setup};
    use super::*;

    #[test]
    fn a_population_too_small_to_learn_from_is_refused() {
        let read = |population: i64| {
            let table = toml::Table::from_iter([("population".to_owned(), toml::Value::Integer(population))]);
            Parameters::read(&mut Settings::new(&table)).map(|parameters| parameters.population)
        };
        assert_eq!(read(0).unwrap(), None);
        assert_eq!(read(4).unwrap(), Some(4));
        for few in 1..4 {
            let error = read(few).unwrap_err();
            assert_eq!(error.exit_code(), crate::exit::ExitCode::BadConfiguration);
            assert!(error.to_string().contains("at least 4"), "{error}");
        }
    }

    #[test]
    fn a_follower_learns_nothing_from_samples_of_its_last_distribution() {
        let setup = Setup { seeds: vec![], model_stock: None, ..setup(TestSpace::reals(2), 64) };
        let mut search = CmaEs::follower(Parameters::default(), setup.landscape.clone().unwrap(), &setup);
        // Nothing is known yet that it could start around: two samples of the first distribution, one of them told
        // late.
        for index in [0, 1] {
            assert!(matches!(search.ask().unwrap(), Ask::Proposal(_)));
            search.place(Placement::Asked { index });
        }
        search.tell(&outcome(0, Answer::Score(0.5))).unwrap();
        assert!(search.follows && search.fresh == [0]);
        for index in 2..32_u64 {
            let genome = Genome(vec![index as f64 / 64.0, 0.25]);
            search.watch(&genome, Placement::Asked { index });
            search.learn(&Content::Genome(genome), &outcome(index, Answer::Score(index as f64))).unwrap();
        }
        assert!(matches!(search.ask().unwrap(), Ask::Proposal(_)));
        search.place(Placement::Asked { index: 32 });
        assert!(!search.follows && search.fresh.is_empty(), "{:?}", search.fresh);
        search.tell(&outcome(1, Answer::Score(0.5))).unwrap();
        assert!(search.fresh.is_empty(), "{:?}", search.fresh);
        search.tell(&outcome(32, Answer::Score(0.5))).unwrap();
        assert_eq!(search.fresh.len(), 1);
    }
}
