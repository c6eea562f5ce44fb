"""A stream outlives its connection: nothing is lost and nothing doubled, wherever it is cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from harness import ROOT, Client, client, process, scripted, service, speech, unfinished_speech, wait_until
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from resuming import Cut, RefusedError, Speaker, network
from websockets.exceptions import ConnectionClosed

import daemon.endpoints.resume
from daemon.service.app import Service
from streaming.job import Job

START = {"sample_rate": 16000, "resume": 30}


def metric(daemon: Service, name: str) -> float:
    lines = daemon.pipeline.metrics.text().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.split()[0] == f"whisperd_{name}")


async def begin(mine: Client, **start: Any) -> dict[str, Any]:
    await mine.say(type="start", **{**START, **start})
    return await mine.until("ready")


async def resume(mine: Client, ready: dict[str, Any], events: int) -> dict[str, Any]:
    await mine.say(type="resume", token=ready["token"], events=events)
    return await mine.next()


async def drop(daemon: Service, mine: Client) -> None:
    """Its connection is gone, and the service knows."""
    mine.ws.transport.abort()
    await wait_until(lambda: metric(daemon, "streams_waiting") == 1)


def got(mine: Client) -> int:
    return sum(event["type"] != "ready" for event in mine.events)


# --- wherever it is cut ----------------------------------------------------------------------------------------------

FORMATS: dict[str, tuple[str, int, int | str]] = {
    "16-bit": ("pcm_s16le", 16000, 1),
    "16-bit, 44.1 kHz, two channels": ("pcm_s16le", 44100, 2),
    "float, 8 kHz": ("pcm_f32le", 8000, 1),
    "16-bit, 8 kHz, two channels, each by itself": ("pcm_s16le", 8000, "separate"),
}


def recorded(encoding: str, rate: int, channels: int | str) -> tuple[bytes, int]:
    """Three short words, and the bytes of a sample of all channels."""
    channels = 2 if isinstance(channels, str) else channels
    samples = np.frombuffer(speech("on") + speech("stop") + speech("on"), "<i2").astype(np.float32) / 32768
    samples = np.repeat(soxr.resample(samples, 16000, rate)[:, None], channels, axis=1)
    kind = "<f4" if encoding == "pcm_f32le" else "<i2"
    scaled = samples if kind == "<f4" else np.clip(samples * 32767, -32768, 32767)
    return scaled.astype(kind).tobytes(), np.dtype(kind).itemsize * channels


def told(events: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What must not depend on the connections, by kind: all but partials and what measures time or counts sources."""
    varying = {"seq", "id", "at", "latency_ms", "source"}
    kinds: dict[str, list[Any]] = {}
    for event in events:
        fields = {key: value for key, value in event.items() if key not in varying}
        kinds.setdefault(event["type"], []).append(event["id"] if event["type"] == "flushed" else fields)
    kinds.pop("partial", None)
    return kinds


