//! Statistics of large tensors in a file beside the run, so that a search that goes on after a stop does not read whole
//! models again for numbers it had.
//!
//! What is kept are numbers of a few bytes (thresholds, L1 factors, norms, dot products), keyed by a digest of
//! everything that they follow from: content ids of the models, names of the tensors, and the question. The file is a
//! cache and no record: one that is damaged, or written under other definitions, is left aside, and the numbers are
//! computed again. It is replaced as a whole, and ends in its own sha256.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use sha2::{Digest as _, Sha256};

use super::sparsify::{MersenneMask, MersenneStream, PhiloxMask, Sparsifier};
use super::statistics::TensorKey;
use super::tensor::TILE;
use crate::checkpoint::Checkpoint;
use crate::files::write_atomically;
use crate::lock::lock;

/// Raised when a number that is kept would be computed another way: a sum in another order, a mask by another rule.
const FORMAT: &[u8] = b"evomerge statistics v2\n";
/// Tensors with fewer elements are not worth it: their numbers are computed in less than a millisecond.
const LARGE: u64 = 1 << 20;
/// Most records that are kept. At this number, new ones are not taken in: records that are used again come from the
/// first candidates.
const MAX_RECORDS: usize = 1 << 17;
/// Most words of a record: a longer value is not kept.
const MAX_WORDS: usize = 64;
/// Most bytes of a file that are read.
const MAX_BYTES: u64 = 128 << 20;
const DIGEST: usize = 32;

type Key = [u8; 16];

/// What a statistic is of, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) kind: &'static str,
    pub(crate) tensors: Vec<TensorKey>,
    pub(crate) numbers: Vec<u64>,
    /// Words of its value.
    pub(crate) words: usize,
}

/// Content id of a model, and name and elements of its tensors in order of names.
struct Contents {
    id: String,
    tensors: Vec<(String, u64)>,
}

struct Records {
    values: HashMap<Key, Vec<u64>>,
    changed: bool,
}

/// The file of a run, and what is in it.
pub(crate) struct StatisticsFile {
    path: PathBuf,
    models: Vec<Contents>,
    definitions: [u8; DIGEST],
    records: Mutex<Records>,
    /// Held while the file is written, so that no older state is written over a newer one.
    writing: Mutex<()>,
}

impl StatisticsFile {
    /// Reads the file `path`, which need not be there. `models` are the merger's with their content ids, in its order;
    /// the second value says why a file was left aside.
    pub(crate) fn open<'a>(
        path: &Path,
        models: impl IntoIterator<Item = (String, &'a Checkpoint)>,
    ) -> (Self, Option<String>) {
        let contents = |(id, checkpoint): (String, &Checkpoint)| {
            let tensors = checkpoint.tensors().iter();
            Contents { id, tensors: tensors.map(|(name, info)| (name.clone(), info.elements() as u64)).collect() }
        };
        let definitions = definitions();
        let (values, fault) = match load(path, &definitions) {
            Ok(values) => (values, None),
            Err(reason) => (HashMap::new(), Some(reason)),
        };
        let file = Self {
            path: path.to_owned(),
            models: models.into_iter().map(contents).collect(),
            definitions,
            records: Mutex::new(Records { values, changed: false }),
            writing: Mutex::new(()),
        };
        (file, fault)
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // Records are inserted whole: what a panicking thread left is still valid.
        lock(&self.records)
    }

    /// How many records there are.
    pub(crate) fn len(&self) -> usize {
        self.records().values.len()
    }

    pub(crate) fn find(&self, identity: &Identity) -> Option<Vec<u64>> {
        let key = self.key(identity)?;
        self.records().values.get(&key).filter(|words| words.len() == identity.words).cloned()
    }

    pub(crate) fn put(&self, identity: &Identity, words: Vec<u64>) {
        let Some(key) = self.key(identity).filter(|_| words.len() == identity.words && words.len() <= MAX_WORDS) else {
            return;
        };
        let mut records = self.records();
        if records.values.len() < MAX_RECORDS && records.values.insert(key, words).is_none() {
            records.changed = true;
        }
    }

