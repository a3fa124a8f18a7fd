//! Which tensors belong to which layer, for any architecture.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::tensor_names::is_head;

/// The repeated blocks of a model and the tensors outside them.
///
/// A layer is the numeric component of the repeated block prefix (`model.layers.N.`, `h.N.`, `blocks.N.`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerLayout {
    /// Everything before the layer's number, with the dot (`model.layers.`); empty when there is no numbered tensor.
    pub prefix: String,
    /// Layers, numbered from 0; 0 when there is no numbered tensor.
    pub count: usize,
    /// Tensors without a number that go with the first group (embeddings), sorted.
    pub first: Vec<String>,
    /// All other tensors without a number (final norm, head), sorted.
    pub last: Vec<String>,
}

/// A repeated block of a model beside its layers: the encoder beside a decoder, the tower for images beside the text's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tower {
    /// Everything before the block's number, with the dot (`encoder.block.`).
    pub prefix: String,
    /// Blocks, numbered from 0; at least two.
    pub count: usize,
}

impl Tower {
    /// The block that a tensor belongs to; `None` for tensors of other parts.
    pub fn block_of(&self, name: &str) -> Option<usize> {
        numbered(name, &self.prefix).filter(|number| *number < self.count)
    }
}

/// What the names of towers contain that take in images or sounds.
const SIDE_TOWERS: [&str; 5] = ["vision", "visual", "image", "audio", "speech"];
/// Numeric components of a name that are looked at: more mean nothing, and names come from foreign files.
const MAX_NUMBERS: usize = 8;
/// Digits that a layer's number may have.
const MAX_DIGITS: usize = 6;

impl LayerLayout {
    /// Finds the layers in a model's tensor names.
    ///
    /// A number is a whole component between dots, without leading zeros (`layers.1.` is not a part of `layers.10.`).
    /// The layer prefix is the text before a number that the most tensors share; a prefix that repeats (two numbers or
    /// more) goes before one that does not, a tower of text before one of images or sounds, however large, an outer
    /// before an inner, then the first by name. Tensors that are numbered only under another prefix (the smaller tower
    /// of a two-tower model) are placed by name, like those without any number: heads with the last group; others with
    /// the first when the name contains `embed`, `wte`, `wpe` or `patch`, else with the last.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let names: BTreeSet<&str> = names.into_iter().collect();
        let mut layout = Self::default();
        if let Some((prefix, count)) = most_numbered(&names) {
            layout.prefix = prefix.to_owned();
            layout.count = count;
        }
        for name in names {
            if layout.layer_of(name).is_some() {
                continue;
            }
            let first = !is_head(name) && ["embed", "wte", "wpe", "patch"].iter().any(|part| name.contains(part));
            if first { &mut layout.first } else { &mut layout.last }.push(name.to_owned());
        }
        layout
    }

    /// The layer that a tensor belongs to; `None` for tensors outside the layers.
    pub fn layer_of(&self, name: &str) -> Option<usize> {
        if self.count == 0 {
            return None;
        }
        numbered(name, &self.prefix)
    }

    /// The repeated blocks beside the layers, by name. Blocks are numbered from 0 without a gap, and are made of modules;
    /// a list of weights (`merger.mlp.0.weight`) is none, nor is what repeats within a block (experts).
    pub fn other_towers<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<Tower> {
        let mut numbers_by_prefix: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for name in names.into_iter().filter(|name| self.layer_of(name).is_none()) {
            for (prefix, number) in numbers(name).take(MAX_NUMBERS) {
                let is_module = name[prefix.len()..].split('.').count() > 2;
                if is_module {
                    numbers_by_prefix.entry(prefix).or_default().insert(number);
                }
            }
        }
        let mut towers: Vec<Tower> = Vec::new();
        for (prefix, numbers) in numbers_by_prefix {
            let is_repeated = numbers.len() > 1 && numbers.last().is_some_and(|last| last + 1 == numbers.len());
            if is_repeated && !towers.iter().any(|outer| prefix.starts_with(outer.prefix.as_str())) {
                towers.push(Tower { prefix: prefix.to_owned(), count: numbers.len() });
            }
        }
        towers
    }
}

