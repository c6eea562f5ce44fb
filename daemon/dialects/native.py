"""The native protocol: websocket frames <-> events, without I/O.

Owns the JSON of what comes in, what a client may write in it, and when a stream begins that has no `start`. Knows
nothing of sockets, of streams, or of whether a format can be decoded. A frame that cannot be read raises a `Fault`
whose message says what to send instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, fields, replace
from typing import Any, get_type_hints

from daemon.common.client_input import (
    LONGEST_TEXT,
    is_text,
    language_code,
    language_codes,
    quoted,
    read_json,
    read_phrases,
    shown,
)
from daemon.common.errors import Fault
from daemon.dialects.codec import Codec, Dialect, Frame, Handshake, Message, bearer_tokens, named_source, query_once
from daemon.dialects.codec import close_code as close_code
from streaming.events import Audio, Endpointing, Event, Flush, Inbound, Resume, Start, Stop, to_json

_Message = Start | Resume | Flush | Stop
_MESSAGES: dict[str, type[_Message]] = {"start": Start, "resume": Resume, "flush": Flush, "stop": Stop}
_GREATEST = 1e15
_MOST_LANGUAGES = 100
_ENDPOINTING = ("hangover", "longest", "onset", "no_speech")
_SEPARATE = "separate"
"""In place of a number of channels: two, each a source of its own, such as the two sides of a call."""
_SECRET = "token"  # a client's mistake is told to it and to the log, but this never

STREAM = "/v1/stream"

_GRACE = 1.0
"""Seconds that a client has for its `start`. One that sends nothing gets `ready` then, in case it waits for that."""


def encode(event: Event) -> str:
    return to_json(event)


def tokens(handshake: Handshake) -> list[str]:
    """Return the tokens that the client shows, in its query or its Authorization header.

    Raises:
        Fault: `bad_parameter`.
    """
    query_once(handshake.query)
    return bearer_tokens(handshake)


def refuse(fault: Fault) -> list[Frame]:
    return [encode(fault.event())]


class Native(Codec):
    """The codec of one client of `/v1/stream`.

    Raises:
        Fault: `bad_parameter`, `unknown_parameter`.
    """

    grace = _GRACE

    def __init__(self, handshake: Handshake) -> None:
        self._source = named_source(handshake)
        self._decoder = NativeDecoder()
        self._started = False

    def assume(self) -> Iterable[Message]:
        yield self._start(Start())

    def decode(self, frame: Frame) -> Iterable[Message]:
        message = self._decoder.decode(frame)
        if isinstance(message, Start):
            yield self._start(message)  # where one was assumed meanwhile, the client was only slow
            return
        if isinstance(message, Resume):
            self._started = True
            yield message
            return
        if not self._started:
            yield self._start(Start())
        yield message

    def encode(self, event: Event) -> Iterable[Frame]:
        return [encode(event)]

    def _start(self, start: Start) -> Start:
        self._started = True
        return replace(start, source=start.source if start.source is not None else self._source)


class NativeDecoder:
    """Reads one client's frames, in order.

    Attributes:
        begun: whether anything valid came. From then on the parameters stand, and a wrong text frame is not fatal.
    """

    def __init__(self) -> None:
        self.begun = False

    def decode(self, frame: str | bytes) -> Inbound | Resume:
        """Turn a client's frame into a message.

        Raises:
            Fault: `bad_json`, `text_for_audio`, `unknown_type`, `unknown_field`, `bad_field`, `late_start`,
                `missing_field`. Fatal before the stream has begun: its parameters would not be what the client meant.
        """
        if isinstance(frame, bytes):
            self.begun = True
            return Audio(frame)
        try:
            message = self._message(frame)
        except Fault as fault:
            fault.fatal = not self.begun
            raise
        self.begun = True
        return message

    def _message(self, frame: str) -> _Message:
        body = self._object(frame)
        kind = body.pop("type", None)
        message = _MESSAGES.get(kind) if isinstance(kind, str) else None
        if message is None:
            raise Fault("unknown_type", _unknown_type(kind))
        if message in (Start, Resume) and self.begun:
            raise Fault(
                "late_start",
                f"{kind} may come only once, before any audio: open another connection to change parameters or "
                "to resume",
            )
        endpointing = {key: body.pop(key) for key in _ENDPOINTING if key in body} if message is Start else {}
        checked = _checked(message, body)
        if "language" in checked:
            checked["language"] = language_code(checked["language"])
        if checked.get("channels") == _SEPARATE:
            checked |= {"channels": 2, "separate": True}
        if "languages" in checked:
            checked["languages"] = _languages(checked["languages"], checked.get("language"))
        if "vocabulary" in checked:
            checked["vocabulary"] = read_phrases(checked["vocabulary"])
        if endpointing:
            checked["endpointing"] = _endpointing(endpointing)
        return message(**checked)

    def _object(self, frame: str) -> dict[str, Any]:
        if self.begun and not frame.lstrip().startswith("{"):
            raise Fault(
                "text_for_audio",
                "audio goes in binary frames; this was a text frame, and text frames must be JSON objects such as "
                '{"type":"stop"}',
            )
        try:
            body = read_json(frame)
        except ValueError as error:
            raise Fault(
                "bad_json", f'a text frame must be one JSON object such as {{"type":"stop"}}: {error}'
            ) from None
        if not isinstance(body, dict):
            raise Fault(
                "bad_json", f'a text frame must be one JSON object such as {{"type":"stop"}}, got {shown(body)}'
            )
        return body


def _unknown_type(kind: object) -> str:
    advice = 'send "start", "flush" or "stop" as JSON, and audio in binary frames'
    if kind is None:
        return f'a message needs a "type": {advice}'
    return f"unknown type {shown(kind)}: {advice}"


def _checked(message: type[_Message], body: dict[str, Any]) -> dict[str, Any]:
    """Return `body`, if it fits `message`: its keys are fields, none that is needed is missing, and its values fit.

    The numbers of a format and the encoding are left to the stream that decodes the audio.
    """
    # What endpointing and channels are made of are fields of their own, and were taken out; the last is for files.
    known = [field.name for field in fields(message) if field.name not in ("endpointing", "separate", "long_form")]
    known += _ENDPOINTING if message is Start else ()
    hints = get_type_hints(message)
    kind = message.__name__.lower()
    for key, value in body.items():
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise Fault("unknown_field", f"unknown field {shown(key)} in {kind}: {takes}")
        if wanted := _wanted(f"{kind}.{key}", hints[key], value):
            got = "something else" if key == _SECRET else shown(value)
            raise Fault("bad_field", f"{key} must be {wanted}, got {got}")
    for field in fields(message):
        if field.default is MISSING and field.name not in body:
            raise Fault("missing_field", f"{kind} needs {field.name}: it takes {', '.join(known)}")
    return body


def _languages(value: object, language: str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MOST_LANGUAGES or not all(map(is_text, value)):
        raise Fault("bad_field", f"languages must be a list of at most {_MOST_LANGUAGES} codes, got {shown(value)}")
    codes = language_codes(value)
    if language is not None and codes and language not in codes:
        raise Fault("bad_field", f"language must be one of languages, got {quoted(language)}: leave one of them out")
    return codes


def _endpointing(values: dict[str, Any]) -> Endpointing:
    """Return where utterances begin and end; which seconds go together is judged by the stream."""
    for key, value in values.items():
        if value is not None and not _is_number(value):
            raise Fault("bad_field", f"{key} must be a number of seconds, 0 or more, or null, got {shown(value)}")
    return Endpointing(**{key: None if value is None else float(value) for key, value in values.items()})


def _wanted(field: str, hint: object, value: object) -> str | None:
    """Return what `value` should be in a field of this type; None where it is that, or where it is judged elsewhere."""
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint in (str, str | None):
        fits = is_text(value) or (value is None and hint is not str)
        return None if fits else f"a string of at most {LONGEST_TEXT} characters of Unicode"
    if field == "start.resume":
        return None if _is_number(value) else "a number of seconds, 0 or more"
    if field == "resume.events":
        return None if _is_number(value) and isinstance(value, int) else "a whole number, 0 or more"
    return None


def _is_number(value: object) -> bool:
    # bool is an int in Python; a comparison with what is not a number is false; and JSON may write numbers of any size.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _GREATEST


DIALECT = Dialect("native", Native, tokens, refuse, paths=frozenset({STREAM}))
