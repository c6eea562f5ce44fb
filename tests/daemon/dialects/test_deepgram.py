"""Deepgram's stock client and the real service, over real sockets; and what others say to that address."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deepgram import DeepgramClient
from deepgram.core.api_error import ApiError
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment
from deepgram.listen.v1.types.listen_v1configure import ListenV1Configure
from foreign import deepgram, deepgram_client, deepgram_play, deepgram_rest, deepgram_text, deepgram_until
from harness import PATIENCE, SECOND, client, connect, packed, scripted, service, speech, unfinished_speech, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streaming.job import Job

LEAST = "/v1/listen?encoding=linear16&sample_rate=16000"


def of(messages: list[Any], kind: str) -> list[Any]:
    return [each for each in messages if each.type == kind]


async def test_a_sentence_and_who_else_hears_of_it(tokenizer_file: Path) -> None:
    audio = speech()
    async with (
        service(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/events?source=deepgram") as other,
        deepgram(daemon.server.url, interim_results="true", vad_events="true", language="en-US") as mine,
    ):
        await deepgram_play(mine, audio)
        await mine.send_close_stream()
        messages = await deepgram_rest(mine)
        heard = await other.until("final")
    assert messages[0].type == "SpeechStarted"
    results, (metadata,) = of(messages, "Results"), of(messages, "Metadata")
    assert [each.is_final for each in results] == [False] * (len(results) - 1) + [True]
    final = results[-1]
    assert messages[-2:] == [final, metadata]
    alternative = final.channel.alternatives[0]
    assert alternative.transcript == heard["text"]
    assert alternative.confidence == heard["confidence"]
    assert [each.word for each in alternative.words] == heard["text"].split()
    begin, end = final.start - 0.4, final.start + final.duration + 0.4  # the audio has a margin around the speech
    assert all(begin <= each.start < each.end <= end for each in alternative.words)
    assert final.speech_final is True
    assert metadata.sha256 == hashlib.sha256(audio).hexdigest()
    assert (metadata.duration, metadata.channels) == (len(audio) / 32000, 1)
    assert metadata.request_id == final.metadata.request_id
    assert final.metadata.model_info.name == "scripted"


async def test_the_stock_client_without_asyncio(tokenizer_file: Path) -> None:
    """As in their examples: handlers, and a thread that listens."""
    told: list[Any] = []

    def talk(url: str) -> None:
        environment = DeepgramClientEnvironment(base=url, production=url, agent=url, agent_rest=url)
        client = DeepgramClient(api_key="none is needed", environment=environment)
        with client.listen.v1.connect(model="nova-3", encoding="linear16", sample_rate=16000) as connection:
            connection.on(EventType.MESSAGE, told.append)
            listening = threading.Thread(target=connection.start_listening)
            listening.start()
            for at in range(0, len(speech()), 6400):
                connection.send_media(speech()[at : at + 6400])
            connection.send_close_stream()
            listening.join(PATIENCE)

    async with service(scripted(tokenizer_file)) as daemon:
        await asyncio.to_thread(talk, daemon.server.url)
    assert [each.type for each in told] == ["Results", "Metadata"]
    assert deepgram_text(told).startswith("turn on")


async def test_without_interim_results_there_are_none(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, deepgram(daemon.server.url) as mine:
        await deepgram_play(mine, speech())
        await mine.send_close_stream()
        assert [each.type for each in await deepgram_rest(mine)] == ["Results", "Metadata"]


async def test_telephone_audio_of_two_channels(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        deepgram(daemon.server.url, encoding="mulaw", sample_rate=8000, channels=2) as mine,
    ):
        await mine.send_media(b"\xff" * 16000)
        await mine.send_close_stream()
        (metadata,) = of(await deepgram_rest(mine), "Metadata")
    assert (metadata.duration, metadata.channels) == (1.0, 2)


async def test_both_sides_of_a_call_each_by_itself(tokenizer_file: Path) -> None:
    silence = b"\0" * len(speech())
    sides = [speech() + silence, silence + speech()]
    both = np.stack([np.frombuffer(side, "<i2") for side in sides], axis=1).tobytes()
    async with (
        service(scripted(tokenizer_file)) as daemon,
        deepgram(daemon.server.url, channels=2, multichannel="true") as mine,
    ):
        await deepgram_play(mine, both)
        await mine.send_close_stream()
        messages = await deepgram_rest(mine)
    results, (metadata,) = of(messages, "Results"), of(messages, "Metadata")
    assert [each.channel_index for each in results] == [[0, 2], [1, 2]]
    assert results[1].start == pytest.approx(results[0].start + len(speech()) / 32000, abs=0.1)
    assert (metadata.duration, metadata.channels) == (2 * len(speech()) / 32000, 2)


async def test_a_container_as_a_browser_sends_it(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        deepgram(daemon.server.url) as plain,
        deepgram_client(daemon.server.url).listen.v1.connect(model="nova-3") as mine,
    ):
        await deepgram_play(plain, speech())
        await deepgram_play(mine, packed(speech()), frame=777)
        for connection in (plain, mine):
            await connection.send_close_stream()
        expected, messages = await deepgram_rest(plain), await deepgram_rest(mine)
    assert [each.type for each in messages] == ["Results", "Metadata"]
    assert deepgram_text(messages) == deepgram_text(expected)
    assert messages[-1].duration == pytest.approx(expected[-1].duration, abs=0.05)


async def test_audio_that_carries_nothing_is_a_warning_at_the_end_and_in_the_log(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        deepgram(
            daemon.server.url, encoding="linear32", request_options={"additional_query_parameters": {"source": "hall"}}
        ) as mine,
    ):
        await deepgram_play(mine, np.frombuffer(speech(), "<i2").astype("<f4").tobytes())  # of a full scale of 32768
        await mine.send_close_stream()
        messages = await deepgram_rest(mine)
    assert {each.type for each in messages} <= {"Results", "Metadata"}
    (warning,) = [each for each in messages[-1].warnings if each["parameter"] == "audio"]
    assert warning["type"] == "out_of_range"
    assert "send floats with a full scale of 1" in warning["message"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line == f"hall: {warning['message']} (not sent to the client: deepgram)"


async def test_phrases_reach_the_engine_and_what_has_no_effect_the_last_message(
    tokenizer_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    jobs: list[Job] = []
    terms = [f"customer service {number}" for number in range(99)] + ["Kallax"]
    asked: dict[str, Any] = {"keyterm": terms, "keywords": ["Lumen:2", "um:-10"], "dictation": "true"}
    async with (
        service(scripted(tokenizer_file, before=jobs.extend)) as daemon,
        deepgram(daemon.server.url, **asked) as mine,
    ):
        await deepgram_play(mine, speech())
        await mine.send_close_stream()
        (*_, metadata) = await deepgram_rest(mine)
    expected = {**dict.fromkeys(terms, 1.0), "Lumen": 2.0}
    assert {each.text: each.weight for each in jobs[-1].vocabulary.phrases} == expected
    assert [each["parameter"] for each in metadata.warnings] == ["dictation", "keywords", "model"]
    lines = [line for record in caplog.records if (line := record.getMessage()).startswith("deepgram: ")]
    assert lines == ["deepgram: taken without effect: dictation, keywords"]


async def test_a_phrase_that_will_not_do_is_an_answer_to_the_handshake(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        for terms in (["a" * 101], ["Kallax"] * 300):
            with pytest.raises(ApiError) as caught:
                async with deepgram(daemon.server.url, keyterm=terms):
                    pass
            assert caught.value.status_code == 400


async def test_a_running_stream_keeps_its_phrases(tokenizer_file: Path) -> None:
    jobs: list[Job] = []
    async with (
        service(scripted(tokenizer_file, before=jobs.extend)) as daemon,
        deepgram(daemon.server.url, keyterm="Kallax") as mine,
    ):
        await mine.send_configure(ListenV1Configure(type="Configure", keyterms=["Lumen"]))
        (failure,) = await deepgram_until(mine, "ConfigureFailure")
        assert failure.code == "CONFIGURE_KEYTERMS_NOT_SUPPORTED"
        await deepgram_play(mine, speech())
        await mine.send_close_stream()
        assert deepgram_text(await deepgram_rest(mine)).startswith("turn on")
    assert {each.text for job in jobs for each in job.vocabulary.phrases} == {"Kallax"}


async def test_another_container_is_told_what_would_do(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, connect(f"{daemon.server.url}/v1/listen") as mine:
        await mine.send(b"RIFF" + bytes(4000))
        error = json.loads(await mine.recv())
        assert (error["type"], error["code"]) == ("Error", "bad_format")
        assert "Ogg or WebM" in error["description"]
        with pytest.raises(ConnectionClosed):
            _ = [each async for each in mine]


async def test_a_finalize_in_the_middle_of_a_word(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, deepgram(daemon.server.url) as mine:
        await deepgram_play(mine, unfinished_speech())
        await mine.send_keep_alive()
        await mine.send_finalize()
        (first,) = await deepgram_until(mine, "Results")
        assert (first.from_finalize, first.is_final) == (True, True)
        assert first.channel.alternatives[0].transcript.startswith("turn on")
        await mine.send_finalize()
        (nothing,) = await deepgram_until(mine, "Results")
        assert (nothing.from_finalize, nothing.channel.alternatives[0].transcript) == (True, "")
        await deepgram_play(mine, speech("stop"))
        await mine.send_close_stream()
        second, _ = await deepgram_rest(mine)
    assert (second.from_finalize, second.start > first.start) == (False, True)


async def test_an_utterance_ends_when_enough_silence_came(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        deepgram(daemon.server.url, utterance_end_ms=1500, interim_results="true") as mine,
    ):
        await deepgram_play(mine, speech() + 3 * SECOND)
        messages = await deepgram_until(mine, "UtteranceEnd")
        await mine.send_close_stream()
        assert [each.type for each in await deepgram_rest(mine)] == ["Metadata"]
    final = of(messages, "Results")[-1]
    assert messages[-1].last_word_end == final.channel.alternatives[0].words[-1].end


@pytest.mark.parametrize(("endpointing", "count"), [(600, 2), (3000, 1)])
async def test_endpointing_is_the_pause_that_ends_an_utterance(
    tokenizer_file: Path, endpointing: int, count: int
) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        deepgram(daemon.server.url, endpointing=endpointing) as mine,
    ):
        await deepgram_play(mine, speech("two_sentences"))
        await mine.send_close_stream()
        assert len(of(await deepgram_rest(mine), "Results")) == count


async def test_speech_that_is_only_cut_for_its_length_has_not_ended(tokenizer_file: Path) -> None:
    voice = unfinished_speech()[32000 * 3 // 4 :]
    sections = {"segment": {"longest": 4.0, "cut_window": 1.0}}
    async with service(scripted(tokenizer_file), sections) as daemon, deepgram(daemon.server.url) as mine:
        await deepgram_play(mine, SECOND + voice * 8 + 2 * SECOND)
        await mine.send_close_stream()
        results = of(await deepgram_rest(mine), "Results")
    assert len(results) > 1
    assert [each.speech_final for each in results] == [False] * (len(results) - 1) + [True]
    assert all(each.is_final for each in results)


async def test_what_cannot_be_read_is_said_and_the_stream_goes_on(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, connect(daemon.server.url + LEAST) as ws:
        for at in range(0, len(speech()), 6400):
            await ws.send(speech()[at : at + 6400])
        await ws.send("{")
        await ws.send('{"type":"CloseStream"}')
        messages = [json.loads(message) async for message in ws]
    assert sorted(each["type"] for each in messages) == ["Error", "Metadata", "Results"]
    assert ws.close_code == 1000


# --- refusals --------------------------------------------------------------------------------------------------------


async def test_a_refusal_is_an_answer_to_the_handshake(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        with pytest.raises(ApiError) as theirs:
            async with deepgram(daemon.server.url, diarize="true"):
                pass
        assert theirs.value.status_code == 400
        with pytest.raises(InvalidStatus) as raw:
            await connect(daemon.server.url + LEAST + "&redact=pci")
        assert daemon.pipeline.metrics.client_errors.labels("unsupported")._value.get() == 2
    response = raw.value.response
    body = json.loads(response.body or b"")
    assert body["err_code"] == "Bad Request"
    assert body["err_msg"].startswith("redact is not supported")
    assert response.headers["dg-request-id"] == body["request_id"]
    assert response.headers["dg-error"] == body["err_msg"]
    assert response.headers["Content-Type"] == "application/json"


TOKENS = {"server": {"tokens": ["good", {"token": "porch", "send": ["porch"]}]}}


async def test_keys_are_tokens(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), TOKENS) as daemon:
        url = daemon.server.url
        for wrong in ({"api_key": "bad"}, {"access_token": "bad"}):
            with pytest.raises(ApiError) as caught:
                async with deepgram(url, wrong):
                    pass
            assert caught.value.status_code == 401
        with pytest.raises(InvalidStatus) as raw:
            await connect(url + LEAST)
        assert json.loads(raw.value.response.body or b"")["err_code"] == "INVALID_AUTH"
        for right in ({"api_key": "good"}, {"access_token": "good"}):
            async with deepgram(url, right) as mine:
                await mine.send_close_stream()
                assert [each.type for each in await deepgram_rest(mine)] == ["Metadata"]
        async with connect(url + LEAST, subprotocols=["token", "good"]) as ws:  # type: ignore[list-item]  # any text
            assert ws.subprotocol == "token"
            await ws.send('{"type":"CloseStream"}')
            assert json.loads(await ws.recv())["type"] == "Metadata"


async def test_a_token_for_one_source_speaks_as_that_alone(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), TOKENS) as daemon:
        headers = {"Authorization": "Token porch"}
        async with connect(daemon.server.url + LEAST, additional_headers=headers) as ws:
            error = json.loads(await ws.recv())
            assert (error["type"], error["code"]) == ("Error", "forbidden")
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert ws.close_code == 1008
        async with connect(daemon.server.url + LEAST + "&source=porch", additional_headers=headers) as ws:
            await ws.send('{"type":"CloseStream"}')
            assert json.loads(await ws.recv())["type"] == "Metadata"


@pytest.mark.parametrize(
    ("query", "code", "close"), [("&language=tlh", "bad_language", 1007), ("&source=a/b", "bad_source", 1007)]
)
async def test_what_is_known_only_later_is_an_error_and_a_close(
    tokenizer_file: Path, query: str, code: str, close: int
) -> None:
    async with service(scripted(tokenizer_file)) as daemon, connect(daemon.server.url + LEAST + query) as ws:
        error = json.loads(await ws.recv())
        assert (error["type"], error["code"]) == ("Error", code)
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (close, error["description"].encode()[:123].decode())


async def test_a_full_house(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file), {"server": {"max_streams": 1}}) as daemon,
        deepgram(daemon.server.url) as first,
    ):
        await wait_until(lambda: daemon.pipeline.metrics.streams_open._value.get())
        async with connect(daemon.server.url + LEAST) as ws:
            error = json.loads(await ws.recv())
            assert (error["type"], error["code"]) == ("Error", "full")
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert ws.close_code == 1013
        await deepgram_play(first, speech())
        await first.send_close_stream()
        assert deepgram_text(await deepgram_rest(first)).startswith("turn on")


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_the_end_of_the_service_brings_the_last_results(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, deepgram(daemon.server.url, vad_events="true") as mine:
        await deepgram_play(mine, unfinished_speech())
        await deepgram_until(mine, "SpeechStarted")
        daemon.stop()
        messages = await deepgram_rest(mine)
    assert [each.type for each in messages] == ["Results", "Metadata"]
    assert messages[0].channel.alternatives[0].transcript.startswith("turn on")
    assert mine._websocket.close_code == 1001


async def test_a_client_that_is_lost_is_heard_to_the_end(tokenizer_file: Path) -> None:
    async with (
        service(scripted(tokenizer_file)) as daemon,
        client(daemon.server.url, "/v1/events") as other,
    ):
        with contextlib.suppress(ConnectionClosed):
            async with deepgram(daemon.server.url) as mine:
                await deepgram_play(mine, unfinished_speech())
                await other.until("speech_started")
                mine._websocket.transport.abort()
        final = await other.until("final")
    assert final["text"].startswith("turn on")


async def test_switched_off_it_is_not_there(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), {"dialects": {"deepgram": False}}) as daemon:
        with pytest.raises(InvalidStatus) as caught:
            await asyncio.wait_for(connect(daemon.server.url + LEAST), 30)
    assert caught.value.response.status_code == 404
