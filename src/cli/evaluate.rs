//! `evomerge evaluate`: one checkpoint, a run's evaluator and tasks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::arguments::Evaluate;
use super::error::CliError;
use super::output::{Output, say, table};
use super::progress::Screen;
use super::runtime::{run_to_end, scratch_folder};
use crate::checkpoint::{Checkpoint, ContentIds, is_adapter_folder, resolve_location};
use crate::config::RunConfig;
use crate::evaluate::{Attempt, AttemptObserver, CandidateRequest, Evaluation, EvaluationRequest};
use crate::exit::ExitCode;
use crate::files::{check_writable_folder, hold_scratch, path_text, write_atomically};
use crate::recipe::ModelReference;
use crate::score::{Objective, digits};
use crate::search::{Progress, connect_evaluator, evaluation_id};

pub(super) fn run(arguments: &Evaluate, output: Output) -> Result<ExitCode, CliError> {
    let config = RunConfig::load(&arguments.run_file)?;
    if let Some(path) = &arguments.samples {
        check_writable(path)?;
    }
    let model = find_model(&arguments.model)?;
    let checkpoint = Checkpoint::open(&model)?;
    let (content, settings) = (checkpoint.content_id(&ContentIds::in_user_cache())?, checkpoint.settings_id()?);
    drop(checkpoint);
    let scratch = scratch_folder()?;
    let _held = hold_scratch(scratch.path());
    let result = run_to_end(output, async |screen, stop| {
        let progress: Arc<dyn Progress> = screen.clone();
        let scorer = connect_evaluator(&config, scratch.path(), &progress, &stop).await;
        let scorer = scorer.map_err(|error| CliError::of_run(error, &arguments.run_file))?;
        let request = EvaluationRequest {
            evaluation_id: evaluation_id(&content, &settings, &scorer.tasks, scorer.evaluator.fingerprint()),
            run_id: "evaluate".into(),
            run_name: config.name.clone(),
            candidate: CandidateRequest {
                id: content.chars().take(16).collect(),
                recipe_sha256: content.clone(),
                path: Some(model.clone()),
                recipe: serde_json::json!({ "checkpoint": content }),
                genome: Vec::new(),
            },
            tasks: scorer.tasks.clone(),
            fidelity: 1.0,
            replicate: 0,
        };
        let retries = Retries(&screen);
        let evaluation = scorer.evaluator.evaluate(&request, &retries, &stop.soon).await?;
        Ok((scorer.objective, evaluation))
    });
    let (objective, evaluation) = result.map_err(CliError::without_run)?;
    let written = arguments.samples.as_ref().map_or(Ok(()), |path| write_samples(&evaluation, path));
    let mut json = to_json(&objective, &evaluation, &arguments.model);
    let code = written.as_ref().map_or_else(CliError::exit_code, |()| ExitCode::Done);
    if let Err(error) = &written {
        json["error"] = error.to_string().into();
        json["exit_code"] = (code as u8).into();
    }
    if !output.quiet {
        evaluation.warnings.iter().for_each(|warning| say(&format!("warning of the evaluator: {warning}")));
    }
    // Shown in any case: whatever becomes of the file, the scores were worth their price.
    output.result(&describe(&objective, &evaluation), &json)?;
    if let Err(error) = &written {
        say(&format!("error: {error}"));
    }
    Ok(code)
}

/// The folder of a model, which is what evaluators take: a path, or a Hugging Face id in the local cache.
fn find_model(named: &Path) -> Result<PathBuf, CliError> {
    let refused = |reason: String| CliError::Data { path: named.to_owned(), reason };
    let found = match named.to_str() {
        Some(text) if !named.exists() => match ModelReference::parse(text) {
            Ok(ModelReference { adapter: Some(_), .. }) => return Err(refused(merge_first(text))),
            _ => resolve_location(text, Path::new(""))?,
        },
        _ => named.to_owned(),
    };
    if is_adapter_folder(&found) {
        return Err(refused(format!("a LoRA adapter, not a whole model; {}", merge_first("BASE+ADAPTER"))));
    }
    std::path::absolute(found).map_err(|error| refused(error.to_string()))
}

