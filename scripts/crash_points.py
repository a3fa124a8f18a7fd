#!/usr/bin/env python3
"""Kills a search exactly at its n-th write, sync or rename, for n = 1, 1 + step, ..., and lets it finish.

  crash_points.py [--step 7] [--evaluations 10] [--binary target/release/evomerge]

Needs strace. After every crash the finished run must equal the undisturbed one: trials.csv (timings aside) and verdict.json.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

from trials_table import rows_without_timings

RUN_FILE = pathlib.Path(__file__).resolve().parent.parent / "search-spaces" / "dry-run.toml"
CALLS = "pwrite64,fdatasync,fsync,rename,renameat2"


def outcome(results):
    folder = results / "dry-run"
    return rows_without_timings(folder), (folder / "verdict.json").read_text()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=7)
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--binary", default="target/release/evomerge")
    options = parser.parse_args()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    passed = failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        def search(results):
            return [options.binary, "search", str(RUN_FILE), "--results", str(results), "--quiet",
                    "--max-evaluations", str(options.evaluations)]

        calm, crashed = pathlib.Path(scratch, "calm"), pathlib.Path(scratch, "crashed")
        subprocess.run(search(calm), check=True, **quiet)
        expected = outcome(calm)
        point = 1
        while True:
            shutil.rmtree(crashed, ignore_errors=True)
            inject = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={CALLS}", "-e", f"inject={CALLS}:signal=SIGKILL:when={point}"]
            finished = subprocess.run(inject + search(crashed), **quiet).returncode == 0
            again = subprocess.run(search(crashed), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if again.returncode == 0 and outcome(crashed) == expected:
                passed += 1
            else:
                failed += 1
                print(f"FAULT at call {point}: {again.stderr.strip() or 'another outcome'}")
            if finished:
                break
            point += options.step
    print(f"crash points up to call {point}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
