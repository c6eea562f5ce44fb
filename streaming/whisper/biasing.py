"""Phrases that a decoder is made to hear: a bonus on the logits of the tokens that begin or continue one.

Owns which tokens get a bonus at a position, as a pure function of the tokens so far, in fixed shapes and without
waiting for the device; so student, draft, check and teacher are biased alike. Knows nothing of caches, drafts or audio.

The phrases are a trie of tokens, and a position's state is the longest end of the text that begins a phrase. The bonus
of a token that continues a phrase includes those of the tokens before it: beside the tokens that abandon the phrase,
these are thus taken back, as far as greedy decoding can (shallow fusion with backoff; Zhao et al. 2019). The state is
found by digests of the last tokens, one for each length, all looked up at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from streaming.job import Job, Vocabulary

FIRST = 1.0
"""Bonus of a token that begins a phrase, in nats."""

NEXT = 4.0
"""Bonus of each token that continues it.

Measured (`whisperd bench vocabulary`): a first token is mostly an ordinary one, and a larger bonus on it costs other
words before it finds more names. With four times as much, texts turn in loops.
"""

TOGETHER = 8
"""Vocabularies in one pass; jobs with more are heard in turns, so that a pass has a fixed size."""

LONGEST = 24
"""Tokens of a phrase that count; a longer one is as good as heard."""

MOST_PAIRS = 256
"""Tokens that may continue the phrases of one state; the heaviest are kept."""

MOST_STATES = 1 << 15
"""Of one vocabulary: three variants of a thousand phrases have about half as many."""

ALL_PAIRS = 1 << 16
"""Of all states of one vocabulary."""

KEPT = 64
"""Vocabularies that stay compiled."""

_DIGEST_BITS = 59  # the vocabulary's number is in front of them
_DIGEST = (1 << _DIGEST_BITS) - 1
# Odd numbers without a pattern, as signed 64 bit.
_POWERS = [
    (power ^ 1 << 63) - (1 << 63) for power in (pow(0x9E3779B97F4A7C15, place, 1 << 64) for place in range(1, 25))
]
_NO_KEY = (1 << 63) - 1
START = 1 << 40  # stands before the first token of a text
_OUTSIDE = 1 << 41  # stands before that, and begins nothing
# Scripts that put no space between words: there a phrase may begin anywhere.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))


class Tables(NamedTuple):
    """The phrases of up to `TOGETHER` vocabularies on the device; a vocabulary's number is its place, from 1 on.

    Attributes:
        first: bonuses of tokens that begin a phrase, `[2 * (vocabularies + 1), tokens]`: in row 2 n those of vocabulary
            n, in row 2 n + 1 those at the start of a text.
        keys: digests of the states with their vocabularies' numbers, ascending, `[states]`.
        starts: where the pairs of each state begin, `[states]`.
        counts: how many there are, `[states]`.
        tokens: of the pairs, `[pairs]`.
        bonuses: of the pairs, beyond those in `first`, `[pairs]`.
        powers: what the last token, the one before it, ... are multiplied by in a digest, `[LONGEST]`.
        most: pairs of a state at most.
    """

    first: Tensor
    keys: Tensor
    starts: Tensor
    counts: Tensor
    tokens: Tensor
    bonuses: Tensor
    powers: Tensor
    most: int


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """One vocabulary as tensors on the host, with the meaning of `Tables`; `first` is `[2, tokens]`."""

    first: Tensor
    digests: Tensor
    starts: Tensor
    counts: Tensor
    tokens: Tensor
    bonuses: Tensor

    @property
    def sizes(self) -> tuple[int, int]:
        """States and pairs."""
        return len(self.digests), len(self.tokens)


def biased(logits: Tensor, tokens: Tensor, places: Tensor, begins: Tensor, which: Tensor, tables: Tables) -> Tensor:
    """Return the logits with the bonuses of each row's vocabulary.

    Args:
        logits: float32, `[rows, width, vocabulary]`.
        tokens: every row's tokens from position 0 on, the window included, `[rows, length]`.
        places: the window's positions, `[rows, width]`.
        begins: the lengths of the prompts, `[rows]`.
        which: the number of each row's vocabulary, 0 for none, `[rows]`.
        tables: the vocabularies.
    """
    anywhere, at_first = tables.first[2 * which], tables.first[2 * which + 1]
    opens = (places + 1 == begins[:, None]).to(logits.dtype)
    # Row by row and in place: a copy of the logits of a wide window is the largest thing in a pass.
    scores = logits + anywhere[:, None]
    scores.addcmul_(opens[..., None], (at_first - anywhere)[:, None])
    state, known = _states(tokens, places, begins, which, tables)
    column = torch.arange(tables.most, device=logits.device)
    pair = (tables.starts[state][..., None] + column).clamp(max=tables.tokens.shape[0] - 1)
    counts = known[..., None] & (column < tables.counts[state][..., None])
    # Where there is no pair, nothing is added to the first token.
    return scores.scatter_add_(
        2, torch.where(counts, tables.tokens[pair], 0), torch.where(counts, tables.bonuses[pair], 0.0)
    )


def _states(tokens: Tensor, places: Tensor, begins: Tensor, which: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
    """The state of each position, and whether it has one: [rows, width] both."""
    rows, width = places.shape
    index = places[..., None] - torch.arange(LONGEST, device=tokens.device)
    last = tokens.shape[1] - 1
    said = tokens.gather(1, index.clamp(0, last).view(rows, -1)).view(rows, width, LONGEST)
    before = begins[:, None, None] - 1
    said = torch.where(index > before, said, torch.where(index == before, START, _OUTSIDE))
    digests = ((said + 1) * tables.powers).cumsum(-1) & _DIGEST  # of the last 1, 2, ... tokens; a sum wraps around
    wanted = digests + (which[:, None, None] << _DIGEST_BITS)
    found = torch.searchsorted(tables.keys, wanted).clamp(max=tables.keys.shape[0] - 1)
    matches = tables.keys[found] == wanted
    longest = torch.where(matches, torch.arange(1, LONGEST + 1, device=tokens.device), 0).amax(-1)
    state = found.gather(2, (longest - 1).clamp(min=0)[..., None])[..., 0]
    return state, (longest > 0) & (which > 0)[:, None]


# --- which tables a batch needs --------------------------------------------------------------------------------------


def numbered(jobs: Sequence[Job]) -> tuple[list[int], tuple[Vocabulary, ...]]:
    """Return the number of each job's vocabulary, and the vocabularies in the order of their numbers."""
    together = tuple(dict.fromkeys(job.vocabulary for job in jobs if job.vocabulary.phrases))
    numbers = {vocabulary: number for number, vocabulary in enumerate(together, 1)}
    return [numbers.get(job.vocabulary, 0) for job in jobs], together


