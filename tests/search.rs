//! Whole searches over closed-form landscapes, through the program.

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with other tests of the program")]
mod runs;

use std::process::Stdio;

use runs::{SPACE, Scratch, TASKS, cell, command, stderr, wait_until};

fn rest() -> String {
    format!("{SPACE}{TASKS}")
}

#[test]
fn a_search_spends_exactly_its_budget_and_ends_in_a_verdict() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 30, "name = \"sphere\"\nsamples = 200", &rest());
    let report = scratch.search(&run_file, &[]);
    assert_eq!(report["evaluations"], 30);
    let trials = scratch.trials("results", "run");
    assert_eq!(trials.len(), 30);
    let origins: Vec<&str> = trials.iter().take(5).map(|row| cell(row, "origin")).collect();
    assert_eq!(origins, ["base", "source:a", "source:b", "source:c", "uniform_soup"]);
    for (index, row) in trials.iter().enumerate() {
        assert_eq!(cell(row, "index"), index.to_string());
        assert_eq!(cell(row, "status"), "scored");
    }
    assert!(["improvement", "no_evidence"].contains(&report["verdict"].as_str().unwrap()));
    for key in ["winner", "baseline", "difference", "interval", "paired", "n", "over_statement", "reused"] {
        assert!(!report[key].is_null(), "{key} is missing");
    }
    for file in ["run.toml", "ledger.sqlite", "trials.csv", "verdict.json", "best/recipe.toml", "best/mergekit.yml"] {
        assert!(scratch.path("results/run").join(file).is_file(), "{file} is missing");
    }
    let best = report["best"]["objective"].as_f64().unwrap();
    let worse = report["baselines"].as_array().unwrap().iter().filter_map(|row| row["objective"].as_f64());
    assert!(worse.into_iter().all(|baseline| baseline <= best));
}

#[test]
fn pool_size_and_latency_change_nothing() {
    let scratch = Scratch::new();
    let landscape = "name = \"rastrigin\"\nsamples = 50";
    let slow = format!("{landscape}\nin_flight = 5\nlatency = \"1ms\"\nlatency_jitter = \"20ms\"");
    let strategy = format!("{}\n[strategy]\nkind = \"genetic\"\nlook_ahead = 6\n", rest());
    let one = scratch.run_file("run", 40, landscape, &strategy);
    scratch.search(&one, &["--results", "one"]);
    let five = scratch.run_file("run", 40, &slow, &strategy);
    scratch.search(&five, &["--results", "five"]);
    assert_eq!(scratch.trials("one", "run"), scratch.trials("five", "run"));
}

#[test]
fn a_larger_pool_than_a_run_can_use_is_said() {
    let scratch = Scratch::new();
    let landscape = "name = \"sphere\"\nsamples = 50";
    let said = |in_flight: u32, evaluations: &str| {
        let evaluator = format!("{landscape}\nin_flight = {in_flight}");
        let run_file = scratch.run_file("run", 12, &evaluator, &rest());
        let output = scratch.evomerge(&["search", run_file.to_str().unwrap(), "--max-evaluations", evaluations]);
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output).contains("this run has at most 4 open")
    };
    // Two at a time look four ahead, and that stays.
    assert!(!said(2, "12"));
    assert!(!said(4, "14"));
    assert!(said(5, "16"));
}

#[test]
fn a_killed_search_ends_as_if_it_had_not_been() {
    let scratch = Scratch::new();
    let run_file =
        scratch.run_file("run", 40, "name = \"ackley\"\nsamples = 20\nlatency = \"25ms\"\nin_flight = 3", &rest());
    scratch.search(&run_file, &["--results", "calm"]);
    for told in [3, 10, 16, 24] {
        let arguments = ["search", run_file.to_str().unwrap(), "--results", "stormy", "--quiet"];
        scratch.kill_at(&arguments, "stormy/run", told);
    }
    scratch.search(&run_file, &["--results", "stormy"]);
    assert_eq!(scratch.trials("calm", "run"), scratch.trials("stormy", "run"));
}

