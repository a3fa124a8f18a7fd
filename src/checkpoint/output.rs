//! What a checkpoint to be written consists of: tensors, the files they go to, and the exact bytes of each header.

use std::collections::{BTreeMap, HashMap, HashSet};

use safetensors::tensor::{Metadata, TensorInfo as StoredInfo};

use super::directory::{SINGLE_FILE, is_shard_name};
use super::error::quote;
use super::header::{LENGTH_BYTES, MAX_RANK, METADATA_KEY, byte_length};
use super::model::Shard;
use crate::natural_order::natural_order;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputTensor {
    /// Its name in the output.
    pub name: String,
    /// Element type to be stored.
    pub dtype: safetensors::Dtype,
    /// Row-major; empty for a scalar.
    pub shape: Vec<usize>,
}

impl OutputTensor {
    /// Bytes that it takes; `None` when its shape overflows all counting.
    pub fn byte_len(&self) -> Option<usize> {
        byte_length(self.dtype, &self.shape)
    }
}

/// A weight file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFile {
    /// `model.safetensors`, or `model-0000k-of-0000N.safetensors`.
    pub name: String,
    /// In any order: the format fixes the order in the file.
    pub tensors: Vec<OutputTensor>,
}

/// Splits tensors into files of at most `max_bytes` of weights: in the order given, a new file where the next tensor
/// would not fit, a file of its own for a tensor that is larger than all. One file is called `model.safetensors`.
pub fn shard_layout(tensors: Vec<OutputTensor>, max_bytes: u64) -> Vec<OutputFile> {
    let mut files: Vec<Vec<OutputTensor>> = vec![Vec::new()];
    let mut filled = 0u64;
    for tensor in tensors {
        let bytes = tensor.byte_len().map_or(u64::MAX, |bytes| bytes as u64);
        if filled.saturating_add(bytes) > max_bytes && files.last().is_some_and(|file| !file.is_empty()) {
            files.push(Vec::new());
            filled = 0;
        }
        filled = filled.saturating_add(bytes);
        if let Some(file) = files.last_mut() {
            file.push(tensor);
        }
    }
    named(files)
}

/// Keeps another checkpoint's layout: a tensor goes to the file that holds the tensor of its name there.
///
/// Other tensors (layers that the output has and the base has not, a head that was untied) go where the known tensor
/// before them goes, in natural order of names (`layers.9` before `layers.10`); those before all known ones go with the
/// first. Files keep their names unless some are left empty: then all are numbered anew.
pub fn base_layout(base: &[Shard], mut tensors: Vec<OutputTensor>) -> Vec<OutputFile> {
    let places: HashMap<&str, usize> = base
        .iter()
        .enumerate()
        .flat_map(|(index, shard)| shard.tensors.iter().map(move |name| (name.as_str(), index)))
        .collect();
    tensors.sort_by(|a, b| natural_order(&a.name, &b.name));
    let mut place = tensors.iter().find_map(|tensor| places.get(tensor.name.as_str()).copied()).unwrap_or(0);
    let mut files: Vec<Vec<OutputTensor>> = base.iter().map(|_| Vec::new()).collect();
    if files.is_empty() {
        files.push(Vec::new());
    }
    for tensor in tensors {
        place = places.get(tensor.name.as_str()).copied().unwrap_or(place);
        files[place].push(tensor);
    }
    if !base.is_empty() && files.iter().all(|tensors| !tensors.is_empty()) {
        let named = files.into_iter().zip(base);
        return named.map(|(tensors, shard)| OutputFile { name: shard.file.clone(), tensors }).collect();
    }
    named(files.into_iter().filter(|tensors| !tensors.is_empty()).collect())
}

/// Names files as transformers does.
fn named(files: Vec<Vec<OutputTensor>>) -> Vec<OutputFile> {
    let count = files.len();
    files
        .into_iter()
        .enumerate()
        .map(|(index, tensors)| {
            let name = match count {
                1 => SINGLE_FILE.to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
            };
            OutputFile { name, tensors }
        })
        .collect()
}

/// Where a tensor's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of the file.
    pub file: usize,
    /// First byte in the file.
    pub start: u64,
    /// Bytes of the tensor.
    pub length: u64,
}

