"""What the way to a cluster costs a batch, beside the way to a process on this machine.

Owns the batches and the table. The same engine, which keeps a stated pace, is in a replica on a cluster of this machine
and in a process of its own. They take turns, one batch at a time. The overhead is what a batch took, less what its
engine took for it. The network between machines is not in it: on it a second of audio has 64 kB.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence

import numpy as np

from bench.cluster.engines import Engines, at_pace
from bench.cluster.hosts import BATCH, job, loaded, settings
from bench.cluster.local import cluster
from bench.table import circumstances, table
from daemon.engines.cluster.host import ClusterHost
from daemon.engines.process_host import ProcessHost
from daemon.engines.worker import Worker
from distillation.arguments import count

_WARMING = 5
"""Batches of each kind that are not counted."""

COLUMNS = ["jobs in the batch", "seconds of audio each", "process: overhead ms", "cluster: overhead ms",
           "process: batch ms", "cluster: batch ms"]  # fmt: skip


async def _took(worker: Worker, rows: int, seconds: float) -> tuple[float, float]:
    """Return the milliseconds that a batch took, and those of them that its engine did not."""
    jobs = [job(seconds)] * rows
    began = time.monotonic()
    ran = await worker.submit(jobs)
    whole = time.monotonic() - began
    return 1000 * whole, 1000 * (whole - ran.seconds)


async def _row(workers: Sequence[Worker], rows: int, seconds: float, rounds: int) -> list[object]:
    """Measure a kind of batch on all workers, in turns."""
    taken: list[list[tuple[float, float]]] = [[] for _ in workers]
    for number in range(_WARMING + rounds):
        for worker, own in zip(workers, taken, strict=True):
            both = await _took(worker, rows, seconds)
            if number >= _WARMING:
                own.append(both)
    overheads = [_percentiles([over for _, over in own]) for own in taken]
    wholes = [_percentiles([whole for whole, _ in own]) for own in taken]
    return [rows, f"{seconds:g}", *overheads, *wholes]


def _percentiles(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in np.percentile(values, [50, 95]))


async def _rows(address: str, engines: Engines, options: argparse.Namespace) -> list[list[object]]:
    own = settings(address)
    async with loaded(ProcessHost(own, engines.load)) as process, loaded(ClusterHost(own)) as replicas:
        workers: list[Worker] = [process, replicas.workers[0]]
        return [
            await _row(workers, rows, seconds, options.rounds) for rows in (1, BATCH) for seconds in options.seconds
        ]


# --- the part --------------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--rounds", type=count, default=100, help="batches of each kind that are counted (100)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 5.0, 30.0], help="of audio (1 5 30)")
    parser.add_argument("--batch-ms", type=float, default=8.0, help="of the engine for each batch (8)")
    parser.add_argument("--row-ms", type=float, default=0.2, help="and for each row in it (0.2)")


def measure(options: argparse.Namespace) -> int:
    """Measure all kinds of batches and print the table."""
    engines = at_pace(options.batch_ms, options.row_ms)
    with cluster(1) as machines:
        machines.deploy(engines.load, engines.digest)
        rows = asyncio.run(_rows(machines.address, engines, options))
    print(
        f"{circumstances()}\n\n{engines.words} {options.rounds} batches of each kind, in turns. "
        "Milliseconds p50 / p95.\n"
    )
    print(table(COLUMNS, rows))
    return 0
