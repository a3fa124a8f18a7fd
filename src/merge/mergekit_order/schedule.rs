//! The order in which mergekit 0.1.5 merges tensors: its graph of tasks, walked with a set of Python's, then sorted.
//!
//! A task is known by its number. Numbers are given depth first: to the saving of a tensor, then to what it needs. From
//! the savings the graph is walked to all that they need; what is still to be looked at is held in a set. Tasks then run
//! as soon as what they need has run, by label and priority, and in the order in which the walk met them where these are
//! equal. Labels are names of stored tensors, and loading comes last among tasks of a label. So a tensor is merged when
//! the last of its loads is done, and only tensors whose last loads have the same label depend on the walk.

use std::collections::{HashMap, HashSet};

use super::integer_set::IntegerSet;

/// A tensor that mergekit loads; loads of one model and name are one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Load {
    /// Index of the model.
    pub(super) model: usize,
    /// What the architecture calls the tensor.
    pub(super) name: String,
    /// What the model calls it; `None`: the model lacks it.
    pub(super) stored: Option<String>,
}

/// A tensor of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ScheduledTensor {
    pub(super) name: String,
    /// In the order of the models in the recipe.
    pub(super) loads: Vec<Load>,
    /// Whether it has a row for each token.
    pub(super) is_vocabulary: bool,
}

/// What mergekit does with tensors that have a row for each token before it merges them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::merge) enum VocabularyStep {
    /// Nothing.
    Keep,
    /// Cuts them to the rows that all have.
    Truncate,
    /// Brings their rows into the order of one tokenizer, where a recipe names `tokenizer_source`.
    Permute,
}

/// Tasks by number, each with the tasks that it needs, in order.
#[derive(Default)]
struct TaskGraph {
    needs: Vec<Vec<usize>>,
}

impl TaskGraph {
    fn add(&mut self) -> usize {
        self.needs.push(Vec::new());
        self.needs.len() - 1
    }

    fn add_needed_by(&mut self, task: usize) -> usize {
        let needed = self.add();
        self.needs[task].push(needed);
        needed
    }

    /// What brings the loads of a tensor together, behind what becomes of its rows before they are merged.
    fn add_gather(&mut self, merge: usize, step: VocabularyStep, tokenizer: &mut Option<usize>) -> usize {
        if step == VocabularyStep::Keep {
            return self.add_needed_by(merge);
        }
        let rows = self.add_needed_by(merge);
        if step == VocabularyStep::Permute {
            let tokenizer = *tokenizer.get_or_insert_with(|| self.add());
            self.needs[rows].push(tokenizer);
        }
        self.add_needed_by(rows)
    }
}

/// The tasks of a merge that is written to disk.
struct Tasks {
    graph: TaskGraph,
    /// What is asked for, in order.
    targets: Vec<usize>,
    /// For each tensor, the task that brings its loads together.
    gathers: Vec<usize>,
}

impl Tasks {
    /// Numbers the tasks of `tensors`, which stand in the order in which mergekit plans them.
    fn new(tensors: &[ScheduledTensor], vocabulary: VocabularyStep) -> Self {
        let mut graph = TaskGraph::default();
        let (mut writer, mut tokenizer) = (None, None);
        let mut loads: HashMap<(usize, &str), usize> = HashMap::new();
        let (mut targets, mut gathers) = (Vec::new(), Vec::new());
        for tensor in tensors {
            let save = graph.add();
            let writer = *writer.get_or_insert_with(|| graph.add());
            graph.needs[save].push(writer);
            let merge = graph.add_needed_by(save);
            let step = if tensor.is_vocabulary { vocabulary } else { VocabularyStep::Keep };
            let gather = graph.add_gather(merge, step, &mut tokenizer);
            for load in &tensor.loads {
                let load = *loads.entry((load.model, &load.name)).or_insert_with(|| graph.add());
                graph.needs[gather].push(load);
            }
            targets.push(save);
            gathers.push(gather);
        }
        let finalize = graph.add();
        graph.needs[finalize] = writer.into_iter().chain(targets.iter().copied()).collect();
        targets.push(finalize);
        targets.extend(tokenizer);
        Self { graph, targets, gathers }
    }

    /// For each task, how many the walk met before it.
    fn places(&self) -> Vec<usize> {
        let mut places = vec![None; self.graph.needs.len()];
        let mut met = 0;
        let mut meet = |task: usize| {
            places[task].get_or_insert_with(|| {
                met += 1;
                met - 1
            });
        };
        let mut explored = HashSet::new();
        let mut to_explore = IntegerSet::new();
        self.targets.iter().for_each(|target| to_explore.insert(*target));
        while let Some(task) = to_explore.pop() {
            if !explored.insert(task) {
                continue;
            }
            for &needed in &self.graph.needs[task] {
                to_explore.insert(needed);
                // An edge of the graph, which names what is needed first.
                meet(needed);
                meet(task);
            }
        }
        places.into_iter().map(|place| place.unwrap_or(usize::MAX)).collect()
    }
}

/// Indices of `tensors`, which stand in the order in which mergekit plans them, in the order in which it merges them.
pub(super) fn order(tensors: &[ScheduledTensor], vocabulary: VocabularyStep) -> Vec<usize> {
    let tasks = Tasks::new(tensors, vocabulary);
    let places = tasks.places();
    let key = |&index: &usize| {
        let gather = tasks.gathers[index];
        let label = |load: &Load| load.stored.clone().unwrap_or_default();
        let loads = tensors[index].loads.iter().zip(&tasks.graph.needs[gather]);
        (loads.map(|(load, task)| (label(load), places[*task])).max(), places[gather])
    };
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_cached_key(key);
    order
}
