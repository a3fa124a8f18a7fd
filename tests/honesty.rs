//! What keeps a search honest, through the program: replays of recorded scores, a hold-out that is one, alarms.

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::fmt::Write as _;
use runs::{SPACE, Scratch, stderr};

#[test]
fn a_matrix_and_a_ledger_are_replayed() {
    let scratch = Scratch::new();
    // Candidate `c7` is right on all samples but every ninth, `c0` on all but every second.
    let mut text = "candidate".to_string();
    (0..90).for_each(|sample| write!(text, ",{sample}").unwrap());
    for candidate in 0..8_usize {
        write!(text, "\nc{candidate}").unwrap();
        (0..90).for_each(|sample| {
            write!(text, ",{}", u8::from((sample + candidate) % (candidate + 2) != 0)).unwrap();
        });
    }
    std::fs::write(scratch.path("scores.csv"), text + "\n").unwrap();
    let arguments = ["simulate", "scores.csv", "--budget", "80,720", "--eta", "2", "--seed", "4", "--json"];
    let output = scratch.evomerge(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["best"]["candidate"], "c7");
    assert_eq!(json["rungs"], serde_json::json!([8, 4, 2]));
    assert_eq!(json["budgets"][1]["uniform"]["samples_of_chosen"], 90.0);
    assert!(json["budgets"][0]["uniform"]["over_statement"].as_f64().unwrap() > 0.0);
    assert_eq!(scratch.evomerge(&arguments).stdout, output.stdout);

    let run_file = scratch.run_file("night", 12, "name = \"sphere\"\nsamples = 60", &format!("{SPACE}\n[[tasks]]\nname = \"one\"\n"));
    let report = scratch.search(&run_file, &[]);
    let output = scratch.evomerge(&["simulate", "results/night/ledger.sqlite", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["samples"], 60);
    assert_eq!(json["best"]["candidate"], report["best"]["candidate_id"]);
    let score = json["best"]["score"].as_f64().unwrap();
    assert!((score - report["best"]["objective"].as_f64().unwrap()).abs() < 1e-9);
}

#[test]
fn scores_that_cannot_be_replayed_are_named() {
    let scratch = Scratch::new();
    let refused = |text: &str, arguments: &[&str], code: i32, wanted: &[&str]| {
        std::fs::write(scratch.path("scores.csv"), text).unwrap();
        let output = scratch.evomerge(&[&["simulate", "scores.csv"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        wanted.iter().for_each(|word| assert!(stderr(&output).contains(word), "{}", stderr(&output)));
    };
    refused("candidate,1,2\na,1,yes\nb,0,1\n", &[], 65, &["scores.csv", "`a`", "`2`", "yes"]);
    refused("candidate,1,2\na,1\nb,0,1\n", &[], 65, &["scores.csv"]);
    refused("candidate,1\na,1\n", &[], 65, &["two"]);
    refused("candidate,1\na,NaN\nb,0\n", &[], 65, &["`a`", "finite"]);
    refused("candidate,1\na,1\nb,0\n", &["--budget", "1"], 2, &["one sample"]);
    refused("candidate,1\na,1\nb,0\n", &["--eta", "1"], 2, &["eta"]);
    let output = scratch.evomerge(&["simulate", "nowhere.csv"]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
}

/// One hold-out sample that the search has too, under another line number, is enough.
#[cfg(feature = "native")]
#[test]
fn a_holdout_that_shares_samples_with_the_search_is_refused() {
    let scratch = Scratch::new();
    let zoo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama");
    let lines = |file: &str| -> Vec<String> {
        let text = std::fs::read_to_string(zoo.join("data").join(file)).unwrap();
        text.lines().take(20).map(str::to_string).collect()
    };
    let (search, mut holdout) = (lines("add.val.jsonl"), lines("add.test.jsonl"));
    holdout.retain(|line| !search.contains(line));
    let check = |holdout: &[String]| {
        std::fs::write(scratch.path("search.jsonl"), search.join("\n")).unwrap();
        std::fs::write(scratch.path("holdout.jsonl"), holdout.join("\n")).unwrap();
        let text = format!(
            "name = \"run\"\n[models]\nbase = {:?}\nsources = [{:?}]\n[space]\nmethod = \"task_arithmetic\"\n[budget]\nevaluations = 9\n\
             [evaluator]\nkind = \"native\"\n[[tasks]]\nname = \"add\"\ndata = \"search.jsonl\"\nmetric = \"exact_match\"\n\
             [holdout]\ntasks = {{ add = {{ data = \"holdout.jsonl\" }} }}\n",
            zoo.join("base"),
            zoo.join("expert-add"),
        );
        std::fs::write(scratch.path("run.toml"), text).unwrap();
        scratch.evomerge(&["check", "run.toml"])
    };
    let output = check(&holdout);
    assert!(output.status.success(), "{}", stderr(&output));
    // The same sample, written with another space.
    holdout.push(search[3].replace("\": ", "\":  "));
    assert!(!search.contains(&holdout[holdout.len() - 1]));
    let output = check(&holdout);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    for word in ["`add`", "1 of ", "never saw"] {
        assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
    }
}
