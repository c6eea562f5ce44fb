"""The session object of the OpenAI realtime protocol, in its present shape and its earlier ("beta") one.

Owns what a client may ask of a transcription session, what of that is refused, and the stream that it means. Both
shapes are read into one `SessionConfig`, and each is written back as it was asked for, with what is in force. Nothing
that cannot be given is ignored: what only advises is taken and said (`advice`), and anything else is a fault that names
its parameter, and then the whole update is not taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from daemon.common.client_input import LONGEST_TEXT, is_text, language_code, language_codes, quoted
from daemon.common.errors import Fault
from daemon.dialects.advice import LONGEST_PROMPT, names_in, read_keywords
from streaming.events import Encoding, Endpointing, Start
from streaming.vocabulary import NO_VOCABULARY, Vocabulary, VocabularyError, joined

LOG_PROBS = "item.input_audio_transcription.logprobs"

_NAMES: dict[str, tuple[Encoding, str]] = {
    "audio/pcm": ("pcm_s16le", "pcm16"),
    "audio/pcmu": ("mulaw", "g711_ulaw"),
    "audio/pcma": ("alaw", "g711_alaw"),
}
_PCM_RATE, _TELEPHONE_RATE = 24000, 8000

_WITHOUT_TURNS = ("gpt-realtime-whisper", "gpt-live-transcribe")
"""How the names of models begin whose sessions have no turn detection, so that clients leave it out and commit."""

_EAGERNESS = ("low", "medium", "high", "auto")
_MOST_LANGUAGES = 100


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
        languages: the codes among which it does; empty for all that it knows.
        keywords: phrases that are to be heard.
        prompt: a list of more of them; empty if the client's prompt is none.
        turns: how turns are detected; None if the client commits them.
        asked_turns: whether the client has said so itself, or else the model that it names decides.
        log_probs: whether texts have a log probability for each word.
        advice: the fields so far that have no effect.
    """

    format: str = "audio/pcm"
    rate: int = _PCM_RATE
    model: str | None = None
    language: str | None = None
    languages: tuple[str, ...] = ()
    keywords: Vocabulary = NO_VOCABULARY
    prompt: str = ""
    turns: TurnDetection | None = field(default_factory=TurnDetection)
    asked_turns: bool = field(default=False, compare=False)
    log_probs: bool = False
    advice: tuple[str, ...] = field(default=(), compare=False)  # no stream begins anew for it

    def start(self, source: str) -> Start:
        """Return the `Start` of the stream that this means."""
        return Start(
            source=source,
            encoding=_NAMES[self.format][0],
            sample_rate=self.rate,
            language=self.language,
            languages=self.languages,
            words=self.log_probs,
            endpointing=self.turns.endpointing() if self.turns else Endpointing(),
            vocabulary=joined(self.keywords, names_in(self.prompt) or NO_VOCABULARY),
        )

    def advised(self, *fields: str) -> SessionConfig:
        """Return this with fields that were taken and have no effect."""
        return replace(self, advice=tuple(dict.fromkeys((*self.advice, *fields))))

    def with_phrases_of(self, other: SessionConfig) -> SessionConfig:
        return replace(self, keywords=other.keywords, prompt=other.prompt)

    def with_model(self, model: str | None) -> SessionConfig:
        config = replace(self, model=model)
        if self.asked_turns:
            return config
        return replace(config, turns=None if model and model.startswith(_WITHOUT_TURNS) else TurnDetection())

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
        keywords = [phrase.text for phrase in self.keywords.phrases]
        asked = {"model": self.model, "language": self.language, "prompt": self.prompt, "keywords": keywords}
        return {**asked, "languages": list(self.languages)} if self.languages else asked


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
        config = config.advised("noise_reduction")
    if (asked := body.pop(words, None)) is not None:
        config = _with_transcription(config, _object(asked, f"{at}.{words}"), f"{at}.{words}")
    if "turn_detection" in body:
        config = _with_turns(config, body.pop("turn_detection"), f"{at}.turn_detection")
    return config


def _with_transcription(config: SessionConfig, asked: dict[str, Any], at: str) -> SessionConfig:
    if "model" in asked:
        config = config.with_model(_text(asked.pop("model"), f"{at}.model"))
    config = _with_language(config, asked, at)
    if "prompt" in asked:
        prompt = _text(asked.pop("prompt"), f"{at}.prompt", LONGEST_PROMPT) or ""
        is_list = names_in(prompt) is not None
        config = replace(config, prompt=prompt if is_list else "")
        if prompt and not is_list:
            config = config.advised("prompt")
    if "keywords" in asked:
        config = replace(config, keywords=_keywords(asked.pop("keywords"), f"{at}.keywords"))
    if asked.pop("delay", None) is not None:
        config = config.advised("delay")
    _nothing_else(asked, at)
    return config


def _with_language(config: SessionConfig, asked: dict[str, Any], at: str) -> SessionConfig:
    named = asked.get("language")
    if "language" in asked:
        config = replace(config, language=language_code(_text(asked.pop("language"), f"{at}.language")), languages=())
    languages = _list(asked.pop("languages", None), f"{at}.languages")
    tags = [tag for each in languages if (tag := _text(each, f"{at}.languages"))]
    if not tags:
        return config
    if len(tags) > _MOST_LANGUAGES:
        raise _bad(f"{at}.languages", f"may have at most {_MOST_LANGUAGES} languages: name one, or none")
    if named:
        raise _bad(f"{at}.languages", "cannot come together with language: leave one of them out")
    codes = language_codes(tags)
    return replace(config, language=codes[0] if len(codes) == 1 else None, languages=codes if len(codes) > 1 else ())


def _keywords(value: object, at: str) -> Vocabulary:
    try:
        return read_keywords(_list(value, at))
    except VocabularyError as error:
        raise Refused("invalid_value", f"{at}: {error}", at) from None


def _with_turns(config: SessionConfig, value: object, at: str) -> SessionConfig:
    if value is None:
        return replace(config, turns=None, asked_turns=True)
    body = _object(value, at)
    kind = body.pop("type", "server_vad")
    if kind not in ("server_vad", "semantic_vad"):
        raise _cannot(
            f"{at}.type", f"turns are detected by server_vad or by your commits (null), not by {quoted(kind)}"
        )
    advice = [name for name in ("create_response", "interrupt_response") if body.pop(name, None)]
    if body.pop("idle_timeout_ms", None) is not None:
        advice.append("idle_timeout_ms")
    turns = TurnDetection()
    if kind == "semantic_vad":
        advice.append("semantic_vad")
        if (eagerness := body.pop("eagerness", None)) not in (None, *_EAGERNESS):
            raise _bad(f"{at}.eagerness", f"must be one of {', '.join(_EAGERNESS)}, got {quoted(eagerness)}")
    else:
        turns = TurnDetection(
            threshold=_number(body.pop("threshold", None), f"{at}.threshold", 0.01, 1.0),
            prefix_padding_ms=_whole(body.pop("prefix_padding_ms", None), f"{at}.prefix_padding_ms", 0, 5000),
            silence_duration_ms=_whole(body.pop("silence_duration_ms", None), f"{at}.silence_duration_ms", 50, 10000),
        )
    _nothing_else(body, at)
    return replace(config, turns=turns, asked_turns=True).advised(*advice)


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


def _list(value: object, at: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _bad(at, f"must be a list of strings, got {quoted(value)}")
    return value


def _text(value: object, at: str, most: int = LONGEST_TEXT) -> str | None:
    if value is None:
        return None
    if not is_text(value, most):
        raise _bad(at, f"must be a string of at most {most} characters, got {quoted(value)}")
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
