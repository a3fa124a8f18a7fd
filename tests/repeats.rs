//! Candidates that are scored again: finalists before the verdict, and a sentinel now and then, through the program.

#[path = "support/fault_server.rs"]
#[allow(dead_code, reason = "shared with the tests of the HTTP evaluator")]
mod fault_server;
#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use evomerge::ledger::{Ledger, RepeatPurpose, RepeatRecord};
use evomerge::scores::Status;
use fault_server::{FaultServer, Reply, capabilities};
use runs::{SPACE, Scratch, TASKS, cell, command, stderr, wait_until};
use serde_json::{Value, json};

fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What a candidate is worth, below 0.5.
fn skill(candidate: &str) -> f64 {
    (hash(candidate) % 1000) as f64 / 2000.0
}

/// Every fourth candidate is lucky once.
fn luck(candidate: &str) -> f64 {
    if hash(&format!("luck of {candidate}")).is_multiple_of(4) { 0.5 } else { 0.0 }
}

fn set_accuracy(answer: &mut Value, accuracy: f64) {
    for scores in answer["tasks"].as_object_mut().unwrap().values_mut() {
        scores["metrics"]["accuracy"] = json!({ "value": accuracy, "stderr": 0.02 });
        scores.as_object_mut().unwrap().remove("per_sample");
    }
}

/// Luck does not strike twice.
fn lucky(request: &Value, answer: &mut Value) {
    let candidate = request["candidate"]["id"].as_str().unwrap();
    let luck = if request["replicate"] == 0 { luck(candidate) } else { 0.0 };
    set_accuracy(answer, skill(candidate) + luck);
}

/// The second time that the sentinel is scored again, something has happened to the endpoint.
fn drifting(request: &Value, answer: &mut Value) {
    let candidate = request["candidate"]["id"].as_str().unwrap();
    let lost = if request["replicate"].as_u64() > Some(2) { 0.2 } else { 0.0 };
    set_accuracy(answer, 0.3 + 0.5 * skill(candidate) - lost);
}

/// An endpoint whose answers may vary, without scores by sample.
fn server(score: fn(&Value, &mut Value)) -> FaultServer {
    let server = FaultServer::start(Vec::new());
    let mut known = capabilities();
    known["deterministic"] = json!(false);
    for task in known["tasks"].as_array_mut().unwrap() {
        task["supports"] = json!(["limit", "sample_ids", "seed"]);
    }
    *server.inner.capabilities.lock().unwrap() = known;
    *server.inner.otherwise.lock().unwrap() = Reply::Scored(score);
    server
}

