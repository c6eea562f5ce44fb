"""One judgement of the texts that a client names, wherever it names them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daemon.common.client_input import LONGEST_TEXT, is_text
from daemon.common.errors import Fault
from daemon.dialects import native, wyoming
from daemon.dialects.codec import Handshake
from daemon.dialects.deepgram import parse
from daemon.dialects.openai_session import SessionConfig, updated
from daemon.dialects.whisperlive import WhisperLive


@example("\ud83d\ude00")  # both halves, and still no character
@given(st.text(st.characters(), max_size=8))
def test_a_text_is_what_can_be_sent_back(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        assert not is_text(text)
    else:
        assert is_text(text)


@pytest.mark.parametrize("value", [None, 1, True, b"a", ["a"], {"a": 1}])
def test_what_is_no_text(value: object) -> None:
    assert not is_text(value)


def test_how_long_a_text_may_be() -> None:
    assert is_text("")
    assert is_text("ä" * LONGEST_TEXT)
    assert not is_text("ä" * (LONGEST_TEXT + 1))
    assert is_text("ä" * (LONGEST_TEXT + 1), LONGEST_TEXT + 1)


def to_deepgram(text: str) -> None:
    parse(f"encoding=linear16&sample_rate=16000&extra=key:{text}")


def to_whisperlive(text: str) -> None:
    list(WhisperLive(Handshake("/")).decode(json.dumps({"uid": text})))


def to_openai(text: str) -> None:
    updated(SessionConfig(), {"audio": {"input": {"transcription": {"model": text}}}})


def to_wyoming(text: str) -> None:
    decoder = wyoming.WyomingDecoder()
    decoder.feed(json.dumps({"type": "ping", "data": {"text": text}}).encode() + b"\n")
    decoder.next()


def to_native(text: str) -> None:
    native.NativeDecoder().decode(json.dumps({"type": "flush", "id": text}))


@pytest.mark.parametrize("name", [to_deepgram, to_whisperlive, to_openai, to_wyoming, to_native])
def test_every_dialect_judges_alike(name: Callable[[str], None]) -> None:
    name("kitchen ä 日本")
    for text in ("a\ud800", "\udfffa", "a" * 1025):
        with pytest.raises(Fault):
            name(text)
