"""What happens on a day: who says what and when, and what breaks when.

Pure functions of a seed: the same day for the same numbers. Times are in seconds of the day. Knows nothing of how any
of it is done.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """What may break."""

    BROKER_KILLED = "broker: kill -9, started again"
    BROKER_FROZEN = "broker: SIGSTOP, SIGCONT"
    MICROPHONE_UNPLUGGED = "microphone: unplugged, plugged in"
    DAEMON_STOPPED = "daemon: SIGTERM, started again"
    DAEMON_KILLED = "daemon: SIGKILL, started again"
    DAEMON_KILLED_TELLING = "daemon: SIGKILL at the moment somebody reads a final"


SPEAKERS = ("kitchen", "hall", "desk", "satellite")
"""Two websocket clients, the microphone, and a Wyoming satellite; each is the source of that name."""

_SAYS_EVERY = 80.0
"""Seconds between two sentences of a speaker, on average."""

_BREAKS_EVERY = {
    FaultKind.BROKER_KILLED: 600.0,
    FaultKind.BROKER_FROZEN: 600.0,
    FaultKind.MICROPHONE_UNPLUGGED: 900.0,
    FaultKind.DAEMON_STOPPED: 1200.0,
    FaultKind.DAEMON_KILLED: 1200.0,
    FaultKind.DAEMON_KILLED_TELLING: 900.0,
}
_LASTS = {  # seconds of the day, from and to
    FaultKind.BROKER_KILLED: (10.0, 120.0),
    FaultKind.BROKER_FROZEN: (20.0, 120.0),
    FaultKind.MICROPHONE_UNPLUGGED: (5.0, 60.0),
    FaultKind.DAEMON_STOPPED: (0.0, 20.0),
    FaultKind.DAEMON_KILLED: (0.0, 20.0),
    FaultKind.DAEMON_KILLED_TELLING: (0.0, 20.0),
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence to be said.

    Attributes:
        at: when, in seconds of the day.
        speaker: the source that says it.
        recording: the number of its recording.
    """

    at: float
    speaker: str
    recording: int


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault to be injected.

    Attributes:
        at: when, in seconds of the day.
        kind: what breaks.
        lasts: seconds until it is mended.
    """

    at: float
    kind: FaultKind
    lasts: float


@dataclass(frozen=True, slots=True)
class Day:
    """All that happens on a day.

    Attributes:
        seconds: how long it is.
        sentences: in order of time.
        faults: in order of time.
    """

    seconds: float
    sentences: tuple[Sentence, ...]
    faults: tuple[Fault, ...]


def plan(minutes: float, seed: int, recordings: int) -> Day:
    """Plan a day on which every speaker says something, and every kind of fault comes at least once.

    Args:
        minutes: how long the day is.
        seed: another day for each.
        recordings: how many there are to choose from.

    Returns:
        The day.
    """
    seconds = 60 * minutes
    chance = random.Random(seed)
    sentences = [
        Sentence(at, speaker, chance.randrange(recordings))
        for speaker in SPEAKERS
        for at in _spread(chance, seconds, _SAYS_EVERY)
    ]
    faults = [
        Fault(at, kind, chance.uniform(*_LASTS[kind]))
        for kind, every in _BREAKS_EVERY.items()
        for at in _spread(chance, seconds, every)
    ]
    return Day(seconds, tuple(sorted(sentences, key=_at)), tuple(sorted(faults, key=_at)))


def _spread(chance: random.Random, seconds: float, every: float) -> list[float]:
    """Choose about one time in each `every` seconds, anywhere in it; at least one."""
    number = max(1, round(seconds / every))
    return [seconds * (place + chance.random()) / number for place in range(number)]


def _at(each: Sentence | Fault) -> float:
    return each.at
