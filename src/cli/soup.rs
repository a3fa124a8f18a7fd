//! `evomerge soup`: the soup strategies of a run file, under the name NAME-soup.

use super::arguments::Soup;
use super::error::CliError;
use super::output::Output;
use super::search::{execute, ledger_of, load};
use crate::exit::ExitCode;
use crate::search::RunOptions;

pub(super) fn run(arguments: &Soup, output: Output) -> Result<ExitCode, CliError> {
    let mut config = load(&arguments.run)?;
    let reuse = ledger_of(&arguments.run.results, &config.name);
    config.name.push_str("-soup");
    config.space = None;
    let keep = config.strategy.settings.remove("keep");
    if config.strategy.kind != "uniform-soup" {
        config.strategy.kind = "greedy-soup".into();
    }
    config.strategy.settings = keep.into_iter().map(|keep| ("keep".to_string(), keep)).collect();
    execute(config, &arguments.run, RunOptions { reuse: Some(reuse) }, output)
}
