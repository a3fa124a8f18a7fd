//! Which samples an evaluation at less than full fidelity asks for: nested parts of one fixed order per task.

use super::sealed::sample_hash;
use crate::config::RacingConfig;
use crate::evaluate::{Evaluator, Samples, TaskRequest};
use crate::scores::SampleId;

/// Rungs where the run file names none.
const RUNGS: u32 = 2;
/// Fewest samples of a task on the first rung, where the run file names no rungs.
const FEWEST: u64 = 8;

/// How the tasks of a run are asked for in parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    tasks: Vec<Part>,
    /// Scores are means over samples and come sample by sample: what a part says of the whole can be estimated.
    pub per_sample: bool,
    /// A promotion asks for the samples that are missing only.
    pub incremental: bool,
    /// Shares of the samples, ascending, the last one 1.
    pub fidelities: Vec<f64>,
    /// Share of a rung's candidates that go on.
    pub keep: f64,
}

/// How one task is asked for in parts.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    /// The first ids of this order.
    Ids(Vec<SampleId>),
    /// The first of that many samples, in the evaluator's own fixed order.
    Limit(u64),
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::Ids(ids) => ids.len() as u64,
            Self::Limit(limit) => *limit,
        }
    }
}

impl Parts {
    /// Plans the parts of `tasks`.
    ///
    /// # Errors
    /// Why there can be no race, for people.
    pub fn plan(config: &RacingConfig, tasks: &[TaskRequest], evaluator: &dyn Evaluator) -> Result<Self, String> {
        let parts = tasks.iter().map(|task| part(task, evaluator)).collect::<Result<Vec<_>, _>>()?;
        let fewest = parts.iter().map(Part::len).min().unwrap_or(0);
        let reduction = u64::from(config.reduction);
        let rungs = match config.rungs {
            Some(rungs) => rungs,
            None => (1..=RUNGS).rev().find(|rungs| fewest / reduction.pow(rungs - 1) >= FEWEST).unwrap_or(1),
        };
        if rungs < 2 {
            return Err(match config.rungs {
                Some(_) => "racing.rungs is 1".to_owned(),
                None => format!("a task has {fewest} samples, too few to start on a part of them"),
            });
        }
        let fidelities = distinct((0..rungs).rev().map(|below| 1.0 / reduction.pow(below) as f64), &parts);
        if fidelities.len() < 2 {
            return Err(format!("a task has {fewest} samples, too few to start on a part of them"));
        }
        let per_sample = tasks.iter().all(|task| {
            let known = evaluator.capabilities().tasks.get(&task.name);
            let mean = known.and_then(|known| known.metrics.get(&task.metric)).is_some_and(|metric| metric.is_mean);
            mean && known.is_some_and(|known| known.supports_per_sample)
        });
        let incremental = per_sample && parts.iter().all(|part| matches!(part, Part::Ids(_)));
        Ok(Self { tasks: parts, per_sample, incremental, fidelities, keep: 1.0 / reduction as f64 })
    }

    /// The requests of an evaluation at `fidelity`, of which the samples at fidelity `after` are known. Small tasks may
    /// have no more samples than before; they are not among them then.
    pub fn requests(&self, tasks: &[TaskRequest], fidelity: f64, after: Option<f64>) -> Vec<TaskRequest> {
        let after = after.filter(|_| self.incremental);
        if fidelity >= 1.0 && after.is_none() {
            return tasks.to_vec();
        }
        let request = |(task, part): (&TaskRequest, &Part)| {
            let end = share(part.len(), fidelity);
            let samples = match part {
                Part::Ids(ids) => {
                    let start = after.map_or(0, |after| share(part.len(), after));
                    Samples::Ids(ids[start as usize..end as usize].to_vec())
                }
                Part::Limit(_) => Samples::Limit(end),
            };
            TaskRequest { samples, ..task.clone() }
        };
        let requests = tasks.iter().zip(&self.tasks).map(request);
        requests.filter(|request| !matches!(&request.samples, Samples::Ids(ids) if ids.is_empty())).collect()
    }
}

/// The fidelities that differ in the samples of some task from the next one.
fn distinct(fidelities: impl Iterator<Item = f64>, parts: &[Part]) -> Vec<f64> {
    let all: Vec<f64> = fidelities.collect();
    let differ = |index: usize| {
        let next = all.get(index + 1);
        next.is_none_or(|next| parts.iter().any(|part| share(part.len(), all[index]) < share(part.len(), *next)))
    };
    (0..all.len()).filter(|index| differ(*index)).map(|index| all[index]).collect()
}

