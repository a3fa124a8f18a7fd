//! Edge cases of the methods, and what must not change a bit of their results.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::element::Element;
use super::methods::{Context, MaskSource, implementation};
use super::parameters::{ParameterValue, ResolvedParameters};
use super::simd::Isa;
use super::sparsify::MersenneStream;
use super::specification::{BaseUse, InputCount, ParameterKind, ParameterScope, SingleSource};
use super::statistics::{StatisticsCache, TensorKey};
use super::tensor::{BLOCK, Stored, TILE, TensorGroup};
use super::{MergeError, find_method, methods};
use crate::checkpoint::Dtype;

/// A method with parameters; those that are not given have their defaults.
struct Case<'a> {
    method: &'a str,
    shape: &'a [usize],
    base: Option<&'a [f64]>,
    inputs: Vec<&'a [f64]>,
    numbers: &'a [(&'a str, f64)],
    dtype: Dtype,
    isa: Isa,
    step: u64,
    mersenne: bool,
}

impl<'a> Case<'a> {
    fn new(method: &'a str, shape: &'a [usize], base: Option<&'a [f64]>, inputs: &[&'a [f64]]) -> Self {
        Self {
            method,
            shape,
            base,
            inputs: inputs.to_vec(),
            numbers: &[],
            dtype: Dtype::Float32,
            isa: Isa::detect(),
            step: BLOCK,
            mersenne: false,
        }
    }

    fn with(self, numbers: &'a [(&'a str, f64)]) -> Self {
        Self { numbers, ..self }
    }

    fn values(&self, scope: ParameterScope) -> BTreeMap<&'static str, ParameterValue> {
        let method = find_method(self.method).unwrap();
        let of_scope = method.parameters.iter().filter(|parameter| parameter.scope == scope);
        of_scope
            .map(|parameter| {
                let given = self.numbers.iter().find(|(name, _)| *name == parameter.name).map(|(_, number)| *number);
                let value = match parameter.kind {
                    ParameterKind::Number { default, .. } => ParameterValue::Number(given.or(default).unwrap_or(1.0)),
                    ParameterKind::Integer { default, .. } => {
                        ParameterValue::Integer(given.map(|number| number as i64).or(default).unwrap())
                    }
                    ParameterKind::Bool { default } => {
                        ParameterValue::Bool(given.map_or(default, |number| number != 0.0))
                    }
                };
                (parameter.name, value)
            })
            .collect()
    }

    fn merge(&self) -> Result<Vec<f64>, MergeError> {
        let encode = |values: &[f64]| {
            let mut bytes = vec![0; values.len() * self.dtype.size()];
            f64::encode(self.dtype, values, &mut bytes);
            bytes
        };
        let bytes: Vec<Vec<u8>> = self.base.iter().chain(&self.inputs).map(|values| encode(values)).collect();
        let stored: Vec<Stored<'_>> = (0..)
            .zip(&bytes)
            .map(|(model, bytes)| Stored {
                dtype: self.dtype,
                bytes,
                model: "m",
                tensor: "t",
                key: TensorKey { model, tensor: 0, elements: 0 },
                delta: None,
            })
            .collect();
        let parameters = ResolvedParameters {
            tensor: self.values(ParameterScope::Tensor),
            sources: vec![self.values(ParameterScope::Source); self.inputs.len()],
        };
        let has_base = self.base.is_some();
        let group = TensorGroup {
            name: "t",
            elements: self.shape.iter().map(|length| *length as u64).product(),
            shape: self.shape,
            inputs: stored[usize::from(has_base)..].to_vec(),
            base: has_base.then(|| stored[0]),
            parameters: &parameters,
        };
        let contents: Vec<OnceLock<String>> =
            (0..stored.len()).map(|index| OnceLock::from(format!("{index}"))).collect();
        let cache = StatisticsCache::new(1 << 20);
        let mut stream = MersenneStream::new(3);
        let masks = match self.mersenne {
            true => MaskSource::Mergekit { stream: &mut stream, coarse: false },
            false => MaskSource::Native { seed: 3, contents: &contents },
        };
        let mut context = Context { isa: self.isa, cache: &cache, masks };
        let prepared = implementation(self.method).unwrap().prepare(&group, &mut context)?;
        let size = self.dtype.size();
        let mut output = vec![0; group.elements as usize * size];
        let mut first = 0;
        for block in output.chunks_mut(self.step as usize * size) {
            let range = first..first + (block.len() / size) as u64;
            first = range.end;
            prepared.merge_block(self.isa, range, self.dtype, block)?;
        }
        let mut values = vec![0.0; group.elements as usize];
        f64::decode(self.dtype, &output, &mut values);
        Ok(values)
    }

    fn merged(&self) -> Vec<f64> {
        self.merge().unwrap_or_else(|error| panic!("{}: {error}", self.method))
    }
}

