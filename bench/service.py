"""What the service itself carries: N streams into a whole daemon whose engine keeps a stated pace.

On a GPU the model is not the limit, the service is. Here it is all real (sockets, voice detection, sessions, scheduler)
but the engine, which waits for so many milliseconds a batch; with `--student` it is real too. The streams come from
processes of their own (`bench/harness/crowd.py`), in frames of 20 ms at the pace of speech, each from another place of
a recording and in a loudness of its own, so that no two say the same. Prints a row for each N: partial lag and final
latency by the clock of whoever sent the audio, how late the daemon's loop was, the processor time of the daemon, of its
engine's process and of the crowd, what was left out and what failed. `--picture` draws the lags.

The latency is from the end of speech, so it has in it the silence that closes an utterance (`segment.hangover`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.harness.crowd import Crowd
from bench.harness.daemon import WHISPERD, Daemon
from bench.player import SENTENCES
from bench.table import circumstances, percentiles, table
from distillation.arguments import count

_LATE = "whisperd_event_loop_late_seconds"


@dataclass(frozen=True, slots=True)
class Load:
    """What one number of streams did.

    Attributes:
        streams: how many.
        crowd: what they saw.
        late: the 95th percentile of the loop's lateness, in milliseconds, as a bound.
        daemon: cores that the daemon used, with an engine that is a thread of it.
        engine: cores that the engine's process used, where it has one.
        clients: cores that the crowd used.
    """

    streams: int
    crowd: Crowd
    late: float
    daemon: float
    engine: float
    clients: float

    def row(self) -> list[object]:
        crowd = self.crowd
        return [self.streams, percentiles(crowd.lags), percentiles(crowd.latencies), f"{self.late:g}", crowd.thinned,
                crowd.errors + self.streams - crowd.stopped, f"{self.daemon:.2f}", f"{self.engine:.2f}",
                f"{self.clients:.2f}",
                percentiles(crowd.late)]  # fmt: skip


async def load(service: Daemon, streams: int, crowds: int, seconds: float, recording: Path) -> Load:
    """Play N streams into a daemon, from some processes, and return what came of it."""
    before, began = await _lateness(service), time.monotonic()
    own, engine = _cpu_seconds(service.pid)
    shares = [range(streams)[at::crowds] for at in range(crowds)]
    firsts = np.cumsum([0, *map(len, shares)])
    told = await asyncio.gather(
        *(
            _crowd(service.url, int(first), len(share), streams, seconds, recording)
            for first, share in zip(firsts, shares, strict=False)
            if share
        )
    )
    elapsed = time.monotonic() - began
    own_after, engine_after = _cpu_seconds(service.pid)
    after = await _lateness(service)
    clients = sum(cpu for _, cpu in told) / elapsed
    return Load(streams, _together([crowd for crowd, _ in told]), _late(before, after),
                (own_after - own) / elapsed, (engine_after - engine) / elapsed, clients)  # fmt: skip


async def _crowd(url: str, first: int, count: int, of: int, seconds: float, recording: Path) -> tuple[Crowd, float]:
    """Return what a process of clients saw, and the seconds of processor time that it took."""
    arguments = [url, str(first), str(count), str(of), str(seconds), str(recording)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _MEASURED, *arguments, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"a process of clients ended with {process.returncode}")
    crowd, cpu = said.decode().rsplit("\n", 1)
    return Crowd(**json.loads(crowd)), float(cpu)


_MEASURED = """
import sys, time
from bench.harness import crowd
crowd.main(sys.argv[1:])
print()
print(time.process_time(), end="")
"""
"""A crowd, and behind its figures the processor time that it took."""


def _together(crowds: Sequence[Crowd]) -> Crowd:
    whole = Crowd()
    for crowd in crowds:
        whole.lags += crowd.lags
        whole.latencies += crowd.latencies
        whole.late += crowd.late
        whole.thinned += crowd.thinned
        whole.errors += crowd.errors
        whole.stopped += crowd.stopped
    return whole


async def _lateness(service: Daemon) -> dict[float, float]:
    """Return how many readings of the loop's lateness were at most each bound, in seconds."""
    _, body = await asyncio.to_thread(service.get, "/metrics")
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.name == f"{_LATE}_bucket"
    }


