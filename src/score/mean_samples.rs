//! The samples that a metric is the mean of.

use crate::scores::{SAMPLE_WEIGHT, SampleId, TaskScores};

/// Difference at which a metric's value still counts as the mean of its samples (evaluators print rounded numbers),
/// relative to the largest of them.
const MEAN_TOLERANCE: f64 = 1e-4;

/// One candidate's samples of a metric whose value is their (weighted) mean.
pub(crate) struct MeanSamples<'a> {
    pub(crate) ids: &'a [SampleId],
    pub(crate) values: &'a [f64],
    pub(crate) weights: Option<&'a [f64]>,
    /// How far their mean is from the metric's value.
    distance: f64,
}

/// The samples that a metric is the mean of: by the weights that come with them, where that is as near to its value as
/// the plain mean, or nearer. `None`: it is neither.
pub(crate) fn mean_samples<'a>(scores: &'a TaskScores, metric: &str) -> Option<MeanSamples<'a>> {
    let nearer = [MeanSamples::weighted(scores, metric), MeanSamples::plain(scores, metric)];
    nearer.into_iter().flatten().reduce(|first, other| if other.distance < first.distance { other } else { first })
}

/// Both candidates' samples, both with weights or both without: where samples weigh nearly the same, the plain mean may
/// be one candidate's value by chance.
pub(super) fn same_kind<'a>(
    first: &'a TaskScores,
    second: &'a TaskScores,
    metric: &str,
) -> Option<(MeanSamples<'a>, MeanSamples<'a>)> {
    let weighted = MeanSamples::weighted(first, metric).zip(MeanSamples::weighted(second, metric));
    let plain = MeanSamples::plain(first, metric).zip(MeanSamples::plain(second, metric));
    let distance = |(first, second): &(MeanSamples<'_>, MeanSamples<'_>)| first.distance + second.distance;
    let both = [weighted, plain].into_iter().flatten();
    both.reduce(|one, other| if distance(&other) < distance(&one) { other } else { one })
}

impl<'a> MeanSamples<'a> {
    /// `None` unless the metric is the mean of the samples' scores.
    fn plain(scores: &'a TaskScores, metric: &str) -> Option<Self> {
        let (ids, values) = values_of(scores, metric)?;
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let distance = distance_from(scores, metric, mean, values)?;
        Some(Self { ids, values, weights: None, distance })
    }

    /// `None` unless the metric is the mean of the samples' scores by the weights that come with them.
    fn weighted(scores: &'a TaskScores, metric: &str) -> Option<Self> {
        let (ids, values) = values_of(scores, metric)?;
        let weights = scores.per_sample.as_ref()?.scores.get(SAMPLE_WEIGHT)?;
        if weights.len() != values.len() || !weights.iter().all(|weight| *weight > 0.0) {
            return None;
        }
        let total: f64 = weights.iter().sum();
        let mean = values.iter().zip(weights).map(|(value, weight)| value * weight).sum::<f64>() / total;
        let distance = distance_from(scores, metric, mean, values)?;
        Some(Self { ids, values, weights: Some(weights), distance })
    }
}

fn values_of<'a>(scores: &'a TaskScores, metric: &str) -> Option<(&'a [SampleId], &'a [f64])> {
    let samples = scores.per_sample.as_ref()?;
    let values = samples.scores.get(metric).filter(|values| values.len() == samples.ids.len() && !values.is_empty())?;
    Some((&samples.ids, values))
}

/// How far a mean is from the metric's value; `None` where that is more than rounding explains.
fn distance_from(scores: &TaskScores, metric: &str, mean: f64, values: &[f64]) -> Option<f64> {
    let value = scores.metrics.get(metric)?.value;
    let largest = values.iter().fold(value.abs(), |largest, value| largest.max(value.abs()));
    let distance = (mean - value).abs();
    (distance <= MEAN_TOLERANCE * largest).then_some(distance)
}

/// Numbers whose plain mean is the weighted mean of the values, and whose means over draws of the samples vary as the
/// weighted means of what was drawn do, to first order: each sample counts by how far it moves the weighted mean.
pub(crate) fn unweighted(values: &[f64], weights: &[f64]) -> Vec<f64> {
    let total: f64 = weights.iter().sum();
    let mean = values.iter().zip(weights).map(|(value, weight)| value * weight).sum::<f64>() / total;
    let typical = total / weights.len() as f64;
    values.iter().zip(weights).map(|(value, weight)| mean + weight / typical * (value - mean)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_move_the_mean_and_not_the_level() {
        // Texts of unlike length on which a model has the same loss everywhere: whatever is drawn, its mean is that loss.
        assert_eq!(unweighted(&[3.0; 3], &[1.0, 10.0, 100.0]), [3.0; 3]);
        let numbers = unweighted(&[1.0, 2.0, 4.0], &[1.0, 1.0, 2.0]);
        assert!((numbers.iter().sum::<f64>() / 3.0 - 2.75).abs() < 1e-12, "{numbers:?}");
        // The heaviest sample moves the mean as it should: 2 / (4 / 3) times its distance.
        assert!((numbers[2] - (2.75 + 1.5 * 1.25)).abs() < 1e-12, "{numbers:?}");
    }
}