#[test]
fn a_finished_run_goes_on_with_a_larger_budget_and_says_that_the_holdout_was_opened() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 20, "name = \"sphere\"\nsamples = 50", &rest());
    let first = scratch.search(&run_file, &[]);
    assert_eq!(first["reused"], false);
    let again = scratch.search(&run_file, &[]);
    assert_eq!(again["evaluations"], 20);
    assert_eq!(again["reused"], false);
    let before = scratch.trials("results", "run");
    let more = scratch.search(&run_file, &["--max-evaluations", "30"]);
    assert_eq!(more["evaluations"], 30);
    assert_eq!(more["reused"], true);
    assert_eq!(scratch.trials("results", "run")[..20], before[..]);
}

#[test]
fn a_changed_run_file_is_refused_with_the_difference_named() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, "name = \"sphere\"", &rest());
    scratch.search(&run_file, &[]);
    let changed = std::fs::read_to_string(&run_file)
        .unwrap()
        .replace("high = 1.0, per = [\"model\"] }\ndensity", "high = 1.25, per = [\"model\"] }\ndensity");
    std::fs::write(&run_file, changed).unwrap();
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    let text = stderr(&output);
    assert!(text.contains("1.25") && text.contains("high") && text.contains("--fresh"), "{text}");
    scratch.search(&run_file, &["--fresh"]);
    assert!(scratch.path("results/run.1/ledger.sqlite").is_file());
    let seed = scratch.evomerge(&["search", run_file.to_str().unwrap(), "--seed", "6"]);
    assert_eq!(seed.status.code(), Some(78));
    assert!(stderr(&seed).contains("seed"), "{}", stderr(&seed));
}

#[test]
fn a_budget_below_the_baselines_names_the_minimum() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 4, "name = \"sphere\"", &rest());
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("at least 5"), "{}", stderr(&output));
}

#[test]
fn a_second_process_is_refused_while_status_looks_on() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 1000, "name = \"sphere\"\nlatency = \"20ms\"", &rest());
    let arguments = ["search", run_file.to_str().unwrap(), "--quiet"];
    let mut child = command(scratch.folder.path(), &arguments).stdout(Stdio::null()).spawn().unwrap();
    wait_until(|| scratch.path("results/run/ledger.sqlite").is_file());
    let second = scratch.evomerge(&arguments);
    assert_eq!(second.status.code(), Some(75), "{}", stderr(&second));
    assert!(stderr(&second).contains("in use"), "{}", stderr(&second));
    wait_until(|| scratch.evomerge(&["status", "results/run", "--json"]).status.success());
    let status = scratch.evomerge(&["status", "results/run", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["running"], true);

    terminate(&mut child);
    let status = scratch.evomerge(&["status", "results/run", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["running"], false);
    assert!(status["state"].as_str().unwrap().contains("signal"), "{status}");
}

#[test]
fn status_calls_a_continued_search_killed_when_it_was() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 8, "name = \"sphere\"\nsamples = 50\nlatency = \"10ms\"", &rest());
    let status = || -> serde_json::Value {
        serde_json::from_slice(&scratch.evomerge(&["status", "results/run", "--json"]).stdout).unwrap()
    };
    let state = || status()["state"].as_str().unwrap().to_owned();
    let verdict = || {
        let output = scratch.evomerge(&["status", "results/run"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().find(|line| line.starts_with("verdict")).unwrap().to_owned()
    };
    scratch.search(&run_file, &[]);
    assert!(state().starts_with("finished: "), "{}", state());
    assert!(!verdict().contains("before the search went on"), "{}", verdict());

    let arguments = ["search", run_file.to_str().unwrap(), "--quiet", "--max-evaluations", "100000"];
    let mut child = command(scratch.folder.path(), &arguments).stdout(Stdio::null()).spawn().unwrap();
    wait_until(|| status()["finished"].as_u64() > Some(8));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(state().starts_with("killed"), "{}", state());
    assert_eq!(status()["running"], false);
    assert!(verdict().contains("before the search went on"), "{}", verdict());
    // A stop in good order has no verdict of its own either.
    let mut child = command(scratch.folder.path(), &arguments).stdout(Stdio::null()).spawn().unwrap();
    let finished = status()["finished"].as_u64();
    wait_until(|| status()["finished"].as_u64() > finished);
    terminate(&mut child);
    assert!(state().starts_with("stopped"), "{}", state());
    assert!(verdict().contains("before the search went on"), "{}", verdict());
    assert_eq!(status()["verdict_is_old"], true);

    let goal = status()["asked"].as_u64().unwrap() + 4;
    scratch.search(&run_file, &["--max-evaluations", &goal.to_string()]);
    assert!(state().starts_with("finished: "), "{}", state());
    assert!(!verdict().contains("before the search went on"), "{}", verdict());
    assert_eq!(status()["verdict_is_old"], false);
}

/// Ends a search by SIGTERM.
fn terminate(child: &mut std::process::Child) {
    let process = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75));
}

