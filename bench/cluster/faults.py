"""Streams at the pace of speech while parts of a cluster are killed, replaced, added and taken away: what was lost.

Owns the faults, who speaks meanwhile, and the table. A whole daemon has its engines on a real cluster of two machines'
worth of raylets. Everybody speaks before a fault, while it lasts (until the cluster is whole again, and the daemon says
so) and afterwards, in rounds, each to its end: so it is known what was said, and a final that is not there is lost.

The latency is from when the end of speech was sent to the final's arrival at a subscriber, so it has in it the silence
that closes an utterance (`segment.hangover`). A final belongs to the time in which its speech ended.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from bench.cluster.engines import Engines, at_pace, real
from bench.cluster.local import LocalCluster, cluster, kill, until
from bench.faults.people import PCM, SECONDS, UTTERANCES, stream, witness
from bench.harness.clients import Pacer, Subscriber, tell, until_stopped
from bench.harness.daemon import PATIENCE, Daemon
from bench.harness.delivery import Final, by_source, disordered, first_arrivals
from bench.table import circumstances, table
from distillation.arguments import count

_CPUS = 4
"""Of each raylet, as Ray counts them: all replicas find room on one."""

_PAUSE = bytes(32000)
"""A second of silence between two rounds."""

_FROZEN = 1.0
"""Seconds that a replica stands still before it is killed: there are batches with it then."""

_BATCHES = "whisperd_cluster_batches_total"
_LOST = "whisperd_cluster_lost_batches_total"


@dataclass
class Stage:
    """A cluster, a daemon, and what runs there.

    Attributes:
        machines: the cluster.
        service: the daemon.
        engines: what the replicas have loaded.
        other: what they are to load in a rolling update.
        replicas: how many there are to be.
    """

    machines: LocalCluster
    service: Daemon
    engines: Engines
    other: Engines
    replicas: int

    def deploy(self, replicas: int, engines: Engines | None = None) -> None:
        """Deploy so many replicas. Those with the same engines stay."""
        own = engines or self.engines
        self.machines.deploy(own.load, own.digest, replicas, own.sections, version=own.version)
        self.replicas = replicas

    def whole(self) -> bool:
        """Return whether so many replicas run as there are to be, and the daemon has them all."""
        from ray.exceptions import RayError

        with suppress(RayError, KeyError):  # while its controller is away, the cluster tells nothing
            if self.machines.running() != self.replicas or len(self.machines.replicas()) != self.replicas:
                return False
            _, metrics = self.service.get("/metrics")
            return f"whisperd_cluster_replicas {self.replicas}.0" in metrics and self.service.get("/readyz")[0] == 200
        return False

    def bridge(self) -> int | None:
        """Return the process of the daemon's link to the cluster, if there is one now."""
        for child in psutil.Process(self.service.pid).children():
            with suppress(psutil.Error):  # it has just ended
                if "daemon.engines.cluster.bridge" in child.cmdline():
                    return int(child.pid)
        return None

    def until_whole(self, held: Callable[[], bool] = lambda: True) -> None:
        """Wait until it is whole, and something else holds too."""
        until(lambda: held() and self.whole(), PATIENCE)


# --- the faults ------------------------------------------------------------------------------------------------------


def replica_killed(stage: Stage) -> str:
    victim = stage.machines.replicas()[0]
    kill(victim)
    stage.until_whole(lambda: victim not in stage.machines.replicas())
    return ""


def replica_frozen(stage: Stage) -> str:
    victim = stage.machines.replicas()[0]
    os.kill(victim, signal.SIGSTOP)
    time.sleep(_FROZEN)
    kill(victim)
    stage.until_whole(lambda: victim not in stage.machines.replicas())
    return ""


def raylet_killed(stage: Stage) -> str:
    before = stage.machines.replicas()
    stage.machines.kill_raylet()
    stage.until_whole()
    stage.machines.add_raylet(_CPUS)
    return f"with {len(set(before) - set(stage.machines.replicas()))} of {len(before)} replicas"


def controller_killed(stage: Stage) -> str:
    (victim,) = stage.machines.controllers()
    kill(victim)
    stage.until_whole(lambda: stage.machines.controllers() not in ([], [victim]))
    return ""


def bridge_killed(stage: Stage) -> str:
    victim = stage.bridge()
    assert victim is not None, "the daemon is ready"
    kill(victim)
    stage.until_whole(lambda: stage.bridge() not in (None, victim))
    return ""


