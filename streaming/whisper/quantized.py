"""Weights in 8 bits, as they lie on disk.

Owns rounding. Knows nothing of files, jobs or prompts.

Weights have a scale for each output channel and are symmetric. Source: LLM.int8(), section 2.1, vector-wise
quantisation (Dettmers et al. 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights `[out, ...]` to int8 of the same shape and float32 scales `[out]`, where weight = int8 x scale."""
    flat = weight.float().flatten(1)
    scale = (flat.abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (flat / scale[:, None]).round_().to(torch.int8).view(weight.shape), scale


def expand(weight: Tensor, scale: Tensor) -> Tensor:
    """Return what `quantize` was given, rounded, in float32."""
    return weight.float() * scale.view(-1, *[1] * (weight.dim() - 1))
