"""One stream: what goes in and what comes out, by property and by example.

Where speech is scripted, sample *i* has the value *i*, so that a job's audio tells which samples it is made of, and the
detector is a list of probabilities. Where it is real, recordings go through the real detector.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise, repeat
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from streaming.audio import FRAME
from streaming.events import (
    Error,
    Event,
    Final,
    Flushed,
    Partial,
    SpeechStarted,
    SpeechStopped,
    Stopped,
    to_dict,
)
from streaming.job import ALWAYS, NEVER, SAMPLE_RATE, Job, Phrase, Result, Vocabulary, Waveform
from streaming.segment import SegmentSettings
from streaming.session import Session, SessionSettings
from streaming.text import Text
from streaming.vad import Detector

Tokens = tuple[int, ...]


@pytest.fixture(scope="session")
def encode(tokenizer: Tokenizer) -> Callable[[str], Tokens]:
    return lambda sentence: tuple(tokenizer.encode(" " + sentence, add_special_tokens=False).ids)


def result_of(job: Job, tokens: Tokens, probability: float = 0.9, **fields: Any) -> Result:
    """What an engine would answer that heard `tokens`."""
    accepted = next(
        (i for i, (a, b) in enumerate(zip(job.draft, tokens, strict=False)) if a != b), min(len(job.draft), len(tokens))
    )
    times = tuple((0.1 * i, 0.1 * i + 0.1) for i in range(len(tokens))) if job.times else ()
    log_probs = (math.log(probability),) * (len(tokens) + 1)
    return Result(job.revision, tokens, log_probs, accepted, times, student_tokens=tokens, **fields)


def script(*stretches: tuple[float, float]) -> Iterator[float]:
    """Probabilities from (probability, seconds), and silence for ever after."""
    counts = ((probability, round(seconds * SAMPLE_RATE / FRAME)) for probability, seconds in stretches)
    return chain(chain.from_iterable(repeat(p, count) for p, count in counts), repeat(0.0))


@dataclass
class Stream:
    """A session with scripted speech, and all that came out of it."""

    text: Text
    speech: Iterator[float] = field(default_factory=lambda: repeat(0.0))
    settings: SessionSettings = field(default_factory=SessionSettings)
    options: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session = Session("kitchen", self.settings, lambda frame: next(self.speech), self.text, **self.options)
        self.heard = 0

    def hear(self, seconds: float, *, now: float = 0.0, sizes: Iterable[int] = (320,)) -> None:
        end = self.heard + round(seconds * SAMPLE_RATE)
        for size in chain.from_iterable(repeat(tuple(sizes))):
            if self.heard >= end:
                return
            upto = min(self.heard + size, end)
            self.take(self.session.receive(np.arange(self.heard, upto, dtype=np.float32), now))
            self.heard = upto

    def take(self, events: list[Event]) -> None:
        self.events += events

    def job(self) -> Job:
        job = self.session.next_job()
        assert job is not None
        return job

    def answer(self, tokens: Tokens, *, now: float = 0.0, **fields: Any) -> Job:
        """Run the next job."""
        job = self.job()
        self.take(self.session.receive_result(result_of(job, tokens, **fields), now))
        return job

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


# --- vocabulary ------------------------------------------------------------------------------------------------------


def test_each_job_has_the_phrases_of_its_moment(text: Text) -> None:
    """What changes while somebody speaks holds for the next partial, and for the final."""
    lists = iter([Vocabulary((Phrase(name),)) for name in ("first", "second", "third")])
    stream = Stream(text, script((0.9, 2.0)), options={"vocabulary": lambda: next(lists)})
    stream.hear(0.8)
    assert [phrase.text for phrase in stream.answer(()).vocabulary.phrases] == ["first"]
    stream.hear(0.8)
    assert [phrase.text for phrase in stream.answer(()).vocabulary.phrases] == ["second"]
    stream.hear(3.0)
    assert [phrase.text for phrase in stream.answer(()).vocabulary.phrases] == ["third"]


# --- language --------------------------------------------------------------------------------------------------------


def test_a_detected_language_is_held_and_asked_for_again_after_a_long_silence(
    text: Text, encode: Callable[[str], Tokens]
) -> None:
    speech = script((0, 1), (0.9, 4), (0, 30), (0.9, 1), (0, 61), (0.9, 1))
    stream = Stream(text, speech, options={"languages": ("de", "en"), "partials": True})
    stream.hear(2)
    assert stream.answer(encode("turn on"), language="en").language is None  # a second is too little
    stream.hear(2)
    assert stream.answer(encode("turn on"), language="de").language is None
    stream.hear(2)
    final = stream.answer(encode("turn on"), language="de")
    assert (final.language, final.languages) == ("de", ("de", "en"))
    stream.hear(31)
    assert stream.answer(encode("turn off"), language="de").language == "de"
    stream.hear(62)
    assert stream.answer(encode("turn off"), language="en").language is None


# --- invariants ------------------------------------------------------------------------------------------------------

hears = st.tuples(st.just("hear"), st.booleans(), st.floats(0.02, 3.0), st.lists(st.integers(1, 4000), min_size=1))
asks = st.tuples(st.just("ask"))
answers = st.tuples(
    st.just("answer"),
    st.integers(0, 10),  # which of those not answered
    st.sampled_from(["once", "twice", "error", "never"]),
    st.lists(st.sampled_from(["turn", "on", "off", "the", "light", "café"]), min_size=1, max_size=6).map(" ".join),
)
flushes = st.tuples(st.just("flush"))
talks = st.tuples(st.just("hear"), st.just(True), st.floats(0.5, 2.0), st.lists(st.integers(1, 4000), min_size=1))
# Mostly talk that is asked about and answered, so that partials and finals come of it; and anything between.
rounds = st.one_of(
    st.tuples(talks, asks, answers),
    st.tuples(talks, asks, answers),
    st.tuples(hears),
    st.tuples(asks),
    st.tuples(answers),
    st.tuples(flushes),
)
steps = st.lists(rounds, max_size=25).map(lambda rounds: [step for each in rounds for step in each])


@given(steps=steps)
def test_whatever_comes_in_whichever_order(text: Text, encode: Callable[[str], Tokens], steps: list[Any]) -> None:
    """Results late, out of order, twice, failed or lost; flushes anywhere; frames of any size."""
    voiced = deque[float]()
    stream = Stream(
        text,
        iter(lambda: voiced.popleft() if voiced else 0.0, None),
        SessionSettings(SegmentSettings(longest=5.0, cut_window=1.0)),
    )
    session = stream.session
    out: list[Job] = []
    lost: list[Job] = []
    finals: list[Job] = []
    marks: list[tuple[str, int]] = []  # flush id, utterances started before it

    def ask() -> None:
        wanted = session.pending()
        job = session.next_job()
        assert (job is None) == (wanted is None)
        if job is not None:
            out.append(job)
            if wanted == "final":
                finals.append(job)

    for step in steps:
        match step:
            case ("hear", speech, seconds, sizes):
                frames = round(seconds * SAMPLE_RATE / FRAME)
                voiced.extend([0.9 if speech else 0.0] * frames)
                stream.hear(frames * FRAME / SAMPLE_RATE, sizes=sizes)
            case ("ask",):
                ask()
            case ("answer", which, how, sentence) if out:
                job = out.pop(which % len(out))
                if how == "never":
                    lost.append(job)
                    continue
                error = "no memory" if how == "error" else None
                result = result_of(job, encode(sentence), error=error)
                stream.take(session.receive_result(result, 0.0))
                if how == "twice":
                    stream.take(session.receive_result(result, 0.0))
            case ("flush",):
                marks.append((f"f{len(marks)}", len(stream.of(SpeechStarted))))
                stream.take(session.flush(marks[-1][0], 0.0))
                marks[-1] = (marks[-1][0], len(stream.of(SpeechStarted)))
    stream.take(session.stop(0.0))
    while session.pending():
        ask()
    for job in reversed(out):
        stream.take(session.receive_result(result_of(job, encode("on")), 0.0))

    # What was lost holds back what comes after it, and no more than that; its arrival, however late, sets it free.
    lost_finals = [job for job in lost if any(job is final for final in finals)]
    assert session.finished == (not lost_finals)
    for job in lost:
        stream.take(session.receive_result(result_of(job, encode("on")), 0.0))
    assert session.finished
    assert session.backlog_seconds == 0
    assert session.audio_seconds == stream.heard / SAMPLE_RATE

    check_order(stream, marks)
    check_partials(stream)
    check_audio(finals, stream)


def check_order(stream: Stream, marks: list[tuple[str, int]]) -> None:
    count = len(stream.of(SpeechStarted))
    assert [event.utterance for event in stream.of(SpeechStarted)] == list(range(1, count + 1))
    assert [event.utterance for event in stream.of(SpeechStopped)] == list(range(1, count + 1))
    # One final, or one error in its place, for each utterance, in order; marks right behind what was heard before them.
    closing = [event for event in stream.events if isinstance(event, Final | Error | Flushed | Stopped)]
    expected: list[int | str] = list(range(1, count + 1))
    for id, before in reversed(marks):
        expected.insert(before, id)
    number = 0
    for event, wanted in zip(closing[:-1], expected, strict=True):
        match event:
            case Flushed():
                assert event.id == wanted
            case Final():
                number += 1
                assert event.utterance == wanted == number
            case Error():
                number += 1
                assert wanted == number
                assert f"utterance {number} " in event.message
    assert isinstance(stream.events[-1], Stopped)
    assert closing[-1] is stream.events[-1]


def check_partials(stream: Stream) -> None:
    """Between its utterance's start and stop; `stable` and `end` never go back."""
    open_utterance, last = None, None
    for event in stream.events:
        match event:
            case SpeechStarted():
                assert open_utterance is None
                open_utterance, last = event, None
            case SpeechStopped():
                assert open_utterance is not None
                assert event.end > open_utterance.start
                open_utterance = None
            case Partial():
                assert open_utterance is not None
                assert (event.utterance, event.start) == (open_utterance.utterance, open_utterance.start)
                if last is not None:
                    assert event.stable.startswith(last.stable)
                    assert event.end > last.end
                last = event


