//! Model cards: a README in Hugging Face's form, and the recipes beside it.

use std::path::Path;

use crate::checkpoint::HubId;
use crate::ledger::{AskedRecord, ToldRecord};
use crate::recipe::{Body, FilteredValue, Gradient, Input, ModelReference, Recipe, Setting, Slice, Value};
use crate::score::shown;
use crate::search::VerdictDocument;

/// The files that go with a merged model: `recipe.toml`, `mergekit_config.yml` and the card, each with its content.
pub(super) fn files(recipe_toml: &str, recipe: &Recipe, card: String) -> Vec<(String, Vec<u8>)> {
    let files = [
        ("recipe.toml", recipe_toml.to_owned()),
        ("mergekit_config.yml", recipe.to_mergekit_yaml()),
        ("README.md", card),
    ];
    files.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect()
}

/// What was merged, and how to make it again. Relative names start at `folder`.
pub(super) fn of_merge(name: &str, recipe: &Recipe, folder: &Path) -> String {
    let made = format!("made by evomerge {}", env!("CARGO_PKG_VERSION"));
    front_matter(recipe, folder) + &format!("# {name}\n\n") + &merge_of(recipe, &made) + &how_to_make_it(recipe, folder)
}

/// What was merged in a run, how it scored, and how to make it again. Relative names start at `folder`.
pub(super) fn of_run(
    run: &str,
    asked: &AskedRecord,
    told: Option<&ToldRecord>,
    recipe: &Recipe,
    verdict: Option<&VerdictDocument>,
    folder: &Path,
) -> String {
    let AskedRecord { candidate_id, index, origin, recipe_sha256, .. } = asked;
    let found = format!("found by evomerge {} in evaluation {index} ({origin})", env!("CARGO_PKG_VERSION"));
    let mut text =
        front_matter(recipe, folder) + &format!("# {run}: candidate {candidate_id}\n\n") + &merge_of(recipe, &found);
    if let Some(told) = told {
        text.push_str(&scores(told, asked.fidelity));
    }
    let verdict = verdict.map(|document| &document.verdict);
    if let Some(verdict) = verdict.filter(|verdict| verdict.winner.candidate_id == *candidate_id) {
        text.push_str(&format!("## Verdict\n\n{}\n\n", verdict.sentence));
    }
    text + &how_to_make_it(recipe, folder) + &format!("\nrecipe sha256: `{recipe_sha256}`\n")
}

fn front_matter(recipe: &Recipe, folder: &Path) -> String {
    let mut text = String::from("---\nlibrary_name: transformers\n");
    // The hub links to what it knows; folders of one machine are nobody else's business.
    let mut on_the_hub: Vec<&str> = Vec::new();
    for repository in locations(recipe).filter_map(|location| repository(location, folder)) {
        if !on_the_hub.contains(&repository) {
            on_the_hub.push(repository);
        }
    }
    if !on_the_hub.is_empty() {
        text.push_str("base_model:\n");
        on_the_hub.iter().for_each(|id| text.push_str(&format!("- {id}\n")));
    }
    text + "tags:\n- merge\n- evomerge\n---\n\n"
}

fn merge_of(recipe: &Recipe, made: &str) -> String {
    let name = |model: &ModelReference| {
        let without_weight = if is_without_weight(model, recipe) { " (weight 0)" } else { "" };
        short_name(model) + without_weight
    };
    let names: Vec<String> = recipe.models().into_iter().map(name).collect();
    format!("A merge of {} by `{}`, {made}.\n\n", names.join(", "), recipe.merge_method)
}

