"""How a training goes on: word errors of held-out voices and of the dev recordings, at every checkpoint.

Owns the small sample that is looked at, and the plain greedy decoding that suffices to see a curve. What a finished
pair can do is `evaluate.py`'s to say, through the service's own engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jiwer
import torch
from torch import Tensor

from distillation.augment import features, padded_seconds
from distillation.batches import clips_of
from distillation.corpus import Clip, Corpus
from distillation.hearing import waves_of
from distillation.model import Layout, Whisper, encode, greedy
from streaming.job import SAMPLE_RATE

BATCH = 32
LONGEST_TEXT = 40


def watching(model: Whisper, corpus: Corpus, layout: Layout, clips: int = 80) -> Callable[[], dict[str, float]]:
    """What `fit` asks at each checkpoint: word error rates by split; nothing for a split that has no clips."""
    samples = {split: clips_of(corpus, split, at_most=clips) for split in ("held_out", "dev")}

    def watch() -> dict[str, float]:
        return {f"wer_{split}": _wer(model, corpus, layout, chosen) for split, chosen in samples.items() if chosen}

    return watch


@torch.no_grad()
def _wer(model: Whisper, corpus: Corpus, layout: Layout, clips: Sequence[Clip]) -> float:
    device = next(model.parameters()).device
    ordered = by_length(clips)
    heard: list[str] = []
    for mel in windows(corpus, ordered, layout):
        heard += texts(model, encode(model, mel.to(device)), layout)
    return round(float(jiwer.wer([clip.text for clip in ordered], heard)), 4)


def by_length(clips: Sequence[Clip]) -> list[Clip]:
    """The shortest first, so that little of a batch is padding."""
    return sorted(clips, key=lambda clip: clip.samples)


def windows(corpus: Corpus, clips: Sequence[Clip], layout: Layout) -> Iterator[Tensor]:
    """Features of clips in batches, in their order: [rows, bins, frames] of a context of the checkpoint."""
    for start in range(0, len(clips), BATCH):
        waves = waves_of(corpus, clips[start : start + BATCH])
        seconds = padded_seconds(max(wave.size for wave in waves) / SAMPLE_RATE, layout.contexts, exact=True)
        yield features(waves, seconds, layout.mels)


def texts(model: Whisper, states: Tensor, layout: Layout) -> list[str]:
    """What a model says of encoder states [rows, positions, width]."""
    rows = greedy(model, states, layout.prompt, layout.end, LONGEST_TEXT)
    return [layout.tokenizer.decode(row).strip() for row in rows]
