#!/usr/bin/env python3
"""Times `evomerge merge`, mergekit (where it can be imported) and the machine itself, side by side in one run.

  merge_speed.py MODELS [--evomerge target/release/evomerge] [--candidates BENCH] [--repeats 3] [--peer-repeats N] [--out DIR] [METHOD ...]

MODELS holds base and ft1..ft4 (make_bench_models.py). Recipes are written to MODELS/recipes. A merge is the whole process with
a fresh output, timed from outside; mergekit runs in this process, its imports not counted. With `--candidates`, the program
that `cargo bench --bench candidates --no-run` builds: merges inside a search, with statistics cached and slots in use.
METHOD is any of evomerge's but passthrough; without one, those that have a goal. mergekit's repeats are as many as ours unless
told otherwise. Seconds are medians over the repeats, with the fastest beside them; user and system time tell how much of a slow one was
somebody else's load.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import threading
import time

WEIGHTS = [0.3, 0.25, 0.25, 0.2]
METHODS = ["linear", "task_arithmetic", "slerp", "dare_linear", "dare_ties", "ties"]
DENSITY = {"ties": 0.5, "dare_linear": 0.3, "dare_ties": 0.3, "della": 0.5, "della_linear": 0.5, "breadcrumbs": 0.5,
           "breadcrumbs_ties": 0.5}
WEIGHTED = ["linear", "task_arithmetic", "nuslerp", "multislerp", *DENSITY]
# Methods that take other than the four models, and those without a base.
SOURCES = {"slerp": 2, "nuslerp": 2, "nearswap": 1, "arcee_fusion": 1}
BASELESS = ["linear", "karcher"]
SETTINGS = {"sce": {"select_topk": 0.3}, "nearswap": {"t": 0.001}, "della": {"epsilon": 0.1}, "della_linear": {"epsilon": 0.1}}
# Seconds of mergekit 0.1.5, warm and in process, on a quiet machine of two AVX-512 cores with the `half` family.
RECORDED = {"linear": 2.42, "task_arithmetic": 4.54, "slerp": 6.81, "dare_linear": 26.1, "dare_ties": 39.0, "ties": 89.0}
# How many times faster than that a process, and a candidate inside a search, shall be.
GOALS = {"linear": (4.5, 11), "task_arithmetic": (8, 16), "slerp": (12, 35), "dare_linear": (35, 70), "dare_ties": (45, 100),
         "ties": (80, 200)}
PROBE = 1 << 29


def recipe(method, layers):
    if method == "slerp":
        pair = [{"model": model, "layer_range": [0, layers]} for model in ("ft1", "ft2")]
        return {"merge_method": "slerp", "base_model": "ft1", "dtype": "bfloat16", "parameters": {"t": 0.4},
                "slices": [{"sources": pair}]}
    count = SOURCES.get(method, 4)
    models = [{"model": f"ft{index + 1}"} for index in range(count)]
    if method in WEIGHTED:
        density = {"density": DENSITY[method]} if method in DENSITY else {}
        for model, weight in zip(models, WEIGHTS):
            model["parameters"] = {"weight": weight, **density}
    base = {} if method in BASELESS else {"base_model": "base"}
    settings = {"parameters": SETTINGS[method]} if method in SETTINGS else {}
    return {"merge_method": method, "dtype": "bfloat16", **base, "models": models, **settings}


def moved(models, method):
    """Bytes of the inputs and of the output."""
    read = SOURCES.get(method, 4) + (method not in BASELESS and method != "slerp")
    size = (models / "ft1" / "model.safetensors").stat().st_size
    return read * size, size


def in_threads(work):
    """Runs work(thread) on every core at once; seconds."""
    threads = [threading.Thread(target=work, args=(index,)) for index in range(os.cpu_count())]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def probe():
    """Bytes a second that all cores read, write and copy in memory, and write to a fresh file of the RAM disk."""
    import numpy

    cores = os.cpu_count()
    source = [numpy.ones(PROBE // 8 // cores, numpy.int64) for _ in range(cores)]
    target = [numpy.zeros_like(array) for array in source]
    fastest = lambda work: min(in_threads(work) for _ in range(5))
    read = PROBE / fastest(lambda index: source[index].max())
    write = PROBE / fastest(lambda index: target[index].fill(1))
    copy = 2 * PROBE / fastest(lambda index: numpy.copyto(target[index], source[index]))

    def fresh():
        with open("/dev/shm/evomerge-probe", "wb") as file:
            file.truncate(PROBE)
            part = PROBE // cores
            seconds = in_threads(lambda index: os.pwrite(file.fileno(), memoryview(target[index]).cast("B"), index * part))
        os.unlink("/dev/shm/evomerge-probe")
        return seconds

    return {"read": read, "write": write, "copy": copy, "fresh": PROBE / min(fresh() for _ in range(3))}


def ours(program, models, method, out, repeats):
    calls = []
    for _ in range(repeats):
        shutil.rmtree(out, ignore_errors=True)
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([program, "merge", models / "recipes" / f"{method}.yml", "--models-dir", models, "--out", out, "-q"],
                       check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        calls.append((seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime))
    shutil.rmtree(out, ignore_errors=True)
    return calls


def theirs(models, method, out, repeats):
    """Seconds of mergekit's calls; nothing where it is not installed."""
    try:
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions
    except ImportError:
        return []
    config = json.loads((models / "recipes" / f"{method}.yml").read_text())
    absolute = lambda name: str(models / name)
    sources = config.get("models") or config["slices"][0]["sources"]
    for source in sources:
        source["model"] = absolute(source["model"])
    if "base_model" in config:
        config["base_model"] = absolute(config["base_model"])
    parsed, calls = MergeConfiguration.model_validate(config), []
    for _ in range(repeats):
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        run_merge(parsed, str(out), MergeOptions(quiet=True, random_seed=1, copy_tokenizer=False, write_model_card=False))
        calls.append(time.perf_counter() - start)
    shutil.rmtree(out, ignore_errors=True)
    return calls


