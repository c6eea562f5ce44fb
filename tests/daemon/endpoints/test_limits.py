"""How much one client, one address and all together may take up; over real sockets, some taken for a stranger's."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, certificate, client, others_turns, scripted, service, speech, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.protocol import Event as LibraryEvent

from daemon.common.errors import Fault
from daemon.endpoints import incoming, peer, websocket
from daemon.endpoints import limits as edges
from daemon.endpoints.file_descriptors import room_for
from daemon.endpoints.limits import ConnectionLimiter, LimitedConnection, RateLimiter
from daemon.service.app import Service


@asynccontextmanager
async def seen_from_outside(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, **sections: Any
) -> AsyncIterator[Service]:
    """A service that takes this machine for another one."""
    async with service(scripted(tokenizer_file), sections) as daemon:
        monkeypatch.setattr(edges, "is_local", lambda _: False)
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
        await wait_until(lambda: not daemon.server.connections._here)
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
@pytest.mark.parametrize(
    "said", [b"", b"GET /v1/stream HT", b"POST /x HTT", b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\n"]
)
async def test_connections_that_never_say_what_they_want(
    said: bytes, limit: str, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far they have got: they are all counted, and make room for those that come after them."""
    reason = "handshakes" if limit == "max_handshakes" else "address"
    async with seen_from_outside(tokenizer_file, monkeypatch, server={limit: 3}) as daemon:
        limiter = daemon.server.connections
        silent = []
        for _ in range(3):
            silent.append(await dial(daemon))
            silent[-1][1].write(said)
            await wait_until(lambda: limiter.number_waiting == len(silent))
        async with client(daemon.server.url) as mine:
            await mine.say(type="stop")
            assert await mine.rest() == 1000
        assert refused(daemon, reason) == 1
        with contextlib.suppress(ConnectionResetError):
            answer = await asyncio.wait_for(silent[0][0].read(), PATIENCE)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 503 ")
            assert said or answer
        await wait_until(lambda: len(limiter._here) == 2)
        for _, writer in silent:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await wait_until(lambda: not limiter._here)
        assert not limiter._waiting
        assert not limiter._served