def check_audio(finals: list[Job], stream: Stream) -> None:
    """Finals are asked for in order; their audio is the stream's own samples, none of them twice."""
    for job in finals:
        np.testing.assert_array_equal(np.diff(job.audio), 1)
    for one, other in pairwise(finals):
        assert one.audio[-1] < other.audio[0]
    starts = {event.utterance: event.start for event in stream.of(SpeechStarted)}
    ends = {event.utterance: event.end for event in stream.of(SpeechStopped)}
    assert len(finals) == len(starts)
    for number, job in enumerate(finals, 1):
        assert job.audio[0] <= starts[number] * SAMPLE_RATE < ends[number] * SAMPLE_RATE <= job.audio[-1] + 1


@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=6))
def test_the_size_of_messages_changes_nothing(
    text: Text, recording: Callable[[str], Waveform], sizes: list[int]
) -> None:
    def utterances(sizes: list[int]) -> list[Any]:
        session = Session("s", SessionSettings(), Detector(), text)
        samples, events, at = recording("stop"), [], 0
        for size in chain.from_iterable(repeat(sizes)):
            if at >= len(samples):
                break
            events += session.receive(samples[at : at + size], 0.0)
            at += size
        events += session.stop(0.0)
        job = session.next_job()
        assert job is not None
        return [*events, job.audio.tobytes()]

    assert utterances(sizes) == utterances([320])


