//! Task vectors added where one model changed and averaged where several did (RAM, arXiv 2601.13572).

use std::ops::Range;

use super::{Context, MergeMethod};
use crate::merge::MergeError;
use crate::merge::block::{BlockMerge, Buffered, TileMerge, Tiled};
use crate::merge::cascade_sum::sum_stack;
use crate::merge::element::Element;
use crate::merge::reduce::sum_block_rows;
use crate::merge::simd::{Isa, Kernel, dispatch};
use crate::merge::specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, SingleSource,
    Survivor,
};
use crate::merge::tensor::{Stored, TILE, TensorGroup, decode_tiles, tiles};

const EPSILON: ParameterSpecification = ParameterSpecification {
    name: "epsilon",
    scope: ParameterScope::Tensor,
    kind: ParameterKind::Number { default: Some(1e-5), low: 1e-7, high: 1e-3 },
    help: "changes up to this count as none",
};

static RAM: MethodSpecification = MethodSpecification {
    name: "ram",
    parameters: &[EPSILON],
    base: BaseUse::Required,
    inputs: InputCount::AtLeast(1),
    survivor: Survivor::None,
    samples_masks: false,
    untrimmed: None,
    single_source: SingleSource::Changed,
    help: "adds what one model changed, averages what several did (arXiv 2601.13572)",
};
static RAMPLUS_TL: MethodSpecification = MethodSpecification {
    name: "ramplus_tl",
    parameters: &[
        EPSILON,
        ParameterSpecification {
            name: "r",
            scope: ParameterScope::Tensor,
            kind: ParameterKind::Number { default: Some(0.1), low: 0.0, high: 1.0 },
            help: "how much more a model's own changes count for each share of changes it has in common",
        },
        ParameterSpecification {
            name: "alpha",
            scope: ParameterScope::Tensor,
            kind: ParameterKind::Number { default: Some(0.2), low: 0.0, high: 1.0 },
            help: "largest share of common changes to single ones that counts",
        },
    ],
    base: BaseUse::Required,
    inputs: InputCount::AtLeast(1),
    survivor: Survivor::None,
    samples_masks: false,
    untrimmed: None,
    single_source: SingleSource::Changed,
    help: "as ram, with each model's own changes made larger (arXiv 2601.13572)",
};

/// `base + sum of active changes / number of active models`; RAM+ multiplies what a single model changed by
/// `1 + r clamp(shared / unique, 0, alpha)`, the number of its changes that others share over those that none does.
pub(super) struct Ram {
    specification: &'static MethodSpecification,
    rescales: bool,
}

impl Ram {
    pub(super) const RAM: Self = Self { specification: &RAM, rescales: false };
    pub(super) const RAMPLUS_TL: Self = Self { specification: &RAMPLUS_TL, rescales: true };

    fn ready<'a, W: Buffered>(
        &self,
        group: &TensorGroup<'a>,
        isa: Isa,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
        let epsilon = group.parameters.number("epsilon")?;
        let inputs: Vec<Stored<'a>> = group.base.iter().chain(&group.inputs).copied().collect();
        let factors = if self.rescales {
            let (r, alpha) = (group.parameters.number("r")?, group.parameters.number("alpha")?);
            let counts = counts::<W>(isa, &inputs, W::from_f64(epsilon), group.elements)?;
            // The published clamp lets the upper bound win.
            let factor = |counts: &[f64]| 1.0 + r * (counts[1] / counts[0].max(epsilon)).max(0.0).min(alpha);
            Some(counts.chunks_exact(2).map(|counts| W::from_f64(factor(counts))).collect())
        } else {
            None
        };
        let arithmetic = Changes { models: group.inputs.len(), epsilon: W::from_f64(epsilon), factors };
        Ok(Box::new(Tiled::new(group.name, inputs, arithmetic)))
    }
}

