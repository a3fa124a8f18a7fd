//! Whether models give their tokens the same ids: merged rows belong to ids, and one tokenizer has to fit them all.

use std::collections::BTreeMap;

use serde_json::Value;

use super::MergeError;
use super::model::Model;
use super::output::{TOKENIZER_CONFIG, tokenizer_donor};
use super::plan::{MergePlan, PlannedTensor, is_vocabulary};
use crate::checkpoint::Checkpoint;
use crate::python_json::mark_nonfinite;
use crate::recipe::{Recipe, UNION};

const TOKENIZER: &str = "tokenizer.json";
/// Most bytes of it that are read; those of large vocabularies have some 35 MB.
const LARGEST_TOKENIZER: u64 = 256 << 20;

/// Refuses a recipe that asks for one model's tokenizer (`tokenizer_source`) where another model has other ids for its
/// tokens, or lacks one that has a row: a row of padding would be merged into the token's. Refuses one that asks for that
/// of all where they differ in any token. Models without a `tokenizer.json` are taken at their word.
///
/// # Errors
/// Tokens have different ids, or a model lacks one.
pub(crate) fn check_tokenizers(plan: &MergePlan, models: &[Model], recipe: &Recipe) -> Result<(), MergeError> {
    let donor = tokenizer_donor(plan, recipe)?;
    match recipe.tokenizer_source.as_deref() {
        None => return Ok(()),
        Some(UNION) => return refuse_to_join(plan, models, donor),
        Some(_) => {}
    }
    let Some(expected) = token_ids(&models[donor].checkpoint)? else { return Ok(()) };
    let rows = embedding_rows(&models[donor].checkpoint);
    for index in plan.used_models().into_iter().filter(|index| *index != donor) {
        let Some(found) = token_ids(&models[index].checkpoint)? else { continue };
        let differs = |(token, id): &(&String, &u64)| expected.get(*token).is_some_and(|other| other != *id);
        let fix = "bring the models to one tokenizer first; rows are merged by their place, and are not moved";
        let (name, of) = (&models[index].name, &models[donor].name);
        if let Some((token, id)) = found.iter().find(differs) {
            return Err(MergeError::Incompatible(format!(
                "tokenizer_source: the token {token:?} has the id {id} in `{name}`, {} in `{of}`; {fix}",
                expected[token]
            )));
        }
        let of_others: BTreeMap<&u64, &String> = expected.iter().map(|(token, id)| (id, token)).collect();
        let taken =
            found.iter().find_map(|(token, id)| Some((token, id, of_others.get(id).filter(|own| **own != token)?)));
        if let Some((token, id, own)) = taken {
            return Err(MergeError::Incompatible(format!(
                "tokenizer_source: the id {id} is the token {token:?} in `{name}`, {own:?} in `{of}`; {fix}"
            )));
        }
        let lacks = |(token, id): &(&String, &u64)| **id < rows && !found.contains_key(*token);
        if let Some((token, id)) = expected.iter().find(lacks) {
            return Err(MergeError::Incompatible(format!(
                "tokenizer_source: the token {token:?} (id {id}) of `{of}` is none of `{name}`, whose row {id} is padding that \
                 would be merged with it; name a tokenizer whose tokens all models have, or give `{name}` that of `{of}` first \
                 (with the token's row, or resize_token_embeddings)"
            )));
        }
    }
    Ok(())
}

/// How many rows the tokens of a model need, of those that its embedding has; `None`: nobody knows its tokens.
pub(crate) fn rows_of_tokens(checkpoint: &Checkpoint) -> Result<Option<usize>, MergeError> {
    let Some(ids) = token_ids(checkpoint)? else { return Ok(None) };
    let rows = embedding_rows(checkpoint);
    let last = ids.values().filter(|id| **id < rows).max();
    Ok(last.and_then(|id| usize::try_from(*id).ok()?.checked_add(1)))
}

/// Says that embeddings and heads were cut to the tokenizer's tokens.
pub(crate) fn note_of_rows(plan: &MergePlan, recipe: &Recipe) -> Result<Option<String>, MergeError> {
    let Some(rows) = plan.tokenizer_rows else { return Ok(None) };
    let model = &plan.models[tokenizer_donor(plan, recipe)?];
    Ok(Some(format!(
        "embeddings or heads have different numbers of rows in the models: they are cut to the {rows} rows that the tokens of \
         `{model}` need (`tokenizer_source`), as in mergekit"
    )))
}

/// Says that rows are merged for which mergekit draws no masks, as it drops padding under `tokenizer_source`: where its
/// stream of masks is wanted, all later masks are others.
pub(crate) fn note_of_padding(
    plan: &MergePlan,
    models: &[Model],
    recipe: &Recipe,
) -> Result<Option<String>, MergeError> {
    if recipe.tokenizer_source.is_none() {
        return Ok(None);
    }
    let donor = tokenizer_donor(plan, recipe)?;
    let Some(rows) = rows_of_tokens(&models[donor].checkpoint)? else { return Ok(None) };
    let is_padded = |tensor: &&PlannedTensor| is_vocabulary(&tensor.name) && tensor.shape.first() > Some(&rows);
    Ok(plan.tensors.iter().find(is_padded).map(|tensor| {
        format!(
            "`{}` is merged with its padding, which mergekit drops where `tokenizer_source` is given: mergekit draws masks for the \
             {rows} rows of the tokens alone, and all later masks are others than these",
            tensor.name
        )
    }))
}

