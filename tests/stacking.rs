//! Searches that stack layers: the shipped run file on the tiny Llama zoo, and every strategy on a landscape.
#![cfg(feature = "native")]

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::path::{Path, PathBuf};

use runs::{Scratch, cell, stderr};
use serde_json::Value;

/// Layers of each model of the zoo.
const LAYERS: usize = 4;
/// `max_layers` of the shipped run file.
const MOST: usize = 6;

fn run_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("search-spaces/layer-stacking.toml")
}

fn json(output: &std::process::Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Slots of a row that are filled; nothing for baselines.
fn filled(row: &[(String, String)]) -> usize {
    let slots = row.iter().filter(|(column, _)| column.starts_with("gene.stack."));
    slots.filter(|(_, value)| !value.is_empty() && value != "(none)").count()
}

#[test]
fn check_makes_room_for_the_largest_candidate() {
    let scratch = Scratch::new();
    let findings = json(&scratch.evomerge(&["check", run_file().to_str().unwrap(), "--json"]));
    assert_eq!(findings["layers"], serde_json::json!([1, MOST]));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama/expert-add/model.safetensors");
    let source = std::fs::metadata(source).unwrap().len();
    let expected = findings["candidate_bytes"].as_u64().unwrap();
    // Two layers more than a source: about half as much again, less embeddings and head.
    assert!(expected > source * 5 / 4 && expected < source * 3 / 2, "{expected} of {source}");
}

#[test]
fn stacked_candidates_are_models_of_their_own_height() {
    let scratch = Scratch::new();
    scratch.search(&run_file(), &["--max-evaluations", "16", "--quiet"]);
    let rows = scratch.trials("results", "layer-stacking");
    assert_eq!(rows.len(), 16);
    assert!(rows.iter().all(|row| cell(row, "status") == "scored"), "{rows:?}");
    let height = |row: &[(String, String)]| filled(row).min(MOST);
    let heights: Vec<usize> = rows.iter().map(|row| height(row)).filter(|count| *count > 0).collect();
    assert!(heights.iter().any(|count| *count > LAYERS) && heights.iter().any(|count| *count < LAYERS), "{heights:?}");

    let tallest = rows.iter().max_by_key(|row| height(row)).unwrap();
    let id = cell(tallest, "candidate_id");
    let exported =
        scratch.evomerge(&["export", "results/layer-stacking", "--candidate", id, "--out", "model", "--quiet"]);
    assert!(exported.status.success(), "{}", stderr(&exported));
    let config: Value = serde_json::from_slice(&std::fs::read(scratch.path("model/config.json")).unwrap()).unwrap();
    assert_eq!(config["num_hidden_layers"], height(tallest));

    let run_file = run_file();
    let scored = json(&scratch.evomerge(&["evaluate", run_file.to_str().unwrap(), "--model", "model", "--json"]));
    assert_eq!(scored["objective"].as_f64().unwrap(), cell(tallest, "objective").parse::<f64>().unwrap());

    // What mergekit would be given is the same merge.
    let yaml = scratch.path("model/mergekit_config.yml");
    let merged = scratch.evomerge(&["merge", yaml.to_str().unwrap(), "--out", "again", "--quiet"]);
    assert!(merged.status.success(), "{}", stderr(&merged));
    let weights = |folder: &str| std::fs::read(scratch.path(folder).join("model.safetensors")).unwrap();
    assert!(weights("model") == weights("again"));
}

#[test]
fn a_merged_model_is_stacked_beside_its_sources() {
    let scratch = Scratch::new();
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama");
    let text = std::fs::read_to_string(run_file()).unwrap();
    let (before, rest) = text.split_once("[space]").unwrap();
    let (_, after) = rest.split_once("[strategy]").unwrap();
    let space = "[space]\nmethod = ['linear', 'ties']\ngranularity = 2\n[space.genes]\nweight = { per = ['model'] }\n\
                 [space.stack]\nwith_sources = true\n[strategy]";
    let text = format!("{before}{space}{after}").replace("../evals/tiny-llama", zoo.to_str().unwrap());
    let text = text.replace("[models]", &format!("[models]\nbase = '{}'", zoo.join("base").display()));
    let path = scratch.path("run.toml");
    std::fs::write(&path, text.replace("\"genetic\"", "\"random\"")).unwrap();
    scratch.search(&path, &["--max-evaluations", "14", "--quiet"]);
    let rows = scratch.trials("results", "layer-stacking");
    assert!(rows.iter().all(|row| cell(row, "status") == "scored"), "{rows:?}");
    let used = |choice: &str| {
        rows.iter().flatten().any(|(column, value)| column.starts_with("gene.stack.") && value == choice)
    };
    assert!(["(merged)", "expert-add", "expert-rev"].into_iter().all(used));
}

#[test]
fn every_strategy_searches_a_stack_and_continues_it() {
    const SPACE: &str = "[models]\nsources = [\"a\", \"b\", \"c\"]\n[space]\nmethod = \"passthrough\"\nlayer_groups = 4\n\
        [space.stack]\npasses = 3\nmax_layers = 8\n[[tasks]]\nname = \"one\"\n";
    let scratch = Scratch::new();
    for kind in ["genetic", "nsga2", "cma-es", "tpe", "random", "sobol", "portfolio"] {
        let rest = format!("{SPACE}[strategy]\nkind = \"{kind}\"\n");
        let path = scratch.run_file(kind, 60, "name = \"sphere\"", &rest);
        scratch.search(&path, &["--max-evaluations", "25", "--quiet"]);
        // Proposes all of it again, and stops where a proposal is not the recorded one.
        scratch.search(&path, &["--quiet"]);
        let rows = scratch.trials("results", kind);
        assert_eq!(rows.len(), 60, "{kind}");
        // A duplicate would have taken no index.
        let ids: std::collections::BTreeSet<&str> = rows.iter().map(|row| cell(row, "candidate_id")).collect();
        assert_eq!(ids.len(), 60, "{kind}");
    }
}
