//! What `config.json` says of a model: sizes, rotary embedding, and which of the known families it is.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::fault;
use crate::evaluate::Fault;

/// The families that share Llama's decoder block.
const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];
/// Far more than any model's heads have; tables of that size are made before a weight is looked at.
const MOST_HEAD_DIMENSIONS: usize = 1 << 16;

/// A Llama-family decoder, fully resolved.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Architecture {
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    /// Divides `heads`.
    pub(super) kv_heads: usize,
    /// Even.
    pub(super) head_dim: usize,
    pub(super) vocabulary: usize,
    pub(super) norm_epsilon: f32,
    /// Biases of the query, key and value projections.
    pub(super) qkv_bias: bool,
    /// Bias of the attention's output projection.
    pub(super) output_bias: bool,
    pub(super) mlp_bias: bool,
    /// Queries and keys are normalized head by head (Qwen3).
    pub(super) qk_norm: bool,
    pub(super) tied_embeddings: bool,
    /// Positions a token sees, itself included; `None`: all before it.
    pub(super) sliding_window: Option<usize>,
    /// Positions the model was made for.
    pub(super) context: usize,
    /// Rotation a position of each pair of a head's dimensions: `head_dim / 2` values.
    pub(super) inverse_frequencies: Vec<f32>,
    /// Token that begins a text.
    pub(super) bos: Option<u32>,
    /// Tokens that end an answer; empty when none is named.
    pub(super) eos: Vec<u32>,
}

#[derive(Deserialize)]
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    sliding_window: Option<usize>,
    #[serde(default)]
    use_sliding_window: bool,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    /// Up to transformers 4.
    rope_scaling: Option<Map<String, Value>>,
    /// From transformers 5 on; holds the base too.
    rope_parameters: Option<Map<String, Value>>,
    bos_token_id: Option<TokenIds>,
    eos_token_id: Option<TokenIds>,
}

#[derive(Deserialize)]
struct Family {
    model_type: Option<String>,
}

#[derive(Default, Deserialize)]
struct GenerationConfig {
    bos_token_id: Option<TokenIds>,
    eos_token_id: Option<TokenIds>,
}

