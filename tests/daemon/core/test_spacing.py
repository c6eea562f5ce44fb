"""How far apart partials are: bounded, wider the longer they take, and as before once they are in time again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from harness import scripted, wait_until
from hypothesis import given
from hypothesis import strategies as st
from scrape import read
from test_pipeline import Clock, Ear
from test_pipeline import read as collect

import daemon.core.channel
import daemon.core.detection
import daemon.core.scheduler
from daemon.core.pipeline import Pipeline, running
from daemon.core.spacing import WIDEST, Spacing
from daemon.settings.schema import Settings
from streaming.audio import FRAME
from streaming.events import Audio, Event, Partial, Start
from streaming.fake import ScriptedEngine
from streaming.job import SAMPLE_RATE, Job, Waveform

INTERVALS = st.floats(0.05, 10.0)
TIMES = st.lists(st.floats(0.0, 100.0), max_size=30)
"""Of partials, in intervals."""


def after(times: list[float], interval: float) -> Spacing:
    spacing = Spacing(interval)
    for each in times:
        spacing.took(each * interval)
    return spacing


@given(TIMES, INTERVALS, INTERVALS)
def test_it_is_bounded_also_after_another_interval_was_set(times: list[float], interval: float, other: float) -> None:
    spacing = after(times, interval)
    assert 1.0 <= spacing.factor <= WIDEST
    spacing.interval = other
    assert 1.0 <= spacing.factor <= WIDEST


@given(st.lists(st.floats(0.0, 1.0), max_size=30), INTERVALS)
def test_nothing_changes_while_partials_take_no_longer_than_their_interval(times: list[float], interval: float) -> None:
    assert after([each * 0.999 for each in times], interval).factor == 1.0


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 100.0)), max_size=30), INTERVALS)
def test_who_takes_longer_is_never_closer(pairs: list[tuple[float, float]], interval: float) -> None:
    shorter, longer = ([choose(pair) for pair in pairs] for choose in (min, max))
    assert after(shorter, interval).factor <= after(longer, interval).factor + 1e-6


@given(TIMES, st.floats(3.5, 100.0), INTERVALS)
def test_a_load_that_stays_makes_them_as_wide_as_they_get(times: list[float], each: float, interval: float) -> None:
    assert after([*times, *[each] * 40], interval).factor > WIDEST - 0.01


@given(TIMES, st.floats(0.0, 0.5), INTERVALS)
def test_four_partials_in_time_are_enough_whatever_came_before(
    times: list[float], each: float, interval: float
) -> None:
    assert after([*times, *[each] * 4], interval).factor == 1.0


@given(st.floats(0.0, 1e6), INTERVALS)
def test_one_that_took_long_is_chance(seconds: float, interval: float) -> None:
    """As the first does whose models had to be loaded."""
    assert after([seconds], interval).factor == 1.0


# --- in a pipeline ---------------------------------------------------------------------------------------------------


SCRIPT = "one two three four five six seven eight nine ten eleven twelve " + " ".join("abcdefghijklmnopqrstuvwxyz")
"""Long enough to be no loop."""


def judge(detectors: Sequence[Ear], frames: Sequence[Waveform]) -> list[float]:
    return [detector(frame) for detector, frame in zip(detectors, frames, strict=True)]


async def spoken_to(tokenizer_file: Path, contexts: tuple[float, ...]) -> tuple[float, list[float]]:
    """Speak to a pipeline whose engine takes five seconds for a batch, by a clock that only it moves.

    Returns:
        The factor that its metrics tell, and the seconds between the ends of its partials.
    """
    clock = Clock()

    def work(jobs: Sequence[Job]) -> None:
        clock.now += 5.0

    def load(settings: Settings) -> ScriptedEngine:
        engine: ScriptedEngine = scripted(tokenizer_file, before=work, script=SCRIPT)(settings)  # type: ignore[assignment]  # it is one
        engine.contexts = contexts
        return engine

    pipeline = Pipeline(Settings(), load)
    with (
        mock.patch.object(daemon.core.scheduler, "time", clock),
        mock.patch.object(daemon.core.channel, "Detector", Ear),
        mock.patch.multiple(daemon.core.detection, judge=judge, _EVERY=0.0, _AT_MOST_EVERY=0.0),
    ):
        async with running(pipeline):
            stream = pipeline.open_stream(Start(source="kitchen"))
            events: list[Event] = []
            task = asyncio.create_task(collect(stream.outbox, events))
            for _ in range(20 * SAMPLE_RATE // FRAME):
                count = sum(isinstance(event, Partial) for event in events)
                if count == 6:
                    break
                await stream.receive(Audio(np.full(FRAME, 16000, "<i2").tobytes()))
                for _ in range(8):
                    await asyncio.sleep(0)
                if pipeline.scheduler.busy_since is not None:  # what it hears now comes before the next sample
                    await wait_until(lambda: sum(isinstance(each, Partial) for each in events) > count)  # noqa: B023
            stream.close()
            await task
            factor = read(pipeline.metrics.text().decode())("partial_spacing")
    ends = [event.end for event in events if isinstance(event, Partial)]
    return factor, [later - earlier for earlier, later in pairwise(ends)]


async def test_models_that_hear_one_window_space_their_partials(tokenizer_file: Path) -> None:
    factor, gaps = await spoken_to(tokenizer_file, (30.0,))
    assert 1.0 < factor <= WIDEST
    assert gaps[-1] > gaps[0] == pytest.approx(0.5, abs=0.04)


async def test_models_with_shorter_windows_keep_the_interval(tokenizer_file: Path) -> None:
    factor, gaps = await spoken_to(tokenizer_file, (5.0, 30.0))
    assert factor == 1.0
    assert gaps == pytest.approx([0.5] * len(gaps), abs=0.04)
