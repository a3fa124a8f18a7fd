//! The forward pass and the answers against PyTorch and transformers (tests/data/native/make_reference.py).

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::data::{Content, TaskData};
use super::deadline::Deadline;
use super::exact_match::{Answer, greedy};
use super::model::Model;
use super::tokens::{Encoded, Tokenizers};
use super::workers::Workers;
use super::{NativeEvaluator, likelihood};
use crate::config::{NativeConfig, Patience};
use crate::evaluate::{Evaluator, EvaluatorTask};

/// Largest difference of a logit from PyTorch's (float32 both), as a share of 1 + its magnitude.
const TOLERANCE: f32 = 2e-5;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn zoo(model: &str) -> PathBuf {
    root().join("evals/tiny-llama").join(model)
}

fn reference<T: for<'de> Deserialize<'de>>(file: &str) -> T {
    let text = std::fs::read_to_string(root().join("tests/data/native").join(file)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn never() -> Deadline {
    Deadline::new(CancellationToken::new(), Duration::MAX)
}

fn assert_near(ours: &[f32], theirs: &[f32], tolerance: f32, what: &str) {
    assert_eq!(ours.len(), theirs.len());
    for (at, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}, logit {at}: {a} is not {b}");
    }
}

/// Logits of every position, `[length][vocabulary]`.
fn all_logits(model: &Model, ids: &[u32]) -> Vec<Vec<f32>> {
    let hidden = model.forward(ids, 1, &mut model.cache()).unwrap().squeeze(0).unwrap();
    let logits = model.logits(&hidden).unwrap();
    logits.chunks_exact(model.architecture.vocabulary).map(<[f32]>::to_vec).collect()
}

#[test]
fn base_logits_agree_with_pytorch() {
    #[derive(Deserialize)]
    struct Case {
        prompt: String,
        ids: Vec<u32>,
        last_logits: Vec<f32>,
    }
    let text = std::fs::read_to_string(root().join("evals/tiny-llama/golden/base-logits.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    assert!(!cases.is_empty());
    let model = Model::load(&zoo("base")).unwrap();
    for case in cases {
        let logits = all_logits(&model, &case.ids);
        assert_near(logits.last().unwrap(), &case.last_logits, TOLERANCE, &case.prompt);
    }
}

/// Tied embeddings, Llama 3 and linear rotary scaling, a head dimension of its own, biases, a sliding window,
/// normalized queries and keys, shards: logits at several positions, and greedy decoding through the cache.
#[test]
fn other_families_agree_with_transformers() {
    #[derive(Deserialize)]
    struct Case {
        ids: Vec<u32>,
        positions: Vec<usize>,
        logits: Vec<Vec<f32>>,
        greedy: Vec<u32>,
    }
    for family in ["llama-tied-rope3", "llama-bias-linear", "mistral-sliding", "qwen2", "qwen3"] {
        let mut model = Model::load(&root().join("tests/data/native").join(family)).unwrap();
        model.architecture.eos.clear();
        for case in reference::<Vec<Case>>(&format!("{family}/logits.json")) {
            let logits = all_logits(&model, &case.ids);
            for (position, expected) in case.positions.iter().zip(&case.logits) {
                assert_near(&logits[*position], expected, TOLERANCE, &format!("{family}, position {position}"));
            }
            let answers = greedy(&model, &[&case.ids, &case.ids], case.greedy.len(), &never()).unwrap();
            let expected = Answer { ids: case.greedy.clone(), truncated: true };
            assert_eq!(answers, [expected.clone(), expected], "{family}");
        }
    }
}

/// Greedy answers to every sample of `split`, `None` where cut, decoded in batches of `batch`.
fn answers(model: &Model, data: &TaskData, batch: usize) -> Vec<Option<String>> {
    let tokens = Tokenizers::default().of(&zoo("base")).unwrap();
    let encoded = tokens.task("t", &data.samples).unwrap();
    let mut by_length: BTreeMap<usize, Vec<(usize, &[u32])>> = BTreeMap::new();
    for (at, sample) in encoded.iter().enumerate() {
        let Encoded::ExactMatch(ids) = sample else { panic!("not exact match") };
        by_length.entry(ids.len()).or_default().push((at, ids));
    }
    let mut out = vec![None; encoded.len()];
    for members in by_length.values() {
        for chunk in members.chunks(batch) {
            let prompts: Vec<&[u32]> = chunk.iter().map(|(_, ids)| *ids).collect();
            for ((at, _), answer) in chunk.iter().zip(greedy(model, &prompts, 12, &never()).unwrap()) {
                out[*at] = (!answer.truncated).then(|| tokens.decode(&answer.ids).unwrap());
            }
        }
    }
    out
}

/// Every greedy answer of the base and the four experts, word for word.
#[test]
fn greedy_answers_agree_with_transformers_on_every_sample() {
    #[derive(Deserialize)]
    struct Reference {
        answers: BTreeMap<String, BTreeMap<String, Vec<Option<String>>>>,
    }
    let reference: Reference = reference("answers.json");
    let data = |name: &str| TaskData::read(&root().join(format!("evals/tiny-llama/data/{name}.jsonl"))).unwrap();
    let mut compared = 0;
    for (name, splits) in &reference.answers {
        let model = Model::load(&zoo(name)).unwrap();
        for (split, expected) in splits {
            assert_eq!(&answers(&model, &data(split), 256), expected, "{name} on {split}");
            compared += expected.len();
        }
    }
    assert_eq!(compared, 5 * 1600);
}

#[test]
fn answers_do_not_depend_on_the_batch() {
    let model = Model::load(&zoo("expert-rev")).unwrap();
    let data = TaskData::read(&root().join("evals/tiny-llama/data/cnt.val.jsonl")).unwrap();
    let together = answers(&model, &data, 256);
    for batch in [1, 7, 64] {
        assert_eq!(answers(&model, &data, batch), together, "batches of {batch}");
    }
}

#[test]
fn likelihoods_agree_with_transformers() {
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
        loglikelihood: f64,
    }
    #[derive(Deserialize)]
    struct Reference {
        choices: Vec<Choice>,
        texts: Vec<Text>,
    }
    let reference: Reference = reference("likelihood.json");
    let model = Model::load(&zoo("base")).unwrap();
    let tokens = Tokenizers::default().of(&zoo("base")).unwrap();
    let sample = |content| super::data::Sample { id: crate::scores::SampleId::Number(0), content };
    let near = |ours: f64, theirs: f64, what: &str| {
        assert!((ours - theirs).abs() < 1e-5 * (1.0 + theirs.abs()), "{what}: {ours} is not {theirs}");
    };
    for (at, case) in reference.choices.into_iter().enumerate() {
        let prompt = case.prompt.clone();
        let content = Content::MultipleChoice { prompt: case.prompt, choices: case.choices, gold: case.gold };
        let encoded = tokens.task(&format!("choice {at}"), &[sample(content)]).unwrap();
        let Encoded::MultipleChoice(pairs) = &encoded[0] else { panic!("not multiple choice") };
        for (ours, theirs) in likelihood::choices(&model, pairs).unwrap().into_iter().zip(case.loglikelihoods) {
            near(ours, theirs, &prompt);
        }
    }
    for (at, case) in reference.texts.into_iter().enumerate() {
        let content = Content::Perplexity { text: case.text.clone() };
        let encoded = tokens.task(&format!("text {at}"), &[sample(content)]).unwrap();
        let Encoded::Perplexity(ids) = &encoded[0] else { panic!("not perplexity") };
        near(likelihood::text(&model, ids, || Ok(())).unwrap(), case.loglikelihood, &case.text);
    }
}

/// The same bits on every number of threads, and inside a pool of several threads, where the tensor library splits its
/// products.
#[test]
fn logits_are_the_same_bits_on_any_number_of_threads() {
    let model = Model::load(&zoo("base")).unwrap();
    let data = TaskData::read(&root().join("evals/tiny-llama/data/add.val.jsonl")).unwrap();
    let tokens = Tokenizers::default().of(&zoo("base")).unwrap();
    let encoded = tokens.task("add", &data.samples).unwrap();
    let prompts: Vec<u32> = encoded
        .iter()
        .flat_map(|sample| match sample {
            Encoded::ExactMatch(ids) => ids.clone(),
            _ => Vec::new(),
        })
        .collect();
    let batch = encoded.len();
    let bits = || -> Vec<u32> {
        let hidden = model.forward(&prompts, batch, &mut model.cache()).unwrap().flatten(0, 1).unwrap();
        model.logits(&hidden).unwrap().into_iter().map(f32::to_bits).collect()
    };
    let alone = Workers::new(NonZeroUsize::MIN).unwrap().map(1, |_| Ok(bits())).unwrap().remove(0);
    for threads in [2, 8] {
        let workers = Workers::new(NonZeroUsize::new(threads).unwrap()).unwrap();
        for other in workers.map(2 * threads, |_| Ok(bits())).unwrap() {
            assert!(other == alone, "{threads} workers");
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(bits) == alone, "a pool of {threads}");
    }
}

#[test]
fn a_task_goes_by_the_first_metric_that_fits_its_data() {
    let config = NativeConfig { threads: Some(NonZeroUsize::MIN), batch: NonZeroUsize::MIN, max_new_tokens: 1 };
    let patience = Patience {
        timeout: Duration::from_secs(60),
        startup_timeout: Duration::from_secs(1),
        max_outage: Duration::from_secs(1),
        max_attempts: 1,
    };
    for (line, metric) in [
        (r#"{"prompt": "a", "answer": "b"}"#, "exact_match"),
        (r#"{"prompt": "a", "choices": ["b", "c"], "gold": 0}"#, "acc"),
        (r#"{"text": "a"}"#, "bits_per_byte"),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), line).unwrap();
        let data = Some(file.path().to_owned());
        let task = EvaluatorTask { name: "t".into(), data, metric: None, max_new_tokens: None };
        let evaluator = NativeEvaluator::new(&config, &patience, &[task]).unwrap();
        assert_eq!((evaluator.default_metric("t"), evaluator.default_metric("other")), (Some(metric), None));
    }
}
