//! Writes a checkpoint: all bytes from any thread in any order, visible all at once or not at all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use rustix::io::Errno;

use super::directory::{INDEX_FILE, SINGLE_FILE, is_plain_name};
use super::disk::{check_space, create_new, no_space, reserve, sync, sync_directory, write_error};
use super::error::{CheckpointError, quote};
use super::mapping::{open_regular, start_writing};
use super::output::{OutputFile, OutputPlan, Place, PlannedFile, index_json, plan};
use super::partial::{Existing, PartialDirectory, Way, check_destination, remove_replaced, restore_replaced, split};
use super::spare::{OpenFile, SpareCheckpoints};

/// Room left free for the small files of a checkpoint, in bytes.
const RESERVE: u64 = 64 << 10;

/// What a new checkpoint may replace at its destination, and whether it is durable: a durable checkpoint survives a
/// power cut once it is finished.
#[derive(Clone, Copy)]
pub enum WriteMode<'a> {
    /// At the destination there may be nothing, or an empty directory.
    New {
        /// Whether the checkpoint survives a power cut; a search's candidates need not.
        durable: bool,
    },
    /// A checkpoint at the destination (a directory with a `config.json`) is replaced. It stays whole until the new one
    /// is complete.
    Replace {
        /// Whether the checkpoint survives a power cut.
        durable: bool,
    },
    /// A checkpoint at the destination is replaced, and the new one is not durable. It is written over the pages of a
    /// spare checkpoint of the same layout where there is one.
    Over(&'a SpareCheckpoints),
}

impl WriteMode<'_> {
    /// The mode of durable output, which takes the place of a checkpoint only if `replace` says so.
    pub const fn durable(replace: bool) -> Self {
        if replace { Self::Replace { durable: true } } else { Self::New { durable: true } }
    }
}

impl Default for WriteMode<'_> {
    fn default() -> Self {
        Self::New { durable: false }
    }
}

/// A checkpoint in the making, in `<destination>.partial-...` beside its destination; inside it where that is an empty
/// directory that nothing can take the place of.
///
/// The weight files are exactly those that the safetensors library would write for the same tensors and the metadata
/// `{"format": "pt"}`. Dropped without [`Self::finish`], everything is removed again.
#[derive(Debug)]
pub struct CheckpointWriter {
    destination: PathBuf,
    /// Directories that get a new entry: the destination's parent, and those above it where parents were missing.
    entries: Vec<PathBuf>,
    partial: PartialDirectory,
    plan: OutputPlan,
    files: Vec<OpenFile>,
    /// Where the files go when the checkpoint is not needed any more.
    spares: Option<SpareCheckpoints>,
    written: BTreeMap<String, AtomicU64>,
    /// Whether it has to survive a power cut.
    durable: bool,
    existing: Existing,
}

