//! A run's folder: where its files are, and who may write them.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::SearchError;
use crate::files::{is_file_at, place_of, sweep_unfinished};
use crate::ledger::{Ledger, LedgerError, event};

const LOCK: &str = "run.lock";
/// Times that the system's locks are read before a run counts as nobody's.
const LOOKS: usize = 3;
/// What the frozen copy of a run file says of itself.
pub(super) const FROZEN: &str = "# Frozen by evomerge when the run started.";

/// `results/NAME/`, locked by this process.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Device and inode of the folder.
    place: (u64, u64),
    /// Held as long as the run is ours.
    lock: File,
}

impl Drop for RunFolder {
    /// A start that was refused leaves nothing. Where the folder was moved away, another run may have its path by now.
    fn drop(&mut self) {
        if self.is_in_place() && is_vacant(&self.path) {
            let _ = std::fs::remove_file(self.path.join(LOCK));
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

impl RunFolder {
    /// Creates the folder if needed and locks it; a second process on the same run is refused.
    ///
    /// # Errors
    /// [`SearchError::Write`] where the folder cannot be made, [`SearchError::InUse`].
    pub fn lock(results: &Path, name: &str) -> Result<Self, SearchError> {
        let path = results.join(name);
        let fault = |path: &Path, source| SearchError::Write { path: path.to_path_buf(), source };
        std::fs::create_dir_all(&path).map_err(|source| fault(&path, source))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|source| fault(&lock_path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let owner = Self::owner(&path).map_or(String::new(), |owner| format!(" (process {owner})"));
                return Err(SearchError::InUse { name: name.to_string(), owner });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(fault(&lock_path, source)),
        }
        // Another process may have moved the folder aside between the opening and the lock.
        if !is_file_at(&lock, &lock_path) {
            return Err(SearchError::InUse { name: name.to_string(), owner: String::new() });
        }
        let place = place_of(&std::fs::metadata(&path).map_err(|source| fault(&path, source))?);
        let folder = Self { path, place, lock };
        folder.write_owner().map_err(|source| fault(&lock_path, source))?;
        [folder.path.clone(), folder.path.join("best")].iter().for_each(|path| sweep_unfinished(path));
        Ok(folder)
    }

    fn write_owner(&self) -> std::io::Result<()> {
        let mut lock = &self.lock;
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", std::process::id())
    }

    /// Whether a living process holds the lock of the run in `path`. Looks without taking the lock, which a search that
    /// starts at that moment would find taken.
    pub fn is_locked(path: &Path) -> bool {
        let Ok(metadata) = std::fs::metadata(path.join(LOCK)) else { return false };
        let owner = Self::owner(path).unwrap_or_default();
        // A look may miss a lock: where others go away between two reads, the list moves on.
        (0..LOOKS).any(|_| system_locks().lines().any(|line| is_lock_of(line, &metadata, &owner)))
    }

    /// When a process took the run in `path` for the last time, by the clock of the file system.
    ///
    /// # Errors
    /// There is no lock, or the file system keeps no times.
    pub fn held_since(path: &Path) -> std::io::Result<SystemTime> {
        std::fs::metadata(path.join(LOCK))?.modified()
    }

    /// The number of the process that has the run in `path`, or had it last; `None`: nobody left one.
    pub fn owner(path: &Path) -> Option<String> {
        let text = std::fs::read_to_string(path.join(LOCK)).ok()?;
        let owner = text.trim();
        (!owner.is_empty()).then(|| owner.to_owned())
    }

    /// Refuses to go on where the folder was moved or replaced meanwhile: results would go to another run's folder, or
    /// to one without a ledger.
    ///
    /// # Errors
    /// [`SearchError::Moved`].
    pub fn check_place(&self) -> Result<(), SearchError> {
        if std::fs::metadata(&self.path).is_ok_and(|there| place_of(&there) == self.place) {
            return Ok(());
        }
        Err(SearchError::Moved { folder: self.path.clone() })
    }

    /// Whether folder and lock at the path are the ones that this process has.
    fn is_in_place(&self) -> bool {
        self.check_place().is_ok() && is_file_at(&self.lock, &self.path.join(LOCK))
    }

    /// Where the run's results are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where evaluators may keep request files and the like.
    pub fn scratch(&self) -> PathBuf {
        self.path.join("evaluator")
    }

    /// Statistics of whole tensors that a later start need not compute again.
    pub fn statistics(&self) -> PathBuf {
        self.path.join("statistics.bin")
    }

    /// Where its ledger is.
    pub fn ledger(&self) -> PathBuf {
        Self::ledger_in(&self.path)
    }

    /// The frozen copy of the run file.
    pub fn run_file(&self) -> PathBuf {
        self.path.join("run.toml")
    }

    /// Refuses a folder with the results of a run whose ledger is gone: a search would begin anew and write over them.
    /// (The frozen run file is written after the ledger's first facts.)
    ///
    /// # Errors
    /// [`SearchError::BadData`].
    pub fn refuse_without_ledger(&self) -> Result<(), SearchError> {
        let ledger = self.ledger();
        let is_there = !Ledger::is_blank(&ledger);
        // A run file without the note is the user's own.
        let is_frozen = std::fs::read_to_string(self.run_file()).is_ok_and(|text| text.contains(FROZEN));
        if is_there || !is_frozen {
            return Ok(());
        }
        Err(SearchError::BadData(format!(
            "{} has the results of a run, but its ledger {} is {}: put it back to continue, with the ledger.sqlite-wal that was beside it, or \
             start anew with --fresh, which moves the old folder aside",
            self.path.display(),
            ledger.display(),
            if ledger.exists() { "empty" } else { "gone" }
        )))
    }

    /// The ledger of the run in `folder`.
    pub fn ledger_in(folder: &Path) -> PathBuf {
        folder.join("ledger.sqlite")
    }

    /// The verdict of the run in `folder`.
    pub fn verdict_in(folder: &Path) -> PathBuf {
        folder.join("verdict.json")
    }
}

/// Whether a line of `/proc/locks` (proc_locks(5)) is a lock on this file, which the process `owner` wrote its number to.
///
/// Btrfs and overlays show another device there than `stat` does: then it is the file with this inode that this owner
/// has locked.
fn is_lock_of(line: &str, file: &std::fs::Metadata, owner: &str) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let words: Vec<&str> = line.split_whitespace().skip_while(|word| *word != "FLOCK").collect();
    let ["FLOCK", _, _, pid, place, ..] = words[..] else { return false };
    let Some((device, inode)) = place.rsplit_once(':') else { return false };
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    inode.parse() == Ok(file.ino()) && (device == format!("{major:02x}:{minor:02x}") || pid == owner)
}

/// Whether a folder holds nothing, or nothing but a lock: all that is left of a start that came to nothing.
fn is_vacant(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == LOCK))
}

