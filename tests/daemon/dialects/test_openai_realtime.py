"""The OpenAI realtime protocol: the stock client, unmodified, against the service; and the codec alone."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from harness import (
    PATIENCE,
    SAID,
    TEACHER,
    client,
    pcm,
    plain,
    process,
    scripted,
    sentence,
    service,
    speech,
    unfinished_speech,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from openai import AsyncOpenAI

from daemon.common.errors import Fault
from daemon.dialects import openai_realtime as dialect
from daemon.dialects.codec import Handshake, Reply
from daemon.dialects.openai_session import (
    LOG_PROBS,
    Refused,
    SessionConfig,
    TurnDetection,
    updated,
    updated_beta,
)
from streaming.events import (
    Audio,
    Discard,
    Endpointing,
    Error,
    Final,
    Flush,
    Flushed,
    Partial,
    SpeechStarted,
    SpeechStopped,
    Start,
    Stopped,
)
from streaming.job import Job, Waveform

SCRIPT = "turn on the kitchen light"
TRANSCRIPTION = "conversation.item.input_audio_transcription"


def at_24khz(audio: bytes) -> bytes:
    samples = np.frombuffer(audio, "<i2").astype(np.float32) / 32768
    return pcm(soxr.resample(samples, 16000, 24000))


def mulaw(audio: bytes) -> bytes:
    """16-bit samples at 16 kHz as G.711 at 8 kHz, by the definition."""
    samples: Waveform = soxr.resample(np.frombuffer(audio, "<i2").astype(np.float32), 16000, 8000)
    magnitude = np.minimum(np.abs(samples), 32635).astype(np.int32) + 132
    exponent = np.floor(np.log2(magnitude)).astype(np.int32) - 7
    mantissa = magnitude >> (exponent + 3) & 15
    sign = np.where(samples < 0, 0x80, 0)
    code: NDArray[np.int32] = ~(sign | exponent << 4 | mantissa) & 0xFF
    return code.astype(np.uint8).tobytes()


class Talk:
    """A stock client's connection, and all that came on it."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.events: list[Any] = []

    async def play(self, audio: bytes, step: int = 9600) -> None:
        for at in range(0, len(audio), step):
            await self.connection.input_audio_buffer.append(audio=base64.b64encode(audio[at : at + step]).decode())

    async def until(self, kind: str) -> Any:
        while True:
            async with asyncio.timeout(PATIENCE):
                event = await self.connection.recv()
            self.events.append(event)
            if event.type == kind:
                return event

    def kinds(self) -> list[str]:
        return [event.type for event in self.events]

    def of(self, kind: str) -> list[Any]:
        return [event for event in self.events if event.type == kind]


@asynccontextmanager
async def talk(url: str, *, beta: bool = False, key: str = "any", **options: Any) -> AsyncIterator[Talk]:
    # The earlier client asks for TLS unless it is told the address of websockets.
    websockets = url + "/v1" if beta else None
    base = url.replace("ws", "http", 1) + "/v1"
    async with AsyncOpenAI(api_key=key, base_url=base, websocket_base_url=websockets) as stock:
        realtime: Any = stock.beta.realtime if beta else stock.realtime
        async with realtime.connect(model="gpt-4o-transcribe", **options) as connection:
            yield Talk(connection)


def transcription(**heard: Any) -> dict[str, Any]:
    return {"type": "transcription", "audio": {"input": heard}}


# --- the stock client ------------------------------------------------------------------------------------------------


async def test_audio_that_carries_nothing_is_a_warning_of_the_log(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        talk(daemon.server.url, extra_query={"intent": "transcription", "source": "hall"}) as mine,
    ):
        await mine.play(bytes(12 * 48000))
        await mine.play(at_24khz(speech()))
        await mine.until(f"{TRANSCRIPTION}.completed")
    assert not mine.of("error")
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("hall: all samples were zero for 10 s: ")
    assert line.endswith(" (not sent to the client: openai)")


