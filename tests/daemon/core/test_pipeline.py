"""The whole way of a sample, from bytes to finals, as a machine of random moves; no sockets, no threads, no real time.

Streams, sessions, the scheduler and the hub are the service's own. The engine is the scripted one, and runs when the
machine says so; the detector takes what is not zero for speech; time is a number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tokenizers import Tokenizer

import daemon.core.channel
import daemon.core.scheduler
import daemon.core.stream
from daemon.common.metrics import Metrics
from daemon.common.sources import Sources
from daemon.core.hub import Hub, Outbox
from daemon.core.neighbours import ModelInfo, Neighbours
from daemon.core.scheduler import Scheduler
from daemon.core.stream import Stream
from daemon.core.vocabularies import SourceVocabularies
from daemon.engines.thread import EngineThread, ThreadWorker
from streaming.audio import FRAME
from streaming.events import Audio, Error, Event, Final, Flush, Flushed, Partial, SpeechStarted, SpeechStopped, Start
from streaming.events import Stopped as StreamStopped
from streaming.fake import ScriptedEngine
from streaming.job import SAMPLE_RATE, Job, Waveform
from streaming.segment import SegmentSettings
from streaming.session import SessionSettings
from streaming.text import Text
from streaming.vad import VadSettings


class Clock:
    """In place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Ear:
    """In place of the detector."""

    def __init__(self, _: VadSettings) -> None:
        pass

    def __call__(self, frame: Waveform) -> float:
        return 0.9 if frame[0] else 0.0


class Turnstile(EngineThread):
    """In place of the engine's thread: a call waits until it is let through, and runs in the loop."""

    def __init__(self) -> None:
        self.permits = asyncio.Semaphore(0)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._when_let(function, *arguments))

    async def _when_let(self, function: Callable[..., Any], *arguments: Any) -> Any:
        await self.permits.acquire()
        return function(*arguments)


@dataclass
class Client:
    """What was sent, frame by frame, and what came back."""

    stream: Stream
    task: asyncio.Task[None]
    voiced: list[bool] = field(default_factory=list)  # of each frame that was sent and listened to
    flushes: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    finish: asyncio.Task[None] | None = None

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


async def read(outbox: Outbox, into: list[Event]) -> None:
    async for event in outbox:
        into.append(event)  # noqa: PERF401 - each as it comes: the list is looked at meanwhile


