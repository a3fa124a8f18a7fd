//! A directory in the making: invisible under its final name until it is complete, and never left behind.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::fs::{DirEntry, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Access, AtFlags, OFlags, RenameFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::directory::CONFIG_FILE;
use super::disk::sync_directory;
use super::error::CheckpointError;
use crate::files::is_file_at;

/// What stands between the destination's name and the owner's numbers.
const MARK: &str = ".partial-";
/// How the name of a checkpoint ends that has stepped aside for a new one, after that of the partial directory.
const ASIDE: &str = "old";
/// What stands in the place of the destination's name where the directory is made inside it.
const HIDDEN: &str = ".evomerge";
/// What a new ext4 file system has.
const LOST_AND_FOUND: &str = "lost+found";

/// How a checkpoint gets to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It is made beside it and takes its name: at once.
    Beside,
    /// There is an empty directory that nothing can take the place of (a mount point, one that a link leads to, one in a
    /// folder that is not writable): it is made inside, and its files are moved up one by one, `config.json` last.
    Inside,
}

/// What becomes of a checkpoint that is at the destination already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    /// It stays, and the new one is refused.
    Keep,
    /// The new one takes its place.
    Replace,
}

/// `<destination>.partial-<process>-<count>`, or `<destination>/.evomerge.partial-<process>-<count>`: removed with all
/// its content when dropped. Its owner holds a lock on it,
/// so that what a killed process left behind can be told from what is in use, on any host that shares the file system's
/// locks.
#[derive(Debug)]
pub(super) struct PartialDirectory {
    path: PathBuf,
    way: Way,
    /// Holds the lock.
    _handle: File,
}

impl PartialDirectory {
    /// Makes a new directory that no other process or thread uses, after removing those for the same destination whose
    /// owners are gone.
    pub(super) fn create(destination: &Path, way: Way) -> Result<Self, CheckpointError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let (parent, name) = match way {
            Way::Beside => split(destination)?,
            Way::Inside => (destination.to_owned(), OsStr::new(HIDDEN)),
        };
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
                Ok(Lock::Ours(handle) | Lock::Unsupported(handle)) => return Ok(Self { path, way, _handle: handle }),
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
    pub(super) fn publish(&self, to: &Path, existing: Existing) -> Result<(), CheckpointError> {
        let from = &self.path;
        let failed = |error: Errno| CheckpointError::Write { path: to.to_owned(), source: error.into() };
        if self.way == Way::Inside {
            // Two merges into one folder: the one that holds it fills it, the other one finds it filled.
            let held = File::open(to).map_err(|source| CheckpointError::Write { path: to.to_owned(), source })?;
            let _ = held.lock();
            return if is_vacant(to) { move_up(from, to) } else { Err(exists(to)) };
        }
        if check_destination(to, existing)? != self.way {
            return Err(exists(to));
        }
        if existing == Existing::Replace && to.symlink_metadata().is_ok() {
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
        // One for which the old checkpoint stepped aside is complete: it goes with the old one.
        let is_left = is_partial(&entry.file_name(), name) && !aside_of(&entry.path()).is_dir();
        if is_left {
            remove_ownerless(&entry.path());
        }
    }
}

fn remove_ownerless(directory: &Path) {
    // The lock is held until the directory is gone.
    if let Ok(Lock::Ours(_handle)) = lock(directory) {
        let _ = std::fs::remove_dir_all(directory);
    }
}

/// Puts a checkpoint back at its destination that a process moved aside which was killed before the new one was there.
/// Moves only, so that a writer that is refused afterwards has cost nothing. Best effort.
pub(super) fn restore_replaced(destination: &Path) {
    if destination.symlink_metadata().is_ok() {
        return;
    }
    for aside in asides(destination) {
        // Without locks too: who is between the two steps finds the old checkpoint back, and says that it failed.
        let Ok(Lock::Ours(_handle) | Lock::Unsupported(_handle)) = lock(&aside) else { continue };
        if std::fs::rename(&aside, destination).is_ok() {
            return;
        }
    }
}

/// Removes what killed replacements left beside a destination, once there is a checkpoint that was to replace whatever
/// there was: those that stepped aside, and those for which they did. Best effort.
pub(super) fn remove_replaced(destination: &Path) {
    for aside in asides(destination) {
        let Ok(Lock::Ours(_handle) | Lock::Unsupported(_handle)) = lock(&aside) else { continue };
        let _ = std::fs::remove_dir_all(&aside);
        remove_ownerless(&aside.with_extension(""));
    }
}

/// The checkpoints that stepped aside for a new one at that destination, the last one first.
fn asides(destination: &Path) -> Vec<PathBuf> {
    let Ok((parent, name)) = split(destination) else { return Vec::new() };
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|entry| is_aside(&entry.file_name(), name)).map(|entry| entry.path()).collect();
    found.sort_by_cached_key(|path| Reverse(moved_at(path)));
    found
}

