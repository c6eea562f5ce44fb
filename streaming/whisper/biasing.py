"""Phrases that a decoder is made to hear: a bonus on the logits of the tokens that begin or continue one.

Owns which tokens get a bonus at a position, as a pure function of the tokens so far, in fixed shapes and without
waiting for the device; so student, draft, check and teacher are biased alike. Knows nothing of caches, drafts or audio.

The phrases are a trie of tokens, and a position's state is the longest end of the text that begins a phrase. The bonus
of a token that continues a phrase includes those of the tokens before it: beside the tokens that abandon the phrase,
these are thus taken back, as far as greedy decoding can (shallow fusion with backoff; Zhao et al. 2019). The state is
found by digests of the last tokens, one for each length, all looked up at once.

A step is short, so what counts is how many operations it takes, and that none of them touches the whole vocabulary:
few tokens have a bonus, and only these are added to.
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

MOST_FIRST = 1 << 12
"""Tokens that may begin the phrases of one vocabulary: four variants of a thousand phrases have fewer."""

MOST_PAIRS = 256
"""Tokens that may continue the phrases of one state; the heaviest are kept."""

MOST_STATES = 1 << 15
"""Of one vocabulary: three variants of a thousand phrases have about half as many."""

ALL_PAIRS = 1 << 16
"""Of all states of one vocabulary."""

KEPT = 64
"""Vocabularies that stay compiled."""

_DIGEST_BITS, _LENGTH_BITS = 54, 5  # the four bits in front of them are the vocabulary's number
_DIGEST = (1 << _DIGEST_BITS) - 1
# Odd numbers without a pattern, as signed 64 bit.
_POWERS = [
    (power ^ 1 << 63) - (1 << 63) for power in (pow(0x9E3779B97F4A7C15, place, 1 << 64) for place in range(1, 25))
]
_LEAST_KEY, _GREATEST_KEY = -1, (1 << 63) - 1  # stand around the keys, and are none
START = 1 << 40  # stands before the first token of a text
# Scripts that put no space between words: there a phrase may begin anywhere.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))


class Sizes(NamedTuple):
    """Of one vocabulary, or of several together.

    Attributes:
        first: tokens that begin a phrase; of several vocabularies the most of one.
        states: beginnings of phrases that may be continued.
        pairs: tokens that continue them, of all states.
        most: of one state at most.
    """

    first: int
    states: int
    pairs: int
    most: int


class Tables(NamedTuple):
    """The phrases of up to `TOGETHER` vocabularies on the device; a vocabulary's number is its place, from 1 on.

    State 0 stands for none, and has no pairs. Of two states of a vocabulary the longer one has the higher number.

    Attributes:
        first_tokens: those that begin a phrase, `[vocabularies + 1, first]`.
        first_bonuses: theirs, `[2 * (vocabularies + 1), first]`: in row 2 n those of vocabulary n, in row 2 n + 1 those
            at the start of a text.
        keys: digests of the states, with their lengths and their vocabularies' numbers in front, ascending,
            `[states + 2]`.
        starts: where the pairs of each state begin, `[states + 2]`.
        counts: how many there are, `[states + 2]`.
        tokens: of the pairs, `[pairs + most]`.
        bonuses: of the pairs, beyond those of first tokens, `[pairs + most]`.
        prefixes: what is in front of a digest of 1, 2, ... tokens, `[vocabularies + 1, LONGEST]`.
        powers: what the last token, the one before it, ... are multiplied by in a digest, `[LONGEST]`.
        back: 0, 1, ..., `[LONGEST]`.
        columns: 0, 1, ..., `[most]`.
    """

    first_tokens: Tensor
    first_bonuses: Tensor
    keys: Tensor
    starts: Tensor
    counts: Tensor
    tokens: Tensor
    bonuses: Tensor
    prefixes: Tensor
    powers: Tensor
    back: Tensor
    columns: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """One vocabulary as tensors on the host, with the meaning of `Tables`.

    `first_tokens` is `[first]`, `first_bonuses` `[2, first]`; the keys lack the number, and state 0 is not there.
    """

    first_tokens: Tensor
    first_bonuses: Tensor
    keys: Tensor
    starts: Tensor
    counts: Tensor
    tokens: Tensor
    bonuses: Tensor

    @property
    def sizes(self) -> Sizes:
        most = int(self.counts.max()) if self.counts.numel() else 0
        return Sizes(len(self.first_tokens), len(self.keys), len(self.tokens), most)


def add_bonuses(
    scores: Tensor, tokens: Tensor, places: Tensor, begins: Tensor, opens: Tensor | None, which: Tensor, tables: Tables
) -> None:
    """Add the bonuses of each row's vocabulary to scores, in place.

    Args:
        scores: float32, `[rows, width, vocabulary]`.
        tokens: every row's tokens from position 0 on, the window included, `[rows, length]`. Those of the prompt are in
            no phrase.
        places: the window's positions, `[rows, width]`.
        begins: the lengths of the prompts, `[rows]`.
        opens: whether the text begins behind a position, `[rows, width]`; None where it begins behind none.
        which: the number of each row's vocabulary, 0 for none, `[rows]`.
        tables: the vocabularies.
    """
    first = tables.first_tokens[which][:, None].expand(-1, places.shape[1], -1)
    number = 2 * which[:, None]
    bonuses = tables.first_bonuses[number if opens is None else number + opens]
    scores.scatter_add_(2, first, bonuses.expand(-1, places.shape[1], -1))
    state = _states(tokens, places, begins[:, None] - 1, which, tables)[..., None]
    pair = tables.starts.take(state) + tables.columns
    # Behind a state's pairs there are those of others: nothing is added to their tokens.
    bonuses = tables.bonuses.take(pair).masked_fill_(tables.columns >= tables.counts.take(state), 0.0)
    scores.scatter_add_(2, tables.tokens.take(pair), bonuses)


def _states(tokens: Tensor, places: Tensor, before: Tensor, which: Tensor, tables: Tables) -> Tensor:
    """The state of each position: [rows, width]."""
    rows, width = places.shape
    marked = tokens.scatter(1, before, START)
    index = (places[..., None] - tables.back).clamp_(0, tokens.shape[1] - 1)
    said = marked.gather(1, index.view(rows, -1)).view(rows, width, LONGEST)
    digests = torch.addcmul(tables.powers, said, tables.powers).cumsum(-1)  # of (token + 1); a sum wraps around
    wanted = digests.bitwise_and_(_DIGEST).add_(tables.prefixes[which][:, None])
    found = torch.searchsorted(tables.keys, wanted)
    return found.masked_fill_(tables.keys.take(found) != wanted, 0).amax(-1)


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
        return filled_tables(parts, self._device)


class FixedTables:
    """Tables at fixed addresses, with room for any `TOGETHER` vocabularies."""

    def __init__(self, vocabularies: Vocabularies, size: int, device: torch.device) -> None:
        self._vocabularies = vocabularies
        self._together: tuple[Vocabulary, ...] = ()
        room = Sizes(min(MOST_FIRST, size), TOGETHER * MOST_STATES, TOGETHER * ALL_PAIRS, MOST_PAIRS)
        self.tables = empty_tables(TOGETHER, room, device)

    def load(self, jobs: Sequence[Job]) -> list[int]:
        """Put the vocabularies of a batch into the tables, and return the number of each job's."""
        numbers, together = numbered(jobs)
        if together != self._together:
            self._together = ()  # in case the rest fails
            fill(self.tables, [self._vocabularies.compile(each) for each in together])
            self._together = together
        return numbers


