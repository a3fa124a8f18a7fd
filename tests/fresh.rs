//! Runs that begin anew beside what earlier ones left: who has the folder, and what is told of the others.

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::path::Path;
use std::process::Stdio;

use evomerge::search::RunFolder;
use runs::{SPACE, Scratch, TASKS, command, stderr, wait_until};

const SPHERE: &str = "name = \"sphere\"\nsamples = 50";

/// A run of twelve evaluations.
fn sphere(scratch: &Scratch) -> std::path::PathBuf {
    scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}"))
}

/// Models may take minutes to hash, and endpoints to answer.
#[test]
fn a_fresh_start_that_is_killed_while_it_prepares_leaves_the_old_run_where_it_is() {
    let scratch = Scratch::new();
    let run_file = sphere(&scratch);
    scratch.search(&run_file, &[]);
    let text = std::fs::read_to_string(&run_file).unwrap();
    let verdict = std::fs::read(scratch.path("results/run/verdict.json")).unwrap();

    // It takes connections, and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let waiting = format!(
        "name = \"run\"\n[models]\nsources = [{:?}, {:?}]\n[space]\nmethod = \"linear\"\n[budget]\nevaluations = 4\n\
         [evaluator]\nkind = \"http\"\nendpoints = [\"http://{}\"]\n[[tasks]]\nname = \"add\"\n",
        golden.join("a"),
        golden.join("b"),
        silent.local_addr().unwrap()
    );
    std::fs::write(&run_file, waiting).unwrap();
    let arguments = ["search", run_file.to_str().unwrap(), "--fresh"];
    let mut child = command(scratch.folder.path(), &arguments).stderr(Stdio::null()).spawn().unwrap();
    wait_until(|| RunFolder::is_locked(&scratch.path("results/run")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!scratch.path("results/run.1").exists());

    std::fs::write(&run_file, text).unwrap();
    let report = scratch.search(&run_file, &[]);
    assert_eq!((&report["evaluations"], &report["reused"]), (&serde_json::json!(12), &serde_json::json!(false)));
    assert_eq!(std::fs::read(scratch.path("results/run/verdict.json")).unwrap(), verdict);
}

/// What a killed start left is not called a run.
#[test]
fn a_folder_with_nothing_but_a_lock_is_not_moved_aside() {
    let scratch = Scratch::new();
    let run_file = sphere(&scratch);
    std::fs::create_dir_all(scratch.path("results/run")).unwrap();
    std::fs::write(scratch.path("results/run/run.lock"), "1\n").unwrap();
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap(), "--fresh"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stderr(&output).contains("the old run is now"), "{}", stderr(&output));
    assert!(scratch.path("results/run/verdict.json").exists() && !scratch.path("results/run.1").exists());
}

