//! A candidate's tensors, read from one or several safetensors files and widened to float32.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::Deserialize;

use super::fault;
use crate::evaluate::Fault;

/// No real header comes near this; a larger one is damage.
const LARGEST_HEADER: u64 = 100_000_000;

struct Shard {
    path: PathBuf,
    file: File,
    /// Where the tensors' bytes begin.
    data: u64,
}

/// The open files of a checkpoint.
pub(super) struct Weights {
    shards: Vec<Shard>,
    tensors: HashMap<String, (usize, TensorInfo)>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists, and checks every header.
    ///
    /// # Errors
    /// An infrastructure fault for a file that cannot be read, a candidate fault for one that is damaged.
    pub(super) fn open(folder: &Path) -> Result<Self, Fault> {
        let mut weights = Self { shards: Vec::new(), tensors: HashMap::new() };
        let single = folder.join("model.safetensors");
        if single.exists() {
            weights.add(single)?;
            return Ok(weights);
        }
        let index_path = folder.join("model.safetensors.index.json");
        let text = std::fs::read_to_string(&index_path).map_err(|error| match error.kind() {
            ErrorKind::NotFound if folder.is_dir() => fault::invalid(format!(
                "{} has neither model.safetensors nor model.safetensors.index.json",
                folder.display()
            )),
            _ => fault::unreadable(format!("{} cannot be read: {error}", index_path.display())),
        })?;
        let index: Index = serde_json::from_str(&text)
            .map_err(|error| fault::invalid(format!("{}: {error}", index_path.display())))?;
        for file in index.weight_map.values().collect::<BTreeSet<_>>() {
            let inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
            if !inside || file.is_empty() {
                return Err(fault::invalid(format!("{} leaves its folder: `{file}`", index_path.display())));
            }
            weights.add(folder.join(file))?;
        }
        Ok(weights)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), Fault> {
        let unreadable =
            |error: std::io::Error| fault::unreadable(format!("{} cannot be read: {error}", path.display()));
        let damaged = |what: String| fault::invalid(format!("{} is damaged: {what}", path.display()));
        let mut file = File::open(&path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let mut header = vec![0; 8];
        read_exact(&mut file, &mut header, length, &path)?;
        let size = header.iter().rev().fold(0_u64, |size, byte| (size << 8) | u64::from(*byte));
        if size > LARGEST_HEADER || size > length - 8 {
            return Err(damaged(format!("its header claims {size} bytes of {length}")));
        }
        header.resize(8 + size as usize, 0);
        read_exact(&mut file, &mut header[8..], length, &path)?;
        let metadata: Metadata =
            serde_json::from_slice(&header[8..]).map_err(|error| damaged(format!("its header: {error}")))?;
        let data = 8 + size;
        let expected = data + metadata.data_len() as u64;
        if length != expected {
            return Err(damaged(format!("it has {length} bytes, its header describes {expected}")));
        }
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            if self.tensors.insert(name.clone(), (shard, info.clone())).is_some() {
                return Err(damaged(format!("tensor `{name}` is in an earlier shard too")));
            }
        }
        self.shards.push(Shard { path, file, data });
        Ok(())
    }

    /// Reads the tensor `name`.
    ///
    /// # Errors
    /// As [`Self::elements`].
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, Fault> {
        Tensor::from_vec(self.elements(name, shape)?, shape, &Device::Cpu).map_err(fault::tensor)
    }

    /// Reads the tensor `name` of one dimension.
    ///
    /// # Errors
    /// As [`Self::elements`].
    pub(super) fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, Fault> {
        self.elements(name, &[length])
    }

    /// Reads the elements of the tensor `name` as float32.
    ///
    /// # Errors
    /// A candidate fault when it is missing, has another shape or type than expected, or a value that is not finite.
    fn elements(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Fault> {
        let (shard, info) =
            self.tensors.get(name).ok_or_else(|| fault::invalid(format!("tensor `{name}` is missing")))?;
        if info.shape != shape {
            return Err(fault::invalid(format!(
                "tensor `{name}` has shape {:?}; config.json makes it {shape:?}",
                info.shape
            )));
        }
        let shard = &mut self.shards[*shard];
        let (begin, end) = info.data_offsets;
        let mut bytes = vec![0; end - begin];
        shard
            .file
            .seek(SeekFrom::Start(shard.data + begin as u64))
            .and_then(|_| shard.file.read_exact(&mut bytes))
            .map_err(|error| fault::unreadable(format!("{} cannot be read: {error}", shard.path.display())))?;
        let values = widen(&bytes, info.dtype).map_err(|reason| fault::invalid(format!("tensor `{name}` {reason}")))?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(fault::nonfinite(format!("tensor `{name}` holds {} at element {at}", values[at])));
        }
        Ok(values)
    }
}

fn read_exact(file: &mut File, buffer: &mut [u8], length: u64, path: &Path) -> Result<(), Fault> {
    file.read_exact(buffer).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => {
            fault::invalid(format!("{} is damaged: it ends after {length} bytes, inside its header", path.display()))
        }
        _ => fault::unreadable(format!("{} cannot be read: {error}", path.display())),
    })
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
        let folder = tempfile::tempdir().unwrap();
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        assert_eq!(error(Weights::open(folder.path())).class, FaultClass::Candidate);
        assert_eq!(error(Weights::open(&folder.path().join("gone"))).class, FaultClass::Infrastructure);

        write(&path, "w", Dtype::F32, &[1], &f32::NAN.to_le_bytes());
        let mut weights = Weights::open(folder.path()).unwrap();
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

    #[test]
    fn an_index_may_not_leave_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["../model.safetensors", "/etc/passwd", ""] {
            let index = serde_json::json!({"weight_map": {"w": file}}).to_string();
            std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
            let fault = error(Weights::open(folder.path()));
            assert!(fault.detail.contains("leaves its folder"), "{}", fault.detail);
        }
    }
}
