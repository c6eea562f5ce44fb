"""A `whisperd run` in a process of its own, to do harm to; and what is said of how it took it.

Owns its start, its engine, and the troubles that its engine or its clock can be made to have, which no client could
cause. Everything else of it is the service's own. The engine is the scripted one (`streaming.fake`), which always hears
the same in the same audio.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, cast

import yaml

from streaming.job import SAMPLE_RATE, Job, Result

PATIENCE = 300.0
COST = 0.1
"""Seconds that the engine takes for each job when it is slow: a machine of known size."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """tried: how often. survived: after how many of those somebody else was served as ever. said, arrived: utterances
    sent, and finals that came of them. failed: utterances of which an error said that there will be no final."""

    tried: int
    survived: int
    said: int
    arrived: int
    note: str = ""
    failed: int = 0

    @property
    def lost(self) -> int:
        return self.said - self.arrived - self.failed


@dataclass
class Service:
    """A process of its own. url: where it listens."""

    popen: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("ws://").rpartition(":")
        return host, int(port)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))

    def resident(self) -> int:
        """MiB."""
        pages = int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20

    def ready(self) -> bool:
        """Whether it vouches for itself."""
        connection = HTTPConnection(*self.address, timeout=PATIENCE)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        finally:
            connection.close()

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.popen.terminate()
        return self.popen.wait(PATIENCE)


@contextmanager
def running(folder: Path, settings: dict[str, Any] | None = None, trouble: str = "") -> Iterator[Service]:
    """trouble: one of `TROUBLES`.

    Raises:
        RuntimeError: it did not become ready; its log is in the message.
    """
    config, log = folder / "whisperd.yaml", folder / "log"
    server = {"host": "127.0.0.1", "port": 0, "max_streams": 200}
    config.write_text(yaml.safe_dump({**(settings or {}), "server": server}))
    with open(log, "w") as out:
        popen = subprocess.Popen(
            [sys.executable, "-m", "bench.faults.service", str(config), trouble], stderr=out, text=True,
            env={**os.environ, "STATE_DIRECTORY": str(folder / "state")},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE
        while "ready: " not in log.read_text():
            if popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"whisperd did not become ready:\n{log.read_text()}")
            time.sleep(0.05)  # a file has no event to wait for
        url = next(line for line in log.read_text().splitlines() if "listening on ws" in line)
        yield Service(popen, url.partition("listening on ")[2].strip(), log)
    finally:
        popen.kill()
        popen.wait()


# --- its troubles ----------------------------------------------------------------------------------------------------

Run = Callable[[Sequence[Job]], list[Result]]


def cursed(job: Job) -> bool:
    """About a third of the jobs, the same ones whatever they are batched with."""
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
    """It hangs while there is a file `wedge`."""

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
    """The time of day, as this process sees it, jumps ten times a second."""
    real, ahead = time.time, 0.0
    time.time = lambda: real() + ahead

    def run() -> None:
        nonlocal ahead
        while True:
            for each in times:
                ahead += each
                time.sleep(0.1)

    threading.Thread(target=run, daemon=True).start()


def _load_scripted(trouble: str, folder: Path) -> Callable[[Any], Any]:
    from tokenizers import Tokenizer

    from streaming.fake import ScriptedEngine

    file = Path(__file__).parents[2] / "streaming" / "pretrained" / "home-en" / "student" / "tokenizer.json"
    eot = Tokenizer.from_file(str(file)).get_vocab()["<|endoftext|>"]

    def load(_: Any) -> ScriptedEngine:
        engine = ScriptedEngine(file, eot)
        if trouble in TROUBLES:
            cast(Any, engine).run = TROUBLES[trouble](engine.run, folder)
        return engine

    return load


def _load_poisoned(settings: Any) -> Any:
    """The real engine. For a job that is cursed a weight is not a number; for the others it is as it was."""
    from daemon import app

    engine = cast(Any, app.load_engine(settings))
    run, weight = engine.run, engine._student.decoder.layer_norm.weight
    good = weight.detach().clone()

    def poisoned(job: Job) -> list[Result]:
        bad = cursed(job) and len(job.audio) > 2 * SAMPLE_RATE  # not the first decode
        weight.data.copy_(good * math.nan if bad else good)
        return cast(list[Result], run([job]))

    engine.run = lambda jobs: [result for job in jobs for result in poisoned(job)]
    return engine


def main(arguments: Sequence[str]) -> int:
    from daemon import app, cli

    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("trouble")
    options = parser.parse_args(arguments)
    if options.trouble == "clock":
        jump()
    load = _load_poisoned if options.trouble == "nan" else _load_scripted(options.trouble, Path(options.config).parent)
    app.Service.__init__.__defaults__ = (load,)  # its engine
    return cli.main(["run", "-c", options.config])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
