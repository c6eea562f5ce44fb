"""What more replicas carry, where the daemon's side becomes the limit, and who had better make the batches.

Owns the load and both tables. The daemon's own scheduler keeps all replicas busy with full batches, of jobs from more
clients than these hold, each with its next job as soon as the last one's result is there. Ideal is what the engines'
pace alone would allow. What a core carries is computed from the processor time that the daemon's two
processes took; each has one event loop, and so at most a core.

Batches that the daemon makes are compared with Ray Serve's own (`@serve.batch`), to which each job goes alone: as many
replicas and clients, the same engine, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import psutil

from bench.cluster.engines import Engines, at_pace
from bench.cluster.hosts import BATCH, bridges, cpu_seconds, job, loaded, settings
from bench.cluster.local import LocalCluster, cluster, until
from bench.harness.daemon import PATIENCE
from bench.table import circumstances, table
from bench.tasks import background, wait_until
from daemon.common.metrics import Metrics
from daemon.core.scheduler import Kind, Scheduler
from daemon.engines.cluster.host import ClusterHost
from daemon.settings.schema import Settings
from distillation.arguments import count
from streaming.job import Job, Result

_SETTLE = 1.0
"""Seconds of load that are not counted."""

_CLIENTS = 4 * BATCH
"""For each replica: a batch that runs, one that waits, and others who come meanwhile."""

_WAIT = 0.01
"""Seconds that Serve waits for a batch to fill."""

_TURNS = 3
"""Of each way to make batches."""

_COMPARED = 2
"""Replicas with which both ways are compared."""

SCALE = ["replicas", "jobs/s", "ideal", "of it", "p95 ms", "cores: daemon", "bridge", "replicas'", "idle",
         "a core carries, jobs/s: daemon", "bridge"]  # fmt: skip
BATCHING = ["batches are made by", "jobs/s", "p50 ms", "p95 ms", "cores: this side"]


@dataclass
class _Done:
    """What came of a load.

    Attributes:
        seconds: that each job took that was done, from when its client had it.
    """

    seconds: list[float] = field(default_factory=list)

    def percentile(self, of: float) -> str:
        return f"{1000 * np.percentile(self.seconds, of):.0f}" if self.seconds else "none"


class _Client:
    """A client of the scheduler that always has a job."""

    def __init__(self, scheduler: Scheduler, asked: Job, done: _Done) -> None:
        self._scheduler, self._job, self._done = scheduler, asked, done
        self._since = time.monotonic()
        self._waits = True
        scheduler.add(self)
        scheduler.schedule(self)

    def pending(self) -> Kind | None:
        return "partial" if self._waits else None

    def next_job(self) -> Job | None:
        self._waits = False
        return self._job

    def receive_result(self, result: Result) -> None:
        if result.error is not None:
            raise RuntimeError(result.error)
        now = time.monotonic()
        self._done.seconds.append(now - self._since)
        self._since, self._waits = now, True
        self._scheduler.schedule(self)

    def broke(self, error: Exception) -> None:
        raise error


@dataclass(frozen=True, slots=True)
class _Load:
    """A time under load.

    Attributes:
        done: what was done in it.
        seconds: how long it was.
        cores: that each group of processes used.
        idle: cores of the machine that nobody used.
    """

    done: _Done
    seconds: float
    cores: tuple[float, ...]
    idle: float

    @property
    def rate(self) -> float:
        return len(self.done.seconds) / self.seconds


async def _loaded(done: _Done, seconds: float, *groups: list[int]) -> _Load:
    """Count what is done in so many seconds, while whoever does it runs, and the cores of groups of processes."""
    await asyncio.sleep(_SETTLE)
    done.seconds.clear()
    before, began, unused = [cpu_seconds(group) for group in groups], time.monotonic(), psutil.cpu_times().idle
    await asyncio.sleep(seconds)
    elapsed, unused = time.monotonic() - began, psutil.cpu_times().idle - unused
    after = [cpu_seconds(group) for group in groups]
    cores = tuple((late - early) / elapsed for early, late in zip(before, after, strict=True))
    return _Load(_Done(list(done.seconds)), elapsed, cores, unused / elapsed)


@asynccontextmanager
async def _scheduled(host: ClusterHost, clients: int, asked: Job) -> AsyncIterator[_Done]:
    """Let clients have jobs for a host, through the daemon's scheduler, for as long as the block runs."""
    scheduler, done = Scheduler(host.workers, BATCH, Metrics()), _Done()
    host.watch(scheduler.look_again)
    everybody = [_Client(scheduler, asked, done) for _ in range(clients)]
    async with background(scheduler.run()):
        yield done
        for client in everybody:
            scheduler.remove(client)
        await wait_until(lambda: scheduler.busy_since is None, PATIENCE)  # what runs is of this load


# --- more replicas ---------------------------------------------------------------------------------------------------