/// What to do about a model that is in no folder yet.
fn merge_first(model: &str) -> String {
    format!(
        "an evaluator takes a folder with a whole model: merge the adapter into its base first, by a recipe of two lines, \
         `merge_method: passthrough` and `models: [{{model: {model:?}}}]`, and `evomerge merge RECIPE.yml --out DIR`; then score DIR"
    )
}

/// Looks whether a file can be written before scores are paid for.
fn check_writable(path: &Path) -> Result<(), CliError> {
    let fault = |source| CliError::Write { path: path.to_owned(), source };
    if path.is_dir() {
        return Err(fault(std::io::ErrorKind::IsADirectory.into()));
    }
    path.parent().map_or(Ok(()), check_writable_folder).map_err(fault)
}

/// One row a sample and metric, in the evaluator's order.
fn write_samples(evaluation: &Evaluation, path: &Path) -> Result<(), CliError> {
    let missing: Vec<&str> = evaluation
        .tasks
        .iter()
        .filter(|(_, scores)| scores.per_sample.is_none())
        .map(|(task, _)| task.as_str())
        .collect();
    if !missing.is_empty() {
        let reason = format!("not written: the evaluator gives no scores by sample for {}", missing.join(", "));
        return Err(CliError::Data { path: path.to_owned(), reason });
    }
    let fault = |reason: String| CliError::Write { path: path.to_owned(), source: std::io::Error::other(reason) };
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut row = |cells: [&str; 4]| writer.write_record(cells).map_err(|error| fault(error.to_string()));
    row(["task", "sample", "metric", "score"])?;
    for (task, scores) in &evaluation.tasks {
        let Some(samples) = &scores.per_sample else { continue };
        for (metric, values) in &samples.scores {
            for (id, value) in samples.ids.iter().zip(values) {
                row([task, &id.to_string(), metric, &value.to_string()])?;
            }
        }
    }
    let bytes = writer.into_inner().map_err(|error| fault(error.to_string()))?;
    write_atomically(path, &bytes).map_err(|source| CliError::Write { path: path.to_owned(), source })
}

/// Shows attempts that failed.
struct Retries<'a>(&'a Screen);

impl AttemptObserver for Retries<'_> {
    fn attempted(&self, attempt: &Attempt) {
        if let Some(fault) = attempt.fault.as_ref().filter(|_| attempt.counts) {
            self.0.line(&format!("attempt {} failed: {fault}", attempt.number));
        }
    }
}

fn describe(objective: &Objective, evaluation: &Evaluation) -> String {
    // An error with the digits of what it is an error of.
    let number = |of: Option<f64>, value: Option<f64>| {
        let digits = digits(&[of.unwrap_or_default()]);
        value.map_or("-".to_string(), |value| format!("{value:.digits$}"))
    };
    let mut rows = Vec::new();
    for (task, scores) in &evaluation.tasks {
        for (metric, value) in &scores.metrics {
            rows.push(vec![
                task.clone(),
                metric.clone(),
                number(Some(value.value), Some(value.value)),
                number(Some(value.value), value.stderr),
                if scores.n > 0 { scores.n.to_string() } else { "-".to_owned() },
            ]);
        }
    }
    let value = objective.value(&evaluation.tasks);
    let objective = format!(
        "objective {} (standard error {})\n",
        number(value, value),
        number(value, objective.stderr(&evaluation.tasks))
    );
    table(&["task", "metric", "score", "stderr", "n"], &rows) + &objective
}

fn to_json(objective: &Objective, evaluation: &Evaluation, model: &Path) -> serde_json::Value {
    let tasks: BTreeMap<&String, serde_json::Value> = evaluation
        .tasks
        .iter()
        .map(|(task, scores)| {
            (task, serde_json::json!({ "n": scores.n, "n_truncated": scores.n_truncated, "metrics": scores.metrics }))
        })
        .collect();
    serde_json::json!({
        "model": path_text(model),
        "objective": objective.value(&evaluation.tasks),
        "stderr": objective.stderr(&evaluation.tasks),
        "tasks": tasks,
        "warnings": evaluation.warnings,
    })
}
