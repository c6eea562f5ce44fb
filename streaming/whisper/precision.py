"""The numbers in which a model computes on this processor: measured, not guessed.

Owns the probes. Some processors multiply bfloat16 twice as fast as float32, others emulate it and are slower, and
neither name nor flag tells which. The encoder is most of the work of a short command and runs once for a job, so a
draft changes nothing in it. The decoder, which must say the same with any draft, sums in float32; its weights may have
half precision (`half_precision.py`). Knows nothing of jobs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch reader expects
from torch import Tensor

from streaming.whisper.half_precision import HalfLinear
from streaming.whisper.model import Encoder

LEAST_GAIN = 1.15
"""Narrow numbers must be so many times as fast: below, it is noise."""

_POSITIONS = 250  # five seconds
_STATES = (1, 16)
_ROUNDS = 4
_HOPELESS = 0.4


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
