"""The decoding loop: drafts are checked by the model, and what comes out is what the model alone would have said.

Owns `verify`, the only decoder pass there is: an ordinary step is a check of an empty draft. `decode` repeats it until
every row's text has ended, whatever the drafts were; `propose` lets a cheaper model write the next draft. Knows nothing
of audio, encoders or jobs. Greedy speculative decoding (Leviathan et al. 2023) with acceptance per row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from streaming.whisper.model import Decoder, KVCache, KVStore, Memory
from streaming.whisper.rows import Draft, Row
from streaming.whisper.rules import LogitRules

Scores = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(logits, tokens, places, begins) -> scores, as `LogitRules.text`."""


class Window(NamedTuple):
    """What one pass checks: row b its tokens from position `starts[b]` on, the first that is not in the cache.

    Attributes:
        tokens: prompt, text and draft, padded behind, `[rows, length]`.
        starts: the first position of the pass, `[rows]`.
        lengths: the number of true tokens, `[rows]`.
        begins: the number of tokens of the prompt, `[rows]`.
        fixed: the number of tokens of prompt and text, which are not judged, `[rows]`.
        width: positions in the pass; what a row has beyond them is left for the next.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    begins: Tensor
    fixed: Tensor
    width: int


class Verdict(NamedTuple):
    """What the model says after every position of a window.

    Attributes:
        chosen: the best token, `[rows, width]`.
        log_probs: of the chosen tokens, `[rows, width]`.
        agreed: how many tokens behind the window's first are right, `[rows]`; the token chosen after them is the
            correction (or simply the next token).
        logits: before any rule, `[rows, width, vocabulary]`.
    """

    chosen: Tensor
    log_probs: Tensor
    agreed: Tensor
    logits: Tensor


def verify(decoder: Decoder, store: KVStore, scores: Scores, window: Window) -> Verdict:
    """Do one decoder pass, in fixed shapes, without waiting for the device.

    Args:
        decoder: the model.
        store: the keys and values of all earlier positions.
        scores: the rules that forbid tokens.
        window: what is checked.
    """
    places = window.starts[:, None] + torch.arange(window.width, device=window.tokens.device)
    last = window.tokens.shape[1] - 1
    logits = decoder(window.tokens.gather(1, places.clamp(max=last)), places, store).float()
    allowed = scores(logits, window.tokens, places, window.begins)
    best, chosen = allowed.max(-1)
    others = (allowed - best[..., None]).exp_().sum(-1)  # relative to the best: exact for a sure token
    following = window.tokens.gather(1, (places + 1).clamp(max=last))
    given = places + 1 < window.fixed[:, None]  # prompt and text are not the model's to choose
    agrees = ((chosen == following) | given) & (places + 1 < window.lengths[:, None])
    return Verdict(chosen, -others.log(), agrees.long().cumprod(1).sum(1), logits)


def advance(decoder: Decoder, cache: KVCache, rules: LogitRules, rows: Sequence[Row]) -> Verdict:
    """Check every row's draft in one pass; rows that are done only keep their place."""
    offers = [row.offer() for row in rows]
    starts = [len(row.tokens) - 1 if row.done else row.cached for row in rows]
    lengths = [len(row.tokens) + len(offer) for row, offer in zip(rows, offers, strict=True)]
    longest = max(lengths)
    device = cache.keys.device
    padded = [
        row.tokens + offer + [0] * (longest - length) for row, offer, length in zip(rows, offers, lengths, strict=True)
    ]
    width = max(length - start for length, start in zip(lengths, starts, strict=True))
    begins, fixed = [len(row.prompt) for row in rows], [len(row.tokens) for row in rows]
    stamped, vocabularies = [row.timestamps for row in rows], [row.vocabulary for row in rows]
    numbers = torch.tensor([starts, lengths, begins, fixed, stamped, vocabularies], device=device)
    first, ends, prompt_ends, fixed_ends, with_stamps, which = numbers.unbind()
    window = Window(torch.tensor(padded, device=device), first, ends, prompt_ends, fixed_ends, width)
    scores = partial(
        rules.text,
        stamped=with_stamps > 0 if any(stamped) else None,
        vocabularies=which if any(vocabularies) else None,
    )
    cache.reserve(longest)
    verdict = verify(decoder, cache, scores, window)
    judged = zip(rows, offers, *(part.tolist() for part in verdict[:3]), strict=True)
    for row, offer, chosen, log_probs, agreed in judged:
        if not row.done:
            row.take(len(offer), agreed, chosen, log_probs)
    return verdict


