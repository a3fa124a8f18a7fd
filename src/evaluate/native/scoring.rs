//! One evaluation: load the candidate, spread its samples over the workers, sum up.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use super::architecture::Architecture;
use super::data::{Content, TaskData, TaskKind};
use super::deadline::Deadline;
use super::model::Model;
use super::tokens::{Encoded, Tokenizers, Tokens};
use super::workers::Workers;
use super::{exact_match, fault, likelihood, samples};
use crate::evaluate::fault::TOKENIZER_INVALID;
use crate::evaluate::{Evaluation, EvaluationRequest, Fault, TaskRequest};
use crate::scores::{MetricValue, PerSample, SAMPLE_WEIGHT, TaskScores};

/// A task as it is scored.
pub(super) struct Task {
    pub(super) data: TaskData,
    /// At least 1.
    pub(super) max_new_tokens: usize,
}

/// Everything that outlives an evaluation.
pub(super) struct Engine {
    tasks: BTreeMap<String, Task>,
    workers: Workers,
    batch: NonZeroUsize,
    tokenizers: Tokenizers,
}

/// A task of a request, with its chosen samples.
struct Asked<'a> {
    request: &'a TaskRequest,
    task: &'a Task,
    /// Positions in the task's data.
    chosen: Vec<usize>,
    encoded: Arc<Vec<Encoded>>,
}

/// What one worker does at a time: samples of one task, as positions in its `chosen`.
struct Unit {
    asked: usize,
    members: Vec<usize>,
}

/// What came out for one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
struct SampleScore {
    score: f64,
    /// The sample's weight in the task's value: its bytes for perplexity, else 1.
    weight: f64,
    truncated: bool,
}

impl Engine {
    /// # Errors
    /// See [`Workers::new`].
    pub(super) fn new(
        tasks: BTreeMap<String, Task>,
        threads: NonZeroUsize,
        batch: NonZeroUsize,
    ) -> Result<Self, Fault> {
        Ok(Self { tasks, workers: Workers::new(threads)?, batch, tokenizers: Tokenizers::default() })
    }

    /// The first metric that fits the task's data.
    pub(super) fn default_metric(&self, task: &str) -> Option<&'static str> {
        self.tasks.get(task)?.data.kind.metrics().first().copied()
    }

    /// Whether models with this folder's configuration and tokenizer can be scored.
    pub(super) fn check_model(&self, folder: &Path) -> Result<(), Fault> {
        let architecture = Architecture::read(folder)?;
        self.tokenizers.of(folder)?;
        check_end(folder, &architecture, self.tasks.values())
    }

    /// Scores the request's candidate.
    pub(super) fn evaluate(&self, request: &EvaluationRequest, deadline: &Deadline) -> Result<Evaluation, Fault> {
        deadline.check()?;
        let folder = request.candidate.path.as_deref().ok_or_else(|| {
            Fault::configuration("invalid_request", "the native evaluator needs the candidate's folder, and got none")
        })?;
        let chosen = request.tasks.iter().map(|task| self.choose(task)).collect::<Result<Vec<_>, _>>()?;
        let tokens = self.tokenizers.of(folder)?;
        let asked = request
            .tasks
            .iter()
            .zip(chosen)
            .map(|(request, (task, chosen))| {
                let encoded = tokens.task(&request.name, &task.data.samples)?;
                Ok(Asked { request, task, chosen, encoded })
            })
            .collect::<Result<Vec<_>, Fault>>()?;
        let model = load(folder, &asked)?;
        let outcomes = self.score(&model, &tokens, &asked, deadline)?;
        let mut tasks = BTreeMap::new();
        for (asked, outcomes) in asked.iter().zip(&outcomes) {
            tasks.insert(asked.request.name.clone(), summarize(asked, outcomes));
        }
        Ok(Evaluation::new(tasks, warnings(&model, &asked)))
    }

    /// The task that `request` names and the positions of its samples.
    fn choose(&self, request: &TaskRequest) -> Result<(&Task, Vec<usize>), Fault> {
        let task = self.tasks.get(&request.name).ok_or_else(|| {
            let known: Vec<&str> = self.tasks.keys().map(String::as_str).collect();
            Fault::configuration(
                "unknown_task",
                format!("task `{}` is not known; the tasks are {}", request.name, known.join(", ")),
            )
        })?;
        let fitting = task.data.kind.metrics();
        if !fitting.contains(&request.metric.as_str()) {
            return Err(Fault::configuration(
                "invalid_request",
                format!("task `{}` has no metric `{}`; it has {}", request.name, request.metric, fitting.join(", ")),
            ));
        }
        let ids: Vec<_> = task.data.samples.iter().map(|sample| sample.id.clone()).collect();
        Ok((task, samples::select(&request.name, &ids, &request.samples, request.seed)?))
    }

    /// Scores of samples by task, aligned with `chosen`.
    fn score(
        &self,
        model: &Model,
        tokens: &Tokens,
        asked: &[Asked<'_>],
        deadline: &Deadline,
    ) -> Result<Vec<Vec<SampleScore>>, Fault> {
        let units: Vec<Unit> = asked.iter().enumerate().flat_map(|(at, asked)| units(at, asked, self.batch)).collect();
        let results = self.workers.map(units.len(), |unit| {
            deadline.check()?;
            let unit = &units[unit];
            score_unit(model, tokens, &asked[unit.asked], &unit.members, deadline)
        })?;
        let mut outcomes: Vec<Vec<Option<SampleScore>>> =
            asked.iter().map(|asked| vec![None; asked.chosen.len()]).collect();
        for (unit, results) in units.iter().zip(results) {
            for (member, outcome) in unit.members.iter().zip(results) {
                outcomes[unit.asked][*member] = Some(outcome);
            }
        }
        let whole = outcomes.into_iter().map(|task| task.into_iter().collect::<Option<Vec<_>>>()).collect();
        Option::ok_or(whole, fault::internal("a sample was left out; please report this"))
    }
}

