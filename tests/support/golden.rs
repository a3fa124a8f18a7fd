//! The golden merges (tests/golden/README.md) and their tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use evomerge::checkpoint::{Checkpoint, ContentIds};
use evomerge::merge::{MergeOptions, Merger, MergerOptions};
use evomerge::recipe::{MaskKind, Masks, ModelReference, Recipe};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

pub const MODELS: [&str; 4] = ["base", "a", "b", "c"];

/// Tensors with their dtype, shape and values.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<f64>)>;

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Names of all cases, in order.
pub fn cases() -> Vec<String> {
    let mut cases: Vec<String> = std::fs::read_dir(folder().join("cases"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    cases.sort();
    assert_eq!(cases.len(), 38, "{cases:?}");
    cases
}

/// The recipe of a case, with the masks that mergekit drew for it.
pub fn recipe(case: &str) -> Recipe {
    let mut recipe = Recipe::read(&folder().join("cases").join(case).join("recipe.yml")).unwrap();
    recipe.masks = Masks { kind: MaskKind::Mergekit, seed: 42 };
    recipe
}

/// A merger of the family whose folders are in `models`.
pub fn merger(models: &Path) -> Merger {
    merger_with(models, MergerOptions::default())
}

/// The same with other options.
pub fn merger_with(models: &Path, options: MergerOptions) -> Merger {
    let open = |name: &str| (ModelReference::new(name), Arc::new(Checkpoint::open(&models.join(name)).unwrap()));
    Merger::new(MODELS.map(open), ContentIds::in_memory(), options).unwrap()
}

/// Writes a merge to `destination` and reads it back.
pub fn merge(merger: &Merger, recipe: &Recipe, destination: &Path) -> Tensors {
    merger.materialize(recipe, destination, &MergeOptions::default()).unwrap();
    read(&destination.join("model.safetensors"))
}

/// All tensors of a file; every value is exact.
pub fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let values = |dtype: Dtype, data: &[u8]| -> Vec<f64> {
        let half_words = || data.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
        match dtype {
            Dtype::F64 => data.chunks_exact(8).map(|word| f64::from_le_bytes(word.try_into().unwrap())).collect(),
            Dtype::F32 => {
                data.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()).into()).collect()
            }
            Dtype::BF16 => half_words().map(|bits| bf16::from_bits(bits).to_f64()).collect(),
            Dtype::F16 => half_words().map(|bits| f16::from_bits(bits).to_f64()).collect(),
            other => panic!("{other} in {}", path.display()),
        }
    };
    SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), values(view.dtype(), view.data()))))
        .collect()
}
