"""The engine: jobs in, results out, nothing kept in between.

Owns loading a student and perhaps its teacher, warming up, batching by context, and when the teacher is asked. Knows
nothing of streams, sockets, or who waits for the results.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from streaming.job import ALWAYS, SAMPLE_RATE, Job, Result, isolated, utterance_confidence
from streaming.whisper.checkpoint import (
    Checkpoint,
    CheckpointError,
    open_checkpoint,
    read_weights,
    require_same_vocabulary,
)
from streaming.whisper.decode import Proposer, decode, detect_languages
from streaming.whisper.mel import LogMel
from streaming.whisper.model import Decoder, Encoder, Memory, build_decoder, build_encoder, encoder_weights
from streaming.whisper.precision import LEAST_GAIN, bfloat16_gain
from streaming.whisper.rows import Draft, Row
from streaming.whisper.rules import Rules
from streaming.whisper.times import attention, default_heads, token_times

log = logging.getLogger(__name__)

LARGEST_BATCH = 32
"""Jobs in one pass; more are taken in turns, so that memory stays bounded."""

WORTHWHILE = 4
"""The student proposes to the teacher where the teacher has at least so many times its layers: below, a proposal of
a few tokens costs as much as the teacher's own steps that it saves."""

LOOKAHEAD = 8
"""Tokens in such a proposal."""

NOT_FINITE = "the model's output is not finite: its weights may be damaged, or need a wider dtype"

_DTYPES = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "mixed": torch.float32,
}  # fmt: skip
"""Of the decoder, and of the encoder too unless it is mixed."""


@dataclass(frozen=True, slots=True)
class Model:
    """One checkpoint on the device: its parts, which keep nothing between calls."""

    role: Literal["student", "teacher"]
    checkpoint: Checkpoint
    mel: LogMel
    encoder: Encoder
    decoder: Decoder
    rules: Rules

    def context(self, job: Job) -> float:
        """The smallest context that holds the job's audio."""
        return next(s for s in self.checkpoint.contexts if len(job.audio) <= round(s * SAMPLE_RATE))

    def listen(self, jobs: Sequence[Job], seconds: float) -> Tensor:
        """Encoder states [jobs, positions, d_model]."""
        features = self.mel([job.audio for job in jobs], seconds)
        states: Tensor = self.encoder(features.to(self.encoder.conv1.weight.dtype))
        return states.to(self.decoder.embed_tokens.weight.dtype)


@dataclass(frozen=True, slots=True)
class _Hearing:
    """What one model made of a batch of jobs: their rows, languages and memory, in order."""

    model: Model
    memory: Memory
    rows: list[Row]
    languages: list[str | None]

    @property
    def said(self) -> Iterable[tuple[Row, str | None]]:
        return zip(self.rows, self.languages, strict=True)


