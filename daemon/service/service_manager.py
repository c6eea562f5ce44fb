"""What the service manager is told, and when: that we start, are ready, get on, reload and stop.

Owns the times between its messages, and that the watchdog is fed by the progress of the decoding. Knows neither how
they are sent nor what the status line is made of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from daemon.core.health import Health
from daemon.service.sd_notify import Notifier

_log = logging.getLogger(__name__)

_STATUS_INTERVAL = 2.0

_LOADING_PATIENCE = 60.0
"""Seconds more that the service manager is asked for, each time, while the engine loads."""


class ServiceManager:
    """status: the line that says what goes on."""

    def __init__(self, notifier: Notifier, health: Health, status: Callable[[], str]) -> None:
        self._notifier = notifier
        self._health = health
        self._status = status

    def ready(self) -> None:
        self._notifier.ready(self._status())

    def reloading(self) -> None:
        """`ready` must follow."""
        self._notifier.reloading("reading the settings again")

    def stopping(self) -> None:
        self._notifier.stopping("finishing what was heard")

    async def ask_for_patience(self, text: str) -> None:
        """More time to start; until cancelled."""
        while True:
            self._notifier.loading(text, _LOADING_PATIENCE)
            await asyncio.sleep(_LOADING_PATIENCE / 4)

    async def feed_watchdog(self, interval: float) -> None:
        """By the progress of the decoding: that this loop turns proves little. interval: seconds. Until cancelled."""
        fed = True
        while True:
            if self._health.getting_on:
                self._notifier.alive()
            elif fed:
                _log.error("the engine hangs: no sign of life for the service manager until it decodes again")
            fed = self._health.getting_on
            await asyncio.sleep(interval)

    async def tell_status(self) -> None:
        """Whenever the line changes; until cancelled."""
        told = self._status()
        while True:
            await asyncio.sleep(_STATUS_INTERVAL)
            if (line := self._status()) != told:
                self._notifier.status(line)
                told = line
