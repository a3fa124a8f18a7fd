//! What choosing the best of many candidates costs and overstates, replayed on recorded scores: every candidate on the
//! same number of samples (uniform), or successive halving (Jamieson and Talwalkar 2016; Karnin et al. 2013).
//!
//! The recorded samples stand for the whole population: a repetition draws samples from them with replacement, the same
//! ones for all candidates, and a candidate's truth is its mean over all of them. Of several tasks, each gives its share
//! of the samples, as in a race, and a candidate's score is the mean of the tasks' means.

use std::ops::Range;

use rand::RngExt;
use rand::seq::SliceRandom;
use rayon::prelude::*;

use super::objective::rounded;
use crate::exit::ExitCode;
use crate::random::stream;

/// Largest multiple of the recorded samples of all candidates that a budget may have.
const MOST_PASSES: u64 = 100;
/// Most samples that are drawn together.
const MOST_DRAWS: usize = 1 << 20;
/// Most repetitions whose choices are kept until they are summed.
const MOST_CHOICES: u32 = 1 << 14;

/// Candidates x samples, higher is better.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreMatrix {
    candidates: Vec<String>,
    /// One row a candidate, all of the same length, all finite.
    rows: Vec<Vec<f64>>,
    /// Mean of each row.
    means: Vec<f64>,
    /// The columns of each task.
    tasks: Vec<Range<usize>>,
}

/// Scores or settings that cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimulateError {
    /// Fewer than two candidates, which leaves no choice.
    #[error("{0} candidates with scores; a choice needs at least two")]
    TooFewCandidates(usize),
    /// The rows differ in length: leave out samples that not every candidate has.
    #[error("candidate `{candidate}` has {found} scores for {expected} samples; every candidate needs a score on each")]
    Ragged {
        /// The first one that differs.
        candidate: String,
        /// Its number of scores.
        found: usize,
        /// The number of samples.
        expected: usize,
    },
    /// The rows are empty.
    #[error("no samples: the first candidate has no scores")]
    NoSamples,
    /// Two rows have the same name.
    #[error("candidate `{0}` is there twice")]
    Twice(String),
    /// A score is NaN or infinite.
    #[error("candidate `{candidate}`, sample {place}: the score is not a finite number")]
    NotFinite {
        /// Whose score it is.
        candidate: String,
        /// Which of its scores, from 1.
        place: usize,
    },
    /// Scores so large that their mean or variance is infinite.
    #[error(
        "candidate `{0}`: the scores are too large, their mean or variance is not a finite number; give them in another \
         unit"
    )]
    TooLarge(String),
    /// Not every candidate can be scored once: raise `--budget`.
    #[error(
        "a budget of {budget} samples is less than one sample for each of {candidates} candidates{}",
        if *tasks > 1 { format!(" on each of {tasks} tasks") } else { String::new() }
    )]
    SmallBudget {
        /// Samples in all.
        budget: u64,
        /// How many share them.
        candidates: usize,
        /// How many tasks each of them has.
        tasks: usize,
    },
    /// The recorded samples would be drawn over and over again: lower `--budget`.
    #[error(
        "a budget of {budget} samples is {each} for each of {candidates} candidates, more than {MOST_PASSES} times the {samples} \
         that are recorded; a replay of so many samples shows nothing new"
    )]
    LargeBudget {
        /// Samples in all.
        budget: u64,
        /// Samples a candidate.
        each: u64,
        /// How many share the budget.
        candidates: usize,
        /// Recorded samples a candidate.
        samples: usize,
    },
    /// Below 2, so that a rung would keep all its candidates.
    #[error("eta is {0}, expected at least 2: each rung keeps one candidate of eta")]
    Eta(usize),
    /// No repetition, no mean.
    #[error("a simulation needs at least one repetition")]
    NoRepetition,
}

impl SimulateError {
    /// What the process exits with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::SmallBudget { .. } | Self::LargeBudget { .. } | Self::Eta(_) | Self::NoRepetition => ExitCode::Usage,
            _ => ExitCode::BadData,
        }
    }
}

