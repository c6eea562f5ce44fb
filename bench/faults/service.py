"""A daemon to do harm to, and what is said of how it took it.

Owns its size, and how it is run with a trouble of its own (`served.py`). Knows nothing of what is done to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.daemon import PATIENCE, Daemon
from bench.harness.usage import usage
from bench.tasks import wait_until

COST = 0.1
"""Seconds that the engine takes for each job when it is slow: a machine of known size."""

MQTT = {"keepalive": 2, "discovery": False}
"""Settings of a daemon that has a broker."""

_SERVER = {"max_streams": 200, "max_handshakes": 200}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fault.

    Attributes:
        tried: how often it was tried.
        survived: after how many of those somebody else was served as ever.
        said: utterances sent.
        arrived: finals that came of them.
        note: a remark for the table.
        failed: utterances of which an error said that there will be no final.
    """

    tried: int
    survived: int
    said: int
    arrived: int
    note: str = ""
    failed: int = 0

    @property
    def lost(self) -> int:
        return self.said - self.arrived - self.failed


@contextmanager
def running(folder: Path, settings: dict[str, Any] | None = None, trouble: str = "") -> Iterator[Daemon]:
    """Run a daemon for as long as the block runs, and kill it then.

    Args:
        folder: an empty one.
        settings: those that differ from the ones here.
        trouble: see `served.py`.

    Yields:
        The daemon.

    Raises:
        ServiceError: it did not become ready.
    """
    settings = settings or {}
    server = {**_SERVER, **settings.get("server", {})}
    daemon = Daemon(folder, {**settings, "server": server}, program=("bench.faults.served", trouble))
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end()


async def let_go(daemon: Daemon, descriptors: int) -> bool:
    """Return whether a daemon has, within the patience, no more than so many descriptors."""
    return await wait_until(lambda: usage(daemon.pid).descriptors <= descriptors, PATIENCE)
