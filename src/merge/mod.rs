//! The merge core: from a recipe and its checkpoints to a materialized checkpoint. Knows nothing of genes.

mod methods;
mod specification;

pub use methods::{find_method, methods};
pub use specification::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification,
};
