//! Merges of a small model family against those that mergekit 0.1.5 made of it (tests/golden/README.md).

#[path = "support/golden.rs"]
mod golden;

use std::path::Path;

use evomerge::merge::Merger;
use evomerge::recipe::Recipe;
use safetensors::Dtype;

/// Norms and sums over whole tensors have another order of additions there, so the last bits may differ; all else is
/// equal.
fn has_norms(case: &str, recipe: &Recipe) -> bool {
    ["slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce"].contains(&recipe.merge_method.as_str())
        || case.contains("rescale")
        || case.starts_with("seed42")
}

/// How far a result may be from mergekit's, as a share of the tensor's largest magnitude.
fn tolerance(case: &str, recipe: &Recipe) -> f64 {
    if has_norms(case, recipe) { 1e-6 } else { 2.0_f64.powi(-22) }
}

/// One case: how many elements differ at all, of how many; what is wrong.
fn check(case: &str, merger: &Merger) -> (usize, usize, Vec<String>) {
    let folder = golden::folder().join("cases").join(case);
    let recipe = golden::recipe(case);
    let output = tempfile::tempdir().unwrap();
    let destination = output.path().join("merged");
    let ours = golden::merge(merger, &recipe, &destination);
    let expected = golden::read(&folder.join("expected.safetensors"));
    let mut wrong = Vec::new();
    if ours.keys().ne(expected.keys()) {
        wrong.push(format!("tensors {:?} instead of {:?}", ours.keys(), expected.keys()));
    }
    let (mut unequal, mut elements) = (0, 0);
    for (name, (dtype, shape, expected)) in &expected {
        let Some((our_dtype, our_shape, values)) = ours.get(name) else { continue };
        if (our_dtype, our_shape) != (dtype, shape) {
            wrong.push(format!("{name}: {our_dtype} {our_shape:?} instead of {dtype} {shape:?}"));
            continue;
        }
        let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        // A stored dtype can turn the smallest difference into one of its own steps.
        let step = |value: f64| match dtype {
            Dtype::BF16 => value.abs() * 2.0_f64.powi(-7),
            Dtype::F16 => (value.abs() * 2.0_f64.powi(-10)).max(2.0_f64.powi(-24)),
            _ => 0.0,
        };
        let far = |pair: &(&f64, &f64)| (pair.0 - pair.1).abs() > largest * tolerance(case, &recipe) + step(*pair.1);
        let pairs = || values.iter().zip(expected);
        unequal += pairs().filter(|(left, right)| left != right).count();
        elements += expected.len();
        let count = pairs().filter(far).count();
        if count > 0 {
            let worst = pairs().map(|(left, right)| (left - right).abs() / largest).fold(0.0_f64, f64::max);
            wrong.push(format!("{name}: {count} of {} elements are off, by up to {worst:e}", expected.len()));
        }
    }
    if unequal > 0 && !has_norms(case, &recipe) {
        wrong.push(format!("{unequal} elements are not equal to the last bit"));
    }
    wrong.extend(config_difference(&folder.join("expected_config.json"), &destination.join("config.json")));
    (unequal, elements, wrong)
}

/// mergekit lets transformers rewrite the configuration, so only what a merge may change is compared.
fn config_difference(expected: &Path, ours: &Path) -> Option<String> {
    let read = |path: &Path| -> serde_json::Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let (expected, ours) = (read(expected), read(ours));
    let dtype = |config: &serde_json::Value| config.get("dtype").or(config.get("torch_dtype")).cloned();
    let facts = |config: &serde_json::Value| {
        (
            dtype(config),
            config["num_hidden_layers"].clone(),
            config["vocab_size"].clone(),
            config["tie_word_embeddings"].clone(),
        )
    };
    (facts(&expected) != facts(&ours))
        .then(|| format!("config.json: {:?} instead of {:?}", facts(&ours), facts(&expected)))
}

#[test]
fn merges_agree_with_mergekit() {
    let merger = golden::merger(&golden::folder().join("models"));
    let mut failures = Vec::new();
    for case in golden::cases() {
        let (unequal, elements, wrong) = check(&case, &merger);
        println!("{case}: {unequal} of {elements} elements are not equal");
        if !wrong.is_empty() {
            failures
                .push(format!("{case} ({unequal} of {elements} elements are not equal):\n  {}", wrong.join("\n  ")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
