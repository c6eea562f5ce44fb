"""The session object of the OpenAI realtime protocol, in its present shape and its earlier ("beta") one.

Owns what a client may ask of a transcription session, what of that is refused, and the stream that it means. Both
shapes are read into one `SessionConfig`, and each is written back as it was asked for. Nothing that cannot be given is
ignored: it is a fault that names its parameter, and then the whole update is not taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from daemon.common.client_input import LONGEST_TEXT, is_text, language_code, quoted
from daemon.common.errors import Fault
from streaming.events import Encoding, Endpointing, Start

LOG_PROBS = "item.input_audio_transcription.logprobs"

_NAMES: dict[str, tuple[Encoding, str]] = {
    "audio/pcm": ("pcm_s16le", "pcm16"),
    "audio/pcmu": ("mulaw", "g711_ulaw"),
    "audio/pcma": ("alaw", "g711_alaw"),
}
_PCM_RATE, _TELEPHONE_RATE = 24000, 8000


class Refused(Fault):
    """A fault as this protocol tells it.

    Attributes:
        param: the parameter that it is about.
        event_id: the id of the client's event.
    """

    def __init__(self, code: str, message: str, param: str | None = None, event_id: str | None = None) -> None:
        super().__init__(code, message)
        self.param = param
        self.event_id = event_id


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """How turns are detected. None of a value is the service's own.

    Attributes:
        threshold: the probability from which on a frame is speech.
        prefix_padding_ms: the audio before the speech that belongs to a turn.
        silence_duration_ms: the silence that ends a turn.
    """

    threshold: float | None = None
    prefix_padding_ms: int | None = None
    silence_duration_ms: int | None = None

    def endpointing(self) -> Endpointing:
        return Endpointing(self.threshold, _seconds(self.prefix_padding_ms), _seconds(self.silence_duration_ms))

    def as_dict(self) -> dict[str, Any]:
        values = ("threshold", "prefix_padding_ms", "silence_duration_ms")
        given = {name: getattr(self, name) for name in values if getattr(self, name) is not None}
        return {"type": "server_vad", **given}


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What a session is.

    Attributes:
        format: one of the protocol's names.
        rate: samples a second.
        model: whatever was asked for, though the service has only one.
        language: a code; None if the model finds out.
        turns: how turns are detected; None if the client commits them.
        log_probs: whether texts have a log probability for each word.
    """

    format: str = "audio/pcm"
    rate: int = _PCM_RATE
    model: str | None = None
    language: str | None = None
    turns: TurnDetection | None = field(default_factory=TurnDetection)
    log_probs: bool = False

    def start(self, source: str) -> Start:
        """Return the `Start` of the stream that this means."""
        return Start(
            source=source,
            encoding=_NAMES[self.format][0],
            sample_rate=self.rate,
            language=self.language,
            words=self.log_probs,
            endpointing=self.turns.endpointing() if self.turns else Endpointing(),
        )

    @property
    def bytes_per_second(self) -> int:
        return self.rate * (2 if self.format == "audio/pcm" else 1)

    def as_ga(self) -> dict[str, Any]:
        format = {"type": self.format, **({"rate": self.rate} if self.format == "audio/pcm" else {})}
        return {
            "type": "transcription",
            "object": "realtime.transcription_session",
            "audio": {
                "input": {
                    "format": format,
                    "noise_reduction": None,
                    "transcription": self._transcription(),
                    "turn_detection": self.turns.as_dict() if self.turns else None,
                }
            },
            "include": [LOG_PROBS] if self.log_probs else None,
        }

    def as_beta(self) -> dict[str, Any]:
        return {
            "object": "realtime.transcription_session",
            "modalities": ["text"],
            "input_audio_format": _NAMES[self.format][1],
            "input_audio_noise_reduction": None,
            "input_audio_transcription": self._transcription(),
            "turn_detection": self.turns.as_dict() if self.turns else None,
            "include": [LOG_PROBS] if self.log_probs else None,
        }

    def _transcription(self) -> dict[str, Any]:
        return {"model": self.model, "language": self.language, "prompt": ""}


def updated(config: SessionConfig, session: object) -> SessionConfig:
    """Return `config` with what a `session.update` in the present shape says; what it leaves out stays.

    Raises:
        Refused: something in it is wrong, or cannot be given.
    """
    body = _object(session, "session")
    kind = body.pop("type", "transcription")
    if kind != "transcription":
        raise _cannot("session.type", f"the session type must be transcription here, not {quoted(kind)}")
    audio = _object(body.pop("audio", None) or {}, "session.audio")
    heard = _object(audio.pop("input", None) or {}, "session.audio.input")
    _nothing_else(audio, "session.audio")
    at = "session.audio.input"
    if "format" in heard:
        config = _with_format(config, _object(heard.pop("format"), f"{at}.format"), f"{at}.format")
    config = _with_shared(config, heard, at, "noise_reduction", "transcription")
    _nothing_else(heard, at)
    config = _with_include(config, body)
    _nothing_else(body, "session")
    return config