# --- real speech, and what is none -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spans"),
    [
        ("turn_on_the_kitchen_light", [(0.75, 2.0)]),
        ("stop", [(0.7, 1.25)]),
        ("on", [(0.75, 1.15)]),
        ("two_sentences", [(0.75, 2.1), (3.65, 4.45)]),
    ],
)
@pytest.mark.parametrize("partials", [True, False])
def test_each_thing_said_is_an_utterance(
    text: Text,
    encode: Callable[[str], Tokens],
    recording: Callable[[str], Waveform],
    name: str,
    spans: list[tuple[float, float]],
    partials: bool,
) -> None:
    session = Session("kitchen", SessionSettings(), Detector(), text, partials=partials)
    samples, events = recording(name), []
    for at in range(0, len(samples), 320):
        events += session.receive(samples[at : at + 320], at / SAMPLE_RATE)
        while job := session.next_job():
            events += session.receive_result(result_of(job, encode("stop")), at / SAMPLE_RATE)
    finals = [event for event in events if isinstance(event, Final)]
    assert [(final.start, final.end) for final in finals] == [pytest.approx(span, abs=0.1) for span in spans]
    assert any(isinstance(event, Partial) for event in events) == partials
    assert all(600 <= final.latency_ms <= 700 for final in finals)  # the hangover, to a frame: nothing else takes time