impl ScoreMatrix {
    /// `rows[c][s]` is the score of candidate `c` on sample `s` of the only task.
    ///
    /// # Errors
    /// As [`Self::of_tasks`].
    pub fn new(candidates: Vec<String>, rows: Vec<Vec<f64>>) -> Result<Self, SimulateError> {
        let samples = rows.first().map_or(0, Vec::len);
        Self::of_tasks(candidates, rows, vec![samples])
    }

    /// `rows[c][s]` is the score of candidate `c` on sample `s`, task by task, so scaled that the plain mean of a row is
    /// the candidate's objective; `task_samples[t]` samples are of task `t`.
    ///
    /// # Errors
    /// Fewer than two candidates, no samples (of a task), rows of different lengths, a name twice, a number that is not
    /// finite, or so large that means and variances are not.
    pub fn of_tasks(
        candidates: Vec<String>,
        rows: Vec<Vec<f64>>,
        task_samples: Vec<usize>,
    ) -> Result<Self, SimulateError> {
        if rows.len() < 2 || candidates.len() != rows.len() {
            return Err(SimulateError::TooFewCandidates(rows.len().min(candidates.len())));
        }
        // Where a first row differs from the tasks, it is the one to be named.
        let expected = task_samples.iter().sum();
        if expected == 0 || task_samples.contains(&0) {
            return Err(SimulateError::NoSamples);
        }
        let mut seen = std::collections::BTreeSet::new();
        for (candidate, row) in candidates.iter().zip(&rows) {
            if !seen.insert(candidate) {
                return Err(SimulateError::Twice(candidate.clone()));
            }
            if row.len() != expected {
                return Err(SimulateError::Ragged { candidate: candidate.clone(), found: row.len(), expected });
            }
            if let Some(place) = row.iter().position(|score| !score.is_finite()) {
                return Err(SimulateError::NotFinite { candidate: candidate.clone(), place: place + 1 });
            }
        }
        let mean = |(candidate, row): (&String, &Vec<f64>)| {
            let mean = row.iter().sum::<f64>() / expected as f64;
            // Around zero, not around the mean: sums of many draws of huge equal scores are infinite too.
            let squares: f64 = row.iter().map(|score| score.powi(2)).sum();
            rounded(mean).filter(|_| squares.is_finite()).ok_or_else(|| SimulateError::TooLarge(candidate.clone()))
        };
        let means = candidates.iter().zip(&rows).map(mean).collect::<Result<_, _>>()?;
        let mut tasks = Vec::with_capacity(task_samples.len());
        let mut start = 0;
        for samples in task_samples {
            tasks.push(start..start + samples);
            start += samples;
        }
        Ok(Self { candidates, rows, means, tasks })
    }

    /// Number of candidates.
    pub fn candidates(&self) -> usize {
        self.rows.len()
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.rows[0].len()
    }

    /// Name and mean of the best candidate; the first among equals.
    pub fn best(&self) -> (&str, f64) {
        let best = self.means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let place = self.means.iter().position(|mean| *mean == best).unwrap_or(0);
        (&self.candidates[place], best)
    }

    /// Budgets worth a look: 10, 20, 50, ... samples a candidate, up to the samples there are.
    pub fn usual_budgets(&self) -> Vec<u64> {
        let samples = self.samples() as u64;
        let steps = (0..).map(|step: u32| [10, 20, 50][step as usize % 3] * 10u64.pow(step / 3));
        let steps = steps.skip_while(|each| *each < self.tasks.len() as u64);
        let mut each: Vec<u64> = steps.take_while(|each| *each < samples).collect();
        each.push(samples);
        each.into_iter().map(|each| each * self.candidates() as u64).collect()
    }

    /// How many of `samples` are of each task: in proportion to their sizes, rounded as a race does it (up: Adams's
    /// method), so that each task has at least one, and more samples are never fewer of a task.
    fn shares(&self, samples: usize) -> Vec<usize> {
        let mut shares = vec![0; self.tasks.len()];
        let part = |shares: &[usize], task: usize| shares[task] as f64 / self.tasks[task].len() as f64;
        for _ in 0..samples {
            let next = (0..shares.len()).min_by(|one, other| part(&shares, *one).total_cmp(&part(&shares, *other)));
            shares[next.unwrap_or(0)] += 1;
        }
        shares
    }
}

