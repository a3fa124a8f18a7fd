//! Which samples an evaluation at less than full fidelity asks for: nested parts of one fixed order per task.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::sample_order::sort_by_hash;
use crate::config::RacingConfig;
use crate::evaluate::{Evaluator, Samples, TaskCapability, TaskRequest};
use crate::scores::SampleId;

/// Most rungs where the run file names no number of them.
const RUNGS: u32 = 2;
/// Fewest samples of a task on the first rung, where the run file names no rungs.
const FEWEST: u64 = 8;

/// What a race found of the evaluator at the run's first start, by task. Proposals follow from it, so that later starts
/// keep to it, whatever the evaluator has learned since.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Basis(BTreeMap<String, TaskBasis>);

/// What a race found of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct TaskBasis {
    asked_by: AskedBy,
    /// Whether the metric is the mean of the scores by sample.
    is_mean: bool,
    /// Whether scores come sample by sample.
    per_sample: bool,
}

/// By what parts of a task's samples are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AskedBy {
    /// By their ids.
    Ids,
    /// By how many they are, of that many in all.
    Limit(u64),
}

impl Basis {
    /// # Errors
    /// Which task cannot be asked for in parts, for people.
    fn of(tasks: &[TaskRequest], evaluator: &dyn Evaluator) -> Result<Self, String> {
        let of_task = |task: &TaskRequest| {
            let known = evaluator.capabilities().tasks.get(&task.name);
            let found = known.and_then(|known| {
                Some(TaskBasis {
                    asked_by: asked_by(task, known)?,
                    is_mean: is_mean(task, known),
                    per_sample: known.supports_per_sample,
                })
            });
            let refuse = || format!("the evaluator takes neither sample_ids nor limit for task `{}`", task.name);
            Ok((task.name.clone(), found.ok_or_else(refuse)?))
        };
        Ok(Self(tasks.iter().map(of_task).collect::<Result<_, String>>()?))
    }

    /// What a race asks for, where there is one.
    pub fn of_race(config: &RacingConfig, tasks: &[TaskRequest], evaluator: &dyn Evaluator) -> Option<Self> {
        let basis = Self::of(tasks, evaluator).ok()?;
        Parts::on(&basis, config, tasks, evaluator).ok().map(|_| basis)
    }

    /// Whether what a part of the samples says of the whole can be estimated.
    fn is_per_sample(&self) -> bool {
        self.0.values().all(|task| task.is_mean && task.per_sample)
    }

    /// What the race needs and the evaluator can no longer do; a line each, for people.
    pub fn lost(&self, tasks: &[TaskRequest], evaluator: &dyn Evaluator) -> Vec<String> {
        let mut lines = Vec::new();
        for task in tasks {
            let name = &task.name;
            let (Some(basis), Some(known)) = (self.0.get(name), evaluator.capabilities().tasks.get(name)) else {
                continue;
            };
            let mut gone = |what: &str, why: &str| {
                lines.push(format!("supports of task {name}: {what} is gone (the race {why})"));
            };
            match basis.asked_by {
                AskedBy::Ids if !known.supports_sample_ids => gone("sample_ids", "asks for parts of the samples by it"),
                AskedBy::Limit(_) if !known.supports_limit => gone("limit", "asks for parts of the samples by it"),
                AskedBy::Ids | AskedBy::Limit(_) => {}
            }
            if self.is_per_sample() && !known.supports_per_sample {
                gone("per_sample", "estimates by it what a part of the samples says of all");
            }
            if basis.asked_by == AskedBy::Ids && known.supports_sample_ids && ids(task, known).is_none() {
                lines.push(format!(
                    "samples of task {name}: their number is not told any more (the race asks for parts of them)"
                ));
            }
            if self.is_per_sample() && !is_mean(task, known) {
                let metric = &task.metric;
                lines.push(format!(
                    "aggregation of metric {metric} of task {name}: mean is gone (the race estimates by it what a part of the \
                     samples says of all)"
                ));
            }
        }
        lines
    }
}

