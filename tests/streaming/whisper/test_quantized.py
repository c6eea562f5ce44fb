"""8 bits: how far rounding may be off."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streaming.whisper.quantized import LARGEST, expand, quantize


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
