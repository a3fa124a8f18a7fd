//! From `[strategy]` to a strategy.

use std::sync::Arc;

use super::baselines::{Baselines, GREEDY_SOUP_SOURCES, Plan};
use super::contract::Checked;
use super::genetic::{self, Genetic};
use super::random::{Sampling, Source};
use super::settings::{Settings, closest, refuse};
use super::soup::Keep;
use super::{Content, Landscape, Strategy, StrategyError};
use crate::config::StrategyConfig;
use crate::space::Genome;

/// The kinds that `[strategy] kind` may name.
pub const KINDS: [&str; 5] = ["genetic", "random", "sobol", "greedy-soup", "uniform-soup"];

/// A point of the search space that stands for a baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedGenome {
    pub genome: Genome,
    /// The baseline.
    pub content: Content,
    /// Whether it decodes to the very same model, so that the baseline's score is its own; else it is only like it, and
    /// is proposed early.
    pub exact: bool,
}

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
    pub seeds: Vec<SeedGenome>,
}

/// Builds the strategy of a run: baselines first, then the kind, with the contract checked.
///
/// # Errors
/// [`StrategyError::Setting`] for unknown kinds and settings, [`StrategyError::NoSpace`] for a search without a space.
pub fn build(config: &StrategyConfig, setup: Setup) -> Result<Box<dyn Strategy>, StrategyError> {
    let kind = kind(&config.kind)?;
    let mut settings = Settings::new(&config.settings);
    let keep = [Keep::Better, Keep::NotWorse][settings.choice("keep", &["better", "not_worse"])?];
    let greedy = match kind {
        "greedy-soup" => true,
        "uniform-soup" => false,
        _ => setup.sources <= GREEDY_SOUP_SOURCES,
    };
    let plan = Plan { has_base: setup.has_base, sources: setup.sources, greedy, keep };
    let landscape = || setup.landscape.clone().ok_or_else(|| StrategyError::NoSpace { kind: kind.to_owned() });
    let inner: Option<Box<dyn Strategy>> = match kind {
        "random" => Some(Box::new(Sampling::new(Source::Uniform, setup.seed, landscape()?))),
        "sobol" => Some(Box::new(Sampling::new(Source::Sobol, setup.seed, landscape()?))),
        "genetic" => {
            let parameters = genetic::Parameters::read(&mut settings)?;
            Some(Box::new(Genetic::new(parameters, landscape()?, &setup)))
        }
        _ => None,
    };
    settings.finish(kind)?;
    Ok(Box::new(Checked::new(Box::new(Baselines::new(kind, plan, inner)))))
}

fn kind(name: &str) -> Result<&'static str, StrategyError> {
    if let Some(kind) = KINDS.iter().find(|kind| **kind == name) {
        return Ok(kind);
    }
    let near = closest(name, &KINDS).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    Err(refuse("kind", format!("there is no strategy `{name}`{near} (there are {})", KINDS.join(", "))))
}