/// A folder for a run that begins anew, and where the run that made room for it is.
#[derive(Debug)]
pub struct SetAside {
    /// The folder of the new run; nobody else had the run in between.
    pub folder: RunFolder,
    /// Where the old run is now; `None`: there was none.
    pub old: Option<PathBuf>,
}

impl SetAside {
    /// Moves the run in `folder`, that of `name` in `results`, to the first free `NAME.1`, `NAME.2`, ..., and puts a new
    /// folder in its place.
    ///
    /// # Errors
    /// [`SearchError::Moved`], or [`SearchError::Write`] where the run cannot be moved: it stays where it is.
    /// [`SearchError::LeftAside`] where it was moved, and another process had its place before the new run.
    pub fn of(mut folder: RunFolder, results: &Path, name: &str) -> Result<Self, SearchError> {
        folder.check_place()?;
        if is_vacant(&folder.path) {
            return Ok(folder.into());
        }
        let mut room = reserve(results, name)?;
        let aside = room.path.clone();
        let folder = match exchange(&mut folder, &mut room) {
            Ok(true) => room,
            Ok(false) => {
                drop(room);
                in_two_steps(folder, results, name, &aside)?
            }
            Err(source) => return Err(SearchError::Write { path: aside, source }),
        };
        Ok(Self { folder, old: Some(aside) })
    }
}

impl From<RunFolder> for SetAside {
    /// The folder of a run that made no other one room.
    fn from(folder: RunFolder) -> Self {
        Self { folder, old: None }
    }
}

