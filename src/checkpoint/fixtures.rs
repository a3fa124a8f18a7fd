//! Small checkpoints for tests, written by the safetensors library and not by this crate's writer.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Bytes of a safetensors file with these tensors and the metadata that transformers writes.
pub fn safetensors_bytes(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views = tensors.iter().map(|&(name, dtype, shape, bytes)| {
        (name, TensorView::new(dtype, shape.to_vec(), bytes).expect("valid tensor"))
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).expect("valid file")
}

/// Makes the directory `path` with `config.json` and `model.safetensors` of float32 tensors.
pub fn write_model(path: &Path, config: &str, tensors: &[(&str, &[usize], &[f32])]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
    let described: Vec<_> = tensors
        .iter()
        .zip(&bytes)
        .map(|(&(name, shape, _), bytes)| (name, Dtype::F32, shape, bytes.as_slice()))
        .collect();
    std::fs::create_dir_all(path).expect("writable");
    std::fs::write(path.join("config.json"), config).expect("writable");
    std::fs::write(path.join("model.safetensors"), safetensors_bytes(&described)).expect("writable");
}
