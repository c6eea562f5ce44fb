"""The order of training: which lessons make the batch of each step, and the batch itself.

Owns the mixture and its reproducibility: the batch of a step depends only on the seed and the step, so a training that
was stopped continues with the same batch. Knows nothing of losses.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distillation.augment import Rng, augment_waveform, features, noise_alone
from distillation.distributions import KEPT
from distillation.label import LabelsError
from distillation.lessons import Lesson, Lessons, certain
from distillation.model import Layout
from distillation.noise import Noises
from streaming.job import SAMPLE_RATE, Waveform

IGNORED = -100
AROUND = 1.1
"""Seconds of a window that are left free around speech: the silence around it takes its room."""
SLOWED = 1 / 0.86
"""By how much augmentation may lengthen speech."""

MOST_JOINED = 12
PAUSE = (0.05, 1.4)
"""Clips that follow one another in one example, at most, and the seconds between two of them: long windows are full of
speech, and few recordings are as long."""

Utterance = tuple[int, ...]
"""Indices of the lessons that follow one another in one example; none: noise alone."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """How lessons become batches.

    Attributes:
        seconds: padded audio in a batch.
        most_rows: examples in a batch.
        longest: seconds that a clip may last.
        empty_share: examples of noise alone, per clip.
        joined_share: examples of several clips one after another, per clip: recordings seldom fill a long window.
        roomy_share: share of the examples that get a larger window than the smallest that holds them, so that a clip is
            heard in several.
        strength: of the augmentation, 0 to 1.
        seed: of everything that is random.
    """

    seconds: float = 90.0
    most_rows: int = 32
    longest: float = 28.0
    empty_share: float = 0.03
    joined_share: float = 0.12
    roomy_share: float = 0.2
    strength: float = 0.5
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """The features and the targets of one step.

    Attributes:
        mel: log-mel features, `[rows, bins, frames]`.
        inputs: tokens, `[rows, length]`.
        labels: the next token of each input, `[rows, length]`; `IGNORED` where none counts.
        likeliest: the teacher's likeliest tokens for each label, `[rows, length, KEPT]`.
        log_probs: their log-probabilities, `[rows, length, KEPT]`; -inf where the teacher has no distribution.
    """

    mel: Tensor
    inputs: Tensor
    labels: Tensor
    likeliest: Tensor
    log_probs: Tensor


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a batch that is to be made.

    Attributes:
        utterance: what is said in it.
        window: its length in seconds.
    """

    utterance: Utterance
    window: float


