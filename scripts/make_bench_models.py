#!/usr/bin/env python3
"""Writes a family of synthetic Llama checkpoints for merge benchmarks.

  make_bench_models.py DIR [small|half]     default: half

DIR/{base,ft1,ft2,ft3,ft4}: config.json and one bfloat16 model.safetensors each. `half` has 0.50 billion parameters (1.0 GB a
model), `small` 0.06. The base is N(0, 0.02); about 30 % of a fine-tune's elements differ from it, by N(0, 0.002). Every
tensor has a seed of its own, so the files are the same wherever they are made. Needs numpy only.
"""

import hashlib
import json
import pathlib
import sys

import numpy as np

SIZES = {
    "half": {"hidden_size": 1024, "num_hidden_layers": 34, "intermediate_size": 2816, "num_attention_heads": 16},
    "small": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "num_attention_heads": 8},
}
VOCABULARY = 32000
PIECE = 1 << 22


def shapes(size):
    hidden, inner = size["hidden_size"], size["intermediate_size"]
    found = {"model.embed_tokens.weight": (VOCABULARY, hidden), "lm_head.weight": (VOCABULARY, hidden)}
    found["model.norm.weight"] = (hidden,)
    for layer in range(size["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}{name}.weight"] = (hidden,)
        for name in "qkvo":
            found[f"{prefix}self_attn.{name}_proj.weight"] = (hidden, hidden)
        found[f"{prefix}mlp.gate_proj.weight"] = (inner, hidden)
        found[f"{prefix}mlp.up_proj.weight"] = (inner, hidden)
        found[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
    return dict(sorted(found.items()))


def generator(name, model, piece):
    digest = hashlib.sha256(f"{name}/{model}/{piece}".encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:8], "little")))


def to_bfloat16(values):
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def to_float32(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def pieces(name, shape):
    """Yields the tensor of the base and of the four fine-tunes, piece by piece, as bfloat16 bits."""
    count = int(np.prod(shape))
    for piece, start in enumerate(range(0, count, PIECE)):
        length = min(PIECE, count - start)
        if len(shape) == 1:
            base = to_bfloat16(np.ones(length, np.float32))
        else:
            base = to_bfloat16(generator(name, 0, piece).standard_normal(length, np.float32) * np.float32(0.02))
        family = [base]
        for model in range(1, 5):
            random = generator(name, model, piece)
            delta = random.standard_normal(length, np.float32) * np.float32(0.002)
            changed = random.random(length, np.float32) < 0.3
            family.append(to_bfloat16(to_float32(base) + delta * changed))
        yield family


def header(found):
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in found.items():
        start, end = end, end + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def main():
    root = pathlib.Path(sys.argv[1])
    size = SIZES[sys.argv[2] if len(sys.argv) > 2 else "half"]
    found = shapes(size)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **size,
        "num_key_value_heads": size["num_attention_heads"], "vocab_size": VOCABULARY, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }
    files = []
    for model in ("base", "ft1", "ft2", "ft3", "ft4"):
        (root / model).mkdir(parents=True, exist_ok=True)
        (root / model / "config.json").write_text(json.dumps(config, indent=1))
        files.append(open(root / model / "model.safetensors", "wb"))
        files[-1].write(header(found))
    for name, shape in found.items():
        for family in pieces(name, shape):
            for file, bits in zip(files, family):
                file.write(bits.tobytes())
    for file in files:
        file.close()
    print(f"{sum(int(np.prod(shape)) for shape in found.values())} parameters a model in {root}")


if __name__ == "__main__":
    main()
