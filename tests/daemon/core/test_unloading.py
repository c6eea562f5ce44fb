"""Models that are put away while nobody speaks, and hear the first speech whole."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, client, scripted, service, speech, wait_until
from test_pages import get

from daemon.engines.life import LoadEngine
from daemon.settings.schema import Settings
from streaming.job import Job

SECTIONS: dict[str, Any] = {"models": {"unload_after": 0.2}, "health": {"canary": 0.05, "stall": 0.2}}


class Loads:
    """A loader that counts, and waits while it is told to."""

    def __init__(self, load: LoadEngine) -> None:
        self.count = 0
        self.may_load = threading.Event()
        self.may_load.set()
        self._load = load

    def __call__(self, settings: Settings) -> Any:
        self.count += 1
        assert self.may_load.wait(PATIENCE)
        return self._load(settings)


async def test_the_first_speech_after_sleep_is_heard_from_its_first_sample(tokenizer_file: Path) -> None:
    jobs: list[Job] = []
    loads = Loads(scripted(tokenizer_file, before=jobs.extend))
    async with service(loads, SECTIONS) as daemon:
        await wait_until(lambda: daemon.pipeline.asleep)
        assert (await get(daemon, "/readyz"))[:2] == (200, b"ready, asleep\n")
        assert b'"asleep": true' in (await get(daemon, "/v1/sources"))[1]
        assert "whisperd_models_asleep 1.0" in daemon.pipeline.metrics.text().decode()
        jobs.clear()
        loads.may_load.clear()
        async with client(daemon.server.url) as mine:
            await mine.play(speech())
            await mine.say(type="stop")
            await wait_until(lambda: daemon.pipeline.waking)
            # Loading takes longer than a batch may: nothing hangs, and others may come.
            await wait_until(lambda: daemon.pipeline.scheduler.final_wait > 0 or daemon.pipeline.waking)
            assert daemon.health.getting_on
            assert (await get(daemon, "/readyz"))[:2] == (200, b"ready\n")
            loads.may_load.set()
            assert await mine.rest() == 1000
            (final,) = mine.of("final")
        assert final["text"].startswith("turn on the")
        assert final["start"] < 1.0
        # A busy machine may leave them unused for long enough between two jobs.
        woken = loads.count - 1
        assert woken >= 1
        assert f"whisperd_models_woken_total {woken}.0" in daemon.pipeline.metrics.text().decode()
        await wait_until(lambda: daemon.pipeline.asleep)  # and again: the canary does not keep it awake


async def test_a_load_that_fails_is_tried_again(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = scripted(tokenizer_file)
    broken = [False]

    def load(settings: Settings) -> Any:
        if broken[0]:
            raise RuntimeError("the disk is away")
        return good(settings)

    async with service(load, SECTIONS) as daemon:
        await wait_until(lambda: daemon.pipeline.asleep)
        broken[0] = True
        async with client(daemon.server.url) as mine:
            await mine.play(speech())
            await mine.until("error")
            broken[0] = False
            await mine.play(speech())
            await mine.say(type="stop")
            assert await mine.rest() == 1000
            assert mine.of("final")
        assert {event["code"] for event in mine.of("error")} == {"transcription_failed"}


async def test_without_the_setting_the_models_stay(tokenizer_file: Path) -> None:
    def before(jobs: Sequence[Job]) -> None:
        decoded.append(len(jobs))

    decoded: list[int] = []
    async with service(scripted(tokenizer_file, before=before), {"health": {"canary": 0.05}}) as daemon:
        await wait_until(lambda: len(decoded) > 5)  # canaries, for longer than it would have taken
        assert not daemon.pipeline.asleep


@pytest.mark.parametrize(
    ("written", "seconds"), [("15m", 900.0), ("90s", 90.0), ("1.5h", 5400.0), (60, 60.0), (None, None)]
)
def test_how_long_is_written(written: object, seconds: float | None) -> None:
    assert Settings.model_validate({"models": {"unload_after": written}}).models.unload_after == seconds
