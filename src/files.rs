//! Files that a reader never sees half written, and paths as documents name them.

use std::io::Write as _;
use std::path::Path;

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
    sync_entries(&std::fs::File::open(folder)?)
}

/// Waits until the entries of an open folder are on the disk, as far as its file system can: some (over FUSE, CIFS and
/// 9p) sync files only, and there nothing more can be done.
///
/// # Errors
/// The system's.
pub fn sync_entries(folder: &std::fs::File) -> std::io::Result<()> {
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
pub fn is_file_at(file: &std::fs::File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), std::fs::symlink_metadata(path)) else { return false };
    place_of(&open) == place_of(&there)
}

/// Device and inode: which file, or folder, it is.
pub fn place_of(metadata: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
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
