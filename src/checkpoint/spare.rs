//! Checkpoints that are not needed any more, kept so that the next one of the same layout is written over their pages.
//!
//! Fresh pages cost more than the merge that fills them. A file is written over only when nobody else has it open or mapped,
//! which the kernel is asked (see [`is_ours_alone`]); otherwise it is unlinked, and its readers keep what they read.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;

use super::error::CheckpointError;
use super::mapping::is_ours_alone;
use super::output::Plan;

/// Directories with weight files to be used again. They lie, under hidden names, in one folder, which must be on the file
/// system of the checkpoints.
#[derive(Debug)]
pub struct SpareCheckpoints {
    folder: PathBuf,
    directories: Mutex<Vec<PathBuf>>,
    count: AtomicU64,
}

impl SpareCheckpoints {
    /// Keeps spare checkpoints in `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), directories: Mutex::default(), count: AtomicU64::new(0) }
    }

    /// Takes a checkpoint away from its path, for good. One that cannot be kept is removed.
    pub fn put(&self, checkpoint: &Path) {
        let spare = self.folder.join(format!(".spare-{}", self.count.fetch_add(1, Ordering::Relaxed)));
        match std::fs::rename(checkpoint, &spare) {
            Ok(()) => self.directories().push(spare),
            Err(_) => {
                let _ = std::fs::remove_dir_all(checkpoint);
            }
        }
    }

    fn directories(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the weight files of a spare checkpoint that has the files of the plan into the directory `to`; `None`: there is
    /// none. Spare checkpoints that do not fit, or that somebody still reads, are removed.
    pub(super) fn take(&self, plan: &Plan, to: &Path) -> Result<Option<Vec<(PathBuf, File)>>, CheckpointError> {
        loop {
            let Some(spare) = self.directories().pop() else { return Ok(None) };
            let files: Option<Vec<File>> =
                plan.files.iter().map(|file| reusable(&spare.join(&file.name), file.size)).collect();
            let moved = files.map(|files| move_all(&spare, to, plan, files)).transpose();
            let _ = std::fs::remove_dir_all(&spare);
            if let Some(moved) = moved? {
                return Ok(Some(moved));
            }
        }
    }
}

fn move_all(from: &Path, to: &Path, plan: &Plan, files: Vec<File>) -> Result<Vec<(PathBuf, File)>, CheckpointError> {
    let moved = plan.files.iter().zip(files).map(|(planned, file)| {
        let path = to.join(&planned.name);
        std::fs::rename(from.join(&planned.name), &path)
            .map_err(|source| CheckpointError::Write { path: path.clone(), source })?;
        Ok((path, file))
    });
    moved.collect()
}

/// Opens a file of that size that has no other name, reader or writer.
fn reusable(path: &Path, size: u64) -> Option<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let fits = metadata.is_file() && metadata.len() == size && metadata.nlink() == 1;
    (fits && is_ours_alone(&file)).then_some(file)
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::super::model::Checkpoint;
    use super::super::output::{OutputFile, OutputTensor};
    use super::super::writer::CheckpointWriter;
    use super::*;

    fn write(spares: &SpareCheckpoints, destination: &Path, elements: usize, byte: u8) -> u64 {
        let tensor = OutputTensor { name: "a.weight".to_owned(), dtype: Dtype::U8, shape: vec![elements] };
        let files = [OutputFile { name: "model.safetensors".to_owned(), tensors: vec![tensor] }];
        let writer = CheckpointWriter::create_over(destination, &files, spares).unwrap();
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
