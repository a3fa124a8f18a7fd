//! What scores on a part of the samples say about all of them.
//!
//! Candidates that were scored on all samples show how much easier or harder the part is than the whole. A candidate
//! that answers like one of them finds the part as easy as that one does; so its answers on the part are put together
//! from theirs, by ridge regression, and what they gain or lose from the part to the whole, it is taken to gain or
//! lose. This is the regression estimator of survey sampling (Cochran 1977, chapter 7), shrunk towards the mean of all
//! of them.

use std::collections::HashMap;

use super::linear_algebra::{Cholesky, dot};
use crate::score::Objective;
use crate::score::mean_samples::mean_samples;
use crate::scores::{SampleId, Scores};

/// Ridge penalties, in mean squares of what the references differ by from their mean.
const PENALTIES: [f64; 7] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];
/// Ratio of the widest task's spread to a task's own above which that task's scores are magnified to the widest spread:
/// one ridge regression serves all tasks.
const OTHER_SCALE: f64 = 4.0;
/// Spread assumed for tasks scored 0 to 1. Their observed spread is not used: with few right answers it reflects the
/// candidates, not the task's scale.
const SHARES: f64 = 0.5;
/// Spread, relative to the scores' magnitude, up to which it is taken for rounding.
const ROUNDING: f64 = 1e-9;
/// Weight, in samples, of the prior that other candidates' answers predict nothing. It keeps a few agreeing answers
/// from making an estimate look certain.
const DOUBT: f64 = 4.0;

/// The samples that the candidates of a rung are scored on: by task of the objective that counts, ids ascending.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RungSamples(Vec<Vec<SampleId>>);

impl RungSamples {
    /// The samples that scores were taken on; `None` unless every task is the plain mean of its per-sample scores.
    pub(super) fn of(objective: &Objective, scores: &Scores) -> Option<Self> {
        let ids = |name: &String, metric: &str| {
            let samples = mean_samples(scores.get(name)?, metric).filter(|samples| samples.weights.is_none())?;
            let mut ids = samples.ids.to_vec();
            ids.sort_unstable();
            Some(ids)
        };
        objective.weighted_tasks().map(|task| ids(&task.name, &task.metric)).collect::<Option<_>>().map(Self)
    }

    /// Scores of these samples, task by task; `None` where one was not scored.
    fn values(&self, objective: &Objective, scores: &Scores) -> Option<Vec<Vec<f64>>> {
        let values = |name: &String, metric: &str, ids: &[SampleId]| -> Option<Vec<f64>> {
            let samples = mean_samples(scores.get(name)?, metric).filter(|samples| samples.weights.is_none())?;
            let scored: HashMap<&SampleId, f64> = samples.ids.iter().zip(samples.values.iter().copied()).collect();
            ids.iter().map(|id| scored.get(id).copied()).collect()
        };
        objective.weighted_tasks().zip(&self.0).map(|(task, ids)| values(&task.name, &task.metric, ids)).collect()
    }
}

/// A candidate that was scored on all samples, seen on a part.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    /// Scores of the part's samples less their mean, by task.
    centred: Vec<Vec<f64>>,
    /// The mean over all samples less that over the part, by task.
    gaps: Vec<f64>,
    /// Samples in all, by task.
    counts: Vec<usize>,
    /// Scores of all samples less their mean, by task.
    all: Vec<Vec<f64>>,
    /// Lowest and highest score of a sample, by task.
    ranges: Vec<[f64; 2]>,
}

impl Reference {
    /// `None` where the candidate has no score of one of the part's samples.
    pub(super) fn new(objective: &Objective, part: &RungSamples, scores: &Scores) -> Option<Self> {
        let values = part.values(objective, scores)?;
        let whole =
            objective.weighted_tasks().map(|task| Some(mean_samples(scores.get(&task.name)?, &task.metric)?.values));
        let whole = whole.collect::<Option<Vec<&[f64]>>>()?;
        Some(Self {
            gaps: whole.iter().zip(&values).map(|(all, part)| mean(all) - mean(part)).collect(),
            counts: whole.iter().map(|all| all.len()).collect(),
            all: centred(&whole),
            ranges: whole.iter().map(|values| range(values)).collect(),
            centred: centred(&values),
        })
    }

    /// Variance of a sample's score within this task.
    fn variance(&self, task: usize) -> f64 {
        let all = &self.all[task];
        dot(all, all) / all.len().max(1) as f64
    }
}

