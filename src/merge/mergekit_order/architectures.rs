//! The weights that mergekit knows of an architecture, in its order: what its tasks are numbered by.

use crate::checkpoint::is_head;

/// An architecture of one tower of numbered layers. Lists of names are separated by spaces.
pub(super) struct Architecture {
    /// In `architectures` of a configuration.
    names: &'static str,
    /// Weights before the layers, the input embedding first.
    before: &'static str,
    /// What stands before a layer's number.
    prefix: &'static str,
    /// What follows a layer's number and a dot.
    layer: &'static str,
    /// Weights after the layers.
    after: &'static str,
    /// Whether the input embedding stands in for a head that a model lacks.
    ties_head: bool,
}

impl Architecture {
    /// The architecture of this name, where mergekit has a table of it that is known here.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.names.split(' ').any(|known| known == name))
    }

    /// Names of the weights before the layers.
    pub(super) fn before(&self) -> impl Iterator<Item = &'static str> {
        self.before.split(' ')
    }

    fn is_among(&self, names: &[&str]) -> bool {
        self.names.split(' ').any(|name| names.contains(&name))
    }

    /// What stands before a layer's number.
    pub(super) fn prefix(&self) -> &'static str {
        self.prefix
    }

    /// What follows the number in the names of the weights that every layer has.
    pub(super) fn of_every_layer(&self) -> impl Iterator<Item = &'static str> {
        let (is_mixed, has_biases) = (self.is_among(&MIXED_LAYERS), !self.is_among(&OPTIONAL_BIASES));
        self.layer.split(' ').filter(move |weight| !is_mixed && (has_biases || !weight.ends_with(".bias")))
    }

    /// Names of a layer's weights.
    pub(super) fn layer(&self, number: usize) -> impl Iterator<Item = String> {
        self.layer.split(' ').map(move |suffix| format!("{}{number}.{suffix}", self.prefix))
    }

    /// What a model's weight is where it lacks one of this name.
    pub(super) fn stand_in(&self, name: &str) -> Option<&'static str> {
        (self.ties_head && is_head(name)).then(|| self.before().next()).flatten()
    }

    /// Names of the weights after the layers.
    pub(super) fn after(&self) -> impl Iterator<Item = &'static str> {
        self.after.split(' ')
    }
}

/// Architectures whose layers are of two kinds.
const MIXED_LAYERS: [&str; 1] = ["Lfm2ForCausalLM"];
/// Architectures whose layers may lack biases.
const OPTIONAL_BIASES: [&str; 2] = ["GraniteForCausalLM", "Glm4ForCausalLM"];

