//! What the tensors of an adapter are called, and which tensors of a model are meant.

use std::collections::{BTreeMap, BTreeSet};

use super::super::error::quote;
use super::super::tensor_names::is_head;

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

/// What is taken from the front of all names of the adapter's model and what is put there.
struct Rename {
    strip: String,
    add: String,
}

impl Rename {
    fn apply(&self, name: &str) -> String {
        format!("{}{}", self.add, name.strip_prefix(self.strip.as_str()).unwrap_or(name))
    }

    /// The names of all targets, where these are names of different tensors of the model.
    fn fit(&self, targets: &BTreeSet<&str>, stored: &BTreeSet<&str>) -> Option<BTreeMap<String, String>> {
        let renamed: BTreeMap<String, String> =
            targets.iter().map(|target| ((*target).to_owned(), self.apply(target))).collect();
        let is_fit = {
            let names: BTreeSet<&str> = renamed.values().map(String::as_str).collect();
            names.len() == targets.len() && names.is_subset(stored)
        };
        is_fit.then_some(renamed)
    }
}

/// A target that the model lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unfit {
    /// Its place among the targets.
    pub(super) index: usize,
    /// Why it is not known which tensor is meant, where several may be.
    pub(super) reason: Option<String>,
}

/// Finds the stored tensors that the targets mean; a target that is not in the answer is stored under its own name.
/// Where the model lacks some of them, all names may need one wrapper more (the adapter was trained on a model without
/// a head) or, but for a head's, less (the checkpoint was stored without one). Else the parts of a model of images and
/// text may be nested in another way (see [`unnested`]).
///
/// # Errors
/// A target is none of the model's tensors, several of them may be meant, or two targets mean the same.
pub(super) fn fit(targets: &[&str], stored: &BTreeSet<&str>) -> Result<BTreeMap<String, String>, Unfit> {
    let Some(index) = targets.iter().position(|target| !stored.contains(target)) else {
        return Ok(BTreeMap::new());
    };
    let missing = targets[index];
    let different: BTreeSet<&str> = targets.iter().copied().collect();
    let longer = stored.iter().filter_map(|name| {
        let add = name.strip_suffix(missing)?;
        add.ends_with('.').then(|| Rename { strip: String::new(), add: add.to_owned() })
    });
    let front = missing.split_inclusive('.').next().unwrap_or_default();
    let shorter = different.iter().all(|target| target.starts_with(front) || is_head(target));
    let shorter = shorter.then(|| Rename { strip: front.to_owned(), add: String::new() });
    let mut found = longer.chain(shorter).filter_map(|rename| Some((rename.fit(&different, stored)?, rename)));
    let Some((renamed, first)) = found.next() else { return fit_each(targets, stored) };
    match found.next() {
        None => Ok(renamed),
        Some((_, second)) => {
            let reason = several(&first.apply(missing), &second.apply(missing));
            Err(Unfit { index, reason: Some(reason) })
        }
    }
}

/// Finds for each target by itself the one stored tensor that has the same name without what it is nested in.
fn fit_each(targets: &[&str], stored: &BTreeSet<&str>) -> Result<BTreeMap<String, String>, Unfit> {
    let mut by_unnested: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in stored {
        by_unnested.entry(unnested(name)).or_default().push(name);
    }
    let mut renamed = BTreeMap::new();
    let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
    for (index, target) in targets.iter().enumerate() {
        let found = by_unnested.get(&unnested(target)).map(Vec::as_slice).unwrap_or_default();
        let name = match (stored.get(target).copied(), found) {
            (Some(name), _) | (None, &[name]) => name,
            (None, &[]) => return Err(Unfit { index, reason: None }),
            (None, &[first, second, ..]) => return Err(Unfit { index, reason: Some(several(first, second)) }),
        };
        let other = taken.insert(name, target);
        if let Some(other) = other.filter(|other| other != target) {
            let reason = format!(", and by what it ends with, it is {} as {} is", quote(name), quote(other));
            return Err(Unfit { index, reason: Some(reason) });
        }
        renamed.insert((*target).to_owned(), name.to_owned());
    }
    Ok(renamed)
}

fn several(first: &str, second: &str) -> String {
    format!(", and more than one fits ({}, {})", quote(first), quote(second))
}

/// A name without what models of images and text are nested in. Checkpoints of these keep the text model's tensors as
/// `language_model.model.X` (Gemma 3, LLaVA, Mistral 3, PaliGemma, InternVL) or `model.X` (Qwen2-VL), and its head as
/// `language_model.lm_head`, since they were made when their models were nested so. The models of transformers 4.52 and
/// later, which PEFT takes the names from, call them `model.language_model.X` and `lm_head`, and the other parts
/// `model.visual.X` instead of `visual.X`. Those of version 5 also leave out a level of the vision tower.
fn unnested(name: &str) -> String {
    let mut inner = name;
    for wrapper in ["model.", "language_model.", "model."] {
        inner = inner.strip_prefix(wrapper).unwrap_or(inner);
    }
    match (inner.strip_prefix("vision_tower.vision_model."), inner.strip_prefix("embed_out.")) {
        (Some(rest), _) => format!("vision_tower.{rest}"),
        (_, Some(rest)) => format!("lm_head.{rest}"),
        (None, None) => inner.to_owned(),
    }
}

