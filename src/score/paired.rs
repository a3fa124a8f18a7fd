//! Two candidates on the same samples: the difference of their objectives, with an interval.
//!
//! **Paired.** Samples are matched by id, task by task. The difference is the objective-weighted mean of each task's
//! mean difference; its interval comes from resampling the matched samples inside each task (`resample.rs`; the tasks
//! are strata: they are fixed, not drawn). Pairing takes out the difficulty of the samples, which is most of the noise
//! between siblings.
//!
//! **Metrics that are no plain means.** A metric qualifies when its value is the mean of its per-sample scores, or the
//! mean weighted by the per-sample series named `weight` (bits per byte over a corpus: the bytes of each text). Then
//! sums of weighted differences and of weights are drawn together; where a sample's weights are not the same for both
//! candidates (tokens that each of them wrote), it counts by how far it moves the difference of the two means. Every other metric (F1 over a set, a perplexity of a
//! corpus without weights) has no per-sample differences that sum to its difference, and the comparison falls back to
//! standard errors.
//!
//! **Unpaired.** From both candidates' standard errors, taken as independent: a 95 % interval by Student's t (degrees
//! of freedom of Welch and Satterthwaite), labelled `paired = false`, and wider than need be. Without standard errors
//! there is no interval, nor where all of them are zero: that nobody varies on these samples does not say that nobody
//! would on others.
//!
//! Tasks without a weight are no part of either.

use std::collections::{BTreeMap, HashMap};

use super::ScoreError;
use super::distributions::student_975;
use super::mean_samples::{MeanSamples, same_kind, unweighted};
use super::objective::{Objective, ObjectiveTask};
use super::resample::{Stratum, interval};
use crate::scores::{SampleId, Scores, TaskScores};

/// Share of the samples of either candidate that the other one must have, to be compared with it sample by sample: what
/// is missing is not missing by chance.
const SHARED: f64 = 0.99;
/// Standard errors by which a score on the search samples must be below another one to be known to be worse.
const CLEARLY: f64 = 3.0;
/// What a right answer scores where a wrong one scores 0: shares, and points of a hundred.
const RIGHT_ANSWERS: [f64; 2] = [1.0, 100.0];
/// Relative difference of a sample's weights that rounding explains.
const WEIGHT_TOLERANCE: f64 = 1e-9;
/// Fewest samples that tell a standard error.
const FEWEST_FOR_ERRORS: usize = 30;

/// How much better the first candidate is than the second, in objective direction: above zero is better.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The first candidate's objective less the second's: on the shared samples where they are paired.
    pub difference: f64,
    /// 95 % interval; `None` where nothing is known of the errors.
    pub interval: Option<[f64; 2]>,
    /// Where difference and interval come from.
    pub pairing: Pairing,
    /// Samples used, by task: the matched ones, or the smaller number where unpaired.
    pub n: BTreeMap<String, u64>,
}

/// Whether samples could be matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Samples were matched: difference and interval are from differences sample by sample.
    Paired,
    /// Samples were not matched: difference and interval are from the candidates' values and standard errors.
    Unpaired {
        /// The reason, for people.
        because: String,
    },
}

impl Pairing {
    /// Why samples were not matched, for people.
    pub fn because(&self) -> Option<&str> {
        match self {
            Self::Paired => None,
            Self::Unpaired { because } => Some(because),
        }
    }
}

impl Comparison {
    /// Whether samples were matched.
    pub fn is_paired(&self) -> bool {
        self.pairing == Pairing::Paired
    }
}

