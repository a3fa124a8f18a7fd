//! Spherical interpolation between two models (Shoemake 1985).

use std::ops::Range;

use libm::{acos, sin};

use super::{Context, MergeMethod, fused_sums};
use crate::checkpoint::Dtype;
use crate::merge::MergeError;
use crate::merge::block::{BlockMerge, TileMerge, Tiled};
use crate::merge::element::Element;
use crate::merge::fused::{ALARM, PAIRS, alarm, chunks_of, widen, words};
use crate::merge::reduce::{LANES, Lanes, sum_blocks};
use crate::merge::simd::{Isa, Kernel, dispatch};
use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, SingleSource,
    Survivor, Untrimmed,
};
use crate::merge::statistics::{Norms, PairKey};
use crate::merge::tensor::{Stored, TILE, TensorGroup, tiles};

static SLERP: MethodSpecification = MethodSpecification {
    name: "slerp",
    parameters: &[ParameterSpecification {
        name: "t",
        scope: ParameterScope::Tensor,
        kind: ParameterKind::Number { default: None, low: 0.0, high: 1.0 },
        help: "0: the base model, 1: the other one; not clamped",
    }],
    base: BaseUse::Input,
    inputs: InputCount::Exactly(2),
    survivor: Survivor::Any,
    samples_masks: false,
    untrimmed: Some(Untrimmed::Interpolation),
    single_source: SingleSource::Changed,
    help: "spherical interpolation between two models (Shoemake 1985)",
};

/// Above this cosine (of either sign) the arc is taken for a straight line.
const COLLINEAR: f64 = 0.9995;
/// A norm up to this counts as that of a zero vector.
const NO_LENGTH: f64 = 1e-8;

/// `sin((1-t) theta) / sin(theta) a + sin(t theta) / sin(theta) b`, the whole tensor being one vector.
pub(super) struct Slerp;

impl MergeMethod for Slerp {
    fn specification(&self) -> &'static MethodSpecification {
        &SLERP
    }

    fn prepare<'a>(
        &self,
        group: &TensorGroup<'a>,
        context: &mut Context<'_>,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
        let (inputs, [first, second]) =
            if group.is_wide() { combination::<f64>(group, context)? } else { combination::<f32>(group, context)? };
        let tensor = group.name;
        let arithmetic = Combination { first, second };
        let wide = Box::new(Tiled::new(tensor, inputs.clone(), arithmetic));
        if group.is_wide() {
            return Ok(wide);
        }
        let factors = [first as f32, second as f32];
        let arithmetic = Combination { first: factors[0], second: factors[1] };
        let tiled = Box::new(Tiled::new(tensor, inputs.clone(), arithmetic));
        Ok(Box::new(ByResult { narrow: fused_sums::combination(&inputs, factors, tiled), wide }))
    }
}

/// The combination in float32 and in float64: three roundings in float32 would be seen in a float32 result, while those
/// before a 16-bit result vanish in its last one.
struct ByResult<'a> {
    narrow: Box<dyn BlockMerge + 'a>,
    wide: Box<dyn BlockMerge + 'a>,
}

impl BlockMerge for ByResult<'_> {
    fn merge_block(&self, isa: Isa, range: Range<u64>, dtype: Dtype, output: &mut [u8]) -> Result<(), MergeError> {
        match dtype {
            Dtype::Float16 | Dtype::Bfloat16 => self.narrow.merge_block(isa, range, dtype, output),
            Dtype::Float32 | Dtype::Float64 => self.wide.merge_block(isa, range, dtype, output),
        }
    }
}

/// The two models and their factors. `W` is the precision of the stored elements.
fn combination<'a, W: Element>(
    group: &TensorGroup<'a>,
    context: &Context<'_>,
) -> Result<(Vec<Stored<'a>>, [f64; 2]), MergeError> {
    let base = group.base.ok_or_else(|| MergeError::Internal("slerp without a base".into()))?;
    let other = group.inputs.iter().find(|input| input.key != base.key);
    let other = *other.ok_or_else(|| MergeError::Internal("slerp with one input".into()))?;
    let key = PairKey { first: base.key, second: other.key, key_bits: W::KEY_BITS };
    let norms = context.cache.norms(key, || norms::<W>(context.isa, base, other, group.elements))?;
    let (first, second) = factors::<W>(norms, group.parameters.number("t")?);
    Ok((vec![base, other], [first, second]))
}

/// The factors of the two vectors. The cosine is rounded to the working precision before it decides between arc and
/// line.
fn factors<W: Element>(norms: Norms, t: f64) -> (f64, f64) {
    let length = |squared: f64| if squared.sqrt() <= NO_LENGTH { 1.0 } else { squared.sqrt() };
    let cosine = (norms.dot / length(norms.first) / length(norms.second)).clamp(-1.0, 1.0);
    if W::from_f64(cosine).abs() > W::from_f64(COLLINEAR) {
        return (1.0 - t, t);
    }
    let angle = acos(cosine);
    (sin((1.0 - t) * angle) / sin(angle), sin(t * angle) / sin(angle))
}

