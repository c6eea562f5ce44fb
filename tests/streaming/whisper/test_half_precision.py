"""Weights in half precision: how far a product may be off, that rows do not depend on their company, and what stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch reader expects
from checkpoints import Pair
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streaming.whisper.checkpoint import open_checkpoint
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.half_precision import HalfLinear, halve, is_halved
from streaming.whisper.model import Attention, Decoder, build_decoder
from streaming.whisper.precision import half_gain
from streaming.whisper.weights import read_weights

inner_widths = st.sampled_from([1, 7, 64, 513, 1537])
"""A kernel sums in blocks of 512."""


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    st.integers(0, 999),
    st.integers(1, 40),
    st.integers(1, 5),
    inner_widths,
    st.integers(1, 300),
)
@settings(max_examples=60)
def test_a_product_is_that_of_the_rounded_weights(seed: int, rows: int, width: int, inner: int, outputs: int) -> None:
    weight, bias, states = (
        numbers(seed, outputs, inner),
        numbers(seed + 1, outputs),
        numbers(seed + 2, rows, width, inner),
    )
    expected = F.linear(states, weight.half().float(), bias)
    torch.testing.assert_close(HalfLinear(weight, bias)(states), expected, rtol=1e-4, atol=1e-3)


@given(st.integers(0, 999), st.integers(2, 40), st.data())
@settings(max_examples=60)
def test_a_row_has_the_same_product_in_any_company(seed: int, rows: int, data: st.DataObject) -> None:
    """Each row is scaled by nothing that is not its own, however large the others are."""
    linear = HalfLinear(numbers(seed, 96, 48))
    states = numbers(seed + 1, rows, 48) * 10.0 ** torch.arange(rows).remainder(5)[:, None]
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    error = (linear(states[first:last]) - linear(states)[first:last]).abs().amax(1)
    assert bool((error <= 1e-5 * states[first:last].abs().sum(1)).all())


def test_a_weight_that_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="too large for float16"):
        HalfLinear(torch.tensor([[1.0, 1e6]]))


def decoder_of(pair: Pair) -> Decoder:
    checkpoint = open_checkpoint(str(pair.teacher), "teacher")
    return build_decoder(checkpoint.dimensions, read_weights(checkpoint, torch.float32))


def test_all_but_the_products_of_the_window_are_halved(english: Pair) -> None:
    decoder = decoder_of(english)
    first = decoder.get_submodule("layers.0.fc1")
    assert isinstance(first, nn.Linear)
    first.weight[0, 0] = 1e6
    halve(decoder)
    left = {name for name, part in decoder.named_modules() if isinstance(part, nn.Linear)}
    layers = len(decoder.layers)
    window = {f"layers.{n}.encoder_attn.{part}_proj" for n in range(layers) for part in "kv"}
    assert left == window | {"layers.0.fc1"}
    assert isinstance(decoder.vocabulary, HalfLinear)


def test_three_products_are_one_where_float16_can_hold_them(english: Pair) -> None:
    plain, decoder = decoder_of(english), decoder_of(english)
    attention = decoder.get_submodule("layers.1.self_attn")
    assert isinstance(attention, Attention)
    attention.k_proj.weight[0, 0] = 1e6
    halve(decoder)
    joined = decoder.get_submodule("layers.0.self_attn")
    original = plain.get_submodule("layers.0.self_attn")
    assert isinstance(joined, Attention)
    assert isinstance(original, Attention)
    assert isinstance(joined.together, HalfLinear)
    assert attention.together is None
    assert isinstance(attention.k_proj, nn.Linear)
    assert isinstance(attention.q_proj, HalfLinear)
    states = numbers(0, 2, 3, 32)
    for part, whole in zip(joined.project(states), original.project(states), strict=True):
        torch.testing.assert_close(part, whole, rtol=2e-3, atol=2e-3)


def test_a_vocabulary_of_both_is_packed_once(english: Pair) -> None:
    one, other = decoder_of(english), decoder_of(english)
    halve(one)
    halve(other, one.vocabulary)
    assert other.vocabulary is one.vocabulary


def test_the_gain_is_measured() -> None:
    weight = numbers(0, 500, 64)
    assert 0.01 < half_gain(weight, HalfLinear(weight)) < 100


@pytest.mark.parametrize("name", ["linear_prepack_fp16", "linear_dynamic_fp16"])
@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_where_there_is_no_kernel_weights_stay_as_they_are(
    english: Pair, name: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some processors lack it, and only the first product tells."""

    def refuse(*arguments: object) -> None:
        raise error("Your CPU doesn't support FBGEMM")

    monkeypatch.setattr(torch.ops.quantized, name, refuse)
    with pytest.raises(RuntimeError, match="doesn't support FBGEMM"):
        HalfLinear(numbers(0, 500, 64))
    engine = WhisperEngine.load(str(english.student), str(english.teacher), "cpu")
    assert not any(is_halved(model.decoder) for model in engine.models)
