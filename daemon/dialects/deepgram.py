"""Deepgram's live transcription (`/v1/listen`): a query and websocket frames <-> events, without I/O.

Owns what may be in the query and what of it is refused, the JSON of both directions, and the marks on a result. Knows
nothing of sockets, of streams, or of which languages there are. `deepgram_files` reads the query of a file with the
same reader (`Query`), and has words and refusals in the same form. Where the two protocols differ, clients are told of
ours in Deepgram's words:

- an utterance's final is one result with `is_final`. It is `speech_final` too where a pause ended the utterance, and
  not where it was only cut for its length
- the last result that a Finalize brings out says `from_finalize`. Where nothing was left to say an empty one does, so
  that a client which waits for it never waits in vain
- `UtteranceEnd` goes by the audio's clock: so much audio came after the last word, and nobody spoke in it (by the clock
  on the wall, where audio comes in a container)
- a notice that the audio has the wrong form is one of the `warnings` of the last `Metadata`: the live protocol has no
  message for a warning. Another is each parameter that was taken without effect, of which the log has one line too
- `keyterm` and `keywords` are the phrases that a stream is to hear. No boost makes a word less likely
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from daemon.common.client_input import (
    LONGEST_TEXT,
    bare,
    bare_text,
    is_text,
    language_code,
    language_codes,
    quoted,
    read_json,
)
from daemon.common.errors import Fault
from daemon.dialects.advice import AdviceLog
from daemon.dialects.codec import (
    Codec,
    Dialect,
    Frame,
    Handshake,
    Message,
    Rejection,
    Reply,
    close_reason,
    query_pairs,
    shown_tokens,
)
from streaming.events import (
    Audio,
    Encoding,
    Endpointing,
    Error,
    Event,
    Final,
    Flush,
    Flushed,
    Notice,
    Partial,
    Ready,
    SpeechStarted,
    SpeechStopped,
    Start,
    Stop,
    Stopped,
    Word,
)
from streaming.vocabulary import Vocabulary, VocabularyError, joined, phrase, vocabulary_of

PATH = "/v1/listen"
SOURCE = "deepgram"
"""The name of a stream whose query has none: `source=kitchen` is ours."""

_MOST_PARAMETERS = 256
"""No more are searched for a token. It is room for a hundred keyterms and a hundred keywords, as many as they take."""

_GREATEST_BOOST = 3.0
"""Theirs grow exponentially and have no limit. A weight of ours puts a word where nobody said it long before that."""

ENCODINGS: dict[str, tuple[Encoding, int]] = {
    "linear16": ("pcm_s16le", 2),
    "linear32": ("pcm_f32le", 4),
    "mulaw": ("mulaw", 1),
    "alaw": ("alaw", 1),
}
"""Their word -> ours, and the bytes of a sample."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
"""Seconds. Each utterance is heard by itself here: pauses as short as those inside words would cut words in two."""

_PAUSE = 0.3
"""Seconds between two utterances that make a pause of it rather than a cut, where the client has named none."""

_SHORTEST_UTTERANCE_END, _LONGEST_UTTERANCE_END = 0.1, 60.0
_MOST_MILLISECONDS = 600_000

REFUSED = {
    "callback": "results are sent only on this connection",
    "callback_method": "results are sent only on this connection",
    "detect_entities": "entities are not detected",
    "diarize": "speakers are not distinguished",
    "diarize_model": "speakers are not distinguished",
    "diarize_version": "speakers are not distinguished",
    "intents": "intents are not detected",
    "profanity_filter": "no words are left out",
    "redact": "no words are left out",
    "replace": "text is not replaced",
    "search": "audio is not searched",
    "sentiment": "sentiment is not judged",
    "summarize": "text is not summarized",
    "topics": "topics are not detected",
    "translate": "text is not translated",
}
"""What would change the meaning of a result, or of what is missing in it -> why it cannot be had, or what to do."""

