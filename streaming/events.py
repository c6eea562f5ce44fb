"""The vocabulary: everything that an edge may bring in or carry out, as frozen dataclasses.

Owns the words, their fields and their JSON form. Knows nothing of sockets, topics, audio processing or models.
The JSON of an event is its fields plus ``type``, the class name in snake case: what a websocket subscriber reads,
what MQTT carries and what ``whisperd transcribe --json`` prints are the same objects.

All times are seconds since the first sample of the stream, derived from sample offsets.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

PROTOCOL_VERSION = 1

_IF_KNOWN = {"left out when None": True}
"""Marks a field that its JSON has only where there is a value; of the others it has null."""

Encoding = Literal["pcm_s16le", "pcm_f32le", "mulaw", "alaw"]
"""Of samples, one after the other."""

Packed = Literal["opus"]
"""Of packets in a container, which says itself what rate and channels they have."""


# --- what comes in ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Endpointing:
    """Where an utterance of this stream begins and ends, if not where the service's settings say. Seconds.

    threshold: probability of speech that may open one. pre_roll: audio before it that belongs to it. hangover: silence
    that closes one.
    """

    threshold: float | None = None
    pre_roll: float | None = None
    hangover: float | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """The stream's parameters. Optional: without it these defaults hold."""

    source: str | None = None
    encoding: Encoding | Packed = "pcm_s16le"
    sample_rate: int = 16000
    channels: int = 1
    language: str | None = None
    partials: bool = True
    words: bool = False
    resume: float = 0.0  # seconds for which the stream shall wait for its client when the connection drops
    endpointing: Endpointing = Endpointing()


@dataclass(frozen=True, slots=True)
class Audio:
    """Bytes in the stream's encoding; frames of any size, split anywhere."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    """Make final now whatever was heard; answered by `Flushed` with the same id."""

    id: str | None = None


@dataclass(frozen=True, slots=True)
class Discard:
    """Forget the utterance that is open: it gets no final. Answered by `Flushed` with the same id, as a flush is."""

    id: str | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """No more audio: the last finals, then `Stopped`."""


Inbound = Start | Audio | Flush | Discard | Stop


@dataclass(frozen=True, slots=True)
class Resume:
    """In place of `Start`, on another connection: go on with the stream that waits under `token` (see `Ready`).

    events: how many events of the stream its client has got so far, on all its connections; `Ready` is not counted.
    """

    token: str = field(repr=False)
    events: int


# --- what goes out ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a final. `confidence` is in 0..1."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Event:
    """Base of everything that goes out. `type` is the wire name."""

    type: ClassVar[str] = "event"

    def __init_subclass__(cls) -> None:
        # Not super().__init_subclass__(): slots=True creates each class twice, and the zero-argument form breaks.
        cls.type = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


@dataclass(frozen=True, slots=True)
class Ready(Event):
    """What the client talks to. The last four are there if the stream waits when its connection drops.

    token: what to show to `Resume` it; a secret, and another than the session, which everybody reads in ids.
    resume: for how many seconds it waits.
    samples, flushes: how many of each were heard so far (of every channel, in the client's own rate).
    """

    session: str
    source: str
    student: str
    teacher: str | None
    device: str
    protocol: int = PROTOCOL_VERSION
    token: str | None = field(default=None, repr=False, metadata=_IF_KNOWN)
    resume: float | None = field(default=None, metadata=_IF_KNOWN)
    samples: int | None = field(default=None, metadata=_IF_KNOWN)
    flushes: int | None = field(default=None, metadata=_IF_KNOWN)


@dataclass(frozen=True, slots=True)
class SpeechStarted(Event):
    source: str
    utterance: int
    start: float


@dataclass(frozen=True, slots=True)
class Partial(Event):
    """`stable` never shrinks within an utterance; `stable + tail` is the whole hypothesis; `end`: heard so far."""

    source: str
    utterance: int
    start: float
    end: float
    stable: str
    tail: str
    lag_ms: int
    seq: int = 0  # given by the hub: counts the partials and finals of a source


@dataclass(frozen=True, slots=True)
class SpeechStopped(Event):
    source: str
    utterance: int
    end: float


@dataclass(frozen=True, slots=True)
class Final(Event):
    """The authoritative text of an utterance. `words` is present only when asked for.

    id: names this final among all of all sources and restarts: who reads the same id twice was told twice.
    at: when it was published, in seconds since 1970: who acts on it can tell that it comes late.
    """

    source: str
    utterance: int
    start: float
    end: float
    text: str
    confidence: float
    model: Literal["student", "teacher"]
    language: str | None
    latency_ms: int
    words: tuple[Word, ...] | None = field(default=None, metadata=_IF_KNOWN)
    seq: int = 0
    id: str | None = field(default=None, metadata=_IF_KNOWN)  # given by the hub, like `at`
    at: float | None = field(default=None, metadata=_IF_KNOWN)


@dataclass(frozen=True, slots=True)
class Flushed(Event):
    id: str | None


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    audio_seconds: float


@dataclass(frozen=True, slots=True)
class Error(Event):
    """Something went wrong, and what to do about it. A fatal one is followed by a close."""

    code: str
    message: str
    fatal: bool
    source: str | None = field(default=None, metadata=_IF_KNOWN)


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """Something of a stream that its client should know, though all goes on: told once, to it alone."""

    code: str
    message: str
    source: str


def to_dict(event: Event) -> dict[str, Any]:
    """The JSON object of an event. `words` is left out when it was not asked for, `source` of an error when unknown."""
    body: dict[str, Any] = {"type": event.type}
    for each in fields(event):
        value = getattr(event, each.name)
        if value is None and _IF_KNOWN.items() <= each.metadata.items():
            continue
        if each.name == "words":
            value = [{name.name: getattr(word, name.name) for name in fields(word)} for word in value]
        body[each.name] = value
    return body


def to_json(event: Event) -> str:
    return json.dumps(to_dict(event), ensure_ascii=False, separators=(",", ":"))
