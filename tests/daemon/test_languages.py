"""One reading of language tags, whatever dialect a client speaks."""

from __future__ import annotations

import json

import pytest

from daemon.dialects.codec import Handshake
from daemon.dialects.deepgram import parse
from daemon.dialects.openai_files import wanted
from daemon.dialects.openai_session import SessionConfig, updated
from daemon.dialects.whisperlive import WhisperLive
from daemon.dialects.words import language_code
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


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_means_the_same_in_every_dialect(tag: str) -> None:
    for read in (language_code, of_deepgram, of_whisperlive, of_openai, of_openai_files):
        assert read(tag) == TAGS[tag], read.__name__
