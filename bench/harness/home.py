"""A home: a broker with a subscriber, and a daemon that publishes there and serves a voice satellite.

Owns how they fit together, and their start and end. Knows nothing of who lives there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.broker import free_port
from bench.harness.daemon import Daemon
from bench.harness.mqtt_subscriber import Mqtt, mqtt

SATELLITE = "satellite"
"""The source of what comes by Wyoming."""


@dataclass(frozen=True, slots=True)
class Home:
    mqtt: Mqtt
    daemon: Daemon


@contextlib.asynccontextmanager
async def home(
    folder: Path,
    settings: Mapping[str, Any],
    program: Sequence[str],
    *,
    sessions: bool = False,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Home]:
    """Run a home for as long as the block runs.

    Args:
        folder: where its parts keep their files.
        settings: of the daemon.
        program: see `Daemon`.
        sessions: see `mqtt`.
        environment: see `Daemon`.

    Yields:
        The home.

    Raises:
        MissingError: the broker is not installed.
        RuntimeError: a part does not start.
    """
    async with mqtt(folder, sessions=sessions) as around:
        own = {
            **around.settings(**settings.get("mqtt", {})),
            "wyoming": {"host": "127.0.0.1", "port": free_port(), "source": SATELLITE},
        }
        daemon = Daemon(folder, {**settings, **own}, environment=environment, program=program)
        try:
            await asyncio.to_thread(daemon.start)
            yield Home(around, daemon)
        finally:
            daemon.end()
