"""The decoding loop: drafts are checked by the model, and what comes out is what the model alone would have said.

Owns `verify`, the only decoder pass there is: an ordinary step is a check of an empty draft. `decode` repeats it until
every row's text has ended, whatever the drafts were; `propose` lets a cheaper model write the next draft. Knows nothing
of audio, encoders or jobs. Greedy speculative decoding (Leviathan et al. 2023) with acceptance per row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from streaming.whisper.model import Decoder, KVCache, KVStore, Memory
from streaming.whisper.rows import Draft, Row
from streaming.whisper.rules import Context, LogitRules

Scores = Callable[[Tensor], Tensor]
"""Logits, `[rows, width, vocabulary]`, to scores, as `LogitRules.text`."""

NOTHING = -1
"""Stands where no draft says what follows: no model says that."""


class Window(NamedTuple):
    """What one pass checks: of each row the tokens at some positions, the first of which is not in the cache.

    Attributes:
        tokens: prompt, text and draft, padded behind, `[rows, width]`.
        places: their positions, `[rows, width]`.
        following: the token behind each of them, `NOTHING` behind the last of a draft, `[rows, width]`.
        given: whether that is prompt or text, which are not the model's to choose, `[rows, width]`; None for none.
    """

    tokens: Tensor
    places: Tensor
    following: Tensor
    given: Tensor | None


class Verdict(NamedTuple):
    """What the model says after every position of a window.

    Attributes:
        chosen: the best token, or the one that is given, `[rows, width]`.
        log_probs: of the best tokens, `[rows, width]`.
        agrees: whether what follows is right, `[rows, width]`. The token that is chosen behind all those that are right
            is the correction (or simply the next token).
        logits: before any rule, `[rows, width, vocabulary]`.
    """

    chosen: Tensor
    log_probs: Tensor
    agrees: Tensor
    logits: Tensor


def verify(decoder: Decoder, store: KVStore, scores: Scores, window: Window) -> Verdict:
    """Do one decoder pass, in fixed shapes, without waiting for the device.

    Args:
        decoder: the model.
        store: the keys and values of all earlier positions.
        scores: the rules that forbid tokens.
        window: what is checked.
    """
    logits = decoder(window.tokens, window.places, store).float()
    allowed = scores(logits)
    best = allowed.max(-1).indices
    log_probs = allowed.log_softmax(-1).gather(2, best[..., None])[..., 0]
    chosen = best if window.given is None else torch.where(window.given, window.following, best)
    return Verdict(chosen, log_probs, chosen == window.following, logits)


def advance(decoder: Decoder, cache: KVCache, rules: LogitRules, rows: Sequence[Row]) -> Verdict:
    """Check every row's draft in one pass; rows that are done only keep their place."""
    offers = [row.offer() for row in rows]
    device = cache.text.device
    starts = [len(row.tokens) - 1 if row.done else row.cached for row in rows]
    texts = [row.tokens + offer for row, offer in zip(rows, offers, strict=True)]
    width = max(len(text) - start for text, start in zip(texts, starts, strict=True))
    window = _window(rows, texts, starts, width, device)
    context = _context(rows, texts, window.places)
    opens = None
    if any(start < len(row.prompt) for row, start in zip(rows, starts, strict=True)):
        opens = window.places == torch.tensor([[len(row.prompt) - 1] for row in rows], device=device)
    cache.reserve(max(map(len, texts)))
    verdict = verify(decoder, cache, lambda logits: rules.text(logits, opens, context), window)
    judged = zip(rows, offers, *(part.tolist() for part in verdict[:3]), strict=True)
    for row, offer, chosen, log_probs, agrees in judged:
        if not row.done:
            row.take(len(offer), (*agrees, False).index(False), chosen, log_probs)
    return verdict


def _window(
    rows: Sequence[Row], texts: Sequence[list[int]], starts: Sequence[int], width: int, device: torch.device
) -> Window:
    """The positions from `starts` on, `width` of each row; what is behind its text and draft is padding."""
    tokens, places, following, given = [], [], [], []
    for row, text, start in zip(rows, texts, starts, strict=True):
        seen = text[start : start + width + 1]
        missing = width + 1 - len(seen)
        tokens.append((seen + [0] * missing)[:width])
        places.append(list(range(start, start + width)))
        following.append((seen + [NOTHING] * missing)[1:])
        fixed = len(row.tokens) - 1 - start
        given.append([column < fixed for column in range(width)])
    checked, positions, expected = torch.tensor([tokens, places, following], device=device)
    return Window(checked, positions, expected, torch.tensor(given, device=device) if any(map(any, given)) else None)


def _context(rows: Sequence[Row], texts: Sequence[list[int]], places: Tensor) -> Context | None:
    """What rules need of the rows besides; None where none has timestamps or a vocabulary."""
    stamped, vocabularies = [row.timestamps for row in rows], [row.vocabulary for row in rows]
    if not any(stamped) and not any(vocabularies):
        return None
    longest, device = max(map(len, texts)), places.device
    return Context(
        torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=device),
        places,
        torch.tensor([len(row.prompt) for row in rows], device=device),
        torch.tensor(stamped, device=device) if any(stamped) else None,
        torch.tensor(vocabularies, device=device) if any(vocabularies) else None,
    )


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
    _tell(decoder, cache, rows)
    verdict = advance(decoder, cache, rules, rows)
    if rules.grammar.no_speech is not None:  # as it is after start of transcript, before any rule
        silence = verdict.logits[:, 0].softmax(-1)[:, rules.grammar.no_speech]
        for row, probability in zip(rows, silence.tolist(), strict=True):
            row.no_speech = probability
    batch = list(range(len(rows)))
    while waiting := [index for index in batch if not rows[index].done]:
        if len(waiting) * 2 <= len(batch):  # a copy of the waiting costs less than carrying the finished along
            cache = cache.select(torch.tensor([batch.index(index) for index in waiting], device=cache.text.device))
            batch = waiting
        if proposer is not None:
            proposer.propose(rows)
        advance(decoder, cache, rules, [rows[index] for index in batch])


def _tell(decoder: Decoder, cache: KVCache, rows: Sequence[Row]) -> None:
    """Let the cache hold the text before each row's own, if there is any: nothing is asked of it."""
    width = max(row.told for row in rows)
    if not width:
        return
    device = cache.text.device
    # A row with less before it has padding behind, which its own text takes the place of.
    told = [[*row.prompt[: row.told], *[0] * (width - row.told)] for row in rows]
    cache.reserve(width)
    decoder.states(
        torch.tensor(told, device=device), torch.arange(width, device=device).expand(len(rows), width), cache
    )
    for row in rows:
        row.cached = row.told


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


def unruled(logits: Tensor) -> Tensor:
    """Return the logits as they are: the scores of a pass that asks for no text."""
    return logits


def first_token(rules: LogitRules, rows: int, device: torch.device) -> Window:
    """Return a window of start of transcript alone: what follows tells the language."""
    token = torch.full((rows, 1), rules.grammar.sot, device=device)
    return Window(token, torch.zeros_like(token), torch.full_like(token, NOTHING), None)


def language_logits(decoder: Decoder, memory: Memory, rules: LogitRules) -> list[list[float]]:
    """Return how likely each of the grammar's languages is, in its order, for every row.

    They are the logits of the languages' tokens behind start of transcript, before any rule.
    """
    cache = KVCache(memory)
    cache.reserve(1)
    verdict = verify(decoder, cache, unruled, first_token(rules, memory.rows, memory.device))
    return verdict.logits[:, 0].index_select(-1, rules.languages).tolist()
