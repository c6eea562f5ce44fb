"""The composition root: what is made, in which order it starts, and how it ends.

Owns the wiring, the signals and the drain. Everything else is made here and handed its neighbours; nothing reaches
back.

    start: listen (health pages answer, streams wait) -> load and warm the engine -> ready -> microphone, MQTT
    end:   stop accepting -> streams end, finals out -> subscribers and broker told -> connections closed
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from daemon.config import ConfigurationError, Settings, Surroundings, mqtt_password
from daemon.health import Health
from daemon.hub import Hub, Outbox
from daemon.metrics import Metrics
from daemon.microphone import Microphone, MicrophoneError
from daemon.mqtt import Mqtt
from daemon.notify import Notifier
from daemon.scheduler import EngineThread, Scheduler
from daemon.server import Server
from daemon.sources import Sources, check_name
from daemon.stream import Model, Neighbours, Stream
from daemon.web import Pages
from streaming.events import Start
from streaming.job import Job, Result
from streaming.text import Text

_log = logging.getLogger(__name__)

_LOADING_PATIENCE = 60.0
"""Seconds more that the service manager is asked for, each time, while the engine loads."""


class ServiceError(Exception):
    """The service cannot start or go on; the message says why."""


class Engine(Protocol):
    """What is asked of `streaming.whisper.engine.Engine`."""

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

    def warm(self) -> None: ...

    def run(self, jobs: Sequence[Job]) -> list[Result]: ...


LoadEngine = Callable[[Settings], Engine]


def describe_models(settings: Settings) -> str:
    """The models' names and what they can hear, from their files; the weights stay where they are.

    Raises:
        ServiceError: one of them cannot be had, or they do not go together.
    """
    from streaming.whisper.checkpoint import CheckpointError, open_checkpoint, require_same_vocabulary

    try:
        student = open_checkpoint(settings.models.student, "student")
        teacher = open_checkpoint(settings.teacher, "teacher") if settings.teacher else None
        if teacher is not None:
            require_same_vocabulary(student, teacher)
    except CheckpointError as error:
        raise ServiceError(str(error)) from None
    return f"student {student.name}, teacher {teacher.name if teacher else 'none'}, up to {student.contexts[-1]:g} s"


def load_engine(settings: Settings) -> Engine:
    """Raises:
    ServiceError: a model cannot be had, or does not fit the settings.
    """
    # Here, so that whatever needs no engine does not wait seconds for torch.
    from streaming.whisper.checkpoint import CheckpointError
    from streaming.whisper.engine import Engine as WhisperEngine

    models = settings.models
    try:
        return WhisperEngine.load(
            models.student, settings.teacher, models.device, dtype=models.dtype, threads=models.threads
        )
    except (CheckpointError, ValueError) as error:
        raise ServiceError(str(error)) from None


class Pipeline:
    """An engine and all that streams share: what the service, `transcribe` and `listen` have in common."""

    def __init__(self, settings: Settings, load: LoadEngine = load_engine) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.sources = Sources()
        self.hub = Hub(settings.subscribers.queue, settings.subscribers.replay, self.metrics)
        self._load = load
        self._engine: Engine | None = None
        self._thread = EngineThread()
        self.scheduler = Scheduler(self._thread, self._run, settings.scheduler.batch, self.metrics)
        self._shared: Neighbours | None = None
        self._warm = asyncio.Event()

    async def warm_up(self) -> Model:
        """Raises:
        ServiceError: see `load_engine`.
        """
        engine = await self._thread.call(self._load, self.settings)
        longest, settings = engine.contexts[-1], self.settings.session_settings()
        if settings.segment.longest > longest:
            raise ServiceError(
                f"segment.longest is {settings.segment.longest:g} s, but the models hear at most {longest:g} s: "
                "shorten it"
            )
        await self._thread.call(engine.warm)
        self._engine = engine
        model = Model(
            engine.student, engine.teacher, engine.device, engine.languages, Text(engine.tokenizer_file, engine.eot)
        )
        self._shared = Neighbours(
            model=model,
            session=settings,
            vad=self.settings.vad_settings(),
            backlog=self.settings.scheduler.backlog,
            scheduler=self.scheduler,
            hub=self.hub,
            sources=self.sources,
            metrics=self.metrics,
        )
        self._warm.set()
        return model

    async def wait_warm(self) -> None:
        await self._warm.wait()

    def open_stream(self, start: Start) -> Stream:
        """Raises:
        Fault: see `Stream`.
        """
        assert self._shared is not None, "warm up first"
        return Stream(start, self._shared)

    def close(self) -> None:
        self._thread.close()

    def ended(self) -> bool:
        """Whether the engine's thread has ended. One that is busy with torch must not meet the interpreter's end."""
        return self._thread.ended(1.0)

    def _run(self, jobs: Sequence[Job]) -> list[Result]:
        assert self._engine is not None, "nothing is scheduled before the engine is warm"
        return self._engine.run(jobs)


@asynccontextmanager
async def running(pipeline: Pipeline) -> AsyncIterator[Model]:
    """The pipeline, warm and scheduling, for as long as it is needed."""
    try:
        model = await pipeline.warm_up()
        task = asyncio.create_task(pipeline.scheduler.run())
        try:
            yield model
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    finally:
        pipeline.close()


class Service:
    """`whisperd run`.

    Raises:
        ConfigurationError: a file that the settings name cannot be read.
    """

    def __init__(self, settings: Settings, around: Surroundings, load: LoadEngine = load_engine) -> None:
        self.settings = settings
        self.pipeline = Pipeline(settings, load)
        metrics = self.pipeline.metrics
        self.health = Health(self.pipeline.scheduler, settings.health.canary, settings.health.stall, metrics)
        pages = Pages(self.health.unready, metrics.text, metrics.content_type, self._sources)
        self.server = Server(settings.server, settings.subscribers.send_timeout, self, pages, metrics)
        self._notifier = Notifier(around.notify_socket)
        self._watchdog = around.watchdog
        self._microphone = Microphone(settings.microphone, metrics) if settings.microphone.enabled else None
        self._mqtt = self._make_mqtt(around)
        self._stop = asyncio.Event()
        self._ready = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    # --- the server's gateway --------------------------------------------------------------------------------------

    async def open_stream(self, start: Start) -> Stream:
        if start.source is not None:
            check_name(start.source)
        await self.pipeline.wait_warm()
        return self.pipeline.open_stream(start)

    def subscribe(self, source: str | None, since: int | None) -> Outbox:
        return self.pipeline.hub.subscribe(source, since)

    def _sources(self) -> bytes:
        """The sources as JSON: what a subscriber must know to ask for the finals that it has not got."""
        newest = self.pipeline.hub.newest_finals()
        states = dict.fromkeys(newest, "idle") | self.pipeline.sources.states()
        listed = [{"source": name, "state": state, "final": newest.get(name, 0)} for name, state in states.items()]
        return json.dumps({"run": self.pipeline.hub.run, "sources": listed}).encode()

    # --- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until `stop`, and until all that was heard is out.

        Raises:
            ServiceError: it could not start, a part of it ended by an error, or finals were given up.
        """
        try:
            await self._listen()
            self._begin("scheduler", self.pipeline.scheduler.run())
            await self._until_stopped(self._load())
            if self._ready.is_set():
                await self._until_stopped(self._stop.wait())
        finally:
            self._notifier.stopping("finishing what was heard")
            await self._drain()
            self.pipeline.close()

    def stop(self) -> None:
        self._stop.set()

    async def wait_ready(self) -> None:
        await self._ready.wait()

    async def _listen(self) -> None:
        try:
            await self.server.listen()
        except OSError as error:
            address = f"{self.settings.server.host}:{self.settings.server.port}"
            raise ServiceError(f"cannot listen on {address}: {error.strerror or error}") from None
        _log.info("listening on %s", self.server.url)

    async def _load(self) -> None:
        patience = asyncio.create_task(self._ask_for_patience())
        try:
            model = await self.pipeline.warm_up()
        finally:
            patience.cancel()
        text = f"ready: student {model.student}, teacher {model.teacher or 'none'}, on {model.device}"
        self.health.warm = True
        self._begin("canary", self.health.run())
        if self._mqtt is not None:
            self._begin("mqtt", self._mqtt.run())
        if self._microphone is not None:
            self._begin("microphone", self._microphone.run(self.pipeline.open_stream))
        if self._watchdog is not None:
            self._begin("watchdog", self._feed_watchdog(self._watchdog / 2))
        self._notifier.ready(text)
        self._ready.set()
        _log.info(text)

    async def _until_stopped(self, work: Coroutine[Any, Any, Any]) -> None:
        """`work`, or the stop, or the first part of the service that fails."""
        tasks = {asyncio.create_task(work), asyncio.create_task(self._stop.wait())}
        try:
            while True:
                done, _ = await asyncio.wait(tasks | set(self._tasks.values()), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if done & tasks:
                    return
                raise ServiceError(f"a part of the service ended: {', '.join(self._names(done))}")
        except MicrophoneError as error:
            raise ServiceError(f"microphone: {error}") from None
        finally:
            for task in tasks:
                task.cancel()

    async def _drain(self) -> None:
        """Finals out, clients told, broker told; within the time that was set for it.

        Raises:
            ServiceError: the time was not enough.
        """
        self.health.stopping = True
        self.server.stop_accepting()
        try:
            async with asyncio.timeout(self.settings.shutdown.drain):
                await self._end_microphone()
                await self.server.wait_streams()
                self.pipeline.hub.close()
                if "mqtt" in self._tasks:
                    await self._tasks["mqtt"]
                await self.server.wait_closed()
        except TimeoutError:
            raise ServiceError(f"gave up after {self.settings.shutdown.drain:g} s with words unfinished") from None
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _end_microphone(self) -> None:
        task = self._tasks.get("microphone")
        if self._microphone is not None and task is not None:
            self._microphone.stop()
            await asyncio.wait({task})

    # --- parts -----------------------------------------------------------------------------------------------------

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[name] = asyncio.create_task(work, name=name)

    def _names(self, done: set[asyncio.Task[Any]]) -> list[str]:
        return sorted(task.get_name() for task in done)

    def _make_mqtt(self, around: Surroundings) -> Mqtt | None:
        settings = self.settings.mqtt
        if not settings.host:
            return None
        password = mqtt_password(settings, around)
        pipeline = self.pipeline
        try:
            return Mqtt(settings, password, pipeline.hub.subscribe(), pipeline.sources, pipeline.metrics)
        except OSError as error:
            raise ConfigurationError(f"mqtt.ca_file: {settings.ca_file}: {error.strerror or error}") from None

    async def _ask_for_patience(self) -> None:
        while True:
            self._notifier.loading(f"loading {self.settings.models.student}", _LOADING_PATIENCE)
            await asyncio.sleep(_LOADING_PATIENCE / 4)

    async def _feed_watchdog(self, interval: float) -> None:
        """By the progress of the decoding: that this loop turns proves little."""
        while True:
            if self.health.getting_on:
                self._notifier.alive()
            await asyncio.sleep(interval)


def stop_on_signals(stop: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT asks; the second does not wait."""
    loop = asyncio.get_running_loop()
    asked = False

    def on_signal(name: str) -> None:
        nonlocal asked
        if asked:
            _log.warning("%s again: leaving at once", name)
            logging.shutdown()
            os._exit(1)
        asked = True
        _log.info("%s: finishing what was heard", name)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
