//! What `check` foresees: endpoints that a search would do without, the options of a search, what the greedy soup takes,
//! and whether a run that is there goes on.

#[path = "support/fault_server.rs"]
#[allow(dead_code, reason = "shared with the tests of the HTTP evaluator")]
mod fault_server;
#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::path::Path;
use std::process::{Output, Stdio};

use evomerge::ledger::Ledger;
use fault_server::FaultServer;
use runs::{SPACE, Scratch, TASKS, cell, command, stderr, wait_until};
use serde_json::{Value, json};

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `check` prints when it is content.
fn checked(scratch: &Scratch, more: &[&str]) -> String {
    let output = scratch.evomerge(&[&["check", "run.toml"], more].concat());
    assert!(output.status.success(), "{more:?}: {}", stderr(&output));
    stdout(&output)
}

fn document(scratch: &Scratch, more: &[&str]) -> Value {
    serde_json::from_str(&checked(scratch, &[&["--json"], more].concat())).unwrap()
}

/// The line with that label.
fn line(text: &str, label: &str) -> String {
    text.lines().find(|line| line.starts_with(label)).unwrap_or_default().to_owned()
}

/// A run over two models of the zoo with this evaluator and these tasks.
fn write_run(scratch: &Scratch, evaluator_and_tasks: &str) {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama");
    let text = format!(
        "name = \"run\"\nseed = 3\n[models]\nsources = [{:?}, {:?}]\n[space]\nmethod = \"linear\"\n[budget]\nevaluations = 20\n\
         {evaluator_and_tasks}",
        zoo.join("expert-add"),
        zoo.join("expert-rev"),
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
}

#[test]
fn an_endpoint_that_cannot_be_asked_is_told_quietly_too() {
    let (scratch, server) = (Scratch::new(), FaultServer::start(Vec::new()));
    let tasks = "[[tasks]]\nname = \"add\"\n[[tasks]]\nname = \"rev\"\n";
    let evaluator = |endpoints: &[&str]| {
        format!("[evaluator]\nkind = \"http\"\nstartup_timeout = \"300ms\"\nendpoints = {endpoints:?}\n{tasks}")
    };
    let url = server.url();
    write_run(&scratch, &evaluator(&[url.as_str()]));
    assert_eq!(document(&scratch, &[])["unreachable"], json!([]));
    assert!(!checked(&scratch, &[]).contains("cannot be asked"));

    // A port that nobody listens on any more.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = format!("http://{dead}");
    write_run(&scratch, &evaluator(&[url.as_str(), dead.as_str()]));
    let warning = line(&checked(&scratch, &["-q"]), "warning");
    assert!(warning.contains(&format!("1 of 2 endpoints cannot be asked: {dead}: ")), "{warning}");
    let findings = document(&scratch, &["-q"]);
    let unreachable = findings["unreachable"].as_array().unwrap();
    assert_eq!((unreachable.len(), &unreachable[0]["endpoint"]), (1, &json!(dead)), "{findings}");
    assert!(!unreachable[0]["reason"].as_str().unwrap().is_empty(), "{findings}");
    assert_eq!(findings["endpoints"], 2);
}

#[test]
fn check_takes_what_a_search_takes_instead_of_the_run_file() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &["--seed", "9"]);
    let run = line(&checked(&scratch, &["--seed", "9", "--max-evaluations", "40"]), "run ");
    assert!(run.contains("results/run has 12 evaluations, which a search continues"), "{run}");
    let output = scratch.evomerge(&["check", "run.toml"]);
    assert_eq!(output.status.code(), Some(78), "{}", stdout(&output));
    assert!(stderr(&output).contains("seed: 9 -> 5"), "{}", stderr(&output));
    let budget = line(&checked(&scratch, &["--fresh", "--max-evaluations", "40", "--wall-clock", "2m"]), "budget");
    assert!(budget.contains("40 evaluations") && budget.contains("120 s of active time"), "{budget}");
}

#[test]
fn a_run_whose_budget_is_spent_makes_no_more_evaluations() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
    for (more, spent) in [
        (&["--max-evaluations", "10"][..], "its budget is spent: 12 of 10 evaluations"),
        (&[][..], "its budget is spent: 12 of 12 evaluations"),
        (&["--max-evaluations", "40", "--wall-clock", "1ms"][..], " of 0.001 s of active time"),
    ] {
        let run = line(&checked(&scratch, more), "run ");
        assert!(run.contains(spent) && run.contains("without new evaluations"), "{more:?}: {run}");
    }
    let run = line(&checked(&scratch, &["--max-evaluations", "13"]), "run ");
    assert!(run.contains("which a search continues") && !run.contains("spent"), "{run}");
    // Room for half an evaluation.
    let each = scratch.asked()[0].samples;
    let limit = 12 * each + each / 2;
    let text = std::fs::read_to_string(&run_file).unwrap();
    std::fs::write(&run_file, text.replace("evaluations = 12", &format!("samples = {limit}"))).unwrap();
    let findings = document(&scratch, &[]);
    let spent = format!("{} of {limit} samples, and one more takes {each}", 12 * each);
    assert!(findings["run"].as_str().unwrap().contains(&spent), "{findings}");
}

