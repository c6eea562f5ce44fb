"""Deepgram's dialect without sockets: what may be asked for, and how a stream's events are told."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from deepgram.core.unchecked_base_model import construct_type
from deepgram.listen.v1.client import V1Client
from deepgram.listen.v1.socket_client import V1SocketClientResponse
from hypothesis import given
from hypothesis import strategies as st

from daemon.common.errors import Fault
from daemon.dialects.codec import Codec, Frame, Handshake, Message, Reply
from daemon.dialects.deepgram import DIALECT, Deepgram, Parameters, parse
from streaming.events import (
    Audio,
    Error,
    Event,
    Final,
    Flush,
    Flushed,
    Notice,
    Partial,
    Ready,
    SpeechStarted,
    SpeechStopped,
    Start,
    Stop,
    Stopped,
    Word,
)

LEAST = "encoding=linear16&sample_rate=16000"
SECOND = bytes(32000)
SIGNS = """It's "3.5" Mb/s."""
READY = Ready("s", "kitchen", "tiny-en", "tiny-en-teacher", "cpu")
Told = dict[str, Any]


def codec(query: str = "") -> Deepgram:
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    made = Deepgram(Handshake("/v1/listen", f"{LEAST}&{query}"), lambda: noon)
    list(made.encode(READY))
    return made


def told(frames: Iterable[Frame]) -> list[Told]:
    return [json.loads(frame) for frame in frames]


def say(made: Codec, *events: Event) -> list[Told]:
    return [each for event in events for each in told(made.encode(event))]


def hear(made: Codec, frame: Frame) -> tuple[list[Message], list[Told]]:
    """What a frame means, and what is answered at once."""
    messages = list(made.decode(frame))
    replies = [each.frame for each in messages if isinstance(each, Reply)]
    return [each for each in messages if not isinstance(each, Reply)], told(replies)


def send(made: Codec, **message: Any) -> tuple[list[Message], list[Told]]:
    return hear(made, json.dumps(message))


def final(
    utterance: int = 1, start: float = 0.5, end: float = 1.5, text: str = "Turn on.", model: Any = "student"
) -> Final:
    middle = (start + end) / 2
    spoken = text.split()
    words = [Word(spoken[0], start, middle, 0.9), Word(spoken[-1], middle, end - 0.1, 0.8)]
    return Final("kitchen", utterance, start, end, text, 0.85, model, "en", 90, tuple(words))


def spoken(number: int, start: float, end: float) -> tuple[Event, Event]:
    return SpeechStarted("kitchen", number, start), SpeechStopped("kitchen", number, end)


def refused(query: str) -> Fault:
    with pytest.raises(Fault) as caught:
        parse(query)
    return caught.value


def code_of(query: str) -> str | None:
    """Of its refusal; None for what is understood."""
    try:
        parse(query)
    except Fault as fault:
        return fault.code
    return None


# --- the query -------------------------------------------------------------------------------------------------------


def test_the_least_that_can_be_asked() -> None:
    asked = parse(LEAST)
    assert asked == Parameters(Start(source="deepgram", partials=False, words=True))


@pytest.mark.parametrize(
    ("theirs", "ours"), [("linear16", "pcm_s16le"), ("linear32", "pcm_f32le"), ("mulaw", "mulaw"), ("alaw", "alaw")]
)
def test_encodings(theirs: str, ours: str) -> None:
    start = parse(f"encoding={theirs}&sample_rate=8000&channels=2").start
    assert (start.encoding, start.sample_rate, start.channels) == (ours, 8000, 2)


def test_without_an_encoding_a_container_is_meant() -> None:
    assert parse("").start == Start(source="deepgram", encoding="opus", partials=False, words=True)
    assert parse("sample_rate=48000&channels=2").start.encoding == "opus"


