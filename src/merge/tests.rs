//! The arithmetic of every method against a plain one-element-at-a-time reference, on every instruction set, cut in
//! every way, with any number of threads.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::element::Element;
use super::mersenne::MersenneTwister;
use super::methods::{Context, MaskSource, implementation};
use super::parameters::{ParameterValue, ResolvedParameters};
use super::simd::Isa;
use super::sparsify::{MaskCursor, MersenneStream, PhiloxMask, Sparsifier};
use super::statistics::{StatisticsCache, TensorKey};
use super::tensor::{BLOCK, Stored, TILE, TensorGroup};
use super::{MergeError, find_method};
use crate::checkpoint::Dtype;

const CONTENTS: [&str; 4] = ["base", "one", "two", "three"];
const SEED: u64 = 11;

/// A tensor of several models and how to merge it.
#[derive(Clone, Debug)]
struct Sample {
    method: &'static str,
    dtype: Dtype,
    /// Base, then sources.
    values: Vec<Vec<f32>>,
    weights: Vec<f64>,
    densities: Vec<f64>,
    lambda: f64,
    normalize: bool,
    rescale: bool,
    t: f64,
}

impl Sample {
    fn new(method: &'static str, values: Vec<Vec<f32>>) -> Self {
        let sources = values.len() - 1;
        Self {
            method,
            dtype: Dtype::Float32,
            values,
            weights: vec![1.0; sources],
            densities: vec![1.0; sources],
            lambda: 1.0,
            normalize: false,
            rescale: false,
            t: 0.5,
        }
    }

