//! The `evomerge` program: parses arguments, prints errors, sets the exit code.

fn main() -> std::process::ExitCode {
    evomerge::cli::main().into()
}