/// Rows of the input embedding; without one, every token counts as one that has a row.
fn embedding_rows(checkpoint: &Checkpoint) -> u64 {
    checkpoint.input_embedding().and_then(|info| info.shape.first()).map_or(u64::MAX, |rows| *rows as u64)
}

/// The union of vocabularies is any of them where all models have the same tokens with the same ids; others are not
/// joined.
fn refuse_to_join(plan: &MergePlan, models: &[Model], donor: usize) -> Result<(), MergeError> {
    let refused = |why: String| {
        MergeError::Plan(format!(
            "tokenizer_source: joining vocabularies is not supported, and {why}; give `base` or a model whose tokenizer is copied"
        ))
    };
    let unknown = |model: &Model| refused(format!("`{}` has no {TOKENIZER} that tells its tokens", model.name));
    let expected = token_ids(&models[donor].checkpoint)?.ok_or_else(|| unknown(&models[donor]))?;
    for index in plan.used_models().into_iter().filter(|index| *index != donor) {
        let found = token_ids(&models[index].checkpoint)?.ok_or_else(|| unknown(&models[index]))?;
        let own = found.iter().find(|(token, id)| expected.get(*token) != Some(*id));
        let Some((token, _)) = own.or_else(|| expected.iter().find(|(token, _)| !found.contains_key(*token))) else {
            continue;
        };
        let place = |ids: &BTreeMap<String, u64>| ids.get(token).map_or("none".to_owned(), u64::to_string);
        return Err(refused(format!(
            "these differ: the id of {token:?} is {} in `{}`, {} in `{}`",
            place(&found),
            models[index].name,
            place(&expected),
            models[donor].name
        )));
    }
    Ok(())
}

/// Ids by token, of the vocabulary and of the added tokens; `None` without a file, or with one of another kind.
fn token_ids(checkpoint: &Checkpoint) -> Result<Option<BTreeMap<String, u64>>, MergeError> {
    let Some(tokenizer) = read_json(checkpoint, TOKENIZER)? else { return Ok(None) };
    let Some(mut ids) = ids_of(&tokenizer) else { return Ok(None) };
    // Loaders add what `tokenizer.json` lacks of these.
    if let Some(settings) = read_json(checkpoint, TOKENIZER_CONFIG)? {
        for (token, id) in added_by_settings(&settings) {
            ids.entry(token).or_insert(id);
        }
    }
    Ok(Some(ids))
}

fn read_json(checkpoint: &Checkpoint, name: &str) -> Result<Option<Value>, MergeError> {
    let Some(text) = checkpoint.read_sidecar(name, LARGEST_TOKENIZER)? else { return Ok(None) };
    // Python writes bare infinities.
    let marked = std::str::from_utf8(&text).map(mark_nonfinite).unwrap_or_default();
    serde_json::from_str(&marked).map(Some).map_err(|error| {
        let file = checkpoint.path().join(name);
        MergeError::Incompatible(format!(
            "tokenizer_source: {} is no JSON ({error}), so that nobody knows its tokens' ids; put the right file back",
            file.display()
        ))
    })
}

/// Tokens that `tokenizer_config.json` lists.
fn added_by_settings(settings: &Value) -> impl Iterator<Item = (String, u64)> {
    let added = settings.get("added_tokens_decoder").and_then(Value::as_object);
    added
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((token.get("content")?.as_str()?.to_owned(), id.parse().ok()?)))
}

fn ids_of(tokenizer: &Value) -> Option<BTreeMap<String, u64>> {
    let mut ids = BTreeMap::new();
    match tokenizer.pointer("/model/vocab") {
        Some(Value::Object(vocabulary)) => {
            ids.extend(vocabulary.iter().filter_map(|(token, id)| Some((token.clone(), id.as_u64()?))));
        }
        // A Unigram model lists its pieces with their scores, in order of their ids.
        Some(Value::Array(pieces)) => {
            let names = pieces.iter().map(|piece| piece.get(0).and_then(Value::as_str).map(str::to_owned));
            ids.extend(names.zip(0..).filter_map(|(token, id)| Some((token?, id))));
        }
        _ => return None,
    }
    for added in tokenizer.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        if let (Some(token), Some(id)) = (added["content"].as_str(), added["id"].as_u64()) {
            ids.insert(token.to_owned(), id);
        }
    }
    Some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(tokenizer: &str) -> Option<BTreeMap<String, u64>> {
        ids_of(&serde_json::from_str(tokenizer).unwrap())
    }

    #[test]
    fn vocabularies_of_all_kinds_are_read() {
        let expected = BTreeMap::from([("a".to_owned(), 0), ("b".to_owned(), 1), ("<s>".to_owned(), 2)]);
        let added = r#""added_tokens": [{"id": 2, "content": "<s>"}]"#;
        let pairs = format!(r#"{{"model": {{"type": "BPE", "vocab": {{"a": 0, "b": 1}}}}, {added}}}"#);
        assert_eq!(ids(&pairs).as_ref(), Some(&expected));
        let unigram = format!(r#"{{"model": {{"type": "Unigram", "vocab": [["a", -1.5], ["b", -2.0]]}}, {added}}}"#);
        assert_eq!(ids(&unigram).as_ref(), Some(&expected));
        assert_eq!(ids("{}"), None);
    }

    #[test]
    fn tokens_that_only_the_settings_add_are_read() {
        let settings =
            serde_json::json!({"added_tokens_decoder": {"7": {"content": "<pad>"}, "x": {"content": "y"}, "8": 9}});
        assert_eq!(added_by_settings(&settings).collect::<Vec<_>>(), [("<pad>".to_owned(), 7)]);
        assert_eq!(added_by_settings(&Value::Null).count(), 0);
    }
}