/// When a directory got its name, where nothing else has been done to it since.
fn moved_at(directory: &Path) -> Option<(i64, i64)> {
    directory.symlink_metadata().ok().map(|metadata| (metadata.ctime(), metadata.ctime_nsec()))
}

/// Where the old checkpoint steps aside for that partial directory.
fn aside_of(partial: &Path) -> PathBuf {
    partial.with_added_extension(ASIDE)
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

/// Refuses a destination that exists, unless it is an empty directory, or a checkpoint that may be replaced; and says
/// how one gets there.
pub(super) fn check_destination(destination: &Path, existing: Existing) -> Result<Way, CheckpointError> {
    let Ok(metadata) = destination.symlink_metadata() else {
        return Ok(Way::Beside);
    };
    let refuse = |advice| Err(CheckpointError::Exists { path: destination.to_owned(), advice });
    let fixed = Fixed::find(destination, metadata.is_symlink());
    if destination.is_dir() && fixed.is_none() && is_empty(destination) {
        return Ok(Way::Beside);
    }
    if destination.is_dir() && fixed.is_some() && is_vacant(destination) {
        return Ok(Way::Inside);
    }
    if metadata.is_symlink() && !destination.is_dir() {
        return refuse("it is a link that leads to no folder; remove it or choose another path");
    }
    match fixed {
        Some(fixed) if destination.is_dir() => refuse(fixed.advice()),
        _ if !metadata.is_dir() || !destination.join(CONFIG_FILE).is_file() => refuse(
            "it is not a checkpoint (a directory with config.json), so it is not replaced; remove it or choose another path",
        ),
        _ if existing == Existing::Replace => Ok(Way::Beside),
        _ => Err(exists(destination)),
    }
}

/// Why no other directory can take a directory's place.
#[derive(Clone, Copy)]
enum Fixed {
    Link,
    Mounted,
    /// The current folder, or one above.
    Nameless,
    ParentNotWritable,
}

impl Fixed {
    fn find(directory: &Path, is_link: bool) -> Option<Self> {
        if is_link {
            return Some(Self::Link);
        }
        let Ok((parent, _)) = split(directory) else {
            return Some(Self::Nameless);
        };
        if is_mounted(directory, &parent) {
            return Some(Self::Mounted);
        }
        let is_writable = rustix::fs::access(&parent, Access::WRITE_OK | Access::EXEC_OK).is_ok();
        (!is_writable || is_kept_by_its_owner(directory, &parent)).then_some(Self::ParentNotWritable)
    }

    /// What to do where there is something in it.
    const fn advice(self) -> &'static str {
        match self {
            Self::Link => "it is a link to a folder with something in it; give that folder's own path, or another one",
            Self::Mounted => {
                "it is a mount point with something in it (it may be the rest of a merge that was killed), which cannot be replaced; empty \
                 it, or choose a folder inside it"
            }
            Self::Nameless => "there is something in it; give the name of a new folder",
            Self::ParentNotWritable => {
                "there is something in it, and it cannot be replaced because the folder that it lies in is not writable; \
                 empty it, or choose a folder inside it"
            }
        }
    }
}

/// Whether the folder above (`/tmp`, say) lets nobody but owners rename what lies in it, and this is another one's.
fn is_kept_by_its_owner(directory: &Path, parent: &Path) -> bool {
    const STICKY: u32 = 0o1000;
    let user = rustix::process::geteuid();
    let (Ok(directory), Ok(parent)) = (directory.metadata(), parent.metadata()) else { return false };
    parent.mode() & STICKY != 0 && !user.is_root() && ![directory.uid(), parent.uid()].contains(&user.as_raw())
}

