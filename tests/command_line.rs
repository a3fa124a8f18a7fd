//! What the command line takes, and the documents that it gives.

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use runs::{SPACE, Scratch, TASKS, command, copy_folder, stderr};
use serde_json::Value;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The JSON document on standard output.
fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr(output)))
}

/// `evomerge ARGUMENTS --json`, which must succeed.
fn succeeds(scratch: &Scratch, arguments: &[&OsStr]) -> Value {
    let output = command(scratch.folder.path(), &[]).args(arguments).arg("--json").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    document(&output)
}

#[test]
fn documents_name_paths_that_are_no_unicode() {
    let scratch = Scratch::new();
    let name = OsString::from(OsStr::from_bytes(b"not-\xff-unicode"));
    let shown = "not-\u{fffd}-unicode";
    let word = |text: &'static str| OsStr::new(text);
    for model in ["a", "b"] {
        copy_folder(&repository("tests/golden/models").join(model), &scratch.path(model));
    }
    std::fs::write(
        scratch.path("r.yml"),
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n",
    )
    .unwrap();
    let merged = succeeds(&scratch, &[word("merge"), word("r.yml"), word("--out"), &name]);
    assert_eq!(merged["out"], shown);

    scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{TASKS}"));
    for (subcommand, folder) in [("search", "run"), ("soup", "run-soup")] {
        let report = succeeds(&scratch, &[word(subcommand), word("run.toml"), word("--results"), &name]);
        assert_eq!(report["folder"], format!("{shown}/{folder}"), "{report}");
    }
    let findings = succeeds(&scratch, &[word("check"), word("run.toml"), word("--results"), &name]);
    assert_eq!(findings["name"], "run");
}

/// A run whose only candidate is the uniform soup of `a` and `b`.
const SOUP: &str = "name = \"run\"\n[models]\nsources = [\"a\", \"b\"]\n[strategy]\nkind = \"uniform-soup\"\n[budget]\nevaluations = 3\n\
    [evaluator]\nkind = \"command\"\nargv = [\"sh\", \"-c\", 'echo \"{\\\"tasks\\\": {\\\"t\\\": {\\\"metrics\\\": {\\\"score\\\": {\\\"value\\\": 0.5}}}}}\" > {result_file}']\n\
    [[tasks]]\nname = \"t\"\n";

#[test]
fn an_export_and_a_score_may_lie_in_folders_that_are_no_unicode() {
    let scratch = Scratch::new();
    let name = OsString::from(OsStr::from_bytes(b"not-\xff-unicode"));
    let word = |text: &'static str| OsStr::new(text);
    for model in ["a", "b"] {
        copy_folder(&repository("tests/golden/models").join(model), &scratch.path(model));
    }
    std::fs::write(scratch.path("run.toml"), SOUP).unwrap();
    scratch.search(Path::new("run.toml"), &[]);
    let exported = succeeds(&scratch, &[word("export"), word("results/run"), word("--out"), &name]);
    assert_eq!(exported["out"], "not-\u{fffd}-unicode");
    // A program gets its paths as text: an error that says so, and no panic.
    let evaluate = [word("evaluate"), word("run.toml"), word("--model"), &name, word("--json")];
    let output = command(scratch.folder.path(), &[]).args(evaluate).output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("not UTF-8"), "{}", stderr(&output));
}

#[test]
fn a_usage_error_has_its_document() {
    let scratch = Scratch::new();
    for arguments in
        [&["search", "--json"][..], &["--json", "serch", "run.toml"], &["merge", "--json", "--threads", "x"]]
    {
        let output = scratch.evomerge(arguments);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let error = document(&output);
        assert_eq!(error["exit_code"], 2);
        let text = error["error"].as_str().unwrap();
        assert!(!text.starts_with("error") && stderr(&output).contains(text), "{text}");
    }
    assert_eq!(scratch.evomerge(&["search"]).stdout, b"");
    let help = scratch.evomerge(&["search", "--help", "--json"]);
    assert!(help.status.success() && serde_json::from_slice::<Value>(&help.stdout).is_err());
}

#[test]
fn the_environment_of_the_asynchronous_runtime_is_not_asked() {
    let scratch = Scratch::new();
    scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{TASKS}"));
    for threads in ["0", "x"] {
        let check =
            command(scratch.folder.path(), &["check", "run.toml"]).env("TOKIO_WORKER_THREADS", threads).output();
        let output = check.unwrap();
        assert!(output.status.success(), "{threads}: {}", stderr(&output));
    }
}

