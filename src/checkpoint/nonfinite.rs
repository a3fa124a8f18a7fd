//! The scan for NaN and infinity: such a source spoils every merge, and its owner should hear of it before the night.

use rayon::prelude::*;

use super::dtype::Dtype;
use super::header::TensorInfo;
use super::tensor_names::is_unread;

/// Bytes scanned at a time; a multiple of every element size.
const CHUNK: usize = 1 << 20;

/// An element that is NaN or infinite.
#[derive(Clone, Debug, PartialEq)]
pub struct NonFinite {
    /// The tensor's name.
    pub tensor: String,
    /// Row-major index of the element.
    pub element: usize,
    /// `NaN`, `inf` or `-inf`.
    pub value: f64,
}

impl std::fmt::Display for NonFinite {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "tensor `{}`, element {}, is {}", self.tensor, self.element, self.value)
    }
}

/// The first in the order of the tensors and of their elements, whatever the number of threads. Tensors that no loader
/// reads may hold anything: what old checkpoints masked with is infinite in float16.
pub(super) fn first_nonfinite<'a>(tensors: impl Iterator<Item = (&'a TensorInfo, &'a [u8])>) -> Option<NonFinite> {
    let chunks: Vec<(&str, Dtype, usize, &[u8])> = tensors
        .filter(|(info, _)| !is_unread(info))
        .filter_map(|(info, bytes)| Some((info.name.as_str(), info.float()?, bytes)))
        .flat_map(|(name, dtype, bytes)| {
            bytes
                .chunks(CHUNK)
                .enumerate()
                .map(move |(index, chunk)| (name, dtype, index * CHUNK / dtype.size(), chunk))
        })
        .collect();
    chunks
        .into_par_iter()
        .map(|(name, dtype, first, chunk)| {
            let (position, value) = scan(dtype, chunk)?;
            Some(NonFinite { tensor: name.to_owned(), element: first + position, value })
        })
        .find_first(Option::is_some)
        .flatten()
}

/// Position and value of the first element whose exponent bits are all ones.
pub(super) fn scan(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f64)> {
    match dtype {
        Dtype::Float16 => {
            let (elements, _) = bytes.as_chunks();
            let at = position(elements, |element| u16::from_le_bytes(element) & 0x7C00 == 0x7C00)?;
            let bits = u16::from_le_bytes(elements[at]);
            Some((at, special(bits & 0x03FF != 0, bits >> 15 == 1)))
        }
        Dtype::Bfloat16 => {
            let (elements, _) = bytes.as_chunks();
            let at = position(elements, |element| u16::from_le_bytes(element) & 0x7F80 == 0x7F80)?;
            Some((at, f64::from(f32::from_bits(u32::from(u16::from_le_bytes(elements[at])) << 16))))
        }
        Dtype::Float32 => {
            let (elements, _) = bytes.as_chunks();
            let at = position(elements, |element| u32::from_le_bytes(element) & 0x7F80_0000 == 0x7F80_0000)?;
            Some((at, f64::from(f32::from_le_bytes(elements[at]))))
        }
        Dtype::Float64 => {
            let mask = 0x7FF0_0000_0000_0000;
            let (elements, _) = bytes.as_chunks();
            let at = position(elements, |element| u64::from_le_bytes(element) & mask == mask)?;
            Some((at, f64::from_le_bytes(elements[at])))
        }
    }
}

fn special(nan: bool, negative: bool) -> f64 {
    match (nan, negative) {
        (true, _) => f64::NAN,
        (false, true) => f64::NEG_INFINITY,
        (false, false) => f64::INFINITY,
    }
}

/// As `Iterator::position`, in groups without an early exit inside, which the compiler turns into vector code.
fn position<const N: usize>(elements: &[[u8; N]], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const GROUP: usize = 256;
    elements.chunks(GROUP).enumerate().find_map(|(group, chunk)| {
        let any = chunk.iter().fold(false, |any, &element| any | bad(element));
        if any { chunk.iter().position(|&element| bad(element)).map(|at| group * GROUP + at) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn finds_what_the_plain_loop_finds(bits in prop::collection::vec(any::<u16>(), 0..700)) {
            let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
            let expected = |value: fn(u16) -> f64| {
                bits.iter().map(|&bits| value(bits)).enumerate().find(|(_, value)| !value.is_finite())
            };
            for (dtype, value) in [
                (Dtype::Float16, (|bits| f16::from_bits(bits).to_f64()) as fn(u16) -> f64),
                (Dtype::Bfloat16, |bits| bf16::from_bits(bits).to_f64()),
            ] {
                let show = |found: Option<(usize, f64)>| found.map(|(at, value)| (at, value.to_string()));
                prop_assert_eq!(show(scan(dtype, &bytes)), show(expected(value)));
            }
        }
    }

    #[test]
    fn wide_types() {
        let mut singles = vec![1.0f32; 1000];
        singles[777] = f32::NEG_INFINITY;
        let bytes: Vec<u8> = singles.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(scan(Dtype::Float32, &bytes), Some((777, f64::NEG_INFINITY)));
        let bytes: Vec<u8> = [f64::MAX, f64::NAN].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(matches!(scan(Dtype::Float64, &bytes), Some((1, value)) if value.is_nan()));
        assert_eq!(scan(Dtype::Float64, &bytes[..8]), None);
    }
}
