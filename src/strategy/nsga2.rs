//! NSGA-II (Deb et al. 2002), asynchronous: a front of merges instead of one, with the tasks, or groups of samples, as
//! objectives.
//!
//! There are no generations: a child is bred from the best points known when it is asked for. Infeasible points lose
//! against every other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rand::{Rng, RngExt};
use sha2::{Digest as _, Sha256};

use super::genetic::{crossover, mutation};
use super::history::History;
use super::settings::Settings;
use super::{
    Ask, Content, Landscape, MAX_DRAWS, Outcome, Placement, Setup, Strategy, StrategyError, pareto, space_filling,
};
use crate::random;
use crate::score::ObjectiveTask;
use crate::scores::{SampleId, Status};
use crate::space::Genome;

/// Draws for one proposal that are bred; further ones are uniform.
const BRED_DRAWS: usize = 200;

/// `[strategy]` of kind `nsga2`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parameters {
    population: usize,
    crossover: f64,
    crossover_eta: f64,
    mutation: f64,
    mutation_eta: f64,
    /// Groups of samples that are the objectives; 0: the tasks are.
    groups: usize,
}

impl Parameters {
    pub(super) fn read(settings: &mut Settings<'_>) -> Result<Self, StrategyError> {
        Ok(Self {
            population: settings.whole("population", 24, 4..=1_000)?,
            crossover: settings.number("crossover", 0.9, 0.0..=1.0)?,
            crossover_eta: settings.number("crossover_eta", 15.0, 0.0..=1_000.0)?,
            mutation: settings.number("mutation", 1.0, 0.0..=1_000.0)?,
            mutation_eta: settings.number("mutation_eta", 20.0, 0.0..=1_000.0)?,
            groups: settings.whole("groups", 0, 0..=64)?,
        })
    }
}

/// The strategy.
pub(super) struct Nsga2 {
    parameters: Parameters,
    seed: u64,
    history: History,
    tasks: Vec<ObjectiveTask>,
    /// The objectives of scored evaluations, higher is better.
    objectives: BTreeMap<u64, Vec<f64>>,
    /// Scored evaluations on a part of the samples.
    parts: BTreeSet<u64>,
    /// Points that breed, best first: front, then loneliness.
    population: Vec<usize>,
    design: VecDeque<Vec<f64>>,
    asked: u64,
}

impl Nsga2 {
    pub(super) fn new(parameters: Parameters, landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        let genes = landscape.genes();
        let init: Vec<f64> = genes.iter().map(|gene| gene.init.clamp(0.0, 1.0)).collect();
        let sobol = (0..parameters.population as u64).map(|index| space_filling::sobol(setup.seed, index, genes.len()));
        let points = [init].into_iter().chain(sobol).take(parameters.population);
        let design = setup.model_stock.iter().map(|genome| genome.0.clone()).chain(points).collect();
        Self {
            parameters,
            seed: setup.seed,
            history: History::new(landscape, setup),
            tasks: setup.objective.clone(),
            objectives: BTreeMap::new(),
            parts: BTreeSet::new(),
            population: Vec::new(),
            design,
            asked: 0,
        }
    }

    /// The objectives of an outcome, as many for each; the objective of the run in the place of all where they are not
    /// known.
    fn values(&self, outcome: &Outcome) -> Option<Vec<f64>> {
        let whole = outcome.objective.filter(|_| outcome.status == Status::Scored)?;
        let (values, count) = match self.parameters.groups {
            0 => (task_values(&self.tasks, outcome), self.tasks.iter().filter(|task| task.weight != 0.0).count()),
            groups => (group_values(&self.tasks, outcome, groups), groups),
        };
        Some(values.filter(|values| !values.is_empty()).unwrap_or_else(|| vec![whole; count.max(1)]))
    }

    fn objectives_of(&self, place: usize) -> Option<&[f64]> {
        let index = self.history.points()[place].index?;
        self.objectives.get(&index).map(Vec::as_slice)
    }

