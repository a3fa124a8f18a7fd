//! Memory-mapped files, and what only the system's own calls can do with files.
//!
//! A file that another process truncates while it is mapped raises SIGBUS on the next access: no read-only mapping can
//! prevent that (see [`super::bus_error`]). What evomerge itself writes is never truncated in place (it goes to a new
//! file and is renamed), and headers and hashes are read with ordinary reads; [`MappedFile::verify_unchanged`] finds a
//! file that was rewritten.
//!
//! `MADV_SEQUENTIAL` is not given for mappings: it maps no pages around a fault, which made a scan of cached weights
//! two to three times slower, and it lets go of pages that the next candidate needs again.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::bus_error::{self, Registered};
use super::error::CheckpointError;

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FileIdentity {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// Modification time in nanoseconds since 1970.
    pub modified: i128,
    /// When its content, name, owner or rights last changed, which nobody can set: tools keep the other time.
    pub changed: i128,
}

impl FileIdentity {
    /// Whether this is the same file, unwritten since; new names and rights do not count.
    pub(super) fn is_unwritten(&self, other: &Self) -> bool {
        Self { changed: 0, ..*self } == Self { changed: 0, ..*other }
    }

    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
            changed: i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()),
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

/// Reads a whole regular file of at most `limit` bytes.
pub(super) fn read_capped(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let failed = |source| CheckpointError::Read { path: path.to_owned(), source };
    let too_large = || failed(std::io::Error::other(format!("larger than the {limit} bytes that are accepted")));
    let (file, identity) = open_regular(path)?;
    if identity.size > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(identity.size).unwrap_or(0));
    // The file may grow while it is read: the limit holds for what comes, not for what was announced.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
}

/// A file in memory, read-only, with what identified it when it was mapped.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    identity: FileIdentity,
    /// Leaves the list before the mapping goes.
    _registered: Registered,
    map: Mmap,
}

impl MappedFile {
    /// Maps an open, non-empty file.
    pub(super) fn new(path: &Path, file: &File, identity: FileIdentity) -> Result<Self, CheckpointError> {
        let failed = |source| CheckpointError::Read { path: path.to_owned(), source };
        let length = usize::try_from(identity.size).map_err(|error| failed(std::io::Error::other(error)))?;
        // SAFETY: the mapping is shared and read-only, and `&[u8]` is handed out only while it lives. The bytes stay
        // what they are unless another process writes into the file in place; this is documented as forbidden during a
        // run, is detected by `verify_unchanged`, and at worst yields wrong numbers or SIGBUS, never invalid values:
        // any byte is a valid `u8` and no reference of another type is made from the mapping.
        let map = unsafe { memmap2::MmapOptions::new().len(length).map(file) }.map_err(failed)?;
        advise_huge_pages(&map);
        let registered = bus_error::register(path, &map);
        Ok(Self { path: path.to_owned(), identity, _registered: registered, map })
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

    /// Lets go of the pages that lie wholly in a part of the file; they are mapped again when they are read again.
    #[cfg(unix)]
    pub(super) fn release(&self, start: usize, length: usize) {
        // SAFETY: the call takes and gives plain numbers.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(1 << 16).max(1);
        let (first, end) = (start.next_multiple_of(page), (start + length).min(self.map.len()) / page * page);
        if first < end {
            // SAFETY: the mapping is read-only and of a file, so its pages hold nothing but the file's content, and
            // reading them again gives the same bytes. Advice that is refused changes nothing.
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, end - first) };
        }
    }

    /// Whether the path still leads to the file that was mapped, unwritten since.
    pub(super) fn verify_unchanged(&self) -> Result<(), CheckpointError> {
        let changed = || CheckpointError::Changed { path: self.path.clone() };
        let metadata = std::fs::metadata(&self.path).map_err(|_| changed())?;
        if FileIdentity::of(&metadata).is_unwritten(&self.identity) { Ok(()) } else { Err(changed()) }
    }
}

/// Has what is not in the page cache yet read in huge pages, which are mapped by one fault each where small ones need
/// 32, in this process and in all that map the file later. Advice only: kernels and file systems without them go on as
/// before.
fn advise_huge_pages(map: &Mmap) {
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    #[cfg(not(target_os = "linux"))]
    let _ = map;
}

/// A file in memory that is written through its pages, which stay mapped from one content to the next.
#[derive(Debug)]
pub(super) struct WritableFile {
    map: memmap2::MmapRaw,
}

impl WritableFile {
    /// Maps a whole file that is open for reading and writing; its pages are there. `None` where that has no advantage:
    /// on disks, and on machines without stores that pass the cache by.
    pub(super) fn new(file: &File, size: u64) -> Option<Self> {
        if !cfg!(target_arch = "x86_64") || !is_in_memory(file) {
            return None;
        }
        let map = memmap2::MmapOptions::new().len(usize::try_from(size).ok()?).populate().map_raw(file).ok()?;
        Some(Self { map })
    }

    /// Writes bytes from `offset` on; false, and nothing is written, where they do not lie in the file.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> bool {
        let Some(start) = usize::try_from(offset)
            .ok()
            .filter(|start| start.checked_add(bytes.len()).is_some_and(|end| end <= self.map.len()))
        else {
            return false;
        };
        // SAFETY: source and target are valid for the length, which was checked against the mapping's. They do not
        // overlap: no reference to the mapping is ever made, so `bytes` lies elsewhere. The file keeps its size
        // unless its owner shortens it by other means, which ends in SIGBUS. Calls that overlap leave bytes of either:
        // none reads them before both have ended.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            stream(self.map.as_mut_ptr().add(start), bytes);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = start;
        cfg!(target_arch = "x86_64")
    }
}

/// Copies past the cache: the target is not read first, and does not push out what is needed again.
///
/// # Safety
/// `target` is valid for writes of `bytes.len()` bytes and does not overlap `bytes`. Another thread may write to the
/// same bytes; what they hold then is not defined, but every access is a store of its own.
#[cfg(target_arch = "x86_64")]
unsafe fn stream(target: *mut u8, bytes: &[u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    use std::sync::atomic::{AtomicU8, Ordering};

    let single = |start: usize, bytes: &[u8]| {
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: as this function's; a byte is always aligned.
            unsafe { AtomicU8::from_ptr(target.add(start + index)) }.store(*byte, Ordering::Relaxed);
        }
    };
    // Whole lines of the cache leave the core in one piece.
    let head = target.align_offset(64).min(bytes.len());
    let (first, rest) = bytes.split_at(head);
    let (lines, last) = rest.as_chunks::<64>();
    single(0, first);
    for (index, line) in lines.iter().enumerate() {
        for part in 0..4 {
            // SAFETY: 16 bytes of the line, whose target is aligned to 64 bytes and within the range. Every x86-64 has
            // SSE2.
            unsafe {
                let value = _mm_loadu_si128(line.as_ptr().add(16 * part).cast::<__m128i>());
                _mm_stream_si128(target.add(head + 64 * index + 16 * part).cast::<__m128i>(), value);
            }
        }
    }
    single(head + 64 * lines.len(), last);
    // What was streamed is visible before anything that follows.
    // SAFETY: every x86-64 has SSE.
    unsafe { _mm_sfence() };
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
    // The kernel grants a lease for writing only where no other open file, and so no mapping, refers to the same
    // content.
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
