"""Weights in 8 bits: on disk for all of them, and in arithmetic for the vocabulary, on a processor.

Owns rounding, and the product of states and vocabulary, which takes half of a small decoder's time: all tokens are
scored in 8-bit integers, and the likeliest of them again in float32, so that what is said is what float32 says. Knows
nothing of files, jobs or prompts.

Weights have a scale for each output channel, states one for each row, both symmetric. Source: Dettmers et al. 2022,
LLM.int8(), section 2.1 (vector-wise quantisation).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 127
SHORTLIST = 32
"""Tokens whose logits are computed again: an 8-bit logit is off by a tenth, and those that come after the first few
dozen of 50,000 are behind by more than that many times over."""
_BLOCK = 128
"""Tokens of which the largest is looked for first."""


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [out, ...] to int8 of the same shape and float32 scales [out]: weight = int8 x scale."""
    flat = weight.float().flatten(1)
    scale = (flat.abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (flat / scale[:, None]).round_().to(torch.int8).view(weight.shape), scale


def expand(weight: Tensor, scale: Tensor) -> Tensor:
    """What `quantize` was given, rounded: float32 of the weights' shape."""
    return weight.float() * scale.view(-1, *[1] * (weight.dim() - 1))


class QuantizedVocabulary(nn.Module):
    """States to the logits of all tokens: all in 8 bits, then the likeliest of each row in float32.

    weight: the embeddings, float32 [vocabulary, width], which are not copied.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._weight = weight
        self._integers, self._scale = quantize(weight)

    def forward(self, states: Tensor) -> Tensor:
        """[rows, width, d_model] -> [rows, width, vocabulary]"""
        logits = self._rough(states)
        likeliest = largest(logits, min(SHORTLIST, logits.shape[-1]))
        exact = (self._weight[likeliest] * states[..., None, :]).sum(-1)
        return logits.scatter_(-1, likeliest, exact)

    def _rough(self, states: Tensor) -> Tensor:
        rows = states.flatten(0, 1)
        step = rows.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny).div_(LARGEST)
        sums = torch._int_mm((rows / step).round_().to(torch.int8), self._integers.t())
        return sums.float().mul_(step).mul_(self._scale).view(*states.shape[:-1], -1)


def largest(scores: Tensor, count: int) -> Tensor:
    """The places of the `count` largest of each row, in any order: [..., places] -> [..., count].

    To sort a vocabulary takes longer than to score it. The largest of all lie in the blocks that have the largest of
    their own, so most of it need not be sorted.
    """
    rows = scores.flatten(0, -2)
    blocks = rows.shape[1] // _BLOCK
    if blocks <= count:
        return scores.topk(count, sorted=False).indices
    whole = blocks * _BLOCK
    best = rows[:, :whole].unflatten(1, (blocks, _BLOCK)).amax(2).topk(count, sorted=False).indices
    places = torch.arange(_BLOCK, device=rows.device)
    rest = torch.arange(whole, rows.shape[1], device=rows.device).expand(len(rows), -1)
    candidates = torch.cat([(best[..., None] * _BLOCK + places).flatten(1), rest], 1)
    chosen = rows.gather(1, candidates).topk(count, sorted=False).indices
    found: Tensor = candidates.gather(1, chosen)
    return found.view(*scores.shape[:-1], count)
