//! From `[strategy]` to a strategy.

use std::sync::Arc;

use super::baselines::{BaselinePlan, Baselines, GREEDY_SOUP_SOURCES};
use super::cma_es::{self, CmaEs};
use super::contract::Checked;
use super::genetic::{self, Genetic};
use super::nsga2::{self, Nsga2};
use super::portfolio::{self, Portfolio};
use super::racing::{Race, Racing};
use super::random::{Sampling, Source};
use super::settings::Settings;
use super::soup::{Keep, Passes};
use super::tpe::{self, Tpe};
use super::{Content, Landscape, Strategy, StrategyError};
use crate::config::{StrategyConfig, StrategyKind};
use crate::score::ObjectiveTask;
use crate::space::Genome;

/// A point of the search space that stands for a baseline, whose score counts as its own.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedGenome {
    /// The point, which decodes to the baseline up to the rounding of task vectors.
    pub genome: Genome,
    /// The baseline.
    pub content: Content,
}

/// Settings of the soup strategies, which every other strategy has too: it makes a greedy soup among its baselines.
pub const SOUP_SETTINGS: [&str; 3] = ["keep", "replacement", "backward"];

/// What a strategy is built for.
#[derive(Clone)]
pub struct Setup {
    /// The run's seed.
    pub seed: u64,
    /// `None` where the run file has no `[space]` (soups).
    pub landscape: Option<Arc<dyn Landscape>>,
    /// Number of sources.
    pub sources: usize,
    /// Whether there is a base model to score.
    pub has_base: bool,
    /// The run's budget of evaluations, baselines included; `None`: limited otherwise.
    pub evaluations: Option<u64>,
    /// Proposal k sees the outcomes up to k less this many.
    pub look_ahead: usize,
    /// Base, sources and uniform soup as points of the space, as far as it has them.
    pub seeds: Vec<SeedGenome>,
    /// Where Model Stock sees the best merge, if the space has that point: one that a search tries early.
    pub model_stock: Option<Genome>,
    /// The tasks of the run's objective, for strategies that look at them one by one; empty: they see the objective
    /// only.
    pub objective: Vec<ObjectiveTask>,
}

/// Builds the strategy of a run: baselines first, then the kind, with the contract checked.
///
/// # Errors
/// [`StrategyError::Setting`] for unknown settings, [`StrategyError::NoSpace`] for a search without a space.
pub fn build(config: &StrategyConfig, setup: Setup) -> Result<Box<dyn Strategy>, StrategyError> {
    build_raced(config, setup, None)
}

/// Whether a search makes a greedy soup after its baselines.
fn makes_greedy_soup(kind: StrategyKind, sources: usize) -> bool {
    let wanted = match kind {
        StrategyKind::GreedySoup => true,
        StrategyKind::UniformSoup => false,
        _ => sources <= GREEDY_SOUP_SOURCES,
    };
    wanted && sources > 1
}

/// Fewest and most evaluations of the greedy soup that a search makes after its baselines, where each source is scored;
/// `None`: it makes none, or its settings cannot be read.
pub fn greedy_soup_evaluations(config: &StrategyConfig, sources: usize) -> Option<[u64; 2]> {
    // The number of genes decides defaults of others alone.
    let choice = Choice::read(config, 0).ok()?;
    makes_greedy_soup(choice.kind, sources).then(|| choice.passes.evaluations(sources))
}

/// Whether a search of this kind proposes [`Setup::model_stock`].
pub const fn tries_model_stock(kind: StrategyKind) -> bool {
    match kind {
        StrategyKind::Portfolio | StrategyKind::Genetic | StrategyKind::Tpe | StrategyKind::Nsga2 => true,
        StrategyKind::CmaEs
        | StrategyKind::Random
        | StrategyKind::Sobol
        | StrategyKind::GreedySoup
        | StrategyKind::UniformSoup => false,
    }
}

