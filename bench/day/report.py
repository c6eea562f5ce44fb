"""The day as a Markdown report, and whether every promise held.

Pure: notes in, text out. Owns what the promises are (`broken_promises`). Knows nothing of how the day was played.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bench.day.history import History
from bench.day.schedule import FaultKind
from bench.harness.delivery import Delivery, by_source, check, disordered
from bench.harness.report import JOB_LOSSES, MQTT_LOSSES, SUBSCRIBER_LOSSES, counters, losses, promises
from bench.table import table

_LOSSES = {**MQTT_LOSSES, **JOB_LOSSES, **SUBSCRIBER_LOSSES}
"""What the daemon counts when it loses something. On this day it has no reason to."""

_MENTIONED = {
    "whisperd_microphone_lost_seconds_total": "seconds of the microphone lost: nobody took them in time",
    "whisperd_microphone_reopened_total": "attempts to open the microphone again",
    "whisperd_mqtt_connections_total": "connections to the broker",
    "whisperd_audio_seconds_total": "seconds of audio heard",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How the day's processes fared.

    Attributes:
        lives: how often the daemon was started.
        bad_ends: its exit codes after SIGTERM that were not 0.
        counted: its own counters.
        subscriptions: connections of the MQTT subscriber.
    """

    lives: int
    bad_ends: tuple[int, ...]
    counted: Counter[str]
    subscriptions: int


def deliveries(history: History) -> dict[str, Delivery]:
    """Return what became of the finals of each source."""
    outages = history.outages()
    arrivals = by_source(list(history.arrivals))  # it grows in another thread
    return {name: check(speaker.told, arrivals.get(name, []), outages) for name, speaker in history.speakers.items()}


def broken_promises(history: History, ending: Ending) -> list[str]:
    """Return a sentence for each promise that did not hold."""
    found = []
    for name, delivery in deliveries(history).items():
        found += [
            f"{name}: a reader was told {each.text!r} ({each.id or None}), and MQTT was not" for each in delivery.lost
        ]
        if delivery.unexplained:
            found.append(f"{name}: {delivery.unexplained} finals came again without a fault around them")
        if delivery.disordered:
            found.append(f"{name}: {delivery.disordered} finals came before one that was told before them")
    if descents := disordered(list(history.arrivals)):
        found.append(f"over all sources {descents} finals came before one that was published before them")
    for speaker in history.speakers.values():
        if speaker.unheard:
            found.append(f"{speaker.name}: {speaker.unheard} sentences were said undisturbed, and nothing came of them")
        if not speaker.told:
            found.append(f"{speaker.name}: nobody was told anything")
    if ending.bad_ends:
        found.append(f"SIGTERM did not end the daemon well: exit codes {', '.join(map(str, ending.bad_ends))}")
    return found + [f"the daemon counted {each}" for each in losses(ending.counted, _LOSSES)]


def report(history: History, ending: Ending, day: str) -> str:
    """Write the report of a day.

    Args:
        history: what was noted.
        ending: how it ended.
        day: what was played, a sentence.

    Returns:
        The report, in Markdown.
    """
    every = deliveries(history).values()
    told, arrived = sum(each.told for each in every), sum(each.arrived for each in every)
    kept = (
        f"{told} finals were told, through {len(history.incidents)} faults; MQTT got {arrived}, each once by its id, "
        "in order, and none was lost."
    )
    parts = [
        day,
        _sources(history),
        "*sent*: sentences of the day. *said*: times that somebody began one. *cut off*: of these, by a fault; it was "
        "said again. *told*: different finals that a reader of the source had read. *arrived*: different finals at the "
        "MQTT subscriber; *told to nobody*: of these, those whose reader was cut off. *repeated*: came again, with the "
        "same id; *unexplained*: of these, those without a fault around them.",
        "## Faults",
        _faults(history),
        _away(history),
        "## Counted",
        _counted(ending),
        *promises(broken_promises(history, ending), kept),
    ]
    return "\n\n".join(parts) + "\n"


def _sources(history: History) -> str:
    rows: list[list[object]] = []
    for name, delivery in deliveries(history).items():
        speaker = history.speakers[name]
        rows.append(
            [name, speaker.sent, speaker.said, speaker.broken, speaker.unheard, delivery.told, delivery.arrived,
             delivery.untold, delivery.repeated, delivery.unexplained, len(delivery.lost), delivery.disordered,
             speaker.connections]
        )  # fmt: skip
    header = ["source", "sent", "said", "cut off", "unheard", "told", "arrived", "told to nobody", "repeated",
              "unexplained", "lost", "out of order", "connections"]  # fmt: skip
    return table(header, rows)


def _faults(history: History) -> str:
    rows = [[_time(each.day), each.kind, f"{each.seconds:.1f}"] for each in history.incidents]
    return table(["time of the day", "fault", "seconds until all was well"], rows)


def _away(history: History) -> str:
    away = [
        each.seconds for each in history.incidents if each.kind in (FaultKind.BROKER_KILLED, FaultKind.BROKER_FROZEN)
    ]
    longest = max(away, default=0.0)
    return f"The broker was away {len(away)} times, for {sum(away):.0f} s in all and {longest:.0f} s at most."


def _counted(ending: Ending) -> str:
    lines = counters(ending.counted, _LOSSES | _MENTIONED)
    lines.append(f"- {ending.lives} lives of the daemon; the counters above are those last seen of each")
    lines.append(f"- {ending.subscriptions} connections of the MQTT subscriber")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:02d}:{rest:02d}"
