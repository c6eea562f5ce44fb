"""What became of each final, and which promises did not hold.

Pure: notes in, verdicts out. Knows nothing of how they came about.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.harness.delivery import Delivery, Final, by_source, check, first_arrivals
from bench.harness.report import JOB_LOSSES, MQTT_LOSSES, SUBSCRIBER_LOSSES, losses
from bench.soak.history import ClientKind, Connection, Ending, History
from bench.soak.slope import Slope, slope

JUDGED_FROM = 1800.0
"""Seconds: the memory of a shorter run says nothing of hours."""

LOSSES = {
    **JOB_LOSSES,
    "whisperd_canary_failures_total": "canary decodes that failed",
    **SUBSCRIBER_LOSSES,
    **MQTT_LOSSES,
    "whisperd_connections_refused_total": "connections that were refused",
    "whisperd_accept_failures_total": "connections that had to wait for a file descriptor",
    "whisperd_backpressure_total": "times that a stream was read no further until its finals caught up",
}
"""What the service counts when it loses something or keeps somebody waiting. At this load it has no reason to."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the connections of one kind.

    Attributes:
        connections: how many there were.
        said: sentences sent whole.
        unheard: of these, those in which an utterance began and no final came.
        unnoticed: of these, those in which no utterance began.
        begun: utterances whose beginning was told.
        unended: of these, those without a final.
        told: finals read.
        missing: finals that their own client should have been told, and was not.
        broken: connections that ended as nobody meant them to.
    """

    connections: int
    said: int
    unheard: int
    unnoticed: int
    begun: int
    unended: int
    told: int
    missing: int
    broken: int


@dataclass(frozen=True, slots=True)
class End:
    """How a soak ended.

    Attributes:
        exit_code: of the service, after SIGTERM.
        counted: its own counters.
        idle: its descriptors and threads before, when only those who stay until the end were connected.
        left: its descriptors and threads afterwards, likewise.
        seconds: how long the soak was.
        warm_up: seconds in which memory may grow.
        most: MB an hour that RSS may grow afterwards.
    """

    exit_code: int
    counted: Counter[str]
    idle: tuple[int, int]
    left: tuple[int, int]
    seconds: float
    warm_up: float
    most: float


def tallies(history: History) -> dict[ClientKind, Tally]:
    finals: dict[str, list[Final]] = defaultdict(list)
    for final in history.events:
        finals[final.session].append(final)
    found = {}
    for kind in ClientKind:
        each = [connection for connection in history.connections if connection.kind is kind]
        if each:
            found[kind] = _added([_tally(connection, finals[connection.session]) for connection in each])
    return found


def _tally(connection: Connection, finals: Sequence[Final]) -> Tally:
    # An abort throws away what lies in the socket: what was sent then was perhaps not heard.
    said = [] if connection.ending is Ending.ABORT or connection.broken else connection.said
    empty = [spoken for spoken in said if not any(each.start < spoken[1] and each.end > spoken[0] for each in finals)]
    ids = {each.id for each in finals}
    unended = sum(f"{connection.session}-{number}" not in ids for number in connection.begun)
    stayed = connection.ending is Ending.STOP and not connection.broken
    told = [each.id for each in connection.told]
    # Where an utterance began and has no final we do not know in which sentence: as many sentences are unheard.
    unheard = min(len(empty), unended)
    return Tally(
        1, len(said), unheard, len(empty) - unheard, len(connection.begun), unended, len(told),
        len(ids - set(told)) if stayed else 0, bool(connection.broken),
    )  # fmt: skip


def _added(tallies: Iterable[Tally]) -> Tally:
    columns = zip(*([getattr(each, name) for name in Tally.__slots__] for each in tallies), strict=True)
    return Tally(*(sum(column) for column in columns))


def memory(history: History, warm_up: float) -> Slope | None:
    """Return the slope of RSS after the warm-up, in MB an hour; None where there are too few samples.

    Args:
        history: what was noted.
        warm_up: seconds in which memory may grow.
    """
    after = [sample for sample in history.samples if sample.at >= warm_up]
    return slope([each.at / 3600 for each in after], [each.rss for each in after])


def broken_promises(history: History, end: End, *, known: bool) -> list[str]:
    """Return a sentence for each promise that did not hold.

    Args:
        history: what was noted.
        end: how it ended.
        known: whether every sentence is known to be taken for speech.
    """
    faults = [f"{connection.source}: {connection.broken}" for connection in history.connections if connection.broken]
    found = [f"{what} ({times} times)" for what, times in Counter(faults + history.broken).items()]
    for kind, tally in tallies(history).items():
        for number, what in [
            (tally.unheard + (tally.unnoticed if known else 0), "sentences have no final"),
            (tally.unended, "utterances that a client was told the beginning of have no final"),
            (tally.missing, "finals were not told to their own client"),
        ]:
            found += [f"{kind}: {number} {what}"] if number else []
    found += _between_edges(history)
    found += [f"clients were told of {count} errors {code}" for code, count in history.errors.items()]
    if history.answers < history.turns:
        found.append(f"the satellite had {history.answers} answers to {history.turns} turns")
    return found + _of_the_process(history, end)


def _between_edges(history: History) -> list[str]:
    events, mqtt = _texts(history.events), _texts(history.mqtt)
    own = by_source(final for connection in history.connections for final in connection.told)
    found = []
    for name, arrivals in [("/v1/events", history.events), ("MQTT", history.mqtt)]:
        each = _checked(own, by_source(arrivals))
        if repeated := sum(delivery.repeated for delivery in each):
            found.append(f"{repeated} finals came twice by {name}")
        if disordered := sum(delivery.disordered for delivery in each):
            found.append(f"{disordered} finals came by {name} before one that was published before them")
        if misnumbered := sum(map(_misnumbered, by_source(arrivals).values())):
            found.append(f"{misnumbered} finals came by {name} out of the order of their source's numbers")
        if absent := sum(len(delivery.lost) for delivery in each):
            found.append(f"{absent} finals that their own client was told did not come so by {name}")
    if events != mqtt:
        found.append(f"{len(events.items() ^ mqtt.items())} finals came by one of /v1/events and MQTT alone")
    if not history.events:
        found.append("nobody was told anything")
    return found + _visits(history)


def _checked(told: Mapping[str, list[Final]], arrivals: Mapping[str, list[Final]]) -> list[Delivery]:
    return [check(told.get(source, []), arrivals.get(source, [])) for source in told.keys() | arrivals.keys()]


def _misnumbered(arrivals: Iterable[Final]) -> int:
    return sum(later.seq <= earlier.seq for earlier, later in pairwise(first_arrivals(arrivals).values()))


def _texts(finals: Iterable[Final]) -> dict[str, str]:
    return {id: final.text for id, final in first_arrivals(finals).items()}


def _visits(history: History) -> list[str]:
    if not history.visits:
        return []
    source = history.visits[0].source
    wanted = [each.id for each in history.events if each.source == source]
    if [each.id for each in history.visits] == wanted:
        return []
    return [
        f"a subscriber that comes and goes was told {len(history.visits)} finals, not just the {len(wanted)} there were"
    ]


def _of_the_process(history: History, end: End) -> list[str]:
    found = [f"the service counted {each}" for each in losses(end.counted, LOSSES)]
    published = round(end.counted["whisperd_finals_total"])
    if published != len(history.events):
        found.append(f"the service published {published} finals, and /v1/events had {len(history.events)}")
    for what, before, after in zip(("descriptors", "threads"), end.idle, end.left, strict=True):
        if after > before:
            found.append(f"{after} {what} were left of {before} at the beginning")
    if kept := end.counted["whisperd_reloads_total{kept}"]:
        found.append(f"{kept:g} reloads failed")
    if end.exit_code:
        found.append(f"SIGTERM ended the service with {end.exit_code}")
    grown = memory(history, end.warm_up)
    if end.seconds >= JUDGED_FROM and grown is not None and grown.low > end.most:
        found.append(f"memory grows: RSS by {grown} MB/h")
    return found
