"""`Job` and `Result`, and the little else that both halves of this package know.

Owns both, what they are made of (`Waveform`, confidence), what warming an engine up captured (`Captured`), and what a
failure costs (`isolated`). Jobs and results are immutable and picklable, so that a job may run in another thread,
process or machine. A job is audio with a draft, a result is tokens with their log-probabilities. Knows nothing of torch
or of streams.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16000
"""Samples per second of every waveform inside `streaming`."""

Waveform = NDArray[np.float32]
"""Mono, `SAMPLE_RATE`, values in -1..1, shape [samples]."""

NEVER = 0.0
ALWAYS = math.inf


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase that a model is made to hear.

    Attributes:
        text: as it is to be written.
        weight: how much it is made to be heard; 1 is the usual.
    """

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Phrases that a model is made to hear; `vocabulary.py` says what they may be."""

    phrases: tuple[Phrase, ...] = ()
    _digest: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Each batch looks its vocabularies up: their phrases are hashed once, and alike in every process.
        digest = hashlib.blake2b(repr(self.phrases).encode(), digest_size=7).digest()
        object.__setattr__(self, "_digest", int.from_bytes(digest))

    def __hash__(self) -> int:
        return self._digest


NO_VOCABULARY = Vocabulary()


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One segment to transcribe, which needs no memory of the jobs before it.

    Attributes:
        audio: the whole segment, shape `[samples]`; at most the longest context of the checkpoint (30 s).
        draft: tokens of the text alone (no prompt, no end of text) that the model checks. Any draft gives the same
            result; a good one gives it sooner.
        language: a code ("en"); None asks a multilingual checkpoint to detect it.
        task: what a multilingual checkpoint does.
        timestamps: whether the model is asked for timestamp tokens.
        times: whether each token's place in time is wanted, an alignment from cross-attention that costs one more pass.
        ask_teacher_below: the teacher decides when the student's `sureness` is below this (`NEVER`, `ALWAYS`).
        max_tokens: the longest text, in tokens; None for the checkpoint's own limit.
        vocabulary: phrases that the model is made to hear.
        revision: comes back in the result, so that its owner can recognise one that is stale.
        languages: the codes among which a language is detected that is not given; empty for all that the checkpoint
            knows.
        previous: tokens of the text before this one, timestamps too, which the model is told but does not say; of many
            the last.
    """

    audio: Waveform
    draft: tuple[int, ...] = ()
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    timestamps: bool = False
    times: bool = False
    ask_teacher_below: float = NEVER
    max_tokens: int | None = None
    vocabulary: Vocabulary = NO_VOCABULARY
    revision: int = 0
    languages: tuple[str, ...] = ()
    previous: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What a model heard.

    Attributes:
        revision: the job's.
        tokens: the text's tokens (and timestamp tokens, when asked for); no prompt, no end of text.
        log_probs: natural-log probability of each of `tokens` and then of the end of text, so one longer than `tokens`,
            unless the limit cut the text. After Whisper's rules, from the model that decided.
        accepted: how many leading tokens of `Job.draft` the first pass of the student agreed with. This is the longest
            common prefix of two consecutive hypotheses (LocalAgreement-2).
        times: (start, end) of each of `tokens`, in seconds from the job's first sample; empty when not asked for.
        model: which model decided the tokens.
        student_tokens: the student's own text, equal to `tokens` unless the teacher decided.
        student_confidence: its `sureness`, which was compared with `Job.ask_teacher_below`.
        language: the code that was given or detected.
        no_speech: probability that there is no speech, 0 to 1; 0 where the checkpoint cannot tell.
        passes: decoder passes of the student.
        teacher_passes: decoder passes of the teacher.
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
    """What a warm-up made on a device that has graphs; all zero elsewhere.

    Attributes:
        graphs: how many there are.
        missing: graphs that did not fit into memory; larger ones, or plain calls, do their work.
        seconds: how long the warm-up took.
        held: bytes of the device's memory that the graphs hold.
    """

    graphs: int = 0
    missing: int = 0
    seconds: float = 0.0
    held: int = 0


def teacher_threshold(below: float, audio: Waveform, shortest: float) -> float:
    """Return `Job.ask_teacher_below` for a text that is worth a second opinion only if its audio is long enough.

    A teacher that was trained on windows of 30 s makes words up from a moment of speech in half a minute of silence,
    where a student that hears no more than was said does not.

    Args:
        below: the confidence below which the teacher decides.
        audio: the job's.
        shortest: seconds of audio below which the student decides alone.
    """
    return NEVER if below < ALWAYS and audio.size < shortest * SAMPLE_RATE else below


def utterance_confidence(log_probs: tuple[float, ...]) -> float:
    """Return the geometric mean of the tokens' probabilities, end of text included, 0 to 1; 0 for an empty sequence."""
    if not log_probs:
        return 0.0
    return math.exp(sum(log_probs) / len(log_probs))


UNTHINNED = 16
"""Tokens of a text, about a sentence, beyond which its length no longer thins its doubt out."""


def sureness(log_probs: tuple[float, ...]) -> float:
    """Return how sure of a whole text its model is, 0 to 1; 0 for an empty sequence.

    Up to a sentence it is `utterance_confidence`. Of a longer text it is the same as if all doubt lay in a sentence:
    one wrong word hardly changes the mean over a long text, and a text that turns in a loop is certain of every word
    but its first, so the mean tells neither.
    """
    if not log_probs:
        return 0.0
    return math.exp(sum(log_probs) / min(len(log_probs), UNTHINNED))


def isolated(
    run: Callable[[Sequence[Job]], list[Result]],
    jobs: Sequence[Job],
    failed: Callable[[Sequence[Job], Exception], None] = lambda jobs, error: None,
) -> list[Result]:
    """Return a result for each job, in order, whatever `run` does.

    A batch that fails is halved, and each half is run again. So a job that raises affects only itself, and a batch that
    does not fit into memory is run in parts that do. A job that fails on its own has a result with its `error`.

    Args:
        run: runs a batch.
        jobs: the batch.
        failed: called for each run that raised, with its jobs and the error.
    """
    try:
        results = run(jobs)
        if len(results) != len(jobs):
            raise RuntimeError(f"the engine gave {len(results)} results for {len(jobs)} jobs")
        return results
    except Exception as error:
        failed(jobs, error)
        reason = f"{type(error).__name__}: {error}"
    # Behind the handler, where the exception is let go of: with its frames it holds whatever the batch had allocated,
    # and the halves would find as little memory as the whole.
    if len(jobs) == 1:
        return [Result(revision=jobs[0].revision, error=reason)]
    half = len(jobs) // 2
    return [*isolated(run, jobs[:half], failed), *isolated(run, jobs[half:], failed)]


_NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)


def out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out.

    It may be the machine's memory or a device's, which libraries report by a RuntimeError.
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )
