//! Command lines and configurations that people bring along from mergekit.

#[allow(dead_code, reason = "shared with the tests of whole searches")]
#[path = "support/runs.rs"]
mod runs;

use std::path::{Path, PathBuf};

use runs::{Scratch, stderr};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models")
}

/// Half of `a` and half of `b`, and what else a configuration says.
fn soup(more: &str) -> String {
    let [a, b] = ["a", "b"].map(|name| models().join(name));
    format!(
        "merge_method: linear\n{more}models:\n- model: {a:?}\n  parameters: {{weight: 0.5}}\n- model: {b:?}\n  \
         parameters: {{weight: 0.5}}\n"
    )
}

fn weights(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("model.safetensors")).unwrap()
}

#[test]
fn a_command_line_of_mergekit_yaml_works_as_it_is() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("config.yaml"), soup("")).unwrap();
    assert!(scratch.evomerge(&["merge", "config.yaml", "--out", "plain"]).status.success());
    // mergekit writes into a folder that is there.
    std::fs::create_dir(scratch.path("merged")).unwrap();
    let flags = "merge config.yaml merged --copy-tokenizer --allow-crimes --out-shard-size 1B --lazy-unpickle --random-seed 7 \
                 --device cpu -j 2";
    let output = scratch.evomerge(&flags.split_whitespace().collect::<Vec<_>>());
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("--allow-crimes, --copy-tokenizer, --lazy-unpickle, --device of mergekit-yaml"));
    assert_eq!(weights(&scratch.path("merged")), weights(&scratch.path("plain")));
    let more = "merge config.yaml again --no-quiet --no-unsafe-truncate-embeddings -v --quiet --device cpu --device cuda \
                --out-shard-size 1B --out-shard-size 2B";
    let output = scratch.evomerge(&more.split_whitespace().collect::<Vec<_>>());
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(weights(&scratch.path("again")), weights(&scratch.path("plain")));
    for wrong in ["merge config.yaml", "merge config.yaml one --out two", "merge config.yaml one --shard-size 1B"] {
        let output = scratch.evomerge(&wrong.split_whitespace().collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2), "{wrong}: {}", stderr(&output));
    }
}

#[test]
fn a_model_card_and_the_recipes_come_along_when_asked_for() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("config.yaml"), soup("dtype: bfloat16\n")).unwrap();
    for (flags, is_written) in [
        (&[][..], false),
        (&["--write-model-card"], true),
        (&["--write-model-card", "--no-write-model-card"], false),
        (&["--no-write-model-card", "--write-model-card"], true),
    ] {
        let output = scratch.evomerge(&[&["merge", "config.yaml", "merged", "--force"], flags].concat());
        assert!(output.status.success(), "{flags:?}: {}", stderr(&output));
        for file in ["README.md", "recipe.toml", "mergekit_config.yml"] {
            assert_eq!(scratch.path("merged").join(file).exists(), is_written, "{flags:?}: {file}");
        }
        if is_written {
            let card = std::fs::read_to_string(scratch.path("merged/README.md")).unwrap();
            assert!(card.contains("# merged") && card.contains("A merge of a, b by `linear`"), "{card}");
            for recipe in ["merged/recipe.toml", "merged/mergekit_config.yml"] {
                assert!(scratch.evomerge(&["merge", recipe, "again", "--force"]).status.success(), "{recipe}");
                assert_eq!(weights(&scratch.path("again")), weights(&scratch.path("merged")), "{recipe}");
            }
        }
    }
}

#[test]
fn a_folder_with_something_in_it_is_in_the_way() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("config.yaml"), soup("")).unwrap();
    std::fs::create_dir(scratch.path("merged")).unwrap();
    std::fs::write(scratch.path("merged/notes.txt"), "mine").unwrap();
    for force in [&["merge", "config.yaml", "merged"][..], &["merge", "config.yaml", "merged", "--force"]] {
        let output = scratch.evomerge(force);
        assert_eq!(output.status.code(), Some(73), "{}", stderr(&output));
        assert_eq!(std::fs::read(scratch.path("merged/notes.txt")).unwrap(), b"mine");
    }
}

