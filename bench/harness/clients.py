"""Clients of the service: streams and subscribers by websocket, and turns by Wyoming.

Owns how each protocol is spoken, from its document alone, and what a subscriber was told. Knows nothing of who speaks,
when, or what a client does that was cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient

from bench.harness.daemon import PATIENCE, Daemon
from bench.harness.delivery import Final
from bench.harness.recordings import RATE
from bench.tasks import background

DISCONNECTS = (OSError, EOFError, WebSocketException, TimeoutError)
"""What a client meets when it cannot connect, or is cut off."""

Event = dict[str, Any]
_FRAME_SECONDS = 0.1
_FRAME = round(RATE * _FRAME_SECONDS) * 2  # bytes


class Pacer:
    """A sender of a stream's frames, each at the time at which a microphone would have heard it.

    Args:
        send: called with each frame.
        speed: how many times the pace of speech.

    Attributes:
        seconds: of audio sent.
    """

    def __init__(self, send: Callable[[bytes], Awaitable[None]], speed: float = 1.0) -> None:
        self.seconds = 0.0
        self._send = send
        self._speed = speed
        self._began = time.monotonic()

    async def say(self, pcm: bytes) -> None:
        for at in range(0, len(pcm), _FRAME):
            frame = pcm[at : at + _FRAME]
            self.seconds += len(frame) / 2 / RATE
            await asyncio.sleep(max(0.0, self._began + self.seconds / self._speed - time.monotonic()))
            await self._send(frame)


# --- websockets ------------------------------------------------------------------------------------------------------


def dial(daemon: Daemon, path: str, **options: Any) -> connect:
    """Connect to a path of the service.

    Args:
        daemon: the service.
        path: with its query.
        options: of the connection; they replace those that are usual here.

    Returns:
        The connection, to be awaited or entered.
    """
    return connect(
        f"{daemon.url}{path}", **{"compression": None, "max_queue": None, "open_timeout": PATIENCE, **options}
    )


def dial_stream(daemon: Daemon, source: str, **options: Any) -> connect:
    return dial(daemon, f"/v1/stream?source={source}", **options)


async def tell(ws: ClientConnection, kind: str, **message: Any) -> None:
    await ws.send(json.dumps({"type": kind, **message}))


class Subscriber:
    """A subscriber of /v1/events, over all its connections.

    Args:
        heard: called with each event.

    Attributes:
        finals: in the order in which they came.
        partials: how many came, by source.
        failed: utterances of which an error said that there will be no final, by source.
        over: set when a connection has ended.
    """

    def __init__(self, heard: Callable[[Event], object] = lambda _: None) -> None:
        self.finals: list[Final] = []
        self.partials: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.over = asyncio.Event()
        self._heard = heard
        self._news = asyncio.Event()

    async def read(self, ws: ClientConnection) -> None:
        """Read until the connection ends."""
        try:
            async for message in ws:
                self._take(json.loads(message))
        finally:
            self.over.set()

    def _take(self, event: Event) -> None:
        match event["type"]:
            case "final":
                self.finals.append(Final.of(event, time.monotonic()))
            case "partial":
                self.partials[event["source"]] += 1
            case "error":
                self.failed[event.get("source", "")] += 1
        self._heard(event)
        self._news.set()

    def number(self, source: str) -> int:
        """Return how many finals of a source came."""
        return sum(each.source == source for each in self.finals)

    async def arrived(self, source: str, wanted: int) -> int:
        """Wait until the finals of a source and its failed utterances are as many as wanted, or nothing comes any more.

        Args:
            source: the source.
            wanted: how many.

        Returns:
            How many finals came.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self.number(source) + self.failed[source] < wanted:
                    self._news.clear()
                    await self._news.wait()
        return self.number(source)


async def until_stopped(ws: ClientConnection) -> bool:
    """Return whether the service said that the stream is over, before it ended the connection."""
    with contextlib.suppress(ConnectionClosed):
        async for message in ws:
            if json.loads(message)["type"] == "stopped":
                return True
    return False


# --- Wyoming ---------------------------------------------------------------------------------------------------------


async def ask(client: AsyncTcpClient, sentence: bytes, speed: float = 1.0) -> str:
    """Have one turn, as Home Assistant has it.

    Args:
        client: a connection for this turn.
        sentence: what is said.
        speed: how many times the pace of speech.

    Returns:
        The first transcript, which may come before all is said.

    Raises:
        EOFError: the turn was cut off.
        OSError: likewise.
    """

    async def send(frame: bytes) -> None:
        await client.write_event(AudioChunk(RATE, 2, 1, audio=frame).event())

    async def say() -> None:
        await Pacer(send, speed).say(sentence)
        await client.write_event(AudioStop().event())

    await client.write_event(Transcribe(language="en").event())
    await client.write_event(AudioStart(RATE, 2, 1).event())
    async with background(say()):
        while (event := await client.read_event()) is not None:
            if Transcript.is_type(event.type):
                return Transcript.from_event(event).text
    raise EOFError("the connection ended without a transcript")
