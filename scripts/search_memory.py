#!/usr/bin/env python3
"""Peak anonymous memory of a search that is scored sample by sample, of the start that continues it, and of `simulate` on its ledger.

  search_memory.py [--samples 20000] [--evaluations 300] [--evomerge target/release/evomerge]

A closed-form landscape: nothing but the search itself takes memory.
"""

import argparse
import pathlib
import subprocess
import tempfile
import time

from merge_memory import anonymous

RUN = """name = "memory"
models = {{ sources = ["a", "b", "c", "d"] }}
space = {{ method = "linear" }}
budget = {{ evaluations = {evaluations} }}
evaluator = {{ kind = "function", name = "sphere", samples = {samples} }}
tasks = [{{ name = "one" }}]
holdout = {{ fraction = 0.1 }}
"""


def run(command, folder):
    """Peak anonymous bytes and seconds."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.001)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return peak, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--evomerge", type=pathlib.Path, default=pathlib.Path("target/release/evomerge"))
    options = parser.parse_args()
    program = options.evomerge.resolve()
    with tempfile.TemporaryDirectory() as folder:
        text = RUN.format(samples=options.samples, evaluations=options.evaluations)
        pathlib.Path(folder, "run.toml").write_text(text)
        print(f"{options.evaluations} evaluations of {options.samples} samples, a tenth of them the hold-out's")
        for name, command in [
            ("search", [program, "search", "run.toml"]),
            ("search again", [program, "search", "run.toml"]),
            ("status", [program, "status", "results/memory"]),
            ("simulate", [program, "simulate", "results/memory/ledger.sqlite", "--repetitions", "10"]),
        ]:
            peak, seconds = run(command, folder)
            print(f"{name:14} {peak / 2**20:8.1f} MiB {seconds:7.1f} s")


if __name__ == "__main__":
    main()