def of_source(events: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """What a source says, and what is said to the client of all of them."""
    return [event for event in events if event.get("source", source) == source]


cuts = st.builds(
    Cut,
    # A handshake is a few hundred bytes, the audio some hundred thousand: often within either.
    up=st.one_of(st.integers(200, 3000), st.integers(3000, 400_000)),
    down=st.one_of(st.integers(100, 5000), st.just(1 << 30)),
    how=st.sampled_from(["reset", "silent"]),
)


@pytest.mark.timeout(900)  # some hundred connections, and a busy machine may take its time
def test_cut_anywhere_any_number_of_times_it_is_the_same_stream(tokenizer_file: Path) -> None:
    number = 0

    async def example(daemon: Service, form: str, cuts: list[Cut], frame: int, flushes: list[float]) -> None:
        nonlocal number
        number += 1
        encoding, rate, channels = FORMATS[form]
        audio, width = recorded(encoding, rate, channels)
        flush_at = sorted(round(place * len(audio)) // width for place in flushes)

        def speaker(name: str) -> Speaker:
            start = {"source": name, "encoding": encoding, "sample_rate": rate, "channels": channels, "resume": 30}
            return Speaker(audio, start, width, flush_at, frame)

        whole, torn = speaker(f"whole{number}"), speaker(f"torn{number}")
        each = ["-1", "-2"] if channels == "separate" else [""]
        last = f"torn{number}{each[-1]}"
        await whole.talk(f"{daemon.server.url}/v1/stream")
        async with client(daemon.server.url, f"/v1/events?source={last}", max_queue=None) as other:
            async with network(daemon.server.url, cuts) as cutting:
                await torn.talk(f"{cutting.url}/v1/stream")
            while len(other.of("final")) < len(of_source(torn.of("final"), last)):
                await other.next()
        for name in each:
            heard, said = of_source(torn.events, f"torn{number}{name}"), of_source(whole.events, f"whole{number}{name}")
            assert told(heard) == told(said)
        assert len(torn.of("stopped")) == 1
        assert torn.events[-1]["audio_seconds"] == pytest.approx(len(audio) / width / rate, abs=1e-4)
        # Nobody else heard more or less than its own client.
        finals = told(of_source(torn.of("final"), last))
        assert told(other.of("final")) == finals

    # What fails is shown as it was found: to make it smaller takes many more connections.
    @settings(max_examples=20, phases=[Phase.explicit, Phase.reuse, Phase.generate], print_blob=True)
    @given(
        form=st.sampled_from(sorted(FORMATS)),
        cuts=st.lists(cuts, max_size=4),
        frame=st.integers(700, 30_000),
        flushes=st.lists(st.floats(0, 1), max_size=2),
    )
    def try_it(form: str, cuts: list[Cut], frame: int, flushes: list[float]) -> None:
        runner.run(example(daemon, form, cuts, frame, flushes))

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        limits = {"server": {"max_streams": 1000}, "scheduler": {"longest_wait": 1000.0}}
        daemon = runner.run(stack.enter_async_context(service(scripted(tokenizer_file), limits)))
        try:
            try_it()
        finally:
            runner.run(stack.aclose())


# --- one thing at a time ---------------------------------------------------------------------------------------------


async def test_an_utterance_goes_on_where_it_was(tokenizer_file: Path) -> None:
    audio = speech()
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url, "/v1/events") as other:
        async with client(daemon.server.url) as mine:
            ready = await begin(mine, source="kitchen")
            assert (ready["resume"], ready["samples"], ready["flushes"]) == (30, 0, 0)
            assert ready["token"] != ready["session"]
            await mine.play(audio[:40001])  # half a sample too much
            await mine.until("partial")
            await drop(daemon, mine)
        assert daemon.pipeline.sources.states() == {"kitchen": "speech"}
        async with client(daemon.server.url) as again:
            back = await resume(again, ready, got(mine))
            assert {**back, "samples": 0} == ready
            assert back["samples"] == 20000
            await again.play(audio[40000:])
            await again.say(type="stop")
            assert await again.rest() == 1000
        await other.until("final")
    events = mine.events + again.events
    assert [event["type"] for event in events if event["type"] not in ("partial", "ready")] == [
        "speech_started", "speech_stopped", "final", "stopped",
    ]  # fmt: skip
    assert events[-1]["audio_seconds"] == len(audio) / 32000
    assert other.of("final") == again.of("final")
    assert metric(daemon, "streams_resumed_total") == 1
    assert metric(daemon, "streams_waiting") == metric(daemon, "streams_open") == 0
    assert metric(daemon, "streams_expired_total") == 0


async def test_a_connection_that_was_reset_in_the_middle_of_a_frame(tokenizer_file: Path) -> None:
    audio = speech() + speech("stop")
    speaker = Speaker(audio, START)
    async with (
        service(scripted(tokenizer_file)) as daemon,
        network(daemon.server.url, [Cut(50_001, 1 << 30)]) as cutting,
    ):
        assert await speaker.talk(f"{cutting.url}/v1/stream") == 2
    assert 0 < speaker.ready[1]["samples"] < len(audio) // 2
    assert [event["utterance"] for event in speaker.of("final")] == [1, 2]


async def test_whoever_comes_back_takes_over_from_a_connection_that_only_seems_alive(tokenizer_file: Path) -> None:
    audio = speech() + speech("stop")
    speaker = Speaker(audio, START)
    async with (
        service(scripted(tokenizer_file)) as daemon,
        network(daemon.server.url, [Cut(50_000, 1 << 30, "silent")]) as cutting,
    ):
        assert await speaker.talk(f"{cutting.url}/v1/stream") == 2
        assert metric(daemon, "streams_waiting") == metric(daemon, "streams_expired_total") == 0
    assert [event["utterance"] for event in speaker.of("final")] == [1, 2]


async def test_the_older_connection_is_told_who_has_its_stream(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url) as first,
        client(daemon.server.url) as second,
        client(daemon.server.url) as third,
    ):
        ready = await begin(first)
        await first.play(unfinished_speech())
        await first.until("speech_started")
        seen = got(first)
        back = await resume(second, ready, seen)
        assert await first.rest() == 4000
        assert (first.events[-1]["code"], first.events[-1]["fatal"]) == ("taken_over", True)
        await second.play(speech()[2 * back["samples"] :])
        await second.until("final")
        back = await resume(third, ready, seen + got(second))
        assert await second.rest() == 4000
        assert back["samples"] == len(speech()) // 2
        await third.say(type="stop")
        assert await third.rest() == 1000
    assert [event["type"] for event in third.events] == ["ready", "stopped"]