WITHOUT_EFFECT = {
    "dictation": "the model writes spoken punctuation as it was trained to",
    "filler_words": "the model writes or omits filler words as it was trained to",
    "measurements": "the model writes measurements as it was trained to",
    "numerals": "the model writes numbers as it was trained to",
    "paragraphs": "text is not arranged in paragraphs",
    "smart_format": "the model writes punctuation, numbers and dates as it was trained to",
    "utterances": "each final is already an utterance",
}
"""How a text is written or arranged, which is right with or without them. Each is true or false."""

ADVICE = {
    "alternatives": "each text has only one alternative",
    "detect_language": "a multilingual model detects the language where none is requested",
    "utt_split": "endpointing says how long a pause ends an utterance",
    "version": "there is only one version of the model",
}
"""What leaves each text right, whatever its value. Whoever asks is told, as of the above, in the last `Metadata`."""

_AS_IT_IS = {("alternatives", "1"), ("version", "latest")}

_ALREADY_SO = {"mip_opt_out", "no_delay", "tag", "token"}
"""Nothing is trained on what is heard, and nothing held back; a tag is for their bills; the token was judged before."""

_STATUS = {
    "unauthorised": 401,
    "forbidden": 403,
    "bad_origin": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "message_too_big": 413,
    "too_many_connections": 429,
    "internal": 500,
    "transcription_failed": 500,
    "full": 503,
    "busy": 503,
    "shutting_down": 503,
}
_ERR_CODES = {
    400: "Bad Request",
    401: "INVALID_AUTH",
    403: "INSUFFICIENT_PERMISSIONS",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "PAYLOAD_TOO_LARGE",
    429: "TOO_MANY_REQUESTS",
    500: "INTERNAL_SERVER_ERROR",
    503: "SERVICE_UNAVAILABLE",
}
_UNREADABLE = {"bad_json", "unknown_type", "unknown_field", "bad_field"}