class Batches(Dataset[Batch]):
    """A dataset in which `batches[step]` is the batch of that step.

    Raises:
        LabelsError: no lesson fits into the longest window.
    """

    def __init__(self, lessons: Lessons, noises: Noises, layout: Layout, mixture: Mixture) -> None:
        self._source = lessons
        self._layout = layout
        self._mixture = mixture
        self._lessons = [
            lesson
            for lesson in lessons.all
            if lesson.seconds <= mixture.longest and self._room([lesson]) <= layout.contexts[-1]
        ]
        if not self._lessons:
            raise LabelsError(
                f"with what augmentation adds, no clip fits into {layout.contexts[-1]:g} s, the student's longest "
                "window, and --longest: use shorter recordings"
            )
        self._noises = noises
        self._epoch_plan = functools.lru_cache(maxsize=16)(self._plan)

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self._mixture.seed, 7, step))
        examples = self._examples(step)
        waves = [self._wave(example, rng) for example in examples]
        mel = features(waves, examples[0].window, self._layout.mels, rng, self._mixture.strength)
        return self._taught(mel, [example.utterance for example in examples])

    def epoch_steps(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        return len(self._epoch_plan(epoch))

    @property
    def fingerprint(self) -> str:
        """A digest that changes with the lessons and the mixture."""
        listing = "\n".join(f"{each.clip.offset} {each.clip.samples} {each.tokens}" for each in self._lessons)
        return hashlib.sha256(f"{self._mixture} {self._layout.prompt} {listing}".encode()).hexdigest()

    def _examples(self, step: int) -> list[Example]:
        epoch = 0
        while step >= len(self._epoch_plan(epoch)):
            step -= len(self._epoch_plan(epoch))
            epoch += 1
        return self._epoch_plan(epoch)[step]

    def _plan(self, epoch: int) -> list[list[Example]]:
        """All batches of an epoch, each of one window."""
        rng = np.random.default_rng((self._mixture.seed, epoch))
        by_window: dict[float, list[Example]] = {}
        for utterance in self._utterances(rng):
            window = self._window(utterance, rng)
            by_window.setdefault(window, []).append(Example(utterance, window))
        batches: list[list[Example]] = []
        for window, examples in sorted(by_window.items()):
            rows = max(1, min(self._mixture.most_rows, int(self._mixture.seconds / window)))
            rng.shuffle(examples)
            batches += [examples[start : start + rows] for start in range(0, len(examples), rows)]
        order = rng.permutation(len(batches)).tolist()
        return [batches[place] for place in order]

    def _utterances(self, rng: Rng) -> Iterator[Utterance]:
        chosen: list[Utterance] = [(index,) for index in range(len(self._lessons))]
        count = len(chosen)
        whole = [index for index, lesson in enumerate(self._lessons) if not lesson.begins]
        joined = int(count * self._mixture.joined_share) if whole else 0
        chosen += [tuple(rng.choice(whole, size=rng.integers(2, MOST_JOINED + 1)).tolist()) for _ in range(joined)]
        chosen += [()] * int(count * self._mixture.empty_share)
        longest = self._layout.contexts[-1]
        return (utterance for utterance in chosen if self._room(self._lessons_of(utterance)) <= longest)

    def _lessons_of(self, utterance: Utterance) -> list[Lesson]:
        return [self._lessons[index] for index in utterance]

    def _room(self, lessons: Sequence[Lesson]) -> float:
        """Seconds that they may need one after another, augmented."""
        seconds = sum(lesson.seconds for lesson in lessons) + PAUSE[1] * max(0, len(lessons) - 1)
        return seconds * (SLOWED if self._mixture.strength else 1.0) + AROUND

    def _window(self, utterance: Utterance, rng: Rng) -> float:
        """The smallest that holds it, or one of the next two."""
        room = self._room(self._lessons_of(utterance))
        fits = [seconds for seconds in self._layout.contexts if seconds >= room][:3]
        if not utterance:
            fits = list(self._layout.contexts)
        roomy = len(fits) > 1 and rng.random() < self._mixture.roomy_share
        return fits[int(rng.integers(1, len(fits)))] if roomy else fits[0]

    def _wave(self, example: Example, rng: Rng) -> Waveform:
        samples = int(example.window * SAMPLE_RATE)
        if not example.utterance:
            return noise_alone(int(rng.uniform(0.4, min(4.5, example.window)) * SAMPLE_RATE), rng, self._noises)[
                :samples
            ]
        parts: list[Waveform] = []
        for index in example.utterance:
            if parts:
                parts.append(np.zeros(int(rng.uniform(*PAUSE) * SAMPLE_RATE), np.float32))
            parts.append(self._source.waveform(self._lessons[index]))
        babble = self._source.waveform(self._lessons[int(rng.integers(len(self._lessons)))])
        goes_on = self._lessons[example.utterance[-1]].begins
        wave = augment_waveform(
            np.concatenate(parts), rng, self._mixture.strength, self._noises.all, babble, goes_on=goes_on
        )
        return wave[:samples]

    def _taught(self, mel: Tensor, utterances: Sequence[Utterance]) -> Batch:
        texts = [[token for index in each for token in self._lessons[index].tokens] for each in utterances]
        inputs, labels = laid_out(self._layout, texts)
        likeliest = torch.full((*labels.shape, KEPT), self._layout.end)
        log_probs = torch.full((*labels.shape, KEPT), -torch.inf)
        first = len(self._layout.prompt) - 1  # the place that foretells the first token of a text
        for row, utterance in enumerate(utterances):
            tokens, scores = self._distributions(utterance)
            likeliest[row, first : first + len(tokens)] = tokens
            log_probs[row, first : first + len(tokens)] = scores
        return Batch(mel, inputs, labels, likeliest, log_probs)

    def _distributions(self, utterance: Utterance) -> tuple[Tensor, Tensor]:
        """Of joined clips all but the last go on where each ended: what was thought of its end is left out."""
        parts = [self._source.distributions(self._lessons[index]) for index in utterance]
        if not parts:
            return certain(self._layout.end)
        kept = [(tokens[:-1], scores[:-1]) for tokens, scores in parts[:-1]] + parts[-1:]
        return torch.cat([tokens for tokens, _ in kept]), torch.cat([scores for _, scores in kept])


def laid_out(layout: Layout, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of teacher forcing, as in `Batch`, for texts in tokens."""
    rows = [[*layout.prompt, *text, layout.end] for text in texts]
    length = max(map(len, rows)) - 1
    inputs = torch.full((len(rows), length), layout.end)
    labels = torch.full((len(rows), length), IGNORED)
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        inputs[number, : len(row) - 1] = torch.tensor(row[:-1])
        labels[number, : len(row) - 1] = torch.tensor(row[1:])
        # The prompt is given, not said; but where nothing is said, "no speech" stands second, as Whisper has it.
        labels[number, : len(layout.prompt) - 1] = IGNORED
        if layout.no_speech is not None and len(layout.prompt) > 1:
            labels[number, 0] = row[1] if text else layout.no_speech
    return inputs, labels
