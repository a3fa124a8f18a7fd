//! Opens everything a run needs and checks that it fits together, before a night is spent.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::candidate::baselines;
use super::models::Models;
use super::progress::Progress;
use super::sealed::{HoldoutPlan, holdout_plan, keep_some, split};
use super::{Budget, SearchError, Stop};
use crate::checkpoint;
use crate::config::{
    EvaluatorKind, GeneConfig, Goal, HoldoutSource, LayerGrouping, RunConfig, SpaceConfig, TaskConfig,
};
use crate::evaluate::{
    self, ConnectContext, EvaluateError, Evaluator, EvaluatorTask, Fault, Samples, TaskCapability, TaskRequest,
};
use crate::merge::structure::group_layers;
use crate::merge::{BaseUse, find_method};
use crate::score::{Objective, ObjectiveTask};
use crate::space::{Genome, SearchSpace};
use crate::strategy;

/// A run file with everything it names opened.
pub struct Prepared {
    /// The run file, with what the command line says instead.
    pub config: RunConfig,
    /// Base and sources, opened and compared.
    pub models: Models,
    /// `None`: the strategy only makes soups.
    pub space: Option<Arc<SearchSpace>>,
    /// What scores candidates; connected, and it knows the run's tasks.
    pub evaluator: Arc<dyn Evaluator>,
    /// How the scores of the tasks become one number.
    pub objective: Objective,
    /// What an evaluation in full asks for.
    pub tasks: Vec<TaskRequest>,
    /// Samples of one evaluation at full fidelity; 0 where the evaluator does not say.
    pub samples: u64,
    /// How the hold-out is scored; `None`: the run has none.
    pub holdout: Option<HoldoutPlan>,
    /// Number of baselines that are evaluated: base, sources and uniform soup, of those with one recipe only the first.
    pub baselines: u64,
}

impl Prepared {
    /// Candidates on disk at once: one more than the evaluator takes, so that the next is ready when it is.
    pub fn slots(&self) -> usize {
        self.config.candidates.slots.map_or(self.evaluator.concurrency().get() + 1, std::num::NonZeroUsize::get)
    }

