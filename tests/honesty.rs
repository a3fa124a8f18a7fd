//! What keeps a search honest, through the program: replays of recorded scores, a hold-out that is one, alarms.

#[path = "support/fault_server.rs"]
#[allow(dead_code, reason = "shared with the tests of the HTTP evaluator")]
mod fault_server;
#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::fmt::Write as _;
use std::path::Path;

use fault_server::{FaultServer, Reply};
use runs::{SPACE, Scratch, TASKS, cell, stderr};

#[test]
fn a_matrix_and_a_ledger_are_replayed() {
    let scratch = Scratch::new();
    // Candidate `c7` is right on all samples but every ninth, `c0` on all but every second.
    let mut text = "candidate".to_string();
    (0..90).for_each(|sample| write!(text, ",{sample}").unwrap());
    for candidate in 0..8_usize {
        write!(text, "\nc{candidate}").unwrap();
        (0..90).for_each(|sample| {
            write!(text, ",{}", u8::from((sample + candidate) % (candidate + 2) != 0)).unwrap();
        });
    }
    std::fs::write(scratch.path("scores.csv"), text.clone() + "\n").unwrap();
    let arguments = ["simulate", "scores.csv", "--budget", "80,720", "--eta", "2", "--seed", "4", "--json"];
    let output = scratch.evomerge(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["best"]["candidate"], "c7");
    assert_eq!(json["rungs"], serde_json::json!([8, 4, 2]));
    assert_eq!(json["budgets"][1]["uniform"]["samples_of_chosen"], 90.0);
    assert!(json["budgets"][0]["uniform"]["over_statement"].as_f64().unwrap() > 0.0);
    assert_eq!(scratch.evomerge(&arguments).stdout, output.stdout);
    for separator in ["\t", ";"] {
        std::fs::write(scratch.path("scores.csv"), text.replace(',', separator)).unwrap();
        assert_eq!(scratch.evomerge(&arguments).stdout, output.stdout, "{separator:?}");
    }

    let run_file = scratch.run_file(
        "night",
        12,
        "name = \"sphere\"\nsamples = 60",
        &format!("{SPACE}\n[[tasks]]\nname = \"one\"\n"),
    );
    let report = scratch.search(&run_file, &[]);
    let output = scratch.evomerge(&["simulate", "results/night/ledger.sqlite", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["samples"], 60);
    assert_eq!(json["best"]["candidate"], report["best"]["candidate_id"]);
    let score = json["best"]["score"].as_f64().unwrap();
    assert!((score - report["best"]["objective"].as_f64().unwrap()).abs() < 1e-9);
}

#[test]
fn a_run_is_replayed_task_by_task() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("night", 12, "name = \"sphere\"\nsamples = 60", &format!("{SPACE}{TASKS}"));
    scratch.search(&run_file, &[]);
    let simulate = |budget: u64| {
        scratch.evomerge(&["simulate", "results/night", "--json", "--budget", budget.to_string().as_str()])
    };
    let candidates = 12;
    let output = simulate(2 * candidates - 1);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("on each of 2 tasks"), "{}", stderr(&output));
    let output = simulate(2 * candidates);
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["candidates"], candidates);
    assert_eq!(json["budgets"][0]["uniform"]["samples_of_chosen"], 2.0);
}

