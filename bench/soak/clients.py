"""Those who speak, make noise, say nothing, listen, come and go.

Owns what each of them does, at the pace of speech, until it is told that it is over. Whoever is cut off without having
caused it notes that and comes again. Judges nothing. How a protocol is spoken is in `bench.harness.clients`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Iterator

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from wyoming.client import AsyncTcpClient

from bench.harness.clients import DISCONNECTS, Pacer, Subscriber, ask, dial, dial_stream, tell
from bench.harness.daemon import Daemon
from bench.harness.home import SATELLITE
from bench.harness.recordings import RATE
from bench.soak.history import ClientKind, Connection, Ending, History
from bench.soak.sounds import Sounds, quiet

PATIENCE = 120.0
_RETRY = 0.5

Clip = tuple[bytes, bool]
"""Samples, and whether they are a sentence."""


class Clients:
    """All clients of a soak.

    Args:
        daemon: the daemon that they use.
        sounds: what they send.
        history: where they note what they were told.
        dice: decides what is left to chance.

    Attributes:
        over: set when they shall come to their end.
    """

    def __init__(self, daemon: Daemon, sounds: Sounds, history: History, dice: random.Random) -> None:
        self.over = asyncio.Event()
        self._daemon = daemon
        self._sounds = sounds
        self._history = history
        self._dice = dice

    # --- streams ---------------------------------------------------------------------------------------------------

    async def stay(self, kind: ClientKind, source: str) -> None:
        """Use one connection until it is over, and another only where it was cut off.

        Args:
            kind: what is sent.
            source: the name of the source.
        """
        while not self.over.is_set():
            connection = self._history.connect(kind, source, Ending.STOP)
            await self._stream(connection, self._clips(kind))

    async def come_and_go(self, source: str) -> None:
        """Use a connection for a sentence or two, or for nothing; leave it politely or not, at its end or before."""
        while not self.over.is_set():
            ending = self._dice.choice(list(Ending))
            connection = self._history.connect(ClientKind.VISITOR, source, ending)
            await self._stream(connection, iter(self._short(ending)))
            await self._pause(0.5, 4.0)

    def _short(self, ending: Ending) -> list[Clip]:
        said = [(self._dice.choice(self._sounds.sentences), True) for _ in range(self._dice.randint(0, 2))]
        if ending is Ending.ABORT and said:
            pcm = said.pop()[0]
            said.append((pcm[: self._dice.randrange(len(pcm)) & ~1], False))
        return said

    def _clips(self, kind: ClientKind) -> Iterator[Clip]:
        """Choose what a client of this kind sends, until it is over.

        Yields:
            One clip after the other.
        """
        while not self.over.is_set():
            match kind:
                case ClientKind.SPEECH:
                    yield self._dice.choice(self._sounds.sentences), True
                    if not self.over.is_set():
                        yield quiet(self._dice.uniform(0.5, 6.0), self._dice), False
                case ClientKind.NOISE:
                    yield self._dice.choice(self._sounds.noises), False
                case _:
                    yield bytes(RATE * 2), False

    async def _stream(self, connection: Connection, clips: Iterator[Clip]) -> None:
        try:
            async with dial_stream(self._daemon, connection.source) as ws:
                await tell(ws, "start", sample_rate=RATE)
                self._history.hear(connection, json.loads(await asyncio.wait_for(ws.recv(), PATIENCE)))
                reading = asyncio.create_task(self._read(ws, connection))
                try:
                    await _say(Pacer(ws.send), connection, clips)
                    await _end(ws, connection.ending)
                    await asyncio.wait_for(reading, PATIENCE)
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
        except DISCONNECTS as error:
            connection.broken = f"{type(error).__name__}: {error}"
            await asyncio.sleep(_RETRY)

    async def _read(self, ws: ClientConnection, connection: Connection) -> None:
        """Read until the connection is closed, by whom it was meant to be."""
        try:
            async for message in ws:
                self._history.hear(connection, json.loads(message))
        except ConnectionClosed:
            if connection.ending is not Ending.ABORT:
                raise

    # --- the satellite ---------------------------------------------------------------------------------------------

    async def ask(self) -> None:
        """Be a voice satellite of Home Assistant, with a connection for each turn, by Wyoming."""
        while not self.over.is_set():
            self._history.turns += 1
            try:
                async with (
                    asyncio.timeout(PATIENCE),
                    AsyncTcpClient("127.0.0.1", self._daemon.wyoming_port) as client,
                ):
                    await ask(client, self._dice.choice(self._sounds.sentences))
                self._history.answers += 1
            except DISCONNECTS as error:
                self._history.broken.append(f"{SATELLITE}: {type(error).__name__}: {error}")
            await self._pause(2.0, 8.0)

    # --- subscribers -----------------------------------------------------------------------------------------------

    async def listen(self, ready: asyncio.Event) -> None:
        """Subscribe to all sources, for ever.

        Args:
            ready: is set once it is subscribed.
        """
        subscriber = Subscriber(self._history.hear_error)
        self._history.events = subscriber.finals
        try:
            async with dial(self._daemon, "/v1/events") as ws:
                ready.set()
                await subscriber.read(ws)
        except DISCONNECTS as error:
            self._history.broken.append(f"the subscriber of /v1/events: {type(error).__name__}: {error}")

    async def look_in(self, source: str) -> None:
        """Subscribe to one source again and again, leave half of the times by abort, and ask for what was missed."""
        while not self.over.is_set():
            await self.visit(source, self._dice.uniform(2.0, 15.0))
            await self._pause(0.5, 10.0)

    async def visit(self, source: str, seconds: float) -> None:
        history = self._history
        since = history.visits[-1].seq if history.visits else 0
        history.visit_count += 1
        subscriber = Subscriber(history.hear_error)
        try:
            async with dial(self._daemon, f"/v1/events?source={source}&since={since}") as ws:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await subscriber.read(ws)
                if self._dice.random() < 0.5:
                    ws.transport.abort()
        except DISCONNECTS as error:
            history.broken.append(f"a subscriber that comes and goes: {type(error).__name__}: {error}")
        history.visits += subscriber.finals

    # ---------------------------------------------------------------------------------------------------------------

    async def _pause(self, least: float, most: float) -> None:
        """Do nothing for a while, shorter where it is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), self._dice.uniform(least, most))


async def _say(pacer: Pacer, connection: Connection, clips: Iterator[Clip]) -> None:
    for pcm, sentence in clips:
        began = pacer.seconds
        await pacer.say(pcm)
        if sentence:
            connection.said.append((began, pacer.seconds))


async def _end(ws: ClientConnection, ending: Ending) -> None:
    match ending:
        case Ending.STOP:
            await tell(ws, "stop")
        case Ending.CLOSE:
            await ws.close()
        case Ending.ABORT:
            ws.transport.abort()
