"""A small corpus, made once in a run of the tests: recordings that were really spoken, and murmurs, a burst a word."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np
import soundfile
import soxr
from waveforms import murmur

from distillation.corpus import Corpus, gather, record
from distillation.synthesis.grammar import sentences
from streaming.job import SAMPLE_RATE, Waveform

DATA = Path(__file__).parent.parent / "data"
RECORDED = {
    "turn_on_the_kitchen_light": "Turn on the kitchen light!",
    "stop": "stop",
    "two_sentences": "Turn off the bedroom lamp. What time is it?",
}
SPEEDS = (0.92, 1.0, 1.07)
MURMURS = 12


@functools.cache
def _kept() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="whisperd-corpus-")  # goes with the process


def recorded(name: str) -> Waveform:
    wave, _ = soundfile.read(DATA / f"{name}.flac", dtype="float32")
    return np.asarray(wave, np.float32)


def murmured(text: str, speaker: int) -> Waveform:
    """What nobody understands, but another burst for every word: always the same of a speaker."""
    silence = np.zeros(SAMPLE_RATE // 20, np.float32)
    bursts = [murmur(0.1 + 0.03 * len(word), crc32(f"{speaker} {word}".encode())) for word in text.split()]
    return np.concatenate([part for burst in bursts for part in (burst, silence)])


def _listed(folder: Path, rows: Sequence[tuple[Waveform, str | None, str, str]]) -> Path:
    """A manifest beside its files, of (wave, text, speaker, set)."""
    folder.mkdir()
    lines = []
    for number, (wave, text, speaker, name) in enumerate(rows):
        soundfile.write(folder / f"{number}.flac", wave, SAMPLE_RATE)
        lines.append(json.dumps({"path": f"{number}.flac", "text": text, "speaker": speaker, "set": name}) + "\n")
    path = folder / "manifest.jsonl"
    path.write_text("".join(lines))
    return path


@functools.cache
def manifest() -> Path:
    """A folder of recordings as a user would have one: a manifest beside files, one of them without a transcript."""
    rows: list[tuple[Waveform, str | None, str, str]] = [
        (recorded(name), text, "me", "mine") for name, text in RECORDED.items()
    ]
    return _listed(Path(_kept().name) / "recordings", [*rows, (recorded("on"), None, "me", "mine")])


@functools.cache
def murmurs() -> Path:
    """Another folder, of several speakers."""
    texts = enumerate(islice(sentences(3), MURMURS))
    rows = [(murmured(text, number % 4), text, str(number % 4), "murmur") for number, text in texts]
    return _listed(Path(_kept().name) / "murmurs", rows)


@functools.cache
def folder() -> Path:
    """A corpus: to train on, the recordings and murmurs by several speakers; to measure on, the recordings at several
    speeds.
    """
    folder = Path(_kept().name) / "corpus"
    back = [
        (soxr.resample(recorded(name), SAMPLE_RATE * speed, SAMPLE_RATE), text, f"at {speed}", "mine")
        for name, text in RECORDED.items()
        for speed in SPEEDS
    ]
    record(folder, manifest(), "train")
    record(folder, murmurs(), "train", 1)
    record(folder, _listed(Path(_kept().name) / "back", back), "dev")
    gather(folder)
    return folder


@functools.cache
def corpus() -> Corpus:
    return Corpus(folder())
