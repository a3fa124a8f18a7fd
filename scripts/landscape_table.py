#!/usr/bin/env python3
"""Medians of examples/landscape beside the peers' (evals/digits/peers.csv). Standard library only.

  landscape_table.py [--paired] RESULTS.jsonl...

With --paired, which wants runs of two strategies: how much better the second one (in alphabetical order) is, in the mean over all
landscapes and seeds that both ran on, with its standard error.
"""

import argparse
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


def words(run):
    """A strategy's settings on one line."""
    return " ".join(run["method"].split())


def paired(runs):
    """Prints the mean difference between two strategies by number of evaluations."""
    methods = sorted({words(run) for run in runs})
    if len(methods) != 2:
        sys.exit(f"error: --paired compares two strategies; these are runs of {len(methods)}: {', '.join(methods)}")
    found = {(words(run), run["zoo"], run["space"], run["seed"]): run["at"] for run in runs}
    print(f"`{methods[1]}` less `{methods[0]}`\n")
    print("| evaluations | pairs | validation | test |\n| --- | --- | --- | --- |")
    for budget in sorted({budget for run in runs for budget in run["at"]}, key=int):
        pairs = [(found.get((methods[0], *key)), at) for (method, *key), at in found.items() if method == methods[1]]
        pairs = [(first[budget], second[budget]) for first, second in pairs if first and budget in first and budget in second]
        cells = []
        for split in ("val", "test"):
            differences = [second[split] - first[split] for first, second in pairs]
            error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
            cells.append(f"{statistics.fmean(differences):+.4f} (standard error {error:.4f})" if differences else "none")
        print(f"| {budget} | {len(pairs)} | {cells[0]} | {cells[1]} |")


def median(values):
    return statistics.median(values) if values else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="files of examples/landscape or scripts/landscape_peers.py")
    parser.add_argument("--paired", action="store_true", help="compare two strategies seed by seed")
    arguments = parser.parse_args()
    runs = [json.loads(line) for name in arguments.runs for line in open(name)]
    if arguments.paired:
        return paired(runs)
    best = best_peers()
    print("| landscape | strategy | seeds | evaluations | validation | best peer | difference | test | peer's 1,000 score after |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    groups = sorted({(run["zoo"], run["space"], words(run)) for run in runs})
    for zoo, space, method in groups:
        group = [run for run in runs if (run["zoo"], run["space"], words(run)) == (zoo, space, method)]
        budgets = [budget for budget in BUDGETS if any(budget in run["at"] for run in group)]
        for budget in budgets:
            at = [run["at"][budget] for run in group if budget in run["at"]]
            ours = median([point["val"] for point in at])
            peer, name = best.get((zoo, space, budget), (None, "none"))
            beside = f"{peer:.4f} ({name}) | {ours - peer:+.4f}" if peer else "not recorded | "
            goal, _ = best.get((zoo, space, "1000"), (None, "none"))
            after = reached(group, goal) if budget == budgets[-1] and goal else ""
            print(f"| {zoo}/{space} | {method} | {len(at)} | {budget} | {ours:.4f} | {beside} | "
                  f"{median([point['test'] for point in at]):.4f} | {after} |")


if __name__ == "__main__":
    main()
