"""A long recording in windows: what goes in and what comes out, by property and by example.

Speech is scripted: sample *i* has the value *i*, so that a job's audio tells which samples it is made of, and the
detector is a list of probabilities.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from streaming.audio import FRAME
from streaming.events import Error, Event, Final, Flushed, SpeechStarted, SpeechStopped, Stopped
from streaming.fake import ScriptedEngine
from streaming.job import ALWAYS, NEVER, SAMPLE_RATE, Job, Result, Waveform
from streaming.long_form import LEAST_ADVANCE, MOST_HEARINGS, MOST_TOLD, SHORTEST, UNHEARD, LongForm
from streaming.offline import listen, stop
from streaming.session import SessionSettings
from streaming.text import Text
from streaming.vad import Detector

Tokens = tuple[int, ...]
LONGEST = 30.0
TEACHER = SessionSettings(ask_teacher_below=0.5)


def script(*stretches: tuple[float, float]) -> Iterator[float]:
    """Probabilities from (probability, seconds), and silence for ever after."""
    counts = ((probability, round(seconds * SAMPLE_RATE / FRAME)) for probability, seconds in stretches)
    return chain(chain.from_iterable(repeat(p, count) for p, count in counts), repeat(0.0))


@dataclass
class Recording:
    """A long form with scripted speech, and all that came out of it."""

    text: Text
    tokenizer: Tokenizer
    speech: Iterator[float] = field(default_factory=lambda: repeat(0.9))
    settings: SessionSettings = field(default_factory=SessionSettings)
    options: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.long = LongForm(
            "talk", self.settings, lambda frame: next(self.speech), self.text, longest=LONGEST, **self.options
        )
        self.heard = 0

    def hear(self, seconds: float) -> None:
        end = self.heard + round(seconds * SAMPLE_RATE)
        for start in range(self.heard, end, SAMPLE_RATE):
            samples = np.arange(start, min(start + SAMPLE_RATE, end), dtype=np.float32)
            self.events += self.long.receive(samples, 0.0)
        self.heard = end

    def job(self) -> Job:
        job = self.long.next_job()
        assert job is not None
        self.jobs.append(job)
        return job

    def answer(self, *said: float | str, **fields: Any) -> Job:
        """Run the next job: numbers are timestamps in seconds, texts are words."""
        job = self.job()
        self.events += self.long.receive_result(self.result(job, self.tokens(*said), **fields), 0.0)
        return job

    def tokens(self, *said: float | str) -> Tokens:
        zero = self.text.first_timestamp
        assert zero is not None
        found: list[int] = []
        for each in said:
            if isinstance(each, str):
                found += self.tokenizer.encode(" " + each, add_special_tokens=False).ids
            else:
                found.append(zero + round(each / 0.02))
        return tuple(found)

    def result(self, job: Job, tokens: Tokens, probability: float = 0.9, reach: float = 1.0, **fields: Any) -> Result:
        """What an engine would answer that heard `tokens`, the last of which ended after so many seconds."""
        times = tuple((reach * i / len(tokens), reach * (i + 1) / len(tokens)) for i in range(len(tokens)))
        log_probs = (math.log(probability),) * (len(tokens) + 1)
        return Result(job.revision, tokens, log_probs, times=times, student_tokens=tokens, **fields)

    def stop(self) -> None:
        self.events += self.long.stop(0.0)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def finals(self) -> list[tuple[float, float, str]]:
        return [(final.start, final.end, final.text) for final in self.of(Final)]


@pytest.fixture
def recorded(text: Text, tokenizer: Tokenizer) -> Callable[..., Recording]:
    def make(*speech: tuple[float, float], **options: Any) -> Recording:
        return Recording(text, tokenizer, script(*speech) if speech else repeat(0.9), **options)

    return make


def place(job: Job) -> tuple[float, float]:
    """(start, end) of a job's audio, in seconds."""
    return job.audio[0] / SAMPLE_RATE, (job.audio[-1] + 1) / SAMPLE_RATE


# --- windows ---------------------------------------------------------------------------------------------------------