/// Puts the run in `old` back into `home`, where it made room for one that could not start. What there is of that one
/// goes: it has asked for nothing yet.
///
/// # Errors
/// [`SearchError::InUse`] where another process has one of the folders, or has begun a run in `home`;
/// [`SearchError::Moved`], [`SearchError::Write`]. The run stays in `old` then.
pub(super) fn put_back(old: &Path, home: &Path) -> Result<(), SearchError> {
    let mut hollow = lock_at(home)?;
    let mut kept = lock_at(old)?;
    if is_vacant(old) {
        return Err(SearchError::Moved { folder: old.to_path_buf() });
    }
    if has_started(home) {
        let name = home.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(SearchError::InUse { name, owner: String::new() });
    }
    let fault = |source| SearchError::Write { path: home.to_path_buf(), source };
    if exchange(&mut hollow, &mut kept).map_err(fault)? {
        // Whatever cannot be removed is no run, and in nobody's way.
        let _ = std::fs::remove_dir_all(old);
        return Ok(());
    }
    std::fs::remove_dir_all(home).and_then(|()| std::fs::rename(old, home)).map_err(fault)
}

/// Locks the run in `path`.
fn lock_at(path: &Path) -> Result<RunFolder, SearchError> {
    let (Some(results), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(SearchError::Moved { folder: path.to_path_buf() });
    };
    RunFolder::lock(results, &name.to_string_lossy())
}

/// Whether a search has begun in `folder`. One whose ledger cannot be read may have.
fn has_started(folder: &Path) -> bool {
    let path = RunFolder::ledger_in(folder);
    // On a full disk nothing can be put beside it.
    match Ledger::open_at_rest(&path).and_then(|ledger| ledger.events(event::STARTED)) {
        Ok(starts) => !starts.is_empty(),
        Err(LedgerError::Missing { .. } | LedgerError::Unstarted { .. }) => false,
        Err(_) => true,
    }
}

/// The table of all locks that processes hold, in pieces as large as the system gives them.
fn system_locks() -> String {
    let mut locks = Vec::new();
    if let Ok(mut table) = File::open("/proc/locks") {
        let mut piece = vec![0; 1 << 16];
        while let Ok(length @ 1..) = table.read(&mut piece) {
            locks.extend_from_slice(&piece[..length]);
        }
    }
    String::from_utf8_lossy(&locks).into_owned()
}

/// Makes and locks the first free `NAME.1`, `NAME.2`, ....
fn reserve(results: &Path, name: &str) -> Result<RunFolder, SearchError> {
    let mut number = 1u32;
    loop {
        let name = format!("{name}.{number}");
        let path = results.join(&name);
        if path.symlink_metadata().is_err() || is_vacant(&path) {
            match RunFolder::lock(results, &name) {
                Err(SearchError::InUse { .. }) => {}
                reserved => return reserved,
            }
        }
        number += 1;
    }
}

