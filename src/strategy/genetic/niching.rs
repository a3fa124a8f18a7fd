//! Niching from sample scores (Sakana's M2N2, 2025): the first parent wins by samples that few others solve, the second
//! by samples that the first does not solve.

use rand::{Rng, RngExt};

use crate::score::ObjectiveTask;
use crate::scores::SampleId;
use crate::strategy::Outcome;

/// Who breeds with whom, as weights.
pub(super) struct Niches {
    /// Of each member as the first parent.
    first: Vec<f64>,
    /// Of each member as the second parent, by the first.
    mates: Vec<Vec<f64>>,
}

impl Niches {
    /// From the members' scores of the same samples, higher is better. `None` for fewer than two members or where the
    /// samples differ in number.
    pub(super) fn new(scores: &[&[f64]]) -> Option<Self> {
        let samples = scores.first()?.len();
        if scores.len() < 2 || samples == 0 || scores.iter().any(|member| member.len() != samples) {
            return None;
        }
        let mut first = vec![0.0; scores.len()];
        for sample in 0..samples {
            // Scores count from the worst member's, so that any metric can be shared out.
            let worst = scores.iter().map(|member| member[sample]).fold(f64::INFINITY, f64::min);
            let total: f64 = scores.iter().map(|member| member[sample] - worst).sum();
            if total > 0.0 && total.is_finite() {
                first.iter_mut().zip(scores).for_each(|(sum, member)| *sum += (member[sample] - worst) / total);
            }
        }
        let attraction =
            |one: &[f64], other: &[f64]| -> f64 { one.iter().zip(other).map(|(a, b)| (b - a).max(0.0)).sum() };
        let mates = scores.iter().map(|one| scores.iter().map(|other| attraction(one, other)).collect()).collect();
        Some(Self { first, mates })
    }

    pub(super) fn first(&self, rng: &mut impl Rng) -> usize {
        pick(&self.first, rng)
    }

    pub(super) fn mate(&self, of: usize, rng: &mut impl Rng) -> usize {
        pick(&self.mates[of], rng)
    }
}

/// A place, in proportion to its weight; any where nobody has weight.
fn pick(weights: &[f64], rng: &mut impl Rng) -> usize {
    let total: f64 = weights.iter().sum();
    if total.is_nan() || total <= 0.0 || total.is_infinite() {
        return rng.random_range(0..weights.len());
    }
    let mut left = rng.random::<f64>() * total;
    for (place, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return place;
        }
    }
    weights.len() - 1
}

/// The sample scores of all tasks of the objective, one after the other, each task's by ascending id, with their
/// direction as the sign; `None` where a task has none.
pub(super) fn sample_scores(tasks: &[ObjectiveTask], outcome: &Outcome) -> Option<Vec<f64>> {
    let mut all = Vec::new();
    for task in tasks {
        let samples = outcome.tasks.get(&task.name)?.per_sample.as_ref()?;
        let scores = samples.scores.get(&task.metric)?;
        let mut by_id: Vec<(&SampleId, f64)> = samples.ids.iter().zip(scores.iter().copied()).collect();
        // Answers come in the order that they were asked for in, and put together from parts in that of ids.
        by_id.sort_by_key(|(id, _)| *id);
        all.extend(by_id.iter().map(|(_, score)| score * task.signed_weight()));
    }
    Some(all).filter(|all| !all.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    #[test]
    fn the_rare_win_and_find_who_completes_them() {
        // Two generalists that solve the same samples, and a specialist for the last one.
        let scores: [&[f64]; 3] = [&[1.0, 1.0, 0.0], &[1.0, 1.0, 0.0], &[0.0, 0.0, 1.0]];
        let niches = Niches::new(&scores).unwrap();
        assert_eq!(niches.first, vec![1.0, 1.0, 1.0]);
        let mut rng = random::stream(7, "test", 0);
        assert!((0..50).all(|_| niches.mate(0, &mut rng) == 2));
        assert!((0..50).all(|_| niches.mate(2, &mut rng) < 2));
        assert!((0..50).any(|_| niches.first(&mut rng) == 2));
    }

    #[test]
    fn nothing_to_tell_apart_is_no_error() {
        let flat: [&[f64]; 2] = [&[0.5, 0.5], &[0.5, 0.5]];
        let niches = Niches::new(&flat).unwrap();
        let mut rng = random::stream(7, "test", 1);
        assert!(niches.first(&mut rng) < 2 && niches.mate(1, &mut rng) < 2);
        assert!(Niches::new(&[&[1.0][..]]).is_none());
        assert!(Niches::new(&[&[1.0][..], &[1.0, 0.0][..]]).is_none());
    }
}
