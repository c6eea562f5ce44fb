"""In which numbers a model computes on this processor: measured, not guessed.

Owns the probes. Some processors multiply bfloat16 twice as fast as float32, others emulate it and are slower; a name
or a flag does not tell which. The encoder is most of the work of a short command and runs once for a job, so a draft
changes nothing in it: the decoder, which must say the same with any draft, stays in float32, but for its vocabulary
(`quantized.py`). Knows nothing of jobs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch reader expects
from torch import Tensor

from streaming.whisper.model import Encoder
from streaming.whisper.quantized import QuantizedVocabulary

LEAST_GAIN = 1.15
"""bfloat16 must be so many times as fast: below, it is noise."""

_POSITIONS = 250  # five seconds
_TOKENS = 50_000  # as many as a public vocabulary has: a smaller one may fit into a cache that all of it does not
_STATES = (1, 16)
_ROUNDS = 6
_HOPELESS = 0.4


@torch.inference_mode()
def bfloat16_gain(encoder: Encoder, positions: int = _POSITIONS) -> float:
    """How many times as fast as in float32 an encoder's layer is in bfloat16, here and now. One layer tells for all."""
    layer = encoder.layers[0]
    narrow = copy.deepcopy(layer).to(torch.bfloat16)
    width = encoder.layer_norm.weight.shape[0]
    states = torch.zeros(1, positions, width)
    narrow_states = states.to(torch.bfloat16)
    return _times_as_fast(lambda: layer(states), lambda: narrow(narrow_states))


@torch.inference_mode()
def quantized_gain(weight: Tensor) -> float:
    """How many times as fast as in float32 logits are with a vocabulary in 8 bits, here and now, where it gains least.

    One state reads all weights for little work; a batch, or the check of a draft, has many, and on a processor without
    instructions for 8-bit products they take ten times as long as in float32. One way is taken for all: a draft must
    not change it.

    weight: [vocabulary, width]; a part of it tells for all.
    """
    part = weight[:_TOKENS].float()
    narrow = QuantizedVocabulary(part)
    return min(
        _times_as_fast(partial(F.linear, states, part), partial(narrow, states))
        for states in (torch.zeros(1, rows, part.shape[1]) for rows in _STATES)
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
