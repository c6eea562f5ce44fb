"""WhisperLive's dialect without sockets."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.common.errors import Fault
from daemon.dialects.codec import Frame, Handshake
from daemon.dialects.whisperlive import WhisperLive
from streaming.events import Audio, Error, Event, Final, Partial, Ready, Start, Stop, Word

STOCK: dict[str, Any] = {
    "uid": "7", "language": "en", "task": "transcribe", "model": "tiny-en", "use_vad": True, "max_clients": 4,
    "max_connection_time": 600, "send_last_n_segments": 10, "no_speech_thresh": 0.45, "clip_audio": False,
    "same_output_threshold": 10, "enable_translation": False, "target_language": "fr",
}  # fmt: skip
"""What their client says of itself when nothing is set."""

READY = Ready("s", "kitchen", "tiny-en", None, "cpu")


def codec(**options: Any) -> WhisperLive:
    made = WhisperLive(Handshake("/"))
    list(made.decode(json.dumps({**STOCK, **options})))
    return made


def told(frames: Iterable[Frame]) -> list[dict[str, Any]]:
    messages = [json.loads(frame) for frame in frames]
    assert {each.pop("uid") for each in messages} <= {"7"}
    return messages


def say(made: WhisperLive, *events: Event) -> list[dict[str, Any]]:
    return [each for event in events for each in told(made.encode(event))]


def final(number: int, text: str = "turn on", language: str | None = "en", words: Any = None) -> Final:
    return Final("kitchen", number, number, number + 0.5, text, 0.8, "student", language, 90, words)


def partial(number: int, stable: str = "turn", tail: str = " on") -> Partial:
    return Partial("kitchen", number, number, number + 0.25, stable, tail, 3)


def completed(number: int, text: str = " turn on") -> dict[str, Any]:
    return {"start": f"{number}.000", "end": f"{number}.500", "text": text, "completed": True}


def open_(number: int, text: str = " turn on") -> dict[str, Any]:
    return {"start": f"{number}.000", "end": f"{number}.250", "text": text, "completed": False}


def fault_of(*frames: Frame) -> Fault:
    made = WhisperLive(Handshake("/"))
    *before, last = frames
    for frame in before:
        list(made.decode(frame))
    with pytest.raises(Fault) as caught:
        list(made.decode(last))
    return caught.value


# --- what comes in ---------------------------------------------------------------------------------------------------


def test_the_first_frame_begins_the_stream() -> None:
    made = WhisperLive(Handshake("/", "source=porch"))
    assert list(made.decode(json.dumps(STOCK))) == [Start(source="porch", encoding="pcm_f32le", language="en")]
    assert list(made.decode(bytes(8))) == [Audio(bytes(8))]
    assert list(made.decode(b"END_OF_AUDIO")) == [Stop()]


def test_the_least_that_can_be_said() -> None:
    made = WhisperLive(Handshake("/"))
    assert list(made.decode('{"uid":"7"}')) == [Start(source="whisperlive", encoding="pcm_f32le")]
    assert say(made, READY) == [{"message": "SERVER_READY", "backend": "faster_whisper"}]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (bytes(8), "bad_order"),
        ("{", "bad_json"),
        ("[" * 100_000, "bad_json"),
        ("[]", "bad_json"),
        ("{}", "bad_field"),
        ('{"uid":7}', "bad_field"),
        ('{"uid":"\\ud800"}', "bad_field"),
        ('{"uid":"7","language":1}', "bad_field"),
        ('{"uid":"7","send_last_n_segments":0}', "bad_field"),
        ('{"uid":"7","send_last_n_segments":true}', "bad_field"),
        ('{"uid":"7","hotwords":["lamp"]}', "bad_field"),
        ('{"uid":"7","hotwords":"\\ud800"}', "bad_field"),
        (json.dumps({"uid": "7", "hotwords": "lamp," * 1000}), "bad_field"),
        (json.dumps({"uid": "7", "hotwords": "a" * 101}), "bad_vocabulary"),
        (json.dumps({"uid": "7", "hotwords": ",".join(map(str, range(1001)))}), "bad_vocabulary"),
        ('{"uid":"7","hotwords":"<|endoftext|>"}', "bad_vocabulary"),
        ('{"uid":"7","task":"translate"}', "unsupported"),
        ('{"uid":"7","enable_translation":true}', "unsupported"),
        ('{"uid":"7","enable_diarization":true}', "unsupported"),
    ],
)
def test_what_will_not_do_ends_the_conversation(frame: Frame, code: str) -> None:
    fault = fault_of(frame)
    assert (fault.code, fault.fatal) == (code, True)


@pytest.mark.parametrize(
    ("options", "phrases"),
    [
        ({"hotwords": "WhisperLive,TensorRT, Open VINO ,,"}, ["WhisperLive", "TensorRT", "Open VINO"]),
        ({"hotwords": ""}, []),
        ({"hotwords": None, "initial_prompt": ""}, []),
        ({"initial_prompt": "Kallax, Nanit, Thibault de la Tour."}, ["Kallax", "Nanit", "Thibault de la Tour"]),
        ({"hotwords": "Kallax", "initial_prompt": "Nanit, Kallax"}, ["Kallax", "Nanit"]),
        ({"initial_prompt": "Kallax"}, ["Kallax"]),
        ({"initial_prompt": "Hello."}, []),
        ({"initial_prompt": "They talk about lamps, and how to light them."}, []),
        ({"initial_prompt": "Kallax, <|endoftext|>"}, []),
        ({"initial_prompt": "a, b" * 1500}, []),
    ],
)
def test_hotwords_are_phrases_and_so_is_a_prompt_that_is_a_list(options: dict[str, Any], phrases: list[str]) -> None:
    (start,) = WhisperLive(Handshake("/")).decode(json.dumps({**STOCK, **options}))
    assert isinstance(start, Start)
    assert [each.text for each in start.vocabulary.phrases] == phrases
    assert {each.weight for each in start.vocabulary.phrases} <= {1.0}


def test_what_is_used_is_not_said_to_be_in_vain() -> None:
    made = codec(hotwords="Kallax", initial_prompt="Nanit, Lumen")
    assert say(made, READY) == [{"message": "SERVER_READY", "backend": "faster_whisper"}]


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.text(min_size=95),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
LISTS = st.lists(st.text(st.characters(), max_size=20)).map(",".join)


@given(JSON | LISTS, JSON | LISTS)
def test_any_phrases_are_a_stream_or_an_error_of_theirs(hotwords: Any, prompt: Any) -> None:
    made = WhisperLive(Handshake("/"))
    try:
        (start,) = made.decode(json.dumps({**STOCK, "hotwords": hotwords, "initial_prompt": prompt}))
    except Fault as fault:
        (error,) = told(made.blame(fault))
        assert error["status"] == "ERROR"
        assert len(error["message"]) < 300
    else:
        assert isinstance(start, Start)
        assert say(made, READY)[-1]["message"] == "SERVER_READY"


def test_text_behind_the_first_frame_will_not_do() -> None:
    assert fault_of(json.dumps(STOCK), "hello").code == "bad_order"


@given(st.lists(st.text() | st.binary() | st.just(json.dumps(STOCK)), max_size=4))
def test_any_frame_is_understood_or_refused(frames: list[Frame]) -> None:
    made = WhisperLive(Handshake("/"))
    with contextlib.suppress(Fault):
        for frame in frames:
            list(made.decode(frame))


# --- what goes out ---------------------------------------------------------------------------------------------------


def test_the_stock_client_is_welcome() -> None:
    assert say(codec(), READY) == [{"message": "SERVER_READY", "backend": "faster_whisper"}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "small"}, "tiny-en"),
        ({"use_vad": False}, "use_vad"),
        ({"initial_prompt": "They talk about lamps."}, "initial_prompt"),
        ({"initial_prompt": ["lamp"], "vad_parameters": {"threshold": 0.5}}, "initial_prompt, vad_parameters"),
        ({"colour": "red"}, "colour"),
        ({"a\n" * 1000: 1}, "something unknown"),
    ],
)
def test_what_is_asked_for_in_vain_is_said(
    options: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    warning, ready = say(codec(**options), READY)
    assert warning["status"] == "WARNING"
    assert words in warning["message"]
    assert ready["message"] == "SERVER_READY"
    lines = [f"whisperlive: taken without effect: {words}"] if "model" not in options else []
    assert [record.getMessage() for record in caplog.records] == lines


def test_segments_are_those_completed_and_the_one_that_is_open() -> None:
    made = codec()
    messages = say(made, partial(1), final(1), partial(2, "", "off"), final(2, "off"))
    assert [each["segments"] for each in messages] == [
        [open_(1)],
        [completed(1)],
        [completed(1), open_(2, " off")],
        [completed(1), completed(2, " off")],
    ]


def test_only_the_last_are_sent() -> None:
    made = codec(send_last_n_segments=2)
    (*_, last) = say(made, *(final(number) for number in range(5)), partial(5))
    assert last["segments"] == [completed(3), completed(4), open_(5)]


def test_words_where_they_are_asked_for() -> None:
    made = codec(word_timestamps=True)
    (message,) = say(made, final(1, words=(Word("turn", 1.0, 1.2, 0.9),)))
    assert message["segments"][0]["words"] == [{"word": "turn", "start": "1.000", "end": "1.200", "probability": 0.9}]


def test_the_language_is_told_to_who_does_not_know_it() -> None:
    kinds = [list(each) for each in say(codec(language=None), final(1), final(2))]
    assert kinds == [["language", "language_prob"], ["segments"], ["segments"]]
    assert [list(each) for each in say(codec(), final(1))] == [["segments"]]


def test_failures_are_warnings_and_the_last_is_an_error() -> None:
    made = codec()
    messages = say(made, Error("odd_bytes", "whole samples", fatal=False), Error("internal", "the log", fatal=True))
    assert messages == [
        {"status": "WARNING", "message": "whole samples"},
        {"status": "ERROR", "message": "the log"},
    ]


def test_faults_and_a_full_house() -> None:
    made = codec()
    assert told(made.blame(Fault("bad_order", "audio comes after it"))) == [
        {"status": "ERROR", "message": "audio comes after it"}
    ]
    assert told(made.blame(Fault("busy", "later"))) == [{"status": "WAIT", "message": 1.0}]
