//! Options of `mergekit-yaml` that command lines carry and that change nothing here: taken, and told in a note.

use clap::{Arg, ArgAction, ArgMatches, Command, Error};

const SAFE: &str = "safe-serialization";
const NOT_SAFE: &str = "no-safe-serialization";

/// Options without a value, and their opposites.
const SWITCHES: [[&str; 2]; 12] = [
    ["allow-crimes", "no-allow-crimes"],
    ["async-write", "no-async-write"],
    ["clone-tensors", "no-clone-tensors"],
    ["copy-tokenizer", "no-copy-tokenizer"],
    ["cuda", "no-cuda"],
    ["gpu-rich", "no-gpu-rich"],
    ["lazy-unpickle", "no-lazy-unpickle"],
    ["low-cpu-memory", "no-low-cpu-memory"],
    ["multi-gpu", "no-multi-gpu"],
    ["read-to-gpu", "no-read-to-gpu"],
    [SAFE, NOT_SAFE],
    ["trust-remote-code", "no-trust-remote-code"],
];
/// Options with a value.
const SETTINGS: [&str; 5] = ["device", "lora-merge-cache", "lora-merge-dtype", "transformers-cache", "write-threads"];

/// The names of mergekit's options that were given, without hyphens before them.
#[derive(Clone, Debug, Default)]
pub(super) struct MergekitFlags(Vec<&'static str>);

impl MergekitFlags {
    /// What cannot be done.
    pub(super) fn refusal(&self) -> Option<String> {
        self.0.contains(&NOT_SAFE).then(|| format!("--{NOT_SAFE}: only safetensors are written; leave it out"))
    }

    /// A note that names them; `None` where none was given.
    pub(super) fn note(&self) -> Option<String> {
        let names: Vec<String> = self.0.iter().map(|name| format!("--{name}")).collect();
        (!names.is_empty()).then(|| format!("{} of mergekit-yaml: without effect here", names.join(", ")))
    }
}

/// Every name, and whether it takes a value.
fn names() -> impl Iterator<Item = (&'static str, bool)> {
    let switches = SWITCHES.into_iter().flatten().map(|name| (name, false));
    switches.chain(SETTINGS.into_iter().map(|name| (name, true)))
}

impl clap::FromArgMatches for MergekitFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = |(name, takes_value): (&'static str, bool)| {
            let is_given = if takes_value { matches.contains_id(name) } else { matches.get_flag(name) };
            is_given.then_some(name)
        };
        Ok(Self(names().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for MergekitFlags {
    fn augment_args(command: Command) -> Command {
        names().fold(command, |command, (name, takes_value)| {
            let action = if takes_value { ArgAction::Set } else { ArgAction::SetTrue };
            command.arg(Arg::new(name).long(name).action(action).overrides_with(name).hide(true))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
