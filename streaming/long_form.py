"""A long recording, without input or output: samples, jobs and results in; jobs and events out.

Owns how a recording that no model hears at once is heard in windows, as Whisper does it: each window is as long as the
model hears, its text has timestamps, and the next begins where the last whole sentence ended. It stands in the place of
a `Session`, for audio that nobody waits for: there are no partials. Nothing here waits, sleeps or reads a clock.

    keep -> judged      which audio is speech; what is not is in no window's beginning or end
    next_job            one window at a time, because where the next begins follows from its text
    receive_result      finals, one for each span between two timestamps

A window may be heard more than once, and each time differently: heard in the same way, it would have the same text. A
text that turns in a loop is heard without the text before it (if it was told that), then given to the teacher, then its
audio is heard again shorter, cut at a pause, and only what loops even so loses its copies. A text that ends early is no
failure: the next window begins where it ended, as long as there is speech. Where it ended is its last timestamp, or the
place of its last word in time if that has none. So the number of jobs is bounded by the length of the audio:
`MOST_HEARINGS` for each `LEAST_ADVANCE`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from streaming.confidence import ConfidenceVerdict
from streaming.events import Error, Event, Final, Flushed, SpeechStarted, SpeechStopped, Stopped, Word
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
from streaming.session import SessionSettings, spoken_words
from streaming.speech_map import SpeechMap
from streaming.stamps import Span, closed, part_of, parts_of, spans_of, within, without_word_loop, words_verdict
from streaming.stream_language import StreamLanguage
from streaming.text import Text

LEAST_ADVANCE = 1.0
"""Seconds that a window brings the recording forward, at least, but for the last."""

UNHEARD = 1.0
"""Seconds of speech behind the last timestamp from which a text has ended early. Timestamps are not exact: the end of a
word behind one is not worth a window."""

COMPLETE = 2 / 3
"""Of a window, from where on a span without an end is left to the next window, which hears it whole. One that is longer
is taken up to the quiet place where the window was cut: a student that learnt without timestamps often writes only the
first, and would be heard twice."""

SHORTEST = 4.0
"""Seconds of about the shortest window: half of one that is less than twice as long is not heard."""

MOST_HEARINGS = 6
"""Of one window: by the student, without the text before it, by the teacher, and three times shorter, from 30 s down to
about `SHORTEST`."""

MOST_TOLD = 223
"""Tokens of the text before a window: no Whisper takes more (whisper/decoding.py)."""


@dataclass(frozen=True, slots=True)
class _Window:
    """What is heard at once.

    Attributes:
        start: the first sample.
        end: one past the last.
        ends_there: whether nothing follows for now: the recording, or what is to be final, ends.
        by_teacher: whether the teacher decides, however sure the student is.
        draft: of its job.
        hearings: how many there were.
    """

    start: int
    end: int
    ends_there: bool
    by_teacher: bool = False
    draft: tuple[int, ...] = ()
    hearings: int = 0


@dataclass(frozen=True, slots=True)
class _Taken:
    """What is taken of a window's text.

    Attributes:
        spans: those that become finals; all of them are closed.
        upto: where the next window begins, at the earliest.
    """

    spans: list[Span]
    upto: int


class LongForm:
    """One recording. It is used as a `Session` is.

    Args:
        source: the name that its events carry.
        settings: how it is transcribed.
        detector: gives the next frame its speech probability: a `vad.Detector` of the recording's own.
        text: the checkpoint's, which has timestamps.
        longest: the seconds that the models hear at once.
        language: a code, or None for the checkpoint to detect it.
        languages: the codes among which it does; empty for all that it knows.
        words: whether the words of finals are wanted.
        conditioned: whether each window is told the text before it, as far as the checkpoint can be told.
        vocabulary: asked for each job, returns the phrases that are to be heard.

    Raises:
        ValueError: the checkpoint has no timestamps.
    """

    def __init__(
        self,
        source: str,
        settings: SessionSettings,
        detector: Callable[[Waveform], float],
        text: Text,
        *,
        longest: float,
        language: str | None = None,
        languages: tuple[str, ...] = (),
        words: bool = False,
        conditioned: bool = False,
        vocabulary: Callable[[], Vocabulary] = lambda: NO_VOCABULARY,
    ) -> None:
        if text.first_timestamp is None:
            raise ValueError("the checkpoint has no timestamps")
        self.source = source
        self.settings = settings
        self._detector = detector
        self._text = text
        self._first_timestamp = text.first_timestamp
        self._languages = languages
        self._language = StreamLanguage(language)
        self._words = words
        self._conditioned = conditioned and text.previous is not None
        self._previous: tuple[int, ...] = ()
        self._vocabulary = vocabulary
        self._longest = round(longest * SAMPLE_RATE)
        self._search = min(round(settings.segment.cut_window * SAMPLE_RATE), self._longest // 2)
        self._pre_roll = round(settings.segment.pre_roll * SAMPLE_RATE)
        self._tail = round(settings.segment.tail * SAMPLE_RATE)
        self._recent = RecentAudio()
        self._speech = SpeechMap(settings.segment)
        self._at = 0  # all before it is decided
        self._window: _Window | None = None  # that is being heard, or is to be heard again
        self._revision = 0
        self._in_flight: int | None = None
        self._finals = 0
        self._marks: deque[tuple[int, Flushed | Stopped]] = deque()  # said once all before a place is decided
        self._stopping = False

    # --- what comes in ---------------------------------------------------------------------------------------------

    def receive(self, samples: Waveform, now: float) -> list[Event]:
        """Take the next samples: shape `[n]`. See `Session.receive`."""
        return [event for frame in self.keep(samples, now) for event in self.judged(frame, self._detector(frame))]

    def keep(self, samples: Waveform, now: float) -> list[Waveform]:
        """Take the next samples, and return the frames that they completed. See `Session.keep`."""
        self._check_running()
        return self._recent.append(samples, now)

    def judged(self, frame: Waveform, probability: float) -> list[Event]:
        """Take the probability that the next frame of those that are kept holds speech."""
        self._speech.push(probability, float(np.dot(frame, frame)) / len(frame))
        return []

    def flush(self, id: str | None, now: float) -> list[Event]:
        """Make final what was heard; `Flushed` comes after the finals of all of it."""
        return self._end(Flushed(id))

    def discard(self, id: str | None, now: float) -> list[Event]:
        """Forget what has no final yet; `Flushed` comes after what was to be final before."""
        if not self._marks:
            self._in_flight = None
            self._advance(self._recent.received)
        return self._end(Flushed(id))

    def stop(self, now: float) -> list[Event]:
        """End the audio; `Stopped` comes after the last final, and then this is `finished`."""
        events = self._end(Stopped(self.audio_seconds))
        self._stopping = True
        return events

    def receive_result(self, result: Result, now: float) -> list[Event]:
        """Take the result of the job; any other is ignored. A job that failed gives an error event in its place."""
        window = self._window
        if window is None or result.revision != self._in_flight:
            return []
        self._in_flight = None
        if result.error is not None:
            self._advance(window.end)
            return [self._failure(window, result.error), *self._drain()]
        taken = self._judge(window, result)
        if isinstance(taken, _Window):
            self._window = taken
            return []
        longest = round(self.settings.segment.longest * SAMPLE_RATE)
        parts = [part for span in taken.spans for part in parts_of(span, result, self._text, longest)]
        events = [event for span in parts for event in self._final(window, span, result, now)]
        self._tell(taken, result)
        self._advance(taken.upto)
        return events + self._drain()

    # --- what goes out ---------------------------------------------------------------------------------------------

    def pending(self) -> Literal["final", "partial"] | None:
        """Return what kind of job `next_job` would give."""
        if self._in_flight is not None:
            return None
        self._open()
        return "final" if self._window is not None else None

    def next_job(self) -> Job | None:
        """Return the job of the next window; None when it is not all there, or one is being heard."""
        if self.pending() is None or self._window is None:
            return None
        window = self._window = replace(self._window, hearings=self._window.hearings + 1)
        self._revision += 1
        self._in_flight = self._revision
        audio, settings = self._recent.slice(window.start, window.end), self.settings
        below = teacher_threshold(settings.ask_teacher_below, audio, settings.ask_teacher_from)
        return Job(
            audio=audio,
            draft=window.draft,
            language=self._language.code,
            languages=self._languages,
            timestamps=True,
            times=True,  # many texts of students have no timestamp at their end
            ask_teacher_below=ALWAYS if window.by_teacher else below,
            vocabulary=self._vocabulary(),
            revision=self._revision,
            previous=self._previous,
        )

    @property
    def audio_seconds(self) -> float:
        """Audio received."""
        return self._recent.received / SAMPLE_RATE

    @property
    def judged_seconds(self) -> float:
        """Audio of which it is known whether it is speech."""
        return self._speech.judged / SAMPLE_RATE

    @property
    def voiced_seconds(self) -> float:
        """How much of it was speech."""
        return self._speech.voiced / SAMPLE_RATE

    @property
    def backlog_seconds(self) -> float:
        """Audio that waits for a result: none while a window is still to be filled, or it would never be."""
        return 0.0 if self._window is None else (self._recent.received - self._at) / SAMPLE_RATE

    @property
    def speaking(self) -> bool:
        """Whether an utterance is open: never. A recording has been spoken already."""
        return False

    @property
    def spoken(self) -> bool:
        """Whether anybody has spoken so far."""
        return self._speech.voiced > 0

    @property
    def settled(self) -> bool:
        """Whether all that is to be final has its final."""
        return self._window is None and not self._marks

    @property
    def finished(self) -> bool:
        """Whether `Stopped` is out: nothing more will come."""
        return self._stopping and not self._marks

    # --- windows ---------------------------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._stopping:
            raise RuntimeError(f"the recording {self.source!r} was stopped")

    def _end(self, mark: Flushed | Stopped) -> list[Event]:
        """Let all that was heard so far be final, and say `mark` after it."""
        self._check_running()
        self._marks.append((self._recent.received, mark))
        return self._drain()

    def _drain(self) -> list[Event]:
        """What can be said now: each mark before which all is decided."""
        events: list[Event] = []
        self._open()
        while self._marks and self._window is None and self._at >= self._marks[0][0]:
            events.append(self._marks.popleft()[1])
            self._open()
        return events

    def _open(self) -> None:
        """Open the next window if there is none and its audio is all there."""
        limit = self._marks[0][0] if self._marks else None
        if self._window is not None or (limit is None and self._speech.judged - self._at < self._longest):
            return
        end = self._speech.judged if limit is None else limit
        begins = self._speech.first(self._at, ended=limit is not None)
        if begins is None or begins >= end:
            # Speech may have begun just before the end, so soft that it is not heard as such yet.
            self._advance(end if limit is not None else max(self._at, end - self._pre_roll))
            return
        start = max(self._at, begins - self._pre_roll)
        self._advance(start)
        if end - start < self._longest and limit is None:
            return
        most = start + self._longest
        cut = end if end <= most else self._speech.quietest(most - self._search, most)
        self._window = self._made(start, cut, ends_there=cut == limit)

    def _made(self, start: int, end: int, *, ends_there: bool) -> _Window:
        """Return a window without the silence at its end, in which there is nothing but words to be invented."""
        return _Window(start, min(end, self._speech.last(start, end) + self._tail), ends_there)

    def _advance(self, place: int) -> None:
        """Let all before `place` be decided."""
        self._at = max(self._at, place)
        self._window = None
        self._recent.forget_before(self._at)
        self._speech.forget_before(self._at)

    # --- what a text is worth --------------------------------------------------------------------------------------

    def _judge(self, window: _Window, result: Result) -> _Window | _Taken:
        """Return what is taken of a text, or how its window is to be heard again."""
        match self._verdict(result):
            case "silence":
                return _Taken([], window.end)
            case "repetition":
                return self._again(window, result) or self._unlooped(window, result)
        self._language.speech_began(window.start)
        self._language.heard(result.language, window.end - window.start)
        self._language.speech_ended(window.end)
        spans = self._spans(window, result)
        return self._taken(window, spans, result) or self._shorter(window) or _whole(window, spans)

    def _again(self, window: _Window, result: Result) -> _Window | None:
        """Return how a window is heard again whose text loops; None where nothing helped."""
        if self._previous:
            self._previous = ()  # what a text goes on with may be what it turns round
            return window
        if result.model == "student" and self._has_teacher and not window.by_teacher:
            return replace(window, by_teacher=True, draft=result.tokens)
        return self._shorter(window)

    def _shorter(self, window: _Window) -> _Window | None:
        """Return about half of a window, cut at a pause; None for one that is too short."""
        length = window.end - window.start
        if length < 2 * SHORTEST * SAMPLE_RATE or window.hearings >= MOST_HEARINGS:
            return None
        cut = self._speech.quietest(window.start + length * 2 // 5, window.start + length * 3 // 5)
        shorter = self._made(window.start, cut, ends_there=False)
        # A teacher that was asked of the whole is asked of its part: the student had its turn.
        return replace(shorter, by_teacher=window.by_teacher, hearings=window.hearings)

    def _unlooped(self, window: _Window, result: Result) -> _Taken:
        kept = without_word_loop(result, self._first_timestamp, self.settings.confidence)
        return _whole(window, self._spans(window, kept))

    def _taken(self, window: _Window, spans: list[Span], result: Result) -> _Taken | None:
        """Return what is taken of a sound text; None where it brings the recording nowhere.

        Args:
            window: what was heard.
            spans: of its text, of which there is at least one.
            result: the text.
        """
        *before, last = spans
        length = window.end - window.start
        if last.end is None and not window.ends_there and last.start >= COMPLETE * length:
            return _Taken(before, window.start + last.start)
        ended = window.start + (self._reach(result, last, length) if last.end is None else last.end)
        early = self._speech.amount(ended, window.end) >= UNHEARD * SAMPLE_RATE
        upto = ended if early else window.end
        if upto - window.start < LEAST_ADVANCE * SAMPLE_RATE:
            return None
        return _Taken(closed(spans, upto - window.start), upto)

    def _reach(self, result: Result, span: Span, length: int) -> int:
        """Return where a span ends that has no timestamp there, by the place of its last token in time."""
        return min(length, round(result.times[span.last - 1][1] * SAMPLE_RATE)) if result.times else length

    def _tell(self, taken: _Taken, result: Result) -> None:
        """Keep what is taken of a text for the next window, times too, as OpenAI's `transcribe` does."""
        if not self._conditioned or not taken.spans:
            return
        first, last = taken.spans[0].first, taken.spans[-1].last
        # Behind a loop that was cut short there is no timestamp, but the next copy.
        closing = [token for token in result.tokens[last : last + 1] if token >= self._first_timestamp]
        self._previous = (*self._previous, *result.tokens[max(0, first - 1) : last], *closing)[-MOST_TOLD:]

    def _spans(self, window: _Window, result: Result) -> list[Span]:
        return within(spans_of(result.tokens, self._first_timestamp), window.end - window.start)

    def _verdict(self, result: Result) -> ConfidenceVerdict:
        return words_verdict(result, self._text, self._first_timestamp, self.settings.confidence)

    @property
    def _has_teacher(self) -> bool:
        return self.settings.ask_teacher_below > NEVER

    # --- finals ----------------------------------------------------------------------------------------------------

    def _final(self, window: _Window, span: Span, result: Result, now: float) -> list[Event]:
        """What is said of a span; nothing where it has no text."""
        said = part_of(result, range(span.first, span.last))
        text = self._text.text(said.tokens).rstrip()
        if not text:
            return []
        self._finals += 1
        assert span.end is not None, "what is taken is closed"
        begins, ends = window.start + span.start, window.start + span.end
        start, end = begins / SAMPLE_RATE, ends / SAMPLE_RATE
        language = result.language or self._language.code
        final = Final(
            source=self.source,
            utterance=self._finals,
            start=start,
            end=end,
            text=text,
            confidence=round(utterance_confidence(said.log_probs), 4),
            model=result.model,
            language=language,
            latency_ms=max(0, round(1000 * (now - self._recent.arrival(ends)))),
            words=self._timed_words(said, window, start, end, language) if self._words else None,
            tokens=said.tokens,
            log_prob=sum(said.log_probs) / len(said.log_probs),
            no_speech=result.no_speech or None,  # 0 where the checkpoint cannot tell
        )
        return [
            SpeechStarted(self.source, self._finals, start),
            SpeechStopped(self.source, self._finals, end),
            final,
        ]

    def _timed_words(
        self, said: Result, window: _Window, start: float, end: float, language: str | None
    ) -> tuple[Word, ...]:
        """Return the words of a span, none of which leaves it: their times are found in another way than its own."""
        return tuple(
            replace(word, start=min(max(word.start, start), end), end=min(max(word.end, start), end))
            for word in spoken_words(self._text, said, window.start / SAMPLE_RATE, language)
        )

    def _failure(self, window: _Window, error: str) -> Error:
        start, end = window.start / SAMPLE_RATE, window.end / SAMPLE_RATE
        message = f"{start:.2f} to {end:.2f} s could not be transcribed: {error}"
        return Error("transcription_failed", message, fatal=False, source=self.source)


def _whole(window: _Window, spans: list[Span]) -> _Taken:
    """Take a text for that of the whole window."""
    return _Taken(closed(spans, window.end - window.start), window.end)