def test_how_long_a_container_has_played_goes_by_the_clock_on_the_wall() -> None:
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    seconds = iter([0, 5, *range(5, 9)])  # made; its first audio; each frame, and what is asked of it
    made = Deepgram(Handshake("/v1/listen", "utterance_end_ms=2000"), lambda: noon + timedelta(seconds=next(seconds)))
    list(made.encode(READY))
    assert hear(made, b"head")[1] == []
    say(made, *spoken(1, 0.1, 0.9))
    told_at_once = say(made, final(start=0.1, end=1.0))
    assert [each["type"] for each in told_at_once] == ["Results"]
    answers = [hear(made, b"more")[1] for _ in range(2)]
    assert [[each["type"] for each in answer] for answer in answers] == [[], ["UtteranceEnd"]]


def test_all_that_is_understood() -> None:
    asked = parse(
        f"{LEAST}&model=nova-3&language=en-US&interim_results=true&vad_events=true&endpointing=300&utterance_end_ms=1000"
        "&punctuate=true&extra=call:7&extra=line:b&tag=a&tag=b&mip_opt_out=true&no_delay=true&version=latest&diarize=false"
        "&alternatives=1&redact=&source=kitchen&token=T",
    )
    assert (asked.start.source, asked.start.language, asked.start.partials) == ("kitchen", "en", True)
    assert (asked.interim, asked.vad_events, asked.endpointing, asked.pause, asked.utterance_end) == (
        True, True, True, 0.3, 1.0,
    )  # fmt: skip
    assert (asked.model, asked.written, asked.extra, asked.warnings) == ("nova-3", True, {"call": "7", "line": "b"}, ())


@pytest.mark.parametrize(
    ("query", "expected"),
    [("endpointing=false", (False, None)), ("endpointing=true", (True, None)), ("", (True, None))],
)
def test_endpointing_is_a_switch_too(query: str, expected: tuple[bool, float | None]) -> None:
    asked = parse(f"{LEAST}&{query}")
    assert (asked.endpointing, asked.pause) == expected


CHANGED = ("endpointing", "utterance_end_ms")  # to the nearest possible value


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("endpointing=10", "endpointing"),
        ("endpointing=20000", "endpointing"),
        ("utterance_end_ms=1", "utterance_end_ms"),
        ("smart_format=true", "smart_format"),
        ("numerals=true", "numerals"),
        ("measurements=true", "measurements"),
        ("filler_words=true", "filler_words"),
        ("dictation=true", "dictation"),
        ("paragraphs=true", "paragraphs"),
        ("utterances=true", "utterances"),
        ("utt_split=0.8", "utt_split"),
        ("alternatives=3", "alternatives"),
        ("detect_language=true", "detect_language"),
        ("detect_language=en&detect_language=es", "detect_language"),
        ("version=2024-01-01", "version"),
        ("keywords=lamp:-10&keywords=um:0", "keywords"),
    ],
)
def test_what_is_not_quite_as_asked_is_said(query: str, parameter: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = codec(query)
    (metadata,) = say(made, Stopped(1.0))
    assert [each["parameter"] for each in metadata["warnings"]] == [parameter]
    had = f"deepgram: taken without effect: {parameter}"
    assert [record.getMessage() for record in caplog.records] == ([] if parameter in CHANGED else [had])


def test_what_is_as_asked_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    codec("alternatives=1&version=latest&dictation=false&utt_split=&keyterm=lamp&keywords=lamp:2")
    assert caplog.records == []


# --- phrases ---------------------------------------------------------------------------------------------------------


def weights(query: str) -> dict[str, float]:
    return {each.text: each.weight for each in parse(f"{LEAST}&{query}").start.vocabulary.phrases}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (
            "keyterm=Kallax&keyterm=customer%20service&keyterm=living+room",
            ["Kallax", "customer service", "living room"],
        ),
        ("keyterm=term:0.15", ["term:0.15"]),
        ("keyterm=&keyterm=%20", []),
    ],
)
def test_each_keyterm_is_a_phrase_as_it_is_written(query: str, expected: list[str]) -> None:
    assert weights(query) == dict.fromkeys(expected, 1.0)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("keywords=Kallax", {"Kallax": 1.0}),
        ("keywords=Kallax:1.5&keywords=Lumen:0.25", {"Kallax": 1.5, "Lumen": 0.25}),
        ("keywords=Kallax:100", {"Kallax": 3.0}),
        ("keywords=Kallax:-10&keywords=Lumen:0&keywords=Nanit:2", {"Nanit": 2.0}),
        ("keywords=Kallax:2&keyterm=Kallax", {"Kallax": 2.0}),
        ("keywords=&keyterm=Kallax", {"Kallax": 1.0}),
    ],
)
def test_a_boost_is_a_weight_within_reason(query: str, expected: dict[str, float]) -> None:
    assert weights(query) == expected


