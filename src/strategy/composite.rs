//! A model of an objective that is a sum: one Gaussian process a task, added up.
//!
//! A task depends on its own genes in its own way, and what is smooth in every task can be rugged in their mean. So
//! every task is learnt by itself, with length scales of its own, and the expected values are added (composite Bayesian
//! optimisation, Astudillo and Frazier 2019, for a sum).

use super::surrogate::{Scales, Surrogate, fit};
use super::{Outcome, normal};
use crate::score::{ObjectiveTask, best_first};
use crate::space::Gene;

/// Most parts that an objective is taken into; more tasks share them.
const MOST_PARTS: usize = 8;
/// Pending points that a model imagines at most, the latest ones.
pub(super) const MAX_IMAGINED: usize = 64;

/// How many parts the objective of these tasks is taken into.
pub(super) fn parts(tasks: &[ObjectiveTask]) -> usize {
    tasks.len().clamp(1, MOST_PARTS)
}

/// What the parts contribute to an objective.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Contributions {
    values: Vec<f64>,
    /// Variances of the errors of `values`, where the objective is an estimate; else 0.
    errors: Vec<f64>,
}

/// What each part contributes to an outcome's objective; `None` where it has none. The tasks' standard errors count
/// only below full fidelity: what is searched for is the best score on the samples that there are.
pub(super) fn contributions(tasks: &[ObjectiveTask], outcome: &Outcome) -> Option<Contributions> {
    let objective = outcome.objective?;
    let parts = parts(tasks);
    let total: f64 = tasks.iter().map(|task| task.weight.abs()).sum();
    let (mut values, mut errors) = (vec![0.0; parts], vec![0.0; parts]);
    for (place, task) in tasks.iter().enumerate() {
        let metric = outcome.tasks.get(&task.name).and_then(|scores| scores.metrics.get(&task.metric));
        // A task without a score counts evenly with the others.
        let value = metric.map_or(0.0, |metric| task.signed_weight() * metric.value / total);
        values[place % parts] += if value.is_finite() { value } else { 0.0 };
        let stderr = metric.and_then(|metric| metric.stderr).filter(|_| outcome.fidelity < 1.0).unwrap_or(0.0);
        let error = (task.weight * stderr / total).powi(2);
        errors[place % parts] += if error.is_finite() { error } else { 0.0 };
    }
    level(&mut values, objective);
    Some(Contributions { values, errors })
}

/// Shifts all values evenly until they add up to `sum`.
fn level(values: &mut [f64], sum: f64) {
    let shift = (sum - values.iter().sum::<f64>()) / values.len() as f64;
    values.iter_mut().for_each(|value| *value += shift);
}

/// What is to be learnt of some points: by part, then by point.
#[derive(Clone, Debug)]
pub(super) struct Targets {
    /// The values to learn. Their sums over the parts have mean 0 and variance 1, after [`standardise`] has drawn up
    /// the worst.
    values: Vec<Vec<f64>>,
    /// Error variances of the values, relative to the part's signal variance.
    errors: Vec<Vec<f64>>,
}

/// Least share of a part's variance that counts as signal, not as error.
const LEAST_SIGNAL: f64 = 0.1;

/// Ranks (scores; infeasible: minus infinity) and contributions of the same points, as values to learn.
pub(super) fn targets(ranks: &[f64], contributions: &[Option<&Contributions>], parts: usize) -> Targets {
    let mut order: Vec<usize> = (0..ranks.len()).collect();
    order.sort_by(|a, b| best_first(ranks[*a], ranks[*b]));
    let sorted: Vec<f64> = order.iter().map(|place| ranks[*place]).collect();
    let (standard, deviation) = standardise(&sorted);
    let mut means = vec![0.0; parts];
    let known: Vec<&Contributions> =
        contributions.iter().flatten().copied().filter(|own| own.values.len() == parts).collect();
    for own in &known {
        means.iter_mut().zip(&own.values).for_each(|(mean, value)| *mean += value / known.len() as f64);
    }
    let mut targets = vec![vec![0.0; ranks.len()]; parts];
    for (place, sum) in order.into_iter().zip(standard) {
        let mut values = vec![0.0; parts];
        if let (Some(deviation), Some(own)) = (deviation, contributions[place].filter(|own| own.values.len() == parts))
        {
            let apart = own.values.iter().zip(&means).map(|(value, mean)| (value - mean) / deviation);
            values = apart.collect();
            if values.iter().any(|value| !value.is_finite()) {
                values = vec![0.0; parts];
            }
        }
        level(&mut values, sum);
        targets.iter_mut().zip(values).for_each(|(part, value)| part[place] = value);
    }
    let errors = (0..parts).map(|part| errors(part, &targets[part], contributions, deviation.unwrap_or(1.0))).collect();
    Targets { values: targets, errors }
}

