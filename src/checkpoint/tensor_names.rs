//! What tensors are by the names in use.

use super::header::TensorInfo;

/// Whether a tensor is an output head, by the names in use: `lm_head.weight`, `embed_out.weight` and their biases.
pub fn is_head(name: &str) -> bool {
    let mut components = name.rsplit('.');
    matches!(components.next(), Some("weight" | "bias")) && matches!(components.next(), Some("lm_head" | "embed_out"))
}

/// Whether a tensor is an input embedding that a head may share, by the names in use.
pub fn is_input_embedding(name: &str) -> bool {
    let mut components = name.rsplit('.');
    components.next() == Some("weight")
        && matches!(
            components.next(),
            Some("embed_tokens" | "wte" | "embed_in" | "word_embeddings" | "tok_embeddings" | "embeddings" | "shared")
        )
}

/// What names end with, after a dot, of tensors that old versions of transformers stored and no current loader reads.
const UNREAD: [&str; 6] = [
    "masked_bias",
    "causal_mask",
    "position_ids",
    "decoder.version",
    "encoder.version",
    "layer.1.EncDecAttention.relative_attention_bias.weight",
];
/// Copies of other tensors, which loaders tie to these: how the name of the copy ends, and how that of the other tensor
/// does.
const TIED: [(&str, &str); 8] = [
    ("encoder.embed_tokens.weight", SHARED),
    ("decoder.embed_tokens.weight", SHARED),
    ("lm_head.decoder.weight", "word_embeddings.weight"),
    ("lm_head.decoder.bias", "lm_head.bias"),
    ("predictions.decoder.weight", "word_embeddings.weight"),
    ("predictions.decoder.bias", "predictions.bias"),
    ("vocab_projector.weight", "word_embeddings.weight"),
    ("proj_out.weight", "decoder.embed_tokens.weight"),
];
/// The embedding of T5 that its encoder and its decoder share, whatever its configuration says of its head.
const SHARED: &str = "shared.weight";

/// Frequencies that old checkpoints store and loaders compute anew.
pub fn is_rotary_table(name: &str) -> bool {
    name.ends_with("inv_freq")
}

/// Whether no current loader reads a tensor: rotary tables, causal masks, numbers of positions and versions that old
/// checkpoints store.
pub fn is_unread(tensor: &TensorInfo) -> bool {
    let name = tensor.name.as_str();
    // What is called so and has another shape is a bias.
    let is_mask = || matches!(tensor.shape.as_slice(), [1, 1, rows, columns] if rows == columns);
    is_rotary_table(name)
        || UNREAD.iter().any(|end| ends_with(name, end))
        || (ends_with(name, "attn.bias") || ends_with(name, "attention.bias")) && is_mask()
}

/// Whether a tensor counts the batches that a BatchNorm saw in training.
pub fn is_batch_counter(name: &str) -> bool {
    ends_with(name, "num_batches_tracked")
}

/// Whether loaders tie a tensor, where a model stores it, to the other one. A model that `unties` its head keeps one of
/// its own, and T5 shares its embedding all the same.
pub fn is_tied(name: &str, other: &str, unties: bool) -> bool {
    let is_copy = |(copy, original): &(&str, &str)| ends_with(name, copy) && ends_with(other, original);
    TIED.iter().any(is_copy) && (!unties || other == SHARED)
}

/// How names end that loaders rename, and what they make of it.
const RENAMED: [(&str, &str); 4] = [
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    ("weight_g", "parametrizations.weight.original0"),
    ("weight_v", "parametrizations.weight.original1"),
];

/// The name that loaders give to a tensor which TensorFlow, or older versions of transformers and PyTorch, called
/// otherwise; `None`: they leave it its own.
pub(super) fn current_name(name: &str) -> Option<String> {
    let (old, current) = RENAMED.iter().find(|(old, _)| ends_with(name, old))?;
    Some(format!("{}{current}", name.strip_suffix(old)?))
}

/// Whether a name ends with these components.
fn ends_with(name: &str, components: &str) -> bool {
    name.strip_suffix(components).is_some_and(|outer| outer.is_empty() || outer.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_unread_of_shape(name: &str, shape: &[usize]) -> bool {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        let dtype = safetensors::Dtype::F32;
        is_unread(&TensorInfo { name, dtype, shape, shard: 0, start: 0, length: 0, replaces: None })
    }

    #[test]
    fn what_no_loader_reads_is_known_by_its_name_and_masks_by_their_shape_too() {
        for name in [
            "transformer.h.0.attn.masked_bias",
            "transformer.h.1.attn.causal_mask",
            "bert.embeddings.position_ids",
            "model.decoder.version",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
        ] {
            assert!(is_unread_of_shape(name, &[2, 3]), "{name}");
        }
        for name in ["h.0.attn.bias", "gpt_neox.layers.0.attention.bias", "transformer.h.0.attn.attention.bias"] {
            assert!(is_unread_of_shape(name, &[1, 1, 8, 8]), "{name}");
            assert!(!is_unread_of_shape(name, &[8]) && !is_unread_of_shape(name, &[1, 1, 8, 4]), "{name}");
        }
        for name in [
            "transformer.h.0.attn.c_attn.bias",
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "model.unmasked_bias",
            "my_attn.bias",
        ] {
            assert!(!is_unread_of_shape(name, &[1, 1, 8, 8]), "{name}");
        }
    }

    #[test]
    fn copies_of_embeddings_and_biases_are_known_by_their_names() {
        for (copy, original) in [
            ("decoder.embed_tokens.weight", "shared.weight"),
            ("model.encoder.embed_tokens.weight", "model.shared.weight"),
            ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
            ("cls.predictions.decoder.bias", "cls.predictions.bias"),
            ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
        ] {
            assert!(is_tied(copy, original, false) && !is_tied(original, copy, false), "{copy}");
            assert_eq!(is_tied(copy, original, true), original == "shared.weight", "{copy}");
        }
        assert!(!is_tied("lm_head.decoder.weight", "lm_head.bias", false));
    }

    #[test]
    fn a_head_is_known_by_its_last_components() {
        assert!(is_head("language_model.lm_head.weight") && !is_head("my_lm_head.weight") && !is_head("lm_head.0"));
    }
}
