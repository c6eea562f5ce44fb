"""What the tests of the benchmarks share: a benchmark in a process of its own, and what the harness' classes are.

Owns how a benchmark is run, and how the table that it prints is read. Knows nothing of what is in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.broker import MissingError as MissingError
from bench.broker import mosquitto as mosquitto
from bench.harness.delivery import SLACK as SLACK
from bench.harness.delivery import Delivery as Delivery
from bench.harness.delivery import Final as Final
from bench.harness.delivery import Outage as Outage
from bench.harness.delivery import check as check
from bench.harness.delivery import disordered as disordered
from bench.harness.recordings import RATE as RATE
from bench.harness.recordings import sentences as sentences

ROOT = Path(__file__).parent.parent.parent


def benchmark(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m bench.NAME` to its end, with what it prints."""
    return subprocess.run(
        [sys.executable, "-m", f"bench.{name}", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def every_promise_held(done: subprocess.CompletedProcess[str]) -> str:
    """Return what it printed."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().splitlines()[-1].startswith("**Every promise held: ")
    return done.stdout


def run(name: str, *arguments: str) -> str:
    """Run a benchmark that ends well, and return what it printed."""
    done = benchmark(name, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(output: str) -> list[list[str]]:
    """Return the rows of the printed table, without its header."""
    lines = [line for line in output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
