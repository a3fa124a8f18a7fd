//! What the tensors of an adapter are called, and which tensors of a model are meant.

use std::collections::BTreeMap;

/// What kind of layer a factor changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LayerKind {
    /// Its factors are called `lora_A` and `lora_B`.
    Linear,
    /// Its factors are called `lora_embedding_A` and `lora_embedding_B`.
    Embedding,
}

/// Which of the two factors of a layer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// `A`: into the rank.
    Down,
    /// `B`: out of the rank.
    Up,
}

/// What a tensor of an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// One of the two factors of a layer.
    Factor(LayerKind, Side),
    /// A whole tensor that takes the place of the model's.
    Whole,
}

/// A tensor's name taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// The tensor of the model, as the adapter's model called it.
    pub(super) target: String,
    /// The module that patterns of the configuration are matched with.
    pub(super) module: String,
    pub(super) role: Role,
}

/// In front of all names of a file: of PEFT's own wrappers, the longest first.
const WRAPPERS: [&str; 2] = ["base_model.model.", "base_model."];

/// Takes a name apart; adapter names (`lora_A.default.weight`) are dropped, as PEFT does when it saves.
///
/// # Errors
/// What the tensor is, where it cannot be merged.
pub(super) fn parse(name: &str) -> Result<Named, String> {
    let inner = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)).unwrap_or(name);
    let parts: Vec<&str> = inner.split('.').collect();
    if parts.contains(&"lora_magnitude_vector") {
        return Err("it is a magnitude of DoRA, which is not supported; merge the adapter into its base with PEFT \
                    (`model.merge_and_unload().save_pretrained(...)`) and name the result as a model"
            .to_owned());
    }
    if parts.contains(&"token_adapter") || parts.contains(&"original_module") {
        return Err(
            "it is neither a factor nor a whole tensor that can replace one; merge the adapter with PEFT first"
                .to_owned(),
        );
    }
    for (index, part) in parts.iter().enumerate() {
        let (kind, side) = match *part {
            "lora_A" => (LayerKind::Linear, Side::Down),
            "lora_B" => (LayerKind::Linear, Side::Up),
            "lora_embedding_A" => (LayerKind::Embedding, Side::Down),
            "lora_embedding_B" => (LayerKind::Embedding, Side::Up),
            _ => continue,
        };
        let rest = &parts[index + 1..];
        let complete = match kind {
            LayerKind::Linear => matches!(rest, ["weight"] | [_, "weight"]),
            LayerKind::Embedding => matches!(rest, [] | [_]),
        };
        if index == 0 || !complete {
            let bias = rest.last() == Some(&"bias");
            return Err(match bias {
                true => "a bias of a factor (lora_bias) is not supported; merge the adapter with PEFT first".to_owned(),
                false => "expected MODULE.lora_A.weight, MODULE.lora_B.weight, MODULE.lora_embedding_A or \
                          MODULE.lora_embedding_B"
                    .to_owned(),
            });
        }
        let module = parts[..index].join(".");
        return Ok(Named { target: format!("{module}.weight"), module, role: Role::Factor(kind, side) });
    }
    let mut whole = Vec::with_capacity(parts.len());
    let mut saved = false;
    for part in parts {
        match part {
            "base_layer" | "modules_to_save" => {}
            "default" if saved => {}
            part => whole.push(part),
        }
        saved = part == "modules_to_save";
    }
    let module = whole[..whole.len().saturating_sub(1)].join(".");
    Ok(Named { target: whole.join("."), module, role: Role::Whole })
}

/// How the names of the adapter's model become those of the stored one: what is taken from their front and what is put
/// there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rename {
    strip: String,
    add: String,
}

impl Rename {
    pub(super) fn apply(&self, name: &str) -> String {
        format!("{}{}", self.add, name.strip_prefix(self.strip.as_str()).unwrap_or(name))
    }
}

/// A target that the model lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfit {
    /// Its place among the targets.
    pub(super) index: usize,
    /// More to say of it; may be empty.
    pub(super) ambiguity: String,
}