    fn parameters(&self) -> ResolvedParameters {
        let method = find_method(self.method).unwrap();
        let tensor = [
            ("lambda", ParameterValue::Number(self.lambda)),
            ("normalize", ParameterValue::Bool(self.normalize)),
            ("rescale", ParameterValue::Bool(self.rescale)),
            ("t", ParameterValue::Number(self.t)),
        ];
        let known = |(name, _): &(&'static str, ParameterValue)| method.parameter(name).is_some();
        let source = |(weight, density): (&f64, &f64)| {
            let values = [("weight", ParameterValue::Number(*weight)), ("density", ParameterValue::Number(*density))];
            values.into_iter().filter(known).collect::<BTreeMap<_, _>>()
        };
        ResolvedParameters {
            tensor: tensor.into_iter().filter(known).collect(),
            sources: self.weights.iter().zip(&self.densities).map(source).collect(),
        }
    }

    fn elements(&self) -> u64 {
        self.values[0].len() as u64
    }

    /// What the models store, as float32.
    fn stored(&self) -> (Vec<Vec<u8>>, Vec<Vec<f32>>) {
        let encode = |values: &Vec<f32>| {
            let mut bytes = vec![0; values.len() * self.dtype.size()];
            f32::encode(self.dtype, values, &mut bytes);
            let mut back = vec![0.0; values.len()];
            f32::decode(self.dtype, &bytes, &mut back);
            (bytes, back)
        };
        self.values.iter().map(encode).unzip()
    }

    /// Merged in blocks of `step` elements, on `isa`.
    fn merge(&self, isa: Isa, step: u64, mersenne: bool) -> Result<Vec<f32>, MergeError> {
        self.merge_with(&StatisticsCache::new(1 << 20), isa, step, mersenne)
    }

    fn merge_with(&self, cache: &StatisticsCache, isa: Isa, step: u64, mersenne: bool) -> Result<Vec<f32>, MergeError> {
        let (bytes, _) = self.stored();
        let parameters = self.parameters();
        let stored: Vec<Stored<'_>> = (0..)
            .zip(&bytes)
            .map(|(model, bytes)| Stored {
                dtype: self.dtype,
                bytes,
                model: CONTENTS[model as usize],
                tensor: "layers.0.weight",
                key: TensorKey { model, tensor: 0, elements: 0 },
                delta: None,
            })
            .collect();
        let takes_base = self.method == "slerp";
        let group = TensorGroup {
            name: "layers.0.weight",
            elements: self.elements(),
            shape: &[self.values[0].len()],
            inputs: stored[usize::from(!takes_base)..].to_vec(),
            base: Some(stored[0]),
            parameters: &parameters,
        };
        let contents = CONTENTS.map(|content| OnceLock::from(content.to_owned()));
        let mut stream = MersenneStream::new(SEED);
        let masks = match mersenne {
            true => MaskSource::Mergekit { stream: &mut stream, coarse: false },
            false => MaskSource::Native { seed: SEED, contents: &contents },
        };
        let mut context = Context { isa, cache, masks };
        let prepared = implementation(self.method).unwrap().prepare(&group, &mut context)?;
        let mut output = vec![0; self.values[0].len() * 4];
        let mut first = 0;
        for block in output.chunks_mut(step as usize * 4) {
            let range = first..first + block.len() as u64 / 4;
            first = range.end;
            prepared.merge_block(isa, range, Dtype::Float32, block)?;
        }
        let mut values = vec![0.0; self.values[0].len()];
        f32::decode(Dtype::Float32, &output, &mut values);
        Ok(values)
    }

    fn merged(&self) -> Vec<f32> {
        self.merge(Isa::detect(), BLOCK, false).unwrap()
    }

    /// Which elements of source `index` (from 0) are kept, found by sorting or by drawing one after another.
    fn kept(&self, index: usize, delta: &[f32], draws: Option<&mut MersenneTwister>) -> Vec<bool> {
        let density = self.densities[index];
        if density >= 1.0 || self.method == "task_arithmetic" {
            return vec![true; delta.len()];
        }
        if self.method == "ties" {
            let mut order: Vec<usize> = (0..delta.len()).collect();
            order.sort_by(|left, right| delta[*right].abs().total_cmp(&delta[*left].abs()));
            let kept = (density * delta.len() as f64) as usize;
            let mut mask = vec![false; delta.len()];
            order.into_iter().take(kept.max(1)).for_each(|element| mask[element] = true);
            return mask;
        }
        if let Some(draws) = draws {
            let probability = density as f32;
            return delta.iter().map(|_| (draws.draw() & 0xFF_FFFF) as f32 * 2.0_f32.powi(-24) < probability).collect();
        }
        let mask = PhiloxMask::new(SEED, CONTENTS[index + 1], "layers.0.weight", density);
        let mut ones = vec![1.0_f32; delta.len()];
        Sparsifier::Philox(mask).apply(&mut MaskCursor::Fixed, 0, &mut ones);
        ones.into_iter().map(|one| one == 1.0).collect()
    }

    /// The family of task arithmetic, step by step as mergekit takes them.
    fn reference(&self, mersenne: bool) -> Vec<f32> {
        let (_, values) = self.stored();
        let (base, sources) = values.split_first().unwrap();
        let weights: Vec<f32> = self.weights.iter().map(|weight| *weight as f32).collect();
        if self.method == "linear" {
            let sum: f32 = weights.iter().sum();
            let term = |element: usize| {
                let sum = |sum: f32, (source, weight): (&Vec<f32>, &f32)| source[element].mul_add(*weight, sum);
                sources.iter().zip(&weights).fold(0.0, sum)
            };
            return (0..base.len()).map(|element| term(element) / if self.normalize { sum } else { 1.0 }).collect();
        }
        let mut draws = MersenneTwister::new(SEED);
        let mut deltas = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let mut delta: Vec<f32> = source.iter().zip(base).map(|(source, base)| source - base).collect();
            let mask = self.kept(index, &delta, mersenne.then_some(&mut draws));
            let norm = |delta: &[f32]| delta.iter().map(|value| f64::from(value.abs())).sum::<f64>();
            let before = norm(&delta);
            delta.iter_mut().zip(mask).filter(|(_, kept)| !kept).for_each(|(value, _)| *value = 0.0);
            let after = norm(&delta);
            let factor = if before < 1e-7 || after < 1e-7 { 1.0 } else { (before / after) as f32 };
            let sparsified = self.densities[index] < 1.0 && self.method != "task_arithmetic";
            for value in &mut delta {
                *value = if self.rescale && sparsified { *value * factor } else { *value } * weights[index];
            }
            deltas.push(delta);
        }
        let elects = self.method.ends_with("ties");
        let element = |element: usize| {
            let values: Vec<f32> = deltas.iter().map(|delta| delta[element]).collect();
            let sum = values.iter().fold(0.0_f32, |sum, value| sum + value);
            let agrees = |value: f32| !elects || if sum >= 0.0 { value > 0.0 } else { value < 0.0 };
            let taken = values.iter().zip(&weights).filter(|(value, _)| agrees(**value));
            let mut mix = taken.clone().fold(0.0_f32, |sum, (value, _)| sum + value);
            if self.normalize {
                let divisor = taken.fold(0.0_f32, |sum, (_, weight)| sum + weight);
                let none = if elects { divisor == 0.0 } else { divisor.abs() < 1e-8 };
                mix /= if none { 1.0 } else { divisor };
            }
            if self.lambda != 1.0 {
                mix *= self.lambda as f32;
            }
            base[element] + mix
        };
        (0..base.len()).map(element).collect()
    }
}

