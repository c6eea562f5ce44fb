"""Where an engine lives: in a thread of this process, in a process of its own, or on a cluster.

Owns the choice, and what both have in common. Knows nothing of jobs, or of who waits for them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from daemon.common.metrics import ClusterUse, GpuMemory
from daemon.engines.life import Loaded, LoadEngine, Sleep
from daemon.engines.thread import ThreadHost
from daemon.engines.worker import Worker
from daemon.settings.schema import Settings
from streaming.job import Captured


class EngineHost(Protocol):
    """An engine, wherever it lives."""

    @property
    def workers(self) -> Sequence[Worker]:
        """What runs its batches."""

    @property
    def loaded(self) -> Loaded | None:
        """What it has loaded; None before that. On a cluster, others may be loaded while it runs."""

    @property
    def trouble(self) -> str | None:
        """Why it can run nothing now; None if it can."""

    @property
    def remark(self) -> str | None:
        """What is not as it should be, though it runs; None if all is well."""

    def cluster(self) -> ClusterUse | None:
        """Return what came of the batches so far, by replica; None where engines are on this machine."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called when a worker opens, or something else is loaded."""

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
    # Here, for whoever needs no second process.
    from daemon.engines.cluster.host import ClusterHost
    from daemon.engines.process_host import ProcessHost

    backend = settings.engine.backend
    if backend == "ray":
        return ClusterHost(settings)
    if backend == "process" or (backend == "auto" and _can_travel(load)):
        return ProcessHost(settings, load)
    return ThreadHost(settings, load)


def _can_travel(load: LoadEngine) -> bool:
    """Return whether another process would find a loader: by its name in a module that both can import."""
    try:
        return b"__main__" not in pickle.dumps(load)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
