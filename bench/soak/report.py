"""The soak as a Markdown report and a picture.

Pure but for the picture's file. Owns their words; what is judged is in `judge.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.soak.book import Book, Sample
from bench.soak.judge import JUDGED_FROM, LOSSES, End, broken_promises, memory, verdicts
from bench.soak.slope import BLOCKS
from bench.table import percentiles, table

if TYPE_CHECKING:
    from distillation.pictures import Panel

_PARTS = 12
"""Of the time, in the table and the picture of what was waited for."""


def report(book: Book, end: End, said: str, *, known: bool) -> str:
    """said: what was done, a sentence."""
    broken = broken_promises(book, end, known=known)
    parts = [
        "# Hours of mixed streams",
        said,
        "## Memory",
        _memory(book, end),
        "## The process over time",
        _over_time(book, end),
        "*lag*: of partials, from the newest sample heard to sending; *latency*: of finals, from the end of speech, "
        "0.6 s of hangover included; both p50 / p95 / p99 in milliseconds, as the events state them. *answer*: how "
        "long `/healthz` took, p50 / p99 in milliseconds: what the event loop makes others wait. *processor*: cores' "
        "worth.",
        "## Finals",
        _finals(book),
        "*said*: sentences sent whole, on connections that were not aborted. *unheard*: of these, without a final; "
        "*not noticed*: taken for no speech. *begun*: utterances whose beginning the client was told, aborted ones "
        "too; *unended*: of these, without a final. *missing*: finals that their own client was not told. *cut off*: "
        "connections that ended as nobody meant them to.",
        _edges(book, end),
        "## Counted",
        _counted(book, end),
        "## Promises",
        "\n".join(f"- BROKEN: {each}" for each in broken) or "- none was broken",
        closing_line(book, end, broken),
    ]
    return "\n\n".join(parts) + "\n"


def closing_line(book: Book, end: End, broken: Sequence[str]) -> str:
    if broken:
        return f"**{len(broken)} promises were broken.**"
    return (
        f"**Every promise held: {len(book.events)} finals in {end.seconds / 60:.3g} minutes over "
        f"{len(book.connections) + book.turns} connections, each told once and in order by every way; none was lost.**"
    )


def _memory(book: Book, end: End) -> str:
    grown = memory(book, end.warm_up)
    after = [sample for sample in book.samples if sample.at >= end.warm_up]
    if grown is None or not after:
        return "It was too short for a slope."
    judged = "" if end.seconds >= JUDGED_FROM else " It was too short to be judged by it."
    return (
        f"RSS grew by **{grown} MB/h** after a warm-up of {end.warm_up / 60:.1f} minutes ({len(after)} samples in "
        f"{BLOCKS} block means, autocorrelation of neighbouring blocks {grown.autocorrelation:.2f}; the method is in "
        f"`whisperd bench soak --help`).{judged}\n\n"
        f"RSS was {after[0].rss:.1f} MiB after the warm-up, {after[-1].rss:.1f} MiB at the end and "
        f"{max(each.rss for each in book.samples):.1f} MiB at most; PSS {after[0].pss:.1f}, {after[-1].pss:.1f} and "
        f"{max(each.pss for each in book.samples):.1f} MiB. Descriptors and threads with nobody but those who stay: "
        f"{end.idle[0]} and {end.idle[1]} before, {end.left[0]} and {end.left[1]} after."
    )


def _part(values: Sequence[tuple[float, float]], began: float, ended: float) -> list[float]:
    return [value for at, value in values if began <= at < ended]


def _edges_of(seconds: float) -> list[tuple[float, float]]:
    length = seconds / _PARTS
    return [(number * length, (number + 1) * length) for number in range(_PARTS)]


def _over_time(book: Book, end: End) -> str:
    rows: list[list[object]] = []
    for began, ended in _edges_of(end.seconds):
        within = [sample for sample in book.samples if began <= sample.at < ended]
        if not within:
            continue
        answers = np.percentile([each.answer for each in within], [50, 99])
        rows.append(
            [f"{began / 60:.3g}-{ended / 60:.3g}", f"{_mean(within, 'rss'):.1f}", f"{_mean(within, 'pss'):.1f}",
             f"{max(each.descriptors for each in within)}", f"{max(each.threads for each in within)}",
             f"{_mean(within, 'cpu'):.2f}", f"{max(each.gauges['streams_open'] for each in within):.0f}",
             f"{max(each.gauges['jobs_waiting'] for each in within):.0f}",
             f"{max(each.gauges['mqtt_waiting_finals'] for each in within):.0f}",
             f"{answers[0]:.0f} / {answers[1]:.0f}", percentiles(_part(book.lags, began, ended)),
             percentiles(_part(book.latencies, began, ended))]
        )  # fmt: skip
    header = ["minutes", "RSS MiB", "PSS MiB", "descriptors, most", "threads, most", "processor", "streams, most",
              "jobs waiting, most", "MQTT waiting, most", "answer", "lag", "latency"]  # fmt: skip
    return table(header, rows)


def _mean(samples: Sequence[Sample], name: str) -> float:
    return float(np.mean([getattr(each, name) for each in samples]))


def _finals(book: Book) -> str:
    rows: list[list[object]] = [
        [kind, each.connections, each.said, each.unheard, each.unnoticed, each.begun, each.unended, each.told,
         each.missing, each.broken]
        for kind, each in verdicts(book).items()
    ]  # fmt: skip
    header = [
        "clients",
        "connections",
        "said",
        "unheard",
        "not noticed",
        "begun",
        "unended",
        "told",
        "missing",
        "cut off",
    ]
    return table(header, rows)


def _edges(book: Book, end: End) -> str:
    return (
        f"The service published {end.counted['whisperd_finals_total']:g} finals; the subscriber of /v1/events got "
        f"{len(book.events)}, MQTT's {len(book.mqtt)}; one that came and went {book.visit_count} times got "
        f"{len(book.visits)} of its source's {sum(note.source == book.visits[0].source for note in book.events)}."
        if book.visits
        else f"/v1/events got {len(book.events)} finals, MQTT {len(book.mqtt)}."
    ) + f" The satellite had {book.answers} answers to {book.turns} turns."


def _counted(book: Book, end: End) -> str:
    lines = [f"- {end.counted[name]:g} {what}" for name, what in LOSSES.items()]
    lines.append(f"- {end.counted['whisperd_client_errors_total']:g} faults of clients{_codes(end)}")
    lines.append(f"- {sum(book.errors.values())} errors that clients were told of")
    thinned = end.counted["whisperd_partials_thinned_total"]
    lines.append(f"- {end.counted['whisperd_partials_total']:g} partials; {thinned:g} replaced before they were taken")
    lines.append(f"- {end.counted['whisperd_audio_seconds_total']:.0f} seconds of audio heard")
    lines.append(f"- {book.reloads} reloads")
    return "\n".join(lines)


def _codes(end: End) -> str:
    prefix = "whisperd_client_errors_total{"
    codes = [f"{name[len(prefix) : -1]} {count:g}" for name, count in end.counted.items() if name.startswith(prefix)]
    return f": {', '.join(codes)}" if codes else ""


def picture(path: Path, book: Book, end: End) -> None:
    """Memory, waiting, descriptors and processor over the minutes."""
    from distillation.pictures import draw

    minutes = [sample.at / 60 for sample in book.samples]

    def over(name: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
        return minutes, [scale * getattr(each, name) for each in book.samples]

    resident = {"RSS": over("rss"), "PSS": over("pss")}
    if (grown := memory(book, end.warm_up)) is not None:
        ends = [end.warm_up / 60, book.samples[-1].at / 60]
        line = [grown.start + grown.value * (at - ends[0]) / 60 for at in ends]
        resident[f"{grown.value:+.2f} MB/h ({grown.low:+.2f} to {grown.high:+.2f})"] = (ends, line)
    panels: dict[str, Panel] = {
        "memory, MiB": ("minutes", resident, end.warm_up / 60),
        "partial lag and final latency, ms": ("minutes", _waiting(book, end), None),
        "descriptors and threads": (
            "minutes", {"descriptors": over("descriptors"), "threads": over("threads")}, None,
        ),
        "processor, % of a core": ("minutes", {"whisperd": over("cpu", 100)}, None),
    }  # fmt: skip
    draw(path, panels, "")


def _waiting(book: Book, end: End) -> dict[str, tuple[list[float], list[float]]]:
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for name, values in [("lag", book.lags), ("latency", book.latencies)]:
        parts = [(sum(edges) / 120, _part(values, *edges)) for edges in _edges_of(end.seconds)]
        there = [(at, part) for at, part in parts if part]
        for percent in (50, 95, 99):
            curves[f"{name} p{percent}"] = (
                [at for at, _ in there],
                [float(np.percentile(part, percent)) for _, part in there],
            )
    return curves
