//! Working precisions of a merge, and the conversion of stored elements to and from them.
//!
//! Tensors are computed in float32; in float64 where one of the inputs is stored so. Stored elements are little-endian
//! and may lie at any address, so conversions read and write bytes. All rounding is to nearest, ties to even.

use std::ops::{Add, Div, Mul, Sub};

use super::cascade_sum::CascadeSum;
use crate::checkpoint::Dtype;

/// A float type that merges are computed in.
pub(crate) trait Element:
    Copy
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + 'static
{
    /// The bits of a magnitude: ordered as the magnitudes are.
    type Key: Copy + Ord + Send + Sync + Default;

    /// Bits of a key that can be set.
    const KEY_BITS: u32;
    const ZERO: Self;
    const ONE: Self;
    const INFINITY: Self;

    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn abs(self) -> Self;
    /// `self * factor + addend` with a single rounding, by hardware where the instruction set has it.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    fn key(self) -> Self::Key;
    /// The magnitude that has this key.
    fn from_key(key: Self::Key) -> Self;
    fn key_from_u64(bits: u64) -> Self::Key;
    fn key_to_u64(key: Self::Key) -> u64;
    /// Converts stored elements; `bytes` holds `output.len()` elements of `dtype`. Returns the largest key of the
    /// output: that of infinity or more where an element is not finite.
    fn decode(dtype: Dtype, bytes: &[u8], output: &mut [Self]) -> Self::Key;
    /// Rounds to stored elements, once; `bytes` has room for `values.len()` elements of `dtype`. Returns the largest
    /// key of the values.
    fn encode(dtype: Dtype, values: &[Self], bytes: &mut [u8]) -> Self::Key;
    /// Magnitudes below this round to a finite value of `dtype`.
    fn limit(dtype: Dtype) -> Self;
    /// The sum of a few numbers in the order that mergekit's sum of them has, which from five float32 numbers on is not
    /// theirs.
    fn sum_as_pytorch(values: &[Self]) -> Self;
}

/// Whether every magnitude is below `limit` (false for NaN).
#[inline(always)]
pub(crate) fn all_below<W: Element>(values: &[W], limit: W) -> bool {
    values.iter().fold(true, |below, value| below & (value.abs() < limit))
}

/// bfloat16 to float32: exact.
#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// float32 to bfloat16; NaN stays NaN.
#[inline(always)]
pub(crate) fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7FFF_FFFF > 0x7F80_0000 { quiet } else { rounded }) as u16
}

/// float16 to float32: exact.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7FFF) << 13;
    // Read as float32 the exponent is too small by 127 - 15; a product with 2^112 mends it, subnormal numbers included.
    let finite = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = magnitude | 0x7F80_0000;
    f32::from_bits(sign | if bits & 0x7C00 == 0x7C00 { special } else { finite })
}

/// float32 to float16; too large a magnitude becomes infinite, NaN stays NaN.
#[inline(always)]
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7FFF_FFFF;
    // Exponent moved from bias 127 to bias 15, then rounded at bit 13.
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xFFF + ((magnitude >> 13) & 1)) >> 13;
    // Below 2^-14 the sum with 0.5 lets the adder itself round at 2^-24, the spacing of subnormal numbers.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let special = if magnitude > 0x7F80_0000 { 0x7E00 | ((magnitude >> 13) & 0x3FF) } else { 0x7C00 };
    let unsigned = if magnitude >= 0x477F_F000 {
        special
    } else if magnitude < 0x3880_0000 {
        subnormal
    } else {
        normal
    };
    (sign | unsigned) as u16
}

/// float64 to float32 rounded to odd: a later rounding to at most 22 bits gives what one rounding would have given.
#[inline(always)]
fn f64_to_f32_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    if back == value || value.is_nan() || back.is_infinite() {
        return nearest;
    }
    let bits = nearest.to_bits();
    if bits & 1 == 1 {
        return nearest;
    }
    // Even and inexact: the odd neighbour lies on the other side of the value.
    f32::from_bits(if back.abs() > value.abs() { bits.wrapping_sub(1) } else { bits + 1 })
}

#[inline(always)]
fn decode_each<const N: usize, W: Element>(bytes: &[u8], output: &mut [W], convert: impl Fn([u8; N]) -> W) -> W::Key {
    let (chunks, _) = bytes.as_chunks::<N>();
    let mut largest = W::Key::default();
    for (value, chunk) in output.iter_mut().zip(chunks) {
        let converted = convert(*chunk);
        *value = converted;
        largest = largest.max(converted.key());
    }
    largest
}

#[inline(always)]
fn encode_each<const N: usize, W: Element>(values: &[W], bytes: &mut [u8], convert: impl Fn(W) -> [u8; N]) -> W::Key {
    let (chunks, _) = bytes.as_chunks_mut::<N>();
    let mut largest = W::Key::default();
    for (chunk, value) in chunks.iter_mut().zip(values) {
        *chunk = convert(*value);
        largest = largest.max(value.key());
    }
    largest
}