def test_a_hundred_of_each_and_all_else() -> None:
    terms = [("keyterm", f"term {number}") for number in range(100)]
    words = [("keywords", f"word{number}:2") for number in range(100)]
    others = "model=nova-3&interim_results=true&vad_events=true&utterance_end_ms=1000&punctuate=true&language=en"
    assert len(weights(f"{urlencode([*terms, *words])}&{others}")) == 200


@pytest.mark.parametrize(
    ("query", "code", "words"),
    [
        (f"keyterm={'a' * 101}", "bad_vocabulary", "keyterm: a phrase may have at most 100 characters"),
        ("keyterm=a%00b", "bad_vocabulary", "keyterm: a phrase must be text"),
        ("keyterm=%3C%7Cnotimestamps%7C%3E", "bad_vocabulary", "keyterm: a phrase must be text"),
        (f"keyterm=a&keywords={'a' * 101}", "bad_vocabulary", "keywords: a phrase may have at most 100 characters"),
        ("keywords=:2", "bad_vocabulary", "keywords: a phrase may not be empty"),
        ("keywords=lamp:loud", "bad_parameter", "keywords must be word or word:boost, such as lamp:2"),
        ("keywords=lamp:nan", "bad_parameter", "keywords must be"),
        ("keywords=lamp:1e999", "bad_parameter", "keywords must be"),
        ("&".join(["keyterm=a"] * 256), "bad_parameter", "too many parameters"),
    ],
)
def test_phrases_that_will_not_do(query: str, code: str, words: str) -> None:
    fault = refused(f"{LEAST}&{query}")
    assert (fault.code, fault.message.startswith(words)) == (code, True)


NAMES = ["keyterm", "keywords", "utt_split", "alternatives", "detect_language", "dictation", "version"]
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.text(min_size=95, max_size=105)


@given(st.lists(st.tuples(st.sampled_from(NAMES), ANYTHING | st.builds("{}:{}".format, ANYTHING, st.floats()))))
def test_any_phrases_and_advice_are_a_stream_or_a_refusal_of_theirs(pairs: list[tuple[str, str]]) -> None:
    reject = DIALECT.reject
    assert reject is not None
    try:
        made = codec(urlencode(pairs))
    except Fault as fault:
        rejection = reject(fault)
        assert rejection.status == 400
        assert len(rejection.headers["dg-error"]) < 600
    else:
        (start,) = made.greet()
        assert isinstance(start, Start)
        assert all(0 < each.weight <= 3 for each in start.vocabulary.phrases)


def test_a_pause_is_at_least_one_between_words() -> None:
    assert parse(f"{LEAST}&endpointing=10").pause == 0.2


