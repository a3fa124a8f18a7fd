//! Checkpoints: Hugging Face directories with safetensors (one file or shards) and `config.json`.
//! Opening, validating, mapping, comparing and identifying them. Knows nothing of recipes.

mod dtype;
mod layers;

pub use dtype::Dtype;
pub use layers::LayerLayout;