async def test_a_turn_with_deltas_while_somebody_speaks(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file), {"partials": {"first": 0.1, "interval": 0.1}}) as daemon,
        client(daemon.server.url, "/v1/events?source=desk") as other,
        talk(daemon.server.url, extra_query={"intent": "transcription", "source": "desk"}) as mine,
    ):
        created = await mine.until("session.created")
        assert created.session.type == "transcription"
        await mine.connection.session.update(
            session=transcription(
                transcription={"model": "gpt-4o-transcribe", "language": "en"},
                turn_detection={"type": "server_vad", "silence_duration_ms": 300, "prefix_padding_ms": 200},
            )
        )
        session = (await mine.until("session.updated")).session
        assert session.audio.input.turn_detection.silence_duration_ms == 300
        assert session.audio.input.transcription.model == "gpt-4o-transcribe"
        audio = at_24khz(speech())
        begun, more = round(0.4 * len(audio)) // 2 * 2, 9600  # 0.2 s
        await mine.play(audio[:begun])
        await other.until("partial")
        await mine.play(audio[begun : begun + more])
        await other.until("partial")  # of two that agree something is stable
        await mine.until(f"{TRANSCRIPTION}.delta")
        await mine.play(audio[begun + more :])
        completed = await mine.until(f"{TRANSCRIPTION}.completed")
        final = await other.until("final")
    kinds = [kind for kind in mine.kinds() if not kind.startswith("session.")]
    order = [
        "input_audio_buffer.speech_started",
        f"{TRANSCRIPTION}.delta",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.created",
        "conversation.item.done",
        f"{TRANSCRIPTION}.completed",
    ]
    assert list(dict.fromkeys(kinds)) == order
    assert len({event.item_id for event in mine.events if hasattr(event, "item_id")}) == 1
    assert completed.transcript == final["text"].strip()
    assert completed.usage.seconds == pytest.approx(final["end"] - final["start"], abs=0.01)
    streamed = "".join(event.delta for event in mine.of(f"{TRANSCRIPTION}.delta"))
    assert completed.transcript.startswith(streamed)
    started, stopped = mine.of(order[0])[0], mine.of(order[2])[0]
    assert (started.audio_start_ms, stopped.audio_end_ms) == (
        round(1000 * final["start"]), round(1000 * final["end"]),
    )  # fmt: skip