@pytest.mark.parametrize(
    "query",
    [
        "diarize=true", "diarize_model=latest", "redact=pci", "redact=false&redact=numbers",
        "search=light", "replace=a:b", "profanity_filter=true", "detect_entities=true", "callback=http://x",
        "summarize=v2", "translate=es", "topics=true",
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_by_name(query: str) -> None:
    fault = refused(f"{LEAST}&{query}")
    assert fault.code == "unsupported"
    assert fault.message.startswith(query.partition("=")[0])


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("encoding=opus&sample_rate=48000", "unsupported"),
        ("encoding=linear16", "bad_parameter"),
        ("encoding=linear16&sample_rate=12", "bad_parameter"),
        (f"encoding=linear16&sample_rate={'9' * 5000}", "bad_parameter"),
        (f"{LEAST}&channels=9", "bad_parameter"),
        (f"{LEAST}&channels=x", "bad_parameter"),
        (f"{LEAST}&interim_results=yes", "bad_parameter"),
        (f"{LEAST}&model=a&model=b", "bad_parameter"),
        (f"{LEAST}&endpointing=-1", "bad_parameter"),
        (f"{LEAST}&extra=nothing", "bad_parameter"),
        (f"{LEAST}&colour=red", "unknown_parameter"),
        (f"{LEAST}&dictation=perhaps", "bad_parameter"),
        (LEAST + "&tag=a" * 300, "bad_parameter"),
    ],
)
def test_what_will_not_do(query: str, code: str) -> None:
    assert refused(query).code == code


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12))), st.text(max_size=40))
def test_any_query_is_understood_or_refused(pairs: list[tuple[str, str]], rest: str) -> None:
    query = "&".join([LEAST, *(f"{name}={value}" for name, value in pairs), rest])
    assert code_of(query) != ""


def test_a_refusal_before_the_handshake_is_theirs() -> None:
    reject = DIALECT.reject
    assert reject is not None
    rejection = reject(refused(f"{LEAST}&diarize=true"))
    body = json.loads(rejection.body)
    assert rejection.status == 400
    assert set(body) == {"err_code", "err_msg", "request_id"}
    assert body["err_code"] == "Bad Request"
    assert "diarize" in body["err_msg"]
    assert rejection.headers["dg-request-id"] == body["request_id"]
    assert reject(Fault("unauthorised", "a token")).status == 401


@pytest.mark.parametrize(
    "handshake",
    [
        Handshake("/v1/listen", LEAST, {"authorization": ("Token K",)}),
        Handshake("/v1/listen", LEAST, {"authorization": ("bearer K",)}),
        Handshake("/v1/listen", LEAST, subprotocols=("token", "K")),
        Handshake("/v1/listen", f"{LEAST}&token=K"),
    ],
)
def test_where_a_token_is_shown(handshake: Handshake) -> None:
    assert list(DIALECT.tokens(handshake)) == ["K"]


# --- what comes in ---------------------------------------------------------------------------------------------------


def test_the_address_begins_the_stream() -> None:
    made = codec("channels=2")
    assert list(made.greet()) == [Start(source="deepgram", channels=2, partials=False, words=True)]


def test_frames() -> None:
    made = codec()
    assert hear(made, b"ab") == ([Audio(b"ab")], [])
    assert send(made, type="KeepAlive") == ([], [])
    assert send(made, type="Finalize", channel=0) == ([Flush()], [])
    assert send(made, type="CloseStream") == ([Stop()], [])
    assert hear(made, b"") == ([Stop()], [])


def test_configure_fails_in_their_words() -> None:
    messages, (failure,) = send(codec(), type="Configure", keyterms=["lamp"])
    assert messages == []
    assert failure["type"] == "ConfigureFailure"
    assert failure["code"] == "CONFIGURE_KEYTERMS_NOT_SUPPORTED"
    assert "open another connection" in failure["description"]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", "bad_json"),
        ("[" * 100_000, "bad_json"),
        ("[]", "unknown_type"),
        ('{"type":"Start"}', "unknown_type"),
        ('{"type":["Finalize"]}', "unknown_type"),
        ('{"type":"Finalize","channel":1}', "bad_field"),
        ('{"type":"CloseStream","colour":1}', "unknown_field"),
    ],
)
def test_a_text_that_cannot_be_read_does_not_end_the_stream(frame: str, code: str) -> None:
    made = codec()
    with pytest.raises(Fault) as caught:
        list(made.decode(frame))
    assert (caught.value.code, caught.value.fatal) == (code, False)
    (error,) = told(made.blame(caught.value))
    assert (error["type"], error["variant"]) == ("Error", "SchemaError")


@given(st.text() | st.binary())
def test_any_frame_is_understood_or_refused(frame: Frame) -> None:
    with contextlib.suppress(Fault):
        list(codec().decode(frame))


