"""A client in the shape of Vosk's test program and the real service, over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from foreign import vosk
from harness import PATIENCE, SECOND, client, connect, scripted, service, speech, unfinished_speech
from websockets.exceptions import ConnectionClosed

from daemon.common.errors import ServiceError
from daemon.engines.life import LoadEngine
from daemon.service.app import Service
from streaming.job import Job


@asynccontextmanager
async def listening(load: LoadEngine, **sections: Any) -> AsyncIterator[tuple[Service, str]]:
    """The service, and where Vosk's clients find it."""
    async with service(load, {"dialects": {"vosk": 0}, **sections}) as daemon:
        yield daemon, daemon.server.urls["vosk"]


async def closed(ws: Any) -> tuple[int, str]:
    """The close, if nothing comes before it."""
    with pytest.raises(ConnectionClosed) as caught:
        async with asyncio.timeout(PATIENCE):
            await ws.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


async def test_a_file_as_their_test_program_sends_it(tokenizer_file: Path) -> None:
    async with (
        listening(scripted(tokenizer_file)) as (daemon, url),
        client(daemon.server.url, "/v1/events?source=vosk") as other,
        vosk(url) as mine,
    ):
        await mine.play(speech())
        last = await mine.eof()
        heard = await other.until("final")
        assert await closed(mine.ws) == (1000, "")
    assert mine.text == heard["text"]
    assert all(set(each) in ({"partial"}, {"text", "result"}, {"text"}) for each in mine.answers)
    assert "text" in last
    (words,) = [each["result"] for each in mine.answers if each.get("result")]
    assert [each["word"] for each in words] == heard["text"].split()
    assert all(set(each) == {"conf", "start", "end", "word"} for each in words)


async def test_text_while_somebody_speaks_and_one_answer_for_each_frame(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file)) as (_, url), vosk(url) as mine:
        await mine.play(unfinished_speech())
        sent = len(mine.answers)
        while not mine.answers[-1].get("partial"):
            await mine.ask(unfinished_speech()[-6400:])
            sent += 1
        assert "turn on the kitchen light".startswith(mine.answers[-1]["partial"].split()[0])
        for _ in range(50):
            await mine.ask(SECOND[:6400])
            sent += 1
        await mine.eof()
        assert len(mine.answers) == sent + 1
        assert await closed(mine.ws) == (1000, "")
    assert mine.text.startswith("turn on")


async def test_a_client_that_sends_all_and_then_reads(tokenizer_file: Path) -> None:
    audio, frame = speech("two_sentences") + SECOND, 3200
    frames = [audio[at : at + frame] for at in range(0, len(audio), frame)]
    async with listening(scripted(tokenizer_file)) as (_, url), connect(url) as ws:
        await ws.send('{"config":{"sample_rate":16000,"words":false}}')
        for each in frames:
            await ws.send(each)
        await ws.send('{"eof" : 1}')
        answers = [json.loads(message) async for message in ws]
    assert len(answers) == len(frames) + 1
    assert not any("result" in each for each in answers)
    assert " ".join(filter(None, (each.get("text") for each in answers))).count("turn on") >= 2


async def test_audio_that_carries_nothing_is_a_warning_of_the_log(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(scripted(tokenizer_file)) as (_, url), vosk(url + "?source=hall") as mine:
        await mine.play(12 * SECOND)
        assert await mine.eof() == {"text": ""}
        assert await closed(mine.ws) == (1000, "")
    assert {tuple(each) for each in mine.answers[:-1]} == {("partial",)}
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("hall: all samples were zero for 10 s: ")
    assert line.endswith(" (not sent to the client: vosk)")


async def test_a_reset_answers_and_stays(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file)) as (_, url), vosk(url) as mine:
        await mine.play(unfinished_speech())
        first = await mine.ask('{"reset":1}')
        assert first["text"].startswith("turn on")
        assert await mine.ask('{ "reset" : 1 }') == {"text": ""}
        await mine.play(speech("stop"))
        await mine.eof()
    assert len([each for each in mine.answers if each.get("text")]) == 2