async def test_of_many_that_come_back_at_once_the_last_one_has_it(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, AsyncExitStack() as stack:
        mine = await stack.enter_async_context(client(daemon.server.url))
        ready = await begin(mine)
        await mine.play(speech())
        await mine.until("final")
        many = [await stack.enter_async_context(client(daemon.server.url)) for _ in range(8)]
        for each in many:
            await each.say(type="resume", token=ready["token"], events=0)
        for each in many:  # those who lose it go on reading: nobody is silent for ever
            await each.say(type="stop")
        codes = sorted([await each.rest() or 0 for each in many])
        assert set(codes) <= {1000, 1007, 4000}  # taken over, or too late: it had ended by then
        assert codes.count(1000) == 1
        (winner,) = [each for each in many if each.ws.close_code == 1000]
        assert [event["type"] for event in winner.events] == [
            "ready", "speech_started", "speech_stopped", "final", "stopped",
        ]  # fmt: skip


async def test_a_client_that_does_not_come_back(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url, "/v1/events") as other:
        async with client(daemon.server.url) as mine:
            ready = await begin(mine, resume=0.2, source="hall")
            await mine.play(unfinished_speech()[:-1])
            await other.until("speech_started")
            mine.ws.transport.abort()
        # As by a stop.
        await other.until("speech_stopped")
        assert (await other.until("final"))["text"]
        async with client(daemon.server.url) as late:
            error = await resume(late, ready, 0)
            assert (error["code"], error["fatal"]) == ("cannot_resume", True)
            assert '{"type":"start"}' in error["message"]
            assert await late.rest() == 1007
        await daemon.server.wait_streams()
        assert daemon.pipeline.sources.states() == {"hall": "idle"}
    assert metric(daemon, "streams_expired_total") == 1
    assert metric(daemon, "streams_waiting") == metric(daemon, "streams_open") == 0
    assert "hall: the client did not come back within 0.2 s" in caplog.text
    assert ready["token"] not in caplog.text


async def test_who_did_not_ask_or_left_on_purpose_is_not_waited_for(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url, "/v1/events") as other:
        async with client(daemon.server.url) as mine:
            await mine.say(type="start")
            assert "token" not in await mine.next()
            await mine.play(unfinished_speech())
            await other.until("speech_started")
            mine.ws.transport.abort()
        await other.until("final")
        for code in (1000, 1001):
            async with client(daemon.server.url) as mine:
                ready = await begin(mine)
                await mine.play(unfinished_speech())
                await other.until("speech_started")
                await mine.ws.close(code)
            await other.until("final")
            await daemon.server.wait_streams()
            async with client(daemon.server.url) as late:
                assert (await resume(late, ready, 0))["code"] == "cannot_resume"
        # Anything else says that something failed.
        async with client(daemon.server.url) as mine:
            ready = await begin(mine)
            await mine.ws.close(1011)
        await wait_until(lambda: metric(daemon, "streams_waiting") == 1)
        async with client(daemon.server.url) as again:
            assert (await resume(again, ready, 0))["type"] == "ready"
            await again.say(type="stop")
            assert await again.rest() == 1000
    assert metric(daemon, "streams_expired_total") == 0


async def test_the_settings_say_how_long_at_most(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file), {"server": {"resume": 5}}) as daemon,
        client(daemon.server.url) as mine,
    ):
        assert (await begin(mine, resume=1000))["resume"] == 5
    async with (
        service(scripted(tokenizer_file), {"server": {"resume": 0}}) as daemon,
        client(daemon.server.url) as mine,
    ):
        assert not {"token", "resume", "samples", "flushes"} & (await begin(mine)).keys()


