"""More than the machine can take: partials thin, finals stay in time, nobody new comes in; and then it recovers."""

from __future__ import annotations

import asyncio
import random
import threading
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import numpy as np
from harness import client, scripted, service, speech, wait_until
from test_pipeline import Clock, Ear, Turnstile, read
from tokenizers import Tokenizer

import daemon.core.channel
import daemon.core.scheduler
import daemon.core.stream
from daemon.common.metrics import Metrics
from daemon.common.sources import Sources
from daemon.core.hub import Hub
from daemon.core.neighbours import ModelInfo, Neighbours
from daemon.core.scheduler import Scheduler
from daemon.core.spacing import Spacing
from daemon.core.stream import Stream
from daemon.core.vocabularies import SourceVocabularies
from daemon.engines.thread import ThreadWorker
from streaming.events import Audio, Event, Final, Partial, Start
from streaming.fake import ScriptedEngine
from streaming.job import Job
from streaming.session import SessionSettings
from streaming.text import Text
from streaming.vad import VadSettings


async def test_nobody_new_while_finals_wait_too_long_and_everybody_once_they_do_not(tokenizer_file: Path) -> None:
    gate = threading.Event()

    def wait(jobs: Sequence[Job]) -> None:
        if any(job.audio.size > 16000 for job in jobs):  # not the canary
            assert gate.wait(60)

    sections = {"scheduler": {"batch": 1, "longest_wait": 0.1}, "health": {"canary": 1000.0}}
    async with service(scripted(tokenizer_file, before=wait), sections) as daemon:
        url = daemon.server.url
        async with client(url, "/v1/stream?source=a") as one, client(url, "/v1/stream?source=b") as other:
            for each in (one, other):
                await each.say(type="start", partials=False)
                await each.until("ready")
            for each in (one, other):
                await each.play(speech())
                await each.until("speech_stopped")
            await wait_until(lambda: daemon.pipeline.scheduler.final_wait > 0.1)
            async with client(url, "/v1/stream?source=c") as late:
                await late.say(type="start")
                assert await late.rest() == 1013
                (error,) = late.events
                assert (error["code"], error["fatal"]) == ("busy", True)
                assert "try again later" in error["message"]
            gate.set()
            for each in (one, other):
                await each.until("final")
            async with client(url, "/v1/stream?source=c") as late:
                await late.say(type="start")
                await late.until("ready")
                await late.play(speech())
                await late.say(type="stop")
                assert await late.rest() == 1000
                assert len(late.of("final")) == 1
        assert 'whisperd_client_errors_total{code="busy"} 1.0' in daemon.pipeline.metrics.text().decode()


# --- twice the load, in simulated time -------------------------------------------------------------------------------

COST = 0.1
"""Seconds that the engine takes for a job, whatever it is: ten a second."""
PERIOD, SPOKEN = 4.0, 3.0
"""Everybody says something of three seconds, and pauses for one."""


