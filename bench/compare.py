"""The same audio and weights through what a user might use instead: one machine, one run, in turns.

Systems: this engine (student; student with the teacher's check; teacher alone; student and teacher once more with every
utterance padded with silence to 30 seconds, as the others hear it), transformers' `generate` (each model, and the
teacher with the student as its assistant), and faster-whisper (CTranslate2, int8 and float32), whose models are
converted by its own converter. Prints a table for short sentences and one for a window of 30 seconds: milliseconds per
utterance with the spread over rounds, how many times as fast as each other system this engine is, and word errors.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench.hub_copy import write_hub_copy
from bench.player import SENTENCES, said_in
from bench.table import circumstances, table
from bench.word_errors import words
from distillation.arguments import count
from distillation.recordings import read_mono
from streaming.job import ALWAYS, NEVER, SAMPLE_RATE, Job, Waveform
from streaming.offline import utterances
from streaming.text import Text
from streaming.whisper.checkpoint import Checkpoint, open_checkpoint
from streaming.whisper.engine import WhisperEngine

WINDOW = 30 * SAMPLE_RATE
Transcribe = Callable[[Waveform], str]


@dataclass(slots=True)
class System:
    """One of the systems that are compared.

    Attributes:
        name: in the table.
        transcribe: from audio to text.
        rival: whether it is one of ours with which all others are compared.
        texts: what it heard in the last round.
        seconds: a list for each round, with an entry for each utterance.
    """

    name: str
    transcribe: Transcribe
    rival: bool = False
    texts: list[str] = field(default_factory=list)
    seconds: list[list[float]] = field(default_factory=list)

    def hear(self, waves: Sequence[Waveform]) -> None:
        texts, seconds = [], []
        for wave in waves:
            began = time.perf_counter()
            texts.append(self.transcribe(wave))
            seconds.append(time.perf_counter() - began)
        self.texts = texts
        self.seconds.append(seconds)

    @property
    def rounds_ms(self) -> list[float]:
        """The mean time of an utterance in each round, in milliseconds."""
        return [1000 * statistics.mean(each) for each in self.seconds]


# --- the systems -----------------------------------------------------------------------------------------------------


def ours(student: Checkpoint, teacher: Checkpoint) -> list[System]:
    pair = WhisperEngine.load(str(student.directory), str(teacher.directory), "cpu")
    alone = pair.alone(pair.models[1])
    text = Text(pair.tokenizer_file, pair.eot)

    def transcribe(engine: WhisperEngine, threshold: float, wave: Waveform) -> str:
        (result,) = engine.run([Job(wave, ask_teacher_below=threshold)])
        return text.text(result.tokens)

    def transcribe_window(engine: WhisperEngine, wave: Waveform) -> str:
        return transcribe(engine, NEVER, window_of(wave))

    return [
        System("whisperd, student", partial(transcribe, pair, NEVER), rival=True),
        System("whisperd, student + teacher's check", partial(transcribe, pair, ALWAYS), rival=True),
        System("whisperd, teacher alone", partial(transcribe, alone, NEVER), rival=True),
        # What the others hear: how much of the difference is the shorter window, and how much the decoding.
        System("whisperd, student, 30 s heard", partial(transcribe_window, pair)),
        System("whisperd, teacher, 30 s heard", partial(transcribe_window, alone)),
    ]


def window_of(wave: Waveform) -> Waveform:
    """Pad audio with silence to the 30 s that every Whisper hears."""
    return np.pad(wave, (0, max(0, WINDOW - wave.size)))


def of_transformers(student: Path, teacher: Path) -> list[System]:
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    extractor, words = WhisperFeatureExtractor.from_pretrained(student), WhisperTokenizer.from_pretrained(student)
    small, large = (
        WhisperForConditionalGeneration.from_pretrained(path, dtype="float32").eval() for path in (student, teacher)
    )

    @torch.inference_mode()
    def transcribe(model: Any, assistant: Any, wave: Waveform) -> str:
        mel = extractor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        options = {"assistant_model": assistant} if assistant is not None else {}
        tokens = model.generate(mel, return_timestamps=False, **options)[0]
        return str(words.decode(tokens, skip_special_tokens=True))

    return [
        System("transformers, student", partial(transcribe, small, None)),
        System("transformers, teacher", partial(transcribe, large, None)),
        System("transformers, teacher, student as assistant", partial(transcribe, large, small)),
    ]


def of_faster_whisper(student: Path, teacher: Path, folder: Path, threads: int) -> list[System]:
    from ctranslate2.converters import TransformersConverter
    from faster_whisper import WhisperModel

    def transcribe(model: Any, wave: Waveform) -> str:
        # It fills a window with mel bands of 0, not with those of silence, which so small a model has never heard.
        # Filled with silence beforehand, a window is the same for all, and costs it the same.
        segments, _ = model.transcribe(
            window_of(wave), language="en", beam_size=1, temperature=0.0, without_timestamps=True,
            condition_on_previous_text=False, log_prob_threshold=None, no_speech_threshold=None,
            compression_ratio_threshold=None,
        )  # fmt: skip
        return " ".join(segment.text for segment in segments)

    systems = []
    for role, source in (("student", student), ("teacher", teacher)):
        converted = folder / role
        copied = ["tokenizer.json", "preprocessor_config.json"]
        TransformersConverter(str(source), copy_files=copied).convert(str(converted))
        for kind in ("int8", "float32"):
            model = WhisperModel(str(converted), device="cpu", compute_type=kind, cpu_threads=threads)
            systems.append(System(f"faster-whisper {kind}, {role}", partial(transcribe, model)))
    return systems


# --- what they hear --------------------------------------------------------------------------------------------------


def compare(systems: Sequence[System], waves: Sequence[Waveform], said: Sequence[str], rounds: int) -> str:
    for each in systems:
        each.texts, each.seconds = [], []
        each.transcribe(waves[0])  # what is cold is warmed outside of the clock
    for _ in tqdm(range(rounds), desc="rounds", leave=False):
        for each in systems:
            each.hear(waves)
    rows = []
    rivals = [own for own in systems if own.rival]
    for each in systems:
        ratios = ["" if each.rival else _ratio(each, own) for own in rivals]
        middle, spread = statistics.median(each.rounds_ms), max(each.rounds_ms) - min(each.rounds_ms)
        rows.append([each.name, f"{middle:.1f} ({spread:.1f})", f"{words(said, each.texts).wer:.1%}", *ratios])
    return table(["", "ms an utterance (spread)", "WER", "ours: student", "ours: checked", "ours: teacher"], rows)


def window_of_many(waves: Sequence[Waveform]) -> tuple[Waveform, int]:
    """Join as many utterances as fit into 30 s, and return them with their number."""
    ends = np.cumsum([wave.size for wave in waves])
    count = int(np.searchsorted(ends, WINDOW, side="right"))
    return np.concatenate(waves[:count]), count


def _ratio(slow: System, fast: System) -> str:
    """How many times as fast `fast` is, round by round: the median, and the least and most."""
    ratios = [one / other for one, other in zip(slow.rounds_ms, fast.rounds_ms, strict=True)]
    return f"{statistics.median(ratios):.1f}x ({min(ratios):.1f} to {max(ratios):.1f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="whisperd bench compare", description=__doc__)
    parser.add_argument("--student", default="tiny-en")
    parser.add_argument("--teacher", default="tiny-en")
    parser.add_argument(
        "--recording", type=Path, default=SENTENCES, help="beside it, a line an utterance, what is said"
    )
    parser.add_argument("--rounds", type=count, default=7)
    options = parser.parse_args(arguments)
    student = open_checkpoint(options.student, "student")
    teacher = open_checkpoint(options.teacher, "teacher")
    audio = read_mono(options.recording)
    said = said_in(options.recording)
    with TemporaryDirectory() as folder:
        small, large = (write_hub_copy(each, Path(folder) / f"plain {each.name}") for each in (student, teacher))
        systems = [
            *ours(student, teacher), *of_transformers(small, large),
            *of_faster_whisper(small, large, Path(folder), torch.get_num_threads()),
        ]  # fmt: skip
        print(f"{circumstances()}\n", flush=True)
        short = list(utterances(audio))
        print(
            f"Sentences ({len(short)}), one at a time:\n\n{compare(systems, short, said, options.rounds)}\n", flush=True
        )
        together, fitting = window_of_many(short)
        print(f"A window of 30 s, the first {fitting} of them:\n\n"
              f"{compare(systems, [together], said[:fitting], options.rounds)}")  # fmt: skip


if __name__ == "__main__":
    main()