/// Values with many equal magnitudes and zeros among their differences.
fn noise(seed: u64, length: usize, spread: i32) -> Vec<f32> {
    let mut generator = MersenneTwister::new(seed);
    (0..length).map(|_| (generator.draw() % (2 * spread as u32 + 1)) as f32 / 64.0 - spread as f32 / 64.0).collect()
}

fn samples() -> impl Strategy<Value = Sample> {
    let methods = prop::sample::select(vec!["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"]);
    let dtypes = prop::sample::select(vec![Dtype::Float32, Dtype::Bfloat16, Dtype::Float16]);
    let source = (-1.5..1.5_f64, 0.01..1.2_f64);
    let sources = prop::collection::vec(source, 1..4);
    let switches = (any::<bool>(), prop::sample::select(vec![1.0, 0.7, 1.3]));
    (methods, dtypes, sources, 1..5_000_usize, any::<u32>(), 1..200_i32, switches).prop_map(
        |(method, dtype, sources, length, seed, spread, (normalize, lambda))| {
            let values =
                (0..=sources.len() as u64).map(|model| noise(u64::from(seed) ^ model, length, spread)).collect();
            let (weights, densities) = sources.into_iter().unzip();
            Sample { dtype, weights, densities, normalize, lambda, ..Sample::new(method, values) }
        },
    )
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Equal to the last bit; zeros may differ in sign.
fn assert_same(ours: &[f32], reference: &[f32]) {
    assert_eq!(ours.len(), reference.len());
    for (element, (ours, reference)) in ours.iter().zip(reference).enumerate() {
        assert!(ours == reference, "element {element}: {ours:e} instead of {reference:e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_method_is_its_reference(sample in samples(), mersenne: bool) {
        let ours = sample.merge(Isa::detect(), BLOCK, mersenne);
        match ours {
            Ok(ours) => assert_same(&ours, &sample.reference(mersenne)),
            Err(error) => prop_assert!(error.is_infeasible(), "{}", error),
        }
    }

    #[test]
    fn blocks_and_instruction_sets_do_not_change_a_bit(sample in samples(), tiles in 1..4_u64, mersenne: bool) {
        let expected = sample.merge(Isa::BASELINE, BLOCK, mersenne);
        for isa in Isa::available() {
            let cut = sample.merge(isa, tiles * TILE as u64, mersenne);
            match (&expected, cut) {
                (Ok(expected), Ok(cut)) => prop_assert_eq!(bits(expected), bits(&cut), "{:?}", isa),
                (Err(_), Err(_)) => {}
                (_, cut) => prop_assert!(false, "{:?} {:?}", isa, cut),
            }
        }
    }

    #[test]
    fn the_order_of_sources_changes_roundings_only(sample in samples()) {
        prop_assume!(matches!(sample.method, "linear" | "task_arithmetic"));
        let mut turned = sample.clone();
        turned.values[1..].reverse();
        turned.weights.reverse();
        let scale = sample.weights.iter().map(|weight| weight.abs()).sum::<f64>() as f32;
        let sum = sample.weights.iter().sum::<f64>().abs() as f32;
        prop_assume!(!sample.normalize || sum > 0.05);
        let bound = 16.0 * f32::EPSILON * (1.0 + scale / if sample.normalize { sum } else { 1.0 }) * 8.0;
        for (left, right) in sample.merged().iter().zip(turned.merged()) {
            prop_assert!((left - right).abs() <= bound, "{} and {}", left, right);
        }
    }

    #[test]
    fn trimming_keeps_the_exact_count(length in 2..5_000_usize, density in 0.0..1.0_f64, seed: u32) {
        // No difference is zero, so that a kept element shows.
        let source: Vec<f32> = noise(seed.into(), length, 40).iter().map(|value| value + 2.0).collect();
        let sample = Sample { densities: vec![density], ..Sample::new("ties", vec![vec![0.0; length], source]) };
        let kept = sample.merged().iter().filter(|value| **value != 0.0).count();
        let expected = if density <= 0.0 { 0 } else { ((density * length as f64) as usize).max(1) };
        prop_assert_eq!(kept, expected);
    }

    #[test]
    fn native_masks_are_nested(first in 0.0..1.0_f64, second in 0.0..1.0_f64, length in 1..5_000_usize) {
        let (low, high) = if first < second { (first, second) } else { (second, first) };
        let at = |density| {
            let values = vec![vec![0.0; length], vec![1.0; length]];
            Sample { densities: vec![density], ..Sample::new("dare_linear", values) }.merged()
        };
        for (low, high) in at(low).iter().zip(at(high)) {
            prop_assert!(*low <= high);
        }
    }

    /// A power of two changes no rounding, so that what it multiplies and divides comes back to the bit.
    #[test]
    fn normalized_weights_matter_by_their_shares_only(sample in samples(), exponent in -4..5_i32) {
        prop_assume!(sample.method != "slerp");
        let sample = Sample { normalize: true, ..sample };
        // Sums of almost zero are not divided by, below a fixed bound.
        prop_assume!(sample.weights.iter().sum::<f64>().abs() > 1e-3);
        let weights = sample.weights.iter().map(|weight| weight * 2.0_f64.powi(exponent)).collect();
        let scaled = Sample { weights, ..sample.clone() };
        prop_assert_eq!(bits(&sample.merged()), bits(&scaled.merged()));
    }

    #[test]
    fn density_one_trims_nothing_and_masks_nothing(sample in samples()) {
        let dense = |method| {
            let densities = vec![1.0; sample.densities.len()];
            Sample { method, densities, ..sample.clone() }.merged()
        };
        prop_assert_eq!(bits(&dense("dare_linear")), bits(&dense("task_arithmetic")));
        prop_assert_eq!(bits(&dense("dare_ties")), bits(&dense("ties")));
    }

    #[test]
    fn sampled_masks_go_with_their_models(sample in samples(), density in 0.0..1.0_f64) {
        prop_assume!(sample.values.len() == 3);
        let place = |weights: [f64; 2]| {
            let mut sample = Sample { method: "dare_linear", densities: vec![density; 2], ..sample.clone() };
            sample.weights = weights.to_vec();
            sample.merged()
        };
        // One model's share at a time: adding the other with weight zero moves no mask.
        let both: Vec<f32> = place([0.5, 0.0]);
        let alone = Sample {
            method: "dare_linear",
            values: sample.values[..2].to_vec(),
            weights: vec![0.5],
            densities: vec![density],
            ..sample.clone()
        };
        prop_assume!(!sample.normalize);
        prop_assert_eq!(both, alone.merged());
    }
}

#[test]
fn many_blocks_and_threads_give_the_reference() {
    let length = 2 * BLOCK as usize + 777;
    for (method, rescale) in [("ties", false), ("ties", true), ("dare_ties", true), ("slerp", false)] {
        let values = vec![noise(1, length, 300), noise(2, length, 300), noise(3, length, 300)];
        let values = if method == "slerp" { values[..2].to_vec() } else { values };
        let sources = values.len() - 1;
        let sample = Sample {
            weights: vec![0.7, 0.4][..sources].to_vec(),
            densities: vec![0.37, 0.81][..sources].to_vec(),
            rescale,
            ..Sample::new(method, values)
        };
        let with_threads = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sample.merged())
        };
        let one = with_threads(1);
        assert_eq!(bits(&one), bits(&with_threads(3)), "{method}");
        if method != "slerp" {
            let reference = sample.reference(false);
            let far = one
                .iter()
                .zip(&reference)
                .find(|(ours, reference)| (*ours - *reference).abs() > if rescale { 1e-6 * 5.0 } else { 0.0 });
            assert_eq!(far, None, "{method}");
        }
    }
}

