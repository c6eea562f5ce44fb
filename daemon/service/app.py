"""The composition root: what is made, in which order it starts, and how it ends.

Owns the wiring, the lifecycle and the drain. Everything else is made here and passed the objects it needs; nothing
reaches back. Two parts do wiring of their own: the pipeline joins engines and streams, the listeners the ports.

    start: listen (health pages answer, streams wait) -> load and warm the engine -> MQTT -> a first decode
           -> microphones, zeroconf -> ready
    SIGHUP: read the settings again; apply what may change, and name what waits for a restart
    end:   stop accepting -> streams end, finals out -> subscribers and broker told -> connections closed
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from daemon.common.errors import ServiceError
from daemon.core.gateway import Gateway
from daemon.core.health import Health
from daemon.core.pipeline import Pipeline
from daemon.core.unloading import unload_when_idle
from daemon.dialects import openai_files
from daemon.endpoints import zeroconf
from daemon.endpoints.listeners import Ports, check_guarded
from daemon.endpoints.pages import Pages
from daemon.engines.host import as_set
from daemon.engines.life import LoadEngine
from daemon.engines.load import load_engine
from daemon.home_assistant.source import HouseNames
from daemon.microphone.capture import MicrophoneError
from daemon.microphone.source import Microphone
from daemon.mqtt.publisher import Mqtt
from daemon.service import status
from daemon.service.loop_lateness import watch_loop
from daemon.service.reloader import Reloader
from daemon.service.sd_notify import Notifier
from daemon.service.service_manager import ServiceManager
from daemon.settings.environment import ServiceEnvironment, mqtt_spool
from daemon.settings.schema import Settings
from daemon.settings.secrets import Credentials
from streaming.events import Final

_log = logging.getLogger(__name__)


class Service:
    """The whole service, as `whisperd run` has it.

    Args:
        settings: as they were loaded; the tokens of files are added here.
        environment: what the service manager says.
        load: loads an engine.

    Raises:
        ConfigurationError: a file that the settings name cannot be read, or a port would be open to anybody.
    """

    def __init__(self, settings: Settings, environment: ServiceEnvironment, load: LoadEngine = load_engine) -> None:
        self._credentials = Credentials(environment)
        settings = self._credentials.with_tokens(settings)
        self._environment = environment
        if not environment.sockets:
            check_guarded(settings.server)
        self._credentials.read(settings)
        self._credentials.hide(settings)
        self.pipeline = Pipeline(settings, load, as_set)
        self.pipeline.hub.on_final = self._note_final
        metrics = self.pipeline.metrics
        self.health = Health(
            self.pipeline.scheduler, settings.health.canary, settings.health.stall, metrics,
            lambda: self.pipeline.asleep or self.pipeline.waking,
            lambda: self.pipeline.trouble,
            elsewhere=settings.engine.backend == "ray",
        )  # fmt: skip
        metrics.ready.set_function(lambda: self.health.unready() is None)
        gateway = Gateway(self.pipeline)
        self._manager = ServiceManager(Notifier(environment.notify_socket), self.health, self._status)
        self._watchdog = environment.watchdog
        self._microphones = [Microphone(each, metrics) for each in settings.all_microphones]
        self._mqtt = self._make_mqtt()
        self._house_names = self._make_house_names()
        self.ports = Ports(settings, environment.sockets, gateway, self._make_pages(gateway), metrics)
        self.server, self.wyoming = self.ports.server, self.ports.wyoming
        self._reloader = Reloader(self.pipeline, self.ports, self._credentials, self._manager)
        self._stop = asyncio.Event()
        self._ready = asyncio.Event()
        self._models = ""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.pipeline.settings

    # --- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until `stop`, and until all that was heard is out.

        Raises:
            ServiceError: it could not start, a part of it failed, or finals were given up.
        """
        try:
            await self.ports.listen()
            self._credentials.warn(self.settings)
            self._begin("scheduler", self.pipeline.scheduler.run())
            self._begin("detection", self.pipeline.detection.run())
            await self._until_stopped(self._load())
            if self._ready.is_set():
                await self._until_stopped(self._stop.wait())
        finally:
            self._manager.stopping()
            await self._drain()
            self.pipeline.close()

    def stop(self) -> None:
        self._stop.set()

    def reload(self, read: Callable[[], Settings]) -> None:
        """Take over what may change of the settings that `read` returns, as soon as the service is ready."""
        self._reloader.ask(read)

    async def wait_ready(self) -> None:
        await self._ready.wait()

    async def _load(self) -> None:
        patience = asyncio.create_task(self._manager.ask_for_patience(f"loading {self.settings.models.student}"))
        try:
            if self._mqtt is not None:
                await self._mqtt.open()  # before anything is heard: a source may have been switched off
            model = await self.pipeline.warm_up()
            if self._mqtt is not None:
                self._begin("mqtt", self._mqtt.run())  # at once: from now on there are streams, and their finals
            if self._house_names is not None:
                self._begin("home assistant", self._house_names.run())
            self._begin("canary", self.health.run())
            await self._wait_first_decode()
        finally:
            patience.cancel()
        self._models = f"student {model.student}, teacher {model.teacher or 'none'}, on {model.device}"
        self.health.warm = True
        for microphone in self._microphones:
            self._begin(f"microphone {microphone.source}", microphone.run(self.pipeline.open_stream))
        if self.wyoming is not None and self.settings.wyoming.zeroconf:
            self._begin("zeroconf", zeroconf.announce("_wyoming._tcp", *self.wyoming.address))
        if self._watchdog is not None:
            self._begin("watchdog", self._manager.feed_watchdog(self._watchdog / 2))
        if (after := self.settings.models.unload_after) is not None:
            self._begin("unloading", unload_when_idle(self.pipeline, after))
        self._begin("reload", self._reloader.run())
        self._begin("loop", watch_loop(self.pipeline.metrics.loop_late.observe))
        _log.info("ready: %s", self._models)
        self._manager.ready()
        self._begin("status", self._manager.tell_status())
        self._ready.set()

    async def _wait_first_decode(self) -> None:
        """Wait until the first decode is done.

        Raises:
            ServiceError: nothing came of it, and nothing would come of a client's audio either.
        """
        stall = self.settings.health.stall
        while not self.health.first.is_set():
            try:
                async with asyncio.timeout(stall):
                    await self.health.first.wait()
            except TimeoutError:
                if self.pipeline.trouble is None:  # else there is no engine, but there may be one later
                    raise ServiceError(
                        f"the first decode takes longer than {stall:g} s (health.stall): the engine hangs"
                    ) from None
        if self.health.trouble is not None:
            raise ServiceError(f"the first decode failed: {self.health.trouble}")

    async def _until_stopped(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work` until it ends, the service is stopped, or a part of the service fails."""
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
        """Wait until finals are out and clients and broker are told, within the time that was set for it.

        Raises:
            ServiceError: the time was not enough.
        """
        self.health.stopping = True
        self.ports.stop_accepting()
        try:
            async with asyncio.timeout(self.settings.shutdown.drain):
                await self._end_microphones()
                await self.ports.wait_streams()
                self.pipeline.hub.close()
                if "mqtt" in self._tasks:
                    await self._tasks["mqtt"]
                await self.ports.wait_closed()
        except TimeoutError:
            raise ServiceError(f"gave up after {self.settings.shutdown.drain:g} s with unfinished finals") from None
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _end_microphones(self) -> None:
        ending = []
        for microphone in self._microphones:
            task = self._tasks.get(f"microphone {microphone.source}")
            if task is None:
                continue
            microphone.stop()
            if microphone.trouble is not None:
                task.cancel()  # it is opening its device, which may take long, and has nothing to finish
            ending.append(task)
        if ending:
            await asyncio.wait(ending)

    # --- parts -----------------------------------------------------------------------------------------------------

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[name] = asyncio.create_task(work, name=name)

    def _names(self, done: set[asyncio.Task[Any]]) -> list[str]:
        return sorted(task.get_name() for task in done)

    def _make_pages(self, gateway: Gateway) -> Pages:
        settings, pipeline, created = self.settings, self.pipeline, int(time.time())
        metrics = pipeline.metrics
        return Pages(
            self.health.unready,
            lambda: "asleep" if pipeline.asleep else pipeline.remark,
            metrics.text,
            metrics.content_type,
            gateway.sources,
            (lambda: openai_files.models([pipeline.student], created)) if settings.dialects.openai else None,
            (lambda name: openai_files.model(name, [pipeline.student], created)) if settings.dialects.openai else None,
        )

    def _make_mqtt(self) -> Mqtt | None:
        settings = self.settings.mqtt
        if not settings.host:
            return None
        pipeline = self.pipeline
        return Mqtt(
            settings,
            self._credentials.mqtt_password,
            pipeline.hub.keep_first(),
            pipeline.sources,
            pipeline.metrics,
            mqtt_spool(settings, self._environment),
            [microphone.source for microphone in self.settings.all_microphones],
            pipeline.hub.kept,
            pipeline.vocabularies.tell,
        )

    def _make_house_names(self) -> HouseNames | None:
        token = self._credentials.home_assistant_token
        if token is None:
            return None
        return HouseNames(self.settings.home_assistant, token, self.pipeline.vocabularies.tell_all)

    def _status(self) -> str:
        sources, last = self.pipeline.sources, self.pipeline.hub.last_final_at
        away = (f"microphone {each.source}: {each.trouble}" for each in self._microphones if each.trouble)
        return status.line(
            status.Facts(
                models=self._models,
                unready=self.health.unready(),
                streams=sources.open_streams,
                speaking=sum(state == "speech" for state in sources.states().values()),
                last_final=None if last is None else time.monotonic() - last,
                notes=(*(["the models are asleep"] if self.pipeline.asleep else []), *away, *self._reloader.notes),
            )
        )

    def _note_final(self, final: Final) -> None:
        if self.settings.log.transcripts:
            _log.info("%s: %s", final.source, final.text)
