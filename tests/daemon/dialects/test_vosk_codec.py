"""Vosk's dialect without sockets: above all, that each frame gets exactly one answer."""

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
from daemon.dialects.codec import Frame, Handshake, Message, Reply
from daemon.dialects.vosk import Vosk, dialect
from streaming.events import (
    Audio,
    Event,
    Final,
    Flush,
    Flushed,
    Partial,
    Ready,
    SpeechStarted,
    Start,
    Stop,
    Stopped,
    Word,
)

READY = Ready("s", "vosk", "tiny-en", None, "cpu")


def codec(query: str = "") -> Vosk:
    return Vosk(Handshake("/", query), 8000)


def told(frames: Iterable[Frame]) -> list[dict[str, Any]]:
    return [json.loads(frame) for frame in frames]


def hear(made: Vosk, frame: Frame) -> tuple[list[Message], list[dict[str, Any]]]:
    """What a frame means, and what is answered at once."""
    messages = list(made.decode(frame))
    replies = [each.frame for each in messages if isinstance(each, Reply)]
    return [each for each in messages if not isinstance(each, Reply)], told(replies)


def answer(made: Vosk, audio: bytes = b"ab") -> dict[str, Any]:
    (reply,) = hear(made, audio)[1]
    return reply


def say(made: Vosk, *events: Event) -> list[dict[str, Any]]:
    return [each for event in events for each in told(made.encode(event))]


def final(number: int, text: str, *, words: bool = True) -> Final:
    spoken = tuple(Word(word, number + 0.1, number + 0.2, 0.9) for word in text.split())
    return Final("vosk", number, number, number + 1.0, text, 0.8, "student", "en", 90, spoken if words else None)


def fault_of(*frames: Frame) -> Fault:
    made = codec()
    *before, last = frames
    for frame in before:
        list(made.decode(frame))
    with pytest.raises(Fault) as caught:
        list(made.decode(last))
    return caught.value


# --- settings --------------------------------------------------------------------------------------------------------


def test_audio_without_settings() -> None:
    messages, (reply,) = hear(codec(), b"ab")
    assert messages == [Start(source="vosk", sample_rate=8000, words=True), Audio(b"ab")]
    assert reply == {"partial": ""}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('{"config":{"sample_rate":16000}}', Start(source="vosk", words=True)),
        ('{ "config" : { "sample_rate" : 16000.0 , "words" : 0 } }', Start(source="vosk", words=False)),
        ('{"config" : \n{ "words" : true, "phrase_list" : [] }}', Start(source="vosk", sample_rate=8000, words=True)),
        ('{"config":{"max_alternatives":0,"model":null}}', Start(source="vosk", sample_rate=8000, words=True)),
    ],
)
def test_settings_before_the_audio(config: str, expected: Start) -> None:
    made = codec()
    assert hear(made, config) == ([], [])
    assert hear(made, b"ab")[0][0] == expected


def test_settings_add_up() -> None:
    made = codec("source=porch")
    hear(made, '{"config":{"sample_rate":16000}}')
    hear(made, '{"config":{"words":false}}')
    assert hear(made, b"ab")[0][0] == Start(source="porch", sample_rate=16000, words=False)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", "bad_json"),
        ("[" * 100_000, "bad_json"),
        ('"eof"', "unknown_type"),
        ("{}", "unknown_type"),
        ('{"eof":1,"reset":1}', "unknown_type"),
        ('{"config":[1]}', "bad_field"),
        ('{"config":{"sample_rate":12}}', "bad_field"),
        ('{"config":{"sample_rate":"16000"}}', "bad_field"),
        ('{"config":{"sample_rate":NaN}}', "bad_field"),
        ('{"config":{"words":2}}', "bad_field"),
        ('{"config":{"phrase_list":"yes no"}}', "bad_field"),
        ('{"config":{"phrase_list":["yes",1]}}', "bad_field"),
        ('{"config":{"phrase_list":{"yes":1}}}', "bad_field"),
        ('{"config":{"phrase_list":true}}', "bad_field"),
        ('{"config":{"phrase_list":["\\ud800"]}}', "bad_vocabulary"),
        (json.dumps({"config": {"phrase_list": ["a" * 101]}}), "bad_vocabulary"),
        (json.dumps({"config": {"phrase_list": [str(number) for number in range(1001)]}}), "bad_vocabulary"),
        (json.dumps({"config": {"phrase_list": ["a"] * 200_000}}), "bad_vocabulary"),
        ('{"config":{"grammar":["yes no"]}}', "unsupported"),
        ('{"config":{"model":"/etc/passwd"}}', "unsupported"),
        ('{"config":{"colour":1}}', "unknown_field"),
    ],
)
def test_what_will_not_do_ends_the_conversation(frame: str, code: str) -> None:
    fault = fault_of(frame)
    assert (fault.code, fault.fatal) == (code, True)


def test_settings_come_too_late_behind_audio() -> None:
    assert fault_of(b"ab", '{"config":{"sample_rate":16000}}').code == "late_config"


def test_phrases_are_heard_better_and_what_is_none_of_them_is_no_phrase() -> None:
    made = codec()
    hear(made, '{"config":{"phrase_list":["zero one two three", "six seven", "[unk]", ""]}}')
    (start, _), _ = hear(made, b"ab")
    assert isinstance(start, Start)
    assert [(each.text, each.weight) for each in start.vocabulary.phrases] == [
        ("zero one two three", 1.0),
        ("six seven", 1.0),
    ]


