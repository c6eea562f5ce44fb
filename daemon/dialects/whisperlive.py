"""The protocol of WhisperLive: websocket frames <-> events, without I/O.

Owns its JSON, what a client says of itself in its first frame, and the list of segments that it reads again and again:
the last that are completed, and the one that is open. Knows nothing of sockets or streams.

Its clients ignore a message without their own `uid`, so no client is told anything before it has named that.

A client's `hotwords` are the phrases that its stream is to hear, and so is an `initial_prompt` that is a list. What it
asks for in vain is said to it in a `WARNING`, and in a line of the log.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from daemon.common.client_input import is_text, language_code, read_json
from daemon.common.errors import Fault
from daemon.dialects.advice import LONGEST_PROMPT, AdviceLog, names_in
from daemon.dialects.codec import (
    CLOSE_SHUTTING_DOWN,
    Codec,
    Dialect,
    Frame,
    Handshake,
    Message,
    bearer_tokens,
    named_source,
)
from streaming.events import Audio, Error, Event, Final, Notice, Partial, Ready, Start, Stop, Word
from streaming.vocabulary import NO_VOCABULARY, Vocabulary, VocabularyError, joined, phrase, vocabulary_of

SOURCE = "whisperlive"
"""The name of a stream whose address has none."""

_END_OF_AUDIO = "END_OF_AUDIO"
_BACKEND = "faster_whisper"
"""What their client keeps its transcript for; of any other it shows the text and forgets it."""

_LONGEST = 1024
_LONGEST_LIST = 4096
"""Characters of hotwords."""

_SEGMENTS = 10
_MOST_SEGMENTS = 100
_WAIT_MINUTES = 1.0
"""Nobody knows how long the others will speak: a minute is when to ask again."""

_TRY_LATER = {"full", "busy", "too_many_connections"}

_REFUSED = {
    "enable_diarization": "speakers are not distinguished",
    "enable_translation": "text is not translated",
}
_USUAL: dict[str, object] = {
    "clip_audio": False,
    "initial_prompt": None,
    "no_speech_thresh": 0.45,
    "same_output_threshold": 10,
    "use_vad": True,
    "vad_parameters": None,
}
"""What tunes their way of decoding and has no effect on ours, with what their client sends unasked."""

_PASSED_OVER = {
    # One client does not set the limits for all.
    "max_clients", "max_connection_time",
    # Of what is refused above, where it is not asked for.
    "known_speakers", "max_speakers", "target_language",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Hello:
    """What a client said of itself.

    Attributes:
        last: how many completed segments each message has.
        phrases: those that are to be heard.
        without_effect: the names of what it asked for in vain.
    """

    uid: str
    language: str | None
    model: str | None
    last: int
    words: bool
    phrases: Vocabulary
    without_effect: tuple[str, ...]


class WhisperLive(Codec):
    """The codec of one client.

    Raises:
        Fault: `bad_parameter`, `unknown_parameter`.
    """

    def __init__(self, handshake: Handshake) -> None:
        self._source = named_source(handshake) or SOURCE
        self._uid: str | None = None
        self._hello: _Hello | None = None
        self._completed: deque[dict[str, Any]] = deque()
        self._language: str | None = None  # as it was told
        self._open: dict[str, Any] | None = None

    # --- what comes in ---------------------------------------------------------------------------------------------

    def decode(self, frame: Frame) -> Iterator[Message]:
        """Turn a client's frame into messages.

        Raises:
            Fault: `bad_json`, `bad_field`, `bad_vocabulary`, `bad_order`, `unsupported`. All are fatal.
        """
        if self._hello is None:
            self._hello = self._introduced(frame)
            yield Start(
                source=self._source,
                encoding="pcm_f32le",
                language=self._hello.language,
                words=self._hello.words,
                vocabulary=self._hello.phrases,
            )
        elif frame in (_END_OF_AUDIO, _END_OF_AUDIO.encode()):
            yield Stop()
        elif isinstance(frame, bytes):
            yield Audio(frame)
        else:
            raise _fault("bad_order", f"after the first frame, send audio in binary frames, then {_END_OF_AUDIO}")

    def _introduced(self, frame: Frame) -> _Hello:
        body = _object(frame)
        self._uid = _text(body, "uid")
        if self._uid is None:
            raise _fault("bad_field", "uid must be a string: it is in each answer")
        if _text(body, "task") not in (None, "transcribe"):
            raise _fault("unsupported", "task must be transcribe: text is not translated")
        for name, reason in _REFUSED.items():
            if body.pop(name, None):
                raise _fault("unsupported", f"{name} is not supported: {reason}")
        return _Hello(
            uid=self._uid,
            language=language_code(_text(body, "language")),
            model=_text(body, "model"),
            last=_number(body, "send_last_n_segments", _SEGMENTS, 1, _MOST_SEGMENTS),
            words=body.pop("word_timestamps", None) is True,
            phrases=joined(_hotwords(body), _prompted(body)),
            without_effect=tuple(_without_effect(body)),
        )

    # --- what goes out ---------------------------------------------------------------------------------------------

    def encode(self, event: Event) -> Iterator[Frame]:
        match event:
            case Ready(student=student):
                yield from self._welcome(student)
            case Partial():
                self._open = _segment(event.start, event.end, event.stable + event.tail, completed=False)
                yield self._segments()
            case Final():
                yield from self._complete(event)
            case Error(message=message, fatal=fatal):
                yield self._status("ERROR" if fatal else "WARNING", message)
            case Notice(message=message):
                yield self._status("WARNING", message)

    def blame(self, fault: Fault) -> Iterable[Frame]:
        return _refusal(fault, self._uid)

    def part(self, code: int) -> Iterable[Frame]:
        return [self._say(message="DISCONNECT")] if code == CLOSE_SHUTTING_DOWN else []

    def _welcome(self, student: str) -> Iterator[Frame]:
        hello = self._hello
        assert hello is not None, "the stream began with it"
        if hello.model not in (None, student):
            yield self._status("WARNING", f"the model here is {student}")
        if hello.without_effect:
            AdviceLog("whisperlive").say(hello.without_effect)
            yield self._status("WARNING", f"this has no effect here: {', '.join(hello.without_effect)}")
        yield self._say(message="SERVER_READY", backend=_BACKEND)

    def _complete(self, final: Final) -> Iterator[Frame]:
        hello = self._hello
        assert hello is not None, "the stream began with it"
        if hello.language is None and final.language not in (None, self._language):
            self._language = final.language
            yield self._say(language=final.language, language_prob=None)
        self._open = None
        self._completed.append(_segment(final.start, final.end, final.text, final.words, completed=True))
        while len(self._completed) > hello.last:
            self._completed.popleft()
        yield self._segments()

    def _segments(self) -> str:
        return self._say(segments=[*self._completed, *([self._open] if self._open else [])])

    def _status(self, status: str, message: str) -> str:
        return self._say(status=status, message=message)

    def _say(self, **values: Any) -> str:
        return _json(self._uid, **values)


def _segment(
    start: float, end: float, text: str, words: tuple[Word, ...] | None = None, *, completed: bool
) -> dict[str, Any]:
    # Their texts begin with a space, and some clients join them without one.
    text = f" {text.strip()}"
    segment: dict[str, Any] = {"start": f"{start:.3f}", "end": f"{end:.3f}", "text": text, "completed": completed}
    if words is not None:
        segment["words"] = [
            {"word": word.text, "start": f"{word.start:.3f}", "end": f"{word.end:.3f}", "probability": word.confidence}
            for word in words
        ]
    return segment


def _refusal(fault: Fault, uid: str | None) -> list[Frame]:
    if fault.code in _TRY_LATER:
        return [_json(uid, status="WAIT", message=_WAIT_MINUTES)]
    return [_json(uid, status="ERROR", message=fault.message)]


def _json(uid: str | None, **values: Any) -> str:
    return json.dumps({"uid": uid, **values}, ensure_ascii=False)


# --- the first frame -------------------------------------------------------------------------------------------------


def _object(frame: Frame) -> dict[str, Any]:
    advice = 'the first frame must be text, such as {"uid":"1","language":"en","task":"transcribe","model":"small"}'
    if isinstance(frame, bytes):
        raise _fault("bad_order", f"{advice}; audio comes after it")
    try:
        body = read_json(frame)
    except ValueError:
        raise _fault("bad_json", advice) from None
    if not isinstance(body, dict):
        raise _fault("bad_json", advice)
    return body


def _without_effect(body: dict[str, Any]) -> Iterator[str]:
    """Yield what is asked for in vain, of what is left in `body`. Names that are not known are cut."""
    for name, value in body.items():
        if name not in _PASSED_OVER and (name not in _USUAL or value not in (None, "", _USUAL[name])):
            yield name if name.isidentifier() and len(name) <= 40 else "something unknown"


def _hotwords(body: dict[str, Any]) -> Vocabulary:
    """Return the phrases of `hotwords`, which have commas between them."""
    text = _text(body, "hotwords", _LONGEST_LIST) or ""
    try:
        return vocabulary_of(phrase(part) for part in text.split(",") if part.strip())
    except VocabularyError as error:
        raise _fault("bad_vocabulary", f"hotwords: {error}") from None


def _prompted(body: dict[str, Any]) -> Vocabulary:
    """Return the phrases of a prompt that lists them. Any other prompt is left in `body`: it has no effect."""
    prompt = body.get("initial_prompt")
    names = names_in(prompt) if is_text(prompt, LONGEST_PROMPT) else None
    if names is None:
        return NO_VOCABULARY
    del body["initial_prompt"]
    return names


def _text(body: dict[str, Any], name: str, most: int = _LONGEST) -> str | None:
    value = body.pop(name, None)
    if value is None:
        return None
    if not is_text(value, most):
        raise _fault("bad_field", f"{name} must be a string of at most {most} characters")
    return value or None


def _number(body: dict[str, Any], name: str, usual: int, low: int, high: int) -> int:
    value = body.pop(name, None)
    if value is None:
        return usual
    if type(value) is not int or not low <= value <= high:
        raise _fault("bad_field", f"{name} must be {low}..{high}")
    return value


def _fault(code: str, message: str) -> Fault:
    return Fault(code, message, fatal=True)


# --- before the conversation -----------------------------------------------------------------------------------------


def _refuse_by_name(fault: Fault, frame: Frame) -> list[Frame]:
    """Refuse a client that has sent its first frame, whatever is wrong with that: the fault came before."""
    try:
        return _refusal(fault, _text(_object(frame), "uid"))
    except Fault:
        return _refusal(fault, None)


DIALECT = Dialect(
    "whisperlive",
    WhisperLive,
    bearer_tokens,
    lambda fault: _refusal(fault, None),
    refuse_by_name=_refuse_by_name,
)