/// Gives each of two folders the other's path; false: the file system cannot do that.
fn exchange(one: &mut RunFolder, other: &mut RunFolder) -> std::io::Result<bool> {
    let cwd = rustix::fs::CWD;
    match rustix::fs::renameat_with(cwd, &one.path, cwd, &other.path, RenameFlags::EXCHANGE) {
        Ok(()) => std::mem::swap(&mut one.path, &mut other.path),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    Ok(true)
}

/// For file systems that cannot exchange folders. Another process may take the run between the steps; then it is in use.
fn in_two_steps(mut old: RunFolder, results: &Path, name: &str, aside: &Path) -> Result<RunFolder, SearchError> {
    let home = std::mem::replace(&mut old.path, aside.to_path_buf());
    std::fs::rename(&home, aside).map_err(|source| SearchError::Write { path: aside.to_path_buf(), source })?;
    RunFolder::lock(results, name).map_err(|error| back_after(error, aside, &home))
}

/// Moves the run in `aside` back to `home`, where no other could be locked in its place; where that cannot be done
/// either, the error says where the run is.
fn back_after(error: SearchError, aside: &Path, home: &Path) -> SearchError {
    // A folder may have been made before its lock failed. In use, it is another's, whatever is in it.
    if !matches!(error, SearchError::InUse { .. }) && is_vacant(home) {
        let _ = std::fs::remove_file(home.join(LOCK));
    }
    // An empty folder gives way, and no other one does.
    match std::fs::rename(aside, home) {
        Ok(()) => error,
        Err(_) => error.left_aside(aside),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_found_where_another_device_is_shown() {
        use std::os::unix::fs::MetadataExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        let metadata = file.as_file().metadata().unwrap();
        let line =
            |device: &str, inode: u64, pid: u32| format!("7: FLOCK  ADVISORY  WRITE {pid} {device}:{inode} 0 EOF");
        let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
        let (here, inode) = (format!("{major:02x}:{minor:02x}"), metadata.ino());
        assert!(is_lock_of(&line(&here, inode, 1), &metadata, "17"));
        assert!(is_lock_of(&line("00:ff", inode, 17), &metadata, "17"));
        assert!(!is_lock_of(&line("00:ff", inode, 1), &metadata, "17"));
        assert!(!is_lock_of(&line(&here, inode + 1, 17), &metadata, "17"));
        assert!(!is_lock_of(&line(&here, inode, 17).replace("FLOCK", "POSIX"), &metadata, "17"));
    }

    #[test]
    fn a_start_that_leaves_nothing_takes_its_folder_away() {
        let results = tempfile::tempdir().unwrap();
        drop(RunFolder::lock(results.path(), "run").unwrap());
        assert!(!results.path().join("run").exists());
    }

    #[test]
    fn a_folder_that_was_moved_away_is_noticed() {
        let results = tempfile::tempdir().unwrap();
        let folder = RunFolder::lock(results.path(), "run").unwrap();
        folder.check_place().unwrap();
        std::fs::rename(folder.path(), results.path().join("aside")).unwrap();
        assert_eq!(folder.check_place().unwrap_err().exit_code(), crate::exit::ExitCode::NotWritable);
        std::fs::create_dir(folder.path()).unwrap();
        assert!(folder.check_place().is_err());
        let folder = RunFolder::lock(results.path(), "other").unwrap();
        std::fs::remove_file(folder.path().join(LOCK)).unwrap();
        folder.check_place().unwrap();
    }

    #[test]
    fn a_second_owner_is_refused_and_told_who_has_it() {
        let results = tempfile::tempdir().unwrap();
        let first = RunFolder::lock(results.path(), "run").unwrap();
        assert!(RunFolder::is_locked(first.path()));
        assert_eq!(RunFolder::owner(first.path()), Some(std::process::id().to_string()));
        std::fs::write(first.ledger(), "").unwrap();
        let error = RunFolder::lock(results.path(), "run").unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        assert_eq!(error.exit_code(), crate::exit::ExitCode::Stopped);
        drop(first);
        assert!(!RunFolder::is_locked(&results.path().join("run")));
    }

    /// The run "run", made anew.
    fn begin_anew(results: &Path) -> SetAside {
        SetAside::of(RunFolder::lock(results, "run").unwrap(), results, "run").unwrap()
    }

    #[test]
    fn a_run_makes_room_for_one_that_is_locked_already() {
        let results = tempfile::tempdir().unwrap();
        let results = results.path();
        std::fs::write(RunFolder::lock(results, "run").unwrap().ledger(), "first").unwrap();
        for (number, content) in ["first", "second"].into_iter().enumerate() {
            let SetAside { folder, old } = begin_anew(results);
            let aside = results.join(format!("run.{}", number + 1));
            assert_eq!(old.as_ref(), Some(&aside));
            assert_eq!(std::fs::read_to_string(RunFolder::ledger_in(&aside)).unwrap(), content);
            assert!(!RunFolder::is_locked(&aside));
            assert_eq!(folder.path(), results.join("run"));
            assert!(folder.is_in_place() && is_vacant(folder.path()) && RunFolder::is_locked(folder.path()));
            assert!(matches!(RunFolder::lock(results, "run"), Err(SearchError::InUse { .. })));
            std::fs::write(folder.ledger(), "second").unwrap();
        }
    }

    #[test]
    fn a_run_makes_room_where_folders_cannot_be_exchanged() {
        let results = tempfile::tempdir().unwrap();
        let results = results.path();
        let old = RunFolder::lock(results, "run").unwrap();
        std::fs::write(old.ledger(), "old").unwrap();
        let aside = results.join("run.1");
        let new = in_two_steps(old, results, "run", &aside).unwrap();
        assert!(new.is_in_place() && is_vacant(new.path()));
        assert_eq!(std::fs::read_to_string(RunFolder::ledger_in(&aside)).unwrap(), "old");
    }

    #[test]
    fn a_run_that_made_room_in_vain_is_back_or_said_to_be_aside() {
        let results = tempfile::tempdir().unwrap();
        let (results, home, aside) = (results.path(), results.path().join("run"), results.path().join("run.1"));
        std::fs::create_dir(&aside).unwrap();
        std::fs::write(RunFolder::ledger_in(&aside), "old").unwrap();
        // Another process has the name, without a file beside its lock so far.
        let other = RunFolder::lock(results, "run").unwrap();
        let in_use = || RunFolder::lock(results, "run").unwrap_err();
        let error = back_after(in_use(), &aside, &home);
        assert!(error.to_string().contains(&aside.display().to_string()), "{error}");
        assert_eq!(error.exit_code(), crate::exit::ExitCode::Stopped);
        assert!(other.is_in_place());
        let error = in_use();
        drop(other);
        assert!(matches!(back_after(error, &aside, &home), SearchError::InUse { .. }));
        assert!(RunFolder::ledger_in(&home).exists() && !aside.exists());
        // A lock that could not be had leaves its file.
        std::fs::rename(&home, &aside).unwrap();
        std::fs::create_dir(&home).unwrap();
        std::fs::write(home.join(LOCK), "").unwrap();
        let refused = SearchError::Write { path: home.join(LOCK), source: std::io::ErrorKind::PermissionDenied.into() };
        assert!(matches!(back_after(refused, &aside, &home), SearchError::Write { .. }));
        assert!(RunFolder::ledger_in(&home).exists() && !aside.exists());
    }

    #[test]
    fn a_run_gets_its_place_back_from_one_that_has_not_started() {
        let results = tempfile::tempdir().unwrap();
        let results = results.path();
        let home = results.join("run");
        std::fs::create_dir(&home).unwrap();
        std::fs::write(home.join("verdict.json"), "old").unwrap();
        for has_ledger in [false, true] {
            let SetAside { folder, old } = begin_anew(results);
            if has_ledger {
                let ledger = Ledger::open(&folder.ledger()).unwrap();
                ledger.set_fact(crate::ledger::fact::IDENTITY, "{}").unwrap();
            }
            drop(folder);
            let old = old.unwrap();
            put_back(&old, &home).unwrap();
            assert_eq!(std::fs::read_to_string(RunFolder::verdict_in(&home)).unwrap(), "old");
            assert!(!old.exists() && !RunFolder::is_locked(&home));
        }
        let SetAside { folder, old } = begin_anew(results);
        let ledger = Ledger::open(&folder.ledger()).unwrap();
        ledger.set_fact(crate::ledger::fact::IDENTITY, "{}").unwrap();
        ledger.event(event::STARTED, None, &serde_json::json!({})).unwrap();
        drop((folder, ledger));
        let old = old.unwrap();
        assert!(matches!(put_back(&old, &home), Err(SearchError::InUse { .. })));
        assert!(RunFolder::verdict_in(&old).exists() && RunFolder::ledger_in(&home).exists());
    }

    /// What a killed start left is no run.
    #[test]
    fn a_folder_with_nothing_but_a_lock_makes_no_room() {
        let results = tempfile::tempdir().unwrap();
        let results = results.path();
        for name in ["run", "run.1"] {
            std::fs::create_dir(results.join(name)).unwrap();
            std::fs::write(results.join(name).join(LOCK), "1\n").unwrap();
        }
        let SetAside { folder, old } = begin_anew(results);
        assert_eq!(old, None);
        std::fs::write(folder.ledger(), "").unwrap();
        drop(folder);
        assert_eq!(begin_anew(results).old, Some(results.join("run.1")));
    }

    #[test]
    fn a_folder_that_another_run_has_by_now_is_left_to_it() {
        let results = tempfile::tempdir().unwrap();
        let first = RunFolder::lock(results.path(), "run").unwrap();
        std::fs::rename(first.path(), results.path().join("old")).unwrap();
        let second = RunFolder::lock(results.path(), "run").unwrap();
        drop(first);
        assert!(second.is_in_place() && RunFolder::is_locked(second.path()));
        assert!(matches!(RunFolder::lock(results.path(), "run"), Err(SearchError::InUse { .. })));
    }
}
