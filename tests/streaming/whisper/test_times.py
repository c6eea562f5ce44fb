"""Alignment: the warping against a plain reference, and times from attention that was drawn by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from streaming.whisper.times import default_heads, first_frames, token_times

costs = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(-9, 9).map(float))


def cheapest(cost: NDArray[np.float64]) -> float:
    """The cost of the cheapest path, cell by cell."""
    total = np.full(cost.shape, np.inf)
    for token, frame in itertools.product(*map(range, cost.shape)):
        before = [total[token - a, frame - b] for a, b in ((1, 0), (0, 1), (1, 1)) if token >= a and frame >= b]
        total[token, frame] = cost[token, frame] + (min(before) if before else 0.0)
    return float(total[-1, -1])


def cost_of(cost: NDArray[np.float64], firsts: NDArray[np.int64]) -> float:
    """The cost of the best path that enters the tokens at these frames: each is left right before, or at, the next."""
    leaves = [*firsts[1:], cost.shape[1]]
    sums = []
    for token, (enter, leave) in enumerate(zip(firsts, leaves, strict=True)):
        row = cost[token]
        ways = [row[enter:leave].sum()] if leave > enter else []
        if token < len(firsts) - 1:
            ways.append(row[enter : leave + 1].sum())
        sums.append(min(ways))
    return float(sum(sums))


@given(costs)
@settings(max_examples=300)
def test_the_path_is_a_cheapest_one(cost: NDArray[np.float64]) -> None:
    firsts = first_frames(cost)
    assert firsts[0] == 0
    assert (np.diff(firsts) >= 0).all()
    assert (firsts < cost.shape[1]).all()
    assert cost_of(cost, firsts) == pytest.approx(cheapest(cost))


def drawn(edges: list[float], frames: int, heads: int = 3) -> torch.Tensor:
    """Attention scores of heads that look at each token between its edges (seconds)."""
    scores = torch.zeros(heads, len(edges) - 1, frames)
    for token, (start, end) in enumerate(itertools.pairwise(edges)):
        scores[:, token, round(start * 50) : round(end * 50)] = 8.0
    return scores + 0.01 * torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))


def test_times_are_where_the_heads_look() -> None:
    edges = [0.0, 0.4, 0.5, 1.2, 2.0]
    times = token_times(drawn(edges, 250), [True] * 3, 2.0, 7)
    for (start, end), expected in zip(times, itertools.pairwise(edges[:-1]), strict=True):
        assert (start, end) == pytest.approx(expected, abs=0.041)


def test_timestamp_tokens_stand_between_the_words() -> None:
    scores = drawn([0.0, 0.4, 1.0, 2.0], 100)
    empty = torch.zeros_like(scores[:, :1])
    stamped = torch.cat([empty, scores[:, :2], empty, scores[:, 2:]], dim=1)
    times = token_times(stamped, [False, True, True, False], 2.0, 7)
    words = token_times(scores, [True, True], 2.0, 7)
    assert times == ((0.0, 0.0), *words, (words[-1][1], words[-1][1]))


@given(
    st.integers(1, 12),
    st.floats(0.001, 2.0),
    st.integers(0, 2**31),
)
def test_times_never_fall_nor_exceed_the_audio(tokens: int, seconds: float, seed: int) -> None:
    """Also where there are more tokens than frames."""
    scores = torch.randn(2, tokens + 1, 100, generator=torch.Generator().manual_seed(seed)) * 5
    flat = list(itertools.chain(*token_times(scores, [True] * tokens, seconds, 7)))
    assert flat == sorted(flat)
    assert flat[0] >= 0.0
    assert flat[-1] <= seconds


def test_the_upper_half_of_the_decoder_aligns_by_default() -> None:
    assert default_heads(4, 2) == ((2, 0), (2, 1), (3, 0), (3, 1))
    assert default_heads(1, 2) == ((0, 0), (0, 1))
