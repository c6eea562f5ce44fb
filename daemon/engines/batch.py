"""A batch that ran: its results, how long it took, and what failed in it.

Owns what an engine tells of a batch, wherever the engine lives: everything here is picklable. Knows nothing of who
asked, or of metrics.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from streaming.job import Job, Result, isolated, out_of_memory


class RaisedThereError(Exception):
    """An exception of an engine, which may live in another process: a traceback in words, for the log."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that raised. Its jobs ran again in halves, unless it was one alone.

    Attributes:
        jobs: how many it had.
        no_memory: whether they did not fit into memory.
        reason: the error, in a line.
        trace: where it was raised.
    """

    jobs: int
    no_memory: bool
    reason: str
    trace: str


@dataclass(frozen=True, slots=True)
class Ran:
    """A batch that ran.

    Attributes:
        seconds: that the engine took. What an event loop is late by is not the engine's work.
        results: one for each job, in order.
        failures: runs of it that raised.
    """

    seconds: float
    results: list[Result]
    failures: list[Failure] = field(default_factory=list)


def run_batch(run: Callable[[Sequence[Job]], list[Result]], jobs: Sequence[Job]) -> Ran:
    """Run a batch, whatever its jobs do (see `streaming.job.isolated`)."""
    failures: list[Failure] = []

    def failed(part: Sequence[Job], error: Exception) -> None:
        trace = "".join(traceback.format_exception(error)).rstrip()
        failures.append(Failure(len(part), out_of_memory(error), str(error).partition("\n")[0], trace))

    began = time.monotonic()
    results = isolated(run, jobs, failed)
    return Ran(time.monotonic() - began, results, failures)