/// The number that follows a prefix.
fn numbered(name: &str, prefix: &str) -> Option<usize> {
    let (number, _) = name.strip_prefix(prefix)?.split_once('.')?;
    layer_number(number)
}

/// The layer prefix and one more than its highest number.
fn most_numbered<'a>(names: &BTreeSet<&'a str>) -> Option<(&'a str, usize)> {
    let mut prefixes: BTreeMap<&str, (usize, BTreeSet<usize>)> = BTreeMap::new();
    for name in names {
        for (prefix, number) in numbers(name).take(MAX_NUMBERS) {
            let (tensors, layers) = prefixes.entry(prefix).or_default();
            *tensors += 1;
            layers.insert(number);
        }
    }
    let rank = |prefix: &str, tensors: usize, layers: &BTreeSet<usize>| {
        let of_text = !SIDE_TOWERS.iter().any(|tower| prefix.contains(tower));
        (layers.len() > 1, of_text, tensors, Reverse(prefix.split('.').count()))
    };
    let mut best: Option<(&str, usize, BTreeSet<usize>)> = None;
    for (prefix, (tensors, layers)) in prefixes {
        let better = best
            .as_ref()
            .is_none_or(|(other, count, numbers)| rank(prefix, tensors, &layers) > rank(other, *count, numbers));
        if better {
            best = Some((prefix, tensors, layers));
        }
    }
    best.and_then(|(prefix, _, layers)| Some((prefix, layers.last()? + 1)))
}

/// The numbers of a name, each with all the text before it. The last component is a parameter's own name, never a
/// layer.
fn numbers(name: &str) -> impl Iterator<Item = (&str, usize)> {
    let mut start = 0;
    name.split('.').filter_map(move |component| {
        let at = start;
        start += component.len() + 1;
        let last = at + component.len() == name.len();
        layer_number(component).filter(|_| !last).map(|number| (&name[..at], number))
    })
}

