"""How good a checkpoint is, through the service's own engine and pipeline.

Owns the measurements and their table. Knows nothing of training.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jiwer
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from distillation.corpus import Clip, Corpus
from distillation.text import normalise
from streaming.job import ALWAYS, NEVER, SAMPLE_RATE, Job, Result, Waveform

if TYPE_CHECKING:
    from streaming.whisper.engine import Engine


class Transcriber:
    """The engine with texts instead of tokens. `teacher` decides everything when asked for, else nothing."""

    def __init__(self, engine: Engine, teacher: bool = False) -> None:
        self.engine = engine
        self._ask_teacher_below = ALWAYS if teacher else NEVER
        self._tokenizer = Tokenizer.from_file(str(engine.tokenizer_file))

    def results(self, waves: Sequence[Waveform]) -> list[Result]:
        """
        Raises:
            RuntimeError: a job failed.
        """
        results = self.engine.run([Job(wave, ask_teacher_below=self._ask_teacher_below) for wave in waves])
        for result in results:
            if result.error:
                raise RuntimeError(result.error)
        return results

    def text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens))).strip()

    def transcribe(self, waves: Sequence[Waveform]) -> list[str]:
        return [self.text(result.tokens) for result in self.results(waves)]


@dataclass(frozen=True, slots=True)
class Score:
    """Word errors of a set. `substituted`, `deleted`, `inserted` and `words` are counts."""

    clips: int
    words: int
    substituted: int
    deleted: int
    inserted: int

    @property
    def wer(self) -> float:
        return (self.substituted + self.deleted + self.inserted) / max(1, self.words)


def score(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Both sides in the corpus's style: lower case, letters and apostrophes."""
    output = jiwer.process_words([normalise(text) for text in references], [normalise(text) for text in hypotheses])
    words = output.hits + output.substitutions + output.deletions
    return Score(len(references), words, output.substitutions, output.deletions, output.insertions)


def hear(corpus: Corpus, clips: Sequence[Clip], transcriber: Transcriber, batch: int = 8) -> list[str]:
    """The text of each clip. Clips are given the margins that the service's endpointing leaves around speech."""
    order = sorted(range(len(clips)), key=lambda index: clips[index].samples)
    texts = [""] * len(clips)
    for start in tqdm(range(0, len(order), batch), desc="evaluate", unit="batch", leave=False):
        indices = order[start : start + batch]
        waves = [with_margins(corpus.waveform(clips[index])) for index in indices]
        for index, text in zip(indices, transcriber.transcribe(waves), strict=True):
            texts[index] = text
    return texts


def with_margins(wave: Waveform, before: float = 0.2, after: float = 0.2) -> Waveform:
    return np.pad(wave, (int(before * SAMPLE_RATE), int(after * SAMPLE_RATE)))


def seconds_per_clip(waves: Sequence[Waveform], transcriber: Transcriber, rounds: int = 3) -> tuple[float, float]:
    """Median and spread (max - min) over rounds of the mean time of a clip, one at a time."""
    means = []
    for _ in range(rounds):
        began = time.perf_counter()
        for wave in waves:
            transcriber.results([wave])
        means.append((time.perf_counter() - began) / len(waves))
    return statistics.median(means), max(means) - min(means)
