"""Attacks on the dialects of other services' clients, at their ports: nearly right, mostly."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from .native import TEXTS, VALUES, frame
from .rounds import Target
from .service import Daemon

_PARAMETERS = {
    "encoding": "linear16", "sample_rate": "16000", "channels": "2", "language": "en-US", "interim_results": "true",
    "endpointing": "10", "utterance_end_ms": "1000", "vad_events": "true", "punctuate": "true", "smart_format": "true",
    "model": "nova-3", "extra": "a:b", "source": "a1", "alternatives": "1", "diarize": "false",
}  # fmt: skip
_HEADERS = (
    "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)

_DEEPGRAM = [{"type": kind} for kind in ("KeepAlive", "Finalize", "CloseStream", "Configure")]
_VOSK: list[dict[str, Any]] = [
    {"config": {"sample_rate": 16000, "words": 1, "max_alternatives": 2}}, {"reset": 1}, {"eof": 1},
]  # fmt: skip
_WHISPERLIVE: list[dict[str, Any]] = [
    {"uid": "7", "language": "en", "task": "transcribe", "model": "small", "send_last_n_segments": 3, "use_vad": True},
    {"uid": "7", "word_timestamps": True},
]


def _near(messages: list[dict[str, Any]]) -> st.SearchStrategy[str]:
    """One of `messages`, as it is or with something else in it."""
    spoilt = st.tuples(st.sampled_from(messages), st.dictionaries(TEXTS, VALUES, max_size=2)).map(
        lambda pair: {**pair[0], **pair[1]}
    )
    changed = st.tuples(st.sampled_from(messages), VALUES).map(lambda pair: dict.fromkeys(pair[0], pair[1]))
    right = st.sampled_from(messages)
    return st.one_of(right, right, spoilt, changed).map(json.dumps) | TEXTS | VALUES.map(json.dumps)


def _frames(messages: list[dict[str, Any]]) -> st.SearchStrategy[list[bytes]]:
    text = _near(messages).map(lambda said: frame(1, said.encode("utf-8", "replace")))
    audio = (st.binary(max_size=400) | st.sampled_from([b"", b"END_OF_AUDIO", bytes(6400)])).map(
        lambda data: frame(2, data)
    )
    return st.lists(text | audio, max_size=8)


@st.composite
def _request(draw: st.DrawFn) -> bytes:
    """Of Deepgram's path; others go by the port."""
    known = st.sampled_from(sorted(_PARAMETERS))
    strange = draw(st.just([]) | st.just([]) | st.lists(TEXTS, max_size=2))
    names = draw(st.lists(known, max_size=6, unique=True)) + strange
    pairs = {"encoding": "linear16", "sample_rate": "16000"} if draw(st.integers(0, 4)) else {}
    right = draw(st.integers(0, 3))
    pairs |= {name: _PARAMETERS.get(name, "x") if right else draw(TEXTS) for name in names}
    query = "&".join(f"{quote(_plain(name))}={quote(_plain(value))}" for name, value in pairs.items())
    token = draw(st.sampled_from(["Token good"] * 8 + ["Bearer good", "Token half", "Token", "Token \xff"]))
    return _head(f"/v1/listen?{query}", f"Authorization: {token}\r\n")


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _head(target: str, more: str = "") -> bytes:
    return f"GET {target} HTTP/1.1\r\n{_HEADERS}{more}\r\n".encode("latin-1", "replace")


_OWN = st.sampled_from(["/?token=good"] * 8 + ["/?token=half&source=a1", "/", "/?token=good&x=1"]).map(_head)
_daemon = Daemon()


def _talk(place: Callable[[], tuple[str, int]]) -> Callable[[tuple[bytes, list[bytes]]], None]:
    def talk(said: tuple[bytes, list[bytes]]) -> None:
        _daemon.exchange(place(), [said[0], *said[1]])

    return talk


def _target(name: str, heads: st.SearchStrategy[bytes], messages: list[dict[str, Any]], place: Any) -> Target:
    talk = st.tuples(heads, _frames(messages))
    return Target(f"{name}-port", talk, _talk(place), size=60, open=_daemon.open, close=_daemon.close)


TARGETS = (
    _target("deepgram", _request(), _DEEPGRAM, lambda: _daemon.http),
    _target("vosk", _OWN, _VOSK, lambda: _daemon.of("vosk")),
    _target("whisperlive", _OWN, _WHISPERLIVE, lambda: _daemon.of("whisperlive")),
)