def _late(before: Mapping[float, float], after: Mapping[float, float]) -> float:
    """Return the bound, in milliseconds, below which 95 of 100 readings lie."""
    counts = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    whole = counts.get(math.inf, 0.0)
    return next((1000 * bound for bound, below in sorted(counts.items()) if below >= 0.95 * whole), math.nan)


def _cpu_seconds(pid: int) -> tuple[float, float]:
    """Return the processor time of a process so far, and that of its children."""
    process = psutil.Process(pid)
    own, *children = (each.cpu_times() for each in (process, *process.children(recursive=True)))
    return float(own.user + own.system), float(sum(times.user + times.system for times in children))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="whisperd bench service", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--streams", type=count, nargs="+", default=[25, 50, 100, 150, 200, 250])
    parser.add_argument("--seconds", type=float, default=20.0, help="that each number of streams lasts (20)")
    parser.add_argument("--crowds", type=count, default=1, help="processes of clients (1)")
    parser.add_argument("--batch-ms", type=float, default=8.0, help="of the engine for each batch (8)")
    parser.add_argument("--row-ms", type=float, default=0.1, help="and for each row in it (0.1)")
    parser.add_argument(
        "--backend", choices=("auto", "process", "thread"), default="auto", help="engine.backend (auto)"
    )
    parser.add_argument("--student", help="a real engine in place of one of a stated pace: its model")
    parser.add_argument("--teacher", help="and its teacher")
    parser.add_argument("--device", default="auto", help="and where it runs (auto)")
    parser.add_argument("--recording", type=Path, default=SENTENCES, help="16 kHz")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    options = parser.parse_args(arguments)
    most = max(options.streams)
    settings = {
        "server": {"max_streams": most, "max_per_address": most + 8, "max_handshakes": most + 8},
        "log": {"level": "warning"},
        "engine": {"backend": options.backend},
    }
    program: tuple[str, ...] = ("bench.harness.paced", str(options.batch_ms), str(options.row_ms))
    engine = f"The engine takes {options.batch_ms:g} ms a batch and {options.row_ms:g} ms a row. "
    if options.student:
        settings["models"] = {"student": options.student, "teacher": options.teacher, "device": options.device}
        program, engine = WHISPERD, f"The engine: {options.student}, teacher {options.teacher or 'none'}. "
    print(
        f"{circumstances()}\n\n{engine}"
        f"Each number of streams: {options.seconds:g} s of {options.recording.name}. "
        "Milliseconds p50 / p95 / p99; loop late: 95 of 100 readings are below it.\n"
    )
    loads = []
    for streams in options.streams:
        with TemporaryDirectory() as folder:
            service = Daemon(Path(folder), settings, program=program)
            try:
                service.start()
                loads.append(asyncio.run(load(service, streams, options.crowds, options.seconds, options.recording)))
                service.terminate()
            finally:
                service.end()
    header = ["streams", "partial lag ms", "final latency ms", "loop late ms", "thinned", "failed",
              "cores: daemon", "engine", "clients", "sent late ms"]  # fmt: skip
    print(table(header, [each.row() for each in loads]))
    if options.picture:
        _draw(options.picture, loads)


def _draw(path: Path, loads: Sequence[Load]) -> None:
    from distillation.charts import draw

    counts = [each.streams for each in loads]
    panels = {}
    for title, of in (("partial lag", "lags"), ("final latency", "latencies")):
        curves = {
            f"p{percent}": (counts, [float(np.percentile(getattr(each.crowd, of) or [0], percent)) for each in loads])
            for percent in (50, 95, 99)
        }
        panels[title] = ("live streams", curves, None)
    draw(path, panels, "ms")


if __name__ == "__main__":
    main()
