"""8 bits: how far rounding may be off, and that the likeliest tokens are scored as float32 scores them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch reader expects
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streaming.whisper.quantized import LARGEST, SHORTLIST, QuantizedVocabulary, expand, largest, quantize


def weights(seed: int, *shape: int, spread: float = 1.0) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    # Rows of very different sizes, as channels have.
    return torch.randn(*shape, generator=dice) * torch.rand(shape[0], *[1] * (len(shape) - 1), generator=dice) * spread


shapes = st.lists(st.integers(1, 9), min_size=2, max_size=4)


@given(shapes, st.integers(0, 999), st.floats(-6, 6))
def test_no_element_is_off_by_more_than_half_a_step(shape: list[int], seed: int, decades: float) -> None:
    weight = weights(seed, *shape, spread=10.0**decades)
    integers, scale = quantize(weight)
    assert integers.dtype == torch.int8
    assert integers.shape == weight.shape
    assert scale.shape == weight.shape[:1]
    assert int(integers.abs().max()) <= LARGEST
    step = scale.view(-1, *[1] * (weight.dim() - 1))
    assert bool(((expand(integers, scale) - weight).abs() <= step * 0.5 * (1 + 1e-5)).all())


@given(shapes, st.integers(0, 999))
def test_what_is_rounded_is_not_rounded_again(shape: list[int], seed: int) -> None:
    integers, scale = quantize(weights(seed, *shape))
    again, same = quantize(expand(integers, scale))
    assert torch.equal(again, integers)
    torch.testing.assert_close(same, scale)


def test_rows_of_nothing_stay_nothing() -> None:
    integers, scale = quantize(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert expand(integers, scale).tolist() == [[0.0, 0.0], [pytest.approx(1.0, abs=0.01), -2.0]]
    vocabulary = QuantizedVocabulary(torch.randn(50, 8))
    assert torch.equal(vocabulary(torch.zeros(1, 2, 8)), torch.zeros(1, 2, 50))


@given(st.integers(0, 999), st.integers(1, 24), st.integers(1, 5), st.sampled_from([40, 2112, 9000]))
@settings(max_examples=60)
def test_the_likeliest_token_is_that_of_float32(seed: int, rows: int, width: int, tokens: int) -> None:
    weight = weights(seed, tokens, 64)
    states = weights(seed + 1, rows, width, 64, spread=3.0)
    logits, exact = QuantizedVocabulary(weight)(states), F.linear(states, weight)
    assert logits.shape == exact.shape
    assert torch.equal(logits.argmax(-1), exact.argmax(-1))
    # The best are the very values; the others are near them.
    best = exact.topk(5).indices
    torch.testing.assert_close(logits.gather(-1, best), exact.gather(-1, best), rtol=1e-4, atol=1e-4)
    error = (logits - exact).abs().amax(-1)
    assert bool((error <= 0.06 * exact.abs().amax(-1)).all())
    same = (logits - exact).abs() <= 1e-5 + 1e-5 * exact.abs()
    assert bool((same.sum(-1) >= min(SHORTLIST, tokens)).all())


def test_a_row_has_the_same_logits_in_any_company() -> None:
    """Its scale is its own: else what is beside a row would decide on its words."""
    vocabulary = QuantizedVocabulary(weights(1, 500, 32))
    states = weights(2, 6, 3, 32, spread=5.0)
    together = vocabulary(states)
    for row in range(6):
        torch.testing.assert_close(vocabulary(states[row : row + 1])[0], together[row], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vocabulary(states[row : row + 1, 1:2])[0, 0], together[row, 1], rtol=1e-5, atol=1e-5)


@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 40), st.sampled_from([40, 4096, 4097, 9000, 51864]))
@settings(max_examples=60)
def test_the_largest_are_the_largest(seed: int, rows: int, count: int, tokens: int) -> None:
    scores = weights(seed, rows, 2, tokens)
    found = largest(scores, count)
    assert found.shape == (rows, 2, count)
    assert all(len(set(row.tolist())) == count for row in found.flatten(0, 1))
    expected = scores.topk(count).values
    assert torch.equal(scores.gather(-1, found).sort(-1, descending=True).values, expected)