async def _scale(machines: LocalCluster, engines: Engines, options: argparse.Namespace) -> list[list[object]]:
    rows: list[list[object]] = []
    ideal = 1000 * BATCH / (options.batch_ms + BATCH * options.row_ms)
    async with loaded(ClusterHost(settings(machines.address))) as host:
        for replicas in options.replicas:
            await asyncio.to_thread(_deploy, machines, engines, replicas)
            if not await wait_until(partial(_has, host, replicas), PATIENCE):
                raise TimeoutError("the daemon's side does not see all replicas")
            groups = [os.getpid()], bridges(), machines.replicas()
            async with _scheduled(host, _CLIENTS * replicas, job(options.seconds_of_audio)) as done:
                load = await _loaded(done, options.seconds, *groups)
            own, bridge, theirs = load.cores
            rows.append([replicas, f"{load.rate:.0f}", f"{replicas * ideal:.0f}",
                         f"{load.rate / (replicas * ideal):.0%}", load.done.percentile(95),
                         f"{own:.2f}", f"{bridge:.2f}", f"{theirs:.2f}", f"{load.idle:.2f}",
                         f"{load.rate / own:.0f}", f"{load.rate / bridge:.0f}"])  # fmt: skip
    return rows


def _has(host: ClusterHost, replicas: int) -> bool:
    return host.replicas == replicas


def _deploy(machines: LocalCluster, engines: Engines, replicas: int) -> None:
    machines.deploy(engines.load, engines.digest, replicas, engines.sections, version=engines.version)


# --- who makes the batches -------------------------------------------------------------------------------------------


def _serves_own(engines: Engines) -> Any:
    """Deploy the engine so that Ray Serve makes its batches, and return a handle: it takes one job at a time."""
    from ray import serve

    class Batching:
        def __init__(self) -> None:
            self._engine = engines.load(Settings())

        @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=_WAIT)
        async def run(self, jobs: list[Job]) -> list[Result]:
            return await asyncio.to_thread(self._engine.run, jobs)

    deployment = serve.deployment(
        name="batching",
        num_replicas=_COMPARED,
        max_ongoing_requests=4 * BATCH,
        ray_actor_options={"num_cpus": 1},
    )(Batching)
    return serve.run(deployment.bind(), name="batching", route_prefix=None).run


async def _alone(call: Callable[[Job], Awaitable[Result]], asked: Job, done: _Done) -> None:
    """Send a job alone, and the next when its result is there, for ever."""
    while True:
        began = time.monotonic()
        await call(asked)
        done.seconds.append(time.monotonic() - began)


async def _batching(machines: LocalCluster, handle: Any, options: argparse.Namespace) -> list[list[object]]:
    asked, clients = job(options.seconds_of_audio), _CLIENTS * _COMPARED
    ours: list[_Load] = []
    theirs: list[_Load] = []
    async with loaded(ClusterHost(settings(machines.address))) as host:
        for _ in range(_TURNS):
            async with _scheduled(host, clients, asked) as done:
                ours.append(await _loaded(done, options.seconds, [os.getpid(), *bridges()]))
            done = _Done()
            async with background(*(_alone(handle.remote, asked, done) for _ in range(clients))):
                theirs.append(await _loaded(done, options.seconds, [os.getpid()]))
    return [_compared("the daemon", ours), _compared("Ray Serve", theirs)]


def _compared(who: str, loads: list[_Load]) -> list[object]:
    done = _Done([each for load in loads for each in load.done.seconds])
    rate = len(done.seconds) / sum(load.seconds for load in loads)
    cores = sum(load.cores[0] for load in loads) / len(loads)
    return [who, f"{rate:.0f}", done.percentile(50), done.percentile(95), f"{cores:.2f}"]


# --- the part --------------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--replicas", type=count, nargs="+", default=[1, 2, 4, 8], help="(1 2 4 8)")
    parser.add_argument("--seconds", type=float, default=5.0, help="that each load lasts (5)")
    parser.add_argument("--seconds-of-audio", type=float, default=2.0, help="that each job has (2)")
    parser.add_argument("--batch-ms", type=float, default=8.0, help="of the engine for each batch (8)")
    parser.add_argument("--row-ms", type=float, default=0.0, help="and for each row in it (0)")


def measure(options: argparse.Namespace) -> int:
    """Measure both and print the tables."""
    engines = at_pace(options.batch_ms, options.row_ms)
    most = max([*options.replicas, 2 * _COMPARED])
    with cluster(1, most) as machines:
        _deploy(machines, engines, options.replicas[0])
        rows = asyncio.run(_scale(machines, engines, options))
        _deploy(machines, engines, _COMPARED)
        until(lambda: machines.running() == _COMPARED)
        handle = _serves_own(engines)
        compared = asyncio.run(_batching(machines, handle, options))
        handle.shutdown()  # what is on its way would have Ray begin again when it has ended
    print(
        f"{circumstances()}\n\n{engines.words} Jobs of {options.seconds_of_audio:g} s, {BATCH} in a full batch; "
        f"{_CLIENTS} clients for each replica, {options.seconds:g} s each.\n"
    )
    print(table(SCALE, rows))
    print(f"\n{_COMPARED} replicas, {_CLIENTS * _COMPARED} clients, {_TURNS} turns of {options.seconds:g} s each:\n")
    print(table(BATCHING, compared))
    return 0