class Engine:
    """Holds the weights and no state: `run` may be called with any jobs in any order."""

    def __init__(self, student: Model, teacher: Model | None, device: torch.device, dtype: str) -> None:
        self._student, self._teacher = student, teacher
        checkpoints = [model.checkpoint for model in (student, teacher) if model is not None]
        self.student = student.checkpoint.name
        self.teacher = None if teacher is None else teacher.checkpoint.name
        self.device = str(device)
        self.dtype = dtype
        self.tokenizer_file: Path = student.checkpoint.tokenizer_file
        self.eot = student.checkpoint.grammar.eot
        longest = min(checkpoint.contexts[-1] for checkpoint in checkpoints)
        self.contexts = tuple(seconds for seconds in student.checkpoint.contexts if seconds <= longest)
        self.multilingual = bool(student.checkpoint.grammar.languages)
        self.languages = tuple(student.checkpoint.grammar.languages) or ("en",)
        self._one_encoder = teacher is not None and (
            teacher.encoder is student.encoder and teacher.checkpoint.contexts == student.checkpoint.contexts
        )

    @property
    def models(self) -> tuple[Model, ...]:
        """The student, and the teacher where there is one: for measuring their parts."""
        return (self._student,) if self._teacher is None else (self._student, self._teacher)

    @staticmethod
    def load(
        student: str, teacher: str | None, device: str = "auto", *, dtype: str = "auto", threads: int | None = None
    ) -> Engine:
        """Load a pair, or a student alone.

        student, teacher: a shipped name, a directory, or a hub name. device: "auto", "cpu", "cuda", "cuda:1"...
        dtype: "float32", "bfloat16", "float16", "mixed" (float32 with an encoder in bfloat16) or "auto" (bfloat16 on a
        GPU; on a CPU mixed where that is measured to be faster, else float32). threads: how many the CPU may use;
        PyTorch's choice where None. Raises CheckpointError, and ValueError for a device or dtype that is not there.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        place = _device(device)
        kind = _dtype(dtype, place)
        mixed = dtype == "mixed"
        first = open_checkpoint(student, "student")
        second = None if teacher is None else open_checkpoint(teacher, "teacher")
        if second is not None:
            require_same_vocabulary(first, second)
        hears = _load(first, "student", place, kind, None)
        checks = None if second is None else _load(second, "teacher", place, kind, hears)
        if dtype == "auto" and place.type == "cpu":
            gain = bfloat16_gain(hears.encoder)
            log.info("an encoder layer in bfloat16 is %.2f times as fast as in float32 on this processor", gain)
            mixed = gain >= LEAST_GAIN
        if mixed:
            for model in (hears, checks):
                if model is not None:
                    model.encoder.to(torch.bfloat16)
        engine = Engine(hears, checks, place, "mixed" if mixed else str(kind).removeprefix("torch."))
        log.info(
            "student %s, teacher %s, on %s in %s precision, %s encoder",
            engine.student,
            engine.teacher or "none",
            engine.device,
            engine.dtype,
            "one shared" if engine._one_encoder or checks is None else "two",
        )
        return engine

    def warm(self) -> None:
        """Run canaries of every context and some batch sizes, so that the first real job is not the slow one.

        Raises RuntimeError when a canary fails: such an engine must not be called ready.
        """
        noise = np.random.default_rng(0)
        for seconds in self.contexts:
            audio = noise.normal(0.0, 0.01, round(seconds * SAMPLE_RATE)).astype(np.float32)
            canary = Job(audio, times=True, max_tokens=4, ask_teacher_below=ALWAYS)
            for count in (1, 2, 4) if self.device != "cpu" else (1, 2):
                # A device that is too small for the larger batches will do with smaller ones, as it does later.
                for result in isolated(self.run, [canary] * count):
                    if result.error is not None:
                        raise RuntimeError(f"the canary decode of {seconds:g} s failed: {result.error}")

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Results in the order of the jobs. What can be seen to be wrong with a job is its result's `error`.

        Whatever torch raises in the midst of a batch comes out: `isolated` finds whose fault it was.
        """
        results: dict[int, Result] = {}
        groups: dict[float, list[int]] = {}
        for index, job in enumerate(jobs):
            fault = self._fault(job)
            if fault is not None:
                results[index] = Result(revision=job.revision, error=fault)
            else:
                groups.setdefault(self._student.context(job), []).append(index)
        for group in groups.values():
            for start in range(0, len(group), LARGEST_BATCH):
                batch = group[start : start + LARGEST_BATCH]
                results.update(zip(batch, self._batch([jobs[index] for index in batch]), strict=True))
        return [results[index] for index in range(len(jobs))]

    def _fault(self, job: Job) -> str | None:
        """What makes a job impossible, in words, or None."""
        audio = job.audio
        if not isinstance(audio, np.ndarray) or audio.ndim != 1 or audio.dtype != np.float32:
            return "audio must be a float32 array of shape [samples]"
        if len(audio) == 0:
            return "audio is empty"
        longest = self.contexts[-1]
        if len(audio) > round(longest * SAMPLE_RATE):
            return f"audio is {len(audio) / SAMPLE_RATE:.2f} s long, the longest context is {longest:g} s"
        if not np.isfinite(audio).all():
            return "audio has samples that are not finite"
        vocabulary = self._student.checkpoint.dimensions.vocabulary
        if not all(isinstance(token, int) and 0 <= token < vocabulary for token in job.draft):
            return f"the draft has tokens outside of the vocabulary (0..{vocabulary - 1})"
        if job.max_tokens is not None and job.max_tokens < 1:
            return f"max_tokens must be at least 1, got {job.max_tokens}"
        try:
            # Any language will do where it is to be detected: the prompt's other parts are checked all the same.
            language = job.language or next(iter(self._student.rules.grammar.languages), None)
            self._student.rules.prompt(language, job.task, job.timestamps)
        except ValueError as error:
            return str(error)
        return None

    def _batch(self, jobs: Sequence[Job]) -> list[Result]:
        """Jobs of one context: the student hears all of them, the teacher those that the student is unsure of."""
        states = self._student.listen(jobs, self._student.context(jobs[0]))
        heard = _hear(self._student, jobs, states, [job.draft for job in jobs])
        results = [_student_result(job, *said) for job, said in zip(jobs, heard.said, strict=True)]
        unsure = [
            index
            for index, (job, result) in enumerate(zip(jobs, results, strict=True))
            if self._teacher is not None and result.error is None and result.student_confidence < job.ask_teacher_below
        ]
        decided = [index for index in range(len(jobs)) if index not in unsure]
        _add_times(heard, jobs, results, dict(zip(decided, decided, strict=True)))
        if self._teacher is not None:
            for indices in self._teacher_batches(self._teacher, jobs, unsure):
                checked = self._check(self._teacher, heard, jobs, states, indices)
                for index, said in zip(indices, checked.said, strict=True):
                    results[index] = _teacher_result(results[index], *said)
                _add_times(checked, jobs, results, dict(enumerate(indices)))
        return results

    def _teacher_batches(self, teacher: Model, jobs: Sequence[Job], indices: Sequence[int]) -> Iterable[list[int]]:
        """Those of `indices` that the teacher can take together. With an encoder of its own it has its own contexts."""
        groups: dict[float, list[int]] = {}
        for index in indices:
            groups.setdefault(0.0 if self._one_encoder else teacher.context(jobs[index]), []).append(index)
        return groups.values()

    def _check(
        self, teacher: Model, heard: _Hearing, jobs: Sequence[Job], states: Tensor, indices: Sequence[int]
    ) -> _Hearing:
        """The teacher's own hearing of some of the jobs, with the student's text as the draft."""
        asked = [jobs[index] for index in indices]
        own = None if self._one_encoder else teacher.listen(asked, teacher.context(asked[0]))
        drafts = [heard.rows[index].text for index in indices]
        student = heard.model
        proposer = None
        if teacher.checkpoint.dimensions.decoder_layers >= WORTHWHILE * student.checkpoint.dimensions.decoder_layers:
            chosen = heard.memory.select(torch.tensor(indices, device=heard.memory.device))
            proposer = Proposer(student.decoder, chosen, student.rules, LOOKAHEAD)
        return _hear(teacher, asked, states[list(indices)] if own is None else own, drafts, proposer)


