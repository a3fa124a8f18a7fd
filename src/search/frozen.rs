//! What may not change between two starts of one run, and what was decided at the first.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::facts::json_fact;
use super::fidelity::Basis;
use super::prepare::Prepared;
use super::slots::RUN_ID_DIGITS;
use super::{SearchError, model_changes, written_out};
use crate::config::{Difference, RacingConfig, RunConfig, differences};
use crate::ledger::{Ledger, fact};
use crate::recipe::ModelReference;

/// Parts of a run's identity that do not stand in the run file.
pub(super) const CONTENTS: &str = "content of models";
pub(super) const SETTINGS: &str = "settings of models";
const FINGERPRINT: &str = "evaluator fingerprint";
pub(super) const HOLDOUT_FINGERPRINT: &str = "hold-out fingerprint";

/// The keys that say what the models are.
const MODELS: [&str; 3] = ["models", CONTENTS, SETTINGS];

/// Decisions of a run's first start that later starts keep.
#[derive(Clone, Debug, PartialEq)]
pub struct Frozen {
    pub run_id: String,
    /// W: evaluations open at a time.
    pub look_ahead: u64,
    /// The budget's evaluations as the strategy was told them.
    pub planned_evaluations: Option<u64>,
    /// How candidates race; a budget of samples that is added later changes nothing.
    pub racing: Option<RacingConfig>,
    /// What the race found of the evaluator; `None`: there is no race.
    pub race_basis: Option<Basis>,
    /// The evaluator has called itself deterministic at every start.
    pub deterministic: bool,
}

/// Reads what an earlier start froze, or freezes it now. Refuses a run file, models, data or evaluator that changed.
pub fn freeze(ledger: &Ledger, prepared: &Prepared) -> Result<(Frozen, bool), SearchError> {
    if let Some(frozen) = frozen_before(ledger, prepared)? {
        ledger.set_fact(fact::DETERMINISTIC, &frozen.deterministic.to_string())?;
        return Ok((frozen, false));
    }
    let racing = prepared.config.effective_racing();
    let frozen = Frozen {
        run_id: new_run_id(&prepared.config),
        look_ahead: look_ahead(prepared),
        planned_evaluations: prepared.config.budget.evaluations,
        race_basis: race_basis(prepared, racing.as_ref()),
        racing,
        deterministic: prepared.evaluator.capabilities().deterministic,
    };
    ledger.set_facts(&[
        (fact::IDENTITY, &identity(prepared).to_string()),
        (fact::RUN_ID, &frozen.run_id),
        (fact::RUN_NAME, &prepared.config.name),
        (fact::LOOK_AHEAD, &frozen.look_ahead.to_string()),
        (fact::PLANNED_EVALUATIONS, &frozen.planned_evaluations.map(|n| n.to_string()).unwrap_or_default()),
        (fact::TASKS, &json!(task_names(prepared)).to_string()),
        (fact::GENES, &json!(gene_names(prepared)).to_string()),
        (fact::RACING, &json!(frozen.racing).to_string()),
        (fact::RACE_BASIS, &json!(frozen.race_basis).to_string()),
        (fact::OBJECTIVE, &objective(prepared).to_string()),
        (fact::SAMPLES, &samples(prepared).to_string()),
        (fact::DETERMINISTIC, &frozen.deterministic.to_string()),
        (fact::EVOMERGE_VERSION, env!("CARGO_PKG_VERSION")),
    ])?;
    Ok((frozen, true))
}

/// Reads what an earlier start froze; `None`: there was none. Writes nothing.
///
/// # Errors
/// [`SearchError::Changed`] where run file, models, data or evaluator are others now.
pub fn frozen_before(ledger: &Ledger, prepared: &Prepared) -> Result<Option<Frozen>, SearchError> {
    let Some(mut recorded) = json_fact::<Value>(ledger, fact::IDENTITY)? else { return Ok(None) };
    let identity = identity(prepared);
    written_out::take_in(ledger, &mut recorded, &identity, prepared)?;
    let mut differences = changes(&recorded, &identity);
    differences.extend(reordered(ledger, fact::TASKS, "tasks", &task_names(prepared))?);
    differences.extend(reordered(ledger, fact::GENES, "space.genes", &gene_names(prepared))?);
    if differences.is_empty() {
        differences.extend(changed_metrics(ledger, prepared)?);
        differences.extend(changed_sample_counts(ledger, prepared)?);
    }
    let changed = |differences| SearchError::Changed { name: prepared.config.name.clone(), differences };
    if !differences.is_empty() {
        return Err(changed(differences));
    }
    let frozen = decided(ledger, prepared)?;
    let basis = frozen.race_basis.as_ref();
    let lost = basis.map(|basis| basis.lost(&prepared.tasks, prepared.evaluator.as_ref())).unwrap_or_default();
    if lost.is_empty() { Ok(Some(frozen)) } else { Err(changed(lost)) }
}

