"""How many words were right: what was said and what was heard, compared by Whisper's own normaliser for English.

Owns only this choice. Whisper writes capitals and punctuation, and numbers in figures, which the recordings' texts do
not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from distillation.label import normaliser
from distillation.scores import Score, score
from streaming.whisper.locate import locate

SHIPPED = "tiny-en"
"""Whose checkpoint has the list of British spellings that the normaliser takes for American ones."""


@cache
def comparable() -> Callable[[str], str]:
    return normaliser("english", locate(SHIPPED, "teacher")[1] / "normalizer.json")


def words(said: Sequence[str], heard: Sequence[str]) -> Score:
    """Score all that was said against all that was heard.

    So no word counts as wrong because an utterance was cut differently.
    """
    return score([" ".join(said)], [" ".join(heard)], comparable())
