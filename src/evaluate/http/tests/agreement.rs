//! Which endpoints make one pool: what they agree on, at the start and when one comes back.

use super::*;

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
    type Edit = fn(&mut Value);
    let edits: [(Edit, &str); 5] = [
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

/// Endpoints with one fingerprint that have another version of a task, count or turn its scores differently, or take
/// other requests.
#[tokio::test]
async fn endpoints_agree_on_what_is_asked_and_answered() {
    type Edit = fn(&mut Value);
    let edits: [(Edit, &str); 9] = [
        (
            |c| c["tasks"][0]["supports"] = json!(["sample_ids", "per_sample"]),
            "task `add` lists no `limit` among `supports`",
        ),
        (|c| c["tasks"][1]["supports"] = json!(["limit", "per_sample"]), "task `rev` lists no `sample_ids` among"),
        (
            |c| c["tasks"][1]["supports"] = json!(["limit", "sample_ids"]),
            "lists no `per_sample` among `supports`, unlike",
        ),
        (
            |c| c["tasks"][0]["metrics"][0]["aggregation"] = json!("other"),
            "has not the `aggregation` \"mean\" for `accuracy`",
        ),
        (|c| c["tasks"][0]["n_samples"] = json!(40), "has 40 samples"),
        (|c| c["tasks"][0]["version"] = json!("2"), "task `add` has version 2, that of the others"),
        (|c| c["tasks"][1]["version"] = Value::Null, "task `rev` has version none, that of the others"),
        (|c| c["tasks"][0]["metrics"][0]["higher_is_better"] = json!(false), "higher_is_better"),
        (|c| c["tasks"][1]["metrics"][0]["name"] = json!("f1"), "f1"),
    ];
    for (edit, text) in edits {
        let (first, second) = (FaultServer::start(vec![]), FaultServer::start(vec![]));
        edit(&mut second.inner.capabilities.lock().unwrap());
        let bench = Bench::of(&[&first, &second]);
        let refused = match bench.connect().await {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        let said = format!("{refused} {}", bench.lines().join(" "));
        assert!(said.contains(text), "{text}: {said}");

        // The same of one server that comes back.
        let server = FaultServer::start(vec![Reply::Die]);
        let bench = Bench::of(&[&server]);
        let evaluator = bench.connect().await.unwrap();
        edit(&mut server.inner.capabilities.lock().unwrap());
        let error = bench.score(&evaluator).await.unwrap_err();
        assert!(matches!(error, EvaluateError::Configuration(_)), "{error}");
    }
}

/// What nobody asks for may differ.
#[tokio::test]
async fn endpoints_may_support_more_that_no_run_asks_for() {
    let (first, second) = (FaultServer::start(vec![]), FaultServer::start(vec![]));
    second.inner.capabilities.lock().unwrap()["tasks"][0]["supports"] =
        json!(["fidelity", "per_sample", "sample_ids", "limit", "batching"]);
    assert_scored(&Bench::of(&[&first, &second]).evaluate().await.unwrap());
}

/// Any endpoint may score any candidate: one that varies is enough.
#[tokio::test]
async fn a_pool_is_deterministic_where_every_endpoint_is() {
    let servers = [FaultServer::start(vec![]), FaultServer::start(vec![])];
    let pools = [Bench::of(&[&servers[0], &servers[1]]), Bench::of(&[&servers[1], &servers[0]])];
    for bench in &pools {
        assert!(bench.connect().await.unwrap().capabilities().deterministic);
        assert_eq!(bench.lines(), Vec::<String>::new());
    }
    servers[1].inner.capabilities.lock().unwrap()["deterministic"] = json!(false);
    for bench in &pools {
        assert!(!bench.connect().await.unwrap().capabilities().deterministic);
        let told = bench.lines().join("\n");
        assert!(told.contains(&servers[1].url()) && told.contains("does not call itself deterministic"), "{told}");
    }
}

#[tokio::test]
async fn a_server_that_comes_back_less_deterministic_is_told() {
    let server = FaultServer::start(vec![Reply::Die]);
    let bench = Bench::of(&[&server]);
    let evaluator = bench.connect().await.unwrap();
    server.inner.capabilities.lock().unwrap()["deterministic"] = json!(false);
    assert_scored(&bench.score(&evaluator).await.unwrap());
    let told = bench.lines();
    let warnings = told.iter().filter(|line| line.contains("does not call itself deterministic")).count();
    assert_eq!(warnings, 1, "{told:?}");
}

#[tokio::test]
async fn two_names_of_one_server_are_one_endpoint() {
    let server = FaultServer::start(vec![]);
    let port = server.address.port();
    let names = [format!("http://127.0.0.1:{port}"), format!("http://localhost:{port}/")];
    let error = Bench::new(names.to_vec()).connect().await.err().unwrap();
    assert!(error.to_string().contains("are one server"), "{error}");
}

/// Which of two endpoints is met first must not make it another run, nor may the second be asked for the first one's
/// version.
#[tokio::test]
async fn equivalent_endpoints_have_no_versions_in_common() {
    let servers = [FaultServer::start(vec![]), FaultServer::start(vec![])];
    for (server, version) in servers.iter().zip(["7", "8"]) {
        let mut capabilities = server.inner.capabilities.lock().unwrap();
        capabilities["tasks"][0]["version"] = json!(version);
        capabilities["fingerprint"] = json!(format!("sha256:{version}"));
    }
    let mut fingerprints = Vec::new();
    for order in [[0, 1], [1, 0]] {
        let mut bench = Bench::of(&order.map(|place: usize| &servers[place]));
        bench.config.allow_different_fingerprints = true;
        let evaluator = bench.connect().await.unwrap();
        fingerprints.push(evaluator.fingerprint().to_owned());
        assert_scored(&bench.score(&evaluator).await.unwrap());
    }
    assert_eq!(fingerprints[0], fingerprints[1]);
    let asked = servers.iter().flat_map(|server| server.seen("POST"));
    assert!(asked.map(|seen| seen.json()["tasks"][0]["version"].clone()).all(|version| version.is_null()));
}
