"""The engine: jobs in, results out, nothing kept in between.

Owns loading a student and perhaps its teacher, warming up, batching by context, and when the teacher is asked. Knows
nothing of streams, sockets, or who waits for the results.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from streaming.job import (
    ALWAYS,
    NO_VOCABULARY,
    SAMPLE_RATE,
    Captured,
    Job,
    Result,
    Vocabulary,
    isolated,
    sureness,
)
from streaming.whisper.alignment import attention, default_heads, token_times
from streaming.whisper.biasing import TOGETHER, Vocabularies
from streaming.whisper.checkpoint import (
    Checkpoint,
    CheckpointError,
    open_checkpoint,
    require_same_vocabulary,
)
from streaming.whisper.eager_runner import EagerRunner
from streaming.whisper.graph_runner import GraphRunner
from streaming.whisper.half_precision import HalfLinear, halve, is_halved
from streaming.whisper.hearing import LARGEST_BATCH, Hearing, LoadedModel, Runner, one_encoder
from streaming.whisper.mel import LogMel
from streaming.whisper.model import Decoder, Encoder, build_decoder, build_encoder, encoder_weights
from streaming.whisper.precision import LEAST_GAIN, bfloat16_gain, half_gain, usual_numbers
from streaming.whisper.rows import Row
from streaming.whisper.rules import LogitRules
from streaming.whisper.weights import read_weights, stored_numbers

log = logging.getLogger(__name__)

NOT_FINITE = "the model's output is not finite: its weights may be damaged, or need a wider dtype"

_DTYPES = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "mixed": torch.float32,
}  # fmt: skip
"""Of the decoder, and of the encoder too unless it is mixed."""


class WhisperEngine:
    """Student and perhaps teacher, with weights and no state: `run` may be called with any jobs in any order."""

    def __init__(
        self,
        student: LoadedModel,
        teacher: LoadedModel | None,
        device: torch.device,
        dtype: str,
        make_runner: Callable[[LoadedModel, LoadedModel | None], Runner] = EagerRunner,
        take_threads: Callable[[], None] | None = None,
    ) -> None:
        """Make an engine of loaded models.

        Args:
            student: the model that hears all jobs.
            teacher: the model that decides where the student is not sure.
            device: where they are.
            dtype: the numbers in which they compute, for showing.
            make_runner: makes what hears batches, of the two.
            take_threads: called before each batch.
        """
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
        self._one_encoder = teacher is not None and one_encoder(student, teacher)
        self._make_runner = make_runner
        self._runner = make_runner(student, teacher)
        self._take_threads = take_threads

    @property
    def runner(self) -> Runner:
        """How batches are heard: for measuring it."""
        return self._runner

    @property
    def numbers(self) -> str:
        """In which numbers it computes, in words."""
        return f"{self.dtype}, decoder weights in float16" if is_halved(self._student.decoder) else self.dtype

    @property
    def models(self) -> tuple[LoadedModel, ...]:
        """The student, and the teacher where there is one: for measuring their parts."""
        return (self._student,) if self._teacher is None else (self._student, self._teacher)

    def alone(self, model: LoadedModel) -> WhisperEngine:
        """Return an engine that has one of the models as its student, with the same weights in the same numbers."""
        student = replace(model, role="student")
        return WhisperEngine(
            student, None, torch.device(self.device), self.dtype, self._make_runner, self._take_threads
        )

    @staticmethod
    def load(
        student: str,
        teacher: str | None,
        device: str = "auto",
        *,
        dtype: str = "auto",
        threads: int | Callable[[int], int] | None = None,
        graphs: Literal["auto", "on", "off"] = "auto",
        mode: Literal["fast", "deterministic"] = "fast",
        batch: int = LARGEST_BATCH,
    ) -> WhisperEngine:
        """Load a pair, or a student alone.

        Args:
            student: a shipped name, a directory, or a hub name.
            teacher: likewise; None for a student alone.
            device: "auto", "cpu", "cuda", "cuda:1"...
            dtype: "float32", "bfloat16", "float16", "mixed" (float32 with an encoder in bfloat16) or "auto": on a GPU
                float16 or bfloat16, as the weights are (`usual_numbers`); on a CPU mixed where that is measured to be
                faster, else float32, with a decoder's weights in half precision where that is faster
                (`half_precision.py`).
            threads: how many the CPU may use; None for PyTorch's choice. Or a function that is asked before each batch,
                given PyTorch's choice.
            graphs: whether batches are heard at fixed addresses, as CUDA graphs on a GPU; "auto" for only there, as a
                CPU is faster without.
            mode: "deterministic" gives every pass one and the same shape, so that not even rounding depends on drafts
                or company; it too needs fixed addresses.
            batch: jobs in a pass at most; fixed addresses take memory for all of them.

        Raises:
            CheckpointError: a checkpoint cannot be used, or the two do not match.
            ValueError: the device or dtype is not there, or has too little memory.
        """
        take_threads = partial(_take_threads, threads)
        take_threads()
        place = _device(device)
        _check_dtype(dtype)
        mixed = dtype == "mixed"
        first = open_checkpoint(student, "student")
        second = None if teacher is None else open_checkpoint(teacher, "teacher")
        kind = _dtype(dtype, place, [first] if second is None else [first, second])
        if second is not None:
            require_same_vocabulary(first, second)
        hears = _load(first, "student", place, kind, None)
        checks = None if second is None else _load(second, "teacher", place, kind, hears)
        if dtype == "auto" and place.type == "cpu":
            gain = bfloat16_gain(hears.encoder)
            log.info("an encoder layer in bfloat16 is %.2f times as fast as in float32 on this processor", gain)
            mixed = gain >= LEAST_GAIN
            _halve_where_faster(hears, checks)
        if mixed:
            for model in (hears, checks):
                if model is not None:
                    model.encoder.to(torch.bfloat16)
        fixed = mode == "deterministic" or graphs == "on" or (graphs == "auto" and place.type == "cuda")
        make_runner = (
            partial(_graph_runner, device=place, batch=min(batch, LARGEST_BATCH), mode=mode, graphs=graphs)
            if fixed
            else EagerRunner
        )
        numbers = "mixed" if mixed else str(kind).removeprefix("torch.")
        engine = WhisperEngine(hears, checks, place, numbers, make_runner, take_threads if callable(threads) else None)
        log.info(
            "student %s, teacher %s, on %s in %s, %s encoder, %s",
            engine.student,
            engine.teacher or "none",
            engine.device,
            engine.numbers,
            "one shared" if engine._one_encoder or checks is None else "two",
            "every pass of one shape" if mode == "deterministic" else "fixed shapes" if fixed else "any shape",
        )
        return engine

    def warm(self) -> Captured:
        """Capture what can be captured, and decode canaries, so that the first real job is not the slow one.

        There is a canary for every context and some batch sizes. A CPU has nothing to make for a shape, so there the
        shortest and the longest context, one job each, are enough.

        Raises:
            RuntimeError: a canary failed; such an engine must not be called ready.
        """
        captured = self._runner.prepare()
        if captured.graphs:
            log.info(
                "captured %d graphs in %.1f s, which hold %.0f MB; %d did not fit into memory",
                captured.graphs, captured.seconds, captured.held / 2**20, captured.missing,
            )  # fmt: skip
        noise = np.random.default_rng(0)
        processor = self.device == "cpu"
        for seconds in sorted({self.contexts[0], self.contexts[-1]}) if processor else self.contexts:
            audio = noise.normal(0.0, 0.01, round(seconds * SAMPLE_RATE)).astype(np.float32)
            canary = Job(audio, times=True, max_tokens=4, ask_teacher_below=ALWAYS)
            for count in (1,) if processor else (1, 2, 4):
                # A device that is too small for the larger batches will do with smaller ones, as it does later.
                for result in isolated(self.run, [canary] * count):
                    if result.error is not None:
                        raise RuntimeError(f"the canary decode of {seconds:g} s failed: {result.error}")
        return captured

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Run jobs, and return their results in order; what is evidently wrong with a job is its result's `error`.

        Whatever torch raises during a batch is raised: `isolated` finds the job that caused it.
        """
        if self._take_threads is not None:
            self._take_threads()
        results: dict[int, Result] = {}
        groups: dict[float, list[int]] = {}
        for index, job in enumerate(jobs):
            fault = self._fault(job)
            if fault is not None:
                results[index] = Result(revision=job.revision, error=fault)
            else:
                groups.setdefault(self._student.context(job), []).append(index)
        for group in groups.values():
            for batch in self._batches(group, jobs):
                results.update(zip(batch, self._batch([jobs[index] for index in batch]), strict=True))
        return [results[index] for index in range(len(jobs))]

    def _batches(self, group: Sequence[int], jobs: Sequence[Job]) -> Iterable[list[int]]:
        """Jobs that one pass can take, by their number and that of their vocabularies."""
        batch: list[int] = []
        vocabularies: set[Vocabulary] = set()
        for index in group:
            with_it = vocabularies | ({jobs[index].vocabulary} - {NO_VOCABULARY})
            if len(batch) == self._runner.largest or len(with_it) > TOGETHER:
                yield batch
                batch, with_it = [], {jobs[index].vocabulary} - {NO_VOCABULARY}
            batch, vocabularies = [*batch, index], with_it
        if batch:
            yield batch

    def _fault(self, job: Job) -> str | None:
        """What makes a job impossible, in words, or None."""
        audio = job.audio
        if not isinstance(audio, np.ndarray) or audio.ndim != 1 or audio.dtype != np.float32:
            return "audio must be a float32 array of shape [samples]"
        if len(audio) == 0:
            return "audio is empty"
        longest = self.contexts[-1]
        if len(audio) > round(longest * SAMPLE_RATE):
            return f"audio is {len(audio) / SAMPLE_RATE:.2f} s long, but the longest context is {longest:g} s"
        if not np.isfinite(audio).all():
            return "audio has samples that are not finite"
        vocabulary = self._student.checkpoint.dimensions.vocabulary
        if not all(isinstance(token, int) and 0 <= token < vocabulary for token in job.draft):
            return f"the draft has tokens outside the vocabulary (0..{vocabulary - 1})"
        if job.max_tokens is not None and job.max_tokens < 1:
            return f"max_tokens must be at least 1, got {job.max_tokens}"
        try:
            # Any language will do where it is to be detected: the prompt's other parts are checked all the same.
            language = job.language or next(iter(self._student.rules.grammar.languages), None)
            self._student.rules.prompt(language, job.task, job.timestamps, job.previous)
            if job.languages and not set(job.languages) & set(self.languages):
                return f"none of the languages {', '.join(job.languages)} is one of {', '.join(self.languages)}"
            if job.vocabulary.phrases:
                self._student.vocabularies.compile(job.vocabulary)
        except ValueError as error:
            return str(error)
        return None

    def _batch(self, jobs: Sequence[Job]) -> list[Result]:
        """Jobs of one context: the student hears all of them, the teacher those that the student is unsure of."""
        heard = self._runner.student(jobs)
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
                checked = self._runner.teacher(heard, jobs, indices)
                for index, said in zip(indices, checked.said, strict=True):
                    results[index] = _teacher_result(results[index], *said)
                _add_times(checked, jobs, results, dict(enumerate(indices)))
        return results

    def _teacher_batches(
        self, teacher: LoadedModel, jobs: Sequence[Job], indices: Sequence[int]
    ) -> Iterable[list[int]]:
        """Those of `indices` that the teacher can take together. With an encoder of its own it has its own contexts."""
        groups: dict[float, list[int]] = {}
        for index in indices:
            groups.setdefault(0.0 if self._one_encoder else teacher.context(jobs[index]), []).append(index)
        return groups.values()


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
        student_confidence=sureness(tuple(row.log_probs)),
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


