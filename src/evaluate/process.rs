//! A program in a process group of its own, which ends with everything that it started.
//!
//! The program runs below a waiting thread of ours. When the program is done, too slow or no longer wanted, its whole
//! group is killed. When evomerge itself dies without a word (SIGKILL), the kernel kills the program as far as `setpriv
//! --pdeathsig` from util-linux is there to ask for it; its own children then are up to it. What left the group by
//! `setsid` is out of reach in every case.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::lock::lock;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Bytes of output kept for messages.
const TAIL_BYTES: usize = 16 << 10;
/// How long the output of a program that has ended may take to arrive.
const LAST_OUTPUT: Duration = Duration::from_millis(500);

/// What to run.
pub(super) struct Program {
    pub argv: Vec<OsString>,
    pub directory: PathBuf,
    /// `setpriv`, where it can tie the program's life to ours.
    pub setpriv: Option<PathBuf>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Exited(i32),
    Killed(i32),
    TimedOut,
    Cancelled,
}

/// How a program ended and the last of what it wrote (stdout and stderr together).
#[derive(Debug)]
pub(super) struct Ended {
    pub end: End,
    pub output: String,
}

/// The group's leader while it is not reaped: only then its number is surely its own.
type Leader = Arc<Mutex<Option<Pid>>>;

fn signal(leader: &Leader, signal: Signal) {
    if let Some(pid) = *lock(leader) {
        // Fails only when nothing is left to kill.
        let _ = kill_process_group(pid, signal);
    }
}

/// Whether a program is started or called off: whoever takes the turn first decides, and a program that is being started
/// cannot be called off any more.
#[derive(Clone, Default)]
struct Turn(Arc<AtomicBool>);

impl Turn {
    /// Whether nobody had taken it.
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// Calls the program off, or kills its group, when the evaluation is dropped half-way.
struct KillOnDrop {
    leader: Leader,
    turn: Turn,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.turn.take();
        signal(&self.leader, Signal::KILL);
    }
}

/// Runs the program until it ends, `timeout` is over or `cancel` fires; then SIGTERM to its group, and SIGKILL after
/// `grace`. The whole group has got SIGKILL when this returns. A program whose turn has not come when `cancel` fires is
/// not started at all.
///
/// # Errors
/// When the program cannot be started or waited for.
pub(super) async fn run(
    program: Program,
    timeout: Duration,
    grace: Duration,
    cancel: &CancellationToken,
) -> std::io::Result<Ended> {
    let leader: Leader = Arc::default();
    let tail = Arc::new(Mutex::new(VecDeque::new()));
    let turn = Turn::default();
    let _guard = KillOnDrop { leader: Arc::clone(&leader), turn: turn.clone() };
    let (started, has_started) = oneshot::channel();
    let (of_leader, of_tail, of_turn) = (Arc::clone(&leader), Arc::clone(&tail), turn.clone());
    // The thread that starts the program also waits for it: the kernel's death signal goes by the thread.
    let mut waiter = tokio::task::spawn_blocking(move || {
        if of_turn.take() {
            start_and_wait(program, &of_leader, &of_tail, started)
        } else {
            Err(std::io::Error::other("nobody waits for the program any more"))
        }
    });
    if !is_begun(has_started, &turn, cancel).await {
        return Ok(Ended { end: End::Cancelled, output: String::new() });
    }
    let stopped = tokio::select! {
        status = &mut waiter => return ended(status, &tail),
        () = tokio::time::sleep(timeout) => End::TimedOut,
        () = cancel.cancelled() => End::Cancelled,
    };
    signal(&leader, Signal::TERM);
    let status = match tokio::time::timeout(grace, &mut waiter).await {
        Ok(status) => status,
        Err(_) => {
            signal(&leader, Signal::KILL);
            waiter.await
        }
    };
    ended(status, &tail).map(|ended| Ended { end: stopped, ..ended })
}

/// Waits until the program is there or could not be started; `false`: it was called off before its turn.
async fn is_begun(mut has_started: oneshot::Receiver<()>, turn: &Turn, cancel: &CancellationToken) -> bool {
    // Both a start and a failed start end this wait.
    tokio::select! {
        biased;
        _ = &mut has_started => return true,
        () = cancel.cancelled() => {}
    }
    // It may wait for a thread still, which will find its turn taken.
    if turn.take() {
        return false;
    }
    // It is coming up at this moment: until it is there, there is nothing to kill, and what it works with has to stay.
    let _ = has_started.await;
    true
}

type Waited = Result<std::io::Result<std::process::ExitStatus>, tokio::task::JoinError>;

fn ended(waited: Waited, tail: &Mutex<VecDeque<u8>>) -> std::io::Result<Ended> {
    let status = waited.map_err(std::io::Error::other)??;
    let end = match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code),
        (None, signal) => End::Killed(signal.unwrap_or_default()),
    };
    let bytes: Vec<u8> = lock(tail).iter().copied().collect();
    Ok(Ended { end, output: String::from_utf8_lossy(&bytes).trim().to_owned() })
}

