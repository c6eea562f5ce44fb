"""What the engine does with a recording: real-time factor, and the decoding that drafts save.

The same streaming session is run twice over the same audio, at the pace of half-second steps: once as it is, with the
last hypothesis as every job's draft, once with the drafts taken away. The texts must be equal; the passes differ. A
third row counts what the drafts would save without re-anchoring: there a text that departs from its draft is decoded
token by token from that place on, so the passes follow from what the first pass kept.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from bench.client import SENTENCES, TALK
from bench.table import circumstances, table
from distillation.arguments import count
from distillation.recordings import read_mono
from streaming.events import Final
from streaming.job import SAMPLE_RATE, Job, Result, Waveform
from streaming.offline import listen, stop
from streaming.session import Session, SessionSettings
from streaming.text import Text
from streaming.vad import Detector
from streaming.whisper.engine import Engine


@dataclass(slots=True)
class Work:
    """One run: its jobs, their tokens (end of text included), the student's passes, the texts of its finals.

    kept: tokens of drafts that a job's first pass kept.
    """

    jobs: int = 0
    tokens: int = 0
    passes: int = 0
    kept: int = 0
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
        work.kept += result.accepted
        return result

    began = time.perf_counter()
    events = [*listen(session, run, audio), *stop(session, run)]
    work.seconds = time.perf_counter() - began
    work.texts = tuple(event.text for event in events if isinstance(event, Final))
    return work


def measure(engine: Engine, audio: Waveform, rounds: int) -> str:
    """The table of a recording."""
    seconds = audio.size / SAMPLE_RATE

    def row(name: str, works: Sequence[Work], passes: int) -> list[object]:
        factors = [work.seconds / seconds for work in works]
        factor = f"{statistics.median(factors):.4f} (spread {max(factors) - min(factors):.4f})" if factors else ""
        return [name, work.jobs, work.tokens, passes, f"{1 - passes / work.tokens:.0%}", factor]

    rows = []
    runs = (("live, drafts", True, True), ("live, no drafts", False, True), ("finals only", True, False))
    for name, drafts, partials in runs:
        bar = tqdm(range(rounds), desc=name, unit="round", leave=False)
        works = [hear(engine, audio, _as_it_is if drafts else _alone, partials) for _ in bar]
        work = works[0]
        rows.append(row(name, works, work.passes))
        if drafts and partials:
            texts = work.texts
            rows.append(row("live, drafts, no re-anchoring", [], work.tokens - work.kept))
        elif partials:
            assert work.texts == texts, "a draft changed the text"
    return table(["run", "jobs", "tokens", "decoder passes", "passes saved", "real-time factor"], rows)


def _as_it_is(job: Job) -> Job:
    return job


def _alone(job: Job) -> Job:
    return replace(job, draft=())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="whisperd bench offline", description=__doc__)
    parser.add_argument("--student", default="tiny-en")
    parser.add_argument("--teacher", default="tiny-en")
    parser.add_argument("--recording", type=Path, nargs="+", default=[TALK, SENTENCES])
    parser.add_argument("--rounds", type=count, default=5)
    options = parser.parse_args(arguments)
    engine = Engine.load(options.student, options.teacher, "cpu")
    engine.warm()
    print(circumstances())
    for recording in options.recording:
        audio = read_mono(recording)
        print(f"\n{recording.name}, {audio.size / SAMPLE_RATE:.1f} s, {options.rounds} rounds.\n", flush=True)
        print(measure(engine, audio, options.rounds), flush=True)


if __name__ == "__main__":
    main()
