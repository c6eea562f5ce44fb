"""What a device could do at best: its bandwidth and arithmetic, measured, and the least that a part of a decode costs.

Owns the probes and the counting of bytes and operations. The roofline of a part is the longer of the two times
(Williams et al. 2009); what is measured beside it says how far the code is from the machine's limit. Small models stay
in a processor's caches, whose bandwidth is above that of the memory: there a part can be faster than its "roofline".
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from streaming.whisper.checkpoint import Dimensions

_COPIED_BYTES = 2**28
_PRODUCT = {"cpu": 1536, "cuda": 8192}


@dataclass(frozen=True, slots=True)
class Cost:
    """The least that a part needs.

    Attributes:
        operations: in floating point; a multiplication and its addition count as two.
        moved: bytes.
    """

    operations: float
    moved: float


@dataclass(frozen=True, slots=True)
class Device:
    """What a device can do.

    Attributes:
        name: for the tables.
        bandwidth: bytes a second.
        arithmetic: operations a second, by dtype.
    """

    name: str
    bandwidth: float
    arithmetic: dict[torch.dtype, float]

    def seconds(self, cost: Cost, dtype: torch.dtype) -> float:
        return max(cost.operations / self.arithmetic[dtype], cost.moved / self.bandwidth)


def timed(work: Callable[[], object], device: str, seconds: float = 0.6, least: int = 5) -> list[float]:
    """Return the seconds of each of several runs, after a warm-up.

    Args:
        work: what is run.
        device: whose work is waited for.
        seconds: how long the runs go on, together.
        least: the number of runs, at least.
    """
    for _ in range(2):
        work()
    _settle(device)
    taken: list[float] = []
    while len(taken) < least or sum(taken) < seconds:
        began = time.perf_counter()
        work()
        _settle(device)
        taken.append(time.perf_counter() - began)
    return taken


def _settle(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@torch.inference_mode()
def probe(device: str, dtypes: set[torch.dtype]) -> Device:
    """Measure a device as it is now, with whatever else runs on it."""
    kind = torch.device(device).type
    source = torch.rand(_COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    copying = min(timed(lambda: target.copy_(source), device))
    size = _PRODUCT[kind]

    def arithmetic(dtype: torch.dtype) -> float:
        # Of chance: a processor may take less power, and so run faster, with equal numbers.
        left, right = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
        return float(2 * size**3 / statistics.median(timed(lambda: left @ right, device)))

    name = torch.cuda.get_device_name(device) if kind == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return Device(name, 2 * _COPIED_BYTES / copying, {dtype: arithmetic(dtype) for dtype in dtypes})


def encoding(sizes: Dimensions, rows: int, positions: int, width: int) -> Cost:
    """Return the cost of encoding features to states.

    Args:
        sizes: of the model.
        rows: jobs in a batch.
        positions: of the encoder.
        width: bytes of a number.
    """
    d, frames = sizes.d_model, 2 * positions
    weights = 3 * sizes.mels * d + 3 * d * d + sizes.encoder_layers * (4 * d * d + 2 * d * sizes.encoder_ffn)
    convolutions = frames * 3 * sizes.mels * d + positions * 3 * d * d
    layers = sizes.encoder_layers * positions * (4 * d * d + 2 * d * sizes.encoder_ffn + 2 * positions * d)
    return Cost(2.0 * rows * (convolutions + layers), width * (weights + rows * (frames * sizes.mels + positions * d)))


def remembering(sizes: Dimensions, rows: int, positions: int, width: int) -> Cost:
    """Return the cost of the decoder's cross-attention keys and values from states.

    Args:
        sizes: of the model.
        rows: jobs in a batch.
        positions: of the encoder.
        width: bytes of a number.
    """
    d = sizes.d_model
    numbers = sizes.decoder_layers * 2 * (d * d + rows * positions * d) + rows * positions * d
    return Cost(2.0 * rows * positions * sizes.decoder_layers * 2 * d * d, width * numbers)


def checking(
    sizes: Dimensions, rows: int, tokens: int, positions: int, cached: int, width: int, weight_width: int | None = None
) -> Cost:
    """Return the cost of one decoder pass.

    Args:
        sizes: of the model.
        rows: jobs in a batch.
        tokens: positions of the pass in each row.
        positions: of the encoder.
        cached: tokens before them in the cache.
        width: bytes of a number.
        weight_width: bytes of a weight; None for as many.
    """
    d = sizes.d_model
    weights = sizes.decoder_layers * (6 * d * d + 2 * d * sizes.decoder_ffn) + d * sizes.vocabulary
    seen = positions + cached + tokens
    attention = sizes.decoder_layers * 2 * seen * d
    read = (weight_width or width) * weights + width * rows * attention
    return Cost(2.0 * rows * tokens * (weights + attention), read)
