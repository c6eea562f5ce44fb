"""What was noted while it ran, and how the process fared.

Owns the notes: who said what, what each was told, and samples of the process. Judges nothing (see `judge.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from bench.harness.clients import Event
from bench.harness.daemon import Daemon
from bench.harness.delivery import Final
from bench.harness.usage import proportional, usage

GAUGES = ("streams_open", "subscribers", "jobs_waiting", "mqtt_waiting_finals")


class ClientKind(StrEnum):
    SPEECH = "speech, one connection"
    NOISE = "noise"
    SILENCE = "silence"
    VISITOR = "comes and goes"


class Ending(StrEnum):
    STOP = "stop"
    CLOSE = "close"
    ABORT = "abort"


@dataclass(slots=True)
class Connection:
    """The connection of one stream.

    Attributes:
        kind: what its client sends.
        source: the name of its source.
        ending: how its client meant to end it.
        session: its id, once its client was told it.
        said: start and end of each sentence that was sent whole, in seconds of the stream.
        begun: utterances whose beginning the client was told.
        told: the finals that it read.
        broken: how it ended, where not as meant.
    """

    kind: ClientKind
    source: str
    ending: Ending
    session: str = ""
    said: list[tuple[float, float]] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    told: list[Final] = field(default_factory=list)
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """How the process fared at one moment.

    Attributes:
        at: seconds since the beginning.
        rss: MiB.
        pss: MiB.
        descriptors: how many are open.
        threads: how many there are.
        cpu: cores' worth since the sample before.
        answer: milliseconds that /healthz took.
        gauges: the service's own, by name.
    """

    at: float
    rss: float
    pss: float
    descriptors: int
    threads: int
    cpu: float
    answer: float
    gauges: dict[str, float]


@dataclass(slots=True)
class History:
    """All notes of a soak.

    Attributes:
        began: the monotonic time at which it began.
        connections: of all streams.
        events: finals in the order in which the subscriber of /v1/events got them.
        mqtt: finals in the order in which the subscriber of MQTT got them.
        visits: finals of the subscriber that comes and goes, over all its visits.
        visit_count: how often it came.
        turns: of the satellite.
        answers: to the satellite.
        errors: that clients were told, by code.
        broken: what else happened that nobody meant.
        reloads: how often a reload was asked for.
        lags: of partials; seconds since the beginning, and milliseconds.
        latencies: of finals; seconds since the beginning, and milliseconds.
        samples: of the process, in order of time.
    """

    began: float = field(default_factory=time.monotonic)
    connections: list[Connection] = field(default_factory=list)
    events: list[Final] = field(default_factory=list)
    mqtt: list[Final] = field(default_factory=list)
    visits: list[Final] = field(default_factory=list)
    visit_count: int = 0
    turns: int = 0
    answers: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    reloads: int = 0
    lags: list[tuple[float, float]] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    def connect(self, kind: ClientKind, source: str, ending: Ending) -> Connection:
        self.connections.append(Connection(kind, source, ending))
        return self.connections[-1]

    def hear(self, connection: Connection, event: Event) -> None:
        """Note what a stream's own client was told."""
        match event["type"]:
            case "ready":
                connection.session = event["session"]
            case "speech_started":
                connection.begun.append(event["utterance"])
            case "partial":
                self.lags.append((self.now, event["lag_ms"]))
            case "final":
                connection.told.append(Final.of(event, time.monotonic()))
                self.latencies.append((self.now, event["latency_ms"]))
        self.hear_error(event)

    def hear_error(self, event: Event) -> None:
        if event["type"] == "error":
            self.errors[event["code"]] += 1


class Sampler:
    """Samples of a service.

    One that fails, because the service does not answer, is a broken promise and is noted as one.

    Args:
        daemon: the service.
        history: where the samples are noted.
    """

    def __init__(self, daemon: Daemon, history: History) -> None:
        self._daemon = daemon
        self._history = history
        self._before = time.monotonic(), usage(daemon.pid).cpu

    async def run(self, every: float) -> None:
        """Take samples for ever.

        Args:
            every: seconds between two.
        """
        while True:
            self._history.samples.append(await self.take())
            await asyncio.sleep(every)

    async def take(self) -> Sample:
        """Measure the service: its answer time, memory, descriptors, threads, CPU share and gauges.

        Raises:
            RuntimeError: the service is no more.
        """
        began = time.monotonic()
        status, _ = await asyncio.to_thread(self._daemon.get, "/healthz")
        answer = time.monotonic() - began
        counted = await self._daemon.sample()
        if not self._daemon.alive:
            raise RuntimeError(f"the service ended by itself:\n{self._daemon.log[-5000:]}")
        if status != 200 or not counted:
            self._history.broken.append(f"/healthz answered {status}, /metrics {'well' if counted else 'nothing'}")
        pss = await asyncio.to_thread(proportional, self._daemon.pid)
        now, used = time.monotonic(), usage(self._daemon.pid)
        share = (used.cpu - self._before[1]) / max(1e-3, now - self._before[0])
        self._before = now, used.cpu
        gauges = {name: counted.get(f"whisperd_{name}", 0.0) for name in GAUGES}
        return Sample(
            self._history.now, used.rss, pss, used.descriptors, used.threads, share, answer * 1000, gauges
        )  # fmt: skip