/// Error variance of each value, relative to the signal variance (the variance of `values` less the mean error
/// variance). `values` are already divided by `deviation`; the errors are scaled here.
fn errors(part: usize, values: &[f64], contributions: &[Option<&Contributions>], deviation: f64) -> Vec<f64> {
    let count = values.len().max(1) as f64;
    let error = |own: &Option<&Contributions>| {
        own.and_then(|own| own.errors.get(part)).map_or(0.0, |error| error / deviation / deviation)
    };
    let errors: Vec<f64> = contributions.iter().map(error).collect();
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / count;
    let signal = (variance - errors.iter().sum::<f64>() / count).max(LEAST_SIGNAL * variance);
    let share = |error: f64| if signal > 0.0 && error > 0.0 { (error / signal).min(MOST_ERROR) } else { 0.0 };
    errors.into_iter().map(share).collect()
}

/// Largest error variance relative to the signal variance: a value with a larger one says as little.
const MOST_ERROR: f64 = 1e6;

/// How far below the median scores count in full, in distances from the median to the best.
const DEPTH: f64 = 3.0;

/// Scores, best first, to mean 0 and variance 1, and the deviation that they were divided by. How bad the bad half is
/// tells little about where the best is, so scores far below the median are drawn up; infeasible points count as the
/// worst score.
fn standardise(scores: &[f64]) -> (Vec<f64>, Option<f64>) {
    let Some(best) = scores.first().copied() else { return (Vec::new(), None) };
    let median = scores[scores.len() / 2];
    let worst = scores.iter().copied().filter(|score| score.is_finite()).fold(best, f64::min);
    let median = median.max(worst);
    let floor = (median - DEPTH * (best - median)).max(worst);
    let cut: Vec<f64> = scores.iter().map(|score| score.max(floor)).collect();
    let mean = cut.iter().sum::<f64>() / cut.len() as f64;
    let variance = cut.iter().map(|score| (score - mean) * (score - mean)).sum::<f64>() / cut.len() as f64;
    if variance.is_finite() && variance > 0.0 {
        let deviation = variance.sqrt();
        return (cut.iter().map(|score| (score - mean) / deviation).collect(), Some(deviation));
    }
    // All equal, or too large to square: ranks.
    let middle = (scores.len() as f64 - 1.0) / 2.0;
    let rank = |place: usize| if scores[place] == best { 0 } else { place };
    if cut.iter().all(|score| *score == best) {
        return (vec![0.0; scores.len()], None);
    }
    ((0..scores.len()).map(|place| (middle - rank(place) as f64) / middle.max(1.0)).collect(), None)
}

/// Length scales of all parts.
pub(super) type AllScales = Vec<Scales>;

/// The prior's centre for every part.
pub(super) fn prior(genes: usize, parts: usize) -> AllScales {
    vec![Scales::prior(genes); parts]
}

/// Fits every part from `start`.
pub(super) fn fit_all(genes: &[Gene], start: &AllScales, points: &[&[f64]], targets: &Targets) -> AllScales {
    let targets = targets.values.iter().zip(&targets.errors);
    start.iter().zip(targets).map(|(start, (values, errors))| fit(genes, start, points, values, errors)).collect()
}

/// The logarithm of the expected positive part of a normal variable (Jones et al. 1998; Ament et al. 2023 for the
/// logarithm).
fn log_expected_improvement(mean: f64, deviation: f64) -> f64 {
    let z = mean / deviation;
    let density = |z: f64| -0.5 * z * z - 0.5 * std::f64::consts::TAU.ln();
    let scale = deviation.ln();
    if z > -2.0 {
        return scale + (density(z).exp() + z * normal::below(z)).ln();
    }
    // The tail: the density times one less |z| times Mills' ratio, by its continued fraction.
    let x = -z;
    let ratio = (1..=TAIL_TERMS).rev().fold(x, |below, term| x + f64::from(term) / below);
    // 1 - x / ratio, where ratio is x + 1 / rest: 1 / (ratio * rest), without cancellation.
    let rest = (2..=TAIL_TERMS).rev().fold(x, |below, term| x + f64::from(term) / below);
    scale + density(z) - (ratio * rest).ln()
}