#[test]
fn status_calls_a_search_killed_that_was_killed_before_its_verdict() {
    use std::io::{BufRead as _, BufReader};
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 6, "name = \"sphere\"\nsamples = 50\nlatency = \"200ms\"", &rest());
    let mut child = command(scratch.folder.path(), &["search", run_file.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.starts_with("hold-out: scoring")));
    child.kill().unwrap();
    child.wait().unwrap();
    let status = || scratch.evomerge(&["status", "results/run"]).stdout;
    let text = String::from_utf8(status()).unwrap();
    assert!(text.starts_with("run: killed; the same command continues it"), "{text}");
    scratch.search(&run_file, &[]);
    let text = String::from_utf8(status()).unwrap();
    assert!(text.starts_with("run: finished: budget of 6 evaluations used"), "{text}");
}

#[test]
fn the_wall_clock_ends_a_run_and_what_was_in_flight_counts() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 100_000, "name = \"sphere\"\nlatency = \"30ms\"\nin_flight = 2", &rest());
    let report = scratch.search(&run_file, &["--wall-clock", "1s"]);
    assert!(report["reason"].as_str().unwrap().contains("wall clock"), "{report}");
    let rows = scratch.trials("results", "run").len() as u64;
    assert_eq!(report["evaluations"], rows);
    assert!(rows > 4);
}

/// However many evaluations may be open, the time and signals are looked at while they are asked for.
#[test]
fn a_search_that_looks_far_ahead_ends_in_time_and_by_a_signal() {
    let scratch = Scratch::new();
    let far = format!("{}[strategy]\nkind = \"random\"\nlook_ahead = 10000\n", rest());
    let run_file = scratch.run_file("run", 10_000_000, "name = \"sphere\"\nlatency = \"20ms\"", &far);
    let report = scratch.search(&run_file, &["--wall-clock", "300ms"]);
    assert!(report["reason"].as_str().unwrap().contains("wall clock"), "{report}");
    assert!(report["evaluations"].as_u64().unwrap() > 0, "{report}");
    assert!(scratch.asked().len() < 10_000, "{}", scratch.asked().len());
    let arguments = ["search", run_file.to_str().unwrap(), "--quiet", "--fresh"];
    let mut child = command(scratch.folder.path(), &arguments).stdout(Stdio::null()).spawn().unwrap();
    wait_until(|| scratch.path("results/run.1").is_dir() && scratch.path("results/run/run.toml").is_file());
    terminate(&mut child);
    assert!(scratch.asked().len() < 10_000, "{}", scratch.asked().len());
}

