"""The daemon's side of a cluster without a daemon: a host of engines in this process, and jobs for it.

Owns its settings, its end, and the processor time of what belongs to it. Knows nothing of what is measured with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import numpy as np
import psutil

from daemon.engines.cluster.host import ClusterHost
from daemon.engines.process_host import ProcessHost
from daemon.settings.schema import Settings
from streaming.job import SAMPLE_RATE, Job

BATCH = 8
"""Jobs in a full batch."""

_FAREWELL = 10.0
"""Seconds in which a host ends."""

Host = TypeVar("Host", ClusterHost, ProcessHost)


def settings(address: str = "auto") -> Settings:
    """Return those of a daemon whose engines are on the cluster with this address."""
    return Settings.model_validate(
        {"engine": {"backend": "ray", "address": address}, "scheduler": {"batch": BATCH}, "log": {"level": "warning"}}
    )


@asynccontextmanager
async def loaded(host: Host) -> AsyncIterator[Host]:
    """Have a host loaded and warm for as long as the block runs."""
    try:
        await host.load()
        await host.warm()
        yield host
    finally:
        host.close()
        await asyncio.to_thread(host.ended, _FAREWELL)


def job(seconds: float) -> Job:
    """Return a job with so much noise."""
    noise = 0.01 * np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE))
    return Job(noise.astype(np.float32))


def bridges() -> list[int]:
    """Return the processes of the links to clusters that hosts in this process have."""
    return [child.pid for child in psutil.Process().children() if "daemon.engines.cluster.bridge" in child.cmdline()]


def cpu_seconds(processes: Iterable[int]) -> float:
    """Return the processor time that processes took so far, those that are still there."""
    whole = 0.0
    for pid in processes:
        with suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            whole += times.user + times.system
    return whole
