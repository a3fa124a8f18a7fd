//! One name for weights that models store under different names, though loaders take them for the same.
//!
//! Two such differences are known. A model that was saved from a class without a head lacks the inner model's name in
//! front (`h.0.ln_1.weight`, as GPT-2 and BLOOM are published; fine-tunes of them have `transformer.h.0.ln_1.weight`).
//! And transformers renames what older versions, and TensorFlow, called otherwise (`LayerNorm.gamma`, as BERT is
//! published).

use std::collections::BTreeSet;

use super::layers::LayerLayout;
use super::model::Checkpoint;
use super::tensor_names::{current_name, is_head, is_unread};

/// What classes of transformers with a head call the model in them (`base_model_prefix`), where it is not called by its
/// type.
const INNER_MODELS: [&str; 8] =
    ["model", "transformer", "backbone", "language_model", "bert", "roberta", "deberta", "vit"];

/// Gives the tensors of models that are merged with each other the longest and newest names that one of them has. What
/// none calls otherwise keeps its name, and so does what would get the name of another tensor.
pub fn align_names<'a>(models: impl IntoIterator<Item = &'a mut Checkpoint>) {
    let mut models: Vec<&mut Checkpoint> = models.into_iter().collect();
    add_outer_names(&mut models);
    let known: BTreeSet<String> = models.iter().flat_map(|model| model.tensors().keys().cloned()).collect();
    for model in models {
        model.rename_tensors(|name| current_name(name).filter(|current| known.contains(current)));
    }
}

