#!/usr/bin/env python3
"""The quickstart's winner against each source, the soups, and merges with fixed settings, on data that the search never saw.

  compare_quickstart.py [--seed 7] [--masks 5] [--binary target/release/evomerge]

Runs search-spaces/quickstart.toml, merges every opponent (`evomerge merge`), and scores all models by one run whose sources
they are and whose tasks are the search's data and the hold-out data. Its ledger has the scores by sample. Printed is a
Markdown table: scores on both, and the winner less each opponent on the hold-out with a 95 % bootstrap interval (4,000
draws of the matched samples inside each task; not corrected for the number of opponents).

Opponents with fixed settings; all weights are equal, what is not named is mergekit's default:

  ties, dare_linear, dare_ties   density 0.5, weights 1/n. mergekit has no default weight, and its default density of 1
                                 would switch the methods off; about 0.5, and weights with the sum 1, are what its examples
                                 and guides use. `ties` divides by the weights (normalize), the DARE methods do not.
  ... at weight 0.4              the DARE methods beside what task arithmetic takes (below): weights 1/n are timid
  ties at density 0.2            the setting of the TIES paper where there is no validation data (lambda 1)
  task_arithmetic at weight 0.4  the setting of the same paper for task arithmetic without validation data

DARE draws masks: its rows are the mean of --masks mask seeds, sample by sample.
"""

import argparse
import json
import pathlib
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import tomllib

RUN_FILE = pathlib.Path(__file__).resolve().parent.parent / "search-spaces" / "quickstart.toml"
DRAWS = 4000
# Row, method, density, weight (None: 1/n), whether masks are drawn.
FIXED = [
    ("`task_arithmetic`, weight 0.4", "task_arithmetic", None, 0.4, False),
    ("`ties`, density 0.5", "ties", 0.5, None, False),
    ("`ties`, density 0.2", "ties", 0.2, None, False),
    ("`dare_linear`, density 0.5, weight 1/n", "dare_linear", 0.5, None, True),
    ("`dare_ties`, density 0.5, weight 1/n", "dare_ties", 0.5, None, True),
    ("`dare_linear`, density 0.5, weight 0.4", "dare_linear", 0.5, 0.4, True),
    ("`dare_ties`, density 0.5, weight 0.4", "dare_ties", 0.5, 0.4, True),
]


