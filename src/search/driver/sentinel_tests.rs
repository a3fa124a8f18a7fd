use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use super::Sentinel;
use crate::config::RunConfig;
use crate::ledger::{Ledger, RepeatPurpose, RepeatRecord, now};
use crate::scores::Status;
use crate::search::{Progress, RunFolder, RunOptions, SearchError, Snapshot, Stop, prepare, run};

/// The sentinel's turns come faster than its answers.
const RUN: &str = r#"
name = "run"
models = { sources = ["a", "b", "c", "d", "e", "f"] }
space = { method = "linear" }
strategy = { kind = "random", look_ahead = 8 }
budget = { evaluations = 40 }
evaluator = { kind = "function", name = "sphere", samples = 40, latency = "2ms", in_flight = 4 }
tasks = [{ name = "one" }]
repeats = { finalists = false, sentinel = 2 }
"#;

/// Asks for a stop once so many evaluations have ended.
struct StopAt {
    finished: u64,
    stop: Stop,
}

impl Progress for StopAt {
    fn line(&self, _: &str) {}

    fn update(&self, snapshot: &Snapshot) {
        if snapshot.finished >= self.finished {
            self.stop.soon.cancel();
        }
    }
}

/// Starts or continues the run in `folder`; whether it came to its end before `finished` evaluations had ended.
async fn start(folder: &Path, finished: u64) -> bool {
    let stop = Stop::default();
    let progress: Arc<dyn Progress> = Arc::new(StopAt { finished, stop: stop.clone() });
    let config = RunConfig::parse(RUN, folder).unwrap();
    let prepared = prepare(config, folder, &progress, &stop).await.unwrap();
    let lock = RunFolder::lock(&folder.join("results"), "run").unwrap();
    match run(Arc::new(prepared), lock.into(), RunOptions::default(), progress, stop).await {
        Ok(_) => true,
        Err(SearchError::Stopped) => false,
        Err(error) => panic!("{error}"),
    }
}

/// What each scoring of the sentinel was due after, and its replicate.
fn made(folder: &Path) -> Vec<(u64, u32)> {
    let ledger = Ledger::open_for_reading(&RunFolder::ledger_in(&folder.join("results/run"))).unwrap();
    let made = ledger.repeats_for(RepeatPurpose::Sentinel).unwrap();
    made.into_iter().map(|repeat| (repeat.after, repeat.replicate)).collect()
}

#[tokio::test]
async fn every_multiple_has_one_scoring_whatever_comes_between() {
    let expected: Vec<(u64, u32)> = (1..=20).map(|turn| (2 * u64::from(turn), 1 + turn)).collect();
    let calm = tempfile::tempdir().unwrap();
    assert!(start(calm.path(), u64::MAX).await);
    assert_eq!(made(calm.path()), expected);

    let stormy = tempfile::tempdir().unwrap();
    for finished in [3, 9, 10, 25] {
        assert!(!start(stormy.path(), finished).await, "it ended before {finished} evaluations had");
    }
    assert!(start(stormy.path(), u64::MAX).await);
    assert_eq!(made(stormy.path()), expected);
}

#[test]
fn a_start_goes_on_behind_what_is_on_record() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&folder.path().join("ledger.sqlite")).unwrap();
    let every = NonZeroU64::new(6).unwrap();
    let stands = || {
        let sentinel = Sentinel::of(&ledger, Some(every)).unwrap();
        (sentinel.turn(100, every), sentinel.made_at, sentinel.index)
    };
    let record = |after: u64, status: Status| {
        let repeat = RepeatRecord {
            evaluation_id: format!("ev_{after}"),
            index: 3,
            candidate_id: "c".into(),
            purpose: RepeatPurpose::Sentinel,
            replicate: 2,
            after,
            status,
            objective: None,
            tasks: BTreeMap::new(),
            alarm: serde_json::Value::Null,
            error: None,
            finished_at: now(),
        };
        ledger.repeat(&repeat).unwrap();
    };
    assert_eq!(stands(), (Some(6), 0, None));
    record(6, Status::Scored);
    assert_eq!(stands(), (Some(12), 6, Some(3)));
    // Given up, it is asked once more at the end, and not at every start.
    record(12, Status::Failed);
    assert_eq!(stands(), (Some(18), 6, Some(3)));
    // The last one of a search that ended, which went on with a larger budget.
    record(21, Status::Scored);
    assert_eq!(stands(), (Some(24), 21, Some(3)));
    let sentinel = Sentinel::of(&ledger, Some(every)).unwrap();
    assert_eq!((sentinel.turn(23, every), sentinel.turn(24, every)), (None, Some(24)));
    assert_eq!(Sentinel { open: Some(18), ..sentinel }.turn(100, every), None);
}
