//! What `evomerge status` says of a run, beside it and after it.

#[path = "support/fault_server.rs"]
#[allow(dead_code, reason = "shared with the tests of the HTTP evaluator")]
mod fault_server;
#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use fault_server::{FaultServer, Reply};
use runs::{SPACE, Scratch, TASKS, command, stderr, wait_until};
use serde_json::{Value, json};

/// The document of `evomerge status`; null where there is no run yet.
fn status(scratch: &Scratch) -> Value {
    let output = scratch.evomerge(&["status", "results/run", "--json"]);
    if output.status.success() { serde_json::from_slice(&output.stdout).unwrap() } else { Value::Null }
}

fn status_text(scratch: &Scratch) -> String {
    let output = scratch.evomerge(&["status", "results/run"]);
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A search that goes on beside the test, and not after it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(scratch: &Scratch, run_file: &Path) -> Running {
    let arguments = ["search", run_file.to_str().unwrap(), "--quiet"];
    let mut command = command(scratch.folder.path(), &arguments);
    Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// The verdict comes after the clock: what a search reports, and what the next start goes on from, are one time.
#[test]
fn the_active_time_is_that_of_the_search_alone() {
    let scratch = Scratch::new();
    let slow = "name = \"sphere\"\nsamples = 50\nlatency = \"100ms\"";
    let run_file = scratch.run_file("run", 6, slow, &format!("{SPACE}{TASKS}"));
    let report = scratch.search(&run_file, &[]);
    let status = status(&scratch);
    assert_eq!(report["active_s"], status["active_s"]);
    assert!(report["active_s"].as_f64() >= Some(0.6), "{report}");
}

/// Scoring again and the hold-out may take hours, and are no search with 0 s left.
#[test]
fn what_comes_before_the_verdict_is_told_step_by_step() {
    let scratch = Scratch::new();
    let noisy = "name = \"sphere\"\nsamples = 60\nnoise = 0.4\nlatency = \"200ms\"";
    let run_file = scratch.run_file("run", 8, noisy, &format!("{SPACE}{TASKS}"));
    let mut child = start(&scratch, &run_file);
    let mut seen = Vec::new();
    while child.0.try_wait().unwrap().is_none() {
        seen.extend(Some(status(&scratch)).filter(|status| status["running"] == true));
    }
    assert!(child.0.wait().unwrap().success());
    let mut phases: Vec<&Value> = seen.iter().map(|status| &status["phase"]).collect();
    phases.dedup();
    // At the very end the run has stopped and still holds its lock.
    assert_eq!(phases[..3], ["search", "rescoring", "holdout"], "{seen:?}");
    for (phase, state) in
        [("search", "running"), ("rescoring", "running: scoring finalists again, "), ("holdout", "running: hold-out, ")]
    {
        for status in seen.iter().filter(|status| status["phase"] == phase) {
            let counts = [&status["phase_done"], &status["phase_total"]];
            if phase == "search" {
                assert_eq!((counts, &status["state"]), ([&Value::Null; 2], &json!("running")), "{status}");
                continue;
            }
            assert!(status["left_s"].is_null(), "{status}");
            let [done, total] = counts.map(|count| count.as_u64().unwrap());
            assert!(done <= total && total >= 5, "{status}");
            assert_eq!(status["state"], format!("{state}{done} of {total}"));
        }
    }
    let counted =
        seen.iter().filter(|status| status["phase"] == "rescoring").map(|status| status["phase_done"].as_u64());
    assert!(counted.max().flatten() > Some(0), "{seen:?}");
    let ended = status(&scratch);
    assert_eq!([&ended["phase"], &ended["phase_done"], &ended["phase_total"]], [&Value::Null; 3]);
}

fn run_file(scratch: &Scratch, server: &FaultServer) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let text = format!(
        "name = \"run\"\n[models]\nbase = {:?}\nsources = [{:?}, {:?}]\n[space]\nmethod = \"task_arithmetic\"\n[strategy]\n\
         kind = \"random\"\n[budget]\nevaluations = 100000\n[evaluator]\nkind = \"http\"\nendpoints = [{:?}]\n[[tasks]]\n\
         name = \"add\"\n",
        golden.join("base"),
        golden.join("a"),
        golden.join("b"),
        server.url()
    );
    let path = scratch.path("run.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// A server that takes its time. Port 0 is any free one.
fn slow_server(address: SocketAddr) -> FaultServer {
    let server = FaultServer::start_on(address, Vec::new());
    *server.inner.otherwise.lock().unwrap() = Reply::Slow(Duration::from_millis(50));
    server
}

/// A run that waits for its endpoint is no run that will soon be over.
#[test]
fn an_outage_is_told_while_it_lasts() {
    let scratch = Scratch::new();
    let server = slow_server("127.0.0.1:0".parse().unwrap());
    let url = server.url();
    let child = start(&scratch, &run_file(&scratch, &server));
    wait_until(|| status(&scratch)["finished"].as_u64() >= Some(5));
    let healthy = status(&scratch);
    assert_eq!((&healthy["waiting"], healthy["left_s"].is_f64()), (&json!([]), true), "{healthy}");
    assert!(!status_text(&scratch).contains("waiting"));

    let address = server.address;
    drop(server);
    wait_until(|| status(&scratch)["waiting"].as_array().is_some_and(|waiting| !waiting.is_empty()));
    let away = status(&scratch);
    assert_eq!((away["running"].clone(), away["left_s"].clone()), (json!(true), Value::Null), "{away}");
    let waiting = &away["waiting"][0];
    assert!(waiting["endpoint"].as_str().unwrap().starts_with(&url), "{away}");
    assert!(!waiting["reason"].as_str().unwrap().is_empty(), "{away}");
    let since = waiting["since"].as_str().unwrap();
    let text = status_text(&scratch);
    let told = format!("waiting for {} since {} UTC (", waiting["endpoint"].as_str().unwrap(), &since[11..16]);
    assert!(text.contains(&told) && !text.contains(" left"), "{told}: {text}");

    let server = slow_server(address);
    let before = away["finished"].as_u64();
    wait_until(|| status(&scratch)["finished"].as_u64() > before);
    wait_until(|| status(&scratch)["waiting"] == json!([]));

    // Killed in an outage, a run waits for nobody.
    drop(server);
    wait_until(|| status(&scratch)["waiting"] != json!([]));
    drop(child);
    let killed = status(&scratch);
    assert_eq!((&killed["running"], &killed["waiting"], &killed["phase"]), (&json!(false), &json!([]), &Value::Null));
}

#[test]
fn a_budget_of_samples_is_told_with_what_is_used() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 200", &format!("{SPACE}{TASKS}"));
    let text = std::fs::read_to_string(&run_file).unwrap().replace("evaluations = 12", "samples = 20000");
    std::fs::write(&run_file, text).unwrap();
    scratch.search(&run_file, &[]);
    let used = status(&scratch)["samples_used"].as_u64().unwrap();
    let asked: u64 = scratch.asked().iter().map(|asked| asked.samples).sum();
    assert!(used == asked && (10_000..=20_000).contains(&used), "{used}, {asked}");
    let text = status_text(&scratch);
    assert!(text.contains(&format!("budget       {used} of 20000 samples")), "{text}");
}

/// An attempt that cannot be recorded ends the search, and what the attempt has brought is not asked for again.
#[test]
fn what_was_scored_is_kept_where_its_attempt_cannot_be_recorded() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 8, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
    let ledger = rusqlite::Connection::open(scratch.path("results/run/ledger.sqlite")).unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.kind = 'attempted' \
                  BEGIN SELECT RAISE(ABORT, 'no room to order'); END";
    ledger.execute_batch(refuse).unwrap();
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap(), "--max-evaluations", "12"]);
    assert!(!output.status.success() && stderr(&output).contains("no room to order"), "{}", stderr(&output));
    let after = status(&scratch);
    assert_eq!((&after["finished"], &after["scored"]), (&json!(9), &json!(9)), "{after}");
    assert_eq!(scratch.trials("results", "run").len(), 9);

    ledger.execute_batch("DROP TRIGGER refuse").unwrap();
    assert_eq!(scratch.search(&run_file, &["--max-evaluations", "12"])["evaluations"], 12);
}