def _hear(
    model: Model,
    jobs: Sequence[Job],
    states: Tensor,
    drafts: Sequence[Sequence[int]],
    proposer: Proposer | None = None,
) -> _Hearing:
    """Decode jobs from encoder states of the same order."""
    memory = model.decoder.remember(states)
    rules, eot = model.rules, model.rules.grammar.eot
    languages: list[str | None] = [job.language for job in jobs]
    detecting = model.rules.grammar.languages and None in languages
    if detecting:
        detected = detect_languages(model.decoder, memory, rules)
        languages = [given or found for given, found in zip(languages, detected, strict=True)]
    elif not rules.grammar.languages:
        languages = ["en"] * len(jobs)
    rows = []
    for job, language, draft in zip(jobs, languages, drafts, strict=True):
        prompt = rules.prompt(language, job.task, job.timestamps)
        limit = rules.limit(prompt, model.decoder.positions, job.max_tokens)
        # What a draft says behind an end of text is no part of the text.
        text = draft[: draft.index(eot)] if eot in draft else draft
        rows.append(Row(prompt, limit, Draft(text), job.timestamps, eot))
    decode(model.decoder, memory, rules, rows, proposer)
    if detecting:
        for job, row in zip(jobs, rows, strict=True):
            row.passes += job.language is None
    return _Hearing(model, memory, rows, languages)