/// Terms of the continued fraction of the normal distribution's tail.
const TAIL_TERMS: u32 = 40;

/// The model of one part, and which of the points it took in.
#[derive(Clone, Debug)]
struct PartModel {
    surrogate: Surrogate,
    taken: Vec<bool>,
}

/// The sum of the parts' models.
#[derive(Clone, Debug)]
pub(super) struct Composite {
    parts: Vec<PartModel>,
    /// The best of the points' values.
    best: f64,
}

impl Composite {
    /// A model of nothing.
    pub(super) fn new(genes: &[Gene], scales: &AllScales) -> Self {
        let part = |scales| PartModel { surrogate: Surrogate::new(genes, scales), taken: Vec::new() };
        Self { parts: scales.iter().map(part).collect(), best: f64::NEG_INFINITY }
    }

    /// Adds point `place` of `targets`, whose values follow by [`Self::set_targets`].
    pub(super) fn add(&mut self, point: &[f64], targets: &Targets, place: usize) {
        for (part, errors) in self.parts.iter_mut().zip(&targets.errors) {
            let taken = part.surrogate.add(point, errors[place]);
            part.taken.push(taken);
        }
    }

    /// Sets the values of all points by part, in the order in which they were added.
    pub(super) fn set_targets(&mut self, targets: &Targets) {
        let targets = &targets.values;
        let points = targets.first().map_or(0, Vec::len);
        let value = |point: usize| targets.iter().map(|part| part[point]).sum::<f64>();
        self.best = (0..points).map(value).fold(f64::NEG_INFINITY, f64::max);
        for (part, values) in self.parts.iter_mut().zip(targets) {
            let taken = values.iter().zip(&part.taken).filter(|(_, taken)| **taken).map(|(value, _)| *value);
            let taken: Vec<f64> = taken.collect();
            part.surrogate.set_values(&taken);
        }
    }

    /// Adds a point whose outcome is not known yet at the value that the model expects: it lowers the variance around
    /// it.
    pub(super) fn imagine(&mut self, point: &[f64]) {
        for part in &mut self.parts {
            part.surrogate.imagine(point);
        }
    }

    /// The logarithm of the improvement over the best point that a point promises.
    pub(super) fn promise(&self, point: &[f64]) -> f64 {
        self.improvement(|part| part.predict(point))
    }

    /// An upper bound of [`Self::promise`], from an upper bound of the uncertainty; it costs much less.
    pub(super) fn sketch(&self, point: &[f64]) -> f64 {
        self.improvement(|part| part.sketch(point))
    }