def candidates(program, models, methods, repeats):
    """Seconds of the calls inside a search, by method."""
    command = [program, "--models", models, "--repeats", str(repeats), *methods]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return {line["method"]: line["seconds"] for line in found}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("--evomerge", default="target/release/evomerge")
    parser.add_argument("--candidates")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-repeats", type=int)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("/dev/shm/evomerge-bench-out"))
    parser.add_argument("methods", nargs="*", default=METHODS)
    options = parser.parse_intermixed_args()
    models = options.models.resolve()
    (models / "recipes").mkdir(exist_ok=True)
    layers = json.loads((models / "base" / "config.json").read_text())["num_hidden_layers"]
    for method in options.methods:
        # JSON is YAML.
        (models / "recipes" / f"{method}.yml").write_text(json.dumps(recipe(method, layers)))
    for model in ("base", "ft1", "ft2", "ft3", "ft4"):
        with open(models / model / "model.safetensors", "rb") as file:
            while file.read(1 << 24):
                pass
    limit = probe()
    print("GB/s on all cores: " + ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in limit.items()))
    inside = candidates(options.candidates, models, options.methods, options.repeats) if options.candidates else {}
    print(f"{'method':16} {'merge s':>8} {'fastest':>8} {'cpu s':>6} {'GB/s':>6} {'limit s':>8} {'mergekit s':>11} {'times':>6} "
          f"{'goal':>5} | {'candidate s':>11} {'fastest':>8} {'limit s':>8} {'ratio':>6} {'times':>6} {'goal':>5}")
    for method in options.methods:
        calls = ours(options.evomerge, models, method, options.out, options.repeats)
        peer = theirs(models, method, options.out, options.peer_repeats or options.repeats)
        other, mark = (statistics.median(peer), " ") if peer else (RECORDED.get(method, float("nan")), "*")
        goal, inside_goal = GOALS.get(method, ("-", "-"))
        read, written = moved(models, method)
        seconds, fastest = statistics.median(call[0] for call in calls), min(call[0] for call in calls)
        cpu = statistics.median(call[1] for call in calls)
        fresh = read / limit["read"] + written / limit["fresh"]
        line = (f"{method:16} {seconds:8.3f} {fastest:8.3f} {cpu:6.2f} {(read + written) / seconds / 1e9:6.2f} {fresh:8.3f} "
                f"{other:10.2f}{mark} {other / seconds:6.1f} {goal:>5}")
        if method in inside:
            times = inside[method]
            middle, memory = statistics.median(times), read / limit["read"] + written / limit["write"]
            line += (f" | {middle:11.3f} {min(times):8.3f} {memory:8.3f} {middle / memory:6.2f} {other / middle:6.1f} "
                     f"{inside_goal:>5}")
        print(line, flush=True)
    print("*: recorded on a comparable machine. limit s: all inputs read and the output written "
          "once, at the rates above;\nfresh file for a merge, memory to memory for a candidate. Output on", options.out.parent)


if __name__ == "__main__":
    main()
