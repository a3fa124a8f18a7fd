//! Alarms: signs that the scores of a run do not mean what they seem to. They stand beside the verdict and change
//! nothing in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::distributions::NORMAL_995;
use crate::scores::{Scores, TaskScores};

/// What was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmKind {
    /// More than half of the scored candidates have exactly the same objective.
    FlatFitness,
    /// The winner's answers are cut by the generation limit more often, or more seldom, than the best baseline's.
    TruncationAsymmetry,
    /// A task of the search has the name of a public benchmark's test set.
    BenchmarkTestSet,
    /// None of the search's own candidates could be scored.
    NothingScored,
    /// Base, sources or the uniform soup have no score.
    BaselineUnscored,
    /// A baseline that was scored again has another score than chance allows.
    SentinelDrift,
}

/// One thing noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// Which sign it is.
    pub kind: AlarmKind,
    /// `None`: about all tasks together.
    pub task: Option<String>,
    /// For people.
    pub message: String,
}

/// Fewest candidates that tell whether the scores are flat, or whether none can be scored.
const FEWEST: usize = 5;
/// Public benchmarks that are scored on their test sets as a rule, as substrings of task names.
const BENCHMARKS: [&str; 40] = [
    "agieval",
    "ai2_arc",
    "alpaca_eval",
    "arc_challenge",
    "arc_easy",
    "bigbench",
    "big_bench",
    "bigcodebench",
    "boolq",
    "ceval",
    "cmmlu",
    "commonsense_qa",
    "commonsenseqa",
    "flores",
    "gpqa",
    "gsm8k",
    "hellaswag",
    "hendrycks",
    "humaneval",
    "ifeval",
    "lambada",
    "leaderboard",
    "livecodebench",
    "math_500",
    "math500",
    "mbpp",
    "mgsm",
    "minerva_math",
    "mmlu",
    "mt_bench",
    "naturalqs",
    "nq_open",
    "openbookqa",
    "piqa",
    "swe_bench",
    "trivia_qa",
    "triviaqa",
    "truthful_qa",
    "truthfulqa",
    "winogrande",
];
/// Names of benchmarks that are only telling as a whole word.
const BENCHMARK_WORDS: [&str; 7] = ["bbh", "musr", "aime", "aime24", "aime25", "drop", "sciq"];
/// Names of benchmarks that are only telling at the start.
const BENCHMARK_STARTS: [&str; 2] = ["arc_", "c_eval"];
/// Ends of names of data that is there to be searched on.
const SEARCH_SPLITS: [&str; 5] = ["_train", "_dev", "_val", "_valid", "_validation"];

/// Whether the search had anything to climb. `objectives` are those of the scored candidates, each candidate once.
pub fn flat_fitness(objectives: &[f64]) -> Option<Alarm> {
    if objectives.len() < FEWEST {
        return None;
    }
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for objective in objectives {
        // Zero has two signs; adding a positive zero leaves one.
        *counts.entry((objective + 0.0).to_bits()).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0);
    if 2 * most <= objectives.len() {
        return None;
    }
    let how_many = match counts.len() {
        1 => format!("all {most} candidates have exactly the same score"),
        different => {
            format!(
                "{most} of {} candidates have exactly the same score ({different} different ones in all)",
                objectives.len()
            )
        }
    };
    Some(Alarm {
        kind: AlarmKind::FlatFitness,
        task: None,
        message: format!(
            "{how_many}: either the evaluator does not see the candidates (a fixed model, a cache), or its tasks are too easy, too \
             hard or too few to tell them apart"
        ),
    })
}

/// Whether the search's own candidates, baselines aside, all failed; `reason` is what the last one failed with.
pub fn nothing_scored(candidates: usize, scored: usize, reason: &str) -> Option<Alarm> {
    (candidates >= FEWEST && scored == 0).then(|| Alarm {
        kind: AlarmKind::NothingScored,
        task: None,
        message: format!(
            "none of the search's own {candidates} candidates could be scored, only baselines; the last one: {reason}"
        ),
    })
}

