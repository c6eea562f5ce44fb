"""Audio in, events out, in this process: the engines, the scheduler, the hub, and the streams that they serve.

Owns the loading and the warming up of the engines, one for each device, and what new streams are made of: all that the
service and the commands that transcribe have in common. Knows no socket, no broker and no microphone: whatever brings
audio opens a stream here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace

from daemon.common.errors import ConfigurationError, ServiceError
from daemon.common.metrics import GpuMemory, Metrics
from daemon.common.sources import DEFAULT_SOURCE, Sources
from daemon.common.version import our_version
from daemon.core.detection import SpeechDetection
from daemon.core.hub import Hub
from daemon.core.neighbours import ModelInfo, Neighbours
from daemon.core.scheduler import Scheduler
from daemon.core.spacing import Spacing
from daemon.core.stream import Stream
from daemon.core.vocabularies import SourceVocabularies
from daemon.engines.host import MakeHost
from daemon.engines.life import Loaded, LoadEngine
from daemon.engines.load import load_engine
from daemon.engines.thread import ThreadHost
from daemon.settings.schema import Settings
from streaming.events import Endpointing, Start
from streaming.job import Captured
from streaming.text import Text
from streaming.vad import Detector

_log = logging.getLogger(__name__)


class Pipeline:
    """The engines, one for each device, and all that streams share.

    Args:
        settings: as they were loaded.
        load: loads an engine.
        make_host: makes the place where an engine lives.
    """

    def __init__(self, settings: Settings, load: LoadEngine = load_engine, make_host: MakeHost = ThreadHost) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.metrics.gpus.read = self._gpu_memory
        self.sources = Sources()
        self.vocabularies = SourceVocabularies()
        self._configure_vocabularies()
        self.hub = Hub(settings.subscribers.queue, settings.subscribers.replay, self.metrics)
        self._hosts = [make_host(each, load) for each in settings.for_each_device()]
        self._spacing = Spacing(settings.partials.interval)
        self.scheduler = Scheduler(
            [worker for host in self._hosts for worker in host.workers],
            settings.scheduler.batch,
            self.metrics,
            self._spacing,
        )
        for host in self._hosts:
            host.watch(self._engines_changed)
        self.detection = SpeechDetection()
        self.metrics.asleep.set_function(lambda: self.asleep)
        self.metrics.wakes.set_function(lambda: sum(host.sleep.times for host in self._hosts))
        self.metrics.waking_seconds.set_function(lambda: sum(host.sleep.seconds for host in self._hosts))
        self.metrics.engine_restarts.set_function(lambda: sum(host.restarts for host in self._hosts))
        self.metrics.cluster.read = lambda: self._hosts[0].cluster()
        self._longest: float | None = None  # seconds that the models hear
        self._shared: Neighbours | None = None
        self._warm = asyncio.Event()

    async def warm_up(self) -> ModelInfo:
        """Load and warm the engine of every device, and return what was loaded. Streams can be opened afterwards.

        Raises:
            ServiceError: see `load_engine`.
        """
        engines = await asyncio.gather(*(host.load() for host in self._hosts))
        engine = engines[0]  # all hold the same models
        self._longest = engine.contexts[-1]
        try:
            _check_longest(self.settings, self._longest)
            _check_languages(self.settings, engine.languages)
        except ConfigurationError as error:
            raise ServiceError(str(error)) from None
        self._count(await asyncio.gather(*(host.warm() for host in self._hosts)))
        # Its weights are read now: at the first stream there may be no file descriptor left to read them with.
        Detector(self.settings.vad_settings())
        model = self._model_info(engines, Text(engine.tokenizer_file, engine.eot))
        _tell_long_form(self.settings, model)
        widens = len(engine.contexts) == 1  # with shorter windows what is short takes little
        if widens:
            self.metrics.partial_spacing.set_function(lambda: self._spacing.factor)
        self._shared = Neighbours(
            model=model,
            session=self.settings.session_settings(),
            vad=self.settings.vad_settings(),
            backlog=self.settings.scheduler.backlog,
            scheduler=self.scheduler,
            hub=self.hub,
            sources=self.sources,
            vocabularies=self.vocabularies,
            metrics=self.metrics,
            detection=self.detection,
            spacing=self._spacing if widens else None,
        )
        self._warm.set()
        return model

    def _model_info(self, engines: Sequence[Loaded], text: Text) -> ModelInfo:
        engine = engines[0]
        devices = ", ".join(each.device for each in engines)
        model = ModelInfo(
            engine.student,
            engine.teacher,
            devices,
            engine.languages,
            text,
            engine.contexts[-1],
            tuple(self.settings.models.languages),
        )
        self.metrics.build.clear()
        self.metrics.build.labels(our_version() or "", model.student, model.teacher or "", model.device).set(1)
        return model

    def _engines_changed(self) -> None:
        """An engine takes batches that did not, or there are other models of the same vocabulary: say so, and go on."""
        self.scheduler.look_again()
        loaded = [host.loaded for host in self._hosts]
        if self._shared is not None and all(loaded):
            model = self._model_info([each for each in loaded if each], self._shared.model.text)
            self._shared = replace(self._shared, model=model)

    def _count(self, captured: Sequence[Captured]) -> None:
        self.metrics.graphs.set(sum(each.graphs for each in captured))
        self.metrics.graphs_missing.set(sum(each.missing for each in captured))
        self.metrics.graphs_seconds.set(sum(each.seconds for each in captured))
        self.metrics.graphs_bytes.set(sum(each.held for each in captured))

    def reload(self, settings: Settings) -> None:
        """Use `settings` for new streams.

        Raises:
            ConfigurationError: they do not go with the models; nothing has changed then.
        """
        assert self._shared is not None, "warm up first"
        assert self._longest is not None, "warm up first"
        _check_longest(settings, self._longest)
        Detector(settings.vad_settings())  # as at the start
        _tell_long_form(settings, self._shared.model)
        self.settings = settings
        self._configure_vocabularies()
        self._spacing.interval = settings.partials.interval
        self._shared = replace(
            self._shared,
            session=settings.session_settings(),
            vad=settings.vad_settings(),
            backlog=settings.scheduler.backlog,
        )

    def _configure_vocabularies(self) -> None:
        by_source = {name: each.vocabulary for name, each in self.settings.sources.items()}
        self.vocabularies.configure(self.settings.vocabulary, by_source)

    async def wait_model(self) -> ModelInfo:
        """Wait until the engines are warm, and return what was loaded."""
        await self._warm.wait()
        assert self._shared is not None, "it is warm"
        return self._shared.model

    def open_stream(self, start: Start) -> Stream:
        """Open a stream on the warm engines.

        Raises:
            Fault: see `Stream`.
        """
        assert self._shared is not None, "warm up first"
        return Stream(self._with_the_sources(start), self._shared)

    def _with_the_sources(self, start: Start) -> Start:
        """Return `start` with the endpointing that the settings have for its source, where it does not choose."""
        source = self.settings.sources.get(start.source or DEFAULT_SOURCE)
        if source is None:
            return start
        chosen = {key: value for key, value in asdict(start.endpointing).items() if value is not None}
        return replace(start, endpointing=Endpointing(**{**source.endpointing(), **chosen}))

    async def run(self) -> None:
        """Look at what streams hear, and run their jobs, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.scheduler.run())
            tasks.create_task(self.detection.run())

    @property
    def asleep(self) -> bool:
        """Whether the models were put away."""
        return all(host.sleep.asleep for host in self._hosts)

    @property
    def waking(self) -> bool:
        """Whether models that were put away are being loaded again."""
        return any(host.sleep.waking for host in self._hosts)

    @property
    def student(self) -> str:
        """The student's name: what is loaded, or what is to be."""
        return self._shared.model.student if self._shared is not None else self.settings.models.student

    @property
    def trouble(self) -> str | None:
        """Why no engine can run anything now; None if one can."""
        troubles = [host.trouble for host in self._hosts]
        return "; ".join(each for each in troubles if each) if all(troubles) else None

    @property
    def remark(self) -> str | None:
        """What is not as it should be with the engines, though they run; None if all is well."""
        return "; ".join(each for host in self._hosts if (each := host.remark)) or None

    async def unload(self) -> None:
        """Put the models away until the next job."""
        await asyncio.gather(*(host.unload() for host in self._hosts))

    def close(self) -> None:
        for host in self._hosts:
            host.close()

    def ended(self) -> bool:
        """Wait a moment for the engines, and return whether they have ended.

        A thread that is busy with torch must not meet the interpreter's end.
        """
        return all(host.ended(1.0) for host in self._hosts)

    def _gpu_memory(self) -> dict[str, GpuMemory]:
        return {device: memory for host in self._hosts for device, memory in host.gpu_memory().items()}


