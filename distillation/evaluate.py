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
from distillation.text import normalise
from streaming.events import Final
from streaming.job import ALWAYS, NEVER, SAMPLE_RATE, Job, Result, Waveform
from streaming.session import Session, SessionSettings
from streaming.text import Text
from streaming.vad import Detector

if TYPE_CHECKING:
    from streaming.whisper.engine import Engine

NOISE_SECONDS = 600


class Transcriber:
    """The engine with texts instead of tokens. The teacher decides below a confidence: never, unless asked for."""

    def __init__(self, engine: Engine, ask_teacher_below: float = NEVER) -> None:
        self.engine = engine
        self._ask_teacher_below = ask_teacher_below
        self._tokenizer = Tokenizer.from_file(str(engine.tokenizer_file))

    def results(self, waves: Sequence[Waveform]) -> list[Result]:
        """
        Raises:
            RuntimeError: a job failed.
        """
        results: list[Result] = self.engine.run(
            [Job(wave, ask_teacher_below=self._ask_teacher_below) for wave in waves]
        )
        for result in results:
            if result.error:
                raise RuntimeError(result.error)
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


def report(
    engine: Engine, alone: Engine, corpus: Corpus, noises: Sequence[Waveform], threshold: float
) -> dict[str, Any]:
    """All figures of a pair, as plain data. `alone` is the teacher as its own student, for comparison.

    Without `noises` nothing is said about words invented from noise.
    """
    deciders = {"teacher": ALWAYS, "student": NEVER, "cascade": threshold}
    sets = _sets(corpus)
    figures: dict[str, Any] = {"student": engine.student, "teacher": engine.teacher, "threshold": threshold, "sets": {}}
    differing = 0
    for name, clips in sets.items():
        references = [clip.text for clip in clips]
        heard = {who: hear(corpus, clips, Transcriber(engine, below)) for who, below in deciders.items()}
        alone_heard = hear(corpus, clips, Transcriber(alone))
        differing += sum(a.tokens != b.tokens for a, b in zip(alone_heard, heard["teacher"], strict=True))
        row: dict[str, Any] = {"clips": len(clips)}
        for who, results in heard.items():
            row[who] = score(references, [Transcriber(engine).text(result.tokens) for result in results]).wer
        row["asked"] = sum(result.model == "teacher" for result in heard["cascade"]) / len(clips)
        figures["sets"][name] = row
    figures["speculative_differs"] = differing
    figures["speed"] = _speed(engine, alone, corpus)
    if noises:
        seconds, words = words_from_noise(engine, noises, threshold)
        figures["noise"] = {"seconds": seconds, "words": words}
    return figures


def _sets(corpus: Corpus) -> dict[str, list[Clip]]:
    """Held-out voices by program, and each set of the split "dev"; texts in the corpus's style."""
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
        f"Student `{figures['student']}`, teacher `{figures['teacher']}`; the teacher decides below a confidence of "
        f"{figures['threshold']}.",
        "",
        "| set | clips | teacher WER | student WER | cascade WER | decided by the teacher |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in figures["sets"].items():
        shares = " | ".join(f"{row[key]:.1%}" for key in ("teacher", "student", "cascade", "asked"))
        lines.append(f"| {name} | {row['clips']} | {shares} |")
    lines += [
        "",
        f"Teacher-checked texts whose tokens differ from the teacher's alone: {figures['speculative_differs']}",
        "",
    ]
    lines += ["| a clip, one at a time | ms | spread |", "|---|---|---|"]
    lines += [f"| {name} | {row['ms']:.1f} | {row['spread_ms']:.1f} |" for name, row in figures["speed"].items()]
    if noise := figures.get("noise"):
        lines += ["", f"Words invented in {noise['seconds'] / 60:.0f} minutes of noise: {noise['words']}"]
    return "\n".join(lines)
