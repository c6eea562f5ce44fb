"""An engine's life: loaded, put away while nobody speaks, and loaded again for the next job.

Owns that life, in whatever thread or process calls it. Knows nothing of when it is put away (`unloading.py`), or of
which jobs come.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded: an engine's own words of itself, without the engine."""

    student: str
    teacher: str | None
    device: str
    tokenizer_file: Path
    eot: int
    contexts: tuple[float, ...]
    languages: tuple[str, ...]

    @property
    def teacher_apart(self) -> bool:
        """Whether the teacher runs apart. On a GPU, a check of many texts costs about what one costs."""
        return self.teacher is not None and self.device == "cpu"

    @classmethod
    def of(cls, engine: Engine) -> Loaded:
        return cls(
            engine.student,
            engine.teacher,
            engine.device,
            engine.tokenizer_file,
            engine.eot,
            engine.contexts,
            engine.languages,
        )


@dataclass(frozen=True, slots=True)
class Sleep:
    """How an engine sleeps, and how it woke so far.

    Attributes:
        asleep: whether it was put away, and no job has come for it since.
        waking: whether it is being loaded again.
        seconds: that each time took so far, in all.
        times: how often it was loaded again.
    """

    asleep: bool = False
    waking: bool = False
    seconds: float = 0.0
    times: int = 0


class EngineLife:
    """An engine, there or put away. Its methods are called one at a time.

    Args:
        settings: of the engine.
        load: loads it.
        tell: called at every change of `sleep`, in the thread of the call that changed it.

    Attributes:
        sleep: how it sleeps.
    """

    def __init__(self, settings: Settings, load: LoadEngine, tell: Callable[[Sleep], None] = lambda sleep: None):
        self.sleep = Sleep()
        self._settings = settings
        self._load = load
        self._tell = tell
        self._engine: Engine | None = None

    def load(self) -> Loaded:
        """Load the engine.

        Raises:
            ServiceError: see `load_engine`.
        """
        self._engine = self._load(self._settings)
        return Loaded.of(self._engine)

    def warm(self) -> Captured:
        assert self._engine is not None, "load it first"
        return self._engine.warm()

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Run a batch.

        Raises:
            ServiceError: the engine was put away, and cannot be loaded again.
        """
        engine = self._engine
        if engine is None:
            engine = self._wake()
        return engine.run(jobs)

    def put_away(self) -> None:
        """Give the engine's memory back. The next job loads it again."""
        self._engine = None
        self._become(Sleep(True, False, self.sleep.seconds, self.sleep.times))
        gc.collect()
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        # The C library keeps freed memory for itself; a system without glibc has no such call.
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)

    def _wake(self) -> Engine:
        began, woken = time.monotonic(), self.sleep
        self._become(Sleep(False, True, woken.seconds, woken.times))
        try:
            self._engine = engine = self._load(self._settings)
            engine.warm()
        except BaseException:
            self._engine = None  # the next job tries again
            self._become(Sleep(True, False, woken.seconds, woken.times))
            raise
        spent = time.monotonic() - began
        self._become(Sleep(False, False, woken.seconds + spent, woken.times + 1))
        _log.info("the models are loaded again, after %.1f s", spent)
        return engine

    def _become(self, sleep: Sleep) -> None:
        self.sleep = sleep
        self._tell(sleep)