impl MergeMethod for Ram {
    fn specification(&self) -> &'static MethodSpecification {
        self.specification
    }

    fn prepare<'a>(
        &self,
        group: &TensorGroup<'a>,
        context: &mut Context<'_>,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError> {
        if group.is_wide() { self.ready::<f64>(group, context.isa) } else { self.ready::<f32>(group, context.isa) }
    }
}

/// For each model, how many changes none shares and how many others share. Input 0 is the base.
fn counts<W: Element>(isa: Isa, inputs: &[Stored<'_>], epsilon: W, elements: u64) -> Result<Vec<f64>, MergeError> {
    sum_block_rows(elements, 2 * (inputs.len() - 1), |range, counts| {
        let mut buffer = vec![W::ZERO; inputs.len() * TILE];
        dispatch(isa, CountChanges { inputs, epsilon, range, buffer: &mut buffer, counts })
    })
}

struct CountChanges<'a, W> {
    inputs: &'a [Stored<'a>],
    epsilon: W,
    range: Range<u64>,
    buffer: &'a mut [W],
    counts: &'a mut [f64],
}

impl<W: Element> Kernel for CountChanges<'_, W> {
    type Output = Result<(), MergeError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut sharers = vec![0_u32; TILE];
        for (first, length) in tiles(self.range) {
            decode_tiles(self.inputs, first, length, self.buffer)?;
            let (base, models) = self.buffer.split_at(TILE);
            let active = |value: W, base: W| (value - base).abs() > self.epsilon;
            sharers.fill(0);
            for model in models.chunks_exact(TILE) {
                for ((sharers, value), base) in sharers.iter_mut().zip(&model[..length]).zip(base) {
                    *sharers += u32::from(active(*value, *base));
                }
            }
            for (counts, model) in self.counts.chunks_exact_mut(2).zip(models.chunks_exact(TILE)) {
                let (mut unique, mut shared) = (0_u32, 0_u32);
                for ((sharers, value), base) in sharers.iter().zip(&model[..length]).zip(base) {
                    let own = active(*value, *base);
                    unique += u32::from(own & (*sharers == 1));
                    shared += u32::from(own & (*sharers > 1));
                }
                counts[0] += f64::from(unique);
                counts[1] += f64::from(shared);
            }
        }
        Ok(())
    }
}

struct Changes<W> {
    models: usize,
    epsilon: W,
    /// What each model's changes that no other model shares are multiplied by.
    factors: Option<Vec<W>>,
}

impl<W: Element> TileMerge<W> for Changes<W> {
    /// How many models change each element of a tile.
    type State = Vec<W>;

    fn begin(&self, _first: u64) -> Vec<W> {
        vec![W::ZERO; TILE]
    }

    #[inline(always)]
    fn merge_tile(&self, state: &mut Vec<W>, _first: u64, inputs: &mut [W], output: &mut [W]) {
        let length = output.len();
        let (base, models) = inputs.split_at_mut(TILE);
        let count = &mut state[..length];
        count.fill(W::ZERO);
        for model in models.chunks_exact_mut(TILE).take(self.models) {
            for ((value, base), count) in model.iter_mut().zip(&*base).zip(count.iter_mut()) {
                *value = *value - *base;
                *count = *count + if value.abs() > self.epsilon { W::ONE } else { W::ZERO };
            }
        }
        let models = &*models;
        sum_stack(
            self.models,
            [output],
            #[inline(always)]
            |sources, [output]| {
                for index in sources {
                    let factor = self.factors.as_ref().map_or(W::ONE, |factors| factors[index]);
                    for ((sum, change), count) in output.iter_mut().zip(&models[index * TILE..]).zip(&*count) {
                        // Shares are rounded before they are added, as mergekit rounds them.
                        let part = if *count == W::ONE { *change * factor } else { *change / *count };
                        *sum = *sum + if change.abs() > self.epsilon { part } else { W::ZERO };
                    }
                }
            },
        );
        for (sum, base) in output.iter_mut().zip(&*base) {
            *sum = *base + *sum;
        }
    }
}
