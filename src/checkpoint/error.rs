//! What can go wrong with a checkpoint, in words for the person who has to mend it.

use std::path::PathBuf;

use crate::exit::ExitCode;

/// Longest part of a foreign name that a message shows, in characters.
const SHOWN: usize = 160;
/// Differences that a message lists.
const LISTED: usize = 5;

/// Failure to open, compare, find or write a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused to read something.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The location is not a Hugging Face model directory with safetensors.
    #[error("{} is not a checkpoint that evomerge can read: {reason}", path.display())]
    NotACheckpoint {
        /// The location that was opened.
        path: PathBuf,
        /// What is missing, and what to do.
        reason: String,
    },
    /// The location is not a LoRA adapter with safetensors.
    #[error("{} is not a LoRA adapter that evomerge can read: {reason}", path.display())]
    NotAnAdapter {
        /// The location that was opened.
        path: PathBuf,
        /// What is missing, and what to do.
        reason: String,
    },
    /// `config.json` or `adapter_config.json` is not usable.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A safetensors file breaks the format.
    #[error("{}: not a valid safetensors file: {reason}", path.display())]
    Header {
        /// The weight file.
        path: PathBuf,
        /// The rule that is broken.
        reason: String,
    },
    /// A tensor is malformed or of a type that cannot be merged.
    #[error("{}: tensor {tensor}: {reason}", path.display())]
    Tensor {
        /// The weight file.
        path: PathBuf,
        /// The tensor's name, quoted.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `model.safetensors.index.json` is malformed or disagrees with the shards.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A weight file is no longer the one that was opened.
    #[error(
        "{} changed while it was in use; results made from it cannot be trusted (do not write into a model during a run)",
        path.display()
    )]
    Changed {
        /// The weight file.
        path: PathBuf,
    },
    /// Checkpoints that cannot be merged with each other.
    #[error("these models cannot be merged tensor by tensor:\n{}\n({})", list(differences), folders.join(", "))]
    Incompatible {
        /// Every difference found, a sentence each; of models of another architecture, this alone.
        differences: Vec<String>,
        /// Where the models lie that they speak of: a name and its folder each.
        folders: Vec<String>,
    },
    /// Neither a path nor a model in the local Hugging Face cache.
    #[error("model {location} not found: {reason}")]
    Unresolved {
        /// As written, quoted.
        location: String,
        /// Where it was looked for, and what to do.
        reason: String,
    },
    /// The destination is there already.
    #[error("{} exists already; {advice}", path.display())]
    Exists {
        /// The destination.
        path: PathBuf,
        /// What to do about it.
        advice: &'static str,
    },
    /// Not enough room for the output.
    #[error(
        "not enough disk space for {}: {} needed, {} available; free at least {} or choose another folder",
        path.display(), size(*needed), size(*available), size(needed.saturating_sub(*available))
    )]
    NoSpace {
        /// What was to be written.
        path: PathBuf,
        /// Bytes that the output takes.
        needed: u64,
        /// Bytes that the file system has left for this user.
        available: u64,
    },
    /// The operating system refused to write something.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The process, or the system, has as many files open as it may.
    #[error(
        "cannot open {}: {source}; a merge has every shard of its output open: raise the limit (`ulimit -n`), or write larger \
         shards (--shard-size)",
        path.display()
    )]
    TooManyFiles {
        /// What was to be opened.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The writer was asked for something that no safetensors file can hold, or was given other bytes than it was
    /// promised: a mistake of the caller, not of the user.
    #[error("{}: {reason}", path.display())]
    Output {
        /// The output directory.
        path: PathBuf,
        /// The rule that is broken.
        reason: String,
    },
}

impl CheckpointError {
    /// What the process tells its caller.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Read { .. }
            | Self::NotACheckpoint { .. }
            | Self::NotAnAdapter { .. }
            | Self::Config { .. }
            | Self::Header { .. }
            | Self::Tensor { .. }
            | Self::Index { .. }
            | Self::Changed { .. }
            | Self::Incompatible { .. }
            | Self::Unresolved { .. } => ExitCode::BadData,
            Self::Exists { .. } | Self::NoSpace { .. } | Self::TooManyFiles { .. } | Self::Write { .. } => {
                ExitCode::NotWritable
            }
            Self::Output { .. } => ExitCode::Internal,
        }
    }
}

/// A name from a foreign file as a message shows it: quoted, control characters escaped, cut when very long.
pub(super) fn quote(name: &str) -> String {
    let mut text = String::from("`");
    let mut characters = name.chars();
    for character in characters.by_ref().take(SHOWN) {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    if characters.next().is_some() {
        text.push('…');
    }
    text.push('`');
    text
}

fn list(differences: &[String]) -> String {
    let mut lines: Vec<String> = differences.iter().take(LISTED).map(|line| format!("  - {line}")).collect();
    if differences.len() > LISTED {
        lines.push(format!("  - and {} more", differences.len() - LISTED));
    }
    lines.join("\n")
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_names_cannot_reach_the_terminal_raw() {
        assert_eq!(quote("a\u{1b}[31m\n"), "`a\\u{1b}[31m\\n`");
        assert_eq!(quote(&"x".repeat(10_000)).chars().count(), SHOWN + 3);
    }

    #[test]
    fn long_lists_of_differences_are_cut_with_a_count() {
        let error = CheckpointError::Incompatible {
            differences: (0..25).map(|n| n.to_string()).collect(),
            folders: vec!["a: /models/a".to_owned()],
        };
        let text = error.to_string();
        assert!(text.contains("  - 4\n  - and 20 more\n") && text.ends_with("(a: /models/a)"), "{text}");
        assert_eq!(error.exit_code(), ExitCode::BadData);
    }
}