/// What a race finds of the evaluator as it is now; `None`: there is no race.
fn race_basis(prepared: &Prepared, racing: Option<&RacingConfig>) -> Option<Basis> {
    Basis::of_race(racing?, &prepared.tasks, prepared.evaluator.as_ref())
}

/// What the first start decided.
fn decided(ledger: &Ledger, prepared: &Prepared) -> Result<Frozen, SearchError> {
    let unreadable =
        |key: &str, found: &str| SearchError::BadData(format!("ledger: `{key}` cannot be read: {found:?}"));
    let fact = |key: &str| ledger.fact(key)?.ok_or_else(|| unreadable(key, ""));
    let number = |key: &str, text: &str| text.parse().map_err(|_| unreadable(key, text));
    let planned = fact(fact::PLANNED_EVALUATIONS)?;
    let racing: Option<RacingConfig> = json_fact(ledger, fact::RACING)?.ok_or_else(|| unreadable(fact::RACING, ""))?;
    let race_basis = match json_fact(ledger, fact::RACE_BASIS)? {
        Some(basis) => basis,
        // Ledgers of earlier versions do not tell; the search notes it once it has replayed them.
        None => race_basis(prepared, racing.as_ref()),
    };
    // One start with answers that may vary is enough: they are on record.
    let was_deterministic = ledger.fact(fact::DETERMINISTIC)?.is_none_or(|text| text == "true");
    Ok(Frozen {
        run_id: fact(fact::RUN_ID)?,
        look_ahead: number(fact::LOOK_AHEAD, &fact(fact::LOOK_AHEAD)?)?,
        planned_evaluations: (!planned.is_empty()).then(|| number(fact::PLANNED_EVALUATIONS, &planned)).transpose()?,
        racing,
        race_basis,
        deterministic: was_deterministic && prepared.evaluator.capabilities().deterministic,
    })
}

/// In what two identities differ: of the models by name, of all else by key.
fn changes(recorded: &Value, identity: &Value) -> Vec<String> {
    let mut lines = model_changes::between(recorded, identity);
    let is_of_models = |difference: &Difference| MODELS.contains(&difference.part());
    let (of_models, others): (Vec<_>, Vec<_>) = differences(recorded, identity).into_iter().partition(is_of_models);
    if lines.is_empty() {
        // Whatever it is: it is another run.
        lines.extend(of_models.iter().map(explained));
    }
    lines.extend(others.iter().map(explained));
    lines
}

/// Fingerprints and content ids tell nobody what changed.
fn explained(difference: &Difference) -> String {
    let why = [
        (FINGERPRINT, "data, settings or version of the evaluator are others"),
        (HOLDOUT_FINGERPRINT, "data, settings or version of the hold-out's evaluator are others"),
        (CONTENTS, "a model has other weights, or lies elsewhere"),
        (SETTINGS, "config.json, tokenizer or template of a model are others"),
    ];
    match why.iter().find(|(part, _)| *part == difference.part()) {
        Some((_, why)) => format!("{difference} ({why})"),
        // The settings of a strategy stand in its table, in the run file.
        None => difference.to_string().replacen("strategy.settings.", "strategy.", 1),
    }
}

/// Metrics and directions that the run file leaves to the evaluator, where it says others now: scores from before and
/// after would not be comparable.
fn changed_metrics(ledger: &Ledger, prepared: &Prepared) -> Result<Vec<String>, SearchError> {
    // Ledgers of earlier versions do not tell.
    let Some(recorded) = json_fact::<Value>(ledger, fact::OBJECTIVE)? else { return Ok(Vec::new()) };
    let by_task = |objective: &Value| -> Value {
        let tasks = objective.as_array().into_iter().flatten();
        tasks.map(|task| (task["name"].as_str().unwrap_or_default().to_owned(), task.clone())).collect()
    };
    let lines = differences(&by_task(&recorded), &by_task(&objective(prepared)));
    let why = "the evaluator lists another metric first, or says that the other direction is better: write `metric` and `goal`";
    Ok(lines.into_iter().map(|line| format!("objective.{line} ({why})")).collect())
}

