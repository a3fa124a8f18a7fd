//! The evaluator against a real server on loopback that misbehaves to order. The oracle throughout: the class is the
//! one of the protocol's table, no fault becomes a score, and no fault of the infrastructure becomes a worst fitness.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::super::{Attempt, CandidateRequest, SampleId, Samples, TaskRequest};
use super::*;

#[path = "../../tests/support/fault_server.rs"]
mod fault_server;
use fault_server::{FaultServer, Reply, http};

/// Keeps attempts.
#[derive(Default)]
struct Record(Mutex<Vec<Attempt>>);

impl AttemptObserver for Record {
    fn attempted(&self, attempt: &Attempt) {
        self.0.lock().unwrap().push(attempt.clone());
    }
}

struct Bench {
    config: HttpConfig,
    patience: Patience,
    policy: RetryPolicy,
    limits: Limits,
    tasks: Vec<EvaluatorTask>,
    lines: Arc<Mutex<Vec<String>>>,
    record: Record,
    cancel: CancellationToken,
    folder: tempfile::TempDir,
}

fn task(name: &str) -> EvaluatorTask {
    EvaluatorTask { name: name.into(), data: None, metric: Some("accuracy".into()), max_new_tokens: None }
}

impl Bench {
    fn new(endpoints: Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.safetensors"), b"12345").unwrap();
        Self {
            config: HttpConfig {
                endpoints,
                token_env: None,
                token_file: None,
                allow_insecure_token: false,
                in_flight: NonZeroUsize::MIN,
                allow_different_fingerprints: false,
                timeout_is_worst: true,
            },
            patience: Patience {
                timeout: Duration::from_secs(20),
                startup_timeout: Duration::from_secs(20),
                max_outage: Duration::from_secs(20),
                max_attempts: 5,
            },
            policy: RetryPolicy::scaled(0.001),
            limits: Limits {
                connect: Duration::from_secs(5),
                short: Duration::from_secs(5),
                idle: Duration::from_millis(200),
                grace: Duration::from_millis(100),
                body: 64 << 10,
            },
            tasks: vec![task("add"), task("rev")],
            lines: Arc::default(),
            record: Record::default(),
            cancel: CancellationToken::new(),
            folder,
        }
    }

    fn of(servers: &[&FaultServer]) -> Self {
        Self::new(servers.iter().map(|server| server.url()).collect())
    }

    fn context(&self, on_line: impl Fn(&str) + Send + Sync + 'static) -> ConnectContext {
        let lines = Arc::clone(&self.lines);
        let notify = move |line: &str| {
            lines.lock().unwrap().push(line.to_owned());
            on_line(line);
        };
        ConnectContext { seed: 7, directory: self.folder.path().into(), notify: Arc::new(notify) }
    }

    async fn connect(&self) -> Result<HttpEvaluator, EvaluateError> {
        self.connect_noting(|_| {}).await
    }

