"""The recent past: samples by offset, arrivals by frame, and what is forgotten."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.audio import FRAME
from streaming.recent_audio import RecentAudio


def ramp(start: int, end: int) -> np.ndarray:
    """Samples that tell their own offset."""
    return np.arange(start, end, dtype=np.float32)


@given(sizes=st.lists(st.integers(0, 2000), max_size=20), data=st.data())
def test_frames_and_slices_are_what_came_in(sizes: list[int], data: st.DataObject) -> None:
    recent, frames, received = RecentAudio(), [], 0
    for size in sizes:
        frames += recent.append(ramp(received, received + size), now=float(received + size))
        received += size
    assert recent.received == received
    assert len(frames) == received // FRAME
    np.testing.assert_array_equal(np.concatenate([ramp(0, 0), *frames]), ramp(0, len(frames) * FRAME))

    forgotten = data.draw(st.integers(0, received))
    recent.forget_before(forgotten)
    start = data.draw(st.integers(forgotten, received))
    end = data.draw(st.integers(start, received))
    np.testing.assert_array_equal(recent.slice(start, end), ramp(start, end))


def test_arrival_is_that_of_the_message_which_completed_the_frame() -> None:
    recent = RecentAudio()
    recent.append(ramp(0, 500), now=1.0)
    assert recent.arrival(500) == 1.0
    recent.append(ramp(500, 1500), now=2.0)
    recent.append(ramp(1500, 1600), now=3.0)
    assert [recent.arrival(offset) for offset in (1, 512, 1024, 1025, 1536, 1600)] == [2, 2, 2, 3, 3, 3]
    recent.forget_before(1100)
    assert recent.arrival(100) == 3.0  # the oldest that is kept


def test_what_is_forgotten_is_gone() -> None:
    recent = RecentAudio()
    recent.append(ramp(0, 10 * FRAME), now=0.0)
    recent.forget_before(2 * FRAME + 1)
    recent.slice(2 * FRAME, 3 * FRAME)
    with pytest.raises(IndexError, match="not kept"):
        recent.slice(2 * FRAME - 1, 3 * FRAME)
    with pytest.raises(IndexError, match="not kept"):
        recent.slice(2 * FRAME, 10 * FRAME + 1)


def test_what_is_kept_does_not_change_with_its_senders_buffer() -> None:
    recent, buffer = RecentAudio(), ramp(0, 700)
    recent.append(buffer, now=0.0)
    buffer[:] = -1
    np.testing.assert_array_equal(recent.slice(0, 700), ramp(0, 700))
    piece = recent.slice(0, 700)
    piece[:] = -1
    np.testing.assert_array_equal(recent.slice(0, 700), ramp(0, 700))
