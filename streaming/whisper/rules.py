"""Whisper's token grammar: the prompt, and what may be said where.

Owns the scores as a pure function of the tokens so far, for every position of a window at once: a bonus for the phrases
of a vocabulary (`biasing.py`), and restrictions. These are the same, to the token, as transformers' logits processors
for Whisper (suppression, begin-suppression, `WhisperTimeStampLogitsProcessor`), which follow OpenAI's decoder. Knows
nothing of caches, drafts or audio.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from streaming.whisper.biasing import Tables, add_bonuses
from streaming.whisper.checkpoint import Grammar


class Context(NamedTuple):
    """What rules need of rows that have timestamps or a vocabulary.

    Attributes:
        tokens: every row's tokens from position 0 on, the window included, `[rows, length]`.
        places: the window's positions, `[rows, width]`.
        begins: the lengths of the prompts, `[rows]`.
        stamped: which rows have timestamps, `[rows]`; None for no row.
        vocabularies: the number of each row's vocabulary (`with_phrases`), 0 for none, `[rows]`; None for no row.
    """

    tokens: Tensor
    places: Tensor
    begins: Tensor
    stamped: Tensor | None
    vocabularies: Tensor | None


class LogitRules:
    """A checkpoint's grammar as tensors on the device.

    Attributes:
        grammar: the checkpoint's.
        languages: the tokens of its languages, in its order.
    """

    def __init__(self, grammar: Grammar, vocabulary: int, device: torch.device) -> None:
        self.grammar = grammar
        self._ids = torch.arange(vocabulary, device=device)
        # To be added: one operation, whatever is forbidden.
        self._never = self._forbidding(grammar.suppress)
        self._never_first = self._forbidding(grammar.suppress + grammar.begin_suppress)
        self.languages = torch.tensor(list(grammar.languages.values()), dtype=torch.long, device=device)
        # A vocabulary without timestamps has them, so to speak, behind its end.
        self._first_timestamp = vocabulary if grammar.no_timestamps is None else grammar.no_timestamps + 1
        self._phrases: Tables | None = None

    def with_phrases(self, phrases: Tables) -> LogitRules:
        """Return the same rules with vocabularies that rows may have."""
        rules = copy.copy(self)
        rules._phrases = phrases
        return rules

    def prompt(
        self, language: str | None, task: str, timestamps: bool, previous: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """Return the tokens that a text starts with; English-only checkpoints have neither language nor task.

        Args:
            language: a code.
            task: what is done.
            timestamps: whether the text has some.
            previous: tokens of the text before, which stand in front of it.

        Raises:
            ValueError: the checkpoint cannot do what is asked.
        """
        grammar = self.grammar
        prompt = [*self._told(previous), grammar.sot]
        if grammar.languages:
            if language is None or language not in grammar.languages:
                raise ValueError(f"the language {language!r} is not one of {', '.join(grammar.languages)}")
            prompt.append(grammar.languages[language])
            if task not in grammar.tasks:
                raise ValueError(f"the task {task!r} is not one of {', '.join(grammar.tasks)}")
            prompt.append(grammar.tasks[task])
        elif language not in (None, "en") or task != "transcribe":
            raise ValueError(f"an English-only checkpoint cannot {task} the language {language!r}")
        if grammar.no_timestamps is None:
            if timestamps:
                raise ValueError("this checkpoint has no timestamps")
        elif not timestamps:
            prompt.append(grammar.no_timestamps)
        return tuple(prompt)

    def _told(self, previous: Sequence[int]) -> list[int]:
        """What stands before the start of transcript."""
        if not previous:
            return []
        start = self.grammar.previous
        if start is None:
            raise ValueError("this checkpoint cannot be told the text before")
        if not all(isinstance(token, int) and self._is_said(token) for token in previous):
            raise ValueError("the text before has tokens that are neither text nor timestamps")
        return [start, *previous]

    def _is_said(self, token: int) -> bool:
        return 0 <= token < self.grammar.eot or self._first_timestamp <= token < len(self._ids)

    def limit(self, prompt: tuple[int, ...], positions: int, wanted: int | None) -> int:
        """Return how many tokens may be decoded, the end of text included.

        It counts as `transformers.generate` does: the checkpoint's `max_length`, or `wanted` as its `max_new_tokens`.

        Args:
            prompt: the tokens that the text starts with.
            positions: of the decoder.
            wanted: a smaller limit, if any.
        """
        most = min(self.grammar.max_length, positions - len(prompt))
        return most if wanted is None else min(wanted, most)

    def text(self, logits: Tensor, opens: Tensor | None, context: Context | None = None) -> Tensor:
        """Return the scores of what may follow each position of a window, with forbidden tokens at -inf.

        Args:
            logits: float32, `[rows, width, vocabulary]`.
            opens: whether the text begins behind a position, `[rows, width]`; None where it begins behind none.
            context: of the rows; None where none has timestamps or a vocabulary.
        """
        forbidding = self._never if opens is None else torch.where(opens[..., None], self._never_first, self._never)
        scores = logits + forbidding
        if context is None:
            return scores
        if context.vocabularies is not None and self._phrases is not None:
            add_bonuses(scores, context.tokens, context.places, context.begins, opens, context.vocabularies,
                        self._phrases)  # fmt: skip
        if context.stamped is None:
            return scores
        ruled = self._timestamps(scores, context.tokens, context.places, context.begins)
        return torch.where(context.stamped[:, None, None], ruled, scores)

    def _timestamps(self, scores: Tensor, tokens: Tensor, places: Tensor, begins: Tensor) -> Tensor:
        """Timestamps come in pairs, never fall, start the text, and win when together likelier than any word."""
        start, ids = self._first_timestamp, self._ids
        is_timestamp = ids >= start
        written = places + 1 - begins[:, None]  # tokens of text up to and including each position
        last, before = _at(tokens, places), _at(tokens, places - 1)
        after_one = (written >= 1) & (last >= start)
        after_two = after_one & ((written < 2) | (before >= start))
        # The newest timestamp of the text may be said again only to close its pair.
        newest = _at(self._newest_timestamps(tokens, begins), places)
        earliest = torch.where(newest < start, start, newest + (~(after_one & ~after_two)).long())

        forbidden = is_timestamp & (ids < earliest[..., None])
        forbidden |= after_two[..., None] & is_timestamp
        forbidden |= (after_one & ~after_two)[..., None] & (ids < self.grammar.eot)
        opening = ~is_timestamp
        if self.grammar.max_initial_timestamp is not None:
            opening = opening | (ids > start + self.grammar.max_initial_timestamp)
        forbidden |= (written == 0)[..., None] & opening
        forbidden |= ids == start - 1  # the prompt says whether there are timestamps, the text does not
        scores = scores.masked_fill(forbidden, -math.inf)

        log_probs = scores.log_softmax(-1)
        together = log_probs[..., start:].logsumexp(-1)
        likeliest_word = log_probs[..., :start].amax(-1)
        return scores.masked_fill((together > likeliest_word)[..., None] & ~is_timestamp, -math.inf)

    def _newest_timestamps(self, tokens: Tensor, begins: Tensor) -> Tensor:
        """For every position the last timestamp of the text up to there, or -1: [rows, length]."""
        index = torch.arange(tokens.shape[1], device=tokens.device)
        stamps = (tokens >= self._first_timestamp) & (index >= begins[:, None])
        where = torch.where(stamps, index, -1).cummax(1).values
        return torch.where(where < 0, -1, tokens.gather(1, where.clamp(min=0)))

    def _forbidding(self, tokens: tuple[int, ...]) -> Tensor:
        """-inf for those of the tokens that the vocabulary has, 0 for all others: `[vocabulary]`."""
        known = sorted({token for token in tokens if 0 <= token < len(self._ids)})
        return (
            torch.zeros(len(self._ids))
            .index_fill_(0, torch.tensor(known, dtype=torch.long), -math.inf)
            .to(self._ids.device)
        )


def _at(values: Tensor, places: Tensor) -> Tensor:
    return values.gather(1, places.clamp(0, values.shape[1] - 1))
