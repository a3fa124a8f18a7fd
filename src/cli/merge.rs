//! `evomerge merge`.

use std::path::Path;

use super::arguments::{MaskChoice, Merge};
use super::error::CliError;
use super::model_card;
use super::models::{OpenModels, materialize};
use super::output::{Output, say};
use super::quantities::human_bytes;
use crate::checkpoint::CheckpointError;
use crate::exit::ExitCode;
use crate::files::path_text;
use crate::merge::{MergeError, MergeOptions, MergeReport, MergerOptions, WriteMode};
use crate::recipe::{MaskKind, Recipe, RecipeFile};

pub(super) fn run(arguments: &Merge, output: Output) -> Result<ExitCode, CliError> {
    if let Some(refusal) = arguments.mergekit.refusal() {
        return Err(CliError::Usage(refusal));
    }
    let file = RecipeFile::read(&arguments.recipe)?;
    if !output.quiet {
        file.ignored.iter().for_each(|note| say(&format!("note: {}: {note}", arguments.recipe.display())));
        arguments.mergekit.note().iter().for_each(|note| say(&format!("note: {note}")));
    }
    let out = arguments.output_folder();
    let recipe = with_arguments(file.recipe.clone(), arguments);
    if !output.quiet {
        mask_note(arguments, &recipe).iter().for_each(|note| say(&format!("note: {note}")));
    }
    let own_folder = arguments.recipe.parent().unwrap_or_else(|| Path::new("."));
    let folder = arguments.models_dir.as_deref().unwrap_or(own_folder);
    let models = OpenModels::open(&recipe, folder).map_err(|error| with_other_folder(error, &recipe, arguments))?;
    models.check_content(&file.content_ids, &arguments.recipe)?;
    models.refuse_to_replace(out, &arguments.recipe)?;
    let card = arguments.write_model_card.then(|| model_card::of_merge(&folder_name(out), &recipe, folder));
    let files = card.map(|card| model_card::files(&recipe.to_toml(&file.content_ids), &recipe, card));
    let options = MergerOptions {
        threads: arguments.threads,
        truncate_embeddings: arguments.truncate_embeddings,
        ..MergerOptions::default()
    };
    let merger = models.merger(options)?;
    let options = MergeOptions {
        mode: WriteMode::durable(arguments.force),
        shard_size: arguments.shard_size.or(arguments.out_shard_size),
        release_inputs: true,
        files: files.as_deref().unwrap_or_default(),
        ..MergeOptions::default()
    };
    let report = materialize(&merger, &recipe, out, options, output)
        .map_err(|error| blamed_on_recipe(error, &recipe, &file, &arguments.recipe))?;
    if !output.quiet {
        say_notes(&report);
    }
    output.result(&describe(&report, out, output), &to_json(&report, out))?;
    Ok(ExitCode::Done)
}

/// What only shows with the models at hand, and the recipe is to blame for: with its file, and the line where one key is.
fn blamed_on_recipe(error: CliError, recipe: &Recipe, file: &RecipeFile, path: &Path) -> CliError {
    // Of what the command line says instead, plans fail over the kind of masks only.
    let is_of_file = recipe.masks.kind == file.recipe.masks.kind;
    match error {
        CliError::Merge(MergeError::Recipe(error)) => file.locate(error, path).into(),
        CliError::Merge(MergeError::Plan(reason)) if is_of_file => CliError::Data { path: path.to_owned(), reason },
        other => other,
    }
}

/// The recipe with what the command line says instead.
fn with_arguments(mut recipe: Recipe, arguments: &Merge) -> Recipe {
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
    recipe
}

/// What whoever uses the output should know.
fn say_notes(report: &MergeReport) {
    if report.is_narrowed {
        say(
            "note: the models are not all stored in one type, and the recipe names none: the output has the base's, else the first \
             model's, where mergekit promotes (bfloat16 and float32: float32); `dtype` or --dtype says which is meant",
        );
    }
    if let Some(model) = &report.missing_tokenizer {
        say(&format!(
            "note: the output has no tokenizer, since the model that gives configuration and tokenizer has none; `{model}` has \
             one, and `tokenizer_source` names the model whose tokenizer is copied"
        ));
    }
    report.notes.iter().for_each(|note| say(&format!("note: {note}")));
}