/// The ids of the samples that a request may have parts of, where these are known.
fn ids(task: &TaskRequest, known: &TaskCapability) -> Option<Vec<SampleId>> {
    match &task.samples {
        Samples::Ids(ids) => Some(ids.clone()),
        Samples::All => known.sample_ids.clone().filter(|_| known.supports_sample_ids),
        Samples::Limit(_) => None,
    }
}

fn asked_by(task: &TaskRequest, known: &TaskCapability) -> Option<AskedBy> {
    if ids(task, known).is_some() {
        return Some(AskedBy::Ids);
    }
    let limit = task.samples.count(known.n_samples).filter(|limit| known.supports_limit && *limit > 0);
    limit.map(AskedBy::Limit)
}

fn is_mean(task: &TaskRequest, known: &TaskCapability) -> bool {
    known.metrics.get(&task.metric).is_some_and(|metric| metric.is_mean)
}

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
    /// Plans the parts of `tasks` by what the evaluator can do now.
    ///
    /// # Errors
    /// Why there can be no race, for people.
    pub fn plan(config: &RacingConfig, tasks: &[TaskRequest], evaluator: &dyn Evaluator) -> Result<Self, String> {
        Self::on(&Basis::of(tasks, evaluator)?, config, tasks, evaluator)
    }

    /// Plans the parts of `tasks` by what the evaluator could do when `basis` was found, and still can.
    ///
    /// # Errors
    /// Why there can be no race, for people.
    pub fn on(
        basis: &Basis,
        config: &RacingConfig,
        tasks: &[TaskRequest],
        evaluator: &dyn Evaluator,
    ) -> Result<Self, String> {
        let part = |task: &TaskRequest| {
            let known = evaluator.capabilities().tasks.get(&task.name);
            let part = match basis.0.get(&task.name).map(|basis| basis.asked_by) {
                Some(AskedBy::Limit(limit)) => Some(Part::Limit(limit)),
                Some(AskedBy::Ids) => {
                    known.and_then(|known| ids(task, known)).map(|ids| Part::Ids(shuffled(task, ids)))
                }
                None => None,
            };
            part.ok_or_else(|| format!("nothing is known of the samples of task `{}`", task.name))
        };
        let parts = tasks.iter().map(part).collect::<Result<Vec<_>, _>>()?;
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
        let per_sample = basis.is_per_sample();
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

/// A fixed order by hash of (seed, task, sample id).
fn shuffled(task: &TaskRequest, mut ids: Vec<SampleId>) -> Vec<SampleId> {
    sort_by_hash("evomerge racing v1", task.seed, &task.name, &mut ids);
    ids
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use futures_util::future::BoxFuture;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::evaluate::{
        AttemptObserver, Capabilities, EvaluateError, Evaluation, EvaluationRequest, MetricCapability,
    };

    /// An evaluator that can do something, and is never asked to.
    struct Able(Capabilities);

    impl Evaluator for Able {
        fn kind(&self) -> &'static str {
            "able"
        }

        fn fingerprint(&self) -> &str {
            ""
        }

        fn capabilities(&self) -> &Capabilities {
            &self.0
        }

        fn concurrency(&self) -> NonZeroUsize {
            NonZeroUsize::MIN
        }

        fn evaluate<'a>(
            &'a self,
            _request: &'a EvaluationRequest,
            _attempts: &'a dyn AttemptObserver,
            _cancel: &'a CancellationToken,
        ) -> BoxFuture<'a, Result<Evaluation, EvaluateError>> {
            unreachable!("only its capabilities are looked at")
        }
    }

    /// An evaluator of a task `t` with the metric `m` that supports these.
    fn able(n_samples: i64, supports: &[&str], is_mean: bool) -> Able {
        let supports = |what: &str| supports.contains(&what);
        let numbered = supports("sample_ids") && n_samples > 0;
        let metric = MetricCapability { higher_is_better: true, min: None, max: None, is_mean };
        let task = TaskCapability {
            n_samples: n_samples as u64,
            sample_ids: numbered.then(|| (0..n_samples).map(SampleId::Number).collect()),
            metrics: BTreeMap::from([("m".to_owned(), metric)]),
            supports_sample_ids: supports("sample_ids"),
            supports_limit: supports("limit"),
            supports_per_sample: supports("per_sample"),
            sample_hashes: None,
            sample_set: None,
        };
        Able(Capabilities { tasks: BTreeMap::from([("t".to_owned(), task)]), deterministic: true })
    }

    const ALL: [&str; 3] = ["limit", "sample_ids", "per_sample"];

    fn task(samples: Samples) -> Vec<TaskRequest> {
        vec![TaskRequest { name: "t".into(), metric: "m".into(), samples, seed: 3 }]
    }

    #[test]
    fn a_race_keeps_to_what_it_began_with() {
        let config = RacingConfig { rungs: Some(2), ..RacingConfig::default() };
        let everything = able(50, &ALL, true);
        for (samples, before) in [
            (Samples::All, able(50, &["limit"], false)),
            (Samples::All, able(50, &["limit", "sample_ids"], false)),
            // A program of which nobody knew how many samples it has.
            (Samples::Limit(64), able(0, &["limit", "per_sample"], false)),
        ] {
            let tasks = task(samples);
            let planned = Parts::plan(&config, &tasks, &before).unwrap();
            let basis = Basis::of_race(&config, &tasks, &before).unwrap();
            let recorded: Basis = serde_json::from_str(&serde_json::to_string(&basis).unwrap()).unwrap();
            assert_eq!(recorded.lost(&tasks, &everything), Vec::<String>::new());
            assert_eq!(Parts::on(&recorded, &config, &tasks, &everything).unwrap(), planned);
            assert_ne!(
                Parts::plan(&config, &tasks, &everything).unwrap(),
                planned,
                "a race that begins now is another"
            );
        }
    }

    #[test]
    fn what_a_race_cannot_do_without_is_named() {
        let config = RacingConfig { rungs: Some(2), ..RacingConfig::default() };
        let lost = |before: &Able, now: &Able| {
            let basis = Basis::of_race(&config, &task(Samples::All), before).unwrap();
            basis.lost(&task(Samples::All), now).join("\n")
        };
        let everything = able(50, &ALL, true);
        for (now, words) in [
            (able(50, &["limit", "per_sample"], true), "supports of task t: sample_ids is gone"),
            (able(50, &["limit", "sample_ids"], true), "supports of task t: per_sample is gone"),
            (able(50, &ALL, false), "aggregation of metric m of task t: mean is gone"),
            (able(0, &ALL, true), "samples of task t: their number is not told"),
        ] {
            let found = lost(&everything, &now);
            assert!(found.starts_with(words) && found.lines().count() == 1, "{words}: {found}");
        }
        let by_ids = ["sample_ids", "per_sample"];
        assert_eq!(lost(&everything, &able(50, &by_ids, true)), "", "nobody asks for the first samples by number");
        let by_limit = able(50, &["limit"], true);
        assert!(lost(&by_limit, &able(50, &by_ids, true)).starts_with("supports of task t: limit is gone"));
        assert_eq!(lost(&by_limit, &able(50, &["limit"], false)), "", "no estimate rested on the mean");
    }

    fn parts(incremental: bool) -> (Parts, Vec<TaskRequest>) {
        let tasks = task(Samples::All);
        let ids = shuffled(&tasks[0], (0..50).map(SampleId::Number).collect());
        let parts = Parts {
            tasks: vec![Part::Ids(ids)],
            per_sample: incremental,
            incremental,
            fidelities: vec![0.25, 1.0],
            keep: 0.25,
        };
        (parts, tasks)
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
