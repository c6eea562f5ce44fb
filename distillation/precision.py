"""The numbers in which training computes on this machine: measured, not guessed.

Owns the probe and its result. Some processors multiply bfloat16 twice as fast as float32, others emulate it and are
several times slower, and neither name nor flag tells which; the engine measures it in the same way. All GPUs that are
used for training have it. Knows nothing of models.
"""

from __future__ import annotations

import functools
import sys
import time
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from streaming.whisper.precision import LEAST_GAIN

_POSITIONS = 1500
_ROUNDS = 4


def computing(width: int, device: str) -> AbstractContextManager[None]:
    """Return a context in which models of a width compute in bfloat16 where that is faster, and else in float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=_in_bfloat16(width, device))


@functools.cache
def _in_bfloat16(width: int, device: str) -> bool:
    """Chosen once in a process, and said on standard error."""
    if torch.device(device).type != "cpu":
        tqdm.write(f"computing in bfloat16 on {device}", file=sys.stderr)
        return True
    gain = bfloat16_gain(width)
    chosen = chooses_bfloat16(gain)
    name = "bfloat16" if chosen else "float32"
    tqdm.write(f"computing in {name}: bfloat16 is {gain:.2f} times as fast here", file=sys.stderr)  # over any bar
    return chosen


def chooses_bfloat16(gain: float) -> bool:
    return gain >= LEAST_GAIN


def bfloat16_gain(width: int) -> float:
    """Measure how many times as fast as in float32 a step through one layer is under autocast, here and now."""
    with torch.random.fork_rng([]):  # a probe must not change what is random in a training
        layer = nn.Linear(width, width)
    states = torch.zeros(_POSITIONS, width)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(_ROUNDS):  # in turns, so that what disturbs the machine disturbs both
        for narrow, taken in seconds.items():
            taken.append(_seconds(layer, states, narrow))
    return min(seconds[False]) / min(seconds[True])


def _seconds(layer: nn.Module, states: Tensor, narrow: bool) -> float:
    began = time.perf_counter()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        loss = layer(states).float().sum()
    loss.backward()
    return time.perf_counter() - began
