//! Opens everything a run needs and checks that it fits together, before a night is spent.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::models::Models;
use super::progress::Progress;
use super::{Budget, SearchError, Stop};
use crate::config::{GeneConfig, Goal, HoldoutSource, LayerGrouping, RunConfig, SpaceConfig, TaskConfig};
use crate::evaluate::{
    self, ConnectContext, EvaluateError, Evaluator, EvaluatorTask, Fault, FaultClass, SampleId, Samples,
    TaskCapability, TaskRequest,
};
use crate::merge::structure::group_layers;
use crate::merge::{BaseUse, find_method};
use crate::score::{Objective, ObjectiveTask};
use crate::space::SearchSpace;
use crate::strategy;

/// How the sealed hold-out is scored.
pub struct HoldoutPlan {
    pub evaluator: Arc<dyn Evaluator>,
    pub tasks: Vec<TaskRequest>,
    /// What is compared, one for each of `tasks`: the search's objective, less tasks without a weight that have no hold-out.
    pub objective: Objective,
    /// The evaluator's task name by the run's task name, where they differ.
    pub names: BTreeMap<String, String>,
    pub finalists: usize,
    /// Samples of one hold-out evaluation.
    pub samples: u64,
}

/// A run file with everything it names opened.
pub struct Prepared {
    pub config: RunConfig,
    pub models: Models,
    pub space: Option<Arc<SearchSpace>>,
    pub evaluator: Arc<dyn Evaluator>,
    pub objective: Objective,
    pub tasks: Vec<TaskRequest>,
    /// Samples of one evaluation at full fidelity; 0 where the evaluator does not say.
    pub samples: u64,
    pub holdout: Option<HoldoutPlan>,
}

impl Prepared {
    /// Baselines that every search evaluates first: base, sources, uniform soup.
    pub fn baselines(&self) -> u64 {
        let sources = self.models.facts.sources.len() as u64;
        u64::from(self.models.facts.base.is_some()) + sources + u64::from(sources > 1)
    }