/// At least one sample.
fn share(samples: u64, fidelity: f64) -> u64 {
    ((samples as f64 * fidelity).ceil() as u64).clamp(samples.min(1), samples)
}

fn part(task: &TaskRequest, evaluator: &dyn Evaluator) -> Result<Part, String> {
    let refuse = || format!("the evaluator takes neither sample_ids nor limit for task `{}`", task.name);
    let known = evaluator.capabilities().tasks.get(&task.name).ok_or_else(refuse)?;
    let ids = match &task.samples {
        Samples::Ids(ids) => Some(ids.clone()),
        Samples::All => known.sample_ids.clone().filter(|_| known.supports_sample_ids),
        Samples::Limit(_) => None,
    };
    if let Some(ids) = ids {
        return Ok(Part::Ids(shuffled(task, ids)));
    }
    let limit = task.samples.count(known.n_samples).filter(|limit| known.supports_limit && *limit > 0);
    limit.map(Part::Limit).ok_or_else(refuse)
}

/// A fixed order by hash of (seed, task, sample id).
fn shuffled(task: &TaskRequest, mut ids: Vec<SampleId>) -> Vec<SampleId> {
    ids.sort_by_cached_key(|id| sample_hash("evomerge racing v1", task.seed, &task.name, id));
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(incremental: bool) -> (Parts, Vec<TaskRequest>) {
        let samples = Samples::All;
        let task = TaskRequest { name: "t".into(), metric: "m".into(), samples, seed: 3 };
        let ids = shuffled(&task, (0..50).map(SampleId::Number).collect());
        let parts = Parts {
            tasks: vec![Part::Ids(ids)],
            per_sample: incremental,
            incremental,
            fidelities: vec![0.25, 1.0],
            keep: 0.25,
        };
        (parts, vec![task])
    }

    fn ids(requests: &[TaskRequest]) -> Vec<SampleId> {
        match &requests[0].samples {
            Samples::Ids(ids) => ids.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn parts_are_nested_and_promotions_complete_them() {
        let (parts, tasks) = parts(true);
        let first = ids(&parts.requests(&tasks, 0.0625, None));
        let second = ids(&parts.requests(&tasks, 0.25, None));
        assert_eq!((first.len(), second.len()), (4, 13));
        assert_eq!(second[..4], first[..]);
        let missing = ids(&parts.requests(&tasks, 0.25, Some(0.0625)));
        assert_eq!([first, missing].concat(), second);
        let rest = ids(&parts.requests(&tasks, 1.0, Some(0.25)));
        assert_eq!(second.len() + rest.len(), 50);
        assert_eq!(parts.requests(&tasks, 1.0, None), tasks, "full evaluations are asked for as without a race");
    }

    #[test]
    fn rungs_differ_and_a_task_without_new_samples_is_left_out() {
        let of = |count: i64| Part::Ids((0..count).map(SampleId::Number).collect());
        let fidelities = || (0..6).rev().map(|below| 1.0 / 4_f64.powi(below));
        assert_eq!(distinct(fidelities(), &[of(20)]), [0.015625, 0.0625, 0.25, 1.0]);
        assert_eq!(distinct(fidelities(), &[of(1)]), [1.0]);
        let (mut parts, mut tasks) = parts(true);
        parts.tasks.push(of(4));
        tasks.push(TaskRequest { name: "small".into(), ..tasks[0].clone() });
        let names = |fidelity, after| -> Vec<String> {
            parts.requests(&tasks, fidelity, after).into_iter().map(|request| request.name).collect()
        };
        assert_eq!(names(0.25, None), ["t", "small"]);
        assert_eq!(names(0.25, Some(0.0625)), ["t"], "a quarter and a sixteenth of 4 samples are both one");
        assert_eq!(names(1.0, Some(0.25)), ["t", "small"]);
    }

    #[test]
    fn without_means_a_promotion_asks_for_everything() {
        let (parts, tasks) = parts(false);
        assert_eq!(ids(&parts.requests(&tasks, 0.25, Some(0.0625))).len(), 13);
        assert_eq!(parts.requests(&tasks, 1.0, Some(0.25)), tasks);
    }
}
