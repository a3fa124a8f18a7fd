use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::config::RunConfig;
use crate::evaluate::{
    AttemptObserver, Capabilities, EvaluateError, Evaluation, EvaluationRequest, Evaluator, Fault, FaultClass, Waiting,
};
use crate::ledger::{Ledger, fact};
use crate::scores::Status;
use crate::search::{Progress, RunFolder, RunOptions, SearchError, Snapshot, Stop, best_record, prepare, run};

const RUN: &str = r#"
name = "run"
models = { sources = ["a", "b", "c", "d", "e", "f", "g", "h"] }
space = { method = "linear" }
strategy = { kind = "random", look_ahead = 8 }
budget = { evaluations = 40 }
evaluator = { kind = "function", name = "sphere", samples = 40 }
tasks = [{ name = "one" }]
"#;

/// Evaluations that are given up before a search is said to have failed: one more than it bears.
const GIVEN_UP: usize = 6;

struct Silent;

impl Progress for Silent {
    fn line(&self, _: &str) {}
    fn update(&self, _: &Snapshot) {}
}

/// Gives up its first evaluations, and scores the others only when they are called off.
struct Late {
    landscape: Arc<dyn Evaluator>,
    asked: AtomicUsize,
}

impl Evaluator for Late {
    fn kind(&self) -> &'static str {
        "late"
    }

    fn fingerprint(&self) -> &str {
        self.landscape.fingerprint()
    }

    fn capabilities(&self) -> &Capabilities {
        self.landscape.capabilities()
    }

    fn concurrency(&self) -> NonZeroUsize {
        NonZeroUsize::new(GIVEN_UP + 1).unwrap()
    }

    fn needs_checkpoint(&self) -> bool {
        false
    }

    fn waiting(&self) -> Vec<Waiting> {
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        vec![Waiting { endpoint: "http://far:1".into(), since, reason: "no answer".into() }]
    }

    fn is_out_of_reach(&self) -> bool {
        true
    }

    fn evaluate<'a>(
        &'a self,
        request: &'a EvaluationRequest,
        attempts: &'a dyn AttemptObserver,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Evaluation, EvaluateError>> {
        Box::pin(async move {
            if self.asked.fetch_add(1, Ordering::Relaxed) < GIVEN_UP {
                // Time for a first look at what is waited for.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let fault = Fault::new(FaultClass::Infrastructure, "internal", "a fault to order");
                return Err(EvaluateError::GivenUp(fault));
            }
            cancel.cancelled().await;
            let nobody = CancellationToken::new();
            self.landscape.evaluate(request, attempts, &nobody).await
        })
    }
}

/// What is scored after too many evaluations were given up, and before the run is left, is not thrown away.
#[tokio::test]
async fn scores_that_come_after_too_many_failures_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (progress, stop): (Arc<dyn Progress>, _) = (Arc::new(Silent), Stop::default());
    let config = RunConfig::parse(RUN, folder.path()).unwrap();
    let mut prepared = prepare(config, folder.path(), &progress, &stop).await.unwrap();
    prepared.evaluator = Arc::new(Late { landscape: prepared.evaluator.clone(), asked: AtomicUsize::new(0) });
    let results = folder.path().join("results");
    let lock = RunFolder::lock(&results, "run").unwrap();
    let error = run(Arc::new(prepared), lock.into(), RunOptions::default(), progress, stop).await.unwrap_err();
    assert!(matches!(error, SearchError::TooManyFailures { keeps_nothing: false, .. }), "{error}");
    assert!(error.to_string().ends_with("continues the run"), "{error}");

    let results = results.join("run");
    let ledger = Ledger::open_for_reading(&RunFolder::ledger_in(&results)).unwrap();
    let told = ledger.all_told_in_short().unwrap();
    let scored = told.values().filter(|record| record.status == Status::Scored).count();
    assert!(scored > 0 && told.len() == GIVEN_UP + scored, "{told:?}");
    let trials = std::fs::read_to_string(results.join("trials.csv")).unwrap();
    assert_eq!(trials.lines().count(), 1 + told.len(), "{trials}");
    let (best, _) = best_record(&ledger).unwrap().unwrap();
    assert_eq!(std::fs::read_to_string(results.join("best/recipe.toml")).unwrap(), best.recipe);

    let waiting: serde_json::Value = serde_json::from_str(&ledger.fact(fact::WAITING).unwrap().unwrap()).unwrap();
    let far =
        serde_json::json!({ "endpoint": "http://far:1", "since": "2023-11-14T22:13:20.000Z", "reason": "no answer" });
    assert_eq!(waiting, serde_json::json!({ "all": true, "endpoints": [far] }));
}
