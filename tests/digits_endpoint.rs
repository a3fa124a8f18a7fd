//! The http evaluator against a real endpoint: the digits zoo behind `evals/digits/eval_endpoint.py`, twice.
//!
//! Needs a Python with numpy (`EVOMERGE_TEST_PYTHON`, else `python3`). Without one these tests are skipped, or fail
//! where `EVOMERGE_TEST_ALL` lists `numpy`.

#[path = "support/skipping.rs"]
mod skipping;

use std::io::{BufRead, BufReader};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evomerge::config::Patience;
use evomerge::config::{EvaluatorConfig, EvaluatorKind, HttpConfig, OnTimeout};
use evomerge::evaluate::{
    Attempt, AttemptObserver, CandidateRequest, ConnectContext, EvaluateError, Evaluation, EvaluationRequest,
    Evaluator, EvaluatorTask, Samples, TaskRequest, connect,
};
use evomerge::scores::SampleId;
use skipping::skip;
use tokio_util::sync::CancellationToken;

/// Validation accuracies of `individual.json`, tasks clean, rot90, fog, uci, parity.
const BASE: [f64; 5] = [0.9542, 0.1417, 0.1125, 0.5208, 0.0417];
const TASKS: [&str; 5] = ["clean", "rot90", "fog", "uci", "parity"];

struct Endpoint(Child, String);

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn zoo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/digits")
}

fn python() -> Option<String> {
    let named = std::env::var("EVOMERGE_TEST_PYTHON").ok();
    let python = named.clone().unwrap_or_else(|| "python3".to_owned());
    let numpy = Command::new(&python).args(["-c", "import numpy"]).stderr(Stdio::null()).status();
    let works = numpy.is_ok_and(|status| status.success());
    assert!(works || named.is_none(), "EVOMERGE_TEST_PYTHON ({python}) has no numpy");
    works.then_some(python)
}

fn endpoint(python: &str, options: &[&str]) -> Endpoint {
    let mut command = Command::new(python);
    command.arg(zoo().join("eval_endpoint.py")).arg("--zoo").arg(zoo().join("tasks")).args(["--port", "0"]);
    let mut child = command.args(options).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.split_whitespace().last().unwrap().to_owned();
    Endpoint(child, url)
}

#[derive(Default)]
struct Record(Mutex<Vec<Attempt>>);

impl AttemptObserver for Record {
    fn attempted(&self, attempt: &Attempt) {
        self.0.lock().unwrap().push(attempt.clone());
    }
}

async fn evaluator(endpoints: Vec<String>, tasks: &[&str]) -> Result<Arc<dyn Evaluator>, EvaluateError> {
    let config = EvaluatorConfig {
        kind: EvaluatorKind::Http(HttpConfig {
            endpoints,
            token: None,
            allow_insecure_token: false,
            in_flight: NonZeroUsize::MIN,
            allow_different_fingerprints: false,
            on_timeout: OnTimeout::Worst,
        }),
        patience: Patience {
            timeout: Duration::from_secs(60),
            startup_timeout: Duration::from_secs(20),
            max_outage: Duration::from_secs(60),
            max_attempts: 5,
        },
    };
    let task = |name: &&str| EvaluatorTask { name: (*name).into(), data: None, metric: None, max_new_tokens: None };
    let tasks: Vec<EvaluatorTask> = tasks.iter().map(task).collect();
    let context = ConnectContext {
        seed: 7,
        directory: std::env::temp_dir(),
        notify: Arc::new(|_| {}),
        stopping: CancellationToken::new(),
    };
    connect(&config, &tasks, &context, &CancellationToken::new()).await
}

async fn score(
    evaluator: &dyn Evaluator,
    model: &Path,
    id: &str,
    samples: Samples,
    record: &Record,
) -> Result<Evaluation, EvaluateError> {
    let task = |name: &&str| TaskRequest {
        name: (*name).into(),
        metric: evaluator.default_metric(name).unwrap().into(),
        samples: samples.clone(),
        seed: 7,
    };
    let request = EvaluationRequest {
        evaluation_id: format!("ev-{id}"),
        run_id: "run".into(),
        run_name: "digits".into(),
        candidate: CandidateRequest {
            id: id.into(),
            recipe_sha256: id.into(),
            path: Some(model.into()),
            recipe: serde_json::Value::Null,
            genome: vec![],
        },
        tasks: TASKS.iter().map(task).collect(),
        fidelity: 1.0,
        replicate: 0,
    };
    evaluator.evaluate(&request, record, &CancellationToken::new()).await
}

