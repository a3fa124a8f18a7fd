//! Errors of the golden merges against merges in float64, ours and mergekit's.

#[path = "support/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::path::Path;

use evomerge::checkpoint::{CheckpointWriter, Dtype, OutputFile, OutputTensor, WriteMode};
use evomerge::recipe::Recipe;

/// Writes the family once more, with every element as float64.
fn write_wide(models: &Path) {
    for name in golden::MODELS {
        let source = golden::folder().join("models").join(name);
        let tensors = golden::read(&source.join("model.safetensors"));
        let output = tensors.iter().map(|(name, (_, shape, _))| OutputTensor {
            name: name.clone(),
            dtype: Dtype::Float64.stored(),
            shape: shape.clone(),
        });
        let file = OutputFile { name: "model.safetensors".into(), tensors: output.collect() };
        let writer = CheckpointWriter::create(&models.join(name), &[file], WriteMode::default()).unwrap();
        for (name, (_, _, values)) in &tensors {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            writer.write_at(name, 0, &bytes).unwrap();
        }
        writer.put_file("config.json", &std::fs::read(source.join("config.json")).unwrap()).unwrap();
        writer.finish().unwrap();
    }
}

/// Distances from the float64 merge.
#[derive(Clone, Copy, Default)]
struct Errors {
    largest: f64,
    sum: f64,
    elements: usize,
    /// Elements that are farther away than roundings bring them.
    elsewhere: usize,
}

impl Errors {
    fn add(&mut self, merged: &golden::Tensors, reference: &golden::Tensors) {
        assert!(merged.keys().eq(reference.keys()));
        for (name, (_, _, exact)) in reference {
            let values = &merged[name].2;
            assert_eq!(values.len(), exact.len(), "{name}");
            for (value, exact) in values.iter().zip(exact) {
                let error = (value - exact).abs();
                self.largest = self.largest.max(error);
                self.sum += error;
                self.elements += 1;
                self.elsewhere += usize::from(error > 2.0_f64.powi(-20));
            }
        }
    }

    fn mean(&self) -> f64 {
        self.sum / self.elements as f64
    }
}

/// A method, with the dtype of the result where that is not float32.
fn family(recipe: &Recipe) -> String {
    match recipe.out_dtype {
        Some(dtype) => format!("`{}`, {dtype} result", recipe.merge_method),
        None => format!("`{}`", recipe.merge_method),
    }
}

/// Half a step of the result's dtype from 1 to 2, where the largest elements of the family are.
fn half_step(recipe: &Recipe) -> f64 {
    match recipe.out_dtype {
        Some(Dtype::Bfloat16) => 2.0_f64.powi(-8),
        Some(Dtype::Float16) => 2.0_f64.powi(-11),
        _ => 2.0_f64.powi(-24),
    }
}

/// The reference has the masks of the merge (draws are compared as multiples of 2^-24 in both), and weights that are
/// not rounded. Thresholds and signs could be decided otherwise in float64 where float32 differences are equal or
/// cancel out; such an element would be off by far more than roundings are. `arcee_fusion` makes the roundings of
/// mergekit on purpose, and with them its decisions: so many elements at the threshold are off, and no others.
#[test]
fn no_method_errs_more_than_mergekit() {
    let temporary = tempfile::tempdir().unwrap();
    write_wide(temporary.path());
    let (narrow, wide) = (golden::merger(&golden::folder().join("models")), golden::merger(temporary.path()));
    let mut families: BTreeMap<String, [Errors; 2]> = BTreeMap::new();
    for case in golden::cases() {
        let recipe = golden::recipe(&case);
        let ours = golden::merge(&narrow, &recipe, &temporary.path().join(format!("{case}-narrow")));
        let exact = Recipe { out_dtype: Some(Dtype::Float64), ..recipe.clone() };
        let reference = golden::merge(&wide, &exact, &temporary.path().join(format!("{case}-wide")));
        let mergekit = golden::read(&golden::folder().join("cases").join(&case).join("expected.safetensors"));
        let measure = |merged| {
            let mut errors = Errors::default();
            errors.add(merged, &reference);
            errors
        };
        // Else the reference is another merge.
        let ours_from_it = measure(&ours);
        if recipe.merge_method == "arcee_fusion" {
            assert!(ours_from_it.elsewhere * 1000 < ours_from_it.elements, "{case}: {}", ours_from_it.elsewhere);
            assert_eq!(ours_from_it.elsewhere, measure(&mergekit).elsewhere, "{case}");
        } else {
            assert!(ours_from_it.largest < 4.0 * half_step(&recipe), "{case}: {:e}", ours_from_it.largest);
        }
        for (errors, merged) in families.entry(family(&recipe)).or_default().iter_mut().zip([&ours, &mergekit]) {
            errors.add(merged, &reference);
        }
    }
    println!("| method | largest error | mergekit's | mean error | mergekit's |\n| --- | --- | --- | --- | --- |");
    let mut worse = Vec::new();
    for (family, [ours, theirs]) in &families {
        let [largest, mean] = [[ours.largest, theirs.largest], [ours.mean(), theirs.mean()]];
        println!("| {family} | {:.2e} | {:.2e} | {:.2e} | {:.2e} |", largest[0], largest[1], mean[0], mean[1]);
        if largest[0] > largest[1] || mean[0] > mean[1] {
            worse.push(format!("{family}: {largest:?}, mean {mean:?}"));
        }
    }
    assert!(worse.is_empty(), "larger errors than mergekit's:\n{}", worse.join("\n"));
}
