"""Deepgram's transcription of files (`POST /v1/listen`): its query, its answer and its errors, without I/O.

Owns what the query of a file asks for beside that of a live stream, and the JSON of the answer. Knows nothing of HTTP,
of files, or of how audio becomes finals. The words of both kinds (the parameters that are refused, how a word or a
refusal is written) are in `deepgram`. Where the two services differ, clients are told of ours in Deepgram's words:

- an utterance is a final, and `utt_split` is the pause that ends one
- a file says itself what is in it. `encoding` is for samples without a header
- what a file is damaged by is one of the `warnings` of the metadata, as is each parameter that was taken without effect
"""

from __future__ import annotations

import json
import math
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from daemon.common.client_input import language_code, language_codes, quoted
from daemon.common.errors import Fault
from daemon.dialects.deepgram import (
    ADVICE,
    ENCODINGS,
    LONGEST_PAUSE,
    PATH,
    REFUSED,
    SHORTEST_PAUSE,
    SOURCE,
    WITHOUT_EFFECT,
    Query,
    about_the_model,
    model_info,
    model_uuid,
    reject,
    timestamp,
    tokens,
    transcript,
    word_object,
)
from daemon.dialects.file_dialect import FileDialect
from streaming.events import Endpointing, Final, Notice, Start, Word

CONTENT_TYPE = "application/json; charset=utf-8"

_WITH_A_HEADER = {"amr-nb", "amr-wb", "flac", "ogg-opus", "opus", "speex"}
"""Encodings whose files say themselves what they are, as far as they can be read here."""

_BEGINNINGS = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"\x1a\x45\xdf\xa3", b"ID3", b"FORM", b"caff", b".snd", b"#!AMR")
"""Of files with a header. Samples that begin so would be a strange sound."""

_PUNCTUATING = {"paragraphs", "smart_format"}

_MOST_SECONDS = 600.0

_ONE_ANSWER = "a file has one answer, with all that was said"


# --- the query -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileParameters:
    """What the query of a file asks for.

    Attributes:
        start: that of its stream. Its form is that of samples without a header.
        headerless: whether the query says what the samples are.
        model: what was asked for, though the service has only one.
        written: whether texts are as the model wrote them, rather than bare words in lower case.
        utterances: whether the answer lists utterances.
        detects: whether the answer says which language was detected.
        multi: whether it says so of each word.
        extra: goes back with the answer.
        warnings: what was asked for, and is not as it was asked for.
        advice: the parameters among it that have no effect.
    """

    start: Start
    headerless: bool = False
    model: str | None = None
    written: bool = False
    utterances: bool = False
    detects: bool = False
    multi: bool = False
    extra: dict[str, str] = field(default_factory=dict)
    warnings: tuple[dict[str, str], ...] = ()
    advice: tuple[str, ...] = ()


def parse(query: str) -> FileParameters:
    """Read the parameters in the query of a file's address.

    Raises:
        Fault: `unknown_parameter`, `bad_parameter`, `bad_vocabulary`, `unsupported`.
    """
    return FileQuery(query).parameters()