    /// Lets new points in and the worst out.
    fn admit(&mut self, places: &[usize]) {
        let points = self.history.points();
        for &place in places {
            if points[place].fitness.rank().is_some() && !self.population.contains(&place) {
                self.population.push(place);
            }
        }
        let objectives: Vec<Option<&[f64]>> = self.population.iter().map(|place| self.objectives_of(*place)).collect();
        let fronts = pareto::fronts(&objectives);
        let mut ranked: Vec<(usize, f64, usize)> = Vec::with_capacity(fronts.len());
        for number in 0..=fronts.iter().copied().max().unwrap_or(0) {
            let members: Vec<usize> = (0..fronts.len()).filter(|member| fronts[*member] == number).collect();
            let known: Vec<&[f64]> = members.iter().filter_map(|member| objectives[*member]).collect();
            let lonely = if known.len() == members.len() { pareto::crowding(&known) } else { vec![0.0; members.len()] };
            ranked
                .extend(members.iter().zip(lonely).map(|(member, lonely)| (number, lonely, self.population[*member])));
        }
        ranked.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(&b.2)));
        ranked.truncate(self.parameters.population);
        self.population = ranked.into_iter().map(|(_, _, place)| place).collect();
    }

    fn breed(&self, rng: &mut impl Rng) -> (Vec<f64>, Vec<usize>) {
        let genes = self.history.landscape().genes();
        let points = self.history.points();
        let count = self.population.len();
        // A tournament of two; the population is in order of preference.
        let mut pick = || self.population[rng.random_range(0..count).min(rng.random_range(0..count))];
        let (first, second) = (pick(), pick());
        let (a, b) = (&points[first].genome.0, &points[second].genome.0);
        let crossed = first != second && rng.random::<f64>() < self.parameters.crossover;
        let mut genome = match crossed {
            true => crossover::simulated_binary(genes, a, b, self.parameters.crossover_eta, rng),
            false => a.clone(),
        };
        let rate = (self.parameters.mutation / genes.len() as f64).min(1.0);
        mutation::polynomial(genes, &mut genome, rate, self.parameters.mutation_eta, rng);
        let parents = if crossed { vec![first, second] } else { vec![first] };
        (genome, parents)
    }

    fn draw(&mut self, rng: &mut impl Rng) -> Option<(Vec<f64>, &'static str, Vec<usize>)> {
        while let Some(genome) = self.design.pop_front() {
            if self.history.is_new(&genome) {
                return Some((genome, "initial", vec![]));
            }
        }
        for attempt in 0..MAX_DRAWS {
            let (genome, origin, parents) = if attempt < BRED_DRAWS && !self.population.is_empty() {
                let (genome, parents) = self.breed(rng);
                (genome, "nsga2", parents)
            } else {
                (space_filling::uniform(rng, self.history.landscape().genes().len()), "random", vec![])
            };
            if self.history.is_new(&genome) {
                return Some((genome, origin, parents));
            }
        }
        None
    }

    fn take(&mut self, outcome: &Outcome, places: &[usize]) {
        if let Some(values) = self.values(outcome) {
            self.objectives.insert(outcome.index, values);
            if outcome.fidelity < 1.0 {
                self.parts.insert(outcome.index);
            }
        }
        self.admit(places);
    }
}

/// Each task's score with its direction; tasks without weight have no objective.
fn task_values(tasks: &[ObjectiveTask], outcome: &Outcome) -> Option<Vec<f64>> {
    let value = |task: &ObjectiveTask| {
        let value = outcome.tasks.get(&task.name)?.metrics.get(&task.metric)?.value;
        value.is_finite().then_some(value * task.signed_weight().signum())
    };
    tasks.iter().filter(|task| task.weight != 0.0).map(value).collect()
}

/// The weighted mean over the tasks of the mean score of each group. A sample's group follows from its id, so that it
/// is the same on every part of the samples; a group of which a part has no sample has the part's mean.
///
/// In a race, a task's value on a part is what it is expected to be on all samples. Its groups lie around that, drawn
/// in by the share of the samples that was seen: few of them make no group the best.
fn group_values(tasks: &[ObjectiveTask], outcome: &Outcome, groups: usize) -> Option<Vec<f64>> {
    let mut values = vec![0.0; groups];
    for task in tasks.iter().filter(|task| task.weight != 0.0) {
        let samples = outcome.tasks.get(&task.name)?.per_sample.as_ref()?;
        let scores = samples.scores.get(&task.metric)?;
        let mut sums = vec![(0.0, 0_u64); groups];
        for (id, score) in samples.ids.iter().zip(scores) {
            let (sum, count) = &mut sums[group_of(id, groups)];
            *sum += score;
            *count += 1;
        }
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        let expected = match outcome.fidelity < 1.0 {
            true => Some(outcome.tasks.get(&task.name)?.metrics.get(&task.metric)?.value),
            false => None,
        };
        for (value, (sum, count)) in values.iter_mut().zip(sums) {
            let of_group = if count == 0 { mean } else { sum / count as f64 };
            let drawn_in = expected.map(|expected| expected + outcome.fidelity * (of_group - mean));
            *value += task.signed_weight() * drawn_in.unwrap_or(of_group);
        }
    }
    values.iter().all(|value| value.is_finite()).then_some(values)
}