fn range(values: &[f64]) -> [f64; 2] {
    values.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], value| [low.min(*value), high.max(*value)])
}

/// By how much each task's scores are magnified: not at all, where no other task's spread is [`OTHER_SCALE`] times as
/// wide.
fn magnifications(references: &[&Reference], tasks: usize) -> Vec<f64> {
    // `None`: answers that are all alike say nothing at any scale.
    let spread = |task: usize| {
        let ends: Vec<f64> = references.iter().flat_map(|other| other.ranges[task]).collect();
        let [low, high] = range(&ends);
        if low >= 0.0 && high <= 1.0 {
            return Some(SHARES);
        }
        let squares: f64 = references.iter().map(|other| dot(&other.all[task], &other.all[task])).sum();
        let count = references.iter().map(|other| other.counts[task]).sum::<usize>().max(1);
        let spread = (squares / count as f64).sqrt();
        (spread > ROUNDING * low.abs().max(high.abs())).then_some(spread)
    };
    let spreads: Vec<Option<f64>> = (0..tasks).map(spread).collect();
    let widest = spreads.iter().flatten().copied().fold(0.0, f64::max);
    let magnification = |spread: &Option<f64>| {
        let ratio = spread.map_or(1.0, |spread| widest / spread);
        if ratio > OTHER_SCALE { ratio } else { 1.0 }
    };
    spreads.iter().map(magnification).collect()
}

