"""The numbers in which a model computes on this processor: measured, not guessed.

Owns the probes. Some processors multiply bfloat16 twice as fast as float32, others emulate it and are slower, and
neither name nor flag tells which. The encoder is most of the work of a short command and runs once for a job, so a
draft changes nothing in it. The decoder, which must say the same with any draft, sums in float32; its weights may have
half precision (`half_precision.py`). On a GPU the decoder too is in half precision, which of the two follows from the
weights (`usual_numbers`). Its logits need not be: those of bfloat16 are an eighth apart where the largest are. Knows
nothing of jobs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Set
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch reader expects
from torch import Tensor, nn

from streaming.whisper.half_precision import HalfLinear
from streaming.whisper.model import Decoder, Encoder

LEAST_GAIN = 1.15
"""Narrow numbers must be so many times as fast: below, it is noise."""

_NEAR = 0.02
"""How far logits in float32 may be from those that are rounded, relative to the largest, to be believed."""

_POSITIONS = 250  # five seconds
_STATES = (1, 16)
_ROUNDS = 4
_HOPELESS = 0.4


_HALF = frozenset({"F16", "I8"})
"""What float16 holds as it is: weights in 8 bits are rounded from it."""


def usual_numbers(device: str, stored: Set[str]) -> torch.dtype:
    """Return in which numbers models compute on a kind of device, where nobody chose.

    A processor sums in float32. A GPU takes float16 where all weights are stored in it, or in 8 bits beside it: it has
    three more bits for each weight than bfloat16, and the weights were in its range when they were stored. Else it
    takes bfloat16, which has the range of float32.

    Args:
        device: "cpu", "cuda".
        stored: what `stored_numbers` returns, of all models of an engine: they share what is the same.
    """
    if device == "cpu":
        return torch.float32
    return torch.float16 if "F16" in stored and stored <= _HALF else torch.bfloat16


@torch.inference_mode()
def bfloat16_gain(encoder: Encoder, positions: int = _POSITIONS) -> float:
    """Measure how many times as fast as in float32 an encoder's layer is in bfloat16, here and now.

    One layer tells for all.

    Args:
        encoder: the encoder.
        positions: how many it computes.
    """
    layer = encoder.layers[0]
    narrow = copy.deepcopy(layer).to(torch.bfloat16)
    width = encoder.layer_norm.weight.shape[0]
    states = torch.zeros(1, positions, width)
    narrow_states = states.to(torch.bfloat16)
    return _times_as_fast(lambda: layer(states), lambda: narrow(narrow_states))


@torch.inference_mode()
def half_gain(weight: Tensor, narrow: HalfLinear) -> float:
    """Measure how many times as fast as in float32 logits are with float16 weights, where they gain least.

    One state reads all weights for little work, and a batch, or the check of a draft, has many. One way is used for
    both, because a draft must not change the numbers.

    Args:
        weight: float32 `[vocabulary, width]`.
        narrow: the same weights, packed.
    """
    return min(
        _times_as_fast(partial(F.linear, states, weight), partial(narrow, states))
        for states in (torch.zeros(1, rows, weight.shape[1]) for rows in _STATES)
    )


def _times_as_fast(wide: Callable[[], object], narrow: Callable[[], object]) -> float:
    """In turns, so that what disturbs the machine disturbs both. What is hopeless is not tried again."""
    pairs: list[tuple[float, float]] = []
    gain = 1.0
    while len(pairs) < _ROUNDS and gain > _HOPELESS:
        pairs.append((_seconds(wide), _seconds(narrow)))
        gain = min(one for one, _ in pairs) / min(other for _, other in pairs)
    return gain


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class WideLogits(nn.Module):
    """States to logits in float32 by weights in half precision: `[rows, width, d_model]` to `[..., vocabulary]`.

    Products are summed in float32 anyway; here the sums are not rounded.

    Args:
        weight: `[vocabulary, d_model]`.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._weight = weight.t()

    def forward(self, states: Tensor) -> Tensor:
        rows, width, _ = states.shape
        found: Tensor = torch.mm(states.flatten(0, 1), self._weight, out_dtype=torch.float32)
        return found.view(rows, width, -1)


@torch.inference_mode()
def widen_logits(decoder: Decoder) -> bool:
    """Let a decoder in half precision give its logits in float32, where PyTorch has the product for this device.

    Returns:
        Whether it does.
    """
    weight = decoder.output_weight
    if weight.dtype == torch.float32 or decoder.vocabulary is not None:
        return isinstance(decoder.vocabulary, WideLogits)
    wide = WideLogits(weight)
    states = torch.randn(1, 2, weight.shape[1], device=weight.device).to(weight.dtype)
    try:
        found, expected = wide(states), F.linear(states, weight).float()
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return False  # a processor, or an older PyTorch
    if not float((found - expected).abs().max()) <= _NEAR * float(expected.abs().max()):
        return False
    decoder.vocabulary = wide
    return True