# --- the query -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a client asked for. Times are in seconds.

    Attributes:
        start: that of its stream.
        interim: whether partials are wanted.
        vad_events: whether `SpeechStarted` is wanted.
        endpointing: whether results are marked `speech_final`.
        pause: what the client named to end an utterance.
        utterance_end: after how much silence `UtteranceEnd` is due; None for never.
        written: whether texts are as the model wrote them, rather than bare words in lower case.
        extra: goes back with each result.
        warnings: what was asked for, and is not as it was asked for.
        advice: the parameters among it that have no effect.
    """

    start: Start
    model: str | None = None
    interim: bool = False
    vad_events: bool = False
    endpointing: bool = True
    pause: float | None = None
    utterance_end: float | None = None
    written: bool = False
    extra: dict[str, str] = field(default_factory=dict)
    warnings: tuple[dict[str, str], ...] = ()
    advice: tuple[str, ...] = ()


def parse(query: str) -> Parameters:
    """Read the parameters in the query of a client's address.

    Raises:
        Fault: `unknown_parameter`, `bad_parameter`, `bad_vocabulary`, `unsupported`.
    """
    return LiveQuery(query).parameters()


class Query:
    """A query, of which each parameter is taken once. What is left over at the end is not known.

    Attributes:
        refused: the parameters that would change the meaning of a result -> why each cannot be had.
        without_effect: those that are true or false, and leave each text right -> what holds instead.
        advice: those of any value that do -> likewise.
    """

    refused: ClassVar[Mapping[str, str]] = REFUSED
    without_effect: ClassVar[Mapping[str, str]] = WITHOUT_EFFECT
    advice: ClassVar[Mapping[str, str]] = ADVICE

    def __init__(self, query: str) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in query_pairs(query, _MOST_PARAMETERS):
            self._values.setdefault(name, []).append(value)
        self._warnings: list[dict[str, str]] = []
        self._advice: list[str] = []

    # --- what cannot be had ----------------------------------------------------------------------------------------

    def _refuse(self) -> None:
        for name, reason in self.refused.items():
            if self._asked(name):
                raise Fault("unsupported", f"{name} is not supported: {reason}")

    def _pass_over(self) -> list[str]:
        """Return what was asked for in vain, of what changes the meaning of no result."""
        for name in _ALREADY_SO:
            self._values.pop(name, None)
        asked = [name for name in self.without_effect if self._switch(name)]
        asked += [name for name in self.advice if self._asked(name)]
        for name in asked:
            self._pass(name, {**self.without_effect, **self.advice}[name])
        return asked

    def _pass(self, name: str, message: str) -> None:
        """Note that a parameter has no effect."""
        self._warn(name, message)
        self._advice.append(name)

    def _check_nothing_left(self) -> None:
        if self._values:
            raise Fault("unknown_parameter", f"unknown parameter {quoted(next(iter(self._values)))}: leave it out")

    def _asked(self, name: str) -> bool:
        """Return whether a parameter, which may come several times, asks for what is not so already."""
        values = self._values.pop(name, [])
        return any(value.lower() not in ("", "false") and (name, value) not in _AS_IT_IS for value in values)

    def _warn(self, parameter: str, message: str) -> None:
        self._warnings.append({"parameter": parameter, "type": "unsupported_parameter", "message": message})

    # --- values ----------------------------------------------------------------------------------------------------

    def _one(self, name: str) -> str | None:
        """Return the value of a parameter; None where it is not there, or empty."""
        values = self._values.pop(name, [""])
        if len(values) > 1:
            raise Fault("bad_parameter", f"{name} may appear only once")
        if not is_text(values[0]) or not values[0].isprintable():
            raise Fault("bad_parameter", f"{name} must be a string of at most {LONGEST_TEXT} characters")
        return values[0] or None

    def _switch(self, name: str) -> bool:
        value = (self._one(name) or "false").lower()
        if value not in ("true", "false"):
            raise Fault("bad_parameter", f"{name} must be true or false, got {quoted(value)}")
        return value == "true"

    def _number(self, name: str, low: int, high: int) -> int | None:
        value = self._one(name)
        if value is None:
            return None
        # Longer ones are out of any range, and would take long to read.
        if not (value.isascii() and value.isdigit() and len(value) <= 9 and low <= int(value) <= high):
            raise Fault("bad_parameter", f"{name} must be a number, {low}..{high}, got {quoted(value)}")
        return int(value)

    def _milliseconds(self, name: str, low: float, high: float) -> float | None:
        """Return a time in seconds, the nearest that is possible."""
        wanted = self._number(name, 0, _MOST_MILLISECONDS)
        if wanted is None:
            return None
        had = min(max(wanted / 1000, low), high)
        if had != wanted / 1000:
            self._warn(name, f"{wanted} was changed to {had * 1000:g}, the nearest possible value")
        return had

    def _vocabulary(self) -> Vocabulary:
        """Return the phrases of `keyterm=phrase` and `keywords=word:boost`, each of which may come several times."""
        boosted = [_boosted(keyword) for keyword in self._several("keywords")]
        if any(boost <= 0 for _, boost in boosted):
            self._pass("keywords", "a boost of 0 or below has no effect: no word is made less likely")
        return joined(
            _phrases("keyterm", [(term, 1.0) for term in self._several("keyterm")]),
            _phrases("keywords", [(word, min(boost, _GREATEST_BOOST)) for word, boost in boosted if boost > 0]),
        )

    def _several(self, name: str) -> list[str]:
        return [value for value in self._values.pop(name, []) if value.strip()]

    def _language(self) -> str | None:
        """Return the code of a tag: `en` of `en-US`. For `multi` the model finds out, as it does without one."""
        tag = self._one("language")
        return None if tag == "multi" else language_code(tag)

    def _extra(self) -> dict[str, str]:
        """Return the pairs of `extra=key:value`, which may come several times."""
        pairs = [each.partition(":") for each in self._values.pop("extra", []) if each]
        if not all(colon and is_text(key) and is_text(value) for key, colon, value in pairs):
            raise Fault("bad_parameter", f"extra must be key:value, each of at most {LONGEST_TEXT} characters")
        return {key: value for key, _, value in pairs}


class LiveQuery(Query):
    """The query of a live client."""

    def parameters(self) -> Parameters:
        self._refuse()
        without_effect = self._pass_over()
        endpointing, pause = self._endpointing()
        interim = self._switch("interim_results")
        parameters = Parameters(
            start=self._start(pause, partials=interim),
            model=self._one("model"),
            interim=interim,
            vad_events=self._switch("vad_events"),
            endpointing=endpointing,
            pause=pause,
            utterance_end=self._milliseconds("utterance_end_ms", _SHORTEST_UTTERANCE_END, _LONGEST_UTTERANCE_END),
            written=self._switch("punctuate") or "smart_format" in without_effect,
            extra=self._extra(),
            warnings=tuple(self._warnings),
            advice=tuple(self._advice),
        )
        self._check_nothing_left()
        return parameters

    def _endpointing(self) -> tuple[bool, float | None]:
        """Return whether results are marked, and the pause that was named."""
        if self._values.get("endpointing") in (["true"], ["false"]):
            return self._switch("endpointing"), None
        return True, self._milliseconds("endpointing", SHORTEST_PAUSE, LONGEST_PAUSE)

    def _start(self, pause: float | None, *, partials: bool) -> Start:
        name = self._one("encoding")
        if name not in (None, *ENCODINGS):
            raise Fault(
                "unsupported",
                f"encoding must be one of {', '.join(ENCODINGS)}, got {quoted(name)}; "
                "without it, audio is Opus in Ogg or WebM",
            )
        rate = self._number("sample_rate", 8000, 192000)
        if name is not None and rate is None:
            raise Fault("bad_parameter", f"sample_rate is required with encoding={name}")
        channels = self._number("channels", 1, 8) or 1
        separate = self._switch("multichannel") and channels > 1
        return Start(
            source=self._one("source") or SOURCE,
            # A container says itself what is in it.
            encoding="opus" if name is None else ENCODINGS[name][0],
            sample_rate=rate or Start().sample_rate,
            channels=channels,
            separate=separate,
            language=self._language(),
            languages=language_codes(self._several("language_hint")),
            partials=partials,
            words=True,
            endpointing=Endpointing(hangover=pause),
            vocabulary=self._vocabulary(),
        )


def _phrases(name: str, weighted: list[tuple[str, float]]) -> Vocabulary:
    """Return the phrases of a parameter, each given with its weight.

    Raises:
        Fault: `bad_vocabulary`.
    """
    try:
        return vocabulary_of(phrase(text, weight) for text, weight in weighted)
    except VocabularyError as error:
        raise Fault("bad_vocabulary", f"{name}: {error}") from None


def _boosted(keyword: str) -> tuple[str, float]:
    """Return the word and the boost of `word:boost`.

    Raises:
        Fault: `bad_parameter`.
    """
    word, colon, boost = keyword.rpartition(":")
    if not colon:
        return keyword, 1.0
    try:
        number = float(boost)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Fault("bad_parameter", f"keywords must be word or word:boost, such as lamp:2, got {quoted(keyword)}")
    return word, number


# --- what results of both kinds have ---------------------------------------------------------------------------------


def transcript(text: str, *, written: bool) -> str:
    """Return a text as the model wrote it, or as bare words in lower case."""
    return text.strip() if written else bare_text(text)


def word_object(word: Word, *, written: bool) -> dict[str, Any]:
    return {
        "word": bare(word.text) or word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "confidence": word.confidence,
        **({"punctuated_word": word.text} if written else {}),
    }


def model_info(name: str) -> dict[str, str]:
    return {"name": name, "version": "latest", "arch": "whisper"}


def model_uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def about_the_model(wanted: str | None, had: str) -> Iterator[dict[str, str]]:
    """Return the warning that another model answers than the one that was named, if so."""
    if wanted not in (None, had):
        yield {"parameter": "model", "type": "unsupported_model", "message": f"the model here is {had}"}


def timestamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- the conversation ------------------------------------------------------------------------------------------------


class Deepgram(Codec):
    """The codec of one client of `/v1/listen`.

    Args:
        handshake: the client's.
        now: returns the time.

    Raises:
        Fault: see `parse`.
    """

    def __init__(self, handshake: Handshake, now: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._parameters = parse(handshake.query)
        self._now = now
        self._created = now()
        self._first = self._created  # when the first audio came
        self._request_id = str(uuid.uuid4())
        self._audio = hashlib.sha256()
        self._heard = 0  # bytes
        self._models: dict[str, str] = {}  # "student", "teacher" -> their names
        start = self._parameters.start
        wanted = range(start.channels if start.separate else 1)
        self._channels = [_Channel(number, _Silence(self._parameters.utterance_end)) for number in wanted]
        self._finalizing = 0  # how many of those are not answered
        self._noticed: list[dict[str, str]] = []

    # --- what comes in ---------------------------------------------------------------------------------------------

    def greet(self) -> Iterable[Message]:
        return [self._parameters.start]

    def decode(self, frame: Frame) -> Iterator[Message]:
        """Turn a client's frame into messages.

        Raises:
            Fault: `bad_json`, `unknown_type`, `unknown_field`, `bad_field`. None is fatal.
        """
        if isinstance(frame, str):
            yield from self._obey(_command(frame))
        elif frame:
            if not self._heard:
                self._first = self._now()
            self._audio.update(frame)
            yield Audio(frame)
            self._heard += len(frame)
            for said in self._utterance_end():
                yield Reply(said)
        else:
            yield Stop()  # as their clients of old said it

    def _obey(self, command: str) -> Iterator[Message]:
        match command:
            case "Finalize":
                self._finalizing += 1
                yield Flush()
            case "CloseStream":
                yield Stop()
            case "Configure":
                yield Reply(self._configure_failure())

    # --- what goes out ---------------------------------------------------------------------------------------------

    def encode(self, event: Event) -> Iterator[Frame]:
        match event:
            case Ready(student=student, teacher=teacher):
                self._models = {"student": student, "teacher": teacher or student}
                AdviceLog("deepgram").say(self._parameters.advice)
            case SpeechStarted(source=source, start=start):
                channel = self._of(source)
                channel.silence.broken(event.utterance, start)
                if self._parameters.vad_events:
                    yield _json("SpeechStarted", channel=self._index(channel), timestamp=round(start, 3))
            case Partial() if self._parameters.interim:
                yield self._interim(event)
            case SpeechStopped(source=source, end=end):
                self._of(source).silence.begun(event.utterance, end)
            case Final():
                yield from self._final(event)
            case Flushed():
                self._finalizing -= 1
                for channel in self._channels:
                    yield self._result(channel, channel.held, from_finalize=True)
                    channel.held = None
            case Notice(code=code, message=message):
                self._noticed.append({"parameter": "audio", "type": code, "message": message})
            case Stopped(audio_seconds=seconds):
                yield self._metadata(seconds)
            case Error():
                yield from self._failure(event)

    def blame(self, fault: Fault) -> Iterable[Frame]:
        return [_error(fault)]

    def _final(self, final: Final) -> Iterator[Frame]:
        channel = self._of(final.source)
        held, channel.held = channel.held, final if self._finalizing else None
        yield from [self._result(channel, each) for each in (held, None if channel.held else final) if each is not None]
        channel.silence.last_word(final.utterance, final.words[-1].end if final.words else final.end)
        yield from self._utterance_end()

    def _failure(self, error: Error) -> Iterator[Frame]:
        for channel in self._channels:
            if error.fatal and channel.held is not None:
                yield self._result(channel, channel.held)
                channel.held = None
        yield _error(error)

    def _utterance_end(self) -> Iterator[Frame]:
        for channel in self._channels:
            end = channel.silence.due(self._seconds)
            if end is not None and channel.held is None:
                channel.silence.told()
                yield _json("UtteranceEnd", channel=self._index(channel), last_word_end=round(end, 3))

    def _of(self, source: str) -> _Channel:
        """Return the channel of an event. Where there are several, the number is the end of its source's name."""
        number = int(source.rpartition("-")[2]) if self._parameters.start.separate else 1
        return self._channels[number - 1]

    def _index(self, channel: _Channel) -> list[int]:
        """Return which of how many."""
        return [channel.number, len(self._channels)]

    @property
    def _seconds(self) -> float:
        """The seconds of audio that came.

        How much a container holds is not known here: it is taken to come at its own pace.
        """
        start = self._parameters.start
        if start.encoding == "opus":
            return (self._now() - self._first).total_seconds()
        width = next(width for encoding, width in ENCODINGS.values() if encoding == start.encoding)
        return self._heard / (width * start.channels * start.sample_rate)

    # --- messages --------------------------------------------------------------------------------------------------

    def _interim(self, partial: Partial) -> str:
        """Return the result of a partial, whose words have no times yet, and whose text has no confidence."""
        alternative = {"transcript": self._text(partial.stable + partial.tail), "confidence": 0.0, "words": []}
        channel = self._of(partial.source)
        return self._results(channel, partial.start, partial.end, alternative, "student", is_final=False)

    def _result(self, channel: _Channel, final: Final | None, *, from_finalize: bool = False) -> str:
        """Return the result of a final, or an empty one for None, where nothing was left to say."""
        if final is None:
            nothing = {"transcript": "", "confidence": 0.0, "words": []}
            at = self._seconds
            return self._results(channel, at, at, nothing, "student", speech_final=False, from_finalize=from_finalize)
        words = [word_object(word, written=self._parameters.written) for word in final.words or ()]
        alternative = {"transcript": self._text(final.text), "confidence": final.confidence, "words": words}
        cut = channel.silence.before_next(final) < (self._parameters.pause or _PAUSE)
        return self._results(
            channel,
            final.start,
            final.end,
            alternative,
            final.model,
            speech_final=self._parameters.endpointing and not cut,
            from_finalize=from_finalize,
        )

    def _results(
        self,
        channel: _Channel,
        start: float,
        end: float,
        alternative: dict[str, Any],
        model: str,
        *,
        is_final: bool = True,
        speech_final: bool = False,
        from_finalize: bool = False,
    ) -> str:
        return _json(
            "Results",
            channel_index=self._index(channel),
            start=round(start, 3),
            duration=round(end - start, 3),
            is_final=is_final,
            speech_final=speech_final,
            from_finalize=from_finalize,
            channel={"alternatives": [alternative]},
            metadata={
                "request_id": self._request_id,
                "model_uuid": self._model_uuid(model),
                "model_info": self._model_info(model),
                **({"extra": self._parameters.extra} if self._parameters.extra else {}),
            },
        )

    def _metadata(self, seconds: float) -> str:
        return _json(
            "Metadata",
            transaction_key="deprecated",
            request_id=self._request_id,
            sha256=self._audio.hexdigest(),
            created=timestamp(self._created),
            duration=round(seconds, 3),
            channels=self._parameters.start.channels,
            models=[self._model_uuid("student")],
            model_info={self._model_uuid("student"): self._model_info("student")},
            **({"extra": self._parameters.extra} if self._parameters.extra else {}),
            warnings=[*self._parameters.warnings, *self._about_the_model(), *self._noticed],
        )

    def _about_the_model(self) -> Iterator[dict[str, str]]:
        yield from about_the_model(self._parameters.model, self._models.get("student", ""))

    def _model_info(self, model: str) -> dict[str, str]:
        return model_info(self._models.get(model, ""))

    def _model_uuid(self, model: str) -> str:
        return model_uuid(self._models.get(model, ""))

    def _configure_failure(self) -> str:
        return _json(
            "ConfigureFailure",
            request_id=self._request_id,
            code="CONFIGURE_KEYTERMS_NOT_SUPPORTED",
            description="a running stream cannot be changed: open another connection, with keyterms in its address",
        )

    def _text(self, text: str) -> str:
        return transcript(text, written=self._parameters.written)


