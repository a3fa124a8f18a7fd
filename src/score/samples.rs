//! Scores put together from two parts of a task's samples.

use std::collections::{BTreeMap, HashMap};

use crate::scores::{MetricValue, PerSample, SampleId, TaskScores};

/// One task's scores over the samples of both parts, which must not overlap, for a metric that is the plain mean of its
/// per-sample scores; ids ascend. `None` where one part lacks per-sample scores of `metric`, or a sample is in both.
pub fn union(first: &TaskScores, second: &TaskScores, metric: &str) -> Option<TaskScores> {
    let mut by_id: HashMap<&SampleId, f64> = HashMap::new();
    for part in [first, second] {
        let samples = part.per_sample.as_ref()?;
        let values = samples.scores.get(metric).filter(|values| values.len() == samples.ids.len())?;
        for (id, value) in samples.ids.iter().zip(values) {
            if by_id.insert(id, *value).is_some() {
                return None;
            }
        }
    }
    let mut samples: Vec<(&SampleId, f64)> = by_id.into_iter().collect();
    samples.sort_by_key(|(id, _)| *id);
    let values: Vec<f64> = samples.iter().map(|(_, value)| *value).collect();
    if values.is_empty() {
        return None;
    }
    Some(TaskScores {
        n: values.len() as u64,
        n_truncated: first.n_truncated.zip(second.n_truncated).map(|(first, second)| first + second),
        metrics: BTreeMap::from([(metric.to_owned(), MetricValue::mean_of(&values))]),
        per_sample: Some(PerSample {
            ids: samples.into_iter().map(|(id, _)| id.clone()).collect(),
            scores: BTreeMap::from([(metric.to_owned(), values)]),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(ids: &[i64], values: &[f64]) -> TaskScores {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        TaskScores {
            n: ids.len() as u64,
            n_truncated: Some(1),
            metrics: BTreeMap::from([("acc".to_owned(), MetricValue { value: mean, stderr: None })]),
            per_sample: Some(PerSample {
                ids: ids.iter().map(|id| SampleId::Number(*id)).collect(),
                scores: BTreeMap::from([("acc".to_owned(), values.to_vec())]),
            }),
        }
    }

    #[test]
    fn two_parts_make_the_whole() {
        let whole = union(&scores(&[3, 1], &[1.0, 0.0]), &scores(&[2, 0], &[1.0, 1.0]), "acc").unwrap();
        assert_eq!((whole.n, whole.n_truncated), (4, Some(2)));
        assert_eq!(whole.metrics["acc"].value, 0.75);
        let samples = whole.per_sample.unwrap();
        assert_eq!(samples.ids.to_vec(), [0, 1, 2, 3].map(SampleId::Number));
        assert_eq!(samples.scores["acc"], [1.0, 0.0, 1.0, 1.0]);
        assert!((whole.metrics["acc"].stderr.unwrap() - 0.25).abs() < 1e-12);
    }

    #[test]
    fn overlapping_parts_and_other_metrics_make_nothing() {
        let part = scores(&[1, 2], &[1.0, 0.0]);
        assert_eq!(union(&part, &scores(&[2], &[0.0]), "acc"), None);
        assert_eq!(union(&part, &scores(&[3], &[0.0]), "f1"), None);
        let bare = TaskScores { per_sample: None, ..scores(&[3], &[0.0]) };
        assert_eq!(union(&part, &bare, "acc"), None);
    }
}
