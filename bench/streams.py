"""How many people can speak at once: N live streams at the pace of speech into a real service, and how long they wait.

Prints a table, a row for each N: partial lag and final latency as stated in the service's own events, partials thinned,
faults, word errors, and what was left of processor and GPU. With `--picture`, also draws the table's lags.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import psutil
from tqdm import tqdm

from bench.gpu import Use, watched
from bench.harness.daemon import Daemon, running
from bench.player import FRAME_SECONDS, SENTENCES, play, read_pcm, said_in
from bench.table import circumstances, percentiles, table
from bench.word_errors import words
from distillation.arguments import count, count_or_none

if TYPE_CHECKING:
    from distillation.charts import Panel


@dataclass(slots=True)
class Heard:
    """What one client saw.

    Attributes:
        lags: of the partials, in milliseconds.
        latencies: of the finals, in milliseconds.
        texts: of the finals.
        thinned: partials that the service left out.
        errors: error events.
    """

    lags: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    thinned: int = 0
    errors: int = 0
    _seq: int = 0

    def take(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "partial":
                self.lags.append(event["lag_ms"])
            case "final":
                self.latencies.append(event["latency_ms"])
                self.texts.append(event["text"])
            case "error":
                self.errors += 1
        if "seq" in event:
            self.thinned += max(0, event["seq"] - self._seq - 1)
            self._seq = event["seq"]


SPREAD = 2.0
"""Seconds over which the beginnings of streams are spread: people do not begin to speak in the same millisecond."""


async def _load(service: Daemon, streams: int, pcm: bytes, rate: int) -> tuple[list[Heard], float, Use]:
    """Plays to N streams, each beginning a little later; also the processor's share left idle, and the GPU's use."""
    heard = [Heard() for _ in range(streams)]
    clients = psutil.Process()
    server = psutil.Process(service.pid)
    before, began = _cpu_seconds(server), time.monotonic()
    own = _cpu_seconds(clients)
    seconds = len(pcm) / 2 / rate + SPREAD
    async with watched() as gpu, _shown(streams, seconds), asyncio.TaskGroup() as tasks:
        for number, one in enumerate(heard):
            tasks.create_task(_join_late(number, streams, service, pcm, rate, one))
    elapsed = time.monotonic() - began
    used = _cpu_seconds(server) - before + _cpu_seconds(clients) - own
    return heard, 1 - used / (elapsed * (psutil.cpu_count() or 1)), gpu


@asynccontextmanager
async def _shown(streams: int, seconds: float) -> AsyncIterator[None]:
    """A bar of the seconds that pass meanwhile."""

    async def tick(bar: tqdm[NoReturn]) -> None:
        while True:
            await asyncio.sleep(1.0)
            bar.update()

    with tqdm(total=math.ceil(seconds), desc=f"{streams} streams", unit="s", leave=False) as bar:
        ticking = asyncio.create_task(tick(bar))
        try:
            yield
        finally:
            ticking.cancel()


async def _join_late(number: int, streams: int, service: Daemon, pcm: bytes, rate: int, heard: Heard) -> None:
    await asyncio.sleep(SPREAD * number / streams)
    await play(service.url, f"bench-{streams}-{number}", pcm, rate, heard.take)


@contextmanager
def neighbours(number: int) -> Iterator[None]:
    """Run a number of other programs that compute without a pause, for as long as the block runs."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _pooled(heard: list[Heard]) -> tuple[list[float], list[float]]:
    """The lags and the latencies of all clients."""
    return [lag for one in heard for lag in one.lags], [latency for one in heard for latency in one.latencies]


def _row(streams: int, heard: list[Heard], idle: float, gpu: Use, expected: list[str]) -> list[object]:
    lags, latencies = _pooled(heard)
    scores = [words(expected, one.texts) for one in heard]
    errors = sum(each.errors for each in scores) / max(1, sum(each.words for each in scores))
    thinned = sum(one.thinned for one in heard)
    return [streams, len(lags), percentiles(lags), len(latencies), percentiles(latencies), thinned,
            sum(one.errors for one in heard), f"{errors:.1%}", f"{idle:.0%}", str(gpu)]  # fmt: skip


def _draw(path: Path, measured: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    from distillation.charts import draw

    panels: dict[str, Panel] = {}
    for title, by_streams in measured.items():
        counts = list(by_streams)
        curves = {
            f"p{percent}": (counts, [float(np.percentile(by_streams[count] or [0], percent)) for count in counts])
            for percent in (50, 95, 99)
        }
        panels[title] = ("live streams", curves, None)
    draw(path, panels, "ms")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="whisperd bench streams", description=__doc__)
    parser.add_argument("--streams", type=count, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--recording", type=Path, default=SENTENCES)
    parser.add_argument("--student", default="tiny-en")
    parser.add_argument("--teacher", default="tiny-en")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--neighbours", type=count_or_none, default=0, help="programs beside it that keep a core busy each"
    )
    parser.add_argument("--picture", type=Path, metavar="PNG")
    options = parser.parse_args(arguments)
    pcm, rate = read_pcm(str(options.recording))
    expected = said_in(options.recording)
    frames = len(pcm) / 2 / rate / FRAME_SECONDS
    beside = f" Beside it {options.neighbours} busy programs." if options.neighbours else ""
    print(f"{circumstances()}\n\nEach stream: {options.recording.name}, {frames * FRAME_SECONDS:.0f} s.{beside}\n")
    rows = []
    lags: dict[int, list[float]] = {}
    latencies: dict[int, list[float]] = {}
    limits = {"max_streams": max(32, *options.streams)}
    models = {"student": options.student, "teacher": options.teacher, "device": options.device}
    with neighbours(options.neighbours), running({"models": models}, limits) as service:
        for streams in options.streams:
            heard, idle, gpu = asyncio.run(_load(service, streams, pcm, rate))
            rows.append(_row(streams, heard, idle, gpu, expected))
            lags[streams], latencies[streams] = _pooled(heard)
    header = ["live streams", "partials", "partial lag ms p50 / p95 / p99", "finals", "final latency ms",
              "thinned", "errors", "WER", "idle CPU", "GPU busy"]  # fmt: skip
    print(table(header, rows))
    if options.picture:
        _draw(options.picture, {"partial lag": lags, "final latency": latencies})
    print(f"\nReady {service.seconds_to_ready:.1f} s after the process began.")


if __name__ == "__main__":
    main()
