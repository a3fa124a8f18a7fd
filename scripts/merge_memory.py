#!/usr/bin/env python3
"""Peak anonymous memory, time and rate of `evomerge merge` on families of any size.

  merge_memory.py MODELS ... --out DIR [--evomerge target/release/evomerge] [--threads N] [--method METHOD] ...

Each of MODELS holds base and ft1..ft4 (make_bench_models.py); OUT is on a disk with room for one model and is removed after
each merge. Anonymous memory is what the operating system cannot drop or read again from a file: `RssAnon` of the process,
sampled every millisecond. It is also the number that container limits and the OOM killer go by, apart from the page cache.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import time

from merge_speed import recipe

DEFAULT = ["linear", "ties", "dare_linear", "slerp"]
BASES = {"linear": 0, "slerp": 0}
SOURCES = {"slerp": 2}


def anonymous(process):
    """RssAnon in bytes; 0 once the process has ended."""
    try:
        text = pathlib.Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in text.splitlines() if line.startswith("RssAnon:")), "RssAnon: 0 kB")
    return 1024 * int(line.split()[1])


def merge(program, models, method, out, threads):
    """Peak anonymous bytes and seconds of one merge."""
    shutil.rmtree(out, ignore_errors=True)
    command = [program, "merge", models / "recipes" / f"{method}.yml", "--models-dir", models, "--out", out, "-q"]
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen([*command, *(["--threads", str(threads)] if threads else [])], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.001)
    seconds = time.perf_counter() - start
    shutil.rmtree(out, ignore_errors=True)
    if process.returncode:
        raise SystemExit(f"{method} of {models}: exit code {process.returncode}")
    return peak, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=pathlib.Path, nargs="+")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--evomerge", default="target/release/evomerge")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--method", action="append", help="once for each method")
    options = parser.parse_args()
    print(f"{'models':20} {'method':16} {'parameters':>11} {'read GB':>8} {'written GB':>11} {'RssAnon MiB':>12} {'s':>8} {'GB/s':>6}")
    for models in (models.resolve() for models in options.models):
        layers = json.loads((models / "base" / "config.json").read_text())["num_hidden_layers"]
        size = sum(file.stat().st_size for file in (models / "base").glob("*.safetensors"))
        (models / "recipes").mkdir(exist_ok=True)
        for method in options.method or DEFAULT:
            # JSON is YAML.
            (models / "recipes" / f"{method}.yml").write_text(json.dumps(recipe(method, layers)))
            peak, seconds = merge(options.evomerge, models, method, options.out, options.threads)
            read = size * (SOURCES.get(method, 4) + BASES.get(method, 1))
            print(f"{models.name:20} {method:16} {size / 2e9:10.2f}B {read / 1e9:8.2f} {size / 1e9:11.2f} {peak / 2**20:12.1f} "
                  f"{seconds:8.2f} {(read + size) / seconds / 1e9:6.2f}", flush=True)


if __name__ == "__main__":
    main()
