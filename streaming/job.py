"""`Job` and `Result`: the only things that both halves of `streaming` know.

Immutable and picklable, so that a job may run in another thread, process or machine. Nothing here imports torch, and
nothing here hears of streams: a job is audio with a draft, a result is tokens with their log-probabilities. And what a
failure costs: `isolated`, whoever runs a batch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16000
"""Samples per second of every waveform inside `streaming`."""

Waveform = NDArray[np.float32]
"""Mono, `SAMPLE_RATE`, values in -1..1, shape [samples]."""

NEVER = 0.0
ALWAYS = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One segment to transcribe. It needs no memory of the jobs before it.

    audio: the whole segment, shape [samples]; at most the longest context of the checkpoint (30 s).
    draft: tokens of the text alone (no prompt, no end of text) that are offered to the model for checking. Any draft
        gives the same result; a good one gives it sooner.
    language: a code ("en"); None asks a multilingual checkpoint to detect it.
    task: what a multilingual checkpoint shall do.
    timestamps: whether the model is asked for timestamp tokens.
    times: whether each token's place in time is wanted (an alignment from cross-attention: costs one more pass).
    ask_teacher_below: the teacher decides when the student's `sureness` is below this (`NEVER`, `ALWAYS`).
    max_tokens: the longest text, in tokens; the checkpoint's own limit where None.
    revision: comes back in the result, so that its owner can tell a stale one.
    """

    audio: Waveform
    draft: tuple[int, ...] = ()
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    timestamps: bool = False
    times: bool = False
    ask_teacher_below: float = NEVER
    max_tokens: int | None = None
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What a model heard.

    tokens: the text's tokens (and timestamp tokens, when asked for); no prompt, no end of text.
    log_probs: natural-log probability of each of `tokens` and then of the end of text: one longer than `tokens`,
        unless the limit cut the text. After Whisper's rules, from the model that decided.
    accepted: how many leading tokens of `Job.draft` the first pass of the student agreed with. This is the longest
        common prefix of two consecutive hypotheses (LocalAgreement-2).
    times: (start, end) of each of `tokens`, seconds from the job's first sample; empty when not asked for.
    model: who decided the tokens.
    student_tokens: the student's own text, equal to `tokens` unless the teacher decided.
    student_confidence: its `sureness`, which was compared with `Job.ask_teacher_below`.
    language: the code that was given or detected.
    no_speech: probability that there is no speech, 0..1; 0 where the checkpoint cannot tell.
    passes, teacher_passes: decoder passes spent by each.
    teacher_accepted: how many of the student's tokens the teacher agreed with in its first pass.
    error: why the job failed; the other fields are then empty.
    """

    revision: int
    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    accepted: int = 0
    times: tuple[tuple[float, float], ...] = ()
    model: Literal["student", "teacher"] = "student"
    student_tokens: tuple[int, ...] = ()
    student_confidence: float = 1.0
    language: str | None = None
    no_speech: float = 0.0
    passes: int = 0
    teacher_passes: int = 0
    teacher_accepted: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Captured:
    """What a warm-up made of a device that has graphs; all zero elsewhere.

    missing: graphs that did not fit into memory; larger ones, or plain calls, do their work. seconds: that it took.
    held: bytes of the device's memory that the graphs hold.
    """

    graphs: int = 0
    missing: int = 0
    seconds: float = 0.0
    held: int = 0


def teacher_threshold(below: float, audio: Waveform, shortest: float) -> float:
    """`Job.ask_teacher_below` for a text that is worth a second opinion only from `shortest` seconds of audio on.

    A teacher that was trained on windows of 30 s makes words up of a moment of speech in half a minute of silence,
    where a student that hears no more than was said does not.
    """
    return NEVER if below < ALWAYS and audio.size < shortest * SAMPLE_RATE else below


def utterance_confidence(log_probs: tuple[float, ...]) -> float:
    """Geometric mean of the tokens' probabilities, end of text included, 0..1. An empty sequence has 0."""
    if not log_probs:
        return 0.0
    return math.exp(sum(log_probs) / len(log_probs))


UNTHINNED = 16
"""Tokens of a text, about a sentence, beyond which its length no longer thins its doubt out."""


def sureness(log_probs: tuple[float, ...]) -> float:
    """How sure of a whole text its model is, 0..1: `utterance_confidence` of up to a sentence, and of more as though
    all doubt lay in so many tokens.

    One wrong word moves the mean over a long text but little, and a text that turns in a loop is certain of every word
    but its first: the mean does not tell either. Nothing (0) is sure of an empty sequence.
    """
    if not log_probs:
        return 0.0
    return math.exp(sum(log_probs) / min(len(log_probs), UNTHINNED))


def isolated(
    run: Callable[[Sequence[Job]], list[Result]],
    jobs: Sequence[Job],
    failed: Callable[[Sequence[Job], Exception], None] = lambda jobs, error: None,
) -> list[Result]:
    """A result for each job, in order, whatever `run` does: a batch that fails is halved, and each half is run again.

    So a job that raises costs itself alone, and a batch that does not fit into memory is run in parts that do. A job
    that fails on its own has a result with its `error`. failed: told of each run that raised.
    """
    try:
        results = run(jobs)
        if len(results) != len(jobs):
            raise RuntimeError(f"the engine gave {len(results)} results for {len(jobs)} jobs")
        return results
    except Exception as error:
        failed(jobs, error)
        said = f"{type(error).__name__}: {error}"
    # Behind the handler, where the exception is let go of: with its frames it holds whatever the batch had allocated,
    # and the halves would find as little memory as the whole.
    if len(jobs) == 1:
        return [Result(revision=jobs[0].revision, error=said)]
    half = len(jobs) // 2
    return [*isolated(run, jobs[:half], failed), *isolated(run, jobs[half:], failed)]


_NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: the machine's, or a device's, of which the libraries tell by a RuntimeError."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )
