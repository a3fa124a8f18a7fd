use std::sync::Mutex;
use std::time::Duration;

use super::super::Attempt;
use super::*;
use crate::config::TestFunction;

#[derive(Default)]
struct Record(Mutex<Vec<Attempt>>);

impl AttemptObserver for Record {
    fn attempted(&self, attempt: &Attempt) {
        self.0.lock().unwrap().push(attempt.clone());
    }
}

fn config(function: TestFunction) -> FunctionConfig {
    FunctionConfig {
        function,
        noise: 0.0,
        samples: 400,
        latency: Duration::ZERO,
        latency_jitter: Duration::ZERO,
        infeasible_rate: 0.0,
        fault_rate: 0.0,
        in_flight: NonZeroUsize::MIN,
    }
}

fn evaluator(config: &FunctionConfig) -> Result<FunctionEvaluator, EvaluateError> {
    let patience = Patience {
        timeout: Duration::from_secs(60),
        startup_timeout: Duration::from_secs(60),
        max_outage: Duration::from_secs(60),
        max_attempts: 5,
    };
    let task = |name: &str| EvaluatorTask { name: name.into(), data: None, metric: None, max_new_tokens: None };
    FunctionEvaluator::with_policy(config, &patience, &[task("a"), task("b")], 7, RetryPolicy::scaled(0.0))
}

fn request(name: &str, genome: &[f64], samples: Samples) -> EvaluationRequest {
    let task =
        |task: &str| TaskRequest { name: task.into(), metric: "score".into(), samples: samples.clone(), seed: 7 };
    EvaluationRequest {
        evaluation_id: format!("ev-{name}"),
        run_id: "run".into(),
        run_name: "name".into(),
        candidate: CandidateRequest {
            id: name.into(),
            recipe_sha256: format!("recipe-{name}"),
            path: None,
            recipe: serde_json::Value::Null,
            genome: genome.into(),
        },
        tasks: vec![task("a"), task("b")],
        fidelity: 1.0,
        replicate: 0,
    }
}

async fn score(evaluator: &FunctionEvaluator, request: &EvaluationRequest) -> Result<Evaluation, EvaluateError> {
    evaluator.evaluate(request, &Record::default(), &CancellationToken::new()).await
}

fn value(evaluation: &Evaluation, task: &str) -> f64 {
    evaluation.tasks[task].metrics["score"].value
}

fn samples(evaluation: &Evaluation) -> &[f64] {
    &evaluation.tasks["a"].per_sample.as_ref().unwrap().scores["score"]
}

#[tokio::test]
async fn the_optimum_is_best_and_tasks_differ() {
    let evaluator = evaluator(&config(TestFunction::Sphere)).unwrap();
    let (of_a, of_b) = (evaluator.optimum("a", 3), evaluator.optimum("b", 3));
    assert_ne!(of_a, of_b);
    let at_best = score(&evaluator, &request("x", &of_a, Samples::All)).await.unwrap();
    assert_eq!(value(&at_best, "a"), 1.0);
    assert!(value(&at_best, "b") < 1.0);
    let corner = score(&evaluator, &request("y", &[0.0, 0.0, 0.0], Samples::All)).await.unwrap();
    assert!(value(&corner, "a") < value(&at_best, "a"));
    assert_eq!(evaluator.optimum("a", 2), of_a[..2]);
    assert!(!evaluator.needs_checkpoint());
}

#[tokio::test]
async fn candidates_share_their_luck_on_every_sample() {
    let evaluator = evaluator(&config(TestFunction::Sphere)).unwrap();
    let good = score(&evaluator, &request("x", &[0.4, 0.4], Samples::All)).await.unwrap();
    let worse = score(&evaluator, &request("y", &[0.0, 1.0], Samples::All)).await.unwrap();
    let again = score(&evaluator, &request("x", &[0.4, 0.4], Samples::All)).await.unwrap();
    assert_eq!(good, again);
    let (better, lesser) = if value(&good, "a") > value(&worse, "a") { (&good, &worse) } else { (&worse, &good) };
    // Without noise, the abler candidate never fails where the other succeeds.
    assert!(samples(better).iter().zip(samples(lesser)).all(|(better, lesser)| better >= lesser));
}

#[tokio::test]
async fn subsets_are_nested_and_ids_keep_their_scores() {
    let evaluator = evaluator(&config(TestFunction::Rastrigin)).unwrap();
    let mut smaller: Vec<SampleId> = Vec::new();
    let all = score(&evaluator, &request("x", &[0.5], Samples::All)).await.unwrap();
    for limit in [1, 10, 100, 400, 1000] {
        let evaluation = score(&evaluator, &request("x", &[0.5], Samples::Limit(limit))).await.unwrap();
        let per_sample = evaluation.tasks["a"].per_sample.clone().unwrap();
        assert_eq!(per_sample.ids.len() as u64, limit.min(400));
        assert!(smaller.iter().all(|id| per_sample.ids.contains(id)));
        for (id, score) in per_sample.ids.iter().zip(&per_sample.scores["score"]) {
            let SampleId::Number(number) = id else { panic!("{id}") };
            assert_eq!(samples(&all)[*number as usize], *score);
        }
        smaller = per_sample.ids.to_vec();
    }
    let chosen: Vec<SampleId> = [5, 2, 9].map(SampleId::Number).into();
    let evaluation = score(&evaluator, &request("x", &[0.5], Samples::Ids(chosen.clone()))).await.unwrap();
    assert_eq!(evaluation.tasks["a"].per_sample.as_ref().unwrap().ids.to_vec(), chosen);
    let unknown = Samples::Ids(vec![SampleId::Number(400)]);
    assert!(matches!(score(&evaluator, &request("x", &[0.5], unknown)).await, Err(EvaluateError::Configuration(_))));
}

