//! Files and space on disk.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::error::CheckpointError;
use super::mapping::is_in_memory;
use crate::files::sync_entries;

/// Free bytes for this user on the file system of a directory; `None` where it does not say.
pub fn available_space(directory: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(directory).ok().filter(|space| space.f_blocks > 0)?;
    space.f_bavail.checked_mul(space.f_frsize)
}

/// Refuses an output of `needed` bytes that the file system of `parent` has no room for.
pub(super) fn check_space(destination: &Path, parent: &Path, needed: u64) -> Result<(), CheckpointError> {
    match available_space(parent) {
        Some(available) if available < needed => {
            Err(CheckpointError::NoSpace { path: destination.to_owned(), needed, available })
        }
        _ => Ok(()),
    }
}

/// The error of a full disk.
pub(super) fn no_space(path: &Path, directory: &Path, needed: u64) -> CheckpointError {
    CheckpointError::NoSpace { path: path.to_owned(), needed, available: available_space(directory).unwrap_or(0) }
}

/// The error of a failed write of `needed` bytes to a file in `directory`.
pub(super) fn write_error(path: &Path, directory: &Path, needed: u64, source: std::io::Error) -> CheckpointError {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => no_space(path, directory, needed),
        _ => refused(path, source),
    }
}

/// The error of a file that cannot be opened or written; the disk is not to blame where too many files are open.
fn refused(path: &Path, source: std::io::Error) -> CheckpointError {
    let path = path.to_owned();
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE | Errno::NFILE) => CheckpointError::TooManyFiles { path, source },
        _ => CheckpointError::Write { path, source },
    }
}

/// Creates a file that must not exist (a link in its place is not followed), with the mode that the umask leaves.
pub(super) fn create_new(path: &Path) -> Result<File, CheckpointError> {
    OpenOptions::new().write(true).create_new(true).open(path).map_err(|source| refused(path, source))
}

/// Reserves a file's blocks, or at least sets its size where the file system cannot.
///
/// A file in memory only gets its size: its pages would be cleared here, by one thread, to be filled a moment later.
pub(super) fn reserve(file: &File, size: u64) -> Result<(), Errno> {
    if is_in_memory(file) {
        return rustix::fs::ftruncate(file, size);
    }
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
            Err(Errno::INTR) => {}
            Err(Errno::NOTSUP | Errno::NOSYS | Errno::INVAL) => return rustix::fs::ftruncate(file, size),
            other => return other,
        }
    }
}

/// Waits until a file is on the disk.
pub(super) fn sync(path: &Path, file: &File) -> Result<(), CheckpointError> {
    file.sync_all().map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
}

/// Waits until a directory's entries are on the disk, as far as its file system can.
pub(super) fn sync_directory(path: &Path) -> Result<(), CheckpointError> {
    let opened = File::open(path).map_err(|source| refused(path, source))?;
    sync_entries(&opened).map_err(|source| CheckpointError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_open_files_are_no_full_disk() {
        let error = |errno: Errno| write_error(Path::new("shard"), Path::new("."), 1, errno.into()).to_string();
        assert!(error(Errno::MFILE).contains("cannot open shard") && error(Errno::MFILE).contains("ulimit -n"));
        assert!(error(Errno::NOSPC).contains("not enough disk space"));
        assert!(error(Errno::ACCESS).starts_with("cannot write shard"));
    }
}
