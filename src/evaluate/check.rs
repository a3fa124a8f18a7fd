//! Answers are checked before they count. The order is fixed: ids, fingerprint, tasks and metrics, finite and in range,
//! number of samples, standard error, per-sample scores. What an evaluator says wrongly is a fault of the
//! infrastructure, never a score; a metric that the evaluator itself calls not finite is the candidate's.

use std::collections::{BTreeMap, HashMap};

use super::protocol::{WireEvaluation, WireMetric, WirePerSample, WireTaskScores};
use super::{Capabilities, Evaluation, EvaluationRequest, Fault, FaultClass, MetricCapability, Samples, TaskRequest};
use crate::scores::{MOST_SAMPLES, MetricValue, PerSample, SAMPLE_WEIGHT, SampleId, TaskScores};

/// How far the mean of the per-sample scores may lie from the value, relative to it where it is above 1.
const MEAN_TOLERANCE: f64 = 1e-6;

/// How much an answer has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completeness {
    /// An endpoint: ids, n and what the protocol requires.
    Endpoint,
    /// A program's result file: what it does not say is taken from the request; what it says must be right.
    Program,
}

/// What an answer is held against.
pub(super) struct Expected<'a> {
    pub request: &'a EvaluationRequest,
    pub capabilities: &'a Capabilities,
    pub fingerprint: Option<&'a str>,
    pub completeness: Completeness,
}

/// The checked answer.
///
/// # Errors
/// An infrastructure fault `invalid_answer` that says what is wrong, or a candidate fault `candidate_nonfinite`.
pub(super) fn check(answer: WireEvaluation, expected: &Expected) -> Result<Evaluation, Fault> {
    check_identity(&answer, expected)?;
    let requested: Vec<&str> = expected.request.tasks.iter().map(|task| task.name.as_str()).collect();
    if let Some(extra) = answer.tasks.keys().find(|name| !requested.contains(&name.as_str())) {
        return Err(violation(format!("task {extra} was not asked for")));
    }
    let mut tasks = BTreeMap::new();
    let mut answered = answer.tasks;
    for task in &expected.request.tasks {
        let scores = answered
            .remove(&task.name)
            .ok_or_else(|| violation(format!("task {} is missing from the answer", task.name)))?;
        tasks.insert(task.name.clone(), check_task(scores, task, expected)?);
    }
    Ok(Evaluation::new(tasks, answer.warnings))
}

pub(super) fn violation(detail: String) -> Fault {
    Fault::new(FaultClass::Infrastructure, "invalid_answer", detail)
}

fn check_identity(answer: &WireEvaluation, expected: &Expected) -> Result<(), Fault> {
    let required = expected.completeness == Completeness::Endpoint;
    same(required, "evaluation_id", answer.evaluation_id.as_deref(), &expected.request.evaluation_id)?;
    same(required, "candidate_id", answer.candidate_id.as_deref(), &expected.request.candidate.id)?;
    match expected.fingerprint {
        // A server that leaves the fingerprint out is held to the one in its capabilities.
        Some(fingerprint) => same(false, "fingerprint", answer.fingerprint.as_deref(), fingerprint),
        None => Ok(()),
    }
}

fn same(required: bool, field: &str, found: Option<&str>, expected: &str) -> Result<(), Fault> {
    match found {
        None if required => Err(violation(format!("{field} is missing from the answer"))),
        Some(found) if found != expected => Err(violation(format!("{field} is {found}, expected {expected}"))),
        _ => Ok(()),
    }
}

