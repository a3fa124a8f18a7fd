//! Tensors of one model as they are, or scaled: for stacking layers of several models.

use super::{Context, MergeMethod};
use crate::merge::MergeError;
use crate::merge::block::{BlockMerge, Buffered, TileMerge, Tiled};
use crate::merge::element::Element;
use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, SingleSource,
    Survivor,
};
use crate::merge::tensor::TensorGroup;

static PASSTHROUGH: MethodSpecification = MethodSpecification {
    name: "passthrough",
    parameters: &[ParameterSpecification {
        name: "scale",
        scope: ParameterScope::Source,
        kind: ParameterKind::Number { default: Some(1.0), low: 0.0, high: 1.5 },
        help: "factor of the tensor",
    }],
    base: BaseUse::None,
    inputs: InputCount::Exactly(1),
    survivor: Survivor::Any,
    samples_masks: false,
    untrimmed: None,
    single_source: SingleSource::Only,
    help: "layers of one model a slice, scaled where asked: stacks layers of several models",
};

/// `scale x`.
pub(super) struct Passthrough;

impl MergeMethod for Passthrough {
    fn specification(&self) -> &'static MethodSpecification {
        &PASSTHROUGH
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
    let scales = group.parameters.source_numbers("scale")?;
    let scale = scales.first().copied().ok_or_else(|| MergeError::Internal("passthrough without a model".into()))?;
    let arithmetic = Scaled { scale: W::from_f64(scale) };
    Ok(Box::new(Tiled::new(group.name, group.inputs.clone(), arithmetic)))
}

struct Scaled<W> {
    scale: W,
}

impl<W: Element> TileMerge<W> for Scaled<W> {
    type State = ();

    fn begin(&self, _first: u64) {}

    #[inline(always)]
    fn merge_tile(&self, _state: &mut (), _first: u64, inputs: &mut [W], output: &mut [W]) {
        for (value, input) in output.iter_mut().zip(inputs) {
            *value = *input * self.scale;
        }
    }
}
