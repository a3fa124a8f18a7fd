//! A program's result file, in one of two forms:
//!
//! ```json
//! {"tasks": {"add": {"n": 200, "metrics": {"accuracy": {"value": 0.5, "stderr": 0.035}},
//!                    "per_sample": {"ids": [0, 1], "scores": {"accuracy": [1, 0]}}}}}
//! {"scores": {"add": 0.5}}
//! ```
//!
//! The first is the protocol's evaluation document, of which ids, status, n, stderr and per-sample scores may be left
//! out. The second gives one number a task for the task's metric and says that all samples asked for were used. A file
//! with both `tasks` and `scores` is refused.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::super::check::{Completeness, Expected, check, violation};
use super::super::judgement::{Judgement, of_problem};
use super::super::protocol::{WireEvaluation, WireMetric, WireTaskScores};
use super::super::{Capabilities, Evaluation, EvaluationRequest};
use crate::python_json::without_nonfinite;
use crate::repeated_keys::refuse_repeated_keys;

/// Larger files are refused.
const MOST_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct ShortForm {
    scores: BTreeMap<String, Option<f64>>,
}

/// The checked scores of a result file.
///
/// # Errors
/// The judgement on a missing, unreadable, wrong or `failed` result.
pub(super) fn read(
    path: &Path,
    request: &EvaluationRequest,
    capabilities: &Capabilities,
) -> Result<Evaluation, Judgement> {
    let wrong = |detail: String| Judgement::of_answer(violation(detail));
    let found = std::fs::metadata(path)
        .map_err(|error| wrong(format!("the program ended with exit 0 but left no result file ({error})")))?;
    // A pipe would be waited for without end.
    if !found.is_file() {
        return Err(wrong("what the program left as its result file is no regular file".into()));
    }
    let size = found.len();
    if size > MOST_BYTES {
        return Err(wrong(format!("the result file has {size} bytes, more than {MOST_BYTES}")));
    }
    let bytes = std::fs::read(path).map_err(|error| wrong(format!("the result file cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("the result file is not UTF-8".into()))?;
    let mut answer = parse(&text, request).map_err(wrong)?;
    match answer.status.as_deref() {
        None | Some("succeeded") => {}
        Some("failed") => {
            return Err(answer.error.as_ref().map_or_else(
                || Judgement::retry("internal", "the result file says `failed` without an `error`"),
                of_problem,
            ));
        }
        Some(other) => {
            return Err(wrong(format!("the result file's status is {other:?}, expected succeeded or failed")));
        }
    }
    mark_nonfinite(&mut answer);
    let expected = Expected { request, capabilities, fingerprint: None, completeness: Completeness::Program };
    check(answer, &expected).map_err(Judgement::of_answer)
}

fn parse(text: &str, request: &EvaluationRequest) -> Result<WireEvaluation, String> {
    let text = without_nonfinite(text);
    let not_json = |error: serde_json::Error| format!("the result file is no result document: {error}");
    refuse_repeated_keys(text.as_bytes()).map_err(not_json)?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(not_json)?;
    match (value.get("tasks").is_some(), value.get("scores").is_some()) {
        (true, true) => Err("the result file has both `tasks` and `scores`; write one of them".into()),
        (false, true) => {
            let short: ShortForm = serde_json::from_value(value).map_err(|error| {
                format!("`scores` in the result file: {error}; expected one number a task, {{\"scores\": {{\"TASK\": 0.5}}}}")
            })?;
            Ok(from_short(short, request))
        }
        _ => serde_json::from_value(value).map_err(not_json),
    }
}

fn from_short(short: ShortForm, request: &EvaluationRequest) -> WireEvaluation {
    let tasks = short.scores.into_iter().map(|(name, value)| {
        let asked = request.tasks.iter().find(|task| task.name == name);
        // A task that nobody asked for keeps its name, and is refused for it.
        let metric = asked.map(|task| task.metric.clone()).unwrap_or_default();
        let metrics = BTreeMap::from([(metric, WireMetric { value, ..WireMetric::default() })]);
        (name, WireTaskScores { metrics, ..WireTaskScores::default() })
    });
    WireEvaluation { tasks: tasks.collect(), ..WireEvaluation::default() }
}

/// In a file, `null` (also a bare `NaN`) for a value is the program's way to say "not finite", and so is a task whose
/// samples have such scores. A standard error that is not finite is only unknown.
fn mark_nonfinite(answer: &mut WireEvaluation) {
    for task in answer.tasks.values_mut() {
        for (name, metric) in &mut task.metrics {
            let samples = task.per_sample.as_ref().and_then(|samples| samples.scores.get(name));
            let bad_sample = samples.is_some_and(|scores| scores.iter().any(Option::is_none));
            if metric.value.is_none() || bad_sample {
                metric.value = None;
                metric.nonfinite.get_or_insert_with(|| "nan".to_owned());
            }
        }
    }
}
