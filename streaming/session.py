"""One stream, without input or output: samples, jobs and results in; jobs and events out.

Owns the utterances of a stream: which is open, which wait for their final, and what has been said in which order. The
caller brings samples, asks for a job whenever it can run one, and brings its result, at any time and in any order.
Nothing here waits, sleeps or reads a clock: `now` comes with each call, and serves only for `lag_ms` and `latency_ms`.

    receive -> vad -> segment -> an utterance opens, grows, closes
    next_job -> a final for each that closed; a partial for the open one, made when asked, so it has the newest audio
    receive_result -> partial; or the final, once those of all utterances before it are out

A result that fits no job in flight (of an utterance that closed meanwhile, or a second copy) is ignored: each job has
its own revision, and a job that is no longer wanted is removed from the list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from streaming.confidence import ConfidenceSettings, verdict, without_loop, word_confidence
from streaming.events import (
    Error,
    Event,
    Final,
    Flushed,
    Partial,
    SpeechStarted,
    SpeechStopped,
    Stopped,
    Word,
)
from streaming.hypothesis import Hypothesis
from streaming.job import (
    ALWAYS,
    NEVER,
    NO_VOCABULARY,
    SAMPLE_RATE,
    Job,
    Result,
    Vocabulary,
    Waveform,
    teacher_threshold,
    utterance_confidence,
)
from streaming.recent_audio import RecentAudio
from streaming.segment import Boundary, Opened, Segment, Segmenter, SegmentSettings
from streaming.stream_language import StreamLanguage
from streaming.text import Text

SPOKEN_TOKENS, SPOKEN_TOKENS_PER_SECOND = 24, 10
"""A partial's most tokens: at first, and for each second heard. People say three to six; only a loop says more, and its
steps are those of all others in its batch. A final may be as long as the checkpoint's limit."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a stream is transcribed.

    Attributes:
        segment: when utterances open and close.
        confidence: when a result is believed.
        partial_interval: seconds of new audio that make the next partial due.
        first_partial: seconds of speech that make an utterance's first partial due.
        ask_teacher_below: the teacher decides a final of which the student is less sure (`NEVER`, `ALWAYS`).
        ask_teacher_from: seconds of audio below which the student decides alone.
    """

    segment: SegmentSettings = field(default_factory=SegmentSettings)
    confidence: ConfidenceSettings = field(default_factory=ConfidenceSettings)
    partial_interval: float = 0.5
    first_partial: float = 0.3
    ask_teacher_below: float = NEVER
    ask_teacher_from: float = 0.0

    def __post_init__(self) -> None:
        for name in ("partial_interval", "first_partial"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0 seconds, got {getattr(self, name)}")
        if not self.ask_teacher_below >= 0:
            raise ValueError(f"ask_teacher_below must be 0 or more, got {self.ask_teacher_below}")
        if not self.ask_teacher_from >= 0:
            raise ValueError(f"ask_teacher_from must be 0 seconds or more, got {self.ask_teacher_from}")


@dataclass(slots=True, eq=False)
class _Utterance:
    """The one that is open. Its segment is the segmenter's."""

    number: int
    hypothesis: Hypothesis
    partial_end: int | None = None  # audio that the last partial's job covered; None before the first
    in_flight: int | None = None  # revision of the partial that is being run


@dataclass(frozen=True, slots=True)
class _PartialJob:
    utterance: _Utterance
    start: int
    end: int
    arrived: float  # when the newest sample it covers did


@dataclass(slots=True, eq=False)
class _Closed:
    """An utterance that waits for its final, or for those before it."""

    number: int
    segment: Segment
    audio: Waveform | None  # let go of once it is decided
    spoken: float  # when the last voiced sample arrived
    draft: tuple[int, ...]
    ask_teacher_below: float
    decided: bool = False
    outcome: Final | Error | None = None  # None when decided: nothing was said