def _add_times(heard: Hearing, jobs: Sequence[Job], results: list[Result], places: Mapping[int, int]) -> None:
    """Align those texts whose jobs want it; `places` maps a row of `heard` to the index of its job and result."""
    wanted = {row: index for row, index in places.items() if jobs[index].times and heard.rows[row].text}
    if not wanted:
        return
    sizes = heard.model.checkpoint.dimensions
    heads = heard.model.checkpoint.alignment_heads or default_heads(sizes.decoder_layers, sizes.decoder_heads)
    for place, index in wanted.items():
        row = heard.rows[place]
        # A row at a time, and where it lies: what a large model knows of 30 s is hundreds of megabytes.
        (score,) = attention(heard.model.decoder, heard.memory_of(place), [[*row.prompt, *row.text]], heads)
        first = len(row.prompt) - 1  # the position that foretells the first token of the text
        spoken = [token < row.eot for token in row.text]
        times = token_times(score[:, first : first + len(spoken) + 1], spoken, jobs[index].audio, sizes.median_filter)
        result = replace(results[index], times=times)
        passes = "teacher_passes" if heard.model.role == "teacher" else "passes"
        results[index] = replace(result, **{passes: getattr(result, passes) + 1})


_THREADS = torch.get_num_threads()
"""PyTorch's choice."""


