"""Those who speak and read: websocket clients, a Wyoming satellite, and somebody at the microphone.

Owns what a sensible client does: it connects again when it is cut off, and says again what was cut off. Each speaks its
protocol alone, and notes what it was told at the moment when it has read it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient

from bench.day.book import Book, Speaker
from bench.day.daemon import Daemon
from bench.day.ledger import Told
from bench.day.recordings import RATE
from bench.day.schedule import Kind
from bench.sound_server import SoundServer

_FRAME = RATE // 10 * 2  # bytes in 100 ms
_PAUSE = 0.025  # seconds after each of them: four times the pace of speech
_DONE = 1000  # the close code after a stop that was asked for
_RETRY = 0.25
_PATIENCE = 60.0
_DAEMON = (Kind.DAEMON_STOPPED, Kind.DAEMON_KILLED, Kind.DAEMON_KILLED_TELLING)


class BrokenError(Exception):
    """The turn was cut off."""


Say = Callable[[bytes], Awaitable[int]]
"""Says a sentence; returns how many finals (or words of an answer) came of it. Raises BrokenError, OSError."""


async def say_until_heard(me: Speaker, say: Say, sentence: bytes) -> None:
    """Again and again while it is cut off."""
    me.sent += 1
    while True:
        me.said += 1
        try:
            heard = await say(sentence)
        except (BrokenError, OSError, EOFError, WebSocketException, TimeoutError):
            me.broken += 1
            await asyncio.sleep(_RETRY)
            continue
        if not heard:
            me.unheard += 1
        return


async def _connected(make: Callable[[], Awaitable[Any]]) -> Any:
    """As soon as somebody listens."""
    while True:
        try:
            return await make()
        except (OSError, EOFError, WebSocketException):
            await asyncio.sleep(_RETRY)


async def _frames(sentence: bytes, send: Callable[[bytes], Awaitable[None]]) -> None:
    for at in range(0, len(sentence), _FRAME):
        await send(sentence[at : at + _FRAME])
        await asyncio.sleep(_PAUSE)


class WebsocketClient:
    """stays: one connection for all sentences, each ended by a flush; else a connection for each, ended by a stop."""

    def __init__(self, name: str, daemon: Daemon, book: Book, *, stays: bool) -> None:
        self.me = book.speakers[name]
        self._url = f"{daemon.url}/v1/stream?source={name}"
        self._book = book
        self._stays = stays
        self._ws: ClientConnection | None = None

    async def say(self, sentence: bytes) -> int:
        """Say the sentence and return how many finals came of it.

        Raises:
            BrokenError, WebSocketException, OSError: it was cut off.
        """
        try:
            if self._ws is not None and self._ws.close_code is not None:
                await self.leave()  # it was closed while nobody spoke
            ws = self._ws or await self._open()
            sending = asyncio.create_task(self._send(ws, sentence))
            try:
                return await self._read(ws)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        ws, self._ws = self._ws, None
        if ws is not None:
            await ws.close()

    async def _open(self) -> ClientConnection:
        ws: ClientConnection = await _connected(lambda: connect(self._url, compression=None))
        self.me.connections += 1
        self._ws = ws
        await ws.send(json.dumps({"type": "start", "sample_rate": RATE, "partials": False}))
        return ws

    async def _send(self, ws: ClientConnection, sentence: bytes) -> None:
        await _frames(sentence, ws.send)
        await ws.send(json.dumps({"type": "flush" if self._stays else "stop"}))

    async def _read(self, ws: ClientConnection) -> int:
        """Until the turn is over. A daemon that ends says `stopped` too, but closes with another code."""
        heard, stopped = 0, False
        async with asyncio.timeout(_PATIENCE):
            async for message in ws:
                event = json.loads(message)
                if event["type"] == "final":
                    self._book.tell(Told(event["source"], event["text"], event["id"]))
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
    """The stock Wyoming client, as Home Assistant uses it: a connection for each turn, and its first transcript."""

    def __init__(self, daemon: Daemon, book: Book) -> None:
        self.me = book.speakers["satellite"]
        self._daemon = daemon
        self._book = book

    async def say(self, sentence: bytes) -> int:
        """Say the sentence on a connection of its own and return the length of its transcript, in characters.

        Raises:
            BrokenError, OSError: it was cut off.
        """
        client: AsyncTcpClient = await _connected(self._connect)
        self.me.connections += 1
        began = time.monotonic()
        try:
            await client.write_event(Transcribe(language="en").event())
            await client.write_event(AudioStart(RATE, 2, 1).event())
            sending = asyncio.create_task(self._send(client, sentence))
            try:
                text = await self._transcript(client)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        finally:
            await client.disconnect()
        if text:
            self._book.tell(Told(self.me.name, text))
        elif self._book.disturbed(began, *_DAEMON):
            raise BrokenError  # the daemon ended before the first word was in
        return len(text)

    async def _connect(self) -> AsyncTcpClient:
        client = AsyncTcpClient("127.0.0.1", self._daemon.wyoming_port)
        await client.connect()
        return client

    async def _send(self, client: AsyncTcpClient, sentence: bytes) -> None:
        async def send(frame: bytes) -> None:
            await client.write_event(AudioChunk(RATE, 2, 1, audio=frame).event())

        await _frames(sentence, send)
        await client.write_event(AudioStop().event())

    async def _transcript(self, client: AsyncTcpClient) -> str:
        async with asyncio.timeout(_PATIENCE):
            while (event := await client.read_event()) is not None:
                if Transcript.is_type(event.type):
                    return Transcript.from_event(event).text
        raise BrokenError


class Reader:
    """A subscriber of one source at `/v1/events`: cut off, it comes back, asks for all that is kept, as another life of
    the daemon counts from the beginning, and passes over what it knows by its id."""

    def __init__(self, source: str, daemon: Daemon, book: Book) -> None:
        self.me = book.speakers[source]
        self.finals = 0
        self._daemon = daemon
        self._book = book
        self._known: set[str] = set()

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                address = f"{self._daemon.url}/v1/events?source={self.me.name}&since=0"
                async with connect(address, compression=None) as ws:
                    self.me.connections += 1
                    async for message in ws:
                        self._note(json.loads(message))
            except (OSError, EOFError, WebSocketException):
                pass
            await asyncio.sleep(_RETRY)

    def _note(self, event: dict[str, Any]) -> None:
        if event["type"] == "final" and event["id"] not in self._known:
            self._known.add(event["id"])
            self.finals += 1
            self._book.tell(Told(event["source"], event["text"], event["id"]))


class AtTheMicrophone:
    """Speaks when the microphone listens, at the pace of speech, and waits until `reader` has read the final."""

    def __init__(self, sound: SoundServer, reader: Reader, daemon: Daemon, book: Book) -> None:
        self.me = book.speakers[reader.me.name]
        self._sound = sound
        self._reader = reader
        self._daemon = daemon
        self._book = book

    async def say(self, sentence: bytes) -> int:
        """Say the sentence once the microphone listens, and return how many finals came of it.

        Raises:
            BrokenError: it was unplugged, or the daemon ended.
        """
        while not await self._heard_now():  # noqa: ASYNC110 - a gauge has no event to wait for
            await asyncio.sleep(_RETRY)
        began, before = time.monotonic(), self._reader.finals
        voice = asyncio.create_task(self._sound.play(sentence))
        deadline = began + _PATIENCE
        try:
            while not voice.done() or self._reader.finals == before:
                if self._book.disturbed(began, Kind.MICROPHONE_UNPLUGGED, *_DAEMON):
                    raise BrokenError
                if time.monotonic() > deadline:
                    return 0
                await asyncio.sleep(0.05)  # there is nothing to wait for: what is missed makes no event
        finally:
            voice.cancel()
            await asyncio.gather(voice, return_exceptions=True)
        return self._reader.finals - before

    async def _heard_now(self) -> bool:
        if self._book.disturbed(time.monotonic(), Kind.MICROPHONE_UNPLUGGED, *_DAEMON):
            return False
        return bool((await self._daemon.sample()).get("whisperd_microphones_open"))
