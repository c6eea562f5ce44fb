"""Who was told which final, what reached MQTT, and whether the promises held.

Pure: lists in, a verdict out. Knows nothing of sockets or clocks; times are seconds of any one clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

SLACK = 10.0
"""Seconds around a fault in which it may cost an acknowledgement: a frozen broker takes in what it was sent before and
during, and a busy machine is slow."""


@dataclass(frozen=True, slots=True)
class Told:
    """A final that an edge told its reader. id: None where its protocol has none (Wyoming)."""

    source: str
    text: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Arrived:
    """A final that came to the MQTT subscriber. published: as it says itself. when: it came, on the faults' clock."""

    source: str
    id: str
    text: str
    published: float
    when: float


@dataclass(frozen=True, slots=True)
class Outage:
    """From when to when something was broken that can cost an acknowledgement."""

    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one source, or of all.

    told, arrived: different finals. untold: arrived, though nobody was told them (their reader was cut off). repeated:
    arrivals of an id that had come before. unexplained: those of them for which no fault accounts. lost: told, and did
    not arrive. disordered: told or published before the one that arrived before it.
    """

    told: int
    arrived: int
    untold: int
    repeated: int
    unexplained: int
    lost: tuple[Told, ...]
    disordered: int


def judge(told: Sequence[Told], arrivals: Sequence[Arrived], outages: Sequence[Outage]) -> Verdict:
    """Of one source: all finals that its readers were told and all that arrived, each in order."""
    first = _first_arrivals(arrivals)
    known = list(_identified(told, list(first.values())))
    ids = dict.fromkeys(each.id for each in known if each.id is not None)
    places = {id: place for place, id in enumerate(first)}
    repeats = _repeats(arrivals)
    return Verdict(
        told=len(ids) + sum(each.id is None for each in known),
        arrived=len(first),
        untold=len(first.keys() - ids.keys()),
        repeated=len(repeats),
        unexplained=sum(not _explained(before, again, outages) for before, again in repeats),
        lost=tuple(each for each in known if each.id not in first),
        disordered=_descents([places[id] for id in ids if id in places])
        + _descents([each.published for each in first.values()]),
    )


def descents_over_all(arrivals: Sequence[Arrived]) -> int:
    """How often, over all sources, one arrived before another that was published before it."""
    return _descents([each.published for each in _first_arrivals(arrivals).values()])


def _first_arrivals(arrivals: Sequence[Arrived]) -> dict[str, Arrived]:
    first: dict[str, Arrived] = {}
    for each in arrivals:
        first.setdefault(each.id, each)
    return first


def _repeats(arrivals: Sequence[Arrived]) -> list[tuple[Arrived, Arrived]]:
    """(the arrival before, the same final again)."""
    seen: dict[str, Arrived] = {}
    repeats = []
    for each in arrivals:
        if each.id in seen:
            repeats.append((seen[each.id], each))
        seen[each.id] = each
    return repeats


def _explained(before: Arrived, again: Arrived, outages: Iterable[Outage]) -> bool:
    return any(each.began - SLACK <= before.when <= each.ended + SLACK and each.began <= again.when for each in outages)


def _descents(values: Sequence[float]) -> int:
    return sum(later < earlier for earlier, later in pairwise(values))


def _identified(told: Sequence[Told], arrived: Sequence[Arrived]) -> Iterable[Told]:
    """Answers without an id get those of the finals that they are made of: an answer is one stream's finals, joined.

    Answers come in the order of their streams, so each is the first stream with its words after that of the answer
    before. One that fits none keeps no id: it is lost.
    """
    streams = _streams(arrived)
    place = 0
    for each in told:
        if each.id is not None:
            yield each
            continue
        found = next((at for at in range(place, len(streams)) if _joined(streams[at]) == each.text), None)
        if found is None:
            yield each
            continue
        place = found + 1
        for final in streams[found]:
            yield Told(each.source, final.text, final.id)


def _streams(arrived: Sequence[Arrived]) -> list[list[Arrived]]:
    """By stream: an id is that of its stream, a hyphen, and the utterance's number."""
    streams: dict[str, list[Arrived]] = {}
    for each in arrived:
        streams.setdefault(each.id.rpartition("-")[0], []).append(each)
    return list(streams.values())


def _joined(finals: Sequence[Arrived]) -> str:
    return " ".join(each.text for each in finals if each.text)
