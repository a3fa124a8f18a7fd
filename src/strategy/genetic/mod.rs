//! The genetic algorithm: real-coded, steady-state, asynchronous.
//!
//! There are no generations to wait for. Every proposal is bred from the best points known at that moment: the
//! baselines and an initial design first, then children by simulated binary crossover, exchange of whole parts and
//! mutation. Evaluations are dear and arithmetic is cheap, so a model of the history ([`model`]) ranks a large brood,
//! and some generations bred from it, for every child that is proposed.

mod breeding;
mod child;
pub(super) mod crossover;
mod model;
pub(super) mod mutation;
mod niching;
mod parameters;
mod population;
mod selection;
mod switches;
pub(super) mod tied_genes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rand::Rng;

use breeding::Breeder;
use child::{Child, Operator};
use model::Model;
use niching::{Niches, SampleScores};
pub(super) use parameters::Parameters;
use switches::Switches;
use tied_genes::TiedGenes;

use super::archive::Fitness;
use super::history::History;
use super::{Ask, Content, Landscape, MAX_DRAWS, Outcome, Placement, Setup, Strategy, StrategyError, space_filling};
use crate::random;
use crate::space::{Gene, GeneKind, Genome};

/// Children of a brood whose uncertainty is worked out, after a ranking by expected value.
const SHORT_LIST: usize = 24;
/// Uniform points that compete with a brood.
const SCOUTS: usize = 100;
/// Uniform points whose uncertainty is worked out, after a ranking by expected value.
const SCOUT_LIST: usize = 12;
/// Proposals that uniform points may compete for without end, and one in how many later ones. The model knows least of
/// what is far away, so that later on these would win again and again, and hardly ever improve.
const SCOUTING: (u64, u64) = (40, 10);
/// Generations bred on the model alone.
const ROUNDS: usize = 3;
/// Factor of the size of the Gaussian steps from one generation on the model to the next.
const ROUND_STEP: f64 = 0.6;
/// Parents of a generation on the model.
const FOUNDERS: usize = 4;
/// Children of each parent in a generation on the model.
const LITTER: usize = 8;
/// Duplicates in a row after which the search looks further afield.
const FEW_DUPLICATES: usize = 16;
/// Distance from the initial values that points of the design with ties keep.
const NEARER: f64 = 0.6;
/// Most points of the initial design.
const DESIGN: usize = 10;

/// What was bred by Gaussian mutation, to adapt the step size by.
#[derive(Clone, Copy, Debug)]
struct Step {
    point: usize,
    parent: usize,
}

/// The genetic algorithm.
pub(super) struct Genetic {
    parameters: Parameters,
    seed: u64,
    history: History,
    /// The initial design that is still to be proposed.
    design: VecDeque<Child>,
    /// Proposals so far.
    asked: u64,
    steps: Vec<Step>,
    step: f64,
    /// Outcomes since the best since the last restart improved.
    stagnant: usize,
    best: f64,
    /// First point of the archive since the last restart.
    since: usize,
    restarts: u64,
    /// Proposals in a row that were known candidates under another genome.
    duplicates: usize,
    model: Model,
    tied_genes: TiedGenes,
    switches: Switches,
    /// Sample scores of evaluations, with niching.
    samples: BTreeMap<u64, SampleScores>,
}

impl Genetic {
    pub(super) fn new(parameters: Parameters, landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        let step = parameters.step;
        let tied_genes = TiedGenes::new(landscape.genes());
        let history = History::new(landscape, setup);
        let mut genetic = Self {
            model: Model::new(history.landscape().genes(), &tied_genes, history.parts()),
            tied_genes,
            switches: Switches::new(history.landscape().genes()),
            parameters,
            seed: setup.seed,
            history,
            design: VecDeque::new(),
            asked: 0,
            steps: Vec::new(),
            step,
            stagnant: 0,
            best: f64::NEG_INFINITY,
            since: 0,
            restarts: 0,
            duplicates: 0,
            samples: BTreeMap::new(),
        };
        let model_stock = setup.model_stock.iter();
        genetic.design.extend(model_stock.map(|genome| Child::orphan(genome.0.clone(), Operator::ModelStock)));
        genetic.plan_design(setup.evaluations);
        genetic
    }

    fn dimensions(&self) -> usize {
        self.history.landscape().genes().len()
    }

