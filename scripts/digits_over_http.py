#!/usr/bin/env python3
"""The search of search-spaces/digits-http.toml through two endpoints at once, and its hold-out on a third.

  digits_over_http.py [--binary target/release/evomerge] [--evaluations 60] [--fault-rate 0.05]

Needs numpy (for the endpoints). Fails unless the search ends with a verdict and both endpoints answered.
"""

import argparse
import collections
import json
import pathlib
import re
import sqlite3
import subprocess
import sys
import tempfile

from digits_endpoint import EVALS, endpoint

ROOT = pathlib.Path(__file__).resolve().parent.parent
ZOO = EVALS / "tasks"


def run_file(folder, first, second, holdout):
    """The shipped run file with other ports."""
    text = (ROOT / "search-spaces" / "digits-http.toml").read_text()
    for port, address in ((8431, first), (8432, second), (8433, holdout)):
        text = text.replace(f"http://127.0.0.1:{port}", address)
    text = re.sub(r'"\.\./evals', f'"{ROOT}/evals', text)
    path = folder / "digits-http.toml"
    path.write_text(text)
    return path


def answers(ledger):
    with sqlite3.connect(ledger) as connection:
        events = [json.loads(payload) for (payload,) in connection.execute("SELECT payload FROM events WHERE kind = 'attempted'")]
    return collections.Counter(event["attempt"]["endpoint"] for event in events if not event["attempt"].get("fault"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/evomerge")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--fault-rate", type=float, default=0.05)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, endpoint(ZOO, "--fault-rate", str(options.fault_rate)) as first, \
            endpoint(ZOO) as second, endpoint(ZOO, "--split", "test") as holdout:
        folder = pathlib.Path(scratch)
        command = [options.binary, "search", str(run_file(folder, first, second, holdout)), "--results", scratch,
                   "--max-evaluations", str(options.evaluations), "--json", "--quiet"]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        shares = answers(folder / "digits-http" / "ledger.sqlite")
    print(f"best {report['best']['objective']:.4f} ({report['best']['origin']}), answers by endpoint {dict(shares)}")
    print(report["sentence"])
    checks = [report["evaluations"] == options.evaluations, report["failed"] == 0, len(shares) == 2,
              report["verdict"] in ("improvement", "no_evidence"), report["winner"]["holdout_score"] is not None]
    print(f"{sum(checks)} passed, {len(checks) - sum(checks)} failed")
    return 0 if all(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