impl Element for f32 {
    type Key = u32;

    const KEY_BITS: u32 = 31;
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const INFINITY: Self = f32::INFINITY;

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f32::abs(self)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        f32::mul_add(self, factor, addend)
    }
    #[inline(always)]
    fn key(self) -> u32 {
        self.to_bits() & 0x7FFF_FFFF
    }
    #[inline(always)]
    fn from_key(key: u32) -> Self {
        f32::from_bits(key)
    }
    #[inline(always)]
    fn key_from_u64(bits: u64) -> u32 {
        bits as u32
    }
    #[inline(always)]
    fn key_to_u64(key: u32) -> u64 {
        u64::from(key)
    }

    #[inline(always)]
    fn decode(dtype: Dtype, bytes: &[u8], output: &mut [Self]) -> Self::Key {
        match dtype {
            Dtype::Float16 => decode_each(bytes, output, |chunk| f16_to_f32(u16::from_le_bytes(chunk))),
            Dtype::Bfloat16 => decode_each(bytes, output, |chunk| bf16_to_f32(u16::from_le_bytes(chunk))),
            Dtype::Float32 => decode_each(bytes, output, f32::from_le_bytes),
            Dtype::Float64 => decode_each(bytes, output, |chunk| f64::from_le_bytes(chunk) as f32),
        }
    }
    #[inline(always)]
    fn encode(dtype: Dtype, values: &[Self], bytes: &mut [u8]) -> Self::Key {
        match dtype {
            Dtype::Float16 => encode_each(values, bytes, |value| f32_to_f16(value).to_le_bytes()),
            Dtype::Bfloat16 => encode_each(values, bytes, |value| f32_to_bf16(value).to_le_bytes()),
            Dtype::Float32 => encode_each(values, bytes, f32::to_le_bytes),
            Dtype::Float64 => encode_each(values, bytes, |value| f64::from(value).to_le_bytes()),
        }
    }
    fn limit(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float16 => 65_520.0,
            Dtype::Bfloat16 => f32::from_bits(0x7F7F_8000),
            Dtype::Float32 | Dtype::Float64 => f32::INFINITY,
        }
    }

    fn sum_as_pytorch(values: &[Self]) -> Self {
        let mut sum = CascadeSum::new(values.len() as u64);
        sum.add(values);
        sum.total()
    }
}

impl Element for f64 {
    type Key = u64;

