"""A client that goes on after a drop, written from `docs/resume.md` alone; and a network that drops.

Neither knows anything of the service's code.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from harness import connect
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

Event = dict[str, Any]


class RefusedError(Exception):
    """The service said no; `event` is how."""

    def __init__(self, event: Event) -> None:
        super().__init__(event)
        self.event = event


@dataclass
class Speaker:
    """Says `audio` in frames of `frame` bytes, flushes at the samples `flush_at` (ascending), and stops.

    start: what its `start` says. width: bytes of a sample of all channels.
    """

    audio: bytes
    start: Event
    width: int = 2
    flush_at: Sequence[int] = ()
    frame: int = 3200
    events: list[Event] = field(default_factory=list)
    ready: list[Event] = field(default_factory=list)

    async def talk(self, url: str) -> int:
        """Until it is all said and answered, however many connections that takes; their number."""
        tries = 0
        while True:
            tries += 1
            with contextlib.suppress(OSError, WebSocketException, EOFError):
                async with connect(url, compression=None, max_queue=None) as ws:
                    if await self.attempt(ws):
                        return tries

    async def attempt(self, ws: ClientConnection) -> bool:
        """One connection; whether the stream came to its end.

        Raises:
            RefusedError: it was not let in.
            ConnectionClosed: before it was greeted.
        """
        await ws.send(json.dumps(self.greeting()))
        ready = json.loads(await ws.recv())
        if ready["type"] != "ready":
            raise RefusedError(ready)
        self.ready.append(ready)
        sending = asyncio.create_task(self._send(ws, ready["samples"], ready["flushes"]))
        try:
            with contextlib.suppress(ConnectionClosed):
                async for message in ws:
                    self.events.append(json.loads(message))
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        return ws.close_code == 1000

    def greeting(self) -> Event:
        if not self.ready:
            return {"type": "start", **self.start}
        return {"type": "resume", "token": self.ready[-1]["token"], "events": len(self.events)}

    async def _send(self, ws: ClientConnection, samples: int, flushes: int) -> None:
        at = samples * self.width
        for number, place in list(enumerate(self.flush_at))[flushes:]:
            await self._send_audio(ws, at, place * self.width)
            at = place * self.width
            await ws.send(json.dumps({"type": "flush", "id": f"f{number}"}))
        await self._send_audio(ws, at, len(self.audio))
        await ws.send(json.dumps({"type": "stop"}))

    async def _send_audio(self, ws: ClientConnection, start: int, end: int) -> None:
        for at in range(start, end, self.frame):
            await ws.send(self.audio[at : min(at + self.frame, end)])

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event["type"] in kinds]


# --- a network that drops --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """After so many bytes to the service, or from it.

    how: "reset" both ends; "silent": only the client notices, the service's end stays open and nothing comes any more.
    """

    up: int
    down: int
    how: Literal["reset", "silent"] = "reset"


@dataclass
class Network:
    """Of the connections that are made through it, each is cut as the next of `cuts` says; then none is."""

    port: int  # the service's
    cuts: list[Cut]
    url: str = ""
    _kept: list[asyncio.StreamWriter] = field(default_factory=list)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = self.cuts.pop(0) if self.cuts else None
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._kept += [writer, there_writer]
        up = asyncio.create_task(_pass_on(reader, there_writer, cut.up if cut else None))
        down = asyncio.create_task(_pass_on(there_reader, writer, cut.down if cut else None))
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if cut is None:  # one end closed: the other is told, and what it still says is passed on
            await asyncio.wait({up, down}, timeout=30)
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        _reset(writer)
        if cut is None or cut.how == "reset":
            _reset(there_writer)

    def close(self) -> None:
        for writer in self._kept:
            _reset(writer)


@asynccontextmanager
async def network(url: str, cuts: Sequence[Cut]) -> AsyncIterator[Network]:
    """In front of the service at `url`."""
    made = Network(int(url.rpartition(":")[2]), list(cuts))
    server = await asyncio.start_server(made.carry, "127.0.0.1", 0)
    made.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        made.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> None:
    """Until `most` bytes, or the end of either side."""
    left = most
    with contextlib.suppress(OSError):
        while left is None or left > 0:
            data = await reader.read(65536 if left is None else min(left, 65536))
            if not data:
                break
            writer.write(data)
            await writer.drain()
            left = None if left is None else left - len(data)
        if left is None:
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST, not FIN: a network that drops says nothing kind."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None and not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
