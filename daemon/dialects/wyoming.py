"""Wyoming, the protocol of Home Assistant's voice parts: bytes of a connection <-> events, without I/O.

Owns the framing (a line of JSON, the JSON data and the payload that it announces), the limits on each of the three, and
what a turn (`audio-start` to `transcript`) looks like on the wire. Knows nothing of sockets, of streams, or of when a
turn is over.

Phrases that cannot be used, and advice that has no effect here, are passed over and said in the log once for each
connection: an `error` would end the turn.

The stock library serves in the tests, as the client. It does not read for us, because it takes in whatever length a
header names, and answers what it cannot read with silence. What we need of it is one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daemon.common.client_input import LONGEST_TEXT, is_text, language_code, read_json, shown
from daemon.common.errors import Fault
from daemon.dialects.advice import AdviceLog
from daemon.dialects.transcript import Transcript
from streaming.events import (
    Audio,
    Endpointing,
    Error,
    Event,
    Final,
    Partial,
    SpeechStarted,
    SpeechStopped,
    Start,
    Stop,
    Stopped,
)
from streaming.vocabulary import (
    LONGEST_PHRASE,
    MOST_PHRASES,
    NO_VOCABULARY,
    Vocabulary,
    VocabularyError,
    joined,
    phrase,
    vocabulary_of,
)

_log = logging.getLogger(__name__)

VERSION = "1.10.2"
"""The release of the protocol whose words we use."""

MAX_HEADER = 64 * 1024
MAX_DATA = 1024 * 1024  # clients may list names to listen for, of a whole house
MAX_PAYLOAD = 1024 * 1024  # half a minute at 16 kHz; stock clients send 20 to 100 ms at once

_MAX_PING = 1024
_WIDTHS = range(1, 5)

_WEIGHTS = {"transcript_names": 1.5, "transcript_terms": 1.0}
"""The lists of phrases to hear, by the weight of each phrase. Names go before terms, as the protocol wants."""

_RULE = f"it must be a list of strings of at most {LONGEST_PHRASE} characters, {MOST_PHRASES} of names and terms in all"

_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {"context": (None, {}), "vad_sensitivity": (None, "default")}
"""Advice that may change nothing here, with the values that ask for nothing."""

_HANGOVERS = {"aggressive": 0.25, "relaxed": 1.25}
"""Seconds of silence that end an utterance, by `vad_sensitivity`: those of Home Assistant's own voice detection."""


# --- what comes in ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Describe:
    """A request for what is offered here, answered by `info`."""


@dataclass(frozen=True, slots=True)
class Ping:
    text: str | None


