#!/usr/bin/env python3
"""Racing against scoring every candidate in full: the test score of what a search finds, with a quarter of the samples.

  racing_quarter.py [RUN.toml] [--seeds 10] [--first 1] [--evaluations 100] [--divisor 4] [--rungs N] [--reduction N]
                    [--test N] [--results DIR] [--binary target/release/evomerge]
  racing_quarter.py --landscape rastrigin ...

Each seed runs three searches of RUN.toml (default: search-spaces/quickstart.toml), which has a sealed hold-out, or of a
closed-form landscape with 24 genes and about 800 noisy samples:

  full         `evaluations` candidates, each on all samples: S samples in all
  racing       a budget of S / divisor samples, baselines included, with [racing]
  control      as many samples as racing, but each candidate on all of them (the control)

The test score is the winner's on the sealed hold-out (of the landscapes: about 3,200 samples); with --test, on N fresh prompts of
each task of the tiny zoo, none of them among those of the search, which tells smaller differences apart. With --results, runs are
kept there, and those that are there already are not made again. Printed: one line a seed, then medians, and mean paired
differences over seeds with 95 % bootstrap intervals (seeds are drawn, 10,000 times). The samples are those in the runs'
ledgers. The script fails when racing spends more than S / divisor.
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


LANDSCAPE = """
name = "landscape"
[models]
base = "base"
sources = ["a", "b", "c", "d"]
[space]
method = "ties"
layer_groups = 3
[space.genes]
weight = {{ low = 0.0, high = 1.0, per = ["model", "layer_group"] }}
density = {{ low = 0.1, high = 1.0, per = ["model", "layer_group"] }}
[evaluator]
kind = "function"
name = "{name}"
samples = 1000
noise = 0.27   # siblings that answer about one question in seven differently; an assumption, not a measurement
[repeats]
finalists = false
sentinel = 0
[[tasks]]
name = "one"
[[tasks]]
name = "two"
[[tasks]]
name = "three"
[[tasks]]
name = "four"
[holdout]
fraction = 0.8
finalists = 1
"""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def word(dice, low, high, letters=LETTERS):
    """A random word of `low` to `high` letters."""
    return "".join(dice.choice(letters) for _ in range(dice.randint(low, high)))


def fresh_prompt(task, dice):
    """A prompt of the tiny zoo's tasks (evals/tiny-llama/README.md) with its answer."""
    if task == "add":
        first, second = dice.randint(10, 99), dice.randint(10, 99)
        return f"add: {first}+{second}=", str(first + second)
    if task == "rev":
        text = word(dice, 5, 7)
        return f"rev: {text}=", text[::-1]
    if task == "sort":
        text = word(dice, 4, 6)
        return f"sort: {text}=", "".join(sorted(text))
    while True:
        letters = dice.sample(LETTERS, dice.choice([2, 3]))
        text, wanted = word(dice, 6, 8, letters), dice.choice(letters)
        if text.count(wanted) <= 5:
            return f"cnt: {text},{wanted}=", str(text.count(wanted))


def with_fresh_test(run_file, folder, count):
    """The text of a run file whose hold-out is `count` fresh prompts a task."""
    text = run_file.read_text()
    entries = []
    for task in tomllib.loads(text)["tasks"]:
        data = (run_file.parent / task["data"]).read_text().splitlines()
        seen = {json.loads(line)["prompt"] for line in data if line}
        dice, lines = random.Random(f"fresh {task['name']}"), []
        while len(lines) < count:
            prompt, answer = fresh_prompt(task["name"], dice)
            if prompt not in seen:
                seen.add(prompt)
                lines.append(json.dumps({"prompt": prompt, "answer": answer}))
        path = folder / f"{task['name']}.test.jsonl"
        path.write_text("\n".join(lines) + "\n")
        entries.append(f"{task['name']} = {{ data = {json.dumps(str(path))} }}")
    text = re.sub(r"^\[holdout\]\n(?:(?!\[).*\n)*", "", text, flags=re.MULTILINE)
    return f"{text}\n[holdout]\nfinalists = 1\ntasks = {{ {', '.join(entries)} }}\n"


def with_budget(run_file, text, budget, racing=""):
    """The text of a run file with another budget, all paths absolute."""
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
    parser.add_argument("--landscape", help="search a landscape of the `function` evaluator: rastrigin, sphere, ...")
    parser.add_argument("--test", type=int, help="test on so many fresh prompts of each task of the tiny zoo")
    parser.add_argument("--results", type=pathlib.Path, help="keep the runs in this folder, and continue what is there")
    parser.add_argument("--binary", default="target/release/evomerge")
    options = parser.parse_args()
    if min(options.seeds, options.evaluations, options.divisor) < 1:
        parser.error("--seeds, --evaluations and --divisor must be at least 1")
    if options.test and (options.landscape or not 1 <= options.test <= 5000):
        parser.error("--test is from 1 to 5000, and the landscapes have a large test set of their own")

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if options.results:
            folder = options.results.resolve()
            folder.mkdir(parents=True, exist_ok=True)
        if options.landscape:
            text = LANDSCAPE.format(name=options.landscape)
        elif options.test:
            text = with_fresh_test(options.run_file, folder, options.test)
        else:
            text = options.run_file.read_text()
        settings = {"rungs": options.rungs, "reduction": options.reduction}
        racing = "[racing]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items() if value is not None)
        names = ("full", "racing", "control")
        scores = {name: [] for name in names}
        samples = {name: [] for name in names}
        print(f"{'seed':>4}  " + "  ".join(f"{name:>22}" for name in names) + "   test score (samples, evaluations)")
        for seed in range(options.first, options.first + options.seeds):
            cells = []
            for name in names:
                share = samples["full"][-1] // options.divisor if name != "full" else 0
                budget = {
                    "full": (f"evaluations = {options.evaluations}",),
                    "racing": (f"samples = {share}", racing),
                    "control": (f"evaluations = {options.evaluations // options.divisor}",),
                }[name]
                run_file, results = folder / f"{name}-{seed}.toml", folder / f"{name}-{seed}"
                run_file.write_text(with_budget(options.run_file, text, *budget))
                report = search(options.binary, run_file, results, seed)
                scores[name].append(report["winner"]["holdout_score"])
                samples[name].append(spent(results, run_file))
                cells.append(f"{scores[name][-1]:.4f} ({samples[name][-1]:>6}, {report['evaluations']:>4})")
                if name == "racing" and samples[name][-1] > share:
                    sys.exit(f"seed {seed}: racing spent {samples[name][-1]} samples, more than {share}")
            print(f"{seed:>4}  " + "  ".join(f"{cell:>22}" for cell in cells), flush=True)

    print()
    for name in names:
        print(f"{name:<22} median {statistics.median(scores[name]):.4f}  mean {statistics.fmean(scores[name]):.4f}  "
              f"samples {max(samples[name])} at most")
    for name, other in (("racing", "full"), ("control", "full"), ("racing", "control")):
        differences = [mine - theirs for mine, theirs in zip(scores[name], scores[other])]
        low, high = interval(differences)
        better, equal = sum(value > 0 for value in differences), sum(value == 0 for value in differences)
        print(f"{name + ' less ' + other:<22} median {statistics.median(differences):+.4f}  mean {statistics.fmean(differences):+.4f} "
              f"[{low:+.4f}, {high:+.4f}]  above in {better}, equal in {equal} of {len(differences)}")


if __name__ == "__main__":
    main()
