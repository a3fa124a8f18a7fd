//! The command line, one file a subcommand.

mod arguments;
mod check;
mod error;
mod evaluate;
mod export;
mod merge;
mod mergekit_flags;
mod methods;
mod model_card;
mod models;
mod output;
mod progress;
mod quantities;
mod runtime;
mod search;
mod signals;
mod simulate;
mod soup;
mod status;

use clap::Parser as _;

use crate::checkpoint::explain_file_signals;
use crate::exit::ExitCode;
use arguments::{Arguments, Command};
use error::CliError;
use output::{Output, error_document, say};

/// Parses the process's arguments, runs the command, reports an error on stderr.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; clap prints each to its proper stream.
            let _ = error.print();
            if !error.use_stderr() {
                return ExitCode::Done;
            }
            // What cannot be parsed still says which form the answer is to have.
            if std::env::args_os().take_while(|argument| argument != "--").any(|argument| argument == "--json") {
                let text = error.render().to_string();
                error_document(text.strip_prefix("error: ").unwrap_or(&text).trim_end(), ExitCode::Usage);
            }
            return ExitCode::Usage;
        }
    };
    let output = Output::new(&arguments.common);
    allow_many_files();
    explain_file_signals();
    match std::panic::catch_unwind(|| dispatch(&arguments.command, output)) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            output.error(&error);
            error.exit_code()
        }
        // The hook has printed what broke and where.
        Err(_) => {
            say(
                "error: a bug in evomerge ended this command; what was recorded is safe. Please report the lines above.",
            );
            ExitCode::Internal
        }
    }
}

/// More than the shards of any model; programs that an evaluator starts inherit the limit, and some walk through all of
/// it.
const OPEN_FILES: u64 = 1 << 16;

/// A merge has all shards of its output open, and the usual soft limit is 1,024 files; the hard one is a thousand times
/// that.
fn allow_many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(OPEN_FILES, |most| most.min(OPEN_FILES));
    if limit.current.is_some_and(|current| current < wanted) {
        // Where it is refused, a merge of too many shards says what it could not open.
        let _ = setrlimit(Resource::Nofile, rustix::process::Rlimit { current: Some(wanted), ..limit });
    }
}

fn dispatch(command: &Command, output: Output) -> Result<ExitCode, CliError> {
    match command {
        Command::Search(arguments) => search::run(arguments, output),
        Command::Soup(arguments) => soup::run(arguments, output),
        Command::Merge(arguments) => merge::run(arguments, output),
        Command::Evaluate(arguments) => evaluate::run(arguments, output),
        Command::Check(arguments) => check::run(arguments, output),
        Command::Status(arguments) => status::run(arguments, output),
        Command::Export(arguments) => export::run(arguments, output),
        Command::Simulate(arguments) => simulate::run(arguments, output),
        Command::Methods(arguments) => methods::run(arguments, output),
    }
}