/// Baselines without a score, with the reason of the first: the verdict does not compare with them.
pub fn baselines_unscored(names: &[String], reason: &str) -> Option<Alarm> {
    (!names.is_empty()).then(|| Alarm {
        kind: AlarmKind::BaselineUnscored,
        task: None,
        message: format!(
            "{} could not be scored ({reason}): the winner is compared with the other baselines only; look at the evaluator. The same \
             command asks once more for those that were given up; for others, start anew with --fresh",
            names.join(", ")
        ),
    })
}

/// Baselines that the run ended before: it might have been them that the winner must beat.
pub fn baselines_unreached(names: &[String]) -> Option<Alarm> {
    (!names.is_empty()).then(|| Alarm {
        kind: AlarmKind::BaselineUnscored,
        task: None,
        message: format!(
            "the run ended before {} had a score: the winner is compared with the other baselines only; the same command with a larger \
             budget asks for what is missing first",
            names.join(", ")
        ),
    })
}

/// Tasks in which the winner's answers were truncated at another rate than the baseline's (pooled two-proportion z-test
/// at a two-sided level of 1 %, since every task is tested). `set` names the samples (`search`, `hold-out`). Tasks
/// without counts are passed over.
pub fn truncation_asymmetry(set: &str, winner: &Scores, baseline: &Scores) -> Vec<Alarm> {
    let counts = |scores: &TaskScores| scores.n_truncated.filter(|_| scores.n > 0).map(|cut| (cut, scores.n));
    let alarm = |(task, scores): (&String, &TaskScores)| {
        let (ours, n) = counts(scores)?;
        let (theirs, m) = counts(baseline.get(task)?)?;
        (two_proportions(ours, n, theirs, m).abs() > NORMAL_995).then(|| Alarm {
            kind: AlarmKind::TruncationAsymmetry,
            task: Some(task.clone()),
            message: format!(
                "task `{task}`, {set} samples: {ours} of {n} answers of the winner were cut by the generation limit, but {theirs} of {m} \
                 of the best baseline; the difference in scores may be one of length: raise the limit and score both again"
            ),
        })
    };
    winner.iter().filter_map(alarm).collect()
}

/// The z statistic of two proportions with their pooled variance; 0 where both are all or nothing.
fn two_proportions(first: u64, n: u64, second: u64, m: u64) -> f64 {
    let (first, n, second, m) = (first as f64, n as f64, second as f64, m as f64);
    let pooled = (first + second) / (n + m);
    let variance = pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m);
    if variance > 0.0 { (first / n - second / m) / variance.sqrt() } else { 0.0 }
}

/// Search tasks that look like test sets of public benchmarks: a search on them trains on the test.
pub fn benchmark_test_sets<'a>(tasks: impl IntoIterator<Item = &'a str>) -> Vec<Alarm> {
    let alarm = |task: &str| Alarm {
        kind: AlarmKind::BenchmarkTestSet,
        task: Some(task.to_string()),
        message: format!(
            "task `{task}` looks like the test set of a public benchmark: what is searched on it may no longer be reported on it; \
             search on its training or development split (a name that ends in _train, _dev or _val says so)"
        ),
    };
    tasks.into_iter().filter(|task| looks_like_test_set(task)).map(alarm).collect()
}

