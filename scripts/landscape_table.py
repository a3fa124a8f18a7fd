#!/usr/bin/env python3
"""Medians of examples/landscape.rs beside the peers' (evals/digits/peers.csv). Standard library only.

  landscape_table.py RESULTS.jsonl...
"""

import csv
import json
import pathlib
import statistics
import sys

BUDGETS = ("100", "300", "1000")
PEERS = pathlib.Path(__file__).parent.parent / "evals/digits/peers.csv"


def best_peers():
    """Best median validation score of any peer by (zoo, space, budget)."""
    best = {}
    for row in csv.DictReader(PEERS.open()):
        for budget in BUDGETS:
            if value := row[f"val_{budget}"]:
                key = row["zoo"], row["space"], budget
                best[key] = max(best.get(key, (0.0, "")), (float(value), row["method"]))
    return best


def evaluations_to(run, score):
    """The evaluation that first reached a score, which is rounded to four digits; infinite if none did."""
    return next((index for index, value in run["inc"] if value >= score - 5e-5), float("inf"))


def reached(group, score):
    """The median number of evaluations to a score, in words."""
    middle = median([evaluations_to(run, score) for run in group])
    return f"{middle:.0f}" if middle < float("inf") else f"over {min(run['n'] for run in group)}"


def median(values):
    return statistics.median(values) if values else float("nan")


def main():
    runs = [json.loads(line) for name in sys.argv[1:] for line in open(name)]
    best = best_peers()
    print("| landscape | strategy | seeds | evaluations | validation | best peer | difference | test | peer's 1,000 score after |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    groups = sorted({(run["zoo"], run["space"], " ".join(run["method"].split())) for run in runs})
    for zoo, space, method in groups:
        group = [run for run in runs if (run["zoo"], run["space"], " ".join(run["method"].split())) == (zoo, space, method)]
        budgets = [budget for budget in BUDGETS if any(budget in run["at"] for run in group)]
        for budget in budgets:
            at = [run["at"][budget] for run in group if budget in run["at"]]
            ours = median([point["val"] for point in at])
            peer, name = best.get((zoo, space, budget), (float("nan"), "none"))
            goal, _ = best.get((zoo, space, "1000"), (None, "none"))
            after = reached(group, goal) if budget == budgets[-1] and goal else ""
            print(f"| {zoo}/{space} | {method} | {len(at)} | {budget} | {ours:.4f} | {peer:.4f} ({name}) | {ours - peer:+.4f} | "
                  f"{median([point['test'] for point in at]):.4f} | {after} |")


if __name__ == "__main__":
    main()
