//! What a person is told: of budgets, of attempts that fail, and of run files that do not mean what they seem to.

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use runs::{SPACE, Scratch, TASKS, cell, stderr};

fn stdout(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn another_order_of_tasks_or_genes_is_refused_as_a_change() {
    let scratch = Scratch::new();
    let evaluator = "name = \"sphere\"\nsamples = 50";
    let run_file = scratch.run_file("run", 12, evaluator, &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
    let turned_tasks = TASKS.replace("\"one\"", "\"x\"").replace("\"two\"", "\"one\"").replace("\"x\"", "\"two\"");
    let lines: Vec<&str> = SPACE.lines().collect();
    let place = lines.iter().position(|line| line.starts_with("weight")).unwrap();
    let mut turned_genes = lines.clone();
    turned_genes.swap(place, place + 1);
    let turned_genes = format!("{}\n", turned_genes.join("\n"));
    for (rest, line) in [
        (format!("{SPACE}{turned_tasks}"), "order of tasks: one, two -> two, one"),
        (format!("{turned_genes}{TASKS}"), "order of space.genes: weight, density -> density, weight"),
    ] {
        let run_file = scratch.run_file("run", 14, evaluator, &rest);
        let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        assert!(stderr(&output).contains(line), "{}", stderr(&output));
    }
    let run_file = scratch.run_file("run", 14, evaluator, &format!("{SPACE}{TASKS}"));
    assert_eq!(scratch.search(&run_file, &[])["evaluations"], 14);
}

#[test]
fn a_task_without_weight_needs_no_holdout() {
    let scratch = Scratch::new();
    let tasks = "[[tasks]]\nname = \"one\"\n[[tasks]]\nname = \"shown\"\nweight = 0\n[holdout]\ntasks = { one = { task = \"sealed\" } }\n";
    let run_file = scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{tasks}"));
    let report = scratch.search(&run_file, &[]);
    assert_eq!(report["n"], serde_json::json!({ "one": 50 }), "{report}");
    assert!(report["difference"].is_number(), "{report}");
    let without = tasks.replace("weight = 0\n", "");
    let run_file = scratch.run_file("other", 12, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{without}"));
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("\"shown\""), "{}", stderr(&output));
}

#[test]
fn attempts_that_fail_are_told_as_they_fail() {
    let scratch = Scratch::new();
    let evaluator = "name = \"sphere\"\nsamples = 50\nfault_rate = 0.3";
    let run_file = scratch.run_file("run", 20, evaluator, &format!("{SPACE}{TASKS}"));
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let told = stderr(&output).lines().filter(|line| line.contains(", attempt 1 failed after ")).count();
    assert!(told > 0, "{}", stderr(&output));
    let output = scratch.evomerge(&["status", "results/run"]);
    assert!(stdout(&output).contains("\nbudget       20 evaluations\n"), "{}", stdout(&output));
    assert!(!stdout(&output).contains(" (0 failed)"), "{}", stdout(&output));
}

#[test]
fn a_candidate_s_own_fault_is_no_failed_attempt() {
    let scratch = Scratch::new();
    let evaluator = "name = \"sphere\"\nsamples = 50\ninfeasible_rate = 0.3";
    let run_file = scratch.run_file("run", 20, evaluator, &format!("{SPACE}{TASKS}"));
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = scratch.evomerge(&["status", "results/run"]);
    assert!(stdout(&output).contains("\nattempts     20 (0 failed)\n"), "{}", stdout(&output));
    assert!(!stdout(&output).contains("(0 infeasible"), "{}", stdout(&output));
}

#[test]
fn every_evaluation_is_told_to_those_who_ask() {
    let scratch = Scratch::new();
    let evaluator = "name = \"sphere\"\nsamples = 50\ninfeasible_rate = 0.3";
    let run_file = scratch.run_file("run", 20, evaluator, &format!("{SPACE}{TASKS}"));
    let told = |arguments: &[&str]| {
        let output = scratch.evomerge(&[&["search", run_file.to_str().unwrap(), "--fresh"], arguments].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output).lines().filter(|line| line.starts_with("evaluation ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(told(&[]), Vec::<String>::new());
    let lines = told(&["-v"]);
    assert_eq!(lines.len(), 20, "{lines:?}");
    assert!(lines.iter().any(|line| line.contains(": infeasible: ")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("(source:a), scored in ")), "{lines:?}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_search_goes_on_when_nobody_can_be_told() {
    let scratch = Scratch::new();
    let rest = format!("{SPACE}{TASKS}");
    let run_file = scratch.run_file("run", 15, "name = \"sphere\"\nsamples = 50\nfault_rate = 0.2", &rest);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for stderr in [std::process::Stdio::from(writer), full.into()] {
        let mut command =
            runs::command(scratch.folder.path(), &["search", run_file.to_str().unwrap(), "-v", "--fresh"]);
        let output = command.stderr(stderr).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(stdout(&output).contains("run: 15 evaluations"), "{}", stdout(&output));
    }
}

#[test]
fn check_prices_a_race_with_a_budget_of_evaluations() {
    let scratch = Scratch::new();
    let check = |racing: &str| {
        let rest = format!("{SPACE}{TASKS}{racing}");
        let run_file = scratch.run_file("run", 105, "name = \"sphere\"\nsamples = 100", &rest);
        let output = scratch.evomerge(&["check", run_file.to_str().unwrap(), "--fresh"]);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let full = check("");
    let line =
        |text: &str, label: &str| text.lines().find(|line| line.starts_with(label)).unwrap_or_default().to_owned();
    assert!(line(&full, "budget").contains("in all)") && !full.contains("\nracing"), "{full}");
    let raced = check("[racing]\n");
    let number_before = |text: &str, word: &str| -> f64 {
        text.split(word)
            .next()
            .and_then(|text| text.split([' ', '(']).rfind(|word| !word.is_empty()))
            .unwrap()
            .parse()
            .unwrap()
    };
    let all = number_before(&line(&full, "budget"), " in all");
    let range = |label: &str, word: &str| {
        let line = line(&raced, label);
        let about = line.split("about ").nth(1).unwrap();
        [" to ", word].map(|word| number_before(about, word))
    };
    let [least, most] = range("budget", " in all");
    assert!(least < most && least < 0.5 * all && most < 0.75 * all, "{raced}");
    let [fewest, most] = range("racing", " candidates beside");
    assert!((60.0..70.0).contains(&fewest) && (70.0..100.0).contains(&most), "{raced}");
    // The search itself, where so many baselines and trials of the greedy soup come first.
    let report = scratch.search(&scratch.path("run.toml"), &[]);
    let raced = scratch.trials("results", "run").iter().filter(|row| cell(row, "fidelity") != "1").count() as f64;
    assert!((0.9 * fewest..=most).contains(&raced), "{raced} raced: {report}");
    // Soups do not race.
    let soups = check("[racing]\n[strategy]\nkind = \"greedy-soup\"\n");
    assert!(line(&soups, "racing").contains("nothing to race"), "{soups}");
}

#[test]
fn a_refused_start_leaves_nothing_and_names_the_key() {
    let scratch = Scratch::new();
    let rest = format!("{SPACE}{TASKS}[strategy]\nkind = \"genetic\"\npopulaton = 9\n");
    let run_file = scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 50", &rest);
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("`strategy.populaton`"), "{}", stderr(&output));
    assert!(!scratch.path("results/run").exists());
}

#[test]
fn a_landscape_has_no_model_to_export_and_says_what_its_fingerprint_stands_for() {
    let scratch = Scratch::new();
    let run = |name: &str| {
        scratch.run_file("run", 12, &format!("name = \"{name}\"\nsamples = 50"), &format!("{SPACE}{TASKS}"))
    };
    let output = scratch.evomerge(&["search", run("sphere").to_str().unwrap()]);
    assert!(output.status.success() && !stdout(&output).contains("evomerge export"), "{}", stdout(&output));
    let output = scratch.evomerge(&["search", run("ackley").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("(data, settings or version of the evaluator are others)"), "{}", stderr(&output));
}

#[test]
fn a_damaged_ledger_is_bad_data_for_a_search_too() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
    let ledger = scratch.path("results/run/ledger.sqlite");
    std::fs::write(&ledger, vec![7; 9000]).unwrap();
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    assert!(stderr(&output).contains("ledger.sqlite"), "{}", stderr(&output));
}

#[test]
fn check_tells_a_time_of_less_than_a_second() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{TASKS}"));
    for (limit, words) in [("300ms", "0.3 s of active time"), ("2m", "120 s of active time")] {
        let text = std::fs::read_to_string(&run_file).unwrap();
        let timed = text.replace("[budget]\n", &format!("[budget]\nwall_clock = \"{limit}\"\n"));
        std::fs::write(scratch.path("timed.toml"), timed).unwrap();
        let output = scratch.evomerge(&["check", "timed.toml"]);
        assert!(stdout(&output).contains(words), "{}{}", stdout(&output), stderr(&output));
    }
}

#[test]
fn check_sees_that_results_cannot_be_written() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{TASKS}"));
    std::fs::write(scratch.path("file"), "").unwrap();
    let check = |results: &str| scratch.evomerge(&["check", run_file.to_str().unwrap(), "--results", results]);
    for results in ["file", "file/below", "/proc/evomerge"] {
        let output = check(results);
        assert_eq!(output.status.code(), Some(73), "{results}: {}", stderr(&output));
        assert!(stderr(&output).contains(results), "{}", stderr(&output));
    }
    assert!(check("some/where/new").status.success());
    assert!(!scratch.path("some").exists());
}

#[test]
fn a_replay_of_far_more_samples_than_recorded_is_refused() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("scores.csv"), "candidate,1,2\na,1,0\nb,0,1\n").unwrap();
    let output = scratch.evomerge(&["simulate", "scores.csv", "--budget", "400"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = scratch.evomerge(&["simulate", "scores.csv", "--budget", "1000000000000"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("500000000000 for each of 2 candidates"), "{}", stderr(&output));
}

/// Bits per byte are a mean by the bytes of each text, not by text.
#[cfg(feature = "native")]
#[test]
fn a_replay_weighs_samples_as_their_metric_does() {
    let scratch = Scratch::new();
    let zoo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama");
    let texts: Vec<String> =
        (1..7).map(|length| serde_json::json!({ "text": "12+34=46 ".repeat(length) }).to_string()).collect();
    std::fs::write(scratch.path("texts.jsonl"), texts.join("\n")).unwrap();
    let text = format!(
        "name = \"run\"\n[models]\nbase = {:?}\nsources = [{:?}, {:?}]\n[space]\nmethod = \"linear\"\n[space.genes]\nweight = {{ low = 0, high = 1, per = [\"model\"] }}\n\
         [budget]\nevaluations = 5\n[evaluator]\nkind = \"native\"\n[[tasks]]\nname = \"texts\"\ndata = \"texts.jsonl\"\n",
        zoo.join("base"),
        zoo.join("expert-add"),
        zoo.join("expert-rev"),
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
    let report = scratch.search(&scratch.path("run.toml"), &[]);
    let output = scratch.evomerge(&["simulate", "results/run", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let difference = json["best"]["score"].as_f64().unwrap() - report["best"]["objective"].as_f64().unwrap();
    assert!(difference.abs() < 1e-9, "{json} {report}");
}
