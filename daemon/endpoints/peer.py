"""One websocket client.

Owns how it is told things (in order, within the time that it may take for a message, or it is disconnected), which of
its messages are taken in, how many frames it may send that are no messages, how its faults are counted and logged, and
a close that does not wait for ever. Knows no dialect.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Protocol

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConcurrencyError, ConnectionClosed
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.protocol import Event as LibraryEvent
from websockets.protocol import State

from daemon.common.errors import Fault
from daemon.common.metrics import Metrics
from daemon.dialects.codec import CLOSE_TRY_LATER
from daemon.endpoints.limits import RateLimiter
from streaming.events import Event

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 10.0
"""Seconds that a peer has to answer a close."""

_LEFT = frozenset({1000, 1001})
"""Close codes of a client that leaves on purpose."""

_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}


MOST_PIECES = 1024
"""Of one message. The library has a limit too, but stops to read there, and so never sees the peer's close."""
_BEGINNINGS = (Opcode.TEXT, Opcode.BINARY)
"""Of messages."""
_LONGEST_FLOOD = 5.0
"""Seconds for which a peer that sends too many pings, pongs and empty frames, and nothing else, is read more slowly
before it is cut off. Nobody needs so many, and a peer that has left is noticed only once all that it sent is read."""
_MOST_UNREAD = 1024 * 1024
"""Bytes of answers that a peer may leave unread: events stop far below, see `send_timeout`."""


