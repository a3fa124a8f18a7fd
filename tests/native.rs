//! The native evaluator through its public face: accuracies of the tiny zoo, likelihood metrics, subsets, faults.
#![cfg(feature = "native")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evomerge::config::NativeConfig;
use evomerge::config::Patience;
use evomerge::evaluate::{
    Attempt, AttemptObserver, CandidateRequest, EvaluateError, Evaluation, EvaluationRequest, Evaluator, EvaluatorTask,
    FaultClass, Samples, TaskRequest, native,
};
use evomerge::scores::{SAMPLE_WEIGHT, SampleId};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

const TASKS: [&str; 4] = ["add", "cnt", "rev", "sort"];

/// Exact match of every checkpoint as the reference evaluator (transformers) has it.
#[rustfmt::skip]
const ACCURACIES: [(&str, [f64; 4], [f64; 4]); 17] = [
    //              add    cnt    rev    sort   (val), then test
    ("base", [0.575, 0.395, 0.535, 0.565], [0.535, 0.350, 0.465, 0.610]),
    ("expert-add", [1.000, 0.255, 0.445, 0.565], [1.000, 0.270, 0.390, 0.555]),
    ("expert-rev", [0.455, 0.300, 0.995, 0.450], [0.425, 0.345, 0.985, 0.430]),
    ("expert-sort", [0.510, 0.245, 0.315, 0.990], [0.495, 0.205, 0.305, 0.995]),
    ("expert-cnt", [0.115, 0.945, 0.035, 0.130], [0.150, 0.945, 0.035, 0.090]),
    ("sweep/run-00", [0.310, 0.185, 0.315, 0.385], [0.320, 0.185, 0.310, 0.430]),
    ("sweep/run-01", [0.630, 0.375, 0.680, 0.790], [0.695, 0.335, 0.710, 0.815]),
    ("sweep/run-02", [0.440, 0.325, 0.390, 0.500], [0.415, 0.310, 0.365, 0.515]),
    ("sweep/run-03", [0.360, 0.180, 0.220, 0.350], [0.335, 0.155, 0.235, 0.335]),
    ("sweep/run-04", [0.770, 0.375, 0.785, 0.815], [0.735, 0.400, 0.690, 0.825]),
    ("sweep/run-05", [0.175, 0.215, 0.065, 0.215], [0.170, 0.175, 0.085, 0.290]),
    ("sweep/run-06", [0.730, 0.380, 0.785, 0.845], [0.680, 0.405, 0.685, 0.870]),
    ("sweep/run-07", [0.725, 0.450, 0.750, 0.850], [0.715, 0.400, 0.685, 0.860]),
    ("sweep/run-08", [0.450, 0.370, 0.435, 0.655], [0.295, 0.340, 0.380, 0.635]),
    ("sweep/run-09", [0.860, 0.530, 0.880, 0.925], [0.815, 0.505, 0.815, 0.925]),
    ("sweep/run-10", [0.855, 0.495, 0.815, 0.940], [0.785, 0.455, 0.790, 0.900]),
    ("sweep/run-11", [0.780, 0.480, 0.820, 0.780], [0.765, 0.395, 0.720, 0.800]),
];

#[derive(Default)]
struct Attempts(Mutex<Vec<Attempt>>);