/// All tasks' values in one list, magnified.
fn joined(by_task: &[Vec<f64>], scales: &[f64]) -> Vec<f64> {
    by_task.iter().zip(scales).flat_map(|(values, scale)| values.iter().map(move |value| value * scale)).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Every value less its task's mean, by task.
fn centred(values: &[impl AsRef<[f64]>]) -> Vec<Vec<f64>> {
    let less_mean = |values: &_| {
        let values: &[f64] = AsRef::as_ref(values);
        let mean = mean(values);
        values.iter().map(|value| value - mean).collect::<Vec<f64>>()
    };
    values.iter().map(less_mean).collect()
}

/// The scores of a part's samples with every task's metric replaced by what it is expected to be over all samples, and
/// its standard error by that of the expectation. `None` without references, or where the scores are not those of the
/// part.
pub(super) fn extrapolate(
    objective: &Objective,
    part: &RungSamples,
    scores: &Scores,
    references: &[&Reference],
) -> Option<Scores> {
    let first = references.first()?;
    let values = part.values(objective, scores)?;
    let scales = magnifications(references, values.len());
    let others: Vec<Vec<f64>> = references.iter().map(|other| joined(&other.centred, &scales)).collect();
    let combination = combine(&joined(&centred(&values), &scales), &others, values.len());
    let samples: usize = values.iter().map(Vec::len).sum();
    let mut estimated = scores.clone();
    for (place, (task, values)) in objective.weighted_tasks().zip(&values).enumerate() {
        let gap: f64 = references.iter().zip(&combination.shares).map(|(other, share)| share * other.gaps[place]).sum();
        let (known, all) = (values.len() as f64, first.counts[place].max(values.len()) as f64);
        let left = residuals(&centred(&[values])[0], place, references, &combination.shares);
        // Every task bears its part of the degrees of freedom that the combination takes: what is left of an easy task
        // says nothing of a hard one.
        let rest = (known - 1.0 - combination.taken * known / samples as f64).max(0.0);
        let alone = mean(&references.iter().map(|other| other.variance(place)).collect::<Vec<f64>>());
        let variance = (dot(&left, &left) + DOUBT * alone) / (rest + DOUBT);
        let metric = estimated.get_mut(&task.name)?.metrics.get_mut(&task.metric)?;
        metric.value = mean(values) + gap;
        metric.stderr = Some((variance / known * (1.0 - known / all)).sqrt());
    }
    Some(estimated)
}

/// What the combination leaves of a task's scores.
fn residuals(centred: &[f64], task: usize, references: &[&Reference], shares: &[f64]) -> Vec<f64> {
    let mut left = centred.to_vec();
    for (other, share) in references.iter().zip(shares) {
        left.iter_mut().zip(&other.centred[task]).for_each(|(left, value)| *left -= share * value);
    }
    left
}

/// How a candidate's answers are put together from others'.
struct Combination {
    /// One a reference; their sum is 1, because what references differ by from their mean adds up to nothing.
    shares: Vec<f64>,
    /// Degrees of freedom that the shares take.
    taken: f64,
}

/// Ridge regression of a candidate's answers on the references', with the penalty of the least generalised
/// cross-validation error (Golub et al. 1979); `groups` means were subtracted.
fn combine(own: &[f64], references: &[Vec<f64>], groups: usize) -> Combination {
    let count = references.len();
    let even = 1.0 / count as f64;
    let mut middle = vec![0.0; own.len()];
    for other in references {
        middle.iter_mut().zip(other).for_each(|(sum, value)| *sum += even * value);
    }
    let less_middle =
        |values: &[f64]| values.iter().zip(&middle).map(|(value, middle)| value - middle).collect::<Vec<f64>>();
    let left = less_middle(own);
    let apart: Vec<Vec<f64>> = references.iter().map(|other| less_middle(other)).collect();
    let gram: Vec<Vec<f64>> = (0..count).map(|i| (0..=i).map(|j| dot(&apart[i], &apart[j])).collect()).collect();
    let pulls: Vec<f64> = apart.iter().map(|values| dot(values, &left)).collect();
    let scale = gram.iter().enumerate().map(|(i, row)| row[i]).sum::<f64>() / count as f64;
    let square = dot(&left, &left);
    let free = own.len() as f64 - groups as f64;
    let mut best = Combination { shares: vec![even; count], taken: 0.0 };
    let mut least = square / free.max(1.0).powi(2);
    for penalty in PENALTIES.map(|penalty| penalty * scale) {
        let Some((moved, taken)) = ridge(&gram, &pulls, penalty) else { continue };
        let rest = free - taken;
        if rest < 1.0 {
            continue;
        }
        let explained: f64 = dot(&moved, &pulls) + penalty * dot(&moved, &moved);
        let variance = (square - explained).max(0.0) / rest;
        if variance / rest < least {
            least = variance / rest;
            best = Combination { shares: moved.iter().map(|moved| even + moved).collect(), taken };
        }
    }
    best
}

/// Coefficients, and the degrees of freedom that they take.
fn ridge(gram: &[Vec<f64>], pulls: &[f64], penalty: f64) -> Option<(Vec<f64>, f64)> {
    let mut factor = Cholesky::default();
    for (place, row) in gram.iter().enumerate() {
        let mut row = row.clone();
        row[place] += penalty;
        if !factor.push(&row) {
            return None;
        }
    }
    let coefficients = factor.backward(&factor.forward(pulls));
    let inverse = factor.inverse();
    let trace: f64 = inverse.iter().enumerate().map(|(place, row)| row[place]).sum();
    Some((coefficients, pulls.len() as f64 - penalty * trace))
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, RngExt as _};

    use super::*;
    use crate::random;
    use crate::score::ObjectiveTask;
    use crate::scores::{MetricValue, PerSample, TaskScores};
    use std::collections::BTreeMap;

    fn objective() -> Objective {
        let task = |name: &str| ObjectiveTask { name: name.into(), metric: "acc".into(), weight: 1.0, maximize: true };
        Objective { tasks: vec![task("a"), task("b")] }
    }

    fn scores(ids: &[i64], values: &[&[f64]; 2]) -> Scores {
        let task = |values: &[f64]| TaskScores {
            n: ids.len() as u64,
            n_truncated: None,
            metrics: BTreeMap::from([("acc".to_owned(), MetricValue { value: mean(values), stderr: None })]),
            per_sample: Some(PerSample {
                ids: ids.iter().map(|id| SampleId::Number(*id)).collect(),
                scores: BTreeMap::from([("acc".to_owned(), values.to_vec())]),
            }),
        };
        BTreeMap::from([("a".to_owned(), task(values[0])), ("b".to_owned(), task(values[1]))])
    }

    fn restricted(all: &Scores, count: usize) -> Scores {
        let values = |task: &str| all[task].per_sample.as_ref().unwrap().scores["acc"][..count].to_vec();
        let ids: Vec<i64> = (0..count as i64).collect();
        scores(&ids, &[&values("a"), &values("b")])
    }

    #[test]
    fn one_reference_corrects_by_how_hard_it_found_the_part() {
        let objective = objective();
        let known = scores(&[0, 1, 2, 3], &[&[1.0, 0.0, 1.0, 1.0], &[0.0, 0.0, 1.0, 1.0]]);
        let seen = scores(&[1, 0], &[&[1.0, 1.0], &[1.0, 0.0]]);
        let part = RungSamples::of(&objective, &seen).unwrap();
        let reference = Reference::new(&objective, &part, &known).unwrap();
        let estimated = extrapolate(&objective, &part, &seen, &[&reference]).unwrap();
        assert!((estimated["a"].metrics["acc"].value - 1.25).abs() < 1e-12);
        assert!((estimated["b"].metrics["acc"].value - 1.0).abs() < 1e-12);
        assert!(extrapolate(&objective, &part, &seen, &[]).is_none());
        assert!(Reference::new(&objective, &part, &scores(&[0, 2], &[&[1.0, 0.0], &[1.0, 0.0]])).is_none());
    }

    /// Answers of a candidate that is `share` of one model and the rest of another, each good at other questions.
    fn answers(share: f64, number: u64) -> Scores {
        let task = |task: u64| -> Vec<f64> {
            let right = |sample: u64| {
                let mut question = random::stream(3, "question", 1_000 * task + sample);
                let (first, second): (f64, f64) = (question.random(), question.random());
                let chance = random::stream(number, "answer", 1_000 * task + sample).random::<f64>();
                f64::from(u8::from(share * first.powi(2) + (1.0 - share) * second.powi(2) + 0.05 * chance > 0.3))
            };
            (0..400).map(right).collect()
        };
        let ids: Vec<i64> = (0..400).collect();
        scores(&ids, &[&task(0), &task(1)])
    }

    #[test]
    fn answers_like_those_of_others_make_the_estimate_better_than_the_mean_of_others() {
        let objective = objective();
        let references: Vec<_> = (0..12).map(|number| answers(f64::from(number as u32) / 11.0, number)).collect();
        let part = RungSamples::of(&objective, &restricted(&references[0], 60)).unwrap();
        let references: Vec<Reference> =
            references.iter().map(|scores| Reference::new(&objective, &part, scores).unwrap()).collect();
        let references: Vec<&Reference> = references.iter().collect();
        let (mut raw, mut even, mut regression, mut claimed) = (0.0, 0.0, 0.0, 0.0);
        let mut dice = random::stream(5, "share", 0);
        for number in 100..160 {
            let _ = dice.next_u64();
            let all = answers(dice.random(), number);
            let seen = restricted(&all, 60);
            let truth = objective.value(&all).unwrap();
            let estimated = extrapolate(&objective, &part, &seen, &references).unwrap();
            let value = objective.value(&seen).unwrap();
            let gap = references.iter().map(|other| mean(&other.gaps)).sum::<f64>() / references.len() as f64;
            raw += (value - truth).powi(2);
            even += (value + gap - truth).powi(2);
            regression += (objective.value(&estimated).unwrap() - truth).powi(2);
            claimed += objective.stderr(&estimated).unwrap().powi(2);
        }
        assert!(even < raw && regression < 0.8 * even, "{raw} {even} {regression}");
        // Doubt makes it larger than it was.
        assert!(claimed > 0.5 * regression && claimed < 4.0 * regression, "{claimed} {regression}");
    }

    /// A task that counts in points of a hundred, beside one of shares of one, is estimated as if it were one of shares, or
    /// nearly, and so is its neighbour; a task without weight changes nothing.
    #[test]
    fn tasks_of_any_scale_are_estimated_alike() {
        let scaled = |scores: &Scores, factor: f64| {
            let mut scores = scores.clone();
            let task = scores.get_mut("b").unwrap();
            task.metrics.get_mut("acc").unwrap().value *= factor;
            let samples = task.per_sample.as_mut().unwrap().scores.get_mut("acc").unwrap();
            samples.iter_mut().for_each(|value| *value *= factor);
            scores
        };
        let estimate = |factor: f64, weight: f64| {
            let mut objective = objective();
            objective.tasks[1].weight = weight;
            let known: Vec<Scores> =
                (0..8).map(|number| scaled(&answers(0.1 * number as f64, number), factor)).collect();
            let seen = scaled(&restricted(&answers(0.5, 100), 60), factor);
            let part = RungSamples::of(&objective, &seen).unwrap();
            let references: Vec<Reference> =
                known.iter().map(|scores| Reference::new(&objective, &part, scores).unwrap()).collect();
            let estimated = extrapolate(&objective, &part, &seen, &references.iter().collect::<Vec<_>>()).unwrap();
            ["a", "b"].map(|task| estimated[task].metrics["acc"].clone())
        };
        let [plain, other] = estimate(1.0, 1.0);
        // Beside a task of shares, one of even smaller numbers is taken for one of shares too.
        for factor in [100.0, 64.0, 3000.0, -0.01, -0.0005] {
            let [first, second] = estimate(factor, 1.0);
            assert!((first.value - plain.value).abs() < 0.01, "{factor}");
            assert!((second.value / factor - other.value).abs() < 0.01, "{factor}");
            let error = |scaled: Option<f64>, plain: Option<f64>| scaled.unwrap() / plain.unwrap();
            assert!((0.7..1.4).contains(&error(first.stderr, plain.stderr)), "{factor}");
            assert!((0.7..1.4).contains(&(error(second.stderr, other.stderr) / factor.abs())), "{factor}");
        }
        // All wrong but one, or all the same but for roundings: neither makes the other task uncertain.
        for odd in [0.0, 2.0 + 1e-13] {
            let mut known: Vec<Scores> = (0..8).map(|number| answers(0.1 * number as f64, number)).collect();
            for scores in &mut known {
                let task = scores.get_mut("b").unwrap();
                let samples = task.per_sample.as_mut().unwrap().scores.get_mut("acc").unwrap();
                samples.fill(odd);
                samples[70] = if odd > 1.0 { 2.0 } else { 1.0 };
                task.metrics.get_mut("acc").unwrap().value = samples.iter().sum::<f64>() / samples.len() as f64;
            }
            let (objective, seen) = (objective(), restricted(&answers(0.5, 100), 60));
            let part = RungSamples::of(&objective, &seen).unwrap();
            let references: Vec<Reference> =
                known.iter().map(|scores| Reference::new(&objective, &part, scores).unwrap()).collect();
            let estimated = extrapolate(&objective, &part, &seen, &references.iter().collect::<Vec<_>>()).unwrap();
            assert!(estimated["a"].metrics["acc"].stderr.unwrap() < 0.1, "{odd}");
        }
        assert_eq!(estimate(100.0, 0.0)[0], estimate(1.0, 0.0)[0]);
    }

    /// Hundreds of answers that are nearly all right do not make ten that are right or wrong by chance certain.
    #[test]
    fn every_task_has_errors_of_its_own() {
        let answers = |number: u64| {
            let task = |name: &str, count: usize, right: f64| -> Vec<f64> {
                let mut dice = random::stream(number, name, 0);
                (0..count).map(|_| f64::from(u8::from(dice.random::<f64>() < right))).collect()
            };
            [task("easy", 800, 0.97), task("hard", 40, 0.5)]
        };
        let of = |values: [&[f64]; 2]| {
            let [easy, hard] = values.map(|values| {
                let ids: Vec<i64> = (0..values.len() as i64).collect();
                scores(&ids, &[values, values])["a"].clone()
            });
            BTreeMap::from([("a".to_owned(), easy), ("b".to_owned(), hard)])
        };
        let all: Vec<_> = (0..9).map(answers).collect();
        let whole = |number: usize| of([&all[number][0], &all[number][1]]);
        let seen = of([&all[8][0][..200], &all[8][1][..10]]);
        let part = RungSamples::of(&objective(), &seen).unwrap();
        let references: Vec<Reference> =
            (0..8).map(|number| Reference::new(&objective(), &part, &whole(number)).unwrap()).collect();
        let estimated = extrapolate(&objective(), &part, &seen, &references.iter().collect::<Vec<_>>()).unwrap();
        let error = |task: &str| estimated[task].metrics["acc"].stderr.unwrap();
        // Of a sample of 10 of 40, and of 200 of 800: .137 and .0104.
        assert!((0.08..0.2).contains(&error("b")), "{}", error("b"));
        assert!((0.007..0.015).contains(&error("a")), "{}", error("a"));
    }

    #[test]
    fn answers_that_are_like_nobody_s_change_little() {
        let objective = objective();
        let same = |value: f64| scores(&[0, 1, 2, 3], &[&[value; 4], &[1.0 - value; 4]]);
        let seen = scores(&[0, 1], &[&[1.0, 0.0], &[0.0, 1.0]]);
        let part = RungSamples::of(&objective, &seen).unwrap();
        let references = [same(1.0), same(0.0)].map(|scores| Reference::new(&objective, &part, &scores).unwrap());
        let estimated = extrapolate(&objective, &part, &seen, &[&references[0], &references[1]]).unwrap();
        assert_eq!(objective.value(&estimated), objective.value(&seen));
    }
}