    /// Source names in order.
    pub fn source_names(&self) -> Vec<String> {
        self.models.facts.sources.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// Opens models, space, evaluators and hold-out of a run.
///
/// `scratch` is a folder that an evaluator may write to; it is made only when needed.
pub async fn prepare(
    config: RunConfig,
    scratch: &Path,
    progress: &Arc<dyn Progress>,
    stop: &Stop,
) -> Result<Prepared, SearchError> {
    refuse_lone_source(&config)?;
    strategy::check_settings(&config.strategy)?;
    let evaluator = connect(&config, &evaluator_tasks(&config.tasks), scratch, progress, stop).await?;
    let objective = objective(&config, evaluator.as_ref())?;
    let tasks = task_requests(&config, &objective, evaluator.as_ref())?;
    let samples = count_samples(&tasks, evaluator.as_ref());

    let needs_checkpoint = evaluator.needs_checkpoint();
    let mut models = {
        let config = config.clone();
        stop.unless_wanted(move || open_models(&config, needs_checkpoint)).await??
    };
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

    let mut prepared = Prepared { config, models, space, evaluator, objective, tasks, samples, holdout: None };
    prepared.holdout = holdout_plan(&prepared, scratch, progress, stop).await?;
    Budget::new(prepared.config.budget.clone()).check_minimum(prepared.baselines(), prepared.samples)?;
    Ok(prepared)
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

/// Replaces automatic layer groups by what the weights say.
fn with_blocks(space: &SpaceConfig, models: &Models, progress: &Arc<dyn Progress>) -> SpaceConfig {
    let mut space = space.clone();
    if space.layers != LayerGrouping::Auto {
        return space;
    }
    match models.profiles() {
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
    let context = ConnectContext { seed: config.seed, directory: scratch.to_path_buf(), notify };
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

fn configuration(detail: String) -> SearchError {
    let fault = Fault { class: FaultClass::Configuration, code: "unknown_task".into(), detail, endpoint: None };
    SearchError::Evaluate(EvaluateError::Configuration(fault))
}

fn capability<'a>(evaluator: &'a dyn Evaluator, task: &str) -> Result<&'a TaskCapability, SearchError> {
    evaluator.capabilities().tasks.get(task).ok_or_else(|| {
        let known: Vec<&str> = evaluator.capabilities().tasks.keys().map(String::as_str).collect();
        configuration(format!("the evaluator has no task `{task}`; it has: {}", known.join(", ")))
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
                return Err(configuration(format!(
                    "task `{}` has no metric `{metric}`; it has: {}",
                    task.name,
                    names.join(", ")
                )));
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
                return Err(configuration(format!("task `{}`: the evaluator does not support `limit`", task.name)));
            }
            (None, Some(limit)) => Samples::Limit(limit),
            (None, None) => Samples::All,
        };
        Ok(TaskRequest { name: task.name.clone(), metric: goal.metric.clone(), samples, seed: config.seed })
    };
    config.tasks.iter().zip(&objective.tasks).map(request).collect()
}

/// Keeps `limit` samples, the first ones of a fixed shuffle; their order stays.
fn keep_some(seed: u64, task: &str, ids: &mut Vec<SampleId>, limit: u64) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut shuffled = ids.clone();
    shuffled.sort_by_cached_key(|id| {
        Sha256::digest(serde_json::json!(["evomerge limit v1", seed, task, id]).to_string().as_bytes())
    });
    shuffled.truncate(limit);
    let kept: HashSet<SampleId> = shuffled.into_iter().collect();
    ids.retain(|id| kept.contains(id));
}

/// Splits a task's samples by hash of (seed, task, sample id) into search and hold-out, both in the evaluator's order.
fn split(
    seed: u64,
    task: &str,
    known: &TaskCapability,
    fraction: f64,
) -> Result<(Vec<SampleId>, Vec<SampleId>), SearchError> {
    let ids = known.sample_ids.as_ref().filter(|_| known.supports_sample_ids).ok_or_else(|| {
        configuration(format!(
            "task `{task}`: holdout.fraction needs an evaluator that supports sample_ids; name hold-out tasks, data or \
             endpoints instead"
        ))
    })?;
    let goes_to_holdout = |id: &SampleId| {
        let digest = Sha256::digest(serde_json::json!(["evomerge split v1", seed, task, id]).to_string().as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        (u64::from_be_bytes(first) as f64) < fraction * 2f64.powi(64)
    };
    let (holdout, search): (Vec<SampleId>, Vec<SampleId>) = ids.iter().cloned().partition(goes_to_holdout);
    if holdout.is_empty() || search.is_empty() {
        return Err(SearchError::Settings(format!(
            "holdout.fraction = {fraction} leaves task `{task}` ({} samples) without {} samples",
            ids.len(),
            if holdout.is_empty() { "hold-out" } else { "search" }
        )));
    }
    Ok((search, holdout))
}

pub(super) fn count_samples(tasks: &[TaskRequest], evaluator: &dyn Evaluator) -> u64 {
    let count = |task: &TaskRequest| {
        let all = evaluator.capabilities().tasks.get(&task.name).map_or(0, |known| known.n_samples);
        match &task.samples {
            Samples::All => all,
            Samples::Limit(limit) => all.min(*limit),
            Samples::Ids(ids) => ids.len() as u64,
        }
    };
    tasks.iter().map(count).sum()
}

async fn holdout_plan(
    prepared: &Prepared,
    scratch: &Path,
    progress: &Arc<dyn Progress>,
    stop: &Stop,
) -> Result<Option<HoldoutPlan>, SearchError> {
    let Some(holdout) = prepared.config.holdout.clone() else { return Ok(None) };
    let mut names = BTreeMap::new();
    let mut samples = BTreeMap::new();
    let evaluator = match &holdout.source {
        HoldoutSource::Fraction(fraction) => {
            for task in &prepared.config.tasks {
                let known = capability(prepared.evaluator.as_ref(), &task.name)?;
                let (_, ids) = split(prepared.config.seed, &task.name, known, *fraction)?;
                samples.insert(task.name.clone(), Samples::Ids(ids));
            }
            prepared.evaluator.clone()
        }
        HoldoutSource::Endpoints(endpoints) => {
            let mut config = prepared.config.clone();
            if let crate::config::EvaluatorKind::Http(http) = &mut config.evaluator.kind {
                http.endpoints.clone_from(endpoints);
            }
            connect(&config, &evaluator_tasks(&config.tasks), scratch, progress, stop).await?
        }
        HoldoutSource::Data(data) => {
            let mut tasks = covered(&prepared.config.tasks, data);
            for task in &mut tasks {
                task.data = Some(holdout_entry(data, &task.name)?);
            }
            connect(&prepared.config, &evaluator_tasks(&tasks), scratch, progress, stop).await?
        }
        HoldoutSource::Tasks(renamed) => {
            let mut tasks = covered(&prepared.config.tasks, renamed);
            for task in &mut tasks {
                let other = holdout_entry(renamed, &task.name)?;
                names.insert(task.name.clone(), other.clone());
                task.name = other;
            }
            connect(&prepared.config, &evaluator_tasks(&tasks), scratch, progress, stop).await?
        }
    };
    let is_covered = |name: &String| match &holdout.source {
        HoldoutSource::Data(data) => data.contains_key(name),
        HoldoutSource::Tasks(renamed) => renamed.contains_key(name),
        HoldoutSource::Endpoints(_) | HoldoutSource::Fraction(_) => true,
    };
    let mut tasks = Vec::new();
    for task in prepared.tasks.iter().filter(|task| is_covered(&task.name)) {
        let name = names.get(&task.name).unwrap_or(&task.name).clone();
        capability(evaluator.as_ref(), &name)?;
        let samples = samples.get(&task.name).cloned().unwrap_or(Samples::All);
        tasks.push(TaskRequest { name, metric: task.metric.clone(), samples, seed: task.seed });
    }
    let samples = count_samples(&tasks, evaluator.as_ref());
    let compared = prepared.objective.tasks.iter().filter(|task| is_covered(&task.name)).cloned();
    let objective = Objective { tasks: compared.collect() };
    let plan = HoldoutPlan { evaluator, tasks, objective, names, finalists: holdout.finalists.get(), samples };
    refuse_overlap(prepared, &plan, matches!(holdout.source, HoldoutSource::Fraction(_)))?;
    Ok(Some(plan))
}

/// The tasks that a hold-out must have, and those without a weight that it has.
fn covered<T>(tasks: &[TaskConfig], entries: &BTreeMap<String, T>) -> Vec<TaskConfig> {
    tasks.iter().filter(|task| task.weight != 0.0 || entries.contains_key(&task.name)).cloned().collect()
}

fn holdout_entry<T: Clone>(entries: &BTreeMap<String, T>, task: &str) -> Result<T, SearchError> {
    entries.get(task).cloned().ok_or_else(|| {
        SearchError::Settings(format!(
            "[holdout] has nothing for task `{task}`; every task of the search with a weight needs its hold-out"
        ))
    })
}

/// Content hashes of the samples that a request asks for, where the evaluator sees the data.
fn content_hashes<'a>(known: &'a TaskCapability, samples: &Samples) -> Vec<&'a str> {
    let Some(hashes) = &known.sample_hashes else { return Vec::new() };
    match (samples, &known.sample_ids) {
        (Samples::Ids(wanted), Some(ids)) => {
            let wanted: HashSet<&SampleId> = wanted.iter().collect();
            let asked = ids.iter().zip(hashes).filter(|(id, _)| wanted.contains(id));
            asked.map(|(_, hash)| hash.as_str()).collect()
        }
        _ => hashes.iter().map(String::as_str).collect(),
    }
}