/// What masks are drawn where somebody may expect others: mergekit's from its configuration, or any at all.
fn mask_note(arguments: &Merge, recipe: &Recipe) -> Option<String> {
    let is_toml = arguments.recipe.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("toml"));
    if recipe.draws_masks() {
        let is_surprise = !is_toml && arguments.dare_masks.is_none() && recipe.masks.kind == MaskKind::Native;
        return is_surprise
            .then(|| "masks are evomerge's own, whatever the seed; --dare-masks mergekit draws mergekit's".to_owned());
    }
    let flags =
        [("--seed (--random-seed)", arguments.seed.is_some()), ("--dare-masks", arguments.dare_masks.is_some())];
    let given: Vec<&str> = flags.into_iter().filter(|(_, is_given)| *is_given).map(|(flag, _)| flag).collect();
    let what = format!("without effect, since this merge ({}) draws no masks", recipe.merge_method);
    (!given.is_empty()).then(|| format!("{}: {what}", given.join(", ")))
}

/// The output's own name, which a path like `.` does not show.
fn folder_name(out: &Path) -> String {
    let path = std::path::absolute(out).unwrap_or_else(|_| out.to_owned());
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// mergekit looks for relative paths in the current folder; whoever has them there gets told how to say so.
fn with_other_folder(error: CliError, recipe: &Recipe, arguments: &Merge) -> CliError {
    let CliError::Checkpoint(CheckpointError::Unresolved { location, reason }) = error else { return error };
    let models = recipe.models();
    let names = models.iter().flat_map(|model| [Some(&model.location), model.adapter.as_ref()]).flatten();
    let is_here = names.into_iter().any(|name| location.trim_matches('`') == name.as_str() && Path::new(name).exists());
    let reason = match is_here && arguments.models_dir.is_none() {
        true => format!(
            "{reason}; there is one in the current folder: relative names start at the recipe's folder, with `--models-dir .` \
             here, as in mergekit"
        ),
        false => reason,
    };
    CheckpointError::Unresolved { location, reason }.into()
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
        "out": path_text(out),
        "tensors": report.tensors,
        "bytes_read": report.bytes_read,
        "bytes_written": report.bytes_written,
        "seconds": report.seconds,
        "uncertain_masks": report.uncertain_masks,
        "is_narrowed": report.is_narrowed,
        "notes": report.notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::FieldError;
    use crate::recipe::RecipeError;

    #[test]
    fn what_shows_with_the_models_at_hand_names_the_recipes_file_and_line() {
        let text = "merge_method: passthrough\nslices:\n- sources:\n  - model: a\n    layer_range: [0, 9]\n";
        let file = RecipeFile::from_mergekit_yaml(text).unwrap();
        let mut recipe = file.recipe.clone();
        let blamed =
            |error: MergeError, recipe: &Recipe| blamed_on_recipe(error.into(), recipe, &file, Path::new("r.yml"));
        let key = "slices[0].sources[0].layer_range";
        let error = blamed(RecipeError::from(FieldError::new(key, "too many")).into(), &recipe);
        assert_eq!(error.to_string(), format!("r.yml: line 5: `{key}`: too many"));
        assert_eq!(error.exit_code(), ExitCode::BadData);
        let plan = || MergeError::Plan("it asks for too much".to_owned());
        let error = blamed(plan(), &recipe);
        assert_eq!((error.to_string().as_str(), error.exit_code()), ("r.yml: it asks for too much", ExitCode::BadData));
        assert_eq!(blamed(MergeError::Cancelled, &recipe).to_string(), MergeError::Cancelled.to_string());
        // The file says nothing of what --dare-masks asks for.
        recipe.masks.kind = MaskKind::Mergekit;
        let error = blamed(plan(), &recipe);
        assert_eq!((error.to_string(), error.exit_code()), (plan().to_string(), ExitCode::BadData));
    }
}