/// Values that look like weights; about a third of them are zero.
fn noise(seed: u64, length: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 40
    };
    (0..length).map(|_| if draw() % 3 == 0 { 0.0 } else { (draw() as f32 / 8_388_608.0 - 1.0) as f64 }).collect()
}

fn assert_near(ours: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), expected.len());
    for (ours, expected) in ours.iter().zip(expected) {
        assert!((ours - expected).abs() <= tolerance, "{ours} instead of {expected}");
    }
}

const NEW: [&str; 14] = [
    "nuslerp",
    "model_stock",
    "sce",
    "multislerp",
    "karcher",
    "nearswap",
    "arcee_fusion",
    "ram",
    "ramplus_tl",
    "passthrough",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
];

fn inputs_of(method: &str) -> usize {
    match method {
        "nearswap" | "arcee_fusion" | "passthrough" => 1,
        "nuslerp" => 2,
        _ => 3,
    }
}

fn takes_base(method: &str) -> bool {
    !matches!(method, "karcher" | "passthrough")
}

#[test]
fn chunks_threads_and_instruction_sets_do_not_change_a_bit() {
    let rows = TILE * 2 / 37 + 300;
    let shape = [rows, 37, 3];
    let length = rows * 37 * 3;
    let values: Vec<Vec<f64>> = (0..4).map(|seed| noise(seed, length)).collect();
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    for method in NEW {
        for mersenne in [false, true] {
            let inputs: Vec<&[f64]> = values[1..=inputs_of(method)].iter().map(Vec::as_slice).collect();
            let base = takes_base(method).then_some(values[0].as_slice());
            let numbers = [
                ("density", 0.4),
                ("gamma", 0.1),
                ("select_topk", 0.3),
                ("nuslerp_flatten", 0.0),
                ("filter_wise", 1.0),
            ];
            let case = Case { mersenne, ..Case::new(method, &shape, base, &inputs).with(&numbers) };
            let expected = pool(1).install(|| case.merged());
            for isa in Isa::available() {
                let case =
                    Case { isa, step: BLOCK, mersenne, ..Case::new(method, &shape, base, &inputs).with(&numbers) };
                assert_eq!(pool(3).install(|| case.merged()), expected, "{method}");
            }
            if !method.starts_with("della") {
                let case =
                    Case { step: 3 * TILE as u64, mersenne, ..Case::new(method, &shape, base, &inputs).with(&numbers) };
                assert_eq!(case.merged(), expected, "{method}");
            }
        }
    }
}

#[test]
fn every_method_takes_scalars_single_elements_and_nothing() {
    for method in NEW {
        for shape in [&[][..], &[1], &[3, 1], &[0], &[0, 4]] {
            let length = shape.iter().product();
            let values: Vec<Vec<f64>> =
                (0..4).map(|seed| (0..length).map(|i| 0.5 + (seed + i) as f64).collect()).collect();
            let inputs: Vec<&[f64]> = values[1..=inputs_of(method)].iter().map(Vec::as_slice).collect();
            let base = takes_base(method).then_some(values[0].as_slice());
            for numbers in [
                &[("density", 0.4)][..],
                &[("density", 0.4), ("nuslerp_flatten", 0.0), ("nuslerp_row_wise", 1.0), ("filter_wise", 1.0)],
            ] {
                let merged = Case::new(method, shape, base, &inputs).with(numbers).merged();
                assert!(merged.iter().all(|value| value.is_finite()), "{method} {shape:?} {merged:?}");
            }
        }
    }
}

#[test]
fn models_equal_to_the_base_leave_it_as_it_is() {
    let values = noise(5, 60);
    for method in NEW.into_iter().filter(|method| takes_base(method)) {
        let inputs = vec![values.as_slice(); inputs_of(method)];
        for numbers in [&[("density", 0.5)][..], &[("density", 0.5), ("nuslerp_flatten", 0.0), ("filter_wise", 1.0)]] {
            let merged = Case::new(method, &[6, 10], Some(&values), &inputs).with(numbers).merged();
            assert_near(&merged, &values, 1e-7);
        }
    }
}