    fn improvement(&self, predict: impl Fn(&Surrogate) -> (f64, f64)) -> f64 {
        let (mut mean, mut variance) = (0.0, 0.0);
        for part in &self.parts {
            let (expected, deviation) = predict(&part.surrogate);
            mean += expected;
            variance += deviation * deviation;
        }
        log_expected_improvement(mean - self.best, variance.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::conformance::{Answer, outcome, real};
    use super::super::space_filling::sobol;
    use super::*;
    use crate::scores::{MetricValue, TaskScores};

    fn task(name: &str, weight: f64, maximize: bool) -> ObjectiveTask {
        ObjectiveTask { name: name.to_owned(), metric: "acc".to_owned(), weight, maximize }
    }

    fn known(values: &[f64]) -> Contributions {
        Contributions { values: values.to_vec(), errors: vec![0.0; values.len()] }
    }

    fn scores(value: f64) -> TaskScores {
        let metrics = BTreeMap::from([("acc".to_owned(), MetricValue { value, stderr: None })]);
        TaskScores { n: 10, n_truncated: None, metrics, per_sample: None }
    }

    #[test]
    fn contributions_add_up_to_the_objective_whatever_is_known() {
        let tasks = [task("a", 3.0, true), task("b", 1.0, false)];
        let mut scored = outcome(0, Answer::Score(0.5));
        scored.tasks = BTreeMap::from([("a".to_owned(), scores(0.8)), ("b".to_owned(), scores(0.4))]);
        let exact = contributions(&tasks, &scored).unwrap();
        assert!((exact.values[0] - 0.6).abs() < 1e-12 && (exact.values[1] + 0.1).abs() < 1e-12, "{exact:?}");
        // An estimate that differs from the tasks' mean is shared out evenly; so is an objective without tasks.
        scored.objective = Some(0.7);
        let shifted = contributions(&tasks, &scored).unwrap();
        assert!((shifted.values[0] - 0.7).abs() < 1e-12 && shifted.values[1].abs() < 1e-12, "{shifted:?}");
        assert_eq!(contributions(&tasks, &outcome(0, Answer::Score(0.5))), Some(known(&[0.25, 0.25])));
        assert_eq!(contributions(&[], &outcome(0, Answer::Score(0.5))), Some(known(&[0.5])));
        assert_eq!(contributions(&tasks, &outcome(0, Answer::Infeasible)), None);
        let many: Vec<ObjectiveTask> = (0..20).map(|number| task(&number.to_string(), 1.0, true)).collect();
        assert_eq!(contributions(&many, &outcome(0, Answer::Score(0.8))).unwrap().values.len(), MOST_PARTS);
    }

    #[test]
    fn targets_of_the_parts_add_up_to_standard_scores() {
        let own: Vec<Vec<f64>> =
            (0..6).map(|point| vec![0.1 * f64::from(point), 0.5 - 0.05 * f64::from(point)]).collect();
        let mut ranks: Vec<f64> = own.iter().map(|values| values.iter().sum()).collect();
        ranks[2] = f64::NEG_INFINITY;
        let own: Vec<Contributions> = own.iter().map(|values| known(values)).collect();
        let known: Vec<Option<&Contributions>> =
            own.iter().enumerate().map(|(point, values)| (point != 2).then_some(values)).collect();
        let targets = targets(&ranks, &known, 2).values;
        let sums: Vec<f64> = (0..6).map(|point| targets[0][point] + targets[1][point]).collect();
        assert!((sums.iter().sum::<f64>() / 6.0).abs() < 1e-9, "{sums:?}");
        assert!(sums[5] > sums[4] && sums[2] <= sums[0] + 1e-9, "{sums:?}");
        assert!(targets[0][5] > targets[0][0] && targets[1][5] < targets[1][0], "the parts keep their own direction");
    }

    #[test]
    fn a_sum_is_learnt_better_from_its_parts() {
        let genes: Vec<Gene> = (0..6).map(|gene| real(&format!("x{gene}"))).collect();
        let part = |point: &[f64], part: usize| (7.0 * point[2 * part]).sin() * (0.5 + point[2 * part + 1]);
        let split = |point: &[f64]| -> Vec<f64> { (0..3).map(|number| part(point, number)).collect() };
        let points: Vec<Vec<f64>> = (0..60).map(|index| sobol(7, index, 6)).collect();
        let seen: Vec<&[f64]> = points.iter().map(Vec::as_slice).collect();
        let own: Vec<Vec<f64>> = points.iter().map(|point| split(point)).collect();
        let ranks: Vec<f64> = own.iter().map(|values| values.iter().sum()).collect();
        let error = |parts: usize| {
            let own: Vec<Contributions> = own.iter().map(|values| known(values)).collect();
            let known: Vec<Option<&Contributions>> = own.iter().map(Some).collect();
            let targets = targets(&ranks, &known, parts);
            let mut model = Composite::new(&genes, &fit_all(&genes, &prior(6, parts), &seen, &targets));
            seen.iter().enumerate().for_each(|(place, point)| model.add(point, &targets, place));
            model.set_targets(&targets);
            // Standard scores of the true sums, by the two ends of the data.
            let sum = |point: usize| targets.values.iter().map(|part| part[point]).sum::<f64>();
            let slope = (sum(0) - sum(1)) / (ranks[0] - ranks[1]);
            let miss = |index: u64| {
                let point = sobol(7, index, 6);
                let truth = sum(0) + slope * (split(&point).iter().sum::<f64>() - ranks[0]);
                let expected: f64 = model.parts.iter().map(|part| part.surrogate.mean(&point)).sum();
                (expected - truth).powi(2)
            };
            (100..160).map(miss).sum::<f64>()
        };
        let (whole, parts) = (error(1), error(3));
        assert!(parts < 0.5 * whole, "{parts} {whole}");
    }

    #[test]
    fn errors_count_below_full_fidelity_only_and_are_shares_of_the_signal() {
        let tasks = [task("a", 1.0, true), task("b", 1.0, true)];
        let rough = |value: f64, fidelity: f64| {
            let mut scored = outcome(0, Answer::Score(value));
            let metric = MetricValue { value, stderr: Some(0.2) };
            let scores = TaskScores { metrics: BTreeMap::from([("acc".to_owned(), metric)]), ..scores(value) };
            scored.tasks = BTreeMap::from([("a".to_owned(), scores.clone()), ("b".to_owned(), scores)]);
            contributions(&tasks, &Outcome { fidelity, ..scored }).unwrap()
        };
        assert_eq!(rough(0.5, 1.0).errors, [0.0, 0.0]);
        let own = [rough(0.1, 1.0), rough(0.9, 1.0), rough(0.4, 0.25), rough(0.6, 0.25)];
        assert!((own[2].errors[1] - 0.01).abs() < 1e-12);
        let ranks = [0.1, 0.9, 0.4, 0.6];
        let targets = targets(&ranks, &own.each_ref().map(Some), 2);
        // A part's distances from its mean are 0.2 and 0.05, twice each, and half of the points err.
        let expected = 0.01 / ((2.0 * 0.04 + 2.0 * 0.0025) / 4.0 - 0.005);
        for errors in &targets.errors {
            assert_eq!(errors[..2], [0.0, 0.0]);
            assert!((errors[2] - expected).abs() < 1e-9 && errors[2] == errors[3], "{errors:?} {expected}");
        }
    }

    #[test]
    fn improvement_is_a_mean_over_the_normal_distribution() {
        for (mean, deviation) in [(0.5, 0.2), (-0.1, 0.3), (-1.0, 0.4), (-3.0, 1.0), (-2.0, 0.25)] {
            let steps = 400_000;
            let density = |z: f64| (-0.5 * z * z).exp() / std::f64::consts::TAU.sqrt();
            let width = 24.0 / f64::from(steps);
            let term = |step: i32| {
                let z = -12.0 + (f64::from(step) + 0.5) * width;
                (mean + deviation * z).max(0.0) * density(z) * width
            };
            let expected: f64 = (0..steps).map(term).sum::<f64>().ln();
            let found = log_expected_improvement(mean, deviation);
            assert!((found - expected).abs() < 2e-3, "{mean} {deviation}: {found} {expected}");
        }
        let far: Vec<f64> = [-10.0, -30.0, -100.0].iter().map(|mean| log_expected_improvement(*mean, 0.1)).collect();
        assert!(far.iter().all(|value| value.is_finite()) && far.windows(2).all(|pair| pair[0] > pair[1]), "{far:?}");
    }

    #[test]
    fn scores_are_standardised_whatever_their_size() {
        let check = |scores: &[f64]| {
            let (values, _) = standardise(scores);
            assert!(values.iter().all(|value| value.is_finite()), "{values:?}");
            assert!(values.windows(2).all(|pair| pair[0] >= pair[1]), "{values:?}");
            values
        };
        let plain = check(&[0.9, 0.8, 0.7, 0.6]);
        assert!((plain.iter().sum::<f64>()).abs() < 1e-12);
        let infeasible = check(&[0.9, 0.8, f64::NEG_INFINITY]);
        assert_eq!(infeasible[1], infeasible[2]);
        let outlier = check(&[0.9, 0.8, 0.7, -1e9]);
        assert!(outlier[0] - outlier[1] > 0.1, "one bad score leaves the good ones apart: {outlier:?}");
        assert_eq!(check(&[0.5; 4]), vec![0.0; 4]);
        let huge = check(&[1e300, 0.0, -1e300]);
        assert!(huge[0] > huge[2]);
        check(&[f64::MAX, -f64::MAX, f64::NEG_INFINITY]);
    }
}
