//! The shipped run files on the tiny Llama zoo: merges with known scores, the greedy soup of the sweep, a short search.
#![cfg(feature = "native")]

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::path::{Path, PathBuf};

use runs::{Scratch, stderr};
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run_file(name: &str) -> PathBuf {
    root().join("search-spaces").join(name)
}

fn expert(name: &str) -> String {
    root().join("evals/tiny-llama").join(format!("expert-{name}")).display().to_string()
}

/// A mergekit configuration (JSON is YAML) over the four experts.
fn configuration(method: &str, parameters: &Value, weights: &[f64], density: Option<f64>) -> Value {
    let models: Vec<Value> = ["add", "rev", "sort", "cnt"]
        .iter()
        .zip(weights)
        .map(|(name, weight)| {
            let mut own = json!({ "weight": weight });
            if let Some(density) = density {
                own["density"] = json!(density);
            }
            json!({ "model": expert(name), "parameters": own })
        })
        .collect();
    let mut document =
        json!({ "merge_method": method, "dtype": "bfloat16", "models": models, "parameters": parameters });
    if method != "linear" {
        document["base_model"] = json!(root().join("evals/tiny-llama/base"));
    }
    document
}

/// Merges by the program, scores by the program; exact match by task on the validation data.
fn merge_and_score(scratch: &Scratch, name: &str, configuration: &Value) -> Value {
    let recipe = scratch.path(&format!("{name}.yml"));
    std::fs::write(&recipe, configuration.to_string()).unwrap();
    let merged = scratch.evomerge(&["merge", recipe.to_str().unwrap(), "--out", name]);
    assert!(merged.status.success(), "{name}: {}", stderr(&merged));
    let quickstart = run_file("quickstart.toml");
    let scored = scratch.evomerge(&["evaluate", quickstart.to_str().unwrap(), "--model", name, "--json"]);
    assert!(scored.status.success(), "{name}: {}", stderr(&scored));
    let document: Value = serde_json::from_slice(&scored.stdout).unwrap();
    let score = |task: &str| document["tasks"][task]["metrics"]["exact_match"]["value"].clone();
    json!({ "add": score("add"), "rev": score("rev"), "sort": score("sort"), "cnt": score("cnt") })
}

#[test]
fn merges_score_as_the_reference_merges_did() {
    let text = std::fs::read_to_string(root().join("tests/data/tiny-llama/merges.json")).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    let scratch = Scratch::new();
    let plain = json!({});
    let not_normalized = json!({ "normalize": false });
    let cases = [
        ("linear_uniform", configuration("linear", &plain, &[0.25; 4], None), 0.0),
        // The reference rounds every product, `linear` fuses product and sum: last bits differ, and with them one
        // answer of 200.
        ("linear_weighted", configuration("linear", &plain, &[0.4, 0.3, 0.2, 0.1], None), 0.005),
        ("task_arithmetic", configuration("task_arithmetic", &not_normalized, &[0.4; 4], None), 0.0),
        ("task_arithmetic_mixed", configuration("task_arithmetic", &not_normalized, &[0.5, 0.3, 0.4, 0.6], None), 0.0),
        // The reference keeps every element at the trim threshold; ours keeps exactly k, so some answers differ.
        ("ties_d0.3_l1.0", configuration("ties", &json!({ "lambda": 1.0 }), &[1.0; 4], Some(0.3)), 0.03),
    ];
    for (name, configuration, tolerance) in cases {
        let scores = merge_and_score(&scratch, name, &configuration);
        for task in ["add", "rev", "sort", "cnt"] {
            let (ours, theirs) = (scores[task].as_f64().unwrap(), reference[name]["val"][task].as_f64().unwrap());
            assert!((ours - theirs).abs() <= tolerance + 1e-9, "{name}, {task}: {ours}, reference {theirs}");
        }
    }
}

#[test]
fn the_greedy_soup_of_the_sweep_keeps_the_known_runs() {
    let scratch = Scratch::new();
    let report = scratch.search(&run_file("greedy-soup-sweep.toml"), &["--quiet"]);
    assert_eq!(report["soup"]["members"], json!([9, 10, 11, 7, 6]));
    assert_eq!(report["soup"]["complete"], true);
    let objective = report["best"]["objective"].as_f64().unwrap();
    assert!((objective - 0.84875).abs() < 1e-9, "{objective}");
    let best_run = report["baselines"].as_array().unwrap().iter().find(|row| row["origin"] == "source:run-09").unwrap();
    assert!((best_run["objective"].as_f64().unwrap() - 0.79875).abs() < 1e-9);
}

#[test]
fn a_short_quickstart_is_never_worse_than_its_baselines() {
    let scratch = Scratch::new();
    let report = scratch.search(&run_file("quickstart.toml"), &["--max-evaluations", "14", "--quiet"]);
    assert_eq!(report["evaluations"], 14);
    let best = report["best"]["objective"].as_f64().unwrap();
    for baseline in report["baselines"].as_array().unwrap() {
        assert!(baseline["objective"].as_f64().unwrap() <= best, "{baseline}");
    }
    assert!(report["winner"]["holdout_score"].is_number());
    // The exported model is the candidate that was scored.
    let output = scratch.evomerge(&["export", "results/quickstart", "--out", "model", "--quiet"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let quickstart = run_file("quickstart.toml");
    let scored = scratch.evomerge(&["evaluate", quickstart.to_str().unwrap(), "--model", "model", "--json"]);
    let document: Value = serde_json::from_slice(&scored.stdout).unwrap();
    assert_eq!(document["objective"], report["best"]["objective"]);
    for file in ["README.md", "recipe.toml", "mergekit_config.yml", "tokenizer.json", "config.json"] {
        assert!(scratch.path("model").join(file).is_file(), "{file} is missing");
    }
}

#[test]
fn every_shipped_run_file_can_be_read() {
    for entry in std::fs::read_dir(root().join("search-spaces")).unwrap() {
        let path = entry.unwrap().path();
        evomerge::config::RunConfig::load(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
