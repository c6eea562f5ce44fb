"""Where an engine lives: in a thread of this process, or in a process of its own.

Owns the choice, and what both have in common. Knows nothing of jobs, or of who waits for them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Protocol

from daemon.common.metrics import GpuMemory
from daemon.engines.life import Loaded, LoadEngine, Sleep
from daemon.engines.thread import ThreadHost
from daemon.engines.worker import Worker
from daemon.settings.schema import Settings
from streaming.job import Captured


class EngineHost(Protocol):
    """An engine, wherever it lives."""

    @property
    def worker(self) -> Worker:
        """What runs its batches."""

    @property
    def sleep(self) -> Sleep: ...

    @property
    def restarts(self) -> int:
        """How often it ended by itself, and was started again."""

    def gpu_memory(self) -> Mapping[str, GpuMemory]:
        """Return the memory of the GPUs that it uses, by their names in `models.device`."""

    async def load(self) -> Loaded:
        """Load the engine.

        Raises:
            ServiceError: see `load_engine`.
        """

    async def warm(self) -> Captured: ...

    async def unload(self) -> None:
        """Put the engine away, behind what is being run. The next job loads it again."""

    def close(self) -> None: ...

    def ended(self, seconds: float) -> bool:
        """Wait at most `seconds` for it to end, and return whether it has."""


MakeHost = Callable[[Settings, LoadEngine], EngineHost]


def as_set(settings: Settings, load: LoadEngine) -> EngineHost:
    """Return a host as `engine.backend` says: a process of its own where it does not say, if the loader can go there.

    On two cores it was no dearer than a thread, its texts came sooner, and it frees the service of torch.
    """
    from daemon.engines.process import ProcessHost  # here, for whoever needs no second process

    backend = settings.engine.backend
    if backend == "process" or (backend == "auto" and _can_travel(load)):
        return ProcessHost(settings, load)
    return ThreadHost(settings, load)


def _can_travel(load: LoadEngine) -> bool:
    """Return whether another process would find a loader: by its name in a module that both can import."""
    try:
        return b"__main__" not in pickle.dumps(load)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
