use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{CandidateRequest, TaskCapability};
use super::*;

fn request(samples: Samples) -> EvaluationRequest {
    EvaluationRequest {
        evaluation_id: "ev".into(),
        run_id: "run".into(),
        run_name: "name".into(),
        candidate: CandidateRequest {
            id: "c".into(),
            recipe_sha256: "cc".into(),
            path: None,
            recipe: Value::Null,
            genome: vec![],
        },
        tasks: vec![TaskRequest { name: "t".into(), metric: "m".into(), samples, seed: 1 }],
        fidelity: 1.0,
        replicate: 0,
    }
}

fn capabilities(n_samples: u64, is_mean: bool) -> Capabilities {
    let metric = MetricCapability { higher_is_better: true, min: Some(-1.0), max: Some(1.0), is_mean };
    let task = TaskCapability {
        n_samples,
        sample_ids: None,
        metrics: [("m".to_owned(), metric)].into(),
        supports_sample_ids: true,
        supports_limit: true,
        supports_per_sample: false,
        sample_hashes: None,
        sample_set: None,
    };
    Capabilities { tasks: [("t".to_owned(), task)].into(), deterministic: true }
}

fn checked(answer: Value, samples: Samples, n_samples: u64, completeness: Completeness) -> Result<Evaluation, Fault> {
    let expected = Expected {
        request: &request(samples),
        capabilities: &capabilities(n_samples, true),
        fingerprint: Some("fp"),
        completeness,
    };
    check(serde_json::from_value(answer).unwrap(), &expected)
}

fn answer(task: Value) -> Value {
    json!({"evaluation_id": "ev", "candidate_id": "c", "tasks": {"t": task}})
}

#[test]
fn n_is_what_was_asked_for() {
    let with_n = |n: u64| answer(json!({"n": n, "metrics": {"m": {"value": 0.5}}}));
    let endpoint = |n, samples, n_samples| checked(with_n(n), samples, n_samples, Completeness::Endpoint);
    assert!(endpoint(10, Samples::All, 10).is_ok());
    assert!(endpoint(9, Samples::All, 10).is_err());
    assert!(endpoint(4, Samples::Limit(4), 10).is_ok());
    assert!(endpoint(10, Samples::Limit(64), 10).is_ok());
    assert!(endpoint(64, Samples::Limit(64), 10).is_err());
    assert!(endpoint(2, Samples::Ids(vec![SampleId::Number(1), SampleId::Text("x".into())]), 10).is_ok());
}

#[test]
fn a_program_may_say_less_but_nothing_wrong() {
    let program = |task, samples| checked(answer(task), samples, 0, Completeness::Program);
    let bare = || json!({"metrics": {"m": {"value": 0.5}}});
    assert_eq!(program(bare(), Samples::Limit(64)).unwrap().tasks["t"].n, 64);
    assert_eq!(program(bare(), Samples::All).unwrap().tasks["t"].n, 0);
    let smaller = json!({"n": 40, "metrics": {"m": {"value": 0.5}}});
    assert_eq!(program(smaller, Samples::Limit(64)).unwrap().tasks["t"].n, 40);
    let larger = json!({"n": 100, "metrics": {"m": {"value": 0.5}}});
    assert!(program(larger, Samples::Limit(64)).is_err());
    let nameless = json!({"tasks": {"t": bare()}});
    assert!(checked(nameless.clone(), Samples::All, 0, Completeness::Program).is_ok());
    assert!(checked(nameless, Samples::All, 10, Completeness::Endpoint).is_err());
    let other = json!({"evaluation_id": "other", "tasks": {"t": bare()}});
    assert!(checked(other, Samples::All, 0, Completeness::Program).is_err());
}

/// Who leaves `n` out and gives scores by sample has said how many there are.
#[test]
fn scores_by_sample_are_counted_where_a_program_does_not_say_n() {
    let program = |count: usize, samples, n_samples| {
        let per_sample = json!({"ids": (0..count).collect::<Vec<_>>(), "scores": {"m": vec![0.5; count]}});
        let task = json!({"metrics": {"m": {"value": 0.5}}, "per_sample": per_sample});
        checked(answer(task), samples, n_samples, Completeness::Program)
    };
    let n = |checked: Result<Evaluation, Fault>| checked.unwrap().tasks["t"].n;
    assert_eq!(n(program(24, Samples::Limit(35), 0)), 24);
    assert_eq!(n(program(35, Samples::Limit(35), 0)), 35);
    assert_eq!(n(program(24, Samples::All, 0)), 24);
    let wrong = [
        (program(36, Samples::Limit(35), 0), "36 per-sample scores, expected 35"),
        (program(24, Samples::Limit(35), 40), "24 per-sample scores, expected 35"),
        (program(1, Samples::Ids(vec![SampleId::Number(0), SampleId::Number(1)]), 0), "sample 1 has no score"),
    ];
    for (checked, words) in wrong {
        let fault = checked.unwrap_err();
        assert!(fault.detail.contains(words), "{fault}");
    }
}