class Vocabularies:
    """The vocabularies of one model, or of two with the same tokens: compiled once, and joined for each batch.

    Args:
        tokenizer_file: the model's.
        size: of the model's vocabulary.
        eot: the end-of-text token.
        device: where the tables are used.
    """

    def __init__(self, tokenizer_file: Path, size: int, eot: int, device: torch.device) -> None:
        self._file, self._size, self._eot, self._device = tokenizer_file, size, eot, device
        self._compile = lru_cache(maxsize=KEPT)(self._compiled)
        self._join = lru_cache(maxsize=TOGETHER)(self._joined)

    def compile(self, vocabulary: Vocabulary) -> Compiled:
        """Return the tables of one vocabulary.

        Raises:
            ValueError: it cannot be used with this model.
        """
        return self._compile(vocabulary)

    def tables(self, together: tuple[Vocabulary, ...]) -> Tables:
        """Return the tables of some vocabularies, in sizes of their own."""
        return self._join(together)

    def fixed(self) -> FixedTables:
        """Return tables at fixed addresses, without any phrases yet."""
        return FixedTables(self, self._size, self._device)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self._file))

    def _compiled(self, vocabulary: Vocabulary) -> Compiled:
        return compile_vocabulary(vocabulary, self._tokenizer, self._size, self._eot)

    def _joined(self, together: tuple[Vocabulary, ...]) -> Tables:
        parts = [self.compile(each) for each in together]
        states, pairs = (1 + sum(sizes) for sizes in zip(*(part.sizes for part in parts), strict=True))
        most = max([1, *(int(part.counts.max()) for part in parts if part.counts.numel())])
        tables = empty_tables(len(parts), self._size, states, pairs, most, self._device)
        fill(tables, parts)
        return tables