impl AttemptObserver for Attempts {
    fn attempted(&self, attempt: &Attempt) {
        self.0.lock().unwrap().push(attempt.clone());
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn zoo(model: &str) -> PathBuf {
    root().join("evals/tiny-llama").join(model)
}

fn config(threads: usize, batch: usize) -> NativeConfig {
    NativeConfig { threads: NonZeroUsize::new(threads), batch: NonZeroUsize::new(batch).unwrap(), max_new_tokens: 12 }
}

fn patience() -> Patience {
    Patience {
        timeout: Duration::from_secs(600),
        startup_timeout: Duration::from_secs(1),
        max_outage: Duration::from_secs(1),
        max_attempts: 2,
    }
}

fn task(name: &str, data: impl Into<PathBuf>) -> EvaluatorTask {
    EvaluatorTask { name: name.to_owned(), data: Some(data.into()), metric: None, max_new_tokens: None }
}

fn split(split: &str) -> Vec<EvaluatorTask> {
    TASKS.iter().map(|name| task(name, zoo(&format!("data/{name}.{split}.jsonl")))).collect()
}

fn connect(tasks: &[EvaluatorTask]) -> Result<Arc<dyn Evaluator>, EvaluateError> {
    native::connect(&config(0, 64), &patience(), tasks)
}

fn ask(
    evaluator: &dyn Evaluator,
    path: impl Into<PathBuf>,
    metric: Option<&str>,
    samples: &Samples,
) -> EvaluationRequest {
    let tasks = evaluator.capabilities().tasks.iter().map(|(name, capability)| TaskRequest {
        name: name.clone(),
        metric: metric.map_or_else(|| capability.metrics.keys().next().unwrap().clone(), str::to_owned),
        samples: samples.clone(),
        seed: 11,
    });
    EvaluationRequest {
        evaluation_id: "e".into(),
        run_id: "r".into(),
        run_name: "r".into(),
        tasks: tasks.collect(),
        candidate: CandidateRequest {
            id: "c".into(),
            recipe_sha256: "s".into(),
            path: Some(path.into()),
            recipe: serde_json::Value::Null,
            genome: Vec::new(),
        },
        fidelity: 1.0,
        replicate: 0,
    }
}

async fn evaluate(evaluator: &dyn Evaluator, request: &EvaluationRequest) -> Result<Evaluation, EvaluateError> {
    evaluator.evaluate(request, &Attempts::default(), &CancellationToken::new()).await
}

async fn score(evaluator: &dyn Evaluator, model: impl Into<PathBuf>) -> Result<Evaluation, EvaluateError> {
    evaluate(evaluator, &ask(evaluator, model, None, &Samples::All)).await
}

/// A copy of a zoo checkpoint to break.
fn copy(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(zoo(model)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

fn written(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[tokio::test]
async fn accuracies_and_verdicts_are_the_references() {
    #[derive(Deserialize)]
    struct Reference {
        verdicts: BTreeMap<String, BTreeMap<String, String>>,
    }
    let text = std::fs::read_to_string(root().join("tests/data/native/answers.json")).unwrap();
    let reference: Reference = serde_json::from_str(&text).unwrap();
    assert_eq!(reference.verdicts.len(), 12);
    for (name, column) in [("val", 0), ("test", 1)] {
        let evaluator = connect(&split(name)).unwrap();
        for (model, val, test) in ACCURACIES {
            let evaluation = score(&*evaluator, zoo(model)).await.unwrap();
            assert!(evaluation.warnings.is_empty());
            for (task, expected) in TASKS.iter().zip([val, test][column]) {
                let scores = &evaluation.tasks[*task];
                let value = &scores.metrics["exact_match"];
                assert_eq!(scores.n, 200);
                assert!(
                    (value.value - expected).abs() < 1e-12,
                    "{model} on {task}.{name}: {}, {expected}",
                    value.value
                );
                let stderr = (expected * (1.0 - expected) / 199.0).sqrt();
                assert!((value.stderr.unwrap() - stderr).abs() < 1e-12);
                let per_sample = scores.per_sample.as_ref().unwrap();
                assert!(per_sample.ids.iter().eq((0..200).map(SampleId::Number).collect::<Vec<_>>().iter()));
                if let Some(verdicts) = reference.verdicts.get(model) {
                    let ours: String = per_sample.scores["exact_match"]
                        .iter()
                        .map(|score| if *score == 1.0 { '1' } else { '0' })
                        .collect();
                    assert_eq!(ours, verdicts[&format!("{task}.{name}")], "{model} on {task}.{name}");
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Likelihoods {
    choices: Vec<Choice>,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Choice {
    prompt: String,
    choices: Vec<String>,
    gold: usize,
    loglikelihoods: Vec<f64>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    bytes: f64,
    bits_per_byte: f64,
}

/// The reference's samples as task data, and its numbers.
fn likelihoods() -> (tempfile::NamedTempFile, tempfile::NamedTempFile, Likelihoods) {
    let text = std::fs::read_to_string(root().join("tests/data/native/likelihood.json")).unwrap();
    let reference: Likelihoods = serde_json::from_str(&text).unwrap();
    let choices = reference.choices.iter().enumerate().map(|(at, choice)| {
        let id = format!("choice-{at}");
        serde_json::json!({"id": id, "prompt": choice.prompt, "choices": choice.choices, "gold": choice.gold})
            .to_string()
    });
    let texts = reference.texts.iter().map(|text| serde_json::json!({"text": text.text}).to_string());
    let files = (written(&choices.collect::<Vec<_>>().join("\n")), written(&texts.collect::<Vec<_>>().join("\n")));
    (files.0, files.1, reference)
}

fn best(values: &[f64]) -> usize {
    (0..values.len()).rev().max_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap()
}

#[tokio::test]
async fn multiple_choice_follows_the_references_likelihoods() {
    let (choices, _, reference) = likelihoods();
    let evaluator = connect(&[task("choice", choices.path())]).unwrap();
    let mut told_apart = false;
    for (metric, normalized) in [("acc", false), ("acc_norm", true)] {
        let request = ask(&*evaluator, zoo("base"), Some(metric), &Samples::All);
        let scores = evaluate(&*evaluator, &request).await.unwrap().tasks.remove("choice").unwrap();
        let expected: Vec<f64> = reference
            .choices
            .iter()
            .map(|choice| {
                let lengths =
                    choice.choices.iter().map(|text| if normalized { text.chars().count() as f64 } else { 1.0 });
                let values: Vec<f64> =
                    choice.loglikelihoods.iter().zip(lengths).map(|(ll, length)| ll / length).collect();
                f64::from(u8::from(best(&values) == choice.gold))
            })
            .collect();
        let per_sample = scores.per_sample.unwrap();
        assert_eq!(per_sample.scores[metric], expected);
        assert_eq!(per_sample.ids[1], SampleId::Text("choice-1".into()));
        assert_eq!(scores.metrics[metric].value, expected.iter().sum::<f64>() / expected.len() as f64);
        assert_eq!(scores.n_truncated, None);
        told_apart |= normalized && scores.metrics[metric].value != 0.0 && expected.contains(&0.0);
    }
    assert!(told_apart);
}

#[tokio::test]
async fn bits_per_byte_is_weighted_by_bytes() {
    let (_, texts, reference) = likelihoods();
    let evaluator = connect(&[task("text", texts.path())]).unwrap();
    let capability = &evaluator.capabilities().tasks["text"].metrics["bits_per_byte"];
    assert!(!capability.higher_is_better && !capability.is_mean && capability.max.is_none());
    let scores = score(&*evaluator, zoo("base")).await.unwrap().tasks.remove("text").unwrap();
    let per_sample = scores.per_sample.unwrap();
    for (ours, text) in per_sample.scores["bits_per_byte"].iter().zip(&reference.texts) {
        assert!((ours - text.bits_per_byte).abs() < 1e-5 * text.bits_per_byte, "{ours} is not {}", text.bits_per_byte);
    }
    let bytes: Vec<f64> = reference.texts.iter().map(|text| text.bytes).collect();
    assert_eq!(per_sample.scores[SAMPLE_WEIGHT], bytes, "the weights that paired comparisons need");
    let bits: f64 = reference.texts.iter().map(|text| text.bits_per_byte * text.bytes).sum();
    let expected = bits / reference.texts.iter().map(|text| text.bytes).sum::<f64>();
    assert!((scores.metrics["bits_per_byte"].value - expected).abs() < 1e-5 * expected);
    assert!(scores.metrics["bits_per_byte"].stderr.unwrap() > 0.0);
}

#[tokio::test]
async fn scores_are_the_same_bits_on_any_number_of_threads() {
    let (choices, texts, _) = likelihoods();
    let tasks = [task("choice", choices.path()), task("text", texts.path()), task("add", zoo("data/add.val.jsonl"))];
    let mut first = None;
    for threads in [1, 2, 8] {
        let evaluator = native::connect(&config(threads, 32), &patience(), &tasks).unwrap();
        let evaluation = score(&*evaluator, zoo("sweep/run-05")).await.unwrap();
        assert_eq!(first.get_or_insert_with(|| evaluation.clone()), &evaluation, "{threads} threads");
    }
}

#[tokio::test]
async fn subsets_repeat_the_scores_of_the_whole() {
    let (choices, texts, _) = likelihoods();
    let tasks = [task("choice", choices.path()), task("text", texts.path()), task("cnt", zoo("data/cnt.val.jsonl"))];
    let evaluator = connect(&tasks).unwrap();
    let whole = score(&*evaluator, zoo("base")).await.unwrap();
    let mut earlier: BTreeMap<String, Vec<SampleId>> = BTreeMap::new();
    for limit in [2, 3, 150] {
        let request = ask(&*evaluator, zoo("base"), None, &Samples::Limit(limit));
        let part = evaluate(&*evaluator, &request).await.unwrap();
        for (name, scores) in &part.tasks {
            let all = whole.tasks[name].per_sample.as_ref().unwrap();
            let some = scores.per_sample.as_ref().unwrap();
            assert_eq!(scores.n, limit.min(whole.tasks[name].n));
            for (metric, values) in &some.scores {
                for (id, value) in some.ids.iter().zip(values) {
                    let at = all.ids.iter().position(|other| other == id).unwrap();
                    assert_eq!(value, &all.scores[metric][at], "{name}, sample {id}");
                }
            }
            let before = earlier.insert(name.clone(), some.ids.to_vec()).unwrap_or_default();
            assert!(before.iter().all(|id| some.ids.contains(id)), "{name}: subsets are not nested");
        }
    }
    let mut request =
        ask(&*evaluator, zoo("base"), None, &Samples::Ids(vec![SampleId::Number(3), SampleId::Number(0)]));
    request.tasks.retain(|task| task.name != "choice");
    let part = evaluate(&*evaluator, &request).await.unwrap();
    assert_eq!(part.tasks["cnt"].per_sample.as_ref().unwrap().ids.to_vec(), [SampleId::Number(3), SampleId::Number(0)]);
    request.tasks[0].samples = Samples::Ids(vec![SampleId::Number(900)]);
    let error = evaluate(&*evaluator, &request).await.unwrap_err();
    assert!(matches!(&error, EvaluateError::Configuration(fault) if fault.detail.contains("900")), "{error}");
}

#[tokio::test]
async fn answers_that_are_cut_are_wrong_and_counted() {
    let mut tasks = split("val");
    for task in &mut tasks {
        task.max_new_tokens = Some(2);
    }
    let evaluator = connect(&tasks).unwrap();
    let evaluation = score(&*evaluator, zoo("expert-rev")).await.unwrap();
    let rev = &evaluation.tasks["rev"];
    assert_eq!((rev.n_truncated, rev.metrics["exact_match"].value), (Some(200), 0.0));
    // A digit and the end token fit.
    assert!(evaluation.tasks["cnt"].n_truncated < Some(100));
}

#[tokio::test]
async fn evaluations_beside_each_other_agree() {
    let evaluator = connect(&split("val")).unwrap();
    assert_eq!(evaluator.concurrency().get(), 1);
    assert!(evaluator.needs_checkpoint() && evaluator.capabilities().deterministic);
    let (one, two) = tokio::join!(score(&*evaluator, zoo("base")), score(&*evaluator, zoo("base")));
    assert_eq!(one.unwrap(), two.unwrap());
}

#[test]
fn the_fingerprint_covers_what_changes_scores() {
    let (choices, texts, _) = likelihoods();
    let fingerprint = |config: NativeConfig, tasks: &[EvaluatorTask]| {
        native::connect(&config, &patience(), tasks).unwrap().fingerprint().to_owned()
    };
    let tasks = [task("a", choices.path()), task("b", texts.path())];
    let plain = fingerprint(config(1, 8), &tasks);
    assert_eq!(plain.len(), 64);
    assert_eq!(plain, fingerprint(config(3, 99), &tasks));
    let copied = written(&std::fs::read_to_string(choices.path()).unwrap());
    assert_eq!(plain, fingerprint(config(1, 8), &[tasks[1].clone(), task("a", copied.path())]));
    let mut metric = tasks.clone();
    metric[0].metric = Some("acc".into());
    assert_eq!(plain, fingerprint(config(1, 8), &metric));
    metric[0].metric = Some("acc_norm".into());
    let mut longer = tasks.clone();
    longer[0].max_new_tokens = Some(13);
    let changed = written(&(std::fs::read_to_string(choices.path()).unwrap() + "\n"));
    let others = [&metric[..], &longer, &tasks[..1], &[task("a", changed.path()), tasks[1].clone()]];
    for other in others {
        assert_ne!(plain, fingerprint(config(1, 8), other));
    }
}

#[test]
fn capabilities_show_overlap() {
    let data = |file: &str| {
        let evaluator = connect(&[task("t", zoo(file))]).unwrap();
        evaluator.capabilities().tasks["t"].sample_hashes.clone().unwrap()
    };
    let (val, test) = (data("data/add.val.jsonl"), data("data/add.test.jsonl"));
    assert_eq!((val.len(), test.len()), (200, 200));
    assert!(val.iter().all(|hash| !test.contains(hash)));
    assert_eq!(val, data("data/add.val.jsonl"));
}

#[test]
fn set_up_faults_say_what_fits() {
    let error = |tasks: &[EvaluatorTask]| connect(tasks).err().unwrap();
    let misfit = EvaluatorTask { metric: Some("acc".into()), ..task("add", zoo("data/add.val.jsonl")) };
    let text = error(&[misfit]).to_string();
    assert!(text.contains("`acc`") && text.contains("exact_match") && text.contains("add.val.jsonl"), "{text}");
    let bare = EvaluatorTask { data: None, ..task("add", "") };
    assert!(matches!(error(&[bare]), EvaluateError::Configuration(fault) if fault.detail.contains("`data`")));
    let twice = [task("add", zoo("data/add.val.jsonl")), task("add", zoo("data/add.test.jsonl"))];
    assert!(matches!(error(&twice), EvaluateError::Configuration(fault) if fault.detail.contains("twice")));
    let broken = written("{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \"a\"");
    match error(&[task("add", broken.path())]) {
        EvaluateError::TaskData { path, reason } => {
            assert_eq!(path, broken.path());
            assert!(reason.contains("line 2") && reason.contains("not JSON"), "{reason}");
        }
        other => panic!("{other}"),
    }
}

/// The fault of scoring `folder`, by class and code, with the attempts made.
async fn fault_of(folder: &Path) -> (EvaluateError, usize) {
    let evaluator = connect(&split("val")[..1]).unwrap();
    let request = ask(&*evaluator, folder, None, &Samples::All);
    let attempts = Attempts::default();
    let error = evaluator.evaluate(&request, &attempts, &CancellationToken::new()).await.unwrap_err();
    let attempts = attempts.0.into_inner().unwrap();
    assert!(attempts.iter().zip(1..).all(|(attempt, number)| attempt.number == number && attempt.fault.is_some()));
    (error, attempts.len())
}

#[tokio::test]
async fn a_bad_candidate_is_its_own_fault() {
    let truncated = copy("base");
    let path = truncated.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();

    let nan = copy("base");
    let mut broken = bytes.clone();
    let end = broken.len();
    broken[end - 2..].copy_from_slice(&[0xc0, 0x7f]);
    std::fs::write(nan.path().join("model.safetensors"), &broken).unwrap();

    let overflowing = copy("base");
    let mut broken = bytes.clone();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    for tensor in ["model.norm.weight", "lm_head.weight"] {
        let at = |end: usize| data + header[tensor]["data_offsets"][end].as_u64().unwrap() as usize;
        // The largest bfloat16: finite, but not its products.
        broken[at(0)..at(1)].as_chunks_mut::<2>().0.fill([0x7f, 0x7f]);
    }
    std::fs::write(overflowing.path().join("model.safetensors"), &broken).unwrap();

    let shape = copy("base");
    edit(shape.path(), "config.json", "\"intermediate_size\": 256", "\"intermediate_size\": 255");
    let vocabulary = copy("base");
    edit(vocabulary.path(), "tokenizer.json", "\"+\": 69", "\"+\": 80");

    for (folder, code, part) in [
        (&truncated, "candidate_invalid", "is the download complete?"),
        (&nan, "candidate_nonfinite", "NaN"),
        (&overflowing, "candidate_nonfinite", "logit"),
        (&shape, "candidate_invalid", "has shape"),
        (&vocabulary, "candidate_invalid", "token 80"),
    ] {
        let (error, attempts) = fault_of(folder.path()).await;
        let EvaluateError::Candidate(fault) = &error else { panic!("{error}") };
        assert_eq!((fault.class, fault.code.as_str(), attempts), (FaultClass::Candidate, code, 1), "{error}");
        assert!(fault.detail.contains(part), "{}", fault.detail);
    }
}

fn edit(folder: &Path, file: &str, from: &str, to: &str) {
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
}

#[tokio::test]
async fn a_wrong_set_up_stops_the_run() {
    let tokenizer = copy("base");
    std::fs::remove_file(tokenizer.path().join("tokenizer.json")).unwrap();
    let family = copy("base");
    edit(family.path(), "config.json", "\"model_type\": \"llama\"", "\"model_type\": \"gpt2\"");
    let endless = copy("base");
    edit(endless.path(), "config.json", "\"eos_token_id\": 2,", "");
    edit(endless.path(), "generation_config.json", "\"eos_token_id\": 2,", "");
    for (folder, part) in [(&tokenizer, "save_pretrained"), (&family, "gpt2"), (&endless, "eos_token_id")] {
        let (error, attempts) = fault_of(folder.path()).await;
        let EvaluateError::Configuration(fault) = &error else { panic!("{error}") };
        assert!(fault.detail.contains(part) && attempts == 1, "{}", fault.detail);
    }
    let evaluator = connect(&split("val")[..1]).unwrap();
    let mut request = ask(&*evaluator, zoo("base"), None, &Samples::All);
    request.tasks[0].metric = "acc".into();
    assert!(evaluate(&*evaluator, &request).await.unwrap_err().to_string().contains("exact_match"));
    request.tasks[0].name = "mul".into();
    assert!(evaluate(&*evaluator, &request).await.unwrap_err().to_string().contains("the tasks are add"));
    request.candidate.path = None;
    assert!(matches!(evaluate(&*evaluator, &request).await, Err(EvaluateError::Configuration(_))));
}

#[tokio::test]
async fn a_folder_that_is_gone_is_tried_again_and_given_up() {
    let gone = tempfile::tempdir().unwrap();
    let (error, attempts) = fault_of(&gone.path().join("gone")).await;
    assert!(matches!(&error, EvaluateError::GivenUp(fault) if fault.class == FaultClass::Infrastructure), "{error}");
    assert_eq!(attempts, 2);
}

#[tokio::test]
async fn too_little_time_is_doubled_once() {
    let patience = Patience { timeout: Duration::ZERO, max_attempts: 5, ..patience() };
    let evaluator = native::connect(&config(1, 64), &patience, &split("val")).unwrap();
    let request = ask(&*evaluator, zoo("base"), None, &Samples::All);
    let attempts = Attempts::default();
    let error = evaluator.evaluate(&request, &attempts, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(&error, EvaluateError::GivenUp(fault) if fault.code == "timeout"), "{error}");
    assert_eq!(attempts.0.into_inner().unwrap().len(), 2);
}

#[tokio::test]
async fn cancelling_ends_an_evaluation() {
    let evaluator = connect(&split("val")).unwrap();
    let request = ask(&*evaluator, zoo("base"), None, &Samples::All);
    let (attempts, cancel) = (Attempts::default(), CancellationToken::new());
    let evaluation = evaluator.evaluate(&request, &attempts, &cancel);
    cancel.cancel();
    assert!(matches!(evaluation.await, Err(EvaluateError::Cancelled)));
    assert!(!attempts.0.into_inner().unwrap()[0].counts);
    assert!(score(&*evaluator, zoo("base")).await.is_ok());
}