async def test_events_that_did_not_arrive_are_told_again_and_no_others(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        async with client(daemon.server.url) as mine:
            ready = await begin(mine, partials=False)
            for name in ("a", "b"):
                await mine.play(speech())
                await mine.say(type="flush", id=name)
                await mine.until("flushed")
            await drop(daemon, mine)
        events = [event for event in mine.events if event["type"] != "ready"]
        assert [event["type"] for event in events] == ["speech_started", "speech_stopped", "final", "flushed"] * 2
        for seen in (0, 3, 6, 8):
            async with client(daemon.server.url) as again:
                back = await resume(again, ready, seen)
                assert (back["samples"], back["flushes"]) == (len(speech()), 2)
                for event in events[seen:]:
                    assert await again.next() == event
                await drop(daemon, again)
        async with client(daemon.server.url) as again:
            error = await resume(again, ready, 9)
            assert (error["code"], error["fatal"]) == ("bad_field", True)
            assert "8..8" in error["message"]
        async with client(daemon.server.url) as again:  # that has cost nothing
            assert (await resume(again, ready, 8))["type"] == "ready"
            await again.say(type="stop")
            assert await again.rest() == 1000


async def test_what_is_kept_of_what_was_told_is_bounded(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon.endpoints.resume, "_MOST_KEPT", 3)
    async with service(scripted(tokenizer_file)) as running:
        async with client(running.server.url) as mine:
            ready = await begin(mine, partials=False)
            await mine.play(speech())
            await mine.say(type="flush", id="a")
            await mine.until("flushed")
            await mine.play(speech())
            await mine.say(type="flush", id="b")
            await mine.until("flushed")
            await drop(running, mine)
        async with client(running.server.url) as again:
            await resume(again, ready, 1)
            error = await again.next()
            assert (error["code"], error["fatal"]) == ("replay_incomplete", False)
            assert error["message"].startswith("4 events are no longer kept")
            assert [await again.next() for _ in range(3)] == mine.events[-3:]
            await again.say(type="stop")
            assert await again.rest() == 1000


async def test_a_stop_whose_answer_was_lost(tokenizer_file: Path) -> None:
    gate = threading.Event()

    def wait(jobs: Sequence[Job]) -> None:
        if any(job.audio.size > 16000 for job in jobs):
            assert gate.wait(60)

    sections = {"health": {"canary": 1000.0}}
    async with service(scripted(tokenizer_file, before=wait), sections) as daemon:
        async with client(daemon.server.url, max_queue=None) as mine:
            ready = await begin(mine, partials=False)
            await mine.play(speech())
            await mine.say(type="stop")
            await mine.until("speech_stopped")
            mine.ws.transport.abort()
        gate.set()
        await wait_until(lambda: metric(daemon, "streams_waiting") == 1)
        async with client(daemon.server.url) as again:
            back = await resume(again, ready, got(mine))
            assert back["samples"] == len(speech()) // 2
            with contextlib.suppress(ConnectionClosed):
                await again.say(type="stop")  # as one that does not know
            assert await again.rest() == 1000
    assert [event["type"] for event in again.events] == ["ready", "final", "stopped"]


# --- who may ---------------------------------------------------------------------------------------------------------


async def test_a_token_that_is_wrong_or_of_somebody_else(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = [{"token": "kitchen", "send": ["kitchen"]}, {"token": "hall", "send": ["hall"]}]
    async with service(scripted(tokenizer_file), {"server": {"tokens": tokens}}) as daemon:
        url = daemon.server.url
        async with client(url, "/v1/stream?token=kitchen") as mine:
            ready = await begin(mine, source="kitchen")
            await mine.play(unfinished_speech())
            await mine.until("speech_started")
            await drop(daemon, mine)
        for token in ("x", "", ready["token"][:-1], ready["session"], "\u00e9" * 43):
            async with client(url, "/v1/stream?token=kitchen") as late:
                assert (await resume(late, {"token": token}, 0))["code"] == "cannot_resume"
                assert await late.rest() == 1007
        async with client(url, "/v1/stream?token=hall") as other:
            error = await resume(other, ready, 0)
            assert error["code"] == "forbidden"
            assert await other.rest() == 1008
        async with client(url) as nobody:
            with contextlib.suppress(ConnectionClosed):
                await nobody.say(type="resume", token=ready["token"], events=0)
            assert await nobody.rest() == 1008
        mistakes: list[dict[str, Any]] = [
            {"token": ready["token"]},
            {"token": ready["token"], "events": -1},
            {"token": ready["token"], "events": "3"},
            {"token": ready["token"], "events": 3, "source": "kitchen"},
            {"token": [ready["token"]], "events": 3},
            {"events": 3},
        ]
        for mistake in mistakes:
            async with client(url, "/v1/stream?token=kitchen") as late:
                await late.say(type="resume", **mistake)
                assert await late.rest() == 1007
                assert ready["token"] not in json.dumps(late.events)
        async with client(url, "/v1/stream?token=kitchen") as again:  # none of that has cost anything
            assert (await resume(again, ready, got(mine)))["type"] == "ready"
            await again.say(type="stop")
            assert await again.rest() == 1000
            assert again.of("final")
    assert ready["token"] not in caplog.text


async def test_one_that_waits_keeps_its_seat_and_needs_no_other(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), {"server": {"max_streams": 1}}) as daemon:
        async with client(daemon.server.url) as mine:
            ready = await begin(mine)
            await drop(daemon, mine)
        async with client(daemon.server.url) as other:
            await other.say(type="start")
            assert (await other.next())["code"] == "full"
            assert await other.rest() == 1013
        async with client(daemon.server.url) as again:
            assert (await resume(again, ready, 0))["type"] == "ready"
            await again.say(type="stop")
            assert await again.rest() == 1000
        async with client(daemon.server.url) as other:
            await other.say(type="start")
            assert (await other.next())["type"] == "ready"


async def test_a_stream_that_has_begun_is_not_another(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        async with client(daemon.server.url) as mine:
            ready = await begin(mine)
            await drop(daemon, mine)
        async with client(daemon.server.url) as other:
            await other.play(speech())
            await other.say(type="resume", token=ready["token"], events=0)
            error = await other.until("error")
            assert (error["code"], error["fatal"]) == ("late_start", False)
            await other.say(type="stop")
            assert await other.rest() == 1000
            assert other.of("final")


async def test_a_speaker_that_is_refused_says_so(tokenizer_file: Path) -> None:
    speaker = Speaker(b"", START)
    speaker.ready.append({"token": "nothing"})
    async with service(scripted(tokenizer_file)) as daemon:
        with pytest.raises(RefusedError, match="cannot_resume"):
            await speaker.talk(f"{daemon.server.url}/v1/stream")


# --- the end of the service ------------------------------------------------------------------------------------------


async def test_the_end_of_the_service_is_the_end_of_those_that_wait(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url, "/v1/events") as other:
        async with client(daemon.server.url) as mine:
            await begin(mine)
            await mine.play(unfinished_speech())
            await other.until("speech_started")
            await drop(daemon, mine)
        daemon.stop()
        assert await other.rest() == 1001
        assert len(other.of("final")) == 1
    assert metric(daemon, "streams_expired_total") == 0


async def test_a_signal_while_one_waits(tmp_path: Path) -> None:
    with process(tmp_path, {}) as daemon:
        async with client(daemon.url, "/v1/events") as other:
            async with client(daemon.url) as mine:
                ready = await begin(mine)
                await mine.play(unfinished_speech())
                await other.until("speech_started")
                mine.ws.transport.abort()
            ended = asyncio.create_task(asyncio.to_thread(daemon.terminate))
            assert await other.rest() == 1001
            assert len(other.of("final")) == 1
            assert await ended == 0
        assert ready["token"] not in daemon.log


async def test_the_client_of_the_documentation(tokenizer_file: Path) -> None:
    page = (ROOT / "docs" / "resume.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    audio = speech() + speech("stop")
    cuts = [Cut(40_001, 1 << 30), Cut(30_000, 1 << 30, "silent")]
    async with service(scripted(tokenizer_file)) as daemon, network(daemon.server.url, cuts) as cutting:
        speaker = names["Speaker"](audio)
        await speaker.talk(f"{cutting.url}/v1/stream")
    assert [event["type"] for event in speaker.events if event["type"] != "partial"] == [
        "speech_started", "speech_stopped", "final", "speech_started", "speech_stopped", "final", "stopped",
    ]  # fmt: skip
    assert speaker.events[-1]["audio_seconds"] == len(audio) / 32000