    /// Source names in order.
    pub fn source_names(&self) -> Vec<String> {
        self.models.facts.sources.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Where Model Stock sees the best merge, for strategies that try that point. Reads some of the weights.
    pub fn model_stock(&self) -> Option<Genome> {
        let space = self.space.as_ref().filter(|_| strategy::tries_model_stock(self.config.strategy.kind))?;
        space.model_stock(&self.models.agreements())
    }
}

/// Opens models, space, evaluators and hold-out of a run.
///
/// `scratch` is a folder that an evaluator may write to; it is made only when needed.
///
/// # Errors
/// Everything that is wrong with the run file, the models, the evaluator or the hold-out; [`SearchError::Stopped`].
pub async fn prepare(
    config: RunConfig,
    scratch: &Path,
    progress: &Arc<dyn Progress>,
    stop: &Stop,
) -> Result<Prepared, SearchError> {
    refuse_lone_source(&config)?;
    strategy::check_settings(&config.strategy)?;
    refuse_missing_models(&config)?;
    let evaluator = connect(&config, &evaluator_tasks(&config.tasks), scratch, progress, stop).await?;
    let objective = objective(&config, evaluator.as_ref())?;
    let tasks = task_requests(&config, &objective, evaluator.as_ref())?;
    let samples = count_samples(&tasks, evaluator.as_ref());

    let needs_checkpoint = evaluator.needs_checkpoint();
    let mut models = {
        let config = config.clone();
        stop.unless_wanted(move || open_models(&config, needs_checkpoint)).await??
    };
    let (of_evaluator, folders) = (evaluator.clone(), models.folders());
    stop.unless_wanted(move || check_models(of_evaluator.as_ref(), &folders)).await??;
    let space = match config.search_space()? {
        Some(space) => Some(Arc::new(SearchSpace::new(&with_blocks(space, &models, progress), &models.facts)?)),
        None => None,
    };
    if let Some((_, most)) = space.as_ref().and_then(|space| space.layer_counts()) {
        models.expect_layers(most)?;
    }
    for notice in space.iter().flat_map(|space| space.notices()) {
        progress.line(notice);
    }
    let notes = models.notes()?;
    for notice in models.copies().iter().chain(&notes) {
        progress.line(notice);
    }
    let baselines = count_baselines(&models)?;
    let mut prepared =
        Prepared { config, models, space, evaluator, objective, tasks, samples, holdout: None, baselines };
    prepared.holdout = holdout_plan(&prepared, scratch, progress, stop).await?;
    Budget::new(prepared.config.budget.clone()).check_minimum(baselines, prepared.samples)?;
    Ok(prepared)
}

/// Refuses models that are not there, or not models, before anybody waits for an evaluator.
fn refuse_missing_models(config: &RunConfig) -> Result<(), SearchError> {
    if matches!(config.evaluator.kind, EvaluatorKind::Function(_)) {
        return Ok(());
    }
    for model in config.models.base.iter().chain(&config.models.sources) {
        checkpoint::open_model(&model.location, model.adapter.as_deref(), &config.directory)?;
    }
    Ok(())
}

/// The models, with the profiles of their layers where the space needs these.
fn open_models(config: &RunConfig, checkpoints: bool) -> Result<Models, SearchError> {
    let mut models = Models::open(config, checkpoints)?;
    let Some(space) = config.search_space()? else { return Ok(models) };
    if space.has_conflict_prior() {
        models.facts.profiles = models.profiles().map(<[_]>::to_vec).unwrap_or_default();
    } else if space.layers == LayerGrouping::Auto {
        models.profiles();
    }
    Ok(models)
}

/// Baselines that are evaluated: of those with one recipe, the first.
fn count_baselines(models: &Models) -> Result<u64, SearchError> {
    let distinct: BTreeSet<String> = baselines(models)?.into_iter().map(|(_, id)| id).collect();
    Ok(distinct.len() as u64)
}

/// Refuses models that the evaluator could score nothing of: every one is a baseline by itself, and gives candidates its
/// configuration and its tokenizer.
fn check_models(evaluator: &dyn Evaluator, folders: &[PathBuf]) -> Result<(), SearchError> {
    let check =
        |folder: &PathBuf| evaluator.check_model(folder).map_err(|fault| configuration(&fault.code, fault.detail));
    folders.iter().try_for_each(check)
}

/// Most layers that automatic groups are found for: the time that it takes grows with the cube of their number.
const MOST_LAYERS: usize = 1_024;

/// Replaces automatic layer groups by what the weights say.
fn with_blocks(space: &SpaceConfig, models: &Models, progress: &Arc<dyn Progress>) -> SpaceConfig {
    let mut space = space.clone();
    if space.layers != LayerGrouping::Auto {
        return space;
    }
    match models.profiles() {
        Some(profiles) if profiles.len() > MOST_LAYERS => progress.line(&format!(
            "layer_groups = \"auto\": {} layers, by the highest number in a tensor's name, are more than the {MOST_LAYERS} that \
             are looked at, so all layers are one group",
            profiles.len()
        )),
        Some(profiles) if !profiles.is_empty() => {
            let starts = group_layers(profiles);
            let shown: Vec<String> = starts.iter().map(usize::to_string).collect();
            progress.line(&format!("layer groups from the weights: they start at layer {}", shown.join(", ")));
            space.layers = LayerGrouping::Blocks(starts);
        }
        _ => progress.line("layer_groups = \"auto\": no weights to look at, so all layers are one group"),
    }
    space
}

pub(super) async fn connect(
    config: &RunConfig,
    tasks: &[EvaluatorTask],
    scratch: &Path,
    progress: &Arc<dyn Progress>,
    stop: &Stop,
) -> Result<Arc<dyn Evaluator>, SearchError> {
    let listener = progress.clone();
    let notify = Arc::new(move |line: &str| listener.line(line));
    let stopping = stop.soon.clone();
    let context = ConnectContext { seed: config.seed, directory: scratch.to_path_buf(), notify, stopping };
    let cancel = stop.now.child_token();
    let connecting = evaluate::connect(&config.evaluator, tasks, &context, &cancel);
    tokio::select! {
        connected = connecting => Ok(connected?),
        () = stop.requested() => Err(SearchError::Stopped),
    }
}

pub(super) fn evaluator_tasks(tasks: &[TaskConfig]) -> Vec<EvaluatorTask> {
    tasks
        .iter()
        .map(|task| EvaluatorTask {
            name: task.name.clone(),
            data: task.data.clone(),
            metric: task.metric.clone(),
            max_new_tokens: task.max_new_tokens,
        })
        .collect()
}

/// The evaluator cannot do what the run file asks of it. `code` is the one that an evaluator gives for the same.
pub(super) fn configuration(code: &str, detail: String) -> SearchError {
    SearchError::Evaluate(EvaluateError::Configuration(Fault::configuration(code, detail)))
}

pub(super) fn capability<'a>(evaluator: &'a dyn Evaluator, task: &str) -> Result<&'a TaskCapability, SearchError> {
    evaluator.capabilities().tasks.get(task).ok_or_else(|| {
        let known: Vec<&str> = evaluator.capabilities().tasks.keys().map(String::as_str).collect();
        configuration("unknown_task", format!("the evaluator has no task `{task}`; it has: {}", known.join(", ")))
    })
}

