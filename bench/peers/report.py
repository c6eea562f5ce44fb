"""The tables: from what was measured of each system to what is printed.

Owns when streams are held, and how figures are written. Knows nothing of servers or clients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.peers.judge import Figures, quantile
from bench.peers.system import System
from bench.table import table
from bench.word_errors import comparable
from distillation.scores import score
from streaming.segment import SegmentSettings


@dataclass(slots=True)
class Measured:
    """What one system did.

    Attributes:
        by_streams: the figures of each run, by the number of streams.
        said: of the talks that count for the word errors.
        heard: likewise.
        invented: what was heard where nobody spoke.
        memory: the most that its processes had, in MiB.
        stopped: why it was not measured at all; empty if it was.
    """

    by_streams: dict[int, Figures] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    invented: str = ""
    memory: float = 0.0
    stopped: str = ""


def lags(system: System, figures: Figures) -> list[float]:
    """Return what must be a second or less: partial lags; of one without partials, finals after their hangover."""
    if system.partials:
        return figures.lags
    return [each - SegmentSettings().hangover for each in figures.finals]


def holds(system: System, figures: Figures, most: float) -> bool:
    """Return whether no stream failed, and 95 of 100 lags are at most so many seconds."""
    return not figures.failures and quantile(lags(system, figures), 0.95) <= most


HEADER = [
    "", "first word s", "partial lag s p50 / p95", "final latency s p50 / p95", "WER", "invented words", "streams held",
    "MiB",
]  # fmt: skip


def row(system: System, measured: Measured, held: float) -> list[object]:
    """Return a system's row: the times are those of the fewest streams.

    Args:
        system: the system.
        measured: what it did.
        held: seconds of lag up to which streams are held.
    """
    if measured.stopped:
        return [system.name, measured.stopped, *[""] * (len(HEADER) - 2)]
    one = measured.by_streams[min(measured.by_streams)]
    heard = score(measured.said, measured.heard, comparable())
    invented = len(comparable()(measured.invented).split())
    partials = system.partials
    return [
        system.name,
        _seconds(quantile(one.first, 0.5)) if partials else "no partials",
        both(one.lags) if partials else "no partials",
        both(one.finals), f"{heard.wer:.1%}", invented, _held(system, measured, held), f"{measured.memory:.0f}",
    ]  # fmt: skip


def _held(system: System, measured: Measured, most: float) -> str:
    held = max((streams for streams, figures in measured.by_streams.items() if holds(system, figures, most)), default=0)
    return f"{held} or more" if held == max(measured.by_streams) else str(held)


def rises(system: System, measured: Measured, levels: Sequence[int]) -> list[object]:
    """Return a system's row of lags by streams."""
    cells = []
    for level in levels:
        figures = measured.by_streams.get(level)
        failed = f", {len(figures.failures)} failed" if figures and figures.failures else ""
        cells.append(f"{both(lags(system, figures))}{failed}" if figures else "")
    return [system.name, *cells]


def both(values: Sequence[float]) -> str:
    """Return the median and the 95th percentile, as "p50 / p95"."""
    return f"{_seconds(quantile(values, 0.5))} / {_seconds(quantile(values, 0.95))}"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "never"


def report(all_measured: Mapping[System, Measured], levels: Sequence[int], held: float) -> str:
    """Return the tables of all systems.

    Args:
        all_measured: what each did.
        levels: the numbers of streams that were tried.
        held: seconds of lag up to which streams are held.
    """
    ran = {system: each for system, each in all_measured.items() if not each.stopped}
    failures = [
        f"- {system.name}, {streams} streams: {'; '.join(sorted(set(figures.failures)))}"
        for system, each in ran.items()
        for streams, figures in each.by_streams.items()
        if figures.failures
    ]
    never = [
        f"{system.name} {sum(figures.never for figures in each.by_streams.values())}" for system, each in ran.items()
    ]
    parts = [
        table(HEADER, [row(system, each, held) for system, each in all_measured.items()]),
        "Partial lag by streams, s p50 / p95 (without partials: the final's, after its hangover):",
        table(["", *map(str, levels)], [rises(system, each, levels) for system, each in ran.items()]),
        f"Words that were never shown, in all runs: {', '.join(never)}.",
        "\n".join(["How each was run:", "", *(f"- {system.name}: {system.says}." for system in all_measured)]),
        "\n".join(["What failed:", "", *failures]) if failures else "No stream failed.",
    ]
    return "\n\n".join(parts)