/// The files of an output, checked, with every byte that is not a weight.
#[derive(Debug)]
pub(super) struct OutputPlan {
    /// Name, header with its length in front, and size of each file.
    pub files: Vec<PlannedFile>,
    pub places: BTreeMap<String, Place>,
    /// Elements of all tensors.
    pub elements: u128,
    /// Bytes of all tensors.
    pub tensor_bytes: u128,
}

#[derive(Debug)]
pub(super) struct PlannedFile {
    pub name: String,
    pub header: Vec<u8>,
    pub size: u64,
}

/// Lays out the files; the reason when no valid checkpoint can be made of them.
pub(super) fn plan(files: &[OutputFile]) -> Result<OutputPlan, String> {
    if files.is_empty() {
        return Err("a checkpoint without any weight file was asked for".to_owned());
    }
    let mut plan = OutputPlan { files: Vec::new(), places: BTreeMap::new(), elements: 0, tensor_bytes: 0 };
    let mut names = HashSet::new();
    for (index, file) in files.iter().enumerate() {
        if !is_shard_name(&file.name) {
            return Err(format!("{} is not the name of a .safetensors file", quote(&file.name)));
        }
        if !names.insert(file.name.as_str()) {
            return Err(format!("two weight files are called {}", quote(&file.name)));
        }
        plan_file(&mut plan, index, file)?;
    }
    let single = files.len() == 1 && files[0].name == SINGLE_FILE;
    if !single && names.contains(SINGLE_FILE) {
        return Err(format!("a sharded checkpoint cannot have a file called {SINGLE_FILE}"));
    }
    Ok(plan)
}

fn plan_file(plan: &mut OutputPlan, index: usize, file: &OutputFile) -> Result<(), String> {
    let mut tensors: Vec<&OutputTensor> = file.tensors.iter().collect();
    // Widest type first, so that every tensor is aligned to its own width; then by name.
    tensors.sort_by(|left, right| right.dtype.cmp(&left.dtype).then_with(|| left.name.cmp(&right.name)));
    let mut entries = Vec::with_capacity(tensors.len());
    let mut end = 0usize;
    for tensor in tensors {
        let named = quote(&tensor.name);
        if tensor.name == METADATA_KEY {
            return Err(format!("{named} cannot be a tensor's name"));
        }
        if tensor.shape.len() > MAX_RANK {
            return Err(format!("tensor {named} has more than {MAX_RANK} dimensions"));
        }
        let length = tensor.byte_len();
        let next = length.and_then(|length| end.checked_add(length));
        let (Some(length), Some(next)) = (length, next) else {
            return Err(format!("tensor {named} of shape {:?} is too large for any file", tensor.shape));
        };
        let place = Place { file: index, start: end as u64, length: length as u64 };
        if plan.places.insert(tensor.name.clone(), place).is_some() {
            return Err(format!("tensor {named} appears twice"));
        }
        plan.elements += tensor.shape.iter().map(|&extent| extent as u128).product::<u128>();
        plan.tensor_bytes += length as u128;
        entries.push((
            tensor.name.clone(),
            StoredInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (end, next) },
        ));
        end = next;
    }
    let header = header(entries)?;
    let data_start = header.len() as u64;
    let size = data_start.checked_add(end as u64).ok_or_else(|| format!("{} is too large", quote(&file.name)))?;
    for tensor in &file.tensors {
        if let Some(place) = plan.places.get_mut(&tensor.name) {
            place.start += data_start;
        }
    }
    plan.files.push(PlannedFile { name: file.name.clone(), header, size });
    Ok(())
}