/// What is replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimulationPlan {
    /// Samples in all, for all candidates together.
    pub budgets: Vec<u64>,
    /// Each rung of halving keeps one candidate of that many.
    pub eta: usize,
    /// Rungs of halving; `None`: as many as leave eta candidates or fewer in the last one.
    pub rungs: Option<usize>,
    /// How often each budget is spent, on samples drawn anew.
    pub repetitions: u32,
    /// Seed of the draws.
    pub seed: u64,
}

/// One way to spend one budget, averaged over the repetitions.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Allocation {
    /// Samples that the chosen candidate was scored on.
    pub samples_of_chosen: f64,
    /// Share of repetitions that chose a candidate as good as the best.
    pub best_chosen: f64,
    /// Truth of the best less truth of the chosen one.
    pub regret: f64,
    /// Score of the chosen one as seen less its truth: what the winner's curse adds.
    pub over_statement: f64,
}

/// A budget and what it comes to.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct BudgetRow {
    /// Samples in all, for all candidates together.
    pub budget: u64,
    /// Every candidate on the same number of samples.
    pub uniform: Allocation,
    /// `None`: the first rung's share is less than one sample a candidate of each task.
    pub halving: Option<Allocation>,
}

/// Candidates in each rung: all, then one of `eta`, ..., rounded up.
pub fn rung_sizes(candidates: usize, eta: usize, rungs: Option<usize>) -> Vec<usize> {
    let mut sizes = vec![candidates];
    let mut last = candidates;
    while rungs.map_or(last > eta, |rungs| sizes.len() < rungs) && last > 1 {
        last = last.div_ceil(eta);
        sizes.push(last);
    }
    sizes
}

/// Replays `plan` on `matrix`. The result depends on nothing but the arguments.
///
/// # Errors
/// A budget below one sample a candidate or far beyond what is recorded, eta below 2, no repetition.
pub fn simulate(matrix: &ScoreMatrix, plan: &SimulationPlan) -> Result<Vec<BudgetRow>, SimulateError> {
    if plan.eta < 2 {
        return Err(SimulateError::Eta(plan.eta));
    }
    if plan.repetitions == 0 {
        return Err(SimulateError::NoRepetition);
    }
    let candidates = matrix.candidates();
    let sizes = rung_sizes(candidates, plan.eta, plan.rungs);
    let row = |&budget: &u64| {
        let tasks = matrix.tasks.len();
        if budget < candidates as u64 * tasks as u64 {
            return Err(SimulateError::SmallBudget { budget, candidates, tasks });
        }
        let (each, samples) = (budget / candidates as u64, matrix.samples());
        if budget > MOST_PASSES.saturating_mul(candidates as u64 * samples as u64) {
            return Err(SimulateError::LargeBudget { budget, each, candidates, samples });
        }
        let equally = [candidates];
        Ok(BudgetRow {
            budget,
            uniform: replay(matrix, plan, &equally, &rung_samples(&equally, budget)),
            halving: Some(rung_samples(&sizes, budget))
                .filter(|samples| samples[0] >= tasks)
                .map(|samples| replay(matrix, plan, &sizes, &samples)),
        })
    };
    plan.budgets.iter().map(row).collect()
}

/// New samples a candidate in each rung: the rungs share the budget equally, and what does not divide goes on to the
/// next.
fn rung_samples(sizes: &[usize], budget: u64) -> Vec<usize> {
    let mut left = budget;
    let share = |(rung, &size): (usize, &usize)| {
        let each = left / (sizes.len() - rung) as u64 / size as u64;
        left -= each * size as u64;
        usize::try_from(each).unwrap_or(usize::MAX)
    };
    sizes.iter().enumerate().map(share).collect()
}

/// How many candidates a rung scores, and how many samples they have of each task at its end.
struct Rung {
    candidates: usize,
    samples: Vec<usize>,
}

/// One repetition's choice: its place and its score as seen.
struct Choice {
    place: usize,
    seen: f64,
    samples: usize,
}

