"""More than the machine can take: partials thin, finals stay in time, nobody new comes in; and then it recovers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
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

    def __init__(self, tokenizer_file: Path) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        eot = Tokenizer.from_file(str(tokenizer_file)).get_vocab()["<|endoftext|>"]
        engine = ScriptedEngine(tokenizer_file, eot)
        self.thread = Turnstile()
        self.scheduler = Scheduler([ThreadWorker(self.thread, engine.run)], 1, self.metrics)
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
        )
        self.streams: list[tuple[Stream, list[Event]]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def join(self) -> None:
        events: list[Event] = []
        stream = Stream(Start(source=f"s{len(self.streams)}"), self.shared)
        self.streams.append((stream, events))
        self.tasks.append(asyncio.create_task(read(stream.outbox, events)))

    async def live(self, seconds: float, speakers: int) -> list[Event]:
        """Everybody sends in real time, the first `speakers` speak; what came of it."""
        before = [len(events) for _, events in self.streams]
        for _ in range(round(seconds / COST)):
            self.clock.now += COST
            for number, (stream, _) in enumerate(self.streams):
                at = (self.clock.now + number * PERIOD / len(self.streams)) % PERIOD
                loud = number < speakers and at < SPOKEN
                await stream.receive(Audio(np.full(round(COST * 16000), 16000 if loud else 0, "<i2").tobytes()))
            self.thread.permits.release()
            for _ in range(8):
                await asyncio.sleep(0)
        return [event for (_, events), start in zip(self.streams, before, strict=True) for event in events[start:]]


async def test_under_twice_the_load_partials_thin_finals_stay_in_time_and_all_recovers(tokenizer_file: Path) -> None:
    with (
        mock.patch.object(daemon.core.channel, "Detector", Ear),
        mock.patch.object(daemon.core.stream, "time", clock := Clock()),
        mock.patch.object(daemon.core.channel, "time", clock),
        mock.patch.object(daemon.core.scheduler, "time", clock),
    ):
        house = House(tokenizer_file)
        house.clock = clock
        running = asyncio.create_task(house.scheduler.run())
        for _ in range(16):
            house.join()

        def finals(events: list[Event]) -> list[Final]:
            return [event for event in events if isinstance(event, Final)]

        def partials(events: list[Event]) -> int:
            return sum(isinstance(event, Partial) for event in events)

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
