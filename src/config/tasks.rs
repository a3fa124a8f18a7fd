//! `[[tasks]]` and `[holdout]`: what is measured, and what is kept sealed.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::evaluator::read_endpoints;
use super::values::named;
use super::{ConfigError, EvaluatorKind, Goal, HoldoutConfig, HoldoutSource, TaskConfig};
use crate::document::{Field, FieldError};
use crate::scores::MOST_SAMPLES;
use crate::suggestion::hint;

const DEFAULT_FINALISTS: NonZeroUsize = NonZeroUsize::new(5).unwrap();

pub(super) fn read(field: &Field<'_>, directory: &Path, kind: &EvaluatorKind) -> Result<Vec<TaskConfig>, ConfigError> {
    let items = field.list()?;
    if items.is_empty() {
        return Err(field.error("at least one task is needed").into());
    }
    let mut tasks: Vec<TaskConfig> = Vec::with_capacity(items.len());
    for item in items {
        let task = read_task(&item, directory, kind)?;
        if tasks.iter().any(|other| other.name == task.name) {
            return Err(item.error(format!("there is another task with the `name` {:?}", task.name)).into());
        }
        tasks.push(task);
    }
    if tasks.iter().all(|task| task.weight == 0.0) {
        return Err(field.error("every `weight` is 0, so nothing would be searched for").into());
    }
    if !tasks.iter().map(|task| task.weight.abs()).sum::<f64>().is_finite() {
        return Err(field.error("the sum of all `weight` is too large a number").into());
    }
    Ok(tasks)
}

fn read_task(field: &Field<'_>, directory: &Path, kind: &EvaluatorKind) -> Result<TaskConfig, ConfigError> {
    let mut fields = field.fields()?;
    let name = fields.require("name", "the name of the task")?.word()?.to_owned();
    let data = if matches!(kind, EvaluatorKind::Native(_)) {
        Some(fields.require("data", "the native evaluator needs a JSON-lines file")?)
    } else {
        fields.take("data")
    };
    let data = data.map(|field| read_data(&field, directory, kind)).transpose()?;
    let task = TaskConfig {
        name,
        data,
        metric: fields.take("metric").map(|field| field.word().map(str::to_owned)).transpose()?,
        weight: fields.take("weight").map_or(Ok(1.0), |field| field.number())?,
        goal: fields.take("goal").map(|field| named(&field, &Goal::ALL, Goal::name)).transpose()?,
        max_new_tokens: fields.take("max_new_tokens").map(|field| field.count()).transpose()?.map(NonZeroUsize::get),
        limit: fields.take("limit").map(|field| read_limit(&field)).transpose()?,
    };
    fields.finish()?;
    Ok(task)
}

/// Samples that an evaluation may use at most.
fn read_limit(field: &Field<'_>) -> Result<u64, FieldError> {
    match field.positive()? {
        limit if limit <= MOST_SAMPLES => Ok(limit),
        limit => Err(field.error(format!("must be at most {MOST_SAMPLES}, but is {limit}; without it, all are used"))),
    }
}

/// A data file. Only `native` opens it, so only there it must exist.
fn read_data(field: &Field<'_>, directory: &Path, kind: &EvaluatorKind) -> Result<PathBuf, ConfigError> {
    let path = directory.join(field.word()?);
    if matches!(kind, EvaluatorKind::Native(_)) && !path.is_file() {
        let why = if path.exists() { "not a file" } else { "no such file" };
        return Err(ConfigError::task_data(field.error(format!("{why}: {}", path.display()))));
    }
    Ok(path)
}

pub(super) fn read_holdout(
    field: &Field<'_>,
    directory: &Path,
    kind: &EvaluatorKind,
    tasks: &[TaskConfig],
) -> Result<HoldoutConfig, ConfigError> {
    let mut fields = field.fields()?;
    let finalists = fields.take("finalists").map_or(Ok(DEFAULT_FINALISTS), |field| field.count())?;
    let given = (fields.take("tasks"), fields.take("endpoints"), fields.take("fraction"));
    fields.finish()?;
    let source = match given {
        (Some(field), None, None) => read_holdout_tasks(&field, directory, kind, tasks)?,
        (None, Some(field), None) => {
            if !matches!(kind, EvaluatorKind::Http(_)) {
                return Err(field.error("only the http evaluator has endpoints; use `tasks` or `fraction`").into());
            }
            let endpoints = read_endpoints(&field)?;
            if let EvaluatorKind::Http(http) = kind
                && let Some(shared) = endpoints.iter().find(|endpoint| http.endpoints.contains(endpoint))
            {
                let reason = format!(
                    "{shared} is an endpoint of the search, which would score the same samples; name a server with other \
                     data, or give `tasks` or `fraction`"
                );
                return Err(field.error(reason).into());
            }
            HoldoutSource::Endpoints(endpoints)
        }
        (None, None, Some(field)) => {
            let fraction = field.number()?;
            if !(fraction > 0.0 && fraction < 1.0) {
                return Err(field.error(format!("must be between 0 and 1, but is {fraction}")).into());
            }
            HoldoutSource::Fraction(fraction)
        }
        (None, None, None) => return Err(field.error("missing: one of `tasks`, `endpoints` and `fraction`").into()),
        _ => return Err(field.error("give only one of `tasks`, `endpoints` and `fraction`").into()),
    };
    Ok(HoldoutConfig { source, finalists })
}