    async fn connect_noting(
        &self,
        on_line: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<HttpEvaluator, EvaluateError> {
        let (policy, limits) = (self.policy.clone(), self.limits.clone());
        let context = self.context(on_line);
        let (config, patience) = (&self.config, &self.patience);
        HttpEvaluator::connect_with(config, patience, &self.tasks, &context, &self.cancel, policy, limits).await
    }

    /// Connects and scores one candidate.
    async fn evaluate(&self) -> Result<Evaluation, EvaluateError> {
        let evaluator = self.connect().await?;
        self.score(&evaluator).await
    }

    async fn score(&self, evaluator: &HttpEvaluator) -> Result<Evaluation, EvaluateError> {
        evaluator.evaluate(&request(self.folder.path()), &self.record, &self.cancel).await
    }

    fn attempts(&self) -> Vec<Attempt> {
        self.record.0.lock().unwrap().clone()
    }

    fn codes(&self) -> Vec<String> {
        self.attempts().into_iter().filter_map(|attempt| attempt.fault).map(|fault| fault.code).collect()
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

fn request(folder: &Path) -> EvaluationRequest {
    let task = |name: &str, samples| TaskRequest { name: name.into(), metric: "accuracy".into(), samples, seed: 7 };
    EvaluationRequest {
        evaluation_id: "ev-1".into(),
        run_id: "run-1".into(),
        run_name: "name".into(),
        candidate: CandidateRequest {
            id: "0123456789abcdef".into(),
            recipe_sha256: "0123456789abcdef0123".into(),
            path: Some(folder.into()),
            recipe: json!({"merge_method": "linear"}),
            genome: vec![0.5],
        },
        tasks: vec![
            task("add", Samples::Limit(6)),
            task("rev", Samples::Ids([3, 1, 7].into_iter().map(SampleId::Number).collect())),
        ],
        fidelity: 0.3,
        replicate: 0,
    }
}

/// What the fault-free server answers.
fn assert_scored(evaluation: &Evaluation) {
    assert_eq!(evaluation.tasks.len(), 2);
    let add = &evaluation.tasks["add"];
    assert_eq!((add.n, add.metrics["accuracy"].value), (6, 4.0 / 6.0));
    let rev = &evaluation.tasks["rev"];
    assert_eq!(rev.per_sample.as_ref().unwrap().ids, [3, 1, 7].map(SampleId::Number));
    assert_eq!(rev.per_sample.as_ref().unwrap().scores["accuracy"], [0.0, 1.0, 1.0]);
}

fn problem(status: u16, code: &str, class: &str) -> Reply {
    Reply::Status(status, &[], problem_document(status, code, class).to_string())
}

fn problem_document(status: u16, code: &str, class: &str) -> Value {
    json!({"type": "about:blank", "title": code, "status": status, "code": code, "class": class, "detail": "to order"})
}

fn html(status: u16) -> Reply {
    Reply::Status(status, &[("Content-Type", "text/html")], "<html><h1>Bad Gateway</h1></html>".into())
}

#[tokio::test]
async fn a_proper_endpoint_is_asked_properly() {
    let server = FaultServer::start(vec![]);
    let bench = Bench::of(&[&server]);
    let evaluator = bench.connect().await.unwrap();
    let evaluation = bench.score(&evaluator).await.unwrap();
    assert_scored(&evaluation);
    assert_eq!(evaluation.endpoint.as_deref(), Some(server.url().as_str()));
    assert_eq!(evaluation.timing["evaluate_s"], 0.01);
    assert_eq!((evaluator.concurrency().get(), evaluator.default_metric("add")), (1, Some("accuracy")));
    let attempts = bench.attempts();
    assert_eq!((attempts.len(), attempts[0].number, attempts[0].fault.is_none()), (1, 1, true));

    let sent = server.seen("POST").remove(0);
    assert_eq!(sent.header("idempotency-key"), Some("ev-1"));
    assert_eq!(sent.header("authorization"), None);
    let document = sent.json();
    assert_eq!(document["protocol"], "1.0");
    assert_eq!(document["expect_fingerprint"], "fp-1");
    assert_eq!(document["per_sample"], "scores");
    assert_eq!(document["timeout_s"], 20.0);
    let folder = bench.folder.path().to_str().unwrap();
    let source = json!({"kind": "path", "path": folder, "files": {"model.safetensors": {"size": 5}}});
    assert_eq!(document["candidate"]["source"], source);
    let add = json!({"name": "add", "version": "1", "metrics": ["accuracy"], "limit": 6, "seed": 7});
    assert_eq!(document["tasks"][0], add);
    assert_eq!(document["tasks"][1]["sample_ids"], json!([3, 1, 7]));
}

/// Faults of the infrastructure: each comes once, is recorded with its class, and changes nothing in the result.
#[tokio::test]
async fn faults_of_the_infrastructure_change_no_result() {
    let edited = |edit: fn(&mut Value)| Reply::Edited(edit);
    let overloaded = || "try later".to_owned();
    let cases: Vec<(&str, Reply, &str, bool)> = vec![
        ("cut before an answer", Reply::Cut, "connection_lost", true),
        ("cut in the body", Reply::CutMidBody, "connection_lost", true),
        ("stalled body", Reply::Stall, "answer_stalled", true),
        ("body over the cap", Reply::Endless(80 << 10), "answer_too_large", true),
        (
            "announced body over the cap",
            Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n{".into()),
            "answer_too_large",
            true,
        ),
        ("no HTTP", Reply::Raw("SSH-2.0-OpenSSH_9.6\r\n".into()), "connection_lost", true),
        ("HTML with 200", html(200), "invalid_answer", true),
        ("truncated JSON", Reply::Raw(http(200, &[], r#"{"evaluation_id": "ev-1", "candi"#)), "invalid_answer", true),
        ("empty body", Reply::Raw(http(200, &[], "")), "invalid_answer", true),
        (
            "bare NaN",
            Reply::Raw(http(
                200,
                &[],
                r#"{"evaluation_id": "ev-1", "tasks": {"add": {"metrics": {"accuracy": {"value": NaN}}}}}"#,
            )),
            "invalid_answer",
            true,
        ),
        (
            "1e400",
            Reply::Raw(http(
                200,
                &[],
                r#"{"evaluation_id": "ev-1", "tasks": {"add": {"metrics": {"accuracy": {"value": 1e400}}}}}"#,
            )),
            "invalid_answer",
            true,
        ),
        (
            "text for a number",
            edited(|a| a["tasks"]["add"]["metrics"]["accuracy"]["value"] = json!("0.5")),
            "invalid_answer",
            true,
        ),
        (
            "null without nonfinite",
            edited(|a| a["tasks"]["add"]["metrics"]["accuracy"]["value"] = json!(null)),
            "invalid_answer",
            true,
        ),
        ("missing task", edited(|a| drop(a["tasks"].as_object_mut().unwrap().remove("add"))), "invalid_answer", true),
        ("missing metric", edited(|a| a["tasks"]["add"]["metrics"] = json!({})), "invalid_answer", true),
        ("extra task", edited(|a| a["tasks"]["more"] = a["tasks"]["add"].clone()), "invalid_answer", true),
        ("wrong evaluation id", edited(|a| a["evaluation_id"] = json!("ev-2")), "invalid_answer", true),
        (
            "missing evaluation id",
            edited(|a| drop(a.as_object_mut().unwrap().remove("evaluation_id"))),
            "invalid_answer",
            true,
        ),
        ("wrong candidate id", edited(|a| a["candidate_id"] = json!("other")), "invalid_answer", true),
        ("wrong fingerprint", edited(|a| a["fingerprint"] = json!("fp-2")), "invalid_answer", true),
        ("wrong n", edited(|a| a["tasks"]["add"]["n"] = json!(20)), "invalid_answer", true),
        ("missing n", edited(|a| drop(a["tasks"]["add"].as_object_mut().unwrap().remove("n"))), "invalid_answer", true),
        (
            "out of range",
            edited(|a| a["tasks"]["add"]["metrics"]["accuracy"]["value"] = json!(1.5)),
            "invalid_answer",
            true,
        ),
        (
            "negative stderr",
            edited(|a| a["tasks"]["add"]["metrics"]["accuracy"]["stderr"] = json!(-0.1)),
            "invalid_answer",
            true,
        ),
        (
            "mean mismatch",
            edited(|a| a["tasks"]["add"]["metrics"]["accuracy"]["value"] = json!(0.7)),
            "invalid_answer",
            true,
        ),
        (
            "missing per-sample",
            edited(|a| drop(a["tasks"]["add"].as_object_mut().unwrap().remove("per_sample"))),
            "invalid_answer",
            true,
        ),
        (
            "wrong sample ids",
            edited(|a| a["tasks"]["rev"]["per_sample"]["ids"] = json!([3, 1, 8])),
            "invalid_answer",
            true,
        ),
        (
            "a sample twice",
            edited(|a| a["tasks"]["rev"]["per_sample"]["ids"] = json!([3, 1, 1])),
            "invalid_answer",
            true,
        ),
        (
            "another evaluation's failure",
            edited(|a| {
                a["status"] = json!("failed");
                a["candidate_id"] = json!("other");
                a["error"] = json!({"code": "candidate_invalid", "class": "candidate"});
            }),
            "invalid_answer",
            true,
        ),
        ("failed without a reason", edited(|a| a["status"] = json!("failed")), "internal", true),
        ("unknown status", edited(|a| a["status"] = json!("done")), "invalid_answer", true),
        ("500 in plain text", Reply::Status(500, &[], "Internal Server Error".into()), "internal", true),
        ("502 in HTML", html(502), "internal", true),
        ("504", html(504), "internal", true),
        ("404 of a proxy", html(404), "unexpected_status", true),
        ("out of memory", problem(503, "out_of_memory", "resource"), "out_of_memory", true),
        ("worker lost", problem(500, "worker_lost", "infrastructure"), "worker_lost", true),
        (
            "weights mismatch in 200",
            edited(|a| {
                a["status"] = json!("failed");
                a["error"] = json!({"code": "weights_mismatch", "class": "infrastructure"});
            }),
            "weights_mismatch",
            true,
        ),
        ("429 with seconds", Reply::Status(429, &[("Retry-After", "2")], overloaded()), "overloaded", false),
        (
            "429 with a date",
            Reply::Status(
                429,
                &[("Retry-After", "Tue, 24 Nov 2026 08:00:05 GMT"), ("Date", "Tue, 24 Nov 2026 08:00:00 GMT")],
                overloaded(),
            ),
            "overloaded",
            false,
        ),
        ("429 with nonsense", Reply::Status(429, &[("Retry-After", "soon")], overloaded()), "overloaded", false),
        ("503 without a wait", Reply::Status(503, &[], overloaded()), "overloaded", false),
        ("draining", problem(503, "draining", "infrastructure"), "draining", false),
        ("still running there", Reply::Status(409, &[], "in flight".into()), "overloaded", false),
        ("cancelled by others", edited(|a| a["status"] = json!("cancelled")), "cancelled", false),
    ];
    for (name, reply, code, counts) in cases {
        let server = FaultServer::start(vec![reply]);
        let bench = Bench::of(&[&server]);
        let outcome = bench.evaluate().await;
        assert_scored(outcome.as_ref().unwrap_or_else(|error| panic!("{name}: {error}")));
        let attempts = bench.attempts();
        assert_eq!(bench.codes(), [code], "{name}");
        assert_eq!(attempts[0].counts, counts, "{name}");
        assert_ne!(attempts[0].fault.as_ref().unwrap().class, FaultClass::Candidate, "{name}");
        assert_eq!(attempts.len(), 2, "{name}");
        assert!(server.seen("POST").iter().all(|seen| seen.header("idempotency-key") == Some("ev-1")), "{name}");
    }
}

#[tokio::test]
async fn two_server_errors_in_a_row_are_survived() {
    let server = FaultServer::start(vec![html(500), html(500)]);
    let bench = Bench::of(&[&server]);
    assert_scored(&bench.evaluate().await.unwrap());
    assert_eq!(bench.attempts().len(), 3);
}

/// The candidate's own faults are final at once, however they travel.
#[tokio::test]
async fn a_bad_candidate_is_told_from_everything_else() {
    let cases = [
        problem(422, "candidate_invalid", "candidate"),
        problem(500, "candidate_nonfinite", "candidate"),
        problem(400, "some_new_code", "candidate"),
        Reply::Edited(|a| {
            a["status"] = json!("failed");
            a["error"] = json!({"code": "candidate_degenerate", "class": "candidate", "detail": "no valid sample"});
        }),
        Reply::Edited(|a| a["tasks"]["add"]["metrics"]["accuracy"] = json!({"value": null, "nonfinite": "nan"})),
    ];
    for reply in cases {
        let server = FaultServer::start(vec![reply]);
        let bench = Bench::of(&[&server]);
        let error = bench.evaluate().await.unwrap_err();
        assert!(matches!(&error, EvaluateError::Candidate(fault) if fault.class == FaultClass::Candidate), "{error}");
        assert_eq!((server.posts(), bench.attempts().len()), (1, 1));
    }
}

#[tokio::test]
async fn a_wrong_configuration_stops_at_once() {
    let cases = [
        problem(400, "unknown_task", "configuration"),
        problem(400, "invalid_request", "configuration"),
        problem(412, "fingerprint_mismatch", "configuration"),
        problem(422, "idempotency_key_reused", "configuration"),
        problem(500, "task_failed", "configuration"),
        Reply::Status(412, &[], String::new()),
        Reply::Status(413, &[], String::new()),
        Reply::Status(422, &[], r#"{"detail": [{"msg": "field required"}]}"#.into()),
    ];
    for reply in cases {
        let server = FaultServer::start(vec![reply]);
        let error = Bench::of(&[&server]).evaluate().await.unwrap_err();
        assert!(matches!(error, EvaluateError::Configuration(_)), "{error}");
        assert_eq!(error.exit_code(), crate::exit::ExitCode::BadConfiguration);
        assert_eq!(server.posts(), 1);
    }
}

#[tokio::test]
async fn an_endpoint_that_refuses_us_is_left_out_and_all_of_them_stop_the_run() {
    let (shut, open) = (FaultServer::start(vec![]), FaultServer::start(vec![]));
    *shut.inner.otherwise.lock().unwrap() = Reply::Status(401, &[], String::new());
    let bench = Bench::of(&[&shut, &open]);
    let evaluator = bench.connect().await.unwrap();
    for _ in 0..3 {
        assert_scored(&bench.score(&evaluator).await.unwrap());
    }
    assert_eq!((shut.posts(), open.posts()), (1, 3));
    *open.inner.otherwise.lock().unwrap() = Reply::Status(403, &[], String::new());
    let error = bench.score(&evaluator).await.unwrap_err();
    assert!(matches!(error, EvaluateError::Configuration(_)), "{error}");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = FaultServer::start(vec![]);
    let server = FaultServer::start(vec![]);
    let location = format!("{}/v1/evaluations", elsewhere.url());
    let head = format!("HTTP/1.1 307 X\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
    *server.inner.otherwise.lock().unwrap() = Reply::Raw(head);
    let bench = Bench::of(&[&server]);
    let error = bench.evaluate().await.unwrap_err();
    assert!(matches!(&error, EvaluateError::GivenUp(fault) if fault.detail.contains(&location)), "{error}");
    assert!(elsewhere.inner.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn attempts_run_out_only_while_the_endpoint_is_healthy() {
    let server = FaultServer::start(vec![]);
    *server.inner.otherwise.lock().unwrap() = html(500);
    let bench = Bench::of(&[&server]);
    let error = bench.evaluate().await.unwrap_err();
    assert!(matches!(&error, EvaluateError::GivenUp(fault) if fault.class == FaultClass::Infrastructure), "{error}");
    assert_eq!((server.posts(), bench.attempts().len()), (5, 5));
}

#[tokio::test]
async fn attempts_used_up_on_a_sick_endpoint_do_not_count() {
    // The fifth fault comes with failing health checks; when they pass again, the evaluation gets fresh attempts.
    let server = FaultServer::start(vec![html(500), html(500), html(500), html(500), html(500), html(500)]);
    let mut bench = Bench::of(&[&server]);
    bench.policy.breaker_threshold = 100;
    let evaluator = bench.connect().await.unwrap();
    server.inner.healths.lock().unwrap().extend([html(502), html(502)]);
    assert_scored(&bench.score(&evaluator).await.unwrap());
    assert_eq!(server.posts(), 7);
}

#[tokio::test]
async fn back_pressure_never_uses_up_attempts() {
    let busy = Reply::Status(503, &[("Retry-After", "1")], "busy".into());
    let server = FaultServer::start(vec![busy; 12]);
    let bench = Bench::of(&[&server]);
    assert_scored(&bench.evaluate().await.unwrap());
    assert!(bench.attempts()[..12].iter().all(|attempt| !attempt.counts));
}

#[tokio::test]
async fn back_pressure_for_ever_is_an_outage() {
    let server = FaultServer::start(vec![]);
    *server.inner.otherwise.lock().unwrap() = Reply::Status(429, &[("Retry-After", "20")], String::new());
    let mut bench = Bench::of(&[&server]);
    bench.patience.max_outage = Duration::from_millis(100);
    let error = bench.evaluate().await.unwrap_err();
    assert!(matches!(error, EvaluateError::Outage(_)), "{error}");
}

#[tokio::test]
async fn a_hang_is_tried_once_more_with_twice_the_time() {
    let server = FaultServer::start(vec![Reply::Hang]);
    let mut bench = Bench::of(&[&server]);
    bench.patience.timeout = Duration::from_secs(1);
    assert_scored(&bench.evaluate().await.unwrap());
    assert_eq!(bench.codes(), ["timeout"]);
    let told: Vec<Value> = server.seen("POST").iter().map(|seen| seen.json()["timeout_s"].clone()).collect();
    assert_eq!(told, [json!(1.0), json!(2.0)]);
}

#[tokio::test]
async fn a_second_timeout_is_the_candidates_fault_where_the_run_file_says_so() {
    for timeout_is_worst in [true, false] {
        let server = FaultServer::start(vec![Reply::Hang, problem(504, "timeout", "resource")]);
        let mut bench = Bench::of(&[&server]);
        bench.patience.timeout = Duration::from_millis(50);
        bench.config.timeout_is_worst = timeout_is_worst;
        let error = bench.evaluate().await.unwrap_err();
        match (&error, timeout_is_worst) {
            (EvaluateError::Candidate(fault), true) | (EvaluateError::GivenUp(fault), false) => {
                assert_eq!(fault.code, "timeout")
            }
            _ => panic!("{error}"),
        }
        assert_eq!(server.posts(), 2);
    }
}

#[tokio::test]
async fn timeouts_of_a_sick_endpoint_blame_nobody() {
    let server = FaultServer::start(vec![Reply::Hang, Reply::Hang]);
    let mut bench = Bench::of(&[&server]);
    bench.patience.timeout = Duration::from_millis(50);
    bench.patience.max_outage = Duration::from_millis(300);
    let evaluator = bench.connect().await.unwrap();
    *server.inner.healths.lock().unwrap() = vec![html(503); 10_000].into();
    let error = bench.score(&evaluator).await.unwrap_err();
    assert!(matches!(error, EvaluateError::Outage(_)), "{error}");
}

fn unused_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn an_endpoint_that_is_down_at_the_start_is_waited_for() {
    let address = unused_address();
    let bench = Bench::new(vec![format!("http://{address}")]);
    let late = Arc::new(Mutex::new(None));
    let starter = Arc::clone(&late);
    // The server comes up when the evaluator says that it waits.
    let evaluator = bench.connect_noting(move |line| {
        if line.starts_with("waiting for endpoint") {
            *starter.lock().unwrap() = Some(FaultServer::start_on(address, vec![]));
        }
    });
    assert_scored(&bench.score(&evaluator.await.unwrap()).await.unwrap());
    assert_eq!(bench.lines().len(), 2, "{:?}", bench.lines());
}

#[tokio::test]
async fn nobody_at_the_start_is_an_outage() {
    let mut bench = Bench::new(vec![format!("http://{}", unused_address())]);
    bench.patience.startup_timeout = Duration::from_millis(50);
    let error = bench.connect().await.err().unwrap();
    assert!(matches!(error, EvaluateError::Outage(_)), "{error}");
    assert_eq!(error.exit_code(), crate::exit::ExitCode::Stopped);
}

#[tokio::test]
async fn a_starting_endpoint_is_waited_for() {
    let server = FaultServer::start(vec![]);
    let starting = Reply::Edited(|health| health["status"] = json!("starting"));
    server.inner.healths.lock().unwrap().extend([starting, html(503)]);
    assert_scored(&Bench::of(&[&server]).evaluate().await.unwrap());
}

#[tokio::test]
async fn an_outage_in_mid_run_is_waited_out_and_ends_at_its_limit() {
    let server = FaultServer::start(vec![]);
    let address = server.address;
    let bench = Bench::of(&[&server]);
    let revived: Arc<Mutex<Option<FaultServer>>> = Arc::default();
    let reviver = Arc::clone(&revived);
    let evaluator = bench
        .connect_noting(move |line| {
            if line.starts_with("waiting for endpoint") {
                *reviver.lock().unwrap() = Some(FaultServer::start_on(address, vec![]));
            }
        })
        .await
        .unwrap();
    drop(server);
    assert_scored(&bench.score(&evaluator).await.unwrap());
    assert_eq!((bench.codes(), bench.attempts()[0].counts), (vec!["unreachable".to_owned()], false));

    let server = FaultServer::start(vec![]);
    let mut bench = Bench::of(&[&server]);
    bench.patience.max_outage = Duration::from_millis(100);
    let evaluator = bench.connect().await.unwrap();
    drop(server);
    let error = bench.score(&evaluator).await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Outage(fault) if fault.code == "unreachable"), "{error}");
}

#[tokio::test]
async fn one_of_two_endpoints_dies_and_the_other_goes_on() {
    let (dying, other) = (FaultServer::start(vec![Reply::Cut]), FaultServer::start(vec![]));
    let bench = Bench::of(&[&dying, &other]);
    let evaluator = bench.connect().await.unwrap();
    assert_eq!(evaluator.concurrency().get(), 2);
    assert_scored(&bench.score(&evaluator).await.unwrap());
    let endpoints: Vec<_> = bench.attempts().into_iter().map(|attempt| attempt.endpoint.unwrap()).collect();
    assert_eq!(endpoints, [dying.url(), other.url()]);
    drop(dying);
    for _ in 0..3 {
        assert_scored(&bench.score(&evaluator).await.unwrap());
    }
}

#[tokio::test]
async fn a_candidate_that_kills_two_servers_is_blamed() {
    let servers = [FaultServer::start(vec![Reply::Die]), FaultServer::start(vec![Reply::Die])];
    let third = FaultServer::start(vec![]);
    let bench = Bench::of(&[&servers[0], &servers[1], &third]);
    let error = bench.evaluate().await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Candidate(fault) if fault.code == "killed_workers"), "{error}");
    assert_eq!(third.posts(), 0);
}

#[tokio::test]
async fn lost_connections_alone_blame_nobody() {
    let servers = [FaultServer::start(vec![]), FaultServer::start(vec![])];
    for server in &servers {
        *server.inner.otherwise.lock().unwrap() = Reply::Cut;
    }
    let error = Bench::of(&[&servers[0], &servers[1]]).evaluate().await.unwrap_err();
    assert!(matches!(&error, EvaluateError::GivenUp(fault) if fault.code == "connection_lost"), "{error}");
}

#[tokio::test]
async fn one_server_that_dies_again_and_again_is_no_proof_against_the_candidate() {
    let server = FaultServer::start(vec![]);
    *server.inner.otherwise.lock().unwrap() = Reply::Die;
    let error = Bench::of(&[&server]).evaluate().await.unwrap_err();
    assert!(matches!(error, EvaluateError::GivenUp(_)), "{error}");
}

#[tokio::test]
async fn a_server_that_comes_back_as_another_evaluator_gives_no_score() {
    let server = FaultServer::start(vec![Reply::Die]);
    let bench = Bench::of(&[&server]);
    let evaluator = bench.connect().await.unwrap();
    server.inner.capabilities.lock().unwrap()["fingerprint"] = json!("fp-2");
    let error = bench.score(&evaluator).await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Configuration(fault) if fault.code == "fingerprint_mismatch"), "{error}");
}

#[tokio::test]
async fn a_restarted_server_is_met_again_before_its_score_counts() {
    let server = FaultServer::start(vec![Reply::Die]);
    let bench = Bench::of(&[&server]);
    assert_scored(&bench.evaluate().await.unwrap());
    assert!(bench.lines().iter().any(|line| line.contains("has restarted")), "{:?}", bench.lines());
}

#[tokio::test]
async fn a_start_names_what_does_not_fit() {
    let edits: [(fn(&mut Value), &str); 5] = [
        (|c| c["tasks"][0]["name"] = json!("addd"), "unknown task add; known: addd, rev; did you mean addd?"),
        (|c| c["tasks"][0]["metrics"][0]["name"] = json!("accuracy_norm"), "did you mean accuracy_norm?"),
        (|c| c["sources"] = json!(["recipe"]), "not by path"),
        (|c| c["protocol"] = json!(["2.0"]), "protocol"),
        (|c| c["tasks"][1]["metrics"] = json!([]), "task rev has no metric"),
    ];
    for (edit, text) in edits {
        let server = FaultServer::start(vec![]);
        edit(&mut server.inner.capabilities.lock().unwrap());
        let error = Bench::of(&[&server]).connect().await.err().unwrap();
        assert!(matches!(error, EvaluateError::Configuration(_)), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test]
async fn endpoints_of_one_pool_must_score_alike() {
    let (first, second) = (FaultServer::start(vec![]), FaultServer::start(vec![]));
    second.inner.capabilities.lock().unwrap()["fingerprint"] = json!("fp-2");
    let mut bench = Bench::of(&[&first, &second]);
    let error = bench.connect().await.err().unwrap();
    assert!(matches!(&error, EvaluateError::Configuration(fault) if fault.code == "fingerprint_mismatch"), "{error}");
    bench.config.allow_different_fingerprints = true;
    assert_scored(&bench.evaluate().await.unwrap());
}

#[tokio::test]
async fn the_fingerprint_follows_the_endpoints_and_the_task_versions() {
    let server = FaultServer::start(vec![]);
    let bench = Bench::of(&[&server]);
    let first = bench.connect().await.unwrap().fingerprint;
    assert_eq!(first.len(), 64);
    assert_eq!(first, bench.connect().await.unwrap().fingerprint);
    server.inner.capabilities.lock().unwrap()["tasks"][0]["version"] = json!("2");
    let second = bench.connect().await.unwrap().fingerprint;
    server.inner.capabilities.lock().unwrap()["fingerprint"] = json!("fp-2");
    let third = bench.connect().await.unwrap().fingerprint;
    assert!(first != second && second != third);
}

#[tokio::test]
async fn an_endpoint_gets_no_more_at_once_than_it_bears() {
    let server = FaultServer::start(vec![]);
    server.inner.capabilities.lock().unwrap()["limits"]["max_inflight"] = json!(2);
    let mut bench = Bench::of(&[&server]);
    bench.config.in_flight = NonZeroUsize::new(8).unwrap();
    let evaluator = bench.connect().await.unwrap();
    assert_eq!(evaluator.concurrency().get(), 2);
    let all = join_all((0..12).map(|_| bench.score(&evaluator))).await;
    assert!(all.iter().all(Result::is_ok));
    assert!(server.inner.most_at_once.load(std::sync::atomic::Ordering::SeqCst) <= 2);
}

fn accepted() -> Reply {
    let headers = &[("Location", "/v1/evaluations/ev-1"), ("Retry-After", "1")];
    Reply::Status(
        202,
        headers,
        r#"{"evaluation_id": "ev-1", "candidate_id": "0123456789abcdef", "status": "queued"}"#.into(),
    )
}

#[tokio::test]
async fn an_answer_that_comes_later_is_fetched() {
    let server = FaultServer::start(vec![accepted()]);
    let running = Reply::Edited(|a| a["status"] = json!("running"));
    server.inner.polls.lock().unwrap().extend([running, html(503), Reply::Cut]);
    let bench = Bench::of(&[&server]);
    assert_scored(&bench.evaluate().await.unwrap());
    assert_eq!((server.posts(), bench.attempts().len()), (1, 1));
}

#[tokio::test]
async fn an_evaluation_that_the_endpoint_forgot_is_sent_again() {
    let server = FaultServer::start(vec![accepted()]);
    server.inner.polls.lock().unwrap().push_back(problem(404, "not_found", "configuration"));
    let bench = Bench::of(&[&server]);
    assert_scored(&bench.evaluate().await.unwrap());
    assert_eq!((server.posts(), bench.codes()), (2, vec!["worker_lost".to_owned()]));
}

#[tokio::test]
async fn a_poll_may_not_lead_elsewhere() {
    let elsewhere = FaultServer::start(vec![]);
    let head =
        format!("HTTP/1.1 202 X\r\nLocation: {}/v1/x\r\nRetry-After: 0\r\nContent-Length: 20\r\n\r\n", elsewhere.url());
    let server = FaultServer::start(vec![Reply::Raw(format!("{head}{{\"status\": \"queued\"}}"))]);
    assert_scored(&Bench::of(&[&server]).evaluate().await.unwrap());
    assert!(elsewhere.inner.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_cancelled_evaluation_ends_at_once_and_is_taken_back() {
    let server = FaultServer::start(vec![Reply::Hang]);
    let bench = Bench::of(&[&server]);
    let evaluator = bench.connect().await.unwrap();
    let (outcome, ()) = tokio::join!(bench.score(&evaluator), cancel_when_asked(&server, &bench.cancel, "POST"));
    assert!(matches!(outcome, Err(EvaluateError::Cancelled)));

    let server = FaultServer::start(vec![accepted()]);
    *server.inner.polls.lock().unwrap() = vec![Reply::Hang].into();
    let bench = Bench::of(&[&server]);
    let evaluator = bench.connect().await.unwrap();
    let polled = async {
        while !server.seen("GET").iter().any(|seen| seen.path == "/v1/evaluations/ev-1") {
            tokio::task::yield_now().await;
        }
        bench.cancel.cancel();
    };
    let (outcome, ()) = tokio::join!(bench.score(&evaluator), polled);
    assert!(matches!(outcome, Err(EvaluateError::Cancelled)));
    assert_eq!(server.seen("DELETE").len(), 1);
}

async fn cancel_when_asked(server: &FaultServer, cancel: &CancellationToken, method: &str) {
    while server.seen(method).is_empty() {
        tokio::task::yield_now().await;
    }
    cancel.cancel();
}

#[tokio::test]
async fn the_token_goes_to_the_endpoint_and_nowhere_else() {
    use std::os::unix::fs::PermissionsExt;
    let server = FaultServer::start(vec![Reply::Status(500, &[], "no".into())]);
    let mut bench = Bench::of(&[&server]);
    let file = bench.folder.path().join("token");
    std::fs::write(&file, "sesame").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    bench.config.token_file = Some(file);
    bench.evaluate().await.unwrap();
    assert!(server.seen("POST").iter().all(|seen| seen.header("authorization") == Some("Bearer sesame")));
    assert!(!format!("{:?} {:?}", bench.lines(), bench.attempts()).contains("sesame"));
    assert!(server.seen("POST").iter().all(|seen| !seen.body.contains("sesame")));
}

#[tokio::test]
async fn a_task_that_cannot_do_what_is_asked_is_a_configuration_error() {
    let server = FaultServer::start(vec![]);
    server.inner.capabilities.lock().unwrap()["tasks"][0]["supports"] = json!(["per_sample"]);
    let error = Bench::of(&[&server]).evaluate().await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Configuration(fault) if fault.detail.contains("limit")), "{error}");
    assert_eq!(server.posts(), 0);
}
