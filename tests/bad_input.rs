//! Bad input at the program's edge: a clear error, the right exit code, nothing lost.

#[path = "support/fault_server.rs"]
#[allow(dead_code, reason = "shared with the tests of the HTTP evaluator")]
mod fault_server;
#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;
#[path = "support/skipping.rs"]
mod skipping;

use std::path::{Path, PathBuf};
use std::process::Output;

use fault_server::{FaultServer, Reply};
use runs::{Scratch, command, stderr, wait_until};
use skipping::skip;

/// A scratch folder with copies of the golden models `base`, `a` and `b`, and a run file that scores them over HTTP.
struct Run {
    scratch: Scratch,
}

impl Run {
    fn new() -> Self {
        let scratch = Scratch::new();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
        for model in ["base", "a", "b"] {
            let folder = scratch.path(model);
            std::fs::create_dir(&folder).unwrap();
            for file in ["config.json", "model.safetensors"] {
                std::fs::copy(golden.join(model).join(file), folder.join(file)).unwrap();
            }
        }
        Self { scratch }
    }

    fn weights(&self, model: &str) -> PathBuf {
        self.scratch.path(model).join("model.safetensors")
    }

    fn write(&self, endpoint: &str, evaluations: u64, more: &str) -> PathBuf {
        let text = format!(
            "name = \"run\"\nseed = 3\n[models]\nbase = \"base\"\nsources = [\"a\", \"b\"]\n[space]\nmethod = \"task_arithmetic\"\n\
             [budget]\nevaluations = {evaluations}\n[evaluator]\nkind = \"http\"\nendpoints = [\"{endpoint}\"]\n\
             startup_timeout = \"1s\"\nmax_outage = \"1s\"\ntimeout = \"20s\"\n[[tasks]]\nname = \"add\"\n[[tasks]]\nname = \"rev\"\n{more}"
        );
        let path = self.scratch.path("run.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A run file with another `[evaluator]`, and one task.
    fn write_other(&self, evaluator: &str, task: &str) -> PathBuf {
        let text = format!(
            "name = \"run\"\n[models]\nbase = \"base\"\nsources = [\"a\", \"b\"]\n[space]\nmethod = \"task_arithmetic\"\n\
             [budget]\nevaluations = 8\n[evaluator]\n{evaluator}\n[[tasks]]\nname = \"t\"\n{task}\n"
        );
        let path = self.scratch.path("run.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn search(&self, run_file: &Path) -> Output {
        self.scratch.evomerge(&["search", run_file.to_str().unwrap()])
    }

    /// A search against a healthy endpoint, after the inputs were spoilt.
    fn refused(&self, code: i32, words: &[&str]) {
        let server = FaultServer::start(vec![]);
        let run_file = self.write(&server.url(), 8, "");
        let output = self.search(&run_file);
        expect(&output, code, words);
        assert_eq!(server.posts(), 0, "nothing may be evaluated");
    }
}

fn expect(output: &Output, code: i32, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn a_healthy_run_ends_well_and_leaves_no_candidates() {
    let run = Run::new();
    let server = FaultServer::start(vec![]);
    let candidates = run.scratch.path("candidates");
    let more = format!("[candidates]\ndir = \"{}\"\n", candidates.display());
    let output = run.search(&run.write(&server.url(), 8, &more));
    expect(&output, 0, &[]);
    assert_eq!(server.posts(), 8);
    let left: Vec<_> = std::fs::read_dir(&candidates).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let frozen = std::fs::read_to_string(run.scratch.path("results/run/run.toml")).unwrap();
    assert!(frozen.contains("Content ids"), "{frozen}");
}

#[test]
fn a_missing_model() {
    let run = Run::new();
    std::fs::remove_dir_all(run.scratch.path("b")).unwrap();
    run.refused(65, &["not found", &run.scratch.path("b").display().to_string()]);
    // Nobody waits for an evaluator to hear of it.
    let output = run.search(&run.write("http://127.0.0.1:1", 8, ""));
    expect(&output, 65, &["not found", &run.scratch.path("b").display().to_string()]);
}

#[test]
fn truncated_weights() {
    let run = Run::new();
    let bytes = std::fs::read(run.weights("b")).unwrap();
    std::fs::write(run.weights("b"), &bytes[..bytes.len() / 2]).unwrap();
    run.refused(65, &["b/model.safetensors"]);
}

#[test]
fn a_header_longer_than_the_file() {
    let run = Run::new();
    let mut bytes = std::fs::read(run.weights("a")).unwrap();
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(run.weights("a"), bytes).unwrap();
    run.refused(65, &["a/model.safetensors", "header"]);
}

#[test]
fn nan_in_a_source() {
    let run = Run::new();
    let mut bytes = std::fs::read(run.weights("a")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(run.weights("a"), bytes).unwrap();
    run.refused(65, &["NaN", "tensor"]);
}

#[test]
fn shapes_that_differ() {
    let run = Run::new();
    let bytes = std::fs::read(run.weights("a")).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
    assert!(header.contains("[24,40]") && header.contains("[40,24]"));
    // The same bytes under swapped dimensions: a valid file that does not fit the others.
    let swapped = header.replace("[24,40]", "[??]").replace("[40,24]", "[24,40]").replace("[??]", "[40,24]");
    let mut changed = bytes[..8].to_vec();
    changed.extend(swapped.as_bytes());
    changed.extend(&bytes[8 + length..]);
    std::fs::write(run.weights("a"), changed).unwrap();
    run.refused(65, &["down_proj", "40"]);
}

#[test]
fn an_unknown_merge_method_gets_a_suggestion() {
    let run = Run::new();
    let server = FaultServer::start(vec![]);
    let run_file = run.write(&server.url(), 8, "");
    let text = std::fs::read_to_string(&run_file).unwrap().replace("task_arithmetic", "task_arithmatic");
    std::fs::write(&run_file, text).unwrap();
    expect(&run.search(&run_file), 78, &["task_arithmatic", "task_arithmetic"]);
}

#[test]
fn a_recipe_with_an_unsupported_key() {
    let run = Run::new();
    let recipe = run.scratch.path("recipe.yml");
    std::fs::write(
        &recipe,
        "merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: 1.0}\nmodules:\n  text: {}\n",
    )
    .unwrap();
    let output = run.scratch.evomerge(&["merge", "recipe.yml", "--out", "merged"]);
    expect(&output, 65, &["modules"]);
    assert!(!run.scratch.path("merged").exists());
}

#[test]
fn an_endpoint_that_is_down_at_the_start() {
    let run = Run::new();
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let output = run.search(&run.write(&format!("http://{address}"), 8, ""));
    expect(&output, 75, &[&address.to_string(), "start it, and give the same command again"]);
}

#[test]
fn an_endpoint_that_dies_and_comes_back_for_the_next_start() {
    let run = Run::new();
    let server = FaultServer::start(vec![]);
    let address = server.address;
    *server.inner.otherwise.lock().unwrap() = Reply::Cut;
    server.inner.posts.lock().unwrap().extend(vec![Reply::Good; 3]);
    server.inner.healths.lock().unwrap().extend([Reply::Good]);
    let run_file = run.write(&server.url(), 8, "");
    let child = {
        let arguments = ["search", run_file.to_str().unwrap()];
        command(run.scratch.folder.path(), &arguments)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    wait_until(|| server.posts() >= 4);
    drop(server);
    let output = child.wait_with_output().unwrap();
    expect(&output, 75, &["out of reach"]);

    let server = FaultServer::start_on(address, vec![]);
    let output = run.search(&run_file);
    expect(&output, 0, &["continuing"]);
    assert_eq!(server.posts(), 5, "three of eight were recorded");
}

#[test]
fn html_nan_and_wrong_ids_never_become_scores() {
    for (reply, word) in [
        (
            Reply::Status(200, &[("Content-Type", "text/html")], "<html>It works!</html>".into()),
            "no evaluation document",
        ),
        (Reply::Edited(|answer| answer["evaluation_id"] = "ev_other".into()), "evaluation_id"),
        (
            Reply::Edited(|answer| answer["tasks"]["add"]["metrics"]["accuracy"]["value"] = serde_json::Value::Null),
            "accuracy",
        ),
    ] {
        let run = Run::new();
        let server = FaultServer::start(vec![]);
        *server.inner.otherwise.lock().unwrap() = reply;
        let run_file = run.write(&server.url(), 8, "");
        let text =
            std::fs::read_to_string(&run_file).unwrap().replace("startup_timeout", "max_attempts = 1\nstartup_timeout");
        std::fs::write(&run_file, text).unwrap();
        let output = run.search(&run_file);
        expect(&output, 75, &[word]);
        let csv = std::fs::read_to_string(run.scratch.path("results/run/trials.csv")).unwrap();
        assert!(!csv.contains("scored"), "{csv}");
    }
}

#[test]
fn an_unknown_task_stops_the_run_and_names_the_known_ones() {
    let run = Run::new();
    let server = FaultServer::start(vec![]);
    let output = run.search(&run.write(&server.url(), 8, "[[tasks]]\nname = \"ad\"\n"));
    expect(&output, 78, &["unknown task", "add", "rev"]);
}

#[test]
fn a_source_that_changed_is_refused_on_resume() {
    let run = Run::new();
    let server = FaultServer::start(vec![]);
    let run_file = run.write(&server.url(), 6, "");
    expect(&run.search(&run_file), 0, &[]);
    std::fs::copy(run.weights("b"), run.weights("a")).unwrap();
    expect(&run.search(&run_file), 78, &["models.sources: a has other weights", "--fresh"]);
}

#[test]
fn a_full_disk_stops_the_run_and_the_next_start_goes_on() {
    let run = Run::new();
    let server = FaultServer::start(vec![]);
    let small = run.scratch.path("small");
    std::fs::create_dir(&small).unwrap();
    let more = format!("[candidates]\ndir = \"{}\"\n", small.display());
    let run_file = run.write(&server.url(), 6, &more);
    // A file system of 64 kB in a mount namespace of its own: real ENOSPC, no root needed where user namespaces are
    // allowed.
    let script = format!(
        "mount -t tmpfs -o size=64k tmpfs {} && exec {} search {}",
        small.display(),
        assert_cmd::cargo::cargo_bin!("evomerge").display(),
        run_file.display()
    );
    let unshare = |script: &str| {
        std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
            .current_dir(run.scratch.folder.path())
            .output()
    };
    if !unshare("mount -t tmpfs tmpfs /mnt").is_ok_and(|output| output.status.success()) {
        return skip("namespaces", "there are no user namespaces: a full disk cannot be made");
    }
    let output = unshare(&script).unwrap();
    expect(&output, 73, &["small"]);
    expect(&run.search(&run_file), 0, &[]);
    assert_eq!(server.posts(), 6);
}

#[test]
fn missing_task_data_is_bad_data() {
    let run = Run::new();
    std::fs::write(run.scratch.path("t.jsonl"), "{\"text\": \"a\"}\n").unwrap();
    let holdout = "data = \"t.jsonl\"\n[holdout]\ntasks = { t = { data = \"gone.jsonl\" } }";
    for (task, key) in [("data = \"gone.jsonl\"", "`tasks[0].data`"), (holdout, "`holdout.tasks.t.data`")] {
        let output = run.search(&run.write_other("kind = \"native\"", task));
        expect(&output, 65, &["run.toml: line ", key, "no such file", "gone.jsonl"]);
    }
}

#[test]
#[cfg(feature = "native")]
fn task_data_that_does_not_do_is_named() {
    let run = Run::new();
    let search = |data: &str, metric: &str| {
        std::fs::write(run.scratch.path("t.jsonl"), data).unwrap();
        run.search(&run.write_other("kind = \"native\"", &format!("data = \"t.jsonl\"\n{metric}")))
    };
    expect(&search("{\"text\":", ""), 65, &["t.jsonl: line 1: not JSON: EOF while parsing a value (column 8)"]);
    let output = search("{\"text\": \"a\"}\n", "metric = \"acc\"");
    expect(&output, 78, &["`tasks`: the `metric` of task `t` is `acc`", "t.jsonl", "bits_per_byte"]);
}

#[test]
fn a_program_that_is_not_there() {
    let run = Run::new();
    let evaluator = "kind = \"command\"\nargv = [\"no-such-program-anywhere\", \"{result_file}\"]";
    let output = run.search(&run.write_other(evaluator, ""));
    expect(&output, 78, &["`evaluator.argv`: \"no-such-program-anywhere\" is no program in PATH"]);
}

/// Everything that is wrong with a run file alone, before anything is asked of the endpoint.
#[test]
fn a_run_file_that_cannot_work_is_refused_before_anything_is_spent() {
    let run = Run::new();
    let server = FaultServer::start(vec![]);
    let good = std::fs::read_to_string(run.write(&server.url(), 8, "")).unwrap();
    for (from, to, words) in [
        (
            "evaluations = 8",
            "evaluations = 3",
            vec!["budget.evaluations = 3", "4 evaluations of the baselines", "at least 4"],
        ),
        ("evaluations = 8", "samples = 119", vec!["budget.samples = 119", "120 samples", "at least 120"]),
        (
            "[budget]",
            "[space.genes]\nweight = { low = 1.5, high = 0.5 }\n[budget]",
            vec!["space.genes.weight", "line", "low", "1.5", "0.5"],
        ),
        (
            "[budget]",
            "[space.genes]\nweight = { low = 0.5, high = 0.5 }\n[budget]",
            vec!["space.genes.weight", "freezes"],
        ),
        ("sources = [\"a\", \"b\"]", "sources = []", vec!["models.sources"]),
        (
            "base = \"base\"\nsources = [\"a\", \"b\"]\n[space]\nmethod = \"task_arithmetic\"",
            "sources = [\"a\"]\n[space]\nmethod = \"linear\"",
            vec!["models.sources", "one model (`a`)", "models.base", "nothing to search"],
        ),
        (
            "sources = [\"a\", \"b\"]\n[space]\nmethod = \"task_arithmetic\"",
            "sources = [\"a\"]\n[space]\nmethod = \"linear\"",
            vec!["one model (`a`)", "linear takes no base", "nothing to search"],
        ),
        (
            "[[tasks]]\nname = \"rev\"",
            "[[tasks]]\nname = \"rev\"\n[holdout]\ntasks = { add = { task = \"rev\" }, rev = { task = \"add\" } }",
            vec!["holdout.tasks.add.task", "search itself uses"],
        ),
        ("[[tasks]]\nname = \"rev\"", "weight = 0", vec!["tasks", "weight"]),
        ("[budget]", "[repeats]\nsentinels = 4\n[budget]", vec!["repeats.sentinels", "sentinel"]),
        ("[budget]", "[repeats]\nsentinel = -1\n[budget]", vec!["repeats.sentinel"]),
    ] {
        assert!(good.contains(from), "{from}");
        let run_file = run.scratch.path("run.toml");
        std::fs::write(&run_file, good.replace(from, to)).unwrap();
        for command in ["check", "search"] {
            let output = run.scratch.evomerge(&[command, run_file.to_str().unwrap()]);
            expect(&output, 78, &words);
        }
        assert_eq!(server.posts(), 0, "{to}");
        assert!(!run.scratch.path("results/run/ledger.sqlite").exists(), "{to}");
    }
}

#[test]
fn one_source_over_a_base_is_a_search_like_others() {
    let run = Run::new();
    let server = FaultServer::start(vec![]);
    let run_file = run.write(&server.url(), 8, "");
    let text = std::fs::read_to_string(&run_file).unwrap().replace("[\"a\", \"b\"]", "[\"a\"]");
    std::fs::write(&run_file, text).unwrap();
    let output = run.scratch.evomerge(&["search", run_file.to_str().unwrap(), "--json"]);
    expect(&output, 0, &[]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let origins: Vec<_> = report["baselines"].as_array().unwrap().iter().map(|row| &row["origin"]).collect();
    assert_eq!(origins, ["base", "source:a"]);
    assert_eq!(server.posts(), 8);
}

/// Every evaluation is given up: the run stops, and what was recorded stays.
#[test]
fn an_evaluator_that_always_fails_stops_the_run() {
    let scratch = Scratch::new();
    let run_file =
        scratch.run_file("run", 40, "name = \"sphere\"\nfault_rate = 1.0", &format!("{}{}", runs::SPACE, runs::TASKS));
    for _ in 0..2 {
        let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
        expect(&output, 75, &["given up", "something is wrong with the evaluator", "a fault to order"]);
    }
    let trials = scratch.trials("results", "run");
    assert!(trials.len() > 5 && trials.iter().all(|row| runs::cell(row, "status") == "failed"));
    let output = scratch.evomerge(&["export", "results/run", "--out", "model"]);
    expect(&output, 65, &["no scored candidate"]);
    // Nothing was scored, so that nothing is final: a run with a healthy evaluator is as good as a new one.
    let text = std::fs::read_to_string(&run_file).unwrap().replace("fault_rate = 1.0", "fault_rate = 0.0");
    std::fs::write(&run_file, text).unwrap();
    let report = scratch.search(&run_file, &[]);
    assert_eq!((&report["scored"], &report["failed"]), (&40.into(), &0.into()));
    assert!(report["baseline"].is_object() && report["alarms"] == serde_json::json!([]), "{report}");
}

/// Without a sample on which anybody differs there is no evidence, and no division by nothing.
#[test]
fn scores_without_variance_end_in_no_evidence() {
    let run = Run::new();
    let server = FaultServer::start(vec![]);
    *server.inner.otherwise.lock().unwrap() = Reply::Edited(|answer| {
        for task in answer["tasks"].as_object_mut().unwrap().values_mut() {
            let n = task["n"].as_u64().unwrap();
            task["metrics"]["accuracy"] = serde_json::json!({ "value": 1.0, "stderr": 0.0 });
            task["per_sample"]["scores"]["accuracy"] = vec![1.0; n as usize].into();
        }
    });
    let run_file = run.write(&server.url(), 10, "[holdout]\nfraction = 0.4\n");
    let output = run.scratch.evomerge(&["search", run_file.to_str().unwrap(), "--json"]);
    expect(&output, 0, &[]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["verdict"], &report["difference"]), (&"no_evidence".into(), &0.0.into()));
    assert_eq!(report["alarms"][0]["kind"], "flat_fitness");
}

#[test]
fn evaluate_writes_scores_sample_by_sample() {
    let run = Run::new();
    let server = FaultServer::start(vec![]);
    let run_file = run.write(&server.url(), 8, "");
    let evaluate = |more: &[&str]| {
        let arguments = [&["evaluate", run_file.to_str().unwrap(), "--model", "a", "--json"], more].concat();
        run.scratch.evomerge(&arguments)
    };
    let output = evaluate(&["--samples", "deep/a.csv"]);
    expect(&output, 0, &[]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut reader = csv::Reader::from_path(run.scratch.path("deep/a.csv")).unwrap();
    assert_eq!(reader.headers().unwrap(), vec!["task", "sample", "metric", "score"]);
    let rows: Vec<(String, i64, String, f64)> = reader.deserialize().map(Result::unwrap).collect();
    for (task, samples) in [("add", 20), ("rev", 10)] {
        let of_task: Vec<_> = rows.iter().filter(|row| row.0 == task).collect();
        assert_eq!(of_task.iter().map(|row| row.1).collect::<Vec<_>>(), (0..samples).collect::<Vec<_>>());
        assert!(of_task.iter().all(|row| row.2 == "accuracy"));
        let mean = of_task.iter().map(|row| row.3).sum::<f64>() / samples as f64;
        assert!((mean - report["tasks"][task]["metrics"]["accuracy"]["value"].as_f64().unwrap()).abs() < 1e-9);
    }

    // An evaluator that gives none: the scores are shown, and that there is no file is an error.
    *server.inner.otherwise.lock().unwrap() = Reply::Edited(|answer| {
        for task in answer["tasks"].as_object_mut().unwrap().values_mut() {
            task.as_object_mut().unwrap().remove("per_sample");
        }
    });
    let mut known = fault_server::capabilities();
    for task in known["tasks"].as_array_mut().unwrap() {
        task["supports"] = serde_json::json!(["limit"]);
    }
    *server.inner.capabilities.lock().unwrap() = known;
    let output = evaluate(&["--samples", "none.csv"]);
    expect(&output, 65, &["none.csv", "no scores by sample for add, rev"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"objective\""));
    assert!(!run.scratch.path("none.csv").exists());
}

/// A candidate that cannot be scored is bad data; an evaluator that fails is worth another try.
#[test]
fn evaluate_says_by_its_exit_code_whose_fault_it_was() {
    let run = Run::new();
    let server = FaultServer::start(vec![]);
    *server.inner.otherwise.lock().unwrap() = Reply::Edited(|answer| {
        answer["status"] = "failed".into();
        answer["error"] = serde_json::json!({
            "code": "candidate_invalid", "class": "candidate", "title": "no model", "detail": "these weights are no model",
        });
    });
    let evaluate = |run_file: &Path| {
        run.scratch.evomerge(&["evaluate", run_file.to_str().unwrap(), "--model", "a", "--samples", "samples.csv"])
    };
    let output = evaluate(&run.write(&server.url(), 8, ""));
    expect(&output, 65, &["the candidate cannot be scored", "these weights are no model"]);
    *server.inner.otherwise.lock().unwrap() = Reply::Edited(|answer| answer["evaluation_id"] = "ev_other".into());
    let run_file = run.write(&server.url(), 8, "");
    let text =
        std::fs::read_to_string(&run_file).unwrap().replace("startup_timeout", "max_attempts = 1\nstartup_timeout");
    std::fs::write(&run_file, text).unwrap();
    let output = evaluate(&run_file);
    expect(&output, 75, &["given up after all attempts"]);
    assert!(output.stdout.is_empty() && !run.scratch.path("samples.csv").exists());
}

#[test]
#[cfg(target_os = "linux")]
fn a_result_that_cannot_be_written_to_standard_output_is_an_error() {
    let run = Run::new();
    let server = FaultServer::start(vec![]);
    let run_file = run.write(&server.url(), 8, "");
    let to = |arguments: &[&str], stdout: std::process::Stdio| {
        command(run.scratch.folder.path(), arguments).stdout(stdout).output().unwrap()
    };
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into();
    let search = ["search", run_file.to_str().unwrap()];
    expect(&to(&search, full()), 73, &["standard output"]);
    for arguments in [&["methods"][..], &["methods", "--json"], &["status", "results/run"], &["check", "run.toml"]] {
        expect(&to(arguments, full()), 73, &["standard output"]);
    }
    // The search itself was recorded.
    expect(&run.search(&run_file), 0, &["continuing"]);
    assert_eq!(server.posts(), 8);

    // A reader that went away has seen what it wanted.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = to(&["methods"], writer.into());
    expect(&output, 0, &[]);
    assert_eq!(stderr(&output), "");
}