#[test]
fn a_samples_budget_is_never_exceeded() {
    let scratch = Scratch::new();
    let text = format!(
        "name = \"run\"\n[budget]\nsamples = 1250\n[evaluator]\nkind = \"function\"\nname = \"sphere\"\nsamples = 50\n{SPACE}\
         [[tasks]]\nname = \"one\"\n[[tasks]]\nname = \"two\"\n"
    );
    let run_file = scratch.path("run.toml");
    std::fs::write(&run_file, text).unwrap();
    // Racing is on by itself: baselines cost 100 samples each, candidates start on 26.
    let report = scratch.search(&run_file, &[]);
    let spent = samples_spent(&scratch);
    assert!(report["evaluations"].as_u64().unwrap() > 12 && spent <= 1250 && spent > 1150, "{spent}");
    assert_eq!(report["verdict"], "no_holdout");
    let off = format!("{}[racing]\nrungs = 1\n", std::fs::read_to_string(&run_file).unwrap());
    std::fs::write(&run_file, off).unwrap();
    assert_eq!(scratch.search(&run_file, &["--fresh"])["evaluations"], 12);
    assert_eq!(samples_spent(&scratch), 1200);
}

/// Samples that the ledger of `run` counts against the budget.
fn samples_spent(scratch: &Scratch) -> u64 {
    let ledger = rusqlite::Connection::open(scratch.path("results/run/ledger.sqlite")).unwrap();
    let spent: i64 = ledger.query_row("SELECT sum(samples) FROM asked", [], |row| row.get(0)).unwrap();
    spent as u64
}

#[test]
fn candidates_race_on_nested_samples_and_only_full_scores_are_best() {
    let scratch = Scratch::new();
    let text = format!("{}[racing]\nrungs = 3\n", rest());
    let run_file = scratch.run_file("run", 150, "name = \"sphere\"\nsamples = 160", &text);
    let report = scratch.search(&run_file, &[]);
    let trials = scratch.trials("results", "run");
    assert_eq!(trials.len(), 150);
    let fidelities: std::collections::BTreeSet<&str> = trials.iter().map(|row| cell(row, "fidelity")).collect();
    assert_eq!(fidelities.into_iter().collect::<Vec<_>>(), ["0.0625", "0.25", "1"]);
    let baselines =
        trials.iter().take_while(|row| cell(row, "origin") != "promotion" && cell(row, "fidelity") == "1").count();
    assert!(baselines >= 5, "baselines are scored in full");
    let best = trials
        .iter()
        .filter(|row| cell(row, "fidelity") == "1")
        .max_by(|one, other| {
            let value = |row: &[(String, String)]| cell(row, "objective").parse::<f64>().unwrap();
            value(one).total_cmp(&value(other)).then(std::cmp::Ordering::Greater)
        })
        .unwrap();
    assert_eq!(report["best"]["candidate_id"], cell(best, "candidate_id"));
    for row in trials.iter().filter(|row| cell(row, "origin") == "promotion") {
        assert_eq!(cell(row, "parent_ids"), cell(row, "candidate_id"));
    }
    // A promoted candidate's scores are over all samples of the rung, and cost the missing ones only.
    let full = trials.iter().find(|row| cell(row, "origin") == "promotion" && cell(row, "fidelity") == "1").unwrap();
    assert_eq!(cell(full, "n_samples"), cell(&trials[0], "n_samples"));
    let all: u64 = trials.iter().map(|row| cell(row, "n_samples").parse::<u64>().unwrap()).sum();
    assert!(samples_spent(&scratch) < all);
}

