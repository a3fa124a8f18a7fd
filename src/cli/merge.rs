//! `evomerge merge`.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::arguments::{MaskChoice, Merge};
use super::duration::human_bytes;
use super::error::CliError;
use super::output::Output;
use crate::checkpoint::{ContentIds, open_model};
use crate::exit::ExitCode;
use crate::merge::{MergeOptions, MergeReport, Merger, MergerOptions};
use crate::recipe::{MaskKind, Recipe};

pub(super) fn run(arguments: &Merge, output: Output) -> Result<ExitCode, CliError> {
    let mut recipe = Recipe::read(&arguments.recipe)?;
    if let Some(seed) = arguments.seed {
        recipe.masks.seed = seed;
    }
    match arguments.dare_masks {
        Some(MaskChoice::Native) => recipe.masks.kind = MaskKind::Native,
        Some(MaskChoice::Mergekit) => recipe.masks.kind = MaskKind::Mergekit,
        None => {}
    }
    recipe.dtype = arguments.dtype.or(recipe.dtype);
    recipe.out_dtype = arguments.out_dtype.or(recipe.out_dtype);
    let own_folder = arguments.recipe.parent().unwrap_or_else(|| Path::new("."));
    let folder = arguments.models_dir.as_deref().unwrap_or(own_folder);
    let merger = open_models(&recipe, folder, arguments.threads, arguments.truncate_embeddings)?;
    let options = MergeOptions {
        durable: true,
        replace: arguments.force,
        shard_size: arguments.shard_size,
        release_inputs: true,
        ..MergeOptions::default()
    };
    let report = materialize(&merger, &recipe, &arguments.out, options, output)?;
    output.result(&describe(&report, &arguments.out, output), &to_json(&report, &arguments.out));
    Ok(ExitCode::Done)
}

/// Opens the models of a recipe; relative names start at `folder`.
pub(super) fn open_models(
    recipe: &Recipe,
    folder: &Path,
    threads: Option<NonZeroUsize>,
    truncate_embeddings: bool,
) -> Result<Merger, CliError> {
    let mut opened = BTreeMap::new();
    for model in recipe.models() {
        let checkpoint = open_model(&model.location, model.adapter.as_deref(), folder)?;
        opened.insert(model.clone(), Arc::new(checkpoint));
    }
    let options = MergerOptions { threads, truncate_embeddings, ..MergerOptions::default() };
    Ok(Merger::new(opened, ContentIds::in_user_cache(), options)?)
}

/// Materializes with a bar for merges that take a while.
pub(super) fn materialize(
    merger: &Merger,
    recipe: &Recipe,
    out: &Path,
    options: MergeOptions<'_>,
    output: Output,
) -> Result<MergeReport, CliError> {
    use std::io::IsTerminal as _;
    let bar = if output.quiet || !std::io::stderr().is_terminal() {
        indicatif::ProgressBar::hidden()
    } else {
        let style =
            indicatif::ProgressStyle::with_template("{bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta} left");
        indicatif::ProgressBar::new(merger.required_bytes(recipe)?)
            .with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()))
    };
    let show = |progress: crate::merge::Progress| bar.set_position(progress.bytes_written);
    let options = MergeOptions { progress: Some(&show), ..options };
    let report = merger.materialize(recipe, out, &options);
    bar.finish_and_clear();
    Ok(report?)
}

fn describe(report: &MergeReport, out: &Path, output: Output) -> String {
    let mut text = format!("{}\n", out.display());
    if output.verbose > 0 {
        let moved = report.bytes_read + report.bytes_written;
        text.push_str(&format!(
            "{} tensors, {} read, {} written, {:.3} s, {:.2} GB/s\n",
            report.tensors,
            human_bytes(report.bytes_read),
            human_bytes(report.bytes_written),
            report.seconds,
            moved as f64 / report.seconds.max(1e-9) / 1e9
        ));
    }
    text
}

fn to_json(report: &MergeReport, out: &Path) -> serde_json::Value {
    serde_json::json!({
        "out": PathBuf::from(out),
        "tensors": report.tensors,
        "bytes_read": report.bytes_read,
        "bytes_written": report.bytes_written,
        "seconds": report.seconds,
    })
}
