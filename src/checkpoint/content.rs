//! Content ids of weight files: what a file holds, whatever it is called and wherever it lies.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::error::CheckpointError;
use super::mapping::{FileIdentity, MappedFile, open_regular, read_capped};
use crate::digest::hex;
use crate::files::write_atomically;
use crate::lock::lock;

/// First line of the cache file.
const FORMAT: &str = "evomerge content ids v2";
/// Entries kept in the cache file.
const MAX_ENTRIES: usize = 20_000;
/// Most bytes of a cache file that are read.
const MAX_CACHE: u64 = 8 << 20;
/// Bytes read at a time.
const BLOCK: usize = 1 << 20;
/// A file written this short before it was hashed is not cached: a later write might leave the same modification time.
const SETTLED_NANOSECONDS: i128 = 2_000_000_000;

/// Remembers the sha256 of files by (device, inode, size, times of modification and change), in memory and, where it
/// can, in a small file of the user's cache directory. A cache that cannot be read or written is no error: files are
/// hashed again.
#[derive(Debug, Default)]
pub struct ContentIds {
    known: Mutex<HashMap<FileIdentity, String>>,
    file: Option<PathBuf>,
}

impl ContentIds {
    /// Keeps ids in memory only.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Keeps ids in `$XDG_CACHE_HOME/evomerge/content-ids` (default `~/.cache/evomerge/content-ids`).
    pub fn in_user_cache() -> Self {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        match absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache"))) {
            Some(cache) => Self::in_file(&cache.join("evomerge").join("content-ids")),
            None => Self::in_memory(),
        }
    }

    /// Keeps ids in the file `path`, whose folder is made when there is something to write.
    pub fn in_file(path: &Path) -> Self {
        Self { known: Mutex::new(load(path)), file: Some(path.to_owned()) }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<FileIdentity, String>> {
        // Entries are inserted whole: what a panicking thread left is still valid.
        lock(&self.known)
    }

    fn remember(&self, new: Vec<(FileIdentity, String)>) {
        if new.is_empty() {
            return;
        }
        self.known().extend(new);
        if let Some(path) = &self.file {
            // Others may have added entries since; losing one costs a hash, so no lock is needed.
            let mut merged = load(path);
            merged.extend(self.known().iter().map(|(identity, id)| (*identity, id.clone())));
            // A cache that cannot be written only costs hashes.
            let _ = save(path, &merged);
        }
    }
}

fn load(path: &Path) -> HashMap<FileIdentity, String> {
    let text = read_capped(path, MAX_CACHE).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let mut lines = text.lines();
    if lines.next() != Some(FORMAT) { HashMap::new() } else { lines.filter_map(parse).collect() }
}

fn parse(line: &str) -> Option<(FileIdentity, String)> {
    let mut fields = line.split(' ');
    let identity = FileIdentity {
        device: fields.next()?.parse().ok()?,
        inode: fields.next()?.parse().ok()?,
        size: fields.next()?.parse().ok()?,
        modified: fields.next()?.parse().ok()?,
        changed: fields.next()?.parse().ok()?,
    };
    let id = fields.next().filter(|id| is_sha256(id))?;
    fields.next().is_none().then(|| (identity, id.to_owned()))
}

/// Replaces the cache file in one step. The newest files stay when there are too many.
fn save(path: &Path, entries: &HashMap<FileIdentity, String>) -> std::io::Result<()> {
    let mut entries: Vec<_> = entries.iter().collect();
    entries.sort_by_key(|(identity, _)| (std::cmp::Reverse(identity.modified), **identity));
    let mut text = format!("{FORMAT}\n");
    for (FileIdentity { device, inode, size, modified, changed }, id) in entries.into_iter().take(MAX_ENTRIES) {
        let _ = writeln!(text, "{device} {inode} {size} {modified} {changed} {id}");
    }
    write_atomically(path, text.as_bytes())
}

/// The id of one file.
pub(super) fn single_id(file: &MappedFile, cache: &ContentIds) -> Result<String, CheckpointError> {
    let Hashed { id, to_remember } = file_id(file, cache)?;
    cache.remember(to_remember.map(|identity| (identity, id.clone())).into_iter().collect());
    Ok(id)
}

/// One id for the weight files of a checkpoint; `files` are (name, file) in name order.
pub(super) fn content_id(files: &[(&str, &MappedFile)], cache: &ContentIds) -> Result<String, CheckpointError> {
    let hashed: Vec<Hashed> = files.par_iter().map(|(_, file)| file_id(file, cache)).collect::<Result<_, _>>()?;
    cache.remember(hashed.iter().filter_map(|hashed| Some((hashed.to_remember?, hashed.id.clone()))).collect());
    let mut all = Sha256::new();
    all.update(b"evomerge weights v1");
    for ((name, _), Hashed { id, .. }) in files.iter().zip(&hashed) {
        all.update((name.len() as u64).to_le_bytes());
        all.update(name.as_bytes());
        all.update(id.as_bytes());
    }
    Ok(hex(&all.finalize()))
}

/// One id for small files, by name and content.
pub(super) fn settings_id(files: &[PathBuf]) -> Result<String, CheckpointError> {
    let mut all = Sha256::new();
    all.update(b"evomerge settings v1");
    for path in files {
        let fault = |source| CheckpointError::Read { path: path.clone(), source };
        let id = File::open(path).and_then(|file| sha256(&file)).map_err(fault)?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        all.update((name.len() as u64).to_le_bytes());
        all.update(name);
        all.update(id.as_bytes());
    }
    Ok(hex(&all.finalize()))
}