fn start_and_wait(
    program: Program,
    leader: &Leader,
    tail: &Arc<Mutex<VecDeque<u8>>>,
    started: oneshot::Sender<()>,
) -> std::io::Result<std::process::ExitStatus> {
    let (reader, writer) = std::io::pipe()?;
    // Before the program: one that is under way would have to be killed again where there is no thread for it.
    let drained = keep_tail(reader, Arc::clone(tail))?;
    let mut command = match &program.setpriv {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).args(&program.argv);
            command
        }
        None => {
            let mut command = Command::new(program.argv.first().cloned().unwrap_or_default());
            command.args(program.argv.iter().skip(1));
            command
        }
    };
    command.current_dir(&program.directory).process_group(0).stdin(Stdio::null());
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // Our copies of the writing end: with them gone, the end of the program's output can be seen.
    drop(command);
    let pid = Pid::from_child(&child);
    *lock(leader) = Some(pid);
    if started.send(()).is_err() {
        // Nobody waits any more.
        signal(leader, Signal::KILL);
    }
    // Wait without reaping: until then nobody else can get the number, and the group can be killed safely.
    let wait = || waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    while matches!(wait(), Err(rustix::io::Errno::INTR)) {}
    signal(leader, Signal::KILL);
    *lock(leader) = None;
    let status = child.wait();
    // A process that left the group may hold the pipe for ever: do not wait for it.
    let _ = drained.recv_timeout(LAST_OUTPUT);
    status
}

/// Reads all output on a thread of its own, keeping the last bytes; the channel closes at its end.
///
/// # Errors
/// When the machine gives no thread.
fn keep_tail(
    mut reader: std::io::PipeReader,
    tail: Arc<Mutex<VecDeque<u8>>>,
) -> std::io::Result<std::sync::mpsc::Receiver<()>> {
    let (done, drained) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("program-output".to_owned()).spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(count) = reader.read(&mut buffer)
            && count > 0
        {
            let mut tail = lock(&tail);
            tail.extend(&buffer[..count]);
            let excess = tail.len().saturating_sub(TAIL_BYTES);
            tail.drain(..excess);
        }
        drop(done);
    })?;
    Ok(drained)
}

/// Where `program` is: itself when it has a slash (relative to `directory`), else searched in `PATH`.
pub(super) fn find_program(program: &str, directory: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let executable = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(directory.join(program)).filter(executable);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(executable)
}

/// `setpriv`, if this machine has one that knows `--pdeathsig`.
pub(super) fn find_setpriv() -> Option<PathBuf> {
    let setpriv = find_program("setpriv", Path::new("/"))?;
    let mut trial = Command::new(&setpriv);
    trial.args(["--pdeathsig", "KILL", "--", "true"]);
    trial.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    trial.status().is_ok_and(|status| status.success()).then_some(setpriv)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: String) -> Program {
        let argv = vec![OsString::from("/bin/sh"), "-c".into(), script.into()];
        Program { argv, directory: "/".into(), setpriv: None }
    }

    /// The only thread is taken, so a program has to wait for its turn.
    #[test]
    fn a_program_that_is_cancelled_before_its_turn_is_never_started() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("started");
        let script = || shell(format!("touch '{}'", mark.display()));
        let runtime =
            tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
        let minute = Duration::from_secs(60);
        runtime.block_on(async {
            let (release, released) = std::sync::mpsc::channel::<()>();
            let taken = tokio::task::spawn_blocking(move || released.recv());
            let cancel = CancellationToken::new();
            let ended = async { tokio::join!(run(script(), minute, minute, &cancel), async { cancel.cancel() }).0 };
            let ended = tokio::time::timeout(minute, ended).await.expect("it must not wait for its turn");
            assert_eq!(ended.unwrap().end, End::Cancelled);
            {
                // Given up half-way, without a word.
                let cancel = CancellationToken::new();
                let dropped = run(script(), minute, minute, &cancel);
                tokio::pin!(dropped);
                assert!(futures_util::poll!(&mut dropped).is_pending());
            }
            release.send(()).unwrap();
            taken.await.unwrap().unwrap();
            // Blocking work is done in turn: both programs have had theirs when this one has.
            let ended = run(shell("true".to_owned()), minute, minute, &CancellationToken::new()).await.unwrap();
            assert_eq!(ended.end, End::Exited(0));
        });
        assert!(!mark.exists());
    }

    #[tokio::test]
    async fn a_program_that_is_being_started_is_waited_for_and_then_ended() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let (started, has_started) = oneshot::channel();
        let turn = Turn::default();
        assert!(turn.take(), "by the thread that starts it");
        let begun = is_begun(has_started, &turn, &cancel);
        tokio::pin!(begun);
        assert!(futures_util::poll!(&mut begun).is_pending(), "it comes up");
        started.send(()).unwrap();
        assert!(begun.await);
        // A start that fails ends the wait too.
        let (started, has_started) = oneshot::channel();
        drop(started);
        assert!(is_begun(has_started, &turn, &cancel).await);
        // Before its turn, it is called off for good.
        let (_started, has_started) = oneshot::channel();
        let turn = Turn::default();
        assert!(!is_begun(has_started, &turn, &cancel).await && !turn.take());
    }
}
