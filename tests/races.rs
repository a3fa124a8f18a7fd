//! Races that are awkward: few samples, tasks of different sizes, groups of samples, candidates that are the same
//! model.

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::collections::BTreeSet;

use evomerge::ledger::AskedRecord;
use runs::{SPACE, Scratch, TASKS, cell};

type Trial = Vec<(String, String)>;

fn n_samples(trial: &Trial) -> u64 {
    cell(trial, "n_samples").parse().unwrap()
}

/// Every promotion has scores on what was known and on what it paid for, which is something; how many there are.
fn check_promotions(trials: &[Trial], asked: &[AskedRecord]) -> usize {
    assert_eq!(trials.len(), asked.len());
    let promotions = trials.iter().zip(asked).filter(|(_, record)| record.origin == "promotion");
    let checked = promotions.map(|(trial, record)| {
        let before = &trials[record.parents[0] as usize];
        assert_eq!(cell(before, "candidate_id"), record.candidate_id);
        assert!(record.samples > 0, "evaluation {} asked for no sample", record.index);
        assert_eq!(n_samples(trial), n_samples(before) + record.samples, "evaluation {}", record.index);
    });
    checked.count()
}

#[test]
fn tasks_too_small_for_the_rungs_race_on_those_that_have_new_samples() {
    let scratch = Scratch::new();
    let text = format!("{SPACE}{TASKS}[racing]\nrungs = 6\n");
    let run_file = scratch.run_file("run", 60, "name = \"sphere\"\nsamples = 20", &text);
    let report = scratch.search(&run_file, &[]);
    assert_eq!(report["evaluations"], 60);
    let trials = scratch.trials("results", "run");
    assert!(check_promotions(&trials, &scratch.asked()) > 3);
    let winner = &report["winner"];
    assert_eq!(cell(&trials[winner["index"].as_u64().unwrap() as usize], "origin"), "promotion");
    let first = trials.iter().find(|trial| cell(trial, "candidate_id") == winner["candidate_id"]).unwrap();
    assert_eq!(winner["origin"], cell(first, "origin"));
    let output = scratch.evomerge(&["status", "results/run", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["best"]["origin"], winner["origin"]);
    let mut rungs: Vec<(f64, u64)> =
        trials.iter().map(|trial| (cell(trial, "fidelity").parse().unwrap(), n_samples(trial))).collect();
    rungs.sort_by(|one, other| one.0.total_cmp(&other.0));
    rungs.dedup();
    assert!(rungs.len() > 2 && rungs.len() < 6, "{rungs:?}");
    assert!(rungs.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1), "{rungs:?}");
}

#[test]
fn a_promotion_takes_over_the_scores_of_a_task_that_has_no_further_samples() {
    let scratch = Scratch::new();
    // A sixteenth and a quarter of four samples are both one.
    let tasks = TASKS.replace("name = \"two\"", "name = \"two\"\nlimit = 4");
    let text = format!("{SPACE}{tasks}[racing]\nrungs = 3\n");
    let run_file = scratch.run_file("run", 120, "name = \"sphere\"\nsamples = 160", &text);
    assert_eq!(scratch.search(&run_file, &[])["evaluations"], 120);
    let (trials, asked) = (scratch.trials("results", "run"), scratch.asked());
    assert!(check_promotions(&trials, &asked) > 3);
    let mut taken_over = 0;
    for (trial, record) in trials.iter().zip(&asked).filter(|(_, record)| record.origin == "promotion") {
        let before = &trials[record.parents[0] as usize];
        if record.fidelity == 0.25 {
            assert_eq!(cell(trial, "score.two.score"), cell(before, "score.two.score"));
            taken_over += 1;
        }
        let score = |task: &str| cell(trial, &format!("score.{task}.score")).parse::<f64>().unwrap();
        let objective: f64 = cell(trial, "objective").parse().unwrap();
        assert!((score("one") + score("two") - 2.0 * objective).abs() < 1e-9);
    }
    assert!(taken_over > 3, "{taken_over}");
}

#[test]
fn nsga2_races_on_rungs_with_fewer_samples_than_groups() {
    let scratch = Scratch::new();
    let strategy = "[strategy]\nkind = \"nsga2\"\npopulation = 8\ngroups = 16\n[racing]\nrungs = 3\n";
    let run_file =
        scratch.run_file("run", 100, "name = \"sphere\"\nsamples = 60", &format!("{SPACE}{TASKS}{strategy}"));
    assert_eq!(scratch.search(&run_file, &[])["evaluations"], 100);
    let trials = scratch.trials("results", "run");
    assert!(trials.iter().any(|trial| n_samples(trial) < 16), "a rung is to be that small");
    assert!(check_promotions(&trials, &scratch.asked()) > 3);
    assert!(trials.iter().filter(|trial| cell(trial, "origin") == "nsga2").count() > 20);
}

/// Of the eight points of this space one is the uniform soup, and another has no weights and is made the same.
#[test]
fn a_race_does_not_pay_for_a_model_that_is_a_baseline() {
    let scratch = Scratch::new();
    let space = "[models]\nsources = [\"a\", \"b\", \"c\"]\n[space]\nmethod = \"linear\"\n[space.genes]\n\
                 weight = { low = 0, high = 1, integer = true, per = [\"model\"] }\n";
    let strategy = "[strategy]\nkind = \"random\"\n[racing]\nrungs = 2\n";
    let run_file = scratch.run_file("run", 60, "name = \"sphere\"\nsamples = 80", &format!("{space}{TASKS}{strategy}"));
    let report = scratch.search(&run_file, &[]);
    assert!(report["reason"].as_str().unwrap().contains("exhausted"), "{report}");
    let trials = scratch.trials("results", "run");
    let soup = trials.iter().find(|trial| cell(trial, "origin") == "uniform_soup").unwrap();
    let of_soup = trials.iter().filter(|trial| cell(trial, "candidate_id") == cell(soup, "candidate_id"));
    assert_eq!(of_soup.count(), 1);
    assert_eq!(trials.iter().filter(|trial| cell(trial, "origin") == "random").count(), 6);
}

/// Some of these paths through the layers are the same, and a candidate in sixteen is scored in full at once.
#[test]
fn a_race_begins_once_for_candidates_that_are_the_same_model() {
    let scratch = Scratch::new();
    let space = "[models]\nsources = [\"a\", \"b\"]\n[space]\nmethod = \"passthrough\"\nlayer_groups = 2\n\
                 [space.stack]\npasses = 3\nmax_layers = 3\n";
    let strategy = "[strategy]\nkind = \"random\"\n[racing]\nrungs = 2\n";
    let run_file =
        scratch.run_file("run", 400, "name = \"sphere\"\nsamples = 40", &format!("{space}{TASKS}{strategy}"));
    scratch.search(&run_file, &[]);
    let trials = scratch.trials("results", "run");
    let begun: Vec<&str> = trials
        .iter()
        .filter(|trial| cell(trial, "origin") != "promotion")
        .map(|trial| cell(trial, "candidate_id"))
        .collect();
    let references =
        trials.iter().filter(|trial| cell(trial, "origin") == "random" && cell(trial, "fidelity") == "1").count();
    assert!(begun.len() > 60 && references > 2, "{} begun, {references} in full at once", begun.len());
    assert_eq!(begun.iter().collect::<BTreeSet<_>>().len(), begun.len());
}
