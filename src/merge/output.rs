//! The small files of a merged checkpoint: configuration and side files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::MergeError;
use super::model::Model;
use super::plan::MergePlan;
use super::stacked_config::{is_stacked, set_layers};
use crate::checkpoint::{
    Checkpoint, CheckpointError, CheckpointWriter, Dtype, holds_vocabulary, is_head, is_input_embedding, untie_head,
};
use crate::python_json::{mark_nonfinite, unmark_nonfinite};
use crate::recipe::{ModelReference, Recipe};

const GENERATION_CONFIG: &str = "generation_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
const OLD_CHAT_TEMPLATE: &str = "chat_template.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The donor's configuration, changed where the merged model differs from the donor.
pub(crate) fn merged_config(plan: &MergePlan, models: &[Model], recipe: &Recipe) -> Map<String, Value> {
    let donor = &models[plan.donor];
    let mut config = donor.checkpoint.config().clone();
    if let Some(dtype) = recipe.out_dtype.or(recipe.dtype) {
        set_dtype(&mut config, dtype);
    }
    if is_stacked(plan, models) {
        set_layers(&mut config, plan, models);
    }
    untie(&mut config, plan, models);
    set_vocabulary(&mut config, plan, models);
    config
}

/// Embeddings that are cut have fewer rows than the donor's.
fn set_vocabulary(config: &mut Map<String, Value>, plan: &MergePlan, models: &[Model]) {
    let own = models[plan.donor].checkpoint.tensors();
    for tensor in plan.tensors.iter().filter(|tensor| is_input_embedding(&tensor.name)) {
        let rows = own.get(&tensor.name).and_then(|info| info.shape.first());
        if let (Some(before), Some(after)) = (rows, tensor.shape.first())
            && before != after
        {
            with_text_config(config, |config| {
                if let Some(value) = config.get_mut("vocab_size") {
                    *value = (*after).into();
                }
            });
        }
    }
}

/// Composite models keep the text model's settings one level down.
fn with_text_config(config: &mut Map<String, Value>, mut change: impl FnMut(&mut Map<String, Value>)) {
    change(config);
    if let Some(Value::Object(text)) = config.get_mut("text_config") {
        change(text);
    }
}

fn set_dtype(config: &mut Map<String, Value>, dtype: Dtype) {
    let mut found = false;
    with_text_config(config, |config| {
        for key in ["dtype", "torch_dtype"] {
            if let Some(value) = config.get_mut(key) {
                *value = dtype.name().into();
                found = true;
            }
        }
    });
    if !found {
        config.insert("torch_dtype".to_owned(), dtype.name().into());
    }
}

/// A head of its own is written as soon as one model has one; a configuration that ties it would make loaders drop it.
fn untie(config: &mut Map<String, Value>, plan: &MergePlan, models: &[Model]) {
    let tied = models[plan.donor].checkpoint.ties_head();
    let writes_head = plan.tensors.iter().any(|tensor| is_head(&tensor.name));
    let all_tie = plan.used_models().iter().all(|index| models[*index].checkpoint.ties_head());
    if tied && writes_head && !all_tie {
        untie_head(config);
    }
}

/// The model whose tokenizer the output takes.
///
/// # Errors
/// `tokenizer_source` names neither `base` nor one of the models.
pub(crate) fn tokenizer_donor(plan: &MergePlan, recipe: &Recipe) -> Result<usize, MergeError> {
    tokenizer_model(recipe, plan.donor, plan.models.iter())
}

/// The model whose tokenizer the output takes, found before there is a plan: `donor` is the index of the plan's donor,
/// `models` are the names of all models by index.
pub(crate) fn tokenizer_model<'a>(
    recipe: &Recipe,
    donor: usize,
    mut models: impl Iterator<Item = &'a ModelReference>,
) -> Result<usize, MergeError> {
    match recipe.named_tokenizer() {
        None => Ok(donor),
        Some(name) => models.position(|model| model.to_string() == name).ok_or_else(|| {
            MergeError::Plan(format!(
                "tokenizer_source `{name}` is neither `base` nor a model that has been opened for this merge"
            ))
        }),
    }
}

/// A model with a tokenizer, where the one whose tokenizer the output takes has none.
pub(crate) fn missing_tokenizer(
    plan: &MergePlan,
    models: &[Model],
    recipe: &Recipe,
) -> Result<Option<ModelReference>, MergeError> {
    let has_one = |index: usize| models[index].checkpoint.sidecars().iter().any(|file| holds_vocabulary(file));
    if has_one(tokenizer_donor(plan, recipe)?) {
        return Ok(None);
    }
    Ok(plan.used_models().into_iter().find(|index| has_one(*index)).map(|index| models[index].name.clone()))
}

