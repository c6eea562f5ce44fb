"""How many words were right: what was said and what was heard, compared by Whisper's own normaliser for English.

Whisper writes capitals and punctuation, and numbers in figures; the recordings' texts have none of that. Owns no more
than the choice: the counting is `distillation.scores`.
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
    """Of all that was said against all that was heard: where an utterance was cut differently no word is wrong."""
    return score([" ".join(said)], [" ".join(heard)], comparable())