/// Metric and direction of every task: as the run file says, checked against what the evaluator says.
pub(super) fn objective(config: &RunConfig, evaluator: &dyn Evaluator) -> Result<Objective, SearchError> {
    let task = |task: &TaskConfig| -> Result<ObjectiveTask, SearchError> {
        let known = capability(evaluator, &task.name)?;
        let metric = match &task.metric {
            Some(metric) => metric.clone(),
            None => evaluator.default_metric(&task.name).map(str::to_string).ok_or_else(|| {
                SearchError::Settings(format!("task `{}`: name a metric; the evaluator lists none", task.name))
            })?,
        };
        let higher_is_better = match known.metrics.get(&metric) {
            Some(capability) => Some(capability.higher_is_better),
            None if known.metrics.is_empty() => None,
            None => {
                let names: Vec<&str> = known.metrics.keys().map(String::as_str).collect();
                let detail = format!("task `{}` has no metric `{metric}`; it has: {}", task.name, names.join(", "));
                return Err(configuration("unknown_metric", detail));
            }
        };
        let maximize = match (task.goal, higher_is_better) {
            (None, higher) => higher.unwrap_or(true),
            (Some(goal), Some(higher)) if evaluator.knows_direction() && (goal == Goal::Maximize) != higher => {
                return Err(SearchError::Settings(format!(
                    "task `{}`: goal says {}, but the evaluator says that {} {metric} is better",
                    task.name,
                    if higher { "minimize" } else { "maximize" },
                    if higher { "higher" } else { "lower" },
                )));
            }
            (Some(goal), _) => goal == Goal::Maximize,
        };
        Ok(ObjectiveTask { name: task.name.clone(), metric, weight: task.weight, maximize })
    };
    Ok(Objective { tasks: config.tasks.iter().map(task).collect::<Result<_, _>>()? })
}

/// The requests of the search: all samples, the first `limit`, or those that a hold-out by fraction leaves.
pub(super) fn task_requests(
    config: &RunConfig,
    objective: &Objective,
    evaluator: &dyn Evaluator,
) -> Result<Vec<TaskRequest>, SearchError> {
    let fraction = match config.holdout.as_ref().map(|holdout| &holdout.source) {
        Some(HoldoutSource::Fraction(fraction)) => Some(*fraction),
        _ => None,
    };
    let request = |(task, goal): (&TaskConfig, &ObjectiveTask)| -> Result<TaskRequest, SearchError> {
        let known = capability(evaluator, &task.name)?;
        let samples = match (fraction, task.limit) {
            (Some(fraction), limit) => {
                let (mut search, _) = split(config.seed, &task.name, known, fraction)?;
                if let Some(limit) = limit {
                    keep_some(config.seed, &task.name, &mut search, limit);
                }
                Samples::Ids(search)
            }
            (None, Some(_)) if !known.supports_limit => {
                let detail = format!("task `{}`: the evaluator does not support `limit`", task.name);
                return Err(SearchError::Settings(detail));
            }
            (None, Some(limit)) => Samples::Limit(limit),
            (None, None) => Samples::All,
        };
        Ok(TaskRequest { name: task.name.clone(), metric: goal.metric.clone(), samples, seed: config.seed })
    };
    config.tasks.iter().zip(&objective.tasks).map(request).collect()
}

/// Samples of an evaluation; 0 where the evaluator does not say how many a task has.
pub(super) fn count_samples(tasks: &[TaskRequest], evaluator: &dyn Evaluator) -> u64 {
    let count = |task: &TaskRequest| {
        let known = evaluator.capabilities().tasks.get(&task.name);
        task.samples.count(known.map_or(0, |known| known.n_samples))
    };
    tasks.iter().map(count).try_fold(0_u64, |sum, samples| Some(sum.saturating_add(samples?))).unwrap_or(0)
}

/// One source without anything to merge it with is the only candidate there is.
fn refuse_lone_source(config: &RunConfig) -> Result<(), SearchError> {
    let Some(space) = config.search_space()? else { return Ok(()) };
    let [source] = config.models.sources.as_slice() else { return Ok(()) };
    let normalized = !space.genes.iter().any(|(name, gene)| name == "normalize" && *gene != GeneConfig::Bool(true));
    let takes_base = |name: &String| find_method(name).is_none_or(|method| method.base != BaseUse::None);
    let has_partner = config.models.base.is_some() && space.methods.iter().any(takes_base);
    if has_partner || space.stack.is_some() || !normalized {
        return Ok(());
    }
    let why = match config.models.base {
        Some(_) => format!("{} takes no base", space.methods.join(", ")),
        None => "there is no models.base".to_owned(),
    };
    Err(SearchError::Settings(format!(
        "models.sources has one model (`{}`), and {why}: every merge of it is the model itself, so there is \
         nothing to search; add sources, or the base that it was fine-tuned from",
        source.name
    )))
}

/// Where candidates of a run go.
pub(super) fn candidate_parent(prepared: &Prepared, run_folder: &Path, slots: u64) -> PathBuf {
    match &prepared.config.candidates.dir {
        Some(folder) => folder.clone(),
        None => super::slots::choose_parent(run_folder, prepared.models.candidate_bytes, slots),
    }
}