#[test]
fn one_source_is_itself_in_methods_that_say_so() {
    let (base, source) = (noise(1, 600), noise(2, 600));
    let numbers = [("weight", 1.0), ("density", 1.0), ("lambda", 1.0)];
    let keep = methods().iter().filter(|method| method.single_source != SingleSource::Changed);
    for method in keep {
        assert!(matches!(method.inputs, InputCount::AtLeast(1) | InputCount::Exactly(1)), "{}", method.name);
        let base = (method.base == BaseUse::Required).then_some(base.as_slice());
        for mersenne in [false, true] {
            let case = Case { mersenne, ..Case::new(method.name, &[20, 30], base, &[&source]).with(&numbers) };
            assert_near(&case.merged(), &source, 1e-6);
        }
    }
    // Another method, and another parameter, make something else of it.
    for (name, numbers) in [("nearswap", [("t", 0.001)]), ("passthrough", [("scale", 0.5)])] {
        let base = takes_base(name).then_some(base.as_slice());
        let merged = Case::new(name, &[20, 30], base, &[&source]).with(&numbers).merged();
        assert!(merged.iter().zip(&source).any(|(merged, source)| (merged - source).abs() > 1e-3), "{name}");
    }
}

#[test]
fn float64_is_computed_in_float64() {
    let base = [1.0, -2.0, 3.0, 0.5];
    let tiny = 2.0_f64.powi(-40);
    let source: Vec<f64> = base.iter().map(|value| value + tiny).collect();
    for method in ["passthrough", "ram", "arcee_fusion", "breadcrumbs", "karcher", "nearswap"] {
        let base = takes_base(method).then_some(base.as_slice());
        let numbers = [("epsilon", 1e-15), ("t", 1.0)];
        let case = Case { dtype: Dtype::Float64, ..Case::new(method, &[4], base, &[&source]).with(&numbers) };
        let merged = case.merged();
        match method {
            // All changes are equally important, so that all are taken.
            "arcee_fusion" | "passthrough" | "ram" | "breadcrumbs" | "nearswap" => assert_near(&merged, &source, 1e-15),
            _ => assert_near(&merged, &source, 1e-14),
        }
    }
}

#[test]
fn breadcrumbs_keep_the_middle_and_honour_the_density() {
    let base = [0.0; 10];
    let source: Vec<f64> = (1..=10).map(f64::from).collect();
    let kept = |density, gamma| {
        let numbers = [("density", density), ("gamma", gamma)];
        Case::new("breadcrumbs", &[10], Some(&base), &[&source]).with(&numbers).merged()
    };
    assert_eq!(kept(0.5, 0.2), [0.0, 0.0, 0.0, 4.0, 5.0, 6.0, 7.0, 8.0, 0.0, 0.0]);
    // Not even one element is an outlier.
    assert_eq!(kept(0.5, 0.09), [0.0, 0.0, 0.0, 0.0, 0.0, 6.0, 7.0, 8.0, 9.0, 10.0]);
    // Fewer outliers are dropped where too few elements would be left.
    assert_eq!(kept(0.8, 0.5), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 0.0, 0.0]);
    assert_eq!(kept(1.0, 0.5), source.as_slice());
    assert_eq!(kept(0.09, 0.1), base);
    assert_eq!(kept(-1.0, 0.1), base);
}

#[test]
fn della_prefers_large_magnitudes_and_bounds_its_chances() {
    let base = vec![0.0; 200 * 100];
    let source: Vec<f64> = (0..200 * 100).map(|index| 1.0 + (index % 100) as f64).collect();
    let merge = |density, epsilon| {
        let numbers = [("density", density), ("epsilon", epsilon), ("rescale", 0.0)];
        Case::new("della_linear", &[200, 100], Some(&base), &[&source]).with(&numbers).merge()
    };
    let merged = merge(0.5, 0.4).unwrap();
    let kept = |columns: std::ops::Range<usize>| {
        (0..200).flat_map(|row| merged[row * 100..][columns.clone()].iter()).filter(|value| **value != 0.0).count()
    };
    let (small, large) = (kept(0..10) as f64 / 2000.0, kept(90..100) as f64 / 2000.0);
    assert!((0.1..0.2).contains(&small) && (0.8..0.9).contains(&large), "{small} {large}");
    for (density, epsilon) in [(0.1, 0.15), (0.15, 0.15), (0.9, 0.15), (0.97, -0.05), (0.03, -0.05)] {
        let error = merge(density, epsilon).unwrap_err();
        assert!(error.is_infeasible() && error.to_string().contains("epsilon"), "{error}");
    }
    assert_eq!(merge(1.0, 0.15).unwrap(), source);
    assert_eq!(merge(0.0, 0.15).unwrap(), base);
}

