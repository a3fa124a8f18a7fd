//! How far the softmax of a row lies from that of another one (Kullback-Leibler divergence).
//!
//! The divergence of two rows that are nearly equal is a small difference of large sums: float32 leaves it about three
//! digits, and fewer the nearer the rows are. Which elements a threshold on it selects is therefore decided by
//! roundings. So that models stored in at most float32 select the elements that mergekit selects, the float32 path
//! makes the same ones: those of PyTorch on a processor with AVX-512, which are the exponential and the sum in sixteen
//! lanes below, the product with a reciprocal, and [`CascadeSum`]. (Its logarithm is a library's that is correctly rounded
//! in all but a few cases in a thousand; ours always is.)

use std::ops::Range;

use libm::{exp, log};

use super::MergeError;
use super::block::Buffered;
use super::cascade_sum::CascadeSum;
use super::element::Element;
use super::simd::{Isa, Kernel, dispatch};
use super::tensor::{Stored, TILE, tiles};

/// Added to both probabilities.
const SMOOTHING: f64 = 1e-8;
/// Values that PyTorch sums side by side.
const LANES: usize = 16;

/// Tiles of two rows, decoded.
pub(crate) struct RowPair<W> {
    model: Vec<W>,
    base: Vec<W>,
}

impl<W: Element> RowPair<W> {
    /// Room for a tile of each.
    pub(crate) fn new() -> Self {
        Self { model: vec![W::ZERO; TILE], base: vec![W::ZERO; TILE] }
    }

    /// The tiles of both rows that start at element `first`. (No closure does what follows: one would not be compiled
    /// for the instruction set of its caller.)
    #[inline(always)]
    fn decode(&mut self, rows: &Rows<'_>, first: u64, length: usize) -> Result<(&mut [W], &mut [W]), MergeError> {
        let (model, base) = (&mut self.model[..length], &mut self.base[..length]);
        rows.model.decode(first, model)?;
        rows.base.decode(first, base)?;
        Ok((model, base))
    }
}

/// A row of a model and the same one of the base.
pub(crate) struct Rows<'a> {
    pub(crate) model: Stored<'a>,
    pub(crate) base: Stored<'a>,
    /// Which elements of their tensors.
    pub(crate) elements: Range<u64>,
}