class _Silence:
    """What is known of who spoke when, for `UtteranceEnd` and `speech_final`. Seconds of the stream.

    An utterance in which nothing was said has no final, so none is waited for.
    """

    def __init__(self, wanted: float | None) -> None:
        self._wanted = wanted
        self._last_word: float | None = None  # of the newest final, until it was told
        # Utterances after that of the newest final, [number, start, end or None]: no more than can be waiting at once.
        self._after: deque[tuple[int, float, float | None]] = deque(maxlen=64)

    def broken(self, utterance: int, at: float) -> None:
        self._after.append((utterance, at, None))

    def begun(self, utterance: int, at: float) -> None:
        if self._after and self._after[-1][0] == utterance:
            self._after[-1] = (utterance, self._after[-1][1], at)

    def last_word(self, utterance: int, end: float) -> None:
        self._last_word = end
        while self._after and self._after[0][0] <= utterance:
            self._after.popleft()

    def before_next(self, final: Final) -> float:
        """Return the silence between this utterance and the next, if that is known."""
        starts = (start for number, start, _ in self._after if number > final.utterance)
        return next(starts, float("inf")) - final.end

    def due(self, now: float) -> float | None:
        """Return the end of the last word, once it is as long ago as was wanted, and nobody has spoken since."""
        if self._wanted is None or self._last_word is None:
            return None
        since: float = self._last_word
        for _, start, end in self._after:
            if start - since >= self._wanted:
                return self._last_word
            if end is None:
                return None
            since = max(since, end)
        return self._last_word if now - since >= self._wanted else None

    def told(self) -> None:
        self._last_word = None