def scaled(stage: Stage) -> str:
    for replicas in (3, 1):
        stage.deploy(replicas)
        stage.until_whole()
    return ""


def rolled(stage: Stage) -> str:
    stage.deploy(stage.replicas, stage.other)
    told = "replicas have other models now"
    stage.until_whole(lambda: told in stage.service.log)
    stage.engines, stage.other = stage.other, stage.engines
    return f"the operator was told {stage.service.log.count(told)} time(s)"


class Fault(NamedTuple):
    """What is done to a cluster.

    Attributes:
        act: does it, and returns a remark when all is whole again.
        replicas: that there are before.
    """

    act: Callable[[Stage], str]
    replicas: int = 2


FAULTS: dict[str, Fault] = {
    "a replica killed": Fault(replica_killed),
    "a replica frozen, and killed": Fault(replica_frozen),
    "a raylet killed, and another added": Fault(raylet_killed),
    "Serve's controller killed": Fault(controller_killed),
    "the daemon's bridge killed": Fault(bridge_killed),
    "scaled from 1 to 3 to 1": Fault(scaled, replicas=1),
    "rolled to another student": Fault(rolled),
}
"""Name -> what is done."""


# --- who speaks ------------------------------------------------------------------------------------------------------


@dataclass
class _Talk:
    """What was said.

    Attributes:
        began: when the first sample of each source was sent.
        said: utterances of each source.
        served: sources that were served to their end.
    """

    began: dict[str, float] = field(default_factory=dict)
    said: Counter[str] = field(default_factory=Counter)
    served: int = 0

    async def all_speak(self, service: Daemon, sources: Sequence[str], over: threading.Event) -> Subscriber:
        """Let everybody speak until it is over, and return who has listened to all of it."""
        async with witness(service) as listening:
            async with asyncio.TaskGroup() as everybody:
                for at, source in enumerate(sources):
                    everybody.create_task(self.speak(service, source, SECONDS * at / len(sources), over))
            for source in sources:
                await listening.arrived(source, self.said[source])
        return listening

    async def speak(self, service: Daemon, source: str, after: float, over: threading.Event) -> None:
        """Speak in rounds, each to its end, until it is over."""
        await asyncio.sleep(after)
        async with stream(service, source) as ws:
            served = asyncio.create_task(until_stopped(ws))
            self.began[source] = time.monotonic()
            pacer = Pacer(ws.send)
            while not over.is_set():
                await pacer.say(PCM + _PAUSE)
                self.said[source] += UTTERANCES
            await tell(ws, "stop")
            async with asyncio.timeout(PATIENCE):
                well = await served
            self.served += well

    def ended(self, final: Final) -> float:
        """Return when the end of a final's speech was sent."""
        return self.began[final.source] + final.end


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of what was said.

    Attributes:
        said: utterances.
        arrived: finals, each counted once.
        lost: utterances without a final, and without an error that says so.
        doubled: finals that came again, or of what had one already.
        failed: utterances of which an error said that there will be no final.
        disordered: finals that came before one that is earlier.
        again: batches that were lost, and ran again.
        answered: replicas that ran batches.
        mended: seconds until the cluster was whole again.
        latencies: milliseconds, of speech that ended before, meanwhile and after.
        note: a remark.
    """

    said: int
    arrived: int
    lost: int
    doubled: int
    failed: int
    disordered: int
    again: int
    answered: int
    mended: float
    latencies: tuple[Sequence[float], Sequence[float], Sequence[float]]
    note: str

    @property
    def well(self) -> bool:
        return not (self.lost or self.doubled or self.failed or self.disordered)

    def row(self) -> list[object]:
        return [self.said, self.arrived, self.lost, self.doubled, self.failed, self.disordered, self.again,
                self.answered, f"{self.mended:.1f}", *map(_p95, self.latencies), self.note]  # fmt: skip


COLUMNS = ["fault", "said", "finals", "lost", "doubled", "failed", "out of order", "batches run again",
           "replicas that answered", "whole again after s", "p95 before ms", "meanwhile", "after", "note"]  # fmt: skip


def _p95(latencies: Sequence[float]) -> str:
    return f"{np.percentile(latencies, 95):.0f} ({len(latencies)})" if latencies else "none"


def endure(stage: Stage, fault: Fault, streams: int, calm: float, prefix: str) -> Outcome:
    """Let everybody speak while a fault happens.

    Args:
        stage: where.
        fault: what.
        streams: how many speak.
        calm: seconds before it in which all speak, and after it.
        prefix: of the names of the sources.

    Returns:
        What became of what was said.
    """
    talk, over = _Talk(), threading.Event()
    sources = [f"{prefix}-{number}" for number in range(streams)]
    before = asyncio.run(stage.service.sample())
    with ThreadPoolExecutor(1) as pool:  # they speak there: a raylet can be started in the main thread alone
        speaking = pool.submit(asyncio.run, talk.all_speak(stage.service, sources, over))
        try:
            time.sleep(SECONDS + calm)
            began = time.monotonic()
            note = fault.act(stage)
            ended = time.monotonic()
            time.sleep(calm)
        finally:
            over.set()
        listening = speaking.result()
    after = asyncio.run(stage.service.sample())
    parts: tuple[list[float], list[float], list[float]] = ([], [], [])
    for final in first_arrivals(listening.finals).values():
        sent = talk.ended(final)
        parts[(sent >= began) + (sent >= ended)].append(1000 * (final.received - sent))
    if talk.served < streams:
        note = f"{note} {streams - talk.served} streams were cut off".strip()
    told = by_source(listening.finals)
    distinct = {source: len(first_arrivals(told.get(source, ()))) for source in sources}
    missing = [talk.said[source] - distinct[source] - listening.failed[source] for source in sources]
    return Outcome(
        said=talk.said.total(),
        arrived=sum(distinct.values()),
        lost=sum(max(0, each) for each in missing),
        doubled=len(listening.finals) - sum(distinct.values()) + sum(max(0, -each) for each in missing),
        failed=listening.failed.total(),
        disordered=sum(disordered(finals) for finals in told.values()),
        again=round(after.get(_LOST, 0.0) - before.get(_LOST, 0.0)),
        answered=len(_grown(before, after)),
        mended=ended - began,
        latencies=parts,
        note=note,
    )


def _grown(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Return the replicas that ran batches meanwhile."""
    return [name for name, value in after.items() if name.startswith(f"{_BATCHES}{{") and value > before.get(name, 0.0)]


