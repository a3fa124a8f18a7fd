//! The names that a run file may choose from: strategies and test functions.

use std::fmt;

/// `[strategy] kind`: what proposes candidates (docs/strategies.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StrategyKind {
    /// The genetic algorithm, a local search, TPE and CMA-ES on one history, with restarts.
    #[default]
    Portfolio,
    /// A steady-state genetic algorithm whose children are ranked by a model of the history.
    Genetic,
    /// Covariance matrix adaptation with restarts of growing population.
    CmaEs,
    /// The tree-structured Parzen estimator.
    Tpe,
    /// NSGA-II: a front of merges, with tasks or groups of samples as objectives.
    Nsga2,
    /// Uniform points.
    Random,
    /// An Owen-scrambled Sobol sequence.
    Sobol,
    /// The baselines with the greedy soup, however many sources there are.
    GreedySoup,
    /// The baselines without the greedy soup.
    UniformSoup,
}

impl StrategyKind {
    /// Every kind, in the order in which messages list them.
    pub const ALL: [Self; 9] = [
        Self::Portfolio,
        Self::Genetic,
        Self::CmaEs,
        Self::Tpe,
        Self::Nsga2,
        Self::Random,
        Self::Sobol,
        Self::GreedySoup,
        Self::UniformSoup,
    ];

    /// The name in run files and ledgers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portfolio => "portfolio",
            Self::Genetic => "genetic",
            Self::CmaEs => "cma-es",
            Self::Tpe => "tpe",
            Self::Nsga2 => "nsga2",
            Self::Random => "random",
            Self::Sobol => "sobol",
            Self::GreedySoup => "greedy-soup",
            Self::UniformSoup => "uniform-soup",
        }
    }

    /// The kind that run files call so.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether it only averages sources, so that it needs no search space.
    pub const fn is_soup(self) -> bool {
        matches!(self, Self::GreedySoup | Self::UniformSoup)
    }
}

impl fmt::Display for StrategyKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// `name` of the `function` evaluator: the shape of a closed-form landscape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestFunction {
    /// One bowl.
    Sphere,
    /// A bowl full of small bowls.
    Rastrigin,
    /// A curved valley.
    Rosenbrock,
    /// A plain with dents and one deep hole.
    Ackley,
    /// A bowl cut off above and below: saturated near the optimum, without a slope far from it.
    Plateau,
    /// A plain: every point has the same value.
    Flat,
}

impl TestFunction {
    /// Every function, in the order in which messages list them.
    pub const ALL: [Self; 6] =
        [Self::Sphere, Self::Rastrigin, Self::Rosenbrock, Self::Ackley, Self::Plateau, Self::Flat];

    /// The name in run files and fingerprints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sphere => "sphere",
            Self::Rastrigin => "rastrigin",
            Self::Rosenbrock => "rosenbrock",
            Self::Ackley => "ackley",
            Self::Plateau => "plateau",
            Self::Flat => "flat",
        }
    }
}

impl fmt::Display for TestFunction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_is_of_one_kind() {
        assert_eq!(StrategyKind::ALL.map(StrategyKind::name).iter().collect::<BTreeSet<_>>().len(), 9);
        assert_eq!(TestFunction::ALL.map(TestFunction::name).iter().collect::<BTreeSet<_>>().len(), 6);
    }
}