/// Tasks that have other numbers of samples now, as far as the evaluator tells: means over them are not comparable.
fn changed_sample_counts(ledger: &Ledger, prepared: &Prepared) -> Result<Vec<String>, SearchError> {
    // Ledgers of earlier versions do not tell.
    let recorded: Option<BTreeMap<String, u64>> = json_fact(ledger, fact::SAMPLES)?;
    let tasks = &prepared.evaluator.capabilities().tasks;
    let changed = recorded.into_iter().flatten().filter_map(|(name, before)| {
        let now = tasks.get(&name).map(|known| known.n_samples)?;
        // Zero is unknown.
        let is_other = before.min(now) > 0 && before != now;
        is_other.then(|| format!("samples of task {name}: {before} -> {now} (the evaluator's data are others)"))
    });
    Ok(changed.collect())
}

/// A list of names that is another order of the one recorded: proposals and sums follow the order.
fn reordered(ledger: &Ledger, fact: &str, what: &str, names: &[String]) -> Result<Option<String>, SearchError> {
    // Ledgers of earlier versions do not tell the order of genes.
    let recorded: Option<Vec<String>> = json_fact(ledger, fact)?;
    Ok(recorded.and_then(|recorded| reordering(what, &recorded, names)))
}

/// Says that names are the same in another order.
pub(super) fn reordering(what: &str, before: &[String], after: &[String]) -> Option<String> {
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    let is_other = before != after && sorted(before) == sorted(after);
    is_other.then(|| format!("order of {what}: {} -> {}", before.join(", "), after.join(", ")))
}

/// Everything that determines candidates and scores: the run file without budget, endpoints and the like, what the
/// models contain, and who scores.
fn identity(prepared: &Prepared) -> Value {
    let mut identity = prepared.config.identity();
    let by_model = |ids: &BTreeMap<ModelReference, String>| -> Value {
        ids.iter().map(|(model, id)| json!([model.to_string(), id])).collect()
    };
    if let Value::Object(fields) = &mut identity {
        fields.insert(CONTENTS.into(), by_model(&prepared.models.content_ids));
        if !prepared.models.settings_ids.is_empty() {
            fields.insert(SETTINGS.into(), by_model(&prepared.models.settings_ids));
        }
        fields.insert(FINGERPRINT.into(), json!(prepared.evaluator.fingerprint()));
        let holdout = prepared.holdout.as_ref().map(|holdout| holdout.evaluator.fingerprint().to_string());
        fields.insert(HOLDOUT_FINGERPRINT.into(), json!(holdout));
    }
    identity
}

fn look_ahead(prepared: &Prepared) -> u64 {
    let chosen = prepared.config.strategy.look_ahead.map(std::num::NonZeroUsize::get);
    chosen.unwrap_or_else(|| default_look_ahead(prepared.evaluator.concurrency().get())) as u64
}

/// A search pays for every outcome that a proposal cannot see with evaluations, and nobody should wait for work. So:
/// one candidate merged for every one that is evaluated, which also lets some take longer than others; from 4 at a time
/// on no more than 8, from 8 on as many as are evaluated.
fn default_look_ahead(concurrency: usize) -> usize {
    (2 * concurrency).min(concurrency.max(8))
}

fn task_names(prepared: &Prepared) -> Vec<String> {
    prepared.config.tasks.iter().map(|task| task.name.clone()).collect()
}

fn gene_names(prepared: &Prepared) -> Vec<String> {
    prepared.config.space.iter().flat_map(|space| &space.genes).map(|(name, _)| name.clone()).collect()
}

/// For readers of the ledger: tasks with their metric and their weight, negative where lower is better.
fn objective(prepared: &Prepared) -> Value {
    let tasks = prepared.objective.weighted_tasks();
    tasks.map(|task| json!({ "name": task.name, "metric": task.metric, "weight": task.signed_weight() })).collect()
}

/// Samples that the run's tasks have, by name; 0 where the evaluator does not tell.
fn samples(prepared: &Prepared) -> Value {
    let tasks = &prepared.evaluator.capabilities().tasks;
    let count = |name: String| {
        let samples = tasks.get(&name).map_or(0, |known| known.n_samples);
        (name, samples)
    };
    json!(task_names(prepared).into_iter().map(count).collect::<BTreeMap<String, u64>>())
}

/// Not repeatable on purpose: two runs of one file must not share candidate folders.
fn new_run_id(config: &RunConfig) -> String {
    use sha2::{Digest, Sha256};
    let text = format!("{} {} {}", config.name, crate::ledger::now(), std::process::id());
    crate::digest::hex(&Sha256::digest(text.as_bytes()))[..RUN_ID_DIGITS].to_string()
}

#[cfg(test)]
mod tests {
    use super::default_look_ahead;

    #[test]
    fn proposals_wait_for_no_more_than_the_evaluator_needs() {
        let default: Vec<usize> = [1, 2, 3, 4, 6, 8, 20].map(default_look_ahead).to_vec();
        assert_eq!(default, vec![2, 4, 6, 8, 8, 8, 20]);
    }
}