#[test]
fn keys_that_mergekit_passes_over_are_told_of_and_one_module_is_a_model() {
    let scratch = Scratch::new();
    let body = soup("").replace("merge_method: linear\n", "");
    let inside: String = body.lines().map(|line| format!("    {line}\n")).collect();
    let module = format!("merge_method: linear\nmodules:\n  default:\n{inside}");
    for (name, text) in
        [("plain.yml", soup("")), ("noted.txt", soup("random_seed: 0\nint8_mask: true\n")), ("module.yml", module)]
    {
        std::fs::write(scratch.path(name), text).unwrap();
        let output = scratch.evomerge(&["merge", name, &format!("{name}.out")]);
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        assert_eq!(stderr(&output).contains("`random_seed`: has no effect"), name == "noted.txt");
        assert_eq!(weights(&scratch.path(&format!("{name}.out"))), weights(&scratch.path("plain.yml.out")), "{name}");
    }
    for (text, word) in [
        (soup("pad_to_multiple_of: 8\n"), "mergekit passes over this key"),
        (soup("").replace("parameters: {weight: 0.5}", "weight: 0.5"), "parameters stand under `parameters`"),
        (soup("modules: {text_decoder: {}}\n"), "one module `default`"),
        (soup("").replace("weight: 0.5", "weight: "), "left empty; give it a value, or remove the line"),
    ] {
        std::fs::write(scratch.path("refused.yml"), text).unwrap();
        let output = scratch.evomerge(&["merge", "refused.yml", "out"]);
        assert_eq!(output.status.code(), Some(65), "{word}");
        assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
    }
}

/// How adapters are baked in with mergekit: a task arithmetic of nothing but the base.
#[test]
fn task_vectors_of_nobody_leave_the_base() {
    let scratch = Scratch::new();
    let base = models().join("base");
    for method in ["task_arithmetic", "ties", "sce", "della"] {
        let text = format!("merge_method: {method}\nbase_model: {base:?}\nmodels:\n- model: {base:?}\n");
        std::fs::write(scratch.path("base.yml"), text).unwrap();
        let output = scratch.evomerge(&["merge", "base.yml", method]);
        assert!(output.status.success(), "{method}: {}", stderr(&output));
        assert_eq!(weights(&scratch.path(method)), weights(&base), "{method}");
    }
}

/// Where models are stored in several types, mergekit writes another one than the first model's; a note says so.
#[test]
fn a_type_that_mergekit_would_not_write_is_told_of() {
    let scratch = Scratch::new();
    let [wide, narrow] = ["a", "narrow"].map(|name| if name == "a" { models().join(name) } else { scratch.path(name) });
    let passthrough =
        format!("merge_method: passthrough\nmodels:\n- model: {:?}\ndtype: bfloat16\n", models().join("b"));
    std::fs::write(scratch.path("narrow.yml"), passthrough).unwrap();
    assert!(scratch.evomerge(&["merge", "narrow.yml", "narrow"]).status.success());
    for (first, second, more, is_told) in [
        (&narrow, &wide, "", true),
        (&wide, &narrow, "", false),
        (&narrow, &narrow, "", false),
        (&narrow, &wide, "dtype: bfloat16\n", false),
    ] {
        let text = format!(
            "merge_method: nearswap\nbase_model: {first:?}\nparameters: {{t: 0.1}}\n{more}models:\n- model: {first:?}\n- model: {second:?}\n"
        );
        let text =
            if first == second { format!("merge_method: passthrough\nmodels:\n- model: {first:?}\n") } else { text };
        std::fs::write(scratch.path("mixed.yml"), text).unwrap();
        let output = scratch.evomerge(&["merge", "mixed.yml", "--out", "mixed", "--force"]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(
            stderr(&output).contains("where mergekit promotes"),
            is_told,
            "{first:?} {more} {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_model_in_the_current_folder_is_pointed_at() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("configs")).unwrap();
    std::fs::create_dir(scratch.path("tuned")).unwrap();
    let text = "merge_method: passthrough\nmodels:\n- model: tuned\n";
    std::fs::write(scratch.path("configs/one.yml"), text).unwrap();
    let output = scratch.evomerge(&["merge", "configs/one.yml", "out"]);
    assert_eq!(output.status.code(), Some(65));
    assert!(stderr(&output).contains("`--models-dir .`"), "{}", stderr(&output));
}