    /// The start of the genes, then space-filling points.
    fn plan_design(&mut self, evaluations: Option<u64>) {
        let init = self.history.landscape().genes().iter().map(|gene| gene.init).collect();
        self.design.push_back(Child::orphan(init, Operator::Init));
        let affordable = evaluations.map_or(usize::MAX, |budget| (budget / 10) as usize);
        let points =
            self.parameters.initial.unwrap_or_else(|| (self.tied_genes.count() + 2).clamp(6, DESIGN).min(affordable));
        self.plan_points(points, Operator::Design);
    }

    /// Space-filling points; where genes are tied, all but every third keep the ties, those of the first design nearer
    /// to the initial values.
    fn plan_points(&mut self, points: usize, operator: Operator) {
        let first = self.restarts << 20;
        for index in 0..points {
            let number = first | index as u64;
            let genome = if self.tied_genes.bind() && index % 3 < 2 {
                let point = self.tied_genes.spread(&space_filling::sobol(self.seed, number, self.tied_genes.count()));
                if operator == Operator::Design { self.towards_init(point) } else { point }
            } else {
                space_filling::sobol(self.seed, number, self.dimensions())
            };
            self.design.push_back(Child::orphan(genome, operator));
        }
    }

    /// Nearer to where a search without better knowledge starts.
    fn towards_init(&self, point: Vec<f64>) -> Vec<f64> {
        let genes = self.history.landscape().genes();
        let nearer = |(gene, value): (&Gene, f64)| match gene.kind {
            GeneKind::Real { .. } => gene.init + NEARER * (value - gene.init),
            _ => value,
        };
        genes.iter().zip(point).map(nearer).collect()
    }

    /// The members of the population, best first.
    fn population(&self) -> Vec<usize> {
        let points = self.history.points();
        let mut members = population::best(points, self.since..points.len(), self.parameters.population);
        if members.is_empty() {
            members = population::best(points, 0..points.len(), self.parameters.population);
        }
        members
    }