#[test]
fn float64_inputs_are_computed_in_float64() {
    let sample = Sample {
        dtype: Dtype::Float64,
        weights: vec![0.7, 0.4],
        densities: vec![0.5, 0.5],
        ..Sample::new("ties", vec![noise(1, 3_000, 30), noise(2, 3_000, 30), noise(3, 3_000, 30)])
    };
    let single = Sample { dtype: Dtype::Float32, ..sample.clone() };
    // The same elements are chosen; the values differ by float32's roundings alone.
    for (wide, single) in sample.merged().iter().zip(single.merged()) {
        assert!((wide - single).abs() <= 4.0 * f32::EPSILON, "{wide} and {single}");
    }
}

#[test]
fn slerp_ends_at_its_models_and_bends_between_them() {
    let (left, right) = (noise(1, 5_000, 90), noise(2, 5_000, 90));
    let at = |t| Sample { t, ..Sample::new("slerp", vec![left.clone(), right.clone()]) }.merged();
    assert_same(&at(0.0), &left);
    assert_same(&at(1.0), &right);
    let norm = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    // Two nearly orthogonal vectors of one length: the arc keeps the length, a line would lose 29 % of it.
    assert!((norm(&at(0.5)) / norm(&left) - 1.0).abs() < 0.03);
}

