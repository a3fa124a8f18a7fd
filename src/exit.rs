//! Exit codes of the command line, after sysexits where one fits.

/// What the process tells its caller. Every error enum of the crate maps its variants to one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The command did what was asked.
    Done = 0,
    /// A bug in evomerge.
    Internal = 1,
    /// Arguments that cannot be understood.
    Usage = 2,
    /// The search finished without evidence of improvement (only with `--require-improvement`).
    NoEvidence = 64,
    /// Bad input data: checkpoint, recipe or task data.
    BadData = 65,
    /// Disk full or not writable; a run is resumable.
    NotWritable = 73,
    /// Stopped but resumable: second process, signal, outage, retry budget spent.
    Stopped = 75,
    /// Bad configuration.
    BadConfiguration = 78,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
