"""What was noted while it ran.

Owns the notes: who said what, what each was told, and how the process fared. Judges nothing (see `judge.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class Kind(StrEnum):
    SPEECH = "speech, one connection"
    NOISE = "noise"
    SILENCE = "silence"
    VISITOR = "comes and goes"


class Ending(StrEnum):
    STOP = "stop"
    CLOSE = "close"
    ABORT = "abort"


class Note(NamedTuple):
    """A final as somebody was told it. start, end: seconds of its stream."""

    source: str
    id: str
    seq: int
    text: str
    start: float
    end: float

    @classmethod
    def of(cls, final: dict[str, Any]) -> Note:
        return cls(final["source"], final["id"], final["seq"], final["text"], final["start"], final["end"])

    @property
    def session(self) -> str:
        return self.id.rpartition("-")[0]


@dataclass(slots=True)
class Connection:
    """One stream. said: (start, end) of each sentence that was sent whole, in seconds of the stream. begun: utterances
    whose beginning the client was told. told: the finals that it read. broken: how it ended, where not as meant."""

    kind: Kind
    source: str
    ending: Ending
    session: str = ""
    said: list[tuple[float, float]] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    told: list[Note] = field(default_factory=list)
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """at: seconds since the beginning. rss, pss: MiB. cpu: cores' worth since the sample before. answer: milliseconds
    that /healthz took. gauges: the service's own, by name."""

    at: float
    rss: float
    pss: float
    descriptors: int
    threads: int
    cpu: float
    answer: float
    gauges: dict[str, float]


@dataclass(slots=True)
class Book:
    """events, mqtt: finals in the order in which the two that stayed got them. visits: those of the subscriber that
    comes and goes, over all its visits. turns, answers: of the satellite. errors: that clients were told, by code.
    lags, latencies: (seconds since the beginning, milliseconds)."""

    began: float = field(default_factory=time.monotonic)
    connections: list[Connection] = field(default_factory=list)
    events: list[Note] = field(default_factory=list)
    mqtt: list[Note] = field(default_factory=list)
    visits: list[Note] = field(default_factory=list)
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

    def connect(self, kind: Kind, source: str, ending: Ending) -> Connection:
        self.connections.append(Connection(kind, source, ending))
        return self.connections[-1]

    def hear(self, connection: Connection, event: dict[str, Any]) -> None:
        """What a stream's own client was told."""
        match event["type"]:
            case "ready":
                connection.session = event["session"]
            case "speech_started":
                connection.begun.append(event["utterance"])
            case "partial":
                self.lags.append((self.now, event["lag_ms"]))
            case "final":
                connection.told.append(Note.of(event))
                self.latencies.append((self.now, event["latency_ms"]))
            case "error":
                self.errors[event["code"]] += 1