/// [`build`] with a race: the baselines are scored in full, the strategy's own candidates race.
///
/// # Errors
/// As [`build`].
pub fn build_raced(
    config: &StrategyConfig,
    setup: Setup,
    race: Option<Race>,
) -> Result<Box<dyn Strategy>, StrategyError> {
    let landscape = setup.landscape.clone();
    let genes = landscape.as_ref().map_or(0, |space| space.genes().len());
    let Choice { kind, keep, passes, proposer } = Choice::read(config, genes)?;
    let greedy = makes_greedy_soup(kind, setup.sources);
    let plan = BaselinePlan { has_base: setup.has_base, sources: setup.sources, greedy, keep, passes };
    let inner: Option<Box<dyn Strategy>> = match proposer {
        Some(proposer) => {
            let landscape = landscape.ok_or(StrategyError::NoSpace { kind })?;
            Some(proposer.build(landscape, &setup))
        }
        None => None,
    };
    let inner = match race {
        Some(race) => inner.map(|inner| Box::new(Racing::new(inner, race)) as Box<dyn Strategy>),
        None => inner,
    };
    Ok(Box::new(Checked::new(Box::new(Baselines::new(plan, inner)))))
}

/// Checks what can be said of `[strategy]` before anything is opened.
///
/// # Errors
/// [`StrategyError::Setting`] for unknown settings.
pub fn check_settings(config: &StrategyConfig) -> Result<(), StrategyError> {
    // The number of genes decides defaults alone.
    Choice::read(config, 0).map(|_| ())
}

/// Whether two configurations of one kind make the same search in a space of so many genes: settings that are written
/// out as what they are by default change nothing. False where either cannot be read.
pub fn are_same_settings(first: &StrategyConfig, second: &StrategyConfig, genes: usize) -> bool {
    match (Choice::read(first, genes), Choice::read(second, genes)) {
        (Ok(first), Ok(second)) => first == second,
        _ => false,
    }
}

/// What `[strategy]` says.
#[derive(PartialEq)]
struct Choice {
    kind: StrategyKind,
    keep: Keep,
    passes: Passes,
    /// `None`: the soups are all there is.
    proposer: Option<Proposer>,
}

/// What proposes candidates after the baselines.
#[derive(PartialEq)]
enum Proposer {
    Sampling(Source),
    Genetic(genetic::Parameters),
    CmaEs(cma_es::Parameters),
    Tpe(tpe::Parameters),
    Nsga2(nsga2::Parameters),
    Portfolio(portfolio::Parameters),
}

impl Choice {
    /// `genes` is the number of genes of the search space.
    fn read(config: &StrategyConfig, genes: usize) -> Result<Self, StrategyError> {
        let kind = config.kind;
        let mut settings = Settings::new(&config.settings);
        let [keep, replacement, backward] = SOUP_SETTINGS;
        let keep = [Keep::Better, Keep::NotWorse][settings.choice(keep, &["better", "not_worse"])?];
        let passes =
            Passes { replacement: settings.truth(replacement, false)?, backward: settings.truth(backward, false)? };
        let proposer = match kind {
            StrategyKind::Random => Some(Proposer::Sampling(Source::Uniform)),
            StrategyKind::Sobol => Some(Proposer::Sampling(Source::Sobol)),
            StrategyKind::Genetic => Some(Proposer::Genetic(genetic::Parameters::read(&mut settings)?)),
            StrategyKind::CmaEs => Some(Proposer::CmaEs(cma_es::Parameters::read(&mut settings)?)),
            StrategyKind::Tpe => Some(Proposer::Tpe(tpe::Parameters::read(&mut settings)?)),
            StrategyKind::Nsga2 => Some(Proposer::Nsga2(nsga2::Parameters::read(&mut settings)?)),
            StrategyKind::Portfolio => Some(Proposer::Portfolio(portfolio::Parameters::read(&mut settings, genes)?)),
            StrategyKind::GreedySoup | StrategyKind::UniformSoup => None,
        };
        settings.finish(kind.name())?;
        Ok(Self { kind, keep, passes, proposer })
    }
}

