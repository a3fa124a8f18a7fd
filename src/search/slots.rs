//! Where candidates live while they are evaluated: a folder of the run's own under an owner lock, on the RAM disk when
//! it fits. What a killed run left behind is removed at the next start; what another living run owns is not touched.

use std::fs::{DirEntry, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::SearchError;
use crate::checkpoint::{SpareCheckpoints, available_space};
use crate::files::is_file_at;

/// What the name of a candidate folder begins with; the run id follows.
const PREFIX: &str = "evomerge-";
/// What the name of a candidate folder begins with until it gets its final one.
const NEW_PREFIX: &str = ".evomerge-new-";
/// Age from which a folder without its final name is taken for one that a killed run left: others get their name at
/// once.
const LEFT_AFTER: Duration = Duration::from_secs(60);
const LOCK: &str = ".lock";
/// Hexadecimal digits of a run id.
pub(super) const RUN_ID_DIGITS: usize = 12;
/// Where files lie in memory.
const RAM_DISK: &str = "/dev/shm";
/// How often a claim tries again while the folder is there: another search may be sweeping it at that moment.
const TRIES: usize = 20;
/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// The run's candidate folder; removed with everything in it when dropped.
#[derive(Debug)]
pub struct Slots {
    folder: PathBuf,
    spares: SpareCheckpoints,
    /// Held as long as the folder is ours.
    _lock: File,
}

impl Slots {
    /// Claims `<parent>/evomerge-<run id>`, after a sweep of folders without a living owner.
    ///
    /// # Errors
    /// [`SearchError`] where the folder cannot be made or locked.
    pub fn claim(parent: &Path, run_id: &str) -> Result<Self, SearchError> {
        let fault = |path: &Path, source| SearchError::CandidateFolder { path: path.to_path_buf(), source };
        std::fs::create_dir_all(parent).map_err(|source| fault(parent, source))?;
        sweep(parent);
        let folder = parent.join(format!("{PREFIX}{run_id}"));
        // The lock is held before the folder has its final name, so that no sweep of another process takes it for
        // ownerless.
        let fresh = tempfile::Builder::new().prefix(NEW_PREFIX).tempdir_in(parent).map_err(|e| fault(parent, e))?;
        let lock = File::create(fresh.path().join(LOCK)).map_err(|source| fault(fresh.path(), source))?;
        lock.try_lock().map_err(|error| fault(&folder, error.into()))?;
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(fresh.path(), std::fs::Permissions::from_mode(0o755))
            .map_err(|source| fault(fresh.path(), source))?;
        place(fresh.path(), parent, &folder)?;
        // Renamed away: nothing is left for the temporary folder's own clean-up.
        let _ = fresh.keep();
        Ok(Self { spares: SpareCheckpoints::in_folder(&folder), folder, _lock: lock })
    }

    /// Where the candidate of that id is materialized.
    pub fn candidate(&self, candidate_id: &str) -> PathBuf {
        self.folder.join(candidate_id)
    }

    /// Released candidates, for the next ones to be written over. One that a reader still has open, or maps, is left to
    /// it.
    pub fn spares(&self) -> &SpareCheckpoints {
        &self.spares
    }

    /// Takes a candidate away from its path.
    pub fn release(&self, candidate_id: &str) {
        self.spares.put(&self.candidate(candidate_id));
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// Gives the new folder its name, in place of nothing but an empty folder.
fn place(fresh: &Path, parent: &Path, folder: &Path) -> Result<(), SearchError> {
    use std::io::ErrorKind::{AlreadyExists, DirectoryNotEmpty};
    for _ in 0..TRIES {
        match std::fs::rename(fresh, folder) {
            Err(error) if matches!(error.kind(), DirectoryNotEmpty | AlreadyExists) => {
                std::thread::sleep(PAUSE);
                sweep(parent);
            }
            other => {
                return other.map_err(|source| SearchError::CandidateFolder { path: folder.to_path_buf(), source });
            }
        }
    }
    Err(SearchError::CopyInUse { folder: folder.to_path_buf() })
}

/// Removes a folder whose lock is ours. The lock file is removed last, and only once the folder is otherwise empty. A
/// folder that still holds something stays locked, so nobody can replace it.
fn remove(folder: &Path) {
    let mut is_all = true;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            is_all &= std::fs::remove_dir_all(path).is_ok();
        } else if entry.file_name() != LOCK {
            is_all &= std::fs::remove_file(path).is_ok();
        }
    }
    if is_all {
        let _ = std::fs::remove_file(folder.join(LOCK));
        let _ = std::fs::remove_dir(folder);
    }
}

/// Removes candidate folders under `parent` whose owner is gone: those that have the name of one and no lock that
/// somebody holds. The folder may be anyone's (`/tmp`), and so may be what else lies there.
fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_folder || !(is_ours(&entry.file_name().to_string_lossy()) || is_left_unnamed(&entry)) {
            continue;
        }
        let path = entry.path();
        let lock_path = path.join(LOCK);
        match File::open(&lock_path) {
            // The lock is held until the folder is gone, and it is that of this folder, not of one that was here before.
            Ok(lock) if lock.try_lock().is_ok() && is_file_at(&lock, &lock_path) => remove(&path),
            Ok(_) => {}
            // The rest of a removal that was cut short, or one that is not over: empty, or it is not ours.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => drop(std::fs::remove_dir(&path)),
            Err(_) => {}
        }
    }
}

