"""The native protocol: frames to the decoder, and bytes to the port.

`native`: whatever frames come, a message or a fault with a sentence; both can be sent. `native-port`: requests and
websocket frames, right, wrong and cut, over a real socket: the daemon lives, keeps nothing, and logs no exception.
"""

from __future__ import annotations

import json
import struct
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from daemon.common.errors import Fault
from daemon.dialects import native
from streaming.events import Flush, Flushed, Start, Stop

from .rounds import Target
from .service import Daemon

TEXTS = st.text(st.characters(), max_size=30) | st.sampled_from(["\ud800", "\x00", "a" * 300, "kitchen"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    "source", "encoding", "sample_rate", "channels", "language", "partials", "words", "vocabulary", "hangover",
    "longest", "onset", "no_speech", "languages", "id",
]  # fmt: skip
GOOD = {
    "source": "a1", "encoding": "pcm_s16le", "sample_rate": 16000, "channels": 1, "language": None, "partials": True,
    "words": False, "id": "x", "vocabulary": ["Kallax", {"text": "Lumen", "weight": 2}], "hangover": 0.5, "longest": 20,
    "onset": 0.1, "no_speech": 3, "languages": ["en", "de"],
}  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> str:
    """Nearly right, mostly: what is all wrong gets no further than its type."""
    kind = draw(st.sampled_from(["start", "flush", "stop"]))
    body: dict[str, Any] = {"type": kind if draw(st.integers(0, 9)) else draw(VALUES)}
    options: dict[str, list[str]] = {"start": KEYS[:-1], "flush": KEYS[-1:], "stop": []}
    known = options[kind]
    keys = st.sampled_from(known) if draw(st.integers(0, 5)) and known else st.sampled_from(KEYS) | TEXTS
    for key in draw(st.lists(keys, max_size=4)):
        body[key] = draw(st.just(GOOD.get(key)) | TEXTS | VALUES)
    return json.dumps(body)


FRAMES = messages() | messages() | TEXTS | VALUES.map(json.dumps) | st.binary(max_size=200) | st.just("[" * 100_000)


def decode_all(frames: list[str | bytes]) -> None:
    decoder = native.NativeDecoder()
    for frame in frames:
        try:
            message = decoder.decode(frame)
        except Fault as fault:
            assert 0 < len(fault.message) < 500
            # As it goes out: a lone surrogate would have no UTF-8.
            native.encode(fault.event(fatal=True)).encode()
            assert 1000 <= native.close_code(fault.code) < 1100
            continue
        match message:
            case Flush(id):
                native.encode(Flushed(id)).encode()
            case Start() | Stop():
                pass


# --- at the port -----------------------------------------------------------------------------------------------------

_daemon = Daemon()


QUERIES = st.lists(
    st.sampled_from(
        ["token=good", "token=half", "source=a1", "source=", "source", "since=0", "since=-1", "since=9" + "9" * 5000,
         "since=%D9%A1", "source=%00", "source=%ff", "source=%", "source=a%2Fb", "source=%F0%9F%8E%A4", "x=y", "a;b",
         "=", "source=" + "a" * 65, "x=" + "y" * 5000]
    )
    | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
    max_size=20,
).map("&".join)  # fmt: skip
"""As they come: not quoted, doubled, too many, too long. A number may have thousands of digits, or those of another
script."""


def handshake_lines() -> list[str]:
    """The headers that every websocket's beginning has."""
    return [
        "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    path = draw(st.sampled_from(["/v1/stream", "/v1/events", "/metrics", "/healthz", "/", "*"]) | st.text(max_size=10))
    query = {
        key: draw(st.sampled_from(["good", "half", "a1", "0", "-1", ""]) | st.text(max_size=20))
        for key in draw(st.lists(st.sampled_from(["token", "source", "since", "x"]), max_size=3))
    }
    target = quote(path) + "?" * bool(query) + "&".join(f"{key}={quote(value)}" for key, value in query.items())
    if draw(st.integers(0, 2)) == 0:
        target = quote(path) + "?" + draw(QUERIES)
    lines = handshake_lines()
    if draw(st.booleans()):
        token = draw(st.sampled_from(["Bearer good", "Bearer half", "Bearer \xff", "Basic x"]))
        lines.append(f"Authorization: {token}")
    lines = [line for line in lines if draw(st.integers(0, 30))]
    if draw(st.integers(0, 5)) == 0:
        lines += draw(st.lists(st.sampled_from(lines) | st.text(max_size=20), max_size=3)) if lines else []
    method = draw(st.sampled_from(["GET"] * 9 + ["POST"]))
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode("latin-1", "replace")


def frame(opcode: int, payload: bytes, *, last: bool = True, masked: bool = True) -> bytes:
    size = len(payload)
    length = struct.pack("!B", size | 0x80 * masked) if size < 126 else struct.pack("!BH", 126 | 0x80 * masked, size)
    mask = b"\x00" * 4 if masked else b""
    return bytes([opcode | 0x80 * last]) + length + mask + payload


PAYLOADS = messages().map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=700)
WIRE = st.builds(
    frame,
    st.sampled_from([0, 1, 1, 1, 2, 2, 2, 8, 9, 10]) | st.integers(0, 15),
    PAYLOADS,
    last=st.integers(0, 9).map(bool),
    masked=st.integers(0, 30).map(bool),
) | st.binary(max_size=20)
TALK = st.tuples(requests() | st.binary(max_size=100), st.lists(WIRE, max_size=8)).map(lambda pair: [pair[0], *pair[1]])


def talk(pieces: list[bytes]) -> None:
    _daemon.exchange(_daemon.http, pieces)


TARGETS = (
    Target("native", st.lists(FRAMES, max_size=6), decode_all, size=400),
    Target("native-port", TALK, talk, size=100, open=_daemon.open, close=_daemon.close),
)