/// Compares candidate `first` with candidate `second`.
///
/// # Errors
/// [`ScoreError`] if the objective has no value for one of them.
pub fn compare(objective: &Objective, first: &Scores, second: &Scores, seed: u64) -> Result<Comparison, ScoreError> {
    check(objective, first, "the first candidate")?;
    check(objective, second, "the second candidate")?;
    let mut strata = Vec::with_capacity(objective.tasks.len());
    for task in objective.weighted_tasks() {
        let (ours, theirs) = (&first[&task.name], &second[&task.name]);
        match stratum(task, objective.total_weight(), ours, theirs).and_then(|stratum| {
            check_shared(task, stratum.len(), ours, theirs)?;
            Ok(stratum)
        }) {
            Ok(stratum) => strata.push(stratum),
            Err(reason) => return unpaired(objective, first, second, reason),
        }
    }
    let n = objective.weighted_tasks().zip(&strata).map(|(task, stratum)| (task.name.clone(), stratum.len() as u64));
    Ok(Comparison {
        difference: strata.iter().map(Stratum::mean).sum(),
        // Squares of the largest numbers overflow.
        interval: Some(interval(&strata, seed)).filter(|ends| ends.iter().all(|end| end.is_finite())),
        pairing: Pairing::Paired,
        n: n.collect(),
    })
}

/// Whether `other` may be as good as `best`, whose score on the same samples is higher: it is not clearly lower, by
/// three standard errors of the difference, or nothing is known of the errors.
pub fn may_be_as_good(objective: &Objective, best: &Scores, other: &Scores) -> bool {
    let (mut difference, mut variance, mut samples) = (0.0, 0.0, usize::MAX);
    for task in objective.weighted_tasks() {
        let of_task = best.get(&task.name).zip(other.get(&task.name));
        let Some(stratum) = of_task.and_then(|(best, other)| stratum(task, objective.total_weight(), best, other).ok())
        else {
            return may_be_as_good_by_errors(objective, best, other);
        };
        difference += stratum.mean();
        variance += stratum.variance();
        samples = samples.min(stratum.len());
    }
    samples < FEWEST_FOR_ERRORS || difference <= CLEARLY * variance.sqrt()
}

fn may_be_as_good_by_errors(objective: &Objective, best: &Scores, other: &Scores) -> bool {
    let (Some(value), Some(lower)) = (objective.value(best), objective.value(other)) else { return true };
    let errors = objective.stderr(best).zip(objective.stderr(other));
    let error = errors.map(|(best, other)| best.hypot(other)).filter(|error| *error > 0.0);
    error.is_none_or(|error| value - lower <= CLEARLY * error)
}

/// The difference between two scorings on the same samples, with its standard error if both had the same chance at
/// every sample: the errors are then as often above zero as below, and the squares of the differences say how large
/// they are. `None` where samples cannot be matched ([`compare`] says when).
pub(super) fn difference_by_chance(objective: &Objective, first: &Scores, second: &Scores) -> Option<(f64, f64)> {
    let (mut difference, mut variance) = (0.0, 0.0);
    for task in objective.weighted_tasks() {
        let of_task = first.get(&task.name).zip(second.get(&task.name));
        let stratum =
            of_task.and_then(|(first, second)| stratum(task, objective.total_weight(), first, second).ok())?;
        difference += stratum.mean();
        let squares: f64 = stratum.weighted_differences.iter().map(|difference| difference.powi(2)).sum();
        variance += squares / stratum.total().powi(2);
    }
    Some((difference, variance.sqrt()))
}

fn check(objective: &Objective, scores: &Scores, who: &'static str) -> Result<(), ScoreError> {
    if objective.total_weight() == 0.0 {
        return Err(ScoreError::NoWeight);
    }
    match objective.tasks.iter().find(|task| task.metric(scores).is_none()) {
        Some(task) => Err(ScoreError::Missing { who, task: task.name.clone(), metric: task.metric.clone() }),
        None => Ok(()),
    }
}

/// Refuses to speak of all samples by those that happen to have two scores.
fn check_shared(task: &ObjectiveTask, shared: usize, first: &TaskScores, second: &TaskScores) -> Result<(), String> {
    let scored = |scores: &TaskScores| scores.per_sample.as_ref().map_or(0, |samples| samples.ids.len());
    let all = scored(first).max(scored(second));
    if (shared as f64) < SHARED * all as f64 {
        return Err(format!("the candidates share {shared} of {all} samples of task `{}`", task.name));
    }
    Ok(())
}