fn is_ours(name: &str) -> bool {
    let id = name.strip_prefix(PREFIX).unwrap_or_default();
    id.len() == RUN_ID_DIGITS && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_left_unnamed(entry: &DirEntry) -> bool {
    let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
    entry.file_name().to_string_lossy().starts_with(NEW_PREFIX) && age().is_some_and(|age| age > LEFT_AFTER)
}

/// The folder for candidates of `bytes` each: the RAM disk when `slots + 1` of them fit in it and in half of the free
/// memory, else `run_folder`.
pub fn choose_parent(run_folder: &Path, bytes: u64, slots: u64) -> PathBuf {
    let needed = bytes.saturating_mul(slots + 1);
    let ram_disk = Path::new(RAM_DISK);
    let fits = available_space(ram_disk).is_some_and(|free| free > needed)
        && available_memory().is_some_and(|memory| memory / 2 > needed);
    if fits { ram_disk.to_path_buf() } else { in_run_folder(run_folder) }
}

/// Absolute: an evaluator has a working directory of its own.
fn in_run_folder(run_folder: &Path) -> PathBuf {
    let folder = run_folder.join("candidates");
    std::path::absolute(&folder).unwrap_or(folder)
}

/// Removes what killed starts of the run left where a new one may choose another place: their candidates would make the
/// RAM disk look too small. `earlier` is where the last start had them.
pub fn sweep_earlier(run_folder: &Path, earlier: Option<&Path>) {
    sweep(Path::new(RAM_DISK));
    sweep(&in_run_folder(run_folder));
    if let Some(earlier) = earlier {
        sweep(earlier);
    }
}

/// `MemAvailable` in bytes.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sweep_takes_what_has_no_owner_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let ours = Slots::claim(parent.path(), "0123456789ab").unwrap();
        std::fs::create_dir_all(ours.candidate("c1")).unwrap();
        let dead = parent.path().join("evomerge-dead00000000");
        std::fs::create_dir_all(dead.join("c2")).unwrap();
        File::create(dead.join(LOCK)).unwrap();
        let half_removed = parent.path().join("evomerge-00000000beef");
        std::fs::create_dir(&half_removed).unwrap();
        let unnamed = parent.path().join(".evomerge-new-old");
        std::fs::create_dir(&unnamed).unwrap();
        File::create(unnamed.join(LOCK)).unwrap();
        File::open(&unnamed).unwrap().set_modified(std::time::SystemTime::now() - 2 * LEFT_AFTER).unwrap();
        std::fs::create_dir(parent.path().join(".evomerge-new-1")).unwrap();
        let foreign =
            [".evomerge-new-1", "somebody-else", "evomerge-notes", "evomerge-scratch-17", "evomerge-0000beef"];
        for name in foreign {
            std::fs::create_dir_all(parent.path().join(name)).unwrap();
        }
        // A name of another kind is not ours, whatever is in it.
        File::create(parent.path().join("evomerge-notes").join(LOCK)).unwrap();

        let other = Slots::claim(parent.path(), "ba9876543210").unwrap();
        assert!(ours.candidate("c1").is_dir());
        assert!(!dead.exists() && !half_removed.exists() && !unnamed.exists());
        assert!(foreign.iter().all(|name| parent.path().join(name).is_dir()));

        let folder = ours.folder.clone();
        drop(ours);
        assert!(!folder.exists());
        drop(other);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), foreign.len());
    }

    /// Whoever opened the lock of a folder that is gone must not take it for that of the folder there now.
    #[test]
    fn a_folder_in_the_place_of_a_swept_one_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("evomerge-0123456789ab");
        std::fs::create_dir(&folder).unwrap();
        let old = File::create(folder.join(LOCK)).unwrap();
        remove(&folder);
        let slots = Slots::claim(parent.path(), "0123456789ab").unwrap();
        assert!(old.try_lock().is_ok() && !is_file_at(&old, &folder.join(LOCK)));
        sweep(parent.path());
        assert!(slots.folder.join(LOCK).exists());
    }

    /// Two searches under one parent claim and leave their folders again and again.
    #[test]
    fn sweeps_and_claims_at_the_same_time_never_meet() {
        let parent = tempfile::tempdir().unwrap();
        let run = |id: &'static str| {
            let parent = parent.path().to_path_buf();
            std::thread::spawn(move || {
                for _ in 0..200 {
                    let slots = Slots::claim(&parent, id).unwrap();
                    std::fs::create_dir(slots.candidate("c")).unwrap();
                    assert!(slots.folder.join(LOCK).exists() && slots.candidate("c").exists());
                }
            })
        };
        let runs = ["0123456789ab", "ba9876543210", "00000000beef"].map(run);
        runs.into_iter().for_each(|run| run.join().unwrap());
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_run_that_was_killed_claims_its_folder_again() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join("evomerge-0123456789ab");
        std::fs::create_dir_all(left.join("half.partial")).unwrap();
        File::create(left.join(LOCK)).unwrap();
        let slots = Slots::claim(parent.path(), "0123456789ab").unwrap();
        assert!(!slots.candidate("half.partial").exists());
    }

    /// Two copies of one results folder have one run id.
    #[test]
    fn a_folder_that_another_process_owns_is_told_apart_from_a_fault() {
        let parent = tempfile::tempdir().unwrap();
        let slots = Slots::claim(parent.path(), "0123456789ab").unwrap();
        let error = Slots::claim(parent.path(), "0123456789ab").unwrap_err();
        assert_eq!(error.exit_code(), crate::exit::ExitCode::Stopped, "{error}");
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
        drop(slots);
    }

    #[test]
    fn what_does_not_fit_goes_to_the_run_folder() {
        let run = Path::new("results/x");
        let parent = choose_parent(run, u64::MAX / 8, 2);
        assert!(parent.is_absolute() && parent.ends_with("results/x/candidates"), "{}", parent.display());
    }
}