def test_the_next_window_begins_where_the_last_whole_span_ended(recorded: Callable[..., Recording]) -> None:
    made = recorded()
    made.hear(60)
    first = made.answer(0.0, "stop the music", 9.0, 10.0, "what time is it", 20.0, 21.0, "turn on the")  # 21 of 27
    assert first.timestamps
    assert place(first)[0] == 0
    assert LONGEST - 3.0 <= place(first)[1] <= LONGEST  # at a quiet place
    assert made.finals == [(0.0, 9.0, "stop the music"), (10.0, 20.0, "what time is it")]
    assert place(made.job())[0] == 21.0  # what began there is heard whole


def test_a_window_waits_for_its_audio_and_the_last_takes_what_there_is(recorded: Callable[..., Recording]) -> None:
    made = recorded()
    made.hear(29)
    assert made.long.next_job() is None
    assert made.long.backlog_seconds == 0
    made.stop()
    assert not made.long.finished
    assert place(made.answer(0.0, "stop the music", 14.0, 14.0, "what time is it", reach=28.5)) == (0.0, 29.0)
    assert made.finals == [(0.0, 14.0, "stop the music"), (14.0, 29.0, "what time is it")]
    assert made.events[-1] == Stopped(29.0)
    assert made.long.finished


def test_a_text_that_ends_early_is_taken_up_where_it_ended(recorded: Callable[..., Recording]) -> None:
    made = recorded((0.9, 12.0))
    made.hear(14)
    made.stop()
    made.answer(0.0, "stop the music", 5.0)
    assert place(made.answer(0.0, "what time is it", 7.0))[0] == 5.0
    assert made.finals == [(0.0, 5.0, "stop the music"), (5.0, 12.0, "what time is it")]
    assert made.long.finished


def test_a_text_without_a_timestamp_at_its_end_is_taken_as_far_as_its_words_reach(
    recorded: Callable[..., Recording],
) -> None:
    made = recorded()
    made.hear(80)
    end = place(made.answer(0.0, "stop the music", reach=26.8))[1]
    assert made.finals[0][0] == 0.0
    assert made.finals[-1][1] == end
    assert " ".join(final[2] for final in made.finals) == "stop the music"
    assert place(made.answer(0.0, "what time is it", reach=10.0))[0] == end
    assert made.finals[-1][1] == end + 10.0
    assert place(made.job())[0] == end + 10.0  # it ended early


def test_the_end_of_a_word_behind_the_last_timestamp_is_no_window(recorded: Callable[..., Recording]) -> None:
    made = recorded((0.9, 12.0))
    made.hear(14)
    made.stop()
    made.answer(0.0, "stop the music", 12.1 - UNHEARD)
    assert made.long.finished


def test_silence_is_in_no_window(recorded: Callable[..., Recording]) -> None:
    made = recorded((0.0, 100.0), (0.9, 4.0), (0.0, 50.0), (0.9, 4.0))
    made.hear(158)
    start, end = place(made.answer(0.0, "stop the music", 4.0))
    assert start == pytest.approx(99.7, abs=0.05)
    assert end == pytest.approx(104.2, abs=0.05)
    made.stop()
    assert place(made.answer(0.0, "what time is it", 4.0))[0] == pytest.approx(153.7, abs=0.05)
    assert made.long.finished
    quiet = recorded((0.0, 1.0))
    quiet.hear(100)
    quiet.stop()
    assert quiet.events == [Stopped(100.0)]


def test_a_window_without_speech_is_passed_over(recorded: Callable[..., Recording]) -> None:
    """What was taken for speech and is none: not even another hearing is spent on it."""
    made = recorded()
    made.hear(60)
    end = place(made.answer(0.0, "stop the music", 1.0, probability=0.3, no_speech=0.9))[1]
    assert made.finals == []
    assert place(made.job())[0] == end


def test_a_failure_is_said_and_the_next_window_is_heard(recorded: Callable[..., Recording]) -> None:
    made = recorded()
    made.hear(60)
    job = made.job()
    made.events += made.long.receive_result(Result(job.revision, error="no memory"), 0.0)
    (error,) = made.of(Error)
    assert "no memory" in error.message
    assert (error.code, error.fatal) == ("transcription_failed", False)
    assert place(made.job())[0] == place(job)[1]


def test_a_result_of_no_job_is_ignored(recorded: Callable[..., Recording]) -> None:
    made = recorded()
    made.hear(60)
    job = made.job()
    assert made.long.receive_result(Result(job.revision + 1, error="another"), 0.0) == []
    assert made.long.pending() is None
    assert made.long.next_job() is None
    made.events += made.long.discard("d", 0.0)
    assert made.long.receive_result(made.result(job, made.tokens(0.0, "stop", 1.0)), 0.0) == []
    assert made.events == [Flushed("d")]


