//! The objective: one number from the scores of several tasks.

use crate::scores::{MetricValue, Scores};

/// One task of the objective.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectiveTask {
    /// The task's name in the scores.
    pub name: String,
    /// Which of the task's metrics counts.
    pub metric: String,
    /// Share in the mean. A negative weight turns the direction, as `maximize = false` does.
    pub weight: f64,
    /// Whether higher scores are better.
    pub maximize: bool,
}

impl ObjectiveTask {
    /// The weight with the task's direction as its sign.
    pub fn signed_weight(&self) -> f64 {
        if self.maximize { self.weight } else { -self.weight }
    }

    /// The task's metric, if it is there and finite.
    pub(super) fn metric<'a>(&self, scores: &'a Scores) -> Option<&'a MetricValue> {
        scores.get(&self.name)?.metrics.get(&self.metric).filter(|metric| metric.value.is_finite())
    }
}

/// A weighted mean of task scores: `sum(weight * sign * score) / sum(|weight|)`. Higher is better.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objective {
    /// The tasks in the order of the run file, which is the order of summation.
    pub tasks: Vec<ObjectiveTask>,
}

/// One task's part in an objective value.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskValue {
    /// The task's name in the scores.
    pub task: String,
    /// The metric that counts.
    pub metric: String,
    /// The score as measured, without sign; `None` where it is missing or not finite.
    pub score: Option<f64>,
    /// Standard error of `score`, where the evaluator gives one.
    pub stderr: Option<f64>,
    /// Samples scored.
    pub n: u64,
}

impl Objective {
    /// The objective of a candidate with these scores; `None` if a task or metric is missing or not finite, or if all
    /// weights are zero. A task of weight zero must be scored like the others.
    pub fn value(&self, scores: &Scores) -> Option<f64> {
        let mut sum = 0.0;
        for task in &self.tasks {
            sum += task.signed_weight() * task.metric(scores)?.value;
        }
        self.divide(sum)
    }

    /// The standard error of [`Self::value`], taking tasks as independent; `None` where a task with weight has none.
    pub fn stderr(&self, scores: &Scores) -> Option<f64> {
        let mut variance = 0.0;
        for task in self.weighted_tasks() {
            let stderr = task.metric(scores)?.stderr.filter(|stderr| stderr.is_finite())?;
            variance += (task.weight * stderr).powi(2);
        }
        self.divide(variance.sqrt())
    }

    /// Every task's own score, in order.
    pub fn per_task(&self, scores: &Scores) -> Vec<TaskValue> {
        let value = |task: &ObjectiveTask| TaskValue {
            task: task.name.clone(),
            metric: task.metric.clone(),
            score: task.metric(scores).map(|metric| metric.value),
            stderr: task.metric(scores).and_then(|metric| metric.stderr),
            n: scores.get(&task.name).map_or(0, |scores| scores.n),
        };
        self.tasks.iter().map(value).collect()
    }

    /// The tasks that count.
    pub fn weighted_tasks(&self) -> impl Iterator<Item = &ObjectiveTask> {
        self.tasks.iter().filter(|task| task.weight != 0.0)
    }

    /// `sum(|weight|)`.
    pub fn total_weight(&self) -> f64 {
        self.tasks.iter().map(|task| task.weight.abs()).sum()
    }

    /// A share of the total weight, [`rounded`].
    pub(super) fn divide(&self, sum: f64) -> Option<f64> {
        rounded(sum / self.total_weight())
    }
}

/// A number to 14 significant digits: sums of the same accuracies in another order are the same score, not a better
/// one, and a greedy soup or a list of bests must not turn on the sixteenth digit. `None`: it is not finite.
pub(super) fn rounded(value: f64) -> Option<f64> {
    value.is_finite().then(|| format!("{value:.13e}").parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::TaskScores;
    use std::collections::BTreeMap;

    fn scores(entries: &[(&str, f64, Option<f64>)]) -> Scores {
        let task = |&(name, value, stderr): &(&str, f64, Option<f64>)| {
            let metrics = BTreeMap::from([("acc".to_owned(), MetricValue { value, stderr })]);
            (name.to_owned(), TaskScores { n: 10, metrics, ..TaskScores::default() })
        };
        entries.iter().map(task).collect()
    }

    fn objective(entries: &[(&str, f64, bool)]) -> Objective {
        let task = |&(name, weight, maximize): &(&str, f64, bool)| ObjectiveTask {
            name: name.to_owned(),
            metric: "acc".to_owned(),
            weight,
            maximize,
        };
        Objective { tasks: entries.iter().map(task).collect() }
    }

    #[test]
    fn weights_signs_and_errors_combine() {
        let objective = objective(&[("a", 1.0, true), ("b", 3.0, false)]);
        let scores = scores(&[("a", 0.8, Some(0.1)), ("b", 0.4, Some(0.2)), ("unused", 9.0, None)]);
        assert!((objective.value(&scores).unwrap() - (0.8 - 3.0 * 0.4) / 4.0).abs() < 1e-13);
        let expected = (0.01_f64 + 0.36).sqrt() / 4.0;
        assert!((objective.stderr(&scores).unwrap() - expected).abs() < 1e-13);
        let tasks = objective.per_task(&scores);
        assert_eq!((tasks[1].score, tasks[1].n), (Some(0.4), 10));
    }

    #[test]
    fn the_same_accuracies_in_another_order_are_the_same_score() {
        let objective = objective(&[("a", 1.0, true), ("b", 1.0, true), ("c", 1.0, true)]);
        let one = scores(&[("a", 0.1, None), ("b", 0.2, None), ("c", 0.3, None)]);
        let other = scores(&[("a", 0.3, None), ("b", 0.2, None), ("c", 0.1, None)]);
        assert_ne!((0.1 + 0.2) + 0.3, (0.3 + 0.2) + 0.1);
        assert_eq!(objective.value(&one), objective.value(&other));
    }

    #[test]
    fn negative_weights_count_by_their_magnitude() {
        let objective = objective(&[("a", -1.0, true), ("b", 1.0, true)]);
        assert_eq!(objective.value(&scores(&[("a", 0.5, None), ("b", 1.0, None)])), Some(0.25));
    }

    #[test]
    fn missing_not_finite_and_weightless_have_no_value() {
        let two = objective(&[("a", 1.0, true), ("b", 1.0, true)]);
        assert_eq!(two.value(&scores(&[("a", 0.5, None)])), None);
        assert_eq!(two.value(&scores(&[("a", 0.5, None), ("b", f64::NAN, None)])), None);
        assert_eq!(two.stderr(&scores(&[("a", 0.5, Some(0.1)), ("b", 0.5, None)])), None);
        assert_eq!(objective(&[("a", 0.0, true)]).value(&scores(&[("a", 0.5, None)])), None);
    }
}
