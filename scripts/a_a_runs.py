#!/usr/bin/env python3
"""A/A runs: searches in which there is nothing to find. All models are equal up to noise, so a search that says
"improvement" is wrong.

  a_a_runs.py [--seeds 1000] [--first 1] [--evaluations 40] [--samples 200] [--binary target/release/evomerge]

Each seed searches the `flat` landscape of the `function` evaluator (two tasks, noise by candidate and sample, a sealed
hold-out of 40 %). Printed: how the runs ended. Fails when fewer than 95 % end without evidence of improvement.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile

WANTED = 0.95

RUN_FILE = """
name = "a-a"
[models]
base = "base"
sources = ["a", "b", "c"]
[space]
method = ["task_arithmetic", "ties"]
[space.genes]
weight = {{ low = 0.0, high = 1.0, per = ["model"] }}
[budget]
evaluations = {evaluations}
[evaluator]
kind = "function"
name = "flat"
samples = {samples}
noise = 0.5
[[tasks]]
name = "one"
[[tasks]]
name = "two"
[holdout]
fraction = 0.4
"""


def verdict(binary, run_file, results, seed):
    """The verdict of one search, and by how much search scores were above the hold-out and above second scores."""
    command = [binary, "search", str(run_file), "--results", str(results / str(seed)), "--seed", str(seed), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"seed {seed}: exit {done.returncode}: {done.stderr.strip()}")
    report = json.loads(done.stdout)
    return report["verdict"], report["over_statement"], report["rescoring_over_statement"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000, help="number of searches")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--samples", type=int, default=200, help="samples of a task, search and hold-out together")
    parser.add_argument("--binary", default="target/release/evomerge")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")

    ends, over_statements, by_rescoring = collections.Counter(), [], []
    with tempfile.TemporaryDirectory() as folder:
        run_file = pathlib.Path(folder) / "a-a.toml"
        run_file.write_text(RUN_FILE.format(evaluations=options.evaluations, samples=options.samples))
        for seed in range(options.first, options.first + options.seeds):
            end, over_statement, rescoring = verdict(options.binary, run_file, pathlib.Path(folder), seed)
            ends[end] += 1
            over_statements.append(over_statement)
            by_rescoring.append(rescoring)

    for end, count in sorted(ends.items()):
        print(f"{end:<14} {count} of {options.seeds}")
    for what, values in (
        ("the winner's search score is above the hold-out", over_statements),
        ("the best search score is above the second score of the same finalist", by_rescoring),
    ):
        print(f"{what} by {sum(values) / len(values):+.4f} on average")
    share = ends["no_evidence"] / options.seeds
    if share < WANTED:
        sys.exit(f"only {share:.0%} of the runs ended without evidence of improvement, expected at least {WANTED:.0%}")


if __name__ == "__main__":
    main()