#[test]
fn slerp_of_nearly_parallel_or_opposite_models_is_a_line() {
    let left = noise(1, 5_000, 90);
    let near: Vec<f32> = left.iter().map(|value| value * 1.25).collect();
    let merged = Sample { t: 0.25, ..Sample::new("slerp", vec![left.clone(), near.clone()]) }.merged();
    let line: Vec<f32> = left.iter().zip(&near).map(|(left, near)| 0.75 * left + 0.25 * near).collect();
    assert_same(&merged, &line);
    let opposite: Vec<f32> = left.iter().map(|value| -value).collect();
    let merged = Sample { t: 0.75, ..Sample::new("slerp", vec![left.clone(), opposite]) }.merged();
    assert_same(&merged, &left.iter().map(|value| -0.5 * value).collect::<Vec<_>>());
}

#[test]
fn slerp_takes_a_zero_model_for_a_right_angle() {
    let right = noise(2, 100, 90);
    let merged = Sample { t: 0.5, ..Sample::new("slerp", vec![vec![0.0; 100], right.clone()]) }.merged();
    let factor = (0.5 * std::f64::consts::FRAC_PI_2).sin() as f32;
    for (merged, right) in merged.iter().zip(right) {
        assert!((merged - factor * right).abs() <= 2.0 * f32::EPSILON);
    }
}

#[test]
fn one_source_at_weight_one_comes_back() {
    let values = vec![noise(1, 4_000, 90), noise(2, 4_000, 90)];
    for method in ["task_arithmetic", "ties", "dare_linear", "dare_ties"] {
        assert_same(&Sample::new(method, values.clone()).merged(), &values[1]);
    }
}

