"""One batch of jobs through one model: what it is made of, how jobs become rows, and what a runner of batches is.

Owns what the two runners share, which give the same results: `eager_runner.py` and `graph_runner.py`. Knows nothing of
who decides, of confidence or of results.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from streaming.job import SAMPLE_RATE, Captured, Job
from streaming.whisper.biasing import Vocabularies
from streaming.whisper.checkpoint import Checkpoint
from streaming.whisper.mel import LogMel
from streaming.whisper.model import Decoder, Encoder, Memory
from streaming.whisper.precision import widen_logits
from streaming.whisper.rows import Draft, Row
from streaming.whisper.rules import LogitRules

log = logging.getLogger(__name__)

LARGEST_BATCH = 32
"""Jobs in one pass; more are taken in turns, so that memory stays bounded."""

WORTHWHILE = 4
"""The student proposes to the teacher where the teacher has at least so many times its layers: below, a proposal of
a few tokens costs as much as the teacher's own steps that it saves."""

LOOKAHEAD = 8
"""Tokens in such a proposal."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One checkpoint on the device: its parts, which keep nothing between calls."""

    role: Literal["student", "teacher"]
    checkpoint: Checkpoint
    mel: LogMel
    encoder: Encoder
    decoder: Decoder
    rules: LogitRules
    vocabularies: Vocabularies

    def context(self, job: Job) -> float:
        """Return the smallest context that holds the job's audio, in seconds."""
        return next(s for s in self.checkpoint.contexts if len(job.audio) <= round(s * SAMPLE_RATE))

    def features(self, jobs: Sequence[Job], seconds: float) -> Tensor:
        """Return what the encoder hears: `[jobs, mels, frames]`."""
        return self.mel([job.audio for job in jobs], seconds).to(self.encoder.conv1.weight.dtype)

    def listen(self, jobs: Sequence[Job], seconds: float) -> Tensor:
        """Return encoder states, `[jobs, positions, d_model]`."""
        states: Tensor = self.encoder(self.features(jobs, seconds))
        return states.to(self.decoder.embed_tokens.weight.dtype)


@dataclass(frozen=True, slots=True)
class Hearing:
    """What one model made of a batch of jobs.

    Attributes:
        model: the model.
        rows: of the jobs, in order.
        languages: of the jobs, in order.
        memory: returns a copy of the audio of some rows, by their numbers.
        memory_of: returns one row's as a view, which is valid until the next batch.
    """

    model: LoadedModel
    rows: list[Row]
    languages: list[str | None]
    memory: Callable[[Sequence[int]], Memory]
    memory_of: Callable[[int], Memory]

    @property
    def said(self) -> Iterable[tuple[Row, str | None]]:
        return zip(self.rows, self.languages, strict=True)


class Runner(Protocol):
    """How batches of jobs of one context are heard.

    Attributes:
        largest: jobs in a batch.
    """

    @property
    def largest(self) -> int: ...

    def prepare(self) -> Captured:
        """Do all that would be slow the first time; called once, before anything is heard."""
        ...

    def student(self, jobs: Sequence[Job]) -> Hearing:
        """Run all jobs through the student, with their own drafts."""
        ...

    def teacher(self, heard: Hearing, jobs: Sequence[Job], indices: Sequence[int]) -> Hearing:
        """Run some of the jobs that the student heard last through the teacher, with the student's texts as drafts.

        Args:
            heard: what the student made of them.
            jobs: all of that batch.
            indices: those to run.

        Returns:
            Rows in the order of `indices`.
        """
        ...


_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Of attention, the first that can is taken: the first without a mask, the second with one."""


def prepare_for(device: torch.device, models: Iterable[LoadedModel | None]) -> None:
    """Do what is to be done to models once, on a GPU, and tell with which numbers and kernels they compute."""
    if device.type != "cuda":
        return
    for model in models:
        if model is not None:
            logits = "in float32" if widen_logits(model.decoder) else "as the weights are"
            log.info("the %s's logits are %s", model.role, logits)
    log.info("attention by the first that can of %s", ", ".join(backend.name.lower() for backend in _BACKENDS))


def pinned_attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Let only some kernels of attention be taken on a GPU: another one, by shape or version, rounds otherwise."""
    return sdpa_kernel(_BACKENDS, set_priority=True) if device.type == "cuda" else contextlib.nullcontext()


def proposes(student: LoadedModel, teacher: LoadedModel) -> bool:
    """Return whether the student's next tokens are worth having where the teacher departs from its text."""
    layers = (model.checkpoint.dimensions.decoder_layers for model in (teacher, student))
    return next(layers) >= WORTHWHILE * next(layers)


def one_encoder(student: LoadedModel, teacher: LoadedModel) -> bool:
    return teacher.encoder is student.encoder and teacher.checkpoint.contexts == student.checkpoint.contexts


def languages_of(model: LoadedModel, jobs: Sequence[Job], detect: Callable[[], list[list[float]]]) -> list[str | None]:
    """Return the language of each job.

    Args:
        model: the model.
        jobs: the jobs of a batch.
        detect: asked for all of them where one does not tell: returns how likely each of the grammar's languages is,
            in its order. The likeliest of those that the job allows is taken.
    """
    known = model.rules.grammar.languages
    if not known:
        return ["en"] * len(jobs)
    if all(job.language is not None for job in jobs):
        return [job.language for job in jobs]
    return [job.language or _likeliest(known, job.languages, found) for job, found in zip(jobs, detect(), strict=True)]


def _likeliest(known: Iterable[str], allowed: Container[str], likely: Sequence[float]) -> str:
    """Return the likeliest language of those allowed; nothing allowed is all."""
    ranked = sorted(zip(known, likely, strict=True), key=itemgetter(1), reverse=True)
    return next((code for code, _ in ranked if code in allowed), ranked[0][0])


def rows_of(
    model: LoadedModel,
    jobs: Sequence[Job],
    languages: Sequence[str | None],
    drafts: Sequence[Sequence[int]],
    vocabularies: Sequence[int] | None = None,
) -> list[Row]:
    """Return each job's text as it is before its first pass.

    Args:
        model: the model that will say it.
        jobs: the jobs of a batch.
        languages: of the jobs.
        drafts: of the jobs.
        vocabularies: the numbers of the jobs' vocabularies in the batch; None for no job.
    """
    rules, eot = model.rules, model.rules.grammar.eot
    # As much of the text before as OpenAI's decoder takes (whisper/decoding.py): half of the positions are for text.
    most = max(1, model.decoder.positions // 2 - 1)
    rows = []
    numbers = [0] * len(jobs) if vocabularies is None else vocabularies
    for job, language, draft, vocabulary in zip(jobs, languages, drafts, numbers, strict=True):
        prompt = rules.prompt(language, job.task, job.timestamps, job.previous[-most:])
        limit = rules.limit(prompt, model.decoder.positions, job.max_tokens)
        # What a draft says behind an end of text is no part of the text.
        text = draft[: draft.index(eot)] if eot in draft else draft
        told = prompt.index(rules.grammar.sot)
        rows.append(Row(prompt, limit, Draft(text), job.timestamps, eot, vocabulary, told))
    return rows


def count_detections(model: LoadedModel, jobs: Sequence[Job], rows: Sequence[Row]) -> None:
    """Add the pass that it took to detect a language."""
    for job, row in zip(jobs, rows, strict=True):
        row.passes += bool(model.rules.grammar.languages) and job.language is None
