#!/usr/bin/env python3
"""Writes a family of synthetic Llama checkpoints for merge benchmarks.

  make_bench_models.py DIR [small|half|8b] [--sparse]     default: half

DIR/{base,ft1,ft2,ft3,ft4}: config.json and bfloat16 weights each, in shards of at most 5 GB. `half` has 0.50 billion parameters
(1.0 GB a model), `small` 0.06, `8b` 8.03 with the shapes of Llama 3 8B (16.1 GB a model). The base is N(0, 0.02); about 30 % of a
fine-tune's elements differ from it, by N(0, 0.002). Every tensor has a seed of its own, so the files are the same wherever they
are made. With `--sparse`, the first 65,536 elements of each tensor are these numbers and the others zeros that take no room on
the disk: enough to see what a merge needs, and 39 MB a model for `8b`. Needs numpy only.
"""

import argparse
import hashlib
import json
import pathlib

import numpy as np

SIZES = {
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "half": {"hidden_size": 1024, "num_hidden_layers": 34, "intermediate_size": 2816, "num_attention_heads": 16,
             "num_key_value_heads": 16, "vocab_size": 32000},
    "small": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "num_attention_heads": 8,
              "num_key_value_heads": 8, "vocab_size": 32000},
}
MODELS = ("base", "ft1", "ft2", "ft3", "ft4")
PIECE = 1 << 22
DENSE = 1 << 16
SHARD = 5_000_000_000


def shapes(size):
    hidden, inner, vocabulary = size["hidden_size"], size["intermediate_size"], size["vocab_size"]
    narrow = hidden // size["num_attention_heads"] * size["num_key_value_heads"]
    found = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    found["model.norm.weight"] = (hidden,)
    for layer in range(size["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}{name}.weight"] = (hidden,)
        for name in "qkvo":
            found[f"{prefix}self_attn.{name}_proj.weight"] = (narrow if name in "kv" else hidden, hidden)
        found[f"{prefix}mlp.gate_proj.weight"] = (inner, hidden)
        found[f"{prefix}mlp.up_proj.weight"] = (inner, hidden)
        found[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
    return dict(sorted(found.items()))


def shards(found):
    """The tensors of each weight file, by the file's name."""
    files, used = [{}], 0
    for name, shape in found.items():
        bytes_ = 2 * int(np.prod(shape))
        if used + bytes_ > SHARD and files[-1]:
            files.append({})
            used = 0
        files[-1][name] = shape
        used += bytes_
    if len(files) == 1:
        return {"model.safetensors": files[0]}
    return {f"model-{index:05}-of-{len(files):05}.safetensors": tensors for index, tensors in enumerate(files, 1)}


def generator(name, model, piece):
    digest = hashlib.sha256(f"{name}/{model}/{piece}".encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:8], "little")))


def to_bfloat16(values):
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def to_float32(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def pieces(name, count):
    """Yields the first elements of a tensor of the base and of the four fine-tunes, piece by piece, as bfloat16 bits."""
    for piece, start in enumerate(range(0, count, PIECE)):
        length = min(PIECE, count - start)
        if name.endswith("norm.weight"):
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


def write(root, file_name, tensors, most):
    """One weight file of every model; at most so many elements of each tensor are numbers."""
    files = [open(root / model / file_name, "wb") for model in MODELS]
    start = header(tensors)
    for file in files:
        file.write(start)
    end = len(start)
    for name, shape in tensors.items():
        count = int(np.prod(shape))
        for file in files:
            file.seek(end)
        for family in pieces(name, min(count, most or count)):
            for file, bits in zip(files, family):
                file.write(bits.tobytes())
        end += 2 * count
    for file in files:
        file.truncate(end)
        file.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=pathlib.Path)
    parser.add_argument("size", nargs="?", choices=SIZES, default="half")
    parser.add_argument("--sparse", action="store_true")
    options = parser.parse_args()
    root, size = options.root, SIZES[options.size]
    found = shapes(size)
    parameters = sum(int(np.prod(shape)) for shape in found.values())
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **size, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }
    files = shards(found)
    places = {name: file for file, tensors in files.items() for name in tensors}
    for model in MODELS:
        (root / model).mkdir(parents=True, exist_ok=True)
        (root / model / "config.json").write_text(json.dumps(config, indent=1))
        if len(files) > 1:
            index = {"metadata": {"total_size": 2 * parameters}, "weight_map": places}
            (root / model / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    for file, tensors in files.items():
        write(root, file, tensors, DENSE if options.sparse else None)
    print(f"{parameters} parameters a model in {root}")


if __name__ == "__main__":
    main()