#[test]
fn weights_that_sum_to_zero_have_no_average() {
    let mut sample = Sample::new("linear", vec![noise(1, 10, 9), noise(2, 10, 9), noise(3, 10, 9)]);
    sample.weights = vec![0.5, -0.5];
    assert!(sample.merge(Isa::detect(), BLOCK, false).is_ok());
    sample.normalize = true;
    let error = sample.merge(Isa::detect(), BLOCK, false).unwrap_err();
    assert!(error.is_infeasible());
    assert!(error.to_string().contains("sum to zero"), "{error}");
}

#[test]
fn a_result_that_overflows_is_infeasible_and_a_bad_input_is_named() {
    let mut sample = Sample::new("task_arithmetic", vec![vec![0.0; 3_000], vec![1e30; 3_000]]);
    sample.weights = vec![1e30];
    let error = sample.merge(Isa::detect(), BLOCK, false).unwrap_err();
    assert!(error.is_infeasible(), "{error}");
    for method in ["task_arithmetic", "ties", "linear"] {
        let mut sample = Sample::new(method, vec![vec![0.0; 3_000], vec![1.0; 3_000], vec![2.0; 3_000]]);
        sample.densities = vec![0.5, 0.5];
        sample.values[2][2_500] = f32::NEG_INFINITY;
        match sample.merge(Isa::detect(), BLOCK, false) {
            Err(MergeError::NotFinite { model, tensor, element, value }) => {
                assert_eq!(
                    (model.as_str(), tensor.as_str(), element, value),
                    ("two", "layers.0.weight", 2_500, f64::NEG_INFINITY)
                );
            }
            other => panic!("{method}: {other:?}"),
        }
    }
}

#[test]
fn negative_densities_are_refused_for_samples_and_drop_all_for_magnitudes() {
    let values = vec![noise(1, 100, 9), noise(2, 100, 9)];
    let sample = |method, density| Sample { densities: vec![density], ..Sample::new(method, values.clone()) };
    assert!(sample("dare_ties", -0.1).merge(Isa::detect(), BLOCK, false).unwrap_err().is_infeasible());
    assert_same(&sample("ties", -0.1).merged(), &values[0]);
    assert_same(&sample("ties", 0.0).merged(), &values[0]);
    assert_same(&sample("dare_ties", 0.0).merged(), &values[0]);
}

#[test]
fn masks_depend_on_seed_model_tensor_and_element_and_keep_their_share() {
    let draw = |seed, content, tensor| {
        let mut ones = vec![1.0_f32; 100_000];
        Sparsifier::Philox(PhiloxMask::new(seed, content, tensor, 0.3)).apply(&mut MaskCursor::Fixed, 0, &mut ones);
        ones
    };
    let mask = draw(1, "x", "t");
    for other in [draw(2, "x", "t"), draw(1, "y", "t"), draw(1, "x", "u"), draw(1, "xt", "")] {
        let common = mask.iter().zip(&other).filter(|(left, right)| **left == 1.0 && **right == 1.0).count();
        // Independent: 0.09 of 100,000, with a standard deviation of 90.
        assert!((8_500..9_500).contains(&common), "{common}");
    }
    let kept = mask.iter().filter(|value| **value == 1.0).count();
    assert!((29_200..30_800).contains(&kept), "{kept}");
}

#[test]
fn statistics_of_one_candidate_serve_the_next() {
    let values = vec![noise(1, 9_000, 200), noise(2, 9_000, 200)];
    for bytes in [1 << 20, 0] {
        let cache = StatisticsCache::new(bytes);
        for method in ["ties", "dare_linear", "slerp"] {
            for (density, t) in [(0.2, 0.1), (0.21, 0.9), (0.7, 0.5), (0.2, 0.1)] {
                let sample =
                    Sample { densities: vec![density], rescale: true, t, ..Sample::new(method, values.clone()) };
                let fresh = sample.merged();
                let reused = sample.merge_with(&cache, Isa::detect(), BLOCK, false).unwrap();
                assert_eq!(bits(&fresh), bits(&reused), "{method}");
            }
        }
    }
}

#[test]
fn a_merger_serves_several_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<super::Merger>();
}
