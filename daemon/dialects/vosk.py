"""The protocol of Vosk's websocket server: frames <-> events, without I/O.

Owns its JSON, the settings that a client may send before its audio, and the rule that its clients rely on: each frame
of audio, each `reset` and the `eof` gets exactly one answer. An answer to audio is the final that is ready and was not
told yet, or else the text so far; one to `reset` and `eof` is all that was not told yet. Texts are bare words in lower
case, as Vosk's models write them: its clients compare words. Knows nothing of sockets or streams.

The protocol has no word for errors, nor for warnings. A client whose fault ends the conversation reads the reason in
the close. A notice that its audio has the wrong form goes to the log alone.

A `phrase_list` is a grammar there: nothing but its phrases is heard. Here they are heard better than they would be, and
all else too; the log has a line of that.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from daemon.common.client_input import bare, bare_text, read_json, shown
from daemon.common.errors import Fault
from daemon.dialects.codec import (
    Codec,
    Dialect,
    Frame,
    Handshake,
    Message,
    Reply,
    bearer_tokens,
    close_reason,
    named_source,
)
from streaming.events import Audio, Event, Final, Flush, Flushed, Partial, Ready, SpeechStarted, Start, Stop, Stopped
from streaming.vocabulary import MOST_PHRASES, NO_VOCABULARY, Vocabulary, VocabularyError, phrase, vocabulary_of

_log = logging.getLogger(__name__)

SOURCE = "vosk"
"""The name of a stream whose address has none."""

_MOST_ALTERNATIVES = 1000

_UNKNOWN = "[unk]"
"""In a list of phrases: anything else."""

_REFUSED = {
    "grammar": "list phrases to hear in phrase_list",
    "model": "the service's settings name the model",
    "spk": "speakers are not distinguished",
    "spk_model": "speakers are not distinguished",
}


@dataclass(frozen=True, slots=True)
class _Config:
    """What a client may set before its audio.

    Attributes:
        words: whether answers list them.
        alternatives: whether texts come as a list of alternatives.
        phrases: those that are to be heard.
    """

    sample_rate: int
    words: bool = True
    alternatives: bool = False
    phrases: Vocabulary = NO_VOCABULARY


class Vosk(Codec):
    """The codec of one client.

    Args:
        handshake: the client's.
        sample_rate: that of audio for which the client names none, in Hz.

    Raises:
        Fault: `bad_parameter`, `unknown_parameter`.
    """

    def __init__(self, handshake: Handshake, sample_rate: int) -> None:
        self._source = named_source(handshake) or SOURCE
        self._config = _Config(sample_rate)
        self._begun = False
        self._ended = False
        self._untold: deque[Final] = deque()
        self._partial = ""

    # --- what comes in ---------------------------------------------------------------------------------------------

    def decode(self, frame: Frame) -> Iterator[Message]:
        """Turn a client's frame into messages.

        Raises:
            Fault: `bad_json`, `unknown_type`, `unknown_field`, `bad_field`, `bad_vocabulary`, `unsupported`,
                `late_config`. All are fatal, because what the client waits for will not come.
        """
        if isinstance(frame, bytes):
            yield from self._begin()
            yield Audio(frame)
            yield Reply(self._answer())
            return
        match _request(frame):
            case ("config", config):
                self._configure(config)
            case ("reset", _):
                yield from self._begin()
                yield Flush()
            case _:
                yield from self._begin()
                self._ended = True
                yield Stop()

    def _begin(self) -> Iterator[Message]:
        if not self._begun:
            self._begun = True
            yield Start(
                source=self._source,
                sample_rate=self._config.sample_rate,
                words=self._config.words,
                vocabulary=self._config.phrases,
            )

    def _configure(self, body: object) -> None:
        if self._begun:
            raise _fault("late_config", "config comes before the audio: open another connection to change it")
        if not isinstance(body, dict):
            raise _fault("bad_field", f"config must be an object, got {shown(body)}")
        for name, value in body.items():
            self._set(name, value)

    def _set(self, name: str, value: object) -> None:
        match name:
            case "sample_rate":
                self._config = replace(self._config, sample_rate=_whole(name, value, 8000, 192000))
            case "words":
                self._config = replace(self._config, words=bool(_whole(name, value, 0, 1)))
            case "max_alternatives":
                self._config = replace(self._config, alternatives=_whole(name, value, 0, _MOST_ALTERNATIVES) > 0)
            case "phrase_list":
                self._config = replace(self._config, phrases=_phrases(name, value))
            case _ if name in _REFUSED:
                if value:
                    raise _fault("unsupported", f"{name} is not supported: {_REFUSED[name]}")
            case _:
                known = "sample_rate, words, max_alternatives or phrase_list"
                raise _fault("unknown_field", f"unknown setting {shown(name)}: use {known}")

    # --- what goes out ---------------------------------------------------------------------------------------------

    def encode(self, event: Event) -> Iterator[Frame]:
        match event:
            case Ready():
                if self._config.phrases.phrases:
                    _log.info("vosk: phrase_list is no grammar here: its phrases are heard better, and others too")
            case SpeechStarted():
                self._partial = ""
            case Partial(stable=stable, tail=tail):
                self._partial = bare_text(stable + tail)
            case Final():
                self._untold.append(event)
                self._partial = ""
            case Flushed():
                yield self._all_untold()
            case Stopped() if self._ended or self._untold:  # the service's own end was not asked for
                yield self._all_untold()

    def blame(self, fault: Fault) -> Iterable[Frame]:
        return ()

    def _answer(self) -> str:
        return self._result([self._untold.popleft()]) if self._untold else json.dumps({"partial": self._partial})

    def _all_untold(self) -> str:
        finals, self._partial = list(self._untold), ""
        self._untold.clear()
        return self._result(finals)

    def _result(self, finals: list[Final]) -> str:
        text = " ".join(filter(None, (bare_text(final.text) for final in finals)))
        words = [
            {
                "conf": word.confidence,
                "end": round(word.end, 3),
                "start": round(word.start, 3),
                "word": bare(word.text) or word.text,
            }
            for final in finals
            for word in final.words or ()
        ]
        body: dict[str, Any] = {**({"result": words} if words else {}), "text": text}
        if self._config.alternatives:
            body = {"alternatives": [{"confidence": _confidence(finals), **body}]}
        return json.dumps(body, ensure_ascii=False)


def _confidence(finals: list[Final]) -> float:
    """Return the least confidence: all finals must be right for the text to be."""
    return min((final.confidence for final in finals), default=1.0)


def _request(frame: str) -> tuple[str, object]:
    """Return `config`, `reset` or `eof`, and its value.

    Raises:
        Fault: `bad_json`, `unknown_type`.
    """
    try:
        body = read_json(frame)
    except ValueError as error:
        raise _fault("bad_json", f'a text frame must be JSON such as {{"eof" : 1}}: {error}') from None
    known = [name for name in ("config", "reset", "eof") if isinstance(body, dict) and body.get(name)]
    if len(known) != 1 or len(body) != 1:
        advice = 'a text frame must be {"config" : {...}}, {"reset" : 1} or {"eof" : 1}; audio is binary'
        raise _fault("unknown_type", advice)
    return known[0], body[known[0]]


def _whole(name: str, value: object, low: int, high: int) -> int:
    """Return a whole number, which clients may write as 16000.0, or 1 as true."""
    # Not `in range(...)`, which compares a float with each number of it.
    if not isinstance(value, int | float) or not low <= value <= high or value != int(value):
        raise _fault("bad_field", f"{name} must be {low}..{high}, got {shown(value)}")
    return int(value)


def _phrases(name: str, value: object) -> Vocabulary:
    """Return a list of phrases as a vocabulary, without what stands for anything else."""
    if not value:
        return NO_VOCABULARY
    if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise _fault("bad_field", f"{name} must be a list of strings, got {shown(value)}")
    listed = [each for each in value if each.strip() not in ("", _UNKNOWN)]
    if len(listed) > MOST_PHRASES:  # before any is read
        raise _fault("bad_vocabulary", f"{name} may have at most {MOST_PHRASES} phrases: leave some out")
    try:
        return vocabulary_of(map(phrase, listed))
    except VocabularyError as error:
        raise _fault("bad_vocabulary", f"{name}: {error}") from None


def _fault(code: str, message: str) -> Fault:
    return Fault(code, message, fatal=True)


# --- before the conversation -----------------------------------------------------------------------------------------


def dialect(sample_rate: int) -> Dialect:
    """Return the dialect, with the sample rate in Hz of audio whose client names none."""
    make: Callable[[Handshake], Codec] = lambda handshake: Vosk(handshake, sample_rate)  # noqa: E731
    return Dialect("vosk", make, bearer_tokens, lambda fault: (), close_reason=close_reason)