/// One token, or several.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl TokenIds {
    fn list(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl Architecture {
    /// Reads `config.json` and, where present, `generation_config.json` (whose end tokens win).
    ///
    /// # Errors
    /// A configuration fault for an architecture that is not known, a candidate fault for a config that does not make
    /// sense, an infrastructure fault for one that cannot be read.
    pub(super) fn read(folder: &Path) -> Result<Self, Fault> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| fault::unreadable(format!("{} cannot be read: {error}", path.display())))?;
        let generation_path = folder.join("generation_config.json");
        let generation = match std::fs::read_to_string(&generation_path) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(|error| fault::invalid(format!("{}: {error}", generation_path.display())))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => GenerationConfig::default(),
            Err(error) => {
                return Err(fault::unreadable(format!("{} cannot be read: {error}", generation_path.display())));
            }
        };
        Self::resolve(&text, generation)
            .map_err(|fault| Fault { detail: format!("{}: {}", path.display(), fault.detail), ..fault })
    }

    fn resolve(text: &str, generation: GenerationConfig) -> Result<Self, Fault> {
        let malformed = |error: serde_json::Error| fault::invalid(error.to_string());
        let family = serde_json::from_str::<Family>(text).map_err(malformed)?.model_type;
        let family = family.ok_or_else(|| fault::invalid("`model_type` is missing"))?;
        if !FAMILIES.contains(&family.as_str()) {
            return Err(unsupported(format!("model_type `{family}`")));
        }
        let config: Config = serde_json::from_str(text).map_err(malformed)?;
        if let Some(activation) = config.hidden_act.as_deref().filter(|name| *name != "silu") {
            return Err(unsupported(format!("hidden_act `{activation}` (silu is known)")));
        }
        let kv_heads = config.num_key_value_heads.unwrap_or(config.num_attention_heads);
        check_sizes(&config, kv_heads)?;
        let head_dim = config.head_dim.unwrap_or(config.hidden_size / config.num_attention_heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > MOST_HEAD_DIMENSIONS {
            return Err(fault::invalid(format!(
                "a head has {head_dim} dimensions; expected an even number up to {MOST_HEAD_DIMENSIONS}"
            )));
        }
        if config.num_attention_heads.checked_mul(3 * head_dim).is_none() {
            return Err(fault::invalid(format!("{} heads are too many", config.num_attention_heads)));
        }
        let is_qwen2 = family == "qwen2";
        Ok(Self {
            hidden: config.hidden_size,
            intermediate: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            kv_heads,
            head_dim,
            vocabulary: config.vocab_size,
            norm_epsilon: config.rms_norm_eps as f32,
            qkv_bias: is_qwen2 || (config.attention_bias && family != "mistral"),
            output_bias: config.attention_bias && (family == "llama" || family == "qwen3"),
            mlp_bias: config.mlp_bias && family == "llama",
            qk_norm: family == "qwen3",
            tied_embeddings: config.tie_word_embeddings,
            sliding_window: sliding_window(&family, &config)?,
            context: config.max_position_embeddings,
            inverse_frequencies: inverse_frequencies(&config, head_dim)?,
            bos: generation.bos_token_id.or(config.bos_token_id).and_then(|ids| ids.list().first().copied()),
            eos: generation.eos_token_id.or(config.eos_token_id).map(TokenIds::list).unwrap_or_default(),
        })
    }

    /// The token that stands before a text without context, as the harness has it: begin of text, else end of text.
    pub(super) fn prefix_token(&self) -> Option<u32> {
        self.bos.or_else(|| self.eos.first().copied())
    }
}

fn unsupported(what: String) -> Fault {
    Fault::configuration(
        "candidate_unsupported",
        format!(
            "{what} is not known to the native evaluator, which scores {}; use an `http` or `command` evaluator for other models",
            FAMILIES.join(", ")
        ),
    )
}

fn check_sizes(config: &Config, kv_heads: usize) -> Result<(), Fault> {
    let sizes = [
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_attention_heads", config.num_attention_heads),
        ("num_key_value_heads", kv_heads),
        ("vocab_size", config.vocab_size),
        ("max_position_embeddings", config.max_position_embeddings),
    ];
    if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
        return Err(fault::invalid(format!("`{name}` is 0")));
    }
    if !config.num_attention_heads.is_multiple_of(kv_heads) {
        return Err(fault::invalid(format!(
            "{} attention heads cannot share {kv_heads} key-value heads evenly",
            config.num_attention_heads
        )));
    }
    Ok(())
}

fn sliding_window(family: &str, config: &Config) -> Result<Option<usize>, Fault> {
    match family {
        "mistral" => match config.sliding_window {
            Some(0) => Err(fault::invalid("`sliding_window` is 0")),
            window => Ok(window),
        },
        "qwen2" | "qwen3" if config.use_sliding_window => Err(unsupported(format!("`use_sliding_window` of {family}"))),
        _ => Ok(None),
    }
}

