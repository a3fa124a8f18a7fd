//! Children on their way to become proposals, and where they come from.

/// What made a genome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    /// Nothing: where Model Stock sees the best merge.
    ModelStock,
    /// Nothing: the genes' initial values.
    Init,
    /// A space-filling point of the first design.
    Design,
    /// A space-filling point of the design after a restart.
    Restart,
    /// A uniform point.
    Immigration,
    /// Exchange of whole parts between two parents.
    GroupExchange,
    /// Simulated binary crossover of two parents.
    SimulatedBinary,
    /// Polynomial mutation of one parent.
    Polynomial,
    /// Gaussian mutation of one parent.
    Gaussian,
    /// A source of one parent turned off, or on.
    Switch,
}

impl Operator {
    /// The name in the origin of a proposal.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ModelStock => "model_stock",
            Self::Init => "init",
            Self::Design => "sobol",
            Self::Restart => "restart",
            Self::Immigration => "random",
            Self::GroupExchange => "group_exchange",
            Self::SimulatedBinary => "sbx",
            Self::Polynomial => "polynomial",
            Self::Gaussian => "gaussian",
            Self::Switch => "switch",
        }
    }
}

/// A genome on its way to become a proposal.
#[derive(Clone, Debug)]
pub(super) struct Child {
    pub(super) genome: Vec<f64>,
    pub(super) operator: Operator,
    /// Places in the archive.
    pub(super) parents: Vec<usize>,
    /// Whether Gaussian steps followed that only the model judged.
    pub(super) refined: bool,
}

impl Child {
    /// A point of its own.
    pub(super) fn orphan(genome: Vec<f64>, operator: Operator) -> Self {
        Self::bred(genome, operator, Vec::new())
    }

    pub(super) fn bred(genome: Vec<f64>, operator: Operator, parents: Vec<usize>) -> Self {
        Self { genome, operator, parents, refined: false }
    }

    /// The origin of its proposal: every operator that it went through, Gaussian mutation once.
    pub(super) fn origin(&self) -> String {
        let steps = if self.refined && self.operator != Operator::Gaussian { "+gaussian" } else { "" };
        format!("{}{steps}", self.operator.name())
    }

    /// The parent that it is to be compared with, to learn whether Gaussian steps have the right size. Children that
    /// another operator took away from their parents first tell nothing of it.
    pub(super) fn gaussian_parent(&self) -> Option<usize> {
        self.parents.first().copied().filter(|_| self.operator == Operator::Gaussian)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_tell_of_steps_on_the_model() {
        let origin = |operator, refined| Child { refined, ..Child::bred(vec![0.5], operator, vec![3]) }.origin();
        assert_eq!(origin(Operator::SimulatedBinary, false), "sbx");
        assert_eq!(origin(Operator::SimulatedBinary, true), "sbx+gaussian");
        assert_eq!(origin(Operator::Gaussian, true), "gaussian");
    }

    #[test]
    fn only_gaussian_mutation_of_a_parent_tells_of_step_sizes() {
        let parent = |operator| Child { refined: true, ..Child::bred(vec![0.5], operator, vec![3]) }.gaussian_parent();
        assert_eq!((parent(Operator::Gaussian), parent(Operator::Polynomial)), (Some(3), None));
    }
}
