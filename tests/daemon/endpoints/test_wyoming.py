"""The Wyoming port, spoken to by the stock client and by clients that nobody would want."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import (
    PATIENCE,
    SAID,
    SECOND,
    TEACHER,
    client,
    plain,
    process,
    scripted,
    sentence,
    service,
    speech,
    unfinished_speech,
    wait_until,
)
from hypothesis import given
from hypothesis import strategies as st
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event as Wire
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.vad import VoiceStarted, VoiceStopped

from daemon.common.errors import ConfigurationError, Fault, ServiceError
from daemon.dialects import wyoming as dialect
from daemon.engines.life import LoadEngine
from daemon.service.app import Service
from daemon.settings.environment import ServiceEnvironment
from daemon.settings.schema import Settings
from streaming.events import Audio, Event, Final, Partial, Start, Stop, Stopped
from streaming.job import Job
from streaming.vocabulary import read_vocabulary

CHUNK = 2048  # what Home Assistant sends at once
Formatted = tuple[int, int, int]
HOME: Formatted = (16000, 2, 1)


@asynccontextmanager
async def listening(load: LoadEngine, **wyoming: Any) -> AsyncIterator[Service]:
    async with service(load, {"wyoming": {"host": "127.0.0.1", "port": 0, **wyoming}}) as daemon:
        yield daemon


def connect(daemon: Service) -> AsyncTcpClient:
    assert daemon.wyoming is not None
    return AsyncTcpClient(*daemon.wyoming.address, read_timeout=PATIENCE)


async def raw(daemon: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    assert daemon.wyoming is not None
    return await asyncio.open_connection(*daemon.wyoming.address)


async def begin(mine: AsyncTcpClient, form: Formatted = HOME, language: str | None = "en") -> None:
    await mine.write_event(Transcribe(language=language).event())
    await mine.write_event(AudioStart(*form).event())


async def play(mine: AsyncTcpClient, audio: bytes, form: Formatted = HOME) -> None:
    for at in range(0, len(audio), CHUNK):
        await mine.write_event(AudioChunk(*form, audio=audio[at : at + CHUNK]).event())


async def stop(mine: AsyncTcpClient) -> None:
    await mine.write_event(AudioStop().event())


async def until(mine: AsyncTcpClient, kind: type) -> list[Wire]:
    """All that comes, up to the first event of `kind`."""
    events: list[Wire] = []
    while not events or not kind.is_type(events[-1].type):  # type: ignore[attr-defined]  # of every event class
        event = await mine.read_event()
        assert event is not None, f"hung up after {[each.type for each in events]}"
        events.append(event)
    return events


async def transcript(mine: AsyncTcpClient) -> str:
    return Transcript.from_event((await until(mine, Transcript))[-1]).text


async def spoken(daemon: Service, audio: bytes, form: Formatted = HOME) -> str:
    async with connect(daemon) as mine:
        await begin(mine, form)
        await play(mine, audio, form)
        await stop(mine)
        return await transcript(mine)


def chunks(events: Sequence[Wire]) -> str:
    return "".join(TranscriptChunk.from_event(each).text for each in events if TranscriptChunk.is_type(each.type))


# --- what Home Assistant does ----------------------------------------------------------------------------------------


async def test_audio_that_carries_nothing_is_a_warning_of_the_log(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    form = (16000, 2, 2)
    samples = np.frombuffer(speech(), "<i2") // 2
    async with listening(scripted(tokenizer_file), source="hall", requires_external_vad=True) as daemon:
        assert await spoken(daemon, np.stack([samples, -samples], 1).tobytes(), form) == ""
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    (line,) = [each for each in warnings if each.startswith("hall: the channels are each other's opposite")]
    assert line.endswith(" (not sent to the client: wyoming)")


@pytest.mark.parametrize("external", [False, True])
async def test_describe_on_a_connection_of_its_own(tokenizer_file: Path, external: bool) -> None:
    async with (
        listening(scripted(tokenizer_file), requires_external_vad=external) as daemon,
        connect(daemon) as mine,
    ):
        await mine.write_event(Describe().event())
        info = Info.from_event((await until(mine, Info))[-1])
    program = info.asr[0]
    assert (program.name, program.installed, program.supports_transcript_streaming) == ("whisperd", True, True)
    assert program.requires_external_vad is external
    assert [(each.name, each.installed, each.languages) for each in program.models] == [("scripted", True, ["en"])]


async def test_an_utterance_on_a_connection_of_its_own(tokenizer_file: Path) -> None:
    """transcribe, audio-start, audio-chunk*, audio-stop -> the transcript; and the others hear of it."""
    async with (
        listening(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/events?source=wyoming") as other,
        connect(daemon) as mine,
    ):
        await begin(mine)
        await play(mine, unfinished_speech())
        await stop(mine)
        events = await until(mine, TranscriptStop)
        final = await other.until("final")
    kinds = [each.type for each in events if each.type != TranscriptChunk("").event().type]
    assert kinds[0] == "voice-started"
    assert set(kinds[1:-2]) == {TranscriptStart().event().type, "voice-stopped"}  # text may come before somebody stops
    assert kinds[-2:] == ["transcript", "transcript-stop"]
    said = Transcript.from_event(events[-2])
    assert (said.text, said.language) == (final["text"], "en")
    assert said.text.startswith("turn on")
    assert chunks(events) == said.text


async def test_our_endpointing_answers_while_the_client_still_sends(tokenizer_file: Path) -> None:
    """As Home Assistant from 2026.5 on: the first transcript ends the turn, and the connection is closed at once."""
    async with listening(scripted(tokenizer_file)) as daemon:
        async with connect(daemon) as mine:

            async def upload() -> None:
                await play(mine, speech())
                while True:
                    await play(mine, SECOND[:CHUNK])
                    await asyncio.sleep(0.01)

            await begin(mine)
            uploading = asyncio.create_task(upload())
            assert (await transcript(mine)).startswith("turn on the kitchen")
            uploading.cancel()
            await asyncio.gather(uploading, return_exceptions=True)
        await wait_until(lambda: daemon.pipeline.metrics.streams_open._value.get() == 0)
        assert (await spoken(daemon, speech())).startswith("turn on the kitchen")


async def test_an_early_answer_waits_for_a_client_that_reads_later(tokenizer_file: Path) -> None:
    """As Home Assistant before 2026.5: it sends until its own voice detection ends the turn, and reads then."""
    async with listening(scripted(tokenizer_file)) as daemon, connect(daemon) as mine:
        await begin(mine)
        await play(mine, speech())
        await wait_until(lambda: daemon.pipeline.metrics.finals.labels("student")._value.get())
        for _ in range(50):
            await play(mine, SECOND)
        await stop(mine)
        events = await until(mine, TranscriptStop)
        assert sum(Transcript.is_type(each.type) for each in events) == 1
        # The same connection takes another turn, and its answer is its own.
        await begin(mine)
        await play(mine, speech())
        await stop(mine)
        again = await until(mine, TranscriptStop)
        assert sum(Transcript.is_type(each.type) for each in again) == 1


async def test_text_while_somebody_still_speaks(tokenizer_file: Path) -> None:
    async with (
        listening(scripted(tokenizer_file), requires_external_vad=True) as daemon,
        client(daemon.server.url, "/v1/events") as other,
        connect(daemon) as mine,
    ):
        await begin(mine)
        await play(mine, unfinished_speech())
        settled = False
        while not settled:  # a word is settled once two partials agree on it, and each needs new audio
            settled = bool((await other.until("partial"))["stable"])
            await play(mine, unfinished_speech()[-16000:])
        events = await until(mine, TranscriptChunk)
        assert [each.type for each in events] == ["transcript-start", "transcript-chunk"]
        assert "turn on the kitchen".startswith(chunks(events))


async def test_their_endpointing_joins_all_utterances_of_a_turn(tokenizer_file: Path) -> None:
    """A client takes the first transcript for the whole answer: it must be the whole answer."""
    async with (
        listening(scripted(tokenizer_file), requires_external_vad=True) as daemon,
        client(daemon.server.url, "/v1/events") as other,
        connect(daemon) as mine,
    ):
        await begin(mine)
        await play(mine, speech("two_sentences") + SECOND)
        first, second = await other.until("final"), await other.until("final")
        await stop(mine)
        events = await until(mine, TranscriptStop)
    assert Transcript.from_event(events[-2]).text == f"{first['text']} {second['text']}"
    assert chunks(events) == f"{first['text']} {second['text']}"


async def test_who_is_told_where_speech_begins_and_stops(tokenizer_file: Path) -> None:
    """A client that waits for our endpointing reads when to stop its microphone, before the text is there.

    One that hears the end itself is not told: the pause after the first of two sentences is not the end of its turn.
    """
    told: dict[bool, list[Wire]] = {}
    audio = speech("two_sentences")
    for theirs in (False, True):
        async with (
            listening(scripted(tokenizer_file), requires_external_vad=theirs) as daemon,
            connect(daemon) as mine,
        ):
            await begin(mine)
            await play(mine, audio)
            await stop(mine)
            told[theirs] = await until(mine, TranscriptStop)
    assert not [each for each in told[True] if each.type.startswith("voice")]
    events = told[False]
    kinds = [each.type for each in events]
    assert kinds.index("voice-started") < kinds.index("voice-stopped") < kinds.index("transcript")
    began = VoiceStarted.from_event(events[kinds.index("voice-started")]).timestamp
    ended = VoiceStopped.from_event(events[kinds.index("voice-stopped")]).timestamp
    assert began is not None
    assert ended is not None
    assert 0 <= began < ended <= len(audio) // 32
    # Each turn has its own times and its own answer; this one had one answer, whatever the number of utterances.
    assert kinds.count("voice-started") == kinds.count("voice-stopped")
    assert kinds.count("transcript") == 1


async def test_turns_on_one_connection_have_their_own_utterances_and_times(tokenizer_file: Path) -> None:
    first, second = speech(), SECOND + speech()
    async with listening(scripted(tokenizer_file)) as daemon, connect(daemon) as mine:
        began: list[int] = []
        for audio in (first, second):
            await begin(mine)
            await play(mine, audio)
            await stop(mine)
            events = await until(mine, TranscriptStop)
            kinds = [each.type for each in events]
            assert [kinds.count(kind) for kind in ("transcript-start", "transcript", "voice-started")] == [1, 1, 1]
            assert chunks(events) == Transcript.from_event(events[kinds.index("transcript")]).text
            at = VoiceStarted.from_event(events[kinds.index("voice-started")]).timestamp
            assert at is not None
            began.append(at)
    assert abs(began[1] - began[0] - 1000) <= 100


@pytest.mark.parametrize(
    ("theirs", "sensitivity", "hangover"),
    [
        (False, "aggressive", 0.25),
        (False, "relaxed", 1.25),
        (False, "default", None),
        (False, "brisk", None),
        (False, ["relaxed"], None),
        (True, "relaxed", None),
    ],
)
def test_how_quickly_a_turn_ends_is_the_clients_choice_where_we_end_it(
    theirs: bool, sensitivity: Any, hangover: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    decoder = dialect.WyomingDecoder(ends_turns=not theirs)
    decoder.feed(wire(Transcribe(vad_sensitivity=sensitivity), AudioStart(*HOME)))
    decoder.next()
    start = decoder.next()
    assert isinstance(start, Start)
    assert start.endpointing.hangover == hangover
    without_effect = any("vad_sensitivity" in each.getMessage() for each in caplog.records)
    assert without_effect is (hangover is None and sensitivity != "default")


async def test_a_pause_ends_what_an_aggressive_client_says_but_not_a_relaxed_one(tokenizer_file: Path) -> None:
    said, pause = voiced(speech()), SECOND[: 2 * 12800]  # 0.8 s
    ends: dict[str, int | None] = {}
    async with listening(scripted(tokenizer_file)) as daemon:
        for sensitivity in ("aggressive", "relaxed"):
            async with connect(daemon) as mine:
                await mine.write_event(Transcribe(language="en", vad_sensitivity=sensitivity).event())
                await mine.write_event(AudioStart(*HOME).event())
                await play(mine, said + pause + said)
                await stop(mine)
                ends[sensitivity] = VoiceStopped.from_event((await until(mine, VoiceStopped))[-1]).timestamp
    assert ends["aggressive"] is not None
    assert ends["relaxed"] is not None
    assert ends["aggressive"] <= len(said) // 32 + 100 < ends["relaxed"]


async def test_nobody_speaks(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file), no_speech=2.0) as daemon:
        assert await spoken(daemon, SECOND) == ""
        async with connect(daemon) as mine:  # one that waits for us to end it
            await begin(mine)
            await play(mine, 3 * SECOND)
            assert await transcript(mine) == ""


async def test_nobody_stops(tokenizer_file: Path) -> None:
    babble = unfinished_speech()[len(unfinished_speech()) // 2 :] * 8
    async with listening(scripted(tokenizer_file), longest=4.0) as daemon, connect(daemon) as mine:
        await begin(mine)
        await play(mine, babble)
        assert (await transcript(mine)).startswith("turn on the kitchen")


async def test_ten_clients_at_once_each_get_their_own_text(tokenizer_file: Path) -> None:
    """The scripted engine says more the longer it listens: whoever spoke longer has more words."""
    script = " ".join(f"word{number}" for number in range(40))
    async with listening(scripted(tokenizer_file, script=script, pace=0.2), requires_external_vad=True) as daemon:
        one = speech()[16000:]
        alone = [await spoken(daemon, one * (1 + number % 3)) for number in range(3)]
        assert len(set(alone)) == 3
        together = await asyncio.gather(*(spoken(daemon, one * (1 + number % 3)) for number in range(10)))
    assert together == [alone[number % 3] for number in range(10)]


async def test_a_ping_in_the_midst_of_a_turn(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file)) as daemon, connect(daemon) as mine:
        await begin(mine)
        await mine.write_event(Ping("are you there?").event())
        assert Pong.from_event((await until(mine, Pong))[-1]).text == "are you there?"


# --- formats ---------------------------------------------------------------------------------------------------------


def resized(audio: bytes, form: Formatted) -> bytes:
    rate, width, channels = form
    samples = np.frombuffer(audio, "<i2").astype(np.float64)
    at = np.arange(int(len(samples) * rate / 16000)) * 16000 / rate
    samples = np.interp(at, np.arange(len(samples)), samples)
    scaled = np.round(samples * 2.0 ** (8 * (width - 2))).astype("<i4")
    scaled = np.repeat(scaled, channels)
    return scaled.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()


@pytest.mark.parametrize(
    "form", [(8000, 2, 1), (44100, 2, 2), (48000, 4, 1), (16000, 3, 1), (22050, 3, 2), (16000, 1, 1)]
)
async def test_any_rate_width_and_number_of_channels(tokenizer_file: Path, form: Formatted) -> None:
    async with listening(scripted(tokenizer_file), requires_external_vad=True) as daemon:
        assert (await spoken(daemon, resized(speech(), form), form)).startswith("turn on the kitchen")


@pytest.mark.parametrize(
    ("form", "code"),
    [((12, 2, 1), "bad_format"), ((16000, 5, 1), "bad_format"), ((16000, 2, 99), "bad_format")],
)
async def test_a_format_that_nobody_can_hear(tokenizer_file: Path, form: Formatted, code: str) -> None:
    async with listening(scripted(tokenizer_file)) as daemon, connect(daemon) as mine:
        await begin(mine, form)
        error = Error.from_event((await until(mine, Error))[-1])
        assert error.code == code
        assert await mine.read_event() is None


async def test_a_language_and_a_model_that_are_not_here(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file)) as daemon:
        async with connect(daemon) as mine:
            await begin(mine, language="xx")
            error = Error.from_event((await until(mine, Error))[-1])
            assert (error.code, "one of en" in error.text) == ("bad_language", True)
        async with connect(daemon) as mine:
            await mine.write_event(Transcribe(name="../../etc").event())
            error = Error.from_event((await until(mine, Error))[-1])
            assert (error.code, "scripted" in error.text) == ("unknown_model", True)
        async with connect(daemon) as mine:
            await mine.write_event(Transcribe(name="scripted", language="en-US").event())
            await play(mine, speech())  # no audio-start: a chunk says it all
            await stop(mine)
            assert (await transcript(mine)).startswith("turn on")


# --- clients that nobody would want ----------------------------------------------------------------------------------

GARBAGE = {
    "no JSON": (b"GET / HTTP/1.1\r\n\r\n", "bad_json"),
    "no object": (b"[1]\n", "bad_json"),
    "no type": (b"{}\n", "bad_field"),
    "deep": (b"[" * 60000 + b"\n", "bad_json"),
    "a header that never ends": (b"x" * 70000, "message_too_big"),
    "a gigabyte announced": (b'{"type":"describe","data_length":1000000000}\n', "message_too_big"),
    "a gigabyte of audio": (b'{"type":"audio-chunk","payload_length":1000000000}\n', "message_too_big"),
    "a negative length": (b'{"type":"describe","data_length":-1}\n', "bad_field"),
    "a length that is none": (b'{"type":"describe","payload_length":"much"}\n', "bad_field"),
    "data that is none": (b'{"type":"describe","data_length":4}\n[1] ', "bad_json"),
    "half a character": (b'{"type":"ping","data":{"text":"\\ud800"}}\n', "bad_field"),
    "a stop before a start": (b'{"type":"audio-stop"}\n', "bad_order"),
    "a start of nothing": (b'{"type":"audio-start"}\n', "bad_format"),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_is_answered_by_an_error_and_harms_nobody(tokenizer_file: Path, name: str) -> None:
    sent, code = GARBAGE[name]
    async with listening(scripted(tokenizer_file)) as daemon:
        async with connect(daemon) as neighbour:
            await begin(neighbour)
            await play(neighbour, unfinished_speech())
            reader, writer = await raw(daemon)
            writer.write(sent)
            async with asyncio.timeout(PATIENCE):
                header = json.loads(await reader.readline())
                body = json.loads(await reader.readexactly(header["data_length"]))
                assert (header["type"], body["code"]) == ("error", code)
                assert len(body["text"]) < 300
                assert await reader.read() == b""
            writer.close()
            await stop(neighbour)
            assert (await transcript(neighbour)).startswith("turn on")
        errors = daemon.pipeline.metrics.client_errors.labels(code)
        assert errors._value.get() == 1


async def test_garbage_after_speech_loses_the_answer_but_not_the_text(tokenizer_file: Path) -> None:
    """Half a command must not be obeyed; the others still read what was said."""
    async with (
        listening(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/events") as other,
        connect(daemon) as mine,
    ):
        await begin(mine)
        await play(mine, unfinished_speech())
        await mine.write_event(AudioChunk(8000, 2, 1, audio=b"12").event())
        events = [each.type for each in await until(mine, Error)]
        while (event := await mine.read_event()) is not None:
            events.append(event.type)
        assert "transcript" not in events
        assert (await other.until("final"))["text"].startswith("turn on")


@pytest.mark.parametrize("sent", [b"", b'{"type":"descri', b'{"type":"describe","data_length":10}\n{"a"'])
async def test_silence_is_not_waited_for_for_ever(tokenizer_file: Path, sent: bytes) -> None:
    async with listening(scripted(tokenizer_file), timeout=0.3) as daemon:
        reader, writer = await raw(daemon)
        writer.write(sent)
        async with asyncio.timeout(PATIENCE):
            rest = await reader.read()
        assert (b'"code": "timeout"' in rest) is bool(sent)
        writer.close()


async def test_a_client_that_falls_silent_in_mid_word_is_answered(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file), timeout=1.0) as daemon, connect(daemon) as mine:
        await begin(mine)
        await play(mine, unfinished_speech())
        assert (await transcript(mine)).startswith("turn on")


async def test_a_client_that_leaves_in_mid_word_is_still_heard(tokenizer_file: Path) -> None:
    async with (
        listening(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/events?source=wyoming") as other,
    ):
        async with connect(daemon) as mine:
            await begin(mine)
            await play(mine, unfinished_speech())
        assert (await other.until("final"))["text"].startswith("turn on")
        await wait_until(lambda: daemon.pipeline.metrics.wyoming_clients._value.get() == 0)


async def test_a_client_that_does_not_read_is_let_go(tokenizer_file: Path) -> None:
    sections = {"wyoming": {"host": "127.0.0.1", "port": 0}, "subscribers": {"send_timeout": 0.2}}
    async with service(scripted(tokenizer_file), sections) as daemon:
        _reader, writer = await raw(daemon)  # takes in no more than its limit

        async def ping_for_ever() -> None:
            while True:
                writer.write(wire(Ping("x" * 1000)) * 1000)
                await writer.drain()

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ping_for_ever(), PATIENCE)
        writer.close()
        assert daemon.pipeline.metrics.subscribers_dropped._value.get() == 1
        assert (await spoken(daemon, speech())).startswith("turn on")


async def test_no_more_than_so_many(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file), max_clients=1) as daemon:
        async with connect(daemon) as first:
            await first.write_event(Ping("a").event())
            await until(first, Pong)
            async with connect(daemon) as second:
                assert Error.from_event((await until(second, Error))[-1]).code == "full"
        await wait_until(lambda: daemon.pipeline.metrics.wyoming_clients._value.get() == 0)
        assert (await spoken(daemon, speech())).startswith("turn on")


@pytest.mark.parametrize("theirs", [False, True])  # where they end the turn, the engine fails only after that
async def test_an_engine_that_fails_is_no_silence(theirs: bool, tokenizer_file: Path) -> None:
    def fail(jobs: Sequence[Job]) -> None:
        if any(job.audio.size != 16000 for job in jobs):  # speech, not the canary
            raise RuntimeError("out of order")

    load = scripted(tokenizer_file, before=fail)
    async with listening(load, requires_external_vad=theirs) as daemon, connect(daemon) as mine:
        await begin(mine)
        await play(mine, unfinished_speech() if theirs else speech())
        await stop(mine)
        events = await until(mine, Error)
        assert Error.from_event(events[-1]).code == "transcription_failed"
        assert await mine.read_event() is None


# --- the end, the beginning ------------------------------------------------------------------------------------------


async def test_the_end_of_the_service_answers_what_is_in_work(tokenizer_file: Path) -> None:
    gate = threading.Event()

    def wait(jobs: Sequence[Job]) -> None:
        if any(job.audio.size != 16000 for job in jobs):  # speech, not the canary
            assert gate.wait(PATIENCE)

    load = scripted(tokenizer_file, before=wait)
    async with listening(load, requires_external_vad=True) as daemon:
        async with connect(daemon) as idle, connect(daemon) as mine:
            await begin(mine)
            await play(mine, unfinished_speech())
            await wait_until(lambda: daemon.pipeline.scheduler.busy_since)
            daemon.stop()
            assert await idle.read_event() is None
            gate.set()
            assert (await transcript(mine)).startswith("turn on")
        with pytest.raises(ConnectionRefusedError):
            await connect(daemon).connect()


async def test_one_who_asks_before_the_models_are_loaded_waits(tokenizer_file: Path) -> None:
    gate = threading.Event()
    load = scripted(tokenizer_file)

    def slowly(settings: Settings) -> Any:
        assert gate.wait(PATIENCE)
        return load(settings)

    sections = {"server": {"port": 0}, "wyoming": {"host": "127.0.0.1", "port": 0}}
    daemon = Service(Settings.model_validate(sections), ServiceEnvironment(), slowly)
    task = asyncio.create_task(daemon.run())
    await wait_until(lambda: daemon.wyoming is not None and daemon.wyoming.address[1])
    async with connect(daemon) as mine:
        await mine.write_event(Describe().event())
        gate.set()
        assert Info.from_event((await until(mine, Info))[-1]).asr[0].models[0].name == "scripted"
    daemon.stop()
    await task


def test_off_unless_asked_for(tokenizer_file: Path) -> None:
    assert Service(Settings(), ServiceEnvironment(), scripted(tokenizer_file)).wyoming is None


async def test_an_address_that_is_taken(tokenizer_file: Path) -> None:
    async with listening(scripted(tokenizer_file)) as daemon:
        assert daemon.wyoming is not None
        with pytest.raises(ServiceError, match=r"wyoming: cannot listen on 127\.0\.0\.1:"):
            async with listening(scripted(tokenizer_file), port=daemon.wyoming.address[1]):
                pass


def test_what_cannot_be_had_is_said_at_the_start(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**wyoming: Any) -> Service:
        sections = {"wyoming": {"host": "127.0.0.1", **wyoming}}
        return Service(Settings.model_validate(sections), ServiceEnvironment(), scripted(tokenizer_file))

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"wyoming\.zeroconf: .*pip install 'whisperd\[zeroconf\]'"):
        made(zeroconf=True)


async def test_it_is_announced_and_taken_back(tokenizer_file: Path) -> None:
    from zeroconf import ServiceStateChange
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

    seen: asyncio.Queue[tuple[str, ServiceStateChange]] = asyncio.Queue()

    def note(zeroconf: Any, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        seen.put_nowait((name, state_change))

    kind = "_wyoming._tcp.local."
    async with AsyncZeroconf(interfaces=["127.0.0.1"]) as network:
        browser = AsyncServiceBrowser(network.zeroconf, kind, handlers=[note])
        async with asyncio.timeout(PATIENCE):
            async with listening(scripted(tokenizer_file), zeroconf=True) as daemon:
                name, change = await seen.get()
                assert (name.startswith("whisperd-"), change) == (True, ServiceStateChange.Added)
                found = await network.async_get_service_info(kind, name)
                assert found is not None
                assert daemon.wyoming is not None
                assert (found.parsed_addresses(), found.port) == (["127.0.0.1"], daemon.wyoming.address[1])
            while (await seen.get())[1] is not ServiceStateChange.Removed:
                pass
        await browser.async_cancel()


def voiced(audio: bytes) -> bytes:
    """Without the silence around it: speech from the first sample to the last."""
    samples = np.frombuffer(audio, "<i2")
    loud = np.flatnonzero(np.abs(samples) > 500)
    return samples[loud[0] : loud[-1] + 1].tobytes()


@pytest.mark.timeout(300)
async def test_the_first_and_the_last_word_with_the_shipped_models(tmp_path: Path) -> None:
    """A wake word's client sends no silence before the command, and none behind it."""
    with process(tmp_path, TEACHER | {"wyoming": {"host": "127.0.0.1", "port": 0}}) as daemon:
        port = int(daemon.log.partition("tcp://127.0.0.1:")[2].split()[0])
        async with AsyncTcpClient("127.0.0.1", port, read_timeout=PATIENCE) as mine:
            await begin(mine)
            await play(mine, voiced(sentence()))
            await stop(mine)
            assert plain(await transcript(mine)) == SAID
        assert daemon.terminate() == 0
    assert "Traceback" not in daemon.log