def _take_threads(wanted: int | Callable[[int], int] | None) -> None:
    """Of the thread that calls, which is the one that computes."""
    count = wanted(_THREADS) if callable(wanted) else wanted
    if count is not None and count != torch.get_num_threads():
        torch.set_num_threads(count)


def _load(
    checkpoint: Checkpoint,
    role: Literal["student", "teacher"],
    device: torch.device,
    dtype: torch.dtype,
    sibling: LoadedModel | None,
) -> LoadedModel:
    """A checkpoint on the device, with the sibling's encoder where the weights are the same."""
    return assemble(checkpoint, role, read_weights(checkpoint, dtype), device, sibling)


def assemble(
    checkpoint: Checkpoint,
    role: Literal["student", "teacher"],
    weights: Mapping[str, Tensor],
    device: torch.device,
    sibling: LoadedModel | None = None,
) -> LoadedModel:
    """Make a model of weights by the layout's names (`read_weights`).

    Args:
        checkpoint: the model's.
        role: in the pair.
        weights: without the leading "model." in their names.
        device: where they go.
        sibling: the other model of the pair, whose encoder and embeddings are used where they are the same.

    Raises:
        CheckpointError: the weights do not fit the checkpoint's dimensions.
    """
    sizes = checkpoint.dimensions
    try:
        if sibling is not None and _same(sibling.encoder, encoder_weights(weights)):
            encoder = sibling.encoder
        else:
            encoder = build_encoder(sizes, weights).to(device)
        decoder = build_decoder(sizes, weights).to(device)
        if sibling is not None and _same_embeddings(sibling.decoder, decoder):
            decoder.embed_tokens = sibling.decoder.embed_tokens  # half of a small model, once in memory
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.directory}: {error}") from error
    rules = LogitRules(checkpoint.grammar, sizes.vocabulary, device)
    own = partial(Vocabularies, checkpoint.tokenizer_file, sizes.vocabulary, checkpoint.grammar.eot, device)
    vocabularies = own() if sibling is None else sibling.vocabularies  # the two have the same tokens
    return LoadedModel(role, checkpoint, LogMel(sizes.mels, device), encoder, decoder, rules, vocabularies)