fn check_task(scores: WireTaskScores, task: &TaskRequest, expected: &Expected) -> Result<TaskScores, Fault> {
    let known = expected.capabilities.tasks.get(&task.name);
    let metric = scores
        .metrics
        .get(&task.metric)
        .ok_or_else(|| violation(format!("task {}: metric {} is missing from the answer", task.name, task.metric)))?;
    let capability = known.and_then(|known| known.metrics.get(&task.metric));
    let value = check_value(metric, task, capability)?;
    let n_samples = known.map_or(0, |known| known.n_samples);
    for (field, count) in [("n", scores.n), ("n_truncated", scores.n_truncated)] {
        if let Some(count) = count.filter(|count| *count > MOST_SAMPLES) {
            return Err(violation(format!("task {}: {field} is {count}, which is no number of samples", task.name)));
        }
    }
    let counted = scores.per_sample.as_ref().map(|samples| samples.ids.len() as u64);
    let n = check_n(scores.n, counted, task, n_samples, expected.completeness)?;
    if let Some(stderr) = metric.stderr
        && (!stderr.is_finite() || stderr < 0.0)
    {
        return Err(violation(format!("task {}: stderr of {} is {stderr}, expected >= 0", task.name, task.metric)));
    }
    let mean_of = capability.filter(|capability| capability.is_mean).map(|capability| (value, capability));
    let per_sample = match scores.per_sample {
        Some(per_sample) => {
            let known_ids =
                known.filter(|known| known.supports_sample_ids).and_then(|known| known.sample_ids.as_deref());
            Some(check_per_sample(per_sample, task, n, known_ids, mean_of)?)
        }
        None if expected.completeness == Completeness::Endpoint
            && known.is_some_and(|known| known.supports_per_sample) =>
        {
            return Err(violation(format!("task {}: per-sample scores were asked for and are missing", task.name)));
        }
        None => None,
    };
    let metrics = BTreeMap::from([(task.metric.clone(), MetricValue { value, stderr: metric.stderr })]);
    Ok(TaskScores { n, n_truncated: scores.n_truncated, metrics, per_sample })
}

fn check_value(metric: &WireMetric, task: &TaskRequest, capability: Option<&MetricCapability>) -> Result<f64, Fault> {
    let name = format!("task {}: {}", task.name, task.metric);
    let value = match (metric.value, &metric.nonfinite) {
        (Some(value), None) if value.is_finite() => value,
        (None, Some(nonfinite)) => {
            let detail = format!("{name} is not finite ({nonfinite})");
            return Err(Fault::new(FaultClass::Candidate, "candidate_nonfinite", detail));
        }
        (Some(value), _) => return Err(violation(format!("{name} is {value}, expected a finite number"))),
        (None, None) => return Err(violation(format!("{name} has no value"))),
    };
    let Some(capability) = capability else { return Ok(value) };
    if capability.min.is_some_and(|min| value < min) || capability.max.is_some_and(|max| value > max) {
        let bound = |bound: Option<f64>| bound.map_or("-".to_owned(), |bound| bound.to_string());
        let (min, max) = (bound(capability.min), bound(capability.max));
        return Err(violation(format!("{name} is {value}, outside the announced range [{min}, {max}]")));
    }
    if metric.higher_is_better.is_some_and(|higher| higher != capability.higher_is_better) {
        return Err(violation(format!("{name}: higher_is_better contradicts the capabilities")));
    }
    Ok(value)
}

/// The number of samples scored; `counted` are those with a score of their own. `n_samples` 0 stands for unknown; so does
/// the result, where nobody knows.
fn check_n(
    n: Option<u64>,
    counted: Option<u64>,
    task: &TaskRequest,
    n_samples: u64,
    completeness: Completeness,
) -> Result<u64, Fault> {
    match (n, task.samples.count(n_samples)) {
        (Some(n), Some(expected)) if n != expected => {
            // A program's task may simply be smaller than the limit; only it knows.
            let smaller = n_samples == 0 && matches!(task.samples, Samples::Limit(limit) if n > 0 && n < limit);
            if smaller {
                return Ok(n);
            }
            Err(violation(format!("task {}: n is {n}, expected {expected} samples", task.name)))
        }
        (Some(n), _) => Ok(n),
        (None, _) if completeness == Completeness::Endpoint => {
            Err(violation(format!("task {}: n is missing from the answer", task.name)))
        }
        (None, expected) => {
            // The task may be smaller than the limit here too.
            let told =
                counted.filter(|count| n_samples == 0 && *count > 0 && expected.is_none_or(|most| *count < most));
            Ok(told.filter(|_| !matches!(task.samples, Samples::Ids(_))).or(expected).unwrap_or(0))
        }
    }
}

