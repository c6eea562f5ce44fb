"""How texts are scored: word errors by kind, repeats, and how well a signal tells right from wrong.

Owns the arithmetic alone. Knows nothing of audio or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from distillation.text import normalise


@dataclass(frozen=True, slots=True)
class Score:
    """Word errors of a set, as counts; `words` are the reference's."""

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


def score(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Both sides in the corpus's style: lower case, letters and apostrophes."""
    output = jiwer.process_words([normalise(text) for text in references], [normalise(text) for text in hypotheses])
    words = output.hits + output.substitutions + output.deletions
    return Score(len(references), words, output.substitutions, output.deletions, output.insertions)


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(errors, words of the reference) of one text. An empty reference is allowed: every word is an insertion."""
    reference, hypothesis = normalise(reference), normalise(hypothesis)
    if not reference:
        return len(hypothesis.split()), 0
    one = score([reference], [hypothesis])
    return one.errors, one.words


def repeats(text: str, reference: str, size: int = 5) -> int:
    """Phrases of `size` words that come again, over and above those that the reference repeats too: how Distil-Whisper
    (Gandhi et al. 2023) counts a decoder's loops.
    """
    said, meant = _phrases(text, size), _phrases(reference, size)
    return sum(count - max(1, meant[phrase]) for phrase, count in said.items() if count > max(1, meant[phrase]))


def _phrases(text: str, size: int) -> Counter[tuple[str, ...]]:
    words = normalise(text).split()
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def auroc(signal: Sequence[float], wrong: Sequence[bool]) -> float:
    """How often a wrong text has a lower signal than a right one, ties for half; 0.5 says nothing, 1 says all.

    nan when all are right, or all wrong.
    """
    values, bad = np.asarray(signal, float), np.asarray(wrong, bool)
    right, false = values[~bad], values[bad]
    if not right.size or not false.size:
        return float("nan")
    lower = (false[:, None] < right[None, :]).mean() + 0.5 * (false[:, None] == right[None, :]).mean()
    return float(lower)
