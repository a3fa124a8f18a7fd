//! Memory-mapped files, and what only the system's own calls can do with files. The only place of this room with `unsafe`.
//!
//! A file that another process truncates while it is mapped raises SIGBUS on the next access: no read-only mapping can
//! prevent that. What evomerge itself writes is never truncated in place (it goes to a new file and is renamed), and
//! headers and hashes are read with ordinary reads; [`MappedFile::verify_unchanged`] finds a file that was rewritten.
//!
//! No access advice is given for mappings: `MADV_SEQUENTIAL` maps no pages around a fault, which made a scan of cached
//! weights two to three times slower, and it lets go of pages that the next candidate needs again.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::error::CheckpointError;

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FileIdentity {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// Modification time in nanoseconds since 1970.
    pub modified: i128,
}

impl FileIdentity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
        }
    }
}

/// Opens a regular file for reading; links are followed (the Hugging Face cache is made of them), devices, pipes and
/// directories are refused without blocking on them.
pub(super) fn open_regular(path: &Path) -> Result<(File, FileIdentity), CheckpointError> {
    let failed = |source| CheckpointError::Read { path: path.to_owned(), source };
    let regular = |metadata: Metadata| {
        if metadata.is_file() {
            Ok(FileIdentity::of(&metadata))
        } else {
            Err(failed(std::io::Error::other("not a regular file")))
        }
    };
    regular(std::fs::metadata(path).map_err(failed)?)?;
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    // Asked again of the open file: the path may lead elsewhere by now.
    let identity = regular(file.metadata().map_err(failed)?)?;
    Ok((file, identity))
}

/// A file in memory, read-only, with what identified it when it was mapped.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    identity: FileIdentity,
    map: Mmap,
}

impl MappedFile {
    /// Maps an open, non-empty file.
    pub(super) fn new(path: &Path, file: &File, identity: FileIdentity) -> Result<Self, CheckpointError> {
        let failed = |source| CheckpointError::Read { path: path.to_owned(), source };
        let length = usize::try_from(identity.size).map_err(|error| failed(std::io::Error::other(error)))?;
        // SAFETY: the mapping is private and read-only, and `&[u8]` is handed out only while it lives. The bytes stay
        // what they are unless another process writes into the file in place; this is documented as forbidden during a
        // run, is detected by `verify_unchanged`, and at worst yields wrong numbers or SIGBUS, never invalid values: any
        // byte is a valid `u8` and no reference of another type is made from the mapping.
        let map = unsafe { memmap2::MmapOptions::new().len(length).map(file) }.map_err(failed)?;
        Ok(Self { path: path.to_owned(), identity, map })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn identity(&self) -> FileIdentity {
        self.identity
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Whether the path still leads to the file that was mapped, unwritten since.
    pub(super) fn verify_unchanged(&self) -> Result<(), CheckpointError> {
        let changed = || CheckpointError::Changed { path: self.path.clone() };
        let metadata = std::fs::metadata(&self.path).map_err(|_| changed())?;
        if FileIdentity::of(&metadata) == self.identity { Ok(()) } else { Err(changed()) }
    }
}

/// File systems that are on this machine, so that the kernel knows of every reader: tmpfs, ext4, XFS, Btrfs.
#[cfg(target_os = "linux")]
const LOCAL: [i64; 4] = [TMPFS, 0xEF53, 0x5846_5342, 0x9123_683E];
#[cfg(target_os = "linux")]
const TMPFS: i64 = 0x0102_1994;

#[cfg(target_os = "linux")]
#[expect(clippy::unnecessary_cast, reason = "the type of the number differs between machines")]
fn file_system(file: &File) -> Option<i64> {
    rustix::fs::fstatfs(file).ok().map(|status| status.f_type as i64)
}

/// Whether the file lies in memory.
pub(super) fn is_in_memory(file: &File) -> bool {
    #[cfg(target_os = "linux")]
    return file_system(file) == Some(TMPFS);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        false
    }
}

/// Whether nobody but `file`, which is open for writing, has the file open or mapped. False where that cannot be known.
#[cfg(target_os = "linux")]
pub(super) fn is_ours_alone(file: &File) -> bool {
    use std::os::fd::AsRawFd as _;
    if !file_system(file).is_some_and(|found| LOCAL.contains(&found)) {
        return false;
    }
    // The kernel grants a lease for writing only where no other open file, and so no mapping, refers to the same content.
    // SAFETY: both calls take and give plain numbers, and the descriptor is open as long as `file` is borrowed.
    unsafe {
        libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0
            && libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) == 0
    }
}

/// As on Linux, where the kernel can be asked.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_ours_alone(_file: &File) -> bool {
    false
}

/// Has a part of a file written to the disk without waiting for it. Advice only.
pub(super) fn start_writing(file: &File, offset: u64, length: u64) {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd as _;
        let (offset, length) = (offset.cast_signed(), length.cast_signed());
        // SAFETY: the call takes plain numbers, and the descriptor is open as long as `file` is borrowed.
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, offset, length);
}
