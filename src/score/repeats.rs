//! A candidate scored again on the same samples: which finalist is the best by both scores, and whether the evaluator
//! is still the one that it was.

use super::distributions::student_99865;
use super::objective::{Objective, ObjectiveTask};
use super::order::best_first;
use super::paired::difference_by_chance;
use crate::scores::Scores;

/// Standard errors beyond which a difference is no chance any more: 0.3 % of repeats are by chance.
const BEYOND_CHANCE: f64 = 3.0;
/// Fewest earlier scores that tell their spread.
const FEWEST_SCORES: usize = 4;
/// Relative difference that the rounding of printed numbers explains.
const ROUNDING: f64 = 1e-9;

/// How far a repeated score is from the first one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drift {
    /// Latest less first, in objective direction.
    pub difference: f64,
    /// The difference in standard errors; `None` where the evaluator says that nothing changes by chance.
    pub errors: Option<f64>,
}

/// Whether the latest score of a candidate differs from its earlier ones, oldest first, by more than chance allows.
///
/// A `deterministic` evaluator has no chance. Else, the differences sample by sample are compared with zero; without
/// scores by sample, the difference to the first score is compared with both standard errors; without those, or where
/// they are zero (one sample, or answers that are all alike, which tells nothing of chance), the latest score is
/// compared with the spread of at least four earlier ones. `None`: within chance, or nothing is known of it.
pub fn drift(objective: &Objective, earlier: &[&Scores], latest: &Scores, deterministic: bool) -> Option<Drift> {
    let first = *earlier.first()?;
    let (before, now) = (objective.value(first)?, objective.value(latest)?);
    let difference = now - before;
    let paired = difference_by_chance(objective, latest, first);
    if deterministic {
        let difference = paired.map_or(difference, |(paired, _)| paired);
        let same_samples = paired.is_none_or(|(_, error)| error <= ROUNDING);
        let same = difference.abs() <= ROUNDING * before.abs().max(1.0) && same_samples;
        return (!same).then_some(Drift { difference, errors: None });
    }
    let errors_of_both = objective.stderr(first).zip(objective.stderr(latest));
    let error_of_both = errors_of_both.map(|(first, second)| first.hypot(second)).filter(|error| *error > 0.0);
    let (difference, errors, most) = match (paired, error_of_both) {
        (Some((difference, error)), _) => (difference, difference / error, BEYOND_CHANCE),
        (None, Some(error)) => (difference, difference / error, BEYOND_CHANCE),
        (None, None) => {
            let values: Vec<f64> = earlier.iter().filter_map(|scores| objective.value(scores)).collect();
            let step = answer_step(objective, earlier.iter().copied().chain([latest]));
            let (distance, most) = distance_to(&values, now, 0.5 * step)?;
            (difference, distance, most)
        }
    };
    // Nothing over nothing is no difference.
    (errors.abs() > most).then_some(Drift { difference, errors: Some(errors) })
}

/// Change of the objective by one answer more or less that is right, over the tasks whose scores are shares of their
/// `n` answers. A spread that a few scores show by chance is no smaller than half of it.
fn answer_step<'a>(objective: &Objective, scores: impl Iterator<Item = &'a Scores> + Clone) -> f64 {
    let step = |task: &ObjectiveTask| {
        let mut step = 0.0_f64;
        for scores in scores.clone() {
            let n = scores.get(&task.name)?.n as f64;
            let answers = task.metric(scores)?.value * n;
            if n < 1.0 || !(0.0..=n).contains(&answers) || (answers - answers.round()).abs() > 1e-6 * n {
                return None;
            }
            step = step.max(1.0 / n);
        }
        Some((task.weight / objective.total_weight() * step).powi(2))
    };
    objective.weighted_tasks().filter_map(step).sum::<f64>().sqrt()
}

/// Distance of `now` from the mean of `values`, in standard deviations of a new value (the deviation is taken as at
/// least `least`), and the Student limit beyond which it is not chance. `None`: too few values.
fn distance_to(values: &[f64], now: f64, least: f64) -> Option<(f64, f64)> {
    let freedom = values.len().checked_sub(1).filter(|_| values.len() >= FEWEST_SCORES)?;
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / freedom as f64;
    let most = student_99865(freedom);
    let deviation = variance.sqrt().max(least);
    Some(((now - mean) / (deviation * (1.0 + 1.0 / n).sqrt()), most))
}

/// A finalist's two scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TwoScores {
    /// The score by which it became a finalist.
    pub search: f64,
    /// The score on the same samples, answered anew; `None`: it could not be scored again.
    pub again: Option<f64>,
}