/// Matches the samples of one task, or says why that is impossible.
fn stratum(task: &ObjectiveTask, total: f64, first: &TaskScores, second: &TaskScores) -> Result<Stratum, String> {
    let (first, second) = same_kind(first, second, &task.metric).ok_or_else(|| {
        format!("task `{}` has no per-sample scores whose mean (or weighted mean) is `{}`", task.name, task.metric)
    })?;
    let share = task.signed_weight() / total;
    let places: HashMap<&SampleId, usize> = second.ids.iter().enumerate().map(|(place, id)| (id, place)).collect();
    let shared: Vec<[usize; 2]> =
        first.ids.iter().enumerate().filter_map(|(place, id)| Some([place, *places.get(id)?])).collect();
    if shared.len() < 2 {
        return Err(format!("the candidates share fewer than two samples of task `{}`", task.name));
    }
    if let Some(weights) = first.weights.zip(second.weights)
        && !shared.iter().all(|[ours, theirs]| is_rounding(weights.0[*ours], weights.1[*theirs]))
    {
        let weighted_differences = differences_of_ratios(share, &shared, [&first, &second], weights);
        return Ok(Stratum { weighted_differences, weights: None, answer: None });
    }
    let is_answer = |right: f64| first.values.iter().chain(second.values).all(|value| [0.0, right].contains(value));
    let right = RIGHT_ANSWERS.into_iter().find(|right| first.weights.is_none() && is_answer(*right));
    let mut stratum = Stratum {
        weighted_differences: Vec::new(),
        weights: first.weights.map(|_| Vec::new()),
        answer: right.map(|right| right * share.abs()),
    };
    for [place, other] in shared {
        let difference = share * (first.values[place] - second.values[other]);
        match (&mut stratum.weights, first.weights) {
            (Some(kept), Some(weights)) => {
                kept.push(weights[place]);
                stratum.weighted_differences.push(weights[place] * difference);
            }
            _ => stratum.weighted_differences.push(difference),
        }
    }
    Ok(stratum)
}

/// Whether two weights of a sample are the same number.
fn is_rounding(one: f64, other: f64) -> bool {
    (one - other).abs() <= WEIGHT_TOLERANCE * one.abs().max(other.abs())
}

