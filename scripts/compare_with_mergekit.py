#!/usr/bin/env python3
"""Merges small random models by random recipes, with evomerge and with mergekit, and compares what comes out.

  pip install mergekit==0.1.5
  compare_with_mergekit.py [--evomerge target/release/evomerge] [--seeds 1-4] [--recipes 100] [--method NAME] [--keep DIR]

Families: Llama, Qwen2 (biases), Qwen3 (norms of heads) and Mistral shapes, tied and untied heads, float32, float16 and bfloat16.
Recipes: every method, `models` and `slices`, numbers, gradients and filters, parameters of slices, the base among the models, output
dtypes. mergekit draws with one thread and seed 42, evomerge with `--dare-masks mergekit`. Results may differ by 2^-22 of a tensor's
largest magnitude, with methods of norms and angles by 1e-6, and by a step of a stored 16-bit type. Where magnitudes are ranked, models
are float32: among equal magnitudes of 16-bit models mergekit's choice is that of an unstable sort.

Prints a line a method, and each recipe that differs, which `--keep` puts into a folder. Exit 1 where one does, or where evomerge refuses
what mergekit merges.
"""

import argparse
import collections
import json
import logging
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file

Family = collections.namedtuple("Family", "kind hidden inner layers heads key_heads vocabulary tied dtype")
FAMILIES = {
    "llama-tied": Family("llama", 40, 56, 3, 5, 5, 61, True, torch.float32),
    "llama": Family("llama", 20, 28, 4, 2, 1, 44, False, torch.float32),
    "qwen2": Family("qwen2", 32, 48, 6, 4, 2, 70, True, torch.float32),
    "qwen3": Family("qwen3", 48, 20, 3, 3, 1, 37, False, torch.float32),
    "mistral-bfloat16": Family("mistral", 16, 24, 4, 4, 2, 33, False, torch.bfloat16),
    "llama-float16": Family("llama", 24, 40, 5, 4, 2, 50, False, torch.float16),
}
SOURCES = ["a", "b", "c", "d"]
FILTERS = ["self_attn", "mlp", "layernorm", "embed_tokens", "lm_head", "q_proj", "down_proj", "norm"]
TASK_VECTORS = ["task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties"]
METHODS = ["linear", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "nearswap", "arcee_fusion", "passthrough", "sce", "ram",
           "ramplus_tl", *TASK_VECTORS]
OF_NORMS = ["slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce"]
RANKING = ("ties", "della", "breadcrumbs", "sce")


def shapes(family):
    keys = family.hidden // family.heads * family.key_heads
    head = family.hidden // family.heads
    found = {"model.embed_tokens.weight": (family.vocabulary, family.hidden), "model.norm.weight": (family.hidden,)}
    if not family.tied:
        found["lm_head.weight"] = (family.vocabulary, family.hidden)
    for layer in range(family.layers):
        rows = {"self_attn.q_proj": family.hidden, "self_attn.k_proj": keys, "self_attn.v_proj": keys, "self_attn.o_proj": family.hidden,
                "mlp.gate_proj": family.inner, "mlp.up_proj": family.inner}
        part = {f"{name}.weight": (count, family.hidden) for name, count in rows.items()}
        part["mlp.down_proj.weight"] = (family.hidden, family.inner)
        part |= {f"{name}.weight": (family.hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        if family.kind == "qwen2":
            part |= {"self_attn.q_proj.bias": (family.hidden,), "self_attn.k_proj.bias": (keys,), "self_attn.v_proj.bias": (keys,)}
        if family.kind == "qwen3":
            part |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in part.items()}
    return found


def write_family(folder, name):
    family, generator = FAMILIES[name], torch.Generator().manual_seed(sum(map(ord, name)))
    normal = lambda shape, scale: torch.randn(shape, generator=generator) * scale
    base = {name: normal(shape, 0.05) + ("norm" in name) for name, shape in shapes(family).items()}
    architecture = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}[family.kind] + "ForCausalLM"
    config = {"architectures": [architecture], "model_type": family.kind, "hidden_size": family.hidden, "intermediate_size": family.inner,
              "num_hidden_layers": family.layers, "num_attention_heads": family.heads, "num_key_value_heads": family.key_heads,
              "head_dim": family.hidden // family.heads, "vocab_size": family.vocabulary, "tie_word_embeddings": family.tied,
              "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
              "torch_dtype": str(family.dtype).split(".")[1]}
    for model in ["base", *SOURCES]:
        # Three changes in ten are exactly zero; one model left some tensors as they were.
        change = lambda name, value: normal(value.shape, 0.01) * (torch.rand(value.shape, generator=generator) > 0.3) * (
            not (model == "d" and "up_proj" in name))
        tensors = {name: value if model == "base" else value + change(name, value) for name, value in base.items()}
        (folder / model).mkdir(parents=True)
        save_file({name: value.to(family.dtype).contiguous() for name, value in tensors.items()}, folder / model / "model.safetensors",
                  metadata={"format": "pt"})
        (folder / model / "config.json").write_text(json.dumps(config))


