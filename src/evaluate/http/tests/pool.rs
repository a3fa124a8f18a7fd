//! Attempts that run out, endpoints that come and go, and pools of them.

use std::time::SystemTime;

use super::*;

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

/// An endpoint that turns one evaluation away while it works on another one is no endpoint that is gone.
#[tokio::test]
async fn an_endpoint_at_work_is_no_outage() {
    let server = FaultServer::start(vec![Reply::Slow(Duration::from_millis(1500))]);
    *server.inner.otherwise.lock().unwrap() = problem(429, "overloaded", "infrastructure");
    let mut bench = Bench::of(&[&server]);
    bench.config.in_flight = NonZeroUsize::new(2).unwrap();
    bench.patience.max_outage = Duration::from_millis(300);
    bench.policy = RetryPolicy::scaled(0.05);
    let evaluator = bench.connect().await.unwrap();
    let second = async {
        while server.posts() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.score(&evaluator).await
    };
    let (first, second) = tokio::join!(bench.score(&evaluator), second);
    assert_scored(&first.unwrap());
    // Nobody is at work any more, and everything is turned away.
    assert!(matches!(second, Err(EvaluateError::Outage(_))), "{second:?}");
}

/// A request that is turned away after a while is no work.
#[tokio::test]
async fn many_evaluations_that_are_turned_away_are_an_outage() {
    let server = FaultServer::start(vec![]);
    server.inner.capabilities.lock().unwrap()["limits"]["max_inflight"] = json!(4);
    *server.inner.otherwise.lock().unwrap() = Reply::SlowlyBusy;
    let mut bench = Bench::of(&[&server]);
    bench.config.in_flight = NonZeroUsize::new(4).unwrap();
    bench.patience.max_outage = Duration::from_millis(300);
    bench.policy = RetryPolicy::scaled(0.05);
    let evaluator = bench.connect().await.unwrap();
    let all = futures_util::future::join_all((0..4).map(|_| bench.score(&evaluator)));
    let ended = tokio::time::timeout(Duration::from_secs(15), all).await.unwrap();
    assert!(ended.iter().any(|end| matches!(end, Err(EvaluateError::Outage(_)))), "{ended:?}");
}

#[tokio::test]
async fn a_long_wait_is_told_once_until_there_is_an_answer() {
    let busy = || Reply::Status(503, &[("Retry-After", "40")], String::new());
    let server = FaultServer::start(vec![busy(), busy(), Reply::Good, busy()]);
    let bench = Bench::of(&[&server]);
    let evaluator = bench.connect().await.unwrap();
    let told = || bench.lines().iter().filter(|line| line.contains("is busy")).count();
    assert_scored(&bench.score(&evaluator).await.unwrap());
    assert_eq!(told(), 1, "{:?}", bench.lines());
    assert_scored(&bench.score(&evaluator).await.unwrap());
    assert_eq!(told(), 2, "{:?}", bench.lines());
}

