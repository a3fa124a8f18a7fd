//! Where text goes: results to stdout, everything else to stderr.

use std::io::Write as _;

use super::arguments::Common;
use super::error::CliError;
use crate::exit::ExitCode;

/// How much is printed, and in which form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub quiet: bool,
    pub verbose: u8,
    pub json: bool,
}

impl Output {
    pub(super) fn new(common: &Common) -> Self {
        Self { quiet: common.quiet, verbose: common.verbose, json: common.json }
    }

    /// The result: text for people, or one JSON document.
    ///
    /// # Errors
    /// It cannot be put in JSON (a bug), or written. A reader that went away (a closed pipe) has seen what it wanted, and is no error.
    pub(super) fn result(self, text: &str, document: &impl serde::Serialize) -> Result<(), CliError> {
        let mut stdout = std::io::stdout().lock();
        let written = if self.json {
            let document = serde_json::to_string_pretty(document).map_err(CliError::Document)?;
            writeln!(stdout, "{document}")
        } else {
            write!(stdout, "{text}")
        };
        match written.and_then(|()| stdout.flush()) {
            Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(CliError::Write { path: "standard output".into(), source })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn error(self, error: &CliError) {
        say(&format!("error: {error}"));
        if self.json {
            error_document(&error.to_string(), error.exit_code());
        }
    }
}

/// An error in the place of a result, for programs.
pub(super) fn error_document(error: &str, code: ExitCode) {
    let document = serde_json::json!({ "error": error, "exit_code": code as u8 });
    // The exit code and stderr say the same where this cannot be written.
    let _ = writeln!(std::io::stdout().lock(), "{document}");
}

/// A line for whoever watches. That nobody does any more (a closed terminal, a full disk) ends no run.
pub(super) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A table with aligned columns; numbers to the right.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| {
                let is_number = cell.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first));
                if is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            })
            .collect();
        padded.join("  ").trim_end().to_string() + "\n"
    };
    let mut text = line(header.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}
