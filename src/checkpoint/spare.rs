//! Checkpoints that are not needed any more, kept so that the next one of the same layout is written over their pages.
//!
//! Fresh pages cost more than the merge that fills them, and so does mapping them anew: a file on the RAM disk that has
//! been written over once stays open and mapped here. A file is written over only when nobody else has it open or
//! mapped, which the kernel is asked (see [`is_ours_alone`]); otherwise it is unlinked, and its readers keep what they
//! read.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::OFlags;

use super::error::CheckpointError;
use super::mapping::{WritableFile, is_ours_alone};
use super::output::OutputPlan;
use crate::lock::lock;

/// A weight file that is being written.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Its pages, where they are there already.
    pub(super) pages: Option<WritableFile>,
}

/// A checkpoint that nobody needs any more.
#[derive(Debug)]
struct Spare {
    directory: PathBuf,
    /// Its files, where this process has written them and still has them open.
    files: Vec<OpenFile>,
}

#[derive(Debug, Default)]
struct Stock {
    spares: Vec<Spare>,
    /// Open files of checkpoints that are in use, by the checkpoint's path.
    in_use: HashMap<PathBuf, Vec<OpenFile>>,
}

/// Directories with weight files to be used again. They lie, under hidden names, in one folder, which must be on the
/// file system of the checkpoints. Clones share what they keep.
#[derive(Clone, Debug)]
pub struct SpareCheckpoints {
    folder: PathBuf,
    stock: Arc<Mutex<Stock>>,
    count: Arc<AtomicU64>,
}

impl SpareCheckpoints {
    /// Keeps spare checkpoints in `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), stock: Arc::default(), count: Arc::default() }
    }

    /// Takes a checkpoint away from its path, for good. One that cannot be kept is removed.
    pub fn put(&self, checkpoint: &Path) {
        let files = self.stock().in_use.remove(checkpoint).unwrap_or_default();
        let directory = self.folder.join(format!(".spare-{}", self.count.fetch_add(1, Ordering::Relaxed)));
        match std::fs::rename(checkpoint, &directory) {
            Ok(()) => self.stock().spares.push(Spare { directory, files }),
            Err(_) => {
                let _ = std::fs::remove_dir_all(checkpoint);
            }
        }
    }

    /// Keeps the files of a checkpoint open until it is put here, so that their pages stay mapped.
    pub(super) fn keep_open(&self, checkpoint: &Path, files: Vec<OpenFile>) {
        // The pages of a file that has just been written for the first time are mapped when it is written over.
        if files.iter().all(|file| file.pages.is_some()) {
            self.stock().in_use.insert(checkpoint.to_owned(), files);
        }
    }

    fn stock(&self) -> std::sync::MutexGuard<'_, Stock> {
        lock(&self.stock)
    }

    /// Moves the weight files of a spare checkpoint that has the files of the plan into the directory `to`; `None`:
    /// there is none. Spare checkpoints that do not fit, or that somebody still reads, are removed.
    pub(super) fn take(&self, plan: &OutputPlan, to: &Path) -> Result<Option<Vec<OpenFile>>, CheckpointError> {
        loop {
            let Some(spare) = self.stock().spares.pop() else { return Ok(None) };
            let Spare { directory, files } = spare;
            let mut files: HashMap<PathBuf, OpenFile> =
                files.into_iter().filter_map(|file| Some((file.path.file_name()?.into(), file))).collect();
            let reused = plan.files.iter().map(|planned| {
                let path = directory.join(&planned.name);
                match files.remove(Path::new(&planned.name)) {
                    Some(open) => is_reusable(&open.file, planned.size).then_some(OpenFile { path, ..open }),
                    None => reopen(path, planned.size),
                }
            });
            let moved = reused.collect::<Option<Vec<_>>>().map(|files| move_all(to, files)).transpose();
            let _ = std::fs::remove_dir_all(&directory);
            if let Some(moved) = moved? {
                return Ok(Some(moved));
            }
        }
    }
}