fn looks_like_test_set(task: &str) -> bool {
    let name = task.to_ascii_lowercase().replace('-', "_");
    if SEARCH_SPLITS.iter().any(|end| name.ends_with(end)) {
        return false;
    }
    let mut words = name.split(|letter: char| !letter.is_ascii_alphanumeric());
    BENCHMARKS.iter().any(|benchmark| name.contains(benchmark))
        || BENCHMARK_STARTS.iter().any(|start| name.starts_with(start))
        || words.any(|word| BENCHMARK_WORDS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_is_most_candidates_at_one_score() {
        let flat = flat_fitness(&[0.5; 5]).unwrap();
        assert_eq!(flat.kind, AlarmKind::FlatFitness);
        assert!(flat.message.contains("all 5 candidates"), "{}", flat.message);
        assert!(flat_fitness(&[0.0, -0.0, 0.0, 0.0, -0.0]).unwrap().message.contains("all 5 candidates"));
        assert!(flat_fitness(&[0.5, 0.5, 0.5, 0.4]).is_none());
        assert!(flat_fitness(&[0.5, 0.5, 0.5, 0.4, 0.3]).unwrap().message.contains("3 of 5"));
        assert_eq!(flat_fitness(&[0.5, 0.5, 0.5, 0.4, 0.3, 0.2]), None);
        assert_eq!(flat_fitness(&[0.5; 4]), None);
        assert_eq!(flat_fitness(&[]), None);
    }

    #[test]
    fn candidates_that_all_fail_are_noticed() {
        assert!(nothing_scored(9, 0, "no such file").unwrap().message.contains("own 9 candidates"));
        assert_eq!((nothing_scored(9, 1, ""), nothing_scored(4, 0, "")), (None, None));
    }

    fn cut(task: &str, n_truncated: Option<u64>, n: u64) -> Scores {
        BTreeMap::from([(task.to_string(), TaskScores { n, n_truncated, ..TaskScores::default() })])
    }

    #[test]
    fn truncation_counts_in_both_directions_and_only_beyond_chance() {
        let alarms = |ours, theirs| truncation_asymmetry("search", &cut("a", ours, 200), &cut("a", theirs, 200));
        for (ours, theirs) in [(40, 10), (10, 40)] {
            let found = alarms(Some(ours), Some(theirs));
            assert_eq!((found.len(), found[0].task.as_deref()), (1, Some("a")));
            assert!(found[0].message.contains(&format!("{ours} of 200")), "{}", found[0].message);
        }
        assert_eq!(alarms(Some(20), Some(14)), []);
        assert_eq!(alarms(Some(0), Some(0)), []);
        assert_eq!(alarms(Some(200), Some(200)), []);
        assert_eq!(alarms(None, Some(100)), []);
        assert_eq!(truncation_asymmetry("search", &cut("a", Some(9), 9), &cut("b", Some(0), 9)), []);
        assert_eq!(truncation_asymmetry("search", &cut("a", Some(0), 0), &cut("a", Some(0), 0)), []);
    }

    #[test]
    fn z_of_two_proportions_as_computed_by_hand() {
        // 40/200 against 10/200: 0.15 / sqrt(0.125 x 0.875 x 0.01).
        assert!((two_proportions(40, 200, 10, 200) - 4.535_573_676).abs() < 1e-8);
    }

    #[test]
    fn public_test_sets_are_recognised_by_name() {
        let suspicious = [
            "mmlu",
            "humaneval_plus",
            "mbpp",
            "gpqa_diamond",
            "boolq",
            "math_500",
            "mt-bench",
            "drop",
            "aime_2024",
            "MMLU-Pro",
            "hendrycks_math",
            "agieval_lsat",
            "gsm8k",
            "gsm8k_cot",
            "hellaswag",
            "winogrande",
            "arc_challenge",
            "arc_easy",
            "ai2_arc",
            "truthfulqa_mc2",
            "bigbench_x",
            "bbh",
            "leaderboard_bbh_snarks",
            "bbh/navigate",
            "piqa",
            "openbookqa",
            "leaderboard_ifeval",
        ];
        for name in suspicious {
            assert_eq!(benchmark_test_sets([name]).len(), 1, "{name}");
        }
        for name in [
            "gsm8k_train",
            "mmlu_dev",
            "arc_easy_val",
            "hellaswag-valid",
            "piqa_validation",
            "march_1",
            "arcade",
            "subbhead",
            "dropout",
            "droplet_count",
            "add",
        ] {
            assert_eq!(benchmark_test_sets([name]), [], "{name}");
        }
    }
}