async def test_phrases_reach_the_engine_and_all_else_is_heard_too(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    jobs: list[Job] = []
    config = '{"config" : {"phrase_list" : ["zero one two three", "six seven", "[unk]"], "sample_rate" : 16000}}'
    async with listening(scripted(tokenizer_file, before=jobs.extend)) as (_, url), vosk(url, config) as mine:
        await mine.play(speech())
        await mine.eof()
    assert mine.text.startswith("turn on")
    assert [each.text for each in jobs[-1].vocabulary.phrases] == ["zero one two three", "six seven"]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "daemon.dialects.vosk"]
    assert line.startswith("vosk: phrase_list is no grammar here")


async def test_audio_whose_rate_nobody_names(tokenizer_file: Path) -> None:
    """Theirs takes 8 kHz then; the setting says what ours does."""
    async with (
        listening(scripted(tokenizer_file), dialects={"vosk": 0, "vosk_sample_rate": 16000}) as (daemon, url),
        vosk(url, None) as mine,
    ):
        await mine.play(speech())
        await mine.eof()
        assert daemon.pipeline.metrics.audio_seconds._value.get() == pytest.approx(len(speech()) / 32000)
    assert mine.text.startswith("turn on")


@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        ("{", 1007, "a text frame must be JSON"),
        ('{"config":{"phrase_list":"yes no"}}', 1007, "phrase_list must be a list of strings"),
        (json.dumps({"config": {"phrase_list": ["a" * 101]}}), 1007, "phrase_list: a phrase may have at most 100"),
        ('{"config":{"sample_rate":1}}', 1007, "sample_rate must be 8000..192000"),
    ],
)
async def test_the_reason_is_in_the_close(tokenizer_file: Path, frame: str, code: int, reason: str) -> None:
    async with listening(scripted(tokenizer_file)) as (_, url), vosk(url) as mine:
        await mine.ws.send(frame)
        got = await closed(mine.ws)
    assert (got[0], got[1].startswith(reason)) == (code, True)


async def test_what_was_heard_before_a_fault_is_final_for_the_others(tokenizer_file: Path) -> None:
    async with (
        listening(scripted(tokenizer_file)) as (daemon, url),
        client(daemon.server.url, "/v1/events") as other,
        vosk(url) as mine,
    ):
        await mine.play(unfinished_speech())
        await mine.ws.send("?")
        assert (await other.until("final"))["text"].startswith("turn on")


async def test_tokens_and_sources_are_in_the_address(tokenizer_file: Path) -> None:
    server = {"tokens": [{"token": "T", "send": ["porch"]}]}
    async with listening(scripted(tokenizer_file), server=server) as (_, url):
        async with connect(url) as ws:
            assert (await closed(ws))[0] == 1008
        async with vosk(f"{url}/?token=T&source=porch") as mine:
            assert await mine.eof() == {"text": ""}
        async with connect(f"{url}/?source=porch", additional_headers={"Authorization": "Bearer T"}) as ws:
            await ws.send('{"eof" : 1}')
            assert json.loads(await ws.recv()) == {"text": ""}


async def test_a_full_house(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file), server={"max_streams": 1}) as (_, url), vosk(url) as first:
        await first.ask(SECOND)
        async with connect(url) as second:
            await second.send(SECOND)
            code, reason = await closed(second)
            assert (code, "try again later" in reason) == (1013, True)
        assert await first.eof() == {"text": ""}


async def test_the_end_of_the_service_brings_the_last_text(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file)) as (daemon, url), vosk(url) as mine:
        await mine.play(unfinished_speech())
        daemon.stop()
        async with asyncio.timeout(PATIENCE):
            last = json.loads(await mine.ws.recv())
        assert last["text"].startswith("turn on")
        assert await closed(mine.ws) == (1001, "")


async def test_a_port_that_is_taken(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file)) as (_, url):
        port = int(url.rpartition(":")[2])
        with pytest.raises(ServiceError, match=rf"^dialects.vosk: cannot listen on 127.0.0.1:{port}: "):
            async with service(scripted(tokenizer_file), {"dialects": {"vosk": port}}):
                pass


async def test_it_is_off_by_default(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        assert daemon.server.urls == {}