#[test]
fn scores_that_cannot_be_replayed_are_named() {
    let scratch = Scratch::new();
    let refused = |text: &str, arguments: &[&str], code: i32, wanted: &[&str]| {
        std::fs::write(scratch.path("scores.csv"), text).unwrap();
        let output = scratch.evomerge(&[&["simulate", "scores.csv"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        wanted.iter().for_each(|word| assert!(stderr(&output).contains(word), "{}", stderr(&output)));
    };
    refused("candidate,1,2\na,1,yes\nb,0,1\n", &[], 65, &["scores.csv", "`a`", "`2`", "yes"]);
    refused("candidate,1,2\na,1\nb,0,1\n", &[], 65, &["scores.csv"]);
    refused("candidate,1\na,1\n", &[], 65, &["two"]);
    refused("candidate,1\na,NaN\nb,0\n", &[], 65, &["`a`", "finite"]);
    refused("candidate,1,2\na,1,0\nb,1e308,1e308\n", &[], 65, &["scores.csv", "`b`", "too large"]);
    refused("candidate,1\na,1\nb,0\n", &["--budget", "1"], 2, &["one sample"]);
    refused("candidate,1\na,1\nb,0\n", &["--eta", "1"], 2, &["eta"]);
    let output = scratch.evomerge(&["simulate", "nowhere.csv"]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
}

/// Without a header, the first candidate would be taken for one and be lost. Numbers of samples are a header.
#[test]
fn scores_are_no_header_and_numbers_of_samples_are() {
    let scratch = Scratch::new();
    let simulate = |header: &str| {
        let samples = header.split(',').count() - 1;
        let row = |score: &str| vec![score; samples].join(",");
        std::fs::write(scratch.path("scores.csv"), format!("{header}\nb,{}\nc,{}\n", row("1"), row("0"))).unwrap();
        scratch.evomerge(&["simulate", "scores.csv", "--json"])
    };
    for scores in ["a,1,0", "a,0,1,1", "a,1,1", "a,0.5", "a,0.25,0.5,0.75", "a,-1,-2", "a,100,0,100", "a, 0, 0"] {
        let output = simulate(scores);
        assert_eq!(output.status.code(), Some(65), "{scores}: {}", stderr(&output));
        for word in ["scores.csv", "line 1", "`a`", "header", "candidate,1,2,3"] {
            assert!(stderr(&output).contains(word), "{scores}: {}", stderr(&output));
        }
    }
    for header in
        ["candidate,0,1,2", "candidate,0,1", "candidate,1", "candidate,0,1,10,2", "id,1,x,1", "id,q0,q1", "7,8,9"]
    {
        let output = simulate(header);
        assert!(output.status.success(), "{header}: {}", stderr(&output));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["candidates"], 2, "{header}");
    }
}

/// One hold-out sample that the search has too, under another line number, is enough.
#[cfg(feature = "native")]
#[test]
fn a_holdout_that_shares_samples_with_the_search_is_refused() {
    let scratch = Scratch::new();
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama");
    let lines = |file: &str| -> Vec<String> {
        let text = std::fs::read_to_string(zoo.join("data").join(file)).unwrap();
        text.lines().take(20).map(str::to_string).collect()
    };
    let (search, mut holdout) = (lines("add.val.jsonl"), lines("add.test.jsonl"));
    holdout.retain(|line| !search.contains(line));
    let check = |holdout: &[String]| {
        std::fs::write(scratch.path("search.jsonl"), search.join("\n")).unwrap();
        std::fs::write(scratch.path("holdout.jsonl"), holdout.join("\n")).unwrap();
        let text = format!(
            "name = \"run\"\n[models]\nbase = {:?}\nsources = [{:?}]\n[space]\nmethod = \"task_arithmetic\"\n[budget]\nevaluations = 9\n\
             [evaluator]\nkind = \"native\"\n[[tasks]]\nname = \"add\"\ndata = \"search.jsonl\"\nmetric = \"exact_match\"\n\
             [holdout]\ntasks = {{ add = {{ data = \"holdout.jsonl\" }} }}\n",
            zoo.join("base"),
            zoo.join("expert-add"),
        );
        std::fs::write(scratch.path("run.toml"), text).unwrap();
        scratch.evomerge(&["check", "run.toml"])
    };
    let output = check(&holdout);
    assert!(output.status.success(), "{}", stderr(&output));
    // The same sample, written with another space.
    holdout.push(search[3].replace("\": ", "\":  "));
    assert!(!search.contains(&holdout[holdout.len() - 1]));
    let output = check(&holdout);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    for word in ["`add`", "1 of ", "never saw"] {
        assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
    }
}

/// A split by sample id cannot see that two samples are the same question.
#[cfg(feature = "native")]
#[test]
fn a_split_that_puts_a_repeated_sample_on_both_sides_is_refused() {
    let scratch = Scratch::new();
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama");
    let text = std::fs::read_to_string(zoo.join("data/add.val.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().take(20).collect();
    let check = |lines: &[&str]| {
        std::fs::write(scratch.path("data.jsonl"), lines.join("\n")).unwrap();
        let text = format!(
            "name = \"run\"\n[models]\nbase = {:?}\nsources = [{:?}]\n[space]\nmethod = \"task_arithmetic\"\n[budget]\nevaluations = 9\n\
             [evaluator]\nkind = \"native\"\n[[tasks]]\nname = \"add\"\ndata = \"data.jsonl\"\n[holdout]\nfraction = 0.4\n",
            zoo.join("base"),
            zoo.join("expert-add"),
        );
        std::fs::write(scratch.path("run.toml"), text).unwrap();
        scratch.evomerge(&["check", "run.toml"])
    };
    let output = check(&lines);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = check(&[lines.clone(), lines].concat());
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    for word in ["`add`", "hold-out samples are among", "more than once"] {
        assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
    }
}

/// An endpoint does not show its samples, but it can say which set they are.
#[test]
fn a_holdout_task_with_the_sample_set_of_a_search_task_is_refused() {
    let scratch = Scratch::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let server = FaultServer::start(vec![]);
    let check = |sets: [&str; 2]| {
        let mut known = fault_server::capabilities();
        for (task, set) in known["tasks"].as_array_mut().unwrap().iter_mut().zip(sets) {
            task["sample_set_sha256"] = set.into();
        }
        *server.inner.capabilities.lock().unwrap() = known;
        let text = format!(
            "name = \"run\"\n[models]\nbase = {:?}\nsources = [{:?}]\n[space]\nmethod = \"task_arithmetic\"\n[budget]\nevaluations = 9\n\
             [evaluator]\nkind = \"http\"\nendpoints = [{:?}]\n[[tasks]]\nname = \"add\"\n\
             [holdout]\ntasks = {{ add = {{ task = \"rev\" }} }}\n",
            golden.join("base"),
            golden.join("a"),
            server.url(),
        );
        std::fs::write(scratch.path("run.toml"), text).unwrap();
        scratch.evomerge(&["check", "run.toml"])
    };
    let output = check(["one", "two"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = check(["one", "one"]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    for word in ["task `add`", "sample_set_sha256", "never saw"] {
        assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
    }
}

#[test]
fn candidates_that_all_fail_are_noticed_and_the_best_baseline_stands() {
    let scratch = Scratch::new();
    let evaluator = "name = \"sphere\"\nsamples = 50\ninfeasible_rate = 1.0";
    let run_file = scratch.run_file("run", 20, evaluator, &format!("{SPACE}{TASKS}"));
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap(), "--json", "--require-improvement"]);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["verdict"], &report["winner"]), (&"no_evidence".into(), &report["baseline"]));
    let kinds: Vec<_> = report["alarms"].as_array().unwrap().iter().map(|alarm| &alarm["kind"]).collect();
    assert_eq!(kinds, ["nothing_scored"]);
    assert!(report["alarms"][0]["message"].as_str().unwrap().contains("infeasible by order"), "{}", report["alarms"]);
}

#[test]
fn alarms_stand_in_the_report_and_in_the_verdict() {
    let scratch = Scratch::new();
    // Without noise, every candidate of a flat landscape scores the same.
    let tasks = "[[tasks]]\nname = \"gsm8k\"\n[[tasks]]\nname = \"gsm8k_train\"\n[holdout]\nfraction = 0.4\n";
    let run_file = scratch.run_file("run", 15, "name = \"flat\"\nsamples = 50", &format!("{SPACE}{tasks}"));
    let report = scratch.search(&run_file, &[]);
    let kinds: Vec<_> =
        report["alarms"].as_array().unwrap().iter().map(|alarm| (&alarm["kind"], &alarm["task"])).collect();
    let null = serde_json::Value::Null;
    assert_eq!(kinds, [(&"benchmark_test_set".into(), &"gsm8k".into()), (&"flat_fitness".into(), &null)]);
    let verdict = std::fs::read_to_string(scratch.path("results/run/verdict.json")).unwrap();
    let verdict: serde_json::Value = serde_json::from_str(&verdict).unwrap();
    assert_eq!((&verdict["alarms"], &verdict["verdict"]), (&report["alarms"], &"no_evidence".into()));
    let output = scratch.evomerge(&["search", run_file.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("warning: all ") && text.contains("warning: task `gsm8k`"), "{text}");
    let output = scratch.evomerge(&["check", run_file.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("task `gsm8k` looks like"), "{output:?}");

    let run_file = scratch.run_file("good", 15, "name = \"sphere\"\nsamples = 50", &format!("{SPACE}{TASKS}"));
    assert_eq!(scratch.search(&run_file, &[])["alarms"], serde_json::json!([]));
}

/// Scores of soups and merges of the golden models `a`, `b` and `c` (known by their content), by search and hold-out: `a`
/// with `b` is no better than `a` where the greedy soup is made, and better on the hold-out.
const SOUPS: &str = r#"
names=$(sed -n 's/.*"model": "\(....\).*/\1/p' "$1" | tr '\n' ' ')
grep '"weight"' "$1" | grep -qv '1.0$' && names=merge
case $names in
  "8732 ") search=320 holdout=320;; "b9fd ") search=280 holdout=280;; "c92f ") search=240 holdout=240;;
  "8732 b9fd ") search=318 holdout=360;; merge) search=340 holdout=352;; *) search=200 holdout=200;;