class Pipeline(RuleBasedStateMachine):
    tokenizer_file: ClassVar[Path]

    @initialize(batch=st.integers(1, 4), longest=st.sampled_from([4.0, 6.0, 15.0]))
    def begin(self, batch: int, longest: float) -> None:
        self.stack = ExitStack()
        self.clock = Clock()
        for module in (daemon.core.stream, daemon.core.channel, daemon.core.scheduler):
            self.stack.enter_context(mock.patch.object(module, "time", self.clock))
        self.stack.enter_context(mock.patch.object(daemon.core.channel, "Detector", Ear))
        self.loop = asyncio.new_event_loop()
        self.stack.callback(self.loop.close)
        eot = Tokenizer.from_file(str(self.tokenizer_file)).get_vocab()["<|endoftext|>"]
        self.room = 99  # jobs that fit into memory at once
        self.poisonous = False  # whether jobs with audio of some lengths raise
        engine = ScriptedEngine(self.tokenizer_file, eot, before=self.trouble)
        self.metrics = Metrics()
        self.hub = Hub(100_000, 16, self.metrics)
        self.clients: list[Client] = []
        self.witness: list[Event] = []

        async def start() -> None:
            self.thread = Turnstile()
            self.scheduler = Scheduler([ThreadWorker(self.thread, engine.run)], batch, self.metrics)
            self.running = asyncio.create_task(self.scheduler.run())
            self.outbox = self.hub.subscribe()
            self.witnessing = asyncio.create_task(read(self.outbox, self.witness))

        self.loop.run_until_complete(start())
        self.sources = Sources()
        self.vocabularies = SourceVocabularies()
        self.shared = Neighbours(
            model=ModelInfo("scripted", None, "cpu", ("en",), Text(self.tokenizer_file, eot)),
            session=SessionSettings(SegmentSettings(longest=longest, cut_window=1.0)),
            vad=VadSettings(),
            backlog=1e9,
            scheduler=self.scheduler,
            hub=self.hub,
            sources=self.sources,
            vocabularies=self.vocabularies,
            metrics=self.metrics,
        )

    def trouble(self, jobs: Sequence[Job]) -> None:
        if len(jobs) > self.room:
            raise MemoryError
        if self.poisonous and any(len(job.audio) // FRAME % 3 == 0 for job in jobs):
            raise ValueError("poison")

    def settle(self) -> None:
        """Until nobody has anything to do but wait."""

        async def turns() -> None:
            for _ in range(60):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    @property
    def open(self) -> list[Client]:
        return [client for client in self.clients if client.finish is None]

    # --- moves -----------------------------------------------------------------------------------------------------

    @rule(source=st.sampled_from(["kitchen", "hall"]))
    @precondition(lambda self: len(self.open) < 4)
    def connect(self, source: str) -> None:
        async def start() -> None:
            stream = Stream(Start(source=source), self.shared)
            events: list[Event] = []
            self.clients.append(Client(stream, asyncio.create_task(read(stream.outbox, events)), events=events))

        self.loop.run_until_complete(start())

    @rule(
        which=st.integers(0, 3),
        speech=st.integers(2, 90),  # frames; one alone is a click
        silence=st.integers(0, 60),
        size=st.integers(333, 40_000),  # bytes: samples are torn apart
    )
    @precondition(lambda self: self.open)
    def speak(self, which: int, speech: int, silence: int, size: int) -> None:
        client = self.open[which % len(self.open)]
        samples = np.zeros((speech + silence) * FRAME, "<i2")
        samples[: speech * FRAME] = 16_000
        data = samples.tobytes()
        on = self.sources.is_on(client.stream.source)
        client.voiced += [on] * speech + [False] * silence

        async def send() -> None:
            for at in range(0, len(data), size):
                await client.stream.receive(Audio(data[at : at + size]))

        self.loop.run_until_complete(send())
        self.clock.now += (speech + silence) * FRAME / SAMPLE_RATE
        self.settle()

    @rule(count=st.integers(1, 6))
    def decode(self, count: int) -> None:
        for _ in range(count):
            self.thread.permits.release()
        self.settle()

    @rule(which=st.integers(0, 3))
    @precondition(lambda self: self.open)
    def flush(self, which: int) -> None:
        client = self.open[which % len(self.open)]
        client.flushes.append(f"f{len(client.flushes)}")
        self.loop.run_until_complete(client.stream.receive(Flush(client.flushes[-1])))
        self.settle()

    @rule(which=st.integers(0, 3))
    @precondition(lambda self: self.open)
    def leave(self, which: int) -> None:
        """A stop, a lost connection and a shutdown: to a stream they are one."""
        client = self.open[which % len(self.open)]
        client.finish = self.loop.create_task(client.stream.finish())
        self.settle()

    @rule(source=st.sampled_from(["kitchen", "hall"]), on=st.booleans())
    def switch(self, source: str, on: bool) -> None:
        self.sources.switch(source, on)

    @rule(room=st.sampled_from([99, 3, 1, 0]), poisonous=st.booleans())
    def engine_trouble(self, room: int, poisonous: bool) -> None:
        self.room, self.poisonous = room, poisonous

    # --- what must hold --------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            return
        try:
            for _ in range(len(self.open)):
                self.leave(0)
            self.loop.run_until_complete(asyncio.wait_for(self.end(), 60))
            for client in self.clients:
                self.check_stream(client)
            self.check_sources()
        finally:
            self.stack.close()

    async def end(self) -> None:
        for _ in range(10_000):
            self.thread.permits.release()
        for client in self.clients:
            assert client.finish is not None
            await client.finish
            client.stream.close()
            await client.task
        self.outbox.close()
        await self.witnessing
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)

    def check_stream(self, client: Client) -> None:
        spans = list(zip(client.of(SpeechStarted), client.of(SpeechStopped), strict=True))
        assert [(one.utterance, other.utterance) for one, other in spans] == [
            (number, number) for number in range(1, len(spans) + 1)
        ]
        # Each utterance has its final, or its error in its place: once, and in order.
        outcomes = client.of(Final) + client.of(Error)
        outcomes.sort(key=client.events.index)
        assert len(outcomes) == len(spans)
        for number, outcome in enumerate(outcomes, 1):
            if isinstance(outcome, Final):
                assert outcome.utterance == number
                assert outcome.text
                assert (outcome.start, outcome.end) == (spans[number - 1][0].start, spans[number - 1][1].end)
            else:
                assert f"utterance {number} " in outcome.message
        # Voiced and silent are all that was received, and every voiced sample is under one of those.
        received = len(client.voiced) * FRAME / SAMPLE_RATE
        edges = [edge for one, other in spans for edge in (one.start, other.end)]
        assert [0.0, *edges, received] == sorted([0.0, *edges, received])
        assert client.events[-1] == StreamStopped(received)
        for at, voiced in enumerate(client.voiced):
            if voiced:
                begin, end = at * FRAME / SAMPLE_RATE, (at + 1) * FRAME / SAMPLE_RATE
                assert any(one.start <= begin and end <= other.end for one, other in spans), (begin, edges)
        assert [event.id for event in client.of(Flushed)] == client.flushes
        stable: dict[int, str] = {}
        for partial in client.of(Partial):
            assert partial.stable.startswith(stable.get(partial.utterance, ""))
            stable[partial.utterance] = partial.stable

    def check_sources(self) -> None:
        """All that was told to each stream's client was told to whoever listens, in order, and counted."""
        finals = [event for event in self.witness if isinstance(event, Final)]
        assert len({final.id for final in finals}) == len(finals)
        assert sorted(final.id or "" for final in finals) == sorted(
            final.id for client in self.clients for final in client.of(Final)
        )
        for source in ("kitchen", "hall"):
            told = [each.seq for each in finals if each.source == source]
            assert told == sorted(set(told))
        errors = sum(len(client.of(Error)) for client in self.clients)
        counted = self.metrics.text().decode()
        failures = next(line for line in counted.splitlines() if line.startswith("whisperd_job_failures_total"))
        assert float(failures.split()[1]) >= errors
        assert not self.scheduler._clients
        assert not self.hub._subscriptions


@pytest.fixture(autouse=True)
def _tokenizer(tokenizer_file: Path) -> None:
    Pipeline.tokenizer_file = tokenizer_file


TestPipeline = Pipeline.TestCase
"""Nothing that was said is lost, doubled, reordered or taken back, whatever happens."""
TestPipeline.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
