"""How texts are scored: word errors by kind, repeats, and how well a signal tells right from wrong.

Owns the arithmetic alone. Knows nothing of audio or models, nor of languages: what makes two texts comparable is given.
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
    """Word errors of a set, as counts; `words` are the reference's. clips: those whose reference has words."""

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
    """A reference that has no words once it is comparable is left out: there is nothing to get right."""
    pairs = [(comparable(said), comparable(heard)) for said, heard in zip(references, hypotheses, strict=True)]
    pairs = [(said, heard) for said, heard in pairs if said]
    if not pairs:
        return Score(0, 0, 0, 0, 0)
    output = jiwer.process_words([said for said, _ in pairs], [heard for _, heard in pairs])
    words = output.hits + output.substitutions + output.deletions
    return Score(len(pairs), words, output.substitutions, output.deletions, output.insertions)


def word_errors(reference: str, hypothesis: str, comparable: Comparable) -> tuple[int, int]:
    """(errors, words of the reference) of one text. An empty reference is allowed: every word is an insertion."""
    if not comparable(reference):
        return len(comparable(hypothesis).split()), 0
    one = score([reference], [hypothesis], comparable)
    return one.errors, one.words


def repeats(text: str, reference: str, comparable: Comparable, size: int = 5) -> int:
    """Phrases of `size` words that come again, over and above those that the reference repeats too: how Distil-Whisper
    (Gandhi et al. 2023) counts a decoder's loops.
    """
    said, meant = _phrases(comparable(text), size), _phrases(comparable(reference), size)
    return sum(count - max(1, meant[phrase]) for phrase, count in said.items() if count > max(1, meant[phrase]))


def _phrases(text: str, size: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def auroc(signal: Sequence[float], wrong: Sequence[bool]) -> float | None:
    """How often a wrong text has a lower signal than a right one, ties for half; 0.5 says nothing, 1 says all.

    None when all are right, or all wrong.
    """
    values, bad = np.asarray(signal, float), np.asarray(wrong, bool)
    right, false = values[~bad], values[bad]
    if not right.size or not false.size:
        return None
    lower = (false[:, None] < right[None, :]).mean() + 0.5 * (false[:, None] == right[None, :]).mean()
    return float(lower)
