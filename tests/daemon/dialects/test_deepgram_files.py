"""Deepgram's stock client and its files, against the service; requests by hand; and the query and answer alone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sounds
from deepgram import AsyncDeepgramClient, DeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.environment import DeepgramClientEnvironment
from deepgram.errors import BadRequestError
from deepgram.listen.v1.media.client import MediaClient
from deepgram.types.listen_v1response import ListenV1Response
from foreign import deepgram_client
from harness import DATA, PATIENCE, client, connect, scripted, service, speech, wait_until
from websockets.exceptions import InvalidStatus

from daemon.common.errors import Fault
from daemon.dialects.deepgram_files import FileParameters, Recording, answer, is_container, parse
from daemon.endpoints import uploads
from daemon.service.app import Service
from streaming.events import Final, Notice, Word
from streaming.job import Job

PATH = "/v1/listen"
TWO = (DATA / "two_sentences.flac").read_bytes()


def http_url(url: str) -> str:
    return url.replace("ws", "http", 1)


@asynccontextmanager
async def stock(daemon: Service, key: str = "none is needed") -> AsyncIterator[AsyncDeepgramClient]:
    async with httpx.AsyncClient(timeout=PATIENCE) as web:
        yield deepgram_client(http_url(daemon.server.url), api_key=key, httpx_client=web)


async def transcribe(daemon: Service, audio: bytes = TWO, key: str = "none is needed", **options: Any) -> Any:
    async with stock(daemon, key) as made:
        return await made.listen.v1.media.transcribe_file(request=audio, **options)


async def send(
    daemon: Service, path: str = PATH, content: Any = TWO, method: str = "POST", **headers: str
) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(base_url=http_url(daemon.server.url), timeout=PATIENCE) as made:
        return await made.request(method, path, content=content, headers=headers)


def check_refusal(response: httpx.Response, status: int, code: str) -> str:
    """The refusal is in their form; its message."""
    body = response.json()
    assert (response.status_code, set(body)) == (status, {"err_code", "err_msg", "request_id"})
    assert body["err_code"] == code
    assert response.headers["dg-request-id"] == body["request_id"]
    assert response.headers["dg-error"] == body["err_msg"]
    assert response.headers["Content-Type"] == "application/json"
    return str(body["err_msg"])


# --- the stock client ------------------------------------------------------------------------------------------------


async def test_a_file_and_who_else_hears_of_it(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/events?source=deepgram") as other,
    ):
        heard = await transcribe(daemon, model="nova-3", utterances=True, language="en-US")
        finals = [await other.until("final"), await other.until("final")]
    assert isinstance(heard, ListenV1Response)
    metadata = heard.metadata
    assert metadata.sha256 == hashlib.sha256(TWO).hexdigest()
    assert metadata.duration == pytest.approx(5.535)
    assert metadata.channels == 1
    assert abs((datetime.now(UTC) - metadata.created).total_seconds()) < 2 * PATIENCE
    assert metadata.model_info[metadata.models[0]] == {"name": "scripted", "version": "latest", "arch": "whisper"}
    assert [each["parameter"] for each in metadata.warnings] == ["model"]  # type: ignore[attr-defined]
    (channel,) = heard.results.channels
    assert channel.alternatives is not None
    (alternative,) = channel.alternatives
    assert alternative.transcript == " ".join(final["text"].strip() for final in finals)
    assert alternative.confidence == pytest.approx(np.mean([final["confidence"] for final in finals]), abs=0.001)
    assert alternative.words is not None
    assert [word.word for word in alternative.words] == (alternative.transcript or "").split()
    assert channel.detected_language is None  # it was told
    utterances = heard.results.utterances or []
    assert [(each.id, each.start, each.end, each.channel) for each in utterances] == [
        (final["id"], final["start"], final["end"], 0) for final in finals
    ]
    assert [each.transcript for each in utterances] == [final["text"].strip() for final in finals]
    assert [word for each in utterances for word in each.words or []] != []


async def test_the_stock_client_without_asyncio_and_with_pieces(tokenizer_file: Path) -> None:
    """As in their examples for long files: an iterator, so that no length is known."""

    def talk(url: str) -> Any:
        environment = DeepgramClientEnvironment(base=url, production=url, agent=url, agent_rest=url)
        pieces = (TWO[at : at + 5000] for at in range(0, len(TWO), 5000))
        with httpx.Client(timeout=PATIENCE) as web:
            made = DeepgramClient(api_key="none is needed", environment=environment, httpx_client=web)
            return made.listen.v1.media.transcribe_file(request=pieces, model="nova-3")

    async with service(scripted(tokenizer_file)) as daemon:
        heard = await asyncio.to_thread(talk, http_url(daemon.server.url))
    assert heard.metadata.sha256 == hashlib.sha256(TWO).hexdigest()
    assert heard.results.channels[0].alternatives[0].transcript.startswith("turn on")
    assert heard.results.utterances is None


@pytest.mark.parametrize("asked", [{"detect_language": True}, {"language": "multi"}])
async def test_the_language_that_was_detected(asked: dict[str, Any], tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file, languages=("en", "de"))) as daemon:
        heard = await transcribe(daemon, **asked)
    (channel,) = heard.results.channels
    alternative = channel.alternatives[0]
    assert channel.detected_language == "en"
    multi = asked.get("language") == "multi"
    assert alternative.languages == (["en"] if multi else None)
    assert {word.language for word in alternative.words} == ({"en"} if multi else {None})


async def test_each_side_of_a_call_by_itself(tokenizer_file: Path) -> None:
    said = np.frombuffer(speech(), "<i2")
    sides = np.stack([np.concatenate([said, 0 * said]), np.concatenate([0 * said, said])], axis=1)
    async with service(scripted(tokenizer_file), {"server": {"max_streams": 2}}) as daemon:
        heard = await transcribe(daemon, sounds.written("WAV", sides), multichannel=True, utterances=True)
        mixed = await transcribe(daemon, sounds.written("WAV", sides))
        mono = await transcribe(daemon, sounds.written("WAV", said), multichannel=True)
        assert daemon.server.slots._taken == 0
    assert [len(channel.alternatives[0].words) > 3 for channel in heard.results.channels] == [True, True]
    assert [each.channel for each in heard.results.utterances] == [0, 1]
    assert heard.results.utterances[1].start == pytest.approx(
        heard.results.utterances[0].start + len(said) / 16000, abs=0.1
    )
    counts = [(each.metadata.channels, len(each.results.channels)) for each in (heard, mixed, mono)]
    assert counts == [(2, 2), (2, 1), (1, 1)]


async def test_each_channel_takes_a_slot_and_needs_a_right(tokenizer_file: Path) -> None:
    data = sounds.written("WAV", np.stack([np.frombuffer(speech(), "<i2")] * 2, axis=1))
    tokens = [{"token": "left", "send": ["deepgram-1"]}, {"token": "both", "send": ["deepgram-*"]}]
    sections = {"server": {"max_streams": 1, "tokens": tokens}}
    async with service(scripted(tokenizer_file), sections) as daemon:
        path = f"{PATH}?multichannel=true"
        left = await send(daemon, path, data, Authorization="Token left")
        assert "deepgram-2" in check_refusal(left, 403, "INSUFFICIENT_PERMISSIONS")
        full = await send(daemon, path, data, Authorization="Token both")
        check_refusal(full, 503, "SERVICE_UNAVAILABLE")
        assert full.headers["Retry-After"] == "10"
        assert daemon.server.slots._taken == 0


async def test_phrases_reach_the_engine_and_advice_the_metadata(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    jobs: list[Job] = []
    asked: dict[str, Any] = {"keyterm": ["Kallax", "Floor Lamp"], "keywords": ["Lumen:2"], "smart_format": True}
    live = {"interim_results": "true", "endpointing": "300", "utterance_end_ms": "1000", "vad_events": "true"}
    async with service(scripted(tokenizer_file, before=jobs.extend)) as daemon:
        jobs.clear()
        heard = await transcribe(
            daemon, **asked, request_options={"additional_query_parameters": {**live, "extra": "a:b"}}
        )
    assert {each.text: each.weight for each in jobs[-1].vocabulary.phrases} == {
        "Kallax": 1.0, "Floor Lamp": 1.0, "Lumen": 2.0,
    }  # fmt: skip
    names = ["smart_format", "interim_results", "vad_events", "endpointing", "utterance_end_ms"]
    assert sorted(each["parameter"] for each in heard.metadata.warnings) == sorted(names)
    assert heard.metadata.extra == {"a": "b"}
    (line,) = [line for record in caplog.records if (line := record.getMessage()).startswith("deepgram: taken")]
    assert all(name in line for name in names)
    assert not any("Kallax" in each.getMessage() for each in caplog.records if each.name.startswith("daemon"))


@pytest.mark.parametrize(("split", "count"), [(0.6, 2), (3.0, 1)])
async def test_utt_split_is_the_pause_that_ends_an_utterance(split: float, count: int, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        heard = await transcribe(daemon, utterances=True, utt_split=split)
    assert len(heard.results.utterances) == count


@pytest.mark.parametrize("encoding", ["linear16", "mulaw"])
async def test_samples_without_a_header(encoding: str, tokenizer_file: Path) -> None:
    said = np.frombuffer(speech(), "<i2")
    data = said.tobytes() if encoding == "linear16" else sounds.written("RAW", said, subtype="ULAW")
    async with service(scripted(tokenizer_file)) as daemon:
        plain = await transcribe(daemon, sounds.written("WAV", said))
        options = {"additional_query_parameters": {"sample_rate": "16000"}}
        heard = await transcribe(daemon, data, encoding=encoding, request_options=options)
        odd = await transcribe(daemon, said.tobytes() + b"x", encoding="linear16", request_options=options)
        # Their clients send the same with a header, too.
        wav = await transcribe(daemon, sounds.written("WAV", said), encoding=encoding, request_options=options)
    assert heard.metadata.duration == plain.metadata.duration
    assert heard.results.channels[0].alternatives[0].transcript.startswith("turn on")
    (damage,) = odd.metadata.warnings
    assert (damage["type"], "1 of 2 bytes" in damage["message"]) == ("damaged", True)
    assert wav.results == plain.results
    assert [each["parameter"] for each in wav.metadata.warnings] == ["encoding"]


async def test_what_is_missing_of_a_damaged_file_is_said(tokenizer_file: Path) -> None:
    whole = sounds.written("WAV", np.frombuffer(speech() * 3, "<i2"))
    async with service(scripted(tokenizer_file)) as daemon:
        heard = await transcribe(daemon, whole[: 44 + 2 * len(speech())], utterances=True)
    (damage,) = heard.metadata.warnings
    assert (damage["parameter"], damage["type"]) == ("audio", "damaged")
    assert "the file is cut off" in damage["message"]
    assert len(heard.results.utterances) == 2


async def test_silence_is_an_answer_too(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        heard = await transcribe(
            daemon, sounds.written("WAV", np.zeros(32000, np.int16)), utterances=True, detect_language=True
        )
    (channel,) = heard.results.channels
    assert (channel.alternatives[0].transcript, channel.alternatives[0].confidence) == ("", 0.0)
    assert channel.alternatives[0].words == heard.results.utterances == []
    assert channel.detected_language is None


# --- who may ---------------------------------------------------------------------------------------------------------

TOKENS = {"server": {"tokens": ["good", {"token": "porch", "send": ["porch"]}]}}


async def test_keys_are_tokens(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), TOKENS) as daemon:
        with pytest.raises(ApiError) as caught:
            await transcribe(daemon, key="bad")
        assert caught.value.status_code == 401
        assert (await transcribe(daemon, key="good")).results.channels
        check_refusal(await send(daemon), 401, "INVALID_AUTH")
        check_refusal(await send(daemon, Authorization="Token porch"), 403, "INSUFFICIENT_PERMISSIONS")
        for path, header in (
            (f"{PATH}?source=porch", "Token porch"), (f"{PATH}?source=", "Bearer good"), (f"{PATH}///?token=good", ""),
        ):  # fmt: skip
            assert (await send(daemon, path, Authorization=header)).status_code == 200


# --- what will not do ------------------------------------------------------------------------------------------------


async def test_a_url_is_not_fetched(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        async with stock(daemon) as made:
            with pytest.raises(BadRequestError) as caught:
                await made.listen.v1.media.transcribe_url(url="https://example.com/a.wav")
        assert caught.value.body["err_code"] == "Bad Request"
        assert "fetches nothing" in caught.value.body["err_msg"]
        message = check_refusal(await send(daemon, content=b"{}", Content_Type="application/json"), 400, "Bad Request")
        assert "send the audio itself" in message


@pytest.mark.parametrize(
    ("query", "content", "says", "metric"),
    [
        ("redact=pci", TWO, "redact is not supported", "unsupported"),
        ("diarize=true", TWO, "diarize is not supported", "unsupported"),
        ("callback=http://x", TWO, "sent only on this connection", "unsupported"),
        ("custom_topic=x", TWO, "topics are not detected", "unsupported"),
        ("encoding=g729", TWO, "encoding must be one of", "unsupported"),
        ("encoding=linear16", TWO, "sample_rate is required", "bad_parameter"),
        ("utt_split=nan", TWO, "utt_split must be seconds", "bad_parameter"),
        ("utterances=maybe", TWO, "utterances must be true or false", "bad_parameter"),
        ("colour=red", TWO, "unknown parameter", "unknown_parameter"),
        ("keyterm=" + "a" * 101, TWO, "keyterm", "bad_vocabulary"),
        ("language=tlh", TWO, "language must be one of", "bad_language"),
        ("source=a/b", TWO, "source", "bad_source"),
        ("", b"no sound", "is not a sound file that can be read", "bad_audio"),
        ("", b"", "has no body", "missing_file"),
        ("encoding=linear32&sample_rate=8000", b"xyz", "in the middle of a sample", "bad_audio"),
    ],
)
async def test_what_will_not_do(query: str, content: bytes, says: str, metric: str, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        assert says in check_refusal(await send(daemon, f"{PATH}?{query}", content), 400, "Bad Request")
        assert daemon.pipeline.metrics.client_errors.labels(metric)._value.get() == 1
        assert (await send(daemon)).status_code == 200
        assert daemon.server.slots._taken == 0


async def test_bodies_that_are_too_big_or_packed_or_forms(tokenizer_file: Path) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield bytes(1000)

    async with service(scripted(tokenizer_file), {"dialects": {"max_upload": 10_000}}) as daemon:
        check_refusal(await send(daemon, content=bytes(20_000)), 413, "PAYLOAD_TOO_LARGE")
        check_refusal(await send(daemon, content=endless()), 413, "PAYLOAD_TOO_LARGE")
        check_refusal(await send(daemon, content=b"x", Content_Encoding="gzip"), 400, "Bad Request")
        form = await send(daemon, content=b"x", Content_Type="multipart/form-data; boundary=x")
        assert "not a form" in check_refusal(form, 400, "Bad Request")
        assert daemon.server.slots._taken == 0


async def test_a_body_that_trickles_gives_its_slot_back(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_IDLE", 0.3)
    async with service(scripted(tokenizer_file)) as daemon:
        host, _, port = daemon.server.url.removeprefix("ws://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nRIFF".encode())
        answered = await asyncio.wait_for(reader.readuntil(b"}"), PATIENCE)
        assert b'"err_msg": "half a request arrived' in answered
        await wait_until(lambda: daemon.server.slots._taken == 0)
        writer.close()


async def test_what_their_service_has_beside_it_is_not_there(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        for method, path in (
            ("GET", "/v2/listen"), ("POST", "/v2/listen/"), ("POST", "/v1/auth/grant"), ("GET", "/v1/projects/7/keys"),
            ("POST", "/v1/speak"), ("POST", "/v1/read"),
        ):  # fmt: skip
            check_refusal(await send(daemon, path, b"", method), 404, "NOT_FOUND")
        for method in ("GET", "PUT", "DELETE"):
            refusal = await send(daemon, f"{PATH}/", b"", method)
            check_refusal(refusal, 405, "METHOD_NOT_ALLOWED")
            assert refusal.headers["Allow"] == "POST"
        with pytest.raises(InvalidStatus) as flux:
            await connect(f"{daemon.server.url}/v2/listen?model=flux-general-en")
        assert flux.value.response.status_code == 404
        assert json.loads(flux.value.response.body or b"")["err_code"] == "NOT_FOUND"


async def test_switched_off_it_is_not_there(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), {"dialects": {"deepgram": False}}) as daemon:
        answered = await send(daemon)
        assert (answered.status_code, "err_code" in answered.json()) == (405, False)
        assert (await send(daemon, "/v2/listen", b"", "GET")).status_code == 404
    async with service(scripted(tokenizer_file), {"dialects": {"openai": False}}) as daemon:
        assert (await send(daemon)).status_code == 200  # without the other one, too


# --- beside live streams ---------------------------------------------------------------------------------------------


async def test_the_stop_makes_final_what_was_heard(tokenizer_file: Path) -> None:
    entered, opened = threading.Event(), threading.Event()

    def gate(jobs: Sequence[Job]) -> None:
        if any(job.audio.size > 16000 for job in jobs):
            entered.set()
            assert opened.wait(4 * PATIENCE)

    long = sounds.written("WAV", np.frombuffer(speech() * 30, "<i2"))
    async with (
        service(scripted(tokenizer_file, before=gate), {"scheduler": {"backlog": 1.0}}) as daemon,
        client(daemon.server.url, "/v1/events") as other,
    ):
        sending = asyncio.create_task(send(daemon, content=long))
        await asyncio.to_thread(entered.wait, PATIENCE)
        daemon.stop()
        await wait_until(lambda: daemon.server.readers._stop_at is not None)
        asyncio.get_running_loop().call_later(1.0, opened.set)  # it hears no more by then
        check_refusal(await sending, 503, "SERVICE_UNAVAILABLE")
        assert (await other.until("final"))["text"]


async def test_an_engine_that_fails_and_a_client_that_leaves(tokenizer_file: Path) -> None:
    entered = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail(jobs: Sequence[Job]) -> None:
        if any(job.audio.size > 16000 for job in jobs):
            loop.call_soon_threadsafe(entered.set)
            raise RuntimeError("no such kernel")

    async with service(scripted(tokenizer_file, before=fail)) as daemon:
        check_refusal(await send(daemon), 500, "INTERNAL_SERVER_ERROR")
        entered.clear()
        sending = asyncio.create_task(send(daemon, content=sounds.written("WAV", np.frombuffer(speech() * 20, "<i2"))))
        await asyncio.wait_for(entered.wait(), PATIENCE)
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        await wait_until(lambda: daemon.pipeline.sources.open_streams == 0 and daemon.server.slots._taken == 0)


# --- the query and the answer alone ----------------------------------------------------------------------------------


def test_each_parameter_of_the_stock_client_is_known() -> None:
    """Whatever it may ask for is accepted, or refused as itself: none is an unknown parameter."""
    names = set(inspect.signature(MediaClient.transcribe_file).parameters) - {"self", "request", "request_options"}
    assert {"utterances", "detect_language", "custom_topic"} <= names  # it is their signature that was read
    for name in names:
        for value in ("x", "true", "1"):
            assert code_of(f"{name}={value}") != "unknown_parameter", name


def code_of(query: str) -> str | None:
    try:
        parse(query)
    except Fault as fault:
        return fault.code
    return None


@pytest.mark.parametrize(
    ("query", "language", "languages", "detects", "warned"),
    [
        ("", None, (), False, []),
        ("language=en-US", "en", (), False, []),
        ("language=multi&language_hint=de&language_hint=en", None, ("de", "en"), True, []),
        ("detect_language=true", None, (), True, []),
        ("detect_language=de&detect_language=en-GB", None, ("de", "en"), True, []),
        ("detect_language=de&language_hint=en", None, ("de",), True, []),
        ("detect_language=false", None, (), False, []),
        ("detect_language=true&language=en", "en", (), False, ["detect_language"]),
    ],
)
def test_languages(
    query: str, language: str | None, languages: tuple[str, ...], detects: bool, warned: list[str]
) -> None:
    asked = parse(query)
    assert (asked.start.language, asked.start.languages, asked.detects) == (language, languages, detects)
    assert [each["parameter"] for each in asked.warnings] == warned


@pytest.mark.parametrize(
    ("query", "written"),
    [
        ("", False),
        ("punctuate=true", True),
        ("smart_format=true", True),
        ("paragraphs=true", True),
        ("detect_language=true", True),
        ("numerals=true", False),
    ],
)
def test_when_texts_are_as_they_are_written(query: str, written: bool) -> None:
    assert parse(query).written is written


@pytest.mark.parametrize(
    ("split", "pause", "warned"), [("1.5", 1.5, 0), ("0", 0.2, 1), ("300", 10.0, 1), ("", None, 0)]
)
def test_a_pause_is_the_nearest_that_is_possible(split: str, pause: float | None, warned: int) -> None:
    asked = parse(f"utt_split={split}")
    assert (asked.start.endpointing.hangover, len(asked.warnings)) == (pause, warned)


def test_the_form_of_a_file_is_its_own() -> None:
    raw = parse("encoding=mulaw&sample_rate=8000&channels=2")
    form = (raw.start.encoding, raw.start.sample_rate, raw.start.channels)
    assert (raw.headerless, form, raw.warnings) == (True, ("mulaw", 8000, 2), ())
    for query in ("encoding=flac&sample_rate=8000&channels=2", "sample_rate=8000&channels=2"):
        asked = parse(query)
        assert not asked.headerless
        assert [each["parameter"] for each in asked.warnings] == ["sample_rate", "channels"]


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "AIFF", "AU", *sounds.KINDS])
def test_which_files_say_what_is_in_them(kind: str) -> None:
    said = np.frombuffer(speech(), "<i2")
    data = sounds.encoded(kind, said) if kind in sounds.KINDS else sounds.written(kind, said)
    assert is_container(data[:16]) is (kind != "aac")  # whose frames alone could be samples
    assert not is_container(said[:8].tobytes())


def final(source: str, number: int, start: float, text: str, language: str | None, confidence: float = 0.9) -> Final:
    words = tuple(
        Word(word, start + at / 10, start + at / 10 + 0.1, confidence) for at, word in enumerate(text.split())
    )
    id = f"{source}-{number}"
    return Final(source, number, start, start + 1, f" {text}", confidence, "student", language, 5, words, 1, id)


def answered(
    finals: Sequence[Final], asked: FileParameters, *sources: str, teacher: str | None = None, **more: Any
) -> dict[str, Any]:
    created = datetime(2026, 1, 2, tzinfo=UTC)
    recording = Recording("ab", 9.87654, 2, sources or ("x",), False, "small", teacher, created)
    body, headers = answer(finals, recording, asked, **more)
    read: dict[str, Any] = json.loads(body)
    assert headers["dg-request-id"] == read["metadata"]["request_id"]
    return read


def test_languages_of_an_answer_come_by_their_words() -> None:
    finals = [final("x", 1, 0, "ja", "de"), final("x", 2, 2, "well then, Kallax.", "en", 0.5)]
    body = answered(finals, parse("language=multi&punctuate=true&utterances=true"))
    (channel,) = body["results"]["channels"]
    (alternative,) = channel["alternatives"]
    assert (channel["detected_language"], alternative["languages"]) == ("en", ["en", "de"])
    assert [word["language"] for word in alternative["words"]] == ["de", "en", "en", "en"]
    assert [(word["word"], word["punctuated_word"]) for word in alternative["words"]][-1] == ("kallax", "Kallax.")
    assert alternative["confidence"] == pytest.approx((0.9 + 3 * 0.5) / 4)
    assert [each["languages"] for each in body["results"]["utterances"]] == [["de"], ["en"]]


def test_channels_and_utterances_in_the_order_of_time() -> None:
    finals = [final("x-2", 1, 3, "c", "en"), final("x-1", 1, 1, "A,", "en"), final("x-2", 2, 5, "D", "en")]
    body = answered(finals, parse("utterances=true"), "x-1", "x-2")
    texts = [channel["alternatives"][0]["transcript"] for channel in body["results"]["channels"]]
    assert texts == ["a", "c d"]
    utterances = body["results"]["utterances"]
    assert [(each["channel"], each["transcript"]) for each in utterances] == [(0, "a"), (1, "c"), (1, "d")]
    assert "punctuated_word" not in utterances[0]["words"][0]


def test_metadata() -> None:
    teacher = Final("x", 1, 0, 1, "a", 0.9, "teacher", None, 5)
    metadata = answered(
        [teacher], parse("model=small&extra=a:b"), teacher="large", notices=[Notice("damaged", "it is cut off", "x")]
    )["metadata"]
    assert [metadata["model_info"][each]["name"] for each in metadata["models"]] == ["small", "large"]
    assert metadata["warnings"] == [{"parameter": "audio", "type": "damaged", "message": "it is cut off"}]
    assert (metadata["created"], metadata["duration"]) == ("2026-01-02T00:00:00.000Z", 9.877)
    assert metadata["extra"] == {"a": "b"}
