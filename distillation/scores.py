"""How texts are scored: word errors by kind, repeats, and how well a signal tells right from wrong.

Owns only the arithmetic; what makes two texts comparable is passed in. Knows nothing of audio, models or languages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

Comparable = Callable[[str], str]
"""Brings a text to the form in which words are counted, as of `label.normaliser`."""


@dataclass(frozen=True, slots=True)
class Score:
    """Word errors of a set, as counts.

    Attributes:
        clips: those whose reference has words.
        words: of the references.
        substituted: words heard as another.
        deleted: words not heard.
        inserted: words heard that were not said.
    """

    clips: int
    words: int
    substituted: int
    deleted: int
    inserted: int

    @property
    def errors(self) -> int:
        return self.substituted + self.deleted + self.inserted

    @property
    def wer(self) -> float:
        return self.errors / max(1, self.words)

    @property
    def insertion_rate(self) -> float:
        return self.inserted / max(1, self.words)


def score(references: Sequence[str], hypotheses: Sequence[str], comparable: Comparable) -> Score:
    """Count the word errors of texts; references without words once they are comparable are left out.

    Args:
        references: what was said.
        hypotheses: what was heard.
        comparable: makes two texts comparable.
    """
    pairs = [(comparable(said), comparable(heard)) for said, heard in zip(references, hypotheses, strict=True)]
    pairs = [(said, heard) for said, heard in pairs if said]
    if not pairs:
        return Score(0, 0, 0, 0, 0)
    output = jiwer.process_words([said for said, _ in pairs], [heard for _, heard in pairs])
    words = output.hits + output.substitutions + output.deletions
    return Score(len(pairs), words, output.substitutions, output.deletions, output.insertions)


def word_errors(reference: str, hypothesis: str, comparable: Comparable) -> tuple[int, int]:
    """Count the errors of one text, and the words of its reference.

    The reference may be empty; then every word is an insertion.
    """
    if not comparable(reference):
        return len(comparable(hypothesis).split()), 0
    one = score([reference], [hypothesis], comparable)
    return one.errors, one.words


def repeats(text: str, reference: str, comparable: Comparable, size: int = 5) -> int:
    """Count the phrases that a text repeats, beyond those that its reference repeats too.

    Distil-Whisper counts a decoder's loops in this way (Gandhi et al. 2023).

    Args:
        text: what was heard.
        reference: what was said.
        comparable: makes two texts comparable.
        size: the words in a phrase.
    """
    said, meant = _phrases(comparable(text), size), _phrases(comparable(reference), size)
    return sum(count - max(1, meant[phrase]) for phrase, count in said.items() if count > max(1, meant[phrase]))


def _phrases(text: str, size: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def auroc(signal: Sequence[float], wrong: Sequence[bool]) -> float | None:
    """Return how often a wrong text has a lower signal than a right one, where a tie counts half.

    0.5 says that the signal tells nothing, 1 that it tells all (area under the receiver operating characteristic).

    Args:
        signal: a value for each text.
        wrong: whether each text is wrong.

    Returns:
        None when all texts are right, or all wrong.
    """
    values, bad = np.asarray(signal, float), np.asarray(wrong, bool)
    right, false = values[~bad], values[bad]
    if not right.size or not false.size:
        return None
    lower = (false[:, None] < right[None, :]).mean() + 0.5 * (false[:, None] == right[None, :]).mean()
    return float(lower)
