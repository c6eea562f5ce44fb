"""What a student learns from: a clip, or the beginning of one, with what its teacher said of it.

Owns the join of corpus, labels and distributions. Knows nothing of batches, models or losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distillation.corpus import Clip, Corpus
from distillation.distributions import KEPT, Distributions
from distillation.label import Filter, Label, LabelsError, joined
from streaming.job import Waveform


@dataclass(frozen=True, slots=True)
class Lesson:
    """A clip with what its teacher said of it.

    Attributes:
        clip: all of it, or the beginning of it that was heard.
        begins: whether the clip continues behind it, as speech does behind a partial.
        tokens: of the teacher's text.
        place: the number of the first record of the teacher's distributions.
    """

    clip: Clip
    begins: bool
    tokens: tuple[int, ...]
    place: int

    @property
    def seconds(self) -> float:
        return self.clip.seconds


class Lessons:
    """The lessons that a filter keeps, in the corpus's order, with their distributions.

    Args:
        corpus: the clips.
        labels: the teacher's texts of these.
        distributions: the file that belongs to the labels.
        choice: the filter.

    Raises:
        LabelsError: the filter keeps none, the labels are of another corpus, or their file has fewer records than they
            need.
    """

    def __init__(self, corpus: Corpus, labels: Sequence[Label], distributions: Path, choice: Filter) -> None:
        self._corpus = corpus
        self._distributions = Distributions(distributions)
        self.all = [
            _lesson(each, clip) for each, clip in joined(corpus, labels) if choice.judge(each, clip.text) == "kept"
        ]
        if not self.all:
            raise LabelsError(
                f"no label is within {choice.wer:.0%} word errors of its reference, or confident enough without one: "
                "is it the right teacher?"
            )
        if any(each.place + len(each.tokens) + 1 > len(self._distributions) for each in self.all):
            raise LabelsError(
                f"{distributions} is shorter than its labels: `whisperd distill label` with another --out makes both"
            )

    def waveform(self, lesson: Lesson) -> Waveform:
        return self._corpus.waveform(lesson.clip)

    def distributions(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Return the teacher's likeliest tokens at each place of the text and at its end, with their log-probabilities.

        Both are `[len(tokens) + 1, KEPT]`.
        """
        return self._distributions.read(lesson.place, len(lesson.tokens) + 1)


def _lesson(label: Label, clip: Clip) -> Lesson:
    return Lesson(clip, label.samples is not None, tuple(label.tokens), label.place)


def certain(token: int) -> tuple[Tensor, Tensor]:
    """Return the distribution of one place about which a teacher has no doubt.

    Returns:
        Tokens and log-probabilities, `[1, KEPT]` each.
    """
    log_probs = torch.full((1, KEPT), -torch.inf)
    log_probs[0, 0] = 0.0
    return torch.full((1, KEPT), token), log_probs