class Recipes:
    """Draws recipes."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def chance(self, share):
        return self.random.random() < share

    def number(self, low, high):
        return round(self.random.uniform(low, high), 3)

    def value(self, low, high):
        """A number, a gradient over the layers, or numbers by filter."""
        kind = self.random.random()
        if kind < 0.6:
            return self.number(low, high)
        if kind < 0.8:
            return [self.number(low, high) for _ in range(self.random.choice([2, 3, 5]))]
        by_filter = [{"filter": name, "value": self.random.choice([self.number(low, high), [self.number(low, high) for _ in range(2)]])}
                     for name in self.random.sample(FILTERS, self.random.choice([1, 2]))]
        return [*by_filter, {"value": self.number(low, high)}]

    def source_parameters(self, method):
        if method in ("linear", "nuslerp", "multislerp"):
            return {"weight": self.value(-0.3 if method == "linear" and self.chance(0.2) else 0.1, 1)}
        if method == "passthrough" and self.chance(0.7):
            return {"scale": self.value(0, 1.5)}
        if method not in TASK_VECTORS:
            return {}
        found = {"weight": self.value(-0.5 if self.chance(0.2) else 0.1, 1.2)}
        if method != "task_arithmetic" and self.chance(0.9):
            found["density"] = self.value(0.25, 0.75) if method.startswith("della") else self.value(0.05, 1.0)
        if method.startswith("della"):
            found["epsilon"] = self.number(0.01, 0.2)
        if method.startswith("breadcrumbs") and self.chance(0.7):
            found["gamma"] = self.number(0, 0.2)
        return found

    def parameters(self, method):
        ranges = {"slerp": {"t": lambda: self.value(-0.1, 1.1)}, "nearswap": {"t": lambda: self.value(0.0005, 0.01)}}.get(method, {})
        found = {name: draw() for name, draw in ranges.items()}
        truth, number = lambda: self.chance(0.5), self.number
        optional = {
            "linear": {"normalize": truth},
            "nuslerp": {"nuslerp_flatten": truth, "nuslerp_row_wise": truth},
            "multislerp": {"normalize_weights": truth, "eps": lambda: 1e-6},
            "karcher": {"max_iter": lambda: self.random.choice([1, 5, 20]), "tol": lambda: self.random.choice([1e-5, 1e-8])},
            "model_stock": {"filter_wise": truth},
            "sce": {"select_topk": lambda: self.value(0.05, 1)},
            "ram": {"epsilon": lambda: self.random.choice([1e-5, 1e-3, 5e-3])},
            "ramplus_tl": {"epsilon": lambda: self.random.choice([1e-5, 1e-3, 5e-3]), "r": lambda: number(0, 1), "alpha": lambda: number(0, 1)},
        }.get(method, {})
        if method in TASK_VECTORS:
            optional = {"normalize": truth, "lambda": lambda: number(0.2, 1.8), "int8_mask": lambda: True}
            if method != "task_arithmetic":
                optional["rescale"] = truth
        found |= {name: draw() for name, draw in optional.items() if self.chance(0.8 if method == "sce" else 0.4)}
        return found

    def entry(self, method, model, layers=None):
        parameters = {} if model == "base" and method in TASK_VECTORS else self.source_parameters(method)
        return {"model": model, **({"layer_range": layers} if layers else {}), **({"parameters": parameters} if parameters else {})}

    def slices(self, method, models, base, layers):
        if method == "passthrough":
            count = self.random.choice([1, 2, 3])
            starts = [self.random.randrange(layers) for _ in range(count)]
            ranges = [[start, self.random.randrange(start + 1, layers + 1)] for start in starts]
            return [{"sources": [self.entry(method, self.random.choice([*SOURCES, "base"]), part)]} for part in ranges]
        edges = [0, *sorted(self.random.sample(range(1, layers), self.random.choice([0, 1]))), layers]
        found = []
        for part in zip(edges, edges[1:]):
            piece = {"sources": [self.entry(method, model, list(part)) for model in models]}
            if base and base not in models:
                piece["sources"].append({"model": base, "layer_range": list(part)})
            own = {}
            if method == "slerp" and self.chance(0.3):
                own["t"] = self.value(0, 1)
            if method in TASK_VECTORS and self.chance(0.3):
                own["lambda"] = self.value(0.2, 1.5)
            if method in TASK_VECTORS and method != "task_arithmetic" and self.chance(0.2):
                own["density"] = self.value(0.3, 0.6)
            found.append({**piece, **({"parameters": own} if own else {})})
        return found

    def draw(self, method, layers):
        count = {"slerp": 2, "nuslerp": 2, "nearswap": 1, "arcee_fusion": 1}.get(method) or self.random.choice([2, 3, 4])
        models = self.random.sample(SOURCES, count)
        base = {"linear": None, "karcher": None, "passthrough": None, "slerp": models[0]}.get(method, "base")
        if method in ("nuslerp", "multislerp"):
            base = self.random.choice([None, "base"])
        if method in ("linear", *TASK_VECTORS) and self.chance(0.25):
            models.append("base")
        recipe = {"merge_method": method, "dtype": "float32", **({"base_model": base} if base else {})}
        if method not in ("slerp", "passthrough") and self.chance(0.6):
            recipe["models"] = [self.entry(method, model) for model in models]
        else:
            recipe["slices"] = self.slices(method, models, base, layers)
        if parameters := self.parameters(method):
            recipe["parameters"] = parameters
        if self.chance(0.15):
            recipe["out_dtype"] = self.random.choice(["bfloat16", "float16"])
        return recipe


def absolute(node, folder):
    if isinstance(node, dict):
        of_model = lambda key, value: key in ("model", "base_model") and isinstance(value, str)
        return {key: str(folder / value) if of_model(key, value) else absolute(value, folder) for key, value in node.items()}
    return [absolute(part, folder) for part in node] if isinstance(node, list) else node


def tensors(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def compare(recipe, theirs, ours):
    """How many elements are not equal, of how many; what is too far away."""
    method, parameters = recipe["merge_method"], recipe.get("parameters", {})
    of_norms = method in OF_NORMS or parameters.get("rescale", method.startswith(("dare", "della")))
    wrong, unequal, elements = [], 0, 0
    if theirs.keys() != ours.keys():
        wrong.append(f"tensors: {sorted(theirs.keys() ^ ours.keys())[:4]} in one only")
    for name in sorted(theirs.keys() & ours.keys()):
        left, right = theirs[name], ours[name]
        if (left.dtype, left.shape) != (right.dtype, right.shape):
            wrong.append(f"{name}: {right.dtype} {tuple(right.shape)} instead of {left.dtype} {tuple(left.shape)}")
            continue
        step = {torch.bfloat16: lambda value: value.abs() * 2**-7, torch.float16: lambda value: (value.abs() * 2**-10).clamp(min=2**-24)}
        exact, distance = left.double(), (left.double() - right.double()).abs()
        allowed = exact.abs().max() * (1e-6 if of_norms else 2**-22) + step.get(left.dtype, lambda _: 0)(exact)
        unequal, elements = unequal + int((distance != 0).sum()), elements + distance.numel()
        if far := int((~(distance <= allowed)).sum()):
            wrong.append(f"{name}: {far} of {distance.numel()} elements are off")
    return unequal, elements, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evomerge", default="target/release/evomerge")
    parser.add_argument("--seeds", default="1-4")
    parser.add_argument("--recipes", type=int, default=100, help="a seed")
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--keep", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, _, last = options.seeds.partition("-")
    counts, failed = {}, 0
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        for name in FAMILIES:
            write_family(work / "models" / name, name)
        for seed in range(int(first), int(last or first) + 1):
            recipes = Recipes(seed)
            for number in range(options.recipes):
                method = options.method or recipes.random.choice(METHODS)
                family = recipes.random.choice([name for name in FAMILIES if not method.startswith(RANKING) or "float" not in name])
                recipe, models = recipes.draw(method, FAMILIES[family].layers), work / "models" / family
                file, theirs, ours = work / "recipe.yml", work / "theirs", work / "ours"
                file.write_text(yaml.safe_dump(recipe, sort_keys=False))
                for folder in (theirs, ours):
                    shutil.rmtree(folder, ignore_errors=True)
                refused = None
                try:
                    run_merge(MergeConfiguration.model_validate(absolute(recipe, models)), str(theirs),
                              MergeOptions(quiet=True, random_seed=42, copy_tokenizer=False, write_model_card=False))
                except Exception as error:  # whatever mergekit and transformers may raise
                    refused = f"{type(error).__name__}: {error}"
                merged = subprocess.run([options.evomerge, "merge", file, "--models-dir", models, "--out", ours, "--seed", "42",
                                         "--dare-masks", "mergekit", "-q"], capture_output=True, text=True)
                count = counts.setdefault(method, collections.Counter())
                if refused:
                    count["refused by both" if merged.returncode else "refused by mergekit"] += 1
                    continue
                unequal, elements, wrong = (0, 0, [merged.stderr.strip()]) if merged.returncode else compare(recipe, tensors(theirs), tensors(ours))
                count.update({"recipes": 1, "unequal": unequal, "elements": elements, "wrong": bool(wrong)})
                if wrong:
                    failed += 1
                    print(f"seed {seed}, recipe {number}, {family}, {method}: " + "; ".join(wrong[:3]), flush=True)
                    if options.keep:
                        options.keep.mkdir(parents=True, exist_ok=True)
                        shutil.copy(file, options.keep / f"{seed}-{number}-{family}.yml")
    print(f"{'method':18} {'recipes':>8} {'wrong':>6} {'unequal':>9} {'elements':>10}  refused by mergekit, by both")
    for method, count in sorted(counts.items()):
        print(f"{method:18} {count['recipes']:8} {count['wrong']:6} {count['unequal']:9} {count['elements']:10}  "
              f"{count['refused by mergekit']}, {count['refused by both']}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