#[test]
fn a_count_of_zero_is_refused_in_words() {
    let scratch = Scratch::new();
    for arguments in [
        "search run.toml --max-evaluations 0",
        "merge recipe.toml --out merged --threads 0",
        "simulate scores.csv --rungs 0",
        "simulate scores.csv --repetitions 0",
    ] {
        let output = scratch.evomerge(&arguments.split(' ').collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2), "{arguments}: {}", stderr(&output));
        assert!(stderr(&output).contains("must be at least 1"), "{arguments}: {}", stderr(&output));
    }
}

#[test]
fn evaluate_takes_an_id_of_the_local_cache() {
    let scratch = Scratch::new();
    let snapshot = scratch.path("hub/models--org--a/snapshots/0123abcd");
    copy_folder(&repository("tests/golden/models/a"), &snapshot);
    std::fs::write(scratch.path("run.toml"), SOUP).unwrap();
    let evaluate = |model: &str| {
        let mut command = command(scratch.folder.path(), &["evaluate", "run.toml", "--json", "--model", model]);
        command.env("HF_HUB_CACHE", scratch.path("hub")).output().unwrap()
    };
    let output = evaluate("org/a@0123abcd");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(document(&output)["objective"], 0.5);
    assert_eq!(document(&output)["model"], "org/a@0123abcd");
    let output = evaluate("org/other");
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    assert!(stderr(&output).contains("`hf download org/other`"), "{}", stderr(&output));
}

#[test]
fn evaluate_has_adapters_merged_first() {
    let scratch = Scratch::new();
    let peft = repository("tests/peft");
    copy_folder(&peft.join("models/llama"), &scratch.path("model"));
    copy_folder(&peft.join("adapters/plain"), &scratch.path("adapter"));
    std::fs::write(scratch.path("run.toml"), SOUP).unwrap();
    for model in ["model+adapter", "adapter"] {
        let output = scratch.evomerge(&["evaluate", "run.toml", "--model", model]);
        assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
        assert!(stderr(&output).contains("`merge_method: passthrough` and `models: [{model:"), "{}", stderr(&output));
    }
    let recipe = "merge_method: passthrough\nmodels: [{model: \"model+adapter\"}]\n";
    std::fs::write(scratch.path("recipe.yml"), recipe).unwrap();
    let output = scratch.evomerge(&["merge", "recipe.yml", "--out", "merged"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = scratch.evomerge(&["evaluate", "run.toml", "--model", "merged"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn masks_that_may_be_expected_are_told_of() {
    let scratch = Scratch::new();
    let golden = repository("tests/golden/models");
    for model in ["base", "a", "b"] {
        copy_folder(&golden.join(model), &scratch.path(model));
    }
    let dare = |density: &str| {
        format!(
            "merge_method: dare_linear\nbase_model: base\nmodels: [{{model: a}}, {{model: b}}]\n\
             parameters: {{weight: 0.5, density: {density}}}\n"
        )
    };
    std::fs::write(scratch.path("dare.yml"), dare("0.5")).unwrap();
    std::fs::write(scratch.path("whole.yml"), dare("1.0")).unwrap();
    std::fs::write(
        scratch.path("dare.toml"),
        "merge_method = 'dare_linear'\nbase_model = 'base'\nmodels = [{ model = 'a' }]\n\
        parameters = { weight = 0.5, density = 0.5 }\n",
    )
    .unwrap();
    let own = "note: masks are evomerge's own, whatever the seed; --dare-masks mergekit draws mergekit's";
    let none = "without effect, since this merge (dare_linear) draws no masks";
    for (arguments, expected) in [
        ("dare.yml", Some(own)),
        ("dare.yml --random-seed 7", Some(own)),
        ("dare.yml --dare-masks mergekit --random-seed 7", None),
        ("dare.yml --dare-masks native", None),
        ("dare.toml --seed 7", None),
        ("whole.yml", None),
        ("whole.yml --random-seed 7", Some(none)),
        ("whole.yml --dare-masks mergekit", Some(none)),
        ("whole.yml --seed 7 --quiet", None),
    ] {
        let arguments = format!("merge {arguments} --out merged --force");
        let output = scratch.evomerge(&arguments.split(' ').collect::<Vec<_>>());
        assert!(output.status.success(), "{arguments}: {}", stderr(&output));
        let told = stderr(&output);
        match expected {
            Some(note) => assert!(told.contains(note), "{arguments}: {told}"),
            None => assert!(!told.contains("masks"), "{arguments}: {told}"),
        }
    }
}

#[test]
fn the_recipe_is_no_folder_for_the_output() {
    let scratch = Scratch::new();
    for model in ["a", "b"] {
        copy_folder(&repository("tests/golden/models").join(model), &scratch.path(model));
    }
    std::fs::write(
        scratch.path("one.yml"),
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n",
    )
    .unwrap();
    let output = scratch.evomerge(&["merge", "one.yml", "--out", "one.yml", "--force"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("is the recipe itself; give a folder"), "{}", stderr(&output));
}
