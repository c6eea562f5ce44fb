"""Phrases that a model is made to hear: what they may be, wherever they come from, and how several lists are one.

Owns the limits and the reading of a list. Knows nothing of who gave it, or of how a decoder hears the phrases.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

from streaming.job import NO_VOCABULARY as NO_VOCABULARY
from streaming.job import Phrase as Phrase
from streaming.job import Vocabulary as Vocabulary

MOST_PHRASES = 1000
LONGEST_PHRASE = 100
"""Characters."""
GREATEST_WEIGHT = 10.0

_TOO_MANY = f"a vocabulary may have at most {MOST_PHRASES} phrases: leave some out"
_EXAMPLE = '["Kallax", {"text": "Thibault", "weight": 1.5}]'


class VocabularyError(ValueError):
    """A list of phrases cannot be used; the message says what it must be, without quoting what is in it at length."""


def read_vocabulary(value: object) -> Vocabulary:
    """Read a list of phrases, each a string or an object with its `text` and perhaps its `weight`.

    Raises:
        VocabularyError: it is no such list, or is beyond the limits.
    """
    if not isinstance(value, list | tuple):
        raise VocabularyError(f"a vocabulary must be a list of phrases, such as {_EXAMPLE}")
    if len(value) > MOST_PHRASES:  # before any is looked at: a message has room for hundreds of thousands
        raise VocabularyError(_TOO_MANY)
    return vocabulary_of(_read_phrase(item, place) for place, item in enumerate(value, 1))


def read_lines(text: str) -> Vocabulary:
    """Read a text with a phrase in each line, and perhaps its weight behind a tab; # begins a line that says nothing.

    Raises:
        VocabularyError: a phrase cannot be used, or there are too many.
    """
    return vocabulary_of(
        _read_phrase(_line(line), place)
        for place, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1)
        if line.strip() and not line.startswith("#")
    )


def vocabulary_of(phrases: Iterable[Phrase]) -> Vocabulary:
    """Return phrases as one vocabulary: each once, with the greatest of its weights.

    Raises:
        VocabularyError: there are too many.
    """
    found = _merged(phrases, MOST_PHRASES + 1)
    if len(found.phrases) > MOST_PHRASES:
        raise VocabularyError(_TOO_MANY)
    return found


def joined(*vocabularies: Vocabulary) -> Vocabulary:
    """Return several vocabularies as one, without those that are beyond the limit; the first ones go before."""
    some = [each for each in vocabularies if each.phrases]
    if len(some) == 1:
        return some[0]
    return _merged((phrase for each in some for phrase in each.phrases), MOST_PHRASES)


def _merged(phrases: Iterable[Phrase], most: int) -> Vocabulary:
    """Return the first `most` phrases, each once, with the greatest of its weights."""
    weights: dict[str, float] = {}
    for each in phrases:
        if each.text in weights or len(weights) < most:
            weights[each.text] = max(each.weight, weights.get(each.text, 0.0))
    return Vocabulary(tuple(Phrase(text, weight) for text, weight in weights.items())) if weights else NO_VOCABULARY


def phrase(text: str, weight: float = 1.0) -> Phrase:
    """Return a phrase without needless spaces.

    Raises:
        VocabularyError: it is empty, too long, no text, or its weight is out of range.
    """
    words = " ".join(text.split())
    if not words:
        raise VocabularyError("a phrase may not be empty")
    if len(words) > LONGEST_PHRASE:
        raise VocabularyError(f"a phrase may have at most {LONGEST_PHRASE} characters; {words[:20]!r}... is longer")
    if "<|" in words or any(unicodedata.category(each) in ("Cc", "Cs", "Co", "Cn") for each in words):
        raise VocabularyError("a phrase must be text that can be spoken, without control characters or <|")
    if not (math.isfinite(weight) and 0 < weight <= GREATEST_WEIGHT):
        raise VocabularyError(f"a phrase's weight must be above 0 and at most {GREATEST_WEIGHT:g}")
    return Phrase(words, float(weight))


def _line(line: str) -> dict[str, object]:
    text, tab, weight = line.rpartition("\t")
    try:
        return {"text": text, "weight": float(weight)} if tab else {"text": line}
    except ValueError:
        return {"text": line}


def _read_phrase(item: object, place: int) -> Phrase:
    fields = {"text": item} if isinstance(item, str) else item
    if not (isinstance(fields, dict) and fields.keys() <= {"text", "weight"} and isinstance(fields.get("text"), str)):
        raise VocabularyError(f"phrase {place} must be a string, or text and weight, as in {_EXAMPLE}")
    weight = fields.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise VocabularyError(f"phrase {place}: its weight must be a number, as in {_EXAMPLE}")
    try:
        return phrase(fields["text"], weight if abs(weight) < 1e9 else math.inf)
    except VocabularyError as error:
        raise VocabularyError(f"phrase {place}: {error}") from None
