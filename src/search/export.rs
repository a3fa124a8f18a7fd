//! What a run leaves beside its ledger: `best/`, `trials.csv`, `run.toml`, and models on demand. All derived, all
//! replaced atomically.

use std::path::Path;

use super::SearchError;
use super::best::{best_record, by_its_proposer};
use super::facts::json_fact;
use super::models::Models;
use super::outcomes::LatestOutcomes;
use super::run_folder::{FROZEN, RunFolder};
use crate::config::{RunConfig, makes_models};
use crate::files::write_atomically;
use crate::ledger::{AskedRecord, Ledger, ToldRecord, fact, write_trials};
use crate::recipe::Recipe;

/// Writes `best/recipe.toml` and `best/mergekit.yml`.
pub(super) fn write_best(folder: &Path, recipe: &Recipe, recipe_toml: &str) -> Result<(), SearchError> {
    write(&folder.join("best/recipe.toml"), recipe_toml.as_bytes())?;
    write(&folder.join("best/mergekit.yml"), recipe.to_mergekit_yaml().as_bytes())
}

/// Writes `trials.csv`.
pub(super) fn write_table(folder: &Path, ledger: &Ledger, config: &RunConfig) -> Result<(), SearchError> {
    let tasks: Vec<String> = config.tasks.iter().map(|task| task.name.clone()).collect();
    Ok(write_trials(ledger, &folder.join("trials.csv"), &tasks)?)
}

/// Writes the frozen copy of the run file, with the content ids of every input.
pub(super) fn write_run_file(folder: &RunFolder, config: &RunConfig, models: &Models) -> Result<(), SearchError> {
    let mut text = config.text.trim_end().to_string();
    text.push_str(&format!("\n\n{FROZEN} Relative paths start at:\n#   "));
    text.push_str(&config.directory.display().to_string());
    text.push_str("\n# Content ids of the models:\n");
    for (model, content) in &models.content_ids {
        text.push_str(&format!("#   {model}  {content}\n"));
    }
    write(&folder.run_file(), text.as_bytes())
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), SearchError> {
    write_atomically(path, bytes).map_err(|source| SearchError::Write { path: path.to_path_buf(), source })
}

/// Whether the run's candidates are models on disk.
fn has_models(ledger: &Ledger) -> Result<bool, SearchError> {
    let identity: Option<serde_json::Value> = json_fact(ledger, fact::IDENTITY)?;
    Ok(makes_models(&identity.unwrap_or_default()))
}

/// The recorded evaluation that an export is about.
///
/// # Errors
/// A run without models or without such a candidate.
pub fn export_record(
    ledger: &Ledger,
    candidate: Option<&str>,
) -> Result<(AskedRecord, Option<ToldRecord>), SearchError> {
    let record = find_record(ledger, candidate)?;
    if !has_models(ledger)? {
        return Err(SearchError::BadData(
            "the run scored closed-form landscapes, not models (evaluator `function`): there is nothing to export; \
             best/recipe.toml has its recipe"
                .into(),
        ));
    }
    Ok(record)
}

fn find_record(ledger: &Ledger, candidate: Option<&str>) -> Result<(AskedRecord, Option<ToldRecord>), SearchError> {
    let Some(wanted) = candidate else {
        let Some((asked, _)) = best_record(ledger)? else {
            return Err(SearchError::BadData(
                "the run has no scored candidate at full fidelity yet; name one with --candidate".into(),
            ));
        };
        let told = LatestOutcomes::of(ledger)?.outcome(asked.index)?;
        return Ok((asked, told));
    };
    let all = ledger.all_asked()?;
    // An index may be the first digits of an id, too; it names its evaluation all the same.
    let of_index = all.iter().find(|record| record.index.to_string() == wanted).cloned();
    let mut matches: Vec<AskedRecord> = match of_index {
        Some(record) => vec![record],
        None => all.iter().filter(|record| record.candidate_id.starts_with(wanted)).cloned().collect(),
    };
    // In a race a candidate has several evaluations: the one on the most samples tells most of it.
    let latest = LatestOutcomes::of(ledger)?;
    let outcomes = latest.in_short()?;
    let is_scored = |record: &AskedRecord| outcomes.get(&record.index).is_some_and(|told| told.objective.is_some());
    matches.sort_by(|first, second| {
        let by_worth = is_scored(second).cmp(&is_scored(first)).then(second.fidelity.total_cmp(&first.fidelity));
        first.candidate_id.cmp(&second.candidate_id).then(by_worth)
    });
    matches.dedup_by(|first, second| first.candidate_id == second.candidate_id);
    match matches.len() {
        1 => {
            let asked = by_its_proposer(matches.swap_remove(0), &all);
            let outcome = latest.outcome(asked.index)?;
            Ok((asked, outcome))
        }
        0 => Err(SearchError::BadData(format!("the run has no candidate `{wanted}`; trials.csv lists them"))),
        several => {
            Err(SearchError::BadData(format!("`{wanted}` fits {several} candidates; give more digits of the id")))
        }
    }
}
