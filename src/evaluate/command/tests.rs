//! The evaluator with real programs: small shell scripts.

use std::sync::Arc;

use super::super::{Attempt, CandidateRequest, Samples, TaskRequest};
use super::*;

#[derive(Default)]
struct Record(Mutex<Vec<Attempt>>);

impl AttemptObserver for Record {
    fn attempted(&self, attempt: &Attempt) {
        self.0.lock().unwrap().push(attempt.clone());
    }
}

struct Bench {
    folder: tempfile::TempDir,
    patience: Patience,
    record: Record,
    cancel: CancellationToken,
    stopping: CancellationToken,
}

const GOOD: &str = r#"{"tasks": {"add": {"n": 4, "metrics": {"accuracy": {"value": 0.5, "stderr": 0.25}},
    "per_sample": {"ids": [3, 1, 2, 0], "scores": {"accuracy": [1, 0, 1, 0]}}}}}"#;

fn task() -> EvaluatorTask {
    EvaluatorTask { name: "add".into(), data: None, metric: Some("accuracy".into()), max_new_tokens: None }
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("candidate")).unwrap();
        std::fs::write(folder.path().join("candidate/model.safetensors"), b"123").unwrap();
        std::fs::write(folder.path().join("good.json"), GOOD).unwrap();
        let patience = Patience {
            timeout: Duration::from_secs(60),
            startup_timeout: Duration::from_secs(1),
            max_outage: Duration::from_secs(1),
            max_attempts: 3,
        };
        let (cancel, stopping) = (CancellationToken::new(), CancellationToken::new());
        Self { folder, patience, record: Record::default(), cancel, stopping }
    }

    /// An evaluator that runs `script` by sh: `$1` is the result file, `$2` the request file.
    fn script(&self, script: &str) -> CommandEvaluator {
        std::fs::write(self.folder.path().join("score.sh"), script).unwrap();
        self.argv(&["sh", "score.sh", "{result_file}", "{request_file}"]).unwrap()
    }

    fn argv(&self, argv: &[&str]) -> Result<CommandEvaluator, EvaluateError> {
        let config = CommandConfig {
            argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
            in_flight: NonZeroUsize::new(2).unwrap(),
            deterministic: false,
            version: None,
            directory: self.folder.path().into(),
        };
        let (directory, stopping) = (self.folder.path().join("run"), self.stopping.clone());
        let context = ConnectContext { seed: 7, directory, notify: Arc::new(|_| {}), stopping };
        let (policy, grace) = (RetryPolicy::scaled(0.0), Duration::from_millis(100));
        CommandEvaluator::connect_with(&config, &self.patience, &[task()], &context, policy, grace)
    }

    async fn score(&self, evaluator: &CommandEvaluator) -> Result<Evaluation, EvaluateError> {
        let request = EvaluationRequest {
            evaluation_id: "ev-1".into(),
            run_id: "run".into(),
            run_name: "name".into(),
            candidate: CandidateRequest {
                id: "c1".into(),
                recipe_sha256: "c1c1".into(),
                path: Some(self.folder.path().join("candidate")),
                recipe: serde_json::json!({"merge_method": "linear"}),
                genome: vec![],
            },
            tasks: vec![TaskRequest {
                name: "add".into(),
                metric: "accuracy".into(),
                samples: Samples::Limit(4),
                seed: 11,
            }],
            fidelity: 1.0,
            replicate: 0,
        };
        evaluator.evaluate(&request, &self.record, &self.cancel).await
    }

    async fn run(&self, script: &str) -> Result<Evaluation, EvaluateError> {
        self.score(&self.script(script)).await
    }

    fn codes(&self) -> Vec<String> {
        let attempts = self.record.0.lock().unwrap();
        attempts.iter().filter_map(|attempt| attempt.fault.as_ref()).map(|fault| fault.code.clone()).collect()
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(file)).unwrap_or_default()
    }
}