/// Facts about mergekit 0.1.5 (its `_data/architectures`): which weights it merges, and in which order it lists them.
/// Weights that no model stores are passed over, so optional ones need no mark. Compared with mergekit's own by
/// `scripts/record_mergekit_order.py`.
const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        names: "LlamaForCausalLM MistralForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.weight self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight \
            self_attn.o_proj.weight post_attention_layernorm.weight mlp.up_proj.weight mlp.gate_proj.weight \
            mlp.down_proj.weight",
        after: "model.norm.weight lm_head.weight",
        ties_head: true,
    },
    Architecture {
        names: "Qwen2ForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.weight mlp.down_proj.weight mlp.gate_proj.weight mlp.up_proj.weight \
            post_attention_layernorm.weight self_attn.k_proj.bias self_attn.k_proj.weight self_attn.o_proj.weight \
            self_attn.q_proj.bias self_attn.q_proj.weight self_attn.v_proj.bias self_attn.v_proj.weight",
        after: "model.norm.weight lm_head.weight",
        ties_head: true,
    },
    Architecture {
        names: "Qwen3ForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.weight mlp.down_proj.weight mlp.gate_proj.weight mlp.up_proj.weight \
            post_attention_layernorm.weight self_attn.k_norm.weight self_attn.k_proj.weight self_attn.q_norm.weight \
            self_attn.q_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight",
        after: "model.norm.weight lm_head.weight",
        ties_head: true,
    },
    Architecture {
        names: "GemmaForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.weight self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight \
            self_attn.o_proj.weight post_attention_layernorm.weight mlp.up_proj.weight mlp.gate_proj.weight \
            mlp.down_proj.weight",
        after: "model.norm.weight",
        ties_head: false,
    },
    Architecture {
        names: "Gemma2ForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.weight self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight \
            self_attn.o_proj.weight post_attention_layernorm.weight pre_feedforward_layernorm.weight \
            mlp.up_proj.weight mlp.gate_proj.weight mlp.down_proj.weight post_feedforward_layernorm.weight",
        after: "model.norm.weight lm_head.weight",
        ties_head: true,
    },
    Architecture {
        names: "Gemma3ForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.weight self_attn.q_proj.weight self_attn.q_norm.weight self_attn.k_proj.weight \
            self_attn.k_norm.weight self_attn.v_proj.weight self_attn.o_proj.weight post_attention_layernorm.weight \
            pre_feedforward_layernorm.weight mlp.up_proj.weight mlp.gate_proj.weight mlp.down_proj.weight \
            post_feedforward_layernorm.weight",
        after: "model.norm.weight lm_head.weight",
        ties_head: true,
    },
    Architecture {
        names: "Phi3ForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.weight post_attention_layernorm.weight self_attn.o_proj.weight self_attn.qkv_proj.weight \
            mlp.gate_up_proj.weight mlp.down_proj.weight",
        after: "lm_head.weight model.norm.weight",
        ties_head: false,
    },
    Architecture {
        names: "PhiForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.bias input_layernorm.weight self_attn.dense.bias self_attn.dense.weight \
            self_attn.q_proj.bias self_attn.q_proj.weight self_attn.k_proj.bias self_attn.k_proj.weight \
            self_attn.v_proj.bias self_attn.v_proj.weight mlp.fc1.bias mlp.fc1.weight mlp.fc2.bias mlp.fc2.weight",
        after: "lm_head.bias lm_head.weight model.final_layernorm.bias model.final_layernorm.weight",
        ties_head: false,
    },
    Architecture {
        names: "Olmo2ForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "self_attn.q_proj.weight self_attn.q_norm.weight self_attn.k_proj.weight self_attn.k_norm.weight \
            self_attn.v_proj.weight self_attn.o_proj.weight post_attention_layernorm.weight mlp.up_proj.weight \
            mlp.gate_proj.weight mlp.down_proj.weight post_feedforward_layernorm.weight",
        after: "model.norm.weight lm_head.weight",
        ties_head: true,
    },
    Architecture {
        names: "GraniteForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.weight self_attn.q_proj.weight self_attn.q_proj.bias self_attn.k_proj.weight \
            self_attn.k_proj.bias self_attn.v_proj.weight self_attn.v_proj.bias self_attn.o_proj.weight \
            self_attn.o_proj.bias post_attention_layernorm.weight mlp.gate_proj.weight mlp.gate_proj.bias \
            mlp.up_proj.weight mlp.up_proj.bias mlp.down_proj.weight mlp.down_proj.bias",
        after: "model.norm.weight lm_head.weight",
        ties_head: true,
    },
    Architecture {
        names: "Glm4ForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.weight mlp.down_proj.weight mlp.gate_up_proj.weight post_attention_layernorm.weight \
            post_mlp_layernorm.weight post_self_attn_layernorm.weight self_attn.q_proj.weight self_attn.q_proj.bias \
            self_attn.k_proj.weight self_attn.k_proj.bias self_attn.v_proj.weight self_attn.v_proj.bias \
            self_attn.o_proj.weight",
        after: "model.norm.weight lm_head.weight",
        ties_head: true,
    },
    Architecture {
        names: "ArceeForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.weight mlp.down_proj.weight mlp.up_proj.weight post_attention_layernorm.weight \
            self_attn.k_proj.weight self_attn.o_proj.weight self_attn.q_proj.weight self_attn.v_proj.weight",
        after: "model.norm.weight lm_head.weight",
        ties_head: true,
    },
    Architecture {
        names: "ApertusForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "attention_layernorm.weight feedforward_layernorm.weight mlp.act_fn.alpha_n mlp.act_fn.alpha_p \
            mlp.act_fn.beta mlp.act_fn.eps mlp.down_proj.weight mlp.up_proj.weight self_attn.k_norm.weight \
            self_attn.k_proj.weight self_attn.q_norm.weight self_attn.q_proj.weight self_attn.v_proj.weight \
            self_attn.o_proj.weight",
        after: "model.norm.weight lm_head.weight",
        ties_head: true,
    },
    Architecture {
        names: "CohereForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.weight mlp.down_proj.weight mlp.gate_proj.weight mlp.up_proj.weight \
            self_attn.q_norm.weight self_attn.q_proj.weight self_attn.k_norm.weight self_attn.k_proj.weight \
            self_attn.v_proj.weight self_attn.o_proj.weight",
        after: "model.norm.weight lm_head.weight",
        ties_head: false,
    },
    Architecture {
        names: "Cohere2ForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight \
            mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight input_layernorm.weight",
        after: "model.norm.weight lm_head.weight",
        ties_head: false,
    },
    Architecture {
        names: "Starcoder2ForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.bias input_layernorm.weight self_attn.q_proj.bias self_attn.q_proj.weight \
            self_attn.k_proj.bias self_attn.k_proj.weight self_attn.v_proj.bias self_attn.v_proj.weight \
            self_attn.o_proj.bias self_attn.o_proj.weight post_attention_layernorm.bias \
            post_attention_layernorm.weight mlp.c_fc.bias mlp.c_fc.weight mlp.c_proj.bias mlp.c_proj.weight",
        after: "lm_head.weight model.norm.bias model.norm.weight",
        ties_head: true,
    },
    Architecture {
        names: "StableLmForCausalLM",
        before: "model.embed_tokens.weight",
        prefix: "model.layers.",
        layer: "input_layernorm.weight input_layernorm.bias mlp.down_proj.weight mlp.gate_proj.weight mlp.up_proj.weight \
            post_attention_layernorm.weight post_attention_layernorm.bias self_attn.q_proj.weight \
            self_attn.q_proj.bias self_attn.k_proj.weight self_attn.k_proj.bias self_attn.v_proj.weight \
            self_attn.v_proj.bias self_attn.o_proj.weight",
        after: "model.norm.weight model.norm.bias lm_head.weight",
        ties_head: false,
    },
    Architecture {
        names: "GPT2LMHeadModel GPTBigCodeForCausalLM",
        before: "transformer.wte.weight transformer.wpe.weight",
        prefix: "transformer.h.",
        layer: "attn.c_attn.weight attn.c_attn.bias attn.c_proj.weight attn.c_proj.bias ln_1.weight ln_1.bias \
            ln_2.weight ln_2.bias mlp.c_proj.weight mlp.c_proj.bias mlp.c_fc.weight mlp.c_fc.bias",
        after: "transformer.ln_f.weight transformer.ln_f.bias lm_head.weight",
        ties_head: true,
    },
    Architecture {
        names: "Lfm2ForCausalLM",
        before: "model.embed_tokens.weight model.embedding_norm.weight",
        prefix: "model.layers.",
        layer: "feed_forward.w1.weight feed_forward.w2.weight feed_forward.w3.weight ffn_norm.weight \
            operator_norm.weight conv.conv.weight conv.in_proj.weight conv.out_proj.weight \
            self_attn.k_layernorm.weight self_attn.k_proj.weight self_attn.out_proj.weight \
            self_attn.q_layernorm.weight self_attn.q_proj.weight self_attn.v_proj.weight",
        after: "lm_head.weight",
        ties_head: false,
    },
    Architecture {
        names: "MambaForCausalLM",
        before: "backbone.embeddings.weight",
        prefix: "backbone.layers.",
        layer: "mixer.A_log mixer.conv1d.bias mixer.conv1d.weight mixer.D mixer.dt_proj.bias mixer.dt_proj.weight \
            mixer.in_proj.weight mixer.out_proj.weight mixer.x_proj.weight norm.weight",
        after: "backbone.norm_f.weight lm_head.weight",
        ties_head: true,
    },
];