esac
if grep -q '"t2"' "$2"; then task=t2 right=$holdout; else task=t right=$search; fi
awk -v task=$task -v right=$right 'BEGIN {
  for (i = 0; i < 400; i++) { ids = ids (i ? "," : "") i; scores = scores (i ? "," : "") (i < right ? 1 : 0) }
  printf "{\"tasks\": {\"%s\": {\"n\": 400, \"metrics\": {\"score\": {\"value\": %.4f}}, ", task, right / 400
  printf "\"per_sample\": {\"ids\": [%s], \"scores\": {\"score\": [%s]}}}}}", ids, scores
}' > "$3"
"#;

#[test]
fn a_trial_that_the_greedy_soup_did_not_keep_is_no_rival() {
    let scratch = Scratch::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    std::fs::write(scratch.path("score.sh"), SOUPS).unwrap();
    let sources = ["a", "b", "c"].map(|name| golden.join(name));
    let text = format!(
        "name = \"run\"\nseed = 3\n[models]\nsources = {sources:?}\n[space]\nmethod = \"linear\"\n[strategy]\nkind = \"random\"\n\
         [budget]\nevaluations = 9\n[evaluator]\nkind = \"command\"\ndeterministic = true\n\
         argv = [\"sh\", \"score.sh\", \"{{recipe_file}}\", \"{{request_file}}\", \"{{result_file}}\"]\n\
         [[tasks]]\nname = \"t\"\n[holdout]\ntasks = {{ t = {{ task = \"t2\" }} }}\n"
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
    let report = scratch.search(Path::new("run.toml"), &[]);
    let trials = report["baselines"].as_array().unwrap().iter().filter(|row| row["origin"] == "greedy_soup");
    assert!(trials.filter(|row| row["objective"] == 0.795).count() == 1, "the test needs the trial: {report}");
    assert_eq!((&report["soup"]["members"], &report["soup_index"]), (&serde_json::json!([0]), &0.into()));
    assert_eq!((&report["baseline"]["origin"], &report["rivals"]), (&"source:a".into(), &serde_json::json!([])));
    assert_eq!(report["verdict"], "improvement", "{}", report["sentence"]);
    let output = scratch.evomerge(&["search", "run.toml"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("source:a = greedy_soup") && !text.contains("\ngreedy_soup"), "{text}");
}

/// A soup of two golden models is right more often than one of all three, and that more often than one of them alone.
const BETTER_SOUPS: &str = r#"
case $(grep -c '"model"' "$1") in 1) right=300;; 2) right=372;; *) right=345;; esac
task=t
grep -q '"t2"' "$2" && task=t2
awk -v task=$task -v right=$right 'BEGIN {
  for (i = 0; i < 400; i++) { ids = ids (i ? "," : "") i; scores = scores (i ? "," : "") (i < right ? 1 : 0) }
  printf "{\"warnings\": [\"a remark\"], \"tasks\": {\"%s\": {\"n\": 400, \"metrics\": {\"score\": {\"value\": %.4f}}, ", task, right / 400
  printf "\"per_sample\": {\"ids\": [%s], \"scores\": {\"score\": [%s]}}}}}", ids, scores
}' > "$3"
"#;