/// Loads the model; its vocabulary must hold every token of the samples asked for.
fn load(folder: &Path, asked: &[Asked<'_>]) -> Result<Model, Fault> {
    let model = Model::load(folder)?;
    let largest = asked.iter().flat_map(|asked| {
        asked.chosen.iter().map(|&at| match &asked.encoded[at] {
            Encoded::ExactMatch(ids) | Encoded::Perplexity(ids) => ids.iter().max().copied(),
            Encoded::MultipleChoice(pairs) => pairs.iter().flat_map(|(a, b)| a.iter().chain(b)).max().copied(),
        })
    });
    let largest = largest.flatten().chain(model.architecture.prefix_token()).max().unwrap_or(0);
    if largest as usize >= model.architecture.vocabulary {
        return Err(fault::invalid(format!(
            "{}: token {largest} is needed, but the vocabulary has {} tokens; tokenizer.json and config.json belong to \
             different models",
            folder.display(),
            model.architecture.vocabulary
        )));
    }
    check_end(folder, &model.architecture, asked.iter().map(|asked| asked.task))?;
    Ok(model)
}

/// Answers that are generated must be able to end.
fn check_end<'a>(
    folder: &Path,
    architecture: &Architecture,
    mut tasks: impl Iterator<Item = &'a Task>,
) -> Result<(), Fault> {
    if !architecture.eos.is_empty() || !tasks.any(|task| task.data.kind == TaskKind::ExactMatch) {
        return Ok(());
    }
    Err(Fault::configuration(
        TOKENIZER_INVALID,
        format!(
            "{}: neither generation_config.json nor config.json names an eos_token_id, so no answer would ever end; add it to \
             the model that candidates take these files from (the base, or a source by itself)",
            folder.display()
        ),
    ))
}

/// Splits a task into units that do not depend on the number of threads: prompts of equal length together, likelihoods
/// one by one.
fn units(at: usize, asked: &Asked<'_>, batch: NonZeroUsize) -> Vec<Unit> {
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut units = Vec::new();
    for (member, &position) in asked.chosen.iter().enumerate() {
        match &asked.encoded[position] {
            Encoded::ExactMatch(ids) => by_length.entry(ids.len()).or_default().push(member),
            _ => units.push(Unit { asked: at, members: vec![member] }),
        }
    }
    for members in by_length.into_values() {
        units.extend(members.chunks(batch.get()).map(|chunk| Unit { asked: at, members: chunk.to_vec() }));
    }
    units
}

/// Outcomes of `members`, in their order. All of a unit with generated answers have equally long prompts.
fn score_unit(
    model: &Model,
    tokens: &Tokens,
    asked: &Asked<'_>,
    members: &[usize],
    deadline: &Deadline,
) -> Result<Vec<SampleScore>, Fault> {
    let positions = members.iter().map(|&member| asked.chosen[member]);
    match asked.task.data.kind {
        TaskKind::ExactMatch => {
            let answers = generate(model, asked, positions.clone(), deadline)?;
            positions
                .zip(answers)
                .map(|(position, answer)| {
                    let right = !answer.truncated
                        && match &asked.task.data.samples[position].content {
                            Content::ExactMatch { answer: gold, .. } => tokens.decode(&answer.ids)? == *gold,
                            _ => false,
                        };
                    Ok(SampleScore { score: f64::from(u8::from(right)), weight: 1.0, truncated: answer.truncated })
                })
                .collect()
        }
        TaskKind::MultipleChoice | TaskKind::Perplexity => {
            positions.map(|position| likelihood_score(model, asked, position, deadline)).collect()
        }
    }
}

fn generate(
    model: &Model,
    asked: &Asked<'_>,
    positions: impl Iterator<Item = usize>,
    deadline: &Deadline,
) -> Result<Vec<exact_match::Answer>, Fault> {
    let prefix: Vec<u32> = model.architecture.prefix_token().into_iter().collect();
    let prompts: Vec<&[u32]> = positions
        .map(|position| match &asked.encoded[position] {
            Encoded::ExactMatch(ids) if !ids.is_empty() => &ids[..],
            _ => &prefix[..],
        })
        .collect();
    exact_match::greedy(model, &prompts, asked.task.max_new_tokens, deadline)
}