/// Refuses a tokenizer that the output takes of which a file is not there.
pub(crate) fn check_side_files(plan: &MergePlan, models: &[Model], recipe: &Recipe) -> Result<(), MergeError> {
    let donor = tokenizer_donor(plan, recipe)?;
    let dangling = models[donor].checkpoint.dangling_sidecars();
    let needed = |path: &PathBuf| holds_vocabulary(path) || path.file_name().is_some_and(|own| own == TOKENIZER_CONFIG);
    match dangling.into_iter().find(needed) {
        None => Ok(()),
        Some(path) => {
            let source = std::io::Error::other(
                "it is a link that leads nowhere; is the download complete? Download the model again, or remove the link",
            );
            Err(CheckpointError::Read { path, source }.into())
        }
    }
}

/// What the output lacks of small files, a sentence each.
pub(crate) fn notes_of_side_files(
    plan: &MergePlan,
    models: &[Model],
    recipe: &Recipe,
) -> Result<Vec<String>, MergeError> {
    let donor = tokenizer_donor(plan, recipe)?;
    let dangling = models[donor].checkpoint.dangling_sidecars();
    let mut notes: Vec<String> = dangling
        .iter()
        .map(|path| format!("{} is a link that leads nowhere, so the output does not have that file", path.display()))
        .collect();
    notes.extend(note_of_code(&models[plan.donor].checkpoint));
    let has_none = !models[donor].checkpoint.sidecars().iter().any(|file| holds_vocabulary(file));
    if has_none && recipe.tokenizer_source.is_some() && missing_tokenizer(plan, models, recipe)?.is_none() {
        notes.push(format!(
            "the output has no tokenizer: `tokenizer_source` asks for that of `{}`, which has none",
            models[donor].name
        ));
    }
    Ok(notes)
}

/// Says which files of Python a configuration names that lie beside it: code is not copied.
fn note_of_code(checkpoint: &Checkpoint) -> Option<String> {
    // A tokenizer may have two classes, in a list.
    let values = checkpoint.config().get("auto_map")?.as_object()?.values();
    let classes = values.flat_map(|value| value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice));
    let classes = classes.filter_map(Value::as_str);
    // `organisation/name--module.Class` is code of another repository, which loaders find there.
    let modules = classes.filter(|class| !class.contains("--")).filter_map(|class| class.split_once('.'));
    let files: BTreeSet<String> = modules.map(|(module, _)| format!("{module}.py")).collect();
    (!files.is_empty()).then(|| {
        format!(
            "config.json names code of the model's own (`auto_map`), which is not copied: loaders with `trust_remote_code` need {} \
             of {}, and what they import, beside the output",
            files.into_iter().collect::<Vec<_>>().join(", "),
            checkpoint.path().display()
        )
    })
}

/// Copies tokenizer, template and generation settings, and writes the recipe's chat template where it has one.
pub(crate) fn write_side_files(
    writer: &CheckpointWriter,
    plan: &MergePlan,
    models: &[Model],
    recipe: &Recipe,
) -> Result<(), MergeError> {
    let tokenizer = tokenizer_donor(plan, recipe)?;
    let named = |path: &Path, name: &str| path.file_name().is_some_and(|own| own == name);
    for file in models[tokenizer].checkpoint.sidecars() {
        let foreign = tokenizer != plan.donor && named(&file, GENERATION_CONFIG);
        let template = named(&file, CHAT_TEMPLATE) || named(&file, OLD_CHAT_TEMPLATE);
        let replaced = template && recipe.chat_template.is_some();
        match &recipe.chat_template {
            _ if foreign || replaced => {}
            Some(template) if named(&file, TOKENIZER_CONFIG) => {
                writer.put_file(TOKENIZER_CONFIG, &with_template(&file, template)?)?;
            }
            _ => writer.copy_file(&file)?,
        }
    }
    if tokenizer != plan.donor {
        let settings = models[plan.donor].checkpoint.sidecars();
        if let Some(file) = settings.iter().find(|file| named(file, GENERATION_CONFIG)) {
            writer.copy_file(file)?;
        }
    }
    if let Some(template) = &recipe.chat_template {
        writer.put_file(CHAT_TEMPLATE, template.as_bytes())?;
    }
    Ok(())
}

/// A tokenizer configuration with another chat template; unchanged where it has none.
fn with_template(file: &Path, template: &str) -> Result<Vec<u8>, MergeError> {
    let text = std::fs::read(file).map_err(|source| CheckpointError::Read { path: file.to_owned(), source })?;
    // Large numbers (`model_max_length`) and infinities stay as they are.
    let marked = std::str::from_utf8(&text).map(mark_nonfinite).unwrap_or_default();
    match serde_json::from_str::<Map<String, Value>>(&marked) {
        Ok(mut config) if config.contains_key("chat_template") => {
            config.insert("chat_template".to_owned(), template.into());
            Ok(pretty(&config))
        }
        _ => Ok(text),
    }
}

/// JSON as `transformers` writes it: indented by two, with a newline at the end.
pub(crate) fn pretty(object: &Map<String, Value>) -> Vec<u8> {
    unmark_nonfinite(&format!("{:#}\n", Value::Object(object.clone()))).into_bytes()
}
