#!/usr/bin/env python3
"""Runs other optimizers on the landscapes of examples/landscape: same merges, same masks, same scores as ours.

  landscape_peers.py --landscape target/release/examples/landscape --zoo evals/digits/tasks --images tasks.safetensors \\
      --space dare8 [--peers optuna_tpe,cma_05] [--seeds 0-9] [--budget 1000]

Needs `pip install numpy cma cmaes pymoo optuna nevergrad`. One JSON line a run, as examples/landscape prints them, so that
scripts/landscape_table.py takes both. Every optimizer sees numbers from 0 to 1 and one evaluation at a time; each has the settings
that its own documentation or the merging tool that uses it gives.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy

BUDGETS = (50, 100, 200, 300, 500, 1000)
warnings.filterwarnings("ignore")


class Spent(Exception):
    """The budget is used up."""


class Landscape:
    """The evaluator, and the run's record: maximizes the mean accuracy."""

    def __init__(self, arguments):
        command = [arguments.landscape, "--zoo", arguments.zoo, "--images", arguments.images, "--space", arguments.space, "--listen"]
        environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.names = json.loads(self.process.stdout.readline())["genes"]
        self.size = len(self.names)
        # Which genes are weights: the others are densities.
        self.weights = numpy.array([name.startswith("weight.") for name in self.names])
        self.sources = len({name.split(".")[1] for name in self.names if "." in name})
        # The middles of three choices' shares of the unit interval, for those who know what a choice is.
        self.methods = [1 / 6, 1 / 2, 5 / 6]

    def ask(self, genes, split):
        genes = [float(value) for value in numpy.clip(genes, 0.0, 1.0)]
        self.process.stdin.write(json.dumps({"genes": genes, "split": split}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit("error: the landscape ended; what it says is above")
        return json.loads(line)

    def begin(self, budget):
        self.budget, self.count, self.best, self.seconds = budget, 0, [], 0.0

    def tasks(self, genes):
        if self.count >= self.budget:
            raise Spent
        start = time.perf_counter()
        answer = self.ask(genes, "validation")
        self.seconds += time.perf_counter() - start
        self.count += 1
        if not self.best or answer["mean"] > self.best[-1][1] + 1e-12:
            self.best.append((self.count, answer["mean"], numpy.array(genes, float)))
        self.last = answer["mean"]
        return answer["tasks"]

    def __call__(self, genes):
        self.tasks(genes)
        return self.last

    def record(self):
        at, tested = {}, {}
        for budget in BUDGETS:
            if budget > self.count:
                break
            found, value, genes = [entry for entry in self.best if entry[0] <= budget][-1]
            if found not in tested:
                tested[found] = self.ask(genes, "test")["mean"]
            at[budget] = {"val": value, "test": tested[found], "found": found}
        return at


def random(score, seed):
    generator = numpy.random.default_rng(seed)
    while True:
        score(generator.random(score.size))


def hill(score, seed):
    """A (1+1) evolution strategy with the 1/5 rule from the centre: the simplest local search."""
    generator = numpy.random.default_rng(seed)
    best, step = numpy.full(score.size, 0.5), 0.2
    value = score(best)
    while True:
        other = numpy.clip(best + step * generator.normal(size=score.size), 0, 1)
        found = score(other)
        if found >= value:
            best, value, step = other, found, min(step * 1.5, 0.5)
        else:
            step = max(step * 0.9, 0.01)


def optuna(sampler):
    def run(score, seed):
        import optuna as library

        library.logging.set_verbosity(library.logging.ERROR)
        study = library.create_study(direction="maximize", sampler=sampler(library.samplers, seed))
        def suggest(trial, name):
            if name == "method":
                return trial.suggest_categorical(name, score.methods)
            return trial.suggest_float(name, 0, 1)

        study.optimize(lambda trial: score([suggest(trial, name) for name in score.names]), n_trials=score.budget + 1)

    return run


def cma(start, **options):
    """pycma; restarted where it stops early, on a plateau."""

    def run(score, seed):
        import cma as library

        restart = 1
        while True:
            strategy = library.CMAEvolutionStrategy(start(score), 1 / 6, {"seed": seed * 1000 + restart, "verbose": -9, **options})
            while not strategy.stop():
                points = strategy.ask()
                strategy.tell(points, [-score(numpy.abs(point)) for point in points])
            restart += 1

    return run


def centre(score):
    return numpy.full(score.size, 0.5)


def as_mergekit_evolve(score):
    """The uniform soup, everything kept."""
    return numpy.where(score.weights, 1 / score.sources, 1.0)


def pymoo(algorithm, several=False, seeded=False):
    """pymoo with the operators of mergenetic; `seeded` puts four merges with equal weights into the first population."""

    def run(score, seed):
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.algorithms.soo.nonconvex.ga import GA
        from pymoo.core.problem import ElementwiseProblem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.optimize import minimize

        tasks = sorted(score.ask(centre(score), "validation")["tasks"])

        class Problem(ElementwiseProblem):
            def __init__(self):
                super().__init__(n_var=score.size, n_obj=len(tasks) if several else 1, xl=numpy.zeros(score.size), xu=numpy.ones(score.size))

            def _evaluate(self, x, out, *_, **__):
                scores = score.tasks(x)
                out["F"] = [-scores[task] for task in tasks] if several else [-score.last]

        settings = {"pop_size": 25, "crossover": SBX(), "mutation": PM(), "eliminate_duplicates": True}
        if seeded:
            population = numpy.random.default_rng(seed).random((25, score.size))
            for index, weight in enumerate((0.2, 0.3, 0.4, 0.5)):
                population[index] = numpy.where(score.weights, weight, 1.0 if index % 2 else 0.5)
            settings["sampling"] = population
        minimize(Problem(), {"ga": GA, "nsga2": NSGA2}[algorithm](**settings), ("n_gen", 10**6), seed=seed, verbose=False)

    return run


def nevergrad(name):
    def run(score, seed):
        import nevergrad as library

        array = library.p.Array(init=centre(score)).set_bounds(0, 1)
        array.random_state.seed(seed)
        optimizer = library.optimizers.registry[name](parametrization=array, budget=score.budget)
        while True:
            candidate = optimizer.ask()
            optimizer.tell(candidate, -score(candidate.value))

    return run


PEERS = {
    "random": random,
    "hill": hill,
    "optuna_tpe": optuna(lambda samplers, seed: samplers.TPESampler(seed=seed)),
    "optuna_cma": optuna(lambda samplers, seed: samplers.CmaEsSampler(seed=seed)),
    "optuna_gp": optuna(lambda samplers, seed: samplers.GPSampler(seed=seed, deterministic_objective=True)),
    "cma_05": cma(centre, bounds=[0, 1]),
    "cma_mergekit": cma(as_mergekit_evolve),
    "pymoo_ga": pymoo("ga"),
    "pymoo_ga_seeded": pymoo("ga", seeded=True),
    "pymoo_nsga2": pymoo("nsga2", several=True),
    "ng_ngopt": nevergrad("NGOpt"),
    "ng_2pde": nevergrad("TwoPointsDE"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--landscape", default="target/release/examples/landscape")
    parser.add_argument("--zoo", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--space", required=True)
    parser.add_argument("--peers", default=",".join(peer for peer in PEERS if peer != "optuna_gp"), help="all but optuna_gp, which needs torch")
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--budget", type=int, default=1000)
    arguments = parser.parse_args()
    peers = arguments.peers.split(",")
    if unknown := [peer for peer in peers if peer not in PEERS]:
        parser.error(f"unknown peers {', '.join(unknown)}; there are {', '.join(PEERS)}")
    first, _, last = arguments.seeds.partition("-")
    landscape = Landscape(arguments)
    for seed in range(int(first), int(last or first) + 1):
        for peer in peers:
            numpy.random.seed(seed)
            landscape.begin(arguments.budget)
            start = time.perf_counter()
            try:
                PEERS[peer](landscape, seed)
            except Spent:
                pass
            run = {"zoo": os.path.basename(os.path.normpath(arguments.zoo)), "space": arguments.space, "method": peer, "seed": seed,
                   "n": landscape.count, "wall_s": round(time.perf_counter() - start, 2), "eval_s": round(landscape.seconds, 2),
                   "at": landscape.record(), "inc": [[found, round(value, 5)] for found, value, _ in landscape.best]}
            print(json.dumps(run), flush=True)


if __name__ == "__main__":
    main()
