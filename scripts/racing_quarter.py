#!/usr/bin/env python3
"""Racing against scoring every candidate in full: the test score of what a search finds, with a quarter of the samples.

  racing_quarter.py [RUN.toml] [--seeds 10] [--first 1] [--evaluations 100] [--divisor 4] [--rungs N] [--reduction N]
                    [--binary target/release/evomerge]

Each seed runs three searches of RUN.toml (default: search-spaces/quickstart.toml), whose evaluator must be `native`:

  full         `evaluations` candidates, each on all samples: S samples in all
  racing       a budget of S / divisor samples, baselines included, with [racing]
  control      as many samples as racing, but each candidate on all of them (the control)

The test score is the winner's on the sealed hold-out. Printed: one line a seed, then medians, and the mean paired
difference to `full` over seeds with a 95 % bootstrap interval (seeds are drawn, 10,000 times). The samples are those in the
runs' ledgers. The script fails when racing spends more than S / divisor.
"""

import argparse
import json
import pathlib
import random
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import tomllib


def with_budget(run_file, budget, racing=""):
    """The text of a run file with another budget, all paths absolute."""
    text = run_file.read_text()
    text = re.sub(r'"(\.\.?/[^"]*)"', lambda path: json.dumps(str((run_file.parent / path[1]).resolve())), text)
    text = re.sub(r"^\[(budget|racing)\]\n(?:(?!\[).*\n)*", "", text, flags=re.MULTILINE)
    return f"{text}\n[budget]\n{budget}\n{racing}"


def search(binary, run_file, results, seed):
    """The report of one search."""
    command = [binary, "search", str(run_file), "--results", str(results), "--seed", str(seed), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{run_file.name}, seed {seed}: exit {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def spent(results, run_file):
    """The samples that a search scored."""
    name = tomllib.loads(run_file.read_text())["name"]
    with sqlite3.connect(f"file:{results / name / 'ledger.sqlite'}?mode=ro", uri=True) as ledger:
        return ledger.execute("SELECT sum(samples) FROM asked").fetchone()[0]


def interval(differences, draws=10_000):
    """The 95 % percentile bootstrap interval of a mean."""
    dice = random.Random(1)
    means = sorted(statistics.fmean(dice.choices(differences, k=len(differences))) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", nargs="?", type=pathlib.Path, default=pathlib.Path("search-spaces/quickstart.toml"))
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--evaluations", type=int, default=100, help="evaluations of a full run")
    parser.add_argument("--divisor", type=int, default=4, help="racing gets 1 / divisor of the samples")
    parser.add_argument("--rungs", type=int, help="rungs of the race (default: the program's)")
    parser.add_argument("--reduction", type=int, help="reduction of the race (default: the program's)")
    parser.add_argument("--binary", default="target/release/evomerge")
    options = parser.parse_args()
    if min(options.seeds, options.evaluations, options.divisor) < 1:
        parser.error("--seeds, --evaluations and --divisor must be at least 1")

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        run_files = {name: folder / f"{name}.toml" for name in ("full", "racing", "control")}
        run_files["full"].write_text(with_budget(options.run_file, f"evaluations = {options.evaluations}"))
        settings = {"rungs": options.rungs, "reduction": options.reduction}
        racing = "[racing]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items() if value is not None)
        share = 0

        scores = {name: [] for name in run_files}
        samples = {name: [] for name in run_files}
        print(f"{'seed':>4}  " + "  ".join(f"{name:>22}" for name in run_files) + "   test score (samples, evaluations)")
        for seed in range(options.first, options.first + options.seeds):
            cells = []
            for name, run_file in run_files.items():
                if not share and name != "full":
                    share = samples["full"][0] // options.divisor
                    run_files["racing"].write_text(with_budget(options.run_file, f"samples = {share}", racing))
                    evaluations = options.evaluations // options.divisor
                    run_files["control"].write_text(with_budget(options.run_file, f"evaluations = {evaluations}"))
                results = folder / f"{name}-{seed}"
                report = search(options.binary, run_file, results, seed)
                scores[name].append(report["winner"]["holdout_score"])
                samples[name].append(spent(results, run_file))
                cells.append(f"{scores[name][-1]:.4f} ({samples[name][-1]:>6}, {report['evaluations']:>4})")
            print(f"{seed:>4}  " + "  ".join(f"{cell:>22}" for cell in cells), flush=True)

    print()
    for name in run_files:
        line = f"{name:<8} median {statistics.median(scores[name]):.4f}  mean {statistics.fmean(scores[name]):.4f}  " \
               f"samples {max(samples[name])} at most"
        if name != "full":
            differences = [mine - full for mine, full in zip(scores[name], scores["full"])]
            low, high = interval(differences)
            better, equal = sum(value > 0 for value in differences), sum(value == 0 for value in differences)
            line += f"  less full: median {statistics.median(differences):+.4f}, mean {statistics.fmean(differences):+.4f} " \
                    f"[{low:+.4f}, {high:+.4f}], above in {better}, equal in {equal} of {len(differences)}"
        print(line)
    if max(samples["racing"]) > share:
        sys.exit(f"racing spent {max(samples['racing'])} samples, more than {share}")


if __name__ == "__main__":
    main()
