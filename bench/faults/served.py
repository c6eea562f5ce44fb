"""The process that harm is done to: `whisperd run` with an engine, or a clock, in trouble that no client could cause.

Owns those troubles. Everything else of it is the service's own. The engine is the scripted one (`streaming.fake`),
which always hears the same in the same audio; where numbers are none, it is the real one.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from bench.faults.service import COST
from bench.harness import scripted
from bench.harness.scripted import serve
from daemon.engines.load import load_engine
from daemon.settings.schema import Settings
from streaming.fake import ScriptedEngine
from streaming.job import SAMPLE_RATE, Captured, Job, Result

Run = Callable[[Sequence[Job]], list[Result]]


def cursed(job: Job) -> bool:
    """Return whether a job is one of about a third, the same ones whatever they are batched with."""
    return len(job.audio) // 512 % 3 == 0


def _raises(run: Run, _: Path) -> Run:
    def raising(jobs: Sequence[Job]) -> list[Result]:
        if any(cursed(job) for job in jobs):
            raise ValueError("this job cannot be run")
        return run(jobs)

    return raising


def _out_of_memory(run: Run, _: Path) -> Run:
    def small(jobs: Sequence[Job]) -> list[Result]:
        if len(jobs) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return run(jobs)

    return small


def _wedged(run: Run, folder: Path) -> Run:
    """Make an engine's `run` hang while there is a file `wedge` in the folder."""

    def hanging(jobs: Sequence[Job]) -> list[Result]:
        while (folder / "wedge").exists():
            time.sleep(0.01)
        return run(jobs)

    return hanging


def _slow(run: Run, _: Path) -> Run:
    def slowly(jobs: Sequence[Job]) -> list[Result]:
        time.sleep(COST * len(jobs))
        return run(jobs)

    return slowly


TROUBLES: dict[str, Callable[[Run, Path], Run]] = {
    "raises": _raises,
    "out of memory": _out_of_memory,
    "wedged": _wedged,
    "slow": _slow,
}
"""Of the scripted engine. Two more are of others: "nan", of the real engine, and "clock", of the machine's."""


def jump(times: Sequence[float] = (86400.0, -86400.0, 1e9, -3600.0)) -> None:
    """Let the time of day, as this process sees it, jump ten times a second."""
    real, ahead = time.time, 0.0
    time.time = lambda: real() + ahead

    def run() -> None:
        nonlocal ahead
        while True:
            for each in times:
                ahead += each
                time.sleep(0.1)

    threading.Thread(target=run, daemon=True).start()


def _load_troubled(trouble: str, folder: Path, settings: Settings) -> ScriptedEngine:
    engine = scripted.load(settings)
    if trouble in TROUBLES:
        cast(Any, engine).run = TROUBLES[trouble](engine.run, folder)
    return engine


def _load_poisoned(settings: Settings) -> Any:
    """Load the real engine. For a job that is cursed a weight is not a number; for the others it is as it was."""
    engine = cast(Any, load_engine(settings))
    run, warm, weight = engine.run, engine.warm, engine._student.decoder.layer_norm.weight
    good = weight.detach().clone()

    def poisoned(job: Job) -> list[Result]:
        bad = cursed(job) and len(job.audio) > SAMPLE_RATE  # not the canary
        weight.data.copy_(good * math.nan if bad else good)
        return cast(list[Result], run([job]))

    def warm_up() -> Captured:
        captured = cast(Captured, warm())
        engine.run = lambda jobs: [result for job in jobs for result in poisoned(job)]
        return captured

    engine.warm = warm_up
    return engine


def main(trouble: str, config: str) -> int:
    if trouble == "clock":
        jump()
    troubled = partial(_load_troubled, trouble, Path(config).parent)
    return serve(config, _load_poisoned if trouble == "nan" else troubled)


if __name__ == "__main__":
    from bench.faults import served  # by its name, under which an engine's process finds what loads its engine

    sys.exit(served.main(*sys.argv[1:]))
