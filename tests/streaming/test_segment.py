"""Endpointing, by probabilities alone."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.audio import FRAME
from streaming.job import SAMPLE_RATE
from streaming.segment import Boundary, Closed, Opened, Segment, Segmenter, SegmentSettings

VOICED, SILENT = (0.9, 0.1), (0.0, 0.001)
Frame = tuple[float, float]  # probability and level


def run(segmenter: Segmenter, frames: Iterable[Frame]) -> list[Boundary]:
    return [boundary for frame in frames for boundary in segmenter.push(*frame)]


def closed(boundaries: Iterable[Boundary]) -> list[Segment]:
    return [boundary.segment for boundary in boundaries if isinstance(boundary, Closed)]


def stretch(kind: Frame, seconds: float) -> list[Frame]:
    return [kind] * round(seconds * SAMPLE_RATE / FRAME)


# --- invariants ------------------------------------------------------------------------------------------------------

frames = st.lists(
    st.tuples(st.sampled_from([0.0, 0.3, 0.4, 0.5, 1.0]), st.floats(0, 1), st.integers(1, 60)), max_size=40
).map(lambda runs: [(probability, level) for probability, level, count in runs for _ in range(count)])

settings = st.builds(
    SegmentSettings,
    onset=st.sampled_from([0.0, 0.064, 0.128]),
    pre_roll=st.sampled_from([0.0, 0.3]),
    hangover=st.sampled_from([0.0, 0.1, 0.6, 2.0]),
    tail=st.sampled_from([0.0, 0.2, 1.0]),
    longest=st.sampled_from([3.0, 5.0]),
    cut_window=st.sampled_from([0.1, 1.0]),
)


@given(frames=frames, settings=settings, flushes=st.sets(st.integers(0, 500), max_size=3))
def test_no_sample_is_lost_or_counted_twice(frames: list[Frame], settings: SegmentSettings, flushes: set[int]) -> None:
    segmenter = Segmenter(settings)
    boundaries: list[Boundary] = []
    for index, frame in enumerate(frames):
        kept_from = segmenter.keep_from
        new = segmenter.push(*frame)
        if index in flushes:
            new += segmenter.flush(segmenter.heard + index)  # some samples of an incomplete frame
        assert all(kept_from <= boundary.segment.audio_start for boundary in new)
        boundaries += new
        assert segmenter.keep_from >= kept_from
    received = len(frames) * FRAME + FRAME - 1
    boundaries += segmenter.flush(received)
    segments = closed(boundaries)

    # Opened and closed take turns, and the audio starts where it was said to when it opened.
    assert [type(boundary) for boundary in boundaries] == [Opened, Closed] * len(segments)
    opened = [boundary.segment for boundary in boundaries if isinstance(boundary, Opened)]
    assert [(s.audio_start, s.start) for s in opened] == [(s.audio_start, s.start) for s in segments]
    # Disjoint, in order, and within what was received.
    edges = [0, *(edge for s in segments for edge in (s.audio_start, s.audio_end)), received + 500]
    assert edges == sorted(edges)
    for segment in segments:
        assert segment.audio_start <= segment.start < segment.end <= segment.audio_end
        assert segment.audio_end - segment.audio_start <= settings.longest * SAMPLE_RATE


@given(frames=frames)
def test_every_stretch_of_voice_is_in_a_segment(frames: list[Frame]) -> None:
    segmenter = Segmenter(SegmentSettings(longest=5.0, cut_window=1.0))
    boundaries = run(segmenter, frames)
    segments = closed([*boundaries, *segmenter.flush(segmenter.heard)])
    voiced = [probability >= 0.5 for probability, _ in frames]
    for index, pair in enumerate(pairwise(voiced)):
        if all(pair):
            first = index * FRAME
            # A cut may fall between the two, and then each is in a part of its own.
            for frame in (first, first + FRAME):
                assert any(s.start <= frame and frame + FRAME <= s.end for s in segments)


def test_a_day_of_audio_does_not_drift() -> None:
    """24 hours: a word each 10 s, where it was said, to the sample."""
    segmenter = Segmenter()
    period = [*stretch(SILENT, 8), *stretch(VOICED, 0.5), *stretch(SILENT, 1.5)]
    count = round(24 * 3600 * SAMPLE_RATE / (len(period) * FRAME))
    voiced = 0
    for turn in range(count):
        (segment,) = closed(run(segmenter, period))
        first = (turn * len(period) + len(stretch(SILENT, 8))) * FRAME
        assert (segment.start, segment.end) == (first, first + len(stretch(VOICED, 0.5)) * FRAME)
        voiced += segment.end - segment.start
    silent = count * (len(period) - len(stretch(VOICED, 0.5))) * FRAME
    assert voiced + silent == segmenter.heard == count * len(period) * FRAME
    assert segmenter.heard > 23.9 * 3600 * SAMPLE_RATE


# --- opening and closing ---------------------------------------------------------------------------------------------


def test_a_short_word_makes_a_segment_with_pre_roll_and_tail() -> None:
    lead = stretch(SILENT, 1)
    word = stretch(VOICED, 0.2)
    (segment,) = closed(run(Segmenter(), [*lead, *word, *stretch(SILENT, 1)]))
    start, end = len(lead) * FRAME, (len(lead) + len(word)) * FRAME
    assert segment == Segment(start - 4800, start, end, end + 3200)


def test_a_click_opens_nothing() -> None:
    clicks = [*stretch(SILENT, 0.5), VOICED, *stretch(SILENT, 0.5), VOICED, SILENT, VOICED, SILENT]
    assert run(Segmenter(), clicks) == []


def test_an_utterance_closes_once_the_hangover_has_passed_and_no_sooner() -> None:
    segmenter = Segmenter(SegmentSettings(hangover=0.64))
    assert len(run(segmenter, [*stretch(VOICED, 1), *[SILENT] * 19])) == 1
    assert len(closed(segmenter.push(*SILENT))) == 1


def test_a_pause_within_the_hangover_does_not_part_an_utterance() -> None:
    speech = [*stretch(VOICED, 0.5), *stretch(SILENT, 0.5)] * 3
    (segment,) = closed(run(Segmenter(), [*speech, *stretch(SILENT, 1)]))
    assert segment.end - segment.start == (len(speech) - len(stretch(SILENT, 0.5))) * FRAME


def test_a_soft_end_is_voiced_but_opens_nothing() -> None:
    soft = (0.4, 0.01)
    assert run(Segmenter(), stretch(soft, 2)) == []
    (segment,) = closed(run(Segmenter(), [*stretch(VOICED, 0.5), *[soft] * 5, *stretch(SILENT, 1)]))
    assert segment.end == (len(stretch(VOICED, 0.5)) + 5) * FRAME


def test_pre_roll_takes_nothing_from_the_segment_before() -> None:
    settings = SegmentSettings(hangover=0.2, tail=0.2, pre_roll=0.5)
    word = stretch(VOICED, 0.3)
    first, second = closed(run(Segmenter(settings), [*word, *stretch(SILENT, 0.3), *word, *stretch(SILENT, 1)]))
    assert second.audio_start == first.audio_end


# --- flush -----------------------------------------------------------------------------------------------------------


def test_flush_closes_with_every_sample_received_and_what_follows_starts_there() -> None:
    segmenter = Segmenter()
    run(segmenter, stretch(VOICED, 1))
    (first,) = closed(segmenter.flush(segmenter.heard + 100))
    assert first.audio_end == segmenter.heard + 100
    assert segmenter.flush(segmenter.heard + 100) == []
    (second,) = closed(run(segmenter, [*stretch(VOICED, 1), *stretch(SILENT, 1)]))
    assert second.audio_start == second.start == first.audio_end


# --- the longest segment ---------------------------------------------------------------------------------------------


def test_what_is_too_long_is_cut_at_its_quietest_point() -> None:
    quiet = 400  # frame
    levels = [0.1 + 0.01 * (index % 7) for index in range(600)]
    levels[quiet - 1 : quiet + 2] = [0.01] * 3
    segmenter = Segmenter()
    boundaries = run(segmenter, [(0.9, level) for level in levels])
    (first,) = closed(boundaries)
    assert first.audio_end == first.end == quiet * FRAME
    assert isinstance(boundaries[-1], Opened)
    assert boundaries[-1].segment.audio_start == boundaries[-1].segment.start == quiet * FRAME


def test_a_cut_in_a_pause_leaves_the_pause_out_of_the_speech_and_no_sample_out_of_the_audio() -> None:
    speech = [*stretch(VOICED, 12), *stretch(SILENT, 0.4), *stretch(VOICED, 5)]
    segmenter = Segmenter()
    boundaries = run(segmenter, speech)
    (first,) = closed(boundaries)
    (second,) = closed(segmenter.flush(segmenter.heard))
    pause = len(stretch(VOICED, 12)) * FRAME
    assert first.end == pause
    assert second.start == pause + len(stretch(SILENT, 0.4)) * FRAME
    assert first.end < first.audio_end == second.audio_start < second.start


def test_one_quiet_frame_is_no_gap_between_words() -> None:
    levels = [0.5] * 480
    levels[400] = 0.1  # a closure within a word: one frame
    levels[430:435] = [0.2] * 5  # a gap between words
    (first,) = closed(run(Segmenter(), [(0.9, level) for level in levels]))
    assert 430 * FRAME < first.audio_end < 435 * FRAME


def test_a_pause_at_the_limit_does_not_stretch_it() -> None:
    """The pause beyond the tail is no audio of the segment yet, and would be if speech went on after it."""
    settings = SegmentSettings(longest=5.0, cut_window=1.0)
    speech = [*stretch(VOICED, 4.7), *stretch(SILENT, 0.5), *stretch(VOICED, 1), *stretch(SILENT, 1)]
    first, second = closed(run(Segmenter(settings), speech))
    assert first.audio_end - first.audio_start <= 5 * SAMPLE_RATE
    assert first.end == len(stretch(VOICED, 4.7)) * FRAME
    assert second.start == first.end + len(stretch(SILENT, 0.5)) * FRAME


def test_speech_that_is_over_at_the_limit_is_closed_and_not_cut() -> None:
    settings = SegmentSettings(hangover=2.0, longest=5.0, cut_window=1.0)
    boundaries = run(Segmenter(settings), [*stretch(VOICED, 4), *stretch(SILENT, 3)])
    (segment,) = closed(boundaries)
    assert len(boundaries) == 2
    assert segment.end == len(stretch(VOICED, 4)) * FRAME


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"threshold": 0.3}, "threshold"),
        ({"release": 0.0}, "release"),
        ({"hangover": -0.1}, "hangover"),
        ({"pre_roll": float("nan")}, "pre_roll"),
        ({"cut_window": 0}, "cut_window"),
        ({"longest": 2.0}, "longest"),
        ({"longest": 31.0}, "longest"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        SegmentSettings(**arguments)
