//! What a strategy with points of its own keeps: the archive, the baselines that are points of the space, and the proposal
//! that waits for its placement.

use std::sync::Arc;

use super::archive::{Archive, Fitness, Point};
use super::composite::{self, Contributions};
use super::contract::objective;
use super::{Ask, Content, Landscape, Outcome, Placement, Proposal, Setup, Status, StrategyError};
use crate::score::ObjectiveTask;
use crate::space::Genome;

/// Archive, baselines and the open proposal of one strategy.
pub(super) struct History {
    archive: Archive,
    /// Baselines that are points of the space: place in the archive.
    baselines: Vec<(Content, usize)>,
    /// Points like a baseline, to be proposed early.
    likenesses: Vec<Genome>,
    open: Option<usize>,
    tasks: Vec<ObjectiveTask>,
}

impl History {
    pub(super) fn new(landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        let mut history = Self {
            archive: Archive::new(landscape),
            baselines: Vec::new(),
            likenesses: Vec::new(),
            open: None,
            tasks: setup.objective.clone(),
        };
        for seed in &setup.seeds {
            if seed.exact {
                let point = history.archive.add(seed.genome.clone(), 0);
                history.baselines.push((seed.content.clone(), point));
            } else {
                history.likenesses.push(seed.genome.clone());
            }
        }
        history
    }

    pub(super) fn landscape(&self) -> &dyn Landscape {
        self.archive.landscape()
    }

    pub(super) fn points(&self) -> &[Point] {
        self.archive.points()
    }

    /// Parts of the objective.
    pub(super) fn parts(&self) -> usize {
        composite::parts(&self.tasks)
    }

    /// What the parts of the objective contributed to a point, where that is known.
    pub(super) fn contributions(&self, point: usize) -> Option<&Contributions> {
        self.archive.contributions(point)
    }

    /// Points like a baseline that a search should start with.
    pub(super) fn likenesses(&self) -> &[Genome] {
        &self.likenesses
    }

    /// Whether no point that means the same was proposed or is known.
    pub(super) fn is_new(&self, genome: &[f64]) -> bool {
        !self.archive.contains(&self.archive.effective(&Genome(genome.to_vec())))
    }

    /// Takes a new point in and proposes it; `parents` are places among [`Self::points`].
    pub(super) fn propose(&mut self, genome: Vec<f64>, origin: &str, parents: &[usize], generation: u32) -> Ask {
        let genome = Genome(genome);
        let parents = parents.iter().filter_map(|parent| self.archive.points()[*parent].index).collect();
        self.open = Some(self.archive.add(genome.clone(), generation));
        Ask::Proposal(Box::new(Proposal {
            content: Content::Genome(genome),
            origin: origin.to_owned(),
            parents,
            generation,
            fidelity: 1.0,
            replicate: 0,
        }))
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

    /// Takes the outcome of a baseline, or of another strategy's proposal that was watched.
    pub(super) fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<Vec<usize>, StrategyError> {
        match self.baselines.iter().find(|(known, _)| known == content) {
            Some((_, point)) => self.archive.assign(*point, outcome.index),
            None => {
                if let Some(seed) = self.landscape().encode(content).filter(|seed| seed.exact) {
                    let point = self.archive.add(seed.genome, 0);
                    self.baselines.push((content.clone(), point));
                    self.archive.assign(point, outcome.index);
                }
            }
        }
        self.tell(outcome)
    }

    /// Places of the points whose outcome is known, best first; of equals the first.
    pub(super) fn ranked(&self) -> Vec<usize> {
        let rank = |place: &usize| self.points()[*place].fitness.rank();
        let mut known: Vec<usize> = (0..self.points().len()).filter(|place| rank(place).is_some()).collect();
        known.sort_by(|a, b| rank(b).partial_cmp(&rank(a)).unwrap_or(std::cmp::Ordering::Equal));
        known
    }
}

/// An outcome as fitness.
pub(super) fn fitness(outcome: &Outcome) -> Result<Fitness, StrategyError> {
    Ok(match (outcome.status, objective(outcome)?) {
        (Status::Scored, Some(score)) => Fitness::Scored(score),
        (Status::Infeasible, _) => Fitness::Infeasible,
        _ => Fitness::Failed,
    })
}
