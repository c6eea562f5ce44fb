"""File descriptors: how many connections there is room for, and what happens when a connection finds none.

Owns the process's limit, of which the rest of the service always keeps some, and that a failure to accept is logged
once, and counted. asyncio leaves such connections in the kernel's queue and tries again each second, but it would log
up to a hundred lines at every try. Knows nothing of who listens.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import Any

from daemon.common.metrics import Metrics

_log = logging.getLogger(__name__)

_QUIET = 60.0
"""Seconds without such a failure after which the next is news."""

_OWN = 192
"""Descriptors for what is no connection of a client: models, microphones, devices, the broker, the spool, a reload."""


def room_for(connections: int) -> int:
    """Return how many of these `connections`, which the settings allow, there is room for.

    The process's limit is raised to that number, as far as it may be.
    """
    wanted = connections + _OWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    room = max(1, soft - _OWN)
    _log.warning(
        "%d file descriptors are too few for what the settings allow: there is room for %d connections, not "
        "for %d; set LimitNOFILE=%d (ulimit -n), or lower server.max_streams and server.max_subscribers",
        soft, room, connections, wanted,
    )  # fmt: skip
    return room


class Accepting:
    """The loop's exception handler, which knows the failures to accept a connection."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._failed_at: float | None = None

    def watch(self) -> None:
        """Handle the exceptions of the running loop."""
        asyncio.get_running_loop().set_exception_handler(self._handle)

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if context.get("message") != "socket.accept() out of system resource":
            loop.default_exception_handler(context)
            return
        self._metrics.accept_failures.inc()
        now = time.monotonic()
        if self._failed_at is None or now - self._failed_at > _QUIET:
            _log.error(
                "a connection cannot be accepted (%s): it waits until another one ends; to avoid this, raise "
                "LimitNOFILE (ulimit -n), or lower server.max_streams and server.max_subscribers",
                context.get("exception"),
            )
        self._failed_at = now
