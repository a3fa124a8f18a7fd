//! Statistics of whole tensors beside the run: found again by a later start, and never trusted when the file is not
//! what it was.

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use evomerge::checkpoint::{Checkpoint, ContentIds};
use evomerge::merge::{MergeOptions, Merger, MergerOptions};
use evomerge::recipe::{MaskKind, ModelReference, Recipe};
use runs::{Scratch, cell, stderr};

/// Elements of the tensor whose statistics are kept, and of the one whose are not.
const LARGE: u32 = 1 << 20;
const SMALL: u32 = 1000;
const MODELS: [&str; 3] = ["base", "a", "b"];

/// Three bfloat16 models of one large tensor and a small one. `variant`: other numbers.
fn family(folder: &Path, variant: u32) {
    let (first, end) = (2 * LARGE, 2 * (LARGE + SMALL));
    let header = format!(
        r#"{{"model.layers.0.w":{{"dtype":"BF16","shape":[{LARGE}],"data_offsets":[0,{first}]}},"model.norm.w":{{"dtype":"BF16","shape":[{SMALL}],"data_offsets":[{first},{end}]}}}}"#
    );
    for (model, name) in (0_u32..).zip(MODELS) {
        let value = |index: u32| {
            let mixed = (index ^ (model + 16 * variant) << 24).wrapping_mul(0x9E37_79B9);
            ((0x3C00 | mixed >> 23) as u16 | (mixed << 15) as u16).to_le_bytes()
        };
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..LARGE + SMALL).flat_map(value));
        std::fs::create_dir_all(folder.join(name)).unwrap();
        std::fs::write(folder.join(name).join("config.json"), "{}").unwrap();
        std::fs::write(folder.join(name).join("model.safetensors"), bytes).unwrap();
    }
}

fn merger(folder: &Path) -> Merger {
    let open = |name: &str| {
        let checkpoint = Checkpoint::open(&folder.join(name)).unwrap();
        (ModelReference { location: name.into(), adapter: None }, Arc::new(checkpoint))
    };
    let options = MergerOptions { threads: NonZeroUsize::new(2), ..MergerOptions::default() };
    Merger::new(MODELS.map(open), ContentIds::in_memory(), options).unwrap()
}

/// Recipes whose methods need thresholds, L1 factors (of both kinds of masks), norms and dot products.
fn recipes(seed: u64) -> Vec<Recipe> {
    let source = |name: &str, more: &str| format!("{{model: {name}, parameters: {{weight: 0.5{more}}}}}");
    let models = |more: &str| format!("models: [{}, {}]\n", source("a", more), source("b", more));
    let trimmed = models(", density: 0.3");
    let texts = [
        format!("merge_method: ties\nbase_model: base\n{trimmed}"),
        format!("merge_method: dare_linear\nbase_model: base\n{trimmed}"),
        format!("merge_method: dare_ties\nbase_model: base\n{trimmed}"),
        format!("merge_method: nuslerp\n{}", models("")),
        "merge_method: slerp\nbase_model: a\nparameters: {t: 0.3}\nmodels: [{model: a}, {model: b}]\n".to_owned(),
    ];
    let read = |text: &String| {
        let mut recipe = Recipe::from_mergekit_yaml(text).unwrap();
        recipe.masks.seed = seed;
        recipe
    };
    let mut recipes: Vec<Recipe> = texts.iter().map(read).collect();
    recipes[2].masks.kind = MaskKind::Mergekit;
    recipes
}

/// The weights of all merges, one after another.
fn merged(merger: &Merger, recipes: &[Recipe]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for recipe in recipes {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        merger.materialize(recipe, &out, &MergeOptions::default()).unwrap();
        bytes.extend(std::fs::read(out.join("model.safetensors")).unwrap());
    }
    bytes
}

#[test]
fn a_later_process_computes_none_of_them_and_writes_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    family(folder.path(), 0);
    let (path, recipes) = (folder.path().join("run/statistics.bin"), recipes(5));
    let without = merger(folder.path());
    let expected = merged(&without, &recipes);
    // Two thresholds, two L1 factors with each kind of masks, norms, dot products; of each tensor.
    let all = 2 * (2 + 2 + 2 + 1 + 1);
    assert_eq!((without.statistics_use().computed, without.statistics_use().read), (all, 0));
    without.save_statistics().unwrap();
    assert!(!path.exists());

    let first = merger(folder.path());
    assert_eq!(first.keep_statistics(&path).unwrap(), None);
    assert!(merged(&first, &recipes) == expected);
    first.save_statistics().unwrap();
    assert_eq!(first.kept_statistics() as u64, all / 2, "those of the large tensor");
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);

    let second = merger(folder.path());
    assert_eq!(second.keep_statistics(&path).unwrap(), None);
    for _ in 0..2 {
        assert!(merged(&second, &recipes) == expected);
        let used = second.statistics_use();
        assert_eq!((used.computed, used.read), (all / 2, all / 2), "the small tensor's are computed, once");
    }
    let written = std::fs::metadata(&path).unwrap().modified().unwrap();
    second.save_statistics().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), written, "there was nothing new");
}