def decode(
    decoder: Decoder, memory: Memory, rules: LogitRules, rows: Sequence[Row], proposer: DraftModel | None = None
) -> None:
    """Bring every row to its end.

    Args:
        decoder: the model.
        memory: of the rows' audio.
        rules: what may be said.
        rows: those of `memory`, in order.
        proposer: a cheaper model that writes drafts where a row has none left.
    """
    cache = KVCache(memory)
    verdict = advance(decoder, cache, rules, rows)
    if rules.grammar.no_speech is not None:  # as it is after start of transcript, before any rule
        silence = verdict.logits[:, 0].softmax(-1)[:, rules.grammar.no_speech]
        for row, probability in zip(rows, silence.tolist(), strict=True):
            row.no_speech = probability
    batch = list(range(len(rows)))
    while waiting := [index for index in batch if not rows[index].done]:
        if len(waiting) * 2 <= len(batch):  # a copy of the waiting costs less than carrying the finished along
            cache = cache.select(torch.tensor([batch.index(index) for index in waiting], device=cache.keys.device))
            batch = waiting
        if proposer is not None:
            proposer.propose(rows)
        advance(decoder, cache, rules, [rows[index] for index in batch])


class DraftModel:
    """A cheaper decoder that writes the next `count` tokens of rows whose draft has nothing to offer."""

    def __init__(self, decoder: Decoder, memory: Memory, rules: LogitRules, count: int) -> None:
        self._decoder, self._rules, self._count = decoder, rules, count
        self._cache = KVCache(memory)
        self._cached: list[list[int]] = [[] for _ in range(memory.rows)]  # each row's tokens that are in the cache

    def propose(self, rows: Sequence[Row]) -> None:
        """Give drafts to the rows that wait without one.

        Args:
            rows: all those of the memory, in order.
        """
        wanting = [not row.done and not row.offer() for row in rows]
        if not any(wanting):
            return
        guesses = [self._guess(row, wants, seen) for row, wants, seen in zip(rows, wanting, self._cached, strict=True)]
        while not all(guess.done for guess in guesses):
            advance(self._decoder, self._cache, self._rules, guesses)
        self._cached = [guess.tokens[: guess.cached] for guess in guesses]
        for row, guess, wants in zip(rows, guesses, wanting, strict=True):
            if wants:
                row.draft = Draft(guess.text[len(row.tokens) - len(row.prompt) :])

    def _guess(self, row: Row, wants: bool, seen: Sequence[int]) -> Row:
        """A row for the cheaper decoder that continues `row` from what its cache already holds."""
        limit = min(len(row.log_probs) + self._count, row.limit)
        guess = Row(row.prompt, limit, Draft(()), row.timestamps, row.eot, row.vocabulary)
        guess.tokens, guess.log_probs = list(row.tokens), list(row.log_probs)
        same = next((i for i, (a, b) in enumerate(zip(seen, row.tokens, strict=False)) if a != b), len(seen))
        guess.cached = min(same, len(row.tokens) - 1)
        guess.done = not wants
        return guess


def unruled(logits: Tensor, tokens: Tensor, places: Tensor, begins: Tensor) -> Tensor:
    """Return the logits as they are: the scores of a pass that asks for no text."""
    return logits


def language_logits(decoder: Decoder, memory: Memory, rules: LogitRules) -> list[list[float]]:
    """Return how likely each of the grammar's languages is, in its order, for every row.

    They are the logits of the languages' tokens behind start of transcript, before any rule.
    """
    count, device = memory.rows, memory.device
    ones = torch.ones(count, dtype=torch.long, device=device)
    cache = KVCache(memory)
    cache.reserve(1)
    verdict = verify(
        decoder,
        cache,
        unruled,
        Window(torch.full((count, 1), rules.grammar.sot, device=device), ones - 1, ones, ones, ones, 1),
    )
    return verdict.logits[:, 0].index_select(-1, rules.languages).tolist()