/// The places of finalists in order, best first: by the mean of their scores, the earlier first among equals. Those
/// without a second score come last, in order: a lucky first score is all that they have.
///
/// Both scores are measurements of the same thing with the same error, and what made someone a finalist is one of them:
/// so their mean has all that is known of a finalist, although the first score alone over-states it.
pub fn order(finalists: &[TwoScores]) -> Vec<usize> {
    let mean = |place: &usize| {
        let finalist = finalists[*place];
        finalist.again.map(|again| 0.5 * (finalist.search + again))
    };
    let mut places: Vec<usize> = (0..finalists.len()).collect();
    places.sort_by(|first, second| best_first(mean(first), mean(second)));
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;
    use crate::scores::{MetricValue, PerSample, SampleId, TaskScores};
    use rand::Rng as _;
    use std::collections::BTreeMap;

    fn objective() -> Objective {
        let task = |name: &str| ObjectiveTask { name: name.into(), metric: "acc".into(), weight: 1.0, maximize: true };
        Objective { tasks: vec![task("a"), task("b")] }
    }

    fn scores(values: &[f64], per_sample: bool, stderr: Option<f64>) -> Scores {
        let value = values.iter().sum::<f64>() / values.len() as f64;
        let samples = PerSample {
            ids: (0..values.len() as i64).map(SampleId::Number).collect(),
            scores: BTreeMap::from([("acc".to_owned(), values.to_vec())]),
        };
        let task = TaskScores {
            n: values.len() as u64,
            metrics: BTreeMap::from([("acc".to_owned(), MetricValue { value, stderr })]),
            per_sample: per_sample.then_some(samples),
            ..TaskScores::default()
        };
        BTreeMap::from([("a".to_owned(), task.clone()), ("b".to_owned(), task)])
    }

    /// Answers of a model that is right at `rate` of the samples, drawn anew by `draw`.
    fn answers(rate: f64, draw: u64) -> Vec<f64> {
        let mut dice = random::stream(5, "answers", draw);
        (0..200).map(|_| f64::from(u8::from(f64::from(dice.next_u32()) < rate * 2f64.powi(32)))).collect()
    }

    #[test]
    fn chance_is_no_drift_and_a_worse_evaluator_is() {
        let objective = objective();
        for (per_sample, stderr) in [(true, None), (false, Some(0.034))] {
            let first = scores(&answers(0.6, 0), per_sample, stderr);
            let alarms = |rate: f64| {
                let latest = (1..=200).map(|draw| scores(&answers(rate, draw), per_sample, stderr));
                latest.filter(|latest| drift(&objective, &[&first], latest, false).is_some()).count()
            };
            assert!(alarms(0.6) <= 3, "{} of 200", alarms(0.6));
            assert!(alarms(0.3) >= 195, "{} of 200", alarms(0.3));
        }
    }

    #[test]
    fn few_samples_do_not_raise_it_and_the_same_shift_everywhere_does() {
        let objective = objective();
        let shifted = |n: usize| {
            drift(&objective, &[&scores(&vec![0.2; n], true, None)], &scores(&vec![0.1; n], true, None), false)
        };
        assert_eq!(shifted(3), None, "six differences of one sign are chance once in 32 times");
        let drift = shifted(20).unwrap();
        assert!((drift.difference + 0.1).abs() < 1e-12 && drift.errors.unwrap() < -3.0, "{drift:?}");
    }

    #[test]
    fn without_errors_the_spread_of_earlier_scores_decides() {
        let objective = objective();
        let earlier: Vec<Scores> =
            [0.60, 0.61, 0.59, 0.60, 0.605].iter().map(|value| scores(&[*value], false, None)).collect();
        let earlier: Vec<&Scores> = earlier.iter().collect();
        let latest =
            |value: f64, known: usize| drift(&objective, &earlier[..known], &scores(&[value], false, None), false);
        assert_eq!(latest(0.2, 3), None, "three scores have no spread to speak of");
        assert_eq!(latest(0.62, 5), None);
        assert!((latest(0.5, 5).unwrap().difference + 0.1).abs() < 1e-12);
        let same: Vec<Scores> = vec![scores(&[0.6], false, None); 4];
        let same: Vec<&Scores> = same.iter().collect();
        assert_eq!(drift(&objective, &same, same[0], false), None);
        assert!(drift(&objective, &same, earlier[1], false).is_some(), "it never varied before");
        // One answer of a hundred that comes out either way did so in none of four scorings.
        let right = |count: usize| scores(&[vec![1.0; count], vec![0.0; 100 - count]].concat(), false, Some(0.0));
        let same: Vec<Scores> = vec![right(60); 4];
        let same: Vec<&Scores> = same.iter().collect();
        assert_eq!(drift(&objective, &same, &right(59), false), None);
        assert!(drift(&objective, &same, &right(40), false).unwrap().errors.unwrap().is_finite());
        // Errors of zero are those of one sample.
        let lone = |value: f64| scores(&[value], false, Some(0.0));
        assert_eq!(drift(&objective, &[&lone(1.0)], &lone(0.0), false), None);
    }

    #[test]
    fn a_deterministic_evaluator_may_not_change_a_single_sample() {
        let objective = objective();
        let first = scores(&[1.0, 0.0, 1.0], true, Some(0.1));
        assert_eq!(drift(&objective, &[&first], &first.clone(), true), None);
        // The same mean from other answers.
        let other = drift(&objective, &[&first], &scores(&[0.0, 1.0, 1.0], true, Some(0.1)), true);
        assert_eq!(other.map(|drift| drift.errors), Some(None));
        let bare = |value: f64| scores(&[value], false, None);
        assert_eq!(drift(&objective, &[&bare(0.5)], &bare(0.5), true), None);
        assert!(drift(&objective, &[&bare(0.5)], &bare(0.501), true).is_some());
    }

    #[test]
    fn finalists_are_ordered_by_the_mean_of_both_scores() {
        let two = |search: f64, again: f64| TwoScores { search, again: Some(again) };
        assert_eq!(order(&[two(0.9, 0.5), two(0.8, 0.7), two(0.75, 0.72)]), [1, 2, 0]);
        assert_eq!(order(&[two(0.8, 0.8), two(0.8, 0.8)]), [0, 1]);
        let lost = TwoScores { search: 0.99, again: None };
        assert_eq!(order(&[lost, two(0.5, 0.4), lost]), [1, 0, 2]);
    }
}