def updated_beta(config: SessionConfig, session: object) -> SessionConfig:
    """Return `config` with what a `session.update` in the earlier shape says; what it leaves out stays.

    Raises:
        Refused: something in it is wrong, or cannot be given.
    """
    body = _object(session, "session")
    if (name := body.pop("input_audio_format", None)) is not None:
        known = {beta: format for format, (_, beta) in _NAMES.items()}
        if not isinstance(name, str) or name not in known:
            raise _bad("session.input_audio_format", f"must be one of {', '.join(known)}, got {quoted(name)}")
        config = _with_format(config, {"type": known[name]}, "session.input_audio_format")
    config = _with_shared(config, body, "session", "input_audio_noise_reduction", "input_audio_transcription")
    config = _with_include(config, body)
    if body.pop("modalities", None) not in (None, [], ["text"]):
        raise _cannot("session.modalities", "the service sends only text: leave it out")
    _nothing_else(body, "session")
    return config


# --- the parts -------------------------------------------------------------------------------------------------------


def _with_format(config: SessionConfig, format: dict[str, Any], at: str) -> SessionConfig:
    kind, rate = format.pop("type", config.format), format.pop("rate", None)
    _nothing_else(format, at)
    if not isinstance(kind, str) or kind not in _NAMES:
        raise _bad(f"{at}.type", f"must be one of {', '.join(_NAMES)}, got {quoted(kind)}")
    own = _PCM_RATE if kind == "audio/pcm" else _TELEPHONE_RATE
    if rate is not None and (type(rate) is not int or not 8000 <= rate <= 48000):
        raise _bad(f"{at}.rate", f"must be {own}, or any rate from 8000 to 48000, got {quoted(rate)}")
    return replace(config, format=kind, rate=own if rate is None else rate)


def _with_shared(config: SessionConfig, body: dict[str, Any], at: str, noise: str, words: str) -> SessionConfig:
    """Return `config` with what both shapes have, under their names `noise` and `words`."""
    if body.pop(noise, None) is not None:
        raise _cannot(f"{at}.{noise}", "noise reduction is not available here: leave it out, or set it to null")
    if (asked := body.pop(words, None)) is not None:
        config = _with_transcription(config, _object(asked, f"{at}.{words}"), f"{at}.{words}")
    if "turn_detection" in body:
        turns = body.pop("turn_detection")
        config = replace(config, turns=_turns(turns, f"{at}.turn_detection"))
    return config


def _with_transcription(config: SessionConfig, asked: dict[str, Any], at: str) -> SessionConfig:
    if "model" in asked:
        config = replace(config, model=_text(asked.pop("model"), f"{at}.model"))
    if "language" in asked:
        language = _text(asked.pop("language"), f"{at}.language")
        config = replace(config, language=language_code(language))
    if asked.pop("prompt", None):
        raise _cannot(f"{at}.prompt", "the models here accept no prompt: leave it out")
    for name in ("delay", "keywords", "languages"):
        if asked.pop(name, None):
            raise _cannot(f"{at}.{name}", "the models here do not support this: leave it out")
    _nothing_else(asked, at)
    return config


def _turns(value: object, at: str) -> TurnDetection | None:
    if value is None:
        return None
    body = _object(value, at)
    kind = body.pop("type", "server_vad")
    if kind != "server_vad":
        raise _cannot(
            f"{at}.type", f"turns are detected by server_vad or by your commits (null), not by {quoted(kind)}"
        )
    for name in ("create_response", "interrupt_response"):
        if body.pop(name, None):
            raise _cannot(f"{at}.{name}", "a transcription session has no responses: leave it out, or set it to false")
    if body.pop("idle_timeout_ms", None) is not None:
        raise _cannot(f"{at}.idle_timeout_ms", "the service does not respond to silence: leave it out")
    turns = TurnDetection(
        threshold=_number(body.pop("threshold", None), f"{at}.threshold", 0.01, 1.0),
        prefix_padding_ms=_whole(body.pop("prefix_padding_ms", None), f"{at}.prefix_padding_ms", 0, 5000),
        silence_duration_ms=_whole(body.pop("silence_duration_ms", None), f"{at}.silence_duration_ms", 50, 10000),
    )
    _nothing_else(body, at)
    return turns


def _with_include(config: SessionConfig, body: dict[str, Any]) -> SessionConfig:
    if "include" not in body:
        return config
    include = body.pop("include") or []
    if not isinstance(include, list) or any(each != LOG_PROBS for each in include):
        raise _cannot("session.include", f"only {LOG_PROBS} can be included")
    return replace(config, log_probs=bool(include))


# --- values ----------------------------------------------------------------------------------------------------------


def _object(value: object, at: str) -> dict[str, Any]:
    """Return a copy, from which its readers take what they know."""
    if not isinstance(value, Mapping):
        raise _bad(at, f"must be an object, got {quoted(value)}")
    return dict(value)


def _nothing_else(body: Mapping[str, Any], at: str) -> None:
    """Check that nothing is left. What is null asks for nothing."""
    for name, value in body.items():
        if value is not None:
            raise _cannot(f"{at}.{quoted(name)[1:-1]}", "it is not part of a transcription session: leave it out")


def _text(value: object, at: str) -> str | None:
    if value is None:
        return None
    if not is_text(value):
        raise _bad(at, f"must be a string of at most {LONGEST_TEXT} characters, got {quoted(value)}")
    return value or None


def _number(value: object, at: str, low: float, high: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _bad(at, f"must be {low:g} to {high:g}, got {quoted(value)}")
    return float(value)


def _whole(value: object, at: str, low: int, high: int) -> int | None:
    number = _number(value, at, low, high)
    return None if number is None else round(number)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _bad(param: str, message: str) -> Refused:
    return Refused("invalid_value", f"{param} {message}", param)


def _cannot(param: str, message: str) -> Refused:
    return Refused("unsupported_parameter", f"{param}: {message}", param)
