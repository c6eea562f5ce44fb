"""The native dialect: what a frame may be, and what is said about one that may not."""

from __future__ import annotations

import contextlib
import inspect
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daemon.common.errors import Fault
from daemon.dialects import native
from streaming import events
from streaming.events import Audio, Endpointing, Error, Event, Final, Flush, Partial, Resume, Start, Stop, Word
from streaming.job import Phrase, Vocabulary

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def decoder(*, begun: bool) -> native.NativeDecoder:
    made = native.NativeDecoder()
    made.begun = begun
    return made


def fault(frame: str | bytes, *, begun: bool = False) -> Fault:
    with pytest.raises(Fault) as caught:
        decoder(begun=begun).decode(frame)
    return caught.value


def test_the_protocols_own_examples() -> None:
    start = (
        '{"type":"start","source":"kitchen","encoding":"pcm_s16le","sample_rate":16000,"channels":1,'
        '"language":"en","partials":true,"words":false}'
    )
    codec = native.NativeDecoder()
    assert codec.decode(start) == Start("kitchen", "pcm_s16le", 16000, 1, "en", True, False)
    assert codec.decode(b"\x00\x01\x02") == Audio(b"\x00\x01\x02")
    assert codec.decode('{"type":"flush","id":"a1"}') == Flush("a1")
    assert codec.decode('{"type":"stop"}') == Stop()


def test_what_is_left_out_has_its_default() -> None:
    assert native.NativeDecoder().decode('{"type":"start"}') == Start()
    assert native.NativeDecoder().decode('{"type":"flush"}') == Flush(None)


def test_phrases_to_hear() -> None:
    start = native.NativeDecoder().decode('{"type":"start","vocabulary":["Kallax",{"text":"Thibault","weight":1.5}]}')
    assert start == Start(vocabulary=Vocabulary((Phrase("Kallax"), Phrase("Thibault", 1.5))))


def test_where_utterances_end() -> None:
    start = native.NativeDecoder().decode('{"type":"start","hangover":1,"longest":20.5,"onset":null}')
    assert start == Start(endpointing=Endpointing(hangover=1.0, longest=20.5))


def test_a_stream_is_resumed_in_place_of_its_start() -> None:
    assert native.NativeDecoder().decode('{"type":"start","resume":30}') == Start(resume=30)
    wanted = native.NativeDecoder().decode('{"type":"resume","token":"secret","events":12}')
    assert wanted == Resume("secret", 12)
    assert "secret" not in repr(wanted)
    with pytest.raises(Fault) as caught:
        native.NativeDecoder().decode('{"type":"resume","token":["secret"],"events":12}')
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("frame", "begun", "code", "says"),
    [
        ('{"type":', False, "bad_json", "one JSON object"),
        ('{"type":', True, "bad_json", "one JSON object"),
        ("hello", False, "bad_json", "one JSON object"),
        ("[1]", False, "bad_json", "got [1]"),
        ("[" * 60000, False, "bad_json", "nested too deeply"),
        ('{"a":' * 10000, True, "bad_json", "nested too deeply"),
        ("hello", True, "text_for_audio", "binary frames"),
        ("AAAA////", True, "text_for_audio", "binary frames"),
        ("", True, "text_for_audio", "binary frames"),
        ('{"a":1}', False, "unknown_type", 'needs a "type"'),
        ('{"type":"audio","data":"AAAA"}', True, "unknown_type", "audio in binary frames"),
        ('{"type":["start"]}', False, "unknown_type", '["start"]'),
        ('{"type":"start","rate":16000}', False, "unknown_field", "it takes source, encoding, sample_rate"),
        ('{"type":"stop","now":true}', True, "unknown_field", "it takes none"),
        ('{"type":"start","partials":"yes"}', False, "bad_field", "partials must be true or false"),
        ('{"type":"start","source":1}', False, "bad_field", "source must be a string"),
        ('{"type":"flush","id":' + json.dumps("x" * 300) + "}", True, "bad_field", "at most 256"),
        ('{"type":"start"}', True, "late_start", "once, before any audio"),
        (
            '{"type":"start","hangover":"2"}',
            False,
            "bad_field",
            "hangover must be a number of seconds, 0 or more, or null",
        ),
        ('{"type":"start","onset":-1}', False, "bad_field", "onset must be a number of seconds, 0 or more, or null"),
        ('{"type":"start","endpointing":{"hangover":1}}', False, "unknown_field", "hangover, longest, onset"),
        ('{"type":"start","vocabulary":"Kallax"}', False, "bad_vocabulary", "must be a list of phrases"),
        ('{"type":"start","vocabulary":[{"text":"a","weight":99}]}', False, "bad_vocabulary", "at most 10"),
        ('{"type":"start","resume":true}', False, "bad_field", "resume must be a number of seconds"),
        ('{"type":"start","resume":-1}', False, "bad_field", "0 or more, got -1"),
        ('{"type":"start","resume":NaN}', False, "bad_field", "a number of seconds"),
        ('{"type":"start","resume":1' + "0" * 400 + "}", False, "bad_field", "a number of seconds"),
        ('{"type":"start","resume":"secret"}', False, "bad_field", "a number of seconds"),
        ('{"type":"resume","token":"x"}', False, "missing_field", "resume needs events: it takes token, events"),
        ('{"type":"resume","events":1}', False, "missing_field", "resume needs token"),
        ('{"type":"resume","token":null,"events":1}', False, "bad_field", "token must be a string"),
        ('{"type":"resume","token":"x","events":1.5}', False, "bad_field", "a whole number, 0 or more, got 1.5"),
        ('{"type":"resume","token":"x","events":1}', True, "late_start", "to change parameters or to resume"),
    ],
)
def test_each_fault_has_its_code_and_says_what_to_send(frame: str, begun: bool, code: str, says: str) -> None:
    found = fault(frame, begun=begun)
    assert found.code == code
    assert says in found.message
    assert len(found.message) < 400
    # Before the stream has begun its parameters are in doubt; afterwards only the one message is.
    assert found.fatal == (not begun)