# --- what goes out ---------------------------------------------------------------------------------------------------


def test_a_final_is_a_result_with_its_words() -> None:
    (result,) = say(codec(), *spoken(1, 0.5, 1.5), final())
    assert (result["type"], result["start"], result["duration"]) == ("Results", 0.5, 1.0)
    assert (result["is_final"], result["speech_final"], result["from_finalize"]) == (True, True, False)
    assert result["channel_index"] == [0, 1]
    assert result["channel"]["alternatives"] == [
        {
            "transcript": "turn on",
            "confidence": 0.85,
            "words": [
                {"word": "turn", "start": 0.5, "end": 1.0, "confidence": 0.9},
                {"word": "on", "start": 1.0, "end": 1.4, "confidence": 0.8},
            ],
        }
    ]
    assert result["metadata"]["model_info"] == {"name": "tiny-en", "version": "latest", "arch": "whisper"}


def test_what_the_teacher_decided_names_the_teacher() -> None:
    (result,) = say(codec(), final(model="teacher"))
    assert result["metadata"]["model_info"]["name"] == "tiny-en-teacher"


def test_punctuation_where_it_is_asked_for() -> None:
    (result,) = say(codec("punctuate=true"), final(text=SIGNS))
    (alternative,) = result["channel"]["alternatives"]
    assert alternative["transcript"] == SIGNS
    assert [(each["word"], each["punctuated_word"]) for each in alternative["words"]] == [
        ("it's", "It's"), ("mb/s", "Mb/s."),
    ]  # fmt: skip
    (result,) = say(codec(), final(text=SIGNS))
    assert result["channel"]["alternatives"][0]["transcript"] == "it's 3.5 mb/s"


def test_interim_results_where_they_are_asked_for() -> None:
    partial = Partial("kitchen", 1, 0.5, 1.0, "Turn", " on", 40)
    (result,) = say(codec("interim_results=true"), partial)
    assert (result["is_final"], result["speech_final"], result["start"], result["duration"]) == (False, False, 0.5, 0.5)
    assert result["channel"]["alternatives"] == [{"transcript": "turn on", "confidence": 0.0, "words": []}]
    assert say(codec(), partial) == []


def test_speech_started_where_it_is_asked_for() -> None:
    begun = SpeechStarted("kitchen", 1, 0.42)
    assert say(codec("vad_events=true"), begun) == [{"type": "SpeechStarted", "channel": [0, 1], "timestamp": 0.42}]
    assert say(codec(), begun) == []


def test_a_cut_for_length_is_no_end_of_speech() -> None:
    made = codec()
    say(made, *spoken(1, 0.5, 15.4), SpeechStarted("kitchen", 2, 15.5))
    assert say(made, final(1, 0.5, 15.4))[0]["speech_final"] is False
    say(made, SpeechStopped("kitchen", 2, 16.0))
    assert say(made, final(2, 15.5, 16.0))[0]["speech_final"] is True


def test_without_endpointing_nothing_is_an_end_of_speech() -> None:
    assert say(codec("endpointing=false"), final())[0]["speech_final"] is False


def of_side(side: int, *events: Any) -> list[Any]:
    """Events of one side of a call."""
    return [replace(event, source=f"deepgram-{side + 1}") for event in events]