class Session:
    """One stream.

    Args:
        source: the name that its events carry.
        settings: how it is transcribed.
        detector: gives the stream's next frame its speech probability: a `vad.Detector` of the stream's own.
        text: the checkpoint's.
        language: a code, or None for the checkpoint to detect it.
        languages: the codes among which it does; empty for all that it knows.
        partials: whether partials are wanted.
        words: whether the words of finals are wanted.
        vocabulary: asked for each job, returns the phrases that are to be heard.
        spacing: returns how many times their interval partials are apart at the moment.
    """

    def __init__(
        self,
        source: str,
        settings: SessionSettings,
        detector: Callable[[Waveform], float],
        text: Text,
        *,
        language: str | None = None,
        languages: tuple[str, ...] = (),
        partials: bool = True,
        words: bool = False,
        vocabulary: Callable[[], Vocabulary] = lambda: NO_VOCABULARY,
        spacing: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.source = source
        self.settings = settings
        self._detector = detector
        self._text = text
        self._languages = languages
        self._language = StreamLanguage(language)
        self._partials = partials
        self._words = words
        self._vocabulary = vocabulary
        self._spacing = spacing
        self._recent = RecentAudio()
        self._segmenter = Segmenter(settings.segment)
        self._utterance: _Utterance | None = None
        self._utterances = 0
        self._revision = 0
        self._due: deque[_Closed] = deque()  # finals whose job is not made yet
        self._in_flight: dict[int, _Closed | _PartialJob] = {}
        self._outbox: deque[_Closed | Flushed | Stopped] = deque()  # what goes out in order, the next first
        self._stopping = False

    # --- what comes in --------------------------------------------------------------------------------------

    def receive(self, samples: Waveform, now: float) -> list[Event]:
        """Take the next samples of the stream.

        Args:
            samples: shape `[n]`.
            now: when the last of them arrived, in seconds of any steady clock.

        Raises:
            RuntimeError: the stream was stopped.
        """
        return [event for frame in self.keep(samples, now) for event in self.judged(frame, self._detector(frame))]

    def keep(self, samples: Waveform, now: float) -> list[Waveform]:
        """Take the next samples, as `receive`, for a caller who judges whether they are speech.

        Returns:
            The frames that they completed. The caller tells `judged` of each, in order, before anything is ended.

        Raises:
            RuntimeError: the stream was stopped.
        """
        self._check_running()
        return self._recent.append(samples, now)

    def judged(self, frame: Waveform, probability: float) -> list[Event]:
        """Take the probability that the next frame of those that are kept holds speech."""
        level = float(np.dot(frame, frame)) / len(frame)
        events = [self._cross(boundary) for boundary in self._segmenter.push(probability, level)]
        self._recent.forget_before(self._segmenter.keep_from)
        return events

    def flush(self, id: str | None, now: float) -> list[Event]:
        """Make final what was heard; `Flushed` comes after the finals of all of it, from here or from a later result.

        Raises:
            RuntimeError: the stream was stopped.
        """
        return self._end(Flushed(id), now)

    def discard(self, id: str | None, now: float) -> list[Event]:
        """Forget what is open, which gets no final; `Flushed` comes after the finals of all that was said before it.

        Raises:
            RuntimeError: the stream was stopped.
        """
        return self._end(Flushed(id), now, forget=True)

    def stop(self, now: float) -> list[Event]:
        """End the audio; `Stopped` comes after the last final, and then the session is `finished`.

        Raises:
            RuntimeError: the stream was stopped already.
        """
        events = self._end(Stopped(self.audio_seconds), now)
        self._stopping = True
        return events

    def receive_result(self, result: Result, now: float) -> list[Event]:
        """Take the result of a job, in any order; one that no longer fits is ignored.

        A final's job that failed gives an error event in the final's place. Whoever loses a job must say so with a
        result of its revision and an `error`, or the finals behind it wait for it.
        """
        job = self._in_flight.pop(result.revision, None)
        if isinstance(job, _PartialJob):
            return self._partial(job, result, now)
        if job is not None:
            self._decide(job, result)
        return self._drain(now)

    # --- what goes out --------------------------------------------------------------------------------------

    def pending(self) -> Literal["final", "partial"] | None:
        """Return what kind of job `next_job` would give."""
        if self._due:
            return "final"
        return "partial" if self._partial_due() else None

    def next_job(self) -> Job | None:
        """Return the most urgent job, over the newest audio; None when there is nothing to do."""
        if self._due:
            return self._final_job(self._due.popleft())
        return self._partial_job() if self._partial_due() else None

    @property
    def audio_seconds(self) -> float:
        """Audio received."""
        return _seconds(self._recent.received)

    @property
    def judged_seconds(self) -> float:
        """Audio of which it is known whether it is speech."""
        return _seconds(self._segmenter.heard)

    @property
    def voiced_seconds(self) -> float:
        """How much of it was speech."""
        return _seconds(self._segmenter.voiced)

    @property
    def backlog_seconds(self) -> float:
        """Audio of closed utterances whose final is not decided: what this session keeps beside the open one."""
        waiting = (item for item in self._outbox if isinstance(item, _Closed) and item.audio is not None)
        return _seconds(sum(closed.segment.audio_end - closed.segment.audio_start for closed in waiting))

    @property
    def speaking(self) -> bool:
        """Whether an utterance is open."""
        return self._utterance is not None

    @property
    def spoken(self) -> bool:
        """Whether anybody has spoken so far."""
        return self._utterances > 0

    @property
    def settled(self) -> bool:
        """Whether all that was said has its final: no utterance is open, and none waits."""
        return self._utterance is None and not self._outbox

    @property
    def finished(self) -> bool:
        """Whether `Stopped` is out: nothing more will come."""
        return self._stopping and not self._outbox

    # --- utterances -----------------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._stopping:
            raise RuntimeError(f"the stream {self.source!r} was stopped")

    def _end(self, mark: Flushed | Stopped, now: float, *, forget: bool = False) -> list[Event]:
        """Close what is open, and put `mark` behind it."""
        self._check_running()
        events = [self._cross(boundary) for boundary in self._segmenter.flush(self._recent.received)]
        if forget and events:
            self._settle(self._due.pop(), None)
        self._recent.forget_before(self._segmenter.keep_from)
        self._outbox.append(mark)
        return events + self._drain(now)

    def _cross(self, boundary: Boundary) -> Event:
        segment = boundary.segment
        if isinstance(boundary, Opened):
            self._utterances += 1
            self._language.speech_began(segment.start)
            self._utterance = _Utterance(self._utterances, Hypothesis(self._text))
            return SpeechStarted(self.source, self._utterances, _seconds(segment.start))
        return self._close(segment)

    def _close(self, segment: Segment) -> Event:
        utterance = self._utterance
        assert utterance is not None, "the segmenter closes only what it opened"
        self._utterance = None
        self._language.speech_ended(segment.end)
        if utterance.in_flight is not None:
            self._in_flight.pop(utterance.in_flight, None)
        audio, settings = self._recent.slice(segment.audio_start, segment.audio_end), self.settings
        closed = _Closed(
            number=utterance.number,
            segment=segment,
            audio=audio,
            spoken=self._recent.arrival(segment.end),
            draft=utterance.hypothesis.latest,
            ask_teacher_below=teacher_threshold(settings.ask_teacher_below, audio, settings.ask_teacher_from),
        )
        self._due.append(closed)
        self._outbox.append(closed)
        return SpeechStopped(self.source, closed.number, _seconds(segment.end))

    # --- partials -------------------------------------------------------------------------------------------

    def _partial_due(self) -> bool:
        utterance, segment = self._utterance, self._segmenter.open
        if not self._partials or utterance is None or segment is None or utterance.in_flight is not None:
            return False
        if utterance.partial_end is None:
            return segment.audio_end - segment.start >= self.settings.first_partial * SAMPLE_RATE
        interval = self.settings.partial_interval * self._spacing()
        return segment.audio_end - utterance.partial_end >= interval * SAMPLE_RATE

    def _partial_job(self) -> Job:
        utterance, segment = self._utterance, self._segmenter.open
        assert utterance is not None, "a partial is due only while an utterance is open"
        assert segment is not None, "an open utterance has an open segment"
        end = segment.audio_end
        job = _PartialJob(utterance, segment.start, end, self._recent.arrival(end))
        utterance.partial_end = end
        utterance.in_flight = self._send(job)
        return Job(
            audio=self._recent.slice(segment.audio_start, end),
            draft=utterance.hypothesis.latest,
            language=self._language.code,
            languages=self._languages,
            max_tokens=round(SPOKEN_TOKENS + SPOKEN_TOKENS_PER_SECOND * (end - segment.audio_start) / SAMPLE_RATE),
            vocabulary=self._vocabulary(),
            revision=utterance.in_flight,
        )

    def _partial(self, job: _PartialJob, result: Result, now: float) -> list[Event]:
        utterance = job.utterance
        utterance.in_flight = None
        if result.error is not None:
            return []  # the next partial, or the final, tries again
        # A hypothesis not worth believing is not shown, and is no draft either: the next is heard afresh.
        if verdict(result, self._text.text(result.tokens), self.settings.confidence) != "ok":
            return []
        self._language.heard(result.language, job.end - job.start)
        utterance.hypothesis.update(result.tokens, result.accepted, result.language)
        stable, tail = utterance.hypothesis.shown()
        return [
            Partial(
                source=self.source,
                utterance=utterance.number,
                start=_seconds(job.start),
                end=_seconds(job.end),
                stable=stable,
                tail=tail,
                lag_ms=_milliseconds(now - job.arrived),
            )
        ]

    # --- finals ---------------------------------------------------------------------------------------------

    def _final_job(self, closed: _Closed) -> Job:
        assert closed.audio is not None, "a final that is due is not decided"
        return Job(
            audio=closed.audio,
            draft=closed.draft,
            language=self._language.code,
            languages=self._languages,
            times=self._words,
            ask_teacher_below=closed.ask_teacher_below,
            vocabulary=self._vocabulary(),
            revision=self._send(closed),
        )

    def _send(self, job: _Closed | _PartialJob) -> int:
        self._revision += 1
        self._in_flight[self._revision] = job
        return self._revision

    def _decide(self, closed: _Closed, result: Result) -> None:
        """Take a final's result as it is, without its loop, or as nothing; or have the teacher look at a loop, once."""
        if result.error is not None:
            self._settle(closed, self._failure(closed, result.error))
            return
        match verdict(result, self._text.text(result.tokens), self.settings.confidence):
            case "silence":
                self._settle(closed, None)
            case "repetition" if result.model == "student" and closed.ask_teacher_below < ALWAYS and self._has_teacher:
                closed.ask_teacher_below = ALWAYS
                closed.draft, _ = without_loop(result, self.settings.confidence)
                self._due.append(closed)
            case "repetition":
                tokens, log_probs = without_loop(result, self.settings.confidence)
                self._settle(closed, self._final(closed, replace(result, tokens=tokens, log_probs=log_probs)))
            case "ok":
                self._language.heard(result.language, closed.segment.end - closed.segment.start)
                self._settle(closed, self._final(closed, result))

    @property
    def _has_teacher(self) -> bool:
        return self.settings.ask_teacher_below > NEVER

    def _settle(self, closed: _Closed, outcome: Final | Error | None) -> None:
        closed.decided, closed.outcome, closed.audio = True, outcome, None

    def _final(self, closed: _Closed, result: Result) -> Final:
        language = result.language or self._language.code
        return Final(
            source=self.source,
            utterance=closed.number,
            start=_seconds(closed.segment.start),
            end=_seconds(closed.segment.end),
            text=self._text.text(result.tokens).rstrip(),
            confidence=round(utterance_confidence(result.log_probs), 4),
            model=result.model,
            language=language,
            latency_ms=0,  # known when it goes out
            words=spoken_words(self._text, result, _seconds(closed.segment.audio_start), language)
            if self._words
            else None,
            tokens=result.tokens,
            log_prob=sum(result.log_probs) / len(result.log_probs) if result.log_probs else None,
            no_speech=result.no_speech or None,  # 0 where the checkpoint cannot tell
        )

    def _failure(self, closed: _Closed, error: str) -> Error:
        start, end = _seconds(closed.segment.start), _seconds(closed.segment.end)
        message = f"utterance {closed.number} ({start:.2f} to {end:.2f} s) could not be transcribed: {error}"
        return Error("transcription_failed", message, fatal=False, source=self.source)

    def _drain(self, now: float) -> list[Event]:
        """What can go out now: everything up to the first final that is not decided."""
        events: list[Event] = []
        while self._outbox:
            item = self._outbox[0]
            if isinstance(item, _Closed):
                if not item.decided:
                    break
                outcome = item.outcome
                if isinstance(outcome, Final):
                    outcome = replace(outcome, latency_ms=_milliseconds(now - item.spoken))
                if outcome is not None:
                    events.append(outcome)
            else:
                events.append(item)
            self._outbox.popleft()
        return events


def spoken_words(text: Text, result: Result, origin: float, language: str | None) -> tuple[Word, ...]:
    """Return the words of a result that has times.

    Args:
        text: the checkpoint's.
        result: what was heard.
        origin: when its audio begins, in seconds.
        language: a code.
    """
    return tuple(
        Word(
            text=word.text,
            start=round(origin + result.times[word.first][0], 3),
            end=round(origin + result.times[word.last - 1][1], 3),
            confidence=round(word_confidence(result.log_probs[word.first : word.last]), 4),
        )
        for word in text.words(result.tokens, language)
    )


def _seconds(samples: int) -> float:
    return samples / SAMPLE_RATE


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))