fn run_file(scratch: &Scratch, server: &FaultServer, more: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let text = format!(
        "name = \"run\"\nseed = 3\n[models]\nbase = {:?}\nsources = [{:?}, {:?}]\n[space]\nmethod = \"task_arithmetic\"\n\
         layer_groups = 2\n[strategy]\nkind = \"random\"\nlook_ahead = 2\n[budget]\nevaluations = 20\n[evaluator]\nkind = \"http\"\n\
         endpoints = [{:?}]\nmax_attempts = 2\n[[tasks]]\nname = \"add\"\n[[tasks]]\nname = \"rev\"\n{more}",
        golden.join("base"),
        golden.join("a"),
        golden.join("b"),
        server.url()
    );
    let path = scratch.path("run.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn repeats(scratch: &Scratch, results: &str) -> Vec<RepeatRecord> {
    let ledger = Ledger::open_for_reading(&scratch.path(results).join("run/ledger.sqlite")).unwrap();
    ledger.all_repeats().unwrap()
}

/// Requests by evaluation id, with the number of times that each came.
fn posts(server: &FaultServer) -> BTreeMap<String, (Value, usize)> {
    let mut posts: BTreeMap<String, (Value, usize)> = BTreeMap::new();
    for seen in server.seen("POST") {
        assert_eq!(seen.header("idempotency-key"), seen.json()["evaluation_id"].as_str());
        let id = seen.json()["evaluation_id"].as_str().unwrap().to_owned();
        posts.entry(id).or_insert((seen.json(), 0)).1 += 1;
    }
    posts
}

#[test]
fn a_lucky_candidate_does_not_carry_the_verdict() {
    let (scratch, server) = (Scratch::new(), server(lucky));
    let holdout = "[holdout]\nfraction = 0.4\nfinalists = 4\n";
    let report = scratch.search(&run_file(&scratch, &server, holdout), &[]);
    let trials = scratch.trials("results", "run");
    assert_eq!(trials.len(), 20, "scoring again has no row and costs no budget");

    let mut ranked: Vec<(&str, f64)> =
        trials.iter().map(|row| (cell(row, "candidate_id"), cell(row, "objective").parse().unwrap())).collect();
    ranked.sort_by(|first, second| second.1.total_cmp(&first.1));
    let mean = |candidate: &str| skill(candidate) + 0.5 * luck(candidate);
    let baseline = report["baseline"]["candidate_id"].as_str().unwrap();
    let candidates: BTreeSet<&str> = ranked[..4].iter().map(|(id, _)| *id).chain([baseline]).collect();
    let expected = candidates.iter().copied().max_by(|first, second| mean(first).total_cmp(&mean(second))).unwrap();

    let winner = &report["winner"];
    assert_eq!(winner["candidate_id"], expected);
    assert_ne!(winner["candidate_id"], ranked[0].0, "the seed was chosen so that the luckiest is not the best");
    assert_eq!(report["best"]["candidate_id"], expected);
    assert!((winner["rescored"].as_f64().unwrap() - skill(expected)).abs() < 1e-12);
    // Of the one that the search scores alone would have chosen: the winner's own second score has chosen it, too.
    assert!((report["rescoring_over_statement"].as_f64().unwrap() - luck(ranked[0].0)).abs() < 1e-12);
    let lucky = report["finalists"].as_array().unwrap().iter().find(|finalist| finalist["candidate_id"] == ranked[0].0);
    let lucky = lucky.unwrap();
    assert!((lucky["search_score"].as_f64().unwrap() - lucky["rescored"].as_f64().unwrap() - 0.5).abs() < 1e-12);
    assert!(report["sentence"].as_str().unwrap().contains("Scored again on the search samples"));

    // One request each, under an id of its own, of the very samples of the search.
    let posts = posts(&server);
    let again: Vec<&Value> = posts.values().map(|(post, _)| post).filter(|post| post["replicate"] == 1).collect();
    let asked: BTreeSet<&str> = again.iter().map(|post| post["candidate"]["id"].as_str().unwrap()).collect();
    assert_eq!(asked, candidates);
    assert_eq!((again.len(), posts.values().all(|(_, times)| *times == 1)), (candidates.len(), true));
    for post in again {
        let of_it =
            posts.values().map(|(post, _)| post).filter(|other| other["candidate"]["id"] == post["candidate"]["id"]);
        assert!(of_it.clone().any(|other| other["replicate"] == 0 && other["tasks"] == post["tasks"]));
    }

    // Whatever speaks of the best speaks of the winner.
    let recipe = std::fs::read_to_string(scratch.path("results/run/best/recipe.toml")).unwrap();
    let ledger = Ledger::open_for_reading(&scratch.path("results/run/ledger.sqlite")).unwrap();
    assert_eq!(ledger.all_asked().unwrap().iter().find(|asked| asked.candidate_id == expected).unwrap().recipe, recipe);
    let status = scratch.evomerge(&["status", "results/run", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["best"]["candidate_id"], expected);
    assert_eq!(status["scored_again"], candidates.len());
    // The second score says why one with a lower first score is called the best.
    assert_eq!(status["best"]["rescored"], winner["rescored"]);
    assert_eq!(status["best_baseline"]["rescored"], report["baseline"]["rescored"]);
    let text = scratch.evomerge(&["status", "results/run"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    let [first, again] = ["search_score", "rescored"].map(|key| winner[key].as_f64().unwrap());
    let line = format!("best         {first:.4}, {again:.4} when scored again  {expected} (");
    assert!(text.contains(&line), "{line}: {text}");
    let verdict = std::fs::read_to_string(scratch.path("results/run/verdict.json")).unwrap();
    let verdict: Value = serde_json::from_str(&verdict).unwrap();
    assert_eq!((&verdict["winner"], &verdict["finalists"]), (winner, &report["finalists"]));

    // Started once more, everything is on record.
    let before = server.posts();
    let text = scratch.evomerge(&["search", "run.toml"]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("again"), "{}", stderr(&text));
    assert_eq!(server.posts(), before);
    let more = scratch.search(Path::new("run.toml"), &["--max-evaluations", "24"]);
    assert_eq!(more["evaluations"], 24);
    assert!(self::posts(&server).values().all(|(_, times)| *times == 1));
}

/// Of baselines alone, the second score turns the order: whoever wins is a baseline, and no improvement on one.
#[test]
fn the_best_baseline_is_the_best_by_both_scores() {
    let server = server(|request, answer| {
        let skill = skill(request["candidate"]["id"].as_str().unwrap());
        set_accuracy(answer, if request["replicate"] == 1 { 1.0 - 2.0 * skill } else { skill });
    });
    let scratch = Scratch::new();
    let path = run_file(&scratch, &server, "[holdout]\nfraction = 0.4\nfinalists = 4\n");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("evaluations = 20", "evaluations = 4")).unwrap();
    let report = scratch.search(&path, &[]);
    let searched: Vec<f64> =
        scratch.trials("results", "run").iter().map(|row| cell(row, "objective").parse().unwrap()).collect();
    let worst = searched.iter().copied().fold(1.0, f64::min);
    assert_eq!(report["winner"]["search_score"], worst);
    assert_eq!(report["baseline"], report["winner"]);
    assert_eq!(report["verdict"], "no_evidence");
    assert!(report["sentence"].as_str().unwrap().contains("is the best baseline itself"), "{report}");
}

/// Trials of the greedy soup are no baselines, however lucky: a winner among them is compared with the soup.
#[test]
fn what_the_greedy_soup_tried_is_no_baseline() {
    /// Candidates of each run in the order in which they came.
    static SEEN: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());
    // Of two scores, those of the soups higher than those of the sources; answers to the same samples vary.
    let server = server(|request, answer| {
        let [candidate, run] =
            [&request["candidate"]["id"], &request["run"]["name"]].map(|text| text.as_str().unwrap());
        let mut seen = SEEN.lock().unwrap();
        let seen = seen.entry(run.to_owned()).or_default();
        if !seen.iter().any(|other| other == candidate) {
            seen.push(candidate.to_owned());
        }
        let is_trial = seen.iter().position(|other| other == candidate) >= Some(5);
        let first = hash(&format!("{candidate} {run}")) % 2 + if is_trial { 2 } else { 0 };
        let again = hash(&format!("{run} again {candidate}")) % 11;
        set_accuracy(answer, if request["replicate"] == 0 { first } else { again } as f64 / 10.0);
    });
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let scratch = Scratch::new();
    let (mut of_trials, mut ties) = (0, 0);
    for (seed, keep) in (0..12).flat_map(|seed| [(seed, "better"), (seed, "not_worse")]) {
        let has_second = keep == "better";
        let text = format!(
            "name = \"{keep}-{seed}\"\nseed = {seed}\n[models]\nsources = [{:?}, {:?}, {:?}, {:?}]\n[strategy]\nkind = \"greedy-soup\"\n\
             keep = \"{keep}\"\n[budget]\nevaluations = 20\n[evaluator]\nkind = \"http\"\nendpoints = [{:?}]\n[[tasks]]\n\
             name = \"add\"\n[repeats]\nfinalists = {has_second}\n",
            golden.join("base"),
            golden.join("a"),
            golden.join("b"),
            golden.join("c"),
            server.url(),
        );
        std::fs::write(scratch.path("run.toml"), text).unwrap();
        let report = scratch.search(Path::new("run.toml"), &["--quiet"]);
        let (winner, baseline, soup) = (&report["winner"], &report["baseline"], &report["soup_index"]);
        for row in [winner, baseline] {
            assert!(row["origin"] != "greedy_soup" || row["index"] == *soup, "{report}");
        }
        of_trials += u32::from(winner["origin"] == "greedy_soup_trial");
        assert!(winner["origin"] != "greedy_soup_trial" || has_second, "the soup comes before its equals: {report}");
        let rows = report["baselines"].as_array().unwrap();
        let has_equal = |row: &&Value| row["index"] == *soup && row["origin"] == "greedy_soup";
        let value = rows.iter().find(has_equal).map(|row| row["objective"].as_f64().unwrap());
        let earlier = rows.iter().filter(|row| row["index"].as_u64() < soup.as_u64());
        ties +=
            u32::from(!has_second && value.is_some() && earlier.clone().any(|row| row["objective"].as_f64() == value));
        let status = scratch.evomerge(&["status", &format!("results/{keep}-{seed}"), "--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(status["best"]["index"], winner["index"], "{report}");
        assert_eq!(status["best_baseline"]["index"], baseline["index"], "{report}");
    }
    assert!(of_trials > 0 && ties > 0, "the test needs some: {of_trials}, {ties}");
}

#[test]
fn a_run_without_a_holdout_chooses_among_its_finalists_too() {
    let (scratch, server) = (Scratch::new(), server(lucky));
    let report = scratch.search(&run_file(&scratch, &server, ""), &[]);
    assert_eq!(report["verdict"], "no_holdout");
    assert_eq!(report["finalists"].as_array().unwrap().len(), 5);
    assert!(report["winner"]["rescored"].is_f64());

    let other = Scratch::new();
    let report = other.search(&run_file(&other, &server, "[repeats]\nfinalists = false\n"), &[]);
    assert_eq!(report["finalists"].as_array().unwrap().len(), 1);
    assert!(report["winner"]["rescored"].is_null() && report["rescoring_over_statement"].is_null());
    assert!(repeats(&other, "results").is_empty());
}

#[test]
fn a_finalist_that_cannot_be_scored_again_is_no_winner() {
    let (scratch, server) = (
        Scratch::new(),
        server(|request, answer| {
            let candidate = request["candidate"]["id"].as_str().unwrap();
            set_accuracy(answer, skill(candidate));
            if request["replicate"] == 1 && skill(candidate) > 0.4 {
                let error =
                    json!({"code": "candidate_invalid", "class": "candidate", "title": "gone", "detail": "gone"});
                answer["status"] = json!("failed");
                answer["error"] = error;
            }
        }),
    );
    let report = scratch.search(&run_file(&scratch, &server, "[repeats]\nsentinel = 0\n"), &[]);
    let best = report["winner"]["search_score"].as_f64().unwrap();
    let trials = scratch.trials("results", "run");
    let scores = trials.iter().map(|row| cell(row, "objective").parse::<f64>().unwrap());
    assert!(scores.clone().any(|score| score > 0.4), "the test needs one");
    let expected = scores.filter(|score| *score <= 0.4).fold(0.0, f64::max);
    assert!(repeats(&scratch, "results").iter().any(|repeat| repeat.status == Status::Scored), "the test needs one");
    assert_eq!(best, expected);
    assert!(repeats(&scratch, "results").iter().any(|repeat| repeat.status == Status::Infeasible));
}

/// Killed while finalists are being scored again: nothing that was answered is asked again, and what was on its way is
/// asked under the same id.
#[test]
fn a_kill_while_finalists_are_scored_again_loses_nothing() {
    let calm = Scratch::new();
    let quiet = server(lucky);
    let holdout = "[holdout]\nfraction = 0.4\n";
    let expected = calm.search(&run_file(&calm, &quiet, holdout), &["--quiet"]);

    let (scratch, server) = (Scratch::new(), server(lucky));
    server.inner.posts.lock().unwrap().extend(vec![Reply::Scored(lucky); 22]);
    *server.inner.otherwise.lock().unwrap() = Reply::Hang;
    let run_file = run_file(&scratch, &server, holdout);
    let arguments = ["search", run_file.to_str().unwrap(), "--quiet"];
    let mut child = command(scratch.folder.path(), &arguments).stdout(Stdio::null()).spawn().unwrap();
    wait_until(|| server.posts() >= 23);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(repeats(&scratch, "results").len(), 2);

    *server.inner.otherwise.lock().unwrap() = Reply::Scored(lucky);
    let report = scratch.search(&run_file, &["--quiet"]);
    for key in ["winner", "finalists", "baseline", "verdict", "sentence", "rescoring_over_statement"] {
        assert_eq!(report[key], expected[key], "{key}");
    }
    let twice = posts(&server).values().filter(|(_, times)| *times == 2).count();
    assert_eq!((twice, server.posts()), (1, quiet.posts() + 1));
    assert_eq!(scratch.trials("results", "run"), calm.trials("results", "run"));
}

#[test]
fn a_sentinel_that_drifts_raises_an_alarm_and_changes_no_proposal() {
    let (scratch, server) = (Scratch::new(), server(drifting));
    let report = scratch.search(&run_file(&scratch, &server, "[repeats]\nfinalists = false\nsentinel = 6\n"), &[]);
    let made = repeats(&scratch, "results");
    // At 6, 12 and 18 of 20 evaluations.
    let soup = scratch.trials("results", "run")[3].clone();
    assert_eq!(cell(&soup, "origin"), "uniform_soup");
    assert!(made.iter().all(|repeat| repeat.index == 3 && repeat.purpose == RepeatPurpose::Sentinel));
    assert_eq!(made.iter().map(|repeat| repeat.replicate).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(made.iter().map(|repeat| repeat.alarm.is_null()).collect::<Vec<_>>(), [true, false, false]);
    let alarms = report["alarms"].as_array().unwrap();
    assert_eq!((alarms.len(), &alarms[0]["kind"]), (1, &json!("sentinel_drift")));
    let message = alarms[0]["message"].as_str().unwrap();
    for word in ["sentinel", cell(&soup, "candidate_id"), "-0.2000", "--fresh"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    let verdict = std::fs::read_to_string(scratch.path("results/run/verdict.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&verdict).unwrap()["alarms"], report["alarms"]);
    let status = scratch.evomerge(&["status", "results/run"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("sentinel"), "{status:?}");
    // While a search runs there is no verdict to read it from.
    std::fs::remove_file(scratch.path("results/run/verdict.json")).unwrap();
    let status = scratch.evomerge(&["status", "results/run", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&status.stdout).unwrap()["alarms"], report["alarms"]);

    let without = Scratch::new();
    let calm = without.search(&run_file(&without, &server, "[repeats]\nfinalists = false\nsentinel = 0\n"), &[]);
    assert_eq!(calm["alarms"], json!([]));
    assert_eq!(without.trials("results", "run"), scratch.trials("results", "run"));
}

/// Given up, it has told nothing of the evaluator: it is asked once more at the end.
#[test]
fn a_sentinel_that_was_given_up_is_scored_at_the_end() {
    let server = server(|request, answer| {
        set_accuracy(answer, skill(request["candidate"]["id"].as_str().unwrap()));
        if request["replicate"] == 2 {
            answer["status"] = json!("failed");
            answer["error"] = json!({"code": "busy", "class": "infrastructure", "title": "busy", "detail": "busy"});
        }
    });
    let scratch = Scratch::new();
    scratch.search(&run_file(&scratch, &server, "[repeats]\nfinalists = false\nsentinel = 18\n"), &[]);
    let made: Vec<(u32, Status)> =
        repeats(&scratch, "results").iter().map(|repeat| (repeat.replicate, repeat.status)).collect();
    assert_eq!(made, [(2, Status::Failed), (3, Status::Scored)]);
}

/// Merges the golden models, which takes about as long as the merge of a candidate, and ends later than one that began
/// before.
fn merge_once() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let scratch = Scratch::new();
    let text = format!(
        "merge_method: task_arithmetic\nbase_model: {:?}\nmodels: [{{model: {:?}}}, {{model: {:?}}}]\n\
         parameters: {{weight: 0.5}}\n",
        golden.join("base"),
        golden.join("a"),
        golden.join("b")
    );
    std::fs::write(scratch.path("recipe.yml"), text).unwrap();
    let output = scratch.evomerge(&["merge", "recipe.yml", "--out", "merged"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

/// What was merged ahead when the time was up leaves its slot to those that are scored again.
#[test]
fn no_more_candidates_lie_about_at_the_end_than_there_are_slots() {
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let server = server(|request, answer| {
        set_accuracy(answer, skill(request["candidate"]["id"].as_str().unwrap()));
        if request["replicate"] == 0 {
            // Slow enough that the time is up long before the budget is.
            std::thread::sleep(Duration::from_millis(100));
            return;
        }
        let folder = Path::new(request["candidate"]["source"]["path"].as_str().unwrap()).parent().unwrap();
        let candidates = || {
            let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| !name.to_string_lossy().starts_with('.')).count()
        };
        // Until one was merged ahead, once: behind the last that is scored again, none is.
        let deadline = Instant::now() + Duration::from_secs(20);
        while MOST.load(Ordering::Relaxed) < 2 && candidates() < 2 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        // One more would be merged by the end of this, if it might be: its merge would have begun already.
        merge_once();
        MOST.fetch_max(candidates(), Ordering::Relaxed);
    });
    let scratch = Scratch::new();
    let path = run_file(&scratch, &server, "[repeats]\nsentinel = 0\n");
    let text = std::fs::read_to_string(&path).unwrap().replace("evaluations = 20", "evaluations = 1000");
    std::fs::write(&path, text).unwrap();
    let report = scratch.search(&path, &["--wall-clock", "2s"]);
    assert!(report["reason"].as_str().unwrap().contains("wall clock"), "{report}");
    assert!(repeats(&scratch, "results").len() > 2);
    assert_eq!(MOST.load(Ordering::Relaxed), 2, "one that is evaluated, and one merged ahead");
}

#[test]
fn a_sentinel_is_quiet_where_only_chance_is_at_work() {
    let scratch = Scratch::new();
    let rest = format!("{SPACE}{TASKS}[repeats]\nsentinel = 4\n");
    let noise = |name: &str| format!("name = \"{name}\"\nsamples = 60\nnoise = 0.4\nlatency = \"15ms\"\nin_flight = 3");
    let run_file = scratch.run_file("run", 60, &noise("sphere"), &rest);
    let report = scratch.search(&run_file, &["--results", "calm"]);
    assert_eq!(report["alarms"], json!([]));
    let made = repeats(&scratch, "calm");
    let sentinels = made.iter().filter(|repeat| repeat.purpose == RepeatPurpose::Sentinel).count();
    assert!((14..=15).contains(&sentinels), "{sentinels}");
    assert_eq!(made.len() - sentinels, 6, "five finalists and the best baseline, which was none of them");

    // Killed now and then, the search is the same, and so is its end.
    for told in [5, 14, 22, 31, 40] {
        let arguments = ["search", run_file.to_str().unwrap(), "--results", "stormy", "--quiet"];
        scratch.kill_at(&arguments, "stormy/run", told);
    }
    let stormy = scratch.search(&run_file, &["--results", "stormy"]);
    assert_eq!(scratch.trials("calm", "run"), scratch.trials("stormy", "run"));
    for key in ["winner", "finalists", "baseline", "verdict", "rescoring_over_statement"] {
        assert_eq!(stormy[key], report[key], "{key}");
    }
    let ids: Vec<String> = repeats(&scratch, "stormy").into_iter().map(|repeat| repeat.evaluation_id).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
}

#[test]
fn deterministic_evaluators_are_not_asked_twice() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 60, "name = \"sphere\"", &format!("{SPACE}{TASKS}"));
    let report = scratch.search(&run_file, &[]);
    assert!(repeats(&scratch, "results").is_empty() && report["winner"]["rescored"].is_null());
    let check = |run_file: &Path| {
        let output = scratch.evomerge(&["check", run_file.to_str().unwrap()]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(check(&run_file).contains("nothing: the evaluator is deterministic"), "{}", check(&run_file));

    let noisy = scratch.run_file("noisy", 60, "name = \"sphere\"\nnoise = 0.1", &format!("{SPACE}{TASKS}"));
    let text = check(&noisy);
    for word in ["5 finalists and the best baseline", "every 50", "7 evaluations at most, outside the budget"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

/// A program that says nothing of itself may vary; the run file can say that it does not.
#[test]
fn a_command_is_deterministic_if_the_run_file_says_so() {
    let scratch = Scratch::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let script = "echo x >> calls; echo '{\"tasks\": {\"t\": {\"metrics\": {\"score\": {\"value\": 0.5}}}}}' > $1";
    std::fs::write(scratch.path("score.sh"), script).unwrap();
    for (says, calls) in [("", 11), ("deterministic = true\n", 6)] {
        let _ = std::fs::remove_file(scratch.path("calls"));
        let text = format!(
            "name = \"run\"\n[models]\nbase = {:?}\nsources = [{:?}, {:?}]\n[space]\nmethod = \"task_arithmetic\"\n[strategy]\n\
             kind = \"random\"\n[budget]\nevaluations = 6\n[evaluator]\nkind = \"command\"\nargv = [\"sh\", \"score.sh\", \
             \"{{result_file}}\"]\n{says}[[tasks]]\nname = \"t\"\n",
            golden.join("base"),
            golden.join("a"),
            golden.join("b"),
        );
        std::fs::write(scratch.path("run.toml"), text).unwrap();
        scratch.search(Path::new("run.toml"), &["--fresh", "--quiet"]);
        assert_eq!(std::fs::read_to_string(scratch.path("calls")).unwrap().lines().count(), calls, "{says}");
    }
}