async def test_commits_of_the_client(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, talk(daemon.server.url) as mine:
        await mine.connection.session.update(session={**transcription(turn_detection=None), "include": [LOG_PROBS]})
        await mine.until("session.updated")
        await mine.connection.input_audio_buffer.commit()
        assert (await mine.until("error")).error.code == "input_audio_buffer_commit_empty"
        for _ in range(2):
            await mine.play(at_24khz(speech() + speech()))  # two utterances, one item
            await mine.connection.input_audio_buffer.commit()
        first = await mine.until(f"{TRANSCRIPTION}.completed")
        second = await mine.until(f"{TRANSCRIPTION}.completed")
    committed = mine.of("input_audio_buffer.committed")
    assert [event.item_id for event in committed] == [first.item_id, second.item_id]
    assert [event.previous_item_id for event in committed] == [None, first.item_id]
    assert not mine.of("input_audio_buffer.speech_started")
    for completed in (first, second):
        assert completed.transcript.count("turn") >= 2
        assert [each.token for each in completed.logprobs] == completed.transcript.split()
        assert all(each.logprob <= 0 and bytes(each.bytes).decode() == each.token for each in completed.logprobs)
        deltas = [event.delta for event in mine.of(f"{TRANSCRIPTION}.delta") if event.item_id == completed.item_id]
        assert len(deltas) > 1


async def test_what_is_cleared_is_heard_by_nobody(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/events?source=openai") as other,
        talk(daemon.server.url) as mine,
    ):
        await mine.connection.session.update(session=transcription(turn_detection=None))
        half = len(speech()) // 4 * 2
        await mine.play(at_24khz(speech()[:half]))
        await other.until("speech_started")
        await mine.connection.input_audio_buffer.clear()
        await mine.until("input_audio_buffer.cleared")
        await mine.play(at_24khz(speech()))
        await mine.connection.input_audio_buffer.commit()
        completed = await mine.until(f"{TRANSCRIPTION}.completed")
        heard = ""
        while heard != completed.transcript:
            final = await other.until("final")
            assert final["utterance"] > 1
            heard = f"{heard} {final['text'].strip()}".strip()
        assert mine.of("input_audio_buffer.committed")[-1].item_id == completed.item_id


async def test_the_earlier_shape(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        talk(daemon.server.url, beta=True, extra_query={"intent": "transcription"}) as mine,
    ):
        await mine.until("transcription_session.created")
        await mine.connection.transcription_session.update(
            session={
                "input_audio_format": "g711_ulaw",
                "input_audio_transcription": {"model": "whisper-1", "language": "en"},
                "turn_detection": {"type": "server_vad", "threshold": 0.4},
            }
        )
        updated = await mine.until("transcription_session.updated")
        assert updated.session.input_audio_format == "g711_ulaw"
        await mine.play(mulaw(speech()), step=1600)
        completed = await mine.until(f"{TRANSCRIPTION}.completed")
        assert SCRIPT.split()[0] in completed.transcript
        assert "conversation.item.created" in mine.kinds()
        assert "conversation.item.done" not in mine.kinds()


async def test_a_format_of_the_earlier_shape_that_is_no_name(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, talk(daemon.server.url, beta=True) as mine:
        await mine.connection.send({"type": "session.update", "session": {"input_audio_format": []}})
        refused = (await mine.until("error")).error
        assert (refused.code, refused.param) == ("invalid_value", "session.input_audio_format")


async def test_a_session_that_changes_while_it_is_heard(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, talk(daemon.server.url) as mine:
        await mine.play(at_24khz(speech())[: -2 * 24000 // 10])
        await mine.until("input_audio_buffer.speech_started")
        await mine.connection.session.update(session=transcription(format={"type": "audio/pcmu"}))
        await mine.until("session.updated")
        await mine.play(mulaw(speech()), step=1600)
        completed = [await mine.until(f"{TRANSCRIPTION}.completed") for _ in range(2)]
        begun = mine.of("input_audio_buffer.speech_started")
        assert [each.item_id for each in begun] == [each.item_id for each in completed]
        # The clock goes on.
        assert begun[1].audio_start_ms > mine.of("input_audio_buffer.speech_stopped")[0].audio_end_ms


async def test_tokens_of_this_protocol(tokenizer_file: Path) -> None:
    sections = {"server": {"tokens": ["right", {"token": "porch", "send": ["porch"]}]}}
    async with service(scripted(tokenizer_file), sections) as daemon:
        url = daemon.server.url
        async with talk(url, key="right") as mine:
            await mine.until("session.created")
        async with talk(url, key="wrong") as mine:
            refused = (await mine.until("error")).error
            assert (refused.type, refused.code) == ("invalid_request_error", "unauthorised")
        async with talk(url, key="porch") as mine:
            await mine.play(at_24khz(speech()))
            assert (await mine.until("error")).error.code == "forbidden"
        async with talk(url, key="porch", extra_query={"source": "porch"}) as mine:
            await mine.play(at_24khz(speech()))
            await mine.until(f"{TRANSCRIPTION}.completed")
        browsers: Any = ["realtime", "openai-insecure-api-key.right"]
        async with client(url, "/v1/realtime", subprotocols=browsers) as browser:
            assert browser.ws.subprotocol == "realtime"
            assert (await browser.next())["type"] == "session.created"


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        (transcription(turn_detection={"type": "magic_vad"}), "unsupported_parameter", "turn_detection.type"),
        (
            transcription(turn_detection={"type": "semantic_vad", "eagerness": "wild"}),
            "invalid_value",
            "turn_detection.eagerness",
        ),
        (transcription(transcription={"prompt": "x" * 4097}), "invalid_value", "transcription.prompt"),
        (transcription(transcription={"keywords": "Kallax"}), "invalid_value", "transcription.keywords"),
        (transcription(transcription={"keywords": ["Kallax", "<b>"]}), "invalid_value", "transcription.keywords"),
        (transcription(transcription={"keywords": ["one\ntwo"]}), "invalid_value", "transcription.keywords"),
        (transcription(transcription={"keywords": ["x" * 101]}), "invalid_value", "transcription.keywords"),
        (transcription(transcription={"keywords": [5]}), "invalid_value", "transcription.keywords"),
        (
            transcription(transcription={"keywords": [f"name {number}" for number in range(1001)]}),
            "invalid_value",
            "transcription.keywords",
        ),
        (
            transcription(transcription={"language": "en", "languages": ["de"]}),
            "invalid_value",
            "transcription.languages",
        ),
        (transcription(transcription={"languages": "en"}), "invalid_value", "transcription.languages"),
        (transcription(transcription={"languages": ["en"] * 101}), "invalid_value", "transcription.languages"),
        (transcription(transcription={"diarize": True}), "unsupported_parameter", "transcription.diarize"),
        (transcription(format={"type": "audio/opus"}), "invalid_value", "format.type"),
        (transcription(format={"type": ["audio/pcm"]}), "invalid_value", "format.type"),
        ({"type": "realtime", "instructions": "be kind"}, "unsupported_parameter", "session.type"),
        ({"type": "transcription", "include": ["everything"]}, "unsupported_parameter", "session.include"),
        (
            {"type": "transcription", "audio": {"output": {"voice": "x"}}},
            "unsupported_parameter",
            "session.audio.output",
        ),
    ],
)
async def test_what_cannot_be_given_is_said(
    session: dict[str, Any], code: str, param: str, tokenizer_file: Path
) -> None:
    async with service(scripted(tokenizer_file)) as daemon, talk(daemon.server.url) as mine:
        await mine.connection.send({"type": "session.update", "event_id": "mine-1", "session": session})
        refused = (await mine.until("error")).error
        assert (refused.type, refused.code, refused.event_id) == ("invalid_request_error", code, "mine-1")
        assert refused.param.endswith(param)
        # The session is as it was, and goes on.
        await mine.play(at_24khz(speech()))
        assert (await mine.until(f"{TRANSCRIPTION}.completed")).transcript


async def test_what_only_advises_is_taken_and_said(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "daemon.dialects.advice")
    async with service(scripted(tokenizer_file)) as daemon, talk(daemon.server.url) as mine:
        await mine.connection.session.update(
            session=transcription(
                noise_reduction={"type": "near_field"},
                transcription={
                    "model": "gpt-transcribe",
                    "prompt": "Secret talk of the house.",
                    "delay": "low",
                },
                turn_detection={
                    "type": "semantic_vad",
                    "eagerness": "high",
                    "create_response": True,
                    "interrupt_response": True,
                },
            )
        )
        session = (await mine.until("session.updated")).session
        # What is in force.
        heard = session.audio.input
        assert heard.turn_detection.to_dict() == {"type": "server_vad"}
        assert (heard.noise_reduction, heard.transcription.language, heard.transcription.prompt) == (None, None, "")
        for _ in range(2):
            await mine.play(at_24khz(speech()))
            await mine.until(f"{TRANSCRIPTION}.completed")
            await mine.connection.session.update(session=transcription(noise_reduction={"type": "far_field"}))
    assert not mine.of("error")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "daemon.dialects.advice"]
    assert line == (
        "openai: taken without effect: "
        "noise_reduction, prompt, delay, create_response, interrupt_response, semantic_vad"
    )


async def test_keywords_and_a_prompt_of_names_are_heard(tokenizer_file: Path) -> None:
    jobs: list[Job] = []

    async def heard(mine: Talk) -> tuple[str, ...]:
        await mine.until("session.updated")
        jobs.clear()
        await mine.play(at_24khz(speech()))
        await mine.until(f"{TRANSCRIPTION}.completed")
        (phrases,) = {tuple(phrase.text for phrase in job.vocabulary.phrases) for job in jobs}
        return phrases

    async with service(scripted(tokenizer_file, before=jobs.extend)) as daemon, talk(daemon.server.url) as mine:
        asked: dict[str, Any] = {"keywords": ["Kallax", "Floor  Lamp"], "prompt": "Björn, Thibault"}
        await mine.connection.session.update(session=transcription(transcription=asked))
        assert await heard(mine) == ("Kallax", "Floor Lamp", "Björn", "Thibault")
        told = mine.of("session.updated")[-1].session.audio.input.transcription
        assert (told.keywords, told.prompt) == (["Kallax", "Floor Lamp"], "Björn, Thibault")
        # What is left out stays; what is empty goes.
        await mine.connection.session.update(session=transcription(transcription={"keywords": []}))
        assert await heard(mine) == ("Björn", "Thibault")
        await mine.connection.session.update(session=transcription(transcription={"prompt": "Say it as it was said."}))
        assert await heard(mine) == ()
    assert not mine.of("error")


async def test_a_commit_of_nothing_is_told_with_its_id_and_before_the_clear(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, talk(daemon.server.url) as mine:
        await mine.play(at_24khz(speech()))
        await mine.until(f"{TRANSCRIPTION}.completed")
        for name in ("first", "second"):
            await mine.play(bytes(48000))
            await mine.connection.send({"type": "input_audio_buffer.commit", "event_id": name})
            await mine.connection.send({"type": "input_audio_buffer.clear"})
            await mine.until("input_audio_buffer.cleared")
    kinds = [kind for kind in mine.kinds() if kind in ("error", "input_audio_buffer.cleared")]
    assert kinds == ["error", "input_audio_buffer.cleared"] * 2
    refused = [event.error for event in mine.of("error")]
    assert {each.code for each in refused} == {"input_audio_buffer_commit_empty"}
    assert [each.event_id for each in refused] == ["first", "second"]


async def test_a_clear_comes_behind_the_turn_that_a_commit_ended(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, talk(daemon.server.url) as mine:
        await mine.play(at_24khz(unfinished_speech()))
        await mine.connection.input_audio_buffer.commit()
        await mine.connection.input_audio_buffer.clear()
        await mine.until("input_audio_buffer.cleared")
    kinds = [kind.rpartition(".")[2] for kind in mine.kinds()]
    assert [kind for kind in kinds if kind in ("committed", "completed", "cleared")] == [
        "committed", "completed", "cleared",
    ]  # fmt: skip
    assert mine.of(f"{TRANSCRIPTION}.completed")[0].transcript


async def test_other_events_of_the_protocol_and_rubbish(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, talk(daemon.server.url) as mine:
        await mine.connection.response.create()
        assert (await mine.until("error")).error.code == "unsupported_event"
        for frame, code in [
            ({"type": "dance"}, "invalid_value"),
            ({"type": "input_audio_buffer.append", "audio": "no base64!"}, "invalid_value"),
            ({"type": "input_audio_buffer.append"}, "invalid_value"),
        ]:
            await mine.connection.send(frame)
            assert (await mine.until("error")).error.code == code
        await mine.connection.send_raw("{")
        assert (await mine.until("error")).error.code == "invalid_json"
        await mine.connection.send_raw(b"\x00\x00")
        assert (await mine.until("error")).error.code == "invalid_frame"
        await mine.connection.send_raw(json.dumps({"type": "x" * 2_000_000}))
        with pytest.raises(Exception, match="1009"):
            await mine.until("never")


async def test_off_is_off(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), {"dialects": {"openai": False}}) as daemon:
        with pytest.raises(Exception, match="404"):
            async with talk(daemon.server.url):
                pass


async def test_a_recording_comes_out_right_with_the_shipped_models(tmp_path: Path) -> None:
    with process(tmp_path, TEACHER) as daemon:
        async with talk(daemon.url) as mine:
            await mine.connection.session.update(
                session=transcription(format={"type": "audio/pcm", "rate": 24000}, transcription={"language": "en"})
            )
            await mine.play(at_24khz(sentence()))
            completed = await mine.until(f"{TRANSCRIPTION}.completed")
        assert daemon.terminate() == 0
    assert plain(completed.transcript) == SAID
    assert "Traceback" not in daemon.log


# --- the codec alone -------------------------------------------------------------------------------------------------


def codec(query: str = "") -> dialect.Realtime:
    return dialect.Realtime(Handshake("/v1/realtime", query))


def append(audio: bytes = bytes(4800)) -> str:
    return json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(audio).decode()})


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_base64_may_have_line_breaks(end: str) -> None:
    audio = np.random.default_rng(1).bytes(9600)
    lines = base64.encodebytes(audio).decode().replace("\n", end)
    frame = json.dumps({"type": "input_audio_buffer.append", "audio": lines})
    heard = [message.data for message in codec().decode(frame) if isinstance(message, Audio)]
    assert heard == [audio]


@pytest.mark.parametrize(
    ("audio", "why"),
    [("AAA", "Incorrect padding"), ("-_-_", "Only base64 data is allowed"), ("é", "ASCII"), (5, "a base64 string")],
)
def test_what_is_no_base64_is_told_why(audio: Any, why: str) -> None:
    with pytest.raises(Fault, match=why):
        list(codec().decode(json.dumps({"type": "input_audio_buffer.append", "audio": audio})))


def told(made: dialect.Realtime, *events: Any) -> list[dict[str, Any]]:
    return [json.loads(frame) for event in events for frame in made.encode(event)]


def test_a_stream_begins_with_the_first_audio() -> None:
    made = codec("source=hall")
    assert [type(each) for each in made.greet()] == [Reply]
    assert list(made.decode(append(b"\x00\x00"))) == [
        Start("hall", sample_rate=24000, endpointing=Endpointing()), Audio(b"\x00\x00"),
    ]  # fmt: skip
    assert list(made.decode(append(b"\x01\x00"))) == [Audio(b"\x01\x00")]


def test_turns_become_endpointing() -> None:
    turns = {"type": "server_vad", "threshold": 0.7, "prefix_padding_ms": 100, "silence_duration_ms": 450}
    config = updated(SessionConfig(), transcription(turn_detection=turns))
    assert config.start("x").endpointing == Endpointing(0.7, 0.1, 0.45)
    assert updated_beta(SessionConfig(), {"turn_detection": turns}) == config


@pytest.mark.parametrize("model", ["gpt-realtime-whisper", "gpt-live-transcribe", "gpt-live-transcribe-2026-07-28"])
def test_models_without_turn_detection(model: str) -> None:
    asked = {"model": model}
    assert updated(SessionConfig(), transcription(transcription=asked)).turns is None
    assert updated_beta(SessionConfig(), {"input_audio_transcription": asked}).turns is None
    config = updated(SessionConfig(), transcription(transcription=asked, turn_detection={"type": "server_vad"}))
    assert config.turns == TurnDetection()  # whoever asks for it gets it
    assert updated(config, transcription(transcription=asked)).turns == TurnDetection()
    changed = updated(SessionConfig(), transcription(transcription=asked))
    assert updated(changed, transcription(transcription={"model": "gpt-transcribe"})).turns == TurnDetection()
    (greeting,) = codec(f"intent=transcription&model={model}").greet()
    assert isinstance(greeting, Reply)
    heard = json.loads(greeting.frame)["session"]["audio"]["input"]
    assert (heard["turn_detection"], heard["transcription"]["model"]) == (None, model)


@pytest.mark.parametrize(
    ("languages", "language", "among"),
    [(["en-US", "en"], "en", ()), (["en", "de"], None, ("en", "de")), ([], "fr", ()), (None, "fr", ())],
)
def test_one_of_several_languages(languages: Any, language: str | None, among: tuple[str, ...]) -> None:
    config = updated(SessionConfig(language="fr"), transcription(transcription={"languages": languages}))
    start = config.start("here")
    assert (start.language, start.languages, config.advice) == (language, among, ())
    assert config.as_ga()["audio"]["input"]["transcription"].get("languages", []) == list(among)
    config = updated(config, transcription(transcription={"language": "de"}))
    assert (config.language, config.languages) == ("de", ())


def test_new_phrases_do_not_cut_what_is_being_said() -> None:
    made = codec()

    def starts(**asked: Any) -> list[Start]:
        list(made.decode(json.dumps({"type": "session.update", "session": transcription(transcription=asked)})))
        return [message for message in made.decode(append()) if isinstance(message, Start)]

    assert len(starts(keywords=["one"])) == 1
    told(made, SpeechStarted("x", 1, 0.1))
    assert starts(keywords=["two"], prompt="three") == []
    told(made, SpeechStopped("x", 1, 0.9))
    (start,) = starts()
    assert [phrase.text for phrase in start.vocabulary.phrases] == ["two", "three"]
    told(made, SpeechStarted("x", 2, 1.1))
    assert len(starts(keywords=["four"], language="de")) == 1
    told(made, SpeechStopped("x", 2, 1.9))
    # What has no effect begins nothing.
    assert len(starts(prompt="")) == 1
    assert starts(delay="low", prompt="Write it as it is said.") == []


def test_an_id_that_is_too_long_is_not_kept() -> None:
    made = codec()
    commit = {"type": "input_audio_buffer.commit", "event_id": "x" * 513}
    with pytest.raises(Refused) as refused:
        list(made.decode(json.dumps(commit)))
    assert refused.value.event_id is None


def test_a_model_in_the_address_that_is_no_name() -> None:
    with pytest.raises(Fault, match="256 characters"):
        codec("model=" + "x" * 257)


def test_an_utterance_that_was_silence_is_completed_with_nothing() -> None:
    made = codec()
    list(made.decode(append()))
    found = told(
        made,
        SpeechStarted("x", 1, 0.1), SpeechStopped("x", 1, 0.3),
        SpeechStarted("x", 2, 1.0), SpeechStopped("x", 2, 1.5),
        Final("x", 2, 1.0, 1.5, " hello", 0.9, "student", "en", 1),
    )  # fmt: skip
    completed = [each for each in found if each["type"].endswith("completed")]
    assert [each["transcript"] for each in completed] == ["", "hello"]


def test_a_final_that_changes_its_mind_is_right() -> None:
    made = codec()
    list(made.decode(append()))
    found = told(
        made,
        SpeechStarted("x", 1, 0.1), Partial("x", 1, 0.1, 0.5, " turn of", "", 1), SpeechStopped("x", 1, 0.9),
        Final("x", 1, 0.1, 0.9, " turn on", 0.9, "student", "en", 1),
    )  # fmt: skip
    assert [each["delta"] for each in found if each["type"].endswith("delta")] == ["turn of"]
    assert found[-1]["transcript"] == "turn on"


def test_one_that_failed_is_told_so() -> None:
    made = codec()
    list(made.decode(append()))
    found = told(
        made,
        SpeechStarted("x", 1, 0.1), SpeechStopped("x", 1, 0.3),
        Error("transcription_failed", "utterance 1: out of memory", False, "x"),
        SpeechStarted("x", 2, 1.0), SpeechStopped("x", 2, 1.5),
        Final("x", 2, 1.0, 1.5, " hello", 0.9, "student", "en", 1), Stopped(2.0),
    )  # fmt: skip
    kinds = [each["type"].rpartition(".")[2] for each in found]
    assert [kind for kind in kinds if kind in ("failed", "completed")] == ["failed", "completed"]


def test_what_is_said_after_a_commit_is_another_item() -> None:
    made = codec()
    manual = json.dumps({"type": "session.update", "session": transcription(turn_detection=None)})
    list(made.decode(manual))
    list(made.decode(append(bytes(48000))))
    found = told(made, SpeechStarted("x", 1, 0.1))
    messages = list(made.decode('{"type":"input_audio_buffer.commit"}'))
    assert messages[-1] == Flush("commit")
    list(made.decode(append(bytes(48000))))
    found += told(
        made,
        SpeechStopped("x", 1, 0.9),
        SpeechStarted("x", 2, 1.2), Partial("x", 2, 1.2, 1.6, " two", "", 1),
        Final("x", 1, 0.1, 0.9, " one", 0.9, "student", "en", 1), Flushed("commit"),
    )  # fmt: skip
    first = json.loads(messages[0].frame)["item_id"] if isinstance(messages[0], Reply) else None
    deltas = [(each["item_id"] == first, each["delta"]) for each in found if each["type"].endswith("delta")]
    assert deltas == [(False, "two"), (True, "one")]
    assert (found[-1]["item_id"], found[-1]["transcript"]) == (first, "one")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["server_vad", "semantic_vad", "audio/pcm", "gpt-live-transcribe"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=5)
            | st.sampled_from(
                [
                    "type",
                    "audio",
                    "input",
                    "format",
                    "transcription",
                    "turn_detection",
                    "model",
                    "language",
                    "include",
                    "languages",
                    "keywords",
                    "prompt",
                    "noise_reduction",
                    "delay",
                    "eagerness",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
KINDS = st.sampled_from(
    ["session.update", "transcription_session.update", *(f"input_audio_buffer.{each}" for each in ("append", "commit",
     "clear"))]
)  # fmt: skip
FRAMES = st.lists(
    st.fixed_dictionaries({"type": KINDS, "session": VALUES, "audio": VALUES | st.just("AAAA" * 900)}).map(json.dumps)
    | VALUES.map(json.dumps)
    | st.text()
    | st.binary(max_size=9),
    max_size=6,
)


@given(FRAMES)
def test_whatever_a_client_sends_is_a_message_or_a_fault_of_its_own(frames: list[str | bytes]) -> None:
    made = codec()
    for frame in frames:
        refused: Refused | None = None
        try:
            for message in made.decode(frame):
                assert isinstance(message, Start | Audio | Flush | Discard | Reply)
                if isinstance(message, Reply):
                    json.loads(message.frame)
        except Refused as fault:
            refused = fault
        if refused is not None:
            assert not refused.fatal
            (told_so,) = made.blame(refused)
            assert json.loads(str(told_so).encode())["error"]["code"] == refused.code


def test_an_intent_that_is_not_ours() -> None:
    with pytest.raises(Fault, match="transcription"):
        codec("intent=conversation")
