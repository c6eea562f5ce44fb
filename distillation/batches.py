"""The order of training: which clips make the batch of a step, and the batch itself.

Owns the mixture, the curriculum and reproducibility: a step's batch depends on the seed and the step alone, so a
training that was stopped goes on with the very batch it would have had. Knows nothing of losses.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distillation.augment import Rng, augment_waveform, features, noise_alone, padded_seconds
from distillation.corpus import Clip, Corpus
from distillation.model import Layout
from distillation.noise import Noises
from distillation.text import normalise
from streaming.job import SAMPLE_RATE, Waveform

CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"
IGNORED = -100
MARGIN = 4.0
"""Seconds of the longest context that an example leaves free: slower speech and silence around take their room."""

MOST_JOINED = 12
PAUSE = (0.05, 1.4)
"""Clips that follow one another in one example, at most, and the seconds between two of them: up to the longest
context, else a window that is full of speech would be new to the model."""

Utterance = tuple[int, ...]
"""Indices of the clips that follow one another in one example; none: noise alone."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """How clips become batches, and how that changes as training goes on.

    repeats: how often a clip of a set comes in an epoch (1 unless named; below 1: a share of them).
    seconds, most_rows: padded audio and examples in a batch. longest: seconds of a clip.
    empty_share, joined_share: examples of noise alone, and of several clips one after another, for each clip.
    clean_until, full_from: the steps between which augmentation grows from none to full.
    exact_from: from this step on windows are the checkpoint's contexts, not just as long as they must be.
    """

    repeats: Mapping[str, float]
    seconds: float = 90.0
    most_rows: int = 48
    longest: float = 16.0
    empty_share: float = 0.03
    joined_share: float = 0.06
    clean_until: int = 1000
    full_from: int = 4000
    exact_from: int = 6000
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """mel [rows, bins, frames]; inputs, labels [rows, length] (labels: the next token, `IGNORED` where none counts);
    characters [total] and character_counts [rows] for the CTC loss of the encoder."""

    mel: Tensor
    inputs: Tensor
    labels: Tensor
    characters: Tensor
    character_counts: Tensor


class Batches(Dataset[Batch]):
    """`batches[step]` is the batch of that step."""

    def __init__(
        self,
        corpus: Corpus,
        clips: Sequence[Clip],
        noises: Noises,
        layout: Layout,
        mixture: Mixture,
    ) -> None:
        self._corpus = corpus
        self._clips = [clip for clip in clips if clip.seconds <= mixture.longest]
        self._noises = noises
        self._layout = layout
        self._mixture = mixture
        self._epoch_plan = functools.lru_cache(maxsize=16)(self._plan)

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self._mixture.seed, 7, step))
        utterances = self._utterances(step)
        strength = self._strength(step)
        waves = [self._wave(utterance, rng, strength) for utterance in utterances]
        exact = step >= self._mixture.exact_from
        seconds = padded_seconds(max(wave.size for wave in waves) / SAMPLE_RATE, self._layout.contexts, exact)
        mel = features(waves, seconds, self._layout.mels, rng, strength)
        return self._labelled(mel, [self._text(utterance) for utterance in utterances])

    def epoch_steps(self, epoch: int) -> int:
        """How many batches an epoch has."""
        return len(self._epoch_plan(epoch))

    @property
    def fingerprint(self) -> str:
        """Changes with the clips, their texts, and the mixture."""
        said = "\n".join(f"{clip.offset} {clip.samples} {clip.text}" for clip in self._clips)
        return hashlib.sha256(f"{self._mixture} {self._layout.prompt} {said}".encode()).hexdigest()

    def _strength(self, step: int) -> float:
        start, end = self._mixture.clean_until, self._mixture.full_from
        return float(np.clip((step - start) / max(1, end - start), 0, 1))

    def _utterances(self, step: int) -> list[Utterance]:
        epoch = 0
        while step >= len(self._epoch_plan(epoch)):
            step -= len(self._epoch_plan(epoch))
            epoch += 1
        return self._epoch_plan(epoch)[step]

    def _plan(self, epoch: int) -> list[list[Utterance]]:
        """All batches of an epoch: clips of like length together, so that little of a batch is padding."""
        rng = np.random.default_rng((self._mixture.seed, epoch))
        utterances = self._epoch_utterances(rng)
        order = sorted(utterances, key=lambda utterance: self._seconds(utterance) + rng.uniform(0, 0.5))
        batches = list(self._cut(order))
        rng.shuffle(batches)
        return batches

    def _epoch_utterances(self, rng: Rng) -> list[Utterance]:
        chosen: list[Utterance] = []
        for index, clip in enumerate(self._clips):
            repeats = self._mixture.repeats.get(clip.set, 1.0)
            chosen += [(index,)] * (int(repeats) + (rng.random() < repeats % 1))
        joined = int(len(chosen) * self._mixture.joined_share)
        chosen += [
            tuple(rng.integers(len(self._clips), size=rng.integers(2, MOST_JOINED + 1)).tolist()) for _ in range(joined)
        ]
        chosen += [()] * int(len(chosen) * self._mixture.empty_share)
        return [utterance for utterance in chosen if self._seconds(utterance) <= self._layout.contexts[-1] - MARGIN]

    def _seconds(self, utterance: Utterance) -> float:
        pause = (PAUSE[0] + PAUSE[1]) / 2 if len(utterance) > 1 else 0.4
        return sum(self._clips[index].seconds + pause for index in utterance) or 2.0

    def _cut(self, order: Sequence[Utterance]) -> Iterator[list[Utterance]]:
        batch: list[Utterance] = []
        for utterance in order:
            # Speed and surrounding silence lengthen a clip by up to a sixth and a second.
            padded = (self._seconds(utterance) * 1.16 + 0.7) * (len(batch) + 1)
            if batch and (padded > self._mixture.seconds or len(batch) == self._mixture.most_rows):
                yield batch
                batch = []
            batch.append(utterance)
        yield batch

    def _wave(self, utterance: Utterance, rng: Rng, strength: float) -> Waveform:
        if not utterance:
            return noise_alone(int(rng.uniform(0.4, 4.5) * SAMPLE_RATE), rng, self._noises)
        parts: list[Waveform] = []
        for index in utterance:
            if parts:
                parts.append(np.zeros(int(rng.uniform(*PAUSE) * SAMPLE_RATE), np.float32))
            parts.append(self._corpus.waveform(self._clips[index]))
        babble = self._corpus.waveform(self._clips[rng.integers(len(self._clips))])
        wave = augment_waveform(np.concatenate(parts), rng, strength, self._noises.all, babble)
        return wave[: int(self._layout.contexts[-1] * SAMPLE_RATE)]

    def _text(self, utterance: Utterance) -> str:
        return " ".join(self._clips[index].text for index in utterance)

    def _labelled(self, mel: Tensor, texts: Sequence[str]) -> Batch:
        inputs, labels = laid_out(self._layout, texts)
        spelled = [[CHARACTERS.index(character) + 1 for character in normalise(text)] for text in texts]
        return Batch(mel, inputs, labels, torch.tensor([c for text in spelled for c in text], dtype=torch.long),
                     torch.tensor([len(text) for text in spelled]))  # fmt: skip


def laid_out(layout: Layout, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Inputs and labels of teacher forcing, as in `Batch`."""
    rows = [[*layout.prompt, *layout.tokens(text), layout.end] for text in texts]
    length = max(map(len, rows)) - 1
    inputs = torch.full((len(rows), length), layout.end)
    labels = torch.full((len(rows), length), IGNORED)
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        inputs[number, : len(row) - 1] = torch.tensor(row[:-1])
        labels[number, : len(row) - 1] = torch.tensor(row[1:])
        # The prompt is given, not said; but where nothing is said, "no speech" stands second, as Whisper has it.
        labels[number, : len(layout.prompt) - 1] = IGNORED
        if not text and layout.no_speech is not None:
            labels[number, 0] = layout.no_speech
        elif layout.no_speech is not None:
            labels[number, 0] = row[1]
    return inputs, labels


class Staged(Dataset[Batch]):
    """Several mixtures one after another. stages: (first step, its batches), ascending from step 0."""

    def __init__(self, stages: Sequence[tuple[int, Batches]]) -> None:
        self._stages = stages

    def __getitem__(self, step: int) -> Batch:
        return next(batches for first, batches in reversed(self._stages) if step >= first)[step]


def clips_of(corpus: Corpus, split: str, only: str = "", at_most: int = 10**9) -> list[Clip]:
    """The clips with a transcript of a split whose set begins with `only`, evenly chosen when more than `at_most`."""
    clips = [clip for clip in corpus.split(split) if clip.transcribed and clip.set.startswith(only)]
    return clips[:: max(1, -(-len(clips) // at_most))]
