//! The model card of an exported model.

use crate::ledger::{AskedRecord, ToldRecord};
use crate::recipe::{ModelReference, Recipe};

/// A README in Hugging Face's form: what was merged, how it scored, and how to make it again.
pub fn model_card(
    run: &str,
    asked: &AskedRecord,
    told: Option<&ToldRecord>,
    recipe: &Recipe,
    verdict: Option<&str>,
) -> String {
    let names: Vec<String> = recipe.models().into_iter().map(short_name).collect();
    let mut text = String::from("---\nlibrary_name: transformers\n");
    // The hub links to what it knows; folders of one machine are nobody else's business.
    let on_the_hub: Vec<&str> = locations(recipe).filter(|location| is_repository(location)).collect();
    if !on_the_hub.is_empty() {
        text.push_str("base_model:\n");
        on_the_hub.iter().for_each(|id| text.push_str(&format!("- {id}\n")));
    }
    text.push_str("tags:\n- merge\n- evomerge\n---\n\n");
    text.push_str(&format!("# {run}: candidate {}\n\n", asked.candidate_id));
    text.push_str(&format!(
        "A merge of {} by `{}`, found by evomerge {} in evaluation {} ({}).\n\n",
        names.join(", "),
        recipe.merge_method,
        env!("CARGO_PKG_VERSION"),
        asked.index,
        asked.origin
    ));
    if let Some(told) = told {
        text.push_str(&scores(told));
    }
    let verdict = verdict.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let is_winner = |verdict: &serde_json::Value| verdict["winner"]["candidate_id"] == asked.candidate_id.as_str();
    if let Some(verdict) = verdict.filter(is_winner)
        && let Some(sentence) = verdict["sentence"].as_str()
    {
        text.push_str(&format!("## Verdict\n\n{sentence}\n\n"));
    }
    text.push_str(
        "## Recipe\n\n`recipe.toml` and `mergekit_config.yml` beside this file. To make the model again:\n\n",
    );
    text.push_str("```\nevomerge merge recipe.toml --out MODEL\n```\n\n```yaml\n");
    text.push_str(recipe.to_mergekit_yaml().trim_end());
    text.push_str(&format!("\n```\n\nrecipe sha256: `{}`\n", asked.recipe_sha256));
    text
}

fn locations(recipe: &Recipe) -> impl Iterator<Item = &str> {
    recipe
        .models()
        .into_iter()
        .flat_map(move |model| [Some(model.location.as_str()), model.adapter.as_deref()])
        .flatten()
}

/// `owner/name`, and nothing on this machine.
fn is_repository(location: &str) -> bool {
    let parts: Vec<&str> = location.split('/').collect();
    let is_name = |part: &&str| {
        part.starts_with(|first: char| first.is_ascii_alphanumeric())
            && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
    };
    parts.len() == 2 && parts.iter().all(is_name) && !std::path::Path::new(location).exists()
}

fn scores(told: &ToldRecord) -> String {
    let Some(objective) = told.objective else {
        return format!("It has no score: {}\n\n", told.error.as_deref().unwrap_or("not finished"));
    };
    let mut text = format!(
        "## Scores of the search\n\nObjective {objective:.4}.\n\n| task | metric | score | samples |\n| --- | --- | --- | --- |\n"
    );
    for (task, scores) in &told.tasks {
        for (metric, value) in &scores.metrics {
            text.push_str(&format!("| {task} | {metric} | {:.4} | {} |\n", value.value, scores.n));
        }
    }
    text.push_str("\nThe search chose by these scores: they overstate. The verdict is what counts.\n\n");
    text
}

fn short_name(model: &ModelReference) -> String {
    let short = |location: &str| match location.strip_prefix('/') {
        Some(path) => path.rsplit('/').next().unwrap_or(path).to_owned(),
        None => location.to_owned(),
    };
    ModelReference { location: short(&model.location), adapter: model.adapter.as_deref().map(short) }.to_string()
}
