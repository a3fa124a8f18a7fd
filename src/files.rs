//! Files that a reader never sees half written, folders that outlive nobody, and paths as documents name them.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// What the names of files in the making begin with.
const UNFINISHED: &str = ".partial-";

/// Removes the files that killed processes left in a folder that nobody else writes to now.
pub fn sweep_unfinished(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// What the names of folders begin with that a command has for its own time, among other programs' temporary files.
pub const SCRATCH: &str = "evomerge-scratch-";
/// Age from which a scratch folder that nobody holds is taken for one that a killed process left: others are held at
/// once.
const LEFT_AFTER: Duration = Duration::from_secs(60);

/// Holds a new scratch folder, for as long as the handle is kept, and removes those beside it that killed processes
/// left. Best effort: `None` where the file system has no locks, and there nothing is ever removed.
pub fn hold_scratch(folder: &Path) -> Option<File> {
    let held = lock_folder(folder);
    sweep_scratch(folder.parent()?);
    held
}

/// Removes the scratch folders of this user that nobody holds.
fn sweep_scratch(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let is_scratch = entry.file_name().as_encoded_bytes().starts_with(SCRATCH.as_bytes());
        // Asked before it is locked: a new one must not find itself locked by a sweep.
        if !is_scratch || !entry.metadata().is_ok_and(|metadata| is_left(&metadata)) {
            continue;
        }
        let path = entry.path();
        // Held until the folder is gone.
        if let Some(held) = lock_folder(&path)
            && is_file_at(&held, &path)
        {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// Opens and locks a folder that nobody else has locked. Links are not followed, and a file is none.
fn lock_folder(path: &Path) -> Option<File> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
    let folder = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    folder.try_lock().ok().map(|()| folder)
}

/// Whether a folder is this user's, and too old for one that is about to be held.
fn is_left(metadata: &Metadata) -> bool {
    let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok());
    metadata.uid() == rustix::process::geteuid().as_raw() && age.is_some_and(|age| age > LEFT_AFTER)
}

/// Replaces `path` by a file with `bytes`: written under another name in the same folder, synced, renamed.
///
/// # Errors
/// The system's. The file is what it was then; only where the very last step fails, making the new one's name durable,
/// the new one is in place.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_data()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_entries(&File::open(folder)?)
}

/// Waits until the entries of an open folder are on the disk, as far as its file system can: some (over FUSE, CIFS and
/// 9p) sync files only, and there nothing more can be done.
///
/// # Errors
/// The system's.
pub fn sync_entries(folder: &File) -> std::io::Result<()> {
    unless_unsupported(folder.sync_all())
}

fn unless_unsupported(synced: std::io::Result<()>) -> std::io::Result<()> {
    let errno = synced.as_ref().err().and_then(std::io::Error::raw_os_error).map(Errno::from_raw_os_error);
    if matches!(errno, Some(Errno::INVAL | Errno::NOTSUP)) { Ok(()) } else { synced }
}

/// The path, or the nearest folder above it that is there.
pub fn nearest_existing(path: &Path) -> &Path {
    let here = Path::new(".");
    path.ancestors()
        .map(|above| if above.as_os_str().is_empty() { here } else { above })
        .find(|above| above.exists())
        .unwrap_or(here)
}

/// Looks whether files can be written to a folder, which may have to be made first. Asks by trying: permissions do not
/// tell of file systems that take no files.
///
/// # Errors
/// The system's, without the name of the attempt, which says nothing.
pub fn check_writable_folder(folder: &Path) -> std::io::Result<()> {
    tempfile::tempfile_in(nearest_existing(folder)).map(drop).map_err(|error| error.kind().into())
}

/// Whether an open file is the one at `path` now: one that was waited for or locked may have been replaced meanwhile.
pub fn is_file_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), std::fs::symlink_metadata(path)) else { return false };
    place_of(&open) == place_of(&there)
}

/// Device and inode: which file, or folder, it is.
pub fn place_of(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A path in a JSON document, which holds text: bytes that are no UTF-8 become replacement characters, as in messages.
pub fn path_text(path: &Path) -> String {
    path.display().to_string()
}

/// [`path_text`] for fields of documents; serde's own way fails where a path is not UTF-8.
///
/// # Errors
/// Those of the serializer.
pub fn serialize_path<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path_text(path))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_old_content_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/file.txt");
        super::write_atomically(&path, b"one, rather long").unwrap();
        super::write_atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn folders_that_cannot_be_synced_are_no_error_and_broken_disks_are() {
        use rustix::io::Errno;

        let synced = |errno: Errno| super::unless_unsupported(Err(errno.into())).map_err(|error| error.raw_os_error());
        assert_eq!(synced(Errno::INVAL), Ok(()));
        assert_eq!(synced(Errno::NOTSUP), Ok(()));
        assert_eq!(synced(Errno::IO), Err(Some(Errno::IO.raw_os_error())));
        super::unless_unsupported(Ok(())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        super::sync_entries(&std::fs::File::open(folder.path()).unwrap()).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_as_writable_as_the_nearest_one() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("one/two");
        assert_eq!(super::nearest_existing(&deep), folder.path());
        assert_eq!(super::nearest_existing("not/here".as_ref()), std::path::Path::new("."));
        super::check_writable_folder(&deep).unwrap();
        assert!(!folder.path().join("one").exists());
        std::fs::write(folder.path().join("one"), "").unwrap();
        let error = super::check_writable_folder(&deep).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotADirectory);
    }

    #[test]
    fn scratch_folders_of_killed_processes_are_swept_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let make_old = |path: &std::path::Path| {
            let modified = std::time::SystemTime::now() - 2 * super::LEFT_AFTER;
            std::fs::File::open(path).unwrap().set_modified(modified).unwrap();
        };
        let folder = |name: &str, is_old: bool| {
            let path = parent.path().join(name);
            std::fs::create_dir_all(path.join("command/attempt-1")).unwrap();
            if is_old {
                make_old(&path);
            }
            path
        };
        let left = folder("evomerge-scratch-left", true);
        let held = super::lock_folder(&folder("evomerge-scratch-held", true)).unwrap();
        folder("evomerge-scratch-young", false);
        std::os::unix::fs::symlink(folder("other-scratch", true), parent.path().join("evomerge-scratch-link")).unwrap();
        let file = parent.path().join("evomerge-scratch-file");
        std::fs::write(&file, "").unwrap();
        make_old(&file);
        let names = || {
            let entries = std::fs::read_dir(parent.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let own = folder("evomerge-scratch-own", true);
        let mut expected = names();
        let held_own = super::hold_scratch(&own).unwrap();
        assert!(!left.exists());
        expected.retain(|name| name != "evomerge-scratch-left");
        assert_eq!(names(), expected);
        // Whoever held them is gone.
        drop((held, held_own));
        super::sweep_scratch(parent.path());
        expected.retain(|name| !["evomerge-scratch-held", "evomerge-scratch-own"].contains(&name.as_str()));
        assert_eq!(names(), expected);
    }

    #[test]
    fn what_killed_writers_left_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".partial-x1", "partial-x2", ".partial"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join(".partial-folder")).unwrap();
        super::sweep_unfinished(folder.path());
        let mut left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".partial", ".partial-folder", "partial-x2"]);
    }
}
