//! Which samples the search gets and which stay sealed.

#[path = "support/fault_server.rs"]
#[allow(dead_code, reason = "shared with the tests of the HTTP evaluator")]
mod fault_server;
#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::path::Path;

use fault_server::FaultServer;
use runs::{SPACE, Scratch, stderr};
use serde_json::Value;

/// Samples of `add` that the first evaluation of a search asked for, and those that the last one of its hold-out did.
fn asked_for(limit: &str) -> (Vec<u64>, Vec<u64>) {
    let (scratch, server) = (Scratch::new(), FaultServer::start(vec![]));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let text = format!(
        "name = \"run\"\nseed = 3\n[models]\nsources = [{:?}, {:?}]\n[space]\nmethod = \"linear\"\n[budget]\nevaluations = 4\n\
         [evaluator]\nkind = \"http\"\nendpoints = [{:?}]\n[[tasks]]\nname = \"add\"\n{limit}\n[holdout]\nfraction = 0.3\n",
        golden.join("a"),
        golden.join("b"),
        server.url()
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
    scratch.search(Path::new("run.toml"), &["--quiet"]);
    let ids = |post: Value| -> Vec<u64> {
        post["tasks"][0]["sample_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
    };
    let posts = server.seen("POST");
    (ids(posts[0].json()), ids(posts[posts.len() - 1].json()))
}

#[test]
fn a_limit_beside_a_fraction_takes_the_first_samples_of_a_shuffle() {
    let (all, sealed) = asked_for("");
    assert!(all.len() > 8 && all.len() + sealed.len() == 20, "{all:?} {sealed:?}");
    assert!(all.iter().all(|id| !sealed.contains(id)));
    let (few, few_sealed) = asked_for("limit = 4");
    let (more, more_sealed) = asked_for("limit = 7");
    assert_eq!((few.len(), more.len()), (4, 7));
    for some in [&few, &more] {
        assert_ne!(some[..], all[..some.len()], "not those that stand first in the file");
        let in_order: Vec<u64> = all.iter().copied().filter(|id| some.contains(id)).collect();
        assert_eq!(*some, in_order, "samples of the search, in the evaluator's order");
    }
    assert!(few.iter().all(|id| more.contains(id)), "{few:?} {more:?}");
    assert_eq!((&few_sealed, &more_sealed), (&sealed, &sealed), "the limit is the search's");
    assert_eq!(asked_for("limit = 90").0, all);
}

#[test]
fn two_tasks_cannot_share_one_hold_out_task() {
    let scratch = Scratch::new();
    let run_file = |sealed: [&str; 2]| {
        let tasks = format!(
            "[[tasks]]\nname = \"one\"\n[[tasks]]\nname = \"two\"\n\
             [holdout]\ntasks = {{ one = {{ task = \"{}\" }}, two = {{ task = \"{}\" }} }}\n",
            sealed[0], sealed[1]
        );
        scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{tasks}"))
    };
    let shared = run_file(["sealed", "sealed"]);
    for command in ["check", "search"] {
        let output = scratch.evomerge(&[command, shared.to_str().unwrap()]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(78), "{text}");
        for word in ["holdout.tasks.", "\"one\"", "two", "needs its own"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!scratch.path("results/run/ledger.sqlite").exists());
    }
    let apart = run_file(["sealed-one", "sealed-two"]);
    assert_eq!(scratch.search(&apart, &[])["evaluations"], 12);
}

#[test]
fn another_name_of_the_search_s_server_is_no_hold_out() {
    let (scratch, server) = (Scratch::new(), FaultServer::start(vec![]));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let text = format!(
        "name = \"run\"\n[models]\nsources = [{:?}, {:?}]\n[space]\nmethod = \"linear\"\n[budget]\nevaluations = 4\n\
         [evaluator]\nkind = \"http\"\nendpoints = [{:?}]\n[[tasks]]\nname = \"add\"\n[holdout]\nendpoints = [{:?}]\n",
        golden.join("a"),
        golden.join("b"),
        server.url(),
        server.url().replace("127.0.0.1", "localhost"),
    );
    assert!(text.contains("localhost"));
    std::fs::write(scratch.path("run.toml"), text).unwrap();
    let output = scratch.evomerge(&["check", "run.toml"]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("are one address"), "{}", stderr(&output));
}

/// A run of which the run file leaves metric and direction to the evaluator.
fn silent_run(scratch: &Scratch, server: &FaultServer, evaluations: u32, holdout: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let text = format!(
        "name = \"run\"\n[models]\nsources = [{:?}, {:?}]\n[space]\nmethod = \"linear\"\n[budget]\nevaluations = {evaluations}\n\
         [evaluator]\nkind = \"http\"\nendpoints = [{:?}]\n[[tasks]]\nname = \"add\"\n{holdout}",
        golden.join("a"),
        golden.join("b"),
        server.url()
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
}

#[test]
fn a_direction_that_the_evaluator_turns_is_a_change() {
    let (scratch, server) = (Scratch::new(), FaultServer::start(vec![]));
    silent_run(&scratch, &server, 4, "");
    scratch.search(Path::new("run.toml"), &["--quiet"]);
    server.inner.capabilities.lock().unwrap()["tasks"][0]["metrics"][0]["higher_is_better"] = false.into();
    silent_run(&scratch, &server, 6, "");
    let output = scratch.evomerge(&["search", "run.toml"]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("objective.add.weight: 1.0 -> -1.0"), "{}", stderr(&output));
}

/// The advice on an evaluator that lists another metric first can be followed.
#[test]
fn writing_out_what_the_evaluator_chose_is_no_change() {
    let (scratch, server) = (Scratch::new(), FaultServer::start(vec![]));
    silent_run(&scratch, &server, 4, "");
    scratch.search(Path::new("run.toml"), &["--quiet"]);
    let mut listed = server.inner.capabilities.lock().unwrap()["tasks"][0]["metrics"].clone();
    let mut other = listed[0].clone();
    other["name"] = "f1".into();
    listed.as_array_mut().unwrap().insert(0, other);
    server.inner.capabilities.lock().unwrap()["tasks"][0]["metrics"] = listed;
    let refused = |chosen: &str, word: &str| {
        silent_run(&scratch, &server, 6, chosen);
        let output = scratch.evomerge(&["search", "run.toml"]);
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    };
    refused("", "write `metric` and `goal`");
    refused("metric = \"f1\"\n", "tasks.add.metric: (absent) -> \"f1\"");
    refused("metric = \"accuracy\"\ngoal = \"minimize\"\n", "");
    silent_run(&scratch, &server, 6, "metric = \"accuracy\"\ngoal = \"maximize\"\n");
    assert_eq!(scratch.search(Path::new("run.toml"), &["--quiet"])["evaluations"], 6);
}

#[test]
fn another_number_of_samples_is_a_change() {
    let (scratch, server) = (Scratch::new(), FaultServer::start(vec![]));
    silent_run(&scratch, &server, 4, "");
    scratch.search(Path::new("run.toml"), &["--quiet"]);
    let edit = |samples: u64| server.inner.capabilities.lock().unwrap()["tasks"][0]["n_samples"] = samples.into();
    edit(7);
    let output = scratch.evomerge(&["search", "run.toml"]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("samples of task add: "), "{}", stderr(&output));
    // Zero is unknown.
    edit(0);
    scratch.search(Path::new("run.toml"), &["--quiet"]);
}

#[test]
fn a_hold_out_has_the_metric_of_the_search_in_its_direction() {
    for (field, value, word) in
        [("higher_is_better", Value::Bool(false), "is worse"), ("name", Value::from("f1"), "no metric `accuracy`")]
    {
        let (scratch, server, sealed) = (Scratch::new(), FaultServer::start(vec![]), FaultServer::start(vec![]));
        sealed.inner.capabilities.lock().unwrap()["tasks"][0]["metrics"][0][field] = value;
        silent_run(&scratch, &server, 4, &format!("[holdout]\nendpoints = [{:?}]\n", sealed.url()));
        let output = scratch.evomerge(&["check", "run.toml"]);
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
    }
}

/// A fingerprint covers the data: the same one on other servers means the same samples.
#[test]
fn a_hold_out_under_the_fingerprint_of_the_search_is_its_own_data() {
    let (scratch, server, sealed) = (Scratch::new(), FaultServer::start(vec![]), FaultServer::start(vec![]));
    let holdout = format!("[holdout]\nendpoints = [{:?}]\n", sealed.url());
    silent_run(&scratch, &server, 4, &holdout);
    for command in ["check", "search"] {
        let output = scratch.evomerge(&[command, "run.toml"]);
        assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
        assert!(stderr(&output).contains("they have the fingerprint of the search's endpoints"), "{}", stderr(&output));
    }
    assert_eq!(server.posts() + sealed.posts(), 0);
    // Whoever takes endpoints as equivalent has said that fingerprints do not count.
    let run_file = std::fs::read_to_string(scratch.path("run.toml")).unwrap();
    let lenient = run_file.replace("[[tasks]]", "allow_different_fingerprints = true\n[[tasks]]");
    std::fs::write(scratch.path("run.toml"), lenient).unwrap();
    let output = scratch.evomerge(&["check", "run.toml"]);
    assert!(output.status.success(), "{}", stderr(&output));

    // Another version of the task, and another task of the search's own server, are other data.
    std::fs::write(scratch.path("run.toml"), run_file).unwrap();
    sealed.inner.capabilities.lock().unwrap()["tasks"][0]["version"] = "2".into();
    assert!(scratch.evomerge(&["check", "run.toml"]).status.success());
    silent_run(&scratch, &server, 4, "[holdout]\ntasks = { add = { task = \"rev\" } }\n");
    assert!(scratch.evomerge(&["check", "run.toml"]).status.success());
}

/// What `check` says of a run of the tiny Llamas with two tasks, whose hold-outs are these lines.
#[cfg(feature = "native")]
fn with_holdouts(holdouts: [&str; 2]) -> (Scratch, std::process::Output) {
    let scratch = Scratch::new();
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama");
    let line = |task: &str, number: usize| format!("{{\"text\": \"{task} {number}\"}}\n");
    for (task, holdout) in ["one", "two"].into_iter().zip(holdouts) {
        std::fs::write(scratch.path(&format!("{task}.jsonl")), line(task, 0) + &line(task, 1)).unwrap();
        std::fs::write(scratch.path(&format!("{task}.sealed.jsonl")), holdout).unwrap();
    }
    let text = format!(
        "name = \"run\"\n[models]\nbase = {:?}\nsources = [{:?}, {:?}]\n[space]\nmethod = \"linear\"\n[space.genes]\n\
         weight = {{ low = 0, high = 1, per = [\"model\"] }}\n[budget]\nevaluations = 5\n[evaluator]\nkind = \"native\"\n\
         [[tasks]]\nname = \"one\"\ndata = \"one.jsonl\"\n[[tasks]]\nname = \"two\"\ndata = \"two.jsonl\"\n\
         [holdout]\ntasks = {{ one = {{ data = \"one.sealed.jsonl\" }}, two = {{ data = \"two.sealed.jsonl\" }} }}\n",
        zoo.join("base"),
        zoo.join("expert-add"),
        zoo.join("expert-rev")
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
    let output = scratch.evomerge(&["check", "run.toml", "--json"]);
    (scratch, output)
}

#[cfg(feature = "native")]
#[test]
fn copies_of_a_hold_out_sample_count_once() {
    let (a, b, c) = ("{\"text\": \"a b\"}\n", "{\"text\": \"c d\"}\n", "{\"text\": \"e f\"}\n");
    let checked = |holdouts: [&str; 2]| {
        let (_scratch, output) = with_holdouts(holdouts);
        assert!(output.status.success(), "{}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (report["holdout"].as_str().unwrap().to_owned(), stderr(&output))
    };
    let (holdout, said) = checked([&format!("{a}{b}"), c]);
    assert!(holdout.contains("3 samples") && !said.contains("copies"), "{holdout} {said}");
    let (holdout, said) = checked([&format!("{a}{b}{a}{a}"), &format!("{b}{c}")]);
    assert!(holdout.contains("3 samples"), "{holdout}");
    assert!(said.contains("task `one`: of 4 samples, copies of others: 2"), "{said}");
    assert!(said.contains("task `two`: of 2 samples, copies of others: 1"), "{said}");
    let (_scratch, output) = with_holdouts([&format!("{a}{b}"), a]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    assert!(stderr(&output).contains("task `two`: all of its samples are in the hold-out of another task"));
    // A task without a weight takes no samples from one that has a weight, whichever comes first.
    let (scratch, _) = with_holdouts([a, &format!("{a}{b}")]);
    let text = std::fs::read_to_string(scratch.path("run.toml")).unwrap();
    std::fs::write(scratch.path("run.toml"), text.replace("name = \"one\"", "name = \"one\"\nweight = 0")).unwrap();
    let output = scratch.evomerge(&["check", "run.toml"]);
    assert!(output.status.success() && !stderr(&output).contains("copies"), "{}", stderr(&output));
}

#[cfg(feature = "native")]
#[test]
fn two_tasks_cannot_share_one_hold_out_file() {
    let (scratch, _) = with_holdouts(["{\"text\": \"a\"}\n", "{\"text\": \"b\"}\n"]);
    let text = std::fs::read_to_string(scratch.path("run.toml")).unwrap();
    std::fs::write(scratch.path("run.toml"), text.replace("two.sealed", "one.sealed")).unwrap();
    let output = scratch.evomerge(&["check", "run.toml"]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("is the hold-out of the task \"one\" already"), "{}", stderr(&output));
}

/// An evaluator that gives no scores by sample cannot be promised a paired comparison.
#[test]
fn check_tells_paired_hold_outs_from_unpaired_ones() {
    let (scratch, server) = (Scratch::new(), FaultServer::start(vec![]));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let text = format!(
        "name = \"run\"\nseed = 3\n[models]\nsources = [{:?}, {:?}]\n[space]\nmethod = \"linear\"\n[budget]\nevaluations = 4\n\
         [evaluator]\nkind = \"http\"\nendpoints = [{:?}]\n[[tasks]]\nname = \"rev\"\n[holdout]\ntasks = {{ rev = {{ task = \"add\" }} }}\n",
        golden.join("a"),
        golden.join("b"),
        server.url()
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
    let check = || {
        let output = scratch.evomerge(&["check", "run.toml", "--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let said = String::from_utf8(scratch.evomerge(&["check", "run.toml"]).stdout).unwrap();
        (report.to_string(), said)
    };
    let (_, said) = check();
    assert!(said.contains("over one baseline (80 % power, paired,"), "{said}");
    for task in server.inner.capabilities.lock().unwrap()["tasks"].as_array_mut().unwrap() {
        task["supports"] = serde_json::json!(["limit"]);
    }
    let (report, said) = check();
    // 2.8016 times the root of a half over 20 samples.
    assert!(said.contains("gains from about 0.443 over one baseline") && said.contains("unpaired, since"), "{said}");
    assert!(report.contains("0.4429"), "{report}");
}
