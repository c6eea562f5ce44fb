"""Opus over a real socket: a recording as a browser's MediaRecorder would send it."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import client, packed, scripted, service, speech


async def test_a_stream_of_opus_is_heard_like_any_other(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        async with client(daemon.server.url) as plain:
            await plain.play(speech())
            await plain.say(type="stop")
            assert await plain.rest() == 1000
        async with client(daemon.server.url) as mine:
            await mine.say(type="start", encoding="opus", resume=30)
            await mine.play(packed(speech()), frame=777)
            await mine.say(type="flush", id="a")
            await mine.say(type="stop")
            assert await mine.rest() == 1000
    assert "token" not in mine.of("ready")[0]  # it could not be taken up in its middle
    assert not mine.of("error")
    (expected,), (final,) = plain.of("final"), mine.of("final")
    assert final["start"] == pytest.approx(expected["start"], abs=0.1)
    assert final["end"] == pytest.approx(expected["end"], abs=0.1)
    assert mine.of("stopped")[0]["audio_seconds"] == pytest.approx(len(speech()) / 32000, abs=0.05)


async def test_what_is_no_opus_ends_the_stream_and_loses_nothing(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start", encoding="opus")
        whole = packed(speech())
        end = whole.index(b"OggS", len(whole) * 3 // 4)  # of a page
        await mine.play(whole[:end] + bytes(2000))
        assert await mine.rest() == 1007
    (error,) = mine.of("error")
    assert (error["code"], error["fatal"]) == ("bad_format", True)
    assert "OggS" in error["message"]
    assert len(mine.of("final")) == 1
    assert mine.events[-1]["type"] == "stopped"


async def test_a_recording_that_breaks_off_inside_a_packet(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start", encoding="opus")
        await mine.play(packed(speech())[:-40])
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    (error,) = mine.of("error")
    assert (error["code"], error["fatal"]) == ("odd_bytes", False)
    assert "incomplete Opus packet" in error["message"]
