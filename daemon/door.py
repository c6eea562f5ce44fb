"""A connection's way in, before anything is known of it but its address.

Owns that it is counted from the moment that it is accepted until it has ended (`Guests`), the handshake of TLS, and
that nothing is made for it before its first byte, by which it is decided who serves it from there. Knows no protocol
above TLS.

The handshake is made here, and not by the listener: asyncio tells of a connection only once that is over, which may be
never, and counts nothing before.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import cast

from daemon.edges import OPEN_TIMEOUT, TOO_MANY, Guest, Guests

_SHUTDOWN_TIMEOUT = 5.0
"""Seconds for a peer to answer the end of TLS."""

Choose = Callable[[bytes], asyncio.Protocol]
"""Who serves a connection that begins with this."""


class Door(asyncio.Protocol):
    """tls: None for a port without. choose: asked once.

    Attributes:
        guest: as it is counted; None: there was no room.
    """

    def __init__(self, guests: Guests, tls: ssl.SSLContext | None, choose: Choose) -> None:
        self.guest: Guest | None = None
        self._guests = guests
        self._tls = tls
        self._choose = choose
        self._transport: asyncio.Transport | None = None
        self._inner: asyncio.Protocol | None = None
        self._early = b""  # came before the handshake's end was noticed
        self._securing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.guest = self._guests.enter(address_of(transport), self._turn_away)
        if self.guest is None:
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
            if self.guest is not None:
                self.guest.idle = False
            self._inner = self._choose(data)
            self._inner.connection_made(self._transport)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.guest is not None:
            self.guest.left()
        if self._inner is not None:
            self._inner.connection_lost(exc)

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
        if self.guest is not None:
            self.guest.idle = False
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def _turn_away(self, crowded: bool) -> None:
        if self._transport is None:
            return
        if crowded and self._tls is None and self._inner is None:
            self._transport.write(TOO_MANY)
            self._transport.close()
        else:
            self._transport.abort()


def address_of(transport: asyncio.BaseTransport) -> str | None:
    """None where there is none: it came by a path, or has left."""
    address = transport.get_extra_info("peername")
    return str(address[0]) if isinstance(address, tuple) and address else None


def guest_of(transport: asyncio.BaseTransport | None) -> Guest:
    """Raises:
    ConnectionError: it has left.
    """
    door = transport.get_protocol() if transport is not None else None
    if not isinstance(door, Door) or door.guest is None:
        raise ConnectionResetError("it has left")
    return door.guest