class FileQuery(Query):
    """The query of a file."""

    refused: ClassVar[Mapping[str, str]] = {
        **REFUSED,
        "callback": "the answer is sent only on this connection",
        "callback_method": "the answer is sent only on this connection",
        "custom_intent": "intents are not detected",
        "custom_intent_mode": "intents are not detected",
        "custom_topic": "topics are not detected",
        "custom_topic_mode": "topics are not detected",
    }
    without_effect: ClassVar[Mapping[str, str]] = {
        **{name: reason for name, reason in WITHOUT_EFFECT.items() if name != "utterances"},
        "interim_results": _ONE_ANSWER,
        "vad_events": _ONE_ANSWER,
    }
    advice: ClassVar[Mapping[str, str]] = {
        **{name: reason for name, reason in ADVICE.items() if name not in ("detect_language", "utt_split")},
        "endpointing": "utt_split says how long a pause ends an utterance of a file",
        "utterance_end_ms": _ONE_ANSWER,
    }

    def parameters(self) -> FileParameters:
        self._refuse()
        without_effect = self._pass_over()
        multi = self._values.get("language") == ["multi"]
        language = self._language()
        detected = self._detected(language)
        encoding = self._encoding()
        parameters = FileParameters(
            start=self._start(encoding, language, detected or ()),
            headerless=encoding is not None,
            model=self._one("model"),
            # Their service punctuates with each of these.
            written=self._switch("punctuate") or detected is not None or bool({*without_effect} & _PUNCTUATING),
            utterances=self._switch("utterances"),
            detects=multi or detected is not None,
            multi=multi,
            extra=self._extra(),
            warnings=tuple(self._warnings),
            advice=tuple(self._advice),
        )
        self._check_nothing_left()
        return parameters

    def _detected(self, language: str | None) -> tuple[str, ...] | None:
        """Return the languages of `detect_language=true` (none) or `detect_language=en`; None if it does not ask."""
        asked = [value for value in self._several("detect_language") if value.lower() != "false"]
        if not asked:
            return None
        if language is not None:
            self._pass("detect_language", "language says which one is spoken")
            return None
        return language_codes(value for value in asked if value.lower() != "true")

    def _encoding(self) -> str | None:
        """Return the encoding of samples without a header; None where the file says it itself."""
        name = self._one("encoding")
        if name is None or name in ENCODINGS:
            return name
        if name not in _WITH_A_HEADER:
            raise Fault(
                "unsupported",
                f"encoding must be one of {', '.join(ENCODINGS)}, got {quoted(name)}; a file with a header needs none",
            )
        return None

    def _start(self, encoding: str | None, language: str | None, detected: tuple[str, ...]) -> Start:
        rate = self._number("sample_rate", 8000, 192000)
        channels = self._number("channels", 1, 8)
        if encoding is not None and rate is None:
            raise Fault("bad_parameter", f"sample_rate is required with encoding={encoding}")
        if encoding is None:
            self._pass_form(rate, channels)
        hinted = language_codes(self._several("language_hint"))
        return Start(
            source=self._one("source") or SOURCE,
            encoding="pcm_s16le" if encoding is None else ENCODINGS[encoding][0],
            sample_rate=rate or Start().sample_rate,
            channels=channels or 1,
            separate=self._switch("multichannel"),
            language=language,
            languages=detected or hinted,
            partials=False,
            words=True,
            endpointing=Endpointing(hangover=self._utt_split()),
            vocabulary=self._vocabulary(),
        )

    def _pass_form(self, rate: int | None, channels: int | None) -> None:
        for name, value in (("sample_rate", rate), ("channels", channels)):
            if value is not None:
                self._pass(name, "a file with a header says it itself")

    def _utt_split(self) -> float | None:
        """Return the pause that ends an utterance, in seconds, the nearest that is possible."""
        text = self._one("utt_split")
        if text is None:
            return None
        try:
            wanted = float(text)
        except ValueError:
            wanted = math.nan
        if not 0 <= wanted <= _MOST_SECONDS:
            raise Fault("bad_parameter", f"utt_split must be seconds, 0..{_MOST_SECONDS:g}, got {quoted(text)}")
        had = min(max(wanted, SHORTEST_PAUSE), LONGEST_PAUSE)
        if had != wanted:
            self._warn("utt_split", f"{wanted:g} was changed to {had:g}, the nearest possible value")
        return had


def is_container(beginning: bytes) -> bool:
    """Return whether a file says itself what is in it, by its first bytes."""
    return beginning.startswith(_BEGINNINGS) or beginning[4:8] == b"ftyp"


# --- the answer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recording:
    """What is known of a file once it was heard.

    Attributes:
        sha256: of the bytes that were sent.
        seconds: how long its audio is.
        channels: as in the file.
        sources: what its finals are from: all of it, or each channel.
        headerless: whether it was read as the query says.
        student: the name of the model.
        teacher: the name of the second, if there is one.
        created: when the request came.
    """

    sha256: str
    seconds: float
    channels: int
    sources: tuple[str, ...]
    headerless: bool
    student: str
    teacher: str | None
    created: datetime


