"""OpenAI's transcription of files (`POST /v1/audio/transcriptions`): its form and its answers, without I/O.

Owns the fields of the form, which of them are refused, and the five formats of the answer. Knows nothing of HTTP, of
files, or of how audio becomes finals. Nothing that cannot be given is ignored: what only advises is taken and said
(`advice`), and anything else is a fault that names its field.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.common.client_input import LONGEST_TEXT, is_text, language_code, language_codes, quoted, read_json
from daemon.common.errors import Fault
from daemon.dialects.advice import LONGEST_PROMPT, names_in, read_keywords, without_effect
from daemon.dialects.codec import Rejection
from daemon.dialects.file_dialect import FileDialect
from daemon.dialects.openai_realtime import tokens
from daemon.dialects.openai_session import Refused
from streaming.events import Final, Word
from streaming.vocabulary import NO_VOCABULARY, Vocabulary, VocabularyError, joined

PATH = "/v1/audio/transcriptions"

FORMATS = {
    "json": "application/json; charset=utf-8",
    "verbose_json": "application/json; charset=utf-8",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}

_ONCE = frozenset({"model", "language", "prompt", "temperature", "response_format", "stream", "chunking_strategy"})
_KEYWORDS = ("keywords[]", "keywords")
_LANGUAGES = ("languages[]", "languages")
_LISTS = frozenset({"timestamp_granularities[]", "include[]", *_KEYWORDS, *_LANGUAGES})
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]*(/[A-Za-z0-9][A-Za-z0-9._:@+-]*)*")
_CHUNKING = "chunking_strategy"
_OF_CHUNKING = ("type", "prefix_padding_ms", "silence_duration_ms", "threshold")
"""Of an object: as JSON, or with a field for each, `chunking_strategy[type]`."""

_STATUS = {
    "unauthorised": 401,
    "forbidden": 403,
    "bad_origin": 403,
    "not_found": 404,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "message_too_big": 413,
    "too_many_connections": 429,
    "internal": 500,
    "transcription_failed": 500,
    "full": 503,
    "busy": 503,
    "shutting_down": 503,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the form asks for.

    Attributes:
        language: a code; None if the model finds out.
        languages: the codes among which it does; empty for all that it knows.
        response_format: one of `FORMATS`.
        words: whether the answer lists words.
        segments: whether the answer lists segments.
        stream: whether the answer comes as a stream.
        log_probs: whether the answer has a log probability for each word.
        vocabulary: phrases that are to be heard.
        advice: the fields that have no effect.
    """

    language: str | None
    languages: tuple[str, ...]
    response_format: str
    words: bool
    segments: bool
    stream: bool
    log_probs: bool
    vocabulary: Vocabulary
    advice: tuple[str, ...]

    @property
    def word_times(self) -> bool:
        """Whether finals need their words."""
        return self.words or self.log_probs

    @property
    def warnings(self) -> list[str]:
        """What the client should know of its form although there is an answer."""
        return [without_effect(field) for field in self.advice]


def wanted(fields: Sequence[tuple[str, str]]) -> Wanted:
    """Read the fields of a form, without its file. One that is empty is as one that is not there.

    Raises:
        Refused: something in it is wrong, or cannot be given.
    """
    fields = [(name, value) for name, value in fields if value]
    once = _once(fields)
    response_format = once.get("response_format", "json")
    if response_format not in FORMATS:
        raise _bad("response_format", f"must be one of {', '.join(FORMATS)}, got {quoted(response_format)}")
    stream = _flag("stream", once.get("stream", "false"))
    if stream and response_format not in ("json", "text"):
        raise _bad("response_format", "a stream consists of events: use json, or leave it out")
    given = _listed(fields, "timestamp_granularities[]")
    if unknown := set(given) - {"word", "segment"}:
        raise _bad("timestamp_granularities", f"must be word or segment, got {quoted(min(unknown))}")
    if given and response_format != "verbose_json":
        raise _bad("timestamp_granularities", "these need response_format=verbose_json")
    include = _listed(fields, "include[]")
    if set(include) - {"logprobs"} or (include and response_format != "json"):
        raise _bad("include", "only logprobs can be included, and only in json")
    names = _names(once.get("prompt", ""))
    language, languages = _languages(once.get("language"), _listed(fields, *_LANGUAGES))
    in_vain = {
        "prompt": bool(once.get("prompt")) and names is None,
        "temperature": _is_warm(once.get("temperature", "0")),
        "chunking_strategy": _is_chunking_asked(once),
    }
    return Wanted(
        language=language,
        languages=languages,
        response_format=response_format,
        words="word" in given,
        segments="segment" in given or not given,
        stream=stream,
        log_probs=bool(include),
        vocabulary=joined(_keywords(_listed(fields, *_KEYWORDS)), names or NO_VOCABULARY),
        advice=tuple(field for field, is_so in in_vain.items() if is_so),
    )