@dataclass(slots=True, eq=False)
class _Channel:
    """One channel of the audio: all of it mixed, or with `multichannel` one of several.

    Attributes:
        number: from 0.
        silence: who spoke in it when.
        held: the newest final that a Finalize may have brought out.
    """

    number: int
    silence: _Silence
    held: Final | None = None


def _command(frame: str) -> str:
    """Check a text frame and return its type.

    Raises:
        Fault: see `Deepgram.decode`.
    """
    try:
        body = read_json(frame)
    except ValueError as error:
        raise Fault("bad_json", f'a text frame must be a JSON object such as {{"type":"Finalize"}}: {error}') from None
    kind = body.get("type") if isinstance(body, dict) else None
    if kind not in ("KeepAlive", "Finalize", "CloseStream", "Configure"):
        raise Fault(
            "unknown_type", "a text frame has the type KeepAlive, Finalize or CloseStream; audio goes in binary frames"
        )
    if kind == "Configure":
        return "Configure"
    if kind == "Finalize" and body.pop("channel", 0) not in (0, None):
        raise Fault("bad_field", "a Finalize is for all channels: leave channel out")
    if unknown := [name for name in body if name != "type"]:
        raise Fault("unknown_field", f"unknown field {quoted(unknown[0])} in {kind}: it takes none")
    return str(kind)


