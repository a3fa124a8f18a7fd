#!/usr/bin/env python3
"""Medians of examples/landscape beside the peers' (evals/digits/peers.csv). Standard library only.

  landscape_table.py [--paired | --racing] RESULTS.jsonl...

With --racing, which wants runs in full, with `--racing --divisor N` and with `--divisor N`: what races and evaluations in full make
of the samples divided, less the runs with all samples, in the mean over the seeds that all three ran on, with 95 % bootstrap
intervals over seeds (10,000 draws). With --paired, which wants runs of two strategies: how much better the second one (in alphabetical order) is, in the mean over all
landscapes and seeds that both ran on, with its standard error.
"""

import argparse
import csv
import json
import pathlib
import random
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


def with_interval(differences, draws=10_000):
    """A mean and its 95 % percentile bootstrap interval."""
    dice = random.Random(1)
    means = sorted(statistics.fmean(dice.choices(differences, k=len(differences))) for _ in range(draws))
    return f"{statistics.fmean(differences):+.4f} [{means[int(0.025 * draws)]:+.4f}, {means[int(0.975 * draws) - 1]:+.4f}]"


def racing(runs):
    """Prints what a race makes of a part of the samples, by landscape and by the evaluations whose samples were divided."""
    methods = {words(run) for run in runs}

    def at(method, zoo, space, seed, budget):
        """Of the shortest run that went so far: one that knew what it may spend."""
        wanted = (method, zoo, space, seed)
        found = [run["at"] for run in runs if (words(run), run["zoo"], run["space"], run["seed"]) == wanted]
        return min((at for at in found if budget in at), key=len, default={}).get(budget)

    print("| landscape | seeds | evaluations | part | split | all samples | racing less all | in full less all | racing less in full |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for method in sorted(method for method in methods if ", racing, 1/" in method):
        strategy, part = method.split(", racing, ")
        control, pooled = f"{strategy}, {part}", {}
        for zoo, space in sorted({(run["zoo"], run["space"]) for run in runs if words(run) == method}):
            seeds = sorted({run["seed"] for run in runs})
            for budget in BUDGETS[1:]:
                trios = [[at(name, zoo, space, seed, budget) for name in (strategy, method, control)] for seed in seeds]
                trios = [trio for trio in trios if all(trio)]
                for split in ("val", "test") if trios else ():
                    scores = [[point[split] for point in trio] for trio in trios]
                    pooled.setdefault((budget, split), []).extend(scores)
                    print_trios(f"{zoo}/{space}", budget, part, split, scores)
        for (budget, split), scores in pooled.items():
            print_trios("all", budget, part, split, scores)


def print_trios(landscape, budget, part, split, scores):
    """A line of the table of races; `scores`: with all samples, racing, in full."""
    cells = [with_interval([trio[one] - trio[other] for trio in scores]) for one, other in ((1, 0), (2, 0), (1, 2))]
    mean = statistics.fmean(trio[0] for trio in scores)
    print(f"| {landscape} | {len(scores)} | {budget} | {part} | {split} | {mean:.4f} | {' | '.join(cells)} |")


def median(values):
    return statistics.median(values) if values else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="files of examples/landscape or scripts/landscape_peers.py")
    compared = parser.add_mutually_exclusive_group()
    compared.add_argument("--paired", action="store_true", help="compare two strategies seed by seed")
    compared.add_argument("--racing", action="store_true", help="compare races with evaluations in full")
    arguments = parser.parse_args()
    runs = [json.loads(line) for name in arguments.runs for line in open(name)]
    if arguments.paired:
        return paired(runs)
    if arguments.racing:
        return racing(runs)
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