def _once(fields: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the fields that may come once, and check that there are no others but the lists."""
    once: dict[str, str] = {}
    known = {*_ONCE, *(f"{_CHUNKING}[{part}]" for part in _OF_CHUNKING)}
    for name, value in fields:
        if name in _LISTS:
            continue
        if name not in known:
            raise _cannot(quoted(name)[1:-1], "this is not supported here: leave it out")
        if name in once:
            raise _bad(name, "may appear only once")
        once[name] = value
    return once


def _listed(fields: Sequence[tuple[str, str]], *names: str) -> list[str]:
    return [value for name, value in fields if name in names]


def _names(prompt: str) -> Vocabulary | None:
    if not is_text(prompt, LONGEST_PROMPT):
        raise _bad("prompt", f"may have at most {LONGEST_PROMPT} characters: send less")
    return names_in(prompt)


def _keywords(keywords: Sequence[str]) -> Vocabulary:
    try:
        return read_keywords(keywords)
    except VocabularyError as error:
        raise _bad("keywords", str(error)) from None


def _languages(language: str | None, languages: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the language, and those among which it is detected where it is not given."""
    codes = language_codes(languages)
    if language and codes:
        raise _bad("languages", "these cannot come together with language: leave one of them out")
    return language_code(language), codes


def _is_warm(temperature: str) -> bool:
    try:
        number = float(temperature)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise _bad("temperature", f"must be a number from 0 to 1, got {quoted(temperature)}")
    return number != 0


def _is_chunking_asked(once: Mapping[str, str]) -> bool:
    """Return whether the form says itself where utterances end."""
    whole = once.get(_CHUNKING, "auto")
    strategy: object = {part: once[name] for part in _OF_CHUNKING if (name := f"{_CHUNKING}[{part}]") in once}
    if whole == "auto" and not strategy:
        return False
    if whole != "auto":
        try:
            strategy = read_json(whole)
        except ValueError:
            strategy = None
    if not isinstance(strategy, dict) or strategy.get("type") != "server_vad" or strategy.keys() - {*_OF_CHUNKING}:
        wanted = 'auto, or an object such as {"type":"server_vad"}'
        raise _bad(_CHUNKING, f"must be {wanted}, got {quoted(strategy if whole == 'auto' else whole)}")
    return True


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise _bad(name, f"must be true or false, got {quoted(value)}")
    return value.lower() == "true"


# --- the answer ------------------------------------------------------------------------------------------------------


def text_of(finals: Sequence[Final]) -> str:
    return " ".join(final.text.strip() for final in finals if final.text.strip())


def answer(finals: Sequence[Final], seconds: float, asked: Wanted, warnings: Sequence[str] = ()) -> str:
    """Return the body of an answer.

    Args:
        finals: all finals of the file.
        seconds: how long the audio was.
        asked: what the form asks for.
        warnings: what the client should know of the file. JSON has them in a field of our own.
    """
    match asked.response_format:
        case "text":
            return text_of(finals) + "\n"
        case "srt":
            return "".join(
                f"{number}\n{_clock(final.start, ',')} --> {_clock(final.end, ',')}\n{final.text.strip()}\n\n"
                for number, final in enumerate(finals, 1)
            )
        case "vtt":
            cues = (f"{_clock(each.start)} --> {_clock(each.end)}\n{each.text.strip()}\n\n" for each in finals)
            return "WEBVTT\n\n" + "".join(cues)
        case "verbose_json":
            return _json({**_verbose(finals, seconds, asked), **_warned(warnings)})
    body = {"text": text_of(finals), **_log_probs(finals, asked), "usage": _usage(seconds)}
    return _json({**body, **_warned(warnings)})


def headers(warnings: Sequence[str]) -> dict[str, str]:
    """Return the headers with the warnings, for the formats that have no place for them in their body."""
    return {"Whisperd-Warning": "; ".join(warnings).encode("ascii", "replace").decode()} if warnings else {}


def delta(more: str) -> str:
    """Return the event with what an utterance adds to a stream."""
    return _sse({"type": "transcript.text.delta", "delta": more})


def done(finals: Sequence[Final], seconds: float, asked: Wanted, warnings: Sequence[str] = ()) -> str:
    body = {"type": "transcript.text.done", "text": text_of(finals), **_log_probs(finals, asked)}
    return _sse({**body, "usage": _usage(seconds), **_warned(warnings)})


def stream_error(fault: Fault) -> str:
    return _sse(error_body(fault))


def reject(fault: Fault) -> Rejection:
    """Return a refusal."""
    status = _STATUS.get(fault.code, 400)
    challenge = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return Rejection(status, _json(error_body(fault)).encode(), {"Content-Type": FORMATS["json"], **challenge})


def error_body(fault: Fault) -> dict[str, Any]:
    kind = "server_error" if _STATUS.get(fault.code, 400) >= 500 else "invalid_request_error"
    param = getattr(fault, "param", None)
    return {"error": {"message": fault.message, "type": kind, "param": param, "code": fault.code}}


def models(names: Sequence[str], created: int) -> bytes:
    """Return the answer to `GET /v1/models`; `created` is in seconds since 1970."""
    return _json({"object": "list", "data": [_model(name, created) for name in names]}).encode()


def model(name: str, names: Sequence[str], created: int) -> tuple[int, bytes]:
    """Return the status and the body of the answer to `GET /v1/models/NAME`.

    A client may ask for any model, and gets that of the service. So each name that could be one is there.

    Args:
        name: of the model that is asked for.
        names: those of the service.
        created: in seconds since 1970.
    """
    if name not in names and (len(name) > LONGEST_TEXT or not _MODEL_NAME.fullmatch(name)):
        message = f"there is no model {quoted(name)}: a name has up to {LONGEST_TEXT} letters, digits and -._:/@+"
        refusal = reject(Refused("model_not_found", message, "model"))
        return refusal.status, refusal.body
    return 200, _json(_model(name, created)).encode()


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "whisperd"}