def test_a_flush_makes_final_what_was_heard(recorded: Callable[..., Recording]) -> None:
    made = recorded((0.9, 20.0))
    made.hear(10)
    made.events += made.long.flush("f", 0.0)
    assert place(made.answer(0.0, "stop the music", 4.0, 4.0, "what time is it", reach=10.0)) == (0.0, 10.0)
    assert made.events[-1] == Flushed("f")
    made.hear(15)
    made.stop()
    assert place(made.answer(0.0, "stop the music", 10.0))[0] == 10.0
    assert made.long.finished


# --- the second hearing ----------------------------------------------------------------------------------------------

LOOP = ("stop the music",) * 12


def looped() -> list[float | str]:
    """A loop whose times go on."""
    return [each for copy, said in enumerate(LOOP) for each in (float(copy), said, copy + 1.0)]


def test_a_loop_is_heard_by_the_teacher_then_shorter_then_cut(recorded: Callable[..., Recording]) -> None:
    made = recorded(settings=TEACHER)
    made.hear(60)
    first = made.answer(*looped())
    second = made.answer(*looped(), model="teacher")
    assert place(second) == place(first)
    assert (second.ask_teacher_below, second.draft) == (ALWAYS, made.tokens(*looped()))
    while not made.finals:
        made.answer(*looped(), model="teacher")
    ends = [place(job)[1] for job in made.jobs[1:]]
    assert all(2 / 5 * before < after < 3 / 5 * before + 0.2 for before, after in pairwise(ends))
    assert len(made.jobs) <= MOST_HEARINGS
    assert ends[-1] < 2 * SHORTEST
    assert {job.ask_teacher_below for job in made.jobs[2:]} == {ALWAYS}  # the student had its turn
    assert made.finals == [(0.0, ends[-1], "stop the music")]
    assert place(made.job())[0] == ends[-1]


def test_a_second_hearing_that_is_sound_is_taken(recorded: Callable[..., Recording]) -> None:
    made = recorded(settings=TEACHER)
    made.hear(60)
    made.answer(*looped())
    made.answer(0.0, "what time is it", 26.5, model="teacher")
    assert made.finals == [(0.0, 26.5, "what time is it")]
    assert len(made.jobs) == 2


def test_without_a_teacher_the_second_hearing_is_shorter(recorded: Callable[..., Recording]) -> None:
    made = recorded()
    made.hear(60)
    made.answer(*looped())
    second = made.answer(0.0, "what time is it", 9.0, 9.0, "stop")
    assert 2 / 5 * LONGEST - 3 < place(second)[1] < 3 / 5 * LONGEST
    assert made.finals == [(0.0, 9.0, "what time is it")]
    assert place(made.job())[0] == 9.0


# --- the text before -------------------------------------------------------------------------------------------------


def test_a_window_is_told_the_text_before_it(recorded: Callable[..., Recording]) -> None:
    made = recorded(options={"conditioned": True})
    made.hear(120)
    said = 0.0, "stop the music", 9.0, 10.0, "what time is it", 20.0
    first = made.answer(*said, 21.0, "turn on the")
    second = made.answer(0.0, "turn on the light", 26.0)
    assert first.previous == ()
    assert second.previous == made.tokens(*said)  # what is heard whole in the next window is not told
    assert made.job().previous == made.tokens(*said, 0.0, "turn on the light", 26.0)


def test_only_as_much_is_told_as_a_model_can_be(recorded: Callable[..., Recording]) -> None:
    made = recorded(options={"conditioned": True})
    made.hear(300)
    words = " ".join(f"number {count}" for count in range(60))
    for _ in range(4):
        made.answer(0.0, words, 26.0)
    told = made.job().previous
    assert len(told) == MOST_TOLD
    assert told == (made.tokens(0.0, words, 26.0) * 4)[-MOST_TOLD:]