def test_each_channel_is_told_by_itself_where_they_are_not_mixed() -> None:
    made = codec("channels=2&multichannel=true&vad_events=true&interim_results=true&utterance_end_ms=1000")
    (start,) = made.greet()
    assert isinstance(start, Start)
    assert (start.channels, start.separate) == (2, True)
    left, right = of_side(0, final(1, 0.5, 1.5)), of_side(1, final(1, 0.7, 1.7, "No."))
    started = say(made, *of_side(0, SpeechStarted("", 1, 0.5)), *of_side(1, SpeechStarted("", 1, 0.7)))
    assert [each["channel"] for each in started] == [[0, 2], [1, 2]]
    (partial,) = say(made, *of_side(1, Partial("", 1, 0.7, 1.0, "N", "", 40)))
    assert partial["channel_index"] == [1, 2]
    say(made, *of_side(0, SpeechStopped("", 1, 1.5)), *of_side(1, SpeechStopped("", 1, 1.7)))
    assert [each["channel_index"] for each in say(made, *right, *left)] == [[1, 2], [0, 2]]
    # A second of both is twice as many bytes: two are too few, three are enough.
    assert hear(made, SECOND * 4)[1] == []
    _, ends = hear(made, SECOND * 2)
    assert [(each["channel"], each["last_word_end"]) for each in ends] == [([0, 2], 1.4), ([1, 2], 1.6)]
    send(made, type="Finalize")
    assert say(made, *of_side(1, final(2, 2.5, 3.0, "Yes."))) == []
    answers = say(made, Flushed(None))
    assert [(each["channel_index"], each["from_finalize"]) for each in answers] == [([0, 2], True), ([1, 2], True)]
    said = [each["channel"]["alternatives"][0]["transcript"] for each in answers]
    assert said == ["", "yes"]


@pytest.mark.parametrize(
    "query", ["multichannel=true", "channels=1&multichannel=true", "channels=2&multichannel=false"]
)
def test_one_channel_is_no_several(query: str) -> None:
    assert parse(f"{LEAST}&{query}").start.separate is False


def test_the_languages_that_a_client_expects() -> None:
    assert parse(f"{LEAST}&language_hint=en-US&language_hint=es&language_hint=").start.languages == ("en", "es")


def test_the_last_result_of_a_finalize_says_so() -> None:
    made = codec()
    send(made, type="Finalize")
    assert say(made, final(1)) == []  # is it the last?
    (first,) = say(made, final(2, 2.0, 3.0))
    (last,) = say(made, Flushed(None))
    assert [first["from_finalize"], last["from_finalize"]] == [False, True]
    assert [first["start"], last["start"]] == [0.5, 2.0]
    (later,) = say(made, final(3, 4.0, 5.0))
    assert later["from_finalize"] is False


def test_a_finalize_of_nothing_is_answered_by_nothing_said() -> None:
    made = codec()
    hear(made, SECOND)
    send(made, type="Finalize")
    (result,) = say(made, Flushed(None))
    assert (result["from_finalize"], result["is_final"], result["start"], result["duration"]) == (True, True, 1.0, 0)
    assert result["channel"]["alternatives"][0]["transcript"] == ""


def test_two_finalizes_are_two_answers() -> None:
    made = codec()
    send(made, type="Finalize")
    send(made, type="Finalize")
    results = say(made, final(1), Flushed(None), Flushed(None), final(2, 2.0, 3.0))
    assert [each["from_finalize"] for each in results] == [True, True, False]


def test_what_was_held_for_a_finalize_is_told_before_a_failure() -> None:
    made = codec()
    send(made, type="Finalize")
    say(made, final())
    kinds = [each["type"] for each in say(made, Error("internal", "the log says how", fatal=True))]
    assert kinds == ["Results", "Error"]


def test_the_metadata_at_the_end() -> None:
    made = codec("model=nova-3&extra=call:7")
    hear(made, b"abcd")
    hear(made, b"ef")
    (metadata,) = say(made, Stopped(0.1))
    assert metadata["sha256"] == hashlib.sha256(b"abcdef").hexdigest()
    assert metadata["created"] == "2026-01-02T12:00:00.000Z"
    assert (metadata["duration"], metadata["channels"], metadata["extra"]) == (0.1, 1, {"call": "7"})
    assert metadata["warnings"] == [
        {"parameter": "model", "type": "unsupported_model", "message": "the model here is tiny-en"}
    ]


def test_what_is_wrong_with_the_audio_is_a_warning_at_the_end() -> None:
    made = codec("model=tiny-en")
    assert say(made, Notice("out_of_range", "send floats with a full scale of 1", "deepgram")) == []
    (metadata,) = say(made, Stopped(2.0))
    assert metadata["warnings"][-1] == {
        "parameter": "audio",
        "type": "out_of_range",
        "message": "send floats with a full scale of 1",
    }


