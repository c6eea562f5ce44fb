"""Who listens while harm is done, and who speaks: an honest client, in one piece from start to stop.

Owns what is said. Knows nothing of the harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import connect

from bench.harness.clients import Subscriber, dial, dial_stream, tell, until_stopped
from bench.harness.daemon import PATIENCE, Daemon
from bench.player import DEMO, read_pcm
from bench.tasks import background

PCM = read_pcm(str(DEMO))[0]
UTTERANCES = 3  # in it
SECONDS = len(PCM) / 32000
LAST = 11.0
"""Seconds into it: the middle of the last utterance."""


@asynccontextmanager
async def witness(service: Daemon, **options: Any) -> AsyncIterator[Subscriber]:
    """Subscribe to all that is said, for as long as the block runs.

    Args:
        service: the service.
        options: of the connection.

    Yields:
        The subscriber.
    """
    listening = Subscriber()
    async with dial(service, "/v1/events", ping_interval=None, **options) as ws, background(listening.read(ws)):
        yield listening


def stream(service: Daemon, source: str, **options: Any) -> connect:
    return dial_stream(service, source, ping_interval=None, **options)


async def speak(
    service: Daemon,
    source: str,
    pcm: bytes,
    frame: int = 3200,
    pause: float = 0.0,
    *,
    words: bool = False,
    **options: Any,
) -> bool:
    """Speak a stream from start to stop.

    Args:
        service: the service.
        source: the name of the source.
        pcm: what is said.
        frame: bytes of each message.
        pause: seconds after each message.
        words: whether finals have the times of their words.
        options: of the connection.

    Returns:
        Whether it was served to its end.
    """
    async with asyncio.timeout(PATIENCE), stream(service, source, **options) as ws:
        if words:
            await tell(ws, "start", words=True)
        for at in range(0, len(pcm), frame):
            await ws.send(pcm[at : at + frame])
            await asyncio.sleep(pause)
        await tell(ws, "stop")
        return await until_stopped(ws)


def upgrade(path: str, *headers: str) -> bytes:
    """Return a websocket's request to upgrade, for a plain socket."""
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade", *headers]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg=="]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
