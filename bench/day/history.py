"""What was noted during the day, as it happened, and the day's clock.

Owns the notes: sentences, turns, finals that readers were told, finals that MQTT got, faults. Judges nothing, and knows
nothing of how any of it came about.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.day.schedule import FaultKind
from bench.harness.delivery import Final, Outage

COSTS_ACKNOWLEDGEMENTS = frozenset(
    {FaultKind.BROKER_KILLED, FaultKind.BROKER_FROZEN, FaultKind.DAEMON_KILLED, FaultKind.DAEMON_KILLED_TELLING}
)


@dataclass(slots=True)
class Speaker:
    """Somebody who speaks, or who reads what was said at the microphone.

    Attributes:
        sent: sentences that were to be said.
        said: times that somebody began to say one.
        broken: of these, cut off by a fault, and said again.
        unheard: sentences that were said to the end, undisturbed, and had no final.
        connections: made to the daemon.
        told: finals that were read, in order.
    """

    name: str
    sent: int = 0
    said: int = 0
    broken: int = 0
    unheard: int = 0
    connections: int = 0
    told: list[Final] = field(default_factory=list)


@dataclass(slots=True)
class Incident:
    """A fault that happened.

    Attributes:
        kind: what broke.
        day: when, in seconds of the day.
        began: the monotonic time at which it began.
        ended: the monotonic time at which it ended; None while it lasts.
    """

    kind: FaultKind
    day: float
    began: float
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return (self.ended if self.ended is not None else time.monotonic()) - self.began


@dataclass(slots=True)
class History:
    """All notes of the day.

    Attributes:
        speakers: by source.
        arrivals: the finals that came by MQTT; they grow in another thread.
        incidents: the faults so far.
        when_told: called once, in the moment in which a reader has read a final.
    """

    speakers: dict[str, Speaker]
    arrivals: list[Final] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    when_told: Callable[[], None] | None = None

    def tell(self, told: Final) -> None:
        """Note that a reader has read a final."""
        self.speakers[told.source].told.append(told)
        if (call := self.when_told) is not None:
            self.when_told = None
            call()

    @contextmanager
    def incident(self, kind: FaultKind, day: float) -> Iterator[None]:
        """Note a fault that lasts as long as the block runs.

        Args:
            kind: what breaks.
            day: when, in seconds of the day.
        """
        incident = Incident(kind, day, time.monotonic())
        self.incidents.append(incident)
        yield
        incident.ended = time.monotonic()

    def disturbed(self, since: float, *kinds: FaultKind) -> bool:
        """Return whether a fault of these kinds lasted at any moment from `since` on (monotonic)."""
        return any(each.kind in kinds and (each.ended is None or each.ended >= since) for each in self.incidents)

    def outages(self) -> list[Outage]:
        costly = [each for each in self.incidents if each.kind in COSTS_ACKNOWLEDGEMENTS]
        return [Outage(each.began, each.began + each.seconds) for each in costly]


class Clock:
    """The day's clock.

    Args:
        speed: how many times as fast as ours it goes.
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._began = time.monotonic()

    def now(self) -> float:
        return (time.monotonic() - self._began) * self._speed

    async def until(self, at: float) -> None:
        await self.sleep(at - self.now())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds / self._speed))