/// Finds the rename under which the model has all targets: none, or one wrapper more (the adapter was trained on a
/// model without a head) or less (the checkpoint was stored without one), the same for all names.
///
/// # Errors
/// No rename, or more than one, fits all of them.
pub(super) fn fit<'a, T>(
    targets: impl Iterator<Item = &'a str>,
    tensors: &BTreeMap<String, T>,
) -> Result<Rename, Unfit> {
    let targets: Vec<&str> = targets.collect();
    let fits = |rename: &Rename| targets.iter().all(|target| tensors.contains_key(&rename.apply(target)));
    let Some(index) = targets.iter().position(|target| !tensors.contains_key(*target)) else {
        return Ok(Rename::default());
    };
    let missing = targets[index];
    let longer = tensors.keys().filter_map(|name| {
        let add = name.strip_suffix(missing)?;
        add.ends_with('.').then(|| Rename { strip: String::new(), add: add.to_owned() })
    });
    let front = missing.split_inclusive('.').next().unwrap_or_default();
    let shorter = targets.iter().all(|target| target.starts_with(front));
    let shorter = shorter.then(|| Rename { strip: front.to_owned(), add: String::new() });
    let mut found = longer.chain(shorter).filter(fits);
    let unfit = |ambiguity| Unfit { index, ambiguity };
    let first = found.next().ok_or_else(|| unfit(String::new()))?;
    match found.next() {
        None => Ok(first),
        Some(second) => {
            Err(unfit(format!(", and more than one fits (`{}`, `{}`)", first.apply(missing), second.apply(missing))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factor(name: &str, target: &str, kind: LayerKind, side: Side) {
        let found = parse(name).unwrap();
        assert_eq!((found.target.as_str(), found.role), (target, Role::Factor(kind, side)), "{name}");
        assert_eq!(format!("{}.weight", found.module), target);
    }

    #[test]
    fn factors_are_found_under_all_prefixes_and_adapter_names() {
        use LayerKind::{Embedding, Linear};

        let target = "model.layers.0.q_proj.weight";
        factor("base_model.model.model.layers.0.q_proj.lora_A.weight", target, Linear, Side::Down);
        factor("base_model.model.layers.0.q_proj.lora_B.weight", "layers.0.q_proj.weight", Linear, Side::Up);
        factor("model.layers.0.q_proj.lora_B.default.weight", target, Linear, Side::Up);
        factor("base_model.model.wte.lora_embedding_A", "wte.weight", Embedding, Side::Down);
        factor("base_model.model.wte.lora_embedding_B.default", "wte.weight", Embedding, Side::Up);
    }

    #[test]
    fn whole_tensors_lose_what_the_library_put_into_their_names() {
        for (name, target) in [
            ("base_model.model.lm_head.weight", "lm_head.weight"),
            ("base_model.model.lm_head.modules_to_save.weight", "lm_head.weight"),
            ("base_model.model.score.modules_to_save.default.dense.bias", "score.dense.bias"),
            ("base_model.model.a.q_proj.base_layer.bias", "a.q_proj.bias"),
        ] {
            let found = parse(name).unwrap();
            assert_eq!((found.target.as_str(), found.role), (target, Role::Whole));
        }
    }

    #[test]
    fn what_cannot_be_merged_is_named() {
        for (name, word) in [
            ("base_model.model.q.lora_magnitude_vector", "DoRA"),
            ("base_model.model.q.lora_magnitude_vector.default.weight", "DoRA"),
            ("base_model.model.q.lora_B.bias", "lora_bias"),
            ("base_model.model.q.lora_A.weight.more.still", "expected MODULE.lora_A.weight"),
            ("lora_A.weight", "expected MODULE"),
            ("base_model.model.e.token_adapter.trainable_tokens_delta", "neither"),
        ] {
            let text = parse(name).unwrap_err();
            assert!(text.contains(word), "{name}: {text}");
        }
    }

    #[test]
    fn one_rename_must_fit_all_names() {
        let model = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), ())).collect::<BTreeMap<_, _>>();
        let renamed = |targets: &[&str], names: &[&str]| {
            fit(targets.iter().copied(), &model(names)).map(|rename| rename.apply(targets[0]))
        };
        let full = ["model.layers.0.a.weight", "model.layers.1.a.weight", "lm_head.weight"];
        assert_eq!(renamed(&["model.layers.0.a.weight", "lm_head.weight"], &full).unwrap(), full[0]);
        assert_eq!(renamed(&["layers.0.a.weight", "layers.1.a.weight"], &full).unwrap(), full[0]);
        assert_eq!(renamed(&["transformer.h.0.a"], &["h.0.a", "h.1.a"]).unwrap(), "h.0.a");
        assert_eq!(renamed(&["layers.0.a.weight", "lm_head.weight"], &full).unwrap_err().index, 0);
        assert_eq!(renamed(&[full[0], "model.layers.2.a.weight"], &full).unwrap_err().index, 1);
        let towers = ["text.layers.0.a", "image.layers.0.a"];
        assert!(renamed(&["layers.0.a"], &towers).unwrap_err().ambiguity.contains("`text.layers.0.a`"));
    }
}
