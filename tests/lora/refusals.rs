//! Adapters that cannot be used.

use evomerge::checkpoint::Checkpoint;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::models::{QUERY, Tensor, adapter, factors, model, write_adapter, write_model};

#[test]
fn adapters_that_do_not_fit_are_refused_with_file_and_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let (base, path) = (folder.path().join("base"), folder.path().join("adapter"));
    write_model(&base, &model(Dtype::F32, 1));
    let query = factors(QUERY, [6, 6], 3, Dtype::F32, 44);
    let renamed = |from: &str, to: &str| {
        query
            .clone()
            .map(|tensor| {
                let name = tensor.name.replace(from, to);
                tensor.named(&name)
            })
            .to_vec()
    };
    let extra = |tensor: Tensor| [query.to_vec(), vec![tensor]].concat();
    let mut infinite = query.to_vec();
    infinite[1].values[4] = f32::INFINITY;
    let cases: Vec<(Vec<Tensor>, Value, Vec<&str>)> = vec![
        (
            renamed("layers.1", "layers.7"),
            json!({}),
            vec![
                "`base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight`",
                "no tensor `model.layers.7.self_attn.q_proj.weight`",
                "`org/base`",
                "base model?",
            ],
        ),
        (
            factors(QUERY, [6, 8], 3, Dtype::F32, 1).to_vec(),
            json!({}),
            vec!["[3, 8]", "[6, 3]", "[6, 6]", "do not fit"],
        ),
        (query.to_vec(), json!({"r": 8}), vec!["lora_A.weight", "expected rank 8", "found 3"]),
        (query.to_vec(), json!({"rank_pattern": {"q_proj": 4}}), vec!["expected rank 4", "rank_pattern"]),
        (query[..1].to_vec(), json!({}), vec!["lora_A.weight", "stands alone"]),
        (query.to_vec(), json!({"target_modules": ["k_proj"]}), vec!["target_modules", "`k_proj`"]),
        (
            extra(Tensor::new(
                "base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector",
                Dtype::F32,
                &[6],
                1.0,
                1,
            )),
            json!({}),
            vec!["lora_magnitude_vector", "DoRA", "merge_and_unload"],
        ),
        (
            extra(Tensor::new("base_model.model.lm_head.weight", Dtype::F32, &[12, 6], 1.0, 1)),
            json!({}),
            vec!["`base_model.model.lm_head.weight`", "[12, 6]", "vocabulary was resized"],
        ),
        (
            extra(Tensor::new("base_model.model.score.weight", Dtype::F32, &[2, 6], 1.0, 1)),
            json!({}),
            vec!["no tensor `score.weight`"],
        ),
        (
            extra(query[0].clone().named("base_model.model.model.layers.1.self_attn.q_proj.lora_A.other.weight")),
            json!({}),
            vec!["same module"],
        ),
        (infinite, json!({}), vec!["lora_B.weight", "element 4 is inf"]),
        (Vec::new(), json!({}), vec!["holds no tensor"]),
        (query.to_vec(), json!({"use_dora": true}), vec!["adapter_config.json", "`use_dora`"]),
        (query.to_vec(), json!({"peft_type": "LOKR"}), vec!["adapter_config.json", "`LOKR`"]),
    ];
    for (tensors, config, words) in cases {
        write_adapter(&path, &tensors, config);
        let error = Checkpoint::open_with_adapter(&base, &path).expect_err(&words.join(" "));
        assert_eq!(error.exit_code(), evomerge::exit::ExitCode::BadData);
        let text = error.to_string();
        assert!(text.contains("adapter") && words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    }
    let refused = |word: &str| {
        let text = Checkpoint::open_with_adapter(&base, &path).unwrap_err().to_string();
        assert!(text.contains(word), "{word}: {text}");
    };
    write_adapter(&path, &query, json!({}));
    std::fs::rename(path.join("adapter_model.safetensors"), path.join("adapter_model.bin")).unwrap();
    refused("safe_serialization=True");
    std::fs::remove_file(path.join("adapter_model.bin")).unwrap();
    refused("no adapter_model.safetensors");
    std::fs::write(path.join("adapter_config.json"), "[]").unwrap();
    refused("JSON object");
    std::fs::remove_file(path.join("adapter_config.json")).unwrap();
    refused("no adapter_config.json");
    let text = Checkpoint::open_with_adapter(&base, &base).unwrap_err().to_string();
    assert!(text.contains("a whole model"), "{text}");
    // A head where the model has none and ties none.
    let tied: Vec<Tensor> = model(Dtype::F32, 1).into_iter().filter(|tensor| tensor.name != "lm_head.weight").collect();
    write_model(&base, &tied);
    write_adapter(
        &path,
        &extra(Tensor::new("base_model.model.lm_head.weight", Dtype::F32, &[10, 6], 1.0, 1)),
        json!({}),
    );
    refused("it stores no head");
}

#[test]
fn damaged_adapters_are_errors_and_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let (base, path) = (folder.path().join("base"), folder.path().join("adapter"));
    write_model(&base, &model(Dtype::F32, 1));
    write_adapter(&path, &adapter(Dtype::F16, 5), json!({ "rank_pattern": { "q_proj": 3 }, "alpha_pattern": {} }));
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let file = path.join(name);
        let whole = std::fs::read(&file).unwrap();
        let length = whole.len().min(900);
        for step in 0..length {
            let mut damaged = whole.clone();
            match step % 4 {
                0 => damaged.truncate(step),
                1 => damaged[step] = b'9',
                2 => damaged[step] ^= 0x80,
                _ => drop(damaged.splice(step..(step + 7).min(length), *b"[]")),
            }
            std::fs::write(&file, &damaged).unwrap();
            if let Err(error) = Checkpoint::open_with_adapter(&base, &path) {
                assert_eq!(error.exit_code(), evomerge::exit::ExitCode::BadData, "{error}");
            }
        }
        std::fs::write(&file, &whole).unwrap();
    }
    Checkpoint::open_with_adapter(&base, &path).unwrap();
}
