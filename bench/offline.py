"""What the engine does with a recording: its real-time factor, and the decoding that drafts save.

The same streaming session is run twice over the same audio, in steps of half a second: once as it is, with the last
hypothesis as every job's draft, and once without drafts. The texts must be equal; the passes differ. A third row counts
what the drafts would save without re-anchoring: there a text that departs from its draft is decoded token by token from
that place on, so the passes follow from what the first pass kept.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from bench.player import SENTENCES, TALK
from bench.table import circumstances, table
from distillation.arguments import count
from distillation.recordings import read_mono
from streaming.events import Final
from streaming.job import SAMPLE_RATE, Job, Result, Waveform
from streaming.offline import listen, stop
from streaming.session import Session, SessionSettings
from streaming.text import Text
from streaming.vad import Detector
from streaming.whisper.engine import WhisperEngine


@dataclass(slots=True)
class Work:
    """What one run took, and what came of it.

    Attributes:
        jobs: how many.
        tokens: of their texts, end of text included.
        passes: decoder passes of the student.
        kept: tokens of drafts that a job's first pass kept.
        texts: of its finals.
        seconds: how long it took.
    """

    jobs: int = 0
    tokens: int = 0
    passes: int = 0
    kept: int = 0
    texts: tuple[str, ...] = ()
    seconds: float = 0.0


def hear(engine: WhisperEngine, audio: Waveform, prepare: Callable[[Job], Job], partials: bool) -> Work:
    """Run a session over audio.

    Args:
        engine: runs the jobs.
        audio: shape `[samples]`.
        prepare: changes each job before the engine gets it.
        partials: whether partials are wanted.
    """
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


def measure(engine: WhisperEngine, audio: Waveform, rounds: int) -> str:
    """Return the table of a recording."""
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
    engine = WhisperEngine.load(options.student, options.teacher, "cpu")
    engine.warm()
    print(circumstances())
    for recording in options.recording:
        audio = read_mono(recording)
        print(f"\n{recording.name}, {audio.size / SAMPLE_RATE:.1f} s, {options.rounds} rounds.\n", flush=True)
        print(measure(engine, audio, options.rounds), flush=True)


if __name__ == "__main__":
    main()