/// A sample that the search saw, in whichever task, proves nothing.
fn refuse_overlap(prepared: &Prepared, plan: &HoldoutPlan, is_fraction: bool) -> Result<(), SearchError> {
    let search: Vec<(&TaskRequest, &TaskCapability)> = prepared
        .tasks
        .iter()
        .map(|task| Ok((task, capability(prepared.evaluator.as_ref(), &task.name)?)))
        .collect::<Result<_, SearchError>>()?;
    let seen: BTreeSet<&str> = search.iter().flat_map(|(task, known)| content_hashes(known, &task.samples)).collect();
    for (task, compared) in plan.tasks.iter().zip(&plan.objective.tasks) {
        let known = capability(plan.evaluator.as_ref(), &task.name)?;
        let holdout = content_hashes(known, &task.samples);
        let shared = holdout.iter().filter(|hash| seen.contains(*hash)).count();
        let name = &compared.name;
        if shared > 0 {
            let why = if is_fraction { "; the data has samples more than once: keep one of each" } else { "" };
            return Err(SearchError::BadData(format!(
                "task `{name}`: {shared} of {} hold-out samples are among the samples of the search; a hold-out must be data \
                 that the search never saw{why}",
                holdout.len()
            )));
        }
        let same = search.iter().find(|(_, other)| other.sample_set.is_some() && other.sample_set == known.sample_set);
        if let Some((other, _)) = same.filter(|_| !is_fraction) {
            return Err(SearchError::BadData(format!(
                "task `{name}`: its hold-out has the very samples of the search's task `{}` (both report the same \
                 sample_set_sha256); a hold-out must be data that the search never saw",
                other.name
            )));
        }
    }
    Ok(())
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
