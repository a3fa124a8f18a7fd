//! What of a run file must stay as it is between two starts of a run, and in what two of them differ.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    EvaluatorKind, GeneConfig, Goal, HoldoutSource, LayerGrouping, ModelSource, RepeatsConfig, RunConfig, SpaceConfig,
};
use crate::document::join;
use crate::files::path_text;

/// The kind of the evaluator of closed-form landscapes, as identities have it.
const FUNCTION: &str = "function";

impl RunConfig {
    /// Everything that may not change while a run goes on, as JSON: models, space, strategy with its settings, seed,
    /// tasks, hold-out, output and what can change a score in the evaluator. Left out, because they may change: budget,
    /// endpoints, tokens, `in_flight`, threads, batches, timeouts, attempts, latencies, rates of made-up faults
    /// and candidates. Contents of models and data are not part of it: content ids and the evaluator's fingerprint
    /// stand for them.
    pub fn identity(&self) -> Value {
        json!({
            "name": self.name,
            "seed": self.seed,
            "models": {
                "base": self.models.base.as_ref().map(identify_model),
                "sources": self.models.sources.iter().map(identify_model).collect::<Vec<_>>(),
            },
            "space": self.space.as_ref().map(identify_space),
            "strategy": {
                "kind": self.strategy.kind.name(),
                "look_ahead": self.strategy.look_ahead,
                "settings": self.strategy.settings,
            },
            "racing": self.racing,
            "repeats": (self.repeats != RepeatsConfig::default()).then_some(&self.repeats),
            "evaluator": identify_evaluator(&self.evaluator.kind),
            "tasks": self.tasks.iter().map(|task| (task.name.clone(), json!({
                "data": task.data.as_deref().map(path_text),
                "metric": task.metric,
                "weight": task.weight,
                "goal": task.goal.map(Goal::name),
                "max_new_tokens": task.max_new_tokens,
                "limit": task.limit,
            }))).collect::<Map<_, _>>(),
            "holdout": self.holdout.as_ref().map(|holdout| {
                let mut value = match &holdout.source {
                    HoldoutSource::Data(data) => {
                        let data = data.iter().map(|(task, path)| (task, path_text(path)));
                        json!({ "data": data.collect::<BTreeMap<_, _>>() })
                    }
                    HoldoutSource::Tasks(tasks) => json!({ "tasks": tasks }),
                    // The addresses may change, that there are some may not.
                    HoldoutSource::Endpoints(_) => json!({ "endpoints": true }),
                    HoldoutSource::Fraction(fraction) => json!({ "fraction": fraction }),
                };
                value["finalists"] = json!(holdout.finalists);
                value
            }),
            "output": { "dtype": self.output.dtype },
        })
    }
}

fn identify_model(model: &ModelSource) -> Value {
    let mut value = json!({ "name": model.name, "location": model.location });
    if let Some(adapter) = &model.adapter {
        value["adapter"] = json!(adapter);
    }
    value
}

fn identify_space(space: &SpaceConfig) -> Value {
    let (key, count) = match &space.layers {
        LayerGrouping::Groups(count) => ("layer_groups", json!(count)),
        LayerGrouping::Granularity(count) => ("granularity", json!(count)),
        // The contents of the models decide, and those are identified too.
        LayerGrouping::Auto | LayerGrouping::Blocks(_) => ("layer_groups", json!("auto")),
    };
    let genes: Map<String, Value> =
        space.genes.iter().map(|(name, gene)| (name.clone(), identify_gene(gene))).collect();
    let mut identity = json!({
        "method": space.methods,
        key: count,
        "modules": space.modules,
        "interpolate": space.interpolate,
        "genes": genes,
    });
    if let Some(stack) = &space.stack {
        identity["stack"] = json!({
            "passes": stack.passes,
            "max_layers": stack.max_layers,
            "sources": stack.blocks.has_sources(),
            "merged": stack.blocks.has_merged(),
            "scale": stack.scale.as_ref().map(|scale| json!({
                "low": scale.low,
                "high": scale.high,
                "init": scale.init,
                "modules": scale.modules,
            })),
        });
    }
    identity
}

fn identify_gene(gene: &GeneConfig) -> Value {
    match gene {
        GeneConfig::Number(number) => json!(number),
        GeneConfig::Bool(truth) => json!(truth),
        GeneConfig::SameAs(other) => json!({ "same_as": other }),
        GeneConfig::Search(search) => {
            let mut identity = json!({
                "low": search.low,
                "high": search.high,
                "per": search.per.iter().map(|per| per.name()).collect::<Vec<_>>(),
                "scale": if search.log { "log" } else { "linear" },
                "integer": search.integer,
                "init": search.init,
                "models": search.models,
            });
            if search.conflict_prior != 0.0 {
                identity["conflict_prior"] = json!(search.conflict_prior);
            }
            identity
        }
    }
}

