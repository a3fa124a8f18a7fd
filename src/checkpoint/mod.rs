//! Checkpoints: Hugging Face directories with safetensors (one file or shards) and `config.json`.
//! Opening, validating, mapping, comparing, identifying and writing them. Knows nothing of recipes.
//!
//! Nothing that a checkpoint says is believed before it is checked, and no code is ever loaded from one.

mod adapter;
mod alignment;
mod bus_error;
mod compatibility;
mod content;
mod directory;
mod disk;
mod dtype;
mod error;
#[cfg(test)]
mod fixtures;
mod header;
mod layers;
mod location;
mod mapping;
mod model;
mod nonfinite;
mod output;
mod partial;
mod spare;
mod tensor_names;
mod writer;

pub use adapter::{Factor, LowRank, is_adapter_folder};
pub use alignment::align_names;
pub use bus_error::explain_file_signals;
pub use compatibility::compare;
pub(crate) use compatibility::rename_hint;
pub use content::ContentIds;
pub(crate) use directory::holds_vocabulary;
pub use directory::{CONFIG_FILE, INDEX_FILE, SINGLE_FILE};
pub use disk::available_space;
pub use dtype::Dtype;
pub use error::CheckpointError;
pub use header::TensorInfo;
pub use layers::{LayerLayout, Tower};
pub use location::{HubId, open_model, resolve_location};
pub use model::{Checkpoint, Shard, untie_head};
pub use nonfinite::NonFinite;
pub use output::{OutputFile, OutputTensor, base_layout, shard_layout};
pub use spare::SpareCheckpoints;
pub use tensor_names::{is_batch_counter, is_head, is_input_embedding, is_rotary_table, is_tied, is_unread};
pub use writer::{CheckpointWriter, WriteMode};