/// A stored tensor that has the target's place in a layer, by its name from the layer's number on and one component in
/// front of it; without a number, by the last two components. `None`: there is none, or there are several.
pub(super) fn namesake<'a>(target: &str, stored: &BTreeSet<&'a str>) -> Option<&'a str> {
    let parts: Vec<&str> = target.split('.').collect();
    if parts.len() < 2 {
        return None;
    }
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let start = match parts.iter().position(is_number) {
        Some(number) => number.saturating_sub(1),
        None => parts.len().saturating_sub(2),
    };
    let end = parts[start..].join(".");
    let has_end =
        |name: &&&str| name.strip_suffix(end.as_str()).is_some_and(|outer| outer.is_empty() || outer.ends_with('.'));
    let mut found = stored.iter().filter(has_end);
    found.next().filter(|_| found.next().is_none()).copied()
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

    /// What the targets are called in a model with these tensors.
    fn renamed(targets: &[&str], names: &[&str]) -> Result<Vec<String>, Unfit> {
        let found = fit(targets, &names.iter().copied().collect())?;
        let name = |target: &&str| found.get(*target).cloned().unwrap_or_else(|| (*target).to_owned());
        Ok(targets.iter().map(name).collect())
    }

    #[test]
    fn one_rename_fits_all_names() {
        let full = ["model.layers.0.a.weight", "model.layers.1.a.weight", "lm_head.weight"];
        assert_eq!(renamed(&[full[0], full[2]], &full).unwrap(), [full[0], full[2]]);
        assert_eq!(renamed(&["layers.0.a.weight", "layers.1.a.weight"], &full).unwrap(), full[..2]);
        assert_eq!(renamed(&["transformer.h.0.a"], &["h.0.a", "h.1.a"]).unwrap(), ["h.0.a"]);
        let raw = ["h.0.a", "wte.weight", "lm_head.weight"];
        assert_eq!(renamed(&["transformer.h.0.a", "transformer.wte.weight", "lm_head.weight"], &raw).unwrap(), raw);
        assert_eq!(renamed(&["layers.0.b.weight", "lm_head.weight"], &full).unwrap_err().index, 0);
        let lacking = renamed(&[full[0], "model.layers.2.a.weight"], &full).unwrap_err();
        assert_eq!(lacking, Unfit { index: 1, reason: None });
        let towers = ["text.layers.0.a", "image.layers.0.a"];
        assert!(renamed(&["layers.0.a"], &towers).unwrap_err().reason.unwrap().contains("`text.layers.0.a`"));
    }

    #[test]
    fn parts_of_models_of_images_and_text_are_found_however_they_are_nested() {
        let targets = [
            "model.language_model.layers.0.a.weight",
            "lm_head.weight",
            "model.vision_tower.encoder.layers.0.a.weight",
            "model.multi_modal_projector.linear.weight",
        ];
        let projector = "multi_modal_projector.linear.weight";
        for tower in ["vision_tower.vision_model.encoder.layers.0.a.weight", "vision_tower.encoder.layers.0.a.weight"] {
            let stored = ["language_model.model.layers.0.a.weight", "language_model.lm_head.weight", tower, projector];
            assert_eq!(renamed(&targets, &stored).unwrap(), stored);
            assert_eq!(renamed(&stored, &targets).unwrap(), targets, "an adapter of an older version");
        }
        let targets = ["model.language_model.layers.0.a.weight", "lm_head.weight", "model.visual.blocks.0.a.weight"];
        let stored = ["model.layers.0.a.weight", "lm_head.weight", "visual.blocks.0.a.weight"];
        assert_eq!(renamed(&targets, &stored).unwrap(), stored);
        assert_eq!(renamed(&stored, &targets).unwrap(), targets);
        let neox = ["gpt_neox.layers.0.a.weight", "embed_out.weight"];
        assert_eq!(renamed(&[neox[0], "lm_head.weight"], &neox).unwrap(), neox);
    }

    #[test]
    fn every_target_is_another_tensor_and_a_known_one() {
        let both = ["model.language_model.layers.0.a.weight", "model.visual.blocks.0.a.weight"];
        let stored = ["model.layers.0.a.weight", "visual.blocks.0.a.weight"];
        let lacking = renamed(&[both[0], "model.visual.blocks.7.a.weight"], &stored).unwrap_err();
        assert_eq!(lacking, Unfit { index: 1, reason: None });
        let twice = renamed(&[both[0], both[1], "language_model.model.layers.0.a.weight"], &stored).unwrap_err();
        assert_eq!(twice.index, 2);
        let reason = twice.reason.unwrap();
        assert!(reason.contains("`model.layers.0.a.weight`") && reason.contains("by what it ends with"), "{reason}");
        // Two factors of one module are one target.
        assert_eq!(renamed(&[both[0], both[0], both[1]], &stored).unwrap(), [stored[0], stored[0], stored[1]]);
        let nested = ["language_model.model.layers.0.a.weight", "model.layers.0.a.weight", "visual.blocks.0.a.weight"];
        let reason = renamed(&both, &nested).unwrap_err().reason.unwrap();
        assert!(reason.contains("more than one fits"), "{reason}");
    }

    #[test]
    fn a_namesake_has_the_same_place_in_the_same_layer() {
        let stored = BTreeSet::from(["text.layers.0.a.weight", "text.layers.10.a.weight", "other.head.weight"]);
        assert_eq!(namesake("model.layers.0.a.weight", &stored), Some("text.layers.0.a.weight"));
        assert_eq!(namesake("model.head.weight", &stored), Some("other.head.weight"));
        for target in ["model.layers.1.a.weight", "model.layers.0.b.weight", "blocks.0.a.weight", "weight", ""] {
            assert_eq!(namesake(target, &stored), None, "{target}");
        }
    }
}
