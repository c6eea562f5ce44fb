"""A connection's way in, before anything is known of it but its address.

Owns that it is counted from the moment that it is accepted until it has ended (`ConnectionLimiter`), the handshake of
TLS, that nothing is made for it before its first byte, which decides who serves it, and that what it sends is handed on
in pieces, with turns for the others between them. Knows no protocol above TLS.

The handshake is made here, and not by the listener, because asyncio reports a connection only once that is over, which
may be never, and counts nothing before.

The pieces are made here, because the libraries that read a protocol take in whatever they are given in one go. What the
system gives at once can be tens of thousands of frames or chunks, and none of them need become a message, so that no
limit on messages would slow them down.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterator
from typing import Any, cast

from daemon.endpoints.limits import OPEN_TIMEOUT, TOO_MANY, TURN, ConnectionLimiter, LimitedConnection

_SHUTDOWN_TIMEOUT = 5.0
"""Seconds for a peer to answer the end of TLS."""

_PIECE = 2048
"""Bytes that are handed on at once. In the smallest frames that is a few hundred of them, and a few milliseconds."""

Choose = Callable[[bytes], asyncio.Protocol]
"""Who serves a connection that begins with this."""


class IncomingConnection(asyncio.Protocol):
    """Accepts a connection, and hands it to the protocol that serves it.

    Args:
        limiter: counts it.
        tls: the port's; None for a port without TLS.
        choose: returns what serves a connection that begins with these bytes; called once.

    Attributes:
        limited: the connection as it is counted; None if there was no room.
    """

    def __init__(self, limiter: ConnectionLimiter, tls: ssl.SSLContext | None, choose: Choose) -> None:
        self.limited: LimitedConnection | None = None
        self._limiter = limiter
        self._tls = tls
        self._choose = choose
        self._transport: asyncio.Transport | None = None
        self._inner: asyncio.Protocol | None = None
        self._early = b""  # came before the handshake's end was noticed
        self._securing: asyncio.Task[None] | None = None
        self._rest = b""  # came, and is not handed on yet from `_at` on
        self._at = 0
        self._held = False  # whoever serves it wants no more for now
        self._scheduled = False
        self._on_piece: Callable[[int], object] = _nothing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.limited = self._limiter.enter(address_of(transport), self._turn_away)
        if self.limited is None:
            self._turn_away(crowded=True)
        elif self._tls is not None:
            self._transport.pause_reading()
            self._securing = asyncio.get_running_loop().create_task(self._secure(self._transport, self._tls))

    def data_received(self, data: bytes) -> None:
        if self._securing is not None:
            self._early += data
            return
        if self._inner is None:
            if self._transport is None or self._transport.is_closing():
                return
            if self.limited is not None:
                self.limited.idle = False
            self._inner = self._choose(data)
            self._inner.connection_made(cast(asyncio.Transport, _Tap(self, self._transport)))
        self._rest, self._at = self._rest[self._at :] + data, 0
        self._hand_on()

    def eof_received(self) -> bool | None:
        self._hand_on_at_last()
        return self._inner.eof_received() if self._inner is not None else None

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.limited is not None:
            self.limited.left()
        self._hand_on_at_last()
        if self._inner is not None:
            self._inner.connection_lost(exc)

    # --- what comes in ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watched(self, on_piece: Callable[[int], object]) -> Iterator[None]:
        """Call `on_piece` within a block with the bytes of each piece, when it is handed on."""
        self._on_piece = on_piece
        try:
            yield
        finally:
            self._on_piece = _nothing

    def hold(self) -> None:
        """Hand on nothing more for now, not even what is here already."""
        self._held = True
        self._read_or_wait()

    def go_on(self) -> None:
        self._held = False
        self._read_or_wait()

    def pass_over(self) -> None:
        """Drop what is here."""
        self._rest, self._at = b"", 0

    @property
    def open(self) -> bool:
        return self._transport is not None

    def _hand_on(self) -> None:
        """Hand on what is here, as far as one turn goes."""
        clock = asyncio.get_running_loop().time
        until = clock() + TURN
        while self._rest and not self._held:
            self._hand_piece()
            if clock() >= until:
                break
        self._read_or_wait()

    def _hand_on_at_last(self) -> None:
        """Hand on what is here before the end is told.

        The last sound of a client that left is little work, and is heard; but no more than a turn's work is done for
        it.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + TURN
        while self._rest and clock() < until:
            self._hand_piece()
        self.pass_over()

    def _hand_piece(self) -> None:
        assert self._inner is not None, "it was chosen by what is here"
        piece = self._rest[self._at : self._at + _PIECE]
        self._at += len(piece)
        if self._at >= len(self._rest):
            self.pass_over()
        try:
            self._inner.data_received(piece)
        except BaseException:
            # The loop ends a connection whose protocol fails, but this may not be a call of the transport's.
            self.pass_over()
            if self._transport is not None:
                self._transport.abort()
            raise
        self._on_piece(len(piece))

    def _read_or_wait(self) -> None:
        """Read more only once all that is here is handed on, and that in turns."""
        if self._transport is None:
            return
        if self._rest and not self._held and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._have_turn)
        if self._rest or self._held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _have_turn(self) -> None:
        self._scheduled = False
        self._hand_on()

    # --- its beginning and its end ---------------------------------------------------------------------------------

    async def _secure(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        secured: asyncio.Transport | None = None
        with contextlib.suppress(OSError):  # of TLS, too: it spoke something else, or left
            secured = await asyncio.get_running_loop().start_tls(
                transport, self, tls, server_side=True,
                ssl_handshake_timeout=OPEN_TIMEOUT, ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT,
            )  # fmt: skip
        self._securing = None
        if secured is None or self._transport is None:
            self.connection_lost(None)
            return
        self._transport = secured
        if self.limited is not None:
            self.limited.idle = False
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def _turn_away(self, crowded: bool) -> None:
        if self._transport is None:
            return
        if crowded and self._tls is None and self._inner is None:
            # Nothing of a request was read, so nobody knows which page asks: unlike all other answers, this one says
            # nothing of sharing (CORS), and a page of others sees a network error. To wait for its head would take the
            # room that there is none of.
            self._transport.write(TOO_MANY)
            self._transport.close()
        else:
            self._transport.abort()


class _Tap:
    """A connection's transport, as the protocol that serves it has it.

    What holds it up, or gives it up, does the same to what was read and is not handed on yet.
    """

    def __init__(self, incoming: IncomingConnection, transport: asyncio.Transport) -> None:
        self._incoming = incoming
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def pause_reading(self) -> None:
        self._incoming.hold()

    def resume_reading(self) -> None:
        self._incoming.go_on()

    def write(self, data: bytes) -> None:
        if self._incoming.open:  # or what is handed on at last would be answered, and each answer be a line of the log
            self._transport.write(data)

    def close(self) -> None:
        self._incoming.pass_over()
        self._transport.close()

    def abort(self) -> None:
        self._incoming.pass_over()
        self._transport.abort()


def address_of(transport: asyncio.BaseTransport) -> str | None:
    """Return the address of the client; None where there is none, because it came by a path, or has left."""
    address = transport.get_extra_info("peername")
    return str(address[0]) if isinstance(address, tuple) and address else None


def incoming_of(transport: asyncio.BaseTransport | None) -> IncomingConnection:
    """Return the `IncomingConnection` behind a transport.

    Raises:
        ConnectionError: the client has left.
    """
    incoming = transport.get_protocol() if transport is not None else None
    if not isinstance(incoming, IncomingConnection):
        raise ConnectionResetError("it has left")
    return incoming


def limited_of(transport: asyncio.BaseTransport | None) -> LimitedConnection:
    """Return the `LimitedConnection` behind a transport.

    Raises:
        ConnectionError: the client has left.
    """
    limited = incoming_of(transport).limited
    if limited is None:
        raise ConnectionResetError("it has left")
    return limited


def _nothing(_: int) -> None: ...
