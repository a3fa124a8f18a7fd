//! The settings of the genetic algorithm, with their defaults (docs/strategies.md).

use std::num::NonZeroUsize;

use super::super::StrategyError;
use super::super::settings::Settings;

/// When a search starts anew elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restarts {
    /// Not by itself.
    Never,
    /// After a number of outcomes without a new best that follows from the number of genes.
    ByGenes,
    /// After so many outcomes without a new best.
    After(NonZeroUsize),
}

impl Restarts {
    /// Whether a search of so many genes restarts, which has had `stagnant` outcomes without a new best.
    pub(super) fn is_due(self, stagnant: usize, genes: usize) -> bool {
        match self {
            Self::Never => false,
            Self::ByGenes => stagnant >= 20 * genes.clamp(10, 50),
            Self::After(patience) => stagnant >= patience.get(),
        }
    }
}

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
    /// When the search restarts elsewhere.
    pub(super) restarts: Restarts,
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
            restarts: Restarts::ByGenes,
        }
    }
}

impl Parameters {
    /// Outcomes without a new best before a restart, where that is set.
    pub(in crate::strategy) fn patience(&self) -> Option<usize> {
        match self.restarts {
            Restarts::Never | Restarts::ByGenes => None,
            Restarts::After(patience) => Some(patience.get()),
        }
    }

    /// These parameters for a search that does not restart by itself, because somebody else restarts it.
    pub(in crate::strategy) fn without_restarts(self) -> Self {
        Self { restarts: Restarts::Never, ..self }
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
            restarts: NonZeroUsize::new(settings.whole("patience", 0, 0..=1_000_000)?)
                .map_or(Restarts::ByGenes, Restarts::After),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_come_after_the_patience_that_is_set_or_follows_from_the_genes() {
        let read = |text: &str| {
            let table: toml::Table = text.parse().unwrap();
            Parameters::read(&mut Settings::new(&table)).unwrap()
        };
        let due = |restarts: Restarts, genes| [199, 200, 999, 1_000].map(|stagnant| restarts.is_due(stagnant, genes));
        let by_genes = read("");
        assert_eq!((by_genes.patience(), due(by_genes.restarts, 2)), (None, [false, true, true, true]));
        assert_eq!(due(by_genes.restarts, 500), [false, false, false, true]);
        let after = read("patience = 999");
        assert_eq!((after.patience(), due(after.restarts, 2)), (Some(999), [false, false, true, true]));
        let never = after.without_restarts();
        assert_eq!((never.patience(), due(never.restarts, 2)), (None, [false; 4]));
        assert!(!never.restarts.is_due(usize::MAX, 2));
    }
}