def _json(kind: str, **values: Any) -> str:
    return json.dumps({"type": kind, **values}, ensure_ascii=False, separators=(",", ":"))


def _error(what: Fault | Error) -> str:
    variant = "SchemaError" if what.code in _UNREADABLE else what.code
    return _json("Error", variant=variant, code=what.code, description=what.message)


# --- before the conversation -----------------------------------------------------------------------------------------


def tokens(handshake: Handshake) -> list[str]:
    """Return the tokens that the client shows.

    They are in the header, as `Token K` or `Bearer K`; or, from a browser, in the subprotocols `token`, `K`.

    Raises:
        Fault: `bad_parameter`.
    """
    offered = handshake.subprotocols
    hidden = offered[1:2] if offered and offered[0].lower() in ("token", "bearer") else ()
    return [*shown_tokens(handshake, "token", "bearer"), *hidden]


def _refuse(fault: Fault) -> list[Frame]:
    return [_error(fault)]


def reject(fault: Fault) -> Rejection:
    """Return a refusal in plain HTTP."""
    status = _STATUS.get(fault.code, 400)
    request_id = str(uuid.uuid4())
    body = {"err_code": _ERR_CODES[status], "err_msg": fault.message, "request_id": request_id}
    headers = {
        "Content-Type": "application/json",
        "dg-request-id": request_id,
        "dg-error": " ".join(fault.message.split()).encode("ascii", "backslashreplace").decode(),
    }
    return Rejection(status, json.dumps(body).encode(), headers)


DIALECT = Dialect(
    "deepgram",
    Deepgram,
    tokens,
    _refuse,
    close_reason=close_reason,
    paths=frozenset({PATH}),
    subprotocols=("token", "bearer"),
    reject=reject,
)
