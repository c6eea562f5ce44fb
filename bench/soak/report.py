"""The soak as a Markdown report and a picture.

Pure but for the picture's file. Owns their words; what is judged is in `judge.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.harness.delivery import by_source
from bench.harness.report import counters, promises
from bench.soak.history import History, Sample
from bench.soak.judge import JUDGED_FROM, LOSSES, End, broken_promises, memory, tallies
from bench.soak.slope import BLOCKS
from bench.table import percentiles, table

if TYPE_CHECKING:
    from distillation.charts import Panel

_PARTS = 12
"""Of the time, in the table and the picture of what was waited for."""


def report(history: History, end: End, said: str, *, known: bool) -> str:
    """Write the report of a soak.

    Args:
        history: what was noted.
        end: how it ended.
        said: what was done, a sentence.
        known: whether every sentence is known to be taken for speech.

    Returns:
        The report, in Markdown.
    """
    kept = (
        f"{len(history.events)} finals in {end.seconds / 60:.3g} minutes over "
        f"{len(history.connections) + history.turns} connections, each told once and in order by every way; none was "
        "lost."
    )
    parts = [
        "# Hours of mixed streams",
        said,
        "## Memory",
        _memory(history, end),
        "## The process over time",
        _over_time(history, end),
        "*lag*: of partials, from the newest sample heard to sending; *latency*: of finals, from the end of speech, "
        "0.6 s of hangover included; both p50 / p95 / p99 in milliseconds, as the events state them. *answer*: how "
        "long `/healthz` took, p50 / p99 in milliseconds: what the event loop makes others wait. *processor*: cores' "
        "worth.",
        "## Finals",
        _finals(history),
        "*said*: sentences sent whole, on connections that were not aborted. *unheard*: of these, without a final; "
        "*not noticed*: taken for no speech. *begun*: utterances whose beginning the client was told, aborted ones "
        "too; *unended*: of these, without a final. *missing*: finals that their own client was not told. *cut off*: "
        "connections that ended as nobody meant them to.",
        _edges(history, end),
        "## Counted",
        _counted(history, end),
        *promises(broken_promises(history, end, known=known), kept),
    ]
    return "\n\n".join(parts) + "\n"


def _memory(history: History, end: End) -> str:
    grown = memory(history, end.warm_up)
    after = [sample for sample in history.samples if sample.at >= end.warm_up]
    if grown is None or not after:
        return "It was too short for a slope."
    judged = "" if end.seconds >= JUDGED_FROM else " It was too short to be judged by it."
    return (
        f"RSS grew by **{grown} MB/h** after a warm-up of {end.warm_up / 60:.1f} minutes ({len(after)} samples in "
        f"{BLOCKS} block means, autocorrelation of neighbouring blocks {grown.autocorrelation:.2f}; the method is in "
        f"`whisperd bench soak --help`).{judged}\n\n"
        f"RSS was {after[0].rss:.1f} MiB after the warm-up, {after[-1].rss:.1f} MiB at the end and "
        f"{max(each.rss for each in history.samples):.1f} MiB at most; PSS {after[0].pss:.1f}, {after[-1].pss:.1f} and "
        f"{max(each.pss for each in history.samples):.1f} MiB. Descriptors and threads with nobody but those who stay: "
        f"{end.idle[0]} and {end.idle[1]} before, {end.left[0]} and {end.left[1]} after."
    )


def _part(values: Sequence[tuple[float, float]], began: float, ended: float) -> list[float]:
    return [value for at, value in values if began <= at < ended]


def _edges_of(seconds: float) -> list[tuple[float, float]]:
    length = seconds / _PARTS
    return [(number * length, (number + 1) * length) for number in range(_PARTS)]


def _over_time(history: History, end: End) -> str:
    rows: list[list[object]] = []
    for began, ended in _edges_of(end.seconds):
        within = [sample for sample in history.samples if began <= sample.at < ended]
        if not within:
            continue
        answers = np.percentile([each.answer for each in within], [50, 99])
        rows.append(
            [f"{began / 60:.3g}-{ended / 60:.3g}", f"{_mean(within, 'rss'):.1f}", f"{_mean(within, 'pss'):.1f}",
             f"{max(each.descriptors for each in within)}", f"{max(each.threads for each in within)}",
             f"{_mean(within, 'cpu'):.2f}", f"{max(each.gauges['streams_open'] for each in within):.0f}",
             f"{max(each.gauges['jobs_waiting'] for each in within):.0f}",
             f"{max(each.gauges['mqtt_waiting_finals'] for each in within):.0f}",
             f"{answers[0]:.0f} / {answers[1]:.0f}", percentiles(_part(history.lags, began, ended)),
             percentiles(_part(history.latencies, began, ended))]
        )  # fmt: skip
    header = ["minutes", "RSS MiB", "PSS MiB", "descriptors, most", "threads, most", "processor", "streams, most",
              "jobs waiting, most", "MQTT waiting, most", "answer", "lag", "latency"]  # fmt: skip
    return table(header, rows)


def _mean(samples: Sequence[Sample], name: str) -> float:
    return float(np.mean([getattr(each, name) for each in samples]))


def _finals(history: History) -> str:
    rows: list[list[object]] = [
        [kind, each.connections, each.said, each.unheard, each.unnoticed, each.begun, each.unended, each.told,
         each.missing, each.broken]
        for kind, each in tallies(history).items()
    ]  # fmt: skip
    header = ["clients", "connections", "said", "unheard", "not noticed", "begun", "unended", "told", "missing",
              "cut off"]  # fmt: skip
    return table(header, rows)


def _edges(history: History, end: End) -> str:
    return (
        f"The service published {end.counted['whisperd_finals_total']:g} finals; the subscriber of /v1/events got "
        f"{len(history.events)}, MQTT's {len(history.mqtt)}; one that came and went {history.visit_count} times got "
        f"{len(history.visits)} of its source's {len(by_source(history.events)[history.visits[0].source])}."
        if history.visits
        else f"/v1/events got {len(history.events)} finals, MQTT {len(history.mqtt)}."
    ) + f" The satellite had {history.answers} answers to {history.turns} turns."


def _counted(history: History, end: End) -> str:
    lines = counters(end.counted, LOSSES)
    lines.append(f"- {end.counted['whisperd_client_errors_total']:g} faults of clients{_codes(end)}")
    lines.append(f"- {sum(history.errors.values())} errors that clients were told of")
    thinned = end.counted["whisperd_partials_thinned_total"]
    lines.append(f"- {end.counted['whisperd_partials_total']:g} partials; {thinned:g} replaced before they were taken")
    lines.append(f"- {end.counted['whisperd_audio_seconds_total']:.0f} seconds of audio heard")
    lines.append(f"- {history.reloads} reloads")
    return "\n".join(lines)


def _codes(end: End) -> str:
    prefix = "whisperd_client_errors_total{"
    codes = [f"{name[len(prefix) : -1]} {count:g}" for name, count in end.counted.items() if name.startswith(prefix)]
    return f": {', '.join(codes)}" if codes else ""


def picture(path: Path, history: History, end: End) -> None:
    """Draw memory, waiting, descriptors and processor over the minutes.

    Args:
        path: where the picture goes.
        history: what was noted.
        end: how it ended.
    """
    from distillation.charts import draw

    minutes = [sample.at / 60 for sample in history.samples]

    def over(name: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
        return minutes, [scale * getattr(each, name) for each in history.samples]

    resident = {"RSS": over("rss"), "PSS": over("pss")}
    if (grown := memory(history, end.warm_up)) is not None:
        ends = [end.warm_up / 60, history.samples[-1].at / 60]
        line = [grown.start + grown.value * (at - ends[0]) / 60 for at in ends]
        resident[f"{grown.value:+.2f} MB/h ({grown.low:+.2f} to {grown.high:+.2f})"] = (ends, line)
    panels: dict[str, Panel] = {
        "memory, MiB": ("minutes", resident, end.warm_up / 60),
        "partial lag and final latency, ms": ("minutes", _waiting(history, end), None),
        "descriptors and threads": (
            "minutes", {"descriptors": over("descriptors"), "threads": over("threads")}, None,
        ),
        "processor, % of a core": ("minutes", {"whisperd": over("cpu", 100)}, None),
    }  # fmt: skip
    draw(path, panels, "")


def _waiting(history: History, end: End) -> dict[str, tuple[list[float], list[float]]]:
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for name, values in [("lag", history.lags), ("latency", history.latencies)]:
        parts = [(sum(edges) / 120, _part(values, *edges)) for edges in _edges_of(end.seconds)]
        there = [(at, part) for at, part in parts if part]
        for percent in (50, 95, 99):
            curves[f"{name} p{percent}"] = (
                [at for at, _ in there],
                [float(np.percentile(part, percent)) for _, part in there],
            )
    return curves
