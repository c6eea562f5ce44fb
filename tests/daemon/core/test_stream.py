"""`/v1/stream` and `/v1/events`, over real sockets, by a client that knows only the protocol's text."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import SECOND, Client, client, scripted, service, speech, unfinished_speech, wait_until
from websockets.exceptions import ConnectionClosed

from daemon.common import logs
from daemon.common.errors import ServiceError
from daemon.dialects import native
from daemon.endpoints import limits
from streaming.job import Job


def prefixes(partials: list[dict[str, Any]]) -> bool:
    return all(b["stable"].startswith(a["stable"]) for a, b in pairwise(partials))


async def test_a_whole_conversation(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/stream?source=kitchen") as mine,
    ):
        await mine.say(type="start", sample_rate=16000, words=True)
        ready = await mine.next()
        assert ready == {
            "type": "ready",
            "protocol": 1,
            "session": ready["session"],
            "source": "kitchen",
            "student": "scripted",
            "teacher": "scripted-teacher",
            "device": "cpu",
        }
        await mine.play(speech())
        await mine.say(type="flush", id="a1")
        assert await mine.until("flushed") == {"type": "flushed", "id": "a1"}
        await mine.play(speech("stop"))
        await mine.say(type="stop")
        assert await mine.rest() == 1000

    first = [event for event in mine.events if event.get("utterance") == 1]
    assert first[0]["type"] == "speech_started"
    assert [event["type"] for event in first[-2:]] == ["speech_stopped", "final"]
    partials = [event for event in first if event["type"] == "partial"]
    assert partials
    assert prefixes(partials)
    final = first[-1]
    assert final["text"].startswith("turn on the")
    assert [word["text"] for word in final["words"]] == final["text"].split()
    assert (final["model"], final["language"]) == ("student", "en")
    # The recording has half a second of silence, a sentence, and a second of silence.
    length = len(speech()) / 32000
    assert 0 < final["start"] < final["end"] < length
    assert final["end"] == first[-2]["end"]
    # The second recording is heard where it was sent, not from zero.
    assert mine.of("final")[1]["start"] > length
    assert mine.events[-1] == {"type": "stopped", "audio_seconds": (len(speech()) + len(speech("stop"))) / 32000}
    counted = [event["seq"] for event in mine.of("partial", "final")]
    assert counted == sorted(set(counted))


async def test_without_a_start_the_defaults_hold(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.play(speech())
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    assert mine.events[0]["type"] == "ready"
    assert mine.events[0]["source"] == mine.of("final")[0]["source"] == "stream"
    assert "words" not in mine.of("final")[0]
    assert mine.of("partial")


async def test_a_client_that_waits_for_ready_gets_it(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.Native, "grace", 0.01)
    async with (
        service(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/stream?source=hall") as mine,
    ):
        assert (await mine.next())["source"] == "hall"
        # It was only slow: its start still counts.
        await mine.say(type="start", source="attic", partials=False)
        assert (await mine.next())["source"] == "attic"
        await mine.play(speech())
        await mine.say(type="stop")
        assert await mine.rest() == 1000
        assert [event["source"] for event in mine.of("final")] == ["attic"]
        assert not mine.of("partial")
        assert daemon.pipeline.sources.states() == {"hall": "idle", "attic": "idle"}


@pytest.mark.parametrize(("encoding", "width"), [("pcm_s16le", 2), ("pcm_f32le", 4), ("mulaw", 1), ("alaw", 1)])
async def test_every_encoding_keeps_the_clock(tokenizer_file: Path, encoding: str, width: int) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start", encoding=encoding, sample_rate=44100, channels=2)
        await mine.play(bytes(2 * width * 44100), frame=9999)  # frames end inside samples
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    assert mine.events[-1] == {"type": "stopped", "audio_seconds": 1.0}


async def test_audio_that_carries_nothing_is_told_once_and_to_its_client_alone(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/events") as other,
        client(daemon.server.url) as mine,
        client(daemon.server.url) as next_one,
    ):
        await mine.say(type="start", channels=2)
        for _ in range(3):
            await mine.play(bytes(10 * 2 * SECOND))
        told = await mine.until("notice")
        assert told == {"type": "notice", "code": "no_signal", "source": "stream", "message": told["message"]}
        await mine.say(type="stop")
        assert await mine.rest() == 1000
        # Not knowing better, somebody sends whole numbers as floats.
        await next_one.say(type="start", encoding="pcm_f32le")
        await next_one.play(np.frombuffer(speech(), "<i2").astype("<f4").tobytes())
        assert (await next_one.until("notice"))["code"] == "out_of_range"
        await next_one.say(type="stop")
        assert await next_one.rest() == 1000
        await other.until("final")
    assert len(mine.of("notice")) == len(next_one.of("notice")) == 1
    assert mine.of("error") == other.of("notice") == []


@pytest.mark.parametrize("field", ["encoding", "sample_rate", "channels"])
async def test_a_token_in_a_format_is_not_cut_in_two_before_it_is_known_for_one(
    field: str, tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = "the-front-door-opens-with-this"
    caplog.set_level(logging.DEBUG, "daemon")
    try:
        async with (
            service(scripted(tokenizer_file), {"server": {"tokens": [token]}}) as daemon,
            client(daemon.server.url, f"/v1/stream?token={token}") as mine,
        ):
            logs.hide([token])
            await mine.say(type="start", **{field: "y" * 45 + token})  # no more than its beginning would be shown
            assert await mine.rest() == 1007
    finally:
        logs.hide([])
    (error,) = mine.events
    assert error["message"].endswith(f'got "{"y" * 45}***"')
    assert token[:8] not in error["message"]
    assert token[:8] not in " ".join(record.getMessage() for record in caplog.records if "yyy" in record.getMessage())


@pytest.mark.parametrize(
    ("configured", "fields", "language", "among"),
    [
        ([], {}, None, ()),
        (["de", "fr"], {}, None, ("de", "fr")),
        (["de_AT"], {}, "de", ()),
        (["de"], {"language": "en"}, "en", ()),
        (["de"], {"languages": ["xx", "fr-CA", "en"]}, None, ("fr", "en")),
        ([], {"languages": ["en", "de"], "language": "de"}, "de", ()),
        ([], {"languages": ["en", "EN"]}, "en", ()),
        (["fr"], {"languages": []}, "fr", ()),
    ],
)
async def test_among_which_languages_a_stream_is_heard(
    configured: list[str], fields: dict[str, Any], language: str | None, among: tuple[str, ...], tokenizer_file: Path
) -> None:
    asked: list[Job] = []
    load = scripted(tokenizer_file, before=asked.extend, languages=("en", "de", "fr"))
    async with service(load, {"models": {"languages": configured}}) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start", **fields)
        await mine.play(speech())
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    heard = [job for job in asked if job.revision]  # the service asks for texts of its own, too
    assert heard
    assert {(job.language, job.languages) for job in heard} == {(language, among)}
    assert {final["language"] for final in mine.of("final")} == {language or (among or ("en",))[0]}


async def test_languages_in_the_settings_that_the_models_do_not_know(tokenizer_file: Path) -> None:
    with pytest.raises(ServiceError, match=r"models.languages: the models do not know tlh, xx, only en, de"):
        async with service(
            scripted(tokenizer_file, languages=("en", "de")), {"models": {"languages": ["de", "tlh", "xx"]}}
        ):
            pass


@pytest.mark.parametrize("chosen", ["by the client", "for its source"])
async def test_how_long_a_pause_ends_an_utterance(chosen: str, tokenizer_file: Path) -> None:
    """A pause that cuts with the usual 0.6 s does not with five; the client's choice goes first."""
    apart = speech() + speech()
    sections = {"sources": {"kitchen": {"hangover": 5.0 if chosen == "for its source" else 0.3}}}
    start = {} if chosen == "for its source" else {"hangover": 5.0}
    found = {}
    async with service(scripted(tokenizer_file), sections) as daemon:
        for source, fields in (("kitchen", start), ("hall", {})):
            async with client(daemon.server.url, f"/v1/stream?source={source}") as mine:
                await mine.say(type="start", **fields)
                await mine.play(apart)
                await mine.say(type="stop")
                assert await mine.rest() == 1000
                found[source] = len(mine.of("final"))
    assert found["kitchen"] < found["hall"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"longest": 31.0}, "longest must be at most 30 seconds, what the models hear"),
        ({"longest": 1.0}, "longest must be at least pre_roll + onset"),
        ({"onset": 14.0}, "longest must be at least pre_roll + onset"),
    ],
)
async def test_endpointing_that_cannot_be(fields: dict[str, float], says: str, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start", **fields)
        assert await mine.rest() == 1007
    assert mine.events[-1]["code"] == "bad_endpointing"
    assert says in mine.events[-1]["message"]


async def test_what_is_unfinished_becomes_final_at_flush_and_at_stop(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.play(unfinished_speech())
        await mine.say(type="flush")
        assert await mine.until("flushed") == {"type": "flushed", "id": None}
        assert len(mine.of("final")) == 1
        await mine.play(unfinished_speech())
        await mine.say(type="stop")
        await mine.rest()
    assert [event["type"] for event in mine.events[-3:]] == ["speech_stopped", "final", "stopped"]


async def test_flushes_are_answered_in_order(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        for name in "abc":
            await mine.say(type="flush", id=name)
            await mine.play(speech("on"))
        await mine.say(type="stop")
        await mine.rest()
    assert [event["id"] for event in mine.of("flushed")] == ["a", "b", "c"]


async def test_a_client_that_vanishes_is_still_heard(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/events?source=kitchen") as other,
        client(daemon.server.url, "/v1/stream?source=kitchen") as mine,
    ):
        await mine.play(unfinished_speech())
        await other.until("speech_started")
        mine.ws.transport.abort()
        final = await other.until("final")
        assert final["text"].startswith("turn")
        await daemon.server.wait_streams()
        assert daemon.pipeline.sources.states() == {"kitchen": "idle"}


async def test_subscribers_get_what_they_asked_for(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        url = daemon.server.url
        async with client(url, "/v1/events") as all_of_them, client(url, "/v1/events?source=hall") as hall:
            for source in ("kitchen", "hall"):
                async with client(url, f"/v1/stream?source={source}") as mine:
                    await mine.play(speech())
                    await mine.say(type="stop")
                    assert await mine.rest() == 1000
            await all_of_them.until("final")
            await all_of_them.until("final")
            await hall.until("final")
    assert {event["source"] for event in hall.events} == {"hall"}
    assert [event["source"] for event in all_of_them.of("final")] == ["kitchen", "hall"]
    # They are the streams' own events: the same objects, nothing else.
    assert all_of_them.of("final")[1] == hall.of("final")[0] == mine.of("final")[0]
    assert not all_of_them.of("ready", "stopped")


async def test_a_reconnecting_subscriber_gets_the_finals_it_missed(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        for name in "abc":
            await mine.play(speech())
            await mine.say(type="flush", id=name)
            await mine.until("flushed")
        finals = mine.of("final")
        async with client(daemon.server.url, f"/v1/events?source=stream&since={finals[0]['seq']}") as other:
            assert [await other.next(), await other.next()] == finals[1:]
            await mine.play(speech())
            live = await other.until("final")
        assert live["seq"] > finals[-1]["seq"]


async def test_many_streams_at_once_are_each_heard_whole(tokenizer_file: Path) -> None:
    async def one(url: str, number: int) -> Client:
        async with client(url, f"/v1/stream?source=s{number}") as mine:
            await mine.play(SECOND[: number * 640] + speech(), frame=640)
            await mine.say(type="stop")
            assert await mine.rest() == 1000
            return mine

    async with service(scripted(tokenizer_file)) as daemon:
        clients = await asyncio.gather(*(one(daemon.server.url, number) for number in range(12)))
    for number, mine in enumerate(clients):
        assert {event["source"] for event in mine.of("final")} == {f"s{number}"}
        assert len(mine.of("final")) == 1
        assert mine.events[-1]["audio_seconds"] == (number * 640 + len(speech())) / 32000


async def test_a_job_that_fails_costs_its_utterance_alone(tokenizer_file: Path) -> None:
    def fail_first(jobs: Sequence[Job]) -> None:
        if failing and any(job.audio.size > 16000 for job in jobs):
            raise RuntimeError("no luck")

    failing = [True]
    async with service(scripted(tokenizer_file, before=fail_first)) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start", partials=False)
        await mine.play(speech())
        await mine.say(type="flush")
        error = await mine.until("error")
        assert (error["code"], error["fatal"], error["source"]) == ("transcription_failed", False, "stream")
        failing.clear()
        await mine.play(speech())
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    assert [event["utterance"] for event in mine.of("final")] == [2]


async def test_reading_pauses_while_too_much_waits_for_its_finals(tokenizer_file: Path) -> None:
    gate = threading.Event()

    def wait(jobs: Sequence[Job]) -> None:
        if any(job.audio.size > 16000 for job in jobs):
            assert gate.wait(60)

    sections = {"scheduler": {"backlog": 2.0}, "health": {"canary": 1000.0}}
    async with service(scripted(tokenizer_file, before=wait), sections) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start", partials=False)
        sending = asyncio.create_task(mine.play(speech() * 8))
        counted = daemon.pipeline.metrics
        await wait_until(lambda: "whisperd_backpressure_total 1.0" in counted.text().decode())
        (heard,) = re.findall(r"^whisperd_audio_seconds_total (\S+)$", counted.text().decode(), re.MULTILINE)
        assert float(heard) < len(speech() * 7) / 32000
        gate.set()
        await sending
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    assert [event["utterance"] for event in mine.of("final")] == list(range(1, 9))
    assert mine.events[-1]["audio_seconds"] == len(speech() * 8) / 32000


async def test_streams_wait_until_the_models_are_warm(tokenizer_file: Path) -> None:
    gate = threading.Event()
    load = scripted(tokenizer_file)

    def slowly(settings: Any) -> Any:
        assert gate.wait(60)
        return load(settings)

    from daemon.service.app import Service
    from daemon.settings.environment import ServiceEnvironment
    from daemon.settings.schema import Settings

    daemon = Service(Settings.model_validate({"server": {"port": 0}}), ServiceEnvironment(), slowly)
    task = asyncio.create_task(daemon.run())
    await daemon.server.listening.wait()
    async with client(daemon.server.url) as mine:
        await mine.play(speech())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(mine.ws.recv(), 0.05)
        gate.set()
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    assert [event["type"] for event in (mine.events[0], mine.events[-2])] == ["ready", "final"]
    daemon.stop()
    await task


async def test_the_end_of_the_service_is_the_end_of_every_stream_with_its_finals(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_LAST_WORDS", 2.0)  # however slow this machine is
    async with (
        service(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/events") as other,
        client(daemon.server.url) as mine,
    ):
        await mine.play(unfinished_speech())
        await mine.until("speech_started")
        # On its way when the end is announced: still heard.
        await mine.play(unfinished_speech())
        daemon.stop()
        assert await mine.rest() == 1001
        assert await other.rest() == 1001
        with pytest.raises((ConnectionClosed, OSError)):
            async with client(daemon.server.url):
                pass
    assert mine.events[-1]["type"] == "stopped"
    assert mine.events[-1]["audio_seconds"] == 2 * len(unfinished_speech()) / 32000
    assert mine.of("final") == other.of("final")
    assert mine.of("final")
    json.dumps(mine.events)