/// Plain, linear or Llama 3 rotary frequencies (transformers' `rope_utils`), in float32 as there.
fn inverse_frequencies(config: &Config, head_dim: usize) -> Result<Vec<f32>, Fault> {
    let parameters = config.rope_parameters.as_ref().or(config.rope_scaling.as_ref());
    let number = |key: &str| parameters.and_then(|map| map.get(key)).and_then(Value::as_f64);
    let required = |key: &str| {
        number(key)
            .filter(|value| value.is_finite() && *value > 0.0)
            .map(|value| value as f32)
            .ok_or_else(|| fault::invalid(format!("rotary scaling needs a positive `{key}`")))
    };
    if config.partial_rotary_factor.or(number("partial_rotary_factor")).is_some_and(|factor| factor != 1.0) {
        return Err(unsupported("`partial_rotary_factor` other than 1".to_owned()));
    }
    let base = number("rope_theta").or(config.rope_theta).unwrap_or(10_000.0) as f32;
    let plain = (0..head_dim / 2).map(|pair| 1.0 / base.powf((2 * pair) as f32 / head_dim as f32));
    let kind = parameters.and_then(|map| map.get("rope_type").or_else(|| map.get("type"))).and_then(Value::as_str);
    match kind.unwrap_or("default") {
        "default" => Ok(plain.collect()),
        "linear" => {
            let factor = required("factor")?;
            Ok(plain.map(|frequency| frequency / factor).collect())
        }
        "llama3" => {
            let (factor, original) = (required("factor")?, required("original_max_position_embeddings")?);
            let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
            let scale = |frequency: f32| {
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            };
            Ok(plain.map(scale).collect())
        }
        other => Err(unsupported(format!("rotary scaling `{other}` (default, linear and llama3 are known)"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::FaultClass;

    fn resolve(change: &[(&str, Value)]) -> Result<Architecture, Fault> {
        let mut config = serde_json::json!({
            "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 10, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64, "hidden_act": "silu", "eos_token_id": 2
        });
        for (key, value) in change {
            config[key] = value.clone();
        }
        Architecture::resolve(&config.to_string(), GenerationConfig::default())
    }

    #[test]
    fn fills_defaults() {
        let architecture = resolve(&[]).unwrap();
        assert_eq!(architecture.head_dim, 4);
        assert_eq!(architecture.inverse_frequencies, [1.0, 0.01]);
        assert_eq!(architecture.eos, [2]);
        assert_eq!(architecture.prefix_token(), Some(2));
        assert!(!architecture.tied_embeddings);
    }

    #[test]
    fn end_tokens_may_be_a_list_and_generation_wins() {
        let generation: GenerationConfig =
            serde_json::from_str("{\"eos_token_id\": [5, 6], \"bos_token_id\": 1}").unwrap();
        let text = serde_json::json!({
            "model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 8, "eos_token_id": 2
        });
        let architecture = Architecture::resolve(&text.to_string(), generation).unwrap();
        assert_eq!(architecture.eos, [5, 6]);
        assert_eq!(architecture.prefix_token(), Some(1));
        assert_eq!(architecture.kv_heads, 2);
    }

    #[test]
    fn other_architectures_are_refused_by_name() {
        let cases = [
            ("model_type", Value::from("gpt2"), "gpt2"),
            ("hidden_act", Value::from("gelu"), "gelu"),
            ("rope_scaling", serde_json::json!({"rope_type": "yarn", "factor": 2.0}), "yarn"),
            ("partial_rotary_factor", Value::from(0.5), "partial_rotary_factor"),
        ];
        for (key, value, part) in cases {
            let fault = resolve(&[(key, value)]).unwrap_err();
            assert_eq!(fault.class, FaultClass::Configuration);
            assert!(fault.detail.contains(part), "{}", fault.detail);
        }
        let fault = resolve(&[("model_type", "qwen2".into()), ("use_sliding_window", true.into())]).unwrap_err();
        assert!(fault.detail.contains("use_sliding_window"), "{}", fault.detail);
    }

    #[test]
    fn senseless_sizes_are_the_candidates_fault() {
        for (key, value) in [
            ("hidden_size", Value::from(0)),
            ("num_key_value_heads", Value::from(3)),
            ("head_dim", Value::from(3)),
            ("head_dim", Value::from(4_000_000_000_000_u64)),
            ("hidden_size", Value::from("x")),
            ("model_type", Value::Null),
            ("rope_scaling", serde_json::json!({"type": "linear"})),
        ] {
            assert_eq!(resolve(&[(key, value)]).unwrap_err().class, FaultClass::Candidate, "{key}");
        }
    }
}