#[tokio::test]
async fn a_program_scores() {
    let bench = Bench::new();
    let evaluator = bench.script("cp good.json $1; cp $2 seen.json");
    let evaluation = bench.score(&evaluator).await.unwrap();
    let add = &evaluation.tasks["add"];
    assert_eq!((add.n, add.metrics["accuracy"].value, add.metrics["accuracy"].stderr), (4, 0.5, Some(0.25)));
    assert_eq!(add.per_sample.as_ref().unwrap().scores["accuracy"], [0.0, 0.0, 1.0, 1.0]);
    let seen: serde_json::Value = serde_json::from_str(&bench.read("seen.json")).unwrap();
    assert_eq!(seen["evaluation_id"], "ev-1");
    assert_eq!(seen["tasks"][0]["limit"], 4);
    assert_eq!(seen["candidate"]["source"]["files"]["model.safetensors"]["size"], 3);
    assert!(!evaluator.knows_direction());
    let desks = std::fs::read_dir(bench.folder.path().join("run/command")).unwrap().count();
    assert_eq!(desks, 0, "the attempt's folder is gone");
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let bench = Bench::new();
    let desk = bench.folder.path().join("run/command/attempt-x");
    std::fs::create_dir_all(&desk).unwrap();
    std::fs::write(desk.join("request.json"), "{}").unwrap();
    bench.script("true");
    assert!(!desk.exists());
}

#[tokio::test]
async fn one_number_a_task_is_enough() {
    let bench = Bench::new();
    let evaluation = bench.run(r#"echo '{"scores": {"add": 0.75}}' > $1"#).await.unwrap();
    let add = &evaluation.tasks["add"];
    assert_eq!((add.n, add.metrics["accuracy"].value), (4, 0.75));
}

#[tokio::test]
async fn placeholders_are_filled_without_a_shell() {
    let bench = Bench::new();
    std::fs::write(
        bench.folder.path().join("score.sh"),
        "cp good.json \"$1\"; printf '%s\\n' \"$@\" > seen; cp \"$3\" recipe",
    )
    .unwrap();
    let argv = [
        "sh",
        "score.sh",
        "{result_dir}/result.json",
        "{candidate_dir}",
        "{recipe_file}",
        "{slot}:{seed}:{replicate}",
        "$(touch bad); {x y} {",
        "{}",
    ];
    bench.score(&bench.argv(&argv).unwrap()).await.unwrap();
    let seen = bench.read("seen");
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[1], bench.folder.path().join("candidate").to_str().unwrap());
    assert_eq!(lines[3..], ["0:11:0", "$(touch bad); {x y} {", "{}"]);
    assert!(bench.read("recipe").contains("linear") && !bench.folder.path().join("bad").exists());
}

#[test]
fn an_argv_that_cannot_work_is_refused_at_the_start() {
    let bench = Bench::new();
    for (argv, text) in [
        (vec![], "must start with a program"),
        (vec!["no-such-program-anywhere", "{result_file}"], "no program"),
        (vec!["./score.sh", "{result_file}"], "no program"),
        (vec!["sh", "-c", "true"], "{result_file}"),
        (vec!["sh", "{result_file}", "{candidate}"], "unknown placeholder {candidate}"),
    ] {
        let error = bench.argv(&argv).err().unwrap();
        assert!(matches!(error, EvaluateError::Setting(_)));
        assert!(error.to_string().starts_with("`evaluator.argv`: ") && error.to_string().contains(text), "{error}");
    }
}

#[tokio::test]
async fn exit_codes_say_who_is_to_blame() {
    let bench = Bench::new();
    let error = bench.run("echo bad tensor >&2; exit 65").await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Candidate(fault) if fault.detail.contains("bad tensor")), "{error}");
    let error = bench.run("exit 78").await.unwrap_err();
    assert!(matches!(error, EvaluateError::Configuration(_)), "{error}");
    assert_eq!(bench.record.0.lock().unwrap().len(), 2);
}

