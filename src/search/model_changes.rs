//! In what the models of two starts differ, told by the names that the run file gives them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::frozen::{CONTENTS, SETTINGS, reordering};

/// A model of a run's identity.
#[derive(Debug, PartialEq)]
struct Model<'a> {
    name: &'a str,
    /// Location, and adapter where there is one, as contents and settings are listed.
    reference: String,
    content: Option<&'a str>,
    /// `None`: the run was begun by a version that did not record them, or has no checkpoints.
    settings: Option<&'a str>,
}

/// One line a model and change: `models.sources: chat has other weights`. Empty where no model differs.
pub(super) fn between(recorded: &Value, now: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for role in ["base", "sources"] {
        let key = format!("models.{role}");
        let (before, after) = (models(recorded, role), models(now, role));
        for model in &before {
            match after.iter().find(|other| other.name == model.name) {
                None => lines.push(format!("{key}: {} is gone", model.name)),
                Some(other) => lines.extend(changes(&key, model, other)),
            }
        }
        let is_new = |model: &&Model<'_>| !before.iter().any(|other| other.name == model.name);
        lines.extend(after.iter().filter(is_new).map(|model| format!("{key}: {} is new", model.name)));
        lines.extend(other_order(&key, &before, &after));
    }
    lines
}

fn changes(key: &str, before: &Model<'_>, after: &Model<'_>) -> Vec<String> {
    let name = before.name;
    let mut lines = Vec::new();
    if before.reference != after.reference {
        lines.push(format!("{key}: {name} lies elsewhere: {} -> {}", before.reference, after.reference));
    }
    if before.content != after.content {
        lines.push(format!("{key}: {name} has other weights"));
    }
    match (before.settings, after.settings) {
        (Some(before), Some(after)) if before != after => {
            lines.push(format!("{key}: {name} has another config.json, tokenizer or template"));
        }
        _ => {}
    }
    lines
}

/// The same models in another order: proposals name them by their places.
fn other_order(key: &str, before: &[Model<'_>], after: &[Model<'_>]) -> Option<String> {
    let names = |models: &[Model<'_>]| models.iter().map(|model| model.name.to_owned()).collect::<Vec<_>>();
    reordering(key, &names(before), &names(after))
}

/// The base, or the sources in order.
fn models<'a>(identity: &'a Value, role: &str) -> Vec<Model<'a>> {
    let (contents, settings) = (by_reference(&identity[CONTENTS]), by_reference(&identity[SETTINGS]));
    let models = match &identity["models"][role] {
        Value::Array(models) => models.iter().collect(),
        Value::Null => Vec::new(),
        model => vec![model],
    };
    let model = |model: &'a Value| {
        let location = model["location"].as_str()?;
        let reference = match model["adapter"].as_str() {
            Some(adapter) => format!("{location}+{adapter}"),
            None => location.to_owned(),
        };
        let (content, settings) = (contents.get(reference.as_str()), settings.get(reference.as_str()));
        let (content, settings) = (content.copied(), settings.copied());
        Some(Model { name: model["name"].as_str()?, reference, content, settings })
    };
    models.into_iter().filter_map(model).collect()
}

/// Ids as an identity lists them: pairs of a model and its id.
fn by_reference(pairs: &Value) -> BTreeMap<&str, &str> {
    let pairs = pairs.as_array().into_iter().flatten();
    pairs.filter_map(|pair| Some((pair[0].as_str()?, pair[1].as_str()?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn identity(sources: &[(&str, &str, &str)]) -> Value {
        let location = |name: &str| format!("/models/{name}");
        let list = |id: fn(&(&str, &str, &str)) -> String| -> Value {
            sources.iter().map(|source| json!([location(source.0), id(source)])).collect()
        };
        json!({
            "models": {
                "base": { "name": "base", "location": "/models/base" },
                "sources": sources.iter().map(|(name, ..)| json!({ "name": name, "location": location(name) })).collect::<Vec<_>>(),
            },
            CONTENTS: list(|source| source.1.to_owned()),
            SETTINGS: list(|source| source.2.to_owned()),
        })
    }

    #[test]
    fn models_are_named() {
        let before = identity(&[("chat", "611d", "s"), ("code", "22", "s"), ("math", "33", "s")]);
        let after = identity(&[("chat", "1cf2", "s"), ("code", "22", "t"), ("maths", "33", "s")]);
        let expected = [
            "models.sources: chat has other weights",
            "models.sources: code has another config.json, tokenizer or template",
            "models.sources: math is gone",
            "models.sources: maths is new",
        ];
        assert_eq!(between(&before, &after), expected);
        assert_eq!(between(&before, &before), [""; 0]);
    }

    #[test]
    fn other_places_and_another_order_are_told_once() {
        let before = identity(&[("chat", "1", "s"), ("code", "2", "s")]);
        let turned = identity(&[("code", "2", "s"), ("chat", "1", "s")]);
        assert_eq!(between(&before, &turned), ["order of models.sources: chat, code -> code, chat"]);
        let mut moved = before.clone();
        moved["models"]["base"]["location"] = json!("/new/base");
        assert_eq!(between(&before, &moved), ["models.base: base lies elsewhere: /models/base -> /new/base"]);
        let mut without = before.clone();
        without["models"]["base"] = Value::Null;
        assert_eq!(between(&before, &without), ["models.base: base is gone"]);
        assert_eq!(between(&without, &before), ["models.base: base is new"]);
    }

    #[test]
    fn an_identity_without_settings_differs_in_no_model() {
        let now = identity(&[("chat", "1", "s")]);
        let mut recorded = now.clone();
        recorded.as_object_mut().unwrap().remove(SETTINGS);
        assert_eq!(between(&recorded, &now), [""; 0]);
    }
}
