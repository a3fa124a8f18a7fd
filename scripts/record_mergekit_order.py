#!/usr/bin/env python3
"""Records in which order mergekit merges tensors, and in which CPython's set gives integers back: tests/data/mergekit_order.json.

  pip install mergekit==0.1.5
  record_mergekit_order.py tests/data/mergekit_order.json [--tables src/merge/mergekit_order/architectures.rs]

Needs CPython 3.11. Merges are planned and scheduled, not computed: models have one number a tensor. `order` holds places in the order in
which mergekit plans tensors. With `--tables`, the weights of all architectures known to evomerge are compared with mergekit's; exit 1
where they differ.
"""

import argparse
import json
import logging
import pathlib
import random
import re
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch
from mergekit.architecture import get_architecture_info
from mergekit.architecture.json_definitions import NAME_TO_ARCH
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache
from mergekit.merge import _model_out_config
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from safetensors.torch import save_file
from transformers import AutoConfig

HEAD = "lm_head.weight"
KINDS = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Starcoder2ForCausalLM": "starcoder2",
    "GPT2LMHeadModel": "gpt2",
    "Phi3ForCausalLM": "phi3",
}


class Draws:
    """The upper bits of Knuth's linear congruential generator."""

    def __init__(self, seed):
        self.state = seed

    def below(self, bound):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % bound


def pops(seed, operations, bound):
    """Two of three operations add an integer below `bound`, the others take one out; then all come out."""
    draws, integers, out = Draws(seed), set(), []
    for _ in range(operations):
        if draws.below(3) == 0:
            if integers:
                out.append(integers.pop())
        else:
            integers.add(draws.below(bound))
    while integers:
        out.append(integers.pop())
    checksum = 0
    for integer in out:
        checksum = (checksum * 31 + integer + 1) % 2**64
    return {"seed": seed, "operations": operations, "bound": bound, "first": out[:40], "pops": len(out), "checksum": checksum}


def write_model(folder, architecture, layers, untied):
    kind = KINDS[architecture]
    config = {"architectures": [architecture], "model_type": kind, "vocab_size": 8, "hidden_size": 8, "num_attention_heads": 2,
              "num_key_value_heads": 2, "intermediate_size": 8, "tie_word_embeddings": not untied, "pad_token_id": 0,
              "n_layer" if kind == "gpt2" else "num_hidden_layers": layers}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = NAME_TO_ARCH[architecture][0].all_weights(AutoConfig.from_pretrained(folder))
    names = [weight.name for weight in weights if untied or weight.name != HEAD]
    save_file({name: torch.zeros(1) for name in names}, folder / "model.safetensors", metadata={"format": "pt"})


def schedule(folder, case):
    models = [folder / str(index) for index in range(case["models"])]
    for index, model in enumerate(models):
        write_model(model, case["architecture"], case["layers"], index in case["untied"])
    def source(index, first, layers):
        return {"model": str(models[index]), "layer_range": [first, first + layers], "parameters": {"weight": 0.5}}
    slices = [{"sources": [source(*pair, part["layers"]) for pair in part["sources"]]} for part in case["slices"]]
    recipe = {"merge_method": "dare_linear", "base_model": str(models[0]), "dtype": "float32", "slices": slices,
              **({"tokenizer_source": "base"} if case["vocabulary"] == "permute" else {})}
    config = MergeConfiguration.model_validate(recipe)
    options = MergeOptions(unsafe_truncate_embeddings=case["vocabulary"] == "truncate")
    architecture = get_architecture_info(config, options)
    LoaderCache().setup(options=options)
    planner = MergePlanner(config, architecture, options=options, out_model_config=_model_out_config(config, architecture))
    executor = Executor(planner.plan_to_disk(out_path=str(folder / "out")))
    planned = [weight.name for weight, _ in planner._tensors]
    tasks = (handle.task() for handle in executor.schedule.tasks)
    return [planned.index(task.output_weight.name) for task in tasks if isinstance(task, ExecuteMergeMethodTask)]


