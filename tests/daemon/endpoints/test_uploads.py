"""Files to transcribe: OpenAI's stock client, unmodified, and forms by hand, against the service."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import io
import json
import logging
import math
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
import sounds
from harness import (
    DATA,
    PATIENCE,
    TEACHER,
    certificate,
    client,
    others_turns,
    plain,
    process,
    scripted,
    service,
    speech,
    wait_until,
)
from openai import AsyncOpenAI
from test_websocket import fetch
from tokenizers import Tokenizer

from bench.player import DEMO, said_in
from daemon.core import audio_files as files
from daemon.endpoints import limits, uploads
from daemon.service.app import Service
from streaming.job import Job
from streaming.recording import RecordingReader, Samples

FLAC = DATA / "turn_on_the_kitchen_light.flac"
PATH = "/v1/audio/transcriptions"


def http_url(url: str) -> str:
    return url.replace("ws", "http", 1)


def file_of(times: int = 1, format: str = "WAV") -> bytes:
    """The recording, said so often, as a file."""
    samples = np.frombuffer(speech() * times, "<i2")
    out = io.BytesIO()
    soundfile.write(out, samples, 16000, format=format)
    return out.getvalue()


@asynccontextmanager
async def stock(url: str, **options: Any) -> AsyncIterator[AsyncOpenAI]:
    settings = {"api_key": "any", "max_retries": 0, "timeout": PATIENCE, **options}
    async with AsyncOpenAI(base_url=http_url(url) + "/v1", **settings) as made:
        yield made


async def transcribe(url: str, **form: Any) -> Any:
    async with stock(url) as made:
        return await made.audio.transcriptions.create(**{"model": "whisper-1", "file": FLAC, **form})


async def post(url: str, fields: Sequence[tuple[str, Any]], **options: Any) -> httpx.Response:
    files = [(name, value if isinstance(value, tuple) else (None, value)) for name, value in fields]
    async with httpx.AsyncClient(base_url=http_url(url), timeout=PATIENCE) as made:
        return await made.post(options.pop("path", PATH), files=files, **options)


AUDIO = ("file", ("a.wav", file_of()))


# --- the stock client ------------------------------------------------------------------------------------------------


async def test_every_format(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url, "/v1/events") as other:
        url = daemon.server.url
        plain = await transcribe(url)
        final = await other.until("final")
        assert plain.text == final["text"].strip()
        assert plain.text.startswith("turn on")
        assert final["source"] == "openai"
        assert plain.usage.seconds == 4 or plain.usage.seconds == -(-len(speech()) // 32000)
        assert await transcribe(url, response_format="text") == plain.text + "\n"
        start, end = final["start"], final["end"]
        assert (await transcribe(url, response_format="vtt")) == (
            f"WEBVTT\n\n00:00:{start:06.3f} --> 00:00:{end:06.3f}\n{plain.text}\n\n"
        )
        cue = f"1\n00:00:{start:06.3f} --> 00:00:{end:06.3f}\n{plain.text}\n\n".replace(".", ",")
        assert (await transcribe(url, response_format="srt")) == cue
        verbose = await transcribe(
            url, response_format="verbose_json", timestamp_granularities=["word", "segment"], language="en"
        )
        assert verbose.duration == pytest.approx(len(speech()) / 32000, abs=0.001)
        assert (verbose.language, verbose.text) == ("en", plain.text)
        (segment,) = verbose.segments
        assert (segment.start, segment.end, segment.text) == (round(start, 3), round(end, 3), plain.text)
        assert segment.avg_logprob == pytest.approx(math.log(0.95), abs=1e-4)
        assert Tokenizer.from_file(str(tokenizer_file)).decode(segment.tokens).strip() == plain.text
        assert segment.no_speech_prob is None  # this engine cannot tell
        assert segment.temperature == 0
        assert segment.compression_ratio > 0
        assert not {"tokens", "log_prob", "no_speech"} & final.keys()  # of these only who asks for them is told
        assert [word.word for word in verbose.words] == plain.text.split()
        assert all(a.start <= b.start for a, b in zip(verbose.words, verbose.words[1:], strict=False))
        unsure = await transcribe(url, include=["logprobs"])
        assert [each.token for each in unsure.logprobs] == plain.text.split()


async def test_segments_by_timestamps(tokenizer_file: Path) -> None:
    """A file of more than a window: every format has the spans of its texts."""
    sections = {"files": {"long_form": "timestamps"}}
    recording = ("ten.wav", file_of(20))
    async with service(scripted(tokenizer_file, script=" ".join(map(str, range(400)))), sections) as daemon:
        url = daemon.server.url
        verbose = await transcribe(
            url, file=recording, response_format="verbose_json", timestamp_granularities=["word", "segment"]
        )
        srt = await transcribe(url, file=recording, response_format="srt")
        streamed = await post(url, [("file", recording), ("stream", "true")])
    assert verbose.duration > 30
    assert len(verbose.segments) > 1
    times = [time for segment in verbose.segments for time in (segment.start, segment.end)]
    assert times == sorted(times)
    assert times[-1] <= verbose.duration
    assert [word.word for word in verbose.words] == verbose.text.split()
    starts = [word.start for word in verbose.words]
    assert starts == sorted(starts)
    assert srt.count(" --> ") == len(verbose.segments)
    assert streamed.text.count("transcript.text.delta") == len(verbose.segments)


async def test_a_stream_of_events(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, stock(daemon.server.url) as made:
        events: list[Any] = [
            event
            async for event in await made.audio.transcriptions.create(
                model="whisper-1", file=("three.wav", file_of(3)), stream=True
            )
        ]
    *deltas, done = events
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert len(deltas) > 1
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas) == done.text


async def test_models_and_the_same_connection_for_all(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, stock(daemon.server.url) as made:
        assert [model.id async for model in made.models.list()] == ["scripted"]
        await made.audio.transcriptions.create(model="tiny-en", file=FLAC)
        # Of a connection that began with a POST the next request is a GET.
        assert [model.id async for model in made.models.list()] == ["scripted"]
        connection = http.client.HTTPConnection(daemon.server.url.removeprefix("ws://"), timeout=PATIENCE)

        def by_hand() -> list[tuple[int, str]]:
            answers = []
            for method, path in [("POST", "/nothing"), ("GET", "/healthz"), ("GET", "/nothing"), ("PUT", PATH)]:
                connection.request(method, path)
                response = connection.getresponse()
                answers.append((response.status, response.read().decode()))
            connection.close()
            return answers

        for name in ("whisper-1", "gpt-4o-transcribe", "tiny-en", "openai/whisper-large-v3"):
            assert (await made.models.retrieve(name)).id == name
        for name in ("a b", "x" * 257, "../x", "\N{SNOWMAN}", "a//b"):
            with pytest.raises(openai.NotFoundError) as missing:
                await made.models.retrieve(name)
            assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        answers = await asyncio.to_thread(by_hand)
        assert [status for status, _ in answers] == [405, 200, 404, 405]
        assert json.loads(answers[0][1])["error"]["type"] == "invalid_request_error"
        assert answers[1][1] == "alive\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_any_other_method_is_answered_whether_or_not_it_brings_a_body(method: str, tokenizer_file: Path) -> None:
    def ask(address: str, body: bytes | None) -> tuple[int, str | None]:
        with contextlib.closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
            connection.request(method, "/healthz", body)
            response = connection.getresponse()
            return response.status, response.getheader("Allow")

    async with service(scripted(tokenizer_file)) as daemon:
        address = daemon.server.url.removeprefix("ws://")
        for body in (None, b"x"):
            assert await asyncio.to_thread(ask, address, body) == (405, "GET, HEAD")


@pytest.mark.parametrize("kind", ["AIFF", "OGG", *sounds.KINDS])
async def test_every_kind_that_people_record(kind: str, tokenizer_file: Path) -> None:
    said = np.frombuffer(speech(), "<i2")
    data = sounds.encoded(kind, said) if kind in sounds.KINDS else sounds.written(kind, said)
    async with service(scripted(tokenizer_file)) as daemon:
        answer = await transcribe(daemon.server.url, file=("a", data), response_format="verbose_json")
    assert answer.text.startswith("turn on")
    assert answer.duration == pytest.approx(said.size / 16000, abs=0.15)
    assert "warnings" not in answer.model_extra


BROKEN = {
    "a chain": (sounds.encoded("ogg opus", np.frombuffer(speech(), "<i2")) * 2, 2, None),
    "a pipe's flac": (sounds.of_unknown_length(file_of(2, "FLAC")), 2, None),
    "an mp3 without Xing": (sounds.encoded("mp3 without Xing", np.frombuffer(speech() * 2, "<i2")), 2, None),
    "a wav without sizes": (sounds.with_data_size(file_of(2), 0), 2, None),
    "a wav that is cut off": (file_of(3)[: 44 + 2 * len(speech())], 2, "the file is cut off"),
    "a flac that breaks off": (file_of(4, "FLAC")[: round(0.55 * len(file_of(4, "FLAC")))], 2, "announces"),
}
"""Name -> a file, how often it says the sentence, and what the answer says of it."""


@pytest.mark.parametrize("name", BROKEN)
async def test_what_a_player_plays_is_heard_and_what_is_missing_is_said(name: str, tokenizer_file: Path) -> None:
    data, times, says = BROKEN[name]
    async with service(scripted(tokenizer_file)) as daemon:
        url = daemon.server.url
        answer = await transcribe(url, file=("a", data), response_format="verbose_json")
        assert len(answer.segments) == times
        assert answer.duration == pytest.approx(times * len(speech()) / 32000, abs=1.0)
        assert answer.usage.seconds == -(-answer.duration // 1)
        (warning,) = (answer.model_extra or {}).get("warnings", [None])
        assert warning is None if says is None else says in warning
        srt = await post(url, [("file", ("a", data)), ("response_format", "srt")])
        assert srt.headers.get("Whisperd-Warning") == warning
        stream = await post(url, [("file", ("a", data)), ("stream", "true")])
        done = json.loads(stream.text.split("data: ")[-1])
        assert done.get("warnings", [None]) == [warning]


async def test_a_file_that_is_silence_once_it_is_mixed(tokenizer_file: Path) -> None:
    said = np.frombuffer(speech(), "<i2") // 2
    data = sounds.written("WAV", np.stack([said, -said], 1))
    async with service(scripted(tokenizer_file)) as daemon:
        answer = await transcribe(daemon.server.url, file=("a", data))
    (warning,) = answer.model_extra["warnings"]
    assert (answer.text, warning.partition(",")[0]) == ("", "the file: the channels are each other's opposite")


async def test_a_file_is_decoded_beside_the_loop(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    class Watched(RecordingReader):
        def __init__(self, file: IO[bytes]) -> None:
            threads.add(threading.current_thread())
            super().__init__(file)

        def read(self) -> Samples | None:
            threads.add(threading.current_thread())
            return super().read()

    monkeypatch.setattr(files, "RecordingReader", Watched)
    async with service(scripted(tokenizer_file)) as daemon:
        await transcribe(daemon.server.url, file=("a", file_of(3)))
    assert threads
    assert threading.main_thread() not in threads


async def test_years_of_silence_in_a_few_bytes_have_an_end(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_LONGEST", 36)
    silence = sounds.written("FLAC", np.zeros(16000 * 200, np.int16))
    async with service(scripted(tokenizer_file)) as daemon:
        answer = await transcribe(daemon.server.url, file=("a", silence))
    assert answer.usage.seconds < 40
    assert "the file: only the first 0.01 h were heard" in answer.model_extra["warnings"]


async def test_tls_tokens_and_sources(tokenizer_file: Path, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    tokens = ["right", {"token": "porch", "send": ["porch"]}]
    sections = {"server": {"tokens": tokens, "certificate": str(cert), "key": str(key)}}
    async with service(scripted(tokenizer_file), sections) as daemon:

        async def status(token: str, **options: Any) -> int:
            async with (
                httpx.AsyncClient(verify=ssl.create_default_context(cafile=cert), timeout=PATIENCE) as web,
                stock(daemon.server.url, api_key=token, http_client=web) as made,
            ):
                try:
                    await made.audio.transcriptions.create(model="x", file=FLAC, **options)
                except openai.APIStatusError as error:
                    return error.status_code
                return 200

        assert await status("right") == 200
        assert await status("wrong") == 401
        assert await status("porch") == 403
        assert await status("porch", extra_query={"source": "porch"}) == 200


# --- what will not do ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ([("model", "x")], 400, "missing_file", None),
        ([AUDIO, AUDIO], 400, "bad_form", None),
        ([("file", ("a.wav", b"no sound"))], 400, "bad_audio", None),
        ([AUDIO, ("prompt", "x" * 4097)], 400, "invalid_value", "prompt"),
        ([AUDIO, ("temperature", "1.4")], 400, "invalid_value", "temperature"),
        ([AUDIO, ("temperature", "nan")], 400, "invalid_value", "temperature"),
        ([AUDIO, ("temperature", "warm")], 400, "invalid_value", "temperature"),
        ([AUDIO, ("keywords[]", "Kallax"), ("keywords[]", "<b>")], 400, "invalid_value", "keywords"),
        ([AUDIO, ("keywords", "one\ntwo")], 400, "invalid_value", "keywords"),
        ([AUDIO, ("keywords[]", "x" * 101)], 400, "invalid_value", "keywords"),
        ([AUDIO, *[("keywords[]", f"n{number}") for number in range(1001)]], 400, "invalid_value", "keywords"),
        ([AUDIO, *[("keywords[]", "n")] * 1065], 400, "bad_form", None),
        ([AUDIO, ("language", "en"), ("languages[]", "de")], 400, "invalid_value", "languages"),
        ([AUDIO, ("languages[]", "tlh")], 400, "bad_language", None),
        ([AUDIO, ("chunking_strategy", "wild")], 400, "invalid_value", "chunking_strategy"),
        ([AUDIO, ("chunking_strategy", '{"type":"semantic_vad"}')], 400, "invalid_value", "chunking_strategy"),
        ([AUDIO, ("chunking_strategy[threshold]", "0.5")], 400, "invalid_value", "chunking_strategy"),
        ([AUDIO, ("response_format", "diarized_json")], 400, "invalid_value", "response_format"),
        ([AUDIO, ("timestamp_granularities[]", "word")], 400, "invalid_value", "timestamp_granularities"),
        ([AUDIO, ("stream", "true"), ("response_format", "srt")], 400, "invalid_value", "response_format"),
        ([AUDIO, ("language", "tlh")], 400, "bad_language", None),
        ([AUDIO, ("known_speaker_names[]", "a")], 400, "unsupported_parameter", "known_speaker_names[]"),
        ([AUDIO, ("model", "a"), ("model", "b")], 400, "invalid_value", "model"),
        ([AUDIO, ("model", "x" * 20000)], 400, "bad_form", None),
        ([("file", ("a.wav", bytes(300_000)))], 413, "message_too_big", None),
    ],
)
async def test_what_will_not_do(
    fields: list[tuple[str, Any]], status: int, code: str, param: str | None, tokenizer_file: Path
) -> None:
    async with service(scripted(tokenizer_file), {"dialects": {"max_upload": 262_144}}) as daemon:
        answer = await post(daemon.server.url, fields)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
        assert daemon.pipeline.metrics.client_errors.labels(code)._value.get() == 1
        assert (await post(daemon.server.url, [AUDIO])).status_code == 200


EMPTY = (
    "model", "language", "prompt", "temperature", "response_format", "stream", "chunking_strategy",
    "chunking_strategy[type]", "chunking_strategy[threshold]", "timestamp_granularities[]", "include[]", "keywords[]",
    "keywords", "languages[]", "languages", "known_speaker_names[]",
)  # fmt: skip


async def test_an_empty_field_is_one_that_is_not_there(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        plain = await post(daemon.server.url, [AUDIO])
        empty = await post(daemon.server.url, [AUDIO, *[(name, "") for name in EMPTY for _ in range(2)]])
        both = await post(
            daemon.server.url, [AUDIO, ("model", ""), ("model", "x"), ("language", ""), ("language", "en")]
        )
        source = await post(daemon.server.url, [AUDIO], path=f"{PATH}/?source=")
        no_file = await post(daemon.server.url, [("file", ("a.wav", b""))])
    for answer in (empty, both, source):
        assert (answer.status_code, answer.json()) == (200, plain.json())
    assert (no_file.status_code, no_file.json()["error"]["code"]) == (400, "missing_file")


async def test_a_request_without_a_file_is_refused_in_the_words_of_files(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        httpx.AsyncClient(base_url=http_url(daemon.server.url), timeout=PATIENCE) as made,
    ):
        for method, path, status, code in (
            ("GET", f"{PATH}/", 405, "method_not_allowed"),
            ("PUT", f"{PATH}//", 405, "method_not_allowed"),
            ("GET", "/v1/audio/speech", 404, "not_found"),
            ("POST", "/v1/audio/translations/", 404, "not_found"),
        ):
            answer = await made.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert (await made.get("/v1/models/")).json()["data"][0]["id"] == "scripted"
        assert (await made.get("/v1/models/whisper-1/")).json()["id"] == "whisper-1"


async def test_a_form_with_as_many_keywords_as_there_may_be(tokenizer_file: Path) -> None:
    jobs: list[Job] = []
    keywords = [f"name {number} " + "ü" * 90 for number in range(1000)]
    async with service(scripted(tokenizer_file, before=jobs.extend)) as daemon:
        jobs.clear()
        answer = await transcribe(daemon.server.url, keywords=keywords, prompt="Björn, Thibault")
    assert "warnings" not in answer.model_extra
    # The prompt's names have no room beside them.
    (heard,) = {tuple(phrase.text for phrase in job.vocabulary.phrases) for job in jobs}
    assert heard == tuple(keywords)


async def test_the_fields_beside_a_file_have_a_limit_together(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        answer = await post(daemon.server.url, [AUDIO, *[("keywords[]", "n" * 16000)] * 33])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_form")
    assert "524288 bytes in all" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["keywords", "keywords[]"])
async def test_keywords_and_a_prompt_of_names_are_heard(name: str, tokenizer_file: Path) -> None:
    jobs: list[Job] = []
    fields = [AUDIO, (name, "Kallax"), (name, "Floor  Lamp"), ("prompt", "Björn, Thibault"), ("languages", "en-US")]
    async with service(scripted(tokenizer_file, before=jobs.extend)) as daemon:
        jobs.clear()
        answer = await post(daemon.server.url, fields)
    assert (answer.status_code, answer.json().get("warnings")) == (200, None)
    assert {job.language for job in jobs} == {"en"}
    (heard,) = {tuple(phrase.text for phrase in job.vocabulary.phrases) for job in jobs}
    assert heard == ("Kallax", "Floor Lamp", "Björn", "Thibault")


async def test_what_only_advises_is_taken_and_said(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "daemon.endpoints.uploads")
    advice: dict[str, Any] = {
        "prompt": "Secret talk of the house.",
        "temperature": 0.4,
        "chunking_strategy": {"type": "server_vad", "threshold": 0.4},
    }
    async with service(scripted(tokenizer_file)) as daemon:
        answer = await transcribe(daemon.server.url, **advice)
        logged = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
        by_hand = [("temperature", "1"), ("chunking_strategy", '{"type":"server_vad"}'), ("response_format", "srt")]
        srt = await post(daemon.server.url, [AUDIO, *by_hand])
        plain = await transcribe(daemon.server.url, prompt="", temperature=0, chunking_strategy="auto")
    said = [warning.partition(" has no effect here: ")[0] for warning in answer.model_extra["warnings"]]
    assert said == ["prompt", "temperature", "chunking_strategy"]
    assert [line.partition(": ")[2] for line in logged] == answer.model_extra["warnings"]
    assert "Secret" not in caplog.text
    assert (srt.status_code, srt.headers["Whisperd-Warning"].count("no effect")) == (200, 2)
    assert "warnings" not in plain.model_extra


async def test_bodies_that_are_no_forms(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with service(scripted(tokenizer_file), {"dialects": {"max_upload": 10_000}}) as daemon:
        url = http_url(daemon.server.url) + PATH

        async def send(body: bytes | AsyncIterator[bytes], kind: str) -> tuple[int, str]:
            async with httpx.AsyncClient(timeout=PATIENCE) as made:
                answer = await made.post(url, content=body, headers={"Content-Type": kind})
                return answer.status_code, answer.json()["error"]["code"]

        async def endless() -> AsyncIterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(100):
                yield bytes(1000)

        assert await send(b"{}", "application/json") == (400, "bad_form")
        assert await send(b"rubbish", "multipart/form-data") == (400, "bad_form")
        assert await send(b"rubbish", "multipart/form-data; boundary=x") == (400, "bad_form")
        # No length was said: it is counted.
        assert await send(endless(), "multipart/form-data; boundary=x") == (413, "message_too_big")
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "identity, gzip"])
async def test_a_body_is_not_unpacked(encoding: str, tokenizer_file: Path) -> None:
    """A few bytes could become any number of them: 97 kB of gzip are 100 MB of lines before any boundary."""
    pack = {"deflate": zlib.compress}.get(encoding, gzip.compress)
    body = pack(b"\n" * 100_000_000, 1)
    async with service(scripted(tokenizer_file)) as daemon:
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Encoding": encoding}
        async with httpx.AsyncClient(timeout=PATIENCE) as made:
            answer = await made.post(http_url(daemon.server.url) + PATH, content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_form")
        assert "Content-Encoding" in answer.json()["error"]["message"]


@pytest.mark.parametrize("line", [b"\n", b"x" * 60 + b"\r\n", b"--y\r\n"])
async def test_what_comes_before_a_form_is_counted_and_holds_up_nobody(line: bytes, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), {"dialects": {"max_upload": 4_000_000}}) as daemon:
        host, _, port = daemon.server.url.removeprefix("ws://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        writer.write(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = line * (65536 // len(line))
        async with others_turns() as turns:
            sent = 0
            async with asyncio.timeout(PATIENCE):
                with contextlib.suppress(ConnectionError):  # it is cut off: nobody reads this to its end
                    while True:
                        writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                        await writer.drain()
                        sent += len(chunk)
                        if reader.at_eof() or b"\r\n\r\n" in bytes(reader._buffer):  # type: ignore[attr-defined]
                            break
                answer = await reader.readuntil(b"\r\n")
                with contextlib.suppress(ConnectionError):  # what was sent behind the answer may reset it
                    await reader.read()
        writer.close()
        assert answer.split()[1] in (b"400", b"413")
        assert turns.count > 10
        assert daemon.pipeline.metrics.client_errors.labels("internal")._value.get() == 0
        assert (await post(daemon.server.url, [AUDIO])).status_code == 200


BEGUN = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
CHUNKED = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n".encode()
CHUNKED += b"Transfer-Encoding: chunked\r\n\r\n"


def chunks(data: bytes, size: int, extension: bytes = b"") -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)


async def answer_to(daemon: Service, begun: bytes, on_and_on: bytes) -> tuple[bytes, int]:
    """What a request gets that begins so, and then goes on and on until it is answered; and how far it got."""
    host, _, port = daemon.server.url.removeprefix("ws://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(CHUNKED + begun)
    # Not to the end: what is sent behind the answer may reset the connection.
    answer = asyncio.create_task(reader.readuntil(b"}}"))
    sent = 0
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            while not answer.done():
                writer.write(on_and_on)
                await writer.drain()
                sent += len(on_and_on)
        await asyncio.wait({answer})
    writer.transport.abort()
    return answer.result(), sent


@pytest.mark.parametrize(
    ("begun", "on_and_on"),
    [
        (chunks(BEGUN, 99), chunks(bytes(100), 1, b";" + b"x" * 4000)),
        (chunks(BEGUN, 99) + b"1;", b"x" * 65536),  # a chunk that never begins
        (chunks(BEGUN, 99) + b"0\r\n", b"x: " + b"x" * 8000 + b"\r\n"),
    ],
    ids=["extensions", "one extension", "trailers"],
)
async def test_what_is_around_the_contents_of_a_body_counts_too(
    begun: bytes, on_and_on: bytes, tokenizer_file: Path
) -> None:
    async with service(scripted(tokenizer_file), {"dialects": {"max_upload": 262_144}}) as daemon:
        answer, sent = await answer_to(daemon, begun, on_and_on)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"message_too_big"' in answer
        assert b"a request may have at most 262144 bytes" in answer
        assert sent < 20_000_000  # the system keeps a few million before it is read
        assert (await post(daemon.server.url, [AUDIO])).status_code == 200


@pytest.mark.parametrize("begun", [b"", chunks(BEGUN, 99)], ids=["before a form", "in a file"])
async def test_chunks_of_a_byte_hold_up_nobody(begun: bytes, tokenizer_file: Path) -> None:
    """Of the system's buffer they are tens of thousands, and the library joins them one by one."""
    longest = 0.0

    async def others() -> None:
        nonlocal longest
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    async with service(scripted(tokenizer_file), {"dialects": {"max_upload": 4_000_000}}) as daemon:
        watching = asyncio.create_task(others())
        try:
            answer, _ = await answer_to(daemon, begun, chunks(b"a" * 20000, 1))
        finally:
            watching.cancel()
        assert answer.split()[1] in (b"400", b"413")
    assert longest < 0.25  # of this thread's work