def test_a_loop_is_heard_without_the_text_before_and_forgets_it(recorded: Callable[..., Recording]) -> None:
    made = recorded(settings=TEACHER, options={"conditioned": True})
    made.hear(120)
    made.answer(0.0, "what time is it", 26.0)
    third = [made.answer(*looped()), made.answer(*looped()), made.answer(0.0, "stop", 26.0, model="teacher")][-1]
    assert [bool(job.previous) for job in made.jobs] == [False, True, False, False]
    assert {place(job) for job in made.jobs[1:]} == {place(third)}
    assert third.ask_teacher_below == ALWAYS
    assert made.job().previous == made.tokens(0.0, "stop", 26.0)


def test_of_a_loop_that_stays_only_what_is_kept_is_told(recorded: Callable[..., Recording]) -> None:
    made = recorded(options={"conditioned": True})
    made.hear(120)
    while not made.finals:
        made.answer(0.0, *LOOP)
    assert made.job().previous == made.tokens(0.0, "stop the music")


def test_nothing_is_told_unless_it_is_asked_for(recorded: Callable[..., Recording]) -> None:
    made = recorded()
    made.hear(120)
    made.answer(0.0, "what time is it", 26.0)
    assert made.job().previous == ()


def test_a_text_that_says_no_place_is_heard_shorter_and_then_taken_whole(recorded: Callable[..., Recording]) -> None:
    made = recorded()
    made.hear(60)
    while not made.finals:
        end = place(made.answer(0.0, "stop the music", reach=0.5))[1]
    assert len(made.jobs) < MOST_HEARINGS
    assert end < 2 * SHORTEST
    assert made.finals == [(0.0, end, "stop the music")]
    assert place(made.job())[0] == end


def test_words_have_the_times_of_the_recording_and_stay_in_their_span(recorded: Callable[..., Recording]) -> None:
    made = recorded(options={"words": True})
    made.hear(60)
    made.answer(0.0, "stop", 0.3, 0.3, "the music", 26.5)
    made.answer(0.0, "what time is it", 26.5)
    first, second, third = made.of(Final)
    assert [word.text for word in (*first.words, *second.words)] == ["stop", "the", "music"]
    assert [word.text for word in third.words] == ["what", "time", "is", "it"]
    for final in (first, second, third):
        assert all(final.start <= word.start <= word.end <= final.end for word in final.words)


def test_each_final_is_an_utterance(recorded: Callable[..., Recording]) -> None:
    made = recorded()
    made.hear(60)
    made.answer(0.0, "stop", 2.0, 3.0, "the music", 26.5)
    assert [(type(event), event.utterance) for event in made.events] == [  # type: ignore[attr-defined]  # all three have
        (kind, number) for number in (1, 2) for kind in (SpeechStarted, SpeechStopped, Final)
    ]


def test_a_checkpoint_without_timestamps_is_refused(text: Text) -> None:
    plain = object.__new__(Text)
    plain.__dict__ |= {**text.__dict__, "first_timestamp": None}
    with pytest.raises(ValueError, match="no timestamps"):
        LongForm("talk", SessionSettings(), Detector(), plain, longest=LONGEST)


# --- whatever is heard -----------------------------------------------------------------------------------------------

STRETCHES = st.lists(st.tuples(st.sampled_from([0.0, 0.9]), st.floats(0.1, 40.0)), min_size=1, max_size=6)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[int], dict[str, Any]]:
    """Tokens (those from 1000 on are timestamps, in any order), and what else a result says."""
    tokens: list[int] = draw(
        st.one_of(
            st.lists(st.integers(300, 310) | st.integers(1000, 2500), max_size=12),
            st.builds(lambda phrase, copies: [1000, *phrase * copies, 1400], st.just([300, 301, 302]), st.just(9)),
            st.builds(lambda end: [1000, 300, 301, 1000 + end], st.integers(0, 1500)),
        )
    )
    fields: dict[str, Any] = draw(
        st.sampled_from([{}, {}, {"model": "teacher"}, {"probability": 0.1}, {"error": "broken"}, {"no_speech": 1.0}])
    )
    return tokens, fields