#[test]
fn native_della_masks_are_nested_in_the_density() {
    let base = vec![0.0; 50 * 40];
    let source: Vec<f64> = noise(1, 50 * 40).into_iter().map(|value| value + 2.0).collect();
    let kept = |density| {
        let numbers = [("density", density), ("epsilon", 0.1), ("rescale", 0.0)];
        Case::new("della_linear", &[50, 40], Some(&base), &[&source]).with(&numbers).merged()
    };
    for (low, high) in kept(0.3).iter().zip(kept(0.6)) {
        assert!(*low == 0.0 || high != 0.0);
    }
}

#[test]
fn model_stock_of_orthogonal_and_of_equal_changes() {
    let base = [1.0, 1.0, 1.0];
    let (one, two) = ([2.0, 1.0, 1.0], [1.0, 2.0, 1.0]);
    // No common direction: the base stays.
    assert_eq!(Case::new("model_stock", &[3], Some(&base), &[&one, &two]).merged(), base);
    // One direction: the average.
    assert_eq!(Case::new("model_stock", &[3], Some(&base), &[&one, &one]).merged(), one);
    // Cosines of -1/2 among three make the divisor zero.
    let third = 3.0_f64.sqrt() / 2.0;
    let around = [[1.0, 0.0], [-0.5, third], [-0.5, -third]];
    let inputs: Vec<&[f64]> = around.iter().map(|vector| vector.as_slice()).collect();
    let merged = Case { dtype: Dtype::Float64, ..Case::new("model_stock", &[2], Some(&[0.0, 0.0]), &inputs) }.merged();
    assert_eq!(merged, [0.0, 0.0]);
    // Row by row: the first rows agree, the second ones do not.
    let (one, two) = ([1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]);
    let case = Case::new("model_stock", &[2, 2], Some(&[0.0; 4]), &[&one, &two]);
    assert_eq!(case.with(&[("filter_wise", 1.0)]).merged(), [1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn karcher_of_opposite_vectors_keeps_their_length() {
    let length = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
    // One element each: the mean of the norms, in the direction that most have, else the first one's.
    let merged = |values: &[f64]| {
        let inputs: Vec<[f64; 1]> = values.iter().map(|value| [*value]).collect();
        let inputs: Vec<&[f64]> = inputs.iter().map(<[f64; 1]>::as_slice).collect();
        Case::new("karcher", &[1], None, &inputs).merged()
    };
    assert_near(&merged(&[0.1, -0.7, 0.3, 0.2]), &[0.325], 1e-6);
    assert_near(&merged(&[-0.0031, 0.0167, -0.0012, -0.0037]), &[-0.006_175], 1e-6);
    assert_near(&merged(&[0.3, -0.5]), &[0.4], 1e-6);
    // The direction is anyone's guess, the length is not.
    let (one, two) = ([0.1, -0.3, 0.37, 0.2], [-0.2, 0.6, -0.74, -0.4]);
    let opposite = Case::new("karcher", &[4], None, &[&one, &two]).merged();
    assert!((length(&opposite) - 1.5 * length(&one)).abs() < 1e-6, "{opposite:?}");
}

#[test]
fn multislerp_of_opposite_vectors() {
    let (one, two) = ([1.0, 2.0], [-1.0, -2.0]);
    let weights = [("weight", 1.0)];
    assert_eq!(Case::new("multislerp", &[2], None, &[&one, &two]).with(&weights).merged(), [0.0, 0.0]);
    let (zero, three) = ([0.0, 0.0], [1.0, 2.0]);
    let error = Case::new("multislerp", &[2], None, &[&one, &two, &zero]).with(&weights).merge().unwrap_err();
    assert!(error.is_infeasible(), "{error}");
    // Opposite vectors of other lengths: what `eps` adds to their norms decides the direction, and they keep their
    // average length.
    let (base, one, two) = ([0.0], [0.01], [-0.03]);
    let nearly = Case::new("multislerp", &[1], Some(&base), &[&one, &two]).with(&weights).merged();
    assert_near(&nearly, &[-0.02], 1e-6);
    let (one, two) = ([1.0, 2.0], [-1.0, -2.0]);
    // One model is itself; parallel ones keep their direction and average length.
    assert_eq!(Case::new("multislerp", &[2], Some(&two), &[&one]).with(&weights).merged(), one);
    let double = [2.0, 4.0];
    assert_near(&Case::new("multislerp", &[2], None, &[&three, &double]).with(&weights).merged(), &[1.5, 3.0], 1e-6);
}

#[test]
fn karcher_means() {
    let (one, two, zero) = ([1.0, 0.0], [0.0, 1.0], [0.0, 0.0]);
    assert_eq!(Case::new("karcher", &[2], None, &[&zero, &zero]).merged(), zero);
    let half = 0.5_f64.sqrt();
    assert_near(&Case::new("karcher", &[2], None, &[&one, &two]).merged(), &[half, half], 1e-6);
    // A model without a direction shortens the mean.
    assert_near(&Case::new("karcher", &[2], None, &[&one, &zero]).merged(), &[0.5, 0.0], 1e-6);
    // Opposite ones have no mean direction: the first one's.
    assert_near(&Case::new("karcher", &[2], None, &[&one, &[-1.0, 0.0]]).merged(), &one, 1e-6);
}

#[test]
fn nuslerp_turns_by_equal_angles_and_takes_lines_where_vectors_are_parallel() {
    let (one, two) = ([2.0, 0.0], [0.0, 2.0]);
    let weights = [("weight", 1.0)];
    let half = 2.0_f64.sqrt();
    assert_near(&Case::new("nuslerp", &[2], None, &[&one, &two]).with(&weights).merged(), &[half, half], 1e-6);
    assert_near(&Case::new("nuslerp", &[2], None, &[&one, &[-4.0, 0.0]]).with(&weights).merged(), &[-1.0, 0.0], 1e-6);
    // Weights that cancel out count as equal.
    let none = [("weight", 0.0)];
    assert_near(&Case::new("nuslerp", &[2], None, &[&one, &two]).with(&none).merged(), &[half, half], 1e-6);
    // Along the first dimension the columns are the vectors; along the last the rows.
    let (one, two) = ([1.0, 3.0, 0.0, 0.0], [0.0, 3.0, 1.0, 0.0]);
    let columns = [("weight", 1.0), ("nuslerp_flatten", 0.0), ("nuslerp_row_wise", 1.0)];
    let half = 0.5_f64.sqrt();
    let merged = Case::new("nuslerp", &[2, 2], None, &[&one, &two]).with(&columns).merged();
    assert_near(&merged, &[half, 3.0, half, 0.0], 1e-6);
}

#[test]
fn sce_selects_by_variance_and_falls_back_to_equal_weights() {
    let base = [0.0; 4];
    let (one, two) = ([4.0, 1.0, 0.0, 1.0], [2.0, 1.0, 0.0, -1.0]);
    let merge = |share| Case::new("sce", &[4], Some(&base), &[&one, &two]).with(&[("select_topk", share)]).merged();
    // Two elements vary; half of them is one of the two equal ones: the first.
    let selected = merge(0.5);
    let expected = (16.0 * 4.0 + 4.0 * 2.0) / 20.0;
    assert_near(&selected, &[expected, 0.0, 0.0, 0.0], 1e-6);
    // Nothing is selected.
    assert_eq!(merge(0.4), base);
    assert_eq!(merge(0.0), base);
    // A sum of zero counts as positive: the first model's sign wins.
    assert_near(&merge(1.0)[3..], &[1.0], 1e-6);
    let small: Vec<f64> = one.iter().map(|value| value * 1e-5).collect();
    let smaller: Vec<f64> = two.iter().map(|value| value * 1e-5).collect();
    let merged = Case::new("sce", &[4], Some(&base), &[&small, &smaller]).merged();
    assert_near(&merged, &[3e-5, 1e-5, 0.0, 1e-5], 1e-11);
}

#[test]
fn ram_adds_single_changes_and_averages_common_ones() {
    let base = [1.0; 4];
    let (one, two) = ([2.0, 1.0, 3.0, 1.0], [1.0, 1.5, 5.0, 1.000_001]);
    assert_eq!(Case::new("ram", &[4], Some(&base), &[&one, &two]).merged(), [2.0, 1.5, 4.0, 1.0]);
    // Each has one change of its own and one in common: a factor of 1 + r alpha.
    let numbers = [("r", 0.5), ("alpha", 0.5)];
    let merged = Case::new("ramplus_tl", &[4], Some(&base), &[&one, &two]).with(&numbers).merged();
    assert_eq!(merged, [2.25, 1.625, 4.0, 1.0]);
}

#[test]
fn nearswap_moves_in_proportion() {
    let base = [0.0, 0.0, 0.0];
    let source = [0.5, 2.0, 0.0];
    let merge = |t| Case::new("nearswap", &[3], Some(&base), &[&source]).with(&[("t", t)]).merged();
    assert_eq!(merge(1.0), [0.5, 1.0, 0.0]);
    assert_eq!(merge(-1.0), base);
}
