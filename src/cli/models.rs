//! The models of a recipe, opened for a merge, and the merge itself with a bar.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::CliError;
use super::output::Output;
use super::signals;
use crate::checkpoint::{Checkpoint, ContentIds, align_names, open_model};
use crate::merge::{MergeOptions, MergeReport, Merger, MergerOptions};
use crate::recipe::{ModelReference, Recipe};

/// The models of a recipe.
pub(super) struct OpenModels {
    folder: PathBuf,
    models: BTreeMap<ModelReference, Arc<Checkpoint>>,
    content_ids: ContentIds,
}

impl OpenModels {
    /// Relative names start at `folder`.
    pub(super) fn open(recipe: &Recipe, folder: &Path) -> Result<Self, CliError> {
        let mut models = BTreeMap::new();
        for model in recipe.models() {
            models.insert(model.clone(), open_model(&model.location, model.adapter.as_deref(), folder)?);
        }
        align_names(models.values_mut());
        let models = models.into_iter().map(|(name, model)| (name, Arc::new(model))).collect();
        Ok(Self { folder: folder.to_owned(), models, content_ids: ContentIds::in_user_cache() })
    }

    /// Refuses models that are not those that the recipe in `path` was made from; `expected` may lack some.
    pub(super) fn check_content(
        &self,
        expected: &BTreeMap<ModelReference, String>,
        path: &Path,
    ) -> Result<(), CliError> {
        for (model, expected) in expected {
            let Some(checkpoint) = self.models.get(model) else { continue };
            let found = checkpoint.content_id(&self.content_ids)?;
            if found != *expected {
                let start = |id: &str| id.chars().take(16).collect::<String>();
                return Err(CliError::Data {
                    path: path.to_owned(),
                    reason: format!(
                        "the recipe was made from another `{model}`: content {} then, {} now; restore that model, or leave \
                         [content] out of the recipe to merge what is there",
                        start(expected),
                        start(&found)
                    ),
                });
            }
        }
        Ok(())
    }

    /// Refuses an output that would take the place of one of the models, of a folder that one lies in or has links to,
    /// or of the recipe.
    pub(super) fn refuse_to_replace(&self, out: &Path, recipe: &Path) -> Result<(), CliError> {
        let Ok(out) = out.canonicalize() else { return Ok(()) };
        let inside = |path: &Path| path.canonicalize().is_ok_and(|path| path.starts_with(&out));
        for (model, checkpoint) in &self.models {
            let adapter = model.adapter.as_deref().map(|adapter| self.folder.join(adapter));
            let weights = checkpoint.shards().iter().map(|shard| checkpoint.path().join(&shard.file));
            let read = [checkpoint.path().to_owned()].into_iter().chain(adapter).chain(weights);
            if read.into_iter().any(|path| inside(&path)) {
                return Err(CliError::Usage(format!(
                    "--out {} would replace the model `{model}`, which the merge reads; give another folder",
                    out.display()
                )));
            }
        }
        if recipe.canonicalize().is_ok_and(|recipe| recipe == out) {
            return Err(CliError::Usage(format!("--out {} is the recipe itself; give a folder", out.display())));
        }
        if inside(recipe) {
            return Err(CliError::Usage(format!(
                "--out {} would replace the folder that {} lies in; give another folder",
                out.display(),
                recipe.display()
            )));
        }
        Ok(())
    }

    pub(super) fn merger(self, options: MergerOptions) -> Result<Merger, CliError> {
        Ok(Merger::new(self.models, self.content_ids, options)?)
    }
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
    let show = |progress: crate::merge::MergeProgress| bar.set_position(progress.bytes_written);
    let cancel = signals::cancelled_by_signal();
    let options = MergeOptions { progress: Some(&show), cancel: Some(&cancel), ..options };
    let report = merger.materialize(recipe, out, &options);
    bar.finish_and_clear();
    Ok(report?)
}