/// Length and header as the safetensors library writes them, with the metadata that transformers writes.
fn header(entries: Vec<(String, StoredInfo)>) -> Result<Vec<u8>, String> {
    let text = |error: &dyn std::fmt::Display| format!("cannot make a safetensors header: {error}");
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(metadata), entries).map_err(|error| text(&error))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| text(&error))?;
    json.resize(json.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

/// `model.safetensors.index.json` as transformers writes it: keys sorted, two spaces, ASCII only, a line end.
pub(super) fn index_json(plan: &OutputPlan) -> String {
    let mut text = format!(
        "{{\n  \"metadata\": {{\n    \"total_parameters\": {},\n    \"total_size\": {}\n  }},\n  \"weight_map\": {{",
        plan.elements, plan.tensor_bytes
    );
    let mut separator = "\n";
    for (name, place) in &plan.places {
        text.push_str(separator);
        separator = ",\n";
        text.push_str("    ");
        push_ascii(&mut text, name);
        text.push_str(": ");
        push_ascii(&mut text, &plan.files[place.file].name);
    }
    text.push_str("\n  }\n}\n");
    text
}

/// A JSON string with everything outside ASCII escaped, as Python's `json` does.
fn push_ascii(text: &mut String, name: &str) {
    use std::fmt::Write as _;

    for character in serde_json::Value::from(name).to_string().chars() {
        if character.is_ascii() && character != '\u{7f}' {
            text.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tensors(names: &[&str]) -> Vec<OutputTensor> {
        let tensor =
            |name: &&str| OutputTensor { name: (*name).to_owned(), dtype: safetensors::Dtype::U8, shape: vec![10] };
        names.iter().map(tensor).collect()
    }

    fn shard(file: &str, names: &[&str]) -> Shard {
        Shard { file: file.to_owned(), tensors: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    fn shape(files: &[OutputFile]) -> Vec<(&str, Vec<&str>)> {
        files
            .iter()
            .map(|file| (file.name.as_str(), file.tensors.iter().map(|tensor| tensor.name.as_str()).collect()))
            .collect()
    }

    #[test]
    fn shards_are_filled_in_order() {
        let files = shard_layout(tensors(&["d", "a", "c"]), 20);
        let expected =
            [("model-00001-of-00002.safetensors", vec!["d", "a"]), ("model-00002-of-00002.safetensors", vec!["c"])];
        assert_eq!(shape(&files), expected);
        assert_eq!(shape(&shard_layout(tensors(&["d", "a"]), 20)), [("model.safetensors", vec!["d", "a"])]);
        assert_eq!(shard_layout(tensors(&["d", "a", "c"]), 1).len(), 3, "a tensor larger than a shard has its own");
        assert_eq!(shape(&shard_layout(vec![], 20)), [("model.safetensors", vec![])]);
    }

    #[test]
    fn the_base_layout_is_kept_and_new_layers_go_with_their_neighbours() {
        let base = [
            shard("model-00001-of-00002.safetensors", &["embed.weight", "layers.0.w", "layers.1.w"]),
            shard("model-00002-of-00002.safetensors", &["layers.2.w", "norm.weight"]),
        ];
        let all = ["norm.weight", "layers.10.w", "layers.2.w", "layers.1.w", "layers.0.w", "embed.weight", "a.new"];
        let expected = [
            ("model-00001-of-00002.safetensors", vec!["a.new", "embed.weight", "layers.0.w", "layers.1.w"]),
            ("model-00002-of-00002.safetensors", vec!["layers.2.w", "layers.10.w", "norm.weight"]),
        ];
        assert_eq!(shape(&base_layout(&base, tensors(&all))), expected);
        let some = base_layout(&base, tensors(&["layers.2.w"]));
        assert_eq!(shape(&some), [("model.safetensors", vec!["layers.2.w"])], "empty files are left out");
        assert_eq!(shape(&base_layout(&[], tensors(&["x"]))), [("model.safetensors", vec!["x"])]);
        let single = [shard("model.safetensors", &["x"])];
        assert_eq!(shape(&base_layout(&single, tensors(&["y"]))), [("model.safetensors", vec!["y"])]);
    }

    proptest! {
        #[test]
        fn layouts_lose_no_tensor(names in prop::collection::btree_set("[a-c.0-9]{1,6}", 1..12), known in 0usize..12, limit in 0u64..60) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let (first, second) = names[..known.min(names.len())].split_at(known.min(names.len()) / 2);
            let base = [shard("model-00001-of-00002.safetensors", second), shard("model-00002-of-00002.safetensors", first)];
            for files in [base_layout(&base, tensors(&names)), shard_layout(tensors(&names), limit)] {
                let mut found: Vec<&str> =
                    files.iter().flat_map(|file| file.tensors.iter().map(|tensor| tensor.name.as_str())).collect();
                found.sort_unstable();
                prop_assert_eq!(&found, &names);
                prop_assert!(plan(&files).is_ok());
            }
        }
    }
}
