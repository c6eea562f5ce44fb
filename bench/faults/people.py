"""Who listens while harm is done, and who speaks.

Owns what each was told, and how much was said to whom. Speaks the documented protocol alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bench.client import DEMO, read_pcm
from bench.faults.service import PATIENCE, Service

PCM = read_pcm(str(DEMO))[0]
UTTERANCES = 3  # in it
SECONDS = len(PCM) / 32000
LAST = 11.0
"""Seconds into it: the middle of the last utterance."""


class Witness:
    """A subscriber to all that is said. finals, partials: of each source. ids: of all finals. failed: utterances of
    which an error said that there will be no final. slowest: the longest latency of a final, in seconds."""

    def __init__(self) -> None:
        self.finals: Counter[str] = Counter()
        self.partials: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.ids: set[str] = set()
        self.slowest = 0.0
        self._news = asyncio.Event()
        self._over = asyncio.Event()

    async def over(self) -> None:
        """Until its connection has ended."""
        await asyncio.wait_for(self._over.wait(), PATIENCE)

    async def read(self, ws: ClientConnection) -> None:
        try:
            await self._read(ws)
        except ConnectionClosed:
            pass
        finally:
            self._over.set()

    async def _read(self, ws: ClientConnection) -> None:
        async for message in ws:
            event = json.loads(message)
            match event["type"]:
                case "final":
                    self.finals[event["source"]] += 1
                    self.ids.add(event["id"])
                    self.slowest = max(self.slowest, event["latency_ms"] / 1000)
                case "error":
                    self.failed[event["source"]] += 1
                case "partial":
                    self.partials[event["source"]] += 1
            self._news.set()

    async def arrived(self, source: str, wanted: int) -> int:
        """Finals of `source`: once they, and the failed, are `wanted`; or nothing comes any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self.finals[source] + self.failed[source] < wanted:
                    self._news.clear()
                    await self._news.wait()
        return self.finals[source]


@asynccontextmanager
async def witness(service: Service, **options: Any) -> AsyncIterator[Witness]:
    """options: of the connection."""
    url = f"{service.url}/v1/events"
    async with connect(url, compression=None, max_queue=None, ping_interval=None, **options) as ws:
        made = Witness()
        reading = asyncio.create_task(made.read(ws))
        try:
            yield made
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def stream(service: Service, source: str, **options: Any) -> connect:
    url = f"{service.url}/v1/stream?source={source}"
    return connect(url, compression=None, ping_interval=None, open_timeout=PATIENCE, **options)


async def speak(
    service: Service,
    source: str,
    pcm: bytes,
    frame: int = 3200,
    pause: float = 0.0,
    *,
    words: bool = False,
    **options: Any,
) -> bool:
    """A stream from start to stop; whether it was served to its end. pause: seconds after each frame. words: finals
    shall have the times of their words. options: of the connection."""
    async with asyncio.timeout(PATIENCE), stream(service, source, max_queue=None, **options) as ws:
        if words:
            await ws.send('{"type":"start","words":true}')
        for at in range(0, len(pcm), frame):
            await ws.send(pcm[at : at + frame])
            await asyncio.sleep(pause)
        await ws.send('{"type":"stop"}')
        with contextlib.suppress(ConnectionClosed):
            while True:
                if json.loads(await ws.recv())["type"] == "stopped":
                    return True
    return False


async def greeted(ws: ClientConnection, **message: Any) -> dict[str, Any]:
    """The answer to the first message of a stream."""
    await ws.send(json.dumps(message))
    answer: dict[str, Any] = json.loads(await ws.recv())
    return answer


def upgrade(path: str, *headers: str) -> bytes:
    """The request of a websocket, for a plain socket."""
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", *headers]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg=="]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
