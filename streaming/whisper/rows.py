"""One text in progress: what is said so far, and the draft of what may come.

Owns the bookkeeping of a row between two passes, and re-anchoring: when the text departs from its draft, where in the
rest of the draft it may come back. Plain Python; knows nothing of models or tensors. A draft never changes what is
said, only how soon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

REACH = 8
"""How far ahead in the draft a correction is looked for: about a phrase; farther, common tokens match by chance."""

FARTHEST = 32
"""How far after many corrections in a row, each of which may have been one token more."""


class Draft:
    """Tokens that were guessed for a text, offered to the model from the place that the text has reached.

    The text departs from a draft by a token that is missing from the draft, one too many, or another one (a comma lost,
    a word repeated, a letter's case). The correction tells only in part which of these it is, so the rest is offered
    behind the correction by the likeliest reading, and the next correction is searched for from the same place again.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._place = 0  # tokens before it are certainly behind the text
        self._start = 0  # where the last offer began
        self._misses = 0  # corrections since the text and the draft last agreed

    def offer(self) -> list[int]:
        """Return what is to be checked next; empty where nothing in the draft fits."""
        return self._tokens[self._start :]

    def correct(self, kept: int, text: Sequence[int]) -> None:
        """Take the model's answer: it kept `kept` tokens of the last offer, and then said the last token of `text`."""
        if kept > 0:
            self._place, self._misses = self._start + kept, 0
        self._misses += 1
        self._start = self._find(text)

    def _find(self, text: Sequence[int]) -> int:
        ahead = min(self._misses + REACH, FARTHEST)
        reach = range(self._place, min(self._place + ahead, len(self._tokens)))
        matches = [index for index in reach if self._tokens[index] == text[-1]]
        for index in matches:
            if index > 0 and len(text) > 1 and self._tokens[index - 1] == text[-2]:
                return index + 1
        if matches:
            return matches[0] + 1
        # Not there: at first it stands in place of one token; after that no guess is likelier than another.
        return self._place + 1 if self._misses == 1 else len(self._tokens)


@dataclass(slots=True)
class Row:
    """One text in progress.

    Attributes:
        prompt: the tokens that it starts with.
        limit: tokens to decode at most, the end of text included.
        draft: what may come.
        timestamps: whether the text has some.
        eot: the end-of-text token.
        vocabulary: the number of its vocabulary in the batch; 0 for none.
        told: tokens of the prompt in front of start of transcript: the text before.
        tokens: the prompt and the text so far.
        log_probs: of the text's tokens.
        cached: leading tokens whose keys and values are in the cache.
        accepted: how much of the draft the first pass kept.
        passes: decoder passes so far.
        no_speech: the probability that there is no speech.
        done: whether the text has ended.
    """

    prompt: tuple[int, ...]
    limit: int
    draft: Draft
    timestamps: bool = False
    eot: int = -1
    vocabulary: int = 0
    told: int = 0
    tokens: list[int] = field(init=False)  # the prompt and the text so far
    log_probs: list[float] = field(default_factory=list)
    cached: int = 0  # leading tokens whose keys and values are in the cache
    accepted: int = 0  # how much of the draft the first pass kept
    passes: int = 0
    no_speech: float = 0.0
    done: bool = False

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def text(self) -> list[int]:
        """The tokens behind the prompt, without the end of text."""
        said = self.tokens[len(self.prompt) :]
        return said[:-1] if said and said[-1] == self.eot else said

    def offer(self) -> list[int]:
        room = self.limit - len(self.log_probs)
        return [] if self.done else self.draft.offer()[:room]

    def take(self, offered: int, agreed: int, chosen: list[int], log_probs: list[float]) -> None:
        """Append what a pass says about the row: the kept draft and the correction behind it.

        Args:
            offered: tokens of the draft that the pass checked.
            agreed: how many tokens behind the first of its window are right.
            chosen: the token that the model chose after each position of the window.
            log_probs: of the chosen tokens.
        """
        first = len(self.tokens) - 1 - self.cached  # the column that judges the first token of the offer
        said, how = chosen[first : agreed + 1], log_probs[first : agreed + 1]
        kept = min(len(said) - 1, offered)
        self.accepted = self.accepted if self.passes else kept
        self.passes += 1
        self.cached += agreed + 1
        room = self.limit - len(self.log_probs)
        self.tokens += said[:room]
        self.log_probs += how[:room]
        # What is no number any more has no end of its own: it would cost its batch all steps up to the limit.
        broken = not all(map(math.isfinite, how))
        self.done = broken or len(self.log_probs) >= self.limit or self.tokens[-1] == self.eot
        self.draft.correct(kept, self.tokens)