@pytest.mark.parametrize("first", ['{"type":"start"}', b"\x00", '{"type":"flush"}'])
def test_a_start_comes_first_or_not_at_all(first: str | bytes) -> None:
    codec = native.NativeDecoder()
    codec.decode(first)
    with pytest.raises(Fault) as caught:
        codec.decode('{"type":"start"}')
    assert caught.value.code == "late_start"


@example('{"type":"start"}', False)  # hypothesis finds such literals in the code: then it is a message
@given(st.text(), st.booleans())
def test_no_text_is_more_than_a_fault(frame: str, begun: bool) -> None:
    answer: Any
    try:
        answer = decoder(begun=begun).decode(frame)
    except Fault as refusal:
        answer = refusal
    assert isinstance(answer, Fault | Start | Flush | Stop)
    if isinstance(answer, Fault):
        assert answer.message
        json.dumps(answer.message)


@given(st.sampled_from(["start", "flush", "stop"]), st.dictionaries(st.text(), JSON, max_size=4), st.booleans())
def test_no_object_is_more_than_a_fault(kind: str, body: dict[str, Any], begun: bool) -> None:
    known = {"id", "source", "encoding", "sample_rate", "channels", "language", "partials", "words"}
    frame = json.dumps({**body, "type": kind})
    if body.keys() <= known | {"type"}:
        with contextlib.suppress(Fault):
            decoder(begun=begun).decode(frame)
    else:
        assert fault(frame, begun=begun).message.isprintable()


@given(st.binary(max_size=64), st.booleans())
def test_every_binary_frame_is_audio(frame: bytes, begun: bool) -> None:
    assert decoder(begun=begun).decode(frame) == Audio(frame)


EXAMPLES: list[Event] = [
    events.Ready("9f2c", "kitchen", "tiny-en", None, "cpu"),
    events.SpeechStarted("kitchen", 1, 0.42),
    Partial("kitchen", 1, 0.42, 1.6, "turn on", " the kitchen", 84, 3),
    events.SpeechStopped("kitchen", 1, 2.38),
    Final("kitchen", 1, 0.42, 2.38, "turn on", 0.94, "student", "en", 130, (Word("turn", 0.44, 0.61, 0.97),), 6),
    events.Flushed("a1"),
    events.Stopped(12.4),
    Error("bad_format", "sample_rate must be 8000..192000, got 12", True),
    events.Notice("no_signal", "all samples were zero", "kitchen"),
]


def test_every_event_has_an_example() -> None:
    known = {member for _, member in inspect.getmembers(events, inspect.isclass) if issubclass(member, Event)}
    assert {type(example) for example in EXAMPLES} == known - {Event}


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.type)
def test_every_event_becomes_one_line_of_json(event: Event) -> None:
    line = native.encode(event)
    assert "\n" not in line
    assert json.loads(line)["type"] == event.type


def test_every_fatal_fault_has_a_close_code_that_may_be_sent() -> None:
    for code in ["bad_json", "bad_format", "unauthorised", "full", "message_too_big", "subscribe_only", "internal"]:
        assert 1000 <= native.close_code(code) <= 1014
    assert native.close_code("unauthorised") == 1008
    assert native.close_code("message_too_big") == 1009
    assert native.close_code("full") == native.close_code("busy") == 1013
