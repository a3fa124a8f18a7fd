#!/usr/bin/env python3
"""Greedy soups of the digits sweeps through the HTTP endpoint, against the traces in their soups.json, under both `keep` rules.

  digits_soups.py [--binary target/release/evomerge]

Needs numpy (for the endpoint). Prints each trace and fails on any difference.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from digits_endpoint import EVALS, endpoint

RUN_FILE = """
name = "{name}"
[models]
sources = {{ glob = "{zoo}/models/ft*" }}
[strategy]
kind = "greedy-soup"
keep = "{keep}"
[budget]
evaluations = 100
[evaluator]
kind = "http"
endpoints = ["{endpoint}"]
[[tasks]]
name = "digits"
[output]
dtype = "float32"
"""


def soup(binary, folder, zoo, keep, address):
    run_file = folder / f"{zoo.name}-{keep}.toml"
    run_file.write_text(RUN_FILE.format(name=run_file.stem, zoo=zoo, keep=keep, endpoint=address))
    command = [binary, "search", str(run_file), "--results", str(folder / "results"), "--json", "--quiet"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def compare(report, expected, sources):
    trace = report["soup"]
    kept = [sources[index] for index in trace["members"]]
    scores = [step["score"] for step in trace["steps"]]
    faults = []
    if kept != expected["members"]:
        faults.append(f"kept {kept}, expected {expected['members']}")
    for number, (score, wanted) in enumerate(zip(scores, expected["scores"])):
        if score is None or abs(score - wanted) > 1e-9:
            faults.append(f"step {number + 1}: {score}, expected {wanted}")
    return kept, faults


def expectation(document):
    """Members and trial scores of a trace in soups.json: `[model, score, kept]` a step."""
    return {"members": document["ingredients"], "scores": [score for _, score, _ in document["trace"]]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/evomerge")
    options = parser.parse_args()
    passed = failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for sweep in ("sweep", "sweep-strong"):
            zoo = EVALS / sweep
            expected = json.loads((zoo / "soups.json").read_text())
            sources = sorted(path.name for path in (zoo / "models").iterdir())
            with endpoint(zoo) as address:
                for keep, key in (("better", "greedy_soup"), ("not_worse", "greedy_soup_ge")):
                    report = soup(options.binary, pathlib.Path(scratch), zoo, keep, address)
                    kept, faults = compare(report, expectation(expected[key]), sources)
                    print(f"{sweep}, keep = {keep}: {' '.join(kept)}")
                    for fault in faults:
                        print("  FAULT:", fault)
                    passed, failed = passed + (not faults), failed + bool(faults)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
