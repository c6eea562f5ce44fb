"""A small teacher with random weights, and what it taught: labels and distributions of the small corpus.

Labels are the transcripts, not what so random a model says: its texts are loops. Distributions are its own, of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import small_corpus
import torch
from torch import Tensor

from distillation.augment import features
from distillation.corpus import Clip, Corpus
from distillation.distributions import Distributions
from distillation.label import Filter, Label, Manner, distributions_of
from distillation.lessons import Lessons
from distillation.model import Layout, Whisper, encode, layout_of, load_model, logits
from streaming.job import Waveform
from streaming.whisper.checkpoint import Checkpoint, open_checkpoint

SHAPE = replace(checkpoints.SMALL, decoder_layers=3)
CONTEXTS = (2.0, 3.0, 5.0, 8.0)
EVERYTHING = Filter(wer=99, confidence=0)


def teacher(folder: Path, shape: checkpoints.Shape = SHAPE, seed: int = 0) -> Checkpoint:
    """A checkpoint that hears windows of several lengths."""
    directory = checkpoints.build_checkpoint(folder, shape, seed=seed, contexts=CONTEXTS, max_length=40)
    return open_checkpoint(str(directory), "teacher")


def label(key: str, text: str = "", wer: float | None = None, confidence: float = 1.0, **more: Any) -> Label:
    """One whose tokens nobody looks at."""
    return Label(key, text, wer, confidence, **({"tokens": [1] if text else []} | more))


def written(path: Path, labels: Sequence[Label]) -> None:
    rows = [{"labels": 1, **asdict(Manner("a teacher", "basic", None))}, *map(asdict, labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def teach(teacher: Checkpoint, path: Path, corpus: Corpus | None = None, beginnings: bool = True) -> list[Label]:
    """Writes labels, and the distributions beside them, of the transcribed clips of a corpus, each heard as it is in
    the smallest window. beginnings: of every third clip, the first second too, in which its first words are said.
    """
    corpus = corpus or small_corpus.corpus()
    model, layout = load_model(teacher).eval(), layout_of(teacher, None)
    store = Distributions(distributions_of(path))
    store.begin(0)
    labels: list[Label] = []
    for clip in [clip for clip in corpus.split("train") if clip.transcribed]:
        begun = beginnings and len(labels) % 3 == 0 and clip.seconds > 1.5
        for samples in [None, 16000] if begun else [None]:
            text = clip.text if samples is None else " ".join(clip.text.split()[:2])
            tokens = layout.tokens(text)
            scores = foretold(model, layout, corpus.waveform(clip)[:samples], tokens)
            wer = 0.0 if samples is None else None
            labels.append(Label(corpus.key(clip), text, wer, 1.0, False, samples, tokens, store.add(scores)))
    written(path, labels)
    return labels


@torch.no_grad()
def foretold(model: Whisper, layout: Layout, wave: Waveform, tokens: Sequence[int]) -> Tensor:
    """The model's logits at the place of each token, and of the end, [len(tokens) + 1, vocabulary]."""
    seconds = next(seconds for seconds in layout.contexts if seconds * 16000 >= wave.size)
    states = encode(model, features([wave], seconds, layout.mels))
    scores: Tensor = logits(model, torch.tensor([[*layout.prompt, *tokens]]), states)[0, len(layout.prompt) - 1 :]
    return scores


def lessons(teacher: Checkpoint, path: Path, corpus: Corpus | None = None, *, beginnings: bool = True) -> Lessons:
    corpus = corpus or small_corpus.corpus()
    return Lessons(corpus, teach(teacher, path, corpus, beginnings), distributions_of(path), EVERYTHING)


def made(folder: Path, clips: Sequence[tuple[Waveform, Clip]]) -> Corpus:
    """A corpus of the clips, laid one after another."""
    folder.mkdir(parents=True)
    offset = 0
    with (folder / "audio.i16").open("wb") as audio, (folder / "index.jsonl").open("w") as index:
        for wave, clip in clips:
            audio.write((wave * 32768).astype(np.int16).tobytes())
            index.write(json.dumps(asdict(replace(clip, offset=offset, samples=wave.size))) + "\n")
            offset += wave.size
    return Corpus(folder)