struct Hashed {
    id: String,
    to_remember: Option<FileIdentity>,
}

fn file_id(file: &MappedFile, cache: &ContentIds) -> Result<Hashed, CheckpointError> {
    file.verify_unchanged()?;
    if let Some(id) = blob_name(file.path()) {
        return Ok(Hashed { id, to_remember: None });
    }
    let identity = file.identity();
    if let Some(id) = cache.known().get(&identity).cloned() {
        return Ok(Hashed { id, to_remember: None });
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos().cast_signed());
    let (open, found) = open_regular(file.path())?;
    if !found.is_unwritten(&identity) {
        return Err(CheckpointError::Changed { path: file.path().to_owned() });
    }
    let id = sha256(&open).map_err(|source| CheckpointError::Read { path: file.path().to_owned(), source })?;
    file.verify_unchanged()?;
    let settled = now - identity.modified > SETTLED_NANOSECONDS;
    Ok(Hashed { id, to_remember: settled.then_some(identity) })
}

/// The name of the blob that a file of a Hugging Face cache links to: the sha256 of its content.
fn blob_name(path: &Path) -> Option<String> {
    let blob = path.canonicalize().ok()?;
    let name = blob.file_name()?.to_str()?;
    (blob.parent()?.file_name()? == "blobs" && is_sha256(name)).then(|| name.to_owned())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn sha256(mut file: &File) -> std::io::Result<String> {
    // Advice only: a file system that knows none is as well.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Sequential);
    let mut block = vec![0; BLOCK];
    let mut hash = Sha256::new();
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(length) => hash.update(&block[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::fixtures::write_model;
    use super::super::model::Checkpoint;
    use super::*;

    fn model(path: &Path, value: f32) -> Checkpoint {
        write_model(path, "{}", &[("w", &[2], &[value, 1.0])]);
        // As if written a minute ago: younger files are not cached.
        let file = File::options().write(true).open(path.join("model.safetensors")).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
        Checkpoint::open(path).unwrap()
    }

    #[test]
    fn the_content_decides_not_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let [one, same, other] = [("a", 1.0), ("b", 1.0), ("c", 2.0)]
            .map(|(name, value)| model(&folder.path().join(name), value).content_id(&ContentIds::in_memory()).unwrap());
        assert_eq!(one, same);
        assert_ne!(one, other);
        assert!(is_sha256(&one));
    }

    #[test]
    fn a_blob_of_the_hub_cache_is_not_hashed() {
        let folder = tempfile::tempdir().unwrap();
        let plain = model(&folder.path().join("plain"), 1.0);
        let (snapshot, blobs) = (folder.path().join("snapshots/00"), folder.path().join("blobs"));
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(&blobs).unwrap();
        let weights = std::fs::read(folder.path().join("plain/model.safetensors")).unwrap();
        let link = |name: &str| {
            std::fs::write(blobs.join(name), &weights).unwrap();
            let _ = std::fs::remove_file(snapshot.join("model.safetensors"));
            std::os::unix::fs::symlink(Path::new("../../blobs").join(name), snapshot.join("model.safetensors"))
                .unwrap();
            std::fs::write(snapshot.join("config.json"), "{}").unwrap();
            Checkpoint::open(&snapshot).unwrap().content_id(&ContentIds::in_memory()).unwrap()
        };
        let expected = plain.content_id(&ContentIds::in_memory()).unwrap();
        let sha256 = hex(&Sha256::digest(&weights));
        assert_eq!(link(&sha256), expected, "the blob's name is the sha256");
        assert_ne!(link(&"0".repeat(64)), expected, "the name is taken at its word");
        assert_eq!(link("etag-of-a-small-file"), expected, "other names are no content ids");
    }

    #[test]
    fn the_cache_is_used_kept_and_never_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache/content-ids");
        let checkpoint = model(&folder.path().join("a"), 1.0);
        let id = checkpoint.content_id(&ContentIds::in_file(&path)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        // A false entry shows that the file is not read again.
        let lie = text.replace(&text[text.len() - 65..], &format!("{}\n", "0".repeat(64)));
        std::fs::write(&path, lie).unwrap();
        assert_ne!(checkpoint.content_id(&ContentIds::in_file(&path)).unwrap(), id);
        for junk in ["junk", "", "evomerge content ids v1\n1 2 3\nx x x x x\n1 2 3 4 zz\n"] {
            std::fs::write(&path, junk).unwrap();
            assert_eq!(checkpoint.content_id(&ContentIds::in_file(&path)).unwrap(), id);
        }
        assert_eq!(checkpoint.content_id(&ContentIds::in_file(Path::new("/proc/no/such"))).unwrap(), id);
    }

    #[test]
    fn a_file_written_just_now_is_not_cached() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = model(&folder.path().join("a"), 1.0);
        let file = File::options().write(true).open(folder.path().join("a/model.safetensors")).unwrap();
        // In the future, as on a server whose clock is ahead: never settled, however slow this test runs.
        file.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
        assert!(matches!(checkpoint.content_id(&ContentIds::in_memory()), Err(CheckpointError::Changed { .. })));
        let cache = ContentIds::in_memory();
        Checkpoint::open(&folder.path().join("a")).unwrap().content_id(&cache).unwrap();
        assert!(cache.known().is_empty());
    }
}
