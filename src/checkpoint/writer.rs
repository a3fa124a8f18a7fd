//! Writes a checkpoint: all bytes from any thread in any order, visible all at once or not at all.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use rustix::fs::{FallocateFlags, RenameFlags};
use rustix::io::Errno;

use super::directory::{CONFIG_FILE, INDEX_FILE, is_plain_name};
use super::error::{CheckpointError, quote};
use super::mapping::open_regular;
use super::output::{OutputFile, Place, Plan, index_json, plan};

/// Room left free for the small files of a checkpoint, in bytes.
const RESERVE: u64 = 64 << 10;

/// A checkpoint in the making, in `<destination>.partial-...` beside its destination.
///
/// The weight files are exactly those that the safetensors library would write for the same tensors and the metadata
/// `{"format": "pt"}`. Dropped without [`Self::finish`], everything is removed again.
#[derive(Debug)]
pub struct CheckpointWriter {
    destination: PathBuf,
    partial: PartialDirectory,
    plan: Plan,
    files: Vec<(PathBuf, File)>,
    written: BTreeMap<String, AtomicU64>,
    durable: bool,
    replace: bool,
}

impl CheckpointWriter {
    /// Starts a checkpoint at `destination`, which must not exist. Its parent directories are made where they are
    /// missing. Disk space for all weights is reserved here, so that a full disk shows now. With `durable` the finished
    /// checkpoint survives a power cut.
    ///
    /// # Errors
    /// The destination exists, there is not enough space, the folder is not writable, or the files break the format
    /// (duplicate names, shapes that overflow, names that leave the folder).
    pub fn create(destination: &Path, files: &[OutputFile], durable: bool) -> Result<Self, CheckpointError> {
        Self::start(destination, files, durable, false)
    }

    /// As [`Self::create`], but [`Self::finish`] replaces what is at the destination: an empty directory, or one that
    /// holds a `config.json`. The old checkpoint stays whole until the new one is.
    ///
    /// # Errors
    /// As [`Self::create`]; also when the destination is anything but a checkpoint.
    pub fn create_replacing(destination: &Path, files: &[OutputFile], durable: bool) -> Result<Self, CheckpointError> {
        Self::start(destination, files, durable, true)
    }

    fn start(destination: &Path, files: &[OutputFile], durable: bool, replace: bool) -> Result<Self, CheckpointError> {
        let invalid = |reason| CheckpointError::Output { path: destination.to_owned(), reason };
        let plan = plan(files).map_err(invalid)?;
        check_destination(destination, replace)?;
        let (parent, name) = split(destination)?;
        std::fs::create_dir_all(&parent).map_err(|source| CheckpointError::Write { path: parent.clone(), source })?;
        let needed = plan.files.iter().fold(RESERVE, |sum, file| sum.saturating_add(file.size));
        check_space(destination, &parent, needed)?;
        let partial = PartialDirectory::create(&parent, &name)?;
        let mut open = Vec::with_capacity(plan.files.len());
        for file in &plan.files {
            let path = partial.path.join(&file.name);
            let handle = create_new(&path)?;
            reserve(&handle, file.size).map_err(|error| match error {
                Errno::NOSPC | Errno::DQUOT => no_space(destination, &parent, needed),
                error => CheckpointError::Write { path: path.clone(), source: error.into() },
            })?;
            let failed = |source| write_error(&path, &parent, file.size, source);
            handle.write_all_at(&file.header, 0).map_err(failed)?;
            open.push((path, handle));
        }
        let written = plan.places.keys().map(|name| (name.clone(), AtomicU64::new(0))).collect();
        Ok(Self { destination: destination.to_owned(), partial, plan, files: open, written, durable, replace })
    }