/// A precision that divergences are computed in.
pub(crate) trait Divergence: Buffered {
    /// `sum p ln(p / q)` with the softmax of the model's row as `p` and of the base's as `q`. Where roundings are
    /// larger than it, it may be negative.
    ///
    /// # Errors
    ///
    /// When an element is not finite.
    fn divergence(isa: Isa, rows: &Rows<'_>, pair: &mut RowPair<Self>) -> Result<Self, MergeError>;
}

impl Divergence for f64 {
    fn divergence(_isa: Isa, rows: &Rows<'_>, pair: &mut RowPair<Self>) -> Result<Self, MergeError> {
        let mut largest = [Self::NEG_INFINITY; 2];
        for (first, length) in tiles(rows.elements.clone()) {
            let (model, base) = pair.decode(rows, first, length)?;
            largest =
                [model.iter().copied().fold(largest[0], Self::max), base.iter().copied().fold(largest[1], Self::max)];
        }
        let mut sums = [0.0; 2];
        for (first, length) in tiles(rows.elements.clone()) {
            let (model, base) = pair.decode(rows, first, length)?;
            for (model, base) in model.iter().zip(base) {
                sums = [sums[0] + exp(*model - largest[0]), sums[1] + exp(*base - largest[1])];
            }
        }
        let mut divergence = 0.0;
        for (first, length) in tiles(rows.elements.clone()) {
            let (model, base) = pair.decode(rows, first, length)?;
            for (model, base) in model.iter().zip(base) {
                let p = exp(*model - largest[0]) / sums[0] + SMOOTHING;
                let q = exp(*base - largest[1]) / sums[1] + SMOOTHING;
                divergence += p * log(p / q);
            }
        }
        Ok(divergence)
    }
}

impl Divergence for f32 {
    fn divergence(isa: Isa, rows: &Rows<'_>, pair: &mut RowPair<Self>) -> Result<Self, MergeError> {
        dispatch(isa, Narrow { rows, pair })
    }
}

/// The divergence in float32.
struct Narrow<'a, 'b> {
    rows: &'a Rows<'b>,
    pair: &'a mut RowPair<f32>,
}

impl Kernel for Narrow<'_, '_> {
    type Output = Result<f32, MergeError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { rows, pair } = self;
        let mut largest = [[f32::NEG_INFINITY; LANES]; 2];
        for (first, length) in tiles(rows.elements.clone()) {
            let (model, base) = pair.decode(rows, first, length)?;
            raise(&mut largest[0], model);
            raise(&mut largest[1], base);
        }
        let [largest, base_largest] = largest.map(|lanes| lanes.into_iter().fold(f32::NEG_INFINITY, f32::max));
        let (mut sum, mut base_sum) = (LaneSum::new(), LaneSum::new());
        for (first, length) in tiles(rows.elements.clone()) {
            let (model, base) = pair.decode(rows, first, length)?;
            exponentials(model, largest);
            exponentials(base, base_largest);
            sum.add(model);
            base_sum.add(base);
        }
        let (share, base_share) = (1.0 / sum.total(), 1.0 / base_sum.total());
        let smoothing = SMOOTHING as f32;
        let mut divergence = CascadeSum::new(rows.elements.end - rows.elements.start);
        for (first, length) in tiles(rows.elements.clone()) {
            let (model, base) = pair.decode(rows, first, length)?;
            exponentials(model, largest);
            exponentials(base, base_largest);
            for (value, base) in model.iter_mut().zip(base) {
                let (p, q) = (*value * share + smoothing, *base * base_share + smoothing);
                *value = p * logarithm(p / q);
            }
            divergence.add(model);
        }
        Ok(divergence.total())
    }
}

/// Raises the lanes to the values.
#[inline(always)]
fn raise(lanes: &mut [f32; LANES], values: &[f32]) {
    for values in values.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
}

#[inline(always)]
fn exponentials(values: &mut [f32], largest: f32) {
    for value in values {
        *value = exponential(*value - largest);
    }
}

/// A sum in sixteen lanes, halved until one is left; up to fifteen values are added one after the other.
struct LaneSum {
    lanes: [f32; LANES],
    count: usize,
}

impl LaneSum {
    fn new() -> Self {
        Self { lanes: [0.0; LANES], count: 0 }
    }

    /// Adds the next values: a multiple of sixteen of them, or the last ones.
    #[inline(always)]
    fn add(&mut self, values: &[f32]) {
        for values in values.chunks(LANES) {
            for (lane, value) in self.lanes.iter_mut().zip(values) {
                *lane += *value;
            }
        }
        self.count += values.len();
    }

    fn total(mut self) -> f32 {
        if self.count < LANES {
            return self.lanes.iter().take(self.count).sum();
        }
        let mut width = LANES / 2;
        while width > 0 {
            let (left, right) = self.lanes.split_at_mut(width);
            for (left, right) in left.iter_mut().zip(right) {
                *left += *right;
            }
            width /= 2;
        }
        self.lanes[0]
    }
}

/// `2^exponent`, for exponents from -126 to 127.
#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// `exp(value)` for a value up to 0, within one unit in the last place.
///
/// Reduction by powers of two and a polynomial, with the constants of SLEEF's single-precision exponential (Shibata and
/// Petrogalli, 2020), which is PyTorch's. It has fused multiplications, on every machine.
#[inline(always)]
fn exponential(value: f32) -> f32 {
    /// Adding and subtracting it rounds to a whole number, to an even one in doubt.
    const WHOLE: f32 = 12_582_912.0;
    const LN_2: [f32; 2] = [0.693_145_75, 1.428_606_8e-6];
    const POLYNOMIAL: [f32; 5] = [0.001_393_043_6, 0.008_333_361, 0.041_666_485, 0.166_666_67, 0.5];
    let whole = (value * std::f32::consts::LOG2_E + WHOLE) - WHOLE;
    let rest = whole.mul_add(-LN_2[1], whole.mul_add(-LN_2[0], value));
    let mut series = 0.000_198_527_62_f32;
    for coefficient in POLYNOMIAL {
        series = series.mul_add(rest, coefficient);
    }
    let power = 1.0 + (rest * rest).mul_add(series, rest);
    // In two steps, since the smallest results are subnormal.
    let exponent = whole.max(-160.0) as i32;
    let half = exponent >> 1;
    let scaled = power * power_of_two(half) * power_of_two(exponent - half);
    if value < -104.0 { 0.0 } else { scaled }
}