/// Differences of two means with weights of their own, sample by sample ([`unweighted`]: the delta method for ratios of
/// Deng, Knoblich and Lu 2018, "Applying the Delta Method in Metric Analytics"). Their mean is the difference of the
/// means.
fn differences_of_ratios(
    share: f64,
    shared: &[[usize; 2]],
    candidates: [&MeanSamples<'_>; 2],
    weights: (&[f64], &[f64]),
) -> Vec<f64> {
    let of = |side: usize| {
        let weights = [weights.0, weights.1][side];
        let of_shared = |numbers: &[f64]| shared.iter().map(|places| numbers[places[side]]).collect::<Vec<f64>>();
        unweighted(&of_shared(candidates[side].values), &of_shared(weights))
    };
    of(0).into_iter().zip(of(1)).map(|(ours, theirs)| share * (ours - theirs)).collect()
}

fn unpaired(objective: &Objective, first: &Scores, second: &Scores, because: String) -> Result<Comparison, ScoreError> {
    let (Some(first_value), Some(second_value)) = (objective.value(first), objective.value(second)) else {
        return Err(ScoreError::NoWeight);
    };
    let difference = first_value - second_value;
    let n = objective.weighted_tasks().map(|task| (task.name.clone(), first[&task.name].n.min(second[&task.name].n)));
    Ok(Comparison {
        difference,
        interval: half_width(objective, [first, second]).map(|half| [difference - half, difference + half]),
        pairing: Pairing::Unpaired { because },
        n: n.collect(),
    })
}

/// Half of the unpaired interval's width; `None` where a task has no standard error or fewer than two samples, or all
/// errors are zero.
fn half_width(objective: &Objective, candidates: [&Scores; 2]) -> Option<f64> {
    let (mut variance, mut squares) = (0.0, 0.0);
    for (task, scores) in
        candidates.iter().flat_map(|scores| objective.weighted_tasks().map(move |task| (task, scores)))
    {
        let stderr = task.metric(scores)?.stderr.filter(|stderr| stderr.is_finite())?;
        let n = scores.get(&task.name).map(|scores| scores.n).filter(|n| *n >= 2)?;
        let part = (task.weight * stderr / objective.total_weight()).powi(2);
        variance += part;
        squares += part * part / (n - 1) as f64;
    }
    (variance > 0.0 && squares > 0.0).then(|| student_975(variance * variance / squares) * variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;
    use crate::score::mean_samples::mean_samples;
    use crate::scores::{MetricValue, PerSample};
    use proptest::prelude::*;
    use rand::Rng;

    fn task(values: &[f64], first_id: i64) -> TaskScores {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        TaskScores {
            n: values.len() as u64,
            metrics: BTreeMap::from([("acc".to_owned(), MetricValue { value: mean, stderr: Some(0.1) })]),
            per_sample: Some(PerSample {
                ids: (0..values.len() as i64).map(|id| SampleId::Number(first_id + id)).collect(),
                scores: BTreeMap::from([("acc".to_owned(), values.to_vec())]),
            }),
            ..TaskScores::default()
        }
    }

    fn objective(maximize: bool, names: &[&str]) -> Objective {
        let task =
            |name: &&str| ObjectiveTask { name: (*name).to_owned(), metric: "acc".to_owned(), weight: 1.0, maximize };
        Objective { tasks: names.iter().map(task).collect() }
    }

    fn bits(n: usize, seed: u64, share: f64) -> Vec<f64> {
        let mut rng = random::stream(seed, "test", 0);
        (0..n).map(|_| f64::from(u8::from((rng.next_u32() as f64) < share * 2f64.powi(32)))).collect()
    }

    #[test]
    fn matched_samples_only_and_objective_direction() {
        // Ids 0..200 against 1..201: all but two of them are common.
        let first = BTreeMap::from([("a".to_owned(), task(&[vec![9.0], vec![1.0; 199]].concat(), 0))]);
        let second = BTreeMap::from([("a".to_owned(), task(&[vec![0.25; 199], vec![7.0]].concat(), 1))]);
        let up = compare(&objective(true, &["a"]), &first, &second, 7).unwrap();
        assert_eq!((up.difference, up.is_paired(), up.n["a"]), (0.75, true, 199));
        let down = compare(&objective(false, &["a"]), &first, &second, 7).unwrap();
        assert_eq!(down.difference, -0.75);
    }

    #[test]
    fn interval_agrees_with_the_normal_one_on_large_samples() {
        let first = BTreeMap::from([
            ("a".to_owned(), task(&bits(2000, 1, 0.6), 0)),
            ("b".to_owned(), task(&bits(1001, 2, 0.3), 0)),
        ]);
        let second = BTreeMap::from([
            ("a".to_owned(), task(&bits(2000, 3, 0.5), 0)),
            ("b".to_owned(), task(&bits(1001, 4, 0.3), 0)),
        ]);
        let objective = objective(true, &["a", "b"]);
        let comparison = compare(&objective, &first, &second, 7).unwrap();
        let variance = |name: &str| {
            let samples = |scores: &Scores| scores[name].per_sample.clone().unwrap().scores["acc"].clone();
            let differences: Vec<f64> = samples(&first).iter().zip(samples(&second)).map(|(a, b)| a - b).collect();
            let mean = differences.iter().sum::<f64>() / differences.len() as f64;
            differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (differences.len() as f64).powi(2)
        };
        let error = (variance("a") + variance("b")).sqrt() / 2.0;
        let [low, high] = comparison.interval.unwrap();
        assert!((low - (comparison.difference - 1.96 * error)).abs() < 0.1 * error, "{low}");
        assert!((high - (comparison.difference + 1.96 * error)).abs() < 0.1 * error, "{high}");
        assert_eq!(compare(&objective, &first, &second, 7).unwrap(), comparison);
        assert_ne!(compare(&objective, &first, &second, 8).unwrap().interval, comparison.interval);
        let turned = compare(&objective, &second, &first, 7).unwrap();
        assert_eq!(turned.difference, -comparison.difference);
    }

    #[test]
    fn threads_do_not_change_the_interval() {
        let first = BTreeMap::from([("a".to_owned(), task(&bits(300, 1, 0.6), 0))]);
        let second = BTreeMap::from([("a".to_owned(), task(&bits(300, 2, 0.5), 0))]);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| compare(&objective(true, &["a"]), &first, &second, 7).unwrap())
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn weighted_means_are_paired_by_weight_and_others_fall_back() {
        let weighted = |values: [f64; 3], weights: [f64; 3]| {
            let mut scores = task(&values, 0);
            let mean = values.iter().zip(&weights).map(|(v, w)| v * w).sum::<f64>() / weights.iter().sum::<f64>();
            scores.metrics.get_mut("acc").unwrap().value = mean;
            scores.per_sample.as_mut().unwrap().scores.insert("weight".to_owned(), weights.to_vec());
            BTreeMap::from([("a".to_owned(), scores)])
        };
        let first = weighted([1.0, 2.0, 3.0], [1.0, 1.0, 8.0]);
        let second = weighted([1.0, 2.0, 4.0], [1.0, 1.0, 8.0]);
        let comparison = compare(&objective(true, &["a"]), &first, &second, 7).unwrap();
        assert!(comparison.is_paired());
        assert!((comparison.difference + 0.8).abs() < 1e-12);
        // The plain mean of this one is its value too.
        let even = weighted([2.0, 2.0, 2.0], [1.0, 1.0, 8.0]);
        for (one, other) in [(&first, &even), (&even, &first)] {
            assert!(compare(&objective(true, &["a"]), one, other, 7).unwrap().is_paired());
        }
        let huge = |values: [f64; 3]| BTreeMap::from([("a".to_owned(), task(&values, 0))]);
        let (one, other) = (huge([1e160, 2e160, -3e160]), huge([3e160, -2e160, 1e160]));
        assert_eq!(compare(&objective(true, &["a"]), &one, &other, 7).unwrap().interval, None);

        let mut odd = first.clone();
        odd.get_mut("a").unwrap().per_sample.as_mut().unwrap().scores.remove("weight");
        let comparison = compare(&objective(true, &["a"]), &odd, &odd, 7).unwrap();
        assert!(matches!(comparison.pairing, Pairing::Unpaired { .. }));
        // Two standard errors from three samples each: four degrees of freedom.
        let half = 2.7764 * 0.1 * 2f64.sqrt();
        assert!((comparison.interval.unwrap()[1] - half).abs() < 1e-4);
        let stderr = |scores: &mut Scores, stderr: f64| {
            scores.get_mut("a").unwrap().metrics.get_mut("acc").unwrap().stderr = Some(stderr);
        };
        let mut certain = odd.clone();
        stderr(&mut certain, 0.0);
        assert_eq!(compare(&objective(true, &["a"]), &certain, &certain, 7).unwrap().interval, None);
        let mut alone = odd.clone();
        alone.get_mut("a").unwrap().n = 1;
        assert_eq!(compare(&objective(true, &["a"]), &alone, &odd, 7).unwrap().interval, None);
        odd.get_mut("a").unwrap().metrics.get_mut("acc").unwrap().stderr = None;
        assert_eq!(compare(&objective(true, &["a"]), &odd, &odd, 7).unwrap().interval, None);
    }

    /// A loss by token where each candidate wrote tokens of its own: the second one writes more of what costs it less.
    #[test]
    fn candidates_with_weights_of_their_own_differ_as_their_scores_do() {
        let mut rng = random::stream(3, "tokens", 0);
        let mut uniform = || f64::from(rng.next_u32()) / 2f64.powi(32);
        let mut candidate = |slope: f64| {
            let losses: Vec<f64> = (0..300).map(|_| 0.5 + uniform()).collect();
            let tokens: Vec<f64> = losses.iter().map(|loss| 20.0 + 10.0 * uniform() - slope * (loss - 1.0)).collect();
            let sum: f64 = losses.iter().zip(&tokens).map(|(loss, tokens)| loss * tokens).sum();
            let mut scores = task(&losses, 0);
            scores.metrics.get_mut("acc").unwrap().value = sum / tokens.iter().sum::<f64>();
            scores.per_sample.as_mut().unwrap().scores.insert("weight".to_owned(), tokens);
            BTreeMap::from([("a".to_owned(), scores)])
        };
        let objective = objective(false, &["a"]);
        let (first, second) = (candidate(-15.0), candidate(15.0));
        let values = [&first, &second].map(|scores| objective.value(scores).unwrap());
        let comparison = compare(&objective, &first, &second, 7).unwrap();
        assert!(comparison.is_paired() && comparison.difference < 0.0);
        assert!((comparison.difference - (values[0] - values[1])).abs() < 1e-12);
        // Losses spread by .289; each mean of 300 has an error of about .0167, their difference of .0236.
        let [low, high] = comparison.interval.unwrap();
        assert!(low < comparison.difference && comparison.difference < high);
        assert!(((high - low) / (2.0 * 1.96 * 0.0236) - 1.0).abs() < 0.25, "{low} {high}");
    }

    /// Right and wrong in points of a hundred are right and wrong.
    #[test]
    fn answers_in_percent_have_the_interval_of_answers_in_shares() {
        let interval = |right: f64| {
            let scores = |values: &[f64]| {
                let values: Vec<f64> = values.iter().map(|value| value * right).collect();
                BTreeMap::from([("a".to_owned(), task(&values, 0))])
            };
            let (first, second) = (scores(&[[1.0; 60], [0.0; 60]].concat()), scores(&[[1.0; 60], [0.0; 60]].concat()));
            compare(&objective(true, &["a"]), &first, &second, 7).unwrap().interval.unwrap()
        };
        let (shares, percent) = (interval(1.0), interval(100.0));
        assert!(shares[0] < -0.01 && shares[1] > 0.01, "{shares:?}");
        assert!(shares.iter().zip(percent).all(|(share, percent)| (100.0 * share - percent).abs() < 1e-9));
    }

    /// A loss of a few parts in a hundred thousand is no smaller a matter than one of a few points.
    #[test]
    fn the_scale_of_a_metric_does_not_matter() {
        let scores = |scale: f64, value: f64| {
            let mut scores = task(&[1.0, 2.0, 9.0].map(|value| scale * value), 0);
            scores.metrics.get_mut("acc").unwrap().value = scale * value;
            BTreeMap::from([("a".to_owned(), scores)])
        };
        for scale in [1e-9, 1e-5, 1.0, 1e5] {
            for (value, paired) in [(4.0, true), (4.0004, true), (9.0, false), (4.01, false)] {
                let comparison =
                    compare(&objective(true, &["a"]), &scores(scale, value), &scores(scale, value), 7).unwrap();
                assert_eq!(comparison.is_paired(), paired, "{scale} {value}");
            }
        }
        // The plain mean is near the value, too: the weighted one is it.
        let weights = vec![1.0, 1.0, 1.0003];
        let mut weighted = scores(1.0, (1.0 + 2.0 + 9.0 * 1.0003) / 3.0003);
        let samples = weighted.get_mut("a").unwrap().per_sample.as_mut().unwrap();
        samples.scores.insert("weight".to_owned(), weights);
        assert!(mean_samples(&weighted["a"], "acc").unwrap().weights.is_some());
        samples_without_weight_are_plain(&weighted["a"]);
    }

    fn samples_without_weight_are_plain(scores: &TaskScores) {
        let mut plain = scores.clone();
        plain.per_sample.as_mut().unwrap().scores.remove("weight");
        assert!(mean_samples(&plain, "acc").unwrap().weights.is_none());
    }

    /// What is missing is not missing by chance.
    #[test]
    fn candidates_that_share_too_few_samples_are_not_paired() {
        let of = |n: usize, first: i64| BTreeMap::from([("a".to_owned(), task(&bits(n, 1, 0.5), first))]);
        let pairing =
            |n: usize, first: i64| compare(&objective(true, &["a"]), &of(200, 0), &of(n, first), 7).unwrap().pairing;
        assert_eq!(pairing(200, 0), Pairing::Paired);
        assert_eq!(pairing(198, 2), Pairing::Paired);
        let Pairing::Unpaired { because } = pairing(200, 192) else { panic!("eight of two hundred samples") };
        assert!(because.contains("share 8 of 200 samples"), "{because}");
    }

    #[test]
    fn who_is_clearly_worse_cannot_be_as_good() {
        let of = |values: Vec<f64>| BTreeMap::from([("a".to_owned(), task(&values, 0))]);
        let objective = objective(true, &["a"]);
        let (best, near, far) = (of(bits(400, 1, 0.7)), of(bits(400, 1, 0.67)), of(bits(400, 3, 0.4)));
        assert!(may_be_as_good(&objective, &best, &near) && may_be_as_good(&objective, &best, &best));
        assert!(!may_be_as_good(&objective, &best, &far));
        let few = |share: f64| of(bits(20, 1, share));
        assert!(may_be_as_good(&objective, &few(1.0), &few(0.0)));
        let bare = |value: f64, stderr: Option<f64>| {
            let metrics = BTreeMap::from([("acc".to_owned(), MetricValue { value, stderr })]);
            BTreeMap::from([("a".to_owned(), TaskScores { n: 100, metrics, ..TaskScores::default() })])
        };
        assert!(!may_be_as_good(&objective, &bare(0.7, Some(0.01)), &bare(0.6, Some(0.01))));
        assert!(may_be_as_good(&objective, &bare(0.7, Some(0.05)), &bare(0.6, Some(0.05))));
        assert!(may_be_as_good(&objective, &bare(0.7, None), &bare(0.1, None)));
    }

    #[test]
    fn a_task_without_weight_needs_no_samples_to_be_paired() {
        let mut tasks = objective(true, &["a", "b"]);
        tasks.tasks[1].weight = 0.0;
        let mut bare = task(&[1.0, 0.0], 0);
        bare.per_sample = None;
        let scores =
            |values: &[f64]| BTreeMap::from([("a".to_owned(), task(values, 0)), ("b".to_owned(), bare.clone())]);
        let comparison = compare(&tasks, &scores(&[1.0, 1.0, 0.0]), &scores(&[0.0, 1.0, 0.0]), 7).unwrap();
        assert!(comparison.is_paired() && comparison.n == BTreeMap::from([("a".to_owned(), 3)]), "{comparison:?}");
    }

    #[test]
    fn missing_scores_are_an_error() {
        let scores = BTreeMap::from([("a".to_owned(), task(&[1.0, 0.0], 0))]);
        let error = compare(&objective(true, &["a", "b"]), &scores, &scores, 7).unwrap_err();
        assert!(matches!(error, ScoreError::Missing { ref task, .. } if task == "b"));
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_difference_and_shifts_with_it(
            values in proptest::collection::vec(-1.0..1.0f64, 20..60),
            shift in -2.0..2.0f64,
        ) {
            let zero = BTreeMap::from([("a".to_owned(), task(&vec![0.0; values.len()], 0))]);
            let moved: Vec<f64> = values.iter().map(|value| value + shift).collect();
            let objective = objective(true, &["a"]);
            let plain = compare(&objective, &BTreeMap::from([("a".to_owned(), task(&values, 0))]), &zero, 7).unwrap();
            let moved = compare(&objective, &BTreeMap::from([("a".to_owned(), task(&moved, 0))]), &zero, 7).unwrap();
            prop_assert!((moved.difference - plain.difference - shift).abs() < 1e-9);
            for comparison in [&plain, &moved] {
                let [low, high] = comparison.interval.unwrap();
                prop_assert!(low <= comparison.difference && comparison.difference <= high);
            }
            for (before, after) in plain.interval.unwrap().into_iter().zip(moved.interval.unwrap()) {
                // The test of signs holds an end at zero.
                let held = before == 0.0 || after == 0.0;
                prop_assert!(held || (after - before - shift).abs() < 1e-9, "{before} {after}");
            }
        }
    }
}