def answer(
    finals: Sequence[Final], recording: Recording, asked: FileParameters, notices: Sequence[Notice] = ()
) -> tuple[str, dict[str, str]]:
    """Return the body of an answer, and its headers.

    Args:
        finals: all finals of the file.
        recording: what was heard.
        asked: what the query asks for.
        notices: what the client should know of the file.
    """
    request_id = str(uuid.uuid4())
    results: dict[str, Any] = {
        "channels": [_channel([each for each in finals if each.source == name], asked) for name in recording.sources]
    }
    if asked.utterances:
        channels = {name: number for number, name in enumerate(recording.sources)}
        ordered = sorted(finals, key=lambda each: (each.start, channels[each.source]))
        results["utterances"] = [_utterance(each, channels[each.source], asked) for each in ordered]
    body = {"metadata": _metadata(request_id, finals, recording, asked, notices), "results": results}
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return text, {"Content-Type": CONTENT_TYPE, "dg-request-id": request_id}


def _metadata(
    request_id: str, finals: Sequence[Final], recording: Recording, asked: FileParameters, notices: Sequence[Notice]
) -> dict[str, Any]:
    decided = {final.model for final in finals}
    names = [recording.student]
    if recording.teacher is not None and "teacher" in decided:
        names.append(recording.teacher)
    return {
        "transaction_key": "deprecated",
        "request_id": request_id,
        "sha256": recording.sha256,
        "created": timestamp(recording.created),
        "duration": round(recording.seconds, 3),
        "channels": recording.channels,
        "models": [model_uuid(name) for name in names],
        "model_info": {model_uuid(name): model_info(name) for name in names},
        **({"extra": asked.extra} if asked.extra else {}),
        "warnings": [
            *asked.warnings,
            *_about_the_form(recording, asked),
            *about_the_model(asked.model, recording.student),
            *({"parameter": "audio", "type": each.code, "message": each.message} for each in notices),
        ],
    }


def _about_the_form(recording: Recording, asked: FileParameters) -> list[dict[str, str]]:
    if not asked.headerless or recording.headerless:
        return []
    message = "the file has a header, and was read as that says"
    return [{"parameter": "encoding", "type": "unsupported_parameter", "message": message}]


def _channel(finals: Sequence[Final], asked: FileParameters) -> dict[str, Any]:
    languages = _languages(finals)
    alternative = {
        "transcript": " ".join(filter(None, (_text(final, asked) for final in finals))),
        "confidence": _confidence(finals),
        **({"languages": languages} if asked.multi else {}),
        "words": [_word(word, final, asked) for final in finals for word in final.words or ()],
    }
    detected = {"detected_language": languages[0]} if asked.detects and languages else {}
    return {"alternatives": [alternative], **detected}


def _utterance(final: Final, channel: int, asked: FileParameters) -> dict[str, Any]:
    return {
        "start": round(final.start, 3),
        "end": round(final.end, 3),
        "confidence": final.confidence,
        "channel": channel,
        "transcript": _text(final, asked),
        **({"languages": _languages([final])} if asked.multi else {}),
        "words": [_word(word, final, asked) for word in final.words or ()],
        "id": final.id,
    }


def _word(word: Word, final: Final, asked: FileParameters) -> dict[str, Any]:
    language = {"language": final.language} if asked.multi and final.language else {}
    return {**word_object(word, written=asked.written), **language}


def _text(final: Final, asked: FileParameters) -> str:
    return transcript(final.text, written=asked.written)


def _confidence(finals: Sequence[Final]) -> float:
    """Return the mean over all words, of which each is as sure as its utterance; 0 where nothing was said."""
    counts = [len(final.words or ()) for final in finals]
    if not sum(counts):
        return 0.0
    weighted = (final.confidence * count for final, count in zip(finals, counts, strict=True))
    return round(sum(weighted) / sum(counts), 4)


def _languages(finals: Sequence[Final]) -> list[str]:
    """Return the languages, that of most words first."""
    words: Counter[str] = Counter()
    for final in finals:
        if code := language_code(final.language):
            words[code] += len(final.words or ())
    return [code for code, _ in words.most_common()]


DIALECT = FileDialect(
    "deepgram",
    PATH,
    tokens,
    reject,
    absent=("/v1/agent", "/v1/auth", "/v1/keys", "/v1/projects", "/v1/read", "/v1/speak", "/v2/listen"),
)
