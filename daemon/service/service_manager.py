"""When the service manager is told that the service starts, is ready, makes progress, reloads and stops.

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
    """Keeps the service manager informed.

    Args:
        notifier: sends the messages.
        health: says whether decoding makes progress.
        status: returns the status line.
    """

    def __init__(self, notifier: Notifier, health: Health, status: Callable[[], str]) -> None:
        self._notifier = notifier
        self._health = health
        self._status = status

    def ready(self) -> None:
        self._notifier.ready(self._status())

    def reloading(self) -> None:
        """Say that the settings are being read again. `ready` must follow."""
        self._notifier.reloading("reloading the settings")

    def stopping(self) -> None:
        self._notifier.stopping("finishing the last finals")

    async def ask_for_patience(self, text: str) -> None:
        """Ask for more time to start, again and again, until cancelled."""
        while True:
            self._notifier.loading(text, _LOADING_PATIENCE)
            await asyncio.sleep(_LOADING_PATIENCE / 4)

    async def feed_watchdog(self, interval: float) -> None:
        """Feed the watchdog while decoding makes progress, until cancelled.

        A running event loop alone would prove little.

        Args:
            interval: seconds between two signs of life.
        """
        fed = True
        while True:
            if self._health.getting_on:
                self._notifier.alive()
            elif fed:
                _log.error("the engine hangs: the watchdog is not fed until it decodes again")
            fed = self._health.getting_on
            await asyncio.sleep(interval)

    async def tell_status(self) -> None:
        """Send the status line whenever it changes, until cancelled."""
        last = self._status()
        while True:
            await asyncio.sleep(_STATUS_INTERVAL)
            if (line := self._status()) != last:
                self._notifier.status(line)
                last = line
