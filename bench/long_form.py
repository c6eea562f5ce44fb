"""Ways to cut a long file: where nobody speaks, and by the timestamps of its text, in words wrong and in work.

Each recording is heard by the student alone, by the teacher alone, and by the pair as the service has it. Work is in
seconds of the processor for a second of audio, which other programs on the machine do not change much.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bench.player import SENTENCES, TALK, said_in
from bench.table import circumstances, table
from bench.word_errors import comparable, words
from distillation.recordings import read_mono
from distillation.scores import repeats
from streaming.events import Final, LongFormMethod
from streaming.job import NEVER, SAMPLE_RATE, Job, Result, Waveform
from streaming.long_form import LongForm
from streaming.offline import listen, stop
from streaming.session import Session, SessionSettings
from streaming.text import Text
from streaming.vad import Detector
from streaming.whisper.engine import WhisperEngine

UNSURE, SHORTEST = 0.72, 2.0
"""When the pair's teacher decides: the service's defaults."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A file, and what is said in it."""

    said: str
    audio: Waveform

    @property
    def seconds(self) -> float:
        return self.audio.size / SAMPLE_RATE


@dataclass(slots=True)
class Work:
    """What it took to hear a recording, and what came of it.

    Attributes:
        text: of all finals.
        finals: how many.
        jobs: how many.
        asked: how many the teacher decided.
        drafted: tokens that the student proposed to the teacher.
        accepted: those of them that the teacher agreed with at once.
        seconds: of the processor.
    """

    text: str = ""
    finals: int = 0
    jobs: int = 0
    asked: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0


def hear(engine: WhisperEngine, settings: SessionSettings, way: LongFormMethod, audio: Waveform) -> Work:
    """Hear a recording.

    Args:
        engine: runs the jobs.
        settings: of the session.
        way: how the recording is cut.
        audio: shape `[samples]`.
    """
    work = Work()

    def run(job: Job) -> Result:
        (result,) = engine.run([job])
        work.jobs += 1
        if result.model == "teacher":
            work.asked += 1
            work.drafted += len(result.student_tokens)
            work.accepted += result.teacher_accepted
        return result

    text = Text(engine.tokenizer_file, engine.eot)
    session = (
        Session("bench", settings, Detector(), text, partials=False)
        if way == "vad"
        else LongForm(
            "bench", settings, Detector(), text, longest=engine.contexts[-1], conditioned=way == "conditioned"
        )
    )
    began = time.process_time()
    finals = [event for event in (*listen(session, run, audio), *stop(session, run)) if isinstance(event, Final)]
    work.seconds = time.process_time() - began
    work.text, work.finals = " ".join(final.text for final in finals), len(finals)
    return work


def row(who: str, way: LongFormMethod, recordings: Sequence[Recording], works: Sequence[Work]) -> list[object]:
    """Return what is said of all recordings, heard in one way."""
    score = words([each.said for each in recordings], [work.text for work in works])
    again = sum(repeats(work.text, each.said, comparable()) for each, work in zip(recordings, works, strict=True))
    drafted = sum(work.drafted for work in works)
    work_rate = sum(work.seconds for work in works) / sum(each.seconds for each in recordings)
    return [
        who,
        way,
        f"{score.wer:.2%}",
        f"{score.substituted}, {score.deleted}, {score.inserted}",
        again,
        sum(work.finals for work in works),
        sum(work.jobs for work in works),
        sum(work.asked for work in works),
        f"{sum(work.accepted for work in works) / drafted:.0%}" if drafted else "",
        f"{work_rate:.3f}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="whisperd bench long_form", description=__doc__)
    parser.add_argument("--student", default="tiny-en")
    parser.add_argument("--teacher", default="tiny-en")
    parser.add_argument("--recording", type=Path, nargs="+", default=[TALK, SENTENCES])
    parser.add_argument("--ways", nargs="+", choices=get_args(LongFormMethod), default=list(get_args(LongFormMethod)))
    parser.add_argument("--who", nargs="+", choices=("student", "teacher", "pair"), default=["student", "pair"])
    options = parser.parse_args(arguments)
    recordings = [Recording(" ".join(said_in(each)), read_mono(each)) for each in options.recording]
    # One thread: where others wait for a core too, each would spend the processor's time on waiting for the other.
    pair = WhisperEngine.load(options.student, options.teacher, "cpu", threads=1)
    student, teacher = (pair.alone(model) for model in pair.models)
    alone = SessionSettings(ask_teacher_below=NEVER)
    runs = {
        "student": (student, alone),
        "teacher": (teacher, alone),
        "pair": (pair, SessionSettings(ask_teacher_below=UNSURE, ask_teacher_from=SHORTEST)),
    }
    print(circumstances())
    print(f"\n{len(recordings)} recordings, {sum(each.seconds for each in recordings) / 60:.1f} min.\n", flush=True)
    rows = [
        row(who, way, recordings, [hear(*runs[who], way, each.audio) for each in recordings])
        for who in options.who
        for way in options.ways
    ]
    heads = ["who", "cut by", "WER", "sub, del, ins", "repeated 5-grams", "finals", "jobs", "asked", "accepted"]
    print(table([*heads, "processor s/s"], rows), flush=True)


if __name__ == "__main__":
    main()
