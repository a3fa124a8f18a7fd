//! How children come from the population.

use rand::{Rng, RngExt};

use super::super::archive::Point;
use super::super::space_filling;
use super::child::{Child, Operator};
use super::niching::Niches;
use super::switches::Switches;
use super::tied_genes::TiedGenes;
use super::{Parameters, crossover, mutation, selection};
use crate::space::Gene;

/// One mutant in this many is made by polynomial mutation, the others by Gaussian mutation.
const POLYNOMIAL_ONE_IN: u32 = 4;
/// One mutant in this many has a source turned off or on, where the space has switches.
const SWITCH_ONE_IN: u32 = 8;

/// The population, and how it breeds.
pub(super) struct Breeder<'a> {
    pub(super) genes: &'a [Gene],
    pub(super) tied_genes: &'a TiedGenes,
    pub(super) switches: &'a Switches,
    pub(super) points: &'a [Point],
    /// Places of the members among the points, best first.
    pub(super) members: &'a [usize],
    /// Who breeds with whom; `None`: tournaments decide.
    pub(super) niches: Option<&'a Niches>,
    pub(super) parameters: &'a Parameters,
    /// Standard deviation of Gaussian mutation.
    pub(super) step: f64,
}

impl Breeder<'_> {
    /// One child of the population, which has a member at least.
    pub(super) fn child(&self, rng: &mut impl Rng) -> Child {
        let place = match self.niches {
            Some(niches) => niches.first(rng),
            None => self.tournament(rng),
        };
        let first = self.members[place];
        if self.members.len() > 1 && rng.random::<f64>() < self.parameters.crossover {
            let second = self.mate(place, rng);
            self.cross(first, second, rng)
        } else {
            self.mutant(first, rng)
        }
    }

    /// A uniform point.
    pub(super) fn immigrant(&self, rng: &mut impl Rng) -> Child {
        Child::orphan(space_filling::uniform(rng, self.genes.len()), Operator::Immigration)
    }

    /// Gaussian mutation of single genes, or of ties as a whole.
    pub(super) fn step_from(&self, genome: &mut [f64], step: f64, rng: &mut impl Rng) {
        if self.tied_genes.bind() && rng.random::<bool>() {
            let rate = (4.0 / self.tied_genes.count() as f64).clamp(0.2, 1.0);
            mutation::shift(self.genes, self.tied_genes.of(), genome, rate, step, rng);
        } else {
            let rate = (8.0 / self.genes.len() as f64).clamp(0.2, 1.0);
            mutation::gaussian(self.genes, genome, rate, step, rng);
        }
    }

    fn tournament(&self, rng: &mut impl Rng) -> usize {
        selection::tournament(self.members.len(), self.parameters.tournament, rng)
    }

    /// The second parent, for the member at this place; the same one again only by chance.
    fn mate(&self, place: usize, rng: &mut impl Rng) -> usize {
        let mate = match self.niches {
            Some(niches) => niches.mate(place, rng),
            None => self.tournament(rng),
        };
        if self.members[mate] == self.members[place] {
            self.members[rng.random_range(0..self.members.len())]
        } else {
            self.members[mate]
        }
    }

    /// A child of two parents, mutated.
    fn cross(&self, first: usize, second: usize, rng: &mut impl Rng) -> Child {
        let (a, b) = (&self.points[first].genome.0, &self.points[second].genome.0);
        let exchanges = rng.random::<f64>() < self.parameters.exchange;
        let exchanged = if exchanges { crossover::exchange(self.genes, a, b, rng) } else { None };
        let (mut genome, operator) = match exchanged {
            Some(genome) => (genome, Operator::GroupExchange),
            None => {
                let genome = crossover::simulated_binary(self.genes, a, b, self.parameters.crossover_eta, rng);
                (genome, Operator::SimulatedBinary)
            }
        };
        mutation::polynomial(self.genes, &mut genome, self.rate(), self.parameters.mutation_eta, rng);
        Child::bred(genome, operator, vec![first, second])
    }

    /// A child of one parent.
    fn mutant(&self, parent: usize, rng: &mut impl Rng) -> Child {
        let mut genome = self.points[parent].genome.0.clone();
        if self.switches.exist() && rng.random_range(0..SWITCH_ONE_IN) == 0 {
            let donor = self.members[rng.random_range(0..self.members.len())];
            self.switches.flip(&mut genome, &self.points[donor].genome.0, rng);
            return Child::bred(genome, Operator::Switch, vec![parent]);
        }
        let operator = if rng.random_range(0..POLYNOMIAL_ONE_IN) == 0 {
            let rate = self.rate().max(1.0 / self.genes.len() as f64);
            mutation::polynomial(self.genes, &mut genome, rate, self.parameters.mutation_eta, rng);
            Operator::Polynomial
        } else {
            self.step_from(&mut genome, self.step, rng);
            Operator::Gaussian
        };
        Child::bred(genome, operator, vec![parent])
    }

    /// Share of the genes that polynomial mutation changes.
    fn rate(&self) -> f64 {
        (self.parameters.mutation / self.genes.len() as f64).min(1.0)
    }
}