class FixedTables:
    """Tables at fixed addresses, with room for any `TOGETHER` vocabularies."""

    def __init__(self, vocabularies: Vocabularies, size: int, device: torch.device) -> None:
        self._vocabularies = vocabularies
        self._together: tuple[Vocabulary, ...] = ()
        self.tables = empty_tables(
            TOGETHER, size, TOGETHER * MOST_STATES + 1, TOGETHER * ALL_PAIRS + 1, MOST_PAIRS, device
        )

    def load(self, jobs: Sequence[Job]) -> list[int]:
        """Put the vocabularies of a batch into the tables, and return the number of each job's."""
        numbers, together = numbered(jobs)
        if together != self._together:
            self._together = ()  # in case the rest fails
            fill(self.tables, [self._vocabularies.compile(each) for each in together])
            self._together = together
        return numbers


def empty_tables(vocabularies: int, size: int, states: int, pairs: int, most: int, device: torch.device) -> Tables:
    """Return tables without phrases.

    Args:
        vocabularies: how many may be filled in.
        size: of the model's vocabulary.
        states: of all of them at most, and one more.
        pairs: of all of them at most, and one more.
        most: pairs of a state at most.
        device: where they are.
    """
    numbers = torch.zeros(states, dtype=torch.long, device=device)
    return Tables(
        first=torch.zeros(2 * (vocabularies + 1), size, device=device),
        keys=numbers + _NO_KEY,
        starts=numbers,
        counts=numbers.clone(),
        tokens=torch.zeros(pairs, dtype=torch.long, device=device),
        bonuses=torch.zeros(pairs, device=device),
        powers=torch.tensor(_POWERS, device=device),
        most=most,
    )


def fill(tables: Tables, parts: Sequence[Compiled]) -> None:
    """Put vocabularies into tables, in the order of their numbers, in place of what was there."""
    tables.keys.fill_(_NO_KEY)
    state = pair = 0
    for number, part in enumerate(parts, 1):
        states, pairs = part.sizes
        tables.first[2 * number : 2 * number + 2].copy_(part.first)
        tables.keys[state : state + states].copy_(part.digests + (number << _DIGEST_BITS))
        tables.starts[state : state + states].copy_(part.starts + pair)
        tables.counts[state : state + states].copy_(part.counts)
        tables.tokens[pair : pair + pairs].copy_(part.tokens)
        tables.bonuses[pair : pair + pairs].copy_(part.bonuses)
        state, pair = state + states, pair + pairs


# --- from phrases to tables, on the host -----------------------------------------------------------------------------


TokenPath = tuple[int, ...]
"""The tokens of a beginning of a phrase; `START` in front where the phrase begins the text without a space."""


def compile_vocabulary(vocabulary: Vocabulary, tokenizer: Tokenizer, size: int, eot: int) -> Compiled:
    """Make the tables of a vocabulary.

    Args:
        vocabulary: the phrases.
        tokenizer: the model's.
        size: of the model's vocabulary.
        eot: the end-of-text token; it and what is behind it is no text.

    Raises:
        ValueError: a phrase has no tokens of text, or the phrases are too many.
    """
    paths: dict[TokenPath, float] = {}
    for phrase in vocabulary.phrases:
        for path in _paths(phrase.text, tokenizer, min(size, eot)):
            paths[path] = max(phrase.weight, paths.get(path, 0.0))
    return compile_paths(paths, size)


