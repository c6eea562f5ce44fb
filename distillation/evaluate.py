"""How good a pair is, measured through the service's own engine and pipeline.

Owns the measurements and their table. Knows nothing of training.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jiwer
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from distillation.corpus import Clip, Corpus
from distillation.errors import DistillError
from distillation.text import normalise
from streaming.events import Final
from streaming.job import ALWAYS, NEVER, SAMPLE_RATE, Job, Result, Waveform
from streaming.session import Session, SessionSettings
from streaming.text import Text
from streaming.vad import Detector

if TYPE_CHECKING:
    from streaming.whisper.engine import Engine

NOISE_SECONDS = 600


class HearingError(DistillError):
    """The engine could not transcribe a clip."""


class Transcriber:
    """The engine with texts instead of tokens. The teacher decides below a confidence: never, unless asked for."""

    def __init__(self, engine: Engine, ask_teacher_below: float = NEVER) -> None:
        self.engine = engine
        self._ask_teacher_below = ask_teacher_below
        self._tokenizer = Tokenizer.from_file(str(engine.tokenizer_file))

    def results(self, waves: Sequence[Waveform]) -> list[Result]:
        """
        Raises:
            HearingError: a job failed.
        """
        results: list[Result] = self.engine.run(
            [Job(wave, ask_teacher_below=self._ask_teacher_below) for wave in waves]
        )
        for result in results:
            if result.error:
                raise HearingError(result.error)
        return results

    def text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens))).strip()

    def transcribe(self, waves: Sequence[Waveform]) -> list[str]:
        return [self.text(result.tokens) for result in self.results(waves)]


@dataclass(frozen=True, slots=True)
class Score:
    """Word errors of a set, as counts; `words` are the reference's."""

    clips: int
    words: int
    substituted: int
    deleted: int
    inserted: int

    @property
    def wer(self) -> float:
        return (self.substituted + self.deleted + self.inserted) / max(1, self.words)


