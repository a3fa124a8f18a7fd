//! Choices that a run file left open at the first start and names now. To say what was so all the time is no change.

use serde_json::{Value, json};

use super::SearchError;
use super::facts::json_fact;
use super::prepare::Prepared;
use crate::config::{Goal, StrategyConfig};
use crate::ledger::{Ledger, fact};
use crate::strategy::are_same_settings;

/// Writes into a recorded identity what the run file says now, where that was chosen for it before.
pub(super) fn take_in(
    ledger: &Ledger,
    recorded: &mut Value,
    identity: &Value,
    prepared: &Prepared,
) -> Result<(), SearchError> {
    take_in_metrics(ledger, recorded, identity)?;
    take_in_look_ahead(ledger, recorded, identity)?;
    take_in_strategy(recorded, identity, prepared);
    Ok(())
}

/// Metrics and directions, which the evaluator chose.
fn take_in_metrics(ledger: &Ledger, recorded: &mut Value, identity: &Value) -> Result<(), SearchError> {
    // Ledgers of earlier versions do not tell.
    let chosen = json_fact::<Vec<Value>>(ledger, fact::OBJECTIVE)?.unwrap_or_default();
    for chosen in chosen {
        let Some(name) = chosen["name"].as_str() else { continue };
        let Some(Value::Object(before)) = recorded["tasks"].get_mut(name) else { continue };
        let weights = [&chosen["weight"], before.get("weight").unwrap_or(&Value::Null)].map(Value::as_f64);
        let is_higher_better = match weights {
            [Some(signed), Some(weight)] => (signed > 0.0) == (weight > 0.0),
            _ => continue,
        };
        let goal = if is_higher_better { Goal::Maximize } else { Goal::Minimize };
        for (key, value) in [("metric", chosen["metric"].clone()), ("goal", json!(goal.name()))] {
            if before.get(key).is_none_or(Value::is_null) && identity["tasks"][name][key] == value {
                before.insert(key.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// The look-ahead, which the first start decided and every later one keeps: a run file may name it, or not any more.
fn take_in_look_ahead(ledger: &Ledger, recorded: &mut Value, identity: &Value) -> Result<(), SearchError> {
    let decided = json_fact::<u64>(ledger, fact::LOOK_AHEAD)?;
    let now = &identity["strategy"]["look_ahead"];
    let is_the_same = now.is_null() || (now.is_u64() && now.as_u64() == decided);
    if is_the_same && recorded["strategy"].is_object() {
        recorded["strategy"]["look_ahead"] = now.clone();
    }
    Ok(())
}

/// A strategy's settings with their defaults.
fn take_in_strategy(recorded: &mut Value, identity: &Value, prepared: &Prepared) {
    let Some(settings) = recorded["strategy"].get_mut("settings") else { return };
    let Ok(before) = serde_json::from_value::<toml::Table>(settings.clone()) else { return };
    let now = &prepared.config.strategy;
    let genes = prepared.space.as_ref().map_or(0, |space| space.genes().len());
    // Where the kind is another one, that is found as a change of its own.
    if are_same_settings(&StrategyConfig { settings: before, ..now.clone() }, now, genes) {
        *settings = identity["strategy"]["settings"].clone();
    }
}