# --- the part --------------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--streams", type=count, default=60, help="that speak (60)")
    parser.add_argument("--calm", type=float, default=6.0, help="seconds before and after each fault (6)")
    parser.add_argument("--batch-ms", type=float, default=8.0, help="of the engine for each batch (8)")
    parser.add_argument("--row-ms", type=float, default=0.2, help="and for each row in it (0.2)")
    parser.add_argument("--student", help="a real engine in place of one of a stated pace: its model")
    parser.add_argument("--teacher", help="and its teacher")
    parser.add_argument("--only", nargs="+", metavar="FAULT", choices=sorted(FAULTS), help="these")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keeps the daemon's log")


def measure(options: argparse.Namespace) -> int:
    """Try the faults on one cluster and print the table.

    Returns:
        The exit code: 1 where something was lost, doubled, failed or out of order.
    """
    engines, other = (at_pace(options.batch_ms, options.row_ms, name) for name in ("scripted", "another"))
    if options.student:
        engines = real(options.student, options.teacher)
        other = real(options.student, None if options.teacher else options.student)  # the other weights to roll out
    rows, well = [], True
    with cluster(2, _CPUS) as machines, tempfile.TemporaryDirectory() as folder:
        machines.deploy(engines.load, engines.digest, 2, engines.sections, version=engines.version)
        service = Daemon(Path(folder), _settings(machines, options.streams))
        stage = Stage(machines, service, engines, other, 2)
        try:
            service.start()
            for number, name in enumerate(options.only or FAULTS):
                fault = FAULTS[name]
                stage.deploy(fault.replicas)
                stage.until_whole()
                made = endure(stage, fault, options.streams, options.calm, f"fault-{number}")
                well &= made.well
                rows.append([name, *made.row()])
                print(" | ".join(map(str, rows[-1])), file=sys.stderr, flush=True)
            service.terminate()
        finally:
            service.end()
            if options.log:
                shutil.copy(service.log_file, options.log)
    print(
        f"{circumstances()}\n\n{engines.words} {options.streams} streams at the pace of speech, two raylets. "
        "Final latency from the end of speech, in milliseconds: the 95th percentile, and of how many.\n"
    )
    print(table(COLUMNS, rows))
    return 0 if well else 1


def _settings(machines: LocalCluster, streams: int) -> dict[str, object]:
    most = 2 * streams + 8  # those of a fault before may be remembered for a while
    return {
        "server": {"max_streams": most, "max_per_address": most, "max_handshakes": most},
        "engine": {"backend": "ray", "address": machines.address, "replicas": 2},
    }