/// Per-sample scores in the order of the ids asked for; where none were named, in that of the ids that the task is known
/// to have, or else in ascending order.
fn check_per_sample(
    answer: WirePerSample,
    task: &TaskRequest,
    n: u64,
    known_ids: Option<&[SampleId]>,
    mean_of: Option<(f64, &MetricCapability)>,
) -> Result<PerSample, Fault> {
    let name = &task.name;
    let scores = answer
        .scores
        .get(&task.metric)
        .ok_or_else(|| violation(format!("task {name}: per-sample scores of {} are missing", task.metric)))?;
    if scores.len() != answer.ids.len() {
        let (scores, ids) = (scores.len(), answer.ids.len());
        return Err(violation(format!("task {name}: {scores} per-sample scores for {ids} ids")));
    }
    let mut by_id: HashMap<&SampleId, f64> = HashMap::with_capacity(scores.len());
    for (id, score) in answer.ids.iter().zip(scores) {
        let score = score
            .filter(|score| score.is_finite())
            .ok_or_else(|| violation(format!("task {name}: the score of sample {id} is not a finite number")))?;
        if by_id.insert(id, score).is_some() {
            return Err(violation(format!("task {name}: sample {id} is answered twice")));
        }
    }
    let ids = match (&task.samples, known_ids) {
        (Samples::Ids(ids), _) => ids.clone(),
        (Samples::All, Some(ids)) => ids.to_vec(),
        (Samples::All | Samples::Limit(_), _) => {
            let mut ids = answer.ids.clone();
            ids.sort_unstable();
            ids
        }
    };
    let aligned: Vec<f64> = ids
        .iter()
        .map(|id| by_id.get(id).copied().ok_or_else(|| violation(format!("task {name}: sample {id} has no score"))))
        .collect::<Result<_, _>>()?;
    // n is 0 where a program's task has an unknown number of samples.
    if by_id.len() != aligned.len() || (n > 0 && aligned.len() as u64 != n) {
        return Err(violation(format!("task {name}: {} per-sample scores, expected {n}", by_id.len())));
    }
    if let Some((value, capability)) = mean_of
        && !aligned.is_empty()
    {
        check_mean_of(task, (&ids, &aligned), value, capability)?;
    }
    let mut kept = BTreeMap::from([(task.metric.clone(), aligned)]);
    if task.metric != SAMPLE_WEIGHT
        && let Some(weights) = answer.scores.get(SAMPLE_WEIGHT)
    {
        kept.insert(SAMPLE_WEIGHT.to_owned(), aligned_weights(&answer, weights, &ids, name)?);
    }
    Ok(PerSample { ids: ids.into(), scores: kept })
}

/// A metric that is a mean of its samples must be that of these, each within the announced range.
fn check_mean_of(
    TaskRequest { name, metric, .. }: &TaskRequest,
    (ids, scores): (&[SampleId], &[f64]),
    value: f64,
    capability: &MetricCapability,
) -> Result<(), Fault> {
    let slack = |bound: f64| MEAN_TOLERANCE * bound.abs().max(1.0);
    let outside = |score: &f64| {
        capability.min.is_some_and(|min| *score < min - slack(min))
            || capability.max.is_some_and(|max| *score > max + slack(max))
    };
    if let Some(place) = scores.iter().position(outside) {
        let (id, score) = (&ids[place], scores[place]);
        return Err(violation(format!(
            "task {name}: the score of sample {id} is {score}, outside the announced range"
        )));
    }
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    if (mean - value).abs() > MEAN_TOLERANCE * value.abs().max(1.0) {
        return Err(violation(format!(
            "task {name}: {metric} is {value}, but its samples have the mean {mean}; expected within {MEAN_TOLERANCE:e}, not rounded"
        )));
    }
    Ok(())
}

/// What the samples of a weighted mean weigh, in the order of `ids`, which all have a score.
fn aligned_weights(
    answer: &WirePerSample,
    weights: &[Option<f64>],
    ids: &[SampleId],
    task: &str,
) -> Result<Vec<f64>, Fault> {
    if weights.len() != answer.ids.len() {
        return Err(violation(format!("task {task}: {} weights for {} ids", weights.len(), answer.ids.len())));
    }
    let by_id: HashMap<&SampleId, Option<f64>> = answer.ids.iter().zip(weights.iter().copied()).collect();
    let weight = |id: &SampleId| {
        let weight = by_id.get(id).copied().flatten().filter(|weight| weight.is_finite() && *weight > 0.0);
        weight.ok_or_else(|| violation(format!("task {task}: the weight of sample {id} is no finite number above 0")))
    };
    ids.iter().map(weight).collect()
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