#[test]
fn a_promoted_score_is_what_a_full_evaluation_gives() {
    let scratch = Scratch::new();
    let random = format!("{}[strategy]\nkind = \"random\"\n", rest());
    let uniform = scratch.run_file("run", 60, "name = \"sphere\"\nsamples = 80", &random);
    scratch.search(&uniform, &["--results", "uniform"]);
    let raced = format!("{random}[racing]\nrungs = 2\n");
    let raced = scratch.run_file("run", 60, "name = \"sphere\"\nsamples = 80", &raced);
    scratch.search(&raced, &["--results", "raced"]);
    let full = scratch.trials("uniform", "run");
    let mut compared = 0;
    for row in scratch.trials("raced", "run").iter().filter(|row| cell(row, "origin") == "promotion") {
        let same = full.iter().find(|other| cell(other, "candidate_id") == cell(row, "candidate_id"));
        if let Some(same) = same {
            let value = |row: &[(String, String)]| cell(row, "objective").parse::<f64>().unwrap();
            assert!((value(row) - value(same)).abs() < 1e-12);
            compared += 1;
        }
    }
    assert!(compared > 0);
}

#[test]
fn a_killed_race_ends_as_if_it_had_not_been() {
    let scratch = Scratch::new();
    let text = format!("{}[racing]\n", rest());
    let landscape = "name = \"ackley\"\nsamples = 200\nlatency = \"10ms\"\nin_flight = 3";
    let run_file = scratch.run_file("run", 120, landscape, &text);
    scratch.search(&run_file, &["--results", "calm"]);
    for told in [7, 30, 50, 70] {
        let arguments = ["search", run_file.to_str().unwrap(), "--results", "stormy", "--quiet"];
        scratch.kill_at(&arguments, "stormy/run", told);
    }
    scratch.search(&run_file, &["--results", "stormy"]);
    assert!(scratch.trials("calm", "run").iter().any(|row| cell(row, "origin") == "promotion"));
    assert_eq!(scratch.trials("calm", "run"), scratch.trials("stormy", "run"));
}

#[test]
fn infeasible_candidates_do_not_stop_a_search() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 40, "name = \"sphere\"\nsamples = 20\ninfeasible_rate = 0.3", &rest());
    let report = scratch.search(&run_file, &[]);
    assert_eq!(report["evaluations"], 40);
    assert!(report["infeasible"].as_u64().unwrap() > 3);
    let trials = scratch.trials("results", "run");
    let bad = trials.iter().find(|row| cell(row, "status") == "infeasible").unwrap();
    assert_eq!(cell(bad, "objective"), "");
    assert_ne!(cell(bad, "error"), "");
}

#[test]
fn nothing_to_find_is_no_evidence_of_improvement() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 25, "name = \"flat\"\nsamples = 100\nnoise = 0.05", &rest());
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap(), "--require-improvement"]);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("No evidence of improvement"));
}