# --- phrases ---------------------------------------------------------------------------------------------------------


async def test_names_and_terms_reach_the_engine(tokenizer_file: Path) -> None:
    jobs: list[Job] = []
    asked = Transcribe(language="en", transcript_names=["Ecobee", "Frau  Müller"], transcript_terms=["thermostat"])
    async with listening(scripted(tokenizer_file, before=jobs.extend)) as daemon, connect(daemon) as mine:
        await mine.write_event(asked.event())
        await mine.write_event(AudioStart(*HOME).event())
        await play(mine, speech())
        await stop(mine)
        assert (await transcript(mine)).startswith("turn on")
    assert [(each.text, each.weight) for each in jobs[-1].vocabulary.phrases] == [
        ("Ecobee", 1.5),
        ("Frau Müller", 1.5),
        ("thermostat", 1.0),
    ]


async def test_names_that_cannot_be_used_do_not_cost_the_answer(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    jobs: list[Job] = []
    asked = Transcribe(
        transcript_names="Ecobee",  # type: ignore[arg-type]  # as a client that is wrong would
        transcript_terms=["a" * 101, "lamp"],
        vad_sensitivity="relaxed",
    )
    load = scripted(tokenizer_file, before=jobs.extend)
    async with listening(load, requires_external_vad=True) as daemon, connect(daemon) as mine:
        for _ in range(2):
            await mine.write_event(asked.event())
            await mine.write_event(AudioStart(*HOME).event())
            await play(mine, speech())
            await stop(mine)
            assert (await transcript(mine)).startswith("turn on")
    assert [each.text for each in jobs[-1].vocabulary.phrases] == ["lamp"]
    lines = [each.getMessage() for each in caplog.records if each.name.startswith("daemon.dialects.")]
    assert [line.partition(" used")[0] for line in lines] == [
        "wyoming: not all of transcript_names can be",
        "wyoming: not all of transcript_terms can be",
        "wyoming: taken without effect: vad_sensitivity",
    ]


def listed(**data: Any) -> dict[str, float]:
    """The phrases of a turn that is announced so, with their weights."""
    header = json.dumps({"type": "transcribe", "data": data}).encode() + b"\n"
    _, start = decoded([header, wire(AudioStart(16000, 2, 1))])
    assert isinstance(start, Start)
    return {each.text: each.weight for each in start.vocabulary.phrases}


def test_a_name_that_is_a_term_too_has_the_weight_of_a_name() -> None:
    assert listed(transcript_terms=["lamp", "Ecobee"], transcript_names=["Ecobee"]) == {"Ecobee": 1.5, "lamp": 1.0}


def test_names_go_before_terms_where_there_are_too_many(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    names, terms = [f"name {number}" for number in range(990)], [f"term {number}" for number in range(990)]
    phrases = listed(transcript_terms=terms, transcript_names=names)
    assert list(phrases) == [*names, *terms[:10]]
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.startswith("wyoming: not all of transcript_terms can be used: ")


def test_each_turn_has_its_own_phrases() -> None:
    sent = wire(
        Transcribe(transcript_names=["Ecobee"]), AudioStart(*HOME), AudioStop(), Transcribe(), AudioStart(*HOME)
    )
    starts = [each for each in decoded([sent]) if isinstance(each, Start)]
    assert [[phrase.text for phrase in each.vocabulary.phrases] for each in starts] == [["Ecobee"], []]


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.text(min_size=95),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON | st.lists(st.text()), JSON, JSON, JSON)
def test_whatever_a_turn_is_announced_with_it_begins(names: Any, terms: Any, context: Any, vad: Any) -> None:
    phrases = listed(transcript_names=names, transcript_terms=terms, context=context, vad_sensitivity=vad)
    assert set(phrases.values()) <= {1.5, 1.0}


# --- the codec -------------------------------------------------------------------------------------------------------


def wire(*events: Any) -> bytes:
    """What the stock library writes."""
    written: list[bytes] = []

    class Writer:
        def write(self, data: bytes) -> None:
            written.append(data)

        def writelines(self, lines: Sequence[bytes]) -> None:
            written.extend(lines)

        def flush(self) -> None:
            pass

    from wyoming.event import write_event

    for event in events:
        write_event(event.event(), Writer())  # type: ignore[arg-type]  # all it needs
    return b"".join(written)


def decoded(pieces: Iterator[bytes] | Sequence[bytes]) -> list[dialect.WyomingMessage]:
    decoder = dialect.WyomingDecoder()
    messages = []
    for piece in pieces:
        decoder.feed(piece)
        while (message := decoder.next()) is not None:
            messages.append(message)
    return messages


@given(st.data())
def test_bytes_may_be_split_anywhere(data: st.DataObject) -> None:
    whole = wire(
        Describe(),
        Ping("über"),
        Transcribe(name="m", language="de_AT", transcript_names=["Küche"]),
        AudioStart(16000, 2, 1),
        AudioChunk(16000, 2, 1, audio=b"\n{}\n"),
        AudioStop(),
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert decoded(pieces) == [
        dialect.Describe(),
        dialect.Ping("über"),
        dialect.Transcribe("m"),
        Start(language="de", vocabulary=read_vocabulary([{"text": "Küche", "weight": 1.5}])),
        Audio(b"\n{}\n"),
        Stop(),
    ]


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_whatever_comes_is_read_or_is_a_fault(pieces: list[bytes]) -> None:
    faults: list[Fault] = []
    try:
        decoded(pieces)
    except Fault as fault:
        faults.append(fault)
    assert all(fault.fatal and len(fault.message) < 300 for fault in faults)


def test_inline_data_is_accepted_and_unknown_events_are_passed_over() -> None:
    sent = b'{"type":"run-pipeline","payload_length":3}\nabc{"type":"ping","data":{"text":"x"}}\n'
    assert decoded([sent]) == [dialect.Unknown(), dialect.Ping("x")]


@given(st.integers(1, 4), st.lists(st.integers(-128, 127), min_size=1, max_size=20), st.data())
def test_samples_of_any_width_are_heard_in_16_bits(width: int, tops: list[int], data: st.DataObject) -> None:
    """The top byte survives whatever the width, wherever the chunks are cut."""
    whole = b"".join((top << 8 * (width - 1)).to_bytes(width, "little", signed=True) for top in tops)
    cut = data.draw(st.integers(0, len(whole)))
    pieces = [AudioChunk(16000, width, 1, audio=piece) for piece in (whole[:cut], whole[cut:])]
    heard = b"".join(
        message.data for message in decoded([wire(AudioStart(16000, width, 1), *pieces)]) if isinstance(message, Audio)
    )
    assert np.frombuffer(heard, "<i2").tolist() == [top << 8 for top in tops]


def partial(stable: str) -> Partial:
    return Partial("s", 1, 0.0, 1.0, stable, " tail", 0)


def final(text: str) -> Final:
    return Final("s", 1, 0.0, 1.0, text, 1.0, "student", "en", 0)


WORDS = st.lists(st.sampled_from(["a", "bb", "Ccc"]), max_size=4).map(" ".join)


@given(st.lists(st.tuples(st.lists(WORDS, max_size=3), WORDS), max_size=4))
def test_chunks_never_contradict_the_transcript_unless_the_final_did(said: list[tuple[list[str], str]]) -> None:
    answer = dialect.Answer()
    events: list[Event] = []
    kept = True
    for stables, text in said:
        events += [*map(partial, stables), final(text)]
        kept = kept and all(text.startswith(stable) for stable in stables)
    told = b"".join(answer.encode(event) for event in [*events, Stopped(1.0)])
    read = wires(told)
    assert [each.type for each in read if "chunk" not in each.type] == [
        "transcript-start",
        "transcript",
        "transcript-stop",
    ]
    text = " ".join(text for _, text in said if text)
    assert next(Transcript.from_event(each).text for each in read if each.type == "transcript") == text
    if kept:
        assert chunks(read) == text


def wires(data: bytes) -> list[Wire]:
    """What the stock library reads."""
    import io

    from wyoming.event import read_event

    stream, events = io.BytesIO(data), []
    while (event := read_event(stream)) is not None:
        events.append(event)
    return events


async def test_speech_begins_at_once(tokenizer_file: Path) -> None:
    """200 ms at either end, by the length of what the engine is given."""
    heard: list[int] = []
    load = scripted(tokenizer_file, before=lambda jobs: heard.extend(len(job.audio) for job in jobs))
    audio = voiced(speech())
    async with listening(load, requires_external_vad=True) as daemon:
        await spoken(daemon, audio)
    assert max(heard) >= len(audio) // 2 - 512  # a frame of 32 ms may count for silence
