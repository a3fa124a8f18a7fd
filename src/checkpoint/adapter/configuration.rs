//! `adapter_config.json`: what it says of the factors, and what it asks for beyond them, which is refused by name.

use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value};

use super::super::error::{CheckpointError, quote};
use super::super::mapping::read_capped;

/// Most bytes of a configuration that are read.
const MAX_CONFIG: u64 = 16 << 20;
/// Most bytes that a compiled pattern may take.
const MAX_PATTERN: usize = 1 << 20;

/// Adapters that are no change of the weights at all.
const PROMPTS: [&str; 5] = ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT"];
/// Ways to initialize an adapter that leave the base's weights as they are.
const HARMLESS_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];
/// Tables that say how the adapter was initialized or run, not what it is.
const HARMLESS_TABLES: [&str; 6] =
    ["loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "runtime_config"];
/// Settings that change what the factors mean, and what they are.
const UNSUPPORTED: [(&str, &str); 6] = [
    ("use_dora", "DoRA, which scales every row by its norm"),
    ("lora_bias", "biases of the factors"),
    ("target_parameters", "factors of parameters without a layer of their own"),
    ("layer_replication", "layers that are used more than once"),
    ("trainable_token_indices", "single tokens trained beside the factors"),
    ("alora_invocation_tokens", "an adapter that is active behind certain tokens only"),
];
const MERGE_FIRST: &str = "merge the adapter into its base with PEFT \
    (`model.merge_and_unload().save_pretrained(...)`) and name the result as a model";

/// The part of a configuration that determines the merged weights.
#[derive(Debug)]
pub(super) struct Configuration {
    rank: usize,
    alpha: f64,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
    rank_stabilized: bool,
    /// Square weights are stored as (in, out).
    pub(super) fan_in_fan_out: bool,
    /// An embedding that was trained whole keeps the head tied to it.
    pub(super) keeps_ties: bool,
    /// `target_modules` where it is a list; a pattern is not checked.
    targets: Option<Vec<String>>,
    /// What the adapter was trained on, for messages.
    pub(super) base: Option<String>,
}

impl Configuration {
    /// Reads the file.
    ///
    /// # Errors
    /// It is no configuration of a LoRA adapter, or asks for something that is more than a product of two factors.
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let wrong = |reason: String| CheckpointError::Config { path: path.to_owned(), reason };
        let bytes = read_capped(path, MAX_CONFIG)?;
        let fields: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|error| wrong(format!("it is no JSON object: {error}")))?;
        Self::parse(&fields).map_err(wrong)
    }

    fn parse(fields: &Map<String, Value>) -> Result<Self, String> {
        check_type(fields)?;
        check_supported(fields)?;
        check_start(fields)?;
        let targets = fields.get("target_modules").and_then(Value::as_array);
        Ok(Self {
            rank: fields.get("r").and_then(as_rank).ok_or_else(|| expected(fields, "r", "a whole number above 0"))?,
            alpha: fields
                .get("lora_alpha")
                .and_then(Value::as_f64)
                .ok_or_else(|| expected(fields, "lora_alpha", "a number"))?,
            ranks: patterns(fields, "rank_pattern", "whole numbers above 0", as_rank)?,
            alphas: patterns(fields, "alpha_pattern", "numbers", Value::as_f64)?,
            rank_stabilized: truth(fields, "use_rslora")?,
            fan_in_fan_out: truth(fields, "fan_in_fan_out")?,
            keeps_ties: truth(fields, "ensure_weight_tying")?,
            targets: targets.map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            base: fields.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
        })
    }

    /// The rank of a module, called as in the adapter's file.
    pub(super) fn rank(&self, module: &str) -> usize {
        first_match(&self.ranks, module).unwrap_or(self.rank)
    }

    /// What the product of a module's factors is multiplied by.
    pub(super) fn scale(&self, module: &str, rank: usize) -> Result<f32, String> {
        let alpha = first_match(&self.alphas, module).unwrap_or(self.alpha);
        let divisor = if self.rank_stabilized { (rank as f64).sqrt() } else { rank as f64 };
        let scale = (alpha / divisor) as f32;
        if scale.is_finite() { Ok(scale) } else { Err(format!("an alpha of {alpha:e} is no finite float32")) }
    }

    /// What `target_modules` lists instead, where it does not list the module.
    pub(super) fn unnamed(&self, module: &str) -> Option<String> {
        let targets = self.targets.as_ref()?;
        let named = targets.iter().any(|target| {
            module.strip_suffix(target.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        });
        let list = || targets.iter().take(8).map(|target| quote(target)).collect::<Vec<_>>().join(", ");
        (!named && !targets.is_empty()).then(list)
    }
}