#[test]
fn a_run_that_a_process_uses_is_not_called_one_that_a_search_continues() {
    let scratch = Scratch::new();
    let rest = format!("{SPACE}{TASKS}");
    let run_file = scratch.run_file("run", 1000, "name = \"sphere\"\nlatency = \"20ms\"", &rest);
    let arguments = ["search", run_file.to_str().unwrap(), "--quiet"];
    let mut child = command(scratch.folder.path(), &arguments).stdout(Stdio::null()).spawn().unwrap();
    let ledger = scratch.path("results/run/ledger.sqlite");
    let told = || Ledger::open_for_reading(&ledger).and_then(|ledger| ledger.all_told_in_short());
    wait_until(|| told().is_ok_and(|told| told.len() > 6));
    let (run, anew) = (line(&checked(&scratch, &[]), "run "), line(&checked(&scratch, &["--fresh"]), "run "));
    child.kill().unwrap();
    child.wait().unwrap();
    for run in [run, anew] {
        assert!(run.contains(&format!("in use by process {}", child.id())), "{run}");
        assert!(run.contains("refused until that has ended") && !run.contains("continues"), "{run}");
    }
    let run = line(&checked(&scratch, &[]), "run ");
    assert!(run.contains("which a search continues"), "{run}");
    let run = line(&checked(&scratch, &["--max-evaluations", "6"]), "run ");
    assert!(run.contains(&format!("spent: {} of 6 evaluations", scratch.asked().len())), "{run}");
}

#[test]
fn the_greedy_soup_takes_as_many_evaluations_as_check_foresees() {
    let scratch = Scratch::new();
    let mut longest = 0;
    for (settings, foreseen) in [
        ("", json!([1, 2])),
        ("replacement = true", json!([2, 29])),
        ("replacement = true\nbackward = true\nkeep = \"not_worse\"", json!([2, 41])),
    ] {
        let rest = format!("{SPACE}{TASKS}[strategy]\nkind = \"greedy-soup\"\n{settings}\n");
        let run_file = scratch.run_file("run", 100, "name = \"sphere\"\nsamples = 50", &rest);
        assert_eq!(document(&scratch, &["--fresh"])["greedy_soup_evaluations"], foreseen, "{settings}");
        let [fewest, most] = [0, 1].map(|end| foreseen[end].as_u64().unwrap());
        let said = line(&checked(&scratch, &["--fresh"]), "baselines");
        assert!(said.ends_with(&format!("then the greedy soup ({fewest} to {most} evaluations)")), "{said}");
        scratch.search(&run_file, &["--fresh", "--seed", "4"]);
        let trials = scratch.trials("results", "run");
        let of_soup = trials.iter().filter(|trial| cell(trial, "origin").starts_with("greedy_soup")).count() as u64;
        assert!((fewest..=most).contains(&of_soup), "{settings}: {of_soup}");
        longest = longest.max(of_soup);
    }
    assert!(longest > 2, "the seed was chosen so that sources join again");
    let rest = format!("{SPACE}{TASKS}[strategy]\nkind = \"uniform-soup\"\n");
    scratch.run_file("run", 100, "name = \"sphere\"\nsamples = 50", &rest);
    assert_eq!(document(&scratch, &["--fresh"])["greedy_soup_evaluations"], Value::Null);
}

/// The candidates that a budget has room for are those beside the soup, however long that gets.
#[test]
fn a_long_greedy_soup_leaves_room_for_fewer_candidates() {
    let scratch = Scratch::new();
    let fewest = |settings: &str| -> f64 {
        let rest = format!("{SPACE}{TASKS}[racing]\n[strategy]\nkind = \"genetic\"\n{settings}\n");
        scratch.run_file("run", 105, "name = \"sphere\"\nsamples = 100", &rest);
        let racing = line(&checked(&scratch, &[]), "racing");
        racing.split("about ").nth(1).and_then(|range| range.split(' ').next()).unwrap().parse().unwrap()
    };
    let (short, long) = (fewest(""), fewest("replacement = true"));
    assert!(long < 0.8 * short, "{long} {short}");
}

#[test]
fn a_program_that_cannot_race_is_told_what_it_takes() {
    let scratch = Scratch::new();
    let racing = |limit: &str| {
        let evaluator = "[racing]\n[evaluator]\nkind = \"command\"\nargv = [\"sh\", \"score.sh\", \"{result_file}\"]\n";
        write_run(&scratch, &format!("{evaluator}[[tasks]]\nname = \"words\"\n{limit}"));
        line(&checked(&scratch, &[]), "racing")
    };
    let off = racing("");
    assert!(off.contains("off: ") && off.contains("give each task a `limit` (see docs/run-file.md)"), "{off}");
    let on = racing("limit = 64\n");
    assert!(on.contains("rungs of ") && !on.contains("off: "), "{on}");
}
