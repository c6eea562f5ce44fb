"""Whether what readers were told of was delivered: each final once, and in order.

Pure: lists in, a verdict out. Knows nothing of sockets or clocks; times are seconds of any one clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

SLACK = 10.0
"""Seconds around an outage in which it may cost an acknowledgement: a frozen broker takes in what it was sent before
and during, and a busy machine is slow."""


@dataclass(frozen=True, slots=True)
class Final:
    """A final as one reader got it.

    Attributes:
        source: the name of its source.
        text: what was said.
        id: "" where the reader's protocol has none (Wyoming).
        seq: its number among those of its source.
        start: where it begins, in seconds of its stream.
        end: where it ends, in seconds of its stream.
        latency: milliseconds.
        published: when, as it says itself.
        received: when it came.
    """

    source: str
    text: str
    id: str = ""
    seq: int = 0
    start: float = 0.0
    end: float = 0.0
    latency: float = 0.0
    published: float = 0.0
    received: float = 0.0

    @classmethod
    def of(cls, event: Mapping[str, Any], received: float) -> Final:
        return cls(
            event["source"], event["text"], event["id"], event["seq"], event["start"], event["end"],
            event["latency_ms"], event["at"], received,
        )  # fmt: skip

    @property
    def session(self) -> str:
        """The session of its stream: an id is that, a hyphen, and the utterance's number."""
        return self.id.rpartition("-")[0]


@dataclass(frozen=True, slots=True)
class Outage:
    """A time in which something was broken that can cost an acknowledgement.

    Attributes:
        began: when it was broken.
        ended: when it was mended.
    """

    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of the finals of one source.

    Attributes:
        told: different finals that readers were told.
        arrived: different finals that arrived.
        untold: finals that arrived, though nobody was told them: their reader was cut off.
        repeated: arrivals of an id that had come before.
        unexplained: those of them for which no outage accounts.
        lost: finals that were told, and did not arrive, or with another text.
        disordered: finals that were told or published before the one that arrived before them.
    """

    told: int
    arrived: int
    untold: int
    repeated: int
    unexplained: int
    lost: tuple[Final, ...]
    disordered: int


def check(told: Sequence[Final], arrivals: Sequence[Final], outages: Sequence[Outage] = ()) -> Delivery:
    """Compare what the readers of one source were told with what arrived.

    Args:
        told: what readers were told, in order.
        arrivals: what arrived, in order.
        outages: what may account for a repeated arrival.

    Returns:
        What became of the finals.
    """
    first = first_arrivals(arrivals)
    known = list(_identified(told, list(first.values())))
    ids = dict.fromkeys(each.id for each in known if each.id)
    places = {id: place for place, id in enumerate(first)}
    in_place = [places[id] for id in ids if id in places]
    repeats = _repeats(arrivals)
    return Delivery(
        told=len(ids) + sum(not each.id for each in known),
        arrived=len(first),
        untold=len(first.keys() - ids.keys()),
        repeated=len(repeats),
        unexplained=sum(not _explained(before, again, outages) for before, again in repeats),
        lost=tuple(each for each in known if each.id not in first or first[each.id].text != each.text),
        disordered=_descents(in_place) + disordered(arrivals),
    )


def by_source(finals: Iterable[Final]) -> dict[str, list[Final]]:
    found: dict[str, list[Final]] = {}
    for each in finals:
        found.setdefault(each.source, []).append(each)
    return found


def disordered(arrivals: Sequence[Final]) -> int:
    """Return how often a final, of one source or of all, arrived before another that was published before it."""
    return _descents([each.published for each in first_arrivals(arrivals).values()])


def _descents(values: Iterable[float]) -> int:
    return sum(later < earlier for earlier, later in pairwise(values))


def first_arrivals(arrivals: Iterable[Final]) -> dict[str, Final]:
    """Return the first arrival of each id."""
    first: dict[str, Final] = {}
    for each in arrivals:
        first.setdefault(each.id, each)
    return first


def _repeats(arrivals: Sequence[Final]) -> list[tuple[Final, Final]]:
    """Find the finals that arrived again.

    Returns:
        Each with its arrival before, which comes first.
    """
    seen: dict[str, Final] = {}
    repeats = []
    for each in arrivals:
        if each.id in seen:
            repeats.append((seen[each.id], each))
        seen[each.id] = each
    return repeats


def _explained(before: Final, again: Final, outages: Iterable[Outage]) -> bool:
    return any(
        each.began - SLACK <= before.received <= each.ended + SLACK and each.began <= again.received for each in outages
    )


def _identified(told: Sequence[Final], arrived: Sequence[Final]) -> Iterable[Final]:
    """Put the finals in place of the answers that have no id: an answer is one stream's finals, joined.

    Answers come in the order of their streams, so each is the first stream with its words after that of the answer
    before. One that fits none keeps no id: it is lost.

    Yields:
        The finals, and the answers that fit no stream.
    """
    sessions: dict[str, list[Final]] = {}
    for each in arrived:
        sessions.setdefault(each.session, []).append(each)
    left = list(sessions.values())
    for each in told:
        place = None if each.id else next((at for at, finals in enumerate(left) if _joined(finals) == each.text), None)
        if place is None:
            yield each
        else:
            yield from left[place]
            del left[: place + 1]


def _joined(finals: Sequence[Final]) -> str:
    return " ".join(each.text for each in finals if each.text)