/// Hold-out samples by task: of other files, or under other names.
fn read_holdout_tasks(
    field: &Field<'_>,
    directory: &Path,
    kind: &EvaluatorKind,
    tasks: &[TaskConfig],
) -> Result<HoldoutSource, ConfigError> {
    let mut data: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for (name, entry) in field.named()? {
        if !tasks.iter().any(|task| task.name == name) {
            let hint = hint(name, tasks.iter().map(|task| task.name.as_str()));
            return Err(entry.error(format!("there is no task of that name{hint}")).into());
        }
        let mut fields = entry.fields()?;
        let (other_data, other_name) = (fields.take("data"), fields.take("task"));
        fields.finish()?;
        match (other_data, other_name) {
            (Some(field), None) => {
                let path = read_holdout_data(&field, directory, kind, tasks)?;
                check_own_file(&field, name, &path, &data, tasks)?;
                data.insert(name.to_owned(), path);
            }
            (None, Some(field)) => {
                let other = read_holdout_name(&field, kind, tasks, &names)?;
                names.insert(name.to_owned(), other);
            }
            _ => return Err(entry.error("give one of `data` and `task`").into()),
        }
    }
    let covered = |task: &TaskConfig| data.contains_key(&task.name) || names.contains_key(&task.name);
    if let Some(task) = tasks.iter().find(|task| task.weight != 0.0 && !covered(task)) {
        let reason =
            format!("has nothing for the task {:?}; each task with a weight needs hold-out samples", task.name);
        return Err(field.error(reason).into());
    }
    Ok(if names.is_empty() { HoldoutSource::Data(data) } else { HoldoutSource::Tasks(names) })
}

/// A file of the native evaluator's that the search does not use.
fn read_holdout_data(
    field: &Field<'_>,
    directory: &Path,
    kind: &EvaluatorKind,
    tasks: &[TaskConfig],
) -> Result<PathBuf, ConfigError> {
    if !matches!(kind, EvaluatorKind::Native(_)) {
        return Err(field.error("only the native evaluator reads data files; name another `task` instead").into());
    }
    let path = read_data(field, directory, kind)?;
    if tasks.iter().any(|task| task.data.as_ref() == Some(&path)) {
        return Err(field.error("is a file that the search itself uses, so it would prove nothing").into());
    }
    Ok(path)
}

/// Refuses the hold-out file of a task that is another one's already; only tasks with a weight count.
fn check_own_file(
    field: &Field<'_>,
    name: &str,
    path: &Path,
    taken: &BTreeMap<String, PathBuf>,
    tasks: &[TaskConfig],
) -> Result<(), FieldError> {
    let counts = |name: &str| tasks.iter().any(|task| task.name == name && task.weight != 0.0);
    let is_same = |other: &str, file: &Path| file == path && counts(other) && counts(name);
    match taken.iter().find(|(other, file)| is_same(other, file)) {
        Some((other, _)) => Err(taken_already(field, other)),
        None => Ok(()),
    }
}

/// The evaluator's name for a task that the search does not use.
fn read_holdout_name(
    field: &Field<'_>,
    kind: &EvaluatorKind,
    tasks: &[TaskConfig],
    taken: &BTreeMap<String, String>,
) -> Result<String, FieldError> {
    if matches!(kind, EvaluatorKind::Native(_)) {
        return Err(field.error("the native evaluator knows its tasks by their files; give `data` instead"));
    }
    let name = field.word()?;
    if tasks.iter().any(|task| task.name == name) {
        return Err(field.error("is a task that the search itself uses, so it would prove nothing"));
    }
    match taken.iter().find(|(_, other)| *other == name) {
        Some((first, _)) => Err(taken_already(field, first)),
        None => Ok(name.to_owned()),
    }
}

fn taken_already(field: &Field<'_>, first: &str) -> FieldError {
    field.error(format!("is the hold-out of the task {first:?} already; each task needs its own"))
}