/// Nothing is lost by that: the evaluation was asked for and is asked for again.
#[tokio::test]
async fn whoever_waits_when_the_search_is_to_end_waits_no_longer() {
    let gone = FaultServer::start(vec![]);
    let busy = FaultServer::start(vec![]);
    *busy.inner.otherwise.lock().unwrap() = problem(503, "overloaded", "infrastructure");
    let failing = FaultServer::start(vec![]);
    *failing.inner.otherwise.lock().unwrap() = html(500);
    for (server, goes) in [(gone, true), (busy, false), (failing, false)] {
        let mut bench = Bench::of(&[&server]);
        bench.policy = RetryPolicy::default();
        let evaluator = bench.connect().await.unwrap();
        let server = (!goes).then_some(server);
        let stop = async {
            // From then on it waits: for another attempt, or for the endpoint.
            while bench.attempts().is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            bench.stopping.cancel();
        };
        let started = std::time::Instant::now();
        let (ended, ()) = tokio::join!(bench.score(&evaluator), stop);
        assert!(matches!(ended, Err(EvaluateError::Cancelled)), "{ended:?}");
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        drop(server);
    }
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
    for on_timeout in OnTimeout::ALL {
        let server = FaultServer::start(vec![Reply::Hang, problem(504, "timeout", "resource")]);
        let mut bench = Bench::of(&[&server]);
        bench.patience.timeout = Duration::from_millis(50);
        bench.config.on_timeout = on_timeout;
        let error = bench.evaluate().await.unwrap_err();
        match (&error, on_timeout) {
            (EvaluateError::Candidate(fault), OnTimeout::Worst) | (EvaluateError::GivenUp(fault), OnTimeout::Fail) => {
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
    assert!(bench.lines()[0].contains(" for up to 20 s (evaluator.startup_timeout): "), "{:?}", bench.lines());
}

#[tokio::test]
async fn nobody_at_the_start_is_an_outage() {
    let mut bench = Bench::new(vec![format!("http://{}", unused_address())]);
    bench.patience.startup_timeout = Duration::from_millis(50);
    let error = bench.connect().await.err().unwrap();
    assert!(matches!(error, EvaluateError::Outage(_)), "{error}");
    assert_eq!(error.exit_code(), crate::exit::ExitCode::Stopped);
    assert!(error.to_string().contains("evaluator.startup_timeout): start it, and give the same command"), "{error}");
}

#[tokio::test]
async fn every_endpoint_that_is_down_at_the_start_is_named() {
    // Both are held until both are known, so that they differ.
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let urls = listeners.map(|listener| format!("http://{}", listener.local_addr().unwrap()));
    let mut bench = Bench::new(urls.to_vec());
    bench.patience.startup_timeout = Duration::ZERO;
    let error = bench.connect().await.err().unwrap();
    assert!(matches!(&error, EvaluateError::Outage(fault) if fault.code == "unreachable"), "{error}");
    let text = error.to_string();
    assert!(urls.iter().all(|url| text.contains(&format!("{url}: "))), "{text}");
    assert!(text.starts_with("the evaluator is out of reach: http://") && text.contains("start one of them"), "{text}");
}

#[tokio::test]
async fn a_base_url_that_ends_in_the_protocols_own_path_is_explained() {
    let server = FaultServer::start(vec![]);
    server.inner.healths.lock().unwrap().extend([html(404), html(404)]);
    for (path, hint) in [("/v1", "base URLs, without /v1"), ("", "is this an eval endpoint?")] {
        let mut bench = Bench::new(vec![format!("{}{path}", server.url())]);
        bench.patience.startup_timeout = Duration::ZERO;
        let error = bench.connect().await.err().unwrap();
        assert!(error.to_string().contains(hint), "{path}: {error}");
    }
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
    assert!(bench.lines()[0].contains(" for up to 20 s (evaluator.max_outage): "), "{:?}", bench.lines());

    let server = FaultServer::start(vec![]);
    let mut bench = Bench::of(&[&server]);
    bench.patience.max_outage = Duration::from_millis(100);
    let evaluator = bench.connect().await.unwrap();
    drop(server);
    let error = bench.score(&evaluator).await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Outage(fault) if fault.code == "unreachable"), "{error}");
    assert!(error.to_string().contains("evaluator.max_outage"), "{error}");
}

#[tokio::test]
async fn an_endpoint_that_was_not_reached_is_waited_for_since_the_start() {
    let (server, address) = (FaultServer::start(vec![]), unused_address());
    let mut bench = Bench::new(vec![server.url(), format!("http://{address}")]);
    bench.patience.startup_timeout = Duration::ZERO;
    let before = SystemTime::now();
    let evaluator = bench.connect().await.unwrap();
    let after = SystemTime::now();
    let waiting = evaluator.waiting();
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    assert_eq!(waiting[0].endpoint, format!("http://{address}"));
    assert!((before..=after).contains(&waiting[0].since), "{waiting:?}");
    let told = bench.lines();
    assert!(!waiting[0].reason.is_empty() && told[0].ends_with(&waiting[0].reason), "{told:?} {waiting:?}");

    let _late = FaultServer::start_on(address, vec![]);
    let found = async {
        while !evaluator.waiting().is_empty() {
            assert_scored(&bench.score(&evaluator).await.unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.unwrap();
}

#[tokio::test]
async fn an_endpoint_that_is_shut_is_waited_for_until_it_is_well() {
    let server = FaultServer::start(vec![]);
    let mut bench = Bench::of(&[&server]);
    bench.patience.max_outage = Duration::from_secs(1);
    let evaluator = bench.connect().await.unwrap();
    assert_eq!(evaluator.waiting(), []);
    *server.inner.otherwise.lock().unwrap() = html(500);
    *server.inner.healths.lock().unwrap() = vec![html(503); 10_000].into();
    let before = SystemTime::now();
    let error = bench.score(&evaluator).await.unwrap_err();
    assert!(matches!(error, EvaluateError::Outage(_)), "{error}");
    let waiting = evaluator.waiting();
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    assert_eq!(waiting[0].endpoint, server.url());
    assert!(waiting[0].since >= before && waiting[0].reason.contains("HTTP 503"), "{waiting:?}");
    assert_eq!(bench.lines().len(), 1, "told once: {:?}", bench.lines());

    *server.inner.otherwise.lock().unwrap() = Reply::Good;
    server.inner.healths.lock().unwrap().clear();
    assert_scored(&bench.score(&evaluator).await.unwrap());
    assert_eq!(evaluator.waiting(), []);
}

/// It passes every health check, so it is asked again and again: people hear of that ever more rarely.
#[tokio::test]
async fn an_endpoint_that_is_always_wrong_is_told_of_ever_more_rarely() {
    let (wrong, right) = (FaultServer::start(vec![]), FaultServer::start(vec![]));
    *wrong.inner.otherwise.lock().unwrap() =
        Reply::Edited(|answer| answer["tasks"]["add"]["metrics"]["accuracy"]["value"] = json!(0.7));
    let bench = Bench::of(&[&wrong, &right]);
    let evaluator = bench.connect().await.unwrap();
    // The third wrong answer shuts it, and every one after that.
    let all = async {
        while wrong.posts() < 2 + 20 {
            assert_scored(&bench.score(&evaluator).await.unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
    let lines = bench.lines();
    let with = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(with("is shut until it passes a health check"), 5, "1, 2, 4, 8 and 16: {lines:?}");
    assert_eq!((with("(16 times by now): task add: "), with("answers again")), (1, 5), "{lines:?}");
    assert!(lines.iter().all(|line| line.matches(&wrong.url()).count() == 1), "{lines:?}");
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

/// What one endpoint calls broken before it has scored anything is asked of another one.
#[tokio::test]
async fn an_endpoint_that_calls_everything_broken_is_left_out() {
    let (ill, well) = (FaultServer::start(vec![]), FaultServer::start(vec![]));
    *ill.inner.otherwise.lock().unwrap() = problem(422, "candidate_invalid", "candidate");
    let bench = Bench::of(&[&ill, &well]);
    let evaluator = bench.connect().await.unwrap();
    for _ in 0..6 {
        assert_scored(&bench.score(&evaluator).await.unwrap());
    }
    assert_eq!((ill.posts(), well.posts()), (2, 6));
    let told = bench.lines();
    assert!(told.iter().any(|line| line.contains(&ill.url()) && line.contains("is left out")), "{told:?}");
}

#[tokio::test]
async fn two_endpoints_that_have_scored_nothing_are_not_believed_before_a_third() {
    let servers: [FaultServer; 3] = std::array::from_fn(|_| FaultServer::start(vec![]));
    for ill in &servers[..2] {
        *ill.inner.otherwise.lock().unwrap() = problem(422, "candidate_invalid", "candidate");
    }
    let bench = Bench::of(&[&servers[0], &servers[1], &servers[2]]);
    let evaluator = bench.connect().await.unwrap();
    for _ in 0..5 {
        assert_scored(&bench.score(&evaluator).await.unwrap());
    }
    assert_eq!(servers.each_ref().map(FaultServer::posts), [2, 2, 5]);
}

#[tokio::test]
async fn a_candidate_that_one_endpoint_calls_broken_and_another_cannot_score_is_broken() {
    let (one, two) = (FaultServer::start(vec![]), FaultServer::start(vec![]));
    *one.inner.otherwise.lock().unwrap() = problem(422, "candidate_invalid", "candidate");
    *two.inner.otherwise.lock().unwrap() = html(500);
    let bench = Bench::of(&[&one, &two]);
    let error = bench.evaluate().await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Candidate(fault) if fault.code == "candidate_invalid"), "{error}");
}

#[tokio::test]
async fn a_candidate_that_two_endpoints_call_broken_is_broken() {
    let broken = || problem(422, "candidate_invalid", "candidate");
    let (one, two) = (FaultServer::start(vec![broken()]), FaultServer::start(vec![broken()]));
    let bench = Bench::of(&[&one, &two]);
    let evaluator = bench.connect().await.unwrap();
    let error = bench.score(&evaluator).await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Candidate(_)), "{error}");
    assert_eq!((one.posts(), two.posts()), (1, 1));
    // Who has scored is believed at once.
    assert_scored(&bench.score(&evaluator).await.unwrap());
    *one.inner.otherwise.lock().unwrap() = broken();
    let error = bench.score(&evaluator).await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Candidate(_)), "{error}");
    assert_eq!((one.posts(), two.posts()), (3, 1));
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
async fn an_endpoint_gets_no_more_at_once_than_it_bears() {
    let server = FaultServer::start(vec![]);
    *server.inner.otherwise.lock().unwrap() = Reply::Slow(Duration::from_millis(20));
    server.inner.capabilities.lock().unwrap()["limits"]["max_inflight"] = json!(2);
    let mut bench = Bench::of(&[&server]);
    bench.config.in_flight = NonZeroUsize::new(8).unwrap();
    let evaluator = bench.connect().await.unwrap();
    assert_eq!(evaluator.concurrency().get(), 2);
    let all = join_all((0..12).map(|_| bench.score(&evaluator))).await;
    assert!(all.iter().all(Result::is_ok));
    assert!(server.inner.most_at_once.load(std::sync::atomic::Ordering::SeqCst) <= 2);
}

/// A health check that another endpoint's trouble leads to does not end the rest that this one asked for.
#[tokio::test]
async fn a_passed_health_check_ends_no_rest_that_was_asked_for() {
    let server = FaultServer::start(vec![Reply::Status(429, &[("Retry-After", "2")], String::new())]);
    let mut bench = Bench::of(&[&server]);
    bench.policy.wait_scale = 0.2;
    let evaluator = bench.connect().await.unwrap();
    let pool = evaluator.pool.clone();
    let asked = std::time::Instant::now();
    let (scored, ()) = tokio::join!(bench.score(&evaluator), async {
        // On the one thread of this test, whoever has told of the attempt has also begun the rest.
        while bench.codes() != ["overloaded"] {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(pool.any_healthy().await);
    });
    assert_scored(&scored.unwrap());
    assert!(asked.elapsed() >= Duration::from_millis(400), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn an_endpoint_that_cancels_for_ever_is_not_asked_for_ever() {
    let server = FaultServer::start(vec![]);
    *server.inner.otherwise.lock().unwrap() = Reply::Edited(|answer| answer["status"] = json!("cancelled"));
    let error = Bench::of(&[&server]).evaluate().await.unwrap_err();
    assert!(matches!(&error, EvaluateError::GivenUp(fault) if fault.code == "cancelled"), "{error}");
}
