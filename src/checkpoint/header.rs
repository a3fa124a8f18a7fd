//! The header of a safetensors file, read and checked before anything else is believed.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. The checks are those of the reference implementation,
//! and also: no name twice, at most [`MAX_RANK`] dimensions, only element types that can be merged or copied.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::dtype::Dtype;
use super::error::{CheckpointError, quote};

/// Longest header that the format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the length in front of the header.
pub(super) const LENGTH_BYTES: u64 = 8;
/// Most dimensions a tensor may have: PyTorch's own limit.
pub(super) const MAX_RANK: usize = 64;
/// The one key of a header that is not a tensor.
pub(super) const METADATA_KEY: &str = "__metadata__";

/// A stored tensor: its type, its shape and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// As in the header (`model.layers.0.mlp.up_proj.weight`), or as other models call it ([`super::align_names`]).
    pub name: String,
    /// Element type as stored.
    pub dtype: safetensors::Dtype,
    /// Row-major; empty for a scalar.
    pub shape: Vec<usize>,
    /// Index into the checkpoint's shards.
    pub(super) shard: usize,
    /// First byte in the file.
    pub(super) start: usize,
    /// Bytes in the file.
    pub(super) length: usize,
    /// Element type of the base's tensor, where an adapter's takes its place.
    pub(super) replaces: Option<safetensors::Dtype>,
}

impl TensorInfo {
    /// Number of elements: the product of the shape, 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The element type where it is one that merges; `None` for integers and truth values, which are copied.
    pub fn float(&self) -> Option<Dtype> {
        Dtype::from_stored(self.dtype)
    }

    /// The type that the model keeps the tensor in: as stored, or where an adapter's tensor takes the place of the
    /// base's, that of the base's.
    pub fn model_dtype(&self) -> safetensors::Dtype {
        self.replaces.unwrap_or(self.dtype)
    }

    /// Bytes of the tensor.
    pub fn byte_len(&self) -> usize {
        self.length
    }
}

/// Bytes of a tensor, `None` when they cannot be counted or are not whole.
pub(super) fn byte_length(dtype: safetensors::Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    (bits % 8 == 0).then_some(bits / 8)
}