@dataclass(frozen=True, slots=True)
class Transcribe:
    """The announcement of a turn. Its language and its phrases are in the turn's `Start`.

    Attributes:
        model: a name; None for any.
    """

    model: str | None


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message that is passed over, as the protocol wants; it counts as a message all the same."""


WyomingMessage = Describe | Ping | Transcribe | Start | Audio | Stop | Unknown


@dataclass(frozen=True, slots=True)
class _Header:
    kind: str
    data: dict[str, Any]
    data_length: int
    payload_length: int


class WyomingDecoder:
    """Reads one client's bytes, in order, split anywhere.

    A chunk of audio without an `audio-start` before it begins a turn itself: it says all that a start says.

    Args:
        ends_turns: whether the service hears where speech ends. Only then `vad_sensitivity` has a meaning.

    Attributes:
        parsed: the bytes of JSON in the last message.
    """

    def __init__(self, *, ends_turns: bool = True) -> None:
        self.parsed = 0
        self._ends_turns = ends_turns
        self._buffer = bytearray()
        self._header: _Header | None = None
        self._ready: deque[WyomingMessage] = deque()
        self._language: str | None = None
        self._vocabulary = NO_VOCABULARY
        self._endpointing = Endpointing()
        self._audio: _Samples | None = None  # of the turn that is on
        self._advice = AdviceLog("wyoming")
        self._cut: set[str] = set()  # the lists of which it was said that not all can be used

    @property
    def halfway(self) -> bool:
        """Whether a message has begun that is not complete."""
        return bool(self._buffer) or self._header is not None

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> WyomingMessage | None:
        """Return the next message; None until more bytes come.

        Raises:
            Fault: `message_too_big`, `bad_json`, `bad_field`, `bad_format`, `bad_order`. Fatal, because it is no longer
                known where the next message begins, or what it would mean.
        """
        while not self._ready:
            header = self._header = self._header or self._read_header()
            if header is None or len(self._buffer) < header.data_length + header.payload_length:
                return None
            self._header = None
            data = {**header.data, **self._read_data(header.data_length)}
            self._ready.extend(self._messages(header.kind, data, self._take(header.payload_length)))
        return self._ready.popleft()

    # --- framing ---------------------------------------------------------------------------------------------------

    def _read_header(self) -> _Header | None:
        end = self._buffer.find(b"\n")
        self.parsed = max(end, 0)
        if end > MAX_HEADER or (end < 0 and len(self._buffer) > MAX_HEADER):
            raise _fault("message_too_big", f"a header line may have at most {MAX_HEADER} bytes")
        if end < 0:
            return None
        header = _object(self._take(end + 1), "a header")
        kind, data = header.get("type"), header.get("data") or {}
        if not isinstance(kind, str):
            raise _fault("bad_field", 'a header needs a "type", such as {"type":"describe"}')
        if not isinstance(data, dict):
            raise _fault("bad_field", "data must be a JSON object")
        return _Header(
            kind, data, _length(header, "data_length", MAX_DATA), _length(header, "payload_length", MAX_PAYLOAD)
        )

    def _read_data(self, length: int) -> dict[str, Any]:
        self.parsed += length
        return _object(self._take(length), "the data") if length else {}

    def _take(self, length: int) -> bytes:
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    # --- messages --------------------------------------------------------------------------------------------------

    def _messages(self, kind: str, data: dict[str, Any], payload: bytes) -> Sequence[WyomingMessage]:
        match kind:
            case "describe":
                return [Describe()]
            case "ping":
                return [Ping(_text(data, "text", _MAX_PING))]
            case "transcribe":
                self._language = language_code(_text(data, "language"))
                self._vocabulary = self._phrases(data)
                self._endpointing = Endpointing(hangover=self._hangover(data))
                used = {"vad_sensitivity"} if self._endpointing.hangover else set()
                self._advice.say(
                    name for name, usual in _WITHOUT_EFFECT.items() if data.get(name) not in usual and name not in used
                )
                return [Transcribe(_text(data, "name"))]
            case "audio-start":
                return [self._start(_Samples.of(data, None))]
            case "audio-chunk":
                return self._chunk(data, payload)
            case "audio-stop":
                return [self._stop()]
        return [Unknown()]

    def _start(self, audio: _Samples) -> Start:
        self._audio = audio
        return Start(
            sample_rate=audio.rate,
            channels=audio.channels,
            language=self._language,
            endpointing=self._endpointing,
            vocabulary=self._vocabulary,
        )

    def _hangover(self, data: dict[str, Any]) -> float | None:
        """Return the seconds of silence that shall end an utterance; None for those of the service's settings."""
        sensitivity = data.get("vad_sensitivity")
        return _HANGOVERS.get(sensitivity) if self._ends_turns and isinstance(sensitivity, str) else None

    def _phrases(self, data: dict[str, Any]) -> Vocabulary:
        """Return the names and terms that can be used, as many as there is room for."""
        phrases = NO_VOCABULARY
        for name, weight in _WEIGHTS.items():
            more, whole = _usable(data.get(name), weight, MOST_PHRASES - len(phrases.phrases))
            phrases = joined(phrases, more)
            if not whole and name not in self._cut:
                self._cut.add(name)
                _log.info("wyoming: not all of %s can be used: %s", name, _RULE)
        return phrases

    def _chunk(self, data: dict[str, Any], payload: bytes) -> Sequence[WyomingMessage]:
        begun = self._audio
        audio = _Samples.of(data, begun)
        if begun is None:
            return [self._start(audio), Audio(audio.narrow(payload))]
        if (audio.rate, audio.width, audio.channels) != (begun.rate, begun.width, begun.channels):
            raise _fault(
                "bad_format",
                f"the audio began as {begun}, but a chunk says {audio}: send audio-stop and audio-start to change it",
            )
        return [Audio(begun.narrow(payload))]

    def _stop(self) -> Stop:
        if self._audio is None:
            raise _fault("bad_order", "audio-stop came without audio: send audio-start and audio-chunk before it")
        self._audio = None
        return Stop()


