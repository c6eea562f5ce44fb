"""Noises: read from a folder, and the passages of them that the service's own voice detector takes for speech.

Owns what a noise is (a recording, and whether it holds voices) and the search for passages that are mistaken for
speech: these reach the model in a house, so it must learn to transcribe them as nothing. Knows nothing of training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distillation.recordings import AUDIO, RecordingsError, read_manifest, read_mono
from streaming.job import SAMPLE_RATE, Waveform
from streaming.offline import utterances
from streaming.segment import SegmentSettings

# Mean levels, full scale = 1, at which noises are played to the detector: a quiet room to a loud machine.
LEVELS = (0.01, 0.05, 0.15)
# More easily deceived than the service's own endpointing, so that there is more to learn from.
EAGER = SegmentSettings(threshold=0.3, release=0.2, onset=0.032)


@dataclass(frozen=True, slots=True)
class Noises:
    """Recordings of noise, 16 kHz mono.

    Attributes:
        all: those to mix under speech.
        speechless: those in which nobody speaks.
        mistaken: passages of the speechless ones that sound like speech to a detector.
    """

    all: Sequence[Waveform] = ()
    speechless: Sequence[Waveform] = ()
    mistaken: Sequence[Waveform] = ()


def read_noises(folder: Path | None) -> Noises:
    """Read the noises of a folder; none for None.

    By `contains_speech` its `manifest.jsonl`, if there is one, says which of them hold voices.

    Raises:
        RecordingsError: there is no such folder, no audio in it, or a file cannot be used.
    """
    if folder is None:
        return Noises()
    if not folder.is_dir():
        raise RecordingsError(f"the folder of noises {folder} does not exist")
    manifest = folder / "manifest.jsonl"
    rows = read_manifest(manifest) if manifest.is_file() else []
    voices = {row["path"] for row in rows if row.get("contains_speech")}
    audio = sorted(path for path in folder.iterdir() if path.suffix.lower() in AUDIO)
    if not audio:
        raise RecordingsError(f"no audio in {folder}: looked for {', '.join(sorted(AUDIO))}")
    read = {path.name: read_mono(path) for path in audio}
    if empty := [name for name, wave in read.items() if wave.size == 0]:
        raise RecordingsError(f"{folder / empty[0]} is empty")
    speechless = [wave for name, wave in read.items() if name not in voices]
    return Noises(list(read.values()), speechless)


def with_mistaken(noises: Noises) -> Noises:
    """Return the noises with `mistaken` filled in, which takes about half a minute for three minutes of noise."""
    return replace(noises, mistaken=list(mistaken_for_speech(noises.speechless)))


def mistaken_for_speech(noises: Sequence[Waveform]) -> Iterator[Waveform]:
    """Find the passages of noises that a detector with an eager endpointing takes for speech.

    The noises are played alone and over each other, at several levels.

    Yields:
        Passages, 16 kHz mono.
    """
    scenes = [*noises, *(_over(one, other) for one, other in itertools.combinations(noises, 2) if _nearby(one, other))]
    for scene in scenes:
        for level in LEVELS:
            yield from utterances(at_level(scene, level), EAGER)


def at_level(wave: Waveform, level: float) -> Waveform:
    """Scale a waveform to a root mean square of `level`."""
    return np.asarray(wave * (level / (float(np.sqrt(np.mean(wave**2))) + 1e-9)), np.float32)


def _nearby(one: Waveform, other: Waveform) -> bool:
    """A cheap choice of some pairs: those of about the same length."""
    return abs(one.size - other.size) < SAMPLE_RATE // 100


def _over(one: Waveform, other: Waveform) -> Waveform:
    size = min(one.size, other.size)
    return at_level(one[:size], 1.0) + at_level(other[:size], 0.5)