    /// Writes the file where there is something new.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn save(&self) -> std::io::Result<()> {
        let _writing = lock(&self.writing);
        let bytes = {
            let mut records = self.records();
            if !records.changed {
                return Ok(());
            }
            records.changed = false;
            encode(&self.definitions, &records.values)
        };
        let written = write_atomically(&self.path, &bytes);
        if written.is_err() {
            // They are still new.
            self.records().changed = true;
        }
        written
    }

    /// `None`: not kept, as its tensors are small, or merged in part.
    fn key(&self, identity: &Identity) -> Option<Key> {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(identity.kind.as_bytes());
        for tensor in &identity.tensors {
            let model = self.models.get(tensor.model as usize)?;
            let (name, elements) = model.tensors.get(tensor.tensor as usize)?;
            // Of a tensor that is merged in part, keys would not tell how much.
            if *elements < LARGE || *elements != tensor.elements {
                return None;
            }
            part(model.id.as_bytes());
            part(name.as_bytes());
        }
        for number in &identity.numbers {
            part(&number.to_le_bytes());
        }
        hash.finalize()[..16].try_into().ok()
    }
}

/// What the numbers in a file depend on besides their keys: this program's version, and masks as it draws them. These
/// are drawn, so that a change of their definition cannot be forgotten.
fn definitions() -> [u8; DIGEST] {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    let mut stream = MersenneStream::new(1);
    let elements = 8 * TILE as u64;
    for mask in [
        Sparsifier::Philox(PhiloxMask::new(1, "content", "tensor", 0.3)),
        Sparsifier::Mersenne(MersenneMask::take(&mut stream, elements, 0.3)),
    ] {
        let mut cursor = mask.begin::<f32>(0);
        for first in (0..elements).step_by(TILE) {
            let mut values = [1.0_f32; TILE];
            mask.subtract(&mut cursor, first, &mut values, &[0.0; TILE], |value| value);
            hash.update(values.map(|value| u8::from(value != 0.0)));
        }
    }
    hash.finalize().into()
}

fn encode(definitions: &[u8; DIGEST], values: &HashMap<Key, Vec<u64>>) -> Vec<u8> {
    let mut bytes = [FORMAT, definitions].concat();
    let mut sorted: Vec<_> = values.iter().collect();
    sorted.sort_unstable();
    for (key, words) in sorted {
        bytes.extend(key);
        bytes.push(words.len() as u8);
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    bytes
}

/// The records of a file; nothing where there is none. `Err`: why it is left aside.
fn load(path: &Path, definitions: &[u8; DIGEST]) -> Result<HashMap<Key, Vec<u64>>, String> {
    let unreadable = |error: std::io::Error| format!("it cannot be read: {error}");
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(error) => return Err(unreadable(error)),
        Ok(metadata) if !metadata.is_file() => return Err("it is no regular file".into()),
        Ok(metadata) if metadata.len() > MAX_BYTES => return Err(format!("it has {} bytes", metadata.len())),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    let damaged = || "it is damaged".to_owned();
    let Some((body, digest)) = bytes.split_last_chunk::<DIGEST>() else { return Err(damaged()) };
    let Some(body) = body.strip_prefix(FORMAT) else {
        return Err("it is no file of statistics that this version knows".into());
    };
    if Sha256::digest(&bytes[..bytes.len() - DIGEST])[..] != digest[..] {
        return Err(damaged());
    }
    match body.strip_prefix(definitions) {
        Some(records) => decode(records).ok_or_else(damaged),
        None => Err("it was written by another version, or masks were drawn in another way".into()),
    }
}

fn decode(mut bytes: &[u8]) -> Option<HashMap<Key, Vec<u64>>> {
    let mut values = HashMap::new();
    while let Some((key, rest)) = bytes.split_first_chunk::<16>() {
        let (count, rest) = rest.split_first()?;
        let (words, rest) = rest.split_at_checked(8 * usize::from(*count))?;
        bytes = rest;
        values.insert(*key, words.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect());
        if values.len() > MAX_RECORDS {
            return None;
        }
    }
    bytes.is_empty().then_some(values)
}
