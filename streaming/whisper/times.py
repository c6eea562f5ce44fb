"""When each token was spoken, read from the decoder's cross-attention.

Owns the alignment of a finished text with its audio. Knows nothing of drafts, words or jobs. The method is that of
OpenAI's word timestamps (whisper/timing.py): attention of the heads that follow the audio, normalised over the
tokens, smoothed by a median filter, then dynamic time warping.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch reader expects
from numpy.typing import NDArray
from torch import Tensor

from streaming.whisper.checkpoint import POSITIONS_PER_SECOND
from streaming.whisper.model import Cache, Decoder, Memory

Times = tuple[tuple[float, float], ...]
Heads = Sequence[tuple[int, int]]
"""(layer, head) of the decoder."""


def default_heads(layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """All heads of the decoder's upper half: OpenAI's choice where a checkpoint does not name its alignment heads."""
    return tuple((layer, head) for layer in range(layers // 2, layers) for head in range(heads))


def attention(decoder: Decoder, memory: Memory, sequences: Sequence[Sequence[int]], heads: Heads) -> Tensor:
    """One pass over whole sequences of tokens: scores before softmax, [rows, heads, longest, encoder positions]."""
    device = memory.keys.device
    longest = max(len(sequence) for sequence in sequences)
    tokens = torch.tensor([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences], device=device)
    places = torch.arange(longest, device=device).expand(len(sequences), longest)
    seen: dict[int, Tensor] = {}

    def watch(layer: int, queries: Tensor, keys: Tensor) -> None:
        wanted = [head for number, head in heads if number == layer]
        if wanted:
            scale = queries.shape[-1] ** -0.5
            seen[layer] = (queries[:, wanted].float() * scale) @ keys[:, wanted].float().transpose(-1, -2)

    cache = Cache(memory)
    cache.reserve(longest)
    decoder(tokens, places, cache, watch)
    return torch.cat([seen[layer] for layer in sorted(seen)], dim=1)


def token_times(scores: Tensor, spoken: Sequence[bool], seconds: float, median_filter: int) -> Times:
    """(start, end) in seconds of every token of a text; they never fall and never exceed `seconds`, the audio's length.

    scores: [heads, tokens + 1, encoder positions], of the positions that foretell each token and then the end of text.
    spoken: for each token whether it is text; the others (timestamps) only get the moment where they stand.
    """
    frames = max(1, min(scores.shape[-1], round(seconds * POSITIONS_PER_SECOND)))
    rows = [index for index, is_text in enumerate(spoken) if is_text] + [len(spoken)]
    weights = scores[:, rows, :frames].softmax(-1)
    deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, correction=0)
    smooth = _smooth((weights - mean) / deviation.clamp(min=1e-9), median_filter)
    firsts = first_frames(-smooth.mean(0).cpu().double().numpy())
    bounds = np.minimum(firsts / POSITIONS_PER_SECOND, seconds).tolist()
    times, place = [], 0
    for is_text in spoken:
        times.append((bounds[place], bounds[place + is_text]))
        place += is_text
    return tuple(times)


def first_frames(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Dynamic time warping of [tokens, frames]: the frame at which the cheapest path enters each token.

    The path goes from the first corner to the last by steps of one token, one frame, or both.
    """
    tokens, frames = cost.shape
    entries = np.empty((tokens, frames), dtype=np.int64)
    totals = np.full((tokens, frames), np.inf)
    before = np.full(frames, np.inf)  # the cheapest way to arrive at each frame from the tokens above
    before[0] = 0.0
    for token in range(tokens):
        # A stay from frame k to frame j costs sums[j] - sums[k - 1], so the best k for each j is a running minimum.
        sums = cost[token].cumsum()
        arrivals = before - (sums - cost[token])
        best = np.minimum.accumulate(arrivals)
        entries[token] = np.maximum.accumulate(np.where(arrivals == best, np.arange(frames), 0))
        totals[token] = sums + best
        before = np.minimum(totals[token], np.concatenate(([np.inf], totals[token][:-1])))
    firsts = np.empty(tokens, dtype=np.int64)
    frame = frames - 1
    for token in reversed(range(tokens)):
        firsts[token] = frame = entries[token, frame]
        above = totals[token - 1]
        if token > 0 and frame > 0 and above[frame - 1] <= above[frame]:
            frame -= 1
    return firsts


def _smooth(weights: Tensor, width: int) -> Tensor:
    """Median filter along the last dimension; one that is shorter than the filter stays as it is."""
    reach = width // 2
    if weights.shape[-1] <= reach:
        return weights
    return F.pad(weights, (reach, reach), mode="reflect").unfold(-1, width, 1).median(-1).values
