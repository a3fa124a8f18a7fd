//! A directory in the making: invisible under its final name until it is complete, and never left behind.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;

use super::directory::CONFIG_FILE;
use super::error::CheckpointError;
use crate::files::is_file_at;

/// What stands between the destination's name and the owner's numbers.
const MARK: &str = ".partial-";

/// `<destination>.partial-<process>-<count>`: removed with all its content when dropped. Its owner holds a lock on it,
/// so that what a killed process left behind can be told from what is in use, on any host that shares the file system's
/// locks.
#[derive(Debug)]
pub(super) struct PartialDirectory {
    path: PathBuf,
    /// Holds the lock.
    _handle: File,
}

impl PartialDirectory {
    /// Makes a new directory that no other process or thread uses, after removing those for the same destination whose
    /// owners are gone.
    pub(super) fn create(destination: &Path) -> Result<Self, CheckpointError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let (parent, name) = split(destination)?;
        std::fs::create_dir_all(&parent).map_err(|source| CheckpointError::Write { path: parent.clone(), source })?;
        sweep(&parent, name);
        loop {
            let count = COUNTER.fetch_add(1, Ordering::Relaxed);
            let mut unique = name.to_owned();
            unique.push(format!("{MARK}{}-{count}", std::process::id()));
            let path = parent.join(unique);
            match std::fs::create_dir(&path) {
                Ok(()) => {}
                // Another process with our number, in another container or on another host.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(source) => return Err(CheckpointError::Write { path, source }),
            }
            match lock(&path) {
                Ok(Lock::Ours(handle) | Lock::Unsupported(handle)) => return Ok(Self { path, _handle: handle }),
                // A sweep came between making and locking and takes the directory away: then the next one.
                Ok(Lock::Taken) => {}
                Err(source) => {
                    let _ = std::fs::remove_dir(&path);
                    return Err(CheckpointError::Write { path, source });
                }
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the finished directory to its destination.
    pub(super) fn publish(&self, to: &Path, replace: bool) -> Result<(), CheckpointError> {
        let from = &self.path;
        let failed = |error: Errno| CheckpointError::Write { path: to.to_owned(), source: error.into() };
        check_destination(to, replace)?;
        if replace && to.symlink_metadata().is_ok() {
            return match rename_with(from, to, RenameFlags::EXCHANGE) {
                // What is in the partial directory now is the old checkpoint; dropping it removes that.
                Ok(()) => Ok(()),
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => replace_in_two_steps(from, to),
                Err(error) => Err(failed(error)),
            };
        }
        match rename_with(from, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            // Onto an empty directory, one is moved in one step.
            Err(Errno::EXIST) if is_empty(to) => std::fs::rename(from, to).map_err(|source| match source.kind() {
                ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => exists(to),
                _ => CheckpointError::Write { path: to.to_owned(), source },
            }),
            Err(Errno::EXIST | Errno::NOTEMPTY) => Err(exists(to)),
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                // The file system cannot promise it, but `check_destination` has just seen that nothing is there.
                std::fs::rename(from, to).map_err(|source| CheckpointError::Write { path: to.to_owned(), source })
            }
            Err(error) => Err(failed(error)),
        }
    }
}

impl Drop for PartialDirectory {
    fn drop(&mut self) {
        // Gone already after a successful move; nothing can be done about any other failure here.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// What came of locking a directory.
enum Lock {
    Ours(File),
    /// Another process owns it, or it is not at its path any more.
    Taken,
    /// The file system has no locks: then nothing is ever swept there, and nothing needs one.
    Unsupported(File),
}

fn lock(path: &Path) -> std::io::Result<Lock> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let handle = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Lock::Taken),
        opened => opened?,
    };
    match handle.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Lock::Taken),
        Err(TryLockError::Error(_)) => return Ok(Lock::Unsupported(handle)),
    }
    // Its owner may have moved it to its destination between our opening and our locking.
    Ok(if is_file_at(&handle, path) { Lock::Ours(handle) } else { Lock::Taken })
}