def _tell_long_form(settings: Settings, model: ModelInfo) -> None:
    """Warn of a way to cut files that these models do not know."""
    way, text = settings.files.long_form, model.text
    if way != "vad" and text.first_timestamp is None:
        _log.warning("files.long_form is %s, but %s has no timestamps: files are cut by vad", way, model.student)
    elif way == "conditioned" and text.previous is None:
        _log.warning("files.long_form is conditioned, but %s cannot be told the text before", model.student)


def _check_longest(settings: Settings, longest: float) -> None:
    wanted = {"segment.longest": settings.session_settings().segment.longest}
    wanted |= {f"sources.{name}.longest": each.longest for name, each in settings.sources.items() if each.longest}
    for key, seconds in wanted.items():
        if seconds > longest:
            raise ConfigurationError(f"{key} is {seconds:g} s, but the models hear at most {longest:g} s: shorten it")


def _check_languages(settings: Settings, known: Sequence[str]) -> None:
    if unknown := [code for code in settings.models.languages if code not in known]:
        raise ConfigurationError(
            f"models.languages: the models do not know {', '.join(unknown)}, only {', '.join(known)}"
        )


@asynccontextmanager
async def running(pipeline: Pipeline) -> AsyncIterator[ModelInfo]:
    """Warm the pipeline and run its scheduler for a block.

    Yields:
        What was loaded.
    """
    try:
        model = await pipeline.warm_up()
        task = asyncio.create_task(pipeline.run())
        try:
            yield model
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    finally:
        pipeline.close()
