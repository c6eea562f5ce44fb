"""How much one client, one address and all together may take up; over real sockets, some taken for a stranger's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, client, scripted, service, speech, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from daemon import edges, server
from daemon.app import Service
from daemon.edges import Pace, Visitors
from daemon.faults import Fault


@asynccontextmanager
async def seen_from_outside(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, **sections: Any
) -> AsyncIterator[Service]:
    """A service that takes this machine for another one."""
    async with service(scripted(tokenizer_file), sections) as daemon:
        monkeypatch.setattr(edges, "is_local", lambda _: False)
        monkeypatch.setattr(server, "is_local", lambda _: False)
        yield daemon


def refused(daemon: Service, reason: str) -> float:
    return float(daemon.pipeline.metrics.connections_refused.labels(reason)._value.get())


def faults(daemon: Service, code: str) -> float:
    return float(daemon.pipeline.metrics.client_errors.labels(code)._value.get())


async def dial(daemon: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = daemon.server.url.removeprefix("ws://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def test_connections_of_one_address(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with seen_from_outside(tokenizer_file, monkeypatch, server={"max_per_address": 2}) as daemon:
        url = daemon.server.url
        async with client(url, "/v1/stream?source=a") as first, client(url, "/v1/events"):
            await first.say(type="start")
            await first.until("ready")
            async with client(url, "/v1/events") as third:
                assert await third.rest() == 1013
                assert (third.events[0]["code"], third.events[0]["fatal"]) == ("too_many_connections", True)
            # Who is here stays, and is heard.
            await first.play(speech())
            await first.until("final")
        assert faults(daemon, "too_many_connections") == 1
        await wait_until(lambda: not daemon.server.visitors._here)
        async with client(url, "/v1/stream") as again:
            await again.say(type="stop")
            assert await again.rest() == 1000


async def test_this_machine_is_not_counted(tokenizer_file: Path) -> None:
    sections = {"server": {"max_per_address": 1}}
    async with service(scripted(tokenizer_file), sections) as daemon, contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            mine = await stack.enter_async_context(client(daemon.server.url))
            await mine.say(type="start")
            assert (await mine.next())["type"] == "ready"


@pytest.mark.parametrize("limit", ["max_handshakes", "max_per_address"])
async def test_connections_that_never_say_what_they_want(
    limit: str, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "handshakes" if limit == "max_handshakes" else "address"
    async with seen_from_outside(tokenizer_file, monkeypatch, server={limit: 3}) as daemon:
        silent = [await dial(daemon) for _ in range(3)]
        await wait_until(lambda: len(daemon.server._handshakes._waiting) == 3)
        with pytest.raises(InvalidStatus) as caught:
            async with client(daemon.server.url):
                pass
        assert caught.value.response.status_code == 503
        assert refused(daemon, reason) == 1
        silent[0][1].close()
        await silent[0][1].wait_closed()
        await wait_until(lambda: len(daemon.server._handshakes._waiting) == 2)
        async with client(daemon.server.url) as mine:
            # A handshake that is over does not count.
            await wait_until(lambda: len(daemon.server._handshakes._waiting) == 2)
            await mine.say(type="stop")
            assert await mine.rest() == 1000
        for _, writer in silent[1:]:
            writer.close()
            await writer.wait_closed()
        await wait_until(lambda: not daemon.server._handshakes._waiting)
        assert not daemon.server._handshakes._of


async def test_many_small_messages_are_read_slowly_and_none_is_lost(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file), {"server": {"max_rate": 20}}) as daemon,
        client(daemon.server.url) as mine,
    ):
        audio = speech()
        await mine.play(audio, frame=len(audio) // 80 * 2)
        await mine.say(type="stop")
        assert await mine.rest() == 1000
        assert mine.events[-1]["audio_seconds"] == len(audio) / 32000
        assert len(mine.of("final")) == 1
        assert daemon.pipeline.metrics.slowed_seconds._value.get() > 0


async def test_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    pace = Pace(100, paused.append)
    for _ in range(100):  # a second's worth is in hand
        await pace.wait()
    began = sum(paused)
    for _ in range(50):
        await pace.wait()
    assert sum(paused) > began
    # The clock is the machine's: no more than the rate allows came through.
    assert pace._due - asyncio.get_running_loop().time() < 0.1


async def test_a_long_text_takes_as_much_time_as_many_short_ones() -> None:
    paused: list[float] = []
    pace = Pace(1000, paused.append)
    pace.charge(1023)
    await pace.wait()
    assert not paused
    pace.charge(1_048_576)
    await pace.wait()
    assert sum(paused) > 0


async def test_what_wyoming_does_not_know_is_read_no_faster(tokenizer_file: Path) -> None:
    sections = {"server": {"max_rate": 50}, "wyoming": {"host": "127.0.0.1", "port": 0}}
    async with service(scripted(tokenizer_file), sections) as daemon:
        assert daemon.wyoming is not None
        reader, writer = await asyncio.open_connection(*daemon.wyoming.address)
        writer.write(b'{"type": "nothing"}\n' * 80 + b'{"type": "ping"}\n')
        async with asyncio.timeout(PATIENCE):
            assert b"pong" in await reader.readline()
        writer.close()
        await writer.wait_closed()
        assert daemon.pipeline.metrics.slowed_seconds._value.get() > 0


async def test_pings_of_a_peer_that_does_not_read(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url, "/v1/events") as other:
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        small.setblocking(False)
        port = int(daemon.server.url.rpartition(":")[2])
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", port))
            async with client(daemon.server.url, "/v1/events", sock=small, ping_interval=None) as mine:
                mine.ws.transport.pause_reading()
                ping = bytes([0x89, 0x80 | 125]) + bytes(4) + bytes(125)
                while not faults(daemon, "not_reading"):
                    mine.ws.transport.write(ping * 1000)
                    await asyncio.sleep(0)
                mine.ws.transport.abort()
        async with client(daemon.server.url) as speaker:
            await speaker.play(speech())
            await other.until("final")


async def test_wyoming_has_the_same_limits(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {"server": {"max_per_address": 1, "max_rate": 20}, "wyoming": {"host": "127.0.0.1", "port": 0}}
    async with seen_from_outside(tokenizer_file, monkeypatch, **sections) as daemon:
        assert daemon.wyoming is not None
        reader, writer = await asyncio.open_connection(*daemon.wyoming.address)
        writer.write(b'{"type": "ping"}\n' * 60)
        async with asyncio.timeout(PATIENCE):
            for _ in range(60):
                assert b"pong" in await reader.readline()
            late, other = await asyncio.open_connection(*daemon.wyoming.address)
            assert b"too_many_connections" in await late.read()
        for each in (writer, other):
            each.close()
            with contextlib.suppress(OSError):
                await each.wait_closed()
        assert daemon.pipeline.metrics.slowed_seconds._value.get() > 0
        assert faults(daemon, "too_many_connections") == 1


def test_visitors_that_leave_are_forgotten() -> None:
    visitors = Visitors(1)
    with visitors.visit("192.0.2.1"), visitors.visit("192.0.2.2"), visitors.visit(None):
        with pytest.raises(Fault, match="1 connections from one address"), visitors.visit("192.0.2.1"):
            pass
        visitors.most = 2
        with visitors.visit("192.0.2.1"):
            pass
    assert not visitors._here


async def test_a_client_that_leaves_while_it_is_slowed_is_still_heard(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file), {"server": {"max_rate": 300}}) as daemon,
        client(daemon.server.url, "/v1/events") as other,
    ):
        async with client(daemon.server.url) as mine:
            audio = speech()
            with contextlib.suppress(ConnectionClosed):
                await mine.play(audio, frame=len(audio) // 400)
        assert (await other.until("final"))["text"]