class Connection(ServerConnection):
    """The library's connection, with limits.

    It is not answered without bound, not kept for a message that never ends, and not read faster than a client may
    send.

    Args:
        metrics: count the clients that send without reading.
        pace: the limiter for frames that no reader paces: pings, pongs, continuations, and whatever comes once no
            message is taken in any more.
        arguments: the library's.
        options: the library's.

    Attributes:
        in_pieces: whether a message came in too many fragments. Nothing is taken in since.
        unheard: messages that are here whole, and were not taken in yet.
    """

    def __init__(self, metrics: Metrics, pace: RateLimiter, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.in_pieces = False
        self.unheard = 0
        self._pieces = 0
        self._metrics = metrics
        self._pace = pace
        self._resting: asyncio.TimerHandle | None = None
        self._flooded = 0.0  # seconds of rest since the last frame with contents, or since there was no need to rest

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # The library reads on as soon as its queue has room, which it always has while only such frames come.
        self.recv_messages.resume = self._read_on

    def connection_lost(self, exc: Exception | None) -> None:
        if self._resting is not None:
            self._resting.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._rest()
        # Events wait until their peer takes them in; the library's own answers to pings do not.
        if self.transport.get_write_buffer_size() > _MOST_UNREAD:
            self._metrics.client_errors.labels("not_reading").inc()
            _log.info("%s sends without reading: disconnected", name_of(self))
            self.transport.abort()
        elif self._flooded > _LONGEST_FLOOD:
            self._metrics.client_errors.labels("flooding").inc()
            _log.info("%s sends nothing but pings, pongs and empty frames: disconnected", name_of(self))
            self.transport.abort()

    def process_event(self, event: LibraryEvent) -> None:
        if not isinstance(event, Frame):
            super().process_event(event)
            return
        if self._is_unpaced(event):
            self._pace.count()
        if event.data and event.opcode in DATA_OPCODES:
            self._flooded = 0.0
        if event.opcode in DATA_OPCODES:
            if self.in_pieces:
                return
            self._pieces = self._pieces + 1 if event.opcode is Opcode.CONT else 1
            if self._pieces > MOST_PIECES:
                self.in_pieces = True
                event = Frame(Opcode.CONT, b"")  # an end, for whoever waits for one
            self.unheard += event.fin
        super().process_event(event)

    def _is_unpaced(self, frame: Frame) -> bool:
        """Return whether a frame belongs to no message that a reader takes in at its own pace."""
        return frame.opcode not in _BEGINNINGS or self.in_pieces or self.protocol.state is not State.OPEN

    def _rest(self) -> None:
        """Read nothing until so many frames may have come."""
        if self._resting is not None:
            return
        ahead = self._pace.pause()
        self._flooded = self._flooded + ahead if ahead else 0.0
        if ahead:
            self._resting = self.loop.call_later(ahead, self._rested)
            self.transport.pause_reading()

    def _rested(self) -> None:
        self._resting = None
        self._read_on()

    def _read_on(self) -> None:
        if self._resting is None and not self.recv_messages.paused:
            self.transport.resume_reading()


class EventQueue(Protocol):
    """Events for one client, in order."""

    @property
    def overflowed(self) -> bool:
        """Whether it has ended because the client fell too far behind."""

    def __aiter__(self) -> AsyncIterator[Event]: ...


class Peer:
    """The client at the other end of a connection.

    Args:
        ws: the connection.
        patience: seconds that the client may take for one message.
        metrics: count its faults.

    Attributes:
        reason: what its close says beside the code.
    """

    def __init__(self, ws: Connection, patience: float, metrics: Metrics) -> None:
        self.ws = ws
        self.reason = ""
        self._patience = patience
        self._metrics = metrics
        self._telling = asyncio.Lock()  # what belongs together comes together
        self._dropped = False
        self._blamed = False
        _notice_dead_peers(ws)

    @property
    def left(self) -> bool:
        """Whether the client closed the connection on purpose, and not because something failed."""
        close = self.ws.protocol.close_rcvd
        return close is not None and close.code in _LEFT

    @property
    def has_more(self) -> bool:
        """Whether a message of the client is here, and not heard yet."""
        return self.ws.unheard > 0

    async def tell(self, frames: Iterable[str | bytes]) -> None:
        """Send all of `frames`. A client that does not take them in is disconnected, and the next call raises.

        Raises:
            ConnectionClosed: the client has gone.
        """
        async with self._telling:
            try:
                for frame in frames:
                    async with asyncio.timeout(self._patience):
                        await self.ws.send(frame)
            except TimeoutError:
                await self._drop()

    async def write(self, outbox: EventQueue, encode: Callable[[Event], Iterable[str | bytes]]) -> bool:
        """Send all events of a queue, until it or the connection ends. A client that is too far behind is disconnected.

        Args:
            outbox: the queue.
            encode: turns an event into frames.

        Returns:
            Whether all were sent.
        """
        try:
            async for event in outbox:
                await self.tell(encode(event))
        except ConnectionClosed:
            return False
        if outbox.overflowed:
            await self._drop()
        return not outbox.overflowed

    def note(self, fault: Fault) -> None:
        """Count a fault, and log the first of a client: one that sends rubbish does so by the thousand."""
        self._metrics.client_errors.labels(fault.code).inc()
        level = logging.DEBUG if self._blamed else logging.INFO
        _log.log(level, "%s: %s: %s", name_of(self.ws), fault.code, fault.message)
        self._blamed = True

    async def hear(self) -> str | bytes:
        """Return the client's next message.

        Raises:
            ConnectionClosed: the client has gone.
            Fault: `message_too_big`.
        """
        message = await self.ws.recv()
        self.ws.unheard -= 1
        if self.ws.in_pieces:
            raise Fault(
                "message_too_big", f"a message may have at most {MOST_PIECES} fragments: send fewer", fatal=True
            )
        return message

    async def first(self) -> str | bytes | None:
        """Return the client's first message; None if there is none within its patience."""
        with contextlib.suppress(TimeoutError, ConnectionClosed, Fault):
            async with asyncio.timeout(self._patience):
                return await self.hear()
        return None

    async def close(self, code: int, patience: float | None = None, reason: str | None = None) -> bool:
        """Close the connection, without waiting for ever for a client that does not answer.

        Args:
            code: the code of the close.
            patience: seconds to wait; None for `CLOSE_TIMEOUT`.
            reason: what the close says; None for that of the client.

        Returns:
            Whether the client answered, which means that it read everything before the close.
        """
        # Its answer comes behind all that it is still sending, which somebody must take in.
        discarding = asyncio.create_task(self._discard())
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT if patience is None else patience):
                await self.ws.close(code, self.reason if reason is None else reason)
        except TimeoutError:
            self.ws.transport.abort()
        finally:
            discarding.cancel()
        return self.ws.protocol.close_rcvd is not None

    async def _drop(self) -> None:
        if self._dropped:
            return
        self._dropped = True
        self._metrics.subscribers_dropped.inc()
        _log.info("%s reads too slowly: disconnected", name_of(self.ws))
        await self.close(CLOSE_TRY_LATER, self._patience, "too slow: reconnect with ?since=SEQ")

    async def _discard(self) -> None:
        # Or somebody else takes it in already.
        with contextlib.suppress(ConnectionClosed, ConcurrencyError):
            while True:
                await self.ws.recv()


def name_of(ws: ServerConnection) -> str:
    """Return the client's address, for the log."""
    address = ws.remote_address
    return f"{address[0]}:{address[1]}" if address else "a client that left"


def _notice_dead_peers(ws: ServerConnection) -> None:
    sock: socket.socket = ws.transport.get_extra_info("socket")
    # A peer that left meanwhile has no socket to set anything on.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # Linux has them all
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