def cases():
    """A mix of heads that are tied and others, then stacks that use layers twice."""
    def whole(models, layers):
        return [{"sources": [[index, 0] for index in range(models)], "layers": layers}]
    yield "LlamaForCausalLM", 12, 4, [1], "keep", whole(4, 12)
    yield "LlamaForCausalLM", 12, 4, [3], "keep", whole(4, 12)
    yield "Starcoder2ForCausalLM", 3, 3, [0], "truncate", whole(3, 3)
    yield "GPT2LMHeadModel", 2, 4, [1, 2], "permute", whole(4, 2)
    yield "LlamaForCausalLM", 5, 2, [], "keep", [{"sources": [[0, 0], [1, 0]], "layers": 3}, {"sources": [[0, 1], [1, 1]], "layers": 4}]
    yield "LlamaForCausalLM", 5, 3, [0, 1, 2], "keep", [{"sources": [[1, 2], [0, 0]], "layers": 3}, {"sources": [[2, 0], [0, 3]], "layers": 2}]
    yield "Qwen2ForCausalLM", 4, 3, [2], "permute", [{"sources": [[2, 1], [0, 0], [1, 0]], "layers": 2}] * 2
    yield "Phi3ForCausalLM", 6, 2, [0, 1], "truncate", [{"sources": [[0, 2], [1, first]], "layers": 2} for first in (2, 0, 4)]
    draws = random.Random(5)
    for models in (2, 3, 4):
        parts = [{"sources": [[index, draws.randrange(6)] for index in range(models)], "layers": draws.randrange(1, 4)} for _ in range(4)]
        yield "LlamaForCausalLM", 8, models, draws.sample(range(models), models // 2), "keep", parts


def differing_tables(path):
    text = re.sub(r"\\\n\s*", "", path.read_text())
    fields = r'names: "(.*)",\s*before: "(.*)",\s*prefix: "(.*)",\s*layer: "(.*)",\s*after: "(.*)",\s*ties_head: (\w+),'
    for names, before, prefix, layer, after, ties in re.findall(fields, text):
        for name in names.split(" "):
            # The newest of several: it has the names that transformers gives.
            definition = [known for known in NAME_TO_ARCH[name] if known.expected_model_type != "phi-msft"][0].modules["default"].architecture.definition
            ours = ([*before.split(" "), *(f"{prefix}${{layer_index}}.{suffix}" for suffix in layer.split(" ")), *after.split(" ")], ties == "true")
            weights = [*definition.pre_weights, *definition.layer_templates.weights, *definition.post_weights]
            embedding = before.split(" ")[0]
            theirs = ([weight.name for weight in weights], any(embedding in (weight.tied_names or ()) for weight in weights))
            if ours != theirs:
                yield f"{name}: {ours} here, {theirs} in mergekit"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--tables", type=pathlib.Path)
    arguments = parser.parse_args()
    sets = [pops(1, 60, 40), pops(2, 3_000, 500), pops(3, 20_000, 1 << 40), pops(4, 300_000, 1 << 22)]
    schedules = []
    for architecture, layers, models, untied, vocabulary, slices in cases():
        case = {"architecture": architecture, "layers": layers, "models": models, "untied": untied, "vocabulary": vocabulary, "slices": slices}
        with tempfile.TemporaryDirectory() as folder:
            case["order"] = schedule(pathlib.Path(folder), case)
        schedules.append(case)
    lines = [json.dumps(record, separators=(",", ":")) for record in [*sets, *schedules]]
    sets, schedules = lines[: len(sets)], lines[len(sets) :]
    arguments.out.write_text('{"sets":[\n' + ",\n".join(sets) + '\n],"schedules":[\n' + ",\n".join(schedules) + "\n]}\n")
    differing = list(differing_tables(arguments.tables)) if arguments.tables else []
    print("\n".join(differing) or "written")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