class House:
    """So many streams on one engine of fixed cost. Nothing waits for real time."""

    def __init__(
        self,
        tokenizer_file: Path,
        thread: Turnstile | None = None,
        batch: int = 1,
        spacing: Spacing | None = None,
    ) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        eot = Tokenizer.from_file(str(tokenizer_file)).get_vocab()["<|endoftext|>"]
        engine = ScriptedEngine(tokenizer_file, eot)
        self.thread = Turnstile() if thread is None else thread
        self.scheduler = Scheduler([ThreadWorker(self.thread, engine.run)], batch, self.metrics, spacing)
        self.shared = Neighbours(
            model=ModelInfo("scripted", None, "cpu", ("en",), Text(tokenizer_file, eot)),
            session=SessionSettings(),
            vad=VadSettings(),
            backlog=60.0,
            scheduler=self.scheduler,
            hub=Hub(100_000, 8, self.metrics),
            sources=Sources(),
            vocabularies=SourceVocabularies(),
            metrics=self.metrics,
            spacing=spacing,
        )
        self.streams: list[tuple[Stream, list[Event]]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.changes: list[list[float]] = []  # when each begins to speak, or ends, in turns

    def join(self) -> None:
        events: list[Event] = []
        stream = Stream(Start(source=f"s{len(self.streams)}"), self.shared)
        self.streams.append((stream, events))
        self.tasks.append(asyncio.create_task(read(stream.outbox, events)))

    def speaks(self, number: int) -> bool:
        """Whether somebody who speaks does so at the moment: in turns."""
        return (self.clock.now + number * PERIOD / len(self.streams)) % PERIOD < SPOKEN

    async def live(self, seconds: float, speakers: int) -> list[Event]:
        """Everybody sends in real time, the first `speakers` speak; what came of it."""
        before = [len(events) for _, events in self.streams]
        for _ in range(round(seconds / COST)):
            self.clock.now += COST
            for number, (stream, _) in enumerate(self.streams):
                loud = number < speakers and self.speaks(number)
                await stream.receive(Audio(np.full(round(COST * 16000), 16000 if loud else 0, "<i2").tobytes()))
            self.thread.permits.release()
            for _ in range(8):
                await asyncio.sleep(0)
        return [event for (_, events), start in zip(self.streams, before, strict=True) for event in events[start:]]


@contextmanager
def simulated(house: House) -> Iterator[None]:
    """Its time is that of all parts."""
    with mock.patch.object(daemon.core.channel, "Detector", Ear), ExitStack() as stack:
        for module in (daemon.core.stream, daemon.core.channel, daemon.core.scheduler):
            stack.enter_context(mock.patch.object(module, "time", house.clock))
        yield


def finals(events: list[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def partials(events: list[Event]) -> int:
    return sum(isinstance(event, Partial) for event in events)


async def test_under_twice_the_load_partials_thin_finals_stay_in_time_and_all_recovers(tokenizer_file: Path) -> None:
    house = House(tokenizer_file)
    with simulated(house):
        running = asyncio.create_task(house.scheduler.run())
        for _ in range(16):
            house.join()

        calm = await house.live(16.0, speakers=4)
        asked = partials(calm) / 4  # of each speaker, when there is time for all
        assert asked >= 4 * 4
        # Sixteen ask for four times as many partials, and then finals, as there is time for.
        await house.live(8.0, speakers=16)
        crowded = await house.live(24.0, speakers=16)
        assert partials(crowded) / 16 < asked
        assert partials(crowded) > 0
        # A final waits for those of the others, at most, and for the one job that runs.
        assert len(finals(crowded)) >= 16 * 24 / PERIOD - 16
        latency = max(final.latency_ms for final in finals(crowded)) / 1000
        assert latency <= house.shared.session.segment.hangover + (16 + 2) * COST
        assert house.scheduler.final_wait <= 16 * COST
        # And without anybody's help all is as before.
        await house.live(4.0, speakers=4)
        again = await house.live(16.0, speakers=4)
        assert partials(again) / 4 >= asked - 2
        assert max(f.latency_ms for f in finals(again)) <= max(f.latency_ms for f in finals(calm)) + 1000 * COST

        house.thread.permits = asyncio.Semaphore(10_000)
        ending = [asyncio.create_task(stream.finish()) for stream, _ in house.streams]
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        running = asyncio.create_task(house.scheduler.run())
        await asyncio.gather(*ending)
        for (stream, events), task in zip(house.streams, house.tasks, strict=True):
            stream.close()
            await task
            told = [event.utterance for event in events if isinstance(event, Final)]
            assert told == list(range(1, len(told) + 1))  # of each stream all, in order
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# --- models that hear their whole window each time -------------------------------------------------------------------


class Talkers(House):
    """Nobody heeds the others: each speaks for 1.5 to 5 s, pauses for 1 to 4 s, and begins anew."""

    def join(self) -> None:
        super().join()
        draw = random.Random(len(self.streams))
        self.changes.append([self.clock.now])
        while self.changes[-1][-1] < self.clock.now + 100.0:
            self.changes[-1].append(self.changes[-1][-1] + draw.uniform(1.0, 4.0))
            self.changes[-1].append(self.changes[-1][-1] + draw.uniform(1.5, 5.0))

    def speaks(self, number: int) -> bool:
        return bisect(self.changes[number], self.clock.now) % 2 == 0


class Slow(Turnstile):
    """An engine that takes so many times `COST` for each job of a batch. While it is idle it saves nothing up."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns

    async def _when_let(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.permits = asyncio.Semaphore(0)
        for _ in range(self.turns * len(arguments[-1])):
            await self.permits.acquire()
        return function(*arguments)


async def crowded(tokenizer_file: Path, spacing: Spacing | None) -> tuple[float, int, int]:
    """Seven speak where there is no time for all their partials; then two do.

    Returns:
        How long finals took meanwhile, in milliseconds, on average; the partials meanwhile; and those of the two.
    """
    house = Talkers(tokenizer_file, Slow(2), 8, spacing)
    with simulated(house):
        running = asyncio.create_task(house.scheduler.run())
        for _ in range(7):
            house.join()
        await house.live(8.0, speakers=7)
        busy = await house.live(32.0, speakers=7)
        await house.live(8.0, speakers=2)
        calm = await house.live(16.0, speakers=2)
        assert spacing is None or spacing.factor == 1.0
        for stream, _ in house.streams:
            stream.close()
        await asyncio.gather(*house.tasks)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return mean(final.latency_ms for final in finals(busy)), partials(busy), partials(calm)


async def test_partials_further_apart_let_finals_come_sooner_and_are_as_before_once_there_is_time(
    tokenizer_file: Path,
) -> None:
    close, many, before = await crowded(tokenizer_file, None)
    spaced, others, after = await crowded(tokenizer_file, Spacing(SessionSettings().partial_interval))
    assert spaced < 0.9 * close
    assert others > 0.9 * many  # those that nobody asks for in vain are the ones that are missing
    assert after == before