fn identify_evaluator(kind: &EvaluatorKind) -> Value {
    match kind {
        EvaluatorKind::Native(native) => json!({ "kind": "native", "max_new_tokens": native.max_new_tokens }),
        EvaluatorKind::Http(http) => json!({
            "kind": "http",
            "allow_different_fingerprints": http.allow_different_fingerprints,
            "on_timeout": http.on_timeout.name(),
        }),
        EvaluatorKind::Command(command) => {
            let mut value = json!({ "kind": "command", "argv": command.argv, "version": command.version });
            if command.deterministic {
                value["deterministic"] = json!(true);
            }
            value
        }
        EvaluatorKind::Function(function) => json!({
            "kind": FUNCTION,
            "name": function.function.name(),
            "noise": function.noise,
            "samples": function.samples,
            "infeasible_rate": function.infeasible_rate,
        }),
    }
}

/// Whether the candidates of a run with this identity are models on disk: landscapes score genomes.
pub fn makes_models(identity: &Value) -> bool {
    identity["evaluator"]["kind"] != FUNCTION
}

/// A value of an identity that is another one; as text, one readable line: `space.genes.weight.high: 1.5 -> 2.0`.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The outermost key; empty where the identities are no objects.
    part: String,
    /// Keys and places in lists from the outermost on, as people write them.
    path: String,
    old: Value,
    new: Value,
}

impl Difference {
    /// The part of the identity that it lies in: its outermost key.
    pub fn part(&self) -> &str {
        &self.part
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {} -> {}", self.path, show(&self.old), show(&self.new))
    }
}

/// In what two identities differ.
pub fn differences(old: &Value, new: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(None, "", (old, new), &mut found);
    found
}

fn compare(part: Option<&str>, path: &str, (old, new): (&Value, &Value), found: &mut Vec<Difference>) {
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            let is_new = |key: &&String| !before.contains_key(*key);
            for key in before.keys().chain(after.keys().filter(is_new)) {
                let values = [before, after].map(|object| object.get(key).unwrap_or(&Value::Null));
                compare(part.or(Some(key)), &join(path, key), values.into(), found);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, values) in before.iter().zip(after).enumerate() {
                compare(part, &format!("{path}[{index}]"), values, found);
            }
        }
        _ if old != new => found.push(Difference {
            part: part.unwrap_or_default().to_owned(),
            path: path.to_owned(),
            old: old.clone(),
            new: new.clone(),
        }),
        _ => {}
    }
}

fn show(value: &Value) -> String {
    if value.is_null() { "(absent)".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const RUN: &str = "name = 'x'\nmodels = { base = 'b', sources = ['p', 'q'] }\nbudget = { evaluations = 9 }\n\
        space = { method = 'ties', genes = { weight = { low = 0, high = 1.5 }, density = { low = 0.1, high = 1 } } }\n\
        tasks = [{ name = 'y' }]\n[strategy]\nkind = 'genetic'\npopulation = 8\n[evaluator]\nkind = 'http'\n\
        endpoints = ['http://h:1']\ntimeout = '1m'\nin_flight = 2\n";

    fn identity(text: &str) -> Value {
        RunConfig::parse(text, Path::new("/nowhere")).unwrap().identity()
    }

    #[test]
    fn what_may_change_is_not_part_of_it() {
        for (from, to) in [
            ("evaluations = 9", "evaluations = 90, wall_clock = '8h'"),
            ("http://h:1", "https://other:2"),
            ("timeout = '1m'", "timeout = '2m'\nmax_outage = '1h'\nmax_attempts = 9\ntoken_env = 'T'"),
            ("in_flight = 2", "in_flight = 3\n[candidates]\nslots = 7\ndir = 'elsewhere'"),
        ] {
            assert!(RUN.contains(from));
            assert_eq!(differences(&identity(RUN), &identity(&RUN.replace(from, to))), [], "{to}");
        }
    }

    #[test]
    fn what_may_not_change_is_named() {
        for (from, to, line) in [
            ("high = 1.5", "high = 2.0", "space.genes.weight.high: 1.5 -> 2.0"),
            (
                "method = 'ties'",
                "method = ['ties', 'dare_ties']",
                "space.method: [\"ties\"] -> [\"ties\",\"dare_ties\"]",
            ),
            ("'q'", "'r'", "models.sources[1].name: \"q\" -> \"r\""),
            ("population = 8", "population = 9", "strategy.settings.population: 8 -> 9"),
            ("name = 'x'", "name = 'x'\nseed = 3", "seed: 0 -> 3"),
            ("name = 'y'", "name = 'y', weight = 2", "tasks.y.weight: 1.0 -> 2.0"),
            ("[strategy]", "[output]\ndtype = 'float32'\n[strategy]", "output.dtype: (absent) -> \"float32\""),
            (
                "[strategy]",
                "[holdout]\nfraction = 0.5\n[strategy]",
                "holdout: (absent) -> {\"fraction\":0.5,\"finalists\":5}",
            ),
        ] {
            assert!(RUN.contains(from));
            let lines = differences(&identity(RUN), &identity(&RUN.replace(from, to)));
            assert!(lines.iter().any(|found| found.to_string() == line), "{line}: {lines:?}");
        }
    }

    #[test]
    fn survives_a_round_trip_through_json() {
        let before = identity(RUN);
        let after: Value = serde_json::from_str(&before.to_string()).unwrap();
        assert_eq!(differences(&before, &after), []);
    }
}
