//! Whether checkpoints can be merged tensor by tensor.

use super::error::{CheckpointError, quote};
use super::header::TensorInfo;
use super::model::Checkpoint;
use super::tensor_names::{is_batch_counter, is_head, is_unread};

/// Checks that all models have the tensors of the first one, with the same shapes. Floating-point types may differ,
/// other types may not. A model that ties its output head to its input embedding need not store the head, and tensors
/// that `may_be_missing` need not be in all of them. Of what no loader reads, and of counters, nothing is compared.
///
/// # Errors
/// [`CheckpointError::Incompatible`] with every difference, or with the architectures where these are others; models are
/// called by the names given.
pub fn compare(models: &[(&str, &Checkpoint)], may_be_missing: impl Fn(&str) -> bool) -> Result<(), CheckpointError> {
    let Some((&(reference_name, reference), others)) = models.split_first() else {
        return Ok(());
    };
    let (mut differences, mut folders) = (Vec::new(), Vec::new());
    for &(name, model) in others {
        let found = differences_of((name, model), (reference_name, reference), &may_be_missing);
        if found.is_empty() {
            continue;
        }
        folders.push(format!("{name}: {}", model.path().display()));
        match (model.model_type(), reference.model_type()) {
            (Some(own), Some(expected)) if own != expected => differences.push(format!(
                "{name} is of another architecture than {reference_name}: {own} against {expected} (model_type in config.json)"
            )),
            _ => {
                differences.extend(found);
                let names = [model, reference].map(|model| model.tensors().keys());
                if model.is_renamed() && !names[0].clone().eq(names[1].clone()) {
                    differences.push(rename_hint(&quote(name), model));
                }
            }
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    folders.push(format!("{reference_name}: {}", reference.path().display()));
    Err(CheckpointError::Incompatible { differences, folders })
}

/// What may help where a model, called `name`, was taken for the inner model of others and does not fit them.
pub(crate) fn rename_hint(name: &str, model: &Checkpoint) -> String {
    let example = model.renamed().next().map(|(name, stored)| format!(" ({} for {})", quote(stored), quote(name)));
    format!(
        "{name} stores its tensors under other names than the others{}: if it was saved from a smaller class, load it with transformers \
         as the class that config.json of the others names (architectures), and save it again with save_pretrained (a head that it \
         never had would be random numbers)",
        example.unwrap_or_default()
    )
}

/// A sentence for each way in which `model` differs from `reference`.
fn differences_of(
    (name, model): (&str, &Checkpoint),
    (reference_name, reference): (&str, &Checkpoint),
    may_be_missing: &impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut differences = Vec::new();
    let does_without =
        |model: &Checkpoint, tensor: &str| is_head(tensor) && model.ties_head() || may_be_missing(tensor);
    for (tensor, expected) in reference.tensors() {
        match model.tensors().get(tensor) {
            None if does_without(model, tensor) => {}
            None => differences.push(format!("{name} lacks {}, which {reference_name} has", quote(tensor))),
            Some(found) => differences.extend(difference((name, found), (reference_name, expected))),
        }
    }
    for tensor in model.tensors().keys() {
        if !reference.tensors().contains_key(tensor) && !does_without(reference, tensor) {
            differences.push(format!("{name} has {}, which {reference_name} lacks", quote(tensor)));
        }
    }
    differences
}

fn difference((name, found): (&str, &TensorInfo), (reference, expected): (&str, &TensorInfo)) -> Option<String> {
    if is_batch_counter(&found.name) || (is_unread(found) && is_unread(expected)) {
        return None;
    }
    let tensor = quote(&found.name);
    if found.shape != expected.shape {
        let (found, expected) = (&found.shape, &expected.shape);
        return Some(format!("{tensor} has shape {found:?} in {name}, {expected:?} in {reference}"));
    }
    let both_float = found.float().is_some() && expected.float().is_some();
    (found.dtype != expected.dtype && !both_float)
        .then(|| format!("{tensor} is of type {} in {name}, {} in {reference}", found.dtype, expected.dtype))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::fixtures::{safetensors_bytes, write_model};
    use super::*;

    const FOUR: [f32; 4] = [0.0; 4];

    fn model(folder: &Path, name: &str, config: &str, tensors: &[(&str, &[usize])]) -> Checkpoint {
        let path = folder.join(name);
        let tensors: Vec<_> =
            tensors.iter().map(|&(name, shape)| (name, shape, &FOUR[..shape.iter().product()])).collect();
        write_model(&path, config, &tensors);
        Checkpoint::open(&path).unwrap()
    }

    fn differences(models: &[(&str, &Checkpoint)]) -> Vec<String> {
        match compare(models, |tensor| tensor == "buffer") {
            Ok(()) => Vec::new(),
            Err(CheckpointError::Incompatible { differences, .. }) => differences,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn every_difference_is_listed() {
        let folder = tempfile::tempdir().unwrap();
        let base = model(folder.path(), "base", "{}", &[("a", &[2, 2]), ("b", &[1]), ("c", &[1])]);
        let same = model(folder.path(), "same", r#"{"other": 1}"#, &[("a", &[2, 2]), ("b", &[1]), ("c", &[1])]);
        let other = model(folder.path(), "other", "{}", &[("a", &[4]), ("b", &[1]), ("d", &[1])]);
        assert_eq!(differences(&[]), [""; 0]);
        assert_eq!(differences(&[("base", &base), ("same", &same)]), [""; 0]);
        let expected = [
            "`a` has shape [4] in other, [2, 2] in base",
            "other lacks `c`, which base has",
            "other has `d`, which base lacks",
        ];
        assert_eq!(differences(&[("base", &base), ("same", &same), ("other", &other)]), expected);
    }

    #[test]
    fn another_architecture_is_told_by_its_name_and_folder() {
        let folder = tempfile::tempdir().unwrap();
        let config = |kind: &str| format!(r#"{{"model_type": "{kind}"}}"#);
        let base = model(folder.path(), "base", &config("llama"), &[("a", &[2, 2]), ("b", &[1])]);
        let alike = model(folder.path(), "alike", &config("mistral"), &[("a", &[2, 2]), ("b", &[1])]);
        let other = model(folder.path(), "other", &config("qwen2"), &[("a", &[4]), ("c", &[1])]);
        assert_eq!(differences(&[("base", &base), ("alike", &alike)]), [""; 0], "the tensors decide");
        let expected = ["other is of another architecture than base: qwen2 against llama (model_type in config.json)"];
        assert_eq!(differences(&[("base", &base), ("alike", &alike), ("other", &other)]), expected);
        let text = compare(&[("base", &base), ("other", &other)], |_| false).unwrap_err().to_string();
        let [base, other] = ["base", "other"].map(|name| folder.path().join(name).display().to_string());
        assert!(text.ends_with(&format!("\n(other: {other}, base: {base})")), "{text}");
    }

    #[test]
    fn models_that_tie_their_heads_need_not_store_them() {
        let folder = tempfile::tempdir().unwrap();
        let tied = r#"{"tie_word_embeddings": true}"#;
        let with = model(folder.path(), "with", tied, &[("embed_tokens.weight", &[2]), ("lm_head.weight", &[2])]);
        let without = model(folder.path(), "without", tied, &[("embed_tokens.weight", &[2])]);
        let silent = model(folder.path(), "silent", "{}", &[("embed_tokens.weight", &[2])]);
        assert_eq!(differences(&[("with", &with), ("without", &without), ("silent", &silent)]), [""; 0]);
        assert_eq!(differences(&[("without", &without), ("with", &with)]), [""; 0]);
        let untied = model(folder.path(), "untied", "{}", &[("embed_tokens.weight", &[2]), ("lm_head.weight", &[2])]);
        assert_eq!(differences(&[("untied", &untied), ("without", &without)]), [""; 0]);
        assert_eq!(differences(&[("with", &with), ("untied", &untied), ("silent", &silent)]), [""; 0]);
        let no = r#"{"tie_word_embeddings": false}"#;
        let headless = model(folder.path(), "headless", no, &[("embed_tokens.weight", &[2])]);
        assert_eq!(
            differences(&[("untied", &untied), ("headless", &headless)]),
            ["headless lacks `lm_head.weight`, which untied has"]
        );
    }

    #[test]
    fn what_merges_do_without_need_not_be_in_all_models() {
        let folder = tempfile::tempdir().unwrap();
        let with = model(folder.path(), "with", "{}", &[("a", &[2]), ("buffer", &[2])]);
        let without = model(folder.path(), "without", "{}", &[("a", &[2])]);
        let longer = model(folder.path(), "longer", "{}", &[("a", &[2]), ("buffer", &[4])]);
        assert_eq!(differences(&[("with", &with), ("without", &without)]), [""; 0]);
        assert_eq!(differences(&[("without", &without), ("with", &with)]), [""; 0]);
        assert_eq!(
            differences(&[("with", &with), ("longer", &longer)]),
            ["`buffer` has shape [4] in longer, [2] in with"]
        );
    }

    /// A model of two tensors, of one element each, by name and type.
    fn of_types(folder: &Path, name: &str, types: [(&str, safetensors::Dtype); 2]) -> Checkpoint {
        let zeros = [0; 8];
        let tensors = types.map(|(name, dtype)| (name, dtype, &[1, 1, 1, 1][..], &zeros[..dtype.bitsize() / 8]));
        let path = folder.join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("config.json"), "{}").unwrap();
        std::fs::write(path.join("model.safetensors"), safetensors_bytes(&tensors)).unwrap();
        Checkpoint::open(&path).unwrap()
    }

    #[test]
    fn what_no_loader_reads_and_counters_may_be_of_any_type_and_shape() {
        use safetensors::Dtype::{BOOL, F32, I32, I64};

        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, mask, counter| {
            of_types(folder.path(), name, [("h.0.attn.bias", mask), ("norm.num_batches_tracked", counter)])
        };
        assert_eq!(differences(&[("one", &make("one", F32, I64)), ("two", &make("two", BOOL, I32))]), [""; 0]);
        let short = model(folder.path(), "short", "{}", &[("embeddings.position_ids", &[1, 2])]);
        let long = model(folder.path(), "long", "{}", &[("embeddings.position_ids", &[1, 4])]);
        assert_eq!(differences(&[("short", &short), ("long", &long)]), [""; 0]);
        // A vector of that name is a bias.
        let mask = model(folder.path(), "mask", "{}", &[("h.0.attn.bias", &[1, 1, 2, 2])]);
        let bias = model(folder.path(), "bias", "{}", &[("h.0.attn.bias", &[2])]);
        assert_eq!(
            differences(&[("mask", &mask), ("bias", &bias)]),
            ["`h.0.attn.bias` has shape [2] in bias, [1, 1, 2, 2] in mask"]
        );
    }

    #[test]
    fn floats_may_differ_in_type_integers_may_not() {
        use safetensors::Dtype::{BF16, F32, I32, I64};

        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, float, integer| of_types(folder.path(), name, [("f", float), ("i", integer)]);
        let (base, half, long, whole) =
            (make("base", F32, I32), make("half", BF16, I32), make("long", F32, I64), make("whole", I32, I32));
        assert_eq!(differences(&[("base", &base), ("half", &half)]), [""; 0]);
        assert_eq!(differences(&[("base", &base), ("long", &long)]), ["`i` is of type I64 in long, I32 in base"]);
        assert_eq!(differences(&[("base", &base), ("whole", &whole)]), ["`f` is of type I32 in whole, F32 in base"]);
    }
}
