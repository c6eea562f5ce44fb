"""A client in the shape of WhisperLive's and the real service, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from foreign import whisperlive
from harness import SECOND, client, scripted, service, speech, unfinished_speech

from daemon.engines.life import LoadEngine
from daemon.service.app import Service
from streaming.job import Job


@asynccontextmanager
async def listening(load: LoadEngine, **sections: Any) -> AsyncIterator[tuple[Service, str]]:
    """The service, and where WhisperLive's clients find it."""
    async with service(load, {**sections, "dialects": {"whisperlive": 0}}) as daemon:
        yield daemon, daemon.server.urls["whisperlive"]


async def test_two_sentences_as_their_client_sends_them(tokenizer_file: Path) -> None:
    async with (
        listening(scripted(tokenizer_file)) as (daemon, url),
        client(daemon.server.url, "/v1/events?source=whisperlive") as other,
        whisperlive(url) as mine,
    ):
        await mine.introduce()
        await mine.until_ready()
        assert (mine.recording, mine.backend) == (True, "faster_whisper")
        await mine.play(speech("two_sentences") + SECOND)
        heard = [await other.until("final"), await other.until("final")]
        await mine.end()
        assert await mine.rest() == 1000
    assert mine.text == " ".join(final["text"] for final in heard)
    assert [segment["start"] for segment in mine.transcript] == [f"{final['start']:.3f}" for final in heard]
    assert mine.last_segment is not None  # text came while somebody spoke
    assert mine.last_segment["completed"] is False
    assert not mine.disconnected
    assert [each["status"] for each in mine.statuses] == ["WARNING"]  # of the model


async def test_audio_that_carries_nothing_is_a_warning_to_its_client_and_none_of_the_log(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(scripted(tokenizer_file)) as (_, url), whisperlive(url) as mine:
        await mine.introduce()
        await mine.until_ready()
        await mine.play(11 * SECOND)
        await mine.end()
        assert await mine.rest() == 1000
    (_, told) = mine.statuses  # the first is of the model
    assert (told["status"], told["message"].partition(":")[0]) == ("WARNING", "all samples were zero for 10 s")
    assert "all samples" not in " ".join(each.getMessage() for each in caplog.records if each.levelname == "WARNING")


async def test_what_is_said_last_is_final_before_the_close(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file)) as (_, url), whisperlive(url) as mine:
        await mine.introduce()
        await mine.until_ready()
        await mine.play(unfinished_speech())
        await mine.end()
        assert await mine.rest() == 1000
    assert mine.text.startswith("turn on")


async def test_a_language_that_nobody_named(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file)) as (_, url), whisperlive(url) as mine:
        await mine.introduce(language=None)
        await mine.until_ready()
        await mine.play(speech())
        await mine.end()
        assert await mine.rest() == 1000
    assert mine.language == "en"


async def test_hotwords_reach_the_engine(tokenizer_file: Path) -> None:
    jobs: list[Job] = []
    async with listening(scripted(tokenizer_file, before=jobs.extend)) as (_, url), whisperlive(url) as mine:
        await mine.introduce(model="scripted", hotwords="WhisperLive,TensorRT", initial_prompt="Kallax, Nanit.")
        await mine.until_ready()
        await mine.play(speech())
        await mine.end()
        assert await mine.rest() == 1000
    assert mine.statuses == []
    assert [each.text for each in jobs[-1].vocabulary.phrases] == ["WhisperLive", "TensorRT", "Kallax", "Nanit"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "translate"}, "task must be transcribe"),
        ({"language": "tlh"}, "language must be one of en"),
        ({"enable_diarization": True}, "speakers are not distinguished"),
        ({"hotwords": "a" * 101}, "hotwords: a phrase may have at most 100 characters"),
    ],
)
async def test_what_cannot_be_had_is_an_error_of_theirs(
    tokenizer_file: Path, options: dict[str, Any], message: str
) -> None:
    async with listening(scripted(tokenizer_file)) as (_, url), whisperlive(url) as mine:
        await mine.introduce(**options)
        await mine.until_ready()
        assert await mine.rest() == 1007
    assert mine.server_error
    assert message in mine.statuses[-1]["message"]


async def test_a_full_house_makes_them_wait(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file), server={"max_streams": 1}) as (_, url), whisperlive(url) as first:
        await first.introduce()
        await first.until_ready()
        async with whisperlive(url) as second:
            await second.introduce()
            await second.until_ready()
            assert (second.recording, second.waiting) == (False, True)
            assert await second.rest() == 1013
        await first.play(speech())
        await first.end()
        assert await first.rest() == 1000
    assert first.text.startswith("turn on")


async def test_tokens(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file), server={"tokens": ["T"]}) as (_, url):
        async with whisperlive(url) as mine:
            await mine.introduce()
            await mine.until_ready()
            assert (mine.recording, mine.server_error) == (False, True)
            assert await mine.rest() == 1008
        async with whisperlive(f"{url}/?token=T") as mine:
            await mine.introduce()
            await mine.until_ready()
            assert mine.recording


async def test_the_end_of_the_service_brings_the_last_segments(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file)) as (daemon, url), whisperlive(url) as mine:
        await mine.introduce()
        await mine.until_ready()
        await mine.play(unfinished_speech())
        daemon.stop()
        assert await mine.rest() == 1001
    assert mine.text.startswith("turn on")
    assert mine.disconnected


async def test_half_a_sample_at_the_end_is_said(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file)) as (_, url), whisperlive(url) as mine:
        await mine.introduce(model="scripted")
        await mine.until_ready()
        await mine.ws.send(bytes(6))
        await mine.end()
        assert await mine.rest() == 1000
    assert [each["status"] for each in mine.statuses] == ["WARNING"]
    assert "whole samples" in mine.statuses[0]["message"]
