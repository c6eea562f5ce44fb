"""The day as a Markdown report, and whether every promise held.

Pure: notes in, text out. Owns what the promises are (`broken_promises`). Knows nothing of how the day was played.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bench.day.book import Book
from bench.day.ledger import Verdict, descents_over_all, judge
from bench.day.schedule import Kind
from bench.table import table

_DROPS = {
    "whisperd_mqtt_dropped_finals_total": "finals dropped: too many waited for the broker",
    "whisperd_mqtt_expired_finals_total": "finals dropped: too old",
    "whisperd_mqtt_too_big_total": "messages that were larger than the broker takes",
    "whisperd_mqtt_spool_damaged_total": "rows of the spool that were damaged",
    "whisperd_mqtt_refused_total": "messages that the broker refused",
    "whisperd_mqtt_spool_errors_total": "times that the spool's file failed",
    "whisperd_job_failures_total": "jobs that failed",
    "whisperd_subscribers_dropped_total": "subscribers disconnected as too slow",
}
"""What the daemon counts when it loses something. On this day it has no reason to."""

_MENTIONED = {
    "whisperd_microphone_lost_seconds_total": "seconds of the microphone lost: nobody took them in time",
    "whisperd_microphone_reopened_total": "attempts to open the microphone again",
    "whisperd_mqtt_connections_total": "connections to the broker",
    "whisperd_audio_seconds_total": "seconds of audio heard",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How the day's processes fared. lives: of the daemon. bad_ends: its exit codes after SIGTERM that were not 0.
    counted: by the daemon itself. recorder_connections: of the MQTT subscriber."""

    lives: int
    bad_ends: tuple[int, ...]
    counted: Counter[str]
    recorder_connections: int


def verdicts(book: Book) -> dict[str, Verdict]:
    """By source."""
    outages = book.outages()
    arrivals = list(book.arrivals)  # it grows in another thread
    return {
        name: judge(speaker.told, [each for each in arrivals if each.source == name], outages)
        for name, speaker in book.speakers.items()
    }


def broken_promises(book: Book, ending: Ending) -> list[str]:
    """A sentence for each promise that did not hold."""
    found = []
    for name, verdict in verdicts(book).items():
        found += [f"{name}: a reader was told {each.text!r} ({each.id}), and MQTT was not" for each in verdict.lost]
        if verdict.unexplained:
            found.append(f"{name}: {verdict.unexplained} finals came again without a fault around them")
        if verdict.disordered:
            found.append(f"{name}: {verdict.disordered} finals came before one that was told before them")
    if descents := descents_over_all(list(book.arrivals)):
        found.append(f"over all sources {descents} finals came before one that was published before them")
    for speaker in book.speakers.values():
        if speaker.unheard:
            found.append(f"{speaker.name}: {speaker.unheard} sentences were said undisturbed, and nothing came of them")
        if not speaker.told:
            found.append(f"{speaker.name}: nobody was told anything")
    if ending.bad_ends:
        found.append(f"SIGTERM did not end the daemon well: exit codes {', '.join(map(str, ending.bad_ends))}")
    for name, what in _DROPS.items():
        if ending.counted[name]:
            found.append(f"the daemon counted {ending.counted[name]:g} {what}")
    return found


def report(book: Book, ending: Ending, day: str) -> str:
    """day: what was played, a sentence."""
    broken = broken_promises(book, ending)
    parts = [
        day,
        _sources(book),
        "*sent*: sentences of the day. *said*: times that somebody began one. *cut off*: of these, by a fault; it was "
        "said again. *told*: different finals that a reader of the source had read. *arrived*: different finals at the "
        "MQTT subscriber; *told to nobody*: of these, those whose reader was cut off. *repeated*: came again, with the "
        "same id; *unexplained*: of these, those without a fault around them.",
        "## Faults",
        _faults(book),
        _away(book),
        "## Counted",
        _counted(book, ending),
        "## Promises",
        "\n".join(f"- BROKEN: {each}" for each in broken) or "- none was broken",
        closing_line(book, broken),
    ]
    return "\n\n".join(parts) + "\n"


def closing_line(book: Book, broken: list[str]) -> str:
    every = verdicts(book).values()
    told, arrived = sum(each.told for each in every), sum(each.arrived for each in every)
    if broken:
        return f"**{len(broken)} promises were broken.**"
    return (
        f"**Every promise held: {told} finals were told, through {len(book.faults)} faults; MQTT got {arrived}, "
        "each once by its id, in order, and none was lost.**"
    )


def _sources(book: Book) -> str:
    rows: list[list[object]] = []
    for name, verdict in verdicts(book).items():
        speaker = book.speakers[name]
        rows.append(
            [name, speaker.sent, speaker.said, speaker.broken, speaker.unheard, verdict.told, verdict.arrived,
             verdict.untold, verdict.repeated, verdict.unexplained, len(verdict.lost), verdict.disordered,
             speaker.connections]
        )  # fmt: skip
    header = ["source", "sent", "said", "cut off", "unheard", "told", "arrived", "told to nobody", "repeated",
              "unexplained", "lost", "out of order", "connections"]  # fmt: skip
    return table(header, rows)


def _faults(book: Book) -> str:
    rows = [[_time(each.day), each.kind, f"{each.seconds:.1f}"] for each in book.faults]
    return table(["time of the day", "fault", "seconds until all was well"], rows)


def _away(book: Book) -> str:
    away = [each.seconds for each in book.faults if each.kind in (Kind.BROKER_KILLED, Kind.BROKER_FROZEN)]
    longest = max(away, default=0.0)
    return f"The broker was away {len(away)} times, for {sum(away):.0f} s in all and {longest:.0f} s at most."


def _counted(book: Book, ending: Ending) -> str:
    lines = [f"- {ending.counted[name]:g} {what}" for name, what in (_DROPS | _MENTIONED).items()]
    lines.append(f"- {ending.lives} lives of the daemon; the counters above are those last seen of each")
    lines.append(f"- {ending.recorder_connections} connections of the MQTT subscriber")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:02d}:{rest:02d}"
