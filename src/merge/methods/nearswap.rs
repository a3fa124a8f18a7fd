//! Interpolation towards a model where it is near the base.

use super::{Context, MergeMethod};
use crate::merge::MergeError;
use crate::merge::block::{BlockMerge, Buffered, TileMerge, Tiled};
use crate::merge::element::Element;
use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, SingleSource,
    Survivor,
};
use crate::merge::tensor::{TILE, TensorGroup};

static NEARSWAP: MethodSpecification = MethodSpecification {
    name: "nearswap",
    parameters: &[ParameterSpecification {
        name: "t",
        scope: ParameterScope::Tensor,
        kind: ParameterKind::Number { default: None, low: 0.0, high: 0.01 },
        help: "differences up to this are taken over whole, larger ones in proportion t / difference",
    }],
    base: BaseUse::Required,
    inputs: InputCount::Exactly(1),
    survivor: Survivor::Base,
    samples_masks: false,
    untrimmed: None,
    single_source: SingleSource::Changed,
    help: "moves the base to the model where both are near",
};

/// Differences below this count as this.
const NEAREST: f64 = 1e-6;

/// `q x + (1 - q) base` with `q = clamp(t / |base - x|, 0, 1)`.
pub(super) struct Nearswap;

impl MergeMethod for Nearswap {
    fn specification(&self) -> &'static MethodSpecification {
        &NEARSWAP
    }

    fn prepare<'a>(
        &self,
        group: &TensorGroup<'a>,
        _context: &mut Context<'_>,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
        if group.is_wide() { prepare::<f64>(group) } else { prepare::<f32>(group) }
    }
}

fn prepare<'a, W: Buffered>(group: &TensorGroup<'a>) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
    let arithmetic = Swap { t: W::from_f64(group.parameters.number("t")?) };
    let inputs = group.base.iter().chain(&group.inputs).copied().collect();
    Ok(Box::new(Tiled::new(group.name, inputs, arithmetic)))
}

struct Swap<W> {
    t: W,
}

impl<W: Element> TileMerge<W> for Swap<W> {
    type State = ();

    fn begin(&self, _first: u64) {}

    #[inline(always)]
    fn merge_tile(&self, _state: &mut (), _first: u64, inputs: &mut [W], output: &mut [W]) {
        let nearest = W::from_f64(NEAREST);
        let (base, model) = inputs.split_at(TILE);
        for ((value, base), model) in output.iter_mut().zip(base).zip(model) {
            let distance = (*base - *model).abs();
            // The reciprocal first: mergekit's rounding.
            let share = W::ONE / if distance > nearest { distance } else { nearest } * self.t;
            let share = if share < W::ZERO { W::ZERO } else { share };
            let share = if share > W::ONE { W::ONE } else { share };
            *value = share * *model + (W::ONE - share) * *base;
        }
    }
}