/// Whether something is mounted there: another file system, or another folder of this one.
fn is_mounted(directory: &Path, parent: &Path) -> bool {
    let device = |path: &Path| path.metadata().ok().map(|metadata| metadata.dev());
    let is_root = rustix::fs::statx(rustix::fs::CWD, directory, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    is_root || device(directory) != device(parent)
}

/// Whether there is nothing in a directory but what is none of its owner's: checkpoints in the making (of killed
/// processes, and our own), the folder of a new file system.
fn is_vacant(directory: &Path) -> bool {
    let is_nothing = |entry: std::io::Result<DirEntry>| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            name == LOST_AND_FOUND || is_partial(&name, OsStr::new(HIDDEN))
        })
    };
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.all(is_nothing))
}

/// Whether a name is that of a checkpoint in the making, for a destination of that name.
fn is_partial(found: &OsStr, name: &OsStr) -> bool {
    let numbers = found.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
    let numbers = numbers.and_then(|rest| rest.strip_prefix(MARK.as_bytes())).unwrap_or_default();
    let digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    numbers.split(|&byte| byte == b'-').map(digits).collect::<Vec<_>>() == [true, true]
}

/// Whether a name is that of a checkpoint that stepped aside for a new one, at a destination of that name.
fn is_aside(found: &OsStr, name: &OsStr) -> bool {
    let found = Path::new(found);
    found.extension().is_some_and(|ending| ending == ASIDE)
        && found.file_stem().is_some_and(|stem| is_partial(stem, name))
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

/// Moves the files of a finished directory into the one that it lies in, `config.json` last: without it, nobody takes
/// the others for a model. What cannot be moved leaves nothing there.
fn move_up(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: to.to_owned(), source };
    let entries = std::fs::read_dir(from).and_then(Iterator::collect::<std::io::Result<Vec<_>>>).map_err(failed)?;
    let mut names: Vec<_> = entries.iter().map(DirEntry::file_name).collect();
    names.sort_by_key(|name| (name == CONFIG_FILE, name.clone()));
    let mut moved = Vec::new();
    let mut move_all = || {
        for name in &names {
            if name == CONFIG_FILE {
                sync_directory(to)?;
            }
            let (old, new) = (from.join(name), to.join(name));
            match rename_with(&old, &new, RenameFlags::NOREPLACE) {
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if new.symlink_metadata().is_err() => {
                    std::fs::rename(&old, &new).map_err(failed)?;
                }
                Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => return Err(exists(to)),
                Err(error) => return Err(failed(error.into())),
            }
            moved.push((old, new));
        }
        Ok(())
    };
    let done = move_all();
    if done.is_err() {
        for (old, new) in moved {
            let _ = std::fs::rename(new, old);
        }
    } else {
        let _ = std::fs::remove_dir(from);
    }
    done
}