/// Removes the partial directories of a destination that nobody holds a lock on. Best effort.
fn sweep(parent: &Path, name: &OsStr) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let found = entry.file_name();
        let numbers = found.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
        let numbers = numbers.and_then(|rest| rest.strip_prefix(MARK.as_bytes())).unwrap_or_default();
        let digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
        let ours = numbers.split(|&byte| byte == b'-').map(digits).collect::<Vec<_>>() == [true, true];
        if !ours {
            continue;
        }
        // The lock is held until the directory is gone.
        if let Ok(Lock::Ours(_handle)) = lock(&entry.path()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Parent and name of the destination.
pub(super) fn split(destination: &Path) -> Result<(PathBuf, &OsStr), CheckpointError> {
    let Some(name) = destination.file_name() else {
        let source = std::io::Error::other("expected the name of a new directory at the end of the path");
        return Err(CheckpointError::Write { path: destination.to_owned(), source });
    };
    let parent = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((parent, name))
}

/// Refuses a destination that exists, unless it is an empty directory, or a checkpoint that may be replaced.
pub(super) fn check_destination(destination: &Path, replace: bool) -> Result<(), CheckpointError> {
    let Ok(metadata) = destination.symlink_metadata() else {
        return Ok(());
    };
    if metadata.is_dir() && is_empty(destination) && !is_mounted(destination, &metadata) {
        return Ok(());
    }
    if !replace {
        return Err(exists(destination));
    }
    if metadata.is_dir() && destination.join(CONFIG_FILE).is_file() {
        return Ok(());
    }
    let advice = "it is not a checkpoint (a directory with config.json), so it is not replaced; remove it or choose another path";
    Err(CheckpointError::Exists { path: destination.to_owned(), advice })
}

/// Whether a file system is mounted there: no directory can take its place.
fn is_mounted(directory: &Path, metadata: &Metadata) -> bool {
    let parent = split(directory).ok().and_then(|(parent, _)| parent.metadata().ok());
    parent.is_some_and(|parent| parent.dev() != metadata.dev())
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

fn exists(destination: &Path) -> CheckpointError {
    let advice = "choose another path, or ask for it to be replaced (--force)";
    CheckpointError::Exists { path: destination.to_owned(), advice }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let others =
            ["out.partial-7", "out.partial-7-x", "out.partial-", "other.partial-7-0", "out", "out.partial-1-2-3"];
        for name in others.iter().chain(&["out.partial-7-0", "out.partial-99999-12"]) {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("file"), "").unwrap();
        }
        std::fs::write(folder.path().join("out.partial-8-8"), "a file is none of ours").unwrap();
        let destination = folder.path().join("out");
        let first = PartialDirectory::create(&destination).unwrap();
        let second = PartialDirectory::create(&destination).unwrap();
        assert!(first.path().is_dir() && second.path().is_dir(), "what is in use stays");
        drop((first, second));
        let mut expected = others.to_vec();
        expected.push("out.partial-8-8");
        expected.sort_unstable();
        assert_eq!(entries(folder.path()), expected);
    }

    #[test]
    fn writers_and_sweeps_at_once_never_take_each_others_directory() {
        let folder = tempfile::tempdir().unwrap();
        let destination = folder.path().join("out");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let partial = PartialDirectory::create(&destination).unwrap();
                        std::fs::write(partial.path().join("file"), "").unwrap();
                    }
                });
            }
        });
        assert_eq!(entries(folder.path()), [""; 0]);
    }

    #[test]
    fn replacing_in_two_steps_leaves_the_new_one_only() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("out"), folder.path().join("out.partial-1-1"));
        std::fs::create_dir(&old).unwrap();
        std::fs::create_dir(&new).unwrap();
        std::fs::write(new.join("new"), "").unwrap();
        replace_in_two_steps(&new, &old).unwrap();
        assert_eq!(entries(folder.path()), ["out"]);
        replace_in_two_steps(&new, &old).expect_err("there is no new one");
        assert_eq!(entries(folder.path()), ["out"], "the old one is back");
        assert_eq!(entries(&old), ["new"]);
    }
}