@dataclass(slots=True, eq=False)
class _Samples:
    """The format of a turn's audio. Whatever the width, 16 bits of each sample are heard."""

    rate: Any  # this and the channels are judged by whoever decodes the audio
    width: int
    channels: Any
    rest: bytes = b""  # of a sample that is not complete yet

    @classmethod
    def of(cls, data: dict[str, Any], default: _Samples | None) -> _Samples:
        """Read the format from an event's data; what it leaves out is taken from `default`.

        Raises:
            Fault: `bad_format`.
        """
        values = [data.get(name, getattr(default, name, None)) for name in ("rate", "width", "channels")]
        if None in values:
            raise _fault("bad_format", "audio needs rate, width (bytes of a sample) and channels")
        width = values[1]
        if type(width) is not int or width not in _WIDTHS:
            raise _fault("bad_format", f"width must be 1..4 bytes, got {shown(width)}")
        return cls(values[0], width, values[2])

    def __str__(self) -> str:
        return f"{shown(self.rate)} Hz, {self.width} bytes, {shown(self.channels)} channel(s)"

    def narrow(self, data: bytes) -> bytes:
        """Return signed little-endian samples of any width as such of 16 bits: the upper two bytes of each."""
        width = self.width
        if width == 2:
            return data
        data = self.rest + data
        whole = len(data) - len(data) % width
        self.rest, data = data[whole:], data[:whole]
        narrowed = bytearray(2 * (whole // width))
        narrowed[1::2] = data[width - 1 :: width]
        if width > 2:
            narrowed[0::2] = data[width - 2 :: width]
        return bytes(narrowed)


def _fault(code: str, message: str) -> Fault:
    return Fault(code, message, fatal=True)


def _object(text: bytes, what: str) -> dict[str, Any]:
    try:
        body = read_json(text)
    except ValueError as error:
        raise _fault("bad_json", f"{what} must be a JSON object: {error}") from None
    if not isinstance(body, dict):
        raise _fault("bad_json", f"{what} must be a JSON object, got {shown(body)}")
    return body


def _length(header: dict[str, Any], name: str, most: int) -> int:
    value = header.get(name)
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise _fault("bad_field", f"{name} must be a number of bytes, got {shown(value)}")
    if value > most:
        raise _fault("message_too_big", f"{name} may be at most {most}, got {shown(value)}: send smaller messages")
    return value


def _usable(given: object, weight: float, most: int) -> tuple[Vocabulary, bool]:
    """Return the phrases of a list that can be used, of its first `most`, and whether that is all of it."""
    if not isinstance(given, list):
        return NO_VOCABULARY, given is None
    phrases = []
    for text in given[:most]:
        if isinstance(text, str):
            with contextlib.suppress(VocabularyError):
                phrases.append(phrase(text, weight))
    return vocabulary_of(phrases), len(phrases) == len(given)


def _text(data: dict[str, Any], name: str, most: int = LONGEST_TEXT) -> str | None:
    value = data.get(name)
    if value is None:
        return None
    if not is_text(value, most):
        raise _fault("bad_field", f"{name} must be a string of at most {most} characters, got {shown(value)}")
    return value or None


# --- what goes out ---------------------------------------------------------------------------------------------------


def encode(kind: str, data: dict[str, Any] | None = None) -> bytes:
    header: dict[str, Any] = {"type": kind, "version": VERSION}
    body = json.dumps(data, ensure_ascii=False).encode() if data else b""
    if body:
        header["data_length"] = len(body)
    return json.dumps(header).encode() + b"\n" + body


def info(
    version: str | None, model: str, description: str, languages: Sequence[str], *, requires_external_vad: bool
) -> bytes:
    """Return the answer to `describe`.

    Args:
        version: the release of whisperd.
        model: its name. A hub name tells whose it is; any other is this machine's own.
        description: the model's.
        languages: the codes of those that the model knows.
        requires_external_vad: whether the client hears where speech ends.
    """
    owner, slash, _ = model.partition("/")
    whose = {"name": owner, "url": f"https://huggingface.co/{model}"} if slash else {"name": "whisperd", "url": ""}
    program = {
        "name": "whisperd",
        "attribution": {"name": "whisperd", "url": ""},
        "installed": True,
        "description": "Streaming Whisper, a student checked by its teacher",
        "version": version,
        "models": [
            {
                "name": model,
                "attribution": whose,
                "installed": True,
                "description": description,
                "version": None,
                "languages": list(languages),
            }
        ],
        "supports_transcript_streaming": True,
        "requires_external_vad": requires_external_vad,
    }
    return encode("info", {"asr": [program]})


def pong(text: str | None) -> bytes:
    return encode("pong", {"text": text})


def error(code: str, message: str) -> bytes:
    return encode("error", {"text": message, "code": code})


class Answer:
    """What one turn's client reads: chunks while somebody speaks, then the one transcript.

    A client takes the first transcript for the whole answer, so all utterances of a turn are joined in it.

    Args:
        ends_turns: whether the service hears where speech ends. Then the client is told where speech begins and stops,
            as it is by whatever detects voices. One that hears this itself must not be told: what we take for the end
            of an utterance is not the end of its turn.

    Attributes:
        failed: whether an error was the answer. There is no transcript then: half a command must not be obeyed.
    """

    def __init__(self, *, ends_turns: bool = True) -> None:
        self.failed = False
        self._ends_turns = ends_turns
        self._said = Transcript()
        self._language: str | None = None
        self._begun = False

    @property
    def text(self) -> str:
        """The finals so far."""
        return self._said.text

    def encode(self, event: Event) -> bytes:
        """Return what the client is told of `event`; often nothing."""
        if self.failed:
            return b""
        match event:
            case SpeechStarted(start=seconds) if self._ends_turns:
                return _voice("voice-started", seconds)
            case SpeechStopped(end=seconds) if self._ends_turns:
                return _voice("voice-stopped", seconds)
            case Partial(stable=stable):
                return self._chunk(self._said.partial(stable))
            case Final(text=text, language=language):
                self._language = language
                return self._chunk(self._said.final(text))
            case Stopped():
                return self._begin() + self._transcript() + encode("transcript-stop")
            case Error(code=code, message=message, fatal=fatal) if fatal or code == "transcription_failed":
                self.failed = True
                return error(code, message)
        return b""

    def _chunk(self, more: str) -> bytes:
        return self._begin() + encode("transcript-chunk", {"text": more}) if more else b""

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return encode("transcript-start")

    def _transcript(self) -> bytes:
        return encode("transcript", {"text": self.text, **({"language": self._language} if self._language else {})})


def _voice(kind: str, seconds: float) -> bytes:
    """Return the event that somebody began or stopped to speak, in milliseconds of the turn's audio."""
    return encode(kind, {"timestamp": round(1000 * seconds)})
