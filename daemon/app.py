"""The composition root: what is made, in which order it starts, and how it ends.

Owns the wiring, the signals and the drain. Everything else is made here and handed its neighbours; nothing reaches
back.

    start: listen (health pages answer, streams wait) -> load and warm the engine -> a first decode -> ready
           -> microphone, MQTT
    SIGHUP: the settings are read again; what may change does, all else is named and waits for a restart
    end:   stop accepting -> streams end, finals out -> subscribers and broker told -> connections closed
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from daemon import announce, status
from daemon.access import exposed, wyoming_remark
from daemon.config import ConfigurationError, Settings, Surroundings, mqtt_spool
from daemon.config import Dialects as DialectSettings
from daemon.credentials import Credentials
from daemon.descriptors import Accepting
from daemon.dialects import deepgram, native, openai_files, openai_realtime, vosk, whisperlive
from daemon.dialects.codec import Dialect
from daemon.edges import Visitors
from daemon.faults import Fault, ServiceError
from daemon.gateway import Gateway
from daemon.health import Health
from daemon.logs import SERVICE, set_format, set_level
from daemon.manager import ServiceManager
from daemon.microphone import Microphone
from daemon.mqtt import Mqtt
from daemon.notify import Notifier
from daemon.pipeline import LoadEngine, Pipeline, load_engine
from daemon.reload import plan
from daemon.server import Server
from daemon.sound import MicrophoneError
from daemon.sources import check_name
from daemon.web import Pages
from daemon.wyoming import Wyoming
from streaming.events import Final

if TYPE_CHECKING:
    from daemon.uploads import Uploads

_log = logging.getLogger(SERVICE)


class Service:
    """`whisperd run`.

    Raises:
        ConfigurationError: a file that the settings name cannot be read, or a port would be open to anybody.
    """

    def __init__(self, settings: Settings, around: Surroundings, load: LoadEngine = load_engine) -> None:
        self._credentials = Credentials(around)
        self.settings = settings = self._credentials.with_tokens(settings)
        self._around = around
        self._sockets: list[socket.socket] = []  # those that the service manager hands over
        if not around.sockets:
            self._check_guarded(settings)
        self._teacher_loaded = settings.teacher is not None
        self._credentials.read_password(settings.mqtt)
        self._credentials.hide(settings)
        self.pipeline = Pipeline(settings, load)
        self.pipeline.hub.on_final = self._note_final
        metrics = self.pipeline.metrics
        self.health = Health(self.pipeline.scheduler, settings.health.canary, settings.health.stall, metrics)
        metrics.ready.set_function(lambda: self.health.unready() is None)
        models = partial(openai_files.models, [settings.models.student], int(time.time()))
        gateway = Gateway(self.pipeline)
        pages = Pages(
            self.health.unready,
            metrics.text,
            metrics.content_type,
            gateway.sources,
            models if settings.dialects.openai else None,
        )
        self.server = Server(
            settings.server, settings.subscribers.send_timeout, gateway, pages, metrics, _dialects(settings.dialects)
        )
        self.uploads = self._make_uploads()
        self._manager = ServiceManager(Notifier(around.notify_socket), self.health, self._status)
        self._watchdog = around.watchdog
        self._microphones = [Microphone(each, metrics) for each in settings.all_microphones]
        self._mqtt = self._make_mqtt()
        self.wyoming = self._make_wyoming(gateway)
        self._stop = asyncio.Event()
        self._ready = asyncio.Event()
        self._hangup = asyncio.Event()
        self._read_again: Callable[[], Settings] | None = None
        self._notes: tuple[str, ...] = ()
        self._models = ""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    # --- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until `stop`, and until all that was heard is out.

        Raises:
            ServiceError: it could not start, a part of it ended by an error, or finals were given up.
        """
        Accepting(self.pipeline.metrics).watch()
        try:
            await self._listen()
            self._begin("scheduler", self.pipeline.scheduler.run())
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
        """Ask `read` for the settings and take over what may change; as soon as the service is ready."""
        self._read_again = read
        self._hangup.set()

    async def wait_ready(self) -> None:
        await self._ready.wait()

    async def _listen(self) -> None:
        if self.uploads is not None:
            await self.uploads.open()
            self.server.hand_over = self.uploads.protocol
        try:
            self._sockets = [_inherit(each) for each in self._around.sockets]
            self._check_guarded(self.settings)
            await self.server.listen(self._sockets)
        except ConfigurationError:
            for each in self._sockets:
                each.close()
            raise
        except OSError as error:
            address = f"{self.settings.server.host}:{self.settings.server.port}"
            if self._around.sockets:
                address = "the socket that the service manager handed over"
            raise ServiceError(f"cannot listen on {address}: {error.strerror or error}") from None
        if self._sockets:
            _log.info("the service manager listens for us: server.host and server.port do not count")
        _log.info("listening on %s", self.server.url)
        for dialect in _dialects_apart(self.settings.dialects):
            await self._listen_for(dialect)
        self._credentials.warn(self.settings)
        if self.wyoming is not None:
            await self._listen_wyoming(self.wyoming)

    async def _listen_for(self, dialect: Dialect) -> None:
        port = self.settings.dialects.ports[dialect.name]
        try:
            await self.server.listen_for(dialect, port)
        except OSError as error:
            address = f"{self.settings.server.host}:{port}"
            raise ServiceError(
                f"dialects.{dialect.name}: cannot listen on {address}: {error.strerror or error}"
            ) from None
        _log.info("%s: listening on %s", dialect.name, self.server.urls[dialect.name])

    async def _listen_wyoming(self, wyoming: Wyoming) -> None:
        try:
            await wyoming.listen()
        except OSError as error:
            address = f"{wyoming.settings.host}:{wyoming.settings.port}"
            raise ServiceError(f"wyoming: cannot listen on {address}: {error.strerror or error}") from None
        _log.info("wyoming: listening on tcp://%s:%d", *wyoming.address)
        if remark := wyoming_remark(wyoming.settings.host):
            _log.warning("wyoming: %s", remark)

    async def _load(self) -> None:
        patience = asyncio.create_task(self._manager.ask_for_patience(f"loading {self.settings.models.student}"))
        try:
            if self._mqtt is not None:
                await self._mqtt.open()  # before anything is heard: a source may have been switched off
            model = await self.pipeline.warm_up()
            self._begin("canary", self.health.run())
            await self._wait_first_decode()
        finally:
            patience.cancel()
        self._models = f"student {model.student}, teacher {model.teacher or 'none'}, on {model.device}"
        self.health.warm = True
        if self._mqtt is not None:
            self._begin("mqtt", self._mqtt.run())
        for microphone in self._microphones:
            self._begin(f"microphone {microphone.source}", microphone.run(self.pipeline.open_stream))
        if self.wyoming is not None and self.settings.wyoming.zeroconf:
            self._begin("zeroconf", announce.announce("_wyoming._tcp", *self.wyoming.address))
        if self._watchdog is not None:
            self._begin("watchdog", self._manager.feed_watchdog(self._watchdog / 2))
        self._begin("reload", self._reload_when_asked())
        _log.info("ready: %s", self._models)
        self._manager.ready()
        self._begin("status", self._manager.tell_status())
        self._ready.set()

    async def _wait_first_decode(self) -> None:
        """Raises:
        ServiceError: nothing came of it: whoever would speak here would get nothing either.
        """
        stall = self.settings.health.stall
        try:
            async with asyncio.timeout(stall):
                await self.health.first.wait()
        except TimeoutError:
            raise ServiceError(
                f"the first decode takes longer than {stall:g} s (health.stall): the engine hangs"
            ) from None
        if self.health.trouble is not None:
            raise ServiceError(f"the first decode failed: {self.health.trouble}")

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
        if self.wyoming is not None:
            self.wyoming.stop_accepting()
        try:
            async with asyncio.timeout(self.settings.shutdown.drain):
                await self._end_microphones()
                await self.server.wait_streams()
                if self.uploads is not None:
                    await self.uploads.close()
                if self.wyoming is not None:
                    await self.wyoming.wait_closed()
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

    def _make_mqtt(self) -> Mqtt | None:
        settings = self.settings.mqtt
        if not settings.host:
            return None
        pipeline, microphone = self.pipeline, self.settings.microphone
        return Mqtt(
            settings,
            self._credentials.mqtt_password,
            pipeline.hub.keep_first(),
            pipeline.sources,
            pipeline.metrics,
            mqtt_spool(settings, self._around),
            [microphone.source] if microphone.enabled else [],
            pipeline.hub.kept,
        )

    def _make_uploads(self) -> Uploads | None:
        if not self.settings.dialects.openai:
            return None
        # Here: it takes a while to import, and not every command serves.
        from daemon.uploads import Uploads

        send_timeout = self.settings.subscribers.send_timeout
        return Uploads(self.server, self.settings.dialects.max_upload, send_timeout, self.pipeline.metrics)

    def _make_wyoming(self, gateway: Gateway) -> Wyoming | None:
        settings = self.settings.wyoming
        if not settings.host:
            return None
        if settings.zeroconf and (mend := announce.missing()):
            raise ConfigurationError(f"wyoming.zeroconf: {mend}")
        try:
            check_name(settings.source)
        except Fault as fault:
            raise ConfigurationError(f"wyoming.source: {fault.message}") from None
        visitors = Visitors(self.settings.server.max_per_address)
        return Wyoming(
            settings, self.settings.subscribers.send_timeout, gateway, self.pipeline.metrics, visitors, self.server.pace
        )

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
                notes=(*away, *self._notes),
            )
        )

    # --- who may come in -------------------------------------------------------------------------------------------

    def _check_guarded(self, settings: Settings) -> None:
        """Raises:
        ConfigurationError: anybody could come in, and nobody said that this is meant.
        """
        server = settings.server
        # A path of the file system is guarded by its permissions.
        inherited = [each.getsockname()[0] for each in self._sockets if each.family != socket.AF_UNIX]
        hosts = inherited if self._sockets else [server.host]
        if trouble := exposed(hosts, server.tokens, open_to_all=server.open):
            raise ConfigurationError(trouble)

    def _note_final(self, final: Final) -> None:
        if self.settings.log.transcripts:
            _log.info("%s: %s", final.source, final.text)

    # --- settings that change --------------------------------------------------------------------------------------

    async def _reload_when_asked(self) -> None:
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._manager.reloading()
            outcome = "kept"
            try:
                self._reload()
                outcome = "taken"
            except (ConfigurationError, OSError) as error:
                for sentence in str(error).splitlines():
                    _log.error("reload: %s", sentence)
                _log.error("reload: the old settings stay in force")
                self._notes = ("the last reload failed: see the log",)
            self.pipeline.metrics.reloads.labels(outcome).inc()
            self._manager.ready()

    def _reload(self) -> None:
        """Raises:
        ConfigurationError, OSError: something in them will not do; nothing has changed then.
        """
        assert self._read_again is not None, "whoever asks says where from"
        wanted = self._credentials.with_tokens(self._read_again())
        planned = plan(self.settings, wanted, teacher_loaded=self._teacher_loaded)
        self._check_guarded(planned.settings)
        # What may refuse comes first; of two that may, the later one refuses before it has changed anything.
        before = self.settings
        self.pipeline.reload(planned.settings)
        try:
            self.server.reload(planned.settings.server)
        except OSError:
            self.pipeline.reload(before)
            raise
        if self.wyoming is not None:
            self.wyoming.visitors.most = planned.settings.server.max_per_address
        self.settings = planned.settings
        self._credentials.hide(self.settings)
        if "log.level" in planned.changed:
            set_level(planned.settings.log.level)
        if "log.format" in planned.changed:
            set_format(planned.settings.log.format)
        _log.info("reloaded: %s", ", ".join(planned.changed) or "nothing has changed")
        self._notes = ()
        if planned.waiting:
            keys = ", ".join(planned.waiting)
            self._notes = (f"restart for {keys}",)
            _log.warning("reload: %s cannot change while the service runs: restart it", keys)


def _dialects(settings: DialectSettings) -> list[Dialect]:
    """Those that are spoken on the port that all share."""
    optional = ((settings.openai, openai_realtime.DIALECT), (settings.deepgram, deepgram.DIALECT))
    return [native.DIALECT, *(dialect for wanted, dialect in optional if wanted)]


def _dialects_apart(settings: DialectSettings) -> list[Dialect]:
    """Those that have a port of their own."""
    known = (vosk.dialect(settings.vosk_sample_rate), whisperlive.DIALECT)
    return [dialect for dialect in known if dialect.name in settings.ports]


def _inherit(descriptor: int) -> socket.socket:
    """Raises:
    OSError: it is no socket that listens.
    """
    inherited = socket.socket(fileno=descriptor)
    if not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(f"descriptor {descriptor} does not listen: Accept=no is needed in the socket unit")
    return inherited
