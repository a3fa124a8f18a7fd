//! Whole races against an endpoint that takes `limit` only: promotions cannot ask for the missing samples alone, so
//! they are scored anew, and paid in full.

#[path = "support/fault_server.rs"]
#[allow(dead_code, reason = "shared with the tests of the HTTP evaluator")]
mod fault_server;
#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use evomerge::ledger::{AskedRecord, Ledger};
use evomerge::search::export_record;
use fault_server::{FaultServer, Reply, capabilities};
use runs::{Scratch, cell};
use serde_json::{Value, json};

/// Samples of the two tasks, and those of the three rungs: 1/16, 1/4 and all.
const SAMPLES: [(&str, u64); 2] = [("add", 64), ("rev", 32)];
const RUNGS: [(&str, u64); 3] = [("0.0625", 6), ("0.25", 24), ("1", 96)];

/// Whether a candidate answers a sample. Candidates differ in how many they answer.
fn is_right(candidate: &str, task: &str, sample: u64) -> bool {
    let hash = |text: &str| {
        text.bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let skill = 200 + hash(candidate) % 600;
    hash(&format!("{candidate} {task} {sample}")) % 1000 < skill
}

fn accuracy(candidate: &str, task: &str, samples: u64) -> f64 {
    (0..samples).filter(|sample| is_right(candidate, task, *sample)).count() as f64 / samples as f64
}

/// An answer with the candidate's own scores, and none by sample.
fn score(answer: &mut Value) {
    let candidate = answer["candidate_id"].as_str().unwrap().to_owned();
    for (task, scores) in answer["tasks"].as_object_mut().unwrap() {
        let samples = scores["n"].as_u64().unwrap();
        scores["metrics"]["accuracy"]["value"] = json!(accuracy(&candidate, task, samples));
        scores.as_object_mut().unwrap().remove("per_sample");
    }
}

fn server() -> FaultServer {
    let server = FaultServer::start(Vec::new());
    let mut known = capabilities();
    for (task, (_, samples)) in known["tasks"].as_array_mut().unwrap().iter_mut().zip(SAMPLES) {
        task["n_samples"] = json!(samples);
        task["supports"] = json!(["limit", "seed"]);
    }
    *server.inner.capabilities.lock().unwrap() = known;
    *server.inner.otherwise.lock().unwrap() = Reply::Edited(score);
    server
}

fn run_file(scratch: &Scratch, server: &FaultServer, samples: u64) -> PathBuf {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama");
    let text = format!(
        "name = \"run\"\nseed = 3\n[models]\nsources = [{:?}, {:?}]\n[space]\nmethod = \"linear\"\nlayer_groups = 2\n\
         [strategy]\nkind = \"random\"\n[budget]\nsamples = {samples}\n[racing]\nrungs = 3\n[evaluator]\nkind = \"http\"\n\
         endpoints = [{:?}]\n[[tasks]]\nname = \"add\"\n[[tasks]]\nname = \"rev\"\n",
        zoo.join("expert-add"),
        zoo.join("expert-rev"),
        server.url(),
    );
    let path = scratch.path("run.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Samples of the rung with this fidelity.
fn rung(fidelity: f64) -> u64 {
    RUNGS.iter().find(|(name, _)| name.parse() == Ok(fidelity)).map(|(_, samples)| *samples).unwrap()
}

#[test]
fn promotions_are_scored_anew_and_paid_in_full() {
    let (scratch, server) = (Scratch::new(), server());
    let report = scratch.search(&run_file(&scratch, &server, 1500), &["--quiet"]);
    let (trials, asked) = (scratch.trials("results", "run"), scratch.asked());
    assert_eq!(trials.len(), asked.len());

    // What each evaluation asked for: the first samples of each task, by number alone.
    let posts: BTreeMap<String, Value> = server
        .seen("POST")
        .iter()
        .map(|seen| seen.json())
        .map(|post| (post["evaluation_id"].to_string(), post))
        .collect();
    assert_eq!(posts.len(), asked.len(), "an evaluation is one request");
    for record in &asked {
        let post = &posts[&json!(record.evaluation_id).to_string()];
        for (task, (name, all)) in post["tasks"].as_array().unwrap().iter().zip(SAMPLES) {
            assert_eq!(task["name"], name);
            assert!(task["sample_ids"].is_null(), "{task}");
            let wanted = if record.fidelity < 1.0 { json!((all as f64 * record.fidelity) as u64) } else { Value::Null };
            assert_eq!(task["limit"], wanted, "fidelity {}: {task}", record.fidelity);
        }
        // Promotions too: nothing is taken over from the rung before.
        assert_eq!(record.samples, rung(record.fidelity), "{}", record.origin);
    }
    let spent: u64 = asked.iter().map(|record| record.samples).sum();
    assert!(spent <= 1500 && spent + RUNGS[2].1 > 1500, "{spent}");

    let mut promoted = BTreeMap::new();
    for row in &trials {
        let candidate = cell(row, "candidate_id");
        let samples = rung(cell(row, "fidelity").parse().unwrap());
        assert_eq!(cell(row, "n_samples"), samples.to_string());
        for (task, all) in SAMPLES {
            let expected = accuracy(candidate, task, all * samples / RUNGS[2].1);
            let found: f64 = cell(row, &format!("score.{task}.accuracy")).parse().unwrap();
            assert!((found - expected).abs() < 1e-12, "{task}: {found}, {expected}");
        }
        if cell(row, "origin") == "promotion" {
            assert_eq!(cell(row, "parent_ids"), candidate);
            *promoted.entry(cell(row, "fidelity")).or_insert(0) += 1;
        }
    }
    assert!(promoted["0.25"] > promoted["1"] && promoted["1"] > 0, "{promoted:?}");
    let full = trials.iter().filter(|row| cell(row, "fidelity") == "1");
    let best = full.map(|row| cell(row, "objective").parse::<f64>().unwrap()).fold(0.0, f64::max);
    assert_eq!(report["best"]["objective"].as_f64().unwrap(), best);
}

#[test]
fn the_better_candidates_of_a_rung_go_on() {
    let (scratch, server) = (Scratch::new(), server());
    scratch.search(&run_file(&scratch, &server, 2500), &["--quiet"]);
    let trials = scratch.trials("results", "run");
    let of_rung = |fidelity: &str| -> BTreeMap<&str, f64> {
        let rows = trials.iter().filter(|row| cell(row, "fidelity") == fidelity);
        rows.map(|row| (cell(row, "candidate_id"), cell(row, "objective").parse().unwrap())).collect()
    };
    let (first, second) = (of_rung("0.0625"), of_rung("0.25"));
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let (on, off): (Vec<_>, Vec<_>) = first.iter().partition(|(candidate, _)| second.contains_key(*candidate));
    assert!(on.len() > 5 && off.len() > on.len(), "{} of {}", on.len(), first.len());
    let values = |part: Vec<(&&str, &f64)>| part.into_iter().map(|(_, value)| *value).collect::<Vec<f64>>();
    assert!(mean(values(on)) > mean(values(off)) + 0.1);
}

#[test]
fn an_id_names_the_evaluation_on_the_most_samples() {
    let (scratch, server) = (Scratch::new(), server());
    scratch.search(&run_file(&scratch, &server, 2500), &["--quiet"]);
    let ledger = Ledger::open_for_reading(&scratch.path("results/run/ledger.sqlite")).unwrap();
    let mut most: BTreeMap<&str, &AskedRecord> = BTreeMap::new();
    let records = scratch.asked();
    for record in &records {
        let known = most.entry(&record.candidate_id).or_insert(record);
        *known = if record.fidelity > known.fidelity { record } else { *known };
    }
    assert!(most.values().filter(|record| record.origin == "promotion").count() > 5);
    for (id, record) in most {
        let (found, told) = export_record(&ledger, Some(id)).unwrap();
        assert_eq!((found.index, told.unwrap().index), (record.index, record.index));
    }
}

#[test]
fn a_race_with_a_larger_budget_continues_without_paying_twice() {
    let (scratch, server) = (Scratch::new(), server());
    scratch.search(&run_file(&scratch, &server, 700), &["--quiet"]);
    let before = scratch.asked();
    assert_eq!(server.posts(), before.len());
    scratch.search(&run_file(&scratch, &server, 1500), &["--quiet"]);
    let after = scratch.asked();
    assert!(after.len() > before.len());
    assert_eq!(server.posts(), after.len());
    let ids = |records: &[AskedRecord]| -> Vec<String> {
        records.iter().map(|record| record.evaluation_id.clone()).collect()
    };
    assert_eq!(ids(&after)[..before.len()], ids(&before));
    assert_eq!(ids(&after).into_iter().collect::<BTreeSet<_>>().len(), after.len());

    let (whole, fresh) = (Scratch::new(), self::server());
    whole.search(&run_file(&whole, &fresh, 1500), &["--quiet"]);
    assert_eq!(ids(&whole.asked()), ids(&after), "the race is the one that had never stopped");
}

/// The answer of [`score`] with the scores that it is the mean of.
fn score_by_sample(answer: &mut Value) {
    let candidate = answer["candidate_id"].as_str().unwrap().to_owned();
    for (task, scores) in answer["tasks"].as_object_mut().unwrap() {
        let samples = scores["n"].as_u64().unwrap();
        scores["metrics"]["accuracy"]["value"] = json!(accuracy(&candidate, task, samples));
        let right: Vec<f64> = (0..samples).map(|sample| f64::from(is_right(&candidate, task, sample))).collect();
        scores["per_sample"]["scores"]["accuracy"] = json!(right);
    }
}

fn lists(server: &FaultServer, supports: &[&str]) {
    for task in server.inner.capabilities.lock().unwrap()["tasks"].as_array_mut().unwrap() {
        task["supports"] = json!(supports);
    }
}

#[test]
fn a_race_goes_on_as_it_began_when_the_endpoint_can_do_more() {
    let (scratch, server) = (Scratch::new(), server());
    scratch.search(&run_file(&scratch, &server, 700), &["--quiet"]);
    let before = scratch.asked();
    lists(&server, &["limit", "sample_ids", "per_sample", "seed"]);
    *server.inner.otherwise.lock().unwrap() = Reply::Edited(score_by_sample);
    scratch.search(&run_file(&scratch, &server, 1500), &["--quiet"]);
    let after = scratch.asked();
    assert!(after.len() > before.len());
    assert!(after.iter().zip(&before).all(|(now, then)| now.evaluation_id == then.evaluation_id));
    assert!(after[before.len()..].iter().any(|record| record.origin == "promotion"));
    for post in server.seen("POST").iter().map(|seen| seen.json()) {
        assert!(post["tasks"].as_array().unwrap().iter().all(|task| task["sample_ids"].is_null()), "{post}");
    }
    // Without what the race rests on there is no way on.
    lists(&server, &["sample_ids", "per_sample", "seed"]);
    let output = scratch.evomerge(&["search", run_file(&scratch, &server, 2000).to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    for words in ["supports of task add: limit is gone", "supports of task rev: limit is gone", "--fresh"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(scratch.asked().len(), after.len());
}

/// Without parts at the first start there is no race later, and none is needed to go on.
#[test]
fn a_run_that_could_not_race_goes_on_without() {
    let (scratch, server) = (Scratch::new(), server());
    lists(&server, &[]);
    scratch.search(&run_file(&scratch, &server, 700), &["--quiet"]);
    let before = scratch.asked();
    lists(&server, &["limit", "sample_ids"]);
    scratch.search(&run_file(&scratch, &server, 1200), &["--quiet"]);
    let after = scratch.asked();
    assert!(after.len() > before.len() && after.iter().all(|record| record.fidelity == 1.0));
}

/// Earlier versions did not record what a race rests on.
#[test]
fn a_race_of_an_earlier_version_goes_on() {
    let (scratch, server) = (Scratch::new(), server());
    scratch.search(&run_file(&scratch, &server, 700), &["--quiet"]);
    let before = scratch.asked();
    let ledger = rusqlite::Connection::open(scratch.path("results/run/ledger.sqlite")).unwrap();
    assert_eq!(ledger.execute("DELETE FROM facts WHERE key = 'race_basis'", []).unwrap(), 1);
    scratch.search(&run_file(&scratch, &server, 1500), &["--quiet"]);
    assert!(scratch.asked().len() > before.len());
}
