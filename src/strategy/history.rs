//! What a strategy with points of its own keeps: the archive, the baselines that are points of the space, and the
//! proposal that waits for its placement.

use std::sync::Arc;

use super::archive::{Archive, Fitness, Point};
use super::composite::{self, Contributions};
use super::contract::objective;
use super::{Ask, Content, Landscape, Outcome, Placement, Proposal, SeedGenome, Setup, StrategyError};
use crate::score::{ObjectiveTask, best_first};
use crate::scores::Status;
use crate::space::Genome;

/// Archive, baselines and the open proposal of one strategy.
pub(super) struct History {
    archive: Archive,
    /// Baselines that are points of the space: place in the archive.
    baselines: Vec<(Content, usize)>,
    open: Option<usize>,
    tasks: Vec<ObjectiveTask>,
}

impl History {
    pub(super) fn new(landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        let mut history = Self {
            archive: Archive::new(landscape),
            baselines: Vec::new(),
            open: None,
            tasks: setup.objective.clone(),
        };
        for seed in &setup.seeds {
            history.take_seed(seed.clone());
        }
        history
    }

    /// Takes in a baseline that is a point of the space.
    fn take_seed(&mut self, seed: SeedGenome) {
        let point = self.archive.add(seed.genome, 0);
        self.baselines.push((seed.content, point));
    }

    pub(super) fn archive(&self) -> &Archive {
        &self.archive
    }

    pub(super) fn landscape(&self) -> &dyn Landscape {
        self.archive.landscape()
    }

    pub(super) fn points(&self) -> &[Point] {
        self.archive.points()
    }

    /// The tasks of the objective.
    pub(super) fn tasks(&self) -> &[ObjectiveTask] {
        &self.tasks
    }

    /// Parts of the objective.
    pub(super) fn parts(&self) -> usize {
        composite::parts(&self.tasks)
    }

    /// What the parts of the objective contributed to a point, where that is known.
    pub(super) fn contributions(&self, point: usize) -> Option<&Contributions> {
        self.archive.contributions(point)
    }

    /// The genome with everything that makes no difference taken out.
    pub(super) fn effective(&self, genome: &[f64]) -> Vec<f64> {
        self.archive.effective(&Genome(genome.to_vec()))
    }

    /// [`Self::effective`] of the genome; `None` where a point that means the same was proposed or is known.
    pub(super) fn new_effective(&self, genome: &[f64]) -> Option<Vec<f64>> {
        Some(self.effective(genome)).filter(|effective| !self.archive.contains(effective))
    }

    /// Whether no point that means the same was proposed or is known.
    pub(super) fn is_new(&self, genome: &[f64]) -> bool {
        self.new_effective(genome).is_some()
    }

    /// Takes a new point in and proposes it; `parents` are places among [`Self::points`].
    pub(super) fn propose(&mut self, genome: Vec<f64>, origin: &str, parents: &[usize], generation: u32) -> Ask {
        let genome = Genome(genome);
        let parents = parents.iter().filter_map(|parent| self.archive.points()[*parent].index).collect();
        self.open = Some(self.archive.add(genome.clone(), generation));
        Ask::Proposal(Box::new(Proposal { parents, generation, ..Proposal::new(Content::Genome(genome), origin) }))
    }

    /// Ties the proposal to its evaluation; its place among [`Self::points`].
    pub(super) fn place(&mut self, placement: Placement) -> Option<usize> {
        let point = self.open.take()?;
        self.archive.place(point, placement);
        Some(point)
    }

    /// A proposal of another strategy: a point like any other.
    pub(super) fn watch(&mut self, genome: &Genome, placement: Placement) {
        if self.is_new(&genome.0) {
            let point = self.archive.add(genome.clone(), 0);
            self.archive.place(point, placement);
        }
    }

    /// Takes an outcome; the places of the points that it belongs to.
    pub(super) fn tell(&mut self, outcome: &Outcome) -> Result<Vec<usize>, StrategyError> {
        let fitness = fitness(outcome)?;
        if let Some(contributions) = composite::contributions(&self.tasks, outcome) {
            self.archive.note(outcome.index, contributions);
        }
        Ok(self.archive.tell(outcome.index, fitness))
    }

    /// Takes the outcome of a baseline, or of another strategy's proposal that was watched. A baseline that was not
    /// foreseen becomes a point where the space has one for it.
    pub(super) fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<Vec<usize>, StrategyError> {
        if !self.is_baseline(content)
            && let Some(seed) = self.landscape().encode(content)
        {
            self.take_seed(seed);
        }
        self.learn_foreseen(content, outcome)
    }

    /// [`Self::learn`], but a baseline that was not foreseen does not become a point.
    pub(super) fn learn_foreseen(&mut self, content: &Content, outcome: &Outcome) -> Result<Vec<usize>, StrategyError> {
        for (_, point) in self.baselines.iter().filter(|(known, _)| known == content) {
            self.archive.assign(*point, outcome.index);
        }
        self.tell(outcome)
    }

    fn is_baseline(&self, content: &Content) -> bool {
        self.baselines.iter().any(|(known, _)| known == content)
    }

    /// Places of the points whose outcome is known, best first; of equals the first.
    pub(super) fn ranked(&self) -> Vec<usize> {
        let rank = |place: &usize| self.points()[*place].fitness.rank();
        let mut known: Vec<usize> = (0..self.points().len()).filter(|place| rank(place).is_some()).collect();
        known.sort_by(|a, b| best_first(rank(a), rank(b)));
        known
    }
}

/// An outcome as fitness.
fn fitness(outcome: &Outcome) -> Result<Fitness, StrategyError> {
    Ok(match (outcome.status, objective(outcome)?) {
        (Status::Scored, Some(score)) => Fitness::Scored(score),
        (Status::Infeasible, _) => Fitness::Infeasible,
        _ => Fitness::Failed,
    })
}
