"""A `whisperd run` in a process of its own (`served.py`), to do harm to; and what is said of how it took it.

Owns its start and its end. Knows nothing of what is done to it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import yaml

PATIENCE = 300.0
COST = 0.1
"""Seconds that the engine takes for each job when it is slow: a machine of known size."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """tried: how often. survived: after how many of those somebody else was served as ever. said, arrived: utterances
    sent, and finals that came of them. failed: utterances of which an error said that there will be no final."""

    tried: int
    survived: int
    said: int
    arrived: int
    note: str = ""
    failed: int = 0

    @property
    def lost(self) -> int:
        return self.said - self.arrived - self.failed


@dataclass
class Service:
    """A process of its own. url: where it listens."""

    popen: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.partition("://")[2].rpartition(":")
        return host, int(port)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))

    def resident(self) -> int:
        """MiB."""
        pages = int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20

    async def let_go(self, descriptors: int) -> bool:
        """Whether it has, within the patience, no more descriptors than that."""
        deadline = time.monotonic() + PATIENCE
        while self.descriptors() > descriptors and time.monotonic() < deadline:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.1)  # the last ones are being closed
        return self.descriptors() <= descriptors

    def ready(self) -> bool:
        """Whether it vouches for itself."""
        connection = HTTPConnection(*self.address, timeout=PATIENCE)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        finally:
            connection.close()

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.popen.terminate()
        return self.popen.wait(PATIENCE)


@contextmanager
def running(folder: Path, settings: dict[str, Any] | None = None, trouble: str = "") -> Iterator[Service]:
    """settings: of the section `server`, what is to be another than here. trouble: see `served.py`.

    Raises:
        RuntimeError: it did not become ready; its log is in the message.
    """
    config, log = folder / "whisperd.yaml", folder / "log"
    settings = settings or {}
    server = {"host": "127.0.0.1", "port": 0, "max_streams": 200, "max_handshakes": 200, **settings.get("server", {})}
    config.write_text(yaml.safe_dump({**settings, "server": server}))
    with open(log, "w") as out:
        popen = subprocess.Popen(
            [sys.executable, "-m", "bench.faults.served", str(config), trouble], stderr=out, text=True,
            env={**os.environ, "STATE_DIRECTORY": str(folder / "state")},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE
        while "ready: " not in log.read_text():
            if popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"whisperd did not become ready:\n{log.read_text()}")
            time.sleep(0.05)  # a file has no event to wait for
        url = next(line for line in log.read_text().splitlines() if "listening on ws" in line)
        yield Service(popen, url.partition("listening on ")[2].strip(), log)
    finally:
        popen.kill()
        popen.wait()
