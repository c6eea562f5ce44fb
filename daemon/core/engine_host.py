"""An engine in the thread that owns it: loaded, put away while nobody speaks, and loaded again for the next job.

Owns the engine's life in its thread. Knows nothing of when it is put away (`unloading.py`), or of which jobs come.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from daemon.core.scheduler import EngineThread
from daemon.settings.schema import Settings
from streaming.job import Captured, Job, Result

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """The part of `streaming.whisper.engine.WhisperEngine` that is used here."""

    @property
    def student(self) -> str: ...

    @property
    def teacher(self) -> str | None: ...

    @property
    def device(self) -> str: ...

    @property
    def tokenizer_file(self) -> Path: ...

    @property
    def eot(self) -> int: ...

    @property
    def contexts(self) -> tuple[float, ...]: ...

    @property
    def languages(self) -> tuple[str, ...]: ...

    def warm(self) -> Captured: ...

    def run(self, jobs: Sequence[Job]) -> list[Result]: ...


LoadEngine = Callable[[Settings], Engine]


class EngineHost:
    """An engine in its thread.

    Attributes:
        thread: the engine's.
        loading_since: when it began to be loaded again (`time.monotonic`); None while it is not.
        woken: seconds that each time took so far, in all, and how many times.
    """

    def __init__(self, settings: Settings, load: LoadEngine) -> None:
        self.thread = EngineThread()
        self.loading_since: float | None = None
        self.woken: tuple[float, int] = (0.0, 0)
        self._settings = settings
        self._load = load
        self._engine: Engine | None = None
        self._was_put_away = False
        self._teacher_apart = False

    @property
    def asleep(self) -> bool:
        """Whether the engine was put away, and no job has come for it since."""
        return self._was_put_away and self._engine is None and self.loading_since is None

    async def load(self) -> Engine:
        """Load the engine in its own thread.

        Raises:
            ServiceError: see `pipeline.load_engine`.
        """
        return await self.thread.call(self._loaded)

    async def warm(self) -> Captured:
        assert self._engine is not None, "load it first"
        return await self.thread.call(self._engine.warm)

    async def unload(self) -> None:
        """Put the engine away, behind what is being run. The next job loads it again."""
        await self.thread.call(self._put_away)

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Run a batch. It is called in the thread.

        Raises:
            ServiceError: the engine was put away, and cannot be loaded again.
        """
        engine = self._engine
        if engine is None:
            engine = self._wake()
        return engine.run(jobs)

    def teacher_apart(self) -> bool:
        """Return whether the teacher runs apart. On a GPU, a check of many texts costs about what one costs."""
        return self._teacher_apart

    # --- in the thread ---------------------------------------------------------------------------------------------

    def _loaded(self) -> Engine:
        engine = self._engine = self._load(self._settings)
        self._teacher_apart = engine.teacher is not None and engine.device == "cpu"
        return engine

    def _wake(self) -> Engine:
        self.loading_since = time.monotonic()
        try:
            engine = self._loaded()
            engine.warm()
        except BaseException:
            self._engine = None  # the next job tries again
            raise
        finally:
            spent = time.monotonic() - self.loading_since
            self.loading_since = None
        self.woken = (self.woken[0] + spent, self.woken[1] + 1)
        _log.info("the models are loaded again, after %.1f s", spent)
        return engine

    def _put_away(self) -> None:
        self._engine, self._was_put_away = None, True
        gc.collect()
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        # The C library keeps freed memory for itself; a system without glibc has no such call.
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