#[test]
fn what_a_run_of_soups_makes_is_compared_with_its_sources() {
    let scratch = Scratch::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    std::fs::write(scratch.path("score.sh"), BETTER_SOUPS).unwrap();
    let sources = ["a", "b", "c"].map(|name| golden.join(name));
    for (kind, winner, baseline) in
        [("greedy-soup", "greedy_soup", "uniform_soup"), ("uniform-soup", "uniform_soup", "source:a")]
    {
        let text = format!(
            "name = \"{kind}\"\n[models]\nsources = {sources:?}\n[strategy]\nkind = \"{kind}\"\n\
             [budget]\nevaluations = 9\n[evaluator]\nkind = \"command\"\ndeterministic = true\n\
             argv = [\"sh\", \"score.sh\", \"{{recipe_file}}\", \"{{request_file}}\", \"{{result_file}}\"]\n\
             [[tasks]]\nname = \"t\"\n[holdout]\ntasks = {{ t = {{ task = \"t2\" }} }}\n"
        );
        std::fs::write(scratch.path("run.toml"), text).unwrap();
        let output = scratch.evomerge(&["search", "run.toml", "--json"]);
        // A remark is shown once, whoever makes it.
        assert_eq!(stderr(&output).matches("warning of the evaluator").count(), 2, "{}", stderr(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["baseline"]["origin"], baseline, "{report}");
        let status = scratch.evomerge(&["status", &format!("results/{kind}"), "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(status["best_baseline"]["origin"], baseline, "{status}");
        assert_eq!(
            (&report["winner"]["origin"], &report["verdict"]),
            (&winner.into(), &"improvement".into()),
            "{report}"
        );
    }
}

/// The answer of an endpoint that does not find the candidate.
fn no_such_folder() -> Reply {
    Reply::Edited(|answer| {
        *answer = serde_json::json!({
            "evaluation_id": answer["evaluation_id"], "candidate_id": answer["candidate_id"], "status": "failed",
            "instance_id": answer["instance_id"], "fingerprint": answer["fingerprint"],
            "error": {"code": "candidate_invalid", "class": "candidate", "title": "no such folder", "detail": "no such folder"},
        });
    })
}

/// A search of golden models at an endpoint.
fn write_http_run(scratch: &Scratch, server: &FaultServer, evaluator: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let text = format!(
        "name = \"run\"\n[models]\nbase = {:?}\nsources = [{:?}, {:?}]\n[space]\nmethod = \"task_arithmetic\"\n[budget]\nevaluations = 30\n\
         [evaluator]\nkind = \"http\"\nendpoints = [\"{}\"]\nstartup_timeout = \"5s\"\n{evaluator}[[tasks]]\nname = \"add\"\n",
        golden.join("base"),
        golden.join("a"),
        golden.join("b"),
        server.url()
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
}

/// A mount that went away, say: the candidates are not to blame, and the budget is not spent on them.
#[test]
fn an_evaluator_that_calls_everything_broken_in_mid_run_stops_it() {
    let scratch = Scratch::new();
    let server = FaultServer::start(std::iter::repeat_with(|| Reply::Good).take(9).collect());
    *server.inner.otherwise.lock().unwrap() = no_such_folder();
    write_http_run(&scratch, &server, "");
    for blamed in [8, 16] {
        let output = scratch.evomerge(&["search", "run.toml"]);
        assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
        for word in ["candidates in a row broken", "uniform_soup", "no such folder", "same command"] {
            assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
        }
        // Look-ahead is two, and the witness is asked each time.
        assert!((9 + blamed..9 + blamed + 6).contains(&server.posts()), "{} of {blamed}", server.posts());
    }
    *server.inner.otherwise.lock().unwrap() = Reply::Good;
    scratch.search(Path::new("run.toml"), &[]);
    let trials = scratch.trials("results", "run");
    let broken = trials.iter().filter(|row| cell(row, "status") == "infeasible").count();
    assert!(trials.len() == 30 && (16..=20).contains(&broken), "{broken} of {}", trials.len());
    let status = scratch.evomerge(&["status", "results/run", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let alarms = status["alarms"].as_array().unwrap();
    assert!(alarms.iter().all(|alarm| alarm["kind"] != "sentinel_drift"), "{status}");
}

/// A witness that gets no answer is as good as one that is called broken: nobody is asked for ever.
#[test]
fn a_witness_that_is_given_up_stops_the_run() {
    let scratch = Scratch::new();
    let server = FaultServer::start(std::iter::repeat_with(|| Reply::Good).take(9).collect());
    *server.inner.otherwise.lock().unwrap() = Reply::Scored(|request, answer| {
        let is_witness = request["replicate"].as_u64() > Some(0);
        let (code, class) =
            if is_witness { ("internal", "infrastructure") } else { ("candidate_invalid", "candidate") };
        *answer = serde_json::json!({
            "evaluation_id": answer["evaluation_id"], "candidate_id": answer["candidate_id"], "status": "failed",
            "instance_id": answer["instance_id"], "fingerprint": answer["fingerprint"],
            "error": {"code": code, "class": class, "title": "to order", "detail": "to order"},
        });
    });
    write_http_run(&scratch, &server, "max_attempts = 1\n");
    let output = scratch.evomerge(&["search", "run.toml"]);
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    for word in ["candidates in a row broken", "cannot be scored any more", "internal: to order"] {
        assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
    }
    assert!(server.posts() < 24, "{}", server.posts());
}

#[test]
fn a_candidate_that_somebody_removes_is_not_to_blame() {
    let scratch = Scratch::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    std::fs::write(scratch.path("score.sh"), "rm -rf \"$1\"; exit 65\n").unwrap();
    let sources = ["a", "b"].map(|name| golden.join(name));
    let text = format!(
        "name = \"run\"\n[models]\nsources = {sources:?}\n[space]\nmethod = \"linear\"\n[budget]\nevaluations = 9\n\
         [evaluator]\nkind = \"command\"\nargv = [\"sh\", \"score.sh\", \"{{candidate_dir}}\", \"{{result_file}}\"]\n\
         [[tasks]]\nname = \"t\"\n"
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
    let output = scratch.evomerge(&["search", "run.toml"]);
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    assert!(stderr(&output).contains("was removed while it was to be scored"), "{}", stderr(&output));
    assert!(scratch.trials("results", "run").is_empty());
}

#[test]
fn a_run_whose_baselines_are_all_infeasible_stops() {
    let scratch = Scratch::new();
    let server = FaultServer::start(vec![]);
    *server.inner.otherwise.lock().unwrap() = no_such_folder();
    write_http_run(&scratch, &server, "");
    // Once more: what is recorded stands, so it stops again, without asking.
    for _ in 0..2 {
        let output = scratch.evomerge(&["search", "run.toml"]);
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        for word in ["none of the 4 baselines", "no such folder", "candidates.dir", "--fresh"] {
            assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
        }
    }
    assert!(server.posts() < 30, "{}", server.posts());
}

/// As `scripts/a_a_runs.py` does with 100 seeds.
#[test]
fn searches_with_nothing_to_find_find_nothing() {
    let scratch = Scratch::new();
    let run_file =
        scratch.run_file("run", 20, "name = \"flat\"\nsamples = 100\nnoise = 0.5", &format!("{SPACE}{TASKS}"));
    let found = |seed: u64| {
        let results = format!("results-{seed}");
        let report = scratch.search(&run_file, &["--seed", &seed.to_string(), "--results", &results, "--quiet"]);
        report["verdict"] != "no_evidence"
    };
    let wrong: Vec<u64> = (1..=20).filter(|seed| found(*seed)).collect();
    assert!(wrong.len() <= 2, "seeds {wrong:?} found an improvement that is not there");
}

/// A source that was given up might be the best of all: it is asked again in the end, and at the next start.
#[test]
fn a_baseline_that_was_given_up_leaves_no_evidence_until_it_has_a_score() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let start = |failing: &[u32], score_of_b: &str| -> (Scratch, serde_json::Value) {
        let scratch = Scratch::new();
        // Base, `a`, `b`: the third one fails, evaluated one after the other. The ninth evaluation is its second.
        let failing = failing.iter().map(|n| format!("[ $n = {n} ] || ")).collect::<String>();
        let count = scratch.path("count").display().to_string();
        let script = format!(
            "score=0.5; grep -q task_arithmetic $1 && score=0.9\n\
             n=$(cat {count} 2>/dev/null || echo 0); n=$((n + 1)); echo $n > {count}\n\
             [ $n = 9 ] && score={score_of_b}\n\
             if {failing}false; then exit 1; fi\n\
             task=t; grep -q sealed $2 && task=sealed\n\
             echo \"{{\\\"tasks\\\": {{\\\"$task\\\": {{\\\"n\\\": 100, \\\"metrics\\\": {{\\\"score\\\": \
             {{\\\"value\\\": $score, \\\"stderr\\\": 0.01}}}}}}}}}}\" > $3\n"
        );
        std::fs::write(scratch.path("score.sh"), script).unwrap();
        let text = format!(
            "name = \"run\"\n[models]\nbase = {:?}\nsources = [{:?}, {:?}]\n[space]\nmethod = \"task_arithmetic\"\n[budget]\n\
             evaluations = 8\n[evaluator]\nkind = \"command\"\nmax_attempts = 1\ndeterministic = true\n\
             argv = [\"sh\", {:?}, \"{{recipe_file}}\", \"{{request_file}}\", \"{{result_file}}\"]\n[[tasks]]\nname = \"t\"\nmetric = \"score\"\n\
             [holdout]\ntasks = {{ t = {{ task = \"sealed\" }} }}\n",
            golden.join("base"),
            golden.join("a"),
            golden.join("b"),
            scratch.path("score.sh"),
        );
        std::fs::write(scratch.path("run.toml"), text).unwrap();
        let report = scratch.search(Path::new("run.toml"), &["--quiet"]);
        (scratch, report)
    };
    let none = serde_json::json!([]);
    let (_, report) = start(&[], "0.5");
    assert_eq!((&report["verdict"], &report["alarms"]), (&"improvement".into(), &none), "{report}");
    // Asked once more, it has a score.
    let (scratch, report) = start(&[3], "0.5");
    assert_eq!((&report["verdict"], &report["failed"]), (&"improvement".into(), &1.into()), "{report}");
    assert_eq!(report["alarms"], none, "{report}");
    let again = scratch.search(Path::new("run.toml"), &["--quiet"]);
    assert_eq!((&again["verdict"], &again["alarms"]), (&"improvement".into(), &none), "{again}");
    // It is the best of all.
    let (scratch, report) = start(&[3], "0.99");
    assert_eq!(report["winner"]["origin"], "source:b", "{report}");
    assert_eq!(report["verdict"], "no_evidence", "{report}");
    let best = std::fs::read_to_string(scratch.path("results/run/best/recipe.toml")).unwrap();
    assert!(!best.contains("task_arithmetic"), "{best}");
    let status = scratch.evomerge(&["status", "results/run", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&status["best"]["objective"], &status["best_baseline"]["objective"]), (&0.99.into(), &0.99.into()));
    assert_eq!(status["failed"], 1, "{status}");
    let exported = scratch.evomerge(&["export", "results/run", "--out", "model"]);
    assert!(exported.status.success());
    let card = std::fs::read_to_string(scratch.path("model/README.md")).unwrap();
    assert!(card.contains("Objective 0.9900"), "{card}");
    // It stays the best while the search goes on.
    scratch.search(Path::new("run.toml"), &["--quiet", "--max-evaluations", "10"]);
    assert_eq!(std::fs::read_to_string(scratch.path("results/run/best/recipe.toml")).unwrap(), best);
    // Given up twice, and once more at the next start, where it is the first to be asked; scored at the one after that.
    let (scratch, report) = start(&[3, 9, 15], "0.5");
    assert_eq!((&report["verdict"], &report["failed"]), (&"no_evidence".into(), &1.into()), "{report}");
    let alarms = report["alarms"].as_array().unwrap();
    assert!(alarms.iter().any(|alarm| alarm["kind"] == "baseline_unscored"), "{report}");
    assert!(report["sentence"].as_str().unwrap().contains("for want of a score of source:b"), "{report}");
    let again = scratch.search(Path::new("run.toml"), &["--quiet"]);
    assert_eq!(again["verdict"], "no_evidence", "{again}");
    let again = scratch.search(Path::new("run.toml"), &["--quiet"]);
    assert_eq!((&again["verdict"], &again["alarms"]), (&"improvement".into(), &none), "{again}");
}

/// A wall clock may strike before all baselines have a score.
#[test]
fn a_baseline_that_the_run_did_not_get_to_leaves_no_evidence() {
    let scratch = Scratch::new();
    let run_file = scratch.run_file("run", 40, "name = \"sphere\"\nlatency = \"150ms\"", &format!("{SPACE}{TASKS}"));
    let report = scratch.search(&run_file, &["--quiet", "--wall-clock", "200ms"]);
    let alarms = report["alarms"].as_array().unwrap();
    let message = alarms.iter().find(|alarm| alarm["kind"] == "baseline_unscored").unwrap()["message"].to_string();
    assert!(message.contains("uniform_soup") && message.contains("larger budget"), "{message}");
    assert_eq!(report["verdict"], "no_evidence", "{report}");
    assert!(report["sentence"].as_str().unwrap().contains("uniform_soup"), "{report}");
    let report = scratch.search(&run_file, &["--quiet", "--wall-clock", "60s"]);
    assert!(report["alarms"].as_array().unwrap().iter().all(|alarm| alarm["kind"] != "baseline_unscored"), "{report}");
}