/// The verdict of a run of `command`, whose sentence says what `reused` does.
fn is_reused(scratch: &Scratch, command: &str, run_file: &Path, more: &[&str]) -> bool {
    let output = scratch.evomerge(&[&[command, run_file.to_str().unwrap(), "--json"], more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let reused = report["reused"].as_bool().unwrap();
    assert_eq!(report["sentence"].as_str().unwrap().contains("opened before"), reused, "{report}");
    assert_eq!(stderr(&output).contains("opened it before"), reused, "{}", stderr(&output));
    reused
}

/// Who tries until the hold-out agrees has used it.
#[test]
fn a_hold_out_that_another_run_of_the_name_opened_is_reused() {
    let scratch = Scratch::new();
    let run_file = sphere(&scratch);
    assert!(!is_reused(&scratch, "search", &run_file, &[]));
    assert!(is_reused(&scratch, "soup", &run_file, &[]));
    assert!(!is_reused(&scratch, "search", &run_file, &[]), "it was the first");
    assert!(is_reused(&scratch, "search", &run_file, &["--fresh"]));
    assert!(is_reused(&scratch, "search", &run_file, &[]), "and that stays");
    // A run of another name, whatever its folder looks like.
    let text = std::fs::read_to_string(&run_file).unwrap();
    std::fs::write(&run_file, text.replace("name = \"run\"", "name = \"run.7\"")).unwrap();
    assert!(!is_reused(&scratch, "search", &run_file, &[]));
    std::fs::write(&run_file, text).unwrap();
    // A landscape with other optima has other samples.
    assert!(!is_reused(&scratch, "search", &run_file, &["--fresh", "--seed", "6"]));
    // A ledger that cannot be read is no reason to stop.
    std::fs::write(scratch.path("results/run.1/ledger.sqlite"), "no ledger").unwrap();
    is_reused(&scratch, "search", &run_file, &["--fresh"]);
}

#[test]
fn a_new_run_tells_of_one_of_its_name_beside_the_run_file() {
    let scratch = Scratch::new();
    let there = scratch.path("there");
    std::fs::create_dir(&there).unwrap();
    std::fs::rename(sphere(&scratch), there.join("run.toml")).unwrap();
    let first = command(&there, &["search", "run.toml"]).output().unwrap();
    assert!(first.status.success() && !stderr(&first).contains("a new run begins"), "{}", stderr(&first));
    let said = |more: &[&str]| {
        let output = scratch.evomerge(&[&["search", "there/run.toml"], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    assert!(!said(&["--results", "there/results"]).contains("a new run begins"));
    assert!(!said(&["--results", "unseen", "--quiet"]).contains("a new run begins"));
    assert!(!said(&["--results", "chosen"]).contains("a new run begins"), "who names a folder means it");
    assert!(scratch.path("chosen/run/verdict.json").exists());
    let text = said(&[]);
    let [begun, beside] =
        ["results/run", "there/results/run"].map(|run| std::fs::canonicalize(scratch.path(run)).unwrap());
    let results = beside.parent().unwrap().display().to_string();
    for word in [begun.display().to_string(), beside.display().to_string(), format!("--results {results}")] {
        assert!(text.contains(&word), "{word}: {text}");
    }
    assert_eq!(text.matches("note: a new run begins in ").count(), 1, "{text}");
    assert!(!said(&[]).contains("a new run begins"), "it goes on with its own");
}

#[test]
fn a_soup_says_whose_scores_it_takes() {
    let scratch = Scratch::new();
    let run_file = sphere(&scratch);
    let soup = |more: &[&str]| {
        let output = scratch.evomerge(&[&["soup", run_file.to_str().unwrap()], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    assert!(!soup(&[]).contains("taken from"));
    scratch.search(&run_file, &[]);
    let text = soup(&["--fresh"]);
    let rows = scratch.trials("results", "run-soup").len();
    assert!(text.contains(&format!("{rows} scores taken from results/run\n")), "{text}");
    assert!(!soup(&[]).contains("taken from"), "nothing is taken twice");
}

/// A start that ends with an error says so in the record too, whenever that is.
#[test]
fn a_history_that_does_not_replay_is_told_and_recorded() {
    let scratch = Scratch::new();
    let run_file = sphere(&scratch);
    scratch.search(&run_file, &[]);
    let ledger = rusqlite::Connection::open(scratch.path("results/run/ledger.sqlite")).unwrap();
    let candidate = scratch.asked()[9].candidate_id.clone();
    for (change, words) in [
        (
            "evaluation_id = 'ev_other'",
            [format!("the same candidate, {candidate}"), "evaluation id ev_other".to_owned()],
        ),
        ("candidate_id = 'other'", [candidate, "the candidate other".to_owned()]),
    ] {
        ledger.execute(&format!("UPDATE asked SET {change} WHERE \"index\" = 9"), []).unwrap();
        let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        for word in words.iter().map(String::as_str).chain(["evaluation 9 "]) {
            assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
        }
        let output = scratch.evomerge(&["status", "results/run"]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.starts_with("run: stopped: run run does not replay"), "{text}");
    }
}