/// Reads and checks the header of an open file of `size` bytes; tensors in the order of their bytes, offsets from the
/// start of the file.
pub(super) fn read_header(
    path: &Path,
    file: &File,
    size: u64,
    shard: usize,
) -> Result<Vec<TensorInfo>, CheckpointError> {
    let invalid = |reason: String| CheckpointError::Header { path: path.to_owned(), reason };
    let failed = |source| CheckpointError::Read { path: path.to_owned(), source };
    if size < LENGTH_BYTES {
        return Err(invalid(format!("{size} bytes are too few for a header; is the download complete?")));
    }
    let mut prefix = [0; LENGTH_BYTES as usize];
    file.read_exact_at(&mut prefix, 0).map_err(failed)?;
    let length = u64::from_le_bytes(prefix);
    if length > size - LENGTH_BYTES {
        return Err(invalid(format!(
            "a header of {length} bytes does not fit a file of {size} bytes; is the download complete?"
        )));
    }
    if length > MAX_HEADER {
        return Err(invalid(format!("a header of {length} bytes is longer than the format's limit of {MAX_HEADER}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, LENGTH_BYTES).map_err(failed)?;
    let text = std::str::from_utf8(&header).map_err(|error| invalid(format!("the header is not UTF-8: {error}")))?;
    let Entries(entries) = serde_json::from_str(text)
        .map_err(|error| invalid(format!("the header is not as the format says: {error}")))?;
    drop(header);
    locate(path, entries, LENGTH_BYTES + length, size, shard)
}

/// Checks types, shapes and offsets, which must cover the data without a gap or an overlap.
fn locate(
    path: &Path,
    entries: BTreeMap<String, Entry>,
    data_start: u64,
    size: u64,
    shard: usize,
) -> Result<Vec<TensorInfo>, CheckpointError> {
    let mut entries: Vec<(String, Entry)> = entries.into_iter().collect();
    // Stable: empty tensors at one place stay in name order.
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let data = size - data_start;
    let mut end = 0u64;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, Entry { dtype, shape: Shape(shape), data_offsets: (first, last) }) in entries {
        let wrong = |reason| CheckpointError::Tensor { path: path.to_owned(), tensor: quote(&name), reason };
        check_supported(dtype).map_err(wrong)?;
        let length =
            byte_length(dtype, &shape).ok_or_else(|| wrong(format!("a shape of {shape:?} overflows all counting")))?;
        if last < first {
            return Err(wrong(format!("its bytes end at {last}, before they start at {first}")));
        }
        if last > data {
            return Err(wrong(format!(
                "its bytes end at {last}, but the file has only {data} bytes of data; is the download complete?"
            )));
        }
        if last - first != length as u64 {
            return Err(wrong(format!(
                "{dtype} of shape {shape:?} takes {length} bytes, but the header gives it {}",
                last - first
            )));
        }
        if first != end {
            let what = if first < end { "overlap those of another tensor" } else { "leave a hole before them" };
            return Err(wrong(format!("its bytes ({first} to {last}) {what}")));
        }
        end = last;
        let start = usize::try_from(data_start + first).map_err(|error| wrong(error.to_string()))?;
        tensors.push(TensorInfo { name, dtype, shape, shard, start, length, replaces: None });
    }
    if end != data {
        return Err(CheckpointError::Header {
            path: path.to_owned(),
            reason: format!("the tensors take {end} bytes, but {data} bytes of data follow the header"),
        });
    }
    Ok(tensors)
}

/// Refuses the element types that a merge can neither compute with nor copy with meaning.
fn check_supported(dtype: safetensors::Dtype) -> Result<(), String> {
    use safetensors::Dtype as Stored;

    match dtype {
        Stored::F16 | Stored::BF16 | Stored::F32 | Stored::F64 => Ok(()),
        Stored::BOOL | Stored::U8 | Stored::I8 | Stored::I16 | Stored::U16 => Ok(()),
        Stored::I32 | Stored::U32 | Stored::I64 | Stored::U64 => Ok(()),
        other => Err(format!(
            "element type {other} is not supported; expected F16, BF16, F32 or F64 (or integers, which are copied): \
             use the model's unquantized weights, or convert them to bfloat16 first"
        )),
    }
}

/// One tensor as the header says it, unchecked.
#[derive(serde::Deserialize)]
struct Entry {
    dtype: safetensors::Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// A shape of bounded length, so that a header cannot ask for much more memory than it takes itself.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Extents;
        impl<'de> Visitor<'de> for Extents {
            type Value = Shape;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(formatter, "a shape of at most {MAX_RANK} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(extent) = access.next_element()? {
                    if shape.len() == MAX_RANK {
                        return Err(A::Error::custom(format_args!("a shape has more than {MAX_RANK} dimensions")));
                    }
                    shape.push(extent);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Extents)
    }
}

/// The header's entries by name; `__metadata__` is checked and left out.
struct Entries(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Entries;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Entries, A::Error> {
                let mut entries = BTreeMap::new();
                let mut metadata = None;
                while let Some(name) = access.next_key::<String>()? {
                    let twice = if name == METADATA_KEY {
                        metadata.replace(access.next_value::<Option<Texts>>()?).is_some()
                    } else {
                        let entry = access
                            .next_value()
                            .map_err(|error| A::Error::custom(format_args!("tensor {}: {error}", quote(&name))))?;
                        entries.insert(name.clone(), entry).is_some()
                    };
                    if twice {
                        return Err(A::Error::custom(format_args!("{} appears twice", quote(&name))));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// `__metadata__`: text to text, not kept.
struct Texts;

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Texts;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("`__metadata__` from text to text")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Texts, A::Error> {
                while access.next_key::<IgnoredAny>()?.is_some() {
                    access.next_value::<String>()?;
                }
                Ok(Texts)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}
