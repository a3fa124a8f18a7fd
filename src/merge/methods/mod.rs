//! Merge methods, one file a family; each declares its own parameters and holds its own arithmetic.

mod arcee_fusion;
mod fused_sums;
mod karcher;
mod linear;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod passthrough;
mod ram;
mod sce;
mod slerp;
mod task_arithmetic;
mod task_vector_sum;

use std::sync::{LazyLock, OnceLock};

use super::MergeError;
use super::block::BlockMerge;
use super::ranked::Draws;
use super::simd::Isa;
use super::sparsify::{MersenneMask, MersenneStream, PhiloxMask, Sparsifier};
use super::specification::MethodSpecification;
use super::statistics::StatisticsCache;
use super::tensor::{Stored, TensorGroup};
use crate::suggestion::suggestion;

/// A merge method: what it declares, and how it gets a tensor ready for the block pass.
pub(crate) trait MergeMethod: Sync {
    fn specification(&self) -> &'static MethodSpecification;

    /// Reads the parameters and computes what needs the whole tensor.
    fn prepare<'a>(
        &self,
        group: &TensorGroup<'a>,
        context: &mut Context<'_>,
    ) -> Result<Box<dyn BlockMerge + 'a>, MergeError>;
}

/// What a method may use besides the tensor.
pub(crate) struct Context<'a> {
    pub(crate) isa: Isa,
    pub(crate) cache: &'a StatisticsCache,
    pub(crate) masks: MaskSource<'a>,
}

/// Where sampled masks come from.
pub(crate) enum MaskSource<'a> {
    /// A mask of its own for every source and tensor; `contents` holds the sources' content ids, by model.
    Native { seed: u64, contents: &'a [OnceLock<String>] },
    /// The next draws of one stream; `coarse`: probabilities are rounded to bfloat16 first.
    Mergekit { stream: &'a mut MersenneStream, coarse: bool },
}

impl MaskSource<'_> {
    /// The mask of a source's tensor; a density of 1 or more keeps all and draws nothing.
    fn draw(&mut self, source: Stored<'_>, elements: u64, density: f64) -> Result<Sparsifier<'static>, MergeError> {
        if density >= 1.0 {
            return Ok(Sparsifier::KeepAll);
        }
        match self {
            Self::Native { .. } if density <= 0.0 => Ok(Sparsifier::DropAll),
            Self::Native { seed, contents } => {
                let content = content_of(source, contents)?;
                Ok(Sparsifier::Philox(PhiloxMask::new(*seed, content, source.tensor, density)))
            }
            Self::Mergekit { stream, coarse } => {
                let exact = density as f32;
                let probability =
                    if *coarse { super::element::bf16_to_f32(super::element::f32_to_bf16(exact)) } else { exact };
                Ok(Sparsifier::Mersenne(MersenneMask::take(stream, elements, probability)))
            }
        }
    }

    /// The draws of a source's tensor, for a mask with a probability for each element; whether these are rounded to
    /// bfloat16.
    fn draws(&mut self, source: Stored<'_>, elements: u64) -> Result<(Draws, bool), MergeError> {
        match self {
            Self::Native { seed, contents } => {
                let mask = PhiloxMask::new(*seed, content_of(source, contents)?, source.tensor, 1.0);
                Ok((Draws::Philox(mask.generator), false))
            }
            Self::Mergekit { stream, coarse } => {
                Ok((Draws::Mersenne(MersenneMask::take(stream, elements, 1.0)), *coarse))
            }
        }
    }
}

fn content_of<'a>(source: Stored<'_>, contents: &'a [OnceLock<String>]) -> Result<&'a str, MergeError> {
    let known = contents.get(source.key.model as usize).and_then(OnceLock::get);
    let lacks = || MergeError::Internal(format!("no content id of model `{}` for its mask", source.model));
    known.map(String::as_str).ok_or_else(lacks)
}

static METHODS: [&dyn MergeMethod; 20] = [
    &linear::Linear,
    &slerp::Slerp,
    &nuslerp::Nuslerp,
    &task_arithmetic::Generalized::TASK_ARITHMETIC,
    &task_arithmetic::Generalized::TIES,
    &task_arithmetic::Generalized::DARE_LINEAR,
    &task_arithmetic::Generalized::DARE_TIES,
    &task_arithmetic::Generalized::DELLA,
    &task_arithmetic::Generalized::DELLA_LINEAR,
    &task_arithmetic::Generalized::BREADCRUMBS,
    &task_arithmetic::Generalized::BREADCRUMBS_TIES,
    &model_stock::ModelStock,
    &sce::Sce,
    &multislerp::Multislerp,
    &karcher::Karcher,
    &nearswap::Nearswap,
    &arcee_fusion::ArceeFusion,
    &ram::Ram::RAM,
    &ram::Ram::RAMPLUS_TL,
    &passthrough::Passthrough,
];

static SPECIFICATIONS: LazyLock<Vec<&'static MethodSpecification>> =
    LazyLock::new(|| METHODS.iter().map(|method| method.specification()).collect());

/// All merge methods.
pub fn methods() -> &'static [&'static MethodSpecification] {
    &SPECIFICATIONS
}

/// The method of that name.
pub fn find_method(name: &str) -> Option<&'static MethodSpecification> {
    methods().iter().find(|method| method.name == name).copied()
}

/// What is said of a name that no method has.
pub fn unknown_method(name: &str) -> String {
    let known = methods().iter().map(|method| method.name);
    format!("unknown merge method `{name}`; {}", suggestion(name, known, "known are"))
}

/// How the method of that name merges.
pub(crate) fn implementation(name: &str) -> Option<&'static dyn MergeMethod> {
    METHODS.iter().find(|method| method.specification().name == name).copied()
}
