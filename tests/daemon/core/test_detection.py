"""Voice detection of many channels at once: each hears all of its own, in order, and one's fault is nobody else's."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import pytest
from harness import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

import daemon.core.detection
from daemon.core.detection import SpeechDetection
from streaming.job import Waveform
from streaming.vad import Detector


class Number(Detector):
    """The probability of a frame is its first sample."""

    def __call__(self, frame: Waveform) -> float:
        return float(frame[0])


@dataclass(eq=False)
class Channel:
    detection: SpeechDetection
    detector: Detector = field(default_factory=Number)
    frames: deque[Waveform] = field(default_factory=deque)
    heard: list[float] = field(default_factory=list)
    broken: list[Exception] = field(default_factory=list)

    def take(self, *numbers: float) -> None:
        self.frames.extend(np.full(512, number, np.float32) for number in numbers)
        self.detection.add(self)

    def next_frame(self) -> Waveform | None:
        return self.frames.popleft() if self.frames else None

    def judged(self, frame: Waveform, probability: float) -> None:
        assert frame[0] == probability
        self.heard.append(probability)

    def broke(self, error: Exception) -> None:
        self.broken.append(error)


def by_number(detectors: list[Detector], frames: list[Waveform]) -> list[float]:
    assert len(set(map(id, detectors))) == len(detectors), "a stream's frames are judged one after the other"
    return [detector(frame) for detector, frame in zip(detectors, frames, strict=True)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 9)), min_size=1, max_size=150))
def test_every_frame_is_judged_once_and_in_order(takes: list[tuple[int, int]]) -> None:
    async def check() -> None:
        detection = SpeechDetection()
        running = asyncio.create_task(detection.run())
        channels = [Channel(detection) for _ in range(100)]
        given_to: list[list[float]] = [[] for _ in channels]
        for turn, (at, count) in enumerate(takes):
            numbers = [float(1000 * turn + number) for number in range(count)]
            given_to[at] += numbers
            channels[at].take(*numbers)
            if turn % 7 == 0:
                await asyncio.sleep(0)
        await wait_until(lambda: [channel.heard for channel in channels] == given_to)
        running.cancel()

    with mock.patch.object(daemon.core.detection, "judge", by_number):
        asyncio.run(check())


async def test_who_has_left_is_not_looked_at() -> None:
    detection = SpeechDetection()
    with mock.patch.object(daemon.core.detection, "judge", by_number):
        gone, here = Channel(detection), Channel(detection)
        gone.take(1.0)
        here.take(2.0)
        detection.remove(gone)
        running = asyncio.create_task(detection.run())
        await wait_until(lambda: here.heard == [2.0])
        running.cancel()
    assert gone.heard == []


async def test_a_detector_that_fails_ends_those_that_it_failed_and_later_ones_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Detector):
        def __call__(self, frame: Waveform) -> float:
            raise ValueError("no")

    detection = SpeechDetection()
    with mock.patch.object(daemon.core.detection, "judge", by_number):
        broken, beside = Channel(detection, Broken()), Channel(detection)
        broken.take(1.0, 2.0)
        beside.take(1.0, 2.0)
        running = asyncio.create_task(detection.run())
        await wait_until(lambda: broken.broken and beside.heard == [1.0, 2.0])
        beside.take(3.0)
        await wait_until(lambda: beside.heard == [1.0, 2.0, 3.0])
        running.cancel()
    assert beside.broken == []
    assert broken.heard == []
    assert "voice detection of a stream failed" in caplog.text


async def test_a_stream_that_fails_at_what_was_found_harms_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Channel):
        def judged(self, frame: Waveform, probability: float) -> None:
            raise ValueError("no")

    detection = SpeechDetection()
    with mock.patch.object(daemon.core.detection, "judge", by_number):
        failing, beside = Failing(detection), Channel(detection)
        failing.take(1.0, 2.0)
        beside.take(1.0, 2.0)
        running = asyncio.create_task(detection.run())
        await wait_until(lambda: failing.broken and beside.heard == [1.0, 2.0])
        running.cancel()
    assert beside.broken == []
    assert len(failing.broken) == 1
    assert "voice detection of a stream failed" in caplog.text
