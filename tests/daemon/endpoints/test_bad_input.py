"""Everything that a client can do wrong, over a real socket, while another stream goes on untouched.

Each fault: its own code, a message that says what to send instead, the close code that goes with it when it is fatal,
nothing lost of what was heard before, and no traceback in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import Client, client, scripted, service, speech, wait_until
from test_limits import upgrade
from websockets.exceptions import ConnectionClosed, InvalidStatus

from daemon.endpoints import peer
from daemon.service.app import Service

Act = Callable[[Client], Awaitable[None]]


def text(frame: str) -> Act:
    return lambda mine: mine.ws.send(frame)


def say(**message: Any) -> Act:
    return lambda mine: mine.say(**message)


@asynccontextmanager
async def beside(tokenizer_file: Path, caplog: pytest.LogCaptureFixture, **settings: Any) -> AsyncIterator[Service]:
    """A service with a stream that is half way through a sentence, and must come out whole; and a log without an
    exception in it.
    """
    caplog.set_level(logging.DEBUG, "daemon")
    async with service(scripted(tokenizer_file), {"server": settings}) as daemon:
        headers = {"Authorization": "Bearer good"}
        async with client(daemon.server.url, "/v1/stream?source=other", additional_headers=headers) as other:
            half = len(speech()) // 4 * 2
            await other.play(speech()[:half])
            await other.until("speech_started")
            yield daemon
            await other.play(speech()[half:])
            await other.say(type="stop")
            assert await other.rest() == 1000
    assert not other.of("error")
    assert len(other.of("final")) == 1
    assert other.events[-1]["audio_seconds"] == len(speech()) / 32000
    assert [record for record in caplog.records if record.exc_info] == []
    assert "Traceback" not in caplog.text


FATAL_AT_FIRST: list[tuple[Act, str, int, str]] = [
    (text('{"type":'), "bad_json", 1007, "JSON object"),
    (text("[]"), "bad_json", 1007, "JSON object"),
    (say(type="begin"), "unknown_type", 1007, '"start", "flush" or "stop"'),
    (say(type="start", rate=16000), "unknown_field", 1007, "sample_rate"),
    (say(type="start", partials=1), "bad_field", 1007, "true or false"),
    (say(type="start", sample_rate=12), "bad_format", 1007, "sample_rate must be 8000..192000, got 12"),
    (say(type="start", sample_rate="fast"), "bad_format", 1007, "sample_rate must be 8000..192000"),
    (say(type="start", sample_rate=["fast" * 5000]), "bad_format", 1007, "fast"),
    (say(type="start", encoding="x" * 5000), "bad_encoding", 1007, "xx..."),
    (say(type="start", channels=0), "bad_format", 1007, "channels must be"),
    (say(type="start", encoding="mp3"), "bad_encoding", 1007, "pcm_s16le"),
    (say(type="start", language="tlh"), "bad_language", 1007, "must be one of en"),
    (say(type="start", languages=["tlh", "xx"]), "bad_language", 1007, "one of languages must be one of en"),
    (say(type="start", languages="en"), "bad_field", 1007, "languages must be a list"),
    (say(type="start", languages=["en"] * 101), "bad_field", 1007, "a list of at most 100"),
    (say(type="start", languages=["en", 3]), "bad_field", 1007, "languages must be a list"),
    (say(type="start", languages=["de"], language="en"), "bad_field", 1007, "leave one of them out"),
    (say(type="start", source="a/b"), "bad_source", 1007, "without any of"),
    (say(type="start", source=""), "bad_source", 1007, "1..64"),
    (say(type="start", source="a" * 65), "bad_source", 1007, "got 65 of them: 'aaa"),
    (say(type="start", sample_rate=16000.0), "bad_format", 1007, "a whole number"),
    (say(type="start", channels=None), "bad_format", 1007, "got null"),
    (text(f'{{"type":"start","sample_rate":{"9" * 5000}}}'), "bad_json", 1007, "too many digits"),
]


@pytest.mark.parametrize(("act", "code", "close", "says"), FATAL_AT_FIRST)
async def test_a_bad_beginning(
    act: Act, code: str, close: int, says: str, tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with beside(tokenizer_file, caplog) as daemon, client(daemon.server.url) as mine:
        await act(mine)
        assert await mine.rest() == close
    (error,) = mine.events
    assert (error["type"], error["code"], error["fatal"]) == ("error", code, True)
    assert says in error["message"]
    assert len(error["message"]) < 300  # what a client sends must not fill the log


BAD_QUERIES = [
    ("/v1/stream?sauce=x", "unknown_parameter", 1007, "source"),
    ("/v1/stream?source=a&source=b", "bad_parameter", 1007, "once"),
    ("/v1/stream?" + "&".join(f"a{n}=1" for n in range(20)), "bad_parameter", 1007, "too many"),
    ("/v1/stream?source=%2B", "bad_source", 1007, "without any of"),
    ("/v1/events?source=%00", "bad_source", 1007, "printable"),
    ("/v1/events?since=3", "bad_parameter", 1007, "needs a source"),
    ("/v1/events?source=a&since=-1", "bad_parameter", 1007, "seq of an event"),
    ("/v1/events?since=3&sense=4&source=a", "unknown_parameter", 1007, "since"),
]


@pytest.mark.parametrize(("path", "code", "close", "says"), BAD_QUERIES)
async def test_a_bad_address(
    path: str, code: str, close: int, says: str, tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with beside(tokenizer_file, caplog) as daemon, client(daemon.server.url, path) as mine:
        assert await mine.rest() == close
    (error,) = mine.events
    assert (error["code"], error["fatal"]) == (code, True)
    assert says in error["message"]


HARMLESS_LATER: list[tuple[Act, str, str]] = [
    (text('{"type":'), "bad_json", "JSON object"),
    (text("AAAA////"), "text_for_audio", "binary frames"),
    (say(type="audio", data="AAAA"), "unknown_type", "binary frames"),
    (say(type="flush", id=3), "bad_field", "string"),
    (text('{"type":"flush","id":"\\ud800"}'), "bad_field", "characters of Unicode"),
    (say(type="stop", now=True), "unknown_field", "none"),
    (say(type="start", sample_rate=8000), "late_start", "another connection"),
]


@pytest.mark.parametrize(("act", "code", "says"), HARMLESS_LATER)
async def test_a_bad_message_in_the_middle_of_a_stream_is_only_that(
    act: Act, code: str, says: str, tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with beside(tokenizer_file, caplog) as daemon, client(daemon.server.url) as mine:
        half = len(speech()) // 4 * 2
        await mine.play(speech()[:half])
        await act(mine)
        error = await mine.until("error")
        assert (error["code"], error["fatal"]) == (code, False)
        assert says in error["message"]
        await mine.play(speech()[half:])
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    assert len(mine.of("final")) == 1
    assert mine.events[-1]["audio_seconds"] == len(speech()) / 32000


async def test_ready_comes_before_any_complaint(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with beside(tokenizer_file, caplog) as daemon, client(daemon.server.url) as mine:
        for message in ({"type": "start"}, {"type": "start"}, {"type": "flush", "id": 5}, {"type": "stop"}):
            await mine.say(**message)
        assert await mine.rest() == 1000
    said = [(event["type"], event.get("code")) for event in mine.events]
    assert said == [("ready", None), ("error", "late_start"), ("error", "bad_field"), ("stopped", None)]


async def test_a_broken_sample_at_the_end(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with beside(tokenizer_file, caplog) as daemon, client(daemon.server.url) as mine:
        await mine.play(speech() + b"\x00", frame=777)
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    (error,) = mine.of("error")
    assert (error["code"], error["fatal"]) == ("odd_bytes", False)
    assert "1 of the 2 bytes" in error["message"]
    assert len(mine.of("final")) == 1
    assert mine.events[-1]["type"] == "stopped"


async def test_a_message_that_is_too_big(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with beside(tokenizer_file, caplog) as daemon, client(daemon.server.url) as mine:
        await mine.play(speech()[: len(speech()) // 4 * 2])
        await mine.ws.send(bytes(1048577))
        assert await mine.rest() == 1009
    (error,) = mine.of("error")
    assert (error["code"], error["fatal"]) == ("message_too_big", True)
    # What was heard before is not lost, not even to this client.
    assert [event["type"] for event in mine.events[-2:]] == ["final", "stopped"]


async def test_a_client_that_talks_on_after_its_fatal_fault_still_gets_its_answer(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "CLOSE_TIMEOUT", 1000.0)  # so that only a close that works ends this
    async with beside(tokenizer_file, caplog) as daemon, client(daemon.server.url) as mine:
        await mine.play(speech())
        await mine.ws.send(bytes(1048577))
        with contextlib.suppress(ConnectionClosed):
            await mine.play(bytes(50 * 65536), frame=65536)
        assert await mine.rest() == 1009
    assert mine.of("error")[0]["code"] == "message_too_big"
    assert mine.events[-1]["type"] == "stopped"


async def test_a_message_so_big_that_it_is_not_even_read(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        beside(tokenizer_file, caplog) as daemon,
        client(daemon.server.url, "/v1/events") as listening,
        client(daemon.server.url, "/v1/stream?source=mine") as mine,
    ):
        await mine.play(speech()[: len(speech()) // 4 * 2])
        await mine.until("speech_started")
        await mine.ws.send(bytes(2 << 20))
        assert await mine.rest() == 1009
        while (await listening.until("final"))["source"] != "mine":
            pass


@pytest.mark.parametrize("frame", ["hello", b"\x00\x00", '{"type":"stop"}'])
async def test_a_subscriber_that_talks(
    frame: str | bytes, tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with beside(tokenizer_file, caplog) as daemon, client(daemon.server.url, "/v1/events?source=x") as mine:
        await mine.ws.send(frame)
        assert await mine.rest() == 1003
    (error,) = mine.events
    assert (error["code"], error["fatal"]) == ("subscribe_only", True)
    assert "/v1/stream" in error["message"]


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/events"])
@pytest.mark.parametrize(
    ("suffix", "headers"),
    [("", {}), ("?token=bad", {}), ("", {"Authorization": "Bearer bad"}), ("", {"Authorization": "Basic Z29vZA=="})],
)
async def test_no_token_no_service(
    path: str, suffix: str, headers: dict[str, str], tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        beside(tokenizer_file, caplog, tokens=["good", "better"]) as daemon,
        client(daemon.server.url, path + suffix, additional_headers=headers) as mine,
    ):
        assert await mine.rest() == 1008
    (error,) = mine.events
    assert (error["code"], error["fatal"]) == ("unauthorised", True)
    assert "Bearer" in error["message"]
    assert "bad" not in caplog.text


async def test_tokens_that_open(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        beside(tokenizer_file, caplog, tokens=["good", "better"]) as daemon,
        client(daemon.server.url, "/v1/stream?token=better") as mine,
    ):
        await mine.say(type="start")
        assert (await mine.next())["type"] == "ready"


@pytest.mark.parametrize(
    ("origin", "allowed", "fine"),
    [
        ("https://evil.example", [], False),
        ("https://home.example", ["https://home.example"], True),
        ("https://home.example.evil.example", ["https://home.example"], False),
        ("null", [], False),
        ("https://evil.example", ["*"], True),
        (None, [], True),
        ("ours", [], True),
    ],
)
async def test_which_pages_may_connect(
    origin: str | None, allowed: list[str], fine: bool, tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with beside(tokenizer_file, caplog, origins=allowed) as daemon:
        shown = daemon.server.url.replace("ws:", "http:") if origin == "ours" else origin
        async with client(daemon.server.url, origin=shown) as mine:
            if fine:
                await mine.say(type="start")
                assert (await mine.next())["type"] == "ready"
            else:
                assert await mine.rest() == 1008
                assert mine.events[0]["code"] == "bad_origin"


@pytest.mark.parametrize(("path", "limit"), [("/v1/stream", "max_streams"), ("/v1/events", "max_subscribers")])
async def test_a_full_house(path: str, limit: str, tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    # The stream beside takes a slot of its own.
    slots = 2 if limit == "max_streams" else 1
    async with beside(tokenizer_file, caplog, **{limit: slots}) as daemon:
        async with client(daemon.server.url, path), client(daemon.server.url, path) as late:
            assert await late.rest() == 1013
            assert late.events[0]["code"] == "full"
            assert "later" in late.events[0]["message"]
        if limit == "max_streams":
            await asyncio.wait_for(_slot_is_free(daemon.server.url), 30)


async def _slot_is_free(url: str) -> None:
    while True:
        async with client(url) as mine:
            await mine.say(type="stop")
            if await mine.rest() == 1000:
                return


async def test_paths_that_are_not_there(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with beside(tokenizer_file, caplog) as daemon:
        for path in ("/", "/v1", "/v1/stream/x", "/v2/stream"):
            with pytest.raises(InvalidStatus) as caught:
                async with client(daemon.server.url, path):
                    pass
            assert caught.value.response.status_code == 404
            assert b"/v1/stream" in (caught.value.response.body or b"")


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/events", "/v1/realtime", "/v1/listen"])
async def test_a_message_in_too_many_pieces(path: str, tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with beside(tokenizer_file, caplog) as daemon, client(daemon.server.url, path) as mine:
        with contextlib.suppress(ConnectionClosed):
            await mine.ws.send(b"\x00\x00" for _ in range(9000))
        code = "subscribe_only" if path == "/v1/events" else "message_too_big"
        assert await mine.rest() == (1003 if path == "/v1/events" else 1009)
        metrics = daemon.pipeline.metrics
        assert metrics.errors.labels("internal")._value.get() == 0
        assert metrics.client_errors.labels(code)._value.get() == 1
        assert any(code in json.dumps(event) for event in mine.events) or path == "/v1/listen"


async def test_a_message_in_many_pieces(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        audio = speech()
        for _ in range(2):
            size = len(audio) // 1000 + 1
            await mine.ws.send(audio[at : at + size] for at in range(0, len(audio), size))
        await mine.say(type="stop")
        assert await mine.rest() == 1000
        assert mine.events[-1]["audio_seconds"] == 2 * len(audio) / 32000


async def test_too_many_pieces_of_one_that_is_not_waited_for(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused, and does not answer its close; what is left of its message is nothing to stumble over."""
    monkeypatch.setattr(peer, "CLOSE_TIMEOUT", 0.5)
    sections = {
        "server": {"tokens": ["right"]}, "dialects": {"whisperlive": 0}, "subscribers": {"send_timeout": 0.2}
    }  # fmt: skip
    async with service(scripted(tokenizer_file), sections) as daemon:
        host, _, port = daemon.server.urls["whisperlive"].removeprefix("ws://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(upgrade("/"))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        nothing = b"\x80" + bytes(4)  # its length, and a mask of zeros
        writer.write(b"\x02" + nothing + (b"\x00" + nothing) * 20000)
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 30)
        writer.close()
        await wait_until(lambda: not daemon.server.connections._here)
        gc.collect()
        assert daemon.pipeline.metrics.errors.labels("internal")._value.get() == 0
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00", b"HELO me\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"", b"\n" * 9]
)
async def test_what_is_not_even_http(data: bytes, tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with beside(tokenizer_file, caplog) as daemon:
        host, _, port = daemon.server.url.removeprefix("ws://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 30)
        writer.close()
        await writer.wait_closed()


async def test_frames_that_are_not_websocket(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with beside(tokenizer_file, caplog) as daemon, client(daemon.server.url) as mine:
        await mine.play(speech()[: len(speech()) // 4 * 2])
        await mine.until("speech_started")
        mine.ws.transport.write(b"\xff\xff\xff\xff")
        assert await mine.rest() == 1002


async def test_text_that_is_not_utf8(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with beside(tokenizer_file, caplog) as daemon, client(daemon.server.url) as mine:
        await mine.ws.send(b"\xff\xfe", text=True)
        assert await mine.rest() == 1007


async def test_rubbish_by_the_thousand_is_one_line_in_the_log(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with beside(tokenizer_file, caplog) as daemon, client(daemon.server.url) as mine:
        await mine.play(b"\x00\x00")
        for _ in range(100):
            await mine.ws.send("rubbish")
            await mine.until("error")
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    told = [record for record in caplog.records if "text_for_audio" in record.getMessage()]
    assert len([record for record in told if record.levelno >= logging.INFO]) == 1
    assert len(mine.of("error")) == 100
    json.dumps(mine.events)