/// A number modulo the groups, or the digest of a name.
fn group_of(id: &SampleId, groups: usize) -> usize {
    match id {
        SampleId::Number(number) => number.rem_euclid(groups as i64) as usize,
        SampleId::Text(text) => {
            let digest = Sha256::digest(text.as_bytes());
            let first = digest.iter().take(8).fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
            (first % groups as u64) as usize
        }
    }
}

impl Strategy for Nsga2 {
    fn ask(&mut self) -> Result<Ask, StrategyError> {
        let mut rng = random::stream(self.seed, "nsga2", self.asked);
        self.asked += 1;
        let Some((genome, origin, parents)) = self.draw(&mut rng) else { return Ok(Ask::exhausted()) };
        let points = self.history.points();
        let generation = parents.iter().map(|parent| points[*parent].generation + 1).max().unwrap_or(0);
        Ok(self.history.propose(genome, origin, &parents, generation))
    }

    fn place(&mut self, placement: Placement) {
        if let Some(point) = self.history.place(placement) {
            self.admit(&[point]);
        }
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        let places = self.history.tell(outcome)?;
        self.take(outcome, &places);
        Ok(())
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        let places = self.history.learn(content, outcome)?;
        self.take(outcome, &places);
        Ok(())
    }

    fn watch(&mut self, genome: &Genome, placement: Placement) {
        self.history.watch(genome, placement);
    }

