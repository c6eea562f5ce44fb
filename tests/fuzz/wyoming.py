"""Wyoming: bytes to the decoder, and to the port.

`wyoming`: whatever comes, and wherever it is cut, the same messages and the same fault; little is kept of it.
`wyoming-port`: the same over a real socket.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from daemon.common.errors import Fault
from daemon.dialects import wyoming as dialect

from .native import TEXTS, VALUES
from .rounds import Target
from .service import Daemon

KINDS = ["describe", "ping", "transcribe", "audio-start", "audio-chunk", "audio-chunk", "audio-stop", "run-pipeline"]
FIELDS: dict[str, list[Any]] = {
    "rate": [16000, 8000, 0], "width": [1, 2, 3, 4, 5], "channels": [1, 2, 0], "text": ["x"], "name": ["scripted"],
    "language": ["en", "en-US", "xx"], "transcript_names": [["Kallax"], ["a" * 101, 3]],
    "transcript_terms": [["lamp"], []], "vad_sensitivity": ["relaxed", "brisk"],
}  # fmt: skip

TAKES = {
    "ping": ["text"],
    "transcribe": ["name", "language", "transcript_names", "transcript_terms", "vad_sensitivity"],
}


@st.composite
def events(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(KINDS))
    fields = draw(st.lists(st.sampled_from(sorted(TAKES.get(kind, FIELDS))), max_size=4))
    sound = {"rate": 16000, "width": 2, "channels": 1} if draw(st.booleans()) else {}
    data: dict[str, Any] = sound | {key: draw(st.sampled_from(FIELDS[key]) | TEXTS | VALUES) for key in fields}
    body = json.dumps(data).encode() if draw(st.booleans()) else b""
    payload = draw(st.binary(max_size=200))
    header: dict[str, Any] = {"type": kind if draw(st.integers(0, 9)) else draw(TEXTS)}
    if not body:
        header["data"] = draw(st.just(data) | VALUES)
    header["data_length"] = draw(st.just(len(body)) if draw(st.integers(0, 9)) else VALUES | st.integers(-1, 2**70))
    header["payload_length"] = draw(st.just(len(payload)) if draw(st.integers(0, 9)) else VALUES)
    return json.dumps(header).encode() + b"\n" + body + payload


BYTES = st.lists(events() | st.binary(max_size=30), max_size=6).map(b"".join)


def decoded(pieces: list[bytes]) -> tuple[list[dialect.WyomingMessage], str | None]:
    decoder, found = dialect.WyomingDecoder(), list[dialect.WyomingMessage]()
    try:
        for piece in pieces:
            decoder.feed(piece)
            while (message := decoder.next()) is not None:
                found.append(message)
                if isinstance(message, dialect.Ping):
                    dialect.pong(message.text)
            assert len(decoder._buffer) <= dialect.MAX_DATA + dialect.MAX_PAYLOAD + len(piece)
    except Fault as fault:
        assert fault.fatal
        assert 0 < len(fault.message) < 500
        dialect.error(fault.code, fault.message)
        return found, fault.code
    return found, None


def cut(example: tuple[bytes, list[int]]) -> None:
    whole, cuts = example
    places = sorted(each % (len(whole) + 1) for each in cuts)
    pieces = [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]
    assert decoded(pieces) == decoded([whole])


# --- at the port -----------------------------------------------------------------------------------------------------

_daemon = Daemon()


def talk(whole: bytes) -> None:
    _daemon.exchange(_daemon.wyoming, [whole])


TARGETS = (
    Target("wyoming", st.tuples(BYTES, st.lists(st.integers(0, 2**16), max_size=6)), cut, size=400),
    Target("wyoming-port", BYTES, talk, size=100, open=_daemon.open, close=_daemon.close),
)
