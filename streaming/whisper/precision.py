"""In which numbers the encoder computes on this processor: measured, not guessed.

Owns the probe. Some processors multiply bfloat16 twice as fast as float32, others emulate it and are slower; a name
or a flag does not tell which. The encoder is most of the work of a short command and runs once for a job, so a draft
changes nothing in it: the decoder, which must say the same with any draft, stays in float32. Knows nothing of jobs.
"""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn

from streaming.whisper.model import Encoder

LEAST_GAIN = 1.15
"""bfloat16 must be so many times as fast: below, it is noise."""

_POSITIONS = 250  # five seconds
_ROUNDS = 6


@torch.inference_mode()
def bfloat16_gain(encoder: Encoder, positions: int = _POSITIONS) -> float:
    """How many times as fast as in float32 an encoder's layer is in bfloat16, here and now. One layer tells for all."""
    layer = encoder.layers[0]
    narrow = copy.deepcopy(layer).to(torch.bfloat16)
    width = encoder.layer_norm.weight.shape[0]
    states = torch.zeros(1, positions, width)
    wide_seconds, narrow_seconds = [], []
    for _ in range(_ROUNDS):  # in turns, so that what disturbs the machine disturbs both
        wide_seconds.append(_seconds(layer, states))
        narrow_seconds.append(_seconds(narrow, states.to(torch.bfloat16)))
    return min(wide_seconds) / min(narrow_seconds)


def _seconds(layer: nn.Module, states: Tensor) -> float:
    began = time.perf_counter()
    layer(states)
    return time.perf_counter() - began
