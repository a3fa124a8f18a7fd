//! Starts that are refused, and what they leave alone.

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::path::Path;

use runs::{SPACE, Scratch, TASKS, copy_folder, stderr};

const SPHERE: &str = "name = \"sphere\"\nsamples = 50";

#[test]
fn a_refused_fresh_start_leaves_the_old_run_where_it_is() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
    let before = std::fs::read(scratch.path("results/run/verdict.json")).unwrap();
    let misspelt =
        scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}[strategy]\nkind = \"tpe\"\nnosuch = 1\n"));
    let output = scratch.evomerge(&["search", misspelt.to_str().unwrap(), "--fresh"]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(!stderr(&output).contains("the old run is now"), "{}", stderr(&output));
    assert_eq!(std::fs::read(scratch.path("results/run/verdict.json")).unwrap(), before);
    assert!(!scratch.path("results/run.1").exists());

    let run_file = scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}"));
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap(), "--fresh"]);
    assert!(output.status.success() && stderr(&output).contains("the old run is now"), "{}", stderr(&output));
    assert_eq!(std::fs::read(scratch.path("results/run.1/verdict.json")).unwrap(), before);
}

/// A process that ends between the ledger and `best/` leaves an older candidate there.
#[test]
fn a_start_mends_what_best_holds() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
    let [recipe, yaml] = ["recipe.toml", "mergekit.yml"].map(|name| scratch.path("results/run/best").join(name));
    let [before, before_yaml] = [&recipe, &yaml].map(|path| std::fs::read(path).unwrap());
    std::fs::write(&recipe, "stale").unwrap();
    std::fs::remove_file(&yaml).unwrap();
    scratch.search(&run_file, &[]);
    assert_eq!((std::fs::read(&recipe).unwrap(), std::fs::read(&yaml).unwrap()), (before, before_yaml));
}

