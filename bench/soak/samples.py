"""How the process fares: what the kernel and its own `/metrics` say, every few seconds.

Owns reading them. A sample that fails, as the service does not answer, is a broken promise and is written down as one.
"""

from __future__ import annotations

import asyncio
import time

import psutil

from bench.day.daemon import Daemon
from bench.soak.book import Book, Sample

_MIB = 1 << 20

GAUGES = ("streams_open", "subscribers", "jobs_waiting", "mqtt_waiting_finals")


class Sampler:
    def __init__(self, daemon: Daemon, book: Book) -> None:
        self._daemon = daemon
        self._book = book
        self._process = psutil.Process(daemon.pid)
        self._cpu = self._cpu_seconds()
        self._at = time.monotonic()

    async def run(self, every: float) -> None:
        """For ever."""
        while True:
            self._book.samples.append(await self.take())
            await asyncio.sleep(every)

    async def take(self) -> Sample:
        """Measure the service: its answer time, memory, descriptors, threads, CPU share and gauges.

        Raises:
            RuntimeError: the service is no more.
        """
        began = time.monotonic()
        status, _ = await asyncio.to_thread(self._daemon.get, "/healthz")
        answer = time.monotonic() - began
        counted = await self._daemon.sample()
        if not self._daemon.alive:
            raise RuntimeError(f"the service ended by itself:\n{self._daemon.log[-5000:]}")
        if status != 200 or not counted:
            self._book.broken.append(f"/healthz answered {status}, /metrics {'well' if counted else 'nothing'}")
        memory = await asyncio.to_thread(self._process.memory_full_info)
        now, cpu = time.monotonic(), self._cpu_seconds()
        share = (cpu - self._cpu) / max(1e-3, now - self._at)
        self._at, self._cpu = now, cpu
        gauges = {name: counted.get(f"whisperd_{name}", 0.0) for name in GAUGES}
        return Sample(
            self._book.now, memory.rss / _MIB, memory.pss / _MIB, self._process.num_fds(), self._process.num_threads(),
            share, answer * 1000, gauges,
        )  # fmt: skip

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)
