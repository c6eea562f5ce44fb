"""Where there is speech."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.audio import FRAME
from streaming.segment import SegmentSettings
from streaming.speech_map import SpeechMap


def mapped(voiced: Sequence[bool], levels: Sequence[float] = ()) -> SpeechMap:
    made = SpeechMap(SegmentSettings())
    for index, each in enumerate(voiced):
        made.push(0.9 if each else 0.0, levels[index] if levels else 0.0)
    return made


def test_a_click_is_no_speech_unless_it_may_go_on() -> None:
    click = [False, True, False, True, True]
    assert mapped(click).first(0, ended=True) == 3 * FRAME
    assert mapped(click[:2]).first(0, ended=True) is None
    assert mapped(click[:2]).first(0, ended=False) == FRAME


def test_speech_goes_on_down_to_a_lower_probability() -> None:
    made = SpeechMap(SegmentSettings())
    for probability in (0.4, 0.6, 0.4, 0.3, 0.4):
        made.push(probability, 0.0)
    assert made.voiced == made.amount(0, made.judged) == 2 * FRAME
    assert made.last(0, made.judged) == 3 * FRAME
    assert made.last(3 * FRAME, made.judged) == 3 * FRAME


def test_speech_that_began_before_what_is_kept_is_none_that_begins() -> None:
    """One frame of it is more than a click, as the others were."""
    made = mapped([True] * 10 + [False])
    made.forget_before(9 * FRAME)
    assert made.first(9 * FRAME, ended=True) == 9 * FRAME
    assert made.first(10 * FRAME, ended=True) is None


@given(
    voiced=st.lists(st.booleans(), min_size=1, max_size=40),
    kept=st.integers(0, 40),
    start=st.integers(0, 40 * FRAME),
    length=st.integers(0, 40 * FRAME),
)
def test_places_lie_where_they_are_asked_for(voiced: list[bool], kept: int, start: int, length: int) -> None:
    made = mapped(voiced)
    made.forget_before(min(kept, len(voiced)) * FRAME)
    start = max(start, kept * FRAME)
    first = made.first(start, ended=False)
    assert first is None or start <= first < made.judged
    end = start + length
    assert start <= made.last(start, end) <= end
    inside = [at for at in range(start // FRAME, -(-end // FRAME)) if at < len(voiced) and voiced[at]]
    assert made.amount(start, end) == len(inside) * FRAME
    assert start <= made.quietest(start, end) <= end


@pytest.mark.parametrize("kept", [0, 2])
def test_the_quietest_place_is_the_middle_of_three_frames(kept: int) -> None:
    made = mapped([True] * 10, [9, 9, 9, 9, 1, 0, 1, 9, 9, 9])
    made.forget_before(kept * FRAME)
    assert made.quietest(3 * FRAME, 9 * FRAME) == 5 * FRAME
    assert made.quietest(6 * FRAME, 9 * FRAME) == 6 * FRAME
    assert made.quietest(20 * FRAME, 21 * FRAME) == 21 * FRAME
