"""How a training goes on: word errors of the dev recordings, at every checkpoint.

Owns the small sample that is looked at, and the plain greedy decoding that suffices to see a curve. What a finished
pair can do is `evaluate.py`'s to say, through the service's own engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from distillation.augment import features, padded_seconds
from distillation.batches import clips_of
from distillation.corpus import Clip, Corpus
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


def watching(
    model: Whisper, corpus: Corpus, layout: Layout, comparable: Comparable, clips: int = 80
) -> Callable[[], dict[str, float]]:
    """What `fit` asks at each checkpoint: a word error rate; nothing where no clip has words.

    comparable: as of `scores.py`.
    """
    sample = [clip for clip in clips_of(corpus, "dev", at_most=clips) if comparable(clip.text)]
    return lambda: {"wer_dev": _wer(model, corpus, layout, sample, comparable)} if sample else {}


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
    """Tokens after which a text of so much audio is taken for a loop."""
    return max(SHORTEST_LIMIT, round(TOKENS_PER_SECOND * seconds))


def by_length(clips: Sequence[Clip]) -> list[Clip]:
    """The shortest first, so that little of a batch is padding."""
    return sorted(clips, key=lambda clip: clip.samples)


def windows(corpus: Corpus, clips: Sequence[Clip], layout: Layout) -> Iterator[Tensor]:
    """Features of clips in batches, in their order: [rows, bins, frames] of a context of the checkpoint."""
    for start in range(0, len(clips), BATCH):
        waves = waves_of(corpus, clips[start : start + BATCH])
        seconds = padded_seconds(max(wave.size for wave in waves) / SAMPLE_RATE, layout.contexts, exact=True)
        yield features(waves, seconds, layout.mels)


def texts(model: Whisper, states: Tensor, layout: Layout, limit: int | None = None) -> list[str]:
    """What a model says of encoder states [rows, positions, width], in `limit` tokens at most: as many as their audio
    can hold, where None.
    """
    room = model.config.max_target_positions - len(layout.prompt)
    limit = min(room, limit or longest_text(states.shape[1] / POSITIONS_PER_SECOND))
    # Scores of every token so far are held for every row: long texts take few rows at once.
    together = max(1, BATCH * SHORTEST_LIMIT // limit)
    parts = states.split(together)
    rows = [row for part in parts for row in greedy(model, part, layout.prompt, layout.end, limit)]
    return [layout.tokenizer.decode(row).strip() for row in rows]