fn move_all(to: &Path, files: Vec<OpenFile>) -> Result<Vec<OpenFile>, CheckpointError> {
    let moved = files.into_iter().map(|open| {
        let path = to.join(open.path.file_name().unwrap_or_default());
        std::fs::rename(&open.path, &path).map_err(|source| CheckpointError::Write { path: path.clone(), source })?;
        Ok(OpenFile { path, ..open })
    });
    moved.collect()
}

/// Opens a file that can be used again.
fn reopen(path: PathBuf, size: u64) -> Option<OpenFile> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).ok()?;
    if !is_reusable(&file, size) {
        return None;
    }
    let pages = WritableFile::new(&file, size);
    Some(OpenFile { path, file, pages })
}

/// Whether the file has that size, and no other name, reader or writer.
fn is_reusable(file: &File, size: u64) -> bool {
    let fits = |metadata: Metadata| metadata.is_file() && metadata.len() == size && metadata.nlink() == 1;
    file.metadata().is_ok_and(fits) && is_ours_alone(file)
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::super::model::Checkpoint;
    use super::super::output::{OutputFile, OutputTensor};
    use super::super::writer::{CheckpointWriter, WriteMode};
    use super::*;

    fn write(spares: &SpareCheckpoints, destination: &Path, elements: usize, byte: u8) -> u64 {
        let tensor = OutputTensor { name: "a.weight".to_owned(), dtype: Dtype::U8, shape: vec![elements] };
        let files = [OutputFile { name: "model.safetensors".to_owned(), tensors: vec![tensor] }];
        let writer = CheckpointWriter::create(destination, &files, WriteMode::Over(spares)).unwrap();
        writer.put_file("config.json", b"{}").unwrap();
        writer.write_at("a.weight", 0, &vec![byte; elements]).unwrap();
        writer.finish().unwrap();
        let checkpoint = Checkpoint::open(destination).unwrap();
        assert_eq!(checkpoint.bytes("a.weight"), Some(&*vec![byte; elements]));
        std::fs::metadata(destination.join("model.safetensors")).unwrap().ino()
    }

    fn entries(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn files_that_nobody_reads_are_written_over_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let spares = SpareCheckpoints::in_folder(folder.path());
        let first = write(&spares, &path("one"), 100, 1);
        // Here and on every other file system that can tell.
        let can_tell = is_ours_alone(&File::options().write(true).open(path("one/model.safetensors")).unwrap());
        spares.put(&path("one"));
        assert!(!path("one").exists());
        // A reader of the first candidate's path holds the file in every way there is, one after the other.
        let second = write(&spares, &path("two"), 100, 2);
        assert_eq!(first == second, can_tell);
        assert_eq!(entries(folder.path()), 1, "nothing is left of the spare one");

        let reader = Checkpoint::open(&path("two")).unwrap();
        spares.put(&path("two"));
        let third = write(&spares, &path("three"), 100, 3);
        assert_ne!(second, third);
        assert_eq!(reader.bytes("a.weight"), Some(&[2; 100][..]), "a reader keeps what it reads");

        let open = File::open(path("three/model.safetensors")).unwrap();
        spares.put(&path("three"));
        assert_ne!(write(&spares, &path("four"), 100, 4), third);
        drop(open);

        std::fs::hard_link(path("four/model.safetensors"), path("link")).unwrap();
        spares.put(&path("four"));
        write(&spares, &path("five"), 100, 5);
        assert_eq!(std::fs::read(path("link")).unwrap().last(), Some(&4));
    }

    #[test]
    fn another_layout_gets_files_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let spares = SpareCheckpoints::in_folder(folder.path());
        write(&spares, &path("one"), 100, 1);
        spares.put(&path("one"));
        write(&spares, &path("two"), 200, 2);
        assert_eq!(entries(folder.path()), 1);
        spares.put(&path("nowhere"));
        write(&spares, &path("three"), 200, 3);
    }
}