    /// How these members breed.
    fn breeder<'a>(&'a self, members: &'a [usize], niches: Option<&'a Niches>) -> Breeder<'a> {
        Breeder {
            genes: self.history.landscape().genes(),
            tied_genes: &self.tied_genes,
            switches: &self.switches,
            points: self.history.points(),
            members,
            niches,
            parameters: &self.parameters,
            step: self.step,
        }
    }

    /// Who breeds with whom, where niching is on and every member's sample scores are known.
    fn niches(&self, members: &[usize]) -> Option<Niches> {
        let points = self.history.points();
        let scores = members.iter().map(|place| self.samples.get(&points[*place].index?));
        Niches::new(&niching::shared_scores(&scores.collect::<Option<Vec<&SampleScores>>>()?))
    }

    /// The best `keep` of `count` new points by the model's first guess.
    fn short_list(
        &self,
        count: usize,
        keep: usize,
        rater: &model::Rater<'_>,
        mut make: impl FnMut() -> Child,
    ) -> Vec<(f64, Child)> {
        let mut list: Vec<(f64, Child)> = Vec::with_capacity(count);
        for _ in 0..count {
            let child = make();
            if let Some(effective) = self.history.new_effective(&child.genome) {
                list.push((rater.sketch(&effective), child));
            }
        }
        list.sort_by(|a, b| b.0.total_cmp(&a.0));
        list.truncate(keep);
        list
    }

    /// The next child that was never proposed.
    fn next_child(&mut self, rng: &mut impl Rng) -> Option<Child> {
        while let Some(child) = self.design.pop_front() {
            if self.history.is_new(&child.genome) {
                return Some(child);
            }
        }
        let members = self.population();
        let niches = self.niches(&members);
        if let Some(child) = self.ranked_child(&members, niches.as_ref(), rng) {
            return Some(child);
        }
        let breeder = self.breeder(&members, niches.as_ref());
        for attempt in 0..MAX_DRAWS {
            let is_immigrant = members.is_empty() || attempt > MAX_DRAWS / 4;
            let child = if is_immigrant { breeder.immigrant(rng) } else { breeder.child(rng) };
            if self.history.is_new(&child.genome) {
                return Some(child);
            }
        }
        None
    }

    /// Whether uniform points compete with a brood, which lives where its parents do: the model may know better places.
    /// In a space with ties there are too many.
    fn scouts(&self) -> bool {
        let (early, later) = SCOUTING;
        !self.tied_genes.bind() && (self.asked < early || self.asked.is_multiple_of(later))
    }

    /// The child of a brood that the model likes best.
    fn ranked_child(&mut self, members: &[usize], niches: Option<&Niches>, rng: &mut impl Rng) -> Option<Child> {
        if !self.parameters.surrogate || members.is_empty() || self.duplicates > FEW_DUPLICATES {
            return None;
        }
        let surrogate = self.model.surrogate(&self.tied_genes, self.history.archive())?;
        let rater = model::Rater { surrogate: &surrogate, tied_genes: &self.tied_genes };
        let breeder = self.breeder(members, niches);
        let mut brood = self.short_list(self.parameters.brood, SHORT_LIST, &rater, || breeder.child(rng));
        if self.scouts() {
            brood.extend(self.short_list(SCOUTS, SCOUT_LIST, &rater, || breeder.immigrant(rng)));
        }
        for (value, child) in &mut brood {
            *value = rater.rate(&self.history.effective(&child.genome));
        }
        self.refine(brood, &rater, &breeder, rng)
    }

    /// The best that some generations bred on the model alone make of a rated brood.
    fn refine(
        &self,
        mut brood: Vec<(f64, Child)>,
        rater: &model::Rater<'_>,
        breeder: &Breeder<'_>,
        rng: &mut impl Rng,
    ) -> Option<Child> {
        let better = |a: &(f64, Child), b: &(f64, Child)| b.0.total_cmp(&a.0);
        brood.sort_by(better);
        let mut step = self.step;
        for _ in 0..ROUNDS {
            brood.truncate(FOUNDERS);
            step *= ROUND_STEP;
            for founder in 0..brood.len() {
                for _ in 0..LITTER {
                    let mut child = Child { refined: true, ..brood[founder].1.clone() };
                    breeder.step_from(&mut child.genome, step, rng);
                    if let Some(effective) = self.history.new_effective(&child.genome) {
                        brood.push((rater.rate(&effective), child));
                    }
                }
            }
            brood.sort_by(better);
        }
        brood.into_iter().next().map(|(_, child)| child)
    }

    fn propose(&mut self, child: Child) -> Ask {
        let points = self.history.points();
        let generation = child.parents.iter().map(|parent| points[*parent].generation + 1).max().unwrap_or(0);
        if let Some(parent) = child.gaussian_parent() {
            // The history takes a proposal in behind all that it knows.
            self.steps.push(Step { point: points.len(), parent });
        }
        let origin = child.origin();
        self.history.propose(child.genome, &origin, &child.parents, generation)
    }

    /// Notes what each sample scored, for the niches.
    fn note_samples(&mut self, outcome: &Outcome) {
        if self.parameters.niching
            && let Some(scores) = SampleScores::of(self.history.tasks(), outcome)
        {
            self.samples.insert(outcome.index, scores);
        }
    }

    /// The one-fifth success rule (Rechenberg 1973) for Gaussian steps.
    fn adapt(&mut self, places: &[usize]) {
        let points = self.history.points();
        for step in self.steps.iter().filter(|step| places.contains(&step.point)) {
            let (Some(child), Some(parent)) = (points[step.point].fitness.rank(), points[step.parent].fitness.rank())
            else {
                continue;
            };
            let factor: f64 = if child > parent { 1.3 } else { 1.3f64.powf(-0.25) };
            self.step = (self.step * factor).clamp(0.01, 0.5);
        }
        self.forget_steps(places);
    }

    /// Drops the steps to points whose outcome is known: nobody tells it again.
    fn forget_steps(&mut self, places: &[usize]) {
        self.steps.retain(|step| !places.contains(&step.point));
    }

    /// Counts outcomes without progress and starts anew from elsewhere when there were too many.
    fn count_stagnation(&mut self, places: &[usize]) {
        let points = self.history.points();
        if !places.is_empty() && places.iter().all(|place| points[*place].fitness == Fitness::Failed) {
            return;
        }
        let news =
            places.iter().filter(|place| **place >= self.since).filter_map(|place| points[*place].fitness.rank());
        let best = news.fold(f64::NEG_INFINITY, f64::max);
        if best > self.best {
            self.best = best;
            self.stagnant = 0;
            return;
        }
        self.stagnant += 1;
        if self.parameters.restarts.is_due(self.stagnant, self.dimensions()) {
            self.restart();
        }
    }

    fn restart(&mut self) {
        self.restarts += 1;
        self.stagnant = 0;
        self.best = f64::NEG_INFINITY;
        self.step = self.parameters.step;
        self.since = self.history.points().len();
        self.plan_points((self.tied_genes.count() + 2).clamp(6, DESIGN), Operator::Restart);
    }
}

