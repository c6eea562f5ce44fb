"""An engine whose answers are written beforehand, for code that needs an engine when no model is at hand.

Owns the shape of an engine (its attributes, `warm` and `run`) without a model. Knows nothing of torch. The same jobs
always give the same results: what it "hears" depends only on the length of the audio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from tokenizers import Tokenizer

from streaming.job import SAMPLE_RATE, Captured, Job, Result

_LOG_PROB = math.log(0.95)


class ScriptedEngine:
    """An engine that says the words of a script.

    Args:
        tokenizer_file: of any byte-level checkpoint, so that texts can be written and read. Timestamps need its token
            of 0 s.
        eot: the end-of-text token of that checkpoint.
        script: the words that are said over and over.
        pace: seconds of audio for each word.
        before: called with every batch, to count, to wait or to raise.
        languages: those that it knows; the first that a job allows is detected.
    """

    def __init__(
        self,
        tokenizer_file: Path,
        eot: int,
        script: str = "turn on the kitchen light",
        pace: float = 0.4,
        before: Callable[[Sequence[Job]], None] | None = None,
        languages: tuple[str, ...] = ("en",),
    ) -> None:
        self.student = "scripted"
        self.teacher: str | None = "scripted-teacher"
        self.device = "cpu"
        self.tokenizer_file = tokenizer_file
        self.eot = eot
        self.contexts: tuple[float, ...] = (30.0,)
        self.multilingual = len(languages) > 1
        self.languages = languages
        self._before = before
        self._pace = pace
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._words = [tuple(tokenizer.encode(f" {word}", add_special_tokens=False).ids) for word in script.split()]
        self._first_timestamp: int | None = tokenizer.token_to_id("<|0.00|>")

    def warm(self) -> Captured:
        """Do nothing: nothing is cold."""
        return Captured()

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Return one result for each job, in order."""
        if self._before is not None:
            self._before(jobs)
        return [self._result(job) for job in jobs]

    def _stamped(self, words: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
        """Yield the words, each time that the script is said between two timestamps, and these in steps of 20 ms."""
        assert self._first_timestamp is not None, "the tokenizer has timestamps"
        for first in range(0, len(words), len(self._words)):
            said = words[first : first + len(self._words)]
            yield (self._first_timestamp + round(50 * self._pace * first),)
            yield from said
            yield (self._first_timestamp + round(50 * self._pace * (first + len(said))),)

    def _result(self, job: Job) -> Result:
        seconds = len(job.audio) / SAMPLE_RATE
        spoken = max(1, int(seconds / self._pace))
        words = [self._words[number % len(self._words)] for number in range(spoken)]
        tokens = tuple(token for word in (self._stamped(words) if job.timestamps else words) for token in word)
        teacher = job.ask_teacher_below > 0.95
        step = seconds / len(tokens)
        return Result(
            revision=job.revision,
            tokens=tokens,
            log_probs=(_LOG_PROB,) * (len(tokens) + 1),
            accepted=sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(job.draft, tokens, strict=False))),
            times=tuple((step * i, step * (i + 1)) for i in range(len(tokens))) if job.times else (),
            model="teacher" if teacher else "student",
            student_tokens=tokens,
            student_confidence=0.95,
            language=job.language or (job.languages or self.languages)[0],
            passes=1,
            teacher_passes=int(teacher),
            teacher_accepted=len(tokens) if teacher else 0,
        )