fn norms<W: Element>(isa: Isa, first: Stored<'_>, second: Stored<'_>, elements: u64) -> Result<Norms, MergeError> {
    let narrow = W::KEY_BITS == f32::KEY_BITS && first.dtype == Dtype::Bfloat16 && second.dtype == Dtype::Bfloat16;
    let [first, second, dot] = sum_blocks(elements, |range| {
        let (left, right) = (first.bytes, second.bytes);
        if narrow && let Some(sums) = dispatch(isa, FusedProducts { left, right, range: range.clone() }) {
            return Ok(sums);
        }
        // Something is not finite: this way says what.
        let (mut left, mut right) = (vec![W::ZERO; TILE], vec![W::ZERO; TILE]);
        dispatch(isa, Products::<W> { first, second, range, left: &mut left, right: &mut right })
    })?;
    Ok(Norms { first, second, dot })
}

struct Products<'a, W> {
    first: Stored<'a>,
    second: Stored<'a>,
    range: Range<u64>,
    left: &'a mut [W],
    right: &'a mut [W],
}

impl<W: Element> Kernel for Products<'_, W> {
    type Output = Result<[f64; 3], MergeError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut sums = [Lanes::ZERO; 3];
        for (start, length) in tiles(self.range) {
            let (left, right) = (&mut self.left[..length], &mut self.right[..length]);
            self.first.decode(start, left)?;
            self.second.decode(start, right)?;
            sums[0].add_each(left, |value| value.to_f64() * value.to_f64());
            sums[1].add_each(right, |value| value.to_f64() * value.to_f64());
            sums[2].add_pairs(left, right, |left, right| left.to_f64() * right.to_f64());
        }
        Ok(sums.map(|lanes| lanes.total()))
    }
}

/// The squared norms of a block of two bfloat16 tensors and their dot product, computed in registers: products of two
/// bfloat16 numbers are exact in float64, so that a fused addition gives the same bits as one that is not.
struct FusedProducts<'a> {
    left: &'a [u8],
    right: &'a [u8],
    range: Range<u64>,
}

impl Kernel for FusedProducts<'_> {
    /// `None` where something is not finite.
    type Output = Option<[f64; 3]>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        self.sums(|sum, left, right| sum + left * right)
    }

    #[inline(always)]
    fn run_wide(self) -> Self::Output {
        self.sums(|sum, left, right| left.mul_add(right, sum))
    }
}

impl FusedProducts<'_> {
    #[inline(always)]
    fn sums(self, add: impl Fn(f64, f64, f64) -> f64) -> Option<[f64; 3]> {
        let (left, left_rest) = chunks_of(self.left, &self.range);
        let (right, right_rest) = chunks_of(self.right, &self.range);
        let mut sums = [[0.0; LANES]; 3];
        let mut alarms = [0; LANES];
        for (left, right) in left.iter().zip(right) {
            let (left, right) = (words(left), words(right));
            for row in 0..PAIRS / LANES {
                for lane in 0..LANES {
                    let pair = LANES * row + lane;
                    let (left, right) = (u32::from_le_bytes(left[pair]), u32::from_le_bytes(right[pair]));
                    alarms[lane] |= alarm(left) | alarm(right);
                    let (left, right) = (widen(left).map(f64::from), widen(right).map(f64::from));
                    for half in 0..2 {
                        sums[0][lane] = add(sums[0][lane], left[half], left[half]);
                        sums[1][lane] = add(sums[1][lane], right[half], right[half]);
                        sums[2][lane] = add(sums[2][lane], left[half], right[half]);
                    }
                }
            }
        }
        let mut alarms = alarms.into_iter().fold(0, |alarms, lane| alarms | lane);
        let mut sums = sums.map(Lanes::from);
        for (left, right) in left_rest.as_chunks::<2>().0.iter().zip(right_rest.as_chunks::<2>().0) {
            let (left, right) = (u32::from(u16::from_le_bytes(*left)), u32::from(u16::from_le_bytes(*right)));
            alarms |= alarm(left) | alarm(right);
            let (left, right) = (f64::from(widen(left)[0]), f64::from(widen(right)[0]));
            for (sum, product) in sums.iter_mut().zip([left * left, right * right, left * right]) {
                sum.add_each(&[product], |product| product);
            }
        }
        (alarms & ALARM == 0).then(|| sums.map(|lanes| lanes.total()))
    }
}

struct Combination<W> {
    first: W,
    second: W,
}

impl<W: Element> TileMerge<W> for Combination<W> {
    type State = ();

    fn begin(&self, _first: u64) {}

    #[inline(always)]
    fn merge_tile(&self, _state: &mut (), _first: u64, inputs: &mut [W], output: &mut [W]) {
        let (left, right) = inputs.split_at(TILE);
        for ((value, left), right) in output.iter_mut().zip(left).zip(right) {
            *value = self.first * *left + self.second * *right;
        }
    }
}