fn layer_number(component: &str) -> Option<usize> {
    let canonical = component == "0" || !component.starts_with('0');
    let digits = component.len() <= MAX_DIGITS && component.bytes().all(|byte| byte.is_ascii_digit());
    if canonical && digits { component.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{LayerLayout, Tower};

    fn layout(names: &[&str]) -> LayerLayout {
        LayerLayout::from_names(names.iter().copied())
    }

    #[test]
    fn llama_names() {
        let mut names =
            vec!["model.embed_tokens.weight".to_owned(), "model.norm.weight".into(), "lm_head.weight".into()];
        for layer in 0..12 {
            names.push(format!("model.layers.{layer}.mlp.up_proj.weight"));
            names.push(format!("model.layers.{layer}.self_attn.q_proj.weight"));
        }
        let found = LayerLayout::from_names(names.iter().map(String::as_str));
        assert_eq!((found.prefix.as_str(), found.count), ("model.layers.", 12));
        assert_eq!(found.first, ["model.embed_tokens.weight"]);
        assert_eq!(found.last, ["lm_head.weight", "model.norm.weight"]);
        assert_eq!(found.layer_of("model.layers.1.mlp.up_proj.weight"), Some(1));
        assert_eq!(found.layer_of("model.layers.10.mlp.up_proj.weight"), Some(10));
        assert_eq!(found.layer_of("model.layers.x.mlp.up_proj.weight"), None);
        assert_eq!(found.layer_of("lm_head.weight"), None);
    }

    #[test]
    fn a_head_goes_with_the_last_group_whatever_its_name_contains() {
        let found = layout(&[
            "embed_out.weight",
            "gpt_neox.embed_in.weight",
            "gpt_neox.final_layer_norm.weight",
            "gpt_neox.layers.0.mlp.weight",
            "gpt_neox.layers.1.mlp.weight",
        ]);
        assert_eq!(found.first, ["gpt_neox.embed_in.weight"]);
        assert_eq!(found.last, ["embed_out.weight", "gpt_neox.final_layer_norm.weight"]);
    }

    #[test]
    fn experts_inside_a_layer_are_not_layers() {
        let mut names = Vec::new();
        for layer in 0..2 {
            for expert in 0..16 {
                names.push(format!("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"));
            }
        }
        let found = LayerLayout::from_names(names.iter().map(String::as_str));
        assert_eq!((found.prefix.as_str(), found.count), ("model.layers.", 2));
    }

    #[test]
    fn a_wrapper_that_is_numbered_once_is_not_the_layer() {
        let found = layout(&["0.model.layer.0.weight", "0.model.layer.1.weight", "0.model.embeddings.weight"]);
        assert_eq!((found.prefix.as_str(), found.count), ("0.model.layer.", 2));
        assert_eq!(found.first, ["0.model.embeddings.weight"]);
    }

    #[test]
    fn the_smaller_tower_is_placed_by_name() {
        let found = layout(&[
            "text.layers.0.a.weight",
            "text.layers.0.b.weight",
            "text.layers.1.a.weight",
            "vision.blocks.0.a.weight",
            "vision.blocks.1.a.weight",
            "vision.patch.0.weight",
        ]);
        assert_eq!((found.prefix.as_str(), found.count), ("text.layers.", 2));
        assert_eq!(found.first, ["vision.patch.0.weight"]);
        assert_eq!(found.last, ["vision.blocks.0.a.weight", "vision.blocks.1.a.weight"]);
    }

    #[test]
    fn other_towers_are_repeated_blocks_of_modules() {
        let mut names: Vec<String> = vec!["visual.merger.mlp.0.weight".into(), "visual.merger.mlp.1.weight".into()];
        for block in 0..3 {
            names.push(format!("model.layers.{block}.mlp.weight"));
            names.push(format!("model.layers.{block}.self_attn.weight"));
            names.push(format!("visual.gap.{}.mlp.weight", 2 * block));
            for part in 0..2 {
                names.push(format!("visual.blocks.{block}.experts.{part}.up.weight"));
            }
        }
        names.push("visual.blocks.1.scale".into());
        names.push("mtp.layers.0.mlp.weight".into());
        let all = || names.iter().map(String::as_str);
        let towers = LayerLayout::from_names(all()).other_towers(all());
        assert_eq!(towers, [Tower { prefix: "visual.blocks.".into(), count: 3 }]);
        assert_eq!(towers[0].block_of("visual.blocks.1.scale"), Some(1));
        assert_eq!(towers[0].block_of("visual.blocks.3.scale"), None);
        assert_eq!(towers[0].block_of("model.layers.1.mlp.weight"), None);
    }

    #[test]
    fn names_without_numbers_make_no_layer() {
        let found = layout(&["conv1.weight", "conv2.weight", "head.bias", "layer.00.weight", "x.0", "wte.weight"]);
        assert_eq!((found.prefix.as_str(), found.count), ("", 0));
        assert_eq!(found.first, ["wte.weight"]);
        assert_eq!(found.last, ["conv1.weight", "conv2.weight", "head.bias", "layer.00.weight", "x.0"]);
        assert_eq!(found.layer_of("0.weight"), None);
    }

    #[test]
    fn names_may_start_with_the_number() {
        let found = layout(&["0.weight", "2.weight", "out.weight"]);
        assert_eq!((found.prefix.as_str(), found.count), ("", 3));
        assert_eq!(found.layer_of("2.weight"), Some(2));
        assert_eq!(found.last, ["out.weight"]);
    }

    proptest! {
        #[test]
        fn every_tensor_is_in_exactly_one_place(names in prop::collection::btree_set("[a-c]?[.0-9a-c]{0,12}", 0..20)) {
            let found = LayerLayout::from_names(names.iter().map(String::as_str));
            for name in &names {
                let places = usize::from(found.layer_of(name).is_some())
                    + usize::from(found.first.contains(name))
                    + usize::from(found.last.contains(name));
                prop_assert_eq!(places, 1);
                if let Some(layer) = found.layer_of(name) {
                    prop_assert!(layer < found.count);
                }
            }
        }
    }
}
