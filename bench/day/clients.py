"""Those who speak and read: websocket clients, a Wyoming satellite, and somebody at the microphone.

Owns what a sensible client does: it connects again when it is cut off, and says again what was cut off. Each notes what
it was told at the moment when it has read it. How a protocol is spoken is in `bench.harness.clients`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from websockets.asyncio.client import ClientConnection
from wyoming.client import AsyncTcpClient

from bench.day.history import Clock, History, Speaker
from bench.day.schedule import FaultKind, Sentence
from bench.harness.clients import DISCONNECTS, Event, Pacer, Subscriber, ask, dial, dial_stream, tell
from bench.harness.daemon import Daemon
from bench.harness.delivery import Final
from bench.harness.home import SATELLITE
from bench.harness.recordings import RATE
from bench.sound_server import SoundServer
from bench.tasks import background

_SPEED = 4.0  # times the pace of speech, but at the microphone
_DONE = 1000  # the close code after a stop that was asked for
_RETRY = 0.25
_PATIENCE = 60.0
_DAEMON = (FaultKind.DAEMON_STOPPED, FaultKind.DAEMON_KILLED, FaultKind.DAEMON_KILLED_TELLING)

T = TypeVar("T")


class BrokenError(Exception):
    """A turn was cut off."""


Say = Callable[[bytes], Awaitable[int]]
"""Say a sentence and return how many finals (or characters of an answer) came of it. Raises what `say_all` expects."""


async def say_all(me: Speaker, say: Say, mine: Sequence[Sentence], recordings: Sequence[bytes], clock: Clock) -> None:
    """Say each sentence at its time, again and again while it is cut off.

    Args:
        me: who speaks; what happens is counted there.
        say: how a sentence is said.
        mine: the sentences, in order of time.
        recordings: what they may sound like.
        clock: the day's.
    """
    for sentence in mine:
        await clock.until(sentence.at)
        me.sent += 1
        while (heard := await _say_once(me, say, recordings[sentence.recording])) is None:  # noqa: ASYNC110 - a retry
            await asyncio.sleep(_RETRY)
        me.unheard += not heard


async def _say_once(me: Speaker, say: Say, sentence: bytes) -> int | None:
    """Say a sentence once.

    Returns:
        What came of it; None where it was cut off.
    """
    me.said += 1
    try:
        return await say(sentence)
    except (BrokenError, *DISCONNECTS):
        me.broken += 1
        return None


async def _connected(make: Callable[[], Awaitable[T]]) -> T:
    """Connect as soon as somebody listens.

    Args:
        make: makes the connection.

    Returns:
        What `make` returned.
    """
    while True:
        try:
            return await make()
        except DISCONNECTS:
            await asyncio.sleep(_RETRY)


class WebsocketClient:
    """A client with one connection for all sentences, each ended by a flush, or one for each, ended by a stop.

    Args:
        name: the source that it speaks as.
        daemon: the daemon that it speaks to.
        history: where it notes what it was told.
        stays: whether it keeps one connection for all sentences.
    """

    def __init__(self, name: str, daemon: Daemon, history: History, *, stays: bool) -> None:
        self.me = history.speakers[name]
        self._daemon = daemon
        self._history = history
        self._stays = stays
        self._ws: ClientConnection | None = None

    async def say(self, sentence: bytes) -> int:
        """Say a sentence.

        Returns:
            How many finals came of it.

        Raises:
            BrokenError: the turn was cut off.
            WebSocketException: likewise.
            OSError: likewise.
        """
        try:
            if self._ws is not None and self._ws.close_code is not None:
                await self.leave()  # it was closed while nobody spoke
            ws = self._ws or await self._open()
            async with background(self._send(ws, sentence)):
                return await self._read(ws)
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        ws, self._ws = self._ws, None
        if ws is not None:
            await ws.close()

    async def _open(self) -> ClientConnection:
        self._ws = await _connected(lambda: dial_stream(self._daemon, self.me.name))
        self.me.connections += 1
        await tell(self._ws, "start", sample_rate=RATE, partials=False)
        return self._ws

    async def _send(self, ws: ClientConnection, sentence: bytes) -> None:
        await Pacer(ws.send, _SPEED).say(sentence)
        await tell(ws, "flush" if self._stays else "stop")

    async def _read(self, ws: ClientConnection) -> int:
        """Read until the turn is over. A daemon that ends says `stopped` too, but closes with another code."""
        heard, stopped = 0, False
        async with asyncio.timeout(_PATIENCE):
            async for message in ws:
                event = json.loads(message)
                if event["type"] == "final":
                    self._history.tell(Final.of(event, time.monotonic()))
                    heard += 1
                elif event["type"] == "flushed":
                    return heard
                elif event["type"] == "stopped":
                    stopped = True
        if not stopped or ws.close_code != _DONE:
            raise BrokenError
        await self.leave()
        return heard


class Satellite:
    """A voice satellite of Home Assistant: a connection for each turn, by Wyoming."""

    def __init__(self, daemon: Daemon, history: History) -> None:
        self.me = history.speakers[SATELLITE]
        self._daemon = daemon
        self._history = history

    async def say(self, sentence: bytes) -> int:
        """Say a sentence on a connection of its own.

        Returns:
            The length of its transcript, in characters.

        Raises:
            BrokenError: the turn was cut off.
            OSError: likewise.
            EOFError: likewise.
        """
        client = await _connected(self._connect)
        self.me.connections += 1
        began = time.monotonic()
        try:
            async with asyncio.timeout(_PATIENCE):
                text = await ask(client, sentence, _SPEED)
        finally:
            await client.disconnect()
        if text:
            self._history.tell(Final(self.me.name, text))
        elif self._history.disturbed(began, *_DAEMON):
            raise BrokenError  # the daemon ended before the first word was in
        return len(text)

    async def _connect(self) -> AsyncTcpClient:
        client = AsyncTcpClient("127.0.0.1", self._daemon.wyoming_port)
        await client.connect()
        return client


class Reader:
    """A subscriber of one source, who comes back when it is cut off.

    It asks each time for all finals that are kept, because another life of the daemon counts from the beginning, and
    passes over those that it knows by their id.
    """

    def __init__(self, source: str, daemon: Daemon, history: History) -> None:
        self.me = history.speakers[source]
        self._daemon = daemon
        self._history = history
        self._known: set[str] = set()

    @property
    def finals(self) -> int:
        return len(self._known)

    async def run(self) -> None:
        """Read for ever."""
        subscriber = Subscriber(self._note)
        while True:
            try:
                async with dial(self._daemon, f"/v1/events?source={self.me.name}&since=0") as ws:
                    self.me.connections += 1
                    await subscriber.read(ws)
            except DISCONNECTS:
                pass
            await asyncio.sleep(_RETRY)

    def _note(self, event: Event) -> None:
        if event["type"] == "final" and event["id"] not in self._known:
            self._known.add(event["id"])
            self._history.tell(Final.of(event, time.monotonic()))


class AtTheMicrophone:
    """Somebody who speaks when the microphone listens, at the pace of speech, and waits until `reader` has read it."""

    def __init__(self, sound: SoundServer, reader: Reader, daemon: Daemon, history: History) -> None:
        self.me = reader.me
        self._sound = sound
        self._reader = reader
        self._daemon = daemon
        self._history = history

    async def say(self, sentence: bytes) -> int:
        """Say a sentence once the microphone listens.

        Returns:
            How many finals came of it.

        Raises:
            BrokenError: the microphone was unplugged, or the daemon ended.
        """
        while not await self._heard_now():  # noqa: ASYNC110 - a gauge has no event to wait for
            await asyncio.sleep(_RETRY)
        began, before = time.monotonic(), self._reader.finals
        said = asyncio.Event()
        async with background(self._say(sentence, said)):
            while not said.is_set() or self._reader.finals == before:
                if self._history.disturbed(began, FaultKind.MICROPHONE_UNPLUGGED, *_DAEMON):
                    raise BrokenError
                if time.monotonic() > began + _PATIENCE:
                    return 0
                await asyncio.sleep(0.05)  # there is nothing to wait for: what is missed makes no event
        return self._reader.finals - before

    async def _say(self, sentence: bytes, said: asyncio.Event) -> None:
        try:
            await self._sound.play(sentence)
        finally:
            said.set()

    async def _heard_now(self) -> bool:
        if self._history.disturbed(time.monotonic(), FaultKind.MICROPHONE_UNPLUGGED, *_DAEMON):
            return False
        return bool((await self._daemon.sample()).get("whisperd_microphones_open"))
