"""What the engine does with a recording: real-time factor, and the decoding that drafts save.

The same streaming session is run twice over the same audio, at the pace of half-second steps: once as it is, with the
last hypothesis as every job's draft, once with the drafts taken away. The texts must be equal; the passes differ.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from bench.client import COMMANDS
from bench.table import circumstances, table
from streaming.events import Final
from streaming.job import SAMPLE_RATE, Job, Result, Waveform
from streaming.offline import listen, stop
from streaming.session import Session, SessionSettings
from streaming.text import Text
from streaming.vad import Detector
from streaming.whisper.engine import Engine


@dataclass(slots=True)
class Work:
    """One run: its jobs, their tokens (end of text included), the student's passes, the texts of its finals."""

    jobs: int = 0
    tokens: int = 0
    passes: int = 0
    texts: tuple[str, ...] = ()
    seconds: float = 0.0


def hear(engine: Engine, audio: Waveform, prepare: Callable[[Job], Job], partials: bool) -> Work:
    """Runs a session over `audio`, with `prepare` between session and engine."""
    session = Session(
        "bench", SessionSettings(), Detector(), Text(engine.tokenizer_file, engine.eot), partials=partials
    )
    work = Work()

    def run(job: Job) -> Result:
        (result,) = engine.run([prepare(job)])
        work.jobs += 1
        work.tokens += len(result.tokens) + 1
        work.passes += result.passes
        return result

    began = time.perf_counter()
    events = [*listen(session, run, audio), *stop(session, run)]
    work.seconds = time.perf_counter() - began
    work.texts = tuple(event.text for event in events if isinstance(event, Final))
    return work


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="whisperd bench offline", description=__doc__)
    parser.add_argument("--student", default="home-en")
    parser.add_argument("--teacher", default="home-en")
    parser.add_argument("--recording", type=Path, default=COMMANDS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    audio = np.asarray(soundfile.read(options.recording, dtype="float32")[0])
    engine = Engine.load(options.student, options.teacher, "cpu")
    engine.warm()
    drafted = [hear(engine, audio, lambda job: job, partials=True) for _ in range(options.rounds)]
    alone = [hear(engine, audio, lambda job: replace(job, draft=()), partials=True) for _ in range(options.rounds)]
    finals = [hear(engine, audio, lambda job: job, partials=False) for _ in range(options.rounds)]
    assert drafted[0].texts == alone[0].texts, "a draft changed the text"
    rows = []
    for name, works in (("live, drafts", drafted), ("live, no drafts", alone), ("finals only", finals)):
        times = [work.seconds for work in works]
        factor = statistics.median(times) / (audio.size / SAMPLE_RATE)
        spread = (max(times) - min(times)) / (audio.size / SAMPLE_RATE)
        work = works[0]
        rows.append([name, work.jobs, work.tokens, work.passes, f"{1 - work.passes / work.tokens:.0%}",
                     f"{factor:.4f} (spread {spread:.4f})"])  # fmt: skip
    print(
        f"{circumstances()}\n\n{options.recording.name}, {audio.size / SAMPLE_RATE:.1f} s, {options.rounds} rounds.\n"
    )
    print(table(["run", "jobs", "tokens", "decoder passes", "passes saved", "real-time factor"], rows))


if __name__ == "__main__":
    main()
