"""When each token was spoken, read from the decoder's cross-attention.

Owns the alignment of a finished text with its audio. Knows nothing of drafts, words or jobs.

The method is that of OpenAI's word timestamps (whisper/timing.py): the attention of the heads that follow the audio,
normalised over the tokens, smoothed by a median filter, then dynamic time warping. Here it goes over the frames in
which anything is heard, so that no word spreads over a pause.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch reader expects
from numpy.typing import NDArray
from torch import Tensor

from streaming.job import SAMPLE_RATE, Waveform
from streaming.whisper.checkpoint import POSITIONS_PER_SECOND
from streaming.whisper.model import Decoder, KVCache, Memory

Times = tuple[tuple[float, float], ...]
Heads = Sequence[tuple[int, int]]
"""(layer, head) of the decoder."""

QUIET = 1e-3
"""Power of a frame, relative to the loudest, below which it is silence: -30 dB."""

TAIL = 10
"""Encoder positions of silence behind the last sound for the end of text to look at: more would only add noise."""

MARGIN = 2
"""Encoder positions around a sound that count as heard: soft beginnings and ends of words."""


def default_heads(layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """Return all heads of the decoder's upper half.

    It is OpenAI's choice where a checkpoint does not name its alignment heads.
    """
    return tuple((layer, head) for layer in range(layers // 2, layers) for head in range(heads))


def attention(decoder: Decoder, memory: Memory, sequences: Sequence[Sequence[int]], heads: Heads) -> Tensor:
    """Return the scores of the cross-attention before softmax, from one pass over whole sequences.

    Args:
        decoder: the model.
        memory: of the audio.
        sequences: the tokens of each row, prompt included.
        heads: those to read.

    Returns:
        `[rows, heads, longest sequence, encoder positions]`.
    """
    device = memory.device
    longest = max(len(sequence) for sequence in sequences)
    tokens = torch.tensor([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences], device=device)
    places = torch.arange(longest, device=device).expand(len(sequences), longest)
    seen: dict[int, Tensor] = {}

    def watch(layer: int, queries: Tensor) -> None:
        wanted = [head for number, head in heads if number == layer]
        if wanted:
            scale = queries.shape[-1] ** -0.5
            keys = memory.keys[layer][:, wanted].float()
            seen[layer] = (queries[:, wanted].float() * scale) @ keys.transpose(-1, -2)

    cache = KVCache(memory)
    cache.reserve(longest)
    decoder.states(tokens, places, cache, watch)
    return torch.cat([seen[layer] for layer in sorted(seen)], dim=1)


def token_times(scores: Tensor, spoken: Sequence[bool], audio: Waveform, median_filter: int) -> Times:
    """Return (start, end) of every token of a text, in seconds; they never fall and never exceed the audio's length.

    Args:
        scores: `[heads, tokens + 1, encoder positions]`, at the positions that predict each token and then the end of
            text.
        spoken: for each token whether it is text; the others (timestamps) only get the moment where they stand.
        audio: 16 kHz mono, `[samples]`.
        median_filter: its width.
    """
    heard = audible(audio)[: scores.shape[-1]]
    sounds = np.flatnonzero(heard)
    last = sounds[-1]
    # Silence belongs to no word; a little of it behind the last sound is for the end of text.
    heard[last : last + 1 + TAIL] = True
    frames = np.flatnonzero(heard)
    rows = [index for index, is_text in enumerate(spoken) if is_text] + [len(spoken)]
    if len(frames) < len(rows):  # more tokens than moments: a text that nobody spoke
        frames = np.repeat(np.arange(len(heard)), len(rows))
    if len(rows) == 2:
        # Normalised over a token and the end of text, any difference is as large as any other: rounding would decide.
        # A single token is all that is heard.
        starts, ends = sounds[:1], sounds[-1:] + 1
    else:
        starts, ends = _aligned(scores[:, rows], frames, median_filter)
    seconds = len(audio) / SAMPLE_RATE
    spans = iter(np.minimum(np.stack([starts, ends], 1) / POSITIONS_PER_SECOND, seconds).tolist())
    times, now = [], 0.0
    for is_text in spoken:
        start, end = next(spans) if is_text else (now, now)
        times.append((start, end))
        now = end
    return tuple(times)


def _aligned(
    scores: Tensor, frames: NDArray[np.int64], median_filter: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Encoder positions at which each token begins and ends, `[tokens]` each.

    The scores are `[heads, tokens + 1, encoder positions]`; `frames` are the positions that may belong to a token.
    """
    weights = scores[:, :, torch.from_numpy(frames).to(scores.device)].softmax(-1)
    deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, correction=0)
    smooth = _smooth((weights - mean) / deviation.clamp(min=1e-9), median_filter)
    firsts = first_frames(-smooth.mean(0).cpu().double().numpy())
    # A word ends with its own last frame, not where the next begins: there may be silence between.
    return frames[firsts[:-1]], np.minimum(frames[firsts[1:] - 1] + 1, frames[firsts[1:]])


def audible(audio: Waveform) -> NDArray[np.bool_]:
    """Return for each encoder position of the audio whether anything is heard there.

    Heard is what comes within 30 dB of the loudest, and a little around it. In steady noise that is everything.

    Returns:
        bool, `[positions]`, at least one of them True.
    """
    step = SAMPLE_RATE // POSITIONS_PER_SECOND
    padded = np.pad(audio, (0, -len(audio) % step)).reshape(-1, step)
    power = np.square(padded).mean(1)
    loud = power >= power.max() * QUIET
    return np.convolve(loud, np.ones(2 * MARGIN + 1), "same")[: len(loud)] > 0.5


def first_frames(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each token's first frame in the cheapest monotonic alignment.

    This is dynamic time warping in which every step takes one frame, so that each token has at least one of its own.

    Args:
        cost: `[tokens, frames]`, with at least as many frames as tokens.
    """
    tokens, frames = cost.shape
    entries = np.empty((tokens, frames), dtype=np.int64)
    before = np.full(frames, np.inf)  # the cost of the tokens above when they end right before each frame
    before[0] = 0.0
    for token in range(tokens):
        # A stay from frame k to frame j costs sums[j] - sums[k - 1], so the best k for each j is a running minimum.
        sums = cost[token].cumsum()
        arrivals = before - (sums - cost[token])
        best = np.minimum.accumulate(arrivals)
        entries[token] = np.maximum.accumulate(np.where(arrivals == best, np.arange(frames), 0))
        before = np.concatenate(([np.inf], (sums + best)[:-1]))
    firsts = np.empty(tokens, dtype=np.int64)
    frame = frames
    for token in reversed(range(tokens)):
        firsts[token] = frame = entries[token, frame - 1]
    return firsts


def _smooth(weights: Tensor, width: int) -> Tensor:
    """Median filter along the last dimension; one that is shorter than the filter stays as it is."""
    reach = width // 2
    if weights.shape[-1] <= reach:
        return weights
    return F.pad(weights, (reach, reach), mode="reflect").unfold(-1, width, 1).median(-1).values