def score(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Both sides in the corpus's style: lower case, letters and apostrophes."""
    output = jiwer.process_words([normalise(text) for text in references], [normalise(text) for text in hypotheses])
    words = output.hits + output.substitutions + output.deletions
    return Score(len(references), words, output.substitutions, output.deletions, output.insertions)


def hear(corpus: Corpus, clips: Sequence[Clip], transcriber: Transcriber, batch: int = 8) -> list[Result]:
    """What is heard in each clip. Clips are given the margins that the service's endpointing leaves around speech."""
    order = sorted(range(len(clips)), key=lambda index: clips[index].samples)
    heard: dict[int, Result] = {}
    for start in tqdm(range(0, len(order), batch), desc="evaluate", unit="batch", leave=False):
        indices = order[start : start + batch]
        waves = [with_margins(corpus.waveform(clips[index])) for index in indices]
        heard.update(zip(indices, transcriber.results(waves), strict=True))
    return [heard[index] for index in range(len(clips))]


def with_margins(wave: Waveform, before: float = 0.2, after: float = 0.2) -> Waveform:
    return np.pad(wave, (int(before * SAMPLE_RATE), int(after * SAMPLE_RATE)))


def seconds_per_clip(waves: Sequence[Waveform], transcriber: Transcriber, rounds: int = 3) -> tuple[float, float]:
    """Median and spread (max - min) over rounds of the mean time of a clip, one at a time."""
    means = []
    for _ in range(rounds):
        began = time.perf_counter()
        for wave in waves:
            transcriber.results([wave])
        means.append((time.perf_counter() - began) / len(waves))
    return statistics.median(means), max(means) - min(means)


def words_from_noise(engine: Engine, noises: Sequence[Waveform], threshold: float) -> tuple[float, int]:
    """(seconds heard, words invented): noises end to end, over and over, through detection, session and engine."""
    text = Text(engine.tokenizer_file, engine.eot)
    settings = SessionSettings(ask_teacher_below=threshold)
    session = Session("noise", settings, Detector(), text)
    words, samples = 0, 0
    while samples < NOISE_SECONDS * SAMPLE_RATE:
        for noise in noises:
            level = 0.05 / (float(np.sqrt(np.mean(noise**2))) + 1e-9)
            for start in range(0, noise.size, SAMPLE_RATE // 2):
                words += _words(session, engine, np.asarray(noise[start : start + SAMPLE_RATE // 2] * level))
            samples += noise.size
    session.stop(0.0)
    return samples / SAMPLE_RATE, words + _words(session, engine, np.zeros(0, np.float32))


def _words(session: Session, engine: Engine, chunk: Waveform) -> int:
    events = session.receive(chunk, 0.0) if chunk.size else []
    while job := session.next_job():
        events = [*events, *session.receive_result(engine.run([job])[0], 0.0)]
    return sum(len(event.text.split()) for event in events if isinstance(event, Final))


# --- the report ------------------------------------------------------------------------------------------------------

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, math.inf)


@dataclass(frozen=True, slots=True)
class Heard:
    """One clip: what was said, what each of the pair heard, and how sure the student was."""

    set: str
    text: str
    student: str
    teacher: str
    confidence: float

    def cascade(self, threshold: float) -> str:
        """What comes out when the teacher decides below `threshold`: a checked text is the teacher's, to the token."""
        return self.teacher if self.confidence < threshold else self.student


def report(
    engine: Engine, alone: Engine, corpus: Corpus, noises: Sequence[Waveform], threshold: float
) -> dict[str, Any]:
    """All figures of a pair, as plain data. `alone` is the teacher as its own student, for comparison.

    Without `noises` nothing is said about words invented from noise.
    """
    heard: list[Heard] = []
    differing = 0
    for name, clips in _sets(corpus).items():
        checked = hear(corpus, clips, Transcriber(engine, ALWAYS))
        undrafted = hear(corpus, clips, Transcriber(alone))
        differing += sum(one.tokens != other.tokens for one, other in zip(undrafted, checked, strict=True))
        text = Transcriber(engine).text
        heard += [
            Heard(name, clip.text, text(result.student_tokens), text(result.tokens), result.student_confidence)
            for clip, result in zip(clips, checked, strict=True)
        ]
    figures: dict[str, Any] = {
        "student": engine.student,
        "teacher": engine.teacher,
        "threshold": threshold,
        "sets": {name: _row([one for one in heard if one.set == name], threshold) for name in _names(heard)},
        "held_out": _row([one for one in heard if one.set.startswith("held_out/")], threshold),
        "thresholds": {str(each): _row(heard, each) for each in THRESHOLDS},
        "speculative_differs": differing,
        "speed": _speed(engine, alone, corpus),
    }
    if noises:
        seconds, words = words_from_noise(engine, noises, threshold)
        figures["noise"] = {"seconds": seconds, "words": words}
    return figures


def _names(heard: Sequence[Heard]) -> list[str]:
    return list(dict.fromkeys(one.set for one in heard))


def _row(heard: Sequence[Heard], threshold: float) -> dict[str, float]:
    said = [one.text for one in heard]
    return {
        "clips": len(heard),
        "teacher": score(said, [one.teacher for one in heard]).wer,
        "student": score(said, [one.student for one in heard]).wer,
        "cascade": score(said, [one.cascade(threshold) for one in heard]).wer,
        "asked": sum(one.confidence < threshold for one in heard) / max(1, len(heard)),
    }


def _sets(corpus: Corpus) -> dict[str, list[Clip]]:
    """Held-out voices by program, and each set of the split "dev"; at most 400 clips of each."""
    sets: dict[str, list[Clip]] = {}
    for split in ("held_out", "dev"):
        for clip in corpus.split(split):
            if clip.seconds < 28:
                sets.setdefault(f"{split}/{clip.set}", []).append(clip)
    return {name: clips[:: math.ceil(len(clips) / 400)] for name, clips in sets.items()}


def _speed(engine: Engine, alone: Engine, corpus: Corpus) -> dict[str, Any]:
    clips = [clip for clip in corpus.split("held_out") if clip.seconds < 4][:40]
    waves = [with_margins(corpus.waveform(clip)) for clip in clips]
    student = seconds_per_clip(waves, Transcriber(engine))
    teacher = seconds_per_clip(waves, Transcriber(alone))
    checked = seconds_per_clip(waves, Transcriber(engine, ALWAYS))
    rows = {"student": student, "teacher alone": teacher, "student, then the teacher's check": checked}
    return {name: {"ms": 1000 * median, "spread_ms": 1000 * spread} for name, (median, spread) in rows.items()}


def as_markdown(figures: Mapping[str, Any]) -> str:
    lines = [
        f"Student `{figures['student']}`, teacher `{figures['teacher']}`; in the cascade the teacher decides below a "
        f"confidence of {figures['threshold']}.",
        "",
        "| set | clips | teacher WER | student WER | cascade WER | decided by the teacher |",
        "|---|---|---|---|---|---|",
    ]
    rows = {**figures["sets"], "**all held-out voices**": figures["held_out"]}
    lines += [
        f"| {name} | {row['clips']} | {_shares(row, 'teacher', 'student', 'cascade', 'asked')} |"
        for name, row in rows.items()
    ]
    lines += ["", "| the teacher decides below | cascade WER, all sets | decided by the teacher |", "|---|---|---|"]
    for threshold, row in figures["thresholds"].items():
        name = {"0.0": "never", "inf": "always"}.get(threshold, threshold)
        lines.append(f"| {name} | {_shares(row, 'cascade', 'asked')} |")
    lines += ["", "| a clip, one at a time | ms | spread |", "|---|---|---|"]
    lines += [f"| {name} | {row['ms']:.1f} | {row['spread_ms']:.1f} |" for name, row in figures["speed"].items()]
    lines += [
        "",
        f"Texts checked by the teacher whose tokens differ from the teacher's alone: {figures['speculative_differs']}.",
    ]
    if noise := figures.get("noise"):
        lines += ["", f"Words invented in {noise['seconds'] / 60:.0f} minutes of noise: {noise['words']}."]
    return "\n".join(lines)


def _shares(row: Mapping[str, float], *names: str) -> str:
    return " | ".join(f"{row[name]:.1%}" for name in names)
