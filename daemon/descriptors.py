"""What to do when there are no file descriptors left to accept a connection with.

Owns that it is said once, and counted. asyncio itself leaves the connections in the kernel's queue and tries again each
second; it would say so up to a hundred times at every try. Knows nothing of who listens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from daemon.metrics import Metrics

_log = logging.getLogger(__name__)

_QUIET = 60.0
"""Seconds without such a failure after which the next is news."""


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