def evomerge(binary, *arguments):
    """The JSON document that a command answers with."""
    done = subprocess.run([binary, *map(str, arguments), "--json", "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"evomerge {arguments[0]}: exit {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def recipe(method, base, sources, density=None, weight=None):
    """A mergekit configuration (JSON is YAML)."""
    parameters = {"weight": 1 / len(sources) if weight is None else weight} | ({"density": density} if density else {})
    models = [{"model": str(source), "parameters": parameters} for source in sources]
    return json.dumps({"merge_method": method, "models": models} | ({"base_model": str(base)} if method != "linear" else {}))


def scoring_run(base, models, tasks):
    """A run file that scores models, as its sources, on (name, data, metric) tasks. The uniform soup it adds is not used."""
    lines = ['name = "scores"', "seed = 1", "[models]", f"base = {json.dumps(str(base))}",
             f"sources = {json.dumps([str(model) for model in models])}", "[strategy]", 'kind = "uniform-soup"', "[budget]",
             f"evaluations = {len(models) + 2}", "[evaluator]", 'kind = "native"']
    for name, data, metric in tasks:
        lines += ["[[tasks]]", f"name = {json.dumps(name)}", f"data = {json.dumps(str(data))}", f"metric = {json.dumps(metric)}"]
    return "\n".join(lines) + "\n"


def scores_by_sample(ledger_file, metrics):
    """Model name -> task -> the samples' scores in order of their ids."""
    with sqlite3.connect(f"file:{ledger_file}?mode=ro", uri=True) as ledger:
        rows = ledger.execute('SELECT origin, tasks FROM asked JOIN told USING ("index")').fetchall()
    scores = {}
    for origin, tasks in rows:
        by_task = {}
        for task, answer in json.loads(tasks).items():
            samples = answer["per_sample"]
            by_task[task] = [score for _, score in sorted(zip(samples["ids"], samples["scores"][metrics[task]]))]
        scores[origin.removeprefix("source:")] = by_task
    return scores


def average(models):
    """The mean of several models' scores, sample by sample."""
    return {task: [statistics.fmean(values) for values in zip(*(model[task] for model in models))] for task in models[0]}


def objective(model, part):
    return statistics.fmean(statistics.fmean(scores) for task, scores in model.items() if task.startswith(part))


def difference(winner, other):
    """Winner less other on the hold-out, and its 95 % interval."""
    tasks = [[mine - theirs for mine, theirs in zip(winner[task], other[task], strict=True)]
             for task in sorted(winner) if task.startswith("holdout.")]
    dice = random.Random(1)
    draws = sorted(sum(sum(dice.choices(task, k=len(task))) / len(task) for task in tasks) / len(tasks) for _ in range(DRAWS))
    return (statistics.fmean(map(statistics.fmean, tasks)), draws[round(0.025 * DRAWS)], draws[round(0.975 * DRAWS) - 1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="seed of the search, instead of the run file's")
    parser.add_argument("--masks", type=int, default=5, help="mask seeds of the DARE methods")
    parser.add_argument("--binary", default="target/release/evomerge")
    options = parser.parse_args()
    if options.masks < 1:
        parser.error("--masks must be at least 1")

    run = tomllib.loads(RUN_FILE.read_text())
    path = lambda text: (RUN_FILE.parent / text).resolve()
    base, sources = path(run["models"]["base"]), [path(source) for source in run["models"]["sources"]]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        seed = [] if options.seed is None else ["--seed", options.seed]
        report = evomerge(options.binary, "search", RUN_FILE, "--results", folder, *seed)

        merged = []

        def merge(name, source, *more):
            if not isinstance(source, pathlib.Path):
                source, text = folder / f"{name}.yml", source
                source.write_text(text)
            merged.append(folder / "models" / name)
            evomerge(options.binary, "merge", source, "--out", merged[-1], *more)
            return name

        (folder / "models").mkdir()
        rows = [("winner of the search", [merge("winner", folder / run["name"] / "best" / "recipe.toml")]), ("base", ["base"])]
        rows += [(f"`{source.name}`", [source.name]) for source in sources]
        rows.append(("uniform soup", [merge("uniform", recipe("linear", base, sources))]))
        members = [sources[member] for member in report["soup"]["members"]]
        rows.append(("greedy soup", [merge("greedy", recipe("linear", base, members))]))
        for row, (title, method, density, weight, drawn) in enumerate(FIXED):
            text = recipe(method, base, sources, density, weight)
            masks = range(1, options.masks + 1) if drawn else [1]
            rows.append((title, [merge(f"fixed-{row}-{mask}", text, "--seed", mask) for mask in masks]))

        tasks = []
        for task in run["tasks"]:
            tasks.append((f"search.{task['name']}", path(task["data"]), task["metric"]))
            tasks.append((f"holdout.{task['name']}", path(run["holdout"]["tasks"][task["name"]]["data"]), task["metric"]))
        (folder / "scores.toml").write_text(scoring_run(base, sources + merged, tasks))
        evomerge(options.binary, "search", folder / "scores.toml", "--results", folder)
        scores = scores_by_sample(folder / "scores" / "ledger.sqlite", {name: metric for name, _, metric in tasks})

    models = [(title, average([scores[name] for name in names])) for title, names in rows]
    winner = models[0][1]
    print("| model | search | hold-out | winner less it, hold-out |")
    print("| --- | ---: | ---: | --- |")
    for row, (title, model) in enumerate(models):
        cell = ""
        if row > 0:
            mean, low, high = difference(winner, model)
            cell = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        print(f"| {title} | {objective(model, 'search.'):.4f} | {objective(model, 'holdout.'):.4f} | {cell} |")
    expected = report["winner"]["holdout_score"]
    if abs(objective(winner, "holdout.") - expected) > 1e-9:
        sys.exit(f"the winner scores {objective(winner, 'holdout.')} here and {expected} in the search")


if __name__ == "__main__":
    main()
