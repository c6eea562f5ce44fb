"""The lives of a process that is started again whenever it ends by itself.

Owns which life it is in, whether it is up, and how it ends with the service. Knows nothing of what the process does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from daemon.common.errors import ServiceError
from daemon.engines.persistence import LostBatchError
from daemon.engines.process import EngineProcess

_log = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0
"""Seconds between two attempts to start it again, where it cannot be started."""


class Lives:
    """A process, through all its lives.

    Args:
        what: it is, in log lines ("the engine").
        spawn: starts it.
        prepare: makes one that was just started ready for work; it may raise what `EngineProcess.ask` does.

    Attributes:
        process: the present life; None before the first.
        restarts: how often it ended by itself, and was started again.
        up: set while it is prepared, and can be asked for work.
        trouble: why the last attempt to start it failed; None if none did, or it is up.
        came_up: called when it is up.
    """

    def __init__(
        self,
        what: str,
        spawn: Callable[[], Awaitable[EngineProcess]],
        prepare: Callable[[EngineProcess], Awaitable[None]],
    ) -> None:
        self.process: EngineProcess | None = None
        self.restarts = 0
        self.up = asyncio.Event()
        self.trouble: str | None = None
        self.came_up: Callable[[], None] = lambda: None
        self._what = what
        self._spawn = spawn
        self._prepare = prepare
        self._processes: list[EngineProcess] = []  # of all lives whose end nobody has seen yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> EngineProcess:
        """Start the process, and see to it that it is started again when it ends after it was up.

        Raises:
            OSError: it cannot be started.
        """
        self.process = process = await self._spawn()
        self._processes.append(process)
        life = asyncio.create_task(self._live(process), name=f"{self._what}'s process")
        self._tasks.add(life)
        life.add_done_callback(self._tasks.discard)
        return process

    async def persist(self) -> None:
        """Start and prepare the process, again and again with a growing pause until that succeeds."""
        pause = 1.0
        while not self._closed:
            try:
                await self._prepare(await self.start())
            except (ServiceError, LostBatchError, RuntimeError, OSError) as error:
                self._failed(str(error), pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self.trouble = None
                self.up.set()
                self.came_up()
                return

    def close(self) -> None:
        self._closed = True
        for process in self._processes:
            process.close()

    def ended(self, seconds: float) -> bool:
        """Wait at most `seconds` for it to end, and return whether it has."""
        here = list(self._processes)  # the loop may go on, and see one end meanwhile
        for process in here:
            if not process.ended(seconds):
                process.kill()  # it hangs, and holds nothing that is not ours
        return all(process.ended(seconds) for process in here)

    def _failed(self, trouble: str, pause: float) -> None:
        say = _log.debug if trouble == self.trouble else _log.error  # each reason once, however long it lasts
        say("%s cannot be started (%s): the next attempt is in %.0f s", self._what, trouble, pause)
        self.trouble = trouble
        if self.process is not None:
            self.process.close()

    async def _live(self, process: EngineProcess) -> None:
        await process.run()
        was_up = self.up.is_set()
        self.up.clear()  # before anybody whose batch was with it asks again
        how = await process.ending()
        self._processes.remove(process)
        if self._closed or not was_up:  # whoever is starting it sees that it failed
            return
        _log.error("%s's process ended (%s): it is started again, and what it was at runs again", self._what, how)
        await self.persist()
        if not self._closed:
            self.restarts += 1