#[test]
fn soup_takes_scores_from_the_search_and_asks_for_none_twice() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 20, "name = \"sphere\"\nsamples = 30", &rest());
    scratch.search(&run_file, &[]);
    let output = scratch.evomerge(&["soup", run_file.to_str().unwrap(), "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["name"], "run-soup");
    assert_eq!(report["soup"]["complete"], true);
    assert!(!scratch.trials("results", "run-soup").is_empty());
    let names = report["soup_sources"].as_array().unwrap();
    assert_eq!(names.len(), report["soup"]["members"].as_array().unwrap().len());
    assert!(names.iter().all(|name| ["a", "b", "c"].contains(&name.as_str().unwrap())), "{report}");
    let mut reader = csv::Reader::from_path(scratch.path("results/run-soup/trials.csv")).unwrap();
    let attempts = reader.headers().unwrap().iter().position(|column| column == "attempts").unwrap();
    assert!(reader.records().all(|record| record.unwrap().get(attempts) == Some("0")));
}

/// More scores to take over than a search asks for at once.
#[test]
fn soup_takes_the_scores_of_many_sources() {
    let scratch = Scratch::new();
    let sources: Vec<String> = (0..70).map(|source| format!("s{source}")).collect();
    let many = rest().replace("[\"a\", \"b\", \"c\"]", &format!("{sources:?}"));
    assert_ne!(many, rest());
    let run_file = scratch.run_file("run", 75, "name = \"sphere\"\nsamples = 30", &many);
    scratch.search(&run_file, &[]);
    let output = scratch.evomerge(&["soup", run_file.to_str().unwrap(), "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["evaluations"], 75);
}

#[test]
fn soup_keeps_the_settings_that_are_for_soups() {
    let scratch = Scratch::new();
    let run_file = |strategy: &str| {
        let text = format!("{}[strategy]\n{strategy}\nreplacement = true\nbackward = true\n", rest());
        scratch.run_file("run", 40, "name = \"sphere\"\nsamples = 100", &text)
    };
    for strategy in ["kind = \"greedy-soup\"", "kind = \"genetic\"\npopulation = 8"] {
        let output = scratch.evomerge(&["soup", run_file(strategy).to_str().unwrap(), "--json", "--fresh"]);
        assert!(output.status.success(), "{strategy}: {}", stderr(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let soup = &report["soup"];
        assert_eq!((&soup["replacement"], &soup["backward"]), (&true.into(), &true.into()), "{strategy}");
        assert!(soup["repeats"].as_array().is_some_and(|repeats| !repeats.is_empty()), "{strategy}: {soup}");
    }
    let misspelt = run_file("kind = \"greedy-soup\"\nreplacment = true");
    let output = scratch.evomerge(&["soup", misspelt.to_str().unwrap(), "--fresh"]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(stderr(&output).contains("did you mean `replacement`"), "{}", stderr(&output));
}

/// With every gene frozen there is one merge, and it has no genes either.
#[test]
fn a_merge_without_genes_is_no_baseline() {
    let scratch = Scratch::new();
    let space = "[models]\nbase = \"base\"\nsources = [\"a\", \"b\", \"c\"]\n[space]\nmethod = \"ties\"\n\
                 genes = { weight = 0.3, density = 0.5 }\n[strategy]\nkind = \"random\"\n";
    let run_file = scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 50", &format!("{space}{TASKS}"));
    let report = scratch.search(&run_file, &["--seed", "1"]);
    assert_eq!(report["best"]["origin"], "random", "the seed was chosen so that the merge is the best");
    let origins: Vec<_> = report["baselines"].as_array().unwrap().iter().map(|row| &row["origin"]).collect();
    assert!(origins.len() > 5 && origins.iter().all(|origin| **origin != "random"), "{origins:?}");
    assert_eq!(report["winner"]["candidate_id"], report["best"]["candidate_id"]);
    assert_ne!(report["baseline"]["candidate_id"], report["best"]["candidate_id"]);
    let status = scratch.evomerge(&["status", "results/run", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["best_baseline"]["candidate_id"], report["baseline"]["candidate_id"]);
}

#[test]
fn unknown_keys_and_genes_get_a_suggestion() {
    let scratch = Scratch::new();
    for (wrong, right) in [("densty", "density"), ("wieght", "weight")] {
        let text = format!("{}\n{TASKS}", SPACE.replace(right, wrong));
        let run_file = scratch.run_file("run", 20, "name = \"sphere\"", &text);
        let output = scratch.evomerge(&["check", run_file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        assert!(stderr(&output).contains(wrong) && stderr(&output).contains(right), "{}", stderr(&output));
    }
    let run_file = scratch.run_file("run", 20, "name = \"sphere\"\nlatncy = \"1s\"", &rest());
    let output = scratch.evomerge(&["check", run_file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("latency"), "{}", stderr(&output));
}

#[test]
fn check_refuses_a_strategy_setting_that_a_search_would_refuse() {
    let scratch = Scratch::new();
    for (setting, words) in
        [("replacement = 1", "neither true nor false"), ("populaton = 9", "did you mean `population`")]
    {
        let text = format!("{}\n[strategy]\nkind = \"genetic\"\n{setting}\n", rest());
        let run_file = scratch.run_file("run", 20, "name = \"sphere\"", &text);
        for arguments in [&["check"][..], &["search", "--results", "results"]] {
            let output = scratch.evomerge(&[arguments, &[run_file.to_str().unwrap()]].concat());
            assert_eq!(output.status.code(), Some(78), "{arguments:?}: {}", stderr(&output));
            assert!(stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
            assert!(!scratch.path("results/run/ledger.sqlite").exists(), "{arguments:?} began a run");
        }
    }
}

#[test]
fn check_tells_of_a_run_that_is_there_and_refuses_what_a_search_would_refuse() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 12, "name = \"sphere\"\nsamples = 50", &rest());
    let check = |more: &[&str]| scratch.evomerge(&[&["check", run_file.to_str().unwrap()], more].concat());
    let line = |output: &std::process::Output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().find(|line| line.starts_with("run ")).map(str::to_owned)
    };
    assert_eq!(line(&check(&[])), None);
    scratch.search(&run_file, &[]);
    let found = line(&check(&[])).unwrap();
    assert!(found.contains("results/run has 12 evaluations") && found.contains("continues"), "{found}");
    let text = std::fs::read_to_string(&run_file).unwrap();
    std::fs::write(&run_file, text.replace("seed = 5", "seed = 6") + "[strategy]\nstart = 9\n").unwrap();
    let output = check(&[]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    for word in ["seed: 5 -> 6", "  strategy.start: ", "--fresh"] {
        assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
    }
    let output = check(&["--fresh"]);
    assert!(output.status.success() && line(&output).is_none(), "{}", stderr(&output));
}

#[test]
fn check_says_what_the_budget_buys() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 20, "name = \"sphere\"\nsamples = 100", &rest());
    let output = scratch.evomerge(&["check", run_file.to_str().unwrap(), "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(findings["sources"], 3);
    assert_eq!(findings["baselines"], 5);
    assert_eq!(findings["genes"].as_array().unwrap().len(), 7);
    assert!(findings["smallest_gain"].as_f64().unwrap() > 0.0);
    assert!(!scratch.path("results").exists(), "check leaves nothing behind");
}

/// Of each task those samples that the search asks for.
#[test]
fn check_counts_the_samples_of_a_task_as_its_budget_does() {
    let scratch = Scratch::new();
    let limited = format!("{SPACE}[[tasks]]\nname = \"one\"\nlimit = 30\n[[tasks]]\nname = \"two\"\n");
    let run_file = scratch.run_file("run", 20, "name = \"sphere\"\nsamples = 100", &limited);
    let output = scratch.evomerge(&["check", run_file.to_str().unwrap(), "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let tasks = findings["tasks"].as_array().unwrap();
    assert!(tasks[0].as_str().unwrap().ends_with("weight 1, 30 samples"), "{findings}");
    assert!(tasks[1].as_str().unwrap().ends_with("weight 1, 100 samples"), "{findings}");
    assert!(findings["budget"].as_str().unwrap().contains("130 samples"), "{findings}");
}

#[test]
fn check_says_that_a_tiny_holdout_can_show_nothing() {
    let scratch = Scratch::new();
    let check = |samples: u32| {
        let run_file = scratch.run_file("run", 20, &format!("name = \"sphere\"\nsamples = {samples}"), &rest());
        let output = scratch.evomerge(&["check", run_file.to_str().unwrap(), "--json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let tiny = check(4);
    assert!(tiny["smallest_gain"].is_null(), "{tiny}");
    let holdout = tiny["holdout"].as_str().unwrap();
    assert!(holdout.contains("can show no gain") && holdout.contains("about 220"), "{holdout}");
    let large = check(4000);
    let gain = large["smallest_gain"].as_f64().unwrap();
    assert!(gain > 0.02 && gain < 0.1, "{large}");
    assert!(large["holdout"].as_str().unwrap().contains("a rate and a correlation of one half"), "{large}");
}
