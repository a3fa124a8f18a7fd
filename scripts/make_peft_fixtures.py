#!/usr/bin/env python3
"""Writes tiny models, LoRA adapters as PEFT saves them, and what PEFT merges from both: tests/peft.

  make_peft_fixtures.py tests/peft

Needs torch, transformers, peft and safetensors (written with peft 0.21.2, transformers 4.49.0, torch 1.13). DIR/models/NAME are
checkpoints, DIR/adapters/NAME is PEFT's `save_pretrained`, and DIR/merged/NAME.safetensors holds the tensors that differ from the
base after `merge_and_unload`, in the base's names. Numbers of an adapter's size come from a seed of its own.
"""

import argparse
import json
import pathlib
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


class Network(torch.nn.Module):
    """Layers of kinds that language models lack."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(12, 8)
        self.conv1d = torch.nn.Conv1d(8, 6, 3)
        self.conv2d = torch.nn.Conv2d(3, 5, (3, 2))
        self.pointwise = torch.nn.Conv2d(4, 7, 1)
        self.head = torch.nn.Linear(8, 12)


def llama():
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=32,
        max_position_embeddings=32, tie_word_embeddings=False))


def gpt2():
    torch.manual_seed(2)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=16))


def network():
    torch.manual_seed(3)
    return Network()


# Name: model, PEFT's settings.
ADAPTERS = {
    "plain": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    "all-linear": ("llama", {"r": 8, "lora_alpha": 4, "target_modules": "all-linear"}),
    "patterns": ("llama", {
        "r": 4, "lora_alpha": 8, "target_modules": LINEAR,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 6, r".*\.1\.mlp\.(gate|up)_proj": 3},
        "alpha_pattern": {"down_proj": 32, "model.layers.1.self_attn.o_proj": 1}}),
    "rank-stabilized": ("llama", {"r": 5, "lora_alpha": 7, "target_modules": ATTENTION, "use_rslora": True}),
    "some-layers": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "whole-modules": ("llama", {
        "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "embedding": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "bfloat16": ("llama-bfloat16", {"r": 4, "lora_alpha": 8, "target_modules": LINEAR}),
    "fan-in-fan-out": ("gpt2", {
        "r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "square-fan-in-fan-out": ("gpt2", {"r": 4, "lora_alpha": 8, "target_modules": ["attn.c_proj"], "fan_in_fan_out": True}),
    "biases": ("gpt2", {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
    "biases-of-targets": ("gpt2", {
        "r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "lora_only"}),
    "convolutions": ("network", {
        "r": 2, "lora_alpha": 3, "target_modules": ["embedding", "conv1d", "conv2d", "pointwise", "head"]}),
    # These are refused.
    "dora": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": True}),
    "lora-bias": ("gpt2", {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_bias": True}),
    "tokens": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}),
    "pissa": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": "pissa"}),
}
MODELS = {"llama": llama, "llama-bfloat16": lambda: llama().to(torch.bfloat16), "gpt2": gpt2, "network": network}


def trained(peft, seed):
    """As if trained: every number that the adapter may train is moved."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape).to(parameter.dtype))


def save_model(name, folder):
    model = MODELS[name]()
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder, safe_serialization=True)
        (folder / "generation_config.json").unlink(missing_ok=True)
    else:
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text("{}\n")


def base(name, folder):
    """The model as it is read back, so that an adapter names its base by a relative path."""
    if name == "network":
        model = network()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model
    kind = GPT2LMHeadModel if name == "gpt2" else LlamaForCausalLM
    return kind.from_pretrained(folder, torch_dtype=torch.bfloat16 if "bfloat16" in name else torch.float32)


def merged(model, stored):
    """Tensors of a merged model that differ from the stored ones, under the stored names."""
    found = {key: value.contiguous() for key, value in model.state_dict().items()}
    for prefix in ("", "transformer."):
        named = {key: found[prefix + key] for key in stored if prefix + key in found}
        if len(named) == len(stored):
            return {key: value for key, value in named.items() if not torch.equal(value, stored[key])}
    raise SystemExit(f"names differ: {sorted(found)} and {sorted(stored)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="where the fixtures go")
    root = parser.parse_args().folder
    for folder in ("models", "adapters", "merged"):
        shutil.rmtree(root / folder, ignore_errors=True)
    (root / "merged").mkdir(parents=True)
    for name in MODELS:
        save_model(name, root / "models" / name)
    for seed, (name, (model_name, settings)) in enumerate(ADAPTERS.items(), 10):
        model_folder, adapter_folder = root / "models" / model_name, root / "adapters" / name
        torch.manual_seed(seed)
        peft = get_peft_model(base(model_name, model_folder), LoraConfig(**settings))
        trained(peft, seed)
        peft.save_pretrained(adapter_folder)
        (adapter_folder / "README.md").unlink(missing_ok=True)
        config = json.loads((adapter_folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = model_name
        (adapter_folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
        if name in ("dora", "lora-bias", "tokens", "pissa"):
            continue
        loaded = PeftModel.from_pretrained(base(model_name, model_folder), adapter_folder)
        tensors = merged(loaded.merge_and_unload(), load_file(model_folder / "model.safetensors"))
        save_file(tensors, root / "merged" / f"{name}.safetensors")
        print(f"{name}: {len(tensors)} tensors changed")


if __name__ == "__main__":
    main()
