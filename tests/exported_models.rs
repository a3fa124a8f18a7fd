//! Models made from what a run recorded: from the inputs that the run had, and never in their place.

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runs::{Scratch, cell, stderr};

/// Scores merges higher than the models that they are made of.
const SCORE: &str = "if grep -q task_arithmetic $1; then score=0.9; else score=0.5; fi\n\
                     echo \"{\\\"tasks\\\": {\\\"t\\\": {\\\"metrics\\\": {\\\"score\\\": {\\\"value\\\": $score}}}}}\" > $2\n";

fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder)
}

fn copy_model(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A scratch folder with copies of the golden models `base`, `a` and `b`.
fn models() -> Scratch {
    let scratch = Scratch::new();
    for model in ["base", "a", "b"] {
        copy_model(&fixtures("golden/models").join(model), &scratch.path(model));
    }
    scratch
}

/// The same with a finished search over them in `results/run`.
fn finished_run(evaluations: u64) -> Scratch {
    let scratch = models();
    std::fs::write(scratch.path("score.sh"), SCORE).unwrap();
    let text = format!(
        "name = \"run\"\nseed = 3\n[models]\nbase = \"base\"\nsources = [\"a\", \"b\"]\n[space]\nmethod = \"task_arithmetic\"\n\
         [strategy]\nkind = \"random\"\n[budget]\nevaluations = {evaluations}\n[evaluator]\nkind = \"command\"\n\
         argv = [\"sh\", \"score.sh\", \"{{recipe_file}}\", \"{{result_file}}\"]\ndeterministic = true\n[[tasks]]\nname = \"t\"\n"
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
    let report = scratch.search(Path::new("run.toml"), &["--quiet"]);
    assert_eq!(report["best"]["origin"], "random", "the best is to be a merge of all models");
    scratch
}

fn weights(scratch: &Scratch, model: &str) -> Vec<u8> {
    std::fs::read(scratch.path(model).join("model.safetensors")).unwrap()
}

/// A command that must fail like this.
fn refused(scratch: &Scratch, arguments: &[&str], code: i32, words: &[&str]) {
    let output = scratch.evomerge(arguments);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    words.iter().for_each(|word| assert!(text.contains(word), "{arguments:?}: `{word}` is not in: {text}"));
}

fn succeeds(scratch: &Scratch, arguments: &[&str]) {
    let output = scratch.evomerge(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
}

const RECIPE: &str = "results/run/best/recipe.toml";

#[test]
fn a_model_that_changed_since_the_search_is_not_taken_for_the_one_that_was_searched() {
    let scratch = finished_run(6);
    succeeds(&scratch, &["export", "results/run", "--out", "exported"]);
    succeeds(&scratch, &["merge", RECIPE, "--out", "merged"]);
    assert!(weights(&scratch, "exported") == weights(&scratch, "merged"));

    let own = weights(&scratch, "a");
    std::fs::write(scratch.path("a/model.safetensors"), weights(&scratch, "b")).unwrap();
    let changed = scratch.path("a").canonicalize().unwrap();
    let words = ["made from another", changed.to_str().unwrap(), "then", "now", "[content]"];
    refused(&scratch, &["export", "results/run", "--out", "late"], 65, &words);
    refused(&scratch, &["merge", RECIPE, "--out", "late"], 65, &words);
    assert!(!scratch.path("late").exists());
    // Nothing is wrong with the models that another candidate is made of.
    succeeds(&scratch, &["export", "results/run", "--out", "of-base", "--candidate", "0"]);

    // Without content ids, a recipe is for whatever is there.
    let text = std::fs::read_to_string(scratch.path(RECIPE)).unwrap();
    let (without, _) = text.split_once("[content]").unwrap();
    std::fs::write(scratch.path("without.toml"), without).unwrap();
    succeeds(&scratch, &["merge", "without.toml", "--out", "of-now"]);
    assert!(weights(&scratch, "of-now") != weights(&scratch, "merged"));

    std::fs::write(scratch.path("a/model.safetensors"), own).unwrap();
    succeeds(&scratch, &["export", "results/run", "--out", "again"]);
    assert!(weights(&scratch, "again") == weights(&scratch, "exported"));
}

#[test]
fn force_never_replaces_a_model_that_is_read_or_a_folder_that_one_lies_in() {
    let scratch = finished_run(6);
    let files = || -> BTreeMap<&str, Vec<u8>> {
        ["base", "a", "b"].into_iter().map(|model| (model, weights(&scratch, model))).collect()
    };
    let before = files();
    std::os::unix::fs::symlink(scratch.path("a"), scratch.path("link-to-a")).unwrap();
    for out in ["a", "base", "./b/../b", "link-to-a", "."] {
        let words = ["would replace the model", "give another folder"];
        refused(&scratch, &["merge", RECIPE, "--out", out, "--force"], 2, &words);
        refused(&scratch, &["export", "results/run", "--out", out, "--force"], 2, &words);
        assert!(files() == before, "{out}");
    }
    // What a folder holds counts, not what it is called: weights behind a link, and the recipe.
    std::fs::create_dir(scratch.path("linked")).unwrap();
    std::fs::copy(scratch.path("a/config.json"), scratch.path("linked/config.json")).unwrap();
    std::fs::create_dir(scratch.path("store")).unwrap();
    std::fs::copy(scratch.path("a/model.safetensors"), scratch.path("store/model.safetensors")).unwrap();
    std::os::unix::fs::symlink("../store/model.safetensors", scratch.path("linked/model.safetensors")).unwrap();
    let recipe = "merge_method: linear\nmodels: [{model: ../linked, parameters: {weight: 1.0}}]\n";
    std::fs::create_dir(scratch.path("recipes")).unwrap();
    std::fs::write(scratch.path("recipes/r.yml"), recipe).unwrap();
    refused(&scratch, &["merge", "recipes/r.yml", "--out", "store", "--force"], 2, &["would replace the model"]);
    refused(&scratch, &["merge", "recipes/r.yml", "--out", "recipes", "--force"], 2, &["r.yml", "another folder"]);
    assert!(scratch.path("recipes/r.yml").is_file());
    // Others may be replaced: an earlier output, and a model that this candidate is not made of.
    succeeds(&scratch, &["merge", RECIPE, "--out", "merged"]);
    succeeds(&scratch, &["merge", RECIPE, "--out", "merged", "--force"]);
    succeeds(&scratch, &["export", "results/run", "--out", "b", "--candidate", "0", "--force"]);
    assert!(weights(&scratch, "b") != before["b"] && weights(&scratch, "a") == before["a"]);
}

#[test]
fn force_never_replaces_an_adapter_that_is_read() {
    let scratch = Scratch::new();
    copy_model(&fixtures("peft/models/llama"), &scratch.path("llama"));
    copy_model(&fixtures("peft/adapters/plain"), &scratch.path("plain"));
    let recipe = "merge_method: linear\nmodels:\n- model: llama+plain\n  parameters: {weight: 1.0}\n";
    std::fs::write(scratch.path("recipe.yml"), recipe).unwrap();
    for out in ["plain", "llama"] {
        let arguments = ["merge", "recipe.yml", "--out", out, "--force"];
        refused(&scratch, &arguments, 2, &["would replace the model", "llama+plain"]);
    }
    assert!(scratch.path("plain/adapter_model.safetensors").is_file());
    succeeds(&scratch, &["merge", "recipe.yml", "--out", "merged", "--force"]);
}

#[test]
fn an_index_names_its_evaluation_although_ids_begin_with_the_same_digits() {
    let scratch = finished_run(16);
    let trials = scratch.trials("results", "run");
    let ids: Vec<&str> = trials.iter().map(|row| cell(row, "candidate_id")).collect();
    let is_ambiguous = |index: &usize| {
        let digits = index.to_string();
        ids.iter().enumerate().any(|(other, id)| other != *index && id.starts_with(&digits))
    };
    let ambiguous: Vec<usize> = (0..ids.len()).filter(is_ambiguous).collect();
    assert!(!ambiguous.is_empty(), "the test needs an id that begins with an index: {ids:?}");
    for index in ambiguous {
        let wanted = index.to_string();
        let arguments = ["export", "results/run", "--out", "out", "--force", "--json", "--candidate", &wanted];
        let output = scratch.evomerge(&arguments);
        assert!(output.status.success(), "{index}: {}", stderr(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["index"], &report["candidate_id"]), (&index.into(), &ids[index].into()));
    }
    let arguments = ["export", "results/run", "--out", "by-id", "--json", "--candidate", &ids[4][..12]];
    let report: serde_json::Value = serde_json::from_slice(&scratch.evomerge(&arguments).stdout).unwrap();
    assert_eq!(report["index"], 4);
    refused(&scratch, &["export", "results/run", "--out", "none", "--candidate", "99"], 65, &["no candidate `99`"]);
}
