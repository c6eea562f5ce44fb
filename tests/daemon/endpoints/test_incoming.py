"""What comes in by a connection, over real sockets: in pieces, in turns, and all of it before the end is told."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from harness import PATIENCE, certificate, others_turns

from daemon.endpoints import incoming
from daemon.endpoints.incoming import IncomingConnection
from daemon.endpoints.limits import ConnectionLimiter

SENT = bytes(range(256)) * 400


class Inner(asyncio.Protocol):
    """Whoever serves the connection; it keeps what it is given."""

    def __init__(self, take: Callable[[Inner], None]) -> None:
        self.got = b""
        self.pieces = 0
        self.all_here = asyncio.Event()
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.transport: asyncio.Transport
        self._take = take

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        assert not self.ended.is_set()
        self.got += data
        self.pieces += 1
        self.began.set()
        self._take(self)
        if len(self.got) >= len(SENT):
            self.all_here.set()

    def eof_received(self) -> None:
        self.ended.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


def nothing(_: Inner) -> None: ...


def work(_: Inner) -> None:
    time.sleep(0.001)


def hold(inner: Inner) -> None:
    inner.transport.pause_reading()


def fail(_: Inner) -> None:
    raise ValueError("as a bug would")


@asynccontextmanager
async def opened(
    take: Callable[[Inner], None] = nothing, tls: tuple[Path, Path] | None = None
) -> AsyncIterator[tuple[Inner, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A listener behind which `Inner` is, and a connection to it. tls: certificate and key."""
    inner = Inner(take)
    served = trusting = None
    if tls is not None:
        served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        served.load_cert_chain(*tls)
        trusting = ssl.create_default_context(cafile=tls[0])
    limiter = ConnectionLimiter(9, 9, lambda _: None)
    listening = await asyncio.get_running_loop().create_server(
        lambda: IncomingConnection(limiter, served, lambda _: inner), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname(), ssl=trusting)
    try:
        async with asyncio.timeout(PATIENCE):
            yield inner, reader, writer
    finally:
        writer.transport.abort()
        listening.close()
        await listening.wait_closed()


async def arrived() -> None:
    """What was sent within this process, and what follows of it."""
    async with others_turns() as turns:
        while turns.count < 100:  # noqa: ASYNC110 - turns are what is waited for
            await asyncio.sleep(0)


async def test_what_comes_at_once_is_handed_on_in_turns() -> None:
    async with opened(work) as (inner, _, writer):
        writer.write(SENT)
        await inner.began.wait()
        async with others_turns() as turns:
            await inner.all_here.wait()
        assert inner.got == SENT
        assert turns.count > 3


async def test_who_wants_no_more_is_given_no_more_of_what_is_here() -> None:
    async with opened(hold) as (inner, _, writer):
        writer.write(SENT)
        await inner.began.wait()
        given = 1
        while not inner.all_here.is_set():
            await arrived()
            assert inner.pieces == given
            inner.transport.resume_reading()
            await arrived()
            given += 1
        assert inner.got == SENT
        inner.transport.resume_reading()
        writer.close()
        await inner.ended.wait()


async def leave(inner: Inner, writer: asyncio.StreamWriter) -> None:
    """Send all, and go; it is held up at each piece."""
    writer.write(SENT[:1])
    await inner.began.wait()
    writer.write(SENT[1:])
    writer.close()
    await arrived()
    while not inner.ended.is_set():
        inner.transport.resume_reading()
        await asyncio.sleep(0)


async def test_what_came_before_the_end_is_handed_on_before_it(tmp_path: Path) -> None:
    """TLS tells an end behind what it has given, and does not wait for whoever wants no more."""
    async with opened(hold, certificate(tmp_path)) as (inner, _, writer):
        await leave(inner, writer)
        assert inner.got == SENT


async def test_no_more_than_a_turn_is_spent_on_one_that_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "TURN", 0.0)
    async with opened(hold, certificate(tmp_path)) as (inner, _, writer):
        await leave(inner, writer)
        assert 0 < len(inner.got) < len(SENT)


async def test_who_is_cut_off_is_given_no_more() -> None:
    async with opened(lambda inner: inner.transport.abort()) as (inner, reader, writer):
        writer.write(SENT)
        await inner.ended.wait()
        assert inner.pieces == 1
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_whoever_fails_at_what_is_handed_on_later_loses_the_connection() -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    async with opened(lambda inner: fail(inner) if inner.pieces > 1 else hold(inner)) as (inner, _, writer):
        writer.write(SENT)
        await inner.began.wait()
        inner.transport.resume_reading()
        await inner.ended.wait()
        assert inner.pieces == 2
    assert len(told) == 1
