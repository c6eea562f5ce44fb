"""An engine in a process of its own.

Owns what it is asked, and the batches that are with it. What the engine computes takes no turn from the event loop, nor
the loop from it; and an engine that crashes, or is killed, takes nobody along: it is started again at once, and what it
was at runs again. So nothing is lost by it, and nothing comes twice. A job during which the process ended twice fails,
alone.

Knows nothing of what an engine does, or of who waits for its results. The process is `child.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from daemon.common.errors import ServiceError
from daemon.common.metrics import GpuMemory
from daemon.engines.batch import Ran
from daemon.engines.life import Loaded, LoadEngine, Sleep
from daemon.engines.lives import Lives
from daemon.engines.messages import Load, PutAway, SharedAudio, Warm
from daemon.engines.persistence import run_to_the_end
from daemon.engines.process import EngineEndedError, EngineProcess
from daemon.settings.schema import Settings
from streaming.job import Captured, Job

_DEATHS = 2
"""Ends of the process after which it is a job's fault."""


class ProcessHost:
    """An engine that lives in a process of its own. It is its own and only worker.

    Attributes:
        sleep: how the engine sleeps.
    """

    trouble: str | None = None
    remark: str | None = None

    def __init__(self, settings: Settings, load: LoadEngine) -> None:
        self.sleep = Sleep()
        self._settings = _of_an_engine(settings)
        self._load = load
        self._audio = SharedAudio(settings.scheduler.batch)
        self._lives = Lives("the engine", self._spawn, self._load_again)
        self._slept = Sleep()  # in earlier lives
        self._loaded: Loaded | None = None

    # --- its life --------------------------------------------------------------------------------------------------

    async def load(self) -> Loaded:
        process = await self._lives.start()
        try:
            self._loaded = await process.ask(Load(self._settings, self._load))
        except RuntimeError as error:
            raise ServiceError(f"the models cannot be loaded: {error}") from None
        except EngineEndedError:
            raise ServiceError(
                "the engine's process ended while it loaded the models: see the lines above this one; "
                "if there are none, the system may have killed it for want of memory"
            ) from None
        assert self._loaded is not None, "it has answered"
        return self._loaded

    async def warm(self) -> Captured:
        captured: Captured = await self._process.ask(Warm())
        self._lives.up.set()
        return captured

    async def unload(self) -> None:
        await self._lives.up.wait()
        with contextlib.suppress(EngineEndedError):  # then it is not loaded either
            await self._process.ask(PutAway())

    def close(self) -> None:
        self._lives.close()

    def ended(self, seconds: float) -> bool:
        return self._lives.ended(seconds)

    def cluster(self) -> None:
        """It is on this machine."""

    def watch(self, changed: Callable[[], None]) -> None:
        """It takes batches from the beginning on."""

    @property
    def loaded(self) -> Loaded | None:
        return self._loaded

    @property
    def restarts(self) -> int:
        return self._lives.restarts

    def gpu_memory(self) -> Mapping[str, GpuMemory]:
        return self._lives.process.memory if self._lives.process is not None else {}

    @property
    def _process(self) -> EngineProcess:
        assert self._lives.process is not None, "load it first"
        return self._lives.process

    async def _spawn(self) -> EngineProcess:
        process = await EngineProcess.start("daemon.engines.child", self._settings, self._audio, self._told)
        self._slept = self.sleep
        return process

    async def _load_again(self, process: EngineProcess) -> None:
        await process.ask(Load(self._settings, self._load))
        await process.ask(Warm())
        self._told(Sleep())

    def _told(self, sleep: Sleep) -> None:
        before = self._slept
        self.sleep = replace(sleep, seconds=before.seconds + sleep.seconds, times=before.times + sleep.times)

    # --- its batches -----------------------------------------------------------------------------------------------

    @property
    def workers(self) -> Sequence[ProcessHost]:
        return [self]

    @property
    def open(self) -> bool:
        return True

    @property
    def ahead(self) -> bool:
        """Whether a full batch may wait there while another runs.

        A GPU would wait for the service otherwise. On a CPU a batch lasts so long that the next may as well be taken
        when it is done, with whoever is most urgent then.
        """
        return self._loaded is not None and self._loaded.device != "cpu"

    def teacher_apart(self) -> bool:
        return self._loaded is not None and self._loaded.teacher_apart

    def submit(self, jobs: Sequence[Job]) -> asyncio.Future[Ran]:
        # Sent at once: the loop may be busy with results before another task has its turn.
        sent = self._process.run_batch(jobs) if self._lives.up.is_set() else None
        return asyncio.ensure_future(run_to_the_end(jobs, self._attempt, _DEATHS, sent))

    async def _attempt(self, jobs: Sequence[Job]) -> Ran:
        await self._lives.up.wait()
        return await self._process.run_batch(jobs)


def _of_an_engine(settings: Settings) -> Settings:
    """Return the settings that an engine needs: tokens and passwords stay where they are."""
    own = {name: getattr(settings, name) for name in ("models", "escalate", "scheduler", "log")}
    return Settings().model_copy(update=own)