def _verbose(finals: Sequence[Final], seconds: float, asked: Wanted) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": next((final.language for final in finals if final.language), asked.language),
        "duration": round(seconds, 3),
        "text": text_of(finals),
        "usage": _usage(seconds),
    }
    if asked.segments:
        body["segments"] = [_segment(number, final) for number, final in enumerate(finals)]
    if asked.words:
        words = (word for final in finals for word in final.words or ())
        body["words"] = [{"word": word.text, "start": word.start, "end": word.end} for word in words]
    return body


def _segment(number: int, final: Final) -> dict[str, Any]:
    """Return an utterance. Its probability of silence is null where the models cannot tell."""
    text = final.text.encode()
    return {
        "id": number,
        "seek": round(100 * final.start),
        "start": round(final.start, 3),
        "end": round(final.end, 3),
        "text": final.text.strip(),
        "tokens": list(final.tokens),
        "temperature": 0.0,
        "avg_logprob": _log(final.confidence) if final.log_prob is None else round(final.log_prob, 4),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": None if final.no_speech is None else round(final.no_speech, 6),
    }


def _log_probs(finals: Sequence[Final], asked: Wanted) -> dict[str, Any]:
    words = (word for final in finals for word in final.words or ())
    return {"logprobs": [_log_prob(word) for word in words]} if asked.log_probs else {}


def _log_prob(word: Word) -> dict[str, Any]:
    """Return a word in place of a token, as in the realtime protocol."""
    return {"token": word.text, "bytes": list(word.text.encode()), "logprob": _log(word.confidence)}


def _log(confidence: float) -> float:
    return round(math.log(max(confidence, 1e-6)), 4)


def _warned(warnings: Sequence[str]) -> dict[str, Any]:
    return {"warnings": list(warnings)} if warnings else {}


def _usage(seconds: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(seconds)}


def _clock(seconds: float, point: str = ".") -> str:
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    minutes, second = divmod(whole, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}{point}{milliseconds:03}"


def _sse(body: dict[str, Any]) -> str:
    return f"data: {_json(body)}\n\n"


def _json(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def _bad(param: str, message: str) -> Refused:
    return Refused("invalid_value", f"{param}: {message}", param)


def _cannot(param: str, message: str) -> Refused:
    return Refused("unsupported_parameter", f"{param}: {message}", param)


DIALECT = FileDialect("openai", PATH, tokens, reject, absent=("/v1/audio",))