impl Proposer {
    fn build(self, landscape: Arc<dyn Landscape>, setup: &Setup) -> Box<dyn Strategy> {
        match self {
            Self::Sampling(source) => Box::new(Sampling::new(source, setup.seed, landscape)),
            // A single point, and nothing to learn from it.
            _ if landscape.genes().is_empty() => Box::new(Sampling::new(Source::Uniform, setup.seed, landscape)),
            Self::Genetic(parameters) => Box::new(Genetic::new(parameters, landscape, setup)),
            Self::CmaEs(parameters) => Box::new(CmaEs::new(parameters, landscape, setup)),
            Self::Tpe(parameters) => Box::new(Tpe::new(parameters, landscape, setup)),
            Self::Nsga2(parameters) => Box::new(Nsga2::new(parameters, landscape, setup)),
            Self::Portfolio(parameters) => Box::new(Portfolio::new(parameters, landscape, setup)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::super::conformance::{Answer, Oracle, TestSpace, drive, real, setup};
    use super::super::{Ask, SoupTrace};
    use super::*;
    use crate::exit::ExitCode;
    use crate::space::Gene;

    fn config(kind: StrategyKind, settings: &str) -> StrategyConfig {
        StrategyConfig { kind, look_ahead: None, settings: settings.parse().unwrap() }
    }

    fn refused(kind: StrategyKind, settings: &str) -> String {
        match build(&config(kind, settings), setup(TestSpace::reals(2), 8)) {
            Err(error) => {
                assert_eq!(error.exit_code(), ExitCode::BadConfiguration);
                error.to_string()
            }
            Ok(_) => panic!("{kind} with {settings} was not refused"),
        }
    }

    #[test]
    fn settings_that_are_written_out_are_the_same() {
        let same = |kind, first, second| are_same_settings(&config(kind, first), &config(kind, second), 8);
        assert!(same(StrategyKind::Genetic, "", "population = 20\nkeep = \"better\""));
        assert!(!same(StrategyKind::Genetic, "", "population = 21"));
        assert!(!same(StrategyKind::Genetic, "", "keep = \"not_worse\""));
        assert!(same(StrategyKind::Portfolio, "least = 0.1", "start = 12"));
        assert!(!same(StrategyKind::Portfolio, "", "start = 13"));
        assert!(same(StrategyKind::Sobol, "replacement = false", ""));
        assert!(!same(StrategyKind::Genetic, "populaton = 9", "populaton = 9"));
    }

    #[test]
    fn unknown_settings_are_refused_with_a_suggestion() {
        assert!(refused(StrategyKind::Genetic, "populaton = 9").contains("did you mean `population`"));
        assert!(refused(StrategyKind::Random, "population = 9").contains("no such setting"));
        assert!(refused(StrategyKind::Genetic, "population = 1").contains("from 4"));
        let no_space = Setup { landscape: None, ..setup(TestSpace::reals(2), 8) };
        let error = build(&config(StrategyKind::Genetic, ""), no_space.clone()).err().unwrap();
        assert_eq!(error.exit_code(), ExitCode::BadConfiguration);
        assert!(build(&config(StrategyKind::GreedySoup, "keep = \"not_worse\""), no_space).is_ok());
    }

    /// The proposals of a run, in words, and the greedy soup's trace.
    fn baselines(
        kind: StrategyKind,
        setup: Setup,
        evaluations: u64,
        score: &dyn Fn(&Content) -> f64,
    ) -> (Vec<String>, Option<SoupTrace>) {
        let mut strategy = build(&config(kind, ""), setup).unwrap();
        let oracle = |_: u64, content: &Content| Answer::Score(score(content));
        let rows = drive(&mut *strategy, &oracle, 8, evaluations).unwrap();
        let word = |content: &Content| match content {
            Content::Base => "base".to_owned(),
            Content::Soup(members) => members.iter().map(ToString::to_string).collect::<Vec<_>>().join("+"),
            Content::Genome(_) => "genome".to_owned(),
        };
        let words = rows.iter().map(|row| format!("{} {}", row.proposal.origin, word(&row.proposal.content)));
        let words = words.filter(|word| !word.ends_with("genome")).collect();
        (words, strategy.soup_trace().cloned())
    }

    /// Source 2 is the best; 0 helps it, 1 does not.
    fn soup_score(content: &Content) -> f64 {
        match content {
            Content::Soup(members) => match members.as_slice() {
                [2] => 0.7,
                [0] => 0.5,
                [1] => 0.6,
                [0, 2] => 0.8,
                _ => 0.1,
            },
            _ => 0.0,
        }
    }

    #[test]
    fn baselines_come_first_and_the_greedy_soup_reuses_known_soups() {
        let (words, trace) = baselines(StrategyKind::GreedySoup, setup(TestSpace::reals(2), 8), 100, &soup_score);
        let expected = [
            "base base",
            "source 0",
            "source 1",
            "source 2",
            "uniform_soup 0+1+2",
            "greedy_soup 1+2",
            "greedy_soup 0+2",
        ];
        assert_eq!(words, expected);
        let trace = trace.unwrap();
        assert_eq!((trace.order, trace.members, trace.score), (vec![2, 1, 0], vec![2, 0], Some(0.8)));
        assert!(trace.complete);

        // With every addition kept, the last step is the uniform soup: known, and not evaluated again.
        let (words, trace) =
            baselines(StrategyKind::Genetic, setup(TestSpace::reals(2), 8), 12, &|content| match content {
                Content::Soup(members) => members.len() as f64,
                _ => 0.0,
            });
        assert_eq!(words.len(), 6, "{words:?}");
        let trace = trace.unwrap();
        assert_eq!((trace.members, trace.score, trace.complete), (vec![0, 1, 2], Some(3.0), true));

        let (words, trace) = baselines(StrategyKind::UniformSoup, setup(TestSpace::reals(2), 8), 100, &soup_score);
        assert_eq!((words.len(), trace), (5, None));
    }

    #[test]
    fn a_budget_cuts_the_greedy_soup_visibly() {
        // Nothing but the baselines, one step of two, both steps.
        for (evaluations, steps) in [(5, 0), (6, 1), (7, 2)] {
            let (_, trace) =
                baselines(StrategyKind::GreedySoup, setup(TestSpace::reals(2), 8), evaluations, &soup_score);
            let trace = trace.unwrap();
            assert_eq!((trace.steps.len(), trace.complete), (steps, steps == 2));
        }
    }

    #[test]
    fn many_sources_are_not_made_a_greedy_soup_unasked() {
        let many = |sources| Setup { sources, has_base: false, seeds: vec![], ..setup(TestSpace::reals(2), 8) };
        let score = |_: &Content| 0.5;
        assert_eq!(baselines(StrategyKind::Random, many(17), 40, &score).0.len(), 18);
        assert_eq!(baselines(StrategyKind::Random, many(16), 40, &score).0.len(), 17 + 15);
        assert_eq!(baselines(StrategyKind::GreedySoup, many(17), 40, &score).0.len(), 18 + 16);
        assert_eq!(baselines(StrategyKind::Random, many(1), 40, &score).0, ["source 0"]);
    }

    #[test]
    fn the_greedy_soup_is_foreseen_with_its_passes() {
        let foreseen = |kind, settings, sources| greedy_soup_evaluations(&config(kind, settings), sources);
        assert_eq!(foreseen(StrategyKind::Genetic, "", 3), Some([1, 2]));
        let [few, many] = foreseen(StrategyKind::Genetic, "replacement = true\nbackward = true", 4).unwrap();
        assert!(few == 3 && many >= 54, "{few} {many}");
        assert_eq!(foreseen(StrategyKind::Genetic, "", 17), None);
        assert_eq!(foreseen(StrategyKind::UniformSoup, "", 3), None);
        assert_eq!(foreseen(StrategyKind::GreedySoup, "", 17), Some([15, 16]));
        assert_eq!(foreseen(StrategyKind::GreedySoup, "replacment = true", 3), None);
    }

    #[test]
    fn nothing_is_proposed_while_a_soup_step_is_open() {
        let mut strategy = build(&config(StrategyKind::GreedySoup, ""), setup(TestSpace::reals(2), 8)).unwrap();
        for index in 0..5 {
            assert!(matches!(strategy.ask().unwrap(), Ask::Proposal(_)));
            strategy.place(super::super::Placement::Asked { index });
        }
        assert_eq!(strategy.ask().unwrap(), Ask::Wait { until: 3 });
    }

    fn rastrigin(x: &[f64]) -> f64 {
        // The domain is [-2, 2] around an optimum off the centre.
        let term = |value: &f64| {
            let z = 4.0 * (value - 0.6);
            z * z - 3.0 * (TAU * z / 2.0).cos() + 3.0
        };
        -x.iter().map(term).sum::<f64>()
    }

    fn sphere(x: &[f64]) -> f64 {
        -x.iter().enumerate().map(|(gene, value)| (value - 0.2 - 0.07 * gene as f64).powi(2)).sum::<f64>()
    }

    /// The median over five seeds of the best score after 100 evaluations in eight genes.
    fn median(kind: StrategyKind, settings: &str, function: fn(&[f64]) -> f64) -> f64 {
        let genes: Vec<Gene> = (0..8).map(|gene| real(&format!("x{gene}"))).collect();
        let best = |seed| {
            let landscape: Arc<dyn Landscape> = Arc::new(TestSpace::new(genes.clone()));
            let setup = Setup {
                seed,
                landscape: Some(landscape),
                sources: 1,
                has_base: false,
                evaluations: Some(100),
                look_ahead: 8,
                seeds: vec![],
                model_stock: None,
                objective: vec![],
            };
            let oracle = |_: u64, content: &Content| match content {
                Content::Genome(genome) => Answer::Score(function(&genome.0)),
                _ => Answer::Infeasible,
            };
            let oracle: &dyn Oracle = &oracle;
            let rows = drive(&mut *build(&config(kind, settings), setup).unwrap(), oracle, 8, 100).unwrap();
            let score = |answer| if let Answer::Score(score) = answer { score } else { f64::NEG_INFINITY };
            rows.iter().map(|row| score(row.answer)).fold(f64::NEG_INFINITY, f64::max)
        };
        let mut bests: Vec<f64> = (0..5).map(best).collect();
        bests.sort_by(f64::total_cmp);
        bests[2]
    }

    #[test]
    fn searches_are_far_better_than_chance() {
        for (name, function) in [("sphere", sphere as fn(&[f64]) -> f64), ("rastrigin", rastrigin)] {
            let random = median(StrategyKind::Random, "", function);
            let sobol = median(StrategyKind::Sobol, "", function);
            let plain = median(StrategyKind::Genetic, "surrogate = false", function);
            let genetic = median(StrategyKind::Genetic, "", function);
            let cma_es = median(StrategyKind::CmaEs, "", function);
            assert!(cma_es > 0.7 * random, "{name}: cma-es {cma_es}, random {random}");
            // All are errors below zero.
            assert!(plain > 0.7 * random, "{name}: plain {plain}, random {random}");
            assert!(
                genetic > 0.5 * random && genetic > 0.5 * sobol,
                "{name}: {genetic}, random {random}, sobol {sobol}"
            );
        }
    }
}
