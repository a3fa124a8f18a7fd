//! What tensors are by the names in use.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_known_by_its_last_components() {
        assert!(is_head("language_model.lm_head.weight") && !is_head("my_lm_head.weight") && !is_head("lm_head.0"));
    }
}