    /// Where the checkpoint will be.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Writes a part of a tensor: `bytes` from byte `offset` of it on. Any thread, any order; every byte exactly once.
    ///
    /// # Errors
    /// The tensor is unknown, the part does not lie inside it, or the disk refuses.
    pub fn write_at(&self, tensor: &str, offset: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        let length = bytes.len() as u64;
        let (Some(&Place { file, start, length: whole }), Some(written)) =
            (self.plan.places.get(tensor), self.written.get(tensor))
        else {
            return Err(self.invalid(format!("tensor {} was not announced", quote(tensor))));
        };
        if offset.checked_add(length).is_none_or(|end| end > whole) {
            return Err(self.invalid(format!(
                "{length} bytes from byte {offset} on do not fit tensor {} of {whole} bytes",
                quote(tensor)
            )));
        }
        let (path, file) = &self.files[file];
        file.write_all_at(bytes, start + offset)
            .map_err(|source| write_error(path, &self.partial.path, length, source))?;
        written.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Adds a small file (`config.json`, a recipe, a model card).
    ///
    /// # Errors
    /// The name is not a plain file name or is taken, or the disk refuses.
    pub fn put_file(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let (path, mut file) = self.add(name)?;
        let failed = |source| write_error(&path, &self.partial.path, bytes.len() as u64, source);
        file.write_all(bytes).map_err(failed)?;
        self.settle(&path, &file)
    }

    /// Copies a file (a sidecar) under its own name. Links are followed; the copy has this process's ownership and mode.
    ///
    /// # Errors
    /// `source` is not a regular file, its name is taken, or the disk refuses.
    pub fn copy_file(&self, source: &Path) -> Result<(), CheckpointError> {
        let (mut from, identity) = open_regular(source)?;
        let name = source.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (path, mut file) = self.add(name)?;
        std::io::copy(&mut from, &mut file)
            .map_err(|source| write_error(&path, &self.partial.path, identity.size, source))?;
        self.settle(&path, &file)
    }

    fn add(&self, name: &str) -> Result<(PathBuf, File), CheckpointError> {
        if !is_plain_name(name) || name == INDEX_FILE {
            return Err(self.invalid(format!("{} cannot be the name of an added file", quote(name))));
        }
        let path = self.partial.path.join(name);
        let file = create_new(&path)?;
        Ok((path, file))
    }

    fn settle(&self, path: &Path, file: &File) -> Result<(), CheckpointError> {
        if self.durable { sync(path, file) } else { Ok(()) }
    }

    /// Completes the checkpoint and moves it to its destination in one step; the destination's path.
    ///
    /// # Errors
    /// A tensor has not been written completely, the destination exists by now, or the disk refuses; nothing is left
    /// behind then, and a checkpoint that was to be replaced is as it was.
    pub fn finish(self) -> Result<PathBuf, CheckpointError> {
        for (name, written) in &self.written {
            let (written, whole) = (written.load(Ordering::Relaxed), self.plan.places[name].length);
            if written != whole {
                let reason = format!("{written} bytes were written of tensor {}, which has {whole}", quote(name));
                return Err(self.invalid(reason));
            }
        }
        if self.files.len() > 1 || self.plan.files[0].name != super::directory::SINGLE_FILE {
            let path = self.partial.path.join(INDEX_FILE);
            let mut file = create_new(&path)?;
            let json = index_json(&self.plan);
            let failed = |source| write_error(&path, &self.partial.path, json.len() as u64, source);
            file.write_all(json.as_bytes()).map_err(failed)?;
            self.settle(&path, &file)?;
        }
        if self.durable {
            self.files.par_iter().try_for_each(|(path, file)| sync(path, file))?;
            sync_directory(&self.partial.path)?;
        }
        self.publish()?;
        if self.durable {
            sync_directory(&split(&self.destination)?.0)?;
        }
        Ok(self.destination.clone())
    }

    /// Moves the finished directory to its destination.
    fn publish(&self) -> Result<(), CheckpointError> {
        let (from, to) = (&self.partial.path, &self.destination);
        let failed = |error: Errno| CheckpointError::Write { path: to.clone(), source: error.into() };
        check_destination(to, self.replace)?;
        if self.replace && to.symlink_metadata().is_ok() {
            return match rename_with(from, to, RenameFlags::EXCHANGE) {
                // What is in the partial directory now is the old checkpoint; dropping it removes that.
                Ok(()) => Ok(()),
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => replace_in_two_steps(from, to),
                Err(error) => Err(failed(error)),
            };
        }
        match rename_with(from, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST | Errno::NOTEMPTY) => Err(exists(to)),
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                // The file system cannot promise it, but `check_destination` has just seen that nothing is there.
                std::fs::rename(from, to).map_err(|source| CheckpointError::Write { path: to.clone(), source })
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn invalid(&self, reason: String) -> CheckpointError {
        CheckpointError::Output { path: self.destination.clone(), reason }
    }
}

/// A directory that is removed with all its content when dropped, whatever it is by then.
#[derive(Debug)]
struct PartialDirectory {
    path: PathBuf,
}

impl PartialDirectory {
    /// Makes a new directory that no other process or thread uses.
    fn create(parent: &Path, name: &str) -> Result<Self, CheckpointError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{name}.partial-{}-{count}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                // Left by a process of the same number that was killed: not ours to touch.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(CheckpointError::Write { path, source }),
            }
        }
    }
}