#[test]
fn numbers_of_other_masks_and_models_are_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    family(folder.path(), 0);
    let path = folder.path().join("statistics.bin");
    let first = merger(folder.path());
    first.keep_statistics(&path).unwrap();
    merged(&first, &recipes(5));
    first.save_statistics().unwrap();

    let expected = merged(&merger(folder.path()), &recipes(6));
    let other_seed = merger(folder.path());
    other_seed.keep_statistics(&path).unwrap();
    assert!(merged(&other_seed, &recipes(6)) == expected);
    // All but the L1 factors.
    assert_eq!(other_seed.statistics_use().read, 4);

    family(folder.path(), 1);
    let expected = merged(&merger(folder.path()), &recipes(5));
    let other_models = merger(folder.path());
    assert_eq!(other_models.keep_statistics(&path).unwrap(), None);
    assert!(merged(&other_models, &recipes(5)) == expected);
    assert_eq!(other_models.statistics_use().read, 0);
}

#[test]
fn a_damaged_file_is_left_aside_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    family(folder.path(), 0);
    let (path, recipes) = (folder.path().join("statistics.bin"), &recipes(5)[..1]);
    let first = merger(folder.path());
    first.keep_statistics(&path).unwrap();
    let expected = merged(&first, recipes);
    first.save_statistics().unwrap();
    let good = std::fs::read(&path).unwrap();

    let flipped = (0..good.len()).map(|at| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    });
    let shortened = (0..good.len()).map(|length| good[..length].to_vec());
    let others =
        [b"junk".to_vec(), vec![0; 4096], [good.clone(), vec![0]].concat(), [good.clone(), good.clone()].concat()];
    let probe = merger(folder.path());
    for bytes in flipped.chain(shortened).chain(others) {
        std::fs::write(&path, &bytes).unwrap();
        // Only the first file of a merger is used: here it is looked at.
        let reason = probe.keep_statistics(&path).unwrap();
        assert!(reason.is_some(), "{} bytes", bytes.len());
    }
    assert_eq!(probe.kept_statistics(), 0);

    let again = merger(folder.path());
    assert_eq!(again.keep_statistics(&path).unwrap().as_deref(), Some("it is damaged"));
    assert!(merged(&again, recipes) == expected);
    assert_eq!(again.statistics_use().read, 0);
    again.save_statistics().unwrap();
    assert!(std::fs::read(&path).unwrap() == good);

    let nowhere = merger(folder.path());
    assert!(nowhere.keep_statistics(folder.path()).unwrap().unwrap().contains("no regular file"));
    assert!(merged(&nowhere, recipes) == expected);
    assert!(nowhere.save_statistics().is_err());
}

/// A search with weights as genes whose evaluator is a script: `$0` is the result file.
fn run_file(scratch: &Scratch, script: &str) -> PathBuf {
    let path = scratch.path("run.toml");
    let text = format!(
        r#"
name = "run"
seed = 5
[models]
base = "base"
sources = ["a", "b"]
[space]
method = "ties"
[space.genes]
weight = {{ low = 0.0, high = 1.0, per = ["model"] }}
density = 0.3
[strategy]
kind = "random"
[budget]
evaluations = 12
[evaluator]
kind = "command"
argv = ["sh", "-c", '''{script}''', "{{result_file}}"]
[[tasks]]
name = "one"
metric = "accuracy"
"#
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_killed_search_does_not_compute_them_again() {
    const SCORE: &str = r#"echo "{\"scores\": {\"one\": 0.5}}" > "$0""#;
    let scratch = Scratch::new();
    family(scratch.folder.path(), 0);
    let file = scratch.path("results/run/statistics.bin");
    // Once they are on the disk, the search is killed; after that its evaluator only answers.
    let script = format!(
        r#"if [ -s "{0}" ] && [ ! -e "{1}" ]; then touch "{1}"; kill -9 $PPID; sleep 60; fi; {SCORE}"#,
        file.display(),
        scratch.path("killed").display()
    );
    let run_file = run_file(&scratch, &script);
    let arguments = ["search", run_file.to_str().unwrap()];
    let killed = scratch.evomerge(&arguments);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed.status), Some(9), "{}", stderr(&killed));
    let kept = std::fs::read(&file).unwrap();

    let resumed = scratch.evomerge(&arguments);
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    assert!(stderr(&resumed).contains("2 statistics of whole tensors are known"), "{}", stderr(&resumed));
    assert!(std::fs::read(&file).unwrap() == kept, "nothing was computed that is kept");
    let trials = scratch.trials("results", "run");
    assert_eq!(trials.len(), 12);

    // The same search, with a file that is not what it was.
    std::fs::write(&file, &kept[..kept.len() / 2]).unwrap();
    let more = scratch.evomerge(&[&arguments[..], &["--max-evaluations", "14"]].concat());
    assert!(more.status.success(), "{}", stderr(&more));
    assert!(stderr(&more).contains("statistics.bin: it is damaged"), "{}", stderr(&more));
    let trials = scratch.trials("results", "run");
    assert!(trials.iter().all(|row| cell(row, "status") == "scored"), "{trials:?}");
    assert!(std::fs::read(&file).unwrap() == kept, "computed again, to the same numbers");
}