@settings(max_examples=60)
@given(stretches=STRETCHES, heard=st.lists(answers(), min_size=1, max_size=8), teacher=st.booleans())
def test_whatever_is_heard_it_ends_and_covers_all_speech_in_order(
    text: Text,
    tokenizer: Tokenizer,
    stretches: list[tuple[float, float]],
    heard: list[tuple[list[int], dict[str, Any]]],
    teacher: bool,
) -> None:
    made = Recording(text, tokenizer, script(*stretches), TEACHER if teacher else SessionSettings())
    seconds = sum(length for _, length in stretches)
    zero = text.first_timestamp or 0
    results = iter(chain.from_iterable(repeat(heard)))
    most = MOST_HEARINGS * (seconds / LEAST_ADVANCE + 2)

    def run_all() -> None:
        while (job := made.long.next_job()) is not None:
            made.jobs.append(job)
            assert len(made.jobs) <= most
            assert 0 < job.audio.size <= LONGEST * SAMPLE_RATE
            assert made.long.next_job() is None  # one at a time
            tokens, fields = next(results)
            said = tuple(token - 1000 + zero if token >= 1000 else token - 300 for token in tokens)
            error = fields.get("error")
            result = Result(job.revision, error=error) if error else made.result(job, said, **fields)
            made.events += made.long.receive_result(result, 0.0)

    while made.heard < seconds * SAMPLE_RATE:
        made.hear(min(5.0, seconds - made.heard / SAMPLE_RATE + 1e-4))
        run_all()
        assert made.long.backlog_seconds == 0
    made.stop()
    run_all()
    assert made.long.finished
    assert [type(event) for event in made.events].count(Stopped) == 1
    assert isinstance(made.events[-1], Stopped)
    check_order(made)
    check_cover(made, stretches)


def check_order(made: Recording) -> None:
    times = [time for final in made.of(Final) for time in (final.start, final.end)]
    assert times == sorted(times)
    assert all(0 <= time <= made.heard / SAMPLE_RATE for time in times)
    places = [place(job) for job in made.jobs]
    assert all(before[0] <= after[0] for before, after in pairwise(places))
    assert max(Counter(places).values(), default=0) <= 2
    assert max(Counter(start for start, _ in places).values(), default=0) <= MOST_HEARINGS


def check_cover(made: Recording, stretches: Sequence[tuple[float, float]]) -> None:
    """Every frame of speech that is more than a click is in a window."""
    frames = made.heard // FRAME
    speech = script(*stretches)
    voiced = np.array([next(speech) > 0.5 for _ in range(frames)])
    covered = np.zeros(frames, bool)
    for job in made.jobs:
        covered[int(job.audio[0]) // FRAME : -(-int(job.audio[-1] + 1) // FRAME)] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[0], voiced.astype(int), [0]])))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        assert end - start < 2 or covered[start:end].all(), (start, end)


# --- through an engine -----------------------------------------------------------------------------------------------


def heard_by(engine: ScriptedEngine, text: Text, seconds: float, given: SessionSettings) -> tuple[str, list[Job]]:
    jobs: list[Job] = []

    def run(job: Job) -> Result:
        jobs.append(job)
        return engine.run([job])[0]

    def loud(frame: Waveform) -> float:
        return 0.9

    long = LongForm("talk", given, loud, text, longest=LONGEST)
    audio = np.ones(round(seconds * SAMPLE_RATE), np.float32)
    events = [*listen(long, run, audio), *stop(long, run)]
    assert long.finished
    return " ".join(event.text for event in events if isinstance(event, Final)), jobs


@pytest.mark.parametrize("teacher", [False, True])
def test_the_repetition_of_an_engine_is_heard_again(tokenizer_file: Path, text: Text, teacher: bool) -> None:
    """This engine says its few words over and over, and the longer the audio, the more often: only short is sound."""
    engine = ScriptedEngine(tokenizer_file, text.eot)
    said, jobs = heard_by(engine, text, 40.0, replace(TEACHER, ask_teacher_below=0.5 if teacher else NEVER))
    lengths = [job.audio.size / SAMPLE_RATE for job in jobs]
    assert lengths[0] > 26
    assert any(job.ask_teacher_below == ALWAYS for job in jobs) == teacher
    assert min(lengths) < 2 * SHORTEST
    assert said.startswith("turn on the kitchen light")
    assert len(said.split()) > 80  # of 100: a window's last word may be cut


def test_a_long_script_is_said_once(tokenizer_file: Path, text: Text) -> None:
    words = " ".join(f"w{number}" for number in range(400))
    engine = ScriptedEngine(tokenizer_file, text.eot, words)
    said, jobs = heard_by(engine, text, 25.0, SessionSettings())
    assert said.split() == words.split()[:62]
    assert len(jobs) == 1