def compile_paths(paths: Mapping[TokenPath, float], size: int) -> Compiled:
    """Make the tables of phrases that are tokens already, with their weights.

    Args:
        paths: the weights.
        size: of the model's vocabulary.

    Raises:
        ValueError: the phrases are too many.
    """
    steps = _steps(paths)
    first = torch.zeros(2, size)
    for path, step in steps.items():
        if len(path) == 1:
            first[:, path[0]] = first[:, path[0]].clamp(min=step)
        elif len(path) == 2 and path[0] == START:
            first[1, path[1]] = first[1, path[1]].clamp(min=step)
    states = _pairs(steps, paths.keys(), first[0].tolist())
    if len(states) > MOST_STATES or sum(map(len, states.values())) > ALL_PAIRS:
        raise ValueError("the vocabulary has too many phrases that are too long: give it fewer or shorter ones")
    digests = {_digest(path): path for path in states}
    if len(digests) < len(states):  # not once in a billion vocabularies
        raise ValueError("two beginnings of phrases look alike: change one of the phrases")
    ordered = [states[digests[digest]] for digest in sorted(digests)]
    counts = torch.tensor([len(pairs) for pairs in ordered], dtype=torch.long)
    flat = [pair for pairs in ordered for pair in pairs]
    return Compiled(
        first,
        torch.tensor(sorted(digests), dtype=torch.long),
        counts.cumsum(0) - counts,
        counts,
        torch.tensor([token for token, _ in flat], dtype=torch.long),
        torch.tensor([bonus for _, bonus in flat], dtype=torch.float32),
    )


def _steps(paths: Mapping[TokenPath, float]) -> dict[TokenPath, float]:
    """The bonus of the last token of every beginning of a phrase."""
    steps: dict[TokenPath, float] = {}
    for path, weight in paths.items():
        begins = 1 + (path[0] == START)
        for length in range(begins, len(path) + 1):
            step = weight * (FIRST if length == begins else NEXT)
            steps[path[:length]] = max(step, steps.get(path[:length], 0.0))
    return steps


def _paths(text: str, tokenizer: Tokenizer, words: int) -> set[TokenPath]:
    """A phrase as it is and with a capital, behind a space and at the start of a text."""
    found: set[TokenPath] = set()
    for written in {text, text[:1].upper() + text[1:]}:
        spaced, bare = (
            tuple(tokenizer.encode(each, add_special_tokens=False).ids[:LONGEST]) for each in (" " + written, written)
        )
        if not bare or max(*spaced, *bare) >= words:
            raise ValueError(f"{text!r} is no text for this model: leave it out of the vocabulary")
        anywhere = any(low <= ord(written[0]) <= high for low, high in _UNSPACED)
        found |= {spaced, bare if anywhere else (START, *bare[: LONGEST - 1])}
    return found


def _pairs(
    steps: Mapping[TokenPath, float], ends: Collection[TokenPath], first: Sequence[float]
) -> dict[TokenPath, list[tuple[int, float]]]:
    """What may continue each beginning of a phrase, with the bonuses beyond those of `first`."""
    children: dict[TokenPath, list[int]] = {}
    for path in steps:
        children.setdefault(path[:-1], []).append(path[-1])
    gathered: dict[TokenPath, float] = {}
    for path in sorted(steps, key=len):
        gathered[path] = 0.0 if path in ends else gathered.get(path[:-1], 0.0) + steps[path]
    states: dict[TokenPath, list[tuple[int, float]]] = {}
    for path in steps:
        bonuses: dict[int, float] = {}
        for start in range(len(path)):  # a shorter end of it may begin a phrase too
            end = path[start:]
            for token in children.get(end, ()) if end in steps else ():
                bonuses[token] = max(gathered[end] + steps[(*end, token)], bonuses.get(token, 0.0))
        pairs = [(token, bonus - first[token]) for token, bonus in bonuses.items() if bonus > first[token]]
        if pairs:
            states[path] = sorted(sorted(pairs, key=lambda pair: -pair[1])[:MOST_PAIRS])
    return states


def _digest(path: TokenPath) -> int:
    return sum((token + 1) * power for token, power in zip(reversed(path), _POWERS, strict=False)) & _DIGEST