#[tokio::test]
async fn baselines_lie_low_and_repeat() {
    let evaluator = evaluator(&config(TestFunction::Ackley)).unwrap();
    for name in ["base", "soup"] {
        let first = score(&evaluator, &request(name, &[], Samples::All)).await.unwrap();
        assert!(value(&first, "a") < 0.45, "{first:?}");
        assert_eq!(first, score(&evaluator, &request(name, &[], Samples::All)).await.unwrap());
    }
}

#[tokio::test]
async fn noise_is_fresh_for_every_candidate_and_replicate_only() {
    let evaluator = evaluator(&FunctionConfig { noise: 0.1, ..config(TestFunction::Flat) }).unwrap();
    let asked = request("x", &[0.5], Samples::All);
    let first = score(&evaluator, &asked).await.unwrap();
    assert_eq!(first, score(&evaluator, &asked).await.unwrap());
    let other = score(&evaluator, &EvaluationRequest { replicate: 1, ..asked }).await.unwrap();
    assert_ne!(samples(&first), samples(&other));
    assert_eq!(evaluator.capabilities().tasks["a"].metrics["score"].max, None);
}

#[tokio::test]
async fn infeasible_candidates_come_at_the_rate_ordered() {
    let evaluator =
        evaluator(&FunctionConfig { infeasible_rate: 0.3, samples: 1, ..config(TestFunction::Sphere) }).unwrap();
    let mut infeasible = 0;
    for index in 0..300 {
        let name = index.to_string();
        match score(&evaluator, &request(&name, &[0.5], Samples::All)).await {
            Err(EvaluateError::Candidate(_)) => infeasible += 1,
            other => drop(other.unwrap()),
        }
        score(&evaluator, &request(&name, &[], Samples::All)).await.unwrap();
    }
    assert!((60..=120).contains(&infeasible), "{infeasible} of 300");
}

#[tokio::test]
async fn faults_change_no_score() {
    let (clean, faulty) =
        (config(TestFunction::Rosenbrock), FunctionConfig { fault_rate: 0.4, ..config(TestFunction::Rosenbrock) });
    let (clean, faulty) = (evaluator(&clean).unwrap(), evaluator(&faulty).unwrap());
    assert_eq!(clean.fingerprint(), faulty.fingerprint());
    let (mut attempts, mut given_up) = (0, 0);
    for index in 0..200 {
        let request = request(&index.to_string(), &[0.1, 0.9], Samples::Limit(3));
        let record = Record::default();
        let outcome = faulty.evaluate(&request, &record, &CancellationToken::new()).await;
        let kept = record.0.lock().unwrap().clone();
        attempts += kept.len();
        assert!(kept.iter().map(|attempt| attempt.number).eq(1..=kept.len() as u32));
        match outcome {
            Ok(evaluation) => assert_eq!(evaluation.tasks, score(&clean, &request).await.unwrap().tasks),
            Err(EvaluateError::GivenUp(_)) => given_up += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(attempts > 250 && given_up < 10, "{attempts} attempts, {given_up} given up");
}

#[tokio::test]
async fn nothing_but_faults_is_given_up_after_the_attempts_that_count() {
    let evaluator = evaluator(&FunctionConfig { fault_rate: 1.0, ..config(TestFunction::Flat) }).unwrap();
    let record = Record::default();
    let outcome = evaluator.evaluate(&request("x", &[0.5], Samples::All), &record, &CancellationToken::new()).await;
    assert!(matches!(outcome, Err(EvaluateError::GivenUp(_))));
    assert_eq!(record.0.lock().unwrap().iter().filter(|attempt| attempt.counts).count(), 5);
}

#[tokio::test]
async fn a_cancelled_evaluation_does_not_wait_for_its_latency() {
    let evaluator =
        evaluator(&FunctionConfig { latency: Duration::from_secs(3600), ..config(TestFunction::Flat) }).unwrap();
    let cancel = CancellationToken::new();
    let asked = request("x", &[0.5], Samples::All);
    let record = Record::default();
    let (outcome, ()) = tokio::join!(evaluator.evaluate(&asked, &record, &cancel), async { cancel.cancel() });
    assert!(matches!(outcome, Err(EvaluateError::Cancelled)));
}

#[test]
fn bad_settings_are_named() {
    for (config, text) in [
        (
            FunctionConfig { samples: 0, ..config(TestFunction::Flat) },
            "`evaluator.samples`: must be from 1 to 10000000",
        ),
        (FunctionConfig { samples: u64::MAX, ..config(TestFunction::Flat) }, "must be from 1 to 10000000, but is 1844"),
        (FunctionConfig { noise: f64::NAN, ..config(TestFunction::Flat) }, "`evaluator.noise`"),
        (FunctionConfig { fault_rate: 1.5, ..config(TestFunction::Flat) }, "`evaluator.fault_rate`"),
        (FunctionConfig { infeasible_rate: -0.1, ..config(TestFunction::Flat) }, "`evaluator.infeasible_rate`"),
    ] {
        let error = evaluator(&config).err().unwrap();
        assert!(matches!(error, EvaluateError::Setting(_)));
        assert!(error.to_string().contains(text), "{error}");
    }
}
