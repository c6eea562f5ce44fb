"""A daemon in this process, on a loop of its own in a thread, for attacks that are not asynchronous.

The engine is scripted, all else is real. After each round nothing of the attackers may be left in it, and its log must
hold no exception.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
import threading
import time
from pathlib import Path

from tokenizers import Tokenizer

from daemon.service.app import Service
from daemon.settings.environment import ServiceEnvironment
from daemon.settings.schema import Settings
from streaming import pretrained
from streaming.fake import ScriptedEngine

PATIENCE = 30.0
"""Seconds for an answer: only to fail instead of hanging."""

_TOKENIZER = next(Path(next(iter(pretrained.__path__))).rglob("tokenizer.json"))
_SECTIONS = {
    "server": {"port": 0, "tokens": ["good", {"token": "half", "send": ["a*"], "read": ["a*"]}]},
    "wyoming": {"host": "127.0.0.1", "port": 0, "timeout": 5.0, "no_speech": 1.0},
    "subscribers": {"send_timeout": 5.0},
}


class _Exceptions(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.seen.append(logging.Formatter().format(record))


class Daemon:
    """open, then any number of `exchange`, then close. sections: of its settings, beside those of every attack."""

    def __init__(self, sections: dict[str, object] | None = None) -> None:
        self._settings = Settings.model_validate({**_SECTIONS, **(sections or {})})

    def open(self) -> None:
        self._log = _Exceptions()
        logging.getLogger().addHandler(self._log)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)  # it shall not outlive a failure
        self._thread.start()
        self._service = asyncio.run_coroutine_threadsafe(self._make(), self._loop).result(PATIENCE)
        self._own_subscribers = self._service.pipeline.metrics.subscribers._value.get()  # that of MQTT
        self.http = _place(self._service.server.url)
        self.ports = {name: _place(url) for name, url in self._service.server.urls.items()}
        assert self._service.wyoming is not None
        self.wyoming = self._service.wyoming.address

    def close(self) -> None:
        try:
            self._check_nothing_is_left()
        finally:
            self._service.stop()
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(PATIENCE)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            logging.getLogger().removeHandler(self._log)
        self.check_log()

    def exchange(self, place: tuple[str, int], pieces: list[bytes]) -> bytes:
        """Say all, hear all until the other side is done or silent; then leave."""
        heard = b""
        with socket.create_connection(place, timeout=PATIENCE) as attacker:
            try:
                for piece in pieces:
                    attacker.sendall(piece)
                attacker.shutdown(socket.SHUT_WR)
                while more := attacker.recv(65536):
                    heard += more
            except TimeoutError:
                raise
            except OSError:
                pass  # it has heard enough, and hung up
        self.check_log()
        return heard

    def check_log(self) -> None:
        assert self._log.seen == [], self._log.seen

    def is_alive(self) -> bool:
        connection = http.client.HTTPConnection(*self.http, timeout=PATIENCE)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().read() == b"alive\n"
        finally:
            connection.close()

    async def _make(self) -> Service:
        eot = Tokenizer.from_file(str(_TOKENIZER)).get_vocab()["<|endoftext|>"]
        service = Service(self._settings, ServiceEnvironment(), lambda _: ScriptedEngine(_TOKENIZER, eot))
        self._run = asyncio.create_task(service.run())
        await service.wait_ready()
        return service

    async def _end(self) -> None:
        await self._run

    def _check_nothing_is_left(self) -> None:
        assert self.is_alive()
        server, metrics = self._service.server, self._service.pipeline.metrics
        deadline = time.monotonic() + PATIENCE

        def left() -> dict[str, float]:
            return {
                "streams": float(self._service.pipeline.sources.open_streams),
                "streams_open": metrics.streams_open._value.get(),
                "wyoming_clients": metrics.wyoming_clients._value.get(),
                "subscribers": metrics.subscribers._value.get() - self._own_subscribers,
                "stream slots": float(server.slots._taken),
                "handshakes": float(server.connections.number_waiting),
            }

        while any(left().values()):
            assert time.monotonic() < deadline, left()
            time.sleep(0.01)  # counters have no event to wait for


def _place(url: str) -> tuple[str, int]:
    host, _, port = url.partition("://")[2].rpartition(":")
    return host, int(port)