/// Faults that are tried again: the first attempt fails, the second scores.
#[tokio::test]
async fn faults_of_the_program_are_tried_again() {
    let null_value = r#"echo '{"tasks": {"add": {"n": 4, "metrics": {}}}}' > $1"#;
    let wrong_n = r#"echo '{"tasks": {"add": {"n": 5, "metrics": {"accuracy": {"value": 0.5}}}}}' > $1"#;
    let mismatch = r#"sed 's/"ids": .*]/"ids": [1]/' good.json > $1"#;
    for (first, code) in [
        ("exit 75", "exit_75"),
        ("exit 1", "exit_code"),
        ("kill -9 $$", "out_of_memory"),
        ("kill -11 $$", "signal"),
        ("exit 0", "invalid_answer"),
        (": > $1", "invalid_answer"),
        ("mkfifo $1", "invalid_answer"),
        (r#"echo '{"scores": {"add": 0.1, "add": 0.9}}' > $1"#, "invalid_answer"),
        ("echo '<html>' > $1", "invalid_answer"),
        ("head -c 60 good.json > $1", "invalid_answer"),
        (r#"echo '{"scores": {"add": 0.5, "more": 1}}' > $1"#, "invalid_answer"),
        (r#"echo '{"scores": {}}' > $1"#, "invalid_answer"),
        (r#"echo '{"scores": {"add": "0.5"}}' > $1"#, "invalid_answer"),
        (r#"echo '{"scores": {"add": 0.5}, "tasks": {}}' > $1"#, "invalid_answer"),
        (r#"echo '{}' > $1"#, "invalid_answer"),
        (null_value, "invalid_answer"),
        (wrong_n, "invalid_answer"),
        (mismatch, "invalid_answer"),
        ("printf '\\377' > $1", "invalid_answer"),
    ] {
        let bench = Bench::new();
        let script = format!("if [ -e again ]; then cp good.json $1; exit 0; fi\n: > again\n{first}\n");
        let outcome = bench.run(&script).await;
        assert!(outcome.is_ok(), "{first}: {}", outcome.unwrap_err());
        assert_eq!(bench.codes(), [code], "{first}");
    }
}

#[tokio::test]
async fn numbers_that_are_not_finite_are_the_candidates_fault() {
    for result in [
        r#"{"scores": {"add": NaN}}"#,
        r#"{"scores": {"add": 1e400}}"#,
        r#"{"tasks": {"add": {"n": 4, "metrics": {"accuracy": {"value": -Infinity}}}}}"#,
        r#"{"tasks": {"add": {"metrics": {"accuracy": {"value": 0.5}}, "per_sample": {"ids": [0, 1, 2, 3], "scores": {"accuracy": [1, NaN, 1, 0]}}}}}"#,
        r#"{"status": "failed", "error": {"code": "candidate_nonfinite", "class": "candidate"}}"#,
    ] {
        let bench = Bench::new();
        let error = bench.run(&format!("echo '{result}' > $1")).await.unwrap_err();
        assert!(matches!(&error, EvaluateError::Candidate(fault) if fault.code == "candidate_nonfinite"), "{error}");
    }
}

/// The candidate's fault says which number it was.
#[tokio::test]
async fn a_number_that_is_not_finite_is_named() {
    for (result, word) in [
        (r#"{"scores": {"add": Infinity}}"#, "(inf)"),
        (r#"{"scores": {"add": -1e400}}"#, "(-inf)"),
        (r#"{"scores": {"add": null}}"#, "(nan)"),
        (r#"{"tasks": {"add": {"metrics": {"accuracy": {"value": -Infinity, "stderr": NaN}}}}}"#, "(-inf)"),
        (r#"{"tasks": {"add": {"metrics": {"accuracy": {"value": Infinity, "nonfinite": "nan"}}}}}"#, "(nan)"),
        (
            r#"{"tasks": {"add": {"metrics": {"accuracy": {"value": 0.5}}, "per_sample": {"ids": [0, 1, 2, 3], "scores": {"accuracy": [1, Infinity, NaN, 0]}}}}}"#,
            "(inf)",
        ),
    ] {
        let bench = Bench::new();
        let error = bench.run(&format!("echo '{result}' > $1")).await.unwrap_err();
        assert!(matches!(&error, EvaluateError::Candidate(_)), "{error}");
        assert!(error.to_string().contains(&format!("task add: accuracy is not finite {word}")), "{result}: {error}");
    }
}

#[tokio::test]
async fn a_standard_error_that_is_not_finite_is_unknown_and_a_long_whole_number_is_a_number() {
    let bench = Bench::new();
    let long = "123456789012345678901234567890";
    let result =
        format!(r#"{{"tasks": {{"add": {{"metrics": {{"accuracy": {{"value": {long}, "stderr": Infinity}}}}}}}}}}"#);
    let evaluation = bench.run(&format!("echo '{result}' > $1")).await.unwrap();
    let accuracy = &evaluation.tasks["add"].metrics["accuracy"];
    assert_eq!((accuracy.value, accuracy.stderr), (1.2345678901234568e29, None));
    let evaluation = bench.run(&format!(r#"echo '{{"scores": {{"add": {long}}}}}' > $1"#)).await.unwrap();
    assert_eq!(evaluation.tasks["add"].metrics["accuracy"].value, 1.2345678901234568e29);
}

/// What people write who have not read the format, with what they are told.
#[tokio::test]
async fn a_result_of_another_form_is_explained() {
    for (result, expected) in [
        (
            r#"{"tasks": {"add": {"metrics": {"accuracy": 0.5}}}}"#,
            r#"`tasks.add.metrics.accuracy`: found the number `0.5`, expected a metric, such as {"value": 0.5}"#,
        ),
        (
            r#"{"tasks": {"add": {"metrics": {"accuracy": {"value": "0.5"}}}}}"#,
            r#"`tasks.add.metrics.accuracy.value`: found the text "0.5", expected a number"#,
        ),
        (r#"{"tasks": {"add": 0.5}}"#, r#"`tasks.add`: found the number `0.5`, expected a task, such as"#),
        ("null", r#"no result document: found null, expected an evaluation, such as {"tasks": "#),
        (r#"{"scores": {"add": "0.5"}}"#, r#"`scores.add` in the result file is the text "0.5"; expected one number"#),
        (r#"{"scores": [0.5]}"#, "`scores` in the result file is [0.5]; expected one number a task"),
        (r#"{"scores": {"add": 0.5"#, "near: {\"scores\": {\"add\": 0.5"),
    ] {
        let mut bench = Bench::new();
        bench.patience.max_attempts = 1;
        let error = bench.run(&format!("echo '{result}' > $1")).await.unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("Wire"), "{result}: {error}");
    }
}

#[test]
fn where_the_machine_gives_no_process_people_are_told_what_to_do() {
    let crowded = not_started("score", &std::io::Error::from(std::io::ErrorKind::WouldBlock));
    assert_eq!((crowded.reaction, crowded.fault.code.as_str()), (Reaction::Retry, "not_started"));
    assert!(crowded.fault.detail.contains("lower `evaluator.in_flight`"), "{}", crowded.fault);
    let gone = not_started("score", &std::io::Error::from(std::io::ErrorKind::NotFound));
    assert!(!gone.fault.detail.contains("in_flight"), "{}", gone.fault);
}

#[tokio::test]
async fn a_program_that_never_scored_stops_the_run_and_one_that_did_does_not() {
    let bench = Bench::new();
    let evaluator = bench.script("[ -e broken ] && { echo cuda lost; exit 1; }; cp good.json $1");
    std::fs::write(bench.folder.path().join("broken"), "").unwrap();
    let error = bench.score(&evaluator).await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Unusable(fault) if fault.detail.contains("cuda lost")), "{error}");
    assert!(error.to_string().starts_with("the evaluator cannot be used: "), "{error}");
    std::fs::remove_file(bench.folder.path().join("broken")).unwrap();
    bench.score(&evaluator).await.unwrap();
    std::fs::write(bench.folder.path().join("broken"), "").unwrap();
    for _ in 0..2 {
        assert!(matches!(bench.score(&evaluator).await, Err(EvaluateError::GivenUp(_))));
    }
    assert!(matches!(bench.score(&evaluator).await, Err(EvaluateError::Unusable(_))));
}

/// Whether the process is gone (or only waits to be reaped).
fn is_gone(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().is_empty() || rest.trim_start().starts_with('Z'))
}

/// A killed process is gone a moment after the signal was sent; one that was not killed sleeps for ten minutes.
fn until_gone(pid: &str) {
    assert!(!pid.trim().is_empty());
    while !is_gone(pid) {
        std::thread::yield_now();
    }
}

/// Leaves a process behind that takes no notice of SIGTERM.
const STUBBORN_CHILD: &str =
    "(trap '' TERM; echo ready > ready; exec sleep 600) &\necho $! > pid.tmp; mv pid.tmp pid\n";

#[tokio::test]
async fn what_a_program_leaves_behind_is_killed() {
    let bench = Bench::new();
    bench.run(&format!("{STUBBORN_CHILD} cp good.json $1")).await.unwrap();
    until_gone(&bench.read("pid"));
}

#[tokio::test]
async fn a_program_that_takes_too_long_is_killed_with_its_children() {
    let mut bench = Bench::new();
    bench.patience.timeout = Duration::from_millis(300);
    let error = bench.run(&format!("{STUBBORN_CHILD} trap '' TERM; wait; sleep 600")).await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Unusable(fault) if fault.code == "timeout"), "{error}");
    assert_eq!(bench.codes(), ["timeout", "timeout"]);
    until_gone(&bench.read("pid"));
}

#[tokio::test]
async fn a_cancelled_program_is_killed_with_its_children() {
    let bench = Bench::new();
    let evaluator = bench.script(&format!("{STUBBORN_CHILD} wait"));
    let started = async {
        while bench.read("pid").is_empty() {
            tokio::task::yield_now().await;
        }
        bench.cancel.cancel();
    };
    let (outcome, ()) = tokio::join!(bench.score(&evaluator), started);
    assert!(matches!(outcome, Err(EvaluateError::Cancelled)));
    until_gone(&bench.read("pid"));
}

#[tokio::test]
async fn a_dropped_evaluation_leaves_no_process() {
    let bench = Bench::new();
    let evaluator = bench.script(&format!("{STUBBORN_CHILD} wait"));
    {
        let evaluation = bench.score(&evaluator);
        tokio::pin!(evaluation);
        while bench.read("pid").is_empty() {
            assert!(futures_util::poll!(&mut evaluation).is_pending());
            tokio::task::yield_now().await;
        }
    }
    until_gone(&bench.read("pid"));
}

/// Not a test by itself: the process that `a_killed_search_leaves_no_program` kills.
#[tokio::test]
async fn role_of_a_search_that_gets_killed() {
    let Some(folder) = std::env::var_os("EVOMERGE_TEST_ROLE_FOLDER") else { return };
    let mut bench = Bench::new();
    bench.patience.timeout = Duration::from_secs(600);
    let script = format!("echo $$ > {0}/pid.tmp; mv {0}/pid.tmp {0}/pid; exec sleep 600", Path::new(&folder).display());
    let _ = bench.run(&script).await;
}

#[test]
fn a_killed_search_leaves_no_program() {
    if find_setpriv().is_none() {
        eprintln!("no setpriv here: programs outlive a search that is killed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut search = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "evaluate::command::tests::role_of_a_search_that_gets_killed", "--nocapture"])
        .env("EVOMERGE_TEST_ROLE_FOLDER", folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = loop {
        match std::fs::read_to_string(folder.path().join("pid")) {
            Ok(pid) => break pid,
            Err(_) => assert!(search.try_wait().unwrap().is_none(), "the search ended early"),
        }
    };
    search.kill().unwrap();
    search.wait().unwrap();
    until_gone(&pid);
}

#[test]
fn the_fingerprint_follows_program_version_and_tasks() {
    let bench = Bench::new();
    let config = |argv: &[&str], version: Option<&str>| CommandConfig {
        argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
        in_flight: NonZeroUsize::MIN,
        deterministic: false,
        version: version.map(str::to_owned),
        directory: bench.folder.path().into(),
    };
    let prints = [
        fingerprint_of(&config(&["sh", "a b"], None), &[task()]),
        fingerprint_of(&config(&["sh", "a", "b"], None), &[task()]),
        fingerprint_of(&config(&["sh", "a b"], Some("2")), &[task()]),
        fingerprint_of(&config(&["sh", "a b"], None), &[]),
    ];
    for (index, print) in prints.iter().enumerate() {
        assert!(!prints[..index].contains(print));
    }
}