impl CheckpointWriter {
    /// Starts a checkpoint at `destination`, whose parent directories are made where they are missing. `mode` says what
    /// may be there. Disk space for all weights is looked for here, and reserved on disks, so that a full disk shows
    /// now.
    ///
    /// # Errors
    /// There is something at the destination that `mode` does not replace, there is not enough space, the folder is not
    /// writable, or the files break the format (duplicate names, shapes that overflow, names that leave the folder).
    pub fn create(destination: &Path, files: &[OutputFile], mode: WriteMode<'_>) -> Result<Self, CheckpointError> {
        let (durable, existing, spares) = match mode {
            WriteMode::New { durable } => (durable, Existing::Keep, None),
            WriteMode::Replace { durable } => (durable, Existing::Replace, None),
            WriteMode::Over(spares) => (false, Existing::Replace, Some(spares)),
        };
        let invalid = |reason| CheckpointError::Output { path: destination.to_owned(), reason };
        let plan = plan(files).map_err(invalid)?;
        // Without a separator at its end: with one, a link's name is that of what it leads to.
        let destination = &destination.components().collect::<PathBuf>();
        restore_replaced(destination);
        let way = check_destination(destination, existing)?;
        let entries = match way {
            Way::Beside => directories_that_change(destination)?,
            Way::Inside => vec![destination.clone()],
        };
        let partial = PartialDirectory::create(destination, way)?;
        let spare = spares.map(|spares| spares.take(&plan, partial.path())).transpose()?.flatten();
        let open = match spare {
            Some(files) => files,
            None => create_files(destination, &partial, &plan)?,
        };
        for (open, file) in open.iter().zip(&plan.files) {
            let failed = |source| write_error(&open.path, partial.path(), file.size, source);
            open.file.write_all_at(&file.header, 0).map_err(failed)?;
        }
        let written = plan.places.keys().map(|name| (name.clone(), AtomicU64::new(0))).collect();
        Ok(Self {
            destination: destination.to_owned(),
            entries,
            partial,
            plan,
            files: open,
            spares: spares.cloned(),
            written,
            durable,
            existing,
        })
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
        let OpenFile { path, file, pages } = &self.files[file];
        if !pages.as_ref().is_some_and(|pages| pages.write_at(start + offset, bytes)) {
            file.write_all_at(bytes, start + offset)
                .map_err(|source| write_error(path, self.partial.path(), self.unwritten(), source))?;
        }
        if self.durable {
            // So that little is left to wait for at the end.
            start_writing(file, start + offset, length);
        }
        written.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Whether parts of a tensor that are written at the same time do not wait for each other: a file system takes one
    /// write at a time to a file, the pages of a spare file any number.
    pub fn writes_in_parallel(&self, tensor: &str) -> bool {
        let place = self.plan.places.get(tensor);
        place.and_then(|place| self.files.get(place.file)).is_some_and(|open| open.pages.is_some())
    }

    /// Bytes of tensors that are still to be written.
    fn unwritten(&self) -> u64 {
        let places = self.plan.places.values().zip(self.written.values());
        places.map(|(place, written)| place.length.saturating_sub(written.load(Ordering::Relaxed))).sum()
    }

    /// Adds a small file (`config.json`, a recipe, a model card).
    ///
    /// # Errors
    /// The name is not a plain file name or is taken, or the disk refuses.
    pub fn put_file(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let (path, mut file) = self.add(name)?;
        let failed = |source| write_error(&path, self.partial.path(), bytes.len() as u64, source);
        file.write_all(bytes).map_err(failed)?;
        self.settle(&path, &file)
    }

    /// Copies a file (a sidecar) under its own name. Links are followed; the copy has this process's ownership and
    /// mode.
    ///
    /// # Errors
    /// `source` is not a regular file, its name is taken, or the disk refuses.
    pub fn copy_file(&self, source: &Path) -> Result<(), CheckpointError> {
        let (mut from, identity) = open_regular(source)?;
        let name = source.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (path, mut file) = self.add(name)?;
        std::io::copy(&mut from, &mut file)
            .map_err(|source| write_error(&path, self.partial.path(), identity.size, source))?;
        self.settle(&path, &file)
    }

    fn add(&self, name: &str) -> Result<(PathBuf, File), CheckpointError> {
        if !is_plain_name(name) || name == INDEX_FILE {
            return Err(self.invalid(format!("{} cannot be the name of an added file", quote(name))));
        }
        let path = self.partial.path().join(name);
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
    /// behind then, and a checkpoint that was to be replaced is as it was. Only where the very last step fails, making
    /// the move itself durable, the checkpoint is in place.
    pub fn finish(mut self) -> Result<PathBuf, CheckpointError> {
        for ((name, place), written) in self.plan.places.iter().zip(self.written.values()) {
            let (written, whole) = (written.load(Ordering::Relaxed), place.length);
            if written != whole {
                let reason = format!("{written} bytes were written of tensor {}, which has {whole}", quote(name));
                return Err(self.invalid(reason));
            }
        }
        if self.files.len() > 1 || self.plan.files[0].name != SINGLE_FILE {
            let path = self.partial.path().join(INDEX_FILE);
            let mut file = create_new(&path)?;
            let json = index_json(&self.plan);
            let failed = |source| write_error(&path, self.partial.path(), json.len() as u64, source);
            file.write_all(json.as_bytes()).map_err(failed)?;
            self.settle(&path, &file)?;
        }
        if self.durable {
            self.files.par_iter().try_for_each(|open| sync(&open.path, &open.file))?;
            sync_directory(self.partial.path())?;
        }
        self.partial.publish(&self.destination, self.existing)?;
        if let Some(spares) = &self.spares {
            spares.keep_open(&self.destination, std::mem::take(&mut self.files));
        }
        if self.durable {
            self.entries.iter().try_for_each(|directory| sync_directory(directory))?;
        }
        if self.existing == Existing::Replace {
            remove_replaced(&self.destination);
        }
        Ok(self.destination.clone())
    }

    fn invalid(&self, reason: String) -> CheckpointError {
        CheckpointError::Output { path: self.destination.clone(), reason }
    }
}

/// New files of the planned sizes.
fn create_files(
    destination: &Path,
    partial: &PartialDirectory,
    plan: &OutputPlan,
) -> Result<Vec<OpenFile>, CheckpointError> {
    let needed = plan.files.iter().fold(RESERVE, |sum, file| sum.saturating_add(file.size));
    check_space(destination, partial.path(), needed)?;
    let create = |file: &PlannedFile| {
        let path = partial.path().join(&file.name);
        let handle = create_new(&path)?;
        reserve(&handle, file.size).map_err(|error| match error {
            Errno::NOSPC | Errno::DQUOT => no_space(destination, partial.path(), needed),
            error => CheckpointError::Write { path: path.clone(), source: error.into() },
        })?;
        Ok(OpenFile { path, file: handle, pages: None })
    };
    plan.files.iter().map(create).collect()
}

/// The destination's parent, and above it every directory up to the first that is there already.
fn directories_that_change(destination: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let (parent, _) = split(destination)?;
    let mut directories = Vec::new();
    for directory in parent.ancestors() {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        directories.push(directory.to_owned());
        if directory.is_dir() {
            break;
        }
    }
    Ok(directories)
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
