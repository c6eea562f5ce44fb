"""Engines on a cluster, as the service sees them.

Owns how many batches are there at once (as many as replicas run, and for each a full one ahead), and what of them was
lost and runs again on another replica. The link is a process beside the service (`bridge.py`); while it, or the
cluster, is away, batches wait here, and what makes them waits in the scheduler. Jobs are pure, so one that ran twice
did no harm, and its result is taken once.

Knows nothing of Ray, or of who waits for results.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from daemon.common.metrics import ClusterUse, GpuMemory, ReplicaUse
from daemon.engines.batch import Ran
from daemon.engines.cluster.wire import Brought, Changed, Description, Join, Joined, Models, Replicas
from daemon.engines.life import Loaded, Sleep
from daemon.engines.lives import Lives
from daemon.engines.messages import IN_FLIGHT, SharedAudio
from daemon.engines.persistence import LostBatchError, run_to_the_end
from daemon.engines.process import EngineEndedError, EngineProcess
from daemon.settings.schema import EngineSettings, Settings
from streaming.job import Captured, Job

_log = logging.getLogger(__name__)

_BRIDGE = "daemon.engines.cluster.bridge"
"""The program of the link."""

_LOSSES = 4
"""Replicas that a batch may be lost with while they run it. Two may be killed one after another without its fault."""

_FAREWELL = 5.0
"""Seconds in which a link ends that is not needed any more."""

_TOLD = 64
"""Replicas whose use is told; those that answered last. Over the years there are many."""


async def look_at_cluster(settings: Settings) -> Joined:
    """Return what is there, through a link of its own.

    Raises:
        ServiceError: there is no cluster, or no such application.
        LostBatchError: the link ended.
        OSError: it cannot be started.
    """
    audio = SharedAudio(1, 1)
    spawn = partial(EngineProcess.start, _BRIDGE, settings, audio, lambda _: None)
    lives = Lives("the link to the cluster", spawn, _not_again)
    try:
        process = await lives.start()
        joined: Joined = await process.ask(_joining(settings.engine))
        return joined
    finally:
        lives.close()
        await asyncio.to_thread(lives.ended, _FAREWELL)


async def _not_again(process: EngineProcess) -> None:
    """It is asked once."""


def _joining(engine: EngineSettings, vocabulary: str = "") -> Join:
    return Join(engine.address, engine.application, engine.timeout, vocabulary)


class ClusterWorker:
    """The part of the cluster that one batch is with at a time, and a full one ahead: one replica's worth.

    Which replica it is, Ray Serve decides anew for each batch.
    """

    ahead = True

    def __init__(self, host: ClusterHost, number: int) -> None:
        self._host = host
        self._number = number

    @property
    def open(self) -> bool:
        return self._number < self._host.replicas

    def teacher_apart(self) -> bool:
        return self._host.loaded is not None and self._host.loaded.teacher_apart

    def submit(self, jobs: Sequence[Job]) -> asyncio.Future[Ran]:
        return asyncio.ensure_future(self._host.run(jobs))


class ClusterHost:
    """The engines of a cluster.

    Attributes:
        workers: as many as this daemon keeps replicas busy at once, at most.
        sleep: they do not sleep.
    """

    sleep = Sleep()

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        engine = settings.engine
        self._audio = SharedAudio(settings.scheduler.batch, IN_FLIGHT * engine.at_most)
        self._lives = Lives("the link to the cluster", self._spawn, self._join)
        self._lives.came_up = self._notice
        self._running = 0
        self._loaded: Loaded | None = None
        self._models: Models | None = None
        self._foreign: str | None = None  # models that replicas have now and that cannot be used
        self._answered = True  # by a replica with others, since then
        self._tokenizer = tempfile.TemporaryDirectory(prefix="whisperd-")
        self._changed: Callable[[], None] = lambda: None
        self._use: OrderedDict[str, ReplicaUse] = OrderedDict()
        self._lost = 0
        self.workers = [ClusterWorker(self, number) for number in range(engine.at_most)]

    # --- its life --------------------------------------------------------------------------------------------------

    async def load(self) -> Loaded:
        """Join the cluster, as soon as there is one."""
        _log.info("looking for the application %s of the cluster", self._settings.engine.application)
        await self._lives.persist()
        assert self._loaded is not None, "it has joined"
        return self._loaded

    async def warm(self) -> Captured:
        """A replica is warm before it answers; what it captured lies on its machine."""
        return Captured()

    async def unload(self) -> None:
        """Others may use the replicas: a cluster's size is its own matter."""

    def close(self) -> None:
        self._lives.close()
        self._tokenizer.cleanup()

    def ended(self, seconds: float) -> bool:
        return self._lives.ended(seconds)

    def watch(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    @property
    def loaded(self) -> Loaded | None:
        return self._loaded

    @property
    def restarts(self) -> int:
        return self._lives.restarts

    @property
    def replicas(self) -> int:
        """How many replicas take batches."""
        return self._running if self._lives.up.is_set() else 0

    @property
    def trouble(self) -> str | None:
        """Why no replica takes batches; None if one does."""
        if self.replicas and (self._foreign is None or self._answered):
            return None
        if not self._lives.up.is_set():
            return self._lives.trouble or "the cluster is being looked for"
        return self._foreign or f"no replica of {self._settings.engine.application} runs"

    @property
    def remark(self) -> str | None:
        expected = self._settings.engine.replicas
        if self._foreign is not None:
            return self._foreign
        return f"degraded: {self.replicas} of {expected} replicas run" if self.replicas < expected else None

    def gpu_memory(self) -> Mapping[str, GpuMemory]:
        """None of it is this machine's."""
        return {}

    def cluster(self) -> ClusterUse:
        return ClusterUse(self.replicas, self._lost, dict(self._use))

    async def _spawn(self) -> EngineProcess:
        return await EngineProcess.start(_BRIDGE, self._settings, self._audio, self._told)

    async def _join(self, process: EngineProcess) -> None:
        vocabulary = self._models.vocabulary if self._models is not None else ""
        joined: Joined = await process.ask(_joining(self._settings.engine, vocabulary))
        self._running = joined.replicas.running
        self._adopt(joined.description.models, joined.description)

    def _told(self, message: object) -> None:
        match message:
            case Replicas(running=running):
                if running != self._running:
                    self._say_how_many(running)
                self._running = running
            case Changed(models=models, usable=True):
                _log.warning("replicas have other models now: %s", models)
                self._adopt(models)
            case Changed(models=models):
                self._foreign = f"replicas have models now that this daemon cannot use ({models}): restart this daemon"
                self._answered = False
                _log.error("%s", self._foreign)
        self._notice()

    def _notice(self) -> None:
        self._changed()

    def _say_how_many(self, running: int) -> None:
        expected = self._settings.engine.replicas
        say = _log.warning if running < min(expected, self._running) else _log.info
        say("%d replicas run, of %d expected", running, expected)

    def _adopt(self, models: Models, description: Description | None = None) -> None:
        """Speak of these models from now on."""
        file = Path(self._tokenizer.name) / "tokenizer.json"
        if description is not None and not file.exists():
            file.write_bytes(description.tokenizer)
        self._foreign = None
        self._models = models
        self._loaded = Loaded(
            models.student, models.teacher, models.device, file, models.eot, models.contexts, models.languages
        )

    # --- batches ---------------------------------------------------------------------------------------------------

    async def run(self, jobs: Sequence[Job]) -> Ran:
        """Run a batch on any replica, and on another where one is lost."""
        return await run_to_the_end(jobs, self._attempt, _LOSSES)

    async def _attempt(self, jobs: Sequence[Job]) -> Ran:
        await self._lives.up.wait()
        process = self._lives.process
        assert process is not None, "it is up"
        try:
            brought: Brought = await process.ask(*self._audio.put(jobs))
        except EngineEndedError as ended:
            self._lost += 1
            raise LostBatchError(f"the link was lost: {ended}", blamed=False) from None  # no job is to blame for that
        except LostBatchError:
            self._lost += 1
            raise
        self._answered = True
        self._note(brought, len(jobs))
        return brought.reply.ran

    def _note(self, brought: Brought, jobs: int) -> None:
        name = brought.reply.replica
        before = self._use.pop(name, ReplicaUse())
        self._use[name] = ReplicaUse(
            before.jobs + jobs,
            before.batches + 1,
            before.seconds + brought.reply.ran.seconds,
            before.wire + brought.wire,
        )
        while len(self._use) > _TOLD:
            self._use.popitem(last=False)
