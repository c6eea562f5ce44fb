"""What was noted during the day, as it happened.

Owns the notes: sentences, turns, finals told, arrivals, faults. Judges nothing (see `ledger.py`), and knows nothing of
how any of it came about.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.day.ledger import Arrived, Outage, Told
from bench.day.schedule import Kind

COSTS_ACKNOWLEDGEMENTS = frozenset(
    {Kind.BROKER_KILLED, Kind.BROKER_FROZEN, Kind.DAEMON_KILLED, Kind.DAEMON_KILLED_TELLING}
)


@dataclass(slots=True)
class Speaker:
    """sent: sentences that were to be said. said: times that somebody began to say one. broken: of these, cut off by a
    fault, and said again. unheard: said to the end, undisturbed, and no final came. connections: made to the daemon."""

    name: str
    sent: int = 0
    said: int = 0
    broken: int = 0
    unheard: int = 0
    connections: int = 0
    told: list[Told] = field(default_factory=list)


@dataclass(slots=True)
class Happened:
    """A fault. day: when, in seconds of the day. began, ended: monotonic; ended is None while it lasts."""

    kind: Kind
    day: float
    began: float
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return (self.ended if self.ended is not None else time.monotonic()) - self.began


@dataclass(slots=True)
class Book:
    speakers: dict[str, Speaker]
    arrivals: list[Arrived] = field(default_factory=list)
    faults: list[Happened] = field(default_factory=list)
    when_told: Callable[[], None] | None = None
    """Called once, in the moment in which a reader has read a final."""

    def tell(self, told: Told) -> None:
        self.speakers[told.source].told.append(told)
        if (call := self.when_told) is not None:
            self.when_told = None
            call()

    def arrive(self, final: dict[str, Any]) -> None:
        """By MQTT."""
        self.arrivals.append(Arrived(final["source"], final["id"], final["text"], final["at"], time.monotonic()))

    def begin(self, kind: Kind, day: float) -> Happened:
        self.faults.append(Happened(kind, day, time.monotonic()))
        return self.faults[-1]

    def disturbed(self, since: float, *kinds: Kind) -> bool:
        """Whether one of these lasted at any moment from `since` on (monotonic)."""
        return any(each.kind in kinds and (each.ended is None or each.ended >= since) for each in self.faults)

    def outages(self) -> list[Outage]:
        return [
            Outage(each.began, each.began + each.seconds) for each in self.faults if each.kind in COSTS_ACKNOWLEDGEMENTS
        ]


class Clock:
    """The day's, `speed` times as fast as ours."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._began = time.monotonic()

    def now(self) -> float:
        return (time.monotonic() - self._began) * self._speed

    async def until(self, at: float) -> None:
        await self.sleep(at - self.now())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds / self._speed))