#[tokio::test]
async fn two_real_endpoints_score_the_zoo() {
    let Some(python) = python() else {
        return skip("numpy", "there is no Python with numpy");
    };
    let pool = [endpoint(&python, &[]), endpoint(&python, &[])];
    let urls: Vec<String> = pool.iter().map(|endpoint| endpoint.1.clone()).collect();
    let evaluator = evaluator(urls.clone(), &TASKS).await.unwrap();
    assert_eq!(evaluator.concurrency().get(), 2);
    assert_eq!(evaluator.capabilities().tasks["fog"].sample_ids.as_ref().unwrap().len(), 240);

    let record = Record::default();
    let base = zoo().join("tasks/base");
    let names: Vec<String> = (0..16).map(|index| format!("c{index}")).collect();
    let scored = names.iter().map(|name| score(&*evaluator, &base, name, Samples::All, &record));
    for evaluation in futures_util::future::join_all(scored).await {
        let evaluation = evaluation.unwrap();
        for (task, accuracy) in TASKS.iter().zip(BASE) {
            let scores = &evaluation.tasks[*task];
            assert!((scores.metrics["accuracy"].value - accuracy).abs() < 1e-4, "{task}: {scores:?}");
            assert_eq!(scores.per_sample.as_ref().unwrap().ids.len(), 240);
        }
    }
    let attempts = record.0.lock().unwrap();
    let answered: Vec<&String> = attempts.iter().filter_map(|attempt| attempt.endpoint.as_ref()).collect();
    assert!(urls.iter().all(|url| answered.contains(&url)), "both work: {answered:?}");
    assert_eq!(attempts.len(), 16);
}

#[tokio::test]
async fn an_overloaded_endpoint_is_waited_for() {
    let Some(python) = python() else {
        return skip("numpy", "there is no Python with numpy");
    };
    let endpoint = endpoint(&python, &["--fault-rate", "0.5", "--seed", "1"]);
    let evaluator = evaluator(vec![endpoint.1.clone()], &TASKS).await.unwrap();
    let record = Record::default();
    for name in ["a", "b"] {
        score(&*evaluator, &zoo().join("tasks/base"), name, Samples::Limit(10), &record).await.unwrap();
    }
    let attempts = record.0.lock().unwrap();
    let overloaded = attempts.iter().filter(|attempt| attempt.fault.is_some()).count();
    assert!(overloaded > 0 && attempts.iter().all(|attempt| attempt.fault.is_none() || !attempt.counts));
}

#[tokio::test]
async fn a_real_endpoint_tells_bad_candidates_and_bad_requests() {
    let Some(python) = python() else {
        return skip("numpy", "there is no Python with numpy");
    };
    let endpoint = endpoint(&python, &[]);
    let error = evaluator(vec![endpoint.1.clone()], &["claen"]).await.err().unwrap();
    assert!(error.to_string().contains("did you mean clean?"), "{error}");

    let evaluator = evaluator(vec![endpoint.1.clone()], &TASKS).await.unwrap();
    let record = Record::default();
    let broken = tempfile::tempdir().unwrap();
    std::fs::write(broken.path().join("model.safetensors"), b"not safetensors").unwrap();
    let error = score(&*evaluator, broken.path(), "broken", Samples::All, &record).await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Candidate(fault) if fault.code == "candidate_invalid"), "{error}");

    let base = zoo().join("tasks/base");
    let ids: Vec<SampleId> = [9, 4, 100].map(SampleId::Number).into();
    let evaluation = score(&*evaluator, &base, "ids", Samples::Ids(ids.clone()), &record).await.unwrap();
    assert_eq!(evaluation.tasks["uci"].per_sample.as_ref().unwrap().ids.to_vec(), ids);
    let evaluation = score(&*evaluator, &base, "limit", Samples::Limit(32), &record).await.unwrap();
    assert_eq!(evaluation.tasks["uci"].n, 32);
}