/// The natural logarithm of a positive normal number, computed in float64 and rounded: correctly, but for one case in
/// millions.
#[inline(always)]
fn logarithm(value: f32) -> f32 {
    /// The bits of the square root of one half, rounded down.
    const ROOT_OF_HALF: u64 = 0x3FE6_A09E_0000_0000;
    /// `1 / (2 k + 1)`, the last one first.
    const SERIES: [f64; 9] =
        [1.0 / 17.0, 1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0];
    let bits = f64::from(value).to_bits();
    let exponent = (bits.wrapping_sub(ROOT_OF_HALF) as i64 >> 52) as i32;
    let mantissa = f64::from_bits(bits.wrapping_sub((i64::from(exponent) as u64) << 52));
    // Twice the inverse hyperbolic tangent of `(m - 1) / (m + 1)`, which is 0.172 at most.
    let ratio = (mantissa - 1.0) / (mantissa + 1.0);
    let square = ratio * ratio;
    let mut series = 0.0;
    for coefficient in SERIES {
        series = series * square + coefficient;
    }
    (f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * ratio * series) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_within_one_unit_in_the_last_place() {
        for step in 0..200_000 {
            let value = -1e-3 * step as f32 * 0.52;
            let exact = f64::from(value).exp();
            let unit = (exact * 2.0_f64.powi(-23)).max(f64::from(f32::from_bits(1)));
            let found = f64::from(exponential(value));
            assert!((found - exact).abs() <= unit, "exp({value}) = {found}, not {exact}");
        }
        assert_eq!(exponential(0.0), 1.0);
        assert_eq!(exponential(-200.0), 0.0);
        assert_eq!(exponential(f32::MIN), 0.0);
    }

    #[test]
    fn the_logarithm_is_rounded_correctly() {
        for bits in (0x0080_0000..0x7F80_0000_u32).step_by(9973).chain(0x3F7F_0000..0x3F81_0000) {
            let value = f32::from_bits(bits);
            assert_eq!(logarithm(value), log(f64::from(value)) as f32, "ln({value:e})");
        }
    }

    #[test]
    fn lanes_are_halved_and_few_values_are_added_in_order() {
        let sum = |values: &[f32]| {
            let mut sum = LaneSum::new();
            sum.add(values);
            sum.total()
        };
        assert_eq!(sum(&[]), 0.0);
        // In order, the ones are lost one by one; as pairs they are not.
        let mut values = [1.0_f32; 16];
        values[0] = 16_777_216.0;
        assert_eq!(sum(&values[..15]), 16_777_216.0);
        assert_eq!(sum(&values), 16_777_230.0);
    }

    #[test]
    fn equal_rows_do_not_diverge() {
        let bytes: Vec<u8> = (0..40).flat_map(|index| (index as f32 * 0.01).to_le_bytes()).collect();
        let stored = Stored {
            model: "model",
            tensor: "row",
            dtype: crate::checkpoint::Dtype::Float32,
            bytes: &bytes,
            key: crate::merge::statistics::TensorKey { model: 0, tensor: 0, elements: 0 },
            delta: None,
        };
        let rows = Rows { model: stored, base: stored, elements: 0..40 };
        assert_eq!(f32::divergence(Isa::detect(), &rows, &mut RowPair::new()).unwrap(), 0.0);
        assert_eq!(f64::divergence(Isa::detect(), &rows, &mut RowPair::new()).unwrap(), 0.0);
    }
}
