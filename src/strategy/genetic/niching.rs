//! Niching from sample scores (Sakana's M2N2, 2025): the first parent wins by samples that few others solve, the second
//! by samples that the first does not solve.

use rand::{Rng, RngExt};

use crate::score::ObjectiveTask;
use crate::scores::{SampleId, SampleIds};
use crate::strategy::Outcome;

/// Who breeds with whom, as weights.
pub(super) struct Niches {
    /// Weight of each member as the first parent.
    first: Vec<f64>,
    /// Weights of the members as the second parent, for each first parent.
    mates: Vec<Vec<f64>>,
}

impl Niches {
    /// From the members' scores of the same samples, higher is better. `None` for fewer than two members or without
    /// samples.
    pub(super) fn new(scores: &[impl AsRef<[f64]>]) -> Option<Self> {
        let scores: Vec<&[f64]> = scores.iter().map(AsRef::as_ref).collect();
        let samples = scores.iter().map(|member| member.len()).min()?;
        if scores.len() < 2 || samples == 0 {
            return None;
        }
        let mut first = vec![0.0; scores.len()];
        for sample in 0..samples {
            // Scores count from the worst member's, so that any metric can be shared out.
            let worst = scores.iter().map(|member| member[sample]).fold(f64::INFINITY, f64::min);
            let total: f64 = scores.iter().map(|member| member[sample] - worst).sum();
            if total > 0.0 && total.is_finite() {
                first.iter_mut().zip(&scores).for_each(|(sum, member)| *sum += (member[sample] - worst) / total);
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

/// What a member scored sample by sample, with each task's direction and weight: by task of the objective, as it was
/// answered.
pub(super) struct SampleScores(Vec<(SampleIds, Vec<f64>)>);

impl SampleScores {
    /// `None` where a task has no scores by sample.
    pub(super) fn of(tasks: &[ObjectiveTask], outcome: &Outcome) -> Option<Self> {
        let of_task = |task: &ObjectiveTask| {
            let samples = outcome.tasks.get(&task.name)?.per_sample.as_ref()?;
            let scores = samples.scores.get(&task.metric)?;
            Some((samples.ids.clone(), scores.iter().map(|score| score * task.signed_weight()).collect()))
        };
        tasks.iter().map(of_task).collect::<Option<_>>().map(Self)
    }
}

/// The members' scores of the samples that all of them were scored on, in one order: task by task, each task's by
/// ascending id. In a race some members have a part of the samples, and others all.
pub(super) fn shared_scores(members: &[&SampleScores]) -> Vec<Vec<f64>> {
    let mut rows = vec![Vec::new(); members.len()];
    let tasks = members.iter().map(|member| member.0.len()).min().unwrap_or(0);
    for task in 0..tasks {
        let sorted: Vec<Vec<(&SampleId, f64)>> = members.iter().map(|member| by_id(&member.0[task])).collect();
        let mut shared: Vec<&SampleId> = sorted[0].iter().map(|(id, _)| *id).collect();
        for member in &sorted[1..] {
            let mut left = member.iter().map(|(id, _)| *id).peekable();
            shared.retain(|id| {
                while left.next_if(|other| other < id).is_some() {}
                left.peek() == Some(id)
            });
        }
        for (row, member) in rows.iter_mut().zip(&sorted) {
            let mut wanted = shared.iter().copied().peekable();
            row.extend(member.iter().filter(|(id, _)| wanted.next_if_eq(id).is_some()).map(|(_, score)| score));
        }
    }
    rows
}

/// Answers come in the order that they were asked for in, and put together from parts in that of ids.
fn by_id((ids, scores): &(SampleIds, Vec<f64>)) -> Vec<(&SampleId, f64)> {
    let mut sorted: Vec<(&SampleId, f64)> = ids.iter().zip(scores.iter().copied()).collect();
    sorted.sort_by_key(|(id, _)| *id);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    fn member(tasks: &[&[(i64, f64)]]) -> SampleScores {
        let of_task = |samples: &&[(i64, f64)]| {
            let ids = samples.iter().map(|(id, _)| SampleId::Number(*id)).collect();
            (ids, samples.iter().map(|(_, score)| *score).collect())
        };
        SampleScores(tasks.iter().map(of_task).collect())
    }

    /// A candidate on the first rung of a race, one that went on, and one whose answers came in another order.
    #[test]
    fn members_are_compared_on_the_samples_that_all_of_them_have() {
        let part = member(&[&[(5, 0.5), (1, 0.1)], &[(2, 2.2)]]);
        let all = member(&[&[(1, 1.1), (2, 1.2), (5, 1.5), (9, 1.9)], &[(0, 2.0), (2, 2.2)]]);
        let turned = member(&[&[(9, 3.9), (5, 3.5), (2, 3.2), (1, 3.1)], &[(2, 4.2), (0, 4.0)]]);
        let rows = shared_scores(&[&all, &part, &turned]);
        assert_eq!(rows, [[1.1, 1.5, 2.2], [0.1, 0.5, 2.2], [3.1, 3.5, 4.2]]);
        assert_eq!(shared_scores(&[&all, &turned])[0], [1.1, 1.2, 1.5, 1.9, 2.0, 2.2]);
        let others = member(&[&[(7, 1.0)], &[(7, 1.0)]]);
        let apart = shared_scores(&[&all, &others]);
        assert!(apart.iter().all(Vec::is_empty));
        assert!(Niches::new(&apart).is_none(), "nothing to compare");
        assert!(shared_scores(&[]).is_empty());
    }

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
    }
}