fn replay(matrix: &ScoreMatrix, plan: &SimulationPlan, sizes: &[usize], samples: &[usize]) -> Allocation {
    let best = matrix.best().1;
    let mut all = 0;
    let rung = |(&candidates, &more): (&usize, &usize)| {
        all += more;
        Rung { candidates, samples: matrix.shares(all) }
    };
    let rungs: Vec<Rung> = sizes.iter().zip(samples).map(rung).collect();
    let mut sums = [0.0; 4];
    for repetitions in in_parts(plan.repetitions) {
        let choose = |repetition| race(matrix, plan.seed, repetition, &rungs);
        let choices: Vec<Choice> = repetitions.into_par_iter().map(choose).collect();
        // Summed in order of the repetitions, whichever thread made them.
        for choice in &choices {
            let truth = matrix.means[choice.place];
            let is_best = f64::from(u8::from(truth == best));
            let values = [choice.samples as f64, is_best, best - truth, choice.seen - truth];
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
    }
    let [samples_of_chosen, best_chosen, regret, over_statement] = sums.map(|sum| sum / f64::from(plan.repetitions));
    Allocation { samples_of_chosen, best_chosen, regret, over_statement }
}

/// The repetitions in order, in parts whose choices fit into memory however many there are in all.
fn in_parts(repetitions: u32) -> impl Iterator<Item = Range<u32>> {
    let starts = (0..repetitions).step_by(MOST_CHOICES as usize);
    starts.map(move |start| start..start.saturating_add(MOST_CHOICES).min(repetitions))
}

/// Scores the candidates of each rung on further samples, common to all, and keeps the best by all samples so far.
fn race(matrix: &ScoreMatrix, seed: u64, repetition: u32, rungs: &[Rung]) -> Choice {
    let mut draws = stream(seed, "simulate samples", u64::from(repetition));
    // Equal scores are told apart by lot: the order of the file means nothing.
    let mut field: Vec<usize> = (0..matrix.candidates()).collect();
    field.shuffle(&mut stream(seed, "simulate order", u64::from(repetition)));
    let tasks = matrix.tasks.len();
    // Of each candidate, task by task.
    let mut sums = vec![0.0; matrix.candidates() * tasks];
    let mut seen = vec![0.0; matrix.candidates()];
    let mut scored = vec![0; tasks];
    for rung in rungs {
        field.truncate(rung.candidates);
        for (task, columns) in matrix.tasks.iter().enumerate() {
            let more = rung.samples[task] - scored[task];
            // A late rung of few candidates may draw very many.
            for part in (0..more).step_by(MOST_DRAWS) {
                let count = MOST_DRAWS.min(more - part);
                let drawn: Vec<usize> = (0..count).map(|_| draws.random_range(columns.clone())).collect();
                for &place in &field {
                    let row = &matrix.rows[place];
                    sums[place * tasks + task] += drawn.iter().map(|&sample| row[sample]).sum::<f64>();
                }
            }
        }
        scored.clone_from(&rung.samples);
        for &place in &field {
            let mean = |(task, columns): (usize, &Range<usize>)| {
                let share = columns.len() as f64 / matrix.samples() as f64;
                share * sums[place * tasks + task] / scored[task] as f64
            };
            seen[place] = matrix.tasks.iter().enumerate().map(mean).sum();
        }
        // Stable: among equals the lot's order stays.
        field.sort_by(|&first, &second| seen[second].total_cmp(&seen[first]));
    }
    Choice { place: field[0], seen: seen[field[0]], samples: scored.iter().sum() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    /// Independent 0/1 scores of candidates with these rates.
    fn bernoulli(rates: &[f64], samples: usize) -> ScoreMatrix {
        let row = |(place, rate): (usize, &f64)| {
            let mut draws = stream(11, "bernoulli", place as u64);
            (0..samples).map(|_| f64::from(u8::from(draws.random::<f64>() < *rate))).collect()
        };
        let names = (0..rates.len()).map(|place| format!("c{place}")).collect();
        ScoreMatrix::new(names, rates.iter().enumerate().map(row).collect()).unwrap()
    }

    fn plan(budgets: &[u64]) -> SimulationPlan {
        SimulationPlan { budgets: budgets.to_vec(), eta: 3, rungs: None, repetitions: 400, seed: 3 }
    }

    #[test]
    fn the_best_of_many_equals_is_overstated_by_the_expected_maximum() {
        // 72 candidates of the same rate: what the best of them shows too much is the expected maximum of 72 standard
        // normals (2.41) times the standard error of a rate.
        let matrix = bernoulli(&[0.75; 72], 20_000);
        let rows = simulate(&matrix, &plan(&[72 * 50, 72 * 200])).unwrap();
        for (row, each) in rows.iter().zip([50.0, 200.0]) {
            let expected = 2.41 * (0.75f64 * 0.25 / each).sqrt();
            let found = row.uniform.over_statement;
            assert!((found / expected - 1.0).abs() < 0.1, "{found} {expected}");
            assert_eq!(row.uniform.samples_of_chosen, each);
        }
    }

    #[test]
    fn halving_loses_and_overstates_less_for_the_same_budget() {
        let rates: Vec<f64> = (0..72).map(|place| 0.70 + 0.06 * f64::from(place) / 71.0).collect();
        let matrix = bernoulli(&rates, 5_000);
        let rows = simulate(&matrix, &plan(&[3_600, 14_400, 72_000])).unwrap();
        for row in &rows {
            let halving = row.halving.as_ref().unwrap();
            assert!(halving.regret < row.uniform.regret, "{row:?}");
            assert!(halving.over_statement < 0.5 * row.uniform.over_statement, "{row:?}");
            assert!(halving.samples_of_chosen > row.uniform.samples_of_chosen);
        }
        assert!(rows[2].uniform.regret < rows[0].uniform.regret);
        assert!(rows[2].uniform.best_chosen > rows[0].uniform.best_chosen);
    }

    #[test]
    fn halving_spends_what_it_has_and_no_more() {
        assert_eq!(rung_sizes(72, 3, None), [72, 24, 8, 3]);
        assert_eq!(rung_sizes(72, 3, Some(2)), [72, 24]);
        assert_eq!(rung_sizes(5, 4, Some(9)), [5, 2, 1]);
        let sizes = [72, 24, 8, 3];
        for budget in [288, 3_601, 14_400] {
            let each = rung_samples(&sizes, budget);
            let spent: usize = sizes.iter().zip(&each).map(|(size, each)| size * each).sum();
            assert!(spent as u64 <= budget && budget - (spent as u64) < 3, "{budget}: {each:?}");
        }
    }

    #[test]
    fn threads_do_not_matter_and_seeds_do() {
        let matrix = bernoulli(&[0.5, 0.52, 0.54, 0.55, 0.5], 300);
        let on = |threads: usize, seed| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| simulate(&matrix, &SimulationPlan { seed, ..plan(&[50, 500]) }).unwrap())
        };
        assert_eq!(on(1, 3), on(3, 3));
        assert_ne!(on(1, 3), on(1, 4));
    }

    #[test]
    fn repetitions_are_summed_in_order_and_kept_in_parts() {
        for repetitions in [1, MOST_CHOICES, MOST_CHOICES + 1, 200_000_000, u32::MAX] {
            let mut next = 0;
            for part in in_parts(repetitions) {
                assert!(part.start == next && part.end > next && part.end - next <= MOST_CHOICES, "{part:?}");
                next = part.end;
            }
            assert_eq!(next, repetitions);
        }
        let matrix = bernoulli(&[0.5, 0.7], 10);
        let many = SimulationPlan { repetitions: MOST_CHOICES + 3, ..plan(&[6]) };
        let found = &simulate(&matrix, &many).unwrap()[0].uniform;
        let rungs = [Rung { candidates: 2, samples: vec![3] }];
        let regret = |repetition| matrix.best().1 - matrix.means[race(&matrix, 3, repetition, &rungs).place];
        let all: f64 = (0..many.repetitions).map(regret).sum();
        assert_eq!(found.regret.to_bits(), (all / f64::from(many.repetitions)).to_bits());
    }

    #[test]
    fn equal_scores_are_chosen_by_lot() {
        let names = vec!["bad".into(), "good".into()];
        let matrix = ScoreMatrix::new(names, vec![vec![0.0, 1.0, 0.0, 1.0], vec![0.0, 1.0, 0.0, 1.0]]).unwrap();
        let row = &simulate(&matrix, &plan(&[2])).unwrap()[0];
        assert_eq!((row.uniform.regret, row.uniform.best_chosen), (0.0, 1.0));
        // Two rungs do not fit into one sample each.
        assert_eq!(simulate(&matrix, &SimulationPlan { rungs: Some(2), ..plan(&[2]) }).unwrap()[0].halving, None);
    }

    #[test]
    fn bad_matrices_and_plans_are_refused() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_string()).collect::<Vec<_>>();
        let new = |n: &[&str], rows: Vec<Vec<f64>>| ScoreMatrix::new(names(n), rows).unwrap_err();
        assert_eq!(new(&["a"], vec![vec![1.0]]), SimulateError::TooFewCandidates(1));
        assert_eq!(new(&["a", "b"], vec![vec![], vec![]]), SimulateError::NoSamples);
        assert_eq!(new(&["a", "a"], vec![vec![1.0], vec![1.0]]), SimulateError::Twice("a".into()));
        assert!(matches!(
            new(&["a", "b"], vec![vec![1.0], vec![1.0, 2.0]]),
            SimulateError::Ragged { found: 2, expected: 1, .. }
        ));
        assert!(matches!(new(&["a", "b"], vec![vec![1.0], vec![f64::NAN]]), SimulateError::NotFinite { place: 1, .. }));
        for large in [[1e308, 1e308], [1e307, 1e307], [1e200, -1e200], [1e308, -1e308]] {
            let rows = vec![vec![1.0, 0.0], large.to_vec()];
            assert_eq!(new(&["a", "b"], rows), SimulateError::TooLarge("b".into()));
        }
        let matrix = bernoulli(&[0.5, 0.5], 10);
        assert!(matches!(simulate(&matrix, &plan(&[1])), Err(SimulateError::SmallBudget { .. })));
        assert!(matches!(simulate(&matrix, &SimulationPlan { eta: 1, ..plan(&[9]) }), Err(SimulateError::Eta(1))));
    }

    #[test]
    fn usual_budgets_end_with_all_samples() {
        let matrix = bernoulli(&[0.5, 0.5], 100);
        assert_eq!(matrix.usual_budgets(), [20, 40, 100, 200]);
        let rows = vec![vec![0.0; 100], vec![1.0; 100]];
        let matrix = ScoreMatrix::of_tasks(vec!["a".into(), "b".into()], rows, vec![5; 20]).unwrap();
        assert_eq!(matrix.usual_budgets(), [40, 100, 200], "10 samples are not one of each of 20 tasks");
    }

    /// Scores that depend on the task alone: drawing inside tasks, every number of samples shows the truth.
    #[test]
    fn tasks_are_drawn_in_their_proportions() {
        let row = |large: f64, small: f64| [vec![large; 300], vec![small; 20]].concat();
        let rows = vec![row(1.0, 0.0), row(0.0, 14.0), row(0.5, 0.5)];
        let names = ["large", "small", "even"].map(str::to_owned).to_vec();
        let matrix = ScoreMatrix::of_tasks(names, rows, vec![300, 20]).unwrap();
        assert_eq!(matrix.best().0, "large");
        for shares in [(1, [1, 0]), (2, [1, 1]), (16, [15, 1]), (17, [16, 1]), (32, [30, 2]), (320, [300, 20])] {
            assert_eq!(matrix.shares(shares.0), shares.1, "of {}", shares.0);
        }
        for row in simulate(&matrix, &plan(&[6, 48, 96, 960])).unwrap() {
            for found in [Some(&row.uniform), row.halving.as_ref()].into_iter().flatten() {
                assert_eq!((found.regret, found.best_chosen), (0.0, 1.0), "{row:?}");
                assert!(found.over_statement.abs() < 1e-12, "{row:?}");
            }
        }
        let refused = simulate(&matrix, &plan(&[5])).unwrap_err();
        assert_eq!(refused, SimulateError::SmallBudget { budget: 5, candidates: 3, tasks: 2 });
        assert!(refused.to_string().ends_with("for each of 3 candidates on each of 2 tasks"), "{refused}");
        // Two rungs leave the first one a sample a candidate, and none for the second task.
        assert!(simulate(&matrix, &SimulationPlan { rungs: Some(2), ..plan(&[6]) }).unwrap()[0].halving.is_none());
    }
}
