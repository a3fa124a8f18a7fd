//! A candidate's tensors, widened to float32.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Dtype;

use super::fault;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::evaluate::Fault;

/// The open files of a checkpoint.
pub(super) struct Weights {
    checkpoint: Checkpoint,
}

impl Weights {
    /// Opens a checkpoint's files and checks every header.
    ///
    /// # Errors
    /// An infrastructure fault for a file that cannot be read, a candidate fault for one that is damaged.
    pub(super) fn open(folder: &Path) -> Result<Self, Fault> {
        let checkpoint = Checkpoint::open(folder).map_err(|error| match error {
            CheckpointError::Read { .. } | CheckpointError::TooManyFiles { .. } => fault::unreadable(error.to_string()),
            other => fault::invalid(other.to_string()),
        })?;
        Ok(Self { checkpoint })
    }

    /// Reads the tensor `name`.
    ///
    /// # Errors
    /// As [`Self::elements`].
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, Fault> {
        Tensor::from_vec(self.elements(name, shape)?, shape, &Device::Cpu).map_err(fault::tensor)
    }

    /// Reads the tensor `name` of one dimension.
    ///
    /// # Errors
    /// As [`Self::elements`].
    pub(super) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, Fault> {
        self.elements(name, &[length])
    }

    /// Reads the elements of the tensor `name` as float32.
    ///
    /// # Errors
    /// A candidate fault when it is missing, has another shape or type than expected, or a value that is not finite.
    fn elements(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Fault> {
        let missing = || fault::invalid(format!("tensor `{name}` is missing"));
        let info = self.checkpoint.tensors().get(name).ok_or_else(missing)?;
        if info.shape != shape {
            return Err(fault::invalid(format!(
                "tensor `{name}` has shape {:?}; config.json makes it {shape:?}",
                info.shape
            )));
        }
        let bytes = self.checkpoint.bytes(name).ok_or_else(missing)?;
        let values = widen(bytes, info.dtype).map_err(|reason| fault::invalid(format!("tensor `{name}` {reason}")))?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(fault::nonfinite(format!("tensor `{name}` holds {} at element {at}", values[at])));
        }
        Ok(values)
    }
}

/// Little-endian numbers of `dtype` as float32. Float64 rounds; the other types are exact.
fn widen(bytes: &[u8], dtype: Dtype) -> Result<Vec<f32>, String> {
    match dtype {
        Dtype::BF16 => {
            let wide = |two: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*two)) << 16);
            Ok(bytes.as_chunks().0.iter().map(wide).collect())
        }
        Dtype::F32 => Ok(bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect()),
        Dtype::F64 => Ok(bytes.as_chunks().0.iter().map(|eight| f64::from_le_bytes(*eight) as f32).collect()),
        Dtype::F16 => Tensor::from_raw_buffer(bytes, DType::F16, &[bytes.len() / 2], &Device::Cpu)
            .and_then(|half| half.to_dtype(DType::F32)?.to_vec1())
            .map_err(|error| format!("cannot be widened: {error}")),
        other => Err(format!("has type {other:?}; float16, bfloat16, float32 and float64 are read")),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::evaluate::FaultClass;

    /// A model folder, with nothing in its configuration.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        folder
    }

    fn write(path: &Path, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) {
        let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        std::fs::write(path, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
    }

    fn error(result: Result<impl Sized, Fault>) -> Fault {
        match result {
            Ok(_) => panic!("expected a fault"),
            Err(fault) => fault,
        }
    }

    #[test]
    fn every_float_type_is_widened() {
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        let values = [1.5_f32, -0.25, 3.0, 0.0];
        let cases: [(Dtype, Vec<u8>); 4] = [
            (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            (Dtype::F64, values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
            (Dtype::F16, values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()),
            (Dtype::BF16, values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()),
        ];
        for (dtype, bytes) in cases {
            write(&path, "w", dtype, &[2, 2], &bytes);
            let tensor = Weights::open(folder.path()).unwrap().tensor("w", &[2, 2]).unwrap();
            assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), values, "{dtype:?}");
        }
        write(&path, "w", Dtype::I16, &[2], &[0; 4]);
        let fault = error(Weights::open(folder.path()).unwrap().tensor("w", &[2]));
        assert!(fault.detail.contains("I16"), "{}", fault.detail);
    }

    #[test]
    fn faults_name_file_and_tensor() {
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        assert_eq!(error(Weights::open(folder.path())).class, FaultClass::Candidate);
        assert_eq!(error(Weights::open(&folder.path().join("gone"))).class, FaultClass::Infrastructure);

        write(&path, "w", Dtype::F32, &[1], &f32::NAN.to_le_bytes());
        let weights = Weights::open(folder.path()).unwrap();
        let fault = error(weights.tensor("w", &[1]));
        assert_eq!(fault.code, "candidate_nonfinite");
        assert!(fault.detail.contains("`w`") && fault.detail.contains("element 0"), "{}", fault.detail);
        assert!(error(weights.tensor("v", &[1])).detail.contains("`v` is missing"));
        assert!(error(weights.tensor("w", &[2])).detail.contains("shape [1]"));

        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let fault = error(Weights::open(folder.path()));
            assert_eq!(fault.class, FaultClass::Candidate, "{length} bytes: {}", fault.detail);
            assert!(fault.detail.contains("model.safetensors"), "{}", fault.detail);
        }
    }
}