#[test]
fn numbers_beyond_any_machine_are_refused_by_name() {
    let scratch = Scratch::new();
    let tasks = format!("{SPACE}{TASKS}");
    let limited = tasks.replace("name = \"two\"\n", "name = \"two\"\nlimit = 9000000000000000000\n");
    let grouped = tasks.replace("[space]\n", "[space]\nlayer_groups = 9000000000000000000\n");
    for (evaluator, rest, key) in [
        ("name = \"sphere\"\nin_flight = 9000000000000000000", &tasks, "evaluator.in_flight"),
        ("name = \"sphere\"\nsamples = 100000000000", &tasks, "evaluator.samples"),
        ("name = \"sphere\"", &limited, "limit"),
        (SPHERE, &grouped, "space.layer_groups"),
    ] {
        let run_file = scratch.run_file("run", 12, evaluator, rest);
        let output = scratch.evomerge(&["check", run_file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(78), "{key}: {}", stderr(&output));
        assert!(
            stderr(&output).contains(key)
                && (stderr(&output).contains("must be at most") || stderr(&output).contains("must be from 1 to ")),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn a_budget_without_end_is_no_reason_to_fall() {
    let scratch = Scratch::new();
    let evaluator = "name = \"sphere\"\nsamples = 50\nlatency = \"50ms\"";
    let run_file = scratch.run_file("run", 9_000_000_000_000_000_000, evaluator, &format!("{SPACE}{TASKS}"));
    let report = scratch.search(&run_file, &["--wall-clock", "1500ms"]);
    assert_eq!(report["reason"], "wall clock used up", "{report}");
}

#[test]
fn status_bears_an_active_time_that_no_clock_gave() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
    let ledger = rusqlite::Connection::open(scratch.path("results/run/ledger.sqlite")).unwrap();
    for wrong in ["-1", "1e300", "soon"] {
        ledger.execute("UPDATE facts SET value = ?1 WHERE key = 'active_seconds'", [wrong]).unwrap();
        let output = scratch.evomerge(&["status", "results/run"]);
        assert!(output.status.success(), "{wrong}: {}", stderr(&output));
    }
}

/// A run of a program that gives every model the same score; `models` are folders of the golden merges and the names
/// that they get, the base first.
fn program_run(models: &[(&str, &str)], evaluations: u64) -> Scratch {
    let scratch = Scratch::new();
    for (model, name) in models {
        copy_folder(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(model),
            &scratch.path(name),
        );
    }
    write_program_run(&scratch, &models.iter().map(|(_, name)| *name).collect::<Vec<_>>(), evaluations);
    scratch
}

fn write_program_run(scratch: &Scratch, models: &[&str], evaluations: u64) {
    let score = "echo '{\"tasks\": {\"t\": {\"metrics\": {\"score\": {\"value\": 0.5}}}}}' > $1\n";
    std::fs::write(scratch.path("score.sh"), score).unwrap();
    let text = format!(
        "name = \"run\"\n[models]\nbase = {:?}\nsources = {:?}\n[space]\nmethod = \"task_arithmetic\"\n[budget]\n\
         evaluations = {evaluations}\n[evaluator]\nkind = \"command\"\nargv = [\"sh\", \"score.sh\", \"{{result_file}}\"]\n\
         [[tasks]]\nname = \"t\"\n",
        models[0],
        &models[1..]
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
}

/// Where candidates go is found out only once the new run has its folder.
#[test]
fn a_fresh_start_without_a_place_for_candidates_puts_the_old_run_back() {
    let scratch = program_run(&[("base", "base"), ("a", "chat"), ("b", "code")], 5);
    let run_file = scratch.path("run.toml");
    scratch.search(&run_file, &[]);
    let before = std::fs::read(scratch.path("results/run/verdict.json")).unwrap();
    let text = std::fs::read_to_string(&run_file).unwrap();
    std::fs::write(&run_file, format!("{text}[candidates]\ndir = \"taken\"\n")).unwrap();
    std::fs::write(scratch.path("taken"), "").unwrap();
    for _ in 0..2 {
        let output = scratch.evomerge(&["search", "run.toml", "--fresh"]);
        assert_eq!(output.status.code(), Some(73), "{}", stderr(&output));
        for words in ["candidate folder", "the old one is back in results/run\n"] {
            assert!(stderr(&output).contains(words), "{words}: {}", stderr(&output));
        }
        assert_eq!(std::fs::read(scratch.path("results/run/verdict.json")).unwrap(), before);
        assert_eq!(std::fs::read_dir(scratch.path("results")).unwrap().count(), 1);
    }
    std::fs::write(&run_file, text).unwrap();
    assert_eq!(scratch.search(&run_file, &[])["evaluations"], 5);
    assert_eq!(std::fs::read(scratch.path("results/run/verdict.json")).unwrap(), before);
}

#[test]
fn copies_of_models_are_told_and_not_counted_as_baselines() {
    let scratch = program_run(&[("base", "base"), ("base", "copy"), ("a", "a"), ("a", "again")], 3);
    let output = scratch.evomerge(&["check", "run.toml", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(findings["baselines"], 3, "base, a and the uniform soup: {findings}");
    for line in ["source copy is a copy of the base", "source again is a copy of source a"] {
        assert!(stderr(&output).contains(line), "{}", stderr(&output));
    }
    let report = scratch.search(&scratch.path("run.toml"), &[]);
    assert_eq!((&report["evaluations"], report["baselines"].as_array().unwrap().len()), (&serde_json::json!(3), 3));
}

#[test]
fn a_model_that_is_gone_is_named() {
    let scratch = program_run(&[("base", "base"), ("a", "chat"), ("b", "code")], 5);
    scratch.search(&scratch.path("run.toml"), &[]);
    write_program_run(&scratch, &["base", "code"], 5);
    let output = scratch.evomerge(&["search", "run.toml"]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    let lines: Vec<String> = stderr(&output).lines().filter(|line| line.starts_with("  ")).map(str::to_owned).collect();
    assert_eq!(lines, ["  models.sources: chat is gone"]);
}

/// Copies of the tiny Llama models, and a run file that has their texts scored natively.
#[cfg(feature = "native")]
fn tiny_llamas() -> Scratch {
    let scratch = Scratch::new();
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama");
    for model in ["base", "expert-add", "expert-rev"] {
        copy_folder(&zoo.join(model), &scratch.path(model));
    }
    std::fs::write(scratch.path("texts.jsonl"), "{\"text\": \"12+34=46\"}\n{\"text\": \"1+3=4\"}\n").unwrap();
    let text = "name = \"run\"\n[models]\nbase = \"base\"\nsources = [\"expert-add\", \"expert-rev\"]\n[space]\nmethod = \"linear\"\n\
                [space.genes]\nweight = { low = 0, high = 1, per = [\"model\"] }\n[budget]\nevaluations = 6\n\
                [evaluator]\nkind = \"native\"\n[[tasks]]\nname = \"texts\"\ndata = \"texts.jsonl\"\n";
    std::fs::write(scratch.path("run.toml"), text).unwrap();
    scratch
}

#[cfg(feature = "native")]
#[test]
fn models_that_the_evaluator_cannot_score_are_found_before_the_search() {
    let scratch = tiny_llamas();
    let check = || scratch.evomerge(&["check", "run.toml"]);
    let output = check();
    assert!(output.status.success(), "{}", stderr(&output));
    let refused = |code: i32, words: &[&str]| {
        let output = check();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(words.iter().all(|word| stderr(&output).contains(word)), "{}", stderr(&output));
    };
    let tokenizer = scratch.path("base/tokenizer.json");
    std::fs::rename(&tokenizer, scratch.path("tokenizer.json")).unwrap();
    refused(65, &[&format!("{} has no tokenizer.json", scratch.path("base").display())]);
    std::fs::rename(scratch.path("tokenizer.json"), &tokenizer).unwrap();
    for model in ["base", "expert-add", "expert-rev"] {
        let config = scratch.path(model).join("config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replace("\"llama\"", "\"gpt_neox\"")).unwrap();
    }
    let config = scratch.path("base/config.json").display().to_string();
    refused(78, &[&config, "model_type `gpt_neox` is not known to the native evaluator"]);
}

/// Scores belong to a model with its configuration and tokenizer, not to weights alone.
#[cfg(feature = "native")]
#[test]
fn another_configuration_of_a_model_is_a_change() {
    let scratch = tiny_llamas();
    let first = scratch.search(&scratch.path("run.toml"), &["--max-evaluations", "5"]);
    let evaluate = || {
        let arguments = ["evaluate", "run.toml", "--model", "base", "--json"];
        let output = scratch.evomerge(&arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["objective"].clone()
    };
    let unchanged = evaluate();

    let config = scratch.path("base/config.json");
    let before = std::fs::read_to_string(&config).unwrap();
    let changed = before.replace("1e-05", "0.5").replace("1e-5", "0.5");
    assert_ne!(changed, before);
    std::fs::write(&config, changed).unwrap();
    assert_ne!(evaluate(), unchanged);
    let output = scratch.evomerge(&["search", "run.toml"]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    let line = "models.base: base has another config.json, tokenizer or template";
    assert!(stderr(&output).contains(line), "{}", stderr(&output));

    std::fs::write(&config, before).unwrap();
    let second = scratch.search(&scratch.path("run.toml"), &[]);
    assert_eq!((&first["evaluations"], &second["evaluations"]), (&serde_json::json!(5), &serde_json::json!(6)));
}

#[test]
fn writing_out_what_was_left_open_is_no_change() {
    let scratch = Scratch::new();
    let run_file =
        |strategy: &str| scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}[strategy]\n{strategy}"));
    scratch.search(&run_file(""), &[]);
    let ledger = rusqlite::Connection::open(scratch.path("results/run/ledger.sqlite")).unwrap();
    let look_ahead: String =
        ledger.query_row("SELECT value FROM facts WHERE key = 'look_ahead'", [], |row| row.get(0)).unwrap();
    let written = format!("kind = \"portfolio\"\nlook_ahead = {look_ahead}\nleast = 0.1\nkeep = \"better\"\n");
    for strategy in [&written, "kind = \"portfolio\"\nleast = 0.1\n", ""] {
        assert_eq!(scratch.search(&run_file(strategy), &["--max-evaluations", "14"])["evaluations"], 14);
    }
    for (other, named) in [("look_ahead = 7\n", "strategy.look_ahead"), ("least = 0.2\n", "strategy.least")] {
        let output = scratch.evomerge(&["search", run_file(other).to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        assert!(stderr(&output).contains(named), "{}", stderr(&output));
    }
}

#[test]
fn decisions_of_the_first_start_that_cannot_be_read_are_bad_data() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
    let ledger = rusqlite::Connection::open(scratch.path("results/run/ledger.sqlite")).unwrap();
    let set = |key: &str, value: &str| {
        ledger.execute("UPDATE facts SET value = ?2 WHERE key = ?1", [key, value]).unwrap();
    };
    for (key, wrong) in [("look_ahead", "x"), ("planned_evaluations", "-1"), ("racing", "{"), ("race_basis", "[1]")] {
        let right: String =
            ledger.query_row("SELECT value FROM facts WHERE key = ?1", [key], |row| row.get(0)).unwrap();
        set(key, wrong);
        let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(65), "{key}: {}", stderr(&output));
        assert!(stderr(&output).contains(&format!("`{key}` cannot be read")), "{}", stderr(&output));
        set(key, &right);
    }
    scratch.search(&run_file, &[]);
}

#[test]
fn a_race_of_a_program_that_knows_no_sizes_counts_its_limit() {
    let scratch = Scratch::new();
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/digits/tasks");
    let text = format!(
        r#"
name = "run"
[models]
base = "{0}/base"
sources = ["{0}/expert-fog", "{0}/expert-uci"]
[space]
method = "linear"
[space.genes]
weight = {{ low = 0.0, high = 1.0, per = ["model"] }}
[budget]
samples = 4000
[racing]
rungs = 2
[evaluator]
kind = "command"
argv = ["false", "{{result_file}}"]
[[tasks]]
name = "one"
metric = "accuracy"
limit = 80
"#,
        zoo.display()
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
    let output = scratch.evomerge(&["check", "run.toml"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(said.contains("rungs of 20, 80 samples"), "{said}");
}

/// A search that began anew would write over what the old one left.
#[test]
fn results_without_their_ledger_are_not_written_over() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
    let verdict = std::fs::read(scratch.path("results/run/verdict.json")).unwrap();
    let ledger = scratch.path("results/run/ledger.sqlite");
    let kept = std::fs::read(&ledger).unwrap();
    let arguments = ["search", run_file.to_str().unwrap()];
    for (content, word) in [(None, "is gone"), (Some(&[][..]), "is empty")] {
        std::fs::remove_file(&ledger).unwrap();
        if let Some(content) = content {
            std::fs::write(&ledger, content).unwrap();
        }
        let output = scratch.evomerge(&arguments);
        assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
        assert!(stderr(&output).contains(word) && stderr(&output).contains("--fresh"), "{}", stderr(&output));
        std::fs::write(&ledger, &kept).unwrap();
    }
    scratch.search(&run_file, &[]);
    assert_eq!(std::fs::read(scratch.path("results/run/verdict.json")).unwrap(), verdict);

    std::fs::remove_file(&ledger).unwrap();
    let foreign = rusqlite::Connection::open(&ledger).unwrap();
    foreign
        .execute_batch("CREATE TABLE facts (id INTEGER, title TEXT); INSERT INTO facts VALUES (1, 'mine');")
        .unwrap();
    for command in [
        &["search", run_file.to_str().unwrap()][..],
        &["status", "results/run"],
        &["simulate", "results/run/ledger.sqlite"],
    ] {
        let output = scratch.evomerge(command);
        assert_eq!(output.status.code(), Some(65), "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("not a ledger of evomerge"), "{command:?}: {}", stderr(&output));
    }
    let tables: i64 = foreign.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 1, "nothing was written into it");
}

#[test]
fn complaints_about_the_strategy_name_file_and_line() {
    let scratch = Scratch::new();
    let settings = "[strategy]\nkind = \"genetic\"\n\npopulation = 3\n";
    let run_file = scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}{settings}"));
    let text = std::fs::read_to_string(&run_file).unwrap();
    let line = 1 + text.lines().position(|line| line.starts_with("population")).unwrap();
    for command in ["check", "search"] {
        let output = scratch.evomerge(&[command, "run.toml"]);
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        let expected = format!("run.toml: line {line}: `strategy.population`: ");
        assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
    }
    let short = scratch.run_file("run", 2, SPHERE, &format!("{SPACE}{TASKS}"));
    let output = scratch.evomerge(&["check", short.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("run.toml: budget.evaluations = 2"), "{}", stderr(&output));
}

/// All genes frozen, to what a baseline is: nothing is left to be proposed.
#[test]
fn a_space_without_a_gene_is_exhausted() {
    let scratch = Scratch::new();
    let frozen = SPACE.split("[space]").next().unwrap().to_owned()
        + "[space]\nmethod = \"linear\"\n[space.genes]\nweight = 0.5\n";
    for kind in ["portfolio", "genetic", "cma-es", "tpe", "nsga2", "random", "sobol"] {
        let strategy = format!("[strategy]\nkind = \"{kind}\"\n");
        let run_file = scratch.run_file(kind, 40, SPHERE, &format!("{frozen}{TASKS}{strategy}"));
        let report = scratch.search(&run_file, &[]);
        assert!(report["reason"].as_str().unwrap().contains("exhausted"), "{kind}: {}", report["reason"]);
    }
}

#[test]
fn a_run_of_landscapes_has_no_model_to_export() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
    let output = scratch.evomerge(&["export", "results/run", "--out", "model"]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    assert!(stderr(&output).contains("nothing to export"), "{}", stderr(&output));
}

/// A run file for soups alone has nothing to search in; a search with it is told so.
#[test]
fn soups_need_no_search_space() {
    let scratch = Scratch::new();
    let models = &SPACE[..SPACE.find("[space]").unwrap()];
    for strategy in ["", "[strategy]\nkind = \"tpe\"\n"] {
        let run_file = scratch.run_file("run", 12, SPHERE, &format!("{models}{TASKS}{strategy}"));
        let run_file = run_file.to_str().unwrap();
        let output = scratch.evomerge(&["soup", run_file, "--fresh"]);
        assert!(output.status.success(), "{}", stderr(&output));
        for command in ["search", "check"] {
            let output = scratch.evomerge(&[command, run_file]);
            assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
            assert!(stderr(&output).contains("needs a search space"), "{}", stderr(&output));
        }
    }
}

/// What was only in the ledger's log is lost with it; a search does not begin anew over the results of the old one.
#[test]
fn a_ledger_that_lost_its_records_is_refused() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
    let verdict = std::fs::read(scratch.path("results/run/verdict.json")).unwrap();
    let ledger = scratch.path("results/run/ledger.sqlite");
    std::fs::remove_file(&ledger).unwrap();
    drop(evomerge::ledger::Ledger::open(&ledger).unwrap());
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    assert!(stderr(&output).contains("ledger.sqlite-wal"), "{}", stderr(&output));
    assert_eq!(std::fs::read(scratch.path("results/run/verdict.json")).unwrap(), verdict);
}

#[test]
fn the_time_of_a_start_that_is_killed_before_anything_ends_counts() {
    let scratch = Scratch::new();
    let evaluator = "name = \"sphere\"\nlatency = \"60s\"";
    let run_file = scratch.run_file("run", 12, evaluator, &format!("{SPACE}{TASKS}"));
    let ledger = scratch.path("results/run/ledger.sqlite");
    let active = || -> f64 {
        let ledger = evomerge::ledger::Ledger::open_for_reading(&ledger);
        let seconds = ledger.and_then(|ledger| ledger.fact(evomerge::ledger::fact::ACTIVE_SECONDS)).ok().flatten();
        seconds.map_or(0.0, |seconds| seconds.parse().unwrap())
    };
    for start in 1..=2 {
        let mut child =
            runs::command(scratch.folder.path(), &["search", run_file.to_str().unwrap(), "-q"]).spawn().unwrap();
        runs::wait_until(|| active() > 1.5 * f64::from(start));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_run_whose_folder_is_moved_away_ends() {
    let scratch = Scratch::new();
    let evaluator = "name = \"sphere\"\nlatency = \"100ms\"";
    let run_file = scratch.run_file("run", 500, evaluator, &format!("{SPACE}{TASKS}"));
    let child = runs::command(scratch.folder.path(), &["search", run_file.to_str().unwrap()])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    runs::wait_until(|| scratch.path("results/run/trials.csv").exists());
    std::fs::rename(scratch.path("results/run"), scratch.path("results/moved")).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(73), "{}", stderr(&output));
    assert!(stderr(&output).contains("was moved, removed or replaced"), "{}", stderr(&output));
    assert!(!scratch.path("results/run/verdict.json").exists());
    // Back at its place, it goes on.
    let _ = std::fs::remove_dir_all(scratch.path("results/run"));
    std::fs::rename(scratch.path("results/moved"), scratch.path("results/run")).unwrap();
    scratch.search(&run_file, &["--max-evaluations", "12", "-q"]);
}

/// SQLite takes names that begin so for addresses.
#[test]
fn results_may_lie_in_a_folder_whose_name_looks_like_an_address() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, SPHERE, &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &["--results", "file:x"]);
    assert!(scratch.path("file:x/run/ledger.sqlite").exists());
    let output = scratch.evomerge(&["status", "file:x/run"]);
    assert!(output.status.success(), "{}", stderr(&output));
}
