"""How a training progresses: its word errors on recordings to measure on, at every checkpoint.

Owns the small sample that is measured, and the plain greedy decoding that is enough for a curve. `evaluate.py` measures
what a finished pair can do, through the service's own engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from distillation.augment import features, padded_seconds
from distillation.corpus import Clip, Corpus, evenly
from distillation.hearing import waves_of
from distillation.model import Layout, Whisper, encode, greedy
from distillation.scores import Comparable, score
from streaming.job import SAMPLE_RATE
from streaming.whisper.checkpoint import POSITIONS_PER_SECOND

BATCH = 32
TOKENS_PER_SECOND = 8
"""More than anybody says in a language whose words a tokenizer does not cut into single letters."""
SHORTEST_LIMIT = 40
"""Tokens that any text may have, however short its audio."""


def validator(
    model: Whisper, corpus: Corpus, layout: Layout, comparable: Comparable, clips: int = 80
) -> Callable[[], dict[str, float]]:
    """Return what `fit` asks at each checkpoint: the word error rate on recordings to measure on, if there are any.

    Args:
        model: the model in training.
        corpus: where the recordings lie, in the split "dev".
        layout: the model's.
        comparable: makes two texts comparable.
        clips: how many of the recordings are heard, at most.
    """
    sample = evenly([clip for clip in corpus.split("dev") if clip.transcribed and comparable(clip.text)], clips)
    sample = [clip for clip in sample if clip.seconds < layout.contexts[-1] - 1]

    def validate() -> dict[str, float]:
        return {"wer_dev": _wer(model, corpus, layout, sample, comparable)} if sample else {}

    return validate


@torch.no_grad()
def _wer(model: Whisper, corpus: Corpus, layout: Layout, clips: Sequence[Clip], comparable: Comparable) -> float:
    device = next(model.parameters()).device
    ordered = by_length(clips)
    heard: list[str] = []
    for mel in windows(corpus, ordered, layout):
        last = ordered[min(len(heard) + BATCH, len(ordered)) - 1]  # the longest of these
        heard += texts(model, encode(model, mel.to(device)), layout, longest_text(last.seconds))
    return round(score([clip.text for clip in ordered], heard, comparable).wer, 4)


def longest_text(seconds: float) -> int:
    """Return the number of tokens beyond which a text of so much audio counts as a loop."""
    return max(SHORTEST_LIMIT, round(TOKENS_PER_SECOND * seconds))


def by_length(clips: Sequence[Clip]) -> list[Clip]:
    """Sort clips by length, the shortest first, so that little of a batch is padding."""
    return sorted(clips, key=lambda clip: clip.samples)


def windows(corpus: Corpus, clips: Sequence[Clip], layout: Layout) -> Iterator[Tensor]:
    """Compute the features of clips in batches, in their order.

    Args:
        corpus: where the clips lie.
        clips: the clips.
        layout: the model's, with its windows.

    Yields:
        `[rows, bins, frames]`, of one of the windows.
    """
    for start in range(0, len(clips), BATCH):
        waves = waves_of(corpus, clips[start : start + BATCH])
        seconds = padded_seconds(max(wave.size for wave in waves) / SAMPLE_RATE, layout.contexts, exact=True)
        yield features(waves, seconds, layout.mels)


def texts(model: Whisper, states: Tensor, layout: Layout, limit: int | None = None) -> list[str]:
    """Return what a model says of encoder states.

    Args:
        model: the model.
        states: `[rows, positions, width]`.
        layout: the model's.
        limit: most tokens of a text; None for as many as its audio can hold.
    """
    room = model.config.max_target_positions - len(layout.prompt)
    limit = min(room, limit or longest_text(states.shape[1] / POSITIONS_PER_SECOND))
    # Scores of every token so far are held for every row: long texts take few rows at once.
    together = max(1, BATCH * SHORTEST_LIMIT // limit)
    parts = states.split(together)
    rows = [row for part in parts for row in greedy(model, part, layout.prompt, layout.end, limit)]
    return [layout.tokenizer.decode(row).strip() for row in rows]