fn check_type(fields: &Map<String, Value>) -> Result<(), String> {
    let kind =
        fields.get("peft_type").and_then(Value::as_str).ok_or_else(|| expected(fields, "peft_type", "\"LORA\""))?;
    if kind == "LORA" {
        return Ok(());
    }
    if PROMPTS.contains(&kind) {
        return Err(format!("a {} adapter changes prompts, not weights: it cannot be merged", quote(kind)));
    }
    Err(format!("{} adapters are not supported, only LORA; {MERGE_FIRST}", quote(kind)))
}

/// Refuses what is more than two factors and a scale; also switches that no one knows yet.
fn check_supported(fields: &Map<String, Value>) -> Result<(), String> {
    for (key, meaning) in UNSUPPORTED {
        if fields.get(key).is_some_and(is_set) {
            return Err(format!("`{key}` is set ({meaning}), which is not supported; {MERGE_FIRST}"));
        }
    }
    for (key, value) in fields {
        let switch = key.starts_with("use_") && key != "use_rslora";
        let table = key.ends_with("_config") && !HARMLESS_TABLES.contains(&key.as_str());
        if (switch || table) && is_set(value) {
            return Err(format!("{} is set, which is not supported; {MERGE_FIRST}", quote(key)));
        }
    }
    Ok(())
}

/// Some initializations move a part of the base's weights into the adapter, so that it fits no other base.
fn check_start(fields: &Map<String, Value>) -> Result<(), String> {
    match fields.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(_)) => Ok(()),
        Some(Value::String(start)) if HARMLESS_STARTS.contains(&start.as_str()) => Ok(()),
        Some(start) => Err(format!(
            "init_lora_weights = {start} changes the base's weights too, so the adapter does not fit the base as it is stored; \
             save it with PEFT's `path_initial_model_for_weight_conversion`, or {MERGE_FIRST}"
        )),
    }
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}

fn truth(fields: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(truth)) => Ok(*truth),
        Some(_) => Err(expected(fields, key, "true or false")),
    }
}

fn as_rank(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|rank| usize::try_from(rank).ok()).filter(|rank| *rank > 0)
}

fn expected(fields: &Map<String, Value>, key: &str, what: &str) -> String {
    match fields.get(key) {
        None => format!("`{key}` is missing; expected {what}"),
        Some(found) => {
            let shown: String = found.to_string().chars().take(80).collect();
            format!("`{key}` is {}; expected {what}", quote(&shown))
        }
    }
}

