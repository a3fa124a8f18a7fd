//! What the kernel answers with a signal, said in words: a mapped file that became shorter (SIGBUS), a file that grew
//! past the process's limit (SIGXFSZ).
//!
//! A page of a mapping that lies past the end of its file cannot be read, and there is no going on from there: the
//! handler names the file and ends the process. What a signal handler may do is little (POSIX.1-2024, 2.4.3): it reads
//! atomics, writes to stderr and ends the process, and the list of mapped files is made of atomics for that.

use std::ffi::{c_int, c_void};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::exit::ExitCode;

/// Files that can be named; a fault in one beyond these ends the process as it would have without this module.
const PLACES: usize = 4096;

static MAPPED: [Place; PLACES] = [const { Place::free() }; PLACES];

/// A mapped file. It is free where `start` is 0.
struct Place {
    start: AtomicUsize,
    length: AtomicUsize,
    /// Leaked, so that a handler never reads what was freed: a thread may fault while another one unmaps.
    name: AtomicPtr<u8>,
    name_length: AtomicUsize,
}

impl Place {
    /// An address that no mapping has, while a place is filled in.
    const TAKEN: usize = usize::MAX;

    const fn free() -> Self {
        Self {
            start: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
            name: AtomicPtr::new(null_mut()),
            name_length: AtomicUsize::new(0),
        }
    }
}

/// A mapped file's entry in the list; leaves it when dropped.
#[derive(Debug)]
pub(super) struct Registered(Option<usize>);

/// Has the file named when reading `bytes` of its mapping fails.
pub(super) fn register(path: &Path, bytes: &[u8]) -> Registered {
    let claim =
        |place: &Place| place.start.compare_exchange(0, Place::TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let Some(index) = MAPPED.iter().position(claim) else { return Registered(None) };
    let place = &MAPPED[index];
    let name: &'static mut [u8] = path.display().to_string().into_bytes().leak();
    place.length.store(bytes.len(), Ordering::Relaxed);
    place.name_length.store(name.len(), Ordering::Relaxed);
    place.name.store(name.as_mut_ptr(), Ordering::Relaxed);
    place.start.store(bytes.as_ptr() as usize, Ordering::Release);
    Registered(Some(index))
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(index) = self.0 {
            MAPPED[index].start.store(0, Ordering::Release);
        }
    }
}

/// Turns SIGBUS in a mapped file into a message and the exit code for bad data, and has writes past the limit of a
/// file's size fail with an error rather than with SIGXFSZ. For the start of a program; programs that it starts have
/// the usual behaviour.
pub fn explain_file_signals() {
    // SAFETY: the structure is plain numbers, for which zeros are valid; both handlers do what a signal handler may do
    // only. Failure changes nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = explain_bus_error as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &raw const action, null_mut());
        // A handler and not SIG_IGN, which programs that are started would inherit.
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = pass_over as extern "C" fn(c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGXFSZ, &raw const action, null_mut());
    }
}

extern "C" fn pass_over(_signal: c_int) {}

extern "C" fn explain_bus_error(signal: c_int, information: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel hands a valid structure to a handler with SA_SIGINFO, and SIGBUS has an address.
    let address = unsafe { (*information).si_addr() } as usize;
    for place in &MAPPED {
        let start = place.start.load(Ordering::Acquire);
        let length = place.length.load(Ordering::Relaxed);
        if start == 0 || start == Place::TAKEN || address.checked_sub(start).is_none_or(|offset| offset >= length) {
            continue;
        }
        print(b"error: ");
        let (name, length) = (place.name.load(Ordering::Relaxed), place.name_length.load(Ordering::Relaxed));
        // SAFETY: both were stored before `start` was, and what they describe is never freed or written again.
        print(unsafe { std::slice::from_raw_parts(name, length) });
        print(
            b": cannot be read any more: it became shorter while it was in use, or its disk failed. Put the complete file back, \
              and do not write to models while they are in use; a search goes on where it was\n",
        );
        // SAFETY: ends the process.
        unsafe { libc::_exit(ExitCode::BadData as c_int) };
    }
    // Not one of ours: the instruction fails again, and the process ends as it would have.
    // SAFETY: sets a signal's default behaviour.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

fn print(text: &[u8]) {
    // SAFETY: the bytes are valid for the length. A message that cannot be written is lost.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast::<c_void>(), text.len()) };
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::Command;

    use super::super::mapping::{MappedFile, open_regular};
    use super::*;

    const FILE: &str = "EVOMERGE_TEST_TRUNCATED_FILE";
    const NAME: &str = "checkpoint::bus_error::tests::a_file_that_became_shorter_is_named";

    #[test]
    fn a_file_that_became_shorter_is_named() {
        if let Some(path) = std::env::var_os(FILE) {
            explain_file_signals();
            let path = Path::new(&path);
            let (file, identity) = open_regular(path).unwrap();
            let mapped = MappedFile::new(path, &file, identity).unwrap();
            std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(10).unwrap();
            println!("read {}", mapped.bytes()[50_000]);
            return;
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 100_000]).unwrap();
        let program = std::env::current_exe().unwrap();
        let child =
            Command::new(program).args(["--exact", NAME, "--nocapture"]).env(FILE, file.path()).output().unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert_eq!(child.status.code(), Some(ExitCode::BadData as i32), "{said}");
        assert!(said.contains(&format!("error: {}: cannot be read any more", file.path().display())), "{said}");
        assert!(!String::from_utf8_lossy(&child.stdout).contains("read 1"));
    }

    #[test]
    fn places_are_used_again() {
        let bytes = [0_u8; 8];
        let first = register(Path::new("first"), &bytes);
        let index = first.0.unwrap();
        assert_eq!(MAPPED[index].start.load(Ordering::Relaxed), bytes.as_ptr() as usize);
        drop(first);
        assert_ne!(MAPPED[index].start.load(Ordering::Relaxed), bytes.as_ptr() as usize);
    }
}