def filled_tables(parts: Sequence[Compiled], device: torch.device) -> Tables:
    """Return tables with some vocabularies, and no room for others."""
    first, states, pairs, most = zip(*(part.sizes for part in parts), strict=True)
    tables = empty_tables(len(parts), Sizes(max(first), sum(states), sum(pairs), max(most)), device)
    fill(tables, parts)
    return tables


def empty_tables(vocabularies: int, room: Sizes, device: torch.device) -> Tables:
    """Return tables without phrases.

    Args:
        vocabularies: how many may be filled in.
        room: for all of them.
        device: where they are.
    """

    def zeros(count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.long, device=device)

    number, length = torch.arange(vocabularies + 1)[:, None], torch.arange(1, LONGEST + 1)
    states, pairs = room.states + 2, room.pairs + room.most
    columns = torch.arange(max(room.first, room.most), device=device)
    return Tables(
        # Any tokens without a bonus will do; many additions to the same one would wait for each other.
        first_tokens=columns[: room.first].repeat(vocabularies + 1, 1),
        first_bonuses=torch.zeros(2 * (vocabularies + 1), room.first, device=device),
        keys=_without_keys(zeros(states)),
        starts=zeros(states),
        counts=zeros(states),
        tokens=zeros(pairs),
        bonuses=torch.zeros(pairs, device=device),
        prefixes=((number << _LENGTH_BITS | length) << _DIGEST_BITS).to(device),
        powers=torch.tensor(_POWERS, device=device),
        back=torch.arange(LONGEST, device=device),
        columns=columns[: room.most],
    )


def _without_keys(keys: Tensor) -> Tensor:
    """Take all keys out, in place: whatever is looked up then lies between the two that are none."""
    keys.fill_(_GREATEST_KEY)[0] = _LEAST_KEY
    return keys


def fill(tables: Tables, parts: Sequence[Compiled]) -> None:
    """Put vocabularies into tables, in the order of their numbers, in place of what was there."""
    _without_keys(tables.keys)
    tables.first_bonuses.zero_()
    state, pair = 1, 0
    for number, part in enumerate(parts, 1):
        first, states, pairs, _ = part.sizes
        tables.first_tokens[number, :first].copy_(part.first_tokens)
        tables.first_bonuses[2 * number : 2 * number + 2, :first].copy_(part.first_bonuses)
        tables.keys[state : state + states].copy_(part.keys + (number << _LENGTH_BITS + _DIGEST_BITS))
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
    first_tokens = first.any(0).nonzero()[:, 0]
    states = _pairs(steps, paths.keys(), first[0].tolist())
    if len(first_tokens) > MOST_FIRST or len(states) > MOST_STATES or sum(map(len, states.values())) > ALL_PAIRS:
        raise ValueError("the vocabulary has too many phrases that are too long: give it fewer or shorter ones")
    keys = {_key(path): path for path in states}
    if len(keys) < len(states):  # not once in a million of the largest vocabularies
        raise ValueError("two beginnings of phrases look alike: change one of the phrases")
    ordered = [states[keys[key]] for key in sorted(keys)]
    counts = torch.tensor([len(pairs) for pairs in ordered], dtype=torch.long)
    flat = [pair for pairs in ordered for pair in pairs]
    return Compiled(
        first_tokens,
        first[:, first_tokens],
        torch.tensor(sorted(keys), dtype=torch.long),
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


def _key(path: TokenPath) -> int:
    """The digest of a state with its length in front."""
    digest = sum((token + 1) * power for token, power in zip(reversed(path), _POWERS, strict=False)) & _DIGEST
    return len(path) << _DIGEST_BITS | digest