async def test_a_form_in_small_chunks(tokenizer_file: Path) -> None:
    """Two of them, the second sent before the first is answered: it is not counted for the first."""
    whole = BEGUN + file_of() + b"\r\n--x--\r\n"
    body = chunks(whole, 100, b";name=value") + b"0\r\nDigest: none\r\n\r\n"
    async with service(scripted(tokenizer_file), {"dialects": {"max_upload": len(body)}}) as daemon:
        host, _, port = daemon.server.url.removeprefix("ws://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write((CHUNKED + body) * 2)
        async with asyncio.timeout(PATIENCE):
            for _ in range(2):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert b"turn on" in await reader.readuntil(b"}}")
        writer.close()


async def test_a_form_that_trickles_gives_its_slot_back(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_IDLE", 0.5)
    async with service(scripted(tokenizer_file)) as daemon:
        host, _, port = daemon.server.url.removeprefix("ws://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n"
        writer.write(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n")
        # Not to the end: what trickles behind the answer has the connection reset.
        answer = asyncio.create_task(reader.readuntil(b'"timeout"'))
        part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        with contextlib.suppress(ConnectionError):
            for byte in part + bytes(10000 - len(part)):
                writer.write(bytes([byte]))
                await asyncio.wait({answer}, timeout=0.02)
                if answer.done():
                    break
        await asyncio.wait_for(answer, PATIENCE)
        writer.close()


async def test_the_library_of_forms_is_not_asked_for_what_it_cannot_do(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`_charset_` as the first field, behind a boundary of usual length, is an AssertionError in there."""
    async with service(scripted(tokenizer_file)) as daemon:
        answer = await post(daemon.server.url, [("_charset_", "utf-8"), AUDIO])
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_form")
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Connection: close\r\nContent-Length: 1\r\n\r\naPOST / HTTP/1.1\r\n\r\n",
        b"Content-Length: much\r\n\r\n",
        b"Authorization: Bearer secret\x00\r\n\r\n",
    ],
)
async def test_what_is_no_http_fills_no_log(
    rest: bytes, tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        host, _, port = daemon.server.url.removeprefix("ws://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\n" + rest)
            assert (await asyncio.wait_for(reader.readline(), PATIENCE)).split()[1] == b"400"
            assert 'client_errors_total{code="bad_' in daemon.pipeline.metrics.text().decode()
        finally:
            writer.close()
            await writer.wait_closed()
    assert "Traceback" not in caplog.text
    assert "secret" not in caplog.text


async def test_curl(tokenizer_file: Path, tmp_path: Path) -> None:
    big = tmp_path / "big.wav"
    big.write_bytes(file_of(20))  # it waits for 100 Continue with so much
    async with service(scripted(tokenizer_file)) as daemon:
        command = [
            "curl",
            "-sS",
            http_url(daemon.server.url) + PATH,
            "-F",
            f"file=@{big}",
            "-F",
            "response_format=text",
        ]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("turn on")


async def test_off_is_off(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), {"dialects": {"openai": False}}) as daemon:
        assert (await asyncio.to_thread(fetch, daemon.server.url, PATH, "POST"))[0] == 405
        assert (await asyncio.to_thread(fetch, daemon.server.url, "/v1/models"))[0] == 404
        assert (await asyncio.to_thread(fetch, daemon.server.url, "/v1/models/whisper-1"))[0] == 404


# --- beside live streams ---------------------------------------------------------------------------------------------


async def test_a_full_house_is_told_to_come_again(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file), {"server": {"max_streams": 1}}) as daemon,
        client(daemon.server.url) as mine,
    ):
        await mine.say(type="start")
        await mine.until("ready")
        answer = await post(daemon.server.url, [AUDIO])
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
        assert answer.json()["error"]["code"] == "full"


class Gate:
    """An engine that stands still until it is let go."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()

    def __call__(self, jobs: Sequence[Job]) -> None:
        if any(job.audio.size > 16000 for job in jobs):
            self.entered.set()
            assert self.open.wait(4 * PATIENCE)


async def test_a_live_final_waits_for_one_utterance_of_a_file_and_not_for_all(tokenizer_file: Path) -> None:
    order: list[int] = []

    def note(jobs: Sequence[Job]) -> None:
        order.append(len(jobs))

    async with (
        service(scripted(tokenizer_file, before=note)) as daemon,
        client(daemon.server.url, "/v1/events") as other,
        client(daemon.server.url, "/v1/stream?source=live") as mine,
    ):
        await mine.say(type="start", partials=False)
        sending = asyncio.create_task(post(daemon.server.url, [("file", ("long.wav", file_of(40)))]))
        await other.until("final")
        await mine.play(speech())
        await mine.say(type="stop")
        await mine.rest()
        assert len(mine.of("final")) == 1
        answer = await sending
    assert answer.status_code == 200


async def test_a_client_that_leaves_takes_its_stream_along(tokenizer_file: Path) -> None:
    gate = Gate()
    async with service(scripted(tokenizer_file, before=gate)) as daemon:
        sending = asyncio.create_task(post(daemon.server.url, [AUDIO]))
        await asyncio.to_thread(gate.entered.wait, PATIENCE)
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        await wait_until(lambda: daemon.pipeline.sources.open_streams == 0)
        gate.open.set()


async def test_an_engine_that_fails(tokenizer_file: Path) -> None:
    def fail(jobs: Sequence[Job]) -> None:
        if any(job.audio.size > 16000 for job in jobs):
            raise RuntimeError("no such kernel")

    async with service(scripted(tokenizer_file, before=fail)) as daemon:
        answer = await post(daemon.server.url, [AUDIO])
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "transcription_failed")
        answer = await post(daemon.server.url, [AUDIO, ("stream", "true")])
        assert answer.status_code == 200
        assert json.loads(answer.text.removeprefix("data: "))["error"]["code"] == "transcription_failed"


async def test_the_stop_makes_final_what_was_heard(tokenizer_file: Path) -> None:
    gate = Gate()
    async with (
        service(scripted(tokenizer_file, before=gate), {"scheduler": {"backlog": 1.0}}) as daemon,
        client(daemon.server.url, "/v1/events") as other,
    ):
        sending = asyncio.create_task(post(daemon.server.url, [("file", ("long.wav", file_of(30)))]))
        await asyncio.to_thread(gate.entered.wait, PATIENCE)
        daemon.stop()
        await wait_until(lambda: daemon.server.readers._stop_at is not None)
        asyncio.get_running_loop().call_later(1.0, gate.open.set)  # it hears no more by then
        answer = await sending
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert (await other.until("final"))["text"]


async def test_connections_that_never_say_what_they_post(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OPEN_TIMEOUT", 0.2)
    async with service(scripted(tokenizer_file)) as daemon:
        host, _, port = daemon.server.url.removeprefix("ws://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/audio/transcriptions HTTP/1.1\r\n")
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()


async def test_connections_that_say_nothing_do_not_hold_up_the_stop(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        host, _, port = daemon.server.url.removeprefix("ws://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        kept, other = await asyncio.open_connection(host, int(port))
        other.write(b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n")
        await wait_until(lambda: daemon.server.connections.number_waiting == 2)
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), PATIENCE)
        await asyncio.wait_for(kept.read(), PATIENCE)
    for each in (writer, other):
        each.close()


async def test_a_recording_comes_out_right_with_the_shipped_models(tmp_path: Path) -> None:
    with process(tmp_path, TEACHER) as daemon:
        heard = await transcribe(daemon.url, file=DEMO, language="en")
        verbose = await transcribe(daemon.url, file=DEMO, response_format="verbose_json")
        assert daemon.terminate() == 0
    assert all(segment.tokens and 0 < segment.no_speech_prob < 1 for segment in verbose.segments)
    assert plain(heard.text) == plain(" ".join(said_in(DEMO)))
    assert "Traceback" not in daemon.log
