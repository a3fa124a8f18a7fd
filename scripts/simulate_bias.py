#!/usr/bin/env python3
"""How far `evomerge simulate` is off where few samples are recorded: its numbers beside the truth, on made-up candidates.

  simulate_bias.py [--files 40] [--binary target/release/evomerge]

72 candidates of known rates; a file has 50 or 200 independent scores of 0 or 1 of each. `simulate` replays a quarter of the
recorded samples, and as many as there are; the truth scores the same candidates on as many new samples and chooses the best.
Printed is a Markdown table of means over the files (each with rates drawn anew, where they are drawn).
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import tempfile

CANDIDATES = 72
REPETITIONS = 400


def equal(draws: random.Random) -> list[float]:
    return [0.5] * CANDIDATES


def close(draws: random.Random) -> list[float]:
    return [draws.gauss(0.5, 0.02) for _ in range(CANDIDATES)]


def even(draws: random.Random) -> list[float]:
    return [0.70 + 0.06 * place / (CANDIDATES - 1) for place in range(CANDIDATES)]


def some_bad(draws: random.Random) -> list[float]:
    return [draws.uniform(0, 0.55) if draws.random() < 0.25 else draws.gauss(0.6, 0.02) for _ in range(CANDIDATES)]


POPULATIONS = {
    "all 0.5": equal,
    "around 0.5, deviation 0.02": close,
    "evenly 0.70 to 0.76": even,
    "around 0.6, deviation 0.02, a quarter far below": some_bad,
}


def scores(rates: list[float], samples: int, draws: random.Random) -> list[list[int]]:
    return [[int(draws.random() < rate) for _ in range(samples)] for rate in rates]


def replayed(program: pathlib.Path, file: pathlib.Path, rows: list[list[int]], each: list[int]) -> list[tuple[float, float]]:
    lines = ["candidate," + ",".join(map(str, range(len(rows[0]))))]
    lines += [f"c{place}," + ",".join(map(str, row)) for place, row in enumerate(rows)]
    file.write_text("\n".join(lines) + "\n")
    budgets = ",".join(str(CANDIDATES * samples) for samples in each)
    command = [program, "simulate", file, "--budget", budgets, "--repetitions", str(REPETITIONS), "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [(row["uniform"]["regret"], row["uniform"]["over_statement"]) for row in report["budgets"]]


def choice(rates: list[float], samples: int, draws: random.Random) -> tuple[float, float]:
    """Regret and over-statement of the best on new samples."""
    means = [statistics.fmean(row) for row in scores(rates, samples, draws)]
    place = max(range(CANDIDATES), key=lambda place: (means[place], draws.random()))
    return max(rates) - rates[place], means[place] - rates[place]


def mean(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.fmean(pair[0] for pair in pairs), statistics.fmean(pair[1] for pair in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path("target/release/evomerge"))
    options = parser.parse_args()
    program = options.binary.resolve()
    print("| true rates | recorded | replayed | regret, true | regret, replay | over-statement, true | over-statement, replay |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for name, population in POPULATIONS.items():
            for recorded in (50, 200):
                draws = random.Random(f"{name} {recorded}")
                each = [recorded // 4, recorded]
                found = [[] for _ in each]
                truth = [[] for _ in each]
                for _ in range(options.files):
                    rates = population(draws)
                    rows = scores(rates, recorded, draws)
                    for place, pair in enumerate(replayed(program, pathlib.Path(folder) / "scores.csv", rows, each)):
                        found[place].append(pair)
                    for place, samples in enumerate(each):
                        truth[place] += [choice(rates, samples, draws) for _ in range(10)]
                for place, samples in enumerate(each):
                    (true_regret, true_over), (regret, over) = mean(truth[place]), mean(found[place])
                    print(
                        f"| {name} | {recorded} | {samples} | {true_regret:.3f} | {regret:.3f} | {true_over:+.3f} | {over:+.3f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