    const KEY_BITS: u32 = 63;
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const INFINITY: Self = f64::INFINITY;

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f64::abs(self)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        f64::mul_add(self, factor, addend)
    }
    #[inline(always)]
    fn key(self) -> u64 {
        self.to_bits() & (u64::MAX >> 1)
    }
    #[inline(always)]
    fn from_key(key: u64) -> Self {
        f64::from_bits(key)
    }
    #[inline(always)]
    fn key_from_u64(bits: u64) -> u64 {
        bits
    }
    #[inline(always)]
    fn key_to_u64(key: u64) -> u64 {
        key
    }

    #[inline(always)]
    fn decode(dtype: Dtype, bytes: &[u8], output: &mut [Self]) -> Self::Key {
        match dtype {
            Dtype::Float16 => decode_each(bytes, output, |chunk| f64::from(f16_to_f32(u16::from_le_bytes(chunk)))),
            Dtype::Bfloat16 => decode_each(bytes, output, |chunk| f64::from(bf16_to_f32(u16::from_le_bytes(chunk)))),
            Dtype::Float32 => decode_each(bytes, output, |chunk| f64::from(f32::from_le_bytes(chunk))),
            Dtype::Float64 => decode_each(bytes, output, f64::from_le_bytes),
        }
    }
    #[inline(always)]
    fn encode(dtype: Dtype, values: &[Self], bytes: &mut [u8]) -> Self::Key {
        match dtype {
            Dtype::Float16 => encode_each(values, bytes, |value| f32_to_f16(f64_to_f32_odd(value)).to_le_bytes()),
            Dtype::Bfloat16 => encode_each(values, bytes, |value| f32_to_bf16(f64_to_f32_odd(value)).to_le_bytes()),
            Dtype::Float32 => encode_each(values, bytes, |value| (value as f32).to_le_bytes()),
            Dtype::Float64 => encode_each(values, bytes, f64::to_le_bytes),
        }
    }
    fn limit(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float16 => 65_520.0,
            Dtype::Bfloat16 => f64::from(f32::from_bits(0x7F7F_8000)),
            // The largest float32 and half the distance to the next power of two.
            Dtype::Float32 => f64::from(f32::MAX) + f64::from(f32::MAX) * (0.5 / 16_777_215.0),
            Dtype::Float64 => f64::INFINITY,
        }
    }

    fn sum_as_pytorch(values: &[Self]) -> Self {
        values.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};
    use proptest::prelude::*;

    #[test]
    fn from_five_numbers_on_the_sum_has_another_order() {
        let weights = [0.126_f32, 0.677, 0.966, 0.123, 0.384];
        assert_eq!(f32::sum_as_pytorch(&weights[..4]), 0.126 + 0.677 + 0.966 + 0.123);
        assert_eq!(f32::sum_as_pytorch(&weights), 0.126 + 0.384 + 0.677 + 0.966 + 0.123);
        assert_eq!(f32::sum_as_pytorch(&[]), 0.0);
    }

    #[test]
    fn every_16_bit_pattern_widens_as_half_does() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "f16 {bits:#06x}");
            let (ours, theirs) = (bf16_to_f32(bits), bf16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "bf16 {bits:#06x}");
        }
    }

    #[test]
    fn every_16_bit_pattern_and_its_midpoints_round_as_half_does() {
        for bits in 0..=u16::MAX {
            let f16_value = f16_to_f32(bits);
            if f16_value.is_nan() {
                assert!(f16_to_f32(f32_to_f16(f16_value)).is_nan());
                continue;
            }
            assert_eq!(f32_to_f16(f16_value), bits);
            let next = f16_to_f32(bits.wrapping_add(1));
            if next.is_finite() {
                let middle = (f16_value + next) * 0.5;
                for value in [middle, middle.next_up(), middle.next_down()] {
                    assert_eq!(f32_to_f16(value), f16::from_f32(value).to_bits(), "{value:e}");
                }
            }
        }
        for bits in 0..=u16::MAX {
            let value = bf16_to_f32(bits);
            if value.is_nan() {
                assert!(bf16_to_f32(f32_to_bf16(value)).is_nan());
                continue;
            }
            assert_eq!(f32_to_bf16(value), bits);
            for low in [0x7FFF_u32, 0x8000, 0x8001] {
                let value = f32::from_bits((u32::from(bits) << 16) | low);
                if !value.is_nan() {
                    assert_eq!(f32_to_bf16(value), bf16::from_f32(value).to_bits(), "{value:e}");
                }
            }
        }
    }

    #[test]
    fn the_limit_of_a_dtype_is_the_first_magnitude_that_overflows() {
        for (dtype, limit) in
            [(Dtype::Float16, f32::limit(Dtype::Float16)), (Dtype::Bfloat16, f32::limit(Dtype::Bfloat16))]
        {
            let mut bytes = [0; 4];
            f32::encode(dtype, &[limit, limit.next_down()], &mut bytes);
            let mut back = [0.0_f32; 2];
            f32::decode(dtype, &bytes, &mut back);
            assert!(back[0].is_infinite() && back[1].is_finite(), "{dtype}: {back:?}");
        }
        let limit = f64::limit(Dtype::Float32);
        assert!((limit as f32).is_infinite() && (limit.next_down() as f32).is_finite());
    }

    proptest! {
        #[test]
        fn float32_rounds_as_half_does(bits: u32) {
            let value = f32::from_bits(bits);
            prop_assume!(!value.is_nan());
            prop_assert_eq!(f32_to_f16(value), f16::from_f32(value).to_bits());
            prop_assert_eq!(f32_to_bf16(value), bf16::from_f32(value).to_bits());
        }

        #[test]
        fn float64_rounds_once(value in -70_000.0..70_000.0_f64, scale in -30..1_i32) {
            let value = value * 2.0_f64.powi(scale);
            let mut bytes = [0; 2];
            f64::encode(Dtype::Float16, &[value], &mut bytes);
            let stored = u16::from_le_bytes(bytes);
            // No representable neighbour is nearer.
            let distance = |bits: u16| (f64::from(f16_to_f32(bits)) - value).abs();
            if f16_to_f32(stored).is_finite() {
                prop_assert!(distance(stored) <= distance(stored.wrapping_add(1)) || stored & 0x7FFF == 0x7BFF);
                prop_assert!(stored & 0x7FFF == 0 || distance(stored) <= distance(stored - 1));
            }
            f64::encode(Dtype::Bfloat16, &[value], &mut bytes);
            let stored = u16::from_le_bytes(bytes);
            let distance = |bits: u16| (f64::from(bf16_to_f32(bits)) - value).abs();
            prop_assert!(distance(stored) <= distance(stored.wrapping_add(1)));
            prop_assert!(stored & 0x7FFF == 0 || distance(stored) <= distance(stored - 1));
        }
    }

    #[test]
    fn a_double_rounding_would_show() {
        // Just above the middle of two bfloat16: float32 first would land on the middle and round to even.
        let value = 1.0 + 2.0_f64.powi(-8) + 2.0_f64.powi(-40);
        let mut bytes = [0; 2];
        f64::encode(Dtype::Bfloat16, &[value], &mut bytes);
        assert_eq!(u16::from_le_bytes(bytes), 0x3F81);
        assert_eq!(f32_to_bf16(value as f32), 0x3F80);
    }
}
