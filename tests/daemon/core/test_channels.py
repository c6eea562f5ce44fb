"""Two channels, each a source of its own, over real sockets: the two sides of a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import SECOND, client, scripted, service, speech

START = {"source": "call", "channels": "separate", "sample_rate": 16000}


def call(left: bytes, right: bytes) -> bytes:
    """Both sides as one recording of two channels."""
    length = max(len(left), len(right)) // 2
    sides = [np.pad(np.frombuffer(side, "<i2"), (0, length - len(side) // 2)) for side in (left, right)]
    return np.stack(sides, axis=1).tobytes()


def kinds(events: list[dict[str, Any]], source: str) -> list[str]:
    return [event["type"] for event in events if event.get("source") == source and event["type"] != "partial"]


async def test_each_channel_is_a_source_and_its_client_is_answered_once_for_both(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/events?source=call-2") as other,
        client(daemon.server.url) as mine,
    ):
        await mine.say(type="start", **START)
        ready = await mine.next()
        assert (ready["source"], ready["channels"]) == ("call", ["call-1", "call-2"])
        assert daemon.pipeline.sources.states() == {"call-1": "listening", "call-2": "listening"}
        # First one speaks, then both at once.
        await mine.play(call(speech(), b""))
        await mine.say(type="flush", id="a1")
        await mine.until("flushed")
        assert {final["source"] for final in mine.of("final")} == {"call-1"}
        await mine.play(call(speech(), speech()))
        await mine.say(type="flush", id="a2")
        await mine.say(type="stop")
        assert await mine.rest() == 1000
        while len(other.of("final")) < 1:
            await other.next()
    utterance = ["speech_started", "speech_stopped", "final"]
    assert kinds(mine.events, "call-1") == utterance * 2
    assert kinds(mine.events, "call-2") == utterance
    first, second = mine.of("final")[0], next(final for final in mine.of("final") if final["source"] == "call-2")
    assert first["id"] == f"{ready['session']}-1-1"
    assert second["id"] == f"{ready['session']}-2-1"
    assert second["start"] == pytest.approx(first["start"] + len(speech()) / 32000, abs=0.1)
    assert other.of("final") == [second]
    assert [event["id"] for event in mine.of("flushed")] == ["a1", "a2"]
    (stopped,) = mine.of("stopped")
    assert mine.events[-1] == stopped
    assert stopped["audio_seconds"] == 2 * len(speech()) / 32000


async def test_a_switch_is_each_channels_own(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        daemon.pipeline.sources.switch("call-1", False)
        await mine.say(type="start", **START)
        await mine.play(call(speech(), speech()))
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    assert {final["source"] for final in mine.of("final")} == {"call-2"}


async def test_each_channel_takes_a_place_and_needs_a_right(tokenizer_file: Path) -> None:
    sections = {"server": {"max_streams": 2, "tokens": [{"token": "t" * 32, "send": ["call*"], "read": []}]}}
    async with service(scripted(tokenizer_file), sections) as daemon:
        url = f"/v1/stream?token={'t' * 32}"
        async with client(daemon.server.url, url) as mine, client(daemon.server.url, url) as late:
            await mine.say(type="start", **START)
            assert (await mine.next())["type"] == "ready"
            await late.say(type="start", source="call")
            assert await late.rest() == 1013
            assert late.events[-1]["code"] == "full"
            await mine.say(type="stop")
            assert await mine.rest() == 1000
        async with client(daemon.server.url, url) as one:
            await one.say(type="start", source="call")
            assert (await one.next())["type"] == "ready"
            async with client(daemon.server.url, url) as late:
                await late.say(type="start", **START)
                assert await late.rest() == 1013
                assert late.events[-1]["message"].startswith("1 of 2 streams are taken")
        async with client(daemon.server.url, url) as wrong:
            await wrong.say(type="start", **{**START, "source": "kitchen"})
            assert await wrong.rest() == 1008
            assert "kitchen-1" in wrong.events[-1]["message"]


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"encoding": "opus"}, "bad_format", "channels of Opus cannot be separate"),
        ({"channels": "apart"}, "bad_format", 'channels must be 1..8, a whole number, got "apart"'),
        ({"source": "a" * 63}, "bad_source", "got 65 of them"),
        ({"separate": True}, "unknown_field", "separate"),
    ],
)
async def test_channels_that_cannot_be_separate(
    fields: dict[str, Any], code: str, says: str, tokenizer_file: Path
) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start", **{**START, **fields})
        assert await mine.rest() == 1007
    assert mine.events[-1]["code"] == code
    assert says in mine.events[-1]["message"]


# --- nobody speaks ---------------------------------------------------------------------------------------------------


async def test_a_stream_ends_when_nobody_speaks_for_as_long_as_its_client_waits(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start", no_speech=3)
        await mine.play(SECOND * 2)
        await mine.say(type="flush", id="still there")
        await mine.until("flushed")
        await mine.play(SECOND * 2)
        assert await mine.rest() == 1000
    told = [event for event in mine.events if event.get("code") != "no_signal"]
    assert [event["type"] for event in told] == ["ready", "flushed", "notice", "stopped"]
    assert (told[2]["code"], told[2]["source"]) == ("no_speech", "stream")
    assert 3 <= told[3]["audio_seconds"] < 4


async def test_who_has_spoken_may_be_silent(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start", no_speech=3, channels="separate")
        await mine.play(call(b"", speech()))
        await mine.play(SECOND * 12)
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    assert [event for event in mine.of("notice") if event["code"] == "no_speech"] == []
    assert len(mine.of("final")) == 1
    assert mine.events[-1]["audio_seconds"] == len(speech()) / 32000 + 6


@pytest.mark.parametrize(("seconds", "code"), [(0, "bad_endpointing"), (-1, "bad_field"), ("soon", "bad_field")])
async def test_a_wait_that_cannot_be(seconds: object, code: str, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start", no_speech=seconds)
        assert await mine.rest() == 1007
    assert mine.events[-1]["code"] == code
