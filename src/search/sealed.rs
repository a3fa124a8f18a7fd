//! Which samples a search never sees: the split by fraction, the plan of the hold-out, and the refusal of data that is
//! in both.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::prepare::{Prepared, capability, connect, count_samples, evaluator_tasks};
use super::progress::Progress;
use super::sample_order::{sample_hash, sort_by_hash};
use super::{SearchError, Stop};
use crate::config::{EvaluatorKind, HoldoutSource, TaskConfig};
use crate::evaluate::{Evaluator, Samples, TaskCapability, TaskRequest, is_same_server};
use crate::plural::counted;
use crate::score::Objective;
use crate::scores::SampleId;

/// Samples of a hold-out that are named where the search saw them.
const SHOWN_PAIRS: usize = 3;

/// How the sealed hold-out is scored.
pub struct HoldoutPlan {
    /// The search's own where a fraction of its samples is kept back; else one of the hold-out's.
    pub evaluator: Arc<dyn Evaluator>,
    /// What a hold-out evaluation asks for, under the evaluator's task names.
    pub tasks: Vec<TaskRequest>,
    /// What is compared, one for each of `tasks`: the search's objective, less tasks without a weight that have no
    /// hold-out.
    pub objective: Objective,
    /// The evaluator's task name by the run's task name, where they differ.
    pub names: BTreeMap<String, String>,
    /// Candidates that are scored on it, beside the best baseline.
    pub finalists: usize,
    /// Samples of one hold-out evaluation.
    pub samples: u64,
}

/// Keeps `limit` samples, the first ones of a fixed shuffle; their order stays.
pub(super) fn keep_some(seed: u64, task: &str, ids: &mut Vec<SampleId>, limit: u64) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut shuffled = ids.clone();
    sort_by_hash("evomerge limit v1", seed, task, &mut shuffled);
    shuffled.truncate(limit);
    let kept: HashSet<SampleId> = shuffled.into_iter().collect();
    ids.retain(|id| kept.contains(id));
}

