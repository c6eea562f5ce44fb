"""File descriptors: how many connections there may be so that the rest of the service always has some, and what to do
when there are none left to accept a connection with all the same.

Owns the process's limit, and that a failure is said once, and counted. asyncio itself leaves the connections in the
kernel's queue and tries again each second; it would say so up to a hundred times at every try. Knows nothing of who
listens.
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
    """How many connections there may be, of so many that the settings allow. The limit is raised to that, as far as
    whoever started the process lets it."""
    wanted = connections + _OWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    room = max(1, soft - _OWN)
    _log.warning(
        "%d file descriptors are too few for what the settings allow: there will be room for %d connections and not "
        "for %d; set LimitNOFILE=%d (ulimit -n), or lower server.max_streams and server.max_subscribers",
        soft, room, connections, wanted,
    )  # fmt: skip
    return room


class Accepting:
    """The loop's exception handler."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._failed_at: float | None = None

    def watch(self) -> None:
        """The running loop."""
        asyncio.get_running_loop().set_exception_handler(self._handle)

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if context.get("message") != "socket.accept() out of system resource":
            loop.default_exception_handler(context)
            return
        self._metrics.accept_failures.inc()
        now = time.monotonic()
        if self._failed_at is None or now - self._failed_at > _QUIET:
            _log.error(
                "a connection cannot be accepted (%s): it waits until another ends; a higher LimitNOFILE (ulimit -n), "
                "or lower server.max_streams and server.max_subscribers, avoid that",
                context.get("exception"),
            )
        self._failed_at = now
