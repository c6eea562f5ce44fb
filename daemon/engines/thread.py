"""An engine in a thread of this process.

Owns the thread. What the engine does is `life.py`. Nothing has to be started for it, which suits commands that
transcribe and end; but its thread and the event loop share one interpreter, and each waits for the other wherever a
pass of a small model is many small calls.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from daemon.common.metrics import GpuMemory
from daemon.engines import gpu_memory
from daemon.engines.batch import Ran, run_batch
from daemon.engines.life import EngineLife, Loaded, LoadEngine, Sleep
from daemon.settings.schema import Settings
from streaming.job import Captured, Job, Result

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class EngineThread:
    """The one thread that may touch an engine, which therefore needs no lock.

    It is a daemon thread: an engine that hangs must not keep the process from ending.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Run `function(*arguments)` in the thread, and give its result or exception here."""
        return await self.submit(function, *arguments)

    def submit(self, function: Callable[..., _T], *arguments: Any) -> asyncio.Future[_T]:
        """Let the thread run `function(*arguments)` from now on. The future has its result or exception."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[_T] = loop.create_future()

        def settle(value: _T | None, error: BaseException | None) -> None:
            if outcome.cancelled():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(value)  # type: ignore[arg-type] # _T may itself be None

        def work() -> None:
            if outcome.cancelled():  # nobody waits for it any more, and others wait for their turn
                return
            value, error = None, None
            try:
                value = function(*arguments)
            except Exception as raised:
                error = raised
            try:
                loop.call_soon_threadsafe(settle, value, error)
            except RuntimeError:
                _log.debug("the event loop ended before the engine")

        self._calls.put(work)
        return outcome

    def close(self) -> None:
        """End the thread after what was called already."""
        self._calls.put(None)

    def ended(self, seconds: float) -> bool:
        """Wait at most `seconds` for the thread to end, and return whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


@dataclass(frozen=True, slots=True, eq=False)
class ThreadWorker:
    """An engine in a thread, as the scheduler sees it (`scheduler.Worker`).

    Attributes:
        thread: the engine's own.
        run: runs a batch in that thread (`WhisperEngine.run`).
        teacher_apart: returns whether it has a teacher whose passes are too long to come with its student's.
    """

    thread: EngineThread
    run: Callable[[Sequence[Job]], list[Result]]
    teacher_apart: Callable[[], bool] = lambda: False

    @property
    def open(self) -> bool:
        return True

    @property
    def ahead(self) -> bool:
        """Whether a batch is taken while another runs: the thread finds the next as soon as the loop has a moment."""
        return False

    def submit(self, jobs: Sequence[Job]) -> asyncio.Future[Ran]:
        return self.thread.submit(run_batch, self.run, jobs)


class ThreadHost:
    """An engine that lives in a thread."""

    trouble: str | None = None
    remark: str | None = None

    def __init__(self, settings: Settings, load: LoadEngine) -> None:
        self.thread = EngineThread()
        self._life = EngineLife(settings, load)
        self._loaded: Loaded | None = None
        self.workers = [ThreadWorker(self.thread, self._life.run, self._teacher_apart)]

    @property
    def sleep(self) -> Sleep:
        return self._life.sleep

    @property
    def loaded(self) -> Loaded | None:
        return self._loaded

    @property
    def restarts(self) -> int:
        return 0

    def cluster(self) -> None:
        """It is on this machine."""

    def watch(self, changed: Callable[[], None]) -> None:
        """It takes batches from the beginning on."""

    def gpu_memory(self) -> Mapping[str, GpuMemory]:
        return gpu_memory.memory()

    async def load(self) -> Loaded:
        self._loaded = await self.thread.call(self._life.load)
        return self._loaded

    async def warm(self) -> Captured:
        return await self.thread.call(self._life.warm)

    async def unload(self) -> None:
        await self.thread.call(self._life.put_away)

    def close(self) -> None:
        self.thread.close()

    def ended(self, seconds: float) -> bool:
        return self.thread.ended(seconds)

    def _teacher_apart(self) -> bool:
        return self._loaded is not None and self._loaded.teacher_apart