/// Bits per byte, a loss by token: means of samples that do not weigh the same.
#[test]
fn weights_of_samples_are_kept_with_their_scores() {
    let program = |weights: Value| {
        let per_sample = json!({"ids": [2, 0, 1], "scores": {"m": [0.25, 0.5, 0.75], "weight": weights}});
        let task = json!({"n": 3, "metrics": {"m": {"value": 0.4}}, "per_sample": per_sample});
        let expected = Expected {
            request: &request(Samples::All),
            capabilities: &capabilities(3, false),
            fingerprint: None,
            completeness: Completeness::Program,
        };
        check(serde_json::from_value(answer(task)).unwrap(), &expected)
    };
    let samples = program(json!([8, 1, 2])).unwrap().tasks["t"].per_sample.clone().unwrap();
    assert_eq!((&samples.scores["m"], &samples.scores["weight"]), (&vec![0.5, 0.75, 0.25], &vec![1.0, 2.0, 8.0]));
    for (wrong, words) in [
        (json!([8, 1]), "2 weights for 3 ids"),
        (json!([8, 0, 1]), "the weight of sample 0"),
        (json!([8, 1, null]), "the weight of sample 1"),
    ] {
        assert!(program(wrong).unwrap_err().detail.contains(words), "{words}");
    }
}

/// A wrong id would never meet that of another candidate: the two could not be compared on it.
#[test]
fn samples_that_the_task_does_not_have_are_refused() {
    let mut capabilities = capabilities(3, true);
    capabilities.tasks.get_mut("t").unwrap().sample_ids = Some((0..3).map(SampleId::Number).collect());
    let checked = |ids: [i64; 3]| {
        let samples = json!({"ids": ids, "scores": {"m": [0.0, 0.5, 1.0]}});
        let answer = answer(json!({"n": 3, "metrics": {"m": {"value": 0.5}}, "per_sample": samples}));
        let (request, fingerprint) = (request(Samples::All), Some("fp"));
        let completeness = Completeness::Endpoint;
        let expected = Expected { request: &request, capabilities: &capabilities, fingerprint, completeness };
        check(serde_json::from_value(answer).unwrap(), &expected)
    };
    let evaluation = checked([2, 0, 1]).unwrap();
    let samples = evaluation.tasks["t"].per_sample.as_ref().unwrap();
    assert_eq!(samples.scores["m"], [0.5, 1.0, 0.0]);
    let fault = checked([1, 2, 99]).unwrap_err();
    assert!(fault.detail.contains("sample 0 has no score"), "{fault}");
}

#[test]
fn metrics_that_nobody_asked_for_are_not_recorded() {
    let task = json!({"n": 10, "metrics": {"m": {"value": 0.5}, "more": {"value": 7}}});
    let evaluation = checked(answer(task), Samples::All, 10, Completeness::Endpoint).unwrap();
    assert_eq!(evaluation.tasks["t"].metrics.keys().collect::<Vec<_>>(), ["m"]);
}

#[test]
fn warnings_are_few_and_fit_to_be_shown() {
    let mut said = answer(json!({"n": 10, "metrics": {"m": {"value": 0.5}}}));
    said["warnings"] = json!(vec!["\u{1b}".repeat(1000); 30]);
    let evaluation = checked(said, Samples::All, 10, Completeness::Endpoint).unwrap();
    assert_eq!(evaluation.warnings.len(), 20);
    let is_fit = |warning: &String| warning.chars().count() <= 403 && !warning.contains(char::is_control);
    assert!(evaluation.warnings.iter().all(is_fit));
}

#[test]
fn a_turned_direction_is_refused() {
    let task = json!({"n": 10, "metrics": {"m": {"value": 0.5, "higher_is_better": false}}});
    assert!(
        checked(answer(task), Samples::All, 10, Completeness::Endpoint)
            .unwrap_err()
            .detail
            .contains("higher_is_better")
    );
}

proptest! {
    /// However the answer orders its samples, the scores come back in the order of the request (or of the ids).
    #[test]
    fn per_sample_scores_are_aligned(order in Just((0i64..12).collect::<Vec<_>>()).prop_shuffle(), by_id in any::<bool>()) {
        let score = |id: i64| (id as f64 / 12.0) - 0.5;
        let mean = (0..12).map(score).sum::<f64>() / 12.0;
        let scores: Vec<f64> = order.iter().map(|id| score(*id)).collect();
        let task = json!({"n": 12, "metrics": {"m": {"value": mean}}, "per_sample": {"ids": order, "scores": {"m": scores}}});
        let wanted: Vec<i64> = if by_id { (0..12).rev().collect() } else { (0..12).collect() };
        let samples = if by_id { Samples::Ids(wanted.iter().map(|id| SampleId::Number(*id)).collect()) } else { Samples::All };
        let evaluation = checked(answer(task), samples, 12, Completeness::Endpoint).unwrap();
        let per_sample = evaluation.tasks["t"].per_sample.as_ref().unwrap();
        prop_assert_eq!(per_sample.ids.to_vec(), wanted.iter().map(|id| SampleId::Number(*id)).collect::<Vec<_>>());
        prop_assert_eq!(&per_sample.scores["m"], &wanted.iter().map(|id| score(*id)).collect::<Vec<_>>());
    }

    /// A value that is not the mean of its samples is never recorded.
    #[test]
    fn a_value_beside_its_mean_is_refused(scores in prop::collection::vec(0.0..1.0f64, 1..20), off in 2e-6..0.5f64) {
        let n = scores.len() as u64;
        let mean = scores.iter().sum::<f64>() / n as f64;
        let ids: Vec<usize> = (0..scores.len()).collect();
        let task = |value: f64| json!({"n": n, "metrics": {"m": {"value": value}}, "per_sample": {"ids": ids, "scores": {"m": scores}}});
        prop_assert!(checked(answer(task(mean)), Samples::All, n, Completeness::Endpoint).is_ok());
        prop_assert!(checked(answer(task(mean - off)), Samples::All, n, Completeness::Endpoint).is_err());
    }
}
