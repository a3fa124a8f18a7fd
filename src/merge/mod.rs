//! The merge core: from a recipe and its checkpoints to a materialized checkpoint. Knows nothing of genes.
//!
//! ```text
//!  recipe + checkpoints --plan--> tensors, their inputs and parameters
//!      each tensor: method.prepare (whole-tensor statistics, cached over the run) -> block pass -> writer
//! ```
//!
//! Tensors are computed in float32 (in float64 where an input is) and rounded once. The block pass depends on the
//! position of an element only, and sums over tensors have a fixed order: the bytes depend neither on threads nor on
//! the machine.

pub mod agreement;
mod block;
mod cascade_sum;
mod completeness;
mod divergence;
mod element;
mod error;
mod execute;
mod failure;
mod fused;
mod gram;
mod l1;
mod lora;
mod mergekit_order;
mod merger;
mod mersenne;
#[cfg(test)]
mod method_tests;
mod methods;
mod model;
mod output;
mod parameters;
mod philox;
mod plan;
mod rank;
mod ranked;
mod reduce;
mod remembered;
mod simd;
mod slab;
mod sparsify;
mod specification;
mod stacked_config;
mod statistics;
mod statistics_file;
pub mod structure;
mod tensor;
#[cfg(test)]
mod tests;
mod threshold;
mod vocabulary;
mod window;
mod write_queue;

pub use crate::checkpoint::WriteMode;
pub use error::MergeError;
pub use merger::{MergeOptions, MergeProgress, MergeReport, Merger, MergerOptions};
pub use methods::{find_method, methods, unknown_method};
pub use parameters::{ParameterValue, ResolvedParameters};
pub use plan::{Action, MergePlan, PlannedInput, PlannedSlice, PlannedTensor};
pub use simd::Isa;
pub use specification::{
    BaseUse, DENSITY, DROP_RATE, InputCount, MethodSpecification, ParameterKind, ParameterScope,
    ParameterSpecification, SingleSource, Survivor, Untrimmed, complement, parameter_of_gene,
};
pub use statistics::StatisticsUse;