/// Whether a model adds nothing to the merge: it is no base, and each of its inputs has the weight 0 for all tensors.
fn is_without_weight(model: &ModelReference, recipe: &Recipe) -> bool {
    let slices: &[Slice] = match &recipe.body {
        Body::Models(_) => &[],
        Body::Slices(slices) => slices,
    };
    let mut bases = slices.iter().filter_map(|slice| slice.base_model.as_ref()).chain(&recipe.base_model);
    let is_zero = |input: &Input| input.parameters.get("weight").is_some_and(is_zero_everywhere);
    recipe.body.inputs().filter(|input| input.model == *model).all(is_zero) && !bases.any(|base| base == model)
}

fn is_zero_everywhere(setting: &Setting) -> bool {
    let is_zero = |value: &Value| *value == Value::Number(0.0);
    let is_zero_in = |entry: &FilteredValue| match &entry.value {
        Gradient::Scalar(value) => is_zero(value),
        Gradient::Points(values) => values.iter().all(is_zero),
    };
    let is_for_all = |entry: &FilteredValue| entry.filter.as_deref().is_none_or(|filter| filter == "*");
    // Tensors that no entry is for have the weight of another scope.
    setting.0.iter().all(is_zero_in) && setting.0.iter().any(is_for_all)
}

fn how_to_make_it(recipe: &Recipe, folder: &Path) -> String {
    let is_relative = |location: &str| !location.starts_with('/') && repository(location, folder).is_none();
    let models = if locations(recipe).any(is_relative) { " --models-dir MODELS" } else { "" };
    format!(
        "## Recipe\n\n`recipe.toml` and `mergekit_config.yml` beside this file. To make the model again:\n\n\
         ```\nevomerge merge recipe.toml{models} --out MODEL\n```\n\n```yaml\n{}\n```\n",
        recipe.to_mergekit_yaml().trim_end()
    )
}

fn locations(recipe: &Recipe) -> impl Iterator<Item = &str> {
    recipe
        .models()
        .into_iter()
        .flat_map(move |model| [Some(model.location.as_str()), model.adapter.as_deref()])
        .flatten()
}

/// The `owner/name` of a location that is nothing on this machine.
fn repository<'a>(location: &'a str, folder: &Path) -> Option<&'a str> {
    let id = HubId::parse(location)?;
    (id.repository.contains('/') && !folder.join(location).exists()).then_some(id.repository)
}

fn scores(told: &ToldRecord, fidelity: f64) -> String {
    let Some(objective) = told.objective else {
        return format!("It has no score: {}\n\n", told.error.as_deref().unwrap_or("not finished"));
    };
    let part =
        if fidelity < 1.0 { format!(", on {:.1} % of the samples only", 100.0 * fidelity) } else { String::new() };
    let mut text = format!(
        "## Scores of the search\n\nObjective {}{part}.\n\n| task | metric | score | samples |\n| --- | --- | --- | --- |\n",
        shown(objective)
    );
    for (task, scores) in &told.tasks {
        for (metric, value) in &scores.metrics {
            let samples = if scores.n > 0 { scores.n.to_string() } else { "-".to_owned() };
            text.push_str(&format!("| {task} | {metric} | {} | {samples} |\n", shown(value.value)));
        }
    }
    text.push_str("\nThe search chose by these scores: they overstate.\n\n");
    text
}

fn short_name(model: &ModelReference) -> String {
    let short = |location: &str| match location.strip_prefix('/') {
        Some(path) => path.rsplit('/').next().unwrap_or(path).to_owned(),
        None => location.to_owned(),
    };
    ModelReference { location: short(&model.location), adapter: model.adapter.as_deref().map(short) }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_without_weight_are_marked() {
        let recipe = Recipe::from_mergekit_yaml(
            "merge_method: linear\nmodels:\n\
             - {model: a, parameters: {weight: 1}}\n\
             - {model: b, parameters: {weight: [0, 0]}}\n\
             - {model: c, parameters: {weight: [{filter: mlp, value: 0}, {value: 1}]}}\n",
        )
        .unwrap();
        let text = merge_of(&recipe, "made by hand");
        assert!(text.starts_with("A merge of a, b (weight 0), c by `linear`"), "{text}");
    }
}
