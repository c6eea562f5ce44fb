"""The vocabulary: everything that an edge may bring in or carry out, as frozen dataclasses.

Owns the words, their fields and their JSON form. The JSON of an event is its fields and `type`, the class name in snake
case; it is the same object on every way out. Knows nothing of sockets, topics, audio processing or models.

All times are seconds since the first sample of the stream, derived from sample offsets.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from streaming.job import NO_VOCABULARY, Vocabulary

PROTOCOL_VERSION = 1

_IF_KNOWN = {"left out when None": True}
"""Marks a field that its JSON has only where there is a value; of the others it has null."""

_INSIDE = {"never in the JSON": True}
"""Marks a field for those dialects whose own words have a place for it."""

Encoding = Literal["pcm_s16le", "pcm_f32le", "mulaw", "alaw"]
"""Of samples, one after the other."""

Packed = Literal["opus"]
"""Of packets in a container, which says itself what rate and channels they have."""


LongFormMethod = Literal["vad", "timestamps", "conditioned"]
"""How a recording is cut that no model hears at once: where nobody speaks, or by the timestamps of its text, where
"conditioned" also tells each window the text before it."""


# --- what comes in ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Endpointing:
    """Where an utterance of this stream begins and ends, if the service's settings are not to decide.

    Attributes:
        threshold: the probability of speech that may open an utterance.
        pre_roll: seconds of audio before the speech that belong to it.
        hangover: seconds of silence that close it.
        longest: seconds of an utterance at most.
        onset: seconds of continuous speech that open one.
        no_speech: seconds of audio after which the stream ends if nobody has spoken in it; None for never.
    """

    threshold: float | None = None
    pre_roll: float | None = None
    hangover: float | None = None
    longest: float | None = None
    onset: float | None = None
    no_speech: float | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """The stream's parameters; a stream without it has these defaults.

    Attributes:
        source: the name that its events carry.
        language: a code; when None, a multilingual checkpoint detects it.
        partials: whether partials are wanted.
        words: whether the words of finals are wanted.
        resume: seconds for which the stream waits for its client when the connection drops.
        endpointing: where utterances begin and end.
        vocabulary: phrases that are to be heard, beside those that the service has for the source.
        languages: the codes among which a language is detected that is not given; empty for those that the service's
            settings name.
        separate: whether each channel is a source of its own, in place of all mixed into one.
        long_form: how it is cut. A live stream is cut where nobody speaks.
    """

    source: str | None = None
    encoding: Encoding | Packed = "pcm_s16le"
    sample_rate: int = 16000
    channels: int = 1
    language: str | None = None
    partials: bool = True
    words: bool = False
    resume: float = 0.0  # seconds for which the stream shall wait for its client when the connection drops
    endpointing: Endpointing = Endpointing()
    vocabulary: Vocabulary = NO_VOCABULARY
    languages: tuple[str, ...] = ()
    separate: bool = False
    long_form: LongFormMethod = "vad"


@dataclass(frozen=True, slots=True)
class Audio:
    """Bytes in the stream's encoding, in chunks of any size, split anywhere."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    """A request to make what was heard final now; answered by `Flushed` with the same id."""

    id: str | None = None


@dataclass(frozen=True, slots=True)
class Discard:
    """A request to forget the open utterance, which gets no final; answered by `Flushed` with the same id."""

    id: str | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """The end of the audio: the last finals follow, then `Stopped`."""


Inbound = Start | Audio | Flush | Discard | Stop


@dataclass(frozen=True, slots=True)
class Resume:
    """A request, in place of `Start` on another connection, to continue the stream that waits under `token`.

    Attributes:
        token: from `Ready`.
        events: how many events of the stream its client has received, on all its connections; `Ready` does not count.
    """

    token: str = field(repr=False)
    events: int


# --- what goes out ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a final.

    Attributes:
        start: in seconds.
        end: in seconds.
        confidence: 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Event:
    """The base of everything that goes out.

    Attributes:
        type: its name on the wire.
    """

    type: ClassVar[str] = "event"

    def __init_subclass__(cls) -> None:
        # Not super().__init_subclass__(): slots=True creates each class twice, and the zero-argument form breaks.
        cls.type = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


@dataclass(frozen=True, slots=True)
class Ready(Event):
    """What the client talks to.

    `token`, `resume`, `samples` and `flushes` are present if the stream waits when its connection drops.

    Attributes:
        token: what a client shows to `Resume` the stream. It is a secret, unlike the session, which everybody reads in
            ids.
        resume: how many seconds the stream waits.
        samples: how many were heard so far, of every channel, at the client's rate.
        flushes: how many were heard so far.
        channels: the sources of the channels, if each has its own.
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
    channels: tuple[str, ...] | None = field(default=None, metadata=_IF_KNOWN)


@dataclass(frozen=True, slots=True)
class SpeechStarted(Event):
    source: str
    utterance: int
    start: float


@dataclass(frozen=True, slots=True)
class Partial(Event):
    """What an open utterance is thought to say so far.

    Attributes:
        end: the end of what was heard.
        stable: text that never shrinks within an utterance.
        tail: text after it that may change; both together are the whole hypothesis.
        lag_ms: from the arrival of the newest sample to this event.
        seq: given by the hub, which counts the partials and finals of a source.
    """

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
    """The authoritative text of an utterance.

    Attributes:
        model: which model decided the text.
        latency_ms: from the arrival of the last voiced sample to this event.
        words: present only when asked for.
        seq: as in `Partial`.
        id: identifies this final among those of all sources and restarts: the same id twice means the same final twice.
        at: when it was published, in seconds since 1970, so that a reader can tell that it comes late.
        tokens: of the text, as the models number them.
        log_prob: the mean natural-log probability of `tokens` and the end of text; None if it is not known.
        no_speech: probability that there is no speech, 0 to 1; None if the models cannot tell.
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
    tokens: tuple[int, ...] = field(default=(), repr=False, compare=False, metadata=_INSIDE)
    log_prob: float | None = field(default=None, repr=False, compare=False, metadata=_INSIDE)
    no_speech: float | None = field(default=None, repr=False, compare=False, metadata=_INSIDE)


@dataclass(frozen=True, slots=True)
class Flushed(Event):
    id: str | None


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    audio_seconds: float


@dataclass(frozen=True, slots=True)
class Error(Event):
    """Something that went wrong, and what to do about it.

    Attributes:
        fatal: whether the connection is closed after it.
    """

    code: str
    message: str
    fatal: bool
    source: str | None = field(default=None, metadata=_IF_KNOWN)


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """Something that the client of a stream should know although the stream continues.

    It is told once, and only to that client.
    """

    code: str
    message: str
    source: str


def to_dict(event: Event) -> dict[str, Any]:
    """Return the JSON object of an event.

    It has no `words` that were not asked for, no `source` of an error that has none, and nothing that is only for
    those inside.
    """
    body: dict[str, Any] = {"type": event.type}
    for each in fields(event):
        value = getattr(event, each.name)
        if _INSIDE.items() <= each.metadata.items() or (value is None and _IF_KNOWN.items() <= each.metadata.items()):
            continue
        if each.name == "words":
            value = [{name.name: getattr(word, name.name) for name in fields(word)} for word in value]
        body[each.name] = value
    return body


def to_json(event: Event) -> str:
    return json.dumps(to_dict(event), ensure_ascii=False, separators=(",", ":"))
