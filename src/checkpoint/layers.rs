//! Which tensors belong to which layer, for any architecture.

/// The repeated blocks of a model and the tensors outside them.
///
/// A layer is the numeric component of the repeated block prefix (`model.layers.N.`, `h.N.`, `blocks.N.`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerLayout {
    /// Everything before the layer's number, with the dot (`model.layers.`); empty when there is no numbered tensor.
    pub prefix: String,
    /// Layers, numbered from 0; 0 when there is no numbered tensor.
    pub count: usize,
    /// Tensors without a number that go with the first group (embeddings), sorted.
    pub first: Vec<String>,
    /// All other tensors without a number (final norm, head), sorted.
    pub last: Vec<String>,
}
