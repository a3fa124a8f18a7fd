//! The settings of the genetic algorithm, with their defaults (docs/strategies.md).

use super::super::StrategyError;
use super::super::settings::Settings;

/// `[strategy]` of kind `genetic`.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::strategy) struct Parameters {
    /// Points alive.
    pub(super) population: usize,
    /// Members a tournament draws.
    pub(super) tournament: usize,
    /// Share of children with two parents.
    pub(super) crossover: f64,
    /// Share of those that exchange whole parts instead of simulated binary crossover.
    pub(super) exchange: f64,
    /// Genes that a mutation changes, on average.
    pub(super) mutation: f64,
    /// Distribution index of simulated binary crossover.
    pub(super) crossover_eta: f64,
    /// Distribution index of polynomial mutation.
    pub(super) mutation_eta: f64,
    /// First step size of Gaussian mutation.
    pub(super) step: f64,
    /// Points of the initial design; `None`: by genes and budget.
    pub(super) initial: Option<usize>,
    /// Whether a model of the history ranks the children.
    pub(super) surrogate: bool,
    /// Children bred for one that is proposed, with a model.
    pub(super) brood: usize,
    /// Whether parents are chosen by what they solve that others do not.
    pub(super) niching: bool,
    /// Outcomes without a new best before the search restarts elsewhere; `None`: by genes.
    pub(super) patience: Option<usize>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            population: 20,
            tournament: 3,
            crossover: 0.6,
            exchange: 0.3,
            mutation: 1.5,
            crossover_eta: 10.0,
            mutation_eta: 20.0,
            step: 0.15,
            initial: None,
            surrogate: true,
            brood: 200,
            niching: false,
            patience: None,
        }
    }
}

impl Parameters {
    /// Outcomes without a new best before a restart, where that is set.
    pub(in crate::strategy) fn patience(&self) -> Option<usize> {
        self.patience
    }

    /// These parameters for a search that does not restart by itself, because somebody else restarts it.
    pub(in crate::strategy) fn without_restarts(self) -> Self {
        Self { patience: Some(usize::MAX), ..self }
    }

    pub(in crate::strategy) fn read(settings: &mut Settings<'_>) -> Result<Self, StrategyError> {
        let default = Self::default();
        let optional = |value: usize| (value > 0).then_some(value);
        Ok(Self {
            population: settings.whole("population", default.population, 4..=10_000)?,
            tournament: settings.whole("tournament", default.tournament, 1..=100)?,
            crossover: settings.number("crossover", default.crossover, 0.0..=1.0)?,
            exchange: settings.number("exchange", default.exchange, 0.0..=1.0)?,
            mutation: settings.number("mutation", default.mutation, 0.0..=1_000.0)?,
            crossover_eta: settings.number("crossover_eta", default.crossover_eta, 0.0..=1_000.0)?,
            mutation_eta: settings.number("mutation_eta", default.mutation_eta, 0.0..=1_000.0)?,
            step: settings.number("step", default.step, 0.001..=1.0)?,
            initial: optional(settings.whole("initial", 0, 0..=10_000)?),
            surrogate: settings.truth("surrogate", default.surrogate)?,
            brood: settings.whole("brood", default.brood, 1..=10_000)?,
            niching: settings.truth("niching", default.niching)?,
            patience: optional(settings.whole("patience", 0, 0..=1_000_000)?),
        })
    }
}
