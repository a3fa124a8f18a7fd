//! One endpoint and what it answers.

use super::*;
use crate::config::TokenSource;

#[tokio::test]
async fn a_proper_endpoint_is_asked_properly() {
    let server = FaultServer::start(vec![]);
    let bench = Bench::of(&[&server]);
    let evaluator = bench.connect().await.unwrap();
    let evaluation = bench.score(&evaluator).await.unwrap();
    assert_scored(&evaluation);
    assert_eq!((evaluator.concurrency().get(), evaluator.default_metric("add")), (1, Some("accuracy")));
    let attempts = bench.attempts();
    assert_eq!((attempts.len(), attempts[0].number, attempts[0].fault.is_none()), (1, 1, true));
    assert_eq!(attempts[0].endpoint, Some(server.url()));

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
        (
            "a task twice",
            Reply::Raw(http(200, &[], r#"{"evaluation_id": "ev-1", "tasks": {"add": {}, "rev": {}, "add": {}}}"#)),
            "invalid_answer",
            true,
        ),
        (
            "samples out of range",
            edited(|a| a["tasks"]["rev"]["per_sample"]["scores"]["accuracy"] = json!([3.0, -1.0, -1.0])),
            "invalid_answer",
            true,
        ),
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
        (
            "no number of samples",
            edited(|a| a["tasks"]["add"]["n_truncated"] = json!(u64::MAX)),
            "invalid_answer",
            true,
        ),
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
        ("429 with no wait", Reply::Status(429, &[("Retry-After", "0")], overloaded()), "overloaded", false),
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
async fn a_bare_nan_is_explained() {
    let body = r#"{"evaluation_id": "ev-1", "tasks": {"add": {"metrics": {"accuracy": {"value": NaN}}}}}"#;
    let server = FaultServer::start(vec![Reply::Raw(http(200, &[], body))]);
    let bench = Bench::of(&[&server]);
    assert_scored(&bench.evaluate().await.unwrap());
    let fault = bench.attempts()[0].fault.clone().unwrap();
    assert!(fault.detail.contains("JSON has no NaN") && fault.detail.contains("nonfinite"), "{fault}");
}

#[tokio::test]
async fn a_value_of_the_wrong_kind_is_named_by_its_path() {
    let edit = |a: &mut Value| a["tasks"]["add"]["metrics"]["accuracy"]["value"] = json!("0.5");
    let server = FaultServer::start(vec![Reply::Edited(edit)]);
    let bench = Bench::of(&[&server]);
    assert_scored(&bench.evaluate().await.unwrap());
    let fault = bench.attempts()[0].fault.clone().unwrap();
    let expected = "`tasks.add.metrics.accuracy.value`: found the text \"0.5\", expected a number";
    assert!(fault.detail.ends_with(expected), "{fault}");
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
        Reply::Status(
            422,
            &[],
            r#"{"code": "candidate_invalid", "status": "422", "detail": ["x"], "retry_after_s": "5"}"#.into(),
        ),
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
async fn of_an_error_no_more_is_read_than_people_need() {
    let long = format!("boom {}", "0, ".repeat(100_000));
    let server = FaultServer::start(vec![Reply::Status(500, &[], long), Reply::Good]);
    let bench = Bench::of(&[&server]);
    assert_scored(&bench.evaluate().await.unwrap());
    assert_eq!(bench.codes(), ["internal"]);
    let fault = bench.attempts()[0].fault.clone().unwrap();
    assert!(fault.detail.contains("HTTP 500: boom 0, 0, "), "{fault}");
    // A document of the protocol may be long: a traceback, say.
    let trace = serde_json::json!({"code": "candidate_invalid", "class": "candidate", "detail": "x".repeat(50_000), "frames": vec![0; 99]});
    let server = FaultServer::start(vec![Reply::Status(422, &[], trace.to_string())]);
    assert!(matches!(Bench::of(&[&server]).evaluate().await, Err(EvaluateError::Candidate(_))));
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
    let server = FaultServer::start(vec![Reply::Status(500, &[], "got Bearer sesame".into())]);
    let mut bench = Bench::of(&[&server]);
    let file = bench.folder.path().join("token");
    std::fs::write(&file, "sesame").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    bench.config.token = Some(TokenSource::File(file));
    bench.evaluate().await.unwrap();
    assert!(server.seen("POST").iter().all(|seen| seen.header("authorization") == Some("Bearer sesame")));
    assert!(!format!("{:?} {:?}", bench.lines(), bench.attempts()).contains("sesame"));
    assert!(server.seen("POST").iter().all(|seen| !seen.body.contains("sesame")));
}

#[tokio::test]
async fn a_task_that_is_announced_twice_is_a_configuration_error() {
    let server = FaultServer::start(vec![]);
    {
        let mut capabilities = server.inner.capabilities.lock().unwrap();
        let task = capabilities["tasks"][0].clone();
        capabilities["tasks"].as_array_mut().unwrap().push(task);
    }
    let error = Bench::of(&[&server]).evaluate().await.unwrap_err();
    assert!(
        matches!(&error, EvaluateError::Configuration(fault) if fault.detail.contains("more than once")),
        "{error}"
    );
}

#[tokio::test]
async fn a_number_of_samples_beyond_all_bounds_is_a_configuration_error() {
    let server = FaultServer::start(vec![]);
    server.inner.capabilities.lock().unwrap()["tasks"][0]["n_samples"] = json!(u64::MAX);
    let error = Bench::of(&[&server]).evaluate().await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Configuration(fault) if fault.detail.contains("n_samples")), "{error}");
}

#[tokio::test]
async fn a_task_that_cannot_do_what_is_asked_is_a_configuration_error() {
    let server = FaultServer::start(vec![]);
    server.inner.capabilities.lock().unwrap()["tasks"][0]["supports"] = json!(["per_sample"]);
    let error = Bench::of(&[&server]).evaluate().await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Configuration(fault) if fault.detail.contains("limit")), "{error}");
    assert_eq!(server.posts(), 0);
}
