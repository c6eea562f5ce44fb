"""One reading of language tags, wherever somebody writes one."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from daemon.common.client_input import language_code, language_codes
from daemon.dialects import native, wyoming
from daemon.dialects.codec import Handshake
from daemon.dialects.deepgram import parse
from daemon.dialects.openai_files import wanted
from daemon.dialects.openai_session import SessionConfig, updated
from daemon.dialects.whisperlive import WhisperLive
from daemon.settings.schema import Settings
from streaming.events import Start

TAGS = {"en": "en", "EN": "en", "en-US": "en", "en_US": "en", "en_us": "en", "zh-Hant-TW": "zh", "-": "", "xx": "xx"}


def of_deepgram(tag: str) -> str | None:
    return parse(f"encoding=linear16&sample_rate=16000&language={tag}").start.language


def of_whisperlive(tag: str) -> str | None:
    hello = {"uid": "7", "language": tag, "task": "transcribe", "model": "small", "use_vad": True}
    messages = WhisperLive(Handshake("/")).decode(json.dumps(hello))
    return next(each for each in messages if isinstance(each, Start)).language


def of_openai(tag: str) -> str | None:
    session = {"type": "transcription", "audio": {"input": {"transcription": {"model": "x", "language": tag}}}}
    return updated(SessionConfig(), session).language


def of_openai_files(tag: str) -> str | None:
    return wanted([("model", "x"), ("language", tag)]).language


def of_wyoming(tag: str) -> str | None:
    decoder = wyoming.WyomingDecoder()
    decoder.feed(wyoming.encode("transcribe", {"language": tag}))
    decoder.feed(wyoming.encode("audio-start", {"rate": 16000, "width": 2, "channels": 1}))
    return next(each for each in iter(decoder.next, None) if isinstance(each, Start)).language


def of_native(tag: str) -> str | None:
    start = native.NativeDecoder().decode(json.dumps({"type": "start", "language": tag}))
    assert isinstance(start, Start)
    return start.language


def of_a_microphone(tag: str) -> str | None:
    return Settings.model_validate({"microphone": {"language": tag}}).microphone.language


READERS = (
    language_code, of_deepgram, of_whisperlive, of_openai, of_openai_files, of_wyoming, of_native, of_a_microphone,
)  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_means_the_same_everywhere(tag: str) -> None:
    for read in READERS:
        assert read(tag) == TAGS[tag], read.__name__


def among_openai(tags: list[str]) -> tuple[str, ...]:
    session = {"type": "transcription", "audio": {"input": {"transcription": {"model": "x", "languages": tags}}}}
    return updated(SessionConfig(), session).languages


def among_openai_files(tags: list[str]) -> tuple[str, ...]:
    return wanted([("model", "x"), *(("languages[]", tag) for tag in tags)]).languages


def among_native(tags: list[str]) -> tuple[str, ...]:
    start = native.NativeDecoder().decode(json.dumps({"type": "start", "languages": tags}))
    assert isinstance(start, Start)
    return start.languages


def among_settings(tags: list[str]) -> tuple[str, ...]:
    return tuple(Settings.model_validate({"models": {"languages": tags}}).models.languages)


@pytest.mark.parametrize("read", [language_codes, among_openai, among_openai_files, among_native, among_settings])
def test_several_tags_are_the_codes_among_which_the_language_is_detected(
    read: Callable[[list[str]], tuple[str, ...]],
) -> None:
    assert read(["en-US", "EN", "zh-Hant-TW", "", "xx"]) == ("en", "zh", "xx")
    assert read([]) == ()
