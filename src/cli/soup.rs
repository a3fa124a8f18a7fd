//! `evomerge soup`: the soup strategies of a run file, under the name NAME-soup.

use super::arguments::Soup;
use super::error::CliError;
use super::output::Output;
use super::search::{execute, load};
use crate::config::StrategyKind;
use crate::exit::ExitCode;
use crate::search::{RunFolder, RunOptions};
use crate::strategy::SOUP_SETTINGS;

pub(super) fn run(arguments: &Soup, output: Output) -> Result<ExitCode, CliError> {
    let mut config = load(&arguments.run)?;
    let reuse = RunFolder::ledger_in(&arguments.run.results.join(&config.name));
    config.name.push_str("-soup");
    config.space = None;
    // A soup strategy keeps all its settings, so that a misspelt one is reported; of another strategy's settings, those
    // that a soup has are kept.
    if !config.strategy.kind.is_soup() {
        config.strategy.kind = StrategyKind::GreedySoup;
        config.strategy.settings.retain(|name, _| SOUP_SETTINGS.contains(&name));
    }
    execute(config, &arguments.run, RunOptions { reuse: Some(reuse) }, output)
}
