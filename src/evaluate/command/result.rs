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
use serde_json::{Map, Value};

use super::super::check::{Completeness, Expected, check, violation};
use super::super::judgement::{Judgement, of_problem};
use super::super::misread;
use super::super::protocol::{WireEvaluation, WireMetric, WireTaskScores};
use super::super::text::shortened;
use super::super::{Capabilities, Evaluation, EvaluationRequest};
use crate::python_json::{mark_nonfinite, without_nonfinite};
use crate::repeated_keys::refuse_repeated_keys;

/// Larger files are refused.
const MOST_BYTES: u64 = 64 << 20;

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
    settle_nonfinite(&mut answer);
    let expected = Expected { request, capabilities, fingerprint: None, completeness: Completeness::Program };
    check(answer, &expected).map_err(Judgement::of_answer)
}

fn parse(text: &str, request: &EvaluationRequest) -> Result<WireEvaluation, String> {
    let plain = without_nonfinite(text);
    let not_json = |error: serde_json::Error| no_document(plain.as_bytes(), &error);
    refuse_repeated_keys(plain.as_bytes()).map_err(not_json)?;
    let mut document: Value = serde_json::from_str(&mark_nonfinite(text)).map_err(not_json)?;
    match (document.get("tasks").is_some(), document.get("scores")) {
        (true, Some(_)) => Err("the result file has both `tasks` and `scores`; write one of them".into()),
        (false, Some(scores)) => from_short(scores, request),
        (_, None) => {
            name_nonfinite(&mut document);
            unmark(&mut document);
            read_long(&document)
        }
    }
}

fn no_document(text: &[u8], error: &serde_json::Error) -> String {
    format!("the result file is no result document: {}", misread::told(text, error))
}

fn read_long(document: &Value) -> Result<WireEvaluation, String> {
    WireEvaluation::deserialize(document).or_else(|_| {
        // Read from a text, an error has a place, by which the path to the fault is found.
        let text = document.to_string();
        serde_json::from_str(&text).map_err(|error| no_document(text.as_bytes(), &error))
    })
}

/// The answer that one number a task stands for.
fn from_short(scores: &Value, request: &EvaluationRequest) -> Result<WireEvaluation, String> {
    let expected = "expected one number a task, {\"scores\": {\"TASK\": 0.5}}";
    let Value::Object(scores) = scores else {
        return Err(format!("`scores` in the result file is {}; {expected}", shown(scores)));
    };
    let mut tasks = BTreeMap::new();
    for (name, score) in scores {
        let asked = request.tasks.iter().find(|task| task.name == *name);
        // A task that nobody asked for keeps its name, and is refused for it.
        let metric_name = asked.map(|task| task.metric.clone()).unwrap_or_default();
        let metric = short_metric(score).ok_or_else(|| {
            let (path, score) = (shortened(&format!("scores.{name}")), shown(score));
            format!("`{path}` in the result file is {score}; {expected}")
        })?;
        let metrics = BTreeMap::from([(metric_name, metric)]);
        tasks.insert(name.clone(), WireTaskScores { metrics, ..WireTaskScores::default() });
    }
    Ok(WireEvaluation { tasks, ..WireEvaluation::default() })
}

/// A score that stands for itself; `None`: it is no number.
fn short_metric(score: &Value) -> Option<WireMetric> {
    let nonfinite = nonfinite_word(score).map(str::to_owned);
    let value = match score {
        Value::Null => None,
        Value::Number(number) => Some(number.as_f64()?),
        // Beyond 64 bits, or not finite.
        marked => Some(marked_number(marked)?).filter(|value| value.is_finite()),
    };
    Some(WireMetric { value, nonfinite, ..WireMetric::default() })
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the text {:?}", shortened(text)),
        other => shortened(&other.to_string()),
    }
}

/// The number that [`mark_nonfinite`] has made a text of.
fn marked_number(value: &Value) -> Option<f64> {
    value.as_str()?.strip_prefix('\0')?.parse().ok()
}

/// The protocol's word for a number that is not finite.
fn nonfinite_word(value: &Value) -> Option<&'static str> {
    match marked_number(value)? {
        number if number.is_nan() => Some("nan"),
        f64::INFINITY => Some("inf"),
        f64::NEG_INFINITY => Some("-inf"),
        _ => None,
    }
}

/// Has metrics say which number that is not finite they, or else their samples, have.
fn name_nonfinite(document: &mut Value) {
    let Some(Value::Object(tasks)) = document.get_mut("tasks") else { return };
    for task in tasks.values_mut() {
        let words = nonfinite_words(task);
        let Some(Value::Object(metrics)) = task.get_mut("metrics") else { continue };
        for (name, word) in words {
            let Some(Value::Object(metric)) = metrics.get_mut(&name) else { continue };
            // The program's own word stays.
            if metric.get("nonfinite").is_none_or(Value::is_null) {
                metric.insert("nonfinite".to_owned(), word.into());
            }
        }
    }
}

/// By metric, its number that is not finite, or the first one of its samples.
fn nonfinite_words(task: &Value) -> Vec<(String, &'static str)> {
    let samples = task.get("per_sample").and_then(|samples| samples.get("scores"));
    let of_samples = |metric: &str| samples?.get(metric)?.as_array()?.iter().find_map(nonfinite_word);
    let metrics = task.get("metrics").and_then(Value::as_object).into_iter().flat_map(Map::iter);
    let words = metrics.filter_map(|(name, metric)| {
        let of_value = metric.get("value").and_then(nonfinite_word);
        Some((name.clone(), of_value.or_else(|| of_samples(name))?))
    });
    words.collect()
}

/// Puts the numbers back of which marked texts were made, and `null` for those that are not finite.
fn unmark(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(unmark),
        Value::Object(members) => members.values_mut().for_each(unmark),
        _ => {
            if let Some(number) = marked_number(value) {
                *value = number.into();
            }
        }
    }
}

/// In a file, `null` for a value is the program's way to say "not finite", and so is a task whose samples have such
/// scores. A standard error that is not finite is only unknown.
fn settle_nonfinite(answer: &mut WireEvaluation) {
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
