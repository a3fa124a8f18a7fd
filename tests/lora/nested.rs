//! Adapters for models of images and text, whose parts are nested in another way in checkpoints than in PEFT's model.

use evomerge::checkpoint::{Checkpoint, CheckpointError};
use safetensors::Dtype;
use serde_json::json;

use super::models::{Tensor, factors, write_adapter, write_model};

/// Modules of a text model, a tower for images, a projector and a head, as PEFT calls them.
const MODULES: [&str; 4] = [
    "model.language_model.layers.1.self_attn.q_proj",
    "model.vision_tower.encoder.layers.0.self_attn.q_proj",
    "model.multi_modal_projector.linear_1",
    "lm_head",
];

fn open(stored: &[&str], modules: &[&str]) -> Result<Checkpoint, CheckpointError> {
    let folder = tempfile::tempdir().unwrap();
    let (base, path) = (folder.path().join("base"), folder.path().join("adapter"));
    let tensor = |(seed, name): (u32, &&str)| Tensor::new(name, Dtype::F32, &[6, 6], 1.0, seed);
    write_model(&base, &(1..).zip(stored).map(tensor).collect::<Vec<_>>());
    let pair = |(seed, module): (u32, &&str)| factors(module, [6, 6], 3, Dtype::F32, 10 * seed);
    let adapter: Vec<Tensor> = (1..).zip(modules).flat_map(pair).collect();
    write_adapter(&path, &adapter, json!({ "target_modules": "all-linear" }));
    Checkpoint::open_with_adapter(&base, &path)
}

/// Asserts that each module changes the tensor at its place and that no other one is changed.
fn changes(stored: &[&str], modules: &[&str], changed: &[&str]) {
    let model = open(stored, modules).unwrap();
    for name in stored {
        let Some(place) = changed.iter().position(|changed| changed == name) else {
            assert!(model.low_rank(name).is_none(), "{name}");
            continue;
        };
        let [down, _] = factors(modules[place], [6, 6], 3, Dtype::F32, 10 * (place as u32 + 1));
        let change = model.low_rank(name).unwrap_or_else(|| panic!("{name} is not changed"));
        assert_eq!(change.right.bytes, down.bytes(), "{name}");
    }
}

#[test]
fn factors_find_their_tensors_however_the_parts_are_nested() {
    let gemma = [
        "language_model.model.layers.1.self_attn.q_proj.weight",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "multi_modal_projector.linear_1.weight",
        "language_model.lm_head.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "vision_tower.vision_model.encoder.layers.1.self_attn.q_proj.weight",
    ];
    let mistral = gemma.map(|name| name.replace("vision_model.", ""));
    let mistral: Vec<&str> = mistral.iter().map(String::as_str).collect();
    let current = [
        "model.language_model.layers.1.self_attn.q_proj.weight",
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight",
        "model.multi_modal_projector.linear_1.weight",
        "lm_head.weight",
    ];
    let older = [
        "language_model.model.layers.1.self_attn.q_proj",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj",
        "multi_modal_projector.linear_1",
        "language_model.lm_head",
    ];
    for stored in [&gemma[..], &mistral[..], &current[..]] {
        for modules in [MODULES, older] {
            changes(stored, &modules, &stored[..4]);
            changes(stored, &modules[..1], &stored[..1]);
            changes(stored, &modules[1..3], &stored[1..3]);
        }
    }
    let qwen = [
        "model.layers.0.self_attn.q_proj.weight",
        "visual.blocks.0.attn.qkv.weight",
        "lm_head.weight",
        "visual.blocks.1.attn.qkv.weight",
    ];
    let modules = ["model.language_model.layers.0.self_attn.q_proj", "model.visual.blocks.0.attn.qkv", "lm_head"];
    changes(&qwen, &modules, &qwen[..3]);
    changes(&qwen, &modules[1..2], &qwen[1..2]);
}

#[test]
fn names_that_fit_no_or_several_tensors_are_refused_with_the_reason() {
    let stored = ["language_model.model.layers.1.self_attn.q_proj.weight", "multi_modal_projector.linear_1.weight"];
    let error = |stored: &[&str], modules: &[&str]| open(stored, modules).unwrap_err().to_string();
    // The model has no such layer.
    let text = error(&stored, &["model.language_model.layers.7.self_attn.q_proj", MODULES[2]]);
    assert!(text.contains("layers.7.self_attn.q_proj.lora_A.weight`") && text.contains("base model?"), "{text}");
    // It has, but who names it so?
    let text = error(&stored, &["model.text.layers.1.self_attn.q_proj"]);
    assert!(text.contains("no tensor `model.text.layers.1.self_attn.q_proj.weight`"), "{text}");
    assert!(text.contains(stored[0]) && text.contains("under another name"), "{text}");
    assert!(!text.contains("base model?"), "{text}");
    let both = [stored[0], stored[1], "model.layers.1.self_attn.q_proj.weight"];
    let text = error(&both, &[MODULES[0], MODULES[2]]);
    assert!(text.contains("more than one fits") && text.contains(stored[0]) && text.contains(both[2]), "{text}");
    let text = error(&stored, &[MODULES[0], MODULES[2], "model.layers.1.self_attn.q_proj"]);
    assert!(text.contains(stored[0]) && text.contains("by what it ends with"), "{text}");
}