/// Replaces a directory where the two cannot be exchanged in one step: the old one steps aside, and back on failure.
/// Then it is where an exchange would have put it, in the partial directory. A process that is killed on the way leaves
/// it aside, for [`restore_replaced`] and [`remove_replaced`].
fn replace_in_two_steps(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: to.to_owned(), source };
    let aside = aside_of(from);
    // Held to the end: what is locked is left alone by those who start a checkpoint meanwhile.
    let _held = lock(to);
    std::fs::rename(to, &aside).map_err(failed)?;
    if let Err(source) = std::fs::rename(from, to) {
        let _ = std::fs::rename(&aside, to);
        return Err(failed(source));
    }
    // The new one is in place, whatever becomes of the old one; who replaces it next tries again to remove that.
    if std::fs::rename(&aside, from).is_err() {
        let _ = std::fs::remove_dir_all(&aside);
    }
    Ok(())
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
        let first = PartialDirectory::create(&destination, Way::Beside).unwrap();
        let second = PartialDirectory::create(&destination, Way::Beside).unwrap();
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
                        let partial = PartialDirectory::create(&destination, Way::Beside).unwrap();
                        std::fs::write(partial.path().join("file"), "").unwrap();
                    }
                });
            }
        });
        assert_eq!(entries(folder.path()), [""; 0]);
    }

    #[test]
    fn replacing_in_two_steps_ends_as_an_exchange_does() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("out"), folder.path().join("out.partial-1-1"));
        for (path, file) in [(&old, "old"), (&new, "new")] {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join(file), "").unwrap();
        }
        replace_in_two_steps(&new, &old).unwrap();
        assert_eq!(entries(folder.path()), ["out", "out.partial-1-1"]);
        assert_eq!((entries(&old), entries(&new)), (vec!["new".to_owned()], vec!["old".to_owned()]));
        std::fs::remove_dir_all(&new).unwrap();
        replace_in_two_steps(&new, &old).expect_err("there is no new one");
        assert_eq!(entries(folder.path()), ["out"], "the old one is back");
        assert_eq!(entries(&old), ["new"]);
    }

    #[test]
    fn what_was_killed_between_two_steps_is_put_right() {
        let folder = tempfile::tempdir().unwrap();
        let (out, aside) = (folder.path().join("out"), folder.path().join("out.partial-7-0.old"));
        let make = |path: &Path, content: &str| {
            std::fs::create_dir_all(path).unwrap();
            std::fs::write(path.join(CONFIG_FILE), content).unwrap();
        };
        let others = ["other.partial-7-0.old", "out.old", "out.partial-7-0.new", "out.partial-7.old"];
        others.iter().for_each(|name| make(&folder.path().join(name), "another's"));
        let is_now = |expected: &[&str]| {
            let mut all = [&others[..], expected].concat();
            all.sort_unstable();
            assert_eq!(entries(folder.path()), all);
        };
        let content = || std::fs::read_to_string(out.join(CONFIG_FILE)).unwrap();
        make(&aside, "old");
        let Ok(Lock::Ours(held)) = lock(&aside) else { panic!("nobody else locks it") };
        restore_replaced(&out);
        remove_replaced(&out);
        is_now(&["out.partial-7-0.old"]);
        drop(held);
        restore_replaced(&out);
        is_now(&["out"]);
        assert_eq!(content(), "old", "nothing took its place");
        // Something did: neither that nor a partial directory's sweep touches the older one, or what was to replace it.
        let finished = folder.path().join("out.partial-7-0");
        let left = ["out", "out.partial-7-0", "out.partial-7-0.old"];
        make(&aside, "older");
        make(&finished, "new");
        restore_replaced(&out);
        drop(PartialDirectory::create(&out, Way::Beside).unwrap());
        is_now(&left);
        assert_eq!(content(), "old");
        let Ok(Lock::Ours(held)) = lock(&finished) else { panic!("nobody else locks it") };
        remove_replaced(&out);
        is_now(&left[..2]);
        drop(held);
        make(&aside, "older");
        remove_replaced(&out);
        is_now(&["out"]);
        assert_eq!(content(), "old");
    }

    #[test]
    fn of_several_that_stepped_aside_the_last_one_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let aside = |number: usize| folder.path().join(format!("out.partial-7-{number}.old"));
        for number in [2, 0, 3, 1] {
            std::fs::create_dir(&out).unwrap();
            std::fs::write(out.join(number.to_string()), "").unwrap();
            std::fs::rename(&out, aside(number)).unwrap();
            // Longer than a tick of the clock that file systems take their times from.
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        restore_replaced(&out);
        assert_eq!(entries(&out), ["1"]);
        assert!([2, 0, 3].into_iter().all(|number| aside(number).is_dir()) && !aside(1).exists());
    }

    #[test]
    fn files_are_moved_up_into_a_directory_all_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        std::fs::create_dir(out.join(".evomerge.partial-7-0")).unwrap();
        std::fs::create_dir(out.join("lost+found")).unwrap();
        assert!(is_vacant(out) && !is_empty(out));
        let made = |names: &[&str]| {
            let partial = PartialDirectory::create(out, Way::Inside).unwrap();
            names.iter().for_each(|name| std::fs::write(partial.path().join(name), "new").unwrap());
            partial
        };
        let first = made(&["config.json", "model.safetensors", "z.json"]);
        let second = made(&["config.json", "a.json", "model.safetensors"]);
        std::fs::write(out.join("model.safetensors"), "somebody's").unwrap();
        assert!(!is_vacant(out));
        assert!(matches!(move_up(second.path(), out), Err(CheckpointError::Exists { .. })));
        assert_eq!(entries(second.path()), ["a.json", "config.json", "model.safetensors"]);
        std::fs::remove_file(out.join("model.safetensors")).unwrap();
        drop(second);
        move_up(first.path(), out).unwrap();
        drop(first);
        assert_eq!(entries(out), ["config.json", "lost+found", "model.safetensors", "z.json"]);
    }
}