def test_noise_is_no_utterance(text: Text) -> None:
    random = np.random.default_rng(0)
    seconds = 10 * SAMPLE_RATE
    white = random.normal(0, 1, seconds)
    pink = np.fft.irfft(np.fft.rfft(white) / np.sqrt(np.arange(seconds // 2 + 1) + 1.0))
    hum = sum(np.sin(2 * np.pi * 50 * n * np.arange(seconds) / SAMPLE_RATE) / n for n in (1, 2, 3, 5))
    clicks = np.zeros(seconds)
    clicks[:: SAMPLE_RATE // 3] = 1
    for noise in (white, pink, hum, clicks):
        for peak in (0.003, 0.03, 0.3):
            session = Session("kitchen", SessionSettings(), Detector(), text)
            samples = (noise * peak / np.abs(noise).max()).astype(np.float32)
            assert session.receive(samples, 0.0) == []


# --- partials --------------------------------------------------------------------------------------------------------


def test_the_first_partial_is_due_soon_and_the_next_each_interval(text: Text, encode: Callable[[str], Tokens]) -> None:
    stream = Stream(text, script((0, 1), (0.9, 5)))
    due = []
    for _ in range(120):
        stream.hear(0.032, sizes=(512,))
        if stream.session.pending() == "partial":
            stream.answer(encode("turn on"))
            due.append(stream.events[-1])
    ends = [round(event.end - 1, 2) for event in stream.of(Partial)]
    assert ends[0] == pytest.approx(0.3, abs=0.07)
    assert [later - earlier for earlier, later in pairwise(ends)] == pytest.approx([0.5] * (len(ends) - 1), abs=0.04)
    assert len(ends) >= 5


def test_the_next_partial_is_due_later_while_they_are_further_apart_and_the_first_is_not(
    text: Text, encode: Callable[[str], Tokens]
) -> None:
    spacing = 4.0
    stream = Stream(text, script((0, 1), (0.9, 9)), options={"spacing": lambda: spacing})
    ends = []
    for _ in range(220):
        stream.hear(0.032, sizes=(512,))
        if stream.session.pending() == "partial":
            stream.answer(encode("turn on"))
            ends.append(stream.of(Partial)[-1].end)
            if len(ends) == 3:
                spacing = 1.0
    assert ends[0] - 1 == pytest.approx(0.3, abs=0.07)
    gaps = [later - earlier for earlier, later in pairwise(ends)]
    assert gaps[:2] == pytest.approx([2.0, 2.0], abs=0.04)
    assert len(gaps) > 2
    assert gaps[2:] == pytest.approx([0.5] * (len(gaps) - 2), abs=0.04)


def test_a_partial_covers_the_newest_audio_and_drafts_from_the_last(
    text: Text, encode: Callable[[str], Tokens]
) -> None:
    stream = Stream(text, script((0, 1), (0.9, 5)), options={"language": "en"})
    stream.hear(2)
    first = stream.answer(encode("turn on"))
    assert (first.draft, first.language, first.ask_teacher_below, first.times) == ((), "en", NEVER, False)
    stream.hear(1)
    stream.hear(1)  # nobody asked: one job, over all of it
    second = stream.answer(encode("turn on the light"))
    assert second.draft == encode("turn on")
    assert second.audio[0] == first.audio[0]
    assert second.audio[-1] >= 4 * SAMPLE_RATE - FRAME
    assert stream.session.pending() is None
    partial = stream.of(Partial)[-1]
    assert (partial.stable, partial.tail) == ("turn on", " the light")


def test_lag_is_from_the_newest_sample_that_was_heard(text: Text, encode: Callable[[str], Tokens]) -> None:
    stream = Stream(text, script((0.9, 5)))
    stream.hear(1.024, now=100.0)
    job = stream.job()
    stream.hear(0.5, now=100.4)
    stream.take(stream.session.receive_result(result_of(job, encode("stop")), 100.75))
    (partial,) = stream.of(Partial)
    assert partial.lag_ms == 750
    assert partial.end == 1.024


def test_one_partial_at_a_time_and_none_when_not_wanted(text: Text) -> None:
    stream = Stream(text, script((0.9, 5)))
    stream.hear(1)
    stream.job()
    stream.hear(2)
    assert stream.session.next_job() is None
    silent = Stream(text, script((0.9, 5)), options={"partials": False})
    silent.hear(3)
    assert silent.session.pending() is None


def test_a_partial_of_a_closed_utterance_is_stale_and_stops_nothing(
    text: Text, encode: Callable[[str], Tokens]
) -> None:
    stream = Stream(text, script((0.9, 1), (0, 1), (0.9, 2)))
    stream.hear(0.8)
    stale = stream.job()  # its result comes much later
    stream.hear(1.2)
    stream.answer(encode("stop"))
    stream.hear(1)
    assert stream.session.pending() == "partial"
    before = list(stream.events)
    stream.take(stream.session.receive_result(result_of(stale, encode("go")), 0.0))
    assert stream.events == before
    stream.answer(encode("on"))
    assert stream.of(Partial)[-1].utterance == 2


@pytest.mark.parametrize(
    "fields", [{"error": "no memory"}, {"probability": 0.05}, {"no_speech": 0.9, "probability": 0.3}]
)
def test_a_partial_not_worth_showing_is_not_shown(
    text: Text, encode: Callable[[str], Tokens], fields: dict[str, Any]
) -> None:
    stream = Stream(text, script((0.9, 5)))
    stream.hear(1)
    stream.answer(encode("stop"), **fields)
    assert stream.of(Partial) == []
    stream.hear(1)
    assert stream.answer(encode("stop")).draft == ()
    assert len(stream.of(Partial)) == 1


def test_a_partial_has_no_more_tokens_than_could_have_been_spoken(text: Text, encode: Callable[[str], Tokens]) -> None:
    """A decoder that turns in a loop would else go on to the limit of its texts, and its batch with it."""
    stream = Stream(text, script((0.9, 8)))
    stream.hear(1)
    first = stream.job()
    stream.take(stream.session.receive_result(result_of(first, encode("turn on")), 0.0))
    stream.hear(4)
    later = stream.job()
    limits = [job.max_tokens or 0 for job in (first, later)]
    for job, limit in zip((first, later), limits, strict=True):
        seconds = job.audio.size / 16000
        assert 6 * seconds < limit < 24 + 10 * seconds + 1
    assert limits[0] < limits[1]


def test_a_second_copy_of_a_result_changes_nothing(text: Text, encode: Callable[[str], Tokens]) -> None:
    stream = Stream(text, script((0.9, 1), (0, 1), (0.9, 1)))
    stream.hear(0.8)
    partial = result_of(stream.job(), encode("stop"))
    for _ in range(2):
        stream.take(stream.session.receive_result(partial, 0.0))
    assert len(stream.of(Partial)) == 1
    stream.hear(3.2)
    first, second = (result_of(stream.job(), encode("turn on")) for _ in range(2))
    for result in (second, second, replace(second, error="late"), first, first, second, partial):
        stream.take(stream.session.receive_result(result, 0.0))
    assert [final.text for final in stream.of(Final)] == ["turn on", "turn on"]
    assert len(stream.of(Partial)) == 1
    assert stream.of(Error) == []


# --- finals ----------------------------------------------------------------------------------------------------------


def final_due(text: Text, **settings: Any) -> Stream:
    """A stream in which something was said, from 1 s to 2.024 s, and whose final is due."""
    options = settings.pop("options", {"partials": False})
    stream = Stream(text, script((0, 1), (0.9, 1.024)), SessionSettings(**settings), options)
    stream.hear(3, now=10.0)
    assert stream.session.pending() == "final"
    return stream


def test_a_final_has_the_speechs_bounds_and_its_audio_a_little_more(
    text: Text, encode: Callable[[str], Tokens]
) -> None:
    stream = final_due(text)
    job = stream.answer(encode("turn on"), now=10.5)
    (final,) = stream.of(Final)
    assert (final.start, final.end) == (0.992, 2.016)
    assert (job.audio[0], job.audio[-1] + 1) == ((0.992 - 0.3) * SAMPLE_RATE, (2.016 + 0.2) * SAMPLE_RATE)
    assert final == Final("kitchen", 1, 0.992, 2.016, "turn on", 0.9, "student", None, latency_ms=500)


def test_what_of_a_final_is_not_in_its_json(text: Text, encode: Callable[[str], Tokens]) -> None:
    stream = final_due(text)
    stream.answer(tokens := encode("turn on"), probability=0.8, no_speech=0.25)
    (final,) = stream.of(Final)
    assert (final.tokens, final.no_speech) == (tokens, 0.25)
    assert final.log_prob == pytest.approx(math.log(0.8))
    assert to_dict(final).keys() == {
        "type", "source", "utterance", "start", "end", "text", "confidence", "model", "language", "latency_ms", "seq",
    }  # fmt: skip


def test_where_a_checkpoint_cannot_tell_silence_none_is_known(text: Text, encode: Callable[[str], Tokens]) -> None:
    stream = final_due(text)
    stream.answer(encode("turn on"), no_speech=0.0)
    assert [final.no_speech for final in stream.of(Final)] == [None]


def test_words_have_stream_times_and_confidence(text: Text, encode: Callable[[str], Tokens]) -> None:
    stream = final_due(text, options={"words": True, "partials": False, "language": "en"})
    tokens = encode("turn off the lamp, please")
    job = stream.answer(tokens)
    assert job.times
    (final,) = stream.of(Final)
    assert [word.text for word in final.words] == ["turn", "off", "the", "lamp,", "please"]
    origin = round(float(job.audio[0]) / SAMPLE_RATE, 3)
    assert final.words[0].start == pytest.approx(origin)
    assert final.words[-1].end == pytest.approx(origin + 0.1 * len(tokens))
    assert all(one.end == other.start for one, other in pairwise(final.words))
    assert {word.confidence for word in final.words} == {0.9}
    assert final.language == "en"


def test_several_finals_may_be_in_flight_and_come_out_in_order(text: Text, encode: Callable[[str], Tokens]) -> None:
    stream = Stream(text, script(*[(0.9, 0.5), (0, 1)] * 3), options={"partials": False})
    stream.hear(6)
    jobs = [stream.job() for _ in range(3)]
    assert stream.session.pending() is None
    assert stream.session.backlog_seconds == pytest.approx(sum(len(job.audio) for job in jobs) / SAMPLE_RATE)
    for index in (2, 0):
        stream.take(stream.session.receive_result(result_of(jobs[index], encode("stop")), 0.0))
    assert [final.utterance for final in stream.of(Final)] == [1]
    assert stream.session.backlog_seconds == pytest.approx(len(jobs[1].audio) / SAMPLE_RATE)
    stream.take(stream.session.receive_result(result_of(jobs[1], encode("stop")), 0.0))
    assert [final.utterance for final in stream.of(Final)] == [1, 2, 3]
    assert stream.session.backlog_seconds == 0


def test_a_final_drafts_from_the_last_partial_and_may_ask_the_teacher(
    text: Text, encode: Callable[[str], Tokens]
) -> None:
    stream = Stream(text, script((0.9, 1)), SessionSettings(ask_teacher_below=0.8))
    stream.hear(0.9)
    stream.answer(encode("turn on"))
    stream.hear(2)
    job = stream.answer(encode("turn on"), model="teacher", language="en")
    assert (job.draft, job.ask_teacher_below) == (encode("turn on"), 0.8)
    (final,) = stream.of(Final)
    assert (final.model, final.language) == ("teacher", "en")


@pytest.mark.parametrize(
    ("below", "shortest", "asked"), [(0.8, 1.1, NEVER), (0.8, 1.0, 0.8), (ALWAYS, 1.1, ALWAYS), (NEVER, 0.0, NEVER)]
)
def test_the_student_decides_alone_what_is_short(text: Text, below: float, shortest: float, asked: float) -> None:
    """Half a second of speech, and another of what belongs to the segment around it."""
    settings = SessionSettings(ask_teacher_below=below, ask_teacher_from=shortest)
    stream = Stream(text, script((0, 0.5), (0.9, 0.5), (0, 2)), settings, options={"partials": False})
    stream.hear(3)
    job = stream.answer(())
    assert 1.0 < job.audio.size / SAMPLE_RATE < 1.1
    assert job.ask_teacher_below == asked


def test_a_failed_final_is_an_error_in_its_place_and_nothing_else(text: Text, encode: Callable[[str], Tokens]) -> None:
    stream = Stream(text, script(*[(0.9, 0.5), (0, 1)] * 2), options={"partials": False})
    stream.hear(4)
    stream.answer((), error="no memory")
    stream.answer(encode("stop"))
    *_, error, final = stream.events
    assert isinstance(error, Error)
    assert (error.code, error.fatal, error.source) == ("transcription_failed", False, "kitchen")
    assert "utterance 1 (0.00 to 0.51 s)" in error.message
    assert "no memory" in error.message
    assert isinstance(final, Final)
    assert final.utterance == 2


@pytest.mark.parametrize("fields", [{"probability": 0.05}, {"no_speech": 0.9, "probability": 0.3}, {"tokens": ()}])
def test_where_nothing_was_said_there_is_no_final(
    text: Text, encode: Callable[[str], Tokens], fields: dict[str, Any]
) -> None:
    stream = final_due(text)
    stream.answer(**({"tokens": encode("stop")} | fields))
    assert [type(event) for event in stream.events] == [SpeechStarted, SpeechStopped]
    assert stream.session.backlog_seconds == 0
    assert stream.session.flush("a", 0.0) == [Flushed("a")]


def test_the_teacher_looks_at_a_loop_once(text: Text, encode: Callable[[str], Tokens]) -> None:
    stream = final_due(text, ask_teacher_below=0.5)
    looped = encode("turn") + encode("on the") * 8
    first = stream.answer(looped)
    assert first.ask_teacher_below == 0.5
    assert stream.of(Final) == []
    second = stream.answer(encode("turn on the light"), model="teacher")
    assert second.ask_teacher_below == ALWAYS
    assert second.draft == encode("turn") + encode("on the")
    assert second.revision != first.revision
    np.testing.assert_array_equal(second.audio, first.audio)
    (final,) = stream.of(Final)
    assert (final.text, final.model) == ("turn on the light", "teacher")


@pytest.mark.parametrize(
    ("ask_teacher_below", "answers"),
    [
        (0.5, ["student", "teacher"]),  # the teacher loops too
        (0.5, ["student", "student"]),  # there is no teacher
        (0.5, ["teacher"]),  # it had decided already
        (NEVER, ["student"]),  # it is not to be asked
        (ALWAYS, ["student"]),  # it was asked, and is not there
    ],
)
def test_a_loop_that_stays_is_cut_after_its_first_copy(
    text: Text, encode: Callable[[str], Tokens], ask_teacher_below: float, answers: list[str]
) -> None:
    stream = final_due(text, ask_teacher_below=ask_teacher_below, options={"words": True, "partials": False})
    for model in answers:
        assert stream.of(Final) == []
        stream.answer(encode("turn") + encode("on the") * 8, model=model)
    (final,) = stream.of(Final)
    assert final.text == "turn on the"
    assert [word.text for word in final.words] == ["turn", "on", "the"]
    assert final.model == answers[-1]
    assert stream.session.pending() is None


def test_speech_without_a_pause_is_cut_and_goes_on(text: Text, encode: Callable[[str], Tokens]) -> None:
    stream = Stream(text, script((0.9, 40)), options={"partials": False})
    stream.hear(40)
    stream.take(stream.session.stop(0.0))
    jobs = []
    while stream.session.pending():
        jobs.append(stream.answer(encode("on")))
    assert len(jobs) >= 3
    heard = np.concatenate([job.audio for job in jobs])
    np.testing.assert_array_equal(heard, np.arange(len(heard)))
    assert len(heard) == 40 * SAMPLE_RATE
    stops, starts = stream.of(SpeechStopped), stream.of(SpeechStarted)
    assert [event.end for event in stops[:-1]] == [event.start for event in starts[1:]]


# --- flush and stop --------------------------------------------------------------------------------------------------


def test_flush_comes_after_the_finals_of_what_was_heard_before_it(text: Text, encode: Callable[[str], Tokens]) -> None:
    stream = Stream(text, script((0.9, 1), (0, 1), (0.9, 9)), options={"partials": False})
    stream.hear(2.5)
    assert stream.session.speaking
    stream.take(stream.session.flush("a1", 0.0))
    assert not stream.session.speaking
    stream.hear(1)
    assert stream.session.speaking  # the stream goes on
    assert stream.of(Flushed) == []
    stream.answer(encode("stop"))
    assert stream.of(Flushed) == []
    stream.answer(encode("on"))
    assert [type(event) for event in stream.events[-2:]] == [Final, Flushed]
    assert stream.events[-1] == Flushed("a1")


def test_what_is_discarded_has_no_final_and_what_was_said_before_it_has(
    text: Text, encode: Callable[[str], Tokens]
) -> None:
    stream = Stream(text, script((0.9, 1), (0, 1), (0.9, 1), (0.9, 1), (0, 1)), options={"partials": False})
    stream.hear(2.5)
    assert stream.session.speaking
    stream.take(stream.session.discard("c1", 0.0))
    assert not stream.session.speaking
    assert len(stream.of(SpeechStopped)) == 2
    stream.answer(encode("on"))
    assert [type(event) for event in stream.events[-2:]] == [Final, Flushed]
    assert stream.session.next_job() is None
    stream.hear(3.0)  # the stream goes on
    stream.answer(encode("off"))
    assert [final.utterance for final in stream.of(Final)] == [1, 3]


def test_to_discard_nothing_is_answered_at_once(text: Text) -> None:
    stream = Stream(text)
    stream.hear(1.0)
    assert stream.session.discard("x", 0.0) == [Flushed("x")]
    assert stream.session.settled


def test_flush_makes_final_every_sample_that_came(text: Text) -> None:
    stream = Stream(text, script((0.9, 9)), options={"partials": False})
    stream.hear(1.234)
    stream.take(stream.session.flush(None, 0.0))
    assert stream.job().audio[-1] == round(1.234 * SAMPLE_RATE) - 1


def test_flush_and_stop_of_silence_answer_at_once(text: Text) -> None:
    stream = Stream(text)
    stream.hear(1.0)
    assert stream.session.flush("x", 0.0) == [Flushed("x")]
    assert not stream.session.finished
    assert stream.session.stop(0.0) == [Stopped(1.0)]
    assert stream.session.finished


def test_a_lost_final_keeps_the_session_unfinished_until_it_is_found(
    text: Text, encode: Callable[[str], Tokens]
) -> None:
    stream = Stream(text, script((0.9, 1), (0, 1), (0.9, 1)), options={"partials": False})
    stream.hear(4)
    lost = stream.job()
    stream.answer(encode("on"))
    stream.take(stream.session.stop(0.0))
    assert stream.of(Final) == stream.of(Stopped) == []
    assert not stream.session.finished
    stream.take(stream.session.receive_result(Result(lost.revision, error="lost"), 0.0))
    assert [type(event) for event in stream.events[-3:]] == [Error, Final, Stopped]
    assert stream.session.finished


def test_after_stop_there_is_no_more_audio(text: Text) -> None:
    stream = Stream(text)
    stream.session.stop(0.0)
    calls: list[Callable[[], list[Event]]] = [
        lambda: stream.session.receive(np.zeros(1, np.float32), 0.0),
        lambda: stream.session.flush(None, 0.0),
        lambda: stream.session.stop(0.0),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="'kitchen' was stopped"):
            call()


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_memory_is_bounded_by_the_pre_roll_and_the_longest_segment(text: Text, encode: Callable[[str], Tokens]) -> None:
    stream = Stream(text, chain(script((0, 60), (0.9, 60))), options={"partials": False})
    recent = stream.session._recent  # what a session keeps is not for its users to see
    most = 0
    for second in range(130):
        stream.hear(1)
        if stream.session.pending():
            stream.answer(encode("on"))
        most = max(most, len(recent._frames) * FRAME)
        if second < 59 or second > 122:
            assert len(recent._frames) * FRAME < 0.5 * SAMPLE_RATE
    assert most <= 15.1 * SAMPLE_RATE
    assert len(recent._arrivals) == len(recent._frames)


@pytest.mark.parametrize(
    "arguments",
    [
        {"partial_interval": 0},
        {"first_partial": -1},
        {"ask_teacher_below": -0.1},
        {"ask_teacher_below": float("nan")},
        {"ask_teacher_from": -1},
    ],
)
def test_settings_that_cannot_be_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        SessionSettings(**arguments)  # type: ignore[arg-type]  # the fields given are all floats