/// Puts the inner model's name in front of the tensors of models that lack it, where their layers are made of the same
/// tensors as those of models that have it.
fn add_outer_names(models: &mut [&mut Checkpoint]) {
    let layouts: Vec<LayerLayout> = models.iter().map(|model| model.layers()).collect();
    let with_layers = layouts.iter().filter(|layout| layout.count > 0);
    let Some(longest) = with_layers.map(|layout| layout.prefix.clone()).max_by_key(String::len) else { return };
    let types: BTreeSet<String> =
        models.iter().filter_map(|model| Some(model.model_type()?.replace('-', "_"))).collect();
    let (mut known, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for (model, _) in models.iter().zip(&layouts).filter(|(_, layout)| layout.prefix == longest) {
        known.extend(model.tensors().keys().map(|name| newest(name)));
        kinds.extend(weights_of_layers(model, &longest));
    }
    for (model, layout) in models.iter_mut().zip(&layouts).filter(|(_, layout)| layout.count > 0) {
        let Some(outer) = longest.strip_suffix(layout.prefix.as_str()) else { continue };
        let own = layout.prefix.split('.').next().unwrap_or_default();
        let is_inner = |word: &str| is_inner_model(word, &types);
        if !outer.strip_suffix('.').is_some_and(is_inner) || is_inner(own) {
            continue;
        }
        if !weights_of_layers(model, &layout.prefix).is_subset(&kinds) {
            continue;
        }
        model.rename_tensors(|name| {
            let whole = format!("{outer}{name}");
            let is_known = |name: &str| known.contains(&newest(name));
            let is_outside = !is_known(&whole) && (is_head(name) || is_known(name));
            (!is_outside).then_some(whole)
        });
    }
}

/// Whether loaders know this word as an inner model's name in models of these types. (Training wraps models in other ones,
/// `_orig_mod` or `module`, which none knows.)
fn is_inner_model(word: &str, types: &BTreeSet<String>) -> bool {
    INNER_MODELS.contains(&word) || types.contains(word)
}

fn newest(name: &str) -> String {
    current_name(name).unwrap_or_else(|| name.to_owned())
}

/// What follows the number in the names of layers' tensors, without what no loader reads.
fn weights_of_layers(model: &Checkpoint, prefix: &str) -> BTreeSet<String> {
    let read = model.tensors().values().filter(|info| !is_unread(info));
    let behind = read.filter_map(|info| info.name.strip_prefix(prefix)?.split_once('.'));
    behind
        .filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()))
        .map(|(_, name)| newest(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::fixtures::write_model;
    use super::*;

    fn model(folder: &Path, name: &str, tensors: &[&str]) -> Checkpoint {
        let path = folder.join(name);
        let tensors: Vec<(&str, &[usize], &[f32])> = tensors
            .iter()
            .zip([&[1.0][..], &[2.0], &[3.0], &[4.0], &[5.0]])
            .map(|(name, value)| (*name, &[][..], value))
            .collect();
        write_model(&path, "{}", &tensors);
        Checkpoint::open(&path).unwrap()
    }

    fn names(model: &Checkpoint) -> Vec<&str> {
        model.tensors().keys().map(String::as_str).collect()
    }

    #[test]
    fn the_inner_model_s_name_is_added_where_another_model_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut bare =
            model(folder.path(), "bare", &["h.0.ln.weight", "h.1.ln.weight", "wte.weight", "lm_head.weight"]);
        let whole =
            ["transformer.h.0.ln.weight", "transformer.h.1.ln.weight", "transformer.wte.weight", "score.weight"];
        let mut tuned = model(folder.path(), "tuned", &whole);
        align_names([&mut bare, &mut tuned]);
        assert_eq!(names(&bare), ["lm_head.weight", whole[0], whole[1], whole[2]]);
        assert_eq!(bare.bytes(whole[1]), Some(&2.0_f32.to_le_bytes()[..]));
        assert_eq!(bare.stored_name(whole[1]), "h.1.ln.weight");
        assert_eq!(bare.shards()[0].tensors, [whole[0], whole[1], "lm_head.weight", whole[2]]);
        assert_eq!(names(&tuned), ["score.weight", whole[0], whole[1], whole[2]]);
        assert_eq!(tuned.stored_name(whole[1]), whole[1]);
    }

    #[test]
    fn layers_of_other_weights_keep_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let own = ["h.0.mlp.weight", "h.1.mlp.weight", "wte.weight"];
        let mut bare = model(folder.path(), "bare", &own);
        let mut other = model(folder.path(), "other", &["transformer.h.0.ln.weight", "transformer.h.1.ln.weight"]);
        // A prefix that only ends with the same letters.
        let mut strange = model(folder.path(), "strange", &["former.h.0.ln.weight", "former.h.1.ln.weight"]);
        align_names([&mut bare, &mut other, &mut strange]);
        assert_eq!(names(&bare), own);
        assert_eq!(names(&strange), ["former.h.0.ln.weight", "former.h.1.ln.weight"]);
    }

    #[test]
    fn what_training_wraps_models_in_is_added_to_none() {
        let folder = tempfile::tempdir().unwrap();
        let own = ["layers.0.mlp.weight", "layers.1.mlp.weight"];
        let inner = own.map(|name| format!("model.{name}"));
        let inner = inner.each_ref().map(String::as_str);
        for (own, outer) in [
            (own, "_orig_mod."),
            (own, "_forward_module."),
            (own, "base_model.model."),
            (own, "0.auto_model."),
            (own, "model.language_model."),
            (own, "student."),
            (inner, "model."),
            (inner, "module."),
        ] {
            let wrapped = own.map(|name| format!("{outer}{name}"));
            let mut bare = model(folder.path(), "bare", &own);
            let mut other = model(folder.path(), "other", &wrapped.each_ref().map(String::as_str));
            align_names([&mut bare, &mut other]);
            assert_eq!((names(&bare), names(&other)), (own.to_vec(), wrapped.each_ref().map(String::as_str).to_vec()));
        }
    }

    #[test]
    fn a_head_goes_where_the_others_have_it() {
        let folder = tempfile::tempdir().unwrap();
        let own = ["layers.0.mlp.weight", "layers.1.mlp.weight", "lm_head.weight"];
        for (head, expected) in [("model.lm_head.weight", "model.lm_head.weight"), ("lm_head.weight", "lm_head.weight")]
        {
            let mut bare = model(folder.path(), "bare", &own);
            let mut other =
                model(folder.path(), "other", &["model.layers.0.mlp.weight", "model.layers.1.mlp.weight", head]);
            align_names([&mut bare, &mut other]);
            assert_eq!(names(&bare), names(&other));
            assert!(names(&bare).contains(&expected), "{:?}", names(&bare));
        }
    }

    #[test]
    fn old_spellings_give_way_to_new_ones() {
        let folder = tempfile::tempdir().unwrap();
        let old = ["encoder.layer.0.LayerNorm.gamma", "encoder.layer.1.LayerNorm.gamma", "embeddings.LayerNorm.beta"];
        let new = ["encoder.layer.0.LayerNorm.weight", "encoder.layer.1.LayerNorm.weight", "embeddings.LayerNorm.bias"];
        let sorted = [new[2], new[0], new[1]];
        let (mut one, mut other) = (model(folder.path(), "old", &old), model(folder.path(), "new", &new));
        align_names([&mut one, &mut other]);
        assert_eq!((names(&one), names(&other)), (sorted.to_vec(), sorted.to_vec()));
        // Both at once; and what would get the name of another tensor stays.
        let with_outer = new.map(|name| format!("bert.{name}"));
        let mut two = model(folder.path(), "outer", &with_outer.each_ref().map(String::as_str));
        let mut one = model(folder.path(), "old", &[&old[..], &[new[0]]].concat());
        align_names([&mut two, &mut one]);
        let expected = ["bert.embeddings.LayerNorm.bias", "bert.encoder.layer.0.LayerNorm.gamma"];
        assert_eq!(names(&one)[..2], expected);
        // Where nobody has the new names, nothing is renamed.
        let mut alone = model(folder.path(), "alone", &old);
        align_names([&mut alone]);
        assert_eq!(names(&alone), [old[2], old[0], old[1]]);
    }
}