# --- utterance end ---------------------------------------------------------------------------------------------------


def ends(messages: list[Told]) -> list[float]:
    return [each["last_word_end"] for each in messages if each["type"] == "UtteranceEnd"]


def test_an_utterance_end_comes_when_its_audio_has() -> None:
    made = codec("utterance_end_ms=1000")
    hear(made, SECOND + SECOND)
    assert ends(say(made, *spoken(1, 0.5, 1.5), final())) == []  # the last word ended at 1.4, and 2.0 were heard
    assert ends(hear(made, SECOND[: 32000 * 3 // 10])[1]) == []
    assert ends(hear(made, SECOND)[1]) == [1.4]
    assert ends(hear(made, SECOND)[1]) == []


def test_an_utterance_end_comes_with_a_final_that_comes_late() -> None:
    made = codec("utterance_end_ms=1000")
    hear(made, SECOND * 4)
    assert ends(say(made, *spoken(1, 0.5, 1.5), final())) == [1.4]


def test_no_utterance_end_while_somebody_speaks() -> None:
    made = codec("utterance_end_ms=1000")
    say(made, *spoken(1, 0.5, 1.5), final(), SpeechStarted("kitchen", 2, 2.0))
    assert ends(hear(made, SECOND * 9)[1]) == []
    assert ends(say(made, SpeechStopped("kitchen", 2, 8.5))) == []
    assert ends(hear(made, bytes(320))[1]) == []
    # In the second nothing was said, as it turned out: the first is what ended.
    assert ends(hear(made, SECOND)[1]) == [1.4]


def test_an_utterance_end_between_two_utterances_of_a_file_that_is_sent_fast() -> None:
    made = codec("utterance_end_ms=1000")
    hear(made, SECOND * 9)
    say(made, *spoken(1, 0.5, 1.5), *spoken(2, 3.0, 4.0), *spoken(3, 4.5, 8.9))
    assert ends(say(made, final(1))) == [1.4]
    assert ends(say(made, final(2, 3.0, 4.0))) == []
    assert ends(say(made, final(3, 4.5, 8.9))) == []
    assert ends(hear(made, SECOND)[1]) == [8.8]


def test_without_being_asked_for_none_comes() -> None:
    made = codec()
    say(made, *spoken(1, 0.5, 1.5), final())
    assert hear(made, SECOND * 99)[1] == []


# --- their own types -------------------------------------------------------------------------------------------------


def test_the_stock_client_knows_each_message() -> None:
    made = codec("interim_results=true&vad_events=true&utterance_end_ms=1000")
    hear(made, SECOND)
    messages = [
        *say(made, *spoken(1, 0.5, 1.5), Partial("kitchen", 1, 0.5, 1.0, "turn", " on", 4), final()),
        *hear(made, SECOND * 3)[1],
        *send(made, type="Configure")[1],
        *say(made, Error("transcription_failed", "no", fatal=False), Stopped(4.0)),
    ]
    responses: Any = V1SocketClientResponse  # a union, which they call a type
    kinds = [type(construct_type(type_=responses, object_=each)).__name__ for each in messages]
    assert kinds == [
        "ListenV1SpeechStarted", "ListenV1Results", "ListenV1Results", "ListenV1UtteranceEnd",
        "ListenV1ConfigureFailure", "ListenV1Error", "ListenV1Metadata",
    ]  # fmt: skip


def test_each_parameter_of_the_stock_client_is_known() -> None:
    """Whatever it may ask for is accepted, or refused as itself: none is an unknown parameter."""
    names = set(inspect.signature(V1Client.connect.__wrapped__).parameters)  # type: ignore[attr-defined]  # a decorator's
    names -= {"self", "authorization", "request_options", "encoding", "sample_rate"}
    assert {field.name for field in fields(Parameters)} & names  # it is their signature that was read
    for name in names:
        assert code_of(f"{LEAST}&{name}=x") != "unknown_parameter", name