async def test_tls_is_counted_from_the_first_moment(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a handshake that may never be made, and which costs half a megabyte."""
    cert, key = certificate(tmp_path)
    settings = {"max_handshakes": 4, "certificate": str(cert), "key": str(key)}
    async with seen_from_outside(tokenizer_file, monkeypatch, server=settings) as daemon:
        limiter, trusting = daemon.server.connections, ssl.create_default_context(cafile=cert)
        port = int(daemon.server.url.rpartition(":")[2])
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        for each in silent[::2]:
            each[1].write(b"\x16\x03\x01")  # the beginning of a handshake
        await wait_until(lambda: refused(daemon, "handshakes") == 36)
        assert len(limiter._here) == 4
        async with client(daemon.server.url, ssl=trusting) as mine:
            await mine.play(speech())
            await mine.until("final")
            assert len(limiter._here) <= 4
        for _, writer in silent:
            writer.close()
        await wait_until(lambda: not limiter._here)


async def test_tls_that_is_not_made_in_time(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate(tmp_path)
    async with service(scripted(tokenizer_file), {"server": {"certificate": str(cert), "key": str(key)}}) as daemon:
        monkeypatch.setattr(edges, "OPEN_TIMEOUT", 0.1)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(daemon.server.url.rpartition(":")[2]))
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()
        await wait_until(lambda: not daemon.server.connections._here)


@pytest.mark.parametrize("path", ["/v1/stream?token=wrong", "/v1/events?token=wrong", "/v1/realtime?token=wrong"])
async def test_those_that_are_refused_count_until_they_have_gone(
    path: str, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not answer the close: where more of them come than may wait, the first are cut off."""
    monkeypatch.setattr(peer, "CLOSE_TIMEOUT", 1000.0)
    settings = {"max_handshakes": 3, "tokens": ["right"]}
    sections = {"server": settings, "subscribers": {"send_timeout": 1000.0}}
    async with seen_from_outside(tokenizer_file, monkeypatch, **sections) as daemon:
        held = []
        for _ in range(10):
            reader, writer = await dial(daemon)
            writer.write(upgrade(path))
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            held.append(writer)
            await wait_until(lambda: daemon.server.connections.number_waiting == len(daemon.server.connections._here))
            assert len(daemon.server.connections._here) <= 3
        async with client(daemon.server.url, "/v1/stream?token=right") as mine:
            await mine.say(type="stop")
            assert await mine.rest() == 1000
        for writer in held:
            writer.transport.abort()
        await wait_until(lambda: not daemon.server.connections._here)


def upgrade(path: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


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
    pace = RateLimiter(100, paused.append)
    for _ in range(100):  # a second's worth is in hand
        await pace.wait()
    began = sum(paused)
    for _ in range(50):
        await pace.wait()
    assert sum(paused) > began
    # The clock is the machine's: no more than the rate allows came through.
    assert pace._due - asyncio.get_running_loop().time() < 0.1


async def test_others_have_their_turn_while_what_is_in_hand_is_read() -> None:
    """What is buffered is read without waiting for anything: thousands of messages would be one turn of the loop."""
    pace = RateLimiter(5000, lambda _: None)
    async with others_turns() as turns:
        for _ in range(100):
            await pace.wait()
            time.sleep(0.001)  # noqa: ASYNC251 # the work that a message makes
    assert turns.count >= 5


async def test_a_long_text_takes_as_much_time_as_many_short_ones() -> None:
    paused: list[float] = []
    pace = RateLimiter(1000, paused.append)
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


def frames(head: int, number: int) -> bytes:
    """That many, with nothing in them. head: the first byte of each."""
    return (bytes([head, 0x80]) + bytes(4)) * number


PING, PONG, BINARY, CONTINUATION, UNFINISHED = 0x89, 0x8A, 0x82, 0x00, 0x02


@pytest.mark.parametrize(
    ("before", "head", "path"),
    [
        (b"", PING, "/v1/stream"),
        (b"", PONG, "/v1/stream"),
        (b"", PONG, "/v1/events"),
        (frames(UNFINISHED, 1), CONTINUATION, "/v1/stream"),
        (b"", BINARY, "/v1/stream"),
        (b"", BINARY, "/v1/events"),  # of which the first is refused
    ],
)
async def test_others_have_their_turn_while_frames_are_read(
    before: bytes, head: int, path: str, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library reads all that it is given in one go: thousands of frames would be one turn of the loop."""
    seen = in_a_turn = most = turn = 0
    enough = asyncio.Event()

    class Watched(peer.Connection):
        def process_event(self, event: LibraryEvent) -> None:
            nonlocal seen, in_a_turn, most, turn
            in_a_turn, turn = in_a_turn + 1 if turn == turns.count else 1, turns.count
            most, seen = max(most, in_a_turn), seen + 1
            if seen > 6000:
                enough.set()
            super().process_event(event)

    monkeypatch.setattr(websocket, "Connection", Watched)
    monkeypatch.setattr(incoming, "TURN", 0.0, raising=False)
    monkeypatch.setattr(peer, "CLOSE_TIMEOUT", PATIENCE)  # who was refused is read on until all is looked at
    async with (
        others_turns() as turns,
        service(scripted(tokenizer_file), {"server": {"max_rate": 1_000_000}}) as daemon,
    ):
        reader, writer = await dial(daemon)
        writer.write(upgrade(path))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        writer.write(before + frames(head, 12000))
        await asyncio.wait_for(enough.wait(), PATIENCE)
        writer.transport.abort()
        await wait_until(lambda: not daemon.server.connections._here)
    assert most < 1000


@pytest.mark.parametrize(
    "sent",
    [
        frames(PING, 3000),
        frames(PONG, 3000),
        (frames(UNFINISHED, 1) + frames(CONTINUATION, 998) + frames(CONTINUATION | 0x80, 1)) * 3,
    ],
    ids=["pings", "pongs", "continuations"],
)
async def test_frames_that_are_no_messages_are_read_no_faster_than_messages(sent: bytes, tokenizer_file: Path) -> None:
    """And none is lost: what comes behind them is heard."""
    async with (
        service(scripted(tokenizer_file), {"server": {"max_rate": 1000}}) as daemon,
        client(daemon.server.url) as mine,
    ):
        mine.ws.transport.write(sent)
        await mine.play(speech())
        await mine.say(type="stop")
        assert await mine.rest() == 1000
        assert len(mine.of("final")) == 1
        assert mine.events[-1]["audio_seconds"] == len(speech()) / 32000
        # A second's worth is in hand, and these would last for three.
        assert daemon.pipeline.metrics.slowed_seconds._value.get() > 0


@pytest.mark.parametrize("head", [PING, PONG, CONTINUATION])
async def test_a_flood_of_empty_frames_is_cut_off(
    head: int, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that left behind it what takes a minute to read would be here for that minute."""
    monkeypatch.setattr(peer, "_LONGEST_FLOOD", 0.5)
    async with service(scripted(tokenizer_file), {"server": {"max_rate": 1000}}) as daemon:
        reader, writer = await dial(daemon)
        writer.write(upgrade("/v1/stream"))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        writer.write(frames(UNFINISHED, 1) + frames(head, 60_000))
        await wait_until(lambda: not daemon.server.connections._here)
        writer.close()
        assert faults(daemon, "flooding") == 1


async def test_sound_among_many_empty_frames_is_heard(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever says something is slowed down, for as long as it takes, but not cut off."""
    monkeypatch.setattr(peer, "_LONGEST_FLOOD", 0.5)
    async with (
        service(scripted(tokenizer_file), {"server": {"max_rate": 1000}}) as daemon,
        client(daemon.server.url) as mine,
    ):
        sound, step = speech(), 3200
        for start in range(0, len(sound), step):
            mine.ws.transport.write(frames(PING, 300))
            await mine.play(sound[start : start + step])
        await mine.say(type="stop")
        assert await mine.rest() == 1000
        assert mine.events[-1]["audio_seconds"] == len(sound) / 32000
        assert not faults(daemon, "flooding")


async def test_frames_behind_a_refusal_are_read_no_faster(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no messages any more, for nobody takes them in."""
    monkeypatch.setattr(peer, "CLOSE_TIMEOUT", 1000.0)
    async with service(scripted(tokenizer_file), {"server": {"max_rate": 1000}}) as daemon:
        reader, writer = await dial(daemon)
        writer.write(upgrade("/v1/events"))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        writer.write(frames(BINARY, 1))
        await asyncio.wait_for(reader.readuntil(b"\x88"), PATIENCE)  # a close begins
        writer.write(frames(BINARY, 3000) + frames(0x88, 1))
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        assert daemon.pipeline.metrics.slowed_seconds._value.get() > 0


async def test_pings_of_a_peer_that_does_not_read(tokenizer_file: Path) -> None:
    sections = {"server": {"max_rate": 1_000_000}}  # or it would take long until so many pongs are there
    async with service(scripted(tokenizer_file), sections) as daemon, client(daemon.server.url, "/v1/events") as other:
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


async def test_connection_limiter() -> None:
    why: list[str] = []
    gone: list[str] = []
    limiter = ConnectionLimiter(2, 5, why.append)

    def enter(name: str, address: str | None) -> LimitedConnection:
        connection = limiter.enter(address, lambda _: gone.append(name))
        assert connection is not None
        return connection

    first, second = enter("a1", "192.0.2.1"), enter("a2", "192.0.2.1")
    with first.being_served(), second.being_served():
        third = enter("a3", "192.0.2.1")
        with pytest.raises(Fault, match="one address may have at most 2 connections"), third.being_served():
            pass
        enter("a4", "192.0.2.1")
        enter("a5", "192.0.2.1")  # whoever is served stays
        assert (gone, why) == (["a3"], ["address"])
        limiter.of_address = 3
        with third.being_served():  # it has gone, and nothing comes of it
            pass
        here = [enter(f"here{number}", "127.0.0.1") for number in range(3)]  # these are not counted each
        enter("b1", "192.0.2.2")
        assert (gone, why) == (["a3", "here0"], ["address", "handshakes"])  # of whoever has most
        limiter.in_all = 7
        enter("c1", "192.0.2.3")
        assert gone[2:] == ["a4"]  # all have two, or fewer, and it was first
    for each in (first, second, *here):
        each.left()
        each.left()
    limiter.waiting = 100
    gone.clear()
    one, two = enter("e1", "192.0.2.5"), enter("e2", "192.0.2.5")
    one.idle = False
    enter("e3", "192.0.2.5")
    enter("e4", "192.0.2.5")
    assert gone == ["e2"]  # rather than one that is about to say what it wants
    two.left()
    limiter.in_all = len(limiter._here)
    enter("d1", "192.0.2.4")
    assert why[-1] == "descriptors"
    limiter.end()
    assert not limiter._here
    assert not limiter._waiting
    assert not limiter._served
    limiter.in_all = 0
    assert limiter.enter(None, lambda _: None) is None


def test_descriptors_are_kept_in_reserve(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    limits = (256, 512)

    def set_limits(_: int, new: tuple[int, int]) -> None:
        nonlocal limits
        limits = new

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    assert room_for(50) == 50
    assert limits == (256, 512)
    assert room_for(100) == 100
    assert limits == (292, 512)  # raised as far as it is needed
    assert not caplog.records
    assert room_for(1000) == 320
    assert limits == (512, 512)
    assert "LimitNOFILE=1192" in caplog.text


async def test_connections_leave_descriptors_to_the_service(tokenizer_file: Path) -> None:
    """However the settings read: whoever comes when there is no more room is told so, and the service goes on."""
    async with service(scripted(tokenizer_file), {"server": {"max_handshakes": 1000}}) as daemon:
        daemon.server.connections.in_all = 8
        held = [await dial(daemon) for _ in range(30)]
        await wait_until(lambda: refused(daemon, "descriptors") == 22)
        async with client(daemon.server.url) as mine:
            await mine.play(speech())
            await mine.until("final")
        for _, writer in held:
            writer.close()


async def test_a_client_that_leaves_while_it_is_slowed_is_still_heard(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file), {"server": {"max_rate": 300}}) as daemon,
        client(daemon.server.url, "/v1/events") as other,
    ):
        # Who does not wait until all is read has gone without a word, and might come back.
        async with client(daemon.server.url, close_timeout=PATIENCE) as mine:
            audio = speech()
            with contextlib.suppress(ConnectionClosed):
                await mine.play(audio, frame=len(audio) // 400)
        assert (await other.until("final"))["text"]
