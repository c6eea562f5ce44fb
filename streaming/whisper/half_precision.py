"""A decoder whose weights have half precision, on a processor, while states and sums stay in float32.

Owns the packed weights and which of a decoder's products use them. A decoder step reads every weight for one state of
each row, so it waits for memory, and half the bytes are half the wait. Rows do not share a scale or anything else, so a
draft or other rows change a sum by no more than they do in float32. Knows nothing of files, jobs or prompts.

The kernels are FBGEMM's, and only processors with AVX2 have them.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from streaming.whisper.model import Attention, Decoder, joined_weights

_MANY_STATES = ("encoder_attn.k_proj", "encoder_attn.v_proj")
"""They see the whole window once a job. With so many states a product waits for arithmetic, not for memory."""


class HalfLinear(nn.Module):
    """A linear layer with packed float16 weights: float32 `[..., width]` to float32 `[..., outputs]`.

    Args:
        weight: float32 `[outputs, width]`, which is copied.
        bias: float32 `[outputs]`.

    Raises:
        RuntimeError: this processor, or this PyTorch, has no such kernel.
        ValueError: a weight is too large for float16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        least, most = weight.aminmax()
        bound = torch.finfo(torch.float16).max
        if not (least >= -bound and most <= bound):  # nor NaN
            raise ValueError("a weight is too large for float16")
        try:
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
            self(weight.new_zeros(1, weight.shape[1]))  # only here is the processor looked at
        except (AttributeError, NotImplementedError) as error:
            raise RuntimeError(f"there is no product with float16 weights: {error}") from error

    def forward(self, states: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16(states, self._packed)
        return product


def is_halved(decoder: Decoder) -> bool:
    """Tell whether a decoder's products use float16 weights."""
    return any(isinstance(part, HalfLinear) for part in decoder.modules())


def _join(attention: Attention) -> None:
    """Make one product of three: a call for a single state costs more than its arithmetic."""
    weight, bias = joined_weights([attention.q_proj, attention.k_proj, attention.v_proj])
    with contextlib.suppress(ValueError):
        attention.together = HalfLinear(weight, bias)
        del attention.q_proj, attention.k_proj, attention.v_proj


def halve(decoder: Decoder, vocabulary: nn.Module | None = None) -> None:
    """Make a decoder's products use float16 weights, except for those that float16 cannot hold.

    Args:
        decoder: what is changed. Its embeddings stay as they are.
        vocabulary: a sibling's packed output weights, where both have the same.

    Raises:
        RuntimeError: this processor, or this PyTorch, has no such kernel.
    """
    for layer in decoder.layers:
        _join(layer.self_attn)  # type: ignore[arg-type]  # ModuleList forgets its element type
        for name, part in list(layer.named_modules()):
            if isinstance(part, nn.Linear) and name not in _MANY_STATES:
                with contextlib.suppress(ValueError):
                    layer.set_submodule(name, HalfLinear(part.weight, part.bias))
    with contextlib.suppress(ValueError):
        decoder.vocabulary = vocabulary or HalfLinear(decoder.output_weight)
