"""Settings that are read again while the service runs.

Owns when that happens, the order in which the parts take the new settings over, that all take them or none, and what
people are told of it. Knows neither which settings may change nor what a part does with its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from daemon.common.errors import ConfigurationError
from daemon.common.logs import set_format, set_level
from daemon.core.pipeline import Pipeline
from daemon.endpoints.listeners import Ports
from daemon.service.service_manager import ServiceManager
from daemon.settings.reloadable import plan
from daemon.settings.schema import Settings
from daemon.settings.secrets import Credentials

_log = logging.getLogger(__name__)


class Reloader:
    """Takes over changed settings while the service runs.

    Attributes:
        notes: what needs attention since the latest reload.
    """

    def __init__(self, pipeline: Pipeline, ports: Ports, credentials: Credentials, manager: ServiceManager) -> None:
        self.notes: tuple[str, ...] = ()
        self._pipeline = pipeline
        self._ports = ports
        self._credentials = credentials
        self._manager = manager
        self._teacher_loaded = pipeline.settings.teacher is not None
        self._hangup = asyncio.Event()
        self._read_again: Callable[[], Settings] | None = None

    def ask(self, read: Callable[[], Settings]) -> None:
        """Ask for a reload with the settings that `read` returns. `run` does it as soon as it can."""
        self._read_again = read
        self._hangup.set()

    async def run(self) -> None:
        """Reload whenever somebody asks, until cancelled."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._manager.reloading()
            outcome = "kept"
            try:
                self._reload()
                outcome = "taken"
            except (ConfigurationError, OSError) as error:
                for sentence in str(error).splitlines():
                    _log.error("reload: %s", sentence)
                _log.error("reload: the old settings stay in force")
                self.notes = ("the last reload failed: see the log",)
            self._pipeline.metrics.reloads.labels(outcome).inc()
            self._manager.ready()

    def _reload(self) -> None:
        """Read the settings again and have all parts take them over, or none.

        Raises:
            ConfigurationError: something in them is wrong; nothing has changed then.
            OSError: likewise.
        """
        assert self._read_again is not None, "whoever asks says where from"
        wanted = self._credentials.with_tokens(self._read_again())
        planned = plan(self._pipeline.settings, wanted, teacher_loaded=self._teacher_loaded)
        self._ports.check_guarded(planned.settings.server)
        # What may refuse comes first; of two that may, the later one refuses before it has changed anything.
        before = self._pipeline.settings
        self._pipeline.reload(planned.settings)
        try:
            self._ports.reload(planned.settings.server)
        except OSError:
            self._pipeline.reload(before)
            raise
        self._credentials.hide(planned.settings)
        if "log.level" in planned.changed:
            set_level(planned.settings.log.level)
        if "log.format" in planned.changed:
            set_format(planned.settings.log.format)
        _log.info("reloaded: %s", ", ".join(planned.changed) or "nothing has changed")
        self.notes = ()
        if planned.waiting:
            keys = ", ".join(planned.waiting)
            self.notes = (f"restart for {keys}",)
            _log.warning("reload: %s cannot change while the service runs: restart it to apply the change", keys)
