#!/usr/bin/env python3
"""Kills a search with SIGKILL again and again, lets it finish, and compares it with one that ran undisturbed.

  kill_storm.py RUN.toml [--kills 20] [--seed 1] [--binary target/release/evomerge] [more options of `evomerge search`]

Shown, or the script fails: the same best recipe and the same trials.csv (timings aside), and no recorded evaluation asked
again after a restart.
"""

import argparse
import pathlib
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib

from trials_table import rows_without_timings


def search(options, results):
    return [options.binary, "search", options.run_file, "--results", str(results), "--quiet", *options.extra]


def best_hash(folder):
    with sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True) as ledger:
        row = ledger.execute('SELECT recipe_sha256 FROM asked JOIN told USING ("index") WHERE objective IS NOT NULL '
                             'ORDER BY objective DESC, "index" LIMIT 1').fetchone()
    return row and row[0]


def recorded(folder):
    """Indices told so far and the number of the last event."""
    path = folder / "ledger.sqlite"
    if not path.exists():
        return set(), 0
    with sqlite3.connect(path, timeout=30) as ledger:
        try:
            told = {index for (index,) in ledger.execute('SELECT "index" FROM told')}
            last = ledger.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0]
        except sqlite3.OperationalError:
            return set(), 0
    return told, last


def asked_again(folder, restarts):
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        attempts = ledger.execute("SELECT seq, \"index\" FROM events WHERE kind = 'attempted'").fetchall()
    return sorted({index for told, last in restarts for seq, index in attempts if seq > last and index in told})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--binary", default="target/release/evomerge")
    options, extra = parser.parse_known_args()
    options.extra = extra
    name = tomllib.loads(pathlib.Path(options.run_file).read_text())["name"]
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        calm, stormy = pathlib.Path(scratch, "calm"), pathlib.Path(scratch, "stormy")
        started = time.monotonic()
        subprocess.run(search(options, calm), check=True, stdout=subprocess.DEVNULL)
        duration = time.monotonic() - started
        restarts, kills = [], 0
        while kills < options.kills:
            process = subprocess.Popen(search(options, stormy), stdout=subprocess.DEVNULL)
            try:
                # Spread over the run: each start gets a little further than the last one.
                process.wait(timeout=dice.uniform(0.02, max(0.2, 1.5 * duration / options.kills)))
                print(f"finished by itself after {kills} kills", flush=True)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                restarts.append(recorded(stormy / name))
                print(f"kill {kills}: {len(restarts[-1][0])} evaluations recorded", flush=True)
        subprocess.run(search(options, stormy), check=True, stdout=subprocess.DEVNULL)
        again = asked_again(stormy / name, restarts)
        faults = []
        if again:
            faults.append(f"recorded evaluations asked again: {again}")
        if best_hash(calm / name) != best_hash(stormy / name):
            faults.append("the best recipes differ")
        undisturbed, disturbed = rows_without_timings(calm / name), rows_without_timings(stormy / name)
        if undisturbed != disturbed:
            different = [first["index"] for first, second in zip(undisturbed, disturbed) if first != second]
            faults.append(f"trials.csv differs: {len(undisturbed)} and {len(disturbed)} rows, first differences {different[:5]}")
        print(f"{kills} kills, {len(disturbed)} evaluations, best {best_hash(stormy / name)}")
        for fault in faults:
            print("FAULT:", fault)
        print(f"{3 - len(faults)} passed, {len(faults)} failed")
        return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
