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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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

/// Evaluations that the server of the test of phases may answer, and how many have come.
static ALLOWED: AtomicUsize = AtomicUsize::new(0);
static CAME: AtomicUsize = AtomicUsize::new(0);

/// Answers when the test allows it.
fn when_allowed(_: &Value, _: &mut Value) {
    let number = CAME.fetch_add(1, Ordering::SeqCst);
    while ALLOWED.load(Ordering::SeqCst) <= number {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The status of a run whose server may answer so many evaluations, once it has got there.
fn status_after(scratch: &Scratch, allowed: usize, is_there: impl Fn(&Value) -> bool) -> Value {
    ALLOWED.store(allowed, Ordering::SeqCst);
    let mut last = Value::Null;
    wait_until(|| {
        last = status(scratch);
        is_there(&last)
    });
    last
}

/// Scoring again and the hold-out may take hours, and are no search with 0 s left.
#[test]
fn what_comes_before_the_verdict_is_told_step_by_step() {
    let scratch = Scratch::new();
    let server = FaultServer::start(Vec::new());
    *server.inner.otherwise.lock().unwrap() = Reply::Scored(when_allowed);
    let rest = "[repeats]\nfinalists = true\nsentinel = 0\n[holdout]\nfraction = 0.4\n";
    let mut child = start(&scratch, &run_file(&scratch, 8, &[server.url()], "", rest));

    let search = status_after(&scratch, 3, |status| status["finished"] == 3);
    assert_eq!((&search["phase"], &search["state"]), (&json!("search"), &json!("running")), "{search}");
    assert_eq!([&search["phase_done"], &search["phase_total"]], [&Value::Null; 2], "{search}");
    assert!(search["left_s"].is_f64(), "{search}");
    let mut allowed = 8;
    for (phase, state) in [("rescoring", "running: scoring finalists again, "), ("holdout", "running: hold-out, ")] {
        let begun = status_after(&scratch, allowed, |status| status["phase"] == phase);
        let total = begun["phase_total"].as_u64().unwrap();
        assert!(total >= 5, "{begun}");
        let later = status_after(&scratch, allowed + 1, |status| status["phase_done"] == 1);
        for (status, done) in [(begun, 0), (later, 1)] {
            assert_eq!((&status["phase"], &status["phase_done"]), (&json!(phase), &json!(done)), "{status}");
            assert_eq!(status["state"], format!("{state}{done} of {total}"));
            assert!(status["left_s"].is_null() && status["running"] == true, "{status}");
        }
        allowed += total as usize;
    }
    ALLOWED.store(usize::MAX, Ordering::SeqCst);
    // Who has released its lock has left word of its end.
    while child.0.try_wait().unwrap().is_none() {
        let status = status(&scratch);
        let is_at_it = status["phase"] == "holdout" && status["running"] == true;
        let has_ended = status["phase"].is_null() && status["state"].as_str().unwrap().starts_with("finished: ");
        assert!(is_at_it || has_ended, "{status}");
    }
    assert!(child.0.wait().unwrap().success());
    let ended = status(&scratch);
    assert_eq!([&ended["phase"], &ended["phase_done"], &ended["phase_total"]], [&Value::Null; 3]);
}

/// A run file for these endpoints, with more of the evaluator's keys and more tables.
fn run_file(scratch: &Scratch, evaluations: u64, endpoints: &[String], evaluator: &str, tables: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let text = format!(
        "name = \"run\"\n[models]\nbase = {:?}\nsources = [{:?}, {:?}]\n[space]\nmethod = \"task_arithmetic\"\n[strategy]\n\
         kind = \"random\"\n[budget]\nevaluations = {evaluations}\n[evaluator]\nkind = \"http\"\n\
         endpoints = {endpoints:?}\n{evaluator}[[tasks]]\nname = \"add\"\n{tables}",
        golden.join("base"),
        golden.join("a"),
        golden.join("b")
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
    let run_file = run_file(&scratch, 100_000, &[server.url()], "", "");
    let child = start(&scratch, &run_file);
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

    // Of the next start, which waits for the endpoint before it begins, nothing is on record yet.
    let _preparing = start(&scratch, &run_file);
    wait_until(|| status(&scratch)["running"] == true);
    let preparing = status(&scratch);
    assert_eq!((&preparing["waiting"], &preparing["phase"]), (&json!([]), &json!("search")), "{preparing}");
}

/// Answers in turns sooner and later, so that some come after others were refused.
fn unevenly(_: &Value, _: &mut Value) {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let turn = TURN.fetch_add(1, Ordering::SeqCst) as u64;
    std::thread::sleep(Duration::from_millis(50 + turn % 2 * 700));
}

/// While one endpoint can be asked, the search goes on, whoever else is away; when none can, what is still answered does
/// not tell how long it takes.
#[test]
fn the_time_left_is_told_as_long_as_somebody_can_be_asked() {
    let scratch = Scratch::new();
    // Nobody listens at a port that only the system may give away.
    let away = "http://127.0.0.1:1".to_owned();
    let server = FaultServer::start(Vec::new());
    server.inner.capabilities.lock().unwrap()["limits"]["max_inflight"] = json!(2);
    *server.inner.otherwise.lock().unwrap() = Reply::Scored(unevenly);
    let more = "in_flight = 2\nstartup_timeout = \"200ms\"\n";
    let _child = start(&scratch, &run_file(&scratch, 100_000, &[away.clone(), server.url()], more, ""));
    wait_until(|| status(&scratch)["finished"].as_u64() >= Some(4));
    let one = status(&scratch);
    let names = |status: &Value| -> Vec<String> {
        let waiting = status["waiting"].as_array().unwrap();
        waiting.iter().map(|waiting| waiting["endpoint"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((names(&one), one["left_s"].is_f64()), (vec![away], true), "{one}");

    drop(server);
    wait_until(|| names(&status(&scratch)).len() == 2);
    // Longer than what was under way took.
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        let none = status(&scratch);
        assert_eq!((names(&none).len(), &none["left_s"]), (2, &Value::Null), "{none}");
    }
}

/// A start makes the ledger before it writes to it, and may be killed in between.
#[test]
fn a_ledger_in_which_nothing_is_recorded_is_not_called_foreign() {
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.path("results/run")).unwrap();
    std::fs::write(scratch.path("results/run/ledger.sqlite"), "").unwrap();
    for arguments in [
        &["status", "results/run"][..],
        &["export", "results/run", "--out", "model"],
        &["simulate", "results/run/ledger.sqlite"],
    ] {
        let output = scratch.evomerge(arguments);
        assert_eq!(output.status.code(), Some(65), "{arguments:?}: {}", stderr(&output));
        let text = stderr(&output);
        assert!(text.contains("nothing is recorded") && !text.contains("not a ledger"), "{arguments:?}: {text}");
    }
    let run_file = scratch.run_file("run", 6, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
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
