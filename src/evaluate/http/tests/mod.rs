//! The evaluator against a real server on loopback that misbehaves to order. The oracle throughout: the class is the
//! one of the protocol's table, no fault becomes a score, and no fault of the infrastructure becomes a worst fitness.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::super::{Attempt, CandidateRequest, FaultClass, Samples, TaskRequest};
use super::*;
use crate::scores::SampleId;

mod agreement;
mod answers;
#[path = "../../../../tests/support/fault_server.rs"]
mod fault_server;
mod pool;

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
    stopping: CancellationToken,
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
                token: None,
                allow_insecure_token: false,
                in_flight: NonZeroUsize::MIN,
                allow_different_fingerprints: false,
                on_timeout: OnTimeout::Worst,
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
                error: 64 << 10,
            },
            tasks: vec![task("add"), task("rev")],
            lines: Arc::default(),
            record: Record::default(),
            cancel: CancellationToken::new(),
            stopping: CancellationToken::new(),
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
        let stopping = self.stopping.clone();
        ConnectContext { seed: 7, directory: self.folder.path().into(), notify: Arc::new(notify), stopping }
    }

    async fn connect(&self) -> Result<HttpEvaluator, EvaluateError> {
        self.connect_noting(|_| {}).await
    }

    async fn connect_noting(
        &self,
        on_line: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<HttpEvaluator, EvaluateError> {
        let manner = Manner { policy: self.policy.clone(), limits: self.limits.clone() };
        let context = self.context(on_line);
        let (config, patience) = (&self.config, &self.patience);
        HttpEvaluator::connect_with(config, patience, &self.tasks, &context, manner, &self.cancel).await
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
    assert_eq!(rev.per_sample.as_ref().unwrap().ids.to_vec(), [3, 1, 7].map(SampleId::Number));
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
