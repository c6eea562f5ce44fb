"""What a client only advises, as every dialect takes it.

Owns the policy. A field that advises how to hear changes nothing of what the answer means: it is taken, whatever the
service can make of it, and where that is nothing it is said, in the log once for each client and wherever the protocol
has a place for it. What would change the meaning of the answer (who spoke, another language) is no advice, and the
dialects refuse it. Here are the fields without effect, the line that says so, and how a prompt or a list of keywords
becomes phrases. Knows no dialect.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable

from streaming.vocabulary import Vocabulary, VocabularyError, phrase, vocabulary_of

_log = logging.getLogger(__name__)

WITHOUT_EFFECT = {
    "chunking_strategy": "the service's settings say where utterances end",
    "create_response": "a transcription session has no responses",
    "delay": "text is sent as soon as it is stable",
    "idle_timeout_ms": "the service does not respond to silence",
    "interrupt_response": "a transcription session has no responses",
    "noise_reduction": "the audio is heard as it is sent",
    "prompt": "only a list of names is used, separated by commas, semicolons or line breaks",
    "semantic_vad": "turns are detected by server_vad, with the service's settings",
    "temperature": "decoding is greedy",
}
"""Each field that can be without effect, and what holds instead."""

LONGEST_PROMPT = 4096
"""Characters. Models of the hosted services read less."""

_SEPARATORS = re.compile(r"[,;\r\n，；、]+")  # noqa: RUF001 - the signs of other scripts are meant
_SENTENCE_ENDS = ".!?。！？"  # noqa: RUF001
_LONGEST_NAME = 4
"""Words of each name in a list."""
_LONGEST_LONE_NAME = 3
"""Words of a name that stands alone: a few words more are an instruction."""

_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""A letter of a script that has no spaces between words."""
_LETTERS_A_WORD = 3
"""Of those."""


def without_effect(field: str) -> str:
    """Return the sentence that says of a field of `WITHOUT_EFFECT` that it was taken, and what holds instead."""
    return f"{field} has no effect here: {WITHOUT_EFFECT[field]}"


class AdviceLog:
    """Says in the log what one client advised without effect, each field once.

    Args:
        dialect: what the client speaks.
    """

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self._said: set[str] = set()

    def say(self, fields: Iterable[str]) -> None:
        if new := [field for field in fields if field not in self._said]:
            self._said.update(new)
            _log.info("%s: taken without effect: %s", self._dialect, ", ".join(new))


def names_in(prompt: str) -> Vocabulary | None:
    """Return the names that a prompt lists; None where it is anything but a list.

    Several names are separated by commas, semicolons or line breaks. Only the shape of a text tells a list from
    sentences, so each name must be short.
    """
    parts = [part for each in _SEPARATORS.split(prompt) if (part := " ".join(each.split()))]
    if not parts or not all(0 < _words(part) <= _LONGEST_NAME for part in parts):
        return None
    if len(parts) == 1 and (_words(parts[0]) > _LONGEST_LONE_NAME or parts[0][-1] in _SENTENCE_ENDS):
        return None
    if parts[-1].count(".") == 1:  # the end of the list; that of an abbreviation is not its only one
        parts[-1] = parts[-1].removesuffix(".")
    try:
        return vocabulary_of(map(phrase, filter(None, parts)))
    except VocabularyError:
        return None


def read_keywords(keywords: Iterable[object]) -> Vocabulary:
    """Read a list of keywords, each a phrase on one line.

    Raises:
        VocabularyError: one cannot be used, or there are too many.
    """
    phrases = []
    for place, keyword in enumerate(keywords, 1):
        if not isinstance(keyword, str) or any(each in "<>\r\n" for each in keyword):
            raise VocabularyError(f"keyword {place} must be a string on one line, without < and >")
        try:
            phrases.append(phrase(keyword))
        except VocabularyError as error:
            raise VocabularyError(f"keyword {place}: {error}") from None
    return vocabulary_of(phrases)


def _words(part: str) -> int:
    spaced, letters = _UNSPACED.subn(" ", part)
    return sum(any(map(str.isalnum, word)) for word in spaced.split()) + math.ceil(letters / _LETTERS_A_WORD)