/// A table from patterns of module names to values. A pattern matches a whole name, or its end behind a dot.
fn patterns<T>(
    fields: &Map<String, Value>,
    key: &str,
    what: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(Regex, T)>, String> {
    let table = match fields.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(table)) => table,
        Some(_) => return Err(expected(fields, key, "an object from module names to values")),
    };
    let entry = |(pattern, value): (&String, &Value)| {
        let value = read(value).ok_or_else(|| format!("`{key}`: {}: expected {what}", quote(pattern)))?;
        let whole = format!("^(?:.*\\.)?(?:{pattern})$");
        let compiled = regex::RegexBuilder::new(&whole).size_limit(MAX_PATTERN).build();
        let compiled = compiled.map_err(|_| {
            format!("`{key}`: {} is not a pattern that can be read here; write out the module names", quote(pattern))
        })?;
        Ok((compiled, value))
    };
    table.iter().map(entry).collect()
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(change: Value) -> Result<Configuration, String> {
        let mut fields = Map::new();
        fields.insert("peft_type".to_owned(), json!("LORA"));
        fields.insert("r".to_owned(), json!(8));
        fields.insert("lora_alpha".to_owned(), json!(16));
        for (key, value) in change.as_object().unwrap() {
            fields.insert(key.clone(), value.clone());
        }
        Configuration::parse(&fields)
    }

    #[test]
    fn patterns_give_modules_ranks_and_alphas_of_their_own() {
        let configuration = parse(json!({
            "rank_pattern": {"layers.0.self_attn.q_proj": 4, "q_proj": 2, "^model.layers.[12].mlp.up": 32},
            "alpha_pattern": {"v_proj": 3.5},
        }))
        .unwrap();
        for (module, rank) in [
            ("model.layers.0.self_attn.q_proj", 4),
            ("model.layers.1.self_attn.q_proj", 2),
            ("q_proj", 2),
            ("model.layers.0.other_q_proj", 8),
            ("model.layers.1.mlp.up", 32),
            ("x.model.layers.1.mlp.up", 8),
            ("model.layers.1.mlp.up_proj", 8),
        ] {
            assert_eq!(configuration.rank(module), rank, "{module}");
        }
        assert_eq!(configuration.scale("a.q_proj", 4), Ok(4.0));
        assert_eq!(configuration.scale("a.v_proj", 7), Ok(0.5));
        let stabilized = parse(json!({"use_rslora": true})).unwrap();
        assert_eq!(stabilized.scale("a.q_proj", 16), Ok(4.0));
        assert!(parse(json!({"lora_alpha": 1e300})).unwrap().scale("a", 1).is_err());
    }

    #[test]
    fn modules_are_named_by_their_ends() {
        let configuration = parse(json!({"target_modules": ["q_proj", "layers.0.up"]})).unwrap();
        assert_eq!(configuration.unnamed("model.layers.0.q_proj"), None);
        assert_eq!(configuration.unnamed("model.layers.0.up"), None);
        assert_eq!(configuration.unnamed("model.layers.1.up").as_deref(), Some("`q_proj`, `layers.0.up`"));
        for every in [json!({"target_modules": "all-linear"}), json!({"target_modules": null}), json!({})] {
            assert_eq!(parse(every).unwrap().unnamed("anything"), None);
        }
    }

    #[test]
    fn what_is_more_than_two_factors_is_refused_by_name() {
        for (change, words) in [
            (json!({"peft_type": "IA3"}), vec!["`IA3`", "merge_and_unload"]),
            (json!({"peft_type": "LOHA"}), vec!["`LOHA`", "only LORA"]),
            (json!({"peft_type": "PROMPT_TUNING"}), vec!["`PROMPT_TUNING`", "prompts, not weights"]),
            (json!({"peft_type": null}), vec!["`peft_type`", "expected"]),
            (json!({"use_dora": true}), vec!["`use_dora`", "DoRA", "merge_and_unload"]),
            (json!({"lora_bias": true}), vec!["`lora_bias`", "biases"]),
            (json!({"use_qalora": true}), vec!["`use_qalora`"]),
            (json!({"arrow_config": {"top_k": 2}}), vec!["`arrow_config`"]),
            (json!({"target_parameters": ["experts.down"]}), vec!["`target_parameters`"]),
            (json!({"layer_replication": [[0, 2], [1, 3]]}), vec!["`layer_replication`"]),
            (json!({"trainable_token_indices": [1]}), vec!["`trainable_token_indices`"]),
            (json!({"init_lora_weights": "pissa_niter_4"}), vec!["pissa_niter_4", "path_initial_model"]),
            (json!({"r": 0}), vec!["`r` is `0`", "above 0"]),
            (json!({"lora_alpha": "16"}), vec!["`lora_alpha`", "a number"]),
            (json!({"rank_pattern": {"q": 0}}), vec!["`rank_pattern`", "`q`", "above 0"]),
            (json!({"rank_pattern": {"(?<!x)q": 2}}), vec!["`rank_pattern`", "module names"]),
            (json!({"alpha_pattern": [1]}), vec!["`alpha_pattern`", "object"]),
            (json!({"use_rslora": 1}), vec!["`use_rslora`", "true or false"]),
        ] {
            let text = parse(change.clone()).expect_err(&change.to_string());
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }

    #[test]
    fn settings_of_training_are_no_obstacle() {
        parse(json!({
            "use_dora": false, "lora_bias": false, "bias": "none", "lora_dropout": 0.1, "loftq_config": {"bits": 4},
            "init_lora_weights": "gaussian", "eva_config": {"rho": 2.0}, "layers_to_transform": [0], "corda_config": null,
            "task_type": "CAUSAL_LM", "modules_to_save": ["lm_head"], "inference_mode": true, "trainable_token_indices": null,
        }))
        .unwrap();
    }
}