impl Strategy for Genetic {
    fn ask(&mut self) -> Result<Ask, StrategyError> {
        let mut rng = random::stream(self.seed, "genetic", self.asked);
        self.asked += 1;
        Ok(match self.next_child(&mut rng) {
            Some(child) => self.propose(child),
            None => Ask::exhausted(),
        })
    }

    fn place(&mut self, placement: Placement) {
        self.duplicates = if matches!(placement, Placement::Duplicate { .. }) { self.duplicates + 1 } else { 0 };
        let Some(point) = self.history.place(placement) else { return };
        if self.history.points()[point].fitness != Fitness::Pending {
            self.forget_steps(&[point]);
        }
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        let places = self.history.tell(outcome)?;
        self.note_samples(outcome);
        self.adapt(&places);
        self.count_stagnation(&places);
        Ok(())
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        let places = self.history.learn(content, outcome)?;
        self.forget_steps(&places);
        self.note_samples(outcome);
        if matches!(content, Content::Genome(_)) {
            self.count_stagnation(&places);
        }
        Ok(())
    }

    fn watch(&mut self, genome: &Genome, placement: Placement) {
        self.history.watch(genome, placement);
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{Answer, TestSpace, drive, outcome, real, setup};
    use super::super::settings::Settings;
    use super::*;

    /// Proposals from anywhere on a landscape of many peaks, among so many.
    fn scouts(space: TestSpace, evaluations: u64) -> usize {
        let setup = Setup { seeds: vec![], ..setup(space, 4) };
        let table = toml::Table::new();
        let parameters = Parameters::read(&mut Settings::new(&table)).unwrap();
        let mut genetic = Genetic::new(parameters, setup.landscape.clone().unwrap(), &setup);
        let oracle = |_: u64, content: &Content| match content {
            Content::Genome(genome) => Answer::Score(genome.0.iter().map(|x| (9.0 * x).sin()).sum()),
            _ => Answer::Infeasible,
        };
        let rows = drive(&mut genetic, &oracle, 2, evaluations).unwrap();
        rows.iter().filter(|row| row.proposal.origin.starts_with("random")).count()
    }

    #[test]
    fn points_from_anywhere_compete_where_no_genes_are_tied() {
        let untied = || TestSpace::new((0..6).map(|gene| real(&format!("x{gene}"))).collect());
        let early = scouts(untied(), 60);
        assert!(early > 0);
        assert_eq!(scouts(TestSpace::reals(6), 60), 0);
        // Later they are no more than one proposal in ten.
        assert!(scouts(untied(), 160) <= early + 10, "{early}, then {}", scouts(untied(), 160));
    }

    #[test]
    fn steps_are_kept_only_while_their_outcome_may_be_told() {
        let setup = Setup { seeds: vec![], ..setup(TestSpace::reals(2), 8) };
        let parameters = Parameters { surrogate: false, ..Parameters::default() };
        let mut search = Genetic::new(parameters, setup.landscape.clone().unwrap(), &setup);
        let mut stepped = 0;
        for index in 0..60_u64 {
            assert!(matches!(search.ask().unwrap(), Ask::Proposal(_)));
            stepped += search.steps.len();
            // Told already, learnt at once, or told.
            match index % 3 {
                0 if index > 20 => search.place(Placement::Duplicate { of: 0 }),
                1 if index > 20 => {
                    search.place(Placement::Duplicate { of: 1_000 + index });
                    search.learn(&Content::Base, &outcome(1_000 + index, Answer::Failed)).unwrap();
                }
                _ => {
                    search.place(Placement::Asked { index });
                    search.tell(&outcome(index, Answer::Score(index as f64))).unwrap();
                }
            }
            assert!(search.steps.is_empty(), "{index}: {:?}", search.steps);
        }
        assert!(stepped > 0, "the test needs Gaussian steps");
    }
}
