"""The digits eval endpoint as a child process, for scripts that search through it. Needs numpy in the child."""

import contextlib
import pathlib
import subprocess
import sys

EVALS = pathlib.Path(__file__).resolve().parent.parent / "evals" / "digits"


@contextlib.contextmanager
def endpoint(zoo, *options):
    """Serves the zoo folder on a free port, with more options of eval_endpoint.py, and gives the address."""
    command = [sys.executable, str(EVALS / "eval_endpoint.py"), "--zoo", str(zoo), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.wait()
