"""What became of each final, and which promises did not hold.

Pure: notes in, verdicts out. Knows nothing of how they came about.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.soak.book import Book, Connection, Ending, Kind, Note
from bench.soak.slope import Slope, slope

JUDGED_FROM = 1800.0
"""Seconds: the memory of a shorter run says nothing of hours."""

LOSSES = {
    "whisperd_job_failures_total": "jobs that failed",
    "whisperd_canary_failures_total": "canary decodes that failed",
    "whisperd_subscribers_dropped_total": "subscribers disconnected as too slow",
    "whisperd_mqtt_dropped_finals_total": "finals dropped: too many waited for the broker",
    "whisperd_mqtt_expired_finals_total": "finals dropped: too old",
    "whisperd_mqtt_too_big_total": "messages that were larger than the broker takes",
    "whisperd_mqtt_spool_damaged_total": "rows of the spool that were damaged",
    "whisperd_mqtt_refused_total": "messages that the broker refused",
    "whisperd_mqtt_spool_errors_total": "times that the spool's file failed",
    "whisperd_connections_refused_total": "connections that were refused",
    "whisperd_accept_failures_total": "connections that had to wait for a file descriptor",
    "whisperd_backpressure_total": "times that a stream was read no further until its finals caught up",
}
"""What the service counts when it loses something or keeps somebody waiting. At this load it has no reason to."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of the connections of one kind. said: sentences sent whole. unheard: of these, those in which an utterance began
    and no final came. unnoticed: those in which no utterance began. begun: utterances whose beginning was told.
    unended: of these, those without a final. told: finals read. missing: finals that their own client should have been
    told, and was not. broken: connections that ended as nobody meant them to."""

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
    """exit_code: after SIGTERM. counted: by the service. idle, left: (descriptors, threads) when only those who stay
    until the end were connected, before and after. seconds: how long it was. warm_up: seconds in which memory may grow.
    most: MB an hour that RSS may grow afterwards."""

    exit_code: int
    counted: Counter[str]
    idle: tuple[int, int]
    left: tuple[int, int]
    seconds: float
    warm_up: float
    most: float


def verdicts(book: Book) -> dict[Kind, Verdict]:
    finals: dict[str, list[Note]] = defaultdict(list)
    for note in book.events:
        finals[note.session].append(note)
    found = {}
    for kind in Kind:
        each = [connection for connection in book.connections if connection.kind is kind]
        if each:
            found[kind] = _added([_verdict(connection, finals[connection.session]) for connection in each])
    return found


def _verdict(connection: Connection, finals: Sequence[Note]) -> Verdict:
    # An abort throws away what lies in the socket: what was sent then was perhaps not heard.
    said = [] if connection.ending is Ending.ABORT or connection.broken else connection.said
    empty = [spoken for spoken in said if not any(note.start < spoken[1] and note.end > spoken[0] for note in finals)]
    ids = {note.id for note in finals}
    unended = sum(f"{connection.session}-{number}" not in ids for number in connection.begun)
    stayed = connection.ending is Ending.STOP and not connection.broken
    told = [note.id for note in connection.told]
    # Where an utterance began and has no final we do not know in which sentence: as many sentences are unheard.
    unheard = min(len(empty), unended)
    return Verdict(
        1, len(said), unheard, len(empty) - unheard, len(connection.begun), unended, len(told),
        len(ids - set(told)) if stayed else 0, bool(connection.broken),
    )  # fmt: skip


def _added(verdicts: Iterable[Verdict]) -> Verdict:
    columns = zip(*([getattr(each, name) for name in Verdict.__slots__] for each in verdicts), strict=True)
    return Verdict(*(sum(column) for column in columns))


def memory(book: Book, warm_up: float) -> Slope | None:
    """Of RSS, in MB an hour."""
    after = [sample for sample in book.samples if sample.at >= warm_up]
    return slope([each.at / 3600 for each in after], [each.rss for each in after])


def broken_promises(book: Book, end: End, *, known: bool) -> list[str]:
    """A sentence for each promise that did not hold. known: every sentence is known to be taken for speech."""
    faults = [f"{connection.source}: {connection.broken}" for connection in book.connections if connection.broken]
    found = [f"{what} ({times} times)" for what, times in Counter(faults + book.broken).items()]
    for kind, verdict in verdicts(book).items():
        for number, what in [
            (verdict.unheard + (verdict.unnoticed if known else 0), "sentences have no final"),
            (verdict.unended, "utterances that a client was told the beginning of have no final"),
            (verdict.missing, "finals were not told to their own client"),
        ]:
            found += [f"{kind}: {number} {what}"] if number else []
    found += _between_edges(book)
    found += [f"clients were told of {count} errors {code}" for code, count in book.errors.items()]
    if book.answers < book.turns:
        found.append(f"the satellite had {book.answers} answers to {book.turns} turns")
    return found + _of_the_process(book, end)


def _between_edges(book: Book) -> list[str]:
    events, mqtt = _texts(book.events), _texts(book.mqtt)
    own = [note for connection in book.connections for note in connection.told]
    found = []
    for name, told in [("/v1/events", book.events), ("MQTT", book.mqtt)]:
        if repeated := len(told) - len({note.id for note in told}):
            found.append(f"{repeated} finals came twice by {name}")
        if disordered := _disordered(told):
            found.append(f"{disordered} finals came by {name} before one that was published before them")
        if absent := sum((events if told is book.events else mqtt).get(note.id) != note.text for note in own):
            found.append(f"{absent} finals that their own client was told did not come so by {name}")
    if events != mqtt:
        found.append(f"{len(events.items() ^ mqtt.items())} finals came by one of /v1/events and MQTT alone")
    if not book.events:
        found.append("nobody was told anything")
    return found + _visits(book)


def _visits(book: Book) -> list[str]:
    if not book.visits:
        return []
    source = book.visits[0].source
    wanted = [note.id for note in book.events if note.source == source]
    if [note.id for note in book.visits] == wanted:
        return []
    return [
        f"a subscriber that comes and goes was told {len(book.visits)} finals, not just the {len(wanted)} there were"
    ]


def _texts(notes: Iterable[Note]) -> dict[str, str]:
    return {note.id: note.text for note in notes}


def _disordered(notes: Iterable[Note]) -> int:
    last: dict[str, int] = {}
    wrong = 0
    for note in notes:
        wrong += note.seq <= last.get(note.source, 0)
        last[note.source] = max(note.seq, last.get(note.source, 0))
    return wrong


def _of_the_process(book: Book, end: End) -> list[str]:
    found = [f"the service counted {end.counted[name]:g} {what}" for name, what in LOSSES.items() if end.counted[name]]
    published = round(end.counted["whisperd_finals_total"])
    if published != len(book.events):
        found.append(f"the service published {published} finals, and /v1/events had {len(book.events)}")
    for what, before, after in zip(("descriptors", "threads"), end.idle, end.left, strict=True):
        if after > before:
            found.append(f"{after} {what} were left of {before} at the beginning")
    if kept := end.counted["whisperd_reloads_total{kept}"]:
        found.append(f"{kept:g} reloads failed")
    if end.exit_code:
        found.append(f"SIGTERM ended the service with {end.exit_code}")
    grown = memory(book, end.warm_up)
    if end.seconds >= JUDGED_FROM and grown is not None and grown.low > end.most:
        found.append(f"memory grows: RSS by {grown} MB/h")
    return found
