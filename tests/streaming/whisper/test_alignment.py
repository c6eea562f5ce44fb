"""Alignment: the warping against a plain reference, and times from attention that was drawn by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from streaming.job import SAMPLE_RATE, Waveform
from streaming.whisper.alignment import audible, default_heads, first_frames, token_times

costs = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(6, 9)), elements=st.integers(-9, 9).map(float))


@given(costs)
@settings(max_examples=300)
def test_the_alignment_is_a_cheapest_one(cost: NDArray[np.float64]) -> None:
    """Against every way to give each token frames of its own."""
    tokens, frames = cost.shape

    def total(firsts: Sequence[int]) -> float:
        pieces = zip(cost, itertools.pairwise((*firsts, frames)), strict=True)
        return float(sum(row[start:end].sum() for row, (start, end) in pieces))

    firsts = first_frames(cost).tolist()
    assert firsts[0] == 0
    assert all(before < after for before, after in itertools.pairwise((*firsts, frames)))
    ways = itertools.combinations(range(1, frames), tokens - 1)
    assert total(firsts) == pytest.approx(min(total((0, *way)) for way in ways))


def drawn(edges: list[float], frames: int, heads: int = 3) -> torch.Tensor:
    """Attention scores of heads that look at each token between its edges (seconds)."""
    scores = torch.zeros(heads, len(edges) - 1, frames)
    for token, (start, end) in enumerate(itertools.pairwise(edges)):
        scores[:, token, round(start * 50) : round(end * 50)] = 8.0
    return scores + 0.01 * torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))


def sound(*spans: tuple[float, float], seconds: float) -> Waveform:
    """Noise in some spans, silence elsewhere."""
    audio = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    dice = np.random.default_rng(0)
    for start, end in spans:
        place = slice(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
        audio[place] = dice.normal(0, 0.1, len(audio[place]))
    return audio


def test_times_are_where_the_heads_look() -> None:
    edges = [0.0, 0.4, 0.5, 1.2, 2.0]
    times = token_times(drawn(edges, 250), [True] * 3, sound((0, 2), seconds=2), 7)
    for (start, end), expected in zip(times, itertools.pairwise(edges[:-1]), strict=True):
        assert (start, end) == pytest.approx(expected, abs=0.041)


def test_no_word_covers_a_silence() -> None:
    """Before the first, between two and behind the last; the heads look at the silence as well."""
    audio = sound((0.5, 0.9), (1.5, 2.0), seconds=3)
    (first, second) = token_times(drawn([0.0, 1.2, 2.0, 3.0], 250), [True] * 2, audio, 7)
    assert first == pytest.approx((0.5, 0.9), abs=0.061)
    assert second == pytest.approx((1.5, 2.0), abs=0.061)


def test_rounding_does_not_move_a_single_token() -> None:
    """Normalised over two, the smallest difference of two scores looks like the largest."""
    audio = sound((0.5, 0.9), seconds=2)
    scores = drawn([0.0, 1.0, 2.0], 100)
    (exact,) = token_times(scores, [True], audio, 7)
    (rounded,) = token_times(scores.bfloat16().float() * 0.001, [True], audio, 7)
    assert exact == rounded == pytest.approx((0.5, 0.9), abs=0.061)


def test_timestamp_tokens_stand_between_the_words() -> None:
    audio = sound((0.2, 1.9), seconds=2)
    scores = drawn([0.0, 0.4, 1.0, 2.0], 100)
    empty = torch.zeros_like(scores[:, :1])
    stamped = torch.cat([empty, scores[:, :2], empty, scores[:, 2:]], dim=1)
    times = token_times(stamped, [False, True, True, False], audio, 7)
    words = token_times(scores, [True, True], audio, 7)
    assert times == ((0.0, 0.0), *words, (words[-1][1], words[-1][1]))


@given(st.integers(1, 12), st.integers(1, 2 * SAMPLE_RATE), st.booleans(), st.integers(0, 2**31))
def test_times_never_fall_nor_exceed_the_audio(tokens: int, samples: int, silent: bool, seed: int) -> None:
    """Also where there are more tokens than moments, and where there is nothing to hear."""
    scores = torch.randn(2, tokens + 1, 100, generator=torch.Generator().manual_seed(seed)) * 5
    seconds = samples / SAMPLE_RATE
    audio = sound((0, 0 if silent else seconds / 2), seconds=seconds)
    flat = list(itertools.chain(*token_times(scores, [True] * tokens, audio, 7)))
    assert flat == sorted(flat)
    assert flat[0] >= 0.0
    assert flat[-1] <= seconds


def test_steady_noise_is_heard_throughout() -> None:
    noise = sound((0, 1), seconds=1)
    assert audible(noise).all()
    assert audible(noise * np.float32(1e-4)).all()
    assert audible(np.zeros(321, np.float32)).tolist() == [True, True]


def test_the_upper_half_of_the_decoder_aligns_by_default() -> None:
    assert default_heads(4, 2) == ((2, 0), (2, 1), (3, 0), (3, 1))
    assert default_heads(1, 2) == ((0, 0), (0, 1))
