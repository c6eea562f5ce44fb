"""Many clients in one process, each at the pace of speech: what they cost is mostly the kernel's work.

Owns the pace of all of them, and what came back: how late partials and finals were, by the clock of whoever sent the
audio. Frames of audio are made before they are sent, and the library reads what comes; a client that encoded each frame
when it is due would take the processor that the service is measured on. Prints its figures as JSON, for
`bench/service.py`. Knows nothing of the service but its protocol.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from bench.player import FRAME_SECONDS, read_pcm

SETTLE = 3.0
"""Seconds from the first frame that are not counted: all connect in them."""

LAST_WORDS = 20.0
"""Seconds in which what was said at the end may still come."""


@dataclass(slots=True)
class Crowd:
    """What all clients saw.

    Attributes:
        lags: milliseconds from when the newest sample that a partial heard was sent, to its arrival.
        latencies: likewise of finals, from the end of speech, without the silence that closes an utterance.
        thinned: partials that the service left out.
        errors: error events, and connections that broke.
        stopped: clients whose last final came.
        late: milliseconds that each frame was sent too late by this process, of every hundredth.
    """

    lags: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    thinned: int = 0
    errors: int = 0
    stopped: int = 0
    late: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One client, from its handshake to `stopped`."""

    def __init__(self, url: str, crowd: Crowd) -> None:
        self.ready = asyncio.get_running_loop().create_future()
        self.done = asyncio.get_running_loop().create_future()
        self.began = 0.0
        self._crowd = crowd
        self._seq = 0
        self._protocol = ClientProtocol(parse_uri(url))
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._protocol.send_request(self._protocol.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self.say({"type": "start", "sample_rate": 16000})
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._take(json.loads(bytes(event.data)))
        self._flush()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("the service refused a client"))
        if not self.done.done():
            self._crowd.errors += 1
            self.done.set_result(None)

    def say(self, message: dict[str, Any]) -> None:
        self._protocol.send_text(json.dumps(message).encode())
        self._flush()

    def send(self, frame: bytes) -> None:
        """Send a frame that was made before."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if self._transport is not None and data:
                self._transport.write(data)

    def _take(self, event: dict[str, Any]) -> None:
        since = (time.monotonic() - self.began) * 1000
        counts = since > SETTLE * 1000
        match event["type"]:
            case "ready":
                self.ready.set_result(None)
            case "partial" if counts:
                self._crowd.lags.append(since - event["end"] * 1000)
            case "final" if counts:
                self._crowd.latencies.append(since - event["end"] * 1000)
            case "error":
                self._crowd.errors += 1
            case "stopped":
                self._crowd.stopped += 1
                self.done.set_result(None)
        if "seq" in event:
            self._crowd.thinned += max(0, event["seq"] - self._seq - 1)
            self._seq = event["seq"]


def pieces_of(recording: str) -> list[bytes]:
    """Return a recording of 16 kHz in pieces of 20 ms."""
    pcm, rate = read_pcm(recording)
    if rate != 16000:
        raise ValueError(f"{recording} has {rate} Hz: give one of 16000")
    size = round(FRAME_SECONDS * rate) * 2
    return [pcm[at : at + size] for at in range(0, len(pcm) - size + 1, size)]


def frames_of(pieces: Sequence[bytes], number: int, of: int, count: int) -> list[bytes]:
    """Return what one client says, as websocket frames, masked as a client must: as many as are asked for.

    It begins at another place than the others, and is louder or softer by a hair, so that no two say the same.
    """
    first, gain = len(pieces) * number // of, 1 - 0.2 * number / of
    said = (np.frombuffer(pieces[(first + at) % len(pieces)], "<i2") for at in range(count))
    return [Frame(Opcode.BINARY, (part * gain).astype("<i2").tobytes()).serialize(mask=True) for part in said]


async def play(url: str, first: int, count: int, of: int, seconds: float, pieces: Sequence[bytes]) -> Crowd:
    """Let clients `first` to `first + count` of `of` speak at once."""
    crowd = Crowd()
    host, port = url.removeprefix("ws://").split(":")
    clients = []
    ticks = round(seconds / FRAME_SECONDS)
    run = secrets.token_hex(4)
    for number in range(first, first + count):
        make = partial(Client, f"{url}/v1/stream?source=crowd-{run}-{number}", crowd)
        _, client = await asyncio.get_running_loop().create_connection(make, host, int(port))
        await client.ready
        clients.append((client, frames_of(pieces, number, of, ticks)))
    began = time.monotonic()
    for number, (client, _) in enumerate(clients):
        client.began = began + FRAME_SECONDS * number / count
    for tick in range(ticks):
        for number, (client, frames) in enumerate(clients):
            due = client.began + (tick + 1) * FRAME_SECONDS
            if (wait := due - time.monotonic()) > 0.001:
                await asyncio.sleep(wait)
            client.send(frames[tick])
            if number % 100 == 0:
                crowd.late.append(max(0.0, time.monotonic() - due) * 1000)
        await asyncio.sleep(0)
    for client, _ in clients:
        client.say({"type": "stop"})
    await asyncio.wait([client.done for client, _ in clients], timeout=LAST_WORDS)
    return crowd


def main(arguments: Sequence[str]) -> None:
    url, first, count, of, seconds, recording = arguments
    crowd = asyncio.run(play(url, int(first), int(count), int(of), float(seconds), pieces_of(recording)))
    json.dump(asdict(crowd), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
