"""One batch of jobs through one model: what it is made of, how jobs become rows, and what a runner of batches is.

There are two, which say the same: `eager_runner.py` and `graph_runner.py`. Knows nothing of who decides, of confidence
or of results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from streaming.job import SAMPLE_RATE, Captured, Job
from streaming.whisper.checkpoint import Checkpoint
from streaming.whisper.mel import LogMel
from streaming.whisper.model import Decoder, Encoder, Memory
from streaming.whisper.rows import Draft, Row
from streaming.whisper.rules import LogitRules

LARGEST_BATCH = 32
"""Jobs in one pass; more are taken in turns, so that memory stays bounded."""

WORTHWHILE = 4
"""The student proposes to the teacher where the teacher has at least so many times its layers: below, a proposal of
a few tokens costs as much as the teacher's own steps that it saves."""

LOOKAHEAD = 8
"""Tokens in such a proposal."""


@dataclass(frozen=True, slots=True)
class Model:
    """One checkpoint on the device: its parts, which keep nothing between calls."""

    role: Literal["student", "teacher"]
    checkpoint: Checkpoint
    mel: LogMel
    encoder: Encoder
    decoder: Decoder
    rules: LogitRules

    def context(self, job: Job) -> float:
        """The smallest context that holds the job's audio."""
        return next(s for s in self.checkpoint.contexts if len(job.audio) <= round(s * SAMPLE_RATE))

    def features(self, jobs: Sequence[Job], seconds: float) -> Tensor:
        """What the encoder hears: [jobs, mels, frames]."""
        return self.mel([job.audio for job in jobs], seconds).to(self.encoder.conv1.weight.dtype)

    def listen(self, jobs: Sequence[Job], seconds: float) -> Tensor:
        """Encoder states [jobs, positions, d_model]."""
        states: Tensor = self.encoder(self.features(jobs, seconds))
        return states.to(self.decoder.embed_tokens.weight.dtype)


@dataclass(frozen=True, slots=True)
class Hearing:
    """What one model made of a batch of jobs: their rows and languages, in order.

    memory: of some of the rows' audio, by their numbers; a copy.
    memory_of: of one row's, by its number; a view, which holds until the next batch.
    """

    model: Model
    rows: list[Row]
    languages: list[str | None]
    memory: Callable[[Sequence[int]], Memory]
    memory_of: Callable[[int], Memory]

    @property
    def said(self) -> Iterable[tuple[Row, str | None]]:
        return zip(self.rows, self.languages, strict=True)


class Runner(Protocol):
    """How batches of jobs of one context are heard. largest: jobs in a batch."""

    @property
    def largest(self) -> int: ...

    def prepare(self) -> Captured:
        """All that would be slow the first time. Called once, before anything is heard."""
        ...

    def student(self, jobs: Sequence[Job]) -> Hearing:
        """All jobs, with their own drafts."""
        ...

    def teacher(self, heard: Hearing, jobs: Sequence[Job], indices: Sequence[int]) -> Hearing:
        """Some of the jobs that the student heard last, with its texts as drafts: rows in the order of `indices`."""
        ...


def proposes(student: Model, teacher: Model) -> bool:
    """Whether the student's next tokens are worth having where the teacher departs from its text."""
    layers = (model.checkpoint.dimensions.decoder_layers for model in (teacher, student))
    return next(layers) >= WORTHWHILE * next(layers)


def one_encoder(student: Model, teacher: Model) -> bool:
    return teacher.encoder is student.encoder and teacher.checkpoint.contexts == student.checkpoint.contexts


def languages_of(model: Model, jobs: Sequence[Job], detect: Callable[[], list[str]]) -> list[str | None]:
    """Of each job; `detect` is asked for those of all of them where one does not tell."""
    if not model.rules.grammar.languages:
        return ["en"] * len(jobs)
    if all(job.language is not None for job in jobs):
        return [job.language for job in jobs]
    return [job.language or found for job, found in zip(jobs, detect(), strict=True)]


def rows_of(
    model: Model, jobs: Sequence[Job], languages: Sequence[str | None], drafts: Sequence[Sequence[int]]
) -> list[Row]:
    """Each job's text before its first pass."""
    rules, eot = model.rules, model.rules.grammar.eot
    rows = []
    for job, language, draft in zip(jobs, languages, drafts, strict=True):
        prompt = rules.prompt(language, job.task, job.timestamps)
        limit = rules.limit(prompt, model.decoder.positions, job.max_tokens)
        # What a draft says behind an end of text is no part of the text.
        text = draft[: draft.index(eot)] if eot in draft else draft
        rows.append(Row(prompt, limit, Draft(text), job.timestamps, eot))
    return rows


def count_detections(model: Model, jobs: Sequence[Job], rows: Sequence[Row]) -> None:
    """A language that had to be found took a pass."""
    for job, row in zip(jobs, rows, strict=True):
        row.passes += bool(model.rules.grammar.languages) and job.language is None