/// Splits a task's samples by hash of (seed, task, sample id) into search and hold-out, both in the evaluator's order.
pub(super) fn split(
    seed: u64,
    task: &str,
    known: &TaskCapability,
    fraction: f64,
) -> Result<(Vec<SampleId>, Vec<SampleId>), SearchError> {
    let ids = known.sample_ids.as_ref().filter(|_| known.supports_sample_ids).ok_or_else(|| {
        let detail = format!(
            "task `{task}`: holdout.fraction needs an evaluator that supports sample_ids; name hold-out tasks, data or \
             endpoints instead"
        );
        SearchError::Settings(detail)
    })?;
    let goes_to_holdout = |id: &SampleId| {
        let digest = sample_hash("evomerge split v1", seed, task, id);
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

/// The hold-out of a run, if it has one; refused where the search sees some of it.
pub(super) async fn holdout_plan(
    prepared: &Prepared,
    scratch: &Path,
    progress: &Arc<dyn Progress>,
    stop: &Stop,
) -> Result<Option<HoldoutPlan>, SearchError> {
    let Some(holdout) = &prepared.config.holdout else { return Ok(None) };
    let Source { evaluator, names, samples } = open_source(prepared, &holdout.source, scratch, progress, stop).await?;
    let is_covered = |name: &String| match &holdout.source {
        HoldoutSource::Data(data) => data.contains_key(name),
        HoldoutSource::Tasks(renamed) => renamed.contains_key(name),
        HoldoutSource::Endpoints(_) | HoldoutSource::Fraction(_) => true,
    };
    let mut tasks = Vec::new();
    for task in prepared.tasks.iter().filter(|task| is_covered(&task.name)) {
        let name = names.get(&task.name).unwrap_or(&task.name).clone();
        check_metric(prepared.evaluator.as_ref(), evaluator.as_ref(), task, &name)?;
        let samples = samples.get(&task.name).cloned().unwrap_or(Samples::All);
        tasks.push(TaskRequest { name, metric: task.metric.clone(), samples, seed: task.seed });
    }
    let compared = prepared.objective.tasks.iter().filter(|task| is_covered(&task.name)).cloned();
    let objective = Objective { tasks: compared.collect() };
    leave_out_copies(&mut tasks, &objective, evaluator.as_ref(), progress)?;
    let samples = count_samples(&tasks, evaluator.as_ref());
    let plan = HoldoutPlan { evaluator, tasks, objective, names, finalists: holdout.finalists.get(), samples };
    if matches!(holdout.source, HoldoutSource::Endpoints(_)) {
        refuse_same_fingerprint(prepared, plan.evaluator.as_ref())?;
    }
    refuse_overlap(prepared, &plan, matches!(holdout.source, HoldoutSource::Fraction(_)))?;
    Ok(Some(plan))
}

/// Where the samples of a hold-out come from.
struct Source {
    evaluator: Arc<dyn Evaluator>,
    /// Names that the evaluator has for tasks of the run, where they are others.
    names: BTreeMap<String, String>,
    /// By the run's names, for those that are not asked for all.
    samples: BTreeMap<String, Samples>,
}

async fn open_source(
    prepared: &Prepared,
    source: &HoldoutSource,
    scratch: &Path,
    progress: &Arc<dyn Progress>,
    stop: &Stop,
) -> Result<Source, SearchError> {
    let mut names = BTreeMap::new();
    let mut samples = BTreeMap::new();
    let evaluator = match source {
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
            if let EvaluatorKind::Http(http) = &mut config.evaluator.kind {
                refuse_same_address(&http.endpoints, endpoints)?;
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
    Ok(Source { evaluator, names, samples })
}

/// Under one fingerprint, tasks of one name and version have the same data: a fingerprint covers it. Where the user takes
/// endpoints with others as equivalent, fingerprints say nothing.
fn refuse_same_fingerprint(prepared: &Prepared, holdout: &dyn Evaluator) -> Result<(), SearchError> {
    let is_said = match &prepared.config.evaluator.kind {
        EvaluatorKind::Http(http) => !http.allow_different_fingerprints,
        EvaluatorKind::Native(_) | EvaluatorKind::Command(_) | EvaluatorKind::Function(_) => false,
    };
    if !is_said || holdout.fingerprint() != prepared.evaluator.fingerprint() {
        return Ok(());
    }
    Err(SearchError::BadData(
        "holdout.endpoints: they have the fingerprint of the search's endpoints, and a fingerprint covers the data: their \
         samples are those that the search sees; name servers of other samples. If these are others, the servers must say so by \
         their `fingerprint` or the `version` of each task"
            .to_owned(),
    ))
}

/// A hold-out on the search's own server has the search's samples.
fn refuse_same_address(search: &[String], holdout: &[String]) -> Result<(), SearchError> {
    for name in holdout {
        if let Some(other) = search.iter().find(|other| is_same_server(name, other)) {
            return Err(SearchError::Settings(format!(
                "holdout.endpoints: {name} and {other} of the search are one address, so that its samples are those that the search sees; \
                 name a server of other samples"
            )));
        }
    }
    Ok(())
}

/// Refuses a hold-out whose task `name` has not the metric that the search optimizes on `task`, or takes it the other
/// way round.
fn check_metric(
    search: &dyn Evaluator,
    holdout: &dyn Evaluator,
    task: &TaskRequest,
    name: &str,
) -> Result<(), SearchError> {
    let (seen, sealed) = (capability(search, &task.name)?, capability(holdout, name)?);
    let Some(found) = sealed.metrics.get(&task.metric) else {
        let known: Vec<&str> = sealed.metrics.keys().map(String::as_str).collect();
        return Err(SearchError::Settings(format!(
            "holdout: its task `{name}` has no metric `{}`, by which the search scores `{}` (it has {})",
            task.metric,
            task.name,
            known.join(", ")
        )));
    };
    match seen.metrics.get(&task.metric) {
        Some(metric) if metric.higher_is_better != found.higher_is_better => Err(SearchError::Settings(format!(
            "holdout: its evaluator says that a higher `{}` of task `{name}` is {}, that of the search the opposite of `{}`",
            task.metric,
            if found.higher_is_better { "better" } else { "worse" },
            task.name
        ))),
        _ => Ok(()),
    }
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

/// Content hashes of the samples that a request asks for, where the evaluator sees the data, with the samples' ids where
/// it takes ids.
fn content_hashes<'a>(known: &'a TaskCapability, samples: &Samples) -> Vec<(Option<&'a SampleId>, &'a str)> {
    let Some(hashes) = &known.sample_hashes else { return Vec::new() };
    let hashes = hashes.iter().map(String::as_str);
    match (samples, &known.sample_ids) {
        (Samples::Ids(wanted), Some(ids)) => {
            let wanted: HashSet<&SampleId> = wanted.iter().collect();
            let asked = ids.iter().zip(hashes).filter(|(id, _)| wanted.contains(id));
            asked.map(|(id, hash)| (Some(id), hash)).collect()
        }
        (Samples::All, Some(ids)) if known.supports_sample_ids => {
            ids.iter().zip(hashes).map(|(id, hash)| (Some(id), hash)).collect()
        }
        _ => hashes.map(|hash| (None, hash)).collect(),
    }
}

/// Has a hold-out ask for each sample once, in whichever task it is first: a copy would count as one more independent
/// answer. Tasks without a weight prove nothing, and have their samples as they are.
fn leave_out_copies(
    tasks: &mut [TaskRequest],
    objective: &Objective,
    evaluator: &dyn Evaluator,
    progress: &Arc<dyn Progress>,
) -> Result<(), SearchError> {
    let mut seen: HashSet<&str> = HashSet::new();
    let weighted = tasks.iter_mut().zip(&objective.tasks).filter(|(_, compared)| compared.weight != 0.0);
    for (task, _) in weighted {
        let all = content_hashes(capability(evaluator, &task.name)?, &task.samples);
        let firsts: Vec<Option<&SampleId>> =
            all.iter().filter(|(_, hash)| seen.insert(hash)).map(|(id, _)| *id).collect();
        let copies = all.len() - firsts.len();
        if copies == 0 {
            continue;
        }
        let (name, all) = (&task.name, counted(all.len() as u64, "sample"));
        let bad = |what: String| Err(SearchError::BadData(format!("hold-out of task `{name}`: {what}")));
        if firsts.is_empty() {
            return bad("all of its samples are in the hold-out of another task already; each needs its own".to_owned());
        }
        let Some(firsts) = firsts.into_iter().map(|id| id.cloned()).collect::<Option<Vec<SampleId>>>() else {
            return bad(format!(
                "of {all}, copies: {copies}; they would count as further answers, and the evaluator cannot leave them out (it does not \
                 support sample_ids): keep one of each"
            ));
        };
        progress.line(&format!(
            "hold-out of task `{name}`: of {all}, copies of others: {copies}; they are left out, so that each counts once"
        ));
        task.samples = Samples::Ids(firsts);
    }
    Ok(())
}

/// The ids of the first samples of a hold-out that the search saw, with those that they have there; empty where ids are
/// not known.
fn first_pairs(shared: &[(Option<&SampleId>, Option<&SampleId>)]) -> String {
    let pair = |(holdout, search): &(Option<&SampleId>, Option<&SampleId>)| {
        Some(format!("sample {} is the search's {}", (*holdout)?, (*search)?))
    };
    let pairs: Vec<String> = shared.iter().take(SHOWN_PAIRS).filter_map(pair).collect();
    match (pairs.is_empty(), shared.len() > pairs.len()) {
        (true, _) => String::new(),
        (false, false) => format!(" ({})", pairs.join(", ")),
        (false, true) => format!(" ({}, ...)", pairs.join(", ")),
    }
}

/// A sample that the search saw, in whichever task, proves nothing.
fn refuse_overlap(prepared: &Prepared, plan: &HoldoutPlan, is_fraction: bool) -> Result<(), SearchError> {
    let search: Vec<(&TaskRequest, &TaskCapability)> = prepared
        .tasks
        .iter()
        .map(|task| Ok((task, capability(prepared.evaluator.as_ref(), &task.name)?)))
        .collect::<Result<_, SearchError>>()?;
    let seen: HashMap<&str, Option<&SampleId>> = search
        .iter()
        .flat_map(|(task, known)| content_hashes(known, &task.samples))
        .map(|(id, hash)| (hash, id))
        .collect();
    for (task, compared) in plan.tasks.iter().zip(&plan.objective.tasks) {
        let known = capability(plan.evaluator.as_ref(), &task.name)?;
        let holdout = content_hashes(known, &task.samples);
        let shared: Vec<_> = holdout.iter().filter_map(|(id, hash)| Some((*id, *seen.get(hash)?))).collect();
        let name = &compared.name;
        if !shared.is_empty() {
            let why = if is_fraction { "; the data has samples more than once: keep one of each" } else { "" };
            return Err(SearchError::BadData(format!(
                "task `{name}`: {} of {} hold-out samples are among the samples of the search{}; a hold-out must be data \
                 that the search never saw{why}",
                shared.len(),
                holdout.len(),
                first_pairs(&shared)
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
