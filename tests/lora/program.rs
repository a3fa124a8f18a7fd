//! The program on recipes and run files with adapters.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::models::{Family, Tensor, factors, write_adapter};
use super::runs::{Scratch, cell, stderr};

#[test]
fn recipes_name_adapters_in_text_and_in_tables() {
    let family = Family::new(Dtype::BF16, Dtype::F32);
    let scratch = Scratch { folder: family.folder };
    let merge = |file: &str, recipe: &str| {
        std::fs::write(scratch.path(file), recipe).unwrap();
        let output = scratch.evomerge(&["merge", file, "--out", "out", "--force"]);
        (
            output.status.code(),
            stderr(&output),
            std::fs::read(scratch.path("out/model.safetensors")).unwrap_or_default(),
        )
    };
    let yaml = |one: &str| {
        format!(
            "merge_method: ties\nbase_model: base\ndtype: float32\nmodels:\n- model: {one}\n  parameters: {{weight: 0.7, density: 0.5}}\n"
        )
    };
    let expected = merge("baked.yml", &yaml("baked-one"));
    assert_eq!(expected.0, Some(0), "{}", expected.1);
    let toml = "merge_method = 'ties'\nbase_model = 'base'\ndtype = 'float32'\n[[models]]\nmodel = 'base+one'\n\
                parameters = { weight = 0.7, density = 0.5 }\n";
    std::fs::create_dir(scratch.path("c++")).unwrap();
    std::os::unix::fs::symlink(scratch.path("one"), scratch.path("c++/one")).unwrap();
    for (file, recipe) in [
        ("text.yml", yaml("base+one")),
        ("table.yml", yaml("{model: {path: base}, lora: {path: ./c++/one}}")),
        ("text.toml", toml.to_owned()),
        ("table.toml", toml.replace("'base+one'", "{ model = { path = 'base' }, lora = { path = 'c++/one' } }")),
    ] {
        let found = merge(file, &recipe);
        assert_eq!(found.0, Some(0), "{file}: {}", found.1);
        assert!(found.2 == expected.2, "{file}");
        let config = std::fs::read_to_string(scratch.path("out/config.json")).unwrap();
        assert!(config.contains("vocab_size") && scratch.path("out/tokenizer.json").is_file());
    }
    for (recipe, words) in [
        (yaml("base+base+one"), "one `+`"),
        (yaml("base+nowhere/at/all"), "nowhere/at/all"),
        (yaml("one"), "`BASE+ADAPTER`"),
        (yaml("c++/one"), "one `+`"),
        (yaml("c+one"), "c"),
    ] {
        let (code, text, _) = merge("bad.yml", &recipe);
        assert_eq!(code, Some(65), "{text}");
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// A small adapter over the tiny zoo's base.
#[cfg(feature = "native")]
fn zoo_adapter(path: &Path, seed: u32, config: Value) {
    let tensors: Vec<Tensor> = (0..4)
        .flat_map(|layer| {
            factors(&format!("model.layers.{layer}.self_attn.q_proj"), [128, 128], 2, Dtype::F32, seed + 10 * layer)
        })
        .map(|mut tensor| {
            tensor.values.iter_mut().for_each(|value| *value *= 0.2);
            tensor
        })
        .collect();
    let mut all = json!({ "r": 2, "lora_alpha": 2 });
    for (key, value) in config.as_object().unwrap() {
        all[key] = value.clone();
    }
    write_adapter(path, &tensors, all);
}

#[test]
#[cfg(feature = "native")]
fn a_search_over_adapters_runs_resumes_and_exports() {
    let scratch = Scratch::new();
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama");
    std::os::unix::fs::symlink(zoo.join("base"), scratch.path("base")).unwrap();
    for (name, seed) in [("fr", 1), ("de", 2), ("it", 3)] {
        zoo_adapter(&scratch.path("adapters").join(name), seed, json!({}));
    }
    let run_file = scratch.path("run.toml");
    let text = format!(
        "name = \"lora\"\nseed = 3\n[models]\nbase = \"base\"\nsources = [\"base+adapters/fr\", \"adapters/de\", \"adapters/it\"]\n\
         [space]\nmethod = [\"dare_ties\", \"task_arithmetic\"]\n[space.genes]\nweight = {{ low = 0.0, high = 1.0, per = [\"model\"] }}\n\
         [strategy]\nkind = \"genetic\"\n[budget]\nevaluations = 14\n[evaluator]\nkind = \"native\"\nmax_new_tokens = 8\n\
         [[tasks]]\nname = \"add\"\ndata = {:?}\nlimit = 12\n",
        zoo.join("data/add.val.jsonl")
    );
    std::fs::write(&run_file, &text).unwrap();
    let run = run_file.to_str().unwrap();
    let checked = scratch.evomerge(&["check", run, "--json"]);
    assert!(checked.status.success(), "{}", stderr(&checked));
    let findings: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let cosines: Vec<f64> =
        findings["conflicts"].as_array().unwrap().iter().map(|c| c["cosine"].as_f64().unwrap()).collect();
    // Were the adapters left out, there would be no task vectors at all.
    assert!(cosines.len() == 3 && cosines.iter().all(|cosine| *cosine != 0.0), "{cosines:?}");
    scratch.search(&run_file, &[]);
    let trials = scratch.trials("results", "lora");
    assert_eq!(trials.len(), 14);
    assert!(trials.iter().all(|row| cell(row, "status") == "scored"));
    assert!(cell(trials.last().unwrap(), "gene.weight.fr").parse::<f64>().is_ok());
    let frozen = std::fs::read_to_string(scratch.path("results/lora/run.toml")).unwrap();
    assert!(frozen.contains("/base+") && frozen.contains("/adapters/de"), "{frozen}");

    let again = scratch.search(&run_file, &[]);
    assert_eq!(scratch.trials("results", "lora"), trials, "{again}");

    let wanted = cell(&trials[1], "candidate_id");
    let out = scratch.evomerge(&["export", "results/lora", "--candidate", wanted, "--out", "fr"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let yaml = std::fs::read_to_string(scratch.path("fr/mergekit_config.yml")).unwrap();
    assert!(yaml.contains("/base+") && yaml.contains("/adapters/fr"), "{yaml}");
    assert!(scratch.path("fr/tokenizer.json").is_file());
    assert!(std::fs::read_to_string(scratch.path("fr/README.md")).unwrap().contains("base+fr"));
    std::fs::write(
        scratch.path("direct.toml"),
        "merge_method = 'linear'\ndtype = 'bfloat16'\n[[models]]\nmodel = 'base+adapters/fr'\nparameters = { weight = 1.0 }\n",
    )
    .unwrap();
    let merged = scratch.evomerge(&["merge", "direct.toml", "--out", "direct"]);
    assert!(merged.status.success(), "{}", stderr(&merged));
    let weights = |folder: &str| std::fs::read(scratch.path(folder).join("model.safetensors")).unwrap();
    assert!(weights("fr") == weights("direct"));
    assert!(weights("fr") != std::fs::read(zoo.join("base/model.safetensors")).unwrap());

    zoo_adapter(&scratch.path("adapters/it"), 3, json!({ "lora_alpha": 4 }));
    let changed = scratch.evomerge(&["search", run]);
    assert_eq!(changed.status.code(), Some(78), "{}", stderr(&changed));
    assert!(stderr(&changed).contains("models.sources: it has other weights"), "{}", stderr(&changed));

    let soup = scratch.evomerge(&["soup", run, "--json"]);
    assert!(soup.status.success(), "{}", stderr(&soup));
    let origins: Vec<String> =
        scratch.trials("results", "lora-soup").iter().map(|row| cell(row, "origin").to_owned()).collect();
    assert!(origins.iter().any(|origin| origin.contains("greedy")), "{origins:?}");
}