impl Drop for PartialDirectory {
    fn drop(&mut self) {
        // Gone already after a successful move; nothing can be done about any other failure here.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Parent and name of the destination.
fn split(destination: &Path) -> Result<(PathBuf, String), CheckpointError> {
    let name = destination.file_name().and_then(|name| name.to_str());
    let Some(name) = name else {
        let source = std::io::Error::other("expected the name of a new directory at the end of the path");
        return Err(CheckpointError::Write { path: destination.to_owned(), source });
    };
    let parent = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((parent, name.to_owned()))
}

fn check_destination(destination: &Path, replace: bool) -> Result<(), CheckpointError> {
    let Ok(metadata) = destination.symlink_metadata() else {
        return Ok(());
    };
    if !replace {
        return Err(exists(destination));
    }
    let empty = || std::fs::read_dir(destination).is_ok_and(|mut entries| entries.next().is_none());
    if metadata.is_dir() && (destination.join(CONFIG_FILE).is_file() || empty()) {
        return Ok(());
    }
    let advice = "it is not a checkpoint (a directory with config.json), so it is not replaced; remove it or choose another path";
    Err(CheckpointError::Exists { path: destination.to_owned(), advice })
}

fn exists(destination: &Path) -> CheckpointError {
    let advice = "choose another path, or ask for it to be replaced (--force)";
    CheckpointError::Exists { path: destination.to_owned(), advice }
}

/// Free bytes for this user on the file system of a directory; `None` where it does not say.
fn available(directory: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(directory).ok()?;
    space.f_bavail.checked_mul(space.f_frsize)
}

fn check_space(destination: &Path, parent: &Path, needed: u64) -> Result<(), CheckpointError> {
    match available(parent) {
        Some(available) if available < needed => {
            Err(CheckpointError::NoSpace { path: destination.to_owned(), needed, available })
        }
        _ => Ok(()),
    }
}

fn no_space(path: &Path, directory: &Path, needed: u64) -> CheckpointError {
    CheckpointError::NoSpace { path: path.to_owned(), needed, available: available(directory).unwrap_or(0) }
}

fn write_error(path: &Path, directory: &Path, needed: u64, source: std::io::Error) -> CheckpointError {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => no_space(path, directory, needed),
        _ => CheckpointError::Write { path: path.to_owned(), source },
    }
}

/// Creates a file that must not exist (a link in its place is not followed), with the mode that the umask leaves.
fn create_new(path: &Path) -> Result<File, CheckpointError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
}

/// Reserves a file's blocks, or at least sets its size where the file system cannot.
fn reserve(file: &File, size: u64) -> Result<(), Errno> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
            Err(Errno::INTR) => {}
            Err(Errno::NOTSUP | Errno::NOSYS | Errno::INVAL) => return rustix::fs::ftruncate(file, size),
            other => return other,
        }
    }
}

fn sync(path: &Path, file: &File) -> Result<(), CheckpointError> {
    file.sync_all().map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
}

fn sync_directory(path: &Path) -> Result<(), CheckpointError> {
    let opened = File::open(path).map_err(|source| CheckpointError::Write { path: path.to_owned(), source })?;
    sync(path, &opened)
}

fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno> {
    rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)
}

/// Replaces a directory where the two cannot be exchanged in one step: the old one steps aside, and back on failure.
fn replace_in_two_steps(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: to.to_owned(), source };
    let aside = from.with_added_extension("old");
    std::fs::rename(to, &aside).map_err(failed)?;
    if let Err(source) = std::fs::rename(from, to) {
        let _ = std::fs::rename(&aside, to);
        return Err(failed(source));
    }
    std::fs::remove_dir_all(&aside).map_err(|source| CheckpointError::Write { path: aside.clone(), source })
}
