"""Those who speak, make noise, say nothing, listen, come and go.

Owns what each of them does, by the documented protocols alone, at the pace of speech, until it is told that it is over.
Whoever is cut off without having caused it writes that down and comes again. Judges nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Iterator

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient

from bench.day.recordings import RATE
from bench.soak.book import Book, Connection, Ending, Kind, Note
from bench.soak.sounds import Sounds, quiet

SATELLITE = "satellite"
PATIENCE = 120.0
_FRAME_SECONDS = 0.1
_FRAME = round(RATE * _FRAME_SECONDS) * 2  # bytes
_RETRY = 0.5
_FAULTS = (OSError, EOFError, WebSocketException, TimeoutError)

Clip = tuple[bytes, bool]
"""Samples, and whether they are a sentence."""


class Pace:
    """Frames of a stream, each at the time at which a microphone would have heard it."""

    def __init__(self, ws: ClientConnection) -> None:
        self.seconds = 0.0  # sent
        self._ws = ws
        self._began = time.monotonic()

    async def send(self, pcm: bytes) -> None:
        for at in range(0, len(pcm), _FRAME):
            frame = pcm[at : at + _FRAME]
            self.seconds += len(frame) / 2 / RATE
            await asyncio.sleep(max(0.0, self._began + self.seconds - time.monotonic()))
            await self._ws.send(frame)


class People:
    """All of them. over: set when they shall come to their end."""

    def __init__(self, url: str, wyoming_port: int, sounds: Sounds, book: Book, dice: random.Random) -> None:
        self.over = asyncio.Event()
        self._url = url
        self._wyoming_port = wyoming_port
        self._sounds = sounds
        self._book = book
        self._dice = dice

    # --- streams ---------------------------------------------------------------------------------------------------

    async def stay(self, kind: Kind, source: str) -> None:
        """One connection for all of it."""
        clips = {Kind.SPEECH: self._talk, Kind.NOISE: self._rustle, Kind.SILENCE: self._hush}[kind]
        while not self.over.is_set():
            connection = self._book.connect(kind, source, Ending.STOP)
            await self._stream(connection, self._until_over(clips()))

    async def come_and_go(self, source: str) -> None:
        """A connection for a sentence or two, or for nothing; left politely or not, at its end or before."""
        while not self.over.is_set():
            ending = self._dice.choice(list(Ending))
            connection = self._book.connect(Kind.VISITOR, source, ending)
            await self._stream(connection, iter(self._short(ending)))
            await self._pause(0.5, 4.0)

    def _short(self, ending: Ending) -> list[Clip]:
        said = [(self._dice.choice(self._sounds.sentences), True) for _ in range(self._dice.randint(0, 2))]
        if ending is Ending.ABORT and said:
            pcm = said.pop()[0]
            said.append((pcm[: self._dice.randrange(len(pcm)) & ~1], False))
        return said

    def _until_over(self, clips: Iterator[Clip]) -> Iterator[Clip]:
        while not self.over.is_set():
            yield next(clips)

    def _talk(self) -> Iterator[Clip]:
        while True:
            yield self._dice.choice(self._sounds.sentences), True
            yield quiet(self._dice.uniform(0.5, 6.0), self._dice), False

    def _rustle(self) -> Iterator[Clip]:
        while True:
            yield self._dice.choice(self._sounds.noises), False

    def _hush(self) -> Iterator[Clip]:
        while True:
            yield bytes(RATE * 2), False

    async def _stream(self, connection: Connection, clips: Iterator[Clip]) -> None:
        try:
            async with self._opened(f"/v1/stream?source={connection.source}") as ws:
                await ws.send(json.dumps({"type": "start", "sample_rate": RATE}))
                self._book.hear(connection, json.loads(await asyncio.wait_for(ws.recv(), PATIENCE)))
                reading = asyncio.create_task(self._read(ws, connection))
                try:
                    await self._say(ws, connection, clips)
                    await _end(ws, connection.ending)
                    await asyncio.wait_for(reading, PATIENCE)
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
        except _FAULTS as error:
            connection.broken = f"{type(error).__name__}: {error}"
            await asyncio.sleep(_RETRY)

    async def _say(self, ws: ClientConnection, connection: Connection, clips: Iterator[Clip]) -> None:
        pace = Pace(ws)
        for pcm, sentence in clips:
            began = pace.seconds
            await pace.send(pcm)
            if sentence:
                connection.said.append((began, pace.seconds))

    async def _read(self, ws: ClientConnection, connection: Connection) -> None:
        """Until it is closed, by whom it was meant to be."""
        try:
            async for message in ws:
                self._book.hear(connection, json.loads(message))
        except ConnectionClosed:
            if connection.ending is not Ending.ABORT:
                raise

    # --- the satellite ---------------------------------------------------------------------------------------------

    async def ask(self) -> None:
        """The stock Wyoming client, with a connection for each turn."""
        while not self.over.is_set():
            self._book.turns += 1
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._turn(self._dice.choice(self._sounds.sentences))
                self._book.answers += 1
            except _FAULTS as error:
                self._book.broken.append(f"{SATELLITE}: {type(error).__name__}: {error}")
            await self._pause(2.0, 8.0)

    async def _turn(self, sentence: bytes) -> None:
        async with AsyncTcpClient("127.0.0.1", self._wyoming_port) as client:
            await client.write_event(Transcribe(language="en").event())
            await client.write_event(AudioStart(RATE, 2, 1).event())
            for at in range(0, len(sentence), _FRAME):
                await client.write_event(AudioChunk(RATE, 2, 1, audio=sentence[at : at + _FRAME]).event())
                await asyncio.sleep(_FRAME_SECONDS)
            await client.write_event(AudioStop().event())
            while (event := await client.read_event()) is not None:
                if Transcript.is_type(event.type):
                    return
        raise EOFError("the connection ended without a transcript")

    # --- subscribers -----------------------------------------------------------------------------------------------

    async def listen(self, ready: asyncio.Event) -> None:
        """One subscriber to all, for ever."""
        try:
            async with self._opened("/v1/events") as ws:
                ready.set()
                async for message in ws:
                    event = json.loads(message)
                    if event["type"] == "final":
                        self._book.events.append(Note.of(event))
                    elif event["type"] == "error":
                        self._book.errors[event["code"]] += 1
        except _FAULTS as error:
            self._book.broken.append(f"the subscriber of /v1/events: {type(error).__name__}: {error}")

    async def look_in(self, source: str) -> None:
        """A subscriber to one source that comes and goes, half of the times by abort, and asks for what it missed."""
        while not self.over.is_set():
            await self.visit(source, self._dice.uniform(2.0, 15.0))
            await self._pause(0.5, 10.0)

    async def visit(self, source: str, seconds: float) -> None:
        since = self._book.visits[-1].seq if self._book.visits else 0
        self._book.visit_count += 1
        try:
            async with self._opened(f"/v1/events?source={source}&since={since}") as ws:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        async for message in ws:
                            event = json.loads(message)
                            if event["type"] == "final":
                                self._book.visits.append(Note.of(event))
                            elif event["type"] == "error":
                                self._book.errors[event["code"]] += 1
                if self._dice.random() < 0.5:
                    ws.transport.abort()
        except _FAULTS as error:
            self._book.broken.append(f"a subscriber that comes and goes: {type(error).__name__}: {error}")

    # ---------------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _opened(self, path: str) -> AsyncIterator[ClientConnection]:
        address = f"{self._url}{path}"
        async with connect(address, compression=None, max_queue=None, open_timeout=PATIENCE) as ws:
            yield ws

    async def _pause(self, least: float, most: float) -> None:
        """Shorter where it is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), self._dice.uniform(least, most))


async def _end(ws: ClientConnection, ending: Ending) -> None:
    match ending:
        case Ending.STOP:
            await ws.send(json.dumps({"type": "stop"}))
        case Ending.CLOSE:
            await ws.close()
        case Ending.ABORT:
            ws.transport.abort()