def _student_result(job: Job, row: Row, language: str | None) -> Result:
    if not all(map(math.isfinite, row.log_probs)):
        return Result(revision=job.revision, error=NOT_FINITE)
    return Result(
        revision=job.revision,
        tokens=tuple(row.text),
        log_probs=tuple(row.log_probs),
        accepted=row.accepted,
        model="student",
        student_tokens=tuple(row.text),
        student_confidence=utterance_confidence(tuple(row.log_probs)),
        language=language,
        no_speech=row.no_speech,
        passes=row.passes,
    )


def _teacher_result(student: Result, row: Row, language: str | None) -> Result:
    """What the teacher decided, on top of what the student said."""
    if not all(map(math.isfinite, row.log_probs)):
        return Result(revision=student.revision, error=NOT_FINITE)
    return replace(
        student,
        tokens=tuple(row.text),
        log_probs=tuple(row.log_probs),
        model="teacher",
        language=language,
        no_speech=row.no_speech,
        teacher_passes=row.passes,
        teacher_accepted=row.accepted,
    )


def _add_times(heard: _Hearing, jobs: Sequence[Job], results: list[Result], places: Mapping[int, int]) -> None:
    """Align those texts whose jobs want it. places: a row of `heard` to its job's and result's index."""
    wanted = {row: index for row, index in places.items() if jobs[index].times and heard.rows[row].text}
    if not wanted:
        return
    sizes = heard.model.checkpoint.dimensions
    heads = heard.model.checkpoint.alignment_heads or default_heads(sizes.decoder_layers, sizes.decoder_heads)
    rows = [heard.rows[row] for row in wanted]
    memory = heard.memory.select(torch.tensor(list(wanted), device=heard.memory.device))
    scores = attention(heard.model.decoder, memory, [[*row.prompt, *row.text] for row in rows], heads)
    for row, score, index in zip(rows, scores, wanted.values(), strict=True):
        first = len(row.prompt) - 1  # the position that foretells the first token of the text
        spoken = [token < row.eot for token in row.text]
        times = token_times(score[:, first : first + len(spoken) + 1], spoken, jobs[index].audio, sizes.median_filter)
        result = replace(results[index], times=times)
        passes = "teacher_passes" if heard.model.role == "teacher" else "passes"
        results[index] = replace(result, **{passes: getattr(result, passes) + 1})


def _load(
    checkpoint: Checkpoint,
    role: Literal["student", "teacher"],
    device: torch.device,
    dtype: torch.dtype,
    sibling: Model | None,
) -> Model:
    """A checkpoint on the device, with the sibling's encoder where the weights are the same."""
    return assemble(checkpoint, role, read_weights(checkpoint, dtype), device, sibling)


def assemble(
    checkpoint: Checkpoint,
    role: Literal["student", "teacher"],
    weights: Mapping[str, Tensor],
    device: torch.device,
    sibling: Model | None = None,
) -> Model:
    """A model of weights by the layout's names (`read_weights`).

    Raises CheckpointError when they do not fit the checkpoint's dimensions.
    """
    sizes = checkpoint.dimensions
    try:
        if sibling is not None and _same(sibling.encoder, encoder_weights(weights)):
            encoder = sibling.encoder
        else:
            encoder = build_encoder(sizes, weights).to(device)
        decoder = build_decoder(sizes, weights).to(device)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.directory}: {error}") from error
    rules = Rules(checkpoint.grammar, sizes.vocabulary, device)
    return Model(role, checkpoint, LogMel(sizes.mels, device), encoder, decoder, rules)


def _same(encoder: Encoder, weights: Mapping[str, Tensor]) -> bool:
    own = encoder.state_dict()
    return own.keys() == weights.keys() and all(
        own[name].shape == value.shape and torch.equal(own[name].cpu(), value) for name, value in weights.items()
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"the device {name!r} is not there: PyTorch sees no GPU; use cpu, or auto")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in _DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(_DTYPES)}, got {name!r}")
    return _DTYPES[name]
