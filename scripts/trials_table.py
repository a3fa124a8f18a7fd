"""trials.csv without what differs between two runs of the same search."""

import csv

TIMING_COLUMNS = {"materialize_s", "evaluate_s", "started_at", "finished_at", "attempts"}


def rows_without_timings(folder):
    """The rows of trials.csv in a run's folder, without timings and attempts."""
    with open(folder / "trials.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMING_COLUMNS} for row in csv.DictReader(file)]