@pytest.mark.parametrize("nothing", ["[]", "null", '["[unk]"]'])
def test_the_last_list_counts(nothing: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = codec()
    hear(made, '{"config":{"phrase_list":["yes"]}}')
    hear(made, f'{{"config":{{"phrase_list":{nothing}}}}}')
    assert hear(made, b"ab")[0][0] == Start(source="vosk", sample_rate=8000, words=True)
    assert say(made, READY) == []
    assert caplog.records == []


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.text(min_size=95),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON | st.lists(st.text()))
def test_any_phrases_are_a_stream_or_a_close(given_: Any) -> None:
    made = codec()
    with contextlib.suppress(Fault):
        hear(made, json.dumps({"config": {"phrase_list": given_}}))
        assert isinstance(hear(made, b"ab")[0][0], Start)


@given(st.lists(st.text() | st.binary(), max_size=4))
def test_any_frame_is_understood_or_refused(frames: list[Frame]) -> None:
    made = codec()
    with contextlib.suppress(Fault):
        for frame in frames:
            list(made.decode(frame))


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_text_so_far_and_then_the_final_once() -> None:
    made = codec()
    assert answer(made) == {"partial": ""}
    say(made, SpeechStarted("vosk", 1, 0.5), Partial("vosk", 1, 0.5, 1.0, "turn", " on", 3))
    assert answer(made) == answer(made) == {"partial": "turn on"}
    say(made, final(1, "turn on"))
    assert answer(made) == {
        "result": [
            {"conf": 0.9, "end": 1.2, "start": 1.1, "word": "turn"},
            {"conf": 0.9, "end": 1.2, "start": 1.1, "word": "on"},
        ],
        "text": "turn on",
    }
    assert answer(made) == {"partial": ""}


def test_texts_are_bare_words_in_small_letters() -> None:
    made = codec()
    answer(made)
    say(made, Partial("vosk", 1, 0.5, 1.0, "It's 20", " °C, isn't", 3))
    assert answer(made) == {"partial": "it's 20 °c isn't"}
    say(made, final(1, "It's 20 °C, isn't it?"))
    told = answer(made)
    assert told["text"] == "it's 20 °c isn't it"
    assert [word["word"] for word in told["result"]] == told["text"].split()
    say(made, final(2, "Yes."), final(3, "..."))
    hear(made, '{"eof" : 1}')
    (last,) = say(made, Stopped(4.0))
    assert last["text"] == "yes"


def test_finals_are_told_one_for_each_frame_and_the_rest_at_the_end() -> None:
    made = codec()
    answer(made)
    say(made, final(1, "one"), final(2, "two"), final(3, "three"))
    assert answer(made)["text"] == "one"
    assert hear(made, '{"eof" : 1}') == ([Stop()], [])
    (last,) = say(made, Stopped(4.0))
    assert last["text"] == "two three"
    assert [word["word"] for word in last["result"]] == ["two", "three"]


def test_a_reset_is_answered_when_all_of_it_is_final() -> None:
    made = codec()
    answer(made)
    assert hear(made, '{"reset":1}') == ([Flush()], [])
    assert say(made, final(1, "one")) == []
    assert [each["text"] for each in say(made, Flushed(None))] == ["one"]
    assert say(made, Flushed(None)) == [{"text": ""}]
    assert answer(made) == {"partial": ""}


def test_an_end_without_audio_is_answered_too() -> None:
    made = codec()
    messages, replies = hear(made, '{"eof":true}')
    assert messages == [Start(source="vosk", sample_rate=8000, words=True), Stop()]
    assert replies == []
    assert say(made, Stopped(0.0)) == [{"text": ""}]


def test_the_end_of_the_service_tells_what_was_not_told_and_nothing_else() -> None:
    made = codec()
    answer(made)
    assert say(made, Stopped(1.0)) == []
    say(made, final(1, "one"))
    assert [each["text"] for each in say(made, Stopped(1.0))] == ["one"]


def test_without_words() -> None:
    made = codec()
    hear(made, '{"config":{"words":0}}')
    answer(made)
    say(made, final(1, "turn on", words=False))
    assert answer(made) == {"text": "turn on"}


def test_alternatives_are_a_list_of_one() -> None:
    made = codec()
    hear(made, '{"config":{"max_alternatives":3}}')
    answer(made)
    say(made, final(1, "turn on", words=False))
    assert answer(made) == {"alternatives": [{"confidence": 0.8, "text": "turn on"}]}


EVENTS = [
    SpeechStarted("vosk", 1, 0.5), Partial("vosk", 1, 0.5, 1.0, "turn", " on", 3), final(1, "one"), final(2, "two"),
]  # fmt: skip


@given(st.lists(st.binary() | st.sampled_from(EVENTS)))
def test_whatever_happens_each_frame_of_audio_has_one_answer_and_no_final_is_lost(
    history: list[bytes | Event],
) -> None:
    made = codec()
    texts: list[str] = []
    for each in history:
        if isinstance(each, bytes):
            texts.append(answer(made, each).get("text", ""))
        else:
            assert say(made, each) == []
    hear(made, '{"eof" : 1}')
    (last,) = say(made, Stopped(1.0))
    spoken = [each.text for each in history if isinstance(each, Final)]
    assert " ".join(filter(None, [*texts, last["text"]])).split() == spoken


def test_faults_have_no_words_in_this_protocol() -> None:
    fault = fault_of("{}")
    assert list(codec().blame(fault)) == []
    assert list(dialect(8000).refuse(fault)) == []