def _same_embeddings(ours: Decoder, theirs: Decoder) -> bool:
    mine, other = ours.embed_tokens.weight, theirs.embed_tokens.weight
    return mine.shape == other.shape and torch.equal(mine, other)


def _halve_where_faster(student: LoadedModel, teacher: LoadedModel | None) -> None:
    """Measure with the student's vocabulary: it takes longest to pack, and is kept. A vocabulary of both stays one."""
    weight = student.decoder.output_weight
    try:
        vocabulary = HalfLinear(weight)
    except (RuntimeError, ValueError) as error:
        log.info("a decoder's weights stay in float32: %s", error)
        return
    gain = half_gain(weight, vocabulary)
    log.info("a decoder's weights in float16 are %.2f times as fast as in float32 on this processor", gain)
    if gain >= LEAST_GAIN:
        halve(student.decoder, vocabulary)
        if teacher is not None:
            halve(teacher.decoder, vocabulary if teacher.decoder.output_weight is weight else None)


def _same(encoder: Encoder, weights: Mapping[str, Tensor]) -> bool:
    own = encoder.state_dict()
    return own.keys() == weights.keys() and all(
        own[name].shape == value.shape and torch.equal(own[name].cpu(), value) for name, value in weights.items()
    )


def _graph_runner(
    student: LoadedModel, teacher: LoadedModel | None, device: torch.device, batch: int, mode: str, graphs: str
) -> GraphRunner:
    try:
        return GraphRunner(
            student, teacher, device, largest=batch, deterministic=mode == "deterministic", capture=graphs != "off"
        )
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{device} has no memory for {batch} jobs at once: lower scheduler.batch, or set models.graphs to off "
            f"({error})"
        ) from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"the device {name!r} is not available: PyTorch sees no GPU; use cpu or auto")
    return device


def _check_dtype(name: str) -> None:
    if name != "auto" and name not in _DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(_DTYPES)}, got {name!r}")


def _dtype(name: str, device: torch.device, checkpoints: Iterable[Checkpoint]) -> torch.dtype:
    if name != "auto":
        return _DTYPES[name]
    return usual_numbers(device.type, set[str]().union(*map(stored_numbers, checkpoints)))
