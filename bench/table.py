"""Markdown tables of figures, with where and when they were measured.

Owns how figures are written. Knows nothing of what is measured.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np

from distillation.tables import table as table  # one way to write a table


def percentiles(values: Sequence[float]) -> str:
    """Return the median and the 95th and 99th percentiles, as "p50 / p95 / p99"."""
    return " / ".join(f"{value:.0f}" for value in np.percentile(values, [50, 95, 99])) if values else "none"


def circumstances() -> str:
    """Return date, commit, hardware and command: without them a figure says nothing."""
    spec = sys.modules["__main__"].__spec__
    said = f"python -m {spec.name.removesuffix('.__main__')}" if spec is not None else Path(sys.argv[0]).stem
    command = " ".join([said, *sys.argv[1:]])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return (
        f"{date.today()}, commit {commit.stdout.strip() or 'unknown'}, {os.cpu_count()} cores of {_processor()}, "
        f"Python {platform.python_version()}: `{command}`"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
