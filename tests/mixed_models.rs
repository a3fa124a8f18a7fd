//! Searches over models that do not all have the same tensors.

#[path = "support/fault_server.rs"]
#[allow(dead_code, reason = "shared with the tests of the HTTP evaluator")]
mod fault_server;
#[path = "support/models.rs"]
#[allow(dead_code, reason = "shared with the tests of merges")]
mod models;
#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use evomerge::checkpoint::Checkpoint;
use fault_server::FaultServer;
use models::Model;
use runs::{Scratch, cell, stderr};
use safetensors::Dtype;
use serde_json::json;

const ROTARY: &str = "model.layers.0.self_attn.rotary_emb.inv_freq";
const MASK: &str = "model.layers.0.attn.bias";
const COUNTER: &str = "model.layers.1.norm.num_batches_tracked";
const VALUE_HEAD: &str = "v_head.summary.weight";

/// The weights of a small Llama.
fn llama(seed: u32) -> Model {
    let mut model = Model::empty(json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": false
    }));
    model.add("model.embed_tokens.weight", &[10, 4], seed);
    for layer in 0..2 {
        for weight in ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.q_proj"] {
            model.add(&format!("model.layers.{layer}.{weight}.weight"), &[4, 4], seed + layer + weight.len() as u32);
        }
    }
    model.add("model.norm.weight", &[4], seed + 2);
    model.add("lm_head.weight", &[10, 4], seed + 3);
    model
}

/// A search over a base and three sources, `change` made to them first.
fn scratch(change: impl FnOnce(&mut [Model; 4]), server: &FaultServer) -> Scratch {
    let scratch = Scratch::new();
    let mut models = [1, 20, 40, 60].map(llama);
    change(&mut models);
    for (model, name) in models.iter().zip(["base", "a", "b", "c"]) {
        model.write(&scratch.path(name));
    }
    let text = format!(
        "name = \"run\"\nseed = 3\n[models]\nbase = \"base\"\nsources = [\"a\", \"b\", \"c\"]\n\
         [space]\nmethod = [\"linear\", \"ties\", \"dare_ties\"]\n[budget]\nevaluations = 24\n\
         [evaluator]\nkind = \"http\"\nendpoints = [{:?}]\n[[tasks]]\nname = \"add\"\n",
        server.url()
    );
    std::fs::write(scratch.path("run.toml"), text).unwrap();
    scratch
}

#[test]
fn tables_strays_and_tied_heads_keep_nobody_from_a_search() {
    let server = FaultServer::start(vec![]);
    let mixed = |models: &mut [Model; 4]| {
        models[0].add(ROTARY, &[2], 5);
        let infinity = vec![0x00, 0xFC];
        models[0].tensors.push(("model.layers.0.attn.masked_bias".into(), Dtype::F16, vec![], infinity));
        models[1].add(MASK, &[1, 1, 2, 2], 7);
        models[2].tensors.push((MASK.into(), Dtype::BOOL, vec![1, 1, 4, 4], vec![1; 16]));
        for (model, batches) in models.iter_mut().zip(7_i64..) {
            model.tensors.push((COUNTER.into(), Dtype::I64, vec![], batches.to_le_bytes().to_vec()));
        }
        models[1].add(VALUE_HEAD, &[1, 4], 6);
        models[2].remove("lm_head.weight");
        models[2].config(json!({"tie_word_embeddings": true}));
    };
    let scratch = scratch(mixed, &server);
    for command in ["check", "search"] {
        let output = scratch.evomerge(&[command, "run.toml"]);
        let told = stderr(&output);
        assert!(output.status.success(), "{told}");
        let left_out = told.lines().find(|line| line.contains("left out, here as in mergekit")).unwrap_or_default();
        assert!(left_out.contains(VALUE_HEAD) && left_out.ends_with("a`"), "{told}");
        assert!(!told.contains(ROTARY), "{told}");
    }
    let trials = scratch.trials("results", "run");
    assert_eq!(trials.len(), 24);
    assert!(trials.iter().all(|row| cell(row, "status") == "scored"), "{trials:?}");

    let export = scratch.evomerge(&["export", "results/run", "--out", "best"]);
    assert!(export.status.success(), "{}", stderr(&export));
    let best = Checkpoint::open(&scratch.path("best")).unwrap();
    assert!(!best.tensors().contains_key(VALUE_HEAD));
    assert!(best.tensors().contains_key(COUNTER));
}

#[test]
fn a_base_without_the_inner_model_s_name_is_searched_as_the_others_are() {
    let server = FaultServer::start(vec![]);
    let bare = |models: &mut [Model; 4]| {
        for tensor in &mut models[0].tensors {
            tensor.0 = tensor.0.trim_start_matches("model.").to_owned();
        }
        models[0].remove("lm_head.weight");
        models.iter_mut().for_each(|model| model.config(json!({"tie_word_embeddings": true})));
    };
    let scratch = scratch(bare, &server);
    let output = scratch.evomerge(&["search", "run.toml"]);
    let told = stderr(&output);
    assert!(output.status.success() && told.contains("base` differ (`model.embed_tokens.weight`"), "{told}");
    let trials = scratch.trials("results", "run");
    assert!(trials.len() == 24 && trials.iter().all(|row| cell(row, "status") == "scored"), "{trials:?}");
}

#[test]
fn a_weight_that_one_model_lacks_is_told_before_anything_is_scored() {
    let server = FaultServer::start(vec![]);
    let weight = "model.layers.1.mlp.up_proj.weight";
    let scratch = scratch(|models| models[3].remove(weight), &server);
    for command in ["check", "search"] {
        let output = scratch.evomerge(&[command, "run.toml"]);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(65), "{told}");
        assert!(told.contains(&format!("c lacks `{weight}`, which base has")), "{told}");
    }
    assert_eq!(server.posts(), 0);
}
