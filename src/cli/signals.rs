//! Signals: the first asks for a stop in good order, the second for one at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::error::CliError;
use crate::exit::ExitCode;
use crate::search::Stop;

/// How long evaluations under way may take after SIGTERM: whoever manages processes kills soon after.
const GRACE: Duration = Duration::from_secs(30);

/// Turns SIGINT and SIGTERM into wishes of `stop`; SIGHUP (a lost terminal) does not end a night's run.
pub(super) fn watch(stop: Stop) -> Result<(), CliError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Runtime)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(CliError::Runtime)?;
    tokio::spawn(async move { while hang_up.recv().await.is_some() {} });
    tokio::spawn(async move {
        let is_terminated = tokio::select! {
            _ = interrupt.recv() => false,
            _ = terminate.recv() => true,
        };
        stop.soon.cancel();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = tokio::time::sleep(GRACE), if is_terminated => {}
        }
        stop.now.cancel();
    });
    Ok(())
}

/// A flag that the first SIGINT, SIGTERM or SIGHUP (a closed terminal) sets, for work that looks at it. A second SIGINT
/// or SIGTERM exits at once. If no signal thread can be started, the first signal ends the process as by default.
/// SIGHUP stays ignored if the process was started so (`nohup`).
pub(super) fn cancelled_by_signal() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = flag.clone();
    let (ready, is_ready) = std::sync::mpsc::channel();
    // The thread lives as long as the process.
    let _ = std::thread::Builder::new().name("signals".into()).spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            let mut hang_up = if ignores_hang_up() { None } else { signal(SignalKind::hangup()).ok() };
            let _ = ready.send(());
            loop {
                let hung_up = async {
                    match &mut hang_up {
                        Some(hang_up) => hang_up.recv().await,
                        None => std::future::pending().await,
                    }
                };
                // When a terminal is closed, a process may get SIGHUP twice: from its shell, and from the system.
                let is_asked_again = tokio::select! {
                    _ = interrupt.recv() => true,
                    _ = terminate.recv() => true,
                    _ = hung_up => false,
                };
                if seen.swap(true, Ordering::Relaxed) && is_asked_again {
                    std::process::exit(ExitCode::Stopped as i32);
                }
            }
        });
    });
    // An error says that the thread ended without listening.
    let _ = is_ready.recv();
    flag
}

/// Whether the process was started with SIGHUP ignored.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // Signals count from 1, bits from 0.
    let bit = 1 << (SignalKind::hangup().as_raw_value() - 1);
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & bit != 0)
}