fn likelihood_score(
    model: &Model,
    asked: &Asked<'_>,
    position: usize,
    deadline: &Deadline,
) -> Result<SampleScore, Fault> {
    let sample = &asked.task.data.samples[position];
    match (&sample.content, &asked.encoded[position]) {
        (Content::MultipleChoice { choices, gold, .. }, Encoded::MultipleChoice(pairs)) => {
            let mut values = likelihood::choices(model, pairs)?;
            if asked.request.metric == "acc_norm" {
                for (value, choice) in values.iter_mut().zip(choices) {
                    *value /= choice.chars().count() as f64;
                }
            }
            let right = likeliest(&values) == *gold;
            Ok(SampleScore { score: f64::from(u8::from(right)), weight: 1.0, truncated: false })
        }
        (Content::Perplexity { text }, Encoded::Perplexity(ids)) => {
            let bits = -likelihood::text(model, ids, || deadline.check())? / std::f64::consts::LN_2;
            let bytes = text.len() as f64;
            Ok(SampleScore { score: bits / bytes, weight: bytes, truncated: false })
        }
        _ => Err(fault::internal("a sample and its tokens are of different kinds; please report this")),
    }
}

/// Index of the largest value, the first of equals.
fn likeliest(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}

fn summarize(asked: &Asked<'_>, outcomes: &[SampleScore]) -> TaskScores {
    let samples = &asked.task.data.samples;
    let scores = outcomes.iter().map(|outcome| outcome.score).collect();
    let mut per_sample = PerSample {
        ids: asked.chosen.iter().map(|&at| samples[at].id.clone()).collect(),
        scores: BTreeMap::from([(asked.request.metric.clone(), scores)]),
    };
    if asked.task.data.kind == TaskKind::Perplexity {
        let bytes = outcomes.iter().map(|outcome| outcome.weight).collect();
        per_sample.scores.insert(SAMPLE_WEIGHT.into(), bytes);
    }
    let generated = asked.task.data.kind == TaskKind::ExactMatch;
    TaskScores {
        n: outcomes.len() as u64,
        n_truncated: generated.then(|| outcomes.iter().filter(|outcome| outcome.truncated).count() as u64),
        metrics: BTreeMap::from([(asked.request.metric.clone(), weighted_mean(outcomes))]),
        per_sample: Some(per_sample),
    }
}

/// Mean of the scores by weight, and its standard error: of a mean (n - 1 in the denominator) where weights are equal,
/// of a ratio of sums (linearized) where they are not. None for a single sample.
fn weighted_mean(outcomes: &[SampleScore]) -> MetricValue {
    let total: f64 = outcomes.iter().map(|outcome| outcome.weight).sum();
    let value = outcomes.iter().map(|outcome| outcome.weight * outcome.score).sum::<f64>() / total;
    let n = outcomes.len() as f64;
    let squares: f64 = outcomes.iter().map(|outcome| (outcome.weight * (outcome.score - value)).powi(2)).sum();
    let stderr = (outcomes.len() > 1).then(|| (squares * n / (n - 1.0)).sqrt() / total);
    MetricValue { value, stderr }
}

/// Samples that do not fit the positions that the model was made for are scored all the same, and told.
fn warnings(model: &Model, asked: &[Asked<'_>]) -> Vec<String> {
    let context = model.architecture.context;
    let too_long = |asked: &Asked<'_>| {
        let length = |position: &usize| match &asked.encoded[*position] {
            Encoded::ExactMatch(ids) => ids.len(),
            Encoded::MultipleChoice(pairs) => pairs.iter().map(|(a, b)| a.len() + b.len()).max().unwrap_or(0),
            Encoded::Perplexity(_) => 0,
        };
        asked.chosen.iter().filter(|position| length(position) > context).count()
    };
    asked
        .iter()
        .map(|asked| (asked, too_long(asked)))
        .filter(|(_, count)| *count > 0)
        .map(|(asked, count)| {
            format!("task `{}`: {count} samples are longer than the model's {context} positions", asked.request.name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(score: f64, weight: f64) -> SampleScore {
        SampleScore { score, weight, truncated: false }
    }

    #[test]
    fn equal_weights_give_the_mean_and_its_standard_error() {
        let value = weighted_mean(&[1.0, 0.0, 0.0, 1.0, 1.0].map(|score| outcome(score, 1.0)));
        assert!((value.value - 0.6).abs() < 1e-15);
        assert!((value.stderr.unwrap() - (0.3_f64 / 5.0).sqrt()).abs() < 1e-15);
        assert_eq!(weighted_mean(&[outcome(2.0, 3.0)]), MetricValue { value: 2.0, stderr: None });
    }

    #[test]
    fn bytes_weigh() {
        let value = weighted_mean(&[outcome(1.0, 1.0), outcome(3.0, 3.0)]);
        assert!((value.value - 2.5).abs() < 1e-15);
        let scaled = weighted_mean(&[outcome(1.0, 10.0), outcome(3.0, 30.0)]);
        assert!((value.stderr.unwrap() - scaled.stderr.unwrap()).abs() < 1e-15);
    }
}