    fn hypervolume(&self) -> Option<f64> {
        let whole = self.objectives.iter().filter(|(index, _)| !self.parts.contains(index));
        let points: Vec<&[f64]> = whole.map(|(_, values)| values.as_slice()).collect();
        pareto::hypervolume(&points)
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{Answer, TestSpace, outcome, setup};
    use super::*;
    use crate::scores::{MetricValue, PerSample, TaskScores};

    fn tasks() -> Vec<ObjectiveTask> {
        let task = |name: &str, maximize| ObjectiveTask {
            name: name.to_owned(),
            metric: "acc".to_owned(),
            weight: 1.0,
            maximize,
        };
        vec![task("high", true), task("low", false)]
    }

    fn scores(values: &[f64]) -> TaskScores {
        let value = values.iter().sum::<f64>() / values.len() as f64;
        let scores = BTreeMap::from([("acc".to_owned(), values.to_vec())]);
        TaskScores {
            n: values.len() as u64,
            metrics: BTreeMap::from([("acc".to_owned(), MetricValue { value, stderr: None })]),
            per_sample: Some(PerSample { ids: (0..values.len() as i64).map(SampleId::Number).collect(), scores }),
            ..TaskScores::default()
        }
    }

    fn answer(index: u64, high: &[f64], low: &[f64]) -> Outcome {
        let tasks = BTreeMap::from([("high".to_owned(), scores(high)), ("low".to_owned(), scores(low))]);
        Outcome { tasks, ..outcome(index, Answer::Score(0.0)) }
    }

    #[test]
    fn objectives_are_tasks_or_groups_of_samples_with_their_direction() {
        let outcome = answer(0, &[1.0, 0.0, 1.0], &[0.5, 0.5, 0.0]);
        assert_eq!(task_values(&tasks(), &outcome).unwrap(), vec![2.0 / 3.0, -1.0 / 3.0]);
        assert_eq!(group_values(&tasks(), &outcome, 2).unwrap(), vec![1.0 - 0.25, -0.5]);
        let mean = 2.0 / 3.0 - 1.0 / 3.0;
        assert_eq!(
            group_values(&tasks(), &outcome, 4).unwrap(),
            vec![0.5, -0.5, 1.0, mean],
            "the last group has no sample"
        );
    }

    #[test]
    fn groups_of_a_part_lie_around_what_is_expected_of_all_samples() {
        let mut outcome = answer(0, &[1.0, 0.0], &[0.5, 0.5]);
        outcome.fidelity = 0.25;
        outcome.tasks.get_mut("high").unwrap().metrics.get_mut("acc").unwrap().value = 0.75;
        assert_eq!(group_values(&tasks()[..1], &outcome, 2).unwrap(), vec![0.75 + 0.125, 0.75 - 0.125]);
    }

    #[test]
    fn a_sample_is_in_one_group_on_every_part() {
        let part = |ids: Vec<SampleId>, values: Vec<f64>| TaskScores {
            per_sample: Some(PerSample { ids: ids.into(), scores: BTreeMap::from([("acc".to_owned(), values)]) }),
            ..TaskScores::default()
        };
        let values = |scores: TaskScores| {
            let outcome =
                Outcome { tasks: BTreeMap::from([("high".to_owned(), scores)]), ..outcome(0, Answer::Score(0.0)) };
            group_values(&tasks()[..1], &outcome, 2).unwrap()
        };
        let number = SampleId::Number;
        assert_eq!(values(part(vec![number(3), number(8)], vec![1.0, 0.0])), vec![0.0, 1.0]);
        assert_eq!(values(part(vec![number(8), number(3)], vec![0.0, 1.0])), vec![0.0, 1.0]);
        let text = |name: &str| SampleId::Text(name.to_owned());
        assert!(
            (0..9).map(|n| group_of(&text(&n.to_string()), 3)).collect::<std::collections::BTreeSet<_>>().len() == 3
        );
    }

    #[test]
    fn every_outcome_has_as_many_objectives() {
        let search = |groups: usize| {
            let table = toml::Table::from_iter([("groups".to_owned(), toml::Value::Integer(groups as i64))]);
            let parameters = Parameters::read(&mut Settings::new(&table)).unwrap();
            let setup = Setup { objective: tasks(), seeds: vec![], ..setup(TestSpace::reals(2), 8) };
            Nsga2::new(parameters, setup.landscape.clone().unwrap(), &setup)
        };
        let bare = |index| Outcome { tasks: BTreeMap::new(), ..outcome(index, Answer::Score(0.25)) };
        let outcomes = [answer(0, &[1.0, 0.0, 1.0], &[0.5, 0.5, 0.0]), answer(1, &[1.0], &[0.5]), bare(2)];
        for (groups, count) in [(0, 2), (1, 1), (2, 2), (5, 5)] {
            let mut search = search(groups);
            for outcome in &outcomes {
                assert_eq!(search.values(outcome).unwrap().len(), count, "{groups} groups");
                let Ask::Proposal(_) = search.ask().unwrap() else { panic!("no proposal") };
                search.place(Placement::Asked { index: outcome.index });
                search.tell(outcome).unwrap();
            }
            assert_eq!(search.values(&bare(2)).unwrap(), vec![0.25; count]);
            assert_eq!(search.hypervolume().is_some(), count > 1, "{groups} groups");
        }
    }

    #[test]
    fn finds_a_front_between_two_tasks() {
        let table = toml::Table::new();
        let parameters = Parameters::read(&mut Settings::new(&table)).unwrap();
        let setup = Setup { objective: tasks(), seeds: vec![], ..setup(TestSpace::reals(2), 8) };
        let landscape = setup.landscape.clone().unwrap();
        let mut search = Nsga2::new(parameters, landscape, &setup);
        for index in 0..300 {
            let Ask::Proposal(proposal) = search.ask().unwrap() else { panic!("no proposal") };
            let Content::Genome(genome) = proposal.content else { panic!("no genome") };
            search.place(Placement::Asked { index });
            // Whatever the first gene wins for one task it costs the other; the second gene is best at 1/2 for both.
            let loss = (genome.0[1] - 0.5).powi(2);
            search.tell(&answer(index, &[genome.0[0] - loss], &[genome.0[0] + loss])).unwrap();
        }
        let front: Vec<&Genome> =
            search.population.iter().map(|place| &search.history.points()[*place].genome).collect();
        assert!(front.iter().all(|genome| (genome.0[1] - 0.5).abs() < 0.15), "{front:?}");
        let ends = front.iter().map(|genome| genome.0[0]);
        assert!(ends.clone().fold(1.0, f64::min) < 0.1 && ends.fold(0.0, f64::max) > 0.9, "{front:?}");
        assert!(search.hypervolume().unwrap() > 0.4);
    }
}
